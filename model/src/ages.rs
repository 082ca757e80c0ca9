//! How long ago the changes of slices were triggered. Clocks of two hosts are never subtracted, so a time travels as an age.

use std::time::Duration;

use crate::limits::AGES;

/// How long before a frame was encoded the slices of a record had to change, one age for each that did. What is measured
/// with them is for people; no rule depends on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ages {
    /// Slices of IPv4.
    pub v4: Vec<Duration>,
    /// Slices of IPv6.
    pub v6: Vec<Duration>,
}

impl Ages {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// Adds one, as far as the limit lets it.
    pub fn add(&mut self, v6: bool, age: Duration) {
        let ages = if v6 { &mut self.v6 } else { &mut self.v4 };
        if ages.len() < AGES {
            ages.push(age);
        }
    }
}
