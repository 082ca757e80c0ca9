//! What a fate is to people.

use std::net::SocketAddr;

use crate::iptables::trace::Fate;

/// So many endpoints are named.
const NAMED: usize = 4;

/// What becomes of a packet, in words; of many endpoints those are named that `other` has not, or not so.
pub(super) fn words(fate: &Fate, other: &Fate) -> String {
    if let Some(rule) = &fate.unknown {
        return format!("depends on a rule that is not understood: {rule}");
    }
    let mut parts = Vec::new();
    if !fate.to.is_empty() {
        parts.push(format!("sends it to {}", endpoints(fate, other)));
    }
    if let Some(how) = &fate.refused {
        let how = if how == "DROP" { "drops it".into() } else { how.replacen("REJECT", "rejects it", 1) };
        parts.push(format!("{how} in {}", fate.refused_in.unwrap_or_default()));
    }
    if fate.left_alone > 0.0 || parts.is_empty() {
        parts.push("leaves it alone".into());
    }
    let accepted = fate.accepted > 0.0 && fate.accepted != other.accepted;
    parts.join(" or ") + if accepted { ", and accepts it in filter" } else { "" }
}

fn endpoints(fate: &Fate, other: &Fate) -> String {
    let lists = |fate: &Fate, to: &SocketAddr| fate.lists.get(to).cloned();
    let is_new = |(to, _, masqueraded): &&(SocketAddr, f64, bool)| {
        !other.to.iter().any(|(known, _, other)| (known, other) == (to, masqueraded))
            || lists(fate, to) != lists(other, to)
    };
    let word = |(to, chance, masqueraded): &(SocketAddr, f64, bool)| {
        let share = (chance * 1000.0).round() / 10.0;
        let masquerade = if *masqueraded { ", masqueraded" } else { "" };
        let list = match lists(fate, to) {
            Some(list) if lists(other, to).as_ref() != Some(&list) => format!(", remembered in {list}"),
            _ => String::new(),
        };
        format!("{to} ({share} %{masquerade}{list})")
    };
    let ordered = fate.to.iter().filter(is_new).chain(fate.to.iter().filter(|one| !is_new(one)));
    let mut named: Vec<String> = ordered.take(NAMED).map(word).collect();
    if let Some(more @ 1..) = fate.to.len().checked_sub(NAMED) {
        named.push(format!("and {more} more"));
    }
    named.join(", ")
}
