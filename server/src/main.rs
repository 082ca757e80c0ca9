//! The binary: parse, run, and one clear line when it fails.
#![allow(clippy::print_stderr)]

use std::process::ExitCode;

use clap::Parser;
use distributary_runtime::shutdown;
use distributary_server::app;
use distributary_server::args::Args;

#[tokio::main]
async fn main() -> ExitCode {
    match run(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("distributary-server: {e:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> anyhow::Result<()> {
    args.log.start()?;
    let shutdown = shutdown::on_signal()?;
    app::bind(args).await?.run(shutdown).await
}
