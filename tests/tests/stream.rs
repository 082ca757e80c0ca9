//! Both ends of the stream against each other, without a socket and with the time in hand: the rules of docs/wire.md.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use distributary_agent::sync::session::{Batch, Failed, Heard, Session as AgentSession};
use distributary_cluster::{Event, Object, Trigger};
use distributary_model::{Epoch, Name, ObjectKind};
use distributary_proto::v1 as pb;
use distributary_server::journal::{Journal, LOG_BYTES, Moment};
use distributary_server::session::{Ended, Heard as ServerHeard, PATIENCE, Session as ServerSession};
use distributary_server::source::Update;
use jiff::Timestamp;
use pb::server_message::Message;
use proptest::prelude::*;
use prost::Message as _;
use serde_json::json;

const CLUSTER: &str = "default";

fn object(kind: ObjectKind, json: &serde_json::Value) -> Event {
    Event::Upsert(Object::from_json(kind, &json.to_string()).unwrap())
}

fn service(name: &str, ip: &str) -> Event {
    object(
        ObjectKind::Service,
        &json!({
            "metadata": {"namespace": "shop", "name": name},
            "spec": {"clusterIP": ip, "clusterIPs": [ip], "ipFamilies": ["IPv4"], "ports": [{"name": "http", "port": 80}]}
        }),
    )
}

fn slice(name: &str, addresses: &[&str], labels: &serde_json::Value) -> Event {
    let mut all = json!({"kubernetes.io/service-name": name});
    for (key, value) in labels.as_object().unwrap() {
        all[key] = value.clone();
    }
    let endpoints: Vec<_> = addresses
        .iter()
        .map(|ip| json!({"addresses": [ip], "nodeName": "n1", "conditions": {"ready": true}}))
        .collect();
    object(
        ObjectKind::EndpointSlice,
        &json!({
            "metadata": {"namespace": "shop", "name": format!("{name}-1"), "labels": all},
            "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}], "endpoints": endpoints
        }),
    )
}

fn node(name: &str, zone: &str) -> Event {
    let labels = json!({"topology.kubernetes.io/zone": zone});
    object(ObjectKind::Node, &json!({"metadata": {"name": name, "labels": labels}}))
}

fn events(events: Vec<Event>) -> Update {
    Update { events, ..Update::default() }
}

fn listed(events: Vec<Event>) -> Update {
    Update { events, listed: ObjectKind::ALL.to_vec(), fresh: ObjectKind::ALL.to_vec(), ..Update::default() }
}

/// One server process, one agent, and the stream between them.
struct World {
    now: Instant,
    journal: Journal,
    server: Option<ServerSession>,
    agent: AgentSession,
}

impl World {
    fn new(journal: Journal) -> Self {
        // What a server does not have is not programmed: that more may be for a while is tested beside the session.
        let agent = AgentSession::new(CLUSTER.into(), "n1".into()).patient(Duration::ZERO);
        Self { now: Instant::now(), journal, server: None, agent }
    }

    fn process(epoch: u8) -> Journal {
        Self::process_with(epoch, LOG_BYTES)
    }

    fn process_with(epoch: u8, log_bytes: usize) -> Journal {
        Journal::new(Epoch([epoch; 16]), CLUSTER.into(), log_bytes, Instant::now())
    }

    fn connect(&mut self) {
        self.connect_with(false);
    }

    fn connect_with(&mut self, accept_older: bool) {
        let mut server = ServerSession::new(self.now, 0.5);
        let hello = self.agent.hello(Vec::new(), accept_older);
        let heard = server.on(hello, &Name::from(CLUSTER), self.now).unwrap();
        assert_eq!(heard, ServerHeard::Hello { node: "n1".into() });
        self.server = Some(server);
    }

    /// The server's next message, if it has one.
    fn pull(&mut self) -> Option<Message> {
        let server = self.server.as_mut().unwrap();
        let mut next = server.next(&self.journal, self.now).unwrap();
        if next.is_none() && server.awaits_snapshot() {
            // What a server does beside its streams.
            self.journal.blueprint().into_iter().for_each(|plan| self.journal.install(plan.build()));
            next = server.next(&self.journal, self.now).unwrap();
        }
        let (bytes, _) = next?;
        pb::ServerMessage::decode(&bytes[5..]).unwrap().message
    }

