//! The session against a scripted server.

use std::time::{Duration, Instant};

use distributary_model::testing as t;

use super::*;
use crate::sync::scripted::{Scripted, cluster, hello, named, service, shop, wanted};

struct World {
    session: Session,
    now: Instant,
    /// What the kernel would have.
    programmed: BTreeMap<String, usize>,
}

impl World {
    fn new() -> Self {
        let session = Session::new(cluster(), "n1".into());
        Self { session, now: Instant::now(), programmed: BTreeMap::new() }
    }

    fn take(&mut self, batch: &Batch) {
        for (key, service) in &batch.services {
            match service {
                Some(service) => self.programmed.insert(key.to_string(), service.endpoints.len()),
                None => self.programmed.remove(&key.to_string()),
            };
        }
    }

    fn hear(&mut self, message: pb::ServerMessage) -> Heard {
        let heard = self.session.on(message, self.now).unwrap();
        if let Heard::Batch(batch) = &heard {
            self.take(batch);
        }
        heard
    }

    fn hear_beside(&mut self, message: pb::ServerMessage) -> Heard {
        let heard = self.session.on_beside(message, self.now).unwrap();
        if let Heard::Moved(batch) = &heard {
            self.take(batch);
        }
        heard
    }

    /// A new stream, with everything.
    fn snapshot(&mut self, server: &Scripted) {
        self.session.hello(Vec::new(), false);
        server.snapshot().into_iter().for_each(|message| _ = self.hear(message));
        assert!(self.session.is_live());
    }

    /// A new stream, with what differs; gives how many records were asked for.
    fn repair(&mut self, server: &Scripted) -> usize {
        let said = self.session.hello(Vec::new(), false);
        let want = self.lists(server, &hello(&said).buckets);
        server.answer(&want).into_iter().for_each(|message| _ = self.hear(message));
        assert!(self.session.is_live());
        wanted(&want).len()
    }

    fn lists(&mut self, server: &Scripted, buckets: &[pb::Buckets]) -> pb::AgentMessage {
        let mut want = None;
        for message in server.lists(buckets) {
            if let Heard::Say(message) = self.hear(message) {
                want = Some(message);
            }
        }
        want.unwrap()
    }

    fn assert_has(&self, server: &Scripted) {
        assert!(self.session.table().iter().eq(server.table.iter()));
        assert_eq!(self.session.table().root(t::CLUSTER), server.table.root(t::CLUSTER));
    }

    fn assert_programmed(&self, wanted: &[(&str, usize)]) {
        let programmed: Vec<(&str, usize)> =
            self.programmed.iter().map(|(name, endpoints)| (&**name, *endpoints)).collect();
        assert_eq!(programmed, wanted);
    }
}

fn root_failed(failed: &Failed) -> bool {
    matches!(failed, Failed::Root { .. })
}

#[test]
fn rule_2_4_b_only_what_differs_is_wanted_and_what_no_list_names_goes() {
    let mut world = World::new();
    let first = Scripted::new(1).with(&named(&shop(1..100, 2)));
    world.snapshot(&first);
    let mut second = first.again(2);
    second.remove("shop/s7");
    second.put("shop/s8", service(8, 3));
    second.put("shop/s200", service(200, 1));
    assert_eq!(world.repair(&second), 2);
    world.assert_has(&second);
    assert_eq!(world.programmed.len(), 99);
    assert_eq!((world.programmed.get("shop/s7"), world.programmed["shop/s8"]), (None, 3));
    assert_eq!(world.repair(&second.again(3)), 0, "nothing differs");
}

#[test]
fn rule_2_4_b_an_agent_that_holds_nothing_may_be_repaired_too() {
    let mut world = World::new();
    let server = Scripted::new(1).with(&named(&shop(1..10, 1)));
    assert_eq!(world.repair(&server), 9);
    world.assert_has(&server);
}

#[test]
fn rule_3_1_what_a_repair_staged_is_thrown_away_with_its_stream() {
    let mut world = World::new();
    let first = Scripted::new(1).with(&named(&shop(1..10, 1)));
    world.snapshot(&first);
    let mut second = first.again(2);
    second.remove("shop/s1");
    second.put("shop/s2", service(2, 3));
    let said = world.session.hello(Vec::new(), false);
    let want = world.lists(&second, &hello(&said).buckets);
    let answer = second.answer(&want);
    answer[..answer.len() - 1].iter().for_each(|message| _ = world.hear(message.clone()));
    world.assert_has(&first);
    assert_eq!(world.repair(&second), 1);
    world.assert_has(&second);
}

