//! Which flows are stale, and when it is looked for them. Names carry the row of spec/kube-proxy.md §10.9.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use distributary_model::testing as t;
use distributary_model::{Endpoint, Key, Protocol, Service};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use super::flow::{Flow, UDP};
use super::ledger::{GRACE, Ledger};
use crate::plan::{Claim, Family, NodePorts, NodeState};

const SERVING: &str = "10.240.0.4:9090";
const DESTINATIONS: [&str; 4] = ["172.30.1.1:8000", "1.2.3.4:8000", "4.5.6.7:8000", "192.0.2.1:32000"];

/// Cluster IP 172.30.1.1, VIP 1.2.3.4, external IP 4.5.6.7, port 8000, node port 32000.
fn header() -> Service {
    t::service(&["172.30.1.1"]).port("dns", Protocol::Udp, 8000, 32000).header(|header| {
        header.load_balancer_vips = vec![ip("1.2.3.4")];
        header.external_ips = vec![ip("4.5.6.7")];
    })
}

fn endpoint(address: &str) -> Endpoint {
    let address: SocketAddr = address.parse().unwrap();
    t::endpoint(&address.ip().to_string(), "dns", address.port()).protocol(Protocol::Udp)
}

/// The Service of §10.9, served by `SERVING`.
fn served() -> Service {
    header().endpoint(endpoint(SERVING))
}

fn ip(of: &str) -> IpAddr {
    of.parse().unwrap()
}

fn flow(destination: &str, reply_source: &str) -> Flow {
    Flow {
        protocol: UDP,
        destination: destination.parse().unwrap(),
        reply_source: reply_source.parse().unwrap(),
    }
}

/// A ledger, and a clock that tests turn.
struct Case {
    ledger: Ledger,
    now: Instant,
}

impl Case {
    fn of(service: &Service) -> Self {
        let mut case = Self { ledger: Ledger::new(Family::V4, t::CLUSTER.into()), now: Instant::now() };
        case.set("ns/dns", Some(service));
        case
    }

    fn set(&mut self, key: &str, service: Option<&Service>) {
        self.ledger.set(&t::key(key), service, self.now);
    }

    fn later(&mut self, by: Duration) {
        self.now += by;
    }

    fn passed(&mut self) {
        self.ledger.passed(self.now);
    }

    fn wants_a_pass(&mut self) -> bool {
        self.ledger.due().is_some_and(|due| due <= self.now)
    }

    fn stale(&self, flow: &Flow) -> bool {
        self.ledger.is_stale(flow, |address| *address == ip("192.0.2.1"), self.now)
    }

    fn stale_to(&self, destination: &str, reply_source: &str) -> bool {
        self.stale(&flow(destination, reply_source))
    }
}

#[test]
fn a109_flows_to_a_serving_endpoint_are_kept() {
    let case = Case::of(&served());
    for destination in DESTINATIONS {
        assert!(!case.stale_to(destination, SERVING), "{destination}");
    }
}

#[test]
fn a110_flows_to_anything_else_are_stale() {
    let not_serving = endpoint("10.240.0.5:9090").conditions(false, false, false);
    let case = Case::of(&served().endpoint(not_serving));
    for destination in DESTINATIONS {
        let removed = "10.240.0.6:9090";
        for reply_source in [removed, "10.240.0.5:9090", "10.240.0.4:9091"] {
            assert!(case.stale_to(destination, reply_source), "{destination} by {reply_source}");
        }
    }
}

#[test]
fn a111_untranslated_flows_are_stale_once_there_is_an_endpoint() {
    let mut case = Case::of(&header());
    case.later(2 * GRACE);
    for destination in DESTINATIONS {
        assert!(!case.stale_to(destination, destination), "{destination} before");
    }
    case.passed();
    assert!(!case.wants_a_pass());
    case.set("ns/dns", Some(&served()));
    assert!(case.wants_a_pass());
    for destination in DESTINATIONS {
        assert!(case.stale_to(destination, destination), "{destination}");
    }
}

#[test]
fn a112_flows_to_another_port_are_kept() {
    let case = Case::of(&served());
    for destination in ["172.30.1.1:8001", "1.2.3.4:53", "4.5.6.7:32001", "192.0.2.1:8000"] {
        assert!(!case.stale_to(destination, destination));
        assert!(!case.stale_to(destination, "10.240.0.6:9090"));
    }
}

#[test]
fn a113_flows_to_the_node_port_of_this_host_are_judged_and_no_others() {
    let case = Case::of(&served());
    assert!(case.stale_to("192.0.2.1:32000", "10.240.0.6:9090"));
    assert!(case.stale_to("192.0.2.1:32000", "192.0.2.1:32000"));
    // WART-9: what passes through to the same port of somebody else.
    assert!(!case.stale_to("203.0.113.9:32000", "203.0.113.9:32000"));
    assert!(!case.stale_to("203.0.113.9:32000", "10.240.0.6:9090"));
}

