//! Agents in thousands, each with a connection of its own, over which it speaks and acks as the real one does.
//!
//! A few of each process are *whole*: the real agent's session with its table, and a kernel in memory that must have
//! what the table has. All others are *light*: of each record they keep the content hash, which is enough to check
//! order, cursors, buckets and roots; what they have in common is there once (`commons`).
//!
//! One thread a process, so that it is pinned easily and its CPU is easily told: more agents are more processes.

mod agent;
mod commons;
mod hands;
mod light;
mod link;
mod machine;
mod orders;
mod whole;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result};
use distributary_model::Hash;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use super::meter::{Histogram, Meter};
use super::talk;
use super::usage::Usage;
use agent::{Agent, Shared, Standing, Told};
use commons::Commons;
pub use hands::Swarm;
pub use machine::{Mode, Says};
pub use orders::{Answer, Counts, Order, Status};

/// What a process of the swarm is.
#[derive(Clone, Debug, clap::Parser)]
pub struct Options {
    /// Where the server listens
    #[arg(long, default_value = "127.0.0.1:7400")]
    pub server: SocketAddr,
    /// Id of the cluster
    #[arg(long, default_value = "default")]
    pub cluster_id: String,
    /// How many agents
    #[arg(long, default_value_t = 1_000)]
    pub agents: usize,
    /// Number of the first one, from which its Node follows
    #[arg(long, default_value_t = 0)]
    pub first: usize,
    /// How many of them keep everything
    #[arg(long, default_value_t = 4)]
    pub whole: usize,
    /// Names as long as those of a large cloud
    #[arg(long)]
    pub long_names: bool,
    /// So many of a hundred wait after every frame
    #[arg(long, default_value_t = 0)]
    pub slow: usize,
    /// For so long
    #[arg(long, default_value_t = 1_000)]
    pub slow_millis: u64,
    /// So many of a hundred come and go
    #[arg(long, default_value_t = 0)]
    pub dropping: usize,
    /// After so many seconds, on average
    #[arg(long, default_value_t = 10.0)]
    pub dropping_seconds: f64,
    /// So many of a hundred say that their kernel refuses a record
    #[arg(long, default_value_t = 0)]
    pub rejecting: usize,
    /// How many may connect at a time
    #[arg(long, default_value_t = 64)]
    pub connects: usize,
    /// The longest pause before an agent tries again; that of real ones is 60,000
    #[arg(long, default_value_t = 1_000)]
    pub retry_most_millis: u64,
}

/// How often the process looks whether its timers are on time.
const GLANCE: Duration = Duration::from_millis(20);

/// Runs the agents, and does what stdin says until it ends.
///
/// # Errors
/// When there is no runtime to be had, or nobody listens to the answers.
pub fn run(options: Options) -> Result<()> {
    distributary_runtime::process::raise_open_files()?;
    let mut lines = talk::lines()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let mut process = Process::start(options);
        while let Some(line) = lines.recv().await {
            let order = serde_json::from_str(&line).with_context(|| format!("an order, not {line:?}"))?;
            talk::answer(&process.obey(order))?;
        }
        Ok(())
    })
}

struct Process {
    shared: Rc<Shared>,
    standings: Vec<Rc<Standing>>,
    tell: watch::Sender<Told>,
    lag: Rc<RefCell<Histogram>>,
}

impl Process {
    fn start(options: Options) -> Self {
        let own = options.cluster_id.as_str().into();
        let shared = Rc::new(Shared {
            commons: RefCell::new(Commons::new(distributary_model::Name::clone(&own))),
            own,
            meter: RefCell::default(),
            measuring: Cell::default(),
            counts: RefCell::default(),
            last_live_at: Cell::default(),
            gate: Semaphore::new(options.connects),
            options,
        });
        let (tell, told) = watch::channel(Told::default());
        let standings = (0..shared.options.agents).map(|index| {
            let (agent, standing) = Agent::new(index, told.clone(), Rc::clone(&shared));
            tokio::task::spawn_local(agent.run());
            standing
        });
        let standings = standings.collect();
        let lag = Rc::new(RefCell::new(Histogram::default()));
        tokio::task::spawn_local(watch_timers(Rc::clone(&lag)));
        Self { shared, standings, tell, lag }
    }

    fn obey(&mut self, order: Order) -> Answer {
        let shared = &self.shared;
        match order {
            Order::Measure => {
                *shared.meter.borrow_mut() = Meter::default();
                shared.measuring.set(true);
                self.lag.take();
            }
            Order::Latencies(changes) => {
                shared.measuring.set(false);
                let noted = shared.meter.take();
                return Answer::Latencies(noted.latencies(&changes, self.standings.len()));
            }
            Order::Cut { within } => self.tell.send_modify(|told| {
                told.cuts += 1;
                told.within = Duration::from_millis(within);
            }),
            Order::Say(says) => self.tell.send_modify(|told| told.says = says),
            Order::Stall(share) => self.tell.send_modify(|told| told.stalled = share),
            Order::Freeze(share) => self.tell.send_modify(|told| told.frozen = share),
            Order::Mute(mute) => self.tell.send_modify(|told| told.mute = mute),
            Order::Status => return Answer::Status(Box::new(self.status())),
        }
        Answer::Done
    }

    fn status(&self) -> Status {
        let (mut roots, mut mark) = (HashMap::<Hash, usize>::new(), u64::MAX);
        for standing in self.standings.iter().filter(|standing| standing.live.get()) {
            *roots.entry(standing.root.get()).or_default() += 1;
            mark = mark.min(standing.mark.get());
        }
        let (root, agree) = roots.iter().max_by_key(|(_, count)| **count).unwrap_or((&Hash(0), &0));
        Status {
            agents: self.standings.len(),
            live: roots.values().sum(),
            agree: *agree,
            root: root.to_string(),
            mark,
            last_live_at: self.shared.last_live_at.get(),
            counts: self.shared.counts.take(),
            usage: Usage::now(),
            lag: self.lag.borrow().clone(),
            states: self.shared.commons.borrow_mut().states(),
        }
    }
}

async fn watch_timers(lag: Rc<RefCell<Histogram>>) {
    loop {
        let due = Instant::now() + GLANCE;
        tokio::time::sleep_until(due).await;
        lag.borrow_mut().add(u64::try_from(due.elapsed().as_micros()).unwrap_or(u64::MAX));
    }
}
