//! `make bench-fleet`: what a server costs with agents in thousands. docs/benchmarks.md has what it prints and says how
//! each figure is measured.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod stage;
mod words;

use std::fs;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Parser;
use distributary_e2e::figures::Table;
use distributary_e2e::fleet::swarm::{Order, Says};
use distributary_e2e::fleet::usage::Usage;

use stage::{Came, Churned, Processors, Stage, pause};
use words::{kib, micros, millis, ratio, thousands};

/// Changes a second, and for how long. Fewer than 2,000 changes come of the slower ones, each seen by every agent.
const PACES: [(f64, u64); 4] = [(1.0, 12), (10.0, 12), (100.0, 20), (500.0, 10)];
/// Changes that nobody has heard of when all come again.
const MISSED: [usize; 3] = [1, 100, 1_000];
/// While half of the agents are stalled.
const STALLED_PACE: f64 = 100.0;

/// The figures of the fleet in docs/benchmarks.md. Without arguments: all of them.
#[derive(Debug, Parser)]
struct Args {
    /// How many agents, each size in a fleet of its own
    #[arg(long, value_delimiter = ',', default_value = "1000,5000,10000")]
    agents: Vec<usize>,
    /// Services
    #[arg(long, default_value_t = 10_000)]
    services: usize,
    /// Endpoints of each
    #[arg(long, default_value_t = 10)]
    endpoints: usize,
    /// For how long half of the largest fleet is stalled; 600 is what the budget speaks of
    #[arg(long, default_value_t = 600)]
    stalled_seconds: u64,
    /// Shortens everything, so that nothing of it means anything but that it works
    #[arg(long)]
    quick: bool,
    /// Processors of the server, as taskset lists them; by default the first half of all
    #[arg(long, requires = "swarm_cpus")]
    server_cpus: Option<String>,
    /// Processors of the load, and how many these are: 2-3:2
    #[arg(long)]
    swarm_cpus: Option<String>,
}

fn main() -> ExitCode {
    match Bench::run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("bench-fleet: {e:#}");
            ExitCode::FAILURE
        }
    }
}

struct Bench {
    args: Args,
    processors: Processors,
    table: Table,
    /// What is to be compared between the sizes.
    sizes: Vec<Size>,
}

/// What a fleet of one size cost.
#[derive(Clone, Debug, Default)]
struct Size {
    agents: usize,
    rss_kib: f64,
    idle_cpu: f64,
    /// By pace, in the order of [`PACES`].
    churned: Vec<Costs>,
}

/// CPU of the server, and how late the last agent was.
#[derive(Clone, Copy, Debug, Default)]
struct Costs {
    per_wave: f64,
    per_change: f64,
    last_p99: f64,
}

impl Bench {
    fn run(args: Args) -> Result<()> {
        let processors = match (&args.server_cpus, &args.swarm_cpus) {
            (Some(server), Some(swarm)) => Processors::given(server, swarm)?,
            _ => Processors::halves()?,
        };
        let head = ["what", "budget", "distributary"];
        let mut bench = Self { args, processors, table: Table::new(&head), sizes: Vec::new() };
        let sizes = bench.args.agents.clone();
        let largest = sizes.iter().copied().max().unwrap_or(0);
        for agents in sizes {
            bench.fleet(agents, agents == largest)?;
        }
        bench.growth();
        bench.bytes()?;
        let text = format!("{}\n\n{}", bench.machine()?, bench.table.text());
        println!("\n{text}");
        let folder = std::env::current_exe()?;
        let file = folder.ancestors().nth(2).map(|target| target.join("bench-fleet.md"));
        if let Some(file) = file {
            fs::write(&file, text)?;
            println!("also in {}", file.display());
        }
        Ok(())
    }

    fn machine(&self) -> Result<String> {
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
        let all = std::thread::available_parallelism()?;
        let Processors { server, swarm, .. } = &self.processors;
        let shortened = match (self.args.quick, self.args.stalled_seconds) {
            (true, _) => "; **shortened to see whether it works: these figures mean nothing**".to_owned(),
            (false, 600) => String::new(),
            (false, seconds) => format!("; stalled for {seconds} s instead of 600"),
        };
        Ok(format!(
            "{all} cores, Linux {}; server on {server}, load on {swarm}; {} services, {} endpoints{shortened}",
            kernel.trim(),
            thousands(self.args.services),
            thousands(self.args.services * self.args.endpoints),
        ))
    }

    fn time(&self, seconds: u64) -> Duration {
        Duration::from_secs(if self.args.quick { seconds.min(3) } else { seconds })
    }

    fn world(&self, agents: usize) -> Vec<String> {
        let flag = |name: &str, value: usize| [format!("--{name}"), value.to_string()];
        [("services", self.args.services), ("endpoints", self.args.endpoints), ("nodes", agents)]
            .into_iter()
            .flat_map(|(name, value)| flag(name, value))
            .collect()
    }

    fn row(&mut self, what: &str, budget: &str, found: &str) {
        step(&format!("{what}: {found}"));
        self.table.row(&[what, budget, found]);
    }

