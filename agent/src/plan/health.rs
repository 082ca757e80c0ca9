//! What load balancers are told of a Service on this node: spec/kube-proxy.md §5.1.

use std::collections::BTreeSet;

use distributary_model::{Key, Service};

use super::Family;

/// The health check of a Service, in one family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Check {
    /// Where it is asked for.
    pub port: u16,
    /// Addresses of ready endpoints on this node.
    pub local: usize,
}

/// The health check of a Service; `None` where it has none, or no cluster IP of the family.
///
/// What counts is ready and local, whatever the ports, the hints and the policies say; who is only terminating does not
/// count while he still gets traffic.
pub fn check(family: Family, cluster: &str, node: &str, key: &Key, service: &Service) -> Option<Check> {
    let header = &service.header;
    let port = Some(header.health_check_node_port).filter(|&port| port != 0)?;
    header.cluster_ips.iter().find(|address| Family::of(address) == family)?;
    let local = service
        .endpoints
        .iter()
        .filter(|one| one.conditions.ready && !one.ports.is_empty())
        .filter(|one| **one.cluster.as_ref().unwrap_or(&key.cluster) == *cluster)
        .filter(|one| !node.is_empty() && *one.node == *node)
        .map(|one| one.address)
        .filter(|address| Family::of(address) == family)
        .collect::<BTreeSet<_>>()
        .len();
    Some(Check { port, local })
}

#[cfg(test)]
mod tests {
    use distributary_model::testing as t;
    use distributary_model::{EndpointPort, Protocol};

    use super::*;

    fn service() -> Service {
        t::service(&["10.96.0.1", "fd96::1"])
            .port("http", Protocol::Tcp, 80, 0)
            .port("dns", Protocol::Tcp, 53, 0)
            .header(|header| header.health_check_node_port = 32_000)
    }

    fn local(family: Family, service: &Service) -> Option<usize> {
        check(family, t::CLUSTER, "n1", &t::key("a/b"), service).map(|check| check.local)
    }

    #[test]
    fn a118_two_local_ready_addresses_on_two_ports_each_count_two() {
        let both = |address: &str| {
            let mut endpoint = t::endpoint(address, "http", 8080).on("n1");
            endpoint.ports = endpoint
                .ports
                .iter()
                .cloned()
                .chain([EndpointPort { name: "dns".into(), protocol: Protocol::Tcp, port: 5353 }])
                .collect();
            endpoint
        };
        let service = service()
            .endpoint(both("10.0.0.1"))
            .endpoint(both("10.0.0.2"))
            .endpoint(t::endpoint("10.0.0.2", "http", 9090).on("n1"))
            .endpoint(both("10.0.0.3").on("n2"))
            .endpoint(both("10.0.0.4").on(""))
            .endpoint(both("fd00::1"));
        assert_eq!((local(Family::V4, &service), local(Family::V6, &service)), (Some(2), Some(1)));
    }

    #[test]
    fn a119_who_is_terminating_does_not_count() {
        let service = service()
            .endpoint(t::endpoint("10.0.0.1", "http", 8080).on("n1").terminating())
            .endpoint(t::endpoint("10.0.0.2", "http", 8080).on("n1").conditions(false, false, false));
        assert_eq!(local(Family::V4, &service), Some(0));
        // With publishNotReadyAddresses one may be terminating and ready.
        let ready =
            service.endpoint(t::endpoint("10.0.0.3", "http", 8080).on("n1").conditions(true, true, true));
        assert_eq!(local(Family::V4, &ready), Some(1));
    }

    #[test]
    fn hints_and_policies_do_not_matter_and_another_clusters_node_is_not_this_one() {
        let mut foreign = t::endpoint("10.0.0.2", "http", 8080).on("n1");
        foreign.cluster = Some("other".into());
        let service = service()
            .endpoint(t::endpoint("10.0.0.1", "http", 8080).on("n1").zones(&["z"]).nodes(&["n9"]))
            .endpoint(foreign)
            .header(|header| header.internal_policy_local = true);
        assert_eq!(local(Family::V4, &service), Some(1));
        assert_eq!(
            check(Family::V4, t::CLUSTER, "", &t::key("a/b"), &service).map(|check| check.local),
            Some(0)
        );
    }

    #[test]
    fn without_a_port_or_an_address_of_the_family_there_is_no_check() {
        let single = service().header(|header| _ = header.cluster_ips.pop());
        assert_eq!((local(Family::V4, &single), local(Family::V6, &single)), (Some(0), None));
        let none = service().header(|header| header.health_check_node_port = 0);
        assert_eq!(local(Family::V4, &none), None);
    }
}
