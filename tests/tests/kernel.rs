//! Both binaries on a directory of manifests, the real kernel, real packets: who answers, and what source it sees.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use distributary_e2e::deployed::{self, PATIENCE};
use distributary_e2e::node::{AGENT_ADMIN, Node, cluster_ips, service, slices};
use distributary_e2e::topology::{GATEWAY, NODE, OUTSIDE, Topology};
use distributary_e2e::traffic::{Client, Failure, Protocol, Reply, sctp_in_kernel};
use distributary_e2e::wait::until;
use serde_json::{Value, json};

const FLAVOURS: [&str; 2] = ["nft", "legacy"];

fn protocols() -> Vec<Protocol> {
    let mut all = vec![Protocol::Tcp, Protocol::Udp];
    all.extend(sctp_in_kernel().then_some(Protocol::Sctp));
    all
}

/// One service with both pods of the node and the remote one, on node ports from 30080 on.
fn web(world: &Topology) -> Vec<Value> {
    let pods: Vec<_> = world.pods.iter().chain(&world.remote_pods).collect();
    [vec![service("web", 1, 30080, &json!({}))], slices("web", &pods)].concat()
}

fn answered(answer: &Result<Reply, Failure>) -> bool {
    answer.is_ok()
}

fn failed(failure: Failure) -> impl Fn(&Result<Reply, Failure>) -> bool {
    move |answer| *answer == Err(failure.clone())
}

fn source(answer: Result<Reply, Failure>) -> IpAddr {
    answer.expect("an answer").seen_source.ip()
}

fn same_family(of: SocketAddr, both: [IpAddr; 2]) -> IpAddr {
    if of.is_ipv4() { both[0] } else { both[1] }
}

fn node_ports() -> [SocketAddr; 2] {
    NODE.both().map(|address| SocketAddr::new(address, 30080))
}

#[test]
fn cluster_ips_reach_every_endpoint_by_every_protocol_in_both_flavours() -> Result<()> {
    for flavour in FLAVOURS {
        let node = Node::start(web, &["--iptables-flavour", flavour])?;
        let (pod, outside) = (&node.world.pods[0], node.world.outsider());
        for (target, protocol) in
            cluster_ips(1).into_iter().flat_map(|to| protocols().into_iter().map(move |p| (to, p)))
        {
            let what = format!("{flavour}: a pod to a cluster IP");
            let client = pod.client_for(target.ip());
            node.expect_only(&what, &client, protocol, target, &["pod-0", "pod-1", "remote-0"]);
            let seen = loop {
                let reply = node.expect(&what, &client, protocol, target, answered).expect("answered");
                if reply.who == "pod-1" {
                    break reply.seen_source.ip();
                }
            };
            assert_eq!(seen, same_family(target, pod.addresses.both()), "{what} keeps its address");

            let what = format!("{flavour}: from outside to a cluster IP");
            let answer = node.expect(&what, &outside.client_for(target.ip()), protocol, target, answered);
            assert_ne!(source(answer), same_family(target, OUTSIDE.both()), "{what} is masqueraded");

            let what = format!("{flavour}: the node itself to a cluster IP");
            node.expect(&what, &Client::new(&node.world.node), protocol, target, answered).expect("answered");
        }
    }
    Ok(())
}

#[test]
fn node_ports_reach_every_endpoint_masqueraded() -> Result<()> {
    for flavour in FLAVOURS {
        let node = Node::start(web, &["--iptables-flavour", flavour])?;
        let outside = node.world.outsider();
        for protocol in protocols() {
            for target in node_ports() {
                let client = outside.client_for(target.ip());
                let what = format!("{flavour}: from outside to a node port");
                node.expect_only(&what, &client, protocol, target, &["pod-0", "pod-1", "remote-0"]);
                let seen = source(node.expect(&what, &client, protocol, target, answered));
                assert_ne!(seen, same_family(target, OUTSIDE.both()), "{what} is masqueraded");
            }
        }
        let host = Client::new(&node.world.node);
        let loopback = SocketAddr::from(([127, 0, 0, 1], 30080));
        node.expect_only(
            "the host to its loopback",
            &host,
            Protocol::Tcp,
            loopback,
            &["pod-0", "pod-1", "remote-0"],
        );
        let v6 = SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, 30080));
        assert_eq!(host.ask(Protocol::Tcp, v6), Err(Failure::Refused), "IPv6's loopback has no node ports");
    }
    Ok(())
}

