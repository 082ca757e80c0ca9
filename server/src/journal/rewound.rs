//! What a source says of a time that is over (stream rules 2.2 and 5.1): an API server that lags behind the one before it, or
//! a store that was restored. It is kept apart, unused, until the source has caught up, or for so long that it is rather the
//! cluster that has gone back.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use distributary_cluster::Event;
use distributary_model::{Marks, Name, ObjectKind};

use crate::source::Update;

/// What is kept apart, by kind.
#[derive(Debug)]
pub(super) struct Rewound {
    patience: Duration,
    kinds: BTreeMap<ObjectKind, Older>,
}

#[derive(Debug)]
struct Older {
    events: Vec<Event>,
    mark: u64,
    until: Instant,
}

impl Rewound {
    /// Nothing yet. What comes is kept for so long; zero: not at all.
    pub(super) fn new(patience: Duration) -> Self {
        Self { patience, kinds: BTreeMap::new() }
    }

    /// The kinds that have gone back.
    pub(super) fn kinds(&self) -> impl Iterator<Item = ObjectKind> {
        self.kinds.keys().copied()
    }

    /// When something is used although it is of a time that is over.
    pub(super) fn until(&self) -> Option<Instant> {
        self.kinds.values().map(|older| older.until).min()
    }

    /// What of an update is to be used: nothing of a kind that has gone back, all that was kept of one that has caught up. What
    /// is used although it is older comes apart: it has been doubted for long enough.
    pub(super) fn sift(
        &mut self,
        mut update: Update,
        marks: &Marks,
        own: &Name,
        now: Instant,
    ) -> (Vec<Event>, Update) {
        let known = |kind| marks.get(own, kind).filter(|known| *known > 0);
        for (kind, mark) in &update.marks {
            let goes_back = known(*kind).is_some_and(|known| *mark > 0 && *mark < known);
            match self.kinds.get_mut(kind) {
                Some(older) if *mark > 0 => older.mark = *mark,
                None if goes_back && !self.patience.is_zero() => {
                    let until = now + self.patience;
                    self.kinds.insert(*kind, Older { events: Vec::new(), mark: *mark, until });
                }
                _ => {}
            }
        }
        let mut believed = Vec::new();
        if self.kinds.is_empty() {
            return (believed, update);
        }
        for event in std::mem::take(&mut update.events) {
            let kind = match &event {
                Event::Upsert(object) => object.key().kind,
                Event::Gone { key, .. } | Event::Invalid { key, .. } => key.kind,
            };
            match self.kinds.get_mut(&kind) {
                Some(older) => older.events.push(event),
                None => update.events.push(event),
            }
        }
        update.marks.retain(|(kind, _)| !self.kinds.contains_key(kind));
        update.fresh.retain(|kind| !self.kinds.contains_key(kind));
        let caught_up = |kind, older: &Older| known(kind).is_none_or(|known| older.mark >= known);
        let over: Vec<ObjectKind> = (self.kinds.iter())
            .filter(|(kind, older)| caught_up(**kind, older) || older.until <= now)
            .map(|(kind, _)| *kind)
            .collect();
        for kind in over {
            let Some(older) = self.kinds.remove(&kind) else { continue };
            match caught_up(kind, &older) {
                true => update.events.extend(older.events),
                false => believed.extend(older.events),
            }
            update.marks.push((kind, older.mark));
            update.fresh.push(kind);
        }
        (believed, update)
    }

    /// Somebody says that it is right: it is used with the next update.
    pub(super) fn release(&mut self, now: Instant) {
        self.kinds.values_mut().for_each(|older| older.until = now);
    }
}

#[cfg(test)]
mod tests {
    use distributary_cluster::{Object, ObjectKey};
    use distributary_model::{Epoch, Key};

    use super::super::{Journal, PATIENCE};
    use super::*;

    const OWN: &str = "default";

    fn service(name: &str, ip: &str) -> Event {
        let json = format!(
            r#"{{"metadata": {{"namespace": "shop", "name": "{name}"}}, "spec": {{"clusterIP": "{ip}", "ports": [{{"port": 80}}]}}}}"#
        );
        Event::Upsert(Object::from_json(ObjectKind::Service, &json).unwrap())
    }

