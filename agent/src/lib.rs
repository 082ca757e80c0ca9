//! distributary-agent: holds the table that the servers stream, and programs the node's packet filter with it.
//!
//! ```text
//! sync::client (IO) ─► sync::session (pure) ─► reconcile ─► plan, iptables (pure) ─► kernel (IO)
//!        ▲                                         │
//!        └───────────────── acks ──────────────────┘
//! ```
//!
//! [`reconcile`] is the only writer of the kernel.

pub mod app;
pub mod args;
pub mod cleanup;
pub mod config;
pub mod host;
pub mod iptables;
pub mod kernel;
pub mod metrics;
pub mod plan;
pub mod reconcile;
pub mod render;
pub mod sync;
