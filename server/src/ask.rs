//! Asks the admin ports of replicas.

use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::de::DeserializeOwned;

/// What an answer has at most: the names of all nodes of a large fleet, and more.
const MOST: usize = 64 << 20;

/// Asks admin ports.
#[derive(Clone, Debug)]
pub struct Asker(Client<HttpConnector, Empty<Bytes>>);

impl Default for Asker {
    fn default() -> Self {
        Self(Client::builder(TokioExecutor::new()).pool_idle_timeout(Duration::from_secs(30)).build_http())
    }
}

impl Asker {
    /// Asks for a path of a replica's admin port, at HOST:PORT, whatever the status of the answer.
    ///
    /// # Errors
    /// When there is no answer within that time, or it is not what is expected.
    pub async fn ask<T: DeserializeOwned>(
        &self,
        at: &str,
        path: &str,
        within: Duration,
    ) -> anyhow::Result<T> {
        let asked = tokio::time::timeout(within, self.answer(at, path)).await;
        let (status, body) =
            asked.with_context(|| format!("no answer within {} ms", within.as_millis()))??;
        match serde_json::from_slice(&body) {
            Ok(answer) => Ok(answer),
            Err(e) if status.is_success() => Err(e).context("an answer that is not understood"),
            Err(_) => {
                let said = String::from_utf8_lossy(&body);
                bail!("it answers {status}: {}", said.lines().next().unwrap_or_default())
            }
        }
    }

    async fn answer(&self, at: &str, path: &str) -> anyhow::Result<(StatusCode, Bytes)> {
        let uri: Uri = format!("http://{at}{path}").parse().context("no address of an admin port")?;
        let request = Request::get(uri).body(Empty::new())?;
        let answer = self.0.request(request).await.map_err(|e| {
            // What it says itself is only that it could not connect.
            std::error::Error::source(&e)
                .map_or_else(|| anyhow::anyhow!("{e}"), |why| anyhow::anyhow!("{why}"))
        })?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MOST).collect().await;
        Ok((status, body.map_err(|e| anyhow::anyhow!(e))?.to_bytes()))
    }
}