    fn missing(name: &str) -> Event {
        let key = ObjectKey { kind: ObjectKind::Service, namespace: "shop".into(), name: name.into() };
        Event::Gone { key, inferred: true }
    }

    struct World(Journal, Instant);

    impl World {
        /// Three services at version 100.
        fn new() -> Self {
            let now = Instant::now();
            let mut world = Self(Journal::new(Epoch([1; 16]), OWN.into(), 1 << 20, now), now);
            let events =
                vec![service("a", "10.96.0.1"), service("b", "10.96.0.2"), service("c", "10.96.0.3")];
            let listed = ObjectKind::ALL.to_vec();
            world.0.commit(
                Update { events, listed: listed.clone(), fresh: listed, marks: Self::marks(100) },
                now,
            );
            world
        }

        fn marks(version: u64) -> Vec<(ObjectKind, u64)> {
            vec![(ObjectKind::Service, version)]
        }

        fn commit(&mut self, version: u64, events: Vec<Event>) -> Vec<ObjectKind> {
            let update = Update {
                events,
                marks: Self::marks(version),
                fresh: ObjectKind::ALL.to_vec(),
                ..Update::default()
            };
            self.0.commit(update, self.1).gone_back
        }

        fn ip(&self, name: &str) -> Option<String> {
            let held = self.0.cluster().table().get(&Key::service(OWN, "shop", name))?;
            Some(held.record.as_service()?.header.cluster_ips[0].to_string())
        }
    }

    #[test]
    fn rule_5_1_a_source_that_has_gone_back_changes_nothing_and_is_stale() {
        let mut world = World::new();
        world.1 += Duration::from_secs(1);
        let gone_back = world.commit(90, vec![service("a", "10.96.0.9"), missing("c")]);
        assert_eq!(gone_back, [ObjectKind::Service]);
        assert_eq!((world.ip("a"), world.ip("c")), (Some("10.96.0.1".into()), Some("10.96.0.3".into())));
        world.1 += Duration::from_secs(9);
        world.commit(91, Vec::new());
        assert_eq!(world.0.staleness(world.1), Duration::from_secs(10));
        assert_eq!(world.0.marks().get(&OWN.into(), ObjectKind::Service), Some(100));
    }

    #[test]
    fn rule_5_1_what_catches_up_is_used_as_if_nothing_had_been() {
        let mut world = World::new();
        world.commit(90, vec![service("a", "10.96.0.9"), missing("c")]);
        assert_eq!(world.commit(95, vec![service("c", "10.96.0.3")]), []);
        world.commit(101, vec![service("a", "10.96.0.1"), service("b", "10.96.0.22")]);
        let all = ["a", "b", "c"].map(|name| world.ip(name).unwrap());
        assert_eq!(all, ["10.96.0.1", "10.96.0.22", "10.96.0.3"]);
        assert_eq!(world.0.marks().get(&OWN.into(), ObjectKind::Service), Some(101));
        assert_eq!(world.0.staleness(world.1), Duration::ZERO);
    }

    #[test]
    fn rule_2_2_a_cluster_that_was_taken_back_is_believed_after_a_while_or_when_somebody_says_so() {
        for released in [false, true] {
            let mut world = World::new();
            world.commit(90, vec![service("a", "10.96.0.9"), missing("b"), missing("c")]);
            assert_eq!(world.0.held_until(), Some(world.1 + PATIENCE));
            match released {
                true => _ = world.0.release(world.1),
                false => world.1 += PATIENCE,
            }
            world.0.commit(Update::default(), world.1);
            assert_eq!((world.ip("a"), world.ip("b")), (Some("10.96.0.9".into()), None));
            assert_eq!(world.0.marks().get(&OWN.into(), ObjectKind::Service), Some(90));
            assert_eq!(world.0.held_until(), None);
        }
    }

    #[test]
    fn patience_of_zero_believes_every_list() {
        let mut world = World::new();
        world.0 = world.0.patient(Duration::ZERO);
        world.commit(90, vec![missing("c")]);
        assert_eq!(world.ip("c"), None);
    }
}
