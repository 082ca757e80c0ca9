//! What a simulation counts.

use serde::{Deserialize, Serialize};

/// Since the last time that it was asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figures {
    /// Connections that were made.
    pub connections: u64,
    /// Streams that began from a cursor.
    pub resumes: u64,
    /// By comparing buckets.
    pub repairs: u64,
    /// With everything.
    pub snapshots: u64,
    /// Agents that were told to wait or to go elsewhere.
    pub throttled: u64,
    /// Moves that agents began.
    pub moves: u64,
    /// Bytes of all messages of servers, gRPC's prefix included.
    pub bytes: u64,
    /// Times that an agent was without a stream.
    pub lost: u64,
    /// Writes to kernels.
    pub writes: u64,
    /// Times that an agent took an older state, as it found nobody who was not behind it.
    pub went_back: u64,
}

impl std::ops::Add for Figures {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            connections: self.connections + other.connections,
            resumes: self.resumes + other.resumes,
            repairs: self.repairs + other.repairs,
            snapshots: self.snapshots + other.snapshots,
            throttled: self.throttled + other.throttled,
            moves: self.moves + other.moves,
            bytes: self.bytes + other.bytes,
            lost: self.lost + other.lost,
            writes: self.writes + other.writes,
            went_back: self.went_back + other.went_back,
        }
    }
}