#[test]
fn loopback_has_no_node_ports_where_they_are_not_wanted() -> Result<()> {
    let node = Node::start(web, &["--iptables-localhost-nodeports=false"])?;
    let loopback = SocketAddr::from(([127, 0, 0, 1], 30080));
    assert_eq!(Client::new(&node.world.node).ask(Protocol::Tcp, loopback), Err(Failure::Refused));
    assert_eq!(node.world.node.sysctl("ipv4/conf/all/route_localnet")?, "0");
    Ok(())
}

#[test]
fn an_endpoint_reaches_itself_through_its_service() -> Result<()> {
    for flavour in FLAVOURS {
        let only = |world: &Topology| {
            [vec![service("web", 1, 30080, &json!({}))], slices("web", &[&world.pods[0]])].concat()
        };
        let node = Node::start(only, &["--iptables-flavour", flavour])?;
        let pod = &node.world.pods[0];
        for target in cluster_ips(1) {
            for protocol in protocols() {
                let what = format!("{flavour}: a pod to itself through its service");
                let answer = node.expect(&what, &pod.client_for(target.ip()), protocol, target, answered);
                assert_eq!(source(answer), same_family(target, GATEWAY.both()), "{what} is masqueraded");
                let other = node.world.pods[1].client_for(target.ip());
                let seen = source(node.expect("another pod", &other, protocol, target, answered));
                assert_eq!(seen, same_family(target, node.world.pods[1].addresses.both()));
            }
        }
    }
    Ok(())
}

#[test]
fn no_endpoints_is_refused_and_no_local_ones_is_silence() -> Result<()> {
    let objects = |world: &Topology| {
        let local = json!({"internalTrafficPolicy": "Local"});
        let mut all = vec![service("none", 1, 30080, &json!({})), service("remote", 2, 30180, &local)];
        all.extend(slices("remote", &[&world.remote_pods[0]]));
        all
    };
    for flavour in FLAVOURS {
        let node = Node::start(objects, &["--iptables-flavour", flavour])?;
        let (pod, outside) = (&node.world.pods[0], node.world.outsider());
        for (index, target) in cluster_ips(1).into_iter().enumerate() {
            let client = pod.client_for(target.ip());
            // A datagram of the node itself does not even leave its socket, which says so in another way.
            let host = Client::new(&node.world.node);
            let _ = node.expect(
                "no endpoints, from the node",
                &host,
                Protocol::Tcp,
                target,
                failed(Failure::Refused),
            );
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let _ = node.expect(
                    "no endpoints, a cluster IP",
                    &client,
                    protocol,
                    target,
                    failed(Failure::Refused),
                );
                let port = node_ports()[index];
                let client = outside.client_for(port.ip());
                let _ = node.expect(
                    "no endpoints, a node port",
                    &client,
                    protocol,
                    port,
                    failed(Failure::Refused),
                );
                let silent = cluster_ips(2)[index];
                let client = pod.client_for(silent.ip());
                let _ =
                    node.expect("no local endpoints", &client, protocol, silent, failed(Failure::Timeout));
            }
            let port = SocketAddr::new(NODE.both()[index], 30180);
            let reply =
                node.expect("its node port", &outside.client_for(port.ip()), Protocol::Tcp, port, answered);
            assert_eq!(reply.expect("answered").who, "remote-0");
        }
    }
    Ok(())
}

