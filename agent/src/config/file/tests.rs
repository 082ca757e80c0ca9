use super::*;
use crate::config::{Config, DetectLocal, Names, NodePortAddresses};

const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

fn with(body: &str) -> Result<(Config, String), String> {
    let (draft, unused) = read(&format!("{HEAD}{body}")).map_err(|e| e.to_string())?;
    let config = draft.check(Names::File, "host").map_err(|e| e.to_string())?;
    Ok((config, unused.to_string()))
}

fn error(body: &str) -> String {
    with(body).unwrap_err()
}

#[test]
fn what_kubeadm_writes_is_kube_proxys_default_with_a_pod_network() {
    let (draft, unused) = read(include_str!("kubeadm.yaml")).unwrap();
    let wanted = Draft { cluster_cidr: vec!["10.244.0.0/16".parse().unwrap()], ..Draft::default() };
    assert_eq!(draft, wanted);
    assert_eq!(unused.to_string(), "clientConnection.kubeconfig do not apply");
}

#[test]
fn every_field_that_applies_is_taken() {
    let body = "
hostnameOverride: Node-7
bindAddress: 192.0.2.7
bindAddressHardFail: true
healthzBindAddress: 192.0.2.7:1
metricsBindAddress: 'off'
mode: iptables
detectLocalMode: BridgeInterface
detectLocal: {bridgeInterface: br0}
clusterCIDR: 10.0.0.0/8,fd00::/8
nodePortAddresses: [192.0.2.0/24, 'fd00::/8']
iptables: {masqueradeBit: 0, masqueradeAll: true, localhostNodePorts: false, syncPeriod: 1m, minSyncPeriod: 2s}
conntrack:
  maxPerCore: 0
  min: 7
  tcpEstablishedTimeout: 0s
  tcpCloseWaitTimeout: 1h30m
  tcpBeLiberal: true
  udpTimeout: 3s
  udpStreamTimeout: 4s
oomScoreAdj: -998
";
    let (config, unused) = with(body).unwrap();
    assert_eq!(unused, "");
    assert_eq!((&*config.node, config.bind_address.to_string().as_str()), ("node-7", "192.0.2.7"));
    assert_eq!((config.healthz, config.metrics), (Some("192.0.2.7:1".parse().unwrap()), None));
    assert_eq!(config.detect_local, DetectLocal::Bridge("br0".into()));
    assert!(config.bind_address_hard_fail && config.masquerade_all && !config.localhost_node_ports);
    assert_eq!((config.masquerade_bit, config.oom_score_adj), (0, -998));
    assert_eq!((config.sync_period.as_secs(), config.min_sync_period.as_secs()), (60, 2));
    let conntrack = &config.conntrack;
    assert_eq!((conntrack.max_per_core, conntrack.min, conntrack.tcp_be_liberal), (0, 7, true));
    assert_eq!((conntrack.tcp_established.as_secs(), conntrack.tcp_close_wait.as_secs()), (0, 5400));
    assert_eq!((conntrack.udp.as_secs(), conntrack.udp_stream.as_secs()), (3, 4));
    // What is written from it leads back to it, in both forms.
    let written = config.to_v1alpha1();
    for text in [written.to_string(), serde_saphyr::to_string(&written).unwrap()] {
        let (draft, unused) = read(&text).unwrap();
        assert!(unused.is_empty(), "{unused}");
        assert_eq!(draft.check(Names::File, "other").unwrap(), config);
    }
}

#[test]
fn primary_is_a_single_word() {
    assert_eq!(with("nodePortAddresses: [primary]").unwrap().0.node_ports, NodePortAddresses::Primary);
    let error = error("nodePortAddresses: [primary, 10.0.0.0/8]");
    assert_eq!(error, "nodePortAddresses primary,10.0.0.0/8: primary has to stand alone");
}

