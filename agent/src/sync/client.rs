//! Does what the [driver](super::driver) orders: connects, moves messages, hands on what is to be programmed.

use std::collections::BTreeMap;
use std::future::{pending, poll_fn};
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use anyhow::Context;
use distributary_proto::v1 as pb;
use distributary_runtime::alarm;
use distributary_runtime::secret::Secret;
use futures::future::BoxFuture;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::ack::Programmed;
use super::credential::TokenFile;
use super::dial::{Dialer, Server};
use super::driver::{Driver, LinkId, Note, Order, Settings, Status};
use super::link::{Link, Told};
use super::mailbox::Mailbox;
use super::resolve::resolve;
use crate::checkpoint::Checkpoint;
use crate::metrics::Metrics;

/// Says whether the kernel holds rules of ours; `None`: it cannot be seen.
pub type Look = Box<dyn FnMut() -> BoxFuture<'static, Option<bool>> + Send>;

/// Keeps the stream.
pub struct Client {
    servers: Vec<String>,
    dialer: Dialer,
    driver: Driver,
    links: BTreeMap<LinkId, Link>,
    mailbox: Arc<Mailbox>,
    programmed: watch::Receiver<Programmed>,
    metrics: Metrics,
    status: watch::Sender<Status>,
    released: mpsc::Receiver<()>,
    release: mpsc::Sender<()>,
    saves: Option<mpsc::Sender<Box<Checkpoint>>>,
    look: Option<Look>,
    looking: Option<BoxFuture<'static, Option<bool>>>,
    shutdown: CancellationToken,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("driver", &self.driver).finish_non_exhaustive()
    }
}

impl Client {
    /// Of an agent that holds nothing yet. `servers` are HOST:PORT each; batches go to the mailbox, and `programmed` tells
    /// what of them is in the kernel.
    pub fn new(
        servers: Vec<String>,
        dialer: Dialer,
        settings: Settings,
        mailbox: Arc<Mailbox>,
        programmed: watch::Receiver<Programmed>,
        metrics: Metrics,
    ) -> Self {
        let (release, released) = mpsc::channel(1);
        Self {
            servers,
            dialer,
            driver: Driver::new(settings, None, now()),
            links: BTreeMap::new(),
            mailbox,
            programmed,
            metrics,
            status: watch::Sender::new(Status::default()),
            released,
            release,
            saves: None,
            look: None,
            looking: None,
            shutdown: CancellationToken::new(),
        }
    }

    /// Goes on from what an earlier process saved, and saves what it holds. `look` says whether the kernel has rules.
    #[must_use]
    pub fn saving(
        self,
        settings: Settings,
        saved: Option<Checkpoint>,
        saves: mpsc::Sender<Box<Checkpoint>>,
        look: Look,
    ) -> Self {
        let settings = Settings { saves: true, ..settings };
        let driver = Driver::new(settings, saved, now());
        Self { driver, saves: Some(saves), look: Some(look), ..self }
    }

    /// Ends with that, after it has saved what it holds.
    #[must_use]
    pub fn until(self, shutdown: CancellationToken) -> Self {
        Self { shutdown, ..self }
    }

    /// How it stands, from now on.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// Who sends there lets held removals go.
    pub fn release(&self) -> mpsc::Sender<()> {
        self.release.clone()
    }

