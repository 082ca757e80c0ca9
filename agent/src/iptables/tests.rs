use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use distributary_model::testing::{CLUSTER, endpoint, key, service};
use distributary_model::{Protocol, Service};
use proptest::prelude::*;

use super::fake::{Fake, Fate, From, Packet};
use super::*;
use crate::plan::{Claim, Config, Detector, NodePorts, PortPlan};

const NODE: &str = "n1";
const POD: &str = "10.128.0.99";
const OUTSIDE: &str = "203.0.113.7";
const HOST: &str = "192.168.0.2";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn options() -> Options {
    Options::new(CLUSTER, NODE)
}

fn node() -> NodeState {
    let detector = Some(Detector::ClusterCidr("10.128.0.0/9".parse().unwrap()));
    NodeState { detector, address: Some(ip(HOST)), ..NodeState::default() }
}

fn of(family: Family, options: Options, node: NodeState) -> Iptables {
    let mut rules = Iptables::new(family, options);
    rules.set_node(node);
    rules
}

fn v4(options: Options) -> Iptables {
    of(Family::V4, options, node())
}

/// Writes until there is nothing to write.
fn settle(rules: &mut Iptables, kernel: &mut Fake) -> Write {
    let write = rules.write().unwrap_or_default();
    kernel.restore(&write.text).unwrap();
    rules.written();
    assert_eq!(rules.write(), None);
    write
}

fn shop() -> Vec<(Arc<Key>, Service)> {
    let web = service(&["10.96.0.10", "fd00::10"])
        .port("http", Protocol::Tcp, 80, 30_080)
        .endpoint(endpoint("10.128.0.1", "http", 8080).on(NODE))
        .endpoint(endpoint("10.128.1.1", "http", 8080).on("n2"))
        .endpoint(endpoint("10.128.2.1", "http", 8080).on("n3"))
        .endpoint(endpoint("fd01::1", "http", 8080).on(NODE));
    let local = service(&["10.96.0.11", "fd00::11"])
        .port("", Protocol::Udp, 53, 30_053)
        .endpoint(endpoint("10.128.0.2", "", 53).protocol(Protocol::Udp).on(NODE))
        .endpoint(endpoint("10.128.1.2", "", 53).protocol(Protocol::Udp).on("n2"))
        .header(|header| header.external_policy_local = true);
    let elsewhere = service(&["10.96.0.12"])
        .port("", Protocol::Sctp, 9, 0)
        .endpoint(endpoint("10.128.1.3", "", 9).protocol(Protocol::Sctp).on("n2"))
        .header(|header| header.internal_policy_local = true);
    let empty = service(&["10.96.0.13", "fd00::13"]).port("http", Protocol::Tcp, 80, 30_013);
    vec![
        (key("shop/web"), web),
        (key("shop/local"), local),
        (key("shop/elsewhere"), elsewhere),
        (key("shop/empty"), empty),
    ]
}

fn rendered(mut rules: Iptables) -> String {
    for (key, service) in shop() {
        rules.set(&key, Some(Arc::new(service)));
    }
    rules.write().unwrap().text
}

#[test]
fn a_small_shop() {
    insta::assert_snapshot!("shop-v4", rendered(v4(options())));
    let mut options = options();
    options.hairpin = Hairpin::Trie;
    options.be_liberal = true;
    let detector = Some(Detector::NodeCidr("fd01::/64".parse().unwrap()));
    insta::assert_snapshot!("shop-v6", rendered(of(Family::V6, options, NodeState { detector, ..node() })));
}

#[test]
fn adopting_what_was_written_writes_nothing() {
    for family in [Family::V4, Family::V6] {
        let mut kernel = Fake::default();
        let mut rules = of(family, options(), node());
        let mut again = of(family, options(), node());
        for (key, service) in shop() {
            rules.set(&key, Some(Arc::new(service.clone())));
            again.set(&key, Some(Arc::new(service)));
        }
        settle(&mut rules, &mut kernel);
        again.adopt(&parse(&kernel.save()));
        assert_eq!(again.write(), None);
    }
}

