//! Decides when a pass is made, and makes it beside everything else.

use std::sync::Arc;
use std::time::{Duration, Instant};

use distributary_runtime::alarm;
use distributary_runtime::backoff::Backoff;

use super::ledger::Ledger;
use super::mailbox::{Changes, Mailbox};
use super::metrics::Metrics;
use super::table::{Outcome, Table};

/// Least rest after a pass; one that took longer is followed by as long a rest, so that a large table takes no more than
/// half of a core.
const REST: Duration = Duration::from_secs(1);
/// Most rest after a pass.
const LONGEST_REST: Duration = Duration::from_secs(10);

/// Makes passes over the flows of every family that the node runs.
#[derive(Debug)]
pub struct Worker<T> {
    ledgers: Vec<Ledger>,
    table: T,
    metrics: Metrics,
}

impl<T: Table> Worker<T> {
    /// For the families of a node, one ledger each.
    pub fn new(ledgers: Vec<Ledger>, table: T, metrics: Metrics) -> Self {
        Self { ledgers, table, metrics }
    }

    /// Goes on for ever.
    ///
    /// # Errors
    /// When a pass panics. One that fails is made again.
    pub async fn run(mut self, mailbox: Arc<Mailbox>) -> anyhow::Result<()> {
        let mut backoff = Backoff::new(REST, Duration::from_secs(60));
        let mut rested = now();
        loop {
            let due = self.ledgers.iter_mut().filter_map(Ledger::due).min();
            tokio::select! {
                changes = mailbox.take() => self.note(changes, now()),
                () = alarm::at(due.map(|due| due.max(rested))) => {
                    let began = now();
                    let whole;
                    (self, whole) = tokio::task::spawn_blocking(move || self.pass(began)).await?;
                    let rest = match whole {
                        true => {
                            backoff.reset();
                            (now() - began).clamp(REST, LONGEST_REST)
                        }
                        false => backoff.next_delay().max(REST),
                    };
                    rested = now() + rest;
                }
            }
        }
    }

    fn note(&mut self, changes: Changes, now: Instant) {
        for ledger in &mut self.ledgers {
            if let Some(state) = changes.node.get(&ledger.family()) {
                ledger.set_node(state.clone(), now);
            }
            for (key, service) in &changes.services {
                ledger.set(key, service.as_deref(), now);
            }
            if changes.lost {
                ledger.touch(now);
            }
            if let Some(found) = changes.found.get(&ledger.family()) {
                ledger.retire(found, now);
            }
        }
    }

    /// One pass in every family that wants one; whether all went well.
    fn pass(mut self, now: Instant) -> (Self, bool) {
        let mut whole = true;
        for ledger in self.ledgers.iter_mut() {
            if ledger.due().is_none_or(|due| due > now) {
                continue;
            }
            let (began, family) = (Instant::now(), ledger.family());
            let mut outcome = Outcome::default();
            let result = self.table.pass(ledger, now, &mut outcome);
            let (Outcome { seen, deleted }, took) = (outcome, began.elapsed());
            self.metrics.passed(family, took, deleted);
            match result {
                Ok(()) => {
                    ledger.passed(now);
                    let took_ms = took.as_secs_f64() * 1000.0;
                    tracing::debug!(?family, seen, deleted, took_ms, "looked for stale UDP flows");
                }
                Err(e) => {
                    whole = false;
                    tracing::warn!(?family, error = %e, "stale UDP flows may be left; they are looked for again");
                }
            }
        }
        (self, whole)
    }
}

