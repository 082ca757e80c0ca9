//! Servers, agents, their connections and the API in one thread, with a clock that is a number: everything that happens
//! follows from a seed. The agent's `Driver` and the server's `Session` and `Journal` are the real ones; what is made up
//! is the network, kernels that are maps, and time, which is another on every host.
//!
//! What must hold at any moment is checked whenever a kernel is written: no endpoint that the API never had, and none gone
//! that nobody took away.

mod figures;
mod host;
mod node;
mod replica;
mod scenario;
mod truth;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::Bytes;
use distributary_agent::sync::driver::LinkId;
use distributary_cluster::Cluster;
use distributary_model::Candidate;
use distributary_proto::v1 as pb;
use prost::Message as _;

pub use figures::Figures;
use host::Clock;
use node::Node;
use replica::Replica;
use truth::{Truth, node_name, zone};

/// Microseconds since the simulation began, by no host's clock.
type At = u64;

const MS: At = 1_000;
const SECOND: At = 1_000 * MS;

/// What is simulated.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Everything that is left to chance follows from it.
    pub seed: u64,
    /// Servers.
    pub replicas: usize,
    /// Agents, each on a node of its own.
    pub nodes: usize,
    /// Services.
    pub services: usize,
    /// Endpoints of each, as it is made.
    pub endpoints: usize,
    /// Agents come within so long.
    pub arrival: Duration,
}

/// All of it.
#[derive(Debug)]
pub struct Sim {
    now: At,
    queue: BTreeMap<(At, u64), Event>,
    count: u64,
    chance: fastrand::Rng,
    truth: Truth,
    replicas: Vec<Replica>,
    nodes: Vec<Node>,
    connections: BTreeMap<u64, Connection>,
    made: u64,
    figures: Figures,
}

/// A connection of an agent to a server.
#[derive(Debug)]
struct Connection {
    node: usize,
    link: LinkId,
    replica: usize,
    /// Nothing gets through any more, and nobody knows.
    dead: bool,
    /// The agent has closed it.
    closed: bool,
    /// When the last message either way arrives: TCP keeps the order.
    last_down: At,
    last_up: At,
    /// Messages on their way to the agent.
    underway: usize,
    /// When the server's session is to be woken.
    wake: Option<At>,
}

/// What happens.
#[derive(Debug)]
enum Event {
    Feed {
        replica: usize,
        life: u64,
    },
    List {
        replica: usize,
        life: u64,
    },
    Build {
        replica: usize,
        life: u64,
    },
    End {
        replica: usize,
        life: u64,
    },
    Dialled {
        node: usize,
        life: u64,
        link: LinkId,
        address: String,
    },
    Down {
        connection: u64,
        bytes: Bytes,
    },
    Up {
        connection: u64,
        message: Box<pb::AgentMessage>,
    },
    /// The agent learns that a connection is gone.
    Gone {
        connection: u64,
    },
    /// The server does.
    Dropped {
        connection: u64,
    },
    WakeSession {
        connection: u64,
    },
    WakeNode {
        node: usize,
        life: u64,
    },
    Written {
        node: usize,
        life: u64,
    },
    Start {
        node: usize,
    },
}

impl Sim {
    /// Everything begins at once: servers list, agents come.
    #[must_use]
    pub fn new(setup: Setup) -> Self {
        let address = |number: usize| format!("10.0.0.{}:7400", number + 1);
        let candidate =
            |number| Candidate { address: address(number).into(), zone: zone(number).into(), capacity: 1 };
        let all: Vec<Candidate> = (0..setup.replicas).map(candidate).collect();
        let mut chance = fastrand::Rng::with_seed(setup.seed);
        let base = Instant::now();
        let mut clock = || Clock::new(base, Duration::from_secs(chance.u64(0..100_000)));
        let replicas =
            (0..setup.replicas).map(|number| Replica::new(address(number), all.clone(), clock())).collect();
        let nodes = (0..setup.nodes).map(|number| Node::new(node_name(number), clock())).collect();
        let mut sim = Self {
            now: 0,
            queue: BTreeMap::new(),
            count: 0,
            truth: Truth::new(setup.services, setup.endpoints, setup.nodes),
            chance,
            replicas,
            nodes,
            connections: BTreeMap::new(),
            made: 0,
            figures: Figures::default(),
        };
        for replica in 0..setup.replicas {
            sim.start_replica(replica);
        }
        let arrival = u64::try_from(setup.arrival.as_micros()).unwrap_or(u64::MAX).max(1);
        for node in 0..setup.nodes {
            let at = sim.chance.u64(..arrival);
            sim.after(at, Event::Start { node });
        }
        sim
    }

    /// What was counted since the last time that this was asked.
    pub fn figures(&mut self) -> Figures {
        std::mem::take(&mut self.figures)
    }

