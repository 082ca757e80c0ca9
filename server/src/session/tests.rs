use distributary_cluster::{Event, Object};
use distributary_model::{Epoch, ObjectKind};
use prost::Message as _;

use super::*;
use crate::replicas::{Known, Replicas};
use crate::source::Update;

const OWN: &str = "default";

/// A Service `s…` and its endpoints `10.1.…`, on nodes whose names nobody can compress.
fn service(number: usize, endpoints: usize, random: &mut fastrand::Rng) -> [Event; 2] {
    let service = format!(
        r#"{{"metadata": {{"name": "s{number}", "namespace": "shop"}}, "spec": {{"clusterIP": "10.96.0.{number}",
        "ports": [{{"name": "http", "port": 80}}]}}}}"#
    );
    let endpoints: Vec<String> = (0..endpoints)
        .map(|i| {
            let node: String = std::iter::repeat_with(|| random.alphanumeric()).take(40).collect();
            format!(r#"{{"addresses": ["10.1.{}.{}"], "nodeName": "{node}"}}"#, i / 250, i % 250)
        })
        .collect();
    let slice = format!(
        r#"{{"metadata": {{"name": "s{number}-1", "namespace": "shop", "labels": {{"kubernetes.io/service-name":
        "s{number}"}}}}, "addressType": "IPv4", "ports": [{{"name": "http", "port": 8080}}], "endpoints": [{}]}}"#,
        endpoints.join(",")
    );
    [
        Event::Upsert(Object::from_json(ObjectKind::Service, &service).unwrap()),
        Event::Upsert(Object::from_json(ObjectKind::EndpointSlice, &slice).unwrap()),
    ]
}

struct World {
    journal: Journal,
    session: Session,
    now: Instant,
    random: fastrand::Rng,
}

impl World {
    fn new(log_bytes: usize) -> Self {
        let now = Instant::now();
        let mut journal = Journal::new(Epoch([1; 16]), OWN.into(), log_bytes, now);
        journal.commit(Update { listed: ObjectKind::ALL.to_vec(), ..Update::default() }, now);
        Self { journal, session: Session::new(now, 0.5), now, random: fastrand::Rng::with_seed(7) }
    }

    fn commit(&mut self, number: usize, endpoints: usize) {
        let events = service(number, endpoints, &mut self.random).to_vec();
        self.journal.commit(Update { events, ..Update::default() }, self.now);
    }

    /// Another stream, of an agent that holds everything up to a revision; `None`: nothing.
    fn connect(&mut self, through: Option<u64>) {
        let cursor = through.map(|through| pb::Cursor { epoch: vec![1; 16].into(), through });
        let hello = pb::Hello { cursor, ..hello() };
        self.session = Session::new(self.now, 0.5);
        self.hear(FromAgent::Hello(hello)).unwrap();
    }

    fn hear(&mut self, message: FromAgent) -> Result<Heard, Ended> {
        self.session.on(pb::AgentMessage { message: Some(message) }, &OWN.into(), self.now)
    }

    fn pull(&mut self) -> Result<Option<FromServer>, Ended> {
        let mut next = self.session.next(&self.journal, self.now)?;
        if next.is_none() && self.session.awaits_snapshot() {
            self.build();
            next = self.session.next(&self.journal, self.now)?;
        }
        Ok(next.and_then(|(bytes, _)| pb::ServerMessage::decode(&bytes[5..]).unwrap().message))
    }

    /// What a server does beside its streams.
    fn build(&self) {
        let blueprint = self.journal.blueprint().expect("one is wanted");
        self.journal.install(blueprint.build());
    }

