//! kube-proxy's series under its own names (spec/kube-proxy.md §6), so that dashboards and alerts go on working. What
//! each name means here stands at its field.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family as Labelled;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::iptables::Counts;
use crate::plan::Family;
use crate::sync::mailbox::Mailbox;

/// The label of series that each address family has.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OfFamily {
    ip_family: &'static str,
}

impl From<Family> for OfFamily {
    fn from(family: Family) -> Self {
        Self { ip_family: family.as_str() }
    }
}

/// The labels of rule counts.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfTable {
    ip_family: &'static str,
    table: &'static str,
}

/// The labels of service ports without a local endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfPolicy {
    ip_family: &'static str,
    traffic_policy: &'static str,
}

/// The label of answers.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfCode {
    code: u16,
}

/// A duration, of each family.
pub type Durations = Labelled<OfFamily, Histogram, fn() -> Histogram>;

/// Durations of work on the node: from 1 ms on in 15 doublings.
pub fn work() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 15))
}

/// Durations from the change of an endpoint until it is in the kernel: up to five minutes.
pub fn network_programming() -> Histogram {
    let steps = |from: u32, to: u32, by: usize| (from..=to).step_by(by).map(f64::from);
    let first = [0.25, 0.5].into_iter();
    Histogram::new(first.chain(steps(1, 59, 1)).chain(steps(60, 115, 5)).chain(steps(120, 300, 30)))
}

/// What came of bringing one family's rules to the kernel once: what kube-proxy calls a sync.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    /// All rules were compared: the first time, after an error, or because rules had been lost or changed. Else only
    /// what was touched.
    pub full: bool,
    /// How long it took.
    pub took: Duration,
    /// Processes that wrote and failed.
    pub failures: u64,
    /// The kernel has everything but for what was rejected.
    pub succeeded: bool,
}

/// kube-proxy's series, but for conntrack's.
#[derive(Clone, Debug)]
pub struct KubeProxy {
    /// Every pass of a family.
    sync: Durations,
    /// Passes that compared all rules.
    sync_full: Durations,
    /// Passes that looked only at what was touched.
    sync_partial: Durations,
    /// When the last pass that succeeded ended.
    last: Labelled<OfFamily, Gauge<f64, AtomicU64>>,
    /// From the trigger that the endpoints controller notes to the kernel.
    pub network_programming: Durations,
    /// Services whose endpoints differ from those before, as batches are taken up. The agent sees merged records, so
    /// several slice events of one Service that wait together count once.
    endpoint_changes: Counter,
    /// Services that came, went, or whose own fields differ, counted in the same way.
    service_changes: Counter,
    /// Counted in the plan of the newest pass; a service port without external addresses is not (§11 WART-11).
    no_local_endpoints: Labelled<OfPolicy, Gauge>,
    /// Rules of ours that the kernel holds.
    iptables_total: Labelled<OfTable, Gauge>,
    /// Rules of the last write that there was. What a pass does not touch is not written, so this is small where
    /// kube-proxy's is large.
    iptables_last: Labelled<OfTable, Gauge>,
    /// `iptables-restore` processes that failed, those that search for a refused service among them.
    restore_failures: Labelled<OfFamily, Counter>,
    /// Passes that looked only at what was touched, and in which a write failed.
    partial_restore_failures: Labelled<OfFamily, Counter>,
    /// Answers of /healthz.
    healthz: Labelled<OfCode, Counter>,
    /// Answers of /livez.
    livez: Labelled<OfCode, Counter>,
}

impl KubeProxy {
    /// Registers every series.
    pub fn register(registry: &mut Registry) -> Self {
        let registry = registry.sub_registry_with_prefix("kubeproxy");
        let durations = || Durations::new_with_constructor(work);
        let this = Self {
            sync: durations(),
            sync_full: durations(),
            sync_partial: durations(),
            last: Labelled::default(),
            network_programming: Durations::new_with_constructor(network_programming),
            endpoint_changes: Counter::default(),
            service_changes: Counter::default(),
            no_local_endpoints: Labelled::default(),
            iptables_total: Labelled::default(),
            iptables_last: Labelled::default(),
            restore_failures: Labelled::default(),
            partial_restore_failures: Labelled::default(),
            healthz: Labelled::default(),
            livez: Labelled::default(),
        };
        this.register_syncs(registry);
        this.register_rules(registry);
        let healthz = "Answers of /healthz of the proxy health server, by status code";
        registry.register("proxy_healthz", healthz, this.healthz.clone());
        let livez = "Answers of /livez of the proxy health server, by status code";
        registry.register("proxy_livez", livez, this.livez.clone());
        this
    }

