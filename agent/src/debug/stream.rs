//! What people may ask and say of the stream.

use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use distributary_runtime::admin::from_here;
use serde_json::json;
use tokio::sync::{mpsc, watch};

use crate::sync::driver::Status;

/// `GET /debug/stream`, and from this host `POST /debug/release-removals`.
pub fn router(status: watch::Receiver<Status>, release: mpsc::Sender<()>) -> Router {
    Router::new()
        .route("/debug/stream", get(stream).with_state(status))
        .route("/debug/release-removals", from_here(release, "held removals are let go\n"))
}

async fn stream(State(status): State<watch::Receiver<Status>>) -> impl IntoResponse {
    let Status { server, live, moving_to, cursor, staleness, withheld } = status.borrow().clone();
    let told = json!({
        "server": server.map(|server| server.address),
        "inStep": live,
        "movingTo": moving_to.map(|server| server.address),
        "epoch": cursor.map(|cursor| cursor.epoch.to_string()),
        "revision": cursor.map(|cursor| cursor.through.0),
        "stalenessSeconds": staleness.as_secs_f64(),
        "heldRemovals": {"services": withheld.0, "endpoints": withheld.1},
    });
    ([(CONTENT_TYPE, "application/json")], format!("{told}\n"))
}