#[test]
fn the_kernels_rules_say_which_destinations_they_lead_from() {
    use Protocol::{Sctp, Tcp, Udp};
    let theirs = include_str!("trace/kube-proxy.save");
    let mut many = v4(options());
    for i in 0..100 {
        let service = service(&[&format!("10.96.1.{i}")]).port("", Udp, 53, 31_000 + i);
        many.set(&key(&format!("many/s{i}")), Some(Arc::new(service)));
    }
    let mut kernel = Fake::default();
    settle(&mut many, &mut kernel);
    for (text, protocol, some, count) in [
        (rendered(v4(options())), Udp, Claim::Address(ip("10.96.0.11"), Udp, 53), 2),
        (rendered(v4(options())), Tcp, Claim::NodePort(Tcp, 30_013), 4),
        (rendered(v4(options())), Sctp, Claim::Address(ip("10.96.0.12"), Sctp, 9), 1),
        (kernel.save(), Udp, Claim::NodePort(Udp, 31_099), 200),
        (theirs.to_owned(), Tcp, Claim::Address(ip("10.96.0.1"), Tcp, 443), 0),
    ] {
        let found = destinations(&parse(&text), protocol);
        assert!(found.contains(&some), "{some:?} is not in {found:?}");
        assert!(count == 0 || found.len() == count, "{found:?}");
    }
}

/// WART-6: an external IP leads around nobody's source ranges.
#[test]
fn an_address_that_is_also_an_external_ip_is_filtered_all_the_same() {
    let mut kernel = Fake::default();
    let mut rules = v4(options());
    let service = service(&["10.96.0.1"])
        .port("", Protocol::Tcp, 80, 0)
        .endpoint(endpoint("10.128.1.1", "", 80))
        .header(|header| {
            header.external_ips = vec![ip("192.0.2.1")];
            header.load_balancer_vips = vec![ip("192.0.2.1"), ip("192.0.2.2")];
            header.source_ranges = vec!["198.51.100.0/24".parse().unwrap()];
        });
    rules.set(&key("shop/web"), Some(Arc::new(service)));
    settle(&mut rules, &mut kernel);
    for address in ["192.0.2.1", "192.0.2.2"] {
        let from = |source| kernel.fate(&packet(From::Elsewhere, source, ip(address), Protocol::Tcp, 80));
        assert_eq!(from(OUTSIDE).refused.as_deref(), Some("DROP"));
        assert_eq!(from("198.51.100.9").to.len(), 1);
    }
    let counts = rules.counts();
    assert_eq!((counts.last_nat, counts.last_filter), (counts.nat, counts.filter));
    let saved = kernel.save();
    let owned = |table| {
        parse(&saved)
            .chains(table)
            .filter(|(name, _)| name.starts_with("KUBE-"))
            .map(|(_, rules)| rules.len())
            .sum::<usize>()
    };
    assert_eq!((counts.nat, counts.filter), (owned(Table::Nat), owned(Table::Filter)));
}

