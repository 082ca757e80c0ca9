//! Any history of servers and connections: the agent ends with what the servers have, and never goes back.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use distributary_model::{Epoch, Service, testing as t};
use pb::agent_message::Message as FromAgent;
use pb::begin::Mode;
use proptest::prelude::*;

use super::super::*;
use crate::sync::scripted::{Scripted, cluster, service};

const SERVERS: [&str; 3] = ["10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"];

#[derive(Clone, Debug)]
enum Step {
    /// A service has so many endpoints now, or is gone.
    Change(u8, Option<u8>),
    /// A server sees so many more changes.
    See(usize, usize),
    /// So much of what servers said arrives, on the newest stream or the oldest.
    Hear(usize, bool),
    Pass(u64),
    Cut(bool),
    Restart(usize),
    Drain(usize),
    /// A server begins anew on all of its streams.
    Anew(usize),
    /// A server forgets to say something.
    Forget(usize),
    Heartbeat(usize),
    Stale(usize, bool),
    /// The agent is stopped, and started from its last checkpoint.
    Reborn,
}

fn step() -> impl Strategy<Value = Step> {
    let server = || 0..SERVERS.len();
    prop_oneof![
        8 => (0..6_u8, proptest::option::weighted(0.8, 0..4_u8)).prop_map(|(name, endpoints)| Step::Change(name, endpoints)),
        8 => (server(), 1..4_usize).prop_map(|(server, changes)| Step::See(server, changes)),
        8 => (1..6_usize, any::<bool>()).prop_map(|(messages, newest)| Step::Hear(messages, newest)),
        4 => (1..4_000_u64).prop_map(Step::Pass),
        1 => any::<bool>().prop_map(Step::Cut),
        1 => server().prop_map(Step::Restart),
        4 => server().prop_map(Step::Drain),
        1 => server().prop_map(Step::Anew),
        1 => server().prop_map(Step::Forget),
        2 => server().prop_map(Step::Heartbeat),
        1 => (server(), any::<bool>()).prop_map(|(server, stale)| Step::Stale(server, stale)),
        1 => Just(Step::Reborn),
    ]
}

/// A server process.
struct Process {
    state: Scripted,
    /// Every commit, with its revision.
    log: Vec<(u64, pb::ServerMessage)>,
    seen: usize,
}

/// A connection, as its server sees it.
struct Stream {
    server: usize,
    epoch: Epoch,
    queue: VecDeque<pb::ServerMessage>,
    /// What the server had at Begin, until it has said so.
    opening: Option<Scripted>,
    /// Told up to there, once it is live.
    live: Option<u64>,
}

struct World {
    driver: Driver,
    now: Instant,
    truth: Vec<(String, Option<Service>)>,
    servers: Vec<Process>,
    epochs: u8,
    streams: BTreeMap<LinkId, Stream>,
    programmed: BTreeMap<String, usize>,
    saved: Option<Checkpoint>,
    /// A server has forgotten something, so roots may differ.
    lossy: bool,
}

fn settings() -> Settings {
    let plain = Settings::new(cluster(), "n1".into());
    Settings { seed: 7, saves: true, patience: Duration::ZERO, ..plain }
}

fn process(epoch: u8) -> Process {
    let mut state = Scripted::new(epoch);
    // A list has a resourceVersion, also of nothing.
    state.mark(1);
    Process { state, log: Vec::new(), seen: 0 }
}

