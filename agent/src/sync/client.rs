//! Keeps a stream open to one of the servers: connects, feeds the session, hands on what is to be programmed, sends
//! acks, and goes to the next server when this one fails.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use distributary_model::limits::FRAME_BYTES;
use distributary_model::{Cursor, Name};
use distributary_proto::v1 as pb;
use distributary_runtime::alarm;
use distributary_runtime::backoff::Backoff;
use pb::distribution_client::DistributionClient;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

use super::ack::{Acks, Due, Programmed, rejections};
use super::dial::{Dialer, Server};
use super::mailbox::Mailbox;
use super::session::{Heard, Session};
use crate::metrics::Metrics;

/// Three heartbeats, at their slowest.
const SILENCE: Duration = Duration::from_secs(18);
/// After all servers were behind what this agent holds for so long, an older state is taken.
const BEHIND: Duration = Duration::from_secs(30);
/// A stream that lived so long was a good one: the next failure is a new one.
const HEALTHY: Duration = Duration::from_secs(10);

/// Keeps the stream.
#[derive(Debug)]
pub struct Client {
    servers: Vec<String>,
    dialer: Dialer,
    cluster: Name,
    session: Session,
    mailbox: Arc<Mailbox>,
    programmed: watch::Receiver<Programmed>,
    metrics: Metrics,
    /// Since when every server that was found is behind what is held; `None`: it is not so.
    behind_since: Option<Instant>,
}

impl Client {
    /// Of an agent that holds nothing yet. `servers` are HOST:PORT each, tried in turn; batches go to the mailbox, and
    /// `programmed` tells what of them is in the kernel.
    pub fn new(
        servers: Vec<String>,
        dialer: Dialer,
        cluster: Name,
        node: Name,
        mailbox: Arc<Mailbox>,
        programmed: watch::Receiver<Programmed>,
        metrics: Metrics,
    ) -> Self {
        let session = Session::new(cluster.clone(), node);
        Self { servers, dialer, cluster, session, mailbox, programmed, metrics, behind_since: None }
    }

    /// Goes on for ever.
    ///
    /// # Errors
    /// Never: without a server the rules stay, and it is tried again.
    pub async fn run(mut self) -> anyhow::Result<()> {
        let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(60));
        let mut acks = Acks::default();
        for turn in 0_usize.. {
            let server = self.servers[turn % self.servers.len()].clone();
            let began = Instant::now();
            let accept_older = self.behind_since.is_some_and(|since| since.elapsed() >= BEHIND);
            acks.next_stream();
            let ended = self.stream(&server, accept_older, &mut acks).await;
            self.metrics.connected.set(0);
            let delay = match ended {
                Ok(Throttled { retry_after, reason, behind }) => {
                    tracing::info!(server, reason, "the server asks to wait");
                    if behind {
                        self.behind_since.get_or_insert(began);
                    }
                    retry_after.mul_f64(1.0 + fastrand::f64())
                }
                Err(e) => {
                    if began.elapsed() > HEALTHY {
                        backoff.reset();
                    }
                    let delay = backoff.next_delay();
                    let wait_ms = delay.as_millis();
                    tracing::warn!(server, error = %format!("{e:#}"), wait_ms, "no stream; the rules stay as they are");
                    delay
                }
            };
            tokio::time::sleep(delay).await;
        }
        Ok(())
    }

    async fn stream(
        &mut self,
        server: &str,
        accept_older: bool,
        acks: &mut Acks,
    ) -> anyhow::Result<Throttled> {
        let channel = self.dialer.dial(&Server::new(server)).await?;
        let mut client = DistributionClient::new(channel).max_decoding_message_size(FRAME_BYTES + (64 << 10));

        let parked = rejections(&self.programmed.borrow().rejected, &self.cluster);
        let (said, outbound) = mpsc::channel(4);
        said.send(self.session.hello(parked, accept_older)).await?;
        let answer = tokio::time::timeout(SILENCE, client.subscribe(ReceiverStream::new(outbound)));
        let mut inbound = answer.await.context("no answer")?.map_err(clear)?.into_inner();

        let mut stream = None::<Cursor>;
        let mut ack_at = None;
        let mut heard_at = tokio::time::Instant::now();
        loop {
            tokio::select! {
                message = tokio::time::timeout_at(heard_at + SILENCE, inbound.message()) => {
                    heard_at = tokio::time::Instant::now();
                    let message = message.context("nothing heard for three heartbeats")?.map_err(clear)?;
                    let Some(message) = message else { bail!("the server ended the stream") };
                    let was_live = self.session.is_live();
                    let received = Instant::now();
                    match self.session.on(message, received)? {
                        Heard::Nothing => {}
                        Heard::Staleness(staleness) => {
                            self.metrics.staleness.set(staleness.as_secs_f64());
                        }
                        Heard::Throttle { retry_after, reason, behind } => {
                            return Ok(Throttled { retry_after, reason, behind });
                        }
                        Heard::Batch(batch) => {
                            stream = batch.cursor.or(stream);
                            self.mailbox.put(batch, received);
                        }
                    }
                    self.metrics.heard(self.session.is_live());
                    if self.session.is_live() && !was_live {
                        self.behind_since = None;
                        let (services, through) = (self.session.table().len(), stream.map(|cursor| cursor.through.0));
                        tracing::info!(server, services, revision = through, "in step with the server");
                    }
                }
                changed = self.programmed.changed() => changed.context("the reconciler is gone")?,
                () = alarm::at(ack_at) => {}
            }
            ack_at = None;
            let now = self.programmed.borrow_and_update().clone();
            match acks.due(&now, stream, &self.cluster, Instant::now()) {
                Due::Nothing => {}
                Due::At(at) => ack_at = Some(at),
                Due::Now(ack) => said.send(ack).await.context("the server ended the stream")?,
            }
        }
    }
}

/// The server asked to come back.
#[derive(Debug)]
struct Throttled {
    retry_after: Duration,
    reason: String,
    behind: bool,
}

/// A status without the parts that only a debugger wants.
fn clear(status: tonic::Status) -> anyhow::Error {
    match status.message() {
        "" => anyhow::anyhow!("the stream broke ({:?})", status.code()),
        message => anyhow::anyhow!("{message}"),
    }
}
