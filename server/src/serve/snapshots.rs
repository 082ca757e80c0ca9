//! Builds snapshots beside the streams, so that no stream waits for another's, nor a change for either.

use std::sync::Arc;

use anyhow::Context;
use tokio_util::sync::CancellationToken;

use super::Shared;

/// Builds what is wanted until shutdown.
///
/// # Errors
/// When building panics.
pub(super) async fn build(shared: Arc<Shared>, shutdown: CancellationToken) -> anyhow::Result<()> {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = shared.wanted.notified() => {}
        }
        let Some(blueprint) = shared.journal().blueprint() else { continue };
        let built = tokio::task::spawn_blocking(|| blueprint.build()).await.context("building a snapshot")?;
        shared.journal().install(built);
        shared.built.send_replace(());
    }
}
