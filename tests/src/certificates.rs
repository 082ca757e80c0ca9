//! Authorities, and certificates of servers and nodes, in files as an operator would have them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};

/// Signs certificates.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// Files of one who proves who he is, and of the authority that he trusts.
#[derive(Clone, Debug)]
pub struct Files {
    /// The authority's certificate.
    pub authority: PathBuf,
    /// His certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// A certificate and its key, in PEM form.
#[derive(Clone, Debug)]
pub struct Leaf(String, String);

impl Authority {
    /// A new one of that name.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn new(name: &str) -> Result<Self> {
        let mut params = CertificateParams::new([])?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate()?;
        let pem = params.self_signed(&key)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), pem })
    }

    /// A certificate for a server of these names and addresses.
    ///
    /// # Errors
    /// When a name is none.
    pub fn server(&self, names: &[&str]) -> Result<Leaf> {
        self.sign(CertificateParams::new(names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>())?)
    }

    /// A node's certificate, by its common name.
    ///
    /// # Errors
    /// When the name is none.
    pub fn node(&self, node: &str) -> Result<Leaf> {
        self.sign(of_node(node)?)
    }

    /// A node's certificate, by a SPIFFE URI.
    ///
    /// # Errors
    /// When the name is none.
    pub fn spiffe(&self, node: &str) -> Result<Leaf> {
        let mut params = CertificateParams::new([])?;
        params.subject_alt_names.push(SanType::URI(format!("spiffe://example.org/node/{node}").try_into()?));
        self.sign(params)
    }

    /// A node's certificate that was good until 2020.
    ///
    /// # Errors
    /// When the name is none.
    pub fn expired(&self, node: &str) -> Result<Leaf> {
        let mut params = of_node(node)?;
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
        self.sign(params)
    }

    fn sign(&self, params: CertificateParams) -> Result<Leaf> {
        let key = KeyPair::generate()?;
        Ok(Leaf(params.signed_by(&key, &self.issuer)?.pem(), key.serialize_pem()))
    }

    /// Writes files of somebody who trusts this authority, as `NAME.crt` and so on; what is there is replaced.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn files(&self, folder: &Path, name: &str, Leaf(certificate, key): &Leaf) -> Result<Files> {
        let put = |what: &str, text: &str| -> Result<PathBuf> {
            let path = folder.join(format!("{name}.{what}"));
            let beside = folder.join(format!("{name}.{what}.new"));
            fs::write(&beside, text)?;
            fs::rename(beside, &path)?;
            Ok(path)
        };
        Ok(Files {
            authority: put("ca", &self.pem)?,
            certificate: put("crt", certificate)?,
            key: put("key", key)?,
        })
    }
}

fn of_node(node: &str) -> Result<CertificateParams> {
    let mut params = CertificateParams::new([])?;
    params.distinguished_name.push(DnType::CommonName, format!("system:node:{node}"));
    Ok(params)
}

impl Files {
    /// The flags of a server with these files.
    #[must_use]
    pub fn of_server(&self) -> Vec<String> {
        self.flags(["--client-ca", "--tls-cert", "--tls-key"])
    }

    /// The flags of an agent with these files.
    #[must_use]
    pub fn of_agent(&self) -> Vec<String> {
        self.flags(["--ca", "--cert", "--key"])
    }

    fn flags(&self, flags: [&str; 3]) -> Vec<String> {
        let paths = [&self.authority, &self.certificate, &self.key];
        flags
            .into_iter()
            .zip(paths)
            .flat_map(|(flag, path)| [flag.to_owned(), path.display().to_string()])
            .collect()
    }
}
