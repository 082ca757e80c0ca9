//! What does not depend on any Service: jumps from the built-in chains, the mark, masquerading, forwarding
//! (spec/kube-proxy.md §3.1, §3.2, §3.5).

use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net};

use super::chain::Chain;
use super::names;
use super::parse::{Dump, Table, target};
use super::rule::{Is, Match, Rule, Target};
use super::{Hairpin, Options};
use crate::plan::Family;

/// `source address == destination address`, as a classic BPF program (spec/layout.md §3).
const SAME_V4: &str = "6,32 0 0 12,7 0 0 0,32 0 0 16,29 0 1 0,6 0 0 1,6 0 0 0";
/// The same for four words: the first that differs goes to the end.
const SAME_V6: &str = "18,32 0 0 8,7 0 0 0,32 0 0 24,29 0 13 0,32 0 0 12,7 0 0 0,32 0 0 28,29 0 9 0,\
    32 0 0 16,7 0 0 0,32 0 0 32,29 0 5 0,32 0 0 20,7 0 0 0,32 0 0 36,29 0 1 0,6 0 0 1,6 0 0 0";

/// What a process of this host takes for itself.
pub(crate) const LOOPBACK_V4: IpNet = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8));

/// Counts packets that conntrack could not place (spec/kube-proxy.md §3.14).
pub const INVALID_COUNTER: &str = "ct_state_invalid_dropped_pkts";
/// Counts connections to node ports of the loopback address.
pub const LOCALHOST_COUNTER: &str = "localhost_nps_accepted_pkts";

/// A jump from a built-in chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Jump {
    pub(crate) table: Table,
    pub(crate) from: &'static str,
    new: bool,
    to: &'static str,
    comment: &'static str,
}

const fn jump(table: Table, from: &'static str, new: bool, to: &'static str, comment: &'static str) -> Jump {
    Jump { table, from, new, to, comment }
}

/// In the order in which they are inserted at the head, so the last of a chain is the first to be passed.
pub(crate) const JUMPS: [Jump; 12] = {
    use Table::{Filter, Nat};
    [
        jump(
            Filter,
            "INPUT",
            true,
            names::EXTERNAL_SERVICES,
            "kubernetes externally-visible service portals",
        ),
        jump(
            Filter,
            "FORWARD",
            true,
            names::EXTERNAL_SERVICES,
            "kubernetes externally-visible service portals",
        ),
        jump(Filter, "INPUT", false, names::NODEPORTS, "kubernetes health check service ports"),
        jump(Filter, "FORWARD", true, names::SERVICES, "kubernetes service portals"),
        jump(Filter, "OUTPUT", true, names::SERVICES, "kubernetes service portals"),
        jump(Filter, "FORWARD", false, names::FORWARD, "kubernetes forwarding rules"),
        jump(Filter, "INPUT", true, names::PROXY_FIREWALL, "kubernetes load balancer firewall"),
        jump(Filter, "OUTPUT", true, names::PROXY_FIREWALL, "kubernetes load balancer firewall"),
        jump(Filter, "FORWARD", true, names::PROXY_FIREWALL, "kubernetes load balancer firewall"),
        jump(Nat, "OUTPUT", false, names::SERVICES, "kubernetes service portals"),
        jump(Nat, "PREROUTING", false, names::SERVICES, "kubernetes service portals"),
        jump(Nat, "POSTROUTING", false, names::POSTROUTING, "kubernetes postrouting rules"),
    ]
};

/// Where packets to the loopback network are looked at, where that has node ports. Never taken away: kubelet has them
/// too.
const LOCALNET_JUMPS: [Jump; 2] = [
    jump(Table::Filter, "INPUT", false, names::FIREWALL, ""),
    jump(Table::Filter, "OUTPUT", false, names::FIREWALL, ""),
];

/// A rule that is put into a chain that is not ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Addition {
    pub(crate) table: Table,
    /// A chain that has to be made for it.
    pub(crate) declares: Option<&'static str>,
    /// The whole line, from `-I` or `-A` on.
    pub(crate) line: String,
    /// Only where the loopback address has node ports.
    pub(crate) localnet: bool,
}

