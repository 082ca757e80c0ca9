//! The kernel's connection table: one pass over a family's UDP flows.

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::time::Instant;

use super::flow::{CTA_PROTO_NUM, CTA_TUPLE_ORIG, CTA_TUPLE_PROTO, Entry, UDP};
use super::ledger::Ledger;
use crate::netlink::{Attributes, Mode, Netfilter, Request};
use crate::plan::Family;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const SUBSYSTEM: u8 = 1;
const GET: u8 = 1;
const DELETE: u8 = 2;
const CTA_FILTER: u16 = 25;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
/// Compares the protocol, and nothing else of the original tuple.
const BY_PROTOCOL: u32 = 1 << 3;

/// Dumps that are begun, while the kernel says that the table changed under them.
const ATTEMPTS: usize = 5;
/// Flows that are deleted in one call.
const TOGETHER: usize = 64;

/// Why a pass did not do all it should have.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The table cannot be read.
    #[error(
        "the connection table cannot be listed: {0} (it takes NET_ADMIN, and the module nf_conntrack_netlink)"
    )]
    List(io::Error),
    /// Flows stay that should not.
    #[error("{count} stale flows cannot be deleted; the first: {first}")]
    Delete {
        /// How many.
        count: u64,
        /// Why.
        first: io::Error,
    },
}

/// What a pass did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// UDP flows that were looked at.
    pub seen: u64,
    /// Stale ones that were deleted.
    pub deleted: u64,
}

/// Where flows are.
pub trait Table: Send + 'static {
    /// Deletes every flow of the family that is stale now, and counts.
    ///
    /// # Errors
    /// When the flows cannot be listed, or stale ones stay.
    fn pass(&mut self, ledger: &Ledger, now: Instant, outcome: &mut Outcome) -> Result<(), Error>;
}

/// The kernel's, of the network namespace of the calling thread.
#[derive(Clone, Copy, Debug, Default)]
pub struct Conntrack;

impl Table for Conntrack {
    fn pass(&mut self, ledger: &Ledger, now: Instant, outcome: &mut Outcome) -> Result<(), Error> {
        let local = local_addresses().map_err(Error::List)?;
        for _ in 0..ATTEMPTS {
            let mut sieve = Sieve::open().map_err(Error::List)?;
            let whole = sieve.run(ledger, &local, now);
            outcome.seen = sieve.seen;
            outcome.deleted += sieve.deleted;
            if let Some(first) = sieve.refused {
                return Err(Error::Delete { count: sieve.failed, first });
            }
            if whole.map_err(Error::List)? {
                break;
            }
        }
        Ok(())
    }
}

/// One dump. Stale flows are deleted while it goes on, so that a handful of them is held, however many there are; where
/// the entry goes at which the kernel would continue, it begins that bucket again.
struct Sieve {
    /// Of its own, as the dump is not to be mixed with answers.
    deleting: Netfilter,
    stale: Vec<Request>,
    seen: u64,
    deleted: u64,
    failed: u64,
    refused: Option<io::Error>,
}

impl Sieve {
    fn open() -> io::Result<Self> {
        let deleting = Netfilter::open()?;
        Ok(Self { deleting, stale: Vec::new(), seen: 0, deleted: 0, failed: 0, refused: None })
    }

    /// Whether all was seen.
    fn run(&mut self, ledger: &Ledger, local: &HashSet<IpAddr>, now: Instant) -> io::Result<bool> {
        let family = match ledger.family() {
            Family::V4 => AF_INET,
            Family::V6 => AF_INET6,
        };
        let mut broken = Ok(());
        let answer = Netfilter::open()?.exchange(&[udp_flows(family)], |bytes| {
            let Some(entry) = Entry::read(bytes).filter(|entry| entry.flow.protocol == UDP) else { return };
            self.seen += 1;
            if broken.is_ok() && ledger.is_stale(&entry.flow, |address| local.contains(address), now) {
                self.stale.push(Request {
                    subsystem: SUBSYSTEM,
                    command: DELETE,
                    mode: Mode::Act,
                    family,
                    attributes: entry.name(),
                });
                if self.stale.len() == TOGETHER {
                    broken = self.delete();
                }
            }
        })?;
        broken?;
        self.delete()?;
        match answer.refused.into_iter().next() {
            Some(refused) => Err(refused),
            None => Ok(!answer.interrupted),
        }
    }

    fn delete(&mut self) -> io::Result<()> {
        let answer = self.deleting.exchange(&self.stale, |_| ())?;
        // One that is gone already is as good as deleted, but not by us.
        let gone = |e: &io::Error| e.kind() == io::ErrorKind::NotFound;
        self.deleted += (self.stale.len() - answer.refused.len()) as u64;
        self.failed += answer.refused.iter().filter(|e| !gone(e)).count() as u64;
        self.refused = self.refused.take().or(answer.refused.into_iter().find(|e| !gone(e)));
        self.stale.clear();
        std::thread::yield_now();
        Ok(())
    }
}

/// Asks for the UDP flows of a family. A kernel before 5.8 does not know the filter, and gives all of the family.
fn udp_flows(family: u8) -> Request {
    let protocol = Attributes::default().with(CTA_PROTO_NUM, &[UDP]);
    let tuple = Attributes::default().nested(CTA_TUPLE_PROTO, &protocol);
    let filter = Attributes::default().with(CTA_FILTER_ORIG_FLAGS, &BY_PROTOCOL.to_ne_bytes());
    let attributes = Attributes::default().nested(CTA_TUPLE_ORIG, &tuple).nested(CTA_FILTER, &filter);
    Request { subsystem: SUBSYSTEM, command: GET, mode: Mode::Dump, family, attributes }
}

fn local_addresses() -> io::Result<HashSet<IpAddr>> {
    let address = |storage: nix::sys::socket::SockaddrStorage| match (
        storage.as_sockaddr_in(),
        storage.as_sockaddr_in6(),
    ) {
        (Some(v4), _) => Some(v4.ip().into()),
        (_, Some(v6)) => Some(v6.ip().into()),
        _ => None,
    };
    Ok(nix::ifaddrs::getifaddrs()?.filter_map(|interface| interface.address.and_then(address)).collect())
}
