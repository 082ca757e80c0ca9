//! Content hashes of records, and the digest of a table: what two sides compare instead of their tables.
//!
//! The encoding that is hashed is specified in `distribution.proto`; it is written here and nowhere else.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use sha2::{Digest as _, Sha256};

use crate::{Endpoint, EndpointPort, Facts, Key, Kind, Name, Protocol, Record, ServiceHeader, ServicePort};

/// The newest schema: which kinds and fields a hash covers.
pub const SCHEMA: u32 = 1;

/// The first 128 bits of a SHA-256, or a sum of such, mod 2^128.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hash(pub u128);

impl Hash {
    /// As it travels.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// From what travelled; `None` unless it has 16 bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(|bytes| Self(u128::from_be_bytes(bytes)))
    }

    /// The first half, which names a record, or its content, in lists.
    pub fn first64(self) -> u64 {
        (self.0 >> 64) as u64
    }

    #[must_use]
    fn plus(self, other: Self) -> Self {
        Self(self.0.wrapping_add(other.0))
    }

    #[must_use]
    fn minus(self, other: Self) -> Self {
        Self(self.0.wrapping_sub(other.0))
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Content hash of a whole record.
pub fn record(key: &Key, record: &Record) -> Hash {
    match record {
        Record::Service(service) => service
            .endpoints
            .iter()
            .fold(header(key, &service.header), |sum, one| sum.plus(endpoint(key, one))),
        Record::Facts(facts) => self::facts(key, facts),
    }
}

/// What a service's hash becomes when its header and some of its endpoints change.
pub fn patched<'a>(
    key: &Key,
    was: Hash,
    headers: Option<(&ServiceHeader, &ServiceHeader)>,
    gone: impl IntoIterator<Item = &'a Endpoint>,
    come: impl IntoIterator<Item = &'a Endpoint>,
) -> Hash {
    let mut hash = was;
    if let Some((old, new)) = headers {
        hash = hash.minus(header(key, old)).plus(header(key, new));
    }
    hash = gone.into_iter().fold(hash, |sum, one| sum.minus(endpoint(key, one)));
    come.into_iter().fold(hash, |sum, one| sum.plus(endpoint(key, one)))
}

fn header(key: &Key, header: &ServiceHeader) -> Hash {
    let ServiceHeader {
        ports,
        cluster_ips,
        external_ips,
        load_balancer_vips,
        source_ranges,
        affinity_seconds,
        internal_policy_local,
        external_policy_local,
        health_check_node_port,
        created,
    } = header;
    let mut input = Input::of_record("distributary/header", key);
    input.list(ports.iter(), |input, ServicePort { name, protocol, port, node_port }| {
        input.string(name).protocol(*protocol).number((*port).into()).number((*node_port).into());
    });
    input.addresses(cluster_ips).addresses(external_ips).addresses(load_balancer_vips);
    input.prefixes(source_ranges);
    input.number((*affinity_seconds).into());
    input.number((*internal_policy_local).into()).number((*external_policy_local).into());
    input.number((*health_check_node_port).into());
    input.number(created.cast_unsigned());
    input.hash()
}

fn facts(key: &Key, Facts { service_cidrs }: &Facts) -> Hash {
    let mut input = Input::of_record("distributary/header", key);
    input.prefixes(service_cidrs);
    input.hash()
}

fn endpoint(key: &Key, endpoint: &Endpoint) -> Hash {
    let Endpoint { address, ports, conditions, node, zone_hints, node_hints, cluster } = endpoint;
    let mut input = Input::of_record("distributary/endpoint", key);
    input.address(address);
    input.list(ports.iter(), |input, EndpointPort { name, protocol, port }| {
        input.string(name).protocol(*protocol).number((*port).into());
    });
    input.number(conditions.bits().into()).string(node).names(zone_hints).names(node_hints);
    input.list(cluster.iter(), |input, cluster| {
        input.string(cluster);
    });
    input.hash()
}

