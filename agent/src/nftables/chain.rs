//! Chains. Those that balance are shared by all service ports with as many endpoints, so that a service is elements
//! only; where clients are remembered, and where sources are checked, a service port has chains of its own.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use distributary_model::Protocol;
use ipnet::IpNet;
use sha2::{Digest as _, Sha256};

use super::element::{List, Map, PROTOCOLS, Reach, number};
use crate::plan::{Detector, Family, PortPlan};

/// Who balances.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Balance {
    /// By a random index into the map of endpoints.
    Shared {
        /// How the destination is told.
        reach: Reach,
        /// Its protocol.
        protocol: Protocol,
        /// Into which map.
        list: List,
        /// How many endpoints there are.
        count: u16,
    },
    /// A client goes where it went before.
    Sticky {
        /// Of the service port.
        hash: u64,
        /// Which of its endpoints.
        list: List,
    },
}

/// A chain that elements, or other such chains, lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Chain {
    /// Says that nobody serves.
    Refuse,
    /// Translates to an endpoint.
    Balance(Balance),
    /// The same, and the source is to be the node's.
    Masquerade(Balance),
    /// External traffic of policy Local: pods and this host go to all endpoints, others to those here.
    External {
        /// For pods and this host.
        cluster: Option<Balance>,
        /// For others.
        local: Option<Balance>,
    },
    /// Remembers the client for an endpoint, and translates to it.
    Endpoint(u64),
    /// Drops who is in no source range.
    Sources(u64),
}

/// What rules of chains depend on beside the service port.
#[derive(Clone, Copy, Debug)]
pub(super) struct Style<'a> {
    pub(super) family: Family,
    pub(super) mark: u32,
    pub(super) detector: Option<&'a Detector>,
    /// The node's primary address of the family.
    pub(super) node_address: Option<IpAddr>,
}

impl Style<'_> {
    pub(super) fn ip(&self) -> &'static str {
        match self.family {
            Family::V4 => "ip",
            Family::V6 => "ip6",
        }
    }

    /// Whether a packet is a local pod's, or (`not`) is not.
    pub(super) fn of_pods(&self, not: bool) -> Option<String> {
        let is = if not { "!= " } else { "" };
        Some(match self.detector? {
            Detector::ClusterCidr(net) | Detector::NodeCidr(net) => {
                format!("{} saddr {is}{}", self.ip(), net.trunc())
            }
            Detector::Bridge(name) => format!("iifname {is}\"{name}\""),
            Detector::Prefix(prefix) => format!("iifname {is}\"{prefix}*\""),
        })
    }

    /// Asks for masquerading.
    pub(super) fn set_mark(&self) -> String {
        format!("meta mark set meta mark or {:#x}", self.mark)
    }

    fn dnat(&self, endpoint: SocketAddr) -> String {
        format!("dnat {} to {endpoint}", self.ip())
    }
}

impl Balance {
    /// The map that it looks endpoints up in.
    pub(super) fn map(self) -> Option<(Map, List)> {
        match self {
            Self::Shared { reach, protocol, list, .. } => Some((Map::Endpoints(reach, protocol, list), list)),
            Self::Sticky { .. } => None,
        }
    }

    fn read(text: &str) -> Option<Self> {
        let (reach, rest) = match text.strip_prefix("node-port-") {
            Some(rest) => (Reach::NodePort, rest),
            None => (Reach::Address, text),
        };
        let (list, rest) = match rest.strip_prefix("local-") {
            Some(rest) => (List::Local, rest),
            None => (List::Cluster, rest),
        };
        if let Some(hash) = rest.strip_prefix("sticky-") {
            return Some(Self::Sticky { hash: read_hash(hash)?, list });
        }
        let (name, count) = rest.split_once('-')?;
        let protocol = PROTOCOLS.into_iter().find(|protocol| protocol.as_str() == name)?;
        Some(Self::Shared { reach, protocol, list, count: count.parse().ok()? })
    }
}

