//! A real kube-proxy and the agent take a node over from each other, with the same apiserver, while thousands of flows
//! go through the services: in both directions, both flavours, both families, from a pod, the node and the outside.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use distributary_e2e::controlplane::ControlPlane;
use distributary_e2e::deployed::{self, PATIENCE};
use distributary_e2e::kube_proxy::KubeProxy;
use distributary_e2e::node::{AGENT_ADMIN, Node};
use distributary_e2e::objects;
use distributary_e2e::process::binary;
use distributary_e2e::topology::{CLUSTER_CIDRS, NODE, POD_CIDRS, Pod};
use distributary_e2e::traffic::Responder;
use distributary_e2e::traffic::flood::{Flood, Origin, Tally};
use distributary_e2e::wait::until;
use kube::Client;
use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard};

/// Where the pods answer.
const PORT: u16 = 9090;
/// Services with endpoints, and without.
const SERVED: usize = 60;
const UNSERVED: usize = 30;
/// Who may ask load balancers: everybody who does here.
const RANGES: [&str; 4] = ["192.0.2.0/24", "10.244.0.0/16", "2001:db8::/64", "fd00:10:244::/48"];
/// New flows a second from each of the three origins; the three together are to come to [`LEAST_RATE`].
const RATE: u32 = 400;
const LEAST_RATE: u64 = 500;
const FLOWS: u64 = 20_000;
/// Connections that last, from each origin.
const LASTING: usize = 40;

struct World {
    node: Node,
    cluster: ControlPlane,
    client: Client,
    namespace: String,
    flavour: &'static str,
    /// Of services: cluster IPs, node ports.
    targets: Vec<SocketAddr>,
    /// The service whose only endpoint is the first pod.
    own: Vec<SocketAddr>,
    _answering: Vec<Responder>,
    _turn: MutexGuard<'static, ()>,
}

/// One world at a time: a machine that is too slow for two of them would lose packets by itself.
static TURN: Mutex<()> = Mutex::const_new(());

impl World {
    async fn start(flavour: &'static str) -> Result<Self> {
        let turn = TURN.lock().await;
        let mut node = Node::prepare(&["--iptables-flavour", flavour])?;
        // As a CNI leaves it: what goes from elsewhere to pods of other nodes is for the proxy to accept.
        for (family, tool) in ["iptables", "ip6tables"].into_iter().enumerate() {
            let (tool, all, own) = (format!("{tool}-{flavour}"), CLUSTER_CIDRS[family], POD_CIDRS[family]);
            let accept =
                format!("{tool} -A FORWARD -s {all} -j ACCEPT; {tool} -A FORWARD -d {own} -j ACCEPT");
            node.world.node.script(&format!("{tool} -P FORWARD DROP; {accept}"))?;
        }
        let cluster = ControlPlane::start_in(&node.world.node)?;
        let client = cluster.client().await?;
        let namespace = objects::unique_namespace(&client).await?;
        objects::register_node(&client, "node-a", &json!({}), &NODE.both()).await?;
        let kubeconfig = cluster.kubeconfig().display().to_string();
        node.server_arguments =
            ["--source", "kubernetes", "--kubeconfig", &kubeconfig].map(str::to_owned).to_vec();
        let pods = node.world.pods.iter().chain(&node.world.remote_pods);
        let answering = pods.map(|pod| Responder::start(&pod.namespace, &pod.addresses.both(), PORT));
        let answering = answering.collect::<Result<_>>()?;
        let mut world = Self {
            node,
            cluster,
            client,
            namespace,
            flavour,
            targets: Vec::new(),
            own: Vec::new(),
            _answering: answering,
            _turn: turn,
        };
        world.services().await?;
        world.node.start_server()?;
        Ok(world)
    }

