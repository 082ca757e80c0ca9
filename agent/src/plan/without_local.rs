//! Service ports that have nobody on this node, for metrics (spec/kube-proxy.md §6).

use std::ops::{AddAssign, SubAssign};

use super::PortPlan;

/// Service ports that nobody serves on this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WithoutLocal {
    /// Where the cluster IP goes to local endpoints only.
    pub internal: usize,
    /// Where the other destinations do.
    pub external: usize,
}

impl WithoutLocal {
    /// Of one service port: 0 or 1.
    pub fn of(plan: &PortPlan) -> Self {
        let none = plan.has_any && plan.local.is_empty();
        let external = plan.external_local && plan.is_external();
        Self { internal: usize::from(none && plan.internal_local), external: usize::from(none && external) }
    }
}

impl AddAssign for WithoutLocal {
    fn add_assign(&mut self, other: Self) {
        self.internal += other.internal;
        self.external += other.external;
    }
}

impl SubAssign for WithoutLocal {
    fn sub_assign(&mut self, other: Self) {
        self.internal -= other.internal;
        self.external -= other.external;
    }
}
