use super::super::parse::parse;
use super::*;

/// What kube-proxy 1.36.3 wrote on a node with its defaults and `--cluster-cidr=10.244.0.0/16`: `shop/cluster` with an
/// external IP, a VIP and affinity, `shop/local` with policy Local and source ranges, `shop/elsewhere` with internal
/// policy Local and no local endpoint, `shop/empty`.
const KUBE_PROXY: &str = include_str!("kube-proxy.save");
const NODE: &str = "192.0.2.1";
const NEAR: &str = "10.244.0.2:8080";
const FAR: &str = "10.244.1.2:8080";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn host() -> Host {
    let addresses = [NODE, "10.244.0.1"].map(ip).into();
    Host { addresses, remembered: BTreeMap::new() }
}

/// `host` or an address, to an address and a port of TCP.
fn packet(source: &str, destination: &str) -> Packet {
    let destination: SocketAddr = destination.parse().unwrap();
    let (from, source) = match source {
        "host" => (From::Host, ip(NODE)),
        _ if source.starts_with("127.") => (From::Host, ip(source)),
        other => (From::Elsewhere, ip(other)),
    };
    let (destination, port) = (destination.ip(), destination.port());
    Packet { from, source, destination, protocol: Protocol::Tcp, port }
}

fn told(fate: &Fate) -> String {
    assert_eq!(fate.unknown, None);
    let to = fate.to.iter().map(|(to, chance, masqueraded)| {
        let name = [NEAR, FAR].iter().zip(["near", "far"]).find(|(known, _)| **known == to.to_string());
        format!("{} {chance}{}", name.map_or("?", |(_, name)| name), if *masqueraded { " m" } else { "" })
    });
    let refused = fate.refused.iter().map(|how| format!("{how} in {}", fate.refused_in.unwrap_or("?")));
    let alone = (fate.left_alone > 0.0).then(|| format!("alone {}", fate.left_alone));
    to.chain(refused).chain(alone).collect::<Vec<_>>().join(", ")
}

fn told_by(rules: &str, packet: &Packet) -> String {
    told(&Rules::read(&parse(rules)).fate(&host(), packet))
}

const POD: &str = "10.244.0.9";
const OUTSIDE: &str = "198.18.0.7";

#[test]
fn kube_proxys_rules_mean_what_is_known_of_them() {
    let rules = Rules::read(&parse(KUBE_PROXY));
    for (source, destination, fate) in [
        (POD, "10.96.1.1:80", "near 0.5, far 0.5"),
        ("host", "10.96.1.1:80", "near 0.5 m, far 0.5 m"),
        (OUTSIDE, "10.96.1.1:80", "near 0.5 m, far 0.5 m"),
        // To itself.
        ("10.244.0.2", "10.96.1.1:80", "near 0.5 m, far 0.5"),
        (POD, "10.96.1.1:81", "alone 1"),
        (POD, "203.0.113.50:80", "near 0.5 m, far 0.5 m"),
        (POD, "203.0.113.60:80", "near 0.5 m, far 0.5 m"),
        (OUTSIDE, "192.0.2.1:30080", "near 0.5 m, far 0.5 m"),
        ("127.0.0.1", "127.0.0.1:30080", "near 0.5 m, far 0.5 m"),
        (OUTSIDE, "127.0.0.1:9", "DROP in INPUT"),
        // Policy Local, with source ranges.
        (OUTSIDE, "192.0.2.1:30081", "near 1"),
        (POD, "192.0.2.1:30081", "near 0.5, far 0.5"),
        ("host", "192.0.2.1:30081", "near 0.5 m, far 0.5 m"),
        ("192.0.2.9", "203.0.113.61:80", "near 1"),
        ("203.0.113.61", "203.0.113.61:80", "near 1"),
        (OUTSIDE, "203.0.113.61:80", "DROP in FORWARD"),
        (POD, "203.0.113.61:80", "DROP in FORWARD"),
        ("host", "203.0.113.61:80", "near 0.5 m, far 0.5 m"),
        // Nobody's.
        (OUTSIDE, "192.0.2.1:22", "alone 1"),
    ] {
        assert_eq!(
            told(&rules.fate(&host(), &packet(source, destination))),
            fate,
            "{source} to {destination}"
        );
    }
}

#[test]
fn protocols_are_told_apart() {
    let of = |protocol, source, destination| {
        told_by(KUBE_PROXY, &Packet { protocol, ..packet(source, destination) })
    };
    assert_eq!(of(Protocol::Udp, POD, "10.96.1.3:53"), "DROP in FORWARD");
    assert_eq!(of(Protocol::Tcp, POD, "10.96.1.3:53"), "alone 1");
    assert_eq!(of(Protocol::Sctp, "host", "10.96.1.4:9"), "REJECT in OUTPUT");
    assert_eq!(of(Protocol::Sctp, OUTSIDE, "192.0.2.1:30083"), "REJECT in INPUT");
    // By loopback.
    assert_eq!(of(Protocol::Sctp, "host", "192.0.2.1:30083"), "REJECT in INPUT");
}