impl World {
    fn new() -> Self {
        let now = Instant::now();
        let mut world = Self {
            driver: Driver::new(settings(), None, now),
            now,
            truth: Vec::new(),
            servers: (1..=3).map(process).collect(),
            epochs: 3,
            streams: BTreeMap::new(),
            programmed: BTreeMap::new(),
            saved: None,
            lossy: false,
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        self.driver.servers(SERVERS.iter().map(|address| Server::new(*address)).collect(), self.now);
        self.obey();
    }

    fn obey(&mut self) {
        while let Some(order) = self.driver.next_order() {
            match order {
                Order::Dial(id, server) => {
                    let server = SERVERS.iter().position(|address| *address == server.address).unwrap();
                    let epoch = self.servers[server].state.epoch;
                    let queue = VecDeque::new();
                    self.streams.insert(id, Stream { server, epoch, queue, opening: None, live: None });
                    self.driver.connected(id, self.now);
                }
                Order::Say(id, message) => self.answer(id, message),
                Order::Close(id) => _ = self.streams.remove(&id),
                Order::Program(batch, _) => {
                    for (key, service) in &batch.services {
                        match service {
                            Some(service) => self.programmed.insert(key.to_string(), service.endpoints.len()),
                            None => self.programmed.remove(&key.to_string()),
                        };
                    }
                }
                Order::Save(checkpoint) => self.saved = Some(*checkpoint),
                Order::Note(Note::Lost { error, .. } | Note::Stayed { reason: error, .. }) => {
                    assert!(!error.contains("protocol"), "{error}");
                    assert!(self.lossy || !error.contains("root") && !error.contains("hash"), "{error}");
                }
                Order::LookAtKernel | Order::Note(_) => {}
            }
        }
    }

    fn answer(&mut self, id: LinkId, message: pb::AgentMessage) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let process = &self.servers[stream.server];
        let state = &process.state;
        match message.message.clone() {
            Some(FromAgent::Hello(hello)) => {
                let mark = |marks: &[pb::Mark]| marks.first().map_or(0, |mark| mark.resource_version);
                let ours = state.marks.iter().next().map_or(0, |mark| mark.resource_version);
                if ours < mark(&hello.marks) && !hello.accept_older {
                    stream.queue.push_back(state.throttle(1_000, true));
                } else if let Some(cursor) = hello
                    .cursor
                    .filter(|cursor| cursor.epoch[..] == state.epoch.0 && cursor.through <= state.revision)
                {
                    let since = process.log.iter().filter(|(revision, _)| *revision > cursor.through);
                    stream.queue.extend([state.begin(Mode::Resume), state.node()]);
                    stream.queue.extend(since.map(|(_, frame)| frame.clone()));
                    stream.queue.push_back(state.end());
                    stream.live = Some(state.revision);
                } else if hello.buckets.is_empty() {
                    stream.queue.extend(state.snapshot());
                    stream.live = Some(state.revision);
                } else {
                    stream.queue.extend(state.lists(&hello.buckets));
                    stream.opening = Some(state.clone());
                }
            }
            Some(FromAgent::Want(_)) => {
                let opening = stream.opening.take().expect("a Want that answers lists");
                stream.queue.extend(opening.answer(&message));
                stream.live = Some(opening.revision);
                self.serve(id);
            }
            Some(FromAgent::Repair(repair)) if stream.live.is_some() => {
                stream.queue.extend(state.lists(&repair.buckets));
                stream.opening = Some(state.clone());
                stream.live = None;
            }
            _ => {}
        }
    }

