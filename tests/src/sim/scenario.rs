//! What is done to a simulated fleet.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Figures, Sim};

impl Sim {
    /// So many changes of the API, spread over that time, while it passes.
    ///
    /// # Errors
    /// As [`Sim::run`].
    pub fn churn(&mut self, changes: u32, time: Duration) -> Result<()> {
        for _ in 0..changes {
            self.truth.change(&mut self.chance);
            self.run(time / changes.max(1))?;
        }
        Ok(())
    }

    /// Something goes wrong, anywhere. What it is follows from the seed.
    ///
    /// # Errors
    /// As [`Sim::run`].
    pub fn fault(&mut self) -> Result<()> {
        let (replica, node) =
            (self.chance.usize(..self.replicas.len()), self.chance.usize(..self.nodes.len()));
        match self.chance.u8(..16) {
            0 | 1 => {
                let silently = self.chance.bool();
                self.kill_replica(replica, silently);
            }
            2 => self.stop_replica(replica, Duration::from_secs(20)),
            3 | 4 => self.cut_off(node, replica),
            5 | 6 => {
                let all: Vec<u64> = self.connections.keys().copied().collect();
                if !all.is_empty() {
                    let one = all[self.chance.usize(..all.len())];
                    self.cut(one);
                }
            }
            7 | 8 => self.replicas[replica].stale = true,
            9 => self.nodes[node].failing = true,
            10 => {
                self.kill_node(node, false);
                self.start_node(node)?;
            }
            11 => {
                self.kill_node(node, true);
                self.start_node(node)?;
            }
            12 => {
                let by = Duration::from_secs(self.chance.u64(1..7_200));
                self.jump_node(node, by)?;
            }
            13 => {
                let by = Duration::from_secs(self.chance.u64(1..7_200));
                self.replicas[replica].clock.jump(by);
                self.pump_all(replica);
            }
            14 => self.heal_replica(replica),
            _ => self.heal_node(node),
        }
        Ok(())
    }

    fn heal_replica(&mut self, replica: usize) {
        self.replicas[replica].stale = false;
        if self.replicas[replica].process.is_none() {
            self.start_replica(replica);
        }
    }

    fn heal_node(&mut self, node: usize) {
        self.nodes[node].failing = false;
        self.nodes[node].cut_off.clear();
    }

    /// Everything works again.
    pub fn heal(&mut self) {
        (0..self.replicas.len()).for_each(|replica| self.heal_replica(replica));
        (0..self.nodes.len()).for_each(|node| self.heal_node(node));
    }

    /// Lets time pass until all agents have what the API has; gives how long that was, to a tenth of a second.
    ///
    /// # Errors
    /// When they have not by then, or as [`Sim::run`].
    pub fn settle(&mut self, within: Duration) -> Result<Duration> {
        let began = self.now;
        let until = began + u64::try_from(within.as_micros()).unwrap_or(u64::MAX);
        let truth = self.truth();
        let mut behind: Vec<usize> = (0..self.nodes.len()).collect();
        loop {
            behind.retain(|node| !self.nodes[*node].has(truth.table()));
            let Some(first) = behind.first() else { break };
            ensure!(self.now < until, "{}", self.told(*first));
            self.run(Duration::from_millis(100))?;
        }
        Ok(Duration::from_micros(self.now - began))
    }

    /// Every replica is replaced, one after the other, as a Deployment does it; gives what it came to.
    ///
    /// # Errors
    /// As [`Sim::run`].
    pub fn rolling_restart(&mut self, drain: Duration) -> Result<Figures> {
        self.figures();
        for replica in 0..self.replicas.len() {
            let before = self.replicas[replica].life;
            self.stop_replica(replica, drain);
            while self.replicas[replica].life == before || !self.is_serving(replica) {
                self.run(Duration::from_millis(100))?;
            }
        }
        Ok(self.figures())
    }

    fn is_serving(&self, replica: usize) -> bool {
        self.replicas[replica].process.as_ref().is_some_and(|process| process.journal.listed())
    }

    /// All replicas of a zone are gone at once, with their hosts, or without.
    pub fn lose_zone(&mut self, zone: usize, silently: bool) {
        for replica in (zone % 3..self.replicas.len()).step_by(3) {
            self.kill_replica(replica, silently);
        }
    }

    /// A replica's API server has a state that is so many changes old, and the replica lists it.
    pub fn rewind_one(&mut self, replica: usize, changes: usize) {
        let version = self.truth.version().saturating_sub(changes);
        self.replicas[replica].stale = true;
        self.rewind(replica, version);
    }

    /// Agents of each replica.
    #[must_use]
    pub fn spread(&self) -> Vec<usize> {
        self.replicas.iter().map(super::replica::Replica::agents).collect()
    }

    /// Agents whose stream is past its End.
    #[must_use]
    pub fn live(&self) -> usize {
        self.nodes.iter().filter(|node| node.is_live()).count()
    }

    /// How many agents follow this replica.
    #[must_use]
    pub fn followers(&self, replica: usize) -> usize {
        let address = &self.replicas[replica].address;
        self.nodes.iter().filter(|node| node.server().as_ref() == Some(address)).count()
    }
}
