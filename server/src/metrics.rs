//! Every series that the server counts as it goes; `collector.rs` has those that are counted at the scrape.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// How a stream began.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Mode {
    /// `resume` or `snapshot`
    pub mode: &'static str,
}

/// What the server counts.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Agents with an open stream.
    pub agents: Gauge,
    /// Connections and agents that were not let in.
    pub refused: Counter,
    /// Streams that began, by how.
    pub begun: Family<Mode, Counter>,
    /// Commits that agents were told of.
    pub commits: Counter,
    /// Records in these commits.
    pub records: Counter,
    /// Bytes of the frames of these commits, once, however many agents they went to.
    pub frame_bytes: Counter,
    /// Bytes handed to streams.
    pub sent_bytes: Counter,
    /// Acks that came.
    pub acks: Counter,
    /// Acks that named rejected records.
    pub rejections: Counter,
    /// Objects, or parts of them, that could not be used.
    pub problems: Counter,
    /// The newest commit.
    pub revision: Gauge,
    /// From a commit until the last agent that waited has taken it up.
    pub wave: Histogram,
    /// Streams that were sent away, to come again or to go elsewhere.
    pub throttled: Counter,
}

impl Metrics {
    /// Registers every series.
    pub fn register(registry: &mut Registry) -> Self {
        let registry = registry.sub_registry_with_prefix("distributary_server");
        let this = Self {
            agents: Gauge::default(),
            refused: Counter::default(),
            begun: Family::default(),
            commits: Counter::default(),
            records: Counter::default(),
            frame_bytes: Counter::default(),
            sent_bytes: Counter::default(),
            acks: Counter::default(),
            rejections: Counter::default(),
            problems: Counter::default(),
            revision: Gauge::default(),
            wave: Histogram::new(exponential_buckets(0.001, 2.0, 12)),
            throttled: Counter::default(),
        };
        registry.register("agents", "Agents with an open stream", this.agents.clone());
        registry.register(
            "refused",
            "Connections and agents that were not let in: the log says why",
            this.refused.clone(),
        );
        registry.register("streams_begun", "Streams that began, by how", this.begun.clone());
        registry.register("commits", "Commits that agents were told of", this.commits.clone());
        registry.register("records_changed", "Records that changed in commits", this.records.clone());
        registry.register(
            "frame_bytes",
            "Bytes of the frames of commits, each once",
            this.frame_bytes.clone(),
        );
        registry.register("sent_bytes", "Bytes handed to streams", this.sent_bytes.clone());
        registry.register("acks", "Acks that came from agents", this.acks.clone());
        registry.register(
            "acks_with_rejections",
            "Acks that named rejected records",
            this.rejections.clone(),
        );
        registry.register(
            "object_problems",
            "Objects that could not be used as a whole",
            this.problems.clone(),
        );
        registry.register("revision", "The newest commit", this.revision.clone());
        registry.register(
            "wave_seconds",
            "From a commit until the last agent that waited has taken it up",
            this.wave.clone(),
        );
        registry.register(
            "streams_throttled",
            "Streams that were sent away for a while",
            this.throttled.clone(),
        );
        this
    }
}
