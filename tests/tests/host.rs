//! What the agent does to its host beside rules, and what rules follow of the host.

use std::net::SocketAddr;

use anyhow::Result;
use distributary_e2e::deployed::{self, PATIENCE};
use distributary_e2e::netns::Namespace;
use distributary_e2e::node::{Node, cluster_ips, service, slices};
use distributary_e2e::process::binary;
use distributary_e2e::topology::{POD_CIDRS, Topology};
use distributary_e2e::traffic::{Client, Failure, Protocol};
use distributary_e2e::wait::until;
use serde_json::{Value, json};

fn web(world: &Topology) -> Vec<Value> {
    [vec![service("web", 1, 30080, &json!({}))], slices("web", &[&world.pods[0]])].concat()
}

#[test]
fn node_ports_follow_the_addresses_of_the_node() -> Result<()> {
    let node = Node::start(web, &["--nodeport-addresses=198.51.100.0/24,fd51::/64"])?;
    let host = Client::new(&node.world.node);
    let other = SocketAddr::from(([192, 0, 2, 1], 30080));
    assert_eq!(host.ask(Protocol::Tcp, other), Err(Failure::Refused), "it is of no listed network");
    for (address, prefix) in [("198.51.100.7", 32), ("fd51::7", 128)] {
        node.world.node.ip(&[format!("addr add {address}/{prefix} dev lo")])?;
        let target = SocketAddr::new(address.parse()?, 30080);
        let _ = node.expect("an address that came", &host, Protocol::Tcp, target, Result::is_ok);
        node.world.node.ip(&[format!("addr del {address}/{prefix} dev lo")])?;
        until("its rules to go with it", PATIENCE, || (!node.rules().contains(address)).then_some(()));
    }
    Ok(())
}

/// Settings of a namespace alone, which are never the ones that it begins with.
const TIMEOUTS: [(&str, &str, &str); 4] = [
    ("--conntrack-tcp-timeout-established=1h1m", "tcp_timeout_established", "3660"),
    ("--conntrack-tcp-timeout-close-wait=77s", "tcp_timeout_close_wait", "77"),
    ("--conntrack-udp-timeout=11s", "udp_timeout", "11"),
    ("--conntrack-udp-timeout-stream=222s", "udp_timeout_stream", "222"),
];

fn timeouts_are_set(namespace: &Namespace) -> Result<()> {
    for (flag, key, wanted) in TIMEOUTS {
        assert_eq!(namespace.sysctl(&format!("netfilter/nf_conntrack_{key}"))?, wanted, "{flag}");
    }
    Ok(())
}

#[test]
fn connection_tracking_is_set_as_it_is_said() -> Result<()> {
    let flags = TIMEOUTS.map(|(flag, ..)| flag);
    let node = Node::start(web, &[&flags[..], &["--conntrack-tcp-be-liberal"]].concat())?;
    timeouts_are_set(&node.world.node)?;
    assert_eq!(node.world.node.sysctl("netfilter/nf_conntrack_tcp_be_liberal")?, "1");
    assert!(!node.rules().contains("--ctstate INVALID"), "what is let through is not dropped");
    Ok(())
}

#[test]
fn what_needs_more_rights_can_be_done_before_and_the_rule_comes_before_the_route() -> Result<()> {
    let namespace = Namespace::new()?;
    let agent = binary("distributary-agent");
    let run = |more: &[&str]| {
        let flags = ["run", "--init-only", "--node-name", "n1", "--conntrack-max-per-core=0"];
        namespace
            .run(&agent.to_string_lossy(), &[&flags[..], &TIMEOUTS.map(|(flag, ..)| flag), more].concat())
    };
    run(&["--iptables-localhost-nodeports=false"])?;
    timeouts_are_set(&namespace)?;
    assert_eq!(namespace.sysctl("ipv4/conf/all/route_localnet")?, "0");
    assert!(!namespace.shell("iptables-save")?.contains("KUBE-"));
    for _ in 0..2 {
        run(&[])?;
        assert_eq!(namespace.sysctl("ipv4/conf/all/route_localnet")?, "1");
        let rules = namespace.shell("iptables-save")?;
        assert_eq!(rules.matches("-A KUBE-FIREWALL ").count(), 1, "{rules}");
        assert_eq!(rules.matches("PUT -j KUBE-FIREWALL").count(), 2, "{rules}");
        assert!(!rules.contains("KUBE-SERVICES"), "{rules}");
    }
    Ok(())
}

#[test]
fn a_host_without_ipv6_has_rules_of_ipv4_alone() -> Result<()> {
    let mut node = Node::prepare(&[])?;
    for scope in ["all", "default"] {
        node.world.node.set_sysctl(&format!("ipv6/conf/{scope}/disable_ipv6"), "1")?;
    }
    node.manifests.put("all.json", &web(&node.world))?;
    node.start_server()?;
    node.start_agent()?;
    let [v4, _] = cluster_ips(1);
    let client = node.world.pods[1].client_for(v4.ip());
    let _ = node.expect("the family that there is", &client, Protocol::Tcp, v4, Result::is_ok);
    let rules = node.world.node.shell("ip6tables-save")?;
    assert!(!rules.contains("KUBE-"), "{rules}");
    Ok(())
}

#[test]
fn rules_that_need_a_fact_of_the_node_wait_for_it_and_it_is_said_what_is_missing() -> Result<()> {
    let mut node = Node::prepare(&[])?;
    node.manifests.put("all.json", &web(&node.world))?;
    node.start_server()?;
    let agent = deployed::plain_agent(&node.world.node, "node-a", &["--detect-local-mode=NodeCIDR"])?;
    let what = "nothing is programmed before that is known";
    let said = until("the complaint", 3 * PATIENCE, || deployed::logged(&agent, what).pop());
    assert_eq!(
        said["error"],
        "no server has said anything of the Node node-a, it may not exist: --detect-local-mode NodeCIDR needs it"
    );
    assert!(!node.rules().contains("KUBE-SERVICES"), "{}", node.rules());
    let this = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-a"},
        "spec": {"podCIDR": POD_CIDRS[0], "podCIDRs": POD_CIDRS}});
    node.manifests.put("node.json", &[this])?;
    node.agent = Some(agent);
    for target in cluster_ips(1) {
        let client = node.world.pods[1].client_for(target.ip());
        let _ = node.expect("what was missing came", &client, Protocol::Tcp, target, Result::is_ok);
    }
    Ok(())
}
