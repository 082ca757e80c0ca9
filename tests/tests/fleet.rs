//! A made-up cluster, the real server, and agents in hundreds, in processes of their own on loopback.
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::time::Duration;

use distributary_e2e::fleet::replica::Replica;
use distributary_e2e::fleet::swarm::{Order, Says, Status, Swarm};
use distributary_e2e::forward::free_address;
use distributary_e2e::wait::until;

const PATIENCE: Duration = Duration::from_secs(60);
const WORLD: [&str; 6] = ["--services", "300", "--nodes", "50", "--service-every", "10"];

struct Fleet {
    listen: SocketAddr,
    admin: SocketAddr,
    replica: Replica,
    swarm: Swarm,
}

impl Fleet {
    fn start(agents: usize, flags: &[&str]) -> Self {
        let (listen, admin) = (free_address(&None).unwrap(), free_address(&None).unwrap());
        let replica = Replica::start(listen, admin, None, &WORLD).unwrap();
        let mut swarm = Swarm::start(listen, agents, 2, None, flags).unwrap();
        swarm.until("all agents to come", PATIENCE, |status| status.counts.ends >= agents as u64).unwrap();
        Self { listen, admin, replica, swarm }
    }

    /// Kills the server; the next one knows of `more` changes that agents have not heard of.
    fn fail_over(&mut self, more: usize) {
        let (_, steps) = self.replica.changes().unwrap();
        self.replica.process().kill9();
        let after = (steps + more).to_string();
        let flags = [&WORLD[..], &["--after", &after]].concat();
        self.replica = Replica::start(self.listen, self.admin, None, &flags).unwrap();
    }

    fn all_agree(&mut self) -> Status {
        self.swarm.in_step(self.replica.newest(), PATIENCE).unwrap()
    }

    /// Changes for a while; gives their times.
    fn churn(&mut self, rate: f64, changes: usize) -> Vec<u64> {
        let mut times = self.replica.changes().unwrap().0;
        times.clear();
        self.replica.rate(rate).unwrap();
        until("the changes to be made", PATIENCE, || {
            times.extend(self.replica.changes().unwrap().0);
            (times.len() >= changes).then_some(())
        });
        self.replica.rate(0.0).unwrap();
        times.extend(self.replica.changes().unwrap().0);
        times
    }
}

#[test]
fn every_agent_hears_every_change_and_holds_what_the_server_has() {
    let mut fleet = Fleet::start(200, &[]);
    fleet.all_agree();
    fleet.swarm.order(&Order::Measure).unwrap();
    let times = fleet.churn(200.0, 300);
    fleet.all_agree();
    let took = fleet.swarm.latencies(times.clone()).unwrap();
    assert_eq!((took.histogram.count, took.missing), (times.len() as u64 * 200, 0));
    assert!(took.last.iter().all(|last| *last > 0 && *last <= took.histogram.max));
}

#[test]
fn an_agent_costs_the_server_no_more_memory_than_its_budget() {
    let (listen, admin) = (free_address(&None).unwrap(), free_address(&None).unwrap());
    let mut replica = Replica::start(listen, admin, None, &WORLD).unwrap();
    // It is answered when the world is read.
    replica.burst(1).unwrap();
    let before = replica.usage().unwrap().rss_kib;
    let mut swarm = Swarm::start(listen, 400, 2, None, &[]).unwrap();
    replica.changes().unwrap();
    swarm.in_step(replica.newest(), PATIENCE).unwrap();
    let each = (replica.usage().unwrap().rss_kib - before) as f64 / 400.0;
    assert!(each <= 40.0, "{each:.1} KiB an agent");
}

#[test]
fn slow_dropping_and_rejecting_ones_end_with_the_same() {
    let flags = [
        "--slow",
        "20",
        "--slow-millis",
        "50",
        "--dropping",
        "20",
        "--dropping-seconds",
        "0.5",
        "--rejecting",
        "20",
    ];
    let mut fleet = Fleet::start(200, &flags);
    fleet.churn(200.0, 400);
    // Those that go on dropping are away for moments.
    let agree = |status: &Status| {
        status.counts.connections > 60 && status.agree >= 150 && status.agree == status.live
    };
    fleet.swarm.until("nearly all to agree, some of which have come again", PATIENCE, agree).unwrap();
}

#[test]
fn stalled_and_frozen_ones_catch_up() {
    let mut fleet = Fleet::start(100, &[]);
    fleet.swarm.order(&Order::Stall(50)).unwrap();
    fleet.churn(200.0, 200);
    fleet.swarm.order(&Order::Stall(0)).unwrap();
    fleet.swarm.order(&Order::Freeze(50)).unwrap();
    fleet.churn(200.0, 200);
    fleet.swarm.order(&Order::Freeze(0)).unwrap();
    fleet.all_agree();
}

#[test]
fn all_come_again_after_kill_9_and_after_a_cut() {
    let mut fleet = Fleet::start(200, &[]);
    fleet.churn(200.0, 100);
    fleet.all_agree();
    fleet.swarm.order(&Order::Cut { within: 100 }).unwrap();
    let again = fleet.swarm.until("all by their cursors", PATIENCE, |status| status.counts.resumes >= 200);
    assert_eq!(again.unwrap().counts.snapshots, 0);
    fleet.all_agree();
    for (says, more) in [(Says::Everything, 1), (Says::Buckets, 30), (Says::Nothing, 5)] {
        fleet.swarm.order(&Order::Say(says)).unwrap();
        fleet.fail_over(more);
        fleet.swarm.until("all to come again", PATIENCE, |status| status.counts.ends >= 200).unwrap();
        fleet.all_agree();
        fleet.churn(200.0, 50);
        fleet.all_agree();
    }
}
