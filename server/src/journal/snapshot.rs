//! The whole table as compressed frames, one lot a bucket, as it was at some commit: who joins is told these frames, and the
//! newest values of what changed since. So all who join share them, and a change makes none of them worthless.
//!
//! To encode them takes a while, and is done by whoever has the time: [`Blueprint::build`] needs no journal.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use distributary_model::codec::Frames;
use distributary_model::{Change, Held, Key, Name, Op, Revision, Table, hash};

const BUCKETS: usize = 256;

/// The frames of each bucket.
#[derive(Debug)]
pub(super) struct Snapshot {
    /// By the first half of the key's hash, by which lists name a record.
    keys: Vec<BTreeSet<(u64, Arc<Key>)>>,
    /// The last change in each bucket.
    changed: Vec<Revision>,
    /// Behind a lock of its own, so that joining needs no more than to read the journal.
    cached: Mutex<Cached>,
}

#[derive(Debug)]
struct Cached {
    /// What a list of each bucket says.
    lists: Vec<Option<Arc<[u64]>>>,
    built: Option<Arc<Built>>,
    /// Somebody wants a newer one.
    wanted: bool,
}

/// All records as they were at a commit.
#[derive(Debug)]
pub struct Built {
    /// At that one.
    pub(super) revision: Revision,
    /// Of each bucket, with the last change that is in them.
    buckets: Vec<(Revision, Arc<[Bytes]>)>,
    /// All of them.
    pub(super) frames: Arc<[Bytes]>,
}

/// What is to be encoded.
#[derive(Debug)]
pub struct Blueprint {
    own: Name,
    revision: Revision,
    buckets: Vec<Plan>,
}

#[derive(Debug)]
enum Plan {
    /// It has not changed.
    Built(Revision, Arc<[Bytes]>),
    Encode(Revision, Vec<(Arc<Key>, Held)>),
}

impl Blueprint {
    /// Encodes what is to be. It takes as long as it takes: milliseconds for a thousand records.
    pub fn build(self) -> Built {
        let Self { own, revision, buckets } = self;
        let encode = |plan| match plan {
            Plan::Built(changed, frames) => (changed, frames),
            // An encoder makes a frame of nothing, too.
            Plan::Encode(changed, records) if records.is_empty() => (changed, [].into()),
            Plan::Encode(changed, records) => {
                let mut encoder = Frames::compressed(&own);
                for (key, held) in records {
                    let op = Op::Put(held.clone());
                    encoder.push(&Change { key, op }, Some(&held));
                }
                (changed, encoder.finish(Revision(0), &[]).into())
            }
        };
        let buckets: Vec<(Revision, Arc<[Bytes]>)> = buckets.into_iter().map(encode).collect();
        let frames = buckets.iter().flat_map(|(_, frames)| frames.iter().cloned()).collect();
        Built { revision, buckets, frames }
    }
}

impl Default for Snapshot {
    fn default() -> Self {
        Self {
            keys: vec![BTreeSet::new(); BUCKETS],
            changed: vec![Revision(0); BUCKETS],
            cached: Mutex::new(Cached { lists: vec![None; BUCKETS], built: None, wanted: false }),
        }
    }
}

impl Snapshot {
    /// A record changed in a commit; `there`: it still exists.
    pub(super) fn changed(&mut self, key: &Arc<Key>, revision: Revision, there: bool) {
        let hash = hash::key(key);
        let (bucket, entry) = (usize::from(hash.to_bytes()[0]), (hash.first64(), key.clone()));
        match there {
            true => self.keys[bucket].insert(entry),
            false => self.keys[bucket].remove(&entry),
        };
        self.changed[bucket] = revision;
        self.cached.get_mut().unwrap_or_else(PoisonError::into_inner).lists[bucket] = None;
    }

    /// The newest that there is.
    pub(super) fn built(&self) -> Option<Arc<Built>> {
        self.cached().built.clone()
    }

    /// A newer one is wanted.
    pub(super) fn want(&self) {
        self.cached().wanted = true;
    }

    /// What would make the one that is wanted, for agents of the cluster `own`; `None`: none is.
    pub(super) fn blueprint(&self, revision: Revision, table: &Table, own: &Name) -> Option<Blueprint> {
        let mut cached = self.cached();
        if !std::mem::take(&mut cached.wanted) {
            return None;
        }
        let plan = |(bucket, keys): (usize, &BTreeSet<(u64, Arc<Key>)>)| {
            let changed = self.changed[bucket];
            match cached.built.as_ref().and_then(|built| built.buckets.get(bucket)) {
                Some((of, frames)) if *of == changed => Plan::Built(changed, frames.clone()),
                _ => {
                    let records =
                        keys.iter().filter_map(|(_, key)| Some((key.clone(), table.get(key)?.clone())));
                    Plan::Encode(changed, records.collect())
                }
            }
        };
        let buckets = self.keys.iter().enumerate().map(plan).collect();
        Some(Blueprint { own: own.clone(), revision, buckets })
    }

    /// This is what is told from now on.
    pub(super) fn install(&self, built: Built) {
        let mut cached = self.cached();
        if cached.built.as_ref().is_none_or(|held| held.revision <= built.revision) {
            cached.built = Some(Arc::new(built));
        }
    }

    /// What a list of a bucket says: pairs of the first halves of the hashes of key and content.
    pub(super) fn list(&self, bucket: u8, table: &Table) -> Arc<[u64]> {
        let mut cached = self.cached();
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

    fn cached(&self) -> std::sync::MutexGuard<'_, Cached> {
        self.cached.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
