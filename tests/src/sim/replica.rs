//! A server: the real journal and sessions, and a source that follows the made-up API.

use std::collections::BTreeMap;
use std::time::Duration;

use distributary_cluster::{Event as Change, ObjectKey};
use distributary_model::{Candidate, Epoch, Name, ObjectKind};
use distributary_proto::v1 as pb;
use distributary_server::journal::{Journal, LOG_BYTES};
use distributary_server::replicas::{Known, Replicas};
use distributary_server::session::{Began, Session};
use distributary_server::source::Update;

use super::host::Clock;
use super::{Event, MS, OWN, SECOND, Sim};

/// After so long, ± 20 %, an agent is asked to choose anew.
const AGE: Duration = Duration::from_secs(600);
/// Messages that are on their way to an agent at a time.
const IN_FLIGHT: usize = 2;
/// A connection that is dead without a word is dropped after so long.
const PINGS: u64 = 80 * SECOND;

#[derive(Debug)]
pub(super) struct Replica {
    pub(super) address: String,
    all: Vec<Candidate>,
    pub(super) clock: Clock,
    /// Counts its processes.
    pub(super) life: u64,
    pub(super) process: Option<Process>,
    /// It hears nothing of the API.
    pub(super) stale: bool,
}

#[derive(Debug)]
pub(super) struct Process {
    pub(super) journal: Journal,
    sessions: BTreeMap<u64, Session>,
    /// How far it has heard of the API.
    pub(super) seen: usize,
    /// What it has heard of, by which it knows what is missing in a list.
    known: BTreeMap<ObjectKey, Change>,
    building: bool,
}

impl Replica {
    pub(super) fn new(address: String, all: Vec<Candidate>, clock: Clock) -> Self {
        Self { address, all, clock, life: 0, process: None, stale: false }
    }

    /// How many agents it has.
    pub(super) fn agents(&self) -> usize {
        self.process.as_ref().map_or(0, |process| process.sessions.len())
    }
}

fn marks(version: usize) -> Vec<(ObjectKind, u64)> {
    [ObjectKind::Service, ObjectKind::EndpointSlice].map(|kind| (kind, version as u64)).to_vec()
}

impl Sim {
    /// A process starts, and begins to list.
    pub(super) fn start_replica(&mut self, number: usize) {
        let mut epoch = [0; 16];
        epoch.iter_mut().for_each(|byte| *byte = self.chance.u8(..));
        let replica = &mut self.replicas[number];
        let now = replica.clock.show(self.now);
        let replicas = Replicas::new(Known::Told(replica.all.clone()), Some(Name::from(&*replica.address)));
        let journal = Journal::new(Epoch(epoch), OWN.into(), LOG_BYTES, now).among(replicas);
        replica.life += 1;
        let life = replica.life;
        let (sessions, known) = (BTreeMap::new(), BTreeMap::new());
        replica.process = Some(Process { journal, sessions, seen: 0, known, building: false });
        let delay = self.chance.u64(50 * MS..2 * SECOND);
        self.after(delay, Event::List { replica: number, life });
    }

    /// The process is gone. `silently`: its host is, and nobody is told.
    pub(super) fn kill_replica(&mut self, number: usize, silently: bool) {
        let replica = &mut self.replicas[number];
        replica.life += 1;
        let Some(process) = replica.process.take() else { return };
        for connection in process.sessions.into_keys() {
            let delay = self.latency();
            match silently {
                true => _ = self.connections.get_mut(&connection).map(|one| one.dead = true),
                false => self.after(delay, Event::Gone { connection }),
            }
        }
    }

    /// The process is asked to end: its agents go elsewhere first.
    pub(super) fn stop_replica(&mut self, number: usize, within: Duration) {
        let replica = &mut self.replicas[number];
        let (now, life) = (replica.clock.show(self.now), replica.life);
        let Some(process) = &mut replica.process else { return };
        process.journal.leave(now, within);
        self.pump_all(number);
        for check in 1..=20_u64 {
            let at = u64::try_from(within.as_micros()).unwrap_or(u64::MAX) / 20 * check;
            self.after(at, Event::End { replica: number, life });
        }
        let last = u64::try_from(within.as_micros()).unwrap_or(u64::MAX) + 1;
        self.after(last, Event::End { replica: number, life });
    }

