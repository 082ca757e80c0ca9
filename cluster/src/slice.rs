//! EndpointSlices, as far as they matter.

use std::net::IpAddr;

use distributary_model::{Conditions, EndpointPort, Name, ObjectKind};
use jiff::Timestamp;
use serde::Deserialize;

use crate::lean::{self, Metadata, Text, or_default};
use crate::meta::Meta;

/// An EndpointSlice, converted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// What every object has.
    pub meta: Meta,
    /// The Service that it belongs to, in its own namespace; `None`: to nobody, or it is not for us.
    pub service: Option<Name>,
    /// Its ports, sorted and unique.
    pub ports: Vec<EndpointPort>,
    /// Its endpoints.
    pub entries: Vec<Entry>,
    /// What led to its newest content, where it says so.
    pub trigger: Option<Trigger>,
}

/// The moment at which a slice had to change, as whoever wrote the slice says: a Pod became ready, a Service was edited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Trigger {
    /// By that one's clock.
    pub at: Timestamp,
    /// The slice is of IPv6.
    pub v6: bool,
}

/// An endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// The first of its addresses.
    pub address: IpAddr,
    /// Its conditions.
    pub conditions: Conditions,
    /// Its Node; empty: none.
    pub node: Name,
    /// hints.forZones
    pub zone_hints: Vec<Name>,
    /// hints.forNodes
    pub node_hints: Vec<Name>,
}

#[derive(Debug, Default, Deserialize)]
struct Labels {
    #[serde(default, rename = "kubernetes.io/service-name", deserialize_with = "or_default")]
    service: String,
    #[serde(rename = "service.kubernetes.io/headless")]
    headless: Option<serde::de::IgnoredAny>,
}

#[derive(Debug, Default, Deserialize)]
struct Annotations {
    #[serde(default, rename = "endpoints.kubernetes.io/last-change-trigger-time")]
    triggered: Option<Text<Timestamp>>,
}

/// The shape that is read.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Lean {
    #[serde(default, deserialize_with = "or_default")]
    metadata: Metadata<Labels, Annotations>,
    #[serde(default, deserialize_with = "or_default")]
    address_type: String,
    #[serde(default, deserialize_with = "or_default")]
    endpoints: Vec<LeanEndpoint>,
    #[serde(default, deserialize_with = "or_default")]
    ports: Vec<LeanPort>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct LeanEndpoint {
    #[serde(default, deserialize_with = "first")]
    addresses: Option<Text<IpAddr>>,
    #[serde(default, deserialize_with = "or_default")]
    conditions: LeanConditions,
    #[serde(default)]
    node_name: Option<Name>,
    #[serde(default, deserialize_with = "or_default")]
    hints: LeanHints,
}

#[derive(Debug, Default, Deserialize)]
struct LeanConditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct LeanHints {
    #[serde(default, deserialize_with = "or_default")]
    for_zones: Vec<LeanHint>,
    #[serde(default, deserialize_with = "or_default")]
    for_nodes: Vec<LeanHint>,
}

#[derive(Debug, Deserialize)]
struct LeanHint {
    #[serde(default)]
    name: Name,
}

#[derive(Debug, Deserialize)]
struct LeanPort {
    name: Option<Name>,
    protocol: Option<String>,
    port: Option<i64>,
}

/// Only the first address of an endpoint counts; the others are not even kept while reading.
fn first<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Text<IpAddr>>, D::Error> {
    struct First;
    impl<'de> serde::de::Visitor<'de> for First {
        type Value = Option<Text<IpAddr>>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a list of addresses")
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_none<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_some<D: serde::Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
            from.deserialize_seq(self)
        }

        fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let first = list.next_element()?;
            while list.next_element::<serde::de::IgnoredAny>()?.is_some() {}
            Ok(first)
        }
    }
    from.deserialize_option(First)
}

