//! From the plan of what was touched to the chains that differ from the kernel's.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;

use distributary_model::{Key, Name};

use super::chain::{Chain, TextHash};
use super::held::{Held, Id, Kernel};
use super::parse::Table;
use super::roots::{Leaf, Root, Roots, at, bits};
use super::service::{self, Entry, Style};
use super::trie::EntryKey;
use super::{Hairpin, Iptables, fixed, groups, names};
use crate::plan::WithoutLocal;

/// What a Service has in the rules.
#[derive(Debug, Default)]
pub(super) struct Laid {
    pub(super) chains: Box<[Name]>,
    entries: Box<[(Root, EntryKey)]>,
    hairpins: Box<[IpAddr]>,
    without_local: WithoutLocal,
}

impl Laid {
    fn is_something(&self) -> bool {
        let nothing = self.chains.is_empty() && self.entries.is_empty() && self.hairpins.is_empty();
        !nothing || self.without_local != WithoutLocal::default()
    }

    /// What packets come to it by and the other does not have.
    fn dispatched_beyond(&self, other: &Self) -> impl Iterator<Item = &(Root, EntryKey)> {
        let dispatched = |root: &Root| matches!(root, Root::Services | Root::NodePorts(_));
        self.entries.iter().filter(move |at| dispatched(&at.0) && !other.entries.contains(at))
    }
}

/// What changes in one table. All text is in one piece, which the heap gives back whole.
#[derive(Debug, Default)]
pub(super) struct Change {
    text: String,
    chains: BTreeMap<Name, Staged>,
    pub(super) gone: BTreeSet<Name>,
    /// Chains of Services that give an address up: what leads to them is written first.
    pub(super) given_up: BTreeSet<Name>,
}

#[derive(Debug)]
struct Staged {
    text: Range<usize>,
    rules: usize,
    hash: TextHash,
}

/// A chain that is to be written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part<'a> {
    pub(super) name: &'a Name,
    /// `-A` lines.
    pub(super) text: &'a str,
    pub(super) rules: usize,
}

/// What changes, in the order in which it may come into the kernel.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// filter, with what is refused now and what was.
    pub(super) early: Change,
    pub(super) nat: Change,
    /// filter, without what is not refused any more.
    pub(super) late: Change,
    pub(super) mangle: Change,
}

impl Batch {
    pub(super) fn tables(&self) -> [(Table, &Change); 4] {
        [
            (Table::Filter, &self.early),
            (Table::Nat, &self.nat),
            (Table::Filter, &self.late),
            (Table::Mangle, &self.mangle),
        ]
    }

    /// How many rules of a table are written.
    pub(super) fn rules(&self, table: Table) -> usize {
        let changes = self.tables().into_iter().filter(|(of, _)| *of == table);
        changes.flat_map(|(_, change)| change.parts()).map(|part| part.rules).sum()
    }

    /// Before what is not refused any more is taken away.
    fn put(&mut self, kernel: &Kernel, table: Table, chain: Chain) {
        self.late.gone.remove(&chain.name);
        match table {
            Table::Nat => self.nat.put(kernel, table, chain),
            Table::Filter => self.early.put(kernel, table, chain),
            Table::Mangle => self.mangle.put(kernel, table, chain),
        }
    }

    fn put_late(&mut self, kernel: &Kernel, chain: Chain) {
        self.late.gone.remove(&chain.name);
        match self.early.chains.get(&chain.name) {
            Some(early) if early.hash == chain.hash() => {}
            Some(_) => self.late.stage(chain),
            None => self.late.put(kernel, Table::Filter, chain),
        }
    }

    fn drop(&mut self, kernel: &Kernel, table: Table, name: Name) {
        match table {
            Table::Nat => self.nat.drop(kernel, table, name),
            Table::Filter if self.early.chains.contains_key(&name) => {
                self.late.gone.insert(name);
            }
            Table::Filter => self.late.drop(kernel, table, name),
            Table::Mangle => {}
        }
    }
}

impl Change {
    fn put(&mut self, kernel: &Kernel, table: Table, chain: Chain) {
        self.gone.remove(&chain.name);
        let id = (table, chain.name.clone());
        match kernel.get(&id) {
            Some(held) if held.hash == chain.hash() => {
                self.chains.remove(&id.1);
            }
            _ => self.stage(chain),
        }
    }

