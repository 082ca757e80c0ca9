use super::*;
use crate::Object;

fn service(body: &str) -> Service {
    let json = format!(r#"{{"metadata": {{"name": "web", "namespace": "shop"}}, {body}}}"#);
    match Object::from_json(ObjectKind::Service, &json) {
        Ok(Object::Service(service)) => service,
        other => panic!("{other:?}"),
    }
}

fn texts<T: ToString>(of: &[T]) -> Vec<String> {
    of.iter().map(ToString::to_string).collect()
}

#[test]
fn headless_external_name_and_foreign_services_ask_for_nothing() {
    for body in [
        r#""spec": {"clusterIP": "None"}"#,
        r#""spec": {"clusterIPs": ["None"]}"#,
        r#""spec": {"type": "ExternalName", "clusterIP": "10.0.0.1"}"#,
    ] {
        let service = service(body);
        assert_eq!((service.header, service.meta.problems), (None, vec![]), "{body}");
    }
    let json = r#"{"metadata": {"name": "web", "labels": {"service.kubernetes.io/service-proxy-name": ""}},
        "spec": {"clusterIP": "10.0.0.1"}}"#;
    let Ok(Object::Service(foreign)) = Object::from_json(ObjectKind::Service, json) else { panic!() };
    assert_eq!((foreign.header, foreign.meta.problems), (None, vec![]));
}

