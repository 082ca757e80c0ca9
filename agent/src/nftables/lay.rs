//! From the plan of what was touched to the elements and chains that differ from the kernel's.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::Hash;
use std::sync::Arc;

use distributary_model::Key;

use super::chain::{Chain, Own, clients};
use super::element::{ElementKey, List, Map, Value};
use super::fixed::{self, CANARY};
use super::held::Digest;
use super::service::Port;
use super::{Nftables, Unswept};

/// An element, and what was and is to be found there.
pub(super) type Changes = BTreeMap<(Map, ElementKey), (Option<Value>, Option<Value>)>;

/// What differs.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// A table that is laid out in another way goes first.
    pub(super) replaces: bool,
    /// Whether the table itself has to be made.
    pub(super) makes: bool,
    /// Sets and maps that have to be made.
    pub(super) maps: Vec<Map>,
    pub(super) canary: bool,
    pub(super) clients: BTreeSet<u64>,
    /// Those that have to be made, or have other rules, in order: those that are led to first.
    pub(super) chains: Vec<Written>,
    pub(super) changes: Changes,
    /// Something is to be swept that was not before.
    pub(super) sweeps: bool,
}

/// A chain that is written.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) name: String,
    /// Where it is hooked to, if it is.
    pub(super) hook: Option<&'static str>,
    /// It is there, with other rules.
    pub(super) is_there: bool,
    pub(super) rules: Vec<String>,
}

impl Nftables {
    /// Lays what was touched.
    pub(super) fn lay(&mut self) -> Batch {
        let mut batch = Batch { replaces: std::mem::take(&mut self.foreign), ..Batch::default() };
        let mut own = Own::default();
        let (mut were, mut are) = (Vec::new(), Vec::new());
        // Who leaves an address and who takes it are both touched.
        let touched = self.plan.settle();
        for key in &touched {
            let was = self.laid.remove(key).unwrap_or_default();
            are.push((key.clone(), self.lay_service(key, &was, &mut own)));
            were.extend(was.into_vec());
        }
        let found = std::mem::take(&mut self.found);
        batch.changes.extend(found.into_iter().map(|(at, value)| (at, (Some(value), None))));
        for (at, value) in were.iter().flat_map(Port::elements) {
            batch.changes.entry(at).or_default().0 = Some(value);
        }
        let now = || are.iter().flat_map(|(_, ports)| ports.iter());
        were.iter().for_each(|port| self.without_local -= port.without_local);
        now().for_each(|port| self.without_local += port.without_local);
        for (at, value) in now().flat_map(Port::elements) {
            batch.changes.entry(at).or_default().1 = Some(value);
        }
        let cluster_ips = recount(
            &mut self.cluster_ips,
            were.iter().filter_map(|port| port.cluster_ip),
            now().filter_map(|port| port.cluster_ip),
        );
        batch.count(Map::ClusterIps, ElementKey::Address, cluster_ips);
        let hairpins = recount(
            &mut self.hairpins,
            were.iter().flat_map(|port| port.hairpins.iter().copied()),
            now().flat_map(|port| port.hairpins.iter().copied()),
        );
        batch.count(Map::Hairpins, ElementKey::Same, hairpins);
        let led_to =
            recount(&mut self.led_to, were.iter().flat_map(Port::chains), now().flat_map(Port::chains));
        if self.all {
            self.lay_node(&mut batch);
        }
        self.lay_chains(&were, own, led_to, &mut batch);
        for (key, ports) in are {
            if !ports.is_empty() {
                self.laid.insert(key, ports);
            }
        }
        if self.all {
            self.declare(&mut batch);
            self.drop_stale(&mut batch);
        }
        self.all = false;
        batch
    }

