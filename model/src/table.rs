//! The records that one side holds, with their hashes and digests.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::delta::{self, Change, Refused};
use crate::{Digest, Hash, Key, Name, Record};

/// A record with its content hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The record.
    pub record: Record,
    /// Its content hash.
    pub hash: Hash,
}

/// All records that one side holds. Iteration is in order of the keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    records: BTreeMap<Arc<Key>, Held>,
    digests: BTreeMap<Name, Digest>,
    endpoints: usize,
}

impl Table {
    /// The record of a key.
    pub fn get(&self, key: &Key) -> Option<&Held> {
        self.records.get(key)
    }

    /// All records.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<Key>, &Held)> {
        self.records.iter()
    }

    /// How many records there are.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// How many endpoints all services have together.
    pub fn endpoints(&self) -> usize {
        self.endpoints
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// The digest of one cluster's records, where there is any.
    pub fn digest(&self, cluster: &str) -> Option<&Digest> {
        self.digests.get(cluster)
    }

    /// The root of one cluster's records; that of an empty cluster where there is none.
    pub fn root(&self, cluster: &str) -> Hash {
        match self.digests.get(cluster) {
            Some(digest) => digest.root(cluster),
            None => Digest::default().root(cluster),
        }
    }

    /// Clusters of which records are or were held.
    pub fn clusters(&self) -> impl Iterator<Item = (&Name, &Digest)> {
        self.digests.iter()
    }

    /// Takes a change in. Repeating one changes nothing.
    ///
    /// # Errors
    /// When it does not fit what is held, or does not lead to the hash that it states; nothing is changed then.
    pub fn apply(&mut self, change: &Change) -> Result<(), Refused> {
        let after = delta::apply(self.get(&change.key), change)?;
        self.set(&change.key, after);
        Ok(())
    }

    /// Puts a record in place, or removes it (`None`). Gives what was there.
    pub fn set(&mut self, key: &Arc<Key>, after: Option<Held>) -> Option<Held> {
        let hash = after.as_ref().map(|held| held.hash);
        self.endpoints += after.as_ref().map_or(0, |held| held.record.endpoints());
        let before = match after {
            Some(held) => self.records.insert(key.clone(), held),
            None => self.records.remove(key),
        };
        self.endpoints -= before.as_ref().map_or(0, |held| held.record.endpoints());
        let digest = self.digests.entry(key.cluster.clone()).or_default();
        digest.change(key, before.as_ref().map(|held| held.hash), hash);
        before
    }
}
