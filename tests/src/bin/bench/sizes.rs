//! Everything that depends on how many Services of ten endpoints there are, in a real apiserver, with kube-proxy beside
//! it.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use distributary_e2e::controlplane::{ControlPlane, Options};
use distributary_e2e::figures::{Samples, seconds};
use distributary_e2e::netns::Namespace;
use distributary_e2e::process::Running;
use kube::Client;

use super::agent::{Agent, FirstSync};
use super::backend::{Backend, Mode};
use super::connections::{self, Targets};
use super::floor::{Floor, Written};
use super::kube_proxy::KubeProxy;
use super::load::{ENDPOINTS, Load, node_name};
use super::node::{Node, server};
use super::report::{Report, in_a_cell};
use super::wire::weigh;
use super::{Args, Part, step};

/// kube-proxy iptables is run up to this many Services: at 5,000 its first sync takes over ten minutes.
const KUBE_PROXY_UP_TO: usize = 1000;
/// How long its first sync may take beyond, where it is asked for all the same…
const LONG_PATIENCE: Duration = Duration::from_secs(15 * 60);
/// …and otherwise.
const PATIENCE: Duration = Duration::from_secs(180);
/// A first sync of kube-proxy's that takes longer is not made again.
const TOO_LONG: Duration = Duration::from_secs(20);
/// For how long it is asked for changes.
const ASKED_FOR: Duration = Duration::from_secs(45);
/// Two samples of the kernel's floor for so many changes.
const FLOOR_EVERY: usize = 40;

/// A real control plane, and our server beside it.
pub(crate) struct Cluster<'a> {
    args: &'a Args,
    hub: Arc<Namespace>,
    cluster: ControlPlane,
    client: Client,
    load: Load,
    _server: Running,
}

/// An agent's runs at one size.
#[derive(Debug)]
struct Ours {
    backend: Backend,
    syncs: Vec<FirstSync>,
    /// Of the last round. The rules are there, the agent is not.
    node: Option<Node>,
    error: Option<anyhow::Error>,
}

/// kube-proxy's at the same.
#[derive(Debug)]
struct Theirs {
    mode: Mode,
    first: Samples,
    kernel: Samples,
    changes: Samples,
    added: Samples,
    mib: f64,
    node: Option<Node>,
    /// Why some of that is missing.
    error: Option<String>,
}

impl<'a> Cluster<'a> {
    pub(crate) async fn start(args: &'a Args) -> Result<Self> {
        let hub = Arc::new(Namespace::new()?);
        step("kube-apiserver and etcd");
        let options = Options { namespace: Some(Arc::clone(&hub)), ..Options::default() };
        let cluster = ControlPlane::start_with(&options)?;
        let client = cluster.client().await?;
        let load = Load::start(&client).await?;
        let kubeconfig = cluster.kubeconfig().display().to_string();
        let server = server(&hub, &["--source", "kubernetes", "--kubeconfig", &kubeconfig]).await?;
        Ok(Self { args, hub, cluster, client, load, _server: server })
    }

    /// One size after the other.
    pub(crate) async fn sizes(&mut self, report: &mut Report) {
        for services in &self.args.services {
            step(&format!("{services} Services × {ENDPOINTS} endpoints"));
            match self.load.grow(*services).await {
                Ok(took) => step(&format!("  created in {:.0} s", took.as_secs_f64())),
                Err(e) => return report.failed(&format!("{services} Services in the apiserver"), &e),
            }
            self.size(report).await;
        }
    }

    async fn size(&mut self, report: &mut Report) {
        let (mut ours, mut theirs) = self.first_syncs().await;
        if self.args.wants(Part::First) {
            self.first_rows(report, &ours, &theirs);
        }
        ours.iter().for_each(|ours| {
            if let Some(e) = &ours.error {
                report.failed(&format!("first sync, {}, {}", self.size_name(), ours.backend), e);
            }
        });
        if self.args.wants(Part::Packets) {
            let measured = self.packets(&ours, &theirs).await;
            match measured {
                Ok((ours, theirs)) => self.packet_rows(report, &ours, &theirs),
                Err(e) => report.failed(&format!("packets, {}", self.size_name()), &e),
            }
        }
        ours.iter_mut().for_each(|ours| ours.node = None);
        theirs.iter_mut().for_each(|theirs| theirs.node = None);
        for ours in ours.iter().filter(|ours| ours.error.is_none()) {
            if ours.backend != Backend::IptablesLegacy {
                self.steady(report, ours.backend, &theirs).await;
            }
        }
    }