    /// The agent hears a message, and the server its answer.
    fn hear(&mut self, message: Message) -> Result<Heard, Failed> {
        let heard = self.agent.on(pb::ServerMessage { message: Some(message) }, self.now)?;
        let Heard::Say(answer) = heard else { return Ok(heard) };
        let server = self.server.as_mut().unwrap();
        assert_eq!(server.on(answer, &Name::from(CLUSTER), self.now).unwrap(), ServerHeard::Nothing);
        Ok(Heard::Nothing)
    }

    /// Everything that the server has to say now: what it was, and what the agent would program.
    fn run(&mut self) -> (Vec<&'static str>, Batch) {
        let (mut said, mut programmed) = (Vec::new(), Batch::default());
        while let Some(message) = self.pull() {
            said.push(match &message {
                Message::Begin(begin) if begin.mode() == pb::begin::Mode::Resume => "resume",
                Message::Begin(begin) if begin.mode() == pb::begin::Mode::Repair => "repair",
                Message::Begin(_) => "snapshot",
                Message::BucketLists(_) => "lists",
                Message::Node(_) => "node",
                Message::Frame(_) => "frame",
                Message::End(_) => "end",
                Message::Heartbeat(_) => "heartbeat",
                Message::Throttle(_) => "throttle",
                other => panic!("{other:?}"),
            });
            if let Heard::Batch(batch) = self.hear(message).unwrap() {
                programmed.merge(batch);
            }
        }
        (said, programmed)
    }

    fn assert_equal(&self) {
        let (ours, theirs) = (self.agent.table(), self.journal.cluster().table());
        assert!(ours.iter().eq(theirs.iter()), "the agent has {ours:#?}, the server {theirs:#?}");
        assert_eq!(ours.root(CLUSTER), theirs.root(CLUSTER));
    }
}

impl World {
    /// Commits an update at that second of the server's wall clock.
    fn commit_at(&mut self, second: i64, update: Update) {
        let wall = Timestamp::from_second(second).ok();
        self.journal.commit(update, Moment { instant: self.now, wall });
    }
}

/// A slice of IPv4 that was triggered at that second.
fn triggered(second: i64, slice: Event) -> Event {
    let Event::Upsert(Object::EndpointSlice(mut slice)) = slice else { panic!("{slice:?}") };
    slice.trigger = Some(Trigger { at: Timestamp::from_second(second).unwrap(), v6: false });
    Event::Upsert(Object::EndpointSlice(slice))
}

const NOTHING: [Duration; 0] = [];

/// How long the changes of slices in a batch took, if it came to the kernel now.
fn took(mut batch: Batch, now: Instant) -> Vec<Duration> {
    batch.underway.arrive(|_| false, now).into_iter().map(|arrived| arrived.took).collect()
}

fn names(batch: &Batch) -> Vec<(String, bool)> {
    batch.services.iter().map(|(key, service)| (key.to_string(), service.is_some())).collect()
}

#[test]
fn rule_3_1_nothing_is_told_before_every_kind_has_listed() {
    let mut world = World::new(World::process(1));
    world.journal.commit(events(vec![service("web", "10.96.0.1")]), world.now);
    world.connect();
    assert_eq!(world.run().0, Vec::<&str>::new());
    world.now += PATIENCE;
    assert_eq!(world.run().0, ["throttle"]);
    world.journal.commit(listed(vec![]), world.now);
    world.connect();
    let (said, programmed) = world.run();
    assert_eq!(said, ["snapshot", "node", "frame", "end"]);
    assert_eq!(names(&programmed), [("shop/web".into(), true)]);
    world.assert_equal();
}

