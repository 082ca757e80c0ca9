//! Whether the host has what the nftables backend needs (spec/kube-proxy.md §8.1), and what its firewalls do.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, bail};

use super::families::present;
use crate::config::Backend;
use crate::kernel::nft::{self, Nft};
use crate::nftables::{Family, forward_drops, probe};

/// Older ones read all rules of the host for every change.
const OLDEST_TOOL: [u32; 3] = [1, 0, 1];
/// Older ones lack what the table is made of, or have it wrong.
const OLDEST_KERNEL: [u32; 2] = [5, 13];
/// How often it is looked what firewalls do.
const LOOK: Duration = Duration::from_secs(300);

/// The packet filter to program, and the families of it where it is nftables.
///
/// # Errors
/// When nftables is wanted and the host does not have what it takes.
pub async fn choose(wanted: Backend) -> anyhow::Result<Option<Vec<(Family, Nft)>>> {
    match wanted {
        Backend::Iptables => Ok(None),
        Backend::Nftables => {
            let found = programmable().await.context("--backend nftables is not possible on this host")?;
            Ok(Some(found))
        }
        Backend::Auto => match programmable().await {
            Ok(found) => {
                tracing::info!("--backend auto: nftables, since this host has what it takes");
                Ok(Some(found))
            }
            Err(e) => {
                tracing::info!(reason = format!("{e:#}"), "--backend auto: iptables");
                Ok(None)
            }
        },
    }
}

/// Every family whose table the kernel would take.
async fn programmable() -> anyhow::Result<Vec<(Family, Nft)>> {
    let said = nft::version().await?;
    let tool =
        numbers(&said).with_context(|| format!("the version of nft is not to be read from {said:?}"))?;
    if tool[..] < OLDEST_TOOL[..] {
        bail!("nft is {}, 1.0.1 or later is wanted", said.trim());
    }
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    if numbers(&release).is_some_and(|kernel| kernel[..] < OLDEST_KERNEL[..]) {
        bail!("the kernel is {}, 5.13 or later is wanted", release.trim());
    }
    let (mut found, mut reasons) = (Vec::new(), Vec::new());
    for family in present() {
        match nft::check(&probe(family)).await {
            Ok(()) => found.push((family, Nft(family))),
            Err(e) => {
                tracing::warn!(family = family.as_str(), error = %e, "is not programmed");
                reasons.push(e.to_string());
            }
        }
    }
    if found.is_empty() {
        bail!("no address family can be programmed: {}", reasons.join("; "));
    }
    Ok(found)
}

/// The first version in a text, number by number.
fn numbers(text: &str) -> Option<Vec<u32>> {
    let word = text
        .split_whitespace()
        .map(|word| word.trim_start_matches('v'))
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    let numbers = word.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse().ok());
    Some(numbers.collect())
}

/// Says, once for each, which firewalls drop forwarded packets whatever our table says.
///
/// # Errors
/// Never.
pub async fn watch_firewalls() -> anyhow::Result<()> {
    let mut known = BTreeSet::new();
    loop {
        match nft::chains().await {
            Ok(chains) => {
                let now = forward_drops(&chains);
                for chain in now.difference(&known) {
                    tracing::warn!(
                        chain,
                        "drops forwarded packets that it does not accept itself, those to Services among them: with the \
                         nftables backend it has to accept them (a mark, or the pods' and the node's networks)"
                    );
                }
                known = now;
            }
            Err(e) => tracing::debug!(error = %e, "the host's firewalls cannot be looked at"),
        }
        tokio::time::sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_number_by_number() {
        let of = |text: &str| numbers(text).unwrap();
        assert_eq!(of("nftables v1.0.6 (Lester Gooch #5)\n"), [1, 0, 6]);
        assert!(
            of("nftables v1.0.0 (x)")[..] < OLDEST_TOOL[..] && of("nftables v1.1.0")[..] > OLDEST_TOOL[..]
        );
        assert!(of("5.4.0-150-generic")[..] < OLDEST_KERNEL[..] && of("6.18.44-fc")[..] > OLDEST_KERNEL[..]);
        assert!(of("5.13.0")[..] >= OLDEST_KERNEL[..]);
        assert_eq!(numbers("nothing"), None);
    }
}