#[test]
fn who_is_remembered_comes_back_as_long_as_he_is() {
    let rules = Rules::read(&parse(KUBE_PROXY));
    let list = "KUBE-SEP-WMOZUTZFWPSOB27L";
    let packet = packet(POD, "10.96.1.1:80");
    let after = |age| Host { remembered: [(list.into(), age)].into(), ..host() };
    assert_eq!(told(&rules.fate(&after(10_799), &packet)), "far 1");
    assert_eq!(told(&rules.fate(&after(10_800), &packet)), "near 0.5, far 0.5");
    let lists = rules.fate(&host(), &packet).lists;
    assert_eq!(*lists[&FAR.parse().unwrap()], *list);
    assert_eq!(lists.len(), 2);
}

#[test]
fn a_policy_refuses_what_nobody_accepted() {
    let rules = KUBE_PROXY.replace(":FORWARD ACCEPT", ":FORWARD DROP");
    assert_eq!(told_by(&rules, &packet(POD, "10.96.1.1:80")), "DROP in FORWARD");
    assert_eq!(told_by(&rules, &packet(OUTSIDE, "10.96.1.1:80")), "near 0.5 m, far 0.5 m");
}

const OTHERS: &str = "*nat\n:PREROUTING ACCEPT [0:0]\n:A - [0:0]\n:B - [0:0]\n\
    -A PREROUTING -g A\n-A PREROUTING -j DNAT --to-destination 10.0.0.1:1\n\
    -A A -i cali+ -p tcp -m multiport --dports 80,90:99 -j B\n\
    -A A ! -i cali+ -p tcp -m tcp --dport 7000:7009 -j DNAT --to-destination 10.0.0.2\n\
    -A B -m statistic --mode random --probability 0.25000000000 -j ACCEPT\n\
    -A B -j DNAT --to-destination 10.0.0.3:3\nCOMMIT\n";

#[test]
fn interfaces_gotos_and_ranges() {
    let rules = Rules::read(&parse(OTHERS));
    let fate = |from, destination: &str| {
        let fate = rules.fate(&host(), &Packet { from, ..packet(OUTSIDE, destination) });
        fate.to.iter().map(|(to, chance, _)| format!("{to} {chance}")).collect::<Vec<_>>().join(" ")
    };
    let pod = || From::Interface("cali7".into());
    assert_eq!(fate(pod(), "10.9.9.9:95"), "10.0.0.3:3 0.75");
    assert_eq!(fate(pod(), "10.9.9.9:7005"), "");
    assert_eq!(fate(From::Elsewhere, "10.9.9.9:7005"), "10.0.0.2:7005 1");
    assert_eq!(fate(From::Elsewhere, "10.9.9.9:95"), "");
}

#[test]
fn what_is_not_understood_is_said_where_it_decides() {
    let rules = "*filter\n:FORWARD ACCEPT [0:0]\n\
        -A FORWARD -d 10.1.0.0/16 -m set --match-set x src -j DROP\n-A FORWARD -o docker0 -j ACCEPT\n\
        -A FORWARD -d 10.2.0.0/16 -j TEE --gateway 1.1.1.1\nCOMMIT\n";
    let unknown =
        |to: &str| Rules::read(&parse(rules)).fate(&host(), &packet(OUTSIDE, to)).unknown.unwrap_or_default();
    assert_eq!(unknown("10.1.0.1:1"), "-A FORWARD -d 10.1.0.0/16 -m set --match-set x src -j DROP");
    assert_eq!(unknown("10.3.0.1:1"), "-A FORWARD -o docker0 -j ACCEPT");
    let rules = rules.replace("-A FORWARD -o docker0 -j ACCEPT\n", "");
    let unknown = |to: &str| {
        Rules::read(&parse(&rules)).fate(&host(), &packet(OUTSIDE, to)).unknown.unwrap_or_default()
    };
    assert_eq!(unknown("10.3.0.1:1"), "");
    assert_eq!(unknown("10.2.0.1:1"), "-A FORWARD -d 10.2.0.0/16 -j TEE --gateway 1.1.1.1");
}

/// A dump of text that is none makes no sense, and no panic.
#[test]
fn a_circle_ends() {
    let rules = "*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -j A\n-A A -j B\n-A B -j A\nCOMMIT\n";
    let fate = Rules::read(&parse(rules)).fate(&host(), &packet(OUTSIDE, "10.1.0.1:1"));
    assert_eq!(fate.unknown.as_deref(), Some("chains that jump too deep"));
}
