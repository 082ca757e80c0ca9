//! The command line. Names and defaults are kube-proxy's wherever the thing is the same.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::ValueEnum;
use distributary_model::Name;
use distributary_runtime::log::LogArgs;
use ipnet::IpNet;

use crate::iptables::{Family, Flavour, Options};
use crate::plan::{Detector, NodeState};

/// Programs the packet filter of a node with the Services of its cluster.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "distributary-agent", version)]
pub struct Args {
    /// Logs.
    #[command(flatten)]
    pub log: LogArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum Command {
    /// Follow a server and program the node
    Run(RunArgs),
    /// Print the rules that a node would get, and touch nothing
    Render(RenderArgs),
    /// Remove every rule that the agent, or kube-proxy, wrote; kubelet's and others' stay
    Cleanup(CleanupArgs),
}

/// How rules are made.
#[derive(Clone, Debug, clap::Args)]
pub struct RuleArgs {
    /// Name of the Node to program
    #[arg(long, env = "NODE_NAME")]
    pub node_name: String,
    /// Id of the cluster, as the server's
    #[arg(long, env = "DISTRIBUTARY_CLUSTER_ID", default_value = "default")]
    pub cluster_id: String,
    /// Addresses of all pods, at most one network a family: traffic to a cluster IP from elsewhere is masqueraded
    #[arg(long, env = "DISTRIBUTARY_CLUSTER_CIDR", value_delimiter = ',', value_name = "CIDR[,CIDR]")]
    pub cluster_cidr: Vec<IpNet>,
    /// Masquerade all traffic to cluster IPs
    #[arg(long, env = "DISTRIBUTARY_MASQUERADE_ALL")]
    pub masquerade_all: bool,
    /// Bit of the packet mark that says: masquerade
    #[arg(long, env = "DISTRIBUTARY_IPTABLES_MASQUERADE_BIT", default_value_t = 14,
        value_parser = clap::value_parser!(u8).range(0..32))]
    pub iptables_masquerade_bit: u8,
}

/// `run`
#[derive(Clone, Debug, clap::Args)]
pub struct RunArgs {
    /// How rules are made.
    #[command(flatten)]
    pub rules: RuleArgs,
    /// Servers, tried in turn
    #[arg(
        long,
        env = "DISTRIBUTARY_SERVER",
        value_delimiter = ',',
        required = true,
        value_name = "HOST:PORT[,HOST:PORT]"
    )]
    pub server: Vec<String>,
    /// Connect to a server beyond loopback without TLS
    #[arg(long, env = "DISTRIBUTARY_INSECURE")]
    pub insecure: bool,
    /// Which iptables to use
    #[arg(long, env = "DISTRIBUTARY_IPTABLES_FLAVOUR", value_enum, default_value_t = FlavourArg::Auto)]
    pub iptables_flavour: FlavourArg,
    /// Where /livez, /readyz and /metrics are served
    #[arg(
        long,
        env = "DISTRIBUTARY_METRICS_BIND_ADDRESS",
        default_value = "127.0.0.1:10249",
        value_name = "ADDR:PORT"
    )]
    pub metrics_bind_address: SocketAddr,
}

/// `render`
#[derive(Clone, Debug, clap::Args)]
pub struct RenderArgs {
    /// How rules are made.
    #[command(flatten)]
    pub rules: RuleArgs,
    /// A directory of manifests
    #[arg(
        long,
        env = "DISTRIBUTARY_MANIFESTS",
        value_name = "PATH",
        conflicts_with = "server",
        required_unless_present = "server"
    )]
    pub manifests: Option<PathBuf>,
    /// A server to ask
    #[arg(long, env = "DISTRIBUTARY_SERVER", value_name = "HOST:PORT")]
    pub server: Option<String>,
    /// Connect to a server beyond loopback without TLS
    #[arg(long, env = "DISTRIBUTARY_INSECURE")]
    pub insecure: bool,
}

/// `cleanup`
#[derive(Clone, Debug, clap::Args)]
pub struct CleanupArgs {}

/// Which iptables to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FlavourArg {
    /// Whatever `iptables` is.
    Auto,
    /// `iptables-nft`
    Nft,
    /// `iptables-legacy`
    Legacy,
}

