//! Serves the stream: connections, HTTP/2, and the one method of the contract.
//!
//! The response body is shared, already framed bytes, so the method is mounted by hand: tonic's encoder would copy
//! every message once per agent.

mod bucket;
mod gate;
mod idle;
mod room;
mod snapshots;
mod socket;
mod standing;
mod stream;

use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use distributary_model::limits;
use distributary_proto::v1::AgentMessage;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Code;
use tonic::codec::{BufferSettings, Streaming};

use crate::auth::Proof;
use crate::fleet::Fleet;
use crate::journal::Journal;
use crate::metrics::Metrics;
pub use gate::Gate;
use gate::Passed;
use idle::{Open, Streams};
use stream::Stream;

/// Path of `Distribution.Subscribe`.
const SUBSCRIBE: &str = "/distributary.v1.Distribution/Subscribe";
/// How often a peer that says nothing is asked whether it is there.
const PING: Duration = Duration::from_secs(20);
/// Connections that make no progress for this long are dead.
const STUCK: Duration = Duration::from_secs(60);
/// What an agent may send before it is read, in bytes.
const WINDOW: u32 = 64 << 10;
/// The next frame is pulled when the last one has gone to the socket: whoever does not read pins one, and h2 keeps no
/// queue for him, whose slots (of 312 bytes) it would never give back.
const IN_FLIGHT: usize = 1;
/// Agents say little, so that a buffer of the usual 8 KiB each would be most of what they cost.
const HEARING: usize = 512;
/// How long streams get to end after a shutdown.
const GRACE: Duration = Duration::from_secs(5);

/// What streams read, and what wakes them.
#[derive(Debug)]
pub struct Shared {
    journal: RwLock<Journal>,
    /// Changes with every commit; the value has no meaning.
    news: watch::Sender<()>,
    /// What is counted.
    pub metrics: Metrics,
    /// How old a stream becomes before its agent is asked to choose anew.
    age: Option<Duration>,
    /// The streams that are open.
    streams: TaskTracker,
    /// Microseconds from the start until an agent that waited has taken a change up; the newest; 0: none has.
    taken: AtomicU64,
    started: Instant,
    /// A snapshot is wanted.
    wanted: Notify,
    /// Changes when one was built.
    built: watch::Sender<()>,
    fleet: Mutex<Fleet>,
}

impl Shared {
    /// Around a journal.
    pub fn new(journal: Journal, metrics: Metrics, age: Option<Duration>) -> Arc<Self> {
        Arc::new(Self {
            journal: RwLock::new(journal),
            news: watch::Sender::new(()),
            metrics,
            age,
            streams: TaskTracker::new(),
            taken: AtomicU64::new(0),
            started: Instant::now(),
            wanted: Notify::new(),
            built: watch::Sender::new(()),
            fleet: Mutex::default(),
        })
    }

    /// When an agent that waited for a change has taken it up last.
    pub fn taken(&self) -> Option<Instant> {
        let micros = self.taken.load(Ordering::Relaxed);
        (micros > 0).then(|| self.started + Duration::from_micros(micros))
    }

