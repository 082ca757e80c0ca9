//! VIPs, external IPs and node ports, policy Cluster (§10.2).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use distributary_e2e::deployed::PATIENCE;
use distributary_e2e::topology::{Addresses, NODE, Pod};
use distributary_e2e::traffic::{Client, Protocol, Server};
use distributary_e2e::wait::until;
use serde_json::{Value, json};

use crate::cases;
use crate::look::Verdict::{Dropped, Kept, Masqueraded, Rejected, Untouched};
use crate::service::{V, ready};
use crate::stage::{ALONE, PLAIN, SELF_NAME, Setup, Stage};

const BOTH_NETWORKS: Setup = Setup {
    name: "node port addresses",
    flags: &["--nodeport-addresses=192.168.0.0/24,192.168.1.0/24"],
    shared: false,
    ..PLAIN
};
const NO_LOCALHOST: Setup = Setup {
    name: "no localhost node ports",
    flags: &["--iptables-localhost-nodeports=false"],
    shared: false,
    ..PLAIN
};
const EVERYWHERE: Setup = Setup {
    name: "node ports everywhere",
    flags: &["--nodeport-addresses=0.0.0.0/0,::/0"],
    shared: false,
    ..PLAIN
};
const LOCALHOST_NAMED: Setup = Setup {
    name: "localhost named",
    flags: &["--nodeport-addresses=192.168.0.0/24,127.0.0.1/32"],
    shared: false,
    ..PLAIN
};
const LOCALHOST_LISTED: Setup = Setup {
    name: "localhost listed but off",
    flags: &["--iptables-localhost-nodeports=false", "--nodeport-addresses=192.168.0.0/24,127.0.0.1/32"],
    shared: false,
    ..PLAIN
};

/// A process of the node that asks by its loopback.
pub(crate) fn loopback(on: &Stage) -> Pod {
    let addresses = Addresses { v4: Ipv4Addr::LOCALHOST, v6: Ipv6Addr::LOCALHOST };
    Pod { name: "loopback".into(), namespace: Arc::clone(&on.world.node), addresses }
}

fn ingress_of(v: &V, more: &Value) -> Value {
    let one = |target: SocketAddr| {
        let mut one = json!({"ip": target.ip()});
        for (key, value) in more.as_object().into_iter().flatten() {
            one[key] = value.clone();
        }
        one
    };
    json!(v.vip().map(one))
}

