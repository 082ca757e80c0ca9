//! The messages around the frames, both ways.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use distributary_proto::v1 as pb;

pub use super::decode::at_most;
use super::decode::{Malformed, malformed};
use super::encode::{address, mark, message, prefix, record_key, relative};
use crate::hash::SCHEMA;
use crate::limits::{AGENT_MESSAGE_BYTES, FRAME_AIM_BYTES, FRAME_BYTES, LIST, STRING_BYTES};
use crate::{
    Cursor, Digest, Epoch, Hash, Interner, Key, Mark, Marks, Name, NodeView, ObjectKind, Revision, Taint,
};

/// All marks as they travel to agents of the cluster `own`.
pub fn marks(marks: &Marks, own: &str) -> Vec<pb::Mark> {
    marks.iter().map(|one| mark(&one, own)).collect()
}

/// Marks as they came. Those of kinds that are not known yet are passed over: they order nothing here.
///
/// # Errors
/// When there are too many, or a name is too long.
pub fn marks_from(marks: &[pb::Mark], own: &Name, interner: &mut Interner) -> Result<Vec<Mark>, Malformed> {
    at_most(marks.len(), LIST, "marks")?;
    let mut known = Vec::with_capacity(marks.len());
    for mark in marks {
        at_most(mark.cluster.len(), STRING_BYTES, "bytes of a string")?;
        let cluster = if mark.cluster.is_empty() { own.clone() } else { interner.name(&mark.cluster) };
        let kind = match pb::ObjectKind::try_from(mark.kind) {
            Ok(pb::ObjectKind::Service) => ObjectKind::Service,
            Ok(pb::ObjectKind::EndpointSlice) => ObjectKind::EndpointSlice,
            Ok(pb::ObjectKind::Node) => ObjectKind::Node,
            Ok(pb::ObjectKind::ServiceCidr) => ObjectKind::ServiceCidr,
            Err(_) => continue,
        };
        known.push(Mark { cluster, kind, resource_version: mark.resource_version });
    }
    Ok(known)
}

/// An epoch as it came.
///
/// # Errors
/// When it has not 16 bytes.
pub fn epoch_from(bytes: &[u8]) -> Result<Epoch, Malformed> {
    bytes.try_into().map(Epoch).map_err(|_| Malformed::new(format!("an epoch of {} bytes", bytes.len())))
}

/// A cursor as it travels.
pub fn cursor(cursor: Cursor) -> pb::Cursor {
    pb::Cursor { epoch: cursor.epoch.0.to_vec().into(), through: cursor.through.0 }
}

/// A cursor as it came.
///
/// # Errors
/// When its epoch is none.
pub fn cursor_from(cursor: &pb::Cursor) -> Result<Cursor, Malformed> {
    Ok(Cursor { epoch: epoch_from(&cursor.epoch)?, through: Revision(cursor.through) })
}

/// The buckets of a cluster as they travel.
pub fn buckets(cluster: &str, digest: &Digest, own: &str) -> pb::Buckets {
    let sums: Vec<u8> = digest.sums().iter().flat_map(|sum| sum.to_bytes()).collect();
    pb::Buckets { cluster: relative(cluster, own), schema: SCHEMA, sums: sums.into() }
}

/// The sums of the agent's own cluster, of those that came; `None` where they are of another schema, or absent.
///
/// # Errors
/// When there are not 256 of them, or too many clusters.
pub fn buckets_from(buckets: &[pb::Buckets], own: &str) -> Result<Option<Box<[Hash; 256]>>, Malformed> {
    at_most(buckets.len(), LIST, "clusters with buckets")?;
    let of_own = |of: &&pb::Buckets| of.schema == SCHEMA && (of.cluster.is_empty() || of.cluster == own);
    let Some(pb::Buckets { sums, .. }) = buckets.iter().find(of_own) else { return Ok(None) };
    let (hashes, rest) = sums.as_chunks::<16>();
    if hashes.len() != 256 || !rest.is_empty() {
        return malformed(format!("buckets of {} bytes, where 4096 are expected", sums.len()));
    }
    let mut all = Box::new([Hash::default(); 256]);
    all.iter_mut().zip(hashes).for_each(|(hash, bytes)| *hash = Hash(u128::from_be_bytes(*bytes)));
    Ok(Some(all))
}

