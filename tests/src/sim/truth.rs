//! What the API has, and all that it ever had: a history of objects that never gives an address to two endpoints.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr};

use distributary_cluster::{Event, Object, ObjectKey};
use distributary_model::ObjectKind;
use serde_json::{Value, json};

/// The API's history.
#[derive(Debug)]
pub(super) struct Truth {
    /// Every change, in order. The resourceVersion of a change is its place, counted from 1.
    changes: Vec<Event>,
    now: BTreeMap<ObjectKey, Event>,
    services: BTreeMap<usize, VecDeque<Ipv4Addr>>,
    most: usize,
    endpoints: usize,
    next: u32,
    /// Addresses that somebody removed.
    removed: BTreeSet<IpAddr>,
}

impl Truth {
    /// With so many services of so many endpoints, and so many nodes in three zones.
    pub(super) fn new(services: usize, endpoints: usize, nodes: usize) -> Self {
        let mut truth = Self {
            changes: Vec::new(),
            now: BTreeMap::new(),
            services: BTreeMap::new(),
            most: services,
            endpoints,
            next: 0,
            removed: BTreeSet::new(),
        };
        for node in 0..nodes {
            let labels = json!({"topology.kubernetes.io/zone": zone(node)});
            truth.push(upsert(
                ObjectKind::Node,
                &json!({"metadata": {"name": node_name(node), "labels": labels}}),
            ));
        }
        for service in 0..services {
            truth.create(service);
        }
        truth
    }

    /// How many changes there were.
    pub(super) fn version(&self) -> usize {
        self.changes.len()
    }

    /// The changes after a version.
    pub(super) fn after(&self, version: usize) -> &[Event] {
        &self.changes[version.min(self.changes.len())..]
    }

    /// Every object as it is.
    pub(super) fn all(&self) -> impl Iterator<Item = &Event> {
        self.now.values()
    }

    /// Every object as it was at a version.
    pub(super) fn at(&self, version: usize) -> BTreeMap<ObjectKey, Event> {
        let mut state = BTreeMap::new();
        self.changes[..version].iter().for_each(|event| apply(&mut state, event));
        state
    }

    /// Whether an endpoint ever had that address.
    pub(super) fn ever_had(&self, address: IpAddr) -> bool {
        matches!(address, IpAddr::V4(v4) if v4.to_bits() - FIRST <= self.next)
    }

    /// Whether somebody took that address away.
    pub(super) fn took_away(&self, address: IpAddr) -> bool {
        self.removed.contains(&address)
    }

    /// Something changes.
    pub(super) fn change(&mut self, chance: &mut fastrand::Rng) {
        let service = chance.usize(..self.most);
        match (self.services.contains_key(&service), chance.u8(..20)) {
            (false, _) => self.create(service),
            (true, 0) => self.delete(service),
            (true, 1..4) => {
                let new = self.address();
                self.services.entry(service).or_default().push_back(new);
                self.write_slice(service);
            }
            (true, 4..6) => {
                self.take(service);
                self.write_slice(service);
            }
            (true, _) => {
                let new = self.address();
                self.take(service);
                self.services.entry(service).or_default().push_back(new);
                self.write_slice(service);
            }
        }
    }

    fn take(&mut self, service: usize) {
        if let Some(gone) = self.services.get_mut(&service).and_then(VecDeque::pop_front) {
            self.removed.insert(gone.into());
        }
    }

    fn create(&mut self, service: usize) {
        let endpoints = (0..self.endpoints).map(|_| self.address()).collect();
        self.services.insert(service, endpoints);
        let ip = Ipv4Addr::from_bits((10 << 24 | 96 << 16) + 1 + service as u32);
        let spec = json!({"clusterIP": ip, "ports": [{"name": "http", "port": 80}]});
        let json = json!({"metadata": {"namespace": "shop", "name": name(service)}, "spec": spec});
        self.push(upsert(ObjectKind::Service, &json));
        self.write_slice(service);
    }

    fn delete(&mut self, service: usize) {
        let gone = self.services.remove(&service).unwrap_or_default();
        self.removed.extend(gone.into_iter().map(IpAddr::from));
        for (kind, name) in [
            (ObjectKind::Service, name(service)),
            (ObjectKind::EndpointSlice, format!("{}-1", name(service))),
        ] {
            let key = ObjectKey { kind, namespace: "shop".into(), name: name.into() };
            self.push(Event::Gone { key, inferred: false });
        }
    }

    fn write_slice(&mut self, service: usize) {
        let endpoint = |address: &Ipv4Addr| json!({"addresses": [address], "conditions": {"ready": true}});
        let endpoints: Value = self.services[&service].iter().map(endpoint).collect();
        let labels = json!({"kubernetes.io/service-name": name(service)});
        let json = json!({"metadata": {"namespace": "shop", "name": format!("{}-1", name(service)), "labels": labels},
            "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}], "endpoints": endpoints});
        self.push(upsert(ObjectKind::EndpointSlice, &json));
    }

    fn address(&mut self) -> Ipv4Addr {
        self.next += 1;
        Ipv4Addr::from_bits(FIRST + self.next)
    }

    fn push(&mut self, event: Event) {
        apply(&mut self.now, &event);
        self.changes.push(event);
    }
}

/// Before the first address.
const FIRST: u32 = 11 << 24;

fn apply(state: &mut BTreeMap<ObjectKey, Event>, event: &Event) {
    match event {
        Event::Upsert(object) => _ = state.insert(object.key().clone(), event.clone()),
        Event::Gone { key, .. } => _ = state.remove(key),
        Event::Invalid { .. } => {}
    }
}

fn upsert(kind: ObjectKind, json: &Value) -> Event {
    match Object::from_json(kind, &json.to_string()) {
        Ok(object) => Event::Upsert(object),
        Err(e) => unreachable!("{json} is no object: {e}"),
    }
}

fn name(service: usize) -> String {
    format!("s{service}")
}

/// Name of a node.
pub(super) fn node_name(node: usize) -> String {
    format!("node-{node}")
}

/// Zone of a node, or of a replica.
pub(super) fn zone(number: usize) -> &'static str {
    ["a", "b", "c"][number % 3]
}