cases! {
    fn a017_a_node_port_reaches_every_endpoint_masqueraded(on: PLAIN) {
        let v = V::new(17);
        on.put(&v, &[ready(&on.l), ready(&on.r)]);
        for who in [&on.p, &on.h, &on.c1] {
            on.check(who, v.node_port(on), Masqueraded(&["L", "R"]));
        }
    }

    fn a018_vips_and_external_ips_reach_every_endpoint_masqueraded(on: PLAIN) {
        let v = V::new(18);
        on.put(&v, &[ready(&on.l), ready(&on.r)]);
        for who in [&on.p, &on.h, &on.c1] {
            on.check(who, v.vip(), Masqueraded(&["L", "R"]));
            on.check(who, v.external_ip(), Masqueraded(&["L", "R"]));
        }
    }

    fn a019_without_endpoints_every_external_address_refuses(on: PLAIN) {
        let v = V::new(19);
        on.put(&v, &[]);
        let _own = on.listen(v.node_port_number());
        for target in v.external(on) {
            on.check(&on.c1, target, Rejected);
        }
    }

    fn a020_a_vip_of_mode_proxy_is_left_to_the_load_balancer(on: PLAIN) {
        let v = V::new(20);
        let v = v.clone().ingress(ingress_of(&v, &json!({"ipMode": "Proxy"})));
        on.put(&v, &[ready(&on.l)]);
        on.check(&on.c1, v.vip(), Untouched);
        on.check(&on.p, v.vip(), Untouched);
        on.check(&on.p, v.cluster_ip(), Kept(&["L"]));
        on.check(&on.c1, v.node_port(on), Masqueraded(&["L"]));
    }

    fn a021_a_vip_is_captured_whether_or_not_its_mode_is_said(on: PLAIN) {
        let (said, unsaid) = (V::new(21), V::new(149));
        let said = said.clone().ingress(ingress_of(&said, &json!({"ipMode": "VIP"})));
        on.put(&said, &[ready(&on.l)]);
        on.put(&unsaid, &[ready(&on.l)]);
        on.check(&on.c1, said.vip(), Masqueraded(&["L"]));
        on.check(&on.c1, unsaid.vip(), Masqueraded(&["L"]));
    }

    fn a022_an_ingress_that_is_a_name_gives_nothing(on: PLAIN) {
        let v = V::new(22).ingress(json!([{"hostname": "lb.example.com"}]));
        on.put(&v, &[ready(&on.l)]);
        let rules = on.rules("");
        assert!(!rules.contains(&format!("{} loadbalancer IP", v.name)) && !rules.contains("example.com"), "{rules}");
        on.check(&on.c1, v.vip(), Untouched);
        on.check(&on.p, v.cluster_ip(), Kept(&["L"]));
        on.check(&on.c1, v.external_ip(), Masqueraded(&["L"]));
    }

    fn a031_a_family_that_is_not_named_has_node_ports_everywhere(on: BOTH_NETWORKS) {
        let v = V::new(31);
        on.put(&v, &[ready(&on.l), ready(&on.r)]);
        let _own = on.listen(v.node_port_number());
        for address in [on.h.addresses.v6, on.h2.addresses.v6, NODE.v6] {
            let target = SocketAddr::from((address, v.node_port_number()));
            on.check_one(Protocol::Tcp, &on.c1, target, Masqueraded(&["L", "R"]));
        }
    }

    fn a033_what_is_left_of_another_type_works_and_is_of_policy_cluster(on: PLAIN) {
        let v = V::new(33).external_local().with("type", json!("ClusterIP")).with("externalIPs", json!([]));
        on.put(&v, &[ready(&on.r)]);
        on.check(&on.c1, v.vip(), Masqueraded(&["R"]));
        on.check(&on.c1, v.node_port(on), Masqueraded(&["R"]));
    }

    fn a025_node_ports_are_on_the_addresses_that_are_named(on: BOTH_NETWORKS) {
        let v = V::new(25);
        on.put(&v, &[ready(&on.l), ready(&on.r)]);
        let _own = on.listen(v.node_port_number());
        for address in [on.h.addresses.v4, on.h2.addresses.v4] {
            let target = SocketAddr::from((address, v.node_port_number()));
            on.check_one(Protocol::Tcp, &on.c1, target, Masqueraded(&["L", "R"]));
        }
        let other = SocketAddr::from((NODE.v4, v.node_port_number()));
        let answer = on.c1.client_for(other.ip()).ask(Protocol::Tcp, other).expect("an answer");
        assert_eq!((answer.who.as_str(), answer.seen_source.ip()), ("self", IpAddr::V4(on.c1.addresses.v4)));
    }

    only iptables {
        fn a023_node_ports_are_on_every_address_of_the_node(on: PLAIN) {
            let v = V::new(23);
            on.put(&v, &[ready(&on.l), ready(&on.r)]);
            let _own = on.listen(v.node_port_number());
            on.check(&on.c1, v.node_port_at(on.h2.addresses.both()), Masqueraded(&["L", "R"]));
            on.check(&on.c1, v.node_port_at(NODE.both()), Masqueraded(&["L", "R"]));
        }

        fn a027_localhost_node_ports_can_be_off_and_ipv6_has_none(on: NO_LOCALHOST) {
            let v = V::new(27);
            on.put(&v, &[ready(&on.l), ready(&on.r)]);
            let _own = on.listen(v.node_port_number());
            on.check(&loopback(on), v.node_port_at(loopback(on).addresses.both()), Untouched);
            on.check(&on.c1, v.node_port(on), Masqueraded(&["L", "R"]));
            assert_eq!(on.rules("block incoming localnet"), "");
        }

        fn a030_localhost_among_node_port_addresses_needs_localhost_node_ports(on: LOCALHOST_LISTED) {
            let v = V::new(30);
            on.put(&v, &[ready(&on.l)]);
            let _own = on.listen(v.node_port_number());
            let target = SocketAddr::from((Ipv4Addr::LOCALHOST, v.node_port_number()));
            on.check_one(Protocol::Tcp, &loopback(on), target, Untouched);
            let target = SocketAddr::from((on.h.addresses.v4, v.node_port_number()));
            on.check_one(Protocol::Tcp, &on.c1, target, Masqueraded(&["L"]));
            assert_eq!(on.rules("block incoming localnet"), "");
            let logs = on.logs();
            assert!(on.said("127.0.0.1") || on.said("localhost"), "{logs}");
        }

        fn a032_a_firewall_that_forwards_nothing_lets_masqueraded_connections_through(on: ALONE) {
            let v = V::new(32);
            on.put(&v, &[ready(&on.r)]);
            on.world.node.script("iptables -P FORWARD DROP; ip6tables -P FORWARD DROP").expect("a policy");
            // Neighbours have to be found, still.
            on.check(&on.c1, v.node_port(on), Masqueraded(&["R"]));
            on.check(&on.p, v.cluster_ip(), Dropped);
        }

        fn wart_13_the_node_itself_is_not_refused_at_external_addresses(on: PLAIN) {
            let v = V::new(250);
            on.put(&v, &[]);
            on.check(&on.h, v.vip(), Untouched);
            on.check(&on.h, v.external_ip(), Untouched);
        }

        fn a026_localhost_has_node_ports(on: PLAIN) {
            let v = V::new(26);
            on.put(&v, &[ready(&on.l), ready(&on.r)]);
            let _own = on.listen(v.node_port_number());
            let target = SocketAddr::from((Ipv4Addr::LOCALHOST, v.node_port_number()));
            on.check_one(Protocol::Tcp, &loopback(on), target, Masqueraded(&["L", "R"]));
        }

        fn a029_what_comes_from_elsewhere_to_localhost_is_dropped(on: ALONE) {
            let wild = [IpAddr::V4(Ipv4Addr::UNSPECIFIED)];
            let own = Server::start(&on.world.node, SELF_NAME, Protocol::Udp, &wild, 3129).expect("a port");
            let outside = &on.world.outside;
            for scope in ["all", "eth0"] {
                outside.set_sysctl(&format!("ipv4/conf/{scope}/route_localnet"), "1").expect("a sysctl");
            }
            let routes = format!(
                "ip addr add 10.1.1.1/32 dev eth0; ip route del table local local 127.0.0.0/8 dev lo; \
                 ip route del table local local 127.0.0.1 dev lo; ip route add 127.0.0.1/32 via {} src 10.1.1.1",
                NODE.v4
            );
            outside.script(&routes).expect("a way to somebody else's localhost");
            let target = SocketAddr::from((Ipv4Addr::LOCALHOST, 3129));
            // It need not be answered to do harm.
            let ask = || {
                let client = Client::new(outside).from_address(Ipv4Addr::new(10, 1, 1, 1).into());
                client.with_timeout(Duration::from_millis(300)).ask(Protocol::Udp, target).ok();
                own.requests()
            };
            assert_eq!(ask(), 0);
            on.world.node.shell("iptables -F KUBE-FIREWALL").expect("the chain is there");
            until("a packet to get through without the rule", PATIENCE, || (ask() > 0).then_some(()));
        }
    }

    only nftables {
        fn a024_node_ports_are_on_the_primary_address_of_the_node(on: PLAIN) {
            let v = V::new(24);
            on.put(&v, &[ready(&on.l), ready(&on.r)]);
            let _own = on.listen(v.node_port_number());
            on.check(&on.c1, v.node_port(on), Masqueraded(&["L", "R"]));
            on.check(&on.c1, v.node_port_at(on.h2.addresses.both()), Untouched);
            on.check(&on.c1, v.node_port_at(NODE.both()), Untouched);
        }

        fn a023_node_ports_can_be_on_every_address_of_the_node(on: EVERYWHERE) {
            let v = V::new(23);
            on.put(&v, &[ready(&on.l), ready(&on.r)]);
            let _own = on.listen(v.node_port_number());
            on.check(&on.c1, v.node_port_at(on.h2.addresses.both()), Masqueraded(&["L", "R"]));
            on.check(&on.c1, v.node_port_at(NODE.both()), Masqueraded(&["L", "R"]));
            on.check(&loopback(on), v.node_port_at(loopback(on).addresses.both()), Untouched);
            let none = V::new(223);
            on.put(&none, &[]);
            let _own = on.listen(none.node_port_number());
            on.check(&on.c1, none.node_port_at(NODE.both()), Rejected);
            on.check(&loopback(on), none.node_port_at(loopback(on).addresses.both()), Untouched);
        }

        fn a028_localhost_has_no_node_ports(on: LOCALHOST_NAMED) {
            let v = V::new(28);
            on.put(&v, &[ready(&on.l), ready(&on.r)]);
            let _own = on.listen(v.node_port_number());
            let target = SocketAddr::from((Ipv4Addr::LOCALHOST, v.node_port_number()));
            on.check_one(Protocol::Tcp, &loopback(on), target, Untouched);
            let target = SocketAddr::from((on.h.addresses.v4, v.node_port_number()));
            on.check_one(Protocol::Tcp, &on.c1, target, Masqueraded(&["L", "R"]));
            assert!(on.said("127.0.0.1"), "{}", on.logs());
        }

        fn a032_a_firewall_that_forwards_nothing_is_named(on: ALONE) {
            let v = V::new(32);
            on.put(&v, &[ready(&on.r)]);
            on.check(&on.c1, v.node_port(on), Masqueraded(&["R"]));
            on.world.node.script("iptables -P FORWARD DROP").expect("a policy");
            on.check_one(Protocol::Tcp, &on.c1, v.node_port(on)[0], Dropped);
            on.restart_subject();
            until("a word about it", PATIENCE, || on.said("ip filter FORWARD").then_some(()));
        }

        fn wart_13_the_node_itself_is_refused_at_external_addresses(on: PLAIN) {
            let v = V::new(250);
            on.put(&v, &[]);
            on.check(&on.h, v.vip(), Rejected);
            on.check(&on.h, v.external_ip(), Rejected);
        }
    }
}
