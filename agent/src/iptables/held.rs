//! What the kernel holds of ours and of kube-proxy's.

use std::collections::BTreeMap;

use distributary_model::Name;

use super::chain::{Chain, TextHash};
use super::parse::Table;

pub(super) type Id = (Table, Name);

/// A chain as the kernel holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) hash: TextHash,
    pub(super) rules: usize,
}

impl From<&Chain> for Held {
    fn from(chain: &Chain) -> Self {
        Self { hash: chain.hash(), rules: chain.rules }
    }
}

/// Every such chain.
#[derive(Debug, Default)]
pub(super) struct Kernel {
    chains: BTreeMap<Id, Held>,
    nat: usize,
    filter: usize,
}

impl Kernel {
    pub(super) fn get(&self, id: &Id) -> Option<&Held> {
        self.chains.get(id)
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = &Id> {
        self.chains.keys()
    }

    /// How many rules of ours a table has.
    pub(super) fn rules(&self, table: Table) -> usize {
        match table {
            Table::Nat => self.nat,
            Table::Filter => self.filter,
            Table::Mangle => 0,
        }
    }

    /// It holds this now; `None`: the chain no more.
    pub(super) fn set(&mut self, id: Id, held: Option<Held>) {
        let table = id.0;
        let was = match held {
            Some(held) => self.chains.insert(id, held),
            None => self.chains.remove(&id),
        };
        let of = |held: Option<Held>| held.map_or(0, |held| held.rules);
        let rules = match table {
            Table::Nat => &mut self.nat,
            Table::Filter => &mut self.filter,
            Table::Mangle => return,
        };
        *rules = *rules + of(held) - of(was);
    }
}
