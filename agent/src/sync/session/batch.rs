//! What the session hands on.

use std::collections::BTreeMap;
use std::sync::Arc;

use distributary_model::{Cursor, Key, NodeView, Service};
use ipnet::IpNet;

use crate::sync::underway::Underway;

/// What is to be programmed together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// The services that changed, as they are now; `None`: gone.
    pub services: BTreeMap<Arc<Key>, Option<Arc<Service>>>,
    /// The agent's Node, where it changed: `Some(None)` where the source has none.
    pub node: Option<Option<NodeView>>,
    /// Where cluster IPs of the agent's own cluster come from, where that changed.
    pub service_cidrs: Option<Vec<IpNet>>,
    /// Where the agent stands with this batch.
    pub cursor: Option<Cursor>,
    /// What is measured on its way to the kernel.
    pub underway: Underway,
}

impl Batch {
    /// Takes a later batch in.
    pub fn merge(&mut self, later: Self) {
        for key in later.gone() {
            self.underway.forget(key);
        }
        self.underway.merge(later.underway);
        self.services.extend(later.services);
        self.node = later.node.or(self.node.take());
        self.service_cidrs = later.service_cidrs.or(self.service_cidrs.take());
        self.cursor = later.cursor.or(self.cursor);
    }

    /// The services that are gone.
    pub fn gone(&self) -> impl Iterator<Item = &Key> {
        self.services.iter().filter(|(_, service)| service.is_none()).map(|(key, _)| &**key)
    }
}
