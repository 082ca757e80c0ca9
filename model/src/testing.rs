//! Builders and strategies for tests: `t::service("shop/cart").port("http", 80)…`. They panic on bad input, which
//! nothing else in this crate does.
#![allow(clippy::unwrap_used, missing_docs)]

use std::net::IpAddr;
use std::sync::Arc;

use proptest::collection::{btree_set, vec};
use proptest::prelude::*;
use proptest::sample::select;

use crate::{
    Conditions, Endpoint, EndpointPort, Held, Key, Name, Protocol, Record, Service, ServiceHeader,
    ServicePort, hash,
};

/// The cluster of everything that these builders make.
pub const CLUSTER: &str = "default";

/// The key of a Service, from `namespace/name`.
pub fn key(of: &str) -> Arc<Key> {
    let (namespace, name) = of.split_once('/').unwrap();
    Arc::new(Key::service(CLUSTER, namespace, name))
}

/// A record with its hash.
pub fn held(key: &Key, service: Service) -> Held {
    let record = Record::Service(Arc::new(service));
    let hash = hash::record(key, &record);
    Held { record, hash }
}

/// A Service without ports or endpoints.
pub fn service(cluster_ips: &[&str]) -> Service {
    let mut cluster_ips: Vec<IpAddr> = cluster_ips.iter().map(|ip| ip.parse().unwrap()).collect();
    cluster_ips.sort();
    Service { header: ServiceHeader { cluster_ips, ..Default::default() }, endpoints: Vec::new() }
}

impl Service {
    /// With one more port; `node_port` 0 is none.
    #[must_use]
    pub fn port(mut self, name: &str, protocol: Protocol, port: u16, node_port: u16) -> Self {
        self.header.ports.push(ServicePort { name: name.into(), protocol, port, node_port });
        self.header.ports.sort();
        self
    }

    /// With one more endpoint.
    #[must_use]
    pub fn endpoint(mut self, endpoint: Endpoint) -> Self {
        self.endpoints.push(endpoint);
        self.endpoints.sort();
        self
    }

    /// With its header changed.
    #[must_use]
    pub fn header(mut self, change: impl FnOnce(&mut ServiceHeader)) -> Self {
        change(&mut self.header);
        self
    }
}

/// A ready endpoint on no node, with one TCP port.
pub fn endpoint(address: &str, name: &str, port: u16) -> Endpoint {
    Endpoint {
        address: address.parse().unwrap(),
        ports: [EndpointPort { name: name.into(), protocol: Protocol::Tcp, port }].into(),
        conditions: Conditions::default(),
        node: Name::default(),
        zone_hints: Arc::default(),
        node_hints: Arc::default(),
        cluster: None,
    }
}

impl Endpoint {
    /// With the protocol of all its ports.
    #[must_use]
    pub fn protocol(mut self, protocol: Protocol) -> Self {
        self.ports = self.ports.iter().map(|port| EndpointPort { protocol, ..port.clone() }).collect();
        self
    }

    /// On a node.
    #[must_use]
    pub fn on(mut self, node: &str) -> Self {
        self.node = node.into();
        self
    }

    /// Serving and terminating, not ready.
    #[must_use]
    pub fn terminating(self) -> Self {
        self.conditions(false, true, true)
    }

    /// With conditions.
    #[must_use]
    pub fn conditions(mut self, ready: bool, serving: bool, terminating: bool) -> Self {
        self.conditions = Conditions { ready, serving, terminating };
        self
    }

    /// With zone hints.
    #[must_use]
    pub fn zones(mut self, zones: &[&str]) -> Self {
        self.zone_hints = names(zones);
        self
    }

    /// With node hints.
    #[must_use]
    pub fn nodes(mut self, nodes: &[&str]) -> Self {
        self.node_hints = names(nodes);
        self
    }
}

fn names(of: &[&str]) -> Arc<[Name]> {
    let mut names: Vec<Name> = of.iter().map(|&name| name.into()).collect();
    names.sort();
    names.dedup();
    names.into()
}

/// Any Service of a small world, so that cases collide.
pub fn any_service() -> impl Strategy<Value = Service> {
    (any_header(), btree_set(any_endpoint(), 0..12))
        .prop_map(|(header, endpoints)| Service { header, endpoints: endpoints.into_iter().collect() })
}

/// Any header of a small world.
pub fn any_header() -> impl Strategy<Value = ServiceHeader> {
    let ports = btree_set((port_name(), any_protocol(), 1..4_u16, 0..3_u16), 1..4);
    let addresses = || btree_set(any_address(), 0..3);
    (ports, addresses(), addresses(), any::<[bool; 2]>(), 0..3_u32, 0..3_i64).prop_map(
        |(ports, cluster_ips, external_ips, [internal, external], affinity_seconds, created)| ServiceHeader {
            ports: ports
                .into_iter()
                .map(|(name, protocol, port, node_port)| ServicePort { name, protocol, port, node_port })
                .collect(),
            cluster_ips: cluster_ips.into_iter().collect(),
            external_ips: external_ips.into_iter().collect(),
            affinity_seconds,
            internal_policy_local: internal,
            external_policy_local: external,
            created,
            ..Default::default()
        },
    )
}

/// Any endpoint of a small world.
pub fn any_endpoint() -> impl Strategy<Value = Endpoint> {
    let ports = btree_set((port_name(), any_protocol(), 8000..8003_u16), 1..3);
    let hints = || vec(select(vec!["a", "b", "c"]), 0..3);
    (any_address(), ports, 0..8_u32, select(vec!["", "n1", "n2"]), hints(), hints()).prop_map(
        |(address, ports, bits, node, zones, nodes)| Endpoint {
            address,
            ports: ports
                .into_iter()
                .map(|(name, protocol, port)| EndpointPort { name, protocol, port })
                .collect(),
            conditions: Conditions::from_bits(bits).unwrap(),
            node: node.into(),
            zone_hints: names(&zones),
            node_hints: names(&nodes),
            cluster: None,
        },
    )
}

/// Any of a few addresses of both families.
pub fn any_address() -> impl Strategy<Value = IpAddr> {
    (any::<bool>(), 1..20_u8).prop_map(|(v4, last)| match v4 {
        true => IpAddr::from([10, 0, 0, last]),
        false => IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, last.into()]),
    })
}

/// Any protocol.
pub fn any_protocol() -> impl Strategy<Value = Protocol> {
    select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp])
}

fn port_name() -> impl Strategy<Value = Name> {
    select(vec!["", "http", "dns"]).prop_map(Name::from)
}
