//! Three replicas and a real agent: it learns where the others are, and goes there without a gap when it is asked to.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;
use distributary_agent::sync::choice::Choice;
use distributary_e2e::deployed::{self, PATIENCE};
use distributary_e2e::manifests::Manifests;
use distributary_e2e::netns::Namespace;
use distributary_e2e::node::AGENT_ADMIN;
use distributary_e2e::objects;
use distributary_e2e::process::{Running, Signal, binary};
use distributary_e2e::wait::until;
use distributary_model::Candidate;
use serde_json::{Value, json};

const REPLICAS: [&str; 3] = ["127.0.0.2:7400", "127.0.0.3:7400", "127.0.0.4:7400"];
const LOST: &str = "no stream; the rules stay as they are";
const ASKED: &str = "asking the agents to go to other replicas";
const LATE: &str = "not all agents have gone in time";

struct Fleet {
    place: Arc<Namespace>,
    manifests: Manifests,
    servers: BTreeMap<&'static str, Running>,
    agent: Option<Running>,
}

impl Fleet {
    /// Three servers with these flags that all follow the same manifests, where they are the endpoints of a Service.
    fn start(flags: &[&str]) -> Result<Self> {
        let (place, manifests) = (Arc::new(Namespace::new()?), Manifests::new()?);
        let mut fleet = Self { place, manifests, servers: BTreeMap::new(), agent: None };
        fleet.manifests.put(
            "nodes.json",
            &[json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-a"}})],
        )?;
        fleet.write(&REPLICAS)?;
        for replica in REPLICAS {
            let address: SocketAddr = replica.parse()?;
            let (source, admin) = (fleet.manifests.source(), format!("{}:7401", address.ip()));
            let common = ["--source", &source, "--admin-listen", &admin, "--drain-within", "20s"];
            let server = deployed::server_at(&fleet.place, replica, &[&common, flags].concat())?;
            fleet.servers.insert(replica, server);
            let _ = deployed::wait_ok(&fleet.place, admin.parse()?, "/readyz");
        }
        Ok(fleet)
    }

    /// The Service of these replicas.
    fn write(&self, replicas: &[&str]) -> Result<()> {
        let ports = json!([{"name": "agents", "port": 7400}]);
        let spec = json!({"clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"], "ipFamilies": ["IPv4"], "ports": ports});
        let endpoint = |address: &&str| {
            let ip = address.split(':').next().unwrap_or_default();
            json!({"addresses": [ip], "conditions": {"ready": true}})
        };
        let endpoints: Value = replicas.iter().map(endpoint).collect();
        let ports = json!([{"name": "agents", "protocol": "TCP", "port": 7400}]);
        let slice = objects::endpoint_slice("distributary", "servers-1", "servers", &ports, &endpoints);
        self.manifests.put("servers.json", &[objects::service("distributary", "servers", &spec), slice])
    }

    /// An agent that is told of one replica alone.
    fn follow(&mut self, replica: &str) -> Result<()> {
        let mut command = std::process::Command::new(binary("distributary-agent"));
        command.args(["run", "--server", replica, "--node-name", "node-a", "--conntrack-max-per-core", "0"]);
        command.args(["--log", "info", "--log-format", "json"]);
        self.agent = Some(self.place.spawn("distributary-agent", &command)?);
        Ok(())
    }

    /// Waits until the agent is in step with such a replica, and says which.
    fn followed(&self, which: impl Fn(&str) -> bool) -> &'static str {
        until("a replica to be followed", PATIENCE, || {
            let (_, status) = deployed::get(&self.place, AGENT_ADMIN, "/debug/stream")?;
            let status: Value = serde_json::from_str(&status).ok()?;
            let server = status["server"].as_str().filter(|_| status["inStep"] == true)?;
            REPLICAS.into_iter().find(|replica| *replica == server && which(replica))
        })
    }

    fn lost(&self) -> usize {
        self.agent.as_ref().map_or(0, |agent| deployed::logged(agent, LOST).len())
    }
}

#[test]
fn rule_4_6_an_agent_that_knows_one_replica_finds_the_others_and_goes_there_when_it_ends() -> Result<()> {
    let mut fleet = Fleet::start(&["--peers-service", "distributary/servers"])?;
    fleet.follow(REPLICAS[0])?;
    let first = fleet.followed(|_| true);
    assert_eq!(first, REPLICAS[0]);
    let mut ending = fleet.servers.remove(first).expect("it runs");
    ending.signal(Signal::SIGTERM)?;
    let second = fleet.followed(|replica| replica != first);
    assert_eq!(fleet.lost(), 0, "there was a stream all the time");
    let status = ending.wait(PATIENCE).expect("it ends");
    assert!(status.success(), "{status}");
    let logged = [ASKED, LATE].map(|line| deployed::logged(&ending, line).len());
    assert_eq!(logged, [1, 0], "it ends when the last agent has gone");

    // It is known that there are others, and who, although nobody told the agent on its command line.
    fleet.servers.remove(second).expect("it runs").kill9();
    let third = fleet.followed(|replica| replica != first && replica != second);
    assert!(fleet.servers.contains_key(third));
    Ok(())
}

#[test]
fn an_agent_goes_to_the_replica_that_its_name_chooses_when_its_connection_is_old() -> Result<()> {
    let peers = REPLICAS.join(",");
    let mut fleet = Fleet::start(&["--peers", &peers, "--max-connection-age", "1s"])?;
    let mut choice = Choice::new("node-a".into());
    let candidate = |address: &str| Candidate { address: address.into(), zone: "".into(), capacity: 1 };
    choice.named(&REPLICAS.map(candidate));
    let ranked: Vec<String> = choice.ranked().into_iter().map(|server| server.address).collect();
    fleet.follow(&ranked[2])?;
    let found = fleet.followed(|replica| replica == ranked[0]);
    assert_eq!((found, fleet.lost()), (&*ranked[0], 0));
    Ok(())
}

#[test]
fn a_server_that_knows_of_no_other_ends_at_once() -> Result<()> {
    let mut fleet = Fleet::start(&[])?;
    fleet.follow(REPLICAS[0])?;
    let first = fleet.followed(|_| true);
    let mut ending = fleet.servers.remove(first).expect("it runs");
    assert!(ending.terminate(PATIENCE)?.success());
    assert_eq!(deployed::logged(&ending, ASKED), Vec::<Value>::new());
    Ok(())
}
