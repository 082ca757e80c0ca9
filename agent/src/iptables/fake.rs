//! A packet filter in memory: it takes restore text as the tools do, prints itself as they do, and says what becomes of
//! a packet. For tests.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use distributary_model::Protocol;
use ipnet::IpNet;

use super::parse::{Table, argument, words};

type Chains = BTreeMap<(Table, String), Vec<String>>;

/// The tables of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fake {
    chains: Chains,
    /// This host's addresses.
    pub addresses: BTreeSet<IpAddr>,
}

const BUILT_IN: [(Table, &[&str]); 3] = [
    (Table::Mangle, &["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"]),
    (Table::Filter, &["INPUT", "FORWARD", "OUTPUT"]),
    (Table::Nat, &["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"]),
];
const TARGETS: [&str; 7] = ["ACCEPT", "DROP", "RETURN", "REJECT", "DNAT", "MARK", "MASQUERADE"];

/// Where a packet comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// A process of this host.
    Host,
    /// A pod, or outside.
    Elsewhere,
}

/// The first packet of a connection.
#[derive(Clone, Debug)]
pub struct Packet {
    /// Whether nat sees it in OUTPUT or PREROUTING.
    pub from: From,
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Protocol.
    pub protocol: Protocol,
    /// Destination port.
    pub port: u16,
}

/// What becomes of a packet.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fate {
    /// Where it goes, how probable that is, and whether it is masqueraded.
    pub to: Vec<(SocketAddr, f64, bool)>,
    /// It is refused: REJECT or DROP. Else, if it goes nowhere either, it is left alone.
    pub refused: Option<String>,
}

#[derive(Clone, Debug)]
struct State {
    destination: IpAddr,
    port: u16,
    translated: bool,
    mark: u32,
    chance: f64,
}

enum End {
    Fell(State),
    Verdict(State, String),
}

impl Default for Fake {
    fn default() -> Self {
        let built_in = BUILT_IN.iter();
        let chains = built_in
            .flat_map(|(table, names)| names.iter().map(|name| ((*table, (*name).into()), Vec::new())));
        Self { chains: chains.collect(), addresses: BTreeSet::new() }
    }
}

impl Fake {
    /// The text's sections, each for [`Fake::restore`].
    pub fn sections(text: &str) -> Vec<String> {
        text.split_inclusive("COMMIT\n").map(str::to_owned).collect()
    }

    /// As `iptables-restore --noflush`: section after section, each whole or not at all.
    ///
    /// # Errors
    /// The first line that the kernel or the tool would refuse.
    pub fn restore(&mut self, text: &str) -> Result<(), String> {
        for section in Self::sections(text) {
            let mut chains = self.chains.clone();
            apply(&mut chains, &section)?;
            self.chains = chains;
        }
        Ok(())
    }

    /// As `iptables-save`.
    pub fn save(&self) -> String {
        let mut out = String::new();
        for (table, built_in) in BUILT_IN {
            out.extend(["*", table.as_str(), "\n"]);
            let chains = || self.chains.iter().filter(move |((of, _), _)| *of == table);
            for ((_, name), _) in chains() {
                let policy = if built_in.contains(&name.as_str()) { "ACCEPT" } else { "-" };
                out.extend([":", name, " ", policy, " [0:0]\n"]);
            }
            for ((_, name), rules) in chains() {
                rules.iter().for_each(|rule| out.extend(["-A ", name, " ", rule, "\n"]));
            }
            out.push_str("COMMIT\n");
        }
        out
    }

    /// How many chains there are that are not built in, and rules.
    pub fn size(&self) -> (usize, usize) {
        let built_in: usize = BUILT_IN.iter().map(|(_, names)| names.len()).sum();
        (self.chains.len() - built_in, self.chains.values().map(Vec::len).sum())
    }

