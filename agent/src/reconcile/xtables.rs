//! iptables, as the reconciler writes it.

use std::collections::BTreeSet;
use std::sync::Arc;

use distributary_model::{Key, Protocol, Service};

use super::backend::{Backend, Failed};
use super::suspect::{Suspect, suspect};
use super::{Outcome, Services};
use crate::iptables::{self, Counts, Family, Hairpin, Iptables, Options};
use crate::kernel::{Kernel, KernelError};
use crate::plan::{Claim, NodeState};

/// One family's chains, and the tools that write them.
#[derive(Debug)]
pub struct Xtables<K> {
    kernel: K,
    family: Family,
    rules: Iptables,
    /// Chains in a section, where the kernel took no more.
    section: usize,
    /// What `rules` takes the kernel to hold is what it holds.
    adopted: bool,
    /// It is known how hairpin traffic is to be matched, and whether rules can count.
    probed: bool,
    /// The UDP destinations of the rules that were there when this process came, until they are taken.
    found: Option<BTreeSet<Claim>>,
    /// The kernel has the objects that rules may count in.
    counts: bool,
    /// This process was the last to write.
    owned: bool,
    /// Somebody else has written since.
    overwritten: bool,
    /// If somebody else has written, nothing is written over that.
    yields: bool,
}

impl<K: Kernel> Xtables<K> {
    /// Of a family, whose kernel is not looked at yet.
    pub fn new(family: Family, kernel: K, options: Options) -> Self {
        let (section, counts) = (options.section, options.counters);
        Self {
            kernel,
            family,
            rules: Iptables::new(family, options),
            section,
            adopted: false,
            probed: false,
            found: None,
            counts,
            owned: false,
            overwritten: false,
            yields: false,
        }
    }

    /// Whether the kernel takes such rules: it holds one, or does not refuse the probe.
    async fn takes(
        &mut self,
        saved: &str,
        is_one: impl Fn(&str) -> bool,
        probe: String,
    ) -> Result<bool, KernelError> {
        if saved.lines().any(is_one) {
            return Ok(true);
        }
        match self.kernel.restore(&probe).await {
            Ok(()) => Ok(true),
            Err(KernelError::Refused { .. }) => Ok(false),
            Err(e) => Err(e),
        }
    }
}

impl<K: Kernel> Backend for Xtables<K> {
    fn family(&self) -> Family {
        self.family
    }

    fn get(&self, key: &Key) -> Option<&Arc<Service>> {
        self.rules.get(key)
    }

    fn set(&mut self, key: &Arc<Key>, service: Option<Arc<Service>>) {
        self.rules.set(key, service);
    }

    fn node(&self) -> &NodeState {
        self.rules.node()
    }

    fn set_node(&mut self, state: NodeState) {
        self.rules.set_node(state);
    }

    fn counts(&self) -> Counts {
        self.rules.counts()
    }

    fn conflicts(&self) -> usize {
        self.rules.conflicts().count()
    }

    fn holds_services(&self) -> bool {
        self.rules.holds_services()
    }

    fn is_adopted(&self) -> bool {
        self.adopted
    }

    fn forget(&mut self) {
        self.adopted = false;
    }

    async fn adopt(&mut self) -> Result<(), KernelError> {
        if self.adopted {
            return Ok(());
        }
        let saved = self.kernel.save().await?;
        if self.owned && iptables::is_kube_proxys(&iptables::parse(&saved)) {
            (self.owned, self.overwritten) = (self.yields, true);
            if self.yields {
                return Err(KernelError::Rival { family: self.family.as_str() });
            }
        }
        if !self.probed {
            // Rules of ours that are there say what the last probe found.
            let ours = |line: &str| line.contains("--bytecode") && line.ends_with("-j KUBE-SVC-0-HAIRPIN");
            let takes = self.takes(&saved, ours, iptables::probe(self.family)).await?;
            self.rules.set_hairpin(if takes { Hairpin::Bpf } else { Hairpin::Trie });
            if self.counts {
                let ours = |line: &str| line.contains(iptables::INVALID_COUNTER);
                let takes = self.takes(&saved, ours, iptables::probe_counters()).await?;
                self.rules.set_counters(takes);
            }
            self.probed = true;
        }
        let saved = iptables::parse(&saved);
        self.found.get_or_insert_with(|| iptables::destinations(&saved, Protocol::Udp));
        self.rules.adopt(&saved);
        self.adopted = true;
        Ok(())
    }

    /// Cut smaller where the kernel wants it smaller.
    async fn write(&mut self, outcome: &mut Outcome) -> Result<(), Failed> {
        loop {
            self.adopt().await?;
            let Some(write) = self.rules.write() else {
                self.owned = true;
                return Ok(());
            };
            outcome.restores += 1;
            if outcome.full && outcome.found.is_empty() {
                outcome.found = self.rules.wrong(&write);
            }
            let count = write.chains.len() + write.deleted.len();
            match self.kernel.restore(&write.text).await {
                Ok(()) => {
                    let chains = write.names();
                    let family = self.family.as_str();
                    tracing::debug!(family, chains, sections = write.sections, "wrote");
                    self.rules.written();
                    outcome.chains += count;
                    self.owned = true;
                    return Ok(());
                }
                Err(error) => {
                    outcome.failures += 1;
                    self.adopted = false;
                    match error {
                        KernelError::TooLong { .. } if self.section > 1 => {
                            self.section /= 2;
                            self.rules.set_section(self.section);
                        }
                        error => return Err(Failed { error, text: write.text }),
                    }
                }
            }
        }
    }

    async fn in_place(&mut self) -> Result<bool, KernelError> {
        self.kernel.in_place().await
    }

    fn suspect(&self, message: &str, text: &str, among: &Services) -> Option<Arc<Key>> {
        let key = match suspect(message, text)? {
            Suspect::Chain(chain) => self.rules.owner(chain),
            Suspect::Service(name) => among.keys().find(|key| key.to_string() == *name),
        };
        key.filter(|key| among.contains_key(*key)).cloned()
    }

    fn take_found(&mut self) -> BTreeSet<Claim> {
        self.found.as_mut().map(std::mem::take).unwrap_or_default()
    }

    fn set_yields(&mut self, yields: bool) {
        self.yields = yields;
    }

    fn was_overwritten(&mut self) -> bool {
        std::mem::take(&mut self.overwritten)
    }

    fn take_over(&mut self) {
        (self.owned, self.adopted) = (false, false);
    }

    async fn remove_canary(&mut self) -> Result<(), KernelError> {
        self.kernel.restore(&iptables::without_canary()).await
    }

    async fn has_canary(&mut self) -> Result<bool, KernelError> {
        self.kernel.has_canary().await
    }
}
