//! The delta algebra: what differs between two records, and a record with such a difference taken in.
//!
//! For any records `a` and `b` of a key: `apply(a, diff(a, b)) == b`, also when it is applied twice.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::{Endpoint, Hash, Held, Key, Record, Service, ServiceHeader, hash};

/// A change of one record, which is the atomic unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The record.
    pub key: Arc<Key>,
    /// What happens to it.
    pub op: Op,
}

/// What happens to a record. The hash is the record's content hash afterwards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// This is the record now.
    Put(Held),
    /// The service changed in part.
    Patch {
        /// Replaces the header.
        header: Option<ServiceHeader>,
        /// For every address that occurs here: these are all of its endpoints now. Sorted.
        upserts: Vec<Endpoint>,
        /// Addresses that have no endpoint any more. Sorted.
        removals: Vec<IpAddr>,
        /// The content hash afterwards.
        hash: Hash,
    },
    /// The record is gone.
    Removed,
}

/// Why a change was not taken in.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// A patch of a service that is not held.
    #[error("patch of {0}, which is not held")]
    NotHeld(Arc<Key>),
    /// The change leads to other content than its sender has.
    #[error("{key} would have the hash {ours}, but the sender has {theirs}")]
    Hash {
        /// The record.
        key: Arc<Key>,
        /// What the change leads to.
        ours: Hash,
        /// What the sender stated.
        theirs: Hash,
    },
}

/// What leads from `old` to `new`; `None` where they are equal. Services that are on both sides give a patch, unless
/// that would be no smaller than the new record.
pub fn diff(key: &Arc<Key>, old: Option<&Held>, new: Option<&Held>) -> Option<Change> {
    let op = match (old, new) {
        (None, None) => return None,
        (Some(old), Some(new)) if old.hash == new.hash => return None,
        (_, None) => Op::Removed,
        (None, Some(new)) => Op::Put(new.clone()),
        (Some(old), Some(new)) => match (&old.record, &new.record) {
            (Record::Service(was), Record::Service(is)) => {
                patch(was, is, new.hash).unwrap_or_else(|| Op::Put(new.clone()))
            }
            _ => Op::Put(new.clone()),
        },
    };
    Some(Change { key: key.clone(), op })
}

fn patch(was: &Service, is: &Service, hash: Hash) -> Option<Op> {
    let (old, new) = (by_address(&was.endpoints), by_address(&is.endpoints));
    let removals: Vec<IpAddr> = old.keys().filter(|address| !new.contains_key(address)).copied().collect();
    let changed = new.iter().filter(|(address, endpoints)| old.get(address) != Some(endpoints));
    let upserts: Vec<Endpoint> = changed.flat_map(|(_, endpoints)| endpoints.iter().cloned()).collect();
    if !is.endpoints.is_empty() && upserts.len() + removals.len() > is.endpoints.len() {
        return None;
    }
    let header = (was.header != is.header).then(|| is.header.clone());
    Some(Op::Patch { header, upserts, removals, hash })
}

fn by_address(endpoints: &[Endpoint]) -> BTreeMap<IpAddr, &[Endpoint]> {
    endpoints.chunk_by(|a, b| a.address == b.address).map(|group| (group[0].address, group)).collect()
}

/// The record with a change taken in; `None` where it is gone.
///
/// # Errors
/// When the change does not fit what is held, or does not lead to the hash that it states.
pub fn apply(held: Option<&Held>, change: &Change) -> Result<Option<Held>, Refused> {
    let check = |ours: Hash, theirs: Hash| match ours == theirs {
        true => Ok(()),
        false => Err(Refused::Hash { key: change.key.clone(), ours, theirs }),
    };
    match &change.op {
        Op::Removed => Ok(None),
        Op::Put(new) => {
            if held.is_none_or(|held| held.hash != new.hash || held.record != new.record) {
                check(hash::record(&change.key, &new.record), new.hash)?;
            }
            Ok(Some(new.clone()))
        }
        Op::Patch { header, upserts, removals, hash } => {
            let Some(Held { record: Record::Service(was), hash: before }) = held else {
                return Err(Refused::NotHeld(change.key.clone()));
            };
            let mut gone = Vec::new();
            let touched: BTreeSet<IpAddr> =
                upserts.iter().map(|endpoint| endpoint.address).chain(removals.iter().copied()).collect();
            for address in &touched {
                let from = was.endpoints.partition_point(|one| one.address < *address);
                gone.extend(was.endpoints[from..].iter().take_while(|one| one.address == *address));
            }
            let headers = header.as_ref().map(|new| (&was.header, new));
            check(hash::patched(&change.key, *before, headers, gone, upserts), *hash)?;
            let mut endpoints: Vec<Endpoint> =
                was.endpoints.iter().filter(|one| !touched.contains(&one.address)).cloned().collect();
            endpoints.extend_from_slice(upserts);
            endpoints.sort();
            let header = header.as_ref().unwrap_or(&was.header).clone();
            let record = Record::Service(Arc::new(Service { header, endpoints }));
            Ok(Some(Held { record, hash: *hash }))
        }
    }
}
