//! The driver, with servers that say what a test wants and time in hand.

mod history;

use std::collections::BTreeMap;

use distributary_model::Revision;
use pb::begin::Mode;

use super::*;
use crate::sync::scripted::{Scripted, cluster, hello, named, service, shop};

struct World {
    driver: Driver,
    now: Instant,
    /// Connections that are open, with their servers.
    links: BTreeMap<LinkId, String>,
    said: Vec<(LinkId, pb::AgentMessage)>,
    programmed: Vec<Batch>,
    notes: Vec<Note>,
    saved: Vec<Checkpoint>,
    looks: usize,
}

fn settings() -> Settings {
    Settings { seed: 7, saves: true, ..Settings::new(cluster(), "n1".into()) }
}

fn servers(addresses: &[&str]) -> Vec<Server> {
    addresses.iter().map(|address| Server::new(*address)).collect()
}

fn candidates(addresses: &[&str]) -> Vec<pb::Candidate> {
    let candidate =
        |address: &&str| pb::Candidate { address: (*address).to_owned(), zone: String::new(), capacity: 1 };
    addresses.iter().map(candidate).collect()
}

impl World {
    fn start(saved: Option<Checkpoint>, addresses: &[&str]) -> Self {
        let now = Instant::now();
        let driver = Driver::new(settings(), saved, now);
        let mut world = Self {
            driver,
            now,
            links: BTreeMap::new(),
            said: Vec::new(),
            programmed: Vec::new(),
            notes: Vec::new(),
            saved: Vec::new(),
            looks: 0,
        };
        world.driver.servers(servers(addresses), now);
        world.obey();
        world
    }

    fn obey(&mut self) {
        while let Some(order) = self.driver.next_order() {
            match order {
                Order::Dial(id, server) => _ = self.links.insert(id, server.address),
                Order::Say(id, message) => self.said.push((id, message)),
                Order::Close(id) => _ = self.links.remove(&id),
                Order::Program(batch, _) => self.programmed.push(batch),
                Order::LookAtKernel => self.looks += 1,
                Order::Save(checkpoint) => self.saved.push(*checkpoint),
                Order::Note(note) => self.notes.push(note),
            }
        }
    }

    /// Lets so much time go by, with everything that falls due on the way.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.driver.wake_at().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.driver.tick(self.now);
            self.obey();
        }
        self.now = end;
        self.driver.tick(end);
        self.obey();
    }

    /// The newest connection.
    fn last(&self) -> (LinkId, String) {
        let (id, address) = self.links.last_key_value().unwrap();
        (*id, address.clone())
    }

    fn connect(&mut self, link: LinkId) {
        self.driver.connected(link, self.now);
        self.obey();
    }

    fn hear(&mut self, link: LinkId, message: pb::ServerMessage) {
        assert!(self.driver.reads(link), "it is not to be read");
        self.driver.heard(link, message, self.now);
        self.obey();
    }

    fn lose(&mut self, link: LinkId) {
        self.driver.lost(link, "a test cut it".into(), self.now);
        self.obey();
    }

    /// Waits for a connection and brings it to its End.
    fn follow(&mut self, server: &Scripted) -> LinkId {
        while self.links.is_empty() {
            self.pass(Duration::from_millis(100));
        }
        let (link, _) = self.last();
        self.connect(link);
        server.snapshot().into_iter().for_each(|message| self.hear(link, message));
        assert!(self.driver.session().is_live());
        link
    }

    fn said_by(&self, link: LinkId) -> Vec<&pb::agent_message::Message> {
        let of_link = self.said.iter().filter(|(id, _)| *id == link);
        of_link.filter_map(|(_, message)| message.message.as_ref()).collect()
    }

    fn hello(&self, link: LinkId) -> pb::Hello {
        let (_, first) = self.said.iter().find(|(id, _)| *id == link).unwrap();
        hello(first).clone()
    }
}

const SECOND: Duration = Duration::from_secs(1);

fn three() -> Scripted {
    Scripted::new(1).with(&named(&shop(1..4, 2)))
}

