//! Durations by size, a factor of 1.4 apart, so that p99.9 can be read from them.

use std::time::Duration;

const FIRST: f64 = 0.001;
const FACTOR: f64 = 1.4;
/// The last bound is 34 s.
const BOUNDS: usize = 32;

/// How many durations were how long.
#[derive(Clone, Debug)]
pub struct Histogram {
    /// Up to each bound, and beyond all.
    counts: [u64; BOUNDS + 1],
    sum: f64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: [0; BOUNDS + 1], sum: 0.0 }
    }
}

impl Histogram {
    /// Adds one.
    pub fn observe(&mut self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let index = bounds().position(|bound| seconds <= bound).unwrap_or(BOUNDS);
        self.counts[index] += 1;
        self.sum += seconds;
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Of all together, in seconds.
    pub fn sum(&self) -> f64 {
        self.sum
    }

    /// Every bound in seconds with how many are up to it and above the one before.
    pub fn buckets(&self) -> Vec<(f64, u64)> {
        bounds().chain([f64::MAX]).zip(self.counts).collect()
    }

    /// So long at most were that share of all, in seconds; beyond all bounds it is infinite. `None`: there are none.
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let wanted = (share * self.count() as f64).ceil().max(1.0);
        let mut seen = 0;
        self.count().checked_sub(1)?;
        for (bound, count) in bounds().chain([f64::INFINITY]).zip(self.counts) {
            seen += count;
            if seen as f64 >= wanted {
                return Some(bound);
            }
        }
        None
    }
}

fn bounds() -> impl Iterator<Item = f64> {
    std::iter::successors(Some(FIRST), |bound| Some(bound * FACTOR)).take(BOUNDS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_bounds_that_hold() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), None);
        (1..=1000).for_each(|millis| histogram.observe(Duration::from_millis(millis)));
        for (share, seconds) in [(0.5, 0.5), (0.99, 0.99), (0.999, 0.999)] {
            let found = histogram.quantile(share).unwrap();
            assert!(found >= seconds && found <= seconds * FACTOR, "{share}: {found}");
        }
        histogram.observe(Duration::from_secs(100));
        assert_eq!(histogram.quantile(1.0), Some(f64::INFINITY));
        assert_eq!((histogram.count(), histogram.buckets().len()), (1001, BOUNDS + 1));
    }
}
