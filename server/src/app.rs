//! Wiring: from the command line to running tasks.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::{Context, bail};
use distributary_model::{Epoch, Name};
use distributary_runtime::admin::{self, SharedRegistry, from_here};
use distributary_runtime::ready::Ready;
use distributary_runtime::tasks::Tasks;
use distributary_runtime::tls::Acceptor;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::args::{Args, SourceArg};
use crate::auth::{Auth, Tokens};
use crate::collector::State;
use crate::distribute::distribute;
use crate::journal::{Journal, LOG_BYTES};
use crate::metrics::Metrics;
use crate::serve::{self, Gate, Shared};
use crate::source::{Source, dir::Dir, kubernetes};

/// A server that listens, and does not serve yet.
pub struct Bound {
    listener: TcpListener,
    admin: TcpListener,
    acceptor: Option<Arc<Acceptor>>,
    args: Args,
}

/// Binds both ports.
///
/// # Errors
/// When the arguments are refused, or an address cannot be had.
pub async fn bind(args: Args) -> anyhow::Result<Bound> {
    args.check()?;
    let acceptor = args.security.acceptor()?.map(Arc::new);
    let bind = async |flag: &str, address: SocketAddr| {
        TcpListener::bind(address).await.with_context(|| format!("{flag} {address} cannot be listened on"))
    };
    let listener = bind("--listen", args.listen).await?;
    let admin = bind("--admin-listen", args.admin_listen).await?;
    Ok(Bound { listener, admin, acceptor, args })
}

impl Bound {
    /// Serves what the arguments say, until shutdown.
    ///
    /// # Errors
    /// When a part of it ends by itself.
    pub async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        match &self.args.source {
            SourceArg::Dir(path) => {
                let (source, tokens) = (Dir::open(path.clone())?, self.args.security.tokens(None)?);
                self.run_all(source, tokens, shutdown).await
            }
            SourceArg::Kubernetes => {
                let client = kubernetes::client(self.args.kubeconfig.as_deref()).await?;
                let tokens = self.args.security.tokens(Some(client.clone()))?;
                self.run_all(kubernetes::Kubernetes::new(client), tokens, shutdown).await
            }
        }
    }

    /// Serves a source, whatever the arguments say of one, until shutdown.
    ///
    /// # Errors
    /// When a part of it ends by itself.
    pub async fn run_with(self, origin: impl Source, shutdown: CancellationToken) -> anyhow::Result<()> {
        let tokens = self.args.security.tokens(None)?;
        self.run_all(origin, tokens, shutdown).await
    }

    async fn run_all(
        self,
        origin: impl Source,
        tokens: Option<Arc<Tokens>>,
        shutdown: CancellationToken,
    ) -> anyhow::Result<()> {
        let Self { listener, admin, acceptor, args } = self;
        let Args {
            log: _,
            source,
            kubeconfig: _,
            cluster_id,
            listen: _,
            admin_listen: _,
            fleet,
            security: _,
            limits,
        } = args;
        let (listen, admin_listen) = (listener.local_addr()?, admin.local_addr()?);
        tracing::info!(%source, %listen, tls = acceptor.is_some(), admin = %admin_listen, "starting");

        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let ready = Ready::default();
        let own = Name::from(cluster_id);
        let replicas = fleet.replicas(&own, listen);
        let journal = Journal::new(Epoch(random()?), own, LOG_BYTES, Instant::now())
            .among(replicas)
            .patient(fleet.hold_removals)
            .giving(fleet.join_bytes_per_second);
        let shared = Shared::new(journal, metrics, fleet.connection_age());
        registry.register_collector(Box::new(State(shared.clone())));
        let registry: SharedRegistry = Arc::new(Mutex::new(registry));
        let (updates, received) = mpsc::channel(64);
        let (release, released) = mpsc::channel(1);

        let mut tasks = Tasks::default();
        tasks.spawn("source", origin.run(updates));
        tasks.spawn(
            "distribute",
            distribute(shared.clone(), received, released, ready.hold("the initial lists")),
        );
        let gate = Gate::new(acceptor.clone(), Auth::new(tokens.clone()), limits);
        if let Some(tokens) = tokens {
            tasks.spawn("keys of tokens", tokens.follow());
        }
        if let Some(acceptor) = acceptor {
            tasks.spawn("certificates", acceptor.follow());
        }
        let more = axum::Router::new()
            .route("/debug/release-removals", from_here(release, "held removals are let go\n"))
            .merge(crate::admin::router(shared.clone()));
        // What everybody waits for who is to end, after the agents have gone.
        let stop = CancellationToken::new();
        tasks.spawn("admin", admin::serve(admin, ready.clone(), registry, more, stop.clone()));
        let mut streams = tokio::spawn(serve::serve(listener, gate, shared.clone(), stop.clone()));
        let ended = tokio::select! {
            ended = tasks.supervise(&shutdown) => ended,
            ended = &mut streams => return ended?.and_then(|()| bail!("the streams ended by themselves")),
        };
        if ended.is_ok() {
            let _leaving = ready.hold("the shutdown");
            shared.leave(fleet.drain_within).await;
        }
        stop.cancel();
        ended?;
        streams.await?
    }
}

fn random() -> anyhow::Result<[u8; 16]> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|e| anyhow::anyhow!("no randomness for the epoch: {e}"))?;
    Ok(bytes)
}
