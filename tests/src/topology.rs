//! A node with its pods, and what is around it.
//!
//! ```text
//!   outside 192.0.2.2 ───── 192.0.2.1  node  198.51.100.1 ───── 198.51.100.2  remote
//!           2001:db8::2     2001:db8::1  │   2001:db8:1::1      2001:db8:1::2   10.244.1.2…  fd00:10:244:1::2…
//!                                        │ 10.244.0.1, fd00:10:244::1 on every pod's link
//!                        pods 10.244.0.2…  fd00:10:244::2…
//! ```
//!
//! The node routes; nothing here translates an address. Pods have links of their own to the node (no bridge), so also a
//! packet of a pod to itself comes out of and goes back into the same link. The outside routes everything it does not
//! know to the node, ClusterIPs too, and the node's own default route leads to the outside, which forwards nothing:
//! what the node has no rule for is lost there. Remote pods are addresses of one namespace, the remote node.

use std::{
    fmt::Write,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::{
    netns::Namespace,
    traffic::{Client, Protocol, Server},
    wait,
};

/// Every pod's address is in one of these two.
pub const CLUSTER_CIDRS: [&str; 2] = ["10.244.0.0/16", "fd00:10:244::/48"];
/// The addresses of pods on the node.
pub const POD_CIDRS: [&str; 2] = ["10.244.0.0/24", "fd00:10:244::/64"];
/// The node's addresses towards the outside.
pub const NODE: Addresses =
    Addresses { v4: Ipv4Addr::new(192, 0, 2, 1), v6: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1) };
/// The client outside the cluster.
pub const OUTSIDE: Addresses =
    Addresses { v4: Ipv4Addr::new(192, 0, 2, 2), v6: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2) };
/// The node's addresses towards the remote node.
pub const NODE_INSIDE: Addresses =
    Addresses { v4: Ipv4Addr::new(198, 51, 100, 1), v6: Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1) };
/// The remote node.
pub const REMOTE: Addresses =
    Addresses { v4: Ipv4Addr::new(198, 51, 100, 2), v6: Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2) };
/// The node's addresses towards its pods.
pub const GATEWAY: Addresses =
    Addresses { v4: Ipv4Addr::new(10, 244, 0, 1), v6: Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, 1) };

/// Pods have addresses 2 to 254 of their subnet.
const MOST_PODS: u8 = 253;

/// Indices of the node's links start here, far from those of the far ends: where both ends have the same index, the
/// kernel takes the link for one without a peer and lets news of its carrier wait for up to a second.
const FIRST_INDEX: usize = 1000;

/// One address of each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Addresses {
    /// The IPv4 address.
    pub v4: Ipv4Addr,
    /// The IPv6 address.
    pub v6: Ipv6Addr,
}

impl Addresses {
    /// Both, IPv4 first.
    #[must_use]
    pub fn both(self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }
}

/// A node and its surroundings.
#[derive(Debug)]
pub struct Topology {
    /// Where the agent and its rules are.
    pub node: Arc<Namespace>,
    /// Outside the cluster.
    pub outside: Arc<Namespace>,
    /// Another node.
    pub remote: Arc<Namespace>,
    /// The pods of the node, `pod-0` and on.
    pub pods: Vec<Pod>,
    /// The pods of the other node, `remote-0` and on.
    pub remote_pods: Vec<Pod>,
}

/// Something with addresses that serves and asks.
#[derive(Clone, Debug)]
pub struct Pod {
    /// What its servers say.
    pub name: String,
    /// Where its sockets are. Remote pods share one.
    pub namespace: Arc<Namespace>,
    /// Its addresses.
    pub addresses: Addresses,
}

impl Pod {
    /// Serves on both addresses.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn serve(&self, protocol: Protocol, port: u16) -> Result<Server> {
        Server::start(&self.namespace, &self.name, protocol, &self.addresses.both(), port)
    }

    /// Asks `target` from the pod's address of the same family.
    #[must_use]
    pub fn client_for(&self, target: IpAddr) -> Client {
        let client = Client::new(&self.namespace);
        match target {
            IpAddr::V4(_) => client.from_address(self.addresses.v4.into()),
            IpAddr::V6(_) => client.from_address(self.addresses.v6.into()),
        }
    }
}

