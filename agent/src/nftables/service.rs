//! What a service port has in the table (spec/kube-proxy.md §8.5).

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use distributary_model::{Name, Protocol};

use super::chain::{Balance, Chain, Own, Style, port_hash};
use super::element::{ElementKey, List, Map, Reach, Value};
use super::slots;
use crate::plan::{Answer, PortPlan, WithoutLocal};

/// A service port as it was laid.
#[derive(Debug, Default)]
pub(super) struct Port {
    pub(super) name: Name,
    pub(super) protocol: Protocol,
    /// Where it is looked up, but for its endpoints.
    entries: Box<[(Map, ElementKey, Value)]>,
    /// Its endpoints in the order of their indices.
    cluster: Box<[SocketAddr]>,
    local: Box<[SocketAddr]>,
    /// Endpoints that can meet themselves.
    pub(super) hairpins: Box<[IpAddr]>,
    pub(super) cluster_ip: Option<IpAddr>,
    /// Chains of its own, and sets of clients.
    pub(super) own: Box<[Chain]>,
    pub(super) clients: Box<[u64]>,
    pub(super) without_local: WithoutLocal,
}

impl Port {
    /// Lays a service port. `was` says in which order its endpoints were.
    pub(super) fn lay(
        plan: &PortPlan,
        style: &Style<'_>,
        was: impl Fn(List, &[(Map, ElementKey, Value)]) -> Vec<SocketAddr>,
    ) -> (Self, Own) {
        let entries = entries(plan);
        let list = |list: List, endpoints: &[SocketAddr]| match plan.affinity_seconds {
            0 => slots::place(&was(list, &entries), endpoints),
            _ => Vec::new(),
        };
        let (cluster, local) = (list(List::Cluster, &plan.cluster), list(List::Local, &plan.local));
        let mut own = Own::default();
        let chains = entries.iter().filter_map(|(_, _, value)| match value {
            Value::Goto(chain) => Some(*chain),
            _ => None,
        });
        let used: Vec<Balance> = chains.flat_map(Chain::balances).flatten().collect();
        for (list, endpoints) in [(List::Cluster, &plan.cluster), (List::Local, &plan.local)] {
            let sticky = |one: &Balance| matches!(one, Balance::Sticky { list: of, .. } if *of == list);
            if used.iter().any(sticky) {
                own.sticky(plan, style, list, endpoints);
            }
        }
        if is_filtered(plan) {
            own.sources(plan, style);
        }
        let port = Self {
            name: plan.port_name.clone(),
            protocol: plan.protocol,
            entries: entries.into(),
            cluster: cluster.into(),
            local: local.into(),
            hairpins: plan.hairpin.clone().into(),
            cluster_ip: plan.cluster_ip,
            own: own.chains.iter().map(|(chain, _)| *chain).collect(),
            clients: own.clients.clone().into(),
            without_local: WithoutLocal::of(plan),
        };
        (port, own)
    }

    /// The endpoints of a list in the order of their indices.
    pub(super) fn list(&self, list: List) -> &[SocketAddr] {
        match list {
            List::Cluster => &self.cluster,
            List::Local => &self.local,
        }
    }

    /// The chains that are looked up, and those they lead to.
    pub(super) fn chains(&self) -> impl Iterator<Item = Chain> {
        let looked_up = self.entries.iter().filter_map(|(_, _, value)| match value {
            Value::Goto(chain) => Some(*chain),
            _ => None,
        });
        looked_up.flat_map(|chain| chain.leads_to().chain([chain]))
    }

    /// Its elements, but for those that it may share with others.
    pub(super) fn elements(&self) -> impl Iterator<Item = ((Map, ElementKey), Value)> {
        let endpoints = self.entries.iter().flat_map(move |&(_, at, value)| {
            let balances = match value {
                Value::Goto(chain) => chain.balances(),
                _ => [None, None],
            };
            balances.into_iter().flatten().filter_map(Balance::map).flat_map(move |(map, list)| {
                (0..)
                    .zip(self.list(list))
                    .map(move |(index, endpoint)| ((map, at.slot(index)), Value::Endpoint(*endpoint)))
            })
        });
        endpoints.chain(self.entries.iter().map(|&(map, at, value)| ((map, at), value)))
    }
}

fn is_filtered(plan: &PortPlan) -> bool {
    !plan.vips.is_empty() && !plan.source_ranges.is_empty()
}

/// Where a service port is looked up, and what is done with what comes there.
fn entries(plan: &PortPlan) -> Vec<(Map, ElementKey, Value)> {
    let hash = port_hash(plan);
    let balance = |reach, list| {
        let endpoints = if list == List::Local { &plan.local } else { &plan.cluster };
        let count = u16::try_from(endpoints.len()).unwrap_or(u16::MAX);
        (count > 0).then_some(match plan.affinity_seconds {
            0 => Balance::Shared { reach, protocol: plan.protocol, list, count },
            _ => Balance::Sticky { hash, list },
        })
    };
    let refuse = |answer| match answer {
        Answer::Reject => Value::Goto(Chain::Refuse),
        Answer::Drop => Value::Drop,
    };
    let external = |reach| {
        let (cluster, local) = (balance(reach, List::Cluster), balance(reach, List::Local));
        match plan.external_local {
            false => cluster.map(Chain::Masquerade),
            true => (cluster.is_some() || local.is_some()).then_some(Chain::External { cluster, local }),
        }
    };
    let at = |address| ElementKey::At(address, plan.protocol, plan.port);
    // Of the same address twice the first counts.
    let mut entries = BTreeMap::new();
    if let Some(address) = plan.cluster_ip {
        let list = if plan.internal_local { List::Local } else { List::Cluster };
        let served = balance(Reach::Address, list).map(|to| (Map::Services, Value::Goto(Chain::Balance(to))));
        let refused = plan.internal_answer().map(|answer| (Map::Refused, refuse(answer)));
        entries.extend(served.or(refused).map(|(map, value)| ((map, at(address)), value)));
    }
    let addresses =
        plan.vips.iter().chain(&plan.external_ips).filter(|address| Some(**address) != plan.cluster_ip);
    let addresses = addresses.map(|address| (at(*address), Reach::Address, Map::Services, Map::Refused));
    let node_port = plan.node_port.map(|port| {
        (ElementKey::Port(plan.protocol, port), Reach::NodePort, Map::NodePorts, Map::RefusedNodePorts)
    });
    for (at, reach, served, refused) in addresses.chain(node_port) {
        if let Some(chain) = external(reach).filter(|_| plan.has_any) {
            entries.entry((served, at)).or_insert(Value::Goto(chain));
        }
        // Both where only local clients are served: theirs is translated, and the rest is for this address still.
        if let Some(answer) = plan.external_answer() {
            entries.entry((refused, at)).or_insert_with(|| refuse(answer));
        }
    }
    if is_filtered(plan) {
        let sources = Value::Goto(Chain::Sources(hash));
        entries.extend(plan.vips.iter().map(|vip| ((Map::Firewall, at(*vip)), sources)));
    }
    entries.into_iter().map(|((map, at), value)| (map, at, value)).collect()
}
