//! The tables of spec/kube-proxy.md §2.5 and §10.4 to §10.6.

use std::sync::Arc;

use distributary_model::testing::{CLUSTER, endpoint, key, service};
use distributary_model::{Endpoint, Protocol, Service};

use super::*;

const SELF: &str = "self";

/// Ready or leaving, local or remote, by the letters of §2.5.
fn named(name: &str) -> Endpoint {
    let (address, node) = match name.starts_with('L') {
        true => ("10.180.0.1", SELF),
        false => ("10.180.1.1", "other"),
    };
    let one = endpoint(address, "", 80).on(node);
    match &name[1..] {
        "" => one,
        "t" => one.terminating(),
        _ => one.conditions(false, false, false),
    }
}

fn planned(service: Service, zone: &str) -> PortPlan {
    planned_by(service, zone, Some(Detector::ClusterCidr("10.0.0.0/8".parse().unwrap())))
}

fn planned_by(service: Service, zone: &str, detector: Option<Detector>) -> PortPlan {
    let mut plan = Plan::new(Config {
        family: Family::V4,
        cluster: CLUSTER.into(),
        node: SELF.into(),
        state: NodeState { zone: zone.into(), detector, ..NodeState::default() },
    });
    let key = key("ns/svc");
    plan.set(&key, Some(Arc::new(service)));
    assert_eq!(plan.settle().len(), 1);
    plan.ports(&key).remove(0)
}

fn v(endpoints: Vec<Endpoint>) -> Service {
    let mut service = service(&["172.30.0.41"]).port("", Protocol::Tcp, 80, 3001);
    for endpoint in endpoints {
        service = service.endpoint(endpoint);
    }
    service
}

/// What a list is, or what is answered where it is empty.
fn verdict(list: &[std::net::SocketAddr], answer: Option<Answer>) -> String {
    match answer {
        Some(answer) => format!("{answer:?}").to_uppercase(),
        None => list.iter().map(|to| if to.ip().to_string() == "10.180.0.1" { "L" } else { "R" }).collect(),
    }
}

/// §2.5, and with it §10.4 rows 48 to 54 and §10.5 rows 55 to 60 and 67.
#[test]
fn decisions() {
    for (endpoints, internal, external, cluster_ip, outside, pod) in [
        ("L R", "C", "C", "LR", "LR", "LR"),
        ("L R", "C", "L", "LR", "L", "LR"),
        ("L R", "L", "C", "L", "LR", "LR"),
        ("L R", "L", "L", "L", "L", "LR"),
        ("R", "L", "L", "DROP", "DROP", "R"),
        ("R", "L", "C", "DROP", "R", "R"),
        ("R", "C", "L", "R", "DROP", "R"),
        ("Lt R", "C", "L", "R", "L", "R"),
        ("Lt R", "C", "C", "R", "R", "R"),
        ("Lt Rt", "C", "C", "LR", "LR", "LR"),
        ("Rt", "C", "L", "R", "DROP", "R"),
        ("Lu", "L", "L", "REJECT", "REJECT", "REJECT"),
        ("Lu", "C", "C", "REJECT", "REJECT", "REJECT"),
        ("Lu Rt", "L", "L", "DROP", "DROP", "R"),
        ("", "C", "C", "REJECT", "REJECT", "REJECT"),
        ("", "L", "L", "REJECT", "REJECT", "REJECT"),
    ] {
        let endpoints = endpoints.split_whitespace();
        let service = v(endpoints.clone().map(named).collect()).header(|header| {
            header.internal_policy_local = internal == "L";
            header.external_policy_local = external == "L";
        });
        let plan = planned(service, "a");
        let what = format!("{:?} {internal}/{external}", endpoints.collect::<Vec<_>>());
        assert_eq!(verdict(plan.internal(), plan.internal_answer()), cluster_ip, "cluster IP: {what}");
        assert_eq!(verdict(plan.external(), plan.external_answer()), outside, "outside: {what}");
        let short = (!plan.has_any).then_some(Answer::Reject);
        assert_eq!(verdict(&plan.cluster, short), pod, "pod: {what}");
    }
}

/// §10.5 rows 59 to 63.
#[test]
fn conditions() {
    for (ready, serving, terminating, used) in [
        (true, true, false, true),
        (true, false, false, true),
        (false, true, true, true),
        (false, false, true, false),
        (false, true, false, false),
    ] {
        let one = endpoint("10.180.0.1", "", 80).conditions(ready, serving, terminating);
        assert_eq!(
            planned(v(vec![one]), "").cluster.len(),
            usize::from(used),
            "{ready} {serving} {terminating}"
        );
    }
    let twice = vec![named("L"), named("L").terminating()];
    assert_eq!(planned(v(twice), "").cluster.len(), 1);
}

