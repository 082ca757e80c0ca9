//! What names a record.

use std::fmt;
use std::sync::Arc;

/// A name that many records share, so it is kept once.
pub type Name = Arc<str>;

/// What a record is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A Service with its endpoints of both families.
    Service,
    /// What is known of a cluster as a whole.
    Facts,
}

/// Names one record. `cluster` is always the real id, never empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// What the record is about.
    pub kind: Kind,
    /// Id of the cluster that the record comes from.
    pub cluster: Name,
    /// Namespace of the Service; empty for facts.
    pub namespace: Name,
    /// Name of the Service; empty for facts.
    pub name: Name,
}

impl Key {
    /// The key of a Service.
    pub fn service(cluster: impl Into<Name>, namespace: impl Into<Name>, name: impl Into<Name>) -> Self {
        Self { kind: Kind::Service, cluster: cluster.into(), namespace: namespace.into(), name: name.into() }
    }

    /// The key of a cluster's facts.
    pub fn facts(cluster: impl Into<Name>) -> Self {
        Self { kind: Kind::Facts, cluster: cluster.into(), namespace: Name::default(), name: Name::default() }
    }
}

/// `namespace/name`, or `facts of CLUSTER`: for people, and unique inside one cluster.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Service => write!(f, "{}/{}", self.namespace, self.name),
            Kind::Facts => write!(f, "facts of {}", self.cluster),
        }
    }
}
