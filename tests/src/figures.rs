//! Samples, and the table that they come to.

use std::fmt::Write;

/// Samples of one thing, in milliseconds unless said otherwise.
#[derive(Clone, Debug, Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// One more.
    pub fn push(&mut self, sample: f64) {
        self.0.push(sample);
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The sample that `percent` of all are not above (nearest rank). Not a number where there is none.
    pub fn percentile(&self, percent: usize) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (sorted.len() * percent).div_ceil(100).max(1);
        sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
    }

    /// The middle one.
    pub fn median(&self) -> f64 {
        self.percentile(50)
    }

    /// The smallest.
    pub fn least(&self) -> f64 {
        self.percentile(0)
    }

    /// `p50 …, p90 …, p99 …, max …` with the number of samples.
    pub fn spread(&self) -> String {
        let [p50, p90, p99, max] = [50, 90, 99, 100].map(|percent| self.percentile(percent));
        format!("p50 **{p50:.1}**, p90 {p90:.1}, p99 {p99:.1}, max {max:.1} ms ({} changes)", self.len())
    }
}

/// A Markdown table.
#[derive(Clone, Debug)]
pub struct Table(String);

impl Table {
    /// With this head.
    pub fn new(head: &[&str]) -> Self {
        let mut table = Self(String::new());
        table.row(head);
        table.row(&vec!["---"; head.len()]);
        table
    }

    /// Adds a row.
    pub fn row<S: AsRef<str>>(&mut self, cells: &[S]) {
        let cells: Vec<&str> = cells.iter().map(AsRef::as_ref).collect();
        // Writing to a String does not fail.
        let _ = writeln!(self.0, "| {} |", cells.join(" | "));
    }

    /// As text.
    pub fn text(&self) -> &str {
        &self.0
    }
}

/// `1.23 s`
pub fn seconds(millis: f64) -> String {
    format!("{:.2} s", millis / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples() {
        let mut samples = Samples::default();
        (1..=200).rev().for_each(|sample| samples.push(f64::from(sample)));
        assert_eq!([0, 50, 99, 100].map(|percent| samples.percentile(percent)), [1.0, 100.0, 198.0, 200.0]);
        assert!(Samples::default().median().is_nan());
    }

    #[test]
    fn a_table_is_markdown() {
        let mut table = Table::new(&["a", "b"]);
        table.row(&["1".to_owned(), "2".to_owned()]);
        assert_eq!(table.text(), "| a | b |\n| --- | --- |\n| 1 | 2 |\n");
    }
}
