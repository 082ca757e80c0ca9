//! The processes of a swarm in the hands of whoever started them.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::{Answer, Order, Status};
use crate::fleet::meter::{Histogram, Latencies};
use crate::fleet::talk::Talk;
use crate::fleet::usage::Usage;
use crate::process::binary;

/// So many agents of a process keep everything.
const WHOLE: usize = 4;

/// The processes.
#[derive(Debug)]
pub struct Swarm {
    processes: Vec<Talk>,
    agents: usize,
}

impl Swarm {
    /// So many agents of a server, spread over processes that are pinned to these processors.
    ///
    /// # Errors
    /// When they cannot be started.
    pub fn start(
        server: SocketAddr,
        agents: usize,
        processes: usize,
        processors: Option<&str>,
        flags: &[&str],
    ) -> Result<Self> {
        Self::start_from(0, server, agents, processes, processors, flags)
    }

    /// The same, whose first agent has that number.
    ///
    /// # Errors
    /// When they cannot be started.
    pub fn start_from(
        number: usize,
        server: SocketAddr,
        agents: usize,
        processes: usize,
        processors: Option<&str>,
        flags: &[&str],
    ) -> Result<Self> {
        ensure!(processes > 0 && agents >= processes, "{agents} agents in {processes} processes");
        let start = |index: usize| {
            let (first, next) = (agents * index / processes, agents * (index + 1) / processes);
            let mut command = Command::new(binary("swarm"));
            command.args(["--server", &server.to_string(), "--agents", &(next - first).to_string()]);
            command
                .args(["--first", &(number + first).to_string(), "--whole", &WHOLE.to_string()])
                .args(flags);
            Talk::start("swarm", processors, &command)
        };
        Ok(Self { processes: (0..processes).map(start).collect::<Result<_>>()?, agents })
    }

    /// How many agents there are.
    #[must_use]
    pub fn agents(&self) -> usize {
        self.agents
    }

    /// Tells all processes the same.
    ///
    /// # Errors
    /// When one has ended.
    pub fn order(&mut self, order: &Order) -> Result<()> {
        for answer in self.ask(order)? {
            ensure!(answer == Answer::Done, "done was expected, not {answer:?}");
        }
        Ok(())
    }

    /// How the processes stand, each.
    ///
    /// # Errors
    /// When one has ended, or has seen a breach of the contract.
    pub fn each(&mut self) -> Result<Vec<Status>> {
        let status = |answer| match answer {
            Answer::Status(status) if status.counts.breaches.is_empty() => Ok(*status),
            Answer::Status(status) => bail!("the contract was broken: {:?}", status.counts.breaches),
            other => bail!("a status was expected, not {other:?}"),
        };
        self.ask(&Order::Status)?.into_iter().map(status).collect()
    }

    /// How all stand together.
    ///
    /// # Errors
    /// When a process has ended, or has seen a breach of the contract.
    pub fn status(&mut self) -> Result<Status> {
        let mut all: Option<Status> = None;
        for one in self.each()? {
            let Some(all) = &mut all else {
                all = Some(one);
                continue;
            };
            // What most of one process hold others may not.
            if all.root == one.root {
                all.agree += one.agree;
            }
            all.agents += one.agents;
            all.live += one.live;
            all.mark = all.mark.min(one.mark);
            all.last_live_at = all.last_live_at.max(one.last_live_at);
            all.counts.merge(&one.counts);
            all.usage = plus(all.usage, one.usage);
            all.lag.merge(&one.lag);
            all.states = all.states.max(one.states);
        }
        all.context("a swarm has processes")
    }

    /// How long the changes at these times took since [`Order::Measure`].
    ///
    /// # Errors
    /// When a process has ended.
    pub fn latencies(&mut self, changes: Vec<u64>) -> Result<Latencies> {
        let mut all = Latencies::default();
        for answer in self.ask(&Order::Latencies(changes))? {
            let Answer::Latencies(one) = answer else { bail!("latencies were expected, not {answer:?}") };
            all.merge(&one);
        }
        Ok(all)
    }

    /// Waits until this is so of all together.
    ///
    /// # Errors
    /// When it is not by then, with how they stand; or a process has ended.
    pub fn until(
        &mut self,
        what: &str,
        timeout: Duration,
        mut is_so: impl FnMut(&Status) -> bool,
    ) -> Result<Status> {
        let mut counted = super::Counts::default();
        let mut newest = None;
        let found = crate::wait::within(timeout, || match self.status() {
            Ok(mut status) => {
                counted.merge(&status.counts);
                status.counts = counted.clone();
                newest = Some(status.clone());
                is_so(&status).then_some(Ok(status))
            }
            Err(e) => Some(Err(e)),
        });
        // Of the histogram nobody can read a thousand counts.
        let newest = newest.map(|status: Status| Status { lag: Histogram::default(), ..status });
        found.unwrap_or_else(|| bail!("waited {timeout:?} in vain: {what}; the swarm is {newest:?}"))
    }

    /// Waits until all agents hold the same, with everything up to that change. As roots are compared, it is what the
    /// server has.
    ///
    /// # Errors
    /// When they do not by then.
    pub fn in_step(&mut self, newest: u64, timeout: Duration) -> Result<Status> {
        let agents = self.agents;
        self.until("all agents to hold the same", timeout, |status| {
            status.live == agents && status.agree == agents && status.mark >= newest
        })
    }

    fn ask(&mut self, order: &Order) -> Result<Vec<Answer>> {
        // All are told before any is waited for.
        self.processes.iter_mut().try_for_each(|process| process.tell(order))?;
        self.processes.iter_mut().map(Talk::answer).collect()
    }
}

fn plus(a: Usage, b: Usage) -> Usage {
    Usage {
        at_micros: a.at_micros.max(b.at_micros),
        cpu_micros: a.cpu_micros + b.cpu_micros,
        system_micros: a.system_micros + b.system_micros,
        rss_kib: a.rss_kib + b.rss_kib,
    }
}
