//! A client for the Kubernetes API, and what is asked of it.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use bytes::{Bytes, BytesMut};
use distributary_model::ObjectKind;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ConfigExt as _};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tokio::time::timeout;
use tower::{BoxError, ServiceBuilder};

use super::watch::Failure;
use super::wire::Status;

/// Longest wait for the head of an answer.
const ANSWER: Duration = Duration::from_secs(30);
/// Largest page of a list.
const PAGE_BYTES: usize = 512 << 20;
/// Largest line of a watch. The API's own limit of an object is below 2 MiB.
const LINE_BYTES: usize = 8 << 20;
/// Metadata only, for probes; plain JSON for what does not know of it.
pub(super) const METADATA: &str =
    "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1, application/json";
/// The same for single objects, as in watches.
pub(super) const METADATA_OF_ONE: &str =
    "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1, application/json";
/// Whole objects.
pub(super) const WHOLE: &str = "application/json";

/// A client for the API that a kubeconfig names; without one, for that of the cluster that this process runs in. It
/// does not connect yet.
///
/// kube's own stack is not taken, for three reasons: it logs each failed request as an error, where we say once that
/// the API is away; it retries by itself; and dead connections are noticed by TCP keep-alive, which it does not set.
///
/// # Errors
/// When there is no configuration, or it cannot be used.
pub async fn client(kubeconfig: Option<&Path>) -> anyhow::Result<Client> {
    // Only who comes second is refused, and then there is one.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let config = match kubeconfig {
        Some(path) => {
            let using = || format!("using the kubeconfig {}", path.display());
            let file = Kubeconfig::read_from(path).with_context(using)?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.with_context(using)?
        }
        None => Config::incluster().context(
            "no kubeconfig is given, and this does not run in a pod with a service account (give --kubeconfig FILE)",
        )?,
    };
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(Duration::from_secs(5)));
    connector.set_keepalive(Some(Duration::from_secs(15)));
    connector.set_keepalive_interval(Some(Duration::from_secs(5)));
    connector.set_keepalive_retries(Some(3));
    let connector =
        config.rustls_https_connector_with_connector(connector).context("setting up TLS for the API")?;
    let url = config.cluster_url.to_string();
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer().context("setting up authentication at the API")?)
        .layer(config.extra_headers_layer().context("setting up the headers for the API")?)
        .map_err(move |e: BoxError| BoxError::from(anyhow::Error::from_boxed(e).context(url.clone())))
        .map_err(BoxError::from)
        .service(hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(connector));
    Ok(Client::new(service, config.default_namespace))
}

/// The path of a kind, with the selectors of what matters to a service proxy. Those that are labelled for another one
/// and the headless ones never come; that a Service becomes such looks like its deletion.
pub(super) fn path(kind: ObjectKind) -> &'static str {
    match kind {
        ObjectKind::Service => {
            "/api/v1/services?labelSelector=%21service.kubernetes.io%2Fservice-proxy-name\
             &fieldSelector=spec.clusterIP%21%3DNone"
        }
        ObjectKind::EndpointSlice => {
            "/apis/discovery.k8s.io/v1/endpointslices?labelSelector=%21service.kubernetes.io%2Fheadless"
        }
        ObjectKind::Node => "/api/v1/nodes?",
        ObjectKind::ServiceCidr => "/apis/networking.k8s.io/v1/servicecidrs?",
    }
}

