//! Whether every node has something, from what all replicas say.

use std::collections::{BTreeMap, BTreeSet};

use distributary_model::Name;
use serde::{Deserialize, Serialize};

/// What a replica says of a record: which of its agents have its newest content in their kernels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// The process.
    pub epoch: String,
    /// It knows what there is.
    pub listed: bool,
    /// Hash of the content; `None`: there is no such record.
    pub content: Option<String>,
    /// Nodes that have it, or, where there is none, have nothing of it.
    pub has: Vec<String>,
    /// Nodes that have not.
    pub lacks: Vec<Lack>,
}

/// A node that lacks something.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Lack {
    /// Its name.
    pub node: String,
    /// Why, as far as is known.
    pub why: String,
}

/// What came of asking a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Where it was asked.
    pub replica: String,
    /// What it said, or why it did not.
    pub said: Result<Receipt, String>,
}

/// Whether every node has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "converged", rename_all = "lowercase")]
pub enum Verdict {
    /// Every node has.
    Yes {
        /// How many there are.
        nodes: usize,
    },
    /// These have not.
    No {
        /// Sorted by name.
        lacking: Vec<Lack>,
    },
    /// It cannot be told: nobody who answered says of a node that it lacks it, but not all answered.
    Unknown {
        /// Why.
        why: Vec<String>,
    },
}

/// What all say, taken together.
struct Heard<'a> {
    content: &'a Option<String>,
    has: BTreeSet<&'a str>,
    lacks: BTreeMap<&'a str, &'a str>,
    /// Why not all is known.
    why: Vec<String>,
}

impl<'a> Heard<'a> {
    fn take(&mut self, replica: &str, receipt: &'a Receipt) {
        if !receipt.listed {
            self.why.push(format!("{replica} does not know yet what there is"));
        } else if receipt.content == *self.content {
            self.has.extend(receipt.has.iter().map(String::as_str));
            self.lacks.extend(receipt.lacks.iter().map(|lack| (&*lack.node, &*lack.why)));
        } else {
            let all = receipt.has.iter().chain(receipt.lacks.iter().map(|lack| &lack.node));
            self.lacks.extend(all.map(|node| (&**node, "its server has other content")));
        }
    }
}

/// What all say together. `nodes` are all that the API has, connected or not. The first word, `own`, is that of whoever asks:
/// what is to be had is what it has.
pub fn verdict<'a>(nodes: impl Iterator<Item = &'a Name>, own: &Receipt, others: &[Answer]) -> Verdict {
    let mut heard =
        Heard { content: &own.content, has: BTreeSet::new(), lacks: BTreeMap::new(), why: Vec::new() };
    heard.take("this replica", own);
    for Answer { replica, said } in others {
        match said {
            Ok(receipt) if receipt.epoch == own.epoch => {}
            Ok(receipt) => heard.take(replica, receipt),
            Err(e) => heard.why.push(format!("{replica} does not answer: {e}")),
        }
    }
    let Heard { has, lacks, why, .. } = heard;
    let (mut count, mut lacking, mut missing) = (0, Vec::new(), Vec::new());
    for node in nodes {
        count += 1;
        let lack = |why: &str| Lack { node: node.to_string(), why: why.to_owned() };
        match lacks.get(&**node) {
            _ if has.contains(&**node) => {}
            Some(why) => lacking.push(lack(why)),
            None => missing.push(lack("it has no stream to any replica")),
        }
    }
    if lacking.is_empty() && !why.is_empty() {
        return Verdict::Unknown { why };
    }
    // Of whom nobody knows anything, one that did not answer may.
    if why.is_empty() {
        lacking.extend(missing);
        lacking.sort();
    }
    match lacking.is_empty() {
        true => Verdict::Yes { nodes: count },
        false => Verdict::No { lacking },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receipt(epoch: &str, content: &str, has: &[&str], lacks: &[&str]) -> Receipt {
        let lack = |node: &&str| Lack { node: (*node).into(), why: "not yet".into() };
        Receipt {
            epoch: epoch.into(),
            listed: true,
            content: Some(content.into()),
            has: has.iter().map(ToString::to_string).collect(),
            lacks: lacks.iter().map(lack).collect(),
        }
    }

    fn answer(said: Result<Receipt, String>) -> Answer {
        Answer { replica: "r2".into(), said }
    }

    fn of(nodes: &[&str], own: &Receipt, others: &[Answer]) -> Verdict {
        let nodes: Vec<Name> = nodes.iter().map(|node| Name::from(*node)).collect();
        verdict(nodes.iter(), own, others)
    }

    fn lacking(verdict: Verdict) -> Vec<(String, String)> {
        let Verdict::No { lacking } = verdict else { panic!("{verdict:?}") };
        lacking.into_iter().map(|lack| (lack.node, lack.why)).collect()
    }

    #[test]
    fn rule_5_2_yes_needs_every_node_of_the_api() {
        let (own, other) = (receipt("1", "x", &["a"], &[]), answer(Ok(receipt("2", "x", &["b"], &[]))));
        assert_eq!(of(&["a", "b"], &own, std::slice::from_ref(&other)), Verdict::Yes { nodes: 2 });
        let found = lacking(of(&["a", "b", "c"], &own, &[other]));
        assert_eq!(found, [("c".into(), "it has no stream to any replica".into())]);
        assert_eq!(of(&[], &own, &[]), Verdict::Yes { nodes: 0 });
    }

    #[test]
    fn rule_5_2_a_replica_that_does_not_answer_makes_it_unknown_and_never_yes() {
        let own = receipt("1", "x", &["a", "b"], &[]);
        let cut = answer(Err("connection refused".into()));
        let Verdict::Unknown { why } = of(&["a", "b"], &own, std::slice::from_ref(&cut)) else { panic!() };
        assert_eq!(why, ["r2 does not answer: connection refused"]);
        assert!(matches!(of(&["a", "b", "c"], &own, std::slice::from_ref(&cut)), Verdict::Unknown { .. }));
        // Who lacks it lacks it, whatever else is not known.
        let own = receipt("1", "x", &["a"], &["b"]);
        assert_eq!(lacking(of(&["a", "b", "c"], &own, &[cut])), [("b".into(), "not yet".into())]);
    }

    #[test]
    fn rule_5_2_a_replica_with_other_content_speaks_of_something_else() {
        let own = receipt("1", "new", &["a"], &[]);
        let behind = answer(Ok(receipt("2", "old", &["b"], &[])));
        assert_eq!(
            lacking(of(&["a", "b"], &own, &[behind])),
            [("b".into(), "its server has other content".into())]
        );
        let starting = Receipt { listed: false, ..receipt("3", "new", &["b"], &[]) };
        assert!(matches!(of(&["a", "b"], &own, &[answer(Ok(starting))]), Verdict::Unknown { .. }));
    }

    #[test]
    fn an_agent_that_moved_has_what_it_had_and_this_replica_is_not_counted_twice() {
        let own = receipt("1", "x", &["a"], &[]);
        let others =
            [answer(Ok(receipt("2", "x", &[], &["a"]))), answer(Ok(receipt("1", "old", &["z"], &[])))];
        assert_eq!(of(&["a"], &own, &others), Verdict::Yes { nodes: 1 });
    }
}
