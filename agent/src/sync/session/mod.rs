//! The agent's side of the stream, as a machine without a socket: frames in, a table and what changed in it out.
//!
//! Nothing of a stream is handed on before its End: between Begin and End all is staged, and thrown away if the stream
//! dies first. To move, a second stream is opened [beside](Session::hello_beside) the current one, which goes on until
//! the other has reached its End.

mod batch;
mod lists;
mod stage;
mod withheld;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use distributary_model::codec::{Decoder, Malformed, Told, messages};
use distributary_model::delta::Refused;
use distributary_model::limits::{LIST, STRING_BYTES};
use distributary_model::{
    Candidate, Cursor, Epoch, Held, Interner, Key, Kind, Marks, Name, NodeView, Record, Revision, Table, hash,
};
use distributary_proto::v1 as pb;
use pb::server_message::Message as FromServer;

use super::underway::{Delay, Underway};
use lists::Index;
use stage::{Base, Ended, Mode, Stage, at_most};

pub use batch::Batch;
pub use withheld::{Kept, Withheld};

/// So long removals that were only inferred are held by default.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What a message of the server meant.
#[derive(Debug, PartialEq)]
pub enum Heard {
    /// Nothing to do.
    Nothing,
    /// Something to program. The first of a stream comes with its End.
    Batch(Batch),
    /// The same; and the stream that was beside is the current one from now on.
    Moved(Batch),
    /// Something to answer.
    Say(pb::AgentMessage),
    /// The server lives, and its sources were last known to be up to date so long ago.
    Staleness(Duration),
    /// The same, and its records are not those that are held.
    Differs {
        /// How stale the sources are.
        staleness: Duration,
        /// What differs.
        reason: String,
    },
    /// The server asks to try again later, or elsewhere; it ends the stream.
    Throttle {
        /// Not before.
        retry_after: Duration,
        /// Why.
        reason: String,
        /// The server is behind what this agent holds.
        behind: bool,
    },
    /// The server asks to move.
    Drain {
        /// Not before.
        slot: Duration,
        /// Why.
        reason: String,
        /// The server is itself among those where to move.
        candidates: Vec<Candidate>,
    },
}

/// Why a stream cannot go on. What is held stays.
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

/// What an earlier process of the agent held.
#[derive(Debug, Default)]
pub struct Restored {
    /// The records.
    pub table: Table,
    /// What was programmed beyond them.
    pub kept: Vec<(Arc<Key>, Kept)>,
    /// The Node.
    pub node: Option<NodeView>,
    /// Where it stood.
    pub cursor: Option<Cursor>,
    /// How far its sources were included.
    pub marks: Marks,
    /// The servers that it knew.
    pub candidates: Vec<Candidate>,
}

/// What the agent holds, and where its streams stand.
#[derive(Debug)]
pub struct Session {
    cluster: Name,
    node: Name,
    table: Table,
    node_view: Option<NodeView>,
    cursor: Option<Cursor>,
    marks: Marks,
    candidates: Vec<Candidate>,
    names: Interner,
    current: Stream,
    beside: Option<Stream>,
    /// What changed in the table since the last Hello, and what it was then.
    since: BTreeMap<Arc<Key>, Option<Held>>,
    /// Services that changed in the table and were not handed on yet. Outlives streams: what a broken one had changed is
    /// handed on with the next End.
    open: BTreeSet<Arc<Key>>,
    /// What is measured of them. Does not outlive the stream: what follows it measures how long there was none.
    underway: Underway,
    withheld: Withheld,
    /// Something was handed on. Before, nothing less than everything may be.
    handed_on: bool,
    /// What is held led to another root than the server's, although all that differed was sent: nothing of it is claimed
    /// to the next server.
    distrusted: bool,
}

#[derive(Debug)]
struct Stream {
    decoder: Decoder,
    delay: Delay,
    phase: Phase,
    /// It began beside another one, which may have led further than what its server was told of: it waits for the marks.
    waits: bool,
}

