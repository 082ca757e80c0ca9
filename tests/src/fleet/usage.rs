//! What a process has cost so far.

use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::{TimeVal, TimeValLike};
use serde::{Deserialize, Serialize};

use super::clock;

/// Of one process, at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// When, by the clock that all processes share.
    pub at_micros: u64,
    /// CPU of all its threads since its start.
    pub cpu_micros: u64,
    /// Of that, in the kernel.
    pub system_micros: u64,
    /// Memory that is in RAM.
    pub rss_kib: u64,
}

impl Usage {
    /// Of this process.
    #[must_use]
    pub fn now() -> Self {
        let micros = |time: TimeVal| u64::try_from(time.num_microseconds()).unwrap_or(0);
        let usage = getrusage(UsageWho::RUSAGE_SELF).ok();
        let system = usage.map_or(0, |usage| micros(usage.system_time()));
        Self {
            at_micros: clock::micros(),
            cpu_micros: usage.map_or(0, |usage| micros(usage.user_time())) + system,
            system_micros: system,
            rss_kib: rss_kib("self").unwrap_or(0),
        }
    }

    /// CPU that was used since an earlier moment.
    #[must_use]
    pub fn cpu_since(&self, earlier: &Self) -> Duration {
        Duration::from_micros(self.cpu_micros.saturating_sub(earlier.cpu_micros))
    }

    /// The share of one processor that was used since an earlier moment.
    #[must_use]
    pub fn share_since(&self, earlier: &Self) -> f64 {
        let wall = self.at_micros.saturating_sub(earlier.at_micros).max(1);
        self.cpu_micros.saturating_sub(earlier.cpu_micros) as f64 / wall as f64
    }
}

/// `VmRSS` of a process, by its id or `self`.
#[must_use]
pub fn rss_kib(process: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_costs_something() {
        let before = Usage::now();
        let mut spent = 0_u64;
        while Usage::now().cpu_since(&before) < Duration::from_millis(20) {
            spent += 1;
        }
        let after = Usage::now();
        assert!(spent > 0 && after.rss_kib > 100 && after.share_since(&before) > 0.0);
    }
}