    /// The next message, in a word.
    fn said(&mut self) -> String {
        match self.pull().unwrap() {
            Some(FromServer::Begin(begin)) if begin.mode() == pb::begin::Mode::Resume => "resume".into(),
            Some(FromServer::Begin(begin)) if begin.mode() == pb::begin::Mode::Repair => "repair".into(),
            Some(FromServer::Begin(_)) => "snapshot".into(),
            Some(FromServer::BucketLists(lists)) => format!("{} lists", lists.lists.len()),
            Some(FromServer::Node(_)) => "node".into(),
            Some(FromServer::Frame(frame)) => format!("frame {}", frame.through),
            Some(FromServer::End(end)) => format!("end {} of {}", end.revision, end.sources.len()),
            None => "nothing".into(),
            other => panic!("{other:?}"),
        }
    }

    fn all(&mut self) -> Vec<String> {
        std::iter::repeat_with(|| self.said()).take_while(|said| said != "nothing").collect()
    }
}

/// Of an agent that holds nothing.
fn hello() -> pb::Hello {
    pb::Hello { cluster: OWN.into(), node: "n1".into(), schema: hash::SCHEMA, ..pb::Hello::default() }
}

#[test]
fn who_says_nothing_is_sent_away() {
    let mut world = World::new(1000);
    assert_eq!(world.session.wake_at(), Some(world.now + HELLO_WITHIN));
    world.now += HELLO_WITHIN - Duration::from_millis(1);
    assert_eq!(world.pull(), Ok(None));
    world.now += Duration::from_millis(1);
    assert_eq!(world.pull().unwrap_err(), Malformed::new("no Hello within 5 s").into());
}

#[test]
fn a_repair_is_granted_once_in_a_while() {
    let mut world = World::new(1000);
    let repair = || FromAgent::Repair(pb::Repair::default());
    world.connect(None);
    world.all();
    world.hear(repair()).unwrap();
    assert_eq!(world.all()[0], "snapshot");
    world.now += Duration::from_secs(3);
    world.hear(repair()).unwrap();
    assert_eq!(world.all(), [""; 0]);
    world.now += REPAIR_EVERY - Duration::from_secs(3);
    world.hear(repair()).unwrap();
    assert_eq!(world.all()[0], "snapshot");
}

#[test]
fn a_throttle_says_whether_the_server_is_behind() {
    let mut world = World::new(1000);
    let mut throttled = |journal: Journal| {
        let mark = pb::Mark { kind: pb::ObjectKind::Node.into(), resource_version: 7, ..pb::Mark::default() };
        world.journal = journal;
        world.session = Session::new(world.now, 0.5);
        let hello = pb::Hello { marks: vec![mark], ..hello() };
        world.hear(FromAgent::Hello(hello)).unwrap();
        world.now += PATIENCE;
        let Ok(Some(FromServer::Throttle(throttle))) = world.pull() else { panic!() };
        throttle.behind
    };
    let mut journal = Journal::new(Epoch([1; 16]), OWN.into(), 1000, Instant::now());
    let marks = vec![(ObjectKind::Node, 6)];
    journal.commit(Update { marks, listed: ObjectKind::ALL.to_vec(), ..Update::default() }, Instant::now());
    assert!(throttled(journal));
    assert!(!throttled(Journal::new(Epoch([1; 16]), OWN.into(), 1000, Instant::now())), "it has not listed");
}

#[test]
fn rule_3_4_a_resume_that_the_log_outruns_is_ended_and_followed_by_the_newest_values() {
    let mut world = World::new(1000);
    (1..5).for_each(|number| world.commit(number, 1));
    world.connect(Some(1));
    assert_eq!([world.said(), world.said(), world.said()], ["resume", "node", "frame 2"]);
    (5..30).for_each(|number| world.commit(number, 1));
    assert_eq!(world.said(), "end 2 of 0");
    assert_eq!(world.all(), ["resume", "node", "frame 0", "end 29 of 1"]);
}

#[test]
fn rule_3_4_the_eviction_of_the_log_ends_no_stream_that_was_live() {
    let mut world = World::new(1000);
    world.commit(1, 1);
    world.connect(None);
    world.all();
    (2..30).for_each(|number| world.commit(number, 1));
    assert_eq!(world.journal.log().after(Revision(1)), None);
    assert_eq!(world.all(), ["resume", "node", "frame 0", "end 29 of 1"]);
    world.commit(30, 1);
    assert_eq!(world.all(), ["frame 30"]);
}

