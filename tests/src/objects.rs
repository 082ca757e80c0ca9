//! Making, changing and deleting Kubernetes objects, written as JSON.

use std::{
    net::IpAddr,
    process,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, Result};
use kube::{
    Api, Client,
    api::{DeleteParams, DynamicObject, Patch, PatchParams},
    core::{ApiResource, GroupVersionKind},
};
use serde_json::{Value, json};

/// The annotation of a slice that says what time its newest content goes back to.
pub const TRIGGERED: &str = "endpoints.kubernetes.io/last-change-trigger-time";

const MANAGER: &str = "distributary-e2e";

/// Makes a Kubernetes namespace with a new name and returns that. It is never deleted: nothing here could finish that.
///
/// # Errors
/// When the apiserver refuses.
pub async fn unique_namespace(client: &Client) -> Result<String> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = format!("test-{}-{}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    apply(client, &json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } })).await?;
    Ok(name)
}

/// A Service of that spec.
#[must_use]
pub fn service(namespace: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "namespace": namespace, "name": name },
        "spec": spec,
    })
}

/// An EndpointSlice of a Service. `ports` and `endpoints` are as in its manifest; the family is that of the addresses.
#[must_use]
pub fn endpoint_slice(namespace: &str, name: &str, service: &str, ports: &Value, endpoints: &Value) -> Value {
    let address = endpoints.pointer("/0/addresses/0").and_then(Value::as_str).unwrap_or_default();
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": { "namespace": namespace, "name": name, "labels": { "kubernetes.io/service-name": service } },
        "addressType": if address.contains(':') { "IPv6" } else { "IPv4" },
        "ports": ports,
        "endpoints": endpoints,
    })
}

/// Makes the object of that manifest, or makes it so, and returns what the apiserver made of it. What an earlier
/// manifest had and this has not is removed. A status is not looked at.
///
/// # Errors
/// When the manifest has no kind or name, or the apiserver refuses.
pub async fn apply(client: &Client, manifest: &Value) -> Result<Value> {
    let text = |pointer| manifest.pointer(pointer).and_then(Value::as_str);
    let kind = text("/kind").context("a manifest has a kind")?;
    let name = text("/metadata/name").context("a manifest has a name")?;
    let api = api(client, kind, text("/metadata/namespace"))?;
    let made = api.patch(name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(manifest)).await;
    Ok(serde_json::to_value(made.with_context(|| format!("apply {kind} {name}"))?)?)
}

/// Changes an object by a JSON merge patch.
///
/// # Errors
/// When the apiserver refuses.
pub async fn patch(
    client: &Client,
    kind: &str,
    namespace: Option<&str>,
    name: &str,
    patch: &Value,
) -> Result<Value> {
    let changed =
        api(client, kind, namespace)?.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await;
    Ok(serde_json::to_value(changed.with_context(|| format!("patch {kind} {name}"))?)?)
}

/// Reads an object.
///
/// # Errors
/// When there is none.
pub async fn get(client: &Client, kind: &str, namespace: Option<&str>, name: &str) -> Result<Value> {
    let found = api(client, kind, namespace)?.get(name).await;
    Ok(serde_json::to_value(found.with_context(|| format!("get {kind} {name}"))?)?)
}

/// Deletes an object.
///
/// # Errors
/// When there is none, or the apiserver refuses.
pub async fn delete(client: &Client, kind: &str, namespace: Option<&str>, name: &str) -> Result<()> {
    let deleted = api(client, kind, namespace)?.delete(name, &DeleteParams::default()).await;
    deleted.map(drop).with_context(|| format!("delete {kind} {name}"))
}

/// Gives a Service of type LoadBalancer its addresses, as a cloud would.
///
/// # Errors
/// When the apiserver refuses.
pub async fn set_ingress(
    client: &Client,
    namespace: &str,
    service: &str,
    addresses: &[IpAddr],
) -> Result<()> {
    let ingress: Vec<Value> = addresses.iter().map(|ip| json!({ "ip": ip, "ipMode": "VIP" })).collect();
    let status = json!({ "status": { "loadBalancer": { "ingress": ingress } } });
    let api = api(client, "Service", Some(namespace))?;
    api.patch_status(service, &PatchParams::default(), &Patch::Merge(&status)).await?;
    Ok(())
}

/// Makes a Node with those labels and internal addresses, as a kubelet would.
///
/// # Errors
/// When the apiserver refuses.
pub async fn register_node(client: &Client, name: &str, labels: &Value, addresses: &[IpAddr]) -> Result<()> {
    let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name, "labels": labels } });
    apply(client, &node).await?;
    let addresses: Vec<Value> =
        addresses.iter().map(|ip| json!({ "type": "InternalIP", "address": ip })).collect();
    let status = json!({ "status": { "addresses": addresses } });
    api(client, "Node", None)?.patch_status(name, &PatchParams::default(), &Patch::Merge(&status)).await?;
    Ok(())
}

/// Access to all objects of a kind, e.g. `"EndpointSlice"`, in a namespace or, with `None`, of the cluster.
///
/// # Errors
/// When the kind is none that distributary has to do with.
pub fn api(client: &Client, kind: &str, namespace: Option<&str>) -> Result<Api<DynamicObject>> {
    let (group, version) = match kind {
        "Service" | "Node" | "Namespace" | "Pod" | "Event" | "ServiceAccount" => ("", "v1"),
        "EndpointSlice" => ("discovery.k8s.io", "v1"),
        "ServiceCIDR" | "IPAddress" => ("networking.k8s.io", "v1"),
        "Role" | "RoleBinding" | "ClusterRole" | "ClusterRoleBinding" => ("rbac.authorization.k8s.io", "v1"),
        "Lease" => ("coordination.k8s.io", "v1"),
        _ => anyhow::bail!("the test harness does not know the kind {kind}"),
    };
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
    Ok(match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    })
}
