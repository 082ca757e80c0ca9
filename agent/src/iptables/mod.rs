//! The iptables backend: what is wanted as chains of rules, what the kernel holds of it, and the text for
//! `iptables-restore` that leads from one to the other (spec/layout.md §0, spec/kube-proxy.md §3).
//!
//! Pure: one [`Iptables`] is of one family; somebody else runs the tools. Behaviour and top-level chains are
//! kube-proxy's, so that either takes over from the other; dispatch is a trie, endpoints stand in their service's chain,
//! and only chains whose text differs are written.

mod chain;
mod cleanup;
mod counts;
mod destinations;
#[doc(hidden)]
pub mod fake;
mod fixed;
mod groups;
mod held;
mod lay;
pub mod names;
mod parse;
mod roots;
pub mod rule;
mod service;
mod text;
mod theirs;
pub mod trace;
mod trie;
mod words;

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use distributary_model::{Key, Name, Service};

use crate::plan::{self, Conflict, NodeState, Plan, PortPlan, WithoutLocal};
use chain::Chain;
use fixed::Addition;
use held::{Held, Id, Kernel};
use lay::Laid;
use roots::{Root, Roots};
use trie::EntryKey;

pub use crate::plan::Family;
pub use cleanup::{Scope, cleanup};
pub use counts::Counts;
pub use destinations::destinations;
pub use fixed::{
    CANARY, INVALID_COUNTER, LOCALHOST_COUNTER, WATCHED, is_jump_of_ours, localnet_first, probe,
    probe_counters,
};
pub use parse::{Dump, Table, parse};
pub use text::Write;
pub use theirs::{holds_services, is_kube_proxys, without_canary};

/// Which iptables it is: they differ in what a large write costs (spec/layout.md §5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// A section costs by its chains times its rules: large writes are cut.
    Nft,
    /// A section costs the whole table: a write is never cut.
    Legacy,
}

/// How packets are found that a service sends back to where they come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hairpin {
    /// By one rule: wherever [`probe`] succeeds.
    Bpf,
    /// By a list of the addresses that it can happen to.
    Trie,
}

/// What the rules depend on beside the records.
#[derive(Clone, Debug)]
pub struct Options {
    /// Id of the node's own cluster.
    pub cluster: Name,
    /// The node's name.
    pub node: Name,
    /// All traffic to cluster IPs is masqueraded.
    pub masquerade_all: bool,
    /// Which bit of the packet mark asks for masquerading.
    pub masquerade_bit: u8,
    /// MASQUERADE chooses ports at random.
    pub random_fully: bool,
    /// The kernel was told not to be strict about TCP windows, so INVALID is not dropped.
    pub be_liberal: bool,
    /// The kernel has [`INVALID_COUNTER`] and [`LOCALHOST_COUNTER`].
    pub counters: bool,
    /// Which tool reads the text.
    pub flavour: Flavour,
    /// What [`probe`] found.
    pub hairpin: Hairpin,
    /// So many chains are written in one section at most, where sections are cut. 20 inside a user namespace.
    pub section: usize,
}

impl Options {
    /// kube-proxy's defaults.
    pub fn new(cluster: impl Into<Name>, node: impl Into<Name>) -> Self {
        Self {
            cluster: cluster.into(),
            node: node.into(),
            masquerade_all: false,
            masquerade_bit: 14,
            random_fully: true,
            be_liberal: false,
            counters: false,
            flavour: Flavour::Nft,
            hairpin: Hairpin::Bpf,
            section: 200,
        }
    }

    fn mark(&self) -> u32 {
        plan::mark(self.masquerade_bit)
    }
}

/// One family's rules.
#[derive(Debug)]
pub struct Iptables {
    family: Family,
    options: Options,
    plan: Plan,
    roots: Roots,
    laid: HashMap<Arc<Key>, Laid>,
    /// How the endpoints of a balancing chain are grouped, where they are.
    levels: HashMap<Name, u8>,
    /// By how many Services an address can meet itself.
    hairpins: HashMap<IpAddr, u32>,
    /// Of every chain that is ours or kube-proxy's.
    kernel: Kernel,
    /// Chains that foreign rules jump to: emptied, not deleted.
    pinned: BTreeSet<Id>,
    /// What the kernel lacks in chains that are not ours.
    lacking: Vec<Addition>,
    /// What the kernel refused when it was read.
    found: Vec<(Root, EntryKey)>,
    /// Fixed and stale chains are to be looked at, not only what was touched.
    all: bool,
    outstanding: Option<Outstanding>,
    without_local: WithoutLocal,
    /// Rules of the last write, of nat and filter.
    last: [usize; 2],
}

/// What the kernel holds once the last write is in it.
#[derive(Debug)]
struct Outstanding {
    chains: Vec<(Id, Option<Held>)>,
    additions: Vec<Addition>,
}

impl Iptables {
    /// Wants no Service, and takes the kernel for empty until it is told by [`Iptables::adopt`].
    pub fn new(family: Family, options: Options) -> Self {
        let config = plan::Config {
            family,
            cluster: options.cluster.clone(),
            node: options.node.clone(),
            state: NodeState::default(),
        };
        Self {
            family,
            plan: Plan::new(config),
            roots: Roots::new(family, options.cluster.clone()),
            options,
            laid: HashMap::new(),
            levels: HashMap::new(),
            hairpins: HashMap::new(),
            kernel: Kernel::default(),
            pinned: BTreeSet::new(),
            lacking: fixed::lacking(family, &Dump::default()),
            found: Vec::new(),
            all: true,
            outstanding: None,
            without_local: WithoutLocal::default(),
            last: [0; 2],
        }
    }

