//! The laws of the delta algebra, the hashes and the codec.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use distributary_model::codec::{Decoder, Frames, Told};
use distributary_model::limits::{SENT_MASK, SENT_TICK};
use distributary_model::testing::{self as t, any_service};
use distributary_model::{Ages, Change, Held, Mark, ObjectKind, Op, Revision, Table, delta, hash};
use distributary_proto::v1 as pb;
use proptest::prelude::*;
use prost::Message;

fn unframe(framed: &[u8]) -> pb::Frame {
    let message = pb::ServerMessage::decode(&framed[5..]).unwrap();
    let Some(pb::server_message::Message::Frame(frame)) = message.message else { panic!("not a frame") };
    frame
}

fn round_trip(frames: Vec<bytes::Bytes>) -> Vec<Change> {
    let mut decoder = Decoder::new(t::CLUSTER.into());
    let told = frames.iter().flat_map(|frame| decoder.frame(unframe(frame)).unwrap());
    told.map(|told| told.change).collect()
}

proptest! {
    #[test]
    fn what_differs_leads_from_one_to_the_other(old in any_service(), new in any_service()) {
        let key = t::key("ns/name");
        let (old, new) = (t::held(&key, old), t::held(&key, new));
        if let Some(change) = delta::diff(&key, Some(&old), Some(&new)) {
            let once = delta::apply(Some(&old), &change).unwrap().unwrap();
            prop_assert_eq!(&once, &new);
            let twice = delta::apply(Some(&once), &change).unwrap().unwrap();
            prop_assert_eq!(&twice, &new);
        } else {
            prop_assert_eq!(&old, &new);
        }
        prop_assert!(delta::diff(&key, Some(&new), Some(&new)).is_none());
    }

    #[test]
    fn equal_hashes_are_equal_records(a in any_service(), b in any_service()) {
        let key = t::key("ns/name");
        let (a, b) = (t::held(&key, a), t::held(&key, b));
        prop_assert_eq!(a.hash == b.hash, a.record == b.record);
    }

    #[test]
    fn the_codec_gives_back_what_it_was_given(old in any_service(), new in any_service(), compress: bool) {
        let key = t::key("ns/name");
        let (old, new) = (t::held(&key, old), t::held(&key, new));
        let changes = [
            Change { key: key.clone(), op: Op::Put(old.clone()) },
            delta::diff(&key, Some(&old), Some(&new)).unwrap_or(Change { key: key.clone(), op: Op::Put(new.clone()) }),
            Change { key, op: Op::Removed },
        ];
        let mut frames = if compress { Frames::compressed(t::CLUSTER) } else { Frames::new(t::CLUSTER) };
        frames.push(&changes[0], Some(&old));
        frames.push(&changes[1], Some(&new));
        frames.push(&changes[2], None);
        prop_assert_eq!(round_trip(frames.finish(Revision(7), &[])), changes);
    }

    #[test]
    fn a_table_knows_its_digest_whatever_its_history(
        history in proptest::collection::vec((0..5_u8, proptest::option::of(any_service())), 0..40),
    ) {
        let (mut by_history, mut last) = (Table::default(), std::collections::BTreeMap::new());
        for (name, service) in history {
            let key = t::key(&format!("ns/s{name}"));
            let after = service.map(|service| t::held(&key, service));
            if let Some(change) = delta::diff(&key, by_history.get(&key), after.as_ref()) {
                by_history.apply(&change).unwrap();
            }
            last.insert(key, after);
        }
        let mut fresh = Table::default();
        for (key, after) in last {
            fresh.set(&key, after);
        }
        prop_assert_eq!(by_history.root(t::CLUSTER), fresh.root(t::CLUSTER));
        prop_assert!(by_history.iter().eq(fresh.iter()));
    }

    #[test]
    fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(frame) = pb::Frame::decode(bytes.as_slice()) {
            let _ = Decoder::new(t::CLUSTER.into()).frame(frame);
        }
    }
}

fn large(endpoints: u32) -> (Arc<distributary_model::Key>, Held) {
    let key = t::key("shop/large");
    let mut service = t::service(&["10.96.0.1"]).port("http", Default::default(), 80, 0);
    for i in 0..endpoints {
        let [_, a, b, c] = i.to_be_bytes();
        service
            .endpoints
            .push(t::endpoint(&format!("10.{a}.{b}.{c}"), "http", 8080).on("some-node").zones(&["zone-a"]));
    }
    service.endpoints.sort();
    let held = t::held(&key, service);
    (key, held)
}

