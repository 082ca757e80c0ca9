//! A trie over keys of some bits, eight ways a level, whose nodes become chains.
//!
//! A node of more than [`SPLIT`] entries is split, one of at most [`MERGE`] is a list, and one between stays what it was:
//! that is the part of the shape that depends on history, and it can be read back from the chains that exist, because a
//! split node of more than [`MERGE`] entries always has a chain below it. All other shape follows from the entries:
//! bits that all entries of a node share are skipped, levels end at multiples of three bits, a child of one entry stands
//! in its parent, and entries of the same key are never split (spec/layout.md §1).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

/// More entries than this are split.
pub(crate) const SPLIT: usize = 24;
/// So many are merged again.
pub(crate) const MERGE: usize = 12;
const STEP: u8 = 3;

/// What a node covers: the keys that begin with the first `len` bits of `prefix`. Ordered so that what is below a node
/// follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Prefix {
    /// The rest of its bits are 0.
    pub(crate) prefix: u128,
    /// How many bits count; 0 is the root.
    pub(crate) len: u8,
}

/// Of one key there can be several entries, which `sub` tells apart.
pub(crate) type EntryKey = (u128, u32);

/// What stands in a node, in order.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Item<'a, V> {
    /// An entry.
    Entry(EntryKey, &'a V),
    /// A node below.
    Child(Prefix),
}

/// What a call of [`Trie::lay`] found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Laid {
    /// Nodes whose items may differ from before.
    pub nodes: Vec<Prefix>,
    /// Nodes that are no more.
    pub gone: Vec<Prefix>,
}

#[derive(Debug, Default)]
struct Node {
    split: bool,
    /// The nodes that stand in it.
    chains: Vec<Prefix>,
}

#[derive(Debug)]
pub(crate) struct Trie<V> {
    width: u8,
    entries: BTreeMap<EntryKey, V>,
    /// Every node but those not yet laid.
    nodes: BTreeMap<Prefix, Node>,
    /// Keys whose entries changed since the last lay.
    dirty: BTreeSet<u128>,
    /// Nodes that the kernel had when everything was last forgotten.
    seen: BTreeSet<Prefix>,
}

impl<V: PartialEq> Trie<V> {
    /// An empty one over keys of `width` bits.
    pub(crate) fn new(width: u8) -> Self {
        Self {
            width,
            entries: BTreeMap::new(),
            nodes: BTreeMap::new(),
            dirty: BTreeSet::new(),
            seen: BTreeSet::new(),
        }
    }

    pub(crate) fn width(&self) -> u8 {
        self.width
    }

    pub(crate) fn insert(&mut self, key: EntryKey, value: V) {
        if self.entries.get(&key) != Some(&value) {
            self.entries.insert(key, value);
            self.dirty.insert(key.0);
        }
    }

    pub(crate) fn remove(&mut self, key: EntryKey) {
        if self.entries.remove(&key).is_some() {
            self.dirty.insert(key.0);
        }
    }

    /// Forgets entries and shape; the shape is to be that of the nodes `seen`, as far as it depends on history.
    pub(crate) fn reset(&mut self, seen: BTreeSet<Prefix>) {
        *self = Self { seen, ..Self::new(self.width) };
    }

    pub(crate) fn has(&self, node: Prefix) -> bool {
        self.nodes.contains_key(&node)
    }

