//! The server's side of one stream, as a machine without a socket.
//!
//! What the agent says goes in by [`Session::on`], what the server says is pulled by [`Session::next`] whenever the
//! stream can take it. So a slow agent costs a place in the log and no queue.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use distributary_model::codec::{Malformed, message, messages, millis};
use distributary_model::{Candidate, Cursor, Hash, Interner, Marks, Name, Revision, hash, limits};
use distributary_proto::v1 as pb;
use pb::agent_message::Message as FromAgent;
use pb::server_message::Message as FromServer;

use crate::journal::{Evicted, Joining, Journal, Logged};

/// How long an agent waits for this server to list or to catch up with the agent's marks, before it is sent on.
pub const PATIENCE: Duration = Duration::from_secs(3);
/// Pause that an agent is asked to make before it tries again.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Heartbeats come this often, ± 20 %.
pub const HEARTBEAT: Duration = Duration::from_secs(5);

/// What happens again and again to every agent is spread by ± 20 %.
const SPREAD: f64 = 0.4;
/// How long an agent may take to introduce itself.
pub const HELLO_WITHIN: Duration = Duration::from_secs(5);
/// Least time between two repairs of one stream.
pub const REPAIR_EVERY: Duration = Duration::from_secs(30);
/// How long an agent may take to say what it lacks of the lists of a repair.
pub const WANT_WITHIN: Duration = Duration::from_secs(30);
/// Who lacks no more than so many bytes of the log is told them; else the newest values may be less.
const CHEAP_RESUME: u64 = limits::FRAME_AIM_BYTES as u64;

/// Who has to be told no more than this has not to wait for it.
const FREE: u64 = limits::FRAME_AIM_BYTES as u64;

/// How a stream began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Began {
    /// From the agent's cursor.
    Resume,
    /// With lists of the buckets that differ.
    Repair,
    /// With everything.
    Snapshot,
}

/// What a message of the agent meant.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// The agent has introduced itself.
    Hello {
        /// Its node.
        node: Name,
    },
    /// The kernel of the node has everything up to this revision, but for the rejected records.
    Acked {
        /// Up to here.
        through: Revision,
        /// Receive to kernel, by the agent's clock.
        programming: Duration,
        /// The records that the kernel refused, with the reason.
        rejected: Vec<(String, String)>,
        /// What happened on the node that its operators should see.
        events: Vec<String>,
    },
    /// Nothing that this server does something with.
    Nothing,
}

/// Why a stream is ended by the server.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    /// The agent broke the contract.
    #[error("protocol error: {0}")]
    Malformed(#[from] Malformed),
    /// The agent wants what this server does not have.
    #[error("{0}")]
    Refused(String),
    /// The agent was told to try again or elsewhere.
    #[error("throttled: {0}")]
    Throttled(String),
}

/// The server's side of one stream.
#[derive(Debug)]
pub struct Session {
    phase: Phase,
    node: Name,
    /// What the agent was told of its Node, and how far the journal's nodes had changed then.
    node_told: (u64, Bytes),
    /// When the last repair was granted.
    repaired_at: Option<Instant>,
    heartbeat_at: Instant,
    /// Spreads what many do: 0 to 1.
    share: f64,
    /// The age at which the agent is asked to choose anew, and when that is; none: never.
    old: Option<(Duration, Instant)>,
    /// The agent was told that all are to go.
    told_to_leave: bool,
    /// A commit that was told whole since that was asked last, to an agent that follows.
    newly_told: Option<Revision>,
}

#[derive(Debug)]
enum Phase {
    /// Hello has not come.
    Silent {
        until: Instant,
    },
    Waiting {
        hello: Box<pb::Hello>,
        marks: Marks,
        until: Instant,
    },
    /// Between Begin and End.
    Opening {
        /// What comes first.
        node: Option<Bytes>,
        lot: Lot,
        /// Where the log ended at Begin, and so where the stream goes on after End.
        end_place: u64,
        /// The newest commit then.
        revision: Revision,
        end: Bytes,
    },
    /// Between the Begin of a repair and the agent's last answer to a list.
    Comparing {
        node: Option<Bytes>,
        lists: std::vec::IntoIter<Bytes>,
        /// So many answers are to come.
        wants: usize,
        /// What the agent lacks, as it says.
        wanted: Vec<u64>,
        /// What the lists are of.
        since: Revision,
        until: Instant,
    },
    /// Told everything that stands before `place` in the log.
    Live {
        place: u64,
        /// The commit that was told last; `None`: it was not told whole.
        told: Option<Revision>,
    },
    /// A new Begin is to come.
    Again(Holds),
    Over,
}

