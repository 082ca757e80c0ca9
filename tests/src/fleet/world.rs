//! A cluster that is made up: Services with their slices, Nodes, and what changes in them, all of it from a seed. Pure.

use std::net::{IpAddr, Ipv4Addr};

use distributary_cluster::{
    EndpointSlice, Entry, Event, Meta, Node, Object, ObjectKey, Service, ServiceCidr,
};
use distributary_model::{
    Conditions, EndpointPort, Name, NodeView, ObjectKind, Protocol, ServiceHeader, ServicePort,
};

/// Most endpoints that the controller of the API puts in one slice.
const PER_SLICE: usize = 100;
const ZONES: [&str; 3] = ["eu-west-1a", "eu-west-1b", "eu-west-1c"];
/// Services of one namespace.
const PER_NAMESPACE: usize = 100;

/// How large a cluster is, and how it changes.
#[derive(Clone, Debug, clap::Args)]
pub struct Shape {
    /// How many Services
    #[arg(long, default_value_t = 10_000)]
    pub services: usize,
    /// Endpoints of each
    #[arg(long, default_value_t = 10)]
    pub endpoints: usize,
    /// Nodes on which they are
    #[arg(long, default_value_t = 5_000)]
    pub nodes: usize,
    /// Every so many changes it is the Service that changes, and not an endpoint; 0: never
    #[arg(long, default_value_t = 0)]
    pub service_every: usize,
    /// Names as long as those of a large cloud: 56 bytes of namespace and name, 42 of the node
    #[arg(long)]
    pub long_names: bool,
    /// What chance depends on
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// The cluster.
#[derive(Clone, Debug)]
pub struct World {
    shape: Shape,
    chance: fastrand::Rng,
    /// From the Service of one change to that of the next: consecutive changes are of different Services.
    stride: usize,
    steps: usize,
    /// Number of the next new endpoint.
    next: u32,
    /// Numbers of each Service's endpoints.
    held: Vec<Vec<u32>>,
    /// How often each Service itself has changed.
    edits: Vec<u32>,
    ports: Vec<EndpointPort>,
}

impl World {
    /// As it is at first.
    #[must_use]
    pub fn new(shape: Shape) -> Self {
        let each = u32::try_from(shape.endpoints).unwrap_or(u32::MAX);
        let mut next = 0;
        let held = (0..shape.services)
            .map(|_| {
                next += each;
                (next - each..next).collect()
            })
            .collect();
        Self {
            chance: fastrand::Rng::with_seed(shape.seed),
            stride: stride(shape.services),
            steps: 0,
            next,
            held,
            edits: vec![0; shape.services],
            ports: vec![EndpointPort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }],
            shape,
        }
    }

    /// Everything in it, as a first list has it.
    #[must_use]
    pub fn everything(&self) -> Vec<Event> {
        let nodes = (0..self.shape.nodes).map(|number| self.node(number));
        let services = (0..self.shape.services).flat_map(|service| {
            let slices = (0..self.held[service].len().div_ceil(PER_SLICE))
                .map(move |slice| self.slice(service, slice));
            std::iter::once(self.service(service)).chain(slices)
        });
        std::iter::once(service_cidr()).chain(nodes).chain(services).map(Event::Upsert).collect()
    }

    /// The next change: one endpoint is replaced by a new one, or a Service is edited.
    ///
    /// # Panics
    /// Of a cluster without Services.
    pub fn step(&mut self) -> Event {
        let service = (self.steps * self.stride) % self.shape.services;
        self.steps += 1;
        let edit = self.shape.service_every > 0 && self.steps.is_multiple_of(self.shape.service_every);
        if edit || self.held[service].is_empty() {
            self.edits[service] += 1;
            return Event::Upsert(self.service(service));
        }
        let gone = self.chance.usize(..self.held[service].len());
        self.held[service][gone] = self.next;
        self.next += 1;
        Event::Upsert(self.slice(service, gone / PER_SLICE))
    }

    /// How many changes there were.
    #[must_use]
    pub fn steps(&self) -> usize {
        self.steps
    }

