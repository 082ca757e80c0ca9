//! Files of certificates and keys.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::provider;

/// No file of certificates is larger, in bytes.
const LARGEST: u64 = 1 << 20;

/// A file in PEM form, and the flag that names it to its operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PemFile {
    /// Such as `--client-ca`.
    pub flag: &'static str,
    /// Where it is.
    pub path: PathBuf,
}

/// A certificate with those that lead to its authority, and its private key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The certificate's file.
    pub certificate: PemFile,
    /// The key's file.
    pub key: PemFile,
}

impl fmt::Display for PemFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.flag, self.path.display())
    }
}

impl PemFile {
    /// What is in the file. It may be a secret.
    pub(super) fn read(&self) -> anyhow::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let file = File::open(&self.path).with_context(|| self.to_string())?;
        file.take(LARGEST + 1).read_to_end(&mut bytes).with_context(|| self.to_string())?;
        ensure!(bytes.len() as u64 <= LARGEST, "{self}: more than {LARGEST} bytes are no certificates");
        Ok(bytes)
    }

    fn certificates(&self, bytes: &[u8]) -> anyhow::Result<Vec<CertificateDer<'static>>> {
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
        let found = found.map_err(|e| anyhow::anyhow!("{self}: what is in it is not PEM: {e}"))?;
        if found.is_empty() {
            bail!("{self}: there is no certificate in PEM form in it");
        }
        Ok(found)
    }

    /// The authorities in what the file held.
    pub(super) fn authorities(&self, bytes: &[u8]) -> anyhow::Result<Arc<RootCertStore>> {
        let mut store = RootCertStore::empty();
        for certificate in self.certificates(bytes)? {
            store
                .add(certificate)
                .map_err(|e| anyhow::anyhow!("{self}: a certificate in it is broken: {e}"))?;
        }
        Ok(Arc::new(store))
    }
}

impl Identity {
    /// What both files hold.
    pub(super) fn read(&self) -> anyhow::Result<(Vec<u8>, Vec<u8>)> {
        Ok((self.certificate.read()?, self.key.read()?))
    }

    /// The identity in what the files held; the key must be the certificate's.
    pub(super) fn certified(&self, certificate: &[u8], key: &[u8]) -> anyhow::Result<Arc<CertifiedKey>> {
        let chain = self.certificate.certificates(certificate)?;
        // What is wrong with a key is not told by what is in it.
        let key = PrivateKeyDer::from_pem_slice(key)
            .ok()
            .with_context(|| format!("{}: there is no private key in PEM form in it", self.key))?;
        match CertifiedKey::from_der(chain, key, &provider()) {
            Ok(certified) => Ok(Arc::new(certified)),
            Err(rustls::Error::InconsistentKeys(_)) => {
                bail!("{} is not the key of {}", self.key, self.certificate)
            }
            Err(e) => bail!("{} with {} cannot be used: {e}", self.certificate, self.key),
        }
    }
}
