use distributary_cluster::Object;
use distributary_model::{Epoch, Name};
use serde_json::json;

use super::super::Journal;
use super::*;
use crate::source::Update;

const OWN: &str = "default";
const SECOND: Duration = Duration::from_secs(1);

fn object(kind: ObjectKind, json: &serde_json::Value) -> Event {
    Event::Upsert(Object::from_json(kind, &json.to_string()).unwrap())
}

fn service(number: u8) -> Event {
    let json = json!({"metadata": {"namespace": "shop", "name": format!("s{number}")},
        "spec": {"clusterIP": format!("10.96.0.{number}"), "ports": [{"name": "http", "port": 80}]}});
    object(ObjectKind::Service, &json)
}

/// Ten endpoints, `10.0.NUMBER.…`.
fn slice(number: u8) -> Event {
    let endpoints: Vec<_> =
        (1..=10).map(|last| json!({"addresses": [format!("10.0.{number}.{last}")]})).collect();
    let labels = json!({"kubernetes.io/service-name": format!("s{number}")});
    let json = json!({"metadata": {"namespace": "shop", "name": format!("s{number}-1"), "labels": labels},
        "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}], "endpoints": endpoints});
    object(ObjectKind::EndpointSlice, &json)
}

fn gone(kind: ObjectKind, number: u8, inferred: bool) -> Event {
    let name = match kind {
        ObjectKind::Service => format!("s{number}"),
        _ => format!("s{number}-1"),
    };
    Event::Gone { key: ObjectKey { kind, namespace: "shop".into(), name: Name::from(name) }, inferred }
}

fn slices_gone(numbers: impl IntoIterator<Item = u8>, inferred: bool) -> Vec<Event> {
    numbers.into_iter().map(|number| gone(ObjectKind::EndpointSlice, number, inferred)).collect()
}

struct World {
    journal: Journal,
    now: Instant,
}

impl World {
    /// Ten services of ten endpoints.
    fn new() -> Self {
        let now = Instant::now();
        let mut world = Self { journal: Journal::new(Epoch([1; 16]), OWN.into(), 1 << 20, now), now };
        let events = (1..=10).flat_map(|number| [service(number), slice(number)]).collect();
        let listed = ObjectKind::ALL.to_vec();
        world.journal.commit(Update { events, listed, ..Update::default() }, now);
        world
    }

    fn commit(&mut self, events: Vec<Event>) -> usize {
        self.journal.commit(Update { events, ..Update::default() }, self.now).held
    }

    fn endpoints(&self) -> usize {
        self.journal.size().1
    }
}

#[test]
fn rule_4_4_a_list_that_lost_much_is_not_believed_for_a_minute() {
    let mut world = World::new();
    assert_eq!(world.commit(slices_gone(1..=6, true)), 6);
    assert_eq!((world.endpoints(), world.journal.held()), (100, 6));
    assert_eq!(world.journal.held_until(), Some(world.now + PATIENCE));
    world.now += PATIENCE - SECOND;
    world.commit(Vec::new());
    assert_eq!(world.endpoints(), 100);
    world.now += SECOND;
    world.commit(Vec::new());
    assert_eq!((world.endpoints(), world.journal.held()), (40, 0));
}

#[test]
fn rule_4_4_half_or_few_or_what_was_said_is_believed_at_once() {
    let mut world = World::new();
    assert_eq!(world.commit(slices_gone(1..=5, true)), 0);
    assert_eq!(world.endpoints(), 50, "half");
    assert_eq!(world.commit(slices_gone(6..=10, false)), 0);
    assert_eq!(world.endpoints(), 0, "all, and somebody said so");
    world.commit(vec![slice(1), slice(2)]);
    assert_eq!(world.commit(slices_gone(1..=2, true)), 0);
    assert_eq!(world.endpoints(), 0, "all, but these are twenty");
}

#[test]
fn rule_4_4_several_lists_that_lost_something_count_together() {
    let mut world = World::new();
    let services = |numbers: std::ops::RangeInclusive<u8>| -> Vec<Event> {
        numbers.map(|number| gone(ObjectKind::Service, number, true)).collect()
    };
    assert_eq!(world.commit(services(1..=6)), 6);
    // The same endpoints again, and one more service.
    assert_eq!(world.commit(slices_gone(1..=7, true)), 7);
    assert_eq!(world.journal.size(), (10, 100));
    let mut world = World::new();
    assert_eq!(world.commit(services(1..=10)), 10, "no Service would be left");
    let mut world = World::new();
    (1..=10).for_each(|number| _ = world.commit(slices_gone([number], false)));
    assert_eq!(world.commit(services(1..=9)), 0, "nobody is served by them");
    assert_eq!(world.commit(services(10..=10)), 1, "the last one");
}

#[test]
fn rule_4_4_what_comes_back_or_is_deleted_is_held_no_more() {
    let mut world = World::new();
    world.commit(slices_gone(1..=6, true));
    world.commit(vec![slice(1)]);
    world.commit(slices_gone([2], false));
    assert_eq!((world.journal.held(), world.endpoints()), (4, 90));
    world.now += PATIENCE;
    world.commit(Vec::new());
    assert_eq!(world.endpoints(), 50, "the first one stays");
    // One batch may have both.
    let mut both = slices_gone(1..=10, true);
    both.push(slice(9));
    world.commit(both);
    assert_eq!(world.endpoints(), 50);
}

#[test]
fn rule_4_4_an_operator_lets_go_and_zero_holds_nothing() {
    let mut world = World::new();
    world.commit(slices_gone(1..=6, true));
    let update = world.journal.release(world.now);
    assert_eq!(world.journal.held(), 0);
    world.journal.commit(update, world.now);
    assert_eq!(world.endpoints(), 40);
    let mut world = World::new();
    world.journal = world.journal.patient(Duration::ZERO);
    assert_eq!(world.commit(slices_gone(1..=6, true)), 0);
    assert_eq!(world.endpoints(), 40);
}

#[test]
fn rule_4_4_a_held_removal_gives_way_to_what_has_its_address_now() {
    let mut world = World::new();
    let services: Vec<Event> = (1..=6).map(|number| gone(ObjectKind::Service, number, true)).collect();
    world.commit([services, slices_gone(1..=6, true)].concat());
    assert_eq!(world.journal.held(), 12);
    // A cluster IP.
    let mut other = json!({"metadata": {"namespace": "shop", "name": "new"}, "spec": {"clusterIP": "10.96.0.1",
        "ports": [{"name": "http", "port": 80}]}});
    world.commit(vec![object(ObjectKind::Service, &other)]);
    assert_eq!((world.journal.held(), world.journal.size().0), (11, 10));
    // An endpoint's address.
    other["spec"]["clusterIP"] = json!("10.96.0.99");
    let taken = json!({"metadata": {"namespace": "shop", "name": "new-1",
        "labels": {"kubernetes.io/service-name": "new"}}, "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080}], "endpoints": [{"addresses": ["10.0.2.3"]}]});
    world.commit(vec![object(ObjectKind::EndpointSlice, &taken)]);
    assert_eq!(world.journal.held(), 10);
    // What it claimed before is no news.
    world.commit(vec![object(ObjectKind::Service, &other)]);
    assert_eq!(world.journal.held(), 10);
}
