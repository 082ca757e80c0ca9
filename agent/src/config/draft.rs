//! Values as they were said, each readable by itself; whether they go together is checked here.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use clap::ValueEnum;
use ipnet::IpNet;

use super::value::{Listen, NodePortAddress};
use super::{Backend, Config, Conntrack, DetectLocal, NodePortAddresses, duration};
use crate::plan::Family;

/// Where health is served unless told otherwise.
const HEALTHZ_PORT: u16 = 10256;
/// Where metrics are served unless told otherwise.
const METRICS_PORT: u16 = 10249;
/// kube-proxy's `int32`.
const MOST: u32 = i32::MAX as u32;

/// How traffic of pods is told from the rest, by kube-proxy's names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum DetectLocalMode {
    /// Sources in --cluster-cidr
    #[default]
    #[value(name = "ClusterCIDR")]
    ClusterCidr,
    /// Sources in the Node's pod CIDRs
    #[value(name = "NodeCIDR")]
    NodeCidr,
    /// What comes in by --pod-bridge-interface
    #[value(name = "BridgeInterface")]
    BridgeInterface,
    /// What comes in by an interface whose name begins with --pod-interface-name-prefix
    #[value(name = "InterfaceNamePrefix")]
    InterfaceNamePrefix,
}

/// What was said, or is the default.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is the field of Config, or the flag, of that name")]
pub struct Draft {
    pub backend: Backend,
    pub hostname_override: Option<String>,
    pub bind_address: IpAddr,
    pub bind_address_hard_fail: bool,
    pub healthz: Listen,
    pub metrics: Listen,
    pub detect_local_mode: DetectLocalMode,
    pub cluster_cidr: Vec<IpNet>,
    pub bridge: String,
    pub prefix: String,
    pub node_ports: Vec<NodePortAddress>,
    pub localhost_node_ports: bool,
    pub masquerade_all: bool,
    pub masquerade_bit: i64,
    pub sync_period: Duration,
    pub min_sync_period: Duration,
    pub conntrack: Conntrack,
    pub oom_score_adj: i64,
}

impl Default for Draft {
    fn default() -> Self {
        Self {
            backend: Backend::Iptables,
            hostname_override: None,
            bind_address: Ipv4Addr::UNSPECIFIED.into(),
            bind_address_hard_fail: false,
            healthz: Listen::Default,
            metrics: Listen::Default,
            detect_local_mode: DetectLocalMode::ClusterCidr,
            cluster_cidr: Vec::new(),
            bridge: String::new(),
            prefix: String::new(),
            node_ports: Vec::new(),
            localhost_node_ports: true,
            masquerade_all: false,
            masquerade_bit: 14,
            sync_period: Duration::from_secs(30),
            // kube-proxy's is 1 s, since each of its writes costs what there is. Ours cost what changed.
            min_sync_period: Duration::ZERO,
            conntrack: Conntrack::default(),
            oom_score_adj: -999,
        }
    }
}

/// By which names values were said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    /// On the command line, or by environment variables.
    Flags,
    /// In a KubeProxyConfiguration.
    File,
}

/// A value by both of its names.
struct Field(&'static str, &'static str);

const HOSTNAME: Field = Field("--node-name", "hostnameOverride");
const CLUSTER_CIDR: Field = Field("--cluster-cidr", "clusterCIDR");
const MODE: Field = Field("--detect-local-mode", "detectLocalMode");
const BRIDGE: Field = Field("--pod-bridge-interface", "detectLocal.bridgeInterface");
const PREFIX: Field = Field("--pod-interface-name-prefix", "detectLocal.interfaceNamePrefix");
const NODE_PORTS: Field = Field("--nodeport-addresses", "nodePortAddresses");
const MASQUERADE_BIT: Field = Field("--iptables-masquerade-bit", "iptables.masqueradeBit");
const SYNC: Field = Field("--iptables-sync-period", "iptables.syncPeriod");
const MIN_SYNC: Field = Field("--iptables-min-sync-period", "iptables.minSyncPeriod");
const MAX_PER_CORE: Field = Field("--conntrack-max-per-core", "conntrack.maxPerCore");
const MIN: Field = Field("--conntrack-min", "conntrack.min");
const OOM: Field = Field("--oom-score-adj", "oomScoreAdj");

impl Names {
    fn of(self, Field(flag, file): Field) -> &'static str {
        match self {
            Self::Flags => flag,
            Self::File => file,
        }
    }
}

/// Values that do not go together, or are out of bounds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct Invalid(Vec<String>);

