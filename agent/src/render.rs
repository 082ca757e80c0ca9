//! `render`: the rules that a node would get, in a fresh shape. Touches nothing.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use distributary_cluster::{Cluster, Manifests, manifest};
use distributary_model::{Key, Name, NodeView, Service};
use distributary_runtime::files;
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use crate::args::RenderArgs;
use crate::config::Backend;
use crate::host;
use crate::iptables::{Family, Flavour, Iptables};
use crate::metrics::Metrics;
use crate::nftables::Nftables;
use crate::node::Facts;
use crate::sync::Settings;
use crate::sync::client::Client;
use crate::sync::dial::Dialer;
use crate::sync::mailbox::Mailbox;

/// How long a server may take to say what it has.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a node would know.
struct Known {
    services: Vec<(Arc<Key>, Arc<Service>)>,
    node: Option<NodeView>,
}

/// Prints the rules, as text for `iptables-restore --noflush` and `ip6tables-restore --noflush`, or for `nft -f`.
///
/// # Errors
/// When a manifest is broken, or the server cannot be asked.
pub async fn run(args: RenderArgs, out: &mut impl Write) -> anyhow::Result<()> {
    let RenderArgs { rules, manifests, server, security } = args;
    let config = rules.config(&host::name())?;
    // What this host could do says nothing of another.
    let backend = if config.backend == Backend::Nftables { Backend::Nftables } else { Backend::Iptables };
    let config = config.of_backend(backend);
    let (cluster, node) = (rules.cluster(), config.node.clone());
    let known = match (manifests, server) {
        (Some(path), _) => from_manifests(&path, cluster, &node)?,
        (None, Some(server)) => {
            let dialer = security.dialer(std::slice::from_ref(&server))?;
            from_server(server, dialer, cluster, node).await?
        }
        (None, None) => bail!("neither --manifests nor --server is given"),
    };
    let mut facts = Facts::new(config.clone());
    // Its interfaces may be another machine's.
    facts.set_addresses(known.node.iter().flat_map(|node| &node.addresses).copied().collect());
    facts.set_node(known.node);
    for family in [Family::V4, Family::V6] {
        if backend == Backend::Nftables {
            let mut table = Nftables::new(family, config.nftables_options(rules.cluster()));
            table.set_node(facts.state(family)?);
            for (key, service) in &known.services {
                table.set(key, Some(service.clone()));
            }
            writeln!(out, "# for nft -f")?;
            write!(out, "{}", table.write().map(|write| write.text()).unwrap_or_default())?;
            continue;
        }
        let mut iptables = Iptables::new(family, config.options(rules.cluster(), Flavour::Nft));
        iptables.set_node(facts.state(family)?);
        for (key, service) in &known.services {
            iptables.set(key, Some(service.clone()));
        }
        let tool = match family {
            Family::V4 => "iptables-restore",
            Family::V6 => "ip6tables-restore",
        };
        writeln!(out, "# for {tool} --noflush")?;
        if let Some(write) = iptables.write() {
            write!(out, "{}", write.text)?;
        }
    }
    Ok(())
}

fn from_manifests(path: &std::path::Path, cluster: Name, node: &str) -> anyhow::Result<Known> {
    let found = files::read_dir_files(path, &manifest::EXTENSIONS)
        .with_context(|| format!("--manifests {} cannot be read", path.display()))?;
    let (events, problems) = Manifests::default().apply(found);
    if !problems.is_empty() {
        let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
        bail!("{}", problems.join("\n"));
    }
    let mut state = Cluster::new(cluster);
    state.apply(events);
    let services = state
        .table()
        .iter()
        .filter_map(|(key, held)| Some((key.clone(), held.record.as_service()?.clone())))
        .collect();
    Ok(Known { services, node: state.node(node).cloned() })
}

async fn from_server(server: String, dialer: Dialer, cluster: Name, node: Name) -> anyhow::Result<Known> {
    let mailbox = Arc::new(Mailbox::default());
    let (_nothing, programmed) = watch::channel(Default::default());
    let metrics = Metrics::register(&mut Registry::default());
    let client = Client::new(
        vec![server.clone()],
        dialer,
        Settings::new(cluster, node),
        mailbox.clone(),
        programmed,
        metrics,
    );
    let (batch, _) = tokio::select! {
        ended = client.run() => { ended?; bail!("the server {server} ended the stream") }
        taken = tokio::time::timeout(PATIENCE, mailbox.take()) => taken.with_context(|| {
            format!("the server {server} did not say what it has within {} s", PATIENCE.as_secs())
        })?,
    };
    let services = batch.services.into_iter().filter_map(|(key, service)| Some((key, service?))).collect();
    Ok(Known { services, node: batch.node.flatten() })
}
