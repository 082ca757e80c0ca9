//! The kernel's rules and ours, asked the same.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use distributary_model::{Key, Protocol};
use ipnet::IpNet;

use super::difference::{Difference, Kind, differs};
use super::probe::{Client, Place};
use super::words::words;
use crate::iptables::names::service_hash;
use crate::iptables::trace::{Fate, Host, Packet, Rules};
use crate::plan::{Claim, PortPlan};

/// How long a client is remembered where nothing else is known.
const AFFINITY: u32 = 10_800;

/// One family's rules.
#[derive(Debug)]
pub struct View<'a> {
    /// Those of the kernel.
    pub kernel: &'a Rules,
    /// Those that we would write.
    pub ours: &'a Rules,
    /// The node.
    pub place: &'a Place,
    /// Who is at a destination, as we know it.
    pub services: &'a BTreeMap<Claim, Arc<Served>>,
    /// Destinations that several Services claim: kube-proxy gives them to any of these.
    pub contested: &'a BTreeSet<Claim>,
}

/// A service port of a Service.
#[derive(Debug)]
pub struct Served {
    /// Whose.
    pub key: Arc<Key>,
    /// What is planned.
    pub port: PortPlan,
}

/// What a comparison found.
#[derive(Debug, Default)]
pub struct Comparison {
    /// Destinations that were looked at.
    pub destinations: usize,
    /// Packets that were followed through both.
    pub packets: usize,
    /// Where they ended otherwise.
    pub differences: BTreeSet<Difference>,
}

/// A service port's destinations.
pub fn claims(port: &PortPlan) -> impl Iterator<Item = Claim> {
    let addresses = port.cluster_ip.iter().chain(&port.external_ips).chain(&port.vips);
    let addresses = addresses.map(|address| Claim::Address(*address, port.protocol, port.port));
    let health = port.health_check_node_port;
    let node_ports = port.node_port.map(|node_port| Claim::NodePort(port.protocol, node_port));
    addresses.chain(node_ports).chain(health.map(|port| Claim::NodePort(Protocol::Tcp, port)))
}

