//! Which server, when, and what is done with what it says: a machine without a socket. Whoever drives it tells what
//! happened and when, and then does what is [ordered](Driver::next_order).

mod moving;
mod order;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use distributary_model::{Cursor, Name};
use distributary_proto::v1 as pb;
use distributary_runtime::backoff::Backoff;
use pb::server_message::Message as FromServer;

use super::ack::{Acks, Due, Programmed, rejections};
use super::audit::Audit;
use super::choice::{Choice, Next};
use super::dial::Server;
use super::session::{self, Batch, Heard, Restored, Session, stalest};
use crate::checkpoint::{self, Checkpoint};
use moving::{FRESHER, Moving, Probes, STALE, WITHIN, Why};

pub use order::{LinkId, Note, Order};

/// Three heartbeats, at their slowest.
const SILENCE: Duration = Duration::from_secs(18);
/// To connect, with everything that secures it.
const DIAL: Duration = Duration::from_secs(10);
/// After all servers were behind what this agent holds for so long, an older state is taken.
const BEHIND: Duration = Duration::from_secs(30);
/// What a server said of that so long ago says nothing any more: the others may have been out of reach meanwhile.
const BEHIND_STILL: Duration = Duration::from_secs(180);
/// So long a server may be older than what is held, where the stream that led further is gone: two heartbeats.
const OLDER: Duration = Duration::from_secs(12);
/// A stream that lived so long was a good one: the next failure is a new one.
const HEALTHY: Duration = Duration::from_secs(10);
/// So long a server has to answer before a checkpoint is programmed.
const COLD: Duration = Duration::from_secs(5);
/// What is unsaved is saved after so long.
const SAVE: Duration = Duration::from_secs(10);

/// How an agent behaves.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Id of its cluster.
    pub cluster: Name,
    /// Its node.
    pub node: Name,
    /// How long removals that were only inferred are held.
    pub patience: Duration,
    /// What it holds is saved.
    pub saves: bool,
    /// Makes every chance that is taken.
    pub seed: u64,
}

impl Settings {
    /// The usual ones.
    pub fn new(cluster: Name, node: Name) -> Self {
        Self { cluster, node, patience: session::PATIENCE, saves: false, seed: fastrand::u64(..) }
    }
}

/// How an agent stands.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Status {
    /// The server of the current stream.
    pub server: Option<Server>,
    /// The stream is past its End.
    pub live: bool,
    /// The server to which it is being moved.
    pub moving_to: Option<Server>,
    /// Where it stands.
    pub cursor: Option<Cursor>,
    /// How old the server's knowledge was when it was told last.
    pub staleness: Duration,
    /// Services of which more is programmed than the server has, and the endpoints of theirs.
    pub withheld: (usize, usize),
}

/// Keeps an agent in step with its servers.
#[derive(Debug)]
pub struct Driver {
    settings: Settings,
    session: Session,
    choice: Choice,
    random: fastrand::Rng,
    links: u64,
    current: Option<Link>,
    beside: Option<Link>,
    moving: Option<Moving>,
    probes: Probes,
    failures: Backoff,
    /// When a server is dialled, where there is no stream.
    dial_at: Option<Instant>,
    /// Since when every server that was found is behind what is held, and when one last was; `None`: it is not so.
    behind: Option<(Instant, Instant)>,
    /// How stale the current server's sources were, as it said at that moment.
    staleness: (Duration, Instant),
    audit: Audit,
    acks: Acks,
    ack_at: Option<Instant>,
    programmed: Programmed,
    /// What an earlier process had parked, until this one knows better.
    parked: Vec<pb::Rejection>,
    /// When it is looked whether a checkpoint is to be programmed.
    cold_at: Option<Instant>,
    save_at: Option<Instant>,
    /// What was noted of held removals.
    withheld: (usize, usize),
    orders: VecDeque<Order>,
}

#[derive(Debug)]
struct Link {
    id: LinkId,
    server: Server,
    dialled: Instant,
    /// When the server was heard last, since it was connected.
    heard: Option<Instant>,
    live: Option<Instant>,
}

