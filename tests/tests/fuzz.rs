//! What comes from outside, broken in every way: it is refused, and nothing panics nor is left half done. `make fuzz` runs it for
//! long; PROPTEST_CASES says how often.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use bytes::Bytes;
use distributary_agent::sync::session::{Heard, Session as AgentSession};
use distributary_cluster::{Cluster, Event, Manifests, Object};
use distributary_model::{Epoch, Name, ObjectKind, Table};
use distributary_proto::v1 as pb;
use distributary_server::journal::{Journal, LOG_BYTES};
use distributary_server::session::Session as ServerSession;
use distributary_server::source::Update;
use proptest::prelude::*;
use prost::Message as _;
use serde_json::{Value, json};

const OWN: &str = "default";

/// How something is broken.
#[derive(Clone, Debug)]
enum Break {
    Flip(usize, u8),
    Cut(usize),
    Insert(usize, Vec<u8>),
    Remove(usize, usize),
    /// A number grows, or shrinks.
    Add(usize, u8),
}

fn a_break() -> impl Strategy<Value = Break> {
    prop_oneof![
        4 => (any::<usize>(), 1..=255_u8).prop_map(|(at, with)| Break::Flip(at, with)),
        1 => any::<usize>().prop_map(Break::Cut),
        2 => (any::<usize>(), proptest::collection::vec(any::<u8>(), 1..12)).prop_map(|(at, bytes)| Break::Insert(at, bytes)),
        2 => (any::<usize>(), 1..12_usize).prop_map(|(at, count)| Break::Remove(at, count)),
        2 => (any::<usize>(), any::<u8>()).prop_map(|(at, by)| Break::Add(at, by)),
    ]
}

fn broken(bytes: &[u8], breaks: &[Break]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for one in breaks {
        let place = |at: &usize| at % bytes.len().max(1);
        match one {
            _ if bytes.is_empty() => {}
            Break::Flip(at, with) => {
                let at = place(at);
                bytes[at] ^= with;
            }
            Break::Cut(at) => bytes.truncate(place(at)),
            Break::Insert(at, more) => {
                let at = place(at);
                bytes.splice(at..at, more.iter().copied());
            }
            Break::Remove(at, count) => {
                let at = place(at);
                let end = (at + count).min(bytes.len());
                bytes.drain(at..end);
            }
            Break::Add(at, by) => {
                let at = place(at);
                bytes[at] = bytes[at].wrapping_add(*by);
            }
        }
    }
    bytes
}

fn service(name: &str, ip: u8) -> (ObjectKind, Value) {
    let json = json!({"metadata": {"namespace": "shop", "name": name, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"type": "LoadBalancer", "clusterIP": format!("10.96.0.{ip}"), "externalIPs": ["192.0.2.1"],
            "sessionAffinity": "ClientIP", "loadBalancerSourceRanges": ["10.0.0.0/8"], "externalTrafficPolicy": "Local",
            "healthCheckNodePort": 30000, "ports": [{"name": "http", "port": 80, "nodePort": 30080}]},
        "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.9"}]}}});
    (ObjectKind::Service, json)
}

