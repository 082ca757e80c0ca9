//! What a server process knows and what it said: the cluster's table, the commits that led to it, and how fresh it is.
//!
//! Pure: one writer takes updates in, sessions read. Memory is O(endpoints), never O(agents).

mod changes;
mod log;
mod moment;
mod snapshot;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use distributary_cluster::{Cluster, Problem};
use distributary_model::codec::{Frames, messages, millis, sent};
use distributary_model::{
    Change, Digest, Epoch, Hash, Key, Kind, Mark, Marks, Name, NodeView, ObjectKind, Op, Revision,
};
use distributary_proto::v1 as pb;
use jiff::Timestamp;

use changes::Changes;
pub use log::{Evicted, LOG_BYTES, Log, Logged};
pub use moment::Moment;
use snapshot::Snapshot;

use crate::source::Update;

/// What came of an update.
#[derive(Debug, Default)]
pub struct Committed {
    /// Records that changed.
    pub records: usize,
    /// Bytes of the frames that say so.
    pub bytes: usize,
    /// Nodes whose view changed.
    pub nodes: usize,
    /// What was wrong with objects; the rest of them was taken in.
    pub problems: Vec<Problem>,
    /// All kinds have listed, with this update.
    pub now_listed: bool,
}

/// The state of a server process, of one source.
#[derive(Debug)]
pub struct Journal {
    epoch: Epoch,
    own: Name,
    cluster: Cluster,
    revision: Revision,
    /// Counts the commits in which any node changed.
    nodes_changed: u64,
    log: Log,
    snapshot: Snapshot,
    changes: Changes,
    marks: Marks,
    listed: BTreeSet<ObjectKind>,
    /// When all kinds had listed, by the wall clock.
    listed_at: Option<Timestamp>,
    /// When each kind was last known to be up to date.
    fresh: BTreeMap<ObjectKind, Instant>,
    started: Instant,
}

impl Journal {
    /// Of a process that starts now, for the cluster `own`.
    pub fn new(epoch: Epoch, own: Name, log_bytes: usize, now: Instant) -> Self {
        Self {
            epoch,
            cluster: Cluster::new(own.clone()),
            own,
            revision: Revision(0),
            nodes_changed: 0,
            log: Log::new(log_bytes),
            snapshot: Snapshot::default(),
            changes: Changes::default(),
            marks: Marks::default(),
            listed: BTreeSet::new(),
            listed_at: None,
            fresh: BTreeMap::new(),
            started: now,
        }
    }

    /// Takes an update in. What no agent could see makes no commit.
    pub fn commit(&mut self, update: Update, at: impl Into<Moment>) -> Committed {
        let at = at.into();
        let changes = self.cluster.apply(update.events);
        let mut moved = Vec::new();
        for (kind, resource_version) in update.marks {
            let mark = Mark { cluster: self.own.clone(), kind, resource_version };
            self.marks.set(mark.clone());
            moved.push(mark);
        }
        for kind in update.fresh {
            self.fresh.insert(kind, at.instant);
        }
        let was_listed = self.listed();
        self.listed.extend(update.listed);

        self.nodes_changed += u64::from(!changes.nodes.is_empty());
        let mut bytes = 0;
        if !changes.records.is_empty() {
            self.revision = self.revision.next();
            let mut frames = Frames::new(&self.own).sent(self.age(at.instant));
            for record in &changes.records {
                let key = &record.change.key;
                self.snapshot.changed(key, record.after.is_some());
                self.changes.changed(key, self.revision, record.after.is_some(), at.instant);
                let ages = at.ages(&record.triggers, self.listed_at);
                frames.push_aged(&record.change, record.after.as_ref(), &ages);
            }
            let frames = frames.finish(self.revision, &moved);
            bytes = frames.iter().map(Bytes::len).sum();
            self.log.push(self.revision, frames);
        }
        self.changes.forget(at.instant);
        let now_listed = !was_listed && self.listed();
        if now_listed {
            self.listed_at = at.wall;
        }
        Committed {
            records: changes.records.len(),
            bytes,
            nodes: changes.nodes.len(),
            problems: changes.problems,
            now_listed,
        }
    }

