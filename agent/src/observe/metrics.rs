//! What an observing agent counts.

use std::collections::BTreeMap;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::difference::{Kind, OfKind};
use crate::metrics::Metrics;

/// What comparisons found.
#[derive(Clone, Debug)]
pub struct Observed {
    differences: Family<OfKind, Gauge>,
    /// Destinations of the last comparison.
    pub destinations: Gauge,
    /// Comparisons.
    pub comparisons: Counter,
    /// Services that are held.
    pub services: Gauge,
}

impl Observed {
    /// Registers every series, and of the others those that mean something where nothing is written.
    pub fn register(registry: &mut Registry, others: &Metrics) -> Self {
        let registry = registry.sub_registry_with_prefix("distributary_agent");
        let this = Self {
            differences: Family::default(),
            destinations: Gauge::default(),
            comparisons: Counter::default(),
            services: others.services.clone(),
        };
        registry.register("connected", "1 while in step with a server", others.connected.clone());
        registry.register("services", "Services that are held", this.services.clone());
        registry.register(
            "observed_differences",
            "Destinations that the kernel's rules treat otherwise than ours would, seen twice in a row",
            this.differences.clone(),
        );
        registry.register(
            "observed_destinations",
            "Destinations that the last comparison looked at",
            this.destinations.clone(),
        );
        registry.register(
            "observed_comparisons",
            "Comparisons with what the kernel holds",
            this.comparisons.clone(),
        );
        this.set_differences(&BTreeMap::new());
        this
    }

    /// How many differences there are of each kind.
    pub fn set_differences(&self, counts: &BTreeMap<Kind, usize>) {
        for kind in Kind::ALL {
            let count = counts.get(&kind).copied().unwrap_or(0);
            self.differences.get_or_create(&OfKind { kind }).set(count.try_into().unwrap_or(i64::MAX));
        }
    }
}
