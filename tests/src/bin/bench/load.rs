//! Services and their endpoints in a real apiserver.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use distributary_e2e::objects;
use futures::{StreamExt, stream};
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};

use super::node::NODE_ADDRESS;

/// Where everything is.
pub(crate) const NAMESPACE: &str = "bench";
/// Endpoints of a Service.
pub(crate) const ENDPOINTS: usize = 10;
/// Nodes that the endpoints are on. The measured one is the first.
pub(crate) const NODES: usize = 10;
/// Most Services there can be.
pub(crate) const MOST: usize = 50_000;
/// Every pod's address is in one of these: 2²³ in IPv4, apart from ClusterIPs (10.96.0.0/12).
pub(crate) const CLUSTER_CIDRS: &str = "10.128.0.0/9,fd00:10:244::/48";
/// The port of the UDP Service that the node itself serves, at both ends.
pub(crate) const ECHO_PORT: u16 = 5353;

/// The Service that comes and goes.
const ONE_MORE: &str = "one-more";
/// The Service that the node itself serves.
const ECHO: &str = "echo";

const IN_FLIGHT: usize = 32;
/// Addresses that replace others, by their numbers.
const FRESH: std::ops::Range<usize> = 1 << 20..1 << 21;
const _: () = assert!((MOST + 1) * ENDPOINTS <= FRESH.start);

/// What is in the apiserver.
#[derive(Debug)]
pub(crate) struct Load {
    services: Api<DynamicObject>,
    slices: Api<DynamicObject>,
    held: Vec<Held>,
    /// The ClusterIP of the Service that the node itself serves.
    pub(crate) echo: Ipv4Addr,
    changes: usize,
}

/// A Service.
#[derive(Debug)]
struct Held {
    address: Ipv4Addr,
    endpoints: [Ipv4Addr; ENDPOINTS],
}

impl Load {
    /// The namespace, the nodes, a slice whose Service is not there, and the Service that the node itself serves.
    pub(crate) async fn start(client: &Client) -> Result<Self> {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
        objects::apply(client, &namespace).await?;
        for node in 0..NODES {
            let last = u8::try_from(node)? + 1;
            let addresses = [Ipv4Addr::new(192, 0, 2, last).into()];
            objects::register_node(client, &node_name(node), &json!({}), &addresses).await?;
        }
        let endpoints: Vec<Value> =
            (0..ENDPOINTS).map(|index| endpoint(pod(MOST * ENDPOINTS + index), &node_name(index))).collect();
        objects::apply(client, &slice(ONE_MORE, &json!(endpoints))).await?;
        let [service, slice] = echo(NAMESPACE, &json!({}));
        objects::apply(client, &slice).await?;
        let made = objects::apply(client, &service).await?;
        Ok(Self {
            services: objects::api(client, "Service", Some(NAMESPACE))?,
            slices: objects::api(client, "EndpointSlice", Some(NAMESPACE))?,
            held: Vec::new(),
            echo: cluster_ip(&made)?,
            changes: 0,
        })
    }

    /// How many Services there are.
    pub(crate) fn services(&self) -> usize {
        self.held.len()
    }

    /// The ClusterIPs of all of them, in order.
    pub(crate) fn addresses(&self) -> Vec<Ipv4Addr> {
        let mut all: Vec<Ipv4Addr> = self.held.iter().map(|held| held.address).collect();
        all.sort_unstable();
        all
    }

    /// Makes Services until there are that many, and says how long that took.
    pub(crate) async fn grow(&mut self, to: usize) -> Result<Duration> {
        let began = Instant::now();
        let this = &*self;
        let more = stream::iter(self.held.len()..to).map(|service| this.create(service));
        // In their order, so that what is held is what was made even when one fails.
        let mut made = more.buffered(IN_FLIGHT);
        let mut held = Vec::new();
        let mut result = Ok(());
        while let Some(one) = made.next().await {
            match one {
                Ok(one) => held.push(one),
                Err(e) => {
                    result = Err(e);
                    break;
                }
            }
        }
        drop(made);
        self.held.extend(held);
        result.map(|()| began.elapsed())
    }

    async fn create(&self, service: usize) -> Result<Held> {
        let name = service_name(service);
        let endpoints = std::array::from_fn(|endpoint| pod(service * ENDPOINTS + endpoint));
        let spec = json!({"ports": [{"name": "http", "port": 80, "targetPort": 8080}]});
        let post = PostParams::default();
        let wanted = serde_json::from_value(objects::service(NAMESPACE, &name, &spec))?;
        let made = self.services.create(&post, &wanted).await;
        let made = made.with_context(|| format!("create Service {name}"))?;
        let wanted = serde_json::from_value(slice(&name, &listed(&endpoints)))?;
        self.slices.create(&post, &wanted).await.with_context(|| format!("create the slice of {name}"))?;
        Ok(Held { address: cluster_ip(&made.data)?, endpoints })
    }