    fn fleet(&mut self, agents: usize, largest: bool) -> Result<()> {
        step(&format!("{agents} agents come"));
        let mut stage = Stage::new(&self.processors, &self.world(agents), agents, &[])?;
        let of = format!("{} agents", thousands(agents));
        let joined = stage.joined.clone();
        self.row(&format!("{of} join an empty server by snapshot"), "–", &came(&joined, agents));

        pause(self.time(8));
        let (before, after) = stage.rest(self.time(12))?;
        let mut size = Size { agents, ..Size::default() };
        let grown = after.rss_kib.saturating_sub(stage.empty.rss_kib);
        size.rss_kib = grown as f64 / agents as f64;
        size.idle_cpu = after.share_since(&before) * 1e6 / agents as f64;
        let found = format!(
            "**{:.1} KB** ({} without agents, {} with)",
            size.rss_kib * 1.024,
            kib(stage.empty.rss_kib),
            kib(after.rss_kib)
        );
        self.row(&format!("server's memory per agent, {of}"), "≤ 40 KB", &found);
        let found = format!(
            "{:.1} µs of CPU a second ({:.1} % of a core in all)",
            size.idle_cpu,
            after.share_since(&before) * 100.0
        );
        self.row(&format!("an agent in quiet (heartbeats), {of}"), "–", &found);

        for (rate, seconds) in PACES {
            let churned = stage.churn(rate, self.time(seconds))?;
            size.churned.push(self.churned(&of, rate, &churned, size.idle_cpu, agents));
        }
        self.acks(&mut stage, &of)?;

        let cut = stage.cut(100)?;
        self.row(
            &format!("all cut and come again by cursor, 100 changes behind, {of}"),
            "–",
            &came(&cut, agents),
        );
        let missed: &[usize] = if largest { &MISSED } else { &MISSED[1..2] };
        for &changes in missed {
            let again = stage.fail_over(Says::Everything, changes)?;
            // 16 bytes a service in each bucket that differs, and what changed, here at most a put of ten endpoints.
            let what = format!(
                "all come to another process after kill -9 by buckets, {changes} services changed, {of}"
            );
            self.row(
                &what,
                "≤ 8 KB + 16 B × services in differing buckets + 1.2 × what changed",
                &came(&again, agents),
            );
        }
        let again = stage.fail_over(Says::Nothing, 100)?;
        self.row(
            &format!("the same by snapshot, as agents that hold nothing, {of}"),
            "–",
            &came(&again, agents),
        );
        if largest {
            self.stalled(&mut stage, &of)?;
        }
        self.sizes.push(size);
        Ok(())
    }

    fn churned(&mut self, of: &str, rate: f64, churned: &Churned, idle: f64, agents: usize) -> Costs {
        let pairs = (churned.changes * agents).max(1) as f64;
        let waves = churned.counts.frames.max(1) as f64;
        let quiet = idle * churned.wall.as_secs_f64() * agents as f64;
        let cpu = (churned.cpu.as_micros() as f64 - quiet).max(0.0);
        let costs = Costs {
            per_wave: cpu / waves,
            per_change: cpu / pairs,
            last_p99: percentile(&churned.took.last, 99),
        };
        let what = format!("{rate} changes a second, {of}: server's CPU");
        let found = format!(
            "**{:.1} µs** a wave and agent with its ack, {:.2} µs a change and agent ({} changes in {:.0} waves to each)",
            costs.per_wave,
            costs.per_change,
            thousands(churned.changes),
            waves / agents as f64
        );
        self.row(&what, "≤ 30 µs a wave, ≤ 20 µs an ack", &found);
        let spread: Vec<String> = [(500, "p50"), (990, "p99"), (999, "p99.9"), (1000, "max")]
            .iter()
            .map(|(share, name)| {
                format!("{name} {}", millis(churned.took.histogram.per_mille(*share).unwrap_or(0)))
            })
            .collect();
        let spare = match churned.busy < 0.9 {
            true => "",
            false => " **the load had no CPU to spare: this does not count**;",
        };
        let found = format!(
            "{}; to the last agent p50 {}, **p99 {}**;{spare} load {:.0} % busy, its timers late by {:.1} ms (p99)",
            spread.join(", "),
            millis(percentile(&churned.took.last, 50) as u64),
            millis(costs.last_p99 as u64),
            churned.busy * 100.0,
            churned.late
        );
        self.row(&format!("{rate} changes a second, {of}: change → received"), "last p99 ≤ 500 ms", &found);
        costs
    }

    /// What an ack costs is what acks cost more than none, at a pace where each wave is acked.
    fn acks(&mut self, stage: &mut Stage, of: &str) -> Result<()> {
        let time = self.time(10);
        let with = stage.churn(1.0, time)?;
        stage.swarm.order(&Order::Mute(true))?;
        let without = stage.churn(1.0, time)?;
        stage.swarm.order(&Order::Mute(false))?;
        let acks = with.counts.acks.max(1) as f64;
        let per_second = |churned: &Churned| churned.cpu.as_micros() as f64 / churned.wall.as_secs_f64();
        let more = (per_second(&with) - per_second(&without)) * with.wall.as_secs_f64() / acks;
        let found = format!("{more:.1} µs of CPU ({} acks, and as long without)", thousands(acks as usize));
        self.row(&format!("an ack, {of}"), "≤ 20 µs", &found);
        Ok(())
    }

