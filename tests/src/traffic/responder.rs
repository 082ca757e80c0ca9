//! A [`Server`](super::Server) for thousands of flows a second: one thread, TCP and UDP, and an answer that is always
//! the same.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use socket2::Socket;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::runtime::Builder;
use tokio::sync::Notify;

use super::Protocol;
use crate::netns::Namespace;

/// Connections that wait to be accepted while others have the processor.
const BACKLOG: i32 = 4096;
/// Bytes that a socket keeps meanwhile, where the kernel allows it.
const BUFFER: usize = 4 << 20;

/// Answers every message with itself. Stops on drop, which also closes its connections.
#[derive(Debug)]
pub struct Responder {
    stop: Arc<Notify>,
    thread: Option<JoinHandle<()>>,
}

impl Responder {
    /// Listens in `namespace` on TCP and UDP `port` of each of the addresses.
    ///
    /// # Errors
    /// When an address is not there or the port is taken.
    pub fn start(namespace: &Namespace, addresses: &[IpAddr], port: u16) -> Result<Self> {
        let all = addresses.iter().map(|address| SocketAddr::new(*address, port));
        let all = all.flat_map(|address| [(Protocol::Tcp, address), (Protocol::Udp, address)]);
        let bound = |(protocol, address): (Protocol, SocketAddr)| {
            let socket = namespace.within(|| listening(protocol, address));
            Ok((protocol, socket.with_context(|| format!("listen on {protocol} {address}"))?))
        };
        let sockets = all.map(bound).collect::<Result<Vec<_>>>()?;
        let runtime = Builder::new_current_thread().enable_io().build()?;
        let stop = Arc::new(Notify::new());
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new().name("responder".to_owned()).spawn(move || {
            runtime.block_on(async {
                for (protocol, socket) in sockets {
                    // It only fails where the runtime has no IO.
                    serve(protocol, socket).ok();
                }
                stopped.notified().await;
            });
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.stop.notify_one();
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

fn listening(protocol: Protocol, address: SocketAddr) -> io::Result<Socket> {
    let socket = protocol.bound(address)?;
    socket.set_nonblocking(true)?;
    socket.set_recv_buffer_size(BUFFER)?;
    if protocol == Protocol::Tcp {
        socket.listen(BACKLOG)?;
    }
    Ok(socket)
}

fn serve(protocol: Protocol, socket: Socket) -> io::Result<()> {
    if protocol == Protocol::Udp {
        let socket = UdpSocket::from_std(socket.into())?;
        tokio::spawn(async move {
            let mut buffer = [0; 64];
            loop {
                // Errors are refusals of earlier answers.
                if let Ok((length, source)) = socket.recv_from(&mut buffer).await {
                    socket.send_to(&buffer[..length], source).await.ok();
                }
            }
        });
        return Ok(());
    }
    let listener = TcpListener::from_std(socket.into())?;
    tokio::spawn(async move {
        loop {
            if let Ok((stream, _)) = listener.accept().await {
                // A connection that fails is the client's to notice.
                tokio::spawn(echo(stream));
            }
        }
    });
    Ok(())
}

async fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = [0; 64];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            length => stream.write_all(&buffer[..length]).await?,
        }
    }
}
