//! Where somebody stands: in one server process's sequence of changes (epoch and revision), and in the sources' own
//! (marks).

use std::collections::BTreeMap;
use std::fmt;

use crate::Name;

/// Counts the commits of one server process. Means nothing outside of its epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Revision(pub u64);

impl Revision {
    /// The revision of the next commit.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A server process: 128 random bits drawn when it starts, never stored, never shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Epoch(pub [u8; 16]);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A place in the sequence of changes of one server process: every change up to `through` is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// The server process.
    pub epoch: Epoch,
    /// The newest revision up to which nothing is missing.
    pub through: Revision,
}

/// The kinds of object that a source watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ObjectKind {
    /// core/v1 Service
    Service,
    /// discovery.k8s.io/v1 EndpointSlice
    EndpointSlice,
    /// core/v1 Node
    Node,
    /// networking.k8s.io/v1 ServiceCIDR
    ServiceCidr,
}

impl ObjectKind {
    /// All of them, in order.
    pub const ALL: [Self; 4] = [Self::Service, Self::EndpointSlice, Self::Node, Self::ServiceCidr];
}

impl fmt::Display for ObjectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Node => "Node",
            Self::ServiceCidr => "ServiceCIDR",
        })
    }
}

/// How far one kind of object of one source is included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The source.
    pub cluster: Name,
    /// The kind of object.
    pub kind: ObjectKind,
    /// The newest resourceVersion that is included; 0 orders nothing.
    pub resource_version: u64,
}

/// The newest mark of every source and kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marks(BTreeMap<(Name, ObjectKind), u64>);

impl Marks {
    /// Takes a mark in. A later one of the same source and kind stands for an earlier one, also when its number is
    /// lower: only a source can say that it was rewound.
    pub fn set(&mut self, mark: Mark) {
        self.0.insert((mark.cluster, mark.kind), mark.resource_version);
    }

    /// How far that kind of that source is included.
    pub fn get(&self, cluster: &Name, kind: ObjectKind) -> Option<u64> {
        self.0.get(&(cluster.clone(), kind)).copied()
    }

    /// All marks, in order of source and kind.
    pub fn iter(&self) -> impl Iterator<Item = Mark> + '_ {
        self.0.iter().map(|((cluster, kind), &resource_version)| Mark {
            cluster: cluster.clone(),
            kind: *kind,
            resource_version,
        })
    }

    /// Whether these are older than `other` in any source and kind in which both have a number (stream rule 2.2).
    pub fn behind(&self, other: &Self) -> bool {
        other.0.iter().any(|(of, &theirs)| {
            theirs != 0 && self.0.get(of).is_some_and(|&ours| ours != 0 && ours < theirs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks(of: &[(ObjectKind, u64)]) -> Marks {
        let mut marks = Marks::default();
        for &(kind, resource_version) in of {
            marks.set(Mark { cluster: "c".into(), kind, resource_version });
        }
        marks
    }

    #[test]
    fn marks_order_only_where_both_are_numeric() {
        use ObjectKind::{EndpointSlice, Node, Service};
        let held = marks(&[(Service, 10), (EndpointSlice, 20)]);
        assert!(marks(&[(Service, 10), (EndpointSlice, 19)]).behind(&held));
        assert!(!marks(&[(Service, 10), (EndpointSlice, 20)]).behind(&held));
        assert!(!marks(&[(Service, 11), (EndpointSlice, 0)]).behind(&held));
        assert!(!marks(&[(Node, 1)]).behind(&held));
    }
}
