//! The plan of one service port.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use distributary_model::{Key, Name, Protocol, Service, ServiceHeader, ServicePort};
use ipnet::IpNet;

use super::owners::{Claim, Claimant, Owners};
use super::policy::{self, Candidate, Place, Uses};
use super::{Config, Detector, Family};

/// What a destination gets that has no endpoint to go to (spec/kube-proxy.md §2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Answer {
    /// Nobody anywhere serves: port unreachable.
    Reject,
    /// Somebody serves elsewhere: silence.
    Drop,
}

/// One port of a Service, in one family. Destinations that another Service owns are left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortPlan {
    /// The svc string: `namespace/name[:port]`, behind `cluster/` where that is another than the node's.
    pub svc: String,
    /// Name of the port.
    pub port_name: Name,
    /// Its protocol.
    pub protocol: Protocol,
    /// The cluster IP, where it is owned.
    pub cluster_ip: Option<IpAddr>,
    /// Port at the cluster IP, the external IPs and the VIPs.
    pub port: u16,
    /// `None` also where it is not owned.
    pub node_port: Option<u16>,
    /// Owned external IPs of the family.
    pub external_ips: Vec<IpAddr>,
    /// Owned load balancer addresses of the family.
    pub vips: Vec<IpAddr>,
    /// Who may reach the VIPs; empty: everybody (§1.3, also for the zero prefix).
    pub source_ranges: Vec<IpNet>,
    /// 0: no affinity.
    pub affinity_seconds: u32,
    /// internalTrafficPolicy is Local.
    pub internal_local: bool,
    /// externalTrafficPolicy is Local.
    pub external_local: bool,
    /// Where the load balancer asks for health: with one port of its Service, and only where it is owned.
    pub health_check_node_port: Option<u16>,
    /// Sorted by address, then port.
    pub cluster: Vec<SocketAddr>,
    /// Sorted by address, then port.
    pub local: Vec<SocketAddr>,
    /// §2.3
    pub has_any: bool,
    /// Endpoint addresses that can meet themselves on this node: sorted, unique.
    pub hairpin: Vec<IpAddr>,
}

impl PortPlan {
    /// Who gets traffic for the cluster IP (§2.4 I).
    pub fn internal(&self) -> &[SocketAddr] {
        if self.internal_local { &self.local } else { &self.cluster }
    }

    /// Who gets traffic for the other destinations that comes from elsewhere (§2.4 X).
    pub fn external(&self) -> &[SocketAddr] {
        if self.external_local { &self.local } else { &self.cluster }
    }

    /// Whether there is anything but a cluster IP to send traffic to.
    pub fn is_external(&self) -> bool {
        self.node_port.is_some() || !self.external_ips.is_empty() || !self.vips.is_empty()
    }

    /// What the cluster IP answers where nobody gets its traffic.
    pub fn internal_answer(&self) -> Option<Answer> {
        self.answer(self.internal())
    }

    /// What the other destinations answer where nobody gets their traffic.
    pub fn external_answer(&self) -> Option<Answer> {
        self.answer(self.external())
    }

    fn answer(&self, list: &[SocketAddr]) -> Option<Answer> {
        match (list.is_empty(), self.has_any) {
            (false, _) => None,
            (true, true) => Some(Answer::Drop),
            (true, false) => Some(Answer::Reject),
        }
    }
}

/// A Service's ports, one of each name and protocol: what the API promises, and what chain names rest on.
fn service_ports(header: &ServiceHeader) -> impl Iterator<Item = &ServicePort> {
    let mut seen = BTreeSet::new();
    header.ports.iter().filter(move |port| seen.insert((&port.name, port.protocol)))
}

fn of_family<'a>(addresses: &'a [IpAddr], family: Family) -> impl Iterator<Item = IpAddr> + 'a {
    addresses.iter().copied().filter(move |address| Family::of(address) == family)
}

/// Everything that a Service claims in the family.
pub(crate) fn claims(config: &Config, key: &Arc<Key>, header: &ServiceHeader) -> BTreeSet<(Claim, Claimant)> {
    let mut claims = BTreeSet::new();
    let Some(cluster_ip) = of_family(&header.cluster_ips, config.family).next() else { return claims };
    for port in service_ports(header) {
        let claimant = Claimant::new(header.created, key, &port.name);
        let external = header.external_ips.iter().chain(&header.load_balancer_vips);
        let external = external.copied().filter(|address| Family::of(address) == config.family);
        for address in external.chain([cluster_ip]) {
            claims.insert((Claim::Address(address, port.protocol, port.port), claimant.clone()));
        }
        if port.node_port != 0 {
            claims.insert((Claim::NodePort(port.protocol, port.node_port), claimant));
        }
    }
    if let Some(port) = service_ports(header).next().filter(|_| header.health_check_node_port != 0) {
        let claimant = Claimant::new(header.created, key, &port.name);
        claims.insert((Claim::HealthCheckPort(header.health_check_node_port), claimant));
    }
    claims
}

