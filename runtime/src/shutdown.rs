//! Signals to a token: the first SIGTERM or SIGINT asks everybody to end, the second one does not wait for them.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A token that the first signal cancels. The second signal ends the process with status 130.
///
/// # Errors
/// When signals cannot be received.
pub fn on_signal() -> std::io::Result<CancellationToken> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let token = CancellationToken::new();
    let cancelled = token.clone();
    tokio::spawn(async move {
        let mut next = async || tokio::select! { _ = term.recv() => "SIGTERM", _ = int.recv() => "SIGINT" };
        let first = next().await;
        tracing::info!(signal = first, "shutting down");
        cancelled.cancel();
        let second = next().await;
        tracing::warn!(signal = second, "not waiting any longer");
        std::process::exit(130);
    });
    Ok(token)
}
