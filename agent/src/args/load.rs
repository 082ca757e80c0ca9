//! From the command line, or the file that it names, to a configuration.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};

use super::{RuleArgs, RunArgs};
use crate::config::{Config, Draft, Names, file};

/// How often it is looked whether a file has changed.
const LOOK: Duration = Duration::from_secs(10);

impl RuleArgs {
    /// What they, or the file that they name, come to on a host of that name.
    ///
    /// # Errors
    /// When the file cannot be used, or what is said contradicts itself: one clear line.
    pub fn config(&self, hostname: &str) -> anyhow::Result<Config> {
        self.load(self.draft(), hostname)
    }

    /// The file goes before what was said; but for the node's name, as kube-proxy has it.
    fn load(&self, said: Draft, hostname: &str) -> anyhow::Result<Config> {
        let Some(path) = &self.config else { return Ok(said.check(Names::Flags, hostname)?) };
        let hostname_override = said.hostname_override.clone();
        if said != (Draft { hostname_override: hostname_override.clone(), ..Draft::default() }) {
            tracing::warn!(
                "--config goes before kube-proxy's other flags and their variables: they do nothing"
            );
        }
        let named = || format!("--config {}", path.display());
        let text = std::fs::read_to_string(path).with_context(named)?;
        let (draft, unused) = file::read(&text).with_context(named)?;
        if !unused.is_empty() {
            tracing::warn!(file = %path.display(), fields = %unused, "parts of --config do nothing");
        }
        let draft =
            Draft { hostname_override: hostname_override.or(draft.hostname_override.clone()), ..draft };
        draft.check(Names::File, hostname).with_context(named)
    }
}

impl RunArgs {
    /// What they, or the file that they name, come to on a host of that name.
    ///
    /// # Errors
    /// When the file cannot be used, or what is said contradicts itself: one clear line.
    pub fn config(&self, hostname: &str) -> anyhow::Result<Config> {
        self.rules.load(self.host.draft(self.rules.draft()), hostname)
    }
}

/// Writes a configuration as a file that `--config` reads.
///
/// # Errors
/// When it cannot be written.
pub fn write(config: &Config, path: &Path) -> anyhow::Result<()> {
    let named = || format!("--write-config-to {}", path.display());
    let text = serde_saphyr::to_string(&config.to_v1alpha1()).with_context(named)?;
    std::fs::write(path, text).with_context(named)
}

/// Ends with an error when the file is another than it was when this was called: whoever starts the agent again has
/// it read anew, as with kube-proxy. One that cannot be read at the moment is not another.
///
/// # Errors
/// When it is.
pub async fn until_changed(path: PathBuf) -> anyhow::Result<()> {
    let read = || async { tokio::fs::read(&path).await.ok() };
    let mut was = read().await;
    loop {
        tokio::time::sleep(LOOK).await;
        let now = read().await;
        if was.is_some() && now.is_some() && was != now {
            bail!("--config {} has changed: the agent has to be started again to follow it", path.display());
        }
        was = was.or(now);
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Args, Command};

    const FILE: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

    fn run(path: &Path, more: &[&str]) -> RunArgs {
        let path = path.display().to_string();
        let arguments = ["distributary-agent", "run", "--server", "127.0.0.1:7400", "--config", &path];
        let Command::Run(args) = Args::parse_from(arguments.iter().chain(more)).command else { panic!() };
        args
    }

    #[test]
    fn the_file_goes_before_flags_but_for_the_nodes_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.conf");
        std::fs::write(&path, format!("{FILE}hostnameOverride: of-file\noomScoreAdj: 5\n")).unwrap();
        let config = run(&path, &["--masquerade-all", "--oom-score-adj=7"]).config("host").unwrap();
        assert_eq!((&*config.node, config.masquerade_all, config.oom_score_adj), ("of-file", false, 5));
        let config = run(&path, &["--hostname-override=Said"]).config("host").unwrap();
        assert_eq!(&*config.node, "said");
    }

    #[test]
    fn what_is_written_is_read_as_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("written.yaml");
        let args = run(&path, &[]);
        let config = Draft { masquerade_all: true, ..Draft::default() }.check(Names::Flags, "host").unwrap();
        write(&config, &path).unwrap();
        assert_eq!(args.config("other").unwrap(), config);
        let error = write(&config, Path::new("/nowhere/at/all")).unwrap_err();
        assert!(format!("{error:#}").starts_with("--write-config-to /nowhere/at/all: "), "{error:#}");
    }

    #[test]
    fn a_file_that_cannot_be_used_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.conf");
        let error = || format!("{:#}", run(&path, &[]).config("host").unwrap_err());
        let name = path.display();
        assert!(error().starts_with(&format!("--config {name}: No such file")), "{}", error());
        std::fs::write(&path, format!("{FILE}mode: ipvs\n")).unwrap();
        assert_eq!(
            error(),
            format!("--config {name}: mode ipvs is not there, only iptables and nftables are")
        );
        std::fs::write(&path, format!("{FILE}iptables: {{masqueradeBit: 32}}\n")).unwrap();
        assert_eq!(error(), format!("--config {name}: iptables.masqueradeBit 32 is not from 0 to 31"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_changes_ends_the_agent_and_one_that_is_away_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.conf");
        std::fs::write(&path, "one").unwrap();
        let mut watched = Box::pin(until_changed(path.clone()));
        assert!(tokio::time::timeout(3 * LOOK, &mut watched).await.is_err());
        std::fs::remove_file(&path).unwrap();
        assert!(tokio::time::timeout(3 * LOOK, &mut watched).await.is_err());
        std::fs::write(&path, "two").unwrap();
        let error = tokio::time::timeout(3 * LOOK, &mut watched).await.unwrap().unwrap_err().to_string();
        assert!(error.ends_with("has changed: the agent has to be started again to follow it"), "{error}");
    }
}
