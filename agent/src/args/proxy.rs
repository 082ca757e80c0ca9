//! kube-proxy's flags, under kube-proxy's names.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::ArgAction::Set;

use crate::config::value::{self, List, Listen, Network, NodePortAddress, switch};
use crate::config::{Backend, Conntrack, DetectLocalMode, Draft, duration};

/// How rules are made.
#[derive(Clone, Debug, clap::Args)]
pub struct RuleArgs {
    /// Name of the Node to program [default: the host's name]
    #[arg(long, env = "NODE_NAME", visible_alias = "hostname-override")]
    pub node_name: Option<String>,
    /// Id of the cluster, as the server's
    #[arg(long, env = "DISTRIBUTARY_CLUSTER_ID", default_value = "default")]
    pub cluster_id: String,
    /// A KubeProxyConfiguration, in YAML or JSON; it goes before kube-proxy's flags, but for the node's name
    #[arg(long, env = "DISTRIBUTARY_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Which packet filter to program
    #[arg(long, env = "DISTRIBUTARY_BACKEND", visible_alias = "proxy-mode", value_enum, default_value_t)]
    pub backend: Backend,
    /// How traffic of pods is told from the rest
    #[arg(long, env = "DISTRIBUTARY_DETECT_LOCAL_MODE", value_enum, default_value_t)]
    pub detect_local_mode: DetectLocalMode,
    /// Addresses of all pods, at most one network a family: traffic to a cluster IP from elsewhere is masqueraded
    #[arg(long, env = "DISTRIBUTARY_CLUSTER_CIDR", value_name = "CIDR[,CIDR]")]
    pub cluster_cidr: Vec<List<Network>>,
    /// The bridge that pods of this node come from
    #[arg(
        long,
        env = "DISTRIBUTARY_POD_BRIDGE_INTERFACE",
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    pub pod_bridge_interface: String,
    /// How the names of the interfaces begin that pods of this node come from
    #[arg(
        long,
        env = "DISTRIBUTARY_POD_INTERFACE_NAME_PREFIX",
        value_name = "PREFIX",
        default_value = "",
        hide_default_value = true
    )]
    pub pod_interface_name_prefix: String,
    /// Answer node ports at local addresses in these networks alone, or, with the single word `primary`, at the
    /// Node's own addresses [default: with iptables, at all of
    /// them; with nftables, primary]
    #[arg(long, env = "DISTRIBUTARY_NODEPORT_ADDRESSES", value_name = "CIDR[,CIDR]|primary")]
    pub nodeport_addresses: Vec<List<NodePortAddress>>,
    /// Answer node ports at 127.0.0.1, too, which needs the sysctl route_localnet
    #[arg(long, env = "DISTRIBUTARY_IPTABLES_LOCALHOST_NODEPORTS", action = Set, value_parser = switch,
        default_value = "true", default_missing_value = "true", num_args = 0..=1, require_equals = true)]
    pub iptables_localhost_nodeports: bool,
    /// Masquerade all traffic to cluster IPs
    #[arg(long, env = "DISTRIBUTARY_MASQUERADE_ALL", action = Set, value_parser = switch,
        default_value = "false", default_missing_value = "true", num_args = 0..=1, require_equals = true)]
    pub masquerade_all: bool,
    /// Bit of the packet mark that says: masquerade
    #[arg(
        long,
        env = "DISTRIBUTARY_IPTABLES_MASQUERADE_BIT",
        default_value_t = 14,
        allow_negative_numbers = true
    )]
    pub iptables_masquerade_bit: i64,
    /// Take this for the Node's primary address, unless it is 0.0.0.0 or ::. Nothing is bound to it
    #[arg(long, env = "DISTRIBUTARY_BIND_ADDRESS", value_name = "ADDR", default_value = "0.0.0.0",
        value_parser = value::address)]
    pub bind_address: IpAddr,
}

