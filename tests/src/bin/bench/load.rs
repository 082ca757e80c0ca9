//! Services and their endpoints in a real apiserver.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use distributary_e2e::objects;
use futures::{StreamExt, TryStreamExt, stream};
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};

/// Where everything is.
pub(crate) const NAMESPACE: &str = "bench";
/// Endpoints of a Service.
pub(crate) const ENDPOINTS: usize = 10;
/// Nodes that the endpoints are on. The measured one is the first.
pub(crate) const NODES: usize = 10;
/// Most Services there can be.
pub(crate) const MOST: usize = 5000;

/// The Service that comes and goes.
const ONE_MORE: &str = "one-more";

const IN_FLIGHT: usize = 32;
/// Addresses that replace others come from what the first ones leave of 10.244.0.0/16.
const FRESH: usize = (1 << 16) - MOST * ENDPOINTS;

/// What is in the apiserver.
#[derive(Debug)]
pub(crate) struct Load {
    services: Api<DynamicObject>,
    slices: Api<DynamicObject>,
    /// The endpoints of every Service.
    held: Vec<[Ipv4Addr; ENDPOINTS]>,
    changes: usize,
}

impl Load {
    /// The namespace, the nodes, and a slice whose Service is not there; no Service.
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
        Ok(Self {
            services: objects::api(client, "Service", Some(NAMESPACE))?,
            slices: objects::api(client, "EndpointSlice", Some(NAMESPACE))?,
            held: Vec::new(),
            changes: 0,
        })
    }

    /// How many Services there are.
    pub(crate) fn services(&self) -> usize {
        self.held.len()
    }

    /// Makes Services until there are that many, and says how long that took.
    pub(crate) async fn grow(&mut self, to: usize) -> Result<Duration> {
        let began = Instant::now();
        let more: Vec<usize> = (self.held.len()..to).collect();
        self.held.extend(
            more.iter().map(|service| std::array::from_fn(|endpoint| pod(service * ENDPOINTS + endpoint))),
        );
        let this = &*self;
        let made = stream::iter(more).map(|service| this.create(service)).buffer_unordered(IN_FLIGHT);
        made.try_collect::<()>().await?;
        Ok(began.elapsed())
    }

    async fn create(&self, service: usize) -> Result<()> {
        let name = service_name(service);
        let spec = json!({"ports": [{"name": "http", "port": 80, "targetPort": 8080}]});
        let slice = slice(&name, &self.endpoints(service));
        let post = PostParams::default();
        let made = serde_json::from_value(objects::service(NAMESPACE, &name, &spec))?;
        self.services.create(&post, &made).await.with_context(|| format!("create Service {name}"))?;
        let made = serde_json::from_value(slice)?;
        self.slices.create(&post, &made).await.with_context(|| format!("create the slice of {name}"))?;
        Ok(())
    }

    /// Replaces one endpoint of one Service by a new one, another Service each time. Gives when the apiserver said
    /// that it was done.
    pub(crate) async fn change(&mut self) -> Result<SystemTime> {
        // Neighbours in time are not neighbours in the table; the step has no factor in common with round numbers.
        let service = (self.changes * 1237) % self.held.len();
        self.held[service][self.changes % ENDPOINTS] = pod(MOST * ENDPOINTS + self.changes % FRESH);
        self.changes += 1;
        let patch = json!({"endpoints": self.endpoints(service)});
        let name = service_name(service);
        let patched = self.slices.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await;
        patched.with_context(|| format!("change the slice {name}"))?;
        Ok(SystemTime::now())
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

    fn endpoints(&self, service: usize) -> Value {
        let endpoint = |(index, address): (usize, &Ipv4Addr)| endpoint(*address, &node_name(index % NODES));
        self.held[service].iter().enumerate().map(endpoint).collect()
    }
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

/// The address with that number in 10.244.0.0/16.
pub(crate) fn pod(number: usize) -> Ipv4Addr {
    let [.., high, low] = number.to_be_bytes();
    Ipv4Addr::new(10, 244, high, low)
}
