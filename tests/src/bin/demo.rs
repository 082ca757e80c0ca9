//! `make demo`: the main job, with no cluster. A server on a directory of manifests, an agent, the real kernel, real
//! packets; all inside network namespaces that go away with it.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use distributary_e2e::deployed::{self, PATIENCE, SERVER};
use distributary_e2e::netns::enter_rootless;
use distributary_e2e::topology::{NODE, Topology};
use distributary_e2e::traffic::{Client, Failure, Protocol};
use distributary_e2e::wire::Reader;
use distributary_e2e::{process::scratch, wait};
use distributary_proto::v1 as pb;
use serde_json::Value;

fn main() -> ExitCode {
    match enter_rootless().and_then(|()| demo()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("demo: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo() -> Result<()> {
    step("a node with two pods, another node with one, and a client outside");
    let world = Topology::new(2, 1)?;
    let everybody = [&world.pods[0], &world.pods[1], &world.remote_pods[0]];
    let mut servers = Vec::new();
    for pod in everybody {
        servers.push(pod.serve(Protocol::Tcp, 8080)?);
        servers.push(pod.serve(Protocol::Udp, 5353)?);
        println!("   {:<9} {} answers on tcp 8080 and udp 5353", pod.name, pod.addresses.v4);
    }

    let manifests = scratch("demo")?;
    copy_examples(manifests.path())?;
    let source = format!("dir:{}", manifests.path().display());
    step("the server watches examples/, the agent programs the node");
    println!("   distributary-server --source dir:examples --listen {SERVER}");
    println!("   distributary-agent run --server {SERVER} --node-name node-a --cluster-cidr 10.244.0.0/16 …");
    let server = deployed::server(&world.node, &["--source", &source])?;
    let agent = deployed::agent(&world.node, "node-a", &[])?;
    let first = deployed::wait_for(&agent, "programmed", 0);
    println!(
        "   {} services, {} chains, {} ms",
        first["services"],
        first["chains"],
        millis(&first["took_ms"])
    );

    step("real packets");
    let ask_of = |namespace| Client::new(namespace).with_timeout(Duration::from_secs(5));
    let (pod, outside) = (ask_of(&world.pods[0].namespace), ask_of(&world.outside));
    let (web, dns, cart) = (service(80, 80), service(10, 53), service(81, 80));
    let node_port = SocketAddr::new(NODE.v4.into(), 30080);
    ask("pod-0   → shop/web  ClusterIP", &pod, Protocol::Tcp, web)?;
    ask("pod-0   → kube-dns  ClusterIP", &pod, Protocol::Udp, dns)?;
    ask("outside → shop/web  NodePort ", &outside, Protocol::Tcp, node_port)?;
    let refused = pod.ask(Protocol::Tcp, cart);
    ensure!(refused == Err(Failure::Refused), "shop/cart has no endpoints, and answers {refused:?}");
    println!("   pod-0   → shop/cart ClusterIP tcp {cart}: refused, it has no endpoints");

    step("one endpoint of shop/web moves to the other node: 10.244.0.3 becomes 10.244.1.2");
    let reader = Reader::start(&world.node, SERVER, "node-a")?;
    reader.until_end(PATIENCE)?;
    let shop = manifests.path().join("shop.yaml");
    let text = fs::read_to_string(&shop)?;
    let edited = text
        .replace("addresses: [10.244.0.3], nodeName: node-a", "addresses: [10.244.1.2], nodeName: node-b");
    ensure!(edited != text, "examples/shop.yaml is not what the demo expects");
    let written = deployed::logged(&agent, "programmed").len();
    let began = Instant::now();
    fs::write(&shop, edited)?;
    let (frame, bytes) = reader.next_frame(PATIENCE)?;
    let programmed = deployed::wait_for(&agent, "programmed", written);
    let took = began.elapsed();
    println!("   on the wire: {bytes} bytes");
    show(&frame);
    println!("   in the kernel: {} chain(s) written: {}", programmed["chains"], chains(&agent));
    println!(
        "   from the edit to the kernel: {} ms, of which frame to kernel: {} ms (a directory is looked at every 200 ms)",
        took.as_millis(),
        millis(&programmed["took_ms"])
    );
    let moved = wait::within(PATIENCE, || {
        pod.ask(Protocol::Tcp, web).ok().filter(|reply| reply.who == "remote-0").map(|reply| reply.who)
    });
    println!("   pod-0 → shop/web reaches {}", moved.context("the new endpoint was not reached")?);

    step("the server dies; the rules stay");
    drop(server);
    ask("pod-0   → shop/web  ClusterIP", &pod, Protocol::Tcp, web)?;

    step("the agent ends; the rules stay until `distributary-agent cleanup`");
    drop(agent);
    ask("pod-0   → shop/web  ClusterIP", &pod, Protocol::Tcp, web)?;
    let binary = distributary_e2e::process::binary("distributary-agent");
    world.node.run(&binary.to_string_lossy(), &["cleanup"])?;
    // kubelet's chain, with the rule that keeps others off the loopback network, is left as kube-proxy leaves it.
    let left = world.node.script("iptables-save | grep KUBE- | grep -vc KUBE-FIREWALL || true")?;
    println!(
        "   after cleanup, lines of iptables-save with KUBE-, but for kubelet's KUBE-FIREWALL: {}",
        left.trim()
    );
    ensure!(left.trim() == "0", "cleanup left rules behind");
    println!("\nDone. The namespaces, and everything in them, are gone.");
    Ok(())
}

fn step(what: &str) {
    println!("\n── {what}");
}

fn service(last: u8, port: u16) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::new(10, 96, 0, last).into(), port)
}

fn ask(what: &str, client: &Client, protocol: Protocol, target: SocketAddr) -> Result<()> {
    let reply =
        client.ask(protocol, target).map_err(|failure| anyhow::anyhow!("{what} {target}: {failure:?}"))?;
    let protocol = format!("{protocol:?}").to_lowercase();
    println!("   {what} {protocol} {target}: {} answers, it saw {}", reply.who, reply.seen_source.ip());
    Ok(())
}

fn copy_examples(to: &Path) -> Result<()> {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    for file in fs::read_dir(&examples).with_context(|| format!("{} is not there", examples.display()))? {
        let file = file?;
        fs::copy(file.path(), to.join(file.file_name()))?;
    }
    Ok(())
}

fn show(frame: &pb::Frame) {
    for change in &frame.changes {
        let key = format!("{}/{}", change.namespace, change.name);
        if let Some(pb::change::Change::Patch(patch)) = &change.change {
            for endpoint in &patch.upserts {
                println!(
                    "   revision {}: patch {key}: + {} on {}",
                    frame.through,
                    ip(&endpoint.address),
                    endpoint.node
                );
            }
            for address in &patch.removals {
                println!("   revision {}: patch {key}: − {}", frame.through, ip(address));
            }
        }
    }
}

fn ip(bytes: &[u8]) -> String {
    match <[u8; 4]>::try_from(bytes) {
        Ok(v4) => Ipv4Addr::from(v4).to_string(),
        Err(_) => format!("{bytes:?}"),
    }
}

fn chains(agent: &distributary_e2e::process::Running) -> String {
    let written = deployed::logged(agent, "wrote");
    written.last().map(|line| line["chains"].to_string()).unwrap_or_default().replace('"', "")
}

fn millis(value: &Value) -> String {
    value.as_f64().map_or_else(|| "?".to_owned(), |millis| format!("{millis:.1}"))
}
