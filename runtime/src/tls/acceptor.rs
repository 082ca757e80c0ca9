//! The side that listens.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::SingleCertAndKey;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::{ALPN, Identity, PemFile, provider, reason};

/// How often it is looked whether a file has changed.
const LOOK: Duration = Duration::from_secs(10);

/// What those who connect have to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Clients {
    /// No certificate.
    Unproven,
    /// A certificate by one of these authorities.
    Certified(PemFile),
    /// A certificate by one of these authorities, or none.
    PerhapsCertified(PemFile),
}

/// Accepts TLS connections with what its files hold at the time.
#[derive(Debug)]
pub struct Acceptor {
    identity: Identity,
    clients: Clients,
    config: ArcSwap<ServerConfig>,
}

/// What the files held.
#[derive(PartialEq, Eq)]
struct Held {
    certificate: Vec<u8>,
    key: Vec<u8>,
    authorities: Option<Vec<u8>>,
}

impl Acceptor {
    /// With what the files hold now.
    ///
    /// # Errors
    /// When one cannot be used: one line, with the flag that names it.
    pub fn new(identity: Identity, clients: Clients) -> anyhow::Result<Self> {
        let config = config(&identity, &clients, &read(&identity, &clients)?)?;
        Ok(Self { identity, clients, config: ArcSwap::from(config) })
    }

    /// Makes a connection secure.
    ///
    /// # Errors
    /// Why it is not, in words about the other end.
    pub async fn accept<S>(&self, stream: S) -> Result<TlsStream<S>, String>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let accepted = TlsAcceptor::from(self.config.load_full()).accept(stream).await;
        accepted.map_err(|e: io::Error| reason::of_client(&e, self.clients.authorities()))
    }

    /// Goes on to use what the files hold when they change. What cannot be used, such as a certificate whose key is not
    /// written yet, is said and tried again; the last that could stays in use.
    ///
    /// # Errors
    /// Never.
    pub async fn follow(self: Arc<Self>) -> anyhow::Result<()> {
        let mut used = read(&self.identity, &self.clients).ok();
        let mut said = String::new();
        loop {
            tokio::time::sleep(LOOK).await;
            let this = self.clone();
            let found = tokio::task::spawn_blocking(move || read(&this.identity, &this.clients));
            let outcome = match found.await.context("a file could not be looked at").flatten() {
                Ok(found) if used.as_ref() == Some(&found) => Ok(()),
                Ok(found) => config(&self.identity, &self.clients, &found).map(|config| {
                    self.config.store(config);
                    used = Some(found);
                    tracing::info!(certificate = %self.identity.certificate, "new certificates are in use");
                }),
                Err(e) => Err(e),
            };
            let error = outcome.err().map(|e| format!("{e:#}")).unwrap_or_default();
            if !error.is_empty() && error != said {
                tracing::error!(error, "the last good certificates stay in use");
            }
            said = error;
        }
    }
}

impl Clients {
    fn authorities(&self) -> Option<&PemFile> {
        match self {
            Self::Unproven => None,
            Self::Certified(file) | Self::PerhapsCertified(file) => Some(file),
        }
    }
}

fn read(identity: &Identity, clients: &Clients) -> anyhow::Result<Held> {
    let (certificate, key) = identity.read()?;
    let authorities = clients.authorities().map(PemFile::read).transpose()?;
    Ok(Held { certificate, key, authorities })
}

fn config(identity: &Identity, clients: &Clients, held: &Held) -> anyhow::Result<Arc<ServerConfig>> {
    let certified = identity.certified(&held.certificate, &held.key)?;
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .context("TLS 1.3 is not there")?;
    let builder = match (clients.authorities(), &held.authorities) {
        (Some(file), Some(bytes)) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(file.authorities(bytes)?, provider());
            let verifier = match clients {
                Clients::PerhapsCertified(_) => verifier.allow_unauthenticated(),
                _ => verifier,
            };
            let verifier = verifier.build().with_context(|| format!("{file} cannot be used"))?;
            builder.with_client_cert_verifier(verifier)
        }
        _ => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}
