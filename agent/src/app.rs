//! Wiring: from the command line to running tasks.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use distributary_runtime::admin::{self, SharedRegistry};
use distributary_runtime::process::{Process, raise_open_files};
use distributary_runtime::ready::{Pending, Ready};
use distributary_runtime::tasks::Tasks;
use jiff::Timestamp;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::args::{RunArgs, load};
use crate::checkpoint::store::Store;
use crate::cleanup;
use crate::config::{Backend, Config};
use crate::conntrack::table::Conntrack;
use crate::conntrack::{self, Ledger, Worker};
use crate::debug::{self, Told};
use crate::health::ports::Ports;
use crate::health::{Health, Settings, server};
use crate::host;
use crate::host::families::{Programmable, programmable};
use crate::iptables::{self, Family, Flavour, Options};
use crate::kernel::nft::Nft;
use crate::kernel::tools::Tools;
use crate::kernel::{Kernel, Readable, Table};
use crate::metrics::Metrics;
use crate::metrics::kube_proxy::Waiting;
use crate::nfacct;
use crate::observe;
use crate::reconcile::{self, Reconciler, Ruleset, Xtables};
use crate::sync::client::{Client, Look};
use crate::sync::mailbox::Mailbox;
use crate::sync::{self, Programmed};

/// For what is held to be saved when the process ends.
const LAST_SAVE: Duration = Duration::from_secs(5);

