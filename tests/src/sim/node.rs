//! An agent with its node: the real driver, and a kernel that is a map.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use distributary_agent::checkpoint::Checkpoint;
use distributary_agent::sync::dial::Server;
use distributary_agent::sync::driver::{Driver, LinkId, Note, Order, Settings};
use distributary_agent::sync::{Batch, Programmed};
use distributary_model::{Key, Marks, Name, Service, Table};
use distributary_proto::v1::agent_message::Message as FromAgent;

use super::host::Clock;
use super::{At, Event, MS, OWN, SECOND, Sim};

#[derive(Debug)]
pub(super) struct Node {
    pub(super) name: String,
    pub(super) clock: Clock,
    /// Counts the agent's processes.
    pub(super) life: u64,
    driver: Option<Box<Driver>>,
    pub(super) links: BTreeMap<LinkId, u64>,
    /// Replicas that it cannot reach.
    pub(super) cut_off: BTreeSet<usize>,
    kernel: BTreeMap<Arc<Key>, Arc<Service>>,
    /// What waits to be written, and when the oldest of it was received.
    waiting: Option<(Batch, Instant)>,
    /// Nothing of this process is written yet: the first batch is everything.
    fresh: bool,
    programmed: Programmed,
    saved: Option<Box<Checkpoint>>,
    /// Its lock is held by somebody else.
    pub(super) failing: bool,
    wake: Option<At>,
    /// It has found nobody who was not behind it, and takes an older state (rule 2.2) until it is where it was.
    goes_back: Option<Back>,
}

/// An agent that takes an older state.
#[derive(Debug)]
struct Back {
    /// Where it was.
    from: Marks,
    /// It has the older state.
    there: bool,
}

impl Node {
    pub(super) fn new(name: String, clock: Clock) -> Self {
        Self {
            name,
            clock,
            life: 0,
            driver: None,
            links: BTreeMap::new(),
            cut_off: BTreeSet::new(),
            kernel: BTreeMap::new(),
            waiting: None,
            fresh: true,
            programmed: Programmed::default(),
            saved: None,
            failing: false,
            wake: None,
            goes_back: None,
        }
    }

    /// Whether the agent follows a server, and has exactly that in table and kernel.
    pub(super) fn has(&self, table: &Table) -> bool {
        let Some(driver) = &self.driver else { return false };
        let session = driver.session();
        let wanted = table.iter().filter_map(|(key, held)| Some((key, held.record.as_service()?)));
        session.is_live() && session.table().root(OWN) == table.root(OWN) && self.kernel.iter().eq(wanted)
    }

    pub(super) fn is_live(&self) -> bool {
        self.driver.as_ref().is_some_and(|driver| driver.session().is_live())
    }

    /// The address of the server that it follows.
    pub(super) fn server(&self) -> Option<String> {
        self.driver.as_ref()?.status().server.map(|server| server.address)
    }

    pub(super) fn stands(&self) -> String {
        match &self.driver {
            Some(driver) => format!(
                "{:?}, {} services in the table, {} in the kernel, programmed {:?}",
                driver.status(),
                driver.session().table().len(),
                self.kernel.len(),
                self.programmed.cursor
            ),
            None => "its agent is not there".to_owned(),
        }
    }
}

fn addresses(service: &Service) -> BTreeSet<IpAddr> {
    service.endpoints.iter().map(|endpoint| endpoint.address).collect()
}

impl Sim {
    /// The agent of a node starts, from what an earlier process saved.
    pub(super) fn start_node(&mut self, number: usize) -> Result<()> {
        let plain = Settings::new(OWN.into(), Name::from(&*self.nodes[number].name));
        let settings = Settings { saves: true, seed: self.chance.u64(..), ..plain };
        // All know but one replica, and not all the same.
        let server = Server::new(&*self.replicas[number % self.replicas.len()].address);
        let node = &mut self.nodes[number];
        node.life += 1;
        let now = node.clock.show(self.now);
        node.driver = Some(Box::new(Driver::new(settings, node.saved.as_deref().cloned(), now)));
        (node.waiting, node.fresh, node.programmed, node.wake) = (None, true, Programmed::default(), None);
        let clock = node.clock;
        self.drive(number, |driver, at| driver.servers(vec![server], at), clock)
    }

    /// The agent's process is killed. Its kernel stays, unless the node goes as well.
    pub(super) fn kill_node(&mut self, number: usize, with_kernel: bool) {
        let node = &mut self.nodes[number];
        node.driver = None;
        node.life += 1;
        if with_kernel {
            node.kernel.clear();
        }
        for (_, connection) in std::mem::take(&mut node.links) {
            self.forget(connection);
            self.after(MS, Event::Dropped { connection });
        }
    }

    pub(super) fn wake_node(&mut self, number: usize, life: u64) -> Result<()> {
        let node = &mut self.nodes[number];
        if node.life != life || node.wake != Some(self.now) {
            return Ok(());
        }
        node.wake = None;
        let clock = node.clock;
        self.drive(number, |driver, at| driver.tick(at), clock)
    }

