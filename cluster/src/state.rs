//! Everything that is known of one cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use distributary_model::limits::{ENDPOINTS_PER_SERVICE, ENDPOINTS_PER_STREAM, LIST, PORTS, STRING_BYTES};
use distributary_model::{
    Change, Endpoint, Facts, Held, Interner, Key, Kind, Name, NodeView, ObjectKind, Record, Service,
    ServiceHeader, Table, delta, hash,
};
use ipnet::IpNet;

use crate::merge::{self, Slice};
use crate::{EndpointSlice, Event, Object, ObjectKey, Problem, Trigger};

/// Objects in, records out. A batch goes in whole, and what an observer could see comes out.
#[derive(Debug)]
pub struct Cluster {
    id: Name,
    interner: Interner,
    table: Table,
    /// What records are made of. Endpoints that came before their Service wait here.
    services: BTreeMap<Arc<Key>, Parts>,
    /// The Service that a slice counts for: a changed label must also take it away from the old one.
    owners: BTreeMap<(Name, Name), Name>,
    nodes: BTreeMap<Name, Known>,
    /// By object: two may hold the same network.
    cidrs: BTreeMap<Name, Vec<IpNet>>,
    /// What was told of objects that have anything to be told of, so that it is told once.
    told: BTreeMap<ObjectKey, Vec<String>>,
    /// Services without a record, since agents would end the stream for it.
    left_out: BTreeMap<Arc<Key>, Beyond>,
    /// Endpoints that the table may have, as a stream may carry no more.
    limit: usize,
}

/// What is beyond a limit.
#[derive(Clone, Copy, Debug)]
struct Beyond {
    found: usize,
    limit: usize,
    what: &'static str,
    /// Endpoints for which the table would need room; `None`: it is not for want of room.
    needs: Option<usize>,
}

/// What a service's parts make; `None`: no record.
type Made = Result<Option<Held>, Beyond>;

impl fmt::Display for Beyond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { found, limit, what, .. } = self;
        let has = if self.needs.is_some() { "with it there are" } else { "it has" };
        write!(f, "{has} {found} {what}, {limit} are the limit")
    }
}

/// A Node.
#[derive(Debug, PartialEq)]
struct Known {
    view: NodeView,
    uid: Name,
}

#[derive(Debug, Default)]
struct Parts {
    header: Option<ServiceHeader>,
    slices: BTreeMap<Name, Slice>,
}

/// What a batch of events changed, in the end.
#[derive(Debug, Default, PartialEq)]
pub struct Changes {
    /// Records that are not as they were. Their order keeps the table within its limit after each of them.
    pub records: Vec<RecordChange>,
    /// Nodes that are not as they were.
    pub nodes: BTreeSet<Name>,
    /// What does not take effect.
    pub problems: Vec<Problem>,
}

/// A record that is not as it was.
#[derive(Debug, PartialEq)]
pub struct RecordChange {
    /// From before the batch to after it.
    pub change: Change,
    /// The record now; `None`: gone.
    pub after: Option<Held>,
    /// Of every slice whose content changed, and that says so: what triggered it.
    pub triggers: Vec<Trigger>,
}

/// What a batch touched; the values are those before it.
#[derive(Default)]
struct Touched {
    services: BTreeSet<Arc<Key>>,
    facts: bool,
    nodes: BTreeMap<Name, Option<Known>>,
    triggers: BTreeMap<Arc<Key>, Vec<Trigger>>,
}

impl Cluster {
    /// A cluster of which nothing is known yet. `id` is the real one: it is part of every key.
    pub fn new(id: impl Into<Name>) -> Self {
        Self {
            id: id.into(),
            interner: Interner::default(),
            table: Table::default(),
            services: BTreeMap::new(),
            owners: BTreeMap::new(),
            nodes: BTreeMap::new(),
            cidrs: BTreeMap::new(),
            told: BTreeMap::new(),
            left_out: BTreeMap::new(),
            limit: ENDPOINTS_PER_STREAM,
        }
    }

    /// Its id.
    pub fn id(&self) -> &Name {
        &self.id
    }

    /// All records.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// What is known of a Node.
    pub fn node(&self, name: &str) -> Option<&NodeView> {
        self.nodes.get(name).map(|known| &known.view)
    }

    /// The UID of a Node; empty where its manifest says none.
    pub fn node_uid(&self, name: &str) -> Option<&Name> {
        self.nodes.get(name).map(|known| &known.uid)
    }

    /// All Nodes, by name.
    pub fn nodes(&self) -> impl Iterator<Item = (&Name, &NodeView)> {
        self.nodes.iter().map(|(name, known)| (name, &known.view))
    }