/// What an agent holds, as far as that helps.
#[derive(Debug, Default)]
struct Holds {
    cursor: Option<Cursor>,
    sums: Option<Box<[Hash; 256]>>,
}

/// What is told between Begin and End. None of it belongs to the session.
#[derive(Debug)]
enum Lot {
    /// The log from `place` on.
    Log {
        place: u64,
        /// The commit that was told last; `None`: it was not told whole.
        told: Option<Revision>,
    },
    /// Frames that were made for this agent alone.
    Newest(std::vec::IntoIter<Bytes>),
    /// The frames of a snapshot from `next` on, then those of what changed since it was built.
    Snapshot { frames: Arc<[Bytes]>, next: usize, after: std::vec::IntoIter<Bytes> },
}

impl Session {
    /// Of a stream that was just opened. `jitter` is between 0 and 1, different for every session.
    pub fn new(now: Instant, jitter: f64) -> Self {
        Self {
            phase: Phase::Silent { until: now + HELLO_WITHIN },
            node: Name::default(),
            node_told: (0, Bytes::new()),
            repaired_at: None,
            heartbeat_at: now,
            share: jitter,
            old: None,
            told_to_leave: false,
            newly_told: None,
        }
    }

    /// The agent is asked to choose its server anew when the stream is so old, and again after that.
    #[must_use]
    pub fn ageing(mut self, age: Option<Duration>, now: Instant) -> Self {
        self.old = age.map(|age| (age, now + age.mul_f64(1.0 + (self.share - 0.5) * SPREAD)));
        self
    }

    /// Takes in what the agent said.
    ///
    /// # Errors
    /// When the stream must end.
    pub fn on(&mut self, message: pb::AgentMessage, own: &Name, now: Instant) -> Result<Heard, Ended> {
        match (message.message, &self.phase) {
            (Some(FromAgent::Hello(hello)), Phase::Silent { .. }) => self.hello(hello, own, now),
            (Some(FromAgent::Hello(_)), _) => Err(Malformed::new("a second Hello").into()),
            (_, Phase::Silent { .. }) => Err(Malformed::new("something before Hello").into()),
            (Some(FromAgent::Ack(ack)), _) => Ok(acked(ack)),
            (Some(FromAgent::Repair(repair)), Phase::Live { .. })
                if self.repaired_at.is_none_or(|at| now.saturating_duration_since(at) >= REPAIR_EVERY) =>
            {
                self.repaired_at = Some(now);
                let sums = messages::buckets_from(&repair.buckets, own)?;
                self.phase = Phase::Again(Holds { cursor: None, sums });
                Ok(Heard::Nothing)
            }
            (Some(FromAgent::Want(want)), _) => {
                if let Phase::Comparing { wants, wanted, .. } = &mut self.phase {
                    *wants = wants.saturating_sub(1);
                    wanted.extend(messages::want_from(want, own)?);
                }
                Ok(Heard::Nothing)
            }
            (Some(FromAgent::Repair(_) | FromAgent::Credential(_)) | None, _) => Ok(Heard::Nothing),
        }
    }

    fn hello(&mut self, hello: pb::Hello, own: &Name, now: Instant) -> Result<Heard, Ended> {
        if hello.node.is_empty() || hello.node.len() > limits::STRING_BYTES {
            return Err(Malformed::new("a Hello without the name of a node").into());
        }
        if *hello.cluster != **own {
            return Err(Ended::Refused(format!(
                "this server serves the cluster {own:?}, the agent is of {:?}: check --cluster-id on both",
                hello.cluster
            )));
        }
        if hello.role() != pb::Role::Agent || hello.scope() != pb::Scope::All {
            return Err(Ended::Refused("only agents that want every record are served".into()));
        }
        if hello.schema == 0 {
            return Err(Malformed::new("a Hello without a schema").into());
        }
        let mut marks = Marks::default();
        for mark in messages::marks_from(&hello.marks, own, &mut Interner::default())? {
            marks.set(mark);
        }
        self.node = hello.node.as_str().into();
        let node = self.node.clone();
        self.phase = Phase::Waiting { hello: Box::new(hello), marks, until: now + PATIENCE };
        Ok(Heard::Hello { node })
    }

