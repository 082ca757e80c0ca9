//! The sets and maps of the table, and what stands in them.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use distributary_model::Protocol;
use ipnet::IpNet;

use super::chain::Chain;
use crate::plan::Family;

/// How a destination is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Reach {
    /// By address and port.
    Address,
    /// By a port of this host.
    NodePort,
}

/// Which endpoints of a service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum List {
    /// [`PortPlan::cluster`](crate::plan::PortPlan::cluster)
    Cluster,
    /// [`PortPlan::local`](crate::plan::PortPlan::local)
    Local,
}

/// A set, or a map. In the order in which changes of them are written: what is led to comes before what leads to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Map {
    /// Destination and index: an endpoint.
    Endpoints(Reach, Protocol, List),
    /// Endpoints that can meet themselves on this host, each twice.
    Hairpins,
    /// Every cluster IP.
    ClusterIps,
    /// Where cluster IPs come from.
    ServiceCidrs,
    /// The addresses of this host that have node ports, where not all have.
    NodePortAddresses,
    /// Destinations with source ranges.
    Firewall,
    /// Destinations that nobody serves.
    Refused,
    /// Node ports that nobody serves.
    RefusedNodePorts,
    /// Node ports.
    NodePorts,
    /// Cluster IPs, external IPs and VIPs.
    Services,
}

/// What an element is looked up by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum ElementKey {
    /// An address.
    Address(IpAddr),
    /// The same address as source and as destination.
    Same(IpAddr),
    /// A network.
    Net(IpNet),
    /// A destination.
    At(IpAddr, Protocol, u16),
    /// A node port.
    Port(Protocol, u16),
    /// The place of an endpoint among those of a destination.
    Slot(IpAddr, u16, u16),
    /// The same of a node port.
    PortSlot(u16, u16),
}

/// What is found there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Value {
    /// In a set: that it is there.
    Member,
    /// An endpoint.
    Endpoint(SocketAddr),
    /// The chain that goes on with the packet.
    Goto(Chain),
    /// The packet goes no further.
    Drop,
    /// None that we would write.
    Unknown,
}

/// The protocols that can be balanced.
pub(super) const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

/// By number, since names need a file that an image may lack.
pub(super) fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}

impl Map {
    /// Every one.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        let endpoints = [Reach::Address, Reach::NodePort].into_iter().flat_map(|reach| {
            PROTOCOLS.into_iter().flat_map(move |protocol| {
                [List::Cluster, List::Local].map(|list| Self::Endpoints(reach, protocol, list))
            })
        });
        endpoints.chain([
            Self::Hairpins,
            Self::ClusterIps,
            Self::ServiceCidrs,
            Self::NodePortAddresses,
            Self::Firewall,
            Self::Refused,
            Self::RefusedNodePorts,
            Self::NodePorts,
            Self::Services,
        ])
    }

    /// Whether it leads packets to endpoints.
    pub(super) fn leads(self) -> bool {
        matches!(self, Self::NodePorts | Self::Services)
    }

    /// Whether what goes from it goes only when nobody is led there any more: a packet that drew an index asks for its
    /// endpoint after that, and one that was not translated, since nobody served, is to be refused still.
    pub(super) fn goes_later(self) -> bool {
        matches!(self, Self::Endpoints(..) | Self::Refused | Self::RefusedNodePorts)
    }

    fn is_set(self) -> bool {
        matches!(self, Self::Hairpins | Self::ClusterIps | Self::ServiceCidrs | Self::NodePortAddresses)
    }

    /// What stands behind `add`.
    pub(super) fn declaration(self, family: Family) -> String {
        let (ip, address) = match family {
            Family::V4 => ("ip", "ipv4_addr"),
            Family::V6 => ("ip6", "ipv6_addr"),
        };
        let kind = if self.is_set() { "set" } else { "map" };
        let of = match self {
            Self::Endpoints(reach, protocol, _) => {
                let protocol = protocol.as_str();
                let key = match reach {
                    Reach::Address => format!("{ip} daddr . {protocol} dport"),
                    Reach::NodePort => format!("{protocol} dport"),
                };
                // The index is typed by an expression, since it has no type of its own.
                format!("typeof {key} . numgen random mod 65536 : {ip} daddr . {protocol} dport;")
            }
            Self::Hairpins => format!("type {address} . {address};"),
            Self::ClusterIps | Self::NodePortAddresses => format!("type {address};"),
            Self::ServiceCidrs => format!("type {address}; flags interval;"),
            Self::Firewall | Self::Refused | Self::Services => {
                format!("type {address} . inet_proto . inet_service : verdict;")
            }
            Self::RefusedNodePorts | Self::NodePorts => {
                "type inet_proto . inet_service : verdict;".to_owned()
            }
        };
        format!("{kind} {ip} {} {self} {{ {of} }}", super::TABLE)
    }

    /// Reads what is looked up by, as [`ElementKey`] writes it.
    fn key(self, text: &str) -> Option<ElementKey> {
        let mut fields = text.split(" . ");
        let mut field = || fields.next().map(str::trim);
        let protocol = |field: Option<&str>| {
            let of: u8 = field?.parse().ok()?;
            PROTOCOLS.into_iter().find(|protocol| number(*protocol) == of)
        };
        let key = match self {
            Self::Endpoints(Reach::Address, ..) => {
                ElementKey::Slot(field()?.parse().ok()?, field()?.parse().ok()?, field()?.parse().ok()?)
            }
            Self::Endpoints(Reach::NodePort, ..) => {
                ElementKey::PortSlot(field()?.parse().ok()?, field()?.parse().ok()?)
            }
            Self::Hairpins => {
                let same: IpAddr = field()?.parse().ok()?;
                (field()?.parse() == Ok(same)).then_some(ElementKey::Same(same))?
            }
            Self::ClusterIps | Self::NodePortAddresses => ElementKey::Address(field()?.parse().ok()?),
            Self::ServiceCidrs => {
                let text = field()?;
                let address = text.parse::<IpAddr>().map(IpNet::from);
                ElementKey::Net(text.parse().or(address).ok()?)
            }
            Self::Firewall | Self::Refused | Self::Services => {
                ElementKey::At(field()?.parse().ok()?, protocol(field())?, field()?.parse().ok()?)
            }
            Self::RefusedNodePorts | Self::NodePorts => {
                ElementKey::Port(protocol(field())?, field()?.parse().ok()?)
            }
        };
        fields.next().is_none().then_some(key)
    }

    /// Reads an element, as [`ElementKey`] and [`Value`] write it.
    pub(super) fn element(self, text: &str) -> Option<(ElementKey, Value)> {
        if self.is_set() {
            return Some((self.key(text)?, Value::Member));
        }
        let (key, value) = text.split_once(" : ")?;
        Some((self.key(key)?, Value::read(value.trim())))
    }
}

