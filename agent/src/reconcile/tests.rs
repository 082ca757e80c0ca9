//! The reconciler against a kernel that interprets what it is given, and that refuses what a test wants it to.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::{Mutex, PoisonError};

use distributary_model::testing as t;
use distributary_model::{Ages, Epoch, Protocol, Revision};
use prometheus_client::registry::Registry;

use super::*;
use crate::config::{Draft, Names};
use crate::health::{Health, Settings};
use crate::iptables::fake::Fake;
use crate::iptables::{Family, Options};
use crate::kernel::{Kernel, Readable};
use crate::sync::session::Batch;

mod nft;
mod node;

/// Shared with the test, so that it can look and meddle.
#[derive(Clone, Debug)]
struct TestKernel(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    fake: Fake,
    /// A restore whose text contains one of these is refused, so many times.
    refuses: Vec<String>,
    refusals: usize,
    /// So many restores fail for a lock.
    locked: usize,
    /// The restore of this number fails for a lock.
    lock_at: Option<usize>,
    /// A section longer than this is too long.
    most: usize,
    /// What is said of a refusal, and whether with the number of the line.
    says: String,
    names_lines: bool,
    /// The fewest services that had endpoints after a restore.
    least: usize,
    saves: usize,
    restores: usize,
    /// The last restore.
    text: String,
}

impl TestKernel {
    fn new() -> Self {
        let state = State {
            fake: Fake::default(),
            refuses: Vec::new(),
            refusals: usize::MAX,
            locked: 0,
            lock_at: None,
            most: usize::MAX,
            says: String::new(),
            names_lines: false,
            least: usize::MAX,
            saves: 0,
            restores: 0,
            text: String::new(),
        };
        Self(Arc::new(Mutex::new(state)))
    }

    fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn holds(&self, what: &str) -> bool {
        self.with(|state| state.fake.save().contains(what))
    }
}

impl Readable for TestKernel {
    async fn save(&mut self) -> Result<String, KernelError> {
        Ok(self.with(|state| {
            state.saves += 1;
            state.fake.save()
        }))
    }
}

impl Kernel for TestKernel {
    async fn restore(&mut self, text: &str) -> Result<(), KernelError> {
        let program = "fake".to_owned();
        self.with(|state| {
            state.restores += 1;
            state.text = text.to_owned();
            if state.locked > 0 || state.lock_at == Some(state.restores - 1) {
                state.locked = state.locked.saturating_sub(1);
                return Err(KernelError::Node { program, message: "the lock is held".into() });
            }
            for section in Fake::sections(text) {
                if section.len() > state.most {
                    return Err(KernelError::TooLong { program, message: "Message too long".into() });
                }
                let refused = state.refuses.iter().find(|what| section.contains(*what)).cloned();
                let refused = refused.filter(|_| state.refusals > 0).map(|what| {
                    state.refusals -= 1;
                    let at = text.lines().position(|line| line.contains(&what)).unwrap_or(0) + 1;
                    let line = if state.names_lines { format!("line {at}: ") } else { String::new() };
                    format!("{line}{} {what}", state.says)
                });
                if let Some(message) = refused.or_else(|| state.fake.restore(&section).err()) {
                    return Err(KernelError::Refused { program, status: ExitStatus::from_raw(256), message });
                }
                state.least = state.least.min(state.fake.save().matches("--to-destination").count());
            }
            Ok(())
        })
    }

    async fn in_place(&mut self) -> Result<bool, KernelError> {
        Ok(self.holds("-A PREROUTING ") && self.holds(":KUBE-SVC-0-HAIRPIN "))
    }

    async fn has_canary(&mut self) -> Result<bool, KernelError> {
        Ok(self.holds(":KUBE-PROXY-CANARY "))
    }
}

struct World {
    kernel: TestKernel,
    mailbox: Arc<Mailbox>,
    programmed: watch::Receiver<Programmed>,
    registry: Registry,
    metrics: Metrics,
    revision: u64,
    health: Health,
}

impl World {
    /// Starts a reconciler on a kernel.
    fn start(kernel: TestKernel) -> Self {
        let (_, addresses) = watch::channel(BTreeSet::new());
        Self::told(kernel, Draft::default(), addresses)
    }

