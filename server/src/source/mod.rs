//! Where state comes from: one trait, lean events.

use distributary_cluster::Event;
use distributary_model::ObjectKind;
use tokio::sync::mpsc;

mod client;
pub mod dir;
pub mod kubernetes;
mod probe;
mod relist;
mod watch;
mod wire;

/// What a source learned. All of it is one commit.
#[derive(Debug, Default)]
pub struct Update {
    /// Objects that changed, in order.
    pub events: Vec<Event>,
    /// Kinds whose initial list is complete with this update.
    pub listed: Vec<ObjectKind>,
    /// The newest resourceVersion that is included, of the kinds where it moved; 0: not numeric.
    pub marks: Vec<(ObjectKind, u64)>,
    /// Kinds that are known to be up to date at this moment: after an event, a bookmark or a probe.
    pub fresh: Vec<ObjectKind>,
}

/// A source of objects of one cluster.
pub trait Source: Send + 'static {
    /// Sends updates until the receiver is gone. A source that cannot reach its origin goes on trying, deletes nothing,
    /// and just is not fresh.
    ///
    /// # Errors
    /// Only for what cannot get better by trying again.
    fn run(self, updates: mpsc::Sender<Update>) -> impl Future<Output = anyhow::Result<()>> + Send;
}