#[test]
fn rule_2_4_a_record_of_an_incomplete_source_is_not_dropped() {
    let mut world = World::new();
    let first = Scripted::new(1).with(&named(&shop(1..5, 1)));
    world.snapshot(&first);
    world.session.hello(Vec::new(), false);
    let server = Scripted::new(2);
    for mut message in server.snapshot() {
        if let Some(FromServer::End(end)) = &mut message.message {
            end.sources[0].complete = false;
        }
        world.hear(message);
    }
    world.assert_has(&first);
}

#[test]
fn rule_2_5_a_root_that_differs_is_said_and_repaired_inside_the_stream() {
    let mut world = World::new();
    let mut server = Scripted::new(1).with(&named(&shop(1..10, 1)));
    world.snapshot(&server);
    let mut other = server.clone();
    other.revision -= 1;
    other.put("shop/s3", service(3, 4));
    server.table = other.table.clone();
    let Heard::Differs { reason, .. } = world.hear(server.heartbeat()) else { panic!("it differs") };
    assert!(reason.starts_with("the records of cluster default have the root"), "{reason}");
    let repair = world.session.repair(reason);
    let Some(pb::agent_message::Message::Repair(repair)) = repair.message else { panic!("a Repair") };
    let want = world.lists(&server, &repair.buckets);
    assert_eq!(wanted(&want).len(), 1);
    server.answer(&want).into_iter().for_each(|message| _ = world.hear(message));
    world.assert_has(&server);
    assert_eq!(world.programmed["shop/s3"], 4);
    assert_eq!(world.hear(server.heartbeat()), Heard::Staleness(Duration::ZERO));
}

#[test]
fn rule_4_2_a_repair_that_does_not_help_is_not_repeated_for_ever() {
    let mut world = World::new();
    let server = Scripted::new(1).with(&named(&shop(1..4, 1)));
    world.snapshot(&server);
    let before = world.session.table().clone();
    let mut wrong = server.again(2);
    wrong.put("shop/s1", service(1, 2));
    let said = world.session.hello(Vec::new(), false);
    let want = world.lists(&wrong, &hello(&said).buckets);
    let mut answer = wrong.answer(&want);
    if let Some(FromServer::End(end)) = &mut answer.last_mut().unwrap().message {
        end.sources[0].root = vec![7; 16].into();
    }
    let last = answer.pop().unwrap();
    answer.into_iter().for_each(|message| _ = world.hear(message));
    assert!(root_failed(&world.session.on(last, world.now).unwrap_err()));
    assert_eq!(world.session.table(), &before, "what does not fit changes nothing");
    let said = world.session.hello(Vec::new(), false);
    assert!(
        hello(&said).buckets.is_empty() && hello(&said).cursor.is_none(),
        "the next one sends everything"
    );
    wrong.snapshot().into_iter().for_each(|message| _ = world.hear(message));
    world.assert_has(&wrong);
    let said = world.session.hello(Vec::new(), false);
    assert_eq!(hello(&said).buckets.len(), 1, "what fits is trusted again");
}

#[test]
fn rule_4_3_the_old_stream_goes_on_until_the_new_one_has_reached_its_end() {
    let mut world = World::new();
    let mut first = Scripted::new(1).with(&named(&shop(1..10, 1)));
    world.snapshot(&first);
    let said = world.session.hello_beside(Vec::new());
    assert!(world.session.is_live() && !world.session.is_moving());
    world.hear(first.put("shop/s1", service(1, 5)));
    assert_eq!(world.programmed["shop/s1"], 5, "the old one is read until the new Begin");

    let mut second = first.again(2);
    second.put("shop/s2", service(2, 6));
    let lists = second.lists(&hello(&said).buckets);
    let mut want = None;
    for message in lists {
        if let Heard::Say(message) = world.hear_beside(message) {
            want = Some(message);
        }
    }
    assert!(world.session.is_moving());
    let mut answer = second.answer(&want.unwrap());
    let end = answer.pop().unwrap();
    answer.into_iter().for_each(|message| assert_eq!(world.hear_beside(message), Heard::Nothing));
    world.assert_has(&first);
    assert!(matches!(world.hear_beside(end), Heard::Moved(_)));
    assert!(!world.session.has_beside() && world.session.is_live());
    world.assert_has(&second);
    assert_eq!(world.session.cursor().unwrap().epoch, second.epoch);
    assert_eq!((world.programmed["shop/s1"], world.programmed["shop/s2"]), (5, 6));
    world.hear(second.put("shop/s3", service(3, 0)));
    world.assert_has(&second);
}

