//! Readiness: ready when nobody holds it up any more.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

/// Knows who still holds up readiness.
#[derive(Clone, Debug, Default)]
pub struct Ready(Arc<Mutex<BTreeSet<String>>>);

/// Holds up readiness until it is dropped.
#[derive(Debug)]
#[must_use = "readiness is held up until this is dropped"]
pub struct Pending {
    ready: Ready,
    what: String,
}

impl Ready {
    /// Not ready before what this returns is dropped.
    pub fn hold(&self, what: impl Into<String>) -> Pending {
        let what = what.into();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(what.clone());
        Pending { ready: self.clone(), what }
    }

    /// What holds it up; empty when ready.
    pub fn pending(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.ready.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.what);
    }
}
