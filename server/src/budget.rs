//! How many bytes a server gives to who joins or has to be repaired (design §3): a restart of everything must not become a
//! storm. Pure: the time is an argument.

use std::time::{Duration, Instant};

/// Nobody is sent away for longer.
const LONGEST: Duration = Duration::from_secs(60);

/// So many bytes a second, and those of one second at once.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Bytes a second.
    rate: u64,
    /// What is not paid off yet.
    spent: f64,
    at: Option<Instant>,
    /// Until then, what comes in is promised to those who were sent away.
    promised: Option<Instant>,
}

impl Budget {
    /// So many bytes a second.
    pub fn new(rate: u64) -> Self {
        Self { rate: rate.max(1), spent: 0.0, at: None, promised: None }
    }

    /// Asks for that many bytes.
    ///
    /// # Errors
    /// When there are none left: how long to wait. Each who asks is told a later moment than the one before.
    pub fn ask(&mut self, bytes: u64, now: Instant) -> Result<(), Duration> {
        self.pay_off(now);
        let rate = self.rate as f64;
        // Whoever is larger than all there is goes alone.
        if self.spent == 0.0 || self.spent + bytes as f64 <= rate {
            self.spent += bytes as f64;
            return Ok(());
        }
        let first = now + Duration::from_secs_f64((self.spent / rate).min(LONGEST.as_secs_f64()));
        let from = self.promised.map_or(first, |promised| promised.max(first));
        let at = (from + Duration::from_secs_f64(bytes as f64 / rate)).min(now + LONGEST);
        self.promised = Some(at);
        Err(at.saturating_duration_since(now))
    }

    /// So many were given although nobody asked: what one that was let in came to.
    pub fn charge(&mut self, bytes: u64, now: Instant) {
        self.pay_off(now);
        self.spent += bytes as f64;
    }

    fn pay_off(&mut self, now: Instant) {
        if let Some(at) = self.at.replace(now) {
            let paid = now.saturating_duration_since(at).as_secs_f64() * self.rate as f64;
            self.spent = (self.spent - paid).max(0.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn one_seconds_worth_goes_at_once_and_the_rest_is_told_one_after_the_other() {
        let (mut budget, now) = (Budget::new(1_000), Instant::now());
        for _ in 0..4 {
            assert_eq!(budget.ask(250, now), Ok(()));
        }
        let waits: Vec<Duration> = (0..3).map(|_| budget.ask(250, now).unwrap_err()).collect();
        assert_eq!(waits, [5, 6, 7].map(|quarters| quarters * SECOND / 4));
        assert_eq!(budget.ask(250, now + SECOND), Ok(()), "who is there when there is something gets it");
    }

    #[test]
    fn whoever_is_larger_than_all_goes_alone_and_nobody_waits_for_ever() {
        let (mut budget, now) = (Budget::new(1_000), Instant::now());
        assert_eq!(budget.ask(50_000, now), Ok(()));
        assert_eq!(budget.ask(1, now + 10 * SECOND), Err(40 * SECOND + SECOND / 1_000));
        for _ in 0..100 {
            assert!(budget.ask(50_000, now).unwrap_err() <= LONGEST);
        }
        assert_eq!(budget.ask(50_000, now + 51 * SECOND), Ok(()));
    }

    #[test]
    fn what_was_not_asked_for_is_paid_by_those_who_come() {
        let (mut budget, now) = (Budget::new(1_000), Instant::now());
        budget.charge(3_000, now);
        assert_eq!(budget.ask(100, now), Err(SECOND * 31 / 10));
        assert_eq!(budget.ask(100, now + 3 * SECOND), Ok(()));
    }
}
