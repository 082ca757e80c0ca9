//! The only writer of the kernel: takes what waits, programs it in every family, says what came of it, and looks
//! after the rules when nothing waits.

mod backend;
mod knowledge;
mod nft;
mod rival;
mod ruleset;
mod suspect;
mod xtables;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use distributary_model::{Cursor, Hash, Key, Record, Service, hash};
use distributary_runtime::alarm;
use distributary_runtime::backoff::Backoff;
use tokio::sync::watch;

use crate::config::Config;
use crate::conntrack::{self, Changes};
use crate::health::Health;
use crate::kernel::KernelError;
use crate::metrics::{Metrics, kube_proxy};
use crate::node::Facts;
use crate::plan::Family;
use crate::sync::ack::{Event, Programmed, Rejected};
use crate::sync::mailbox::Mailbox;
use crate::sync::session::Batch;
use crate::sync::underway::{Arrived, Underway};
use knowledge::{Knowledge, Told};

pub use backend::{Backend, Failed};
pub use knowledge::NodeStates;
pub use nft::Nft;
use rival::{Found, Rival, Task};
pub use ruleset::{Outcome, Refused, Ruleset};
pub use xtables::Xtables;

/// How often it is looked whether the rules are still there.
const WATCH_PERIOD: Duration = Duration::from_secs(5);

/// How often the kernel is compared with what it should hold, and what the node lacked is tried again.
const AUDIT_PERIOD: Duration = Duration::from_secs(300);
/// Events that are kept for a server to be told.
const EVENTS: usize = 8;

/// Services to be programmed; `None`: gone.
pub type Services = BTreeMap<Arc<Key>, Option<Arc<Service>>>;

/// Programs every family that the node runs.
#[derive(Debug)]
pub struct Reconciler<B> {
    rulesets: Vec<Ruleset<B>>,
    programmed: watch::Sender<Programmed>,
    rejected: BTreeMap<Arc<Key>, Rejected>,
    /// Of those that the node lacks something for: what they should be.
    lacking: Services,
    /// Services that are given to nobody in `flows` yet, as not all of them is in the kernel.
    unwritten: Services,
    /// Who looks after what the rules once translated.
    flows: Arc<conntrack::Mailbox>,
    metrics: Metrics,
    health: Health,
    /// What is measured on its way to the kernel, until it is there.
    underway: Underway,
    knowledge: Knowledge,
    /// The addresses of the interfaces, where rules depend on them.
    addresses: watch::Receiver<BTreeSet<IpAddr>>,
    /// What waits until enough of the node is known.
    held: Services,
    /// The longest wait before what failed is tried again.
    sync_period: Duration,
    /// The shortest time between two passes.
    min_sync_period: Duration,
    /// Something was given to program: before that, nothing is written.
    begun: bool,
    rival: Rival,
    events: u64,
}

/// What one pass led to.
#[derive(Debug, Default)]
struct Pass {
    chains: usize,
    /// A family that could not be written, for a reason that is not the content's.
    failed: Option<KernelError>,
}

impl<B: Backend> Reconciler<B> {
    /// For the families of a node, one ruleset each.
    pub fn new(
        config: &Config,
        rulesets: Vec<Ruleset<B>>,
        addresses: watch::Receiver<BTreeSet<IpAddr>>,
        programmed: watch::Sender<Programmed>,
        metrics: Metrics,
        health: Health,
    ) -> Self {
        let mut facts = Facts::new(config.clone());
        facts.set_addresses(addresses.borrow().clone());
        Self {
            knowledge: Knowledge::new(facts),
            addresses,
            held: Services::new(),
            sync_period: config.sync_period,
            min_sync_period: config.min_sync_period,
            rulesets,
            programmed,
            rejected: BTreeMap::new(),
            lacking: Services::new(),
            unwritten: Services::new(),
            flows: Arc::default(),
            metrics,
            health,
            underway: Underway::default(),
            begun: false,
            rival: Rival::new(config.sync_period),
            events: 0,
        }
    }

    /// What is written is told there, after it was.
    #[must_use]
    pub fn followed_by(self, flows: Arc<conntrack::Mailbox>) -> Self {
        Self { flows, ..self }
    }

    /// What the rules were told of the node; empty before they know enough of it to be written.
    pub fn node(&self) -> watch::Receiver<NodeStates> {
        self.knowledge.told()
    }

