//! Connects to a server. Nothing else of the agent does.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use distributary_runtime::tls::Connector;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint, Uri};

use super::credential::TokenFile;

/// So long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(5);
/// So long both sides may take to prove who they are: a server that has just come up does it for many.
const HANDSHAKE: Duration = Duration::from_secs(10);
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
pub struct Dialer {
    tls: Option<Arc<Tls>>,
}

/// How a server and this agent prove who they are.
#[derive(Clone, Debug)]
pub struct Tls {
    /// Makes connections secure.
    pub connector: Connector,
    /// Who certificates are for, where it is not the host that was told.
    pub server_name: Option<String>,
    /// What proves which node this is, beside or instead of a certificate.
    pub token: Option<TokenFile>,
}

impl Dialer {
    /// By TLS alone.
    pub fn secure(tls: Tls) -> Self {
        Self { tls: Some(Arc::new(tls)) }
    }

    /// Where this agent's token is, if it has one.
    pub fn token(&self) -> Option<&TokenFile> {
        self.tls.as_ref()?.token.as_ref()
    }

    /// A channel to a server.
    ///
    /// # Errors
    /// When its address is none, nobody answers there in time, or one of both does not accept the other.
    pub async fn dial(&self, server: &Server) -> anyhow::Result<Channel> {
        let address = &server.address;
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .with_context(|| format!("{address:?} is not HOST:PORT"))?
            .http2_keep_alive_interval(KEEP_ALIVE);
        let socket = within(CONNECT, async { Ok(TcpStream::connect(address).await?) }).await?;
        socket.set_nodelay(true).context("cannot connect")?;
        let Some(tls) = &self.tls else { return over(endpoint, socket).await };
        let name = tls.server_name.as_deref().unwrap_or(&server.host);
        over(endpoint, within(HANDSHAKE, tls.connector.connect(socket, name)).await?).await
    }
}

async fn within<T>(time: Duration, made: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let made = tokio::time::timeout(time, made).await;
    made.map_err(|_| anyhow!("no answer within {} s", time.as_secs())).flatten().context("cannot connect")
}

/// HTTP/2 on a connection that is there. It is not made anew when it ends: that is the driver's to decide.
async fn over<S>(endpoint: Endpoint, stream: S) -> anyhow::Result<Channel>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut once = Some(TokioIo::new(stream));
    let connector = tower::service_fn(move |_: Uri| {
        std::future::ready(once.take().ok_or_else(|| io::Error::other("the connection has ended")))
    });
    endpoint.connect_with_connector(connector).await.context("cannot connect")
}
