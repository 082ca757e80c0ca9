//! Source ranges (§10.7).

use distributary_e2e::topology::{Addresses, Pod};
use distributary_e2e::traffic::Protocol;
use serde_json::{Value, json};

use crate::cases;
use crate::look::Verdict::{Dropped, Masqueraded, Rejected};
use crate::service::{V, ready};
use crate::stage::{PLAIN, Stage, Subject};

/// The node's address and the first client's, the latter with a blank that does not matter.
const NODE_AND_C1: [&str; 4] =
    ["192.168.0.0/24", " 203.0.113.0/25", "fd00:192:168::/64", " 2001:db8:113::/112"];
const ONLY_C1: [&str; 2] = ["203.0.113.0/25", "2001:db8:113::/112"];

/// The node, as one that has the VIP for its own.
fn at_its_vip(on: &Stage, v: &V) -> Pod {
    let [v4, v6] = v.vip().map(|target| target.ip().to_string());
    let addresses = Addresses { v4: v4.parse().expect("IPv4"), v6: v6.parse().expect("IPv6") };
    on.world.also_node("VIP", "lo", addresses).expect("an address")
}

fn ingress(vs: &[&V]) -> Value {
    vs.iter().flat_map(|v| v.vip()).map(|target| json!({"ip": target.ip()})).collect()
}

cases! {
    fn a080_who_is_in_the_source_ranges_is_let_in(on: PLAIN) {
        let v = V::new(80).ranges(&NODE_AND_C1);
        on.put(&v, &[ready(&on.l)]);
        on.check(&on.c1, v.vip(), Masqueraded(&["L"]));
    }

    fn a081_who_is_not_hears_nothing(on: PLAIN) {
        let v = V::new(81).ranges(&NODE_AND_C1);
        on.put(&v, &[ready(&on.l)]);
        on.check(&on.c2, v.vip(), Dropped);
        on.check(&on.p, v.vip(), Dropped);
    }

    fn a082_node_ports_and_external_ips_are_open_to_all(on: PLAIN) {
        let v = V::new(82).ranges(&NODE_AND_C1);
        on.put(&v, &[ready(&on.l)]);
        on.check(&on.c2, v.node_port(on), Masqueraded(&["L"]));
        on.check(&on.c2, v.external_ip(), Masqueraded(&["L"]));
    }

    fn a084_a_node_outside_of_them_may_not(on: PLAIN) {
        let v = V::new(84).ranges(&ONLY_C1);
        on.put(&v, &[ready(&on.l)]);
        on.check(&at_its_vip(on, &v), v.vip(), Dropped);
    }

    fn a085_a_range_of_everything_opens_to_all(on: PLAIN) {
        let v = V::new(85).ranges(&["203.0.113.0/25", "0.0.0.0/0", "2001:db8:113::/112", "::/0"]);
        on.put(&v, &[ready(&on.l)]);
        on.check(&on.c2, v.vip(), Masqueraded(&["L"]));
    }

    fn a086_ranges_of_one_family_leave_the_other_open(on: PLAIN) {
        let v = V::new(86).ranges(&["2001:db8:113::/112"]);
        on.put(&v, &[ready(&on.l)]);
        let [v4, v6] = v.vip();
        on.check_one(Protocol::Tcp, &on.c2, v4, Masqueraded(&["L"]));
        on.check_one(Protocol::Tcp, &on.c2, v6, Dropped);
    }

    fn a088_every_vip_is_guarded(on: PLAIN) {
        let (v, other) = (V::new(88), V::new(216));
        let v = v.clone().ranges(&NODE_AND_C1).ingress(ingress(&[&v, &other]));
        on.put(&v, &[ready(&on.l)]);
        for vip in [v.vip(), other.vip()] {
            on.check(&on.c1, vip, Masqueraded(&["L"]));
            on.check(&on.c2, vip, Dropped);
        }
    }

    fn wart_6_an_external_ip_that_is_a_vip_is_guarded(on: PLAIN) {
        let v = V::new(251).ranges(&NODE_AND_C1);
        let vips = v.vip().map(|target| target.ip());
        let v = v.with("externalIPs", json!(vips));
        on.put(&v, &[ready(&on.l)]);
        on.check(&on.c1, v.vip(), Masqueraded(&["L"]));
        match on.subject {
            // The guard is gone around.
            Subject::KubeProxy => on.check(&on.c2, v.vip(), Masqueraded(&["L"])),
            Subject::Agent | Subject::Nftables => on.check(&on.c2, v.vip(), Dropped),
        }
    }

    fn a083_a_node_in_the_ranges_may_come_from_the_vip(on: PLAIN) {
        let v = V::new(83).ranges(&NODE_AND_C1);
        on.put(&v, &[ready(&on.l)]);
        on.check(&on.h, v.vip(), Masqueraded(&["L"]));
        on.check(&at_its_vip(on, &v), v.vip(), Masqueraded(&["L"]));
    }

    only iptables {
        fn a087_without_endpoints_all_are_refused(on: PLAIN) {
            let v = V::new(87).ranges(&NODE_AND_C1);
            on.put(&v, &[]);
            on.check(&on.c1, v.vip(), Rejected);
            on.check(&on.c2, v.vip(), Rejected);
        }
    }

    only nftables {
        fn a087_without_endpoints_sources_are_checked_all_the_same(on: PLAIN) {
            let v = V::new(87).ranges(&NODE_AND_C1);
            on.put(&v, &[]);
            on.check(&on.c1, v.vip(), Rejected);
            on.check(&on.c2, v.vip(), Dropped);
        }
    }
}
