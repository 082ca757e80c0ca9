//! Single values, as flags and the file both write them.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use ipnet::IpNet;

/// What a value should have been.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{found:?} is not {wanted}")]
pub struct Unreadable {
    found: String,
    wanted: &'static str,
}

fn unreadable(found: &str, wanted: &'static str) -> Unreadable {
    Unreadable { found: found.to_owned(), wanted }
}

/// What is separated by commas; blanks are skipped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct List<T>(pub Vec<T>);

impl<T: FromStr> FromStr for List<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        parts.map(str::parse).collect::<Result<_, _>>().map(Self)
    }
}

/// A network, with the host's bits cleared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network(pub IpNet);

impl FromStr for Network {
    type Err = Unreadable;

    fn from_str(text: &str) -> Result<Self, Unreadable> {
        let net: Result<IpNet, _> = text.trim().parse();
        net.map(|net| Self(net.trunc())).map_err(|_| unreadable(text, "a network such as 10.244.0.0/16"))
    }
}

/// Where node ports are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodePortAddress {
    /// At the Node's own addresses, one a family.
    Primary,
    /// At local addresses of this network.
    Within(IpNet),
}

impl FromStr for NodePortAddress {
    type Err = Unreadable;

    fn from_str(text: &str) -> Result<Self, Unreadable> {
        if text.trim() == "primary" {
            return Ok(Self::Primary);
        }
        match text.parse() {
            Ok(Network(net)) => Ok(Self::Within(net)),
            Err(_) => Err(unreadable(text, "a network such as 192.168.0.0/24, nor the word primary")),
        }
    }
}

impl fmt::Display for NodePortAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Primary => f.write_str("primary"),
            Self::Within(net) => net.fmt(f),
        }
    }
}

/// An address of the host.
///
/// # Errors
/// When it is none.
pub fn address(text: &str) -> Result<IpAddr, Unreadable> {
    text.trim().parse().map_err(|_| unreadable(text, "an IP address"))
}

/// Where a server of the agent listens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Listen {
    /// Where it does unless told otherwise.
    #[default]
    Default,
    /// At an address, at its own port.
    Address(IpAddr),
    /// There.
    At(SocketAddr),
    /// Nowhere.
    Off,
}

impl Listen {
    /// The address; `None` where it is off.
    pub fn or(self, default: SocketAddr) -> Option<SocketAddr> {
        match self {
            Self::Default => Some(default),
            Self::Address(address) => Some(SocketAddr::new(address, default.port())),
            Self::At(address) => Some(address),
            Self::Off => None,
        }
    }
}

impl FromStr for Listen {
    type Err = Unreadable;

    fn from_str(text: &str) -> Result<Self, Unreadable> {
        let text = text.trim();
        if text.is_empty() {
            return Ok(Self::Default);
        }
        if text == "off" {
            return Ok(Self::Off);
        }
        if let Ok(address) = text.trim_start_matches('[').trim_end_matches(']').parse() {
            return Ok(Self::Address(address));
        }
        let at: Option<SocketAddr> = text.parse().ok();
        let at = at.filter(|at| at.port() != 0).map(Self::At);
        at.ok_or_else(|| unreadable(text, "IP:PORT with a port from 1 to 65535, an IP address, nor off"))
    }
}

/// Yes or no, as Go reads it.
///
/// # Errors
/// When it is neither.
pub fn switch(text: &str) -> Result<bool, Unreadable> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(unreadable(text, "true or false")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> String {
        let listen = text.parse::<Listen>();
        match listen.map(|listen| listen.or(([0, 0, 0, 0], 10256).into())) {
            Ok(Some(at)) => at.to_string(),
            Ok(None) => "off".to_owned(),
            Err(e) => e.to_string(),
        }
    }

    #[test]
    fn a_server_listens_where_it_is_told_or_not_at_all() {
        assert_eq!(at(""), "0.0.0.0:10256");
        assert_eq!(at("127.0.0.1"), "127.0.0.1:10256");
        assert_eq!(at("::"), "[::]:10256");
        assert_eq!(at("[::1]"), "[::1]:10256");
        assert_eq!(at("[::1]:80"), "[::1]:80");
        assert_eq!(at("10.0.0.1:80"), "10.0.0.1:80");
        assert_eq!(at("off"), "off");
        let wanted = "is not IP:PORT with a port from 1 to 65535, an IP address, nor off";
        for bad in ["10.0.0.1:0", "10.0.0.1:65536", "localhost:80", ":80", "0"] {
            assert_eq!(at(bad), format!("{bad:?} {wanted}"));
        }
    }

    #[test]
    fn lists_are_separated_by_commas_and_may_be_empty() {
        let nets = |text: &str| text.parse::<List<Network>>().map(|list| list.0.len());
        assert_eq!(nets(""), Ok(0));
        assert_eq!(nets("10.0.0.0/8, fd00::/8,"), Ok(2));
        let error = nets("10.0.0.0/8,10.0.0.0/99").unwrap_err().to_string();
        assert_eq!(error, "\"10.0.0.0/99\" is not a network such as 10.244.0.0/16");
        let error = "eth0".parse::<NodePortAddress>().unwrap_err().to_string();
        assert_eq!(error, "\"eth0\" is not a network such as 192.168.0.0/24, nor the word primary");
    }

    #[test]
    fn a_networks_host_bits_do_not_matter() {
        assert_eq!("10.1.2.3/8".parse(), Ok(Network("10.0.0.0/8".parse().unwrap())));
    }
}
