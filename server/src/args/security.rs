//! Flags of who may connect, and how it is kept from others.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::bail;
use distributary_runtime::tls::{Acceptor, Clients, Identity, PemFile};

/// How agents and this server prove who they are.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Security")]
pub struct SecurityArgs {
    /// This server's certificate, with those that lead to its authority (PEM); read again when it changes
    #[arg(long, env = "DISTRIBUTARY_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// The certificate's private key (PEM)
    #[arg(long, env = "DISTRIBUTARY_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Authorities whose certificates prove which node an agent is of (PEM): by a URI spiffe://…/node/NAME, or by the
    /// common name system:node:NAME
    #[arg(long, env = "DISTRIBUTARY_CLIENT_CA", value_name = "FILE", requires = "tls_cert")]
    pub client_ca: Option<PathBuf>,
    /// Serve agents that prove nothing; beyond loopback, also without TLS
    #[arg(long, env = "DISTRIBUTARY_INSECURE")]
    pub insecure: bool,
}

impl SecurityArgs {
    /// Refuses what would let anybody in who was not meant to be.
    ///
    /// # Errors
    /// One clear line.
    pub fn check(&self, listen: SocketAddr) -> anyhow::Result<()> {
        let Self { tls_cert, tls_key: _, client_ca, insecure } = self;
        if *insecure && client_ca.is_some() {
            bail!("--insecure serves agents that prove nothing, --client-ca does not: say one of them");
        }
        if *insecure || client_ca.is_some() {
            return Ok(());
        }
        if tls_cert.is_some() {
            bail!(
                "--tls-cert proves this server to agents, but nothing proves agents to it: any of them could speak for \
                 any node; give --client-ca, or say --insecure"
            );
        }
        if !listen.ip().is_loopback() {
            bail!(
                "--listen {listen} is reachable from other machines and there is no TLS certificate: every Service \
                 would be readable by anybody; give --tls-cert, --tls-key and --client-ca, listen on loopback, or say \
                 --insecure"
            );
        }
        Ok(())
    }

    /// What makes connections secure, where they are.
    ///
    /// # Errors
    /// When a file cannot be used: one clear line.
    pub fn acceptor(&self) -> anyhow::Result<Option<Acceptor>> {
        let (Some(certificate), Some(key)) = (&self.tls_cert, &self.tls_key) else { return Ok(None) };
        let file = |flag, path: &PathBuf| PemFile { flag, path: path.clone() };
        let identity = Identity { certificate: file("--tls-cert", certificate), key: file("--tls-key", key) };
        let clients = match &self.client_ca {
            Some(path) => Clients::Certified(file("--client-ca", path)),
            None => Clients::Unproven,
        };
        Acceptor::new(identity, clients).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use crate::args::Args;

    fn check(more: &[&str]) -> String {
        let args = Args::try_parse_from([&["server", "--listen", "0.0.0.0:7400"], more].concat());
        args.map_or_else(
            |e| e.to_string(),
            |args| args.check().err().map(|e| e.to_string()).unwrap_or_default(),
        )
    }

    #[test]
    fn beyond_loopback_agents_prove_who_they_are_or_somebody_said_insecure() {
        let tls = ["--tls-cert", "c", "--tls-key", "k"];
        assert!(check(&[]).starts_with("--listen 0.0.0.0:7400 is reachable"), "{}", check(&[]));
        assert_eq!(check(&["--insecure"]), "");
        assert!(check(&tls).contains("nothing proves agents to it"), "{}", check(&tls));
        assert_eq!(check(&[&tls[..], &["--insecure"]].concat()), "");
        assert_eq!(check(&[&tls[..], &["--client-ca", "a"]].concat()), "");
        let both = check(&[&tls[..], &["--client-ca", "a", "--insecure"]].concat());
        assert!(both.ends_with("say one of them"), "{both}");
        assert!(check(&["--tls-cert", "c"]).contains("--tls-key"));
        assert!(check(&["--client-ca", "c", "--insecure"]).contains("--tls-cert"));
    }
}
