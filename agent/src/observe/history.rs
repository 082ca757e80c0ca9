//! What was seen before: a difference is one when it is seen twice in a row, and nothing of it has changed between.

use std::collections::BTreeSet;

use super::difference::Difference;

/// The differences of one family, comparison after comparison.
#[derive(Debug, Default)]
pub struct History {
    seen: BTreeSet<Difference>,
    confirmed: BTreeSet<Difference>,
}

/// What a comparison brought.
#[derive(Debug, Default)]
pub struct News {
    /// Differences that are confirmed now and were not before.
    pub appeared: Vec<Difference>,
    /// Differences that were confirmed and are no more.
    pub gone: Vec<Difference>,
    /// How many were seen for the first time.
    pub fresh: usize,
}

impl History {
    /// Takes a comparison in. `in_flight` says of which the service changed since the last one.
    pub fn next(&mut self, now: BTreeSet<Difference>, in_flight: impl Fn(&Difference) -> bool) -> News {
        let twice = |one: &&Difference| self.seen.contains(*one) && !in_flight(one);
        let confirmed: BTreeSet<Difference> = now.iter().filter(twice).cloned().collect();
        let news = News {
            appeared: confirmed.difference(&self.confirmed).cloned().collect(),
            gone: self.confirmed.difference(&confirmed).cloned().collect(),
            fresh: now.len() - confirmed.len(),
        };
        (self.seen, self.confirmed) = (now, confirmed);
        news
    }

    /// What was seen at least twice in a row.
    pub fn confirmed(&self) -> &BTreeSet<Difference> {
        &self.confirmed
    }
}
