//! What a connection passes before a stream can be opened on it.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use distributary_runtime::tls::Acceptor;
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::bucket::Bucket;
use super::room::{Place, Room};
use crate::args::LimitArgs;
use crate::auth::{self, Auth, Proof};
use crate::metrics::Metrics;

/// Lines about refused connections, a second: whoever wants to fill the log shall not.
const LINES: u32 = 20;

/// Lets connections in.
#[derive(Clone, Debug)]
pub struct Gate {
    acceptor: Option<Arc<Acceptor>>,
    /// Checks what is shown on a connection.
    pub(super) auth: Auth,
    pub(super) limits: Arc<LimitArgs>,
    room: Room,
    pace: Arc<Mutex<Bucket>>,
    lines: Arc<Mutex<Bucket>>,
}

/// A connection that was let in.
pub(super) enum Passed {
    /// In the clear.
    Clear(TcpStream),
    /// By TLS, with what its peer has proven so far, or why its certificate proves nothing.
    Secure(Box<TlsStream<TcpStream>>, Result<Proof, String>),
}

impl Gate {
    /// With TLS, where there is an acceptor.
    pub fn new(acceptor: Option<Arc<Acceptor>>, auth: Auth, limits: LimitArgs) -> Self {
        let bucket = |per_second| Arc::new(Mutex::new(Bucket::new(per_second, Instant::now())));
        Self {
            acceptor,
            auth,
            room: Room::new(limits.max_connections, limits.max_connections_per_address),
            pace: bucket(limits.handshakes_per_second),
            lines: bucket(LINES),
            limits: Arc::new(limits),
        }
    }

    /// Waits until one more handshake may be had. The kernel keeps those that wait.
    pub(super) async fn turn(&self) {
        if self.acceptor.is_none() {
            return;
        }
        while let Err(wait) = take(&self.pace) {
            tokio::time::sleep(wait).await;
        }
    }

    /// Room for one connection from that address.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) fn room(&self, address: IpAddr) -> Result<Place, String> {
        self.room.take(address)
    }

    /// Lets a connection in.
    ///
    /// # Errors
    /// Why it is not, in words about its peer.
    pub(super) async fn pass(&self, socket: TcpStream) -> Result<Passed, String> {
        super::socket::bound(&socket, super::STUCK).map_err(|e| e.to_string())?;
        let Some(acceptor) = &self.acceptor else { return Ok(Passed::Clear(socket)) };
        let time = self.limits.handshake_timeout;
        let stream = tokio::time::timeout(time, acceptor.accept(socket))
            .await
            .map_err(|_| format!("its handshake took longer than {time:?}"))??;
        let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let certified = match shown {
            Some(certificate) => auth::identity(certificate).map(Proof::Of),
            None => Ok(Proof::Nothing),
        };
        Ok(Passed::Secure(Box::new(stream), certified))
    }

    /// Counts a connection that was not let in, and says why.
    pub(super) fn refused(&self, peer: SocketAddr, reason: &str, metrics: &Metrics) {
        metrics.refused.inc();
        match take(&self.lines) {
            Ok(()) => tracing::warn!(%peer, reason, "connection refused"),
            Err(_) => tracing::debug!(%peer, reason, "connection refused"),
        }
    }

    /// Counts an agent that has not proven who it is, and says why.
    pub(super) fn unproven(&self, reason: &str, metrics: &Metrics) {
        metrics.refused.inc();
        match take(&self.lines) {
            Ok(()) => tracing::warn!(reason, "agent refused"),
            Err(_) => tracing::debug!(reason, "agent refused"),
        }
    }
}

fn take(bucket: &Mutex<Bucket>) -> Result<(), Duration> {
    bucket.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now())
}
