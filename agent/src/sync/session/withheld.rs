//! Removals that were only inferred, and are too many to be believed at once (stream rule 4.4): what they would remove
//! is programmed a while longer. It is not in the table, so that nothing else takes it for what a server has.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use distributary_model::claims::{Claim, claims};
use distributary_model::{Endpoint, Epoch, Held, Key, Name, Service, Table};

use super::stage::{Mode, Stage};

/// Fewer endpoints may go at once.
const FEW: usize = 20;

/// A service of which more is programmed than the server has.
#[derive(Clone, Debug, PartialEq)]
pub struct Kept {
    /// What is programmed.
    pub service: Arc<Service>,
    /// How long.
    pub until: Instant,
    /// Which server process left it out.
    pub epoch: Epoch,
}

/// All services of which more is programmed.
#[derive(Debug)]
pub struct Withheld {
    patience: Duration,
    kept: BTreeMap<Arc<Key>, Kept>,
    claims: BTreeMap<Claim, BTreeSet<Arc<Key>>>,
    ends: BTreeSet<(Instant, Arc<Key>)>,
    endpoints: usize,
}

impl Withheld {
    /// Nothing yet; what comes is held for so long.
    pub fn new(patience: Duration) -> Self {
        let (kept, claims, ends) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
        Self { patience, kept, claims, ends, endpoints: 0 }
    }

    /// What is to be programmed, where that is more than the table has.
    pub fn get(&self, key: &Key) -> Option<&Arc<Service>> {
        self.kept.get(key).map(|kept| &kept.service)
    }

    /// All of it.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<Key>, &Kept)> {
        self.kept.iter()
    }

    /// Services, and the endpoints that they are programmed with.
    pub fn size(&self) -> (usize, usize) {
        (self.kept.len(), self.endpoints)
    }

    /// When the first of them gives way by itself.
    pub fn until(&self) -> Option<Instant> {
        self.ends.first().map(|(until, _)| *until)
    }

    /// Goes on with what an earlier process held.
    pub fn restore(&mut self, key: Arc<Key>, kept: Kept) {
        self.keep(key, kept);
    }

    /// A service is what a server says that it is.
    pub(super) fn said(
        &mut self,
        key: &Arc<Key>,
        was: Option<&Held>,
        is: Option<&Held>,
    ) -> BTreeSet<Arc<Key>> {
        let mut touched = BTreeSet::new();
        if self.kept.is_empty() {
            return touched;
        }
        if self.give_up(key) {
            touched.insert(key.clone());
        }
        touched.extend(self.give_way(key, service(was), service(is)));
        touched
    }

    /// A stage has become the table: `before` is what the records were that it changed. Gives the services that are to be
    /// programmed otherwise than before.
    pub(super) fn folded(
        &mut self,
        table: &Table,
        before: &BTreeMap<Arc<Key>, Option<Held>>,
        stage: &Stage,
        now: Instant,
    ) -> BTreeSet<Arc<Key>> {
        let mut touched = BTreeSet::new();
        let nothing = BTreeSet::new();
        let complete = stage.ended.as_ref().map_or(&nothing, |ended| &ended.complete);
        let is = |key: &Key| service(table.get(key));
        let lost = |key: &Key| is(key).is_none_or(|is| is.endpoints.is_empty());
        // What has come back, and what another process leaves out as well.
        let over = |(key, kept): (&Arc<Key>, &Kept)| {
            let confirmed = kept.epoch != stage.epoch && complete.contains(&key.cluster);
            (confirmed || !lost(key)).then(|| key.clone())
        };
        for key in self.kept.iter().filter_map(over).collect::<Vec<_>>() {
            self.give_up(&key);
            touched.insert(key);
        }
        let guarded = stage.mode != Mode::Resume && !self.patience.is_zero();
        for cluster in complete.iter().filter(|_| guarded) {
            let went: Vec<(&Arc<Key>, &Arc<Service>)> = before
                .iter()
                .filter(|(key, _)| key.cluster == *cluster)
                .filter_map(|(key, was)| Some((key, service(was.as_ref())?)))
                .filter(|(key, was)| match is(key) {
                    None => !stage.names(key),
                    Some(is) => is.endpoints.is_empty() && !was.endpoints.is_empty(),
                })
                .collect();
            if went.is_empty() || !is_doubtful(cluster, table, before, &went) {
                continue;
            }
            for (key, was) in went {
                let header = is(key).map_or(&was.header, |is| &is.header).clone();
                let service = Arc::new(Service { header, endpoints: was.endpoints.clone() });
                self.keep(key.clone(), Kept { service, until: now + self.patience, epoch: stage.epoch });
                touched.insert(key.clone());
            }
        }
        if !self.kept.is_empty() {
            for (key, was) in before {
                touched.extend(self.give_way(key, service(was.as_ref()), is(key)));
            }
        }
        touched
    }

    /// Everything whose time has come gives way.
    pub(super) fn expire(&mut self, now: Instant) -> BTreeSet<Arc<Key>> {
        let over = self.ends.iter().take_while(|(until, _)| *until <= now);
        let keys: BTreeSet<_> = over.map(|(_, key)| key.clone()).collect();
        keys.iter().for_each(|key| _ = self.give_up(key));
        keys
    }

    /// Everything gives way.
    pub(super) fn release(&mut self) -> BTreeSet<Arc<Key>> {
        std::mem::replace(self, Self::new(self.patience)).kept.into_keys().collect()
    }

    /// What a service claims that it did not before is nobody else's.
    fn give_way(
        &mut self,
        by: &Arc<Key>,
        was: Option<&Arc<Service>>,
        is: Option<&Arc<Service>>,
    ) -> BTreeSet<Arc<Key>> {
        let mut touched = BTreeSet::new();
        let Some(is) = is else { return touched };
        let had: BTreeSet<Claim> = was.into_iter().flat_map(|was| claims(was)).collect();
        for claim in claims(is).filter(|claim| !had.contains(claim)) {
            let Some(keys) = self.claims.get(&claim) else { continue };
            let keys: Vec<_> = keys.iter().filter(|key| *key != by).cloned().collect();
            for key in keys {
                let rest = match (claim, self.kept.get(&key)) {
                    (Claim::Endpoint(address), Some(kept)) => without(kept, address),
                    _ => None,
                };
                self.give_up(&key);
                if let Some(rest) = rest {
                    self.keep(key.clone(), rest);
                }
                touched.insert(key);
            }
        }
        touched
    }

    fn keep(&mut self, key: Arc<Key>, kept: Kept) {
        self.give_up(&key);
        for claim in claims(&kept.service) {
            self.claims.entry(claim).or_default().insert(key.clone());
        }
        self.ends.insert((kept.until, key.clone()));
        self.endpoints += kept.service.endpoints.len();
        self.kept.insert(key, kept);
    }

    fn give_up(&mut self, key: &Arc<Key>) -> bool {
        let Some(kept) = self.kept.remove(key) else { return false };
        self.ends.remove(&(kept.until, key.clone()));
        self.endpoints -= kept.service.endpoints.len();
        for claim in claims(&kept.service) {
            if let Some(keys) = self.claims.get_mut(&claim) {
                keys.remove(key);
                if keys.is_empty() {
                    self.claims.remove(&claim);
                }
            }
        }
        true
    }
}