pub(super) fn plan(config: &Config, owners: &Owners, key: &Arc<Key>, service: &Service) -> Vec<PortPlan> {
    let header = &service.header;
    let Some(cluster_ip) = of_family(&header.cluster_ips, config.family).next() else { return Vec::new() };
    let ranges = source_ranges(header, config.family);
    service_ports(header)
        .enumerate()
        .map(|(i, port)| {
            let owned = |address: &IpAddr| {
                owners.owns(Claim::Address(*address, port.protocol, port.port), key, &port.name)
            };
            let node_port = Some(port.node_port).filter(|&node_port| {
                node_port != 0 && owners.owns(Claim::NodePort(port.protocol, node_port), key, &port.name)
            });
            let health_check = header.health_check_node_port;
            let owns_health_check = i == 0
                && health_check != 0
                && owners.owns(Claim::HealthCheckPort(health_check), key, &port.name);
            let mut plan = PortPlan {
                svc: svc(&config.cluster, key, &port.name),
                port_name: port.name.clone(),
                protocol: port.protocol,
                cluster_ip: Some(cluster_ip).filter(owned),
                port: port.port,
                node_port,
                external_ips: of_family(&header.external_ips, config.family).filter(owned).collect(),
                vips: of_family(&header.load_balancer_vips, config.family).filter(owned).collect(),
                source_ranges: ranges.clone(),
                affinity_seconds: header.affinity_seconds,
                internal_local: header.internal_policy_local,
                external_local: header.external_policy_local,
                health_check_node_port: Some(health_check).filter(|_| owns_health_check),
                cluster: Vec::new(),
                local: Vec::new(),
                has_any: false,
                hairpin: Vec::new(),
            };
            // By what the Service says, not by what it owns: the lists must not depend on others.
            let accessible = port.node_port != 0
                || of_family(&header.external_ips, config.family).next().is_some()
                || of_family(&header.load_balancer_vips, config.family).next().is_some();
            fill(&mut plan, config, key, service, accessible);
            plan
        })
        .collect()
}

fn fill(plan: &mut PortPlan, config: &Config, key: &Key, service: &Service, accessible: bool) {
    let place = Place { node: &config.node, zone: &config.state.zone };
    let uses = Uses {
        cluster: !plan.internal_local || accessible,
        local: plan.internal_local || (plan.external_local && accessible),
    };
    let candidates = candidates(config, key, service, &plan.port_name, plan.protocol);
    let lists = policy::lists(&candidates, place, uses);
    let everywhere = plan.external_local && matches!(config.state.detector, Some(Detector::ClusterCidr(_)));
    let used = |one: &&Candidate<'_>| {
        lists.cluster.binary_search(&one.address).is_ok() || lists.local.binary_search(&one.address).is_ok()
    };
    let meets_itself =
        |one: &&Candidate<'_>| everywhere || one.endpoint.node.is_empty() || one.is_local(place);
    plan.hairpin = candidates.iter().filter(meets_itself).filter(used).map(|one| one.address.ip()).collect();
    plan.hairpin.dedup();
    (plan.cluster, plan.local, plan.has_any) = (lists.cluster, lists.local, lists.has_any);
}

/// The endpoints of a service port, joined by port name and protocol (§1.4), sorted by address. Of the same address and
/// port twice, the one that stays wins (§10.5 row 63).
fn candidates<'a>(
    config: &Config,
    key: &Key,
    service: &'a Service,
    name: &str,
    protocol: Protocol,
) -> Vec<Candidate<'a>> {
    let mut candidates: Vec<Candidate<'a>> = service
        .endpoints
        .iter()
        .filter(|endpoint| Family::of(&endpoint.address) == config.family)
        .flat_map(|endpoint| {
            let own = *endpoint.cluster.as_ref().unwrap_or(&key.cluster) == config.cluster;
            let of_port = move |port: &&distributary_model::EndpointPort| {
                *port.name == *name && port.protocol == protocol
            };
            let ports = endpoint.ports.iter().filter(of_port);
            ports.map(move |port| Candidate {
                address: SocketAddr::new(endpoint.address, port.port),
                endpoint,
                own,
            })
        })
        .collect();
    candidates.sort_by_key(|one| {
        let conditions = one.endpoint.conditions;
        (one.address, conditions.terminating, !conditions.ready, !conditions.serving)
    });
    candidates.dedup_by_key(|one| one.address);
    candidates
}

/// The endpoints of a service port that serve, sorted: who may answer what was established once, whatever the policies
/// and the topology say of new traffic.
pub(crate) fn serving(
    config: &Config,
    key: &Key,
    service: &Service,
    name: &str,
    protocol: Protocol,
) -> Vec<SocketAddr> {
    let candidates = candidates(config, key, service, name, protocol);
    candidates.iter().filter(|one| one.endpoint.conditions.serving).map(|one| one.address).collect()
}

/// The svc string of a port, in the eyes of a node of this cluster.
pub(crate) fn svc(cluster: &str, key: &Key, port: &str) -> String {
    let mut svc = String::new();
    if *key.cluster != *cluster {
        svc.extend([&*key.cluster, "/"]);
    }
    svc.extend([&*key.namespace, "/", &*key.name]);
    if !port.is_empty() {
        svc.extend([":", port]);
    }
    svc
}

/// Of the family; a zero prefix among them means no filter (§1.3).
fn source_ranges(header: &ServiceHeader, family: Family) -> Vec<IpNet> {
    let ranges: BTreeSet<IpNet> = header
        .source_ranges
        .iter()
        .filter(|range| Family::of(&range.addr()) == family)
        .map(IpNet::trunc)
        .collect();
    match ranges.iter().any(|range| range.prefix_len() == 0) {
        true => Vec::new(),
        false => ranges.into_iter().collect(),
    }
}