    /// A process that is to end does so when its agents have gone, or its time is over.
    pub(super) fn end_if_left(&mut self, number: usize, life: u64) {
        let replica = &self.replicas[number];
        let now = replica.clock.show(self.now);
        let Some(process) = replica.process.as_ref().filter(|_| replica.life == life) else { return };
        let over = process.journal.replicas().leaving().is_some_and(|leaving| leaving.left(now).is_zero());
        if process.sessions.is_empty() || over {
            self.kill_replica(number, false);
            self.start_replica(number);
        }
    }

    /// A list of everything, as it is at a version.
    fn commit_list(&mut self, number: usize, version: usize) {
        let state = self.truth.at(version);
        let now = self.replicas[number].clock.show(self.now);
        let Some(process) = &mut self.replicas[number].process else { return };
        let gone = process.known.keys().filter(|key| !state.contains_key(*key));
        let gone: Vec<Change> = gone.map(|key| Change::Gone { key: key.clone(), inferred: true }).collect();
        let events = state.values().cloned().chain(gone).collect();
        let all = ObjectKind::ALL.to_vec();
        let update = Update { events, listed: all.clone(), marks: marks(version), fresh: all };
        process.journal.commit(update, now);
        (process.known, process.seen) = (state, version);
        self.pump_all(number);
    }

    pub(super) fn list(&mut self, number: usize, life: u64) {
        if self.replicas[number].life != life {
            return;
        }
        let version = self.truth.version();
        self.commit_list(number, version);
        self.after(20 * MS, Event::Feed { replica: number, life });
    }

    /// It lists again, and what it is given is of an older version.
    pub(super) fn rewind(&mut self, number: usize, version: usize) {
        self.commit_list(number, version);
    }

    pub(super) fn feed(&mut self, number: usize, life: u64) {
        if self.replicas[number].life != life {
            return;
        }
        if !self.replicas[number].stale {
            let version = self.truth.version();
            let seen = self.replicas[number].process.as_ref().map_or(version, |process| process.seen);
            // Whoever was away for long may be told to list.
            if version > seen + 50 && self.chance.bool() {
                self.commit_list(number, version);
            } else {
                self.commit_changes(number);
            }
        }
        let delay = self.chance.u64(20 * MS..100 * MS);
        self.after(delay, Event::Feed { replica: number, life });
    }

    fn commit_changes(&mut self, number: usize) {
        let now = self.replicas[number].clock.show(self.now);
        let version = self.truth.version();
        let Some(process) = &mut self.replicas[number].process else { return };
        let events = self.truth.after(process.seen).to_vec();
        for event in &events {
            match event {
                Change::Upsert(object) => _ = process.known.insert(object.key().clone(), event.clone()),
                Change::Gone { key, .. } => _ = process.known.remove(key),
                Change::Invalid { .. } => {}
            }
        }
        let marks = if events.is_empty() { Vec::new() } else { marks(version) };
        process.seen = version;
        let update = Update { events, listed: Vec::new(), marks, fresh: ObjectKind::ALL.to_vec() };
        let committed = process.journal.commit(update, now);
        if committed.records > 0 || committed.nodes > 0 {
            self.pump_all(number);
        }
    }

    pub(super) fn build(&mut self, number: usize, life: u64) {
        let replica = &mut self.replicas[number];
        let Some(process) = replica.process.as_mut().filter(|_| replica.life == life) else { return };
        process.building = false;
        if let Some(blueprint) = process.journal.blueprint() {
            process.journal.install(blueprint.build());
        }
        self.pump_all(number);
    }

    pub(super) fn pump_all(&mut self, number: usize) {
        let Some(process) = &self.replicas[number].process else { return };
        let all: Vec<u64> = process.sessions.keys().copied().collect();
        all.into_iter().for_each(|connection| self.pump(connection));
    }

    /// A connection was accepted.
    pub(super) fn open_session(&mut self, id: u64) {
        let Some(connection) = self.connections.get(&id) else { return };
        let replica = &mut self.replicas[connection.replica];
        let now = replica.clock.show(self.now);
        let session = Session::new(now, self.chance.f64()).ageing(Some(AGE), now);
        if let Some(process) = &mut replica.process {
            process.sessions.insert(id, session);
            self.figures.connections += 1;
        }
        self.pump(id);
    }

