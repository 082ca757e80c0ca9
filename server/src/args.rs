//! The command line.

mod fleet;
mod limits;
mod security;

use std::net::SocketAddr;
use std::path::PathBuf;

use distributary_runtime::log::LogArgs;

pub use fleet::FleetArgs;
pub use limits::LimitArgs;
pub use security::SecurityArgs;

/// Watches a Kubernetes API and streams endpoint deltas to the agents of its nodes.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "distributary-server", version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// What else to do than to serve.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How to serve.
    #[command(flatten)]
    pub args: Args,
}

/// What else to do than to serve.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum Command {
    /// Print how all replicas and their agents stand
    Status {
        /// Admin port of any replica
        #[arg(long, env = "DISTRIBUTARY_ADMIN", value_name = "HOST:PORT", default_value = "127.0.0.1:7401")]
        admin: String,
    },
}

/// How to serve.
#[derive(Clone, Debug, clap::Parser)]
pub struct Args {
    /// Logs.
    #[command(flatten)]
    pub log: LogArgs,

    /// What to watch: kubernetes, or dir:PATH for a directory of manifests
    #[arg(long, env = "DISTRIBUTARY_SOURCE", default_value = "kubernetes")]
    pub source: SourceArg,

    /// Kubeconfig of the API to watch; by default the service account of the pod
    #[arg(long, env = "DISTRIBUTARY_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// Id of the watched cluster; agents state theirs, and it must be the same
    #[arg(long, env = "DISTRIBUTARY_CLUSTER_ID", default_value = "default")]
    pub cluster_id: String,

    /// Where agents connect
    #[arg(long, env = "DISTRIBUTARY_LISTEN", default_value = "127.0.0.1:7400", value_name = "ADDR:PORT")]
    pub listen: SocketAddr,

    /// Where /livez, /readyz and /metrics are served
    #[arg(
        long,
        env = "DISTRIBUTARY_ADMIN_LISTEN",
        default_value = "127.0.0.1:7401",
        value_name = "ADDR:PORT"
    )]
    pub admin_listen: SocketAddr,

    /// The other replicas.
    #[command(flatten)]
    pub fleet: FleetArgs,

    /// Who may connect.
    #[command(flatten)]
    pub security: SecurityArgs,

    /// What those may take who connect.
    #[command(flatten)]
    pub limits: LimitArgs,
}

/// Which source to watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceArg {
    /// A Kubernetes API.
    Kubernetes,
    /// A directory of manifests.
    Dir(PathBuf),
}

impl std::str::FromStr for SourceArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("dir:") {
            Some(path) if !path.is_empty() => Ok(Self::Dir(path.into())),
            None if text == "kubernetes" => Ok(Self::Kubernetes),
            _ => Err("expected kubernetes or dir:PATH".to_owned()),
        }
    }
}

impl std::fmt::Display for SourceArg {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Kubernetes => f.write_str("kubernetes"),
            Self::Dir(path) => write!(f, "dir:{}", path.display()),
        }
    }
}

impl Args {
    /// Refuses what must not be started.
    ///
    /// # Errors
    /// One clear line.
    pub fn check(&self) -> anyhow::Result<()> {
        self.security.check(self.listen)?;
        if self.cluster_id.is_empty() || self.cluster_id.len() > 63 {
            anyhow::bail!("--cluster-id has {} bytes, 1 to 63 are possible", self.cluster_id.len());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_named_clearly() {
        assert_eq!("dir:/a".parse(), Ok(SourceArg::Dir("/a".into())));
        assert_eq!("kubernetes".parse(), Ok(SourceArg::Kubernetes));
        assert!("dir:".parse::<SourceArg>().is_err() && "etcd".parse::<SourceArg>().is_err());
    }
}
