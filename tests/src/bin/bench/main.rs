//! `make bench`: the figures of docs/benchmarks.md, against a real apiserver and the real kernel, beside kube-proxy's in
//! the same run. Prints a Markdown table, and leaves it in `target/bench.md`.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod connections;
mod floor;
mod kube_proxy;
mod load;
mod node;
mod wire;

use std::fs;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use distributary_e2e::controlplane::{ControlPlane, Options};
use distributary_e2e::deployed;
use distributary_e2e::netns::{Namespace, enter_rootless};
use distributary_e2e::node::SERVER_ADMIN;
use distributary_e2e::process::run;
use kube::Client;

use connections::Target;
use distributary_e2e::figures::{Samples, Table, seconds};
use floor::Floor;
use kube_proxy::KubeProxy;
use load::{ENDPOINTS, Load, MOST};
use node::{Agent, FirstSync, Node};
use wire::weigh;

/// kube-proxy is run up to this many Services: at 5,000 its first sync takes over ten minutes.
const KUBE_PROXY_UP_TO: usize = 1000;
/// How long its first sync may take there, where it is asked for all the same.
const THEIR_PATIENCE: Duration = Duration::from_secs(15 * 60);
/// One sample of the kernel's floor for so many changes.
const FLOOR_EVERY: usize = 40;

