//! What a packet costs in the kernel, by CPU time of the thread that sends it from inside the node: SYNs from fresh
//! sources, which run through the OUTPUT hook's nat rules and leave by a link that nobody answers on, and datagrams of
//! one flow to the node itself, which meet the rules that no connection saves a packet from.
//!
//! The cost of sending and of conntrack is in the figures, so only differences mean anything; targets are interleaved,
//! and the least of all rounds is taken.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use distributary_e2e::figures::Samples;
use distributary_e2e::netns::Namespace;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::backend::Tools;
use super::load::ECHO_PORT;
use super::node::{NODE_ADDRESS, Node};

const ROUNDS: usize = 9;
const PACKETS: u32 = 8192;
const LENGTH: usize = 40;
/// `IPPROTO_RAW`: the IP header is ours.
const RAW: i32 = 255;
/// An address that is no service's.
pub(crate) const NOBODY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

/// What is sent, and where.
#[derive(Debug)]
pub(crate) struct Target {
    name: &'static str,
    namespace: Arc<Namespace>,
    packets: Packets,
    /// Microseconds of CPU a packet.
    samples: Samples,
}

#[derive(Debug)]
enum Packets {
    /// New connections.
    Syns { socket: Socket, to: Ipv4Addr },
    /// One flow through a Service that the node itself serves.
    Flow { client: UdpSocket, server: UdpSocket },
}

/// All targets of one node.
#[derive(Debug)]
pub(crate) struct Targets(Vec<Target>);

impl Targets {
    /// New connections to these addresses, by name.
    pub(crate) fn new(node: &Node, to: &[(&'static str, Ipv4Addr)]) -> Result<Self> {
        let target = |&(name, to): &(&'static str, Ipv4Addr)| {
            let open = || Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(RAW)));
            let socket = node.namespace.within(open).context("a raw socket")?;
            socket.set_send_buffer_size(4 << 20)?;
            Ok(Target::new(node, name, Packets::Syns { socket, to }))
        };
        to.iter().map(target).collect::<Result<_>>().map(Self)
    }

    /// The first, the median and the last of these services in the order of the rules, where they have one; and an address that
    /// is no service's.
    pub(crate) fn of_services(node: &Node, tools: Option<Tools>, services: &[Ipv4Addr]) -> Result<Self> {
        let in_order = match tools {
            Some(tools) => dispatched(&node.tool(tools.save, &["-t", "nat"])?),
            None => services.to_vec(),
        };
        let order: Vec<Ipv4Addr> =
            in_order.into_iter().filter(|address| services.binary_search(address).is_ok()).collect();
        ensure!(
            order.len() >= services.len(),
            "the kernel has {} of {} services",
            order.len(),
            services.len()
        );
        let [first, median, last] =
            [0, order.len() / 2, order.len().saturating_sub(1)].map(|at| order.get(at));
        let at = |address: Option<&Ipv4Addr>| address.copied().context("the kernel has no services");
        Self::new(
            node,
            &[("first", at(first)?), ("median", at(median)?), ("last", at(last)?), ("no service's", NOBODY)],
        )
    }

    /// And a flow through the Service with that address, which the node itself serves.
    pub(crate) fn and_flow(mut self, node: &Node, service: Ipv4Addr) -> Result<Self> {
        let open = || {
            let server = UdpSocket::bind((NODE_ADDRESS, ECHO_PORT)).context("the node's server")?;
            let client = UdpSocket::bind((NODE_ADDRESS, 0))?;
            client.connect((service, ECHO_PORT))?;
            for socket in [&server, &client] {
                socket.set_read_timeout(Some(Duration::from_secs(1)))?;
            }
            anyhow::Ok(Packets::Flow { client, server })
        };
        let flow = node.namespace.within(open)?;
        self.0.push(Target::new(node, "established", flow));
        Ok(self)
    }

    /// What a packet to that target costs, in microseconds.
    pub(crate) fn micros(&self, name: &str) -> Option<f64> {
        let target = self.0.iter().find(|target| target.name == name)?;
        (!target.samples.is_empty()).then(|| target.samples.least())
    }
}

impl fmt::Display for Targets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let told = self.0.iter().map(|target| format!("{} {:.1}", target.name, target.samples.least()));
        write!(f, "{} µs", told.collect::<Vec<_>>().join(", "))
    }
}

impl Target {
    fn new(node: &Node, name: &'static str, packets: Packets) -> Self {
        Self { name, namespace: Arc::clone(&node.namespace), packets, samples: Samples::default() }
    }

