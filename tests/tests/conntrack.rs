//! UDP flows follow their service: on the real connection table, and with real packets of clients that keep their port.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use distributary_agent::conntrack::Ledger;
use distributary_agent::conntrack::ledger::GRACE;
use distributary_agent::conntrack::table::{Conntrack, Outcome, Table};
use distributary_agent::nfacct;
use distributary_agent::plan::Family;
use distributary_e2e::deployed::{self, PATIENCE};
use distributary_e2e::netns::Namespace;
use distributary_e2e::node::{AGENT_ADMIN, Node, cluster_ips, service, slices};
use distributary_e2e::topology::{NODE, Pod, Topology};
use distributary_e2e::traffic::{Conversation, Failure, Protocol, Reply};
use distributary_e2e::wait::within;
use distributary_model::{Service, testing as t};
use serde_json::{Value, json};

/// DNS of both families, served by one endpoint of each, on the node port 30053.
fn dns() -> Service {
    let endpoint = |address| t::endpoint(address, "dns", 5353).protocol(distributary_model::Protocol::Udp);
    t::service(&["10.96.0.10", "fd96::a"])
        .port("dns", distributary_model::Protocol::Udp, 53, 30053)
        .endpoint(endpoint("10.244.0.2"))
        .endpoint(endpoint("fd00:10:244::2"))
}

/// Lines for `conntrack --load-file`: a flow from a port, to a destination, that somebody answers.
fn line(protocol: &str, port: u16, destination: &str, answers: &str) -> String {
    let [to, by]: [SocketAddr; 2] =
        [destination, answers].map(|address| address.parse().expect("an address"));
    let from = if to.is_ipv4() { "203.0.113.5" } else { "2001:db8:5::5" };
    let state = if protocol == "tcp" { " --state ESTABLISHED" } else { "" };
    format!(
        "-A -t 600 -u SEEN_REPLY,ASSURED -s {from} -d {} -r {} -q {from} -p {protocol} --sport {port} --dport {} \
         --reply-port-src {} --reply-port-dst {port}{state}\n",
        to.ip(),
        by.ip(),
        to.port(),
        by.port()
    )
}

fn load(namespace: &Namespace, lines: &str) -> Result<()> {
    let output = namespace.feed("conntrack", &["--load-file", "-"], lines)?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "conntrack takes them not: {stderr}");
    Ok(())
}

/// The source ports of the flows that are left.
fn left(namespace: &Namespace) -> Result<Vec<u16>> {
    let listed = ["-f ipv4", "-f ipv6"].map(|family| namespace.shell(&format!("conntrack -L {family}")));
    let mut ports = Vec::new();
    for listed in listed {
        for line in listed?.lines() {
            let (_, after) = line.split_once("sport=").context("a port")?;
            ports.push(after.split(' ').next().unwrap_or_default().parse()?);
        }
    }
    ports.sort_unstable();
    Ok(ports)
}

/// One pass in the namespace, in both families.
fn pass(namespace: &Namespace, service: &Service) -> Result<Outcome> {
    let mut sum = Outcome::default();
    for family in [Family::V4, Family::V6] {
        let now = Instant::now();
        let mut ledger = Ledger::new(family, t::CLUSTER.into());
        ledger.set(&t::key("kube-system/dns"), Some(service), now);
        let mut outcome = Outcome::default();
        namespace.within(|| Conntrack.pass(&ledger, now, &mut outcome))?;
        sum = Outcome { seen: sum.seen + outcome.seen, deleted: sum.deleted + outcome.deleted };
    }
    Ok(sum)
}