#[test]
fn rule_3_1_what_is_staged_is_thrown_away_if_the_stream_dies_before_end() {
    let mut world = World::new(World::process(1));
    world.journal.commit(listed(vec![service("web", "10.96.0.1")]), world.now);
    world.connect();
    world.run();
    let before = world.agent.table().clone();
    world.journal = World::process(2);
    world.journal.commit(listed(vec![service("cart", "10.96.0.2")]), world.now);
    world.connect();
    while let Some(message) = world.pull() {
        if matches!(message, Message::End(_)) {
            break;
        }
        assert_eq!(world.hear(message).unwrap(), Heard::Nothing);
    }
    assert_eq!(world.agent.table(), &before);
    world.connect();
    let (_, programmed) = world.run();
    assert_eq!(names(&programmed), [("shop/cart".into(), true), ("shop/web".into(), false)]);
    world.assert_equal();
}

#[test]
fn rule_3_3_what_half_a_commit_changed_is_programmed_whatever_comes_then() {
    let large = || -> Vec<Event> {
        let one = |i: u32| {
            let addresses: Vec<String> =
                (1..9).map(|last| format!("10.{}.{}.{last}", i / 250, i % 250)).collect();
            let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
            [
                service(&format!("s{i}"), &format!("10.97.{}.{}", i / 250, i % 250)),
                slice(&format!("s{i}"), &addresses, &json!({})),
            ]
        };
        (0..500).flat_map(one).collect()
    };
    let mut world = World::new(World::process(1));
    world.journal.commit(listed(vec![]), world.now);
    world.connect();
    world.run();
    world.journal.commit(events(large()), world.now);
    let Some(Message::Frame(frame)) = world.pull() else { panic!("no frame") };
    assert_eq!(frame.through, 0, "the commit has more than one frame");
    assert_eq!(world.hear(Message::Frame(frame)).unwrap(), Heard::Nothing);
    world.journal = World::process(2);
    world.journal.commit(listed(large()), world.now);
    world.connect();
    let (_, programmed) = world.run();
    assert_eq!(programmed.services.len(), 500);
    world.assert_equal();
}

#[test]
fn rule_2_4_a_cursor_of_the_process_gets_what_changed_since() {
    let mut world = World::new(World::process(1));
    world.journal.commit(listed(vec![service("web", "10.96.0.1"), service("cart", "10.96.0.2")]), world.now);
    world.connect();
    world.run();
    world.journal.commit(events(vec![slice("web", &["10.0.0.1"], &json!({}))]), world.now);
    world.journal.commit(events(vec![slice("web", &["10.0.0.1", "10.0.0.2"], &json!({}))]), world.now);
    world.connect();
    let (said, programmed) = world.run();
    assert_eq!(said, ["resume", "node", "frame", "frame", "end"]);
    assert_eq!(names(&programmed), [("shop/web".into(), true)]);
    world.assert_equal();
    world.connect();
    assert_eq!(world.run().0, ["resume", "node", "end"]);
}

#[test]
fn rule_2_4_another_process_sends_what_differs_and_what_is_not_listed_goes() {
    let services = |names: &[&str]| -> Vec<Event> {
        names.iter().zip(1..).map(|(name, last)| service(name, &format!("10.96.0.{last}"))).collect()
    };
    let mut world = World::new(World::process(1));
    world.journal.commit(listed(services(&["a", "b", "c", "d"])), world.now);
    world.connect();
    world.run();
    world.journal = World::process(2);
    world.journal.commit(listed(services(&["a", "b", "c"])), world.now);
    world
        .journal
        .commit(events(vec![slice("b", &["10.0.0.1"], &json!({})), service("e", "10.96.0.9")]), world.now);
    world.connect();
    let (said, programmed) = world.run();
    assert_eq!(said, ["repair", "node", "lists", "frame", "end"]);
    let changed = [("shop/b".into(), true), ("shop/d".into(), false), ("shop/e".into(), true)];
    assert_eq!(names(&programmed), changed);
    world.assert_equal();
    // Nothing differs: nothing is listed.
    world.journal = World::process(3);
    let same =
        [services(&["a", "b", "c"]), vec![slice("b", &["10.0.0.1"], &json!({})), service("e", "10.96.0.9")]];
    world.journal.commit(listed(same.concat()), world.now);
    world.connect();
    assert_eq!(world.run().0, ["repair", "node", "end"]);
    world.assert_equal();
}

