//! One process of agents in thousands; `distributary_e2e::fleet::swarm` says what they are.
#![allow(clippy::print_stderr)]

use std::process::ExitCode;

use clap::Parser;
use distributary_e2e::fleet::swarm::{Options, run};

fn main() -> ExitCode {
    match run(Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("swarm: {e:#}");
            ExitCode::FAILURE
        }
    }
}
