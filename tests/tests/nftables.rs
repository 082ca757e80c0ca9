//! The nftables backend on a node: shrinking services under traffic, a table that somebody deletes, neighbours whose
//! tables stay as they are, and the way from one backend to the other and back.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use distributary_e2e::deployed::{self, PATIENCE};
use distributary_e2e::node::{AGENT_ADMIN, Node, TARGET};
use distributary_e2e::objects;
use distributary_e2e::process::binary;
use distributary_e2e::topology::{NODE, Pod};
use distributary_e2e::traffic::Responder;
use distributary_e2e::traffic::flood::{Flood, Origin, Tally};
use distributary_e2e::wait::until;
use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard};

/// Where the pods answer.
const PORT: u16 = 9090;
const NODE_PORT: u16 = 30_090;
const NAMESPACE: &str = "shop";
/// New flows a second from each origin.
const RATE: u32 = 200;
/// Connections that last, from each origin.
const LASTING: usize = 10;

/// One world at a time: a machine that is too slow for two of them would lose packets by itself.
static TURN: Mutex<()> = Mutex::const_new(());

struct World {
    node: Node,
    _answering: Vec<Responder>,
    _turn: MutexGuard<'static, ()>,
}

impl World {
    /// A node with a server, and nobody who programs it.
    async fn start() -> Result<Self> {
        let turn = TURN.lock().await;
        let mut node = Node::prepare(&[])?;
        let pods = node.world.pods.iter().chain(&node.world.remote_pods);
        let answering = pods.map(|pod| Responder::start(&pod.namespace, &pod.addresses.both(), PORT));
        let answering = answering.collect::<Result<_>>()?;
        let addresses: Vec<Value> =
            NODE.both().iter().map(|ip| json!({"type": "InternalIP", "address": ip})).collect();
        node.manifests.put(
            "node.json",
            &[json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-a"},
                "status": {"addresses": addresses}})],
        )?;
        node.start_server()?;
        let world = Self { node, _answering: answering, _turn: turn };
        world.roll(&world.pods())?;
        Ok(world)
    }

    fn pods(&self) -> Vec<&Pod> {
        self.node.world.pods.iter().chain(&self.node.world.remote_pods).collect()
    }

    /// Gives the services these pods: one at every kind of address, one of policy Local, one whose clients are remembered,
    /// and one whose pods say who they are.
    fn roll(&self, pods: &[&Pod]) -> Result<()> {
        let mut all = Vec::new();
        for (last, name, more) in [
            (1, "plain", json!({"externalIPs": ["203.0.113.1", "2001:db8:ffff::1"]})),
            (2, "local", json!({"externalTrafficPolicy": "Local"})),
            (3, "sticky", json!({"sessionAffinity": "ClientIP"})),
            (4, "asked", json!({})),
        ] {
            all.push(service(name, last, &more));
            all.extend(slices(name, pods, if last == 4 { TARGET } else { PORT }));
        }
        self.node.manifests.put("all.json", &all)
    }

    /// The same, and waits until the agent has programmed it.
    fn roll_and_wait(&self, pods: &[&Pod]) -> Result<()> {
        let before = self.node.programmed();
        self.roll(pods)?;
        until("it to be programmed", PATIENCE, || (self.node.programmed() > before).then_some(()));
        Ok(())
    }

    fn flood(&self) -> Result<Flood> {
        let at = |last: u16| [format!("10.96.0.{last}:80"), format!("[fd96::{last:x}]:80")];
        let mut targets: Vec<SocketAddr> =
            (1..=3).flat_map(at).map(|target| target.parse()).collect::<Result<_, _>>()?;
        targets.extend(NODE.both().map(|ip| SocketAddr::new(ip, NODE_PORT)));
        for external in ["203.0.113.1", "2001:db8:ffff::1"] {
            targets.push(SocketAddr::new(external.parse()?, 80));
        }
        let around = &self.node.world;
        let origin = |name, namespace: &Arc<_>| Origin {
            name,
            namespace: Arc::clone(namespace),
            targets: targets.clone(),
        };
        let origins = vec![
            origin("a pod", &around.pods[0].namespace),
            origin("the node", &around.node),
            origin("outside", &around.outside),
        ];
        Flood::start(origins, RATE, LASTING)
    }

    fn start_agent(&mut self, backend: &str) -> Result<()> {
        self.node.agent_arguments = vec![format!("--backend={backend}")];
        self.node.start_agent()
    }

    fn stop_agent(&mut self) -> Result<()> {
        self.node.agent.take().context("it runs")?.terminate(PATIENCE).map(|_| ())
    }

    fn cleanup(&self) -> Result<()> {
        let agent = binary("distributary-agent");
        self.node.world.node.run(&agent.to_string_lossy(), &["cleanup"]).map(|_| ())
    }

    fn nft(&self, command: &str) -> Result<String> {
        self.node.world.node.script(&format!("nft {command}"))
    }

    /// Tables of ours, of both families.
    fn tables(&self) -> usize {
        let tables = self.nft("list tables").unwrap_or_default();
        tables.lines().filter(|line| line.ends_with(" distributary")).count()
    }

    /// Chains that only the iptables backend has.
    fn chains(&self) -> usize {
        self.node.rules().lines().filter(|line| line.starts_with(":KUBE-SV")).count()
    }
}