#[test]
fn rule_5_2_a_trigger_time_becomes_an_age_and_counts_from_receipt() {
    let second = Duration::from_secs(1);
    let mut world = World::new(World::process(1));
    world.commit_at(100, listed(vec![service("web", "10.96.0.1")]));
    world.connect();
    world.run();
    world.now += 9 * second;
    world.commit_at(109, events(vec![triggered(107, slice("web", &["10.0.0.1"], &json!({})))]));
    let (_, programmed) = world.run();
    assert_eq!(took(programmed, world.now + second), [3 * second]);
    // The agent reads what the server sent 5 s ago, in the middle of a stream that is quick otherwise.
    world.commit_at(110, events(vec![triggered(110, slice("web", &["10.0.0.2"], &json!({})))]));
    world.now += 5 * second;
    let (_, programmed) = world.run();
    assert_eq!(took(programmed, world.now), [5 * second]);
}

#[test]
fn wart_17_what_is_older_than_the_lists_or_catches_an_agent_up_measures_nothing() {
    let mut world = World::new(World::process(1));
    let web = |second, address| events(vec![triggered(second, slice("web", &[address], &json!({})))]);
    let mut first = listed(vec![service("web", "10.96.0.1")]);
    first.events.extend(web(101, "10.0.0.1").events);
    world.commit_at(100, first);
    world.connect();
    assert_eq!(took(world.run().1, world.now), NOTHING, "a snapshot");
    world.commit_at(110, web(99, "10.0.0.2"));
    assert_eq!(took(world.run().1, world.now), NOTHING, "from before the server's time");
    world.commit_at(110, web(109, "10.0.0.3"));
    world.connect();
    let (said, programmed) = world.run();
    assert_eq!((said[0], said.contains(&"frame")), ("resume", true));
    assert_eq!(took(programmed, world.now), NOTHING, "a resume");
    world.commit_at(111, web(109, "10.0.0.4"));
    assert_eq!(took(world.run().1, world.now), [Duration::from_secs(2)]);
}

#[test]
fn rule_3_4_who_falls_below_the_log_is_told_the_newest_values_in_the_same_stream() {
    let mut world = World::new(World::process_with(1, 100));
    world.journal.commit(listed(vec![service("web", "10.96.0.1")]), world.now);
    world.connect();
    world.run();
    for last in 1..20 {
        let address = format!("10.0.0.{last}");
        world.journal.commit(events(vec![slice("web", &[&address], &json!({}))]), world.now);
    }
    let (said, programmed) = world.run();
    assert_eq!(said, ["resume", "node", "frame", "end"]);
    assert_eq!(names(&programmed), [("shop/web".into(), true)]);
    world.assert_equal();
}

#[test]
fn rule_2_2_no_agent_is_taken_back_in_time_unless_it_says_so() {
    let mark = |version| Update { marks: vec![(ObjectKind::EndpointSlice, version)], ..listed(vec![]) };
    let mut world = World::new(World::process(1));
    world.journal.commit(mark(100), world.now);
    world.connect();
    world.run();
    world.journal = World::process(2);
    world.journal.commit(mark(99), world.now);
    world.connect();
    assert_eq!(world.run().0, Vec::<&str>::new());
    world.now += PATIENCE;
    assert_eq!(world.run().0, ["throttle"]);
    world.connect();
    world.journal.commit(mark(101), world.now);
    assert_eq!(world.run().0, ["snapshot", "node", "end"]);
    world.journal = World::process(3);
    world.journal.commit(mark(50), world.now);
    world.connect_with(true);
    assert_eq!(world.run().0, ["snapshot", "node", "end"]);
}

#[test]
fn rule_3_2_only_its_own_node_reaches_an_agent_and_only_what_it_sees() {
    let mut world = World::new(World::process(1));
    world.journal.commit(listed(vec![node("n1", "a"), node("n2", "a")]), world.now);
    world.connect();
    let (_, programmed) = world.run();
    assert_eq!(programmed.node.unwrap().unwrap().zone, "a".into());
    world.journal.commit(events(vec![node("n2", "b")]), world.now);
    assert_eq!(world.run().0, Vec::<&str>::new());
    world.journal.commit(events(vec![node("n1", "b")]), world.now);
    let (said, programmed) = world.run();
    assert_eq!((said, programmed.node.unwrap().unwrap().zone), (vec!["node"], "b".into()));
}

