//! Frames to changes: every limit is checked, nothing panics, and names are shared.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use distributary_proto::v1 as pb;
use ipnet::IpNet;
use prost::Message;

use crate::limits::{AGES, ENDPOINTS_PER_SERVICE, FRAME_BYTES, LIST, OLDEST_AGE, PORTS, STRING_BYTES};
use crate::{
    Ages, Change, Conditions, Endpoint, EndpointPort, Facts, Hash, Held, Interner, Key, Kind, Name, Op,
    Protocol, Record, Service, ServiceHeader, ServicePort,
};

/// What a peer sent breaks the contract; the stream cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(String);

impl Malformed {
    /// With its reason: what was wanted and what was found.
    pub fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}

pub(super) fn malformed<T>(reason: impl Into<String>) -> Result<T, Malformed> {
    Err(Malformed::new(reason))
}

/// What a frame says of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// How the record changes.
    pub change: Change,
    /// How long before the frame was encoded it was triggered.
    pub ages: Ages,
}

/// Decodes the frames of one stream, in their order.
#[derive(Debug)]
pub struct Decoder {
    own: Name,
    interner: Interner,
    /// The record that is being put together from parts.
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    key: Arc<Key>,
    header: ServiceHeader,
    endpoints: Vec<Endpoint>,
}

impl Decoder {
    /// For an agent of the cluster `own`.
    pub fn new(own: Name) -> Self {
        Self { own, interner: Interner::default(), open: None }
    }

    /// Forgets what an earlier stream left half said. The shared names stay.
    pub fn reset(&mut self, own: Name) {
        self.own = own;
        self.open = None;
    }

    /// The changes of a frame. A record that is cut appears once, when its last part has come.
    ///
    /// # Errors
    /// When the frame breaks the contract or one of its limits.
    pub fn frame(&mut self, frame: pb::Frame) -> Result<Vec<Told>, Malformed> {
        let changes = if frame.zstd.is_empty() { frame.changes } else { inflate(&frame)? };
        let mut decoded = Vec::with_capacity(changes.len());
        for change in changes {
            decoded.extend(self.change(change)?);
        }
        Ok(decoded)
    }

    fn change(&mut self, change: pb::Change) -> Result<Option<Told>, Malformed> {
        let pb::Change { kind, cluster, namespace, name, content_hash, change, age_millis_v4, age_millis_v6 } =
            change;
        let ages = Ages { v4: ages(age_millis_v4)?, v6: ages(age_millis_v6)? };
        let key = Arc::new(self.key(pb::RecordKey { kind, cluster, namespace, name })?);
        let hash = || Hash::from_bytes(&content_hash).ok_or_else(|| no_hash(&key, content_hash.len()));
        if let Some(open) = &self.open
            && (open.key != key || !matches!(change, Some(pb::change::Change::Part(_))))
        {
            return malformed(format!("a change of {key} between the parts of {}", open.key));
        }
        let op = match change {
            Some(pb::change::Change::Put(put)) => match self.put(&key, put)? {
                Some(record) => Op::Put(Held { record, hash: hash()? }),
                None => return Ok(None),
            },
            Some(pb::change::Change::Part(part)) => match self.part(&key, part)? {
                Some(record) => Op::Put(Held { record, hash: hash()? }),
                None => return Ok(None),
            },
            Some(pb::change::Change::Patch(patch)) => {
                let header = patch.header.map(|header| self.header(header)).transpose()?;
                let mut upserts = self.endpoints(patch.upserts)?;
                upserts.sort();
                at_most(patch.removals.len(), ENDPOINTS_PER_SERVICE, "removals in a patch")?;
                let mut removals = addresses(patch.removals)?;
                removals.sort();
                Op::Patch { header, upserts, removals, hash: hash()? }
            }
            Some(pb::change::Change::Removed(_)) => Op::Removed,
            None => {
                return malformed(format!(
                    "a change of {key} of a kind that schema {} lacks",
                    crate::hash::SCHEMA
                ));
            }
        };
        Ok(Some(Told { change: Change { key, op }, ages }))
    }

