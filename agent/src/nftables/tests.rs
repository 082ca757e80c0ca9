use std::net::IpAddr;
use std::sync::Arc;

use distributary_model::testing::{CLUSTER, endpoint, key, service};
use distributary_model::{Protocol, Service};

use super::fake::Fake;
use super::*;
use crate::plan::Detector;

const NODE: &str = "n1";

fn node() -> NodeState {
    let detector = Some(Detector::ClusterCidr("10.128.0.0/9".parse().unwrap()));
    let address = Some("192.168.0.2".parse().unwrap());
    NodeState { detector, address, ..NodeState::default() }
}

fn of(family: Family) -> Nftables {
    let mut rules = Nftables::new(family, Options::new(CLUSTER, NODE));
    rules.set_node(node());
    rules
}

/// Writes until there is nothing to write. Between any two transactions each packet finds who it was led to.
fn settle(rules: &mut Nftables, kernel: &mut Fake) -> Write {
    let write = rules.write().unwrap_or_default();
    for text in write.main.iter().chain(&write.later) {
        let before = kernel.clone();
        kernel.apply(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
        kernel.holds_for(&before).unwrap_or_else(|e| panic!("{e}\n{}", write.text()));
    }
    rules.written();
    if write.sweep.as_ref().is_some_and(|sweep| kernel.apply(sweep).is_ok()) {
        rules.swept();
    }
    assert_eq!(rules.write(), None);
    write
}

fn shop() -> Vec<(Arc<Key>, Service)> {
    let web = service(&["10.96.0.10", "fd00::10"])
        .port("http", Protocol::Tcp, 80, 30_080)
        .endpoint(endpoint("10.128.0.1", "http", 8080).on(NODE))
        .endpoint(endpoint("10.128.1.1", "http", 8080).on("n2"))
        .endpoint(endpoint("10.128.2.1", "http", 8080).on("n3"))
        .endpoint(endpoint("fd01::1", "http", 8080).on(NODE));
    let local = service(&["10.96.0.11", "fd00::11"])
        .port("", Protocol::Udp, 53, 30_053)
        .endpoint(endpoint("10.128.0.2", "", 53).protocol(Protocol::Udp).on(NODE))
        .endpoint(endpoint("10.128.1.2", "", 53).protocol(Protocol::Udp).on("n2"))
        .header(|header| {
            header.external_policy_local = true;
            header.load_balancer_vips = vec!["1.2.3.4".parse().unwrap()];
            header.source_ranges = vec!["192.168.0.0/24".parse().unwrap(), "192.168.0.0/25".parse().unwrap()];
        });
    let elsewhere = service(&["10.96.0.12"])
        .port("", Protocol::Sctp, 9, 0)
        .endpoint(endpoint("10.128.1.3", "", 9).protocol(Protocol::Sctp).on("n2"))
        .header(|header| header.internal_policy_local = true);
    let sticky = service(&["10.96.0.14"])
        .port("", Protocol::Tcp, 443, 30_443)
        .endpoint(endpoint("10.128.1.3", "", 8443))
        .endpoint(endpoint("10.128.0.3", "", 8443).on(NODE))
        .header(|header| header.affinity_seconds = 60);
    let empty = service(&["10.96.0.13", "fd00::13"]).port("http", Protocol::Tcp, 80, 30_013);
    vec![
        (key("shop/web"), web),
        (key("shop/local"), local),
        (key("shop/elsewhere"), elsewhere),
        (key("shop/sticky"), sticky),
        (key("shop/empty"), empty),
    ]
}

fn with_shop(family: Family) -> Nftables {
    let mut rules = of(family);
    for (key, service) in shop() {
        rules.set(&key, Some(Arc::new(service)));
    }
    rules.set_service_cidrs(&["10.96.0.0/12".parse().unwrap(), "fd00::/112".parse().unwrap()]);
    rules
}

#[test]
fn a_small_shop() {
    insta::assert_snapshot!("shop-v4", with_shop(Family::V4).write().unwrap().text());
    let mut v6 = with_shop(Family::V6);
    let detector = Some(Detector::Prefix("veth".into()));
    let node_ports = NodePorts::At(["2001:db8::2".parse().unwrap()].into());
    v6.set_node(NodeState { detector, node_ports, ..node() });
    insta::assert_snapshot!("shop-v6", v6.write().unwrap().text());
}

#[test]
fn adopting_what_was_written_writes_nothing() {
    for family in [Family::V4, Family::V6] {
        let (mut kernel, mut again) = (Fake::default(), with_shop(family));
        settle(&mut with_shop(family), &mut kernel);
        again.adopt(parse(&kernel.list()));
        assert_eq!(again.write(), None);
        assert!(again.keys().count() == 5);
    }
}

#[test]
fn one_endpoint_more_or_less_is_few_elements() {
    let (mut kernel, mut rules) = (Fake::default(), with_shop(Family::V4));
    settle(&mut rules, &mut kernel);
    let (key, web) = shop().remove(0);
    let more = web.clone().endpoint(endpoint("10.128.0.0", "http", 8080).on("n2"));
    rules.set(&key, Some(Arc::new(more)));
    let write = settle(&mut rules, &mut kernel);
    // An endpoint and a verdict at the cluster IP, and at the node port.
    assert_eq!((write.main.len(), write.later.len(), write.elements), (1, 0, 4), "{}", write.text());
    rules.set(&key, Some(Arc::new(web)));
    let write = settle(&mut rules, &mut kernel);
    assert_eq!((write.main.len(), write.later.len(), write.elements), (1, 1, 4), "{}", write.text());
}

#[test]
fn somebody_elses_table_of_our_name_is_made_anew() {
    let (mut kernel, mut rules) = (Fake::default(), with_shop(Family::V4));
    let old = "add table ip distributary\nadd chain ip distributary services\n";
    kernel.apply(old).unwrap();
    rules.adopt(parse(&kernel.list()));
    settle(&mut rules, &mut kernel);
    let mut fresh = Fake::default();
    settle(&mut with_shop(Family::V4), &mut fresh);
    assert_eq!(kernel, fresh);
}

#[test]
fn what_somebody_changed_is_found_and_put_right() {
    let (mut kernel, mut rules) = (Fake::default(), with_shop(Family::V4));
    settle(&mut rules, &mut kernel);
    let right = kernel.clone();
    for meddling in [
        "add element ip distributary services {\n10.96.0.99 . 6 . 1 : drop,\n}\n",
        "delete element ip distributary services {\n10.96.0.10 . 6 . 80,\n}\n",
        "add rule ip distributary dispatch accept\n",
        "flush chain ip distributary tcp-3\n",
        "flush chain ip distributary nat-prerouting\n",
        "add chain ip distributary somebody\n",
        "delete table ip distributary\n",
    ] {
        kernel.apply(meddling).unwrap();
        rules.adopt(parse(&kernel.list()));
        settle(&mut rules, &mut kernel);
        assert_eq!(kernel, right, "{meddling}");
    }
}

#[test]
fn what_is_busy_is_swept_with_the_next_write() {
    let (mut kernel, mut rules) = (Fake::default(), with_shop(Family::V4));
    settle(&mut rules, &mut kernel);
    kernel.busy = true;
    rules.set(&key("shop/sticky"), None);
    settle(&mut rules, &mut kernel);
    assert!(kernel.list().contains("sticky-"));
    kernel.busy = false;
    rules.set(&key("shop/web"), None);
    settle(&mut rules, &mut kernel);
    assert!(!kernel.list().contains("sticky-") && !kernel.list().contains("clients-"));
}

#[test]
fn a_large_load_is_cut() {
    let (mut kernel, mut rules) = (Fake::default(), with_shop(Family::V4));
    rules.set_section(3);
    let write = settle(&mut rules, &mut kernel);
    assert!(write.main.len() > 5);
    let mut whole = Fake::default();
    settle(&mut with_shop(Family::V4), &mut whole);
    assert_eq!(kernel, whole);
}

/// A small world, in which everything collides.
struct World(fastrand::Rng);

impl World {
    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.0.usize(..of.len())]
    }

    fn often(&mut self, one_in: usize) -> bool {
        self.0.usize(..one_in) == 0
    }

    fn addresses(&mut self, net: u8, most: u8) -> Vec<IpAddr> {
        let count = self.0.u8(..2);
        let mut all: Vec<IpAddr> =
            (0..count).map(|_| IpAddr::from([10, 96, net, self.0.u8(1..=most)])).collect();
        all.sort();
        all.dedup();
        all
    }

    fn service(&mut self) -> Service {
        let cluster_ip = format!("10.96.0.{}", self.0.u8(1..8));
        let mut one = service(&[&cluster_ip]);
        for name in ["http", "dns"].iter().take(self.0.usize(1..=2)) {
            let protocol = self.one(&[Protocol::Tcp, Protocol::Udp]);
            one = one.port(name, protocol, self.0.u16(80..82), self.one(&[0, 0, 30_000, 30_001]));
        }
        for _ in 0..self.0.usize(..7) {
            let address = format!("10.128.0.{}", self.0.u8(1..12));
            let (name, protocol) = (self.one(&["http", "dns"]), self.one(&[Protocol::Tcp, Protocol::Udp]));
            let node = self.one(&["", NODE, "n2"]);
            let ready = !self.often(5);
            let new =
                endpoint(&address, name, 8080).protocol(protocol).on(node).conditions(ready, ready, !ready);
            if !one.endpoints.iter().any(|old| old.address == new.address && old.ports == new.ports) {
                one = one.endpoint(new);
            }
        }
        let (external_ips, vips) = (self.addresses(1, 3), self.addresses(1, 3));
        let (internal, external, sticky, ranged) =
            (self.often(5), self.often(3), self.often(6), self.often(5));
        let created = self.0.i64(0..3);
        one.header(|header| {
            header.external_ips = external_ips;
            header.load_balancer_vips = vips;
            header.internal_policy_local = internal;
            header.external_policy_local = external;
            header.affinity_seconds = if sticky { 60 } else { 0 };
            header.source_ranges = if ranged { vec!["192.168.0.0/24".parse().unwrap()] } else { Vec::new() };
            header.created = created;
        })
    }

    fn node(&mut self) -> NodeState {
        let detector = self.one(&["", "10.128.0.0/9", "10.128.0.0/16"]);
        let detector = detector.parse().ok().map(Detector::ClusterCidr);
        let node_ports = match self.often(2) {
            true => NodePorts::Everywhere { loopback: false },
            false => NodePorts::At([IpAddr::from([192, 168, 0, self.0.u8(1..3)])].into()),
        };
        NodeState { detector, node_ports, ..node() }
    }
}

