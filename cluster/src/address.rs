//! Addresses and networks as Kubernetes has them: in texts that older versions let pass.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

/// An address. Leading zeros are decimal, as they were for those who wrote them; IPv4 inside IPv6 is IPv4.
pub(crate) fn ip(text: &str) -> Option<IpAddr> {
    let parsed = match text.parse::<IpAddr>() {
        Ok(ip) => ip,
        Err(_) if text.contains(':') => v6(text)?,
        Err(_) => v4(text)?.into(),
    };
    Some(parsed.to_canonical())
}

/// A network, without the host bits that it may have been written with.
pub(crate) fn net(text: &str) -> Option<IpNet> {
    let (address, length) = text.split_once('/')?;
    let length = decimal(length)?;
    // Not canonical: the length would count from the wrong end.
    let address = match address.parse::<IpAddr>() {
        Ok(ip) => ip,
        Err(_) if address.contains(':') => v6(address)?,
        Err(_) => v4(address)?.into(),
    };
    IpNet::new(address, length).ok().map(|net| net.trunc())
}

fn v4(text: &str) -> Option<Ipv4Addr> {
    let mut parts = text.split('.').map(decimal);
    let octets = [parts.next()??, parts.next()??, parts.next()??, parts.next()??];
    parts.next().is_none().then(|| octets.into())
}

fn v6(text: &str) -> Option<IpAddr> {
    let groups: Option<Vec<String>> = text
        .split(':')
        .map(|group| match group.trim_start_matches('0') {
            _ if group.contains('.') => v4(group).map(|tail| tail.to_string()),
            "" if !group.is_empty() => Some("0".to_owned()),
            digits => Some(digits.to_owned()),
        })
        .collect();
    groups?.join(":").parse::<IpAddr>().ok()
}

fn decimal(digits: &str) -> Option<u8> {
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    // The parser skips leading zeros, and refuses what is too large.
    plain.then(|| digits.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_their_writers_meant_them() {
        for (text, want) in [
            ("172.30.0.041", Some("172.30.0.41")),
            ("10.180.00.001", Some("10.180.0.1")),
            ("1.2.3.004", Some("1.2.3.4")),
            ("fd00:0:0:0::00001", Some("fd00::1")),
            ("FD00::00A:1", Some("fd00::a:1")),
            ("::", Some("::")),
            ("00000::1", Some("::1")),
            ("::ffff:010.0.0.1", Some("10.0.0.1")),
            ("1.2.3", None),
            ("1.2.3.4.5", None),
            ("1.2.3.256", None),
            ("1.2.3.+4", None),
            ("1.2.3.", None),
            ("fe80::1%eth0", None),
            ("::12345", None),
            (" 1.2.3.4", None),
            ("", None),
        ] {
            assert_eq!(ip(text).map(|ip| ip.to_string()).as_deref(), want, "{text:?}");
        }
    }

    #[test]
    fn networks_lose_their_host_bits() {
        for (text, want) in [
            ("203.0.113.000/025", Some("203.0.113.0/25")),
            ("10.0.0.7/8", Some("10.0.0.0/8")),
            ("0.0.0.0/0", Some("0.0.0.0/0")),
            ("fd00::0001/64", Some("fd00::/64")),
            ("10.0.0.0/33", None),
            ("10.0.0.0", None),
            ("10.0.0.0/", None),
            ("10.0.0.0/-1", None),
        ] {
            assert_eq!(net(text).map(|net| net.to_string()).as_deref(), want, "{text:?}");
        }
    }
}
