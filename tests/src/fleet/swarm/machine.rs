//! One agent without its connection, of either kind.

use std::time::Instant;

use anyhow::Result;
use bytes::Bytes;
use distributary_model::{Cursor, Hash, Name};
use distributary_proto::v1 as pb;
use pb::agent_message::Message as FromAgent;
use serde::{Deserialize, Serialize};

use super::commons::Commons;
use super::light::Light;
use super::whole::Whole;

/// How a stream began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// From a cursor.
    Resume,
    /// With everything.
    Snapshot,
    /// With lists of what is in the buckets that differ.
    Repair,
}

impl From<pb::begin::Mode> for Mode {
    fn from(mode: pb::begin::Mode) -> Self {
        match mode {
            pb::begin::Mode::Resume => Self::Resume,
            pb::begin::Mode::Snapshot => Self::Snapshot,
            pb::begin::Mode::Repair => Self::Repair,
        }
    }
}

/// What of that which it holds an agent says when it comes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Says {
    /// All that a real one would.
    #[default]
    Everything,
    /// Not its cursor.
    Buckets,
    /// That it holds nothing.
    Nothing,
}

/// What a message meant.
#[derive(Debug)]
pub(crate) enum Heard {
    Nothing,
    Heartbeat,
    Began(Mode),
    /// Everything up to the cursor is in the kernel, and the newest slice in it is `mark` (0: it does not say).
    Ended {
        cursor: Cursor,
        mark: u64,
    },
    Changes {
        cursor: Cursor,
        mark: u64,
    },
    Reply(pb::AgentMessage),
    Throttle {
        millis: u64,
    },
    Drain {
        millis: u64,
    },
}

#[derive(Debug)]
pub(crate) enum Machine {
    Light(Light),
    Whole(Box<Whole>),
}

impl Machine {
    pub(crate) fn hello(&mut self, own: &Name, says: Says) -> pb::AgentMessage {
        let mut hello = match self {
            Self::Light(light) => light.hello(own),
            Self::Whole(whole) => whole.hello(),
        };
        if says != Says::Everything {
            hello.cursor = None;
        }
        if says == Says::Nothing {
            hello.buckets.clear();
        }
        pb::AgentMessage { message: Some(FromAgent::Hello(hello)) }
    }

    /// Takes in a message, as its bytes came.
    pub(crate) fn on(&mut self, bytes: &Bytes, commons: &mut Commons) -> Result<Heard> {
        match self {
            Self::Light(light) => light.on(bytes, commons),
            Self::Whole(whole) => whole.on(bytes, Instant::now()),
        }
    }

    pub(crate) fn root(&self, own: &Name) -> Hash {
        match self {
            Self::Light(light) => light.root(),
            Self::Whole(whole) => whole.root(own),
        }
    }

    /// Looks whether it programmed what it holds.
    pub(crate) fn check(&self) -> Result<()> {
        match self {
            Self::Light(_) => Ok(()),
            Self::Whole(whole) => whole.compare(),
        }
    }
}
