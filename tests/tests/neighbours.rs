//! Who else has rules on a node: hostPort rules as the portmap plugin writes them, NodeLocal DNS, chains of Felix's and
//! of Docker's kind. They stay where they are, and go on working, whatever the agent does.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use distributary_e2e::api::Api;
use distributary_e2e::deployed::{self, PATIENCE};
use distributary_e2e::kube_proxy::{self, KubeProxy};
use distributary_e2e::node::{Node, TARGET, cluster_ips, service, slices};
use distributary_e2e::process::binary;
use distributary_e2e::topology::{Addresses, CLUSTER_CIDRS, NODE, POD_CIDRS, Pod};
use distributary_e2e::traffic::{Client, Failure, Protocol, Reply, Server};
use distributary_e2e::wait::until;
use serde_json::{Value, json};

/// The port of the node that the portmap plugin forwards to the first pod.
const HOST_PORT: u16 = 18_081;
/// The port of the node that Docker publishes for the container.
const PUBLISHED: u16 = 18_090;
/// The Services `web`, served by the first pod, `far`, by a remote one, and `dns`, whose address is also the node's.
const WEB: u8 = 1;
const FAR: u8 = 2;
const DNS: u8 = 10;
/// Who may not ask whom, says Felix.
const DENIED: (usize, usize) = (1, 0);

/// A node with all of them.
struct Neighbourhood {
    node: Node,
    flavour: &'static str,
    container: Pod,
    _serving: Vec<Server>,
}

impl Neighbourhood {
    fn start(flavour: &'static str) -> Result<Self> {
        let node = Node::prepare(&["--iptables-flavour", flavour])?;
        let world = &node.world;
        let addresses = Addresses { v4: "172.17.0.2".parse()?, v6: "fd00:17::2".parse()? };
        let container = world.also_pod(1, "container", addresses)?;
        let dns = cluster_ips(DNS).map(|target| target.ip());
        // On a link of its own in life; to the kernel any local address is as good.
        world.node.ip(&[
            format!("addr add {}/32 dev lo", dns[0]),
            format!("addr add {}/128 dev lo nodad", dns[1]),
        ])?;
        let serving = vec![
            container.serve(Protocol::Tcp, TARGET)?,
            world.outsider().serve(Protocol::Tcp, TARGET)?,
            Server::start(&world.node, "nodelocal", Protocol::Udp, &dns, 80)?,
        ];
        let neighbourhood = Self { node, flavour, container, _serving: serving };
        for family in 0..2 {
            neighbourhood.node.world.node.script(&neighbourhood.script(family))?;
        }
        Ok(neighbourhood)
    }

    /// The neighbours' rules, as the tools are told them.
    fn script(&self, family: usize) -> String {
        let tool = format!("{}-{}", ["iptables", "ip6tables"][family], self.flavour);
        let world = &self.node.world;
        let pod = |index: usize| world.pods[index].addresses.both()[family];
        let container = self.container.addresses.both()[family];
        let [to_pod, to_container] = [pod(0), container].map(|ip| SocketAddr::new(ip, TARGET));
        let (pods, cluster) = (POD_CIDRS[family], CLUSTER_CIDRS[family]);
        let (from, to) = (pod(DENIED.0), pod(DENIED.1));
        let dns = cluster_ips(DNS)[family].ip();
        let rules = format!(
            "-t nat -N CNI-HOSTPORT-DNAT
             -t nat -N CNI-HOSTPORT-SETMARK
             -t nat -N CNI-HOSTPORT-MASQ
             -t nat -N CNI-DN-1
             -t nat -A CNI-HOSTPORT-SETMARK -j MARK --set-xmark 0x2000/0x2000
             -t nat -A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE
             -t nat -A CNI-DN-1 -s {pods} -p tcp -m tcp --dport {HOST_PORT} -j CNI-HOSTPORT-SETMARK
             -t nat -A CNI-DN-1 -p tcp -m tcp --dport {HOST_PORT} -j DNAT --to-destination {to_pod}
             -t nat -A CNI-HOSTPORT-DNAT -p tcp -m multiport --dports {HOST_PORT} -j CNI-DN-1
             -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
             -t nat -A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
             -t nat -A POSTROUTING -m comment --comment portfwd -j CNI-HOSTPORT-MASQ
             -t raw -A PREROUTING -d {dns} -p udp -m udp --dport 80 -j NOTRACK
             -t raw -A OUTPUT -d {dns} -p udp -m udp --dport 80 -j NOTRACK
             -t raw -A OUTPUT -s {dns} -p udp -m udp --sport 80 -j NOTRACK
             -t filter -A INPUT -d {dns} -p udp -m udp --dport 80 -j ACCEPT
             -t filter -A OUTPUT -s {dns} -p udp -m udp --sport 80 -j ACCEPT
             -t mangle -N cali-PREROUTING
             -t mangle -I PREROUTING -j cali-PREROUTING
             -t nat -N cali-PREROUTING
             -t nat -I PREROUTING -j cali-PREROUTING
             -t nat -N cali-nat-outgoing
             -t nat -N cali-POSTROUTING
             -t nat -A cali-nat-outgoing -s {pods} ! -d {cluster} -j MASQUERADE
             -t nat -A cali-POSTROUTING -j cali-nat-outgoing
             -t nat -I POSTROUTING -j cali-POSTROUTING
             -t filter -N cali-FORWARD
             -t filter -A cali-FORWARD -s {from} -d {to} -p tcp -m tcp --dport {TARGET} -j DROP
             -t filter -I FORWARD -j cali-FORWARD
             -t nat -N DOCKER
             -t nat -A DOCKER ! -i docker0 -p tcp -m tcp --dport {PUBLISHED} -j DNAT --to-destination {to_container}
             -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
             -t nat -A POSTROUTING -s {container} ! -o docker0 -j MASQUERADE
             -t filter -N DOCKER-USER
             -t filter -N DOCKER
             -t filter -A DOCKER-USER -j RETURN
             -t filter -A DOCKER -d {container} -p tcp -m tcp --dport {TARGET} -j ACCEPT
             -t filter -A FORWARD -j DOCKER-USER
             -t filter -A FORWARD -j DOCKER
             -t filter -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
             -t filter -A FORWARD -s {cluster} -j ACCEPT
             -t filter -A FORWARD -d {pods} -j ACCEPT
             -t filter -P FORWARD DROP"
        );
        rules.lines().map(|rule| format!("{tool} {}\n", rule.trim())).collect()
    }

