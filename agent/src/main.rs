//! The binary: parse, run, and one clear line when it fails.
#![allow(clippy::print_stderr)]

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};
use distributary_agent::args::{self, Args, Command};
use distributary_agent::{app, cleanup, render};
use distributary_runtime::shutdown;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("distributary-agent: {e:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> anyhow::Result<()> {
    let command = Args::command();
    let matches = command.clone().get_matches();
    let args = Args::from_arg_matches(&matches)?;
    args.log.start()?;
    match args.command {
        Command::Run(args) => {
            app::run(args, args::told(&command, &matches).into(), shutdown::on_signal()?).await
        }
        Command::Render(args) => render::run(args, &mut std::io::stdout()).await,
        Command::Cleanup(args) => cleanup::run(args).await,
    }
}
