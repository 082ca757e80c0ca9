//! Connections that nobody uses.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

/// Counts the streams of a connection.
#[derive(Clone, Debug)]
pub(super) struct Streams(Arc<watch::Sender<usize>>);

/// A stream, until it is dropped.
#[derive(Debug)]
pub(super) struct Open(Streams);

impl Streams {
    pub(super) fn none() -> Self {
        Self(Arc::new(watch::Sender::new(0)))
    }

    /// One more.
    pub(super) fn open(&self) -> Open {
        self.0.send_modify(|open| *open += 1);
        Open(self.clone())
    }

    /// Returns when there has been no stream for so long.
    pub(super) async fn idle_for(&self, time: Duration) {
        let mut open = self.0.subscribe();
        loop {
            // The sender is here: waiting for it does not fail.
            let _ = open.wait_for(|open| *open == 0).await;
            if tokio::time::timeout(time, open.wait_for(|open| *open > 0)).await.is_err() {
                return;
            }
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.0.send_modify(|open| *open -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_when_its_last_stream_has_been_gone_for_a_while() {
        let streams = Streams::none();
        let began = tokio::time::Instant::now();
        let idle = tokio::spawn({
            let streams = streams.clone();
            async move { streams.idle_for(Duration::from_secs(30)).await }
        });
        tokio::time::sleep(Duration::from_secs(20)).await;
        let (one, other) = (streams.open(), streams.open());
        tokio::time::sleep(Duration::from_secs(100)).await;
        drop(one);
        tokio::time::sleep(Duration::from_secs(100)).await;
        assert!(!idle.is_finished());
        drop(other);
        idle.await.unwrap();
        assert_eq!(began.elapsed().as_secs(), 250);
    }
}