impl Driver {
    /// Begins at that moment, from what an earlier process saved.
    pub fn new(settings: Settings, saved: Option<Checkpoint>, now: Instant) -> Self {
        let session =
            Session::new(settings.cluster.clone(), settings.node.clone()).patient(settings.patience);
        let mut choice = Choice::new(settings.node.clone());
        let (cold_at, parked) = match &saved {
            Some(saved) => (Some(now + COLD), saved.parked.clone()),
            None => (None, Vec::new()),
        };
        let session = match saved {
            Some(saved) => session.from(restored(saved, now)),
            None => session,
        };
        choice.named(session.candidates());
        choice.zone(session.node_view().map(|node| node.zone.clone()).unwrap_or_default());
        Self {
            session,
            choice,
            random: fastrand::Rng::with_seed(settings.seed),
            settings,
            links: 0,
            current: None,
            beside: None,
            moving: None,
            probes: Probes::default(),
            failures: Backoff::new(Duration::from_millis(500), Duration::from_secs(60)),
            dial_at: Some(now),
            behind: None,
            staleness: (Duration::ZERO, now),
            audit: Audit::default(),
            acks: Acks::default(),
            ack_at: None,
            programmed: Programmed::default(),
            parked,
            cold_at,
            save_at: None,
            withheld: (0, 0),
            orders: VecDeque::new(),
        }
    }

    /// What the agent holds.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// How it stands.
    pub fn status(&self) -> Status {
        Status {
            server: self.current.as_ref().map(|link| link.server.clone()),
            live: self.session.is_live(),
            moving_to: self.beside.as_ref().map(|link| link.server.clone()),
            cursor: self.session.cursor(),
            staleness: self.staleness.0,
            withheld: self.session.withheld().size(),
        }
    }

    /// What is to be done next.
    pub fn next_order(&mut self) -> Option<Order> {
        self.orders.pop_front()
    }

    /// Whether what this connection has to say is to be read now.
    pub fn reads(&self, link: LinkId) -> bool {
        let is = |one: &Option<Link>| one.as_ref().is_some_and(|one| one.id == link);
        is(&self.beside) || (is(&self.current) && !self.session.is_moving())
    }

    /// The servers of the command line, as far as they are known by address.
    pub fn servers(&mut self, servers: Vec<Server>, now: Instant) {
        self.choice.told(servers);
        self.tick(now);
    }

    /// A connection was made.
    pub fn connected(&mut self, link: LinkId, now: Instant) {
        let parked = self.parked();
        let hello = if let Some(current) = self.current.as_mut().filter(|one| one.id == link) {
            current.heard = Some(now);
            let accept_older = self.behind.is_some_and(|(since, last)| {
                now.duration_since(since) >= BEHIND && now.duration_since(last) < BEHIND_STILL
            });
            self.acks.next_stream();
            self.session.hello(parked, accept_older)
        } else if let Some(beside) = self.beside.as_mut().filter(|one| one.id == link) {
            beside.heard = Some(now);
            self.session.hello_beside(parked)
        } else {
            return;
        };
        self.orders.push_back(Order::Say(link, hello));
        self.tick(now);
    }

    /// A connection could not be made, or is gone.
    pub fn lost(&mut self, link: LinkId, error: String, now: Instant) {
        self.fail(link, error, now);
        self.tick(now);
    }

    /// A connection's server said something, which was received at that moment.
    pub fn heard(&mut self, link: LinkId, message: pb::ServerMessage, received: Instant) {
        let is = |one: &Option<Link>| one.as_ref().is_some_and(|one| one.id == link);
        if is(&self.current) {
            self.heard_current(link, message, received);
        } else if is(&self.beside) {
            self.heard_beside(link, message, received);
        }
        self.tick(received);
    }

    /// What is in the kernel now.
    pub fn programmed(&mut self, programmed: Programmed, now: Instant) {
        self.programmed = programmed;
        self.tick(now);
    }

    /// What a look at the kernel has found: whether it holds rules of ours; `None`: it could not be seen.
    pub fn kernel(&mut self, holds: Option<bool>, now: Instant) {
        match holds {
            _ if self.session.has_handed_on() => {}
            Some(true) => self.note(Note::KernelIsNewer),
            Some(false) if !self.session.is_staging() => {
                let batch = self.session.hand_over();
                self.note(Note::FromCheckpoint { services: batch.services.len() });
                self.orders.push_back(Order::Program(batch, now));
            }
            Some(false) | None => self.cold_at = Some(now + COLD),
        }
        self.tick(now);
    }