/// Whether so much goes from a source that it is rather the server that lacks something.
fn is_doubtful(
    cluster: &Name,
    table: &Table,
    before: &BTreeMap<Arc<Key>, Option<Held>>,
    went: &[(&Arc<Key>, &Arc<Service>)],
) -> bool {
    let services = |held: Option<&Held>| held.and_then(|held| held.record.as_service()).is_some();
    let endpoints = |held: Option<&Held>| held.map_or(0, |held| held.record.endpoints());
    let (mut had, mut left) = (0, 0);
    for (key, held) in table.iter().filter(|(key, _)| key.cluster == *cluster) {
        left += usize::from(services(Some(held)));
        if !before.contains_key(key) {
            had += endpoints(Some(held));
        }
    }
    let changed = before.iter().filter(|(key, _)| key.cluster == *cluster);
    had += changed.map(|(_, was)| endpoints(was.as_ref())).sum::<usize>();
    let gone: usize = went.iter().map(|(_, was)| was.endpoints.len()).sum();
    left == 0 || (gone > FEW && gone * 2 > had)
}

/// Without an address that somebody else has now; `None`: nothing is left.
fn without(kept: &Kept, address: IpAddr) -> Option<Kept> {
    let Service { header, endpoints } = &*kept.service;
    let endpoints: Vec<Endpoint> =
        endpoints.iter().filter(|endpoint| endpoint.address != address).cloned().collect();
    let service = Arc::new(Service { header: header.clone(), endpoints });
    (!service.endpoints.is_empty()).then(|| Kept { service, ..kept.clone() })
}

fn service(held: Option<&Held>) -> Option<&Arc<Service>> {
    held?.record.as_service()
}