#[test]
fn rule_2_4_whoever_holds_something_is_told_what_the_differing_buckets_have() {
    let mut world = World::new(1000);
    (1..4).for_each(|number| world.commit(number, 1));
    let mut digest = world.journal.cluster().table().digest(OWN).unwrap().clone();
    let key = hash::key(&distributary_model::Key::service(OWN, "shop", "s2"));
    let held = world.journal.cluster().table().get(&distributary_model::Key::service(OWN, "shop", "s2"));
    digest.change(&distributary_model::Key::service(OWN, "shop", "s2"), held.map(|held| held.hash), None);
    let buckets = vec![messages::buckets(OWN, &digest, OWN)];
    world.session = Session::new(world.now, 0.5);
    world.hear(FromAgent::Hello(pb::Hello { buckets, ..hello() })).unwrap();
    assert_eq!(world.all(), ["repair", "node", "1 lists"], "and it waits");
    assert_eq!(world.session.wake_at(), Some(world.now + WANT_WITHIN));
    // What changes meanwhile goes along.
    world.commit(9, 1);
    let wanted = vec![pb::WantedKeys { key_hashes: vec![key.first64()], ..Default::default() }];
    world.hear(FromAgent::Want(pb::Want { wanted })).unwrap();
    assert_eq!(world.all(), ["frame 0", "end 4 of 1"]);
    world.commit(10, 1);
    assert_eq!(world.all(), ["frame 5"]);
}

#[test]
fn who_never_says_what_it_lacks_is_sent_away() {
    let mut world = World::new(1000);
    world.commit(1, 1);
    let mut digest = distributary_model::Digest::default();
    digest.change(&distributary_model::Key::service(OWN, "shop", "old"), None, Some(hash::Hash(7)));
    let buckets = vec![messages::buckets(OWN, &digest, OWN)];
    world.session = Session::new(world.now, 0.5);
    world.hear(FromAgent::Hello(pb::Hello { buckets, ..hello() })).unwrap();
    assert_eq!(world.all().len(), 3);
    world.now += WANT_WITHIN;
    assert_eq!(world.pull().unwrap_err(), Malformed::new("no Want within 30 s of the lists").into());
}

#[test]
fn a_resume_that_breaks_off_inside_of_a_commit_ends_the_stream() {
    let mut world = World::new(100_000);
    (1..5).for_each(|number| world.commit(number, 2000));
    world.commit(5, 1200);
    world.connect(Some(4));
    assert_eq!([world.said(), world.said(), world.said()], ["resume", "node", "frame 0"]);
    world.commit(6, 2000);
    let Err(Ended::Throttled(why)) = world.pull() else { panic!() };
    assert!(why.starts_with("the rest of a commit is no longer in the log"), "{why}");
}

#[test]
fn rule_3_4_whoever_would_have_to_be_told_more_than_the_newest_values_is_told_those() {
    let mut world = World::new(32 << 20);
    world.commit(1, 500);
    (0..9).for_each(|_| world.commit(1, 500));
    world.connect(Some(9));
    assert_eq!(world.said(), "resume");
    world.connect(Some(1));
    assert!(world.journal.log().bytes_from(1).unwrap() > 2 * CHEAP_RESUME);
    let said = world.all();
    assert_eq!((&*said[0], &*said[2], said.len()), ("resume", "frame 0", 4));
}

