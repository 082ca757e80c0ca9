//! The test harness itself, against the real kernel and a real apiserver.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::Command,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use distributary_e2e::{
    controlplane::{ControlPlane, Options},
    forward::Forward,
    netns::Namespace,
    objects,
    process::{Running, Signal},
    topology::{GATEWAY, NODE, Topology},
    traffic::{Client, Failure, Protocol, Server, sctp_in_kernel},
    wait,
};
use futures::TryStreamExt;
use k8s_openapi::api::core::v1::Service;
use kube::{
    Api,
    api::{ListParams, WatchEvent, WatchParams},
};
use serde_json::json;

fn protocols() -> Vec<Protocol> {
    let mut protocols = vec![Protocol::Tcp, Protocol::Udp];
    if sctp_in_kernel() {
        protocols.push(Protocol::Sctp);
    }
    protocols
}

#[test]
fn everybody_reaches_everybody_untranslated() -> Result<()> {
    let world = Topology::new(2, 1)?;
    let (near, far, remote) = (&world.pods[0], &world.pods[1], &world.remote_pods[0]);
    let (outside, host) = (world.outsider(), world.host_pod());
    for protocol in protocols() {
        let _servers = [near, far, remote, &outside, &host]
            .map(|pod| pod.serve(protocol, 8080))
            .into_iter()
            .collect::<Result<Vec<_>>>()?;
        for (from, to) in
            [(near, far), (near, remote), (remote, near), (near, &outside), (&outside, remote), (&host, far)]
        {
            for target in to.addresses.both() {
                let reply = from.client_for(target).ask(protocol, SocketAddr::new(target, 8080)).map_err(
                    |failure| anyhow::anyhow!("{} to {} {target}: {failure:?}", from.name, to.name),
                )?;
                assert_eq!(reply.who, to.name);
                assert!(
                    from.addresses.both().contains(&reply.seen_source.ip()),
                    "{reply:?} of {}",
                    from.name
                );
            }
        }
    }
    Ok(())
}

#[test]
fn a_rule_on_the_node_leads_to_a_pod() -> Result<()> {
    for flavour in ["nft", "legacy"] {
        let world = Topology::new(2, 0)?;
        let pod = &world.pods[1];
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let server = pod.serve(protocol, 8080)?;
            for (tool, address, target) in [
                ("iptables", IpAddr::from(NODE.v4), format!("{}:8080", pod.addresses.v4)),
                ("ip6tables", IpAddr::from(NODE.v6), format!("[{}]:8080", pod.addresses.v6)),
            ] {
                let name = protocol.to_string().to_lowercase();
                world.node.shell(&format!(
                    "{tool}-{flavour} -t nat -A PREROUTING -d {address} -p {name} --dport 30080 -j DNAT --to {target}"
                ))?;
                let reply = Client::new(&world.outside).ask(protocol, SocketAddr::new(address, 30080));
                assert_eq!(
                    reply.map(|reply| reply.who),
                    Ok("pod-1".to_owned()),
                    "{tool}-{flavour} {protocol}"
                );
            }
            assert_eq!(server.requests(), 2);
        }
    }
    Ok(())
}

#[test]
fn a_pod_that_meets_itself_comes_back_in_where_it_left() -> Result<()> {
    let world = Topology::new(1, 0)?;
    let pod = &world.pods[0];
    let _server = pod.serve(Protocol::Tcp, 8080)?;
    for line in [
        "iptables -t nat -A PREROUTING -d 10.96.0.10 -p tcp --dport 80 -j DNAT --to 10.244.0.2:8080",
        "iptables -t nat -A POSTROUTING -s 10.244.0.2 -d 10.244.0.2 -j MASQUERADE",
    ] {
        world.node.shell(line)?;
    }
    let reply = Client::new(&pod.namespace).ask(Protocol::Tcp, "10.96.0.10:80".parse()?);
    let reply = reply.map_err(|failure| anyhow::anyhow!("{failure:?}"))?;
    assert_eq!((reply.who.as_str(), reply.seen_source.ip()), ("pod-0", GATEWAY.v4.into()));
    Ok(())
}

