//! From what is known of the node to what a family's rules depend on (spec/kube-proxy.md §1.6, §3.9, §3.10, §9.2).
//!
//! Pure: the Node comes with the stream, the interfaces' addresses from [`crate::host::addresses`].

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use distributary_model::NodeView;
use ipnet::IpNet;

use crate::config::{Config, DetectLocal, NodePortAddresses};
use crate::plan::{Detector, Family, NodePorts, NodeState};

/// Everything that is known of the node.
#[derive(Clone, Debug)]
pub struct Facts {
    config: Config,
    node: Option<NodeView>,
    addresses: BTreeSet<IpAddr>,
}

/// What rules cannot be made without, and is not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    /// The Node itself.
    #[error("no server has said anything of the Node {node}, it may not exist: {wanted} needs it")]
    Node {
        /// Its name.
        node: String,
        /// What needs it.
        wanted: &'static str,
    },
    /// The Node's pod CIDRs.
    #[error("the Node {node} has no pod CIDR, and NodeCIDR is how pods are to be told from the rest")]
    PodCidrs {
        /// Its name.
        node: String,
    },
}

/// What a host cannot be programmed with for want of a family.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsuitable {
    /// The node's primary address.
    #[error("the bind address {0} is of a family whose rules this host does not have")]
    Address(IpAddr),
    /// Every pod's address.
    #[error("this host has rules of {0} alone, and no network of the cluster CIDR is of it")]
    ClusterCidr(&'static str),
}

impl Facts {
    /// Nothing is known but how the node is to be programmed.
    pub fn new(config: Config) -> Self {
        Self { config, node: None, addresses: BTreeSet::new() }
    }

    /// The Node as it is now. One that is gone is kept as it was last seen (§1.6).
    pub fn set_node(&mut self, node: Option<NodeView>) {
        self.node = node.or(self.node.take());
    }

    /// The addresses of all interfaces.
    pub fn set_addresses(&mut self, addresses: BTreeSet<IpAddr>) {
        self.addresses = addresses;
    }

    /// What a family's rules depend on.
    ///
    /// # Errors
    /// When rules would be wrong for want of something.
    pub fn state(&self, family: Family) -> Result<NodeState, Missing> {
        let zone = self.node.as_ref().map(|node| node.zone.clone()).unwrap_or_default();
        let (detector, node_ports) = (self.detector(family)?, self.node_ports(family)?);
        Ok(NodeState { zone, address: self.address(family), detector, node_ports })
    }

    /// The node's address of a family: what it is told to be, else the Node's first one.
    fn address(&self, family: Family) -> Option<IpAddr> {
        let told = Some(self.config.bind_address).filter(|told| !told.is_unspecified());
        let of_node = self.node.iter().flat_map(|node| &node.addresses).copied();
        told.into_iter().chain(of_node).find(|address| Family::of(address) == family)
    }

    fn detector(&self, family: Family) -> Result<Option<Detector>, Missing> {
        let of_family = |nets: &[IpNet]| nets.iter().find(|net| Family::of(&net.addr()) == family).copied();
        Ok(match &self.config.detect_local {
            DetectLocal::ClusterCidr => of_family(&self.config.cluster_cidr).map(Detector::ClusterCidr),
            DetectLocal::NodeCidr => {
                let node = self.node.as_ref().ok_or_else(|| self.no_node("--detect-local-mode NodeCIDR"))?;
                if node.pod_cidrs.is_empty() {
                    return Err(Missing::PodCidrs { node: self.config.node.to_string() });
                }
                of_family(&node.pod_cidrs).map(|net| Detector::NodeCidr(net.trunc()))
            }
            DetectLocal::Bridge(name) => Some(Detector::Bridge(name.clone())),
            DetectLocal::Prefix(prefix) => Some(Detector::Prefix(prefix.clone())),
        })
    }

    fn node_ports(&self, family: Family) -> Result<NodePorts, Missing> {
        let nets = match &self.config.node_ports {
            NodePortAddresses::Primary => {
                if self.node.is_none() && self.config.bind_address.is_unspecified() {
                    return Err(self.no_node("--nodeport-addresses primary"));
                }
                // Without an address there is nowhere; kube-proxy would answer everywhere (WART-7).
                self.address(family).map(IpNet::from).into_iter().collect()
            }
            NodePortAddresses::Within(nets) => {
                let nets = of_family(nets, family);
                if matches_all(&nets) {
                    let loopback = family == Family::V4 && self.config.localhost_node_ports;
                    return Ok(NodePorts::Everywhere { loopback });
                }
                nets
            }
        };
        let loopback = family == Family::V4
            && self.config.localhost_node_ports
            && self.config.node_ports != NodePortAddresses::Primary;
        let at = self.addresses.iter().filter(|address| nets.iter().any(|net| net.contains(*address)));
        Ok(NodePorts::At(at.filter(|address| loopback || !address.is_loopback()).copied().collect()))
    }

    fn no_node(&self, wanted: &'static str) -> Missing {
        Missing::Node { node: self.config.node.to_string(), wanted }
    }
}

impl Config {
    /// Rules depend on which addresses the interfaces have.
    pub fn needs_addresses(&self) -> bool {
        match &self.node_ports {
            NodePortAddresses::Primary => true,
            NodePortAddresses::Within(nets) => {
                [Family::V4, Family::V6].iter().any(|family| !matches_all(&of_family(nets, *family)))
            }
        }
    }

    /// Node ports are answered at IPv4's loopback, so that the kernel has to route such packets (§3.10).
    pub fn routes_localnet(&self) -> bool {
        match &self.node_ports {
            NodePortAddresses::Primary => false,
            NodePortAddresses::Within(nets) => {
                let nets = of_family(nets, Family::V4);
                self.localhost_node_ports && (matches_all(&nets) || nets.iter().any(covers_loopback))
            }
        }
    }

    /// Why a host that has only these families cannot be programmed as it is said (§9.3).
    ///
    /// # Errors
    /// One clear line.
    pub fn suits(&self, families: &[Family]) -> Result<(), Unsuitable> {
        let told = self.bind_address;
        if !told.is_unspecified() && !families.contains(&Family::of(&told)) {
            return Err(Unsuitable::Address(told));
        }
        let nets = &self.cluster_cidr;
        let of_none = nets.iter().all(|net| !families.contains(&Family::of(&net.addr())));
        match families {
            [family] if self.detect_local == DetectLocal::ClusterCidr && !nets.is_empty() && of_none => {
                Err(Unsuitable::ClusterCidr(family.as_str()))
            }
            _ => Ok(()),
        }
    }

    /// Loopback networks among those of node ports, where node ports are not answered.
    pub fn loopback_in_vain(&self) -> Vec<IpNet> {
        let NodePortAddresses::Within(nets) = &self.node_ports else { return Vec::new() };
        let vain = |net: &&IpNet| match net {
            IpNet::V4(_) => covers_loopback(net) && net.prefix_len() > 0 && !self.localhost_node_ports,
            IpNet::V6(net) => net.network().is_loopback(),
        };
        nets.iter().filter(vain).copied().collect()
    }
}

fn of_family(nets: &[IpNet], family: Family) -> Vec<IpNet> {
    nets.iter().filter(|net| Family::of(&net.addr()) == family).copied().collect()
}

/// A family of which no network is listed is open, and so is one of which all addresses are.
fn matches_all(nets: &[IpNet]) -> bool {
    nets.is_empty() || nets.iter().any(|net| net.prefix_len() == 0)
}

fn covers_loopback(net: &IpNet) -> bool {
    net.addr().is_loopback() || net.contains(&IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)))
}

#[cfg(test)]
mod tests;
