//! Random services, endpoints and clients: the kernel must do what the model says, after any history. A failure prints
//! its seed; `FUZZ_SEED` takes one.

mod model;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::panic;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use std::{env, thread};

use distributary_e2e::topology::Pod;
use distributary_e2e::traffic::{Failure, Protocol};
use fastrand::Rng;
use serde_json::json;

use crate::service::{Endpoint, V, ready};
use crate::stage::{FABRIC_NAME, PLAIN, SELF_NAME, Setup, Stage, Subject};
use model::{Client, Destination, Fate, Here, Member, Reach, Service};

/// A node that refuses as often as it is asked: the kernel tells one host of it once a second only, by itself.
const REFERENCE: Setup = Setup {
    name: "fuzz",
    sysctls: &[("ipv4/icmp_ratelimit", "0"), ("ipv6/icmp/ratelimit", "0")],
    shared: false,
    ..PLAIN
};
const NFT: Setup = Setup { name: "fuzz, nft", flags: &["--iptables-flavour=nft"], ..REFERENCE };
const LEGACY: Setup = Setup { name: "fuzz, legacy", flags: &["--iptables-flavour=legacy"], ..REFERENCE };

/// Numbers that services have: so few that addresses come back.
const NUMBERS: u8 = 48;
/// How often the cluster changes.
const ROUNDS: usize = 8;
/// Of each Service, in each round.
const PROBES: usize = 3;
/// At once, each of them in both families.
const WORKERS: usize = 8;
/// What is asked for one answer. Silence is this long.
const PATIENCE: Duration = Duration::from_millis(400);
/// So often is asked until all who may answer have, and no more.
const MOST: usize = 120;
const LEAST: usize = 5;

/// What is in the cluster: by number.
type Cluster = BTreeMap<u8, Service>;

const DESTINATIONS: [Destination; 4] =
    [Destination::ClusterIp, Destination::NodePort, Destination::ExternalIp, Destination::Vip];
const CLIENTS: [Client; 5] =
    [Client::Pod("P"), Client::Pod("L"), Client::Host, Client::Outside("C1"), Client::Outside("C2")];

fn chance(rng: &mut Rng, of: f64) -> bool {
    rng.f64() < of
}

fn one<T: Copy>(rng: &mut Rng, of: &[T]) -> T {
    of[rng.usize(..of.len())]
}

fn member(rng: &mut Rng, name: &'static str, hints: bool) -> Member {
    let (ready, serving, terminating) = match rng.u8(..10) {
        0 => (false, true, true),
        1 => (false, false, true),
        2 => (false, false, false),
        3 => (false, true, false),
        4 => (true, false, false),
        _ => (true, true, false),
    };
    let all: [&[&str]; 4] = [&["a"], &["b"], &["a", "b"], &["c"]];
    let zones = if hints && chance(rng, 0.95) { one(rng, &all) } else { &[] };
    let nodes: &[&str] = match rng.u8(..6) {
        0 if hints => &[SELF_NAME],
        1 | 2 if hints => &["other"],
        _ => &[],
    };
    let local = name.starts_with('L') && chance(rng, 0.95);
    Member { name, local, ready, serving, terminating, zones, nodes }
}

fn service(rng: &mut Rng) -> Service {
    let lingering = chance(rng, 0.15);
    let hints = chance(rng, 0.4);
    let mut members = Vec::new();
    for name in ["L", "L2", "R", "R2"] {
        if chance(rng, 0.45) {
            members.push(member(rng, name, hints));
        }
    }
    if lingering {
        for it in &mut members {
            (it.ready, it.serving, it.terminating) = (false, chance(rng, 0.7), true);
        }
    }
    let sources = ["C1", "host", "pods", "C2"];
    let ranges: Vec<_> = sources.into_iter().filter(|_| chance(rng, 0.4)).collect();
    Service {
        internal_local: chance(rng, 0.3),
        external_local: chance(rng, 0.4),
        reach: one(rng, &[Reach::Inside, Reach::NodePorts, Reach::Everywhere, Reach::Everywhere]),
        proxied: chance(rng, 0.15),
        ranges: (chance(rng, 0.35) && !ranges.is_empty()).then_some(ranges),
        sticky: chance(rng, 0.2),
        members,
    }
}

