//! UDP flows follow their service: entries of the kernel's connection table that lead where nobody serves any more are
//! deleted, so that the next packet is translated anew (spec/kube-proxy.md §4.7).
//!
//! ```text
//! reconcile ─► mailbox ─► worker ─► ledger (pure: which flows are stale) ─► table (netlink: lists, deletes)
//! ```
//!
//! It is a reconciliation and no replay of events: each pass looks at every UDP flow of the node. It follows a
//! successful write and never holds one up; many changes make one pass.
//!
//! Beyond kube-proxy, whose flows then lead to nowhere for as long as the client talks: flows to what is not a
//! destination any more (a Service that is gone, or has another port or address) are stale, and flows to a service
//! without serving endpoints are, after [`ledger::GRACE`].

pub mod flow;
pub mod ledger;
pub mod mailbox;
pub mod metrics;
pub mod table;
pub mod worker;

pub use flow::Flow;
pub use ledger::Ledger;
pub use mailbox::{Changes, Mailbox};
pub use worker::Worker;

#[cfg(test)]
mod tests;