/// A server replica, where an agent may go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// HOST:PORT
    pub address: Name,
    /// Where it is; empty: nobody says.
    pub zone: Name,
    /// How much it can take, relative to the others.
    pub capacity: u32,
}

/// Servers as they travel.
pub fn candidates(candidates: &[Candidate]) -> Vec<pb::Candidate> {
    let candidate = |one: &Candidate| pb::Candidate {
        address: one.address.to_string(),
        zone: one.zone.to_string(),
        capacity: one.capacity,
    };
    candidates.iter().map(candidate).collect()
}

/// Servers as they came.
///
/// # Errors
/// When there are too many, or one has no address or too long a name.
pub fn candidates_from(candidates: Vec<pb::Candidate>) -> Result<Vec<Candidate>, Malformed> {
    at_most(candidates.len(), LIST, "candidates")?;
    let candidate = |one: pb::Candidate| {
        if one.address.is_empty() {
            return malformed("a candidate without an address");
        }
        let (address, zone) = (name(&one.address)?, name(&one.zone)?);
        Ok(Candidate { address, zone, capacity: one.capacity.max(1) })
    };
    candidates.into_iter().map(candidate).collect()
}

/// What is in one bucket of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BucketList {
    /// Of this cluster.
    pub cluster: Name,
    /// Which bucket.
    pub bucket: u8,
    /// The first halves of the hash of the key and of the content, of every record.
    pub entries: Vec<(u64, u64)>,
}

/// Lists of the agent's own cluster as messages, each of about the size that is aimed for: pairs of the first halves of
/// the hashes of key and content, by bucket.
pub fn bucket_lists(lists: impl IntoIterator<Item = (u8, Arc<[u64]>)>) -> Vec<Bytes> {
    let said = |lists| message(pb::server_message::Message::BucketLists(pb::BucketLists { lists }));
    let (mut all, mut some, mut bytes) = (Vec::new(), Vec::new(), 0);
    for (bucket, entries) in lists {
        bytes += 16 + entries.len() * 8;
        if bytes > FRAME_AIM_BYTES && !some.is_empty() {
            all.push(said(std::mem::take(&mut some)));
            bytes = 16 + entries.len() * 8;
        }
        some.push(pb::BucketList {
            cluster: String::new(),
            bucket: bucket.into(),
            entries: entries.to_vec(),
        });
    }
    if !some.is_empty() {
        all.push(said(some));
    }
    all
}

/// Lists as they came.
///
/// # Errors
/// When there are too many, one is of no bucket or breaks off, or names what is in another bucket.
pub fn bucket_lists_from(lists: pb::BucketLists, own: &Name) -> Result<Vec<BucketList>, Malformed> {
    at_most(lists.lists.len(), LIST, "lists of buckets")?;
    let entries: usize = lists.lists.iter().map(|list| list.entries.len() / 2).sum();
    at_most(entries, FRAME_BYTES / 16, "records in lists of buckets")?;
    let list = |list: pb::BucketList| {
        let Ok(bucket) = u8::try_from(list.bucket) else {
            return malformed(format!("the bucket {}, the last one is 255", list.bucket));
        };
        let (pairs, rest) = list.entries.as_chunks::<2>();
        if !rest.is_empty() {
            return malformed(format!("a list of the bucket {bucket} that breaks off"));
        }
        if let Some([key, _]) = pairs.iter().find(|[key, _]| key.to_be_bytes()[0] != bucket) {
            return malformed(format!("the key {key:016x} in a list of the bucket {bucket}"));
        }
        let cluster = if list.cluster.is_empty() { own.clone() } else { name(&list.cluster)? };
        Ok(BucketList {
            cluster,
            bucket,
            entries: pairs.iter().map(|[key, content]| (*key, *content)).collect(),
        })
    };
    lists.lists.into_iter().map(list).collect()
}

