//! A real kube-apiserver with its etcd, and nothing else of Kubernetes: no controller writes behind a test's back.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    panic,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Result, bail};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use tempfile::TempDir;

use crate::{
    credentials::Credentials,
    etcd::{Etcd, spawn_in},
    forward::{Forward, Side, free_address},
    kube_proxy,
    netns::Namespace,
    process::{Running, control_plane_program, run, scratch},
    topology,
};

/// ClusterIPs come from these two.
pub const SERVICE_CIDRS: [&str; 2] = ["10.96.0.0/12", "fd96::/112"];

const START: Duration = Duration::from_secs(90);
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// What can differ from one control plane to the next.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Where it runs; `None` is where the test does.
    pub namespace: Side,
    /// Ask RBAC for permission, instead of allowing everything.
    pub rbac: bool,
    /// More flags for kube-apiserver.
    pub flags: Vec<String>,
}

/// A running control plane, stopped on drop.
#[derive(Debug)]
pub struct ControlPlane {
    options: Options,
    port: u16,
    credentials: Credentials,
    kubeconfig: PathBuf,
    // Dropped in this order: the apiserver before its store, and the files last.
    apiserver: Mutex<Option<Running>>,
    etcd: Mutex<Etcd>,
    _door: Option<Forward>,
    folder: TempDir,
}

impl ControlPlane {
    /// Starts one where the test runs, and waits until it is ready.
    ///
    /// # Errors
    /// When it cannot be built or does not get ready.
    pub fn start() -> Result<Self> {
        Self::start_with(&Options::default())
    }

    /// Starts one on the loopback of a namespace. The test reaches it all the same: its port is open on both sides.
    ///
    /// # Errors
    /// When it cannot be built or does not get ready.
    pub fn start_in(namespace: &Arc<Namespace>) -> Result<Self> {
        Self::start_with(&Options { namespace: Some(Arc::clone(namespace)), ..Options::default() })
    }

    /// Starts one with options.
    ///
    /// # Errors
    /// When it cannot be built or does not get ready.
    pub fn start_with(options: &Options) -> Result<Self> {
        // A port that was free may be taken by the time it is used: rare, so start over.
        Self::try_start(options).or_else(|_| Self::try_start(options)).or_else(|_| Self::try_start(options))
    }