impl fmt::Display for Balance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (reach, list) = match self {
            Self::Shared { reach, list, .. } => (*reach, *list),
            Self::Sticky { list, .. } => (Reach::Address, *list),
        };
        if reach == Reach::NodePort {
            f.write_str("node-port-")?;
        }
        if list == List::Local {
            f.write_str("local-")?;
        }
        match self {
            Self::Shared { protocol, count, .. } => write!(f, "{}-{count}", protocol.as_str()),
            Self::Sticky { hash, .. } => write!(f, "sticky-{hash:016x}"),
        }
    }
}

impl Chain {
    /// Who balances what comes here.
    pub(super) fn balances(self) -> [Option<Balance>; 2] {
        match self {
            Self::Balance(balance) | Self::Masquerade(balance) => [Some(balance), None],
            Self::External { cluster, local } => [cluster, local],
            Self::Refuse | Self::Endpoint(_) | Self::Sources(_) => [None, None],
        }
    }

    /// The chains that it leads to, of those that are not a service port's own.
    pub(super) fn leads_to(self) -> impl Iterator<Item = Self> {
        let own = matches!(self, Self::Balance(_));
        self.balances().into_iter().flatten().map(Self::Balance).filter(move |_| !own)
    }

    /// Whether it leads to a service port's own chain, and so belongs to that service port.
    pub(super) fn leads_to_own(self) -> bool {
        self.leads_to().any(|to| matches!(to, Self::Balance(Balance::Sticky { .. })))
    }

    /// Its rules, where they follow from what it is; `None`: they are of one service port.
    pub(super) fn rules(self, style: &Style<'_>) -> Option<Vec<String>> {
        match self {
            Self::Refuse => Some(vec!["reject".to_owned()]),
            Self::Balance(balance @ Balance::Shared { reach, protocol, count, .. }) => {
                let (ip, protocol) = (style.ip(), protocol.as_str());
                let key = match reach {
                    Reach::Address => format!("{ip} daddr . {protocol} dport"),
                    Reach::NodePort => format!("{protocol} dport"),
                };
                let (map, _) = balance.map()?;
                Some(vec![format!("dnat {ip} to {key} . numgen random mod {count} map @{map}")])
            }
            Self::Masquerade(balance) => Some(vec![style.set_mark(), format!("goto {balance}")]),
            Self::External { cluster, local } => {
                let pods = cluster.and_then(|to| Some(format!("{} goto {to}", style.of_pods(false)?)));
                let mark = format!("fib saddr type local {}", style.set_mark());
                let host = cluster.map(|to| format!("fib saddr type local goto {to}"));
                let rest = local.map(|to| format!("goto {to}"));
                Some([pods, Some(mark), host, rest].into_iter().flatten().collect())
            }
            Self::Balance(Balance::Sticky { .. }) | Self::Endpoint(_) | Self::Sources(_) => None,
        }
    }

    /// Reads a name, as it is written.
    pub(super) fn read(name: &str) -> Option<Self> {
        if name == "refuse" {
            return Some(Self::Refuse);
        }
        if let Some(balance) = name.strip_prefix("masquerade-") {
            return Balance::read(balance).map(Self::Masquerade);
        }
        if let Some((cluster, local)) = name.strip_prefix("external-").and_then(|both| both.split_once('.')) {
            let read = |text: &str| match text {
                "none" => Some(None),
                text => Balance::read(text).map(Some),
            };
            return Some(Self::External { cluster: read(cluster)?, local: read(local)? });
        }
        if let Some(hash) = name.strip_prefix("endpoint-") {
            return read_hash(hash).map(Self::Endpoint);
        }
        if let Some(hash) = name.strip_prefix("sources-") {
            return read_hash(hash).map(Self::Sources);
        }
        Balance::read(name).map(Self::Balance)
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refuse => f.write_str("refuse"),
            Self::Balance(balance) => write!(f, "{balance}"),
            Self::Masquerade(balance) => write!(f, "masquerade-{balance}"),
            Self::External { cluster, local } => {
                let name = |to: &Option<Balance>| to.map_or_else(|| "none".to_owned(), |to| to.to_string());
                write!(f, "external-{}.{}", name(cluster), name(local))
            }
            Self::Endpoint(hash) => write!(f, "endpoint-{hash:016x}"),
            Self::Sources(hash) => write!(f, "sources-{hash:016x}"),
        }
    }
}

