//! What the rules are told of the node, and the wait for what they cannot be made without.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use distributary_model::NodeView;
use tokio::sync::watch;

use super::{Backend, Ruleset};
use crate::node::{Facts, Missing};
use crate::plan::{Family, NodeState};

/// So long it is normal that something is missing.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often it is said again.
const REMINDER: Duration = Duration::from_secs(300);

/// What the rules of every family were told.
pub type NodeStates = BTreeMap<Family, NodeState>;

/// What is known of the node.
#[derive(Debug)]
pub(super) struct Knowledge {
    facts: Facts,
    told: watch::Sender<NodeStates>,
    /// Since when something is missing, what, and when that is said next.
    missing: Option<(Instant, Missing, Instant)>,
}

/// What telling the rules led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// The node is another to some of them.
    News,
    /// Nothing is new to them.
    Nothing,
    /// They do not know enough to be written.
    NotEnough,
}

impl Knowledge {
    pub(super) fn new(facts: Facts) -> Self {
        Self { facts, told: watch::Sender::new(NodeStates::new()), missing: None }
    }

    /// What the rules were told, from now on.
    pub(super) fn told(&self) -> watch::Receiver<NodeStates> {
        self.told.subscribe()
    }

    pub(super) fn node(&mut self, node: Option<NodeView>) {
        self.facts.set_node(node);
    }

    pub(super) fn addresses(&mut self, addresses: BTreeSet<IpAddr>) {
        self.facts.set_addresses(addresses);
    }

    /// Tells the rules what the node has become. Who knew enough once goes on with that.
    pub(super) fn tell<B: Backend>(&mut self, rulesets: &mut [Ruleset<B>], now: Instant) -> Told {
        let states: Result<NodeStates, Missing> =
            rulesets.iter().map(|one| Ok((one.family(), self.facts.state(one.family())?))).collect();
        let states = match states {
            Ok(states) => states,
            Err(missing) => {
                let (since, next) =
                    self.missing.take().map_or((now, now + PATIENCE), |(since, _, next)| (since, next));
                self.missing = Some((since, missing, next));
                return if self.told.borrow().is_empty() { Told::NotEnough } else { Told::Nothing };
            }
        };
        self.missing = None;
        let changed = self.told.send_if_modified(|told| {
            let changed = *told != states;
            told.clone_from(&states);
            changed
        });
        for ruleset in rulesets {
            if let Some(state) = states.get(&ruleset.family()) {
                ruleset.set_node(state.clone());
            }
        }
        if changed { Told::News } else { Told::Nothing }
    }

    /// When it is to be [said](Self::complain) what is missing.
    pub(super) fn next_complaint(&self) -> Option<Instant> {
        self.missing.as_ref().map(|(_, _, next)| *next)
    }

    /// Says what is missing, and since when.
    pub(super) fn complain(&mut self, now: Instant) {
        let nothing = self.told.borrow().is_empty();
        let Some((since, missing, next)) = &mut self.missing else { return };
        *next = now + REMINDER;
        let (error, seconds) = (missing.to_string(), now.duration_since(*since).as_secs());
        match nothing {
            true => tracing::error!(error, seconds, "nothing is programmed before that is known"),
            false => tracing::warn!(error, seconds, "what was known of the node before that counts"),
        }
    }
}
