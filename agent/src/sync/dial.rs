//! Connects to a server. Nothing else of the agent does.

use std::fmt;
use std::time::Duration;

use anyhow::Context;
use tonic::transport::{Channel, Endpoint};

/// So long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(5);
/// How often HTTP/2 asks whether the server is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(18);

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Server {
    /// HOST:PORT: what is dialled. An address, where a name was resolved.
    pub address: String,
    /// The host as it was told by a flag or another server: who its certificate is for.
    pub host: String,
}

impl Server {
    /// Of HOST:PORT as it was told.
    pub fn new(address: impl Into<String>) -> Self {
        let address = address.into();
        let host = address.rsplit_once(':').map_or(&*address, |(host, _)| host).trim_matches(['[', ']']);
        Self { host: host.to_owned(), address }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.address)
    }
}

/// How servers are talked to.
#[derive(Clone, Debug, Default)]
pub struct Dialer {}

impl Dialer {
    /// A channel to a server.
    ///
    /// # Errors
    /// When its address is none, or nobody answers there in time.
    pub async fn dial(&self, server: &Server) -> anyhow::Result<Channel> {
        let address = &server.address;
        Endpoint::from_shared(format!("http://{address}"))
            .with_context(|| format!("{address:?} is not HOST:PORT"))?
            .connect_timeout(CONNECT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .connect()
            .await
            .context("cannot connect")
    }
}