#[test]
fn rule_3_7_what_no_agent_could_see_is_silence() {
    let mut world = World::new(World::process(1));
    let web = || vec![service("web", "10.96.0.1"), slice("web", &["10.0.0.1", "10.0.0.2"], &json!({}))];
    world.journal.commit(listed(web()), world.now);
    world.connect();
    world.run();
    world.journal.commit(events(web()), world.now);
    world
        .journal
        .commit(events(vec![slice("web", &["10.0.0.2", "10.0.0.1"], &json!({"team": "a"}))]), world.now);
    assert_eq!(world.run().0, Vec::<&str>::new());
}

#[test]
fn a078_other_labels_of_a_node_are_silence() {
    let mut world = World::new(World::process(1));
    world.journal.commit(listed(vec![node("n1", "a")]), world.now);
    world.connect();
    world.run();
    let labels = json!({"topology.kubernetes.io/zone": "a", "kubernetes.io/os": "linux"});
    let labelled = json!({"metadata": {"name": "n1", "labels": labels}});
    world.journal.commit(events(vec![object(ObjectKind::Node, &labelled)]), world.now);
    assert_eq!(world.run().0, Vec::<&str>::new());
}

#[test]
fn a094_nothing_is_sent_before_every_kind_has_listed() {
    let mut world = World::new(World::process(1));
    let list = |kind: ObjectKind, events: Vec<Event>| Update {
        events,
        listed: vec![kind],
        fresh: vec![kind],
        ..Update::default()
    };
    world.journal.commit(list(ObjectKind::Service, vec![service("web", "10.96.0.1")]), world.now);
    world.journal.commit(list(ObjectKind::Node, vec![node("n1", "a")]), world.now);
    world.journal.commit(list(ObjectKind::ServiceCidr, vec![]), world.now);
    world.connect();
    assert_eq!(world.run().0, Vec::<&str>::new());
    let slice = slice("web", &["10.0.0.1"], &json!({}));
    world.journal.commit(list(ObjectKind::EndpointSlice, vec![slice]), world.now);
    assert_eq!(world.run().0, ["snapshot", "node", "frame", "end"]);
    world.assert_equal();
}

#[test]
fn a095_what_is_listed_again_without_changes_is_silence() {
    let mut world = World::new(World::process(1));
    let all = || vec![service("web", "10.96.0.1"), slice("web", &["10.0.0.1"], &json!({})), node("n1", "a")];
    world.journal.commit(listed(all()), world.now);
    world.connect();
    world.run();
    world.journal.commit(listed(all()), world.now);
    assert_eq!(world.run().0, Vec::<&str>::new());
}

#[test]
fn rule_3_8_heartbeats_carry_roots_and_a_wrong_one_is_seen() {
    let mut world = World::new(World::process(1));
    world.journal.commit(listed(vec![service("web", "10.96.0.1")]), world.now);
    world.connect();
    world.run();
    world.now += Duration::from_secs(6);
    assert_eq!(world.run().0, ["heartbeat"]);
    let mut heartbeat = world.journal.heartbeat(world.now);
    heartbeat.sources[0].root = vec![7; 16].into();
    let Heard::Differs { reason, .. } = world.hear(Message::Heartbeat(heartbeat)).unwrap() else {
        panic!("the roots differ")
    };
    assert!(reason.starts_with("the records of cluster default have the root"), "{reason}");
}

#[test]
fn a_stranger_is_told_why() {
    let mut server = ServerSession::new(Instant::now(), 0.5);
    let hello = AgentSession::new("other".into(), "n1".into()).hello(Vec::new(), false);
    let ended = server.on(hello, &CLUSTER.into(), Instant::now()).unwrap_err();
    let Ended::Refused(why) = ended else { panic!("{ended:?}") };
    assert!(
        why.contains("\"default\"") && why.contains("\"other\"") && why.contains("--cluster-id"),
        "{why}"
    );
}

