//! The node of the assertions, with everybody around it, and the program that is put to the test there.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError};

use anyhow::Result;
use distributary_e2e::api::Api;
use distributary_e2e::deployed::{self, PATIENCE};
use distributary_e2e::kube_proxy;
use distributary_e2e::manifests::Manifests;
use distributary_e2e::node::AGENT_ADMIN;
use distributary_e2e::process::Running;
use distributary_e2e::topology::{Addresses, Pod, Topology};
use distributary_e2e::traffic::{Protocol, Server};
use distributary_e2e::wait::within;
use serde_json::{Value, json};

use crate::service::{Endpoint, V};

/// Who programs the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Subject {
    /// distributary's agent with iptables, behind a server that follows a directory.
    Agent,
    /// The same with nftables.
    Nftables,
    /// The reference. What is expected of the agent is proven against it.
    KubeProxy,
}

/// How the node differs from the plain one.
#[derive(Debug)]
pub(crate) struct Setup {
    pub name: &'static str,
    /// Of the subject, whoever that is: the names are kube-proxy's.
    pub flags: &'static [&'static str],
    /// Pods are told from others by their addresses.
    pub detector: bool,
    pub labels: fn() -> Value,
    /// `sysctl`s of the node, before the subject starts.
    pub sysctls: &'static [(&'static str, &'static str)],
    /// One node for all who want one like it.
    pub shared: bool,
}

/// All defaults, in zone a.
pub(crate) const PLAIN: Setup = Setup {
    name: "plain",
    flags: &[],
    detector: true,
    labels: || json!({"topology.kubernetes.io/zone": "a"}),
    sysctls: &[],
    shared: true,
};
/// The same, for a case that wants it for itself.
pub(crate) const ALONE: Setup = Setup { name: "alone", shared: false, ..PLAIN };

/// Every pod's address is in one of these.
pub(crate) const CLUSTER_CIDR: &str = "10.0.0.0/8,fd00:10::/32";
/// Networks that nobody is to be found in but by a rule: who gets there was not captured.
const FABRIC: [&str; 6] = [
    "172.30.0.0/16",
    "1.2.3.0/24",
    "192.168.99.0/24",
    "fd00:172:30::/64",
    "2001:db8:123::/64",
    "fd00:192:168:99::/64",
];
/// What lists the rules of a family, of whichever flavour.
const SAVES: [&str; 2] =
    ["iptables-nft-save; iptables-legacy-save", "ip6tables-nft-save; ip6tables-legacy-save"];
/// The namespace of every object here.
pub(crate) const NAMESPACE: &str = "parity";

/// Shown for what no rule has touched: the fabric, or the node's own socket.
pub(crate) const FABRIC_NAME: &str = "fabric";
/// What the sockets of the node say.
pub(crate) const SELF_NAME: &str = "self";

const fn v6(segments: [u16; 8]) -> Ipv6Addr {
    let [a, b, c, d, e, f, g, h] = segments;
    Ipv6Addr::new(a, b, c, d, e, f, g, h)
}

/// A node under test.
#[derive(Debug)]
pub(crate) struct Stage {
    pub subject: Subject,
    /// A pod of the node.
    pub p: Pod,
    /// The node itself.
    pub h: Pod,
    /// The node's other address.
    pub h2: Pod,
    /// Two clients outside of the cluster; the first is in the networks that source ranges allow.
    pub c1: Pod,
    pub c2: Pod,
    /// Endpoints on the node…
    pub l: Pod,
    pub l2: Pod,
    /// …and on another one.
    pub r: Pod,
    pub r2: Pod,
    pub world: Topology,
    setup: &'static Setup,
    source: Source,
    programs: Mutex<Vec<Running>>,
    syncs: AtomicU16,
    _serving: Vec<Server>,
}

/// What shows that something is in the kernel.
#[derive(Debug)]
struct Sign {
    /// The name of a service port, where rules have one; with `-none` that of one without endpoints.
    svc: String,
    /// Their addresses, IPv4 and IPv6, where elements have these: port 80, and 81 for the one without endpoints.
    addresses: [IpAddr; 2],
}