fn slice(name: &str, count: u8) -> (ObjectKind, Value) {
    let endpoint = |last| {
        json!({"addresses": [format!("10.1.0.{last}")], "nodeName": "n1", "zone": "a",
        "conditions": {"ready": last % 2 == 0, "terminating": last % 3 == 0},
        "hints": {"forZones": [{"name": "a"}]}})
    };
    let json = json!({"metadata": {"namespace": "shop", "name": format!("{name}-1"),
            "labels": {"kubernetes.io/service-name": name}}, "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}], "endpoints": (1..=count).map(endpoint).collect::<Value>()});
    (ObjectKind::EndpointSlice, json)
}

fn objects() -> Vec<(ObjectKind, Value)> {
    let node = json!({"metadata": {"name": "n1", "labels": {"topology.kubernetes.io/zone": "a"}},
        "spec": {"podCIDRs": ["10.1.0.0/24"], "taints": [{"key": "a", "effect": "NoSchedule"}]},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.7"}]}});
    let cidr = json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/12"]}});
    let mut all = vec![(ObjectKind::Node, node), (ObjectKind::ServiceCidr, cidr)];
    for (name, ip) in [("web", 1), ("cart", 2), ("mail", 3)] {
        all.extend([service(name, ip), slice(name, 5 * ip)]);
    }
    all
}

fn event((kind, json): &(ObjectKind, Value)) -> Event {
    Event::Upsert(Object::from_json(*kind, &json.to_string()).unwrap())
}

fn journal(epoch: u8, now: Instant) -> Journal {
    let mut journal = Journal::new(Epoch([epoch; 16]), OWN.into(), LOG_BYTES, now);
    let events = objects().iter().map(event).collect();
    let all = ObjectKind::ALL.to_vec();
    journal.commit(Update { events, listed: all.clone(), fresh: all, ..Update::default() }, now);
    journal
}

/// What both ends say when an agent that has something else comes to a server, then changes happen, and it asks for a repair.
fn recorded() -> &'static (Vec<Bytes>, Vec<Vec<u8>>) {
    static RECORDED: OnceLock<(Vec<Bytes>, Vec<Vec<u8>>)> = OnceLock::new();
    RECORDED.get_or_init(|| {
        let mut now = Instant::now();
        let (mut told, mut said) = (Vec::new(), Vec::new());
        let mut agent = AgentSession::new(OWN.into(), "n1".into()).patient(Duration::ZERO);
        for epoch in 1..=2 {
            let mut journal = journal(epoch, now);
            if epoch == 2 {
                journal.commit(Update { events: vec![event(&slice("web", 40))], ..Update::default() }, now);
            }
            let mut server = ServerSession::new(now, 0.5);
            let mut say = |server: &mut ServerSession, message: pb::AgentMessage, now| {
                said.push(message.encode_to_vec());
                server.on(message, &OWN.into(), now).unwrap();
            };
            say(&mut server, agent.hello(Vec::new(), false), now);
            for round in 0..3 {
                while let Some(bytes) = pull(&mut server, &journal, now) {
                    told.push(bytes.slice(5..));
                    let message = pb::ServerMessage::decode(&bytes[5..]).unwrap();
                    if let Heard::Say(answer) = agent.on(message, now).unwrap() {
                        say(&mut server, answer, now);
                    }
                }
                now += Duration::from_secs(40);
                let change = vec![event(&slice("cart", 20 + round))];
                journal.commit(Update { events: change, ..Update::default() }, now);
                if round == 1 {
                    say(&mut server, agent.repair("a test".into()), now);
                }
            }
            let ack = pb::Ack { through: 3, programming_micros: 5, ..pb::Ack::default() };
            let ack = pb::AgentMessage { message: Some(pb::agent_message::Message::Ack(ack)) };
            say(&mut server, ack, now);
        }
        (told, said)
    })
}

fn pull(server: &mut ServerSession, journal: &Journal, now: Instant) -> Option<Bytes> {
    let next = server.next(journal, now).ok()?;
    if next.is_none() && server.awaits_snapshot() {
        journal.blueprint().into_iter().for_each(|plan| journal.install(plan.build()));
        return server.next(journal, now).ok()?.map(|(bytes, _)| bytes);
    }
    next.map(|(bytes, _)| bytes)
}

/// The digest that is kept as it goes is that of the records.
fn is_whole(table: &Table) -> bool {
    let mut anew = Table::default();
    table.iter().for_each(|(key, held)| _ = anew.set(key, Some(held.clone())));
    anew.root(OWN) == table.root(OWN)
}

proptest! {
    /// A server that says anything: the agent refuses it, and holds what it can vouch for.
    #[test]
    fn whatever_a_server_says(
        breaks in proptest::collection::vec((any::<usize>(), proptest::collection::vec(a_break(), 1..4)), 0..4),
        swaps in proptest::collection::vec((any::<usize>(), any::<usize>()), 0..3),
    ) {
        let mut stream: Vec<Vec<u8>> = recorded().0.iter().map(|bytes| bytes.to_vec()).collect();
        let count = stream.len();
        swaps.iter().for_each(|(a, b)| stream.swap(a % count, b % count));
        for (at, breaks) in &breaks {
            let at = at % count;
            stream[at] = broken(&stream[at], breaks);
        }
        let now = Instant::now();
        let mut agent = AgentSession::new(OWN.into(), "n1".into());
        let _ = agent.hello(Vec::new(), false);
        for bytes in stream {
            let Ok(message) = pb::ServerMessage::decode(&bytes[..]) else { break };
            if agent.on(message, now).is_err() {
                // The next stream.
                let _ = agent.hello(Vec::new(), false);
            }
        }
        prop_assert!(is_whole(agent.table()));
    }

    /// An agent that says anything: the server ends the stream, or goes on.
    #[test]
    fn whatever_an_agent_says(
        order in proptest::collection::vec(any::<usize>(), 0..12),
        breaks in proptest::collection::vec((any::<usize>(), proptest::collection::vec(a_break(), 1..4)), 0..4),
        pulls in 0..40_usize,
    ) {
        let said = &recorded().1;
        let mut stream: Vec<Vec<u8>> = vec![said[0].clone()];
        stream.extend(order.iter().map(|index| said[index % said.len()].clone()));
        for (at, breaks) in &breaks {
            let at = at % stream.len();
            stream[at] = broken(&stream[at], breaks);
        }
        let mut now = Instant::now();
        let journal = journal(1, now);
        let own = Name::from(OWN);
        let mut server = ServerSession::new(now, 0.5);
        'stream: for bytes in stream {
            let Ok(message) = pb::AgentMessage::decode(&bytes[..]) else { break };
            if server.on(message, &own, now).is_err() {
                break;
            }
            for _ in 0..pulls {
                match pull(&mut server, &journal, now) {
                    Some(_) => {}
                    None if server.is_over() => break 'stream,
                    None => break,
                }
            }
            now += Duration::from_secs(7);
        }
    }

    /// Objects of the API that are no such objects.
    #[test]
    fn whatever_the_api_says(
        which in any::<usize>(),
        as_kind in 0..ObjectKind::ALL.len(),
        breaks in proptest::collection::vec(a_break(), 0..6),
    ) {
        let all = objects();
        let text = all[which % all.len()].1.to_string();
        let text = String::from_utf8_lossy(&broken(text.as_bytes(), &breaks)).into_owned();
        if let Ok(object) = Object::from_json(ObjectKind::ALL[as_kind], &text) {
            let mut cluster = Cluster::new(OWN);
            cluster.apply(all.iter().map(event));
            cluster.apply([Event::Upsert(object)]);
            prop_assert!(is_whole(cluster.table()));
        }
    }

    /// Files of manifests that are none.
    #[test]
    fn whatever_a_manifest_says(breaks in proptest::collection::vec(a_break(), 0..6), yaml in any::<bool>()) {
        let text = match yaml {
            true => "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec:\n  clusterIP: 10.96.0.1\n  ports:\n  - {name: http, port: 80}\n---\napiVersion: v1\nkind: Node\nmetadata: {name: n1}\n".to_owned(),
            false => json!({"apiVersion": "v1", "kind": "List", "items": [{"apiVersion": "v1", "kind": "Service",
                "metadata": {"name": "web", "namespace": "shop"}, "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}}]}).to_string(),
        };
        let file = if yaml { "a.yaml" } else { "a.json" };
        let mut manifests = Manifests::default();
        let files = BTreeMap::from([(file.to_owned(), broken(text.as_bytes(), &breaks))]);
        let (events, _) = manifests.apply(files);
        let mut cluster = Cluster::new(OWN);
        cluster.apply(events);
        prop_assert!(is_whole(cluster.table()));
    }
}

#[test]
fn what_is_recorded_says_everything_that_there_is_to_say() {
    let (told, said) = recorded();
    let kind = |bytes: &Bytes| {
        pb::ServerMessage::decode(bytes.clone())
            .unwrap()
            .message
            .map(|message| std::mem::discriminant(&message))
    };
    let kinds: std::collections::HashSet<_> = told.iter().map(kind).collect();
    assert!(kinds.len() >= 6, "Begin, Node, Frame, BucketLists, End, Heartbeat");
    assert!(said.len() >= 5);
}
