//! Changes of slices on their way to the kernel, each measured from the moment that triggered it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use distributary_model::limits::{SENT_MASK, SENT_TICK};
use distributary_model::{Ages, Key};

use crate::plan::Family;

/// A kernel that takes nothing for hours must not fill the memory.
const MOST: usize = 10_000;
/// The quickest message is sought among those of so long, and of as long before: clocks drift apart.
const WINDOW: Duration = Duration::from_secs(60);

/// What is on its way, by service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Underway(BTreeMap<Arc<Key>, Vec<Trip>>);

/// One changed slice.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Trip {
    family: Family,
    /// How old the change was…
    age: Duration,
    /// …at this moment.
    at: Instant,
}

/// One changed slice that has come to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrived {
    /// Of the slice.
    pub family: Family,
    /// From what triggered it.
    pub took: Duration,
}

impl Underway {
    /// Adds what came with a change of a service, and was of those ages at `at`.
    pub fn add(&mut self, key: &Arc<Key>, ages: &Ages, at: Instant) {
        let trip = |family| move |age: &Duration| Trip { family, age: *age, at };
        let trips = ages.v4.iter().map(trip(Family::V4)).chain(ages.v6.iter().map(trip(Family::V6)));
        let room = MOST.saturating_sub(self.0.values().map(Vec::len).sum());
        let mut trips = trips.take(room).peekable();
        if trips.peek().is_some() {
            self.0.entry(key.clone()).or_default().extend(trips);
        }
    }

    /// Takes in what came later.
    pub fn merge(&mut self, later: Self) {
        let mut room = MOST.saturating_sub(self.0.values().map(Vec::len).sum());
        for (key, mut trips) in later.0 {
            trips.truncate(room);
            room -= trips.len();
            self.0.entry(key).or_default().extend(trips);
        }
    }

    /// The service is gone: its endpoints will never be in the kernel.
    pub fn forget(&mut self, key: &Key) {
        self.0.remove(key);
    }

    /// Everything is in the kernel, but for the services that it refuses: theirs go on.
    pub fn arrive(&mut self, refused: impl Fn(&Key) -> bool, now: Instant) -> Vec<Arrived> {
        let (stay, arrived) = std::mem::take(&mut self.0).into_iter().partition(|(key, _)| refused(key));
        self.0 = stay;
        let took = |Trip { family, age, at }: Trip| Arrived {
            family,
            took: age.saturating_add(now.saturating_duration_since(at)),
        };
        BTreeMap::into_values(arrived).flatten().map(took).collect()
    }
}

/// How much longer than others a message was on its way: what a stalled agent reads lay in buffers meanwhile. The clocks
/// of the two hosts are only asked how much time went by on each.
#[derive(Debug, Default)]
pub struct Delay {
    /// Of the last message: when it was sent, by the bits of the sender's clock that travel, and received.
    last: Option<(u32, Instant)>,
    /// By how much later, or earlier, than the first it came, in milliseconds.
    late: i64,
    /// When the current window began.
    since: Option<Instant>,
    /// The same of the quickest: in this window, and the one before.
    least: [Option<i64>; 2],
}

impl Delay {
    /// Of a message that says when it was sent; 0: it does not say.
    pub fn of(&mut self, sent: u32, received: Instant) -> Duration {
        if sent == 0 {
            return Duration::ZERO;
        }
        let (before, at) = self.last.replace((sent, received)).unwrap_or((sent, received));
        let millis = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        let here = millis(received.saturating_duration_since(at));
        // A stream is not silent for minutes: the nearer way round is the one that time went.
        let there = match sent.wrapping_sub(before) & SENT_MASK {
            later if later <= SENT_MASK / 2 => millis(SENT_TICK * later),
            earlier => -millis(SENT_TICK * (SENT_MASK + 1 - earlier)),
        };
        let longer = here.saturating_sub(there);
        self.late = self.late.saturating_add(longer);
        let late = self.late;
        let since = *self.since.get_or_insert(received);
        if received.saturating_duration_since(since) >= WINDOW {
            self.since = Some(received);
            self.least = [None, self.least[0]];
        }
        self.least[0] = Some(self.least[0].map_or(late, |least| least.min(late)));
        let least = self.least.into_iter().flatten().min().unwrap_or(late);
        Duration::from_millis(late.saturating_sub(least).unsigned_abs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use distributary_model::{codec, testing as t};

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn ages(v4: &[u64], v6: &[u64]) -> Ages {
        let of = |ages: &[u64]| ages.iter().copied().map(millis).collect();
        Ages { v4: of(v4), v6: of(v6) }
    }

    #[test]
    fn each_changed_slice_arrives_once_with_the_time_since_its_trigger() {
        let (mut underway, start) = (Underway::default(), Instant::now());
        let [web, api, gone] = ["ns/web", "ns/api", "ns/gone"].map(t::key);
        underway.add(&web, &ages(&[1_000], &[2_000]), start);
        underway.add(&gone, &ages(&[9], &[]), start);
        let mut later = Underway::default();
        later.add(&web, &ages(&[0], &[]), start + millis(300));
        later.add(&api, &ages(&[5], &[]), start + millis(300));
        underway.merge(later);
        underway.forget(&gone);
        let arrived = underway.arrive(|key| *key == *api, start + millis(500));
        let arrived: Vec<_> = arrived.iter().map(|one| (one.family, one.took.as_millis())).collect();
        assert_eq!(arrived, [(Family::V4, 1_500), (Family::V6, 2_500), (Family::V4, 200)]);
        let took = underway.arrive(|_| false, start + millis(1_300));
        assert_eq!(took, [Arrived { family: Family::V4, took: millis(1_005) }], "what was refused goes on");
        assert_eq!(underway, Underway::default());
    }

    #[test]
    fn a_kernel_that_takes_nothing_fills_no_memory() {
        let (mut underway, now) = (Underway::default(), Instant::now());
        for i in 0..200 {
            underway.add(&t::key(&format!("ns/s{i}")), &ages(&[0; 100], &[]), now);
        }
        underway.merge(underway.clone());
        assert_eq!(underway.arrive(|_| false, now).len(), MOST);
    }

    #[test]
    fn what_lay_in_buffers_is_late_by_as_much() {
        let (mut delay, start) = (Delay::default(), Instant::now());
        let mut of = |sent: u64, received: u64| {
            delay.of(codec::sent(millis(sent)), start + millis(received)).as_millis()
        };
        // The first is itself slow, which the second shows.
        assert_eq!(of(70_000, 20), 0);
        assert_eq!(of(75_000, 5_000), 0);
        assert_eq!(of(80_000, 10_003), 3);
        // The agent stood still for 4 s.
        assert_eq!([of(81_000, 15_000), of(84_900, 15_001), of(85_100, 15_100)], [4_000, 101, 0]);
        assert_eq!(of(164_000, 94_100), 100, "the bits that travel begin anew");
        assert_eq!(of(163_990, 94_100), 110, "nor do they go back far");
        assert_eq!(delay.of(0, start + millis(95_000)), Duration::ZERO, "it does not say");
    }

    #[test]
    fn clocks_that_drift_apart_are_no_delay() {
        let (mut delay, start) = (Delay::default(), Instant::now());
        for i in 1..2_000_u64 {
            let sent = i * 5_000;
            // 200 of a million.
            let received = start + millis(sent + sent / 5_000);
            let late = delay.of(codec::sent(millis(sent)), received);
            assert!(late <= millis(25), "{late:?} after {i}");
        }
    }
}