    /// Goes on for ever; what it wrote stays when it is dropped.
    ///
    /// # Errors
    /// Never: what the kernel does not take now is tried again.
    pub async fn run(mut self, mailbox: Arc<Mailbox>) -> anyhow::Result<()> {
        self.rulesets.iter().for_each(|ruleset| self.health.started(ruleset.family()));
        let mut backoff = Backoff::new(Duration::from_secs(1), self.sync_period);
        let soon = |period| tokio::time::interval_at(tokio::time::Instant::now() + period, period);
        let mut watching = soon(WATCH_PERIOD);
        watching.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut auditing = soon(AUDIT_PERIOD);
        auditing.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // What the last pass could not write, and since when it waits.
        let mut owed: Option<(Option<Cursor>, Instant)> = None;
        let (mut retry_at, mut not_before) = (None, None);
        loop {
            self.expect_rival();
            let stopped = self.rival.stopped();
            let services = tokio::select! {
                (batch, at) = paced(&mailbox, not_before) => {
                    self.begun = true;
                    self.health.taken(&batch.services, at);
                    if let Some(Some(node)) = &batch.node {
                        self.health.node(node);
                    }
                    owed = Some((batch.cursor.or(owed.and_then(|(cursor, _)| cursor)), owed.map_or(at, |(_, at)| at)));
                    batch.gone().for_each(|key| self.underway.forget(key));
                    self.underway.merge(batch.underway);
                    if let Some(cidrs) = &batch.service_cidrs {
                        self.rulesets.iter_mut().for_each(|ruleset| ruleset.rules_mut().set_service_cidrs(cidrs));
                    }
                    self.held.extend(batch.services);
                    self.knowledge.node(batch.node.flatten());
                    if self.tell() == Told::NotEnough {
                        continue;
                    }
                    std::mem::take(&mut self.held)
                }
                Ok(()) = self.addresses.changed() => {
                    let addresses = self.addresses.borrow_and_update().clone();
                    self.knowledge.addresses(addresses);
                    if !self.begun || self.tell() != Told::News {
                        continue;
                    }
                    let now = self.programmed.borrow().cursor;
                    owed = owed.or(Some((now, Instant::now())));
                    self.health.taken(&Services::new(), Instant::now());
                    std::mem::take(&mut self.held)
                }
                () = alarm::at(self.knowledge.next_complaint()) => {
                    self.knowledge.complain(now());
                    continue;
                }
                () = alarm::at(retry_at) => Services::new(),
                () = alarm::at(self.rival.next().map(|(_, at)| at)) => {
                    self.ask_rival().await;
                    if self.rival.stopped() {
                        continue;
                    }
                    Services::new()
                }
                _ = watching.tick(), if self.begun && owed.is_none() && !stopped => {
                    self.watch(false).await;
                    continue;
                }
                _ = auditing.tick(), if self.begun && owed.is_none() && !stopped => {
                    self.watch(true).await;
                    let now = self.programmed.borrow().cursor;
                    owed = (!self.lacking.is_empty()).then_some((now, Instant::now()));
                    if owed.is_none() {
                        continue;
                    }
                    self.health.taken(&self.lacking, Instant::now());
                    std::mem::take(&mut self.lacking)
                }
            };
            let pass = self.program(&services).await;
            self.unwritten.extend(services.iter().map(|(key, service)| (key.clone(), service.clone())));
            not_before =
                Some(self.min_sync_period).filter(|pause| !pause.is_zero()).map(|pause| now() + pause);
            self.meet_rival();
            if self.rival.stopped() {
                // What waits is programmed, and said to be, when nobody else writes. Until then the node is the other's
                // to serve, and nothing that a restart of this process would mend.
                self.rulesets.iter().for_each(|ruleset| self.health.programmed(ruleset.family()));
                retry_at = None;
                continue;
            }
            retry_at = pass.failed.map(|failed| {
                let delay = backoff.next_delay().max(Duration::from_millis(200));
                let (error, retry_ms) = (failed.to_string(), delay.as_millis());
                tracing::warn!(error, retry_ms, "the kernel was not written; what it holds stays");
                now() + delay
            });
            if retry_at.is_none() {
                backoff.reset();
                self.tell_flows(stopped);
                if let Some((cursor, at)) = owed.take() {
                    self.done(cursor, at.elapsed(), services.len(), pass.chains);
                }
            }
        }
    }

    fn tell(&mut self) -> Told {
        self.knowledge.tell(&mut self.rulesets, now())
    }

