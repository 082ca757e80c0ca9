//! The chains of one service port, and where its traffic comes from (spec/kube-proxy.md §3.6, §3.7). Endpoints have no
//! chain of their own: what kube-proxy's chain of an endpoint does stands in the service's, or in a group's.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use distributary_model::Key;
use ipnet::IpNet;

use super::chain::Chain;
use super::groups;
use super::names::{self, Kind};
use super::roots::{Destination, Leaf, Root, at, at_address};
use super::rule::{Is, Match, Rule, Target, chance};
use super::trie::EntryKey;
use crate::plan::{Detector, Family, PortPlan};

/// What the rules of all services depend on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Style<'a> {
    pub(crate) detector: Option<&'a Detector>,
    pub(crate) masquerade_all: bool,
    /// The node's primary address of the family.
    pub(crate) node_address: Option<IpAddr>,
}

/// Whether a packet is a local pod's (§3.9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pod {
    Yes,
    No,
}

/// A service port's way into the rules.
pub(crate) type Entry = (Root, EntryKey, Leaf);

/// Source ranges are checked: somebody could answer (§3.6).
fn is_filtered(plan: &PortPlan) -> bool {
    plan.has_any && !plan.vips.is_empty() && !plan.source_ranges.is_empty()
}

/// Its leaves in the tries.
pub(crate) fn entries(plan: &PortPlan, key: &Arc<Key>) -> Vec<Entry> {
    // Of the same address twice the first counts: one with source ranges before one without, so that no external IP
    // leads around them (WART-6).
    let mut entries = BTreeMap::new();
    let port = || plan.port_name.clone();
    let serve = |kind, to| Leaf::Serve { key: key.clone(), port: port(), kind, to };
    let refuse = |answer| Leaf::Refuse { key: key.clone(), port: port(), answer };
    let at_address = |address| at_address(address, plan.protocol, plan.port);
    if let Some(address) = plan.cluster_ip {
        let (root, leaf) = match plan.internal_answer() {
            None => (Root::Services, serve(internal(plan), Destination::ClusterIp)),
            Some(answer) => (Root::Unserved, refuse(answer)),
        };
        entries.insert((root, at_address(address)), leaf);
    }
    let mut external = |served: Root, unserved: Root, at: EntryKey, leaf: Leaf| {
        if plan.has_any {
            entries.entry((served, at)).or_insert(leaf);
        }
        // Both where only local clients are served: nat takes theirs, and the rest falls out of the EXT chain.
        if let Some(answer) = plan.external_answer() {
            entries.entry((unserved, at)).or_insert_with(|| refuse(answer));
        }
    };
    let vip = if is_filtered(plan) { Kind::Fw } else { Kind::Ext };
    let vips = plan.vips.iter().map(|vip_at| (*vip_at, serve(vip, Destination::LoadBalancer)));
    let ips = plan.external_ips.iter().map(|ip| (*ip, serve(Kind::Ext, Destination::ExternalIp)));
    for (address, leaf) in vips.chain(ips) {
        external(Root::Services, Root::UnservedExternal, at_address(address), leaf);
    }
    if let Some(node_port) = plan.node_port {
        let (served, unserved) = (Root::NodePorts(plan.protocol), Root::UnservedNodePorts(plan.protocol));
        external(served, unserved, at(node_port.into()), serve(Kind::Ext, Destination::NodePort));
    }
    for address in plan.vips.iter().filter(|_| is_filtered(plan)) {
        let leaf = Leaf::Firewall { key: key.clone(), port: port() };
        entries.insert((Root::Firewall, at_address(*address)), leaf);
    }
    if let Some(health_check) = plan.health_check_node_port {
        let leaf = Leaf::HealthCheck { key: key.clone(), port: port() };
        entries.insert((Root::HealthChecks, at(health_check.into())), leaf);
    }
    entries.into_iter().map(|((root, at), leaf)| (root, at, leaf)).collect()
}

fn internal(plan: &PortPlan) -> Kind {
    if plan.internal_local { Kind::Svl } else { Kind::Svc }
}

/// Its chains in nat. `level` says how a chain is grouped, and learns how it is now.
pub(crate) fn chains(
    plan: &PortPlan,
    style: Style<'_>,
    mut level: impl FnMut(&str, usize) -> u8,
) -> Vec<Chain> {
    let hash = names::service_hash(&plan.svc, plan.protocol);
    let mut chains = Vec::new();
    let external = plan.has_any && plan.is_external();
    let by_cluster_ip = plan.cluster_ip.is_some() && plan.internal_answer().is_none();
    for (kind, endpoints) in [(Kind::Svc, &plan.cluster), (Kind::Svl, &plan.local)] {
        let from_cluster_ip = by_cluster_ip && kind == internal(plan);
        let from_external = external && (kind == Kind::Svc || plan.external_local);
        if endpoints.is_empty() || !(from_cluster_ip || from_external) {
            continue;
        }
        let masquerade = if from_cluster_ip { masquerade(plan, style) } else { None };
        // Where a client is remembered, its endpoints must stand before the dice: all of them in one chain.
        let endpoints_now = if plan.affinity_seconds == 0 { endpoints.len() } else { 0 };
        let level = level(&kind.chain(&hash), endpoints_now);
        balance(&mut chains, plan, kind, &hash, masquerade, groups::split(endpoints, level), level);
    }
    if external {
        chains.push(Chain::new(&Kind::Ext.chain(&hash), ext(plan, style, &hash)));
    }
    if is_filtered(plan) {
        chains.push(Chain::new(&Kind::Fw.chain(&hash), fw(plan, style, &hash)));
    }
    chains
}