    /// Goes on until shutdown.
    ///
    /// # Errors
    /// When nobody takes what is to be programmed any more. Without a server the rules stay, and it is tried again.
    pub async fn run(mut self) -> anyhow::Result<()> {
        let (tell, mut told) = watch::channel(Vec::<Server>::new());
        let (renew, mut renewed) = watch::channel(None);
        let mut renewing = std::pin::pin!(follow(self.dialer.token().cloned(), renew));
        let mut resolving = std::pin::pin!(resolve(std::mem::take(&mut self.servers), tell));
        loop {
            while let Some(order) = self.driver.next_order() {
                self.obey(order);
            }
            self.show();
            tokio::select! {
                () = self.shutdown.cancelled() => break,
                (link, told) = heard(&mut self.links, &self.driver) => match told {
                    Told::Connected => self.driver.connected(link, now()),
                    Told::Message(message, received) => {
                        self.driver.heard(link, *message, received);
                        self.metrics.heard();
                    }
                    Told::Lost(error) => self.driver.lost(link, error, now()),
                },
                changed = self.programmed.changed() => {
                    changed.context("the reconciler is gone")?;
                    let programmed = self.programmed.borrow_and_update().clone();
                    self.driver.programmed(programmed, now());
                }
                Ok(()) = told.changed() => {
                    let servers = told.borrow_and_update().clone();
                    self.driver.servers(servers, now());
                }
                Some(()) = self.released.recv() => self.driver.release(now()),
                holds = answer(&mut self.looking) => {
                    self.looking = None;
                    self.driver.kernel(holds, now());
                }
                () = alarm::at(self.driver.wake_at()) => self.driver.tick(now()),
                Ok(()) = renewed.changed() => {
                    let token = renewed.borrow_and_update().clone();
                    self.show_token(token);
                }
                () = &mut resolving => {}
                () = &mut renewing => {}
            }
        }
        if let (Some(saves), Some(checkpoint)) = (self.saves.take(), self.driver.last_checkpoint(now())) {
            let _ = saves.send(checkpoint).await;
        }
        Ok(())
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Dial(id, server) => {
                self.links.insert(id, Link::dial(self.dialer.clone(), server));
            }
            Order::Say(id, message) => {
                if self.links.get(&id).is_some_and(|link| !link.say(message)) {
                    self.driver.lost(id, "the server reads nothing".to_owned(), now());
                }
            }
            Order::Close(id) => _ = self.links.remove(&id),
            Order::Program(batch, received) => self.mailbox.put(batch, received),
            Order::LookAtKernel => self.looking = self.look.as_mut().map(|look| look()),
            Order::Save(checkpoint) => {
                // One that is still being written is followed by a later one.
                if self.saves.as_ref().is_some_and(|saves| saves.try_send(checkpoint).is_err()) {
                    self.driver.unsaved(now());
                }
            }
            Order::Note(note) => log(&note),
        }
    }

    /// Those who are connected have seen an older one. Who is not yet will be shown what is there then.
    fn show_token(&mut self, token: Option<Secret>) {
        let Some(token) = token else { return };
        for (id, link) in &self.links {
            let credential = pb::Credential { token: token.reveal().to_owned() };
            let message = pb::agent_message::Message::Credential(credential);
            if !link.say(pb::AgentMessage { message: Some(message) }) {
                self.driver.lost(*id, "the server reads nothing".to_owned(), now());
            }
        }
    }

    /// Tells people how it stands.
    fn show(&self) {
        let status = self.driver.status();
        self.metrics.connected.set(status.live.into());
        self.metrics.staleness.set(status.staleness.as_secs_f64());
        let held = |held: usize| i64::try_from(held).unwrap_or(i64::MAX);
        self.metrics.held_services.set(held(status.withheld.0));
        self.metrics.held_endpoints.set(held(status.withheld.1));
        self.status.send_if_modified(|shown| {
            let news = *shown != status;
            *shown = status;
            news
        });
    }
}

/// The next thing that happens to a connection that is to be read.
async fn heard(links: &mut BTreeMap<LinkId, Link>, driver: &Driver) -> (LinkId, Told) {
    poll_fn(|cx| {
        for (id, link) in links.iter_mut().filter(|(id, _)| driver.reads(**id)) {
            if let Poll::Ready(told) = link.told.poll_recv(cx) {
                return Poll::Ready((*id, told.unwrap_or_else(|| Told::Lost("the stream ended".to_owned()))));
            }
        }
        Poll::Pending
    })
    .await
}

async fn follow(token: Option<TokenFile>, tell: watch::Sender<Option<Secret>>) {
    match token {
        Some(token) => token.follow(tell).await,
        None => pending().await,
    }
}

async fn answer(looking: &mut Option<BoxFuture<'static, Option<bool>>>) -> Option<bool> {
    match looking {
        Some(looking) => looking.await,
        None => pending().await,
    }
}

fn log(note: &Note) {
    match note {
        Note::InStep { server, services, revision } => {
            tracing::info!(%server, services, revision, "in step with the server");
        }
        Note::Lost { server, error, wait } => {
            let wait_ms = wait.as_millis();
            tracing::warn!(%server, error, wait_ms, "no stream; the rules stay as they are");
        }
        Note::Withheld { server, services, endpoints, patience } => {
            let seconds = patience.as_secs();
            tracing::error!(%server, services, endpoints, seconds, "{note}");
        }
        Note::Throttled { server, .. } => tracing::info!(%server, "{note}"),
        Note::Moving { to, .. } | Note::Stayed { to, .. } => tracing::info!(%to, "{note}"),
        Note::FromCheckpoint { services } => tracing::warn!(services, "{note}"),
        Note::Repairing { .. } => tracing::warn!("{note}"),
        Note::Released | Note::KernelIsNewer => tracing::info!("{note}"),
    }
}

/// As tests may set it.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
