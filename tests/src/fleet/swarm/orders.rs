//! What a process of the swarm is told on its stdin and says on its stdout, a line of JSON each.

use serde::{Deserialize, Serialize};

use super::machine::Says;
use crate::fleet::meter::{Histogram, Latencies};
use crate::fleet::usage::Usage;

/// A line for the swarm. Each is answered by one line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// Note from now on what comes when, and forget what was noted.
    Measure,
    /// How long the changes at these times took, in microseconds of the shared clock.
    Latencies(Vec<u64>),
    /// Cut every connection and come again within so many milliseconds.
    Cut {
        /// Milliseconds, over which they are spread.
        within: u64,
    },
    /// What agents say of what they hold, from the next stream on.
    Say(Says),
    /// So many of a hundred read nothing of their stream, while their connections live.
    Stall(usize),
    /// So many of a hundred do nothing at all, as processes that were stopped.
    Freeze(usize),
    /// No acks, or acks again.
    Mute(bool),
    /// How things stand, and what was counted since the last time that this was asked.
    Status,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// It is done.
    Done,
    /// To [`Order::Latencies`].
    Latencies(Latencies),
    /// To [`Order::Status`].
    Status(Box<Status>),
}

/// How things stand in a process of the swarm.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Agents.
    pub agents: usize,
    /// Agents whose stream is past its End.
    pub live: usize,
    /// Of these, those that hold what most hold.
    pub agree: usize,
    /// The root of what most live agents hold.
    pub root: String,
    /// The newest slice that all live agents have, in microseconds of the shared clock.
    pub mark: u64,
    /// When the last agent came to its End.
    pub last_live_at: u64,
    /// Since the last status.
    pub counts: Counts,
    /// CPU and memory of the process.
    pub usage: Usage,
    /// By how much its timers were late: what a process without time to spare does.
    pub lag: Histogram,
    /// States that agents are in.
    pub states: usize,
}

/// What was counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Streams that began from a cursor.
    pub resumes: u64,
    /// Streams that began with everything.
    pub snapshots: u64,
    /// Streams that began with lists.
    pub repairs: u64,
    /// Streams that came to their End, and the bytes from Begin to End: in all, and of the one with most.
    pub ends: u64,
    /// See there.
    pub opening_bytes: u64,
    /// See there.
    pub most_opening_bytes: u64,
    /// Bytes of all messages.
    pub bytes: u64,
    /// Waves: frames that came after End and completed a revision.
    pub frames: u64,
    /// Their bytes.
    pub frame_bytes: u64,
    /// Acks that were sent.
    pub acks: u64,
    /// Connections that were opened.
    pub connections: u64,
    /// Streams that ended, or did not begin, in any way but by an order.
    pub broken: u64,
    /// Why, of the first few.
    pub why: Vec<String>,
    /// Times that the server asked to wait, and to go.
    pub throttled: u64,
    /// See there.
    pub drained: u64,
    /// Breaches of the contract: what must never happen. The first few.
    pub breaches: Vec<String>,
}

/// How many texts are kept.
const TEXTS: usize = 5;

impl Counts {
    /// A stream ended.
    pub(crate) fn broke(&mut self, why: &anyhow::Error) {
        self.broken += 1;
        let why = format!("{why:#}");
        if self.why.len() < TEXTS && !self.why.contains(&why) {
            self.why.push(why);
        }
    }

    /// A server said what it must not say.
    pub(crate) fn breach(&mut self, node: &str, why: &anyhow::Error) {
        if self.breaches.len() < TEXTS {
            self.breaches.push(format!("{node}: {why:#}"));
        }
    }

    /// Adds those of another process.
    pub fn merge(&mut self, other: &Self) {
        self.resumes += other.resumes;
        self.snapshots += other.snapshots;
        self.repairs += other.repairs;
        self.ends += other.ends;
        self.opening_bytes += other.opening_bytes;
        self.most_opening_bytes = self.most_opening_bytes.max(other.most_opening_bytes);
        self.bytes += other.bytes;
        self.frames += other.frames;
        self.frame_bytes += other.frame_bytes;
        self.acks += other.acks;
        self.connections += other.connections;
        self.broken += other.broken;
        for why in &other.why {
            if self.why.len() < TEXTS && !self.why.contains(why) {
                self.why.push(why.clone());
            }
        }
        self.throttled += other.throttled;
        self.drained += other.drained;
        self.breaches.extend(other.breaches.iter().cloned());
    }
}
