//! Wiring of `run --observe`.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::{Context, bail};
use distributary_runtime::admin;
use distributary_runtime::ready::Ready;
use distributary_runtime::tasks::Tasks;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Observed, Observer, Side};
use crate::args::RunArgs;
use crate::config::{Backend, Config};
use crate::host::families::{Programmable, programmable};
use crate::metrics::Metrics;
use crate::node::Facts;
use crate::sync::client::Client;
use crate::sync::mailbox::Mailbox;
use crate::sync::{Programmed, Settings};

/// kube-proxy has 10249.
const METRICS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 7402);

/// Follows a server and compares until shutdown, or until the time is up. Writes nothing.
///
/// # Errors
/// When the arguments are refused, the rules cannot be read at all, a part ends by itself, or, when the time is up,
/// something differs.
pub async fn run(args: RunArgs, config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    // A file of kube-proxy's says where kube-proxy listens.
    let address = args.host.metrics_bind_address.or(METRICS);
    let RunArgs { rules, server, security, iptables_flavour, observe, init_only, .. } = args;
    if init_only {
        bail!("--init-only changes the host and --observe changes nothing: say one of them");
    }
    if config.backend == Backend::Nftables {
        bail!("--observe compares the rules of iptables, and --backend nftables is said");
    }
    let dialer = security.dialer(&server)?;
    let mut sides = Vec::new();
    for Programmable { family, tools, flavour } in programmable(iptables_flavour.wanted()).await? {
        tracing::info!(family = family.as_str(), flavour = ?flavour, "will be compared; nothing is written");
        sides.push((Side::new(family, config.options(rules.cluster(), flavour)), tools));
    }
    let metrics = Metrics::register(&mut Registry::default());
    let mut registry = Registry::default();
    let observed = Observed::register(&mut registry, &metrics);
    let mailbox = Arc::new(Mailbox::default());
    // The server is told of no revision: none of it is in the kernel by us.
    let (_programmed, seen) = watch::channel(Programmed::default());
    let client = Client::new(
        server,
        dialer,
        Settings::new(rules.cluster(), config.node.clone()),
        mailbox.clone(),
        seen,
        metrics,
    );
    let ready = Ready::default();
    let unready = ready.hold("the first comparison");
    let mut tasks = Tasks::default();
    if let Some(address) = address {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("--metrics-bind-address {address} cannot be listened on"))?;
        let registry = Arc::new(Mutex::new(registry));
        let more = axum::Router::new();
        tasks.spawn("admin", admin::serve(listener, ready, registry, more, shutdown.clone()));
    }
    tasks.spawn("stream", client.run());
    let end = observe.observe_for.map(|time| Instant::now() + time);
    let facts = Facts::new(config);
    let observer = Observer::new(sides, facts, observed, observe.observe_period, unready);
    tokio::select! {
        ended = observer.run(mailbox, end) => ended,
        ended = tasks.supervise(&shutdown) => ended,
    }
}
