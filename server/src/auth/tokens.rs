//! Checks tokens offline against the issuer's keys, and asks the API where these do not tell.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use arc_swap::ArcSwap;
use distributary_runtime::backoff::Backoff;
use distributary_runtime::secret::Secret;
use http::Request;
use kube::Client;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::{Mutex, Semaphore};
use tokio::time::Instant;

use super::Identity;
use super::token::{Claims, Keys, Reference, Rules, Unproven};

/// How often keys are read again.
const REFRESH: Duration = Duration::from_secs(600);
/// Before they are read again because a token's is unknown: whoever makes up keys must not load the API.
const REFRESH_AT_MOST: Duration = Duration::from_secs(10);
/// TokenReviews at a time. Who comes then is told to come again.
const REVIEWS: usize = 8;
/// So long the API may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where the issuer's keys are.
#[derive(Clone, Debug)]
pub enum KeySource {
    /// With the API. The issuer is the one that it names, unless one is given.
    Api {
        /// The only issuer.
        issuer: Option<String>,
    },
    /// In a file, a JSON web key set.
    File {
        /// Where it is.
        path: PathBuf,
        /// The only issuer.
        issuer: String,
    },
}

/// Checks tokens.
pub struct Tokens {
    rules: Rules,
    source: KeySource,
    /// Can be asked about a token.
    api: Option<Client>,
    keys: ArcSwap<Keys>,
    read_at: Mutex<Option<Instant>>,
    reviews: Semaphore,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokens").field("rules", &self.rules).field("keys", &self.keys).finish_non_exhaustive()
    }
}

impl Tokens {
    /// Without keys yet.
    pub fn new(rules: Rules, source: KeySource, api: Option<Client>) -> Self {
        let keys = ArcSwap::from_pointee(Keys::default());
        Self { rules, source, api, keys, read_at: Mutex::new(None), reviews: Semaphore::new(REVIEWS) }
    }

    /// Who the owner of a token is.
    ///
    /// # Errors
    /// Why it proves nothing, in words about its owner.
    pub async fn check(&self, token: &Secret) -> Result<Identity, String> {
        let mut outcome = self.keys.load().check(token, &self.rules, now());
        if matches!(outcome, Err(Unproven::UnknownKey(_))) && self.refresh().await {
            outcome = self.keys.load().check(token, &self.rules, now());
        }
        match outcome {
            Ok(identity) => Ok(identity),
            Err(Unproven::Refused(why)) => Err(why),
            Err(unproven) => self.review(token).await.map_err(|asked| match unproven {
                Unproven::UnknownKey(id) => {
                    format!("its token is signed by {id:?}, which is no key of the issuer; {asked}")
                }
                _ => format!("its token does not say of which Node it is; {asked}"),
            }),
        }
    }

    /// Keeps the keys as the issuer has them.
    ///
    /// # Errors
    /// Never.
    pub async fn follow(self: Arc<Self>) -> anyhow::Result<()> {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
        loop {
            let outcome = {
                let mut read_at = self.read_at.lock().await;
                *read_at = Some(Instant::now());
                self.read().await
            };
            match outcome {
                Ok(()) => {
                    backoff.reset();
                    let period = match self.source {
                        KeySource::Api { .. } => REFRESH,
                        KeySource::File { .. } => REFRESH_AT_MOST,
                    };
                    tokio::time::sleep(period).await;
                }
                Err(e) => {
                    let error = format!("{e:#}");
                    tracing::error!(error, "the keys of tokens cannot be read; the last ones stay in use");
                    tokio::time::sleep(backoff.next_delay()).await;
                }
            }
        }
    }

    /// Reads keys now, unless that was done a moment ago. Whether they may be others than before.
    async fn refresh(&self) -> bool {
        let asked = Instant::now();
        let mut read_at = self.read_at.lock().await;
        match *read_at {
            // Somebody else has read them while this waited.
            Some(at) if at >= asked => return true,
            Some(at) if at.elapsed() < REFRESH_AT_MOST => return false,
            _ => *read_at = Some(Instant::now()),
        }
        match self.read().await {
            Ok(()) => true,
            Err(e) => {
                tracing::warn!(error = format!("{e:#}"), "the keys of tokens cannot be read");
                false
            }
        }
    }

