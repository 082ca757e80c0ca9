//! kube-proxy's own form of the rules, and its sign of life.

use super::names;
use super::parse::{Dump, Table, target};

/// Whether the rules were written last by a kube-proxy: ours have no chain of an endpoint, and its have no rule for what
/// meets itself. Tables that were emptied are nobody's.
pub fn is_kube_proxys(kernel: &Dump<'_>) -> bool {
    let postrouting = kernel.rules(Table::Nat, names::POSTROUTING).unwrap_or_default();
    let to =
        |chains: &[&str]| postrouting.iter().any(|rule| target(rule).is_some_and(|to| chains.contains(&to)));
    let of_endpoint = |(chain, rules): (&str, &[&str])| {
        let hash = chain.strip_prefix("KUBE-SEP-");
        hash.is_some_and(|hash| !hash.starts_with('0')) && !rules.is_empty()
    };
    to(&["MASQUERADE"]) && !to(&[names::HAIRPIN, names::HAIRPINS])
        || kernel.chains(Table::Nat).any(of_endpoint)
}

/// Whether there are chains of Services, ours or kube-proxy's.
pub fn holds_services(kernel: &Dump<'_>) -> bool {
    let of_service = |name: &str| names::is_per_service(name) && !names::is_bucket(name);
    [Table::Nat, Table::Filter].iter().any(|table| kernel.chains(*table).any(|(name, _)| of_service(name)))
}

/// Text for `iptables-restore --noflush` that removes the chain which a running kube-proxy makes again.
pub fn without_canary() -> String {
    let section = |table: Table| {
        let (table, chain) = (table.as_str(), names::CANARY);
        format!("*{table}\n:{chain} - [0:0]\n-X {chain}\nCOMMIT\n")
    };
    // The one that it watches first: it waits for the others to be gone, too.
    [Table::Mangle, Table::Nat, Table::Filter].map(section).concat()
}

#[cfg(test)]
mod tests {
    use super::super::fake::Fake;
    use super::super::parse;
    use super::*;

    #[test]
    fn the_last_writer_is_known_by_what_only_it_writes() {
        let nat = |lines: &str| is_kube_proxys(&parse(&format!("*nat\n{lines}COMMIT\n")));
        let theirs = "-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n-A KUBE-POSTROUTING -j MASQUERADE\n";
        assert!(nat(theirs));
        let ours = "-A KUBE-POSTROUTING -m conntrack --ctstate DNAT -j KUBE-SVL-0-HAIRPIN\n";
        assert!(!nat(&format!("{ours}{theirs}")));
        let endpoint = "-A KUBE-SEP-SXIVWICOYRO3J4NJ -p tcp -j DNAT --to-destination 10.180.0.1:80\n";
        assert!(nat(&format!("{ours}{theirs}{endpoint}")));
        assert!(!nat(":KUBE-SEP-SXIVWICOYRO3J4NJ - [0:0]\n-A KUBE-SEP-0SXIVWICOYRO3G11 -j X\n"));
        assert!(!nat(":KUBE-POSTROUTING - [0:0]\n") && !nat(""));
    }

    #[test]
    fn the_canary_is_gone_from_every_table() {
        let mut fake = Fake::default();
        let empty = fake.clone();
        fake.restore("*nat\n:KUBE-PROXY-CANARY - [0:0]\nCOMMIT\n").unwrap();
        fake.restore(&without_canary()).unwrap();
        assert_eq!(fake.save(), empty.save());
    }
}
