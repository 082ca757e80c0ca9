//! An agent that observes beside a real kube-proxy: it finds nothing where nothing differs, finds what a hand has
//! changed, and writes nothing.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use distributary_e2e::controlplane::ControlPlane;
use distributary_e2e::deployed::{self, PATIENCE, logged};
use distributary_e2e::kube_proxy::KubeProxy;
use distributary_e2e::node::{Node, slices};
use distributary_e2e::objects;
use distributary_e2e::process::Running;
use distributary_e2e::topology::NODE;
use distributary_e2e::wait::until;
use kube::Client;
use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard};

/// Where the metrics of an agent are that only observes.
const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 7402);
const FLAVOURS: [&str; 2] = ["nft", "legacy"];

/// One world at a time: a control plane, kube-proxy and two binaries are enough for a small machine.
static TURN: Mutex<()> = Mutex::const_new(());

struct World {
    node: Node,
    flavour: &'static str,
    kube_proxy: KubeProxy,
    client: Client,
    _cluster: ControlPlane,
    _turn: MutexGuard<'static, ()>,
}

impl World {
    /// Services of every kind, served by kube-proxy, and a server.
    async fn start(flavour: &'static str) -> Result<Self> {
        let turn = TURN.lock().await;
        let mut node = Node::prepare(&[])?;
        let cluster = ControlPlane::start_in(&node.world.node)?;
        let client = cluster.client().await?;
        objects::register_node(&client, "node-a", &json!({}), &NODE.both()).await?;
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}});
        objects::apply(&client, &namespace).await?;
        let kubeconfig = cluster.kubeconfig().display().to_string();
        node.server_arguments =
            ["--source", "kubernetes", "--kubeconfig", &kubeconfig].map(str::to_owned).to_vec();
        node.start_server()?;
        let kube_proxy =
            KubeProxy::start(cluster.kube_proxy_command("node-a")?, &node.world.node, flavour, &[])?;
        services(&node, &client).await?;
        kube_proxy.wait_synced();
        Ok(Self { node, flavour, kube_proxy, client, _cluster: cluster, _turn: turn })
    }

    /// An agent that only observes, and compares every second.
    fn observe(&self, more: &[&str]) -> Result<Running> {
        let arguments = ["--observe", "--observe-period=1s"];
        let flavour = ["--iptables-flavour", self.flavour];
        deployed::agent(&self.node.world.node, "node-a", &[&arguments[..], &flavour, more].concat())
    }

    /// Every rule of the flavour, with how many packets it has matched: what is written anew begins at 0.
    fn counted(&self) -> Result<Vec<(String, u64)>> {
        let save =
            ["iptables", "ip6tables"].map(|tool| format!("{tool}-{}-save -c", self.flavour)).join("; ");
        let all = self.node.world.node.script(&save)?;
        let counted = all.lines().filter_map(|line| {
            let (counters, rule) = line.strip_prefix('[')?.split_once("] ")?;
            Some((rule.to_owned(), counters.split(':').next()?.parse().ok()?))
        });
        Ok(counted.collect())
    }

    /// Nothing was written since then.
    fn assert_untouched(&self, before: &[(String, u64)]) -> Result<()> {
        let now = self.counted()?;
        let rules =
            |counted: &[(String, u64)]| counted.iter().map(|(rule, _)| rule.clone()).collect::<Vec<_>>();
        assert_eq!(rules(&now), rules(before), "{}: nothing is written", self.flavour);
        for ((rule, now), (_, before)) in now.iter().zip(before) {
            assert!(now >= before, "{}: {rule} was written again", self.flavour);
        }
        Ok(())
    }

    /// Replaces something in the first rule of a chain that has all these words, or takes the rule away.
    fn meddle(&self, table: &str, words: &[&str], replace: Option<(&str, &str)>) -> Result<()> {
        let tool = format!("iptables-{}", self.flavour);
        let rules = self.node.world.node.script(&format!("{tool}-save -t {table}"))?;
        let found = rules.lines().find(|line| words.iter().all(|word| line.contains(word)));
        let rule = found.with_context(|| format!("no rule with {words:?} in\n{rules}"))?;
        let chain = rule.split(' ').nth(1).unwrap_or_default();
        let head = format!("-A {chain} ");
        let number =
            rules.lines().filter(|line| line.starts_with(&head)).take_while(|line| *line != rule).count() + 1;
        let command = match replace {
            Some((from, to)) => rule.replacen(&head, &format!("-R {chain} {number} "), 1).replace(from, to),
            None => format!("-D {chain} {number}"),
        };
        self.node.world.node.script(&format!("{tool} -t {table} {command}")).map(drop)
    }
}

