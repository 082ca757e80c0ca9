//! `make soak`: real processes that go on for half an hour while everything changes and some of them are killed. In the
//! end the rules must be right, and whoever was not killed must have no more memory than after the first minutes.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Parser;
use distributary_e2e::fleet::lab::Lab;
use distributary_e2e::fleet::replica::Replica;
use distributary_e2e::fleet::swarm::Swarm;
use distributary_e2e::fleet::usage::rss_kib;
use distributary_e2e::forward::free_address;
use distributary_e2e::netns::enter_rootless;
use distributary_e2e::process::{Running, Signal};
use distributary_e2e::wait;

const AGENTS: usize = 300;
const SWARM: [&str; 10] = [
    "--slow",
    "10",
    "--slow-millis",
    "10",
    "--dropping",
    "10",
    "--dropping-seconds",
    "5",
    "--rejecting",
    "5",
];
const WORLD: [&str; 6] = ["--services", "2000", "--nodes", "300", "--service-every", "20"];
/// Changes of the made-up cluster a second.
const RATE: f64 = 50.0;
/// How long one round takes.
const ROUND: Duration = Duration::from_secs(3);
const PATIENCE: Duration = Duration::from_secs(120);
/// Caches fill, and the allocator keeps some of what it had: no more than this is growth that ends.
const SLACK_KIB: f64 = 6.0 * 1024.0;
const SLACK_SHARE: f64 = 0.08;

