//! What an agent holds, in a file: so that a restart resumes where it was, and a node that reboots without a server has
//! rules (stream rule 4.5).
//!
//! The file is a stream that was recorded: a Hello, then Begin, Node, Frames and End as a server would send them, each
//! with gRPC's prefix; then the same for what is programmed beyond the table, with End's revision as the milliseconds
//! that it has left. A CRC over all of it comes last.

pub mod form;
pub mod store;

use std::sync::Arc;
use std::time::Duration;

use distributary_model::{Candidate, Cursor, Epoch, Key, Marks, Name, NodeView, Service, Table};
use distributary_proto::v1 as pb;

/// What an agent holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Checkpoint {
    /// Of this cluster.
    pub cluster: Name,
    /// On this node.
    pub node: Name,
    /// Where it stood.
    pub cursor: Option<Cursor>,
    /// How far its sources were included.
    pub marks: Marks,
    /// The records that the kernel refused.
    pub parked: Vec<pb::Rejection>,
    /// The Node.
    pub node_view: Option<NodeView>,
    /// The servers that it knew.
    pub candidates: Vec<Candidate>,
    /// The records.
    pub table: Table,
    /// What was programmed beyond them.
    pub kept: Vec<Kept>,
}

/// A service of which more was programmed than the server had.
#[derive(Clone, Debug, PartialEq)]
pub struct Kept {
    /// Which.
    pub key: Arc<Key>,
    /// What was programmed.
    pub service: Arc<Service>,
    /// For so long.
    pub left: Duration,
    /// Which server process left it out.
    pub epoch: Epoch,
}

#[cfg(test)]
mod tests;
