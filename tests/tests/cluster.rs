//! Both binaries with a real kube-apiserver and etcd, in one namespace: whatever happens to objects, connections and
//! history, packets follow.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use distributary_e2e::controlplane::ControlPlane;
use distributary_e2e::deployed::{self, PATIENCE, logged};
use distributary_e2e::node::{AGENT_ADMIN, Node, SERVER_ADMIN, TARGET};
use distributary_e2e::objects;
use distributary_e2e::topology::{NODE, Pod};
use distributary_e2e::traffic::{Failure, Protocol};
use distributary_e2e::wait::until;
use jiff::Timestamp;
use kube::Client;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

struct World {
    node: Node,
    cluster: ControlPlane,
    client: Client,
    namespace: String,
}

impl World {
    async fn start() -> Result<Self> {
        let mut node = Node::prepare(&[])?;
        let cluster = ControlPlane::start_in(&node.world.node)?;
        let client = cluster.client().await?;
        let namespace = objects::unique_namespace(&client).await?;
        let kubeconfig = cluster.kubeconfig().display().to_string();
        node.server_arguments =
            ["--source", "kubernetes", "--kubeconfig", &kubeconfig].map(str::to_owned).to_vec();
        node.start_server()?;
        node.start_agent()?;
        Ok(Self { node, cluster, client, namespace })
    }

    /// Makes a Service, and gives its cluster IP and the outside's way to its node port, where it has one.
    async fn service(&self, name: &str, spec: &Value) -> Result<(SocketAddr, SocketAddr)> {
        let made = objects::apply(&self.client, &objects::service(&self.namespace, name, spec)).await?;
        let ip = made.pointer("/spec/clusterIP").and_then(Value::as_str).context("a cluster IP")?;
        let port = made.pointer("/spec/ports/0/nodePort").and_then(Value::as_u64).unwrap_or(0);
        Ok((SocketAddr::new(ip.parse()?, 80), SocketAddr::new(NODE.v4.into(), u16::try_from(port)?)))
    }

    fn slice(&self, name: &str, service: &str, pods: &[&Pod]) -> Value {
        let ports = json!([{"name": "http", "protocol": "TCP", "port": TARGET}]);
        let endpoints: Vec<Value> = pods
            .iter()
            .map(|pod| json!({"addresses": [pod.addresses.v4.to_string()], "nodeName": "node-a", "conditions": {"ready": true}}))
            .collect();
        let mut slice = objects::endpoint_slice(&self.namespace, name, service, &ports, &json!(endpoints));
        slice["addressType"] = json!("IPv4");
        slice
    }

    async fn slices(&self, name: &str, service: &str, pods: &[&Pod]) -> Result<()> {
        objects::apply(&self.client, &self.slice(name, service, pods)).await.map(|_| ())
    }

    fn pods(&self) -> [&Pod; 3] {
        [&self.node.world.pods[0], &self.node.world.pods[1], &self.node.world.remote_pods[0]]
    }

    fn only(&self, what: &str, target: SocketAddr, wanted: &[&str]) {
        let client = self.node.world.pods[0].client_for(target.ip());
        self.node.expect_only(what, &client, Protocol::Tcp, target, wanted);
    }

    fn refused(&self, what: &str, target: SocketAddr) {
        let client = self.node.world.pods[0].client_for(target.ip());
        let _ =
            self.node.expect(what, &client, Protocol::Tcp, target, |answer| *answer == Err(Failure::Refused));
    }

    fn server_says(&self, message: &str) -> usize {
        self.node.server.as_ref().map_or(0, |server| logged(server, message).len())
    }
}

fn http() -> Value {
    json!({"type": "NodePort", "ports": [{"name": "http", "port": 80}]})
}