/// By the clock that tests pause.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use distributary_model::{Protocol, Service, testing as t};
    use prometheus_client::registry::Registry;

    use super::super::ledger::GRACE;
    use super::super::table::Error;
    use super::*;
    use crate::plan::Family;

    /// Remembers when passes were, and fails as often as it is told to.
    #[derive(Clone, Default)]
    struct Fake(Arc<Mutex<(Vec<Instant>, usize)>>);

    impl Table for Fake {
        fn pass(&mut self, _: &Ledger, now: Instant, outcome: &mut Outcome) -> Result<(), Error> {
            let mut inner = self.0.lock().unwrap();
            inner.0.push(now);
            outcome.deleted = 1;
            match inner.1.checked_sub(1) {
                Some(left) => {
                    inner.1 = left;
                    Err(Error::List(std::io::ErrorKind::PermissionDenied.into()))
                }
                None => Ok(()),
            }
        }
    }

    /// A worker that runs, its mailbox, and when passes were since it began.
    fn start(failing: usize) -> (Arc<Mailbox>, impl Fn() -> Vec<Duration>, Registry) {
        let fake = Fake::default();
        fake.0.lock().unwrap().1 = failing;
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry, [Family::V4]);
        let worker = Worker::new(vec![Ledger::new(Family::V4, t::CLUSTER.into())], fake.clone(), metrics);
        let (mailbox, began) = (Arc::new(Mailbox::default()), now());
        tokio::spawn(worker.run(mailbox.clone()));
        let passes = move || fake.0.lock().unwrap().0.iter().map(|at| *at - began).collect();
        (mailbox, passes, registry)
    }

    fn dns(endpoint: &str) -> Service {
        let endpoint = t::endpoint(endpoint, "dns", 53).protocol(Protocol::Udp);
        t::service(&["10.96.0.10"]).port("dns", Protocol::Udp, 53, 0).endpoint(endpoint)
    }

    fn put(mailbox: &Mailbox, service: Option<Service>) {
        let services = [(t::key("kube-system/dns"), service.map(Arc::new))].into();
        mailbox.put(Changes { services, ..Changes::default() });
    }

    /// Time passes where all wait for it, and a pass is waited for by a thread: in small steps nothing is missed.
    async fn wait(seconds: u64) {
        for _ in 0..seconds * 20 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn many_changes_are_one_pass_and_the_next_comes_after_a_rest() {
        let (mailbox, passes, _) = start(0);
        put(&mailbox, Some(dns("10.0.0.1")));
        put(&mailbox, Some(dns("10.0.0.2")));
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(passes(), [Duration::ZERO]);
        put(&mailbox, Some(dns("10.0.0.3")));
        tokio::time::sleep(Duration::from_millis(200)).await;
        put(&mailbox, Some(dns("10.0.0.4")));
        wait(10).await;
        assert_eq!(passes().len(), 2);
        assert!(passes()[1] >= REST, "{:?}", passes());
    }

    #[tokio::test(start_paused = true)]
    async fn without_endpoints_there_is_a_pass_when_the_time_is_up() {
        let (mailbox, passes, _) = start(0);
        put(&mailbox, Some(dns("10.0.0.1")));
        wait(2).await;
        put(&mailbox, Some(Service { endpoints: Vec::new(), ..dns("10.0.0.1") }));
        wait(20).await;
        assert_eq!(passes().len(), 2, "{:?}", passes());
        assert!(passes()[1] >= GRACE + Duration::from_secs(2), "{:?}", passes());
    }

    #[tokio::test(start_paused = true)]
    async fn a_pass_that_fails_is_made_again_and_counted() {
        let (mailbox, passes, registry) = start(2);
        put(&mailbox, Some(dns("10.0.0.1")));
        wait(30).await;
        assert_eq!(passes().len(), 3, "{:?}", passes());
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family=\"IPv4\"} 3",
            "kubeproxy_conntrack_reconciler_sync_duration_seconds_count{ip_family=\"IPv4\"} 3",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn without_udp_there_is_no_pass() {
        let (mailbox, passes, _) = start(0);
        put(&mailbox, Some(t::service(&["10.96.0.1"]).port("https", Protocol::Tcp, 443, 0)));
        mailbox.put(Changes { lost: true, ..Changes::default() });
        wait(10).await;
        assert!(passes().is_empty());
    }
}
