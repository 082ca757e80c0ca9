use distributary_cluster::{Event, Object};
use distributary_model::{Epoch, ObjectKind};
use serde_json::json;

use super::*;
use crate::journal::LOG_BYTES;
use crate::source::Update;

const OWN: &str = "default";
const MS: Duration = Duration::from_millis(1);

struct World {
    journal: Journal,
    fleet: Fleet,
    now: Instant,
}

impl World {
    fn new() -> Self {
        let now = Instant::now();
        let mut journal = Journal::new(Epoch([1; 16]), OWN.into(), LOG_BYTES, now);
        journal.commit(Update { listed: ObjectKind::ALL.to_vec(), ..Update::default() }, now);
        Self { journal, fleet: Fleet::default(), now }
    }

    fn commit(&mut self, name: &str) {
        let ip = format!("10.96.0.{}", self.journal.revision().0 + 1);
        let json = json!({"metadata": {"namespace": "shop", "name": name},
            "spec": {"clusterIP": ip, "ports": [{"port": 80}]}});
        let event = Event::Upsert(Object::from_json(ObjectKind::Service, &json.to_string()).unwrap());
        self.journal.commit(Update { events: vec![event], ..Update::default() }, self.now);
        self.fleet.committed(self.journal.revision(), self.now);
    }

    fn ack(&mut self, node: &str, stream: StreamId, through: u64, refused: &[(&str, &str)]) {
        let refused = refused.iter().map(|(service, why)| ((*service).into(), (*why).into())).collect();
        let ack = Acked { stream, through: Revision(through), programming: 7 * MS, refused };
        self.fleet.acked(&node.into(), ack, self.now);
    }

    fn receipt(&self, name: &str) -> (Vec<String>, Vec<String>) {
        let receipt = self.fleet.receipt(&Key::service(OWN, "shop", name), &self.journal);
        let lacks = receipt.lacks.into_iter().map(|lack| format!("{}: {}", lack.node, lack.why));
        (receipt.has, lacks.collect())
    }
}

#[test]
fn rule_5_2_a_receipt_is_about_the_newest_content_of_one_record() {
    let mut world = World::new();
    let [a, b] = ["a", "b"].map(|node| world.fleet.connected(&node.into(), world.now));
    world.commit("web");
    world.commit("cart");
    world.ack("a", a, 1, &[]);
    world.ack("b", b, 2, &[("shop/web", "no")]);
    assert_eq!(world.receipt("web"), (vec!["a".into()], vec!["b: its kernel refuses it: no".into()]));
    assert_eq!(world.receipt("cart"), (vec!["b".into()], vec!["a: it is not in its kernel yet".into()]));
    // What is gone, an agent has when it knows so.
    let key = distributary_cluster::ObjectKey {
        kind: ObjectKind::Service,
        namespace: "shop".into(),
        name: "cart".into(),
    };
    let gone = Event::Gone { key, inferred: false };
    world.journal.commit(Update { events: vec![gone], ..Update::default() }, world.now);
    assert_eq!(world.receipt("cart").0, [""; 0]);
    world.ack("a", a, 3, &[]);
    assert_eq!(world.receipt("cart").0, ["a"]);
    let gone = world.fleet.receipt(&Key::service(OWN, "shop", "cart"), &world.journal);
    assert_eq!(gone.content, None);
}

#[test]
fn rule_5_2_times_are_this_servers_and_begin_with_the_oldest_change_of_an_ack() {
    let mut world = World::new();
    let a = world.fleet.connected(&"a".into(), world.now);
    world.ack("a", a, 0, &[]);
    assert_eq!(world.fleet.acked.count(), 0, "what it had is no measure");
    world.commit("one");
    world.now += 100 * MS;
    world.commit("two");
    world.fleet.told(Revision(2), world.now + 3 * MS);
    world.now += 100 * MS;
    world.ack("a", a, 2, &[]);
    let seconds = |histogram: &Histogram| (histogram.count(), (histogram.sum() * 1000.0).round());
    assert_eq!(seconds(&world.fleet.sent), (1, 3.0));
    assert_eq!(seconds(&world.fleet.acked), (1, 200.0));
    assert_eq!(seconds(&world.fleet.programming), (1, 7.0));
}

#[test]
fn laggards_are_named_and_told_since_when() {
    let mut world = World::new();
    let [a, b] = ["a", "b"].map(|node| world.fleet.connected(&node.into(), world.now));
    world.fleet.connected(&"c".into(), world.now);
    [("a", a), ("b", b)].into_iter().for_each(|(node, stream)| world.ack(node, stream, 0, &[]));
    world.now += 50 * MS;
    world.commit("one");
    world.now += 100 * MS;
    world.commit("two");
    world.ack("b", b, 1, &[]);
    world.now += 100 * MS;
    let report = world.fleet.report(&world.journal, world.now);
    let told: Vec<_> = report
        .laggards
        .iter()
        .map(|one| (&*one.node, one.revision, (one.behind_seconds * 1000.0).round()))
        .collect();
    assert_eq!(told, [("c", None, 250.0), ("a", Some(0), 200.0), ("b", Some(1), 100.0)]);
    assert_eq!((report.agents.len(), report.in_step), (3, 0));
}

#[test]
fn an_agent_that_moves_to_a_new_stream_of_the_same_server_is_one_agent() {
    let mut world = World::new();
    let old = world.fleet.connected(&"a".into(), world.now);
    world.commit("web");
    world.ack("a", old, 1, &[]);
    let new = world.fleet.connected(&"a".into(), world.now);
    assert_eq!(world.receipt("web").0, ["a"]);
    world.fleet.disconnected(&"a".into(), old);
    world.ack("a", old, 9, &[]);
    assert_eq!((world.fleet.len(), world.receipt("web").0), (1, vec!["a".into()]));
    world.fleet.disconnected(&"a".into(), new);
    assert!(world.fleet.is_empty());
}
