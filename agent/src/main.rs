//! The binary: parse, run, and one clear line when it fails.
#![allow(clippy::print_stderr)]

use std::process::ExitCode;

use clap::Parser;
use distributary_agent::args::{Args, Command};
use distributary_agent::{app, cleanup, render};
use distributary_runtime::shutdown;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("distributary-agent: {e:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> anyhow::Result<()> {
    args.log.start()?;
    match args.command {
        Command::Run(args) => app::run(args, shutdown::on_signal()?).await,
        Command::Render(args) => render::run(args, &mut std::io::stdout()).await,
        Command::Cleanup(args) => cleanup::run(args).await,
    }
}
