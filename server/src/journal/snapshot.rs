//! The whole table as compressed frames, one lot a bucket: built when somebody joins, kept until the bucket changes. All
//! who join at the same state share one list.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use distributary_model::codec::Frames;
use distributary_model::{Change, Key, Op, Revision, Table, hash};

/// The frames of each bucket.
#[derive(Debug)]
pub(super) struct Snapshot {
    /// By the first half of the key's hash, by which lists name a record.
    keys: Vec<BTreeSet<(u64, Arc<Key>)>>,
    /// Behind a lock of its own, so that joining needs no more than to read the journal.
    cached: Mutex<Cached>,
}

#[derive(Debug)]
struct Cached {
    buckets: Vec<Option<Arc<[Bytes]>>>,
    /// What a list of each bucket says.
    lists: Vec<Option<Arc<[u64]>>>,
    /// Those of all buckets; none after a change, so that what nobody needs any more is not kept either.
    all: Option<Arc<[Bytes]>>,
}

impl Default for Snapshot {
    fn default() -> Self {
        Self {
            keys: vec![BTreeSet::new(); 256],
            cached: Mutex::new(Cached { buckets: vec![None; 256], lists: vec![None; 256], all: None }),
        }
    }
}

impl Snapshot {
    /// A record changed; `there`: it still exists.
    pub(super) fn changed(&mut self, key: &Arc<Key>, there: bool) {
        let hash = hash::key(key);
        let (bucket, entry) = (usize::from(hash.to_bytes()[0]), (hash.first64(), key.clone()));
        match there {
            true => self.keys[bucket].insert(entry),
            false => self.keys[bucket].remove(&entry),
        };
        let cached = self.cached.get_mut().unwrap_or_else(PoisonError::into_inner);
        cached.buckets[bucket] = None;
        cached.lists[bucket] = None;
        cached.all = None;
    }

    /// All frames, for agents of the cluster `own`. They promise nothing before End.
    pub(super) fn frames(&self, table: &Table, own: &str) -> Arc<[Bytes]> {
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(all) = &cached.all {
            return all.clone();
        }
        let mut all = Vec::new();
        for (keys, frames) in
            self.keys.iter().zip(cached.buckets.iter_mut()).filter(|(keys, _)| !keys.is_empty())
        {
            let frames = frames.get_or_insert_with(|| {
                let mut encoder = Frames::compressed(own);
                for (key, held) in keys.iter().filter_map(|(_, key)| Some((key, table.get(key)?))) {
                    encoder.push(&Change { key: key.clone(), op: Op::Put(held.clone()) }, Some(held));
                }
                encoder.finish(Revision(0), &[]).into()
            });
            all.extend(frames.iter().cloned());
        }
        let all: Arc<[Bytes]> = all.into();
        cached.all = Some(all.clone());
        all
    }

    /// What a list of a bucket says: pairs of the first halves of the hashes of key and content.
    pub(super) fn list(&self, bucket: u8, table: &Table) -> Arc<[u64]> {
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = usize::from(bucket);
        let list = cached.lists[bucket].get_or_insert_with(|| {
            let entries = self.keys[bucket].iter();
            entries
                .filter_map(|(hash, key)| Some([*hash, table.get(key)?.hash.first64()]))
                .flatten()
                .collect()
        });
        list.clone()
    }

    /// The records that a list names so.
    pub(super) fn named(&self, hash: u64) -> impl Iterator<Item = &Arc<Key>> {
        let keys = &self.keys[usize::from(hash.to_be_bytes()[0])];
        let first = Arc::new(Key::service("", "", ""));
        keys.range((hash, first)..).take_while(move |(of, _)| *of == hash).map(|(_, key)| key)
    }
}