impl Topology {
    /// Builds a node with that many pods, and another with that many.
    ///
    /// # Errors
    /// When the kernel or `ip` refuses, or the process is not allowed to (see [`crate::netns::world`]).
    pub fn new(pods: u8, remote_pods: u8) -> Result<Self> {
        ensure!(pods.max(remote_pods) <= MOST_PODS, "a node has at most {MOST_PODS} pods");
        let mut made = Namespace::several(3 + usize::from(pods))?.into_iter().map(Arc::new);
        let mut next = || made.next().context("as many as were asked for");
        let (node, outside, remote) = (next()?, next()?, next()?);
        let pods = (0..pods)
            .map(|index| {
                Ok(Pod { name: format!("pod-{index}"), namespace: next()?, addresses: host(0, index) })
            })
            .collect::<Result<Vec<_>>>()?;
        let remote_pods: Vec<Pod> = (0..remote_pods)
            .map(|index| Pod {
                name: format!("remote-{index}"),
                namespace: Arc::clone(&remote),
                addresses: host(1, index),
            })
            .collect();
        let topology = Self { node, outside, remote, pods, remote_pods };
        topology.connect()?;
        Ok(topology)
    }

    /// The outside, as one who serves and asks.
    #[must_use]
    pub fn outsider(&self) -> Pod {
        Pod { name: "outside".to_owned(), namespace: Arc::clone(&self.outside), addresses: OUTSIDE }
    }

    /// A pod in the node's own namespace (`hostNetwork`).
    #[must_use]
    pub fn host_pod(&self) -> Pod {
        Pod { name: "node".to_owned(), namespace: Arc::clone(&self.node), addresses: NODE }
    }

    /// Gives the pod with that index further addresses, and a name to go with them.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn also_pod(&self, index: usize, name: &str, addresses: Addresses) -> Result<Pod> {
        let namespace = &self.pods.get(index).context("a pod of the node")?.namespace;
        namespace.ip(&own_addresses(addresses, "eth0"))?;
        let dev = format!("dev pod{index}");
        self.node.ip(&[
            format!("route add {}/32 {dev} src {}", addresses.v4, GATEWAY.v4),
            format!("route add {}/128 {dev} src {}", addresses.v6, GATEWAY.v6),
        ])?;
        Ok(Pod { name: name.to_owned(), namespace: Arc::clone(namespace), addresses })
    }

    /// Another pod of the remote node.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn also_remote(&self, name: &str, addresses: Addresses) -> Result<Pod> {
        self.remote.ip(&own_addresses(addresses, "lo"))?;
        self.node.ip(&via(addresses, REMOTE))?;
        Ok(Pod { name: name.to_owned(), namespace: Arc::clone(&self.remote), addresses })
    }

    /// Another client outside.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn also_outside(&self, name: &str, addresses: Addresses) -> Result<Pod> {
        self.outside.ip(&own_addresses(addresses, "eth0"))?;
        self.node.ip(&via(addresses, OUTSIDE))?;
        Ok(Pod { name: name.to_owned(), namespace: Arc::clone(&self.outside), addresses })
    }

    /// Further addresses of the node, at one of its two uplinks (`eth0`, `eth1`) or its loopback.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn also_node(&self, name: &str, link: &str, addresses: Addresses) -> Result<Pod> {
        self.node.ip(&own_addresses(addresses, link))?;
        Ok(Pod { name: name.to_owned(), namespace: Arc::clone(&self.node), addresses })
    }

    /// Lets the pod with that index have whole networks: the node routes them to it, and it takes them for its own.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn own_networks(&self, index: usize, networks: &[&str]) -> Result<()> {
        let pod = self.pods.get(index).context("a pod of the node")?;
        for network in networks {
            let (flag, gateway): (_, IpAddr) = match network.contains(':') {
                true => ("-6", pod.addresses.v6.into()),
                false => ("-4", pod.addresses.v4.into()),
            };
            pod.namespace.shell(&format!("ip {flag} route add local {network} dev lo"))?;
            self.node.shell(&format!("ip {flag} route add {network} via {gateway} dev pod{index} onlink"))?;
        }
        Ok(())
    }

    fn connect(&self) -> Result<()> {
        let others =
            [&self.outside, &self.remote].into_iter().chain(self.pods.iter().map(|pod| &pod.namespace));
        for namespace in others.chain([&self.node]) {
            // Before there are links: these are what new links start with.
            namespace.within(|| plain_links(namespace))?;
        }
        for key in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            self.node.set_sysctl(key, "1")?;
            self.remote.set_sysctl(key, "1")?;
        }
        self.node.ip(&self.node_links())?;
        self.outside.ip(&uplink(OUTSIDE, NODE))?;
        let mut remote = uplink(REMOTE, NODE_INSIDE);
        remote.extend(self.remote_pods.iter().flat_map(|pod| own_addresses(pod.addresses, "lo")));
        self.remote.ip(&remote)?;
        for pod in &self.pods {
            pod.namespace.ip(&pod_links(pod.addresses))?;
        }
        self.await_links();
        Ok(())
    }

    /// The kernel tells IPv6 of a link's carrier from a queue. Until then nothing is received on it.
    fn await_links(&self) {
        let far = [&self.outside, &self.remote].into_iter().chain(self.pods.iter().map(|pod| &pod.namespace));
        for (namespace, links) in
            far.map(|namespace| (namespace, 1)).chain([(&self.node, 2 + self.pods.len())])
        {
            wait::until("every link has its IPv6 address", Duration::from_secs(10), || {
                (namespace.within(links_with_addresses) == links).then_some(())
            });
        }
    }

    fn node_links(&self) -> Vec<String> {
        let mut lines =
            vec![link("eth0", FIRST_INDEX, &self.outside), link("eth1", FIRST_INDEX + 1, &self.remote)];
        lines.extend(subnet_addresses(NODE, "eth0"));
        lines.extend(subnet_addresses(NODE_INSIDE, "eth1"));
        lines.extend(["link set eth0 up".to_owned(), "link set eth1 up".to_owned()]);
        for route in [
            format!("default via {}", OUTSIDE.v4),
            format!("default via {}", OUTSIDE.v6),
            format!("10.244.1.0/24 via {}", REMOTE.v4),
            format!("fd00:10:244:1::/64 via {}", REMOTE.v6),
        ] {
            lines.push(format!("route add {route}"));
        }
        for (index, pod) in self.pods.iter().enumerate() {
            let name = format!("pod{index}");
            lines.push(link(&name, FIRST_INDEX + 2 + index, &pod.namespace));
            lines.extend(own_addresses(GATEWAY, &name));
            lines.push(format!("link set {name} up"));
            lines.push(format!("route add {}/32 dev {name} src {}", pod.addresses.v4, GATEWAY.v4));
            lines.push(format!("route add {}/128 dev {name} src {}", pod.addresses.v6, GATEWAY.v6));
        }
        lines
    }
}

