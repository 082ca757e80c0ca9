//! Clusters of a shape that costs somewhere: many endpoints of one Service, many Services, many that nobody serves, many
//! load balancers with policy Local. As manifests, IPv4 only, with one change that can be made over and over.
//!
//! Endpoints are addresses of [`ENDPOINTS`] and need nobody who has them.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

use crate::objects;

/// The namespace of every object here.
pub const NAMESPACE: &str = "shapes";
/// The node that is programmed, where endpoints are local…
pub const HERE: &str = "node-a";
/// …and another one.
pub const THERE: &str = "node-b";
/// The port of every endpoint.
pub const TARGET: u16 = 9376;
/// Every endpoint's address is in it.
pub const ENDPOINTS: &str = "10.192.0.0/13";
/// The load balancers' addresses are in it.
pub const BALANCERS: &str = "198.18.0.0/16";
/// Whom load balancers let through: these two alone.
pub const RANGES: [&str; 2] = ["10.244.0.2/32", "192.0.2.2/32"];
/// The node port of [`local_endpoints`].
pub const NODE_PORT: u16 = 30_080;

/// Endpoints of a slice, as Kubernetes' own controller cuts them.
const SLICE: usize = 100;
/// Numbers of endpoints that take the place of others.
const FRESH: usize = 400_000;

/// A cluster.
#[derive(Debug)]
pub struct Shape {
    /// What a table says of it.
    pub name: String,
    /// How many Services there are.
    pub services: usize,
    /// What stays.
    pub fixed: Vec<Value>,
    /// A cluster IP that somebody serves, on TCP port 80, if there is one.
    pub served: Option<Ipv4Addr>,
    changing: Changing,
}

/// What a change changes.
#[derive(Clone, Debug)]
enum Changing {
    /// One endpoint of a slice is replaced by a new one.
    Slice { service: String, first: usize, count: usize, node: &'static str },
    /// A Service that nobody serves is served, and is not.
    Served { service: String },
}

impl Shape {
    /// Whether a change rewrites rules that lead to endpoints, and nothing else.
    #[must_use]
    pub fn is_rewritten(&self) -> bool {
        matches!(self.changing, Changing::Slice { .. })
    }

    /// What is beside the fixed objects after that many changes.
    #[must_use]
    pub fn after(&self, changes: usize) -> Vec<Value> {
        match &self.changing {
            Changing::Slice { service, first, count, node } => {
                let endpoints = replaced(*first, *count, changes);
                vec![slice(service, 0, endpoints.into_iter().map(|number| (number, *node)))]
            }
            Changing::Served { service } => {
                vec![slice(service, 0, (0..changes % 2).map(|_| (FRESH, THERE)))]
            }
        }
    }
}

/// One Service of so many endpoints, all elsewhere.
#[must_use]
pub fn one_service(endpoints: usize) -> Shape {
    let name = "large";
    let mut fixed = vec![service(name, 0, &json!({}))];
    fixed.extend(slices(name, endpoints, THERE));
    Shape {
        name: format!("one service of {endpoints} endpoints"),
        services: 1,
        fixed,
        served: Some(cluster_ip(0)),
        changing: Changing::Slice {
            service: name.into(),
            first: 0,
            count: endpoints.min(SLICE),
            node: THERE,
        },
    }
}

/// So many Services of so many endpoints, all elsewhere.
#[must_use]
pub fn many_services(services: usize, endpoints: usize) -> Shape {
    let median = services / 2;
    let numbers = |number| (number * endpoints..(number + 1) * endpoints).map(|number| (number, THERE));
    let mut fixed = Vec::new();
    for number in 0..services {
        let name = format!("service-{number}");
        fixed.push(service(&name, number, &json!({})));
        if number != median {
            fixed.push(slice(&name, 0, numbers(number)));
        }
    }
    let changing = Changing::Slice {
        service: format!("service-{median}"),
        first: median * endpoints,
        count: endpoints,
        node: THERE,
    };
    Shape {
        name: format!("{services} services of {endpoints} endpoints"),
        services,
        fixed,
        served: Some(cluster_ip(median)),
        changing,
    }
}

/// So many Services that nobody serves.
#[must_use]
pub fn without_endpoints(services: usize) -> Shape {
    let fixed =
        (0..services).map(|number| service(&format!("nobody-{number}"), number, &json!({}))).collect();
    Shape {
        name: format!("{services} services without endpoints"),
        services,
        fixed,
        served: None,
        changing: Changing::Served { service: format!("nobody-{}", services / 2) },
    }
}

/// So many load balancers with policy Local and source [`RANGES`], each with one endpoint, which is elsewhere.
#[must_use]
pub fn local_balancers(balancers: usize) -> Shape {
    let median = balancers / 2;
    let mut fixed = Vec::new();
    for number in 0..balancers {
        let name = format!("balancer-{number}");
        let spec = json!({
            "type": "LoadBalancer", "externalTrafficPolicy": "Local", "allocateLoadBalancerNodePorts": false,
            "healthCheckNodePort": 30_000 + number, "loadBalancerSourceRanges": RANGES,
        });
        let mut made = service(&name, number, &spec);
        made["status"] = json!({"loadBalancer": {"ingress": [{"ip": balancer_ip(number), "ipMode": "VIP"}]}});
        fixed.push(made);
        if number != median {
            fixed.push(slice(&name, 0, [(number, THERE)]));
        }
    }
    let changing =
        Changing::Slice { service: format!("balancer-{median}"), first: median, count: 1, node: THERE };
    Shape {
        name: format!("{balancers} load balancers, policy Local, source ranges, no local endpoint"),
        services: balancers,
        fixed,
        served: Some(cluster_ip(median)),
        changing,
    }
}

/// A Service with a [`NODE_PORT`], policy Local and so many endpoints, all on the node.
#[must_use]
pub fn local_endpoints(endpoints: usize) -> Shape {
    let name = "local";
    let spec = json!({
        "type": "NodePort", "externalTrafficPolicy": "Local",
        "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": TARGET, "nodePort": NODE_PORT}],
    });
    let mut fixed = vec![service(name, 0, &spec)];
    fixed.extend(slices(name, endpoints, HERE));
    Shape {
        name: format!("one service of {endpoints} local endpoints, policy Local"),
        services: 1,
        fixed,
        served: Some(cluster_ip(0)),
        changing: Changing::Slice { service: name.into(), first: 0, count: endpoints.min(SLICE), node: HERE },
    }
}