/// Hash of a record's key. Its first byte is the record's bucket; lists of a bucket name a record by its first 64 bits.
pub fn key(key: &Key) -> Hash {
    let mut input = Input::new("distributary/key");
    input.key(key);
    input.hash()
}

/// The bucket of a record, 0 to 255.
pub fn bucket(of: &Key) -> usize {
    usize::from(key(of).to_bytes()[0])
}

/// The 256 buckets of one cluster's records.
#[derive(Clone, PartialEq, Eq)]
pub struct Digest([Hash; 256]);

impl Default for Digest {
    fn default() -> Self {
        Self([Hash::default(); 256])
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let used = self.0.iter().filter(|sum| **sum != Hash::default()).count();
        write!(f, "Digest({used} buckets in use)")
    }
}

impl Digest {
    /// Of buckets with these sums.
    pub fn from_sums(sums: [Hash; 256]) -> Self {
        Self(sums)
    }

    /// Takes a record's change in: its hash before, and after (`None`: no record).
    pub fn change(&mut self, key: &Key, before: Option<Hash>, after: Option<Hash>) {
        let sum = &mut self.0[bucket(key)];
        *sum = sum.minus(before.unwrap_or_default()).plus(after.unwrap_or_default());
    }

    /// The buckets' sums.
    pub fn sums(&self) -> &[Hash; 256] {
        &self.0
    }

    /// The hash of all buckets.
    pub fn root(&self, cluster: &str) -> Hash {
        let mut input = Input::new("distributary/root");
        input.number(SCHEMA.into()).string(cluster);
        self.0.iter().for_each(|sum| input.0.update(sum.to_bytes()));
        input.hash()
    }
}

/// The canonical encoding, hashed as it is written.
struct Input(Sha256);

impl Input {
    fn new(domain: &str) -> Self {
        let mut input = Self(Sha256::new());
        input.string(domain);
        input
    }

    fn of_record(domain: &str, key: &Key) -> Self {
        let mut input = Self::new(domain);
        input.number(SCHEMA.into()).key(key);
        input
    }

    fn key(&mut self, Key { kind, cluster, namespace, name }: &Key) -> &mut Self {
        self.number(match kind {
            Kind::Service => 0,
            Kind::Facts => 1,
        });
        self.string(cluster).string(namespace).string(name)
    }

    fn number(&mut self, number: u64) -> &mut Self {
        self.0.update(number.to_be_bytes());
        self
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.number(bytes.len() as u64);
        self.0.update(bytes);
        self
    }

    fn string(&mut self, string: &str) -> &mut Self {
        self.bytes(string.as_bytes())
    }

    fn protocol(&mut self, protocol: Protocol) -> &mut Self {
        self.number(match protocol {
            Protocol::Tcp => 0,
            Protocol::Udp => 1,
            Protocol::Sctp => 2,
        })
    }

    fn address(&mut self, address: &IpAddr) -> &mut Self {
        match address {
            IpAddr::V4(v4) => self.bytes(&v4.octets()),
            IpAddr::V6(v6) => self.bytes(&v6.octets()),
        }
    }

    fn list<T>(
        &mut self,
        items: impl ExactSizeIterator<Item = T>,
        mut write: impl FnMut(&mut Self, T),
    ) -> &mut Self {
        self.number(items.len() as u64);
        items.for_each(|item| write(self, item));
        self
    }

    fn names(&mut self, names: &[Name]) -> &mut Self {
        self.list(names.iter(), |input, name| {
            input.string(name);
        })
    }

    fn addresses(&mut self, addresses: &[IpAddr]) -> &mut Self {
        self.list(addresses.iter(), |input, address| {
            input.address(address);
        })
    }

    fn prefixes(&mut self, prefixes: &[IpNet]) -> &mut Self {
        self.list(prefixes.iter(), |input, prefix| {
            input.address(&prefix.addr()).number(prefix.prefix_len().into());
        })
    }

    fn hash(self) -> Hash {
        let digest = self.0.finalize();
        Hash(digest.iter().take(16).fold(0, |number, &byte| number << 8 | u128::from(byte)))
    }
}
