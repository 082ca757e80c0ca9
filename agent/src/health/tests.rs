//! Real sockets on loopback, and every byte of what they answer.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use distributary_model::testing as t;
use distributary_model::{Protocol, Service};
use prometheus_client::registry::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::ports::Ports;
use super::*;
use crate::metrics::Metrics;
use crate::plan::{NodePorts, NodeState};
use crate::sync::Batch;

const LOOPBACK: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
const PATIENCE: Duration = Duration::from_secs(20);

struct World {
    health: Health,
    mailbox: Arc<Mailbox>,
    metrics: Metrics,
}

impl World {
    fn new(served: bool, unhealthy_after_stale: Option<Duration>) -> Self {
        let (mailbox, metrics) = (Arc::new(Mailbox::default()), Metrics::register(&mut Registry::default()));
        let settings = Settings { unhealthy_after_stale, served, ..Settings::plain(t::CLUSTER, "n1") };
        let health = Health::new(settings, mailbox.clone(), metrics.last_heard());
        health.started(Family::V4);
        health.started(Family::V6);
        Self { health, mailbox, metrics }
    }

    /// With every port's task running, at these addresses of IPv4 and at IPv6's loopback.
    fn listening(at: &[IpAddr]) -> Self {
        let world = Self::new(true, None);
        world.listen(at);
        world
    }

    fn listen(&self, at: &[IpAddr]) {
        let state = |at: &[IpAddr]| {
            let node_ports = NodePorts::At(at.iter().copied().collect());
            NodeState { node_ports, ..NodeState::default() }
        };
        let states = [(Family::V4, state(at)), (Family::V6, state(&[Ipv6Addr::LOCALHOST.into()]))];
        let (_, node) = watch::channel(states.into());
        tokio::spawn(Ports::new(self.health.clone(), node).run());
    }

    fn program(&self, services: &[(&str, Option<Service>)]) {
        let services = services.iter().map(|(name, service)| (t::key(name), service.clone().map(Arc::new)));
        self.health.taken(&services.collect(), Instant::now());
        self.health.programmed(Family::V4);
        self.health.programmed(Family::V6);
    }

    /// A change that came so long ago, and that nobody takes up.
    fn stuck(&self, since: Duration) {
        self.mailbox.put(Batch::default(), tokio::time::Instant::now().into_std() - since);
    }
}

/// A Service with a check at that port, and so many ready endpoints here.
fn service(port: u16, endpoints: u8) -> Option<Service> {
    let service = t::service(&["10.96.0.1"])
        .port("http", Protocol::Tcp, 80, 0)
        .header(|header| header.health_check_node_port = port);
    Some((1..=endpoints).fold(service, |service, last| {
        service.endpoint(t::endpoint(&format!("10.0.0.{last}"), "http", 8080).on("n1"))
    }))
}

/// Ports that nobody listens on.
fn free<const N: usize>() -> [u16; N] {
    let held = [(); N].map(|()| std::net::TcpListener::bind((LOOPBACK, 0)).unwrap());
    held.map(|listener| listener.local_addr().unwrap().port())
}

