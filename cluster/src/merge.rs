//! The slices of a Service become its endpoints. The rule: of several that claim the same port name, protocol, address
//! and port, one that is not terminating wins, then a ready one, then a serving one, then that of the lowest slice name.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use distributary_model::{Conditions, Endpoint, EndpointPort, Interner, Name};

use crate::slice::EndpointSlice;

/// A slice as it is kept: what many share is shared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Slice {
    ports: Arc<[EndpointPort]>,
    /// Sorted, so that order in the object means nothing.
    entries: Box<[Kept]>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Kept {
    address: std::net::IpAddr,
    conditions: Conditions,
    node: Name,
    zone_hints: Arc<[Name]>,
    node_hints: Arc<[Name]>,
}

#[cfg(test)]
pub(crate) const KEPT_BYTES: usize = size_of::<Kept>();

impl Slice {
    pub(crate) fn keep(slice: EndpointSlice, interner: &mut Interner) -> Self {
        let mut ports = slice.ports;
        for port in &mut ports {
            port.name = interner.name(&port.name);
        }
        let mut list = |names: Vec<Name>| {
            let names = names.iter().map(|name| interner.name(name)).collect();
            interner.list(names)
        };
        let mut entries: Vec<Kept> = Vec::with_capacity(slice.entries.len());
        for entry in slice.entries {
            entries.push(Kept {
                address: entry.address,
                conditions: entry.conditions,
                node: entry.node,
                zone_hints: list(entry.zone_hints),
                node_hints: list(entry.node_hints),
            });
        }
        for entry in &mut entries {
            entry.node = interner.name(&entry.node);
        }
        entries.sort_unstable();
        entries.dedup();
        Self { ports: interner.ports(ports), entries: entries.into() }
    }

    /// Of its endpoints.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = std::net::IpAddr> {
        self.entries.iter().map(|entry| entry.address)
    }
}

/// The endpoints of all slices of a Service, in canonical form.
pub(crate) fn endpoints(slices: &BTreeMap<Name, Slice>, interner: &mut Interner) -> Vec<Endpoint> {
    // One slice without an address twice is by far the most common, and needs no contest.
    let mut claims: Vec<(&Slice, &Kept)> =
        Vec::with_capacity(slices.values().map(|one| one.entries.len()).sum());
    for slice in slices.values().filter(|slice| !slice.ports.is_empty()) {
        claims.extend(slice.entries.iter().map(|entry| (slice, entry)));
    }
    // Stable: among equals the lowest slice name stays first, and inside of a slice the order of the entries.
    claims.sort_by_key(|(_, entry)| {
        let Conditions { ready, serving, terminating } = entry.conditions;
        (entry.address, terminating, !ready, !serving)
    });
    let mut endpoints = Vec::with_capacity(claims.len());
    for group in claims.chunk_by(|(_, a), (_, b)| a.address == b.address) {
        match group {
            [(slice, entry)] => endpoints.push(endpoint(entry, slice.ports.clone())),
            _ => contest(group, &mut endpoints, interner),
        }
    }
    endpoints.sort_unstable();
    endpoints.shrink_to_fit();
    endpoints
}

/// Several claims of one address, best first: each takes the ports that no better one has.
fn contest(group: &[(&Slice, &Kept)], endpoints: &mut Vec<Endpoint>, interner: &mut Interner) {
    let mut taken: BTreeSet<&EndpointPort> = BTreeSet::new();
    let mut winners: Vec<(&Kept, Vec<EndpointPort>)> = Vec::new();
    for (slice, entry) in group {
        let free: Vec<&EndpointPort> = slice.ports.iter().filter(|port| !taken.contains(port)).collect();
        if free.is_empty() {
            continue;
        }
        taken.extend(free.iter().copied());
        let ports = free.into_iter().cloned();
        match winners.iter_mut().find(|(winner, _)| winner == entry) {
            Some((_, held)) => held.extend(ports),
            None => winners.push((entry, ports.collect())),
        }
    }
    endpoints.extend(winners.into_iter().map(|(entry, ports)| endpoint(entry, interner.ports(ports))));
}

