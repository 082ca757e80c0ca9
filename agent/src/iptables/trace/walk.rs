//! A packet's way through the chains. Dice split it: every way is gone, with its probability.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use distributary_model::Name;

use super::super::parse::Table;
use super::chain::Chain;
use super::condition::Condition;
use super::rule::{Action, Rule};
use super::{Fate, From, Host, Packet, Rules};

/// The kernel has no chains that jump deeper, or in a circle; a dump might.
const DEEPEST: usize = 64;

/// What becomes of a packet on the way.
#[derive(Clone, Debug)]
pub(super) struct State {
    pub(super) destination: IpAddr,
    pub(super) port: u16,
    pub(super) translated: bool,
    pub(super) mark: u32,
    masqueraded: bool,
    accepted: bool,
    /// That the client was put into.
    list: Option<Name>,
    chance: f64,
}

/// What a condition sees.
#[derive(Clone, Copy)]
pub(super) struct Sight<'a> {
    pub(super) packet: &'a Packet,
    pub(super) host: &'a Host,
    pub(super) state: &'a State,
    /// Empty: none, or one that no rule names.
    pub(super) input: &'a str,
    /// `None`: it is not known.
    pub(super) output: Option<&'a str>,
}

enum End {
    /// Back to where it came from.
    Fell(State),
    /// The table is done with it.
    Passed(State),
    Refused(Name),
}

pub(super) struct Walk<'a> {
    rules: &'a Rules,
    host: &'a Host,
    packet: &'a Packet,
    input: &'a str,
    output: Option<&'a str>,
    fate: Fate,
}

impl<'a> Walk<'a> {
    pub(super) fn new(rules: &'a Rules, host: &'a Host, packet: &'a Packet) -> Self {
        Self { rules, host, packet, input: "", output: None, fate: Fate::default() }
    }

    pub(super) fn fate(mut self) -> Fate {
        let &Packet { destination, port, .. } = self.packet;
        let start = State {
            destination,
            port,
            translated: false,
            mark: 0,
            masqueraded: false,
            accepted: false,
            list: None,
            chance: 1.0,
        };
        let ends = match &self.packet.from {
            From::Host => self.sent(start),
            From::Elsewhere => self.received(start),
            From::Interface(name) => {
                self.input = name;
                self.received(start)
            }
        };
        self.end(ends)
    }

    /// From a process of this host: to another host, or by loopback back to this one.
    fn sent(&mut self, start: State) -> Vec<State> {
        let states = self.hook(Table::Nat, "OUTPUT", vec![start]);
        let (local, remote) = self.split(states);
        let mut ends = Vec::new();
        for (states, output) in [(local, Some("lo")), (remote, None)] {
            (self.input, self.output) = ("", output);
            let states = self.hook(Table::Filter, "OUTPUT", states);
            let states = self.hook(Table::Nat, "POSTROUTING", states);
            if output.is_none() {
                ends.extend(states);
                continue;
            }
            (self.input, self.output) = ("lo", Some(""));
            ends.extend(self.hook(Table::Filter, "INPUT", states));
        }
        ends
    }

    fn received(&mut self, start: State) -> Vec<State> {
        self.output = Some("");
        let states = self.hook(Table::Nat, "PREROUTING", vec![start]);
        let (local, remote) = self.split(states);
        let local = self.hook(Table::Filter, "INPUT", local);
        let mut ends = self.hook(Table::Nat, "INPUT", local);
        self.output = None;
        let remote = self.hook(Table::Filter, "FORWARD", remote);
        ends.extend(self.hook(Table::Nat, "POSTROUTING", remote));
        ends
    }

    fn split(&self, states: Vec<State>) -> (Vec<State>, Vec<State>) {
        states.into_iter().partition(|state| self.host.has(state.destination))
    }

    /// Through a built-in chain; what is refused ends here.
    fn hook(&mut self, table: Table, name: &'static str, states: Vec<State>) -> Vec<State> {
        let rules = self.rules;
        let Some(chain) = rules.chain(table, name) else { return states };
        let mut passed = Vec::new();
        for state in states {
            for end in self.chain(chain, state, DEEPEST) {
                let refused = match end {
                    End::Fell(_) if chain.drops => "DROP".into(),
                    End::Fell(state) => {
                        passed.push(state);
                        continue;
                    }
                    End::Passed(state) => {
                        let accepted = state.accepted || table == Table::Filter;
                        passed.push(State { accepted, ..state });
                        continue;
                    }
                    End::Refused(how) => how,
                };
                self.fate.refused.get_or_insert_with(|| refused.to_string());
                self.fate.refused_in.get_or_insert(name);
            }
        }
        passed
    }

