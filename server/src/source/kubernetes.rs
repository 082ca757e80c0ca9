//! The API of a Kubernetes cluster as a source: one list-and-watch for each kind, over kube's client.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use distributary_model::ObjectKind;
use distributary_runtime::backoff::Backoff;
use futures::FutureExt as _;
use kube::Client;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, info, warn};

pub use super::client::client;
use super::client::{self, Lines, WHOLE, escape};
use super::probe::{self, Found, probe};
use super::watch::{Failure, LASTED, Request, Retry, Watch};
use super::{Source, Update, wire};

/// Objects of one page of a list.
const PAGE: usize = 500;
/// How much longer than agreed a watch may last before it counts as dead.
const SLACK: Duration = Duration::from_secs(30);
/// How often a kind that is not served is asked for.
const RECHECK: Duration = Duration::from_secs(300);
/// A streaming list that pauses for so long is dead.
const PAUSE: Duration = Duration::from_secs(60);
/// So many chunks that are there already become one update at most.
const CHUNKS: usize = 256;

/// The API of a Kubernetes cluster.
pub struct Kubernetes {
    client: Client,
    kinds: Vec<ObjectKind>,
}

impl std::fmt::Debug for Kubernetes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kubernetes").field("kinds", &self.kinds).finish_non_exhaustive()
    }
}

impl Kubernetes {
    /// The API that a client is for; see [`client`](fn@client).
    pub fn new(client: Client) -> Self {
        Self { client, kinds: ObjectKind::ALL.to_vec() }
    }
}

impl Source for Kubernetes {
    async fn run(self, updates: mpsc::Sender<Update>) -> anyhow::Result<()> {
        let outage = Arc::new(Outage::default());
        let follow = |kind| {
            let follow = Follow {
                client: self.client.clone(),
                kind,
                watch: Watch::new(kind),
                updates: updates.clone(),
                outage: outage.clone(),
                awaiting: None,
                backoff: Backoff::new(Duration::from_millis(500), Duration::from_secs(30)),
            };
            follow.run()
        };
        let all = futures::future::select_all(self.kinds.iter().map(|&kind| Box::pin(follow(kind))));
        tokio::select! {
            // Whoever ends first has found that nobody listens any more.
            _ = all => {}
            () = updates.closed() => {}
        }
        Ok(())
    }
}

/// Nobody listens any more.
struct Closed;

/// The list-and-watch of one kind.
struct Follow {
    client: Client,
    kind: ObjectKind,
    watch: Watch,
    updates: mpsc::Sender<Update>,
    outage: Arc<Outage>,
    /// Since when the present answer tells of changes, as everything is listed.
    awaiting: Option<Instant>,
    backoff: Backoff,
}

/// How an answer ended.
enum End {
    /// By itself.
    Eof,
    /// It is to be asked again, whatever the answer was.
    Again,
}

type Probe = Pin<Box<dyn Future<Output = Result<Found, Failure>> + Send>>;

impl Follow {
    async fn run(mut self) -> Closed {
        loop {
            let Err(closed) = self.step().await else { continue };
            return closed;
        }
    }

    /// One request with its answer, and the wait after it.
    async fn step(&mut self) -> Result<(), Closed> {
        self.awaiting = None;
        let answered = match self.watch.request() {
            Request::Nothing => return self.idle().await,
            Request::Page(after) => self.page(after).await?,
            Request::Stream => {
                let query = "watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan".to_owned();
                self.stream(query).await?
            }
            Request::Watch(from) => {
                let query = format!("watch=true&resourceVersion={}", escape(&from));
                self.stream(query).await?
            }
        };
        let lasted = self.awaiting.map_or(Duration::ZERO, |since| since.elapsed());
        // A list alone resets nothing: it is what is asked for again where watches break off.
        if lasted >= LASTED {
            self.backoff.reset();
        }
        let retry = match answered {
            Ok(End::Again) => Retry::Now,
            Ok(End::Eof) => self.watch.ended(lasted),
            Err(failure) => {
                let retry = self.watch.failed(&failure, lasted);
                // What is answered by asking otherwise is no outage.
                if retry == Retry::Later {
                    self.outage.began(self.kind, &failure);
                } else {
                    debug!(kind = %self.kind, error = %failure, "asking otherwise");
                }
                retry
            }
        };
        self.send().await?;
        match retry {
            Retry::Now => {}
            Retry::Later => sleep(self.backoff.next_delay()).await,
        }
        Ok(())
    }

    /// The kind is not served. That is no reason to call the source stale, and may change.
    async fn idle(&mut self) -> Result<(), Closed> {
        self.outage.ended(self.kind);
        let until = Instant::now() + RECHECK;
        while Instant::now() < until {
            self.watch.confirmed();
            self.send().await?;
            sleep(probe::EVERY).await;
        }
        self.watch.recheck();
        Ok(())
    }

    async fn page(&mut self, after: Option<String>) -> Result<Result<End, Failure>, Closed> {
        let mut query = format!("limit={PAGE}");
        if let Some(after) = after {
            query += &format!("&continue={}", escape(&after));
        }
        let body = match client::get(&self.client, self.kind, &query, WHOLE).await {
            Ok(body) => body,
            Err(failure) => return Ok(Err(failure)),
        };
        match wire::page(self.kind, &body) {
            Ok(page) => self.watch.page(page),
            Err(what) => return Ok(Err(Failure::Transport(what))),
        }
        self.outage.ended(self.kind);
        self.send().await?;
        Ok(Ok(End::Again))
    }

