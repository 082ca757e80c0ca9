//! `cleanup`: removes what we, and kube-proxy, wrote, in both flavours and both families.

use anyhow::bail;

use crate::args::CleanupArgs;
use crate::iptables::{self, Family, Flavour, Scope};
use crate::kernel::tools::Tools;
use crate::kernel::{Kernel, KernelError, Readable};

/// Removes as much as it can, and then says what it could not.
///
/// # Errors
/// When something could not be removed.
pub async fn run(CleanupArgs { ours_only }: CleanupArgs) -> anyhow::Result<()> {
    let scope = if ours_only { Scope::Ours } else { Scope::All };
    let mut errors = Vec::new();
    let mut found = false;
    for flavour in [Flavour::Nft, Flavour::Legacy] {
        for family in [Family::V4, Family::V6] {
            match clean(Tools::new(family, Some(flavour)), scope).await {
                Ok(removed) => {
                    found = true;
                    if removed {
                        tracing::info!(?family, ?flavour, "removed");
                    }
                }
                // A flavour that is not installed holds nothing that it could remove.
                Err(KernelError::Exec { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => errors.push(e.to_string()),
            }
        }
    }
    if !errors.is_empty() {
        bail!("not everything was removed: {}", errors.join("; "));
    }
    if !found {
        bail!(
            "neither iptables-nft nor iptables-legacy can be run (install the Debian package iptables, or the like)"
        );
    }
    Ok(())
}

/// Whether there was something to remove.
async fn clean(mut tools: Tools, scope: Scope) -> Result<bool, KernelError> {
    let saved = tools.save().await?;
    let Some(text) = iptables::cleanup(&iptables::parse(&saved), scope) else { return Ok(false) };
    tools.restore(&text).await?;
    Ok(true)
}
