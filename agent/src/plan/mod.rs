//! Who gets the traffic of each service port on this node: what every backend lays out, and the same for all of them.
//!
//! Pure. One [`Plan`] is of one address family.

pub mod health;
pub mod owners;
pub mod policy;
pub mod port;
mod without_local;

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use distributary_model::{Key, Name, Service};
use ipnet::IpNet;

pub use owners::{Claim, Claimant, Conflict};
pub use port::{Answer, PortPlan};
pub use without_local::WithoutLocal;

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

impl Family {
    /// The family of an address.
    pub fn of(address: &IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// What Kubernetes calls it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// Bits of an address.
    pub fn width(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }
}

/// What asks for masquerading, by its bit of the packet mark; bit 14 where there is none such.
pub(crate) fn mark(bit: u8) -> u32 {
    1_u32.checked_shl(bit.into()).unwrap_or(1 << 14)
}

/// How traffic of local pods is told from the rest (spec/kube-proxy.md §3.9).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Detector {
    /// Sources in the cluster's pod network: matches pods of other nodes too.
    ClusterCidr(IpNet),
    /// Sources in this node's pod network.
    NodeCidr(IpNet),
    /// What comes in by this bridge.
    Bridge(Name),
    /// What comes in by an interface of this prefix.
    Prefix(Name),
}

/// Which of this host's addresses have node ports (spec/kube-proxy.md §3.10).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePorts {
    /// All of them.
    Everywhere {
        /// Those of the loopback network too. IPv4 only.
        loopback: bool,
    },
    /// Only these.
    At(BTreeSet<IpAddr>),
}

impl NodePorts {
    /// Whether a process of this host reaches node ports at its loopback address.
    pub fn loopback(&self) -> bool {
        match self {
            Self::Everywhere { loopback } => *loopback,
            Self::At(addresses) => addresses.iter().any(IpAddr::is_loopback),
        }
    }
}

/// What may change of the node while it runs, as one family sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeState {
    /// The node's zone; empty: none.
    pub zone: Name,
    /// Its primary address of the family: what source ranges must hold for the host to be let through (§3.11).
    pub address: Option<IpAddr>,
    /// Of the family; `None`: everything is taken for a pod's.
    pub detector: Option<Detector>,
    /// Where node ports are.
    pub node_ports: NodePorts,
}

impl Default for NodeState {
    fn default() -> Self {
        let node_ports = NodePorts::Everywhere { loopback: false };
        Self { zone: Name::default(), address: None, detector: None, node_ports }
    }
}

/// What a plan depends on beside the records.
#[derive(Clone, Debug)]
pub struct Config {
    /// The family that is planned for.
    pub family: Family,
    /// Id of the node's own cluster.
    pub cluster: Name,
    /// The node's name.
    pub node: Name,
    /// What else of the node.
    pub state: NodeState,
}

/// Every Service that is wanted, and who owns what.
#[derive(Debug)]
pub struct Plan {
    config: Config,
    services: HashMap<Arc<Key>, Arc<Service>>,
    owners: owners::Owners,
    touched: BTreeSet<Arc<Key>>,
}

impl Plan {
    /// Without a Service.
    pub fn new(config: Config) -> Self {
        Self { config, services: HashMap::new(), owners: owners::Owners::default(), touched: BTreeSet::new() }
    }

    /// What it was made with, and the node of now.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Puts a Service, or takes it away. Equal content touches nothing.
    pub fn set(&mut self, key: &Arc<Key>, service: Option<Arc<Service>>) {
        let was = match &service {
            Some(service) => self.services.insert(key.clone(), service.clone()),
            None => self.services.remove(key),
        };
        if was == service {
            return;
        }
        self.touched.insert(key.clone());
        let claims = |service: &Option<Arc<Service>>| match service {
            Some(service) => port::claims(&self.config, key, &service.header),
            None => BTreeSet::new(),
        };
        let same_header = was.as_ref().map(|was| &was.header) == service.as_ref().map(|now| &now.header);
        if same_header {
            return;
        }
        let (old, new) = (claims(&was), claims(&service));
        for (claim, claimant) in old.difference(&new) {
            self.touched.extend(self.owners.release(*claim, claimant));
        }
        for (claim, claimant) in new.difference(&old) {
            self.touched.extend(self.owners.claim(*claim, claimant.clone()));
        }
    }

    /// What was last put.
    pub fn get(&self, key: &Key) -> Option<&Arc<Service>> {
        self.services.get(key)
    }

    /// Every Service.
    pub fn keys(&self) -> impl Iterator<Item = &Arc<Key>> {
        self.services.keys()
    }

    /// How many there are.
    pub fn services(&self) -> usize {
        self.services.len()
    }

    /// Another node touches every Service, unless it differs in its node ports alone.
    pub fn set_node(&mut self, state: NodeState) {
        let of_services = |state: &NodeState| (state.zone.clone(), state.address, state.detector.clone());
        if of_services(&self.config.state) != of_services(&state) {
            self.touch_all();
        }
        self.config.state = state;
    }

    /// As if everything had been put anew.
    pub fn touch_all(&mut self) {
        self.touched.extend(self.services.keys().cloned());
    }

    /// The Services whose plan may have changed since it was last asked; gone ones among them.
    pub fn settle(&mut self) -> BTreeSet<Arc<Key>> {
        std::mem::take(&mut self.touched)
    }

    /// The service ports of a Service that have a cluster IP of the family; none where it is gone.
    pub fn ports(&self, key: &Arc<Key>) -> Vec<PortPlan> {
        match self.services.get(key) {
            Some(service) => port::plan(&self.config, &self.owners, key, service),
            None => Vec::new(),
        }
    }

    /// Every address that several Services claim.
    pub fn conflicts(&self) -> impl Iterator<Item = Conflict> {
        self.owners.conflicts()
    }
}

#[cfg(test)]
mod tests;
