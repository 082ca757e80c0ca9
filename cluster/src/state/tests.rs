use distributary_model::testing as t;
use distributary_model::{Op, Protocol};
use proptest::prelude::*;

use super::*;
use crate::address;

fn object(kind: ObjectKind, json: &str) -> Event {
    Event::Upsert(Object::from_json(kind, json).unwrap())
}

fn service(name: &str, spec: &str) -> Event {
    service_of(name, r#""x": "y""#, spec)
}

fn service_of(name: &str, labels: &str, spec: &str) -> Event {
    object(
        ObjectKind::Service,
        &format!(
            r#"{{"metadata": {{"name": "{name}", "namespace": "shop", "labels": {{{labels}}}}}, "spec": {{"clusterIP":
            "10.96.0.1", "ports": [{{"name": "http", "port": 80}}] {spec}}}}}"#
        ),
    )
}

fn slice(name: &str, service: &str, endpoints: &[&str]) -> Event {
    let endpoints: Vec<String> =
        endpoints.iter().map(|address| format!(r#"{{"addresses": ["{address}"]}}"#)).collect();
    slice_with(name, service, &endpoints.join(","))
}

fn slice_with(name: &str, service: &str, endpoints: &str) -> Event {
    object(
        ObjectKind::EndpointSlice,
        &format!(
            r#"{{"metadata": {{"name": "{name}", "namespace": "shop", "labels": {{"kubernetes.io/service-name":
            "{service}"}}}}, "addressType": "IPv4", "ports": [{{"name": "http", "port": 8080}}], "endpoints":
            [{endpoints}]}}"#
        ),
    )
}

