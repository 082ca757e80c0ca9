//! An agent that keeps everything: the session of the real one, and a kernel that is a table in memory.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use distributary_agent::sync::session::{Batch, Heard as SessionHeard, Session};
use distributary_model::{Cursor, Hash, Key, Name, Service};
use distributary_proto::v1 as pb;
use pb::agent_message::Message as FromAgent;
use pb::server_message::Message;
use prost::Message as _;

use super::commons::newest_slice;
use super::machine::{Heard, Mode};

#[derive(Debug)]
pub(crate) struct Whole {
    session: Session,
    /// The services whose rules are in it.
    kernel: BTreeMap<Arc<Key>, Arc<Service>>,
    cursor: Option<Cursor>,
}

impl Whole {
    pub(crate) fn new(own: Name, node: Name) -> Self {
        Self { session: Session::new(own, node), kernel: BTreeMap::new(), cursor: None }
    }

    pub(crate) fn hello(&mut self) -> pb::Hello {
        match self.session.hello(Vec::new(), false).message {
            Some(FromAgent::Hello(hello)) => hello,
            _ => pb::Hello::default(),
        }
    }

    pub(crate) fn root(&self, own: &Name) -> Hash {
        self.session.table().root(own)
    }

    pub(crate) fn on(&mut self, bytes: &Bytes, now: Instant) -> Result<Heard> {
        let message = pb::ServerMessage::decode(bytes.clone())?;
        let before = match message.message.as_ref().context("an empty message")? {
            Message::Begin(begin) => Heard::Began(Mode::from(begin.mode())),
            Message::Heartbeat(_) => Heard::Heartbeat,
            _ => Heard::Nothing,
        };
        let marks = match &message.message {
            Some(Message::Frame(frame)) => newest_slice(&frame.marks),
            Some(Message::End(end)) => newest_slice(&end.marks),
            _ => 0,
        };
        let ends = matches!(message.message, Some(Message::End(_)));
        match self.session.on(message, now)? {
            SessionHeard::Nothing | SessionHeard::Staleness(_) => Ok(before),
            SessionHeard::Differs { reason, .. } => bail!("{reason}"),
            SessionHeard::Say(message) => Ok(Heard::Reply(message)),
            SessionHeard::Throttle { retry_after, .. } => Ok(Heard::Throttle { millis: millis(retry_after) }),
            SessionHeard::Drain { slot, .. } => Ok(Heard::Drain { millis: millis(slot) }),
            SessionHeard::Batch(batch) | SessionHeard::Moved(batch) => {
                let cursor = self.program(batch);
                match (cursor, ends) {
                    (Some(cursor), true) => {
                        self.compare()?;
                        Ok(Heard::Ended { cursor, mark: marks })
                    }
                    (Some(cursor), false) => Ok(Heard::Changes { cursor, mark: marks }),
                    (None, _) => Ok(Heard::Nothing),
                }
            }
        }
    }

    fn program(&mut self, batch: Batch) -> Option<Cursor> {
        for (key, service) in batch.services {
            match service {
                Some(service) => self.kernel.insert(key, service),
                None => self.kernel.remove(&key),
            };
        }
        self.cursor = batch.cursor.or(self.cursor);
        batch.cursor
    }

    /// That what was handed on to be programmed adds up to what is held, unless more of it stays for a while.
    pub(crate) fn compare(&self) -> Result<()> {
        if self.session.withheld().until().is_some() {
            return Ok(());
        }
        let held =
            self.session.table().iter().filter_map(|(key, held)| Some((key, held.record.as_service()?)));
        let programmed = self.kernel.iter();
        ensure!(programmed.eq(held), "what was programmed is not what is held");
        Ok(())
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