/// What the agent does on the host beside rules.
#[derive(Clone, Debug, clap::Args)]
pub struct HostArgs {
    /// Where health is served for load balancers, or `off` [default: 0.0.0.0:10256, or as much of IPv6 where
    /// --bind-address is]
    #[arg(
        long,
        env = "DISTRIBUTARY_HEALTHZ_BIND_ADDRESS",
        value_name = "ADDR[:PORT]|off",
        default_value = "",
        hide_default_value = true
    )]
    pub healthz_bind_address: Listen,
    /// Where metrics and readiness are served, or `off` [default: 127.0.0.1:10249, or as much of IPv6 where
    /// --bind-address is]
    #[arg(
        long,
        env = "DISTRIBUTARY_METRICS_BIND_ADDRESS",
        value_name = "ADDR[:PORT]|off",
        default_value = "",
        hide_default_value = true
    )]
    pub metrics_bind_address: Listen,
    /// End when one of these addresses cannot be listened on, instead of trying again
    #[arg(long, env = "DISTRIBUTARY_BIND_ADDRESS_HARD_FAIL", action = Set, value_parser = switch,
        default_value = "false", default_missing_value = "true", num_args = 0..=1, require_equals = true)]
    pub bind_address_hard_fail: bool,
    /// The longest wait before a write that failed is tried again. The node is unhealthy when something waits for
    /// twice as long
    #[arg(long, env = "DISTRIBUTARY_IPTABLES_SYNC_PERIOD", value_name = "DURATION", default_value = "30s",
        value_parser = duration::parse)]
    pub iptables_sync_period: Duration,
    /// The shortest time between two writes; what comes meanwhile waits and is written at once
    #[arg(long, env = "DISTRIBUTARY_IPTABLES_MIN_SYNC_PERIOD", value_name = "DURATION", default_value = "0s",
        value_parser = duration::parse)]
    pub iptables_min_sync_period: Duration,
    /// Connections to track for each CPU; 0 leaves the host's limit alone, and ignores --conntrack-min
    #[arg(long, env = "DISTRIBUTARY_CONNTRACK_MAX_PER_CORE", value_name = "COUNT", default_value_t = 32768)]
    pub conntrack_max_per_core: u32,
    /// Connections to track at least
    #[arg(long, env = "DISTRIBUTARY_CONNTRACK_MIN", value_name = "COUNT", default_value_t = 131_072)]
    pub conntrack_min: u32,
    /// How long idle TCP connections are tracked; 0 leaves the host's setting alone
    #[arg(long, env = "DISTRIBUTARY_CONNTRACK_TCP_TIMEOUT_ESTABLISHED", value_name = "DURATION",
        default_value = "24h", value_parser = duration::parse)]
    pub conntrack_tcp_timeout_established: Duration,
    /// How long half closed TCP connections are tracked; 0 leaves the host's setting alone
    #[arg(long, env = "DISTRIBUTARY_CONNTRACK_TCP_TIMEOUT_CLOSE_WAIT", value_name = "DURATION",
        default_value = "1h", value_parser = duration::parse)]
    pub conntrack_tcp_timeout_close_wait: Duration,
    /// Let TCP packets outside of the window through
    #[arg(long, env = "DISTRIBUTARY_CONNTRACK_TCP_BE_LIBERAL", action = Set, value_parser = switch,
        default_value = "false", default_missing_value = "true", num_args = 0..=1, require_equals = true)]
    pub conntrack_tcp_be_liberal: bool,
    /// How long UDP flows without an answer are tracked; 0 leaves the host's setting alone
    #[arg(long, env = "DISTRIBUTARY_CONNTRACK_UDP_TIMEOUT", value_name = "DURATION", default_value = "0s",
        value_parser = duration::parse)]
    pub conntrack_udp_timeout: Duration,
    /// How long UDP flows with answers are tracked; 0 leaves the host's setting alone
    #[arg(long, env = "DISTRIBUTARY_CONNTRACK_UDP_TIMEOUT_STREAM", value_name = "DURATION", default_value = "0s",
        value_parser = duration::parse)]
    pub conntrack_udp_timeout_stream: Duration,
    /// Score for when memory runs out, from -1000 to 1000
    #[arg(long, env = "DISTRIBUTARY_OOM_SCORE_ADJ", default_value_t = -999, allow_negative_numbers = true)]
    pub oom_score_adj: i64,
}

impl RuleArgs {
    /// What they say, with defaults for what is said elsewhere.
    pub fn draft(&self) -> Draft {
        Draft {
            backend: self.backend,
            hostname_override: self.node_name.clone(),
            bind_address: self.bind_address,
            detect_local_mode: self.detect_local_mode,
            cluster_cidr: self.cluster_cidr.iter().flat_map(|list| &list.0).map(|net| net.0).collect(),
            bridge: self.pod_bridge_interface.clone(),
            prefix: self.pod_interface_name_prefix.clone(),
            node_ports: self.nodeport_addresses.iter().flat_map(|list| &list.0).copied().collect(),
            localhost_node_ports: self.iptables_localhost_nodeports,
            masquerade_all: self.masquerade_all,
            masquerade_bit: self.iptables_masquerade_bit,
            ..Draft::default()
        }
    }
}

impl HostArgs {
    /// What they say, beside what `draft` says.
    pub fn draft(&self, draft: Draft) -> Draft {
        Draft {
            bind_address_hard_fail: self.bind_address_hard_fail,
            healthz: self.healthz_bind_address,
            metrics: self.metrics_bind_address,
            sync_period: self.iptables_sync_period,
            min_sync_period: self.iptables_min_sync_period,
            conntrack: Conntrack {
                max_per_core: self.conntrack_max_per_core,
                min: self.conntrack_min,
                tcp_established: self.conntrack_tcp_timeout_established,
                tcp_close_wait: self.conntrack_tcp_timeout_close_wait,
                tcp_be_liberal: self.conntrack_tcp_be_liberal,
                udp: self.conntrack_udp_timeout,
                udp_stream: self.conntrack_udp_timeout_stream,
            },
            oom_score_adj: self.oom_score_adj,
            ..draft
        }
    }
}
