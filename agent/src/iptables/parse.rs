//! Reads what `iptables-save` prints. Text that is none yields what can be made of it, never a panic.

use std::collections::BTreeMap;

/// A table that we write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Table {
    /// mangle
    Mangle,
    /// filter
    Filter,
    /// nat
    Nat,
}

impl Table {
    /// Those that hold chains of ours.
    pub const ALL: [Self; 3] = [Self::Nat, Self::Filter, Self::Mangle];

    /// As the tools call it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mangle => "mangle",
            Self::Filter => "filter",
            Self::Nat => "nat",
        }
    }

    fn parse(name: &str) -> Option<Self> {
        [Self::Mangle, Self::Filter, Self::Nat].into_iter().find(|table| table.as_str() == name)
    }
}

/// The chains of the tables that we know, with their rules: each is what follows `-A CHAIN `.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dump<'a> {
    tables: BTreeMap<Table, BTreeMap<&'a str, Vec<&'a str>>>,
    policies: BTreeMap<(Table, &'a str), &'a str>,
}

/// Reads the output of `iptables-save`, of one table or of several, with counters or without.
pub fn parse(save_output: &str) -> Dump<'_> {
    let mut dump = Dump::default();
    let mut table = None;
    for line in save_output.lines() {
        let line = line.trim_end();
        if let Some(name) = line.strip_prefix('*') {
            table = Table::parse(name);
        } else if line == "COMMIT" {
            table = None;
        } else if let Some(table) = table {
            dump.line(table, line);
        }
    }
    dump
}

impl<'a> Dump<'a> {
    fn line(&mut self, table: Table, line: &'a str) {
        let chains = self.tables.entry(table).or_default();
        if let Some(declared) = line.strip_prefix(':') {
            let mut words = declared.split(' ');
            let (chain, policy) = (words.next().unwrap_or_default(), words.next());
            chains.entry(chain).or_default();
            self.policies
                .extend(policy.filter(|policy| *policy != "-").map(|policy| ((table, chain), policy)));
            return;
        }
        let line = match line.strip_prefix('[') {
            Some(counted) => counted.split_once("] ").map_or("", |(_, line)| line),
            None => line,
        };
        let Some(rest) = line.strip_prefix("-A ") else { return };
        let (chain, rule) = rest.split_once(' ').unwrap_or((rest, ""));
        chains.entry(chain).or_default().push(rule);
    }

    /// Every chain of a table, in order of name.
    pub fn chains(&self, table: Table) -> impl Iterator<Item = (&'a str, &[&'a str])> {
        let chains = self.tables.get(&table).into_iter().flatten();
        chains.map(|(name, rules)| (*name, rules.as_slice()))
    }

    /// The rules of a chain; `None` where there is none such.
    pub fn rules(&self, table: Table, chain: &str) -> Option<&[&'a str]> {
        self.tables.get(&table)?.get(chain).map(Vec::as_slice)
    }

    /// Only the chains and rules of which `keeps` says so, of the chain's name and, where it is about a rule, its text.
    /// Built-in chains accept what falls out of them.
    #[must_use]
    pub fn only(&self, keeps: impl Fn(Table, &str, Option<&str>) -> bool) -> Self {
        let mut tables = BTreeMap::new();
        for (&table, chains) in &self.tables {
            let chains = chains.iter().filter(|(name, _)| keeps(table, name, None)).map(|(&name, rules)| {
                (name, rules.iter().copied().filter(|rule| keeps(table, name, Some(rule))).collect())
            });
            tables.insert(table, chains.collect());
        }
        Self { tables, policies: BTreeMap::new() }
    }

    /// What a built-in chain does with what falls out of it.
    pub fn policy(&self, table: Table, chain: &str) -> Option<&'a str> {
        self.policies.get(&(table, chain)).copied()
    }
}

/// The word behind a flag of a rule, and whether a `!` stands before it. Quoted words are taken whole.
pub(crate) fn argument<'a>(rule: &'a str, flag: &str) -> Option<(bool, &'a str)> {
    let mut not = false;
    let mut words = words(rule);
    while let Some(word) = words.next() {
        if word == flag {
            return words.next().map(|value| (not, value));
        }
        not = word == "!";
    }
    None
}

/// The chain or target that a rule jumps or goes to.
pub(crate) fn target(rule: &str) -> Option<&str> {
    argument(rule, "-j").or_else(|| argument(rule, "-g")).map(|(_, target)| target)
}

/// The words of a rule, quotes taken off.
pub(crate) fn words(rule: &str) -> impl Iterator<Item = &str> {
    let mut rest = rule;
    std::iter::from_fn(move || {
        rest = rest.trim_start_matches(' ');
        if rest.is_empty() {
            return None;
        }
        let (word, after) = match rest.strip_prefix('"') {
            Some(quoted) => quoted.split_at(end_of_quotes(quoted)),
            None => rest.split_at(rest.find(' ').unwrap_or(rest.len())),
        };
        rest = after.strip_prefix('"').unwrap_or(after);
        Some(word)
    })
}

fn end_of_quotes(text: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'"' if !escaped => return at,
            b'\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SAVED: &str = "# Generated\n*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -j X\nCOMMIT\n*nat\n\
        :PREROUTING ACCEPT [1:2]\n:KUBE-SVC-A - [0:0]\n[3:4] -A PREROUTING -j KUBE-SVC-A\n\
        -A KUBE-SVC-A -m comment --comment \"say \\\"-j\\\" \" -j Y\nCOMMIT\n";

    #[test]
    fn reads_chains_and_rules() {
        let dump = parse(SAVED);
        assert_eq!(dump.rules(Table::Nat, "PREROUTING"), Some(&["-j KUBE-SVC-A"][..]));
        assert_eq!(dump.chains(Table::Nat).count(), 2);
        assert_eq!(dump.policy(Table::Nat, "PREROUTING"), Some("ACCEPT"));
        assert_eq!(dump.policy(Table::Nat, "KUBE-SVC-A"), None);
        assert_eq!(dump.chains(Table::Filter).count(), 0);
        let rule = dump.rules(Table::Nat, "KUBE-SVC-A").unwrap()[0];
        assert_eq!(target(rule), Some("Y"));
        assert_eq!(argument("! -d 1.2.3.4/32 -j X", "-d"), Some((true, "1.2.3.4/32")));
    }

    proptest! {
        #[test]
        fn never_panics(text in "([*:\\[\\]!\"\\\\ A-Z-]|-A |COMMIT|\\*nat|\n|\\PC){0,60}") {
            let text = format!("*nat\n{text}");
            let dump = parse(&text);
            for (_, rules) in dump.chains(Table::Nat) {
                for rule in rules {
                    let _ = (target(rule), argument(rule, "-d"), words(rule).count());
                }
            }
        }
    }
}