#[test]
fn what_does_nothing_is_named() {
    let (_, unused) = with(
        "iptables: {masqueradeAll: true, spelt: wrong}\nbridge: x\nfeatureGates: {A: true}\n\
         nftables: {masqueradeAll: true}\nmode: ''\nmode: iptables\nbindAddress: 10.0.0.1\nbindAddress: 10.0.0.2",
    )
    .unwrap();
    assert_eq!(
        unused,
        "featureGates, nftables.masqueradeAll do not apply; bridge, iptables.spelt are unknown; \
         bindAddress, mode stand there twice, the last one counts"
    );
}

#[test]
fn json_is_read_as_well_and_its_duplicates_are_seen() {
    let (draft, unused) = read(
        r#"{"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
            "oomScoreAdj": 1, "oomScoreAdj": 2, "clientConnection": {"qps": 5.5}}"#,
    )
    .unwrap();
    assert_eq!(draft.oom_score_adj, 2);
    assert_eq!(
        unused.to_string(),
        "clientConnection.qps do not apply; oomScoreAdj stand there twice, the last one counts"
    );
}

#[test]
fn what_cannot_be_used_is_named_with_what_is_wanted() {
    let table = [
        ("oomScoreAdj: many", "oomScoreAdj is a text, a whole number is wanted"),
        ("oomScoreAdj: 1.5", "oomScoreAdj is a number, a whole number is wanted"),
        ("bindAddress: 10", "bindAddress is a number, a text is wanted"),
        ("bindAddress: eth0", "bindAddress: \"eth0\" is not an IP address"),
        ("iptables: [1]", "iptables is a list, fields are wanted"),
        ("iptables: {masqueradeAll: 'true'}", "iptables.masqueradeAll is a text, true or false is wanted"),
        ("iptables: {syncPeriod: 30}", "iptables.syncPeriod is a number, a text is wanted"),
        (
            "iptables: {syncPeriod: '30'}",
            "iptables.syncPeriod: \"30\" is no duration such as 30s, 1h30m or 500ms",
        ),
        ("conntrack: {min: -1}", "conntrack.min -1 is out of bounds"),
        ("nodePortAddresses: primary", "nodePortAddresses is a text, a list is wanted"),
        ("nodePortAddresses: [1]", "nodePortAddresses has a number, a text is wanted"),
        (
            "detectLocalMode: clustercidr",
            "detectLocalMode: \"clustercidr\" is none of ClusterCIDR, NodeCIDR, BridgeInterface, \
             InterfaceNamePrefix",
        ),
        ("mode: ipvs", "mode ipvs is not there, only iptables and nftables are"),
        ("mode: magic", "mode \"magic\" is unknown, iptables or nftables is wanted"),
        ("hostnameOverride: ' '", "hostnameOverride is blank: a Node's name is wanted"),
    ];
    for (body, wanted) in table {
        assert_eq!(error(body), wanted, "{body}");
    }
    assert_eq!(
        read("apiVersion: v1\nkind: Config").unwrap_err().to_string(),
        "it is \"v1\" \"Config\", kubeproxy.config.k8s.io/v1alpha1 KubeProxyConfiguration is wanted"
    );
    assert!(read("").is_err() && read("[1]").is_err() && read("a: [").is_err());
}

#[test]
fn the_section_of_the_packet_filter_that_is_programmed_applies() {
    let sections = "iptables: {masqueradeBit: 5}\nnftables: {masqueradeBit: 6, syncPeriod: 7s}";
    let of = |mode: &str| {
        let text = format!("apiVersion: {API_VERSION}\nkind: {KIND}\nmode: {mode}\n{sections}\n");
        read(&text).unwrap()
    };
    let (draft, unused) = of("iptables");
    assert_eq!((draft.backend, draft.masquerade_bit), (Backend::Iptables, 5));
    assert_eq!(unused.to_string(), "nftables.masqueradeBit, nftables.syncPeriod do not apply");
    let (draft, unused) = of("nftables");
    assert_eq!((draft.backend, draft.masquerade_bit), (Backend::Nftables, 6));
    assert_eq!(draft.sync_period, Duration::from_secs(7));
    assert_eq!(unused.to_string(), "iptables.masqueradeBit do not apply");
}
