//! Text for `nft -f -`: one transaction a text.

use std::fmt::Write as _;

use super::element::{ElementKey, Map, Value};
use super::held::comment;
use super::lay::Batch;
use super::{CANARY, Family, Nftables, TABLE, chain};

/// What is to be written, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Write {
    /// Puts what is wanted, and leads nobody any more to what is not. Each text is a transaction, and leaves a consistent
    /// state.
    pub main: Vec<String>,
    /// Takes away what packets may have been led to a moment ago: in transactions of its own, since a packet that was
    /// told an index has to find an endpoint there (spec/layout.md §6.2).
    pub later: Vec<String>,
    /// Removes chains and sets. Kernels before 6.2 hold on to them for a while; then it is done with the next write.
    pub sweep: Option<String>,
    /// Chains that are written or removed.
    pub chains: usize,
    /// Elements that are written or removed.
    pub elements: usize,
}

impl Write {
    /// All of it.
    pub fn text(&self) -> String {
        self.main.iter().chain(&self.later).chain(&self.sweep).map(String::as_str).collect()
    }
}

/// What happens to the elements of one map.
#[derive(Default)]
struct Part {
    gone: String,
    new: String,
}

impl Nftables {
    /// `None`: nothing is to be written.
    pub(super) fn text(&mut self, batch: Batch) -> Option<Write> {
        let ip = ip(self.family);
        let mut write = Write { chains: batch.chains.len(), ..Write::default() };
        self.last = batch.chains.iter().map(|chain| chain.rules.len()).sum();
        let head = self.head(&batch);
        let (mut now, mut later) = (Vec::new(), Vec::new());
        for ((map, key), (was, is)) in batch.changes {
            match is {
                _ if was == is => {}
                None if map.goes_later() => later.push((map, key, was, is)),
                _ => now.push((map, key, was, is)),
            }
        }
        write.elements = now.len() + later.len();
        write.main = sections(ip, head, &now, self.options.section);
        write.later = sections(ip, String::new(), &later, self.options.section);
        if batch.sweeps || !(write.main.is_empty() && write.later.is_empty()) {
            write.sweep = self.sweep();
        }
        let nothing = write.main.is_empty() && write.later.is_empty() && write.sweep.is_none();
        (!nothing).then_some(write)
    }

    /// What elements need to be there: the table, its sets and maps, and chains.
    fn head(&self, batch: &Batch) -> String {
        let ip = ip(self.family);
        let mut text = String::new();
        if batch.replaces {
            let _ = writeln!(text, "delete table {ip} {TABLE}");
        }
        if batch.makes {
            let _ = writeln!(text, "add table {ip} {TABLE}");
        }
        let address = if self.family == Family::V4 { "ipv4_addr" } else { "ipv6_addr" };
        if batch.canary {
            let _ = writeln!(text, "add set {ip} {TABLE} {CANARY} {{ type {address}; }}");
        }
        for map in &batch.maps {
            let _ = writeln!(text, "add {}", map.declaration(self.family));
        }
        for set in &batch.clients {
            let name = chain::clients(*set);
            let _ =
                writeln!(text, "add set {ip} {TABLE} {name} {{ type {address}; flags dynamic,timeout; }}");
        }
        for chain in batch.chains.iter().filter(|chain| !chain.is_there) {
            let hook = chain.hook.map(|hook| format!(" {{ {hook}; policy accept; }}")).unwrap_or_default();
            let _ = writeln!(text, "add chain {ip} {TABLE} {}{hook}", chain.name);
        }
        for chain in &batch.chains {
            if chain.is_there {
                let _ = writeln!(text, "flush chain {ip} {TABLE} {}", chain.name);
            }
            for rule in &chain.rules {
                let comment = comment(rule);
                let _ =
                    writeln!(text, "add rule {ip} {TABLE} {} {rule} comment \"{comment:08x}\"", chain.name);
            }
        }
        text
    }

    fn sweep(&self) -> Option<String> {
        let ip = ip(self.family);
        let (chains, sets) = (&self.unswept.chains, &self.unswept.sets);
        let mut text = String::new();
        // Emptied first, since some lead to others.
        for what in ["flush", "delete"] {
            for name in chains {
                let _ = writeln!(text, "{what} chain {ip} {TABLE} {name}");
            }
        }
        for name in sets {
            let _ = writeln!(text, "delete set {ip} {TABLE} {name}");
        }
        (!text.is_empty()).then_some(text)
    }
}

/// The table's family, as the tool calls it.
pub fn ip(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

type Change = (Map, ElementKey, Option<Value>, Option<Value>);

/// Cut so that none has more than so many elements.
fn sections(ip: &str, head: String, changes: &[Change], most: usize) -> Vec<String> {
    let mut sections = Vec::new();
    let mut text = head;
    for section in changes.chunks(most) {
        for of_map in section.chunk_by(|one, next| one.0 == next.0) {
            let mut part = Part::default();
            for (_, key, was, is) in of_map {
                if was.is_some() {
                    let _ = writeln!(part.gone, "{key},");
                }
                if let Some(value) = is {
                    let _ = writeln!(part.new, "{key}{value},");
                }
            }
            let Some((map, ..)) = of_map.first() else { continue };
            for (what, elements) in [("delete", part.gone), ("add", part.new)] {
                if !elements.is_empty() {
                    let _ = writeln!(text, "{what} element {ip} {TABLE} {map} {{\n{elements}}}");
                }
            }
        }
        sections.push(std::mem::take(&mut text));
    }
    if !text.is_empty() {
        sections.push(text);
    }
    sections
}
