//! The binary: parse, run, and one clear line when it fails.
#![allow(clippy::print_stderr)]

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use distributary_runtime::shutdown;
use distributary_server::args::{Cli, Command};
use distributary_server::{app, status};

#[tokio::main]
async fn main() -> ExitCode {
    match run(Cli::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("distributary-server: {e:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(Cli { command, args }: Cli) -> anyhow::Result<()> {
    if let Some(Command::Status { admin }) = command {
        std::io::stdout().write_all(status::status(&admin).await?.as_bytes())?;
        return Ok(());
    }
    args.log.start()?;
    let shutdown = shutdown::on_signal()?;
    app::bind(args).await?.run(shutdown).await
}
