//! distributary-server: watches Services, EndpointSlices, Nodes and ServiceCIDRs, and streams what changes to agents.
//!
//! ```text
//! source (IO) ─► cluster (pure, a crate of its own) ─► journal (pure) ─► session (pure) ─► serve (IO)
//! ```
//!
//! [`distribute`] is the one writer of the journal; sessions read it, each at its own pace.

pub mod admin;
pub mod app;
pub mod args;
pub mod ask;
pub mod auth;
pub mod budget;
mod collector;
pub mod distribute;
pub mod fleet;
pub mod journal;
pub mod metrics;
pub mod pace;
pub mod replicas;
pub mod serve;
pub mod session;
pub mod source;
pub mod status;
