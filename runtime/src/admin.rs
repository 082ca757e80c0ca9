//! The admin port: /livez, /readyz, /metrics, and what the binary adds.

use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::ready::Ready;

/// Metrics, as they are scraped.
pub type SharedRegistry = Arc<Mutex<Registry>>;

/// Serves the admin port until shutdown.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    ready: Ready,
    registry: SharedRegistry,
    more: Router,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let router = Router::new()
        .route("/livez", get(async || "ok"))
        .route("/readyz", get(readyz).with_state(ready))
        .route("/metrics", get(metrics).with_state(registry))
        .merge(more);
    axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned()).await?;
    Ok(())
}

async fn readyz(State(ready): State<Ready>) -> (StatusCode, String) {
    let pending = ready.pending();
    match pending.is_empty() {
        true => (StatusCode::OK, "ok".into()),
        false => (StatusCode::SERVICE_UNAVAILABLE, format!("waiting for {}", pending.join(", "))),
    }
}

async fn metrics(State(registry): State<SharedRegistry>) -> impl IntoResponse {
    let mut text = String::new();
    match encode(&mut text, &registry.lock().unwrap_or_else(PoisonError::into_inner)) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