#[test]
fn rule_4_6_after_a_failure_the_next_in_order_with_full_jitter() {
    let mut world = World::start(None, &["10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"]);
    let mut tried = Vec::new();
    let mut waits = Vec::new();
    for _ in 0..6 {
        let (link, address) = world.last();
        tried.push(address);
        world.lose(link);
        let Some(Note::Lost { wait, .. }) = world.notes.last() else { panic!("{:?}", world.notes) };
        waits.push(*wait);
        world.pass(*wait);
    }
    assert_eq!(tried[..3], tried[3..], "in the same order again");
    let mut sorted = tried[..3].to_vec();
    sorted.sort();
    assert_eq!(sorted, ["10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"]);
    for (wait, bound) in waits.iter().zip([0.5, 1.0, 2.0, 4.0, 8.0, 16.0]) {
        assert!(wait.as_secs_f64() <= bound, "{waits:?}");
    }
}

#[test]
fn rule_4_6_who_is_lost_is_not_the_first_to_be_tried_again() {
    let mut world = World::start(None, &["10.0.0.1:1", "10.0.0.2:1"]);
    let (_, first) = world.last();
    let link = world.follow(&three());
    world.pass(11 * SECOND);
    world.lose(link);
    world.pass(SECOND);
    assert_ne!(world.last().1, first);
}

#[test]
fn rule_4_6_candidates_of_a_stream_are_used_and_survive_in_the_checkpoint() {
    let mut world = World::start(None, &["10.0.0.1:1"]);
    let mut server = three();
    server.candidates = candidates(&["10.9.0.1:1", "10.9.0.2:1"]);
    let link = world.follow(&server);
    world.pass(11 * SECOND);
    assert_eq!(world.saved.len(), 1, "10 s after the first change");
    world.lose(link);
    world.pass(SECOND);
    assert!(world.last().1.starts_with("10.9."), "{:?}", world.links);
    let again = World::start(world.saved.pop(), &[]);
    assert!(again.last().1.starts_with("10.9."), "{:?}", again.links);
}

#[test]
fn rule_4_6_a_throttle_says_when_and_where() {
    let mut world = World::start(None, &["10.0.0.1:1"]);
    let (link, _) = world.last();
    world.connect(link);
    let mut server = three();
    world.hear(link, server.throttle(5_000, false));
    world.pass(SECOND);
    assert!(world.links.is_empty(), "there is nobody else");
    world.pass(4 * SECOND - Duration::from_millis(1));
    assert!(world.links.is_empty(), "not before 5 s");
    world.pass(6 * SECOND);
    let (link, _) = world.last();
    world.connect(link);
    server.candidates = candidates(&["10.9.0.1:1"]);
    world.hear(link, server.throttle(60_000, false));
    world.pass(SECOND);
    assert_eq!(world.last().1, "10.9.0.1:1", "elsewhere at once");
}

#[test]
fn rule_2_2_after_30_s_of_servers_that_are_behind_an_older_state_is_taken() {
    let mut world = World::start(None, &["10.0.0.1:1"]);
    let began = world.now;
    let server = three();
    loop {
        while world.links.is_empty() {
            world.pass(Duration::from_millis(100));
        }
        let (link, _) = world.last();
        world.connect(link);
        let waited = world.now - began;
        assert_eq!(world.hello(link).accept_older, waited >= BEHIND, "after {waited:?}");
        if waited >= BEHIND {
            break;
        }
        world.pass(3 * SECOND);
        world.hear(link, server.throttle(1_000, true));
    }
}

#[test]
fn rule_3_8_three_heartbeats_missed_and_the_next_server() {
    let mut world = World::start(None, &["10.0.0.1:1", "10.0.0.2:1"]);
    let link = world.follow(&three());
    world.pass(SILENCE - SECOND);
    world.hear(link, three().heartbeat());
    world.pass(SILENCE - SECOND);
    assert!(world.links.contains_key(&link));
    world.pass(SECOND);
    assert!(!world.links.contains_key(&link));
    assert!(matches!(&world.notes[..], [.., Note::Lost { error, .. }] if error.contains("three heartbeats")));
}

