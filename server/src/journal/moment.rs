//! When something happens, and how long ago it had to: the only place where a wall clock counts for anything.

use std::time::{Duration, Instant};

use distributary_cluster::Trigger;
use distributary_model::Ages;
use distributary_model::limits::OLDEST_AGE;
use jiff::Timestamp;

/// When something happens.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// By the monotonic clock.
    pub instant: Instant,
    /// By the wall clock of this host; `None`: nothing is compared with trigger times.
    pub wall: Option<Timestamp>,
}

impl From<Instant> for Moment {
    fn from(instant: Instant) -> Self {
        Self { instant, wall: None }
    }
}

impl Moment {
    /// How long ago the slices of a record had to change, as far as it was after the lists (`since`): what is older
    /// would measure how long this server was not there.
    pub(super) fn ages(&self, triggers: &[Trigger], since: Option<Timestamp>) -> Ages {
        let mut ages = Ages::default();
        let (Some(now), Some(since)) = (self.wall, since) else { return ages };
        for Trigger { at, v6 } in triggers.iter().filter(|trigger| trigger.at > since) {
            // Whoever wrote the slice has a clock of its own, which may be ahead.
            let age = Duration::try_from(now.duration_since(*at)).unwrap_or_default();
            if age <= OLDEST_AGE {
                ages.add(*v6, age);
            }
        }
        ages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_is_never_negative_never_from_before_the_lists_and_never_that_of_something_forgotten() {
        let second = |second| Timestamp::from_second(second).unwrap();
        let ages = |since, now: i64, triggers: &[i64]| {
            let triggers: Vec<Trigger> =
                triggers.iter().map(|at| Trigger { at: second(*at), v6: at % 2 == 1 }).collect();
            let now = Moment { instant: Instant::now(), wall: Some(second(now)) };
            let Ages { v4, v6 } = now.ages(&triggers, since);
            [v4, v6].map(|ages| ages.iter().map(Duration::as_secs).collect::<Vec<u64>>())
        };
        let none = Vec::<u64>::new;
        let listed = Some(second(100));
        assert_eq!(ages(listed, 110, &[104, 105, 108]), [vec![6, 2], vec![5]]);
        assert_eq!(ages(listed, 110, &[112, 10_001]), [vec![0], vec![0]]);
        assert_eq!(ages(listed, 110, &[100, 99, 98, 0]), [none(), none()]);
        assert_eq!(ages(listed, 800, &[199, 200]), [vec![600], vec![]]);
        assert_eq!(ages(None, 110, &[104]), [none(), none()]);
        let triggers = [Trigger { at: second(104), v6: false }];
        assert!(Moment::from(Instant::now()).ages(&triggers, listed).is_empty());
    }
}