    /// An operator says that held removals are right.
    pub fn release(&mut self, now: Instant) {
        let batch = self.session.release();
        self.let_go(batch, now);
        self.tick(now);
    }

    /// What was to be saved could not be.
    pub fn unsaved(&mut self, now: Instant) {
        self.save_at = self.save_at.or(Some(now + 6 * SAVE));
    }

    /// What is to be saved before the process ends; `None`: everything is.
    pub fn last_checkpoint(&self, now: Instant) -> Option<Box<Checkpoint>> {
        self.save_at.map(|_| Box::new(self.checkpoint(now)))
    }

    /// When [`tick`](Self::tick) has something to do.
    pub fn wake_at(&self) -> Option<Instant> {
        let current = self.current.as_ref().filter(|_| !self.session.is_moving()).map(Link::patience);
        let beside = self.beside.as_ref().map(|link| link.patience().min(link.dialled + WITHIN));
        let idle = self.current.is_none() && self.beside.is_none();
        let moving = self.moving.as_ref().filter(|_| self.beside.is_none() && self.session.is_live());
        let all = [
            current,
            beside,
            self.dial_at.filter(|_| idle),
            moving.map(|moving| moving.at),
            self.audit.due(),
            self.session.withheld().until(),
            self.session.waits_since().map(|at| at + OLDER),
            self.ack_at,
            self.cold_at,
            self.save_at.filter(|_| self.settings.saves),
        ];
        all.into_iter().flatten().min()
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Instant) {
        self.give_up_the_silent(now);
        if self.current.is_none() && self.beside.is_none() && self.dial_at.is_some_and(|at| at <= now) {
            self.dial_at = None;
            match self.choice.next(now, None) {
                Next::Now(server) => self.current = Some(self.dial(server, now)),
                Next::At(at) => self.dial_at = Some(at),
                // Until one is told.
                Next::Nobody => self.dial_at = Some(now + Duration::from_secs(1)),
            }
        }
        self.move_on(now);
        if self.session.is_live()
            && let Some(reason) = self.audit.ask(now)
            && let Some(current) = &self.current
        {
            let repair = self.session.repair(reason.clone());
            self.orders.push_back(Order::Say(current.id, repair));
            self.note(Note::Repairing { reason });
        }
        if self.session.withheld().until().is_some_and(|until| until <= now) {
            let batch = self.session.expire(now);
            self.let_go(batch, now);
        }
        self.note_withheld();
        self.ack(now);
        if self.cold_at.is_some_and(|at| at <= now) {
            self.cold_at = None;
            if self.session.is_staging() {
                self.cold_at = Some(now + Duration::from_secs(1));
            } else if !self.session.has_handed_on() {
                self.orders.push_back(Order::LookAtKernel);
            }
        }
        if self.settings.saves && self.save_at.is_some_and(|at| at <= now) {
            self.save_at = None;
            let checkpoint = self.checkpoint(now);
            self.orders.push_back(Order::Save(Box::new(checkpoint)));
        }
    }

    fn give_up_the_silent(&mut self, now: Instant) {
        if let Some(link) = self.beside.as_ref() {
            let (id, late) = (link.id, link.dialled + WITHIN <= now);
            if late || link.patience() <= now {
                let error = if late { "it takes too long" } else { link.silence() };
                self.fail(id, error.to_owned(), now);
            }
        }
        let behind = self.session.waits_since().is_some_and(|at| at + OLDER <= now);
        if let Some(link) = self.current.as_ref().filter(|_| !self.session.is_moving())
            && (behind || link.patience() <= now)
        {
            let error = if behind { "the server is behind what is held" } else { link.silence() };
            self.fail(link.id, error.to_owned(), now);
        }
    }