#[test]
fn refusal_and_silence_are_told_apart() -> Result<()> {
    let world = Topology::new(1, 0)?;
    let client = Client::new(&world.outside).with_timeout(Duration::from_millis(300));
    for (tool, address) in [("iptables", IpAddr::from(NODE.v4)), ("ip6tables", IpAddr::from(NODE.v6))] {
        for (protocol, name) in [(Protocol::Tcp, "tcp"), (Protocol::Udp, "udp")] {
            let to = |port| SocketAddr::new(address, port);
            // Nobody listens; a rule rejects; a rule drops.
            assert_eq!(client.ask(protocol, to(9)), Err(Failure::Refused), "{tool} {protocol}");
            world.node.shell(&format!("{tool} -A INPUT -p {name} --dport 81 -j REJECT"))?;
            assert_eq!(client.ask(protocol, to(81)), Err(Failure::Refused), "{tool} {protocol}");
            world.node.shell(&format!("{tool} -A INPUT -p {name} --dport 82 -j DROP"))?;
            assert_eq!(client.ask(protocol, to(82)), Err(Failure::Timeout), "{tool} {protocol}");
        }
    }
    // The outside swallows what the node does not know.
    let lost = world.pods[0].client_for(Ipv4Addr::LOCALHOST.into()).with_timeout(Duration::from_millis(300));
    assert_eq!(lost.ask(Protocol::Tcp, "10.96.0.99:80".parse()?), Err(Failure::Timeout));
    Ok(())
}

#[test]
fn a_conversation_keeps_its_flow_and_ends_with_the_server() -> Result<()> {
    let world = Topology::new(1, 0)?;
    let pod = &world.pods[0];
    for protocol in protocols() {
        let server = pod.serve(protocol, 8080)?;
        let target = SocketAddr::new(pod.addresses.v4.into(), 8080);
        let client = Client::new(&world.outside).with_timeout(Duration::from_millis(300));
        let mut conversation = client.open(protocol, target).expect("there is a server");
        let first = conversation.ask().expect("an answer");
        assert_eq!(conversation.ask(), Ok(first.clone()));
        assert_eq!(conversation.local_address(), Ok(first.seen_source));
        drop(server);
        let ended = conversation.ask().expect_err("there is no server any more");
        assert_ne!(ended, Failure::Timeout, "{protocol}");
    }
    Ok(())
}

#[test]
fn sctp_is_refused_where_the_kernel_has_none() -> Result<()> {
    let world = Topology::new(1, 0)?;
    assert_eq!(world.pods[0].serve(Protocol::Sctp, 8080).is_ok(), sctp_in_kernel());
    Ok(())
}

/// The match that the agent may use for pods that meet themselves.
#[test]
fn bytecode_compares_source_and_destination() -> Result<()> {
    const V4: &str = "6,32 0 0 12,7 0 0 0,32 0 0 16,29 0 1 0,6 0 0 1,6 0 0 0";
    const V6: &str = "18,32 0 0 8,7 0 0 0,32 0 0 24,29 0 13 0,32 0 0 12,7 0 0 0,32 0 0 28,29 0 9 0,\
                      32 0 0 16,7 0 0 0,32 0 0 32,29 0 5 0,32 0 0 20,7 0 0 0,32 0 0 36,29 0 1 0,6 0 0 1,6 0 0 0";
    let world = Topology::new(0, 0)?;
    let host = world.host_pod();
    let _server = host.serve(Protocol::Udp, 8080)?;
    for (tool, bytecode, address) in [
        ("iptables-nft", V4, IpAddr::from(NODE.v4)),
        ("iptables-legacy", V4, IpAddr::from(NODE.v4)),
        ("ip6tables-nft", V6, IpAddr::from(NODE.v6)),
        ("ip6tables-legacy", V6, IpAddr::from(NODE.v6)),
    ] {
        let rule = ["INPUT", "-m", "bpf", "--bytecode", bytecode, "-j", "DROP"];
        let with = |verb| [[verb].as_slice(), &rule].concat();
        world.node.run(tool, &with("-A"))?;
        let ask = |client: Client| {
            client.with_timeout(Duration::from_millis(300)).ask(Protocol::Udp, SocketAddr::new(address, 8080))
        };
        assert_eq!(
            ask(host.client_for(address)),
            Err(Failure::Timeout),
            "{tool}: a packet to itself matches"
        );
        assert!(ask(world.outsider().client_for(address)).is_ok(), "{tool}: another packet does not");
        world.node.run(tool, &with("-D"))?;
    }
    Ok(())
}