    async fn read(&self) -> anyhow::Result<()> {
        let (issuer, set) = match &self.source {
            KeySource::File { path, issuer } => {
                let set = tokio::fs::read(path).await;
                (issuer.clone(), set.with_context(|| format!("--token-keys {}", path.display()))?)
            }
            KeySource::Api { issuer } => {
                let client = self.api.as_ref().context("there is no API to have keys from")?;
                let issuer = match issuer {
                    Some(issuer) => issuer.clone(),
                    None => {
                        let found = ask(client, get("/.well-known/openid-configuration")?).await?;
                        serde_json::from_str::<Discovered>(&found)
                            .context("what the API says of its issuer")?
                            .issuer
                    }
                };
                (issuer, ask(client, get("/openid/v1/jwks")?).await?.into_bytes())
            }
        };
        let keys = Keys::new(issuer, &set)?;
        tracing::debug!(?keys, "keys of tokens");
        self.keys.store(Arc::new(keys));
        Ok(())
    }

    /// Asks the API whether a token is genuine, and checks the rest.
    async fn review(&self, token: &Secret) -> Result<Identity, String> {
        let Some(client) = &self.api else { return Err("there is no API to ask".to_owned()) };
        let Ok(_permit) = self.reviews.try_acquire() else {
            return Err("too many tokens are being reviewed: try again".to_owned());
        };
        let reviewed = self.ask_for_review(client, token).await.map_err(|e| {
            tracing::warn!(error = format!("{e:#}"), "a token cannot be reviewed");
            "the API server cannot be asked about it".to_owned()
        })?;
        let Reviewed { authenticated, error, audiences, user } = reviewed;
        if !authenticated || !audiences.contains(&self.rules.audience) {
            return Err(match error.is_empty() {
                true => "the API server does not know it".to_owned(),
                false => format!("the API server refuses it: {error}"),
            });
        }
        let claims = Claims::of_genuine(token)?.reviewed(&user.username, user.extra.node())?;
        claims.check(&self.rules, now()).map_err(|unproven| match unproven {
            Unproven::Refused(why) => why,
            _ => "nor does the API server: Kubernetes 1.30 is the first that does".to_owned(),
        })
    }

    async fn ask_for_review(&self, client: &Client, token: &Secret) -> anyhow::Result<Reviewed> {
        let review = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
            "spec": { "token": token.reveal(), "audiences": [self.rules.audience] },
        });
        let request = Request::post("/apis/authentication.k8s.io/v1/tokenreviews")
            .header("content-type", "application/json")
            .body(review.to_string().into_bytes())?;
        let answer: Review = serde_json::from_str(&ask(client, request).await?)?;
        Ok(answer.status)
    }
}

fn get(path: &str) -> anyhow::Result<Request<Vec<u8>>> {
    Ok(Request::get(path).body(Vec::new())?)
}

async fn ask(client: &Client, request: Request<Vec<u8>>) -> anyhow::Result<String> {
    let path = request.uri().path().to_owned();
    match tokio::time::timeout(PATIENCE, client.request_text(request)).await {
        Ok(answer) => answer.with_context(|| format!("asking the API server for {path}")),
        Err(_) => bail!("the API server did not answer {path} within {} s", PATIENCE.as_secs()),
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[derive(Deserialize)]
struct Discovered {
    issuer: String,
}

#[derive(Deserialize)]
struct Review {
    status: Reviewed,
}

#[derive(Deserialize)]
struct Reviewed {
    #[serde(default)]
    authenticated: bool,
    #[serde(default)]
    error: String,
    #[serde(default)]
    audiences: Vec<String>,
    #[serde(default)]
    user: User,
}

#[derive(Default, Deserialize)]
struct User {
    #[serde(default)]
    username: String,
    #[serde(default)]
    extra: Extra,
}

#[derive(Default, Deserialize)]
struct Extra {
    #[serde(default, rename = "authentication.kubernetes.io/node-name")]
    name: Vec<String>,
    #[serde(default, rename = "authentication.kubernetes.io/node-uid")]
    uid: Vec<String>,
}

impl Extra {
    fn node(self) -> Option<Reference> {
        let uid = self.uid.into_iter().next().unwrap_or_default();
        self.name.into_iter().next().map(|name| Reference { name, uid })
    }
}