    fn size_name(&self) -> String {
        format!("{} × {ENDPOINTS}", self.load.services())
    }

    /// Rounds of all programs in turns.
    async fn first_syncs(&mut self) -> (Vec<Ours>, Vec<Theirs>) {
        let mut ours: Vec<Ours> = self.args.backends.iter().map(|backend| Ours::new(*backend)).collect();
        let modes = Mode::ALL.iter().filter(|mode| self.is_run(**mode));
        let mut theirs: Vec<Theirs> = modes.map(|mode| Theirs::new(*mode)).collect();
        let rounds = if self.args.wants(Part::First) { self.args.rounds } else { 1 };
        for round in 1..=rounds {
            for ours in ours.iter_mut().filter(|ours| ours.error.is_none()) {
                // The namespace of the round before goes first.
                ours.node = None;
                match self.agent(ours.backend).await {
                    Ok((node, _, first)) => {
                        step(&format!("  first sync {round}, {}: {first}", ours.backend));
                        ours.syncs.push(first);
                        ours.node = Some(node);
                    }
                    Err(e) => ours.error = Some(e),
                }
            }
            for theirs in &mut theirs {
                if round > 1 && (theirs.error.is_some() || theirs.took_too_long()) {
                    continue;
                }
                if let Err(e) = self.kube_proxy(theirs, round == rounds).await {
                    step(&format!("  kube-proxy {}: {e:#}", theirs.mode));
                    theirs.error = Some(in_a_cell(&e));
                }
            }
        }
        (ours, theirs)
    }

    fn is_run(&self, mode: Mode) -> bool {
        let ends = self.load.services() <= KUBE_PROXY_UP_TO || self.args.with_kube_proxy_5000;
        !self.args.without_kube_proxy && (mode == Mode::Nftables || ends)
    }

    /// A new node with an agent that has synced.
    async fn agent(&self, backend: Backend) -> Result<(Node, Agent, FirstSync)> {
        let node = Node::new(&self.hub, Some(&self.cluster))?;
        let mut agent = Agent::start(&node, &node_name(0), backend)?;
        let first = agent.first_sync().await?;
        let services = self.load.services();
        ensure!(first.services >= services.try_into()?, "{} of {services} services", first.services);
        agent.warnings().iter().for_each(|line| step(&format!("  the agent warns: {line}")));
        Ok((node, agent, first))
    }

    /// A new node with a kube-proxy that syncs, and in its last round also follows changes.
    async fn kube_proxy(&mut self, theirs: &mut Theirs, last: bool) -> Result<()> {
        theirs.node = None;
        let node = Node::new(&self.hub, Some(&self.cluster))?;
        let mut kube_proxy = KubeProxy::start(&node, &self.cluster, theirs.mode)?;
        let beyond = theirs.mode == Mode::Iptables && self.load.services() > KUBE_PROXY_UP_TO;
        let millis = kube_proxy.first_sync(if beyond { LONG_PATIENCE } else { PATIENCE }).await?;
        theirs.first.push(millis);
        theirs.kernel.push(kube_proxy.kernel_memory()?);
        theirs.mib = kube_proxy.memory()?;
        step(&format!("  first sync, kube-proxy {}: {}", theirs.mode, seconds(millis)));
        theirs.node = Some(node);
        if last || theirs.took_too_long() {
            self.their_changes(&mut kube_proxy, theirs).await?;
        }
        theirs.mib = theirs.mib.max(kube_proxy.memory()?);
        Ok(())
    }

