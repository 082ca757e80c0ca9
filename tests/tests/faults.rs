//! Real processes that are killed, stopped and starved while the cluster changes: whatever happens, the kernel of every
//! node ends with what the manifests say, and never loses what it has.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use distributary_e2e::fleet::lab::Lab;
use distributary_e2e::process::Signal;

const PATIENCE: Duration = Duration::from_secs(30);

fn lab(seed: u64) -> Lab {
    Lab::start(2, 20, seed, |_| Vec::new()).unwrap()
}

#[test]
fn servers_and_agents_are_killed_while_everything_changes() {
    let mut lab = lab(1);
    for round in 0..4 {
        lab.churn(10).unwrap();
        lab.replace_server(round % 2).unwrap();
        lab.churn(10).unwrap();
        lab.replace_agent(round % 2).unwrap();
        lab.churn(10).unwrap();
    }
    lab.in_step().unwrap();
}

#[test]
fn without_any_server_the_rules_stay_and_what_was_missed_is_made_up_for() {
    let mut lab = lab(2);
    lab.servers = [None, None];
    lab.is_in_step().unwrap();
    lab.replace_agent(0).unwrap();
    lab.nodes[0].agent.as_mut().unwrap().wait_for_line("no stream", PATIENCE);
    lab.is_in_step().unwrap();
    lab.churn(40).unwrap();
    (0..2).for_each(|index| lab.start_server(index).unwrap());
    lab.in_step().unwrap();
}

#[test]
fn a_server_that_is_stopped_is_left_and_takes_nobody_back_in_time_when_it_goes_on() {
    let mut lab = lab(3);
    lab.servers[0].as_mut().unwrap().signal(Signal::SIGSTOP).unwrap();
    lab.churn(20).unwrap();
    lab.in_step().unwrap();
    lab.churn(20).unwrap();
    lab.in_step().unwrap();
    // All it has now is what was before; then the other one goes, too.
    lab.servers[0].as_mut().unwrap().signal(Signal::SIGCONT).unwrap();
    lab.servers[1] = None;
    lab.churn(10).unwrap();
    lab.in_step().unwrap();
}

#[test]
fn an_agent_that_is_stopped_makes_up_for_what_it_missed() {
    let mut lab = lab(4);
    lab.nodes[0].agent.as_mut().unwrap().signal(Signal::SIGSTOP).unwrap();
    lab.churn(60).unwrap();
    lab.nodes[0].agent.as_mut().unwrap().signal(Signal::SIGCONT).unwrap();
    lab.in_step().unwrap();
}

#[test]
fn a_disk_that_is_full_costs_the_checkpoint_and_nothing_else() {
    let mut lab = lab(5);
    lab.fill_disk(0).unwrap();
    lab.churn(20).unwrap();
    lab.in_step().unwrap();
    lab.nodes[0].agent.as_mut().unwrap().wait_for_line("No space left on device", PATIENCE);
    lab.churn(20).unwrap();
    lab.in_step().unwrap();
    lab.replace_agent(0).unwrap();
    lab.churn(20).unwrap();
    lab.in_step().unwrap();
}