    /// Every node but the root.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = Prefix> {
        self.nodes.keys().copied().filter(|node| node.len > 0)
    }

    /// Brings the shape up to date: O(changed keys).
    pub(crate) fn lay(&mut self) -> Laid {
        let mut laid = Laid::default();
        let dirty = std::mem::take(&mut self.dirty);
        if !dirty.is_empty() {
            self.lay_node(Prefix { prefix: 0, len: 0 }, &dirty, &mut laid);
        }
        self.seen.clear();
        laid
    }

    /// What stands in a node that was laid.
    pub(crate) fn items(&self, node: Prefix) -> Vec<Item<'_, V>> {
        let mut items = Vec::new();
        if !self.nodes.get(&node).is_some_and(|node| node.split) {
            items.extend(self.entries.range(self.keys(node)).map(|(&key, value)| Item::Entry(key, value)));
            return items;
        }
        for child in self.children(node) {
            let mut inside = self.entries.range(self.keys(child));
            match (inside.next(), inside.next()) {
                (Some((&key, value)), None) => items.push(Item::Entry(key, value)),
                _ => items.push(Item::Child(child)),
            }
        }
        items
    }

    fn lay_node(&mut self, node: Prefix, dirty: &BTreeSet<u128>, laid: &mut Laid) {
        let was = self.nodes.remove(&node);
        let split = self.splits(node, was.as_ref().map(|was| was.split));
        let children: Vec<Prefix> = if split { self.children(node) } else { Vec::new() };
        let chains: Vec<Prefix> = children.into_iter().filter(|&child| self.count(child, 2) > 1).collect();
        laid.nodes.push(node);
        // Of a new node it is not known what was below it.
        let lost: Vec<Prefix> = match was {
            Some(was) => was.chains.into_iter().filter(|chain| !chains.contains(chain)).collect(),
            None => vec![node],
        };
        for lost in lost {
            self.prune(lost, &chains, laid);
        }
        self.nodes.insert(node, Node { split, chains: chains.clone() });
        for chain in chains {
            let keys = self.keys(chain);
            let touched = dirty.range(keys.start().0..=keys.end().0).next().is_some();
            if touched || !self.nodes.contains_key(&chain) {
                self.lay_node(chain, dirty, laid);
            }
        }
    }

    /// Takes away what is below a node, and it, save what is in these chains.
    fn prune(&mut self, node: Prefix, chains: &[Prefix], laid: &mut Laid) {
        let below = self.nodes.range(node..).map(|(&below, _)| below);
        let below: Vec<Prefix> = below.take_while(|one| self.covers(node, one.prefix)).collect();
        for one in below {
            if !chains.iter().any(|chain| chain.len <= one.len && self.covers(*chain, one.prefix)) {
                self.nodes.remove(&one);
                laid.gone.push(one);
            }
        }
    }

    fn splits(&self, node: Prefix, was: Option<bool>) -> bool {
        let count = self.count(node, SPLIT + 1);
        let history = || match was {
            Some(was) => was,
            None => self
                .seen
                .range(node..)
                .nth(usize::from(self.seen.contains(&node)))
                .is_some_and(|below| self.covers(node, below.prefix) && below.len > node.len),
        };
        count > MERGE && self.shared(node) < self.width && (count > SPLIT || history())
    }

    /// The parts of a node that have entries.
    fn children(&self, node: Prefix) -> Vec<Prefix> {
        let len = (self.shared(node) / STEP * STEP + STEP).min(self.width);
        let mut children = Vec::new();
        let mut keys = self.keys(node);
        while let Some((&(key, _), _)) = self.entries.range(keys.clone()).next() {
            let child = Prefix { prefix: key & !self.low(len), len };
            children.push(child);
            let last = child.prefix | self.low(len);
            if last >= keys.end().0 {
                break;
            }
            keys = (last + 1, 0)..=*keys.end();
        }
        children
    }

    /// How many leading bits all entries of a node share.
    fn shared(&self, node: Prefix) -> u8 {
        let mut inside = self.entries.range(self.keys(node));
        match (inside.next(), inside.next_back()) {
            (Some((first, _)), Some((last, _))) => {
                let differ = (first.0 ^ last.0).leading_zeros() as u8;
                differ - (128 - self.width)
            }
            _ => self.width,
        }
    }

    fn count(&self, node: Prefix, most: usize) -> usize {
        self.entries.range(self.keys(node)).take(most).count()
    }

    fn covers(&self, node: Prefix, key: u128) -> bool {
        key & !self.low(node.len) == node.prefix
    }

    fn keys(&self, node: Prefix) -> RangeInclusive<EntryKey> {
        (node.prefix, 0)..=(node.prefix | self.low(node.len), u32::MAX)
    }

    /// The bits behind the first `len` of a key.
    fn low(&self, len: u8) -> u128 {
        u128::MAX.checked_shr(128 - u32::from(self.width - len)).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests;
