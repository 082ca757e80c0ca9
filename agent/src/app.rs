//! Wiring: from the command line to running tasks.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use anyhow::{Context, bail};
use distributary_runtime::admin::{self, SharedRegistry};
use distributary_runtime::ready::{Pending, Ready};
use distributary_runtime::tasks::Tasks;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::args::{RunArgs, check_servers, load};
use crate::conntrack::table::Conntrack;
use crate::conntrack::{self, Ledger, Worker};
use crate::host;
use crate::iptables::{Family, Options};
use crate::kernel::Kernel;
use crate::kernel::tools::Tools;
use crate::metrics::Metrics;
use crate::metrics::kube_proxy::Waiting;
use crate::nfacct;
use crate::reconcile::{Reconciler, Ruleset};
use crate::sync::Programmed;
use crate::sync::client::Client;
use crate::sync::mailbox::Mailbox;

/// Follows a server and programs the node until shutdown. The rules stay.
///
/// # Errors
/// When the arguments are refused, the node cannot be programmed at all, or a part ends by itself.
pub async fn run(args: RunArgs, shutdown: CancellationToken) -> anyhow::Result<()> {
    let config = args.config(&host::name())?;
    if let Some(path) = &args.write_config_to {
        return load::write(&config, path);
    }
    for net in config.loopback_in_vain() {
        tracing::error!(%net, "--nodeport-addresses has a loopback network where node ports are not answered");
    }
    let RunArgs { rules, server, insecure, iptables_flavour, .. } = args;
    check_servers(&server, insecure)?;
    let counters = nfacct::ensure();
    let mut rulesets = Vec::new();
    for family in families() {
        let mut tools = Tools::new(family, iptables_flavour.wanted());
        let flavour = tools.flavour().await?;
        let options = Options { counters, ..config.options(rules.cluster(), flavour) };
        // Asks for the same rights as writing does, and touches nothing.
        tools.save().await?;
        let ruleset = Ruleset::new(family, tools, options);
        tracing::info!(family = ruleset.name(), flavour = ?flavour, "will be programmed");
        rulesets.push(ruleset);
    }
    if rulesets.is_empty() {
        bail!("this host has neither IPv4 nor IPv6");
    }
    let admin = match config.metrics {
        None => None,
        Some(address) => Some(
            TcpListener::bind(address)
                .await
                .with_context(|| format!("--metrics-bind-address {address} cannot be listened on"))?,
        ),
    };

    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let mailbox = Arc::new(Mailbox::default());
    let families: Vec<Family> = rulesets.iter().map(Ruleset::family).collect();
    registry.register_collector(Box::new(Waiting::new(mailbox.clone(), families.clone(), SystemTime::now())));
    if counters {
        nfacct::register(&mut registry);
    }
    let passes = conntrack::metrics::Metrics::register(&mut registry, families.iter().copied());
    let ledgers = families.iter().map(|&family| Ledger::new(family, rules.cluster())).collect();
    let flows = Arc::new(conntrack::Mailbox::default());
    let registry: SharedRegistry = Arc::new(Mutex::new(registry));
    let ready = Ready::default();
    let (programmed, seen) = watch::channel(Programmed::default());
    let client = Client::new(
        server,
        rules.cluster(),
        config.node.clone(),
        mailbox.clone(),
        seen.clone(),
        metrics.clone(),
    );

    let mut tasks = Tasks::default();
    tasks.spawn("ready", when_programmed(seen, ready.hold("the first write to the kernel")));
    if let Some(admin) = admin {
        tasks.spawn("admin", admin::serve(admin, ready, registry, axum::Router::new(), shutdown.clone()));
    }
    tasks.spawn("stream", client.run());
    tasks.spawn("conntrack", Worker::new(ledgers, Conntrack, passes).run(flows.clone()));
    let (addresses, listed) = watch::channel(BTreeSet::new());
    if config.needs_addresses() {
        addresses.send_replace(host::addresses::list().await?);
        tasks.spawn("addresses", host::addresses::follow(addresses));
    }
    if let Some(path) = rules.config.clone() {
        tasks.spawn("configuration", load::until_changed(path));
    }
    let reconciler = Reconciler::new(&config, rulesets, listed, programmed, metrics).followed_by(flows);
    tasks.spawn("reconcile", reconciler.run(mailbox));
    tasks.supervise(&shutdown).await
}

async fn when_programmed(mut seen: watch::Receiver<Programmed>, ready: Pending) -> anyhow::Result<()> {
    seen.wait_for(|programmed| programmed.cursor.is_some()).await.context("the reconciler is gone")?;
    drop(ready);
    std::future::pending().await
}

/// The families that the host has.
fn families() -> impl Iterator<Item = Family> {
    let disabled = std::fs::read_to_string("/proc/sys/net/ipv6/conf/all/disable_ipv6");
    let v6 = Path::new("/proc/net/if_inet6").exists() && !disabled.is_ok_and(|value| value.trim() == "1");
    [Some(Family::V4), v6.then_some(Family::V6)].into_iter().flatten()
}