    /// Opens a stream beside the current one, where it is time to move.
    fn move_on(&mut self, now: Instant) {
        let Some(moving) = self.moving.as_mut().filter(|moving| moving.at <= now) else { return };
        if self.beside.is_some() || !self.session.is_live() {
            return;
        }
        let Some(current) = &self.current else { return };
        let avoid = moving.elsewhere.then(|| current.server.address.clone());
        match self.choice.next(now, avoid.as_deref()) {
            Next::Now(server) => {
                let reason = match &moving.why {
                    Why::Drained(reason) => format!("the server asks for it ({reason})"),
                    Why::Stale => "the server's knowledge is stale".to_owned(),
                };
                self.note(Note::Moving { to: server.clone(), reason });
                self.beside = Some(self.dial(server, now));
            }
            Next::At(at) => moving.at = at,
            Next::Nobody => match moving.why {
                Why::Stale => self.moving = None,
                Why::Drained(_) => moving.at = now + Duration::from_secs(5),
            },
        }
    }

    fn dial(&mut self, server: Server, now: Instant) -> Link {
        self.links += 1;
        let id = LinkId(self.links);
        self.orders.push_back(Order::Dial(id, server.clone()));
        Link { id, server, dialled: now, heard: None, live: None }
    }

    fn heard_current(&mut self, link: LinkId, message: pb::ServerMessage, received: Instant) {
        if let Some(current) = &mut self.current {
            current.heard = Some(received);
        }
        let told = staleness(&message);
        let was_live = self.session.is_live();
        let heard = self.session.on(message, received);
        self.learn();
        // A server that begins anew ends what was begun beside it.
        if !self.session.has_beside()
            && let Some(beside) = self.beside.take_if(|beside| beside.heard.is_some())
        {
            self.orders.push_back(Order::Close(beside.id));
        }
        match heard {
            Ok(Heard::Nothing) => {}
            Ok(Heard::Batch(batch)) => {
                if !was_live && self.session.is_live() {
                    self.in_step(told, received);
                }
                self.program(batch, received);
            }
            // There is nobody beside who could have said so.
            Ok(Heard::Moved(batch)) => self.program(batch, received),
            Ok(Heard::Say(message)) => self.orders.push_back(Order::Say(link, message)),
            Ok(Heard::Staleness(staleness)) => self.is_stale(staleness, received),
            Ok(Heard::Differs { staleness, reason }) => {
                self.is_stale(staleness, received);
                let share = self.random.f64();
                if !self.audit.differs(reason.clone(), share, received) {
                    self.fail(link, format!("a comparison did not help: {reason}"), received);
                }
            }
            Ok(Heard::Throttle { retry_after, reason, behind }) => {
                self.throttled(link, retry_after, reason, behind, received);
            }
            Ok(Heard::Drain { slot, reason, candidates }) => {
                let Some(current) = &self.current else { return };
                let stays = candidates.iter().any(|one| *one.address == *current.server.address);
                let (why, at) = (Why::Drained(reason), received + slot);
                self.moving = Some(Moving { why, at, elsewhere: !stays });
            }
            Err(failed) => self.fail(link, failed.to_string(), received),
        }
    }

    fn heard_beside(&mut self, link: LinkId, message: pb::ServerMessage, received: Instant) {
        if let Some(beside) = &mut self.beside {
            beside.heard = Some(received);
        }
        let told = staleness(&message);
        if let (Some(theirs), Some(Moving { why: Why::Stale, .. })) = (told, &self.moving) {
            let ours = self.staleness.0 + received.saturating_duration_since(self.staleness.1);
            if theirs + FRESHER >= ours {
                return self.fail(link, "the other server's knowledge is no fresher".to_owned(), received);
            }
        }
        let heard = self.session.on_beside(message, received);
        self.learn();
        match heard {
            Ok(Heard::Moved(batch)) => {
                if let Some(old) = std::mem::replace(&mut self.current, self.beside.take()) {
                    self.orders.push_back(Order::Close(old.id));
                }
                self.moving = None;
                self.acks.next_stream();
                self.in_step(told, received);
                self.program(batch, received);
            }
            Ok(Heard::Say(message)) => self.orders.push_back(Order::Say(link, message)),
            Ok(Heard::Throttle { retry_after, reason, behind: _ }) => {
                self.throttled(link, retry_after, reason, false, received);
            }
            Ok(Heard::Drain { reason, .. }) => {
                self.fail(link, format!("it is to be left ({reason})"), received)
            }
            Ok(Heard::Nothing | Heard::Batch(_) | Heard::Staleness(_) | Heard::Differs { .. }) => {}
            Err(failed) => self.fail(link, failed.to_string(), received),
        }
        // What was read of the new one, the old one could not say.
        if !self.session.is_moving()
            && let Some(current) = &mut self.current
        {
            current.heard = Some(received);
        }
    }

