//! Which flows are stale: every UDP destination of a family, who owns it, and who serves it.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use distributary_model::{Key, Name, Protocol, Service};

use super::flow::{Flow, UDP};
use crate::plan::owners::Owners;
use crate::plan::port::{claims, serving};
use crate::plan::{Claim, Claimant, Config, Family, NodePorts, NodeState};

/// How long a service port has no serving endpoint before its flows are stale. A single pod that is replaced, or whose
/// probe fails once, is without for a moment, and its flows need not be cut; a client that waits for answers asks again
/// after five seconds (the resolver's default timeout), and that is what it should find gone.
pub const GRACE: Duration = Duration::from_secs(5);

/// Former destinations that are kept for the next pass, which is soon; more are let go, and their flows time out.
const RETIRED: usize = 65_536;

/// The UDP destinations of a family.
#[derive(Debug)]
pub struct Ledger {
    config: Config,
    owners: Owners,
    services: HashMap<Arc<Key>, Held>,
    /// Destinations that nobody owns since the last pass.
    retired: HashSet<Claim>,
    /// Service ports without a serving endpoint, and since when; oldest first. Some are served again.
    bare: VecDeque<(Instant, Arc<Key>, Name)>,
    /// When something changed that the last pass did not know.
    changed: Option<Instant>,
}

/// The UDP ports of a Service.
#[derive(Debug, Default)]
struct Held {
    claims: BTreeSet<(Claim, Claimant)>,
    ports: Vec<Port>,
}

#[derive(Debug)]
struct Port {
    name: Name,
    /// Sorted.
    serving: Vec<SocketAddr>,
    /// Since when nobody serves.
    bare: Option<Instant>,
}

impl Ledger {
    /// Of a family, in the eyes of a node of this cluster; without a Service.
    pub fn new(family: Family, cluster: Name) -> Self {
        let config = Config { family, cluster, node: Name::default(), state: NodeState::default() };
        Self {
            config,
            owners: Owners::default(),
            services: HashMap::new(),
            retired: HashSet::new(),
            bare: VecDeque::new(),
            changed: None,
        }
    }

    /// Which one.
    pub fn family(&self) -> Family {
        self.config.family
    }

    /// Takes note of what the node has become.
    pub fn set_node(&mut self, state: NodeState, now: Instant) {
        if self.config.state.node_ports != state.node_ports {
            self.touch(now);
        }
        self.config.state = state;
    }

    /// The kernel may hold flows that no change accounts for.
    pub fn touch(&mut self, now: Instant) {
        if !self.services.is_empty() {
            self.changed.get_or_insert(now);
        }
    }

    /// Destinations of rules that somebody wrote earlier. Those that no Service has now are former ones, and the flows to
    /// them stale.
    pub fn retire(&mut self, found: &BTreeSet<Claim>, now: Instant) {
        for claim in found {
            if is_udp(claim) && self.owners.owner(*claim).is_none() && self.retired.len() < RETIRED {
                self.retired.insert(*claim);
                self.changed.get_or_insert(now);
            }
        }
    }

    /// Puts a Service, or takes it away. Costs what the Service has, and nothing where it has no UDP port.
    pub fn set(&mut self, key: &Arc<Key>, service: Option<&Service>, now: Instant) {
        let old = self.services.remove(key).unwrap_or_default();
        let mut new = service.map(|service| self.read(key, service)).unwrap_or_default();
        let mut differs = self.claim(&old.claims, &new.claims);
        for port in &mut new.ports {
            let was = old.ports.iter().find(|was| was.name == port.name);
            if port.serving.is_empty() {
                let since = was.and_then(|was| was.bare);
                port.bare = since.or(Some(now));
                if since.is_none() {
                    self.bare.push_back((now, key.clone(), port.name.clone()));
                }
            } else {
                differs |= was.is_none_or(|was| was.serving != port.serving);
            }
        }
        if !new.claims.is_empty() {
            self.services.insert(key.clone(), new);
        }
        if differs {
            self.changed.get_or_insert(now);
        }
    }

