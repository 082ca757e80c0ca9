//! A server and its agents, pinned apart, and what is done to them.

use std::net::SocketAddr;
use std::thread::available_parallelism;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use distributary_e2e::fleet::clock;
use distributary_e2e::fleet::meter::Latencies;
use distributary_e2e::fleet::replica::Replica;
use distributary_e2e::fleet::swarm::{Counts, Order, Says, Status, Swarm};
use distributary_e2e::fleet::usage::Usage;
use distributary_e2e::forward::free_address;
use distributary_e2e::wait;

/// How long anything may take before the bench gives up.
const PATIENCE: Duration = Duration::from_secs(300);
/// What is freed late, and handshakes that are just over, do not count.
const REST: Duration = Duration::from_secs(6);

/// Which processors are whose, as taskset lists them.
#[derive(Clone, Debug)]
pub(crate) struct Processors {
    pub(crate) server: String,
    pub(crate) swarm: String,
    /// How many the swarm has.
    pub(crate) swarm_count: usize,
}

impl Processors {
    /// As the flags say: the swarm's with their number behind a colon.
    pub(crate) fn given(server: &str, swarm: &str) -> Result<Self> {
        let (list, count) = swarm.rsplit_once(':').context("--swarm-cpus is LIST:COUNT, such as 2-3:2")?;
        let count = count.parse().context("--swarm-cpus is LIST:COUNT, such as 2-3:2")?;
        Ok(Self { server: server.to_owned(), swarm: list.to_owned(), swarm_count: count })
    }

    /// Half of them each.
    pub(crate) fn halves() -> Result<Self> {
        let all = available_parallelism()?.get();
        ensure!(all >= 2, "the server and the load must not share a processor, and here is only one");
        let half = all / 2;
        let list = |from: usize, until: usize| format!("{from}-{}", until - 1);
        Ok(Self { server: list(0, half), swarm: list(half, all), swarm_count: all - half })
    }
}

/// The two of them.
#[derive(Debug)]
pub(crate) struct Stage {
    processors: Processors,
    world: Vec<String>,
    listen: SocketAddr,
    admin: SocketAddr,
    pub(crate) replica: Replica,
    pub(crate) swarm: Swarm,
    /// The server's memory before anybody came.
    pub(crate) empty: Usage,
    /// What it took for all to come.
    pub(crate) joined: Came,
}

/// What it took for all agents to come, or to come again.
#[derive(Clone, Debug)]
pub(crate) struct Came {
    /// Until the last one was in step.
    pub(crate) took: Duration,
    /// The server's CPU meanwhile.
    pub(crate) cpu: Duration,
    pub(crate) counts: Counts,
}

/// What was seen while the cluster changed at some rate.
#[derive(Clone, Debug)]
pub(crate) struct Churned {
    pub(crate) changes: usize,
    pub(crate) wall: Duration,
    pub(crate) cpu: Duration,
    pub(crate) took: Latencies,
    pub(crate) counts: Counts,
    /// Share of its processors that the load generator used.
    pub(crate) busy: f64,
    /// By how much its timers were late, of a hundred the worst, in milliseconds.
    pub(crate) late: f64,
    pub(crate) rss_kib: u64,
}

impl Stage {
    pub(crate) fn new(
        processors: &Processors,
        world: &[String],
        agents: usize,
        flags: &[&str],
    ) -> Result<Self> {
        let (listen, admin) = (free_address(&None)?, free_address(&None)?);
        let mut replica = start(listen, admin, processors, world, 0)?;
        let empty = settled(&mut replica)?;
        let began = clock::micros();
        let processes = processors.swarm_count.max(2);
        let mut swarm = Swarm::start(listen, agents, processes, Some(&processors.swarm), flags)?;
        let joined = came(&mut swarm, agents, began, |status| status.live == agents)?;
        let cpu = replica.usage()?.cpu_since(&empty);
        let joined = Came { cpu, ..joined };
        Ok(Self {
            processors: processors.clone(),
            world: world.to_vec(),
            listen,
            admin,
            replica,
            swarm,
            empty,
            joined,
        })
    }

    pub(crate) fn agents(&self) -> usize {
        self.swarm.agents()
    }

    /// Lets the cluster be quiet for a while; gives the server's usage at both ends of it.
    pub(crate) fn rest(&mut self, time: Duration) -> Result<(Usage, Usage)> {
        let before = self.replica.usage()?;
        pause(time);
        Ok((before, self.replica.usage()?))
    }

