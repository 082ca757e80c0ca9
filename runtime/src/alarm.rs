//! Waiting for a moment that there may not be, as one arm of a select.

use std::time::Instant;

/// Until that moment; for ever where there is none.
pub async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}
