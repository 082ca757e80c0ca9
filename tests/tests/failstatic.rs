//! A node whose servers are away: what it goes on with, and what it does not touch.

use std::fs;
use std::process::Command;

use anyhow::Result;
use distributary_e2e::deployed::{self, PATIENCE};
use distributary_e2e::node::{AGENT_ADMIN, Node, cluster_ips, service, slices};
use distributary_e2e::process::{binary, scratch};
use distributary_e2e::topology::{CLUSTER_CIDRS, Topology};
use distributary_e2e::traffic::Protocol;
use distributary_e2e::wait::until;
use serde_json::{Value, json};

const NEWER: &str = "no server answers; the kernel's rules are newer than the checkpoint and stay";

fn web(world: &Topology, pods: usize) -> Vec<Value> {
    let pods: Vec<_> = world.pods.iter().take(pods).collect();
    [vec![service("web", 1, 30080, &json!({}))], slices("web", &pods)].concat()
}

/// What a reboot does to the kernel.
fn flush(node: &Node) -> Result<()> {
    let mut script = String::new();
    for tool in ["iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"] {
        for table in ["nat", "filter", "mangle"] {
            script += &format!("{tool} -t {table} -F; {tool} -t {table} -X; ");
        }
    }
    node.world.node.script(&script)?;
    assert!(!node.rules().contains("KUBE-"), "{}", node.rules());
    Ok(())
}

fn metric(node: &Node, name: &str) -> Option<f64> {
    deployed::metric(&node.world.node, AGENT_ADMIN, &format!("distributary_agent_{name}"))
}

#[test]
fn a_node_that_reboots_without_a_server_routes_by_its_checkpoint() -> Result<()> {
    for flavour in ["nft", "legacy"] {
        let state = scratch("state")?;
        let folder = state.path().to_string_lossy().into_owned();
        let arguments = ["--state-dir", &folder, "--iptables-flavour", flavour];
        let mut node = Node::start(|world| web(world, 2), &arguments)?;
        let before = node.rules();
        node.agent.take().expect("it runs").terminate(PATIENCE)?;
        node.server.take().expect("it runs").kill9();
        flush(&node)?;

        node.start_agent()?;
        // Chains are listed in the order in which they were made, and to look at a legacy table makes it.
        let sorted = |rules: &str| {
            let ours = rules.lines().filter(|line| line.contains("KUBE-"));
            let mut lines: Vec<String> = ours.map(str::to_owned).collect();
            lines.sort();
            lines
        };
        assert_eq!(sorted(&node.rules()), sorted(&before), "{flavour}");
        let target = cluster_ips(1)[0];
        let client = node.world.pods[0].client_for(target.ip());
        node.expect_only("after a reboot", &client, Protocol::Tcp, target, &["pod-0", "pod-1"]);

        // A server that comes then is followed from there.
        node.manifests.put("all.json", &web(&node.world, 1))?;
        node.start_server()?;
        node.expect_only("with a server", &client, Protocol::Tcp, target, &["pod-0"]);
    }
    Ok(())
}

#[test]
fn rules_in_the_kernel_are_newer_than_any_checkpoint() -> Result<()> {
    let state = scratch("state")?;
    let folder = state.path().to_string_lossy().into_owned();
    let mut node = Node::start(|world| web(world, 2), &["--state-dir", &folder])?;
    node.agent.take().expect("it runs").terminate(PATIENCE)?;
    let file = state.path().join("checkpoint");
    let older = fs::read(&file)?;

    node.start_agent()?;
    node.manifests.put("all.json", &web(&node.world, 1))?;
    let target = cluster_ips(1)[0];
    let client = node.world.pods[0].client_for(target.ip());
    node.expect_only("changed", &client, Protocol::Tcp, target, &["pod-0"]);
    let before = node.rules();
    node.agent.take().expect("it runs").kill9();
    node.server.take().expect("it runs").kill9();
    fs::write(&file, older)?;

    node.agent = Some(deployed::agent(&node.world.node, "node-a", &["--state-dir", &folder])?);
    let _ = deployed::wait_for(node.agent.as_ref().expect("it runs"), NEWER, 0);
    assert_eq!(node.rules(), before);
    assert_eq!(metric(&node, "restores_total"), Some(0.0));

    node.start_server()?;
    let _ = deployed::wait_ok(&node.world.node, AGENT_ADMIN, "/readyz");
    assert_eq!(node.rules(), before);
    assert_eq!(metric(&node, "restores_total"), Some(0.0), "the server says what the kernel has");
    Ok(())
}