    fn stalled(&mut self, stage: &mut Stage, of: &str) -> Result<()> {
        let time = Duration::from_secs(if self.args.quick { 5 } else { self.args.stalled_seconds });
        // The same without, so that what is compared differs in nothing else.
        let reading = stage.churn(STALLED_PACE, self.time(20))?.rss_kib;
        stage.swarm.order(&Order::Stall(50))?;
        stage.replica.rate(STALLED_PACE)?;
        let began = Instant::now();
        let mut most = Usage::default();
        while began.elapsed() < time {
            pause(Duration::from_secs(1).min(time));
            let usage = stage.replica.usage()?;
            if usage.rss_kib > most.rss_kib {
                most = usage;
            }
        }
        let broken = stage.swarm.status()?.counts;
        stage.replica.rate(0.0)?;
        stage.replica.changes()?;
        let freed = Instant::now();
        stage.swarm.order(&Order::Stall(0))?;
        stage.all_agree()?;
        let caught_up = freed.elapsed();
        let more = (most.rss_kib as f64 / reading as f64 - 1.0) * 100.0;
        let found = format!(
            "**{more:+.1} %**: at most {}, with all reading {}; {} streams were cut meanwhile; in step again {:.1} s after the stall",
            kib(most.rss_kib),
            kib(reading),
            broken.broken,
            caught_up.as_secs_f64()
        );
        let what = format!(
            "half stalled for {} s at {STALLED_PACE} changes a second, {of}: server's memory",
            time.as_secs()
        );
        self.row(&what, "≤ 10 % above all reading", &found);
        Ok(())
    }

    /// From the smallest fleet to the largest.
    fn growth(&mut self) {
        let (Some(small), Some(large)) = (
            self.sizes.iter().min_by_key(|size| size.agents).cloned(),
            self.sizes.iter().max_by_key(|size| size.agents).cloned(),
        ) else {
            return;
        };
        if small.agents == large.agents {
            return;
        }
        let of = format!("{} against {} agents", thousands(large.agents), thousands(small.agents));
        let more = large.agents as f64 / small.agents as f64;
        let budget = format!("in all ≤ {more:.0}×, so per agent ≤ 1×");
        let found = ratio(large.rss_kib, small.rss_kib);
        self.row(&format!("growth of memory per agent, {of}"), &budget, &found);
        for (index, (rate, _)) in PACES.iter().enumerate() {
            let (Some(few), Some(many)) = (small.churned.get(index), large.churned.get(index)) else {
                continue;
            };
            let found = format!(
                "CPU a wave and agent {}, a change and agent {}",
                ratio(many.per_wave, few.per_wave),
                ratio(many.per_change, few.per_change)
            );
            self.row(&format!("growth at {rate} changes a second, {of}"), &budget, &found);
        }
    }

    /// One change a wave, to a few agents.
    fn bytes(&mut self) -> Result<()> {
        for (flags, names, budget) in [
            (&[][..], "names of 27 and 22 bytes", "≤ 150 B"),
            (&["--long-names"][..], "names of 57 and 42 bytes", "≤ 220 B"),
        ] {
            let mut world = self.world(1_000);
            world.extend(flags.iter().map(|flag| (*flag).to_owned()));
            let mut stage = Stage::new(&self.processors, &world, 20, flags)?;
            let churned = stage.churn(2.0, self.time(5))?;
            ensure!(churned.counts.frames > 0, "no frames came");
            let bytes = churned.counts.frame_bytes as f64 / churned.counts.frames as f64;
            let found = format!("**{bytes:.0} B** ({} frames)", churned.counts.frames);
            self.row(&format!("bytes for one endpoint replaced, per agent, {names}"), budget, &found);
        }
        Ok(())
    }
}

fn came(came: &Came, agents: usize) -> String {
    let Came { took, cpu, counts } = came;
    format!(
        "last in step after **{:.2} s**; {} of CPU and **{} B** an agent (at most {} B); {} by cursor, {} by buckets, {} by snapshot; {} asked to wait",
        took.as_secs_f64(),
        micros(cpu.as_micros() as f64 / agents as f64),
        thousands((counts.opening_bytes / counts.ends.max(1)) as usize),
        thousands(counts.most_opening_bytes as usize),
        thousands(counts.resumes as usize),
        thousands(counts.repairs as usize),
        thousands(counts.snapshots as usize),
        thousands(counts.throttled as usize)
    )
}

/// By nearest rank, in microseconds.
fn percentile(samples: &[u64], percent: usize) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).map_or(f64::NAN, |sample| *sample as f64)
}

fn step(what: &str) {
    static BEGAN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    eprintln!("{:5.0} s  {what}", BEGAN.get_or_init(Instant::now).elapsed().as_secs_f64());
}
