use distributary_cluster::{Event, Object};
use distributary_model::{Epoch, ObjectKind};
use prost::Message as _;

use super::*;
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
        let next = self.session.next(&self.journal, self.now)?;
        Ok(next.and_then(|(bytes, _)| pb::ServerMessage::decode(&bytes[5..]).unwrap().message))
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

#[test]
fn all_who_join_share_one_snapshot() {
    let mut world = World::new(1000);
    world.commit(1, 1);
    let first = world.journal.snapshot();
    assert!(Arc::ptr_eq(&first, &world.journal.snapshot()));
    world.connect(None);
    world.said();
    let Phase::Opening { lot: Lot::Snapshot { frames, .. }, .. } = &world.session.phase else { panic!() };
    assert!(Arc::ptr_eq(&first, frames));
    world.commit(2, 1);
    assert!(!Arc::ptr_eq(&first, &world.journal.snapshot()));
}