#[test]
fn a_process_is_stopped_with_its_owner() -> Result<()> {
    let namespace = Namespace::new()?;
    let mut running =
        namespace.spawn("sleeper", Command::new("sh").args(["-c", "echo here; exec sleep 600"]))?;
    assert_eq!(running.wait_for_line("here", Duration::from_secs(5)), "here");
    assert!(running.is_running());
    let status = running.terminate(Duration::from_secs(5))?;
    assert!(!status.success());
    running.signal(Signal::SIGTERM)?;

    let second = Running::spawn("sleeper", Command::new("sleep").arg("600"))?;
    let (folder, log) = (format!("/proc/{}", second.id()), second.log_path().to_owned());
    assert!(log.exists());
    drop(second);
    assert!(!std::path::Path::new(&folder).exists() && !log.exists());
    Ok(())
}

#[test]
fn a_door_leads_into_a_namespace_and_can_be_shut() -> Result<()> {
    let namespace = Arc::new(Namespace::new()?);
    let inside: SocketAddr = "127.0.0.1:8080".parse()?;
    let _server = Server::start(&namespace, "inside", Protocol::Tcp, &[inside.ip()], 8080)?;
    let other = Arc::new(Namespace::new()?);
    let door = Forward::open(
        &Some(Arc::clone(&other)),
        "127.0.0.1:0".parse()?,
        &Some(Arc::clone(&namespace)),
        inside,
    )?;
    let client = Client::new(&other);
    let mut conversation = client.open(Protocol::Tcp, door.address()).expect("the door is open");
    assert_eq!(conversation.ask().expect("an answer").who, "inside");
    door.refuse(true);
    assert!(conversation.ask().is_err());
    assert!(client.ask(Protocol::Tcp, door.address()).is_err());
    door.refuse(false);
    assert_eq!(client.ask(Protocol::Tcp, door.address()).expect("an answer").who, "inside");
    Ok(())
}

#[tokio::test]
async fn a_service_gets_its_address_from_the_shared_control_plane() -> Result<()> {
    let client = ControlPlane::shared().client().await?;
    let namespace = objects::unique_namespace(&client).await?;
    let spec =
        json!({ "ports": [{ "port": 80 }], "type": "LoadBalancer", "ipFamilyPolicy": "PreferDualStack" });
    let made = objects::apply(&client, &objects::service(&namespace, "web", &spec)).await?;
    let addresses = made["spec"]["clusterIPs"].as_array().context("a list")?;
    assert_eq!(addresses.len(), 2);
    let first: Ipv4Addr = addresses[0].as_str().context("a string")?.parse()?;
    assert_eq!([first.octets()[0], first.octets()[1] & 0xf0], [10, 96]);

    let endpoints = json!([{ "addresses": ["10.244.0.2"], "conditions": { "ready": true } }]);
    let slice = objects::endpoint_slice(&namespace, "web-1", "web", &json!([{ "port": 8080 }]), &endpoints);
    objects::apply(&client, &slice).await?;
    let change = json!({ "endpoints": [{ "addresses": ["10.244.0.3"] }] });
    let changed = objects::patch(&client, "EndpointSlice", Some(&namespace), "web-1", &change).await?;
    assert_eq!(changed["endpoints"][0]["addresses"], json!(["10.244.0.3"]));
    objects::delete(&client, "EndpointSlice", Some(&namespace), "web-1").await?;

    objects::set_ingress(&client, &namespace, "web", &["203.0.113.7".parse()?]).await?;
    let read = objects::get(&client, "Service", Some(&namespace), "web").await?;
    assert_eq!(read["status"]["loadBalancer"]["ingress"][0]["ip"], "203.0.113.7");
    Ok(())
}

