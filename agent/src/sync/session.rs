//! The agent's side of the stream, as a machine without a socket: frames in, a table and what changed in it out.
//!
//! Nothing of a stream is handed on before its End: between Begin and End all is staged, and thrown away if the stream
//! dies first.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use distributary_model::codec::{Decoder, Malformed, Told, messages};
use distributary_model::delta::Refused;
use distributary_model::limits::ENDPOINTS_PER_STREAM;
use distributary_model::{
    Change, Cursor, Epoch, Held, Interner, Key, Kind, Marks, Name, NodeView, Op, Revision, Service, Table,
    hash,
};
use distributary_proto::v1 as pb;
use pb::server_message::Message as FromServer;

use super::underway::{Delay, Underway};

/// What is to be programmed together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// The services that changed, as they are now; `None`: gone.
    pub services: BTreeMap<Arc<Key>, Option<Arc<Service>>>,
    /// The agent's Node, where it changed: `Some(None)` where the source has none.
    pub node: Option<Option<NodeView>>,
    /// Where the agent stands with this batch.
    pub cursor: Option<Cursor>,
    /// What is measured on its way to the kernel.
    pub underway: Underway,
}

impl Batch {
    /// Takes a later batch in.
    pub fn merge(&mut self, later: Self) {
        for key in later.gone() {
            self.underway.forget(key);
        }
        self.underway.merge(later.underway);
        self.services.extend(later.services);
        self.node = later.node.or(self.node.take());
        self.cursor = later.cursor.or(self.cursor);
    }

    /// The services that are gone.
    pub fn gone(&self) -> impl Iterator<Item = &Key> {
        self.services.iter().filter(|(_, service)| service.is_none()).map(|(key, _)| &**key)
    }
}

/// What a message of the server meant.
#[derive(Debug, PartialEq)]
pub enum Heard {
    /// Nothing to do.
    Nothing,
    /// Something to program. The first of a stream comes with its End.
    Batch(Batch),
    /// The server lives, and its sources were last known to be up to date so long ago.
    Staleness(Duration),
    /// The server asks to try again later, or elsewhere; it ends the stream.
    Throttle {
        /// Not before.
        retry_after: Duration,
        /// Why.
        reason: String,
        /// The server is behind what this agent holds.
        behind: bool,
    },
}

/// Why a stream cannot go on. What is held stays; the next stream begins with a snapshot.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failed {
    /// The server broke the contract.
    #[error("protocol error: {0}")]
    Malformed(#[from] Malformed),
    /// A change does not fit what is held.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The table is not the server's.
    #[error("the records of cluster {cluster} have the root {ours}, the server's have {theirs}")]
    Root {
        /// Of these records.
        cluster: Name,
        /// What is held.
        ours: hash::Hash,
        /// What the server has.
        theirs: hash::Hash,
    },
}

/// What the agent holds, and where its stream stands.
#[derive(Debug)]
pub struct Session {
    cluster: Name,
    node: Name,
    table: Table,
    node_view: Option<NodeView>,
    cursor: Option<Cursor>,
    marks: Marks,
    decoder: Decoder,
    names: Interner,
    phase: Phase,
    /// Services that changed in the table and were not handed on yet. Outlives streams: what a broken one had changed is
    /// handed on with the next End.
    open: BTreeSet<Arc<Key>>,
    /// What is measured of them. Does not outlive the stream: what follows it measures how long there was none.
    underway: Underway,
    delay: Delay,
}

#[derive(Debug)]
enum Phase {
    /// Before the stream's first Begin.
    Closed,
    Staging {
        epoch: Epoch,
        staged: Staged,
        marks: Marks,
        node: Option<NodeView>,
    },
    Live {
        epoch: Epoch,
    },
}

#[derive(Debug)]
enum Staged {
    /// To be applied to the table, in order.
    Resume(Vec<Change>),
    /// To be the table.
    Snapshot { records: BTreeMap<Arc<Key>, Held>, endpoints: usize },
}

