//! Which server next (stream rule 4.6).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use distributary_model::{Candidate, Name};
use sha2::{Digest, Sha256};

use super::dial::Server;

/// What is known of servers, and how it went with them.
#[derive(Debug)]
pub struct Choice {
    node: Name,
    /// Of the command line, as far as their names are resolved.
    told: Vec<Server>,
    /// Named by servers.
    named: Vec<Candidate>,
    zone: Name,
    /// Tried since one was found.
    tried: BTreeSet<String>,
    /// Not to be tried before that.
    not_before: BTreeMap<String, Instant>,
}

/// What came of a choice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// This one.
    Now(Server),
    /// None before that.
    At(Instant),
    /// None is known.
    Nobody,
}

impl Choice {
    /// For a node.
    pub fn new(node: Name) -> Self {
        Self {
            node,
            told: Vec::new(),
            named: Vec::new(),
            zone: Name::default(),
            tried: BTreeSet::new(),
            not_before: BTreeMap::new(),
        }
    }

    /// The servers of the command line.
    pub fn told(&mut self, servers: Vec<Server>) {
        self.told = servers;
    }

    /// The servers that a server named.
    pub fn named(&mut self, candidates: &[Candidate]) {
        if self.named == candidates {
            return;
        }
        self.named = candidates.to_vec();
        let known: BTreeSet<String> = self.ranked().into_iter().map(|server| server.address).collect();
        self.not_before.retain(|address, _| known.contains(address));
        self.tried.retain(|address| known.contains(address));
    }

    /// The zone of the node.
    pub fn zone(&mut self, zone: Name) {
        self.zone = zone;
    }