    /// Replaces one endpoint of one Service by a new one, another Service each time. Gives when the apiserver said
    /// that it was done.
    pub(crate) async fn change(&mut self) -> Result<SystemTime> {
        let service = self.next_service();
        let held = &mut self.held[service].endpoints;
        held[self.changes % ENDPOINTS] = pod(FRESH.start + self.changes % FRESH.len());
        self.patch(service, ENDPOINTS).await?;
        Ok(SystemTime::now())
    }

    /// Takes one endpoint away from one Service, another each time, and says which.
    pub(crate) async fn remove_endpoint(&mut self) -> Result<usize> {
        let service = self.next_service();
        self.patch(service, ENDPOINTS - 1).await?;
        Ok(service)
    }

    /// Gives it back.
    pub(crate) async fn add_endpoint(&self, service: usize) -> Result<()> {
        self.patch(service, ENDPOINTS).await
    }

    /// Neighbours in time are not neighbours in the table; the step has no factor in common with round numbers.
    fn next_service(&mut self) -> usize {
        self.changes += 1;
        (self.changes * 1237) % self.held.len()
    }

    /// Brings the first of a Service's endpoints to the apiserver.
    async fn patch(&self, service: usize, endpoints: usize) -> Result<()> {
        let patch = json!({"endpoints": listed(&self.held[service].endpoints[..endpoints])});
        let name = service_name(service);
        let patched = self.slices.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await;
        patched.map(drop).with_context(|| format!("change the slice {name}"))
    }

    /// Makes one more Service. Its slice has been there from the start, and changes no rule without it.
    pub(crate) async fn add(&self) -> Result<()> {
        let spec = json!({"ports": [{"name": "http", "port": 80, "targetPort": 8080}]});
        let made = serde_json::from_value(objects::service(NAMESPACE, ONE_MORE, &spec))?;
        self.services.create(&PostParams::default(), &made).await.context("create one more Service")?;
        Ok(())
    }

    /// Removes that Service.
    pub(crate) async fn remove(&self) -> Result<()> {
        self.services.delete(ONE_MORE, &DeleteParams::default()).await.context("delete the Service")?;
        Ok(())
    }

    /// The same, where it may not be there.
    pub(crate) async fn ensure_removed(&self) {
        self.remove().await.ok();
    }
}

/// The Service that the node itself serves, by UDP, with its slice. `more` is of its spec.
pub(crate) fn echo(namespace: &str, more: &Value) -> [Value; 2] {
    let port = json!([{"name": "echo", "protocol": "UDP", "port": ECHO_PORT}]);
    let mut spec = json!({"ports": port});
    for (key, value) in more.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    let endpoints = json!([endpoint(NODE_ADDRESS, &node_name(0))]);
    [
        objects::service(namespace, ECHO, &spec),
        objects::endpoint_slice(namespace, ECHO, ECHO, &port, &endpoints),
    ]
}

fn cluster_ip(service: &Value) -> Result<Ipv4Addr> {
    let given = service.pointer("/spec/clusterIP").and_then(Value::as_str);
    given.context("a Service has a cluster IP")?.parse().context("an IPv4 cluster IP")
}

fn listed(endpoints: &[Ipv4Addr]) -> Value {
    let endpoint = |(index, address): (usize, &Ipv4Addr)| endpoint(*address, &node_name(index % NODES));
    endpoints.iter().enumerate().map(endpoint).collect()
}

/// The name of a node.
pub(crate) fn node_name(node: usize) -> String {
    format!("worker-{node}")
}

/// An endpoint as Kubernetes' own controller writes it, but for the reference to its Pod.
pub(crate) fn endpoint(address: Ipv4Addr, node: &str) -> Value {
    let conditions = json!({"ready": true, "serving": true, "terminating": false});
    json!({"addresses": [address], "nodeName": node, "conditions": conditions})
}

/// The slice of a Service; both have the same name.
pub(crate) fn slice(name: &str, endpoints: &Value) -> Value {
    let ports = json!([{"name": "http", "protocol": "TCP", "port": 8080}]);
    objects::endpoint_slice(NAMESPACE, name, name, &ports, endpoints)
}

fn service_name(service: usize) -> String {
    format!("service-{service:05}")
}

/// The address with that number in 10.128.0.0/9. Numbers end long before 10.248.0.0/13, where clients are.
pub(crate) fn pod(number: usize) -> Ipv4Addr {
    let [.., high, middle, low] = number.to_be_bytes();
    Ipv4Addr::new(10, 128 | high, middle, low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_apart() {
        assert_eq!(pod(0), Ipv4Addr::new(10, 128, 0, 0));
        assert_eq!(pod(MOST * ENDPOINTS), Ipv4Addr::new(10, 135, 161, 32));
        assert_eq!(pod(FRESH.end - 1), Ipv4Addr::new(10, 159, 255, 255));
    }
}
