//! The list-and-watch of one kind, as a pure machine: it says what to ask next, takes answers in, and gives what
//! consumers are to learn. No IO, no clock.
//!
//! First everything there is: by a watch that begins with it (a streaming list), or page by page where the API server
//! does not have that. Then a watch from there on. Connections that end are taken up from the last version that was
//! heard of; only where the API server has forgotten that version, or was rewound behind it, everything is listed anew.
//! What a list shows is held back until it is complete, and is then one update.
//!
//! A watch that ends is asked for again at once only where it lasted for some seconds, what it began with not counted: an
//! API server whose watches break off as soon as everything is listed must not be made to list without end.

use std::time::Duration;

use distributary_cluster::{Event, ObjectKey};
use distributary_model::ObjectKind;

use super::Update;
use super::relist::Relist;
use super::wire::{Line, Page, Status};

/// What to ask the API server next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// A watch that begins with everything there is.
    Stream,
    /// A page of a list; the first one, or that after a token.
    Page(Option<String>),
    /// A watch from a version on.
    Watch(String),
    /// Nothing for a long while: the kind is not served. Then [`Watch::recheck`].
    Nothing,
}

/// Why an answer did not come, or not whole.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Failure {
    /// The API server refused.
    #[error("{0}")]
    Status(Status),
    /// There was no answer, or it broke off.
    #[error("{0}")]
    Transport(String),
}

/// Watches that lasted for so long after their list work.
pub(super) const LASTED: Duration = Duration::from_secs(5);

/// When to ask again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Retry {
    /// At once.
    Now,
    /// After a delay that grows.
    Later,
}

#[derive(Debug)]
enum Phase {
    Streaming,
    Paging(Option<String>),
    Watching,
    NotServed,
}

/// The list-and-watch of one kind.
#[derive(Debug)]
pub(super) struct Watch {
    kind: ObjectKind,
    phase: Phase,
    /// The API server has not refused a streaming list so far.
    streams: bool,
    relist: Relist<ObjectKey>,
    /// What an incomplete list has shown so far.
    staged: Vec<Event>,
    /// Where a watch would begin; empty: nowhere, it takes a list.
    version: String,
    /// The same as a number; 0: it is none.
    mark: u64,
    /// What consumers have not been given yet.
    update: Update,
}

impl Watch {
    pub(super) fn new(kind: ObjectKind) -> Self {
        let mut watch = Self {
            kind,
            phase: Phase::Streaming,
            streams: true,
            relist: Relist::default(),
            staged: Vec::new(),
            version: String::new(),
            mark: 0,
            update: Update::default(),
        };
        watch.begin();
        watch
    }

    /// What to ask next.
    pub(super) fn request(&self) -> Request {
        match &self.phase {
            Phase::Streaming => Request::Stream,
            Phase::Paging(after) => Request::Page(after.clone()),
            Phase::Watching => Request::Watch(self.version.clone()),
            Phase::NotServed => Request::Nothing,
        }
    }

    /// Whether everything is listed and changes are awaited.
    pub(super) fn is_watching(&self) -> bool {
        matches!(self.phase, Phase::Watching)
    }

    /// The newest version that is included; 0: not numeric.
    pub(super) fn mark(&self) -> u64 {
        self.mark
    }

    /// What consumers are to learn, where there is anything.
    pub(super) fn take(&mut self) -> Option<Update> {
        let Update { events, listed, marks, fresh } = &self.update;
        let any = !(events.is_empty() && listed.is_empty() && marks.is_empty() && fresh.is_empty());
        any.then(|| std::mem::take(&mut self.update))
    }

    /// A line of a watch came.
    ///
    /// # Errors
    /// When the API server says that the watch cannot go on; to be given to [`Watch::failed`].
    pub(super) fn line(&mut self, line: Line) -> Result<(), Failure> {
        match line {
            Line::Error(status) => return Err(Failure::Status(status)),
            Line::Changed { event, version } => {
                self.keep(&event);
                if self.is_watching() {
                    self.update.events.push(event);
                    // Without a number there is nothing to take the watch up from.
                    self.reach(if version == 0 { String::new() } else { version.to_string() });
                } else {
                    // Its version says nothing yet: what was there at the beginning comes in any order.
                    self.staged.push(event);
                }
            }
            Line::Bookmark { version, listed } => match self.phase {
                Phase::Watching => self.reach(version),
                _ if listed => self.finish(version),
                _ => {}
            },
        }
        Ok(())
    }

