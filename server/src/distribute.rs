//! The one writer of the journal: takes a source's updates in, at a pace.

use std::sync::Arc;
use std::time::{Duration, Instant};

use distributary_runtime::ready::Pending;
use jiff::Timestamp;
use tokio::sync::mpsc;

use crate::journal::Moment;
use crate::serve::Shared;
use crate::source::Update;

/// Least time between two commits. The first one after quiet does not wait.
const PERIOD: Duration = Duration::from_millis(20);

/// Takes updates in until the source is gone. Readiness is released when every kind has listed.
///
/// # Errors
/// Never before the source is gone.
pub async fn distribute(
    shared: Arc<Shared>,
    mut updates: mpsc::Receiver<Update>,
    ready: Pending,
) -> anyhow::Result<()> {
    let mut ready = Some(ready);
    let mut last_commit = tokio::time::Instant::now() - PERIOD;
    while let Some(first) = updates.recv().await {
        let mut batch = first;
        // Under load what comes within a period is one commit; a wake-up costs an agent the same whatever it carries.
        let due = last_commit + PERIOD;
        while let Ok(Some(more)) = tokio::time::timeout_at(due, updates.recv()).await {
            join(&mut batch, more);
        }
        while let Ok(more) = updates.try_recv() {
            join(&mut batch, more);
        }
        if commit(&shared, batch) {
            last_commit = tokio::time::Instant::now();
        }
        if shared.journal().listed() {
            ready.take();
        }
    }
    Ok(())
}

fn join(batch: &mut Update, more: Update) {
    batch.events.extend(more.events);
    batch.listed.extend(more.listed);
    batch.marks.extend(more.marks);
    batch.fresh.extend(more.fresh);
}

/// Whether something came of it that agents were told.
fn commit(shared: &Shared, update: Update) -> bool {
    let committed = shared.change(|journal| {
        let now = Moment { instant: Instant::now(), wall: Some(Timestamp::now()) };
        let committed = journal.commit(update, now);
        let news = committed.records > 0 || committed.nodes > 0 || committed.now_listed;
        (committed, news)
    });
    for problem in &committed.problems {
        shared.metrics.problems.inc();
        tracing::warn!(error = %problem, "object not used as it stands");
    }
    let revision = shared.journal().revision();
    if committed.now_listed {
        let (services, endpoints) = shared.journal().size();
        tracing::info!(services, endpoints, revision = revision.0, "all kinds have listed");
    }
    if committed.records > 0 {
        shared.metrics.commits.inc();
        shared.metrics.records.inc_by(committed.records as u64);
        shared.metrics.frame_bytes.inc_by(committed.bytes as u64);
        shared.metrics.revision.set(revision.0.cast_signed());
        tracing::debug!(
            revision = revision.0,
            records = committed.records,
            bytes = committed.bytes,
            "committed"
        );
    }
    committed.records > 0
}
