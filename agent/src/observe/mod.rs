//! `run --observe`: compares what the agent would program with what the kernel holds, and writes nothing. Beside a
//! kube-proxy that runs, it tells an operator whether anything would change.
//!
//! ```text
//! sync ─► side: our rules, in memory ─┐
//!                                     ├─► compare: the same packets through both ─► history ─► log, metrics
//! iptables-save ─► the kernel's rules ┘
//! ```

mod app;
pub mod compare;
pub mod difference;
pub mod history;
mod metrics;
pub mod probe;
mod side;
mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::bail;
use distributary_model::Revision;
use distributary_runtime::alarm;
use distributary_runtime::ready::Pending;

use crate::host::addresses;
use crate::kernel::Readable;
use crate::node::Facts;
use crate::sync::mailbox::Mailbox;
use crate::sync::session::Batch;
use difference::{Clients, Difference, Kind};
use history::News;

pub use app::run;
pub use metrics::Observed;
pub use side::Side;

/// News come in waves, and kube-proxy takes its time with them, too.
const SETTLE: Duration = Duration::from_secs(3);
/// Where news never end, it is compared all the same.
const IMPATIENCE: Duration = Duration::from_secs(30);
/// What was seen once is looked at again so soon.
const CONFIRM: Duration = Duration::from_secs(15);
/// So many differences are told in full after one comparison.
const TOLD: usize = 100;

/// Compares for as long as it is let.
#[derive(Debug)]
pub struct Observer<K> {
    sides: Vec<(Side, K)>,
    facts: Facts,
    metrics: Observed,
    period: Duration,
    revision: Option<Revision>,
    comparisons: u64,
    /// Differences that the last comparison saw for the first time.
    fresh: usize,
    /// Ready with the first comparison.
    unready: Option<Pending>,
}