    /// The Service that an object is, or whose endpoints it has, and the addresses of those that are its own; `None`
    /// where it is part of none.
    pub fn part(&self, object: &ObjectKey) -> Option<(Arc<Key>, Vec<IpAddr>)> {
        let of = |name: &Name| {
            let key = Key::service(self.id.clone(), object.namespace.clone(), name.clone());
            self.services.get_key_value(&key)
        };
        match object.kind {
            ObjectKind::Service => {
                let (key, parts) = of(&object.name)?;
                parts.header.as_ref()?;
                Some((key.clone(), Vec::new()))
            }
            ObjectKind::EndpointSlice => {
                let owner = self.owners.get(&(object.namespace.clone(), object.name.clone()))?;
                let (key, parts) = of(owner)?;
                Some((key.clone(), parts.slices.get(&object.name)?.addresses().collect()))
            }
            ObjectKind::Node | ObjectKind::ServiceCidr => None,
        }
    }

    /// Takes a batch in. Content that is equal in the end is silence, however it came to be.
    pub fn apply(&mut self, events: impl IntoIterator<Item = Event>) -> Changes {
        let mut changes = Changes::default();
        let mut touched = Touched::default();
        for event in events {
            match event {
                Event::Upsert(mut object) => {
                    let problems = std::mem::take(&mut object.meta_mut().problems);
                    self.tell(object.key(), problems, &mut changes.problems);
                    self.upsert(object, &mut touched);
                }
                Event::Gone { key, inferred: _ } => {
                    self.told.remove(&key);
                    self.remove(&key, &mut touched);
                }
                Event::Invalid { key, why } => {
                    let what = format!("it cannot be read, so its last good value stays: {why}");
                    changes.problems.push(Problem { object: key, what });
                }
            }
        }
        self.settle(touched, &mut changes);
        changes
    }

    /// What is wrong with an object is told when it changes, and not with every event.
    fn tell(&mut self, key: &ObjectKey, problems: Vec<String>, to: &mut Vec<Problem>) {
        let before = match problems.is_empty() {
            true => self.told.remove(key),
            false => self.told.insert(key.clone(), problems.clone()),
        };
        if before.as_ref() != Some(&problems) {
            to.extend(problems.into_iter().map(|what| Problem { object: key.clone(), what }));
        }
    }

    fn upsert(&mut self, object: Object, touched: &mut Touched) {
        let key = object.key().clone();
        match object {
            Object::Service(service) => match service.header {
                Some(header) => self.put_header(&key, header, touched),
                None => self.remove(&key, touched),
            },
            Object::EndpointSlice(slice) => self.put_slice(slice, touched),
            Object::Node(node) => {
                let name = self.interner.name(&key.name);
                let before = self.nodes.insert(name.clone(), Known { view: node.view, uid: node.uid });
                touched.nodes.entry(name).or_insert(before);
            }
            Object::ServiceCidr(cidr) => {
                self.cidrs.insert(key.name, cidr.cidrs);
                touched.facts = true;
            }
        }
    }

    fn put_header(&mut self, key: &ObjectKey, mut header: ServiceHeader, touched: &mut Touched) {
        for port in &mut header.ports {
            port.name = self.interner.name(&port.name);
        }
        let key = self.key(&key.namespace, &key.name);
        let parts = self.services.entry(key.clone()).or_default();
        if parts.header.as_ref() != Some(&header) {
            parts.header = Some(header);
            touched.services.insert(key);
        }
    }

    fn put_slice(&mut self, mut slice: EndpointSlice, touched: &mut Touched) {
        let Some(service) = slice.service.take() else {
            return self.remove(&slice.meta.key, touched);
        };
        let key = self.key(&slice.meta.key.namespace, &service);
        let name = self.interner.name(&slice.meta.key.name);
        let of = (key.namespace.clone(), name.clone());
        if self.owners.get(&of).is_some_and(|owner| *owner != key.name) {
            self.remove(&slice.meta.key, touched);
        }
        let trigger = slice.trigger;
        let slice = Slice::keep(slice, &mut self.interner);
        let parts = self.services.entry(key.clone()).or_default();
        if parts.slices.get(&name) != Some(&slice) {
            parts.slices.insert(name, slice);
            touched.triggers.entry(key.clone()).or_default().extend(trigger);
            self.owners.insert(of, key.name.clone());
            touched.services.insert(key);
        }
    }

