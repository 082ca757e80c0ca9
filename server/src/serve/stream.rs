//! Moves the bytes of one stream: everything that is decided is decided by its session.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use distributary_model::Name;
use distributary_proto::v1::{AgentMessage, agent_message};
use distributary_runtime::alarm;
use distributary_runtime::secret::Secret;
use futures::{FutureExt, StreamExt};
use http::{HeaderMap, HeaderValue};
use http_body::Frame;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tonic::Code;
use tonic::codec::Streaming;

use super::Shared;
use super::idle::Open;
use super::standing::{Next as Stands, Standing};
use crate::auth::{Auth, Proof};
use crate::fleet::{Acked, StreamId};
use crate::metrics::Mode;
use crate::session::{Began, Ended, Heard, Session};

/// One agent's stream.
pub(super) struct Stream {
    inbound: Streaming<AgentMessage>,
    standing: Standing,
    auth: Auth,
    _stream: Open,
    /// A newer token that the agent has sent.
    renewed: Option<Secret>,
    shared: Arc<Shared>,
    shutdown: CancellationToken,
    news: watch::Receiver<()>,
    /// While it waits for a snapshot.
    built: Option<watch::Receiver<()>>,
    session: Session,
    _open: TaskTrackerToken,
    own: Name,
    /// The agent, when it has said who it is.
    agent: Option<(Name, StreamId)>,
    finished: bool,
}

/// What a stream does next.
enum Next {
    Send(Bytes),
    End(Code, String),
}

impl Stream {
    pub(super) fn new(
        inbound: Streaming<AgentMessage>,
        proof: Proof,
        auth: Auth,
        open: Open,
        shared: Arc<Shared>,
        shutdown: CancellationToken,
    ) -> Self {
        shared.metrics.agents.inc();
        let own = shared.journal().own().clone();
        let now = Instant::now();
        Self {
            _open: shared.streams.token(),
            inbound,
            standing: Standing::new(proof),
            auth,
            _stream: open,
            renewed: None,
            news: shared.news.subscribe(),
            built: None,
            session: Session::new(now, fastrand::f64()).ageing(shared.age, now),
            own,
            shared,
            shutdown,
            agent: None,
            finished: false,
        }
    }

    /// The next part of the response body.
    pub(super) async fn next(mut self) -> Option<(Result<Frame<Bytes>, Infallible>, Self)> {
        if self.finished {
            return None;
        }
        let frame = match self.decide().await {
            Next::Send(bytes) => {
                self.shared.metrics.sent_bytes.inc_by(bytes.len() as u64);
                Frame::data(bytes)
            }
            Next::End(code, reason) => {
                self.finished = true;
                Frame::trailers(trailers(code, &reason))
            }
        };
        Some((Ok(frame), self))
    }

    async fn decide(&mut self) -> Next {
        // It waited for a change.
        let mut woken = false;
        loop {
            // What the agent says is heard also while there is much to tell it.
            while let Some(heard) = self.inbound.next().now_or_never() {
                if let Some(end) = self.hear(heard) {
                    return end;
                }
            }
            if let Some(token) = self.renewed.take() {
                self.renew(token).await;
            }
            let stands = self.standing.next(&self.shared.journal(), Instant::now());
            match stands {
                Stands::Stands => {}
                Stands::Drain(drain) => return Next::Send(drain),
                Stands::Falls(code, reason) => return self.refuse(code, reason),
            }
            self.news.mark_unchanged();
            let now = Instant::now();
            let pulled = self.session.next(&self.shared.journal(), now);
            match pulled {
                Ok(Some((bytes, began))) => {
                    if woken {
                        self.shared.took(now);
                    }
                    if let Some(revision) = self.session.newly_told() {
                        self.shared.fleet().told(revision, now);
                    }
                    self.count(began);
                    return Next::Send(bytes);
                }
                Ok(None) if self.session.is_over() => {
                    self.shared.metrics.throttled.inc();
                    return Next::End(Code::Unavailable, "try again".into());
                }
                Ok(None) if self.session.awaits_snapshot() && self.built.is_none() => {
                    // It may have been built in between.
                    self.built = Some(self.shared.built.subscribe());
                    self.shared.wanted.notify_one();
                    continue;
                }
                Ok(None) => {}
                Err(ended) => return self.end(&ended),
            }
            tokio::select! {
                () = self.shutdown.cancelled() => {
                    return Next::End(Code::Unavailable, "this server is shutting down".into());
                }
                heard = self.inbound.next() => {
                    if let Some(end) = self.hear(heard) {
                        return end;
                    }
                }
                _ = self.news.changed() => woken = true,
                () = built(&mut self.built) => self.built = None,
                () = alarm::at(self.session.wake_at()) => {}
                () = alarm::at(self.standing.wake_at()) => {}
            }
        }
    }