    fn stage(&mut self, chain: Chain) {
        let (start, hash) = (self.text.len(), chain.hash());
        self.text.push_str(&chain.text);
        let staged = Staged { text: start..self.text.len(), rules: chain.rules, hash };
        self.chains.insert(chain.name, staged);
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.chains.contains_key(name)
    }

    pub(super) fn len(&self) -> usize {
        self.chains.len()
    }

    pub(super) fn part(&self, name: &str) -> Option<Part<'_>> {
        let (name, staged) = self.chains.get_key_value(name)?;
        Some(self.part_of(name, staged))
    }

    pub(super) fn parts(&self) -> impl Iterator<Item = Part<'_>> {
        self.chains.iter().map(|(name, staged)| self.part_of(name, staged))
    }

    pub(super) fn held(&self) -> impl Iterator<Item = (&Name, Held)> {
        self.chains.iter().map(|(name, staged)| (name, Held { hash: staged.hash, rules: staged.rules }))
    }

    fn part_of<'a>(&'a self, name: &'a Name, staged: &Staged) -> Part<'a> {
        let text = self.text.get(staged.text.clone()).unwrap_or_default();
        Part { name, text, rules: staged.rules }
    }

    fn drop(&mut self, kernel: &Kernel, table: Table, name: Name) {
        self.chains.remove(&name);
        let id = (table, name);
        if kernel.get(&id).is_some() {
            self.gone.insert(id.1);
        }
    }
}

type Changes = BTreeMap<(Root, EntryKey), Option<Leaf>>;

impl Iptables {
    /// Lays what was touched.
    pub(super) fn lay(&mut self) -> Batch {
        let mut batch = Batch::default();
        let mut changes: Changes = self.found.drain(..).map(|at| (at, None)).collect();
        let (mut wanted, mut giving_up) = (Vec::new(), Vec::new());
        for key in self.plan.settle() {
            let was = self.laid.remove(&key).unwrap_or_default();
            let (now, entries, chains) = self.lay_service(&key);
            if was.dispatched_beyond(&now).next().is_some() {
                let had = now.chains.iter().filter(|chain| was.chains.contains(chain)).cloned();
                let gained = now.dispatched_beyond(&was).copied();
                giving_up.push((had.collect::<Vec<Name>>(), gained.collect::<Vec<_>>()));
            }
            for chain in chains {
                batch.put(&self.kernel, Table::Nat, chain);
            }
            for gone in was.chains.iter().filter(|chain| !now.chains.contains(chain)) {
                self.levels.remove(gone);
                batch.drop(&self.kernel, Table::Nat, gone.clone());
            }
            changes.extend(was.entries.iter().map(|at| (*at, None)));
            wanted.extend(entries);
            self.count_hairpins(&was.hairpins, &now.hairpins, &mut changes);
            self.without_local -= was.without_local;
            self.without_local += now.without_local;
            if now.is_something() {
                self.laid.insert(key, now);
            }
        }
        // Who takes something over from another has to be there before the dispatch says so.
        let kept_back =
            giving_up.into_iter().filter(|(_, gained)| !gained.iter().any(|at| changes.contains_key(at)));
        batch.nat.given_up.extend(kept_back.flat_map(|(chains, _)| chains));
        // What one Service gives up another may have.
        changes.extend(wanted.into_iter().map(|(root, at, leaf)| ((root, at), Some(leaf))));
        self.lay_roots(changes, &mut batch);
        if self.all {
            self.drop_stale(&mut batch);
        }
        batch
    }

