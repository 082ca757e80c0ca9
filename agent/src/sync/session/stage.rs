//! What a stream says from its Begin to its End, beside a table that it does not touch.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use distributary_model::codec::Malformed;
use distributary_model::limits::ENDPOINTS_PER_STREAM;
use distributary_model::{Change, Epoch, Held, Key, Marks, Name, NodeView, Op, Revision, Table, delta};

use super::Failed;

/// The table as it was when the agent said what it holds.
#[derive(Clone, Copy)]
pub(super) struct Base<'a> {
    pub table: &'a Table,
    /// What changed in the table since, and what it was.
    pub since: &'a BTreeMap<Arc<Key>, Option<Held>>,
}

impl<'a> Base<'a> {
    pub(super) fn get(self, key: &Key) -> Option<&'a Held> {
        self.since.get(key).map_or_else(|| self.table.get(key), Option::as_ref)
    }

    pub(super) fn iter(self) -> impl Iterator<Item = (&'a Arc<Key>, &'a Held)> {
        let then = self.since.iter().filter_map(|(key, held)| Some((key, held.as_ref()?)));
        self.table.iter().filter(|(key, _)| !self.since.contains_key(*key)).chain(then)
    }
}

/// How what is said relates to what is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// What is not named stays.
    Resume,
    /// What is in no list of its bucket goes.
    Repair,
    /// What is not named goes.
    Snapshot,
}

/// What is staged.
#[derive(Debug)]
pub(super) struct Stage {
    pub epoch: Epoch,
    pub mode: Mode,
    pub marks: Marks,
    pub node: Option<NodeView>,
    /// Its End, where that has come and the stage waits for later marks.
    pub ended: Option<Ended>,
    becomes: BTreeMap<Arc<Key>, Option<Held>>,
    unnamed: BTreeSet<Arc<Key>>,
    endpoints: usize,
}

/// What an End said.
#[derive(Clone, Debug)]
pub(super) struct Ended {
    pub revision: Revision,
    /// Sources of which everything was said.
    pub complete: BTreeSet<Name>,
    /// No commit is half said.
    pub whole: bool,
    /// When it ended.
    pub at: Instant,
}

impl Stage {
    pub(super) fn new(epoch: Epoch, mode: Mode) -> Self {
        Self {
            epoch,
            mode,
            marks: Marks::default(),
            node: None,
            ended: None,
            becomes: BTreeMap::new(),
            unnamed: BTreeSet::new(),
            endpoints: 0,
        }
    }

    /// Takes a change in.
    pub(super) fn take_in(&mut self, change: Change, base: Base<'_>) -> Result<(), Failed> {
        let whole = self.mode == Mode::Snapshot && self.ended.is_none();
        if whole && matches!(change.op, Op::Patch { .. }) {
            let key = change.key;
            return Err(Malformed::new(format!("a snapshot with a patch of {key}")).into());
        }
        let is = base.get(&change.key);
        let staged = self.becomes.get(&change.key);
        let was = match staged {
            Some(staged) => staged.as_ref(),
            None if self.mode == Mode::Snapshot && !whole => None,
            None => is,
        };
        let mut after = delta::apply(was, &change)?;
        self.endpoints -= staged.and_then(Option::as_ref).map_or(0, |held| held.record.endpoints());
        self.endpoints += after.as_ref().map_or(0, |held| held.record.endpoints());
        at_most(self.endpoints)?;
        // What is held already is not held twice while the rest comes.
        if let (Some(is), Some(new)) = (is, &after)
            && is.hash == new.hash
        {
            after = Some(is.clone());
        }
        self.unnamed.remove(&change.key);
        self.becomes.insert(change.key, after);
        Ok(())
    }

    /// A record is in no list of its bucket.
    pub(super) fn unnamed(&mut self, key: Arc<Key>) {
        if !self.becomes.contains_key(&key) {
            self.unnamed.insert(key);
        }
    }

    /// Whether a change of the record was said.
    pub(super) fn names(&self, key: &Key) -> bool {
        self.becomes.contains_key(key)
    }

    /// What is to change in the table. Only records of complete sources may go because nobody named them.
    pub(super) fn fold(&self, base: Base<'_>) -> BTreeMap<Arc<Key>, Option<Held>> {
        let mut changes = self.becomes.clone();
        for (key, was) in base.since {
            changes.entry(key.clone()).or_insert_with(|| was.clone());
        }
        let complete =
            |key: &Key| self.ended.as_ref().is_some_and(|ended| ended.complete.contains(&key.cluster));
        let mut goes = |key: &Arc<Key>| {
            if complete(key) && !self.names(key) {
                changes.insert(key.clone(), None);
            }
        };
        match self.mode {
            Mode::Resume => {}
            Mode::Repair => self.unnamed.iter().for_each(goes),
            Mode::Snapshot => base.iter().for_each(|(key, _)| goes(key)),
        }
        changes
    }
}

/// Stream rule 1.5.
pub(super) fn at_most(endpoints: usize) -> Result<(), Malformed> {
    match endpoints > ENDPOINTS_PER_STREAM {
        true => {
            Err(Malformed::new(format!("{endpoints} endpoints, where {ENDPOINTS_PER_STREAM} are the limit")))
        }
        false => Ok(()),
    }
}
