//! How two fates of a packet differ.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use distributary_model::{Key, Protocol};
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};

use super::probe::Client;
use crate::iptables::trace::Fate;

/// Shares that differ by less than this part of them are the same.
const TOLERANCE: f64 = 0.01;

/// What kind of difference it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelValue)]
pub enum Kind {
    /// The kernel leaves alone what would be served or refused.
    Missing,
    /// The kernel serves or refuses what would be left alone.
    Extra,
    /// Other endpoints, or other shares.
    Endpoints,
    /// With another source address.
    Masquerade,
    /// Refused by one alone, or otherwise.
    Refusal,
    /// Accepted in filter by one alone, which matters where a policy is DROP.
    Acceptance,
    /// Another endpoint for a client that comes back.
    Affinity,
    /// A rule is not understood.
    Unknown,
    /// Meant so: docs/operations.md lists what.
    Deliberate,
}

/// The label of the count.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OfKind {
    /// Which.
    pub kind: Kind,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 9] = [
        Self::Missing,
        Self::Extra,
        Self::Endpoints,
        Self::Masquerade,
        Self::Refusal,
        Self::Acceptance,
        Self::Affinity,
        Self::Unknown,
        Self::Deliberate,
    ];
}

/// Something that becomes of packets by the kernel's rules, and would not by ours.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Difference {
    /// Which kind.
    pub kind: Kind,
    /// Where they are sent.
    pub destination: SocketAddr,
    /// By which protocol.
    pub protocol: Protocol,
    /// Whose that is; `None`: of none that we know.
    pub key: Option<Arc<Key>>,
    /// The service port, as far as it is known.
    pub service: String,
    /// Who sends them.
    pub clients: Vec<Client>,
    /// What the kernel does.
    pub kernel: String,
    /// What we would do.
    pub ours: String,
}

/// Names of clients, in a row.
pub struct Clients<'a>(pub &'a [Client]);

impl fmt::Display for Clients<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, client) in self.0.iter().enumerate() {
            let before = if at == 0 { "" } else { ", " };
            write!(f, "{before}{client}")?;
        }
        Ok(())
    }
}

/// How the kernel's fate of a packet differs from ours; `None`: it means the same.
pub fn differs(kernel: &Fate, ours: &Fate) -> Option<Kind> {
    let endpoints = |fate: &Fate| fate.to.iter().map(|(to, ..)| *to).collect::<Vec<_>>();
    let masquerade = |fate: &Fate| fate.to.iter().map(|(to, _, with)| (*to, *with)).collect::<Vec<_>>();
    let alone = |fate: &Fate| fate.to.is_empty() && fate.refused.is_none();
    if kernel.unknown.is_some() || ours.unknown.is_some() {
        return Some(Kind::Unknown);
    }
    match (alone(kernel), alone(ours)) {
        (true, false) => return Some(Kind::Missing),
        (false, true) => return Some(Kind::Extra),
        _ => {}
    }
    if kernel.refused != ours.refused {
        return Some(Kind::Refusal);
    }
    let mut distinct = [endpoints(kernel), endpoints(ours)];
    distinct.iter_mut().for_each(Vec::dedup);
    if distinct[0] != distinct[1] {
        return Some(Kind::Endpoints);
    }
    if masquerade(kernel) != masquerade(ours) {
        return Some(Kind::Masquerade);
    }
    let shares = |fate: &Fate| {
        let to: Vec<f64> = fate.to.iter().map(|(_, share, _)| *share).collect();
        to.into_iter().chain([fate.left_alone]).collect::<Vec<_>>()
    };
    if shares(kernel).into_iter().zip(shares(ours)).any(|(one, other)| is_far(one, other)) {
        return Some(Kind::Endpoints);
    }
    if is_far(kernel.accepted, ours.accepted) {
        return Some(Kind::Acceptance);
    }
    (kernel.lists != ours.lists).then_some(Kind::Affinity)
}

fn is_far(one: f64, other: f64) -> bool {
    (one - other).abs() > TOLERANCE * one.max(other) + 1e-6
}