fn endpoint(entry: &Kept, ports: Arc<[EndpointPort]>) -> Endpoint {
    Endpoint {
        address: entry.address,
        ports,
        conditions: entry.conditions,
        node: entry.node.clone(),
        zone_hints: entry.zone_hints.clone(),
        node_hints: entry.node_hints.clone(),
        cluster: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slice::Entry;
    use crate::{Meta, ObjectKey};
    use distributary_model::testing::{any_endpoint, endpoint as an};
    use distributary_model::{ObjectKind, Protocol};
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn slice(endpoints: &[Endpoint]) -> EndpointSlice {
        let key = ObjectKey { kind: ObjectKind::EndpointSlice, namespace: "n".into(), name: "s".into() };
        EndpointSlice {
            meta: Meta { key, resource_version: 0, problems: Vec::new() },
            service: Some("web".into()),
            ports: endpoints.first().map_or_else(Vec::new, |one| one.ports.to_vec()),
            entries: endpoints
                .iter()
                .map(|one| Entry {
                    address: one.address,
                    conditions: one.conditions,
                    node: one.node.clone(),
                    zone_hints: one.zone_hints.to_vec(),
                    node_hints: one.node_hints.to_vec(),
                })
                .collect(),
            trigger: None,
        }
    }

    fn merged(slices: &[(&str, &[Endpoint])]) -> Vec<Endpoint> {
        let mut interner = Interner::default();
        let slices = slices
            .iter()
            .map(|(name, endpoints)| (Name::from(*name), Slice::keep(slice(endpoints), &mut interner)))
            .collect();
        endpoints(&slices, &mut interner)
    }

    #[test]
    fn the_best_conditions_win_in_any_order() {
        let live = an("10.0.0.1", "http", 80).on("n1");
        let unready = live.clone().conditions(false, true, false).on("n2");
        let dying = live.clone().terminating();
        let dying_ready = live.clone().conditions(true, true, true);
        for (first, second, want) in [
            (&live, &dying, &live),
            (&dying, &live, &live),
            (&unready, &live, &live),
            (&unready, &dying_ready, &unready),
            (&dying, &dying_ready, &dying_ready),
        ] {
            let got = merged(&[("a", std::slice::from_ref(first)), ("b", std::slice::from_ref(second))]);
            assert_eq!(got, std::slice::from_ref(want));
            let got = merged(&[("a", &[first.clone(), second.clone()])]);
            assert_eq!(got, std::slice::from_ref(want));
        }
    }

    #[test]
    fn among_equals_the_lowest_slice_name_wins() {
        let (one, other) = (an("10.0.0.1", "http", 80).on("n1"), an("10.0.0.1", "http", 80).on("n2"));
        assert_eq!(merged(&[("a", std::slice::from_ref(&other)), ("b", &[one])]), [other]);
    }

    #[test]
    fn an_address_with_two_port_numbers_serves_at_both() {
        let (one, other) = (an("10.0.0.1", "http", 80), an("10.0.0.1", "http", 81));
        let got = merged(&[("a", &[one]), ("b", &[other])]);
        assert_eq!(got.len(), 1);
        assert_eq!(got[0].ports.iter().map(|port| port.port).collect::<Vec<_>>(), [80, 81]);
    }

    #[test]
    fn ports_with_different_conditions_are_two_records() {
        let (one, other) =
            (an("10.0.0.1", "http", 80), an("10.0.0.1", "dns", 53).protocol(Protocol::Udp).terminating());
        let got = merged(&[("a", std::slice::from_ref(&one)), ("b", std::slice::from_ref(&other))]);
        assert_eq!(got, [other, one]);
    }

    #[test]
    fn a_slice_without_ports_gives_nothing() {
        let mut silent = an("10.0.0.1", "http", 80);
        silent.ports = Arc::default();
        assert_eq!(merged(&[("a", &[silent])]), []);
    }

    proptest! {
        #[test]
        fn merging_does_not_depend_on_order(endpoints in vec(any_endpoint(), 0..8), turn in 0..8_usize) {
            // All of a slice have its ports.
            let ports = endpoints.first().map(|one| one.ports.clone()).unwrap_or_default();
            let mut endpoints: Vec<Endpoint> =
                endpoints.into_iter().map(|one| Endpoint { ports: ports.clone(), ..one }).collect();
            let before = merged(&[("a", &endpoints)]);
            let by = turn.min(endpoints.len());
            endpoints.rotate_left(by);
            prop_assert_eq!(&before, &merged(&[("a", &endpoints)]));
            endpoints.reverse();
            prop_assert_eq!(&before, &merged(&[("a", &endpoints)]));
        }

        #[test]
        fn every_port_of_an_address_is_there_once(slices in vec(vec(any_endpoint(), 1..5), 1..4)) {
            let named: Vec<(String, Vec<Endpoint>)> =
                slices.into_iter().enumerate().map(|(i, list)| (i.to_string(), list)).collect();
            let named: Vec<(&str, &[Endpoint])> = named.iter().map(|(name, list)| (&**name, &**list)).collect();
            let got = merged(&named);
            let mut claims: Vec<_> =
                got.iter().flat_map(|one| one.ports.iter().map(|port| (one.address, port.clone()))).collect();
            let all = claims.len();
            claims.sort();
            claims.dedup();
            prop_assert_eq!(all, claims.len());
            prop_assert!(got.is_sorted());
        }
    }
}