    fn round(&self, fresh: &mut u32) -> Result<f64> {
        match &self.packets {
            Packets::Syns { socket, to } => {
                let address = SockAddr::from(SocketAddr::V4(SocketAddrV4::new(*to, 0)));
                let mut packet = syn(*to);
                timed(|| {
                    *fresh = fresh.wrapping_add(1);
                    // 10.248.0.0/13: a pod's address, so nothing is masqueraded.
                    let [_, high, low, port] = fresh.to_be_bytes();
                    packet[12..16].copy_from_slice(&[10, 248 | (high >> 5), high, low]);
                    packet[20..22].copy_from_slice(&[40, port]);
                    socket.send_to(&packet, &address)
                })
            }
            Packets::Flow { client, server } => {
                establish(client, server).context("a flow through the service that the node serves")?;
                // Once the socket's buffer is full they go no further, which is after all rules.
                timed(|| client.send(&[0; 8]))
            }
        }
    }
}

/// An answer has been seen: the flow is established.
fn establish(client: &UdpSocket, server: &UdpSocket) -> Result<()> {
    let mut buffer = [0; 8];
    server.set_nonblocking(true)?;
    while server.recv(&mut buffer).is_ok() {}
    server.set_nonblocking(false)?;
    client.send(b"hello")?;
    let (_, from) = server.recv_from(&mut buffer).context("the question")?;
    server.send_to(b"hello", from)?;
    client.recv(&mut buffer).context("the answer")?;
    Ok(())
}

/// Microseconds of CPU for each of so many.
fn timed(mut send: impl FnMut() -> io::Result<usize>) -> Result<f64> {
    let began = cpu()?;
    for _ in 0..PACKETS {
        send().context("send a packet")?;
    }
    Ok((cpu()? - began) / f64::from(PACKETS))
}

/// Measures all targets in turns.
pub(crate) async fn measure(all: &mut [&mut Targets]) -> Result<()> {
    let mut fresh = 0;
    for _ in 0..ROUNDS {
        for target in all.iter_mut().flat_map(|targets| &mut targets.0) {
            let flush = || distributary_e2e::process::run(Command::new("conntrack").arg("-F"));
            target.namespace.within(flush)?;
            // The packets of the round before are dropped behind the link.
            tokio::time::sleep(Duration::from_millis(5)).await;
            let micros = target.round(&mut fresh)?;
            target.samples.push(micros);
        }
    }
    Ok(())
}

/// The addresses that lists of rules dispatch by, in their order.
fn dispatched(saved: &str) -> Vec<Ipv4Addr> {
    let dispatches = saved.lines().filter(|line| {
        line.starts_with("-A KUBE-S") && line.contains("-j KUBE-SVC-") && line.contains("--dport 80 ")
    });
    dispatches.filter_map(|line| line.split_once(" -d ")?.1.split_once("/32 ")?.0.parse().ok()).collect()
}

/// IPv4 and TCP without options and checksums: nobody looks at those on the way out.
fn syn(to: Ipv4Addr) -> [u8; LENGTH] {
    let mut packet = [0; LENGTH];
    packet[0] = 0x45;
    packet[8] = 64;
    packet[9] = 6;
    packet[16..20].copy_from_slice(&to.octets());
    packet[22..24].copy_from_slice(&80_u16.to_be_bytes());
    packet[32] = 5 << 4;
    packet[33] = 2;
    packet[35] = 255;
    packet
}

/// Microseconds of CPU that this process has had.
fn cpu() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    Ok((usage.user_time().num_microseconds() + usage.system_time().num_microseconds()) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_that_of_the_rules() {
        let saved = "-A KUBE-SERVICES -d 10.96.0.9/32 -p tcp -m tcp --dport 80 -j KUBE-SVC-A\n\
                     -A KUBE-SVC-A ! -s 10.128.0.0/9 -d 10.96.0.9/32 -p tcp -m tcp --dport 80 -j KUBE-MARK-MASQ\n\
                     -A KUBE-SERVICES -d 10.96.0.2/32 -p tcp -m tcp --dport 80 -j KUBE-SVC-B\n\
                     -A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m tcp --dport 443 -j KUBE-SVC-C\n";
        assert_eq!(dispatched(saved), [Ipv4Addr::new(10, 96, 0, 9), Ipv4Addr::new(10, 96, 0, 2)]);
    }
}