/// Any history leads to what a fresh table means, and no packet is without an endpoint on the way. A kernel that holds
/// on to chains, restarts, and nodes that change are part of it.
#[test]
fn any_history_means_the_same_as_a_fresh_table() {
    let changes: usize =
        std::env::var("DISTRIBUTARY_CHANGES").ok().and_then(|n| n.parse().ok()).unwrap_or(100_000);
    let seed = std::env::var("DISTRIBUTARY_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("DISTRIBUTARY_SEED={seed}");
    let mut world = World(fastrand::Rng::with_seed(seed));
    let (mut kernel, mut rules) = (Fake::default(), of(Family::V4));
    let mut done = 0;
    while done < changes {
        for _ in 0..world.0.usize(1..8) {
            let key = key(world.one(&["a/a", "a/b", "b/a", "b/b", "c/c", "c/d"]));
            let service = (!world.often(4)).then(|| Arc::new(world.service()));
            rules.set(&key, service);
            done += 1;
        }
        if world.often(200) {
            let node = world.node();
            rules.set_node(node);
        }
        if world.often(100) {
            kernel.busy = !kernel.busy;
        }
        settle(&mut rules, &mut kernel);
        if world.often(50) {
            let mut fresh = Nftables::new(Family::V4, Options::new(CLUSTER, NODE));
            fresh.set_node(rules.node().clone());
            for key in rules.keys() {
                fresh.set(key, rules.get(key).cloned());
            }
            let mut again = Fake::default();
            settle(&mut fresh, &mut again);
            assert_eq!(kernel.meaning(), again.meaning(), "after {done} changes");
            assert_eq!((fresh.without_local(), kernel.meaning().is_ok()), (rules.without_local(), true));
            // What was counted is what is there, so a restart has nothing to write but what is left to sweep.
            fresh.adopt(parse(&kernel.list()));
            let write = fresh.write().unwrap_or_default();
            assert_eq!((write.main, write.later), (vec![], vec![]), "after {done} changes");
            fresh.written();
            if world.often(3) {
                rules = fresh;
            }
        }
    }
}
