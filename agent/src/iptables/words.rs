//! What is written, and what somebody has done to the rules, in words.

use std::collections::BTreeMap;

use super::{Iptables, Write};

/// So many are named.
const SHOWN: usize = 8;

impl Iptables {
    /// What was found in the kernel that this write puts right: chains that are missing, changed or left over, and rules
    /// that chains of others lack. The first of them, and how many more.
    pub fn wrong(&self, write: &Write) -> String {
        let mut wrong = BTreeMap::new();
        for id in &write.chains {
            wrong.insert(id, if self.kernel.get(id).is_some() { "changed" } else { "missing" });
        }
        wrong.extend(write.deleted.iter().map(|id| (id, "left over")));
        let chains = wrong.len();
        let additions = self.additions();
        let rules = additions.iter().map(|one| format!("{}: {} missing", one.table.as_str(), one.line));
        let chains_of = wrong.iter().map(|((table, name), what)| format!("{}/{name} {what}", table.as_str()));
        some_of(rules.chain(chains_of), chains + additions.len(), ", ")
    }
}

impl Write {
    /// The chains that are written or deleted. The first of them, and how many more.
    pub fn names(&self) -> String {
        let all = self.chains.iter().chain(&self.deleted);
        let names = all.map(|(table, name)| format!("{}/{name}", table.as_str()));
        some_of(names, self.chains.len() + self.deleted.len(), " ")
    }
}

/// The first of `count`. Those that are not said are not made either.
fn some_of(all: impl Iterator<Item = String>, count: usize, separator: &str) -> String {
    let said = all.take(SHOWN).collect::<Vec<_>>().join(separator);
    match count.checked_sub(SHOWN) {
        Some(more @ 1..) => format!("{said} and {more} more"),
        _ => said,
    }
}