#[test]
fn out_of_order_messages_end_the_stream_and_leave_the_table() {
    let mut world = World::new(World::process(1));
    world.journal.commit(listed(vec![service("web", "10.96.0.1")]), world.now);
    world.connect();
    world.run();
    let before = world.agent.table().clone();
    let _ = world.agent.hello(Vec::new(), false);
    for message in [
        Message::End(pb::End::default()),
        Message::Frame(pb::Frame::default()),
        Message::Node(pb::Node::default()),
        Message::Begin(pb::Begin::default()),
    ] {
        assert!(world.hear(message).is_err());
    }
    assert_eq!(world.agent.table(), &before);
}

#[derive(Clone, Debug)]
enum Step {
    Endpoints(u8, Vec<u8>),
    Service(u8),
    Delete(u8),
    Reconnect { after: u8 },
    Restart,
    Hear { messages: u8 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..4_u8, proptest::collection::vec(1..9_u8, 0..5)).prop_map(|(name, ips)| Step::Endpoints(name, ips)),
        2 => (0..4_u8).prop_map(Step::Service),
        2 => (0..4_u8).prop_map(Step::Delete),
        2 => (0..8_u8).prop_map(|after| Step::Reconnect { after }),
        1 => Just(Step::Restart),
        4 => (1..8_u8).prop_map(|messages| Step::Hear { messages }),
    ]
}

proptest! {
    /// Any interleaving of changes, lost connections and restarts ends with the agent's table equal to the server's,
    /// and what was handed on to be programmed adds up to it.
    #[test]
    fn any_history_ends_in_step(steps in proptest::collection::vec(step(), 1..60), log_bytes in prop_oneof![Just(300_usize), Just(LOG_BYTES)]) {
        let mut world = World::new(World::process_with(0, log_bytes));
        let mut truth: BTreeMap<String, Event> = BTreeMap::new();
        let (mut epoch, mut programmed) = (0, BTreeMap::new());
        let take_in = |programmed: &mut BTreeMap<_, _>, batch: Batch| {
            for (key, service) in batch.services {
                match service {
                    Some(service) => programmed.insert(key, service),
                    None => programmed.remove(&key),
                };
            }
        };
        world.journal.commit(listed(vec![]), world.now);
        world.connect();
        for step in steps {
            let mut change = |world: &mut World, id: String, event: Event| {
                match &event {
                    Event::Gone { .. } => truth.remove(&id),
                    _ => truth.insert(id, event.clone()),
                };
                world.journal.commit(events(vec![event]), world.now);
            };
            match step {
                Step::Endpoints(name, ips) => {
                    let ips: Vec<String> = ips.iter().map(|last| format!("10.0.0.{last}")).collect();
                    let ips: Vec<&str> = ips.iter().map(String::as_str).collect();
                    change(&mut world, format!("slice s{name}"), slice(&format!("s{name}"), &ips, &json!({})));
                }
                Step::Service(name) => {
                    let event = service(&format!("s{name}"), &format!("10.96.0.{}", name + 1));
                    change(&mut world, format!("service s{name}"), event);
                }
                Step::Delete(name) => {
                    let Event::Upsert(gone) = service(&format!("s{name}"), "10.96.0.1") else { unreachable!() };
                    let event = Event::Gone { key: gone.key().clone(), inferred: false };
                    change(&mut world, format!("service s{name}"), event);
                }
                Step::Reconnect { after } => {
                    for _ in 0..after {
                        if let Some(message) = world.pull()
                            && let Heard::Batch(batch) = world.hear(message).unwrap()
                        {
                            take_in(&mut programmed, batch);
                        }
                    }
                    world.connect();
                }
                Step::Restart => {
                    epoch += 1;
                    world.journal = World::process_with(epoch, log_bytes);
                    world.journal.commit(listed(truth.values().cloned().collect()), world.now);
                    world.connect();
                }
                Step::Hear { messages } => {
                    for _ in 0..messages {
                        if let Some(message) = world.pull()
                            && let Heard::Batch(batch) = world.hear(message).unwrap()
                        {
                            take_in(&mut programmed, batch);
                        }
                    }
                }
            }
        }
        let (_, batch) = world.run();
        take_in(&mut programmed, batch);
        world.assert_equal();
        let table = world.agent.table().iter().map(|(key, held)| (key.clone(), held.record.as_service().unwrap().clone()));
        prop_assert_eq!(programmed, table.collect::<BTreeMap<_, _>>());
    }
}
