//! A node under test: its surroundings, a directory of manifests, both binaries, and a server in every pod.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use crate::deployed::{self, PATIENCE};
use crate::manifests::Manifests;
use crate::objects;
use crate::process::Running;
use crate::topology::{Pod, Topology};
use crate::traffic::{Client, Failure, Protocol, Reply, Server, sctp_in_kernel};
use crate::wait::within;

/// The port of every pod's servers.
pub const TARGET: u16 = 8080;
/// Where the agent's metrics are, in the node.
pub const AGENT_ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 10249);
/// Where the server's metrics are, in the node.
pub const SERVER_ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 7401);

/// A node that is served and programmed.
#[derive(Debug)]
pub struct Node {
    /// The surroundings: two pods, one remote pod, an outside.
    pub world: Topology,
    /// What the server follows.
    pub manifests: Manifests,
    /// The server; `None` while it is down.
    pub server: Option<Running>,
    /// The agent; `None` while it is down.
    pub agent: Option<Running>,
    /// The server's arguments beside its addresses.
    pub server_arguments: Vec<String>,
    /// The agent's arguments beside what every agent has.
    pub agent_arguments: Vec<String>,
    _answering: Vec<Server>,
}

impl Node {
    /// The surroundings, with nothing running in the node.
    ///
    /// # Errors
    /// When they cannot be made.
    pub fn prepare(agent_arguments: &[&str]) -> Result<Self> {
        let world = Topology::new(2, 1)?;
        let manifests = Manifests::new()?;
        let mut answering = Vec::new();
        let protocols: &[Protocol] = match sctp_in_kernel() {
            true => &[Protocol::Tcp, Protocol::Udp, Protocol::Sctp],
            false => &[Protocol::Tcp, Protocol::Udp],
        };
        for pod in world.pods.iter().chain(&world.remote_pods) {
            for protocol in protocols {
                answering.push(pod.serve(*protocol, TARGET)?);
            }
        }
        Ok(Self {
            server_arguments: vec!["--source".into(), manifests.source()],
            world,
            manifests,
            server: None,
            agent: None,
            agent_arguments: agent_arguments.iter().map(ToString::to_string).collect(),
            _answering: answering,
        })
    }

    /// The same with these objects, a server, and an agent that has programmed them.
    ///
    /// # Errors
    /// When something does not start.
    pub fn start(objects: impl FnOnce(&Topology) -> Vec<Value>, agent_arguments: &[&str]) -> Result<Self> {
        let mut node = Self::prepare(agent_arguments)?;
        node.manifests.put("all.json", &objects(&node.world))?;
        node.start_server()?;
        node.start_agent()?;
        Ok(node)
    }