#[test]
fn a113_node_ports_are_where_the_node_has_them() {
    let mut case = Case::of(&served());
    let loopback = flow("127.0.0.1:32000", "127.0.0.1:32000");
    assert!(!case.stale(&loopback));
    let mut at = |node_ports| {
        case.ledger.set_node(NodeState { node_ports, ..NodeState::default() }, case.now);
        [&loopback, &flow("192.0.2.1:32000", "10.240.0.6:1"), &flow("192.0.2.7:32000", "10.240.0.6:1")]
            .map(|flow| case.stale(flow))
    };
    assert_eq!(at(NodePorts::Everywhere { loopback: true }), [true, true, false]);
    assert_eq!(at(NodePorts::At([ip("192.0.2.7")].into())), [false, false, true]);
}

#[test]
fn a114_other_protocols_are_kept() {
    let tcp = served().port("tcp", Protocol::Tcp, 8000, 32000);
    let case = Case::of(&tcp);
    for protocol in [6, 132] {
        for destination in DESTINATIONS {
            assert!(!case.stale(&Flow { protocol, ..flow(destination, "10.240.0.6:9090") }));
        }
    }
}

#[test]
fn what_rules_of_an_earlier_run_led_from_is_stale_where_nobody_has_it_now() {
    let mut case = Case::of(&served());
    case.passed();
    let address = |of: &str, protocol| {
        let of: SocketAddr = of.parse().unwrap();
        Claim::Address(of.ip(), protocol, of.port())
    };
    let known = [address(DESTINATIONS[0], Protocol::Udp), address("172.30.1.2:53", Protocol::Tcp)];
    case.ledger.retire(&known.into(), case.now);
    assert!(!case.wants_a_pass(), "all of them are somebody's, or not ours to judge");
    let former = [address("172.30.1.2:53", Protocol::Udp), Claim::NodePort(Protocol::Udp, 32001)];
    case.ledger.retire(&former.into(), case.now);
    assert!(case.wants_a_pass());
    assert!(case.stale_to("172.30.1.2:53", SERVING) && case.stale_to("192.0.2.1:32001", SERVING));
    assert!(!case.stale_to("172.30.1.2:53", "172.30.1.2:53"), "nobody has translated it");
    assert!(!case.stale_to("203.0.113.9:32001", SERVING), "another host's");
    case.passed();
    assert!(!case.wants_a_pass() && !case.stale_to("172.30.1.2:53", SERVING));
}

#[test]
fn a115_without_serving_endpoints_flows_are_kept_for_a_moment_only() {
    let mut case = Case::of(&served());
    case.passed();
    case.set("ns/dns", Some(&header().endpoint(endpoint(SERVING).conditions(false, false, true))));
    for destination in DESTINATIONS {
        assert!(!case.stale_to(destination, SERVING));
    }
    assert!(!case.wants_a_pass());
    // What happens to it meanwhile does not begin the time anew.
    case.later(GRACE / 2);
    case.set("ns/dns", Some(&header()));
    case.later(GRACE / 2);
    assert!(case.wants_a_pass());
    for destination in DESTINATIONS {
        assert!(case.stale_to(destination, SERVING));
        assert!(!case.stale_to(destination, destination), "nobody has translated it");
    }
    case.passed();
    assert_eq!(case.ledger.due(), None);
}

#[test]
fn a115_endpoints_that_are_back_in_time_keep_their_flows() {
    let mut case = Case::of(&served());
    case.set("ns/dns", Some(&header()));
    case.later(GRACE / 2);
    case.set("ns/dns", Some(&served()));
    case.passed();
    case.later(GRACE);
    assert!(!case.wants_a_pass());
    assert!(!case.stale_to(DESTINATIONS[0], SERVING));
}

#[test]
fn a116_flows_to_a_terminating_endpoint_that_serves_are_kept() {
    let mut case = Case::of(&served());
    case.passed();
    case.set("ns/dns", Some(&header().endpoint(endpoint(SERVING).terminating())));
    assert!(!case.wants_a_pass());
    for destination in DESTINATIONS {
        assert!(!case.stale_to(destination, SERVING));
    }
}

#[test]
fn a117_a_service_that_keeps_its_destinations_wants_no_pass() {
    let mut case = Case::of(&served());
    case.passed();
    let policies = served().header(|header| {
        header.internal_policy_local = true;
        header.affinity_seconds = 10;
        header.source_ranges = vec!["10.0.0.0/8".parse().unwrap()];
    });
    case.set("ns/dns", Some(&policies));
    case.set("ns/tcp", Some(&t::service(&["172.30.1.2"]).port("http", Protocol::Tcp, 80, 0)));
    assert!(!case.wants_a_pass());
}

