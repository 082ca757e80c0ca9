//! The side that connects.

use std::io;
use std::sync::Arc;

use anyhow::{Context, anyhow, bail};
use rustls::ClientConfig;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::pki_types::ServerName;
use rustls::sign::SingleCertAndKey;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{ALPN, Identity, PemFile, provider, reason};

/// Makes TLS connections, each with what its files hold then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connector {
    /// The authorities that servers' certificates are signed by.
    pub authorities: PemFile,
    /// Who we are.
    pub identity: Option<Identity>,
}

impl Connector {
    /// Whether the files can be used now.
    ///
    /// # Errors
    /// When one cannot: one line, with the flag that names it.
    pub fn check(&self) -> anyhow::Result<()> {
        self.config().map(drop)
    }

    /// Makes a connection secure, to the server of that name (or address), which speaks first.
    ///
    /// # Errors
    /// Why it cannot be: what is wrong with the server's certificate, with ours, or with a file.
    pub async fn connect<S>(&self, stream: S, name: &str) -> anyhow::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let server = ServerName::try_from(name.to_owned())
            .map_err(|_| anyhow!("{name:?} is neither a DNS name nor an address"))?;
        let why =
            |e: &io::Error| anyhow!(reason::of_server(e, &self.authorities, name, self.identity.as_ref()));
        let connector = TlsConnector::from(Arc::new(self.config()?));
        let mut stream = connector.connect(server, stream).await.map_err(|e| why(&e))?;
        // What a server thinks of our certificate it says after our side of the handshake is done.
        match stream.fill_buf().await {
            Ok([]) => bail!("the server ended the connection after the handshake"),
            Ok(_) => Ok(stream),
            Err(e) => Err(why(&e)),
        }
    }

    fn config(&self) -> anyhow::Result<ClientConfig> {
        let authorities = self.authorities.authorities(&self.authorities.read()?)?;
        let verifier = WebPkiServerVerifier::builder_with_provider(authorities, provider())
            .build()
            .with_context(|| format!("{} cannot be used", self.authorities))?;
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .context("TLS 1.3 is not there")?
            .with_webpki_verifier(verifier);
        let mut config = match &self.identity {
            Some(identity) => {
                let (certificate, key) = identity.read()?;
                let certified = identity.certified(&certificate, &key)?;
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified)))
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = Resumption::disabled();
        Ok(config)
    }
}
