//! An agent's own Node, as far as rules and health depend on it.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::Name;

/// What the source knows of one Node. Never part of the table: only its own Node reaches an agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeView {
    /// Label `topology.kubernetes.io/zone`; empty: none.
    pub zone: Name,
    /// Label `topology.kubernetes.io/region`; empty: none.
    pub region: Name,
    /// All InternalIPs in their order, then all ExternalIPs; the first is the primary one.
    pub addresses: Vec<IpAddr>,
    /// spec.podCIDRs, in their order.
    pub pod_cidrs: Vec<IpNet>,
    /// The Node has a deletion timestamp.
    pub deleting: bool,
    /// spec.taints, in their order.
    pub taints: Vec<Taint>,
}

/// A taint of a Node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Taint {
    /// Its key.
    pub key: Name,
    /// Its value; empty: none.
    pub value: Name,
    /// Its effect.
    pub effect: Name,
}