/// The figures of docs/benchmarks.md. Without arguments: all of them.
#[derive(Debug, Parser)]
struct Args {
    /// How many Services, one after the other; ascending, at most 5000
    #[arg(long, value_delimiter = ',', default_value = "1000,5000")]
    services: Vec<usize>,
    /// First syncs of each program and size; their median counts
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Changes of one endpoint at each size
    #[arg(long, default_value_t = 2000)]
    changes: usize,
    /// Services added and removed again at each size
    #[arg(long, default_value_t = 100)]
    comings: usize,
    /// Changes of one endpoint for kube-proxy
    #[arg(long, default_value_t = 40)]
    kube_proxy_changes: usize,
    /// Run kube-proxy beyond 1000 Services, too, for at most 15 minutes
    #[arg(long)]
    with_kube_proxy_5000: bool,
    /// Do not run kube-proxy at all
    #[arg(long)]
    without_kube_proxy: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let done = enter_rootless().and_then(|()| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(all(&args))
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("bench: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// What every measurement needs.
struct World<'a> {
    args: &'a Args,
    hub: Arc<Namespace>,
    cluster: ControlPlane,
    client: Client,
    load: Load,
    table: Table,
}

async fn all(args: &Args) -> Result<()> {
    ensure!(args.services.is_sorted() && args.services.iter().all(|n| (1..=MOST).contains(n)), "--services");
    ensure!(
        args.rounds > 0 && args.changes > 0 && args.comings > 0,
        "--rounds, --changes and --comings are at least 1"
    );
    let hub = Arc::new(Namespace::new()?);
    step("kube-apiserver and etcd");
    let cluster =
        ControlPlane::start_with(&Options { namespace: Some(Arc::clone(&hub)), ..Options::default() })?;
    let client = cluster.client().await?;
    let load = Load::start(&client).await?;
    let kubeconfig = cluster.kubeconfig().display().to_string();
    let server = deployed::server(&hub, &["--source", "kubernetes", "--kubeconfig", &kubeconfig])?;
    let _ = deployed::wait_ok(&hub, SERVER_ADMIN, "/readyz");
    let table = Table::new(&["what", "budget", "distributary", "beside it, in the same run"]);
    let mut world = World { args, hub, cluster, client, load, table };
    for services in &args.services {
        step(&format!("{services} Services × {ENDPOINTS} endpoints"));
        let took = world.load.grow(*services).await?;
        step(&format!("  created in {:.0} s", took.as_secs_f64()));
        world.size().await?;
    }
    world.wire().await?;
    drop(server);
    let text = format!("{}\n\n{}", machine()?, world.table.text());
    println!("\n{text}");
    let target = std::env::current_exe()?.ancestors().nth(2).context("target/PROFILE/bench")?.to_owned();
    Ok(fs::write(target.join("bench.md"), text)?)
}

/// kube-proxy's figures at one size; not numbers where it was not run.
#[derive(Debug, Default)]
struct Theirs {
    first: Samples,
    changes: Samples,
    mib: f64,
    /// It did not come to the end of its first sync.
    gave_up: bool,
}

impl World<'_> {
    /// Everything that depends on how many Services there are.
    async fn size(&mut self) -> Result<()> {
        let size = self.load.services();
        let with_kube_proxy = !self.args.without_kube_proxy && size <= KUBE_PROXY_UP_TO;
        let (mut nft, mut legacy, mut theirs) = (Vec::new(), Vec::new(), Theirs::default());
        let (mut our_node, mut their_node) = (None, None);
        for round in 1..=self.args.rounds {
            // The namespaces of the round before go first.
            drop((our_node.take(), their_node.take()));
            let (_, _, first_legacy) = self.agent("legacy").await?;
            let (node, _, first) = self.agent("nft").await?;
            step(&format!("  first sync {round}: nft {}", first.told()));
            step(&format!("  first sync {round}: legacy {}", first_legacy.told()));
            nft.push(first);
            legacy.push(first_legacy);
            our_node = Some(node);
            if with_kube_proxy {
                let (node, kube_proxy) = self.kube_proxy(&mut theirs, Duration::from_secs(300)).await?;
                their_node = Some(node);
                if round == self.args.rounds {
                    self.their_changes(kube_proxy, &mut theirs).await?;
                }
            }
        }
        if !with_kube_proxy && self.args.with_kube_proxy_5000 {
            let tried = self.kube_proxy(&mut theirs, THEIR_PATIENCE).await;
            theirs.gave_up = tried.is_err();
        }
        self.first_rows(&nft, &legacy, &theirs);
        if let Some(ours) = &our_node {
            self.connections(ours, their_node.as_ref()).await?;
        }
        drop((our_node, their_node));
        self.changes(&theirs).await
    }

    fn node(&self) -> Result<Node> {
        Node::new(&self.hub, &self.cluster)
    }

    /// A new node with an agent that has synced.
    async fn agent(&self, flavour: &str) -> Result<(Node, Agent, FirstSync)> {
        let node = self.node()?;
        let mut agent = Agent::start(&node, flavour)?;
        let first = agent.first_sync().await?;
        let services = self.load.services();
        ensure!(first.services >= services.try_into()?, "{} of {services} services", first.services);
        Ok((node, agent, first))
    }

    /// A new node with a kube-proxy that has synced.
    async fn kube_proxy(&self, theirs: &mut Theirs, patience: Duration) -> Result<(Node, KubeProxy)> {
        let node = self.node()?;
        let mut kube_proxy = KubeProxy::start(&node, &self.cluster)?;
        let millis = kube_proxy.first_sync(patience).await?;
        theirs.first.push(millis);
        theirs.mib = kube_proxy.memory()?;
        step(&format!("  first sync: kube-proxy {}, {:.0} MiB", seconds(millis), theirs.mib));
        Ok((node, kube_proxy))
    }

    async fn their_changes(&mut self, mut kube_proxy: KubeProxy, theirs: &mut Theirs) -> Result<()> {
        for _ in 0..self.args.kube_proxy_changes {
            let load = &mut self.load;
            let change = async { load.change().await.map(drop) };
            theirs.changes.push(kube_proxy.change(change).await?);
        }
        theirs.mib = theirs.mib.max(kube_proxy.memory()?);
        step(&format!("  kube-proxy, one endpoint changed: {}", theirs.changes.spread()));
        Ok(())
    }

    fn first_rows(&mut self, nft: &[FirstSync], legacy: &[FirstSync], theirs: &Theirs) {
        let size = self.load.services();
        let budget = match size {
            1000 => "≤ 0.6 s",
            5000 => "≤ 3 s",
            _ => "–",
        };
        let beside = match theirs.first.len() {
            0 if theirs.gave_up => format!("kube-proxy not done after {} min", THEIR_PATIENCE.as_secs() / 60),
            0 => "kube-proxy not run".to_owned(),
            runs => format!("kube-proxy {} (median of {runs})", seconds(theirs.first.median())),
        };
        for (flavour, budget, runs, beside) in
            [("nft", budget, nft, beside.as_str()), ("legacy", "–", legacy, "–")]
        {
            let median = |of: fn(&FirstSync) -> f64| {
                let mut samples = Samples::default();
                runs.iter().map(of).for_each(|sample| samples.push(sample));
                samples.median()
            };
            let ours = format!(
                "**{}** (median of {}); CPU: agent {:.2} s, tools {:.2} s; the tool's peak ≥ {:.0} MiB",
                seconds(median(|run| run.millis)),
                runs.len(),
                median(|run| run.agent_cpu),
                median(|run| run.tools_cpu),
                runs.iter().map(|run| run.tool_mib).fold(0.0, f64::max),
            );
            let what = format!("first sync, {size} × {ENDPOINTS}, iptables-{flavour}");
            self.table.row(&[what.as_str(), budget, &ours, beside]);
        }
    }

    /// One endpoint after the other, with the kernel's floor in between.
    async fn changes(&mut self, theirs: &Theirs) -> Result<()> {
        let size = self.load.services();
        let (node, mut agent, first) = self.agent("nft").await?;
        let mut floor = Floor::of(&node)?;
        let (mut ours, mut whole) = (Samples::default(), Samples::default());
        for change in 0..self.args.changes {
            if change % FLOOR_EVERY == 0 || floor.samples.len() < 2 {
                floor.sample()?;
            }
            let answered = self.load.change().await?;
            let (millis, at) = agent.change().await?;
            ours.push(millis);
            whole.push(since(answered, at)?);
            if (change + 1) % 500 == 0 {
                step(&format!("  {} changes: {}", change + 1, ours.spread()));
            }
        }
        let after = agent.memory()?;
        let over = ours.median() - floor.samples.median();
        step(&format!("  kernel's floor: {:.1} ms; over it: {over:.1} ms", floor.samples.median()));
        let what = format!("one endpoint changes, frame → kernel, {size} × {ENDPOINTS}, iptables-nft");
        let floors = format!(
            "the kernel's floor {:.1} ms (p90 {:.1}, {} runs), so p50 is **{over:+.1} ms**",
            floor.samples.median(),
            floor.samples.percentile(90),
            floor.samples.len(),
        );
        let beside = match theirs.changes.len() {
            0 => floors,
            runs => format!(
                "{floors}; kube-proxy's partial sync p50 {:.0}, max {:.0} ms ({runs} changes)",
                theirs.changes.median(),
                theirs.changes.percentile(100)
            ),
        };
        self.table.row(&[what, "p50 ≤ floor + 10 ms".to_owned(), ours.spread(), beside]);
        let what = format!("the same, from the apiserver's answer → kernel, {size} × {ENDPOINTS}");
        self.table.row(&[what, "–".to_owned(), whole.spread(), "–".to_owned()]);
        let ours = format!(
            "**{:.1} MiB** after the first sync, {after:.1} MiB after {} changes",
            first.agent_mib, self.args.changes
        );
        let beside = match theirs.mib {
            0.0 => "–".to_owned(),
            mib => format!("kube-proxy {mib:.0} MiB"),
        };
        let budget = if size == 5000 { "≤ 40 MB" } else { "–" };
        self.table.row(&[
            format!("agent's memory (VmRSS), {size} × {ENDPOINTS}"),
            budget.to_owned(),
            ours,
            beside,
        ]);
        self.comings(&mut agent).await
    }

    /// One Service comes and goes, on a node that has all the others.
    async fn comings(&mut self, agent: &mut Agent) -> Result<()> {
        let size = self.load.services();
        let (mut added, mut removed) = (Samples::default(), Samples::default());
        for _ in 0..self.args.comings {
            self.load.add().await?;
            added.push(agent.change().await?.0);
            self.load.remove().await?;
            removed.push(agent.change().await?.0);
        }
        for (what, samples) in [("added", added), ("removed", removed)] {
            step(&format!("  one Service {what}: {}", samples.spread()));
            let what = format!("one Service {what}, frame → kernel, {size} × {ENDPOINTS}, iptables-nft");
            self.table.row(&[what, "–".to_owned(), samples.spread(), "–".to_owned()]);
        }
        Ok(())
    }

    /// New connections, by our rules and by kube-proxy's.
    async fn connections(&mut self, ours: &Node, theirs: Option<&Node>) -> Result<()> {
        let mut our_targets = Target::of(ours)?;
        let mut their_targets = theirs.map(Target::of).transpose()?;
        let everyone = our_targets.iter_mut().chain(their_targets.iter_mut().flatten());
        connections::measure(&mut everyone.collect::<Vec<_>>()).await?;
        let told = |targets: &[Target; 3]| {
            let [first, last, none] = targets.each_ref().map(|target| target.samples.least());
            format!("first {first:.1}, last {last:.1}, no service's {none:.1} µs")
        };
        let what = format!("CPU of a new connection, {} services, iptables-nft", self.load.services());
        let beside = their_targets
            .as_ref()
            .map_or_else(|| "–".to_owned(), |theirs| format!("kube-proxy's rules: {}", told(theirs)));
        step(&format!("  new connection: {}; {beside}", told(&our_targets)));
        self.table.row(&[what.as_str(), "last within 1 µs of the first", &told(&our_targets), &beside]);
        Ok(())
    }

    async fn wire(&mut self) -> Result<()> {
        for endpoints in [10, 100] {
            let weight = weigh(&self.client, &self.hub, endpoints).await?;
            step(&format!("one endpoint on the wire: {weight:?}"));
            let what = format!("bytes for one endpoint replaced, slice of {}", weight.endpoints);
            let ours = format!("**{} B**", weight.ours);
            let beside =
                format!("the slice's watch event: protobuf {} B, JSON {} B", weight.protobuf, weight.json);
            self.table.row(&[what.as_str(), "≤ 150 B", &ours, &beside]);
        }
        Ok(())
    }
}

impl FirstSync {
    fn told(&self) -> String {
        format!(
            "{} (CPU: agent {:.2} s, tools {:.2} s; agent {:.1} MiB, tool {:.0} MiB)",
            seconds(self.millis),
            self.agent_cpu,
            self.tools_cpu,
            self.agent_mib,
            self.tool_mib
        )
    }
}

/// Milliseconds from then to a time of the same or the next day.
fn since(then: SystemTime, micros_of_day: i64) -> Result<f64> {
    const DAY: i64 = 86_400_000_000;
    let then = i64::try_from(then.duration_since(UNIX_EPOCH)?.as_micros())? % DAY;
    let micros = (micros_of_day - then + DAY / 2).rem_euclid(DAY) - DAY / 2;
    Ok(micros as f64 / 1000.0)
}

fn machine() -> Result<String> {
    let processors = std::thread::available_parallelism()?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let iptables = run(Command::new("iptables-nft").arg("--version"))?;
    let kube_proxy = distributary_e2e::process::control_plane_program("kube-proxy")?;
    let kube_proxy = run(Command::new(kube_proxy).arg("--version"))?;
    Ok(format!(
        "{processors} cores, Linux {}, {}, kube-proxy: {}",
        kernel.trim(),
        iptables.trim(),
        kube_proxy.trim()
    ))
}

fn step(what: &str) {
    static BEGAN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    eprintln!("{:5.0} s  {what}", BEGAN.get_or_init(Instant::now).elapsed().as_secs_f64());
}
