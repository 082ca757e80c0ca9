//! Netfilter's netlink: what has no tool that every node has. The only place that knows its framing.
//!
//! The kernel answers inside the call that asks, so a socket never waits: an answer that is not there will not come.

use std::io::{self, ErrorKind};

use netlink_packet_core::{
    DefaultNla, DoneBuffer, Emitable, ErrorBuffer, NLA_HEADER_SIZE, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP,
    NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_REQUEST, NLMSG_ALIGNTO, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer,
    NlasIterator,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

/// Marks an attribute that holds attributes (`NLA_F_NESTED`).
pub const NESTED: u16 = netlink_packet_core::NLA_F_NESTED;

/// More than the kernel puts into one datagram of a dump, which is 32 KiB.
const BUFFER: usize = 64 << 10;
const HEADER: usize = 16;
/// `struct nfgenmsg`: family, version, resource.
const NETFILTER_HEADER: usize = 4;

/// What is asked of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Everything there is of a kind.
    Dump,
    /// One thing, which is there.
    Act,
    /// One thing, which must not be there yet.
    Create,
}

/// A message to the kernel.
#[derive(Debug)]
pub struct Request {
    /// `NFNL_SUBSYS_*`
    pub subsystem: u8,
    /// The subsystem's own number of what is to be done.
    pub command: u8,
    /// What is asked.
    pub mode: Mode,
    /// `AF_INET`, `AF_INET6`, or 0.
    pub family: u8,
    /// What it is about.
    pub attributes: Attributes,
}

/// Attributes in their form on the wire.
#[derive(Clone, Debug, Default)]
pub struct Attributes(Vec<u8>);

impl Attributes {
    /// With one more.
    #[must_use]
    pub fn with(mut self, kind: u16, value: &[u8]) -> Self {
        let attribute = DefaultNla::new(kind, value.to_vec());
        let start = self.0.len();
        self.0.resize(start + attribute.buffer_len(), 0);
        attribute.emit(&mut self.0[start..]);
        self
    }

    /// With one more that holds attributes itself.
    #[must_use]
    pub fn nested(self, kind: u16, inner: &Self) -> Self {
        self.with(kind | NESTED, &inner.0)
    }
}

/// The attributes that bytes hold, up to the first that is cut off: kind and value.
pub fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    NlasIterator::new(bytes).map_while(Result::ok).map(|attribute| {
        let (kind, end) = (attribute.kind(), usize::from(attribute.length()));
        (kind, &attribute.into_inner()[NLA_HEADER_SIZE..end])
    })
}

/// What came of requests.
#[derive(Debug, Default)]
pub struct Answer {
    /// What was dumped changed meanwhile, so something may be missing.
    pub interrupted: bool,
    /// Why some were refused.
    pub refused: Vec<io::Error>,
}

/// A socket of netfilter's.
pub struct Netfilter {
    socket: Socket,
    sequence: u32,
}

impl Netfilter {
    /// In the network namespace of this thread.
    ///
    /// # Errors
    /// When the kernel does not give one.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_non_blocking(true)?;
        // An error need not bring back what was refused.
        socket.set_cap_ack(true)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends requests together, and hands the attributes of every message of the answer to `each`. Only the last one
    /// is acknowledged, the others answer when they are refused; so a few dozen fit into the socket's buffer.
    ///
    /// # Errors
    /// When the kernel cannot be talked to. What it refuses is in the answer.
    pub fn exchange(&mut self, requests: &[Request], mut each: impl FnMut(&[u8])) -> io::Result<Answer> {
        let before = self.sequence;
        let mut text = Vec::new();
        for (i, request) in requests.iter().enumerate() {
            self.sequence = self.sequence.wrapping_add(1);
            emit(&mut text, request, self.sequence, i + 1 == requests.len());
        }
        let mut answer = Answer::default();
        if requests.is_empty() {
            return Ok(answer);
        }
        self.socket.send(&text, 0)?;
        let mut buffer = vec![0; BUFFER];
        loop {
            let length = self.receive(&mut buffer)?;
            let mut rest = &buffer[..length];
            while let Ok(message) = NetlinkBuffer::new_checked(rest) {
                let (sequence, payload) = (message.sequence_number(), message.payload());
                // An answer to what was asked before, and given up.
                let ours = sequence.wrapping_sub(before).wrapping_sub(1) < requests.len() as u32;
                answer.interrupted |= ours && message.flags() & NLM_F_DUMP_INTR != 0;
                let code = match message.message_type() {
                    NLMSG_ERROR => {
                        Some(ErrorBuffer::new_checked(payload).map_or(0, |e| e.code().map_or(0, i32::from)))
                    }
                    NLMSG_DONE => Some(DoneBuffer::new_checked(payload).map_or(0, |done| done.code())),
                    _ => None,
                };
                match code {
                    None if ours => each(payload.get(NETFILTER_HEADER..).unwrap_or_default()),
                    Some(code) if ours => {
                        answer.refused.extend((code < 0).then(|| io::Error::from_raw_os_error(-code)));
                        if sequence == self.sequence {
                            return Ok(answer);
                        }
                    }
                    _ => {}
                }
                let next = (message.length() as usize).next_multiple_of(usize::from(NLMSG_ALIGNTO));
                rest = rest.get(next..).unwrap_or_default();
            }
        }
    }

    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut free = &mut buffer[..];
            match self.socket.recv(&mut free, 0) {
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    return Err(io::Error::new(
                        ErrorKind::UnexpectedEof,
                        "the kernel did not answer to the end",
                    ));
                }
                received => return received,
            }
        }
    }
}

impl std::fmt::Debug for Netfilter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Netfilter").field("sequence", &self.sequence).finish_non_exhaustive()
    }
}

fn emit(text: &mut Vec<u8>, request: &Request, sequence: u32, last: bool) {
    let start = text.len();
    text.resize(start + HEADER, 0);
    text.extend([request.family, 0, 0, 0]);
    text.extend(&request.attributes.0);
    let length = text.len() - start;
    let more = match request.mode {
        Mode::Dump => NLM_F_DUMP,
        Mode::Act => 0,
        Mode::Create => NLM_F_CREATE | NLM_F_EXCL,
    };
    let acknowledged = last && request.mode != Mode::Dump;
    let mut header = NetlinkBuffer::new(&mut text[start..]);
    header.set_length(length as u32);
    header.set_message_type(u16::from(request.subsystem) << 8 | u16::from(request.command));
    header.set_flags(NLM_F_REQUEST | more | if acknowledged { NLM_F_ACK } else { 0 });
    header.set_sequence_number(sequence);
    header.set_port_number(0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_they_were_written() {
        let inner = Attributes::default().with(3, &[1]).with(4, &[1, 2, 3, 4, 5]);
        let outer = Attributes::default().with(1, b"ab").nested(2, &inner);
        let read: Vec<_> = attributes(&outer.0).collect();
        assert_eq!((read.len(), read[0], read[1].0), (2, (1, &b"ab"[..]), 2));
        let nested: Vec<_> = attributes(read[1].1).collect();
        assert_eq!(nested, [(3, &[1][..]), (4, &[1, 2, 3, 4, 5][..])]);
    }

    #[test]
    fn attributes_that_are_cut_off_are_left_out() {
        let whole = Attributes::default().with(1, b"abcd").with(2, b"abcd");
        for end in 0..whole.0.len() {
            assert_eq!(attributes(&whole.0[..end]).count(), usize::from(end >= 8), "{end} bytes");
        }
    }
}
