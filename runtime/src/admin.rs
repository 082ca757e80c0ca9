//! The admin port: /livez, /readyz, /metrics, and what the binary adds.

use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{MethodRouter, get, post};
use axum::{Extension, Router};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::exposition::{self, OPEN_METRICS, PLAIN};
use crate::http::{Http, Peer};
use crate::ready::Ready;

/// A scraper, probes and somebody who looks.
const CONNECTIONS: usize = 64;

/// Metrics, as they are scraped.
pub type SharedRegistry = Arc<Mutex<Registry>>;

/// Serves the admin port until shutdown.
///
/// # Errors
/// Never.
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
    Http::new(CONNECTIONS).serve(&listener, router, &shutdown).await;
    Ok(())
}

async fn readyz(State(ready): State<Ready>) -> (StatusCode, String) {
    let pending = ready.pending();
    match pending.is_empty() {
        true => (StatusCode::OK, "ok".into()),
        false => (StatusCode::SERVICE_UNAVAILABLE, format!("waiting for {}", pending.join(", "))),
    }
}

async fn metrics(State(registry): State<SharedRegistry>, headers: HeaderMap) -> impl IntoResponse {
    let mut text = String::new();
    if encode(&mut text, &registry.lock().unwrap_or_else(PoisonError::into_inner)).is_err() {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    match accepted.into_iter().any(|value| value.contains("application/openmetrics-text")) {
        true => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        false => ([(header::CONTENT_TYPE, PLAIN)], exposition::plain(&text)).into_response(),
    }
}

/// A POST that only this host may send: it wakes whoever receives, and is answered with `done`.
pub fn from_here(tell: mpsc::Sender<()>, done: &'static str) -> MethodRouter {
    post(async move |Extension(Peer(peer)): Extension<Peer>| {
        if !peer.ip().to_canonical().is_loopback() {
            return (StatusCode::FORBIDDEN, "only from this host: ask its loopback address\n");
        }
        // One that waits already is as good.
        let _ = tell.try_send(());
        (StatusCode::OK, done)
    })
}