    /// The Services, and so many more.
    fn objects(&self, more: u8) -> Vec<Value> {
        let world = &self.node.world;
        let (near, far) = (&world.pods[0], &world.remote_pods[0]);
        let mut all = vec![
            service("web", WEB, 30_080, &json!({})),
            service("far", FAR, 0, &json!({})),
            service("dns", DNS, 0, &json!({})),
        ];
        all.extend([slices("web", &[near]), slices("far", &[far]), slices("dns", &[far])].concat());
        for last in 0..more {
            let name = format!("more{last}");
            all.push(service(&name, 100 + last, 31_000 + u16::from(last), &json!({})));
            all.extend(slices(&name, &[near, far]));
        }
        all
    }

    fn expect(
        &self,
        when: &str,
        client: &Client,
        protocol: Protocol,
        target: SocketAddr,
        who: &str,
    ) -> Reply {
        let by = |answer: &Result<Reply, Failure>| answer.as_ref().is_ok_and(|reply| reply.who == who);
        self.node.expect(when, client, protocol, target, by).expect("it is somebody's answer")
    }

    /// Asks as those do who rely on the neighbours.
    fn neighbours_work(&self, when: &str) {
        let world = &self.node.world;
        let outside = Client::new(&world.outside);
        for family in 0..2 {
            let node: IpAddr = NODE.both()[family];
            self.expect(when, &outside, Protocol::Tcp, (node, HOST_PORT).into(), "pod-0");
            self.expect(when, &outside, Protocol::Tcp, (node, PUBLISHED).into(), "container");
            let dns = cluster_ips(DNS)[family];
            self.expect(when, &world.pods[0].client_for(dns.ip()), Protocol::Udp, dns, "nodelocal");
            self.expect(when, &Client::new(&world.node), Protocol::Udp, dns, "nodelocal");
            let out = world.outsider().addresses.both()[family];
            let reply = self.expect(
                when,
                &world.pods[0].client_for(out),
                Protocol::Tcp,
                (out, TARGET).into(),
                "outside",
            );
            assert_eq!(reply.seen_source.ip(), node, "{when}: a pod is not to be seen outside");
            let (from, to) = (&world.pods[DENIED.0], world.pods[DENIED.1].addresses.both()[family]);
            let denied = |answer: &Result<_, _>| *answer == Err(Failure::Timeout);
            let _ = self.node.expect(when, &from.client_for(to), Protocol::Tcp, (to, TARGET).into(), denied);
        }
    }

