//! One family: what we would write, what the kernel holds, and what differs.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use distributary_model::{Key, Protocol, Service};

use super::compare::{Comparison, Served, View, claims};
use super::difference::Difference;
use super::history::{History, News};
use super::probe::Place;
use crate::iptables::fake::Fake;
use crate::iptables::trace::Rules;
use crate::iptables::{Dump, Flavour, Iptables, Options, Table, is_jump_of_ours, parse};
use crate::plan::{Claim, Family, NodeState};

/// Chains from which the hooks' rules lead to ours, or to kube-proxy's.
const BUILT_IN: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];

/// One family's rules as they would be, and as they were found.
#[derive(Debug)]
pub struct Side {
    family: Family,
    rules: Iptables,
    /// The kernel that we would have.
    fake: Fake,
    history: History,
    /// What changed since the last comparison.
    touched: BTreeSet<Arc<Key>>,
    /// The node changed since.
    node_touched: bool,
}

impl Side {
    /// Without a Service.
    pub fn new(family: Family, options: Options) -> Self {
        // In one piece: nobody waits for what is not written.
        let rules = Iptables::new(family, Options { flavour: Flavour::Legacy, ..options });
        let (fake, history) = (Fake::default(), History::default());
        Self { family, rules, fake, history, touched: BTreeSet::new(), node_touched: false }
    }

    /// Which family it is.
    pub fn family(&self) -> Family {
        self.family
    }

    /// Wants this of a Service, or that it is gone.
    pub fn set(&mut self, key: &Arc<Key>, service: Option<Arc<Service>>) {
        self.touched.insert(key.clone());
        self.rules.set(key, service);
    }

    /// How many Services are wanted.
    pub fn services(&self) -> usize {
        self.rules.services()
    }

    /// The node is so now.
    pub fn set_node(&mut self, node: NodeState) {
        self.node_touched |= *self.rules.node() != node;
        self.rules.set_node(node);
    }

    /// What differs between what `iptables-save` said and what we would write, on a host with these addresses.
    ///
    /// # Errors
    /// When our own rules are none: a mistake of ours.
    pub fn compare(
        &mut self,
        saved: &str,
        addresses: &BTreeSet<IpAddr>,
    ) -> Result<(Comparison, News), String> {
        if let Some(write) = self.rules.write() {
            self.fake.restore(&write.text)?;
            self.rules.written();
        }
        let ours = self.fake.save();
        let [kernel, ours] = [saved, &ours].map(|text| Rules::read(&of_services(&parse(text))));
        let of_family = |address: &&IpAddr| Family::of(address) == self.family;
        let place = Place {
            family: self.family,
            state: self.rules.node().clone(),
            addresses: addresses.iter().filter(of_family).copied().collect(),
        };
        let mut services = BTreeMap::new();
        for (key, port) in self.rules.ports() {
            let served = Arc::new(Served { key: key.clone(), port });
            services.extend(claims(&served.port).map(|claim| (claim, served.clone())));
        }
        let contested = self.rules.conflicts().map(|conflict| match conflict.claim {
            Claim::HealthCheckPort(port) => Claim::NodePort(Protocol::Tcp, port),
            claim => claim,
        });
        let contested = contested.collect();
        let view =
            View { kernel: &kernel, ours: &ours, place: &place, services: &services, contested: &contested };
        let comparison = view.compare();
        let touched = std::mem::take(&mut self.touched);
        let everything = std::mem::take(&mut self.node_touched);
        let in_flight =
            |one: &Difference| everything || one.key.as_ref().is_some_and(|key| touched.contains(key));
        let news = self.history.next(comparison.differences.clone(), in_flight);
        Ok((comparison, news))
    }

    /// What is known to differ.
    pub fn confirmed(&self) -> &BTreeSet<Difference> {
        self.history.confirmed()
    }
}

/// The part of a dump that serves Services: what others have in the hooks' chains is the same for both.
fn of_services<'a>(dump: &Dump<'a>) -> Dump<'a> {
    dump.only(|table, chain, rule| match rule {
        None => chain.starts_with("KUBE-") || BUILT_IN.contains(&chain),
        Some(rule) if BUILT_IN.contains(&chain) => table != Table::Mangle && is_jump_of_ours(table, rule),
        Some(_) => true,
    })
}