    /// An agent that waited for a change has taken it up.
    fn took(&self, at: Instant) {
        let micros = at.saturating_duration_since(self.started).as_micros();
        self.taken.fetch_max(u64::try_from(micros).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Asks every agent to go to another replica, where there is one, and waits until they have gone, but no longer than that.
    pub async fn leave(&self, within: Duration) {
        let others = self.change(|journal| {
            let others = journal.leave(Instant::now(), within);
            (others, others)
        });
        if !others || self.streams.is_empty() {
            return;
        }
        let (agents, seconds) = (self.streams.len(), within.as_secs_f64());
        tracing::info!(agents, seconds, "asking the agents to go to other replicas");
        self.streams.close();
        if tokio::time::timeout(within, self.streams.wait()).await.is_err() {
            tracing::warn!(agents = self.streams.len(), seconds, "not all agents have gone in time");
        }
    }

    /// To read the journal, for a moment.
    pub fn journal(&self) -> RwLockReadGuard<'_, Journal> {
        self.journal.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the agents have, for a moment. Never to be taken before the journal.
    pub fn fleet(&self) -> MutexGuard<'_, Fleet> {
        self.fleet.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the journal, then wakes the streams if there is something for them. For the one writer.
    pub fn change<T>(&self, change: impl FnOnce(&mut Journal) -> (T, bool)) -> T {
        let (outcome, news) = change(&mut self.journal.write().unwrap_or_else(PoisonError::into_inner));
        if news {
            self.news.send_replace(());
        }
        outcome
    }
}

/// Accepts connections until shutdown, then ends their streams.
///
/// # Errors
/// When the listener fails for good.
pub async fn serve(
    listener: TcpListener,
    gate: Gate,
    shared: Arc<Shared>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let connections = TaskTracker::new();
    let mut building = std::pin::pin!(snapshots::build(shared.clone(), shutdown.clone()));
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            ended = &mut building => {
                ended?;
                break;
            }
            accepted = async { gate.turn().await; listener.accept().await } => accepted,
        };
        match accepted {
            Ok((socket, peer)) => {
                let place = match gate.room(peer.ip()) {
                    Ok(place) => place,
                    Err(reason) => {
                        gate.refused(peer, &reason, &shared.metrics);
                        continue;
                    }
                };
                let (gate, shared, shutdown) = (gate.clone(), shared.clone(), shutdown.clone());
                connections.spawn(async move {
                    let _place = place;
                    let passed = tokio::select! {
                        () = shutdown.cancelled() => return,
                        passed = gate.pass(socket) => passed,
                    };
                    match passed {
                        Ok(Passed::Clear(socket)) => {
                            connection(socket, Ok(Proof::Nothing), gate, shared, shutdown).await;
                        }
                        Ok(Passed::Secure(stream, certified)) => {
                            connection(stream, certified, gate, shared, shutdown).await;
                        }
                        Err(reason) => gate.refused(peer, &reason, &shared.metrics),
                    }
                });
            }
            // Of one connection, or for want of descriptors: the next may succeed.
            Err(e) => {
                tracing::warn!(error = %e, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    connections.close();
    if tokio::time::timeout(GRACE, connections.wait()).await.is_err() {
        tracing::warn!(connections = connections.len(), "connections did not end in time");
    }
    Ok(())
}

async fn connection<S>(
    socket: S,
    certified: Result<Proof, String>,
    gate: Gate,
    shared: Arc<Shared>,
    shutdown: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let stopping = shutdown.clone();
    let (limits, streams) = (gate.limits.clone(), Streams::none());
    let opened = streams.clone();
    let service = hyper::service::service_fn(move |request| {
        let response = respond(
            request,
            certified.clone(),
            gate.clone(),
            opened.open(),
            shared.clone(),
            stopping.clone(),
        );
        async move { Ok::<_, Infallible>(response.await) }
    });
    let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.max_streams_per_connection)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_send_buf_size(IN_FLIGHT)
        .keep_alive_interval(PING)
        .keep_alive_timeout(STUCK)
        .serve_connection(TokioIo::new(socket), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
        // Who sends no request, or never the whole of one, would be here for ever.
        () = streams.idle_for(limits.idle_timeout) => {
            tracing::debug!("a connection was idle");
            return;
        }
    };
    if let Err(e) = ended {
        tracing::debug!(error = %e, "a connection ended");
    }
}

type Body = UnsyncBoxBody<Bytes, Infallible>;

async fn respond(
    request: Request<Incoming>,
    certified: Result<Proof, String>,
    gate: Gate,
    open: Open,
    shared: Arc<Shared>,
    shutdown: CancellationToken,
) -> Response<Body> {
    let grpc = request
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    if request.method() != Method::POST || !grpc {
        return plain(Response::builder().status(StatusCode::UNSUPPORTED_MEDIA_TYPE));
    }
    let response = Response::builder().header(header::CONTENT_TYPE, "application/grpc");
    if request.uri().path() != SUBSCRIBE {
        return plain(response.header("grpc-status", "12").header("grpc-message", "no such method"));
    }
    let shown = request.headers().get(header::AUTHORIZATION).cloned();
    let bearer = shown.as_ref().and_then(|value| value.to_str().ok());
    let proof = match gate.auth.prove(certified, bearer).await {
        Ok(proof) => proof,
        Err(reason) => {
            gate.unproven(&reason, &shared.metrics);
            let mut refused = plain(response);
            refused.headers_mut().extend(stream::trailers(Code::Unauthenticated, &refusal(&reason)));
            return refused;
        }
    };
    let buffers = BufferSettings::new(HEARING, HEARING);
    let decoder = tonic_prost::ProstCodec::<AgentMessage, AgentMessage>::raw_decoder(buffers);
    let inbound =
        Streaming::new_request(decoder, request.into_body(), None, Some(limits::AGENT_MESSAGE_BYTES));
    let outbound = Stream::new(inbound, proof, gate.auth, open, shared, shutdown);
    let body = StreamBody::new(futures::stream::unfold(outbound, Stream::next)).boxed_unsync();
    response.body(body).unwrap_or_else(|_| Response::new(empty()))
}

/// What an agent is told of why it is refused.
fn refusal(reason: &str) -> String {
    format!("this agent is refused: {reason}")
}

fn plain(response: http::response::Builder) -> Response<Body> {
    response.body(empty()).unwrap_or_else(|_| Response::new(empty()))
}

fn empty() -> Body {
    Empty::new().boxed_unsync()
}