#[test]
fn a_record_larger_than_a_frame_is_cut_and_comes_together() {
    let (key, held) = large(5_000);
    let change = Change { key, op: Op::Put(held.clone()) };
    let mut frames = Frames::new(t::CLUSTER);
    frames.push(&change, Some(&held));
    let mark = Mark { cluster: t::CLUSTER.into(), kind: ObjectKind::Service, resource_version: 5 };
    let frames = frames.finish(Revision(9), &[mark]);
    assert!(frames.len() > 3, "{} frames", frames.len());
    assert!(frames.iter().all(|frame| frame.len() <= (66 << 10)));
    let throughs: Vec<u64> = frames.iter().map(|frame| unframe(frame).through).collect();
    assert_eq!(throughs.iter().filter(|through| **through == 9).count(), 1);
    assert_eq!(throughs.last(), Some(&9));
    assert_eq!(round_trip(frames), [change]);
}

#[test]
fn ages_travel_with_the_change_and_with_the_last_of_its_parts() {
    let (key, held) = large(5_000);
    let millis = |of: &[u64]| of.iter().copied().map(Duration::from_millis).collect();
    let ages = Ages { v4: millis(&[0, 1_500, 600_000]), v6: millis(&[7]) };
    for after in [held, t::held(&key, t::service(&["10.96.0.1"]))] {
        let change = Change { key: key.clone(), op: Op::Put(after.clone()) };
        let mut frames = Frames::new(t::CLUSTER);
        frames.push_aged(&change, Some(&after), &ages);
        let mut decoder = Decoder::new(t::CLUSTER.into());
        let frames = frames.finish(Revision(1), &[]);
        let told: Vec<Told> =
            frames.iter().flat_map(|frame| decoder.frame(unframe(frame)).unwrap()).collect();
        assert_eq!(told, [Told { change, ages: ages.clone() }]);
    }
}

#[test]
fn a_large_patch_travels_as_a_put() {
    let (key, old) = large(5_000);
    let mut service = old.record.as_service().unwrap().as_ref().clone();
    for endpoint in service.endpoints.iter_mut().take(2_000) {
        endpoint.node = "another-node".into();
    }
    let new = t::held(&key, service);
    let change = delta::diff(&key, Some(&old), Some(&new)).unwrap();
    assert!(matches!(change.op, Op::Patch { .. }));
    let mut frames = Frames::new(t::CLUSTER);
    frames.push(&change, Some(&new));
    let back = round_trip(frames.finish(Revision(1), &[]));
    assert_eq!(back, [Change { key, op: Op::Put(new) }]);
}

#[test]
fn one_endpoint_of_a_large_service_is_a_small_patch() {
    let key = t::key("shopping-cart/checkout-service-v");
    assert_eq!(key.namespace.len() + key.name.len(), 31);
    let zoned = |address: &str| {
        t::endpoint(address, "http", 8080).on("worker-pool-a-0123456789").zones(&["eu-west-1a"])
    };
    let mut old = t::service(&["10.96.0.1"]).port("http", Default::default(), 80, 0);
    for i in 0..100 {
        old = old.endpoint(zoned(&format!("10.0.0.{i}")));
    }
    let mut new = old.clone();
    new.endpoints.remove(40);
    let new = new.endpoint(zoned("10.0.1.1"));
    let (old, new) = (t::held(&key, old), t::held(&key, new));
    let change = delta::diff(&key, Some(&old), Some(&new)).unwrap();
    let mut frames = Frames::new(t::CLUSTER).sent(SENT_TICK * SENT_MASK);
    let ages = Ages { v4: vec![Duration::from_secs(600)], v6: Vec::new() };
    frames.push_aged(&change, Some(&new), &ages);
    let mark =
        Mark { cluster: t::CLUSTER.into(), kind: ObjectKind::EndpointSlice, resource_version: 123_456_789 };
    let frames = frames.finish(Revision(1_000_000), &[mark]);
    let bytes: usize = frames.iter().map(bytes::Bytes::len).sum();
    assert!(bytes <= 150, "one replaced endpoint costs {bytes} bytes");
}

