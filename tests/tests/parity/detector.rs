//! Who is a pod, by each of the ways to tell (spec/kube-proxy.md §3.9). By cluster CIDR, every other module has it.

use distributary_e2e::topology::Pod;

use crate::cases;
use crate::look::Verdict::{Kept, Masqueraded};
use crate::service::{V, ready};
use crate::stage::{PLAIN, Setup, Stage};

/// The Node says that its pods are in the networks of L and L2; P is elsewhere.
const NODE_CIDR: Setup = Setup {
    name: "node CIDR",
    flags: &["--detect-local-mode=NodeCIDR"],
    detector: false,
    shared: false,
    ..PLAIN
};
/// The link of P.
const BRIDGE: Setup = Setup {
    name: "bridge interface",
    flags: &["--detect-local-mode=BridgeInterface", "--pod-bridge-interface=pod0"],
    ..NODE_CIDR
};
/// The links of all pods.
const PREFIX: Setup = Setup {
    name: "interface name prefix",
    flags: &["--detect-local-mode=InterfaceNamePrefix", "--pod-interface-name-prefix=pod"],
    ..NODE_CIDR
};

/// Pods keep their source, and policy Local does not bind them; nobody else is one.
fn only(on: &Stage, number: u8, pods: &[&Pod], others: &[&Pod]) {
    let (cluster, local) = (V::new(number), V::new(number + 1).external_local());
    for v in [&cluster, &local] {
        on.put(v, &[ready(&on.l), ready(&on.r)]);
    }
    for pod in pods {
        on.check(pod, cluster.cluster_ip(), Kept(&["L", "R"]));
        on.check(pod, local.vip(), Kept(&["L", "R"]));
    }
    for other in others {
        on.check(other, cluster.cluster_ip(), Masqueraded(&["L", "R"]));
        on.check(other, local.vip(), Kept(&["L"]));
    }
    on.check(&on.h, cluster.cluster_ip(), Masqueraded(&["L", "R"]));
}

cases! {
    fn pods_are_in_the_networks_of_their_node(on: NODE_CIDR) {
        only(on, 240, &[&on.l2], &[&on.p, &on.c1]);
    }

    fn pods_come_by_the_bridge(on: BRIDGE) {
        only(on, 242, &[&on.p], &[&on.l2, &on.c1]);
    }

    fn pods_come_by_links_of_a_prefix(on: PREFIX) {
        only(on, 244, &[&on.p, &on.l2], &[&on.c1]);
    }
}