impl EndpointSlice {
    /// `None` where it has no name.
    pub(crate) fn convert(lean: Lean) -> Option<Self> {
        let Lean { metadata, address_type, endpoints, ports } = lean;
        let meta = Meta::of(ObjectKind::EndpointSlice, &metadata)?;
        let mut slice = Self { meta, service: None, ports: Vec::new(), entries: Vec::new(), trigger: None };
        // These are not watched in a cluster; in a directory they must not count either.
        if metadata.labels.headless.is_some() {
            return Some(slice);
        }
        let v4 = match &*address_type {
            "IPv4" => true,
            "IPv6" => false,
            "FQDN" => return Some(slice),
            other => {
                slice.meta.problem(format!("addressType is {other:?}, not IPv4 or IPv6: it is ignored"));
                return Some(slice);
            }
        };
        if metadata.labels.service.is_empty() {
            let what = "the label kubernetes.io/service-name is missing: it belongs to no Service";
            slice.meta.problem(what.to_owned());
            return Some(slice);
        }
        slice.service = Some(Name::from(metadata.labels.service));
        match metadata.annotations.triggered {
            None => {}
            Some(Text::Good(at)) => slice.trigger = Some(Trigger { at, v6: !v4 }),
            Some(Text::Bad(text)) => {
                slice.meta.problem(format!("the trigger time {text:?} is not of RFC 3339 and is ignored"));
            }
        }
        slice.read_ports(ports);
        slice.entries.reserve_exact(endpoints.len());
        for endpoint in endpoints {
            slice.read_endpoint(endpoint, v4);
        }
        Some(slice)
    }

    fn read_ports(&mut self, ports: Vec<LeanPort>) {
        for LeanPort { name, protocol, port } in ports {
            let Some(name) = name else {
                self.meta.problem("a port without a name is ignored".to_owned());
                continue;
            };
            let Some(known) = lean::protocol(protocol.as_deref()) else {
                let protocol = protocol.unwrap_or_default();
                self.meta.problem(format!("port {name:?} of unknown protocol {protocol:?} is ignored"));
                continue;
            };
            let Some(port) = port.and_then(lean::port) else {
                let found = port.map_or_else(|| "no number".to_owned(), |port| format!("number {port}"));
                self.meta
                    .problem(format!("port {name:?} with {found} is ignored: all ports cannot be served"));
                continue;
            };
            self.ports.push(EndpointPort { name, protocol: known, port });
        }
        self.ports.sort_unstable();
        self.ports.dedup();
    }

