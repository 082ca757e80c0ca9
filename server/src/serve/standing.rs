//! For how long a stream's agent is who it has proven to be.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use distributary_model::codec::message;
use distributary_proto::v1::{Drain, server_message};
use tonic::Code;

use crate::auth::{By, Identity, LEEWAY, Proof};
use crate::journal::Journal;

/// An agent whose proof has run out is asked to go within this, and has to be gone when the grace has passed.
const SLOT: Duration = Duration::from_secs(30);
const GRACE: Duration = Duration::from_secs(LEEWAY);
/// Clocks cannot say every second that a token can: this one is in the year 9999.
const FAR: u64 = 253_370_764_800;

/// How a stream's agent stands.
#[derive(Debug)]
pub(super) struct Standing {
    proof: Proof,
    /// The node that the agent speaks for.
    node: Option<String>,
    /// When the proof runs out.
    expires: Option<Instant>,
    drained: bool,
    /// How far the Nodes had changed when it was last looked whether the agent's is there.
    seen: Option<u64>,
}

/// What comes of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// The stream goes on.
    Stands,
    /// The agent is to be told to go.
    Drain(Bytes),
    /// The stream ends.
    Falls(Code, String),
}

impl Standing {
    pub(super) fn new(proof: Proof) -> Self {
        let expires = expiry(&proof);
        Self { proof, node: None, expires, drained: false, seen: None }
    }

    /// Whether the agent may speak for a node, which it does from now on.
    pub(super) fn speaks_for(&mut self, node: &str) -> Result<(), String> {
        if let Proof::Of(identity) = &self.proof {
            identity.covers(node)?;
        }
        self.node = Some(node.to_owned());
        Ok(())
    }

    /// Goes on with what was proven anew.
    pub(super) fn renew(&mut self, identity: Identity) -> Result<(), String> {
        if !matches!(self.proof, Proof::Of(Identity { by: By::Token, .. })) {
            return Err("it has not shown a token before".to_owned());
        }
        if let Some(node) = &self.node {
            identity.covers(node)?;
        }
        *self = Self { node: self.node.take(), ..Self::new(Proof::Of(identity)) };
        Ok(())
    }

    /// When [`Standing::next`] will say something else although no Node has changed.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        self.expires.map(|at| if self.drained || self.node.is_none() { at + GRACE } else { at })
    }

    pub(super) fn next(&mut self, journal: &Journal, now: Instant) -> Next {
        let Proof::Of(identity) = &self.proof else { return Next::Stands };
        if journal.listed() && self.seen != Some(journal.nodes_changed()) {
            self.seen = Some(journal.nodes_changed());
            if let Err(reason) = identity.lives(journal.cluster()) {
                return Next::Falls(Code::PermissionDenied, reason);
            }
        }
        match self.expires {
            Some(at) if at + GRACE <= now => {
                let reason = format!("its {} has run out, and it has shown no newer one", identity.by);
                Next::Falls(Code::Unauthenticated, reason)
            }
            Some(at) if at <= now && !self.drained && self.node.is_some() => {
                self.drained = true;
                Next::Drain(message(server_message::Message::Drain(Drain {
                    slot_millis: SLOT.mul_f64(fastrand::f64()).as_millis() as u64,
                    candidates: Vec::new(),
                    reason: format!("the agent's {} has run out", identity.by),
                })))
            }
            _ => Next::Stands,
        }
    }
}

/// By this process's clock; `None`: never.
fn expiry(proof: &Proof) -> Option<Instant> {
    let Proof::Of(identity) = proof else { return None };
    let now = Instant::now();
    match (UNIX_EPOCH + Duration::from_secs(identity.expires.min(FAR))).duration_since(SystemTime::now()) {
        Ok(left) => now.checked_add(left),
        Err(ago) => Some(now.checked_sub(ago.duration()).unwrap_or(now)),
    }
}

#[cfg(test)]
mod tests {
    use distributary_model::{Epoch, Name};

    use super::*;

    fn identity(node: &str, by: By, seconds: u64) -> Identity {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        Identity { node: Name::from(node), uid: None, expires: now + seconds, by }
    }

    fn journal() -> Journal {
        Journal::new(Epoch([1; 16]), "default".into(), 1 << 20, Instant::now())
    }

    #[test]
    fn who_runs_out_is_asked_to_go_and_then_made_to() {
        let (journal, now) = (journal(), Instant::now());
        let after = |seconds| now + Duration::from_secs(seconds);
        let mut standing = Standing::new(Proof::Of(identity("a", By::Token, 100)));
        standing.speaks_for("a").unwrap();
        assert_eq!(standing.next(&journal, after(90)), Next::Stands);
        assert!(standing.wake_at().unwrap() <= after(101));
        assert!(matches!(standing.next(&journal, after(101)), Next::Drain(_)));
        assert_eq!(standing.next(&journal, after(150)), Next::Stands);
        assert!(standing.wake_at().unwrap() > after(150));
        let reason = "its token has run out, and it has shown no newer one".to_owned();
        assert_eq!(standing.next(&journal, after(162)), Next::Falls(Code::Unauthenticated, reason));
    }

    #[test]
    fn a_newer_token_of_the_same_node_goes_on() {
        let (journal, now) = (journal(), Instant::now());
        let mut standing = Standing::new(Proof::Of(identity("a", By::Token, 10)));
        standing.speaks_for("a").unwrap();
        assert!(standing.renew(identity("b", By::Token, 1000)).is_err());
        assert!(matches!(standing.next(&journal, now + Duration::from_secs(11)), Next::Drain(_)));
        standing.renew(identity("a", By::Token, 1000)).unwrap();
        assert_eq!(standing.next(&journal, now + Duration::from_secs(500)), Next::Stands);
        assert!(matches!(standing.next(&journal, now + Duration::from_secs(1001)), Next::Drain(_)));
        let mut certified = Standing::new(Proof::Of(identity("a", By::Certificate, 10)));
        assert!(certified.renew(identity("a", By::Token, 1000)).is_err());
    }

    #[test]
    fn who_has_nothing_to_prove_stays() {
        let mut standing = Standing::new(Proof::Nothing);
        standing.speaks_for("a").unwrap();
        assert_eq!(standing.next(&journal(), Instant::now() + Duration::from_secs(1 << 30)), Next::Stands);
        assert_eq!(standing.wake_at(), None);
    }
}