    fn put(&mut self, key: &Arc<Key>, put: pb::Put) -> Result<Option<Record>, Malformed> {
        match (key.kind, put.header) {
            (Kind::Service, Some(pb::put::Header::Service(header))) => {
                let header = self.header(header)?;
                let endpoints = self.endpoints(put.endpoints)?;
                if put.more {
                    self.open = Some(Open { key: key.clone(), header, endpoints });
                    return Ok(None);
                }
                service(header, endpoints).map(Some)
            }
            (Kind::Facts, Some(pb::put::Header::Facts(facts))) => {
                at_most(facts.service_cidrs.len(), LIST, "ServiceCIDRs")?;
                let service_cidrs = prefixes(facts.service_cidrs)?;
                Ok(Some(Record::Facts(Arc::new(Facts { service_cidrs }))))
            }
            _ => malformed(format!("a put of {key} without a header of its kind")),
        }
    }

    fn part(&mut self, key: &Arc<Key>, part: pb::Part) -> Result<Option<Record>, Malformed> {
        let more = self.endpoints(part.endpoints)?;
        let Some(open) = &mut self.open else {
            return malformed(format!("a part of {key} without its put"));
        };
        at_most(open.endpoints.len() + more.len(), ENDPOINTS_PER_SERVICE, "endpoints of a service")?;
        open.endpoints.extend(more);
        if part.more {
            return Ok(None);
        }
        self.open.take().map(|open| service(open.header, open.endpoints)).transpose()
    }

    /// A key as it travels.
    ///
    /// # Errors
    /// When its kind is unknown, a name is missing or too long.
    pub fn key(&mut self, key: pb::RecordKey) -> Result<Key, Malformed> {
        let kind = match pb::Kind::try_from(key.kind) {
            Ok(pb::Kind::Service) => Kind::Service,
            Ok(pb::Kind::Facts) => Kind::Facts,
            Err(_) => return malformed(format!("a record of the unknown kind {}", key.kind)),
        };
        let named = !key.namespace.is_empty() && !key.name.is_empty();
        if named != (kind == Kind::Service) {
            return malformed(format!("a {kind:?} record named {:?}/{:?}", key.namespace, key.name));
        }
        let cluster = if key.cluster.is_empty() { self.own.clone() } else { self.name(&key.cluster)? };
        Ok(Key { kind, cluster, namespace: self.name(&key.namespace)?, name: self.name(&key.name)? })
    }

    fn header(&mut self, header: pb::ServiceHeader) -> Result<ServiceHeader, Malformed> {
        at_most(header.ports.len(), PORTS, "ports of a service")?;
        let mut ports = Vec::with_capacity(header.ports.len());
        for of in header.ports {
            ports.push(ServicePort {
                name: self.name(&of.name)?,
                protocol: protocol(of.protocol)?,
                port: port(of.port)?,
                node_port: port(of.node_port)?,
            });
        }
        for (list, what) in [
            (header.cluster_ips.len(), "cluster IPs"),
            (header.external_ips.len(), "external IPs"),
            (header.load_balancer_vips.len(), "load balancer VIPs"),
            (header.source_ranges.len(), "source ranges"),
        ] {
            at_most(list, LIST, what)?;
        }
        Ok(ServiceHeader {
            ports,
            cluster_ips: addresses(header.cluster_ips)?,
            external_ips: addresses(header.external_ips)?,
            load_balancer_vips: addresses(header.load_balancer_vips)?,
            source_ranges: prefixes(header.source_ranges)?,
            affinity_seconds: header.affinity_seconds,
            internal_policy_local: header.internal_policy_local,
            external_policy_local: header.external_policy_local,
            health_check_node_port: port(header.health_check_node_port)?,
            created: header.created,
        })
    }

    fn endpoints(&mut self, endpoints: Vec<pb::Endpoint>) -> Result<Vec<Endpoint>, Malformed> {
        at_most(endpoints.len(), ENDPOINTS_PER_SERVICE, "endpoints of a service")?;
        endpoints.into_iter().map(|one| self.endpoint(one)).collect()
    }

    fn endpoint(&mut self, endpoint: pb::Endpoint) -> Result<Endpoint, Malformed> {
        at_most(endpoint.ports.len(), PORTS, "ports of an endpoint")?;
        at_most(endpoint.zone_hints.len(), LIST, "zone hints")?;
        at_most(endpoint.node_hints.len(), LIST, "node hints")?;
        let mut ports = Vec::with_capacity(endpoint.ports.len());
        for of in endpoint.ports {
            let (name, protocol, port) = (self.name(&of.name)?, protocol(of.protocol)?, port(of.port)?);
            ports.push(EndpointPort { name, protocol, port });
        }
        let conditions = endpoint.conditions;
        let Some(conditions) = Conditions::from_bits(conditions) else {
            return malformed(format!("an endpoint with the unknown conditions {conditions:#x}"));
        };
        Ok(Endpoint {
            address: address(&endpoint.address)?,
            ports: self.interner.ports(ports),
            conditions,
            node: self.name(&endpoint.node)?,
            zone_hints: self.names(endpoint.zone_hints)?,
            node_hints: self.names(endpoint.node_hints)?,
            cluster: Some(self.name(&endpoint.cluster)?).filter(|cluster| !cluster.is_empty()),
        })
    }