#[test]
fn exactly_the_stale_flows_are_deleted() -> Result<()> {
    let namespace = Namespace::new()?;
    namespace.shell("ip address add 192.0.2.1/24 dev lo")?;
    namespace.shell("ip address add 2001:db8::1/64 dev lo nodad")?;
    let flows = [
        // Kept: a109, a112, a113 (another host's port), a114, and a flow that is nobody's.
        line("udp", 1, "10.96.0.10:53", "10.244.0.2:5353"),
        line("udp", 2, "[fd96::a]:53", "[fd00:10:244::2]:5353"),
        line("udp", 3, "192.0.2.1:30053", "10.244.0.2:5353"),
        line("udp", 4, "10.96.0.10:54", "10.96.0.10:54"),
        line("udp", 5, "198.51.100.7:30053", "198.51.100.7:30053"),
        line("tcp", 6, "10.96.0.10:53", "10.244.0.9:5353"),
        line("udp", 7, "10.244.0.9:5353", "10.244.0.9:5353"),
        // Stale: a110, a111, a113.
        line("udp", 11, "10.96.0.10:53", "10.244.0.9:5353"),
        line("udp", 12, "10.96.0.10:53", "10.244.0.2:5354"),
        line("udp", 13, "[fd96::a]:53", "[fd00:10:244::9]:5353"),
        line("udp", 14, "10.96.0.10:53", "10.96.0.10:53"),
        line("udp", 15, "192.0.2.1:30053", "10.244.0.9:5353"),
        line("udp", 16, "[2001:db8::1]:30053", "[2001:db8::1]:30053"),
    ];
    load(&namespace, &flows.concat())?;
    // In a zone of a network plugin's own, the address of a service may well be untranslated.
    namespace.shell("conntrack -I -w 7 -p udp -t 600 -s 203.0.113.5 -d 10.96.0.10 --sport 8 --dport 53")?;
    assert_eq!(left(&namespace)?, [1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 14, 15, 16]);
    let outcome = pass(&namespace, &dns())?;
    assert_eq!(left(&namespace)?, [1, 2, 3, 4, 5, 6, 7, 8]);
    // That TCP is not among those that were looked at is the kernel's work.
    assert_eq!(outcome, Outcome { seen: 12, deleted: 6 });
    assert_eq!(pass(&namespace, &dns())?, Outcome { seen: 6, deleted: 0 });
    Ok(())
}

#[test]
fn a_large_table_is_gone_through_in_one_pass() -> Result<()> {
    let namespace = Namespace::new()?;
    let flows = (0..20_000).map(|i: u16| {
        let endpoint = if i.is_multiple_of(2) { "10.244.0.2:5353" } else { "10.244.0.9:5353" };
        line("udp", 1024 + i, "10.96.0.10:53", endpoint)
    });
    load(&namespace, &flows.collect::<String>())?;
    let outcome = pass(&namespace, &dns())?;
    assert_eq!(outcome.deleted, 10_000);
    assert!(outcome.seen >= 20_000, "{outcome:?}");
    assert_eq!(pass(&namespace, &dns())?, Outcome { seen: 10_000, deleted: 0 });
    Ok(())
}

#[test]
fn packet_counters_are_made_once_and_read_while_rules_count() -> Result<()> {
    let namespace = Namespace::new()?;
    namespace.within(|| -> Result<()> {
        assert_eq!(nfacct::packets(nfacct::INVALID_DROPPED)?, None);
        assert!(nfacct::ensure());
        assert_eq!(nfacct::packets(nfacct::INVALID_DROPPED)?, Some(0));
        Ok(())
    })?;
    for flavour in ["nft", "legacy"] {
        let rule = "OUTPUT -p udp --dport 9 -m nfacct --nfacct-name localhost_nps_accepted_pkts";
        namespace.shell(&format!("iptables-{flavour} -A {rule} -j DROP"))?;
        let saved = namespace.shell(&format!("iptables-{flavour}-save"))?;
        let written = "-m nfacct --nfacct-name  localhost_nps_accepted_pkts";
        assert!(saved.contains(written), "{flavour} prints it so:\n{saved}");
        let before =
            namespace.within(|| nfacct::packets(nfacct::LOCALHOST_ACCEPTED))?.context("it is there")?;
        namespace.within(|| -> Result<()> {
            let socket = std::net::UdpSocket::bind("127.0.0.1:0")?;
            assert!(socket.send_to(b"counted", "127.0.0.1:9").is_err(), "the rule drops it");
            Ok(())
        })?;
        // Made again, it goes on counting.
        assert!(namespace.within(nfacct::ensure));
        let after = namespace.within(|| nfacct::packets(nfacct::LOCALHOST_ACCEPTED))?;
        assert_eq!(after, Some(before + 1), "{flavour}");
        namespace.shell(&format!("iptables-{flavour} -F OUTPUT"))?;
    }
    Ok(())
}

fn web(pods: &[&Pod]) -> Vec<Value> {
    [vec![service("web", 1, 30080, &json!({}))], slices("web", pods)].concat()
}

/// Clients that keep their ports: of a pod to the cluster IPs, from outside to the node ports.
fn talk(world: &Topology) -> Vec<(SocketAddr, Conversation)> {
    let open = |pod: Pod, target: SocketAddr| {
        let client = pod.client_for(target.ip()).with_timeout(Duration::from_millis(200));
        (target, client.open(Protocol::Udp, target).expect("a socket"))
    };
    let node_ports = NODE.both().map(|address| SocketAddr::new(address, 30080));
    let inside = cluster_ips(1).map(|target| open(world.pods[1].clone(), target));
    let outside = node_ports.map(|target| open(world.outsider(), target));
    inside.into_iter().chain(outside).collect()
}