#[test]
fn a_change_that_leads_elsewhere_is_refused_and_changes_nothing() {
    let key = t::key("ns/name");
    let old = t::held(&key, t::service(&["10.96.0.1"]).endpoint(t::endpoint("10.0.0.1", "http", 80)));
    let mut table = Table::default();
    table.set(&key, Some(old.clone()));
    let wrong = Op::Patch {
        header: None,
        upserts: vec![],
        removals: vec!["10.0.0.1".parse().unwrap()],
        hash: old.hash,
    };
    let refused = table.apply(&Change { key: key.clone(), op: wrong }).unwrap_err();
    assert!(refused.to_string().starts_with("ns/name would have the hash "), "{refused}");
    assert_eq!(table.get(&key), Some(&old));
    let patch = Op::Patch { header: None, upserts: vec![], removals: vec![], hash: old.hash };
    let refused = Table::default().apply(&Change { key, op: patch }).unwrap_err();
    assert_eq!(refused.to_string(), "patch of ns/name, which is not held");
}

#[test]
fn limits_are_enforced() {
    let frame = |change: pb::change::Change| pb::Frame {
        changes: vec![pb::Change {
            namespace: "ns".into(),
            name: "name".into(),
            content_hash: vec![0; 16].into(),
            change: Some(change),
            ..Default::default()
        }],
        ..Default::default()
    };
    let mut decoder = Decoder::new(t::CLUSTER.into());
    let port = pb::ServicePort { port: 80, ..Default::default() };
    let header = pb::ServiceHeader { ports: vec![port; 101], ..Default::default() };
    let put = pb::Put { header: Some(pb::put::Header::Service(header)), ..Default::default() };
    let error = decoder.frame(frame(pb::change::Change::Put(put))).unwrap_err();
    assert_eq!(error.to_string(), "101 ports of a service, where 100 are the limit");

    let endpoint =
        pb::Endpoint { address: vec![10, 0, 0, 1].into(), node: "n".repeat(257), ..Default::default() };
    let patch = pb::Patch { upserts: vec![endpoint], ..Default::default() };
    let error = decoder.frame(frame(pb::change::Change::Patch(patch))).unwrap_err();
    assert_eq!(error.to_string(), "257 bytes of a string, where 256 are the limit");

    for (ages, told) in [
        (vec![1; 1001], "1001 ages of slices in a change, where 1000 are the limit"),
        (vec![600_001], "a slice's age of 600.001s, where 600s is the limit"),
    ] {
        let mut frame = frame(pb::change::Change::Removed(pb::Removed {}));
        frame.changes[0].age_millis_v6 = ages;
        assert_eq!(decoder.frame(frame).unwrap_err().to_string(), told);
    }

    let bomb = zstd::bulk::compress(&vec![0; 2 << 20], 1).unwrap();
    let frame = pb::Frame { zstd: bomb.into(), raw_length: 2 << 20, ..Default::default() };
    let error = decoder.frame(frame.clone()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "2097152 bytes of a frame after decompression, where 1048576 are the limit"
    );
    let error = decoder.frame(pb::Frame { raw_length: 1000, ..frame }).unwrap_err();
    assert!(error.to_string().starts_with("a frame that does not decompress to 1000 bytes"), "{error}");
}

/// Frozen: another value here breaks every agent's resume.
#[test]
fn hashes_are_what_they_were() {
    let key = t::key("shop/cart");
    let service = t::service(&["10.96.0.10", "fd96::10"])
        .port("http", Default::default(), 80, 30080)
        .header(|header| header.created = 1_700_000_000)
        .endpoint(t::endpoint("10.244.0.2", "http", 8080).on("n1").zones(&["a", "b"]))
        .endpoint(t::endpoint("fd00::2", "http", 8080).on("n1").terminating());
    let held = t::held(&key, service);
    let mut table = Table::default();
    assert_eq!(hash::key(&key).to_string(), "d77d1e8e3ac2b6d4ad23dba514e77860");
    assert_eq!(held.hash.to_string(), "65b138b206570a212576cf7dce8c6ef4");
    table.set(&key, Some(held));
    assert_eq!(table.root(t::CLUSTER).to_string(), "71777a345c7675c414f4ff4c273ede3d");
}
