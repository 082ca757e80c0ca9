//! distributary-agent: holds the table that the servers stream, and programs the node's packet filter with it.
//!
//! ```text
//! sync::client (IO) ─► sync::driver, session (pure) ─► reconcile ─► plan, iptables (pure) ─► kernel (IO)
//!        ▲                                                 │
//!        └───────────────────── acks ──────────────────────┘
//! ```
//!
//! [`reconcile`] is the only writer of the kernel's rules. [`conntrack`] follows it, and looks after the flows that
//! the rules once translated.

pub mod app;
pub mod args;
pub mod checkpoint;
pub mod cleanup;
pub mod config;
pub mod conntrack;
pub mod debug;
pub mod health;
pub mod host;
pub mod iptables;
pub mod kernel;
pub mod metrics;
pub mod netlink;
pub mod nfacct;
pub mod nftables;
pub mod node;
pub mod observe;
pub mod plan;
pub mod reconcile;
pub mod render;
pub mod sync;
