//! `make bench`: the figures of docs/benchmarks.md, against a real apiserver and the real kernel, beside kube-proxy's in
//! the same run. Prints Markdown tables, and leaves them in `target/bench.md`. What cannot be measured is a row that says
//! why, and the others are measured all the same.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod agent;
mod backend;
mod connections;
mod floor;
mod kube_proxy;
mod load;
mod node;
mod report;
mod shapes;
mod sizes;
mod wire;

use std::fs;
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Result, ensure};
use clap::Parser;
use distributary_e2e::netns::enter_rootless;
use distributary_e2e::process::{control_plane_program, run};

use backend::Backend;
use load::MOST;
use report::Report;
use sizes::Cluster;

/// A part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// First syncs, at each size
    First,
    /// What packets cost, at each size
    Packets,
    /// One endpoint changed, at each size
    Changes,
    /// One Service added and removed, at each size
    Comings,
    /// Bytes of a change on the wire
    Wire,
    /// Clusters that are large in one way
    Shapes,
}

/// The figures of docs/benchmarks.md. Without arguments: all of them.
#[derive(Debug, Parser)]
struct Args {
    /// Measure these parts alone
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// How many Services, one after the other; ascending
    #[arg(long, value_delimiter = ',', default_value = "1000,5000,10000")]
    services: Vec<usize>,
    /// How the agent programs the kernel
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Backend::ALL)]
    backends: Vec<Backend>,
    /// First syncs of each program and size; their median counts
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Changes of one endpoint at each size up to 5000 Services, a quarter of that beyond
    #[arg(long, default_value_t = 2000)]
    changes: usize,
    /// Services added and removed again at each size
    #[arg(long, default_value_t = 50)]
    comings: usize,
    /// Changes of each of the shapes
    #[arg(long, default_value_t = 50)]
    shape_changes: usize,
    /// Changes of one endpoint for kube-proxy, as many as there is time for in 45 seconds
    #[arg(long, default_value_t = 40)]
    kube_proxy_changes: usize,
    /// Run kube-proxy iptables beyond 1000 Services, too, for at most 15 minutes a size
    #[arg(long)]
    with_kube_proxy_5000: bool,
    /// Do not run kube-proxy at all
    #[arg(long)]
    without_kube_proxy: bool,
}

impl Args {
    fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }

    fn wants_sizes(&self) -> bool {
        [Part::First, Part::Packets, Part::Changes, Part::Comings].into_iter().any(|part| self.wants(part))
    }

    /// Changes of one endpoint among so many Services.
    fn changes_at(&self, services: usize) -> usize {
        if services <= 5000 { self.changes } else { self.changes.div_ceil(4) }
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let done = enter_rootless().and_then(|()| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(all(&args))
    });
    match done {
        Ok(0) => ExitCode::SUCCESS,
        Ok(failures) => {
            eprintln!("bench: {failures} rows have no figures; they say why");
            ExitCode::FAILURE
        }
        Err(e) => {
            eprintln!("bench: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// Gives how many rows failed.
async fn all(args: &Args) -> Result<usize> {
    let sizes = &args.services;
    ensure!(
        sizes.is_sorted() && sizes.iter().all(|n| (1..=MOST).contains(n)),
        "--services: ascending, from 1 to {MOST}; they are {sizes:?}"
    );
    ensure!(
        [args.rounds, args.changes, args.comings, args.shape_changes, args.kube_proxy_changes]
            .into_iter()
            .all(|count| count > 0),
        "--rounds, --changes, --comings, --shape-changes and --kube-proxy-changes are at least 1"
    );
    let mut report = Report::new(machine()?)?;
    if args.wants_sizes() || args.wants(Part::Wire) {
        report.section(
            "Services of ten endpoints, and kube-proxy",
            &["what", "budget", "distributary", "beside it, in the same run"],
        );
        match Cluster::start(args).await {
            Ok(mut cluster) => {
                if args.wants_sizes() {
                    cluster.sizes(&mut report).await;
                }
                if args.wants(Part::Wire) {
                    cluster.wire(&mut report).await;
                }
            }
            Err(e) => report.failed("kube-apiserver, etcd and the server", &e),
        }
    }
    if args.wants(Part::Shapes) {
        report.section("Clusters that are large in one way", &shapes::HEAD);
        shapes::all(args, &mut report).await;
    }
    println!("\n{}", report.text());
    Ok(report.failures)
}

fn machine() -> Result<String> {
    let processors = std::thread::available_parallelism()?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let iptables = run(Command::new("iptables-nft").arg("--version"))?;
    let nft = run(Command::new("nft").arg("--version"))?;
    let kube_proxy = run(Command::new(control_plane_program("kube-proxy")?).arg("--version"))?;
    Ok(format!(
        "{processors} cores, Linux {}, {}, {}, kube-proxy: {}",
        kernel.trim(),
        iptables.trim(),
        nft.trim(),
        kube_proxy.trim()
    ))
}

fn step(what: &str) {
    static BEGAN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    eprintln!("{:5.0} s  {what}", BEGAN.get_or_init(Instant::now).elapsed().as_secs_f64());
}
