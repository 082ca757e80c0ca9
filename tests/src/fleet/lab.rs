//! A few real nodes: real agents on real kernels, two real servers that follow one directory of manifests, and the truth
//! that all of it must come to, whatever was done to the processes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use distributary_agent::iptables::parse;
use distributary_agent::iptables::trace::{From, Host, Packet, Rules};
use distributary_model::Protocol;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::forward::Forward;
use crate::manifests::Manifests;
use crate::netns::Namespace;
use crate::node::TARGET;
use crate::objects;
use crate::process::{Running, binary, prefixed, scratch};
use crate::wait::within;

/// Where the two servers listen.
const SERVERS: [&str; 2] = ["127.0.0.1:7400", "127.0.0.1:7500"];
/// Where they answer probes.
const ADMINS: [&str; 2] = ["127.0.0.1:7401", "127.0.0.1:7501"];
const NAMESPACE: &str = "shop";
/// Mounts a small disk, fills it, and becomes the program that follows.
const FULL_DISK: &str =
    r#"mount -t tmpfs -o size=256k none "$0"; head -c 1M /dev/zero > "$0/filling" || true; exec "$@""#;
/// A server that says nothing for three heartbeats is left, then its rules are to be written: on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// All of it.
#[derive(Debug)]
pub struct Lab {
    manifests: Manifests,
    /// Where disks are mounted.
    state: TempDir,
    hub: Arc<Namespace>,
    /// The servers; `None`: one that is down.
    pub servers: [Option<Running>; 2],
    /// The nodes.
    pub nodes: Vec<Node>,
    /// The endpoints of every Service that there is, by its number.
    truth: BTreeMap<u8, BTreeSet<Ipv4Addr>>,
    chance: fastrand::Rng,
    next: u32,
}

/// A namespace with an agent.
#[derive(Debug)]
pub struct Node {
    name: String,
    namespace: Arc<Namespace>,
    /// The agent; `None` while it is down.
    pub agent: Option<Running>,
    arguments: Vec<String>,
    /// Where a disk of its own is mounted, which is full when the agent starts.
    full_disk: Option<PathBuf>,
    _doors: Vec<Forward>,
}

impl Lab {
    /// With so many nodes and Services, all in step. Agents are given more arguments by their number.
    ///
    /// # Errors
    /// When it cannot be set up, or does not come in step.
    pub fn start(
        nodes: usize,
        services: u8,
        seed: u64,
        arguments: impl Fn(usize) -> Vec<String>,
    ) -> Result<Self> {
        let hub = Arc::new(Namespace::new()?);
        let node = |(index, namespace): (usize, Namespace)| {
            let namespace = Arc::new(namespace);
            let door = |server: &&str| {
                let address: SocketAddr = server.parse()?;
                Forward::open(&Some(Arc::clone(&namespace)), address, &Some(Arc::clone(&hub)), address)
            };
            let doors = SERVERS.iter().map(door).collect::<Result<_>>()?;
            Ok(Node {
                name: format!("node-{index}"),
                namespace,
                agent: None,
                arguments: arguments(index),
                full_disk: None,
                _doors: doors,
            })
        };
        let nodes = Namespace::several(nodes)?.into_iter().enumerate().map(node).collect::<Result<_>>()?;
        let mut lab = Self {
            manifests: Manifests::new()?,
            state: scratch("state")?,
            hub,
            servers: [None, None],
            nodes,
            truth: BTreeMap::new(),
            chance: fastrand::Rng::with_seed(seed),
            next: 0,
        };
        lab.write_nodes()?;
        for service in 1..=services {
            lab.set(service, 6)?;
        }
        (0..2).try_for_each(|index| lab.start_server(index))?;
        (0..lab.nodes.len()).try_for_each(|index| lab.start_agent(index))?;
        lab.in_step()?;
        Ok(lab)
    }

