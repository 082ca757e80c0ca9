//! What the driver wants done.

use std::fmt;
use std::time::{Duration, Instant};

use distributary_proto::v1 as pb;

use crate::checkpoint::Checkpoint;
use crate::sync::dial::Server;
use crate::sync::session::Batch;

/// Names one connection; never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkId(pub u64);

/// What is to be done, in this order.
#[derive(Debug)]
pub enum Order {
    /// Connect; then tell that it is so, or is not to be had.
    Dial(LinkId, Server),
    /// Send this.
    Say(LinkId, pb::AgentMessage),
    /// Close it. Nothing that it has said since counts.
    Close(LinkId),
    /// Hand this to whoever writes the kernel; received at that moment.
    Program(Batch, Instant),
    /// Look whether the kernel holds rules of ours, or kube-proxy's.
    LookAtKernel,
    /// Save this.
    Save(Box<Checkpoint>),
    /// Something that people should know.
    Note(Note),
}

/// What people should know.
#[derive(Clone, Debug, PartialEq)]
pub enum Note {
    /// The agent has what the server has.
    InStep {
        /// Which server.
        server: Server,
        /// Services that it has.
        services: usize,
        /// Its revision.
        revision: u64,
    },
    /// No stream.
    Lost {
        /// To that server.
        server: Server,
        /// Why.
        error: String,
        /// It is tried again, there or elsewhere, after so long.
        wait: Duration,
    },
    /// A server asks to come back.
    Throttled {
        /// Which one.
        server: Server,
        /// Why.
        reason: String,
    },
    /// Another stream is opened, to move to.
    Moving {
        /// To which server.
        to: Server,
        /// Why.
        reason: String,
    },
    /// It was not moved, and the old stream goes on.
    Stayed {
        /// Not to that server.
        to: Server,
        /// Why not.
        reason: String,
    },
    /// A comparison is asked for.
    Repairing {
        /// Why.
        reason: String,
    },
    /// So much vanished from a server, without having been deleted, that it is kept for a while.
    Withheld {
        /// From which server.
        server: Server,
        /// Services of which something is kept.
        services: usize,
        /// Endpoints of theirs.
        endpoints: usize,
        /// For so long.
        patience: Duration,
    },
    /// Nothing is held any more.
    Released,
    /// What an earlier process saved is programmed, as the kernel holds nothing and no server is there.
    FromCheckpoint {
        /// Services.
        services: usize,
    },
    /// The kernel holds rules, which are newer than any file.
    KernelIsNewer,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InStep { server, .. } => write!(f, "in step with the server {server}"),
            Self::Lost { error, .. } => write!(f, "no stream; the rules stay as they are: {error}"),
            Self::Throttled { reason, .. } => write!(f, "the server asks to wait: {reason}"),
            Self::Moving { reason, .. } => {
                write!(f, "another stream is opened beside the current one: {reason}")
            }
            Self::Stayed { reason, .. } => write!(f, "the current stream goes on: {reason}"),
            Self::Repairing { reason } => write!(f, "a comparison is asked for: {reason}"),
            Self::Withheld { .. } => f.write_str(
                "so much has vanished, and was not deleted, that it is kept for a while; \
                 POST /debug/release-removals on the metrics port removes it now",
            ),
            Self::Released => f.write_str("no removals are held any more"),
            Self::FromCheckpoint { .. } => {
                f.write_str("no server answers and the kernel holds no rules: the checkpoint is programmed")
            }
            Self::KernelIsNewer => {
                f.write_str("no server answers; the kernel's rules are newer than the checkpoint and stay")
            }
        }
    }
}
