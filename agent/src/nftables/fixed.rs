//! What is there without any Service: where packets come from, and the maps they are looked up in
//! (spec/kube-proxy.md §8.2, §8.4).

use super::Options;
use super::chain::{Chain, Style};
use super::element::Map;
use crate::plan::{Family, NodePorts};

/// An empty set whose name says how the table is laid out. It is there as long as the table is, and to ask for it costs
/// the same however large that is; a table without it is of another version, and is made anew.
pub const CANARY: &str = "layout-1";

/// Where packets come from: the name of the chain, its hook and priority, and where they go.
const HOOKS: [(&str, &str, &[&str]); 8] = [
    // Before anything is translated, since what is asked is who wants to go to which destination.
    ("filter-prerouting", "type filter hook prerouting priority -110", &["ct state new jump check-sources"]),
    ("filter-output-first", "type filter hook output priority -110", &["ct state new jump check-sources"]),
    ("nat-prerouting", "type nat hook prerouting priority -100", &["jump dispatch"]),
    ("nat-output", "type nat hook output priority -100", &["jump dispatch"]),
    (
        "filter-input",
        "type filter hook input priority 0",
        &["ct state new jump check-node-ports", "ct state new jump check-services"],
    ),
    (
        "filter-forward",
        "type filter hook forward priority 0",
        &["ct state new jump check-services", "ct state new jump check-cluster-ips"],
    ),
    (
        "filter-output",
        "type filter hook output priority 0",
        &["ct state new jump check-services", "ct state new jump check-cluster-ips"],
    ),
    ("nat-postrouting", "type nat hook postrouting priority 100", &["jump masquerading"]),
];

/// A chain with a fixed name.
pub(super) struct Fixed {
    pub(super) name: String,
    /// What it is hooked to, where it is.
    pub(super) hook: Option<&'static str>,
    pub(super) rules: Vec<String>,
}

/// All of them, those that are led to first.
pub(super) fn chains(options: &Options, node_ports: &NodePorts, style: &Style<'_>) -> Vec<Fixed> {
    let ip = style.ip();
    let destination = format!("{ip} daddr . meta l4proto . th dport");
    let at = |map: Map| format!("{destination} vmap @{map}");
    let port = |map: Map| format!("meta l4proto . th dport vmap @{map}");
    let refuse = Chain::Refuse;

    let to_cluster_ip = format!("{ip} daddr @{}", Map::ClusterIps);
    let masquerade = match options.masquerade_all {
        true => Some(format!("{to_cluster_ip} {}", style.set_mark())),
        false => style.of_pods(true).map(|others| format!("{to_cluster_ip} {others} {}", style.set_mark())),
    };
    let loopback = match style.family {
        Family::V4 => "127.0.0.0/8",
        Family::V6 => "::1",
    };
    // What arrives at input is for this host.
    let (to_host, at_input) = match node_ports {
        NodePorts::Everywhere { .. } => {
            let not_loopback = format!("{ip} daddr != {loopback}");
            (format!("fib daddr type local {not_loopback}"), not_loopback)
        }
        NodePorts::At(_) => {
            let named = format!("{ip} daddr @{}", Map::NodePortAddresses);
            (named.clone(), named)
        }
    };
    let dispatch = [masquerade, Some(at(Map::Services)), Some(format!("{to_host} {}", port(Map::NodePorts)))];
    let mark = options.mark();
    let masquerading = [
        format!(
            "meta mark and {mark:#x} == {mark:#x} meta mark set meta mark xor {mark:#x} masquerade fully-random"
        ),
        format!("ct status dnat {ip} saddr . {ip} daddr @{} masquerade fully-random", Map::Hairpins),
    ];
    let check_cluster_ips =
        [format!("{to_cluster_ip} goto {refuse}"), format!("{ip} daddr @{} drop", Map::ServiceCidrs)];
    let check_node_ports = format!("{at_input} {}", port(Map::RefusedNodePorts));

    let of = |name: &str, rules: Vec<String>| Fixed { name: name.to_owned(), hook: None, rules };
    let mut chains = vec![
        of(&refuse.to_string(), refuse.rules(style).unwrap_or_default()),
        of("check-sources", vec![at(Map::Firewall)]),
        of("check-services", vec![at(Map::Refused)]),
        of("check-node-ports", vec![check_node_ports]),
        of("check-cluster-ips", check_cluster_ips.into()),
        of("dispatch", dispatch.into_iter().flatten().collect()),
        of("masquerading", masquerading.into()),
    ];
    chains.extend(HOOKS.iter().map(|(name, hook, rules)| Fixed {
        hook: Some(hook),
        ..of(name, rules.iter().map(ToString::to_string).collect())
    }));
    chains
}
