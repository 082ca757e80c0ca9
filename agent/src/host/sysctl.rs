//! What the kernel is set to beside its packet filter (spec/kube-proxy.md §9.4).

use std::path::Path;
use std::time::Duration;

use anyhow::Context;

use crate::config::Conntrack;

/// No more connections than this are asked for by the number of CPUs.
const MOST_CONNECTIONS: u32 = 1 << 20;
/// Connections for each bucket of the hash table.
const CHAIN: u32 = 4;

const CONNTRACK_MAX: &str = "/proc/sys/net/netfilter/nf_conntrack_max";
const HASH_SIZE: &str = "/sys/module/nf_conntrack/parameters/hashsize";
const BE_LIBERAL: &str = "/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal";
const ROUTE_LOCALNET: &str = "/proc/sys/net/ipv4/conf/all/route_localnet";

/// Sets connection tracking to what is wanted of it, where it is not that yet. What failed is in the list, the rest is
/// done.
pub fn conntrack(wanted: &Conntrack) -> Vec<anyhow::Error> {
    let cpus =
        std::thread::available_parallelism().map_or(1, |cpus| u32::try_from(cpus.get()).unwrap_or(u32::MAX));
    let mut failed = Vec::new();
    let mut note = |result: anyhow::Result<()>| failed.extend(result.err());
    if let Some(most) = connections(wanted, cpus) {
        note(set(CONNTRACK_MAX, most));
        // A table that is larger already stays.
        if read(HASH_SIZE).is_some_and(|buckets| buckets < most / CHAIN) {
            note(set(HASH_SIZE, most / CHAIN));
        }
    }
    for (key, after) in [
        ("tcp_timeout_established", wanted.tcp_established),
        ("tcp_timeout_close_wait", wanted.tcp_close_wait),
        ("udp_timeout", wanted.udp),
        ("udp_timeout_stream", wanted.udp_stream),
    ] {
        if after > Duration::ZERO {
            let seconds = after.as_secs().try_into().unwrap_or(u32::MAX);
            note(set(format!("/proc/sys/net/netfilter/nf_conntrack_{key}"), seconds));
        }
    }
    if wanted.tcp_be_liberal {
        note(set(BE_LIBERAL, 1));
    }
    failed
}

/// Whether packets outside of a TCP window are let through, so that they are not to be dropped as INVALID (§3.5).
pub fn is_liberal() -> bool {
    read(BE_LIBERAL).is_some_and(|value| value != 0)
}

/// Lets packets to the loopback network be routed. The rule that keeps others off it comes first (§3.10).
///
/// # Errors
/// When it cannot be set.
pub fn route_localnet() -> anyhow::Result<()> {
    set(ROUTE_LOCALNET, 1)
}

/// Says how much this process is to be spared when memory runs out.
///
/// # Errors
/// When it cannot be set.
pub fn oom_score(adjustment: i16) -> anyhow::Result<()> {
    let path = "/proc/self/oom_score_adj";
    std::fs::write(path, adjustment.to_string())
        .with_context(|| format!("{path} cannot be set to {adjustment}"))
}

/// How many connections are to be tracked; `None`: as many as are.
fn connections(wanted: &Conntrack, cpus: u32) -> Option<u32> {
    if wanted.max_per_core == 0 {
        return None;
    }
    match wanted.max_per_core.saturating_mul(cpus) {
        scaled if scaled > MOST_CONNECTIONS => Some(MOST_CONNECTIONS),
        scaled => Some(scaled.max(wanted.min)),
    }
}

fn read(path: &str) -> Option<u32> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Writes only what differs, so that a host that was prepared needs no right to.
fn set(path: impl AsRef<Path>, value: u32) -> anyhow::Result<()> {
    let path = path.as_ref();
    let held = std::fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
    if held.trim() == value.to_string() {
        return Ok(());
    }
    std::fs::write(path, value.to_string()).with_context(|| {
        let (path, held) = (path.display(), held.trim());
        format!("{path} is {held} and cannot be set to {value}: run with --init-only, privileged, before")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_follow_cpus_between_the_least_and_the_most() {
        let of = |max_per_core, min, cpus| {
            connections(&Conntrack { max_per_core, min, ..Conntrack::default() }, cpus)
        };
        assert_eq!(of(32_768, 131_072, 2), Some(131_072));
        assert_eq!(of(32_768, 131_072, 8), Some(262_144));
        assert_eq!(of(32_768, 131_072, 64), Some(1 << 20));
        // What is cut is not lifted by the least again.
        assert_eq!(of(32_768, 2 << 20, 64), Some(1 << 20));
        assert_eq!(of(32_768, 2 << 20, 2), Some(2 << 20));
        assert_eq!(of(0, 131_072, 64), None);
    }

    #[test]
    fn what_is_right_is_not_written_and_what_cannot_be_says_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        std::fs::write(&path, "5\n").unwrap();
        set(&path, 5).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "5\n");
        set(&path, 6).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "6");
        let error = set(folder.path().join("none"), 6).unwrap_err();
        assert!(error.to_string().ends_with("none cannot be read"), "{error}");
    }
}