    fn read_endpoint(&mut self, endpoint: LeanEndpoint, v4: bool) {
        let LeanEndpoint { addresses, conditions, node_name, hints } = endpoint;
        let address = match addresses {
            None => return,
            Some(Text::Good(address)) if address.is_ipv4() == v4 => address,
            Some(Text::Good(address)) => {
                let family = if v4 { "IPv4" } else { "IPv6" };
                self.meta.problem(format!("endpoint {address} in a slice of {family} is ignored"));
                return;
            }
            Some(Text::Bad(text)) => {
                self.meta.problem(format!("endpoint {text:?} is no IP address and is ignored"));
                return;
            }
        };
        let names = |hints: Vec<LeanHint>| {
            let mut names: Vec<Name> = hints.into_iter().map(|hint| hint.name).collect();
            names.sort_unstable();
            names.dedup();
            names
        };
        self.entries.push(Entry {
            address,
            conditions: Conditions {
                ready: conditions.ready.unwrap_or(true),
                serving: conditions.serving.unwrap_or(true),
                terminating: conditions.terminating.unwrap_or(false),
            },
            node: node_name.unwrap_or_default(),
            zone_hints: names(hints.for_zones),
            node_hints: names(hints.for_nodes),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Object;

    fn slice(body: &str) -> EndpointSlice {
        let json = format!(
            r#"{{"metadata": {{"name": "s", "namespace": "n", "labels": {{"kubernetes.io/service-name": "web"}}}}, {body}}}"#
        );
        match Object::from_json(ObjectKind::EndpointSlice, &json) {
            Ok(Object::EndpointSlice(slice)) => slice,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn absent_conditions_are_ready_serving_and_not_terminating() {
        let slice = slice(
            r#""addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]},
            {"addresses": ["10.0.0.2"], "conditions": {"ready": false, "serving": true, "terminating": true}},
            {"addresses": ["10.0.0.3"], "conditions": {"ready": true, "serving": false}}]"#,
        );
        let of = |i: usize| (slice.entries[i].conditions, &*slice.entries[i].node);
        assert_eq!(of(0), (Conditions::default(), ""));
        assert_eq!(of(1).0, Conditions { ready: false, serving: true, terminating: true });
        assert_eq!(of(2).0, Conditions { ready: true, serving: false, terminating: false });
    }

    #[test]
    fn ports_without_name_or_number_are_skipped_and_told() {
        let slice = slice(
            r#""addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}], "ports": [
            {"port": 1}, {"name": "zero", "port": 0}, {"name": "none"}, {"name": "odd", "protocol": "ICMP", "port": 2},
            {"name": "", "port": 80, "protocol": null}, {"name": "dns", "port": 53, "protocol": "UDP"}]"#,
        );
        let ports: Vec<String> =
            slice.ports.iter().map(|port| format!("{}:{}/{}", port.name, port.port, port.protocol)).collect();
        assert_eq!(ports, [":80/tcp", "dns:53/udp"]);
        assert_eq!(slice.meta.problems.len(), 4, "{:?}", slice.meta.problems);
    }

    #[test]
    fn only_the_first_address_of_the_right_family_counts() {
        let slice = slice(
            r#""addressType": "IPv4", "endpoints": [{"addresses": ["10.180.00.001", 5]}, {"addresses": []},
            {"addresses": ["fd00::1"]}, {"addresses": ["x"]}, {}]"#,
        );
        assert_eq!(slice.entries.len(), 1);
        assert_eq!(slice.entries[0].address.to_string(), "10.180.0.1");
        assert_eq!(slice.meta.problems.len(), 2, "{:?}", slice.meta.problems);
    }

    #[test]
    fn the_trigger_time_is_read_with_its_family_and_spoils_nothing() {
        let read = |family: &str, time: &str| {
            let json = format!(
                r#"{{"metadata": {{"name": "s", "labels": {{"kubernetes.io/service-name": "web"}}, "annotations": {{
                "endpoints.kubernetes.io/last-change-trigger-time": {time}, "other": "x"}}}}, "addressType": "{family}"}}"#
            );
            let Ok(Object::EndpointSlice(slice)) = Object::from_json(ObjectKind::EndpointSlice, &json) else {
                panic!("{json}")
            };
            (slice.trigger.map(|trigger| (trigger.at.as_nanosecond(), trigger.v6)), slice.meta.problems.len())
        };
        assert_eq!(read("IPv4", r#""1970-01-01T01:00:02.5+01:00""#), (Some((2_500_000_000, false)), 0));
        assert_eq!(read("IPv6", r#""1970-01-01T00:00:01.000000001Z""#), (Some((1_000_000_001, true)), 0));
        assert_eq!(read("IPv4", r#""yesterday""#), (None, 1));
        assert_eq!(read("IPv4", "null"), (None, 0));
    }

    #[test]
    fn hints_are_sets() {
        let slice = slice(
            r#""addressType": "IPv6", "endpoints": [{"addresses": ["fd00::1"], "nodeName": "n1", "hints": {
            "forZones": [{"name": "b"}, {"name": "a"}, {"name": "b"}], "forNodes": [{"name": "n1"}]}}]"#,
        );
        let Entry { zone_hints, node_hints, node, .. } = &slice.entries[0];
        assert_eq!(zone_hints.iter().map(|name| &**name).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!((node_hints.len(), &**node), (1, "n1"));
    }

    #[test]
    fn slices_of_names_and_of_headless_services_belong_to_nobody() {
        assert_eq!(
            slice(r#""addressType": "FQDN", "endpoints": [{"addresses": ["a.example"]}]"#).service,
            None
        );
        let odd = slice(r#""addressType": "IPv5""#);
        assert_eq!((odd.service, odd.meta.problems.len()), (None, 1));
        let json = r#"{"metadata": {"name": "s", "labels": {"kubernetes.io/service-name": "web",
            "service.kubernetes.io/headless": ""}}, "addressType": "IPv4"}"#;
        let Ok(Object::EndpointSlice(headless)) = Object::from_json(ObjectKind::EndpointSlice, json) else {
            panic!()
        };
        assert_eq!(headless.service, None);
        assert_eq!(headless.meta.problems, [""; 0]);
    }
}
