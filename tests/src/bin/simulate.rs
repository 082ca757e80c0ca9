//! A fleet that is simulated: what a rolling restart, the loss of a zone and an API server that goes back in time come to. Not
//! measured, but counted: CPU and network have no limits in it, time and chance are made up.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Parser;
use distributary_e2e::sim::{Figures, Setup, Sim};

/// How large it is.
#[derive(Clone, Debug, Parser)]
struct Options {
    /// Agents
    #[arg(long, default_value_t = 100_000)]
    agents: usize,
    /// Servers, in three zones
    #[arg(long, default_value_t = 12)]
    replicas: usize,
    /// Services
    #[arg(long, default_value_t = 10)]
    services: usize,
    /// Endpoints of each
    #[arg(long, default_value_t = 3)]
    endpoints: usize,
    /// What chance depends on
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

const SECOND: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(600);

fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("simulate: seed {}: {e:#}", options.seed);
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    let Options { agents, replicas, services, endpoints, seed } = *options;
    let began = Instant::now();
    let arrival = 60 * SECOND;
    let mut sim = Sim::new(Setup { seed, replicas, nodes: agents, services, endpoints, arrival });
    println!("{agents} agents on {replicas} replicas, seed {seed}; simulated");
    println!(
        "| what | until all are in step | without a stream | moves | resumes, repairs, snapshots | throttled | bytes an agent | agents of a replica |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    let row = |what: &str, took: Duration, sim: &mut Sim| {
        let Figures { lost, moves, resumes, repairs, snapshots, throttled, bytes, .. } = sim.figures();
        let spread = sim.spread();
        let (least, most) = (spread.iter().min().unwrap_or(&0), spread.iter().max().unwrap_or(&0));
        println!(
            "| {what} | {:.1} s | {lost} | {moves} | {resumes}, {repairs}, {snapshots} | {throttled} | {} | {least} to {most} |",
            took.as_secs_f64(),
            bytes / agents as u64,
        );
        eprintln!("{what}: {:.0} s of real time so far", began.elapsed().as_secs_f64());
    };
    let took = sim.settle(PATIENCE)?;
    row("all come with nothing, within 60 s", took, &mut sim);

    let restarted = sim.rolling_restart(25 * SECOND)?;
    let took = sim.settle(PATIENCE)?;
    sim.count(restarted);
    row("rolling restart, 25 s a replica", took, &mut sim);

    sim.lose_zone(0, false);
    sim.churn(100, 10 * SECOND)?;
    let took = sim.settle(PATIENCE)?;
    row("a zone of replicas is killed, 100 changes", took + 10 * SECOND, &mut sim);
    sim.heal();
    sim.run(10 * SECOND)?;
    sim.settle(PATIENCE)?;
    sim.figures();

    sim.rewind_one(1, 50);
    sim.churn(20, 50 * SECOND)?;
    let took = sim.settle(PATIENCE)?;
    row("the API server of one replica goes back by 50 changes, 20 more", took + 50 * SECOND, &mut sim);
    Ok(())
}