    fn remove(&mut self, key: &ObjectKey, touched: &mut Touched) {
        match key.kind {
            ObjectKind::Service => {
                let key = self.key(&key.namespace, &key.name);
                let Some(parts) = self.services.get_mut(&key) else { return };
                parts.header = None;
                touched.services.insert(key);
            }
            ObjectKind::EndpointSlice => {
                let of = (key.namespace.clone(), key.name.clone());
                let Some(owner) = self.owners.remove(&of) else { return };
                let key = self.key(&of.0, &owner);
                let Some(parts) = self.services.get_mut(&key) else { return };
                parts.slices.remove(&of.1);
                // The trigger time of a slice that goes is that of its last change (spec/kube-proxy.md §4.2).
                touched.triggers.remove(&key);
                touched.services.insert(key);
            }
            ObjectKind::Node => {
                let before = self.nodes.remove(&key.name);
                touched.nodes.entry(key.name.clone()).or_insert(before);
            }
            ObjectKind::ServiceCidr => {
                self.cidrs.remove(&key.name);
                touched.facts = true;
            }
        }
    }

    fn key(&mut self, namespace: &str, name: &str) -> Arc<Key> {
        let (namespace, name) = (self.interner.name(namespace), self.interner.name(name));
        let key = Key { kind: Kind::Service, cluster: self.id.clone(), namespace, name };
        match self.services.get_key_value(&key) {
            Some((held, _)) => held.clone(),
            None => Arc::new(key),
        }
    }

    /// Compares what was touched with what the table still has, and brings the table up to date.
    fn settle(&mut self, mut touched: Touched, changes: &mut Changes) {
        for (key, after) in self.made(&touched.services) {
            self.place(&key, after, changes);
            if self.services.get(&key).is_some_and(|parts| parts.header.is_none() && parts.slices.is_empty())
            {
                self.services.remove(&key);
            }
        }
        self.let_in(&touched.services, changes);
        for record in changes.records.iter_mut().filter(|record| record.after.is_some()) {
            record.triggers = touched.triggers.remove(&record.change.key).unwrap_or_default();
        }
        if touched.facts {
            let key = Arc::new(Key::facts(self.id.clone()));
            let after = self.facts(&key, &mut changes.problems);
            self.replace(&key, after, changes);
        }
        for (name, before) in touched.nodes {
            if before.as_ref() != self.nodes.get(&name) {
                changes.nodes.insert(name);
            }
        }
    }

    /// What the parts of the services make, in the order in which it is to take effect.
    fn made(&mut self, services: &BTreeSet<Arc<Key>>) -> Vec<(Arc<Key>, Made)> {
        let mut all: Vec<_> = services.iter().map(|key| (key.clone(), self.record(key))).collect();
        let growth = |key: &Key, after: &Made| {
            endpoints(after.as_ref().ok().and_then(Option::as_ref))
                .saturating_sub(endpoints(self.table.get(key)))
        };
        let growths: usize = all.iter().map(|(key, after)| growth(key, after)).sum();
        // Where room is scarce, what gives some up comes first.
        if self.table.endpoints() + growths > self.limit {
            all.sort_by_key(|(key, after)| growth(key, after) > 0);
        }
        all
    }

    /// Puts in place what a service's parts made, or leaves the service out and says why.
    fn place(&mut self, key: &Arc<Key>, after: Made, changes: &mut Changes) {
        let others = self.table.endpoints() - endpoints(self.table.get(key));
        let after = after.and_then(|after| {
            let needs = endpoints(after.as_ref());
            let (found, limit) = (others + needs, self.limit);
            // What has no endpoints takes no room.
            match needs == 0 || found <= limit {
                true => Ok(after),
                false => Err(Beyond { found, limit, what: "endpoints in the cluster", needs: Some(needs) }),
            }
        });
        let after = match after {
            Ok(after) => {
                self.left_out.remove(key);
                after
            }
            Err(beyond) => {
                // The numbers may change with every event, which is no news.
                let before = self.left_out.insert(key.clone(), beyond);
                if before.is_none_or(|before| before.what != beyond.what) {
                    let (namespace, name) = (key.namespace.clone(), key.name.clone());
                    let object = ObjectKey { kind: ObjectKind::Service, namespace, name };
                    changes.problems.push(Problem { object, what: format!("it is not served: {beyond}") });
                }
                None
            }
        };
        self.replace(key, after, changes);
    }

    /// Services for which there is room by now. Those of this batch have had their turn.
    fn let_in(&mut self, touched: &BTreeSet<Arc<Key>>, changes: &mut Changes) {
        let waiting: Vec<(Arc<Key>, usize)> = self
            .left_out
            .iter()
            .filter(|(key, _)| !touched.contains(*key))
            .filter_map(|(key, beyond)| Some((key.clone(), beyond.needs?)))
            .collect();
        for (key, needs) in waiting {
            if self.table.endpoints() + needs <= self.limit {
                let after = self.record(&key);
                self.place(&key, after, changes);
            }
        }
    }

