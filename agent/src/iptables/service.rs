//! The chains of one service port, and where its traffic comes from (spec/kube-proxy.md §3.6, §3.7). Endpoints have no
//! chain of their own: what kube-proxy's chain of an endpoint does stands in the service's, or in a group's.

use std::net::SocketAddr;
use std::sync::Arc;

use distributary_model::{Key, Protocol};

use super::chain::Chain;
use super::groups;
use super::names::{self, Kind};
use super::roots::{Leaf, Root, at, at_address};
use super::rule::{Is, Match, Rule, Target, chance};
use super::trie::EntryKey;
use crate::plan::{Detector, PortPlan};

/// What the rules of all services depend on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Style<'a> {
    pub(crate) detector: Option<&'a Detector>,
    pub(crate) masquerade_all: bool,
}

/// Whether a packet is a local pod's (§3.9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pod {
    Yes,
    No,
}

/// A service port's way into the rules.
pub(crate) type Entry = (Root, EntryKey, Leaf);

/// Who sends traffic to the EXT chain.
enum Destination {
    NodePort(u16),
}

/// All external destinations of a service port.
fn destinations(plan: &PortPlan) -> impl Iterator<Item = Destination> {
    plan.node_port.map(Destination::NodePort).into_iter()
}

/// Its leaves in the tries.
pub(crate) fn entries(plan: &PortPlan, key: &Arc<Key>) -> Vec<Entry> {
    let mut entries = Vec::new();
    let serve = |kind| Leaf::Serve { key: key.clone(), port: plan.port_name.clone(), kind };
    let refuse = |answer| Leaf::Refuse { key: key.clone(), port: plan.port_name.clone(), answer };
    if let Some(address) = plan.cluster_ip {
        let at = at_address(address, plan.protocol, plan.port);
        entries.push(match plan.internal_answer() {
            None => (Root::Services, at, serve(internal(plan))),
            Some(answer) => (Root::Unserved, at, refuse(answer)),
        });
    }
    for destination in destinations(plan) {
        let (served, unserved, at) = match destination {
            Destination::NodePort(port) => {
                (Root::NodePorts(plan.protocol), Root::UnservedNodePorts(plan.protocol), at(port.into()))
            }
        };
        if plan.has_any {
            entries.push((served, at, serve(Kind::Ext)));
        }
        // Both where only local clients are served: nat takes theirs, and the rest falls out of the EXT chain.
        if let Some(answer) = plan.external_answer() {
            entries.push((unserved, at, refuse(answer)));
        }
    }
    entries
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
    let external = plan.has_any && destinations(plan).next().is_some();
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
        balance(&mut chains, kind, &hash, plan.protocol, masquerade, groups::split(endpoints, level), level);
    }
    if external {
        chains.push(Chain::new(&Kind::Ext.chain(&hash), ext(plan, style, &hash)));
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
    kind: Kind,
    hash: &str,
    protocol: Protocol,
    masquerade: Option<Rule>,
    groups: Vec<(usize, Vec<SocketAddr>)>,
    level: u8,
) {
    let name = kind.chain(hash);
    if level == 0 {
        let flat = groups.iter().flat_map(|(_, endpoints)| dice(protocol, endpoints));
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
        chains.push(Chain::new(&group, dice(protocol, &endpoints)));
    }
    chains.push(Chain::new(&name, rules));
}

/// Each endpoint with the same probability.
fn dice(protocol: Protocol, endpoints: &[SocketAddr]) -> impl Iterator<Item = Rule> {
    endpoints.iter().enumerate().map(move |(i, endpoint)| {
        let rule = Rule { protocol: Some(protocol), ..Rule::to(Target::Dnat(*endpoint)) };
        match endpoints.len() - i {
            1 => rule,
            left => rule.with(chance(1, left)),
        }
    })
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