/// Node ports at some addresses only, and then everywhere, the loopback address too: with the rule that keeps others
/// off it in the kernel, beside kubelet's own.
#[test]
fn node_ports_follow_the_nodes_addresses() {
    for kubelets in [false, true] {
        let mut kernel = Fake::default();
        let rule = "! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment \"block incoming localnet connections\" \
             -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP";
        if kubelets {
            let text = format!(
                "*filter\n:KUBE-FIREWALL - [0:0]\n-A KUBE-FIREWALL -j RETURN\n-A KUBE-FIREWALL {rule}\n\
                 -A INPUT -j KUBE-FIREWALL\nCOMMIT\n"
            );
            kernel.restore(&text).unwrap();
        }
        let mut rules = v4(options());
        rules.adopt(&parse(&kernel.save()));
        let at = |addresses: &[&str]| NodePorts::At(addresses.iter().map(|one| ip(one)).collect());
        rules.set_node(NodeState { node_ports: at(&["192.168.0.2", "192.168.1.2"]), ..node() });
        settle(&mut rules, &mut kernel);
        let saved = kernel.save();
        assert!(
            saved.contains("-A KUBE-SERVICES -d 192.168.0.2/32 -m comment") && !saved.contains("--dst-type")
        );
        assert_eq!(saved.contains("KUBE-FIREWALL"), kubelets);
        for node_ports in [at(&["127.0.0.1"]), NodePorts::Everywhere { loopback: true }] {
            rules.set_node(NodeState { node_ports, ..node() });
            settle(&mut rules, &mut kernel);
            let saved = kernel.save();
            assert_eq!(saved.matches(&format!("-A KUBE-FIREWALL {rule}\n")).count(), 1);
            assert_eq!(saved.matches("-A KUBE-FIREWALL -j RETURN\n").count(), usize::from(kubelets));
            assert_eq!(saved.matches("PUT -j KUBE-FIREWALL\n").count(), 2);
            let mut again = v4(options());
            again.set_node(rules.node().clone());
            again.adopt(&parse(&saved));
            assert_eq!(again.write(), None);
        }
    }
}

#[test]
fn nothing_is_written_while_a_write_is_outstanding() {
    let mut rules = v4(options());
    assert!(rules.write().is_some());
    assert_eq!(rules.write(), None);
    rules.adopt(&Dump::default());
    assert!(rules.write().is_some());
    rules.written();
    assert_eq!(rules.write(), None);
}

#[test]
fn the_next_claimant_takes_over_in_the_same_write() {
    let mut kernel = Fake::default();
    let mut rules = v4(options());
    let made = |created| {
        let endpoint = endpoint(&format!("10.128.1.{created}"), "", 80);
        service(&["10.96.0.1"])
            .port("", Protocol::Tcp, 80, 0)
            .endpoint(endpoint)
            .header(|h| h.created = created)
    };
    rules.set(&key("a/late"), Some(Arc::new(made(2))));
    rules.set(&key("b/early"), Some(Arc::new(made(1))));
    settle(&mut rules, &mut kernel);
    let packet = packet(From::Elsewhere, POD, ip("10.96.0.1"), Protocol::Tcp, 80);
    assert_eq!(kernel.fate(&packet).to[0].0, "10.128.1.1:80".parse().unwrap());
    assert_eq!(rules.conflicts().count(), 1);
    rules.set(&key("b/early"), None);
    settle(&mut rules, &mut kernel);
    assert_eq!(kernel.fate(&packet).to[0].0, "10.128.1.2:80".parse().unwrap());
    assert_eq!(rules.conflicts().count(), 0);
}

#[test]
fn one_endpoint_of_many_rewrites_its_group_and_its_service() {
    let mut kernel = Fake::default();
    let mut rules = v4(options());
    let many = |n: u32| {
        let mut service = service(&["10.96.0.1"]).port("", Protocol::Tcp, 80, 0);
        service.endpoints =
            (0..n).map(|i| endpoint(&format!("10.129.{}.{}", i / 250, i % 250), "", 80)).collect();
        Some(Arc::new(service))
    };
    rules.set(&key("big/one"), many(1000));
    settle(&mut rules, &mut kernel);
    rules.set(&key("big/one"), many(1001));
    let write = settle(&mut rules, &mut kernel);
    assert_eq!(write.chains.len(), 2, "{:?}", write.chains);
    assert!(write.rules < 100);
    // Every way back passes through groups that were split; who starts anew then finds them.
    for n in [600, 400, 380, 300, 40, 17] {
        rules.set(&key("big/one"), many(n));
        settle(&mut rules, &mut kernel);
        let mut again = v4(options());
        again.set(&key("big/one"), many(n));
        again.adopt(&parse(&kernel.save()));
        assert_eq!(again.write(), None, "{n}");
    }
    rules.set(&key("big/one"), many(16));
    settle(&mut rules, &mut kernel);
    assert!(!kernel.save().contains("KUBE-SEP-"));
}

