//! Another program that writes our chains: when it is one, when to give way, and when it is gone. Pure.
//!
//! A firewall that is loaded anew takes rules away, or brings old ones back, once. A kube-proxy beside us rewrites the
//! chains in its own form at each change, and we would rewrite them in ours: neither is wrong, but no one wins. So the
//! second time within [`MEMORY`] we stop.
//!
//! Whether it is still there cannot be seen in chains that nobody has a reason to change. But it makes its canary again
//! when that is gone (spec/kube-proxy.md §4.6), and writes everything then. So the canary, an empty chain, is removed:
//! at once, which makes the rules wholly its own where ours and its had mixed, and then now and again. Where nobody
//! makes it again, nobody is there.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::plan::Family;

/// Two losses further apart than this have nothing to do with each other: without a change a kube-proxy writes once an
/// hour.
const MEMORY: Duration = Duration::from_secs(2 * 3600);
/// How often it is looked for an answer.
const GLANCE: Duration = Duration::from_secs(1);
/// For what kube-proxy does between seeing that its canary is gone, and making it again.
const WORK: Duration = Duration::from_secs(10);
/// The longest time between questions, and for an answer.
const LONGEST: Duration = Duration::from_secs(600);

/// What is known of another writer.
#[derive(Debug)]
pub(super) struct Rival {
    state: State,
    /// When it wrote last, of those times that were answered by writing.
    seen: BTreeMap<Family, Instant>,
    /// How often it looks for its canary, at most.
    sync_period: Duration,
    /// How long an answer may take.
    patience: Duration,
    /// From an answer to the next question.
    pause: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Alone,
    /// It was there lately, and is asked then.
    Yielding {
        until: Instant,
    },
    /// Its canary is gone since then.
    Asking {
        since: Instant,
        next: Instant,
    },
}

/// What to do about another writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Task {
    /// Remove its canary.
    Ask,
    /// See whether the canary is back.
    Look,
}

/// What a look found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// It may still answer.
    Nothing,
    /// It is there, and will be asked again after so long.
    Somebody { again: Duration },
    /// Nobody is there.
    Nobody,
}

impl Rival {
    /// Of which nothing is known; `sync_period` is the one that kube-proxy has on this node.
    pub(super) fn new(sync_period: Duration) -> Self {
        let patience = (2 * sync_period + WORK).min(LONGEST);
        Self { state: State::Alone, seen: BTreeMap::new(), sync_period, patience, pause: patience }
    }

    /// Whether nothing is to be written.
    pub(super) fn stopped(&self) -> bool {
        self.state != State::Alone
    }

    /// Whether the next time that a family's rules are not ours is one too many.
    pub(super) fn is_expected(&self, family: Family, now: Instant) -> bool {
        self.stopped()
            || self.seen.get(&family).is_some_and(|seen| now.saturating_duration_since(*seen) < MEMORY)
    }

    /// Somebody rewrote a family's rules. Gives whether that is once too often, where it was not before.
    pub(super) fn wrote(&mut self, family: Family, now: Instant) -> bool {
        let expected = self.is_expected(family, now);
        let known = self.seen.values().any(|seen| now.saturating_duration_since(*seen) < MEMORY);
        if !known {
            let sync_period = self.sync_period;
            *self = Self { state: self.state, ..Self::new(sync_period) };
        }
        self.seen.insert(family, now);
        let stops = expected && !self.stopped();
        if stops {
            self.state = State::Yielding { until: now };
        }
        stops
    }

    /// When there is something to do.
    pub(super) fn next(&self) -> Option<(Task, Instant)> {
        match self.state {
            State::Alone => None,
            State::Yielding { until } => Some((Task::Ask, until)),
            State::Asking { next, .. } => Some((Task::Look, next)),
        }
    }

    /// The canary is gone now; or it could not be removed, which is tried again.
    pub(super) fn asked(&mut self, removed: bool, now: Instant) {
        self.state = match removed {
            true => State::Asking { since: now, next: now + GLANCE },
            false => State::Yielding { until: now + GLANCE },
        };
    }

