//! Services, as far as they matter.

use std::collections::BTreeSet;
use std::net::IpAddr;

use distributary_model::{Name, ObjectKind, ServiceHeader, ServicePort};
use ipnet::IpNet;
use serde::Deserialize;

use crate::lean::{self, Metadata, Text, or_default};
use crate::meta::Meta;

/// What the API fills in where ClientIP affinity comes without a timeout.
const AFFINITY_SECONDS: u32 = 10_800;

/// A Service, converted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// What every object has.
    pub meta: Meta,
    /// What it asks of the nodes; `None`: nothing, as it is headless, an ExternalName, somebody else's, or has no
    /// cluster IP.
    pub header: Option<ServiceHeader>,
}

#[derive(Debug, Default, Deserialize)]
struct Labels {
    #[serde(rename = "service.kubernetes.io/service-proxy-name")]
    proxy: Option<serde::de::IgnoredAny>,
}

/// The shape that is read.
#[derive(Debug, Deserialize)]
pub(crate) struct Lean {
    #[serde(default, deserialize_with = "or_default")]
    metadata: Metadata<Labels>,
    #[serde(default, deserialize_with = "or_default")]
    spec: Spec,
    #[serde(default, deserialize_with = "or_default")]
    status: Status,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(default, rename = "clusterIP", deserialize_with = "or_default")]
    cluster_ip: String,
    #[serde(default, rename = "clusterIPs", deserialize_with = "or_default")]
    cluster_ips: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    ip_families: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    ports: Vec<LeanPort>,
    #[serde(default, rename = "externalIPs", deserialize_with = "or_default")]
    external_ips: Vec<Text<IpAddr>>,
    #[serde(default, deserialize_with = "or_default")]
    load_balancer_source_ranges: Vec<Text<IpNet>>,
    session_affinity: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    session_affinity_config: AffinityConfig,
    internal_traffic_policy: Option<String>,
    external_traffic_policy: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    health_check_node_port: i64,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct LeanPort {
    #[serde(default, deserialize_with = "or_default")]
    name: Name,
    protocol: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    port: i64,
    #[serde(default, deserialize_with = "or_default")]
    node_port: i64,
}

#[derive(Debug, Default, Deserialize)]
struct AffinityConfig {
    #[serde(default, rename = "clientIP", deserialize_with = "or_default")]
    client_ip: ClientIp,
}

