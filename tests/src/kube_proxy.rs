//! A real kube-proxy on a node, programming the flavour of iptables that a test wants.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::api;
use crate::deployed;
use crate::netns::Namespace;
use crate::process::{Running, control_plane_program, scratch};
use crate::wait::within;

/// Its metrics, where no agent has its own.
const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 11249);
const HEALTH: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 11256);
/// Its first sync of a thousand endpoints takes seconds, and more on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running one, in iptables mode and with ports of its own, so that an agent can run beside it.
#[derive(Debug)]
pub struct KubeProxy {
    process: Running,
    namespace: Arc<Namespace>,
    _tools: TempDir,
}

impl KubeProxy {
    /// Starts it as one of these commands says. Its Node needs an address of each family. `flavour` is `nft` or `legacy`.
    ///
    /// # Errors
    /// When it cannot be started, or the flavour is not installed.
    pub fn start(
        mut command: Command,
        namespace: &Arc<Namespace>,
        flavour: &str,
        flags: &[&str],
    ) -> Result<Self> {
        let tools = tools_of(flavour)?;
        command.env("PATH", path_with(tools.path()));
        command.arg("--proxy-mode=iptables").args(flags);
        command
            .args([format!("--metrics-bind-address={METRICS}"), format!("--healthz-bind-address={HEALTH}")]);
        let process = namespace.spawn("kube-proxy", &command)?;
        Ok(Self { process, namespace: Arc::clone(namespace), _tools: tools })
    }

    /// Waits until it has programmed both families.
    ///
    /// # Panics
    /// When it does not, with the end of its log.
    pub fn wait_synced(&self) {
        const SYNCED: &str = "kubeproxy_sync_proxy_rules_last_timestamp_seconds";
        let synced = || {
            let (_, body) = deployed::get(&self.namespace, METRICS, "/metrics")?;
            let families = body.lines().filter_map(|line| line.strip_prefix(SYNCED)?.rsplit(' ').next());
            (families.filter(|at| at.parse().is_ok_and(|at: f64| at > 0.0)).count() >= 2).then_some(())
        };
        if within(PATIENCE, synced).is_none() {
            panic!("kube-proxy has not synced; its log ends\n{}", self.process.tail());
        }
    }

    /// Ends it as a kubelet would.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop(mut self) -> Result<()> {
        self.process.terminate(Duration::from_secs(15)).map(|_| ())
    }

    /// Ends it in the middle of whatever it does.
    pub fn kill9(mut self) {
        self.process.kill9();
    }

    /// The end of its log.
    #[must_use]
    pub fn tail(&self) -> String {
        self.process.tail()
    }
}

/// A kube-proxy of that Node, which is still to be told where its API is.
///
/// # Errors
/// When it cannot be built.
pub fn command(node: &str) -> Result<Command> {
    let mut command = Command::new(control_plane_program("kube-proxy")?);
    command.args([
        &format!("--hostname-override={node}"),
        // Limits of the whole machine, which are not for a namespace to set.
        "--conntrack-max-per-core=0",
        "--conntrack-min=0",
    ]);
    Ok(command)
}

/// A kube-proxy that follows the [`Api`](crate::api::Api) in its namespace.
///
/// # Errors
/// When it cannot be built.
pub fn command_at_api(node: &str) -> Result<Command> {
    let mut command = command(node)?;
    command.args([&format!("--master=http://{}", api::ADDRESS), "--kube-api-content-type=application/json"]);
    Ok(command)
}

/// A folder in which `iptables` and so on are those of a flavour.
///
/// # Errors
/// When the flavour is not installed.
pub fn tools_of(flavour: &str) -> Result<TempDir> {
    let folder = scratch("tools")?;
    for family in ["iptables", "ip6tables"] {
        for tool in ["", "-save", "-restore"] {
            let of_flavour = format!("{family}-{flavour}{tool}");
            symlink(installed(&of_flavour)?, folder.path().join(format!("{family}{tool}")))?;
        }
    }
    Ok(folder)
}

/// `PATH` with a folder before all others.
#[must_use]
pub fn path_with(first: &Path) -> String {
    format!("{}:{}", first.display(), std::env::var("PATH").unwrap_or_default())
}

fn installed(program: &str) -> Result<std::path::PathBuf> {
    let path = std::env::var_os("PATH").context("PATH is set")?;
    let found = std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file());
    let Some(found) = found else { bail!("{program} is not installed") };
    Ok(found)
}
