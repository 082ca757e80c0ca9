//! Clusters that are large in one way, in the real kernel: who is reached, by packets, and what one change writes, by
//! what the kernel holds before and after and by what the agent says to have written.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use distributary_agent::iptables::names::service_hash;
use distributary_e2e::deployed::{self, PATIENCE};
use distributary_e2e::manifests::Manifests;
use distributary_e2e::node::AGENT_ADMIN;
use distributary_e2e::process::Running;
use distributary_e2e::shapes::{self, HERE, NAMESPACE, NODE_PORT, Shape, TARGET, THERE};
use distributary_e2e::topology::{Addresses, GATEWAY, NODE, OUTSIDE, Pod, Topology};
use distributary_e2e::traffic::{Client, Failure, Protocol, Reply, Server};
use distributary_e2e::wait::within;
use serde_json::{Value, json};

/// A packet that is dropped is known by this.
const SILENCE: Duration = Duration::from_millis(700);

/// A node with three pods: one that load balancers let through, one that they do not, and one that has the addresses of all
/// endpoints.
struct Stage {
    world: Topology,
    manifests: Manifests,
    flavour: &'static str,
    agent: Running,
    _server: Running,
    _answering: Server,
}

/// What a change wrote.
#[derive(Debug)]
struct Written {
    /// Chains, each behind its table: those that hold something else than before.
    chains: BTreeSet<String>,
    /// The rules in them.
    rules: usize,
}

impl Stage {
    fn start(shape: &Shape, more: &[Value], flavour: &'static str) -> Result<Self> {
        let world = Topology::new(3, 0)?;
        world.own_networks(2, &[shapes::ENDPOINTS])?;
        let anywhere = [IpAddr::V4(Ipv4Addr::UNSPECIFIED)];
        let answering =
            Server::start(&world.pods[2].namespace, "endpoint", Protocol::Tcp, &anywhere, TARGET)?;
        let manifests = Manifests::new()?;
        manifests.put("fixed.json", &[&shape.fixed, more].concat())?;
        manifests.put("changing.json", &shape.after(0))?;
        let server = deployed::server(&world.node, &["--source", &manifests.source()])?;
        let agent = deployed::agent(&world.node, HERE, &["--iptables-flavour", flavour])?;
        let _ = deployed::wait_ok(&world.node, AGENT_ADMIN, "/readyz");
        Ok(Self { world, manifests, flavour, agent, _server: server, _answering: answering })
    }

    /// Whom the source ranges let through, and who is no pod.
    fn friend(&self) -> Pod {
        self.world.outsider()
    }

    /// Who is let through nowhere, and is no pod.
    fn stranger(&self) -> Result<Pod> {
        let v6 = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9);
        self.world.also_outside("stranger", Addresses { v4: Ipv4Addr::new(192, 0, 2, 9), v6 })
    }

    fn ask(&self, from: &Pod, to: impl Into<SocketAddr>) -> Result<Reply, Failure> {
        let to = to.into();
        from.client_for(to.ip()).with_timeout(SILENCE).ask(Protocol::Tcp, to)
    }

    /// Makes that the content beside the fixed objects, and says what it wrote.
    fn put(&self, changing: &[Value]) -> Result<Written> {
        let [programmed, wrote] =
            ["programmed", "wrote"].map(|what| deployed::logged(&self.agent, what).len());
        let before = self.chains()?;
        self.manifests.put("changing.json", changing)?;
        let _ = deployed::wait_for(&self.agent, "programmed", programmed);
        let after = self.chains()?;
        let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
        let differ = names.into_iter().filter(|name| before.get(*name) != after.get(*name));
        let chains: BTreeSet<String> = differ.cloned().collect();
        let said = deployed::logged(&self.agent, "wrote").split_off(wrote);
        let said: BTreeSet<String> = said
            .iter()
            .flat_map(|line| line["chains"].as_str().unwrap_or_default().split(' '))
            .map(str::to_owned)
            .collect();
        assert_eq!(said, chains, "{}: the agent writes what differs, and nothing else", self.flavour);
        let rules = chains.iter().filter_map(|name| after.get(name)).map(Vec::len).sum();
        Ok(Written { chains, rules })
    }

    /// All chains of IPv4, each behind its table, with their rules.
    fn chains(&self) -> Result<BTreeMap<String, Vec<String>>> {
        let saved = self.world.node.shell(&format!("iptables-{}-save", self.flavour))?;
        let mut chains: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut table = "";
        for line in saved.lines() {
            if let Some(name) = line.strip_prefix('*') {
                table = name;
            } else if let Some(rest) = line.strip_prefix(':') {
                let name = rest.split(' ').next().unwrap_or_default();
                chains.entry(format!("{table}/{name}")).or_default();
            } else if let Some(rest) = line.strip_prefix("-A ") {
                let (name, rule) = rest.split_once(' ').context("a rule is in a chain")?;
                chains.entry(format!("{table}/{name}")).or_default().push(rule.to_owned());
            }
        }
        Ok(chains)
    }

    /// The endpoints that answered connections to that address.
    fn answered_by(&self, to: IpAddr) -> Result<BTreeSet<IpAddr>> {
        let flows = self.world.node.shell(&format!("conntrack -L -p tcp --orig-dst {to}"))?;
        // The second `src=` of a line is where answers come from.
        let answering = |line: &str| line.split("src=").nth(2)?.split(' ').next()?.parse().ok();
        Ok(flows.lines().filter_map(answering).collect())
    }
}

