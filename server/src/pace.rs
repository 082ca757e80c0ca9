//! How often agents are told of changes (stream rule 3.6). Pure: the time is an argument.

use std::time::{Duration, Instant};

/// Least time between two commits. The first one after quiet does not wait.
pub const PERIOD: Duration = Duration::from_millis(20);
/// However slow the waves are, changes do not wait for longer.
const LONGEST: Duration = Duration::from_secs(1);

/// Follows the waves: from a commit until the last agent that waited for it has taken it up. Who was not waiting, as it
/// reads slowly, is no part of a wave.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    /// The last commit, and how long its wave has been so far.
    last: Option<(Instant, Duration)>,
}

impl Pace {
    /// Agents are being told of a commit.
    pub fn committed(&mut self, now: Instant) {
        self.last = Some((now, Duration::ZERO));
    }

    /// So far the newest agent has taken the last commit up at that moment.
    pub fn taken(&mut self, at: Instant) {
        if let Some((committed, wave)) = &mut self.last {
            *wave = (*wave).max(at.saturating_duration_since(*committed));
        }
    }

    /// How long the last wave has been so far.
    pub fn wave(&self) -> Duration {
        self.last.map_or(Duration::ZERO, |(_, wave)| wave)
    }

    /// When the next commit may be; `None`: at once. It moves on while a wave lasts, so that half of the time is left for
    /// all else that a server does.
    pub fn due(&self) -> Option<Instant> {
        self.last.map(|(committed, wave)| committed + (2 * wave).clamp(PERIOD, LONGEST))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn rule_3_6_the_first_change_after_quiet_does_not_wait_and_the_next_waits_for_the_period() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        assert_eq!(pace.due(), None);
        pace.committed(now);
        pace.taken(now + 3 * MS);
        assert_eq!(pace.due(), Some(now + PERIOD));
        assert!(pace.due() < Some(now + 25 * MS), "quiet");
    }

    #[test]
    fn rule_3_6_the_period_is_twice_the_last_wave_and_has_an_end() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        pace.committed(now);
        // While the wave lasts, it moves on.
        for at in [10, 40, 100, 90] {
            pace.taken(now + at * MS);
        }
        assert_eq!((pace.wave(), pace.due()), (100 * MS, Some(now + 200 * MS)));
        pace.taken(now + 700 * MS);
        assert_eq!(pace.due(), Some(now + LONGEST));
        pace.committed(now + LONGEST);
        assert_eq!((pace.wave(), pace.due()), (Duration::ZERO, Some(now + LONGEST + PERIOD)));
        pace.taken(now);
        assert_eq!(pace.wave(), Duration::ZERO, "what was before it is no part of it");
    }
}