/// 40 services are split, 20 would not be, but stay so: whoever starts then must see it, in every trie.
#[test]
fn shapes_that_only_history_explains_are_read_back() {
    for family in [Family::V4, Family::V6] {
        let options = Options { hairpin: Hairpin::Trie, ..options() };
        let mut kernel = Fake::default();
        let mut rules = Iptables::new(family, options.clone());
        let made = |i: u16| {
            let made = service(&[&format!("10.96.0.{i}"), &format!("fd00::{i:x}")]).port(
                "",
                Protocol::Tcp,
                80,
                30_000 + i,
            );
            // Every other one is refused.
            let (v4, v6) = (format!("10.128.0.{i}"), format!("fd01::{i:x}"));
            let served = made.clone().endpoint(endpoint(&v4, "", 80)).endpoint(endpoint(&v6, "", 80));
            Some(Arc::new(if i.is_multiple_of(2) { served } else { made }))
        };
        (0..80).for_each(|i| rules.set(&key(&format!("s/{i}")), made(i)));
        settle(&mut rules, &mut kernel);
        (40..80).for_each(|i| rules.set(&key(&format!("s/{i}")), None));
        settle(&mut rules, &mut kernel);
        let mut again = Iptables::new(family, options);
        (0..40).for_each(|i| again.set(&key(&format!("s/{i}")), made(i)));
        let fresh = again.write().unwrap();
        for bucket in ["KUBE-SVC-0-0", "KUBE-EXT-1-T", "KUBE-SVL-0-0"] {
            assert!(family == Family::V6 || kernel.save().contains(bucket), "{bucket}");
            assert!(!fresh.text.contains(bucket), "{bucket}");
        }
        again.adopt(&parse(&kernel.save()));
        assert_eq!(again.write(), None);
    }
}

#[test]
fn takes_over_from_kube_proxy_and_leaves_others_alone() {
    let web = shop().remove(0);
    let h = names::service_hash("shop/web:http", Protocol::Tcp);
    let mut kernel = Fake::default();
    kernel
        .restore(&format!(
            "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-NODEPORTS - [0:0]\n:KUBE-SVC-{h} - [0:0]\n:KUBE-EXT-{h} - [0:0]\n\
             :KUBE-SEP-AAAAAAAAAAAAAAAA - [0:0]\n:KUBE-SVC-BBBBBBBBBBBBBBBB - [0:0]\n:KUBE-KUBELET-CANARY - [0:0]\n\
             :MINE - [0:0]\n-A PREROUTING -j MINE\n\
             -A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
             -A MINE -j KUBE-SVC-BBBBBBBBBBBBBBBB\n\
             -A KUBE-SERVICES -d 10.96.0.10/32 -p tcp -m comment --comment \"x\" -m tcp --dport 80 -j KUBE-SVC-{h}\n\
             -A KUBE-NODEPORTS -p tcp -m tcp --dport 30080 -j KUBE-EXT-{h}\n-A KUBE-EXT-{h} -j KUBE-SVC-{h}\n\
             -A KUBE-SVC-{h} -j KUBE-SEP-AAAAAAAAAAAAAAAA\n\
             -A KUBE-SEP-AAAAAAAAAAAAAAAA -p tcp -m tcp -j DNAT --to-destination 10.128.9.9:1\nCOMMIT\n"
        ))
        .unwrap();
    let mut rules = v4(options());
    rules.adopt(&parse(&kernel.save()));
    rules.set(&web.0, Some(Arc::new(web.1)));
    settle(&mut rules, &mut kernel);
    let saved = kernel.save();
    assert!(!saved.contains("AAAAAAAA") && saved.contains("KUBE-KUBELET-CANARY"));
    let prerouting: Vec<&str> = saved.lines().filter(|line| line.starts_with("-A PREROUTING")).collect();
    assert_eq!(prerouting.len(), 2);
    assert!(prerouting[1].ends_with("-j KUBE-SERVICES"), "a jump that is there is not moved");
    // What a foreign rule jumps to is emptied, and then left alone.
    assert!(saved.contains(":KUBE-SVC-BBBBBBBBBBBBBBBB"));
    rules.adopt(&parse(&saved));
    assert_eq!(rules.write(), None);
}