    /// Starts the server.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_server(&mut self) -> Result<()> {
        let arguments: Vec<&str> = self.server_arguments.iter().map(String::as_str).collect();
        self.server = Some(deployed::server(&self.world.node, &arguments)?);
        Ok(())
    }

    /// Starts the agent, and waits until it has programmed what the server has.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_agent(&mut self) -> Result<()> {
        let arguments: Vec<&str> = self.agent_arguments.iter().map(String::as_str).collect();
        self.agent = Some(deployed::agent(&self.world.node, "node-a", &arguments)?);
        let _ = deployed::wait_ok(&self.world.node, AGENT_ADMIN, "/readyz");
        Ok(())
    }

    /// How often the agent has programmed something.
    #[must_use]
    pub fn programmed(&self) -> usize {
        self.agent.as_ref().map_or(0, |agent| deployed::logged(agent, "programmed").len())
    }

    /// Everything that the tables of both flavours hold, without counters.
    #[must_use]
    pub fn rules(&self) -> String {
        let save = "for f in nft legacy; do for t in iptables ip6tables; do $t-$f-save; done; done";
        let all = self.world.node.script(save).unwrap_or_default();
        let kept = all.lines().filter(|line| !line.starts_with('#'));
        kept.map(|line| line.split(" [").next().unwrap_or(line)).collect::<Vec<_>>().join("\n")
    }

    /// Asks until the answer is what is wanted, since rules take a moment to follow.
    ///
    /// # Panics
    /// When it does not become that; with the last answer, the agent's log and the rules.
    pub fn expect(
        &self,
        what: &str,
        client: &Client,
        protocol: Protocol,
        target: SocketAddr,
        wanted: impl Fn(&Result<Reply, Failure>) -> bool,
    ) -> Result<Reply, Failure> {
        let client = client.with_timeout(Duration::from_millis(700));
        let mut last = None;
        let found = within(PATIENCE, || {
            let answer = client.ask(protocol, target);
            let right = wanted(&answer);
            last = Some(answer.clone());
            right.then_some(answer)
        });
        found.unwrap_or_else(|| {
            let log = self.agent.as_ref().map(Running::tail).unwrap_or_default();
            panic!("{what}: {protocol} {target} answers {last:?}\nagent:\n{log}\nrules:\n{}", self.rules())
        })
    }

    /// Asks until exactly these answer, each at least once, in a row of requests with nobody else among them.
    ///
    /// # Panics
    /// When they do not.
    pub fn expect_only(
        &self,
        what: &str,
        client: &Client,
        protocol: Protocol,
        target: SocketAddr,
        wanted: &[&str],
    ) {
        let client = client.with_timeout(Duration::from_millis(700));
        let mut last = None;
        let found = within(PATIENCE, || {
            let spread = client.spread(protocol, target, 8 * wanted.len());
            let right = spread.keys().map(String::as_str).eq(wanted.iter().copied());
            last = Some(spread);
            right.then_some(())
        });
        if found.is_none() {
            let log = self.agent.as_ref().map(Running::tail).unwrap_or_default();
            panic!(
                "{what}: {protocol} {target} is answered by {last:?}, wanted {wanted:?}\nagent:\n{log}\nrules:\n{}",
                self.rules()
            );
        }
    }
}

/// A Service of both families at `10.96.0.LAST` and `fd96::LAST` with the ports tcp/80, udp/80 and sctp/80, all on the
/// node port `node_port` where that is not 0.
#[must_use]
pub fn service(name: &str, last: u8, node_port: u16, more: &Value) -> Value {
    let port = |name: &str, protocol: &str| {
        let mut port = json!({"name": name, "protocol": protocol, "port": 80});
        if node_port != 0 {
            port["nodePort"] = json!(node_port);
        }
        port
    };
    let (v4, v6) = (format!("10.96.0.{last}"), format!("fd96::{last:x}"));
    let mut spec = json!({
        "type": if node_port == 0 { "ClusterIP" } else { "NodePort" },
        "clusterIP": v4, "clusterIPs": [v4, v6], "ipFamilies": ["IPv4", "IPv6"],
        "ports": [port("t", "TCP"), port("u", "UDP"), port("s", "SCTP")],
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    objects::service("shop", name, &spec)
}

/// The slices of a Service, one a family, with these pods. `node-a` is the node of the local ones.
#[must_use]
pub fn slices(name: &str, pods: &[&Pod]) -> Vec<Value> {
    let ports = json!([
        {"name": "t", "protocol": "TCP", "port": TARGET},
        {"name": "u", "protocol": "UDP", "port": TARGET},
        {"name": "s", "protocol": "SCTP", "port": TARGET},
    ]);
    let endpoints = |address: &dyn Fn(&Pod) -> String| -> Value {
        let endpoint = |pod: &&Pod| {
            let node = if pod.name.starts_with("remote") { "node-b" } else { "node-a" };
            json!({"addresses": [address(pod)], "nodeName": node, "conditions": {"ready": true}})
        };
        pods.iter().map(endpoint).collect()
    };
    let v4 = endpoints(&|pod| pod.addresses.v4.to_string());
    let v6 = endpoints(&|pod| pod.addresses.v6.to_string());
    let of_family = |family: &str, endpoints: &Value| {
        let mut slice = objects::endpoint_slice("shop", &format!("{name}-{family}"), name, &ports, endpoints);
        slice["addressType"] = json!(if family == "v4" { "IPv4" } else { "IPv6" });
        slice
    };
    vec![of_family("v4", &v4), of_family("v6", &v6)]
}

/// `10.96.0.LAST:80` and `[fd96::LAST]:80`.
#[must_use]
pub fn cluster_ips(last: u8) -> [SocketAddr; 2] {
    let v6 = std::net::Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, last.into());
    [(std::net::Ipv4Addr::new(10, 96, 0, last), 80).into(), (v6, 80).into()]
}
