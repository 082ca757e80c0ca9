//! Who an agent is, by what it shows: a certificate, or a token.

mod certificate;
pub mod token;
mod tokens;

use std::sync::Arc;

use distributary_cluster::Cluster;
use distributary_model::Name;
use distributary_runtime::secret::Secret;

pub use certificate::identity;
pub use tokens::{KeySource, Tokens};

/// Clocks may differ by so many seconds, and what ran out is taken for so much longer.
pub const LEEWAY: u64 = 60;

/// Who somebody is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The node for which he may speak.
    pub node: Name,
    /// Of the Node that is meant, where that was said.
    pub uid: Option<Name>,
    /// Until when, in Unix seconds.
    pub expires: u64,
    /// How that was shown.
    pub by: By,
}

/// How an identity was shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// By a certificate.
    Certificate,
    /// By a token.
    Token,
}

/// What a peer has proven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// Nothing, and nothing was asked for.
    Nothing,
    /// Who it is.
    Of(Identity),
}

/// Checks what is shown beside a certificate.
#[derive(Clone, Debug, Default)]
pub struct Auth {
    tokens: Option<Arc<Tokens>>,
}

impl Auth {
    /// With tokens, where they are taken.
    pub fn new(tokens: Option<Arc<Tokens>>) -> Self {
        Self { tokens }
    }

    /// What a peer has proven by its certificate, or else by the token that it shows (`Bearer …`).
    ///
    /// # Errors
    /// Why it has proven nothing although it had to, in words about the peer.
    pub async fn prove(
        &self,
        certified: Result<Proof, String>,
        authorization: Option<&str>,
    ) -> Result<Proof, String> {
        let bearer = authorization.and_then(|text| text.strip_prefix("Bearer "));
        match (certified, &self.tokens, bearer) {
            (Ok(Proof::Of(identity)), _, _) => Ok(Proof::Of(identity)),
            (_, Some(tokens), Some(token)) => tokens.check(&Secret::new(token)).await.map(Proof::Of),
            (Err(why), _, _) => Err(why),
            (Ok(Proof::Nothing), Some(_), None) => Err("it shows no token".to_owned()),
            (Ok(Proof::Nothing), None, _) => Ok(Proof::Nothing),
        }
    }

    /// What a token proves that came later.
    ///
    /// # Errors
    /// Why it proves nothing.
    pub async fn renewed(&self, token: Secret) -> Result<Identity, String> {
        match &self.tokens {
            Some(tokens) => tokens.check(&token).await,
            None => Err("no tokens are taken here".to_owned()),
        }
    }
}

impl Identity {
    /// Whether it speaks for a node.
    ///
    /// # Errors
    /// Why it does not, in words for both sides.
    pub fn covers(&self, node: &str) -> Result<(), String> {
        match *self.node == *node {
            true => Ok(()),
            false => Err(format!(
                "the agent says that it is of node {node}, its {} is of node {}",
                self.by, self.node
            )),
        }
    }

    /// Whether the Node is there for which a token was made. A certificate is good before its Node is there, and
    /// after.
    ///
    /// # Errors
    /// Why it is not, in words for both sides.
    pub fn lives(&self, cluster: &Cluster) -> Result<(), String> {
        if self.by == By::Certificate {
            return Ok(());
        }
        let node = &self.node;
        match (cluster.node_uid(node), self.uid.as_deref()) {
            (None, _) => Err(format!("its token is of the Node {node}, which is not there")),
            (Some(found), Some(wanted)) if !found.is_empty() && **found != *wanted => Err(format!(
                "its token is of an earlier Node {node}: that one was deleted, and another has its name"
            )),
            _ => Ok(()),
        }
    }
}

impl std::fmt::Display for By {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Certificate => "certificate",
            Self::Token => "token",
        })
    }
}

#[cfg(test)]
mod tests {
    use distributary_cluster::{Event, Object};
    use distributary_model::ObjectKind;

    use super::*;

    fn identity(by: By, uid: &str) -> Identity {
        Identity { node: "a".into(), uid: Some(uid.into()), expires: 0, by }
    }

    #[test]
    fn an_identity_speaks_for_its_own_node_alone() {
        let identity = identity(By::Certificate, "u");
        assert_eq!(identity.covers("a"), Ok(()));
        let why = "the agent says that it is of node b, its certificate is of node a";
        assert_eq!(identity.covers("b"), Err(why.to_owned()));
    }

    #[test]
    fn a_token_is_worth_something_as_long_as_its_node_is_there() {
        let mut cluster = Cluster::new("default");
        let token = identity(By::Token, "u-1");
        let gone = Err("its token is of the Node a, which is not there".to_owned());
        assert_eq!(token.lives(&cluster), gone);
        assert_eq!(identity(By::Certificate, "u-1").lives(&cluster), Ok(()));
        let node = |uid: &str| {
            let json = format!(r#"{{"metadata": {{"name": "a", "uid": "{uid}"}}}}"#);
            Object::from_json(ObjectKind::Node, &json).unwrap()
        };
        cluster.apply([Event::Upsert(node("u-1"))]);
        assert_eq!(token.lives(&cluster), Ok(()));
        // Another Node of the same content is one that changed.
        let changes = cluster.apply([Event::Upsert(node("u-2"))]);
        assert!(changes.nodes.contains("a"));
        assert!(token.lives(&cluster).unwrap_err().starts_with("its token is of an earlier Node a"));
        // A directory's Nodes may have none.
        cluster.apply([Event::Upsert(node(""))]);
        assert_eq!(token.lives(&cluster), Ok(()));
    }

    #[tokio::test]
    async fn who_has_to_prove_something_does() {
        let auth = Auth::default();
        assert_eq!(auth.prove(Ok(Proof::Nothing), Some("Bearer x")).await, Ok(Proof::Nothing));
        assert_eq!(auth.prove(Err("no".into()), Some("Bearer x")).await, Err("no".into()));
        let proof = Proof::Of(identity(By::Certificate, "u"));
        assert_eq!(auth.prove(Ok(proof.clone()), None).await, Ok(proof));
        assert!(auth.renewed(Secret::new("x")).await.is_err());
    }
}