/// What the kernel lacks in chains that are not ours.
pub(crate) fn lacking(family: Family, kernel: &Dump<'_>) -> Vec<Addition> {
    let insert = |jump: &Jump, localnet| {
        let line = format!("-I {} {}", jump.from, jump.text());
        (!jump.is_in(kernel)).then_some(Addition { table: jump.table, declares: None, line, localnet })
    };
    let mut lacking: Vec<Addition> = JUMPS.iter().filter_map(|jump| insert(jump, false)).collect();
    if family == Family::V4 {
        let held = kernel.rules(Table::Filter, names::FIREWALL);
        let mut rule = String::new();
        localnet().write(&mut rule);
        if !held.is_some_and(|held| held.contains(&rule.as_str())) {
            let declares = held.is_none().then_some(names::FIREWALL);
            let line = format!("-A {} {rule}", names::FIREWALL);
            lacking.push(Addition { table: Table::Filter, declares, line, localnet: true });
        }
        lacking.extend(LOCALNET_JUMPS.iter().filter_map(|jump| insert(jump, true)));
    }
    lacking
}

/// Text for `iptables-restore --noflush` that adds what keeps others off the loopback network, before packets to it are
/// routed; `None` where it is there.
pub fn localnet_first(kernel: &Dump<'_>) -> Option<String> {
    let missing: Vec<Addition> =
        lacking(Family::V4, kernel).into_iter().filter(|addition| addition.localnet).collect();
    let mut text = String::from("*filter\n");
    for name in missing.iter().filter_map(|addition| addition.declares) {
        text.extend([":", name, " - [0:0]\n"]);
    }
    missing.iter().for_each(|addition| text.extend([&addition.line, "\n"]));
    text.push_str("COMMIT\n");
    (!missing.is_empty()).then_some(text)
}

/// Nobody else reaches the loopback network by the way that node ports need (§3.5). Equal to kubelet's, byte for byte.
fn localnet() -> Rule {
    Rule {
        source: Some(Is::Not(LOOPBACK_V4)),
        destination: Some(Is::Yes(LOOPBACK_V4)),
        ..Rule::to(Target::Drop)
    }
    .comment("block incoming localnet connections")
    .with(Match::NoState("RELATED,ESTABLISHED,DNAT"))
}

impl Jump {
    /// What follows `-I CHAIN `.
    pub(crate) fn text(&self) -> String {
        let rule = Rule::jump(self.to);
        let rule = if self.new { rule.with(Match::State("NEW")) } else { rule };
        let rule = if self.comment.is_empty() { rule } else { rule.comment(self.comment) };
        let mut text = String::new();
        rule.write(&mut text);
        text
    }

    /// Whether it stands anywhere in its chain.
    pub(crate) fn is_in(&self, kernel: &Dump<'_>) -> bool {
        let text = self.text();
        kernel.rules(self.table, self.from).is_some_and(|rules| rules.contains(&text.as_str()))
    }
}

/// Every chain with a fixed name that we write, or write the head of.
pub(crate) const CHAINS: [(Table, &str); 12] = [
    (Table::Nat, names::SERVICES),
    (Table::Nat, names::NODEPORTS),
    (Table::Nat, names::POSTROUTING),
    (Table::Nat, names::MARK_MASQ),
    (Table::Nat, names::CANARY),
    (Table::Filter, names::SERVICES),
    (Table::Filter, names::EXTERNAL_SERVICES),
    (Table::Filter, names::FORWARD),
    (Table::Filter, names::NODEPORTS),
    (Table::Filter, names::PROXY_FIREWALL),
    (Table::Filter, names::CANARY),
    (Table::Mangle, names::CANARY),
];

