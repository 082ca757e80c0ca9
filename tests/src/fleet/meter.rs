//! From a change at its source until an agent has it, over all agents and all changes.
//!
//! A mark of the source is the time of its newest change, by the clock that all processes share, and every frame carries
//! the newest mark that it includes. So an agent need only note which marks came when.

use serde::{Deserialize, Serialize};

/// What came when, at any agent of a process.
#[derive(Clone, Debug, Default)]
pub struct Meter(Vec<Received>);

#[derive(Clone, Copy, Debug)]
struct Received {
    /// The agent had everything up to this mark…
    before: u64,
    /// …and now has everything up to this one.
    mark: u64,
    at: u64,
}

impl Meter {
    /// An agent that had everything up to a mark now has it up to another.
    pub fn received(&mut self, before: u64, mark: u64, at: u64) {
        self.0.push(Received { before, mark, at });
    }

    /// Forgets what it noted.
    pub fn clear(&mut self) {
        self.0 = Vec::new();
    }

    /// What the changes of these times, which are sorted, took to so many agents.
    #[must_use]
    pub fn latencies(&self, changes: &[u64], agents: usize) -> Latencies {
        let mut all = Latencies { last: vec![0; changes.len()], ..Latencies::default() };
        for Received { before, mark, at } in &self.0 {
            let from = changes.partition_point(|change| change <= before);
            let until = changes.partition_point(|change| change <= mark);
            for (change, last) in changes[from..until].iter().zip(&mut all.last[from..until]) {
                let took = at.saturating_sub(*change);
                all.histogram.add(took);
                *last = (*last).max(took);
            }
        }
        all.missing =
            (changes.len() * agents) as u64 - all.histogram.count.min((changes.len() * agents) as u64);
        all
    }
}

/// How long changes took, in microseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latencies {
    /// Over all pairs of a change and an agent.
    pub histogram: Histogram,
    /// Of every change to the last agent.
    pub last: Vec<u64>,
    /// Pairs of which nothing is known: the change has not come.
    pub missing: u64,
}

impl Latencies {
    /// Adds what other agents had of the same changes.
    pub fn merge(&mut self, other: &Self) {
        self.histogram.merge(&other.histogram);
        self.last.resize(self.last.len().max(other.last.len()), 0);
        for (last, theirs) in self.last.iter_mut().zip(&other.last) {
            *last = (*last).max(*theirs);
        }
        self.missing += other.missing;
    }
}

/// Counts of microseconds, exact to a 64th.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Histogram {
    counts: Vec<u64>,
    /// How many were added.
    pub count: u64,
    /// The largest.
    pub max: u64,
}

/// Steps between one power of two and the next.
const STEPS: u32 = 6;

impl Histogram {
    /// One more.
    pub fn add(&mut self, micros: u64) {
        let place = place(micros);
        if self.counts.len() <= place {
            self.counts.resize(place + 1, 0);
        }
        self.counts[place] += 1;
        self.count += 1;
        self.max = self.max.max(micros);
    }

    /// Adds all of another.
    pub fn merge(&mut self, other: &Self) {
        self.counts.resize(self.counts.len().max(other.counts.len()), 0);
        for (count, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *count += theirs;
        }
        self.count += other.count;
        self.max = self.max.max(other.max);
    }

    /// What so many of a thousand are not above, in microseconds. Nothing where there is none.
    #[must_use]
    pub fn per_mille(&self, share: u64) -> Option<u64> {
        let rank = (u128::from(self.count) * u128::from(share)).div_ceil(1000).max(1);
        let mut seen = 0;
        let place = self.counts.iter().position(|count| {
            seen += u128::from(*count);
            seen >= rank
        })?;
        Some(upper(place).min(self.max))
    }
}

fn place(micros: u64) -> usize {
    let shift = (63 - (micros | 1 << STEPS).leading_zeros()) - STEPS;
    ((u64::from(shift) << STEPS) + (micros >> shift)) as usize
}

/// The largest number in a place.
fn upper(place: usize) -> u64 {
    let place = place as u64;
    let shift = (place >> STEPS).saturating_sub(1);
    ((place - (shift << STEPS) + 1) << shift) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_holds_what_is_put_there() {
        for micros in (0..2_000).chain([1 << 20, (1 << 20) + 12_345, 7_654_321]) {
            let upper = upper(place(micros));
            assert!(upper >= micros && upper - micros <= micros / 64 + 1, "{micros} is told as {upper}");
            assert!(micros == 0 || place(micros) >= place(micros - 1));
        }
    }

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let mut all = Histogram::default();
        (1..=100).for_each(|micros| all.add(micros * 1000));
        let near = |share: u64, expected: u64| {
            let found = all.per_mille(share).unwrap();
            assert!(found >= expected && found <= expected + expected / 64, "{found}, not {expected}");
        };
        near(500, 50_000);
        near(990, 99_000);
        assert_eq!((all.per_mille(1000), all.max), (Some(100_000), 100_000));
        assert_eq!(Histogram::default().per_mille(500), None);
    }

    #[test]
    fn every_change_counts_for_every_agent_once() {
        let mut meter = Meter::default();
        // One agent has the changes one by one, the other both at once; nobody has the third.
        meter.received(0, 10, 13);
        meter.received(10, 20, 25);
        meter.received(5, 20, 40);
        let all = meter.latencies(&[10, 20, 30], 2);
        assert_eq!((all.histogram.count, all.histogram.max, all.missing), (4, 30, 2));
        assert_eq!(all.last, [30, 20, 0]);
        let mut twice = all.clone();
        twice.merge(&all);
        assert_eq!((twice.histogram.count, twice.missing, twice.last), (8, 4, all.last));
    }
}
