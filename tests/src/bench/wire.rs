//! What one changed endpoint weighs: on our wire, and as the apiserver's watch event.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use distributary_e2e::deployed::SERVER;
use distributary_e2e::netns::Namespace;
use distributary_e2e::objects;
use distributary_e2e::wire::Reader;
use distributary_proto::v1 as pb;
use futures::AsyncReadExt;
use kube::Client;
use serde_json::{Value, json};

use super::load::{NAMESPACE, endpoint, node_name, pod, slice};

const PATIENCE: Duration = Duration::from_secs(30);

/// Bytes of one change.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weight {
    pub(crate) endpoints: usize,
    pub(crate) ours: usize,
    pub(crate) protobuf: usize,
    pub(crate) json: usize,
}

/// Makes a Service with one slice of that many endpoints, replaces one of them, and removes the Service.
pub(crate) async fn weigh(client: &Client, hub: &Arc<Namespace>, endpoints: usize) -> Result<Weight> {
    let name = format!("checkout-{endpoints}");
    let spec = json!({"ports": [{"name": "http", "port": 80, "targetPort": 8080}]});
    let mut listed: Vec<Value> =
        (0..endpoints).map(|i| endpoint(pod(60_000 + i), &node_name(i % 10))).collect();
    objects::apply(client, &objects::service(NAMESPACE, &name, &spec)).await?;
    let made = objects::apply(client, &slice(&name, &json!(listed))).await?;
    let version = made.pointer("/metadata/resourceVersion").and_then(Value::as_str).context("a version")?;
    let reader = Reader::start(hub, SERVER, &node_name(0))?;
    reader.until_end(PATIENCE)?;
    listed[endpoints / 2] = endpoint(pod(65_000), &node_name(3));
    objects::patch(client, "EndpointSlice", Some(NAMESPACE), &name, &json!({"endpoints": listed})).await?;
    // The slice itself may come late, as a whole.
    let ours = loop {
        let (frame, bytes) = reader.next_frame(PATIENCE)?;
        if let [pb::Change { name: changed, change: Some(pb::change::Change::Patch(patch)), .. }] =
            &frame.changes[..]
            && *changed == name
            && (patch.upserts.len(), patch.removals.len()) == (1, 1)
        {
            break bytes;
        }
    };
    let json = event(client, &name, version, "application/json").await?;
    let protobuf = event(client, &name, version, "application/vnd.kubernetes.protobuf;stream=watch").await?;
    for kind in ["EndpointSlice", "Service"] {
        objects::delete(client, kind, Some(NAMESPACE), &name).await?;
    }
    Ok(Weight { endpoints, ours, protobuf, json })
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