#[tokio::test]
async fn packets_follow_a_service_through_its_life() -> Result<()> {
    let world = World::start().await?;
    let [a, b, c] = world.pods();
    let (web, node_port) = world.service("web", &http()).await?;
    world.refused("a service without endpoints", web);

    world.slices("web-1", "web", &[a]).await?;
    world.only("one endpoint", web, &["pod-0"]);
    world.slices("web-2", "web", &[b, c]).await?;
    world.only("scaled up by a second slice", web, &["pod-0", "pod-1", "remote-0"]);
    let outside = world.node.world.outsider().client_for(node_port.ip());
    world.node.expect_only(
        "its node port",
        &outside,
        Protocol::Tcp,
        node_port,
        &["pod-0", "pod-1", "remote-0"],
    );

    // A rolling update: the old pod terminates in one slice while the new one comes in the other.
    let mut rolling = world.slice("web-1", "web", &[a]);
    rolling["endpoints"][0]["conditions"] = json!({"ready": false, "serving": true, "terminating": true});
    objects::apply(&world.client, &rolling).await?;
    world.only("a terminating endpoint beside ready ones", web, &["pod-1", "remote-0"]);
    objects::delete(&world.client, "EndpointSlice", Some(&world.namespace), "web-2").await?;
    world.only("only a terminating endpoint is left", web, &["pod-0"]);
    objects::delete(&world.client, "EndpointSlice", Some(&world.namespace), "web-1").await?;
    world.refused("scaled to nothing", web);

    // Slices of services that are not there yet, and more of them at once.
    for name in ["x", "y", "z"] {
        world.slices(&format!("{name}-1"), name, &[b]).await?;
    }
    for name in ["x", "y", "z"] {
        let (target, _) = world.service(name, &http()).await?;
        world.only("a service after its slice", target, &["pod-1"]);
    }

    objects::delete(&world.client, "Service", Some(&world.namespace), "web").await?;
    until("no rule is left of the deleted service", PATIENCE, || {
        (!world.node.rules().contains("/web")).then_some(())
    });

    // The proxy's name hands a Service over to another proxy, and back.
    let (x, _) = world.service("x", &http()).await?;
    let mut labelled = objects::service(&world.namespace, "x", &http());
    labelled["metadata"]["labels"] = json!({"service.kubernetes.io/service-proxy-name": "other"});
    objects::apply(&world.client, &labelled).await?;
    until("another proxy's service has no rules", PATIENCE, || {
        (!world.node.rules().contains("/x:")).then_some(())
    });
    objects::apply(&world.client, &objects::service(&world.namespace, "x", &http())).await?;
    world.only("handed back", x, &["pod-1"]);
    Ok(())
}

#[tokio::test]
async fn what_no_node_could_see_sends_and_writes_nothing() -> Result<()> {
    let world = World::start().await?;
    let [a, b, _] = world.pods();
    let (web, _) = world.service("web", &http()).await?;
    world.slices("web-1", "web", &[a]).await?;
    world.only("at first", web, &["pod-0"]);
    let sent = || deployed::metric(&world.node.world.node, SERVER_ADMIN, "distributary_server_commits_total");
    let (before, programmed) = (sent(), world.node.programmed());
    let mut labelled = world.slice("web-1", "web", &[a]);
    labelled["metadata"]["labels"]["team"] = json!("shop");
    labelled["metadata"]["annotations"] = json!({"note": "new"});
    objects::apply(&world.client, &labelled).await?;
    // What comes after it shows that it was seen.
    world.slices("other-1", "other", &[b]).await?;
    let (other, _) = world.service("other", &http()).await?;
    world.only("what came after", other, &["pod-1"]);
    assert_eq!(sent(), before.map(|commits| commits + 1.0), "the label is no commit");
    assert_eq!(world.node.programmed(), programmed + 1);
    Ok(())
}