    async fn services(&mut self) -> Result<()> {
        for index in 0..SERVED {
            let (name, all) = (format!("s{index}"), self.pods());
            let external = [format!("203.0.113.{index}"), format!("2001:db8:ffff::{index:x}")];
            let (more, pods) = match index % 6 {
                0 => (json!({"externalIPs": external}), &all[..]),
                1 => (json!({"internalTrafficPolicy": "Local"}), &all[..2]),
                2 => (json!({"externalTrafficPolicy": "Local"}), &all[..2]),
                3 => (json!({"sessionAffinity": "ClientIP"}), &all[..]),
                4 => (json!({}), &all[..1]),
                _ => (json!({"type": "LoadBalancer", "loadBalancerSourceRanges": RANGES}), &all[..]),
            };
            for slice in self.slices(&name, pods) {
                objects::apply(&self.client, &slice).await?;
            }
            let made = objects::apply(&self.client, &self.service(&name, &more)).await?;
            let mut targets = Vec::new();
            for family in 0..2 {
                let ip = made.pointer(&format!("/spec/clusterIPs/{family}")).and_then(Value::as_str);
                targets.push(SocketAddr::new(ip.context("a cluster IP of each family")?.parse()?, 80));
                let port = made.pointer("/spec/ports/0/nodePort").and_then(Value::as_u64);
                let port = u16::try_from(port.context("a node port")?)?;
                targets.push(SocketAddr::new(NODE.both()[family], port));
            }
            let external = external.iter().map(|ip| ip.parse());
            let external = external.collect::<Result<Vec<IpAddr>, _>>()?;
            match index % 6 {
                0 => targets.extend(external.into_iter().map(|ip| SocketAddr::new(ip, 80))),
                4 => self.own.extend([targets[0], targets[2]]),
                5 => {
                    objects::set_ingress(&self.client, &self.namespace, &name, &external).await?;
                    targets.extend(external.into_iter().map(|ip| SocketAddr::new(ip, 80)));
                }
                _ => {}
            }
            self.targets.extend(targets);
        }
        for index in 0..UNSERVED {
            let name = format!("none{index}");
            objects::apply(&self.client, &self.service(&name, &json!({}))).await?;
        }
        Ok(())
    }

    /// More endpoints than kube-proxy writes comments for. Nobody answers there.
    async fn add_a_thousand_endpoints(&self) -> Result<()> {
        let ports: Vec<Value> = (0..11_u16)
            .map(|port| json!({"name": format!("p{port}"), "protocol": "TCP", "port": 80 + port}))
            .collect();
        let spec = json!({"ports": ports});
        objects::apply(&self.client, &objects::service(&self.namespace, "large", &spec)).await?;
        let endpoints: Vec<Value> = (1..=100)
            .map(|last| json!({"addresses": [format!("10.244.9.{last}")], "nodeName": "node-c", "conditions": {"ready": true}}))
            .collect();
        let slice =
            objects::endpoint_slice(&self.namespace, "large-v4", "large", &json!(ports), &json!(endpoints));
        objects::apply(&self.client, &slice).await.map(|_| ())
    }

