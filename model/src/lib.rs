//! What server and agent must agree on, and nothing else: keys, records, their hashes, tables of them, deltas between
//! them, and their form on the wire.
//!
//! Pure: no clock, no file, no socket, no async. The rules behind it are the comments of
//! `proto/distributary/v1/distribution.proto`.

mod ages;
pub mod claims;
pub mod codec;
pub mod delta;
pub mod hash;
pub mod intern;
pub mod key;
pub mod limits;
pub mod node;
pub mod record;
pub mod revision;
pub mod table;
#[cfg(feature = "testing")]
pub mod testing;

pub use ages::Ages;
pub use codec::messages::Candidate;
pub use delta::{Change, Op};
pub use hash::{Digest, Hash};
pub use intern::Interner;
pub use key::{Key, Kind, Name};
pub use node::{NodeView, Taint};
pub use record::{
    Conditions, Endpoint, EndpointPort, Facts, Protocol, Record, Service, ServiceHeader, ServicePort,
};
pub use revision::{Cursor, Epoch, Mark, Marks, ObjectKind, Revision};
pub use table::{Held, Table};
