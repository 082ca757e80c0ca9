//! Taking everything away again (spec/kube-proxy.md §9.6).

use std::collections::{BTreeMap, BTreeSet};

use super::fixed::{CHAINS, JUMPS};
use super::names;
use super::parse::{Dump, Table, target};

/// What is to be taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// What we wrote and what kube-proxy wrote, with the jumps.
    All,
    /// Chains that only we have and that nothing needs: what kube-proxy does not clean up after it took over.
    Ours,
}

/// Text for `iptables-restore --noflush` that takes away what is in the dump; `None` if nothing is. Chains of kubelet
/// and of others stay, and so does a chain that their rules jump to.
pub fn cleanup(kernel: &Dump<'_>, scope: Scope) -> Option<String> {
    let mut text = String::new();
    for table in Table::ALL {
        let chains: BTreeMap<&str, &[&str]> = kernel.chains(table).collect();
        let jumps: Vec<(&str, String)> = match scope {
            Scope::All => JUMPS
                .iter()
                .filter(|jump| jump.table == table && jump.is_in(kernel))
                .map(|jump| (jump.from, jump.text()))
                .collect(),
            Scope::Ours => Vec::new(),
        };
        let mut gone: BTreeSet<&str> =
            chains.keys().copied().filter(|name| is_in_scope(scope, table, name)).collect();
        while let Some(needed) = needed(&chains, &gone, &jumps) {
            gone.remove(needed);
        }
        if gone.is_empty() && jumps.is_empty() {
            continue;
        }
        text.extend(["*", table.as_str(), "\n"]);
        gone.iter().for_each(|name| text.extend([":", name, " - [0:0]\n"]));
        jumps.iter().for_each(|(from, rule)| text.extend(["-D ", from, " ", rule, "\n"]));
        gone.iter().for_each(|name| text.extend(["-X ", name, "\n"]));
        text.push_str("COMMIT\n");
    }
    (!text.is_empty()).then_some(text)
}

fn is_in_scope(scope: Scope, table: Table, name: &str) -> bool {
    let per_service = table != Table::Mangle && names::is_per_service(name);
    match scope {
        Scope::All => per_service || CHAINS.contains(&(table, name)),
        Scope::Ours => per_service && is_ours_alone(name),
    }
}

/// No hash begins like this.
fn is_ours_alone(name: &str) -> bool {
    let rest = names::PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix));
    rest.is_some_and(|rest| rest.starts_with(['0', '1']))
}

/// A chain that is to go, but that a rule which stays jumps to.
fn needed<'a>(
    chains: &BTreeMap<&'a str, &[&'a str]>,
    gone: &BTreeSet<&'a str>,
    jumps: &[(&str, String)],
) -> Option<&'a str> {
    let stays = |from: &str, rule: &str| {
        !gone.contains(from) && !jumps.iter().any(|(of, text)| *of == from && text == rule)
    };
    let rules = chains.iter().flat_map(|(from, rules)| rules.iter().map(move |rule| (*from, *rule)));
    let mut targets = rules.filter(|(from, rule)| stays(from, rule)).filter_map(|(_, rule)| target(rule));
    targets.find_map(|target| gone.get(target).copied())
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;

    const SAVED: &str = "*nat\n:PREROUTING ACCEPT [0:0]\n:KUBE-SERVICES - [0:0]\n:KUBE-SVC-A - [0:0]\n\
        :KUBE-SVC-0-0A000000-09 - [0:0]\n:KUBE-SVC-0-HAIRPIN - [0:0]\n:KUBE-KUBELET-CANARY - [0:0]\n\
        :KUBE-MARK-MASQ - [0:0]\n:OTHER - [0:0]\n\
        -A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
        -A PREROUTING -j OTHER\n-A OTHER -j KUBE-MARK-MASQ\n\
        -A KUBE-SERVICES -j KUBE-SVC-0-0A000000-09\nCOMMIT\n\
        *filter\n:KUBE-FIREWALL - [0:0]\nCOMMIT\n*mangle\n:KUBE-PROXY-CANARY - [0:0]\nCOMMIT\n";

    #[test]
    fn takes_away_what_is_ours_and_kube_proxys() {
        let text = cleanup(&parse(SAVED), Scope::All).unwrap();
        assert_eq!(
            text,
            "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-SVC-0-0A000000-09 - [0:0]\n:KUBE-SVC-0-HAIRPIN - [0:0]\n\
             :KUBE-SVC-A - [0:0]\n\
             -D PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
             -X KUBE-SERVICES\n-X KUBE-SVC-0-0A000000-09\n-X KUBE-SVC-0-HAIRPIN\n-X KUBE-SVC-A\nCOMMIT\n\
             *mangle\n:KUBE-PROXY-CANARY - [0:0]\n-X KUBE-PROXY-CANARY\nCOMMIT\n"
        );
        assert_eq!(cleanup(&parse("*nat\n:OTHER - [0:0]\nCOMMIT\n"), Scope::All), None);
    }

    #[test]
    fn ours_alone_only_where_nothing_needs_it() {
        let text = cleanup(&parse(SAVED), Scope::Ours).unwrap();
        assert_eq!(text, "*nat\n:KUBE-SVC-0-HAIRPIN - [0:0]\n-X KUBE-SVC-0-HAIRPIN\nCOMMIT\n");
    }
}
