//! What somebody has done to the rules, in words.

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
        let said: Vec<String> = rules.chain(chains_of).take(SHOWN).collect();
        let all = chains + additions.len();
        match all.checked_sub(said.len()) {
            Some(more @ 1..) => format!("{} and {more} more", said.join(", ")),
            _ => said.join(", "),
        }
    }
}
