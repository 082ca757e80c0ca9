//! What every object has.

use distributary_model::ObjectKind;

use crate::ObjectKey;
use crate::lean::Metadata;

/// What every object has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Names it.
    pub key: ObjectKey,
    /// metadata.resourceVersion where that is a number, else 0.
    pub resource_version: u64,
    /// Values in it that could not be read and are left out; the rest holds.
    pub problems: Vec<String>,
}

impl Meta {
    pub(crate) fn of<L: Default, A: Default>(kind: ObjectKind, metadata: &Metadata<L, A>) -> Option<Self> {
        let key = metadata.key(kind)?;
        Some(Self { key, resource_version: metadata.version(), problems: Vec::new() })
    }

    pub(crate) fn problem(&mut self, what: String) {
        self.problems.push(what);
    }
}