/// A value inside of a query. Tokens and versions are opaque.
pub(super) fn escape(value: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    value
        .bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

/// Asks, and waits for the head of a successful answer.
pub(super) async fn open(
    client: &Client,
    kind: ObjectKind,
    query: &str,
    accept: &str,
) -> Result<Body, Failure> {
    let path = path(kind);
    let separator = if path.ends_with('?') { "" } else { "&" };
    let request = Request::get(format!("{path}{separator}{query}")).header(header::ACCEPT, accept);
    // Watches are compressed line by line, which no common decoder takes.
    let request = request.header(header::ACCEPT_ENCODING, "identity").body(Body::empty());
    let request = request.map_err(|e| Failure::Transport(format!("the request cannot be made: {e}")))?;
    let response = match timeout(ANSWER, client.send(request)).await {
        Ok(Ok(response)) => response,
        Ok(Err(e)) => {
            return Err(Failure::Transport(format!("the API server cannot be reached: {}", chain(&e))));
        }
        Err(_) => {
            return Err(Failure::Transport(format!(
                "the API server did not answer within {} s",
                ANSWER.as_secs()
            )));
        }
    };
    if response.status() == StatusCode::OK {
        return Ok(response.into_body());
    }
    Err(Failure::Status(refusal(response).await))
}

async fn refusal(response: Response<Body>) -> Status {
    let code = response.status().as_u16();
    let body = timeout(ANSWER, Limited::new(response.into_body(), 64 << 10).collect()).await;
    let body = body.ok().and_then(Result::ok).map(http_body_util::Collected::to_bytes).unwrap_or_default();
    Status::from_body(code, &String::from_utf8_lossy(&body))
}

/// A whole answer.
pub(super) async fn get(
    client: &Client,
    kind: ObjectKind,
    query: &str,
    accept: &str,
) -> Result<String, Failure> {
    let body = open(client, kind, query, accept).await?;
    let whole = timeout(2 * ANSWER, Limited::new(body, PAGE_BYTES).collect()).await;
    let whole = whole.map_err(|_| Failure::Transport("the API server's answer did not end".to_owned()))?;
    let bytes = whole.map_err(|e| broken(&*e))?.to_bytes();
    String::from_utf8(bytes.into())
        .map_err(|_| Failure::Transport("the API server's answer is not UTF-8".to_owned()))
}

/// An error with its causes. kube and hyper repeat the cause in some of their messages.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

fn broken(error: &(dyn std::error::Error + 'static)) -> Failure {
    Failure::Transport(format!("the API server's answer broke off: {}", chain(error)))
}

/// The lines of an answer that goes on and on.
pub(super) struct Lines {
    body: Body,
    buffer: BytesMut,
    /// Up to here there is no end of a line.
    searched: usize,
}

impl Lines {
    pub(super) fn new(body: Body) -> Self {
        Self { body, buffer: BytesMut::new(), searched: 0 }
    }

    /// Waits for more of the answer; false at its end. Nothing is lost where this is dropped.
    pub(super) async fn more(&mut self) -> Result<bool, Failure> {
        match self.body.frame().await {
            None => Ok(false),
            Some(Err(e)) => Err(broken(&e)),
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    self.buffer.extend_from_slice(&data);
                }
                Ok(true)
            }
        }
    }

    /// The next whole line of what has come.
    pub(super) fn line(&mut self) -> Result<Option<Bytes>, Failure> {
        match self.buffer[self.searched..].iter().position(|&byte| byte == b'\n') {
            Some(at) => {
                let line = self.buffer.split_to(self.searched + at + 1).freeze();
                self.searched = 0;
                Ok(Some(line))
            }
            None if self.buffer.len() > LINE_BYTES => {
                let what = format!("a line of the watch is longer than {LINE_BYTES} bytes");
                Err(Failure::Transport(what))
            }
            None => {
                self.searched = self.buffer.len();
                Ok(None)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_opaque_is_escaped() {
        assert_eq!(escape("eyJ2Ijo+/=&"), "eyJ2Ijo%2B%2F%3D%26");
    }

    #[tokio::test]
    async fn a_kubeconfig_that_is_no_good_is_named() {
        let Err(error) = client(Some(Path::new("/nowhere/config"))).await else { panic!() };
        let message = format!("{error:#}");
        assert!(message.starts_with("using the kubeconfig /nowhere/config: "), "{message}");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        std::fs::write(&path, "apiVersion: v1\nkind: Config\n").unwrap();
        assert!(client(Some(&path)).await.is_err());
        std::fs::write(
            &path,
            "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{name: k, cluster: {server: \
             'http://127.0.0.1:1'}}]\ncontexts: [{name: c, context: {cluster: k, user: u}}]\nusers: [{name: u, user: {}}]\n",
        )
        .unwrap();
        let client = client(Some(&path)).await.unwrap();
        let Err(Failure::Transport(message)) = get(&client, ObjectKind::Node, "limit=1", WHOLE).await else {
            panic!()
        };
        assert!(
            message.starts_with("the API server cannot be reached: ") && message.contains("refused"),
            "{message}"
        );
    }

    #[tokio::test]
    async fn lines_are_whole_however_they_come() {
        let chunks = ["{\"a\":", " 1}\n{}", "\n", "{\"b\""];
        let service = tower::service_fn(move |_: Request<Body>| async move {
            let frames = chunks.map(|chunk| Ok::<_, BoxError>(http_body::Frame::data(Bytes::from(chunk))));
            let body = http_body_util::StreamBody::new(futures::stream::iter(frames));
            Ok::<_, BoxError>(Response::new(body))
        });
        let client = Client::new(service, "default");
        let mut lines = Lines::new(open(&client, ObjectKind::Node, "watch=true", WHOLE).await.unwrap());
        let mut seen = Vec::new();
        while lines.more().await.unwrap() {
            while let Some(line) = lines.line().unwrap() {
                seen.push(line);
            }
        }
        assert_eq!(seen, ["{\"a\": 1}\n", "{}\n"]);
    }
}
