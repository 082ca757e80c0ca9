//! What kube-proxy's metrics server has beside /metrics (spec/kube-proxy.md §5.3): people and tools ask it which mode
//! runs, and with which configuration.

pub mod stream;

use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::header::{CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderName, StatusCode};
use axum::response::IntoResponse;
use axum::routing::{any, get};
use distributary_runtime::exposition::PLAIN;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

const TEXT: &str = "text/plain; charset=utf-8";
const PATHS: &str = "/configz /flagz /healthz /livez /metrics /metrics/slis /proxyMode /readyz /statusz";

/// What is told.
#[derive(Clone, Debug)]
pub struct Told {
    /// The effective KubeProxyConfiguration.
    pub config: Arc<Value>,
    /// Every flag with its value.
    pub flags: Arc<[(String, String)]>,
    /// When the process started.
    pub started: Timestamp,
}

#[derive(Debug)]
struct Shared {
    told: Told,
    /// Answers of /healthz since the last reset.
    pings: Mutex<u64>,
}

/// The paths. /livez, /readyz and /metrics are the admin port's own.
pub fn router(told: Told) -> Router {
    let shared = Arc::new(Shared { told, pings: Mutex::default() });
    Router::new()
        .route("/healthz", any(healthz))
        .route("/healthz/ping", any(async || "ok"))
        .route("/proxyMode", any(proxy_mode))
        .route("/configz", any(configz))
        .route("/flagz", get(flagz))
        .route("/statusz", get(statusz))
        .route("/metrics/slis", get(slis).delete(reset))
        .with_state(shared)
}

/// Which packet filter is programmed, in kube-proxy's word for it.
async fn proxy_mode(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    quietly(TEXT, shared.told.config["mode"].as_str().unwrap_or_default().to_owned())
}

/// With the word that keeps browsers from guessing.
fn quietly(kind: &'static str, text: String) -> impl IntoResponse {
    ([(CONTENT_TYPE, kind), (X_CONTENT_TYPE_OPTIONS, "nosniff")] as [(HeaderName, &str); 2], text)
}

/// Says that this server answers; nothing of the rules.
async fn healthz(State(shared): State<Arc<Shared>>, RawQuery(query): RawQuery) -> impl IntoResponse {
    *shared.pings.lock().unwrap_or_else(PoisonError::into_inner) += 1;
    let verbose =
        query.is_some_and(|query| query.split('&').any(|word| word.split('=').next() == Some("verbose")));
    let text = if verbose { "[+]ping ok\nhealthz check passed\n" } else { "ok" };
    quietly(TEXT, text.to_owned())
}

async fn configz(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    quietly("application/json", json!({ "kubeproxy.config.k8s.io": *shared.told.config }).to_string())
}

async fn flagz(State(shared): State<Arc<Shared>>) -> String {
    let flags = shared.told.flags.iter().map(|(name, value)| format!("{name}: {value}\n"));
    format!(
        "\ndistributary-agent flagz\nFor people: the form of this page may change.\n\n{}",
        flags.collect::<String>()
    )
}

async fn statusz(State(shared): State<Arc<Shared>>) -> String {
    let started = shared.told.started;
    let up = Timestamp::now().duration_since(started).max(SignedDuration::ZERO).as_secs();
    format!(
        "\ndistributary-agent statusz\nFor people: the form of this page may change.\n\n\
         Started: {started:.0}\nUp: {} hr {:02} min {:02} sec\nBinary version: {}\nPaths: {PATHS}\n",
        up / 3600,
        up / 60 % 60,
        up % 60,
        env!("CARGO_PKG_VERSION"),
    )
}

/// The one check that /healthz has, as Kubernetes' components count theirs.
async fn slis(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    let pings = *shared.pings.lock().unwrap_or_else(PoisonError::into_inner);
    let text = match pings {
        0 => String::new(),
        _ => format!(
            "# HELP kubernetes_healthcheck 1 where the last health check succeeded.\n\
             # TYPE kubernetes_healthcheck gauge\n\
             kubernetes_healthcheck{{name=\"ping\",type=\"healthz\"}} 1\n\
             # HELP kubernetes_healthchecks_total Health checks by their outcome.\n\
             # TYPE kubernetes_healthchecks_total counter\n\
             kubernetes_healthchecks_total{{name=\"ping\",status=\"success\",type=\"healthz\"}} {pings}\n"
        ),
    };
    ([(CONTENT_TYPE, PLAIN)], text)
}

