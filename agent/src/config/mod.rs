//! How the node is to be programmed: what flags, or a file of kube-proxy's, come to once they are checked.
//!
//! Pure. Names and defaults are kube-proxy's (spec/kube-proxy.md §7); docs/configuration.md says what differs.

mod draft;
pub mod file;
mod tree;
mod v1alpha1;
pub mod value;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use clap::ValueEnum;
use distributary_model::Name;
pub use distributary_runtime::duration;
use ipnet::IpNet;

use crate::iptables::{Flavour, Options};
use crate::nftables;

pub use draft::{DetectLocalMode, Draft, Invalid, Names};

/// Everything that kube-proxy can be told and that means something here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Which packet filter is programmed.
    pub backend: Backend,
    /// The node's name.
    pub node: Name,
    /// Says which address of the node is its primary one, where it is not unspecified; nothing is bound to it.
    pub bind_address: IpAddr,
    /// A server that cannot listen ends the agent.
    pub bind_address_hard_fail: bool,
    /// Where health is served; `None`: nowhere.
    pub healthz: Option<SocketAddr>,
    /// Where metrics are served; `None`: nowhere.
    pub metrics: Option<SocketAddr>,
    /// How traffic of pods is told from the rest.
    pub detect_local: DetectLocal,
    /// Addresses of all pods, at most one network a family.
    pub cluster_cidr: Vec<IpNet>,
    /// Where node ports are answered.
    pub node_ports: NodePortAddresses,
    /// Node ports are answered at IPv4's loopback too, where [`Config::node_ports`] covers it.
    pub localhost_node_ports: bool,
    /// All traffic to cluster IPs is masqueraded.
    pub masquerade_all: bool,
    /// Which bit of the packet mark asks for masquerading.
    pub masquerade_bit: u8,
    /// The longest wait before a write that failed is tried again; half of the time after which one makes unhealthy.
    pub sync_period: Duration,
    /// The shortest time between two writes.
    pub min_sync_period: Duration,
    /// What connection tracking is set to.
    pub conntrack: Conntrack,
    /// What the kernel is told for when memory runs out.
    pub oom_score_adj: i16,
}

/// A packet filter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Backend {
    /// Chains of rules, that kube-proxy takes over and leaves to us without a gap
    #[default]
    Iptables,
    /// Sets and maps in a table of its own, where each change costs the same; nft 1.0.1 and kernel 5.13 are wanted
    Nftables,
    /// nftables where the node has what it takes, else iptables
    Auto,
}

impl Backend {
    /// As it is said.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
            Self::Auto => "auto",
        }
    }
}

/// How traffic of pods is told from the rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DetectLocal {
    /// By [`Config::cluster_cidr`].
    ClusterCidr,
    /// By the Node's pod CIDRs.
    NodeCidr,
    /// By the bridge that it comes from.
    Bridge(Name),
    /// By the beginning of the interface's name that it comes from.
    Prefix(Name),
}

/// Where node ports are answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// At the Node's own addresses, one a family.
    Primary,
    /// At local addresses in these networks; a family of which there is none: at all of its local addresses.
    Within(Vec<IpNet>),
}

/// What connection tracking is set to; what is zero is left alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conntrack {
    /// Connections for each CPU.
    pub max_per_core: u32,
    /// Connections at least, where [`Conntrack::max_per_core`] is not zero.
    pub min: u32,
    /// How long an idle TCP connection is kept.
    pub tcp_established: Duration,
    /// How long a TCP connection is kept that one side has closed.
    pub tcp_close_wait: Duration,
    /// TCP packets outside of the window are let through.
    pub tcp_be_liberal: bool,
    /// How long a UDP flow is kept that had no answer.
    pub udp: Duration,
    /// How long a UDP flow is kept that was answered.
    pub udp_stream: Duration,
}

impl Config {
    /// The same for a packet filter, with what follows from which it is: with nftables node ports are at the Node's own
    /// addresses unless others are named, and never at a loopback address (spec/kube-proxy.md §8.7).
    #[must_use]
    pub fn of_backend(mut self, backend: Backend) -> Self {
        self.backend = backend;
        if backend == Backend::Nftables {
            self.localhost_node_ports = false;
            if self.node_ports == NodePortAddresses::Within(Vec::new()) {
                self.node_ports = NodePortAddresses::Primary;
            }
        }
        self
    }

    /// The options of an nftables table.
    pub fn nftables_options(&self, cluster: Name) -> nftables::Options {
        let mut options = nftables::Options::new(cluster, self.node.clone());
        options.masquerade_all = self.masquerade_all;
        options.masquerade_bit = self.masquerade_bit;
        options
    }

    /// The options of rules.
    pub fn options(&self, cluster: Name, flavour: Flavour) -> Options {
        let mut options = Options::new(cluster, self.node.clone());
        options.flavour = flavour;
        options.masquerade_all = self.masquerade_all;
        options.masquerade_bit = self.masquerade_bit;
        options.be_liberal = self.conntrack.tcp_be_liberal;
        options
    }
}

impl Default for Conntrack {
    fn default() -> Self {
        Self {
            max_per_core: 32768,
            min: 131_072,
            tcp_established: Duration::from_secs(24 * 3600),
            tcp_close_wait: Duration::from_secs(3600),
            tcp_be_liberal: false,
            udp: Duration::ZERO,
            udp_stream: Duration::ZERO,
        }
    }
}
