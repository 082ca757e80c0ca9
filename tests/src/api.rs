//! Lists and watches of what a test puts in, as the Kubernetes API gives them: for a kube-proxy that is to see objects
//! that no apiserver would take (an address with leading zeros, the node port of a Service that is of type ClusterIP
//! again). Selectors are applied as kube-proxy asks for them.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use axum::Router;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream::{self, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;

use crate::netns::Namespace;

/// Where it listens, in its namespace.
pub const ADDRESS: &str = "127.0.0.1:6443";

/// A running one, stopped on drop.
#[derive(Debug)]
pub struct Api {
    shared: Arc<Shared>,
    _runtime: Runtime,
}

#[derive(Debug)]
struct Shared {
    held: Mutex<Held>,
    version: watch::Sender<usize>,
}

/// Kind, namespace and name.
type Id = (String, String, String);

#[derive(Debug, Default)]
struct Held {
    files: BTreeMap<String, BTreeMap<Id, Value>>,
    /// Every change there ever was. Its place, from 1, is its resource version.
    log: Vec<(String, &'static str, Value)>,
    seen: BTreeMap<Id, Value>,
}

impl Api {
    /// Starts one on [`ADDRESS`] of a namespace.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn start_in(namespace: &Namespace) -> Result<Self> {
        let address: SocketAddr = ADDRESS.parse()?;
        let listener = namespace.within(|| std::net::TcpListener::bind(address))?;
        listener.set_nonblocking(true)?;
        let shared = Arc::new(Shared { held: Mutex::new(Held::default()), version: watch::Sender::new(0) });
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let router = Router::new().fallback(serve).with_state(Arc::clone(&shared));
        let listener = runtime.block_on(async { TcpListener::from_std(listener) })?;
        runtime.spawn(async move { axum::serve(listener, router).await });
        Ok(Self { shared, _runtime: runtime })
    }

    /// Puts objects in the place of those that were put by the same name before.
    pub fn put(&self, file: &str, objects: &[Value]) {
        let mut held = self.shared.held();
        let objects = objects.iter().map(|object| (id(object), object.clone())).collect();
        held.files.insert(file.to_owned(), objects);
        held.settle();
        self.shared.version.send_replace(held.log.len());
    }
}

impl Shared {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// Tells what has changed since it was last told.
    fn settle(&mut self) {
        let wanted: BTreeMap<Id, Value> = self
            .files
            .values()
            .flatten()
            .filter(|(_, object)| selected(object))
            .map(|(id, object)| (id.clone(), object.clone()))
            .collect();
        let was = std::mem::replace(&mut self.seen, wanted);
        for (id, object) in &self.seen {
            let change = match was.get(id) {
                None => "ADDED",
                Some(old) if old != object => "MODIFIED",
                Some(_) => continue,
            };
            self.log.push((id.0.clone(), change, object.clone()));
        }
        // What goes goes last: an endpoint that moves to another slice is always in one.
        for (id, object) in &was {
            if !self.seen.contains_key(id) {
                self.log.push((id.0.clone(), "DELETED", object.clone()));
            }
        }
    }

    fn list(&self, kind: &str) -> Vec<Value> {
        let version = self.log.len();
        self.seen.iter().filter(|(id, _)| id.0 == kind).map(|(_, object)| at(object, version)).collect()
    }
}

async fn serve(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    Query(query): Query<BTreeMap<String, String>>,
) -> Response {
    let kind = match uri.path() {
        "/api/v1/services" => "Service",
        "/apis/discovery.k8s.io/v1/endpointslices" => "EndpointSlice",
        "/api/v1/nodes" => "Node",
        "/apis/networking.k8s.io/v1/servicecidrs" => "ServiceCIDR",
        // What kube-proxy tells of itself.
        _ if method == Method::POST => return (StatusCode::CREATED, "{}").into_response(),
        _ => return StatusCode::NOT_FOUND.into_response(),
    };
    let (items, version) = {
        let held = shared.held();
        (held.list(kind), held.log.len())
    };
    let asks = |name: &str| query.get(name).is_some_and(|value| value == "true" || value == "1");
    let json = [(header::CONTENT_TYPE, "application/json")];
    if !asks("watch") {
        let list = json!({"kind": format!("{kind}List"), "apiVersion": version_of(kind),
            "metadata": {"resourceVersion": version.to_string()}, "items": items});
        return (json, list.to_string()).into_response();
    }
    let (first, from) = match asks("sendInitialEvents") {
        true => (initial(kind, items, version), version),
        false => (Vec::new(), query.get("resourceVersion").and_then(|v| v.parse().ok()).unwrap_or(version)),
    };
    (json, Body::from_stream(stream::iter(first).chain(follow(shared, kind, from)))).into_response()
}

/// What there is, and that it is all.
fn initial(kind: &str, items: Vec<Value>, version: usize) -> Vec<Result<Bytes, Infallible>> {
    let mut lines: Vec<_> = items.iter().map(|object| line("ADDED", object)).collect();
    lines.push(line(
        "BOOKMARK",
        &json!({"kind": kind, "apiVersion": version_of(kind), "metadata": {
            "resourceVersion": version.to_string(), "annotations": {"k8s.io/initial-events-end": "true"}}}),
    ));
    lines
}

/// Every change of a kind from a version on, as they come.
fn follow(
    shared: Arc<Shared>,
    kind: &'static str,
    from: usize,
) -> impl futures::Stream<Item = Result<Bytes, Infallible>> {
    let news = shared.version.subscribe();
    stream::unfold((shared, news, from), move |(shared, mut news, from)| async move {
        // The sender is in `shared`, so there is no end.
        let until = *news.wait_for(|version| *version > from).await.ok()?;
        let lines: String = shared.held().log[from..until]
            .iter()
            .enumerate()
            .filter(|(_, (of, ..))| of == kind)
            .map(|(index, (_, change, object))| text(change, &at(object, from + index + 1)))
            .collect();
        Some((Ok(Bytes::from(lines)), (shared, news, until)))
    })
}

fn line(change: &str, object: &Value) -> Result<Bytes, Infallible> {
    Ok(text(change, object).into())
}

fn text(change: &str, object: &Value) -> String {
    format!("{}\n", json!({"type": change, "object": object}))
}

/// The object with a resource version.
fn at(object: &Value, version: usize) -> Value {
    let mut object = object.clone();
    object["metadata"]["resourceVersion"] = json!(version.to_string());
    object
}

fn version_of(kind: &str) -> &'static str {
    match kind {
        "EndpointSlice" => "discovery.k8s.io/v1",
        "ServiceCIDR" => "networking.k8s.io/v1",
        _ => "v1",
    }
}

fn id(object: &Value) -> Id {
    let text = |pointer| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    (text("/kind"), text("/metadata/namespace"), text("/metadata/name"))
}

/// Whether kube-proxy's selectors let it through (spec/kube-proxy.md §1.1).
fn selected(object: &Value) -> bool {
    let label = |name: &str| object["metadata"]["labels"].get(name).is_some();
    !(object["spec"]["clusterIP"] == "None"
        || label("service.kubernetes.io/service-proxy-name")
        || label("service.kubernetes.io/headless"))
}
