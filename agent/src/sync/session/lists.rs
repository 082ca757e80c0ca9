//! A repair: the server's lists of what is in a bucket, against what is held.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use distributary_model::codec::messages::BucketList;
use distributary_model::{Key, Name, hash};

use super::stage::{Base, Stage};

/// What is held, by bucket and by the first half of the key's hash, with the first half of the content's.
#[derive(Debug, Default)]
pub(super) struct Index(BTreeMap<(Name, u8), Bucket>);

type Bucket = BTreeMap<u64, (Arc<Key>, u64)>;

impl Index {
    pub(super) fn of(base: Base<'_>) -> Self {
        let mut index = Self::default();
        for (key, held) in base.iter() {
            let hash = hash::key(key);
            let bucket = index.0.entry((key.cluster.clone(), hash.to_bytes()[0])).or_default();
            bucket.insert(hash.first64(), (key.clone(), held.hash.first64()));
        }
        index
    }

    /// Stages the removal of what a list does not name; gives the hashes of the keys whose records are lacking.
    pub(super) fn compare(&self, list: &BucketList, stage: &mut Stage) -> Vec<u64> {
        let nothing = Bucket::new();
        let held = self.0.get(&(list.cluster.clone(), list.bucket)).unwrap_or(&nothing);
        let named: BTreeSet<u64> = list.entries.iter().map(|(key, _)| *key).collect();
        for (_, (key, _)) in held.iter().filter(|(hash, _)| !named.contains(hash)) {
            stage.unnamed(key.clone());
        }
        let lacks = |(key, content): &&(u64, u64)| held.get(key).is_none_or(|(_, ours)| ours != content);
        list.entries.iter().filter(lacks).map(|(key, _)| *key).collect()
    }
}