    /// Reads a watch to its end, probing it where it is quiet.
    async fn stream(&mut self, query: String) -> Result<Result<End, Failure>, Closed> {
        let lasts = fastrand::u64(300..600);
        let query = format!("{query}&allowWatchBookmarks=true&timeoutSeconds={lasts}");
        let body = match client::open(&self.client, self.kind, &query, WHOLE).await {
            Ok(body) => body,
            Err(failure) => return Ok(Err(failure)),
        };
        if self.watch.is_watching() {
            self.alive();
        }
        let mut lines = Lines::new(body);
        let dead = Instant::now() + Duration::from_secs(lasts) + SLACK;
        let mut heard = Instant::now();
        let mut next_probe = heard + probe::EVERY;
        let mut probing: Option<Probe> = None;
        // What a probe has seen, and by when it has to be here.
        let mut owed: Option<(u64, Instant)> = None;
        loop {
            let watching = self.watch.is_watching();
            let patience = if watching { dead } else { dead.min(heard + PAUSE) };
            let due = owed.map_or(patience, |(_, by)| patience.min(by));
            tokio::select! {
                biased;
                more = lines.more() => {
                    match self.take_in(more, &mut lines) {
                        Ok(true) => {}
                        Ok(false) => {
                            self.send().await?;
                            return Ok(Ok(End::Eof));
                        }
                        Err(failure) => {
                            self.send().await?;
                            return Ok(Err(failure));
                        }
                    }
                    if self.watch.is_watching() {
                        self.alive();
                    }
                    self.send().await?;
                    (heard, probing) = (Instant::now(), None);
                    next_probe = heard + probe::EVERY;
                    owed = owed.filter(|&(version, _)| self.watch.mark() < version);
                }
                found = outcome(&mut probing) => {
                    probing = None;
                    next_probe = Instant::now() + probe::EVERY;
                    match found {
                        Ok(Found::Fresh) => {
                            self.outage.ended(self.kind);
                            self.watch.confirmed();
                            self.send().await?;
                        }
                        Ok(Found::Ahead(version)) => {
                            owed = owed.or(Some((version, Instant::now() + probe::REACH)));
                        }
                        Ok(Found::Rewound) => {
                            warn!(kind = %self.kind, "the API server has an older state than before; listing anew");
                            self.watch.rewound();
                            return Ok(Ok(End::Again));
                        }
                        // The watch may live on all the same; it just is not known to.
                        Err(failure) => self.outage.began(self.kind, &failure),
                    }
                }
                () = sleep_until(next_probe), if probing.is_none() && watching && self.watch.mark() != 0 => {
                    probing = Some(Box::pin(probe(self.client.clone(), self.kind, self.watch.mark())));
                }
                () = sleep_until(due) => {
                    if owed.is_some_and(|(_, by)| by <= Instant::now()) {
                        info!(kind = %self.kind, "a watch withholds changes; opening it anew");
                        return Ok(Ok(End::Again));
                    }
                    return Ok(Err(Failure::Transport("a watch died without a word".to_owned())));
                }
            }
        }
    }

    /// All lines that have come, and those that can be had without waiting. False at the end of the answer.
    fn take_in(&mut self, mut more: Result<bool, Failure>, lines: &mut Lines) -> Result<bool, Failure> {
        for chunk in 0.. {
            if !more? {
                return Ok(false);
            }
            while let Some(line) = lines.line()? {
                let text = std::str::from_utf8(&line)
                    .map_err(|_| Failure::Transport("a line of the watch is not UTF-8".to_owned()))?;
                if !text.trim().is_empty() {
                    self.watch.line(wire::line(self.kind, text).map_err(Failure::Transport)?)?;
                }
            }
            let there = if chunk < CHUNKS { lines.more().now_or_never() } else { None };
            more = match there {
                Some(there) => there,
                None => break,
            };
        }
        Ok(true)
    }

    /// Changes are awaited, and the API server answers.
    fn alive(&mut self) {
        self.awaiting.get_or_insert_with(Instant::now);
        self.outage.ended(self.kind);
    }

    async fn send(&mut self) -> Result<(), Closed> {
        match self.watch.take() {
            Some(update) => self.updates.send(update).await.map_err(|_| Closed),
            None => Ok(()),
        }
    }
}

/// That of the probe under way; without one, never.
async fn outcome(probing: &mut Option<Probe>) -> Result<Found, Failure> {
    match probing {
        Some(probe) => probe.await,
        None => std::future::pending().await,
    }
}

/// Which kinds fail, so that an API that is away is told of once, and not by every kind and attempt.
#[derive(Debug, Default)]
struct Outage(Mutex<BTreeMap<ObjectKind, String>>);

impl Outage {
    fn began(&self, kind: ObjectKind, failure: &Failure) {
        let what = failure.to_string();
        let mut failing = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = failing.values().any(|known| *known == what);
        failing.insert(kind, what);
        match known {
            true => debug!(%kind, error = %failure, "the Kubernetes API still fails"),
            false => {
                warn!(%kind, error = %failure, "the Kubernetes API fails; what is known stays, trying on")
            }
        }
    }

    fn ended(&self, kind: ObjectKind) {
        let mut failing = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if failing.remove(&kind).is_some() && failing.is_empty() {
            info!("the Kubernetes API answers again");
        }
    }
}

#[cfg(test)]
mod tests;