/// A slice of `s1` whose first endpoints are others than before, and so many in all.
fn rolled(world: &mut World, by: usize, endpoints: usize) {
    let addresses =
        (by..by + endpoints).map(|i| format!(r#"{{"addresses": ["10.1.{}.{}"]}}"#, i / 250, i % 250));
    let slice = format!(
        r#"{{"metadata": {{"name": "s1-1", "namespace": "shop", "labels": {{"kubernetes.io/service-name": "s1"}}}},
        "addressType": "IPv4", "ports": [{{"name": "http", "port": 8080}}], "endpoints": [{}]}}"#,
        addresses.collect::<Vec<_>>().join(",")
    );
    let events = vec![Event::Upsert(Object::from_json(ObjectKind::EndpointSlice, &slice).unwrap())];
    world.journal.commit(Update { events, ..Update::default() }, world.now);
}

#[test]
fn rule_3_4_of_a_large_service_only_the_endpoints_that_changed_are_told() {
    let mut world = World::new(300);
    world.commit(1, 1);
    rolled(&mut world, 0, 1_000);
    (1..20).for_each(|by| rolled(&mut world, by, 1_000));
    let since = Revision(11);
    assert_eq!(world.journal.log().after(since), None, "the log does not have it any more");
    let frames = world.journal.catch_up(since).unwrap();
    let message = pb::ServerMessage::decode(&frames[0][5..]).unwrap().message;
    let Some(FromServer::Frame(frame)) = message else { panic!() };
    let Some(pb::change::Change::Patch(patch)) = &frame.changes[0].change else { panic!("{frame:?}") };
    let ten = u64::try_from(patch.upserts.len()).unwrap();
    assert_eq!(
        (ten, patch.removals.len(), patch.header.is_some()),
        (world.journal.revision().0 - 11, 10, false)
    );
    // From further back than is remembered, or where much changed, it is told whole.
    rolled(&mut world, 600, 1_000);
    rolled(&mut world, 601, 1_000);
    let whole = world.journal.catch_up(since).unwrap();
    let message = pb::ServerMessage::decode(&whole[0][5..]).unwrap().message;
    let Some(FromServer::Frame(frame)) = message else { panic!() };
    assert!(matches!(frame.changes[0].change, Some(pb::change::Change::Put(_))));
}

#[test]
fn all_who_join_share_one_snapshot() {
    let mut world = World::new(1000);
    world.commit(1, 1);
    assert!(world.journal.snapshot().is_none(), "it is to be built");
    world.build();
    let first = world.journal.snapshot().unwrap();
    assert_eq!(first.after.len(), 0);
    world.connect(None);
    world.said();
    let Phase::Opening { lot: Lot::Snapshot { frames, .. }, .. } = &world.session.phase else { panic!() };
    assert!(Arc::ptr_eq(&first.shared, frames));
    // What changes goes along, and the frames stay what they were.
    world.commit(2, 1);
    let second = world.journal.snapshot().unwrap();
    assert!(Arc::ptr_eq(&first.shared, &second.shared) && second.after.len() == 1);
    assert!(world.journal.blueprint().is_none(), "that will do");
    (3..70).for_each(|number| world.commit(number, 1));
    assert!(Arc::ptr_eq(&first.shared, &world.journal.snapshot().unwrap().shared));
    world.build();
    let third = world.journal.snapshot().unwrap();
    assert!(!Arc::ptr_eq(&first.shared, &third.shared) && third.after.is_empty());
}

#[test]
fn snapshots_are_given_by_a_budget_and_resumes_are_free() {
    let mut world = World::new(32 << 20).among_three();
    world.journal = world.journal.giving(100_000);
    (1..9).for_each(|number| world.commit(number, 500));
    world.connect(None);
    assert_eq!(world.all()[0], "snapshot", "the first goes, however large");
    world.connect(None);
    let Some(FromServer::Throttle(first)) = world.pull().unwrap() else { panic!() };
    assert!(world.session.is_over() && !first.behind && first.candidates.len() == 3);
    world.connect(None);
    let Some(FromServer::Throttle(second)) = world.pull().unwrap() else { panic!() };
    assert!(second.retry_after_millis > first.retry_after_millis, "one after the other");
    // Who holds something is served all the same.
    world.connect(Some(7));
    assert_eq!(world.all(), ["resume", "node", "frame 8", "end 8 of 1"]);
    world.now += Duration::from_millis(first.retry_after_millis);
    world.connect(None);
    assert_eq!(world.all()[0], "snapshot");
}