impl View<'_> {
    /// Follows packets of every client to every destination that either knows.
    pub fn compare(&self) -> Comparison {
        let mut all = Comparison::default();
        let mut destinations = self.ours.destinations();
        destinations.extend(self.kernel.destinations());
        for ((address, protocol, port), comment) in destinations {
            let claim = match address {
                Some(address) => Claim::Address(address, protocol, port),
                None => Claim::NodePort(protocol, port),
            };
            all.destinations += 1;
            for to in self.place.targets(claim) {
                let at = At { claim, to, protocol, port, comment };
                self.look(&at, &mut all);
            }
        }
        all
    }

    fn look(&self, at: &At<'_>, all: &mut Comparison) {
        let served = self.services.get(&at.claim);
        let ranges = self.ranges(at, served);
        let itself = served.and_then(|served| served.port.hairpin.first().copied());
        let host = Host { addresses: self.place.addresses.clone(), ..Host::default() };
        let mut found: Vec<Difference> = Vec::new();
        let packets = self.place.packets(at.to, (at.protocol, at.port), &ranges, itself);
        let first = packets.first().map(|(_, packet)| packet.clone());
        for (client, packet) in packets {
            all.packets += 1;
            let (kernel, ours) = (self.kernel.fate(&host, &packet), self.ours.fate(&host, &packet));
            self.note(at, served, client, (&kernel, &ours), &mut found);
            if first.as_ref().is_some_and(|first| first.source == packet.source) {
                self.look_again(at, served, &packet, [&kernel, &ours], all, &mut found);
            }
        }
        all.differences.extend(found);
    }

    /// Who comes back while he is remembered, and after.
    fn look_again(
        &self,
        at: &At<'_>,
        served: Option<&Arc<Served>>,
        packet: &Packet,
        first: [&Fate; 2],
        all: &mut Comparison,
        found: &mut Vec<Difference>,
    ) {
        let Some(endpoint) = first.iter().find_map(|fate| fate.lists.keys().next_back()) else { return };
        let lists = first.iter().filter_map(|fate| fate.lists.get(endpoint)).cloned();
        let lists: BTreeSet<_> = lists.collect();
        let seconds = served.map_or(0, |served| served.port.affinity_seconds);
        let seconds = if seconds == 0 { AFFINITY } else { seconds };
        for age in [seconds - 1, seconds] {
            all.packets += 1;
            let remembered = lists.iter().map(|list| (list.clone(), age)).collect();
            let host = Host { addresses: self.place.addresses.clone(), remembered };
            let (kernel, ours) = (self.kernel.fate(&host, packet), self.ours.fate(&host, packet));
            self.note(at, served, Client::Known(age), (&kernel, &ours), found);
        }
    }

    fn note(
        &self,
        at: &At<'_>,
        served: Option<&Arc<Served>>,
        client: Client,
        (kernel, ours): (&Fate, &Fate),
        found: &mut Vec<Difference>,
    ) {
        let Some(kind) = differs(kernel, ours) else { return };
        let kind = match (kind, client) {
            _ if self.is_deliberate(at, served, client, kernel, ours) => Kind::Deliberate,
            (Kind::Endpoints, Client::Known(_)) => Kind::Affinity,
            (kind, _) => kind,
        };
        let (kernel, ours) = (words(kernel, ours), words(ours, kernel));
        let same = |one: &&mut Difference| (one.kind, &one.kernel, &one.ours) == (kind, &kernel, &ours);
        match found.iter_mut().find(same) {
            Some(known) => known.clients.push(client),
            None => found.push(Difference {
                kind,
                destination: SocketAddr::new(at.to, at.port),
                protocol: at.protocol,
                key: served.map(|served| served.key.clone()),
                service: match served {
                    Some(served) => served.port.svc.clone(),
                    None => at.comment.split(' ').next().unwrap_or_default().to_owned(),
                },
                clients: vec![client],
                kernel,
                ours,
            }),
        }
    }

    /// What we do otherwise on purpose (spec/kube-proxy.md §11).
    fn is_deliberate(
        &self,
        at: &At<'_>,
        served: Option<&Arc<Served>>,
        client: Client,
        kernel: &Fate,
        ours: &Fate,
    ) -> bool {
        let port = served.map(|served| &served.port);
        let has =
            |addresses: fn(&PortPlan) -> &[IpAddr]| port.is_some_and(|port| addresses(port).contains(&at.to));
        let (external, vip) = (has(|port| &port.external_ips), has(|port| &port.vips));
        let filtered = port.is_some_and(|port| !port.source_ranges.is_empty());
        let refuses_the_host = client == Client::Host && ours.refused.is_some() && kernel.left_alone > 0.0;
        self.contested.contains(&at.claim)
            // WART-6: source ranges hold for an address that is an external IP, too.
            || (external && vip && filtered)
            // WART-13
            || (refuses_the_host && (external || vip))
    }

    /// Source ranges of either.
    fn ranges(&self, at: &At<'_>, served: Option<&Arc<Served>>) -> Vec<IpNet> {
        let Some(served) = served.filter(|served| served.port.vips.contains(&at.to)) else {
            return Vec::new();
        };
        let chain = format!("KUBE-FW-{}", service_hash(&served.port.svc, served.port.protocol));
        let mut ranges = served.port.source_ranges.clone();
        ranges.extend(self.kernel.sources(&chain).into_iter().filter(|net| net.addr() != at.to));
        ranges.sort_unstable();
        ranges.dedup();
        ranges
    }
}

/// A destination at an address.
struct At<'a> {
    claim: Claim,
    to: IpAddr,
    protocol: Protocol,
    port: u16,
    comment: &'a str,
}
