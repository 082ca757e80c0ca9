//! The side that asks.

use std::{
    collections::BTreeMap,
    io::{self, ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    os::fd::AsFd,
    sync::Arc,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, poll},
};
use socket2::{Domain, Socket};

use super::{Protocol, QUESTION};
use crate::netns::Namespace;

/// Milliseconds between looks at a socket that nothing has happened to.
const GLANCE: u8 = 50;

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The name of the server that answered.
    pub who: String,
    /// Where the server saw the request come from.
    pub seen_source: SocketAddr,
}

/// Why there was no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Somebody said no: a reset, or ICMP "port unreachable".
    Refused,
    /// Nothing came.
    Timeout,
    /// There is no route, or ICMP said that there is none.
    Unreachable,
    /// The connection was there and is not any more.
    Closed,
    /// Anything else.
    Other(String),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => Self::Refused,
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Self::Timeout,
            ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => Self::Unreachable,
            ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof => Self::Closed,
            _ => Self::Other(error.to_string()),
        }
    }
}

/// Asks from one namespace, with its own addresses or a chosen source.
#[derive(Clone, Debug)]
pub struct Client {
    namespace: Arc<Namespace>,
    source: Option<SocketAddr>,
    timeout: Duration,
}

impl Client {
    /// A client in that namespace that waits for a second.
    #[must_use]
    pub fn new(namespace: &Arc<Namespace>) -> Self {
        Self { namespace: Arc::clone(namespace), source: None, timeout: Duration::from_secs(1) }
    }

    /// The same, asking from that address.
    #[must_use]
    pub fn from_address(&self, source: IpAddr) -> Self {
        self.from_socket(SocketAddr::new(source, 0))
    }

    /// The same, asking from that address and port. (A TCP port rests for a minute after use.)
    #[must_use]
    pub fn from_socket(&self, source: SocketAddr) -> Self {
        Self { source: Some(source), ..self.clone() }
    }

    /// The same, waiting that long to connect and for each answer.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { timeout, ..self.clone() }
    }

    /// Asks once, on a new connection.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn ask(&self, protocol: Protocol, target: SocketAddr) -> Result<Reply, Failure> {
        self.open(protocol, target)?.ask()
    }

    /// Asks `count` times, each on a new connection, and counts the answers by name. Failures count by their names.
    #[must_use]
    pub fn spread(&self, protocol: Protocol, target: SocketAddr, count: usize) -> BTreeMap<String, usize> {
        let mut answers = BTreeMap::new();
        for _ in 0..count {
            let answer = match self.ask(protocol, target) {
                Ok(reply) => reply.who,
                Err(failure) => format!("{failure:?}"),
            };
            *answers.entry(answer).or_default() += 1;
        }
        answers
    }

    /// Connects, to ask more than once in the same flow.
    ///
    /// # Errors
    /// When the connection does not come about.
    pub fn open(&self, protocol: Protocol, target: SocketAddr) -> Result<Conversation, Failure> {
        let socket = self.namespace.within(|| match self.source {
            Some(source) => protocol.bound(source),
            None => protocol.socket(Domain::for_address(target)),
        })?;
        self.connect(&socket, target)?;
        socket.set_read_timeout(Some(self.timeout))?;
        let flow = match protocol {
            Protocol::Udp => Flow::Datagrams(socket.into()),
            Protocol::Tcp | Protocol::Sctp => Flow::Stream(socket.into()),
        };
        Ok(Conversation { flow, timeout: self.timeout })
    }

    /// Connects by hand: an ICMP error that comes while the call to connect still holds the socket (as it does here,
    /// where a packet's whole way is walked in that call) is kept as a "soft" one, which wakes nobody.
    fn connect(&self, socket: &Socket, target: SocketAddr) -> Result<(), Failure> {
        let deadline = Instant::now() + self.timeout;
        socket.set_nonblocking(true)?;
        match socket.connect(&target.into()) {
            Err(error) if error.raw_os_error() != Some(Errno::EINPROGRESS as i32) => return Err(error.into()),
            _ => {}
        }
        loop {
            if let Some(error) = socket.take_error()? {
                return Err(error.into());
            }
            if socket.peer_addr().is_ok() {
                return Ok(socket.set_nonblocking(false)?);
            }
            if Instant::now() > deadline {
                return Err(Failure::Timeout);
            }
            let mut ready = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
            poll(&mut ready, GLANCE).map_err(io::Error::from)?;
        }
    }
}

/// A flow that stays open. Its source port is the same for every question.
#[derive(Debug)]
pub struct Conversation {
    flow: Flow,
    timeout: Duration,
}

#[derive(Debug)]
enum Flow {
    Stream(TcpStream),
    Datagrams(UdpSocket),
}

impl Conversation {
    /// Asks once more.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn ask(&mut self) -> Result<Reply, Failure> {
        let mut answer = Vec::new();
        match &mut self.flow {
            Flow::Datagrams(socket) => {
                socket.send(QUESTION)?;
                answer.resize(512, 0);
                let length = socket.recv(&mut answer)?;
                answer.truncate(length);
            }
            Flow::Stream(stream) => {
                stream.write_all(QUESTION)?;
                read_line(stream, &mut answer, Instant::now() + self.timeout)?;
            }
        }
        parse(&answer).ok_or_else(|| Failure::Other(format!("not an answer: {answer:?}")))
    }

    /// The address that this end has.
    ///
    /// # Errors
    /// When the kernel does not know.
    pub fn local_address(&self) -> Result<SocketAddr, Failure> {
        Ok(match &self.flow {
            Flow::Stream(stream) => stream.local_addr()?,
            Flow::Datagrams(socket) => socket.local_addr()?,
        })
    }
}

fn read_line(stream: &mut TcpStream, line: &mut Vec<u8>, deadline: Instant) -> Result<(), Failure> {
    let mut buffer = [0; 512];
    while !line.ends_with(b"\n") {
        if Instant::now() > deadline {
            return Err(Failure::Timeout);
        }
        match stream.read(&mut buffer)? {
            0 => return Err(Failure::Closed),
            length => line.extend_from_slice(&buffer[..length]),
        }
    }
    Ok(())
}

fn parse(answer: &[u8]) -> Option<Reply> {
    let (who, source) = str::from_utf8(answer).ok()?.trim_end().rsplit_once(' ')?;
    Some(Reply { who: who.to_owned(), seen_source: source.parse().ok()? })
}
