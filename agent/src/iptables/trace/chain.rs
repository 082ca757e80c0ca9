//! A chain, so that a packet need not pass all rules of a long one: those that let only one destination through are
//! found by it.

use std::collections::HashMap;
use std::net::IpAddr;

use super::condition::Condition;
use super::rule::Rule;

/// A chain that is not longer is gone through.
const SHORT: usize = 16;

#[derive(Clone, Debug)]
pub(super) struct Chain {
    rules: Vec<Rule>,
    /// The policy of a built-in one.
    pub(super) drops: bool,
    lookup: Option<Lookup>,
}

/// Numbers of rules, in order.
#[derive(Clone, Debug, Default)]
struct Lookup {
    by_address: HashMap<IpAddr, Vec<usize>>,
    /// Of those for no one address.
    by_port: HashMap<u16, Vec<usize>>,
    others: Vec<usize>,
}

impl Chain {
    pub(super) fn new(rules: Vec<Rule>, drops: bool) -> Self {
        let lookup = (rules.len() > SHORT).then(|| Lookup::new(&rules));
        Self { rules, drops, lookup }
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Rule> {
        self.rules.iter()
    }

    /// The rules that can match a packet for that destination, in order.
    pub(super) fn rules(&self, address: IpAddr, port: u16) -> Box<dyn Iterator<Item = &Rule> + '_> {
        match &self.lookup {
            None => Box::new(self.rules.iter()),
            Some(lookup) => {
                Box::new(lookup.find(address, port).into_iter().filter_map(|at| self.rules.get(at)))
            }
        }
    }
}

impl Lookup {
    fn new(rules: &[Rule]) -> Self {
        let mut lookup = Self::default();
        for (at, rule) in rules.iter().enumerate() {
            let address = rule.conditions.iter().find_map(Condition::address);
            let port = rule.conditions.iter().find_map(Condition::port);
            match (address, port) {
                (Some(address), _) => lookup.by_address.entry(address).or_default().push(at),
                (None, Some(port)) => lookup.by_port.entry(port).or_default().push(at),
                (None, None) => lookup.others.push(at),
            }
        }
        lookup
    }

    fn find(&self, address: IpAddr, port: u16) -> Vec<usize> {
        let exact = [self.by_address.get(&address), self.by_port.get(&port)];
        let mut found: Vec<usize> =
            exact.into_iter().flatten().chain([&self.others]).flatten().copied().collect();
        found.sort_unstable();
        found
    }
}
