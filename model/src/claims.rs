//! What a Service claims for itself alone: what something else that claims it shows to be free.

use std::net::IpAddr;

use crate::{Protocol, Service};

/// What two Services cannot have, or what an endpoint of two Services, where it is new to one, had to be given up for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Claim {
    /// A cluster IP.
    ClusterIp(IpAddr),
    /// A port of an external IP or of a load balancer's address.
    Address(IpAddr, Protocol, u16),
    /// A node port.
    NodePort(Protocol, u16),
    /// A health check node port.
    HealthCheck(u16),
    /// The address of an endpoint.
    Endpoint(IpAddr),
}

/// Everything that a Service claims.
pub fn claims(service: &Service) -> impl Iterator<Item = Claim> {
    let header = &service.header;
    let addresses = header.external_ips.iter().chain(&header.load_balancer_vips);
    let of_ports = addresses.flat_map(|address| {
        header.ports.iter().map(|port| Claim::Address(*address, port.protocol, port.port))
    });
    let node_ports = header.ports.iter().filter(|port| port.node_port != 0);
    let health = Some(header.health_check_node_port).filter(|port| *port != 0);
    (header.cluster_ips.iter().copied().map(Claim::ClusterIp))
        .chain(of_ports)
        .chain(node_ports.map(|port| Claim::NodePort(port.protocol, port.node_port)))
        .chain(health.map(Claim::HealthCheck))
        .chain(service.endpoints.iter().map(|endpoint| Claim::Endpoint(endpoint.address)))
}
