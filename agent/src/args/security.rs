//! Flags of how servers are known, and how the agent is known to them.

use std::path::PathBuf;

use anyhow::{Context, bail};
use distributary_runtime::tls::{Connector, Identity, PemFile};

use crate::sync::credential::TokenFile;
use crate::sync::dial::{Dialer, Tls};

/// How servers and this agent prove who they are.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Security")]
pub struct SecurityArgs {
    /// Authorities that servers' certificates are signed by (PEM): talk TLS, and to no other server. Read again for
    /// every connection, as the files below are
    #[arg(long, env = "DISTRIBUTARY_CA", value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// This node's certificate (PEM): proves to servers which node this is
    #[arg(long, env = "DISTRIBUTARY_CERT", value_name = "FILE", requires = "key", requires = "ca")]
    pub cert: Option<PathBuf>,
    /// The certificate's private key (PEM)
    #[arg(long, env = "DISTRIBUTARY_KEY", value_name = "FILE", requires = "cert")]
    pub key: Option<PathBuf>,
    /// A ServiceAccount token that is made for servers and bound to a pod of this node: proves which node this is. Read
    /// again when it changes
    #[arg(long, env = "DISTRIBUTARY_TOKEN", value_name = "FILE", requires = "ca")]
    pub token: Option<PathBuf>,
    /// Name that servers' certificates are for [default: the host that is dialled]
    #[arg(long, env = "DISTRIBUTARY_SERVER_NAME", value_name = "NAME", requires = "ca")]
    pub server_name: Option<String>,
    /// Connect to a server beyond loopback without TLS
    #[arg(long, env = "DISTRIBUTARY_INSECURE", conflicts_with = "ca")]
    pub insecure: bool,
}

impl SecurityArgs {
    /// What connects to these servers.
    ///
    /// # Errors
    /// When a server is not HOST:PORT, what it says would not be secured although nobody asked for that, or a file
    /// cannot be used: one clear line.
    pub fn dialer(&self, servers: &[String]) -> anyhow::Result<Dialer> {
        for server in servers {
            self.check(server)?;
        }
        let Some(ca) = &self.ca else { return Ok(Dialer::default()) };
        let file = |flag, path: &PathBuf| PemFile { flag, path: path.clone() };
        let identity = self
            .cert
            .as_ref()
            .zip(self.key.as_ref())
            .map(|(cert, key)| Identity { certificate: file("--cert", cert), key: file("--key", key) });
        let connector = Connector { authorities: file("--ca", ca), identity };
        connector.check()?;
        let token = self.token.clone().map(TokenFile::new);
        if let Some(token) = &token {
            token.read()?;
        }
        Ok(Dialer::secure(Tls { connector, server_name: self.server_name.clone(), token }))
    }

    fn check(&self, server: &str) -> anyhow::Result<()> {
        let (host, port) =
            server.rsplit_once(':').with_context(|| format!("--server {server:?} is not HOST:PORT"))?;
        if host.is_empty() || port.parse::<u16>().is_err() {
            bail!("--server {server:?} is not HOST:PORT");
        }
        let host = host.trim_matches(['[', ']']);
        let loopback = host == "localhost" || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
        if !loopback && !self.insecure && self.ca.is_none() {
            bail!(
                "--server {server} is on another machine, and what it says would not be secured: give --ca, or say \
                 --insecure if that is meant"
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_checked_before_anything_is_touched() {
        let check = |server: &str, insecure| {
            let args = SecurityArgs { insecure, ..SecurityArgs::default() };
            args.dialer(&[server.to_owned()]).map(drop).map_err(|e| format!("{e:#}"))
        };
        assert_eq!(check("127.0.0.1:7400", false), Ok(()));
        assert_eq!(check("[::1]:7400", false), Ok(()));
        assert_eq!(check("10.0.0.1:7400", true), Ok(()));
        assert!(check("10.0.0.1:7400", false).unwrap_err().contains("not be secured"));
        assert_eq!(check("nonsense", false).unwrap_err(), "--server \"nonsense\" is not HOST:PORT");
        let args = SecurityArgs { ca: Some("/nowhere/ca.crt".into()), ..SecurityArgs::default() };
        let error = format!("{:#}", args.dialer(&["10.0.0.1:7400".to_owned()]).unwrap_err());
        assert!(error.starts_with("--ca /nowhere/ca.crt: No such file"), "{error}");
    }
}