/// Some come, some go, some change in one thing.
fn change(rng: &mut Rng, cluster: &mut Cluster) {
    for number in 1..=NUMBERS {
        match rng.u8(..6) {
            0 => drop(cluster.remove(&number)),
            1 | 2 => drop(cluster.insert(number, service(rng))),
            3 => {
                if let Some(service) = cluster.get_mut(&number) {
                    let name = one(rng, &["L", "L2", "R", "R2"]);
                    service.members.retain(|it| it.name != name);
                    if chance(rng, 0.6) {
                        service.members.push(member(rng, name, false));
                    }
                }
            }
            4 => {
                if let Some(it) = cluster.get_mut(&number) {
                    let other = service(rng);
                    (it.internal_local, it.external_local) = (other.internal_local, other.external_local);
                }
            }
            _ => {}
        }
    }
}

/// As it is told to the subject.
fn objects(on: &Stage, number: u8, service: &Service) -> Vec<serde_json::Value> {
    let networks = |name: &str| match name {
        "C1" => ["203.0.113.0/25", "2001:db8:113::/112"],
        "C2" => ["203.0.113.128/25", "2001:db8:113::1:0/112"],
        "host" => ["192.168.0.0/24", "fd00:192:168::/64"],
        _ => ["10.0.0.0/8", "fd00:10::/32"],
    };
    let mut v = V::new(number);
    if service.sticky {
        v = v.sticky(10_800);
    }
    if service.internal_local {
        v = v.internal_local();
    }
    if service.external_local {
        v = v.external_local();
    }
    if let Some(ranges) = &service.ranges {
        let ranges: Vec<&str> = ranges.iter().flat_map(|name| networks(name)).collect();
        v = v.ranges(&ranges);
    }
    if service.proxied {
        let vips = v.vip().map(|target| json!({"ip": target.ip(), "ipMode": "Proxy"}));
        v = v.ingress(json!(vips));
    }
    v = match service.reach {
        Reach::Inside => v.internal_only(),
        Reach::NodePorts => {
            v.ingress(json!([])).with("externalIPs", json!([])).with("type", json!("NodePort"))
        }
        Reach::Everywhere => v,
    };
    let endpoint = |it: &Member| -> Endpoint {
        let pod = [&on.l, &on.l2, &on.r, &on.r2].into_iter().find(|pod| pod.name == it.name);
        let endpoint = ready(pod.expect("one of the four"));
        let endpoint = if it.name.starts_with('L') && !it.local { endpoint.nowhere() } else { endpoint };
        endpoint.condition(it.ready, it.serving, it.terminating).zones(it.zones).nodes(it.nodes)
    };
    v.objects(&service.members.iter().map(endpoint).collect::<Vec<_>>())
}

fn targets(on: &Stage, number: u8, destination: Destination) -> [SocketAddr; 2] {
    let v = V::new(number);
    match destination {
        Destination::ClusterIp => v.cluster_ip(),
        Destination::NodePort => v.node_port(on),
        Destination::ExternalIp => v.external_ip(),
        Destination::Vip => v.vip(),
    }
}

fn asker(on: &Stage, client: Client) -> &Pod {
    match client {
        Client::Pod("L") => &on.l,
        Client::Pod(_) => &on.p,
        Client::Host => &on.h,
        Client::Outside("C2") => &on.c2,
        Client::Outside(_) => &on.c1,
    }
}

/// Asks, and says what is not as it should be.
fn probe(on: &Stage, client: Client, target: SocketAddr, sticky: bool, fate: &Fate) -> Result<(), String> {
    let pod = asker(on, client);
    let source = pod.addresses.both()[usize::from(target.is_ipv6())];
    let ask = |patience| pod.client_for(target.ip()).with_timeout(patience).ask(Protocol::Tcp, target);
    let untouched = BTreeMap::from([(FABRIC_NAME, false)]);
    let mut missing = match fate {
        Fate::Refused | Fate::Silent => {
            let wanted = if *fate == Fate::Refused { Failure::Refused } else { Failure::Timeout };
            let answer = ask(if *fate == Fate::Refused { 10 * PATIENCE } else { PATIENCE });
            return match answer {
                Err(failure) if failure == wanted => Ok(()),
                other => Err(format!("{other:?}")),
            };
        }
        Fate::Untouched => untouched.clone(),
        Fate::Reaches(who) => who.clone(),
    };
    let all = missing.clone();
    let mut first = None;
    for count in 0..MOST {
        if count >= LEAST && (missing.is_empty() || sticky) {
            return Ok(());
        }
        let reply = ask(10 * PATIENCE).map_err(|failure| format!("after {count} answers {failure:?}"))?;
        let seen = reply.seen_source.ip();
        let who = reply.who.as_str();
        match all.get(who) {
            None => return Err(format!("{who} answers")),
            Some(true) if !on.is_own(seen) || seen == source => return Err(format!("{who} sees {seen}")),
            Some(false) if seen != source => return Err(format!("{who} sees {seen}")),
            Some(_) => {}
        }
        if sticky && first.get_or_insert_with(|| reply.who.clone()).as_str() != who {
            return Err(format!("{who} answers after {first:?}"));
        }
        missing.remove(who);
    }
    Err(format!("{missing:?} never answered"))
}