    /// The same, told how to program the node, and its addresses.
    fn told(kernel: TestKernel, draft: Draft, addresses: watch::Receiver<BTreeSet<IpAddr>>) -> Self {
        let (programmed, seen) = watch::channel(Programmed::default());
        let ruleset = Ruleset::new(Xtables::new(Family::V4, kernel.clone(), Options::new(t::CLUSTER, "n1")));
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let mailbox = Arc::new(Mailbox::default());
        let config = draft.check(Names::Flags, "n1").unwrap();
        let health = Health::new(Settings::plain(t::CLUSTER, "n1"), mailbox.clone(), metrics.last_heard());
        let reconciler =
            Reconciler::new(&config, vec![ruleset], addresses, programmed, metrics.clone(), health.clone());
        tokio::spawn(reconciler.run(mailbox.clone()));
        Self { kernel, mailbox, programmed: seen, registry, metrics, revision: 0, health }
    }

    /// Gives services to program, and waits until it is said that they are.
    async fn program(&mut self, services: &[(&str, Option<Service>)]) -> Programmed {
        self.program_aged(services, &[]).await
    }

    /// The same, with slices of services that changed so many seconds ago.
    async fn program_aged(
        &mut self,
        services: &[(&str, Option<Service>)],
        aged: &[(&str, u64)],
    ) -> Programmed {
        let mut underway = Underway::default();
        for &(name, age) in aged {
            let ages = Ages { v4: vec![Duration::from_secs(age)], v6: Vec::new() };
            underway.add(&t::key(name), &ages, Instant::now());
        }
        self.revision += 1;
        let through = Revision(self.revision);
        let services = services.iter().map(|(name, service)| (t::key(name), service.clone().map(Arc::new)));
        let batch = Batch {
            services: services.collect(),
            cursor: Some(Cursor { epoch: Epoch([1; 16]), through }),
            underway,
            ..Batch::default()
        };
        self.mailbox.put(batch, Instant::now());
        let done =
            |programmed: &Programmed| programmed.cursor.is_some_and(|cursor| cursor.through == through);
        self.programmed.wait_for(done).await.unwrap().clone()
    }
}

