//! What is tried: which packets, so that rules that mean something else for one of them are found.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use distributary_model::Protocol;
use ipnet::IpNet;

use crate::iptables::trace::{From, Packet};
use crate::plan::{Claim, Detector, Family, NodePorts, NodeState};

/// Of one service's source ranges so many are tried.
const MOST_RANGES: usize = 8;
/// A node port is tried at so many of the host's addresses, and where it is told apart, at one of each kind.
const MOST_ADDRESSES: usize = 2;

/// Who sends, as far as rules can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Client {
    /// A pod that the detector matches.
    Pod,
    /// An endpoint, through its own service.
    Itself,
    /// A process of the node.
    Host,
    /// A process of the node that uses the loopback address.
    Loopback,
    /// Anybody else.
    Outside,
    /// Somebody in a source range.
    Within(IpNet),
    /// A process of the node that uses the load balancer's address.
    Vip,
    /// A client whom an endpoint has served so many seconds ago.
    Known(u32),
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod => f.write_str("a pod"),
            Self::Itself => f.write_str("the endpoint itself"),
            Self::Host => f.write_str("the node"),
            Self::Loopback => f.write_str("the node by loopback"),
            Self::Outside => f.write_str("outside"),
            Self::Within(range) => write!(f, "{range}"),
            Self::Vip => f.write_str("the node by the load balancer's address"),
            Self::Known(age) => write!(f, "a client of {age} s ago"),
        }
    }
}

/// The node, as far as it decides what is tried.
#[derive(Clone, Debug)]
pub struct Place {
    /// The family that is looked at.
    pub family: Family,
    /// What is known of the node.
    pub state: NodeState,
    /// Its addresses of the family.
    pub addresses: BTreeSet<IpAddr>,
}

impl Place {
    /// The addresses at which a destination is tried.
    pub fn targets(&self, claim: Claim) -> Vec<IpAddr> {
        if let Claim::Address(address, ..) = claim {
            return vec![address];
        }
        let mut targets: Vec<IpAddr> = self.own().take(MOST_ADDRESSES).collect();
        if let NodePorts::At(at) = &self.state.node_ports {
            targets.extend(self.own().find(|address| at.contains(address)));
            targets.extend(self.own().find(|address| !at.contains(address)));
        }
        targets.push(self.loopback());
        targets.sort_unstable();
        targets.dedup();
        targets
    }

    /// What is sent to one of them. `ranges` are those of a load balancer's address, `itself` is an endpoint.
    pub fn packets(
        &self,
        to: IpAddr,
        (protocol, port): (Protocol, u16),
        ranges: &[IpNet],
        itself: Option<IpAddr>,
    ) -> Vec<(Client, Packet)> {
        let mut clients: Vec<(Client, From, IpAddr)> = Vec::new();
        if to.is_loopback() {
            clients.push((Client::Loopback, From::Host, to));
        } else {
            clients.extend(self.pod().map(|(from, source)| (Client::Pod, from, source)));
            clients.extend(self.own().next().map(|own| (Client::Host, From::Host, own)));
            clients.extend(self.outside(ranges).map(|source| (Client::Outside, From::Elsewhere, source)));
            let pods = || self.pod().map_or(From::Elsewhere, |(from, _)| from);
            clients.extend(itself.map(|source| (Client::Itself, pods(), source)));
            let within = ranges.iter().take(MOST_RANGES);
            clients.extend(within.map(|net| (Client::Within(*net), From::Elsewhere, last(net))));
            clients.extend((!ranges.is_empty()).then_some((Client::Vip, From::Host, to)));
        }
        let packet =
            |(client, from, source)| (client, Packet { from, source, destination: to, protocol, port });
        clients.into_iter().map(packet).collect()
    }

    /// A pod as the detector knows it; `None` where it knows none.
    fn pod(&self) -> Option<(From, IpAddr)> {
        let anybody = self.outside(&[]);
        match self.state.detector.as_ref()? {
            Detector::ClusterCidr(net) | Detector::NodeCidr(net) => Some((From::Elsewhere, last(net))),
            Detector::Bridge(name) => Some((From::Interface(name.clone()), anybody?)),
            Detector::Prefix(prefix) => Some((From::Interface(format!("{prefix}0").into()), anybody?)),
        }
    }

    /// Its addresses that others can reach, the primary one first.
    fn own(&self) -> impl Iterator<Item = IpAddr> {
        let primary = self.state.address.filter(|address| self.addresses.contains(address));
        let others = self.addresses.iter().copied().filter(move |address| Some(*address) != primary);
        primary.into_iter().chain(others).filter(|address| !address.is_loopback() && !is_link_local(*address))
    }

    /// An address that is nobody's: of the networks for documentation and benchmarks.
    fn outside(&self, ranges: &[IpNet]) -> Option<IpAddr> {
        let candidates: [IpAddr; 4] = match self.family {
            Family::V4 => {
                [[203, 0, 113, 7], [198, 18, 0, 7], [192, 0, 2, 7], [198, 51, 100, 7]].map(IpAddr::from)
            }
            Family::V6 => [[0x2001, 0xdb8, 0xffff], [0x2001, 2, 7], [0x3fff, 7, 7], [0x100, 0, 0]]
                .map(|[a, b, c]| Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 7).into()),
        };
        let detected = |address: &IpAddr| match &self.state.detector {
            Some(Detector::ClusterCidr(net) | Detector::NodeCidr(net)) => net.contains(address),
            _ => false,
        };
        candidates.into_iter().find(|address| {
            !detected(address)
                && !self.addresses.contains(address)
                && !ranges.iter().any(|range| range.contains(address))
        })
    }

    fn loopback(&self) -> IpAddr {
        match self.family {
            Family::V4 => Ipv4Addr::LOCALHOST.into(),
            Family::V6 => Ipv6Addr::LOCALHOST.into(),
        }
    }
}

/// An address of a network that nobody has as his own.
fn last(net: &IpNet) -> IpAddr {
    net.broadcast()
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}
