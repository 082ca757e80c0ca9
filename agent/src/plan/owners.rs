//! Who owns an address: of the services that claim it, the oldest (spec/stream.md §5.3).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use distributary_model::{Key, Name, Protocol};

/// What only one service port can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Claim {
    /// A cluster IP, external IP or load balancer address, with its port.
    Address(IpAddr, Protocol, u16),
    /// A node port.
    NodePort(Protocol, u16),
    /// A health check node port.
    HealthCheckPort(u16),
}

/// A service port that claims. The least of several is the owner.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claimant {
    /// When its Service was created, in Unix seconds.
    pub created: i64,
    /// Namespace, name and, last, cluster.
    order: (Name, Name, Name),
    /// Its port's name.
    pub port: Name,
    /// Its Service.
    pub key: Arc<Key>,
}

impl Claimant {
    /// A port of a Service.
    pub fn new(created: i64, key: &Arc<Key>, port: &Name) -> Self {
        let order = (key.namespace.clone(), key.name.clone(), key.cluster.clone());
        Self { created, order, port: port.clone(), key: key.clone() }
    }
}

/// A claim that more than one service port makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// What is claimed.
    pub claim: Claim,
    /// Who has it.
    pub owner: Claimant,
    /// Who would have it next, in order.
    pub losers: Vec<Claimant>,
}

/// Every claim of a family, with its claimants.
#[derive(Debug, Default)]
pub struct Owners {
    /// Nearly all have one.
    sole: HashMap<Claim, Claimant>,
    /// Two or more, sorted.
    contested: BTreeMap<Claim, BTreeSet<Claimant>>,
}

impl Owners {
    /// Adds a claimant; answers whose Services may have lost or won by it.
    pub fn claim(&mut self, claim: Claim, claimant: Claimant) -> Vec<Arc<Key>> {
        if let Some(claimants) = self.contested.get_mut(&claim) {
            claimants.insert(claimant);
            return keys(claimants);
        }
        match self.sole.remove(&claim) {
            Some(other) if other != claimant => {
                let claimants = BTreeSet::from([other, claimant]);
                let touched = keys(&claimants);
                self.contested.insert(claim, claimants);
                touched
            }
            _ => {
                self.sole.insert(claim, claimant);
                Vec::new()
            }
        }
    }

    /// Takes a claimant away; answers whose Services may have won by it.
    pub fn release(&mut self, claim: Claim, claimant: &Claimant) -> Vec<Arc<Key>> {
        if let Some(claimants) = self.contested.get_mut(&claim) {
            claimants.remove(claimant);
            let touched = keys(claimants);
            if claimants.len() < 2 {
                let last = claimants.pop_first();
                self.contested.remove(&claim);
                self.sole.extend(last.map(|last| (claim, last)));
            }
            return touched;
        }
        if self.sole.get(&claim) == Some(claimant) {
            self.sole.remove(&claim);
        }
        Vec::new()
    }

    /// Who owns it.
    pub fn owner(&self, claim: Claim) -> Option<&Claimant> {
        match self.contested.get(&claim) {
            Some(claimants) => claimants.first(),
            None => self.sole.get(&claim),
        }
    }

    /// Whether this port of this Service owns it.
    pub fn owns(&self, claim: Claim, key: &Key, port: &str) -> bool {
        self.owner(claim).is_some_and(|owner| *owner.key == *key && *owner.port == *port)
    }

    /// Every claim of several, in order.
    pub fn conflicts(&self) -> impl Iterator<Item = Conflict> {
        self.contested.iter().filter_map(|(&claim, claimants)| {
            let mut losers: Vec<_> = claimants.iter().cloned().collect();
            (!losers.is_empty()).then(|| Conflict { claim, owner: losers.remove(0), losers })
        })
    }
}

fn keys(claimants: &BTreeSet<Claimant>) -> Vec<Arc<Key>> {
    claimants.iter().map(|one| one.key.clone()).collect()
}

#[cfg(test)]
mod tests {
    use distributary_model::testing::key;

    use super::*;

    const CLAIM: Claim = Claim::NodePort(Protocol::Tcp, 30_000);

    fn of(created: i64, name: &str) -> Claimant {
        Claimant::new(created, &key(name), &"http".into())
    }

    #[test]
    fn the_oldest_owns_and_the_next_takes_over() {
        let mut owners = Owners::default();
        assert!(owners.claim(CLAIM, of(2, "a/late")).is_empty());
        assert_eq!(owners.claim(CLAIM, of(1, "z/early")).len(), 2);
        assert!(owners.owns(CLAIM, &key("z/early"), "http"));
        assert!(!owners.owns(CLAIM, &key("a/late"), "http"));
        assert!(!owners.owns(CLAIM, &key("z/early"), "other"));
        let conflicts: Vec<_> = owners.conflicts().collect();
        assert_eq!(conflicts.len(), 1);
        assert_eq!(conflicts[0].owner, of(1, "z/early"));
        assert_eq!(conflicts[0].losers, [of(2, "a/late")]);
        assert_eq!(owners.release(CLAIM, &of(1, "z/early")), [key("a/late")]);
        assert!(owners.owns(CLAIM, &key("a/late"), "http"));
        assert_eq!(owners.conflicts().count(), 0);
    }

    #[test]
    fn among_equals_the_name_decides() {
        let mut owners = Owners::default();
        owners.claim(CLAIM, of(1, "b/b"));
        owners.claim(CLAIM, of(1, "a/b"));
        owners.claim(CLAIM, of(1, "a/a"));
        assert!(owners.owns(CLAIM, &key("a/a"), "http"));
        owners.release(CLAIM, &of(1, "b/b"));
        owners.release(CLAIM, &of(1, "a/a"));
        assert!(owners.owns(CLAIM, &key("a/b"), "http"));
        owners.release(CLAIM, &of(1, "a/b"));
        assert!(!owners.owns(CLAIM, &key("a/b"), "http"));
    }
}
