//! How much there is of what, for metrics (spec/kube-proxy.md §6).

use super::{Iptables, Table};

/// Sizes of one family's rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Rules of ours in nat.
    pub nat: usize,
    /// Rules of ours in filter.
    pub filter: usize,
    /// Rules of nat in the last write.
    pub last_nat: usize,
    /// Rules of filter in the last write.
    pub last_filter: usize,
    /// Service ports whose cluster IP is served by local endpoints only, and which have none, but some elsewhere.
    pub internal_without_local: usize,
    /// The same of their external destinations.
    pub external_without_local: usize,
}

impl Iptables {
    /// Sizes as of the last write.
    pub fn counts(&self) -> Counts {
        let [last_nat, last_filter] = self.last;
        Counts {
            nat: self.kernel.rules(Table::Nat),
            filter: self.kernel.rules(Table::Filter),
            last_nat,
            last_filter,
            internal_without_local: self.without_local.internal,
            external_without_local: self.without_local.external,
        }
    }
}
