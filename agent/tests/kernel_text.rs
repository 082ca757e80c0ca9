//! The text that we render is the text that the kernel's tools print back: checked with the real tools, of both flavours
//! and both families, in a network namespace of its own.
//!
//! Needs root, or user namespaces, and iptables; it fails without, unless `DISTRIBUTARY_TEST_ALLOW_SKIP=1`.

#![allow(clippy::unwrap_used)]

mod namespace;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use distributary_agent::iptables::rule::{Rule, Target, chance};
use distributary_agent::iptables::{
    Family, Flavour, Hairpin, Iptables, Options, Scope, Table, cleanup, parse, probe,
};
use distributary_agent::plan::{Detector, NodePorts, NodeState};
use distributary_model::testing::{CLUSTER, endpoint, key, service};
use distributary_model::{Protocol, Service};
use namespace::Namespace;

/// The tools of one family and flavour, in a namespace of their own.
struct Tool {
    namespace: Namespace,
    name: &'static str,
}

impl Tool {
    fn new(family: Family, flavour: Flavour) -> Option<Self> {
        let name = match (family, flavour) {
            (Family::V4, Flavour::Nft) => "iptables-nft",
            (Family::V4, Flavour::Legacy) => "iptables-legacy",
            (Family::V6, Flavour::Nft) => "ip6tables-nft",
            (Family::V6, Flavour::Legacy) => "ip6tables-legacy",
        };
        let namespace = Namespace::new(&format!("{name}-save"), &["-t", "nat"])?;
        Some(Self { namespace, name })
    }

    fn run(&self, what: &str, args: &[&str], input: &str) -> (bool, String) {
        self.namespace.run(&format!("{}{what}", self.name), args, input)
    }

    fn restore(&self, text: &str) {
        let (ok, error) = self.run("-restore", &["--noflush"], text);
        assert!(ok, "{}: {error}\n{text}", self.name);
    }

    fn save(&self) -> String {
        ["mangle", "filter", "nat"].map(|table| self.run("-save", &["-t", table], "").1).concat()
    }
}

fn each(test: impl Fn(Family, Flavour, &Tool)) {
    for family in [Family::V4, Family::V6] {
        for flavour in [Flavour::Nft, Flavour::Legacy] {
            if let Some(namespace) = Tool::new(family, flavour) {
                test(family, flavour, &namespace);
            }
        }
    }
}

fn address_of(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(192, 168, 0, 2).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2).into(),
    }
}

fn made(family: Family, options: Options) -> Iptables {
    let cidr = if family == Family::V4 { "10.128.0.0/9" } else { "fd01::/16" };
    let detector = Some(Detector::ClusterCidr(cidr.parse().unwrap()));
    let node_ports = match options.hairpin {
        Hairpin::Bpf => NodePorts::Everywhere { loopback: family == Family::V4 },
        Hairpin::Trie => NodePorts::At([address_of(family)].into()),
    };
    let address = Some(address_of(family));
    let mut rules = Iptables::new(family, options);
    rules.set_node(NodeState { detector, address, node_ports, ..NodeState::default() });
    rules
}

fn options(flavour: Flavour) -> Options {
    let mut options = Options::new(CLUSTER, "n1");
    options.flavour = flavour;
    // What a user namespace takes.
    options.section = 20;
    options
}

/// Enough of everything: split tries, groups, every policy and answer.
fn world(round: u32) -> Vec<(Arc<distributary_model::Key>, Service)> {
    let address = |i: u32| {
        (format!("10.{}.{}.{}", 96 + i % 3, i / 16, i % 16 * 16), format!("fd00::{:x}:{i:x}", i % 3))
    };
    let pod = |i: u32| (format!("10.128.{}.{}", i / 250, i % 250 + 1), format!("fd01::{i:x}"));
    (0..150)
        .map(|i| {
            let (v4, v6) = address(i);
            let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp][i as usize % 3];
            let port = if i % 4 == 0 { "" } else { "http" };
            let node_port = if i % 2 == 0 { 30_000 + (i * 7) as u16 } else { 0 };
            let mut service = service(&[&v4, &v6]).port(port, protocol, 80, node_port).header(|header| {
                header.internal_policy_local = i % 5 == 0;
                header.external_policy_local = i % 7 == 0;
                let external = |last: u32| -> [IpAddr; 2] {
                    [
                        format!("192.0.{last}.{i}").parse().unwrap(),
                        format!("2001:db8::{last:x}:{i:x}").parse().unwrap(),
                    ]
                };
                if i % 3 == 0 {
                    header.external_ips = [external(1), external(2)].concat();
                }
                if i % 2 == 0 {
                    header.load_balancer_vips = [external(2), external(3)].concat();
                    header.health_check_node_port = 31_000 + i as u16;
                }
                if i % 4 == 0 {
                    let ranges = ["203.0.113.0/25", "192.168.0.0/24", "2001:db8:1::/48"];
                    header.source_ranges = ranges.iter().map(|range| range.parse().unwrap()).collect();
                }
                header.affinity_seconds = if i % 6 == 0 { 10_800 } else { 0 };
            });
            let endpoints = if i == 1 { 100 + round } else { (i + round) % 4 };
            for j in 0..endpoints {
                let (v4, v6) = pod(i + j);
                for address in [v4, v6] {
                    let node = if j == 0 { "n1" } else { "n2" };
                    service = service.endpoint(endpoint(&address, port, 8080).protocol(protocol).on(node));
                }
            }
            (key(&format!("shop/svc-{i}")), service)
        })
        .collect()
}