    fn lay_service(&self, key: &Arc<Key>, were: &[Port], own: &mut Own) -> Box<[Port]> {
        let style = self.style();
        let mut ports = Vec::new();
        for plan in self.plan.ports(key) {
            let was = |list, entries: &[(Map, ElementKey, Value)]| {
                let same = |port: &&Port| port.name == plan.port_name && port.protocol == plan.protocol;
                match were.iter().rev().find(same) {
                    Some(port) => port.list(list).to_vec(),
                    None => self.found_order(list, entries),
                }
            };
            let (port, of_port) = Port::lay(&plan, &style, was);
            own.chains.extend(of_port.chains);
            own.clients.extend(of_port.clients);
            ports.push(port);
        }
        ports.into()
    }

    /// The order of a list's endpoints in the kernel.
    fn found_order(&self, list: List, entries: &[(Map, ElementKey, Value)]) -> Vec<std::net::SocketAddr> {
        let at = entries.iter().find_map(|&(_, at, value)| {
            let Value::Goto(chain) = value else { return None };
            let maps = chain.balances().into_iter().flatten().filter_map(|balance| balance.map());
            maps.filter(|(_, of)| *of == list)
                .map(|(map, _)| (map, at))
                .find(|(map, at)| self.found.contains_key(&(*map, at.slot(0))))
        });
        let Some((map, at)) = at else { return Vec::new() };
        let endpoint = |index| match self.found.get(&(map, at.slot(index))) {
            Some(Value::Endpoint(endpoint)) => Some(*endpoint),
            _ => None,
        };
        (0..u16::MAX).map_while(endpoint).collect()
    }

    /// What follows from the node and the cluster.
    fn lay_node(&mut self, batch: &mut Batch) {
        let addresses = self.node_port_addresses();
        let was = std::mem::replace(&mut self.held_addresses, addresses.clone());
        let at = |address| (Map::NodePortAddresses, ElementKey::Address(address));
        was.into_iter().for_each(|one| batch.changes.entry(at(one)).or_default().0 = Some(Value::Member));
        addresses
            .into_iter()
            .for_each(|one| batch.changes.entry(at(one)).or_default().1 = Some(Value::Member));
        let was = std::mem::replace(&mut self.held_cidrs, self.service_cidrs.clone());
        let at = |net| (Map::ServiceCidrs, ElementKey::Net(net));
        was.into_iter().for_each(|one| batch.changes.entry(at(one)).or_default().0 = Some(Value::Member));
        let now = self.service_cidrs.iter().copied();
        now.for_each(|one| batch.changes.entry(at(one)).or_default().1 = Some(Value::Member));
    }

    fn lay_chains(&mut self, were: &[Port], own: Own, led_to: Changed<Chain>, batch: &mut Batch) {
        for set in own.clients {
            let name = clients(set);
            self.unswept.sets.remove(&name);
            if self.sets.insert(name) {
                batch.clients.insert(set);
            }
        }
        // Those that are shared stay when nobody is led to them: somebody will be.
        let (wanted, left): (Vec<Chain>, Vec<Chain>) = match self.all {
            true => (self.led_to.keys().copied().collect(), Vec::new()),
            false => led_to.into_keys().partition(|chain| self.led_to.contains_key(chain)),
        };
        let style = self.style();
        let shared: BTreeMap<Chain, Vec<String>> = wanted
            .into_iter()
            .filter(|chain| *chain != Chain::Refuse)
            .filter_map(|chain| Some((chain, chain.rules(&style)?)))
            .collect();
        let kept: HashSet<Chain> = own.chains.iter().map(|(chain, _)| *chain).collect();
        for (chain, rules) in own.chains.into_iter().chain(shared) {
            self.put(batch, chain.to_string(), None, rules);
        }
        for chain in left.into_iter().filter(|chain| chain.leads_to_own()) {
            self.drop_chain(batch, chain.to_string());
        }
        for gone in were.iter().flat_map(|port| port.own.iter()).filter(|chain| !kept.contains(chain)) {
            self.drop_chain(batch, gone.to_string());
        }
        let kept: BTreeSet<String> = kept_clients(&kept);
        for gone in were.iter().flat_map(|port| port.clients.iter()).map(|set| clients(*set)) {
            if !kept.contains(&gone) && self.sets.contains(&gone) {
                batch.sweeps |= self.unswept.sets.insert(gone);
            }
        }
        if self.all {
            let fixed = fixed::chains(&self.options, &self.node().node_ports, &self.style());
            for fixed::Fixed { name, hook, rules } in fixed {
                self.put(batch, name, hook, rules);
            }
        }
    }

