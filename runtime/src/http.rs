//! HTTP/1 with a bound on everything: how many connections there are, how long one lasts, and how long a request may
//! take to come.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::{Extension, Router};
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::HttpService;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// A request's head takes no longer, and a connection is not idle for longer.
const HEAD: Duration = Duration::from_secs(10);
/// A connection is ended after so long, and gets [`HEAD`] for what it is at.
const LIFE: Duration = Duration::from_secs(120);
/// More of a request's head is not read.
const HEAD_BYTES: usize = 16 << 10;
/// Before an address that cannot be listened on is tried again.
const AGAIN: Duration = Duration::from_secs(5);
/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;

/// Serves HTTP/1 on a bounded number of connections.
#[derive(Clone, Debug)]
pub struct Http {
    builder: http1::Builder,
    room: Arc<Semaphore>,
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// Room for one connection. The default one is beyond what is counted.
#[derive(Debug, Default)]
pub struct Room(#[allow(dead_code)] Option<OwnedSemaphorePermit>);

impl Http {
    /// So many connections at a time; who comes later waits to be accepted.
    pub fn new(connections: usize) -> Self {
        let mut builder = http1::Builder::new();
        // Go's servers write the names of headers like this, and so do those who match them.
        builder.title_case_headers(true);
        builder.timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(HEAD_BYTES);
        Self { builder, room: Arc::new(Semaphore::new(connections)) }
    }

    /// Waits for room. To be had before a connection is accepted.
    pub async fn room(&self) -> Room {
        Room(self.room.clone().acquire_owned().await.ok())
    }

    /// Serves one connection to its end.
    pub async fn connection<S>(self, stream: TcpStream, service: S, _room: Room)
    where
        S: HttpService<Incoming, Error: Into<Box<dyn std::error::Error + Send + Sync>>>,
        S::ResBody: Body<Error: Into<Box<dyn std::error::Error + Send + Sync>>> + 'static,
    {
        let mut connection = std::pin::pin!(self.builder.serve_connection(TokioIo::new(stream), service));
        // How a client's connection ends is the client's business.
        if tokio::time::timeout(LIFE, connection.as_mut()).await.is_err() {
            connection.as_mut().graceful_shutdown();
            let _ = tokio::time::timeout(HEAD, connection).await;
        }
    }

    /// Serves a router until shutdown. Its handlers find a [`Peer`] among the request's extensions.
    pub async fn serve(&self, listener: &TcpListener, router: Router, shutdown: &CancellationToken) {
        let mut connections = JoinSet::new();
        loop {
            let accepted = async {
                let room = self.room().await;
                (accept(listener).await, room)
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                Some(_) = connections.join_next() => {}
                (stream, room) = accepted => {
                    let Ok(peer) = stream.peer_addr() else { continue };
                    let service = TowerToHyperService::new(router.clone().layer(Extension(Peer(peer))));
                    connections.spawn(self.clone().connection(stream, service, room));
                }
            }
        }
    }
}

/// The next connection; waits a while when the process has no more file descriptors.
pub async fn accept(listener: &TcpListener) -> TcpStream {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(e) if matches!(e.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset) => {}
            Err(e) => {
                tracing::warn!(error = %e, "no connection can be accepted for now");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

/// Listens at an address, and nowhere else.
///
/// # Errors
/// When the kernel refuses.
pub fn listen_only(address: SocketAddr) -> io::Result<TcpListener> {
    listen(address, true)
}

/// Listens at an address; at IPv4's wildcard for IPv6 too, where the host has it, as programs in Go do.
///
/// # Errors
/// When the kernel refuses.
pub fn listen_widely(address: SocketAddr) -> io::Result<TcpListener> {
    if address.ip().is_unspecified() {
        let both = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), address.port());
        match listen(both, false) {
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => return Err(e),
            Err(_) if address.is_ipv4() => {}
            listener => return listener,
        }
    }
    listen(address, true)
}

fn listen(address: SocketAddr, only: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(only)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Listens as [`listen_widely`] does, as soon as that is possible, and says so while it is not; `flag` names the address
/// to its operator.
///
/// # Errors
/// With `hard_fail`, at the first time that it is not possible.
pub async fn listen_patiently(
    flag: &str,
    address: SocketAddr,
    hard_fail: bool,
) -> anyhow::Result<TcpListener> {
    loop {
        match listen_widely(address) {
            Ok(listener) => return Ok(listener),
            Err(e) if hard_fail => {
                return Err(e).with_context(|| format!("{flag} {address} cannot be listened on"));
            }
            Err(e) => {
                let retry_s = AGAIN.as_secs();
                tracing::warn!(flag, %address, error = %e, retry_s, "cannot be listened on");
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn loopback() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 0))
    }

    async fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn who_comes_too_many_waits_and_who_says_nothing_is_sent_away() {
        let listener = listen_only(loopback()).unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/", axum::routing::get(async || "here"));
        let shutdown = CancellationToken::new();
        let http = Http::new(1);
        tokio::time::pause();
        let serving = http.serve(&listener, router, &shutdown);
        let asking = async {
            let mut silent = TcpStream::connect(address).await.unwrap();
            silent.write_all(b"GET / HT").await.unwrap();
            let answer = ask(address, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
            assert!(
                answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("Content-Length: 4\r\n"),
                "{answer}"
            );
            assert!(answer.ends_with("\r\n\r\nhere"), "{answer}");
            let mut rest = String::new();
            let _ = silent.read_to_string(&mut rest).await;
            assert!(!rest.contains("here"), "{rest}");
        };
        tokio::select! { () = serving => panic!("it ended"), () = asking => {} }
    }

    #[tokio::test]
    async fn an_address_is_had_when_it_becomes_free_or_not_at_all() {
        let first = listen_only(loopback()).unwrap();
        let address = first.local_addr().unwrap();
        tokio::time::pause();
        let error = listen_patiently("--healthz-bind-address", address, true).await.unwrap_err();
        assert_eq!(error.to_string(), format!("--healthz-bind-address {address} cannot be listened on"));
        let waiting = tokio::spawn(async move { listen_patiently("--flag", address, false).await.unwrap() });
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(!waiting.is_finished());
        drop(first);
        assert_eq!(waiting.await.unwrap().local_addr().unwrap(), address);
    }

    #[tokio::test]
    async fn the_wildcard_of_ipv4_takes_ipv6_too() {
        let listener = listen_widely(SocketAddr::from(([0, 0, 0, 0], 0))).unwrap();
        let port = listener.local_addr().unwrap().port();
        TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).await.unwrap();
        if std::path::Path::new("/proc/net/if_inet6").exists() {
            TcpStream::connect(SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port)).await.unwrap();
        }
    }
}
