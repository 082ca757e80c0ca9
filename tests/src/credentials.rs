//! Keys, certificates and tokens for a kube-apiserver, made on the spot.

use std::{
    fmt::Write,
    fs::{self, File},
    io::Read,
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

/// Files in one folder, and the administrator's token.
#[derive(Debug)]
pub(crate) struct Credentials {
    pub(crate) authority: PathBuf,
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) account_key: PathBuf,
    pub(crate) account_public_key: PathBuf,
    pub(crate) tokens: PathBuf,
    pub(crate) token: String,
}

impl Credentials {
    /// Makes and writes all of them. The certificate is good for `addresses` and for `localhost`.
    pub(crate) fn write(folder: &Path, addresses: &[IpAddr]) -> Result<Self> {
        let token = random_token()?;
        let made = Self {
            authority: folder.join("ca.crt"),
            certificate: folder.join("tls.crt"),
            key: folder.join("tls.key"),
            account_key: folder.join("accounts.key"),
            account_public_key: folder.join("accounts.pub"),
            tokens: folder.join("tokens.csv"),
            token,
        };
        made.write_certificates(addresses)?;
        let account = KeyPair::generate()?;
        fs::write(&made.account_key, account.serialize_pem())?;
        fs::write(&made.account_public_key, account.public_key_pem())?;
        fs::write(&made.tokens, format!("{},admin,admin,system:masters\n", made.token))?;
        Ok(made)
    }

    fn write_certificates(&self, addresses: &[IpAddr]) -> Result<()> {
        // An authority and a leaf: rustls does not take a certificate that is both.
        let authority_key = KeyPair::generate()?;
        let mut authority = CertificateParams::new([])?;
        authority.distinguished_name.push(DnType::CommonName, "test authority");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        fs::write(&self.authority, authority.self_signed(&authority_key)?.pem())?;

        let key = KeyPair::generate()?;
        let names: Vec<String> =
            addresses.iter().map(ToString::to_string).chain(["localhost".to_owned()]).collect();
        let mut leaf = CertificateParams::new(names)?;
        leaf.distinguished_name.push(DnType::CommonName, "kube-apiserver");
        let issuer = Issuer::new(authority, authority_key);
        fs::write(&self.certificate, leaf.signed_by(&key, &issuer)?.pem())?;
        fs::write(&self.key, key.serialize_pem())?;
        Ok(())
    }

    /// A kubeconfig of the administrator.
    pub(crate) fn kubeconfig(&self, url: &str) -> String {
        // Names are all "test"; the paths are our own and need no quoting.
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
             clusters:\n- name: test\n  cluster:\n    server: {url}\n    certificate-authority: {}\n\
             users:\n- name: test\n  user:\n    token: {}\n\
             contexts:\n- name: test\n  context:\n    cluster: test\n    user: test\n",
            self.authority.display(),
            self.token
        )
    }
}

fn random_token() -> Result<String> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    let mut token = String::new();
    for byte in bytes {
        write!(token, "{byte:02x}")?;
    }
    Ok(token)
}