#[test]
fn rule_4_3_if_the_new_stream_dies_first_the_old_one_is_read_on() {
    let mut world = World::new();
    let mut first = Scripted::new(1).with(&named(&shop(1..10, 1)));
    world.snapshot(&first);
    world.session.hello_beside(Vec::new());
    let second = Scripted::new(2).with(&named(&shop(1..3, 9)));
    let mut messages = second.snapshot();
    messages.pop();
    messages.into_iter().for_each(|message| _ = world.hear_beside(message));
    world.session.drop_beside();
    world.assert_has(&first);
    world.hear(first.put("shop/s1", service(1, 5)));
    world.assert_has(&first);
}

#[test]
fn rule_4_3_what_the_old_stream_said_after_hello_does_not_confuse_the_new_one() {
    // The second server has not seen what the first said last, and is told of no buckets that have it.
    let mut world = World::new();
    let mut first = Scripted::new(1).with(&named(&shop(1..50, 1)));
    world.snapshot(&first);
    let second = first.again(2);
    let said = world.session.hello_beside(Vec::new());
    world.hear(first.put("shop/s1", service(1, 5)));
    world.hear(first.put("shop/s99", service(99, 1)));
    world.hear(first.remove("shop/s2"));
    let mut want = None;
    for message in second.lists(&hello(&said).buckets) {
        if let Heard::Say(message) = world.hear_beside(message) {
            want = Some(message);
        }
    }
    second.answer(&want.unwrap()).into_iter().for_each(|message| _ = world.hear_beside(message));
    world.assert_has(&second);
    let programmed =
        world.session.table().iter().map(|(key, held)| (key.to_string(), held.record.endpoints()));
    assert_eq!(world.programmed, programmed.collect());
}

#[test]
fn rule_2_2_a_move_waits_until_the_new_server_has_seen_what_the_old_one_had() {
    let mut world = World::new();
    let mut first = Scripted::new(1).with(&named(&shop(1..5, 1)));
    first.mark(100);
    world.snapshot(&first);
    let mut second = first.again(2);
    world.session.hello_beside(Vec::new());
    first.mark(105);
    world.hear(first.put("shop/s1", service(1, 2)));
    second.snapshot().into_iter().for_each(|message| _ = world.hear_beside(message));
    assert!(world.session.is_moving(), "its End is older than what is held");
    world.assert_has(&first);
    second.mark(104);
    assert_eq!(world.hear_beside(second.put("shop/s2", service(2, 2))), Heard::Nothing);
    second.mark(105);
    assert!(matches!(world.hear_beside(second.put("shop/s1", service(1, 2))), Heard::Moved(_)));
    world.assert_has(&second);
    assert_eq!((world.programmed["shop/s1"], world.programmed["shop/s2"]), (2, 2));
}

#[test]
fn rule_2_2_a_move_waits_also_when_the_old_stream_is_gone() {
    let mut world = World::new();
    let mut first = Scripted::new(1).with(&named(&shop(1..5, 1)));
    first.mark(100);
    world.snapshot(&first);
    let mut second = first.again(2);
    world.session.hello_beside(Vec::new());
    first.mark(105);
    world.hear(first.put("shop/s1", service(1, 2)));
    world.session.promote();
    second.snapshot().into_iter().for_each(|message| _ = world.hear(message));
    assert!(!world.session.is_live() && world.session.waits_since().is_some());
    world.assert_has(&first);
    second.mark(105);
    world.hear(second.put("shop/s1", service(1, 2)));
    assert!(world.session.is_live() && world.session.waits_since().is_none());
    world.assert_has(&second);
}

