//! What a server process knows and what it said: the cluster's table, the commits that led to it, and how fresh it is.
//!
//! Pure: one writer takes updates in, sessions read. Memory is O(endpoints), never O(agents).

mod changes;
mod endpoints;
mod log;
mod moment;
mod removals;
mod rewound;
mod snapshot;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use distributary_cluster::{Cluster, Problem, RecordChange};
use distributary_model::codec::{Frames, messages, millis, sent};
use distributary_model::{
    Change, Digest, Epoch, Hash, Key, Kind, Mark, Marks, Name, NodeView, ObjectKind, Op, Revision,
};
use distributary_proto::v1 as pb;
use jiff::Timestamp;

use changes::Changes;
use endpoints::Endpoints;
pub use log::{Evicted, LOG_BYTES, Log, Logged};
pub use moment::Moment;
pub use removals::PATIENCE;
use removals::Removals;
use rewound::Rewound;
use snapshot::Snapshot;
pub use snapshot::{Blueprint, Built};

use crate::budget::Budget;
use crate::replicas::Replicas;
use crate::source::Update;

/// Who joins is told the newest values of at most so many records beside what is built.
const MANY: usize = 4_096;
/// When there are more, what is built is built anew.
const FEW: usize = 64;
/// Bytes a second for who joins or has to be repaired, by default.
pub const JOIN_BYTES: u64 = 256 << 20;

