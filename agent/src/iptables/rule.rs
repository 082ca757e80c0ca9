//! Rules as data, and their one text: exactly what `iptables-save` 1.8.9 prints of them in both flavours, so that
//! "the kernel has it already" is equality of text.
//!
//! Found with the real tools (`agent/tests/kernel_text.rs`): addresses, interface and protocol come first, in the order
//! of the fields here; then the matches in the order in which they were given; a network always has its length; a
//! probability is printed as the kernel keeps it, in 31 bits; a REJECT names its reason.

use std::fmt::Write as _;
use std::net::SocketAddr;

use distributary_model::{Name, Protocol};
use ipnet::IpNet;

use crate::plan::Family;

/// A comment has at most this many bytes (XT_MAX_COMMENT_LEN, with its end).
const LONGEST_COMMENT: usize = 255;

/// A rule. What is `None` matches anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// `-s`
    pub source: Option<Is<IpNet>>,
    /// `-d`
    pub destination: Option<Is<IpNet>>,
    /// `-i`
    pub input: Option<Is<Name>>,
    /// `-p`
    pub protocol: Option<Protocol>,
    /// `-m`, in order.
    pub matches: Vec<Match>,
    /// `-j`
    pub target: Target,
}

/// A match on a field, or on anything else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Is<T> {
    /// Equal, or inside.
    Yes(T),
    /// With `!`.
    Not(T),
}