    /// The process.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Id of the source's cluster.
    pub fn own(&self) -> &Name {
        &self.own
    }

    /// How long this process has been there.
    fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.started)
    }

    /// The newest commit.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Moves whenever any node changed.
    pub fn nodes_changed(&self) -> u64 {
        self.nodes_changed
    }

    /// What of each kind is included.
    pub fn marks(&self) -> &Marks {
        &self.marks
    }

    /// Whether every kind has listed. Before, nothing is told.
    pub fn listed(&self) -> bool {
        ObjectKind::ALL.iter().all(|kind| self.listed.contains(kind))
    }

    /// The kinds that have not listed yet.
    pub fn unlisted(&self) -> impl Iterator<Item = ObjectKind> {
        ObjectKind::ALL.into_iter().filter(|kind| !self.listed.contains(kind))
    }

    /// The recent frames.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// The source's cluster.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The frames of all records, the same list for all who ask at the same revision.
    pub fn snapshot(&self) -> Arc<[Bytes]> {
        self.snapshot.frames(self.cluster.table(), &self.own)
    }

    /// The frames of the newest values of what changed since a commit, and of the records that lists name so; `None`
    /// where not all that was removed since is known any more. Compressed where it may be much.
    pub fn newest(&self, since: Revision, named: &[u64], compress: bool) -> Option<Vec<Bytes>> {
        let mut keys: BTreeSet<&Arc<Key>> = self.changes.since(since)?.collect();
        keys.extend(named.iter().flat_map(|hash| self.snapshot.named(*hash)));
        if keys.is_empty() {
            return Some(Vec::new());
        }
        let mut frames = if compress { Frames::compressed(&self.own) } else { Frames::new(&self.own) };
        for key in keys {
            let after = self.cluster.table().get(key);
            let op = after.map_or(Op::Removed, |held| Op::Put(held.clone()));
            frames.push(&Change { key: key.clone(), op }, after);
        }
        Some(frames.finish(Revision(0), &[]))
    }

    /// Lists of the buckets whose sums are others, as messages.
    pub fn lists(&self, theirs: &[Hash; 256]) -> Vec<Bytes> {
        let table = self.cluster.table();
        let none = Digest::default();
        let ours = table.digest(&self.own).unwrap_or(&none).sums();
        let differs = (0..=u8::MAX).zip(ours.iter().zip(theirs)).filter(|(_, (ours, theirs))| ours != theirs);
        messages::bucket_lists(differs.map(|(bucket, _)| (bucket, self.snapshot.list(bucket, table))))
    }

    /// The root at the newest revision.
    pub fn root(&self) -> Hash {
        self.cluster.table().root(&self.own)
    }

    /// How long ago the kind that is least fresh was known to be up to date.
    pub fn staleness(&self, now: Instant) -> Duration {
        let oldest = ObjectKind::ALL.iter().map(|kind| self.fresh.get(kind).unwrap_or(&self.started)).min();
        now.saturating_duration_since(*oldest.unwrap_or(&self.started))
    }

    /// Services and endpoints.
    pub fn size(&self) -> (usize, usize) {
        let table = self.cluster.table();
        (table.iter().filter(|(key, _)| key.kind == Kind::Service).count(), table.endpoints())
    }

    /// What is known of a node.
    pub fn node(&self, name: &str) -> Option<&NodeView> {
        self.cluster.node(name)
    }

    /// How the source stands, as it travels, at the newest revision.
    pub fn sources(&self, now: Instant) -> Vec<pb::SourceState> {
        vec![pb::SourceState {
            cluster: String::new(),
            complete: self.listed(),
            root: self.root().to_bytes().to_vec().into(),
            staleness_millis: millis(self.staleness(now)),
        }]
    }

    /// The heartbeat of this moment.
    pub fn heartbeat(&self, now: Instant) -> pb::Heartbeat {
        pb::Heartbeat {
            revision: self.revision.0,
            marks: messages::marks(&self.marks, &self.own),
            sources: self.sources(now),
            sent: sent(self.age(now)),
        }
    }
}
