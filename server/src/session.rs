//! The server's side of one stream, as a machine without a socket.
//!
//! What the agent says goes in by [`Session::on`], what the server says is pulled by [`Session::next`] whenever the
//! stream can take it. So a slow agent costs a place in the log and no queue.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use distributary_model::codec::{Malformed, message, messages};
use distributary_model::{Cursor, Interner, Marks, Name, Revision, hash, limits};
use distributary_proto::v1 as pb;
use pb::agent_message::Message as FromAgent;
use pb::server_message::Message as FromServer;

use crate::journal::{Evicted, Journal};

/// How long an agent waits for this server to list or to catch up with the agent's marks, before it is sent on.
pub const PATIENCE: Duration = Duration::from_secs(3);
/// Pause that an agent is asked to make before it tries again.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Heartbeats come this often, ± 20 %.
pub const HEARTBEAT: Duration = Duration::from_secs(5);

/// How a stream began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Began {
    /// From the agent's cursor.
    Resume,
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
    heartbeat_at: Instant,
    /// Spreads heartbeats: a share of their period, −20 to 20 %.
    jitter: f64,
}

#[derive(Debug)]
enum Phase {
    Silent,
    Waiting {
        hello: Box<pb::Hello>,
        marks: Marks,
        until: Instant,
    },
    /// Between Begin and End.
    Opening {
        before_end: VecDeque<Bytes>,
        through: Revision,
        end: Bytes,
    },
    /// Told everything that stands before `place` in the log.
    Live {
        place: u64,
    },
    /// What the agent lacks is not in the log.
    Behind,
    Over,
}

impl Session {
    /// Of a stream that was just opened. `jitter` is between 0 and 1, different for every session.
    pub fn new(now: Instant, jitter: f64) -> Self {
        let jitter = (jitter - 0.5) * 0.4;
        Self {
            phase: Phase::Silent,
            node: Name::default(),
            node_told: (0, Bytes::new()),
            heartbeat_at: now,
            jitter,
        }
    }

    /// Takes in what the agent said.
    ///
    /// # Errors
    /// When the stream must end.
    pub fn on(&mut self, message: pb::AgentMessage, own: &Name, now: Instant) -> Result<Heard, Ended> {
        match (message.message, &self.phase) {
            (Some(FromAgent::Hello(hello)), Phase::Silent) => self.hello(hello, own, now),
            (Some(FromAgent::Hello(_)), _) => Err(Malformed::new("a second Hello").into()),
            (_, Phase::Silent) => Err(Malformed::new("something before Hello").into()),
            (Some(FromAgent::Ack(ack)), _) => Ok(acked(ack)),
            (Some(FromAgent::Repair(_)), Phase::Live { .. }) => {
                // Everything that differs is in the snapshot.
                self.phase = Phase::Behind;
                Ok(Heard::Nothing)
            }
            (Some(FromAgent::Repair(_) | FromAgent::Want(_) | FromAgent::Credential(_)) | None, _) => {
                Ok(Heard::Nothing)
            }
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
            Phase::Waiting { until, .. } => Some(*until),
            Phase::Live { .. } => Some(self.heartbeat_at),
            _ => None,
        }
    }

    /// The next message to send; `None`: nothing now.
    ///
    /// # Errors
    /// When the stream must end.
    pub fn next(&mut self, journal: &Journal, now: Instant) -> Result<Option<(Bytes, Option<Began>)>, Ended> {
        match &mut self.phase {
            Phase::Silent | Phase::Over => Ok(None),
            Phase::Waiting { hello, marks, until } => {
                let behind = !hello.accept_older && journal.marks().behind(marks);
                if journal.listed() && !behind {
                    let cursor = hello.cursor.as_ref().map(messages::cursor_from).transpose()?;
                    return Ok(Some(self.begin(cursor, journal, now)));
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
                Ok(Some((self.throttle(reason), None)))
            }
            Phase::Opening { before_end, through, end } => {
                if let Some(next) = before_end.pop_front() {
                    return Ok(Some((next, None)));
                }
                let (through, end) = (*through, std::mem::take(end));
                self.heartbeat_at = self.next_heartbeat(now);
                self.phase = match journal.log().after(through) {
                    Some(place) => Phase::Live { place },
                    None => Phase::Behind,
                };
                Ok(Some((end, None)))
            }
            Phase::Behind => Ok(Some(self.begin(None, journal, now))),
            Phase::Live { place } => {
                match journal.log().get(*place) {
                    Ok(Some((_, frame))) => {
                        *place += 1;
                        return Ok(Some((frame.clone(), None)));
                    }
                    Ok(None) => {}
                    Err(Evicted) => return Ok(Some(self.begin(None, journal, now))),
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

    fn begin(&mut self, cursor: Option<Cursor>, journal: &Journal, now: Instant) -> (Bytes, Option<Began>) {
        let place = cursor
            .filter(|cursor| cursor.epoch == journal.epoch() && cursor.through <= journal.revision())
            .and_then(|cursor| journal.log().after(cursor.through));
        self.node_told = (journal.nodes_changed(), node(journal, &self.node));
        let mut before_end = VecDeque::from([self.node_told.1.clone()]);
        let (mode, began) = match place {
            Some(place) => {
                let frames =
                    (place..journal.log().end()).map_while(|place| journal.log().get(place).ok().flatten());
                before_end.extend(frames.map(|(_, frame)| frame.clone()));
                (pb::begin::Mode::Resume, Began::Resume)
            }
            None => {
                before_end.extend(journal.snapshot());
                (pb::begin::Mode::Snapshot, Began::Snapshot)
            }
        };
        let end = message(FromServer::End(pb::End {
            revision: journal.revision().0,
            marks: messages::marks(journal.marks(), journal.own()),
            sources: journal.sources(now),
        }));
        self.phase = Phase::Opening { before_end, through: journal.revision(), end };
        let begin = message(FromServer::Begin(pb::Begin {
            epoch: journal.epoch().0.to_vec().into(),
            mode: mode.into(),
            cluster: journal.own().to_string(),
            schema: hash::SCHEMA,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            candidates: Vec::new(),
        }));
        (begin, Some(began))
    }

    fn throttle(&mut self, reason: String) -> Bytes {
        self.phase = Phase::Over;
        message(FromServer::Throttle(pb::Throttle {
            retry_after_millis: RETRY_AFTER.as_millis() as u64,
            candidates: Vec::new(),
            reason,
        }))
    }

    /// Whether the stream ends when everything was sent.
    pub fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Over)
    }

    fn next_heartbeat(&self, now: Instant) -> Instant {
        now + HEARTBEAT.mul_f64(1.0 + self.jitter)
    }
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
    }
}