/// The cluster IP of the Service with that number.
#[must_use]
pub fn cluster_ip(number: usize) -> Ipv4Addr {
    address(Ipv4Addr::new(10, 97, 0, 1), number)
}

/// The address of the load balancer with that number.
#[must_use]
pub fn balancer_ip(number: usize) -> Ipv4Addr {
    address(Ipv4Addr::new(198, 18, 0, 1), number)
}

/// The address of the endpoint with that number.
#[must_use]
pub fn endpoint_ip(number: usize) -> Ipv4Addr {
    address(Ipv4Addr::new(10, 192, 0, 1), number)
}

/// A Service at the cluster IP of its number, TCP port 80. `more` is of its spec.
#[must_use]
pub fn service(name: &str, number: usize, more: &Value) -> Value {
    let ip = cluster_ip(number);
    let mut spec = json!({
        "type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip], "ipFamilies": ["IPv4"],
        "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": TARGET}],
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    objects::service(NAMESPACE, name, &spec)
}

/// The slice with that index of a Service, with the endpoints of these numbers, each with its node.
#[must_use]
pub fn slice<'a>(
    service: &str,
    index: usize,
    endpoints: impl IntoIterator<Item = (usize, &'a str)>,
) -> Value {
    let ports = json!([{"name": "http", "protocol": "TCP", "port": TARGET}]);
    let endpoint = |(number, node): (usize, &str)| json!({"addresses": [endpoint_ip(number)], "nodeName": node, "conditions": {"ready": true}});
    let endpoints: Value = endpoints.into_iter().map(endpoint).collect();
    objects::endpoint_slice(NAMESPACE, &format!("{service}-{index}"), service, &ports, &endpoints)
}

/// All slices of a Service but the first.
fn slices<'a>(service: &'a str, endpoints: usize, node: &'a str) -> impl Iterator<Item = Value> + 'a {
    let others = (0..endpoints.div_ceil(SLICE)).skip(1);
    others.map(move |index| {
        let numbers = index * SLICE..endpoints.min((index + 1) * SLICE);
        slice(service, index, numbers.map(|number| (number, node)))
    })
}

/// The numbers of so many endpoints, of which one after the other was replaced by a new one.
fn replaced(first: usize, count: usize, changes: usize) -> Vec<usize> {
    let number = |place: usize| {
        // The last change of this place.
        let last = changes.checked_sub((changes + count - place) % count).filter(|&change| change > 0);
        last.map_or(first + place, |change| FRESH + change)
    };
    (0..count).map(number).collect()
}

fn address(first: Ipv4Addr, number: usize) -> Ipv4Addr {
    let number = u32::try_from(number).unwrap_or(u32::MAX);
    Ipv4Addr::from_bits(first.to_bits().wrapping_add(number))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_change_replaces_one_endpoint() {
        for count in [1, 3, 100] {
            for changes in 0..250 {
                let [was, is] = [changes, changes + 1].map(|changes| replaced(7, count, changes));
                let new: Vec<_> = is.iter().filter(|number| !was.contains(number)).collect();
                assert_eq!(new, [&(FRESH + changes + 1)], "{count} {changes}");
                assert_eq!(is.iter().collect::<BTreeSet<_>>().len(), count);
            }
        }
    }

    #[test]
    fn a_shape_has_all_of_its_endpoints_once() {
        for (shape, endpoints) in [
            (one_service(5_000), 5_000),
            (many_services(20, 10), 200),
            (without_endpoints(10), 0),
            (local_balancers(20), 20),
            (local_endpoints(250), 250),
        ] {
            let all = [shape.after(0), shape.fixed].concat();
            let listed = all.iter().filter_map(|object| object["endpoints"].as_array()).flatten();
            let addresses: Vec<_> = listed.map(|one| one["addresses"][0].to_string()).collect();
            assert_eq!(addresses.len(), endpoints, "{}", shape.name);
            assert_eq!(addresses.iter().collect::<BTreeSet<_>>().len(), endpoints, "{}", shape.name);
        }
    }

    #[test]
    fn addresses_are_in_their_networks() {
        assert_eq!(endpoint_ip(FRESH + 100_000).octets()[1] & 0xf8, 192);
        assert_eq!(balancer_ip(2_000), Ipv4Addr::new(198, 18, 7, 209));
    }
}