#[test]
fn dns_and_the_api_come_first_on_an_empty_node() {
    let mut options = options();
    options.section = 10;
    let mut rules = v4(options);
    for i in 0..100 {
        let address = format!("10.96.1.{i}");
        let service =
            service(&[&address]).port("", Protocol::Tcp, 80, 0).endpoint(endpoint("10.128.1.1", "", 80));
        rules.set(&key(&format!("shop/s{i}")), Some(Arc::new(service)));
    }
    let dns = service(&["10.96.0.10"]).port("", Protocol::Udp, 53, 0);
    let dns = dns.endpoint(endpoint("10.128.1.1", "", 53).protocol(Protocol::Udp));
    rules.set(&key("kube-system/kube-dns"), Some(Arc::new(dns)));
    let write = rules.write().unwrap();
    let mut kernel = Fake::default();
    kernel.restore(&Fake::sections(&write.text)[0]).unwrap();
    let packet = packet(From::Elsewhere, POD, ip("10.96.0.10"), Protocol::Udp, 53);
    assert_eq!(kernel.fate(&packet).to.len(), 1);
    assert!(write.sections > 10);
}

fn packet(from: From, source: &str, destination: IpAddr, protocol: Protocol, port: u16) -> Packet {
    Packet { from, source: ip(source), destination, protocol, port }
}

// === Histories ===

/// What a service of a number may be.
#[derive(Clone, Debug)]
struct Content {
    endpoints: usize,
    local: usize,
    node_port: bool,
    internal_local: bool,
    external_local: bool,
    leaving: bool,
    created: i64,
    /// External IP, load balancer address.
    external: [bool; 2],
    /// None, one that lets the outside through, one that does not.
    ranges: u8,
    affinity: bool,
}

fn content() -> impl Strategy<Value = Content> {
    let endpoints = prop_oneof![4 => 0..5_usize, 1 => 25..80_usize];
    let more = (any::<[bool; 2]>(), 0..3_u8, any::<bool>());
    (endpoints, 0..3_usize, any::<[bool; 3]>(), 0..6_u8, 0..3_i64, more).prop_map(
        |(
            endpoints,
            local,
            [node_port, internal_local, external_local],
            leaving,
            created,
            (external, ranges, affinity),
        )| Content {
            endpoints,
            local,
            node_port,
            internal_local,
            external_local,
            leaving: leaving == 0,
            created,
            external,
            ranges,
            affinity,
        },
    )
}

/// Services share addresses now and then, and endpoints always.
fn build(number: u8, content: &Content) -> Service {
    let spread = u32::from(number % 70);
    let address = IpAddr::from((0x0a60_0000_u32 + (spread % 5) * 0x1_0000 + spread).to_be_bytes());
    let node_port = if content.node_port { 30_000 + u16::from(number % 60) } else { 0 };
    let mut service =
        service(&[&address.to_string()]).port("", Protocol::Tcp, 80, node_port).header(|header| {
            header.internal_policy_local = content.internal_local;
            header.external_policy_local = content.external_local;
            header.created = content.created;
            let [external, load_balancer] = content.external.map(|is| is.then_some(external_address(number)));
            header.external_ips = external.into_iter().collect();
            header.load_balancer_vips = load_balancer.into_iter().collect();
            header.affinity_seconds = if content.affinity { 60 } else { 0 };
            header.health_check_node_port =
                if content.external[1] { 31_000 + u16::from(number % 50) } else { 0 };
            let ranges = [&[][..], &["203.0.113.0/24", "10.0.0.0/8"], &["198.51.100.0/24", "192.168.0.0/24"]];
            header.source_ranges =
                ranges[usize::from(content.ranges)].iter().map(|range| range.parse().unwrap()).collect();
        });
    for i in 0..content.endpoints {
        let one = endpoint(&format!("10.128.{}.{}", i / 200, i % 200), "", 8080);
        let one = one.on(if i < content.local { NODE } else { "n2" });
        service.endpoints.push(if content.leaving { one.terminating() } else { one });
    }
    service
}

