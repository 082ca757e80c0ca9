//! What load balancers, the kubelet, scrapers and people are told by the agent, beside a real kernel
//! (spec/kube-proxy.md §5, §6).

use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;
use distributary_e2e::deployed::{self, PATIENCE};
use distributary_e2e::netns::Namespace;
use distributary_e2e::node::{AGENT_ADMIN, Node, service, slices};
use distributary_e2e::topology::{NODE, Topology};
use distributary_e2e::wait::until;
use serde_json::{Value, json};

const HEALTHZ: u16 = 10256;

/// A load balanced Service with these pods of the node, in this condition, and the remote one.
fn balanced(world: &Topology, check: u16, local: usize, terminating: bool) -> Vec<Value> {
    let more =
        json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": check});
    let pods: Vec<_> = world.pods.iter().take(local).chain(&world.remote_pods).collect();
    let mut slices = slices("web", &pods);
    for slice in slices.iter_mut().filter(|_| terminating) {
        for endpoint in slice["endpoints"].as_array_mut().into_iter().flatten() {
            endpoint["conditions"] = json!({"ready": false, "serving": true, "terminating": true});
        }
    }
    [vec![service("web", 1, 30080, &more)], slices].concat()
}

fn itself(more: &Value) -> Value {
    let mut node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-a"}, "spec": {}});
    for (key, value) in more.as_object().into_iter().flatten() {
        node[key] = value.clone();
    }
    node
}

/// Asks until the status is that, and gives the body.
fn expect(from: &Namespace, address: SocketAddr, path: &str, status: u16, holds: &str) -> String {
    let what = format!("http://{address}{path} to answer {status} with {holds:?}");
    until(&what, PATIENCE, || {
        let (found, body) = deployed::get(from, address, path)?;
        (found == status && body.contains(holds)).then_some(body)
    })
}

fn both(port: u16) -> [SocketAddr; 2] {
    NODE.both().map(|address| SocketAddr::new(address, port))
}

#[test]
fn a118_a119_a121_health_check_ports_follow_the_endpoints_of_this_node() -> Result<()> {
    let node = Node::start(|world| balanced(world, 32100, 2, false), &[])?;
    let (world, outside) = (&node.world, &node.world.outside);
    let put = |objects: &[Value]| node.manifests.put("all.json", objects);
    let each = |port: u16, status, holds: &str| {
        for address in both(port) {
            expect(outside, address, "/", status, holds);
        }
    };
    for address in both(32100) {
        let body = expect(outside, address, "/any/path", 200, "\"localEndpoints\": 2");
        assert_eq!(
            body,
            "{\n\t\"service\": {\n\t\t\"namespace\": \"shop\",\n\t\t\"name\": \"web\"\n\t},\n\t\"localEndpoints\": 2,\n\
             \t\"serviceProxyHealthy\": true\n}"
        );
    }
    put(&balanced(world, 32100, 1, false))?;
    each(32100, 200, "\"localEndpoints\": 1");
    put(&balanced(world, 32100, 1, true))?;
    each(32100, 503, "\"localEndpoints\": 0");
    put(&balanced(world, 32100, 0, false))?;
    each(32100, 503, "\"serviceProxyHealthy\": true");
    put(&balanced(world, 32101, 1, false))?;
    each(32101, 200, "\"localEndpoints\": 1");
    let gone = |port: u16| both(port).iter().all(|address| deployed::get(outside, *address, "/").is_none());
    assert!(gone(32100), "the old port is closed before the new one is opened");
    put(&[])?;
    until("the port to be closed", PATIENCE, || gone(32101).then_some(()));
    Ok(())
}

#[test]
fn a122_node_port_addresses_are_where_health_check_ports_are() -> Result<()> {
    let node = Node::start(|world| balanced(world, 32100, 1, false), &["--nodeport-addresses=127.0.0.0/8"])?;
    let inside = &node.world.node;
    expect(inside, SocketAddr::from(([127, 0, 0, 1], 32100)), "/", 200, "\"localEndpoints\": 1");
    assert_eq!(deployed::get(inside, SocketAddr::new(NODE.v4.into(), 32100), "/"), None);
    // Of IPv6 nothing matches, so that is everywhere.
    expect(inside, SocketAddr::new(NODE.v6.into(), 32100), "/", 200, "\"localEndpoints\": 1");
    Ok(())
}

