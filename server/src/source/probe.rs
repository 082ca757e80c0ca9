//! Whether a quiet watch is quiet because nothing happens.
//!
//! A quiet watch cannot be told from a dead one by itself: the API server sends bookmarks only about once a minute. Nor
//! can its version be compared with that of a fresh list, since versions count the changes of *all* kinds: on a living
//! cluster a list is always ahead of a quiet watch. So a quiet watch is probed in two steps.
//!
//! 1. A list of one object, metadata only, without a resourceVersion: the API server answers it only after it has
//!    caught up with its store (or asks the store itself). If its version is that of the watch, nothing at all
//!    happened. If it is *below* it, the store was restored from a backup: everything has to be listed anew.
//! 2. Otherwise a second, short watch of the same kind from the watch's own version, metadata only, for one second.
//!    Whatever the first one missed, this one delivers at once. If it ends without any change, nothing has happened
//!    since: the first watch is known to be up to date. If it delivers a change, the first watch has to deliver it as
//!    well, or it hangs and is opened anew from its version.
//!
//! So a healthy and quiet cluster never looks stale; an API server that is away or cannot reach its store does (the
//! first step fails), and so does a connection that died without a word (the second step shows what it withholds).
//! What remains: behind a load balancer the two steps may meet different API servers, of which one that lags behind its
//! store confirms too much. That ends with its next bookmark or with the watch itself, after some minutes at most.

use std::time::Duration;

use distributary_model::ObjectKind;
use kube::Client;
use tokio::time::timeout;

use super::client::{self, Lines, METADATA, METADATA_OF_ONE};
use super::watch::Failure;
use super::wire::{self, Line};

/// A watch that was quiet for so long is probed.
pub(super) const EVERY: Duration = Duration::from_secs(5);
/// So long a probe may take before the watch is not known to be up to date.
const WITHIN: Duration = Duration::from_secs(10);
/// So long a watch may take to deliver what a probe has seen.
pub(super) const REACH: Duration = Duration::from_secs(3);

/// What a probe found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing has happened that the watch has not delivered.
    Fresh,
    /// There is a change of this version, which the watch has to deliver; 0: of an unknown one.
    Ahead(u64),
    /// The API server has an older state than the watch.
    Rewound,
}

/// Probes the watch of a kind that has delivered everything up to a version; 0: that is none, nothing can be said.
pub(super) async fn probe(client: Client, kind: ObjectKind, mark: u64) -> Result<Found, Failure> {
    let late = || Failure::Transport(format!("a probe took longer than {} s", WITHIN.as_secs()));
    timeout(WITHIN, steps(client, kind, mark)).await.map_err(|_| late())?
}

async fn steps(client: Client, kind: ObjectKind, mark: u64) -> Result<Found, Failure> {
    let list = client::get(&client, kind, "limit=1", METADATA).await?;
    let newest = wire::version(&list).map_err(Failure::Transport)?;
    if let Some(found) = judge(mark, newest) {
        return Ok(found);
    }
    let query = format!("watch=true&resourceVersion={mark}&allowWatchBookmarks=false&timeoutSeconds=1");
    let body = match client::open(&client, kind, &query, METADATA_OF_ONE).await {
        Ok(body) => body,
        // The watch itself was opened before its version was forgotten, and will have to ask again some time.
        Err(Failure::Status(status)) if status.is_expired() => return Ok(Found::Ahead(0)),
        Err(failure) => return Err(failure),
    };
    let mut lines = Lines::new(body);
    while lines.more().await? {
        while let Some(line) = lines.line()? {
            let text = String::from_utf8_lossy(&line);
            match wire::line(kind, &text).map_err(Failure::Transport)? {
                Line::Changed { version, .. } => return Ok(Found::Ahead(version)),
                Line::Error(status) if status.is_expired() => return Ok(Found::Ahead(0)),
                Line::Error(status) => return Err(Failure::Status(status)),
                Line::Bookmark { .. } => {}
            }
        }
    }
    Ok(Found::Fresh)
}

/// What the first step says by itself.
fn judge(mark: u64, newest: u64) -> Option<Found> {
    match newest.cmp(&mark) {
        std::cmp::Ordering::Less => Some(Found::Rewound),
        std::cmp::Ordering::Equal => Some(Found::Fresh),
        std::cmp::Ordering::Greater => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_that_is_behind_was_restored() {
        assert_eq!(judge(10, 9), Some(Found::Rewound));
        assert_eq!(judge(10, 10), Some(Found::Fresh));
        assert_eq!(judge(10, 11), None);
    }
}
