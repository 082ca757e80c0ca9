//! What becomes of packets.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use std::{panic, thread};

use distributary_e2e::topology::{GATEWAY, NODE, NODE_INSIDE, Pod};
use distributary_e2e::traffic::{Client, Failure, Protocol, Reply};

use crate::stage::{FABRIC_NAME, SELF_NAME, Stage};

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict<'a> {
    /// It reaches one of these, all of them in turn, and comes with the client's address.
    Kept(&'a [&'a str]),
    /// It reaches one of these, all of them in turn, and comes from an address of the node.
    Masqueraded(&'a [&'a str]),
    /// The client is told: port unreachable.
    Rejected,
    /// The client hears nothing.
    Dropped,
    /// No rule takes it: it leaves the node as it came, or gets to a socket of the node.
    Untouched,
}

/// So often is asked for one answer that stays the same, at least.
const AGAIN: usize = 6;
/// So often is asked for answers of all, at most.
const MOST: usize = 120;

impl Stage {
    /// Connects by TCP, in both families.
    #[track_caller]
    pub(crate) fn check(&self, who: &Pod, targets: [SocketAddr; 2], verdict: Verdict<'_>) {
        self.check_by(Protocol::Tcp, who, targets, verdict);
    }

    #[track_caller]
    pub(crate) fn check_by(
        &self,
        protocol: Protocol,
        who: &Pod,
        targets: [SocketAddr; 2],
        verdict: Verdict<'_>,
    ) {
        // Side by side, since silence takes its time.
        thread::scope(|scope| {
            let v6 = scope.spawn(|| self.check_one(protocol, who, targets[1], verdict));
            self.check_one(protocol, who, targets[0], verdict);
            v6.join().unwrap_or_else(|cause| panic::resume_unwind(cause));
        });
    }

    /// Connects in the family of the target.
    #[track_caller]
    pub(crate) fn check_one(&self, protocol: Protocol, who: &Pod, target: SocketAddr, verdict: Verdict<'_>) {
        let client = who.client_for(target.ip());
        let source = who.addresses.both()[usize::from(target.is_ipv6())];
        if let Err(seen) = self.look(&client, source, protocol, target, verdict) {
            panic!(
                "{:?}: {} to {protocol} {target}: wanted {verdict:?}, but {seen}\n{}\n{}",
                self.subject,
                who.name,
                self.rules(""),
                self.logs()
            );
        }
    }

    fn look(
        &self,
        client: &Client,
        source: IpAddr,
        protocol: Protocol,
        target: SocketAddr,
        verdict: Verdict<'_>,
    ) -> Result<(), String> {
        let ask = |timeout| client.with_timeout(Duration::from_millis(timeout)).ask(protocol, target);
        let untouched =
            [if target.ip() == source || self.is_own(target.ip()) { SELF_NAME } else { FABRIC_NAME }];
        let (names, masqueraded) = match verdict {
            Verdict::Kept(names) => (names, false),
            Verdict::Masqueraded(names) => (names, true),
            Verdict::Untouched => (&untouched[..], false),
            Verdict::Rejected => return is(ask(5000), &Failure::Refused),
            Verdict::Dropped => return is(ask(400), &Failure::Timeout),
        };
        let mut missing: BTreeSet<&str> = names.iter().copied().collect();
        for count in 0..MOST {
            if missing.is_empty() && (names.len() > 1 || count >= AGAIN) {
                return Ok(());
            }
            let reply = ask(5000).map_err(|failure| format!("after {count} answers {failure:?}"))?;
            let from = reply.seen_source.ip();
            let right = if masqueraded { self.is_own(from) && from != source } else { from == source };
            if !right || !names.contains(&reply.who.as_str()) {
                return Err(format!("{} sees {from}", reply.who));
            }
            missing.remove(reply.who.as_str());
        }
        Err(format!("{missing:?} never answered"))
    }

    /// Whether an address is the node's.
    pub(crate) fn is_own(&self, address: IpAddr) -> bool {
        address.is_loopback()
            || [NODE, NODE_INSIDE, GATEWAY, self.h.addresses, self.h2.addresses]
                .iter()
                .any(|own| own.both().contains(&address))
    }

    /// Who answers on a new connection, IPv4 or IPv6.
    pub(crate) fn who(&self, who: &Pod, target: SocketAddr) -> String {
        let answer = who.client_for(target.ip()).ask(Protocol::Tcp, target);
        answer
            .unwrap_or_else(|failure| panic!("{} to {target}: {failure:?}\n{}", who.name, self.rules("")))
            .who
    }
}

fn is(answer: Result<Reply, Failure>, wanted: &Failure) -> Result<(), String> {
    match answer {
        Err(failure) if failure == *wanted => Ok(()),
        other => Err(format!("{other:?}")),
    }
}