/// The chains of a Service's port, each behind its table, as they begin: balancing chain and groups.
fn chains_of(service: &str) -> [String; 4] {
    let hash = service_hash(&format!("{NAMESPACE}/{service}:http"), distributary_model::Protocol::Tcp);
    [
        format!("nat/KUBE-SVC-{hash}"),
        format!("nat/KUBE-SEP-0{}G", &hash[..12]),
        format!("nat/KUBE-SVL-{hash}"),
        format!("nat/KUBE-SEP-0{}L", &hash[..12]),
    ]
}

fn counted(chains: &BTreeSet<String>, beginning: &str) -> usize {
    chains.iter().filter(|chain| chain.starts_with(beginning)).count()
}

#[test]
fn a_change_to_one_of_5000_endpoints_writes_its_group_and_the_services_chain() -> Result<()> {
    let shape = shapes::one_service(5_000);
    for flavour in ["nft", "legacy"] {
        let stage = Stage::start(&shape, &[], flavour)?;
        let target = SocketAddr::from((shapes::cluster_ip(0), 80));
        for client in [&stage.world.pods[0], &stage.friend()] {
            for _ in 0..20 {
                assert_eq!(
                    stage.ask(client, target).map(|reply| reply.who),
                    Ok("endpoint".into()),
                    "{flavour}"
                );
            }
        }
        let reached = stage.answered_by(target.ip())?;
        assert!(reached.len() >= 20, "{flavour}: 40 connections reach {reached:?}");

        let [svc, groups, ..] = chains_of("large");
        let is_one_group = |what: &str, written: &Written| {
            let [chains, in_groups] = [&svc, &groups].map(|of| counted(&written.chains, of));
            assert_eq!(
                (chains, in_groups, written.chains.len()),
                (1, 1, 2),
                "{flavour}, {what}: {written:?}"
            );
            // A rule for each of the 128 groups and one for masquerading; 39 endpoints on average.
            assert!((130..=230).contains(&written.rules), "{flavour}, {what}: {} rules", written.rules);
        };
        let first = |numbers: std::ops::Range<usize>| {
            [shapes::slice("large", 0, numbers.map(|number| (number, THERE)))]
        };
        is_one_group("one endpoint less", &stage.put(&first(1..100))?);
        is_one_group("one endpoint more", &stage.put(&first(0..100))?);
        // The new one may be in another group than the old.
        let written = stage.put(&shape.after(1))?;
        let in_groups = counted(&written.chains, &groups);
        assert!((1..=2).contains(&in_groups), "{flavour}: {written:?}");
        assert_eq!(written.chains.len(), 1 + in_groups, "{flavour}: {written:?}");
        assert!(stage.ask(&stage.world.pods[0], target).is_ok());
    }
    Ok(())
}

#[test]
fn each_of_2000_balancers_without_a_local_endpoint_obeys_its_policy_and_ranges() -> Result<()> {
    const BALANCERS: usize = 2_000;
    const MEDIAN: usize = BALANCERS / 2;
    let stage = Stage::start(&shapes::local_balancers(BALANCERS), &[], "nft")?;
    let [in_range, out_of_range, _] = &stage.world.pods[..] else { anyhow::bail!("three pods") };
    let (friend, stranger) = (stage.friend(), stage.stranger()?);
    let balancer = |number| SocketAddr::from((shapes::balancer_ip(number), 80));
    let health = |number: usize| {
        let port = u16::try_from(30_000 + number).expect("a port");
        deployed::get(&stage.world.node, (Ipv4Addr::LOCALHOST, port).into(), "/").map(|(status, _)| status)
    };
    for number in [0, MEDIAN, BALANCERS - 1] {
        let (vip, cluster) = (balancer(number), SocketAddr::from((shapes::cluster_ip(number), 80)));
        // Policy Local is not for the node's own pods, the ranges are.
        assert!(stage.ask(in_range, vip).is_ok(), "{number}: a pod in the ranges");
        assert_eq!(stage.ask(out_of_range, vip), Err(Failure::Timeout), "{number}: a pod out of them");
        assert_eq!(
            stage.ask(&friend, vip),
            Err(Failure::Timeout),
            "{number}: in the ranges, nobody is local"
        );
        assert!(stage.ask(out_of_range, cluster).is_ok(), "{number}: its cluster IP has no ranges");
        assert_eq!(health(number), Some(503), "{number}");
    }

    let name = format!("balancer-{MEDIAN}");
    let written = stage.put(&[shapes::slice(&name, 0, [(MEDIAN, HERE)])])?;
    assert!(
        written.chains.len() <= 6 && written.rules <= 60,
        "one of {BALANCERS} is served here: {written:?}"
    );
    let vip = balancer(MEDIAN);
    let seen = stage.ask(&friend, vip).map(|reply| reply.seen_source.ip());
    assert_eq!(seen, Ok(OUTSIDE.v4.into()), "policy Local keeps the source");
    assert_eq!(stage.ask(&stranger, vip), Err(Failure::Timeout), "the ranges hold");
    assert_eq!(
        stage.ask(&friend, balancer(MEDIAN + 1)),
        Err(Failure::Timeout),
        "its neighbour is not served"
    );
    let healthy = within(PATIENCE, || (health(MEDIAN) == Some(200)).then_some(()));
    assert!(healthy.is_some(), "its health check says {:?}", health(MEDIAN));
    Ok(())
}

