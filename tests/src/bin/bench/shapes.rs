//! Clusters that are large in one way, out of a directory of manifests: first sync, one change, packets.

use std::net::Ipv4Addr;
use std::sync::Arc;

use anyhow::{Context, Result};
use distributary_e2e::figures::{Samples, seconds};
use distributary_e2e::manifests::Manifests;
use distributary_e2e::netns::Namespace;
use distributary_e2e::shapes::{self, HERE, NAMESPACE, Shape};
use serde_json::json;

use super::agent::{Agent, FirstSync};
use super::backend::Backend;
use super::connections::{self, NOBODY, Targets};
use super::floor::{Floor, Written};
use super::load::echo;
use super::node::{NODE_ADDRESS, Node, server};
use super::report::Report;
use super::{Args, step};

/// The columns of its table.
pub(crate) const HEAD: [&str; 8] = [
    "shape",
    "backend",
    "first sync",
    "one change, frame → kernel",
    "written by it",
    "CPU of a new connection",
    "of a packet for no service",
    "of an established one",
];
/// The cluster IP of the Service that the node itself serves.
const ECHO: Ipv4Addr = Ipv4Addr::new(10, 98, 255, 254);
/// Two samples of the kernel's floor for so many changes.
const FLOOR_EVERY: usize = 10;

/// One shape after the other, each by every backend.
pub(crate) async fn all(args: &Args, report: &mut Report) {
    let (everybody, nftables) = (&Backend::ALL[..], &[Backend::Nftables][..]);
    let shapes = [
        (shapes::one_service(5_000), everybody, ""),
        (shapes::local_endpoints(250), everybody, ""),
        (shapes::without_endpoints(1_000), everybody, ""),
        (shapes::local_balancers(2_000), everybody, ""),
        // A change of so many lists of rules takes the kernel seconds.
        (shapes::many_services(30_000, 10), nftables, "; ≤ 5 s"),
    ];
    for (shape, backends, budget) in shapes {
        for backend in args.backends.iter().filter(|backend| backends.contains(backend)) {
            let name = format!("{}, {backend}", shape.name);
            step(&name);
            match measure(args, &shape, *backend, budget).await {
                Ok(row) => report.row(&row),
                Err(e) => report.failed(&name, &e),
            }
        }
    }
}

/// `budget` is that of the first sync.
async fn measure(args: &Args, shape: &Shape, backend: Backend, budget: &str) -> Result<Vec<String>> {
    let hub = Arc::new(Namespace::new()?);
    let manifests = Manifests::new()?;
    let more = json!({"type": "ClusterIP", "clusterIP": ECHO, "clusterIPs": [ECHO], "ipFamilies": ["IPv4"]});
    // nftables asks for the Node's own address.
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": HERE},
        "status": {"addresses": [{"type": "InternalIP", "address": NODE_ADDRESS}]}});
    manifests.put("fixed.json", &[&shape.fixed[..], &echo(NAMESPACE, &more), &[node]].concat())?;
    manifests.put("changing.json", &shape.after(0))?;
    let _server = server(&hub, &["--source", &manifests.source()]).await?;

    let mut syncs = Samples::default();
    for _ in 1..args.rounds {
        syncs.push(start(&hub, shape, backend).await?.2.millis);
    }
    let (node, mut agent, first) = start(&hub, shape, backend).await?;
    syncs.push(first.millis);
    step(&format!("  first sync: {first}"));

    let mut to = vec![("no service's", NOBODY)];
    to.extend(shape.served.map(|served| ("new", served)));
    let mut targets = Targets::new(&node, &to)?.and_flow(&node, ECHO)?;
    connections::measure(&mut [&mut targets]).await?;
    step(&format!("  packets: {targets}"));

    let mut changes = Samples::default();
    let (mut written, mut floor) = ("–".to_owned(), None);
    for change in 1..=args.shape_changes {
        manifests.put("changing.json", &shape.after(change))?;
        changes.push(agent.change().await?.millis);
        if change == 1
            && let Some(tools) = backend.tools()
        {
            let of_change = Written::of(&node, tools, &agent.wrote().chains)?;
            floor = shape.is_rewritten().then(|| Floor::of(&node, tools, &of_change)).transpose()?;
            written = of_change.to_string();
        }
        if change == 1
            && let Some([elements, chains]) = agent.wrote().elements
        {
            written = format!("{elements} elements, {chains} chains");
        }
        if let Some(floor) = &mut floor
            && change % FLOOR_EVERY == 1
        {
            floor.sample()?;
        }
    }
    step(&format!("  one change: {}", changes.spread()));
    agent.warnings().iter().for_each(|line| step(&format!("  the agent warns: {line}")));

    let micros =
        |name| targets.micros(name).map_or_else(|| "–".to_owned(), |micros| format!("{micros:.1} µs"));
    Ok(vec![
        shape.name.clone(),
        backend.to_string(),
        format!("**{}** (median of {}{budget})", seconds(syncs.median()), syncs.len()),
        match &floor {
            Some(floor) => format!("{}; {}", changes.spread(), floor.told(&changes)),
            None => changes.spread(),
        },
        written,
        micros("new"),
        micros("no service's"),
        micros("established"),
    ])
}

/// A new node with an agent that has synced.
async fn start(hub: &Arc<Namespace>, shape: &Shape, backend: Backend) -> Result<(Node, Agent, FirstSync)> {
    let node = Node::new(hub, None)?;
    let mut agent = Agent::start(&node, HERE, backend)?;
    let first = agent.first_sync().await?;
    let all = shape.services + 1;
    (first.services == all as u64)
        .then_some(())
        .with_context(|| format!("{} of {all} services", first.services))?;
    Ok((node, agent, first))
}
