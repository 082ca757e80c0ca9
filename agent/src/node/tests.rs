use super::*;
use crate::config::value::{List, NodePortAddress};
use crate::config::{DetectLocalMode, Draft, Names};

fn ips(text: &str) -> BTreeSet<IpAddr> {
    text.split_whitespace().map(|ip| ip.parse().unwrap()).collect()
}

fn node(addresses: &str, pod_cidrs: &str) -> NodeView {
    NodeView {
        zone: "a".into(),
        addresses: addresses.split_whitespace().map(|ip| ip.parse().unwrap()).collect(),
        pod_cidrs: pod_cidrs.split_whitespace().map(|net| net.parse().unwrap()).collect(),
        ..NodeView::default()
    }
}

const LOCAL: &str = "127.0.0.1 ::1 192.168.0.2 192.168.1.2 10.0.0.2 fd00::2 fe80::1";

fn config(change: impl FnOnce(&mut Draft)) -> Config {
    let mut draft = Draft::default();
    change(&mut draft);
    draft.check(Names::Flags, "n1").unwrap()
}

fn facts(change: impl FnOnce(&mut Draft)) -> Facts {
    let mut facts = Facts::new(config(change));
    facts.set_addresses(ips(LOCAL));
    facts
}

fn ports(text: &str) -> Vec<NodePortAddress> {
    text.parse::<List<NodePortAddress>>().unwrap().0
}

fn node_ports(facts: &Facts, family: Family) -> NodePorts {
    facts.state(family).unwrap().node_ports
}

#[test]
fn without_any_word_node_ports_are_everywhere_and_at_ipv4s_loopback() {
    let facts = facts(|_| {});
    assert_eq!(node_ports(&facts, Family::V4), NodePorts::Everywhere { loopback: true });
    assert_eq!(node_ports(&facts, Family::V6), NodePorts::Everywhere { loopback: false });
    assert!(facts.config.routes_localnet() && !facts.config.needs_addresses());
}

#[test]
fn a25_node_ports_are_at_every_local_address_of_the_listed_networks() {
    let mut facts = facts(|draft| draft.node_ports = ports("192.168.0.0/24,192.168.1.0/24"));
    assert_eq!(node_ports(&facts, Family::V4), NodePorts::At(ips("192.168.0.2 192.168.1.2")));
    facts.set_addresses(ips("192.168.0.2 192.168.0.3 10.0.0.2"));
    assert_eq!(node_ports(&facts, Family::V4), NodePorts::At(ips("192.168.0.2 192.168.0.3")));
    facts.set_addresses(BTreeSet::new());
    assert_eq!(node_ports(&facts, Family::V4), NodePorts::At(BTreeSet::new()));
}

#[test]
fn a26_loopback_is_answered_where_a_network_covers_it() {
    for listed in ["127.0.0.0/8", "127.0.0.1/32", "0.0.0.0/1,127.0.0.0/8"] {
        let facts = facts(|draft| draft.node_ports = ports(listed));
        assert!(node_ports(&facts, Family::V4).loopback(), "{listed}");
        assert!(facts.config.routes_localnet(), "{listed}");
    }
    let facts = facts(|draft| draft.node_ports = ports("192.168.0.0/24"));
    assert!(!node_ports(&facts, Family::V4).loopback() && !facts.config.routes_localnet());
}

#[test]
fn a27_loopback_is_not_answered_when_it_is_off_nor_ever_in_ipv6() {
    let off = facts(|draft| draft.localhost_node_ports = false);
    assert_eq!(node_ports(&off, Family::V4), NodePorts::Everywhere { loopback: false });
    assert!(!off.config.routes_localnet());
    let facts = facts(|draft| draft.node_ports = ports("::1/128,fd00::/8,127.0.0.1/32"));
    assert_eq!(node_ports(&facts, Family::V6), NodePorts::At(ips("fd00::2")));
    assert_eq!(facts.config.loopback_in_vain(), ["::1/128".parse().unwrap()]);
}

#[test]
fn a30_a_loopback_network_is_in_vain_when_localhost_is_off() {
    let facts = facts(|draft| {
        draft.node_ports = ports("192.168.0.0/24,127.0.0.1/32");
        draft.localhost_node_ports = false;
    });
    assert_eq!(node_ports(&facts, Family::V4), NodePorts::At(ips("192.168.0.2")));
    assert_eq!(facts.config.loopback_in_vain(), ["127.0.0.1/32".parse().unwrap()]);
    assert!(!facts.config.routes_localnet());
}

#[test]
fn a31_a_family_of_which_no_network_is_listed_is_open() {
    let facts = facts(|draft| draft.node_ports = ports("192.168.0.0/24"));
    assert_eq!(node_ports(&facts, Family::V6), NodePorts::Everywhere { loopback: false });
    let zero = self::facts(|draft| draft.node_ports = ports("10.0.0.0/8,0.0.0.0/0"));
    assert_eq!(node_ports(&zero, Family::V4), NodePorts::Everywhere { loopback: true });
    assert!(!zero.config.needs_addresses());
}

#[test]
fn primary_is_the_nodes_first_address_of_the_family_and_else_nowhere() {
    let mut facts = facts(|draft| draft.node_ports = ports("primary"));
    assert_eq!(
        facts.state(Family::V4).unwrap_err().to_string(),
        "no server has said anything of the Node n1, it may not exist: --nodeport-addresses primary needs it"
    );
    facts.set_node(Some(node("192.168.1.2 10.0.0.2", "")));
    assert_eq!(node_ports(&facts, Family::V4), NodePorts::At(ips("192.168.1.2")));
    assert_eq!(node_ports(&facts, Family::V6), NodePorts::At(BTreeSet::new()));
    facts.set_node(Some(node("127.0.0.1 fd00::2", "")));
    assert_eq!(node_ports(&facts, Family::V4), NodePorts::At(BTreeSet::new()));
    assert_eq!(node_ports(&facts, Family::V6), NodePorts::At(ips("fd00::2")));
    // Packets to an address that no interface has do not end here.
    facts.set_node(Some(node("203.0.113.1", "")));
    assert_eq!(node_ports(&facts, Family::V4), NodePorts::At(BTreeSet::new()));
    assert!(!facts.config.routes_localnet() && facts.config.needs_addresses());
}

