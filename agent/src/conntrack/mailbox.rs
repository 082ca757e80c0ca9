//! What was written since the last pass, merged: a pass that takes long costs one batch and no queue.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use distributary_model::{Key, Service};
use tokio::sync::Notify;

use crate::plan::{Claim, Family, NodeState};

/// What is in the kernel now, and was not before.
#[derive(Debug, Default)]
pub struct Changes {
    /// Services that were written; `None`: gone.
    pub services: BTreeMap<Arc<Key>, Option<Arc<Service>>>,
    /// What the node has become.
    pub node: BTreeMap<Family, NodeState>,
    /// Rules were missing for a while.
    pub lost: bool,
    /// UDP destinations of the rules that were found in the kernel and written over: whose services are gone by now, this
    /// process has never heard of.
    pub found: BTreeMap<Family, BTreeSet<Claim>>,
}

/// Between the reconciler and the worker.
#[derive(Debug, Default)]
pub struct Mailbox {
    waiting: Mutex<Option<Changes>>,
    news: Notify,
}

impl Mailbox {
    /// Adds what has been written. The newest of a Service, and of the node, wins.
    pub fn put(&self, mut changes: Changes) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let all = waiting.get_or_insert_default();
        all.services.append(&mut changes.services);
        all.node.append(&mut changes.node);
        all.lost |= changes.lost;
        all.found.append(&mut changes.found);
        drop(waiting);
        self.news.notify_one();
    }

    /// Everything that waits. Waits for something.
    pub async fn take(&self) -> Changes {
        loop {
            if let Some(waiting) = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take() {
                return waiting;
            }
            self.news.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use distributary_model::testing as t;

    #[tokio::test]
    async fn what_waits_is_one_batch_and_the_newest_wins() {
        let (mailbox, key) = (Mailbox::default(), t::key("ns/name"));
        let service = Some(Arc::new(t::service(&["10.96.0.1"])));
        mailbox.put(Changes { services: [(key.clone(), service)].into(), lost: true, ..Changes::default() });
        mailbox.put(Changes { services: [(key.clone(), None)].into(), ..Changes::default() });
        let changes = mailbox.take().await;
        assert_eq!((changes.services, changes.lost), ([(key, None)].into(), true));
    }
}