    /// When [`Session::next`] may have something to say although nothing was heard and nothing happened.
    pub fn wake_at(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Silent { until } | Phase::Waiting { until, .. } | Phase::Comparing { until, .. } => {
                Some(*until)
            }
            Phase::Live { .. } => {
                Some(self.old.map_or(self.heartbeat_at, |(_, at)| at.min(self.heartbeat_at)))
            }
            _ => None,
        }
    }

    /// The next message to send; `None`: nothing now.
    ///
    /// # Errors
    /// When the stream must end.
    pub fn next(&mut self, journal: &Journal, now: Instant) -> Result<Option<(Bytes, Option<Began>)>, Ended> {
        if matches!(self.phase, Phase::Live { .. })
            && let Some(drain) = self.drain(journal, now)
        {
            return Ok(Some((drain, None)));
        }
        match &mut self.phase {
            Phase::Silent { until } if now >= *until => {
                Err(Malformed::new(format!("no Hello within {} s", HELLO_WITHIN.as_secs())).into())
            }
            Phase::Silent { .. } | Phase::Over => Ok(None),
            Phase::Waiting { hello, marks, until } => {
                if let Some(leaving) = journal.replicas().leaving() {
                    let wait = leaving.left(now) + RETRY_AFTER;
                    let candidates = journal.replicas().others();
                    let reason = "this server is shutting down".to_owned();
                    return Ok(Some((self.throttle(wait, &candidates, reason, false), None)));
                }
                let behind = !hello.accept_older && journal.marks().behind(marks);
                if journal.listed() && !behind {
                    let cursor = hello.cursor.as_ref().map(messages::cursor_from).transpose()?;
                    let sums = messages::buckets_from(&hello.buckets, journal.own())?;
                    self.phase = Phase::Again(Holds { cursor, sums });
                    return Ok(self.begin(journal, now));
                }
                if now < *until {
                    return Ok(None);
                }
                let reason = match journal.listed() {
                    true => "this server is behind what the agent holds".to_owned(),
                    false => {
                        let kinds: Vec<String> = journal.unlisted().map(|kind| kind.to_string()).collect();
                        format!("this server has not listed {} yet", kinds.join(", "))
                    }
                };
                let candidates = journal.replicas().all();
                Ok(Some((self.throttle(RETRY_AFTER, candidates, reason, journal.listed()), None)))
            }
            Phase::Opening { node, lot, end_place, revision, end } => {
                if let Some(node) = node.take() {
                    return Ok(Some((node, None)));
                }
                let (end, after) = match lot.next(*end_place, journal)? {
                    Pulled::Frame(frame) => return Ok(Some((frame, None))),
                    Pulled::Done => {
                        let told = Some(*revision);
                        (std::mem::take(end), Phase::Live { place: *end_place, told })
                    }
                    // No Begin may follow a Begin without an End. This one says how far the agent came, and nothing of
                    // the sources: what follows at once does.
                    Pulled::Evicted(told) => {
                        let end = pb::End { revision: told.0, ..pb::End::default() };
                        let cursor = Some(Cursor { epoch: journal.epoch(), through: told });
                        let holds = Holds { cursor, sums: None };
                        (message(FromServer::End(end)), Phase::Again(holds))
                    }
                };
                self.phase = after;
                self.heartbeat_at = self.next_heartbeat(now);
                Ok(Some((end, None)))
            }
            Phase::Comparing { node, lists, wants, wanted, since, until } => {
                if let Some(message) = node.take().or_else(|| lists.next()) {
                    return Ok(Some((message, None)));
                }
                if *wants > 0 {
                    let why = || format!("no Want within {} s of the lists", WANT_WITHIN.as_secs());
                    return if now < *until { Ok(None) } else { Err(Malformed::new(why()).into()) };
                }
                // What changed since the lists were made goes along, so that End is of this moment.
                let Some(frames) = journal.newest(*since, wanted) else {
                    let why = "what was removed during the repair is not known any more".to_owned();
                    return Err(Ended::Throttled(why));
                };
                let bytes = length(&frames);
                if bytes > FREE {
                    journal.charge(bytes, now);
                }
                self.open(None, Lot::Newest(frames.into_iter()), journal, now);
                self.next(journal, now)
            }
            Phase::Again(_) => Ok(self.begin(journal, now)),
            Phase::Live { place, told } => {
                match journal.log().get(*place) {
                    Ok(Some(Logged { revision, last, frame })) => {
                        *place += 1;
                        *told = last.then_some(revision);
                        self.newly_told = *told;
                        return Ok(Some((frame.clone(), None)));
                    }
                    Ok(None) => {}
                    Err(Evicted) => {
                        let cursor = told.map(|through| Cursor { epoch: journal.epoch(), through });
                        self.phase = Phase::Again(Holds { cursor, sums: None });
                        return Ok(self.begin(journal, now));
                    }
                }
                if self.node_told.0 != journal.nodes_changed() {
                    let node = node(journal, &self.node);
                    let news = node != self.node_told.1;
                    self.node_told = (journal.nodes_changed(), node.clone());
                    if news {
                        return Ok(Some((node, None)));
                    }
                }
                if now >= self.heartbeat_at {
                    self.heartbeat_at = self.next_heartbeat(now);
                    return Ok(Some((message(FromServer::Heartbeat(journal.heartbeat(now))), None)));
                }
                Ok(None)
            }
        }
    }

    /// Whether a Begin is due, and waits for a snapshot to be built.
    pub fn awaits_snapshot(&self) -> bool {
        matches!(self.phase, Phase::Again(_))
    }

    /// The ladder of rule 2.4. What is held resumes whatever else there is to do; who has to be told much may have to wait,
    /// or to go elsewhere. `None`: a snapshot has to be built first.
    fn begin(&mut self, journal: &Journal, now: Instant) -> Option<(Bytes, Option<Began>)> {
        let Phase::Again(holds) = &self.phase else { return None };
        self.node_told = (journal.nodes_changed(), node(journal, &self.node));
        let node = Some(self.node_told.1.clone());
        let held = holds.sums.as_deref().filter(|sums| sums.iter().any(|sum| *sum != Hash::default()));
        let (mode, began) = if let Some(lot) = holds.cursor.and_then(|cursor| catch_up(cursor, journal)) {
            self.open(node, lot, journal, now);
            (pb::begin::Mode::Resume, Began::Resume)
        } else if let Some(sums) = held {
            let lists = journal.lists(sums);
            let bytes = length(&lists);
            if bytes > FREE
                && let Err(wait) = journal.afford(bytes, now)
            {
                return Some((self.busy(wait, journal), None));
            }
            self.phase = Phase::Comparing {
                node,
                wants: lists.len(),
                lists: lists.into_iter(),
                wanted: Vec::new(),
                since: journal.revision(),
                until: now + WANT_WITHIN,
            };
            (pb::begin::Mode::Repair, Began::Repair)
        } else {
            let Joining { shared, after } = journal.snapshot()?;
            let bytes = length(&shared) + length(&after);
            if bytes > FREE
                && let Err(wait) = journal.afford(bytes, now)
            {
                return Some((self.busy(wait, journal), None));
            }
            let lot = Lot::Snapshot { frames: shared, next: 0, after: after.into_iter() };
            self.open(node, lot, journal, now);
            (pb::begin::Mode::Snapshot, Began::Snapshot)
        };
        let begin = message(FromServer::Begin(pb::Begin {
            epoch: journal.epoch().0.to_vec().into(),
            mode: mode.into(),
            cluster: journal.own().to_string(),
            schema: hash::SCHEMA,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            candidates: messages::candidates(journal.replicas().all()),
        }));
        Some((begin, Some(began)))
    }

    /// The lot is told, and End says that it leads to this moment.
    fn open(&mut self, node: Option<Bytes>, lot: Lot, journal: &Journal, now: Instant) {
        let end = message(FromServer::End(pb::End {
            revision: journal.revision().0,
            marks: messages::marks(journal.marks(), journal.own()),
            sources: journal.sources(now),
        }));
        let (end_place, revision) = (journal.log().end(), journal.revision());
        self.phase = Phase::Opening { node, lot, end_place, revision, end };
    }

    fn busy(&mut self, wait: Duration, journal: &Journal) -> Bytes {
        let reason = "this server is busy with others who need everything".to_owned();
        self.throttle(wait, journal.replicas().all(), reason, false)
    }

    fn throttle(&mut self, wait: Duration, candidates: &[Candidate], reason: String, behind: bool) -> Bytes {
        self.phase = Phase::Over;
        message(FromServer::Throttle(pb::Throttle {
            retry_after_millis: millis(wait),
            candidates: messages::candidates(candidates),
            reason,
            behind,
        }))
    }

    /// A commit that the agent was told of as it happened, since this was asked last.
    pub fn newly_told(&mut self) -> Option<Revision> {
        self.newly_told.take()
    }

    /// Whether the stream ends when everything was sent.
    pub fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Over)
    }

    /// What asks a live agent to go, where it is to: all are, or its stream is old. It goes on being served meanwhile, and
    /// nobody is cut who stays.
    fn drain(&mut self, journal: &Journal, now: Instant) -> Option<Bytes> {
        let replicas = journal.replicas();
        let (slot, candidates, reason) = match (replicas.leaving(), self.old) {
            (Some(leaving), _) if !self.told_to_leave => {
                self.told_to_leave = true;
                (leaving.slot(self.share, now), replicas.others(), "it is shutting down")
            }
            (None, Some((age, at))) if now >= at => {
                self.old = Some((age, now + age));
                if replicas.others().is_empty() {
                    return None;
                }
                (Duration::ZERO, replicas.all().to_vec(), "the stream is old")
            }
            _ => return None,
        };
        Some(message(FromServer::Drain(pb::Drain {
            slot_millis: millis(slot),
            candidates: messages::candidates(&candidates),
            reason: reason.to_owned(),
        })))
    }

    fn next_heartbeat(&self, now: Instant) -> Instant {
        now + HEARTBEAT.mul_f64(1.0 + (self.share - 0.5) * SPREAD)
    }
}

