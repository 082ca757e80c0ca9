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
    keys: Vec<BTreeSet<Arc<Key>>>,
    /// Behind a lock of its own, so that joining needs no more than to read the journal.
    cached: Mutex<Cached>,
}

#[derive(Debug)]
struct Cached {
    buckets: Vec<Option<Arc<[Bytes]>>>,
    /// Those of all buckets; none after a change, so that what nobody needs any more is not kept either.
    all: Option<Arc<[Bytes]>>,
}

impl Default for Snapshot {
    fn default() -> Self {
        Self {
            keys: vec![BTreeSet::new(); 256],
            cached: Mutex::new(Cached { buckets: vec![None; 256], all: None }),
        }
    }
}

impl Snapshot {
    /// A record changed; `there`: it still exists.
    pub(super) fn changed(&mut self, key: &Arc<Key>, there: bool) {
        let bucket = hash::bucket(key);
        match there {
            true => self.keys[bucket].insert(key.clone()),
            false => self.keys[bucket].remove(key),
        };
        let cached = self.cached.get_mut().unwrap_or_else(PoisonError::into_inner);
        cached.buckets[bucket] = None;
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
                for (key, held) in keys.iter().filter_map(|key| Some((key, table.get(key)?))) {
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
}