#[test]
fn a125_a126_a127_healthz_says_whether_the_node_should_get_traffic_and_livez_only_that_it_works() -> Result<()>
{
    let node = Node::start(|world| balanced(world, 32100, 1, false), &[])?;
    let outside = &node.world.outside;
    let healthz = |status, holds: &str| {
        for address in both(HEALTHZ) {
            expect(outside, address, "/healthz", status, holds);
            expect(
                outside,
                address,
                "/livez",
                200,
                "\"healthy\":true,\"status\":{\"IPv4\":{\"lastUpdated\":\"",
            );
        }
    };
    let not_eligible = "\"nodeEligible\":false,\"healthy\":true,";
    healthz(503, not_eligible);
    let put = |more: &Value| node.manifests.put("node.json", &[itself(more)]);
    let tainted = |key: &str| json!({"spec": {"taints": [{"key": key, "effect": "NoSchedule"}]}});
    put(&json!({}))?;
    healthz(200, "\"nodeEligible\":true,\"healthy\":true,");
    put(&tainted("ToBeDeletedByClusterAutoscaler"))?;
    healthz(503, not_eligible);
    put(&tainted("node.kubernetes.io/not-ready"))?;
    healthz(200, "\"nodeEligible\":true");
    put(&json!({"metadata": {"name": "node-a", "deletionTimestamp": "2026-01-01T00:00:00Z"}}))?;
    healthz(503, not_eligible);
    Ok(())
}