fn external_address(number: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, number % 60])
}

/// Whose a packet is and what is to become of it, by the plan.
fn expected(ports: &[PortPlan], packet: &Packet) -> Expected {
    let pod = packet.source == ip(POD);
    let served = |to: &[SocketAddr], masquerade: bool| {
        let chance = 1.0 / to.len() as f64;
        Fate {
            to: to.iter().map(|&to| (to, chance, masquerade || to.ip() == packet.source)).collect(),
            ..Fate::default()
        }
    };
    let refused = |answer| Fate { refused: Some(format!("{answer:?}").to_uppercase()), ..Fate::default() };
    if let Some(port) = ports.iter().find(|port| port.cluster_ip == Some(packet.destination)) {
        let fate = match port.internal_answer() {
            Some(answer) => refused(answer),
            None => served(port.internal(), !pod),
        };
        return Some((port.clone(), fate));
    }
    let port = ports.iter().find(|port| {
        port.external_ips.contains(&packet.destination)
            || port.vips.contains(&packet.destination)
            || (port.node_port == Some(packet.port) && packet.destination == ip(HOST))
    })?;
    let lets_through = |source: IpAddr| {
        let ranges = &port.source_ranges;
        ranges.is_empty() || ranges.iter().any(|range| range.contains(&source))
    };
    if port.has_any && port.vips.contains(&packet.destination) && !lets_through(packet.source) {
        return Some((port.clone(), refused(plan::Answer::Drop)));
    }
    if !port.has_any {
        // §2.4 note 2: what the host itself sends away is not rejected. What it sends to itself comes in by loopback.
        let comes_in = packet.from != From::Host || packet.destination == ip(HOST);
        return comes_in.then(|| (port.clone(), refused(plan::Answer::Reject)));
    }
    let fate = match port.external_local {
        false => served(port.external(), true),
        true if pod => served(&port.cluster, false),
        true if packet.from == From::Host => served(&port.cluster, true),
        true => match port.external_answer() {
            Some(answer) => refused(answer),
            None => served(port.external(), false),
        },
    };
    Some((port.clone(), fate))
}

fn same(one: &Fate, other: &Fate) -> bool {
    one.unknown.is_none()
        && one.refused == other.refused
        && one.to.len() == other.to.len()
        && one.to.iter().zip(&other.to).all(|(a, b)| a.0 == b.0 && a.2 == b.2 && (a.1 - b.1).abs() < 1e-6)
}

fn packets() -> Vec<Packet> {
    let addresses =
        (0..70_u32).map(|i| (IpAddr::from((0x0a60_0000 + (i % 5) * 0x1_0000 + i).to_be_bytes()), 80));
    let node_ports = (0..60_u16).map(|i| (ip(HOST), 30_000 + i));
    let external = (0..60_u8).map(|i| (external_address(i), 80));
    addresses
        .chain(node_ports)
        .chain(external)
        .enumerate()
        .map(|(i, (destination, port))| match i % 4 {
            0 => packet(From::Elsewhere, OUTSIDE, destination, Protocol::Tcp, port),
            1 => packet(From::Host, HOST, destination, Protocol::Tcp, port),
            2 => packet(From::Elsewhere, POD, destination, Protocol::Tcp, port),
            // Meets itself, where it is the endpoint.
            _ => packet(From::Elsewhere, OUTSIDE, destination, Protocol::Tcp, port),
        })
        .collect()
}

