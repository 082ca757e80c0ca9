//! Traffic policies Local (§10.3, §10.4).

use std::net::{Ipv4Addr, SocketAddr};

use distributary_e2e::deployed::{self, PATIENCE};
use distributary_e2e::node::AGENT_ADMIN;
use distributary_e2e::traffic::Protocol;
use distributary_e2e::wait::until;
use serde_json::json;

use crate::cases;
use crate::cluster_ip::NO_DETECTOR;
use crate::external::loopback;
use crate::look::Verdict::{Dropped, Kept, Masqueraded, Rejected};
use crate::service::{V, ready};
use crate::stage::{ALONE, PLAIN, Stage};

/// kube-proxy's gauge of service ports without local endpoints, per family.
fn without_local(on: &Stage, policy: &str) -> Vec<String> {
    let (_, body) = deployed::get(&on.world.node, AGENT_ADMIN, "/metrics").expect("metrics");
    let name = "kubeproxy_sync_proxy_rules_no_local_endpoints_total{";
    let of_policy = format!("traffic_policy=\"{policy}\"");
    let lines = body.lines().filter(|line| line.starts_with(name) && line.contains(&of_policy));
    lines
        .filter_map(|line| line.rsplit(' ').next())
        .map(|value| value.trim_end_matches(".0").to_owned())
        .collect()
}

