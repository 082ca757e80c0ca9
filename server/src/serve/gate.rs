//! What a connection passes before a stream can be opened on it.

use std::sync::Arc;
use std::time::Duration;

use distributary_runtime::tls::Acceptor;
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use crate::auth::{self, Proof};

/// So long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Lets connections in.
#[derive(Clone, Debug, Default)]
pub struct Gate {
    acceptor: Option<Arc<Acceptor>>,
}

/// A connection that was let in.
pub(super) enum Passed {
    /// In the clear.
    Clear(TcpStream),
    /// By TLS, with what its peer has proven.
    Secure(Box<TlsStream<TcpStream>>, Proof),
}

impl Gate {
    /// With TLS, where there is an acceptor.
    pub fn new(acceptor: Option<Arc<Acceptor>>) -> Self {
        Self { acceptor }
    }

    /// Lets a connection in.
    ///
    /// # Errors
    /// Why it is not, in words about its peer.
    pub(super) async fn pass(&self, socket: TcpStream) -> Result<Passed, String> {
        super::socket::bound(&socket, super::STUCK).map_err(|e| e.to_string())?;
        let Some(acceptor) = &self.acceptor else { return Ok(Passed::Clear(socket)) };
        let stream = tokio::time::timeout(HANDSHAKE, acceptor.accept(socket))
            .await
            .map_err(|_| format!("its handshake took longer than {} s", HANDSHAKE.as_secs()))??;
        let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let proof = match shown {
            Some(certificate) => Proof::Certificate { node: auth::node_of(certificate)? },
            None => Proof::Nothing,
        };
        Ok(Passed::Secure(Box::new(stream), proof))
    }
}