    /// The stream has reached its End.
    fn in_step(&mut self, told: Option<Duration>, now: Instant) {
        self.behind = None;
        self.cold_at = None;
        let revision = self.session.cursor().map_or(0, |cursor| cursor.through.0);
        let services = self.session.table().len();
        if let Some(current) = &mut self.current {
            match current.live {
                // The server began anew in the same stream.
                Some(_) => self.audit.agrees(),
                None => self.audit = Audit::default(),
            }
            current.live.get_or_insert(now);
            let server = current.server.clone();
            self.choice.found(&server.address);
            self.note(Note::InStep { server, services, revision });
        }
        self.is_stale(told.unwrap_or_default(), now);
    }

    /// Takes note of which servers there are, and where the node is.
    fn learn(&mut self) {
        self.choice.named(self.session.candidates());
        if let Some(node) = self.session.node_view() {
            self.choice.zone(node.zone.clone());
        }
    }

    fn is_stale(&mut self, staleness: Duration, now: Instant) {
        self.staleness = (staleness, now);
        if staleness <= STALE {
            self.probes.reset();
            self.moving.take_if(|moving| moving.why == Why::Stale && self.beside.is_none());
        } else if self.moving.is_none() && self.probes.may(now) {
            let at = now + Duration::from_secs(5).mul_f64(self.random.f64());
            self.moving = Some(Moving { why: Why::Stale, at, elsewhere: true });
        }
    }

    fn throttled(&mut self, link: LinkId, retry_after: Duration, reason: String, behind: bool, now: Instant) {
        let is = |one: &&Link| one.id == link;
        let Some(of) = self.current.as_ref().filter(is).or(self.beside.as_ref().filter(is)) else { return };
        let (server, dialled) = (of.server.clone(), of.dialled);
        let again = now + retry_after.mul_f64(1.0 + self.random.f64());
        self.choice.not_before(&server.address, again);
        self.note(Note::Throttled { server: server.clone(), reason: reason.clone() });
        self.orders.push_back(Order::Close(link));
        if self.beside.take_if(|beside| beside.id == link).is_some() {
            self.session.drop_beside();
            self.stay(server, reason, now);
            return;
        }
        if behind {
            let still = self.behind.filter(|(_, last)| now.duration_since(*last) < BEHIND_STILL);
            self.behind = Some((still.map_or(dialled, |(since, _)| since), now));
        }
        self.current = None;
        self.go_on_beside(now);
        if self.current.is_none() {
            // Elsewhere soon, else when the server wants it.
            self.dial_at = Some(now + Duration::from_millis(500).mul_f64(self.random.f64()));
        }
    }

    /// A connection is of no use any more.
    fn fail(&mut self, link: LinkId, error: String, now: Instant) {
        if let Some(beside) = self.beside.take_if(|beside| beside.id == link) {
            self.orders.push_back(Order::Close(link));
            self.session.drop_beside();
            self.choice.failed(&beside.server.address);
            self.stay(beside.server, error, now);
            return;
        }
        let Some(current) = self.current.take_if(|current| current.id == link) else { return };
        self.orders.push_back(Order::Close(link));
        self.choice.failed(&current.server.address);
        if current.live.is_some_and(|since| now.duration_since(since) >= HEALTHY) {
            self.failures.reset();
        }
        self.go_on_beside(now);
        let wait = match self.current {
            Some(_) => Duration::ZERO,
            None => self.failures.next_bound().mul_f64(self.random.f64()),
        };
        self.dial_at = Some(now + wait);
        self.note(Note::Lost { server: current.server, error, wait });
    }