    fn register_syncs(&self, registry: &mut Registry) {
        let mut durations = |name: &str, help: &str, metric: &Durations| {
            registry.register(name, help, metric.clone());
        };
        durations(
            "sync_proxy_rules_duration_seconds",
            "How long a pass over a family's rules took, whether it succeeded or not",
            &self.sync,
        );
        durations(
            "sync_full_proxy_rules_duration_seconds",
            "How long passes took that compared all rules",
            &self.sync_full,
        );
        durations(
            "sync_partial_proxy_rules_duration_seconds",
            "How long passes took that looked only at what was touched",
            &self.sync_partial,
        );
        durations(
            "network_programming_duration_seconds",
            "From the change of an endpoint until it was in the kernel",
            &self.network_programming,
        );
        registry.register(
            "sync_proxy_rules_last_timestamp_seconds",
            "When the last pass that succeeded ended",
            self.last.clone(),
        );
        registry.register(
            "sync_proxy_rules_endpoint_changes",
            "Services whose endpoints changed",
            self.endpoint_changes.clone(),
        );
        registry.register(
            "sync_proxy_rules_service_changes",
            "Services that came, went or changed",
            self.service_changes.clone(),
        );
        registry.register(
            "sync_proxy_rules_iptables_restore_failures",
            "Writes that the kernel did not take",
            self.restore_failures.clone(),
        );
        registry.register(
            "sync_proxy_rules_iptables_partial_restore_failures",
            "Passes over what was touched in which a write failed",
            self.partial_restore_failures.clone(),
        );
    }

    /// Gauges whose names end like a counter's.
    fn register_rules(&self, registry: &mut Registry) {
        registry.register(
            "sync_proxy_rules_no_local_endpoints_total",
            "Service ports with a Local traffic policy that have endpoints, but none on this node",
            self.no_local_endpoints.clone(),
        );
        registry.register(
            "sync_proxy_rules_iptables_total",
            "Rules that are in the kernel",
            self.iptables_total.clone(),
        );
        registry.register(
            "sync_proxy_rules_iptables_last",
            "Rules that the last write had",
            self.iptables_last.clone(),
        );
    }

    /// A pass ended.
    pub fn pass(&self, family: Family, pass: Pass, now: SystemTime) {
        let (of, took) = (OfFamily::from(family), pass.took.as_secs_f64());
        self.sync.get_or_create(&of).observe(took);
        let kind = if pass.full { &self.sync_full } else { &self.sync_partial };
        kind.get_or_create(&of).observe(took);
        if pass.failures > 0 {
            self.restore_failures.get_or_create(&of).inc_by(pass.failures);
            if !pass.full {
                self.partial_restore_failures.get_or_create(&of).inc();
            }
        }
        if pass.succeeded {
            self.last.get_or_create(&of).set(unix(now));
        }
    }

    /// Services were taken up: so many whose own fields differ from before, so many whose endpoints do.
    pub fn changes(&self, services: u64, endpoints: u64) {
        self.service_changes.inc_by(services);
        self.endpoint_changes.inc_by(endpoints);
    }

    /// What the rules of a family amount to now.
    pub fn rules(&self, family: Family, counts: &Counts) {
        let ip_family = family.as_str();
        let set = |gauge: &Gauge, to: usize| _ = gauge.set(to.try_into().unwrap_or(i64::MAX));
        let tables = [("filter", counts.filter, counts.last_filter), ("nat", counts.nat, counts.last_nat)];
        for (table, owned, written) in tables {
            let of = OfTable { ip_family, table };
            set(&self.iptables_total.get_or_create(&of), owned);
            set(&self.iptables_last.get_or_create(&of), written);
        }
        let policies =
            [("internal", counts.internal_without_local), ("external", counts.external_without_local)];
        for (traffic_policy, ports) in policies {
            set(&self.no_local_endpoints.get_or_create(&OfPolicy { ip_family, traffic_policy }), ports);
        }
    }

    /// /healthz answered.
    pub fn healthz_answered(&self, code: u16) {
        self.healthz.get_or_create(&OfCode { code }).inc();
    }

    /// /livez answered.
    pub fn livez_answered(&self, code: u16) {
        self.livez.get_or_create(&OfCode { code }).inc();
    }
}

/// What waits to be taken up, as it is when somebody asks.
#[derive(Debug)]
pub struct Waiting {
    mailbox: Arc<Mailbox>,
    families: Vec<Family>,
    started: SystemTime,
}

impl Waiting {
    /// In that mailbox, for families that are programmed from `started` on.
    pub fn new(mailbox: Arc<Mailbox>, families: Vec<Family>, started: SystemTime) -> Self {
        Self { mailbox, families, started }
    }
}

