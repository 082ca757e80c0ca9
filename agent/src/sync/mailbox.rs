//! What waits to be programmed, merged: a kernel that is slow, or stuck, costs one batch and no queue.

use std::sync::{Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use tokio::sync::Notify;

use super::session::Batch;

/// Between the stream and the reconciler.
#[derive(Debug, Default)]
pub struct Mailbox {
    waiting: Mutex<Option<(Batch, Instant)>>,
    newest: Mutex<Option<SystemTime>>,
    news: Notify,
}

impl Mailbox {
    /// Adds a batch that was received now.
    pub fn put(&self, batch: Batch, now: Instant) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        match waiting.as_mut() {
            Some((earlier, _)) => earlier.merge(batch),
            None => *waiting = Some((batch, now)),
        }
        drop(waiting);
        *self.newest.lock().unwrap_or_else(PoisonError::into_inner) = Some(SystemTime::now());
        self.news.notify_one();
    }

    /// Looks at what waits, and since when its oldest part does; holds up whoever puts or takes.
    pub fn look<T>(&self, look: impl FnOnce(Option<&(Batch, Instant)>) -> T) -> T {
        look(self.waiting.lock().unwrap_or_else(PoisonError::into_inner).as_ref())
    }

    /// When something was last put, whether it waits or not.
    pub fn newest(&self) -> Option<SystemTime> {
        *self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything that waits, with when the oldest of it was received. Waits for something.
    pub async fn take(&self) -> (Batch, Instant) {
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
        let mailbox = Mailbox::default();
        let (first, key) = (Instant::now(), t::key("ns/name"));
        let service = Some(std::sync::Arc::new(t::service(&["10.96.0.1"])));
        mailbox.put(Batch { services: [(key.clone(), service)].into(), ..Batch::default() }, first);
        mailbox.put(
            Batch { services: [(key.clone(), None)].into(), node: Some(None), ..Batch::default() },
            Instant::now(),
        );
        let (batch, at) = mailbox.take().await;
        assert_eq!((batch.services, batch.node, at), ([(key, None)].into(), Some(None), first));
    }
}