/// What comes next of a lot.
enum Pulled {
    Frame(Bytes),
    /// That was all.
    Done,
    /// The rest is no longer in the log. Everything up to this commit was told.
    Evicted(Revision),
}

impl Lot {
    fn next(&mut self, end_place: u64, journal: &Journal) -> Result<Pulled, Ended> {
        match self {
            Self::Log { place, .. } if *place >= end_place => Ok(Pulled::Done),
            Self::Log { place, told } => match journal.log().get(*place) {
                Ok(Some(Logged { revision, last, frame })) => {
                    *place += 1;
                    *told = last.then_some(revision);
                    Ok(Pulled::Frame(frame.clone()))
                }
                Ok(None) => Ok(Pulled::Done),
                // With half a commit nothing may take effect: what was staged is thrown away with the stream.
                Err(Evicted) => told.map(Pulled::Evicted).ok_or_else(|| {
                    Ended::Throttled(
                        "the rest of a commit is no longer in the log: the agent is too slow".into(),
                    )
                }),
            },
            Self::Newest(frames) => Ok(frames.next().map_or(Pulled::Done, Pulled::Frame)),
            Self::Snapshot { frames, next, after } => {
                let frame = frames.get(*next).cloned().or_else(|| after.next());
                *next += 1;
                Ok(frame.map_or(Pulled::Done, Pulled::Frame))
            }
        }
    }
}

