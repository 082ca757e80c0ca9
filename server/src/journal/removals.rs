//! Removals that nobody stated (stream rule 4.4): objects that were missing in a list after a watch had been interrupted.
//! Where they are so many that the list is rather what lacks something, they are held for a while.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use distributary_cluster::{Cluster, Event, ObjectKey, RecordChange};
use distributary_model::claims::{Claim, claims};
use distributary_model::{Key, Kind, ObjectKind};

/// Fewer endpoints may go at once.
const FEW: usize = 20;

/// So long removals that were only inferred are held by default.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The removals that are held.
#[derive(Debug)]
pub(super) struct Removals {
    patience: Duration,
    held: BTreeMap<ObjectKey, Held>,
    claims: BTreeMap<Claim, BTreeSet<ObjectKey>>,
}

#[derive(Debug)]
struct Held {
    until: Instant,
    /// The Service that the object is, or belongs to.
    service: Arc<Key>,
    endpoints: usize,
    claims: Vec<Claim>,
}

impl Removals {
    /// Nothing yet; what comes is held for so long, zero: not at all.
    pub(super) fn new(patience: Duration) -> Self {
        Self { patience, held: BTreeMap::new(), claims: BTreeMap::new() }
    }

    /// How many objects are held.
    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    /// When the first of them gives way by itself.
    pub(super) fn until(&self) -> Option<Instant> {
        self.held.values().map(|held| held.until).min()
    }

    /// What of these events is to take effect now, after what was held for long enough. The cluster is as it was before
    /// them.
    pub(super) fn sift(&mut self, events: Vec<Event>, cluster: &Cluster, now: Instant) -> Vec<Event> {
        let over = self.held.iter().filter(|(_, held)| held.until <= now).map(|(key, _)| key.clone());
        let over: Vec<ObjectKey> = over.collect();
        let mut passed = self.give_up(over);
        let mut inferred = BTreeSet::new();
        for event in events {
            let key = match &event {
                Event::Upsert(object) => object.key(),
                Event::Gone { key, .. } | Event::Invalid { key, .. } => key,
            };
            if matches!(event, Event::Gone { inferred: true, .. }) {
                if !self.held.contains_key(key) {
                    inferred.insert(key.clone());
                }
                continue;
            }
            // Somebody says what has become of it.
            self.forget(key);
            inferred.remove(key);
            passed.push(event);
        }
        let lost: Vec<Lost> = inferred.iter().filter_map(|key| Lost::of(key, cluster)).collect();
        if !self.patience.is_zero() && !lost.is_empty() && self.is_doubtful(&lost, &passed, cluster) {
            lost.iter().for_each(|lost| _ = inferred.remove(&lost.object));
            self.hold(lost, cluster, now + self.patience);
        }
        passed.extend(inferred.into_iter().map(|key| Event::Gone { key, inferred: true }));
        passed
    }

    /// These have been doubted for long enough.
    pub(super) fn believe(&mut self, events: Vec<Event>) -> Vec<Event> {
        for event in &events {
            match event {
                Event::Upsert(object) => self.forget(object.key()),
                Event::Gone { key, .. } | Event::Invalid { key, .. } => self.forget(key),
            }
        }
        events
    }

    /// What is held gives way where something new has its address or port.
    pub(super) fn claimed(&mut self, records: &[RecordChange]) -> Vec<Event> {
        let mut away = BTreeSet::new();
        for RecordChange { change, after, .. } in records.iter().filter(|_| !self.claims.is_empty()) {
            let Some(service) = after.as_ref().and_then(|held| held.record.as_service()) else { continue };
            for key in claims(service).filter_map(|claim| self.claims.get(&claim)).flatten() {
                if self.held.get(key).is_some_and(|held| held.service != change.key) {
                    away.insert(key.clone());
                }
            }
        }
        self.give_up(away)
    }

    /// All that is held gives way.
    pub(super) fn release(&mut self) -> Vec<Event> {
        self.claims.clear();
        let all = std::mem::take(&mut self.held).into_keys();
        // Somebody says so: they are not to be doubted again.
        all.map(|key| Event::Gone { key, inferred: false }).collect()
    }

