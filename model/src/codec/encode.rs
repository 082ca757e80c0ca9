//! Changes to frames: encoded once, cut to size, shared by all agents.

use std::net::IpAddr;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use distributary_proto::v1 as pb;
use ipnet::IpNet;
use prost::Message;

use crate::limits::{FRAME_AIM_BYTES, SENT_MASK, SENT_TICK};
use crate::{
    Ages, Change, Endpoint, EndpointPort, Hash, Held, Key, Kind, Mark, Name, ObjectKind, Op, Protocol,
    Record, Revision, ServiceHeader, ServicePort,
};

/// A message with gRPC's prefix (not compressed, 4 bytes of length), as it goes into a response body.
pub fn message(message: pb::server_message::Message) -> Bytes {
    let message = pb::ServerMessage { message: Some(message) };
    let length = message.encoded_len();
    let mut framed = BytesMut::with_capacity(5 + length);
    framed.put_u8(0);
    framed.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    message.encode_raw(&mut framed);
    framed.freeze()
}

/// A duration as it travels.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// When a message was encoded, as it travels: so long after the server's epoch began. Never 0, which is to say nothing.
pub fn sent(after: Duration) -> u32 {
    let ticks = after.as_millis() / SENT_TICK.as_millis();
    u32::try_from(ticks & u128::from(SENT_MASK)).map_or(1, |ticks| ticks.max(1))
}

/// Cuts changes into frames.
#[derive(Debug)]
pub struct Frames<'a> {
    /// The agents' own cluster, which travels as an empty string.
    own: &'a str,
    done: Vec<Bytes>,
    changes: Vec<pb::Change>,
    bytes: usize,
    compress: bool,
    sent: u32,
}

impl<'a> Frames<'a> {
    /// Frames for the agents of a cluster.
    pub fn new(own: &'a str) -> Self {
        Self { own, done: Vec::new(), changes: Vec::new(), bytes: 0, compress: false, sent: 0 }
    }

    /// The same, with compressed bodies.
    pub fn compressed(own: &'a str) -> Self {
        Self { compress: true, ..Self::new(own) }
    }

    /// The same, that say when they are encoded: so long after the server's epoch began.
    #[must_use]
    pub fn sent(self, after: Duration) -> Self {
        Self { sent: sent(after), ..self }
    }

    /// Adds a change that leads to `after`. One that is larger than a frame travels as a put, cut into parts.
    pub fn push(&mut self, change: &Change, after: Option<&Held>) {
        self.push_aged(change, after, &Ages::default());
    }

    /// The same, with how long before this moment the change was triggered.
    pub fn push_aged(&mut self, change: &Change, after: Option<&Held>, ages: &Ages) {
        let encoded = aged(self.change(change), ages);
        match after {
            Some(after) if encoded.encoded_len() > FRAME_AIM_BYTES => self.cut(&change.key, after, ages),
            _ => self.add(encoded),
        }
    }

    /// The frames. The last one carries `through` and the marks: only with it are the changes complete.
    pub fn finish(mut self, through: Revision, marks: &[Mark]) -> Vec<Bytes> {
        let last = std::mem::take(&mut self.changes);
        let frame = self.encode(last, through, marks);
        self.done.push(frame);
        self.done
    }

    fn add(&mut self, change: pb::Change) {
        let length = change.encoded_len() + 4;
        if self.bytes + length > FRAME_AIM_BYTES && !self.changes.is_empty() {
            let full = std::mem::take(&mut self.changes);
            self.bytes = 0;
            let frame = self.encode(full, Revision(0), &[]);
            self.done.push(frame);
        }
        self.bytes += length;
        self.changes.push(change);
    }

    fn cut(&mut self, key: &Key, after: &Held, ages: &Ages) {
        let Record::Service(service) = &after.record else {
            return self.add(self.keyed(key, Some(after.hash), put(&after.record)));
        };
        let mut left = service.endpoints.as_slice();
        let mut first = Some(header(&service.header));
        while first.is_some() || !left.is_empty() {
            let mut endpoints = Vec::new();
            let mut bytes = first.as_ref().map_or(0, Message::encoded_len) + 1024;
            while let Some((next, rest)) = left.split_first() {
                let next = endpoint(next);
                bytes += next.encoded_len() + 4;
                if bytes > FRAME_AIM_BYTES && !endpoints.is_empty() {
                    break;
                }
                endpoints.push(next);
                left = rest;
            }
            let more = !left.is_empty();
            let op = match first.take() {
                Some(header) => pb::change::Change::Put(pb::Put {
                    header: Some(pb::put::Header::Service(header)),
                    endpoints,
                    more,
                }),
                None => pb::change::Change::Part(pb::Part { endpoints, more }),
            };
            let change = self.keyed(key, (!more).then_some(after.hash), op);
            self.add(if more { change } else { aged(change, ages) });
        }
    }

    fn encode(&self, changes: Vec<pb::Change>, through: Revision, marks: &[Mark]) -> Bytes {
        let marks = marks.iter().map(|one| mark(one, self.own)).collect();
        let mut frame = pb::Frame { through: through.0, marks, sent: self.sent, ..Default::default() };
        if self.compress {
            let body = pb::FrameBody { changes }.encode_to_vec();
            // Compressing in memory fails only for want of memory; the plain form is as good.
            if let Ok(zstd) = zstd::bulk::compress(&body, 1) {
                frame.raw_length = u32::try_from(body.len()).unwrap_or(u32::MAX);
                frame.zstd = zstd.into();
                return message(pb::server_message::Message::Frame(frame));
            }
            frame.changes =
                pb::FrameBody::decode(body.as_slice()).map(|body| body.changes).unwrap_or_default();
        } else {
            frame.changes = changes;
        }
        message(pb::server_message::Message::Frame(frame))
    }

