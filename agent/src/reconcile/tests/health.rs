//! What the node's health says of the kernel.

use super::*;

#[tokio::test(start_paused = true)]
async fn a124_a_kernel_that_takes_nothing_is_unhealthy_after_two_sync_periods_and_not_before() {
    let mut world = World::start(TestKernel::new());
    world.program(&[("ns/a", Some(web(1, "10.0.0.1")))]).await;
    tokio::time::sleep(Duration::from_secs(3_600)).await;
    assert_eq!(world.health.livez().status, 200, "nothing was received for an hour");
    world.kernel.with(|state| state.locked = usize::MAX);
    let services = [(t::key("ns/a"), Some(Arc::new(web(1, "10.0.0.2"))))].into();
    let received = tokio::time::Instant::now();
    world.mailbox.put(Batch { services, ..Batch::default() }, received.into_std());
    tokio::time::sleep_until(received + Duration::from_millis(59_900)).await;
    assert_eq!(world.health.livez().status, 200);
    tokio::time::sleep_until(received + Duration::from_secs(60)).await;
    assert_eq!(world.health.livez().status, 503);
    world.kernel.with(|state| state.locked = 0);
    while !world.kernel.holds("10.0.0.2:8080") {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(world.health.livez().status, 200);
}

#[tokio::test(start_paused = true)]
async fn health_checks_show_what_the_kernel_has_and_keep_it_where_the_kernel_refuses() {
    let checked = |last: u8, endpoint: &str| {
        web(last, endpoint).header(|header| header.health_check_node_port = 32_000 + u16::from(last))
    };
    let mut world = World::start(TestKernel::new());
    world.program(&[("ns/a", Some(checked(1, "10.0.0.1"))), ("ns/b", Some(checked(2, "10.0.0.2")))]).await;
    let local = |world: &World, name: &str| world.health.check(&(Family::V4, t::key(name))).1;
    assert_eq!((local(&world, "ns/a"), world.health.ports().len()), (1, 2));
    world.kernel.with(|state| state.refuses.push("10.6.6.6".into()));
    let refused = checked(1, "10.6.6.6").endpoint(t::endpoint("10.0.0.9", "http", 8080).on("n1"));
    let more = checked(2, "10.0.0.2").endpoint(t::endpoint("10.0.0.3", "http", 8080).on("n1"));
    world.program(&[("ns/a", Some(refused)), ("ns/b", Some(more))]).await;
    assert_eq!((local(&world, "ns/a"), local(&world, "ns/b")), (1, 2));
    world.program(&[("ns/b", None)]).await;
    assert_eq!((local(&world, "ns/b"), world.health.ports().len()), (0, 1));
}