/// After a section, a packet that was and will be somebody's is nobody's at no time.
fn in_between(before: &Expected, after: &Expected, now: &Fate) -> Result<(), TestCaseError> {
    let (Some((was, before)), Some((is, after))) = (before, after) else { return Ok(()) };
    if before.refused.is_none() && after.refused.is_none() {
        prop_assert!(now.refused.is_none() && !now.to.is_empty(), "{:?} {:?} {:?}", before, after, now);
    }
    prop_assert!(now.refused.is_some() || !now.to.is_empty(), "leaked: {:?} {:?}", before, after);
    // On its way to another owner or policy it may see what the old one has by now, but no stranger's endpoints.
    let known =
        |to: &SocketAddr| [was, is].iter().any(|port| port.cluster.contains(to) || port.local.contains(to));
    prop_assert!(
        was.svc != is.svc || now.to.iter().all(|(to, ..)| known(to)),
        "{:?} {:?} {:?}",
        before,
        after,
        now
    );
    Ok(())
}

fn plan() -> Plan {
    Plan::new(Config { family: Family::V4, cluster: CLUSTER.into(), node: NODE.into(), state: node() })
}

type Expected = Option<(PortPlan, Fate)>;
type Step = (BTreeMap<u8, Option<Content>>, Option<u8>);

fn history() -> impl Strategy<Value = Vec<Step>> {
    let few = proptest::collection::btree_map(0..90_u8, proptest::option::weighted(0.7, content()), 1..6);
    let many = proptest::collection::btree_map(0..90_u8, proptest::option::weighted(0.6, content()), 30..90);
    let step = (prop_oneof![2 => few, 1 => many], proptest::option::weighted(0.15, 0..4_u8));
    proptest::collection::vec(step, 1..6)
}

fn check_history(options: &Options, steps: &[Step]) -> Result<(), TestCaseError> {
    let mut rules = v4(options.clone());
    let mut wanted = plan();
    let mut kernel = Fake::default();
    kernel.addresses.insert(ip(HOST));
    let packets = packets();
    let mut before: Vec<Expected> = vec![None; packets.len()];
    for (changes, fails_after) in steps {
        for (number, content) in changes {
            let service = content.as_ref().map(|content| Arc::new(build(*number, content)));
            let key = key(&format!("s/{number}"));
            rules.set(&key, service.clone());
            wanted.set(&key, service);
        }
        let ports = (0..=u8::MAX).flat_map(|number| wanted.ports(&key(&format!("s/{number}"))));
        let ports: Vec<PortPlan> = ports.collect();
        let after: Vec<Expected> = packets.iter().map(|packet| expected(&ports, packet)).collect();
        let mut fails_after = *fails_after;
        while let Some(write) = rules.write() {
            let sections = Fake::sections(&write.text);
            prop_assert_eq!(sections.len(), write.sections);
            let mut failed = false;
            for (i, section) in sections.iter().enumerate() {
                failed = fails_after.take_if(|after| usize::from(*after) == i).is_some();
                if failed {
                    break;
                }
                kernel.restore(section).map_err(TestCaseError::fail)?;
                for ((packet, before), after) in packets.iter().zip(&before).zip(&after) {
                    in_between(before, after, &kernel.fate(packet))?;
                }
            }
            match failed {
                true => rules.adopt(&parse(&kernel.save())),
                false => rules.written(),
            }
        }
        for (packet, after) in packets.iter().zip(&after) {
            let now = kernel.fate(packet);
            let after = after.clone().map(|(_, fate)| fate).unwrap_or_default();
            prop_assert!(same(&now, &after), "{:?}\nis {:?}\nnot {:?}", packet, now, after);
        }
        before = after;
        let saved = kernel.save();
        let mut again = v4(options.clone());
        for number in 0..=u8::MAX {
            let key = key(&format!("s/{number}"));
            again.set(&key, rules.get(&key).cloned());
        }
        again.adopt(&parse(&saved));
        if let Some(write) = again.write() {
            prop_assert!(false, "not nothing: {}", write.text);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20, ..ProptestConfig::default() })]

    #[test]
    fn any_history_means_what_is_wanted(steps in history(), section in 1..60_usize, flavour in any::<bool>(), trie in any::<bool>()) {
        let mut options = options();
        options.section = section;
        options.flavour = if flavour { Flavour::Nft } else { Flavour::Legacy };
        options.hairpin = if trie { Hairpin::Trie } else { Hairpin::Bpf };
        check_history(&options, &steps)?;
    }
}