    fn names(&mut self, names: Vec<String>) -> Result<Arc<[Name]>, Malformed> {
        let names = names.iter().map(|name| self.name(name)).collect::<Result<Vec<_>, _>>()?;
        Ok(self.interner.list(names))
    }

    fn name(&mut self, name: &str) -> Result<Name, Malformed> {
        at_most(name.len(), STRING_BYTES, "bytes of a string")?;
        Ok(self.interner.name(name))
    }
}

fn service(header: ServiceHeader, mut endpoints: Vec<Endpoint>) -> Result<Record, Malformed> {
    endpoints.sort();
    endpoints.shrink_to_fit();
    Ok(Record::Service(Arc::new(Service { header, endpoints })))
}

fn inflate(frame: &pb::Frame) -> Result<Vec<pb::Change>, Malformed> {
    let length = frame.raw_length as usize;
    at_most(length, FRAME_BYTES, "bytes of a frame after decompression")?;
    let body = zstd::bulk::decompress(&frame.zstd, length)
        .map_err(|e| Malformed(format!("a frame that does not decompress to {length} bytes: {e}")))?;
    let body = pb::FrameBody::decode(Bytes::from(body))
        .map_err(|e| Malformed(format!("a compressed frame that is none inside: {e}")))?;
    Ok(body.changes)
}

fn no_hash(key: &Key, length: usize) -> Malformed {
    Malformed(format!("a change of {key} with a content hash of {length} bytes instead of 16"))
}

/// Refuses more than a limit of the contract.
///
/// # Errors
/// When there is more.
pub fn at_most(found: usize, limit: usize, what: &str) -> Result<(), Malformed> {
    if found > limit {
        return malformed(format!("{found} {what}, where {limit} are the limit"));
    }
    Ok(())
}

fn ages(millis: Vec<u32>) -> Result<Vec<Duration>, Malformed> {
    at_most(millis.len(), AGES, "ages of slices in a change")?;
    let age = |millis: u32| match Duration::from_millis(millis.into()) {
        age if age <= OLDEST_AGE => Ok(age),
        age => malformed(format!("a slice's age of {age:?}, where {OLDEST_AGE:?} is the limit")),
    };
    millis.into_iter().map(age).collect()
}

fn protocol(protocol: i32) -> Result<Protocol, Malformed> {
    match pb::Protocol::try_from(protocol) {
        Ok(pb::Protocol::Tcp) => Ok(Protocol::Tcp),
        Ok(pb::Protocol::Udp) => Ok(Protocol::Udp),
        Ok(pb::Protocol::Sctp) => Ok(Protocol::Sctp),
        Err(_) => malformed(format!("the unknown protocol {protocol}")),
    }
}

fn port(port: u32) -> Result<u16, Malformed> {
    u16::try_from(port).map_err(|_| Malformed(format!("the port {port}")))
}

pub(super) fn address(bytes: &[u8]) -> Result<IpAddr, Malformed> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).map(IpAddr::from).ok(),
        16 => <[u8; 16]>::try_from(bytes).map(IpAddr::from).ok(),
        _ => None,
    }
    .ok_or_else(|| Malformed(format!("an address of {} bytes", bytes.len())))
}

fn addresses(addresses: Vec<Bytes>) -> Result<Vec<IpAddr>, Malformed> {
    addresses.iter().map(|bytes| address(bytes)).collect()
}

pub(super) fn prefixes(prefixes: Vec<pb::Prefix>) -> Result<Vec<IpNet>, Malformed> {
    let prefix = |prefix: &pb::Prefix| {
        let (address, length) = (address(&prefix.address)?, prefix.length);
        let net = u8::try_from(length).ok().and_then(|length| IpNet::new(address, length).ok());
        net.ok_or_else(|| Malformed(format!("the network {address}/{length}")))
    };
    prefixes.iter().map(prefix).collect()
}