/// §10.6; endpoints are numbered, `!` is one that is not ready.
#[test]
fn topology() {
    let one = |i: usize, zones: &str, nodes: &str| {
        let (zones, unready) = (zones.trim_end_matches('!'), zones.ends_with('!'));
        let zones: Vec<&str> = zones.split('+').filter(|zone| !zone.is_empty()).collect();
        let nodes: Vec<&str> = nodes.split('+').filter(|node| !node.is_empty()).collect();
        let made = endpoint(&format!("10.180.9.{i}"), "", 80).zones(&zones).nodes(&nodes);
        if unready { made.conditions(false, false, false) } else { made }
    };
    for (row, zone, hints, cluster) in [
        (68, "a", &[("a", ""), ("b", ""), ("c", ""), ("a", "")][..], "03"),
        (69, "a", &[("a", ""), ("", ""), ("b", "")], "012"),
        (70, "a", &[("a", ""), ("!", ""), ("b", "")], "0"),
        (71, "a", &[("a!", ""), ("b", ""), ("c", "")], "12"),
        (72, "", &[("a", ""), ("b", "")], "01"),
        (72, "d", &[("a", ""), ("b", "")], "01"),
        (73, "a", &[("b+a", ""), ("b", ""), ("c+a", "")], "02"),
        (74, "a", &[("a", "self"), ("a", "n2"), ("b", "n3")], "0"),
        (75, "a", &[("a", "n1"), ("a", "n2"), ("b", "n3")], "01"),
        (76, "a", &[("a", "self"), ("", ""), ("b", "n3")], "012"),
    ] {
        let endpoints = hints.iter().enumerate().map(|(i, (zones, nodes))| one(i, zones, nodes)).collect();
        let plan = planned(v(endpoints), zone);
        let got: String = plan.cluster.iter().filter_map(|to| to.ip().to_string().pop()).collect();
        assert_eq!(got, cluster, "row {row}");
    }
}

#[test]
fn local_lists_ignore_hints() {
    // Row 77.
    let endpoints = vec![named("L").zones(&["b"]), named("R").zones(&["a"])];
    let plan = planned(v(endpoints).header(|header| header.external_policy_local = true), "a");
    assert_eq!(verdict(&plan.local, None), "L");
    assert_eq!(verdict(&plan.cluster, None), "R");
    // Row 79.
    let endpoints = vec![named("Lt").zones(&["b"]), named("Rt").zones(&["a"])];
    assert_eq!(verdict(&planned(v(endpoints), "a").cluster, None), "LR");
}

/// Rows 46 and 33: policy counts only where something external is there; type never does.
#[test]
fn external_policy_needs_something_external() {
    let mut service = v(vec![named("L"), named("R")]).header(|header| header.external_policy_local = true);
    service.header.ports[0].node_port = 0;
    let plan = planned(service, "");
    assert!(plan.local.is_empty());
    assert_eq!(plan.cluster.len(), 2);
}

#[test]
fn foreign_endpoints_are_never_local_nor_hinted() {
    let mut foreign = named("L").zones(&["a"]);
    foreign.cluster = Some("elsewhere".into());
    let service =
        v(vec![foreign, named("R").zones(&["a"])]).header(|header| header.external_policy_local = true);
    let plan = planned(service, "a");
    assert!(plan.local.is_empty());
    assert_eq!(plan.cluster.len(), 2);
}

#[test]
fn who_can_meet_itself() {
    let endpoints = || vec![named("L"), named("R"), endpoint("10.180.2.1", "", 80)];
    let hairpin = |service: Service, detector| -> Vec<String> {
        planned_by(service, "", detector).hairpin.iter().map(ToString::to_string).collect()
    };
    let cidr = || Some(Detector::ClusterCidr("10.0.0.0/8".parse().unwrap()));
    assert_eq!(hairpin(v(endpoints()), cidr()), ["10.180.0.1", "10.180.2.1"]);
    let local = || v(endpoints()).header(|header| header.external_policy_local = true);
    assert_eq!(hairpin(local(), cidr()).len(), 3);
    assert_eq!(hairpin(local(), None).len(), 2);
}

/// §1.3
#[test]
fn source_ranges_and_families() {
    let ranges = |ranges: &[&str]| {
        let service = v(vec![]).header(|header| {
            header.source_ranges = ranges.iter().map(|range| range.parse().unwrap()).collect();
        });
        planned(service, "").source_ranges.len()
    };
    assert_eq!(ranges(&["192.168.0.0/24", "203.0.113.0/25"]), 2);
    assert_eq!(ranges(&["192.168.0.0/24", "0.0.0.0/0"]), 0);
    assert_eq!(ranges(&["fd00::/8"]), 0);
    let mut plan = Plan::new(Config {
        family: Family::V6,
        cluster: CLUSTER.into(),
        node: SELF.into(),
        state: NodeState::default(),
    });
    plan.set(&key("ns/svc"), Some(Arc::new(v(vec![named("L")]))));
    assert!(plan.ports(&key("ns/svc")).is_empty());
}

#[test]
fn equal_content_touches_nothing_and_a_zone_everything() {
    let mut plan = Plan::new(Config {
        family: Family::V4,
        cluster: CLUSTER.into(),
        node: SELF.into(),
        state: NodeState::default(),
    });
    plan.set(&key("ns/svc"), Some(Arc::new(v(vec![named("L")]))));
    assert_eq!(plan.settle().len(), 1);
    plan.set(&key("ns/svc"), Some(Arc::new(v(vec![named("L")]))));
    plan.set(&key("ns/none"), None);
    assert_eq!(plan.settle().len(), 0);
    plan.set_node(NodeState { zone: "a".into(), ..NodeState::default() });
    assert_eq!(plan.settle().len(), 1);
    plan.set_node(NodeState { zone: "a".into(), ..NodeState::default() });
    assert_eq!(plan.settle().len(), 0);
}
