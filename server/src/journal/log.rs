//! The recent frames, as shared bytes. Their eviction ends no resume: who falls below gets a snapshot.

use std::collections::VecDeque;

use bytes::Bytes;
use distributary_model::Revision;

/// How much is kept, in bytes of frames.
pub const LOG_BYTES: usize = 32 << 20;

/// The frames of the newest commits, in order, each with its place in the sequence of all frames.
#[derive(Debug)]
pub struct Log {
    entries: VecDeque<Entry>,
    /// Place of the first entry.
    first: u64,
    bytes: usize,
    /// Bytes of all frames that there ever were.
    pushed: u64,
    limit: usize,
    /// Every commit after this one is in the log.
    horizon: Revision,
}

#[derive(Debug)]
struct Entry {
    revision: Revision,
    /// The last frame of its commit.
    last: bool,
    /// Bytes of all frames before it.
    before: u64,
    frame: Bytes,
}

impl Log {
    /// Keeps at most `limit` bytes, and the newest commit whatever its size.
    pub fn new(limit: usize) -> Self {
        Self { entries: VecDeque::new(), first: 0, bytes: 0, pushed: 0, limit, horizon: Revision(0) }
    }

    /// Adds the frames of a commit.
    pub fn push(&mut self, revision: Revision, frames: Vec<Bytes>) {
        let count = frames.len();
        for (i, frame) in frames.into_iter().enumerate() {
            let before = self.pushed;
            self.bytes += frame.len();
            self.pushed += frame.len() as u64;
            self.entries.push_back(Entry { revision, last: i + 1 == count, before, frame });
        }
        while self.bytes > self.limit && self.entries.front().is_some_and(|oldest| oldest.revision < revision)
        {
            if let Some(oldest) = self.entries.pop_front() {
                self.bytes -= oldest.frame.len();
                self.first += 1;
                self.horizon = oldest.revision;
            }
        }
    }

    /// The place after the newest frame.
    pub fn end(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    /// The place of the first frame after a revision; `None` below the horizon.
    pub fn after(&self, through: Revision) -> Option<u64> {
        let held = through >= self.horizon;
        held.then(|| self.first + self.entries.partition_point(|entry| entry.revision <= through) as u64)
    }

    /// The frame at a place. `Err` where it is evicted, `Ok(None)` at the end.
    pub fn get(&self, place: u64) -> Result<Option<Logged<'_>>, Evicted> {
        let entry = self.entry(place)?;
        Ok(entry.map(|Entry { revision, last, frame, .. }| Logged {
            revision: *revision,
            last: *last,
            frame,
        }))
    }

    /// How many bytes the frames from a place to the end have.
    pub fn bytes_from(&self, place: u64) -> Result<u64, Evicted> {
        Ok(self.entry(place)?.map_or(0, |entry| self.pushed - entry.before))
    }

    fn entry(&self, place: u64) -> Result<Option<&Entry>, Evicted> {
        let index = place.checked_sub(self.first).ok_or(Evicted)?;
        Ok(usize::try_from(index).ok().and_then(|index| self.entries.get(index)))
    }
}

/// A frame of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Logged<'a> {
    /// Of its commit.
    pub revision: Revision,
    /// Whether the commit is complete with it.
    pub last: bool,
    /// As it is sent.
    pub frame: &'a Bytes,
}

/// The frame is no longer in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Evicted;

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(of: &[&'static str]) -> Vec<Bytes> {
        of.iter().map(|text| Bytes::from_static(text.as_bytes())).collect()
    }

    #[test]
    fn a_cursor_finds_its_place_until_it_falls_below_the_horizon() {
        let mut log = Log::new(6);
        log.push(Revision(1), frames(&["aa"]));
        log.push(Revision(2), frames(&["bb", "cc"]));
        assert_eq!(log.after(Revision(0)), Some(0));
        assert_eq!(log.after(Revision(1)), Some(1));
        assert_eq!(log.after(Revision(2)), Some(3));
        log.push(Revision(3), frames(&["dd"]));
        assert_eq!(log.after(Revision(0)), None);
        assert_eq!(log.get(0), Err(Evicted));
        assert_eq!(log.after(Revision(1)), Some(1));
        log.push(Revision(4), frames(&["ee"]));
        assert_eq!(log.after(Revision(1)), None, "half of commit 2 is gone");
        assert_eq!(log.after(Revision(2)), Some(3));
        assert_eq!(log.get(4).unwrap().unwrap().revision, Revision(4));
        assert_eq!(log.get(5), Ok(None));
        assert_eq!(log.end(), 5);
    }

    #[test]
    fn the_log_knows_what_it_costs_to_catch_up_and_where_commits_end() {
        let mut log = Log::new(6);
        log.push(Revision(1), frames(&["aa"]));
        log.push(Revision(2), frames(&["bbb", "c"]));
        assert_eq!([0, 1, 2, 3].map(|place| log.bytes_from(place)), [Ok(6), Ok(4), Ok(1), Ok(0)]);
        let last = |place| log.get(place).unwrap().unwrap().last;
        assert_eq!([0, 1, 2].map(last), [true, false, true]);
        log.push(Revision(3), frames(&["d"]));
        assert_eq!((log.bytes_from(0), log.bytes_from(1)), (Err(Evicted), Ok(5)));
    }

    #[test]
    fn the_newest_commit_is_kept_whatever_its_size() {
        let mut log = Log::new(3);
        log.push(Revision(1), frames(&["aaaa", "bbbb"]));
        assert_eq!(log.after(Revision(0)), Some(0));
        log.push(Revision(2), frames(&["c"]));
        assert_eq!(log.after(Revision(1)), Some(2));
    }
}
