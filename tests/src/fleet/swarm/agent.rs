//! One agent, as long as the process lives: connects, hears, acks, and comes again.

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use bytes::Bytes;
use distributary_agent::sync::ack::{Acks, Due, Programmed, Rejected};
use distributary_model::{Cursor, Hash, Key, Name};
use distributary_runtime::backoff::Backoff;
use tokio::sync::{Semaphore, watch};

use super::commons::Commons;
use super::link::Link;
use super::machine::{Heard, Machine, Mode, Says};
use super::orders::Counts;
use super::{Options, light::Light, whole::Whole};
use crate::fleet::clock;
use crate::fleet::meter::Meter;
use crate::fleet::world::node_name;

/// As the real agent's: three heartbeats.
const SILENCE: Duration = Duration::from_secs(18);
const CONNECT: Duration = Duration::from_secs(5);
/// A loopback address has about 28,000 ports, and those of closed connections rest for a minute.
const PER_ADDRESS: usize = 2_000;

/// What all agents of a process share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) options: Options,
    pub(crate) own: Name,
    pub(crate) commons: RefCell<Commons>,
    pub(crate) meter: RefCell<Meter>,
    pub(crate) measuring: Cell<bool>,
    pub(crate) counts: RefCell<Counts>,
    pub(crate) last_live_at: Cell<u64>,
    /// How many may connect at a time.
    pub(crate) gate: Semaphore,
}

/// What all are told to do.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Told {
    pub(crate) says: Says,
    /// Counts the orders to cut.
    pub(crate) cuts: u64,
    pub(crate) within: Duration,
    pub(crate) stalled: usize,
    pub(crate) frozen: usize,
    pub(crate) mute: bool,
}

/// How an agent stands, for the status.
#[derive(Debug, Default)]
pub(crate) struct Standing {
    pub(crate) live: Cell<bool>,
    pub(crate) root: Cell<Hash>,
    /// The newest slice that the agent has.
    pub(crate) mark: Cell<u64>,
}

#[derive(Debug)]
pub(crate) struct Agent {
    number: usize,
    node: Name,
    machine: Machine,
    acks: Acks,
    programmed: Programmed,
    standing: Rc<Standing>,
    told: watch::Receiver<Told>,
    shared: Rc<Shared>,
}

/// How a stream ended that did not break.
enum Ended {
    /// By an order.
    Cut,
    /// The server asked for it.
    Asked(Duration),
    /// This agent is one of those that come and go.
    Gone,
}

impl Agent {
    pub(crate) fn new(index: usize, told: watch::Receiver<Told>, shared: Rc<Shared>) -> (Self, Rc<Standing>) {
        let options = &shared.options;
        let number = options.first + index;
        let node = node_name(number, options.long_names);
        let machine = match index < options.whole {
            true => Machine::Whole(Box::new(Whole::new(shared.own.clone(), node.clone()))),
            false => Machine::Light(Light::new(node.clone(), &shared.commons.borrow())),
        };
        let standing = Rc::new(Standing::default());
        let mut programmed = Programmed { took: Duration::from_micros(500), ..Programmed::default() };
        if share(number, options.rejecting, 3) {
            let key = Arc::new(Key::service(shared.own.clone(), "shop-000", "checkout-00000"));
            let rejected = Rejected { hash: Hash(1), message: "RULE_APPEND failed".into(), node: false };
            programmed.rejected = Arc::new([(key, rejected)].into());
        }
        let agent = Self {
            number,
            node,
            machine,
            acks: Acks::default(),
            programmed,
            standing: Rc::clone(&standing),
            told,
            shared,
        };
        (agent, standing)
    }

    pub(crate) async fn run(mut self) {
        let most = Duration::from_millis(self.shared.options.retry_most_millis);
        let mut backoff = Backoff::new(most.min(Duration::from_millis(500)), most);
        loop {
            let ended = self.stream().await;
            let was_live = self.standing.live.replace(false);
            let wait = match ended {
                Ok(Ended::Cut) => self.told.borrow().within.mul_f64(fastrand::f64()),
                Ok(Ended::Asked(wait)) => wait.mul_f64(1.0 + fastrand::f64()),
                Ok(Ended::Gone) => Duration::from_secs_f64(fastrand::f64()),
                Err(e) => {
                    self.shared.counts.borrow_mut().broke(&e);
                    if was_live {
                        backoff.reset();
                    }
                    backoff.next_delay()
                }
            };
            tokio::time::sleep(wait).await;
        }
    }