#[tokio::test]
async fn a_changed_slice_is_measured_from_its_trigger_time_and_a_restart_measures_nothing() -> Result<()> {
    let mut world = World::start().await?;
    let (web, _) = world.service("web", &http()).await?;
    world.slices("web-1", "web", &[world.pods()[0]]).await?;
    world.only("a slice that does not say when", web, &["pod-0"]);
    let observed = |world: &World, what: &str| {
        let name = format!(r#"kubeproxy_network_programming_duration_seconds_{what}{{ip_family="IPv4"}}"#);
        deployed::metric(&world.node.world.node, AGENT_ADMIN, &name)
    };
    assert_eq!(observed(&world, "count"), None);

    let (began, trigger) = (Instant::now(), Timestamp::now().to_string());
    let aged = |world: &World, pods: &[&Pod], team: &str| {
        let mut slice = world.slice("web-1", "web", pods);
        slice["metadata"]["annotations"] = json!({ objects::TRIGGERED: trigger });
        slice["metadata"]["labels"]["team"] = json!(team);
        slice
    };
    until("the trigger is two seconds ago", PATIENCE, || {
        (began.elapsed() >= Duration::from_secs(2)).then_some(())
    });
    objects::apply(&world.client, &aged(&world, &[world.pods()[1]], "shop")).await?;
    world.only("a slice that was triggered earlier", web, &["pod-1"]);
    until("it is measured", PATIENCE, || (observed(&world, "count") == Some(1.0)).then_some(()));
    let sum = observed(&world, "sum").context("a sum")?;
    assert!((2.0..10.0).contains(&sum) && sum <= began.elapsed().as_secs_f64() + 0.1, "{sum} s");

    objects::apply(&world.client, &aged(&world, &[world.pods()[1]], "cart")).await?;
    world.slices("other-1", "other", &[world.pods()[0]]).await?;
    let (other, _) = world.service("other", &http()).await?;
    world.only("what came after a label", other, &["pod-0"]);
    assert_eq!(observed(&world, "count"), Some(1.0), "a label is no change");

    world.node.server.as_mut().context("it runs")?.terminate(Duration::from_secs(15))?;
    objects::apply(&world.client, &aged(&world, &[world.pods()[2]], "cart")).await?;
    world.node.start_server()?;
    world.only("another server", web, &["remote-0"]);
    assert_eq!(observed(&world, "count"), Some(1.0), "a snapshot measures nothing");
    Ok(())
}

#[tokio::test]
async fn outages_and_lost_history_end_in_step() -> Result<()> {
    let mut world = World::start().await?;
    let (web, _) = world.service("web", &http()).await?;
    let (gone, _) = world.service("gone", &http()).await?;
    world.slices("web-1", "web", &[world.pods()[0]]).await?;
    world.slices("gone-1", "gone", &[world.pods()[0]]).await?;
    world.only("at first", web, &["pod-0"]);
    world.only("at first", gone, &["pod-0"]);

    // The API is away: rules stay. It is back: what changes is followed.
    world.cluster.stop_apiserver();
    world.only("without an API", web, &["pod-0"]);
    world.cluster.start_apiserver()?;
    world.slices("web-1", "web", &[world.pods()[1]]).await?;
    world.only("the API is back", web, &["pod-1"]);

    // The watch gets 410, and what was deleted meanwhile was never told: the list shows it.
    let server = world.node.server.as_mut().context("it runs")?;
    server.signal(Signal::SIGSTOP)?;
    objects::delete(&world.client, "Service", Some(&world.namespace), "gone").await?;
    objects::delete(&world.client, "EndpointSlice", Some(&world.namespace), "web-1").await?;
    world.slices("web-2", "web", &[world.pods()[2]]).await?;
    world.cluster.forget_history()?;
    world.node.server.as_mut().context("it runs")?.signal(Signal::SIGCONT)?;
    world.only("after a list", web, &["remote-0"]);
    until("the service that went unseen is gone", PATIENCE, || {
        (!world.node.rules().contains("/gone")).then_some(())
    });

    // A stream that is cut is resumed; a server that is killed is replaced by one that knows nothing of the first.
    let begun = world.server_says("stream begins");
    world.node.agent.as_mut().context("it runs")?.signal(Signal::SIGSTOP)?;
    world.slices("web-2", "web", &[world.pods()[0], world.pods()[2]]).await?;
    world.node.agent.as_mut().context("it runs")?.signal(Signal::SIGCONT)?;
    world.only("an agent that was stalled", web, &["pod-0", "remote-0"]);
    assert_eq!(world.server_says("stream begins"), begun, "a stall ends no stream");
    world.node.server.as_mut().context("it runs")?.kill9();
    world.only("without a server", web, &["pod-0", "remote-0"]);
    world.slices("web-2", "web", &[world.pods()[1]]).await?;
    world.node.start_server()?;
    world.only("another server", web, &["pod-1"]);
    let rules = world.node.rules();
    world.node.server.as_mut().context("it runs")?.terminate(Duration::from_secs(15))?;
    world.node.start_server()?;
    world.slices("web-2", "web", &[world.pods()[0]]).await?;
    world.only("a third server", web, &["pod-0"]);
    assert_ne!(world.node.rules(), rules);
    Ok(())
}

#[tokio::test]
async fn a_server_is_ready_when_every_kind_has_listed_and_waits_for_an_api_that_is_away() -> Result<()> {
    let mut node = Node::prepare(&[])?;
    let cluster = ControlPlane::start_in(&node.world.node)?;
    cluster.stop_apiserver();
    let kubeconfig = cluster.kubeconfig().display().to_string();
    node.server_arguments =
        ["--source", "kubernetes", "--kubeconfig", &kubeconfig].map(str::to_owned).to_vec();
    node.start_server()?;
    let answer =
        until("the admin port", PATIENCE, || deployed::get(&node.world.node, SERVER_ADMIN, "/readyz"));
    assert_eq!(answer, (503, "waiting for the initial lists".into()));
    cluster.start_apiserver()?;
    let _ = deployed::wait_ok(&node.world.node, SERVER_ADMIN, "/readyz");
    node.start_agent()?;
    // default/kubernetes is made by every apiserver itself.
    until("the API's own service", PATIENCE, || {
        node.rules().contains("default/kubernetes:https").then_some(())
    });
    Ok(())
}
