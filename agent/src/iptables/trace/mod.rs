//! What becomes of a packet by the rules of a dump, whoever wrote them: which endpoints the first packet of a connection
//! may go to, how probably, and whether it is masqueraded or refused.
//!
//! It reads nat and filter. It understands everything that kube-proxy and we write, and much of what others do; of a
//! rule that it does not understand, and that decides, it says so and does not guess.

mod chain;
mod condition;
mod rule;
mod walk;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

use distributary_model::{Name, Protocol};
use ipnet::IpNet;

use super::parse::{Dump, Table};
use chain::Chain;
use condition::Condition;
use walk::Walk;

/// Where a packet comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum From {
    /// A process of this host.
    Host,
    /// A pod, or outside: in by an interface that no rule names.
    Elsewhere,
    /// In by this interface.
    Interface(Name),
}

/// The first packet of a connection.
#[derive(Clone, Debug)]
pub struct Packet {
    /// Whether nat sees it in OUTPUT or PREROUTING.
    pub from: From,
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Protocol.
    pub protocol: Protocol,
    /// Destination port.
    pub port: u16,
}

/// What becomes of a packet.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fate {
    /// Where it goes, how probable that is, and whether it is masqueraded. Sorted.
    pub to: Vec<(SocketAddr, f64, bool)>,
    /// It may be refused: `REJECT` (with another answer than port unreachable: and that) or `DROP`.
    pub refused: Option<String>,
    /// The built-in chain in which it is refused.
    pub refused_in: Option<&'static str>,
    /// How probable it is that it is left alone.
    pub left_alone: f64,
    /// How probable it is that a rule of the filter table accepts it, whatever the policy is.
    pub accepted: f64,
    /// Lists that remember the client of an endpoint.
    pub lists: BTreeMap<SocketAddr, Name>,
    /// The first rule that decides and is not understood.
    pub unknown: Option<String>,
}

/// What of the host decides beside its rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Its addresses. The loopback ones are always among them.
    pub addresses: BTreeSet<IpAddr>,
    /// Lists of the recent match that know the client, and for how many seconds.
    pub remembered: BTreeMap<Name, u32>,
}

impl Host {
    fn has(&self, address: IpAddr) -> bool {
        address.is_loopback() || self.addresses.contains(&address)
    }
}

/// The rules of one family, ready to be asked.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    chains: Vec<Chain>,
    names: HashMap<(Table, Name), usize>,
}

impl Rules {
    /// Of everything in a dump.
    pub fn read(dump: &Dump<'_>) -> Self {
        let mut rules = Self::default();
        let tables = || [Table::Nat, Table::Filter].into_iter();
        for (table, (name, _)) in tables().flat_map(|table| dump.chains(table).map(move |one| (table, one))) {
            let next = rules.names.len();
            rules.names.insert((table, name.into()), next);
        }
        for (table, (name, lines)) in
            tables().flat_map(|table| dump.chains(table).map(move |one| (table, one)))
        {
            let chain = |name: &str| rules.names.get(&(table, name.into())).copied();
            let policy = dump.policy(table, name);
            let read = lines.iter().map(|line| rule::read(line, name, chain)).collect();
            rules.chains.push(Chain::new(read, policy == Some("DROP")));
        }
        rules
    }

    /// What becomes of a packet that comes in, or that this host sends.
    pub fn fate(&self, host: &Host, packet: &Packet) -> Fate {
        Walk::new(self, host, packet).fate()
    }

    /// The destinations that rules name: an address, or none where it is any, with a protocol and a port; and what a
    /// comment says of it.
    pub fn destinations(&self) -> BTreeMap<(Option<IpAddr>, Protocol, u16), &str> {
        let rules = self.chains.iter().flat_map(Chain::all);
        rules
            .filter_map(|rule| {
                let address = rule.conditions.iter().find_map(Condition::address);
                let protocol = rule.conditions.iter().find_map(Condition::protocol)?;
                let port = rule.conditions.iter().find_map(Condition::port)?;
                Some(((address, protocol, port), rule.comment.as_deref().unwrap_or_default()))
            })
            .collect()
    }

    /// The sources that rules of a nat chain let through.
    pub fn sources(&self, chain: &str) -> Vec<IpNet> {
        let rules = self.chain(Table::Nat, chain).into_iter().flat_map(Chain::all);
        rules.flat_map(|rule| rule.conditions.iter().find_map(Condition::source)).collect()
    }

    fn chain(&self, table: Table, name: &str) -> Option<&Chain> {
        self.names.get(&(table, name.into())).and_then(|&at| self.chains.get(at))
    }
}

#[cfg(test)]
mod tests;
