//! Flags of who may connect, and how it is kept from others.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::bail;
use distributary_runtime::tls::{Acceptor, Clients, Identity, PemFile};
use kube::Client;

use crate::auth::token::{Account, Rules};
use crate::auth::{KeySource, Tokens};

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
    /// ServiceAccount whose tokens prove of which node an agent is; may be repeated
    #[arg(
        long,
        env = "DISTRIBUTARY_TOKEN_ACCOUNT",
        value_name = "NAMESPACE/NAME",
        value_delimiter = ',',
        requires = "tls_cert"
    )]
    pub token_account: Vec<Account>,
    /// Audience that tokens must be made for
    #[arg(long, env = "DISTRIBUTARY_TOKEN_AUDIENCE", value_name = "NAME", default_value = "distributary")]
    pub token_audience: String,
    /// Issuer that tokens must be by [default: what the watched API says]
    #[arg(long, env = "DISTRIBUTARY_TOKEN_ISSUER", value_name = "URL", requires = "token_account")]
    pub token_issuer: Option<String>,
    /// The issuer's keys, a JSON web key set, read again when it changes [default: the watched API's]
    #[arg(long, env = "DISTRIBUTARY_TOKEN_KEYS", value_name = "FILE", requires = "token_issuer")]
    pub token_keys: Option<PathBuf>,
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
        let Self { tls_cert, client_ca, token_account, insecure, .. } = self;
        let proven = client_ca.is_some() || !token_account.is_empty();
        if *insecure && proven {
            bail!(
                "--insecure serves agents that prove nothing, --client-ca and --token-account do not: say one of them"
            );
        }
        if *insecure || proven {
            return Ok(());
        }
        if tls_cert.is_some() {
            bail!(
                "--tls-cert proves this server to agents, but nothing proves agents to it: any of them could speak for \
                 any node; give --client-ca or --token-account, or say --insecure"
            );
        }
        if !listen.ip().is_loopback() {
            bail!(
                "--listen {listen} is reachable from other machines and there is no TLS certificate: every Service \
                 would be readable by anybody; give --tls-cert, --tls-key and --client-ca or --token-account, listen on \
                 loopback, or say --insecure"
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
            Some(path) if self.token_account.is_empty() => Clients::Certified(file("--client-ca", path)),
            Some(path) => Clients::PerhapsCertified(file("--client-ca", path)),
            None => Clients::Unproven,
        };
        Acceptor::new(identity, clients).map(Some)
    }

    /// What checks tokens, where they are taken. `api` is the watched one, where there is one.
    ///
    /// # Errors
    /// When there is nowhere to have keys from.
    pub fn tokens(&self, api: Option<Client>) -> anyhow::Result<Option<Arc<Tokens>>> {
        if self.token_account.is_empty() {
            return Ok(None);
        }
        let source = match (&api, &self.token_keys, &self.token_issuer) {
            (_, Some(path), Some(issuer)) => KeySource::File { path: path.clone(), issuer: issuer.clone() },
            (Some(_), None, issuer) => KeySource::Api { issuer: issuer.clone() },
            _ => bail!(
                "--token-account: no API is watched that could say who issues tokens; give --token-issuer and \
                 --token-keys"
            ),
        };
        let rules = Rules {
            audience: self.token_audience.clone(),
            accounts: self.token_account.iter().cloned().collect(),
        };
        Ok(Some(Arc::new(Tokens::new(rules, source, api))))
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
        assert_eq!(check(&[&tls[..], &["--token-account", "kube-system/agent"]].concat()), "");
        assert!(check(&["--token-account", "kube-system/agent"]).contains("--tls-cert"));
        assert!(
            check(&[&tls[..], &["--token-account", "agent"]].concat()).contains("expected NAMESPACE/NAME")
        );
        let both = check(&[&tls[..], &["--client-ca", "a", "--insecure"]].concat());
        assert!(both.ends_with("say one of them"), "{both}");
        assert!(check(&["--tls-cert", "c"]).contains("--tls-key"));
        assert!(check(&["--client-ca", "c", "--insecure"]).contains("--tls-cert"));
    }

    #[tokio::test]
    async fn keys_have_to_come_from_somewhere() {
        let tokens = |more: &[&str]| {
            let tls = ["server", "--tls-cert", "c", "--tls-key", "k"];
            let args = Args::try_parse_from([&tls[..], more].concat()).unwrap();
            args.security.tokens(None).map(|tokens| tokens.is_some()).map_err(|e| e.to_string())
        };
        assert_eq!(tokens(&[]), Ok(false));
        let why = tokens(&["--token-account", "a/b"]).unwrap_err();
        assert!(why.ends_with("give --token-issuer and --token-keys"), "{why}");
        let all = ["--token-account", "a/b,a/c", "--token-issuer", "i", "--token-keys", "f"];
        assert_eq!(tokens(&all), Ok(true));
    }
}