/// Every client asks, on and on, until all of them are told what is wanted.
fn expect(
    node: &Node,
    what: &str,
    clients: &mut [(SocketAddr, Conversation)],
    wanted: impl Fn(&Result<Reply, Failure>) -> bool,
) {
    let mut last = Vec::new();
    let found = within(PATIENCE, || {
        last = clients.iter_mut().map(|(target, client)| (*target, client.ask())).collect();
        last.iter().all(|(_, answer)| wanted(answer)).then_some(())
    });
    if found.is_none() {
        let log = node.agent.as_ref().map(|agent| agent.tail()).unwrap_or_default();
        let table = node.world.node.script("conntrack -L; conntrack -L -f ipv6").unwrap_or_default();
        panic!("{what}: {last:?}\nagent:\n{log}\ntable:\n{table}");
    }
}

fn by(who: &str) -> impl Fn(&Result<Reply, Failure>) -> bool {
    move |answer| answer.as_ref().is_ok_and(|reply| reply.who == who)
}

#[test]
fn a_client_that_keeps_its_port_follows_its_service() -> Result<()> {
    let node = Node::start(|world| web(&[&world.pods[0]]), &[])?;
    let (first, second) = (node.world.pods[0].clone(), node.world.remote_pods[0].clone());
    let mut clients = talk(&node.world);
    expect(&node, "at first", &mut clients, by("pod-0"));

    node.manifests.put("all.json", &web(&[&second]))?;
    expect(&node, "the endpoint is replaced", &mut clients, by("remote-0"));

    let gone = Instant::now();
    node.manifests.put("all.json", &web(&[]))?;
    expect(&node, "none is left", &mut clients, |answer| *answer == Err(Failure::Refused));
    assert!(gone.elapsed() >= GRACE, "flows were cut after {:?}", gone.elapsed());

    node.manifests.put("all.json", &web(&[&first]))?;
    expect(&node, "one is back", &mut clients, by("pod-0"));

    node.manifests.put("all.json", &[])?;
    expect(&node, "the service is deleted", &mut clients, Result::is_err);

    // What they sent meanwhile has made flows that nobody translates.
    node.manifests.put("all.json", &web(&[&second]))?;
    expect(&node, "it is made again at the same addresses", &mut clients, by("remote-0"));

    let (_, metrics) = deployed::get(&node.world.node, AGENT_ADMIN, "/metrics").context("metrics")?;
    for series in [
        "kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family=\"IPv4\"}",
        "kubeproxy_conntrack_reconciler_sync_duration_seconds_count{ip_family=\"IPv6\"}",
        "kubeproxy_iptables_ct_state_invalid_dropped_packets_total",
        "kubeproxy_iptables_localhost_nodeports_accepted_packets_total",
    ] {
        let value = metrics.lines().find_map(|line| line.strip_prefix(series)?.trim().parse::<f64>().ok());
        let least = if series.contains("conntrack") { 1.0 } else { 0.0 };
        assert!(value.is_some_and(|value| value >= least), "{series} is {value:?} in\n{metrics}");
    }
    Ok(())
}

#[test]
fn a_service_that_is_deleted_while_the_agent_is_down_keeps_no_client() -> Result<()> {
    let mut node = Node::start(|world| web(&[&world.pods[0]]), &[])?;
    let mut clients = talk(&node.world);
    expect(&node, "at first", &mut clients, by("pod-0"));
    node.agent = None;
    expect(&node, "the rules stay", &mut clients, by("pod-0"));
    node.manifests.put("all.json", &[])?;
    node.start_agent()?;
    expect(&node, "the agent is back, and the service gone", &mut clients, Result::is_err);
    Ok(())
}

#[test]
fn a_client_that_talked_while_the_rules_were_lost_is_translated_again() -> Result<()> {
    let node = Node::start(|world| web(&[&world.pods[0]]), &[])?;
    node.world.node.script("iptables -t nat -F && iptables -t nat -X && conntrack -F")?;
    let pod = node.world.pods[1].clone();
    let target = cluster_ips(1)[0];
    let client = pod.client_for(target.ip()).with_timeout(Duration::from_millis(200));
    let mut clients = vec![(target, client.open(Protocol::Udp, target).expect("a socket"))];
    assert!(clients[0].1.ask().is_err(), "nobody translates it");
    expect(&node, "the rules are back", &mut clients, by("pod-0"));
    Ok(())
}