/// Where the subject has its objects from.
#[derive(Debug)]
enum Source {
    Manifests(Manifests),
    Api(Api),
}

impl Stage {
    /// The node that all cases of a setup share, or one for this case alone.
    pub(crate) fn of(subject: Subject, setup: &'static Setup) -> Arc<Self> {
        type Shared = Mutex<HashMap<(Subject, &'static str), Arc<OnceLock<Arc<Stage>>>>>;
        static STAGES: LazyLock<Shared> = LazyLock::new(Shared::default);
        let start = || Arc::new(Self::start(subject, setup).expect("the stage is set"));
        if !setup.shared {
            return start();
        }
        let slot = Arc::clone(
            STAGES.lock().unwrap_or_else(PoisonError::into_inner).entry((subject, setup.name)).or_default(),
        );
        Arc::clone(slot.get_or_init(start))
    }

    fn start(subject: Subject, setup: &'static Setup) -> Result<Self> {
        let world = Topology::new(4, 0)?;
        let [p, l, l2] = [
            ("P", Ipv4Addr::new(10, 0, 0, 2), v6([0xfd00, 0x10, 0, 0, 0, 0, 0, 2])),
            ("L", Ipv4Addr::new(10, 180, 0, 1), v6([0xfd00, 0x10, 0x180, 0, 0, 0, 0, 1])),
            ("L2", Ipv4Addr::new(10, 180, 0, 2), v6([0xfd00, 0x10, 0x180, 0, 0, 0, 0, 2])),
        ];
        let pod = |index: usize, (name, v4, v6): (&str, Ipv4Addr, Ipv6Addr)| {
            world.also_pod(index, name, Addresses { v4, v6 })
        };
        let (p, l, l2) = (pod(0, p)?, pod(1, l)?, pod(2, l2)?);
        let remote = |last: u8| {
            let (v4, v6) =
                (Ipv4Addr::new(10, 180, 1, last), v6([0xfd00, 0x10, 0x180, 1, 0, 0, 0, last.into()]));
            world.also_remote(if last == 1 { "R" } else { "R2" }, Addresses { v4, v6 })
        };
        let (r, r2) = (remote(1)?, remote(2)?);
        let node = |name: &str, link: &str, third: u8| {
            let v4 = Ipv4Addr::new(192, 168, third, 2);
            let v6 = v6([0xfd00, 0x192, 0x168, third.into(), 0, 0, 0, 2]);
            world.also_node(name, link, Addresses { v4, v6 })
        };
        let (h, h2) = (node("H", "eth0", 0)?, node("H2", "eth1", 1)?);
        let outside = |name: &str, last: u8| {
            let v6 = v6([0x2001, 0xdb8, 0x113, 0, 0, 0, u16::from(last > 127), 2]);
            world.also_outside(name, Addresses { v4: Ipv4Addr::new(203, 0, 113, last), v6 })
        };
        let (c1, c2) = (outside("C1", 2)?, outside("C2", 130)?);
        world.own_networks(3, &FABRIC)?;
        world.pods[3].namespace.set_sysctl("ipv6/ip_nonlocal_bind", "1")?;
        for (key, value) in setup.sysctls {
            world.node.set_sysctl(key, value)?;
        }
        let mut serving = Vec::new();
        for pod in [&l, &l2, &r, &r2] {
            serving.push(pod.serve(Protocol::Tcp, 80)?);
        }
        let wild = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
        let fabric = &world.pods[3].namespace;
        for port in [80, 443] {
            serving.push(Server::start(fabric, FABRIC_NAME, Protocol::Tcp, &wild, port)?);
        }
        let source = match subject {
            Subject::Agent | Subject::Nftables => Source::Manifests(Manifests::new()?),
            Subject::KubeProxy => Source::Api(Api::start_in(&world.node)?),
        };
        let stage = Self {
            subject,
            p,
            h,
            h2,
            c1,
            c2,
            l,
            l2,
            r,
            r2,
            world,
            setup,
            source,
            programs: Mutex::new(Vec::new()),
            syncs: AtomicU16::new(0),
            _serving: serving,
        };
        stage.put_node(&(setup.labels)());
        if let Source::Manifests(manifests) = &stage.source {
            let server = deployed::server(&stage.world.node, &["--source", &manifests.source()])?;
            stage.keep(server);
        }
        stage.start_subject()?;
        Ok(stage)
    }

    fn start_subject(&self) -> Result<()> {
        let mut flags = self.setup.flags.to_vec();
        if self.setup.detector {
            flags.extend(["--cluster-cidr", CLUSTER_CIDR]);
        }
        let node = &self.world.node;
        let program = match self.subject {
            Subject::Agent => deployed::plain_agent(node, SELF_NAME, &flags)?,
            Subject::Nftables => {
                flags.push("--backend=nftables");
                deployed::plain_agent(node, SELF_NAME, &flags)?
            }
            Subject::KubeProxy => {
                let mut command = kube_proxy::command_at_api(SELF_NAME)?;
                command.args(["--proxy-mode=iptables", "--iptables-min-sync-period=0s"]);
                node.spawn("kube-proxy", command.args(flags))?
            }
        };
        self.keep(program);
        self.wait();
        if self.subject != Subject::KubeProxy {
            let _ = deployed::wait_ok(node, AGENT_ADMIN, "/readyz");
        }
        Ok(())
    }

    fn keep(&self, program: Running) {
        self.programs.lock().unwrap_or_else(PoisonError::into_inner).push(program);
    }

    /// Stops the subject and starts it again; its rules stay meanwhile.
    pub(crate) fn restart_subject(&self) {
        let program = self.programs.lock().unwrap_or_else(PoisonError::into_inner).pop();
        program.expect("it runs").terminate(PATIENCE).expect("it ends");
        self.start_subject().expect("it starts");
    }

    /// The end of what the programs said.
    pub(crate) fn logs(&self) -> String {
        let programs = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        programs.iter().map(Running::tail).collect::<Vec<_>>().join("\n---\n")
    }

    /// Everything that the programs said.
    pub(crate) fn said(&self, what: &str) -> bool {
        let programs = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        programs.iter().any(|program| program.log().contains(what))
    }

    fn put_source(&self, file: &str, objects: &[Value]) {
        match &self.source {
            Source::Manifests(manifests) => {
                manifests.put(&format!("{file}.json"), objects).expect("manifests are written");
            }
            Source::Api(api) => api.put(file, objects),
        }
    }

    /// The node with those labels.
    pub(crate) fn put_node(&self, labels: &Value) {
        let addresses: Vec<_> =
            self.h.addresses.both().iter().map(|ip| json!({"type": "InternalIP", "address": ip})).collect();
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": SELF_NAME, "labels": labels},
            "spec": {"podCIDRs": ["10.180.0.0/24", "fd00:10:180::/64"]}, "status": {"addresses": addresses}});
        self.put_source("node", &[node]);
    }

    /// Puts a Service with these endpoints, and waits until the kernel has it.
    pub(crate) fn put(&self, v: &V, endpoints: &[Endpoint]) {
        self.put_objects(&v.name, &v.objects(endpoints));
    }

    /// Puts objects under a name, instead of what was put under it before, and waits until the kernel has them.
    pub(crate) fn put_objects(&self, name: &str, objects: &[Value]) {
        let (marker, sign) = self.marker(name);
        self.put_source(name, &[objects, &marker].concat());
        self.wait_for(&sign);
    }

    /// Waits until the kernel has all that was put before.
    pub(crate) fn wait(&self) {
        let (marker, sign) = self.marker("wait");
        self.put_source("wait", &marker);
        self.wait_for(&sign);
    }

    /// A Service that shows in every table of both families once it is programmed, along with what comes with it.
    fn marker(&self, name: &str) -> (Vec<Value>, Sign) {
        let number = self.syncs.fetch_add(1, Ordering::Relaxed);
        let [high, low] = number.to_be_bytes();
        let mark = format!("sync{number}");
        let v4 = format!("172.31.{high}.{low}");
        let v6 = format!("fd00:172:31::{number:x}");
        let service = json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"namespace": NAMESPACE, "name": format!("marker-{name}")},
            "spec": {"type": "ClusterIP", "clusterIP": v4, "clusterIPs": [v4, v6], "ipFamilies": ["IPv4", "IPv6"],
                "ports": [{"name": mark, "protocol": "TCP", "port": 80},
                    {"name": format!("{mark}-none"), "protocol": "TCP", "port": 81}]}});
        let slice = |family: &str, address: IpAddr| {
            json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
                "metadata": {"namespace": NAMESPACE, "name": format!("marker-{name}-{}", family.to_lowercase()),
                    "labels": {"kubernetes.io/service-name": format!("marker-{name}")}},
                "ports": [{"name": mark, "protocol": "TCP", "port": 80}],
                "endpoints": [{"addresses": [address], "conditions": {"ready": true}}]})
        };
        let slices = [slice("IPv4", self.r.addresses.v4.into()), slice("IPv6", self.r.addresses.v6.into())];
        let svc = format!("{NAMESPACE}/marker-{name}:{mark}");
        (
            [&[service], &slices[..]].concat(),
            Sign { svc, addresses: [v4, v6].map(|text| text.parse().expect("an address")) },
        )
    }

    fn wait_for(&self, sign: &Sign) {
        let shown = |rules: &str, all: [String; 2]| all.iter().all(|sign| rules.contains(sign));
        let here = || match self.subject {
            Subject::Nftables => ["ip", "ip6"].iter().zip(&sign.addresses).all(|(ip, address)| {
                let list = format!(
                    "nft -n list map {ip} distributary services; nft -n list map {ip} distributary refused"
                );
                let rules = self.world.node.script(&list).unwrap_or_default();
                shown(&rules, [80, 81].map(|port| format!(" {address} . 6 . {port} : ")))
            }),
            Subject::Agent | Subject::KubeProxy => SAVES.iter().all(|save| {
                let rules = self.world.node.script(save).unwrap_or_default();
                let svc = &sign.svc;
                shown(&rules, [format!("{svc} cluster IP"), format!("{svc}-none has no endpoints")])
            }),
        };
        if within(PATIENCE, || here().then_some(())).is_none() {
            panic!("{sign:?} does not get into the kernel\n{}\n{}", self.rules(""), self.logs());
        }
    }

    /// The rules of both families that name something; with nothing, all.
    pub(crate) fn rules(&self, what: &str) -> String {
        let list = match self.subject {
            Subject::Nftables => {
                "nft -n list table ip distributary; nft -n list table ip6 distributary".to_owned()
            }
            Subject::Agent | Subject::KubeProxy => SAVES.join("; "),
        };
        let all = self.world.node.script(&list).unwrap_or_default();
        all.lines().filter(|line| line.contains(what)).collect::<Vec<_>>().join("\n")
    }

    /// The rules of a Service.
    pub(crate) fn rules_of(&self, v: &V) -> String {
        self.rules(&format!("{NAMESPACE}/{}", v.name))
    }

    /// The node's own sockets on a port, for what no rule takes away from them.
    pub(crate) fn listen(&self, port: u16) -> Server {
        let wild = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
        Server::start(&self.world.node, SELF_NAME, Protocol::Tcp, &wild, port).expect("the port is free")
    }

    /// The fabric's sockets on these addresses, for what no rule takes away from them.
    pub(crate) fn beyond(&self, protocol: Protocol, targets: [SocketAddr; 2]) -> Server {
        let fabric = &self.world.pods[3].namespace;
        let addresses = targets.map(|target| target.ip());
        Server::start(fabric, FABRIC_NAME, protocol, &addresses, targets[0].port()).expect("the port is free")
    }
}
