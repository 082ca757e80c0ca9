//! Tokens of ServiceAccounts: as the apiserver makes them, and as it would if it could be told when they run out.

use std::fs;

use anyhow::{Context, Result};
use http::Request;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use kube::Client;
use rcgen::KeyPair;
use serde_json::{Value, json};

use crate::controlplane::ControlPlane;
use crate::objects;

/// A ServiceAccount with a pod on a node: what an agent's token is bound to.
#[derive(Clone, Debug)]
pub struct Bound {
    namespace: String,
    account: String,
    pod: String,
    uid: String,
}

impl Bound {
    /// Makes both.
    ///
    /// # Errors
    /// When the apiserver refuses.
    pub async fn new(client: &Client, namespace: &str, account: &str, node: &str) -> Result<Self> {
        let metadata = json!({ "namespace": namespace, "name": account });
        let made = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata });
        objects::apply(client, &made).await?;
        let pod = format!("{account}-{node}");
        let made = objects::apply(
            client,
            &json!({
                "apiVersion": "v1", "kind": "Pod", "metadata": { "namespace": namespace, "name": pod },
                "spec": {
                    "nodeName": node, "serviceAccountName": account,
                    "containers": [{ "name": "agent", "image": "none" }],
                },
            }),
        )
        .await?;
        let uid = made.pointer("/metadata/uid").and_then(Value::as_str).context("a UID")?.to_owned();
        Ok(Self { namespace: namespace.to_owned(), account: account.to_owned(), pod, uid })
    }

    /// A token as the kubelet asks for it, for that audience.
    ///
    /// # Errors
    /// When the apiserver refuses.
    pub async fn token(&self, client: &Client, audience: &str) -> Result<String> {
        let Self { namespace, account, pod, uid } = self;
        let body = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": {
                "audiences": [audience], "expirationSeconds": 600,
                "boundObjectRef": { "apiVersion": "v1", "kind": "Pod", "name": pod, "uid": uid },
            },
        });
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        let request = Request::post(path).header("content-type", "application/json");
        let made: Value = client.request(request.body(body.to_string().into_bytes())?).await?;
        Ok(made.pointer("/status/token").and_then(Value::as_str).context("a token")?.to_owned())
    }
}

/// The same token, signed by the apiserver's own key, as if it ran out in so many seconds from now.
///
/// # Errors
/// When the token is none.
pub fn ending(cluster: &ControlPlane, token: &str, seconds: i64) -> Result<String> {
    let key = fs::read_to_string(cluster.account_key())?;
    changed(token, &KeyPair::from_pem(&key)?, None, seconds)
}

/// The same token, signed by somebody else.
///
/// # Errors
/// When the token is none.
pub fn forged(token: &str) -> Result<String> {
    changed(token, &KeyPair::generate()?, Some("forged".to_owned()), 600)
}

fn changed(token: &str, key: &KeyPair, id: Option<String>, seconds: i64) -> Result<String> {
    let was = jsonwebtoken::decode_header(token)?;
    let mut claims: Value = jsonwebtoken::dangerous::insecure_decode_claims(token)?;
    let now = jiff::Timestamp::now().as_second();
    for (claim, at) in [("iat", now - 3600), ("nbf", now - 3600), ("exp", now + seconds)] {
        claims[claim] = json!(at);
    }
    let mut header = Header::new(Algorithm::ES256);
    header.kid = id.or(was.kid);
    Ok(jsonwebtoken::encode(&header, &claims, &EncodingKey::from_ec_der(&key.serialize_der()))?)
}