    async fn stream(&mut self) -> Result<Ended> {
        let Told { says, cuts, .. } = *self.told.borrow_and_update();
        let options = &self.shared.options;
        let hello = self.machine.hello(&self.shared.own, says);
        let from = IpAddr::V4(Ipv4Addr::new(127, 0, 1, (self.number / PER_ADDRESS % 250) as u8 + 1));
        let permit = self.shared.gate.acquire().await?;
        let opening = Link::open(options.server, from, &hello);
        let mut link = tokio::time::timeout(CONNECT, opening).await??;
        drop(permit);
        self.shared.counts.borrow_mut().connections += 1;
        self.acks.next_stream();

        let gone_at = share(self.number, options.dropping, 5).then(|| {
            Instant::now() + Duration::from_secs_f64(2.0 * options.dropping_seconds * fastrand::f64())
        });
        let slow = share(self.number, options.slow, 7).then(|| Duration::from_millis(options.slow_millis));
        let mut stream = None::<Cursor>;
        let (mut opening_bytes, mut ack_at, mut slow_until) = (None::<u64>, None, None::<Instant>);
        let mut heard_at = Instant::now();
        loop {
            let told = *self.told.borrow();
            if told.cuts != cuts {
                return Ok(Ended::Cut);
            }
            let frozen = share(self.number, told.frozen, 1);
            let stalled = share(self.number, told.stalled, 1) || slow_until.is_some();
            let silence = (!frozen && !stalled).then(|| heard_at + SILENCE);
            let wake_at = [silence, ack_at, gone_at, slow_until].into_iter().flatten().min();
            let message = tokio::select! {
                biased;
                message = link.next(!stalled), if !frozen => message?,
                _ = self.told.changed() => continue,
                () = distributary_runtime::alarm::at(wake_at) => {
                    let now = Instant::now();
                    if gone_at.is_some_and(|at| now >= at) {
                        return Ok(Ended::Gone);
                    }
                    if silence.is_some_and(|at| now >= at) {
                        bail!("nothing heard for three heartbeats");
                    }
                    slow_until = slow_until.filter(|until| now < *until);
                    ack_at = self.ack(&mut link, stream, now)?;
                    continue;
                }
            };
            heard_at = Instant::now();
            let length = message.len() as u64 + 5;
            if let Some(bytes) = &mut opening_bytes {
                *bytes += length;
            }
            match self.hear(&message)? {
                Heard::Began(mode) => {
                    opening_bytes = Some(length);
                    let mut counts = self.shared.counts.borrow_mut();
                    match mode {
                        Mode::Resume => counts.resumes += 1,
                        Mode::Snapshot => counts.snapshots += 1,
                        Mode::Repair => counts.repairs += 1,
                    }
                }
                Heard::Ended { cursor, mark } => {
                    let bytes = opening_bytes.take().unwrap_or(0);
                    let mut counts = self.shared.counts.borrow_mut();
                    counts.ends += 1;
                    counts.opening_bytes += bytes;
                    counts.most_opening_bytes = counts.most_opening_bytes.max(bytes);
                    drop(counts);
                    self.standing.live.set(true);
                    self.shared.last_live_at.set(clock::micros());
                    self.moved(mark);
                    stream = Some(cursor);
                }
                Heard::Changes { cursor, mark } => {
                    let mut counts = self.shared.counts.borrow_mut();
                    counts.frames += 1;
                    counts.frame_bytes += length;
                    drop(counts);
                    self.moved(mark);
                    stream = Some(cursor);
                    slow_until = slow.map(|slow| heard_at + slow);
                }
                Heard::Reply(reply) => link.say(&reply)?,
                Heard::Throttle { millis } => {
                    self.shared.counts.borrow_mut().throttled += 1;
                    return Ok(Ended::Asked(Duration::from_millis(millis)));
                }
                Heard::Drain { millis } => {
                    self.shared.counts.borrow_mut().drained += 1;
                    return Ok(Ended::Asked(Duration::from_millis(millis)));
                }
                Heard::Heartbeat | Heard::Nothing => {}
            }
            ack_at = self.ack(&mut link, stream, heard_at)?;
        }
    }

    fn hear(&mut self, message: &Bytes) -> Result<Heard> {
        self.shared.counts.borrow_mut().bytes += message.len() as u64 + 5;
        let heard = self.machine.on(message, &mut self.shared.commons.borrow_mut());
        let checked = heard.and_then(|heard| match heard {
            Heard::Heartbeat => self.machine.check().map(|()| heard),
            heard => Ok(heard),
        });
        checked.inspect_err(|e| self.shared.counts.borrow_mut().breach(&self.node, e))
    }

    /// What the agent has is newer now.
    fn moved(&mut self, mark: u64) {
        self.standing.root.set(self.machine.root(&self.shared.own));
        let before = self.standing.mark.get();
        if mark <= before {
            return;
        }
        if self.shared.measuring.get() {
            self.shared.meter.borrow_mut().received(before, mark, clock::micros());
        }
        self.standing.mark.set(mark);
    }

    /// Says what the kernel has, which takes everything at once. Gives when to ask again.
    fn ack(&mut self, link: &mut Link, stream: Option<Cursor>, now: Instant) -> Result<Option<Instant>> {
        if stream.is_some() {
            self.programmed.cursor = stream;
        }
        if self.told.borrow().mute {
            return Ok(None);
        }
        match self.acks.due(&self.programmed, stream, &self.shared.own, now) {
            Due::Nothing => Ok(None),
            Due::At(at) => Ok(Some(at)),
            Due::Now(ack) => {
                self.shared.counts.borrow_mut().acks += 1;
                link.say(&ack)?;
                Ok(None)
            }
        }
    }
}

/// Whether an agent is one of so many of a hundred. Different salts choose different ones.
fn share(number: usize, percent: usize, salt: usize) -> bool {
    (number + salt).wrapping_mul(37) % 100 < percent
}