#[derive(Debug)]
enum Phase {
    /// Before the stream's first Begin.
    Closed,
    Staging(Box<Stage>, Option<Index>),
    Live(Epoch),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lane {
    Current,
    Beside,
}

impl Stream {
    fn new(cluster: &Name) -> Self {
        let (decoder, delay) = (Decoder::new(cluster.clone()), Delay::default());
        Self { decoder, delay, phase: Phase::Closed, waits: false }
    }
}

impl Session {
    /// Of an agent that holds nothing.
    pub fn new(cluster: Name, node: Name) -> Self {
        Self {
            current: Stream::new(&cluster),
            cluster,
            node,
            table: Table::default(),
            node_view: None,
            cursor: None,
            marks: Marks::default(),
            candidates: Vec::new(),
            names: Interner::default(),
            beside: None,
            since: BTreeMap::new(),
            open: BTreeSet::new(),
            underway: Underway::default(),
            withheld: Withheld::new(PATIENCE),
            handed_on: false,
            distrusted: false,
        }
    }

    /// Holds removals that were only inferred for so long; zero: not at all.
    #[must_use]
    pub fn patient(self, patience: Duration) -> Self {
        Self { withheld: Withheld::new(patience), ..self }
    }

    /// Goes on from what an earlier process held. None of it was handed on yet.
    #[must_use]
    pub fn from(self, restored: Restored) -> Self {
        let Restored { table, kept, node, cursor, marks, candidates } = restored;
        let keys = table.iter().map(|(key, _)| key).chain(kept.iter().map(|(key, _)| key));
        let open = keys.cloned().collect();
        let mut withheld = self.withheld;
        kept.into_iter().for_each(|(key, kept)| withheld.restore(key, kept));
        Self { table, node_view: node, cursor, marks, candidates, open, withheld, ..self }
    }

    /// The agent's own cluster.
    pub fn cluster(&self) -> &Name {
        &self.cluster
    }

    /// Everything that is held.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// What is programmed beyond that.
    pub fn withheld(&self) -> &Withheld {
        &self.withheld
    }

    /// The agent's Node, as it was last told.
    pub fn node_view(&self) -> Option<&NodeView> {
        self.node_view.as_ref()
    }

    /// Where the agent stands.
    pub fn cursor(&self) -> Option<Cursor> {
        self.cursor
    }

    /// How far the sources are included in what is held.
    pub fn marks(&self) -> &Marks {
        &self.marks
    }

    /// The servers that were named last.
    pub fn candidates(&self) -> &[Candidate] {
        &self.candidates
    }

    /// Whether the current stream is past its End.
    pub fn is_live(&self) -> bool {
        matches!(self.current.phase, Phase::Live(_))
    }

    /// Whether the current stream is between Begin and End.
    pub fn is_staging(&self) -> bool {
        matches!(self.current.phase, Phase::Staging(..))
    }

    /// Since when the current stream has ended what it began with, and waits to be no older than what is held.
    pub fn waits_since(&self) -> Option<Instant> {
        match &self.current.phase {
            Phase::Staging(stage, _) => stage.ended.as_ref().map(|ended| ended.at),
            _ => None,
        }
    }

    /// Whether there is a stream beside the current one.
    pub fn has_beside(&self) -> bool {
        self.beside.is_some()
    }

    /// Whether the stream beside has begun: the current one is not to be read meanwhile (stream rule 4.3).
    pub fn is_moving(&self) -> bool {
        matches!(&self.beside, Some(Stream { phase: Phase::Staging(..), .. }))
    }

    /// Begins another stream: forgets what was staged, and introduces the agent.
    pub fn hello(&mut self, parked: Vec<pb::Rejection>, accept_older: bool) -> pb::AgentMessage {
        self.current = Stream::new(&self.cluster);
        self.beside = None;
        self.introduce(parked, accept_older)
    }

    /// Begins a stream beside the current one, to move to.
    pub fn hello_beside(&mut self, parked: Vec<pb::Rejection>) -> pb::AgentMessage {
        self.beside = Some(Stream { waits: true, ..Stream::new(&self.cluster) });
        self.introduce(parked, false)
    }

    /// The stream beside is gone, and what it staged.
    pub fn drop_beside(&mut self) {
        self.beside = None;
    }

    /// The current stream is gone; the one beside goes on in its place.
    pub fn promote(&mut self) {
        self.current = self.beside.take().unwrap_or_else(|| Stream::new(&self.cluster));
    }

    fn introduce(&mut self, parked: Vec<pb::Rejection>, accept_older: bool) -> pb::AgentMessage {
        self.since.clear();
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
            buckets: if self.distrusted { Vec::new() } else { self.buckets() },
        };
        pb::AgentMessage { message: Some(pb::agent_message::Message::Hello(hello)) }
    }

    /// Asks for a comparison inside the current stream.
    pub fn repair(&self, reason: String) -> pb::AgentMessage {
        let repair = pb::Repair { reason, buckets: self.buckets() };
        pb::AgentMessage { message: Some(pb::agent_message::Message::Repair(repair)) }
    }