    fn chain(&mut self, chain: &'a Chain, start: State, depth: usize) -> Vec<End> {
        let mut ends = Vec::new();
        // In a chain nothing changes the destination and goes on.
        let rules = chain.rules(start.destination, start.port);
        let mut here = vec![start];
        for rule in rules {
            if here.is_empty() {
                break;
            }
            for state in std::mem::take(&mut here) {
                let chance = self.chance(rule, &state);
                if chance < 1.0 {
                    here.push(State { chance: state.chance * (1.0 - chance), ..state.clone() });
                }
                if chance > 0.0 {
                    let state = State { chance: state.chance * chance, ..state };
                    self.act(rule, state, &mut here, &mut ends, depth);
                }
            }
        }
        ends.extend(here.into_iter().map(End::Fell));
        ends
    }

    /// How probable it is that a rule that is understood matches.
    fn chance(&mut self, rule: &Rule, state: &State) -> f64 {
        let sight =
            Sight { packet: self.packet, host: self.host, state, input: self.input, output: self.output };
        let (mut chance, mut known) = (1.0, !rule.unknown);
        for condition in &rule.conditions {
            match condition.holds(&sight) {
                Some(0.0) => return 0.0,
                Some(one) => chance *= one,
                None => known = false,
            }
        }
        if known {
            return chance;
        }
        let text = || rule.text.as_deref().unwrap_or_default().to_owned();
        self.fate.unknown.get_or_insert_with(text);
        0.0
    }

    fn act(
        &mut self,
        rule: &Rule,
        mut state: State,
        here: &mut Vec<State>,
        ends: &mut Vec<End>,
        depth: usize,
    ) {
        if let Some(list) = rule.conditions.iter().find_map(Condition::remembers) {
            state.list = Some(list.clone());
        }
        match &rule.action {
            Action::Nothing => here.push(state),
            Action::Mark { value, mask } => {
                state.mark = state.mark & !mask ^ value;
                here.push(state);
            }
            Action::Return => ends.push(End::Fell(state)),
            Action::Accept => ends.push(End::Passed(state)),
            Action::Refuse(how) => ends.push(End::Refused(how.clone())),
            Action::Masquerade => ends.push(End::Passed(State { masqueraded: true, ..state })),
            Action::Translate(to, port) => {
                let port = port.unwrap_or(state.port);
                ends.push(End::Passed(State { destination: *to, port, translated: true, ..state }));
            }
            Action::Goto(to) => ends.extend(self.below(*to, state, depth)),
            Action::Jump(to) => {
                for end in self.below(*to, state, depth) {
                    match end {
                        End::Fell(state) => here.push(state),
                        end => ends.push(end),
                    }
                }
            }
        }
    }

    fn below(&mut self, to: usize, state: State, depth: usize) -> Vec<End> {
        let rules = self.rules;
        match rules.chains.get(to) {
            Some(chain) if depth > 0 => self.chain(chain, state, depth - 1),
            _ => {
                self.fate.unknown.get_or_insert_with(|| "chains that jump too deep".into());
                vec![End::Fell(state)]
            }
        }
    }

    /// Same ends are one.
    fn end(mut self, states: Vec<State>) -> Fate {
        let mut to: BTreeMap<(SocketAddr, bool), f64> = BTreeMap::new();
        for state in states {
            self.fate.accepted += if state.accepted { state.chance } else { 0.0 };
            if !state.translated {
                self.fate.left_alone += state.chance;
                continue;
            }
            let endpoint = SocketAddr::new(state.destination, state.port);
            *to.entry((endpoint, state.masqueraded)).or_default() += state.chance;
            self.fate.lists.extend(state.list.map(|list| (endpoint, list)));
        }
        let to = to.into_iter().map(|((endpoint, masqueraded), chance)| (endpoint, chance, masqueraded));
        self.fate.to = to.collect();
        self.fate
    }
}