/// Goes on for some minutes.
#[derive(Debug, Parser)]
struct Args {
    /// For how long
    #[arg(long, env = "SOAK_MINUTES", default_value_t = 30.0)]
    minutes: f64,
    /// What chance depends on
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> ExitCode {
    match enter_rootless().and_then(|()| soak(&Args::parse())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("soak: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn soak(args: &Args) -> Result<()> {
    println!("soak of {} minutes with the seed {}", args.minutes, args.seed);
    let time = Duration::from_secs_f64(args.minutes * 60.0);
    // Server 0 and agent 0 are never killed, nor is the server of the swarm: their memory is watched.
    let mut lab = Lab::start(3, 60, args.seed, |_| Vec::new())?;
    let (listen, admin) = (free_address(&None)?, free_address(&None)?);
    let mut replica = Replica::start(listen, admin, None, &WORLD)?;
    let mut swarm = Swarm::start(listen, AGENTS, 2, None, &SWARM)?;
    swarm.until("the swarm to come", PATIENCE, |status| status.counts.ends >= AGENTS as u64)?;
    replica.rate(RATE)?;

    let mut watched =
        [Memory::new("a server"), Memory::new("an agent"), Memory::new("a server with a swarm")];
    let mut chance = fastrand::Rng::with_seed(args.seed);
    let (began, mut rounds, mut stopped) = (Instant::now(), 0, None::<usize>);
    while began.elapsed() < time {
        rounds += 1;
        lab.churn(10)?;
        if let Some(index) = stopped.take() {
            signal(lab.nodes[index].agent.as_mut(), Signal::SIGCONT)?;
        }
        let victim = chance.usize(1..3);
        match chance.u8(..6) {
            0 => lab.replace_server(1)?,
            1 => lab.replace_agent(victim)?,
            2 => {
                signal(lab.nodes[victim].agent.as_mut(), Signal::SIGSTOP)?;
                stopped = Some(victim);
            }
            _ => {}
        }
        wait::within(ROUND, || None::<()>);
        let ids = [
            lab.servers[0].as_ref().map(Running::id),
            lab.nodes[0].agent.as_ref().map(Running::id),
            Some(replica.process().id()),
        ];
        for (memory, id) in watched.iter_mut().zip(ids) {
            let kib = id.and_then(|id| rss_kib(&id.to_string()));
            memory.note(began.elapsed(), kib);
        }
        if rounds % 20 == 0 {
            if let Some(index) = stopped.take() {
                signal(lab.nodes[index].agent.as_mut(), Signal::SIGCONT)?;
            }
            lab.in_step()?;
            let status = swarm.status()?;
            println!(
                "{:5.0} s  in step; swarm: {} of {} live; {}",
                began.elapsed().as_secs_f64(),
                status.live,
                AGENTS,
                told(&watched)
            );
        }
    }
    if let Some(index) = stopped {
        signal(lab.nodes[index].agent.as_mut(), Signal::SIGCONT)?;
    }
    lab.in_step()?;
    replica.rate(0.0)?;
    let (_, changes) = replica.changes()?;
    let newest = replica.newest();
    // Some of the swarm are always away for a moment.
    let most = AGENTS * 8 / 10;
    let ended = swarm.until("the swarm to hold the same", PATIENCE, |status| {
        status.agree >= most && status.agree == status.live && status.mark >= newest
    })?;
    println!(
        "{rounds} rounds; the rules of every node are right; {} of the swarm hold the same after {changes} changes",
        ended.agree
    );
    for memory in &watched {
        memory.is_flat()?;
    }
    Ok(())
}

fn signal(process: Option<&mut Running>, signal: Signal) -> Result<()> {
    process.map_or(Ok(()), |process| process.signal(signal))
}

fn told(watched: &[Memory]) -> String {
    let told = |memory: &Memory| {
        format!("{} {:.1} MiB", memory.of, memory.samples.last().map_or(0.0, |last| last.1) / 1024.0)
    };
    watched.iter().map(told).collect::<Vec<_>>().join(", ")
}

/// The memory of one process over time.
#[derive(Debug)]
struct Memory {
    of: &'static str,
    /// Seconds and KiB.
    samples: Vec<(f64, f64)>,
}

impl Memory {
    fn new(of: &'static str) -> Self {
        Self { of, samples: Vec::new() }
    }

    fn note(&mut self, at: Duration, kib: Option<u64>) {
        self.samples.extend(kib.map(|kib| (at.as_secs_f64(), kib as f64)));
    }

    /// After the first third, the straight line through all samples must not have risen by more than the slack.
    fn is_flat(&self) -> Result<()> {
        let later = &self.samples[self.samples.len() / 3..];
        ensure!(later.len() >= 5, "{} was looked at {} times only: soak for longer", self.of, later.len());
        let (rise, mean) = rise(later);
        println!(
            "{}: {:.1} MiB on average, {:+.1} MiB from the first third to the end",
            self.of,
            mean / 1024.0,
            rise / 1024.0
        );
        let allowed = SLACK_KIB.max(mean * SLACK_SHARE);
        ensure!(rise <= allowed, "{} grew by {:.0} KiB, {allowed:.0} are allowed", self.of, rise);
        Ok(())
    }
}

/// By how much the line of least squares rises from the first sample to the last, and the mean.
fn rise(samples: &[(f64, f64)]) -> (f64, f64) {
    let count = samples.len() as f64;
    let (x, y) =
        samples.iter().fold((0.0, 0.0), |(x, y), sample| (x + sample.0 / count, y + sample.1 / count));
    let (up, across) = samples.iter().fold((0.0, 0.0), |(up, across), sample| {
        (up + (sample.0 - x) * (sample.1 - y), across + (sample.0 - x).powi(2))
    });
    let span = samples.last().map_or(0.0, |last| last.0) - samples.first().map_or(0.0, |first| first.0);
    (if across > 0.0 { up / across * span } else { 0.0 }, y)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_grows_is_seen_and_what_wavers_is_not() {
        let memory = |of: &dyn Fn(f64) -> f64| Memory {
            of: "it",
            samples: (0..300).map(|second| (f64::from(second), of(f64::from(second)))).collect(),
        };
        assert!(memory(&|second| 20_000.0 + 100.0 * second).is_flat().is_err());
        assert!(memory(&|second| 20_000.0 + 3_000.0 * (second / 9.0).sin()).is_flat().is_ok());
        let (rise, mean) = rise(&[(0.0, 1.0), (1.0, 3.0), (2.0, 5.0)]);
        assert!((rise - 4.0).abs() < 1e-9 && (mean - 3.0).abs() < 1e-9);
    }
}