    /// What becomes of a packet that is forwarded, or that this host sends.
    pub fn fate(&self, packet: &Packet) -> Fate {
        let (nat, filter) = match packet.from {
            From::Host => ("OUTPUT", &["OUTPUT"][..]),
            From::Elsewhere => ("PREROUTING", &["FORWARD", "INPUT"][..]),
        };
        let start = State {
            destination: packet.destination,
            port: packet.port,
            translated: false,
            mark: 0,
            chance: 1.0,
        };
        let mut fate = Fate::default();
        for end in self.run(Table::Nat, nat, packet, start) {
            let (End::Fell(mut state) | End::Verdict(mut state, _)) = end;
            let local = self.addresses.contains(&state.destination);
            let chain = if filter.len() > 1 && local { filter[1] } else { filter[0] };
            state = match self.run(Table::Filter, chain, packet, state).pop() {
                Some(End::Verdict(_, verdict)) if verdict != "ACCEPT" => {
                    fate.refused = Some(verdict);
                    continue;
                }
                Some(End::Fell(state) | End::Verdict(state, _)) => state,
                None => continue,
            };
            if !state.translated {
                continue;
            }
            let to = SocketAddr::new(state.destination, state.port);
            let chance = state.chance;
            let ends = self.run(Table::Nat, "POSTROUTING", packet, state);
            let masqueraded =
                ends.iter().any(|end| matches!(end, End::Verdict(_, what) if what == "MASQUERADE"));
            match fate.to.iter_mut().find(|(known, _, masked)| *known == to && *masked == masqueraded) {
                Some((_, sum, _)) => *sum += chance,
                None => fate.to.push((to, chance, masqueraded)),
            }
        }
        fate.to.sort_by_key(|(to, ..)| *to);
        fate
    }

    fn run(&self, table: Table, chain: &str, packet: &Packet, start: State) -> Vec<End> {
        let mut ends = Vec::new();
        let mut here = vec![start];
        let none = Vec::new();
        for rule in self.chains.get(&(table, chain.to_owned())).unwrap_or(&none) {
            let mut next = Vec::new();
            for state in here {
                let chance = self.matches(rule, packet, &state);
                if chance < 1.0 {
                    next.push(State { chance: state.chance * (1.0 - chance), ..state.clone() });
                }
                if chance > 0.0 {
                    let state = State { chance: state.chance * chance, ..state };
                    let target = argument(rule, "-j").map_or("", |(_, target)| target);
                    match target {
                        "" => next.push(state),
                        "MARK" => next.push(mark(rule, state)),
                        "RETURN" => ends.push(End::Fell(state)),
                        "DNAT" => ends.push(End::Verdict(translate(rule, state), "DNAT".into())),
                        verdict if TARGETS.contains(&verdict) => {
                            ends.push(End::Verdict(state, verdict.into()))
                        }
                        jump => {
                            for end in self.run(table, jump, packet, state) {
                                match end {
                                    End::Fell(state) => next.push(state),
                                    verdict => ends.push(verdict),
                                }
                            }
                        }
                    }
                }
            }
            here = next;
        }
        ends.extend(here.into_iter().map(End::Fell));
        ends
    }

    /// How probable it is that a rule matches.
    fn matches(&self, rule: &str, packet: &Packet, state: &State) -> f64 {
        let net = |flag, address: IpAddr| match argument(rule, flag) {
            Some((not, net)) => net.parse::<IpNet>().is_ok_and(|net| net.contains(&address)) != not,
            None => true,
        };
        let is = |flag, holds: &dyn Fn(&str) -> bool| match argument(rule, flag) {
            Some((not, value)) => holds(value) != not,
            None => true,
        };
        let fits = net("-s", packet.source)
            && net("-d", state.destination)
            && is("-p", &|value| value == packet.protocol.as_str())
            && is("--dport", &|value| ports(value, state.port))
            && is("--src-type", &|_| self.addresses.contains(&packet.source))
            && is("--dst-type", &|_| self.addresses.contains(&state.destination))
            && is("--mark", &|value| {
                let (value, mask) = value.split_once('/').unwrap_or((value, "0xffffffff"));
                state.mark & hex(mask) == hex(value)
            })
            && is("--bytecode", &|_| packet.source == state.destination)
            && is("--ctstate", &|states| {
                states.split(',').any(|one| one == "NEW" || (one == "DNAT" && state.translated))
            });
        match argument(rule, "--probability") {
            _ if !fits => 0.0,
            Some((_, chance)) => chance.parse().unwrap_or(0.0),
            None => 1.0,
        }
    }
}

fn ports(value: &str, port: u16) -> bool {
    let (first, last) = value.split_once(':').unwrap_or((value, value));
    first.parse().is_ok_and(|first: u16| first <= port) && last.parse().is_ok_and(|last: u16| port <= last)
}

