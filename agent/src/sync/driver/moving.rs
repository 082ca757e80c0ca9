//! When to go to another server although this one serves.

use std::time::{Duration, Instant};

use distributary_runtime::backoff::Backoff;

/// A server whose sources are staler than this may be left for one whose are not.
pub(super) const STALE: Duration = Duration::from_secs(30);
/// By so much the other must be fresher.
pub(super) const FRESHER: Duration = Duration::from_secs(10);
/// So long may pass from dialling to End.
pub(super) const WITHIN: Duration = Duration::from_secs(60);

/// Why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// The server asked for it.
    Drained(String),
    /// The server's sources are stale, and another's may not be.
    Stale,
}

/// That it is to be moved, and when.
#[derive(Debug)]
pub(super) struct Moving {
    pub(super) why: Why,
    pub(super) at: Instant,
    /// The current server will not do.
    pub(super) elsewhere: bool,
}

/// Paces attempts to find a fresher server.
#[derive(Debug)]
pub(super) struct Probes {
    backoff: Backoff,
    not_before: Option<Instant>,
}

impl Default for Probes {
    fn default() -> Self {
        let backoff = Backoff::new(Duration::from_secs(30), Duration::from_secs(600));
        Self { backoff, not_before: None }
    }
}

impl Probes {
    /// Whether it is time to look for another server.
    pub(super) fn may(&self, now: Instant) -> bool {
        self.not_before.is_none_or(|at| at <= now)
    }

    /// None was found.
    pub(super) fn failed(&mut self, share: f64, now: Instant) {
        self.not_before = Some(now + self.backoff.next_bound().mul_f64(0.5 + share / 2.0));
    }

    /// The server is fresh.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }
}
