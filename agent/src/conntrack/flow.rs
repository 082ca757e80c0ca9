//! An entry of the connection table, as far as it matters here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::netlink::{Attributes, NESTED, attributes};

/// `IPPROTO_UDP`
pub const UDP: u8 = 17;

pub(super) const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_TUPLE_IP: u16 = 1;
pub(super) const CTA_TUPLE_PROTO: u16 = 2;
const CTA_TUPLE_ZONE: u16 = 3;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
pub(super) const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;

/// Who talks to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// `IPPROTO_*`
    pub protocol: u8,
    /// Where the client sends to.
    pub destination: SocketAddr,
    /// Who answers: another than the destination where that is translated.
    pub reply_source: SocketAddr,
}

impl Flow {
    /// Somebody else than the destination answers.
    pub fn is_translated(&self) -> bool {
        self.destination != self.reply_source
    }
}

/// A flow, with what the kernel knows it by.
#[derive(Debug)]
pub(super) struct Entry<'a> {
    pub(super) flow: Flow,
    original: &'a [u8],
    id: Option<&'a [u8]>,
}

impl<'a> Entry<'a> {
    /// Reads an entry of a dump. `None` also for those in a zone other than 0: services are translated in that one, and
    /// what a network plugin tracks elsewhere has service addresses untranslated by right.
    pub(super) fn read(bytes: &'a [u8]) -> Option<Self> {
        let (mut original, mut reply, mut id) = (None, None, None);
        for (kind, value) in attributes(bytes) {
            match kind {
                CTA_TUPLE_ORIG => original = Some(value),
                CTA_TUPLE_REPLY => reply = Some(value),
                CTA_ID => id = Some(value),
                CTA_ZONE => return None,
                _ => {}
            }
        }
        let (original, reply) = (original?, reply?);
        let (there, back) = (Tuple::read(original)?, Tuple::read(reply)?);
        let flow =
            Flow { protocol: there.protocol, destination: there.destination, reply_source: back.source };
        Some(Self { flow, original, id })
    }

    /// Names this entry and no other that came to be at its place since: the kernel finds it by its original tuple, of
    /// protocol and both ends, and compares the id.
    pub(super) fn name(&self) -> Attributes {
        let name = Attributes::default().with(CTA_TUPLE_ORIG | NESTED, self.original);
        match self.id {
            Some(id) => name.with(CTA_ID, id),
            None => name,
        }
    }
}

struct Tuple {
    protocol: u8,
    source: SocketAddr,
    destination: SocketAddr,
}

impl Tuple {
    fn read(bytes: &[u8]) -> Option<Self> {
        let (mut source, mut destination) = (None, None);
        let (mut protocol, mut source_port, mut destination_port) = (None, None, None);
        for (kind, value) in attributes(bytes) {
            match kind {
                CTA_TUPLE_IP => {
                    for (kind, value) in attributes(value) {
                        match kind {
                            CTA_IP_V4_SRC | CTA_IP_V6_SRC => source = address(value),
                            CTA_IP_V4_DST | CTA_IP_V6_DST => destination = address(value),
                            _ => {}
                        }
                    }
                }
                CTA_TUPLE_PROTO => {
                    for (kind, value) in attributes(value) {
                        match kind {
                            CTA_PROTO_NUM => protocol = value.first().copied(),
                            CTA_PROTO_SRC_PORT => source_port = port(value),
                            CTA_PROTO_DST_PORT => destination_port = port(value),
                            _ => {}
                        }
                    }
                }
                CTA_TUPLE_ZONE => return None,
                _ => {}
            }
        }
        Some(Self {
            protocol: protocol?,
            source: SocketAddr::new(source?, source_port?),
            destination: SocketAddr::new(destination?, destination_port?),
        })
    }
}

fn address(value: &[u8]) -> Option<IpAddr> {
    let v4 = || <[u8; 4]>::try_from(value).map(|octets| Ipv4Addr::from(octets).into());
    let v6 = || <[u8; 16]>::try_from(value).map(|octets| Ipv6Addr::from(octets).into());
    v4().or_else(|_| v6()).ok()
}

fn port(value: &[u8]) -> Option<u16> {
    value.try_into().map(u16::from_be_bytes).ok()
}
