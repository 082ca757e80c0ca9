//! nftables, as the reconciler writes it.

use std::collections::BTreeSet;
use std::sync::Arc;

use distributary_model::{Key, Protocol, Service};
use ipnet::IpNet;

use super::Outcome;
use super::backend::{Backend, Failed};
use crate::iptables::Counts;
use crate::kernel::{KernelError, Table};
use crate::nftables::{Family, Nftables, Options, Write, parse};
use crate::plan::{Claim, NodeState};

/// One family's table, and the tool that writes it.
#[derive(Debug)]
pub struct Nft<K> {
    kernel: K,
    family: Family,
    rules: Nftables,
    /// Elements in a transaction, where the kernel took no more.
    section: usize,
    /// What `rules` takes the kernel to hold is what it holds.
    adopted: bool,
    /// The UDP destinations of the table that was there when this process came, until they are taken.
    found: Option<BTreeSet<Claim>>,
}

impl<K: Table> Nft<K> {
    /// Of a family, whose kernel is not looked at yet.
    pub fn new(family: Family, kernel: K, options: Options) -> Self {
        let section = options.section;
        Self { kernel, family, rules: Nftables::new(family, options), section, adopted: false, found: None }
    }

    /// All that has to be written for packets to go where they should.
    async fn apply(&mut self, write: &Write, outcome: &mut Outcome) -> Result<(), Failed> {
        for text in write.main.iter().chain(&write.later) {
            outcome.restores += 1;
            if let Err(error) = self.kernel.apply(text).await {
                outcome.failures += 1;
                return Err(Failed { error, text: text.clone() });
            }
        }
        self.rules.written();
        Ok(())
    }

    /// Removes what nobody needs. An older kernel may hold on to it for a while: it is removed with the next write.
    async fn sweep(&mut self, write: &Write) {
        let Some(text) = &write.sweep else { return };
        match self.kernel.apply(text).await {
            Ok(()) => self.rules.swept(),
            Err(e) => {
                tracing::debug!(family = self.family.as_str(), error = %e, "chains and sets are left for later");
            }
        }
    }
}

impl<K: Table> Backend for Nft<K> {
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

    fn set_service_cidrs(&mut self, cidrs: &[IpNet]) {
        self.rules.set_service_cidrs(cidrs);
    }

    fn counts(&self) -> Counts {
        let without_local = self.rules.without_local();
        Counts {
            internal_without_local: without_local.internal,
            external_without_local: without_local.external,
            ..Counts::default()
        }
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
        if !self.adopted {
            let listing = parse(&self.kernel.list().await?);
            self.rules.adopt(listing);
            self.found.get_or_insert_with(|| self.rules.destinations(Protocol::Udp));
            self.adopted = true;
        }
        Ok(())
    }

    /// What is refused by a kernel that holds something else than was thought is tried once more, with what it holds. Cut
    /// smaller where the kernel wants it smaller.
    async fn write(&mut self, outcome: &mut Outcome) -> Result<(), Failed> {
        loop {
            let remembered = self.adopted;
            self.adopt().await?;
            let Some(write) = self.rules.write() else { return Ok(()) };
            if outcome.full && outcome.found.is_empty() {
                outcome.found = format!("{} chains and {} elements", write.chains, write.elements);
            }
            let Err(failed) = self.apply(&write, outcome).await else {
                let (family, elements) = (self.family.as_str(), write.elements);
                tracing::debug!(
                    family,
                    chains = write.chains,
                    elements,
                    sections = write.main.len(),
                    "wrote"
                );
                outcome.chains += write.chains;
                self.sweep(&write).await;
                return Ok(());
            };
            self.adopted = false;
            match failed.error {
                KernelError::TooLong { .. } if self.section > 1 => {
                    self.section /= 2;
                    self.rules.set_section(self.section);
                }
                KernelError::Refused { .. } if remembered => {
                    let (family, error) = (self.family.as_str(), failed.error.to_string());
                    tracing::warn!(
                        family,
                        error,
                        "the table is not what it was left as; it is looked at anew"
                    );
                }
                _ => return Err(failed),
            }
        }
    }

    fn take_found(&mut self) -> BTreeSet<Claim> {
        self.found.as_mut().map(std::mem::take).unwrap_or_default()
    }

    async fn in_place(&mut self) -> Result<bool, KernelError> {
        self.kernel.is_there().await
    }
}
