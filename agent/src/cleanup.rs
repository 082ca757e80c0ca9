//! `cleanup`, and what is left of another backend once one has taken over: removes what we, and kube-proxy, wrote, in both
//! families.

use std::io::ErrorKind;

use anyhow::bail;

use crate::args::CleanupArgs;
use crate::config::Backend;
use crate::host::families::has_legacy;
use crate::iptables::{self, Family, Flavour, Scope};
use crate::kernel::nft;
use crate::kernel::tools::Tools;
use crate::kernel::{Kernel, KernelError, Readable};
use crate::nftables::{KUBE_PROXYS_TABLE, TABLE};

/// What came of it.
#[derive(Debug, Default)]
struct Done {
    /// A tool was there.
    found: bool,
    errors: Vec<String>,
}

/// Removes as much as it can, and then says what it could not.
///
/// # Errors
/// When something could not be removed.
pub async fn run(CleanupArgs { ours_only }: CleanupArgs) -> anyhow::Result<()> {
    let scope = if ours_only { Scope::Ours } else { Scope::All };
    let mut done = Done::default();
    for flavour in [Flavour::Nft, Flavour::Legacy] {
        for family in [Family::V4, Family::V6] {
            done.chains(family, flavour, scope).await;
        }
    }
    done.tables(if ours_only { &[TABLE] } else { &[TABLE, KUBE_PROXYS_TABLE] }).await;
    if !done.errors.is_empty() {
        bail!("not everything was removed: {}", done.errors.join("; "));
    }
    if !done.found {
        bail!(
            "neither iptables-nft nor iptables-legacy nor nft can be run (install the Debian package iptables or nftables, or the like)"
        );
    }
    Ok(())
}

/// Removes what another backend, ours or kube-proxy's, has left behind. This one's rules are in the kernel.
pub async fn after_take_over(by: Backend) {
    let mut done = Done::default();
    match by {
        Backend::Nftables => {
            for family in [Family::V4, Family::V6] {
                done.chains(family, Flavour::Nft, Scope::All).await;
                // To ask makes the tables where there are none.
                if has_legacy(family, "nat") {
                    done.chains(family, Flavour::Legacy, Scope::All).await;
                }
            }
            done.tables(&[KUBE_PROXYS_TABLE]).await;
        }
        Backend::Iptables | Backend::Auto => done.tables(&[TABLE, KUBE_PROXYS_TABLE]).await,
    }
    for error in done.errors {
        tracing::warn!(
            error,
            "what another backend left behind could not be removed: `cleanup` does it by hand"
        );
    }
}

impl Done {
    async fn chains(&mut self, family: Family, flavour: Flavour, scope: Scope) {
        let removed = clean(Tools::new(family, Some(flavour)), scope).await;
        if self.note(removed) {
            tracing::info!(?family, ?flavour, "removed");
        }
    }

    async fn tables(&mut self, tables: &[&str]) {
        for family in [Family::V4, Family::V6] {
            for table in tables {
                let removed = nft::remove(family, table).await;
                if self.note(removed) {
                    tracing::info!(?family, table, "removed");
                }
            }
        }
    }

    fn note(&mut self, removed: Result<bool, KernelError>) -> bool {
        match removed {
            Ok(removed) => {
                self.found = true;
                removed
            }
            // A tool that is not installed holds nothing that it could remove.
            Err(KernelError::Exec { source, .. }) if source.kind() == ErrorKind::NotFound => false,
            Err(e) => {
                self.errors.push(e.to_string());
                false
            }
        }
    }
}

/// Whether there was something to remove.
async fn clean(mut tools: Tools, scope: Scope) -> Result<bool, KernelError> {
    let saved = tools.save().await?;
    let Some(text) = iptables::cleanup(&iptables::parse(&saved), scope) else { return Ok(false) };
    tools.restore(&text).await?;
    Ok(true)
}