#[test]
fn rule_2_5_a_server_may_begin_anew_while_a_move_waits_for_its_marks() {
    let mut world = World::new();
    let mut first = Scripted::new(1).with(&named(&shop(1..5, 1)));
    first.mark(100);
    world.snapshot(&first);
    let mut second = first.again(2);
    world.session.hello_beside(Vec::new());
    first.mark(105);
    world.hear(first.put("shop/s1", service(1, 2)));
    second.snapshot().into_iter().for_each(|message| _ = world.hear_beside(message));
    assert!(world.session.is_moving());
    second.put("shop/s1", service(1, 2));
    second.remove("shop/s2");
    second.mark(106);
    second.snapshot().into_iter().for_each(|message| _ = world.hear_beside(message));
    assert!(!world.session.has_beside());
    world.assert_has(&second);
}

#[test]
fn rule_4_3_a_server_that_begins_anew_ends_what_is_beside_it() {
    let mut world = World::new();
    let first = Scripted::new(1).with(&named(&shop(1..5, 1)));
    world.snapshot(&first);
    world.session.hello_beside(Vec::new());
    first.snapshot().into_iter().for_each(|message| _ = world.hear(message));
    assert!(!world.session.has_beside());
    world.assert_has(&first);
}

#[test]
fn rule_4_3_when_the_old_stream_dies_the_new_one_goes_on_alone() {
    let mut world = World::new();
    let first = Scripted::new(1).with(&named(&shop(1..5, 1)));
    world.snapshot(&first);
    world.session.hello_beside(Vec::new());
    let second = Scripted::new(2).with(&named(&shop(1..6, 1)));
    let mut messages = second.snapshot();
    let rest = messages.split_off(2);
    messages.into_iter().for_each(|message| _ = world.hear_beside(message));
    world.session.promote();
    assert!(!world.session.is_live() && world.session.is_staging());
    rest.into_iter().for_each(|message| _ = world.hear(message));
    world.assert_has(&second);
}

fn held_world(services: u8, endpoints: u8) -> (World, Scripted) {
    let mut world = World::new();
    let server = Scripted::new(1).with(&named(&shop(1..services + 1, endpoints)));
    world.snapshot(&server);
    (world, server)
}

#[test]
fn rule_4_4_inferred_removals_of_more_than_half_and_20_are_held_for_60_s() {
    let (mut world, first) = held_world(10, 4);
    let mut second = first.again(2);
    (1..7).for_each(|number| _ = second.remove(&format!("shop/s{number}")));
    world.repair(&second);
    world.assert_has(&second);
    assert_eq!(world.programmed.len(), 10, "24 of 40 endpoints: they stay");
    assert_eq!(world.session.withheld().size(), (6, 24));
    let until = world.session.withheld().until().unwrap();
    assert_eq!(until, world.now + PATIENCE);
    assert_eq!(world.session.expire(until - Duration::from_millis(1)), None);
    let batch = world.session.expire(until).unwrap();
    assert_eq!((batch.services.len(), batch.gone().count(), batch.cursor), (6, 6, None));
    assert_eq!(world.session.withheld().size(), (0, 0));
}

#[test]
fn rule_4_4_less_goes_at_once() {
    let (mut world, first) = held_world(10, 4);
    let mut second = first.again(2);
    (1..6).for_each(|number| _ = second.remove(&format!("shop/s{number}")));
    world.repair(&second);
    assert_eq!(world.programmed.len(), 5, "20 of 40 endpoints");
    let (mut world, first) = held_world(3, 6);
    let mut second = first.again(2);
    (1..3).for_each(|number| _ = second.remove(&format!("shop/s{number}")));
    world.repair(&second);
    world.assert_programmed(&[("shop/s3", 6)]);
}

#[test]
fn rule_4_4_a_source_without_any_service_left_is_held_however_small() {
    let (mut world, _) = held_world(2, 1);
    world.snapshot(&Scripted::new(2));
    world.assert_programmed(&[("shop/s1", 1), ("shop/s2", 1)]);
    assert!(world.session.table().is_empty());
    let said = world.session.hello(Vec::new(), false);
    assert_eq!(hello(&said).buckets[0].sums, vec![0; 256 * 16], "what is held back is nobody's to compare");
}

#[test]
fn rule_4_4_services_that_lose_all_endpoints_count_as_vanished() {
    let (mut world, first) = held_world(10, 4);
    let mut second = first.again(2);
    (1..11).for_each(|number| _ = second.put(&format!("shop/s{number}"), service(number, 0)));
    world.repair(&second);
    world.assert_has(&second);
    assert_eq!(world.programmed.values().sum::<usize>(), 40);
    world.hear(second.put("shop/s1", service(1, 1)));
    assert_eq!(world.programmed["shop/s1"], 1, "what is said of a service holds");
}

