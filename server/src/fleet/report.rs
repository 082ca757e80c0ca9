//! How a replica stands, for people.

use std::time::{Duration, Instant};

use distributary_model::{Name, Revision};
use serde::{Deserialize, Serialize};

use super::{Fleet, Histogram};
use crate::journal::Journal;

/// So many names are told.
const NAMES: usize = 20;

/// How a replica stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The process.
    pub epoch: String,
    /// Its version.
    pub version: String,
    /// It knows what there is.
    pub listed: bool,
    /// It is about to end.
    pub leaving: bool,
    /// The newest commit.
    pub revision: u64,
    /// The same on all replicas that have the same.
    pub root: String,
    /// Services.
    pub services: usize,
    /// Their endpoints.
    pub endpoints: usize,
    /// Nodes that the API has.
    pub nodes: usize,
    /// Objects that are kept although a list did not have them any more.
    pub held: usize,
    /// Since the source was last known to be up to date.
    pub stale_seconds: f64,
    /// Agents.
    pub agents: Vec<String>,
    /// Agents whose kernels have the newest commit.
    pub in_step: usize,
    /// From a commit until it went to an agent.
    pub sent: Took,
    /// From a commit until it was in a kernel.
    pub acked: Took,
    /// From receipt to kernel, by the agents' clocks.
    pub programming: Took,
    /// Those that are furthest behind.
    pub laggards: Vec<Laggard>,
    /// Agents whose kernels refuse something.
    pub refusing: Vec<Refusing>,
}

/// How long something took, in seconds; `None`: it did not happen yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Took {
    /// Half of the time.
    pub p50: Option<f64>,
    /// In 99 of 100 cases.
    pub p99: Option<f64>,
    /// In 999 of 1,000 cases.
    pub p999: Option<f64>,
}

impl From<&Histogram> for Took {
    fn from(all: &Histogram) -> Self {
        // JSON has no infinity.
        let quantile = |share| all.quantile(share).map(|seconds| seconds.min(1e9));
        Self { p50: quantile(0.5), p99: quantile(0.99), p999: quantile(0.999) }
    }
}

/// An agent whose kernel is behind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Laggard {
    /// Its node.
    pub node: String,
    /// What it has; `None`: it has said nothing yet.
    pub revision: Option<u64>,
    /// Since when it lacks something.
    pub behind_seconds: f64,
}

/// An agent whose kernel refuses something.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Refusing {
    /// Its node.
    pub node: String,
    /// One of the services.
    pub service: String,
    /// Why.
    pub message: String,
}

impl Report {
    pub(super) fn of(fleet: &Fleet, journal: &Journal, now: Instant) -> Self {
        let (services, endpoints) = journal.size();
        let behind = fleet.behind(journal.revision(), now);
        let laggard = |(node, acked, since): &(&Name, Option<Revision>, Duration)| Laggard {
            node: node.to_string(),
            revision: acked.map(|acked| acked.0),
            behind_seconds: since.as_secs_f64(),
        };
        let refusing = fleet.agents.iter().filter_map(|(node, agent)| {
            let (service, message) = agent.refused.first()?.clone();
            Some(Refusing { node: node.to_string(), service, message })
        });
        Self {
            epoch: journal.epoch().to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            listed: journal.listed(),
            leaving: journal.replicas().leaving().is_some(),
            revision: journal.revision().0,
            root: journal.root().to_string(),
            services,
            endpoints,
            nodes: journal.cluster().nodes().count(),
            held: journal.held(),
            stale_seconds: journal.staleness(now).as_secs_f64(),
            agents: fleet.agents.keys().map(ToString::to_string).collect(),
            in_step: fleet.len() - behind.len(),
            sent: (&fleet.sent).into(),
            acked: (&fleet.acked).into(),
            programming: (&fleet.programming).into(),
            laggards: behind.iter().take(NAMES).map(laggard).collect(),
            refusing: refusing.take(NAMES).collect(),
        }
    }
}