#[test]
fn the_bind_address_is_the_nodes_address_of_its_family() {
    let mut facts = facts(|draft| {
        draft.node_ports = ports("primary");
        draft.bind_address = "10.0.0.2".parse().unwrap();
    });
    // It is known without the Node.
    assert_eq!(node_ports(&facts, Family::V4), NodePorts::At(ips("10.0.0.2")));
    facts.set_node(Some(node("192.168.1.2 fd00::2", "")));
    let address = |family| facts.state(family).unwrap().address;
    assert_eq!(address(Family::V4), Some("10.0.0.2".parse().unwrap()));
    assert_eq!(address(Family::V6), Some("fd00::2".parse().unwrap()));
}

#[test]
fn the_nodes_address_is_its_first_of_the_family() {
    let mut facts = facts(|_| {});
    assert_eq!(facts.state(Family::V4).unwrap().address, None);
    facts.set_node(Some(node("fd00::2 fd00::3 192.168.0.2 10.0.0.2", "")));
    assert_eq!(facts.state(Family::V4).unwrap().address, Some("192.168.0.2".parse().unwrap()));
    assert_eq!(facts.state(Family::V6).unwrap().address, Some("fd00::2".parse().unwrap()));
}

#[test]
fn pods_are_told_from_the_rest_as_it_is_said() {
    let cidrs = |draft: &mut Draft| draft.cluster_cidr = vec!["10.244.0.0/16".parse().unwrap()];
    let cluster = facts(cidrs);
    let detector = |facts: &Facts, family| facts.state(family).unwrap().detector;
    let net = |text: &str| text.parse::<IpNet>().unwrap();
    assert_eq!(detector(&cluster, Family::V4), Some(Detector::ClusterCidr(net("10.244.0.0/16"))));
    assert_eq!(detector(&cluster, Family::V6), None);
    let bridge = facts(|draft| {
        (draft.detect_local_mode, draft.bridge) = (DetectLocalMode::BridgeInterface, "br0".into());
    });
    assert_eq!(detector(&bridge, Family::V6), Some(Detector::Bridge("br0".into())));
    let prefix = facts(|draft| {
        (draft.detect_local_mode, draft.prefix) = (DetectLocalMode::InterfaceNamePrefix, "veth".into());
    });
    assert_eq!(detector(&prefix, Family::V4), Some(Detector::Prefix("veth".into())));
}

#[test]
fn pod_cidrs_are_waited_for_and_followed() {
    let mut facts = facts(|draft| draft.detect_local_mode = DetectLocalMode::NodeCidr);
    assert_eq!(
        facts.state(Family::V4).unwrap_err().to_string(),
        "no server has said anything of the Node n1, it may not exist: --detect-local-mode NodeCIDR needs it"
    );
    facts.set_node(Some(node("192.168.0.2", "")));
    assert_eq!(
        facts.state(Family::V4).unwrap_err().to_string(),
        "the Node n1 has no pod CIDR, and NodeCIDR is how pods are to be told from the rest"
    );
    for net in ["10.1.0.0/24", "10.2.0.0/24"] {
        facts.set_node(Some(node("192.168.0.2", &format!("{net} 10.9.0.0/24"))));
        let detector = Some(Detector::NodeCidr(net.parse().unwrap()));
        assert_eq!(facts.state(Family::V4).unwrap().detector, detector);
        assert_eq!(facts.state(Family::V6).unwrap().detector, None);
    }
}

#[test]
fn a_host_of_one_family_is_not_told_of_the_other_alone() {
    let v6_pods = |draft: &mut Draft| draft.cluster_cidr = vec!["fd00::/8".parse().unwrap()];
    let (both, v4) = ([Family::V4, Family::V6], [Family::V4]);
    assert_eq!(config(v6_pods).suits(&both), Ok(()));
    assert_eq!(
        config(v6_pods).suits(&v4).unwrap_err().to_string(),
        "this host has rules of IPv4 alone, and no network of the cluster CIDR is of it"
    );
    assert_eq!(config(|_| {}).suits(&v4), Ok(()));
    let by_node = config(|draft| {
        v6_pods(draft);
        draft.detect_local_mode = DetectLocalMode::NodeCidr;
    });
    assert_eq!(by_node.suits(&v4), Ok(()));
    let bound = config(|draft| draft.bind_address = "fd00::2".parse().unwrap());
    assert_eq!(
        bound.suits(&v4).unwrap_err().to_string(),
        "the bind address fd00::2 is of a family whose rules this host does not have"
    );
    assert_eq!(config(|draft| draft.bind_address = "::".parse().unwrap()).suits(&v4), Ok(()));
}

#[test]
fn a_node_that_is_gone_is_kept_and_a_zone_may_go() {
    let mut facts = facts(|_| {});
    assert_eq!(&*facts.state(Family::V4).unwrap().zone, "");
    facts.set_node(Some(node("192.168.0.2", "")));
    facts.set_node(None);
    assert_eq!(&*facts.state(Family::V4).unwrap().zone, "a");
    facts.set_node(Some(NodeView::default()));
    assert_eq!(&*facts.state(Family::V4).unwrap().zone, "");
}