cases! {
    fn a034_external_policy_local_keeps_to_the_node_and_the_source(on: PLAIN) {
        let v = V::new(34).external_local();
        on.put(&v, &[ready(&on.l), ready(&on.r)]);
        for target in v.external(on) {
            on.check(&on.c1, target, Kept(&["L"]));
        }
    }

    fn a035_it_does_not_bind_pods(on: PLAIN) {
        let v = V::new(35).external_local();
        on.put(&v, &[ready(&on.l), ready(&on.r)]);
        for target in v.external(on) {
            on.check(&on.p, target, Kept(&["L", "R"]));
        }
    }

    fn a036_it_does_not_bind_the_node_which_is_masqueraded(on: PLAIN) {
        let v = V::new(36).external_local();
        on.put(&v, &[ready(&on.l), ready(&on.r)]);
        for target in v.external(on) {
            on.check(&on.h, target, Masqueraded(&["L", "R"]));
        }
    }

    fn a038_nor_a_pod_at_the_cluster_ip(on: PLAIN) {
        let v = V::new(38).external_local();
        on.put(&v, &[ready(&on.l), ready(&on.r)]);
        on.check(&on.p, v.cluster_ip(), Kept(&["L", "R"]));
    }

    fn a039_nor_anybody_else_at_the_cluster_ip(on: PLAIN) {
        let v = V::new(39).external_local();
        on.put(&v, &[ready(&on.l), ready(&on.r)]);
        on.check(&on.h, v.cluster_ip(), Masqueraded(&["L", "R"]));
        on.check(&on.c1, v.cluster_ip(), Masqueraded(&["L", "R"]));
    }

    fn a040_without_a_detector_it_binds_pods(on: NO_DETECTOR) {
        let v = V::new(40).external_local();
        on.put(&v, &[ready(&on.l), ready(&on.r)]);
        on.check(&on.p, v.vip(), Kept(&["L"]));
        on.check(&on.p, v.node_port(on), Kept(&["L"]));
    }

    fn a041_with_no_endpoint_on_the_node_the_outside_hears_nothing(on: PLAIN) {
        let v = V::new(41).external_local();
        on.put(&v, &[ready(&on.r)]);
        let _own = on.listen(v.node_port_number());
        for target in v.external(on) {
            on.check(&on.c1, target, Dropped);
        }
    }

    fn a042_a_pod_reaches_it_all_the_same(on: PLAIN) {
        let v = V::new(42).external_local();
        on.put(&v, &[ready(&on.r)]);
        on.check(&on.p, v.vip(), Kept(&["R"]));
    }

    fn a043_and_so_does_the_node(on: PLAIN) {
        let v = V::new(43).external_local();
        on.put(&v, &[ready(&on.r)]);
        on.check(&on.h, v.vip(), Masqueraded(&["R"]));
    }

    fn a044_without_a_detector_only_the_node_does(on: NO_DETECTOR) {
        let v = V::new(44).external_local();
        on.put(&v, &[ready(&on.r)]);
        on.check(&on.p, v.vip(), Dropped);
        on.check(&on.h, v.vip(), Masqueraded(&["R"]));
    }

    fn a046_external_policy_is_nothing_without_external_addresses(on: PLAIN) {
        let v = V::new(46).external_local().internal_only();
        on.put(&v, &[ready(&on.r)]);
        on.check(&on.p, v.cluster_ip(), Kept(&["R"]));
        on.check(&on.c1, v.cluster_ip(), Masqueraded(&["R"]));
        let rules = on.rules_of(&v);
        assert!(!rules.contains("external destinations") && !rules.contains("no local"), "{rules}");
    }

    fn a048_internal_policy_local_keeps_pods_to_the_node(on: PLAIN) {
        let v = V::new(48).internal_local();
        on.put(&v, &[ready(&on.l), ready(&on.r)]);
        on.check(&on.p, v.cluster_ip(), Kept(&["L"]));
    }

    fn a049_and_everybody_else_who_is_masqueraded(on: PLAIN) {
        let v = V::new(49).internal_local();
        on.put(&v, &[ready(&on.l), ready(&on.r)]);
        on.check(&on.h, v.cluster_ip(), Masqueraded(&["L"]));
        on.check(&on.c1, v.cluster_ip(), Masqueraded(&["L"]));
    }

    fn a050_it_is_nothing_to_external_addresses(on: PLAIN) {
        let v = V::new(50).internal_local();
        on.put(&v, &[ready(&on.l), ready(&on.r)]);
        for target in [v.node_port(on), v.vip()] {
            for who in [&on.p, &on.h, &on.c1] {
                on.check(who, target, Masqueraded(&["L", "R"]));
            }
        }
    }

    fn a051_all_local_endpoints_are_used(on: PLAIN) {
        let v = V::new(51).internal_local();
        on.put(&v, &[ready(&on.l), ready(&on.l2), ready(&on.r)]);
        on.check(&on.p, v.cluster_ip(), Kept(&["L", "L2"]));
    }

    fn a052_with_no_endpoint_on_the_node_the_cluster_ip_is_silent(on: PLAIN) {
        let v = V::new(52).internal_local();
        on.put(&v, &[ready(&on.r)]);
        on.check(&on.p, v.cluster_ip(), Dropped);
        on.check(&on.h, v.cluster_ip(), Dropped);
        on.check(&on.c1, v.node_port(on), Masqueraded(&["R"]));
    }

    fn a053_with_no_endpoint_anywhere_it_refuses(on: PLAIN) {
        let v = V::new(53).internal_local();
        on.put(&v, &[]);
        on.check(&on.p, v.cluster_ip(), Rejected);
    }

    fn a054_both_policies_local(on: PLAIN) {
        let v = V::new(54).internal_local().external_local();
        on.put(&v, &[ready(&on.l), ready(&on.r)]);
        on.check(&on.c1, v.vip(), Kept(&["L"]));
        on.check(&on.p, v.vip(), Kept(&["L", "R"]));
        on.check(&on.p, v.cluster_ip(), Kept(&["L"]));
    }

    fn a045_service_ports_without_local_endpoints_are_counted(on: ALONE) {
        let (far, none) = (V::new(45).external_local(), V::new(173).external_local());
        on.put(&far, &[ready(&on.r)]);
        on.put(&none, &[]);
        let counted = |wanted: &str| {
            let wanted = [wanted; 2].map(str::to_owned);
            until("the gauge", PATIENCE, || (without_local(on, "external") == wanted).then_some(()));
        };
        counted("1");
        on.put(&far, &[]);
        counted("0");
    }

    only iptables {
        fn a047_the_health_check_port_is_let_in_as_long_as_there_is_the_service(on: PLAIN) {
            let v = V::new(47).external_local().with("healthCheckNodePort", json!(30047));
            on.put(&v, &[]);
            let accepted = || on.rules(&format!("parity/{}:p80 health check node port", v.name));
            let rules = accepted();
            let is_right = |rule: &str| {
                rule.starts_with("-A KUBE-NODEPORTS ") && rule.contains("--dport 30047") && rule.ends_with("-j ACCEPT")
            };
            assert!(rules.lines().count() == 2 && rules.lines().all(is_right), "{rules}\n{}", on.rules_of(&v));
            on.put_objects(&v.name, &[]);
            assert_eq!(accepted(), "");
        }

        fn a037_nor_localhost(on: PLAIN) {
            let v = V::new(37).external_local();
            on.put(&v, &[ready(&on.l), ready(&on.r)]);
            let target = SocketAddr::from((Ipv4Addr::LOCALHOST, v.node_port_number()));
            on.check_one(Protocol::Tcp, &loopback(on), target, Masqueraded(&["L", "R"]));
        }
    }
}