    async fn their_changes(&mut self, kube_proxy: &mut KubeProxy, theirs: &mut Theirs) -> Result<()> {
        let most = self.args.kube_proxy_changes;
        let began = Instant::now();
        while self.args.wants(Part::Changes) && theirs.changes.len() < most && began.elapsed() < ASKED_FOR {
            let load = &mut self.load;
            let change = async { load.change().await.map(drop) };
            theirs.changes.push(kube_proxy.change(change).await?);
        }
        step(&format!("  kube-proxy {}, one endpoint changed: {}", theirs.mode, theirs.changes.spread()));
        let began = Instant::now();
        while self.args.wants(Part::Comings) && theirs.added.len() < most && began.elapsed() < ASKED_FOR {
            let added = kube_proxy.change(self.load.add()).await;
            let removed = kube_proxy.change(self.load.remove()).await;
            theirs.added.push(added?);
            removed?;
        }
        step(&format!("  kube-proxy {}, one Service added: {}", theirs.mode, theirs.added.spread()));
        Ok(())
    }

    fn first_rows(&self, report: &mut Report, ours: &[Ours], theirs: &[Theirs]) {
        for ours in ours.iter().filter(|ours| !ours.syncs.is_empty()) {
            let median = |of: fn(&FirstSync) -> f64| ours.median(of);
            let told = format!(
                "**{}** (median of {}); CPU: agent {:.2} s, tools {:.2} s; the tool's peak ≥ {:.0} MiB",
                seconds(median(|run| run.millis)),
                ours.syncs.len(),
                median(|run| run.agent_cpu),
                median(|run| run.tools_cpu),
                ours.syncs.iter().map(|run| run.tool_mib).fold(0.0, f64::max),
            );
            let beside = beside(ours.backend, theirs, |theirs| match theirs.first.len() {
                0 => None,
                1 => Some(seconds(theirs.first.median())),
                runs => Some(format!("{} (median of {runs})", seconds(theirs.first.median()))),
            });
            let what = format!("first sync, {}, {}", self.size_name(), ours.backend);
            report.row(&[what.as_str(), ours.backend.first_sync(self.load.services()), &told, &beside]);
            let what = format!("memory of the kernel for it, {}, {}", self.size_name(), ours.backend);
            let told = format!("≈ {:.0} MiB", median(|run| run.kernel_mib));
            let beside = self::beside(ours.backend, theirs, |theirs| {
                (!theirs.kernel.is_empty()).then(|| format!("≈ {:.0} MiB", theirs.kernel.median()))
            });
            report.row(&[what.as_str(), "–", &told, &beside]);
        }
    }

    /// What packets cost by everybody's rules, in turns.
    async fn packets(
        &self,
        ours: &[Ours],
        theirs: &[Theirs],
    ) -> Result<(Vec<(Backend, Targets)>, Vec<(Mode, Targets)>)> {
        let services = self.load.addresses();
        let targets =
            |node: &Node, tools| Targets::of_services(node, tools, &services)?.and_flow(node, self.load.echo);
        let mut our_targets = Vec::new();
        for ours in ours {
            if let Some(node) = &ours.node {
                our_targets.push((ours.backend, targets(node, ours.backend.tools())?));
            }
        }
        let mut their_targets = Vec::new();
        for theirs in theirs {
            if let Some(node) = &theirs.node {
                their_targets.push((theirs.mode, targets(node, theirs.mode.tools())?));
            }
        }
        let everyone = our_targets.iter_mut().map(|(_, targets)| targets);
        let everyone = everyone.chain(their_targets.iter_mut().map(|(_, targets)| targets));
        connections::measure(&mut everyone.collect::<Vec<_>>()).await?;
        Ok((our_targets, their_targets))
    }

    fn packet_rows(&self, report: &mut Report, ours: &[(Backend, Targets)], theirs: &[(Mode, Targets)]) {
        for (backend, targets) in ours {
            let beside = theirs.iter().filter(|(mode, _)| backend.beside().contains(mode));
            let beside: Vec<_> =
                beside.map(|(mode, theirs)| format!("kube-proxy {mode}: {theirs}")).collect();
            let beside = if beside.is_empty() { "–".to_owned() } else { beside.join("; ") };
            step(&format!("  packets, {backend}: {targets}; {beside}"));
            let what = format!("CPU of a packet, {}, {backend}", self.size_name());
            report.row(&[what.as_str(), "last within 1 µs of the first", &targets.to_string(), &beside]);
        }
    }