    /// Wants this of a Service, or that it is gone.
    pub fn set(&mut self, key: &Arc<Key>, service: Option<Arc<Service>>) {
        self.plan.set(key, service);
    }

    /// What is wanted of a Service.
    pub fn get(&self, key: &Key) -> Option<&Arc<Service>> {
        self.plan.get(key)
    }

    /// What is known of the node.
    pub fn node(&self) -> &NodeState {
        &self.plan.config().state
    }

    /// Another zone, address or detector makes all Services' rules anew; other addresses for node ports do not.
    pub fn set_node(&mut self, state: NodeState) {
        self.all |= *self.node() != state;
        self.roots.set_node_ports(state.node_ports.clone());
        self.plan.set_node(state);
    }

    /// How many Services are wanted.
    pub fn services(&self) -> usize {
        self.plan.services()
    }

    /// What [`probe`] found; nothing if that is what was thought.
    pub fn set_hairpin(&mut self, hairpin: Hairpin) {
        if self.options.hairpin != hairpin {
            self.options.hairpin = hairpin;
            self.plan.touch_all();
            self.all = true;
        }
    }

    /// Rules count in the kernel's accounting objects, or not.
    pub fn set_counters(&mut self, counters: bool) {
        self.all |= self.options.counters != counters;
        self.options.counters = counters;
    }

    /// How many chains a section has at most from now on: in a user namespace the kernel takes small ones only
    /// (spec/layout.md §5).
    pub fn set_section(&mut self, chains: usize) {
        self.options.section = chains.max(1);
    }

    /// Every service port that is wanted, with its Service.
    pub fn ports(&self) -> impl Iterator<Item = (&Arc<Key>, PortPlan)> {
        self.plan.keys().flat_map(|key| self.plan.ports(key).into_iter().map(move |port| (key, port)))
    }

    /// Addresses and node ports that several Services claim.
    pub fn conflicts(&self) -> impl Iterator<Item = Conflict> {
        self.plan.conflicts()
    }

    /// Whose chain it is in the last write.
    pub fn owner(&self, chain: &str) -> Option<&Arc<Key>> {
        self.laid.iter().find(|(_, laid)| laid.chains.iter().any(|name| **name == *chain)).map(|(key, _)| key)
    }

    /// Whether the kernel holds chains of Services, ours or kube-proxy's, as far as it was adopted.
    pub fn holds_services(&self) -> bool {
        self.kernel.ids().any(|(_, name)| names::is_per_service(name) && !names::is_bucket(name))
    }

    /// This is what the kernel holds, whatever was thought before. What of the shape depends on history is read back:
    /// how services are grouped and tries are split.
    pub fn adopt(&mut self, kernel: &Dump<'_>) {
        let of_ours = |table, name: &str| {
            fixed::CHAINS.contains(&(table, name)) || (table != Table::Mangle && names::is_per_service(name))
        };
        self.kernel = Kernel::default();
        self.pinned.clear();
        self.levels.clear();
        for table in Table::ALL {
            for (name, rules) in kernel.chains(table) {
                if of_ours(table, name) {
                    let held = Held::from(&Chain::new(name, rules.iter().copied()));
                    self.kernel.set((table, name.into()), Some(held));
                    let level = rules.iter().find_map(|rule| names::group_level(parse::target(rule)?));
                    self.levels.extend(level.map(|level| (Name::from(name), level)));
                } else {
                    let targets = rules.iter().filter_map(|rule| parse::target(rule));
                    let ours = targets.filter(|target| names::is_per_service(target));
                    self.pinned.extend(ours.map(|target| (table, target.into())));
                }
            }
        }
        self.lacking = fixed::lacking(self.family, kernel);
        self.found = self.roots.adopt(kernel);
        self.laid.clear();
        self.without_local = WithoutLocal::default();
        self.hairpins.clear();
        self.plan.touch_all();
        self.all = true;
        self.outstanding = None;
    }

    /// What leads from what the kernel holds to what is wanted; `None` if that is nothing, or while the last one is
    /// neither [`written`](Self::written) nor the kernel [`adopt`](Self::adopt)ed again.
    pub fn write(&mut self) -> Option<Write> {
        if self.outstanding.is_some() {
            return None;
        }
        let batch = self.lay();
        let write = self.text(&batch);
        self.all = false;
        let write = write?;
        self.last = [Table::Nat, Table::Filter].map(|of| batch.rules(of));
        let mut chains = Vec::new();
        for (table, change) in batch.tables() {
            let written = change.held().map(|(name, held)| (name.clone(), Some(held)));
            let gone = change.gone.iter().map(|name| {
                let pinned = self.pinned.contains(&(table, name.clone()));
                (name.clone(), pinned.then(|| Held::from(&Chain::empty(name))))
            });
            chains.extend(written.chain(gone).map(|(name, held)| ((table, name), held)));
        }
        self.outstanding = Some(Outstanding { chains, additions: self.additions() });
        Some(write)
    }

    /// The last write is in the kernel.
    pub fn written(&mut self) {
        let Some(outstanding) = self.outstanding.take() else { return };
        for (id, held) in outstanding.chains {
            self.kernel.set(id, held);
        }
        self.lacking.retain(|one| !outstanding.additions.contains(one));
    }

    /// What the kernel lacks and should have.
    fn additions(&self) -> Vec<Addition> {
        let localnet = self.node().node_ports.loopback();
        self.lacking.iter().filter(|one| localnet || !one.localnet).cloned().collect()
    }
}

#[cfg(test)]
mod tests;
