//! Service V of the assertions, and those like it.

use std::net::{IpAddr, SocketAddr};

use distributary_e2e::topology::Pod;
use serde_json::{Value, json};

use crate::stage::{NAMESPACE, SELF_NAME, Stage};

/// V: type LoadBalancer with every kind of address, TCP port 80 to 80, policies Cluster. In both families; its last
/// number is that of the assertion, so that many are on one node.
#[derive(Clone, Debug)]
pub(crate) struct V {
    pub name: String,
    number: u8,
    ports: Vec<Port>,
    spec: Vec<(&'static str, Value)>,
    ingress: Value,
    labels: Value,
}

#[derive(Clone, Debug)]
struct Port {
    name: String,
    protocol: &'static str,
    port: u16,
    target: u16,
    node_port: u16,
}

impl V {
    pub(crate) fn new(number: u8) -> Self {
        let port = Port {
            name: "p80".into(),
            protocol: "TCP",
            port: 80,
            target: 80,
            node_port: 3000 + u16::from(number),
        };
        let vips = addresses_of("1.2.3", "2001:db8:123::", number);
        Self {
            name: format!("a{number:03}"),
            number,
            ports: vec![port],
            spec: Vec::new(),
            ingress: json!(vips.map(|ip| json!({"ip": ip}))),
            labels: json!({}),
        }
    }

    /// Another port, that is on no node port.
    pub(crate) fn port(mut self, protocol: &'static str, port: u16, target: u16) -> Self {
        let name = format!("{}{port}", protocol.to_lowercase());
        self.ports.push(Port { name, protocol, port, target, node_port: 0 });
        self
    }

    /// With another value in its spec.
    pub(crate) fn with(mut self, key: &'static str, value: Value) -> Self {
        self.spec.push((key, value));
        self
    }

    pub(crate) fn external_local(self) -> Self {
        self.with("externalTrafficPolicy", json!("Local"))
    }

    pub(crate) fn internal_local(self) -> Self {
        self.with("internalTrafficPolicy", json!("Local"))
    }

    pub(crate) fn sticky(self, seconds: u32) -> Self {
        self.with("sessionAffinity", json!("ClientIP"))
            .with("sessionAffinityConfig", json!({"clientIP": {"timeoutSeconds": seconds}}))
    }

    /// Of type ClusterIP, and nowhere but at its cluster IPs.
    pub(crate) fn internal_only(mut self) -> Self {
        self.ports[0].node_port = 0;
        self.ingress = json!([]);
        self.with("type", json!("ClusterIP")).with("externalIPs", json!([]))
    }

    pub(crate) fn ranges(self, ranges: &[&str]) -> Self {
        self.with("loadBalancerSourceRanges", json!(ranges))
    }

    pub(crate) fn ingress(mut self, ingress: Value) -> Self {
        self.ingress = ingress;
        self
    }

    pub(crate) fn labels(mut self, labels: Value) -> Self {
        self.labels = labels;
        self
    }

    pub(crate) fn cluster_ip(&self) -> [SocketAddr; 2] {
        self.cluster_ip_at(80)
    }

    pub(crate) fn cluster_ip_at(&self, port: u16) -> [SocketAddr; 2] {
        addresses_of("172.30.0", "fd00:172:30::", self.number).map(|ip| (ip, port).into())
    }

    pub(crate) fn vip(&self) -> [SocketAddr; 2] {
        addresses_of("1.2.3", "2001:db8:123::", self.number).map(|ip| (ip, 80).into())
    }

    pub(crate) fn external_ip(&self) -> [SocketAddr; 2] {
        addresses_of("192.168.99", "fd00:192:168:99::", self.number).map(|ip| (ip, 80).into())
    }

    pub(crate) fn node_port_number(&self) -> u16 {
        self.ports[0].node_port
    }

    /// The node port at the node's first address.
    pub(crate) fn node_port(&self, stage: &Stage) -> [SocketAddr; 2] {
        self.node_port_at(stage.h.addresses.both())
    }

    pub(crate) fn node_port_at(&self, addresses: [IpAddr; 2]) -> [SocketAddr; 2] {
        addresses.map(|ip| (ip, self.node_port_number()).into())
    }

    /// VIP, external IP, node port.
    pub(crate) fn external(&self, stage: &Stage) -> [[SocketAddr; 2]; 3] {
        [self.vip(), self.external_ip(), self.node_port(stage)]
    }

