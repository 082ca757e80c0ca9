//! A packet filter in memory: it takes restore text as the tools do, prints itself as they do, and says what becomes of
//! a packet.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use distributary_model::Name;

use super::parse::{Table, parse, target};
pub use super::trace::{Fate, From, Packet};
use super::trace::{Host, Rules};

type Chains = BTreeMap<(Table, String), Vec<String>>;

/// The tables of one family.
#[derive(Clone, Debug)]
pub struct Fake {
    chains: Chains,
    /// Built-in chains that drop what falls out of them.
    drops: BTreeSet<(Table, String)>,
    /// This host's addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// Lists of the recent match that know the client, and for how many seconds.
    pub remembered: BTreeMap<Name, u32>,
    /// What the chains say, once that was asked.
    rules: OnceCell<Rules>,
}

const BUILT_IN: [(Table, &[&str]); 3] = [
    (Table::Mangle, &["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"]),
    (Table::Filter, &["INPUT", "FORWARD", "OUTPUT"]),
    (Table::Nat, &["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"]),
];
const TARGETS: [&str; 7] = ["ACCEPT", "DROP", "RETURN", "REJECT", "DNAT", "MARK", "MASQUERADE"];

impl Default for Fake {
    fn default() -> Self {
        let built_in = BUILT_IN.iter();
        let chains = built_in
            .flat_map(|(table, names)| names.iter().map(|name| ((*table, (*name).into()), Vec::new())));
        Self {
            chains: chains.collect(),
            drops: BTreeSet::new(),
            addresses: BTreeSet::new(),
            remembered: BTreeMap::new(),
            rules: OnceCell::new(),
        }
    }
}

impl Fake {
    /// The text's sections, each for [`Fake::restore`].
    pub fn sections(text: &str) -> Vec<String> {
        text.split_inclusive("COMMIT\n").map(str::to_owned).collect()
    }

    /// As `iptables-restore --noflush`: section after section, each whole or not at all.
    ///
    /// # Errors
    /// The first line that the kernel or the tool would refuse.
    pub fn restore(&mut self, text: &str) -> Result<(), String> {
        for section in Self::sections(text) {
            let (mut chains, mut drops) = (self.chains.clone(), self.drops.clone());
            apply(&mut chains, &mut drops, &section)?;
            (self.chains, self.drops) = (chains, drops);
            self.rules.take();
        }
        Ok(())
    }

    /// As `iptables-save`.
    pub fn save(&self) -> String {
        let mut out = String::new();
        for (table, built_in) in BUILT_IN {
            out.extend(["*", table.as_str(), "\n"]);
            let chains = || self.chains.iter().filter(move |((of, _), _)| *of == table);
            for ((_, name), _) in chains() {
                let policy = match built_in.contains(&name.as_str()) {
                    true if self.drops.contains(&(table, name.clone())) => "DROP",
                    true => "ACCEPT",
                    false => "-",
                };
                out.extend([":", name, " ", policy, " [0:0]\n"]);
            }
            for ((_, name), rules) in chains() {
                rules.iter().for_each(|rule| out.extend(["-A ", name, " ", rule, "\n"]));
            }
            out.push_str("COMMIT\n");
        }
        out
    }

    /// How many chains there are that are not built in, and rules.
    pub fn size(&self) -> (usize, usize) {
        let built_in: usize = BUILT_IN.iter().map(|(_, names)| names.len()).sum();
        (self.chains.len() - built_in, self.chains.values().map(Vec::len).sum())
    }

    /// What becomes of a packet.
    pub fn fate(&self, packet: &Packet) -> Fate {
        let rules = self.rules.get_or_init(|| Rules::read(&parse(&self.save())));
        let host = Host { addresses: self.addresses.clone(), remembered: self.remembered.clone() };
        rules.fate(&host, packet)
    }
}

fn apply(chains: &mut Chains, drops: &mut BTreeSet<(Table, String)>, section: &str) -> Result<(), String> {
    let mut table = None;
    let mut seen_rules = false;
    for line in section.lines() {
        let refuse = |why: &str| Err(format!("{why}: {line}"));
        if let Some(name) = line.strip_prefix('*') {
            table = BUILT_IN.iter().map(|(table, _)| *table).find(|table| table.as_str() == name);
            continue;
        }
        let Some(table) = table else { return refuse("no table") };
        if line == "COMMIT" {
            return loops(chains, table);
        }
        if let Some(name) = line.strip_prefix(':') {
            if seen_rules {
                return refuse("late declaration");
            }
            if let Some(name) = name.strip_suffix(" DROP [0:0]") {
                drops.insert((table, name.into()));
                continue;
            }
            if let Some(name) = name.strip_suffix(" ACCEPT [0:0]") {
                drops.remove(&(table, name.to_owned()));
                continue;
            }
            let name = name.strip_suffix(" - [0:0]").ok_or_else(|| format!("bad declaration: {line}"))?;
            if name.len() > 28 {
                return refuse("name too long");
            }
            chains.insert((table, name.into()), Vec::new());
            continue;
        }
        seen_rules = true;
        let mut parts = line.splitn(3, ' ');
        let (command, chain, rule) = (parts.next(), parts.next().unwrap_or(""), parts.next().unwrap_or(""));
        let id = (table, chain.to_owned());
        let jumps_to = target(rule);
        let known = |name: &str| TARGETS.contains(&name) || chains.contains_key(&(table, name.to_owned()));
        if !chains.contains_key(&id) {
            return refuse("no such chain");
        }
        if jumps_to.is_some_and(|target| !known(target)) {
            return refuse("no such target");
        }
        let mut referenced = chains.iter().filter(|((of, _), _)| *of == table).flat_map(|(_, rules)| rules);
        match command {
            Some("-X") if referenced.any(|rule| target(rule) == Some(chain)) => {
                return refuse("still referenced");
            }
            Some("-X") if chains[&id].is_empty() => {
                chains.remove(&id);
            }
            Some("-A") => chains.entry(id).or_default().push(rule.to_owned()),
            Some("-I") => chains.entry(id).or_default().insert(0, rule.to_owned()),
            Some("-D") => {
                let rules = chains.entry(id).or_default();
                match rules.iter().position(|known| known == rule) {
                    Some(at) => {
                        rules.remove(at);
                    }
                    None => return refuse("no such rule"),
                }
            }
            _ => return refuse("no such command"),
        }
    }
    Err("no COMMIT".into())
}

/// Chains that jump in a circle are refused.
fn loops(chains: &Chains, table: Table) -> Result<(), String> {
    fn visit<'a>(
        chains: &'a Chains,
        id: (Table, &'a str),
        path: &mut Vec<&'a str>,
        done: &mut BTreeSet<&'a str>,
    ) -> bool {
        if path.contains(&id.1) {
            return true;
        }
        if !done.insert(id.1) {
            return false;
        }
        path.push(id.1);
        let rules = chains.get(&(id.0, id.1.to_owned())).into_iter().flatten();
        let found =
            rules.filter_map(|rule| target(rule)).any(|target| visit(chains, (id.0, target), path, done));
        path.pop();
        found
    }
    let mut done = BTreeSet::new();
    for (of, name) in chains.keys() {
        if *of == table && visit(chains, (table, name), &mut Vec::new(), &mut done) {
            return Err(format!("loop at {name}"));
        }
    }
    Ok(())
}
