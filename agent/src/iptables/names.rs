//! Names of chains: kube-proxy's where it has the chain too (spec/kube-proxy.md §3.1, §3.3), else its per-service
//! prefixes with a character that no hash has behind them, so that its clean-up removes ours (spec/layout.md §7).

use std::net::SocketAddr;

use distributary_model::Protocol;
use sha2::{Digest as _, Sha256};

pub(crate) const SERVICES: &str = "KUBE-SERVICES";
pub(crate) const NODEPORTS: &str = "KUBE-NODEPORTS";
pub(crate) const POSTROUTING: &str = "KUBE-POSTROUTING";
pub(crate) const MARK_MASQ: &str = "KUBE-MARK-MASQ";
pub(crate) const EXTERNAL_SERVICES: &str = "KUBE-EXTERNAL-SERVICES";
pub(crate) const FORWARD: &str = "KUBE-FORWARD";
pub(crate) const PROXY_FIREWALL: &str = "KUBE-PROXY-FIREWALL";
/// kubelet's too: what is in it stays, and it is never taken away.
pub(crate) const FIREWALL: &str = "KUBE-FIREWALL";
pub(crate) const CANARY: &str = "KUBE-PROXY-CANARY";
/// Clears the mark and masquerades.
pub(crate) const HAIRPIN: &str = "KUBE-SVC-0-HAIRPIN";
/// Lists the addresses that can meet themselves, where no one rule can tell them.
pub(crate) const HAIRPINS: &str = "KUBE-SVL-0-HAIRPIN";

/// What names of chains begin with that belong to a service port (§3.3).
pub(crate) const PREFIXES: [&str; 5] = ["KUBE-SVC-", "KUBE-SVL-", "KUBE-SEP-", "KUBE-FW-", "KUBE-EXT-"];

/// iptables takes no longer name.
#[cfg(test)]
pub(crate) const LONGEST: usize = 28;

/// Whether the chain belongs to a service port, kube-proxy's or ours.
pub(crate) fn is_per_service(chain: &str) -> bool {
    PREFIXES.iter().any(|prefix| chain.starts_with(prefix))
}

/// Standard base32, the first 16 characters of a SHA-256.
fn base32(parts: &[&str]) -> String {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.as_bytes());
    }
    let head = hash.finalize()[..10].iter().fold(0_u128, |head, &byte| head << 8 | u128::from(byte));
    (0..16).rev().map(|i| ALPHABET[(head >> (5 * i)) as usize & 31] as char).collect()
}

/// The hash in the names of a service port's chains.
pub fn service_hash(svc: &str, protocol: Protocol) -> String {
    base32(&[svc, protocol.as_str()])
}

/// The hash in the name of kube-proxy's chain of an endpoint, and of its affinity list.
pub fn endpoint_hash(svc: &str, protocol: Protocol, endpoint: &str) -> String {
    base32(&[svc, protocol.as_str(), endpoint])
}

/// Whether the chain is part of a trie.
pub(crate) fn is_bucket(chain: &str) -> bool {
    let rest = PREFIXES.iter().find_map(|prefix| chain.strip_prefix(prefix));
    rest.is_some_and(|rest| rest.starts_with("0-") || rest.starts_with("1-"))
}

/// The chains of one service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Cluster policy load balancing.
    Svc,
    /// Local policy load balancing.
    Svl,
    /// External destinations.
    Ext,
    /// Load balancer addresses with source ranges.
    Fw,
}

impl Kind {
    /// The chain's name.
    pub fn chain(self, hash: &str) -> String {
        let prefix = match self {
            Self::Svc => "KUBE-SVC-",
            Self::Svl => "KUBE-SVL-",
            Self::Ext => "KUBE-EXT-",
            Self::Fw => "KUBE-FW-",
        };
        format!("{prefix}{hash}")
    }
}

/// What the names of all groups of a balancing chain begin with.
fn group_prefix(kind: Kind, hash: &str) -> String {
    let letter = if kind == Kind::Svl { 'L' } else { 'G' };
    format!("KUBE-SEP-0{}{letter}", hash.get(..12).unwrap_or(hash))
}

/// A group of a balancing chain's endpoints.
pub(crate) fn group(kind: Kind, hash: &str, level: u8, index: usize) -> String {
    format!("{}{level:X}{index:X}", group_prefix(kind, hash))
}

