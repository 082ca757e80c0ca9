//! The command line. Names and defaults are kube-proxy's wherever the thing is the same.

pub mod load;
mod observe;
mod proxy;
mod security;
mod state;

use std::path::PathBuf;
use std::time::Duration;

use clap::ArgAction::Set;
use clap::ValueEnum;
use distributary_model::Name;
use distributary_runtime::log::LogArgs;

use crate::config::duration;
use crate::config::value::switch;
use crate::iptables::Flavour;

pub use observe::ObserveArgs;
pub use proxy::{HostArgs, RuleArgs};
pub use security::SecurityArgs;
pub use state::StateArgs;

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
#[expect(clippy::large_enum_variant, reason = "there is one in a process")]
pub enum Command {
    /// Follow a server and program the node
    Run(RunArgs),
    /// Print the rules that a node would get, and touch nothing
    Render(RenderArgs),
    /// Remove every rule that the agent, or kube-proxy, wrote; kubelet's and others' stay
    Cleanup(CleanupArgs),
}

/// `run`
#[derive(Clone, Debug, clap::Args)]
pub struct RunArgs {
    /// How rules are made.
    #[command(flatten)]
    pub rules: RuleArgs,
    /// What is done on the host.
    #[command(flatten)]
    pub host: HostArgs,
    /// How it is compared instead of written.
    #[command(flatten)]
    pub observe: ObserveArgs,
    /// What is kept over restarts.
    #[command(flatten)]
    pub state: StateArgs,
    /// Servers; a name stands for all of its addresses
    #[arg(
        long,
        env = "DISTRIBUTARY_SERVER",
        value_delimiter = ',',
        required_unless_present_any = ["init_only", "write_config_to"],
        value_name = "HOST:PORT[,HOST:PORT]"
    )]
    pub server: Vec<String>,
    /// How the server is known.
    #[command(flatten)]
    pub security: SecurityArgs,
    /// Which iptables to use
    #[arg(long, env = "DISTRIBUTARY_IPTABLES_FLAVOUR", value_enum, default_value_t = FlavourArg::Auto)]
    pub iptables_flavour: FlavourArg,
    /// Be unhealthy for load balancers when no server was heard for so long [default: never]
    #[arg(long, env = "DISTRIBUTARY_UNHEALTHY_AFTER_STALE", value_name = "DURATION",
        value_parser = duration::parse)]
    pub unhealthy_after_stale: Option<Duration>,
    /// Do what needs more rights than rules do (sysctls), and end
    #[arg(long, env = "DISTRIBUTARY_INIT_ONLY", action = Set, value_parser = switch,
        default_value = "false", default_missing_value = "true", num_args = 0..=1, require_equals = true)]
    pub init_only: bool,
    /// Write what the flags, or --config, come to into a file that --config reads, and end
    #[arg(long, env = "DISTRIBUTARY_WRITE_CONFIG_TO", value_name = "FILE")]
    pub write_config_to: Option<PathBuf>,
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
    /// How the server is known.
    #[command(flatten)]
    pub security: SecurityArgs,
}

/// `cleanup`
#[derive(Clone, Debug, clap::Args)]
pub struct CleanupArgs {
    /// Only chains that no kube-proxy has and no rule needs: what is left after one took over
    #[arg(long, env = "DISTRIBUTARY_CLEANUP_OURS_ONLY")]
    pub ours_only: bool,
}

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

/// Every flag of the command that runs with its value, be it from the command line, the environment or a default.
pub fn told(command: &clap::Command, matches: &clap::ArgMatches) -> Vec<(String, String)> {
    let Some((name, matches)) = matches.subcommand() else { return Vec::new() };
    let flags = command.find_subcommand(name).into_iter().flat_map(clap::Command::get_arguments);
    let mut told: Vec<(String, String)> = flags
        .chain(command.get_arguments().filter(|flag| flag.is_global_set()))
        .filter_map(|flag| {
            let raw = matches.try_get_raw(flag.get_id().as_str()).ok()?;
            let values = raw.into_iter().flatten().map(|value| value.to_string_lossy());
            Some((flag.get_long()?.to_owned(), values.collect::<Vec<_>>().join(",")))
        })
        .collect();
    told.sort();
    told.dedup();
    told
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
    /// Id of the cluster.
    pub fn cluster(&self) -> Name {
        self.cluster_id.as_str().into()
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::config::{Config, DetectLocal, Draft, Names, NodePortAddresses};

    fn parse(more: &[&str]) -> Result<Config, String> {
        let arguments = ["distributary-agent", "run", "--server", "127.0.0.1:7400"];
        let args = Args::try_parse_from(arguments.iter().chain(more)).map_err(|e| e.to_string())?;
        let Command::Run(args) = args.command else { return Err("not run".into()) };
        args.config("host").map_err(|e| e.to_string())
    }

    #[test]
    fn kube_proxys_spellings_are_understood() {
        let config = parse(&[
            "--hostname-override=Node-7",
            "--detect-local-mode=NodeCIDR",
            "--cluster-cidr=10.0.0.0/8,fd00::/8",
            "--nodeport-addresses=10.0.0.0/8",
            "--nodeport-addresses=fd00::/8,11.0.0.0/8",
            "--iptables-localhost-nodeports=false",
            "--masquerade-all",
            "--iptables-sync-period=1m0s",
            "--healthz-bind-address=::",
            "--metrics-bind-address=off",
            "--conntrack-tcp-timeout-established=0",
            "--conntrack-tcp-be-liberal=true",
            "--oom-score-adj=-998",
        ])
        .unwrap();
        assert_eq!((&*config.node, config.detect_local), ("node-7", DetectLocal::NodeCidr));
        assert_eq!(config.cluster_cidr.len(), 2);
        let NodePortAddresses::Within(nets) = config.node_ports else { panic!("networks are listed") };
        assert_eq!(nets.len(), 3);
        assert!(!config.localhost_node_ports && config.masquerade_all && config.conntrack.tcp_be_liberal);
        assert_eq!(config.sync_period, Duration::from_secs(60));
        assert_eq!((config.healthz, config.metrics), (Some("[::]:10256".parse().unwrap()), None));
        assert_eq!((config.conntrack.tcp_established, config.oom_score_adj), (Duration::ZERO, -998));
    }

    #[test]
    fn without_flags_it_is_the_default_of_the_file() {
        let drafted = Draft::default().check(Names::File, "host").unwrap();
        assert_eq!(parse(&[]).unwrap(), drafted);
    }

    #[test]
    fn what_cannot_be_read_is_named_with_its_flag() {
        for (flag, wrong) in [
            ("--cluster-cidr=10.0.0.0/99", "\"10.0.0.0/99\" is not a network such as 10.244.0.0/16"),
            ("--detect-local-mode=Somehow", "InterfaceNamePrefix"),
            ("--iptables-sync-period=30", "\"30\" is no duration such as 30s, 1h30m or 500ms"),
            ("--masquerade-all=yes", "\"yes\" is not true or false"),
            ("--bind-address=eth0", "\"eth0\" is not an IP address"),
            ("--conntrack-min=-1", "-1"),
        ] {
            let error = parse(&[flag]).unwrap_err();
            let (name, _) = flag.split_once('=').unwrap();
            assert!(error.contains(name) && error.contains(wrong), "{error}");
        }
    }
}