/// Routes of the node to single addresses behind one of the two at its uplinks.
fn via(addresses: Addresses, next: Addresses) -> Vec<String> {
    vec![
        format!("route add {}/32 via {}", addresses.v4, next.v4),
        format!("route add {}/128 via {}", addresses.v6, next.v6),
    ]
}

/// A link of the node whose far end is `eth0` of that namespace.
fn link(name: &str, index: usize, far: &Namespace) -> String {
    format!("link add {name} index {index} type veth peer name eth0 netns {}", far.name())
}

/// The addresses of the pod with that index on the node with that subnet.
fn host(subnet: u8, index: u8) -> Addresses {
    let number = index + 2;
    Addresses {
        v4: Ipv4Addr::new(10, 244, subnet, number),
        v6: Ipv6Addr::new(0xfd00, 0x10, 0x244, subnet.into(), 0, 0, 0, number.into()),
    }
}

fn subnet_addresses(addresses: Addresses, link: &str) -> Vec<String> {
    vec![
        format!("addr add {}/24 dev {link}", addresses.v4),
        format!("addr add {}/64 dev {link} nodad", addresses.v6),
    ]
}

fn own_addresses(addresses: Addresses, link: &str) -> Vec<String> {
    vec![
        format!("addr add {}/32 dev {link}", addresses.v4),
        format!("addr add {}/128 dev {link} nodad", addresses.v6),
    ]
}

/// The far end of one of the node's two uplinks.
fn uplink(own: Addresses, node: Addresses) -> Vec<String> {
    let mut lines = subnet_addresses(own, "eth0");
    lines.push("link set eth0 up".to_owned());
    lines.push(format!("route add default via {}", node.v4));
    lines.push(format!("route add default via {}", node.v6));
    lines
}

fn pod_links(addresses: Addresses) -> Vec<String> {
    let mut lines = own_addresses(addresses, "eth0");
    lines.push("link set eth0 up".to_owned());
    for gateway in GATEWAY.both() {
        lines.push(format!("route add {gateway} dev eth0"));
        lines.push(format!("route add default via {gateway}"));
    }
    lines
}

/// How many links of this thread's namespace have a link-local address, the last that IPv6 gives a link, in use.
fn links_with_addresses() -> usize {
    const TENTATIVE: u32 = 0x40;
    let table = fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap_or_default();
    table.lines().filter(|line| line.starts_with("fe80")).filter(|line| flags(line) & TENTATIVE == 0).count()
}

/// The fifth of the columns address, index, prefix length, scope, flags, name.
fn flags(line: &str) -> u32 {
    line.split_whitespace().nth(4).and_then(|flags| u32::from_str_radix(flags, 16).ok()).unwrap_or_default()
}

/// Addresses are usable at once, and packets may come from where their answers would not go.
fn plain_links(namespace: &Namespace) -> Result<()> {
    for scope in ["all", "default"] {
        for (key, value) in [("ipv4/conf/{}/rp_filter", "0"), ("ipv6/conf/{}/accept_dad", "0")] {
            let mut path = String::from("/proc/sys/net/");
            write!(path, "{}", key.replace("{}", scope))?;
            fs::write(&path, value).with_context(|| format!("{path} in {}", namespace.name()))?;
        }
    }
    Ok(())
}
