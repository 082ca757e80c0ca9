//! What the rules are told of the node.

use distributary_model::NodeView;

use super::*;
use crate::config::DetectLocalMode;
use crate::config::value::NodePortAddress;

fn shop() -> Services {
    let service = t::service(&["10.96.0.1"])
        .port("http", Protocol::Tcp, 80, 30080)
        .endpoint(t::endpoint("10.0.0.1", "http", 8080).on("n1"));
    [(t::key("ns/a"), Some(Arc::new(service)))].into()
}

fn batch(services: Services, node: Option<NodeView>, revision: u64) -> Batch {
    let cursor = Some(Cursor { epoch: Epoch([1; 16]), through: Revision(revision) });
    Batch { services, node: Some(node), cursor, ..Batch::default() }
}

async fn until(seen: &mut watch::Receiver<Programmed>, revision: u64) {
    let through = |programmed: &Programmed| {
        programmed.cursor.is_some_and(|cursor| cursor.through == Revision(revision))
    };
    seen.wait_for(through).await.unwrap();
}

fn node(address: &str, pod_cidr: &str) -> Option<NodeView> {
    Some(NodeView {
        addresses: vec![address.parse().unwrap()],
        pod_cidrs: vec![pod_cidr.parse().unwrap()],
        ..NodeView::default()
    })
}

fn ips(all: &[&str]) -> BTreeSet<IpAddr> {
    all.iter().map(|ip| ip.parse().unwrap()).collect()
}

#[tokio::test(start_paused = true)]
async fn nothing_is_written_before_the_node_is_known_and_node_ports_follow_its_addresses() {
    let draft = Draft { node_ports: vec![NodePortAddress::Primary], ..Draft::default() };
    let (to, addresses) = watch::channel(ips(&["127.0.0.1"]));
    let mut world = World::told(TestKernel::new(), draft, addresses);
    world.mailbox.put(batch(shop(), None, 1), Instant::now());
    let waiting = tokio::time::timeout(20 * REMINDED, until(&mut world.programmed, 1)).await;
    assert!(waiting.is_err() && world.kernel.with(|state| state.restores) == 0, "nothing is written");
    world.mailbox.put(batch(Services::new(), node("192.0.2.1", "10.1.0.0/24"), 2), Instant::now());
    until(&mut world.programmed, 2).await;
    assert!(world.kernel.holds("10.0.0.1:8080") && !world.kernel.holds("-d 192.0.2.1/32"));
    to.send_replace(ips(&["127.0.0.1", "192.0.2.1"]));
    tokio::time::timeout(REMINDED, async {
        while !world.kernel.holds("-d 192.0.2.1/32") {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
}

/// Longer than it takes until somebody is reminded.
const REMINDED: Duration = Duration::from_secs(400);

#[tokio::test(start_paused = true)]
async fn other_pod_cidrs_make_the_rules_anew_and_none_leave_them() {
    let draft = Draft { detect_local_mode: DetectLocalMode::NodeCidr, ..Draft::default() };
    let (_, addresses) = watch::channel(BTreeSet::new());
    let mut world = World::told(TestKernel::new(), draft, addresses);
    for (revision, net) in [(1, "10.1.0.0/24"), (2, "10.2.0.0/24")] {
        world.mailbox.put(batch(shop(), node("192.0.2.1", net), revision), Instant::now());
        until(&mut world.programmed, revision).await;
        assert!(world.kernel.holds(&format!("! -s {net}")), "{net}");
    }
    world.mailbox.put(batch(Services::new(), Some(NodeView::default()), 3), Instant::now());
    until(&mut world.programmed, 3).await;
    assert!(world.kernel.holds("! -s 10.2.0.0/24"));
}

#[tokio::test(start_paused = true)]
async fn writes_keep_their_distance_where_that_is_wanted() {
    let pause = Duration::from_secs(20);
    let draft = Draft { min_sync_period: pause, ..Draft::default() };
    let (_, addresses) = watch::channel(BTreeSet::new());
    let mut world = World::told(TestKernel::new(), draft, addresses);
    let began = tokio::time::Instant::now();
    world.program(&[("ns/a", Some(web(1, "10.0.0.1")))]).await;
    assert!(began.elapsed() < pause, "the first one comes at once");
    world.program(&[("ns/a", Some(web(1, "10.0.0.2")))]).await;
    assert!(began.elapsed() >= pause);
}