    /// Changes at a rate for a time.
    pub(crate) fn churn(&mut self, rate: f64, time: Duration) -> Result<Churned> {
        self.all_agree()?;
        self.replica.changes()?;
        self.swarm.order(&Order::Measure)?;
        let load = self.swarm.status()?.usage;
        let server = self.replica.usage()?;
        self.replica.rate(rate)?;
        pause(time);
        let after = self.replica.usage()?;
        self.replica.rate(0.0)?;
        let loaded = self.swarm.status()?;
        let (times, _) = self.replica.changes()?;
        let counts = self.all_agree()?.counts;
        let server_after = self.replica.usage()?;
        let took = self.swarm.latencies(times.clone())?;
        let mut all = loaded.counts;
        all.merge(&counts);
        Ok(Churned {
            changes: times.len(),
            wall: Duration::from_micros(server_after.at_micros - server.at_micros),
            cpu: server_after.cpu_since(&server),
            took,
            counts: all,
            busy: loaded.usage.share_since(&load) / self.processors.swarm_count as f64,
            late: loaded.lag.per_mille(990).unwrap_or(0) as f64 / 1000.0,
            rss_kib: after.rss_kib,
        })
    }

    /// All connections are cut, and so many changes are made while agents are away.
    pub(crate) fn cut(&mut self, changes: usize) -> Result<Came> {
        self.all_agree()?;
        let before = self.replica.usage()?;
        let began = clock::micros();
        self.swarm.order(&Order::Cut { within: 1_000 })?;
        self.replica.burst(changes)?;
        self.replica.changes()?;
        let agents = self.agents();
        let came = came(&mut self.swarm, agents, began, |status| status.counts.ends >= agents as u64)?;
        let cpu = self.replica.usage()?.cpu_since(&before);
        self.all_agree()?;
        Ok(Came { cpu, ..came })
    }

    /// The server is killed. Another process, which knows of so many more changes, takes its place.
    pub(crate) fn fail_over(&mut self, says: Says, changes: usize) -> Result<Came> {
        self.all_agree()?;
        self.swarm.order(&Order::Say(says))?;
        let (_, steps) = self.replica.changes()?;
        self.replica.process().kill9();
        // From here on they seek it; its own start is not theirs.
        self.replica = start(self.listen, self.admin, &self.processors, &self.world, steps + changes)?;
        let before = self.replica.usage()?;
        let began = clock::micros();
        let agents = self.agents();
        let came = came(&mut self.swarm, agents, began, |status| status.counts.ends >= agents as u64)?;
        let cpu = self.replica.usage()?.cpu_since(&before);
        self.all_agree()?;
        self.swarm.order(&Order::Say(Says::Everything))?;
        Ok(Came { cpu, ..came })
    }

    /// Waits until all agents hold the same, which by the roots is what the server has.
    pub(crate) fn all_agree(&mut self) -> Result<Status> {
        self.swarm.in_step(self.replica.newest(), PATIENCE)
    }
}

/// Starts a server, and waits until it has read its world.
fn start(
    listen: SocketAddr,
    admin: SocketAddr,
    processors: &Processors,
    world: &[String],
    after: usize,
) -> Result<Replica> {
    let after = after.to_string();
    let mut flags: Vec<&str> = world.iter().map(String::as_str).collect();
    flags.extend(["--after", &after]);
    let mut replica = Replica::start(listen, admin, Some(&processors.server), &flags)?;
    // Orders are taken when the source has listed.
    replica.burst(0)?;
    Ok(replica)
}

/// What a server has when it has come to rest.
fn settled(replica: &mut Replica) -> Result<Usage> {
    pause(REST);
    replica.usage()
}

fn came(swarm: &mut Swarm, agents: usize, began: u64, mut all: impl FnMut(&Status) -> bool) -> Result<Came> {
    let status =
        swarm.until("all agents to come", PATIENCE, |status| status.live == agents && all(status))?;
    let took = Duration::from_micros(status.last_live_at.saturating_sub(began));
    Ok(Came { took, cpu: Duration::ZERO, counts: status.counts })
}

/// Lets time go by, because it is measured what happens in it.
pub(crate) fn pause(time: Duration) {
    wait::within(time, || None::<()>);
}
