//! The only retry policy: exponential, with full jitter, so that a fleet which lost its server does not come back as
//! one.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};

/// Delays between attempts. Begins anew after [`Backoff::reset`].
#[derive(Debug)]
pub struct Backoff {
    policy: ExponentialBuilder,
    delays: backon::ExponentialBackoff,
    most: Duration,
}

impl Backoff {
    /// Delays up to `least`, then twice that, and so on; never more than `most`.
    pub fn new(least: Duration, most: Duration) -> Self {
        let policy = ExponentialBuilder::new()
            .with_min_delay(least)
            .with_max_delay(most)
            .with_factor(2.0)
            .without_max_times();
        Self { policy, delays: policy.build(), most }
    }

    /// How long to wait before the next attempt: anything from nothing to the present bound, equally likely.
    pub fn next_delay(&mut self) -> Duration {
        self.next_bound().mul_f64(fastrand::f64())
    }

    /// The bound of the next delay, for those who take their chances themselves.
    pub fn next_bound(&mut self) -> Duration {
        self.delays.next().unwrap_or(self.most)
    }

    /// An attempt succeeded.
    pub fn reset(&mut self) {
        self.delays = self.policy.build();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_stay_within_the_growing_bound() {
        let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(60));
        for bound in [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0] {
            assert!(backoff.next_delay().as_secs_f64() <= bound);
        }
        backoff.reset();
        assert!(backoff.next_delay().as_secs_f64() <= 0.5);
    }

    #[test]
    fn jitter_is_full() {
        let mut all = Vec::new();
        for _ in 0..200 {
            all.push(Backoff::new(Duration::from_secs(1), Duration::from_secs(1)).next_delay().as_secs_f64());
        }
        assert!(all.iter().any(|delay| *delay < 0.2) && all.iter().any(|delay| *delay > 0.8));
    }
}
