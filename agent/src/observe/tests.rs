//! What kube-proxy wrote against what we would write, with rules changed by hand.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use distributary_model::testing::{CLUSTER, endpoint, key, service};
use distributary_model::{Protocol, Service};

use super::difference::{Clients, Difference, Kind};
use super::side::Side;
use crate::iptables::Options;
use crate::plan::{Detector, Family, NodePorts, NodeState};

/// Its services are those of [`shop`].
const KUBE_PROXY: &str = include_str!("../iptables/trace/kube-proxy.save");

fn shop() -> [(&'static str, Service); 5] {
    let at = |address: &str, node: &str| endpoint(address, "http", 8080).on(node);
    let both = |service: Service| service.endpoint(at("10.244.0.2", "n1")).endpoint(at("10.244.1.2", "n2"));
    let cluster = service(&["10.96.1.1"]).port("http", Protocol::Tcp, 80, 30080).header(|header| {
        header.external_ips = vec!["203.0.113.50".parse().unwrap()];
        header.load_balancer_vips = vec!["203.0.113.60".parse().unwrap()];
        header.affinity_seconds = 10_800;
    });
    let local = service(&["10.96.1.2"]).port("http", Protocol::Tcp, 80, 30081).header(|header| {
        header.external_policy_local = true;
        header.load_balancer_vips = vec!["203.0.113.61".parse().unwrap()];
        header.source_ranges = vec!["192.0.2.0/25".parse().unwrap()];
        header.health_check_node_port = 31000;
    });
    let elsewhere = service(&["10.96.1.3"])
        .port("http", Protocol::Udp, 53, 0)
        .endpoint(at("10.244.1.2", "n2").protocol(Protocol::Udp))
        .header(|header| header.internal_policy_local = true);
    let kubernetes = service(&["10.96.0.1"]).port("https", Protocol::Tcp, 443, 0);
    [
        ("shop/cluster", both(cluster)),
        ("shop/local", both(local)),
        ("shop/elsewhere", elsewhere),
        ("shop/empty", service(&["10.96.1.4"]).port("http", Protocol::Sctp, 9, 30083)),
        ("default/kubernetes", kubernetes.endpoint(endpoint("192.0.2.1", "https", 6443))),
    ]
}

fn node() -> NodeState {
    NodeState {
        address: Some("192.0.2.1".parse().unwrap()),
        detector: Some(Detector::ClusterCidr("10.244.0.0/16".parse().unwrap())),
        node_ports: NodePorts::Everywhere { loopback: true },
        ..NodeState::default()
    }
}

fn side(node: NodeState) -> Side {
    let mut side = Side::new(Family::V4, Options::new(CLUSTER, "n1"));
    side.set_node(node);
    for (name, service) in shop() {
        side.set(&key(name), Some(Arc::new(service)));
    }
    side
}

fn addresses() -> BTreeSet<IpAddr> {
    ["127.0.0.1", "192.0.2.1", "10.244.0.1"].map(|address| address.parse().unwrap()).into()
}

fn found(rules: &str) -> BTreeSet<Difference> {
    let (comparison, _) = side(node()).compare(rules, &addresses()).unwrap();
    comparison.differences
}

fn told(rules: &str) -> Vec<String> {
    let told = |one: Difference| {
        let Difference { kind, destination, service, clients, kernel, ours, .. } = one;
        let clients = Clients(&clients);
        format!("{kind:?} {service} at {destination} from {clients}: kernel {kernel}; ours {ours}")
    };
    found(rules).into_iter().map(told).collect()
}

#[test]
fn kube_proxys_rules_mean_what_ours_do() {
    let mut side = side(node());
    let (comparison, news) = side.compare(KUBE_PROXY, &addresses()).unwrap();
    assert_eq!(told(KUBE_PROXY), [""; 0]);
    assert!(comparison.destinations > 10 && comparison.packets > 50, "{comparison:?}");
    assert_eq!(news.fresh, 0);
}

/// Without one rule, or with another, something is told, and it is told of the right service.
#[test]
fn a_rule_that_is_changed_is_found() {
    for (what, with, expected) in [
        (
            " -j DNAT --to-destination 192.0.2.1:6443",
            " -j ACCEPT",
            &["Missing default/kubernetes:https at 10.96.0.1:443 from a pod: \
             kernel leaves it alone; ours sends it to 192.0.2.1:6443 (100 %)"][..],
        ),
        (
            "--probability 0.50000000000 -j KUBE-SEP-C3",
            "--probability 0.60000000000 -j KUBE-SEP-C3",
            &["sends it to 10.244.0.2:8080 (60 %), 10.244.1.2:8080 (40 %)"],
        ),
        (
            "-j REJECT --reject-with icmp-port-unreachable\n-A KUBE-FIREWALL",
            "-j DROP\n-A KUBE-FIREWALL",
            &[
                "Refusal shop/empty:http at 192.0.2.1:30083",
                "kernel drops it in INPUT; ours rejects it in INPUT",
            ],
        ),
        (
            "-A KUBE-FW-F3GRYTE7HT6BGIBF -s 192.0.2.0/25",
            "-A KUBE-FW-F3GRYTE7HT6BGIBF -s 192.0.0.0/16",
            &["Refusal shop/local:http at 203.0.113.61:80 from 192.0.0.0/16: \
             kernel sends it to 10.244.0.2:8080 (100 %); ours drops it in FORWARD"],
        ),
        (
            "--dport 31000 -j ACCEPT",
            "--dport 31000 -j RETURN",
            &[
                "Acceptance shop/local:http at 192.0.2.1:31000 from a pod, the node, outside",
                "kernel leaves it alone; ours leaves it alone, and accepts it in filter",
            ],
        ),
        ("-j MASQUERADE --random-fully", "-j ACCEPT", &["Masquerade shop/cluster:http at 203.0.113.50:80"]),
        (
            "--seconds 10800 --reap --name KUBE-SEP-WM",
            "--seconds 60 --reap --name KUBE-SEP-WM",
            &["Affinity shop/cluster:http at 10.96.1.1:80 from a client of 10799 s ago"],
        ),
        (
            "-m recent --set --name KUBE-SEP-WMOZUTZFWPSOB27L --mask 255.255.255.255 --rsource ",
            "",
            &[
                "Affinity shop/cluster:http at 10.96.1.1:80 from a pod",
                "remembered in KUBE-SEP-WMOZUTZFWPSOB27L",
            ],
        ),
        (
            "-A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD\n",
            "",
            &["Acceptance"],
        ),
        (
            "-A KUBE-SERVICES -d 10.96.0.1/32",
            "-A KUBE-SERVICES -m set --match-set x dst -d 10.96.0.1/32",
            &[
                "Unknown default/kubernetes:https at 10.96.0.1:443",
                "depends on a rule that is not understood: -A KUBE-SERVICES -m set --match-set x dst",
            ],
        ),
        (
            "-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n",
            "",
            &["Missing default/kubernetes:https at 10.96.0.1:443 from a pod, outside"],
        ),
    ] {
        assert!(KUBE_PROXY.contains(what), "{what}");
        let told = told(&KUBE_PROXY.replacen(what, with, 1));
        for expected in expected {
            assert!(told.iter().any(|line| line.contains(expected)), "{what}: {expected} in {told:#?}");
        }
    }
}

/// What a service is that only the kernel knows stands in its rules.
#[test]
fn a_service_that_is_gone_is_named_by_the_rules() {
    let mut side = side(node());
    side.set(&key("default/kubernetes"), None);
    let (comparison, _) = side.compare(KUBE_PROXY, &addresses()).unwrap();
    let services: BTreeSet<String> = comparison.differences.iter().map(|one| one.service.clone()).collect();
    assert_eq!(services, ["default/kubernetes:https".to_owned()].into());
    assert!(comparison.differences.iter().all(|one| one.kind == Kind::Extra));
}

/// kube-proxy takes an address by the external IP of the same service before it looks at source ranges.
#[test]
fn what_is_meant_otherwise_is_told_apart() {
    let mut side = side(node());
    let filtered = |service: Service| {
        service.header(|header| header.external_ips = vec!["203.0.113.61".parse().unwrap()])
    };
    let (name, service) = shop()[1].clone();
    side.set(&key(name), Some(Arc::new(filtered(service))));
    let open = KUBE_PROXY
        .replace("--dport 80 -j KUBE-FW-F3GRYTE7HT6BGIBF", "--dport 80 -j KUBE-EXT-F3GRYTE7HT6BGIBF");
    let (comparison, _) = side.compare(&open, &addresses()).unwrap();
    let kinds: BTreeSet<Kind> = comparison.differences.iter().map(|one| one.kind).collect();
    assert_eq!(kinds, [Kind::Deliberate].into());
}

#[test]
fn what_is_seen_twice_and_did_not_change_between_is_a_difference() {
    let mut side = side(node());
    let broken = KUBE_PROXY.replace("10.244.1.2:8080", "10.244.1.2:8081");
    let compare = |side: &mut Side, rules: &str| {
        let (_, news) = side.compare(rules, &addresses()).unwrap();
        (news.appeared.is_empty(), news.gone.is_empty(), news.fresh > 0, side.confirmed().is_empty())
    };
    assert_eq!(compare(&mut side, &broken), (true, true, true, true), "the first time");
    for (name, _) in shop() {
        side.set(
            &key(name),
            shop().into_iter().find(|(of, _)| *of == name).map(|(_, service)| Arc::new(service)),
        );
    }
    assert_eq!(compare(&mut side, &broken), (true, true, true, true), "it changed meanwhile");
    assert_eq!(compare(&mut side, &broken), (false, true, false, false), "confirmed");
    assert_eq!(compare(&mut side, &broken), (true, true, false, false), "told once");
    assert_eq!(compare(&mut side, KUBE_PROXY), (true, false, false, true), "gone");
}

#[test]
fn only_what_serves_services_is_compared() {
    let foreign = KUBE_PROXY.replace(":FORWARD ACCEPT", ":FORWARD DROP").replace(
        "-A FORWARD -m comment",
        "-A FORWARD -m set --match-set x src -j DROP\n-A FORWARD -m comment",
    );
    assert_eq!(found(&foreign), BTreeSet::new());
}

/// Every way of telling pods apart is tried by somebody who is one, and by somebody who is none.
#[test]
fn a_rule_for_other_pods_is_found_with_every_detector() {
    let detectors = [
        Detector::NodeCidr("10.244.0.0/24".parse().unwrap()),
        Detector::Bridge("cni0".into()),
        Detector::Prefix("veth".into()),
    ];
    for detector in detectors {
        let state = NodeState { detector: Some(detector.clone()), ..node() };
        let (comparison, _) = side(state).compare(KUBE_PROXY, &addresses()).unwrap();
        let counts: BTreeMap<Kind, usize> =
            comparison.differences.iter().fold(BTreeMap::new(), |mut counts, one| {
                *counts.entry(one.kind).or_default() += 1;
                counts
            });
        assert!(
            matches!(detector, Detector::NodeCidr(_)) || counts.contains_key(&Kind::Masquerade),
            "{detector:?}"
        );
    }
}