#[test]
fn rule_4_4_explicit_removals_pass_however_many() {
    let (mut world, mut server) = held_world(10, 4);
    (1..11).for_each(|number| _ = world.hear(server.remove(&format!("shop/s{number}"))));
    world.assert_programmed(&[]);
}

#[test]
fn rule_4_4_a_second_process_confirms_and_the_same_one_does_not() {
    let (mut world, first) = held_world(10, 4);
    let empty = Scripted::new(2).with(&named(&shop(1..2, 4)));
    world.snapshot(&empty);
    assert_eq!(world.programmed.len(), 10);
    world.snapshot(&empty);
    assert_eq!(world.programmed.len(), 10, "the same process says nothing new");
    world.snapshot(&empty.again(3));
    world.assert_programmed(&[("shop/s1", 4)]);
    world.snapshot(&first);
    assert_eq!(world.programmed.len(), 10);
    world.snapshot(&empty.again(4));
    world.snapshot(&first);
    assert_eq!(
        (world.programmed.len(), world.session.withheld().size()),
        (10, (0, 0)),
        "it was there after all"
    );
}

#[test]
fn rule_4_4_an_operator_may_say_so() {
    let (mut world, _) = held_world(10, 4);
    world.snapshot(&Scripted::new(2));
    let batch = world.session.release().unwrap();
    world.take(&batch);
    world.assert_programmed(&[]);
    assert_eq!(world.session.release(), None);
}

#[test]
fn rule_4_4_what_is_claimed_by_something_new_gives_way_at_once() {
    let (mut world, _) = held_world(3, 9);
    let node_port = |number, port| {
        let mut service = service(number, 9);
        service.header.ports[0].node_port = port;
        service
    };
    let mut first = Scripted::new(2).with(&named(&shop(1..3, 9)));
    first.put("shop/s3", node_port(3, 30003));
    world.snapshot(&first);
    let mut empty = Scripted::new(3);
    world.snapshot(&empty);
    assert_eq!(world.programmed.len(), 3);
    // The cluster IP of s1, an endpoint of s2, the node port of s3.
    world.hear(empty.put("shop/new", t::service(&["10.96.0.1"])));
    assert_eq!((world.programmed.get("shop/s1"), world.programmed["shop/s2"]), (None, 9));
    let pod = t::service(&["10.96.0.77"]).endpoint(t::endpoint("10.2.0.4", "http", 8080));
    world.hear(empty.put("shop/pod", pod));
    assert_eq!(world.programmed["shop/s2"], 8, "the address is another pod's");
    let mut port = t::service(&["10.96.0.78"]).port("http", distributary_model::Protocol::Tcp, 80, 30003);
    port.endpoints.clear();
    world.hear(empty.put("shop/port", port));
    let left: Vec<&str> = world.programmed.keys().map(String::as_str).collect();
    assert_eq!(left, ["shop/new", "shop/pod", "shop/port", "shop/s2"]);
}

#[test]
fn rule_4_4_what_shares_an_endpoint_as_before_is_nothing_new() {
    let twin = || t::service(&["10.96.0.99"]).endpoint(t::endpoint("10.1.0.1", "http", 8080));
    let mut world = World::new();
    let mut first = Scripted::new(1).with(&named(&shop(1..10, 4)));
    first.put("shop/twin", twin());
    world.snapshot(&first);
    let mut second = Scripted::new(2);
    second.put("shop/twin", twin().header(|header| header.affinity_seconds = 7));
    world.snapshot(&second);
    assert_eq!(world.programmed["shop/s1"], 4);
}

#[test]
fn rule_4_4_zero_holds_nothing() {
    let (mut world, _) = held_world(10, 4);
    world.session = world.session.patient(Duration::ZERO);
    world.snapshot(&Scripted::new(2));
    world.assert_programmed(&[]);
}