#[test]
fn rule_4_3_a_drain_moves_the_agent_in_its_slot_without_a_gap() {
    let mut world = World::start(None, &["10.0.0.1:1", "10.0.0.2:1"]);
    let mut first = three();
    let old = world.follow(&first);
    let from = world.links[&old].clone();
    world.hear(old, first.drain(4_000));
    world.pass(4 * SECOND - Duration::from_millis(1));
    assert_eq!(world.links.len(), 1);
    world.pass(Duration::from_millis(1));
    let (new, to) = world.last();
    assert_ne!(to, from);
    world.connect(new);
    world.hear(old, first.put("shop/s1", service(1, 3)));
    assert_eq!(world.programmed.last().unwrap().services.len(), 1, "the old stream is read meanwhile");
    let second = first.again(2);
    let mut messages = second.snapshot();
    let end = messages.pop().unwrap();
    messages.into_iter().for_each(|message| world.hear(new, message));
    assert!(!world.driver.reads(old) && world.links.contains_key(&old), "kept open, and not read");
    world.hear(new, end);
    assert_eq!(world.links.keys().collect::<Vec<_>>(), [&new]);
    assert_eq!(world.driver.status().server.unwrap().address, to);
    world.pass(SECOND);
    assert!(world.driver.status().live);
}

#[test]
fn rule_4_3_a_drain_that_names_the_server_itself_may_lead_back_to_it() {
    let mut world = World::start(None, &["10.0.0.1:1"]);
    let mut server = three();
    let old = world.follow(&server);
    world.hear(old, server.drain(0));
    assert_eq!(world.links.len(), 1, "there is nobody else to go to");
    server.candidates = candidates(&["10.0.0.1:1"]);
    world.hear(old, server.drain(0));
    assert_eq!(world.links.len(), 2, "another connection to the same address");
}

#[test]
fn rule_4_3_a_move_that_fails_leaves_the_old_stream_and_is_tried_again() {
    let mut world = World::start(None, &["10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"]);
    let first = three();
    let old = world.follow(&first);
    world.hear(old, first.drain(0));
    let (new, to) = world.last();
    world.connect(new);
    world.hear(new, first.again(2).begin(Mode::Snapshot));
    assert!(!world.driver.reads(old));
    world.lose(new);
    assert!(world.driver.reads(old) && world.driver.status().live);
    world.pass(5 * SECOND);
    let (again, third) = world.last();
    assert!(again > new && third != to);
}

#[test]
fn rule_4_3_a_server_that_dies_while_it_is_left_leaves_the_move_in_its_place() {
    let mut world = World::start(None, &["10.0.0.1:1", "10.0.0.2:1"]);
    let first = three();
    let old = world.follow(&first);
    world.hear(old, first.drain(0));
    let (new, _) = world.last();
    world.connect(new);
    let mut messages = first.again(2).snapshot().into_iter();
    world.hear(new, messages.next().unwrap());
    world.lose(old);
    messages.for_each(|message| world.hear(new, message));
    assert!(world.driver.status().live);
    assert_eq!(world.links.keys().collect::<Vec<_>>(), [&new]);
}

#[test]
fn rule_4_3_a_move_to_a_server_that_never_ends_is_given_up() {
    let mut world = World::start(None, &["10.0.0.1:1", "10.0.0.2:1"]);
    let first = three();
    let old = world.follow(&first);
    world.hear(old, first.drain(0));
    let (new, _) = world.last();
    world.connect(new);
    world.hear(new, first.again(2).begin(Mode::Snapshot));
    for _ in 0..59 {
        world.pass(SECOND);
        world.driver.heard(new, first.node(), world.now);
    }
    assert!(world.links.contains_key(&new));
    world.pass(SECOND);
    assert!(!world.links.contains_key(&new) && world.links.contains_key(&old));
    assert!(world.driver.status().live);
}