impl<K: Readable + 'static> Observer<K> {
    /// Of the families of a node, each with what can be read of its kernel.
    pub fn new(
        sides: Vec<(Side, K)>,
        facts: Facts,
        metrics: Observed,
        period: Duration,
        unready: Pending,
    ) -> Self {
        let unready = Some(unready);
        Self { sides, facts, metrics, period, revision: None, comparisons: 0, fresh: 0, unready }
    }

    /// Compares after news and now and then, until `end`.
    ///
    /// # Errors
    /// At the end: when something differs, or nothing could be compared.
    pub async fn run(mut self, mailbox: Arc<Mailbox>, end: Option<Instant>) -> anyhow::Result<()> {
        let mut due = None;
        let mut since = None;
        loop {
            tokio::select! {
                (batch, _) = mailbox.take() => {
                    self.take(batch);
                    let since = *since.get_or_insert_with(now);
                    due = Some((now() + SETTLE).min(since + IMPATIENCE));
                }
                () = alarm::at(due) => {
                    since = None;
                    let wait = match self.compare().await {
                        Ok(()) if self.fresh == 0 => self.period,
                        Ok(()) => CONFIRM.min(self.period),
                        Err(e) => {
                            tracing::warn!(error = %format!("{e:#}"), "nothing was compared");
                            self.period
                        }
                    };
                    due = Some(now() + wait);
                }
                () = alarm::at(end) => return self.end(),
            }
        }
    }

    fn take(&mut self, batch: Batch) {
        self.revision = batch.cursor.map(|cursor| cursor.through).or(self.revision);
        self.facts.set_node(batch.node.flatten());
        for (side, _) in &mut self.sides {
            for (key, service) in &batch.services {
                side.set(key, service.clone());
            }
        }
        let services = self.sides.first().map_or(0, |(side, _)| side.services());
        self.metrics.services.set(services.try_into().unwrap_or(i64::MAX));
    }

    async fn compare(&mut self) -> anyhow::Result<()> {
        let began = Instant::now();
        let addresses = addresses::list().await?;
        self.facts.set_addresses(addresses.clone());
        for (side, _) in &mut self.sides {
            side.set_node(self.facts.state(side.family())?);
        }
        let (mut destinations, mut packets) = (0, 0);
        self.fresh = 0;
        for _ in 0..self.sides.len() {
            let (side, kernel) = self.sides.remove(0);
            let (kept, compared) = look(side, kernel, addresses.clone()).await;
            let family = kept.0.family().as_str();
            self.sides.push(kept);
            let (comparison, news) = compared?;
            destinations += comparison.destinations;
            packets += comparison.packets;
            self.fresh += news.fresh;
            tell(family, &news);
        }
        self.comparisons += 1;
        self.unready = None;
        let counts = self.counts();
        let deliberate = counts.get(&Kind::Deliberate).copied().unwrap_or(0);
        self.metrics.set_differences(&counts);
        self.metrics.destinations.set(destinations.try_into().unwrap_or(i64::MAX));
        self.metrics.comparisons.inc();
        tracing::info!(
            revision = self.revision.map(|revision| revision.0),
            destinations,
            packets,
            differences = counts.values().sum::<usize>() - deliberate,
            deliberate,
            unconfirmed = self.fresh,
            took_ms = began.elapsed().as_secs_f64() * 1000.0,
            "compared"
        );
        Ok(())
    }

    fn counts(&self) -> BTreeMap<Kind, usize> {
        let mut counts = BTreeMap::new();
        for difference in self.sides.iter().flat_map(|(side, _)| side.confirmed()) {
            *counts.entry(difference.kind).or_default() += 1;
        }
        counts
    }

    fn end(&self) -> anyhow::Result<()> {
        let counts = self.counts();
        let meant: usize = counts.iter().filter(|(kind, _)| **kind != Kind::Deliberate).map(|(_, n)| n).sum();
        match (self.comparisons, meant, self.fresh) {
            (0, ..) => bail!("nothing was compared: no server was heard, or the rules could not be read"),
            (_, 0, 0) => Ok(()),
            (_, 0, fresh) => {
                bail!("{fresh} differences were seen only once, too late to be sure: observe for longer")
            }
            (_, meant, _) => {
                bail!("the kernel's rules differ from ours in {meant} ways, which the log tells")
            }
        }
    }
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

type Looked<K> = ((Side, K), anyhow::Result<(compare::Comparison, News)>);

/// Reads the kernel and compares, on another thread: the stream goes on meanwhile.
async fn look<K: Readable + 'static>(
    mut side: Side,
    mut kernel: K,
    addresses: BTreeSet<IpAddr>,
) -> Looked<K> {
    let saved = match kernel.save().await {
        Ok(saved) => saved,
        Err(e) => return ((side, kernel), Err(e.into())),
    };
    let compared = tokio::task::spawn_blocking(move || {
        let compared = side.compare(&saved, &addresses).map_err(anyhow::Error::msg);
        (side, compared)
    });
    match compared.await {
        Ok((side, compared)) => ((side, kernel), compared),
        Err(join) => std::panic::resume_unwind(join.into_panic()),
    }
}

fn tell(family: &str, news: &News) {
    for Difference { kind, destination, protocol, service, clients, kernel, ours, .. } in
        news.appeared.iter().take(TOLD)
    {
        let clients = Clients(clients);
        match kind {
            Kind::Deliberate => {
                tracing::info!(family, service, %destination, %protocol, %clients, kernel, ours, "differs on purpose");
            }
            kind => {
                tracing::warn!(family, service, %destination, %protocol, %clients, ?kind, kernel, ours, "differs");
            }
        }
    }
    if let Some(more @ 1..) = news.appeared.len().checked_sub(TOLD) {
        tracing::warn!(family, more, "more differ");
    }
    for Difference { destination, protocol, service, .. } in news.gone.iter().take(TOLD) {
        tracing::info!(family, service, %destination, %protocol, "differs no more, or otherwise");
    }
}

#[cfg(test)]
mod tests;