fn hex(text: &str) -> u32 {
    u32::from_str_radix(text.trim_start_matches("0x"), 16).unwrap_or(0)
}

/// `--set-xmark VALUE/MASK`: zero the bits of the mask, then flip those of the value.
fn mark(rule: &str, mut state: State) -> State {
    if let Some((value, mask)) = argument(rule, "--set-xmark").and_then(|(_, mark)| mark.split_once('/')) {
        state.mark = state.mark & !hex(mask) ^ hex(value);
    }
    state
}

fn translate(rule: &str, state: State) -> State {
    let to = argument(rule, "--to-destination").and_then(|(_, to)| to.parse::<SocketAddr>().ok());
    match to {
        Some(to) => State { destination: to.ip(), port: to.port(), translated: true, ..state },
        None => state,
    }
}

fn apply(chains: &mut Chains, section: &str) -> Result<(), String> {
    let mut table = None;
    let mut seen_rules = false;
    for line in section.lines() {
        let refuse = |why: &str| Err(format!("{why}: {line}"));
        if let Some(name) = line.strip_prefix('*') {
            table = BUILT_IN.iter().map(|(table, _)| *table).find(|table| table.as_str() == name);
            continue;
        }
        let Some(table) = table else { return refuse("no table") };
        if line == "COMMIT" {
            return loops(chains, table);
        }
        if let Some(name) = line.strip_prefix(':') {
            if seen_rules {
                return refuse("late declaration");
            }
            let name = name.strip_suffix(" - [0:0]").ok_or_else(|| format!("bad declaration: {line}"))?;
            if name.len() > 28 {
                return refuse("name too long");
            }
            chains.insert((table, name.into()), Vec::new());
            continue;
        }
        seen_rules = true;
        let mut parts = line.splitn(3, ' ');
        let (command, chain, rule) = (parts.next(), parts.next().unwrap_or(""), parts.next().unwrap_or(""));
        let id = (table, chain.to_owned());
        let target = argument(rule, "-j").map(|(_, target)| target);
        let known = |name: &str| TARGETS.contains(&name) || chains.contains_key(&(table, name.to_owned()));
        if !chains.contains_key(&id) {
            return refuse("no such chain");
        }
        if target.is_some_and(|target| !known(target)) {
            return refuse("no such target");
        }
        let mut referenced = chains.iter().filter(|((of, _), _)| *of == table).flat_map(|(_, rules)| rules);
        match command {
            Some("-X")
                if referenced.any(|rule| words(rule).skip_while(|w| *w != "-j").nth(1) == Some(chain)) =>
            {
                return refuse("still referenced");
            }
            Some("-X") if chains[&id].is_empty() => {
                chains.remove(&id);
            }
            Some("-A") => chains.entry(id).or_default().push(rule.to_owned()),
            Some("-I") => chains.entry(id).or_default().insert(0, rule.to_owned()),
            Some("-D") => {
                let rules = chains.entry(id).or_default();
                match rules.iter().position(|known| known == rule) {
                    Some(at) => {
                        rules.remove(at);
                    }
                    None => return refuse("no such rule"),
                }
            }
            _ => return refuse("no such command"),
        }
    }
    Err("no COMMIT".into())
}

/// Chains that jump in a circle are refused.
fn loops(chains: &Chains, table: Table) -> Result<(), String> {
    fn visit<'a>(
        chains: &'a Chains,
        id: (Table, &'a str),
        path: &mut Vec<&'a str>,
        done: &mut BTreeSet<&'a str>,
    ) -> bool {
        if path.contains(&id.1) {
            return true;
        }
        if !done.insert(id.1) {
            return false;
        }
        path.push(id.1);
        let rules = chains.get(&(id.0, id.1.to_owned())).into_iter().flatten();
        let found = rules
            .filter_map(|rule| argument(rule, "-j"))
            .any(|(_, target)| visit(chains, (id.0, target), path, done));
        path.pop();
        found
    }
    let mut done = BTreeSet::new();
    for (of, name) in chains.keys() {
        if *of == table && visit(chains, (table, name), &mut Vec::new(), &mut done) {
            return Err(format!("loop at {name}"));
        }
    }
    Ok(())
}