#[test]
fn a124_a_held_lock_makes_unhealthy_after_two_sync_periods_until_it_is_free() -> Result<()> {
    let arguments = ["--iptables-flavour", "legacy", "--iptables-sync-period", "2s"];
    let objects = |world: &Topology| [vec![itself(&json!({}))], balanced(world, 32100, 1, false)].concat();
    let node = Node::start(objects, &arguments)?;
    let inside = &node.world.node;
    let [at, check] = [HEALTHZ, 32100].map(|port| SocketAddr::new(NODE.v4.into(), port));
    expect(inside, at, "/healthz", 200, "");
    expect(inside, check, "/", 200, "\"localEndpoints\": 1");

    let mut holder = Command::new("sh");
    holder.args(["-c", "exec flock --no-fork \"$XTABLES_LOCKFILE\" sh -c 'echo held; exec sleep 1000'"]);
    let mut holder = inside.spawn("flock", &holder)?;
    holder.wait_for_line("held", PATIENCE);
    let changed = Instant::now();
    node.manifests
        .put("all.json", &[vec![itself(&json!({}))], balanced(&node.world, 32100, 2, false)].concat())?;
    expect(inside, at, "/livez", 503, "\"healthy\":false");
    assert!(
        changed.elapsed() >= Duration::from_secs(4),
        "{:?} is before two sync periods",
        changed.elapsed()
    );
    expect(inside, at, "/healthz", 503, "\"nodeEligible\":true,\"healthy\":false");
    expect(inside, check, "/", 503, "\"localEndpoints\": 1,\n\t\"serviceProxyHealthy\": false");
    let failures = "kubeproxy_sync_proxy_rules_iptables_restore_failures_total{ip_family=\"IPv4\"}";
    expect(inside, AGENT_ADMIN, "/metrics", 200, failures);
    let partial = "# TYPE kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total counter\n";
    expect(inside, AGENT_ADMIN, "/metrics", 200, partial);
    holder.kill9();
    expect(inside, at, "/healthz", 200, "\"healthy\":true");
    expect(inside, check, "/", 200, "\"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": true");
    Ok(())
}

#[test]
fn without_health_and_metrics_servers_health_check_ports_answer_and_nothing_else_does() -> Result<()> {
    let mut node = Node::prepare(&[])?;
    node.manifests.put("all.json", &balanced(&node.world, 32100, 1, false))?;
    node.start_server()?;
    let inside = &node.world.node;
    let off = ["--healthz-bind-address=off", "--metrics-bind-address=off"];
    node.agent = Some(deployed::agent(inside, "node-a", &off)?);
    let [at, check] = [HEALTHZ, 32100].map(|port| SocketAddr::new(NODE.v4.into(), port));
    expect(inside, check, "/", 200, "\"serviceProxyHealthy\": true");
    assert_eq!(deployed::get(inside, at, "/healthz"), None);
    assert_eq!(deployed::get(inside, AGENT_ADMIN, "/metrics"), None);
    Ok(())
}

#[test]
fn an_agent_that_is_cut_off_gets_no_more_traffic_where_that_is_wanted() -> Result<()> {
    let objects = |world: &Topology| [vec![itself(&json!({}))], balanced(world, 32100, 1, false)].concat();
    // Longer than a server is ever silent.
    let mut node = Node::start(objects, &["--unhealthy-after-stale=8s"])?;
    let [at, check] = [HEALTHZ, 32100].map(|port| SocketAddr::new(NODE.v4.into(), port));
    expect(&node.world.node, at, "/healthz", 200, "");
    node.server.take().expect("it runs").kill9();
    let inside = &node.world.node;
    expect(inside, at, "/healthz", 503, "\"nodeEligible\":true,\"healthy\":false");
    expect(inside, check, "/", 503, "\"localEndpoints\": 1,\n\t\"serviceProxyHealthy\": false");
    expect(inside, at, "/livez", 200, "\"healthy\":true");
    node.start_server()?;
    expect(&node.world.node, at, "/healthz", 200, "\"healthy\":true");
    Ok(())
}

#[test]
fn every_series_of_kube_proxy_is_there_with_its_type_and_its_labels() -> Result<()> {
    let node = Node::start(|world| balanced(world, 32100, 1, false), &[])?;
    let inside = &node.world.node;
    let at = SocketAddr::new(NODE.v4.into(), HEALTHZ);
    expect(inside, at, "/healthz", 503, "");
    expect(inside, at, "/livez", 200, "");
    // A pass over what was touched, beside the first over everything.
    node.manifests.put("all.json", &balanced(&node.world, 32100, 0, false))?;
    let partial = "kubeproxy_sync_partial_proxy_rules_duration_seconds_count{ip_family=\"IPv6\"}";
    expect(inside, AGENT_ADMIN, "/metrics", 200, partial);
    let deleted = "kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family=\"IPv4\"}";
    let metrics = expect(inside, AGENT_ADMIN, "/metrics", 200, deleted);
    for (name, kind, sample) in [
        ("sync_proxy_rules_duration_seconds", "histogram", "_bucket{le=\"0.001\",ip_family=\"IPv4\"} "),
        (
            "sync_full_proxy_rules_duration_seconds",
            "histogram",
            "_bucket{le=\"16.384\",ip_family=\"IPv6\"} 1",
        ),
        ("sync_partial_proxy_rules_duration_seconds", "histogram", "_sum{ip_family=\"IPv4\"} "),
        ("sync_proxy_rules_last_timestamp_seconds", "gauge", "{ip_family=\"IPv4\"} "),
        ("sync_proxy_rules_last_queued_timestamp_seconds", "gauge", "{ip_family=\"IPv6\"} "),
        ("sync_proxy_rules_endpoint_changes_pending", "gauge", " 0"),
        ("sync_proxy_rules_endpoint_changes_total", "counter", " 2"),
        ("sync_proxy_rules_service_changes_pending", "gauge", " 0"),
        ("sync_proxy_rules_service_changes_total", "counter", " 1"),
        (
            "sync_proxy_rules_no_local_endpoints_total",
            "gauge",
            "{ip_family=\"IPv4\",traffic_policy=\"external\"} 3",
        ),
        (
            "sync_proxy_rules_no_local_endpoints_total",
            "gauge",
            "{ip_family=\"IPv6\",traffic_policy=\"internal\"} 0",
        ),
        ("sync_proxy_rules_iptables_total", "gauge", "{ip_family=\"IPv4\",table=\"filter\"} "),
        ("sync_proxy_rules_iptables_last", "gauge", "{ip_family=\"IPv6\",table=\"nat\"} "),
        ("proxy_healthz_total", "counter", "{code=\"503\"} 1"),
        ("proxy_livez_total", "counter", "{code=\"200\"} 1"),
        ("conntrack_reconciler_sync_duration_seconds", "histogram", "_count{ip_family=\"IPv4\"} "),
        ("conntrack_reconciler_deleted_entries_total", "counter", "{ip_family=\"IPv4\"} "),
    ] {
        let declared = format!("# TYPE kubeproxy_{name} {kind}\n");
        assert!(metrics.contains(&declared), "{declared}is not in\n{metrics}");
        let sample = format!("\nkubeproxy_{name}{sample}");
        assert!(metrics.contains(&sample), "{sample}\nis not in\n{metrics}");
    }
    for name in ["process_cpu_seconds_total", "process_resident_memory_bytes", "process_start_time_seconds"] {
        assert!(metrics.contains(&format!("\n{name} ")), "{name} is not in\n{metrics}");
    }
    assert!(!metrics.contains("# EOF"), "who does not ask for OpenMetrics gets the older format");
    Ok(())
}

#[test]
fn tools_are_told_the_mode_and_the_configuration() -> Result<()> {
    let node = Node::start(|_| Vec::new(), &["--iptables-masquerade-bit=13"])?;
    let told = |path: &str| expect(&node.world.node, AGENT_ADMIN, path, 200, "");
    assert_eq!(told("/proxyMode"), "iptables");
    assert_eq!(
        (told("/healthz"), told("/healthz/ping"), told("/livez")),
        ("ok".into(), "ok".into(), "ok".into())
    );
    let config: Value = serde_json::from_str(&told("/configz"))?;
    let config = &config["kubeproxy.config.k8s.io"];
    assert_eq!(config["kind"], "KubeProxyConfiguration");
    assert_eq!(
        (&config["iptables"]["masqueradeBit"], &config["healthzBindAddress"]),
        (&json!(13), &json!("0.0.0.0:10256"))
    );
    assert!(told("/flagz").contains("\niptables-masquerade-bit: 13\n"));
    assert!(told("/statusz").contains("\nPaths: /configz "));
    assert!(
        told("/metrics/slis")
            .contains("kubernetes_healthchecks_total{name=\"ping\",status=\"success\",type=\"healthz\"} ")
    );
    Ok(())
}