    fn buckets(&self) -> Vec<pb::Buckets> {
        let clusters = self.table.clusters();
        clusters.map(|(cluster, digest)| messages::buckets(cluster, digest, &self.cluster)).collect()
    }

    /// Takes in what the current stream's server said, received at that moment.
    ///
    /// # Errors
    /// When the stream cannot go on. The cursor is void then.
    pub fn on(&mut self, message: pb::ServerMessage, received: Instant) -> Result<Heard, Failed> {
        let mut stream = std::mem::replace(&mut self.current, Stream::new(&self.cluster));
        let heard = self.heard(&mut stream, Lane::Current, message, received);
        match &heard {
            Ok(_) => self.current = stream,
            Err(failed) => {
                self.cursor = None;
                // A repair that ends in another root has not found what differs.
                let repaired =
                    matches!(&stream.phase, Phase::Staging(stage, _) if stage.mode == Mode::Repair);
                self.distrusted |= repaired && matches!(failed, Failed::Root { .. });
            }
        }
        heard
    }

    /// Takes in what the server of the stream beside said.
    ///
    /// # Errors
    /// When that stream cannot go on. It is dropped, and what is held is what it was.
    pub fn on_beside(&mut self, message: pb::ServerMessage, received: Instant) -> Result<Heard, Failed> {
        let Some(mut stream) = self.beside.take() else { return Ok(Heard::Nothing) };
        let heard = self.heard(&mut stream, Lane::Beside, message, received)?;
        match heard {
            Heard::Moved(_) => self.current = stream,
            _ => self.beside = Some(stream),
        }
        Ok(heard)
    }

    fn heard(
        &mut self,
        stream: &mut Stream,
        lane: Lane,
        message: pb::ServerMessage,
        received: Instant,
    ) -> Result<Heard, Failed> {
        match message.message {
            Some(FromServer::Begin(begin)) => self.begin(stream, lane, begin),
            Some(FromServer::Node(node)) => self.node(stream, node),
            Some(FromServer::Frame(frame)) => self.frame(stream, lane, frame, received),
            Some(FromServer::BucketLists(lists)) => self.lists(stream, lists),
            Some(FromServer::End(end)) => self.end(stream, lane, end, received),
            Some(FromServer::Heartbeat(heartbeat)) => self.heartbeat(stream, lane, heartbeat, received),
            Some(FromServer::Throttle(throttle)) => {
                self.named(throttle.candidates)?;
                Ok(Heard::Throttle {
                    retry_after: Duration::from_millis(throttle.retry_after_millis.min(60_000)),
                    reason: cut(throttle.reason),
                    behind: throttle.behind,
                })
            }
            Some(FromServer::Drain(drain)) => {
                let candidates = self.named(drain.candidates)?;
                let slot = Duration::from_millis(drain.slot_millis.min(3_600_000));
                Ok(Heard::Drain { slot, reason: cut(drain.reason), candidates })
            }
            None => Ok(Heard::Nothing),
        }
    }

    /// Takes note of servers. None at all says nothing.
    fn named(&mut self, candidates: Vec<pb::Candidate>) -> Result<Vec<Candidate>, Failed> {
        let candidates = messages::candidates_from(candidates)?;
        if !candidates.is_empty() {
            self.candidates.clone_from(&candidates);
        }
        Ok(candidates)
    }

