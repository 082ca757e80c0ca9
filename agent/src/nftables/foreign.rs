//! What other programs have in the kernel and is of interest to us.

use std::collections::BTreeSet;

/// The base chains that forwarded packets pass, and that drop what no rule of theirs accepts: an accept in another table
/// does not go before that. From what `nft list chains` prints, as `family table chain`.
pub fn forward_drops(chains: &str) -> BTreeSet<String> {
    let (mut table, mut chain) = (String::new(), "");
    let mut found = BTreeSet::new();
    for line in chains.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["table", family, name, "{"] => table = format!("{family} {name}"),
            ["chain", name, "{"] => chain = name,
            ["type", "filter", "hook", "forward", ..] if line.contains("policy drop") => {
                found.insert(format!("{table} {chain}"));
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_drops_by_policy_is_named() {
        let chains = "table ip filter {\n\tchain FORWARD {\n\t\ttype filter hook forward priority filter; policy drop;\n\t}\n\
            \tchain INPUT {\n\t\ttype filter hook input priority filter; policy drop;\n\t}\n}\n\
            table inet firewalld {\n\tchain filter_FORWARD {\n\t\ttype filter hook forward priority filter + 10; policy accept;\n\t}\n}\n";
        assert_eq!(forward_drops(chains), BTreeSet::from(["ip filter FORWARD".to_owned()]));
    }
}
