//! "Who answered?": servers that say their name and whom they saw, and clients that ask them, over TCP, UDP and SCTP.
//!
//! SCTP needs a kernel that has it, see [`sctp_in_kernel`]. A one-to-one SCTP socket is used like TCP's from connect on,
//! so both share their code.

mod client;
pub mod flood;
mod responder;
mod server;

use std::{
    fmt,
    io::{self, ErrorKind},
    net::SocketAddr,
    os::fd::AsFd,
    time::Duration,
};

use socket2::{Domain, SockRef, Socket, Type};

pub use client::{Client, Conversation, Failure, Reply};
pub use responder::Responder;
pub use server::Server;

const QUESTION: &[u8] = b"who?\n";

/// How often a blocked server thread looks whether it is to stop.
const TICK: Duration = Duration::from_millis(20);

/// A transport protocol, displayed as Kubernetes spells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// Streams.
    Tcp,
    /// Datagrams.
    Udp,
    /// SCTP in its one-to-one style.
    Sctp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

impl Protocol {
    fn socket(self, domain: Domain) -> io::Result<Socket> {
        let (kind, protocol) = match self {
            Self::Tcp => (Type::STREAM, socket2::Protocol::TCP),
            Self::Udp => (Type::DGRAM, socket2::Protocol::UDP),
            Self::Sctp => (Type::STREAM, socket2::Protocol::SCTP),
        };
        let socket = Socket::new(domain, kind, Some(protocol))?;
        socket.set_reuse_address(true)?;
        if domain == Domain::IPV6 {
            socket.set_only_v6(true)?;
        }
        Ok(socket)
    }

    /// A socket that is bound to `address`.
    fn bound(self, address: SocketAddr) -> io::Result<Socket> {
        let socket = self.socket(Domain::for_address(address))?;
        socket.bind(&address.into())?;
        Ok(socket)
    }
}

/// Whether this kernel speaks SCTP. Where it does not, rules for it can be checked but no packets sent.
#[must_use]
pub fn sctp_in_kernel() -> bool {
    Protocol::Sctp.socket(Domain::IPV4).is_ok()
}

/// Makes blocking reads and accepts of a socket return now and then, with an error that [`is_pause`] knows.
pub(crate) fn tick_on(socket: &impl AsFd) -> io::Result<()> {
    SockRef::from(socket).set_read_timeout(Some(TICK))
}

/// Whether the error only says that nothing came in time, or that a dialler changed its mind.
pub(crate) fn is_pause(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted | ErrorKind::ConnectionAborted
    )
}
