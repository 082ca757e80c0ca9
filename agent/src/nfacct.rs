//! Packet counters that rules name (`-m nfacct`), and that are read when somebody asks (spec/kube-proxy.md §3.14).
//!
//! A rule that names a counter is refused while there is none, so [`ensure`] comes before the rules. Like kube-proxy's,
//! they stay when the program ends.

use std::ffi::CString;
use std::fmt;
use std::io::{self, ErrorKind};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::registry::Registry;

use crate::netlink::{Attributes, Mode, Netfilter, Request, attributes};

/// Counts what the rule against packets of no known connection drops.
pub const INVALID_DROPPED: &str = "ct_state_invalid_dropped_pkts";
/// Counts connections to node ports at loopback addresses.
pub const LOCALHOST_ACCEPTED: &str = "localhost_nps_accepted_pkts";

const SUBSYSTEM: u8 = 7;
const NEW: u8 = 0;
const GET: u8 = 1;
const NAME: u16 = 1;
const PACKETS: u16 = 2;

/// Makes both counters, where there are none yet. Whether rules may name them.
pub fn ensure() -> bool {
    let made = [INVALID_DROPPED, LOCALHOST_ACCEPTED].iter().try_for_each(|name| create(name));
    if let Err(e) = &made {
        tracing::info!(error = %e, "the kernel has no packet counters (nfnetlink_acct); rules do without");
    }
    made.is_ok()
}

/// Registers a series for each counter.
pub fn register(registry: &mut Registry) {
    registry.register_collector(Box::new(Counters));
}

/// What a counter has counted; `None`: it is not there.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn packets(name: &str) -> io::Result<Option<u64>> {
    let mut packets = None;
    let answer = Netfilter::open()?.exchange(&[request(GET, Mode::Act, name)?], |bytes| {
        let value = attributes(bytes).find(|(kind, _)| *kind == PACKETS).map(|(_, value)| value);
        packets = value.and_then(|value| value.try_into().ok()).map(u64::from_be_bytes);
    })?;
    match answer.refused.into_iter().next() {
        Some(e) if e.kind() != ErrorKind::NotFound => Err(e),
        _ => Ok(packets),
    }
}

fn create(name: &str) -> io::Result<()> {
    let answer = Netfilter::open()?.exchange(&[request(NEW, Mode::Create, name)?], |_| ())?;
    match answer.refused.into_iter().next() {
        Some(e) if e.kind() != ErrorKind::AlreadyExists => Err(e),
        _ => Ok(()),
    }
}

fn request(command: u8, mode: Mode, name: &str) -> io::Result<Request> {
    let attributes = Attributes::default().with(NAME, CString::new(name)?.as_bytes_with_nul());
    Ok(Request { subsystem: SUBSYSTEM, command, mode, family: 0, attributes })
}

/// Asks the kernel when it is asked itself.
#[derive(Debug)]
struct Counters;

impl Collector for Counters {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let series = [
            (INVALID_DROPPED, "ct_state_invalid_dropped", "Packets of no known connection that were dropped"),
            (
                LOCALHOST_ACCEPTED,
                "localhost_nodeports_accepted",
                "Connections to node ports at loopback addresses",
            ),
        ];
        for (name, series, help) in series {
            let count = match packets(name) {
                Ok(Some(count)) => count,
                Ok(None) => {
                    tracing::warn!(name, "the packet counter is gone");
                    continue;
                }
                Err(e) => {
                    tracing::warn!(name, error = %e, "the packet counter cannot be read");
                    continue;
                }
            };
            let series = format!("kubeproxy_iptables_{series}_packets");
            let counter = ConstCounter::new(count);
            counter.encode(encoder.encode_descriptor(&series, help, None, counter.metric_type())?)?;
        }
        Ok(())
    }
}