fn service(name: &str, last: u8, more: &Value) -> Value {
    let port = |protocol: &str| {
        let mut port = json!({"name": protocol.to_lowercase(), "protocol": protocol, "port": 80});
        if last == 1 {
            port["nodePort"] = json!(NODE_PORT);
        }
        port
    };
    let (v4, v6) = (format!("10.96.0.{last}"), format!("fd96::{last:x}"));
    let mut spec = json!({
        "type": if last == 1 { "NodePort" } else { "ClusterIP" },
        "clusterIP": v4, "clusterIPs": [v4, v6], "ipFamilies": ["IPv4", "IPv6"],
        "ports": [port("TCP"), port("UDP")],
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    objects::service(NAMESPACE, name, &spec)
}

fn slices(name: &str, pods: &[&Pod], port: u16) -> [Value; 2] {
    let ports = json!([
        {"name": "tcp", "protocol": "TCP", "port": port},
        {"name": "udp", "protocol": "UDP", "port": port},
    ]);
    [0, 1].map(|family| {
        let endpoint = |pod: &&Pod| {
            let node = if pod.name.starts_with("remote") { "node-b" } else { "node-a" };
            let address = pod.addresses.both()[family].to_string();
            json!({"addresses": [address], "nodeName": node, "conditions": {"ready": true}})
        };
        let endpoints: Value = pods.iter().map(endpoint).collect();
        let mut slice =
            objects::endpoint_slice(NAMESPACE, &format!("{name}-{family}"), name, &ports, &endpoints);
        slice["addressType"] = json!(if family == 0 { "IPv4" } else { "IPv6" });
        slice
    })
}

/// Waits for so many more flows.
fn more(flood: &Flood, flows: u64) {
    let wanted = flood.flows() + flows;
    until("more flows", Duration::from_secs(120), || (flood.flows() >= wanted).then_some(()));
}

fn nothing_was_lost(tally: &Tally) {
    assert_eq!((tally.failures(), &tally.examples), (0, &Vec::new()), "{tally:?}");
    assert_eq!(tally.lasting, 3 * LASTING as u64, "connections that last");
}

#[tokio::test(flavor = "multi_thread")]
async fn services_that_shrink_and_grow_lose_no_packet() -> Result<()> {
    let mut world = World::start().await?;
    world.start_agent("nftables")?;
    let flood = world.flood()?;
    more(&flood, 300);
    let pods = world.pods();
    // Each goes and comes, first and last of the list among them, down to one and up again.
    for _ in 0..8 {
        for some in [&pods[..2], &pods[1..2], &pods[1..], &pods[..1], &pods[..]] {
            world.roll_and_wait(some)?;
            more(&flood, 50);
        }
    }
    nothing_was_lost(&flood.stop());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_somebody_deletes_is_back_and_neighbours_keep_theirs() -> Result<()> {
    let mut world = World::start().await?;
    // As Docker, a firewall and a CNI have them: hooks at the same places, sets, and maps of verdicts.
    let neighbours = "table ip docker-like {
          chain DOCKER { }
          chain PREROUTING { type nat hook prerouting priority dstnat; policy accept; fib daddr type local jump DOCKER; }
          chain POSTROUTING { type nat hook postrouting priority srcnat; policy accept; ip saddr 172.17.0.0/16 masquerade; }
        }
        table inet firewall-like {
          set trusted { type ipv4_addr; flags interval; elements = { 10.0.0.0/8 } }
          map zones { type ifname : verdict; elements = { \"eth9\" : accept } }
          chain forward { type filter hook forward priority filter + 10; policy accept; ct state established accept; iifname vmap @zones; }
        }
        table ip cali-like {
          chain mangle { type filter hook prerouting priority mangle; policy accept; meta mark and 0x10000 == 0x10000 accept; }
        }";
    let fed = world.node.world.node.feed("nft", &["-f", "-"], neighbours)?;
    assert!(fed.status.success(), "{fed:?}");
    let theirs = |world: &World| {
        let list = ["ip docker-like", "inet firewall-like", "ip cali-like"];
        list.map(|table| world.nft(&format!("list table {table}")).expect("it is there"))
    };
    let before = theirs(&world);
    world.start_agent("nftables")?;
    let client = world.node.world.outsider().client_for(IpAddr::from([10, 96, 0, 4]));
    let reached = |what: &str| {
        let target = SocketAddr::from(([10, 96, 0, 4], 80));
        let udp = distributary_e2e::traffic::Protocol::Udp;
        let client = client.with_timeout(Duration::from_millis(300));
        until(what, PATIENCE, || client.ask(udp, target).is_ok().then_some(()));
    };
    reached("an answer");
    for damage in ["delete table ip distributary", "delete table ip6 distributary"] {
        world.nft(damage)?;
        until("the table to be back", PATIENCE, || (world.tables() == 2).then_some(()));
    }
    reached("an answer again");
    let restored =
        deployed::metric(&world.node.world.node, AGENT_ADMIN, "distributary_agent_rules_restored_total");
    assert!(restored.is_some_and(|times| times >= 2.0), "{restored:?}");
    // What is not what was remembered is put right with the next change at the latest.
    world.nft("flush map ip distributary services")?;
    world.roll_and_wait(&world.pods()[..1])?;
    reached("an answer after a flush");
    assert_eq!(theirs(&world), before);
    world.stop_agent()?;
    world.cleanup()?;
    assert_eq!((theirs(&world), world.tables()), (before, 0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_backend_changes_there_and_back_without_a_loss_and_leaves_nothing() -> Result<()> {
    let mut world = World::start().await?;
    world.start_agent("iptables")?;
    let flood = world.flood()?;
    more(&flood, 300);
    for _ in 0..2 {
        world.stop_agent()?;
        world.start_agent("nftables")?;
        until("the chains to be gone", PATIENCE, || (world.chains() == 0).then_some(()));
        more(&flood, 300);
        world.roll_and_wait(&world.pods()[1..])?;
        more(&flood, 300);
        world.stop_agent()?;
        world.start_agent("iptables")?;
        until("the tables to be gone", PATIENCE, || (world.tables() == 0).then_some(()));
        more(&flood, 300);
        world.roll_and_wait(&world.pods())?;
        more(&flood, 300);
    }
    nothing_was_lost(&flood.stop());
    world.stop_agent()?;
    world.start_agent("auto")?;
    let agent = world.node.agent.as_ref().context("it runs")?;
    assert!(agent.log().contains("--backend auto: nftables"), "{}", agent.tail());
    until("the chains to be gone", PATIENCE, || (world.chains() == 0).then_some(()));
    world.stop_agent()?;
    world.cleanup()?;
    assert_eq!((world.chains(), world.tables()), (0, 0));
    Ok(())
}