#[derive(Debug, Default, Deserialize)]
struct ClientIp {
    #[serde(rename = "timeoutSeconds")]
    timeout_seconds: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
struct Status {
    #[serde(default, rename = "loadBalancer", deserialize_with = "or_default")]
    load_balancer: LoadBalancer,
}

#[derive(Debug, Default, Deserialize)]
struct LoadBalancer {
    #[serde(default, deserialize_with = "or_default")]
    ingress: Vec<Ingress>,
}

#[derive(Debug, Deserialize)]
struct Ingress {
    ip: Option<Text<IpAddr>>,
    #[serde(rename = "ipMode")]
    mode: Option<String>,
}

impl Service {
    /// `None` where it has no name.
    pub(crate) fn convert(lean: Lean) -> Option<Self> {
        let Lean { metadata, spec, status } = lean;
        let mut meta = Meta::of(ObjectKind::Service, &metadata)?;
        let headless = spec.cluster_ip == "None" || spec.cluster_ips.first().is_some_and(|ip| ip == "None");
        let kind = spec.kind.as_deref().unwrap_or("ClusterIP");
        if headless || kind == "ExternalName" || metadata.labels.proxy.is_some() {
            return Some(Self { meta, header: None });
        }
        let cluster_ips = cluster_ips(&mut meta, &spec);
        if cluster_ips.is_empty() {
            let what = "it has no usable spec.clusterIP, so there is nothing to serve: it is ignored";
            meta.problem(what.to_owned());
            return Some(Self { meta, header: None });
        }
        let affinity_seconds = match spec.session_affinity.as_deref() {
            Some("ClientIP") => timeout(&mut meta, spec.session_affinity_config.client_ip.timeout_seconds),
            _ => 0,
        };
        let external_local = spec.external_traffic_policy.as_deref() == Some("Local");
        let counts = match kind {
            "LoadBalancer" | "NodePort" => true,
            "ClusterIP" => !spec.external_ips.is_empty(),
            _ => false,
        };
        let health_check_node_port = match kind == "LoadBalancer" && external_local {
            true => lean::port(spec.health_check_node_port).unwrap_or_else(|| {
                let found = spec.health_check_node_port;
                meta.problem(format!(
                    "spec.healthCheckNodePort is {found}: load balancers cannot check its health"
                ));
                0
            }),
            false => 0,
        };
        let mut header = ServiceHeader {
            ports: ports(&mut meta, spec.ports),
            cluster_ips,
            external_ips: known(&mut meta, "spec.externalIPs", "IP address", spec.external_ips),
            load_balancer_vips: vips(&mut meta, status.load_balancer.ingress),
            source_ranges: known(
                &mut meta,
                "spec.loadBalancerSourceRanges",
                "network",
                spec.load_balancer_source_ranges,
            ),
            affinity_seconds,
            internal_policy_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
            external_policy_local: external_local && counts,
            health_check_node_port,
            created: metadata.created(),
        };
        warn_of_open_vips(&mut meta, &header);
        for list in [&mut header.cluster_ips, &mut header.external_ips, &mut header.load_balancer_vips] {
            list.shrink_to_fit();
        }
        Some(Self { meta, header: Some(header) })
    }
}

/// One a family, as spec.ipFamilies says. What the API would fill in from spec.clusterIP is filled in.
fn cluster_ips(meta: &mut Meta, spec: &Spec) -> Vec<IpAddr> {
    let single = [&spec.cluster_ip].into_iter().filter(|_| spec.cluster_ips.is_empty());
    let texts = spec.cluster_ips.iter().chain(single);
    let mut of: [Option<IpAddr>; 2] = [None, None];
    for (index, text) in texts.enumerate().filter(|(_, text)| !text.is_empty()) {
        let Some(ip) = crate::address::ip(text) else {
            meta.problem(format!("{text:?} in spec.clusterIPs is no IP address and is ignored"));
            continue;
        };
        let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
        // Without families the API takes those of the addresses.
        let said = spec
            .ip_families
            .get(index)
            .map_or_else(|| if spec.ip_families.is_empty() { family } else { "" }, String::as_str);
        if said.is_empty() {
            continue;
        }
        if said != family {
            meta.problem(format!("cluster IP {ip} is ignored: spec.ipFamilies has {said} in its place"));
            continue;
        }
        of[usize::from(ip.is_ipv6())].get_or_insert(ip);
    }
    of.into_iter().flatten().collect()
}

fn timeout(meta: &mut Meta, seconds: Option<i64>) -> u32 {
    let Some(seconds) = seconds else { return AFFINITY_SECONDS };
    u32::try_from(seconds).ok().filter(|&seconds| seconds > 0).unwrap_or_else(|| {
        meta.problem(format!("affinity timeout {seconds} is not above 0: {AFFINITY_SECONDS} s hold"));
        AFFINITY_SECONDS
    })
}

fn ports(meta: &mut Meta, lean: Vec<LeanPort>) -> Vec<ServicePort> {
    let mut ports: Vec<ServicePort> = Vec::with_capacity(lean.len());
    for LeanPort { name, protocol, port, node_port } in lean {
        let Some(known) = lean::protocol(protocol.as_deref()) else {
            let protocol = protocol.unwrap_or_default();
            meta.problem(format!("port {name:?} of unknown protocol {protocol:?} is ignored"));
            continue;
        };
        let Some(number) = lean::port(port) else {
            meta.problem(format!("port {name:?} with the number {port} is ignored"));
            continue;
        };
        if ports.iter().any(|other| other.name == name && other.protocol == known) {
            meta.problem(format!("port {number} is ignored: {name:?}/{known} is there already"));
            continue;
        }
        if node_port != 0 && lean::port(node_port).is_none() {
            meta.problem(format!("nodePort {node_port} of port {name:?} is ignored"));
        }
        let node_port = lean::port(node_port).unwrap_or(0);
        ports.push(ServicePort { name, protocol: known, port: number, node_port });
    }
    ports.sort_unstable();
    ports
}

fn vips(meta: &mut Meta, ingress: Vec<Ingress>) -> Vec<IpAddr> {
    let captured = ingress.into_iter().filter(|one| matches!(one.mode.as_deref(), None | Some("VIP")));
    let texts = captured.filter_map(|one| one.ip).collect();
    known(meta, "status.loadBalancer.ingress", "IP address", texts)
}

/// The readable ones, sorted and unique. Blank ones mean nothing, and nothing is said of them.
fn known<T: Ord>(meta: &mut Meta, field: &str, what: &str, texts: Vec<Text<T>>) -> Vec<T> {
    let mut known = BTreeSet::new();
    for text in texts {
        match text {
            Text::Good(value) => _ = known.insert(value),
            Text::Bad(text) if text.trim().is_empty() => {}
            Text::Bad(text) => meta.problem(format!("{text:?} in {field} is no {what} and is ignored")),
        }
    }
    known.into_iter().collect()
}

/// Ranges of only the other family filter nothing, as they always did; that surprises.
fn warn_of_open_vips(meta: &mut Meta, header: &ServiceHeader) {
    for (v4, family) in [(true, "IPv4"), (false, "IPv6")] {
        let ranged = header.source_ranges.iter().any(|range| range.addr().is_ipv4() == v4);
        let vip = header.load_balancer_vips.iter().find(|vip| vip.is_ipv4() == v4);
        if let (Some(vip), false, false) = (vip, ranged, header.source_ranges.is_empty()) {
            meta.problem(format!(
                "no range in spec.loadBalancerSourceRanges is {family}: {vip} is open to all"
            ));
        }
    }
}

#[cfg(test)]
mod tests;