#[test]
fn what_the_tools_print_is_what_we_wrote() {
    each(|family, flavour, namespace| {
        for hairpin in [Hairpin::Bpf, Hairpin::Trie] {
            let options = Options { hairpin, ..options(flavour) };
            let mut rules = made(family, options.clone());
            rules.adopt(&parse(&namespace.save()));
            for round in 0..3 {
                for (key, service) in world(round) {
                    rules.set(&key, Some(Arc::new(service)));
                }
                if let Some(write) = rules.write() {
                    namespace.restore(&write.text);
                    rules.written();
                }
                assert_eq!(rules.write(), None);
                let saved = namespace.save();
                let mut again = made(family, options.clone());
                for (key, service) in world(round) {
                    again.set(&key, Some(Arc::new(service)));
                }
                again.adopt(&parse(&saved));
                if let Some(write) = again.write() {
                    panic!("{} round {round}: not nothing:\n{}", namespace.name, write.text);
                }
            }
        }
        let text = cleanup(&parse(&namespace.save()), Scope::All).unwrap();
        namespace.restore(&text);
        // kubelet's chain stays.
        let saved = namespace.save().replace("KUBE-FIREWALL", "");
        assert!(!saved.contains("KUBE-"), "{saved}");
    });
}

#[test]
fn probabilities_are_printed_as_we_print_them() {
    each(|_, _, namespace| {
        let rules: String = (2..3000_usize)
            .step_by(7)
            .chain([4096, 12_288, 100_001])
            .flat_map(|whole| [1, 3, whole - 1].map(|part| (part, whole)))
            .filter(|(part, whole)| part < whole)
            .map(|(part, whole)| {
                let mut line = "-A KUBE-SVC-0-TEST ".to_owned();
                Rule::to(Target::Return).with(chance(part, whole)).write(&mut line);
                line + "\n"
            })
            .collect();
        for part in rules.split_inclusive('\n').collect::<Vec<_>>().chunks(50) {
            let text = part.concat();
            namespace.restore(&format!("*nat\n:KUBE-SVC-0-TEST - [0:0]\n{text}COMMIT\n"));
            let (_, saved) = namespace.run("-save", &["-t", "nat"], "");
            let printed: String = saved
                .lines()
                .filter(|line| line.starts_with("-A KUBE-SVC-0-TEST"))
                .map(|line| format!("{line}\n"))
                .collect();
            assert_eq!(printed, text, "{}", namespace.name);
        }
    });
}

#[test]
fn the_probe_leaves_nothing_behind() {
    each(|family, _, namespace| {
        namespace.restore(&probe(family));
        let saved = namespace.save();
        assert_eq!(parse(&saved).chains(Table::Nat).filter(|(name, _)| name.starts_with("KUBE-")).count(), 0);
    });
}

/// The program that finds packets to their own source does find them, and only them.
#[test]
fn the_hairpin_match_matches() {
    each(|family, _, namespace| {
        // The rule of the probe, without conntrack, on what this host sends.
        let probe = probe(family);
        let code = probe.split('"').nth(1).unwrap();
        namespace.restore(&format!(
            "*filter\n-I OUTPUT -p udp -m udp --dport 9 -m bpf --bytecode \"{code}\"\n\
             -I OUTPUT -p udp -m udp --dport 9\nCOMMIT\n"
        ));
        // To itself, and to addresses that differ in one word each.
        let send = match family {
            Family::V4 => "ip link set lo up; for to in 127.0.0.1 127.0.0.1 127.0.0.2; do",
            Family::V6 => {
                "ip link set lo up; ip addr add fd00::1/128 dev lo nodad; ip route add fd00::/8 dev lo src fd00::1
                for to in fd00::1 fd00::1 fd00::2 fd00::1:0:0:1 fd00:0:1::1 fd01::1; do"
            }
        };
        let send = format!("{send} echo x >/dev/udp/$to/9; done");
        let (sent, said) = namespace.namespace.run("bash", &["-ec", &send], "");
        assert!(sent, "{said}");
        let (_, saved) = namespace.run("-save", &["-c", "-t", "filter"], "");
        let counts: Vec<&str> = saved
            .lines()
            .filter(|line| line.contains("dport 9"))
            .filter_map(|line| line[1..].split(':').next())
            .collect();
        let all = if family == Family::V4 { "3" } else { "6" };
        assert_eq!(counts, [all, "2"], "{} {saved}", namespace.name);
    });
}