#[test]
fn rule_4_3_a_stale_server_is_left_for_a_fresher_one_and_for_no_other() {
    let mut world = World::start(None, &["10.0.0.1:1", "10.0.0.2:1"]);
    let mut first = three();
    let old = world.follow(&first);
    first.staleness_millis = 30_000;
    world.hear(old, first.heartbeat());
    world.pass(5 * SECOND);
    assert_eq!(world.links.len(), 1, "30 s are no reason");
    first.staleness_millis = 35_000;
    world.hear(old, first.heartbeat());
    world.pass(5 * SECOND);
    let (new, _) = world.last();
    assert_ne!(new, old);
    world.connect(new);
    let mut second = first.again(2);
    second.staleness_millis = 33_000;
    second.snapshot().into_iter().for_each(|message| world.hear(new, message));
    assert_eq!(world.links.keys().collect::<Vec<_>>(), [&old], "no fresher than the old one");
    world.hear(old, first.heartbeat());
    world.pass(10 * SECOND);
    assert_eq!(world.links.len(), 1, "and not asked again at once");
    while world.links.len() == 1 {
        first.staleness_millis += 5_000;
        assert!(first.staleness_millis < 90_000, "but later");
        world.hear(old, first.heartbeat());
        world.pass(5 * SECOND);
    }
    let (new, _) = world.last();
    world.connect(new);
    second.staleness_millis = 1_000;
    second.snapshot().into_iter().for_each(|message| world.hear(new, message));
    assert_eq!(world.links.keys().collect::<Vec<_>>(), [&new]);
}

#[test]
fn rule_2_5_a_repair_is_asked_for_with_jitter_and_a_second_mismatch_closes() {
    let mut world = World::start(None, &["10.0.0.1:1"]);
    let server = three();
    let link = world.follow(&server);
    let mut wrong = server.clone();
    wrong.revision -= 1;
    wrong.put("shop/s1", service(1, 9));
    world.hear(link, wrong.heartbeat());
    let repairs = |world: &World| {
        let is =
            |message: &&&pb::agent_message::Message| matches!(message, pb::agent_message::Message::Repair(_));
        world.said_by(link).iter().filter(is).count()
    };
    world.pass(5 * SECOND);
    assert_eq!(repairs(&world), 1);
    world.hear(link, wrong.heartbeat());
    world.pass(SECOND);
    assert_eq!(repairs(&world), 1, "it is asked for already");
    server.snapshot().into_iter().for_each(|message| world.hear(link, message));
    assert!(world.links.contains_key(&link));
    world.hear(link, wrong.heartbeat());
    assert!(!world.links.contains_key(&link));
    let Some(Note::Lost { error, .. }) = world.notes.last() else { panic!("{:?}", world.notes) };
    assert!(error.starts_with("a comparison did not help"), "{error}");
}

#[test]
fn rule_4_1_acks_speak_of_this_stream_alone() {
    let mut world = World::start(None, &["10.0.0.1:1", "10.0.0.2:1"]);
    let server = three();
    let link = world.follow(&server);
    let programmed = |epoch, through| {
        let cursor = Some(Cursor { epoch, through: Revision(through) });
        Programmed { written: true, cursor, ..Programmed::default() }
    };
    let acks = |world: &World, link| {
        let through = |message: &&pb::agent_message::Message| match message {
            pb::agent_message::Message::Ack(ack) => Some(ack.through),
            _ => None,
        };
        world.said_by(link).iter().filter_map(through).collect::<Vec<_>>()
    };
    world.driver.programmed(programmed(server.epoch, 4), world.now);
    world.obey();
    assert_eq!(acks(&world, link), [4]);
    world.driver.programmed(programmed(server.epoch, 5), world.now);
    world.obey();
    assert_eq!(acks(&world, link), [4], "at most one a second");
    world.pass(SECOND);
    assert_eq!(acks(&world, link), [4, 5]);
    world.lose(link);
    let link = world.follow(&server.again(2));
    assert_eq!(acks(&world, link), [0; 0], "nothing of the other process");
}

fn checkpoint() -> Checkpoint {
    let mut world = World::start(None, &["10.0.0.1:1"]);
    world.follow(&three());
    world.pass(10 * SECOND);
    world.saved.pop().unwrap()
}

