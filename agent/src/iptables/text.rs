//! The text of a write: which chains come in which section, and in which order, so that after every section each
//! service is served as before, as wanted, or in between.

use std::collections::BTreeSet;

use distributary_model::{Key, Name};

use super::chain::Chain;
use super::fixed::Addition;
use super::lay::{Batch, Change, Part};
use super::parse::Table;
use super::roots::Root;
use super::{Flavour, Iptables, names, service};

/// What leads from what the kernel holds to what is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Write {
    /// For `iptables-restore --noflush`.
    pub text: String,
    /// Chains that are written, in order; one that stands in two sections stands here twice.
    pub chains: Vec<(Table, Name)>,
    /// Chains that are deleted.
    pub deleted: Vec<(Table, Name)>,
    /// Rules that are written.
    pub rules: usize,
    /// Parts that end in COMMIT: each comes into the kernel whole or not at all.
    pub sections: usize,
}

/// Services that others need to start: on an empty node they work after the first section.
const FIRST: [(&str, &str); 3] =
    [("default", "kubernetes"), ("kube-system", "coredns"), ("kube-system", "kube-dns")];

impl Iptables {
    /// `None` where there is nothing to write.
    pub(super) fn text(&self, batch: &Batch) -> Option<Write> {
        let mut write = Write::default();
        let Batch { early, nat, late, mangle } = batch;
        let additions = self.additions();
        let (first, served) = self.first(nat);
        if let Some(served) = &served {
            // What these jump to beside themselves is declared, and empty yet.
            let declared = [names::NODEPORTS, names::HAIRPINS];
            let declared = declared.into_iter().filter(|name| nat.has(name)).map(Chain::empty);
            let declared: Vec<Chain> = declared.collect();
            let chains = declared.iter().chain([served]).map(Part::from);
            let chains: Vec<Part<'_>> = first.iter().copied().chain(chains).collect();
            write.section(Table::Nat, &chains, &additions, &[], &[]);
        }
        let done: BTreeSet<&str> = first.iter().map(|part| &**part.name).collect();
        let of_nat: &[Addition] = if served.is_none() { &additions } else { &[] };
        // Chains of filter that are no more are deleted with the last of it.
        let early_is_last = late.len() == 0;
        let none = BTreeSet::new();
        self.table(
            &mut write,
            Table::Filter,
            early,
            if early_is_last { &late.gone } else { &none },
            &done,
            &additions,
        );
        self.table(&mut write, Table::Nat, nat, &nat.gone, &done, of_nat);
        if !early_is_last {
            self.table(&mut write, Table::Filter, late, &late.gone, &done, &[]);
        }
        self.table(&mut write, Table::Mangle, mangle, &none, &done, &[]);
        (write.sections > 0).then_some(write)
    }

    /// On an empty node, and where it takes several sections: what [`FIRST`] needs, and a list of only these.
    fn first<'a>(&self, nat: &'a Change) -> (Vec<Part<'a>>, Option<Chain>) {
        let held = self.kernel.get(&(Table::Nat, names::SERVICES.into()));
        if !self.cuts(nat.len()) || held.is_some_and(|held| held.rules > 0) {
            return (Vec::new(), None);
        }
        let laid = |(namespace, name): &(&str, &str)| {
            self.laid.get_key_value(&Key::service(self.options.cluster.clone(), *namespace, *name))
        };
        let services: Vec<_> = FIRST.iter().filter_map(laid).collect();
        let chains = services.iter().flat_map(|(_, laid)| &laid.chains).map(|name| &**name);
        let fixed = [names::MARK_MASQ, names::HAIRPIN, names::POSTROUTING];
        let first = fixed.into_iter().chain(chains).filter_map(|name| nat.part(name)).collect();
        let ports = services.iter().flat_map(|(key, _)| {
            self.plan.ports(key).into_iter().flat_map(|port| service::entries(&port, key))
        });
        let served = ports.filter(|(root, ..)| *root == Root::Services).map(|(_, at, leaf)| (at, leaf));
        (first, Some(self.roots.services_of(served)))
    }

    fn cuts(&self, chains: usize) -> bool {
        self.options.flavour == Flavour::Nft && chains > self.options.section
    }

    /// One table's sections.
    fn table(
        &self,
        write: &mut Write,
        table: Table,
        change: &Change,
        gone: &BTreeSet<Name>,
        done: &BTreeSet<&str>,
        additions: &[Addition],
    ) {
        let parts = change.parts().filter(|part| table != Table::Nat || !done.contains(&**part.name));
        let mut chains: Vec<Part<'_>> = parts.collect();
        chains.sort_by_key(|part| (change.given_up.contains(part.name), rank(part.name), part.name));
        let pinned = |name: &&Name| self.pinned.contains(&(table, (*name).clone()));
        let (flushed, deleted): (Vec<&Name>, Vec<&Name>) = gone.iter().partition(pinned);
        if !self.cuts(chains.len() + gone.len()) {
            write.section(table, &chains, additions, &flushed, &deleted);
            return;
        }
        let section = self.options.section;
        let parts = chains.chunks(section).count();
        for (i, part) in chains.chunks(section).enumerate() {
            write.section(table, part, if i + 1 == parts { additions } else { &[] }, &[], &[]);
        }
        if parts == 0 {
            write.section(table, &[], additions, &[], &[]);
        }
        // Nothing that is kept refers to these; they may to each other, so all are emptied before one is deleted.
        let gone: Vec<&Name> = gone.iter().collect();
        if gone.len() > section {
            gone.chunks(section).for_each(|part| write.section(table, &[], &[], part, &[]));
            deleted.chunks(section).for_each(|part| write.section(table, &[], &[], &[], part));
        } else {
            write.section(table, &[], &[], &flushed, &deleted);
        }
    }
}

