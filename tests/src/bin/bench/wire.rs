//! What one changed endpoint weighs: on our wire, and as the apiserver's watch event.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use distributary_e2e::deployed::SERVER;
use distributary_e2e::netns::Namespace;
use distributary_e2e::objects;
use distributary_e2e::wire::Reader;
use distributary_proto::v1 as pb;
use futures::AsyncReadExt;
use kube::Client;
use pb::server_message::Message;
use serde_json::{Value, json};

use super::load::{NAMESPACE, NODES, endpoint, node_name, pod, slice};

const PATIENCE: Duration = Duration::from_secs(30);
/// Endpoints here have numbers that no others have.
const FIRST: usize = 2_160_000;

/// Bytes of one change.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weight {
    pub(crate) ours: usize,
    pub(crate) protobuf: usize,
    pub(crate) json: usize,
}

/// Makes a Service with one slice of that many endpoints, replaces one of them, and removes the Service.
pub(crate) async fn weigh(client: &Client, hub: &Arc<Namespace>, endpoints: usize) -> Result<Weight> {
    let name = format!("checkout-{endpoints}");
    let spec = json!({"ports": [{"name": "http", "port": 80, "targetPort": 8080}]});
    let mut listed: Vec<Value> = (0..endpoints).map(|i| full(FIRST + i)).collect();
    objects::apply(client, &objects::service(NAMESPACE, &name, &spec)).await?;
    let mut before = objects::apply(client, &slice(&name, &json!(listed))).await?;
    let reader = Reader::start(hub, SERVER, &node_name(0))?;
    reader.until_end(PATIENCE)?;
    let (mut ours, mut attempts) = (None, 0);
    // The slice as a whole may come late, and together with the first change.
    while ours.is_none() {
        attempts += 1;
        ensure!(attempts < 10, "no frame has just the one endpoint of {name} that was replaced");
        listed[endpoints / 2] = full(FIRST + 5_000 + attempts);
        let patch = json!({"endpoints": listed});
        let after = objects::patch(client, "EndpointSlice", Some(NAMESPACE), &name, &patch).await?;
        ours = replaced(&reader, &name)?;
        if ours.is_none() {
            before = after;
        }
    }
    let ours = ours.context("the loop ends with one")?;
    let version = before.pointer("/metadata/resourceVersion").and_then(Value::as_str).context("a version")?;
    let json = event(client, &name, version, "application/json").await?;
    let protobuf = event(client, &name, version, "application/vnd.kubernetes.protobuf;stream=watch").await?;
    for kind in ["EndpointSlice", "Service"] {
        objects::delete(client, kind, Some(NAMESPACE), &name).await?;
    }
    Ok(Weight { ours, protobuf, json })
}

/// The bytes of the frame in which one endpoint of that Service goes and one comes. None when the server has nothing
/// more to say.
fn replaced(reader: &Reader, name: &str) -> Result<Option<usize>> {
    loop {
        let heard = reader.next(PATIENCE)?;
        let frame = match heard.message {
            Message::Frame(frame) => frame,
            Message::Heartbeat(_) => return Ok(None),
            _ => continue,
        };
        if let [pb::Change { name: changed, change: Some(pb::change::Change::Patch(patch)), .. }] =
            &frame.changes[..]
            && changed == name
            && (patch.upserts.len(), patch.removals.len()) == (1, 1)
        {
            return Ok(Some(heard.bytes));
        }
    }
}

/// An endpoint as a cluster with zones has it, with the reference to its Pod.
fn full(number: usize) -> Value {
    let digits = number % 100_000;
    let mut endpoint = endpoint(pod(number), &node_name(number % NODES));
    endpoint["zone"] = json!("eu-west-1a");
    endpoint["hints"] = json!({"forZones": [{"name": "eu-west-1a"}]});
    endpoint["targetRef"] = json!({
        "kind": "Pod", "namespace": NAMESPACE, "name": format!("checkout-7d4b9c6f5d-{digits}"),
        "uid": format!("3f0c1f9e-5a52-4a53-9d0e-7a1d3e4{digits}"),
    });
    endpoint
}

/// The bytes of everything that happened to a slice since that version, which is one event.
async fn event(client: &Client, name: &str, version: &str, accept: &str) -> Result<usize> {
    let path = format!(
        "/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices?watch=true&timeoutSeconds=1\
         &fieldSelector=metadata.name%3D{name}&resourceVersion={version}"
    );
    let request = http::Request::get(path).header(http::header::ACCEPT, accept).body(Vec::new())?;
    let mut bytes = Vec::new();
    let mut stream = std::pin::pin!(client.request_stream(request).await?);
    stream.read_to_end(&mut bytes).await?;
    Ok(bytes.len())
}
