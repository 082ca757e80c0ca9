//! What the agents of this replica have: how far their kernels are, and how long it took (stream rule 5.2). Pure.
//!
//! All times are of this process's own monotonic clock, but for those that agents measured by theirs.

mod histogram;
mod report;
mod verdict;

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use distributary_model::{Key, Name, Revision};

use crate::journal::Journal;

pub use histogram::Histogram;
pub use report::{Laggard, Refusing, Report, Took};
pub use verdict::{Answer, Lack, Receipt, Verdict, verdict};

/// So many commits are remembered with their time: half a minute of the most that there can be.
const COMMITS: usize = 2_048;

/// The agents of this replica.
#[derive(Debug, Default)]
pub struct Fleet {
    agents: BTreeMap<Name, Agent>,
    streams: u64,
    commits: VecDeque<(Revision, Instant)>,
    /// From a commit until it went to an agent that followed.
    pub sent: Histogram,
    /// From the oldest commit that an ack was the first to cover until that ack.
    pub acked: Histogram,
    /// From receipt to kernel, by the agents' clocks.
    pub programming: Histogram,
}

#[derive(Debug)]
struct Agent {
    stream: StreamId,
    since: Instant,
    /// Its kernel has everything up to there, but for what it refuses.
    acked: Option<Revision>,
    /// What its kernel refuses, with the reason.
    refused: Vec<(String, String)>,
}

/// One stream among all that there were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamId(u64);

impl Fleet {
    /// A commit was made.
    pub fn committed(&mut self, revision: Revision, now: Instant) {
        self.commits.push_back((revision, now));
        if self.commits.len() > COMMITS {
            self.commits.pop_front();
        }
    }

    /// The agent of a node has come. It may have another stream, which it is about to leave: what its kernel has, it has.
    pub fn connected(&mut self, node: &Name, now: Instant) -> StreamId {
        self.streams += 1;
        let stream = StreamId(self.streams);
        let agent = self.agents.entry(node.clone());
        let new = || Agent { stream, since: now, acked: None, refused: Vec::new() };
        agent.or_insert_with(new).stream = stream;
        stream
    }

    /// A stream has ended.
    pub fn disconnected(&mut self, node: &Name, stream: StreamId) {
        if self.agents.get(node).is_some_and(|agent| agent.stream == stream) {
            self.agents.remove(node);
        }
    }

    /// A commit went to an agent that has everything before it.
    pub fn told(&mut self, revision: Revision, now: Instant) {
        if let Some(at) = self.committed_at(revision) {
            self.sent.observe(now.saturating_duration_since(at));
        }
    }

    /// An agent's kernel has everything up to that revision, but for what it refuses.
    pub fn acked(&mut self, node: &Name, ack: Acked, now: Instant) {
        let Acked { stream, through, programming, refused } = ack;
        let Some(agent) = self.agents.get_mut(node).filter(|agent| agent.stream == stream) else { return };
        let before = agent.acked.replace(through);
        agent.refused = refused;
        // What an agent has from before it came says nothing of how long it took.
        let Some(before) = before.filter(|before| *before < through) else { return };
        self.programming.observe(programming);
        if let Some(at) = self.committed_at(before.next()) {
            self.acked.observe(now.saturating_duration_since(at));
        }
    }

    /// How many agents there are.
    pub fn len(&self) -> usize {
        self.agents.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.agents.is_empty()
    }

    /// Who has the newest content of a record in its kernel.
    pub fn receipt(&self, key: &Key, journal: &Journal) -> Receipt {
        let needed = journal.changed_at(key);
        let name = key.to_string();
        let (mut has, mut lacks) = (Vec::new(), Vec::new());
        for (node, agent) in &self.agents {
            let refused = agent.refused.iter().find(|(service, _)| *service == name);
            let why = match (agent.acked, refused) {
                (_, Some((_, message))) => format!("its kernel refuses it: {message}"),
                (Some(acked), None) if acked >= needed => {
                    has.push(node.to_string());
                    continue;
                }
                _ => "it is not in its kernel yet".to_owned(),
            };
            lacks.push(Lack { node: node.to_string(), why });
        }
        let content = journal.cluster().table().get(key).map(|held| held.hash.to_string());
        Receipt { epoch: journal.epoch().to_string(), listed: journal.listed(), content, has, lacks }
    }

    /// How this replica stands.
    pub fn report(&self, journal: &Journal, now: Instant) -> Report {
        Report::of(self, journal, now)
    }

    /// Those whose kernels are behind, and since when, the furthest first.
    fn behind(&self, newest: Revision, now: Instant) -> Vec<(&Name, Option<Revision>, Duration)> {
        // Of a commit that is forgotten it is known that it is older than all that are not.
        let oldest = self.commits.front().map(|(_, at)| *at);
        let lagging = self.agents.iter().filter(|(_, agent)| agent.acked < Some(newest));
        let mut all: Vec<_> = lagging
            .map(|(node, agent)| {
                let missing = agent.acked.and_then(|acked| self.committed_at(acked.next()).or(oldest));
                let since = missing.unwrap_or(agent.since);
                (node, agent.acked, now.saturating_duration_since(since))
            })
            .collect();
        all.sort_by(|a, b| b.2.cmp(&a.2).then_with(|| a.0.cmp(b.0)));
        all
    }

    /// `None` where it is forgotten.
    fn committed_at(&self, revision: Revision) -> Option<Instant> {
        let place = self.commits.partition_point(|(of, _)| *of < revision);
        self.commits.get(place).filter(|(of, _)| *of == revision).map(|(_, at)| *at)
    }
}

/// What an agent said of its kernel.
#[derive(Clone, Debug)]
pub struct Acked {
    /// In this stream.
    pub stream: StreamId,
    /// Everything up to there is in it.
    pub through: Revision,
    /// How long that took, by the agent's clock.
    pub programming: Duration,
    /// But for these, with the reason.
    pub refused: Vec<(String, String)>,
}

#[cfg(test)]
mod tests;
