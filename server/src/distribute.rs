//! The one writer of the journal: takes a source's updates in, at a pace.

use std::sync::Arc;
use std::time::Instant;

use distributary_runtime::alarm;
use distributary_runtime::ready::Pending;
use jiff::Timestamp;
use tokio::sync::mpsc;

use crate::journal::Moment;
use crate::pace::Pace;
use crate::serve::Shared;
use crate::source::Update;

/// So many updates that are there already become one commit at most.
const AT_ONCE: usize = 1_024;

/// Takes updates in until the source is gone. Readiness is released when every kind has listed. Who sends on `released` lets
/// held removals go.
///
/// # Errors
/// Never before the source is gone.
pub async fn distribute(
    shared: Arc<Shared>,
    mut updates: mpsc::Receiver<Update>,
    mut released: mpsc::Receiver<()>,
    ready: Pending,
) -> anyhow::Result<()> {
    let mut ready = Some(ready);
    let mut pace = Pace::default();
    let mut batch = None::<Update>;
    loop {
        if let Some(at) = shared.taken() {
            pace.taken(at);
        }
        // Under load what comes within a period is one commit; a wake-up costs an agent the same whatever it carries.
        let due = batch.as_ref().map(|_| pace.due().unwrap_or_else(now));
        let until = [due, shared.journal().held_until()].into_iter().flatten().min();
        tokio::select! {
            biased;
            () = alarm::at(until) => {
                if let Some(at) = shared.taken() {
                    pace.taken(at);
                }
                // The wave may have gone on meanwhile.
                if batch.is_some() && pace.due().is_some_and(|due| due > now()) {
                    continue;
                }
                for more in std::iter::from_fn(|| updates.try_recv().ok()).take(AT_ONCE) {
                    join(batch.get_or_insert_default(), more);
                }
                shared.metrics.wave.observe(pace.wave().as_secs_f64());
                let now = now();
                if commit(&shared, batch.take().unwrap_or_default(), now) {
                    pace.committed(now);
                }
                if shared.journal().listed() {
                    ready.take();
                }
            }
            Some(()) = released.recv() => {
                let update = shared.change(|journal| (journal.release(now()), false));
                tracing::warn!(objects = update.events.len(), "held removals are let go, as somebody says that they are right");
                join(batch.get_or_insert_default(), update);
            }
            update = updates.recv() => match update {
                Some(update) => join(batch.get_or_insert_default(), update),
                None => return Ok(()),
            },
        }
    }
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

fn join(batch: &mut Update, more: Update) {
    batch.events.extend(more.events);
    batch.listed.extend(more.listed);
    batch.marks.extend(more.marks);
    batch.fresh.extend(more.fresh);
}

/// Whether something came of it that agents were told.
fn commit(shared: &Shared, update: Update, now: Instant) -> bool {
    let (committed, patience) = shared.change(|journal| {
        let at = Moment { instant: now, wall: Some(Timestamp::now()) };
        let committed = journal.commit(update, at);
        if committed.records > 0 {
            shared.fleet().committed(journal.revision(), now);
        }
        let news = committed.records > 0 || committed.nodes > 0 || committed.now_listed;
        let patience = journal.held_until().map(|until| until.saturating_duration_since(now));
        ((committed, patience), news)
    });
    for problem in &committed.problems {
        shared.metrics.problems.inc();
        tracing::warn!(error = %problem, "object not used as it stands");
    }
    if committed.held > 0 {
        let seconds = patience.unwrap_or_default().as_secs();
        tracing::error!(
            objects = committed.held,
            seconds,
            "a list lacks so much that it is not believed yet; if it is right, POST /debug/release-removals"
        );
    }
    for kind in &committed.gone_back {
        tracing::error!(
            %kind,
            "the API has gone back in time; what it says is not used until it has caught up, or for as long as \
             --hold-removals says; if it is right, POST /debug/release-removals"
        );
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
