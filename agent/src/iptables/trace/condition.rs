//! What a rule asks of a packet.

use std::net::IpAddr;

use distributary_model::{Name, Protocol};
use ipnet::IpNet;

use super::walk::Sight;

/// A condition, or its opposite.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Condition {
    pub(super) not: bool,
    pub(super) what: What,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum What {
    Source(IpNet),
    Destination(IpNet),
    /// Where it was sent before it was translated.
    SentTo(IpNet),
    /// A name, or the beginning of one with a `+`.
    Input(Name),
    Output(Name),
    /// `None`: one that no Service has.
    Protocol(Option<Protocol>),
    Ports(Box<[(u16, u16)]>),
    State {
        new: bool,
        translated: bool,
    },
    FromHost,
    ToHost,
    Mark {
        value: u32,
        mask: u32,
    },
    /// Source and destination address are the same.
    SameAddress,
    Chance(f64),
    /// The client is in the list, and for no longer than that. Some rules put it in anew then.
    Remembered {
        list: Name,
        seconds: Option<u32>,
        renews: bool,
    },
    /// Puts the client into the list, and always holds.
    Remember(Name),
}

impl Condition {
    /// How probable it is that it holds; `None`: it cannot be told.
    pub(super) fn holds(&self, sight: &Sight<'_>) -> Option<f64> {
        let holds = match &self.what {
            What::Source(net) => net.contains(&sight.packet.source),
            What::Destination(net) => net.contains(&sight.state.destination),
            What::SentTo(net) => net.contains(&sight.packet.destination),
            What::Input(name) => is_interface(name, sight.input),
            What::Output(name) => is_interface(name, sight.output?),
            What::Protocol(protocol) => *protocol == Some(sight.packet.protocol),
            What::Ports(ranges) => {
                ranges.iter().any(|(first, last)| (*first..=*last).contains(&sight.state.port))
            }
            What::State { new, translated } => *new || (*translated && sight.state.translated),
            What::FromHost => sight.host.has(sight.packet.source),
            What::ToHost => sight.host.has(sight.state.destination),
            What::Mark { value, mask } => sight.state.mark & mask == *value,
            What::SameAddress => sight.packet.source == sight.state.destination,
            What::Remembered { list, seconds, .. } => {
                let age = sight.host.remembered.get(list);
                age.is_some_and(|age| seconds.is_none_or(|seconds| *age < seconds))
            }
            What::Remember(_) => true,
            What::Chance(chance) => return Some(if self.not { 1.0 - chance } else { *chance }),
        };
        Some(f64::from(u8::from(holds != self.not)))
    }

    /// The list that has the client after it held.
    pub(super) fn remembers(&self) -> Option<&Name> {
        match &self.what {
            What::Remember(list) | What::Remembered { list, renews: true, .. } if !self.not => Some(list),
            _ => None,
        }
    }

    /// The one protocol that it lets through.
    pub(super) fn protocol(&self) -> Option<Protocol> {
        match self.what {
            What::Protocol(protocol) if !self.not => protocol,
            _ => None,
        }
    }

    /// The sources that it lets through.
    pub(super) fn source(&self) -> Option<IpNet> {
        match self.what {
            What::Source(net) if !self.not => Some(net),
            _ => None,
        }
    }

    /// The one destination address that it lets through.
    pub(super) fn address(&self) -> Option<IpAddr> {
        match &self.what {
            What::Destination(net) if !self.not && net.prefix_len() == net.max_prefix_len() => {
                Some(net.addr())
            }
            _ => None,
        }
    }

    /// The one destination port that it lets through.
    pub(super) fn port(&self) -> Option<u16> {
        match &self.what {
            What::Ports(ranges) if !self.not => match ranges[..] {
                [(first, last)] if first == last => Some(first),
                _ => None,
            },
            _ => None,
        }
    }
}

fn is_interface(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('+') {
        Some(beginning) => !name.is_empty() && name.starts_with(beginning),
        None => name == pattern,
    }
}

/// `80`, `80:90`, and several with commas.
pub(super) fn ports(text: &str) -> Option<What> {
    let range = |text: &str| {
        let (first, last) = text.split_once(':').unwrap_or((text, text));
        Some((first.parse().ok()?, last.parse().ok()?))
    };
    text.split(',').map(range).collect::<Option<_>>().map(What::Ports)
}

/// `VALUE/MASK`, or a value alone.
pub(super) fn mark(text: &str) -> Option<(u32, u32)> {
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    };
    match text.split_once('/') {
        Some((value, mask)) => Some((number(value)?, number(mask)?)),
        None => Some((number(text)?, u32::MAX)),
    }
}

/// Of the states that conntrack knows, the first packet of a connection is NEW, and DNAT once it is translated.
pub(super) fn states(text: &str) -> What {
    let has = |state| text.split(',').any(|one| one == state);
    What::State { new: has("NEW"), translated: has("DNAT") }
}

pub(super) fn protocol(text: &str) -> What {
    let known = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
    What::Protocol(known.into_iter().find(|protocol| protocol.as_str() == text))
}
