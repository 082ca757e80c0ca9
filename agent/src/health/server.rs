//! The proxy health server: /healthz and /livez.

use std::net::SocketAddr;

use axum::Router;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use distributary_runtime::http::{Http, listen_patiently};
use tokio_util::sync::CancellationToken;

use super::Health;
use super::proxy::Answer;
use crate::metrics::KubeProxy;

/// Load balancers' probes, from each of their own machines.
const CONNECTIONS: usize = 256;

/// Serves health at an address until shutdown, as soon as it can be listened on.
///
/// # Errors
/// With `hard_fail`, when it cannot be.
pub async fn run(
    address: SocketAddr,
    hard_fail: bool,
    health: Health,
    metrics: KubeProxy,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let listener = listen_patiently("--healthz-bind-address", address, hard_fail).await?;
    Http::new(CONNECTIONS).serve(&listener, router(health, metrics), &shutdown).await;
    Ok(())
}

/// Any method is answered, as kube-proxy does.
fn router(health: Health, metrics: KubeProxy) -> Router {
    let (of_healthz, of_livez) = ((health.clone(), metrics.clone()), (health, metrics));
    let healthz = move || {
        let answer = of_healthz.0.healthz();
        of_healthz.1.healthz_answered(answer.status);
        std::future::ready(json(answer))
    };
    let livez = move || {
        let answer = of_livez.0.livez();
        of_livez.1.livez_answered(answer.status);
        std::future::ready(json(answer))
    };
    Router::new().route("/healthz", any(healthz)).route("/livez", any(livez)).fallback(not_found)
}

fn json(answer: Answer) -> Response {
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let kind = HeaderValue::from_static("application/json");
    let headers =
        [(header::CONTENT_TYPE, kind), (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"))];
    (status, headers, answer.body).into_response()
}

async fn not_found() -> (StatusCode, &'static str) {
    (StatusCode::NOT_FOUND, "404 page not found\n")
}