    /// The Services work as well, but for what Felix denies.
    fn all_works(&self, when: &str) {
        self.neighbours_work(when);
        let world = &self.node.world;
        for family in 0..2 {
            let [web, far] = [WEB, FAR].map(|last| cluster_ips(last)[family]);
            let pod = &world.pods[DENIED.0];
            self.expect(when, &pod.client_for(far.ip()), Protocol::Tcp, far, "remote-0");
            let denied = |answer: &Result<_, _>| *answer == Err(Failure::Timeout);
            let _ = self.node.expect(when, &pod.client_for(web.ip()), Protocol::Tcp, web, denied);
            let node_port = (NODE.both()[family], 30_080).into();
            self.expect(when, &Client::new(&world.outside), Protocol::Tcp, node_port, "pod-0");
            // Of the address of NodeLocal DNS, what is not its own is the Service's.
            let dns = cluster_ips(DNS)[family];
            self.expect(when, &world.pods[0].client_for(dns.ip()), Protocol::Tcp, dns, "remote-0");
        }
    }

    /// What is none of the proxy's, in its order. That a table is there, empty, comes with a look at it.
    fn theirs(&self) -> Vec<String> {
        let empty = |line: &str| {
            line.starts_with('*') || line == "COMMIT" || line.ends_with(" ACCEPT") && line.starts_with(':')
        };
        self.lines(|line| !line.contains("KUBE-") && !empty(line))
    }

    /// Every rule of the chains that the kernel begins with, in order.
    fn built_in(&self) -> Vec<String> {
        let chains = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];
        self.lines(|line| chains.iter().any(|chain| line.starts_with(&format!("-A {chain} "))))
    }

    fn lines(&self, wanted: impl Fn(&str) -> bool) -> Vec<String> {
        self.node.rules().lines().filter(|line| wanted(line)).map(str::to_owned).collect()
    }
}

fn undisturbed(flavour: &'static str) -> Result<()> {
    let mut there = Neighbourhood::start(flavour)?;
    let node = there.node.world.node.clone();
    let before = there.theirs();
    there.neighbours_work("alone");

    let api = Api::start_in(&node)?;
    let cidrs = format!("--cluster-cidr={}", CLUSTER_CIDRS.join(","));
    let addresses = NODE.both().map(|ip| json!({"type": "InternalIP", "address": ip}));
    let this = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-a"}, "status": {"addresses": addresses}});
    api.put("node", &[this]);
    api.put("all", &there.objects(0));
    let kube_proxy = KubeProxy::start(kube_proxy::command_at_api("node-a")?, &node, flavour, &[&cidrs])?;
    kube_proxy.wait_synced();
    there.all_works("with kube-proxy");
    kube_proxy.stop()?;

    there.node.manifests.put("all.json", &there.objects(0))?;
    there.node.start_server()?;
    there.node.start_agent()?;
    there.all_works("taken over");
    assert_eq!(there.theirs(), before, "{flavour}: taken over");
    let built_in = there.built_in();

    // So many that lists become tries, and then lists again.
    for more in [100, 3] {
        let last = SocketAddr::new(cluster_ips(99 + more)[0].ip(), 80);
        there.node.manifests.put("all.json", &there.objects(more))?;
        let client = there.node.world.pods[0].client_for(last.ip());
        there.node.expect_only("changed", &client, Protocol::Tcp, last, &["pod-0", "remote-0"]);
        there.all_works("changed");
        assert_eq!(
            (there.theirs(), there.built_in()),
            (before.clone(), built_in.clone()),
            "{flavour}: {more} more"
        );
    }

    let meddle = format!(
        "for t in iptables ip6tables; do $t-{flavour} -t nat -F KUBE-SERVICES; $t-{flavour} -t mangle -X KUBE-PROXY-CANARY; done"
    );
    node.script(&meddle)?;
    let agent = there.node.agent.as_ref().context("it runs")?;
    let repaired = "the rules were not what they should be, and have been written again";
    let found = deployed::wait_for(agent, repaired, 1);
    let what = "mangle/KUBE-PROXY-CANARY missing, nat/KUBE-SERVICES changed";
    assert!(found["found"].as_str().is_some_and(|found| found.starts_with(what)), "{flavour}: {found}");
    there.all_works("repaired");
    assert_eq!((there.theirs(), there.built_in()), (before.clone(), built_in), "{flavour}: repaired");

    there.node.agent.take().context("it runs")?.terminate(PATIENCE)?;
    there.all_works("without an agent");
    node.run(&binary("distributary-agent").to_string_lossy(), &["cleanup"])?;
    there.neighbours_work("cleaned up");
    assert_eq!(there.theirs(), before, "{flavour}: cleaned up");
    until("nothing of the proxy's to be left", PATIENCE, || {
        // What keeps others off the loopback network is kubelet's, too.
        there.lines(|line| line.contains("KUBE-") && !line.contains("KUBE-FIREWALL")).is_empty().then_some(())
    });
    Ok(())
}

#[test]
fn neighbours_in_iptables_nft_are_left_alone_and_go_on_working() -> Result<()> {
    undisturbed("nft")
}

#[test]
fn neighbours_in_iptables_legacy_are_left_alone_and_go_on_working() -> Result<()> {
    undisturbed("legacy")
}