fn cidr(name: &str, cidrs: &str) -> Event {
    object(
        ObjectKind::ServiceCidr,
        &format!(r#"{{"metadata": {{"name": "{name}"}}, "spec": {{"cidrs": [{cidrs}]}}}}"#),
    )
}

fn node(name: &str, labels: &str) -> Event {
    object(ObjectKind::Node, &format!(r#"{{"metadata": {{"name": "{name}", "labels": {{{labels}}}}}}}"#))
}

fn gone(kind: ObjectKind, name: &str) -> Event {
    let namespace = match kind {
        ObjectKind::Service | ObjectKind::EndpointSlice => "shop",
        _ => "",
    };
    Event::Gone { key: ObjectKey { kind, namespace: namespace.into(), name: name.into() }, inferred: false }
}

fn cluster(events: impl IntoIterator<Item = Event>) -> Cluster {
    let mut cluster = Cluster::new(t::CLUSTER);
    let changes = cluster.apply(events);
    assert_eq!(changes.problems, []);
    cluster
}

fn addresses(cluster: &Cluster, key: &str) -> Option<Vec<String>> {
    let held = cluster.table().get(&t::key(key))?;
    let service = held.record.as_service().unwrap();
    Some(service.endpoints.iter().map(|one| one.address.to_string()).collect())
}

#[test]
fn a_service_and_its_slice_make_a_record() {
    let mut cluster = Cluster::new(t::CLUSTER);
    let changes = cluster.apply([slice("web-1", "web", &["10.0.0.2", "10.0.0.1"])]);
    assert_eq!(changes, Changes::default(), "endpoints wait for their Service");
    let changes = cluster.apply([service("web", "")]);
    let want = t::held(
        &t::key("shop/web"),
        t::service(&["10.96.0.1"])
            .port("http", Protocol::Tcp, 80, 0)
            .endpoint(t::endpoint("10.0.0.1", "http", 8080))
            .endpoint(t::endpoint("10.0.0.2", "http", 8080)),
    );
    assert_eq!(changes.records.len(), 1);
    assert_eq!(changes.records[0].after.as_ref(), Some(&want));
    assert_eq!(changes.records[0].change.op, Op::Put(want));
}

#[test]
fn a_changed_endpoint_is_a_patch_of_it() {
    let mut cluster =
        cluster([service("web", ""), slice("web-1", "web", &["10.0.0.1", "10.0.0.2", "10.0.0.3"])]);
    let changes = cluster.apply([slice("web-1", "web", &["10.0.0.1", "10.0.0.2", "10.0.0.4"])]);
    let [RecordChange { change, after: Some(after), .. }] = &changes.records[..] else {
        panic!("{changes:?}")
    };
    let Op::Patch { header: None, upserts, removals, hash } = &change.op else { panic!("{change:?}") };
    assert_eq!((upserts.len(), removals.len()), (1, 1));
    assert_eq!(*hash, hash::record(&change.key, &after.record), "the hash was kept as it went");
}

#[test]
fn what_no_agent_could_see_is_silence() {
    let mut cluster =
        cluster([service("web", ""), slice("web-1", "web", &["10.0.0.1", "10.0.0.2"]), node("n1", "")]);
    let same = [
        service_of("web", r#""changed": "label""#, r#", "selector": {"a": "b"}"#),
        slice("web-1", "web", &["10.0.0.2", "10.0.0.1"]),
        node("n1", r#""kubernetes.io/hostname": "n1""#),
    ];
    assert_eq!(cluster.apply(same), Changes::default());
}

/// Seconds of the triggers that came with the record of a service.
fn triggered(changes: &Changes, name: &str) -> Option<Vec<i64>> {
    let record = changes.records.iter().find(|record| &*record.change.key.name == name)?;
    Some(record.triggers.iter().map(|trigger| trigger.at.as_second()).collect())
}

fn at(second: i64, mut slice: Event) -> Event {
    if let Event::Upsert(Object::EndpointSlice(slice)) = &mut slice {
        let at = jiff::Timestamp::from_second(second).unwrap();
        slice.trigger = Some(Trigger { at, v6: false });
    }
    slice
}

#[test]
fn what_triggered_the_slices_that_changed_comes_with_their_record() {
    let mut cluster = cluster([service("web", ""), service("api", "")]);
    let changes = cluster.apply([
        at(1, slice("web-1", "web", &["10.0.0.1"])),
        at(2, slice("web-2", "web", &["10.0.0.2"])),
        slice("api-1", "api", &["10.0.0.9"]),
    ]);
    assert_eq!(triggered(&changes, "web"), Some(vec![1, 2]));
    assert_eq!(triggered(&changes, "api"), Some(vec![]), "it does not say");
    let relabelled = at(3, slice("web-1", "web", &["10.0.0.1"]));
    assert_eq!(cluster.apply([relabelled]), Changes::default(), "a time alone is no change");
    let changes = cluster
        .apply([at(4, slice("web-1", "web", &["10.0.0.3"])), at(5, slice("web-1", "web", &["10.0.0.1"]))]);
    assert_eq!(changes, Changes::default(), "nor is what was changed and changed back");
    let header = r#", "sessionAffinity": "ClientIP""#;
    assert_eq!(triggered(&cluster.apply([service("web", header)]), "web"), Some(vec![]));
}

#[test]
fn a_slice_that_goes_says_nothing_of_when_it_was_triggered() {
    let mut cluster = cluster([service("web", ""), slice("web-1", "web", &["10.0.0.1"])]);
    let changes = cluster.apply([
        at(1, slice("web-2", "web", &["10.0.0.2"])),
        gone(ObjectKind::EndpointSlice, "web-1"),
        at(2, slice("web-3", "web", &["10.0.0.3"])),
    ]);
    assert_eq!(triggered(&changes, "web"), Some(vec![2]));
    let changes =
        cluster.apply([at(3, slice("web-3", "web", &["10.0.0.4"])), gone(ObjectKind::Service, "web")]);
    assert_eq!(triggered(&changes, "web"), Some(vec![]));
}

#[test]
fn apply_then_remove_in_a_batch_is_no_change() {
    let mut cluster = cluster([]);
    let changes = cluster.apply([
        service("web", ""),
        slice("web-1", "web", &["10.0.0.1"]),
        node("n1", ""),
        cidr("a", r#""10.96.0.0/16""#),
        gone(ObjectKind::Service, "web"),
        gone(ObjectKind::EndpointSlice, "web-1"),
        gone(ObjectKind::Node, "n1"),
        gone(ObjectKind::ServiceCidr, "a"),
    ]);
    assert_eq!(changes, Changes::default());
    assert!(cluster.services.is_empty() && cluster.owners.is_empty(), "nothing is left behind");
}

#[test]
fn an_endpoint_that_moves_between_slices_is_there_throughout() {
    let mut cluster = cluster([service("web", ""), slice("a", "web", &["10.0.0.1"]), slice("b", "web", &[])]);
    let changes = cluster.apply([slice("a", "web", &[]), slice("b", "web", &["10.0.0.1"])]);
    assert_eq!(changes, Changes::default());
}

#[test]
fn a_relabelled_slice_leaves_its_old_service() {
    let mut cluster = cluster([service("web", ""), service("api", ""), slice("a", "web", &["10.0.0.1"])]);
    let changes = cluster.apply([slice("a", "api", &["10.0.0.1"])]);
    assert_eq!(changes.records.len(), 2);
    assert_eq!(addresses(&cluster, "shop/web"), Some(vec![]));
    assert_eq!(addresses(&cluster, "shop/api"), Some(vec!["10.0.0.1".to_owned()]));
    cluster.apply([gone(ObjectKind::EndpointSlice, "a")]);
    assert_eq!(addresses(&cluster, "shop/api"), Some(vec![]));
}

#[test]
fn a_service_that_is_not_for_us_has_no_record() {
    let foreign = || service_of("web", r#""service.kubernetes.io/service-proxy-name": "other""#, "");
    let mut cluster = cluster([foreign(), slice("a", "web", &["10.0.0.1"])]);
    assert!(cluster.table().is_empty());
    assert_eq!(cluster.apply([service("web", "")]).records.len(), 1);
    let changes = cluster.apply([foreign()]);
    assert_eq!(changes.records[0].change.op, Op::Removed);
    assert_eq!(cluster.apply([service("web", r#", "type": "ExternalName""#)]), Changes::default());
    cluster.apply([service("web", "")]);
    assert_eq!(addresses(&cluster, "shop/web"), Some(vec!["10.0.0.1".to_owned()]));
}

#[test]
fn an_invalid_object_keeps_its_last_good_value() {
    let mut cluster = cluster([service("web", ""), slice("a", "web", &["10.0.0.1"])]);
    let key = ObjectKey { kind: ObjectKind::EndpointSlice, namespace: "shop".into(), name: "a".into() };
    let changes = cluster.apply([Event::Invalid { key, why: "no list".into() }]);
    assert_eq!(changes.records, []);
    let message = changes.problems[0].to_string();
    assert_eq!(message, "EndpointSlice shop/a: it cannot be read, so its last good value stays: no list");
    assert_eq!(addresses(&cluster, "shop/web"), Some(vec!["10.0.0.1".to_owned()]));
}

#[test]
fn what_is_wrong_inside_is_told_when_it_changes() {
    let mut cluster = cluster([service("web", "")]);
    assert_eq!(cluster.apply([slice("a", "web", &["10.0.0.1", "x"])]).problems.len(), 1);
    assert_eq!(cluster.apply([slice("a", "web", &["10.0.0.2", "x"])]).problems, []);
    assert_eq!(cluster.apply([slice("a", "web", &["10.0.0.2", "y"])]).problems.len(), 1);
    cluster.apply([slice("a", "web", &["10.0.0.2"])]);
    assert_eq!(cluster.apply([slice("a", "web", &["10.0.0.2", "y"])]).problems.len(), 1);
}

#[test]
fn facts_are_the_union_of_all_objects() {
    let mut cluster = cluster([]);
    let key = Key::facts(t::CLUSTER);
    let all = |cluster: &Cluster| match &cluster.table().get(&key).unwrap().record {
        Record::Facts(facts) => facts.service_cidrs.iter().map(ToString::to_string).collect::<Vec<_>>(),
        Record::Service(_) => panic!(),
    };
    cluster.apply([
        cidr("a", r#""10.96.0.0/16", "fd00::/112""#),
        cidr("b", r#""10.96.0.0/16", "10.97.0.0/16""#),
    ]);
    assert_eq!(all(&cluster), ["10.96.0.0/16", "10.97.0.0/16", "fd00::/112"]);
    cluster.apply([gone(ObjectKind::ServiceCidr, "a")]);
    assert_eq!(
        all(&cluster),
        ["10.96.0.0/16", "10.97.0.0/16"],
        "the other object still holds the shared one"
    );
    cluster.apply([cidr("b", "")]);
    assert_eq!(all(&cluster), [""; 0], "there is an object, so there are facts");
    let changes = cluster.apply([gone(ObjectKind::ServiceCidr, "b")]);
    assert_eq!(changes.records[0].change.op, Op::Removed);
}

#[test]
fn nodes_are_told_where_their_view_changes() {
    let zone = |zone: &str| node("n1", &format!(r#""topology.kubernetes.io/zone": "{zone}""#));
    let mut cluster = cluster([zone("a")]);
    assert_eq!(&*cluster.node("n1").unwrap().zone, "a");
    assert_eq!(cluster.apply([zone("b"), zone("a")]), Changes::default());
    assert_eq!(cluster.apply([zone("b")]).nodes, BTreeSet::from(["n1".into()]));
    assert_eq!(cluster.apply([gone(ObjectKind::Node, "n1")]).nodes.len(), 1);
    assert_eq!((cluster.node("n1"), cluster.nodes().count()), (None, 0));
}

#[test]
fn a_service_beyond_the_limits_is_not_sent() {
    let mut cluster = cluster([service("web", ""), slice("a", "web", &["10.0.0.1"])]);
    let hints: Vec<String> = (0..=LIST).map(|i| format!(r#"{{"name": "z{i}"}}"#)).collect();
    let endpoint =
        format!(r#"{{"addresses": ["10.0.0.1"], "hints": {{"forZones": [{}]}}}}"#, hints.join(","));
    let changes = cluster.apply([slice_with("a", "web", &endpoint)]);
    assert_eq!(changes.records[0].change.op, Op::Removed);
    let message = changes.problems[0].to_string();
    let want =
        "Service shop/web: it is not served: it has 1001 zone hints at one endpoint, 1000 are the limit";
    assert_eq!(message, want);
    assert_eq!(cluster.apply([slice_with("a", "web", &endpoint)]), Changes::default());
    let touched = cluster.apply([service("web", r#", "externalIPs": ["1.2.3.4"]"#)]);
    assert_eq!(touched, Changes::default(), "it is told once");
    assert_eq!(cluster.apply([slice("a", "web", &["10.0.0.1"])]).records.len(), 1);
    assert_eq!(cluster.apply([slice_with("a", "web", &endpoint)]).problems.len(), 1, "it starts anew");
    cluster.apply([gone(ObjectKind::Service, "web")]);
    assert!(cluster.left_out.is_empty());
}

#[test]
fn another_reason_to_be_left_out_is_told() {
    let mut cluster = cluster([service("web", "")]);
    cluster.limit = 1;
    let two = || slice("a", "web", &["10.0.0.1", "10.0.0.2"]);
    assert_eq!(cluster.apply([two()]).problems.len(), 1);
    let three = slice("a", "web", &["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
    assert_eq!(cluster.apply([three]).problems, [], "another number is no other reason");
    let ips: Vec<String> = (0..=LIST).map(|i| format!(r#""1.2.{}.{}""#, i / 250, i % 250)).collect();
    let problems =
        cluster.apply([service("web", &format!(r#", "externalIPs": [{}]"#, ips.join(",")))]).problems;
    let message = problems[0].to_string();
    assert_eq!(message, "Service shop/web: it is not served: it has 1001 external IPs, 1000 are the limit");
    assert_eq!(cluster.apply([service("web", "")]).problems.len(), 1);
}

#[test]
fn a_service_for_which_a_stream_has_no_room_waits_for_it() {
    let mut cluster = cluster([service("a", ""), service("b", ""), service("c", "")]);
    cluster.limit = 4;
    cluster.apply([slice("a", "a", &["10.0.0.1", "10.0.0.2", "10.0.0.3"]), slice("b", "b", &["10.0.0.4"])]);
    let changes = cluster.apply([slice("b", "b", &["10.0.0.4", "10.0.0.5"])]);
    assert_eq!(changes.records[0].change.op, Op::Removed);
    let message = changes.problems[0].to_string();
    let want =
        "Service shop/b: it is not served: with it there are 5 endpoints in the cluster, 4 are the limit";
    assert_eq!(message, want);
    assert_eq!((addresses(&cluster, "shop/b"), addresses(&cluster, "shop/c")), (None, Some(vec![])));
    consistent(&cluster);
    let changes = cluster.apply([slice("a", "a", &["10.0.0.1", "10.0.0.2"])]);
    assert_eq!((changes.records.len(), changes.problems), (2, vec![]));
    assert_eq!(addresses(&cluster, "shop/b").unwrap().len(), 2, "it came back with the room");
    // The other way round in one batch: what grows has the lesser key.
    let changes = cluster
        .apply([slice("a", "a", &["10.0.0.1", "10.0.0.2", "10.0.0.3"]), slice("b", "b", &["10.0.0.4"])]);
    assert_eq!((changes.problems.len(), changes.records.len(), cluster.table().endpoints()), (0, 2, 4));
    let order: Vec<&str> = changes.records.iter().map(|record| &*record.change.key.name).collect();
    assert_eq!(order, ["b", "a"], "agents are never beyond the limit in between");
    consistent(&cluster);
}

/// 100,000 endpoints have to fit in some 25 MB: kept once in slices, once in records.
#[test]
fn an_endpoint_is_lean() {
    assert!(
        size_of::<Endpoint>() + merge::KEPT_BYTES <= 180,
        "{}",
        size_of::<Endpoint>() + merge::KEPT_BYTES
    );
}

/// Objects of a small world, so that cases collide.
fn any_event() -> impl Strategy<Value = Event> {
    let services = (0..3_u8, 0..3_u8).prop_map(|(name, variant)| match variant {
        0 => service(&format!("s{name}"), ""),
        1 => service(&format!("s{name}"), r#", "internalTrafficPolicy": "Local""#),
        _ => gone(ObjectKind::Service, &format!("s{name}")),
    });
    let slices = (0..4_u8, 0..3_u8, proptest::collection::vec((1..5_u8, any::<bool>(), 0..3_u8), 0..4))
        .prop_map(|(name, of, endpoints)| {
            let endpoints: Vec<String> = endpoints
                .into_iter()
                .map(|(last, terminating, node)| {
                    format!(
                        r#"{{"addresses": ["10.0.0.{last}"], "conditions": {{"terminating": {terminating}}},
                        "nodeName": "n{node}"}}"#
                    )
                })
                .collect();
            slice_with(&format!("e{name}"), &format!("s{of}"), &endpoints.join(","))
        });
    let rest =
        (0..2_u8, 0..3_u8, any::<bool>()).prop_map(|(name, value, node_kind)| match (node_kind, value) {
            (true, 0) => gone(ObjectKind::Node, &format!("n{name}")),
            (true, _) => node(&format!("n{name}"), &format!(r#""topology.kubernetes.io/zone": "{value}""#)),
            (false, 0) => gone(ObjectKind::ServiceCidr, &format!("c{name}")),
            (false, _) => cidr(&format!("c{name}"), &format!(r#""10.{value}.0.0/16""#)),
        });
    prop_oneof![services, slices.clone(), slices, rest]
}

fn key_of(event: &Event) -> ObjectKey {
    match event {
        Event::Upsert(object) => object.key().clone(),
        Event::Gone { key, .. } | Event::Invalid { key, .. } => key.clone(),
    }
}

/// A cluster holds what its table says, hashes included, and nothing of what is gone.
fn consistent(cluster: &Cluster) {
    for (key, held) in cluster.table().iter() {
        assert_eq!(held.hash, hash::record(key, &held.record));
    }
    for (key, parts) in &cluster.services {
        assert!(parts.header.is_some() || !parts.slices.is_empty(), "{key} is left behind");
        for name in parts.slices.keys() {
            assert_eq!(cluster.owners.get(&(key.namespace.clone(), name.clone())), Some(&key.name));
        }
    }
}

proptest! {
    #[test]
    fn the_same_final_objects_give_the_same_table(
        events in proptest::collection::vec(any_event(), 0..30),
        cuts in proptest::collection::vec(0..30_usize, 0..4),
        order in any::<proptest::sample::Index>(),
    ) {
        // One by one in batches…
        let mut stepwise = Cluster::new(t::CLUSTER);
        let mut replica = Table::default();
        for (i, chunk) in events.chunks(3 + cuts.len()).enumerate() {
            let changes = stepwise.apply(chunk.iter().cloned());
            for RecordChange { change, after, .. } in &changes.records {
                replica.apply(change).unwrap();
                prop_assert_eq!(replica.get(&change.key), after.as_ref());
            }
            if cuts.contains(&i) {
                prop_assert_eq!(stepwise.apply(chunk.iter().cloned()).records.len(), 0);
            }
        }
        consistent(&stepwise);
        prop_assert_eq!(replica.iter().collect::<Vec<_>>(), stepwise.table().iter().collect::<Vec<_>>());
        // …or only what is left in the end, in any order.
        let last: BTreeMap<ObjectKey, Event> = events.into_iter().map(|event| (key_of(&event), event)).collect();
        let mut last: Vec<Event> = last.into_values().collect();
        if !last.is_empty() {
            let by = order.index(last.len());
            last.rotate_left(by);
        }
        let mut at_once = Cluster::new(t::CLUSTER);
        at_once.apply(last);
        consistent(&at_once);
        prop_assert_eq!(at_once.table().root(t::CLUSTER), stepwise.table().root(t::CLUSTER));
        prop_assert!(at_once.nodes().eq(stepwise.nodes()));
    }
}

#[test]
fn addresses_are_those_of_the_parser() {
    let cluster = cluster([service("web", ""), slice("a", "web", &["10.180.00.001"])]);
    assert_eq!(addresses(&cluster, "shop/web"), Some(vec![address::ip("10.180.0.1").unwrap().to_string()]));
}