async fn reset(State(shared): State<Arc<Shared>>) -> (StatusCode, &'static str) {
    *shared.pings.lock().unwrap_or_else(PoisonError::into_inner) = 0;
    (StatusCode::OK, "metrics reset\n")
}

#[cfg(test)]
mod tests {
    use distributary_runtime::http::{Http, listen_only};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_util::sync::CancellationToken;

    use super::*;

    /// Answers to one request after the other, each as it came but for the date.
    async fn answers(requests: &[&str]) -> Vec<String> {
        let told = Told {
            config: Arc::new(json!({"mode": "iptables"})),
            flags: [("node-name".to_owned(), "n1".to_owned())].into(),
            started: Timestamp::now(),
        };
        let listener = listen_only(([127, 0, 0, 1], 0).into()).unwrap();
        let address = listener.local_addr().unwrap();
        let (http, shutdown) = (Http::new(4), CancellationToken::new());
        let asking = async {
            let mut answers = Vec::new();
            for request in requests {
                let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
                let request = format!("{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
                stream.write_all(request.as_bytes()).await.unwrap();
                let mut answer = String::new();
                stream.read_to_string(&mut answer).await.unwrap();
                let (head, body) = answer.split_once("\r\n\r\n").unwrap();
                let head =
                    head.lines().filter(|line| !line.starts_with("Date: ") && *line != "Connection: close");
                answers.push(format!("{}\n\n{body}", head.collect::<Vec<_>>().join("\n")));
            }
            answers
        };
        tokio::select! {
            answers = asking => answers,
            () = http.serve(&listener, router(told), &shutdown) => panic!("it ended"),
        }
    }

    fn ok(kind: &str, quiet: bool, body: &str) -> String {
        let quiet = if quiet { "\nX-Content-Type-Options: nosniff" } else { "" };
        format!("HTTP/1.1 200 OK\nContent-Type: {kind}{quiet}\nContent-Length: {}\n\n{body}", body.len())
    }

    #[tokio::test]
    async fn the_mode_the_ping_and_the_configuration_are_told_as_kube_proxy_does() {
        let answers = answers(&[
            "GET /proxyMode",
            "POST /proxyMode",
            "GET /healthz",
            "GET /healthz/ping",
            "GET /healthz?verbose",
            "GET /configz",
        ])
        .await;
        assert_eq!(answers[0], ok(TEXT, true, "iptables"));
        assert_eq!(answers[1], answers[0]);
        assert_eq!(answers[2], ok(TEXT, true, "ok"));
        assert_eq!(answers[3], ok(TEXT, false, "ok"));
        assert_eq!(answers[4], ok(TEXT, true, "[+]ping ok\nhealthz check passed\n"));
        let config = "{\"kubeproxy.config.k8s.io\":{\"mode\":\"iptables\"}}";
        assert_eq!(answers[5], ok("application/json", true, config));
    }

    #[tokio::test]
    async fn pings_are_counted_until_somebody_resets_them() {
        let answers = answers(&[
            "GET /metrics/slis",
            "GET /healthz",
            "GET /healthz",
            "GET /metrics/slis",
            "DELETE /metrics/slis",
            "GET /metrics/slis",
        ])
        .await;
        assert_eq!(answers[0], ok(PLAIN, false, ""));
        assert!(
            answers[3].contains("\nkubernetes_healthcheck{name=\"ping\",type=\"healthz\"} 1\n"),
            "{}",
            answers[3]
        );
        let total = "\nkubernetes_healthchecks_total{name=\"ping\",status=\"success\",type=\"healthz\"} 2\n";
        assert!(answers[3].contains(total), "{}", answers[3]);
        assert_eq!(answers[4], ok(TEXT, false, "metrics reset\n"));
        assert_eq!(answers[5], answers[0]);
    }

    #[tokio::test]
    async fn people_see_flags_and_how_long_it_runs() {
        let answers = answers(&["GET /flagz", "GET /statusz"]).await;
        assert!(
            answers[0].contains("\n\ndistributary-agent flagz\n")
                && answers[0].ends_with("\nnode-name: n1\n"),
            "{}",
            answers[0]
        );
        assert!(
            answers[1].contains("\nUp: 0 hr 00 min 0") && answers[1].contains("\nPaths: /configz "),
            "{}",
            answers[1]
        );
    }
}
