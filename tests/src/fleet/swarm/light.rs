//! An agent that keeps of each record only its content hash. That is enough to check the order of what is said, every
//! `through` and every root, to resume by buckets, and to know after any history that it holds what the server has.

use std::rc::Rc;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use distributary_model::codec::messages;
use distributary_model::{Cursor, Digest, Epoch, Hash, Name, Revision, hash};
use distributary_proto::v1 as pb;
use pb::agent_message::Message as FromAgent;
use pb::server_message::Message;

use super::commons::{Commons, Frame, State, Told, What, newest_slice};
use super::machine::{Heard, Mode};

#[derive(Debug)]
pub(crate) struct Light {
    node: Name,
    state: Rc<State>,
    cursor: Option<Cursor>,
    marks: Vec<pb::Mark>,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    Closed,
    Staging { epoch: Epoch, mode: Mode, staged: Vec<Rc<Told>>, node_said: bool },
    Live { epoch: Epoch },
}

impl Light {
    pub(crate) fn new(node: Name, commons: &Commons) -> Self {
        Self {
            node,
            state: Rc::clone(&commons.nothing),
            cursor: None,
            marks: Vec::new(),
            phase: Phase::Closed,
        }
    }

    pub(crate) fn hello(&mut self, own: &Name) -> pb::Hello {
        self.phase = Phase::Closed;
        let buckets = messages::buckets(own, &Digest::from_sums(*self.state.sums()), own);
        pb::Hello {
            cluster: own.to_string(),
            node: self.node.to_string(),
            version: "swarm".to_owned(),
            schema: hash::SCHEMA,
            marks: self.marks.clone(),
            cursor: self.cursor.map(messages::cursor),
            buckets: if self.state.is_empty() { Vec::new() } else { vec![buckets] },
            ..pb::Hello::default()
        }
    }

    pub(crate) fn root(&self) -> Hash {
        self.state.root
    }

    pub(crate) fn on(&mut self, bytes: &Bytes, commons: &mut Commons) -> Result<Heard> {
        let told = commons.told(bytes)?;
        match &told.what {
            What::Frame(frame) => self.frame(&told, frame, commons),
            What::Lists(lists) => {
                let Phase::Staging { mode: Mode::Repair, staged, .. } = &mut self.phase else {
                    bail!("bucket lists outside of a repair");
                };
                let difference = commons.compare(&self.state, &told, lists);
                staged.push(Rc::clone(&difference.removed));
                let wanted =
                    pb::WantedKeys { cluster: String::new(), key_hashes: difference.wanted.to_vec() };
                let want = FromAgent::Want(pb::Want { wanted: vec![wanted] });
                Ok(Heard::Reply(pb::AgentMessage { message: Some(want) }))
            }
            What::Other(message) => self.other(message, commons),
        }
    }

    fn frame(&mut self, told: &Rc<Told>, frame: &Frame, commons: &mut Commons) -> Result<Heard> {
        match &mut self.phase {
            Phase::Closed => bail!("a Frame before Begin"),
            Phase::Staging { staged, node_said, .. } => {
                ensure!(*node_said, "a Frame before the Node");
                staged.push(Rc::clone(told));
                Ok(Heard::Nothing)
            }
            Phase::Live { epoch } => {
                self.state = commons.after(&self.state, std::slice::from_ref(told));
                if frame.through == 0 {
                    return Ok(Heard::Nothing);
                }
                let cursor = Cursor { epoch: *epoch, through: Revision(frame.through) };
                let before = self.cursor.map_or(0, |cursor| cursor.through.0);
                ensure!(
                    frame.through > before,
                    "a Frame through {} after one through {before}",
                    frame.through
                );
                self.cursor = Some(cursor);
                Ok(Heard::Changes { cursor, mark: frame.mark })
            }
        }
    }

    fn other(&mut self, message: &Message, commons: &mut Commons) -> Result<Heard> {
        match message {
            Message::Begin(begin) => {
                ensure!(
                    !matches!(self.phase, Phase::Staging { .. }),
                    "a Begin before the End of the last one"
                );
                let (epoch, mode) = (messages::epoch_from(&begin.epoch)?, Mode::from(begin.mode()));
                if mode == Mode::Resume {
                    let cursor = self.cursor.context("a resume without a cursor")?;
                    ensure!(cursor.epoch == epoch, "a resume by another process");
                }
                self.phase = Phase::Staging { epoch, mode, staged: Vec::new(), node_said: false };
                Ok(Heard::Began(mode))
            }
            Message::Node(_) => {
                match &mut self.phase {
                    Phase::Closed => bail!("a Node before Begin"),
                    Phase::Staging { node_said, .. } => *node_said = true,
                    Phase::Live { .. } => {}
                }
                Ok(Heard::Nothing)
            }
            Message::End(end) => self.end(end, commons),
            Message::Heartbeat(heartbeat) => {
                let Phase::Live { .. } = self.phase else { bail!("a Heartbeat before End") };
                let through = self.cursor.map_or(0, |cursor| cursor.through.0);
                ensure!(
                    heartbeat.revision >= through,
                    "a Heartbeat of a revision before {through}, which was sent"
                );
                if heartbeat.revision == through {
                    self.compare_roots(&heartbeat.sources)?;
                    self.marks.clone_from(&heartbeat.marks);
                }
                Ok(Heard::Heartbeat)
            }
            Message::Throttle(throttle) => Ok(Heard::Throttle { millis: throttle.retry_after_millis }),
            Message::Drain(drain) => Ok(Heard::Drain { millis: drain.slot_millis }),
            Message::Frame(_) | Message::BucketLists(_) => bail!("a message with a tag that is not its own"),
        }
    }

    fn end(&mut self, end: &pb::End, commons: &mut Commons) -> Result<Heard> {
        let Phase::Staging { epoch, mode, staged, .. } = std::mem::replace(&mut self.phase, Phase::Closed)
        else {
            bail!("an End without Begin");
        };
        // Only records of complete sources are dropped because they did not occur.
        let complete = end.sources.iter().any(|source| source.complete);
        let from = match mode {
            Mode::Snapshot if complete => Rc::clone(&commons.nothing),
            _ => Rc::clone(&self.state),
        };
        self.state = commons.after(&from, &staged);
        let cursor = Cursor { epoch, through: Revision(end.revision) };
        self.cursor = Some(cursor);
        self.marks.clone_from(&end.marks);
        self.phase = Phase::Live { epoch };
        self.compare_roots(&end.sources)?;
        Ok(Heard::Ended { cursor, mark: newest_slice(&end.marks) })
    }

    fn compare_roots(&self, sources: &[pb::SourceState]) -> Result<()> {
        for source in sources.iter().filter(|source| source.complete) {
            let (ours, theirs) = (self.state.root, messages::root_from(&source.root)?);
            ensure!(ours == theirs, "the root is {ours}, the server's {theirs}");
        }
        Ok(())
    }
}
