//! What is printed and left in `target/bench.md`, which is written after every row: a run that ends early has what it
//! came to.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use distributary_e2e::figures::Table;

/// A cell's most characters of an error; all of it is on stderr.
const ERROR: usize = 160;

/// The tables so far.
#[derive(Debug)]
pub(crate) struct Report {
    head: String,
    sections: Vec<Section>,
    file: PathBuf,
    /// What could not be measured.
    pub(crate) failures: usize,
}

#[derive(Debug)]
struct Section {
    title: &'static str,
    columns: usize,
    table: Table,
}

impl Report {
    /// With this line above it; in `target/bench.md`.
    pub(crate) fn new(head: String) -> Result<Self> {
        let target = std::env::current_exe()?.ancestors().nth(2).context("target/PROFILE/bench")?.to_owned();
        Ok(Self { head, sections: Vec::new(), file: target.join("bench.md"), failures: 0 })
    }

    /// Rows come into a table with this title from now on.
    pub(crate) fn section(&mut self, title: &'static str, head: &[&str]) {
        self.sections.push(Section { title, columns: head.len(), table: Table::new(head) });
    }

    /// One row more.
    pub(crate) fn row<S: AsRef<str>>(&mut self, cells: &[S]) {
        if let Some(section) = self.sections.last_mut() {
            section.table.row(cells);
        }
        self.save();
    }

    /// A row that says why there are no figures in it.
    pub(crate) fn failed(&mut self, what: &str, error: &anyhow::Error) {
        eprintln!("bench: {what}: {error:#}");
        self.failures += 1;
        let columns = self.sections.last().map_or(2, |section| section.columns);
        let mut cells = vec![what.to_owned(), format!("**failed**: {}", in_a_cell(error))];
        cells.resize(columns.max(2), "–".to_owned());
        self.row(&cells);
    }

    /// All tables.
    pub(crate) fn text(&self) -> String {
        let sections = self.sections.iter().map(|one| format!("\n### {}\n\n{}", one.title, one.table.text()));
        format!("{}\n{}", self.head, sections.collect::<String>())
    }

    fn save(&self) {
        if let Err(e) = fs::write(&self.file, self.text()) {
            eprintln!("bench: {}: {e}", self.file.display());
        }
    }
}

/// An error as a table takes it.
pub(crate) fn in_a_cell(error: &anyhow::Error) -> String {
    let text = format!("{error:#}").replace('|', "/");
    let words: Vec<&str> = text.split_whitespace().collect();
    let mut line = words.join(" ");
    if let Some((end, _)) = line.char_indices().nth(ERROR) {
        line.truncate(end);
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_stays_in_its_cell() {
        let error = anyhow::anyhow!("a | b\n  c").context("x".repeat(200));
        let cell = in_a_cell(&error);
        assert!(!cell.contains('|') && !cell.contains('\n') && cell.chars().count() == ERROR + 1, "{cell}");
        assert_eq!(in_a_cell(&anyhow::anyhow!("a | b\n  c")), "a / b c");
    }
}