/// The level in the name of a group.
pub(crate) fn group_level(chain: &str) -> Option<u8> {
    let rest = chain.strip_prefix("KUBE-SEP-0")?.get(13..14)?;
    u8::from_str_radix(rest, 16).ok().filter(|&level| level > 0)
}

/// The affinity list of an endpoint: kube-proxy's, so that who takes over remembers its clients (§3.13).
pub(crate) fn affinity_list(svc: &str, protocol: Protocol, endpoint: SocketAddr) -> String {
    format!("KUBE-SEP-{}", endpoint_hash(svc, protocol, &endpoint.to_string()))
}

/// A chain of an address trie, which covers a prefix.
pub(crate) fn bucket(root: &str, width: u8, prefix: u128, len: u8) -> String {
    if width <= 32 {
        return format!("{root}{prefix:08X}-{len:02}");
    }
    let hash = Sha256::digest(prefix.to_be_bytes());
    let head = hash[..6].iter().fold(0_u64, |head, &byte| head << 8 | u64::from(byte));
    format!("{root}{head:012X}-{len:03}")
}

/// A chain of a trie of ports.
pub(crate) fn port_bucket(root: &str, protocol: Protocol, first: u16, len: u8) -> String {
    let letter = match protocol {
        Protocol::Tcp => 'T',
        Protocol::Udp => 'U',
        Protocol::Sctp => 'S',
    };
    format!("{root}{letter}{first:04X}-{len:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// spec/kube-proxy.md §3.3
    #[test]
    fn golden_vectors() {
        use Protocol::{Sctp, Tcp, Udp};
        for (svc, protocol, hash) in [
            ("ns1/svc1:p80", Tcp, "XPGD46QRK7WJZT7O"),
            ("ns1/svc1:p80", Udp, "OJWW7NSBVZTDHXNW"),
            ("ns1/svc1:p80", Sctp, "GFCIFIA5VTFSTMSM"),
            ("ns1/svc1", Udp, "A2PEVXD55OHK2IVW"),
            ("default/kubernetes:https", Tcp, "NPX46M4PTMTKRN6Y"),
            ("kube-system/kube-dns:dns", Udp, "TCOU7JCQXEZGVUNU"),
            ("kube-system/kube-dns:dns-tcp", Tcp, "ERIFXISQEP7F7OF4"),
        ] {
            assert_eq!(service_hash(svc, protocol), hash, "{svc} {protocol}");
        }
        assert_eq!(endpoint_hash("ns1/svc1:p80", Tcp, "10.180.0.1:80"), "SXIVWICOYRO3J4NJ");
        assert_eq!(endpoint_hash("ns1/svc1", Udp, "[fd00:10::1]:5353"), "GVTU7PLYJ7OJHIE4");
    }

    #[test]
    fn our_own_names_fit_and_look_like_no_hash() {
        let hash = "XPGD46QRK7WJZT7O";
        for (name, prefix) in [
            (group(Kind::Svc, hash, 15, 0x7fff), "KUBE-SEP-"),
            (group(Kind::Svl, hash, 1, 0), "KUBE-SEP-"),
            (bucket("KUBE-SVC-0-", 32, 0xffff_fff8, 30), "KUBE-SVC-"),
            (bucket("KUBE-SVC-0-", 128, u128::MAX, 126), "KUBE-SVC-"),
            (port_bucket("KUBE-EXT-1-", Protocol::Sctp, 65_528, 15), "KUBE-EXT-"),
            (port_bucket("KUBE-FW-1-", Protocol::Tcp, 65_528, 15), "KUBE-FW-"),
            (bucket("KUBE-FW-0-", 128, u128::MAX, 126), "KUBE-FW-"),
            (HAIRPIN.into(), "KUBE-SVC-"),
            (HAIRPINS.into(), "KUBE-SVL-"),
        ] {
            assert!(name.len() <= LONGEST, "{name}");
            let first = name.strip_prefix(prefix).and_then(|rest| rest.chars().next());
            assert!(first.is_some_and(|first| !first.is_ascii_uppercase() && !('2'..='7').contains(&first)));
        }
        assert_eq!(group_level(&group(Kind::Svl, hash, 11, 5)), Some(11));
        assert_eq!(group_level("KUBE-SEP-XPGD46QRK7WJZT7O"), None);
    }
}
