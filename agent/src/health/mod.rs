//! What others are told of this node's health (spec/kube-proxy.md §5): load balancers by /healthz and by a port for each
//! Service, the kubelet by /livez.
//!
//! The reconciler says what it takes up and what the kernel has; whoever answers looks it up. Neither waits for the
//! other for longer than that takes.

pub mod checks;
pub mod ports;
pub mod proxy;
pub mod server;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use distributary_model::{Key, Name, NodeView};
use jiff::Timestamp;
use tokio::sync::Notify;

use crate::metrics::Heard;
use crate::plan::Family;
use crate::reconcile::Services;
use crate::sync::mailbox::Mailbox;
use checks::{Checks, Id};
use proxy::{Answer, Moment, ProxyHealth};

/// What health depends on beside the node's state.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Id of the node's own cluster.
    pub cluster: Name,
    /// The node's name.
    pub node: Name,
    /// Half of the time after which a write is late.
    pub sync_period: Duration,
    /// A node that no server talked to for so long should get no traffic; `None`: that makes no difference.
    pub unhealthy_after_stale: Option<Duration>,
    /// The proxy health server runs. Else health check ports take the node for healthy (§11 WART-10).
    pub served: bool,
}

#[cfg(test)]
impl Settings {
    /// As they are where nobody sets them.
    pub(crate) fn plain(cluster: &str, node: &str) -> Self {
        let (cluster, node) = (cluster.into(), node.into());
        Self {
            cluster,
            node,
            sync_period: Duration::from_secs(30),
            unhealthy_after_stale: None,
            served: true,
        }
    }
}

/// The node's health, which many ask for.
#[derive(Clone, Debug)]
pub struct Health(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    served: bool,
    mailbox: Arc<Mailbox>,
    heard: Heard,
    ports: Notify,
}

#[derive(Debug)]
struct State {
    proxy: ProxyHealth,
    checks: Checks,
}

impl Health {
    /// Of a node whose changes come by that mailbox.
    pub fn new(settings: Settings, mailbox: Arc<Mailbox>, heard: Heard) -> Self {
        let Settings { cluster, node, sync_period, unhealthy_after_stale, served } = settings;
        let proxy = ProxyHealth::new(sync_period, unhealthy_after_stale);
        let state = Mutex::new(State { proxy, checks: Checks::new(cluster, node) });
        Self(Arc::new(Shared { state, served, mailbox, heard, ports: Notify::new() }))
    }

    /// A family will be programmed from now on.
    pub fn started(&self, family: Family) {
        let mut state = self.state();
        state.proxy.started(family, Timestamp::now());
        state.checks.started(family);
    }

    /// Services that were received then are being programmed.
    pub fn taken(&self, services: &Services, received: Instant) {
        let mut state = self.state();
        state.proxy.taken(received);
        for (key, service) in services {
            state.checks.stage(key, service.as_deref());
        }
    }

    /// The Node was seen.
    pub fn node(&self, node: &NodeView) {
        self.state().proxy.node(node);
    }

    /// The kernel keeps what it had of a Service.
    pub fn refused(&self, family: Family, key: &Key) {
        self.state().checks.forget(family, key);
    }

    /// The kernel has everything that was taken up and not refused.
    pub fn programmed(&self, family: Family) {
        let mut state = self.state();
        state.proxy.programmed(family, Timestamp::now());
        if state.checks.programmed(family) {
            self.0.ports.notify_one();
        }
    }

    /// What /healthz answers.
    pub fn healthz(&self) -> Answer {
        let (moment, node) = self.moment();
        self.state().proxy.healthz(&moment, node.as_ref())
    }

    /// What /livez answers.
    pub fn livez(&self) -> Answer {
        self.state().proxy.livez(&self.moment().0)
    }

    /// What the health check port of a Service answers, and how many of its endpoints are here.
    pub fn check(&self, id: &Id) -> (Answer, usize) {
        let (moment, _) = self.moment();
        let state = self.state();
        let local = state.checks.get(id).map_or(0, |check| check.local);
        let healthy = !self.0.served || state.proxy.is_to_be_trusted(&moment);
        (checks::answer(&id.1, local, healthy), local)
    }

    /// Waits until other ports are to be listened on.
    pub async fn other_ports(&self) {
        self.0.ports.notified().await;
    }

    /// The ports to be listened on.
    pub fn ports(&self) -> BTreeMap<Id, u16> {
        self.state().checks.ports()
    }

    /// Now, and the Node that waits to be taken up.
    fn moment(&self) -> (Moment, Option<NodeView>) {
        let (waiting, node) = self.0.mailbox.look(|waiting| match waiting {
            Some((batch, at)) => (Some(*at), batch.node.clone().flatten()),
            None => (None, None),
        });
        let (now, wall) = (tokio::time::Instant::now().into_std(), Timestamp::now());
        (Moment { now, wall, waiting, silence: self.0.heard.silence() }, node)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