    /// The canary is there, or is not; `None` where that cannot be said.
    pub(super) fn looked(&mut self, there: Option<bool>, now: Instant) -> Found {
        let State::Asking { since, .. } = self.state else { return Found::Nothing };
        match there {
            Some(true) => {
                let again = self.pause;
                self.pause = (2 * again).min(LONGEST);
                self.state = State::Yielding { until: now + again };
                Found::Somebody { again }
            }
            Some(false) if now.saturating_duration_since(since) >= self.patience => {
                // Who was only slow is given longer the next time.
                self.patience = (2 * self.patience).min(LONGEST);
                self.state = State::Alone;
                Found::Nobody
            }
            _ => {
                self.state = State::Asking { since, next: now + GLANCE };
                Found::Nothing
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: Duration = Duration::from_secs(30);
    const HOUR: Duration = Duration::from_secs(3600);

    fn stopped(now: Instant) -> Rival {
        let mut rival = Rival::new(PERIOD);
        assert!(!rival.wrote(Family::V4, now) && rival.wrote(Family::V4, now));
        rival
    }

    #[test]
    fn the_second_time_is_once_too_often_unless_the_first_is_long_ago() {
        let (mut rival, now) = (Rival::new(PERIOD), Instant::now());
        assert!(!rival.wrote(Family::V4, now));
        assert!(!rival.wrote(Family::V6, now + PERIOD), "it is one writer, who writes both families");
        assert!(!rival.wrote(Family::V4, now + 3 * HOUR));
        assert!(
            !rival.is_expected(Family::V6, now + 4 * HOUR) && rival.is_expected(Family::V4, now + 4 * HOUR)
        );
        assert!(rival.wrote(Family::V4, now + 4 * HOUR) && rival.stopped());
        assert!(!rival.wrote(Family::V6, now + 4 * HOUR), "it is said once");
    }

    #[test]
    fn it_is_asked_at_once_and_then_less_and_less_often_as_long_as_it_answers() {
        let mut now = Instant::now();
        let mut rival = stopped(now);
        let mut pauses = Vec::new();
        for _ in 0..6 {
            assert_eq!(rival.next(), Some((Task::Ask, now)));
            rival.asked(true, now);
            assert_eq!(rival.next(), Some((Task::Look, now + GLANCE)));
            assert_eq!(rival.looked(Some(false), now + GLANCE), Found::Nothing);
            let Found::Somebody { again } = rival.looked(Some(true), now + PERIOD) else {
                panic!("{rival:?}")
            };
            now += PERIOD + again;
            pauses.push(again.as_secs());
        }
        assert_eq!(pauses, [70, 140, 280, 560, 600, 600]);
        assert!(rival.stopped());
    }

    #[test]
    fn who_does_not_answer_is_gone_and_who_was_slow_is_given_longer() {
        let now = Instant::now();
        let mut rival = stopped(now);
        rival.asked(true, now);
        assert_eq!(rival.looked(Some(false), now + Duration::from_secs(69)), Found::Nothing);
        assert_eq!(rival.looked(None, now + HOUR), Found::Nothing, "not to be able to look says nothing");
        assert_eq!(rival.looked(Some(false), now + Duration::from_secs(70)), Found::Nobody);
        assert!(!rival.stopped() && rival.next().is_none());

        let now = now + HOUR;
        assert!(rival.is_expected(Family::V4, now) && rival.wrote(Family::V4, now), "no more second chances");
        rival.asked(true, now);
        assert_eq!(rival.looked(Some(false), now + Duration::from_secs(139)), Found::Nothing);
        assert_eq!(rival.looked(Some(false), now + Duration::from_secs(140)), Found::Nobody);
    }

    #[test]
    fn a_canary_that_cannot_be_removed_is_tried_again() {
        let now = Instant::now();
        let mut rival = stopped(now);
        rival.asked(false, now);
        assert_eq!(rival.next(), Some((Task::Ask, now + GLANCE)));
    }
}