    /// The one that all tests of a binary share. Tests keep apart by Kubernetes namespaces (see
    /// [`crate::objects::unique_namespace`]); who stops the apiserver or forgets history starts a control plane of
    /// his own.
    ///
    /// # Panics
    /// When it does not start.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<ControlPlane> = OnceLock::new();
        SHARED.get_or_init(|| Self::start().expect("the shared control plane starts"))
    }

    fn try_start(options: &Options) -> Result<Self> {
        let folder = scratch("controlplane")?;
        let outer = free_address(&None)?;
        let port = outer.port();
        let door = match &options.namespace {
            Some(_) => Some(Forward::open(&None, outer, &options.namespace, outer)?),
            None => None,
        };
        let addresses = [LOOPBACK, "::1".parse()?, "10.96.0.1".parse()?, topology::NODE.v4.into()];
        let credentials = Credentials::write(folder.path(), &addresses)?;
        let kubeconfig = folder.path().join("kubeconfig");
        fs::write(&kubeconfig, credentials.kubeconfig(&format!("https://127.0.0.1:{port}")))?;
        let etcd = Etcd::start(&options.namespace, &folder.path().join("etcd"))?;
        let started = Self {
            options: options.clone(),
            port,
            credentials,
            kubeconfig,
            apiserver: Mutex::new(None),
            etcd: Mutex::new(etcd),
            _door: door,
            folder,
        };
        started.start_apiserver()?;
        Ok(started)
    }

    /// The administrator's kubeconfig. It is good where the control plane runs, where the test runs, and wherever
    /// [`ControlPlane::reach_from`] has opened a door.
    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// The administrator's token.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.credentials.token
    }

    /// The key that ServiceAccounts' tokens are signed with.
    #[must_use]
    pub fn account_key(&self) -> &Path {
        &self.credentials.account_key
    }

    /// The authority that signed the apiserver's certificate.
    #[must_use]
    pub fn authority(&self) -> &Path {
        &self.credentials.authority
    }

    /// Where the apiserver listens, on the loopback of wherever it can be reached from.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(LOOPBACK, self.port)
    }

    /// Makes the apiserver reachable at the same loopback address in another namespace, as long as the door lives.
    ///
    /// # Errors
    /// When the port is taken there.
    pub fn reach_from(&self, namespace: &Arc<Namespace>) -> Result<Forward> {
        Forward::open(&Some(Arc::clone(namespace)), self.address(), &self.options.namespace, self.address())
    }

    /// Starts a kube-proxy for that node in a namespace, which needs a door to the apiserver. It waits for its Node to
    /// have an address (see [`crate::objects::register_node`]). Its metrics and health are
    /// where it always has them.
    ///
    /// # Errors
    /// When it cannot be built or started.
    pub fn kube_proxy(&self, namespace: &Namespace, node: &str, flags: &[&str]) -> Result<Running> {
        namespace.spawn("kube-proxy", self.kube_proxy_command(node)?.args(flags))
    }

    /// The same, for those who want to set more than its flags.
    ///
    /// # Errors
    /// When it cannot be built.
    pub fn kube_proxy_command(&self, node: &str) -> Result<Command> {
        let mut command = kube_proxy::command(node)?;
        command.arg("--kubeconfig").arg(&self.kubeconfig);
        command.arg(format!("--cluster-cidr={}", topology::CLUSTER_CIDRS.join(",")));
        Ok(command)
    }

    /// A client with the administrator's rights. It belongs to the runtime it is made in: every test has its own.
    ///
    /// # Errors
    /// Only when this crate writes bad kubeconfigs.
    pub async fn client(&self) -> Result<Client> {
        let file = Kubeconfig::read_from(&self.kubeconfig)?;
        let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
        Ok(Client::try_from(config)?)
    }

    /// Kills the apiserver: every connection is cut and new ones are refused.
    pub fn stop_apiserver(&self) {
        *self.apiserver() = None;
    }

    /// Starts the apiserver on the same port and data, unless it runs, and waits until it is ready.
    ///
    /// # Errors
    /// When it does not get ready.
    pub fn start_apiserver(&self) -> Result<()> {
        let mut slot = self.apiserver();
        if slot.as_mut().is_some_and(Running::is_running) {
            return Ok(());
        }
        let mut apiserver = spawn_in(&self.options.namespace, "kube-apiserver", &self.apiserver_command()?)?;
        if !on_own_runtime(self.await_readiness(&mut apiserver))? {
            bail!("kube-apiserver does not get ready; its log ends with\n{}", apiserver.tail());
        }
        *slot = Some(apiserver);
        Ok(())
    }

    /// Kills etcd. The apiserver stays and can do little.
    pub fn stop_etcd(&self) {
        self.etcd().stop();
    }

    /// Starts etcd on the same port and data.
    ///
    /// # Errors
    /// When it does not get healthy.
    pub fn start_etcd(&self) -> Result<()> {
        self.etcd().restart()
    }

    /// Makes every resource version given out so far too old: a watch from one gets 410, and so does a list that goes
    /// on from one. Cuts all connections.
    ///
    /// Compaction alone does not do it, since the apiserver also remembers changes. A new apiserver remembers none from
    /// before its first list, so it is enough that this list is of a later revision: of one that nobody can have seen,
    /// as it is made while no apiserver runs.
    ///
    /// # Errors
    /// When etcd refuses or the apiserver does not get ready again.
    pub fn forget_history(&self) -> Result<()> {
        self.stop_apiserver();
        {
            let etcd = self.etcd();
            let revision = etcd.touch()?;
            etcd.compact(revision)?;
        }
        self.start_apiserver()
    }

    /// Copies etcd's data, to be gone back to by [`ControlPlane::restore`]. Restarts everything.
    ///
    /// # Errors
    /// When the copy fails or something does not start again.
    pub fn save(&self) -> Result<TempDir> {
        let copy = scratch("etcd-copy")?;
        self.stop_apiserver();
        self.etcd().stop();
        copy_folder(&self.data(), copy.path())?;
        self.start_etcd()?;
        self.start_apiserver()?;
        Ok(copy)
    }

    /// Goes back to what was saved, as from a backup: resource versions go back, too.
    ///
    /// # Errors
    /// When the copy fails or something does not start again.
    pub fn restore(&self, saved: &TempDir) -> Result<()> {
        self.stop_apiserver();
        self.etcd().stop();
        fs::remove_dir_all(self.data())?;
        copy_folder(saved.path(), &self.data())?;
        self.start_etcd()?;
        self.start_apiserver()
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("etcd")
    }

    fn apiserver(&self) -> MutexGuard<'_, Option<Running>> {
        self.apiserver.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn etcd(&self) -> MutexGuard<'_, Etcd> {
        self.etcd.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it got ready, before it ended or the time was up.
    async fn await_readiness(&self, apiserver: &mut Running) -> Result<bool> {
        let client = self.client().await?;
        let polling = async {
            while apiserver.is_running() {
                let request = http::Request::get("/readyz").body(Vec::new())?;
                if client.request_text(request).await.is_ok_and(|body| body == "ok") {
                    return Ok(true);
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Ok(false)
        };
        tokio::time::timeout(START, polling).await.unwrap_or(Ok(false))
    }

    fn apiserver_command(&self) -> Result<Command> {
        let made = &self.credentials;
        let mut command = Command::new(control_plane_program("kube-apiserver")?);
        command.args([
            "--bind-address=127.0.0.1",
            // What default/kubernetes has for its endpoint; loopback is not allowed there.
            &format!("--advertise-address={}", topology::NODE.v4),
            &format!("--secure-port={}", self.port),
            &format!("--etcd-servers={}", self.etcd().url()),
            &format!("--service-cluster-ip-range={}", SERVICE_CIDRS.join(",")),
            &format!("--authorization-mode={}", if self.options.rbac { "RBAC" } else { "AlwaysAllow" }),
            &format!("--tls-cert-file={}", made.certificate.display()),
            &format!("--tls-private-key-file={}", made.key.display()),
            &format!("--token-auth-file={}", made.tokens.display()),
            "--service-account-issuer=https://kubernetes.default.svc",
            &format!("--service-account-key-file={}", made.account_public_key.display()),
            &format!("--service-account-signing-key-file={}", made.account_key.display()),
            // As kubeadm and its like have it: nodes are set up by pods that may.
            "--allow-privileged=true",
            // Pods can be made without the controller that makes accounts.
            "--disable-admission-plugins=ServiceAccount",
        ]);
        command.arg("--cert-dir").arg(self.folder.path()).args(&self.options.flags);
        Ok(command)
    }
}

/// Blocks on a future from wherever the caller is, be it in a runtime.
fn on_own_runtime<T: Send>(future: impl Future<Output = Result<T>> + Send) -> Result<T> {
    thread::scope(|scope| {
        let blocking = scope
            .spawn(|| tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future));
        blocking.join().unwrap_or_else(|cause| panic::resume_unwind(cause))
    })
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    run(Command::new("cp").arg("-a").arg(from.join(".")).arg(to)).map(drop)
}
