use jsonwebtoken::{EncodingKey, Header};
use rcgen::KeyPair;
use serde_json::{Value, json};

use super::*;

const NOW: u64 = 1_800_000_000;
const ISSUER: &str = "https://kubernetes.default.svc";

struct Issuer {
    id: &'static str,
    key: EncodingKey,
}

impl Issuer {
    fn new(id: &'static str) -> Self {
        Self { id, key: EncodingKey::from_ec_der(&KeyPair::generate().unwrap().serialize_der()) }
    }

    fn keys(&self) -> Keys {
        let mut key = Jwk::from_encoding_key(&self.key, Algorithm::ES256).unwrap();
        key.common.key_id = Some(self.id.to_owned());
        let set = serde_json::to_vec(&json!({ "keys": [key] })).unwrap();
        Keys::new(ISSUER.to_owned(), &set).unwrap()
    }

    fn sign(&self, claims: &Value) -> Secret {
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(self.id.to_owned());
        Secret::new(jsonwebtoken::encode(&header, claims, &self.key).unwrap())
    }
}

fn rules() -> Rules {
    let accounts = ["kube-system/agent", "other/agent"].map(|account| account.parse().unwrap());
    Rules { audience: "distributary".into(), accounts: accounts.into() }
}

/// As kube-apiserver has them.
fn claims(change: Value) -> Value {
    let mut claims = json!({
        "iss": ISSUER, "aud": ["distributary"], "iat": NOW, "nbf": NOW, "exp": NOW + 3600,
        "sub": "system:serviceaccount:kube-system:agent",
        "kubernetes.io": {
            "namespace": "kube-system", "node": { "name": "node-a", "uid": "u-1" },
            "pod": { "name": "agent-x", "uid": "p" }, "serviceaccount": { "name": "agent", "uid": "s" },
        },
    });
    for (name, value) in change.as_object().unwrap() {
        claims[name] = value.clone();
    }
    claims
}

#[test]
fn a_token_of_the_agents_account_proves_its_node() {
    let issuer = Issuer::new("k1");
    let check = |claims: &Value, now| issuer.keys().check(&issuer.sign(claims), &rules(), now);
    let proven = check(&claims(json!({})), NOW).unwrap();
    assert_eq!((&*proven.node, proven.uid.as_deref(), proven.expires), ("node-a", Some("u-1"), NOW + 3600));
    check(&claims(json!({ "aud": "distributary" })), NOW).unwrap();

    // Clocks may differ by a minute, both ways.
    check(&claims(json!({})), NOW - LEEWAY).unwrap();
    check(&claims(json!({})), NOW + 3600 + LEEWAY - 1).unwrap();
    let refused = |claims: &Value, now| match check(claims, now) {
        Err(Unproven::Refused(why)) => why,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(&claims(json!({})), NOW + 3600 + LEEWAY), "its token ran out 60 s ago");
    let early = refused(&claims(json!({})), NOW - LEEWAY - 1);
    assert_eq!(early, "its token is good in 61 s only: check the clocks");

    let audience = claims(json!({ "aud": ["https://kubernetes.default.svc"] }));
    let wanted = "its token is for the audience https://kubernetes.default.svc, wanted is distributary";
    assert_eq!(refused(&audience, NOW), wanted);
    let account = claims(json!({ "sub": "system:serviceaccount:tenant:agent" }));
    let wanted = "its token is of system:serviceaccount:tenant:agent, which --token-account does not name";
    assert_eq!(refused(&account, NOW), wanted);
    for odd in ["system:node:agent", "", "system:serviceaccount:kube-system:agent:more", "kube-system/agent"]
    {
        assert!(
            refused(&claims(json!({ "sub": odd })), NOW).ends_with("--token-account does not name"),
            "{odd}"
        );
    }
    let issuer = claims(json!({ "iss": "https://elsewhere" }));
    let wanted = format!("its token is by the issuer https://elsewhere, wanted is {ISSUER}");
    assert_eq!(refused(&issuer, NOW), wanted);
    for missing in ["exp", "iss", "sub"] {
        let mut claims = claims(json!({}));
        claims.as_object_mut().unwrap().remove(missing);
        assert_eq!(refused(&claims, NOW), "its token has other claims than a ServiceAccount's", "{missing}");
    }
    let mut nobody = claims(json!({}));
    nobody.as_object_mut().unwrap().remove("aud");
    assert!(refused(&nobody, NOW).starts_with("its token is for the audience , wanted"));
}