impl Session {
    /// Of an agent that holds nothing.
    pub fn new(cluster: Name, node: Name) -> Self {
        Self {
            decoder: Decoder::new(cluster.clone()),
            cluster,
            node,
            table: Table::default(),
            node_view: None,
            cursor: None,
            marks: Marks::default(),
            names: Interner::default(),
            phase: Phase::Closed,
            open: BTreeSet::new(),
            underway: Underway::default(),
            delay: Delay::default(),
        }
    }

    /// Everything that is held.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// Whether a stream is past its End.
    pub fn is_live(&self) -> bool {
        matches!(self.phase, Phase::Live { .. })
    }

    /// Begins another stream: forgets what was staged, and introduces the agent.
    pub fn hello(&mut self, parked: Vec<pb::Rejection>, accept_older: bool) -> pb::AgentMessage {
        self.phase = Phase::Closed;
        self.decoder.reset(self.cluster.clone());
        let buckets =
            self.table.clusters().map(|(cluster, digest)| messages::buckets(cluster, digest, &self.cluster));
        let hello = pb::Hello {
            cluster: self.cluster.to_string(),
            node: self.node.to_string(),
            role: pb::Role::Agent.into(),
            scope: pb::Scope::All.into(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            schema: hash::SCHEMA,
            marks: messages::marks(&self.marks, &self.cluster),
            accept_older,
            parked,
            cursor: self.cursor.map(messages::cursor),
            buckets: buckets.collect(),
        };
        pb::AgentMessage { message: Some(pb::agent_message::Message::Hello(hello)) }
    }

    /// Takes in what the server said, received at that moment.
    ///
    /// # Errors
    /// When the stream cannot go on. The cursor is void then, so that the next one begins with a snapshot.
    pub fn on(&mut self, message: pb::ServerMessage, received: Instant) -> Result<Heard, Failed> {
        let heard = self.heard(message, received);
        if heard.is_err() {
            self.cursor = None;
            self.phase = Phase::Closed;
        }
        heard
    }

    fn heard(&mut self, message: pb::ServerMessage, received: Instant) -> Result<Heard, Failed> {
        match message.message {
            Some(FromServer::Begin(begin)) => self.begin(&begin),
            Some(FromServer::Node(node)) => self.node(node),
            Some(FromServer::Frame(frame)) => self.frame(frame, received),
            Some(FromServer::End(end)) => self.end(&end),
            Some(FromServer::Heartbeat(heartbeat)) => self.heartbeat(&heartbeat, received),
            Some(FromServer::Throttle(throttle)) => Ok(Heard::Throttle {
                retry_after: Duration::from_millis(throttle.retry_after_millis.min(60_000)),
                reason: throttle.reason,
                behind: throttle.behind,
            }),
            // Moving before the stream ends and comparing buckets are offers; who passes them over gets a snapshot.
            Some(FromServer::Drain(_) | FromServer::BucketLists(_)) | None => Ok(Heard::Nothing),
        }
    }

    fn begin(&mut self, begin: &pb::Begin) -> Result<Heard, Failed> {
        if matches!(self.phase, Phase::Staging { .. }) {
            return Err(Malformed::new("a Begin before the End of the last one").into());
        }
        if *begin.cluster != *self.cluster {
            return Err(Malformed::new(format!(
                "the server's own cluster is {:?}, this agent's is {:?}: check --cluster-id on both",
                begin.cluster, self.cluster
            ))
            .into());
        }
        if begin.schema != hash::SCHEMA {
            let theirs = begin.schema;
            return Err(Malformed::new(format!("schema {theirs}, this agent knows {}", hash::SCHEMA)).into());
        }
        let staged = match begin.mode() {
            pb::begin::Mode::Resume if self.cursor.is_some() => Staged::Resume(Vec::new()),
            pb::begin::Mode::Resume => return Err(Malformed::new("a resume that was not asked for").into()),
            pb::begin::Mode::Snapshot => Staged::Snapshot { records: BTreeMap::new(), endpoints: 0 },
            pb::begin::Mode::Repair => return Err(Malformed::new("a repair that was not asked for").into()),
        };
        let epoch = messages::epoch_from(&begin.epoch)?;
        // The last record of what a Begin interrupts may be half said.
        self.decoder.reset(self.cluster.clone());
        (self.underway, self.delay) = Default::default();
        self.phase = Phase::Staging { epoch, staged, marks: Marks::default(), node: None };
        Ok(Heard::Nothing)
    }

    fn node(&mut self, message: pb::Node) -> Result<Heard, Failed> {
        let told = messages::node_from(message)?;
        match &mut self.phase {
            Phase::Closed => Err(Malformed::new("a Node before Begin").into()),
            Phase::Staging { node, .. } => {
                *node = told;
                Ok(Heard::Nothing)
            }
            Phase::Live { .. } if self.node_view == told => Ok(Heard::Nothing),
            Phase::Live { .. } => {
                self.node_view.clone_from(&told);
                Ok(Heard::Batch(Batch { node: Some(told), ..Batch::default() }))
            }
        }
    }

    fn frame(&mut self, frame: pb::Frame, received: Instant) -> Result<Heard, Failed> {
        let (through, sent) = (Revision(frame.through), frame.sent);
        let moved = messages::marks_from(&frame.marks, &self.cluster, &mut self.names)?;
        let changes = self.decoder.frame(frame)?;
        match &mut self.phase {
            Phase::Closed => Err(Malformed::new("a Frame before Begin").into()),
            Phase::Staging { staged, marks, .. } => {
                moved.into_iter().for_each(|mark| marks.set(mark));
                for Told { change, ages: _ } in changes {
                    staged.take_in(change, &self.table)?;
                }
                Ok(Heard::Nothing)
            }
            Phase::Live { epoch } => {
                let encoded = received.checked_sub(self.delay.of(sent, received));
                for Told { change, ages } in changes {
                    self.table.apply(&change)?;
                    self.underway.add(&change.key, &ages, encoded.unwrap_or(received));
                    self.open.insert(change.key);
                }
                at_most(self.table.endpoints())?;
                moved.into_iter().for_each(|mark| self.marks.set(mark));
                if through == Revision(0) {
                    return Ok(Heard::Nothing);
                }
                let cursor = Cursor { epoch: *epoch, through };
                self.cursor = Some(cursor);
                let touched = std::mem::take(&mut self.open);
                let underway = std::mem::take(&mut self.underway);
                Ok(Heard::Batch(Batch { underway, ..self.batch(touched, None, cursor) }))
            }
        }
    }

    fn end(&mut self, end: &pb::End) -> Result<Heard, Failed> {
        let Phase::Staging { epoch, staged, marks, node } = std::mem::replace(&mut self.phase, Phase::Closed)
        else {
            return Err(Malformed::new("an End without Begin").into());
        };
        match staged {
            Staged::Resume(changes) => {
                for change in changes {
                    self.table.apply(&change)?;
                    self.open.insert(change.key);
                }
            }
            Staged::Snapshot { records, .. } => self.replace(records, &end.sources),
        }
        self.compare_roots(&end.sources)?;
        marks.iter().for_each(|mark| self.marks.set(mark));
        let moved = messages::marks_from(&end.marks, &self.cluster, &mut self.names)?;
        moved.into_iter().for_each(|mark| self.marks.set(mark));
        let cursor = Cursor { epoch, through: Revision(end.revision) };
        self.cursor = Some(cursor);
        self.node_view.clone_from(&node);
        self.phase = Phase::Live { epoch };
        let touched = std::mem::take(&mut self.open);
        Ok(Heard::Batch(self.batch(touched, Some(node), cursor)))
    }

    /// Makes a snapshot the table. Only records of complete sources may be dropped.
    fn replace(&mut self, records: BTreeMap<Arc<Key>, Held>, sources: &[pb::SourceState]) {
        let complete: BTreeSet<&str> = sources
            .iter()
            .filter(|source| source.complete)
            .map(|source| if source.cluster.is_empty() { &*self.cluster } else { &*source.cluster })
            .collect();
        let gone: Vec<Arc<Key>> = self
            .table
            .iter()
            .map(|(key, _)| key)
            .filter(|key| complete.contains(&*key.cluster) && !records.contains_key(*key))
            .cloned()
            .collect();
        for key in gone {
            self.table.set(&key, None);
            self.open.insert(key);
        }
        for (key, held) in records {
            if self.table.get(&key).is_none_or(|old| old.hash != held.hash) {
                self.table.set(&key, Some(held));
                self.open.insert(key);
            }
        }
    }

    fn heartbeat(&mut self, heartbeat: &pb::Heartbeat, received: Instant) -> Result<Heard, Failed> {
        let Phase::Live { .. } = self.phase else {
            return Err(Malformed::new("a Heartbeat before End").into());
        };
        self.delay.of(heartbeat.sent, received);
        if self.cursor.is_some_and(|cursor| cursor.through == Revision(heartbeat.revision)) {
            self.compare_roots(&heartbeat.sources)?;
            let moved = messages::marks_from(&heartbeat.marks, &self.cluster, &mut self.names)?;
            moved.into_iter().for_each(|mark| self.marks.set(mark));
        }
        let stalest = heartbeat.sources.iter().map(|source| source.staleness_millis).max();
        Ok(Heard::Staleness(Duration::from_millis(stalest.unwrap_or(0))))
    }

    fn compare_roots(&self, sources: &[pb::SourceState]) -> Result<(), Failed> {
        for source in sources.iter().filter(|source| source.complete) {
            let cluster =
                if source.cluster.is_empty() { self.cluster.clone() } else { source.cluster.as_str().into() };
            let (ours, theirs) = (self.table.root(&cluster), messages::root_from(&source.root)?);
            if ours != theirs {
                return Err(Failed::Root { cluster, ours, theirs });
            }
        }
        Ok(())
    }

    fn batch(&self, touched: BTreeSet<Arc<Key>>, node: Option<Option<NodeView>>, cursor: Cursor) -> Batch {
        let service = |held: &Held| held.record.as_service().cloned();
        let services = touched
            .into_iter()
            .filter(|key| key.kind == Kind::Service)
            .map(|key| {
                let now = self.table.get(&key).and_then(service);
                (key, now)
            })
            .collect();
        Batch { services, node, cursor: Some(cursor), underway: Underway::default() }
    }
}

impl Staged {
    fn take_in(&mut self, change: Change, table: &Table) -> Result<(), Failed> {
        match self {
            Self::Resume(changes) => changes.push(change),
            Self::Snapshot { records, endpoints } => match change.op {
                Op::Put(new) => {
                    let ours = hash::record(&change.key, &new.record);
                    if ours != new.hash {
                        return Err(Refused::Hash { key: change.key, ours, theirs: new.hash }.into());
                    }
                    *endpoints += new.record.endpoints();
                    at_most(*endpoints)?;
                    // What is held already is not held twice while the rest comes.
                    let same = table.get(&change.key).filter(|held| held.hash == new.hash).cloned();
                    records.insert(change.key, same.unwrap_or(new));
                }
                Op::Patch { .. } | Op::Removed => {
                    return Err(Malformed::new(format!("a snapshot with a patch of {}", change.key)).into());
                }
            },
        }
        Ok(())
    }
}

/// Stream rule 1.5.
fn at_most(endpoints: usize) -> Result<(), Malformed> {
    match endpoints > ENDPOINTS_PER_STREAM {
        true => {
            Err(Malformed::new(format!("{endpoints} endpoints, where {ENDPOINTS_PER_STREAM} are the limit")))
        }
        false => Ok(()),
    }
}
