//! Nodes and ServiceCIDRs, as far as they matter.

use std::net::IpAddr;

use distributary_model::{Name, NodeView, ObjectKind, Taint};
use ipnet::IpNet;
use serde::Deserialize;

use crate::lean::{Metadata, NoLabels, Text, or_default};
use crate::meta::Meta;

/// A Node, converted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// What every object has.
    pub meta: Meta,
    /// metadata.uid: another one of the same name has another. Empty where a manifest says none.
    pub uid: Name,
    /// What its agent is told.
    pub view: NodeView,
}

/// A ServiceCIDR, converted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceCidr {
    /// What every object has.
    pub meta: Meta,
    /// spec.cidrs, sorted and unique.
    pub cidrs: Vec<IpNet>,
}

#[derive(Debug, Default, Deserialize)]
struct Labels {
    #[serde(default, rename = "topology.kubernetes.io/zone", deserialize_with = "or_default")]
    zone: String,
    #[serde(default, rename = "topology.kubernetes.io/region", deserialize_with = "or_default")]
    region: String,
}

/// The shape that is read of a Node.
#[derive(Debug, Deserialize)]
pub(crate) struct LeanNode {
    #[serde(default, deserialize_with = "or_default")]
    metadata: Metadata<Labels>,
    #[serde(default, deserialize_with = "or_default")]
    spec: Spec,
    #[serde(default, deserialize_with = "or_default")]
    status: Status,
}

#[derive(Debug, Default, Deserialize)]
struct Spec {
    #[serde(default, rename = "podCIDR", deserialize_with = "or_default")]
    pod_cidr: String,
    #[serde(default, rename = "podCIDRs", deserialize_with = "or_default")]
    pod_cidrs: Vec<Text<IpNet>>,
    #[serde(default, deserialize_with = "or_default")]
    taints: Vec<LeanTaint>,
}

#[derive(Debug, Deserialize)]
struct LeanTaint {
    #[serde(default, deserialize_with = "or_default")]
    key: String,
    #[serde(default, deserialize_with = "or_default")]
    value: String,
    #[serde(default, deserialize_with = "or_default")]
    effect: String,
}

#[derive(Debug, Default, Deserialize)]
struct Status {
    #[serde(default, deserialize_with = "or_default")]
    addresses: Vec<Address>,
}

#[derive(Debug, Deserialize)]
struct Address {
    #[serde(default, rename = "type", deserialize_with = "or_default")]
    kind: String,
    address: Option<Text<IpAddr>>,
}

/// The shape that is read of a ServiceCIDR.
#[derive(Debug, Deserialize)]
pub(crate) struct LeanServiceCidr {
    #[serde(default, deserialize_with = "or_default")]
    metadata: Metadata<NoLabels>,
    #[serde(default, deserialize_with = "or_default")]
    spec: CidrSpec,
}

#[derive(Debug, Default, Deserialize)]
struct CidrSpec {
    #[serde(default, deserialize_with = "or_default")]
    cidrs: Vec<Text<IpNet>>,
}

impl Node {
    /// `None` where it has no name.
    pub(crate) fn convert(lean: LeanNode) -> Option<Self> {
        let LeanNode { metadata, spec, status } = lean;
        let mut meta = Meta::of(ObjectKind::Node, &metadata)?;
        let mut addresses = Vec::new();
        for wanted in ["InternalIP", "ExternalIP"] {
            for one in status.addresses.iter().filter(|one| one.kind == wanted) {
                match &one.address {
                    Some(Text::Good(address)) => addresses.push(*address),
                    Some(Text::Bad(text)) => {
                        meta.problem(format!("{wanted} {text:?} is no IP address and is ignored"));
                    }
                    None => {}
                }
            }
        }
        // The API fills in the list from the single one; a manifest may not have passed there.
        let mut pod_cidrs = nets(&mut meta, "podCIDRs", spec.pod_cidrs);
        if pod_cidrs.is_empty() && !spec.pod_cidr.is_empty() {
            let one = crate::lean::Parse::parse(&spec.pod_cidr);
            let one = one.map_or_else(|| Text::Bad(spec.pod_cidr), Text::Good);
            pod_cidrs = nets(&mut meta, "podCIDR", vec![one]);
        }
        let taint = |taint: LeanTaint| Taint {
            key: Name::from(taint.key),
            value: Name::from(taint.value),
            effect: Name::from(taint.effect),
        };
        let view = NodeView {
            zone: Name::from(metadata.labels.zone),
            region: Name::from(metadata.labels.region),
            addresses,
            pod_cidrs,
            deleting: metadata.deletion_timestamp.is_some(),
            taints: spec.taints.into_iter().map(taint).collect(),
        };
        Some(Self { meta, uid: Name::from(metadata.uid), view })
    }
}

impl ServiceCidr {
    /// `None` where it has no name.
    pub(crate) fn convert(lean: LeanServiceCidr) -> Option<Self> {
        let mut meta = Meta::of(ObjectKind::ServiceCidr, &lean.metadata)?;
        let mut cidrs = nets(&mut meta, "cidrs", lean.spec.cidrs);
        cidrs.sort_unstable();
        cidrs.dedup();
        Some(Self { meta, cidrs })
    }
}

/// The readable ones, in their order.
fn nets(meta: &mut Meta, field: &str, texts: Vec<Text<IpNet>>) -> Vec<IpNet> {
    let mut nets = Vec::with_capacity(texts.len());
    for text in texts {
        match text {
            Text::Good(net) => nets.push(net),
            Text::Bad(text) => meta.problem(format!("{text:?} in spec.{field} is no network and is ignored")),
        }
    }
    nets
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Object;

    #[test]
    fn a_node_is_read_as_its_rules_need_it() {
        let json = r#"{"metadata": {"name": "n1", "uid": "u-1", "namespace": "odd", "deletionTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"topology.kubernetes.io/zone": "a", "topology.kubernetes.io/region": "r", "x": "y"}},
            "spec": {"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24", "fd01::/64", "bad"],
                "taints": [{"key": "k", "effect": "NoSchedule", "timeAdded": null}]},
            "status": {"addresses": [{"type": "ExternalIP", "address": "203.0.113.1"},
                {"type": "Hostname", "address": "n1"}, {"type": "InternalIP", "address": "192.168.0.2"},
                {"type": "InternalIP", "address": "fd00::2"}, {"type": "InternalIP", "address": "nope"}]}}"#;
        let Ok(Object::Node(node)) = Object::from_json(ObjectKind::Node, json) else { panic!() };
        let addresses: Vec<String> = node.view.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["192.168.0.2", "fd00::2", "203.0.113.1"]);
        assert_eq!(node.view.pod_cidrs.len(), 2);
        assert!(node.view.deleting);
        assert_eq!((&*node.view.zone, &*node.view.region), ("a", "r"));
        assert_eq!((&*node.view.taints[0].key, &*node.view.taints[0].value), ("k", ""));
        assert_eq!((node.meta.key.to_string(), &*node.uid), ("Node n1".to_owned(), "u-1"));
        assert_eq!(node.meta.problems.len(), 2, "{:?}", node.meta.problems);
    }

    #[test]
    fn a_single_pod_cidr_is_enough() {
        let json = r#"{"metadata": {"name": "n1"}, "spec": {"podCIDR": "10.1.0.0/24"}}"#;
        let Ok(Object::Node(node)) = Object::from_json(ObjectKind::Node, json) else { panic!() };
        assert_eq!(node.view.pod_cidrs, ["10.1.0.0/24".parse().unwrap()]);
    }
}
