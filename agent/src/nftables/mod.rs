//! The nftables backend: what is wanted as the sets, maps and chains of one table, and the text for `nft -f -` that leads
//! from what the kernel holds to it (spec/layout.md §6, spec/kube-proxy.md §8).
//!
//! Pure: one [`Nftables`] is of one family; somebody else runs the tool. A service is elements of maps that all share, so
//! that a change costs the same however many there are.

mod chain;
mod element;
#[doc(hidden)]
pub mod fake;
mod fixed;
mod foreign;
mod held;
mod lay;
mod parse;
mod service;
mod slots;
mod text;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use distributary_model::{Key, Name, Protocol, Service};
use ipnet::IpNet;

use crate::plan::{self, Claim, Conflict, NodePorts, NodeState, Plan, WithoutLocal};
use chain::{Chain, Style};
use element::ElementKey;
use held::Digest;
use service::Port;

pub use crate::plan::Family;
pub use fixed::CANARY;
pub use foreign::forward_drops;
pub use parse::{Listing, parse};
pub use text::{Write, ip};

/// The table, of either family. Nothing else is ever touched.
pub const TABLE: &str = "distributary";
/// kube-proxy's.
pub const KUBE_PROXYS_TABLE: &str = "kube-proxy";

/// What the rules depend on beside the records.
#[derive(Clone, Debug)]
pub struct Options {
    /// Id of the node's own cluster.
    pub cluster: Name,
    /// The node's name.
    pub node: Name,
    /// All traffic to cluster IPs is masqueraded.
    pub masquerade_all: bool,
    /// Which bit of the packet mark asks for masquerading.
    pub masquerade_bit: u8,
    /// So many elements are written in one transaction at most.
    pub section: usize,
}

impl Options {
    /// kube-proxy's defaults.
    pub fn new(cluster: impl Into<Name>, node: impl Into<Name>) -> Self {
        // The tool needs about 2 kB for an element that it writes.
        Self {
            cluster: cluster.into(),
            node: node.into(),
            masquerade_all: false,
            masquerade_bit: 14,
            section: 20_000,
        }
    }

    fn mark(&self) -> u32 {
        plan::mark(self.masquerade_bit)
    }
}

/// Text that the tool and the kernel take, in a check, only where they have all that the table needs. It is of a table of
/// another name, so that it does not depend on what is there.
pub fn probe(family: Family) -> String {
    let mut rules = Nftables::new(family, Options::new("", ""));
    let to = chain::Balance::Shared {
        reach: element::Reach::Address,
        protocol: Protocol::Tcp,
        list: element::List::Cluster,
        count: 1,
    };
    rules.led_to.insert(Chain::Balance(to), 1);
    let text = rules.write().map(|write| write.text()).unwrap_or_default();
    text.replace(&format!(" {TABLE}"), &format!(" {TABLE}-probe"))
}

/// One family's rules.
#[derive(Debug)]
pub struct Nftables {
    family: Family,
    options: Options,
    plan: Plan,
    laid: HashMap<Arc<Key>, Box<[Port]>>,
    /// By how many service ports an address is used.
    cluster_ips: HashMap<IpAddr, u32>,
    /// By how many service ports an address can meet itself.
    hairpins: HashMap<IpAddr, u32>,
    /// By how many entries of service ports, or by how many of these chains, a chain is led to.
    led_to: HashMap<Chain, u32>,
    service_cidrs: BTreeSet<IpNet>,
    /// The kernel's sets, maps and chains.
    sets: BTreeSet<String>,
    chains: BTreeMap<String, Digest>,
    /// Of these, those that nobody wants.
    unswept: Unswept,
    /// Elements as they were found, until the first write after that.
    found: HashMap<(element::Map, element::ElementKey), element::Value>,
    /// Addresses of the node and networks that the kernel holds.
    held_addresses: BTreeSet<IpAddr>,
    held_cidrs: BTreeSet<IpNet>,
    /// A table is there that is not laid out like this.
    foreign: bool,
    /// All is to be looked at, not only what was touched.
    all: bool,
    outstanding: bool,
    without_local: WithoutLocal,
    /// Rules in the last write.
    last: usize,
}

/// What is to be removed once nothing leads there any more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Unswept {
    chains: BTreeSet<String>,
    sets: BTreeSet<String>,
}

impl Nftables {
    /// Wants no Service, and takes the kernel for empty until it is told by [`Nftables::adopt`].
    pub fn new(family: Family, options: Options) -> Self {
        let config = plan::Config {
            family,
            cluster: options.cluster.clone(),
            node: options.node.clone(),
            state: NodeState::default(),
        };
        Self {
            family,
            plan: Plan::new(config),
            options,
            laid: HashMap::new(),
            cluster_ips: HashMap::new(),
            hairpins: HashMap::new(),
            led_to: HashMap::new(),
            service_cidrs: BTreeSet::new(),
            sets: BTreeSet::new(),
            chains: BTreeMap::new(),
            unswept: Unswept::default(),
            found: HashMap::new(),
            held_addresses: BTreeSet::new(),
            held_cidrs: BTreeSet::new(),
            foreign: false,
            all: true,
            outstanding: false,
            without_local: WithoutLocal::default(),
            last: 0,
        }
    }