    /// Changes, on a node that has all the others.
    async fn steady(&mut self, report: &mut Report, backend: Backend, theirs: &[Theirs]) {
        let size = self.size_name();
        let (node, mut agent, first) = match self.agent(backend).await {
            Ok(started) => started,
            Err(e) => return report.failed(&format!("an agent for changes, {size}, {backend}"), &e),
        };
        if self.args.wants(Part::Changes) {
            if let Err(e) = self.changes(report, backend, &node, &mut agent, theirs).await {
                report.failed(&format!("one endpoint changes, {size}, {backend}"), &e);
            }
            if let Err(e) = self.endpoints(report, backend, &mut agent).await {
                report.failed(&format!("one endpoint removed and added, {size}, {backend}"), &e);
            }
            let told = agent.memory().map(|after| {
                let changes = self.args.changes_at(self.load.services());
                format!(
                    "**{:.1} MiB** after the first sync, {after:.1} MiB after {changes} changes",
                    first.agent_mib
                )
            });
            let beside = beside(backend, theirs, |theirs| {
                (theirs.mib > 0.0).then(|| format!("{:.0} MiB", theirs.mib))
            });
            let budget = if self.load.services() == 5000 { "≤ 40 MB" } else { "–" };
            let what = format!("agent's memory (VmRSS), {size}, {backend}");
            match told {
                Ok(told) => report.row(&[what.as_str(), budget, &told, &beside]),
                Err(e) => report.failed(&what, &e),
            }
        }
        if self.args.wants(Part::Comings)
            && let Err(e) = self.comings(report, backend, &mut agent, theirs).await
        {
            report.failed(&format!("one Service added and removed, {size}, {backend}"), &e);
            self.load.ensure_removed().await;
        }
        agent.warnings().iter().for_each(|line| step(&format!("  the agent warns: {line}")));
    }

    /// One endpoint after the other, with the kernel's floor in between.
    async fn changes(
        &mut self,
        report: &mut Report,
        backend: Backend,
        node: &Node,
        agent: &mut Agent,
        theirs: &[Theirs],
    ) -> Result<()> {
        let size = self.size_name();
        let changes = self.args.changes_at(self.load.services());
        let mut floor: Option<Floor> = None;
        let (mut ours, mut whole) = (Samples::default(), Samples::default());
        for change in 0..changes {
            let answered = self.load.change().await?;
            let programmed = agent.change().await?;
            ours.push(programmed.millis);
            whole.push(since(answered, programmed.at)?);
            if change % FLOOR_EVERY == 0
                && let Some(tools) = backend.tools()
            {
                let floor = match &mut floor {
                    Some(floor) => floor,
                    none => none.insert(Floor::of(
                        node,
                        tools,
                        &Written::of(node, tools, &agent.wrote().chains)?,
                    )?),
                };
                floor.sample()?;
            }
            if (change + 1) % 500 == 0 {
                step(&format!("  {} changes, {backend}: {}", change + 1, ours.spread()));
            }
        }
        let floor = floor.map(|floor| floor.told(&ours));
        let theirs = beside(backend, theirs, |theirs| match theirs.changes.len() {
            0 => None,
            runs => Some(format!(
                "p50 {:.0}, max {:.0} ms ({runs} changes)",
                theirs.changes.median(),
                theirs.changes.percentile(100)
            )),
        });
        let besides: Vec<String> = floor.into_iter().chain([theirs]).collect();
        let what = format!("one endpoint changes, frame → kernel, {size}, {backend}");
        report.row(&[what, backend.change().to_owned(), ours.spread(), besides.join("; ")]);
        let what = format!("the same, from the apiserver's answer → kernel, {size}, {backend}");
        report.row(&[what, "–".to_owned(), whole.spread(), "–".to_owned()]);
        Ok(())
    }

    /// One endpoint goes and comes, of another Service each time.
    async fn endpoints(&mut self, report: &mut Report, backend: Backend, agent: &mut Agent) -> Result<()> {
        let (mut removed, mut added) = (Samples::default(), Samples::default());
        for _ in 0..self.args.comings {
            let service = self.load.remove_endpoint().await?;
            removed.push(agent.change().await?.millis);
            self.load.add_endpoint(service).await?;
            added.push(agent.change().await?.millis);
        }
        for (what, samples) in [("removed", removed), ("added", added)] {
            step(&format!("  one endpoint {what}, {backend}: {}", samples.spread()));
            let what = format!("one endpoint {what}, frame → kernel, {}, {backend}", self.size_name());
            report.row(&[what.as_str(), "–", &samples.spread(), "–"]);
        }
        Ok(())
    }

