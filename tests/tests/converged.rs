//! Three replicas, agents at each, and the question whether every node has something.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use distributary_e2e::fleet::replica::Replica;
use distributary_e2e::fleet::swarm::Swarm;
use distributary_e2e::forward::free_address;
use distributary_e2e::process::{Signal, binary};
use distributary_e2e::wait::until;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);
const EACH: usize = 10;
const SERVICE: &str = "shop-000/checkout-00000";

struct Fleet {
    admins: Vec<SocketAddr>,
    replicas: Vec<Replica>,
    swarms: Vec<Swarm>,
}

impl Fleet {
    fn start() -> Self {
        let free = || free_address(&None).unwrap();
        let (listens, admins): (Vec<_>, Vec<_>) = (0..3).map(|_| (free(), free())).unzip();
        let list = |all: &[SocketAddr]| all.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let (peers, admin_peers) = (list(&listens), list(&admins));
        let flags = ["--services", "20", "--nodes", "30", "--peers", &peers, "--admin-peers", &admin_peers];
        let replica =
            |(listen, admin): (&SocketAddr, &SocketAddr)| Replica::start(*listen, *admin, None, &flags);
        let replicas: Vec<Replica> = listens.iter().zip(&admins).map(|at| replica(at).unwrap()).collect();
        for admin in &admins {
            until("an admin port", PATIENCE, || TcpStream::connect(admin).ok().map(drop));
        }
        let swarm = |(index, listen): (usize, &SocketAddr)| {
            Swarm::start_from(index * EACH, *listen, EACH, 1, None, &[]).unwrap()
        };
        let swarms = listens.iter().enumerate().map(swarm).collect();
        Self { admins, replicas, swarms }
    }

    /// Asks a replica; the status and the answer.
    fn ask(&self, replica: usize, timeout: &str) -> (u16, Value) {
        let mut stream = TcpStream::connect(self.admins[replica]).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "GET /v1/converged?service={SERVICE}&timeout={timeout} HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), serde_json::from_str(body).unwrap())
    }

    /// Who lacks the newest state, and why; nobody, until it is known that somebody does.
    fn lacking(&self, replica: usize) -> Vec<(String, String)> {
        let (status, answer) = self.ask(replica, "0s");
        if status == 200 {
            return Vec::new();
        }
        assert_eq!((status, &answer["converged"]), (409, &Value::from("no")), "{answer}");
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let lacking = answer["lacking"].as_array().unwrap();
        lacking.iter().map(|one| (text(&one["node"]), text(&one["why"]))).collect()
    }
}

#[test]
fn rule_5_2_every_node_of_the_api_over_all_replicas_or_who_not_or_unknown() {
    let mut fleet = Fleet::start();
    for replica in 0..3 {
        let (status, answer) = fleet.ask(replica, "60s");
        assert_eq!((status, &answer["nodes"]), (200, &Value::from(30)), "{answer}");
    }
    // Every Service changes, at one replica alone: agents of the others do not have that.
    fleet.replicas[0].burst(200).unwrap();
    let lacking = until("its own agents to have it", PATIENCE, || {
        Some(fleet.lacking(0)).filter(|lacking| lacking.len() == 2 * EACH)
    });
    assert!(lacking.iter().all(|(_, why)| why == "its server has other content"), "{lacking:?}");
    fleet.replicas[1..].iter_mut().for_each(|replica| replica.burst(200).unwrap());
    assert_eq!(fleet.ask(1, "60s").0, 200);

    // One that does not answer may have agents that lack it.
    fleet.replicas[2].process().signal(Signal::SIGSTOP).unwrap();
    let (status, answer) = fleet.ask(0, "0s");
    assert_eq!((status, &answer["converged"]), (503, &Value::from("unknown")), "{answer}");
    let cut = format!("{} does not answer", fleet.admins[2]);
    assert!(answer["why"][0].as_str().unwrap().starts_with(&cut), "{answer}");
    fleet.replicas[2].process().signal(Signal::SIGCONT).unwrap();
    assert_eq!(fleet.ask(0, "60s").0, 200);

    // Nodes without a stream are nodes all the same.
    fleet.swarms.pop();
    let lacking = until("its agents to be missed", PATIENCE, || {
        Some(fleet.lacking(1)).filter(|lacking| lacking.len() == EACH)
    });
    assert!(lacking.iter().all(|(_, why)| why == "it has no stream to any replica"), "{lacking:?}");
    assert_eq!(lacking[0].0, "node-000020.eu-west-1a");

    let mut status = Command::new(binary("distributary-server"));
    let printed = status.args(["status", "--admin", &fleet.admins[0].to_string()]).output().unwrap();
    let table = String::from_utf8(printed.stdout).unwrap();
    assert!(printed.status.success() && table.lines().count() >= 5, "{table}");
    assert!(table.lines().last().unwrap().starts_with("nodes without a stream: node-000020."), "{table}");
}

#[test]
fn a_question_that_is_none_is_refused() {
    let (listen, admin) = (free_address(&None).unwrap(), free_address(&None).unwrap());
    let _replica = Replica::start(listen, admin, None, &["--services", "1", "--nodes", "1"]).unwrap();
    let ask = |query: &str| {
        let mut stream = TcpStream::connect(admin).ok()?;
        write!(stream, "GET /v1/converged?{query} HTTP/1.0\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.split(' ').nth(1)?.parse::<u16>().ok()
    };
    until("the admin port", PATIENCE, || ask("service=web&timeout=0s").filter(|status| *status == 400));
    assert_eq!(ask("service=shop/web&timeout=soon"), Some(400));
    assert_eq!(ask("timeout=1s"), Some(400));
}