impl World {
    /// How many slices were observed to have come to the kernel, and their seconds together.
    fn observed(&self) -> (u64, u64) {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        let of = |what: &str| {
            let name =
                format!(r#"kubeproxy_network_programming_duration_seconds_{what}{{ip_family="IPv4"}} "#);
            let value = text.lines().find_map(|line| line.strip_prefix(&*name));
            value.map_or(0, |value| value.parse::<f64>().unwrap() as u64)
        };
        (of("count"), of("sum"))
    }
}

fn web(last: u8, endpoint: &str) -> Service {
    t::service(&[&format!("10.96.0.{last}")])
        .port("http", Protocol::Tcp, 80, 0)
        .endpoint(t::endpoint(endpoint, "http", 8080).on("n1"))
}

#[tokio::test(start_paused = true)]
async fn a_change_is_one_restore_and_no_listing() {
    let mut world = World::start(TestKernel::new());
    world.program(&[("ns/a", Some(web(1, "10.0.0.1"))), ("ns/b", Some(web(2, "10.0.0.2")))]).await;
    let (saves, restores) = world.kernel.with(|state| (state.saves, state.restores));
    assert_eq!(saves, 1);
    world.program(&[("ns/a", Some(web(1, "10.0.0.9")))]).await;
    assert!(world.kernel.holds("10.0.0.9:8080") && !world.kernel.holds("10.0.0.1:8080"));
    assert_eq!(world.kernel.with(|state| (state.saves, state.restores)), (saves, restores + 1));
    world.program(&[("ns/a", Some(web(1, "10.0.0.9")))]).await;
    assert_eq!(world.kernel.with(|state| state.restores), restores + 1, "equal content is no write");
}

#[tokio::test(start_paused = true)]
async fn the_service_that_the_kernel_refuses_is_named_and_the_others_are_written() {
    let mut world = World::start(TestKernel::new());
    world.program(&[("ns/bad", Some(web(7, "10.0.0.7")))]).await;
    world.kernel.with(|state| state.refuses.push("10.6.6.6".into()));
    let bad = web(7, "10.6.6.6");
    let mut batch: Vec<(String, Service)> =
        (10..30).map(|last| (format!("ns/s{last}"), web(last, &format!("10.0.1.{last}")))).collect();
    batch.push(("ns/bad".into(), bad.clone()));
    let batch: Vec<(&str, Option<Service>)> =
        batch.iter().map(|(name, service)| (name.as_str(), Some(service.clone()))).collect();
    let programmed = world.program(&batch).await;

    let rejected: Vec<_> =
        programmed.rejected.iter().map(|(key, why)| (key.to_string(), why.clone())).collect();
    let [(name, why)] = &rejected[..] else { panic!("{rejected:?}") };
    assert_eq!((name.as_str(), why.hash), ("ns/bad", t::held(&t::key("ns/bad"), bad).hash));
    assert!(why.message.contains("10.6.6.6"), "{}", why.message);
    assert!((10..30).all(|last| world.kernel.holds(&format!("10.0.1.{last}:8080"))));
    assert!(world.kernel.holds("10.0.0.7:8080"), "its last good rules stay");

    let programmed = world.program(&[("ns/s10", Some(web(10, "10.0.2.10")))]).await;
    assert_eq!(programmed.rejected.len(), 1, "it stays parked while others change");
    let programmed = world.program(&[("ns/bad", Some(web(7, "10.0.0.8")))]).await;
    assert!(programmed.rejected.is_empty() && world.kernel.holds("10.0.0.8:8080"));
}

#[tokio::test(start_paused = true)]
async fn a_lock_at_the_moment_of_a_refusal_rejects_one_and_loses_nobody() {
    for locked in 1..6 {
        let mut world = World::start(TestKernel::new());
        world.program(&[("ns/old", Some(web(9, "10.0.0.9")))]).await;
        world.kernel.with(|state| {
            state.refuses.push("10.6.6.6".into());
            state.locked = locked;
        });
        let all =
            [("ns/a", web(1, "10.0.0.1")), ("ns/bad", web(2, "10.6.6.6")), ("ns/b", web(3, "10.0.0.3"))];
        let all = all.map(|(name, service)| (name, Some(service)));
        let programmed = world.program(&all).await;
        let rejected: Vec<String> = programmed.rejected.keys().map(ToString::to_string).collect();
        assert_eq!(rejected, ["ns/bad"], "{locked}");
        assert!(["10.0.0.1:", "10.0.0.3:", "10.0.0.9:"].iter().all(|ip| world.kernel.holds(ip)), "{locked}");
        world.program(&[("ns/c", Some(web(4, "10.0.0.4")))]).await;
        assert!(world.kernel.holds("10.0.0.4:"), "{locked}: what comes later is written");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lock_in_the_middle_of_the_search_loses_nobody() {
    for (after, names_lines) in (0..12).flat_map(|after| [(after, true), (after, false)]) {
        let mut world = World::start(TestKernel::new());
        world.kernel.with(|state| state.names_lines = names_lines);
        world.program(&[("ns/old", Some(web(9, "10.0.0.9")))]).await;
        let restores = world.kernel.with(|state| {
            state.refuses.push("10.6.6.6".into());
            state.restores
        });
        world.kernel.with(|state| state.lock_at = Some(restores + after));
        let all =
            [("ns/a", web(1, "10.0.0.1")), ("ns/bad", web(2, "10.6.6.6")), ("ns/b", web(3, "10.0.0.3"))];
        let programmed = world.program(&all.map(|(name, service)| (name, Some(service)))).await;
        let rejected: Vec<String> = programmed.rejected.keys().map(ToString::to_string).collect();
        assert_eq!(rejected, ["ns/bad"], "{after}");
        assert!(["10.0.0.1:", "10.0.0.3:", "10.0.0.9:"].iter().all(|ip| world.kernel.holds(ip)), "{after}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_restarted_agent_with_a_refused_service_takes_nothing_away() {
    let kernel = TestKernel::new();
    let mut world = World::start(kernel.clone());
    let all: Vec<(String, Service)> =
        (1..40).map(|last| (format!("ns/s{last}"), web(last, &format!("10.0.1.{last}")))).collect();
    let with = |bad: &str| -> Vec<(String, Option<Service>)> {
        let mut all: Vec<_> =
            all.iter().map(|(name, service)| (name.clone(), Some(service.clone()))).collect();
        all.push(("ns/bad".into(), Some(web(200, bad))));
        all
    };
    fn borrowed(all: &[(String, Option<Service>)]) -> Vec<(&str, Option<Service>)> {
        all.iter().map(|(name, service)| (name.as_str(), service.clone())).collect()
    }
    world.program(&borrowed(&with("10.0.0.7"))).await;
    for named in [true, false] {
        kernel.with(|state| {
            state.refuses = vec!["10.6.6.6".into()];
            state.names_lines = named;
            state.least = usize::MAX;
        });
        let mut again = World::start(kernel.clone());
        let every = with("10.6.6.6");
        let services =
            every.iter().map(|(name, service)| (t::key(name), service.clone().map(Arc::new))).collect();
        let cursor = Some(Cursor { epoch: Epoch([1; 16]), through: Revision(1) });
        again.mailbox.put(Batch { services, cursor, ..Batch::default() }, Instant::now());
        if named {
            again.programmed.wait_for(|programmed| programmed.cursor.is_some()).await.unwrap();
            assert_eq!(again.programmed.borrow().rejected.len(), 1);
        } else {
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
        let least = kernel.with(|state| state.least);
        assert!(least >= all.len(), "only {least} of {} services were ever in the kernel", all.len());
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_node_lacked_is_tried_again() {
    let mut world = World::start(TestKernel::new());
    world.kernel.with(|state| state.refuses.push("10.6.6.6".into()));
    world.kernel.with(|state| state.says = "RULE_APPEND failed (No such file or directory)".into());
    let programmed = world.program(&[("ns/a", Some(web(1, "10.6.6.6")))]).await;
    assert!(programmed.rejected.values().all(|rejected| rejected.node));
    world.kernel.with(|state| state.refuses.clear());
    world.programmed.wait_for(|programmed| programmed.rejected.is_empty()).await.unwrap();
    assert!(world.kernel.holds("10.6.6.6:8080"));
}

#[tokio::test(start_paused = true)]
async fn a_chain_that_somebody_edits_is_put_right_by_the_audit() {
    let mut world = World::start(TestKernel::new());
    world.program(&[("ns/a", Some(web(1, "10.0.0.1")))]).await;
    let before = world.kernel.with(|state| state.fake.save());
    world.kernel.with(|state| state.fake.restore("*nat\n:KUBE-MARK-MASQ - [0:0]\nCOMMIT\n").unwrap());
    assert_ne!(world.kernel.with(|state| state.fake.save()), before);
    let restores = world.kernel.with(|state| state.restores);
    let programmed = world.programmed.wait_for(|programmed| !programmed.events.is_empty()).await.unwrap();
    let said = "IPv4: the rules have been written again, as was found: nat/KUBE-MARK-MASQ changed";
    assert_eq!(programmed.events, [(1, Event::RulesRestored(said.to_owned()))]);
    drop(programmed);
    assert_eq!(world.kernel.with(|state| state.fake.save()), before);
    // Nothing else was written.
    assert_eq!(world.kernel.with(|state| state.restores), restores + 1);
    let text = world.kernel.with(|state| state.text.clone());
    let chains: Vec<&str> = text.lines().filter(|line| line.starts_with(':')).collect();
    assert_eq!(chains, [":KUBE-MARK-MASQ - [0:0]"], "{text}");
    assert_eq!(world.metrics.restored.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn rule_4_2_only_who_is_refused_alone_and_twice_is_rejected() {
    for names_lines in [true, false] {
        // In the batch, alone, and alone again.
        for (refusals, rejected) in [(1, 0), (2, 0), (3, 1)] {
            let mut world = World::start(TestKernel::new());
            world.program(&[("ns/bad", Some(web(2, "10.0.0.2")))]).await;
            world.kernel.with(|state| {
                state.refuses.push("10.6.6.6".into());
                (state.refusals, state.names_lines) = (refusals, names_lines);
            });
            let programmed = world.program(&[("ns/bad", Some(web(2, "10.6.6.6")))]).await;
            assert_eq!(programmed.rejected.len(), rejected, "{names_lines} {refusals}");
            let held = if rejected == 0 { "10.6.6.6:8080" } else { "10.0.0.2:8080" };
            assert!(world.kernel.holds(held), "{names_lines} {refusals}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn two_refused_services_are_both_found() {
    let mut world = World::start(TestKernel::new());
    world.kernel.with(|state| state.refuses.extend(["10.6.6.1:".into(), "10.6.6.2:".into()]));
    let programmed = world
        .program(&[
            ("ns/a", Some(web(1, "10.0.0.1"))),
            ("ns/x", Some(web(2, "10.6.6.1"))),
            ("ns/b", Some(web(3, "10.0.0.3"))),
            ("ns/y", Some(web(4, "10.6.6.2"))),
            ("ns/c", Some(web(5, "10.0.0.5"))),
        ])
        .await;
    let rejected: Vec<String> = programmed.rejected.keys().map(ToString::to_string).collect();
    assert_eq!(rejected, ["ns/x", "ns/y"]);
    assert!(["10.0.0.1:", "10.0.0.3:", "10.0.0.5:"].iter().all(|ip| world.kernel.holds(ip)));
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_is_held_rejects_nobody_and_is_waited_for() {
    let mut world = World::start(TestKernel::new());
    world.program(&[("ns/a", Some(web(1, "10.0.0.1")))]).await;
    world.kernel.with(|state| state.locked = 3);
    let programmed = world.program(&[("ns/a", Some(web(1, "10.0.0.2")))]).await;
    assert!(programmed.rejected.is_empty() && world.kernel.holds("10.0.0.2:8080"));
    assert_eq!(world.kernel.with(|state| state.locked), 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_too_long_is_cut_smaller() {
    let kernel = TestKernel::new();
    kernel.with(|state| state.most = 4_000);
    let mut world = World::start(kernel);
    let all: Vec<(String, Service)> =
        (1..100).map(|last| (format!("ns/s{last}"), web(last, &format!("10.0.1.{last}")))).collect();
    let all: Vec<(&str, Option<Service>)> =
        all.iter().map(|(name, service)| (name.as_str(), Some(service.clone()))).collect();
    let programmed = world.program(&all).await;
    assert!(programmed.rejected.is_empty());
    assert!((1..100).all(|last| world.kernel.holds(&format!("10.0.1.{last}:8080"))));
}

#[tokio::test(start_paused = true)]
async fn lost_rules_are_written_again_and_told() {
    let mut world = World::start(TestKernel::new());
    world.program(&[("ns/a", Some(web(1, "10.0.0.1")))]).await;
    let before = world.kernel.with(|state| state.fake.save());
    world.kernel.with(|state| state.fake = Fake::default());
    let programmed = world.programmed.wait_for(|programmed| !programmed.events.is_empty()).await.unwrap();
    let [(_, Event::RulesRestored(said))] = &programmed.events[..] else { panic!("{programmed:?}") };
    assert!(said.contains("-j KUBE-SERVICES missing") && said.ends_with(" more"), "{said}");
    drop(programmed);
    assert_eq!(world.kernel.with(|state| state.fake.save()), before);
}

#[tokio::test(start_paused = true)]
async fn wart_17_a_change_is_measured_once_when_it_is_in_the_kernel_however_often_that_failed() {
    let mut world = World::start(TestKernel::new());
    world.program(&[("ns/a", Some(web(1, "10.0.0.1")))]).await;
    assert_eq!(world.observed(), (0, 0), "a snapshot measures nothing");
    world.kernel.with(|state| state.locked = 2);
    let change = [("ns/a", Some(web(1, "10.0.0.2")))];
    world.program_aged(&change, &[("ns/a", 20), ("ns/a", 30)]).await;
    assert_eq!(world.kernel.with(|state| state.locked), 0);
    assert_eq!(world.observed(), (2, 50));
    world.program(&[("ns/b", Some(web(2, "10.0.0.3")))]).await;
    assert_eq!(world.observed(), (2, 50));
}

#[tokio::test(start_paused = true)]
async fn what_the_kernel_refuses_is_measured_when_it_takes_it_and_what_is_gone_is_not() {
    let mut world = World::start(TestKernel::new());
    world.kernel.with(|state| state.refuses.push("10.6.6.6".into()));
    let all = [("ns/a", web(1, "10.0.0.1")), ("ns/x", web(2, "10.6.6.6")), ("ns/y", web(3, "10.6.6.6"))];
    let all = all.map(|(name, service)| (name, Some(service)));
    world.program_aged(&all, &[("ns/a", 20), ("ns/x", 30), ("ns/y", 40)]).await;
    assert_eq!(world.observed(), (1, 20));
    world.program_aged(&[("ns/x", Some(web(2, "10.0.0.2"))), ("ns/y", None)], &[("ns/x", 5)]).await;
    assert_eq!(world.observed(), (3, 55));
}

#[tokio::test(start_paused = true)]
async fn a_restarted_agent_writes_nothing() {
    let kernel = TestKernel::new();
    let mut world = World::start(kernel.clone());
    for round in 1..5_u8 {
        for last in 1..60_u8 {
            let service =
                (last % round != 0 || round == 1).then(|| web(last, &format!("10.{round}.0.{last}")));
            world.program(&[(&format!("ns/s{last}"), service)]).await;
        }
    }
    let last: Vec<(String, Option<Service>)> = (1..60_u8)
        .map(|last| (format!("ns/s{last}"), (last % 4 != 0).then(|| web(last, &format!("10.4.0.{last}")))))
        .collect();
    let last: Vec<(&str, Option<Service>)> = last.iter().map(|(n, s)| (n.as_str(), s.clone())).collect();
    let (held, restores) = kernel.with(|state| (state.fake.save(), state.restores));
    let mut again = World::start(kernel.clone());
    again.program(&last).await;
    assert_eq!(kernel.with(|state| state.restores), restores);
    assert_eq!(kernel.with(|state| state.fake.save()), held);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_written_before_something_is_to_be_programmed() {
    let world = World::start(TestKernel::new());
    tokio::time::advance(Duration::from_secs(120)).await;
    assert_eq!(world.kernel.with(|state| (state.restores, state.saves)), (0, 0));
}

mod health;
mod sync;

/// What a kube-proxy makes of our rules.
const THEIRS: &str = "*nat\n:KUBE-POSTROUTING - [0:0]\n:KUBE-SVC-0-HAIRPIN - [0:0]\n:KUBE-SEP-SXIVWICOYRO3J4NJ - [0:0]\n\
    -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n-A KUBE-POSTROUTING -j MASQUERADE\n\
    -A KUBE-SEP-SXIVWICOYRO3J4NJ -p tcp -j DNAT --to-destination 10.0.0.1:8080\n-X KUBE-SVC-0-HAIRPIN\nCOMMIT\n\
    *mangle\n:KUBE-PROXY-CANARY - [0:0]\nCOMMIT\n";

impl World {
    /// A kube-proxy writes.
    fn overwrite(&self) {
        self.kernel.with(|state| state.fake.restore(THEIRS).unwrap());
    }

    async fn event(&mut self, wanted: impl Fn(&Event) -> bool) {
        let told = |programmed: &Programmed| programmed.events.iter().any(|(_, event)| wanted(event));
        tokio::time::timeout(Duration::from_secs(6), self.programmed.wait_for(told)).await.unwrap().unwrap();
    }

    /// Waits until the canary is gone.
    async fn asked(&self) {
        let gone = async {
            while self.kernel.holds(":KUBE-PROXY-CANARY ") {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(700), gone).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn who_writes_over_the_rules_twice_is_left_to_it_until_it_is_gone() {
    let mut world = World::start(TestKernel::new());
    world.program(&[("ns/a", Some(web(1, "10.0.0.1")))]).await;
    let ours = world.kernel.with(|state| state.fake.save());
    world.overwrite();
    world.event(|event| matches!(event, Event::RulesRestored(_))).await;
    assert_eq!(world.kernel.with(|state| state.fake.save()), ours, "the first time they are put right");

    world.overwrite();
    world.event(|event| matches!(event, Event::SecondWriter(_))).await;
    assert_eq!(world.metrics.second_writer.get(), 1);
    world.asked().await;
    // It is there, and writes everything, so that nothing of ours is left among it.
    world.overwrite();
    let theirs = world.kernel.with(|state| state.fake.save());
    let through = Revision(2);
    let services = [(t::key("ns/a"), Some(Arc::new(web(1, "10.0.0.2"))))].into();
    let cursor = Some(Cursor { epoch: Epoch([1; 16]), through });
    world.mailbox.put(Batch { services, cursor, ..Batch::default() }, Instant::now());
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(world.kernel.with(|state| state.fake.save()), theirs, "what waits is not written");
    assert_eq!(world.programmed.borrow().cursor.unwrap().through, Revision(1), "nor said to be");
    assert_eq!(world.metrics.second_writer.get(), 1);

    // The next time nobody answers.
    let done = |programmed: &Programmed| programmed.cursor.is_some_and(|cursor| cursor.through == through);
    world.programmed.wait_for(done).await.unwrap();
    assert!(world.kernel.holds("10.0.0.2:8080") && !world.kernel.holds("KUBE-SEP-SXIVWICOYRO3J4NJ"));
    assert_eq!(world.metrics.second_writer.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn nobody_is_given_way_who_only_loads_a_firewall_anew() {
    let mut world = World::start(TestKernel::new());
    world.program(&[("ns/a", Some(web(1, "10.0.0.1")))]).await;
    let before = world.kernel.with(|state| state.fake.save());
    for _ in 0..20 {
        world.kernel.with(|state| state.fake = Fake::default());
        tokio::time::sleep(Duration::from_secs(6)).await;
        assert_eq!(world.kernel.with(|state| state.fake.save()), before);
    }
    assert_eq!(world.metrics.second_writer.get(), 0);
}