    /// Programs a batch in all families.
    async fn program(&mut self, services: &Services) -> Pass {
        for key in services.keys() {
            self.rejected.remove(key);
            self.lacking.remove(key);
        }
        self.count_changes(services);
        let mut pass = Pass::default();
        if self.rival.stopped() {
            self.rulesets.iter_mut().for_each(|ruleset| ruleset.note(services));
            return pass;
        }
        let passes = self
            .rulesets
            .iter_mut()
            .map(|ruleset| async move { (ruleset.program(services).await, ruleset.family()) });
        for (outcome, family) in futures::future::join_all(passes).await {
            count_pass(&self.metrics, family, &outcome);
            outcome.refused.iter().for_each(|refused| self.health.refused(family, &refused.key));
            if outcome.failed.is_none() {
                self.health.programmed(family);
            }
            let family = family.as_str();
            pass.chains += outcome.chains;
            for Refused { key, wanted, message, node } in outcome.refused {
                tracing::warn!(service = %key, family, error = message, "rejected; its last good rules stay");
                let hash =
                    wanted.clone().map_or(Hash(0), |service| hash::record(&key, &Record::Service(service)));
                if node {
                    self.lacking.insert(key.clone(), wanted);
                }
                self.rejected.insert(key, Rejected { hash, message, node });
            }
            pass.failed = outcome.failed.or(pass.failed);
        }
        self.metrics.chains_written.inc_by(pass.chains as u64);
        self.metrics.rejected.set(self.rejected.len().try_into().unwrap_or(i64::MAX));
        for ruleset in &self.rulesets {
            self.metrics.kube_proxy.rules(ruleset.family(), &ruleset.counts());
        }
        let rulesets = self.rulesets.iter();
        self.metrics
            .conflicts
            .set(rulesets.map(Ruleset::conflicts).sum::<usize>().try_into().unwrap_or(i64::MAX));
        pass
    }

    /// What is in the kernel now; `lost`: and was not for a while.
    fn tell_flows(&mut self, lost: bool) {
        let node = self.rulesets.iter().map(|ruleset| (ruleset.family(), ruleset.node().clone())).collect();
        let services = std::mem::take(&mut self.unwritten);
        let found =
            self.rulesets.iter_mut().map(|ruleset| (ruleset.family(), ruleset.rules_mut().take_found()));
        let found = found.filter(|(_, claims)| !claims.is_empty()).collect();
        self.flows.put(Changes { services, node, lost, found });
    }

    fn done(&mut self, cursor: Option<Cursor>, took: Duration, services: usize, chains: usize) {
        if let Some(cursor) = cursor {
            self.metrics.revision.set(cursor.through.0.cast_signed());
        }
        self.metrics.programming.observe(took.as_secs_f64());
        let latency = &self.metrics.kube_proxy.network_programming;
        for Arrived { family, took } in
            self.underway.arrive(|key| self.rejected.contains_key(key), Instant::now())
        {
            latency.get_or_create(&family.into()).observe(took.as_secs_f64());
        }
        self.metrics
            .services
            .set(self.rulesets.first().map_or(0, Ruleset::services).try_into().unwrap_or(i64::MAX));
        tracing::info!(
            revision = cursor.map(|cursor| cursor.through.0),
            services,
            chains,
            took_ms = took.as_secs_f64() * 1000.0,
            "programmed"
        );
        let rejected = Arc::new(self.rejected.clone());
        self.programmed.send_modify(|programmed| {
            programmed.written = true;
            programmed.cursor = cursor.or(programmed.cursor);
            programmed.took = took;
            programmed.rejected = rejected;
        });
    }

    /// How many of the services that are to be programmed are others than before (spec/kube-proxy.md §4.8); once, not for
    /// each family.
    fn count_changes(&self, services: &Services) {
        let Some(ruleset) = self.rulesets.first() else { return };
        let (mut headers, mut endpoints) = (0, 0);
        for (key, now) in services {
            let was = ruleset.get(key);
            headers += u64::from(was.map(|was| &was.header) != now.as_ref().map(|now| &now.header));
            let (was, now) = (was.map(|was| &was.endpoints[..]), now.as_ref().map(|now| &now.endpoints[..]));
            endpoints += u64::from(was.unwrap_or_default() != now.unwrap_or_default());
        }
        self.metrics.kube_proxy.changes(headers, endpoints);
    }