    /// A page of a list came.
    pub(super) fn page(&mut self, page: Page) {
        for event in page.events {
            self.keep(&event);
            self.staged.push(event);
        }
        match page.next {
            Some(next) => self.phase = Phase::Paging(Some(next)),
            None => self.finish(page.version),
        }
    }

    /// The answer ended as it may: an API server ends every watch after some minutes. `lasted`: how long changes were
    /// awaited, what came before everything was listed not counted.
    pub(super) fn ended(&mut self, lasted: Duration) -> Retry {
        if !self.is_watching() || self.version.is_empty() {
            self.begin();
        }
        again(lasted)
    }

    /// There was no answer, or it was a refusal. `lasted`: as for [`Watch::ended`].
    pub(super) fn failed(&mut self, failure: &Failure, lasted: Duration) -> Retry {
        let status = match failure {
            Failure::Status(status) => status,
            Failure::Transport(_) => {
                self.ended(lasted);
                return Retry::Later;
            }
        };
        match (&self.phase, status.code) {
            _ if status.is_expired() => {
                self.begin();
                again(lasted)
            }
            // This is how those answer that do not have streaming lists, or have them switched off.
            (Phase::Streaming, 400 | 405 | 406 | 422) => {
                self.streams = false;
                self.begin();
                Retry::Now
            }
            (Phase::Streaming | Phase::Paging(_), 404) if self.kind == ObjectKind::ServiceCidr => {
                self.begin();
                self.finish(String::new());
                self.phase = Phase::NotServed;
                Retry::Now
            }
            // It did not understand where to begin, so it will not the next time either.
            (Phase::Watching, 400 | 404 | 422) => {
                self.begin();
                Retry::Later
            }
            _ => {
                self.ended(lasted);
                Retry::Later
            }
        }
    }

    /// The API server has an older state than one that it had before: its store was restored.
    pub(super) fn rewound(&mut self) {
        self.begin();
    }

    /// Whether the kind is served by now is to be asked.
    pub(super) fn recheck(&mut self) {
        self.begin();
    }

    /// It is known at this moment that nothing is missing.
    pub(super) fn confirmed(&mut self) {
        self.fresh();
    }

    /// Everything is listed anew. What is known stays known: a list that fails must not forget what vanished.
    fn begin(&mut self) {
        self.relist.begin();
        self.staged = Vec::new();
        self.phase = if self.streams { Phase::Streaming } else { Phase::Paging(None) };
    }

    /// The list is complete: all of it is one update.
    fn finish(&mut self, version: String) {
        self.update.events.append(&mut self.staged);
        let vanished = self.relist.finish().into_iter();
        self.update.events.extend(vanished.map(|key| Event::Gone { key, inferred: true }));
        self.update.listed.push(self.kind);
        self.staged = Vec::new();
        self.phase = Phase::Watching;
        self.mark = 0;
        self.reach(version);
    }

    fn keep(&mut self, event: &Event) {
        match event {
            Event::Upsert(object) => self.relist.seen(object.key().clone()),
            // It is there, whatever it says.
            Event::Invalid { key, .. } => self.relist.seen(key.clone()),
            Event::Gone { key, .. } => self.relist.gone(key),
        }
    }

    fn reach(&mut self, version: String) {
        self.mark = version.parse().unwrap_or(0);
        self.version = version;
        self.update.marks.retain(|(kind, _)| *kind != self.kind);
        self.update.marks.push((self.kind, self.mark));
        self.fresh();
    }

    fn fresh(&mut self) {
        if self.update.fresh.is_empty() {
            self.update.fresh.push(self.kind);
        }
    }
}

fn again(lasted: Duration) -> Retry {
    if lasted >= LASTED { Retry::Now } else { Retry::Later }
}

#[cfg(test)]
mod tests;