/// Stable for ever: what names are made of.
pub(super) fn hash(parts: &[&str]) -> u64 {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    hash.finalize()[..8].iter().fold(0, |head, byte| head << 8 | u64::from(*byte))
}

fn read_hash(text: &str) -> Option<u64> {
    (text.len() == 16).then(|| u64::from_str_radix(text, 16).ok()).flatten()
}

/// The hash in the names of a service port's own chains.
pub(super) fn port_hash(plan: &PortPlan) -> u64 {
    hash(&[&plan.svc, plan.protocol.as_str()])
}

fn endpoint_hash(plan: &PortPlan, endpoint: SocketAddr) -> u64 {
    hash(&[&plan.svc, plan.protocol.as_str(), &endpoint.to_string()])
}

/// The set of the clients that an endpoint was given to lately.
pub(super) fn clients(endpoint: u64) -> String {
    format!("clients-{endpoint:016x}")
}

/// What a service port has for itself.
#[derive(Debug, Default)]
pub(super) struct Own {
    pub(super) chains: Vec<(Chain, Vec<String>)>,
    /// Sets of clients.
    pub(super) clients: Vec<u64>,
}

impl Own {
    /// The chains of a list whose clients are remembered. Both lists share what is known of an endpoint's clients.
    pub(super) fn sticky(
        &mut self,
        plan: &PortPlan,
        style: &Style<'_>,
        list: List,
        endpoints: &[SocketAddr],
    ) {
        let (ip, seconds, protocol) = (style.ip(), plan.affinity_seconds, number(plan.protocol));
        let hashes: Vec<u64> = endpoints.iter().map(|endpoint| endpoint_hash(plan, *endpoint)).collect();
        let known = hashes.iter().map(|endpoint| {
            format!("{ip} saddr @{} goto {}", clients(*endpoint), Chain::Endpoint(*endpoint))
        });
        // Without an anonymous map, which would cost every other change of the host (spec/layout.md §6.1).
        let dice = hashes.iter().enumerate().map(|(i, endpoint)| match endpoints.len() - i {
            1 => format!("goto {}", Chain::Endpoint(*endpoint)),
            left => format!("numgen random mod {left} 0 goto {}", Chain::Endpoint(*endpoint)),
        });
        let sticky = Chain::Balance(Balance::Sticky { hash: port_hash(plan), list });
        self.chains.push((sticky, known.chain(dice).collect()));
        for (endpoint, hash) in endpoints.iter().zip(hashes) {
            if self.clients.contains(&hash) {
                continue;
            }
            let remember = format!("update @{} {{ {ip} saddr timeout {seconds}s }}", clients(hash));
            // Apart: who finds no room in the set ends its rule there, and is to be translated all the same.
            let translate = format!("meta l4proto {protocol} {}", style.dnat(*endpoint));
            self.chains.push((Chain::Endpoint(hash), vec![remember, translate]));
            self.clients.push(hash);
        }
    }

    /// The chain that checks sources.
    pub(super) fn sources(&mut self, plan: &PortPlan, style: &Style<'_>) {
        let ranges = &plan.source_ranges;
        let lets_host = ranges.iter().any(|range| style.node_address.is_some_and(|own| range.contains(&own)));
        // A host that has the address itself comes from it.
        let host = plan.vips.iter().filter(|_| lets_host).map(|vip| IpNet::from(*vip));
        let all: Vec<IpNet> = ranges.iter().copied().chain(host).collect();
        let all: Vec<String> = IpNet::aggregate(&all).iter().map(ToString::to_string).collect();
        let rule = format!("{} saddr != {{ {} }} drop", style.ip(), all.join(", "));
        self.chains.push((Chain::Sources(port_hash(plan)), vec![rule]));
    }
}
