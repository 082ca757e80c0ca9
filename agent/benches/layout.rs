//! What it costs to render 5,000 services of 10 endpoints, and one change of them. Prints; compares with nothing.
//!
//! `cargo bench -p distributary-agent`
#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs)]

use std::sync::Arc;
use std::time::Instant;

use distributary_agent::iptables::fake::Fake;
use distributary_agent::iptables::{Family, Flavour, Iptables, Options, parse};
use distributary_agent::plan::{Detector, NodeState};
use distributary_model::testing::{CLUSTER, endpoint, key, service};
use distributary_model::{Key, Protocol, Service};

fn content(i: u32, endpoints: u32) -> Service {
    // Scattered over 10.96.0.0/12, each address once.
    let address =
        std::net::Ipv4Addr::from_bits(0x0a60_0000 + (i.wrapping_mul(2_654_435_761) >> 12 & 0xf_ffff));
    let node_port = if i.is_multiple_of(10) { 30_000 + (i / 10 % 2767) as u16 } else { 0 };
    let mut service = service(&[&address.to_string()]).port("http", Protocol::Tcp, 80, node_port);
    for j in 0..endpoints {
        let pod = i * 10 + j;
        let address = format!("10.{}.{}.{}", 128 + (pod >> 16), pod >> 8 & 255, pod & 255);
        service.endpoints.push(endpoint(&address, "http", 8080).on(if j == 0 { "n1" } else { "n2" }));
    }
    service.endpoints.sort();
    service
}

fn rss() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn main() {
    let start_rss = rss();
    let services: Vec<(Arc<Key>, Arc<Service>)> =
        (0..5_000).map(|i| (key(&format!("s5k/svc-{i:06}")), Arc::new(content(i, 10)))).collect();
    let model_rss = rss();
    for flavour in [Flavour::Nft, Flavour::Legacy] {
        let mut options = Options::new(CLUSTER, "n1");
        options.flavour = flavour;
        let detector = Some(Detector::ClusterCidr("10.128.0.0/9".parse().unwrap()));
        let mut rules = Iptables::new(Family::V4, options.clone());
        rules.set_node(NodeState { detector, ..NodeState::default() });
        let start = Instant::now();
        for (key, service) in &services {
            rules.set(key, Some(service.clone()));
        }
        let set = start.elapsed();
        let write = rules.write().unwrap();
        let full = start.elapsed();
        rules.written();
        println!(
            "{flavour:?}: set {set:?}, set and write {full:?}: {} chains, {} rules, {} sections, {} KiB",
            write.chains.len(),
            write.rules,
            write.sections,
            write.text.len() >> 10
        );
        println!("  rss: start {start_rss}, with records {model_rss}, with the text {} KiB", rss());
        let mut text = write.text;
        if flavour == Flavour::Nft {
            text = String::new();
        }
        println!("  rss without the text {} KiB", rss());
        let mut times = Vec::new();
        let mut lines = 0;
        for i in 0..1_000_u32 {
            let (key, _) = &services[(i * 7 % 5_000) as usize];
            let changed = Arc::new(content(i * 7 % 5_000, 9));
            let start = Instant::now();
            rules.set(key, Some(changed));
            let write = rules.write().unwrap();
            rules.written();
            times.push(start.elapsed());
            lines = write.rules;
        }
        times.sort();
        println!("  one endpoint: median {:?}, p99 {:?}; {lines} rules", times[500], times[990]);
        let mut times = Vec::new();
        for i in 0..1_000_u32 {
            let new = key(&format!("new/svc-{i}"));
            let added = Arc::new(content(6_000 + i, 10));
            let start = Instant::now();
            rules.set(&new, Some(added));
            let write = rules.write().unwrap();
            rules.written();
            times.push(start.elapsed());
            lines = write.rules;
        }
        times.sort();
        println!("  one service more: median {:?}, p99 {:?}; {lines} rules", times[500], times[990]);
        let saved = if flavour == Flavour::Legacy {
            let mut kernel = Fake::default();
            kernel.restore(&text).unwrap();
            kernel.save()
        } else {
            continue;
        };
        let mut again = Iptables::new(Family::V4, options);
        again.set_node(rules.node().clone());
        for (key, service) in &services {
            again.set(key, Some(service.clone()));
        }
        let start = Instant::now();
        again.adopt(&parse(&saved));
        let read = start.elapsed();
        assert_eq!(again.write(), None);
        println!("  adopt {read:?}, with the write that writes nothing {:?}", start.elapsed());
    }
}
