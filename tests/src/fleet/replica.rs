//! A server process of its own on a made-up cluster: the real server, with a source that is told how fast to change.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use distributary_cluster::Event;
use distributary_model::ObjectKind;
use distributary_runtime::alarm;
use distributary_server::source::{Source, Update};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::clock;
use super::talk::Talk;
use super::usage::Usage;
use super::world::World;
use crate::process::{Running, binary};

/// What the process is told, a line of JSON each.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// Make so many changes a second from now on.
    Rate(f64),
    /// Make so many changes at once, as one batch. As with a rate, the answer comes when that is done.
    Burst(usize),
    /// CPU and memory of the process.
    Usage,
    /// The times of the changes since the last time that this was asked, and how many there ever were.
    Changes,
}

/// Its answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// It is done.
    Done,
    /// To [`Order::Usage`].
    Usage(Usage),
    /// To [`Order::Changes`].
    Changes {
        /// Microseconds of the shared clock, sorted.
        times: Vec<u64>,
        /// Since the world began.
        steps: usize,
    },
}

/// How often a source says that it is up to date.
const FRESH: Duration = Duration::from_secs(1);

/// The source's reins.
#[derive(Clone, Debug)]
pub struct Reins {
    tell: mpsc::Sender<(Pace, oneshot::Sender<()>)>,
    noted: Arc<Mutex<Noted>>,
}

#[derive(Clone, Copy, Debug)]
enum Pace {
    Rate(f64),
    Burst(usize),
}

#[derive(Debug, Default)]
struct Noted {
    times: VecDeque<u64>,
    steps: usize,
}

/// A source that makes its cluster up.
#[derive(Debug)]
pub struct MadeUp {
    world: World,
    told: mpsc::Receiver<(Pace, oneshot::Sender<()>)>,
    noted: Arc<Mutex<Noted>>,
    /// Time of the newest change, which is its mark.
    mark: u64,
}

impl MadeUp {
    /// Of a world as it stands. Nothing changes before the reins say so.
    #[must_use]
    pub fn new(world: World) -> (Self, Reins) {
        let (tell, told) = mpsc::channel(1);
        let noted = Arc::new(Mutex::new(Noted { steps: world.steps(), ..Noted::default() }));
        let reins = Reins { tell, noted: Arc::clone(&noted) };
        (Self { world, told, noted, mark: 0 }, reins)
    }

    /// A mark that is the present time, and later than the last one.
    fn mark(&mut self) -> u64 {
        self.mark = clock::micros().max(self.mark + 1);
        self.mark
    }

    fn change(&mut self) -> (Event, u64) {
        let event = self.world.step();
        let mark = self.mark();
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        noted.times.push_back(mark);
        noted.steps = self.world.steps();
        (event, mark)
    }

    fn changes(&mut self, count: usize) -> Update {
        let mut update = Update::default();
        for _ in 0..count {
            let (event, mark) = self.change();
            update.events.push(event);
            update.marks = marks(mark);
        }
        update
    }
}

fn marks(mark: u64) -> Vec<(ObjectKind, u64)> {
    vec![(ObjectKind::EndpointSlice, mark)]
}

impl Source for MadeUp {
    async fn run(mut self, updates: mpsc::Sender<Update>) -> Result<()> {
        let all = ObjectKind::ALL.to_vec();
        let marks = marks(self.mark());
        let first =
            Update { events: self.world.everything(), listed: all.clone(), marks, fresh: all.clone() };
        updates.send(first).await?;
        let mut fresh = tokio::time::interval(FRESH);
        let (mut rate, mut began, mut made) = (0.0, Instant::now(), 0_u64);
        loop {
            // What is late is made up for.
            let next = (rate > 0.0).then(|| began + Duration::from_secs_f64((made + 1) as f64 / rate));
            let (update, done) = tokio::select! {
                biased;
                told = self.told.recv() => match told {
                    Some((Pace::Rate(new), done)) => {
                        (rate, began, made) = (new, Instant::now(), 0);
                        (Update::default(), Some(done))
                    }
                    Some((Pace::Burst(changes), done)) => (self.changes(changes), Some(done)),
                    None => bail!("the reins are gone"),
                },
                () = alarm::at(next.map(Instant::into_std)) => {
                    made += 1;
                    (self.changes(1), None)
                }
                _ = fresh.tick() => (Update { fresh: all.clone(), ..Update::default() }, None),
            };
            updates.send(update).await?;
            // Whoever asked may have gone.
            done.map(|done| done.send(()));
        }
    }
}

