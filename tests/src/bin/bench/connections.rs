//! What a new connection costs in the kernel: SYNs from fresh sources, sent from inside the node, by CPU time.
//!
//! Every packet makes a conntrack entry, runs through the OUTPUT hook's nat rules and leaves by a link that nobody
//! answers on. The cost of all that is in the figure, so only differences between targets mean anything; targets are
//! interleaved, and the least of all rounds is taken.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use distributary_e2e::netns::Namespace;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::node::Node;
use distributary_e2e::figures::Samples;

const ROUNDS: usize = 9;
const PACKETS: u32 = 8192;
const LENGTH: usize = 40;
/// `IPPROTO_RAW`: the IP header is ours.
const RAW: i32 = 255;

/// Where to, in which namespace.
#[derive(Debug)]
pub(crate) struct Target {
    socket: Socket,
    namespace: Arc<Namespace>,
    address: Ipv4Addr,
    /// Microseconds of CPU a packet.
    pub(crate) samples: Samples,
}

impl Target {
    fn new(node: &Node, address: Ipv4Addr) -> Result<Self> {
        let open = || Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(RAW)));
        let socket = node.namespace.within(open).context("a raw socket")?;
        socket.set_send_buffer_size(4 << 20)?;
        Ok(Self { socket, namespace: Arc::clone(&node.namespace), address, samples: Samples::default() })
    }

    /// The first and the last service in the order of the rules, and an address that is no service's.
    pub(crate) fn of(node: &Node) -> Result<[Self; 3]> {
        let saved = node.tool("iptables-nft-save", &["-t", "nat"])?;
        let dispatches = saved.lines().filter(|line| {
            line.starts_with("-A KUBE-S") && line.contains("-j KUBE-SVC-") && line.contains("--dport 80 ")
        });
        let addresses: Vec<Ipv4Addr> = dispatches
            .filter_map(|line| line.split_once(" -d ")?.1.split_once("/32 ")?.0.parse().ok())
            .collect();
        let (first, last) = addresses.first().zip(addresses.last()).context("the kernel has no services")?;
        Ok([Self::new(node, *first)?, Self::new(node, *last)?, Self::new(node, Ipv4Addr::new(10, 0, 0, 1))?])
    }

    fn round(&mut self, fresh: &mut u32) -> Result<f64> {
        let to = SockAddr::from(SocketAddr::V4(SocketAddrV4::new(self.address, 0)));
        let mut packet = syn(self.address);
        let began = cpu()?;
        for _ in 0..PACKETS {
            *fresh = fresh.wrapping_add(1);
            // 10.244.192.0/18: a pod's address, so nothing is masqueraded.
            let [_, high, low, port] = fresh.to_be_bytes();
            packet[12..16].copy_from_slice(&[10, 244, 192 | (high & 63), low]);
            packet[20..22].copy_from_slice(&[40, port]);
            self.socket.send_to(&packet, &to).context("send a SYN")?;
        }
        Ok((cpu()? - began) / f64::from(PACKETS))
    }
}

/// Measures all targets in turns.
pub(crate) async fn measure(targets: &mut [&mut Target]) -> Result<()> {
    let mut fresh = 0;
    for _ in 0..ROUNDS {
        for target in targets.iter_mut() {
            let flush = || distributary_e2e::process::run(std::process::Command::new("conntrack").arg("-F"));
            target.namespace.within(flush)?;
            // The packets of the round before are dropped behind the link.
            tokio::time::sleep(Duration::from_millis(5)).await;
            let micros = target.round(&mut fresh)?;
            target.samples.push(micros);
        }
    }
    Ok(())
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