    /// Starts a server.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_server(&mut self, index: usize) -> Result<()> {
        let mut command = Command::new(binary("distributary-server"));
        command.args(["--source", &self.manifests.source(), "--listen", SERVERS[index]]);
        command.args(["--admin-listen", ADMINS[index], "--log", "info", "--log-format", "json"]);
        self.servers[index] = Some(self.hub.spawn("distributary-server", &command)?);
        Ok(())
    }

    /// Starts an agent. The servers are in another order for every second one.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_agent(&mut self, index: usize) -> Result<()> {
        let node = &mut self.nodes[index];
        let mut command = Command::new(binary("distributary-agent"));
        let servers = [SERVERS[index % 2], SERVERS[(index + 1) % 2]].join(",");
        command.args([
            "run",
            "--server",
            &servers,
            "--node-name",
            &node.name,
            "--conntrack-max-per-core",
            "0",
        ]);
        command.args(["--log", "info", "--log-format", "json"]).args(&node.arguments);
        if let Some(disk) = &node.full_disk {
            let mut below = Command::new("unshare");
            below.args(["--mount", "sh", "-ec", FULL_DISK]).arg(disk);
            command.arg("--state-dir").arg(disk);
            command = prefixed(&below, &command);
        }
        node.agent = Some(node.namespace.spawn("distributary-agent", &command)?);
        Ok(())
    }

    /// Kills an agent, and starts one whose state directory is on a disk that is full. Others do not see that disk.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn fill_disk(&mut self, index: usize) -> Result<()> {
        self.nodes[index].full_disk = Some(self.state.path().to_owned());
        self.replace_agent(index)
    }

    /// Kills a server by SIGKILL, and starts another.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn replace_server(&mut self, index: usize) -> Result<()> {
        self.servers[index] = None;
        self.start_server(index)
    }

    /// Kills an agent by SIGKILL, and starts another.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn replace_agent(&mut self, index: usize) -> Result<()> {
        self.nodes[index].agent = None;
        self.start_agent(index)
    }

    /// Makes so many changes: endpoints come and go, and now and then a whole Service does.
    ///
    /// # Errors
    /// When a manifest cannot be written.
    pub fn churn(&mut self, changes: usize) -> Result<()> {
        for _ in 0..changes {
            let services = u8::try_from(self.truth.len()).unwrap_or(u8::MAX).max(8);
            let service = self.chance.u8(1..=services);
            match self.chance.u8(..20) {
                0 => self.remove(service)?,
                1 => self.set(service, 0)?,
                2..6 => {
                    let endpoints = self.chance.usize(1..12);
                    self.set(service, endpoints)?;
                }
                _ => self.roll(service)?,
            }
        }
        Ok(())
    }

    /// Replaces one endpoint.
    fn roll(&mut self, service: u8) -> Result<()> {
        let new = self.address();
        let endpoints = self.truth.entry(service).or_default();
        endpoints.pop_first();
        endpoints.insert(new);
        self.write(service)
    }

    fn set(&mut self, service: u8, endpoints: usize) -> Result<()> {
        let endpoints = (0..endpoints).map(|_| self.address()).collect();
        self.truth.insert(service, endpoints);
        self.write(service)
    }

    fn remove(&mut self, service: u8) -> Result<()> {
        match self.truth.remove(&service) {
            Some(_) => self.manifests.remove(&format!("{service}.json")),
            None => Ok(()),
        }
    }

    /// One that no endpoint ever had.
    fn address(&mut self) -> Ipv4Addr {
        self.next += 1;
        Ipv4Addr::from_bits((10 << 24 | 128 << 16) + self.next)
    }

    fn write(&self, service: u8) -> Result<()> {
        let name = format!("service-{service}");
        let ip = cluster_ip(service);
        let spec = json!({"clusterIP": ip, "clusterIPs": [ip], "ipFamilies": ["IPv4"],
            "ports": [{"name": "http", "port": 80}]});
        let nodes = self.nodes.len();
        let endpoint = |(index, address): (usize, &Ipv4Addr)| {
            json!({"addresses": [address], "nodeName": format!("node-{}", index % nodes),
                "conditions": {"ready": true}})
        };
        let endpoints: Vec<Value> = self.truth[&service].iter().enumerate().map(endpoint).collect();
        let ports = json!([{"name": "http", "protocol": "TCP", "port": TARGET}]);
        let slice =
            objects::endpoint_slice(NAMESPACE, &format!("{name}-1"), &name, &ports, &json!(endpoints));
        self.manifests.put(&format!("{service}.json"), &[objects::service(NAMESPACE, &name, &spec), slice])
    }

    fn write_nodes(&self) -> Result<()> {
        let nodes: Vec<Value> = self
            .nodes
            .iter()
            .map(|node| json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node.name}}))
            .collect();
        self.manifests.put("nodes.json", &nodes)
    }

    /// Waits until the kernel of every node says what the manifests say, and nothing else.
    ///
    /// # Errors
    /// When it does not by then: what it says of which Service, and the end of the agent's log.
    pub fn in_step(&self) -> Result<()> {
        for node in &self.nodes {
            let mut last = None;
            let found = within(PATIENCE, || match node.wrong(&self.truth) {
                Ok(None) => Some(()),
                wrong => {
                    last = Some(wrong);
                    None
                }
            });
            let log = node.agent.as_ref().map(Running::tail).unwrap_or_default();
            ensure!(
                found.is_some(),
                "{} has not come in step: {last:?}; its agent's log ends\n{log}",
                node.name
            );
        }
        Ok(())
    }

    /// Whether the kernel of every node still says exactly what it was made to say.
    ///
    /// # Errors
    /// When one does not.
    pub fn is_in_step(&self) -> Result<()> {
        for node in &self.nodes {
            let wrong = node.wrong(&self.truth)?;
            ensure!(wrong.is_none(), "{} is not in step: {wrong:?}", node.name);
        }
        Ok(())
    }
}

impl Node {
    /// The first thing of its rules that is not true.
    fn wrong(&self, truth: &BTreeMap<u8, BTreeSet<Ipv4Addr>>) -> Result<Option<String>> {
        let saved = self.namespace.shell("iptables-save")?;
        let rules = Rules::read(&parse(&saved));
        let (host, none) = (Host::default(), BTreeSet::new());
        for service in 1..=u8::MAX {
            let packet = Packet {
                from: From::Elsewhere,
                source: Ipv4Addr::new(192, 0, 2, 77).into(),
                destination: cluster_ip(service).into(),
                protocol: Protocol::Tcp,
                port: 80,
            };
            let fate = rules.fate(&host, &packet);
            let to: BTreeSet<Ipv4Addr> = fate.to.iter().filter_map(|(to, ..)| v4(to.ip())).collect();
            let wanted = truth.get(&service);
            let right = to == *wanted.unwrap_or(&none)
                && fate.refused.is_some() == wanted.is_some_and(BTreeSet::is_empty)
                && fate.unknown.is_none();
            if !right {
                return Ok(Some(format!("service-{service}: {fate:?}, wanted {wanted:?}")));
            }
        }
        Ok(None)
    }
}

fn cluster_ip(service: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 96, 0, service)
}

fn v4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(v4) => Some(v4),
        IpAddr::V6(_) => None,
    }
}
