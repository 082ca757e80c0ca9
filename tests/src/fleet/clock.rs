//! The clock that all processes of a machine share: what one notes, another may subtract.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Microseconds of `CLOCK_MONOTONIC`.
#[must_use]
pub fn micros() -> u64 {
    // It is there on every Linux.
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}