    /// What a live stream lacks is said.
    fn serve(&mut self, id: LinkId) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let process = &self.servers[stream.server];
        if let Some(told) = stream.live.filter(|_| stream.epoch == process.state.epoch) {
            let news = process.log.iter().filter(|(revision, _)| *revision > told);
            stream.queue.extend(news.map(|(_, frame)| frame.clone()));
            stream.live = Some(process.state.revision);
        }
    }

    fn see(&mut self, server: usize, changes: usize) {
        let process = &mut self.servers[server];
        for _ in 0..changes {
            let Some((name, after)) = self.truth.get(process.seen).cloned() else { break };
            process.seen += 1;
            process.state.mark(1 + process.seen as u64);
            let (had, key) = (process.state.table.get(&t::key(&name)).cloned(), t::key(&name));
            let is = after.clone().map(|after| t::held(&key, after));
            if had.map(|had| had.hash) == is.map(|is| is.hash) {
                continue;
            }
            let frame = match after {
                Some(service) => process.state.put(&name, service),
                None => process.state.remove(&name),
            };
            process.log.push((process.state.revision, frame));
        }
        self.streams.keys().copied().collect::<Vec<_>>().into_iter().for_each(|id| self.serve(id));
    }

    fn hear(&mut self, most: usize, newest: bool) {
        for _ in 0..most {
            let ready = |(id, stream): (&LinkId, &Stream)| {
                (self.driver.reads(*id) && !stream.queue.is_empty()).then_some(*id)
            };
            let mut ready = self.streams.iter().filter_map(ready);
            let Some(id) = (if newest { ready.next_back() } else { ready.next() }) else { return };
            let message = self.streams.get_mut(&id).and_then(|stream| stream.queue.pop_front()).unwrap();
            let before = self.driver.session().marks().clone();
            self.driver.heard(id, message, self.now);
            assert!(!self.driver.session().marks().behind(&before), "it went back in time");
            self.obey();
        }
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.driver.wake_at().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.driver.tick(self.now);
            self.obey();
        }
        self.now = end;
    }

    fn of(&self, server: usize) -> Vec<LinkId> {
        self.streams.iter().filter(|(_, stream)| stream.server == server).map(|(id, _)| *id).collect()
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Change(name, endpoints) => {
                let service = endpoints.map(|endpoints| service(name + 1, endpoints));
                self.truth.push((format!("shop/s{name}"), service));
            }
            Step::See(server, changes) => self.see(server, changes),
            Step::Hear(messages, newest) => self.hear(messages, newest),
            Step::Pass(millis) => self.pass(Duration::from_millis(millis)),
            Step::Cut(first) => {
                let id = if first { self.streams.keys().next() } else { self.streams.keys().next_back() };
                if let Some(id) = id.copied() {
                    self.streams.remove(&id);
                    self.driver.lost(id, "cut".into(), self.now);
                    self.obey();
                }
            }
            Step::Restart(server) => {
                self.epochs += 1;
                // It lists all that was there when it went.
                let seen = self.servers[server].seen;
                self.servers[server] = process(self.epochs);
                self.see(server, seen);
                for id in self.of(server) {
                    self.streams.remove(&id);
                    self.driver.lost(id, "the server was restarted".into(), self.now);
                    self.obey();
                }
            }
            Step::Drain(server) => {
                let drain = self.servers[server].state.drain(500);
                for id in self.of(server) {
                    let stream = self.streams.get_mut(&id).unwrap();
                    if stream.live.is_some() {
                        stream.queue.push_back(drain.clone());
                    }
                }
            }
            Step::Anew(server) => {
                let snapshot = self.servers[server].state.snapshot();
                for id in self.of(server) {
                    let stream = self.streams.get_mut(&id).unwrap();
                    if stream.live.is_some() {
                        stream.queue.extend(snapshot.clone());
                    }
                }
            }
            Step::Forget(server) => {
                for id in self.of(server) {
                    let stream = self.streams.get_mut(&id).unwrap();
                    let is_frame =
                        |message: &pb::ServerMessage| matches!(&message.message, Some(FromServer::Frame(_)));
                    if let Some(at) = stream.queue.iter().rposition(is_frame) {
                        stream.queue.remove(at);
                        self.lossy = true;
                    }
                }
            }
            Step::Heartbeat(server) => {
                let heartbeat = self.servers[server].state.heartbeat();
                for id in self.of(server) {
                    let stream = self.streams.get_mut(&id).unwrap();
                    if stream.live.is_some() {
                        stream.queue.push_back(heartbeat.clone());
                    }
                }
            }
            Step::Stale(server, stale) => {
                self.servers[server].state.staleness_millis = if stale { 40_000 } else { 0 };
            }
            Step::Reborn => {
                self.streams.clear();
                self.driver = Driver::new(settings(), self.saved.clone(), self.now);
                // The kernel has what it had; the first batch says all that is to be there.
                self.programmed.clear();
                self.begin();
            }
        }
    }

    /// Everything is well again, for long enough.
    fn heal(&mut self) {
        // Only after another change is it seen that the last one was forgotten: roots are of a revision.
        self.truth.push(("shop/last".to_owned(), Some(service(99, 1))));
        for server in 0..SERVERS.len() {
            self.see(server, self.truth.len());
            self.servers[server].state.staleness_millis = 0;
        }
        for _ in 0..400 {
            (0..SERVERS.len()).for_each(|server| self.take(Step::Heartbeat(server)));
            self.hear(10_000, true);
            self.pass(Duration::from_secs(1));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    #[test]
    fn any_history_ends_in_step_and_never_goes_back(steps in proptest::collection::vec(step(), 1..80)) {
        let mut world = World::new();
        for step in steps {
            world.take(step);
        }
        world.heal();
        let server = &world.servers[0].state;
        let table = world.driver.session().table();
        prop_assert!(world.driver.status().live);
        prop_assert!(table.iter().eq(server.table.iter()), "{:#?} and {:#?}", table, server.table);
        prop_assert_eq!(table.root(t::CLUSTER), server.table.root(t::CLUSTER));
        let table = table.iter().map(|(key, held)| (key.to_string(), held.record.endpoints()));
        prop_assert_eq!(&world.programmed, &table.collect::<BTreeMap<_, _>>());
    }
}