impl Collector for Waiting {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        // The newest receipt, also while the kernel is stuck: that queued stays ahead of last is what alerts look at.
        let queued = ConstGauge::new(unix(self.mailbox.newest().unwrap_or(self.started)));
        let mut of_families = encoder.encode_descriptor(
            "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
            "When the last change was received that is to be programmed",
            None,
            queued.metric_type(),
        )?;
        for family in &self.families {
            queued.encode(of_families.encode_family(&OfFamily::from(*family))?)?;
        }
        // Which part of a Service changed is seen when it is taken up; until then it may be both.
        let services = self.mailbox.look(|waiting| waiting.map_or(0, |(batch, _)| batch.services.len()));
        let pending = ConstGauge::new(u64::try_from(services).unwrap_or(u64::MAX));
        for (name, help) in [
            (
                "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
                "Services that wait, for their endpoints",
            ),
            (
                "kubeproxy_sync_proxy_rules_service_changes_pending",
                "Services that wait, for their own fields",
            ),
        ] {
            pending.encode(encoder.encode_descriptor(name, help, None, pending.metric_type())?)?;
        }
        Ok(())
    }
}

fn unix(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use distributary_model::testing as t;
    use prometheus_client::encoding::text::encode;

    use super::*;
    use crate::sync::Batch;

    fn text(registry: &Registry) -> String {
        let mut text = String::new();
        encode(&mut text, registry).unwrap();
        text
    }

    #[test]
    fn names_types_and_labels_are_kube_proxys() {
        let mut registry = Registry::default();
        let series = KubeProxy::register(&mut registry);
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis(1_500);
        let (took, full) = (Duration::from_millis(3), true);
        series.pass(Family::V4, Pass { full, took, failures: 0, succeeded: true }, now);
        series.pass(Family::V6, Pass { full: false, took, failures: 2, succeeded: false }, now);
        series.rules(
            Family::V4,
            &Counts { nat: 5, last_nat: 2, external_without_local: 1, ..Counts::default() },
        );
        series.changes(3, 4);
        series.healthz_answered(503);
        series.network_programming.get_or_create(&Family::V4.into()).observe(0.3);
        let text = text(&registry);
        for line in [
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{le=\"0.004\",ip_family=\"IPv4\"} 1",
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{le=\"16.384\",ip_family=\"IPv6\"} 1",
            "kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 1",
            "kubeproxy_sync_partial_proxy_rules_duration_seconds_count{ip_family=\"IPv6\"} 1",
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv4\"} 1.5",
            "kubeproxy_network_programming_duration_seconds_bucket{le=\"0.5\",ip_family=\"IPv4\"} 1",
            "kubeproxy_network_programming_duration_seconds_bucket{le=\"300.0\",ip_family=\"IPv4\"} 1",
            "kubeproxy_sync_proxy_rules_endpoint_changes_total 4",
            "kubeproxy_sync_proxy_rules_service_changes_total 3",
            "kubeproxy_sync_proxy_rules_iptables_restore_failures_total{ip_family=\"IPv6\"} 2",
            "kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total{ip_family=\"IPv6\"} 1",
            "# TYPE kubeproxy_sync_proxy_rules_iptables_total gauge",
            "kubeproxy_sync_proxy_rules_iptables_total{ip_family=\"IPv4\",table=\"nat\"} 5",
            "kubeproxy_sync_proxy_rules_iptables_last{ip_family=\"IPv4\",table=\"nat\"} 2",
            "# TYPE kubeproxy_sync_proxy_rules_no_local_endpoints_total gauge",
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family=\"IPv4\",traffic_policy=\"external\"} 1",
            "kubeproxy_proxy_healthz_total{code=\"503\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\nis not in\n{text}");
        }
        let of_programming =
            text.lines().filter(|line| line.contains("network_programming_duration_seconds_bucket"));
        assert_eq!(of_programming.count(), 2 + 59 + 12 + 7 + 1);
    }

    #[test]
    fn counters_without_a_sample_are_absent() {
        let mut registry = Registry::default();
        let _series = KubeProxy::register(&mut registry);
        let text = text(&registry);
        assert!(
            !text.contains("healthz") && !text.contains("restore_failures") && !text.contains("IPv4"),
            "{text}"
        );
        assert!(text.contains("kubeproxy_sync_proxy_rules_service_changes_total 0"), "{text}");
    }

    #[test]
    fn what_waits_is_counted_while_it_waits() {
        let mailbox = Arc::new(Mailbox::default());
        let mut registry = Registry::default();
        let started = SystemTime::UNIX_EPOCH + Duration::from_secs(7);
        let waiting = Waiting::new(mailbox.clone(), vec![Family::V4, Family::V6], started);
        registry.register_collector(Box::new(waiting));
        let queued = "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family=\"IPv6\"} 7.0\n";
        assert!(text(&registry).contains(queued));
        assert!(text(&registry).contains("kubeproxy_sync_proxy_rules_service_changes_pending 0\n"));
        mailbox.put(Batch { services: [(t::key("a/b"), None)].into(), ..Batch::default() }, Instant::now());
        assert!(!text(&registry).contains(queued));
        assert!(text(&registry).contains("kubeproxy_sync_proxy_rules_endpoint_changes_pending 1\n"));
    }
}