    fn begin(&mut self, stream: &mut Stream, lane: Lane, begin: pb::Begin) -> Result<Heard, Failed> {
        if let Phase::Staging(stage, _) = &stream.phase {
            // What has ended and waits for later marks may be said anew, as a whole.
            let whole = begin.mode() == pb::begin::Mode::Snapshot;
            if stage.ended.is_none() {
                return Err(Malformed::new("a Begin before the End of the last one").into());
            } else if !whole {
                return Err(Malformed::new("the move was begun anew with less than everything").into());
            }
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
        let live = matches!(stream.phase, Phase::Live(_));
        let mode = match begin.mode() {
            pb::begin::Mode::Resume if self.cursor.is_some() => Mode::Resume,
            pb::begin::Mode::Resume => return Err(Malformed::new("a resume that was not asked for").into()),
            pb::begin::Mode::Snapshot => Mode::Snapshot,
            pb::begin::Mode::Repair => Mode::Repair,
        };
        let epoch = messages::epoch_from(&begin.epoch)?;
        self.named(begin.candidates)?;
        if live {
            self.since.clear();
        }
        if lane == Lane::Current {
            // Two stages of one table would not agree.
            self.beside = None;
            self.underway = Underway::default();
        }
        // The last record of what a Begin interrupts may be half said.
        stream.decoder.reset(self.cluster.clone());
        stream.delay = Delay::default();
        stream.phase = Phase::Staging(Box::new(Stage::new(epoch, mode)), None);
        Ok(Heard::Nothing)
    }

    fn node(&mut self, stream: &mut Stream, message: pb::Node) -> Result<Heard, Failed> {
        let told = messages::node_from(message)?;
        match &mut stream.phase {
            Phase::Closed => Err(Malformed::new("a Node before Begin").into()),
            Phase::Staging(stage, _) => {
                stage.node = told;
                Ok(Heard::Nothing)
            }
            Phase::Live(_) if self.node_view == told => Ok(Heard::Nothing),
            Phase::Live(_) => {
                self.node_view.clone_from(&told);
                Ok(Heard::Batch(Batch { node: Some(told), ..Batch::default() }))
            }
        }
    }

    fn frame(
        &mut self,
        stream: &mut Stream,
        lane: Lane,
        frame: pb::Frame,
        received: Instant,
    ) -> Result<Heard, Failed> {
        let (through, sent) = (Revision(frame.through), frame.sent);
        let moved = messages::marks_from(&frame.marks, &self.cluster, &mut self.names)?;
        let changes = stream.decoder.frame(frame)?;
        match &mut stream.phase {
            Phase::Closed => Err(Malformed::new("a Frame before Begin").into()),
            Phase::Staging(stage, _) => {
                moved.into_iter().for_each(|mark| stage.marks.set(mark));
                let base = Base { table: &self.table, since: &self.since };
                for Told { change, ages: _ } in changes {
                    stage.take_in(change, base)?;
                }
                match &mut stage.ended {
                    Some(ended) => {
                        ended.revision = if through == Revision(0) { ended.revision } else { through };
                        ended.whole = through != Revision(0);
                        self.caught_up(stream, lane, &[], received)
                    }
                    None => Ok(Heard::Nothing),
                }
            }
            Phase::Live(epoch) => {
                let cursor = Cursor { epoch: *epoch, through };
                let encoded = received.checked_sub(stream.delay.of(sent, received)).unwrap_or(received);
                for Told { change, ages } in changes {
                    let was = self.table.get(&change.key).cloned();
                    self.table.apply(&change)?;
                    let is = self.table.get(&change.key);
                    self.open.extend(self.withheld.said(&change.key, was.as_ref(), is));
                    if self.beside.is_some() {
                        self.since.entry(change.key.clone()).or_insert(was);
                    }
                    self.underway.add(&change.key, &ages, encoded);
                    self.open.insert(change.key);
                }
                at_most(self.table.endpoints())?;
                moved.into_iter().for_each(|mark| self.marks.set(mark));
                if through == Revision(0) {
                    return Ok(Heard::Nothing);
                }
                self.cursor = Some(cursor);
                let touched = std::mem::take(&mut self.open);
                let underway = std::mem::take(&mut self.underway);
                Ok(Heard::Batch(Batch { underway, ..self.batch(touched, None, Some(cursor)) }))
            }
        }
    }

    /// Answers lists with what is lacking, also where that is nothing: the server counts the answers.
    fn lists(&mut self, stream: &mut Stream, lists: pb::BucketLists) -> Result<Heard, Failed> {
        let lists = messages::bucket_lists_from(lists, &self.cluster)?;
        let Phase::Staging(stage, index) = &mut stream.phase else {
            return Err(Malformed::new("BucketLists outside of a repair").into());
        };
        if stage.mode != Mode::Repair || stage.ended.is_some() {
            return Err(Malformed::new("BucketLists outside of a repair").into());
        }
        let base = Base { table: &self.table, since: &self.since };
        let index = index.get_or_insert_with(|| Index::of(base));
        let mut wanted: BTreeMap<Name, Vec<u64>> = BTreeMap::new();
        for list in &lists {
            let lacking = index.compare(list, stage);
            if !lacking.is_empty() {
                wanted.entry(list.cluster.clone()).or_default().extend(lacking);
            }
        }
        let want = messages::want(&wanted, &self.cluster);
        Ok(Heard::Say(pb::AgentMessage { message: Some(pb::agent_message::Message::Want(want)) }))
    }

    fn end(
        &mut self,
        stream: &mut Stream,
        lane: Lane,
        end: pb::End,
        received: Instant,
    ) -> Result<Heard, Failed> {
        let Phase::Staging(stage, _) = &mut stream.phase else {
            return Err(Malformed::new("an End without Begin").into());
        };
        if stage.ended.is_some() {
            return Err(Malformed::new("a second End").into());
        }
        if lane == Lane::Beside && end.sources.is_empty() {
            return Err(Malformed::new("the move was cut short").into());
        }
        let moved = messages::marks_from(&end.marks, &self.cluster, &mut self.names)?;
        moved.into_iter().for_each(|mark| stage.marks.set(mark));
        let roots = self.roots(&end.sources)?;
        let complete = roots.iter().map(|(cluster, _)| cluster.clone()).collect();
        let ended = Ended { revision: Revision(end.revision), complete, whole: true, at: received };
        stage.ended = Some(ended);
        if stream.waits && stage.marks.behind(&self.marks) {
            let before = self.change(stage, &roots)?;
            self.take_back(before);
            return Ok(Heard::Nothing);
        }
        self.caught_up(stream, lane, &roots, received)
    }

    /// Folds what is staged and ended, unless it is older than what is held: then the stream goes on beside until it is
    /// not (stream rule 2.2).
    fn caught_up(
        &mut self,
        stream: &mut Stream,
        lane: Lane,
        roots: &[(Name, hash::Hash)],
        now: Instant,
    ) -> Result<Heard, Failed> {
        let Phase::Staging(stage, _) = &stream.phase else { return Ok(Heard::Nothing) };
        let Some(ended) = &stage.ended else { return Ok(Heard::Nothing) };
        if !ended.whole || (stream.waits && stage.marks.behind(&self.marks)) {
            return Ok(Heard::Nothing);
        }
        let before = self.change(stage, roots)?;
        let (epoch, node) = (stage.epoch, stage.node.clone());
        let settled = self.withheld.folded(&self.table, &before, stage, now);
        stage.marks.iter().for_each(|mark| self.marks.set(mark));
        let cursor = Cursor { epoch, through: ended.revision };
        self.cursor = Some(cursor);
        self.node_view.clone_from(&node);
        self.since.clear();
        self.distrusted = false;
        stream.phase = Phase::Live(epoch);
        stream.waits = false;
        let differs = |(key, was): &(&Arc<Key>, &Option<Held>)| {
            self.table.get(key).map(|held| held.hash) != was.as_ref().map(|held| held.hash)
        };
        let mut touched = std::mem::take(&mut self.open);
        touched.extend(before.iter().filter(differs).map(|(key, _)| key.clone()));
        touched.extend(settled);
        self.handed_on = true;
        let batch = self.batch(touched, Some(node), Some(cursor));
        match lane {
            Lane::Current => Ok(Heard::Batch(batch)),
            Lane::Beside => {
                self.underway = Underway::default();
                Ok(Heard::Moved(batch))
            }
        }
    }

    /// Makes the table what is staged; gives what the records were. An error leaves it as it was.
    fn change(
        &mut self,
        stage: &Stage,
        roots: &[(Name, hash::Hash)],
    ) -> Result<BTreeMap<Arc<Key>, Option<Held>>, Failed> {
        let changes = stage.fold(Base { table: &self.table, since: &self.since });
        let mut before = BTreeMap::new();
        for (key, held) in changes {
            let was = self.table.set(&key, held);
            before.insert(key, was);
        }
        let checked = at_most(self.table.endpoints()).map_err(Failed::from);
        match checked.and_then(|()| self.compare(roots)) {
            Ok(()) => Ok(before),
            Err(failed) => {
                self.take_back(before);
                Err(failed)
            }
        }
    }

    fn take_back(&mut self, before: BTreeMap<Arc<Key>, Option<Held>>) {
        for (key, was) in before {
            self.table.set(&key, was);
        }
    }

    fn heartbeat(
        &mut self,
        stream: &mut Stream,
        lane: Lane,
        heartbeat: pb::Heartbeat,
        received: Instant,
    ) -> Result<Heard, Failed> {
        let staleness = stalest(&heartbeat.sources);
        let moved = messages::marks_from(&heartbeat.marks, &self.cluster, &mut self.names)?;
        let revision = Revision(heartbeat.revision);
        match &mut stream.phase {
            Phase::Live(_) => {
                stream.delay.of(heartbeat.sent, received);
                if self.cursor.is_some_and(|cursor| cursor.through == revision) {
                    let roots = self.roots(&heartbeat.sources)?;
                    if let Err(failed) = self.compare(&roots) {
                        return Ok(Heard::Differs { staleness, reason: failed.to_string() });
                    }
                    moved.into_iter().for_each(|mark| self.marks.set(mark));
                }
                Ok(Heard::Staleness(staleness))
            }
            Phase::Staging(stage, _) => match &stage.ended {
                Some(ended) if ended.revision == revision && ended.whole => {
                    moved.into_iter().for_each(|mark| stage.marks.set(mark));
                    let roots = self.roots(&heartbeat.sources)?;
                    self.caught_up(stream, lane, &roots, received)
                }
                Some(_) => Ok(Heard::Nothing),
                None => Err(Malformed::new("a Heartbeat before End").into()),
            },
            Phase::Closed => Err(Malformed::new("a Heartbeat before End").into()),
        }
    }

    /// The roots of complete sources.
    fn roots(&mut self, sources: &[pb::SourceState]) -> Result<Vec<(Name, hash::Hash)>, Failed> {
        messages::at_most(sources.len(), LIST, "sources")?;
        let mut roots = Vec::new();
        for source in sources.iter().filter(|source| source.complete) {
            let cluster = match source.cluster.is_empty() {
                true => self.cluster.clone(),
                false => {
                    messages::at_most(source.cluster.len(), STRING_BYTES, "bytes of a string")?;
                    self.names.name(&source.cluster)
                }
            };
            roots.push((cluster, messages::root_from(&source.root)?));
        }
        Ok(roots)
    }

    fn compare(&self, roots: &[(Name, hash::Hash)]) -> Result<(), Failed> {
        for (cluster, theirs) in roots {
            let ours = self.table.root(cluster);
            if ours != *theirs {
                return Err(Failed::Root { cluster: cluster.clone(), ours, theirs: *theirs });
            }
        }
        Ok(())
    }

    /// What is restored, to be programmed although no server was heard.
    pub fn hand_over(&mut self) -> Batch {
        let touched = std::mem::take(&mut self.open);
        self.handed_on = true;
        self.batch(touched, Some(self.node_view.clone()), self.cursor)
    }

    /// Whether something was handed on.
    pub fn has_handed_on(&self) -> bool {
        self.handed_on
    }

    /// Removals that were held long enough give way; what that changes is to be programmed.
    pub fn expire(&mut self, now: Instant) -> Option<Batch> {
        let touched = self.withheld.expire(now);
        self.let_go(touched)
    }

    /// All held removals give way.
    pub fn release(&mut self) -> Option<Batch> {
        let touched = self.withheld.release();
        self.let_go(touched)
    }

    fn let_go(&mut self, touched: BTreeSet<Arc<Key>>) -> Option<Batch> {
        if !self.handed_on {
            self.open.extend(touched);
            return None;
        }
        (!touched.is_empty()).then(|| self.batch(touched, None, None))
    }

    fn batch(
        &self,
        touched: BTreeSet<Arc<Key>>,
        node: Option<Option<NodeView>>,
        cursor: Option<Cursor>,
    ) -> Batch {
        let service = |held: &Held| held.record.as_service().cloned();
        let of_cluster = |key: &&Arc<Key>| key.kind == Kind::Facts && *key.cluster == *self.cluster;
        let service_cidrs =
            touched.iter().find(of_cluster).map(|key| match self.table.get(key).map(|held| &held.record) {
                Some(Record::Facts(facts)) => facts.service_cidrs.clone(),
                _ => Vec::new(),
            });
        let services = touched
            .into_iter()
            .filter(|key| key.kind == Kind::Service)
            .map(|key| {
                let withheld = self.withheld.get(&key).cloned();
                let now = withheld.or_else(|| self.table.get(&key).and_then(service));
                (key, now)
            })
            .collect();
        Batch { services, node, service_cidrs, cursor, underway: Underway::default() }
    }
}

/// What is for people, and no longer than they read.
fn cut(mut reason: String) -> String {
    reason.truncate(reason.floor_char_boundary(STRING_BYTES));
    reason
}

/// How stale the stalest source is.
pub fn stalest(sources: &[pb::SourceState]) -> Duration {
    let stalest = sources.iter().map(|source| source.staleness_millis).max();
    Duration::from_millis(stalest.unwrap_or(0))
}

#[cfg(test)]
mod tests;
