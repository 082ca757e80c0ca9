//! TLS 1.3, from files in PEM form that may be replaced at any time.
//!
//! Who listens has an [`Acceptor`], which looks at its files every few seconds; who connects has a [`Connector`], which
//! reads its files for every connection. Neither resumes sessions: a resumed one would be trusted for what its
//! certificate was worth before.

mod acceptor;
mod connector;
mod pem;
mod reason;

pub use acceptor::{Acceptor, Clients};
pub use connector::Connector;
pub use pem::{Identity, PemFile};

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs};

/// The protocol that is spoken inside: HTTP/2.
const ALPN: &[u8] = b"h2";

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

#[cfg(test)]
mod tests;