impl fmt::Display for Map {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Endpoints(reach, protocol, list) => {
                if *reach == Reach::NodePort {
                    f.write_str("node-port-")?;
                }
                if *list == List::Local {
                    f.write_str("local-")?;
                }
                return write!(f, "endpoints-{}", protocol.as_str());
            }
            Self::Hairpins => "hairpins",
            Self::ClusterIps => "cluster-ips",
            Self::ServiceCidrs => "service-cidrs",
            Self::NodePortAddresses => "node-port-addresses",
            Self::Firewall => "firewall",
            Self::Refused => "refused",
            Self::RefusedNodePorts => "refused-node-ports",
            Self::NodePorts => "node-ports",
            Self::Services => "services",
        })
    }
}

impl ElementKey {
    /// The place of an endpoint at this destination.
    pub(super) fn slot(self, index: u16) -> Self {
        match self {
            Self::At(address, _, port) => Self::Slot(address, port, index),
            Self::Port(_, port) => Self::PortSlot(port, index),
            other => other,
        }
    }
}

impl fmt::Display for ElementKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address}"),
            Self::Same(address) => write!(f, "{address} . {address}"),
            Self::Net(net) => write!(f, "{net}"),
            Self::At(address, protocol, port) => write!(f, "{address} . {} . {port}", number(*protocol)),
            Self::Port(protocol, port) => write!(f, "{} . {port}", number(*protocol)),
            Self::Slot(address, port, index) => write!(f, "{address} . {port} . {index}"),
            Self::PortSlot(port, index) => write!(f, "{port} . {index}"),
        }
    }
}

impl Value {
    fn read(text: &str) -> Self {
        if text == "drop" {
            return Self::Drop;
        }
        if let Some(chain) = text.strip_prefix("goto ") {
            return Chain::read(chain).map_or(Self::Unknown, Self::Goto);
        }
        let endpoint = text.split_once(" . ").and_then(|(address, port)| {
            Some(SocketAddr::new(address.parse().ok()?, port.trim().parse().ok()?))
        });
        endpoint.map_or(Self::Unknown, Self::Endpoint)
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Member => Ok(()),
            Self::Endpoint(endpoint) => write!(f, " : {} . {}", endpoint.ip(), endpoint.port()),
            Self::Goto(chain) => write!(f, " : goto {chain}"),
            Self::Drop => f.write_str(" : drop"),
            Self::Unknown => f.write_str(" : continue"),
        }
    }
}