    /// One Service comes and goes.
    async fn comings(
        &mut self,
        report: &mut Report,
        backend: Backend,
        agent: &mut Agent,
        theirs: &[Theirs],
    ) -> Result<()> {
        let (mut added, mut removed) = (Samples::default(), Samples::default());
        for _ in 0..self.args.comings {
            self.load.add().await?;
            added.push(agent.change().await?.millis);
            self.load.remove().await?;
            removed.push(agent.change().await?.millis);
        }
        let beside = beside(backend, theirs, |theirs| match theirs.added.len() {
            0 => None,
            runs => Some(format!("p50 {:.0} ms ({runs} times)", theirs.added.median())),
        });
        for (what, samples, beside) in [("added", added, beside.as_str()), ("removed", removed, "–")] {
            step(&format!("  one Service {what}, {backend}: {}", samples.spread()));
            let what = format!("one Service {what}, frame → kernel, {}, {backend}", self.size_name());
            report.row(&[what.as_str(), "–", &samples.spread(), beside]);
        }
        Ok(())
    }

    /// What one change weighs on the wire.
    pub(crate) async fn wire(&mut self, report: &mut Report) {
        for endpoints in [10, 100] {
            let what = format!("bytes for one endpoint replaced, slice of {endpoints}");
            match weigh(&self.client, &self.hub, endpoints).await {
                Ok(weight) => {
                    step(&format!("one endpoint on the wire: {weight:?}"));
                    let ours = format!("**{} B**", weight.ours);
                    let beside = format!(
                        "the slice's watch event: protobuf {} B, JSON {} B",
                        weight.protobuf, weight.json
                    );
                    report.row(&[what.as_str(), "≤ 150 B", &ours, &beside]);
                }
                Err(e) => report.failed(&what, &e),
            }
        }
    }
}

impl Ours {
    fn new(backend: Backend) -> Self {
        Self { backend, syncs: Vec::new(), node: None, error: None }
    }

    fn median(&self, of: fn(&FirstSync) -> f64) -> f64 {
        let mut samples = Samples::default();
        self.syncs.iter().map(of).for_each(|sample| samples.push(sample));
        samples.median()
    }
}

impl Theirs {
    fn new(mode: Mode) -> Self {
        Self {
            mode,
            first: Samples::default(),
            kernel: Samples::default(),
            changes: Samples::default(),
            added: Samples::default(),
            mib: 0.0,
            node: None,
            error: None,
        }
    }

    fn took_too_long(&self) -> bool {
        self.first.percentile(100) > TOO_LONG.as_secs_f64() * 1000.0
    }
}

/// What kube-proxy has of something, in the modes that stand beside that backend.
fn beside(backend: Backend, theirs: &[Theirs], told: impl Fn(&Theirs) -> Option<String>) -> String {
    let of_mode = |mode: &Mode| {
        let Some(theirs) = theirs.iter().find(|theirs| theirs.mode == *mode) else {
            return format!("kube-proxy {mode} not run");
        };
        let said = told(theirs).or_else(|| theirs.error.clone());
        format!("kube-proxy {mode} {}", said.unwrap_or_else(|| "not measured".to_owned()))
    };
    let all: Vec<String> = backend.beside().iter().map(of_mode).collect();
    if all.is_empty() { "–".to_owned() } else { all.join("; ") }
}

/// Milliseconds from then to a time of the same or the next day.
fn since(then: SystemTime, micros_of_day: i64) -> Result<f64> {
    const DAY: i64 = 86_400_000_000;
    let then = i64::try_from(then.duration_since(UNIX_EPOCH)?.as_micros())? % DAY;
    let micros = (micros_of_day - then + DAY / 2).rem_euclid(DAY) - DAY / 2;
    Ok(micros as f64 / 1000.0)
}