/// An extension that matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    /// Matches always; for people.
    Comment(String),
    /// The protocol's destination port, from and to. The rule needs a protocol.
    Ports(u16, u16),
    /// A state that conntrack knows, or several with commas.
    State(&'static str),
    /// None of these states.
    NoState(&'static str),
    /// Translated, and first meant for this network.
    TranslatedFrom(IpNet),
    /// The source address is one of this host's.
    FromHost,
    /// The destination address is one of this host's.
    ToHost,
    /// The packet mark has this bit, or has it not.
    Mark(Is<u32>),
    /// A program that looks into the packet.
    Bpf(&'static str),
    /// One in so many: of 2^31.
    Chance(u32),
    /// The source address is in this list since at most so many seconds; what is older is forgotten, and the time of
    /// what is found is now.
    Remembered {
        /// Name of the list.
        list: Name,
        /// How long an address is remembered.
        seconds: u32,
        /// Of the addresses in it.
        family: Family,
    },
    /// Puts the source address into a list of addresses of the family. Matches always.
    Remember(Name, Family),
    /// Counts in an accounting object of the kernel. Matches always.
    Account(&'static str),
}

/// What happens to what matches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Target {
    /// Goes on with the next rule.
    #[default]
    Nothing,
    /// Another chain, and back.
    Jump(Name),
    /// Back.
    Return,
    /// Through.
    Accept,
    /// Away, in silence.
    Drop,
    /// Away, with an ICMP port unreachable.
    Reject(Family),
    /// To an endpoint.
    Dnat(SocketAddr),
    /// Sets these bits of the mask to the value, as `--set-xmark VALUE/MASK` does.
    Mark(u32, u32),
    /// With the address of the interface that it leaves by.
    Masquerade {
        /// Source ports are chosen at random.
        random_fully: bool,
    },
}

/// `part` in `whole`, as the statistic match keeps it: 31 bits, halves away from zero.
pub fn chance(part: usize, whole: usize) -> Match {
    let (part, whole) = (part as u128, whole.max(1) as u128);
    Match::Chance((((part << 32) / whole + 1) >> 1) as u32)
}

impl Rule {
    /// A rule that jumps.
    pub fn jump(to: impl Into<Name>) -> Self {
        Self { target: Target::Jump(to.into()), ..Self::default() }
    }

    /// A rule with a target.
    pub fn to(target: Target) -> Self {
        Self { target, ..Self::default() }
    }

    /// With one more match.
    #[must_use]
    pub fn with(mut self, one: Match) -> Self {
        self.matches.push(one);
        self
    }

    /// With a comment.
    #[must_use]
    pub fn comment(self, text: impl Into<String>) -> Self {
        self.with(Match::Comment(text.into()))
    }

    /// Only with this destination port of this protocol. Comments before it stay before it.
    #[must_use]
    pub fn port(mut self, protocol: Protocol, port: u16) -> Self {
        self.protocol = Some(protocol);
        self.with(Match::Ports(port, port))
    }

    /// Appends what follows `-A CHAIN `, without an end of line.
    pub fn write(&self, out: &mut String) {
        let Self { source, destination, input, protocol, matches, target } = self;
        field(out, "-s", source.as_ref());
        field(out, "-d", destination.as_ref());
        field(out, "-i", input.as_ref());
        if let Some(protocol) = protocol {
            word(out, "-p ", protocol);
        }
        for one in matches {
            one.write(*protocol, out);
        }
        target.write(out);
        out.pop();
    }
}

fn word(out: &mut String, before: &str, value: impl std::fmt::Display) {
    // Writing to a String cannot fail.
    let _ = write!(out, "{before}{value} ");
}

fn field<T: std::fmt::Display>(out: &mut String, flag: &str, value: Option<&Is<T>>) {
    let _ = match value {
        Some(Is::Yes(value)) => write!(out, "{flag} {value} "),
        Some(Is::Not(value)) => write!(out, "! {flag} {value} "),
        None => Ok(()),
    };
}

impl Match {
    fn write(&self, protocol: Option<Protocol>, out: &mut String) {
        match self {
            Self::Comment(text) => comment(out, text),
            Self::Ports(first, last) => {
                let protocol = protocol.unwrap_or_default();
                let _ = write!(out, "-m {protocol} --dport {first}");
                if first != last {
                    let _ = write!(out, ":{last}");
                }
                out.push(' ');
            }
            Self::State(states) => word(out, "-m conntrack --ctstate ", states),
            Self::NoState(states) => word(out, "-m conntrack ! --ctstate ", states),
            Self::TranslatedFrom(net) => word(out, "-m conntrack --ctstate DNAT --ctorigdst ", net),
            Self::FromHost => out.push_str("-m addrtype --src-type LOCAL "),
            Self::ToHost => out.push_str("-m addrtype --dst-type LOCAL "),
            Self::Mark(Is::Yes(bit)) => word(out, "-m mark --mark ", format_args!("{bit:#x}/{bit:#x}")),
            Self::Mark(Is::Not(bit)) => word(out, "-m mark ! --mark ", format_args!("{bit:#x}/{bit:#x}")),
            Self::Bpf(code) => word(out, "-m bpf --bytecode ", format_args!("\"{code}\"")),
            Self::Chance(of) => {
                let (whole, rest) = decimals(*of);
                word(out, "-m statistic --mode random --probability ", format_args!("{whole}.{rest:011}"));
            }
            Self::Remembered { list, seconds, family } => {
                let what = format_args!("--update --seconds {seconds} --reap --name {list}");
                recent(out, *family, what);
            }
            Self::Remember(list, family) => recent(out, *family, format_args!("--set --name {list}")),
            // The tools print two spaces.
            Self::Account(object) => word(out, "-m nfacct --nfacct-name  ", object),
        }
    }
}

fn recent(out: &mut String, family: Family, what: std::fmt::Arguments<'_>) {
    let mask = match family {
        Family::V4 => "255.255.255.255",
        Family::V6 => "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    };
    word(out, "-m recent ", format_args!("{what} --mask {mask} --rsource"));
}

/// `of` / 2^31 in eleven decimals, halves to even, as printf does.
fn decimals(of: u32) -> (u64, u64) {
    const FIVES: u128 = 5_u128.pow(11);
    let scaled = u128::from(of) * FIVES;
    let (floor, rest) = (scaled >> 20, scaled & 0xf_ffff);
    let up = rest > 1 << 19 || (rest == 1 << 19 && floor & 1 == 1);
    let value = (floor + u128::from(up)) as u64;
    (value / 100_000_000_000, value % 100_000_000_000)
}

/// A comment in quotes: all of ours have a space or a slash in them, and are quoted by the tools for it. Nothing in it
/// can end the quotes or the line, whatever a Service is called.
fn comment(out: &mut String, text: &str) {
    out.push_str("-m comment --comment \"");
    let plain = |c: char| if matches!(c, ' '..='~') && !matches!(c, '"' | '\'' | '\\') { c } else { '_' };
    out.extend(text.chars().map(plain).take(LONGEST_COMMENT));
    out.push_str("\" ");
}

impl Target {
    fn write(&self, out: &mut String) {
        match self {
            Self::Nothing => {}
            Self::Jump(chain) => word(out, "-j ", chain),
            Self::Return => out.push_str("-j RETURN "),
            Self::Accept => out.push_str("-j ACCEPT "),
            Self::Drop => out.push_str("-j DROP "),
            Self::Reject(Family::V4) => out.push_str("-j REJECT --reject-with icmp-port-unreachable "),
            Self::Reject(Family::V6) => out.push_str("-j REJECT --reject-with icmp6-port-unreachable "),
            Self::Dnat(endpoint) => word(out, "-j DNAT --to-destination ", endpoint),
            Self::Mark(value, mask) => {
                word(out, "-j MARK --set-xmark ", format_args!("{value:#x}/{mask:#x}"));
            }
            Self::Masquerade { random_fully: false } => out.push_str("-j MASQUERADE "),
            Self::Masquerade { random_fully: true } => out.push_str("-j MASQUERADE --random-fully "),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(rule: &Rule) -> String {
        let mut out = String::new();
        rule.write(&mut out);
        out
    }

    #[test]
    fn probabilities_are_the_kernels() {
        for (part, whole, printed) in [
            (1, 3, "0.33333333349"),
            (1, 2, "0.50000000000"),
            (1, 4096, "0.00024414062"),
            (3, 4096, "0.00073242188"),
            (32, 33, "0.96969696973"),
            (1, 100_001, "0.00001000008"),
        ] {
            let mut out = String::new();
            chance(part, whole).write(None, &mut out);
            assert_eq!(out.trim_end().rsplit(' ').next(), Some(printed), "{part}/{whole}");
        }
    }

    #[test]
    fn a_comment_cannot_break_out() {
        let rule = Rule::jump("X").comment("a\" -j ACCEPT\n-A INPUT 'ü\\");
        assert_eq!(text(&rule), "-m comment --comment \"a_ -j ACCEPT_-A INPUT ___\" -j X");
        let rule = Rule::jump("X").comment("é".repeat(300));
        assert_eq!(text(&rule).len(), "-m comment --comment \"\" -j X".len() + 255);
    }

    #[test]
    fn a_rule_without_a_target_has_no_space_at_its_end() {
        assert_eq!(text(&Rule::default().comment("a b")), "-m comment --comment \"a b\"");
    }
}