/// The chains whose rules are the same for any Services.
pub(crate) fn chains(family: Family, options: &Options) -> Vec<(Table, Chain)> {
    let mark = options.mark();
    let masquerade = || Target::Masquerade { random_fully: options.random_fully };
    let meets_itself = |to: &str, same: Target| {
        let translated = Match::State("DNAT");
        match options.hairpin {
            Hairpin::Bpf => Rule::to(same).with(translated).with(Match::Bpf(same_address(family))),
            Hairpin::Trie => Rule::jump(to).with(translated),
        }
    };
    let counted =
        |rule: Rule, counter| if options.counters { rule.with(Match::Account(counter)) } else { rule };
    // One rule for all node ports, where kube-proxy has one for each.
    let localhost = (options.counters && family == Family::V4)
        .then(|| counted(Rule::default().with(Match::TranslatedFrom(LOOPBACK_V4)), LOCALHOST_COUNTER));
    let postrouting = [
        Some(meets_itself(names::HAIRPINS, Target::Jump(names::HAIRPIN.into()))),
        Some(Rule::to(Target::Return).with(Match::Mark(Is::Not(mark)))),
        localhost,
        Some(Rule::to(Target::Mark(mark, 0))),
        Some(Rule::to(masquerade()).comment("kubernetes service traffic requiring SNAT")),
    ];
    let forward = [
        (!options.be_liberal)
            .then(|| counted(Rule::to(Target::Drop).with(Match::State("INVALID")), INVALID_COUNTER)),
        Some(
            Rule::to(Target::Accept).comment("kubernetes forwarding rules").with(Match::Mark(Is::Yes(mark))),
        ),
        // These carry no mark.
        Some(meets_itself(names::HAIRPINS, Target::Accept)),
        Some(
            Rule::to(Target::Accept)
                .comment("kubernetes forwarding conntrack rule")
                .with(Match::State("RELATED,ESTABLISHED")),
        ),
    ];
    let nothing = <[Rule; 0]>::default;
    vec![
        (Table::Nat, Chain::new(names::MARK_MASQ, [Rule::to(Target::Mark(mark, mark))])),
        (Table::Nat, Chain::new(names::HAIRPIN, [Rule::to(Target::Mark(0, mark)), Rule::to(masquerade())])),
        (Table::Nat, Chain::new(names::POSTROUTING, postrouting.into_iter().flatten())),
        (Table::Nat, Chain::new(names::CANARY, nothing())),
        (Table::Filter, Chain::new(names::FORWARD, forward.into_iter().flatten())),
        (Table::Filter, Chain::new(names::CANARY, nothing())),
        (Table::Mangle, Chain::new(names::CANARY, nothing())),
    ]
}

fn same_address(family: Family) -> &'static str {
    match family {
        Family::V4 => SAME_V4,
        Family::V6 => SAME_V6,
    }
}

/// Whether a rule of a built-in chain leads to a chain that we, or kube-proxy, write the head of.
pub fn is_jump_of_ours(table: Table, rule: &str) -> bool {
    target(rule).is_some_and(|to| CHAINS.contains(&(table, to)) || to == "KUBE-FIREWALL")
}

/// Whether a BPF program compares the source address with the destination address.
pub(crate) fn is_same_address(code: &str) -> bool {
    [SAME_V4, SAME_V6].contains(&code)
}

/// Arguments of `iptables` that succeed as long as the canary is there, which kube-proxy makes again when it is gone.
pub const CANARY: &[&str] = &["-t", "mangle", "-S", names::CANARY];

/// Arguments of `iptables` that succeed as long as nobody flushed a table, or deleted it: a chain or a jump of each; and
/// a chain that a kube-proxy deletes whenever it writes.
pub const WATCHED: [&[&str]; 4] = [
    CANARY,
    &["-t", "nat", "-S", names::HAIRPIN],
    &[
        "-t",
        "nat",
        "-C",
        "PREROUTING",
        "-m",
        "comment",
        "--comment",
        "kubernetes service portals",
        "-j",
        "KUBE-SERVICES",
    ],
    &[
        "-t",
        "filter",
        "-C",
        "FORWARD",
        "-m",
        "comment",
        "--comment",
        "kubernetes forwarding rules",
        "-j",
        "KUBE-FORWARD",
    ],
];

/// Text for `iptables-restore --noflush` that fails where the kernel cannot match packets that meet themselves by one
/// rule, and leaves nothing behind: [`Hairpin::Bpf`] only where it succeeds.
pub fn probe(family: Family) -> String {
    probe_of(Match::Bpf(same_address(family)))
}

/// The same for rules that count in [`INVALID_COUNTER`].
pub fn probe_counters() -> String {
    probe_of(Match::Account(INVALID_COUNTER))
}

fn probe_of(one: Match) -> String {
    const SCRATCH: &str = "KUBE-SVC-0-PROBE";
    let chain = Chain::new(SCRATCH, [Rule::to(Target::Return).with(Match::State("DNAT")).with(one)]);
    // In two sections, so that the rule is really in the kernel once.
    format!(
        "*nat\n:{SCRATCH} - [0:0]\n{}COMMIT\n*nat\n:{SCRATCH} - [0:0]\n-X {SCRATCH}\nCOMMIT\n",
        chain.text
    )
}
