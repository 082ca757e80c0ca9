//! The replicas, as this one knows them: where agents may go (stream rule 4.6), and whether they are to go.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use distributary_cluster::Cluster;
use distributary_model::{Candidate, Conditions, Endpoint, Key, Name, Protocol};

/// Name of the port at which a replica of a Service listens for agents.
const AGENTS: &str = "agents";
/// Name of the port at which it can be asked how it stands.
const ADMIN: &str = "admin";
/// So much of the time that there is for leaving is handed out as slots; the rest is for the moves themselves.
const SLOTS: f64 = 0.7;

/// From where the replicas are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Known {
    /// They were told; none: there is nobody else.
    Told(Vec<Candidate>),
    /// They are the ready endpoints of this Service, each in the zone of its Node.
    Service(Key),
}

/// The replicas.
#[derive(Clone, Debug)]
pub struct Replicas {
    known: Known,
    own: Option<Name>,
    all: Vec<Candidate>,
    /// Where they can be asked; `None`: nobody knows.
    admins: Option<Vec<String>>,
    leaving: Option<Leaving>,
}

/// That every agent is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaving {
    /// Since when.
    pub since: Instant,
    /// How long they have.
    pub within: Duration,
}

impl Leaving {
    /// When the agent that drew this share, 0 to 1, is to begin to move.
    pub fn slot(&self, share: f64, now: Instant) -> Duration {
        let slot = self.since + self.within.mul_f64(SLOTS * share.clamp(0.0, 1.0));
        slot.saturating_duration_since(now)
    }

    /// How long there will be nobody.
    pub fn left(&self, now: Instant) -> Duration {
        (self.since + self.within).saturating_duration_since(now)
    }
}

impl Default for Replicas {
    /// There is nobody else.
    fn default() -> Self {
        Self::new(Known::Told(Vec::new()), None)
    }
}

impl Replicas {
    /// `own`: the address by which this one is known, where it has one.
    pub fn new(known: Known, own: Option<Name>) -> Self {
        let all = match &known {
            Known::Told(told) => told.clone(),
            Known::Service(_) => Vec::new(),
        };
        let alone = known == Known::Told(Vec::new());
        let admins = alone.then(Vec::new);
        Self { known, own, all, admins, leaving: None }
    }

    /// Those that were told can be asked there.
    #[must_use]
    pub fn asked_at(self, admins: Vec<String>) -> Self {
        match admins.is_empty() {
            true => self,
            false => Self { admins: Some(admins), ..self },
        }
    }

    /// Where all of them, this one maybe among them, can be asked how they stand: HOST:PORT of their admin ports, also of those
    /// that are not ready. `None`: there are others, and nobody knows.
    pub fn admins(&self) -> Option<Vec<String>> {
        self.admins.clone()
    }

    /// All of them, this one too.
    pub fn all(&self) -> &[Candidate] {
        &self.all
    }

    /// All but this one.
    pub fn others(&self) -> Vec<Candidate> {
        self.all.iter().filter(|one| Some(&one.address) != self.own.as_ref()).cloned().collect()
    }

    /// Whether a change of this record is one of theirs.
    pub(crate) fn concerns(&self, key: &Key) -> bool {
        matches!(&self.known, Known::Service(service) if service == key)
    }

    /// The cluster has changed.
    pub(crate) fn refresh(&mut self, cluster: &Cluster) {
        let Known::Service(key) = &self.known else { return };
        let service = cluster.table().get(key).and_then(|held| held.record.as_service());
        let endpoints = service.map_or(&[][..], |service| &service.endpoints);
        self.all = endpoints.iter().flat_map(|endpoint| candidates(endpoint, cluster)).collect();
        self.all.sort_by(|a, b| a.address.cmp(&b.address));
        // Those that are not ready have agents all the same.
        let admins = endpoints.iter().flat_map(|endpoint| {
            let ports = endpoint.ports.iter().filter(|port| *port.name == *ADMIN);
            ports.map(|port| SocketAddr::new(endpoint.address, port.port).to_string())
        });
        let admins: Vec<String> = admins.collect();
        self.admins = Some(admins).filter(|admins| !admins.is_empty());
    }

    /// Every agent is to go to another within that time.
    pub(crate) fn leave(&mut self, now: Instant, within: Duration) {
        self.leaving.get_or_insert(Leaving { since: now, within });
    }