#[test]
fn flows_to_what_is_no_destination_any_more_are_stale() {
    let moved = served().header(|header| {
        header.cluster_ips = vec![ip("172.30.1.9")];
        header.load_balancer_vips.clear();
        header.external_ips.clear();
        header.ports[0].node_port = 0;
    });
    for (what, now) in [("deleted", None), ("moved", Some(&moved))] {
        let mut case = Case::of(&served());
        case.passed();
        case.set("ns/dns", now);
        assert!(case.wants_a_pass(), "{what}");
        for destination in DESTINATIONS {
            assert!(case.stale_to(destination, SERVING), "{what}: {destination}");
            assert!(!case.stale_to(destination, destination), "{what}: {destination} untranslated");
        }
        case.passed();
        assert!(!case.stale_to(DESTINATIONS[0], SERVING), "{what}: after the pass it is nobody's");
    }
}

#[test]
fn a_service_that_comes_back_judges_its_flows_itself() {
    let mut case = Case::of(&served());
    case.passed();
    case.set("ns/dns", None);
    case.set("ns/dns", Some(&served()));
    assert!(!case.stale_to(DESTINATIONS[0], SERVING));
    case.set("ns/dns", None);
    case.set("ns/dns", Some(&header().endpoint(endpoint("10.240.0.9:9090"))));
    assert!(case.wants_a_pass());
    assert!(case.stale_to(DESTINATIONS[0], SERVING));
}

#[test]
fn the_owner_of_an_address_judges_its_flows() {
    let other = "10.240.0.7:9090";
    let mut case = Case::of(&header().header(|header| header.created = 2).endpoint(endpoint(SERVING)));
    let older = t::service(&["172.30.1.1"]).port("dns", Protocol::Udp, 8000, 0).endpoint(endpoint(other));
    case.set("ns/older", Some(&older.header(|header| header.created = 1)));
    assert!(case.stale_to("172.30.1.1:8000", SERVING));
    assert!(!case.stale_to("172.30.1.1:8000", other));
    assert!(!case.stale_to("192.0.2.1:32000", SERVING), "the other still has its node port");
    case.passed();
    case.set("ns/older", None);
    assert!(case.wants_a_pass());
    assert!(!case.stale_to("172.30.1.1:8000", SERVING));
    assert!(case.stale_to("172.30.1.1:8000", other));
}

#[test]
fn rules_that_were_lost_want_a_pass_where_there_is_udp() {
    let mut case = Case::of(&served());
    case.passed();
    case.ledger.touch(case.now);
    assert!(case.wants_a_pass());
    let mut case = Case::of(&t::service(&["172.30.1.2"]).port("http", Protocol::Tcp, 80, 0));
    case.ledger.touch(case.now);
    assert!(!case.wants_a_pass());
}

proptest! {
    /// Whatever happened before, and whenever passes were: what is judged stale after the last one is what a ledger says
    /// that has seen nothing but the last state.
    #[test]
    fn history_does_not_matter(
        steps in vec((0..4_usize, proptest::option::of(t::any_service()), any::<bool>()), 1..20),
        order in any::<Index>(),
    ) {
        for family in [Family::V4, Family::V6] {
            let start = Instant::now();
            let keys: Vec<Arc<Key>> = ["a/a", "a/b", "b/a", "b/b"].iter().map(|key| t::key(key)).collect();
            let mut lived = Ledger::new(family, t::CLUSTER.into());
            let mut last: [Option<&Service>; 4] = [None; 4];
            for (i, (which, service, pass)) in steps.iter().enumerate() {
                let now = start + Duration::from_secs(i as u64);
                lived.set(&keys[*which], service.as_ref(), now);
                last[*which] = service.as_ref();
                if *pass {
                    lived.passed(now);
                }
            }
            let end = start + Duration::from_secs(60);
            lived.passed(end);
            let mut fresh = Ledger::new(family, t::CLUSTER.into());
            for i in 0..4 {
                let which = (i + order.index(4)) % 4;
                fresh.set(&keys[which], last[which], start);
            }
            fresh.passed(end);
            prop_assert_eq!(lived.due(), None);
            prop_assert_eq!(fresh.due(), None);
            for flow in every_flow(family) {
                let judge = |ledger: &Ledger| ledger.is_stale(&flow, |_| true, end);
                prop_assert_eq!(judge(&lived), judge(&fresh), "{:?}", flow);
            }
        }
    }
}

/// All that the small world of [`t::any_service`] can have.
fn every_flow(family: Family) -> impl Iterator<Item = Flow> {
    let address = move |last: u8| match family {
        Family::V4 => IpAddr::from([10, 0, 0, last]),
        Family::V6 => IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, last.into()]),
    };
    let destinations =
        (1..20).flat_map(move |last| (1..4).map(move |port| SocketAddr::new(address(last), port)));
    destinations.flat_map(move |destination| {
        let endpoints =
            (1..20).flat_map(move |last| (8000..8003).map(move |port| (address(last), port).into()));
        let sources = endpoints.chain([destination]);
        sources.map(move |reply_source| Flow { protocol: UDP, destination, reply_source })
    })
}