#[test]
fn external_traffic_policy_local_keeps_the_source_and_stays_on_the_node() -> Result<()> {
    let objects = |world: &Topology| {
        let local = json!({"externalTrafficPolicy": "Local"});
        let all: Vec<_> = world.pods[1..].iter().chain(&world.remote_pods).collect();
        [
            vec![service("web", 1, 30080, &local), service("far", 2, 30180, &local)],
            slices("web", &all),
            slices("far", &[&world.remote_pods[0]]),
        ]
        .concat()
    };
    let node = Node::start(objects, &[])?;
    let outside = node.world.outsider();
    for address in NODE.both() {
        let (web, far) = (SocketAddr::new(address, 30080), SocketAddr::new(address, 30180));
        let client = outside.client_for(address);
        node.expect_only("only the local endpoint", &client, Protocol::Tcp, web, &["pod-1"]);
        let seen = source(node.expect("local", &client, Protocol::Tcp, web, answered));
        assert_eq!(seen, same_family(web, OUTSIDE.both()), "policy Local keeps the source");
        let _ = node.expect("none is local", &client, Protocol::Tcp, far, failed(Failure::Timeout));
        let pod = node.world.pods[0].client_for(address);
        node.expect_only("a pod is not bound by it", &pod, Protocol::Tcp, web, &["pod-1", "remote-0"]);
        let reply = node.expect("a pod is not bound by it", &pod, Protocol::Tcp, far, answered);
        assert_eq!(reply.expect("answered").who, "remote-0");
    }
    Ok(())
}

#[test]
fn packets_follow_what_is_edited() -> Result<()> {
    let node = Node::start(web, &[])?;
    let (world, manifests) = (&node.world, &node.manifests);
    let target = cluster_ips(1)[0];
    let client = world.pods[0].client_for(target.ip());
    let put = |pods: &[&distributary_e2e::topology::Pod]| {
        manifests.put("all.json", &[vec![service("web", 1, 30080, &json!({}))], slices("web", pods)].concat())
    };
    let ask = |what: &str, wanted: &[&str]| node.expect_only(what, &client, Protocol::Tcp, target, wanted);
    ask("at first", &["pod-0", "pod-1", "remote-0"]);
    put(&[&world.pods[1]])?;
    ask("scaled down", &["pod-1"]);
    put(&[&world.remote_pods[0]])?;
    ask("rolled over", &["remote-0"]);
    put(&[])?;
    let _ = node.expect("scaled to nothing", &client, Protocol::Tcp, target, failed(Failure::Refused));
    put(&[&world.pods[0], &world.pods[1]])?;
    ask("scaled up", &["pod-0", "pod-1"]);

    let before = node.programmed();
    manifests.put_text("all.json", "kind: [broken\n")?;
    let server = node.server.as_ref().expect("it runs");
    until("the server to name the broken file", PATIENCE, || server.log().contains("all.json").then_some(()));
    ask("a broken file keeps the last good content", &["pod-0", "pod-1"]);
    assert_eq!(node.programmed(), before);

    manifests.remove("all.json")?;
    let what = |answer: &Result<Reply, Failure>| answer.is_err();
    let _ = node.expect("the service is deleted", &client, Protocol::Tcp, target, what);
    until("no chain of the service is left", PATIENCE, || {
        let rules = node.rules();
        (!rules.contains("shop/web") && !rules.contains("KUBE-SVC-") | rules.contains("HAIRPIN"))
            .then_some(())
    });
    Ok(())
}

#[test]
fn the_rules_stay_when_the_server_dies_and_follow_when_it_is_back() -> Result<()> {
    let mut node = Node::start(web, &[])?;
    let target = cluster_ips(1)[0];
    let client = node.world.pods[0].client_for(target.ip());
    let before = node.rules();
    node.server.take().expect("it runs").kill9();
    let agent = node.agent.as_ref().expect("it runs");
    let _ = deployed::wait_for(agent, "no stream; the rules stay as they are", 0);
    assert_eq!(node.rules(), before);
    node.expect_only("without a server", &client, Protocol::Tcp, target, &["pod-0", "pod-1", "remote-0"]);

    let changed =
        [vec![service("web", 1, 30080, &json!({}))], slices("web", &[&node.world.pods[1]])].concat();
    node.manifests.put("all.json", &changed)?;
    node.start_server()?;
    node.expect_only("with another server", &client, Protocol::Tcp, target, &["pod-1"]);
    Ok(())
}