/// Follows a server and programs the node until shutdown. The rules stay. `flags` is what people are shown of `args`.
///
/// # Errors
/// When the arguments are refused, the node cannot be programmed at all, or a part ends by itself.
pub async fn run(
    args: RunArgs,
    flags: Arc<[(String, String)]>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let config = args.config(&host::name())?;
    if let Some(path) = &args.write_config_to {
        return load::write(&config, path);
    }
    if args.observe.observe {
        return observe::run(args, config, shutdown).await;
    }
    let tables = host::nftables::choose(config.backend).await?;
    let backend = if tables.is_some() { Backend::Nftables } else { Backend::Iptables };
    let config = config.of_backend(backend);
    for net in config.loopback_in_vain() {
        tracing::error!(%net, "--nodeport-addresses has a loopback network where node ports are not answered");
    }
    let RunArgs {
        rules, state, server, security, iptables_flavour, init_only, unhealthy_after_stale, ..
    } = args;
    if init_only {
        return prepare(&config, iptables_flavour.wanted()).await;
    }
    let dialer = security.dialer(&server)?;
    // A node without rules is worse off than one with these as they are.
    if let Err(e) = raise_open_files() {
        tracing::warn!(error = %e, "the limit of open files stays as it is; each health check port needs one");
    }
    for e in host::sysctl::conntrack(&config.conntrack) {
        tracing::error!(error = format!("{e:#}"), "connection tracking stays as it is");
    }
    if let Err(e) = host::sysctl::oom_score(config.oom_score_adj) {
        tracing::warn!(error = format!("{e:#}"), "the OOM score stays as it is");
    }
    let (counters, be_liberal) = (nfacct::ensure(), host::sysctl::is_liberal());
    let mut readable = Vec::new();
    let rulesets = match tables {
        Some(tables) => {
            let ruleset = |(family, table): (Family, Nft)| {
                tracing::info!(family = family.as_str(), backend = "nftables", "will be programmed");
                let options = config.nftables_options(rules.cluster());
                Ruleset::new(reconcile::Nft::new(family, table, options))
            };
            Rulesets::Nftables(tables.into_iter().map(ruleset).collect())
        }
        None => {
            let mut rulesets = Vec::new();
            for Programmable { family, tools, flavour } in programmable(iptables_flavour.wanted()).await? {
                let options = Options { counters, be_liberal, ..config.options(rules.cluster(), flavour) };
                readable.push(tools.clone());
                rulesets.push(Ruleset::new(Xtables::new(family, tools, options)));
                tracing::info!(family = family.as_str(), flavour = ?flavour, "will be programmed");
            }
            Rulesets::Iptables(rulesets)
        }
    };
    let look: Look = Box::new(move || Box::pin(holds_rules(readable.clone())));
    let families = rulesets.families();
    config.suits(&families)?;
    let admin = match config.metrics {
        None => None,
        Some(address) => Some(
            TcpListener::bind(address)
                .await
                .with_context(|| format!("--metrics-bind-address {address} cannot be listened on"))?,
        ),
    };

    let started = Timestamp::now();
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Process::new()));
    let metrics = Metrics::register(&mut registry);
    let mailbox = Arc::new(Mailbox::default());
    registry.register_collector(Box::new(Waiting::new(mailbox.clone(), families.clone(), started.into())));
    if counters {
        nfacct::register(&mut registry);
    }
    let passes = conntrack::metrics::Metrics::register(&mut registry, families.iter().copied());
    let ledgers = families.iter().map(|&family| Ledger::new(family, rules.cluster())).collect();
    let flows = Arc::new(conntrack::Mailbox::default());
    let registry: SharedRegistry = Arc::new(Mutex::new(registry));
    let settings = Settings {
        cluster: rules.cluster(),
        node: config.node.clone(),
        sync_period: config.sync_period,
        unhealthy_after_stale,
        served: config.healthz.is_some(),
    };
    let health = Health::new(settings, mailbox.clone(), metrics.last_heard());
    let ready = Ready::default();
    let (programmed, seen) = watch::channel(Programmed::default());
    let settings = sync::Settings {
        patience: state.hold_removals,
        ..sync::Settings::new(rules.cluster(), config.node.clone())
    };
    let client =
        Client::new(server, dialer, settings.clone(), mailbox.clone(), seen.clone(), metrics.clone())
            .until(shutdown.clone());
    let (client, saving) = match state.state_dir {
        None => (client, None),
        Some(folder) => {
            let store = Store::open(&folder)?;
            let saved = store.load_or_not(&settings.cluster, &settings.node);
            let (saves, checkpoints) = mpsc::channel(1);
            let saving = tokio::spawn(store.run(checkpoints, metrics.checkpoint_failures.clone()));
            (client.saving(settings, saved, saves, look), Some(saving))
        }
    };

    let mut tasks = Tasks::default();
    if config.routes_localnet() {
        tasks.spawn("localnet", route_localnet(seen.clone()));
    }
    tasks.spawn("take-over", take_over(seen.clone(), backend));
    tasks.spawn("ready", when_programmed(seen, ready.hold("the first write to the kernel")));
    if let Some(admin) = admin {
        let told = Told { config: Arc::new(config.to_v1alpha1()), flags, started };
        let more = debug::router(told).merge(debug::stream::router(client.status(), client.release()));
        tasks.spawn("admin", admin::serve(admin, ready, registry, more, shutdown.clone()));
    }
    let mut stream = tokio::spawn(client.run());
    tasks.spawn("conntrack", Worker::new(ledgers, Conntrack, passes).run(flows.clone()));
    let (addresses, listed) = watch::channel(BTreeSet::new());
    if config.needs_addresses() {
        addresses.send_replace(host::addresses::list().await?);
        tasks.spawn("addresses", host::addresses::follow(addresses));
    }
    if let Some(path) = rules.config.clone() {
        tasks.spawn("configuration", load::until_changed(path));
    }
    if let Some(address) = config.healthz {
        let (health, counted) = (health.clone(), metrics.kube_proxy.clone());
        let hard_fail = config.bind_address_hard_fail;
        tasks.spawn("health", server::run(address, hard_fail, health, counted, shutdown.clone()));
    }
    match rulesets {
        Rulesets::Iptables(rulesets) => {
            let reconciler = Reconciler::new(&config, rulesets, listed, programmed, metrics, health.clone());
            follow(reconciler.followed_by(flows), health, mailbox, &mut tasks);
        }
        Rulesets::Nftables(rulesets) => {
            let reconciler = Reconciler::new(&config, rulesets, listed, programmed, metrics, health.clone());
            follow(reconciler.followed_by(flows), health, mailbox, &mut tasks);
            tasks.spawn("firewalls", host::nftables::watch_firewalls());
        }
    }
    let (ended, streaming) = tokio::select! {
        ended = tasks.supervise(&shutdown) => (ended, Some(stream)),
        ended = &mut stream => (ended.map_err(anyhow::Error::from).flatten().context("stream"), None),
    };
    // What is held is saved before the process ends.
    shutdown.cancel();
    let last = async {
        if let Some(stream) = streaming {
            let _ = stream.await;
        }
        if let Some(saving) = saving {
            let _ = saving.await;
        }
    };
    if tokio::time::timeout(LAST_SAVE, last).await.is_err() {
        tracing::warn!("the last checkpoint took too long and was not saved");
    }
    ended
}