impl Draft {
    /// What it comes to on a host of that name (spec/kube-proxy.md §7, "Validation summary").
    ///
    /// # Errors
    /// Everything that is wrong, by the names that it was said by.
    pub fn check(self, names: Names, hostname: &str) -> Result<Config, Invalid> {
        let mut wrong = Vec::new();
        let node = self.hostname_override.as_deref().unwrap_or(hostname).trim().to_lowercase();
        if node.is_empty() {
            wrong.push(format!("{} is blank: a Node's name is wanted", names.of(HOSTNAME)));
        }
        for family in [Family::V4, Family::V6] {
            let mut of_family = self.cluster_cidr.iter().filter(|net| Family::of(&net.addr()) == family);
            if let (Some(first), Some(second)) = (of_family.next(), of_family.next()) {
                let flag = names.of(CLUSTER_CIDR);
                wrong.push(format!("{flag} has {first} and {second} of one family, at most one is possible"));
            }
        }
        within(&mut wrong, names.of(MASQUERADE_BIT), self.masquerade_bit, 0, 31);
        within(&mut wrong, names.of(OOM), self.oom_score_adj, -1000, 1000);
        within(&mut wrong, names.of(MAX_PER_CORE), self.conntrack.max_per_core, 0, MOST);
        within(&mut wrong, names.of(MIN), self.conntrack.min, 0, MOST);
        self.check_periods(&mut wrong, names);
        let detect_local = self.detect_local(&mut wrong, names);
        let node_ports = self.node_ports(&mut wrong, names);
        if !wrong.is_empty() {
            return Err(Invalid(wrong));
        }
        let (any, loopback): (IpAddr, IpAddr) = match self.bind_address {
            IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::LOCALHOST.into()),
            IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::LOCALHOST.into()),
        };
        Ok(Config {
            backend: self.backend,
            node: node.into(),
            bind_address: self.bind_address,
            bind_address_hard_fail: self.bind_address_hard_fail,
            healthz: self.healthz.or(SocketAddr::new(any, HEALTHZ_PORT)),
            metrics: self.metrics.or(SocketAddr::new(loopback, METRICS_PORT)),
            detect_local,
            cluster_cidr: self.cluster_cidr,
            node_ports,
            localhost_node_ports: self.localhost_node_ports,
            masquerade_all: self.masquerade_all,
            masquerade_bit: u8::try_from(self.masquerade_bit).unwrap_or(14),
            sync_period: self.sync_period,
            min_sync_period: self.min_sync_period,
            conntrack: self.conntrack,
            oom_score_adj: i16::try_from(self.oom_score_adj).unwrap_or(0),
        })
    }

    fn check_periods(&self, wrong: &mut Vec<String>, names: Names) {
        let (sync, min) = (names.of(SYNC), names.of(MIN_SYNC));
        if self.sync_period.is_zero() {
            wrong.push(format!("{sync} is 0s, more than that is wanted"));
        } else if self.min_sync_period > self.sync_period {
            let [long, short] = [self.min_sync_period, self.sync_period].map(duration::text);
            wrong.push(format!("{min} {long} is longer than {sync} {short}"));
        }
    }

    fn detect_local(&self, wrong: &mut Vec<String>, names: Names) -> DetectLocal {
        let mut named = |name: &str, field: Field| {
            let name = name.trim();
            if name.is_empty() {
                let mode = self.detect_local_mode.to_possible_value();
                let mode = mode.as_ref().map_or("", |value| value.get_name());
                wrong.push(format!("{} {mode} needs {}", names.of(MODE), names.of(field)));
            }
            name.into()
        };
        match self.detect_local_mode {
            DetectLocalMode::ClusterCidr => DetectLocal::ClusterCidr,
            DetectLocalMode::NodeCidr => DetectLocal::NodeCidr,
            DetectLocalMode::BridgeInterface => DetectLocal::Bridge(named(&self.bridge, BRIDGE)),
            DetectLocalMode::InterfaceNamePrefix => DetectLocal::Prefix(named(&self.prefix, PREFIX)),
        }
    }

    fn node_ports(&self, wrong: &mut Vec<String>, names: Names) -> NodePortAddresses {
        if self.node_ports == [NodePortAddress::Primary] {
            return NodePortAddresses::Primary;
        }
        let mut nets = Vec::new();
        for one in &self.node_ports {
            match one {
                NodePortAddress::Within(net) => nets.push(*net),
                NodePortAddress::Primary => {
                    let all: Vec<String> = self.node_ports.iter().map(ToString::to_string).collect();
                    let (flag, all) = (names.of(NODE_PORTS), all.join(","));
                    wrong.push(format!("{flag} {all}: primary has to stand alone"));
                    break;
                }
            }
        }
        NodePortAddresses::Within(nets)
    }
}