    fn change(&self, change: &Change) -> pb::Change {
        match &change.op {
            Op::Put(held) => self.keyed(&change.key, Some(held.hash), put(&held.record)),
            Op::Patch { header: changed, upserts, removals, hash } => {
                let patch = pb::Patch {
                    header: changed.as_ref().map(header),
                    upserts: upserts.iter().map(endpoint).collect(),
                    removals: removals.iter().map(address).collect(),
                };
                self.keyed(&change.key, Some(*hash), pb::change::Change::Patch(patch))
            }
            Op::Removed => self.keyed(&change.key, None, pb::change::Change::Removed(pb::Removed {})),
        }
    }

    fn keyed(&self, key: &Key, hash: Option<Hash>, change: pb::change::Change) -> pb::Change {
        let pb::RecordKey { kind, cluster, namespace, name } = record_key(key, self.own);
        let content_hash = hash.map(|hash| Bytes::copy_from_slice(&hash.to_bytes())).unwrap_or_default();
        let change = Some(change);
        pb::Change { kind, cluster, namespace, name, content_hash, change, ..Default::default() }
    }
}

fn aged(change: pb::Change, ages: &Ages) -> pb::Change {
    let millis = |ages: &[Duration]| {
        ages.iter().map(|age| u32::try_from(age.as_millis()).unwrap_or(u32::MAX)).collect()
    };
    pb::Change { age_millis_v4: millis(&ages.v4), age_millis_v6: millis(&ages.v6), ..change }
}

fn put(record: &Record) -> pb::change::Change {
    let (head, endpoints) = match record {
        Record::Service(service) => (
            pb::put::Header::Service(header(&service.header)),
            service.endpoints.iter().map(endpoint).collect(),
        ),
        Record::Facts(facts) => {
            let service_cidrs = facts.service_cidrs.iter().map(prefix).collect();
            (pb::put::Header::Facts(pb::ClusterFacts { service_cidrs }), Vec::new())
        }
    };
    pb::change::Change::Put(pb::Put { header: Some(head), endpoints, more: false })
}

fn header(header: &ServiceHeader) -> pb::ServiceHeader {
    pb::ServiceHeader {
        ports: header
            .ports
            .iter()
            .map(|ServicePort { name, protocol: of, port, node_port }| pb::ServicePort {
                name: name.to_string(),
                protocol: protocol(*of),
                port: (*port).into(),
                node_port: (*node_port).into(),
            })
            .collect(),
        cluster_ips: header.cluster_ips.iter().map(address).collect(),
        external_ips: header.external_ips.iter().map(address).collect(),
        load_balancer_vips: header.load_balancer_vips.iter().map(address).collect(),
        source_ranges: header.source_ranges.iter().map(prefix).collect(),
        affinity_seconds: header.affinity_seconds,
        internal_policy_local: header.internal_policy_local,
        external_policy_local: header.external_policy_local,
        health_check_node_port: header.health_check_node_port.into(),
        created: header.created,
    }
}

fn endpoint(endpoint: &Endpoint) -> pb::Endpoint {
    let strings = |names: &[Name]| names.iter().map(ToString::to_string).collect();
    pb::Endpoint {
        address: address(&endpoint.address),
        ports: endpoint
            .ports
            .iter()
            .map(|EndpointPort { name, protocol: of, port }| pb::EndpointPort {
                name: name.to_string(),
                protocol: protocol(*of),
                port: (*port).into(),
            })
            .collect(),
        conditions: endpoint.conditions.bits(),
        node: endpoint.node.to_string(),
        zone_hints: strings(&endpoint.zone_hints),
        node_hints: strings(&endpoint.node_hints),
        cluster: endpoint.cluster.as_deref().unwrap_or_default().to_owned(),
    }
}

pub(super) fn record_key(key: &Key, own: &str) -> pb::RecordKey {
    let kind = match key.kind {
        Kind::Service => pb::Kind::Service,
        Kind::Facts => pb::Kind::Facts,
    };
    pb::RecordKey {
        kind: kind.into(),
        cluster: relative(&key.cluster, own),
        namespace: key.namespace.to_string(),
        name: key.name.to_string(),
    }
}

pub(super) fn relative(cluster: &str, own: &str) -> String {
    if cluster == own { String::new() } else { cluster.to_owned() }
}

pub(super) fn mark(mark: &Mark, own: &str) -> pb::Mark {
    let cluster = relative(&mark.cluster, own);
    pb::Mark { cluster, kind: object_kind(mark.kind), resource_version: mark.resource_version }
}

fn object_kind(kind: ObjectKind) -> i32 {
    match kind {
        ObjectKind::Service => pb::ObjectKind::Service,
        ObjectKind::EndpointSlice => pb::ObjectKind::EndpointSlice,
        ObjectKind::Node => pb::ObjectKind::Node,
        ObjectKind::ServiceCidr => pb::ObjectKind::ServiceCidr,
    }
    .into()
}

pub(super) fn address(address: &IpAddr) -> Bytes {
    match address {
        IpAddr::V4(v4) => Bytes::copy_from_slice(&v4.octets()),
        IpAddr::V6(v6) => Bytes::copy_from_slice(&v6.octets()),
    }
}

pub(super) fn prefix(prefix: &IpNet) -> pb::Prefix {
    pb::Prefix { address: address(&prefix.addr()), length: prefix.prefix_len().into() }
}

fn protocol(protocol: Protocol) -> i32 {
    match protocol {
        Protocol::Tcp => pb::Protocol::Tcp,
        Protocol::Udp => pb::Protocol::Udp,
        Protocol::Sctp => pb::Protocol::Sctp,
    }
    .into()
}
