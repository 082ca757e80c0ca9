//! Any faults in any order, from seeds: docs/architecture.md says what is real in it. A failure prints the seed, and
//! `SIMULATION_SEED=… cargo test -p distributary-e2e --test simulation` repeats it.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use anyhow::{Context, Result};
use distributary_e2e::sim::{Setup, Sim};

const SECOND: Duration = Duration::from_secs(1);

fn setup(seed: u64) -> Setup {
    Setup { seed, replicas: 3, nodes: 12, services: 8, endpoints: 4, arrival: 2 * SECOND }
}

/// The seeds of a test: as many as are asked for, or the one that is.
fn seeds(count: u64) -> Vec<u64> {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    match number("SIMULATION_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("SIMULATION_RUNS").unwrap_or(count)).collect(),
    }
}

fn for_seeds(count: u64, run: impl Fn(u64) -> Result<()>) {
    for seed in seeds(count) {
        run(seed).with_context(|| format!("SIMULATION_SEED={seed}")).unwrap();
    }
}

#[test]
fn whatever_happens_every_agent_ends_with_what_the_api_has_and_no_fault_deletes_anything() {
    for_seeds(40, |seed| {
        let mut sim = Sim::new(setup(seed));
        sim.run(5 * SECOND)?;
        let faults = 5 + seed % 20;
        for _ in 0..faults {
            sim.fault()?;
            sim.churn(10, Duration::from_millis(200 + seed % 7 * 1_000))?;
        }
        sim.heal();
        sim.settle(400 * SECOND)?;
        Ok(())
    });
}

#[test]
fn the_same_seed_makes_the_same_history() {
    let run = |seed| -> Result<_> {
        let mut sim = Sim::new(setup(seed));
        for _ in 0..10 {
            sim.fault()?;
            sim.churn(5, SECOND)?;
        }
        Ok((sim.figures(), sim.spread(), sim.in_step()))
    };
    assert_eq!(run(7).unwrap(), run(7).unwrap());
}

#[test]
fn a_rolling_restart_costs_no_agent_its_stream() {
    for_seeds(3, |seed| {
        let mut sim = Sim::new(Setup { nodes: 30, ..setup(seed) });
        sim.settle(60 * SECOND)?;
        let figures = sim.rolling_restart(20 * SECOND)?;
        assert_eq!((figures.lost, figures.snapshots), (0, 0), "{figures:?}");
        assert!(figures.repairs >= 30, "every agent has moved: {figures:?}");
        sim.settle(60 * SECOND)?;
        Ok(())
    });
}

#[test]
fn rule_4_4_a_rewound_replica_empties_nobody() {
    for_seeds(5, |seed| {
        let mut sim = Sim::new(setup(seed));
        sim.settle(60 * SECOND)?;
        let version_before = 40;
        sim.churn(version_before, 10 * SECOND)?;
        // Its agents stay with what they have, and find another when it has been stale for a while.
        sim.rewind_one(0, version_before as usize);
        sim.churn(20, 60 * SECOND)?;
        sim.run(60 * SECOND)?;
        sim.heal();
        sim.settle(300 * SECOND)?;
        Ok(())
    });
}
