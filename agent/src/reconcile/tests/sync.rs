//! The assertions about syncs (spec/kube-proxy.md §10.8): what is written when, and what is not. docs/parity.md says where
//! the agent differs on purpose.

use super::*;

fn batch(through: u64, services: Vec<(&str, Option<Service>)>) -> Batch {
    let services = services.into_iter().map(|(name, service)| (t::key(name), service.map(Arc::new)));
    let cursor = Some(Cursor { epoch: Epoch([1; 16]), through: Revision(through) });
    Batch { services: services.collect(), cursor, ..Batch::default() }
}

/// Waits until a revision is in the kernel.
async fn done(programmed: &mut watch::Receiver<Programmed>, through: u64) {
    let here =
        |programmed: &Programmed| programmed.cursor.is_some_and(|cursor| cursor.through == Revision(through));
    programmed.wait_for(here).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a096_a_service_that_comes_and_goes_between_syncs_writes_nothing() {
    let mut world = World::start(TestKernel::new());
    world.program(&[("ns/a", Some(web(1, "10.0.0.1")))]).await;
    let restores = world.kernel.with(|state| state.restores);
    world.mailbox.put(batch(2, vec![("ns/b", Some(web(2, "10.0.0.2")))]), Instant::now());
    world.mailbox.put(batch(3, vec![("ns/b", None)]), Instant::now());
    done(&mut world.programmed, 3).await;
    assert_eq!(world.kernel.with(|state| state.restores), restores);
}

#[tokio::test(start_paused = true)]
async fn a097_a_change_writes_the_chains_of_its_service_and_no_others() {
    let mut world = World::start(TestKernel::new());
    world.program(&[("ns/a", Some(web(1, "10.0.0.1"))), ("ns/b", Some(web(2, "10.0.0.2")))]).await;
    world.program(&[("ns/a", Some(web(1, "10.0.0.9")))]).await;
    let text = world.kernel.with(|state| state.text.clone());
    assert!(text.contains("10.0.0.9:8080"), "{text}");
    // Nor what dispatches to it, which is as it was.
    assert!(!text.contains("ns/b") && !text.contains("KUBE-SERVICES"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a098_a_replaced_endpoint_is_gone_with_the_same_restore() {
    let mut world = World::start(TestKernel::new());
    world.program(&[("ns/a", Some(web(1, "10.0.0.1")))]).await;
    let (before, chains) =
        world.kernel.with(|state| (state.restores, state.fake.save().matches("\n:").count()));
    world.program(&[("ns/a", Some(web(1, "10.0.0.9")))]).await;
    assert!(world.kernel.holds("10.0.0.9:8080") && !world.kernel.holds("10.0.0.1"));
    let after = world.kernel.with(|state| (state.restores, state.fake.save().matches("\n:").count()));
    assert_eq!(after, (before + 1, chains), "no chain is an endpoint's own");
}

#[tokio::test(start_paused = true)]
async fn a099_a_write_that_fails_once_is_done_again_within_the_sync_period() {
    let mut world = World::start(TestKernel::new());
    world.program(&[("ns/a", Some(web(1, "10.0.0.1")))]).await;
    for fails in [
        |state: &mut State| (state.refuses, state.refusals) = (vec!["10.0.0.9".into()], 1),
        |state: &mut State| state.locked = 1,
    ] {
        world.program(&[("ns/a", Some(web(1, "10.0.0.1")))]).await;
        world.kernel.with(fails);
        let begun = Instant::now();
        let programmed = world.program(&[("ns/a", Some(web(1, "10.0.0.9")))]).await;
        assert!(programmed.rejected.is_empty() && world.kernel.holds("10.0.0.9:8080"));
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a100_a_large_cluster_is_written_like_a_small_one() {
    let mut world = World::start(TestKernel::new());
    world.program(&[("ns/a", Some(web(1, "10.0.0.1")))]).await;
    let chains = |world: &World| world.kernel.with(|state| state.fake.save().matches("\n:").count());
    let before = chains(&world);
    let port = t::service(&["10.96.0.2"]).port("http", Protocol::Tcp, 80, 0);
    let large = (0..1100_u32).fold(port, |service, number| {
        service.endpoint(t::endpoint(&format!("10.1.{}.{}", number / 250, number % 250 + 1), "http", 8080))
    });
    world.program(&[("ns/large", Some(large))]).await;
    assert!(world.kernel.with(|state| state.fake.save().matches("--to-destination 10.1.").count()) == 1100);
    assert!(world.kernel.holds("ns/large:http cluster IP"));
    world.program(&[("ns/large", None)]).await;
    assert_eq!(chains(&world), before, "what is stale goes at once");
}

#[tokio::test(start_paused = true)]
async fn a107_a_hundred_changes_are_two_writes() {
    let mut world = World::start(TestKernel::new());
    world.program(&[("ns/a", Some(web(1, "10.0.0.1")))]).await;
    let restores = world.kernel.with(|state| state.restores);
    for number in 1..=100_u8 {
        let change = batch(1 + u64::from(number), vec![("ns/a", Some(web(1, &format!("10.0.1.{number}"))))]);
        world.mailbox.put(change, Instant::now());
        if number == 1 {
            // The first finds nobody waiting.
            done(&mut world.programmed, 2).await;
        }
    }
    done(&mut world.programmed, 101).await;
    assert_eq!(world.kernel.with(|state| state.restores), restores + 2);
    assert!(world.kernel.holds("10.0.1.100:8080") && !world.kernel.holds("10.0.1.99:8080"));
}

#[tokio::test(start_paused = true)]
async fn a108_what_changes_in_one_family_does_not_write_the_other() {
    let kernels = [TestKernel::new(), TestKernel::new()];
    let [v4, v6] = [(Family::V4, &kernels[0]), (Family::V6, &kernels[1])]
        .map(|(family, kernel)| Xtables::new(family, kernel.clone(), Options::new(t::CLUSTER, "n1")))
        .map(Ruleset::new);
    let (told, mut programmed) = watch::channel(Programmed::default());
    let mailbox = Arc::new(Mailbox::default());
    let metrics = Metrics::register(&mut Registry::default());
    let config = Draft::default().check(Names::Flags, "n1").unwrap();
    let (_, addresses) = watch::channel(BTreeSet::new());
    let health = Health::new(Settings::plain(t::CLUSTER, "n1"), mailbox.clone(), metrics.last_heard());
    let reconciler = Reconciler::new(&config, vec![v4, v6], addresses, told, metrics, health);
    tokio::spawn(reconciler.run(mailbox.clone()));
    let both = |endpoint: &str| {
        t::service(&["10.96.0.1", "fd96::1"])
            .port("http", Protocol::Tcp, 80, 0)
            .endpoint(t::endpoint("10.0.0.1", "http", 8080).on("n1"))
            .endpoint(t::endpoint(endpoint, "http", 8080).on("n1"))
    };
    mailbox.put(batch(1, vec![("ns/a", Some(both("fd00::1")))]), Instant::now());
    done(&mut programmed, 1).await;
    assert!(kernels[0].holds("10.0.0.1:8080") && kernels[1].holds("[fd00::1]:8080"));
    let restores = || kernels.each_ref().map(|kernel| kernel.with(|state| state.restores));
    let before = restores();
    mailbox.put(batch(2, vec![("ns/a", Some(both("fd00::2")))]), Instant::now());
    done(&mut programmed, 2).await;
    assert!(kernels[1].holds("[fd00::2]:8080"));
    assert_eq!(restores(), [before[0], before[1] + 1]);
}
