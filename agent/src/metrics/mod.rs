//! Every series of the agent: its own here, kube-proxy's in [`kube_proxy`].

pub mod kube_proxy;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

pub use kube_proxy::KubeProxy;

/// What the agent counts.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// 1 while a stream is past its End.
    pub connected: Gauge,
    /// Services that are held.
    pub services: Gauge,
    /// The newest revision that is in the kernel.
    pub revision: Gauge,
    /// Receive to kernel.
    pub programming: Histogram,
    /// Restores.
    pub restores: Counter,
    /// Restores that failed.
    pub restore_failures: Counter,
    /// Chains that were written.
    pub chains_written: Counter,
    /// Records whose newest content the kernel refuses.
    pub rejected: Gauge,
    /// How often lost rules were written again.
    pub restored: Counter,
    /// 1 while nothing is written, as another program writes the same rules.
    pub second_writer: Gauge,
    /// Addresses that more than one service claims.
    pub conflicts: Gauge,
    /// How old the server's knowledge of the API was at its last heartbeat.
    pub staleness: Gauge<f64, AtomicU64>,
    /// Services of which more is programmed than the server has.
    pub held_services: Gauge,
    /// The endpoints of these.
    pub held_endpoints: Gauge,
    /// Checkpoints that could not be saved.
    pub checkpoint_failures: Counter,
    /// What kube-proxy counts, under its names.
    pub kube_proxy: KubeProxy,
    heard: Heard,
}

/// When a server was heard last.
#[derive(Clone, Debug)]
pub struct Heard {
    started: Instant,
    millis: Arc<AtomicU64>,
}

impl Metrics {
    /// Registers every series.
    pub fn register(registry: &mut Registry) -> Self {
        let kube_proxy = KubeProxy::register(registry);
        let registry = registry.sub_registry_with_prefix("distributary_agent");
        let this = Self {
            connected: Gauge::default(),
            services: Gauge::default(),
            revision: Gauge::default(),
            programming: Histogram::new(exponential_buckets(0.001, 2_f64.sqrt(), 30)),
            restores: Counter::default(),
            restore_failures: Counter::default(),
            chains_written: Counter::default(),
            rejected: Gauge::default(),
            restored: Counter::default(),
            second_writer: Gauge::default(),
            conflicts: Gauge::default(),
            staleness: Gauge::default(),
            held_services: Gauge::default(),
            held_endpoints: Gauge::default(),
            checkpoint_failures: Counter::default(),
            kube_proxy,
            heard: Heard { started: Instant::now(), millis: Arc::default() },
        };
        registry.register("connected", "1 while in step with a server", this.connected.clone());
        registry.register("services", "Services that are held", this.services.clone());
        registry.register("revision", "The newest revision that is in the kernel", this.revision.clone());
        registry.register(
            "programming_seconds",
            "From a frame's receipt until it was in the kernel",
            this.programming.clone(),
        );
        registry.register("restores", "Writes to the kernel", this.restores.clone());
        registry.register(
            "restore_failures",
            "Writes that the kernel did not take",
            this.restore_failures.clone(),
        );
        registry.register("chains_written", "Chains that were written", this.chains_written.clone());
        registry.register(
            "rejected_services",
            "Services whose newest content the kernel refuses",
            this.rejected.clone(),
        );
        registry.register(
            "rules_restored",
            "Times that lost rules were written again",
            this.restored.clone(),
        );
        registry.register(
            "second_writer",
            "1 while nothing is written, because another program writes the same rules",
            this.second_writer.clone(),
        );
        registry.register(
            "address_conflicts",
            "Addresses and ports that more than one service claims",
            this.conflicts.clone(),
        );
        registry.register(
            "source_staleness_seconds",
            "Since the server's source was last known to be up to date, as of its last heartbeat",
            this.staleness.clone(),
        );
        registry.register(
            "held_services",
            "Services that have vanished from the server, or their endpoints, and are programmed a while longer",
            this.held_services.clone(),
        );
        registry.register(
            "held_endpoints",
            "Endpoints that such Services are programmed with",
            this.held_endpoints.clone(),
        );
        registry.register(
            "checkpoint_failures",
            "Checkpoints that could not be saved",
            this.checkpoint_failures.clone(),
        );
        registry.register_collector(Box::new(this.heard.clone()));
        this
    }

    /// A server said something.
    pub fn heard(&self) {
        self.heard.millis.store(self.heard.now(), Ordering::Relaxed);
    }

    /// When a server was heard last, as it goes on.
    pub fn last_heard(&self) -> Heard {
        self.heard.clone()
    }
}

impl Heard {
    /// Since a server said something; before the first time, since the start.
    pub fn silence(&self) -> Duration {
        Duration::from_millis(self.now().saturating_sub(self.millis.load(Ordering::Relaxed)))
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Collector for Heard {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let gauge = ConstGauge::new(self.silence().as_secs_f64());
        let help = "Since a server was heard last; the rules stay whatever it is";
        let encoder = encoder.encode_descriptor(
            "distributary_agent_silence_seconds",
            help,
            None,
            gauge.metric_type(),
        )?;
        gauge.encode(encoder)
    }
}