#[test]
fn each_of_1000_services_without_endpoints_refuses() -> Result<()> {
    const SERVICES: usize = 1_000;
    const MEDIAN: usize = SERVICES / 2;
    let shape = shapes::without_endpoints(SERVICES);
    let stage = Stage::start(&shape, &[], "nft")?;
    let pod = &stage.world.pods[0];
    let host = stage.world.host_pod();
    let service = |number| SocketAddr::from((shapes::cluster_ip(number), 80));
    for number in [0, MEDIAN, SERVICES - 1] {
        for from in [pod, &host] {
            assert_eq!(stage.ask(from, service(number)), Err(Failure::Refused), "{number}, {}", from.name);
        }
    }
    for (changes, served) in [(1, true), (2, false)] {
        let written = stage.put(&shape.after(changes))?;
        // A bucket each of what is served and of what is refused, and the Service's chain; where a bucket splits, its parent.
        assert!(written.chains.len() <= 6 && written.rules <= 120, "one of {SERVICES}: {written:?}");
        let answer = stage.ask(pod, service(MEDIAN)).map(drop);
        assert_eq!(answer, if served { Ok(()) } else { Err(Failure::Refused) });
        assert_eq!(stage.ask(pod, service(MEDIAN + 1)), Err(Failure::Refused), "its neighbour");
    }
    Ok(())
}

#[test]
fn a_node_with_250_local_endpoints_reaches_them_and_they_themselves() -> Result<()> {
    let shape = shapes::local_endpoints(250);
    let itself = [shapes::service("itself", 1, &json!({})), shapes::slice("itself", 0, [(249, HERE)])];
    for flavour in ["nft", "legacy"] {
        let stage = Stage::start(&shape, &itself, flavour)?;
        let friend = stage.friend();
        let port = SocketAddr::from((NODE.v4, NODE_PORT));
        for _ in 0..40 {
            let seen = stage.ask(&friend, port).map(|reply| reply.seen_source.ip());
            assert_eq!(seen, Ok(OUTSIDE.v4.into()), "{flavour}: policy Local keeps the source");
        }
        let reached = stage.answered_by(port.ip())?;
        assert!(reached.len() >= 15, "{flavour}: 40 connections reach {reached:?}");
        assert!(stage.ask(&stage.world.pods[0], (shapes::cluster_ip(0), 80)).is_ok(), "{flavour}");

        let last = Client::new(&stage.world.pods[2].namespace).from_address(shapes::endpoint_ip(249).into());
        let target = SocketAddr::from((shapes::cluster_ip(1), 80));
        let seen = last.with_timeout(SILENCE).ask(Protocol::Tcp, target).map(|reply| reply.seen_source.ip());
        assert_eq!(seen, Ok(GATEWAY.v4.into()), "{flavour}: an endpoint that meets itself is masqueraded");

        let written = stage.put(&shape.after(1))?;
        let [svc, groups, svl, local_groups] = chains_of("local").map(|of| counted(&written.chains, &of));
        assert_eq!((svc, svl), (1, 1), "{flavour}: {written:?}");
        assert!((1..=2).contains(&groups) && (1..=2).contains(&local_groups), "{flavour}: {written:?}");
        // Where the kernel lacks the match for it, addresses that can meet themselves are listed.
        let hairpins: usize = ["nat", "filter"]
            .iter()
            .map(|table| counted(&written.chains, &format!("{table}/KUBE-SVL-0-")))
            .sum();
        assert_eq!(written.chains.len(), 2 + groups + local_groups + hairpins, "{flavour}: {written:?}");
    }
    Ok(())
}