#[test]
fn a_service_without_cluster_ip_is_told_of() {
    let service = service(r#""spec": {"ports": [{"port": 80}]}"#);
    assert_eq!(service.header, None);
    assert!(service.meta.problems[0].contains("spec.clusterIP"), "{:?}", service.meta.problems);
}

#[test]
fn cluster_ips_follow_the_families() {
    for (spec, want) in [
        (r#"{"clusterIP": "10.0.0.1"}"#, vec!["10.0.0.1"]),
        (r#"{"clusterIP": "fd00::1", "ipFamilies": ["IPv6"]}"#, vec!["fd00::1"]),
        (
            r#"{"clusterIP": "fd00::1", "clusterIPs": ["fd00::1", "10.0.0.1"], "ipFamilies": ["IPv6", "IPv4"]}"#,
            vec!["10.0.0.1", "fd00::1"],
        ),
        (r#"{"clusterIPs": ["10.0.0.1", "fd00::1"], "ipFamilies": ["IPv4"]}"#, vec!["10.0.0.1"]),
        (r#"{"clusterIPs": ["10.0.0.1", "fd00::1"]}"#, vec!["10.0.0.1", "fd00::1"]),
        (r#"{"clusterIPs": ["10.0.0.1", "fd00::1"], "ipFamilies": ["IPv4", "IPv4"]}"#, vec!["10.0.0.1"]),
    ] {
        let header = service(&format!(r#""spec": {spec}"#)).header.unwrap();
        assert_eq!(texts(&header.cluster_ips), want, "{spec}");
    }
}

#[test]
fn odd_texts_become_canonical() {
    let service = service(
        r#""spec": {"type": "LoadBalancer", "clusterIP": "172.30.0.041", "externalIPs": ["192.168.099.22", "", "x"],
        "loadBalancerSourceRanges": [" 203.0.113.000/025", "10.0.0.0/8 ", "10.1.1.1/8"],
        "ports": [{"port": 80, "nodePort": 3001}, {"name": "dns", "port": 53, "protocol": "UDP"}]},
        "status": {"loadBalancer": {"ingress": [{"ip": "1.2.3.004"}, {"ip": "1.2.3.5", "ipMode": "Proxy"},
            {"ip": "1.2.3.6", "ipMode": "VIP"}, {"hostname": "lb.example"}]}}"#,
    );
    let header = service.header.unwrap();
    assert_eq!(texts(&header.cluster_ips), ["172.30.0.41"]);
    assert_eq!(texts(&header.external_ips), ["192.168.99.22"]);
    assert_eq!(texts(&header.source_ranges), ["10.0.0.0/8", "203.0.113.0/25"]);
    assert_eq!(texts(&header.load_balancer_vips), ["1.2.3.4", "1.2.3.6"]);
    assert_eq!((&*header.ports[0].name, header.ports[0].node_port), ("", 3001));
    assert_eq!(service.meta.problems.len(), 1, "{:?}", service.meta.problems);
}

#[test]
fn defaults_of_the_api_are_filled_in() {
    let of = |spec: &str| {
        let json = format!(r#""spec": {{"clusterIP": "10.0.0.1", {spec}}}"#);
        service(&json).header.unwrap()
    };
    assert_eq!(of(r#""sessionAffinity": "ClientIP""#).affinity_seconds, 10_800);
    let config =
        r#""sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}"#;
    assert_eq!(of(config).affinity_seconds, 60);
    let unused =
        r#""sessionAffinity": "None", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}"#;
    assert_eq!(of(unused).affinity_seconds, 0);
    assert!(of(r#""internalTrafficPolicy": "Local""#).internal_policy_local);
    assert!(!of(r#""internalTrafficPolicy": null"#).internal_policy_local);
}

#[test]
fn the_external_policy_counts_only_where_there_is_something_external() {
    for (spec, local, health) in [
        (r#""type": "LoadBalancer", "healthCheckNodePort": 30000"#, true, 30000),
        (r#""type": "NodePort", "healthCheckNodePort": 30000"#, true, 0),
        (r#""type": "ClusterIP", "externalIPs": ["1.2.3.4"]"#, true, 0),
        (r#""externalIPs": ["fd00::9"]"#, true, 0),
        (r#""type": "ClusterIP", "healthCheckNodePort": 30000"#, false, 0),
    ] {
        let json =
            format!(r#""spec": {{"clusterIP": "10.0.0.1", "externalTrafficPolicy": "Local", {spec}}}"#);
        let header = service(&json).header.unwrap();
        assert_eq!((header.external_policy_local, header.health_check_node_port), (local, health), "{spec}");
    }
    let bad = service(
        r#""spec": {"clusterIP": "10.0.0.1", "type": "LoadBalancer", "externalTrafficPolicy": "Local"}"#,
    );
    assert!(bad.meta.problems[0].contains("healthCheckNodePort"), "{:?}", bad.meta.problems);
}

#[test]
fn a_bad_port_leaves_the_others() {
    let service = service(
        r#""spec": {"clusterIP": "10.0.0.1", "ports": [{"name": "a", "port": 70000}, {"name": "b", "port": 1,
        "protocol": "X"}, {"name": "c", "port": 2, "nodePort": -1}, {"name": "c", "port": 3}]}"#,
    );
    let header = service.header.unwrap();
    assert_eq!(header.ports.len(), 1);
    assert_eq!((header.ports[0].port, header.ports[0].node_port), (2, 0));
    assert_eq!(service.meta.problems.len(), 4, "{:?}", service.meta.problems);
}

#[test]
fn ranges_of_the_other_family_are_told_of() {
    let service = service(
        r#""spec": {"clusterIP": "10.0.0.1", "loadBalancerSourceRanges": ["fd00::/64"]},
        "status": {"loadBalancer": {"ingress": [{"ip": "1.2.3.4"}]}}"#,
    );
    assert!(service.meta.problems[0].contains("1.2.3.4 is open to all"), "{:?}", service.meta.problems);
}

#[test]
fn creation_is_in_unix_seconds() {
    let json = r#"{"metadata": {"name": "a", "creationTimestamp": "2026-01-01T00:00:01Z"},
        "spec": {"clusterIP": "10.0.0.1"}}"#;
    let Ok(Object::Service(dated)) = Object::from_json(ObjectKind::Service, json) else { panic!() };
    assert_eq!(dated.header.unwrap().created, 1_767_225_601);
    assert_eq!(service(r#""spec": {"clusterIP": "10.0.0.1"}"#).header.unwrap().created, 0);
}