/// Puts the subject through a random history.
fn run(on: &Stage, seed: u64) {
    let mut rng = Rng::with_seed(seed);
    let mut cluster = Cluster::new();
    for round in 0..ROUNDS {
        change(&mut rng, &mut cluster);
        let zone = one(&mut rng, &["a", "a", "b", ""]);
        let here = Here { name: SELF_NAME, zone, nftables: on.subject == Subject::Nftables };
        on.put_node(&json!({"topology.kubernetes.io/zone": zone}));
        // The Node may come a moment after what was put with it, but not after what is put when that is there.
        on.wait();
        let all: Vec<_> =
            cluster.iter().flat_map(|(number, service)| objects(on, *number, service)).collect();
        on.put_objects("fuzz", &all);

        // What the node was refused by itself leaves an entry, and who has that port again within two minutes is not
        // translated, whatever the rules are by then.
        on.world.node.shell("conntrack -F").expect("it is installed");

        let mut probes = Vec::new();
        for number in 1..=NUMBERS {
            let service = cluster.get(&number);
            // Without a rule for it, a node port is a socket of the node, if anybody's.
            let inside = service.is_none_or(|service| service.reach == Reach::Inside);
            let asked: Vec<_> = (0..PROBES)
                .map(|_| (one(&mut rng, &CLIENTS), one(&mut rng, &DESTINATIONS)))
                .filter(|(_, destination)| !(inside && *destination == Destination::NodePort))
                .map(|(client, destination)| {
                    let fate = |service: &Service| service.fate(here, client, destination);
                    (client, destination, service.map_or(Fate::Untouched, fate))
                })
                .collect();
            probes.push((number, asked));
        }
        let next = AtomicUsize::new(0);
        // One after the other of a Service: of two who come for the first time at once, either may be remembered.
        let work = || {
            while let Some((number, asked)) = probes.get(next.fetch_add(1, Ordering::Relaxed)) {
                let service = cluster.get(number);
                for (client, destination, fate) in asked {
                    for target in targets(on, *number, *destination) {
                        let sticky = service.is_some_and(|service| service.sticky);
                        if let Err(seen) = probe(on, *client, target, sticky, fate) {
                            panic!(
                                "seed {seed}, round {round}, zone {zone:?}: {client:?} to {destination:?} {target}: \
                                 wanted {fate:?}, but {seen}\n{service:#?}\n{}",
                                on.rules_of(&V::new(*number))
                            );
                        }
                    }
                }
            }
        };
        thread::scope(|scope| {
            let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(work)).collect();
            for worker in workers {
                worker.join().unwrap_or_else(|cause| panic::resume_unwind(cause));
            }
        });
    }
}

#[expect(clippy::print_stdout, reason = "how to have it again")]
fn fuzz(subject: Subject, setup: &'static Setup) {
    let seed =
        env::var("FUZZ_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    let on = Stage::of(subject, setup);
    println!("{}: FUZZ_SEED={seed}", setup.name);
    run(&on, seed);
}

#[test]
fn the_kernel_does_what_the_model_says_in_iptables_nft() {
    static SETUP: Setup = NFT;
    fuzz(Subject::Agent, &SETUP);
}

#[test]
fn the_kernel_does_what_the_model_says_in_iptables_legacy() {
    static SETUP: Setup = LEGACY;
    fuzz(Subject::Agent, &SETUP);
}

#[test]
fn the_kernel_does_what_the_model_says_in_nftables() {
    static SETUP: Setup = REFERENCE;
    fuzz(Subject::Nftables, &SETUP);
}

/// The model is right about the reference, too.
#[test]
fn kube_proxy_does_what_the_model_says() {
    static SETUP: Setup = REFERENCE;
    fuzz(Subject::KubeProxy, &SETUP);
}
