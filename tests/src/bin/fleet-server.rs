//! The real server on a cluster that is made up from a seed, told by lines on stdin how fast it is to change.
#![allow(clippy::print_stderr)]

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use distributary_e2e::fleet::replica::MadeUp;
use distributary_e2e::fleet::talk;
use distributary_e2e::fleet::world::{Shape, World};
use distributary_runtime::{process, shutdown};
use distributary_server::{app, args};

#[derive(Clone, Debug, Parser)]
struct FleetServer {
    #[command(flatten)]
    shape: Shape,
    /// Begin after so many changes
    #[arg(long, default_value_t = 0)]
    after: usize,
    #[command(flatten)]
    server: args::Args,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(FleetServer::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("fleet-server: {e:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(FleetServer { shape, after, server }: FleetServer) -> anyhow::Result<()> {
    server.log.start()?;
    process::raise_open_files()?;
    let shutdown = shutdown::on_signal()?;
    let mut world = World::new(shape);
    for _ in 0..after {
        world.step();
    }
    let (source, reins) = MadeUp::new(world);
    let mut lines = talk::lines()?;
    let stop = shutdown.clone();
    let orders = async move {
        while let Some(line) = lines.recv().await {
            let order = serde_json::from_str(&line).with_context(|| format!("an order, not {line:?}"))?;
            talk::answer(&reins.obey(order).await?)?;
        }
        stop.cancel();
        anyhow::Ok(())
    };
    let bound = app::bind(server).await?;
    tokio::try_join!(bound.run_with(source, shutdown), orders)?;
    Ok(())
}
