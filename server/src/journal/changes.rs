//! When every record changed last: who was told everything up to some commit is told the newest value of what changed
//! since, however much of the log is gone by then.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::Arc;
use std::time::{Duration, Instant};

use distributary_model::{Key, Revision};

/// How long it is known that a record was removed.
pub(super) const TOMBSTONES_FOR: Duration = Duration::from_secs(15 * 60);
/// So many removals are known whatever share of the live records that is.
pub(super) const TOMBSTONES_ANYWAY: usize = 64;

/// The last change of every record, and of those that were removed not long ago.
#[derive(Debug, Default)]
pub(super) struct Changes {
    last: BTreeMap<Arc<Key>, Revision>,
    keys: BTreeMap<Revision, BTreeSet<Arc<Key>>>,
    /// The removed, the oldest first.
    tombstones: BTreeMap<(Revision, Arc<Key>), Instant>,
    /// Every removal after this commit is known.
    horizon: Revision,
}

impl Changes {
    /// A record changed in a commit; `there`: it still exists.
    pub(super) fn changed(&mut self, key: &Arc<Key>, revision: Revision, there: bool, now: Instant) {
        if let Some(before) = self.last.insert(key.clone(), revision) {
            self.unplace(key, before);
        }
        self.keys.entry(revision).or_default().insert(key.clone());
        if !there {
            self.tombstones.insert((revision, key.clone()), now);
        }
    }

    /// Forgets removals that are old, or more than a fifth of what lives.
    pub(super) fn forget(&mut self, now: Instant) {
        let live = self.last.len() - self.tombstones.len();
        let limit = (live / 5).max(TOMBSTONES_ANYWAY);
        while let Some(((revision, key), at)) = self.tombstones.first_key_value()
            && (self.tombstones.len() > limit || now.saturating_duration_since(*at) > TOMBSTONES_FOR)
        {
            let (revision, key) = (*revision, key.clone());
            self.unplace(&key, revision);
            self.last.remove(&key);
            self.horizon = revision;
        }
    }

    /// The last change of a record; of one that is not known, when the last such was forgotten.
    pub(super) fn last(&self, key: &Key) -> Revision {
        self.last.get(key).copied().unwrap_or(self.horizon)
    }

    /// What changed after a commit; `None` where that is below the horizon.
    pub(super) fn since(&self, revision: Revision) -> Option<impl Iterator<Item = &Arc<Key>>> {
        let known = revision >= self.horizon;
        known.then(|| self.keys.range((Excluded(revision), Unbounded)).flat_map(|(_, keys)| keys))
    }

    fn unplace(&mut self, key: &Arc<Key>, revision: Revision) {
        self.tombstones.remove(&(revision, key.clone()));
        if let Some(keys) = self.keys.get_mut(&revision) {
            keys.remove(key);
            if keys.is_empty() {
                self.keys.remove(&revision);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: usize) -> Arc<Key> {
        Arc::new(Key::service("c", "n", name.to_string()))
    }

    fn names(changes: &Changes, since: u64) -> Option<Vec<String>> {
        Some(changes.since(Revision(since))?.map(|key| key.name.to_string()).collect())
    }

    #[test]
    fn a_record_stands_at_its_last_change_only() {
        let (mut changes, now) = (Changes::default(), Instant::now());
        changes.changed(&key(1), Revision(1), true, now);
        changes.changed(&key(2), Revision(2), true, now);
        changes.changed(&key(1), Revision(3), false, now);
        assert_eq!(names(&changes, 0).unwrap(), ["2", "1"]);
        assert_eq!(names(&changes, 2).unwrap(), ["1"]);
        changes.changed(&key(1), Revision(4), true, now);
        assert_eq!(names(&changes, 3).unwrap(), ["1"]);
        assert!(changes.tombstones.is_empty(), "it is there again");
    }

    #[test]
    fn rule_3_4_a_tombstone_that_is_forgotten_raises_the_horizon() {
        let (mut changes, now) = (Changes::default(), Instant::now());
        changes.changed(&key(0), Revision(1), true, now);
        changes.changed(&key(1), Revision(2), false, now);
        changes.forget(now + TOMBSTONES_FOR);
        assert_eq!(names(&changes, 1).unwrap(), ["1"]);
        changes.forget(now + TOMBSTONES_FOR + Duration::from_secs(1));
        assert_eq!((names(&changes, 1), names(&changes, 2)), (None, Some(vec![])));
        let more = TOMBSTONES_ANYWAY + 1;
        (0..more).for_each(|i| changes.changed(&key(100 + i), Revision(3 + i as u64), false, now));
        changes.forget(now);
        assert_eq!((names(&changes, 2), names(&changes, 3).unwrap().len()), (None, TOMBSTONES_ANYWAY));
        assert_eq!(changes.last.len(), TOMBSTONES_ANYWAY + 1);
    }
}