#[test]
fn rule_4_5_what_is_restored_is_handed_on_whole_with_the_first_end() {
    let server = Scripted::new(1).with(&named(&shop(1..10, 2)));
    let mut world = World::new();
    let restored = Restored { table: server.table.clone(), ..Restored::default() };
    world.session = world.session.from(restored);
    assert_eq!(world.session.release(), None);
    assert_eq!(world.repair(&server), 0);
    assert_eq!(world.programmed.len(), 9, "although nothing differs");
}

#[test]
fn rule_1_5_more_than_a_stream_may_carry_is_refused_and_changes_nothing() {
    assert!(at_most(distributary_model::limits::ENDPOINTS_PER_STREAM).is_ok());
    let error = at_most(distributary_model::limits::ENDPOINTS_PER_STREAM + 1).unwrap_err();
    assert_eq!(error.to_string(), "1000001 endpoints, where 1000000 are the limit");
    let mut world = World::new();
    let server = Scripted::new(1).with(&named(&shop(1..3, 1)));
    world.snapshot(&server);
    let entries = vec![0; 2 * 65_537];
    let list = pb::BucketList { cluster: String::new(), bucket: 0, entries };
    let lists =
        pb::ServerMessage { message: Some(FromServer::BucketLists(pb::BucketLists { lists: vec![list] })) };
    let said = world.session.on(lists, world.now).unwrap_err().to_string();
    assert_eq!(said, "protocol error: 65537 records in lists of buckets, where 65536 are the limit");
    world.assert_has(&server);

    let candidate = pb::Candidate { address: "a:1".into(), ..Default::default() };
    let source = pb::SourceState { complete: true, cluster: "c".repeat(257), ..Default::default() };
    let long = pb::Candidate { zone: "z".repeat(257), ..candidate.clone() };
    let key = pb::Change { namespace: "n".repeat(257), name: "x".into(), ..Default::default() };
    let endpoint = || pb::Endpoint { address: vec![10, 0, 0, 1].into(), ..Default::default() };
    let put = |put: pb::Put| pb::Change {
        namespace: "ns".into(),
        name: "x".into(),
        content_hash: vec![0; 16].into(),
        change: Some(pb::change::Change::Put(put)),
        ..Default::default()
    };
    let header = |ports| {
        let header =
            pb::ServiceHeader { ports: vec![pb::ServicePort::default(); ports], ..Default::default() };
        Some(pb::put::Header::Service(header))
    };
    let frame = |change| FromServer::Frame(pb::Frame { changes: vec![change], ..Default::default() });
    for (message, wanted) in [
        (
            FromServer::Drain(pb::Drain { candidates: vec![candidate; 1_001], ..Default::default() }),
            "1001 candidates",
        ),
        (
            FromServer::Throttle(pb::Throttle { candidates: vec![long], ..Default::default() }),
            "a name of 257 bytes",
        ),
        (
            FromServer::Heartbeat(pb::Heartbeat {
                marks: vec![pb::Mark::default(); 1_001],
                ..Default::default()
            }),
            "1001 marks",
        ),
        (
            FromServer::Heartbeat(pb::Heartbeat {
                revision: server.revision,
                sources: vec![source],
                ..Default::default()
            }),
            "257 bytes of a string",
        ),
        (frame(key), "257 bytes of a string"),
        (frame(put(pb::Put { header: header(101), ..Default::default() })), "101 ports of a service"),
        (
            frame(put(pb::Put { header: header(1), endpoints: vec![endpoint(); 65_537], more: false })),
            "65537 endpoints of a service",
        ),
        (
            FromServer::Frame(pb::Frame {
                zstd: vec![1].into(),
                raw_length: (1 << 20) + 1,
                ..Default::default()
            }),
            "1048577 bytes of a frame after decompression",
        ),
    ] {
        world.snapshot(&server);
        let message = pb::ServerMessage { message: Some(message) };
        let said = world.session.on(message, world.now).unwrap_err().to_string();
        assert!(said.starts_with("protocol error: ") && said.contains(wanted), "{said}, not {wanted}");
        world.assert_has(&server);
    }
}

#[test]
fn rule_2_4_lists_are_refused_outside_of_a_repair() {
    let mut world = World::new();
    let server = Scripted::new(1).with(&named(&shop(1..3, 1)));
    world.snapshot(&server);
    let lists = server.lists(&[]).pop().unwrap();
    let error = world.session.on(lists, world.now).unwrap_err();
    assert_eq!(error.to_string(), "protocol error: BucketLists outside of a repair");
}