    fn service(&self, name: &str, more: &Value) -> Value {
        let port = |protocol: &str| json!({"name": protocol.to_lowercase(), "protocol": protocol, "port": 80, "targetPort": PORT});
        let mut spec = json!({
            "type": "NodePort", "ipFamilyPolicy": "RequireDualStack", "ports": [port("TCP"), port("UDP")],
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        objects::service(&self.namespace, name, &spec)
    }

    fn slices(&self, name: &str, pods: &[&Pod]) -> [Value; 2] {
        let ports = json!([
            {"name": "tcp", "protocol": "TCP", "port": PORT},
            {"name": "udp", "protocol": "UDP", "port": PORT},
        ]);
        [0, 1].map(|family| {
            let endpoint = |pod: &&Pod| {
                let node = if pod.name.starts_with("remote") { "node-b" } else { "node-a" };
                let address = pod.addresses.both()[family].to_string();
                json!({"addresses": [address], "nodeName": node, "conditions": {"ready": true}})
            };
            let endpoints: Value = pods.iter().map(endpoint).collect();
            let slice = format!("{name}-{family}");
            objects::endpoint_slice(&self.namespace, &slice, name, &ports, &endpoints)
        })
    }

    fn pods(&self) -> [&Pod; 3] {
        [&self.node.world.pods[0], &self.node.world.pods[1], &self.node.world.remote_pods[0]]
    }

    /// Changes a service that is asked all the time, while everybody who served it goes on to answer.
    async fn roll(&self, pods: &[&Pod]) -> Result<()> {
        for slice in self.slices("s0", pods) {
            objects::apply(&self.client, &slice).await?;
        }
        Ok(())
    }

    fn flood(&self, rate: u32) -> Result<Flood> {
        Flood::start(self.origins(), rate, LASTING)
    }

    /// A pod, the node and the outside.
    fn origins(&self) -> Vec<Origin> {
        let origin = |name, namespace: &Arc<_>, targets: &[SocketAddr]| Origin {
            name,
            namespace: Arc::clone(namespace),
            targets: targets.to_vec(),
        };
        let around = &self.node.world;
        // The pod asks services whose only endpoint it is as often as all others.
        let of_pod = [&self.targets[..], &self.own[..]].concat();
        vec![
            origin("a pod", &around.pods[0].namespace, &of_pod),
            origin("the node", &around.node, &self.targets),
            origin("outside", &around.outside, &self.targets),
        ]
    }

    fn kube_proxy(&self) -> Result<KubeProxy> {
        self.kube_proxy_with(&[])
    }

    fn kube_proxy_with(&self, flags: &[&str]) -> Result<KubeProxy> {
        let node = &self.node.world.node;
        let started =
            KubeProxy::start(self.cluster.kube_proxy_command("node-a")?, node, self.flavour, flags)?;
        started.wait_synced();
        Ok(started)
    }

    fn stop_agent(&mut self) -> Result<()> {
        self.node.agent.take().context("it runs")?.terminate(PATIENCE).map(|_| ())
    }

    fn cleanup(&self, more: &[&str]) -> Result<()> {
        let agent = binary("distributary-agent");
        self.node.world.node.run(&agent.to_string_lossy(), &[&["cleanup"], more].concat()).map(|_| ())
    }

    /// Rules of built-in chains as they stand, and chains and all other rules in any order, as kube-proxy's is random.
    fn rules(&self) -> (Vec<String>, Vec<String>) {
        let rules = self.node.rules();
        // Tables without a rule come with a look at them. The firewall's chain stays, as kubelet has it too.
        let empty = |line: &str| {
            ["*", "COMMIT"].iter().any(|what| line.starts_with(what)) || line.ends_with(" ACCEPT")
        };
        let lines = rules.lines().filter(|line| !empty(line) && !line.contains("KUBE-FIREWALL"));
        let built_in = |line: &String| line.starts_with("-A ") && !line.starts_with("-A KUBE-");
        let (fixed, mut others): (Vec<_>, Vec<_>) = lines.map(str::to_owned).partition(built_in);
        others.sort();
        (fixed, others)
    }
}

/// Waits for so many more flows.
fn more(flood: &Flood, flows: u64) {
    let wanted = flood.flows() + flows;
    until("more flows", Duration::from_secs(120), || (flood.flows() >= wanted).then_some(()));
}

#[expect(clippy::print_stdout, reason = "the figures are a result of the test")]
fn report(what: &str, tally: &Tally, took: Duration) {
    println!("{what}: {tally:?} in {took:?}, {} flows/s", tally.flows() as f64 / took.as_secs_f64());
}

async fn there_and_back(flavour: &'static str) -> Result<()> {
    let mut world = World::start(flavour).await?;
    let mut kube_proxy = world.kube_proxy()?;
    let flood = world.flood(RATE)?;
    more(&flood, 1_000);
    let mut rounds = 0;
    while flood.flows() < FLOWS || rounds < 2 {
        if rounds % 2 == 0 {
            kube_proxy.stop()?;
        } else {
            kube_proxy.kill9();
        }
        world.node.start_agent()?;
        more(&flood, 1_500);
        world.roll(&world.pods()[1..]).await?;
        more(&flood, 500);
        world.stop_agent()?;
        kube_proxy = world.kube_proxy()?;
        more(&flood, 1_500);
        world.roll(&world.pods()).await?;
        more(&flood, 500);
        rounds += 1;
    }
    let took = flood.elapsed();
    let tally = flood.stop();
    report(&format!("{flavour}, {rounds} times there and back"), &tally, took);
    assert_eq!((tally.failures(), &tally.examples), (0, &Vec::new()), "{flavour}: {tally:?}");
    assert_eq!(tally.lasting, 3 * LASTING as u64, "{flavour}: connections that last");
    assert!(tally.tcp.min(tally.udp) >= FLOWS / 2 && tally.flows() >= FLOWS, "{flavour}: {tally:?}");
    // Three origins, two protocols, two families: none of them has slept.
    let least = tally.answered.values().min().copied().unwrap_or_default();
    assert!(tally.answered.len() == 12 && least >= FLOWS / 40, "{flavour}: {tally:?}");
    assert!(tally.flows() >= LEAST_RATE * took.as_secs(), "{flavour}: {tally:?} in {took:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_when_kube_proxy_and_the_agent_take_over_from_each_other() -> Result<()> {
    for flavour in ["nft", "legacy"] {
        there_and_back(flavour).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_take_over_with_a_gap_shows_loss() -> Result<()> {
    for flavour in ["nft", "legacy"] {
        let mut world = World::start(flavour).await?;
        let kube_proxy = world.kube_proxy()?;
        let flood = world.flood(RATE / 2)?;
        more(&flood, 300);
        kube_proxy.stop()?;
        world.cleanup(&[])?;
        more(&flood, 300);
        world.node.start_agent()?;
        more(&flood, 300);
        let took = flood.elapsed();
        let tally = flood.stop();
        report(&format!("{flavour}, with a gap"), &tally, took);
        assert!(tally.lost >= 50 && tally.syns_again >= 50, "{flavour}: {tally:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_without_comments_of_more_than_a_thousand_endpoints_are_taken_over_too() -> Result<()> {
    for flavour in ["nft", "legacy"] {
        let mut world = World::start(flavour).await?;
        world.add_a_thousand_endpoints().await?;
        let kube_proxy = world.kube_proxy()?;
        let rules = world.node.rules();
        let balancing = |line: &&str| line.starts_with("-A KUBE-SEP-") && line.ends_with("10.244.9.1:80");
        let rule = rules.lines().find(balancing).context("an endpoint's rule")?;
        assert!(!rule.contains("--comment"), "{rule}");
        let flood = world.flood(RATE / 2)?;
        more(&flood, 500);
        kube_proxy.stop()?;
        world.node.start_agent()?;
        more(&flood, 500);
        let rules = world.node.rules();
        let theirs = |line: &&str| line.starts_with(":KUBE-SEP-") && !line.starts_with(":KUBE-SEP-0");
        assert_eq!(rules.lines().find(theirs), None, "{flavour}");
        world.stop_agent()?;
        let _kube_proxy = world.kube_proxy()?;
        more(&flood, 500);
        let took = flood.elapsed();
        let tally = flood.stop();
        report(&format!("{flavour}, without comments"), &tally, took);
        assert_eq!((tally.failures(), &tally.examples), (0, &Vec::new()), "{flavour}: {tally:?}");
        assert_eq!(tally.lasting, 3 * LASTING as u64, "{flavour}: connections that last");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_way_back_and_a_cleanup_of_ours_only_the_rules_are_kube_proxys_alone() -> Result<()> {
    for flavour in ["nft", "legacy"] {
        let mut world = World::start(flavour).await?;
        let before = world.rules();
        let kube_proxy = world.kube_proxy()?;
        let alone = world.rules();
        kube_proxy.stop()?;
        world.node.start_agent()?;
        world.cleanup(&["--ours-only"])?;
        let ours = world.rules();
        world.stop_agent()?;
        world.cleanup(&["--ours-only"])?;
        assert_eq!(world.rules(), ours, "{flavour}: what is needed stays");
        let kube_proxy = world.kube_proxy()?;
        assert_ne!(world.rules(), alone, "{flavour}: there is something to remove");
        world.cleanup(&["--ours-only"])?;
        assert_eq!(world.rules(), alone, "{flavour}");
        kube_proxy.stop()?;
        world.cleanup(&[])?;
        assert_eq!(world.rules(), before, "{flavour}: both programs' rules are gone");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kube_proxy_beside_the_agent_is_given_way_until_it_is_gone() -> Result<()> {
    for flavour in ["nft", "legacy"] {
        let mut world = World::start(flavour).await?;
        // How often kube-proxy looks for its canary, and so how long the agent waits for that.
        world.node.agent_arguments.push("--iptables-sync-period=1s".to_owned());
        world.node.start_agent()?;
        // Not from a pod: to itself it gets only by rules of one hand, be it whose it may.
        let flood = Flood::start(world.origins().split_off(1), RATE / 4, LASTING)?;
        more(&flood, 200);
        let kube_proxy = world.kube_proxy_with(&["--iptables-sync-period=1s"])?;
        let second_writer = |world: &World| {
            deployed::metric(&world.node.world.node, AGENT_ADMIN, "distributary_agent_second_writer")
        };
        let agent = world.node.agent.as_ref().context("it runs")?;
        let repaired = "the rules were not what they should be, and have been written again";
        let _ = deployed::wait_for(agent, repaired, 1);
        assert_eq!(
            second_writer(&world),
            Some(0.0),
            "{flavour}: the first time is put right, in both families"
        );

        world.roll(&world.pods()[1..]).await?;
        let agent = world.node.agent.as_ref().context("it runs")?;
        let _ = deployed::wait_for(agent, "the other program is still there; nothing is written", 0);
        assert_eq!(second_writer(&world), Some(1.0), "{flavour}");
        let programmed = world.node.programmed();
        let server = world.node.server.as_ref().context("it runs")?;
        until("the server to be told", PATIENCE, || {
            server.log().contains("in kube-proxy's form").then_some(())
        });
        let theirs = world.rules();
        assert!(!theirs.1.iter().any(|line| line.contains("HAIRPIN")), "{flavour}: {theirs:?}");
        world.roll(&world.pods()).await?;
        more(&flood, 1_000);
        assert_eq!(world.node.programmed(), programmed, "{flavour}: nothing is written, nor said to be");

        kube_proxy.stop()?;
        let gone = || (second_writer(&world) == Some(0.0)).then_some(());
        until("the agent to go on", 2 * PATIENCE, gone);
        until("what waited to be programmed", PATIENCE, || {
            (world.node.programmed() > programmed).then_some(())
        });
        let ours = world.rules();
        let of_endpoint = |line: &String| line.starts_with(":KUBE-SEP-") && !line.starts_with(":KUBE-SEP-0");
        assert!(!ours.1.iter().any(of_endpoint), "{flavour}: {ours:?}");
        more(&flood, 200);
        let took = flood.elapsed();
        let tally = flood.stop();
        report(&format!("{flavour}, kube-proxy beside the agent"), &tally, took);
        assert_eq!((tally.failures(), &tally.examples), (0, &Vec::new()), "{flavour}: {tally:?}");
        assert_eq!(tally.lasting, 2 * LASTING as u64, "{flavour}: connections that last");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_when_they_take_over_from_each_other_with_nftables() -> Result<()> {
    let mut world = World::start("nft").await?;
    // What one table accepts, another may drop: a host with nftables has to forward by itself.
    world.node.world.node.script("iptables-nft -P FORWARD ACCEPT; ip6tables-nft -P FORWARD ACCEPT")?;
    world.node.agent_arguments = vec!["--backend=nftables".to_owned()];
    let tables = |world: &World, name: &str| {
        let tables = world.node.world.node.script("nft list tables").unwrap_or_default();
        tables.lines().filter(|line| line.ends_with(&format!(" {name}"))).count()
    };
    let start = |world: &World| world.kube_proxy_with(&["--proxy-mode=nftables"]);
    let mut kube_proxy = start(&world)?;
    let flood = world.flood(RATE / 2)?;
    more(&flood, 1_000);
    for round in 0..2 {
        if round % 2 == 0 {
            kube_proxy.stop()?;
        } else {
            kube_proxy.kill9();
        }
        world.node.start_agent()?;
        let left = || (tables(&world, "kube-proxy") == 0).then_some(());
        until("kube-proxy's tables to be removed", PATIENCE, left);
        more(&flood, 500);
        world.roll(&world.pods()[1..]).await?;
        more(&flood, 500);
        world.stop_agent()?;
        kube_proxy = start(&world)?;
        world.cleanup(&["--ours-only"])?;
        assert_eq!((tables(&world, "distributary"), tables(&world, "kube-proxy")), (0, 2));
        more(&flood, 500);
        world.roll(&world.pods()).await?;
        more(&flood, 500);
    }
    let took = flood.elapsed();
    let tally = flood.stop();
    report("nftables, there and back", &tally, took);
    assert_eq!((tally.failures(), &tally.examples), (0, &Vec::new()), "{tally:?}");
    assert_eq!(tally.lasting, 3 * LASTING as u64, "connections that last");
    kube_proxy.stop()?;
    world.cleanup(&[])?;
    assert_eq!((tables(&world, "distributary"), tables(&world, "kube-proxy")), (0, 0));
    Ok(())
}