#[test]
fn a_restart_resumes_where_it_was_and_writes_nothing() -> Result<()> {
    let state = scratch("state")?;
    let folder = state.path().to_string_lossy().into_owned();
    let mut node = Node::start(|world| web(world, 2), &["--state-dir", &folder])?;
    let before = node.rules();
    node.agent.take().expect("it runs").terminate(PATIENCE)?;
    node.start_agent()?;
    let began = deployed::logged(node.server.as_ref().expect("it runs"), "stream begins");
    let modes: Vec<&Value> = began.iter().map(|line| &line["mode"]).collect();
    assert_eq!(modes, ["snapshot", "resume"], "{began:?}");
    assert_eq!(node.rules(), before);
    assert_eq!(metric(&node, "restores_total"), Some(0.0));
    Ok(())
}

#[test]
fn a_full_disk_is_told_and_rules_do_not_depend_on_it() -> Result<()> {
    let state = scratch("state")?;
    let mut node = Node::prepare(&[])?;
    node.manifests.put("all.json", &web(&node.world, 2))?;
    node.start_server()?;
    let agent = binary("distributary-agent").to_string_lossy().into_owned();
    let folder = state.path().to_string_lossy().into_owned();
    // A disk of its own, which nothing else fills.
    let script = format!(
        "mount -t tmpfs -o size=64k tmpfs {folder} && ! cat /dev/zero > {folder}/fill 2> /dev/null && \
         exec {agent} run --server {} --node-name node-a --state-dir {folder} --cluster-cidr {} \
         --conntrack-max-per-core 0 --log-format json",
        deployed::SERVER,
        CLUSTER_CIDRS.join(",")
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &script]);
    node.agent = Some(node.world.node.spawn("distributary-agent", &command)?);
    let _ = deployed::wait_ok(&node.world.node, AGENT_ADMIN, "/readyz");
    until("a checkpoint to be missed", PATIENCE, || {
        metric(&node, "checkpoint_failures_total").filter(|failures| *failures > 0.0)
    });
    let agent = node.agent.as_ref().expect("it runs");
    let told = deployed::wait_for(agent, "no checkpoint was saved; rules do not depend on it", 0);
    assert!(told["error"].as_str().is_some_and(|error| error.contains("No space left")), "{told}");
    node.manifests.put("all.json", &web(&node.world, 1))?;
    let target = cluster_ips(1)[0];
    let client = node.world.pods[0].client_for(target.ip());
    node.expect_only("with a full disk", &client, Protocol::Tcp, target, &["pod-0"]);
    Ok(())
}

#[test]
fn a_server_that_lost_everything_takes_no_rules_along_until_an_operator_says_so() -> Result<()> {
    let mut node = Node::start(|world| web(world, 2), &["--hold-removals", "1h"])?;
    let before = node.rules();
    node.server.take().expect("it runs").kill9();
    node.manifests.remove("all.json")?;
    node.start_server()?;
    until("what vanished to be held", PATIENCE, || {
        metric(&node, "held_services").filter(|held| *held == 1.0)
    });
    assert_eq!(node.rules(), before);
    let target = cluster_ips(1)[0];
    let client = node.world.pods[0].client_for(target.ip());
    node.expect_only("held", &client, Protocol::Tcp, target, &["pod-0", "pod-1"]);
    let (_, status) = deployed::get(&node.world.node, AGENT_ADMIN, "/debug/stream").expect("an answer");
    let status: Value = serde_json::from_str(&status)?;
    assert_eq!(
        (&status["inStep"], &status["heldRemovals"]["endpoints"]),
        (&json!(true), &json!(4)),
        "{status}"
    );

    let (status, _) =
        deployed::get(&node.world.node, AGENT_ADMIN, "/debug/release-removals").expect("an answer");
    assert_eq!(status, 405, "to ask is not to say so");
    let (status, said) =
        deployed::post(&node.world.node, AGENT_ADMIN, "/debug/release-removals").expect("an answer");
    assert_eq!(status, 200, "{said}");
    until("the rules to be gone", PATIENCE, || (!node.rules().contains("shop/web")).then_some(()));
    until("nothing to be held", PATIENCE, || metric(&node, "held_services").filter(|held| *held == 0.0));
    Ok(())
}