#[test]
fn an_agent_that_is_restarted_after_any_history_writes_nothing() -> Result<()> {
    for flavour in FLAVOURS {
        let mut node = Node::prepare(&["--iptables-flavour", flavour])?;
        let objects = |world: &Topology, services: u8, pods: usize| -> Vec<Value> {
            let pods: Vec<_> = world.pods.iter().chain(&world.remote_pods).take(pods).collect();
            let one = |last: u8| {
                let name = format!("s{last}");
                [vec![service(&name, last, 0, &json!({}))], slices(&name, &pods)].concat()
            };
            (1..=services).flat_map(one).collect()
        };
        node.manifests.put("all.json", &objects(&node.world, 10, 1))?;
        node.start_server()?;
        node.start_agent()?;
        // Through splits and merges of the dispatch, so that the shape is not that of a fresh start.
        for (services, pods) in [(60, 2), (40, 0), (22, 3), (30, 2), (18, 1)] {
            let before = node.programmed();
            node.manifests.put("all.json", &objects(&node.world, services, pods))?;
            until("the agent to follow", PATIENCE, || (node.programmed() > before).then_some(()));
        }
        let before = node.rules();
        node.agent.take().expect("it runs").terminate(PATIENCE)?;
        assert_eq!(node.rules(), before, "on exit the rules stay");
        node.start_agent()?;
        assert_eq!(node.rules(), before);
        let writes = deployed::metric(&node.world.node, AGENT_ADMIN, "distributary_agent_restores_total");
        assert_eq!(writes, Some(0.0), "{flavour}: {}", node.agent.as_ref().expect("it runs").tail());
    }
    Ok(())
}

#[test]
fn a101_flushed_tables_are_written_again_within_seconds() -> Result<()> {
    for flavour in FLAVOURS {
        let node = Node::start(web, &["--iptables-flavour", flavour])?;
        let before = node.rules();
        let flush: String = ["nat", "filter", "mangle"]
            .iter()
            .map(|table| format!("iptables-{flavour} -t {table} -F; iptables-{flavour} -t {table} -X; "))
            .collect();
        node.world.node.script(&flush)?;
        until("the rules to be back", PATIENCE, || (node.rules() == before).then_some(()));
        // Chains that are emptied and stay are as lost as those that are gone.
        node.world.node.script(&format!("iptables-{flavour} -t nat -F"))?;
        until("the rules to be back", PATIENCE, || (node.rules() == before).then_some(()));
        let target = cluster_ips(1)[0];
        let client = node.world.pods[0].client_for(target.ip());
        node.expect_only("after the flush", &client, Protocol::Tcp, target, &["pod-0", "pod-1", "remote-0"]);
    }
    Ok(())
}

#[test]
fn a102_foreign_rules_are_never_touched_and_cleanup_removes_the_rest() -> Result<()> {
    for flavour in FLAVOURS {
        let mut node = Node::prepare(&["--iptables-flavour", flavour])?;
        let foreign = format!(
            "for t in iptables-{flavour} ip6tables-{flavour}; do \
             $t -t nat -N KUBE-KUBELET-CANARY; $t -t nat -N CNI-HOSTPORT; \
             $t -t nat -A POSTROUTING -m comment --comment 'cni' -j CNI-HOSTPORT; \
             $t -A FORWARD -m comment --comment 'site policy' -j ACCEPT; $t -N KUBE-FIREWALL; done"
        );
        node.world.node.script(&foreign)?;
        let before = node.rules();
        node.manifests.put("all.json", &web(&node.world))?;
        node.start_server()?;
        node.start_agent()?;
        let with = node.rules();
        assert!(before.lines().all(|line| with.contains(line)), "{before}\nbecame\n{with}");
        node.agent.take().expect("it runs").terminate(PATIENCE)?;
        let agent = distributary_e2e::process::binary("distributary-agent");
        node.world.node.run(&agent.to_string_lossy(), &["cleanup"])?;
        let used = |rules: &str| -> Vec<String> {
            rules
                .lines()
                .filter(|line| {
                    line.starts_with(":KUBE") || line.starts_with(":CNI") || line.starts_with("-A")
                })
                .map(str::to_owned)
                .collect()
        };
        // What keeps others off the loopback network is kubelet's too, and stays (spec/kube-proxy.md §9.6).
        let shared = |line: &String| line.contains("KUBE-FIREWALL") && line.starts_with("-A");
        let left: Vec<String> = used(&node.rules()).into_iter().filter(|line| !shared(line)).collect();
        assert_eq!(left, used(&before), "{flavour}");
    }
    Ok(())
}