    /// Lets time pass.
    ///
    /// # Errors
    /// When something happens that must never happen.
    pub fn run(&mut self, time: Duration) -> Result<()> {
        let until = self.now + u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        while let Some(entry) = self.queue.first_entry().filter(|entry| entry.key().0 <= until) {
            let ((at, _), event) = entry.remove_entry();
            self.now = at;
            self.happen(event)?;
        }
        self.now = until;
        Ok(())
    }

    /// Adds to what was counted.
    pub fn count(&mut self, more: Figures) {
        self.figures = self.figures + more;
    }

    /// How many agents have exactly what the API has, in their tables and in their kernels.
    #[must_use]
    pub fn in_step(&self) -> usize {
        let truth = self.truth();
        self.nodes.iter().filter(|node| node.has(truth.table())).count()
    }

    /// What everybody is to have.
    fn truth(&self) -> Cluster {
        let mut cluster = Cluster::new(OWN);
        cluster.apply(self.truth.all().cloned());
        cluster
    }

    fn told(&self, node: usize) -> String {
        let node = &self.nodes[node];
        format!("after {} s {} has not what the API has: {}", self.now / SECOND, node.name, node.stands())
    }

    fn after(&mut self, delay: At, event: Event) {
        self.at(self.now + delay, event);
    }

    fn at(&mut self, at: At, event: Event) {
        self.count += 1;
        self.queue.insert((at, self.count), event);
    }

    /// Of a message.
    fn latency(&mut self) -> At {
        // Now and then a packet is lost, and comes later.
        if self.chance.u8(..) == 0 {
            self.chance.u64(200 * MS..2 * SECOND)
        } else {
            self.chance.u64(100..5 * MS)
        }
    }

    fn happen(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Feed { replica, life } => self.feed(replica, life),
            Event::List { replica, life } => self.list(replica, life),
            Event::Build { replica, life } => self.build(replica, life),
            Event::End { replica, life } => self.end_if_left(replica, life),
            Event::Dialled { node, life, link, address } => self.dialled(node, life, link, &address)?,
            Event::Down { connection, bytes } => self.down(connection, &bytes)?,
            Event::Up { connection, message } => self.up(connection, *message),
            Event::Gone { connection } => self.gone(connection)?,
            Event::Dropped { connection } => self.drop_session(connection),
            Event::WakeSession { connection } => {
                let due = |one: &&mut Connection| one.wake == Some(self.now);
                if let Some(one) = self.connections.get_mut(&connection).filter(due) {
                    one.wake = None;
                    self.pump(connection);
                }
            }
            Event::WakeNode { node, life } => self.wake_node(node, life)?,
            Event::Written { node, life } => self.written(node, life)?,
            Event::Start { node } => self.start_node(node)?,
        }
        Ok(())
    }

    fn dialled(&mut self, node: usize, life: u64, link: LinkId, address: &str) -> Result<()> {
        if self.nodes[node].life != life {
            return Ok(());
        }
        let replica = self.replicas.iter().position(|one| one.address == address);
        let open = replica.filter(|replica| {
            self.replicas[*replica].process.is_some() && !self.nodes[node].cut_off.contains(replica)
        });
        let clock = self.nodes[node].clock;
        let Some(replica) = open else {
            return self.drive(node, |driver, at| driver.lost(link, "nobody answers".to_owned(), at), clock);
        };
        self.made += 1;
        let connection = Connection {
            node,
            link,
            replica,
            dead: false,
            closed: false,
            last_down: 0,
            last_up: 0,
            underway: 0,
            wake: None,
        };
        self.connections.insert(self.made, connection);
        self.nodes[node].links.insert(link, self.made);
        self.open_session(self.made);
        self.drive(node, |driver, at| driver.connected(link, at), clock)
    }

    fn down(&mut self, id: u64, bytes: &Bytes) -> Result<()> {
        let Some(connection) = self.connections.get_mut(&id) else { return Ok(()) };
        connection.underway -= 1;
        let (node, link, closed) = (connection.node, connection.link, connection.closed || connection.dead);
        if !closed {
            let message = pb::ServerMessage::decode(&bytes[5..])?;
            let clock = self.nodes[node].clock;
            self.drive(node, |driver, at| driver.heard(link, message, at), clock)?;
        }
        self.pump(id);
        Ok(())
    }

    fn gone(&mut self, id: u64) -> Result<()> {
        let Some(connection) = self.connections.get(&id).filter(|one| !one.closed && !one.dead) else {
            return Ok(());
        };
        let (node, link) = (connection.node, connection.link);
        self.forget(id);
        let clock = self.nodes[node].clock;
        self.drive(node, |driver, at| driver.lost(link, "the stream ended".to_owned(), at), clock)
    }

    /// The agent's end of a connection is no more.
    fn forget(&mut self, id: u64) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.closed = true;
            let (node, link) = (connection.node, connection.link);
            self.nodes[node].links.remove(&link);
        }
    }
}

/// Id of the cluster.
const OWN: &str = "default";