/// The hashes of the keys whose records are lacking, as they travel.
pub fn want(wanted: &BTreeMap<Name, Vec<u64>>, own: &str) -> pb::Want {
    let of_cluster = |(cluster, key_hashes): (&Name, &Vec<u64>)| pb::WantedKeys {
        cluster: relative(cluster, own),
        key_hashes: key_hashes.clone(),
    };
    pb::Want { wanted: wanted.iter().map(of_cluster).collect() }
}

/// The hashes of the keys that an agent lacks of its own cluster.
///
/// # Errors
/// When there are more than a message can hold, or too many clusters.
pub fn want_from(want: pb::Want, own: &str) -> Result<Vec<u64>, Malformed> {
    at_most(want.wanted.len(), LIST, "clusters of which something is wanted")?;
    let mut hashes = Vec::new();
    for wanted in want.wanted.into_iter().filter(|of| of.cluster.is_empty() || of.cluster == own) {
        at_most(hashes.len() + wanted.key_hashes.len(), AGENT_MESSAGE_BYTES / 8, "records that are wanted")?;
        hashes.extend(wanted.key_hashes);
    }
    Ok(hashes)
}

/// Key as it travels.
pub fn key(key: &Key, own: &str) -> pb::RecordKey {
    record_key(key, own)
}

/// A root as it came.
///
/// # Errors
/// When it has not 16 bytes.
pub fn root_from(bytes: &[u8]) -> Result<Hash, Malformed> {
    Hash::from_bytes(bytes).ok_or_else(|| Malformed::new(format!("a root of {} bytes", bytes.len())))
}

/// A Node as it travels; `None` where the source has none.
pub fn node(node: Option<&NodeView>) -> pb::Node {
    let Some(NodeView { zone, region, addresses, pod_cidrs, deleting, taints }) = node else {
        return pb::Node::default();
    };
    pb::Node {
        known: true,
        zone: zone.to_string(),
        region: region.to_string(),
        addresses: addresses.iter().map(address).collect(),
        pod_cidrs: pod_cidrs.iter().map(prefix).collect(),
        deleting: *deleting,
        taints: taints
            .iter()
            .map(|Taint { key, value, effect }| pb::Taint {
                key: key.to_string(),
                value: value.to_string(),
                effect: effect.to_string(),
            })
            .collect(),
    }
}

/// A Node as it came; `None` where the source has none.
///
/// # Errors
/// When it breaks a limit.
pub fn node_from(node: pb::Node) -> Result<Option<NodeView>, Malformed> {
    if !node.known {
        return Ok(None);
    }
    at_most(node.addresses.len(), LIST, "addresses of a node")?;
    at_most(node.taints.len(), LIST, "taints of a node")?;
    at_most(node.pod_cidrs.len(), LIST, "pod CIDRs of a node")?;
    let addresses = node.addresses.iter().map(|bytes| super::decode::address(bytes));
    let taints = node.taints.into_iter().map(|taint| {
        Ok(Taint { key: name(&taint.key)?, value: name(&taint.value)?, effect: name(&taint.effect)? })
    });
    Ok(Some(NodeView {
        zone: name(&node.zone)?,
        region: name(&node.region)?,
        addresses: addresses.collect::<Result<_, _>>()?,
        pod_cidrs: super::decode::prefixes(node.pod_cidrs)?,
        deleting: node.deleting,
        taints: taints.collect::<Result<_, Malformed>>()?,
    }))
}

fn name(name: &str) -> Result<Name, Malformed> {
    if name.len() > STRING_BYTES {
        return malformed(format!("a name of {} bytes", name.len()));
    }
    Ok(name.into())
}