impl FlavourArg {
    /// The flavour, where one was asked for.
    pub fn wanted(self) -> Option<Flavour> {
        match self {
            Self::Auto => None,
            Self::Nft => Some(Flavour::Nft),
            Self::Legacy => Some(Flavour::Legacy),
        }
    }
}

impl RuleArgs {
    /// The node's name, as kube-proxy takes it: trimmed, and in lower case.
    pub fn node(&self) -> Name {
        self.node_name.trim().to_lowercase().into()
    }

    /// Id of the cluster.
    pub fn cluster(&self) -> Name {
        self.cluster_id.as_str().into()
    }

    /// The options of a family's rules.
    ///
    /// # Errors
    /// When the arguments contradict each other: one clear line.
    pub fn options(&self, flavour: Flavour) -> anyhow::Result<Options> {
        let node = self.node();
        if node.is_empty() {
            bail!("--node-name is empty");
        }
        let mut options = Options::new(self.cluster(), node);
        options.flavour = flavour;
        options.masquerade_all = self.masquerade_all;
        options.masquerade_bit = self.iptables_masquerade_bit;
        Ok(options)
    }

    /// What a family's rules depend on of a node of which nothing else is known.
    ///
    /// # Errors
    /// When the arguments contradict each other: one clear line.
    pub fn node_state(&self, family: Family) -> anyhow::Result<NodeState> {
        let of_family =
            |cidr: &&IpNet| matches!((cidr, family), (IpNet::V4(_), Family::V4) | (IpNet::V6(_), Family::V6));
        let cidrs: Vec<&IpNet> = self.cluster_cidr.iter().filter(of_family).collect();
        if let [first, second, ..] = cidrs[..] {
            bail!("--cluster-cidr has {first} and {second} of one family, at most one is possible");
        }
        let detector = cidrs.first().map(|cidr| Detector::ClusterCidr(cidr.trunc()));
        Ok(NodeState { detector, ..NodeState::default() })
    }
}

/// Refuses to talk in the clear beyond this machine unless told to.
///
/// # Errors
/// One clear line.
pub fn check_servers(servers: &[String], insecure: bool) -> anyhow::Result<()> {
    for server in servers {
        let (host, port) =
            server.rsplit_once(':').with_context(|| format!("--server {server:?} is not HOST:PORT"))?;
        if host.is_empty() || port.parse::<u16>().is_err() {
            bail!("--server {server:?} is not HOST:PORT");
        }
        let host = host.trim_matches(['[', ']']);
        let loopback = host == "localhost" || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
        if !loopback && !insecure {
            bail!(
                "--server {server} is on another machine, and what it says would not be secured: say --insecure if that is meant"
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_checked_before_anything_is_touched() {
        let check =
            |server: &str, insecure| check_servers(&[server.to_owned()], insecure).map_err(|e| e.to_string());
        assert_eq!(check("127.0.0.1:7400", false), Ok(()));
        assert_eq!(check("[::1]:7400", false), Ok(()));
        assert_eq!(check("10.0.0.1:7400", true), Ok(()));
        assert!(check("10.0.0.1:7400", false).unwrap_err().contains("not be secured"));
        assert_eq!(check("nonsense", false).unwrap_err(), "--server \"nonsense\" is not HOST:PORT");
    }

    #[test]
    fn two_networks_of_a_family_are_refused() {
        let mut args = RuleArgs {
            node_name: "N1".into(),
            cluster_id: "default".into(),
            cluster_cidr: vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()],
            masquerade_all: false,
            iptables_masquerade_bit: 14,
        };
        let state = args.node_state(Family::V6).unwrap();
        assert_eq!(state.detector, Some(Detector::ClusterCidr("fd00::/8".parse().unwrap())));
        args.cluster_cidr.push("11.0.0.0/8".parse().unwrap());
        let error = args.node_state(Family::V4).unwrap_err().to_string();
        assert_eq!(
            error,
            "--cluster-cidr has 10.0.0.0/8 and 11.0.0.0/8 of one family, at most one is possible"
        );
    }
}