#[test]
fn rule_4_5_a_checkpoint_is_programmed_only_on_an_empty_kernel_without_a_server() {
    let mut world = World::start(Some(checkpoint()), &["10.0.0.1:1"]);
    let (link, _) = world.last();
    world.lose(link);
    world.pass(COLD - Duration::from_millis(1));
    assert_eq!((world.looks, world.programmed.len()), (0, 0));
    world.pass(Duration::from_millis(1));
    assert_eq!((world.looks, world.programmed.len()), (1, 0));
    world.driver.kernel(Some(false), world.now);
    world.obey();
    assert_eq!(world.programmed.len(), 1);
    assert_eq!(world.programmed[0].services.len(), 3);
    assert_eq!(world.programmed[0].node.clone().unwrap().unwrap().zone, "a".into());
    world.pass(60 * SECOND);
    assert_eq!((world.looks, world.programmed.len()), (1, 1), "once");
}

#[test]
fn rule_4_5_rules_in_the_kernel_are_newer_than_any_checkpoint() {
    let mut world = World::start(Some(checkpoint()), &[]);
    world.pass(COLD);
    world.driver.kernel(Some(true), world.now);
    world.obey();
    world.pass(600 * SECOND);
    assert_eq!((world.looks, world.programmed.len()), (1, 0));
}

#[test]
fn rule_4_5_a_kernel_that_cannot_be_seen_is_asked_again() {
    let mut world = World::start(Some(checkpoint()), &[]);
    world.pass(COLD);
    world.driver.kernel(None, world.now);
    world.pass(COLD);
    assert_eq!((world.looks, world.programmed.len()), (2, 0));
}

#[test]
fn rule_4_5_a_server_that_answers_in_time_is_waited_for() {
    let mut world = World::start(Some(checkpoint()), &["10.0.0.1:1"]);
    let (link, _) = world.last();
    world.connect(link);
    assert!(
        world.hello(link).cursor.is_some() && world.hello(link).buckets.len() == 1,
        "it says what it holds"
    );
    let mut messages = three().snapshot();
    let end = messages.pop().unwrap();
    messages.into_iter().for_each(|message| world.hear(link, message));
    world.pass(COLD + SECOND);
    assert_eq!(world.looks, 0);
    world.hear(link, end);
    world.pass(60 * SECOND);
    assert_eq!((world.looks, world.programmed.len()), (0, 1));
}

#[test]
fn rule_4_5_held_removals_and_what_is_parked_survive_a_restart() {
    let mut world = World::start(None, &["10.0.0.1:1"]);
    let link = world.follow(&three());
    world.lose(link);
    world.follow(&Scripted::new(2));
    assert!(matches!(&world.notes[..], [.., Note::Withheld { services: 3, endpoints: 6, .. }]));
    world.pass(10 * SECOND);
    let mut saved = world.saved.pop().unwrap();
    assert_eq!(saved.kept.len(), 3);
    saved.parked = vec![pb::Rejection { message: "no".into(), ..Default::default() }];
    let mut again = World::start(Some(saved), &["10.0.0.1:1"]);
    let link = again.follow(&Scripted::new(2));
    assert_eq!(again.hello(link).parked.len(), 1);
    assert_eq!(again.programmed[0].services.values().flatten().count(), 3, "they are still there");
    again.hear(link, Scripted::new(2).heartbeat());
    again.pass(17 * SECOND);
    again.hear(link, Scripted::new(2).heartbeat());
    again.pass(17 * SECOND);
    again.hear(link, Scripted::new(2).heartbeat());
    again.pass(17 * SECOND);
    assert_eq!(again.programmed.last().unwrap().gone().count(), 3, "for what was left of 60 s");
}

#[test]
fn what_cannot_be_reached_is_told_and_never_programmed() {
    let mut world = World::start(None, &[]);
    world.pass(600 * SECOND);
    assert!(world.links.is_empty() && world.programmed.is_empty() && world.looks == 0);
    world.driver.servers(servers(&["10.0.0.1:1"]), world.now);
    world.pass(2 * SECOND);
    assert_eq!(world.links.len(), 1, "its name was resolved late");
}
