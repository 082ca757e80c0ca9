//! When single endpoints changed last (stream rule 3.4): who is told the newest of a large service of which he holds most is told
//! what is new of it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use distributary_model::{Change, Held, Key, Op, Revision};

/// So many addresses of a service are remembered, and half of what it has.
const ADDRESSES: usize = 64;

/// The last change of addresses, as far back as each service says.
#[derive(Debug, Default)]
pub(super) struct Endpoints(BTreeMap<Arc<Key>, Recent>);

#[derive(Debug)]
struct Recent {
    /// Every change after this commit is here.
    since: Revision,
    header: Revision,
    addresses: BTreeMap<IpAddr, Revision>,
}

impl Endpoints {
    /// A record changed in a commit.
    pub(super) fn changed(&mut self, change: &Change, after: Option<&Held>, revision: Revision) {
        let from = |since| Recent { since, header: Revision(0), addresses: BTreeMap::new() };
        let (header, upserts, removals) = match &change.op {
            Op::Patch { header, upserts, removals, .. } => (header, upserts, removals),
            Op::Put(_) => {
                self.0.insert(change.key.clone(), from(revision));
                return;
            }
            Op::Removed => {
                self.0.remove(&change.key);
                return;
            }
        };
        let before = Revision(revision.0.saturating_sub(1));
        let recent = self.0.entry(change.key.clone()).or_insert_with(|| from(before));
        if header.is_some() {
            recent.header = revision;
        }
        let addresses = upserts.iter().map(|endpoint| endpoint.address).chain(removals.iter().copied());
        recent.addresses.extend(addresses.map(|address| (address, revision)));
        let endpoints = after.map_or(0, |held| held.record.endpoints());
        if recent.addresses.len() > ADDRESSES.max(endpoints / 2) {
            *recent = from(revision);
        }
    }

    /// What leads from what a record was at a commit, or at a later one, to what it is; `None` where that is not known, or not
    /// less than the whole.
    pub(super) fn patch(&self, key: &Key, held: &Held, since: Revision) -> Option<Op> {
        let Recent { since: known, header, addresses } = self.0.get(key)?;
        let service = held.record.as_service()?;
        let changed =
            || addresses.iter().filter(|(_, revision)| **revision > since).map(|(address, _)| *address);
        if since < *known || 2 * changed().count() > service.endpoints.len() {
            return None;
        }
        let (mut upserts, mut removals) = (Vec::new(), Vec::new());
        for address in changed() {
            let from = service.endpoints.partition_point(|one| one.address < address);
            let of = service.endpoints[from..].iter().take_while(|one| one.address == address);
            let before = upserts.len();
            upserts.extend(of.cloned());
            if upserts.len() == before {
                removals.push(address);
            }
        }
        let header = (*header > since).then(|| service.header.clone());
        Some(Op::Patch { header, upserts, removals, hash: held.hash })
    }
}
