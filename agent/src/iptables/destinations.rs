//! Where rules that somebody wrote lead packets of a protocol from: ours of an earlier run, or kube-proxy's.

use std::collections::BTreeSet;
use std::net::IpAddr;

use distributary_model::Protocol;
use ipnet::IpNet;

use super::names::{self, EXTERNAL_SERVICES, NODEPORTS, SERVICES};
use super::parse::{Dump, Table, argument};
use crate::plan::Claim;

/// The addresses and node ports that the kernel's rules translate or refuse, of one protocol. Node ports are in the
/// chains of kube-proxy's names without a destination, addresses with one.
pub fn destinations(kernel: &Dump<'_>, protocol: Protocol) -> BTreeSet<Claim> {
    let chains = [Table::Nat, Table::Filter].into_iter().flat_map(|table| kernel.chains(table));
    let chains = chains.filter(|(name, _)| leads_on(name));
    chains.flat_map(|(_, rules)| rules.iter().filter_map(|rule| destination(rule, protocol))).collect()
}

fn leads_on(chain: &str) -> bool {
    [SERVICES, NODEPORTS, EXTERNAL_SERVICES].contains(&chain) || names::is_bucket(chain)
}

fn destination(rule: &str, protocol: Protocol) -> Option<Claim> {
    let (false, of) = argument(rule, "-p")? else { return None };
    if of != protocol.as_str() {
        return None;
    }
    let (false, port) = argument(rule, "--dport")? else { return None };
    let port = port.parse().ok()?;
    match argument(rule, "-d") {
        Some((false, network)) => {
            let network: IpNet =
                network.parse().ok().or_else(|| Some(network.parse::<IpAddr>().ok()?.into()))?;
            (network.prefix_len() == network.max_prefix_len())
                .then(|| Claim::Address(network.addr(), protocol, port))
        }
        Some((true, _)) => None,
        None => Some(Claim::NodePort(protocol, port)),
    }
}