    /// Whether so much would go that it is rather the list that lacks something.
    fn is_doubtful(&self, lost: &[Lost], passed: &[Event], cluster: &Cluster) -> bool {
        let mut by_service: BTreeMap<&Arc<Key>, (bool, usize)> = BTreeMap::new();
        let held = self.held.iter().map(|(object, held)| (object.kind, &held.service, held.endpoints));
        let new = lost.iter().map(|lost| (lost.object.kind, &lost.service, lost.endpoints));
        for (kind, service, endpoints) in held.chain(new) {
            let (gone, of_slices) = by_service.entry(service).or_default();
            match kind {
                ObjectKind::Service => *gone = true,
                _ => *of_slices += endpoints,
            }
        }
        let table = cluster.table();
        let gone = by_service.iter().map(|(key, (gone, of_slices))| {
            let all = table.get(key).map_or(0, |held| held.record.endpoints());
            if *gone { all } else { all.min(*of_slices) }
        });
        let gone: usize = gone.sum();
        let services = table.iter().filter(|(key, _)| key.kind == Kind::Service);
        let left = services.filter(|(key, _)| !by_service.get(key).is_some_and(|(gone, _)| *gone)).count();
        let new = passed
            .iter()
            .any(|event| matches!(event, Event::Upsert(object) if object.key().kind == ObjectKind::Service));
        (left == 0 && !new && by_service.values().any(|(gone, _)| *gone))
            || (gone > FEW && gone * 2 > table.endpoints())
    }

    fn hold(&mut self, lost: Vec<Lost>, cluster: &Cluster, until: Instant) {
        let services: BTreeSet<Arc<Key>> = lost.iter().map(|lost| lost.service.clone()).collect();
        // What others have already, they did not get by this removal.
        let others = cluster.table().iter().filter(|(key, _)| !services.contains(*key));
        let taken: BTreeSet<Claim> =
            others.filter_map(|(_, held)| held.record.as_service()).flat_map(|one| claims(one)).collect();
        for lost in lost {
            let claims: Vec<Claim> = lost.claims.into_iter().filter(|claim| !taken.contains(claim)).collect();
            for claim in &claims {
                self.claims.entry(*claim).or_default().insert(lost.object.clone());
            }
            let held = Held { until, service: lost.service, endpoints: lost.endpoints, claims };
            self.held.insert(lost.object, held);
        }
    }

    fn give_up(&mut self, keys: impl IntoIterator<Item = ObjectKey>) -> Vec<Event> {
        let gone = |key: ObjectKey| {
            self.forget(&key);
            Event::Gone { key, inferred: true }
        };
        keys.into_iter().map(gone).collect()
    }

    fn forget(&mut self, key: &ObjectKey) {
        let Some(held) = self.held.remove(key) else { return };
        for claim in held.claims {
            if let Some(keys) = self.claims.get_mut(&claim) {
                keys.remove(key);
                if keys.is_empty() {
                    self.claims.remove(&claim);
                }
            }
        }
    }
}

/// An object that was missing, and what of the cluster goes with it.
struct Lost {
    object: ObjectKey,
    service: Arc<Key>,
    endpoints: usize,
    claims: Vec<Claim>,
}

impl Lost {
    /// `None` where nothing of a Service goes.
    fn of(object: &ObjectKey, cluster: &Cluster) -> Option<Self> {
        let (service, addresses) = cluster.part(object)?;
        let claims = match object.kind {
            ObjectKind::Service => {
                let held = cluster.table().get(&service)?;
                let all = claims(held.record.as_service()?);
                all.filter(|claim| !matches!(claim, Claim::Endpoint(_))).collect()
            }
            _ => addresses.iter().copied().map(Claim::Endpoint).collect(),
        };
        Some(Self { object: object.clone(), service, endpoints: addresses.len(), claims })
    }
}

#[cfg(test)]
mod tests;
