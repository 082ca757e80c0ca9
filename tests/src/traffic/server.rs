//! The side that answers.

use std::{
    fmt,
    io::{self, ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result};

use super::{Protocol, is_pause, tick_on};
use crate::netns::Namespace;

/// Answers every request on one port with its name and the source address that it saw. Stops on drop, which also
/// closes its connections.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    name: String,
    stop: AtomicBool,
    requests: AtomicUsize,
}

impl Server {
    /// Listens in `namespace` on `port` of each of the addresses.
    ///
    /// # Errors
    /// When an address is not there or the port is taken, or for SCTP when the kernel does not have it.
    pub fn start(
        namespace: &Namespace,
        name: &str,
        protocol: Protocol,
        addresses: &[IpAddr],
        port: u16,
    ) -> Result<Self> {
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            stop: AtomicBool::new(false),
            requests: AtomicUsize::new(0),
        });
        let mut server = Self { shared, threads: Vec::new() };
        for &address in addresses {
            let address = SocketAddr::new(address, port);
            let serving = namespace
                .within(|| server.listen(protocol, address))
                .with_context(|| format!("{name} listens on {protocol} {address}"))?;
            server.threads.push(serving);
        }
        Ok(server)
    }

    /// How many requests have been answered.
    #[must_use]
    pub fn requests(&self) -> usize {
        self.shared.requests.load(Ordering::Acquire)
    }

    fn listen(&self, protocol: Protocol, address: SocketAddr) -> io::Result<JoinHandle<()>> {
        let socket = protocol.bound(address)?;
        tick_on(&socket)?;
        let shared = Arc::clone(&self.shared);
        let thread = thread::Builder::new().name(format!("{} {address}", shared.name));
        if protocol == Protocol::Udp {
            let socket = UdpSocket::from(socket);
            return thread.spawn(move || shared.datagrams(&socket));
        }
        socket.listen(128)?;
        let listener = TcpListener::from(socket);
        thread.spawn(move || shared.accept(&listener))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        for serving in self.threads.drain(..) {
            // It only panics if we have done so.
            serving.join().ok();
        }
    }
}

impl Shared {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    fn answer(&self, source: SocketAddr) -> Vec<u8> {
        self.requests.fetch_add(1, Ordering::AcqRel);
        format!("{} {source}\n", self.name).into_bytes()
    }

    fn datagrams(&self, socket: &UdpSocket) {
        let mut buffer = [0; 512];
        while !self.stopped() {
            // Errors here are pauses, and refusals of earlier answers; neither ends the service.
            if let Ok((_, source)) = socket.recv_from(&mut buffer) {
                socket.send_to(&self.answer(source), source).ok();
            }
        }
    }

    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        thread::scope(|scope| {
            while !self.stopped() {
                match listener.accept() {
                    Ok((stream, source)) => {
                        // A connection that fails is the client's to notice.
                        scope.spawn(move || self.stream(stream, source).ok());
                    }
                    Err(error) if is_pause(&error) => {}
                    Err(_) => return,
                }
            }
        });
    }

    fn stream(&self, mut stream: TcpStream, source: SocketAddr) -> io::Result<()> {
        tick_on(&stream)?;
        let mut buffer = [0; 512];
        while !self.stopped() {
            match stream.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(length) => {
                    for _ in buffer[..length].iter().filter(|&&byte| byte == b'\n') {
                        stream.write_all(&self.answer(source))?;
                    }
                }
                Err(error) if is_pause(&error) => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}
