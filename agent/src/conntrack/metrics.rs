//! The series of the passes, by kube-proxy's names (spec/kube-proxy.md §6).

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::plan;

/// What the passes count.
#[derive(Clone, Debug)]
pub struct Metrics {
    took: Family<Label, Histogram>,
    deleted: Family<Label, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Label {
    ip_family: &'static str,
}

impl Label {
    fn of(family: plan::Family) -> Self {
        let ip_family = match family {
            plan::Family::V4 => "IPv4",
            plan::Family::V6 => "IPv6",
        };
        Self { ip_family }
    }
}

impl Metrics {
    /// Registers the series, in which every family is from the start.
    pub fn register(registry: &mut Registry, families: impl IntoIterator<Item = plan::Family>) -> Self {
        let registry = registry.sub_registry_with_prefix("kubeproxy_conntrack_reconciler");
        let this = Self {
            took: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.001, 2.0, 15))),
            deleted: Family::default(),
        };
        for family in families {
            drop(this.took.get_or_create(&Label::of(family)));
            drop(this.deleted.get_or_create(&Label::of(family)));
        }
        registry.register(
            "sync_duration_seconds",
            "One pass over the UDP flows of a family",
            this.took.clone(),
        );
        registry.register("deleted_entries", "UDP flows that were deleted", this.deleted.clone());
        this
    }

    /// A pass ended.
    pub(super) fn passed(&self, family: plan::Family, took: std::time::Duration, deleted: u64) {
        self.took.get_or_create(&Label::of(family)).observe(took.as_secs_f64());
        self.deleted.get_or_create(&Label::of(family)).inc_by(deleted);
    }
}
