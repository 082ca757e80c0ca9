//! Who a certificate is of. That an authority signed it was seen before.

use distributary_model::{Name, limits};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{By, Identity};

/// What a kubelet's common name begins with.
const COMMON: &str = "system:node:";
const SCHEME: &str = "spiffe://";
/// What stands between a SPIFFE URI's trust domain and the node's name.
const NODE: &str = "/node/";

/// Who a certificate (DER) is of: by its SPIFFE URI where it has one, else by its common name.
///
/// # Errors
/// What it says instead, and what it should say.
pub fn identity(certificate: &[u8]) -> Result<Identity, String> {
    let (_, certificate) =
        X509Certificate::from_der(certificate).map_err(|_| "its certificate cannot be read".to_owned())?;
    let expires = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
    Ok(Identity { node: node_of(&certificate)?, uid: None, expires, by: By::Certificate })
}

fn node_of(certificate: &X509Certificate<'_>) -> Result<Name, String> {
    let names = certificate.subject_alternative_name().map_err(|e| format!("its certificate has {e}"))?;
    let names = names.iter().flat_map(|names| &names.value.general_names);
    let mut ids = names.filter_map(|name| match name {
        GeneralName::URI(uri) if uri.starts_with(SCHEME) => Some(*uri),
        _ => None,
    });
    if let Some(id) = ids.next() {
        // SPIFFE allows one only: of two, either could be meant.
        if ids.next().is_some() {
            return Err("its certificate has several SPIFFE URIs, one is possible".to_owned());
        }
        let node = id.strip_prefix(SCHEME).and_then(|rest| rest.find('/').map(|at| &rest[at..]));
        let node = node.and_then(|path| path.strip_prefix(NODE)).filter(|node| is_name(node));
        return node
            .map(Name::from)
            .ok_or_else(|| format!("its certificate is of {id:?}, wanted is {SCHEME}DOMAIN{NODE}NAME"));
    }
    let common = certificate.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
    let common = common.unwrap_or_default();
    let node = common.strip_prefix(COMMON).filter(|node| is_name(node));
    node.map(Name::from).ok_or_else(|| {
        format!(
            "its certificate names no node: it has no URI {SCHEME}DOMAIN{NODE}NAME, and its common name is {common:?} \
             and not {COMMON}NAME"
        )
    })
}

/// As the API has names of Nodes.
fn is_name(text: &str) -> bool {
    let inside =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.';
    !text.is_empty() && text.len() <= limits::STRING_BYTES && text.bytes().all(inside)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    use super::*;

    fn certificate(common: &str, uris: &[&str]) -> Vec<u8> {
        let mut params = CertificateParams::new([]).unwrap();
        params.distinguished_name.push(DnType::CommonName, common);
        let uri = |uri: &&str| SanType::URI((*uri).try_into().unwrap());
        params.subject_alt_names = uris.iter().map(uri).collect();
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn a_node_is_named_by_uri_or_by_common_name() {
        let node =
            |common, uris: &[&str]| identity(&certificate(common, uris)).map(|one| one.node.to_string());
        assert_eq!(node("system:node:worker-1.example", &[]).as_deref(), Ok("worker-1.example"));
        assert_eq!(node("anything", &["spiffe://cluster.local/node/a"]).as_deref(), Ok("a"));
        assert_eq!(node("system:node:a", &["https://example.org"]).as_deref(), Ok("a"));
        // What a URI says counts, whatever the common name says.
        assert!(node("system:node:a", &["spiffe://cluster.local/ns/x/sa/y"]).is_err());
        assert!(node("system:node:a", &["spiffe://x/node/a", "spiffe://x/node/b"]).is_err());
        for odd in ["", "a", "system:node:", "system:node:A", "system:node:a/b", "kubernetes-admin"] {
            assert!(node(odd, &[]).unwrap_err().contains("and not system:node:NAME"), "{odd}");
        }
        for odd in ["spiffe://x/node/", "spiffe://x/node/a/b", "spiffe://x", "spiffe://x/other/a"] {
            assert!(node("system:node:a", &[odd]).unwrap_err().contains("wanted is"), "{odd}");
        }
    }

    #[test]
    fn what_is_no_certificate_is_no_panic() {
        let whole = certificate("system:node:a", &["spiffe://x/node/a"]);
        for end in 0..whole.len() {
            assert!(identity(&whole[..end]).is_err());
        }
    }
}