#[test]
fn the_service_that_the_kernel_refuses_is_named_and_the_others_work() -> Result<()> {
    // The real tool, but for one address that it is made to refuse.
    let mut node = Node::prepare(&[])?;
    let tools = distributary_e2e::process::scratch("tools")?;
    let wrapper = tools.path().join("iptables-restore");
    std::fs::write(
        &wrapper,
        "#!/bin/sh\ntext=$(cat)\ncase \"$text\" in *10.66.6.6*) echo 'line 1 failed: no' >&2; exit 1;; esac\n\
         printf '%s\\n' \"$text\" | /usr/sbin/iptables-nft-restore \"$@\"\n",
    )?;
    node.world.node.run("chmod", &["+x", &wrapper.to_string_lossy()])?;
    let mut bad = slices("bad", &[&node.world.pods[0]]);
    bad[0]["endpoints"][0]["addresses"][0] = json!("10.66.6.6");
    let objects = [vec![service("bad", 2, 0, &json!({}))], bad, web(&node.world)].concat();
    node.manifests.put("all.json", &objects)?;
    node.start_server()?;
    let path = format!("{}:{}", tools.path().display(), std::env::var("PATH")?);
    let mut command = std::process::Command::new(distributary_e2e::process::binary("distributary-agent"));
    command.args(["run", "--server", deployed::SERVER, "--node-name", "node-a", "--log-format", "json"]);
    command.env("PATH", path);
    let agent = node.world.node.spawn("distributary-agent", &command)?;
    let rejected = deployed::wait_for(&agent, "rejected; its last good rules stay", 0);
    assert_eq!(rejected["service"], "shop/bad");
    node.agent = Some(agent);
    let target = cluster_ips(1)[0];
    let client = node.world.pods[0].client_for(target.ip());
    node.expect_only("the others", &client, Protocol::Tcp, target, &["pod-0", "pod-1", "remote-0"]);
    let server = node.server.as_ref().expect("it runs");
    let told = deployed::wait_for(server, "rejected by the kernel", 0);
    assert_eq!((&told["service"], &told["node"]), (&json!("shop/bad"), &json!("node-a")));
    Ok(())
}

#[test]
fn two_services_that_claim_one_node_port_have_one_owner_and_a_successor() -> Result<()> {
    let created = |mut object: Value, when: &str| {
        object["metadata"]["creationTimestamp"] = json!(when);
        object
    };
    let older = |world: &Topology| {
        let mut all = vec![created(service("older", 1, 30080, &json!({})), "2020-01-01T00:00:00Z")];
        all.extend(slices("older", &[&world.pods[0]]));
        all
    };
    let younger = |world: &Topology| {
        let mut all = vec![created(service("younger", 2, 30080, &json!({})), "2021-01-01T00:00:00Z")];
        all.extend(slices("younger", &[&world.pods[1]]));
        all
    };
    let node = Node::start(|world| [younger(world), older(world)].concat(), &[])?;
    let target = SocketAddr::new(NODE.v4.into(), 30080);
    let client = node.world.outsider().client_for(target.ip());
    node.expect_only("the oldest owns it", &client, Protocol::Tcp, target, &["pod-0"]);
    node.manifests.put("all.json", &younger(&node.world))?;
    node.expect_only("the other takes over", &client, Protocol::Tcp, target, &["pod-1"]);
    Ok(())
}