    fn replace(&mut self, key: &Arc<Key>, after: Option<Held>, changes: &mut Changes) {
        if let Some(change) = delta::diff(key, self.table.get(key), after.as_ref()) {
            self.table.set(key, after.clone());
            changes.records.push(RecordChange { change, after, triggers: Vec::new() });
        }
    }

    /// The record that a Service's parts make now.
    fn record(&mut self, key: &Key) -> Made {
        let Some(parts) = self.services.get(key) else { return Ok(None) };
        let Some(header) = &parts.header else { return Ok(None) };
        let endpoints = merge::endpoints(&parts.slices, &mut self.interner);
        within_limits(key, header, &endpoints)?;
        let service = Arc::new(Service { header: header.clone(), endpoints });
        let record = Record::Service(service.clone());
        let hash = match self.table.get(key) {
            Some(Held { record: Record::Service(was), hash }) => rehash(key, was, *hash, &service),
            _ => hash::record(key, &record),
        };
        Ok(Some(Held { record, hash }))
    }

    /// There are none before the first ServiceCIDR: an agent must not think that every address is unallocated.
    fn facts(&self, key: &Key, problems: &mut Vec<Problem>) -> Option<Held> {
        let (name, _) = self.cidrs.first_key_value()?;
        let all: BTreeSet<IpNet> = self.cidrs.values().flatten().copied().collect();
        if all.len() > LIST {
            let object =
                ObjectKey { kind: ObjectKind::ServiceCidr, namespace: Name::default(), name: name.clone() };
            let what =
                format!("{} networks in all ServiceCIDRs, {LIST} are the limit: none is used", all.len());
            problems.push(Problem { object, what });
            return None;
        }
        let record = Record::Facts(Arc::new(Facts { service_cidrs: all.into_iter().collect() }));
        let hash = hash::record(key, &record);
        Some(Held { record, hash })
    }
}

/// How many endpoints a record has.
fn endpoints(held: Option<&Held>) -> usize {
    held.map_or(0, |held| held.record.endpoints())
}

/// The hash after a change, at the price of the change: both lists are sorted.
fn rehash(key: &Key, was: &Service, before: hash::Hash, is: &Service) -> hash::Hash {
    let (mut gone, mut new) = (Vec::new(), Vec::new());
    let (mut old, mut now) = (was.endpoints.iter().peekable(), is.endpoints.iter().peekable());
    loop {
        match (old.peek(), now.peek()) {
            (Some(a), Some(b)) if a == b => _ = (old.next(), now.next()),
            (Some(a), Some(b)) if a < b => gone.extend(old.next()),
            (Some(_), None) => gone.extend(old.next()),
            (_, Some(_)) => new.extend(now.next()),
            (None, None) => break,
        }
    }
    let headers = (was.header != is.header).then_some((&was.header, &is.header));
    hash::patched(key, before, headers, gone, new)
}

/// What a receiver would end the stream for must not be sent.
fn within_limits(key: &Key, header: &ServiceHeader, endpoints: &[Endpoint]) -> Result<(), Beyond> {
    let at_most = |found: usize, limit: usize, what: &'static str| match found <= limit {
        true => Ok(()),
        false => Err(Beyond { found, limit, what, needs: None }),
    };
    let short = |name: &Name| at_most(name.len(), STRING_BYTES, "bytes in a name");
    at_most(header.ports.len(), PORTS, "ports")?;
    at_most(header.external_ips.len(), LIST, "external IPs")?;
    at_most(header.load_balancer_vips.len(), LIST, "load balancer addresses")?;
    at_most(header.source_ranges.len(), LIST, "source ranges")?;
    at_most(endpoints.len(), ENDPOINTS_PER_SERVICE, "endpoints")?;
    [&key.namespace, &key.name].into_iter().try_for_each(short)?;
    header.ports.iter().try_for_each(|port| short(&port.name))?;
    for endpoint in endpoints {
        at_most(endpoint.ports.len(), PORTS, "ports at one endpoint")?;
        at_most(endpoint.zone_hints.len(), LIST, "zone hints at one endpoint")?;
        at_most(endpoint.node_hints.len(), LIST, "node hints at one endpoint")?;
        short(&endpoint.node)?;
        endpoint.ports.iter().try_for_each(|port| short(&port.name))?;
        endpoint.zone_hints.iter().chain(&*endpoint.node_hints).try_for_each(short)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