impl Reins {
    /// Does what is told.
    ///
    /// # Errors
    /// When the source is gone.
    pub async fn obey(&self, order: Order) -> Result<Answer> {
        Ok(match order {
            Order::Rate(rate) => {
                ensure!((0.0..=100_000.0).contains(&rate), "a rate of {rate} changes a second");
                self.told(Pace::Rate(rate)).await?
            }
            Order::Burst(changes) => self.told(Pace::Burst(changes)).await?,
            Order::Usage => Answer::Usage(Usage::now()),
            Order::Changes => {
                let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
                Answer::Changes { times: noted.times.drain(..).collect(), steps: noted.steps }
            }
        })
    }

    /// Waits until it is done.
    async fn told(&self, pace: Pace) -> Result<Answer> {
        let (done, wait) = oneshot::channel();
        self.tell.send((pace, done)).await?;
        wait.await?;
        Ok(Answer::Done)
    }
}

/// The process in the hands of whoever started it.
#[derive(Debug)]
pub struct Replica {
    talk: Talk,
    newest: u64,
}

impl Replica {
    /// Starts it on these processors.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(
        listen: SocketAddr,
        admin: SocketAddr,
        processors: Option<&str>,
        flags: &[&str],
    ) -> Result<Self> {
        let mut command = Command::new(binary("fleet-server"));
        command.args(["--listen", &listen.to_string(), "--admin-listen", &admin.to_string()]);
        command.args(["--log", "warn"]).args(flags);
        Ok(Self { talk: Talk::start("fleet-server", processors, &command)?, newest: 0 })
    }

    /// So many changes a second from now on.
    ///
    /// # Errors
    /// When the process has ended.
    pub fn rate(&mut self, rate: f64) -> Result<()> {
        self.done(Order::Rate(rate))
    }

    /// So many changes as one batch.
    ///
    /// # Errors
    /// When the process has ended.
    pub fn burst(&mut self, changes: usize) -> Result<()> {
        self.done(Order::Burst(changes))
    }

    /// CPU and memory.
    ///
    /// # Errors
    /// When the process has ended.
    pub fn usage(&mut self) -> Result<Usage> {
        match self.talk.ask(&Order::Usage)? {
            Answer::Usage(usage) => Ok(usage),
            other => bail!("usage was expected, not {other:?}"),
        }
    }

    /// When the changes since the last time were made, and how many there ever were.
    ///
    /// # Errors
    /// When the process has ended.
    pub fn changes(&mut self) -> Result<(Vec<u64>, usize)> {
        match self.talk.ask(&Order::Changes)? {
            Answer::Changes { times, steps } => {
                self.newest = times.last().copied().unwrap_or(self.newest);
                Ok((times, steps))
            }
            other => bail!("changes were expected, not {other:?}"),
        }
    }

    /// When the newest change was made that [`Replica::changes`] has told of.
    #[must_use]
    pub fn newest(&self) -> u64 {
        self.newest
    }

    /// To signal it, or read its log.
    pub fn process(&mut self) -> &mut Running {
        self.talk.process()
    }

    fn done(&mut self, order: Order) -> Result<()> {
        let answer: Answer = self.talk.ask(&order)?;
        ensure!(answer == Answer::Done, "done was expected, not {answer:?}");
        Ok(())
    }
}
