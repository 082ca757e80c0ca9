//! The records that a table holds, in canonical form.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::Name;

/// The unit of state, and of change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A Service with its endpoints.
    Service(Arc<Service>),
    /// A cluster's facts.
    Facts(Arc<Facts>),
}

impl Record {
    /// The Service, where it is one.
    pub fn as_service(&self) -> Option<&Arc<Service>> {
        match self {
            Self::Service(service) => Some(service),
            Self::Facts(_) => None,
        }
    }

    /// How many endpoints it has.
    pub fn endpoints(&self) -> usize {
        self.as_service().map_or(0, |service| service.endpoints.len())
    }
}

/// A Service with its endpoints of both families.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// What the Service object says.
    pub header: ServiceHeader,
    /// Merged from its EndpointSlices; sorted, without duplicates.
    pub endpoints: Vec<Endpoint>,
}

/// What a node's rules depend on of a Service object (spec/kube-proxy.md §1.3). All lists are sorted and unique.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceHeader {
    /// The Service's ports.
    pub ports: Vec<ServicePort>,
    /// At most one a family.
    pub cluster_ips: Vec<IpAddr>,
    /// spec.externalIPs
    pub external_ips: Vec<IpAddr>,
    /// Load balancer addresses whose ipMode is VIP.
    pub load_balancer_vips: Vec<IpAddr>,
    /// spec.loadBalancerSourceRanges, unfiltered.
    pub source_ranges: Vec<IpNet>,
    /// Timeout of ClientIP affinity in seconds; 0: no affinity.
    pub affinity_seconds: u32,
    /// internalTrafficPolicy is Local.
    pub internal_policy_local: bool,
    /// externalTrafficPolicy is Local, and the Service is of a type where that counts.
    pub external_policy_local: bool,
    /// 0: none.
    pub health_check_node_port: u16,
    /// Unix seconds. Of two services that claim an address, the older owns it.
    pub created: i64,
}

/// A port of a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServicePort {
    /// May be empty, where the Service has one port.
    pub name: Name,
    /// Its protocol.
    pub protocol: Protocol,
    /// The port at the cluster IP.
    pub port: u16,
    /// 0: none.
    pub node_port: u16,
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP, which the API takes where nothing is said.
    #[default]
    Tcp,
    /// UDP
    Udp,
    /// SCTP
    Sctp,
}

impl Protocol {
    /// In lower case, as the packet filters want it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An address that serves. A service has several of the same address where its ports differ in what follows them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    /// Where packets go.
    pub address: IpAddr,
    /// Sorted and unique; ports that no Service names are kept.
    pub ports: Arc<[EndpointPort]>,
    /// Ready, serving, terminating.
    pub conditions: Conditions,
    /// The Node that it runs on; empty: none, so it is local for no node.
    pub node: Name,
    /// hints.forZones, sorted and unique.
    pub zone_hints: Arc<[Name]>,
    /// hints.forNodes, sorted and unique.
    pub node_hints: Arc<[Name]>,
    /// The endpoint's cluster where it is not the service's. `node` and the hints mean something only inside it.
    pub cluster: Option<Name>,
}

/// A port of an endpoint. It belongs to the Service port of the same name and protocol.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointPort {
    /// Name of the Service port.
    pub name: Name,
    /// Its protocol.
    pub protocol: Protocol,
    /// The port at the endpoint.
    pub port: u16,
}

/// An endpoint's conditions. The default is the healthy one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Conditions {
    /// Wants traffic.
    pub ready: bool,
    /// Can take traffic, also while terminating.
    pub serving: bool,
    /// Is on its way out.
    pub terminating: bool,
}

impl Default for Conditions {
    fn default() -> Self {
        Self { ready: true, serving: true, terminating: false }
    }
}

impl Conditions {
    /// As bits: 1 not ready, 2 not serving, 4 terminating.
    pub fn bits(self) -> u32 {
        u32::from(!self.ready) | u32::from(!self.serving) << 1 | u32::from(self.terminating) << 2
    }

    /// From bits; `None` where an unknown one is set.
    pub fn from_bits(bits: u32) -> Option<Self> {
        (bits < 8).then_some(Self {
            ready: bits & 1 == 0,
            serving: bits & 2 == 0,
            terminating: bits & 4 != 0,
        })
    }
}

/// What is known of a cluster as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Union of the ServiceCIDR objects, sorted and unique.
    pub service_cidrs: Vec<IpNet>,
}
