//! What the reconciler needs of a packet filter, whichever it is.

use std::collections::BTreeSet;
use std::sync::Arc;

use distributary_model::{Key, Service};
use ipnet::IpNet;

use super::{Outcome, Services};
use crate::iptables::Counts;
use crate::kernel::KernelError;
use crate::plan::{Claim, Family, NodeState};

/// The rules of one family, as they are wanted and as the kernel has them.
pub trait Backend: Send {
    /// Whose rules they are.
    fn family(&self) -> Family;
    /// What a Service is to be.
    fn get(&self, key: &Key) -> Option<&Arc<Service>>;
    /// From now on this is wanted of a Service, or that it is gone.
    fn set(&mut self, key: &Arc<Key>, service: Option<Arc<Service>>);
    /// What is known of the node.
    fn node(&self) -> &NodeState;
    /// The node has become this.
    fn set_node(&mut self, state: NodeState);
    /// Where cluster IPs come from, of either family. Not every backend makes something of it.
    fn set_service_cidrs(&mut self, _cidrs: &[IpNet]) {}
    /// How many rules there are, and what they say of Services.
    fn counts(&self) -> Counts;
    /// Addresses and ports that more than one Service claims.
    fn conflicts(&self) -> usize;
    /// Whether the kernel held Services when it was looked at last.
    fn holds_services(&self) -> bool;
    /// Whether what is thought of the kernel is what it holds, as far as is known.
    fn is_adopted(&self) -> bool;
    /// What the kernel holds is not known any more.
    fn forget(&mut self);
    /// Learns what the kernel holds, unless that is known.
    fn adopt(&mut self) -> impl Future<Output = Result<(), KernelError>> + Send;
    /// Writes what differs from what the kernel holds, and forgets what that is where it fails.
    fn write(&mut self, outcome: &mut Outcome) -> impl Future<Output = Result<(), Failed>> + Send;
    /// Whether the rules look untouched. Cheap.
    fn in_place(&mut self) -> impl Future<Output = Result<bool, KernelError>> + Send;

    /// Of these Services, the one that a refusal is about, if that can be told.
    fn suspect(&self, _message: &str, _text: &str, _among: &Services) -> Option<Arc<Key>> {
        None
    }

    /// The UDP destinations of the rules that were in the kernel when this process came; once.
    fn take_found(&mut self) -> BTreeSet<Claim>;

    /// From now on what somebody else writes is left as it is, or is not.
    fn set_yields(&mut self, _yields: bool) {}
    /// Whether somebody else has written over these rules since this was asked last.
    fn was_overwritten(&mut self) -> bool {
        false
    }
    /// Whatever the kernel holds, and whoever wrote it, is written over by the next [`write`](Self::write).
    fn take_over(&mut self) {
        self.forget();
    }
    /// Removes what somebody else makes again as long as it runs.
    fn remove_canary(&mut self) -> impl Future<Output = Result<(), KernelError>> + Send {
        async { Ok(()) }
    }
    /// Whether that is there.
    fn has_canary(&mut self) -> impl Future<Output = Result<bool, KernelError>> + Send {
        async { Ok(false) }
    }
}

/// A write that failed.
#[derive(Debug)]
pub struct Failed {
    /// Why.
    pub error: KernelError,
    /// What was to be written, if it came to that.
    pub text: String,
}

impl From<KernelError> for Failed {
    fn from(error: KernelError) -> Self {
        Self { error, text: String::new() }
    }
}