    fn put(&mut self, batch: &mut Batch, name: String, hook: Option<&'static str>, rules: Vec<String>) {
        self.unswept.chains.remove(&name);
        let digest = Digest::of(&rules);
        match self.chains.insert(name.clone(), digest) {
            Some(held) if held == digest => {}
            held => batch.chains.push(Written { name, hook, is_there: held.is_some(), rules }),
        }
    }

    fn drop_chain(&mut self, batch: &mut Batch, name: String) {
        if self.chains.contains_key(&name) {
            batch.sweeps |= self.unswept.chains.insert(name);
        }
    }

    /// Makes what is not there.
    fn declare(&mut self, batch: &mut Batch) {
        batch.makes = !self.sets.contains(CANARY);
        for map in Map::all() {
            if self.sets.insert(map.to_string()) {
                batch.maps.push(map);
            }
        }
        batch.canary = self.sets.insert(CANARY.to_owned());
    }

    /// What the kernel has that nobody wants.
    fn drop_stale(&mut self, batch: &mut Batch) {
        let fixed = fixed::chains(&self.options, &self.node().node_ports, &self.style());
        let mut wanted: HashSet<String> = fixed.into_iter().map(|chain| chain.name).collect();
        wanted.extend(self.led_to.keys().map(ToString::to_string));
        let ports = || self.laid.values().flatten();
        wanted.extend(ports().flat_map(|port| port.own.iter()).map(ToString::to_string));
        let mut sets: HashSet<String> = Map::all().map(|map| map.to_string()).collect();
        sets.insert(CANARY.to_owned());
        sets.extend(ports().flat_map(|port| port.clients.iter()).map(|set| clients(*set)));
        let stale = Unswept {
            chains: self.chains.keys().filter(|name| !wanted.contains(*name)).cloned().collect(),
            sets: self.sets.iter().filter(|name| !sets.contains(*name)).cloned().collect(),
        };
        batch.sweeps |= stale != self.unswept && stale != Unswept::default();
        self.unswept = stale;
    }
}

impl Batch {
    fn count<T>(&mut self, map: Map, key: impl Fn(T) -> ElementKey, changed: Changed<T>) {
        for (what, (was, is)) in changed {
            let change = self.changes.entry((map, key(what))).or_default();
            change.0 = was.then_some(Value::Member).or(change.0);
            change.1 = is.then_some(Value::Member);
        }
    }
}

/// Those whose count changed: whether it was more than zero, and is.
type Changed<T> = HashMap<T, (bool, bool)>;

/// Counts those that go and come, and answers whose presence may be another.
fn recount<T: Copy + Eq + Hash>(
    counts: &mut HashMap<T, u32>,
    gone: impl Iterator<Item = T>,
    come: impl Iterator<Item = T>,
) -> Changed<T> {
    let mut changed = Changed::new();
    for (what, one) in gone.map(|what| (what, -1)).chain(come.map(|what| (what, 1))) {
        let count = counts.entry(what).or_default();
        changed.entry(what).or_insert((*count > 0, false));
        *count = count.saturating_add_signed(one);
    }
    for (what, (_, is)) in &mut changed {
        *is = counts.get(what).is_some_and(|count| *count > 0);
        if !*is {
            counts.remove(what);
        }
    }
    changed
}

fn kept_clients(kept: &HashSet<Chain>) -> BTreeSet<String> {
    let endpoints = kept.iter().filter_map(|chain| match chain {
        Chain::Endpoint(hash) => Some(clients(*hash)),
        _ => None,
    });
    endpoints.collect()
}