#[tokio::test]
async fn the_apiserver_comes_and_goes_on_one_port_and_forgets_history() -> Result<()> {
    let control = ControlPlane::start()?;
    let client = control.client().await?;
    let services = Api::<Service>::default_namespaced(client.clone());
    let version =
        services.list(&ListParams::default()).await?.metadata.resource_version.context("a list has one")?;

    control.stop_apiserver();
    assert!(services.list(&ListParams::default()).await.is_err());
    control.start_apiserver()?;
    wait::until_async("the same client works again", Duration::from_secs(10), || async {
        services.list(&ListParams::default()).await.ok()
    })
    .await;

    control.forget_history()?;
    assert_eq!(watch_outcome(&services, &version).await?, Some(410));
    Ok(())
}

#[tokio::test]
async fn a_restored_store_goes_back_in_time() -> Result<()> {
    let control = ControlPlane::start()?;
    let client = control.client().await?;
    let saved = control.save()?;
    let namespace = objects::unique_namespace(&client).await?;
    control.restore(&saved)?;
    assert!(objects::get(&client, "Namespace", None, &namespace).await.is_err());
    Ok(())
}

#[tokio::test]
async fn a_control_plane_in_a_namespace_is_reached_from_both_sides_and_asks_rbac() -> Result<()> {
    let (home, away) = (Arc::new(Namespace::new()?), Arc::new(Namespace::new()?));
    let control = ControlPlane::start_with(&Options {
        namespace: Some(Arc::clone(&home)),
        rbac: true,
        ..Options::default()
    })?;
    let client = control.client().await?;
    objects::unique_namespace(&client).await?;
    let review = http::Request::get("/apis/rbac.authorization.k8s.io/v1/clusterroles/system:node-proxier")
        .body(vec![])?;
    assert!(client.request_text(review).await?.contains("endpointslices"));

    let _door = control.reach_from(&away)?;
    for namespace in [&home, &away] {
        namespace.within(|| std::net::TcpStream::connect(control.address()))?;
    }
    Ok(())
}

/// The whole world at once: what the agent is to be compared with works in it.
#[tokio::test]
async fn kube_proxy_programs_the_node() -> Result<()> {
    let control = ControlPlane::shared();
    let client = control.client().await?;
    let namespace = objects::unique_namespace(&client).await?;
    let world = Topology::new(1, 1)?;
    let _servers =
        [world.pods[0].serve(Protocol::Tcp, 8080)?, world.remote_pods[0].serve(Protocol::Tcp, 8080)?];
    let ports = json!([{ "port": 8080, "protocol": "TCP" }]);
    let endpoints = json!([
        { "addresses": [world.pods[0].addresses.v4] },
        { "addresses": [world.remote_pods[0].addresses.v4] },
    ]);
    let spec = json!({ "ports": [{ "port": 80, "targetPort": 8080 }] });
    let made = objects::apply(&client, &objects::service(&namespace, "web", &spec)).await?;
    objects::apply(&client, &objects::endpoint_slice(&namespace, "web-1", "web", &ports, &endpoints)).await?;
    let address: IpAddr = made["spec"]["clusterIP"].as_str().context("an address")?.parse()?;

    objects::register_node(&client, "node-a", &json!({}), &NODE.both()).await?;
    let _door = control.reach_from(&world.node)?;
    let _proxy = control.kube_proxy(&world.node, "node-a", &["--proxy-mode=iptables"])?;
    let ask = Client::new(&world.outside).with_timeout(Duration::from_millis(300));
    wait::until("an answer through kube-proxy's rules", Duration::from_secs(30), || {
        ask.ask(Protocol::Tcp, SocketAddr::new(address, 80)).ok()
    });
    let answers = ask.spread(Protocol::Tcp, SocketAddr::new(address, 80), 40);
    assert_eq!(answers.keys().collect::<Vec<_>>(), ["pod-0", "remote-0"]);
    Ok(())
}

/// The status code that a watch from that version ends with, if it does at once.
async fn watch_outcome(services: &Api<Service>, version: &str) -> Result<Option<u16>> {
    let events = match services.watch(&WatchParams::default().timeout(5), version).await {
        Ok(events) => events,
        Err(kube::Error::Api(status)) => return Ok(Some(status.code)),
        Err(error) => return Err(error.into()),
    };
    let mut events = std::pin::pin!(events);
    Ok(match events.try_next().await? {
        Some(WatchEvent::Error(status)) => Some(status.code),
        _ => None,
    })
}