impl<'a> From<&'a Chain> for Part<'a> {
    fn from(chain: &'a Chain) -> Self {
        Self { name: &chain.name, text: &chain.text, rules: chain.rules }
    }
}

impl Write {
    fn section(
        &mut self,
        table: Table,
        chains: &[Part<'_>],
        additions: &[Addition],
        flushed: &[&Name],
        deleted: &[&Name],
    ) {
        let additions: Vec<&Addition> = additions.iter().filter(|one| one.table == table).collect();
        if chains.is_empty() && additions.is_empty() && flushed.is_empty() && deleted.is_empty() {
            return;
        }
        let text = &mut self.text;
        text.extend(["*", table.as_str(), "\n"]);
        for name in chains.iter().map(|chain| chain.name).chain(flushed.iter().chain(deleted).copied()) {
            text.extend([":", name, " - [0:0]\n"]);
        }
        for name in additions.iter().filter_map(|one| one.declares) {
            text.extend([":", name, " - [0:0]\n"]);
        }
        text.extend(chains.iter().map(|chain| chain.text));
        for addition in &additions {
            text.extend([&addition.line, "\n"]);
        }
        for name in deleted {
            text.extend(["-X ", name, "\n"]);
        }
        text.push_str("COMMIT\n");
        self.chains.extend(chains.iter().map(|chain| (table, chain.name.clone())));
        self.deleted.extend(deleted.iter().map(|&name| (table, name.clone())));
        self.rules += chains.iter().map(|chain| chain.rules).sum::<usize>() + additions.len();
        self.sections += 1;
    }
}

/// Chains come after those that they refer to. What is sent back to where it comes from is masqueraded before any
/// service's chain stops to ask for it (kube-proxy's chains of endpoints do, ours do not).
fn rank(name: &str) -> (u8, u8) {
    // Of a trie, the deepest first.
    let depth = || {
        let bits = name.rsplit('-').next().and_then(|len| len.parse().ok()).unwrap_or(128_u8);
        128 - bits.min(128)
    };
    let is = |prefixes: &[&str]| prefixes.iter().any(|prefix| name.starts_with(prefix));
    match name {
        names::MARK_MASQ | names::HAIRPIN => (0, 0),
        names::HAIRPINS => (2, 0),
        names::POSTROUTING => (3, 0),
        names::SERVICES => (u8::MAX, 0),
        _ if is(&["KUBE-SVL-0-"]) => (1, depth()),
        _ if names::is_bucket(name) => (8, depth()),
        _ if is(&["KUBE-SEP-"]) => (4, 0),
        _ if is(&["KUBE-SVC-", "KUBE-SVL-"]) => (5, 0),
        _ if is(&["KUBE-EXT-"]) => (6, 0),
        _ if is(&["KUBE-FW-"]) => (7, 0),
        _ => (9, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_comes_after_those_that_it_refers_to_and_after_what_its_service_needs() {
        let order = [
            "KUBE-SVC-0-HAIRPIN",
            "KUBE-SVL-0-0A800000-12",
            "KUBE-SVL-0-0A000000-09",
            "KUBE-SVL-0-HAIRPIN",
            "KUBE-POSTROUTING",
            "KUBE-SEP-0XPGD46QRK7WJG11",
            "KUBE-SVL-XPGD46QRK7WJZT7O",
            "KUBE-EXT-XPGD46QRK7WJZT7O",
            "KUBE-FW-XPGD46QRK7WJZT7O",
            "KUBE-SVC-0-0A600000-12",
            "KUBE-SVC-0-0A000000-09",
            "KUBE-NODEPORTS",
            "KUBE-SERVICES",
        ];
        assert!(order.is_sorted_by(|a, b| rank(a) < rank(b)), "{:?}", order.map(rank));
    }
}