    /// Wants this of a Service, or that it is gone.
    pub fn set(&mut self, key: &Arc<Key>, service: Option<Arc<Service>>) {
        self.plan.set(key, service);
    }

    /// What is wanted of a Service.
    pub fn get(&self, key: &Key) -> Option<&Arc<Service>> {
        self.plan.get(key)
    }

    /// Every Service that is wanted.
    pub fn keys(&self) -> impl Iterator<Item = &Arc<Key>> {
        self.plan.keys()
    }

    /// What is known of the node.
    pub fn node(&self) -> &NodeState {
        &self.plan.config().state
    }

    /// Another zone, address or detector lays all Services anew; other addresses for node ports do not.
    pub fn set_node(&mut self, state: NodeState) {
        self.all |= *self.node() != state;
        self.plan.set_node(state);
    }

    /// Where cluster IPs come from, of either family: packets to addresses there that nobody has are dropped.
    pub fn set_service_cidrs(&mut self, cidrs: &[IpNet]) {
        let of_family = cidrs.iter().filter(|net| Family::of(&net.addr()) == self.family);
        let of_family: Vec<IpNet> = of_family.map(IpNet::trunc).collect();
        self.service_cidrs = IpNet::aggregate(&of_family).into_iter().collect();
        self.all |= self.service_cidrs != self.held_cidrs;
    }

    /// How many elements are written in one transaction from now on: in a user namespace the kernel takes few.
    pub fn set_section(&mut self, elements: usize) {
        self.options.section = elements.max(1);
    }

    /// Addresses and node ports that several Services claim.
    pub fn conflicts(&self) -> impl Iterator<Item = Conflict> {
        self.plan.conflicts()
    }

    /// Service ports that nobody serves on this node.
    pub fn without_local(&self) -> WithoutLocal {
        self.without_local
    }

    /// How many rules the kernel holds, and how many there were in the last write.
    pub fn rules(&self) -> (usize, usize) {
        (self.chains.values().map(|chain| chain.rules as usize).sum(), self.last)
    }

    /// Whether the kernel holds Services, as far as it was adopted and not written since.
    pub fn holds_services(&self) -> bool {
        self.found.keys().any(|(map, _)| map.leads())
    }

    /// The addresses and node ports of a protocol that the kernel translates or refuses, as far as it was adopted and not
    /// written since.
    pub fn destinations(&self, protocol: Protocol) -> BTreeSet<Claim> {
        let claim = |key: &ElementKey| match *key {
            ElementKey::At(address, of, port) if of == protocol => Some(Claim::Address(address, of, port)),
            ElementKey::Port(of, port) if of == protocol => Some(Claim::NodePort(of, port)),
            _ => None,
        };
        self.found.keys().filter_map(|(_, key)| claim(key)).collect()
    }

    /// This is what the kernel holds, whatever was thought before. The order of endpoints is read back, so that a restart
    /// writes nothing.
    pub fn adopt(&mut self, listing: Listing) {
        let Listing { is_ours, exists, sets, chains, elements } =
            if listing.is_ours { listing } else { Listing { exists: listing.exists, ..Listing::default() } };
        self.foreign = exists && !is_ours;
        (self.sets, self.chains, self.found) = (sets, chains, elements);
        self.unswept = Unswept::default();
        self.laid.clear();
        self.cluster_ips.clear();
        self.hairpins.clear();
        self.led_to.clear();
        self.held_addresses.clear();
        self.held_cidrs.clear();
        self.without_local = WithoutLocal::default();
        self.plan.touch_all();
        self.all = true;
        self.outstanding = false;
    }

    /// What leads from what the kernel holds to what is wanted; `None` if that is nothing, or while the last one is
    /// neither [`written`](Self::written) nor the kernel [`adopt`](Self::adopt)ed again.
    pub fn write(&mut self) -> Option<Write> {
        if self.outstanding {
            return None;
        }
        let batch = self.lay();
        let write = self.text(batch);
        self.outstanding = write.is_some();
        write
    }

    /// All of the last write is in the kernel, but for [`Write::sweep`].
    pub fn written(&mut self) {
        self.outstanding = false;
    }

    /// That is, too.
    pub fn swept(&mut self) {
        let Unswept { chains, sets } = std::mem::take(&mut self.unswept);
        self.chains.retain(|name, _| !chains.contains(name));
        self.sets.retain(|name| !sets.contains(name));
    }

    fn style(&self) -> Style<'_> {
        let NodeState { detector, address, .. } = self.node();
        let mark = self.options.mark();
        Style { family: self.family, mark, detector: detector.as_ref(), node_address: *address }
    }

    /// The addresses of the node that have node ports, where not all have.
    fn node_port_addresses(&self) -> BTreeSet<IpAddr> {
        match &self.node().node_ports {
            NodePorts::Everywhere { .. } => BTreeSet::new(),
            NodePorts::At(addresses) => {
                addresses.iter().copied().filter(|address| !address.is_loopback()).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests;