#[test]
fn what_is_not_signed_by_the_issuer_proves_nothing() {
    let (ours, theirs) = (Issuer::new("k1"), Issuer::new("k1"));
    let keys = ours.keys();
    let wrong = keys.check(&theirs.sign(&claims(json!({}))), &rules(), NOW);
    assert_eq!(wrong, Err(Unproven::Refused("its token's signature is not the issuer's".into())));
    let unknown = keys.check(&Issuer::new("k2").sign(&claims(json!({}))), &rules(), NOW);
    assert_eq!(unknown, Err(Unproven::UnknownKey("k2".into())));

    // Whoever knows the public key must not be able to sign by using it as a secret, nor by not signing at all.
    let mut header = Header::new(Algorithm::HS256);
    header.kid = Some("k1".into());
    let forged =
        jsonwebtoken::encode(&header, &claims(json!({})), &EncodingKey::from_secret(b"public key")).unwrap();
    let forged = keys.check(&Secret::new(forged), &rules(), NOW);
    assert_eq!(forged, Err(Unproven::Refused("its token is signed by HS256".into())));
    let genuine = ours.sign(&claims(json!({})));
    let (signed, _) = genuine.reveal().rsplit_once('.').unwrap();
    for odd in [format!("{signed}."), signed.to_owned(), "a.b.c".to_owned(), "x".to_owned()] {
        assert!(matches!(keys.check(&Secret::new(odd), &rules(), NOW), Err(Unproven::Refused(_))));
    }
    let none =
        "eyJhbGciOiJub25lIiwia2lkIjoiazEifQ".to_owned() + "." + signed.split('.').nth(1).unwrap() + ".";
    assert!(matches!(keys.check(&Secret::new(none), &rules(), NOW), Err(Unproven::Refused(_))));
    let long = keys.check(&Secret::new("x".repeat(LONGEST + 1)), &rules(), NOW);
    assert_eq!(long, Err(Unproven::Refused("its token has 8193 bytes, 8192 are possible".into())));
}

#[test]
fn a_token_without_a_node_is_for_the_api_to_explain() {
    let issuer = Issuer::new("k1");
    let bare = claims(json!({ "kubernetes.io": { "namespace": "kube-system" } }));
    let token = issuer.sign(&bare);
    assert_eq!(issuer.keys().check(&token, &rules(), NOW), Err(Unproven::Nodeless));
    let node = Reference { name: "node-b".into(), uid: "u".into() };
    let genuine = || Claims::of_genuine(&token).unwrap();
    let username = bare["sub"].as_str().unwrap();
    let told = genuine().reviewed(username, Some(node.clone())).unwrap().check(&rules(), NOW).unwrap();
    assert_eq!((&*told.node, told.uid.as_deref()), ("node-b", Some("u")));
    // The API knows others than ServiceAccounts, whose tokens may say what they like.
    assert!(genuine().reviewed("oidc:somebody", Some(node)).is_err());
    // What it does not say of the node, the token does not either.
    let claimed = issuer.sign(&claims(json!({})));
    let claimed = Claims::of_genuine(&claimed).unwrap().reviewed(username, None).unwrap();
    assert_eq!(claimed.check(&rules(), NOW), Err(Unproven::Nodeless));
}

#[test]
fn keys_that_cannot_be_used_are_named() {
    let new = |text: &str| format!("{:#}", Keys::new(ISSUER.to_owned(), text.as_bytes()).unwrap_err());
    assert!(new("nonsense").starts_with("the issuer's keys are no JSON web key set"));
    assert_eq!(new(r#"{"keys": []}"#), "none of the issuer's 0 keys can be used");
}
