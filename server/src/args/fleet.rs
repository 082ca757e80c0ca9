//! What a server knows of the other replicas, and how agents come to it and leave it.

use std::time::Duration;

use distributary_model::{Candidate, Key, Name, limits};
use distributary_runtime::duration;

use crate::journal::JOIN_BYTES;
use crate::replicas::{Known, Replicas};

/// The other replicas.
#[derive(Clone, Debug, clap::Args)]
pub struct FleetArgs {
    /// All replicas, this one too, as agents reach them; agents spread over them, those of their own zone first
    #[arg(
        long,
        env = "DISTRIBUTARY_PEERS",
        value_delimiter = ',',
        value_name = "HOST:PORT[@ZONE][,…]",
        value_parser = peer
    )]
    pub peers: Vec<Candidate>,

    /// The Service whose endpoints are the replicas, by their port `agents`; it must have a cluster IP
    #[arg(
        long,
        env = "DISTRIBUTARY_PEERS_SERVICE",
        value_name = "NAMESPACE/NAME",
        conflicts_with = "peers",
        value_parser = namespaced
    )]
    pub peers_service: Option<(Name, Name)>,

    /// The admin ports of all replicas, to tell whether every node has something; with --peers-service they are the ports `admin`
    #[arg(
        long,
        env = "DISTRIBUTARY_ADMIN_PEERS",
        value_delimiter = ',',
        value_name = "HOST:PORT[,…]",
        conflicts_with = "peers_service",
        value_parser = address
    )]
    pub admin_peers: Vec<Name>,

    /// How the replicas know this one: agents that are to leave it go to the others [default: --listen, where that is an
    /// address of its own]
    #[arg(long, env = "DISTRIBUTARY_ADVERTISE", value_name = "HOST:PORT", value_parser = address)]
    pub advertise: Option<Name>,

    /// How long agents have to go to other replicas when this one is to end
    #[arg(long, env = "DISTRIBUTARY_DRAIN_WITHIN", value_name = "DURATION", default_value = "25s",
        value_parser = duration::parse)]
    pub drain_within: Duration,

    /// After so long, ± 20 %, an agent is asked to choose its replica anew; 0s: never
    #[arg(long, env = "DISTRIBUTARY_MAX_CONNECTION_AGE", value_name = "DURATION", default_value = "1h",
        value_parser = duration::parse)]
    pub max_connection_age: Duration,

    /// How long what a list has lost is kept, where it is so much that it is doubtful; 0s believes every list
    #[arg(long, env = "DISTRIBUTARY_HOLD_REMOVALS", value_name = "DURATION", default_value = "1m",
        value_parser = duration::parse)]
    pub hold_removals: Duration,

    /// How much is given to agents that join, or have to be repaired; those beyond are told when, and where else, to come
    #[arg(long, env = "DISTRIBUTARY_JOIN_BYTES_PER_SECOND", value_name = "BYTES", default_value_t = JOIN_BYTES,
        value_parser = clap::value_parser!(u64).range(1..))]
    pub join_bytes_per_second: u64,
}

impl FleetArgs {
    /// The replicas of the cluster `own`, for a server that listens there.
    pub fn replicas(&self, own: &Name, listen: std::net::SocketAddr) -> Replicas {
        let known = match &self.peers_service {
            Some((namespace, name)) => {
                Known::Service(Key::service(own.clone(), namespace.clone(), name.clone()))
            }
            None => Known::Told(self.peers.clone()),
        };
        let listen = (!listen.ip().is_unspecified()).then(|| Name::from(listen.to_string()));
        let admins = self.admin_peers.iter().map(ToString::to_string).collect();
        Replicas::new(known, self.advertise.clone().or(listen)).asked_at(admins)
    }

    /// After how long a connection is old.
    pub fn connection_age(&self) -> Option<Duration> {
        Some(self.max_connection_age).filter(|age| !age.is_zero())
    }
}

fn address(text: &str) -> Result<Name, String> {
    let port =
        text.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
    match port {
        Some(Ok(1..)) if text.len() <= limits::STRING_BYTES => Ok(text.into()),
        _ => Err(format!("expected HOST:PORT, not {text:?}")),
    }
}

fn peer(text: &str) -> Result<Candidate, String> {
    let (at, zone) = text.split_once('@').unwrap_or((text, ""));
    if zone.len() > limits::STRING_BYTES {
        return Err(format!("a zone of {} bytes", zone.len()));
    }
    Ok(Candidate { address: address(at)?, zone: zone.into(), capacity: 1 })
}

fn namespaced(text: &str) -> Result<(Name, Name), String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok((namespace.into(), name.into()))
        }
        _ => Err(format!("expected NAMESPACE/NAME, not {text:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_have_an_address_and_may_have_a_zone() {
        let candidate =
            |address: &str, zone: &str| Candidate { address: address.into(), zone: zone.into(), capacity: 1 };
        assert_eq!(peer("10.0.0.1:7400"), Ok(candidate("10.0.0.1:7400", "")));
        assert_eq!(peer("[fd00::1]:7400@b"), Ok(candidate("[fd00::1]:7400", "b")));
        for wrong in ["", "10.0.0.1", ":7400", "a:0", "a:70000", "a:b@c"] {
            assert!(peer(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_service_is_named_with_its_namespace() {
        assert_eq!(namespaced("kube-system/servers"), Ok(("kube-system".into(), "servers".into())));
        for wrong in ["servers", "/servers", "kube-system/", "a/b/c"] {
            assert!(namespaced(wrong).is_err(), "{wrong:?}");
        }
    }
}
