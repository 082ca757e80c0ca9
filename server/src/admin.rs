//! What people and other replicas may ask the admin port beside probes and metrics.
//!
//! * `GET /v1/replica`: how this one stands; `GET /v1/fleet`: how all do.
//! * `GET /v1/receipt?service=NAMESPACE/NAME`: which of this one's agents have it;
//!   `GET /v1/converged?service=NAMESPACE/NAME&timeout=30s`: whether every node has it, as soon as it does.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use distributary_model::Key;
use distributary_runtime::duration;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::ask::Asker;
use crate::fleet::{Answer, Receipt, Report, Verdict, verdict};
use crate::serve::Shared;

/// How long a replica has to answer.
const WITHIN: Duration = Duration::from_secs(2);
/// How long is waited at most, and by default.
const LONGEST: Duration = Duration::from_secs(600);
const USUAL: Duration = Duration::from_secs(30);
/// All are asked again after this, and then less and less often.
const AGAIN: Duration = Duration::from_millis(100);
const RARELY: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
struct Desk {
    shared: Arc<Shared>,
    asker: Asker,
}

/// The paths.
pub fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/v1/replica", get(replica))
        .route("/v1/fleet", get(fleet))
        .route("/v1/receipt", get(receipt))
        .route("/v1/converged", get(converged))
        .with_state(Desk { shared, asker: Asker::default() })
}

/// A replica in the answer to `/v1/fleet`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Replica {
    /// Where it was asked; empty: the one that answers.
    pub at: String,
    /// How it stands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub report: Option<Report>,
    /// Why it is not known how it stands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The answer to `/v1/fleet`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Fleet {
    /// This one, then the others.
    pub replicas: Vec<Replica>,
    /// Nodes that the API has, and that have a stream to none of those that answered.
    pub absent: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Wanted {
    service: String,
    timeout: Option<String>,
}

async fn replica(State(desk): State<Desk>) -> Response {
    json(StatusCode::OK, &desk.report())
}

async fn fleet(State(desk): State<Desk>) -> Response {
    let own = desk.report();
    let mut replicas = vec![Replica { at: String::new(), report: Some(own.clone()), error: None }];
    let answers = desk.ask_all::<Report>("/v1/replica").await;
    for (at, said) in answers.into_iter().flatten() {
        match said {
            Ok(report) if report.epoch == own.epoch => {}
            Ok(report) => replicas.push(Replica { at, report: Some(report), error: None }),
            Err(error) => replicas.push(Replica { at, report: None, error: Some(error) }),
        }
    }
    let connected: std::collections::BTreeSet<&str> = replicas
        .iter()
        .filter_map(|one| one.report.as_ref())
        .flat_map(|one| &one.agents)
        .map(String::as_str)
        .collect();
    let absent = {
        let journal = desk.shared.journal();
        let nodes = journal.cluster().nodes().map(|(name, _)| name.to_string());
        nodes.filter(|name| !connected.contains(name.as_str())).collect()
    };
    json(StatusCode::OK, &Fleet { replicas, absent })
}

async fn receipt(State(desk): State<Desk>, wanted: Query<Wanted>) -> Response {
    match desk.key(&wanted.service) {
        Ok(key) => json(StatusCode::OK, &desk.receipt(&key)),
        Err(why) => refused(&why),
    }
}

async fn converged(State(desk): State<Desk>, wanted: Query<Wanted>) -> Response {
    let timeout = wanted.timeout.as_deref().map_or(Ok(USUAL), duration::parse);
    let (key, timeout) = match (desk.key(&wanted.service), timeout) {
        (Ok(key), Ok(timeout)) => (key, timeout.min(LONGEST)),
        (Err(why), _) => return refused(&why),
        (_, Err(e)) => return refused(&format!("timeout: {e}")),
    };
    let deadline = Instant::now() + timeout;
    let mut wait = AGAIN;
    loop {
        let verdict = desk.verdict(&key).await;
        let status = match verdict {
            Verdict::Yes { .. } => StatusCode::OK,
            Verdict::No { .. } => StatusCode::CONFLICT,
            Verdict::Unknown { .. } => StatusCode::SERVICE_UNAVAILABLE,
        };
        if status == StatusCode::OK || Instant::now() >= deadline {
            return json(status, &verdict);
        }
        tokio::time::sleep_until((Instant::now() + wait).min(deadline)).await;
        wait = (wait * 2).min(RARELY);
    }
}

impl Desk {
    fn report(&self) -> Report {
        let journal = self.shared.journal();
        self.shared.fleet().report(&journal, std::time::Instant::now())
    }

    fn receipt(&self, key: &Key) -> Receipt {
        let journal = self.shared.journal();
        self.shared.fleet().receipt(key, &journal)
    }

    fn key(&self, service: &str) -> Result<Key, String> {
        match service.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => {
                Ok(Key::service(self.shared.journal().own().clone(), namespace, name))
            }
            _ => Err(format!("service: expected NAMESPACE/NAME, not {service:?}")),
        }
    }

    async fn verdict(&self, key: &Key) -> Verdict {
        let path = format!("/v1/receipt?service={}/{}", key.namespace, key.name);
        let others = match self.ask_all::<Receipt>(&path).await {
            Some(answers) => answers.into_iter().map(|(replica, said)| Answer { replica, said }).collect(),
            None => {
                let said = Err("it is not known where to ask them: --admin-peers is missing".to_owned());
                vec![Answer { replica: "every other replica".to_owned(), said }]
            }
        };
        let own = self.receipt(key);
        let journal = self.shared.journal();
        verdict(journal.cluster().nodes().map(|(name, _)| name), &own, &others)
    }

    /// Asks all replicas, this one maybe among them, at once. `None`: there are others, and nobody knows where to ask them.
    async fn ask_all<T: serde::de::DeserializeOwned>(
        &self,
        path: &str,
    ) -> Option<Vec<(String, Result<T, String>)>> {
        let admins = self.shared.journal().replicas().admins()?;
        let ask = async |at: String| {
            let said = self.asker.ask(&at, path, WITHIN).await.map_err(|e| format!("{e:#}"));
            (at, said)
        };
        Some(futures::future::join_all(admins.into_iter().map(ask)).await)
    }
}

fn refused(why: &str) -> Response {
    (StatusCode::BAD_REQUEST, format!("{why}\n")).into_response()
}

fn json(status: StatusCode, answer: &impl Serialize) -> Response {
    match serde_json::to_string(answer) {
        Ok(text) => (status, [(CONTENT_TYPE, "application/json")], text + "\n").into_response(),
        Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, e.to_string()).into_response(),
    }
}
