//! Many new flows a second beside connections that last, and a count of those that failed. Nothing is tried again: of a
//! datagram there is one, and what the kernel sends again to connect is counted.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::runtime::Builder;
use tokio::time::timeout;

use super::{Protocol, QUESTION};
use crate::netns::Namespace;

/// An answer that has not come by then does not come.
const PATIENCE: Duration = Duration::from_secs(5);
const TICK: Duration = Duration::from_millis(5);
/// A thread that did not get the processor makes up for this much.
const ARREARS: Duration = Duration::from_millis(50);
/// Between two questions on a connection that lasts.
const PAUSE: Duration = Duration::from_millis(200);
/// Own source ports, so that no datagram belongs to an older flow.
const PORTS: std::ops::Range<u16> = 20_000..29_000;
const EXAMPLES: usize = 10;

/// Where flows come from, and where they go, each in turn.
#[derive(Clone, Debug)]
pub struct Origin {
    /// For messages.
    pub name: &'static str,
    /// Where the sockets are.
    pub namespace: Arc<Namespace>,
    /// TCP and UDP.
    pub targets: Vec<SocketAddr>,
}

/// What became of the flows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// TCP connections that asked and were answered.
    pub tcp: u64,
    /// Datagrams that were answered.
    pub udp: u64,
    /// Flows that were refused.
    pub refused: u64,
    /// Flows without an answer.
    pub lost: u64,
    /// SYNs that the kernel had to send again.
    pub syns_again: u64,
    /// Answers on connections that last.
    pub exchanges: u64,
    /// Connections that lasted until the end.
    pub lasting: u64,
    /// New flows that were answered, by where they came from and how.
    pub answered: BTreeMap<Kind, u64>,
    /// Some of what failed.
    pub examples: Vec<String>,
}

/// Flows of one kind: the name of their origin, protocol, and whether they are IPv6.
pub type Kind = (&'static str, Protocol, bool);

impl Tally {
    /// All new flows.
    #[must_use]
    pub fn flows(&self) -> u64 {
        self.tcp + self.udp + self.refused + self.lost
    }

    /// What failed, in whatever way.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.refused + self.lost + self.syns_again
    }
}

/// Running flows.
#[derive(Debug)]
pub struct Flood {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    started: Instant,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    flows: AtomicU64,
    tally: Mutex<Tally>,
}

enum Outcome {
    Answered(Kind),
    Failed(io::Error),
}

impl Flood {
    /// From each origin so many new flows a second, half of them TCP, and so many connections that last.
    ///
    /// # Errors
    /// When a thread cannot be had.
    pub fn start(origins: Vec<Origin>, rate: u32, lasting: usize) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let threads = origins.into_iter().map(|origin| {
            let shared = Arc::clone(&shared);
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let thread = thread::Builder::new().name(format!("flood from {}", origin.name));
            let run = move || {
                let namespace = Arc::clone(&origin.namespace);
                namespace.within(|| {
                    let before = syns_sent_again();
                    runtime.block_on(flows(&origin, rate, lasting, &shared));
                    shared.tally().syns_again += syns_sent_again() - before;
                });
            };
            thread.spawn(run).context("a thread for flows")
        });
        let threads = threads.collect::<Result<_>>()?;
        Ok(Self { shared, threads, started: Instant::now() })
    }

    /// How many new flows there were so far.
    #[must_use]
    pub fn flows(&self) -> u64 {
        self.shared.flows.load(Ordering::Relaxed)
    }

    /// Since when it runs.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Lets the last flows be answered, and says what became of all.
    #[must_use]
    pub fn stop(mut self) -> Tally {
        self.end();
        self.shared.tally().clone()
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // It only panics if we have done so.
            thread.join().ok();
        }
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn tally(&self) -> std::sync::MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, what: &str, outcome: Outcome) {
        let mut tally = self.tally();
        match outcome {
            Outcome::Answered(kind) => {
                match kind.1 {
                    Protocol::Udp => tally.udp += 1,
                    _ => tally.tcp += 1,
                }
                *tally.answered.entry(kind).or_default() += 1;
            }
            Outcome::Failed(error) => {
                match error.kind() {
                    io::ErrorKind::TimedOut => tally.lost += 1,
                    _ => tally.refused += 1,
                }
                if tally.examples.len() < EXAMPLES {
                    tally.examples.push(format!("{what}: {error}"));
                }
            }
        }
    }
}

async fn flows(origin: &Origin, rate: u32, lasting: usize, shared: &Arc<Shared>) {
    let mut tasks = tokio::task::JoinSet::new();
    for target in origin.targets.iter().cycle().take(lasting) {
        tasks.spawn(last(origin.name, *target, Arc::clone(shared)));
    }
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut targets = origin.targets.iter().copied().cycle();
    let mut ports = PORTS.cycle();
    let (mut since, mut due) = (Instant::now(), 0.0);
    while !shared.stopped() {
        ticks.tick().await;
        due += f64::from(rate)
            * std::mem::replace(&mut since, Instant::now()).elapsed().min(ARREARS).as_secs_f64();
        while due >= 2.0
            && let (Some(target), Some(port)) = (targets.next(), ports.next())
        {
            due -= 2.0;
            shared.flows.fetch_add(2, Ordering::Relaxed);
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let (name, shared) = (origin.name, Arc::clone(shared));
                tasks.spawn(async move {
                    let asked = async {
                        match protocol {
                            Protocol::Udp => datagram(target, port).await,
                            _ => connection(target).await,
                        }
                    };
                    let outcome = match timeout(PATIENCE, asked).await {
                        Ok(Ok(())) => Outcome::Answered((name, protocol, target.is_ipv6())),
                        Ok(Err(error)) => Outcome::Failed(error),
                        Err(_) => Outcome::Failed(io::ErrorKind::TimedOut.into()),
                    };
                    shared.count(&format!("{protocol} from {name} to {target}"), outcome);
                });
            }
        }
        while tasks.try_join_next().is_some() {}
    }
    while tasks.join_next().await.is_some() {}
}

async fn connection(target: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect(target).await?;
    // Closed by a reset: a port that rests for a minute could not be used again.
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    ask(&mut stream).await
}

async fn ask(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(QUESTION).await?;
    let mut answer = [0; QUESTION.len()];
    stream.read_exact(&mut answer).await.map(|_| ())
}

async fn datagram(target: SocketAddr, port: u16) -> io::Result<()> {
    let any: IpAddr = match target {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, port)).await?;
    socket.connect(target).await?;
    socket.send(QUESTION).await?;
    socket.recv(&mut [0; QUESTION.len()]).await.map(|_| ())
}

/// Asks on one connection until the end.
async fn last(name: &'static str, target: SocketAddr, shared: Arc<Shared>) {
    let lasting = async {
        let mut stream = TcpStream::connect(target).await?;
        stream.set_nodelay(true)?;
        while !shared.stopped() {
            timeout(2 * PATIENCE, ask(&mut stream)).await.map_err(io::Error::from)??;
            shared.tally().exchanges += 1;
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    };
    match lasting.await {
        Ok(()) => shared.tally().lasting += 1,
        Err(error) => shared.count(&format!("lasting from {name} to {target}"), Outcome::Failed(error)),
    }
}

/// SYNs that were sent again in this thread's namespace so far.
fn syns_sent_again() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/net/netstat").unwrap_or_default();
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
    let (Some(names), Some(values)) = (lines.next(), lines.next()) else { return 0 };
    let all: BTreeMap<&str, &str> = names.split(' ').zip(values.split(' ')).collect();
    all.get("TCPSynRetrans").and_then(|value| value.parse().ok()).unwrap_or(0)
}
