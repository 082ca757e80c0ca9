//! Kubernetes objects become canonical records: lean types, manifests, merging of slices, and the net change of a
//! batch of events.
//!
//! Pure: no clock, no file, no socket, no log. What a person should know is returned as a [`Problem`].

use std::fmt;

use distributary_model::{Name, ObjectKind};

mod address;
mod lean;
pub mod manifest;
mod manifests;
mod merge;
mod meta;
mod node;
mod object;
mod service;
mod slice;
mod state;

pub use manifests::Manifests;
pub use meta::Meta;
pub use node::{Node, ServiceCidr};
pub use object::{Object, Unreadable};
pub use service::Service;
pub use slice::{EndpointSlice, Entry, Trigger};
pub use state::{Changes, Cluster, RecordChange};

/// What a source learned of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// This is the object now.
    Upsert(Object),
    /// The object is gone.
    Gone {
        /// Which one.
        key: ObjectKey,
        /// Nobody said so: it was missing in a list that replaced an interrupted watch.
        inferred: bool,
    },
    /// The object changed to something that cannot be read; its last good value stays.
    Invalid {
        /// Which one.
        key: ObjectKey,
        /// What could not be read.
        why: String,
    },
}

/// Names an object of the Kubernetes API.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// Its kind.
    pub kind: ObjectKind,
    /// Its namespace; empty for kinds that have none.
    pub namespace: Name,
    /// Its name.
    pub name: Name,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.namespace.is_empty() {
            true => write!(f, "{} {}", self.kind, self.name),
            false => write!(f, "{} {}/{}", self.kind, self.namespace, self.name),
        }
    }
}

/// Something in an object that does not take effect, for a person to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where.
    pub object: ObjectKey,
    /// What is wrong, and what becomes of it.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.object, self.what)
    }
}