    pub(super) fn drop_session(&mut self, id: u64) {
        let Some(connection) = self.connections.remove(&id) else { return };
        if let Some(process) = &mut self.replicas[connection.replica].process {
            process.sessions.remove(&id);
        }
    }

    /// The agent said something.
    pub(super) fn up(&mut self, id: u64, message: pb::AgentMessage) {
        let Some(connection) = self.connections.get(&id).filter(|one| !one.dead) else { return };
        let replica = &mut self.replicas[connection.replica];
        let now = replica.clock.show(self.now);
        let session = replica.process.as_mut().and_then(|process| process.sessions.get_mut(&id));
        let Some(session) = session else { return };
        match session.on(message, &OWN.into(), now) {
            Ok(_) => self.pump(id),
            Err(_) => self.end_stream(id),
        }
    }

    /// The server ends a stream: what it has said still arrives.
    fn end_stream(&mut self, id: u64) {
        let Some(connection) = self.connections.get(&id) else { return };
        let (replica, at) = (connection.replica, connection.last_down.max(self.now + MS));
        if let Some(process) = &mut self.replicas[replica].process {
            process.sessions.remove(&id);
        }
        self.at(at, Event::Gone { connection: id });
        self.at(at + 1, Event::Dropped { connection: id });
    }

    /// Takes what the session has to say, as far as the agent takes it.
    pub(super) fn pump(&mut self, id: u64) {
        loop {
            let Some(connection) = self.connections.get(&id) else { return };
            if connection.underway >= IN_FLIGHT || connection.dead {
                return;
            }
            let number = connection.replica;
            let replica = &mut self.replicas[number];
            let (clock, life) = (replica.clock, replica.life);
            let Some(process) = &mut replica.process else { return };
            let Some(session) = process.sessions.get_mut(&id) else { return };
            match session.next(&process.journal, clock.show(self.now)) {
                Ok(Some((bytes, began))) => {
                    match began {
                        Some(Began::Resume) => self.figures.resumes += 1,
                        Some(Began::Repair) => self.figures.repairs += 1,
                        Some(Began::Snapshot) => self.figures.snapshots += 1,
                        None => {}
                    }
                    self.figures.bytes += bytes.len() as u64;
                    let delay = self.latency();
                    let Some(connection) = self.connections.get_mut(&id) else { return };
                    connection.underway += 1;
                    connection.last_down = connection.last_down.max(self.now + delay);
                    let at = connection.last_down;
                    self.at(at, Event::Down { connection: id, bytes });
                }
                Ok(None) if session.is_over() => {
                    self.figures.throttled += 1;
                    return self.end_stream(id);
                }
                Ok(None) => {
                    if session.awaits_snapshot() && !std::mem::replace(&mut process.building, true) {
                        self.after(50 * MS, Event::Build { replica: number, life });
                        return;
                    }
                    let wake = session.wake_at().map(|at| clock.when(at).max(self.now + 1));
                    let connection = self.connections.get_mut(&id);
                    if let (Some(at), Some(connection)) = (wake, connection)
                        && connection.wake.is_none_or(|set| at < set || set <= self.now)
                    {
                        connection.wake = Some(at);
                        self.at(at, Event::WakeSession { connection: id });
                    }
                    return;
                }
                Err(_) => return self.end_stream(id),
            }
        }
    }

    /// Nothing gets through between the two any more, and nobody is told.
    pub(super) fn cut_off(&mut self, node: usize, replica: usize) {
        self.nodes[node].cut_off.insert(replica);
        let ids: Vec<u64> = self
            .connections
            .iter_mut()
            .filter(|(_, one)| one.node == node && one.replica == replica)
            .map(|(id, one)| {
                one.dead = true;
                *id
            })
            .collect();
        ids.into_iter().for_each(|connection| self.after(PINGS, Event::Dropped { connection }));
    }

    /// A connection breaks, and both ends are told.
    pub(super) fn cut(&mut self, connection: u64) {
        let (there, here) = (self.latency(), self.latency());
        self.after(here, Event::Gone { connection });
        self.after(here.max(there) + 1, Event::Dropped { connection });
    }
}