/// The cluster IP's match again, since the chain is entered from the EXT chain too.
fn masquerade(plan: &PortPlan, style: Style<'_>) -> Option<Rule> {
    let address = plan.cluster_ip?;
    let rule = Rule { destination: Some(Is::Yes(address.into())), ..Rule::jump(names::MARK_MASQ) };
    let rule = rule.comment(format!("{} cluster IP", plan.svc)).port(plan.protocol, plan.port);
    match style.masquerade_all {
        true => Some(rule),
        false => style.detector.map(|detector| of_pods(rule, detector, Pod::No)),
    }
}

fn of_pods(rule: Rule, detector: &Detector, pod: Pod) -> Rule {
    fn is<T>(pod: Pod, what: T) -> Option<Is<T>> {
        Some(if pod == Pod::Yes { Is::Yes(what) } else { Is::Not(what) })
    }
    match detector {
        Detector::ClusterCidr(net) | Detector::NodeCidr(net) => Rule { source: is(pod, net.trunc()), ..rule },
        Detector::Bridge(name) => Rule { input: is(pod, name.clone()), ..rule },
        Detector::Prefix(prefix) => Rule { input: is(pod, format!("{prefix}+").into()), ..rule },
    }
}

fn balance(
    chains: &mut Vec<Chain>,
    plan: &PortPlan,
    kind: Kind,
    hash: &str,
    masquerade: Option<Rule>,
    groups: Vec<(usize, Vec<SocketAddr>)>,
    level: u8,
) {
    let name = kind.chain(hash);
    if level == 0 {
        let flat =
            groups.iter().flat_map(|(_, endpoints)| remembered(plan, endpoints).chain(dice(plan, endpoints)));
        chains.push(Chain::new(&name, masquerade.into_iter().chain(flat)));
        return;
    }
    let mut left: usize = groups.iter().map(|(_, endpoints)| endpoints.len()).sum();
    let mut rules: Vec<Rule> = masquerade.into_iter().collect();
    for (index, endpoints) in groups {
        let group = names::group(kind, hash, level, index);
        let rule = Rule::jump(group.as_str());
        rules.push(match endpoints.len() < left {
            true => rule.with(chance(endpoints.len(), left)),
            false => rule,
        });
        left -= endpoints.len();
        chains.push(Chain::new(&group, dice(plan, &endpoints)));
    }
    chains.push(Chain::new(&name, rules));
}

/// Who was sent to an endpoint lately is sent there again (spec/layout.md §4).
fn remembered(plan: &PortPlan, endpoints: &[SocketAddr]) -> impl Iterator<Item = Rule> {
    let seconds = plan.affinity_seconds;
    endpoints.iter().filter(move |_| seconds > 0).map(move |endpoint| {
        let family = Family::of(&endpoint.ip());
        let list = names::affinity_list(&plan.svc, plan.protocol, *endpoint).into();
        to(plan, *endpoint).with(Match::Remembered { list, seconds, family })
    })
}

/// Each endpoint with the same probability.
fn dice(plan: &PortPlan, endpoints: &[SocketAddr]) -> impl Iterator<Item = Rule> {
    endpoints.iter().enumerate().map(move |(i, endpoint)| {
        let rule = match endpoints.len() - i {
            1 => to(plan, *endpoint),
            left => to(plan, *endpoint).with(chance(1, left)),
        };
        if plan.affinity_seconds == 0 {
            return rule;
        }
        let list = names::affinity_list(&plan.svc, plan.protocol, *endpoint).into();
        rule.with(Match::Remember(list, Family::of(&endpoint.ip())))
    })
}

fn to(plan: &PortPlan, endpoint: SocketAddr) -> Rule {
    Rule { protocol: Some(plan.protocol), ..Rule::to(Target::Dnat(endpoint)) }
}

/// Whom the source ranges let through; nobody else is translated, and so meets KUBE-PROXY-FIREWALL (§3.7, §3.11).
fn fw(plan: &PortPlan, style: Style<'_>, hash: &str) -> Vec<Rule> {
    let from = |source: IpNet| {
        let rule = Rule::jump(Kind::Ext.chain(hash)).comment(format!("{} loadbalancer IP", plan.svc));
        Rule { source: Some(Is::Yes(source)), ..rule }
    };
    let lets_host =
        plan.source_ranges.iter().any(|range| style.node_address.is_some_and(|own| range.contains(&own)));
    // A host that has the address itself comes from it.
    let host = plan.vips.iter().filter(|_| lets_host).map(|vip| from((*vip).into()));
    let rest = Rule::default()
        .comment(format!("other traffic to {} will be dropped by KUBE-PROXY-FIREWALL", plan.svc));
    plan.source_ranges.iter().map(|range| from(*range)).chain(host).chain([rest]).collect()
}

fn ext(plan: &PortPlan, style: Style<'_>, hash: &str) -> Vec<Rule> {
    let svc = || Rule::jump(Kind::Svc.chain(hash));
    let comment = |before: &str| format!("{before} for {} external destinations", plan.svc);
    let cluster = !plan.cluster.is_empty();
    if !plan.external_local {
        let mark = Rule::jump(names::MARK_MASQ).comment(comment("masquerade traffic"));
        return [Some(mark), cluster.then(svc)].into_iter().flatten().collect();
    }
    let pods = style
        .detector
        .filter(|_| cluster)
        .map(|detector| of_pods(svc().comment(comment("pod traffic")), detector, Pod::Yes));
    let mark =
        Rule::jump(names::MARK_MASQ).comment(comment("masquerade LOCAL traffic")).with(Match::FromHost);
    let host = cluster.then(|| svc().comment(comment("route LOCAL traffic")).with(Match::FromHost));
    let local = (!plan.local.is_empty()).then(|| Rule::jump(Kind::Svl.chain(hash)));
    [pods, Some(mark), host, local].into_iter().flatten().collect()
}