    fn lay_service(&mut self, key: &Arc<Key>) -> (Laid, Vec<Entry>, Vec<Chain>) {
        let detector = self.node().detector.clone();
        let style = Style {
            detector: detector.as_ref(),
            masquerade_all: self.options.masquerade_all,
            node_address: self.node().address,
        };
        let (mut entries, mut chains, mut hairpins) = (Vec::new(), Vec::new(), Vec::new());
        let mut without_local = WithoutLocal::default();
        for port in self.plan.ports(key) {
            entries.extend(service::entries(&port, key));
            chains.extend(service::chains(&port, style, |chain, endpoints| {
                let was = self.levels.get(chain).copied().unwrap_or(0);
                let now = groups::level(endpoints, was);
                match now {
                    0 => self.levels.remove(chain),
                    now => self.levels.insert(chain.into(), now),
                };
                now
            }));
            without_local += WithoutLocal::of(&port);
            hairpins.extend(port.hairpin);
        }
        if self.options.hairpin == Hairpin::Bpf {
            hairpins.clear();
        }
        hairpins.sort();
        hairpins.dedup();
        let laid = Laid {
            chains: chains.iter().map(|chain| chain.name.clone()).collect(),
            entries: entries.iter().map(|(root, at, _)| (*root, *at)).collect(),
            hairpins: hairpins.into(),
            without_local,
        };
        (laid, entries, chains)
    }

    fn count_hairpins(&mut self, was: &[IpAddr], now: &[IpAddr], changes: &mut Changes) {
        for address in now {
            *self.hairpins.entry(*address).or_default() += 1;
            changes.insert((Root::Hairpins, at(bits(*address))), Some(Leaf::Hairpin));
        }
        for address in was {
            let Some(count) = self.hairpins.get_mut(address) else { continue };
            *count -= 1;
            if *count == 0 {
                self.hairpins.remove(address);
                changes.insert((Root::Hairpins, at(bits(*address))), None);
            }
        }
    }

    /// Refusals are added before nat changes and taken away after it: where both stand, nat comes first, so at no time
    /// is a service neither served nor refused.
    fn lay_roots(&mut self, changes: Changes, batch: &mut Batch) {
        let mut later = Vec::new();
        for ((root, at), leaf) in changes {
            match leaf {
                None if root.is_answer() => later.push((root, at)),
                leaf => self.roots.set(root, at, leaf),
            }
        }
        let kernel = &self.kernel;
        let mut gone = Vec::new();
        for laid in self.roots.lay(|_| true) {
            gone.extend(laid.gone);
            laid.chains.into_iter().for_each(|(table, chain)| batch.put(kernel, table, chain));
        }
        if self.all {
            self.lay_fixed(batch);
        }
        for (root, at) in later {
            self.roots.set(root, at, None);
        }
        for laid in self.roots.lay(Root::is_answer) {
            gone.extend(laid.gone);
            laid.chains.into_iter().for_each(|(_, chain)| batch.put_late(&self.kernel, chain));
        }
        // A bucket that the first pass took away may be back after the second.
        for (table, name) in gone.into_iter().filter(|(_, bucket)| !self.roots.has(bucket)) {
            batch.drop(&self.kernel, table, name.name.into());
        }
    }

    /// What is there without any Service.
    fn lay_fixed(&self, batch: &mut Batch) {
        let heads = Roots::HEADS.into_iter().filter(|(_, head)| self.wants_head(head));
        let heads = heads.map(|(table, head)| (table, self.roots.head(table, head)));
        for (table, chain) in fixed::chains(self.family, &self.options).into_iter().chain(heads) {
            batch.put(&self.kernel, table, chain);
        }
    }

    fn wants_head(&self, head: &str) -> bool {
        head != names::HAIRPINS || self.options.hairpin == Hairpin::Trie
    }

    /// What the kernel has that nobody wants, of ours or of kube-proxy's.
    fn drop_stale(&self, batch: &mut Batch) {
        let mut wanted: BTreeSet<Id> =
            self.roots.buckets().map(|(table, name)| (table, name.into())).collect();
        wanted
            .extend(self.laid.values().flat_map(|laid| &laid.chains).map(|name| (Table::Nat, name.clone())));
        wanted.insert((Table::Nat, names::HAIRPIN.into()));
        let heads = Roots::HEADS.into_iter().filter(|(_, head)| self.wants_head(head));
        wanted.extend(heads.map(|(table, head)| (table, head.into())));
        let empty = |id: &Id| self.kernel.get(id).is_some_and(|held| held.rules == 0);
        let stale = self.kernel.ids().filter(|id| names::is_per_service(&id.1) && !wanted.contains(*id));
        for id in stale.filter(|id| !(self.pinned.contains(*id) && empty(id))) {
            batch.drop(&self.kernel, id.0, id.1.clone());
        }
    }
}
