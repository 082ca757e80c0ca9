//! Cluster IPs (spec/kube-proxy.md §10.1).

use distributary_e2e::topology::Pod;
use distributary_e2e::traffic::{Protocol, Server, sctp_in_kernel};
use serde_json::json;

use crate::cases;
use crate::look::Verdict::{Dropped, Kept, Masqueraded, Rejected, Untouched};
use crate::service::{V, ready};
use crate::stage::{ALONE, PLAIN, Setup, Subject};

pub(crate) const NO_DETECTOR: Setup = Setup { name: "no detector", detector: false, shared: false, ..PLAIN };
const MASQUERADE_ALL: Setup =
    Setup { name: "masquerade all", flags: &["--masquerade-all"], shared: false, ..PLAIN };

/// Another server of a pod, that says its port and protocol.
fn serve(pod: &Pod, protocol: Protocol, port: u16) -> Server {
    let name = format!("{}:{port}/{protocol}", pod.name);
    Server::start(&pod.namespace, &name, protocol, &pod.addresses.both(), port).expect("the port is free")
}

cases! {
    fn a001_a_pod_reaches_every_endpoint_with_its_own_address(on: PLAIN) {
        let v = V::new(1);
        on.put(&v, &[ready(&on.l), ready(&on.r)]);
        on.check(&on.p, v.cluster_ip(), Kept(&["L", "R"]));
    }

    fn a002_the_node_and_the_outside_are_masqueraded(on: PLAIN) {
        let v = V::new(2);
        on.put(&v, &[ready(&on.l), ready(&on.r)]);
        on.check(&on.h, v.cluster_ip(), Masqueraded(&["L", "R"]));
        on.check(&on.c1, v.cluster_ip(), Masqueraded(&["L", "R"]));
    }

    fn a003_an_endpoint_reaches_itself(on: PLAIN) {
        let v = V::new(3);
        on.put(&v, &[ready(&on.l)]);
        on.check(&on.l, v.cluster_ip(), Masqueraded(&["L"]));
    }

    fn a004_the_protocols_of_a_service_are_kept_apart(on: PLAIN) {
        let v = V::new(4).port("UDP", 53, 53).port("TCP", 53, 5353).port("SCTP", 53, 53);
        let _serving = [serve(&on.l, Protocol::Udp, 53), serve(&on.l, Protocol::Tcp, 5353)];
        on.put(&v, &[ready(&on.l)]);
        let target = v.cluster_ip_at(53);
        on.check(&on.p, target, Kept(&["L:5353/TCP"]));
        on.check_by(Protocol::Udp, &on.p, target, Kept(&["L:53/UDP"]));
        if sctp_in_kernel() {
            let _serving = serve(&on.l, Protocol::Sctp, 53);
            on.check_by(Protocol::Sctp, &on.p, target, Kept(&["L:53/SCTP"]));
        }
        // Where the kernel knows no such sockets, its rules are what there is to be seen.
        if on.subject == Subject::Nftables {
            for (from, to) in v.cluster_ip().into_iter().zip(["10.180.0.1", "fd00:10:180::1"]) {
                let elements = on.rules(&format!(" {} . 53 . 0 : {to} . 53", from.ip()));
                let right = |line: &&str| line.trim_end_matches([',', ' ', '}']).ends_with(" . 53");
                assert_eq!(elements.lines().filter(right).count(), 2, "of SCTP and UDP\n{elements}");
            }
            return;
        }
        let rules = on.rules("-p sctp ");
        for target in ["10.180.0.1:53", "[fd00:10:180::1]:53"] {
            let target = format!("--to-destination {target}");
            assert!(rules.lines().any(|rule| rule.ends_with(&target)), "{target}\n{rules}");
        }
        assert!(!rules.contains("5353"), "{rules}");
    }

    fn a005_the_target_port_is_the_endpoints_own(on: PLAIN) {
        let v = V::new(5).port("TCP", 443, 8443);
        let _serving = [serve(&on.l, Protocol::Tcp, 8443), serve(&on.r, Protocol::Tcp, 8443)];
        on.put(&v, &[ready(&on.l), ready(&on.r)]);
        on.check(&on.p, v.cluster_ip_at(443), Kept(&["L:8443/TCP", "R:8443/TCP"]));
    }

    fn a009_without_endpoints_a_cluster_ip_refuses(on: PLAIN) {
        let v = V::new(9);
        on.put(&v, &[]);
        on.check(&on.p, v.cluster_ip(), Rejected);
        on.check(&on.h, v.cluster_ip(), Rejected);
    }

    fn a010_masquerade_all_masquerades_pods_too(on: MASQUERADE_ALL) {
        let v = V::new(10);
        on.put(&v, &[ready(&on.l), ready(&on.r)]);
        on.check(&on.p, v.cluster_ip(), Masqueraded(&["L", "R"]));
    }

    fn a011_without_a_detector_nobody_is_masqueraded(on: NO_DETECTOR) {
        let v = V::new(11);
        on.put(&v, &[ready(&on.l), ready(&on.r)]);
        on.check(&on.h, v.cluster_ip(), Kept(&["L", "R"]));
        on.check(&on.c1, v.cluster_ip(), Kept(&["L", "R"]));
    }

    fn a012_endpoints_that_go_away_leave_a_refusal(on: PLAIN) {
        let v = V::new(12);
        on.put(&v, &[ready(&on.l), ready(&on.r)]);
        on.check(&on.p, v.cluster_ip(), Kept(&["L", "R"]));
        on.put(&v, &[]);
        on.check(&on.p, v.cluster_ip(), Rejected);
    }

    fn a015_addresses_with_leading_zeros_are_decimal(on: PLAIN) {
        let v = V::new(15)
            .with("ipFamilies", json!(["IPv4"])).with("clusterIPs", json!(["172.30.0.015"]))
            .with("clusterIP", json!("172.30.0.015")).with("externalIPs", json!([]))
            .ingress(json!([{"ip": "1.2.3.015"}])).ranges(&["203.0.113.000/025"]);
        let mut slices = v.slices(&[ready(&on.l)]);
        slices.truncate(1);
        slices[0]["endpoints"][0]["addresses"][0] = json!("10.180.00.001");
        on.put_objects(&v.name, &[vec![v.service()], slices].concat());
        on.check_one(Protocol::Tcp, &on.p, v.cluster_ip()[0], Kept(&["L"]));
        on.check_one(Protocol::Tcp, &on.c1, v.vip()[0], Masqueraded(&["L"]));
        let rules = on.rules("");
        let canonical = match on.subject {
            Subject::Nftables => ["172.30.0.15 . 6 . 80", "203.0.113.0/25"],
            Subject::Agent | Subject::KubeProxy => ["-d 172.30.0.15/32", "-s 203.0.113.0/25"],
        };
        assert!(canonical.iter().all(|text| rules.contains(text)), "{rules}");
        assert!(!rules.contains(".015") && !rules.contains(".001"), "{rules}");
    }

    fn a016_connections_are_spread_evenly(on: PLAIN) {
        let v = V::new(16).port("UDP", 53, 5316);
        let pods = [&on.l, &on.l2, &on.r];
        let _serving = pods.map(|pod| pod.serve(Protocol::Udp, 5316).expect("the port is free"));
        on.put(&v, &pods.map(ready));
        for target in v.cluster_ip_at(53) {
            let spread = on.p.client_for(target.ip()).spread(Protocol::Udp, target, 1800);
            // Six standard deviations.
            let even = |(name, count): (&String, &usize)| {
                ["L", "L2", "R"].contains(&name.as_str()) && (480..720).contains(count)
            };
            assert!(spread.len() == 3 && spread.iter().all(even), "{spread:?}");
        }
    }

    only iptables {
        fn a006_another_protocol_or_port_of_a_cluster_ip_is_left_alone(on: PLAIN) {
            let v = V::new(6);
            on.put(&v, &[ready(&on.l)]);
            let _beyond = on.beyond(Protocol::Udp, v.cluster_ip());
            on.check_by(Protocol::Udp, &on.p, v.cluster_ip(), Untouched);
            on.check(&on.p, v.cluster_ip_at(443), Untouched);
        }

        fn a013_headless_and_external_name_services_have_no_rules(on: PLAIN) {
            let headless = V::new(13).with("type", json!("ClusterIP"))
                .with("clusterIP", json!("None")).with("clusterIPs", json!(["None"]));
            on.put(&headless, &[ready(&on.l)]);
            let elsewhere = V::new(141).with("type", json!("ExternalName")).with("externalName", json!("example.com"));
            on.put(&elsewhere, &[ready(&on.l)]);
            assert_eq!((on.rules_of(&headless), on.rules_of(&elsewhere)), Default::default());
            on.check(&on.p, elsewhere.cluster_ip(), Untouched);
        }

        fn a014_a_service_of_another_proxy_has_no_rules(on: PLAIN) {
            let ours = V::new(14);
            let theirs = ours.clone().labels(json!({"service.kubernetes.io/service-proxy-name": "another"}));
            on.put(&theirs, &[ready(&on.l)]);
            assert_eq!(on.rules_of(&theirs), "");
            on.check(&on.p, theirs.cluster_ip(), Untouched);
            on.put(&ours, &[ready(&on.l)]);
            on.check(&on.p, ours.cluster_ip(), Kept(&["L"]));
        }
    }

    only nftables {
        fn a007_another_protocol_or_port_of_a_cluster_ip_is_refused(on: PLAIN) {
            let v = V::new(7);
            on.put(&v, &[ready(&on.l)]);
            let _beyond = on.beyond(Protocol::Udp, v.cluster_ip());
            on.check_by(Protocol::Udp, &on.p, v.cluster_ip(), Rejected);
            on.check(&on.p, v.cluster_ip_at(443), Rejected);
            on.check(&on.h, v.cluster_ip_at(443), Rejected);
            on.check(&on.p, v.cluster_ip(), Kept(&["L"]));
        }

        fn a008_a_cluster_ip_that_nobody_has_is_silent(on: ALONE) {
            let v = V::new(8);
            on.check(&on.p, v.cluster_ip(), Untouched);
            on.put_objects("cidrs", &[json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
                "metadata": {"name": "kubernetes"},
                "spec": {"cidrs": ["172.30.0.0/24", "fd00:172:30::/64"]}})]);
            on.check(&on.p, v.cluster_ip(), Dropped);
            on.check(&on.h, v.cluster_ip(), Dropped);
            on.put_objects("cidrs", &[]);
            on.check(&on.p, v.cluster_ip(), Untouched);
        }

        fn a014_who_has_no_service_has_no_elements(on: ALONE) {
            let v = V::new(14);
            let theirs = v.clone().labels(json!({"service.kubernetes.io/service-proxy-name": "another"}));
            on.put(&theirs, &[ready(&on.l)]);
            let address = v.cluster_ip()[0].ip().to_string();
            assert_eq!(on.rules(&format!("{address} ")), "");
            on.put(&v, &[ready(&on.l)]);
            assert_ne!(on.rules(&format!("{address} ")), "");
            on.put_objects(&v.name, &[]);
            assert_eq!(on.rules(&format!("{address} ")), "");
        }
    }
}
