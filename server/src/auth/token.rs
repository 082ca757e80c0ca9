//! Projected ServiceAccount tokens: whether one proves of which node its owner is.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::str::FromStr;

use distributary_model::Name;
use distributary_runtime::secret::Secret;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;

use super::{By, Identity, LEEWAY};

/// No token is longer, in bytes.
pub const LONGEST: usize = 8 << 10;
/// What Kubernetes' apiservers and their managed issuers sign with.
const ALGORITHMS: [Algorithm; 5] =
    [Algorithm::RS256, Algorithm::RS384, Algorithm::RS512, Algorithm::ES256, Algorithm::ES384];

/// A ServiceAccount: NAMESPACE/NAME.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Account {
    namespace: String,
    name: String,
}

impl FromStr for Account {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
                Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err("expected NAMESPACE/NAME of a ServiceAccount".to_owned()),
        }
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Which tokens are good.
#[derive(Clone, Debug)]
pub struct Rules {
    /// For whom they must be made.
    pub audience: String,
    /// Whose they may be.
    pub accounts: BTreeSet<Account>,
}

/// Whose signatures count: of one issuer.
#[derive(Clone, Default)]
pub struct Keys {
    issuer: String,
    by_id: HashMap<String, DecodingKey>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids: Vec<&String> = self.by_id.keys().collect();
        f.debug_struct("Keys").field("issuer", &self.issuer).field("ids", &ids).finish()
    }
}

/// Why a token proves nothing yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unproven {
    /// It is no good, and that is final.
    Refused(String),
    /// It is signed by a key that is not known. Its id.
    UnknownKey(String),
    /// It is good, and does not say of which node it is.
    Nodeless,
}

#[derive(Debug, Deserialize)]
pub(super) struct Claims {
    iss: String,
    sub: String,
    #[serde(default)]
    aud: Audiences,
    exp: u64,
    #[serde(default)]
    nbf: u64,
    #[serde(default, rename = "kubernetes.io")]
    kubernetes: Bound,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Audiences {
    One(String),
    Several(Vec<String>),
}

#[derive(Debug, Default, Deserialize)]
struct Bound {
    node: Option<Reference>,
}

/// A Node, as a token or the API names it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Reference {
    /// Its name.
    pub name: String,
    /// Its UID.
    #[serde(default)]
    pub uid: String,
}

impl Default for Audiences {
    fn default() -> Self {
        Self::Several(Vec::new())
    }
}

impl Audiences {
    fn all(&self) -> &[String] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Several(several) => several,
        }
    }
}

impl Keys {
    /// Of a JSON web key set.
    ///
    /// # Errors
    /// When it is none, or has no key that can be used.
    pub fn new(issuer: String, set: &[u8]) -> anyhow::Result<Self> {
        let set: JwkSet = serde_json::from_slice(set)
            .map_err(|e| anyhow::anyhow!("the issuer's keys are no JSON web key set: {e}"))?;
        let usable = |key: &Jwk| Some((key.common.key_id.clone()?, DecodingKey::from_jwk(key).ok()?));
        let by_id: HashMap<_, _> = set.keys.iter().filter_map(usable).collect();
        anyhow::ensure!(!by_id.is_empty(), "none of the issuer's {} keys can be used", set.keys.len());
        Ok(Self { issuer, by_id })
    }

    /// Checks a token at a time, in Unix seconds.
    ///
    /// # Errors
    /// When it proves nothing.
    pub fn check(&self, token: &Secret, rules: &Rules, now: u64) -> Result<Identity, Unproven> {
        let refused = |why: &str| Unproven::Refused(why.to_owned());
        let length = token.reveal().len();
        if length > LONGEST {
            return Err(Unproven::Refused(format!("its token has {length} bytes, {LONGEST} are possible")));
        }
        let header =
            jsonwebtoken::decode_header(token.reveal()).map_err(|_| refused("what it shows is no token"))?;
        if !ALGORITHMS.contains(&header.alg) {
            return Err(Unproven::Refused(format!("its token is signed by {:?}", header.alg)));
        }
        let id = header.kid.unwrap_or_default();
        let Some(key) = self.by_id.get(&id) else {
            return Err(Unproven::UnknownKey(id.chars().take(64).collect()));
        };
        // Who, for whom and when is ours to check: a library would look at its own clock.
        let mut signature = Validation::new(header.alg);
        signature.validate_exp = false;
        signature.validate_nbf = false;
        signature.validate_aud = false;
        signature.required_spec_claims.clear();
        let claims = jsonwebtoken::decode::<Claims>(token.reveal(), key, &signature);
        let claims = claims.map_err(|e| match e.kind() {
            ErrorKind::Json(_) | ErrorKind::Utf8(_) => {
                refused("its token has other claims than a ServiceAccount's")
            }
            _ => refused("its token's signature is not the issuer's"),
        })?;
        if claims.claims.iss != self.issuer {
            let (found, wanted) = (&claims.claims.iss, &self.issuer);
            return Err(Unproven::Refused(format!("its token is by the issuer {found}, wanted is {wanted}")));
        }
        claims.claims.check(rules, now)
    }
}

impl Claims {
    /// Of a token that somebody else has found to be genuine.
    pub(super) fn of_genuine(token: &Secret) -> Result<Self, String> {
        let claims = jsonwebtoken::dangerous::insecure_decode_claims(token.reveal());
        claims.map_err(|_| "its token has other claims than a ServiceAccount's".to_owned())
    }

    /// As the API has it: whose token it is, and of which node.
    ///
    /// # Errors
    /// When the token says that it is somebody else's than the API does.
    pub(super) fn reviewed(mut self, username: &str, node: Option<Reference>) -> Result<Self, String> {
        if self.sub != username {
            return Err(format!("its token is of {username}, and says of itself that it is of {}", self.sub));
        }
        self.kubernetes.node = node;
        Ok(self)
    }

    /// Whether genuine claims are good.
    pub(super) fn check(self, rules: &Rules, now: u64) -> Result<Identity, Unproven> {
        let refused = |why: String| Err(Unproven::Refused(why));
        if !self.aud.all().contains(&rules.audience) {
            let found = self.aud.all().join(", ");
            return refused(format!("its token is for the audience {found}, wanted is {}", rules.audience));
        }
        if self.exp.saturating_add(LEEWAY) <= now {
            return refused(format!("its token ran out {} s ago", now - self.exp));
        }
        if self.nbf > now.saturating_add(LEEWAY) {
            return refused(format!("its token is good in {} s only: check the clocks", self.nbf - now));
        }
        let account =
            self.sub.strip_prefix("system:serviceaccount:").unwrap_or_default().replacen(':', "/", 1);
        if !account.parse().is_ok_and(|account: Account| rules.accounts.contains(&account)) {
            return refused(format!("its token is of {}, which --token-account does not name", self.sub));
        }
        let Some(node) = self.kubernetes.node.filter(|node| !node.name.is_empty()) else {
            return Err(Unproven::Nodeless);
        };
        let uid = Some(node.uid).filter(|uid| !uid.is_empty()).map(Name::from);
        Ok(Identity { node: node.name.into(), uid, expires: self.exp, by: By::Token })
    }
}

#[cfg(test)]
mod tests;