    /// Whether they are.
    pub fn leaving(&self) -> Option<Leaving> {
        self.leaving
    }
}

/// Where agents find a replica; nowhere while it is not ready, or about to end.
fn candidates(endpoint: &Endpoint, cluster: &Cluster) -> Vec<Candidate> {
    let Conditions { ready, terminating, .. } = endpoint.conditions;
    if !ready || terminating {
        return Vec::new();
    }
    let zone = cluster.node(&endpoint.node).map(|node| node.zone.clone()).unwrap_or_default();
    let ports = endpoint.ports.iter().filter(|port| port.protocol == Protocol::Tcp && *port.name == *AGENTS);
    ports
        .map(|port| {
            let address = SocketAddr::new(endpoint.address, port.port).to_string();
            Candidate { address: address.into(), zone: zone.clone(), capacity: 1 }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use distributary_cluster::{Event, Object};
    use distributary_model::ObjectKind;
    use serde_json::json;

    use super::*;

    fn upsert(kind: ObjectKind, json: &serde_json::Value) -> Event {
        Event::Upsert(Object::from_json(kind, &json.to_string()).unwrap())
    }

    fn cluster() -> Cluster {
        let mut cluster = Cluster::new("default");
        let endpoint = |last: u8, node: &str, conditions: serde_json::Value| json!({"addresses": [format!("10.0.0.{last}")], "nodeName": node, "conditions": conditions});
        let service = json!({"metadata": {"namespace": "d", "name": "servers"}, "spec": {
            "clusterIP": "10.96.0.9", "ports": [{"name": "agents", "port": 7400}, {"name": "admin", "port": 7401}]}});
        let slice = json!({
            "metadata": {"namespace": "d", "name": "servers-1", "labels": {"kubernetes.io/service-name": "servers"}},
            "addressType": "IPv4", "ports": [{"name": "agents", "port": 7400}, {"name": "admin", "port": 7401}],
            "endpoints": [
                endpoint(2, "n2", json!({"ready": true})),
                endpoint(1, "n1", json!({"ready": true})),
                endpoint(3, "n1", json!({"ready": false})),
                endpoint(4, "n1", json!({"ready": true, "terminating": true, "serving": true}))]});
        let zone = json!({"metadata": {"name": "n2", "labels": {"topology.kubernetes.io/zone": "b"}}});
        cluster.apply([
            upsert(ObjectKind::Service, &service),
            upsert(ObjectKind::EndpointSlice, &slice),
            upsert(ObjectKind::Node, &zone),
        ]);
        cluster
    }

    #[test]
    fn rule_4_6_replicas_are_the_ready_endpoints_of_their_service_in_the_zones_of_their_nodes() {
        let key = Key::service("default", "d", "servers");
        let mut replicas = Replicas::new(Known::Service(key.clone()), Some("10.0.0.1:7400".into()));
        assert!(replicas.concerns(&key) && replicas.all().is_empty());
        replicas.refresh(&cluster());
        let shown = |all: &[Candidate]| -> Vec<String> {
            all.iter().map(|one| format!("{}@{}", one.address, one.zone)).collect()
        };
        assert_eq!(shown(replicas.all()), ["10.0.0.1:7400@", "10.0.0.2:7400@b"]);
        assert_eq!(shown(&replicas.others()), ["10.0.0.2:7400@b"]);
        let asked: Vec<String> = (1..=4).map(|last| format!("10.0.0.{last}:7401")).collect();
        let admins = replicas.admins().map(BTreeSet::from_iter);
        assert_eq!(admins, Some(asked.into_iter().collect()), "also who is not ready has agents");
    }

    #[test]
    fn slots_are_spread_over_the_time_there_is_and_count_from_its_beginning() {
        let now = Instant::now();
        let leaving = Leaving { since: now, within: Duration::from_secs(10) };
        assert_eq!(leaving.slot(0.0, now), Duration::ZERO);
        assert_eq!(leaving.slot(1.0, now), Duration::from_secs(7));
        assert_eq!(leaving.slot(1.0, now + Duration::from_secs(4)), Duration::from_secs(3));
        assert_eq!(leaving.slot(0.5, now + Duration::from_secs(20)), Duration::ZERO);
        assert_eq!(leaving.left(now + Duration::from_secs(4)), Duration::from_secs(6));
    }
}