    fn hear(&mut self, heard: Option<Result<AgentMessage, tonic::Status>>) -> Option<Next> {
        let message = match heard {
            Some(Ok(message)) => message,
            Some(Err(status)) => {
                tracing::info!(node = self.node(), error = status.message(), "stream broke");
                return Some(Next::End(status.code(), status.message().to_owned()));
            }
            None => return Some(Next::End(Code::Ok, String::new())),
        };
        if let Some(agent_message::Message::Credential(credential)) = message.message {
            self.renewed = Some(Secret::new(credential.token));
            return None;
        }
        match self.session.on(message, &self.own, Instant::now()) {
            Ok(Heard::Hello { node }) => {
                if let Err(reason) = self.standing.speaks_for(&node) {
                    return Some(self.refuse(Code::PermissionDenied, reason));
                }
                tracing::info!(node = &*node, "agent connected");
                let stream = self.shared.fleet().connected(&node, Instant::now());
                self.agent = Some((node, stream));
            }
            Ok(Heard::Acked { through, programming, rejected, events }) => {
                let metrics = &self.shared.metrics;
                metrics.acks.inc();
                if !rejected.is_empty() {
                    metrics.rejections.inc();
                }
                for (service, error) in &rejected {
                    tracing::warn!(
                        node = self.node(),
                        revision = through.0,
                        service,
                        error,
                        "rejected by the kernel"
                    );
                }
                for event in events {
                    tracing::warn!(node = self.node(), event, "said by the node");
                }
                if let Some((node, stream)) = &self.agent {
                    let ack = Acked { stream: *stream, through, programming, refused: rejected };
                    self.shared.fleet().acked(node, ack, Instant::now());
                }
            }
            Ok(Heard::Nothing) => {}
            Err(ended) => return Some(self.end(&ended)),
        }
        None
    }

    /// Takes a newer token into account. One that is no good changes nothing: the last one runs out.
    async fn renew(&mut self, token: Secret) {
        let identity = self.auth.renewed(token).await;
        match identity.and_then(|identity| self.standing.renew(identity)) {
            Ok(()) => tracing::debug!(node = self.node(), "token renewed"),
            Err(reason) => tracing::warn!(node = self.node(), reason, "a renewed token is no good"),
        }
    }

    fn refuse(&self, code: Code, reason: String) -> Next {
        self.shared.metrics.refused.inc();
        tracing::warn!(node = self.node(), reason, "agent refused");
        Next::End(code, super::refusal(&reason))
    }

    fn end(&self, ended: &Ended) -> Next {
        tracing::warn!(node = self.node(), error = %ended, "stream ended");
        let code = match ended {
            Ended::Malformed(_) => Code::InvalidArgument,
            Ended::Refused(_) => Code::FailedPrecondition,
            Ended::Throttled(_) => Code::Unavailable,
        };
        Next::End(code, ended.to_string())
    }

    fn count(&mut self, began: Option<Began>) {
        let mode = match began {
            Some(Began::Resume) => "resume",
            Some(Began::Repair) => "repair",
            Some(Began::Snapshot) => {
                // There may be reason for a newer one.
                self.shared.wanted.notify_one();
                self.built = None;
                "snapshot"
            }
            None => return,
        };
        tracing::info!(node = self.node(), mode, "stream begins");
        self.shared.metrics.begun.get_or_create(&Mode { mode }).inc();
    }

    fn node(&self) -> &str {
        self.agent.as_ref().map_or("unknown", |(node, _)| node)
    }
}

/// Until a snapshot was built; for ever where none is waited for.
async fn built(waiting: &mut Option<watch::Receiver<()>>) {
    match waiting {
        Some(built) => _ = built.changed().await,
        None => std::future::pending().await,
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.shared.metrics.agents.dec();
        if let Some((node, stream)) = &self.agent {
            self.shared.fleet().disconnected(node, *stream);
            tracing::info!(node = &**node, "agent disconnected");
        }
    }
}

pub(super) fn trailers(code: Code, reason: &str) -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(2);
    trailers.insert("grpc-status", HeaderValue::from(code as i32));
    // Of gRPC's percent-encoding only what our own messages need: printable ASCII without the percent sign.
    let plain: String =
        reason.chars().map(|c| if c.is_ascii_graphic() && c != '%' || c == ' ' { c } else { '?' }).collect();
    if let Ok(message) = HeaderValue::from_str(&plain) {
        trailers.insert("grpc-message", message);
    }
    trailers
}