    /// Everyone, in the order in which this node tries them: those of its own zone first, then by rendezvous hash, so that
    /// nodes spread over servers by their capacity and few move when one comes or goes.
    pub fn ranked(&self) -> Vec<Server> {
        let mut ranked: Vec<(bool, f64, Server)> = Vec::new();
        for Candidate { address, zone, capacity } in &self.named {
            let far = self.zone.is_empty() || *zone != self.zone;
            ranked.push((far, self.rank(address, *capacity), Server::new(&**address)));
        }
        for server in &self.told {
            if !self.named.iter().any(|named| *named.address == *server.address) {
                ranked.push((true, self.rank(&server.address, 1), server.clone()));
            }
        }
        ranked.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)).then_with(|| a.2.cmp(&b.2)));
        ranked.dedup_by(|a, b| a.2.address == b.2.address);
        ranked.into_iter().map(|(_, _, server)| server).collect()
    }

    /// The less, the sooner: a draw of the exponential distribution with the capacity as its rate.
    fn rank(&self, address: &str, capacity: u32) -> f64 {
        let mut hash = Sha256::new();
        hash.update(self.node.as_bytes());
        hash.update([0]);
        hash.update(address.as_bytes());
        let bits = hash.finalize().iter().take(8).fold(0_u64, |bits, byte| bits << 8 | u64::from(*byte));
        let share = ((bits >> 11) as f64 + 1.0) / (1_u64 << 53) as f64;
        -share.ln() / f64::from(capacity.max(1))
    }

    /// The best one that was not tried yet, but for those at `avoid`. When all were, it begins anew.
    pub fn next(&mut self, now: Instant, avoid: Option<&str>) -> Next {
        let ranked = self.ranked();
        let ranked = ranked.iter().filter(|server| Some(&*server.address) != avoid);
        let open = |server: &&&Server| self.not_before.get(&server.address).is_none_or(|at| *at <= now);
        let open: Vec<&Server> = ranked.clone().filter(|server| open(&server)).collect();
        let next = open.iter().find(|server| !self.tried.contains(&server.address));
        if let Some(next) = next {
            self.tried.insert(next.address.clone());
            return Next::Now((*next).clone());
        }
        if let Some(first) = open.first() {
            self.tried = [first.address.clone()].into();
            return Next::Now((*first).clone());
        }
        let soonest = ranked.filter_map(|server| self.not_before.get(&server.address)).min();
        soonest.map_or(Next::Nobody, |at| Next::At(*at))
    }

    /// This one is not to be tried before that.
    pub fn not_before(&mut self, address: &str, at: Instant) {
        self.not_before.insert(address.to_owned(), at);
    }

    /// This one did not do: the others come first.
    pub fn failed(&mut self, address: &str) {
        self.tried.insert(address.to_owned());
    }

    /// One was found: whoever failed before may be tried again.
    pub fn found(&mut self, address: &str) {
        self.tried.clear();
        self.not_before.remove(address);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn candidate(address: &str, zone: &str, capacity: u32) -> Candidate {
        Candidate { address: address.into(), zone: zone.into(), capacity }
    }

    fn first(node: usize, zone: &str, named: &[Candidate]) -> String {
        let mut choice = Choice::new(format!("node-{node}").into());
        choice.named(named);
        choice.zone(zone.into());
        choice.ranked()[0].address.clone()
    }

    fn share(of: &str, zone: &str, named: &[Candidate]) -> f64 {
        (0..4_000).filter(|node| first(*node, zone, named) == of).count() as f64 / 4_000.0
    }

    #[test]
    fn rule_4_6_nodes_spread_by_capacity() {
        let named = [candidate("a:1", "", 1), candidate("b:1", "", 1), candidate("c:1", "", 2)];
        for (of, wanted) in [("a:1", 0.25), ("b:1", 0.25), ("c:1", 0.5)] {
            let share = share(of, "", &named);
            assert!((share - wanted).abs() < 0.03, "{of} has {share}");
        }
    }

    #[test]
    fn rule_4_6_few_nodes_move_when_a_server_comes_or_goes() {
        let three = [candidate("a:1", "", 1), candidate("b:1", "", 1), candidate("c:1", "", 1)];
        for node in 0..500 {
            let with = first(node, "", &three);
            if with != "c:1" {
                assert_eq!(first(node, "", &three[..2]), with);
            }
        }
    }

    #[test]
    fn rule_4_6_the_own_zone_comes_first_and_flags_last_resort_is_not_lost() {
        let named = [candidate("a:1", "x", 1), candidate("b:1", "y", 100)];
        assert!((share("a:1", "x", &named) - 1.0).abs() < f64::EPSILON);
        let mut choice = Choice::new("n1".into());
        choice.told(vec![Server::new("told:1"), Server::new("a:1")]);
        choice.named(&named);
        choice.zone("x".into());
        let ranked: Vec<String> = choice.ranked().into_iter().map(|server| server.address).collect();
        assert_eq!((ranked.len(), &*ranked[0]), (3, "a:1"));
    }

    #[test]
    fn rule_4_6_each_is_tried_once_before_any_is_tried_again() {
        let mut choice = Choice::new("n1".into());
        let now = Instant::now();
        assert_eq!(choice.next(now, None), Next::Nobody);
        choice.named(&[candidate("a:1", "", 1), candidate("b:1", "", 1), candidate("c:1", "", 1)]);
        let mut tried = || match choice.next(now, None) {
            Next::Now(server) => server.address,
            other => panic!("{other:?}"),
        };
        let round: BTreeSet<String> = [tried(), tried(), tried()].into();
        assert_eq!(round.len(), 3);
        let again = tried();
        assert_eq!(Some(&again), choice.ranked().first().map(|server| &server.address));
        let later = now + Duration::from_secs(9);
        ["a:1", "b:1", "c:1"].iter().for_each(|address| choice.not_before(address, later));
        assert_eq!(choice.next(now, None), Next::At(later));
        choice.found("b:1");
        assert_eq!(choice.next(now, Some("b:1")), Next::At(later));
        assert_eq!(choice.next(now, None), Next::Now(Server::new("b:1")));
    }
}