/// All kinds of policy, destination and answer, in both families.
async fn services(node: &Node, client: &Client) -> Result<()> {
    let all: Vec<_> = node.world.pods.iter().chain(&node.world.remote_pods).collect();
    let local = json!({"externalTrafficPolicy": "Local"});
    let balanced = json!({"type": "LoadBalancer", "sessionAffinity": "ClientIP"});
    let filtered = json!({
        "type": "LoadBalancer", "externalTrafficPolicy": "Local",
        "loadBalancerSourceRanges": ["192.0.2.0/25", "2001:db8::/64"],
    });
    let external = json!({"externalIPs": ["203.0.113.50", "2001:db8:5::50"]});
    for (last, (name, node_port, more, pods)) in [
        ("web", 30080, json!({}), &all[..]),
        ("local", 30081, local.clone(), &all[..]),
        ("remote", 30082, local, &all[2..]),
        ("internal", 30083, json!({"internalTrafficPolicy": "Local"}), &all[1..]),
        ("away", 0, json!({"internalTrafficPolicy": "Local"}), &all[2..]),
        ("sticky", 30084, balanced, &all[..]),
        ("filtered", 30085, filtered, &all[..2]),
        ("external", 0, external, &all[..1]),
        ("empty", 30086, json!({"type": "LoadBalancer"}), &all[..0]),
        (
            "short",
            30087,
            json!({"sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}}),
            &all[..],
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let last = u8::try_from(last)? + 20;
        let mut service = distributary_e2e::node::service(name, last, node_port, &more);
        service["spec"]["ipFamilyPolicy"] = json!("RequireDualStack");
        objects::apply(client, &service).await?;
        if !pods.is_empty() {
            for slice in slices(name, pods) {
                objects::apply(client, &slice).await?;
            }
        }
        if more["type"] == "LoadBalancer" {
            let vips = [format!("203.0.113.{last}").parse()?, format!("2001:db8:6::{last:x}").parse()?];
            objects::set_ingress(client, "shop", name, &vips).await?;
        }
    }
    Ok(())
}

/// What of the differences names that service and kind.
fn told(agent: &Running, service: &str, kind: &str) -> Option<Value> {
    let found = logged(agent, "differs");
    found.into_iter().find(|line| line["service"].as_str() == Some(service) && line["kind"] == kind)
}

fn text(line: &Value, field: &str) -> String {
    line[field].as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn kube_proxy_does_what_we_would_and_nothing_is_written() -> Result<()> {
    for flavour in FLAVOURS {
        let world = World::start(flavour).await?;
        let before = world.counted()?;
        let mut agent = world.observe(&["--observe-for=8s"])?;
        let status = agent.wait(PATIENCE).context("it ends by itself")?;
        let compared = logged(&agent, "compared");
        let last = compared.last().with_context(|| format!("nothing was compared\n{}", agent.tail()))?;
        ensure!(status.success(), "{flavour}: {status}\n{}", agent.log());
        assert!(last["destinations"].as_u64() > Some(100), "{last}");
        assert_eq!((&last["differences"], &last["unconfirmed"]), (&json!(0), &json!(0)), "{last}");
        world.assert_untouched(&before)?;
    }
    Ok(())
}

#[tokio::test]
async fn what_a_hand_has_changed_is_told_with_service_and_destination() -> Result<()> {
    for flavour in FLAVOURS {
        let world = World::start(flavour).await?;
        let agent = world.observe(&[])?;
        let _ = deployed::wait_for(&agent, "compared", 1);
        assert_eq!(logged(&agent, "differs").len(), 0, "{}\n{}", agent.log(), world.kube_proxy.tail());

        world.meddle("nat", &["-A KUBE-SEP-", "\"shop/web:t\"", "DNAT"], None)?;
        world.meddle(
            "filter",
            &["-A KUBE-SERVICES", "shop/empty:u", "REJECT"],
            Some(("REJECT --reject-with icmp-port-unreachable", "DROP")),
        )?;
        world.meddle("nat", &["-A KUBE-SEP-", "shop/local:u", "DNAT"], Some(("8080", "8081")))?;
        world.meddle(
            "nat",
            &["-A KUBE-SVC-", "shop/short:t", "--rcheck", "10.244.1.2"],
            Some(("--seconds 60 ", "--seconds 600 ")),
        )?;
        world.meddle("filter", &["-A KUBE-PROXY-FIREWALL", "shop/filtered:t"], None)?;
        let tampered = world.counted()?;
        for (service, kind, destination, kernel, ours) in [
            ("shop/web:t", "Endpoints", "10.96.0.20:80", "(50 %)", "(33.3 %)"),
            ("shop/empty:u", "Refusal", "10.96.0.28:80", "drops it", "rejects it"),
            ("shop/local:u", "Endpoints", "10.96.0.21:80", ":8081", ":8080"),
            ("shop/short:t", "Affinity", "10.96.0.29:80", "sends it to", "sends it to"),
            ("shop/filtered:t", "Missing", "203.0.113.26:80", "leaves it alone", "drops it"),
        ] {
            let what = format!("{flavour}: {service} to differ");
            let line = until(&what, PATIENCE, || told(&agent, service, kind));
            assert!(text(&line, "kernel").contains(kernel) && text(&line, "ours").contains(ours), "{line}");
            let lines = logged(&agent, "differs");
            assert!(
                lines.iter().any(|line| line["destination"] == destination),
                "{destination} in {lines:?}"
            );
        }
        world.assert_untouched(&tampered)?;
        let series = "distributary_agent_observed_differences{kind=\"Refusal\"} ";
        until("the differences to be counted", PATIENCE, || {
            let (_, metrics) = deployed::get(&world.node.world.node, METRICS, "/metrics")?;
            metrics.lines().find_map(|line| line.strip_prefix(series)).filter(|count| *count != "0").map(drop)
        });

        let mut second = world.observe(&["--observe-for=8s", "--metrics-bind-address=off"])?;
        let status = second.wait(PATIENCE).context("it ends by itself")?;
        assert_eq!(status.code(), Some(1), "{}", second.tail());
        assert!(second.log().contains("differ from ours in"), "{}", second.tail());
    }
    Ok(())
}

#[tokio::test]
async fn what_changes_on_both_sides_is_no_difference() -> Result<()> {
    let world = World::start(FLAVOURS[0]).await?;
    let agent = world.observe(&[])?;
    let _ = deployed::wait_for(&agent, "compared", 1);
    let pods = &world.node.world.pods;
    for round in 0..8 {
        let before = logged(&agent, "compared").len();
        for slice in slices("web", &[&pods[round % 2]]) {
            objects::apply(&world.client, &slice).await?;
        }
        let _ = deployed::wait_for(&agent, "compared", before);
    }
    let _ = deployed::wait_for(&agent, "compared", logged(&agent, "compared").len() + 2);
    let last = logged(&agent, "compared").pop().context("a comparison")?;
    assert_eq!((&last["differences"], logged(&agent, "differs").len()), (&json!(0), 0), "{}", agent.log());
    Ok(())
}