/// What somebody is told who joins.
#[derive(Debug)]
pub struct Joining {
    /// Everything, as it was a while ago.
    pub shared: Arc<[Bytes]>,
    /// What changed since.
    pub after: Vec<Bytes>,
}

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
    /// Objects whose removal is held since this update.
    pub held: usize,
    /// Kinds of which the source says, since this update, what is of a time that is over.
    pub gone_back: Vec<ObjectKind>,
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
    endpoints: Endpoints,
    marks: Marks,
    listed: BTreeSet<ObjectKind>,
    /// When all kinds had listed, by the wall clock.
    listed_at: Option<Timestamp>,
    /// When each kind was last known to be up to date.
    fresh: BTreeMap<ObjectKind, Instant>,
    started: Instant,
    replicas: Replicas,
    rewound: Rewound,
    removals: Removals,
    /// Behind a lock of its own, as sessions only read the rest.
    budget: Mutex<Budget>,
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
            endpoints: Endpoints::default(),
            marks: Marks::default(),
            listed: BTreeSet::new(),
            listed_at: None,
            fresh: BTreeMap::new(),
            started: now,
            replicas: Replicas::default(),
            rewound: Rewound::new(PATIENCE),
            removals: Removals::new(PATIENCE),
            budget: Mutex::new(Budget::new(JOIN_BYTES)),
        }
    }

    /// One of several replicas.
    #[must_use]
    pub fn among(self, replicas: Replicas) -> Self {
        Self { replicas, ..self }
    }

    /// Holds removals that were only inferred, and what is of a time that is over, for so long; zero: not at all.
    #[must_use]
    pub fn patient(self, patience: Duration) -> Self {
        Self { rewound: Rewound::new(patience), removals: Removals::new(patience), ..self }
    }

    /// Gives so many bytes a second to those who join or have to be repaired.
    #[must_use]
    pub fn giving(self, bytes: u64) -> Self {
        Self { budget: Mutex::new(Budget::new(bytes)), ..self }
    }

    /// How many objects are kept although a list did not have them any more.
    pub fn held(&self) -> usize {
        self.removals.len()
    }

    /// When some of them give way by themselves: with a commit, also of nothing.
    pub fn held_until(&self) -> Option<Instant> {
        [self.removals.until(), self.rewound.until()].into_iter().flatten().min()
    }

    /// What would let go all that is held: somebody says that it is right. To be committed.
    pub fn release(&mut self, now: Instant) -> Update {
        self.rewound.release(now);
        Update { events: self.removals.release(), ..Update::default() }
    }

    /// Takes an update in. What no agent could see makes no commit.
    pub fn commit(&mut self, update: Update, at: impl Into<Moment>) -> Committed {
        let at = at.into();
        let before: BTreeSet<ObjectKind> = self.rewound.kinds().collect();
        let (believed, update) = self.rewound.sift(update, &self.marks, &self.own, at.instant);
        let gone_back = self.rewound.kinds().filter(|kind| !before.contains(kind)).collect();
        let held = self.removals.len();
        let mut events = self.removals.believe(believed);
        events.extend(self.removals.sift(update.events, &self.cluster, at.instant));
        let held = self.removals.len().saturating_sub(held);
        let mut changes = self.cluster.apply(events);
        let claimed = self.removals.claimed(&changes.records);
        if !claimed.is_empty() {
            let more = self.cluster.apply(claimed);
            changes.records.extend(more.records);
        }
        let mut moved = Vec::<Mark>::new();
        for (kind, resource_version) in update.marks {
            let mark = Mark { cluster: self.own.clone(), kind, resource_version };
            self.marks.set(mark.clone());
            // Of several updates in one, the last word.
            moved.retain(|moved| moved.kind != kind);
            moved.push(mark);
        }
        for kind in update.fresh {
            self.fresh.insert(kind, at.instant);
        }
        let was_listed = self.listed();
        self.listed.extend(update.listed);

        self.nodes_changed += u64::from(!changes.nodes.is_empty());
        let of_replicas = |record: &RecordChange| self.replicas.concerns(&record.change.key);
        if !changes.nodes.is_empty() || changes.records.iter().any(of_replicas) {
            self.replicas.refresh(&self.cluster);
        }
        let mut bytes = 0;
        if !changes.records.is_empty() {
            self.revision = self.revision.next();
            let mut frames = Frames::new(&self.own).sent(self.age(at.instant));
            for record in &changes.records {
                let key = &record.change.key;
                self.snapshot.changed(key, self.revision, record.after.is_some());
                self.changes.changed(key, self.revision, record.after.is_some(), at.instant);
                self.endpoints.changed(&record.change, record.after.as_ref(), self.revision);
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
            held,
            gone_back,
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

    /// The last change of a record; where it is not known any more that there was one, of what is forgotten.
    pub fn changed_at(&self, key: &Key) -> Revision {
        self.changes.last(key)
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

    /// The replicas.
    pub fn replicas(&self) -> &Replicas {
        &self.replicas
    }

    /// This replica is to end, and every agent to go to another within that time. Whether there is another.
    pub fn leave(&mut self, now: Instant, within: Duration) -> bool {
        let others = !self.replicas.others().is_empty();
        if others {
            self.replicas.leave(now, within);
        }
        others
    }

    /// The recent frames.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// The source's cluster.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Everything, for somebody who joins: frames that all share, then those of what changed since these were built. `None`:
    /// they have to be built first, by what [`Journal::blueprint`] gives.
    pub fn snapshot(&self) -> Option<Joining> {
        let built = self.snapshot.built();
        let after = built.as_ref().and_then(|built| {
            let changed = self.changes.since(built.revision)?.take(MANY + 1).count();
            if changed > FEW {
                self.snapshot.want();
            }
            (changed <= MANY).then(|| self.newest(built.revision, &[])).flatten()
        });
        match (built, after) {
            (Some(built), Some(after)) => Some(Joining { shared: built.frames.clone(), after }),
            _ => {
                self.snapshot.want();
                None
            }
        }
    }

    /// What is to be built for who joins; `None`: what there is will do.
    pub fn blueprint(&self) -> Option<Blueprint> {
        self.snapshot.blueprint(self.revision, self.cluster.table(), &self.own)
    }

    /// What was built is there for who joins.
    pub fn install(&self, built: Built) {
        self.snapshot.install(built);
    }

    /// Asks for that many bytes for somebody who joins, or has to be repaired.
    ///
    /// # Errors
    /// When he has to wait, and for how long.
    pub fn afford(&self, bytes: u64, now: Instant) -> Result<(), Duration> {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner).ask(bytes, now)
    }

    /// One who was let in was given so many more.
    pub fn charge(&self, bytes: u64, now: Instant) {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner).charge(bytes, now);
    }

    /// The frames of the newest values of what changed since a commit, for somebody who holds all that was up to it: of large
    /// services only the endpoints that changed. `None` where not all that was removed since is known any more.
    pub fn catch_up(&self, since: Revision) -> Option<Vec<Bytes>> {
        let table = self.cluster.table();
        let changes = self.changes.since(since)?.map(|key| {
            let held = table.get(key);
            let patch = held.and_then(|held| self.endpoints.patch(key, held, since));
            let whole = || held.map_or(Op::Removed, |held| Op::Put(held.clone()));
            Change { key: key.clone(), op: patch.unwrap_or_else(whole) }
        });
        Some(self.encode(Frames::new(&self.own), changes))
    }

    /// The frames of the newest values of what changed since a commit, and of the records that lists name so, all whole; `None`
    /// where not all that was removed since is known any more. Compressed, as it may be much.
    pub fn newest(&self, since: Revision, named: &[u64]) -> Option<Vec<Bytes>> {
        let mut keys: BTreeSet<&Arc<Key>> = self.changes.since(since)?.collect();
        keys.extend(named.iter().flat_map(|hash| self.snapshot.named(*hash)));
        let table = self.cluster.table();
        let changes = keys.into_iter().map(|key| {
            let op = table.get(key).map_or(Op::Removed, |held| Op::Put(held.clone()));
            Change { key: key.clone(), op }
        });
        Some(self.encode(Frames::compressed(&self.own), changes))
    }

    /// Frames that promise nothing before End.
    fn encode(&self, mut frames: Frames<'_>, changes: impl Iterator<Item = Change>) -> Vec<Bytes> {
        let mut changes = changes.peekable();
        if changes.peek().is_none() {
            return Vec::new();
        }
        for change in changes {
            frames.push(&change, self.cluster.table().get(&change.key));
        }
        frames.finish(Revision(0), &[])
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