    /// Looks whether the rules are still there, or (`whole`) what they should be, and writes what is not.
    async fn watch(&mut self, whole: bool) {
        let mut lost = false;
        let mut told = Vec::new();
        for ruleset in &mut self.rulesets {
            let family = ruleset.name();
            let outcome = if whole { ruleset.audit().await } else { ruleset.restore_if_lost().await };
            if outcome.restores > 0 {
                count_pass(&self.metrics, ruleset.family(), &outcome);
                self.metrics.kube_proxy.rules(ruleset.family(), &ruleset.counts());
            }
            if let Some(KernelError::Rival { .. }) = outcome.failed {
                continue;
            }
            if let Some(e) = outcome.failed {
                tracing::warn!(family, error = %e, "it cannot be seen whether the rules are there");
                continue;
            }
            if outcome.restores == 0 {
                continue;
            }
            lost = true;
            self.metrics.restored.inc();
            let Outcome { chains, found, .. } = outcome;
            tracing::warn!(
                family,
                chains,
                found,
                "the rules were not what they should be, and have been written again"
            );
            let message = format!("{family}: the rules have been written again, as was found: {found}");
            told.push(Event::RulesRestored(message));
        }
        told.into_iter().for_each(|event| self.report(event));
        self.meet_rival();
        if lost {
            self.tell_flows(true);
        }
    }

    fn report(&mut self, event: Event) {
        self.events += 1;
        let event = (self.events, event);
        self.programmed.send_modify(|programmed| {
            programmed.events.push(event);
            let old = programmed.events.len().saturating_sub(EVENTS);
            programmed.events.drain(..old);
        });
    }

    /// Who has written over our rules of late finds no answer the next time.
    fn expect_rival(&mut self) {
        let now = now();
        for ruleset in &mut self.rulesets {
            let expected = self.rival.is_expected(ruleset.family(), now);
            ruleset.rules_mut().set_yields(expected);
        }
    }

    /// Takes note of those who have written over our rules.
    fn meet_rival(&mut self) {
        let now = now();
        let mut stops = false;
        for ruleset in &mut self.rulesets {
            let overwritten = ruleset.rules_mut().was_overwritten();
            stops |= overwritten && self.rival.wrote(ruleset.family(), now);
        }
        if !stops {
            return;
        }
        self.metrics.second_writer.set(1);
        let message = "another program has written our rules in kube-proxy's form again: nothing is written until it \
                       is gone (is a kube-proxy running on this node?)";
        tracing::error!("{message}");
        self.report(Event::SecondWriter(message.to_owned()));
    }

    /// Finds out whether there still is another writer.
    async fn ask_rival(&mut self) {
        match self.rival.next() {
            Some((Task::Ask, _)) => {
                let mut removed = true;
                for ruleset in &mut self.rulesets {
                    if let Err(e) = ruleset.rules_mut().remove_canary().await {
                        tracing::warn!(family = ruleset.name(), error = %e, "the canary could not be removed");
                        removed = false;
                    }
                }
                self.rival.asked(removed, now());
            }
            Some((Task::Look, _)) => {
                let mut there = Some(false);
                for ruleset in &mut self.rulesets {
                    there = match (there, ruleset.rules_mut().has_canary().await) {
                        (Some(true), _) | (_, Ok(true)) => Some(true),
                        (there, Ok(false)) => there,
                        (_, Err(_)) => None,
                    };
                }
                match self.rival.looked(there, now()) {
                    Found::Nothing => {}
                    Found::Somebody { again } => {
                        let again_s = again.as_secs();
                        tracing::warn!(again_s, "the other program is still there; nothing is written");
                    }
                    Found::Nobody => {
                        self.metrics.second_writer.set(0);
                        tracing::info!("no other program writes the rules any more; they are taken over");
                        self.rulesets.iter_mut().for_each(|ruleset| ruleset.rules_mut().take_over());
                    }
                }
            }
            None => {}
        }
    }
}

fn count_pass(metrics: &Metrics, family: Family, outcome: &Outcome) {
    let Outcome { restores, failures, failed, full, took, .. } = outcome;
    metrics.restores.inc_by(*restores);
    metrics.restore_failures.inc_by(*failures);
    let (full, took, failures, succeeded) = (*full, *took, *failures, failed.is_none());
    let pass = kube_proxy::Pass { full, took, failures, succeeded };
    metrics.kube_proxy.pass(family, pass, SystemTime::now());
}

/// What waits, but not before that moment.
async fn paced(mailbox: &Mailbox, not_before: Option<Instant>) -> (Batch, Instant) {
    if not_before.is_some() {
        alarm::at(not_before).await;
    }
    mailbox.take().await
}

/// As tests may set it.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[cfg(test)]
mod tests;