/// The answer but for its date, to one request on a connection of its own.
async fn ask(address: SocketAddr, request: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    stream
        .write_all(format!("{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes())
        .await
        .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    let (date, rest) =
        answer.split_once("Date: ").map(|(before, after)| (before, after.split_once("\r\n").unwrap().1))?;
    Some(format!("{date}{rest}"))
}

async fn until<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let polling = async {
        loop {
            if let Some(value) = probe().await {
                return value;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, polling).await.unwrap_or_else(|_| panic!("waited in vain: {what}"))
}

fn bytes(status: &str, count: usize, healthy: bool) -> String {
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": \"a\",\n\t\t\"name\": \"b\"\n\t}},\n\t\"localEndpoints\": {count},\n\
         \t\"serviceProxyHealthy\": {healthy}\n}}"
    );
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nX-Content-Type-Options: nosniff\r\n\
         X-Load-Balancing-Endpoint-Weight: {count}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[tokio::test]
async fn a118_a119_a120_a_port_answers_every_byte_as_kube_proxy_whatever_is_asked() {
    let (world, [port]) = (World::listening(&[LOOPBACK]), free());
    world.program(&[("a/b", service(port, 2))]);
    let address = SocketAddr::new(LOOPBACK, port);
    let first = until("the port", async || ask(address, "GET /").await).await;
    assert_eq!(first, bytes("200 OK", 2, true));
    assert_eq!(ask(address, "POST /any/path?at=all").await, Some(first));
    world.program(&[("a/b", service(port, 0))]);
    assert_eq!(ask(address, "GET /healthz").await, Some(bytes("503 Service Unavailable", 0, true)));
    world.program(&[("a/b", service(port, 7))]);
    world.stuck(Duration::from_secs(60));
    assert_eq!(ask(address, "GET /").await, Some(bytes("503 Service Unavailable", 7, false)));
}

#[tokio::test]
async fn wart_10_without_a_health_server_the_proxy_is_taken_for_healthy() {
    let (world, [port]) = (World::new(false, None), free());
    world.listen(&[LOOPBACK]);
    world.program(&[("a/b", service(port, 1))]);
    world.stuck(Duration::from_secs(3_600));
    let answer = until("the port", async || ask(SocketAddr::new(LOOPBACK, port), "GET /").await).await;
    assert_eq!(answer, bytes("200 OK", 1, true));
}

#[tokio::test]
async fn a121_another_port_closes_the_old_one_and_a_service_that_goes_closes_its_own() {
    let (world, [old, new]) = (World::listening(&[LOOPBACK]), free());
    let asked = async |port| ask(SocketAddr::new(LOOPBACK, port), "GET /").await;
    world.program(&[("a/b", service(old, 1)), ("a/other", service(new, 0))]);
    until("the first port", async || asked(old).await).await;
    until("the other's port", async || asked(new).await).await;
    // They swap: each must be closed before it can be opened.
    world.program(&[("a/b", service(new, 1)), ("a/other", service(old, 0))]);
    until("the new port", async || asked(new).await.filter(|answer| *answer == bytes("200 OK", 1, true)))
        .await;
    world.program(&[("a/b", service(new, 1)), ("a/other", None)]);
    until("the other's end", async || asked(old).await.is_none().then_some(())).await;
    assert!(asked(new).await.is_some());
}

#[tokio::test]
async fn a122_only_the_addresses_of_node_ports_are_listened_on() {
    let [port] = free();
    let second = IpAddr::from([127, 0, 0, 9]);
    let world = World::listening(&[LOOPBACK, second]);
    world.program(&[("a/b", service(port, 1))]);
    until("the port", async || ask(SocketAddr::new(LOOPBACK, port), "GET /").await).await;
    assert!(ask(SocketAddr::new(second, port), "GET /").await.is_some());
    assert!(ask(SocketAddr::from(([127, 0, 0, 2], port)), "GET /").await.is_none());
}

#[tokio::test]
async fn each_family_has_a_port_and_a_count_of_its_own() {
    let (world, [port]) = (World::listening(&[LOOPBACK]), free());
    let both = service(port, 2)
        .map(|service| service.header(|header| header.cluster_ips.push("fd96::1".parse().unwrap())))
        .map(|service| service.endpoint(t::endpoint("fd00::1", "http", 8080).on("n1")));
    world.program(&[("a/b", both)]);
    let v4 = until("IPv4", async || ask(SocketAddr::new(LOOPBACK, port), "GET /").await).await;
    let v6 =
        until("IPv6", async || ask(SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port), "GET /").await).await;
    assert_eq!((v4, v6), (bytes("200 OK", 2, true), bytes("200 OK", 1, true)));
}

#[tokio::test]
async fn a_port_that_is_taken_is_had_when_it_is_free_and_meanwhile_nothing_of_the_service_is_open() {
    let second = IpAddr::from([127, 0, 0, 9]);
    let taken = std::net::TcpListener::bind((second, 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let [other] = free();
    let world = World::listening(&[LOOPBACK, second]);
    world.program(&[("a/b", service(port, 1)), ("a/other", service(other, 1))]);
    until("the other's port", async || ask(SocketAddr::new(LOOPBACK, other), "GET /").await).await;
    assert!(ask(SocketAddr::new(LOOPBACK, port), "GET /").await.is_none());
    drop(taken);
    tokio::time::pause();
    until("the port", async || ask(SocketAddr::new(LOOPBACK, port), "GET /").await).await;
}

#[tokio::test]
async fn a_thousand_ports_answer_and_close() {
    let world = World::listening(&[LOOPBACK]);
    let ports: [u16; 1000] = free();
    let names: Vec<String> = (0..ports.len()).map(|i| format!("a/s{i}")).collect();
    let all = |endpoints: u8| -> Vec<(&str, Option<Service>)> {
        names.iter().zip(ports).map(|(name, port)| (name.as_str(), service(port, endpoints))).collect()
    };
    world.program(&all(1));
    for port in ports {
        let address = SocketAddr::new(LOOPBACK, port);
        let answer = until("every port", async || ask(address, "GET /").await).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"));
    }
    world.program(&names.iter().map(|name| (name.as_str(), None)).collect::<Vec<_>>());
    let last = SocketAddr::new(LOOPBACK, ports[999]);
    until("the last port's end", async || ask(last, "GET /").await.is_none().then_some(())).await;
}

#[tokio::test]
async fn a127_healthz_and_livez_answer_any_method_and_are_counted() {
    let world = World::new(true, None);
    let [port] = free();
    let address = SocketAddr::new(LOOPBACK, port);
    let counted = world.metrics.kube_proxy.clone();
    tokio::spawn(server::run(address, true, world.health.clone(), counted, CancellationToken::new()));
    let unseen = until("the server", async || ask(address, "GET /healthz").await).await;
    assert!(unseen.starts_with(
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nX-Content-Type-Options: nosniff\r\n"
    ));
    assert!(
        unseen.contains("\"nodeEligible\":false,\"healthy\":true,\"status\":{\"IPv4\":{\"lastUpdated\":\""),
        "{unseen}"
    );
    let live = ask(address, "POST /livez").await.unwrap();
    assert!(live.starts_with("HTTP/1.1 200 OK\r\n") && !live.contains("nodeEligible"), "{live}");
    // A Node that waits to be taken up is seen.
    let node = Some(Some(NodeView::default()));
    world.mailbox.put(Batch { node, ..Batch::default() }, Instant::now());
    assert!(ask(address, "HEAD /healthz").await.unwrap().starts_with("HTTP/1.1 200 OK\r\n"));
    let nowhere = ask(address, "GET /").await.unwrap();
    assert!(
        nowhere.starts_with("HTTP/1.1 404 Not Found\r\n")
            && nowhere.ends_with("\r\n\r\n404 page not found\n")
    );
}

#[tokio::test]
async fn who_is_cut_off_for_longer_than_wanted_gets_no_traffic_and_stays_alive() {
    let world = World::new(true, Some(Duration::ZERO));
    world.health.node(&NodeView::default());
    let (port, _) = world.health.check(&(Family::V4, t::key("a/b")));
    assert!(port.body.contains("\"serviceProxyHealthy\": false"), "{}", port.body);
    assert_eq!((world.health.healthz().status, world.health.livez().status), (503, 200));
}