    fn service(&self, number: usize) -> Object {
        let (namespace, name) = self.name(number);
        let header = ServiceHeader {
            ports: vec![ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: 0 }],
            cluster_ips: vec![address(10 << 24 | 96 << 16, number)],
            affinity_seconds: self.edits[number] % 2 * 3600,
            created: 1_700_000_000 + i64::try_from(number).unwrap_or(0),
            ..ServiceHeader::default()
        };
        Object::Service(Service { meta: meta(ObjectKind::Service, namespace, name), header: Some(header) })
    }

    fn slice(&self, service: usize, slice: usize) -> Object {
        let (namespace, name) = self.name(service);
        let entries = self.held[service].chunks(PER_SLICE).nth(slice).unwrap_or(&[]).iter().map(|&number| {
            let node = number as usize % self.shape.nodes.max(1);
            Entry {
                address: address(10 << 24 | 128 << 16, number as usize),
                conditions: Conditions::default(),
                node: node_name(node, self.shape.long_names),
                zone_hints: vec![ZONES[node % ZONES.len()].into()],
                node_hints: Vec::new(),
            }
        });
        Object::EndpointSlice(EndpointSlice {
            meta: meta(ObjectKind::EndpointSlice, namespace, format!("{name}-{slice}").into()),
            service: Some(name),
            ports: self.ports.clone(),
            entries: entries.collect(),
            trigger: None,
        })
    }

    fn node(&self, number: usize) -> Object {
        let view = NodeView {
            zone: ZONES[number % ZONES.len()].into(),
            region: "eu-west-1".into(),
            addresses: vec![address(172 << 24 | 16 << 16, number)],
            ..NodeView::default()
        };
        let name = node_name(number, self.shape.long_names);
        Object::Node(Node { meta: meta(ObjectKind::Node, Name::default(), name), uid: Name::default(), view })
    }

    fn name(&self, service: usize) -> (Name, Name) {
        let namespace = service / PER_NAMESPACE;
        match self.shape.long_names {
            false => (format!("shop-{namespace:03}").into(), format!("checkout-{service:05}").into()),
            true => (
                format!("team-payments-europe-{namespace:05}").into(),
                format!("checkout-session-service-{service:05}").into(),
            ),
        }
    }
}

/// Name of a Node.
#[must_use]
pub fn node_name(number: usize, long: bool) -> Name {
    match long {
        false => format!("node-{number:06}.eu-west-1a").into(),
        true => format!("ip-10-128-{number:07}.eu-west-1.compute.intern").into(),
    }
}

fn meta(kind: ObjectKind, namespace: Name, name: Name) -> Meta {
    Meta { key: ObjectKey { kind, namespace, name }, resource_version: 0, problems: Vec::new() }
}

fn service_cidr() -> Object {
    let cidrs = ["10.96.0.0/12"].iter().filter_map(|cidr| cidr.parse().ok()).collect();
    Object::ServiceCidr(ServiceCidr {
        meta: meta(ObjectKind::ServiceCidr, Name::default(), "kubernetes".into()),
        cidrs,
    })
}

/// An address of those from `base` on; no network has more than 2^23 of them.
fn address(base: u32, number: usize) -> IpAddr {
    let number = u32::try_from(number % (1 << 23)).unwrap_or(0);
    Ipv4Addr::from_bits(base.wrapping_add(number)).into()
}

/// A step that visits all of so many things before it comes back to the first.
fn stride(of: usize) -> usize {
    fn common(a: usize, b: usize) -> usize {
        if b == 0 { a } else { common(b, a % b) }
    }
    (7_919..).find(|step| common(*step, of) == 1).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use distributary_cluster::Cluster;
    use distributary_model::Key;

    use super::*;

    fn shape() -> Shape {
        Shape { services: 50, endpoints: 120, nodes: 7, service_every: 5, long_names: false, seed: 3 }
    }

    #[test]
    fn it_follows_from_its_seed_and_lists_what_its_changes_led_to() {
        let (mut world, mut again) = (World::new(shape()), World::new(shape()));
        let mut followed = Cluster::new("c");
        followed.apply(world.everything());
        assert_eq!(followed.table().endpoints(), 50 * 120);
        for _ in 0..200 {
            let change = world.step();
            assert_eq!(change, again.step());
            assert_eq!(followed.apply(vec![change]).records.len(), 1, "every change is news");
        }
        let mut listed = Cluster::new("c");
        listed.apply(again.everything());
        assert!(followed.table().iter().eq(listed.table().iter()));
        let mut other = World::new(Shape { seed: 4, ..shape() });
        assert!((0..200).any(|_| other.step() != again.step()));
    }

    #[test]
    fn consecutive_changes_are_of_different_services() {
        let mut world = World::new(Shape { services: 7_919, endpoints: 1, ..shape() });
        let mut touched = BTreeSet::new();
        let mut cluster = Cluster::new("c");
        cluster.apply(world.everything());
        for _ in 0..1_000 {
            touched.extend(cluster.apply(vec![world.step()]).records.into_iter().map(|one| one.change.key));
        }
        assert_eq!(touched.len(), 1_000);
        assert!(touched.contains(&Key::service("c", "shop-000", "checkout-00000")));
    }

    #[test]
    fn names_are_as_long_as_the_budget_of_bytes_says() {
        let length = |long| {
            let (namespace, name) = World::new(Shape { long_names: long, ..shape() }).name(49);
            (namespace.len() + 1 + name.len(), node_name(5, long).len())
        };
        assert!(length(false).0 <= 32 && length(false).1 <= 24, "{:?}", length(false));
        assert!(length(true).0 >= 56 && length(true).1 >= 42, "{:?}", length(true));
    }
}