    /// Whether a destination changes hands.
    fn claim(&mut self, old: &BTreeSet<(Claim, Claimant)>, new: &BTreeSet<(Claim, Claimant)>) -> bool {
        for (claim, claimant) in old.difference(new) {
            self.owners.release(*claim, claimant);
        }
        for (claim, claimant) in new.difference(old) {
            self.owners.claim(*claim, claimant.clone());
            self.retired.remove(claim);
        }
        for (claim, _) in old.difference(new) {
            if self.owners.owner(*claim).is_none() && self.retired.len() < RETIRED {
                self.retired.insert(*claim);
            }
        }
        old != new
    }

    fn read(&self, key: &Arc<Key>, service: &Service) -> Held {
        let mut claims = claims(&self.config, key, &service.header);
        claims.retain(|(claim, _)| is_udp(claim));
        let names: BTreeSet<Name> = claims.iter().map(|(_, claimant)| claimant.port.clone()).collect();
        let port = |name: Name| {
            let serving = serving(&self.config, key, service, &name, Protocol::Udp);
            Port { name, serving, bare: None }
        };
        Held { ports: names.into_iter().map(port).collect(), claims }
    }

    /// When a pass is wanted; `None`: not before something changes.
    pub fn due(&mut self) -> Option<Instant> {
        while let Some((since, key, name)) = self.bare.front() {
            if self.port(key, name).is_some_and(|port| port.bare == Some(*since)) {
                break;
            }
            self.bare.pop_front();
        }
        let grace = self.bare.front().map(|(since, ..)| *since + GRACE);
        [self.changed, grace].into_iter().flatten().min()
    }

    /// A pass that began then has seen every flow.
    pub fn passed(&mut self, at: Instant) {
        self.changed = None;
        self.retired.clear();
        let over =
            self.bare.iter().take_while(|(since, ..)| at.saturating_duration_since(*since) >= GRACE).count();
        self.bare.drain(..over);
    }

    /// Whether a flow leads to where its destination's owner has nobody. `local`: this host has the address. Flows to
    /// node ports elsewhere are others' business, also when they come through here.
    pub fn is_stale(&self, flow: &Flow, local: impl Fn(&IpAddr) -> bool, now: Instant) -> bool {
        if flow.protocol != UDP {
            return false;
        }
        let (address, port) = (flow.destination.ip(), flow.destination.port());
        self.judge(Claim::Address(address, Protocol::Udp, port), flow, now)
            .or_else(|| {
                let verdict = self.judge(Claim::NodePort(Protocol::Udp, port), flow, now)?;
                self.has_node_ports(&address, local).then_some(verdict)
            })
            .unwrap_or(false)
    }

    /// `None`: it is no destination.
    fn judge(&self, claim: Claim, flow: &Flow, now: Instant) -> Option<bool> {
        let Some(owner) = self.owners.owner(claim) else {
            return self.retired.contains(&claim).then(|| flow.is_translated());
        };
        let port = self.port(&owner.key, &owner.port)?;
        Some(match port.bare {
            None => port.serving.binary_search(&flow.reply_source).is_err(),
            // What is not translated is nobody's yet, and goes when there is somebody.
            Some(since) => flow.is_translated() && now.saturating_duration_since(since) >= GRACE,
        })
    }

    fn port(&self, key: &Arc<Key>, name: &str) -> Option<&Port> {
        self.services.get(key)?.ports.iter().find(|port| *port.name == *name)
    }

    fn has_node_ports(&self, address: &IpAddr, local: impl Fn(&IpAddr) -> bool) -> bool {
        match &self.config.state.node_ports {
            NodePorts::Everywhere { loopback } if address.is_loopback() => *loopback,
            NodePorts::Everywhere { .. } => local(address),
            NodePorts::At(addresses) => addresses.contains(address),
        }
    }
}

fn is_udp(claim: &Claim) -> bool {
    matches!(claim, Claim::Address(_, Protocol::Udp, _) | Claim::NodePort(Protocol::Udp, _))
}
