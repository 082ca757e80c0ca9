//! Which families the host has, and with which tools their rules are written.

use std::path::Path;

use anyhow::bail;

use crate::iptables::{Family, Flavour};
use crate::kernel::Readable;
use crate::kernel::tools::Tools;

/// A family that can be programmed, with its tools.
#[derive(Debug)]
pub struct Programmable {
    /// Which.
    pub family: Family,
    /// What writes its rules.
    pub tools: Tools,
    /// Which kind these are.
    pub flavour: Flavour,
}

/// Every family whose rules can be read. The flavour is the one that is wanted, else the one that holds kubelet's
/// chains, as those of the host's own tools are, else whatever `iptables` is.
///
/// # Errors
/// When there is none.
pub async fn programmable(wanted: Option<Flavour>) -> anyhow::Result<Vec<Programmable>> {
    let wanted = match wanted {
        Some(flavour) => Some(flavour),
        None => kubelets().await,
    };
    let (mut found, mut reasons) = (Vec::new(), Vec::new());
    for family in present() {
        let mut tools = Tools::new(family, wanted);
        // To read asks for the same rights as to write, and touches nothing.
        let flavour = match tools.flavour().await {
            Ok(flavour) => tools.save().await.map(|_| flavour),
            Err(e) => Err(e),
        };
        match flavour {
            Ok(flavour) => found.push(Programmable { family, tools, flavour }),
            Err(e) => {
                tracing::warn!(?family, error = %e, "is not programmed: its rules cannot be read");
                reasons.push(e.to_string());
            }
        }
    }
    if found.is_empty() {
        bail!("no address family can be programmed: {}", reasons.join("; "));
    }
    Ok(found)
}

/// The flavour whose tables kubelet writes to: it has marked them for this.
async fn kubelets() -> Option<Flavour> {
    for flavour in [Flavour::Nft, Flavour::Legacy] {
        for family in [Family::V4, Family::V6] {
            if flavour == Flavour::Legacy && !has_legacy(family, "mangle") {
                continue;
            }
            for chain in ["KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY"] {
                if Tools::new(family, Some(flavour)).has_mangle_chain(chain).await {
                    return Some(flavour);
                }
            }
        }
    }
    None
}

/// Whether iptables-legacy has that table already: to ask the tool would make it.
pub fn has_legacy(family: Family, table: &str) -> bool {
    let path = match family {
        Family::V4 => "/proc/net/ip_tables_names",
        Family::V6 => "/proc/net/ip6_tables_names",
    };
    std::fs::read_to_string(path).is_ok_and(|names| names.lines().any(|name| name == table))
}

/// The families that the host has at all.
pub(super) fn present() -> impl Iterator<Item = Family> {
    let disabled = std::fs::read_to_string("/proc/sys/net/ipv6/conf/all/disable_ipv6");
    let v6 = Path::new("/proc/net/if_inet6").exists() && !disabled.is_ok_and(|value| value.trim() == "1");
    [Some(Family::V4), v6.then_some(Family::V6)].into_iter().flatten()
}