/// What leads on from a cursor: the log's frames where all are there and hardly more than the newest values (rule 3.4).
/// `None` where the cursor is of another process, or below the horizon.
fn catch_up(Cursor { epoch, through }: Cursor, journal: &Journal) -> Option<Lot> {
    if epoch != journal.epoch() || through > journal.revision() {
        return None;
    }
    let log = journal.log();
    let place = log.after(through);
    let bytes = place.and_then(|place| log.bytes_from(place).ok());
    let shared = place.map(|place| Lot::Log { place, told: Some(through) });
    if bytes.is_some_and(|bytes| bytes <= CHEAP_RESUME) {
        return shared;
    }
    let Some(newest) = journal.catch_up(through) else { return shared };
    let less = length(&newest);
    match shared {
        // What is shared costs nobody an encoding, so it may be a little more.
        Some(shared) if bytes.is_some_and(|bytes| bytes <= less + less / 4) => Some(shared),
        _ => Some(Lot::Newest(newest.into_iter())),
    }
}

fn length(frames: &[Bytes]) -> u64 {
    frames.iter().map(|frame| frame.len() as u64).sum()
}

fn node(journal: &Journal, name: &str) -> Bytes {
    message(FromServer::Node(messages::node(journal.node(name))))
}

fn acked(ack: pb::Ack) -> Heard {
    let rejected = ack.rejected.into_iter().take(limits::LIST).map(|rejection| {
        let key = rejection.key.unwrap_or_default();
        (format!("{}/{}", key.namespace, key.name), rejection.message)
    });
    Heard::Acked {
        through: Revision(ack.through),
        programming: Duration::from_micros(ack.programming_micros),
        rejected: rejected.collect(),
        events: ack.events.into_iter().take(limits::LIST).map(|event| event.message).collect(),
    }
}

#[cfg(test)]
mod tests;
