//! The text that we render is taken by the real tool, and what it lists is read back as what was written: in both
//! families, over a history of changes, in a network namespace of its own.
//!
//! Needs root, or user namespaces, and nftables; it fails without, unless `DISTRIBUTARY_TEST_ALLOW_SKIP=1`.

#![allow(clippy::unwrap_used)]

mod namespace;

use std::sync::Arc;

use distributary_agent::nftables::{CANARY, Family, Nftables, Options, TABLE, Write, ip, parse};
use distributary_agent::plan::{Detector, NodePorts, NodeState};
use distributary_model::testing::{CLUSTER, endpoint, key, service};
use distributary_model::{Protocol, Service};
use namespace::Namespace;

/// In a user namespace the kernel takes little at once.
const SECTION: usize = 100;

struct Kernel {
    namespace: Namespace,
    family: Family,
}

impl Kernel {
    fn new(family: Family) -> Option<Self> {
        let namespace = Namespace::new("nft", &["list", "ruleset"])?;
        Some(Self { namespace, family })
    }

    fn apply(&self, text: &str) {
        let (ok, said) = self.namespace.run("nft", &["-f", "-"], text);
        assert!(ok, "{said}\n{text}");
    }

    fn list(&self) -> String {
        let (ok, text) = self.namespace.run("nft", &["-n", "list", "table", ip(self.family), TABLE], "");
        if ok { text } else { String::new() }
    }

    fn settle(&self, rules: &mut Nftables) -> Write {
        let write = rules.write().unwrap_or_default();
        write.main.iter().chain(&write.later).chain(&write.sweep).for_each(|text| self.apply(text));
        rules.written();
        rules.swept();
        assert_eq!(rules.write(), None);
        write
    }

    /// A process that starts now has nothing to write.
    fn is_what_is_wanted(&self, rules: &Nftables) -> Nftables {
        let mut again = of(self.family, rules.node().clone());
        for key in rules.keys() {
            again.set(key, rules.get(key).cloned());
        }
        again.set_service_cidrs(&cidrs());
        again.adopt(parse(&self.list()));
        let write = again.write().unwrap_or_default();
        assert!(write.main.is_empty() && write.later.is_empty(), "{}\n{}", write.text(), self.list());
        again.written();
        again
    }
}

fn cidrs() -> [ipnet::IpNet; 2] {
    ["10.96.0.0/12".parse().unwrap(), "fd96::/112".parse().unwrap()]
}

fn of(family: Family, node: NodeState) -> Nftables {
    let mut options = Options::new(CLUSTER, "n1");
    options.section = SECTION;
    let mut rules = Nftables::new(family, options);
    rules.set_node(node);
    rules.set_service_cidrs(&cidrs());
    rules
}

fn node(family: Family, step: u32) -> NodeState {
    let (net, address) = match family {
        Family::V4 => ("10.128.0.0/9", "192.168.0.2"),
        Family::V6 => ("fd01::/16", "2001:db8::2"),
    };
    let address = address.parse().unwrap();
    let detector = match step % 3 {
        0 => Detector::ClusterCidr(net.parse().unwrap()),
        1 => Detector::Bridge("br0".into()),
        _ => Detector::Prefix("veth".into()),
    };
    let node_ports = match step % 2 {
        0 => NodePorts::Everywhere { loopback: false },
        _ => NodePorts::At([address].into()),
    };
    NodeState { detector: Some(detector), address: Some(address), node_ports, ..NodeState::default() }
}

/// Everything that a Service can have, in turn.
fn any(which: u32, step: u32) -> Service {
    let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp][(which % 3) as usize];
    let mut one = service(&[&format!("10.96.0.{}", 10 + which), &format!("fd96::{}", 10 + which)]).port(
        "a",
        protocol,
        80,
        if which.is_multiple_of(2) { 30_000 + which as u16 } else { 0 },
    );
    for i in 0..(step * 7 + which * 3) % 9 {
        let last = 1 + (i + step) % 11;
        for address in [format!("10.128.0.{last}"), format!("fd01::{last}")] {
            let on = if last.is_multiple_of(2) { "n1" } else { "n2" };
            one = one.endpoint(endpoint(&address, "a", 8000 + last as u16).protocol(protocol).on(on));
        }
    }
    one.header(|header| {
        header.affinity_seconds = if (which + step).is_multiple_of(4) { 60 } else { 0 };
        header.external_policy_local = (which + step).is_multiple_of(3);
        header.internal_policy_local = (which + step) % 5 == 1;
        header.load_balancer_vips = vec!["1.2.3.4".parse().unwrap(), "2001:db8:1::4".parse().unwrap()];
        header.source_ranges = if step.is_multiple_of(2) {
            (0..8_u8)
                .flat_map(|i| [format!("192.168.{i}.0/26"), format!("2001:db8:{i}::/64")])
                .map(|net| net.parse().unwrap())
                .collect()
        } else {
            Vec::new()
        };
        header.source_ranges.sort();
    })
}

#[test]
fn a_history_is_taken_and_read_back_as_it_was_written() {
    for family in [Family::V4, Family::V6] {
        let Some(kernel) = Kernel::new(family) else { continue };
        let mut rules = of(family, node(family, 0));
        for step in 0..24 {
            for which in 0..6 {
                let gone = (which + step) % 6 == 5;
                rules.set(&key(&format!("ns/s{which}")), (!gone).then(|| Arc::new(any(which, step))));
            }
            if step % 6 == 5 {
                rules.set_node(node(family, step / 6));
            }
            kernel.settle(&mut rules);
            let again = kernel.is_what_is_wanted(&rules);
            if step % 8 == 7 {
                rules = again;
            }
        }
        for which in 0..6 {
            rules.set(&key(&format!("ns/s{which}")), None);
        }
        kernel.settle(&mut rules);
        let mut again = kernel.is_what_is_wanted(&rules);
        again.adopt(parse(&kernel.list()));
        kernel.settle(&mut again);
        let left = kernel.list();
        for gone in ["sticky-", "clients-", "sources-", "tcp-"] {
            assert!(
                !left.lines().any(|line| line.contains("chain") && line.contains(gone)),
                "{gone}\n{left}"
            );
        }
    }
}

#[test]
fn what_somebody_does_to_the_table_is_seen_and_put_right() {
    for family in [Family::V4, Family::V6] {
        let Some(kernel) = Kernel::new(family) else { continue };
        let mut rules = of(family, node(family, 0));
        for which in 0..6 {
            rules.set(&key(&format!("ns/s{which}")), Some(Arc::new(any(which, 1))));
        }
        kernel.settle(&mut rules);
        let ip = ip(family);
        for meddling in [
            format!("add rule {ip} {TABLE} dispatch accept"),
            format!("insert rule {ip} {TABLE} check-services accept comment \"12345678\""),
            format!("flush chain {ip} {TABLE} nat-output"),
            format!("flush map {ip} {TABLE} services"),
            format!("flush map {ip} {TABLE} endpoints-tcp"),
            format!("add chain {ip} {TABLE} somebody"),
            format!("delete set {ip} {TABLE} {CANARY}"),
            format!("delete table {ip} {TABLE}"),
        ] {
            kernel.apply(&meddling);
            rules.adopt(parse(&kernel.list()));
            let write = kernel.settle(&mut rules);
            assert_ne!(write, Write::default(), "{meddling}");
            kernel.is_what_is_wanted(&rules);
        }
    }
}
