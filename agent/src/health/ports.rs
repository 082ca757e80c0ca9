//! The health check ports of Services: a listener for each, and one task for all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use distributary_runtime::alarm;
use distributary_runtime::http::{Http, Room, accept, listen_only};
use futures::FutureExt;
use futures::future::{AbortHandle, Abortable, BoxFuture};
use futures::stream::{FuturesUnordered, StreamExt};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::service::service_fn;
use hyper::{Request, Response};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Health;
use super::checks::Id;
use crate::plan::{Family, NodePorts};
use crate::reconcile::NodeStates;

/// Probes of all Services together.
const CONNECTIONS: usize = 1024;
/// Before a port that cannot be listened on is tried again.
const AGAIN: Duration = Duration::from_secs(5);
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// Every health check port of the node.
pub struct Ports {
    health: Health,
    node: watch::Receiver<NodeStates>,
    http: Http,
    open: BTreeMap<Id, Open>,
    /// Ports that cannot be listened on, and were said to be.
    failed: BTreeMap<Id, u16>,
    retry_at: Option<Instant>,
    listening: BTreeMap<u64, Listening>,
    next: u64,
    accepting: FuturesUnordered<BoxFuture<'static, (u64, Option<TcpStream>)>>,
    connections: JoinSet<()>,
}

/// A Service's port.
struct Open {
    port: u16,
    listening: Vec<u64>,
}

struct Listening {
    id: Arc<Id>,
    listener: Arc<TcpListener>,
    stop: AbortHandle,
}

impl Ports {
    /// Of a node that is told of there before there are Services.
    pub fn new(health: Health, node: watch::Receiver<NodeStates>) -> Self {
        Self {
            health,
            node,
            http: Http::new(CONNECTIONS),
            open: BTreeMap::new(),
            failed: BTreeMap::new(),
            retry_at: None,
            listening: BTreeMap::new(),
            next: 0,
            accepting: FuturesUnordered::new(),
            connections: JoinSet::new(),
        }
    }

    /// Goes on for ever.
    ///
    /// # Errors
    /// Never: a port that cannot be listened on is tried again.
    pub async fn run(mut self) -> anyhow::Result<()> {
        let mut room = None;
        loop {
            tokio::select! {
                () = self.health.other_ports() => self.sync().await,
                () = alarm::at(self.retry_at) => self.sync().await,
                Some(_) = self.connections.join_next() => {}
                had = self.http.room(), if room.is_none() => room = Some(had),
                Some((number, stream)) = self.accepting.next(), if room.is_some() => {
                    self.accepted(number, stream, room.take());
                }
            }
        }
    }

    /// Closes what is not wanted any more, or elsewhere, and then opens what is.
    async fn sync(&mut self) {
        let wanted = self.health.ports();
        let mut closing = BTreeSet::new();
        self.open.retain(|id, open| {
            let stays = wanted.get(id) == Some(&open.port);
            if !stays {
                closing.extend(open.listening.iter().copied());
            }
            stays
        });
        for number in &closing {
            if let Some(listening) = self.listening.remove(number) {
                listening.stop.abort();
            }
        }
        // A port that one Service gives up may be another's by now.
        while !closing.is_empty() {
            let Some((number, stream)) = self.accepting.next().await else { break };
            closing.remove(&number);
            self.accepted(number, stream, None);
        }
        self.failed.retain(|id, port| wanted.get(id) == Some(port));
        for (id, port) in wanted {
            if !self.open.contains_key(&id) {
                self.open(id, port);
            }
        }
        let again = tokio::time::Instant::now().into_std() + AGAIN;
        self.retry_at = Some(again).filter(|_| !self.failed.is_empty());
    }

    fn open(&mut self, id: Id, port: u16) {
        let listeners = self.addresses(id.0).into_iter().map(|address| {
            let address = SocketAddr::new(address, port);
            listen_only(address).map_err(|e| (address, e))
        });
        // All of them or none (spec/kube-proxy.md §5.1).
        match listeners.collect::<Result<Vec<_>, _>>() {
            Ok(listeners) => {
                self.failed.remove(&id);
                let shared = Arc::new(id.clone());
                let listening =
                    listeners.into_iter().map(|listener| self.listen(shared.clone(), listener)).collect();
                self.open.insert(id, Open { port, listening });
            }
            Err((address, e)) => {
                if self.failed.insert(id.clone(), port).is_none() {
                    let (service, retry_s) = (&id.1, AGAIN.as_secs());
                    tracing::warn!(%service, %address, error = %e, retry_s, "the health check port cannot be listened on");
                }
            }
        }
    }

    /// Where a port of that family is opened now; what is open stays where it is (spec/kube-proxy.md §5.1).
    fn addresses(&self, family: Family) -> Vec<IpAddr> {
        let node = self.node.borrow();
        match (node.get(&family).map(|state| &state.node_ports), family) {
            (Some(NodePorts::At(addresses)), _) => addresses.iter().copied().collect(),
            (_, Family::V4) => vec![Ipv4Addr::UNSPECIFIED.into()],
            (_, Family::V6) => vec![Ipv6Addr::UNSPECIFIED.into()],
        }
    }

    fn listen(&mut self, id: Arc<Id>, listener: TcpListener) -> u64 {
        let (number, listener) = (self.next, Arc::new(listener));
        self.next += 1;
        let stop = self.accept_from(number, &listener);
        self.listening.insert(number, Listening { id, listener, stop });
        number
    }

    fn accept_from(&mut self, number: u64, listener: &Arc<TcpListener>) -> AbortHandle {
        let (stop, stopped) = AbortHandle::new_pair();
        let listener = listener.clone();
        let accepted = Abortable::new(async move { accept(&listener).await }, stopped);
        self.accepting.push(accepted.map(move |stream| (number, stream.ok())).boxed());
        stop
    }

    /// Of a listener that is closed by now nothing is answered.
    fn accepted(&mut self, number: u64, stream: Option<TcpStream>, room: Option<Room>) {
        let Some(listening) = self.listening.get(&number) else { return };
        let (id, listener) = (listening.id.clone(), listening.listener.clone());
        let stop = self.accept_from(number, &listener);
        if let Some(listening) = self.listening.get_mut(&number) {
            listening.stop = stop;
        }
        if let Some(stream) = stream {
            let health = self.health.clone();
            let service = service_fn(move |_: Request<Incoming>| {
                std::future::ready(Ok::<_, Infallible>(answer(&health, &id)))
            });
            self.connections.spawn(self.http.clone().connection(stream, service, room.unwrap_or_default()));
        }
    }
}

impl std::fmt::Debug for Ports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ports").field("open", &self.open.len()).field("failed", &self.failed).finish()
    }
}

/// Whatever is asked. A Service that has lost its port meanwhile has no endpoints.
fn answer(health: &Health, id: &Id) -> Response<http_body_util::Full<Bytes>> {
    let (answer, local) = health.check(id);
    let mut response = Response::new(Bytes::from(answer.body).into());
    *response.status_mut() = hyper::StatusCode::from_u16(answer.status).unwrap_or_default();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(WEIGHT, HeaderValue::from(local));
    response
}