    /// Tells the driver something, and does what it orders.
    pub(super) fn drive(
        &mut self,
        number: usize,
        tell: impl FnOnce(&mut Driver, Instant),
        clock: Clock,
    ) -> Result<()> {
        let now = clock.show(self.now);
        let Some(driver) = &mut self.nodes[number].driver else { return Ok(()) };
        tell(driver, now);
        loop {
            let node = &mut self.nodes[number];
            let Some(order) = node.driver.as_mut().and_then(|driver| driver.next_order()) else { break };
            let life = node.life;
            match order {
                Order::Dial(link, server) => {
                    let reachable = self.replicas.iter().position(|one| one.address == server.address);
                    let cut = reachable.is_none_or(|replica| node.cut_off.contains(&replica));
                    let delay = if cut { 5 * SECOND } else { self.chance.u64(MS..20 * MS) };
                    self.after(delay, Event::Dialled { node: number, life, link, address: server.address });
                }
                Order::Say(link, message) => {
                    if let Some(FromAgent::Hello(hello)) = &message.message
                        && hello.accept_older
                    {
                        let from = node.driver.as_ref().map(|driver| driver.session().marks().clone());
                        node.goes_back = from.map(|from| Back { from, there: false });
                        self.figures.went_back += 1;
                    }
                    if let Some(id) = node.links.get(&link).copied() {
                        let delay = self.latency();
                        let Some(connection) = self.connections.get_mut(&id) else { continue };
                        connection.last_up = connection.last_up.max(self.now + delay);
                        let at = connection.last_up;
                        self.at(at, Event::Up { connection: id, message: Box::new(message) });
                    }
                }
                Order::Close(link) => {
                    if let Some(id) = node.links.get(&link).copied() {
                        self.forget(id);
                        self.after(MS, Event::Dropped { connection: id });
                    }
                }
                Order::Program(batch, received) => {
                    let first = node.waiting.is_none();
                    match &mut node.waiting {
                        Some((waiting, _)) => waiting.merge(batch),
                        None => node.waiting = Some((batch, received)),
                    }
                    if first {
                        let takes = self.chance.u64(MS..50 * MS);
                        self.after(takes, Event::Written { node: number, life });
                    }
                }
                Order::LookAtKernel => {
                    let holds = !node.kernel.is_empty();
                    if let Some(driver) = &mut node.driver {
                        driver.kernel(Some(holds), now);
                    }
                }
                Order::Save(checkpoint) => node.saved = Some(checkpoint),
                Order::Note(Note::Lost { .. }) => self.figures.lost += 1,
                Order::Note(Note::Moving { .. }) => self.figures.moves += 1,
                Order::Note(_) => {}
            }
        }
        let node = &mut self.nodes[number];
        let life = node.life;
        let wake = node
            .driver
            .as_ref()
            .and_then(|driver| driver.wake_at())
            .map(|at| clock.when(at).max(self.now + 1));
        if wake != node.wake {
            node.wake = wake;
            if let Some(at) = wake {
                self.at(at, Event::WakeNode { node: number, life });
            }
        }
        Ok(())
    }

    /// The kernel takes what waits.
    pub(super) fn written(&mut self, number: usize, life: u64) -> Result<()> {
        let node = &mut self.nodes[number];
        if node.life != life {
            return Ok(());
        }
        if node.failing {
            self.after(SECOND, Event::Written { node: number, life });
            return Ok(());
        }
        let Some((batch, received)) = node.waiting.take() else { return Ok(()) };
        let mut services = batch.services;
        if std::mem::take(&mut node.fresh) {
            for key in node.kernel.keys() {
                services.entry(key.clone()).or_insert(None);
            }
        }
        for (key, service) in services {
            let before = node.kernel.get(&key).map(|service| addresses(service)).unwrap_or_default();
            let after = service.as_ref().map(|service| addresses(service)).unwrap_or_default();
            for new in after.difference(&before) {
                ensure!(self.truth.ever_had(*new), "{} is given {new} for {key}, which never was", node.name);
            }
            for gone in before.difference(&after).filter(|_| node.goes_back.is_none()) {
                let said = self.truth.took_away(*gone);
                ensure!(said, "{} loses {gone} of {key}, which nobody took away", node.name);
            }
            match service {
                Some(service) => node.kernel.insert(key, service),
                None => node.kernel.remove(&key),
            };
        }
        if let (Some(back), Some(driver)) = (&mut node.goes_back, &node.driver) {
            let behind = driver.session().marks().behind(&back.from);
            back.there |= behind;
            if back.there && !behind {
                node.goes_back = None;
            }
        }
        let (clock, now) = (node.clock, node.clock.show(self.now));
        let took = now.saturating_duration_since(received);
        let cursor = batch.cursor.or(node.programmed.cursor);
        node.programmed = Programmed { written: true, cursor, took, ..Programmed::default() };
        let programmed = node.programmed.clone();
        self.figures.writes += 1;
        self.drive(number, |driver, at| driver.programmed(programmed, at), clock)
    }

    /// The host's clock jumps ahead.
    pub(super) fn jump_node(&mut self, number: usize, by: Duration) -> Result<()> {
        self.nodes[number].clock.jump(by);
        let clock = self.nodes[number].clock;
        self.drive(number, |driver, at| driver.tick(at), clock)
    }
}