    pub(crate) fn service(&self) -> Value {
        let [v4, v6] = self.cluster_ip().map(|target| target.ip().to_string());
        let ports: Vec<Value> = self
            .ports
            .iter()
            .map(|port| {
                let mut all = json!({"name": port.name, "protocol": port.protocol, "port": port.port});
                if port.node_port > 0 {
                    all["nodePort"] = json!(port.node_port);
                }
                all
            })
            .collect();
        let mut spec = json!({
            "type": "LoadBalancer", "clusterIP": v4, "clusterIPs": [v4, v6], "ipFamilies": ["IPv4", "IPv6"],
            "externalIPs": self.external_ip().map(|target| target.ip()), "ports": ports,
            "internalTrafficPolicy": "Cluster", "externalTrafficPolicy": "Cluster", "sessionAffinity": "None",
        });
        for (key, value) in &self.spec {
            spec[key] = value.clone();
        }
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"namespace": NAMESPACE, "name": self.name, "labels": self.labels},
            "spec": spec, "status": {"loadBalancer": {"ingress": self.ingress}},
        })
    }

    /// The slices, one a family, where there are endpoints.
    pub(crate) fn slices(&self, endpoints: &[Endpoint]) -> Vec<Value> {
        self.named_slices("slice", endpoints)
    }

    pub(crate) fn named_slices(&self, name: &str, endpoints: &[Endpoint]) -> Vec<Value> {
        if endpoints.is_empty() {
            return Vec::new();
        }
        let ports: Vec<Value> = self
            .ports
            .iter()
            .map(|port| json!({"name": port.name, "protocol": port.protocol, "port": port.target}))
            .collect();
        let of = |family: &str| {
            let all: Vec<Value> = endpoints.iter().map(|endpoint| endpoint.json(family == "IPv6")).collect();
            json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
                "metadata": {"namespace": NAMESPACE, "name": format!("{}-{name}-{}", self.name, family.to_lowercase()),
                    "labels": {"kubernetes.io/service-name": self.name}},
                "ports": ports, "endpoints": all,
            })
        };
        vec![of("IPv4"), of("IPv6")]
    }

    pub(crate) fn objects(&self, endpoints: &[Endpoint]) -> Vec<Value> {
        [vec![self.service()], self.slices(endpoints)].concat()
    }
}

fn addresses_of(v4: &str, v6: &str, number: u8) -> [IpAddr; 2] {
    let parse = |text: String| text.parse().expect("an address");
    [parse(format!("{v4}.{number}")), parse(format!("{v6}{number:x}"))]
}

/// A pod in a slice: ready unless said otherwise.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    pod: Pod,
    node: Option<&'static str>,
    conditions: Value,
    zones: &'static [&'static str],
    nodes: &'static [&'static str],
    also: Option<Pod>,
}

/// A ready endpoint, on the node that its pod is on.
pub(crate) fn ready(pod: &Pod) -> Endpoint {
    let node = if pod.name.starts_with('R') { "other" } else { SELF_NAME };
    Endpoint {
        pod: pod.clone(),
        node: Some(node),
        conditions: json!({"ready": true, "serving": true, "terminating": false}),
        zones: &[],
        nodes: &[],
        also: None,
    }
}

impl Endpoint {
    pub(crate) fn condition(mut self, ready: bool, serving: bool, terminating: bool) -> Self {
        self.conditions = json!({"ready": ready, "serving": serving, "terminating": terminating});
        self
    }

    /// Not ready, serving, terminating.
    pub(crate) fn terminating(self) -> Self {
        self.condition(false, true, true)
    }

    /// Terminating, and not serving any more.
    pub(crate) fn dead(self) -> Self {
        self.condition(false, false, true)
    }

    /// Not ready and not serving.
    pub(crate) fn unready(self) -> Self {
        self.condition(false, false, false)
    }

    /// Serving alone.
    pub(crate) fn only_serving(self) -> Self {
        self.condition(false, true, false)
    }

    /// Ready alone, as where not ready addresses are published.
    pub(crate) fn only_ready(self) -> Self {
        self.condition(true, false, false)
    }

    pub(crate) fn unconditional(mut self) -> Self {
        self.conditions = json!({});
        self
    }

    pub(crate) fn nowhere(mut self) -> Self {
        self.node = None;
        self
    }

    pub(crate) fn zones(mut self, zones: &'static [&'static str]) -> Self {
        self.zones = zones;
        self
    }

    pub(crate) fn nodes(mut self, nodes: &'static [&'static str]) -> Self {
        self.nodes = nodes;
        self
    }

    /// With the address of another pod as its second.
    pub(crate) fn and(mut self, pod: &Pod) -> Self {
        self.also = Some(pod.clone());
        self
    }

    fn json(&self, v6: bool) -> Value {
        let address = |pod: &Pod| pod.addresses.both()[usize::from(v6)];
        let addresses: Vec<IpAddr> =
            [Some(&self.pod), self.also.as_ref()].into_iter().flatten().map(address).collect();
        let mut endpoint = json!({"addresses": addresses, "conditions": self.conditions});
        if let Some(node) = self.node {
            endpoint["nodeName"] = json!(node);
        }
        let names = |names: &[&str]| -> Value { names.iter().map(|name| json!({"name": name})).collect() };
        if !self.zones.is_empty() {
            endpoint["hints"]["forZones"] = names(self.zones);
        }
        if !self.nodes.is_empty() {
            endpoint["hints"]["forNodes"] = names(self.nodes);
        }
        endpoint
    }
}