/// What is programmed, family by family.
enum Rulesets {
    Iptables(Vec<Ruleset<Xtables<Tools>>>),
    Nftables(Vec<Ruleset<reconcile::Nft<Nft>>>),
}

impl Rulesets {
    fn families(&self) -> Vec<Family> {
        match self {
            Self::Iptables(all) => all.iter().map(Ruleset::family).collect(),
            Self::Nftables(all) => all.iter().map(Ruleset::family).collect(),
        }
    }
}

/// Sets a reconciler to work.
fn follow<B: reconcile::Backend + 'static>(
    reconciler: Reconciler<B>,
    health: Health,
    mailbox: Arc<Mailbox>,
    tasks: &mut Tasks,
) {
    tasks.spawn("health check ports", Ports::new(health, reconciler.node()).run());
    tasks.spawn("reconcile", reconciler.run(mailbox));
}

/// What another backend left is removed once this one's rules are in the kernel.
async fn take_over(mut seen: watch::Receiver<Programmed>, backend: Backend) -> anyhow::Result<()> {
    seen.wait_for(|programmed| programmed.written).await.context("the reconciler is gone")?;
    cleanup::after_take_over(backend).await;
    std::future::pending().await
}

/// Whether the kernel holds chains of Services, ours or kube-proxy's, or our table; `None`: it cannot be seen.
async fn holds_rules(mut readable: Vec<Tools>) -> Option<bool> {
    for family in [Family::V4, Family::V6] {
        match Nft(family).is_there().await {
            Ok(true) => return Some(true),
            Ok(false) => {}
            // Who has iptables only may be without this tool.
            Err(e) if readable.is_empty() => {
                tracing::warn!(error = %e, "it cannot be seen whether the kernel holds rules");
                return None;
            }
            Err(_) => {}
        }
    }
    for tools in &mut readable {
        match tools.save().await {
            Ok(saved) if iptables::holds_services(&iptables::parse(&saved)) => return Some(true),
            Ok(_) => {}
            Err(e) => {
                tracing::warn!(error = %e, "it cannot be seen whether the kernel holds rules");
                return None;
            }
        }
    }
    Some(false)
}

/// Does what needs more rights than rules do: the rule that keeps others off the loopback network comes before the
/// kernel routes packets to it.
async fn prepare(config: &Config, flavour: Option<Flavour>) -> anyhow::Result<()> {
    if let Some(e) = host::sysctl::conntrack(&config.conntrack).into_iter().next() {
        return Err(e);
    }
    nfacct::ensure();
    if config.backend == Backend::Nftables {
        return Ok(());
    }
    for mut one in programmable(flavour).await? {
        if one.family == Family::V4 && config.routes_localnet() {
            let saved = one.tools.save().await?;
            if let Some(text) = iptables::localnet_first(&iptables::parse(&saved)) {
                one.tools.restore(&text).await?;
            }
            host::sysctl::route_localnet()?;
        }
    }
    Ok(())
}

/// Once the rule that keeps others off is in the kernel.
async fn route_localnet(mut seen: watch::Receiver<Programmed>) -> anyhow::Result<()> {
    seen.wait_for(|programmed| programmed.written).await.context("the reconciler is gone")?;
    if let Err(e) = host::sysctl::route_localnet() {
        tracing::error!(error = format!("{e:#}"), "node ports are not answered at the loopback address");
    }
    std::future::pending().await
}

async fn when_programmed(mut seen: watch::Receiver<Programmed>, ready: Pending) -> anyhow::Result<()> {
    seen.wait_for(|programmed| programmed.written).await.context("the reconciler is gone")?;
    drop(ready);
    std::future::pending().await
}
