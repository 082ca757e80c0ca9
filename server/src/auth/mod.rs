//! Who an agent is, by what it shows.

mod certificate;

use distributary_model::Name;

pub use certificate::node_of;

/// What a peer has proven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// Nothing, and nothing was asked for.
    Nothing,
    /// That it is of this node, by its certificate.
    Certificate {
        /// The node.
        node: Name,
    },
}

impl Proof {
    /// Whether its owner may speak for a node.
    ///
    /// # Errors
    /// Why it may not, in words for both sides.
    pub fn covers(&self, node: &str) -> Result<(), String> {
        match self {
            Self::Nothing => Ok(()),
            Self::Certificate { node: proven } if **proven == *node => Ok(()),
            Self::Certificate { node: proven } => {
                Err(format!("the agent says that it is of node {node}, its certificate is of node {proven}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_speaks_for_its_own_node_alone() {
        let proof = Proof::Certificate { node: "a".into() };
        assert_eq!(proof.covers("a"), Ok(()));
        let why = "the agent says that it is of node b, its certificate is of node a";
        assert_eq!(proof.covers("b"), Err(why.to_owned()));
        assert_eq!(Proof::Nothing.covers("b"), Ok(()));
    }
}
