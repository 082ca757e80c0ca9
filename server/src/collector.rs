//! What is counted only when somebody asks: how much there is, and how fresh it is.

use std::sync::Arc;
use std::time::Instant;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::serve::Shared;

/// The journal, to be measured.
#[derive(Debug)]
pub(crate) struct State(pub(crate) Arc<Shared>);

impl Collector for State {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let journal = self.0.journal();
        let (services, endpoints) = journal.size();
        let held = journal.held() as f64;
        let staleness = journal.staleness(Instant::now()).as_secs_f64();
        for (name, help, value) in [
            ("services", "Services that agents are told of", services as f64),
            ("endpoints", "Endpoints of these services", endpoints as f64),
            ("held_removals", "Objects that are kept although a list did not have them any more", held),
            ("source_staleness_seconds", "Since the source was last known to be up to date", staleness),
        ] {
            let gauge = ConstGauge::new(value);
            let name = format!("distributary_server_{name}");
            gauge.encode(encoder.encode_descriptor(&name, help, None, gauge.metric_type())?)?;
        }
        let fleet = self.0.fleet();
        for (name, help, histogram) in [
            ("change_sent_seconds", "From a commit until it went to an agent that follows", &fleet.sent),
            (
                "change_acked_seconds",
                "From a commit until an agent said that it is in its kernel",
                &fleet.acked,
            ),
            (
                "agent_programming_seconds",
                "From a frame's receipt until it was in the kernel, by the agents' clocks",
                &fleet.programming,
            ),
        ] {
            let name = format!("distributary_server_{name}");
            let mut metric = encoder.encode_descriptor(&name, help, None, MetricType::Histogram)?;
            metric.encode_histogram::<NoLabelSet>(
                histogram.sum(),
                histogram.count(),
                &histogram.buckets(),
                None,
            )?;
        }
        Ok(())
    }
}
