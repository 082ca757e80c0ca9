//! What time it is on a host: no two agree, and one may jump.

use std::time::{Duration, Instant};

use super::At;

/// The monotonic clock of a host.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    base: Instant,
    ahead: Duration,
}

impl Clock {
    pub(super) fn new(base: Instant, ahead: Duration) -> Self {
        Self { base, ahead }
    }

    /// What it shows at that moment.
    pub(super) fn show(&self, at: At) -> Instant {
        self.base + self.ahead + Duration::from_micros(at)
    }

    /// When it shows that.
    pub(super) fn when(&self, shown: Instant) -> At {
        let since = shown.saturating_duration_since(self.base + self.ahead);
        // A moment later rather than earlier: a timer that fires too early fires again.
        u64::try_from(since.as_micros()).unwrap_or(At::MAX).saturating_add(1)
    }

    /// The host was asleep for so long, or its clock says so.
    pub(super) fn jump(&mut self, by: Duration) {
        self.ahead += by;
    }
}