    /// The current stream is gone: what was begun beside it takes its place.
    fn go_on_beside(&mut self, now: Instant) {
        self.session.promote();
        self.current = self.beside.take();
        self.moving = None;
        self.ack_at = None;
        self.acks.next_stream();
        if let Some(current) = &mut self.current {
            current.heard = current.heard.map(|_| now);
        }
    }

    /// The move came to nothing, and the old stream goes on.
    fn stay(&mut self, to: Server, reason: String, now: Instant) {
        if let Some(current) = &mut self.current {
            current.heard = current.heard.map(|_| now);
        }
        let share = self.random.f64();
        match &mut self.moving {
            Some(Moving { why: Why::Stale, .. }) => {
                self.moving = None;
                self.probes.failed(share, now);
            }
            Some(moving) => moving.at = now + Duration::from_secs(5).mul_f64(share),
            None => {}
        }
        self.note(Note::Stayed { to, reason });
    }

    fn program(&mut self, batch: Batch, received: Instant) {
        self.save_at.get_or_insert(received + SAVE);
        self.orders.push_back(Order::Program(batch, received));
    }

    fn let_go(&mut self, batch: Option<Batch>, now: Instant) {
        if let Some(batch) = batch {
            self.program(batch, now);
        }
    }

    fn ack(&mut self, now: Instant) {
        self.ack_at = None;
        let Some(current) = self.current.as_ref().filter(|_| self.session.is_live()) else { return };
        match self.acks.due(&self.programmed, self.session.cursor(), &self.settings.cluster, now) {
            Due::Nothing => {}
            Due::At(at) => self.ack_at = Some(at),
            Due::Now(ack) => self.orders.push_back(Order::Say(current.id, ack)),
        }
    }

    fn parked(&self) -> Vec<pb::Rejection> {
        match self.programmed.cursor {
            None => self.parked.clone(),
            Some(_) => rejections(&self.programmed.rejected, &self.settings.cluster),
        }
    }

    fn checkpoint(&self, now: Instant) -> Checkpoint {
        let session = &self.session;
        let kept = session.withheld().iter().map(|(key, kept)| checkpoint::Kept {
            key: key.clone(),
            service: kept.service.clone(),
            left: kept.until.saturating_duration_since(now),
            epoch: kept.epoch,
        });
        Checkpoint {
            cluster: self.settings.cluster.clone(),
            node: self.settings.node.clone(),
            cursor: session.cursor(),
            marks: session.marks().clone(),
            parked: self.parked(),
            node_view: session.node_view().cloned(),
            candidates: session.candidates().to_vec(),
            table: session.table().clone(),
            kept: kept.collect(),
        }
    }

    fn note_withheld(&mut self) {
        let size @ (services, endpoints) = self.session.withheld().size();
        let before = std::mem::replace(&mut self.withheld, size);
        if services > before.0
            && let Some(current) = &self.current
        {
            let (server, patience) = (current.server.clone(), self.settings.patience);
            self.note(Note::Withheld { server, services, endpoints, patience });
        } else if services == 0 && before.0 > 0 {
            self.note(Note::Released);
        }
    }

    fn note(&mut self, note: Note) {
        self.orders.push_back(Order::Note(note));
    }
}

impl Link {
    /// How long it may stay silent.
    fn patience(&self) -> Instant {
        self.heard.map_or(self.dialled + DIAL, |heard| heard + SILENCE)
    }

    fn silence(&self) -> &'static str {
        match self.heard {
            None => "no connection within 10 s",
            Some(_) => "nothing heard for three heartbeats",
        }
    }
}

/// How stale sources are, where that is said at an End.
fn staleness(message: &pb::ServerMessage) -> Option<Duration> {
    match &message.message {
        Some(FromServer::End(end)) => Some(stalest(&end.sources)),
        _ => None,
    }
}

fn restored(saved: Checkpoint, now: Instant) -> Restored {
    let kept = saved.kept.into_iter().map(|checkpoint::Kept { key, service, left, epoch }| {
        (key, session::Kept { service, until: now + left, epoch })
    });
    Restored {
        table: saved.table,
        kept: kept.collect(),
        node: saved.node_view,
        cursor: saved.cursor,
        marks: saved.marks,
        candidates: saved.candidates,
    }
}

#[cfg(test)]
mod tests;