fn candidate(address: &str) -> Candidate {
    Candidate { address: address.into(), zone: "a".into(), capacity: 1 }
}

impl World {
    /// The first of three replicas.
    fn among_three(mut self) -> Self {
        let all = ["r1:7400", "r2:7400", "r3:7400"].map(candidate).to_vec();
        let replicas = Replicas::new(Known::Told(all), Some("r1:7400".into()));
        self.journal = self.journal.among(replicas);
        self
    }
}

fn addresses(candidates: &[pb::Candidate]) -> Vec<&str> {
    candidates.iter().map(|one| &*one.address).collect()
}

#[test]
fn rule_4_6_begin_and_throttle_name_the_replicas() {
    let mut world = World::new(1000).among_three();
    world.connect(None);
    let Some(FromServer::Begin(begin)) = world.pull().unwrap() else { panic!() };
    assert_eq!(addresses(&begin.candidates), ["r1:7400", "r2:7400", "r3:7400"]);
    assert_eq!(begin.candidates[0].zone, "a");
    let mark = pb::Mark { kind: pb::ObjectKind::Node.into(), resource_version: 7, ..pb::Mark::default() };
    world.journal = Journal::new(Epoch([1; 16]), OWN.into(), 1000, world.now);
    world = world.among_three();
    world.session = Session::new(world.now, 0.5);
    world.hear(FromAgent::Hello(pb::Hello { marks: vec![mark], ..hello() })).unwrap();
    world.now += PATIENCE;
    let Some(FromServer::Throttle(throttle)) = world.pull().unwrap() else { panic!() };
    assert_eq!(addresses(&throttle.candidates).len(), 3);
}

#[test]
fn a_server_that_ends_asks_every_agent_to_go_once_and_takes_no_new_one() {
    let mut world = World::new(1000).among_three();
    world.connect(None);
    world.all();
    assert!(world.journal.leave(world.now, Duration::from_secs(10)));
    let Some(FromServer::Drain(drain)) = world.pull().unwrap() else { panic!() };
    assert_eq!(addresses(&drain.candidates), ["r2:7400", "r3:7400"]);
    assert_eq!(drain.slot_millis, 3_500, "half of what is handed out");
    // It is served on until it has gone.
    world.commit(1, 1);
    assert_eq!(world.all(), ["frame 1"]);
    world.connect(None);
    let Some(FromServer::Throttle(throttle)) = world.pull().unwrap() else { panic!() };
    assert_eq!(addresses(&throttle.candidates), ["r2:7400", "r3:7400"]);
    assert!(!throttle.behind && world.session.is_over());
}

#[test]
fn a_server_without_another_asks_nobody_to_go() {
    let mut world = World::new(1000);
    assert!(!world.journal.leave(world.now, Duration::from_secs(10)));
    world.connect(None);
    world.all();
    world.session = world.session.ageing(Some(Duration::from_secs(1)), world.now);
    world.now += Duration::from_secs(2);
    assert_eq!(world.all(), [""; 0]);
}

#[test]
fn the_agent_of_an_old_stream_is_asked_to_choose_anew_and_not_cut() {
    let age = Duration::from_secs(3600);
    let mut world = World::new(1000).among_three();
    world.connect(None);
    world.session = Session::new(world.now, 0.0).ageing(Some(age), world.now);
    world.hear(FromAgent::Hello(hello())).unwrap();
    world.all();
    // A share of 0 is 20 % before the time.
    world.now += age.mul_f64(0.8);
    let Some(FromServer::Drain(drain)) = world.pull().unwrap() else { panic!() };
    assert_eq!((drain.slot_millis, drain.candidates.len()), (0, 3), "this one may be chosen again");
    world.commit(1, 1);
    assert_eq!(world.said(), "frame 1");
}