fn within<T: PartialOrd + fmt::Display>(wrong: &mut Vec<String>, name: &str, value: T, least: T, most: T) {
    if value < least || value > most {
        wrong.push(format!("{name} {value} is not from {least} to {most}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(change: impl FnOnce(&mut Draft)) -> Result<Config, String> {
        let mut draft = Draft::default();
        change(&mut draft);
        draft.check(Names::Flags, "host-1").map_err(|e| e.to_string())
    }

    fn nets(all: &[&str]) -> Vec<IpNet> {
        all.iter().map(|net| net.parse().unwrap()).collect()
    }

    #[test]
    fn what_nobody_says_is_as_kube_proxy_has_it() {
        let config = checked(|_| {}).unwrap();
        assert_eq!(&*config.node, "host-1");
        assert_eq!(config.healthz, Some("0.0.0.0:10256".parse().unwrap()));
        assert_eq!(config.metrics, Some("127.0.0.1:10249".parse().unwrap()));
        assert_eq!(config.detect_local, DetectLocal::ClusterCidr);
        assert_eq!(config.node_ports, NodePortAddresses::Within(Vec::new()));
        assert_eq!((config.masquerade_bit, config.oom_score_adj), (14, -999));
        assert_eq!((config.sync_period, config.min_sync_period), (Duration::from_secs(30), Duration::ZERO));
        assert_eq!((config.conntrack.max_per_core, config.conntrack.min), (32768, 131_072));
    }

    #[test]
    fn an_ipv6_bind_address_moves_the_servers_and_off_stops_them() {
        let v6 = |draft: &mut Draft| draft.bind_address = "::".parse().unwrap();
        let config = checked(v6).unwrap();
        assert_eq!(config.healthz, Some("[::]:10256".parse().unwrap()));
        assert_eq!(config.metrics, Some("[::1]:10249".parse().unwrap()));
        let off = checked(|draft| (draft.healthz, draft.metrics) = (Listen::Off, Listen::Off)).unwrap();
        assert_eq!((off.healthz, off.metrics), (None, None));
    }

    #[test]
    fn a_nodes_name_is_trimmed_and_in_lower_case_and_never_blank() {
        let named = |name: &str| checked(|draft| draft.hostname_override = Some(name.to_owned()));
        assert_eq!(&*named(" Node-1 \n").unwrap().node, "node-1");
        assert_eq!(named("  ").unwrap_err(), "--node-name is blank: a Node's name is wanted");
    }

    #[test]
    fn everything_that_is_wrong_is_said_in_one_line() {
        let error = checked(|draft| {
            draft.cluster_cidr = nets(&["10.0.0.0/8", "fd00::/8", "11.0.0.0/8"]);
            draft.masquerade_bit = 32;
            draft.oom_score_adj = -1001;
            draft.conntrack.min = 1 << 31;
            draft.sync_period = Duration::ZERO;
        });
        assert_eq!(
            error.unwrap_err(),
            "--cluster-cidr has 10.0.0.0/8 and 11.0.0.0/8 of one family, at most one is possible; \
             --iptables-masquerade-bit 32 is not from 0 to 31; --oom-score-adj -1001 is not from -1000 to 1000; \
             --conntrack-min 2147483648 is not from 0 to 2147483647; \
             --iptables-sync-period is 0s, more than that is wanted"
        );
    }

    #[test]
    fn a_mode_needs_what_it_looks_for() {
        let error = checked(|draft| draft.detect_local_mode = DetectLocalMode::BridgeInterface);
        assert_eq!(error.unwrap_err(), "--detect-local-mode BridgeInterface needs --pod-bridge-interface");
        let draft = Draft { detect_local_mode: DetectLocalMode::InterfaceNamePrefix, ..Draft::default() };
        assert_eq!(
            draft.check(Names::File, "h").unwrap_err().to_string(),
            "detectLocalMode InterfaceNamePrefix needs detectLocal.interfaceNamePrefix"
        );
    }

    #[test]
    fn periods_are_in_order() {
        let error = checked(|draft| draft.min_sync_period = Duration::from_secs(31));
        assert_eq!(
            error.unwrap_err(),
            "--iptables-min-sync-period 31s is longer than --iptables-sync-period 30s"
        );
    }

    #[test]
    fn primary_stands_alone() {
        use NodePortAddress::{Primary, Within};
        let net = nets(&["10.0.0.0/8"])[0];
        let ports = |all: &[NodePortAddress]| {
            checked(|draft| draft.node_ports = all.to_vec()).map(|config| config.node_ports)
        };
        assert_eq!(ports(&[Primary]), Ok(NodePortAddresses::Primary));
        assert_eq!(ports(&[Within(net)]), Ok(NodePortAddresses::Within(vec![net])));
        let error = ports(&[Within(net), Primary]).unwrap_err();
        assert_eq!(error, "--nodeport-addresses 10.0.0.0/8,primary: primary has to stand alone");
    }
}
