//! The rules of one family: what is wanted against what the kernel holds.

use std::sync::Arc;

use distributary_model::{Key, Name, Service};

use super::Services;
use crate::iptables::{self, Family, Hairpin, Iptables, Options, Table};
use crate::kernel::{Kernel, KernelError};

/// One family's rules and its kernel.
#[derive(Debug)]
pub struct Ruleset<K> {
    name: &'static str,
    kernel: K,
    family: Family,
    rules: Iptables,
    /// Chains in a section, where the kernel took no more.
    section: usize,
    /// Services that are wanted.
    services: usize,
    /// What `rules` takes the kernel to hold is what it holds.
    adopted: bool,
    /// It is known how hairpin traffic is to be matched.
    probed: bool,
}

/// What came of programming a batch.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Chains that were written or deleted.
    pub chains: usize,
    /// Processes that wrote.
    pub restores: u64,
    /// Processes that failed.
    pub failures: u64,
    /// Services whose content the kernel refuses, with what the tool said.
    pub refused: Vec<(Arc<Key>, String)>,
    /// Why nothing could be written, if so.
    pub failed: Option<KernelError>,
}

impl<K: Kernel> Ruleset<K> {
    /// Of a family, whose kernel is not looked at yet.
    pub fn new(family: Family, kernel: K, options: Options) -> Self {
        let name = match family {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        };
        let section = options.section;
        let rules = Iptables::new(family, options);
        Self { name, kernel, family, rules, section, services: 0, adopted: false, probed: false }
    }

    /// What people call the family.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Services that are wanted.
    pub fn services(&self) -> usize {
        self.services
    }

    /// Addresses and ports that more than one service claims.
    pub fn conflicts(&self) -> usize {
        self.rules.conflicts().count()
    }

    /// Brings services, and the node's zone, to the kernel. A service that the kernel refuses, alone and twice, keeps
    /// its last good rules; the others are written.
    pub async fn program(&mut self, services: &Services, zone: Option<Name>) -> Outcome {
        let mut outcome = Outcome::default();
        let before: Services =
            services.keys().map(|key| (key.clone(), self.rules.get(key).cloned())).collect();
        if let Some(zone) = zone {
            self.rules.set_zone(zone);
        }
        self.set(services.iter());
        match self.write(&mut outcome).await {
            Ok(()) => return outcome,
            Err(KernelError::Refused { .. }) if !services.is_empty() => {}
            Err(failed) => {
                outcome.failed = Some(failed);
                return outcome;
            }
        }
        self.set(before.iter());
        if let Err(failed) = self.write(&mut outcome).await {
            // Without any of the new content it is refused as well: nobody in particular is to blame.
            self.set(services.iter());
            outcome.failed = Some(failed);
            return outcome;
        }
        outcome.failed = self.bisect(services, &before, &mut outcome).await.err();
        outcome
    }

    /// Writes all that can be written, and finds the services that cannot.
    async fn bisect(
        &mut self,
        services: &Services,
        before: &Services,
        outcome: &mut Outcome,
    ) -> Result<(), KernelError> {
        let keys: Vec<&Arc<Key>> = services.keys().collect();
        let mut parts = vec![keys.as_slice()];
        while let Some(part) = parts.pop() {
            let of = |services: &Services| -> Services {
                part.iter()
                    .filter_map(|key| services.get_key_value(*key))
                    .map(|(k, s)| (k.clone(), s.clone()))
                    .collect()
            };
            let (new, old) = (of(services), of(before));
            for last_try in [false, true] {
                self.set(new.iter());
                match self.write(outcome).await {
                    Ok(()) => break,
                    Err(KernelError::Refused { message, .. }) => {
                        self.set(old.iter());
                        self.write(outcome).await?;
                        if let [key] = part {
                            if last_try {
                                outcome.refused.push(((*key).clone(), message));
                            }
                        } else {
                            let (left, right) = part.split_at(part.len() / 2);
                            parts.extend([right, left]);
                            break;
                        }
                    }
                    Err(failed) => {
                        // What is left is wanted all the same, and tried again with everything else.
                        self.set(
                            parts
                                .iter()
                                .flat_map(|part| part.iter())
                                .filter_map(|key| services.get_key_value(*key)),
                        );
                        return Err(failed);
                    }
                }
            }
        }
        Ok(())
    }

    fn set<'a>(&mut self, services: impl Iterator<Item = (&'a Arc<Key>, &'a Option<Arc<Service>>)>) {
        for (key, service) in services {
            self.services -= usize::from(self.rules.get(key).is_some());
            self.services += usize::from(service.is_some());
            self.rules.set(key, service.clone());
        }
    }

    /// Writes what differs, cut smaller where the kernel wants it smaller.
    async fn write(&mut self, outcome: &mut Outcome) -> Result<(), KernelError> {
        loop {
            self.adopt().await?;
            let Some(write) = self.rules.write() else { return Ok(()) };
            outcome.restores += 1;
            let count = write.chains.len() + write.deleted.len();
            match self.kernel.restore(write.text).await {
                Ok(()) => {
                    let chains = names(write.chains.iter().chain(&write.deleted));
                    tracing::debug!(family = self.name, chains, sections = write.sections, "wrote");
                    self.rules.written();
                    outcome.chains += count;
                    return Ok(());
                }
                Err(e) => {
                    outcome.failures += 1;
                    self.adopted = false;
                    match e {
                        KernelError::TooLong { .. } if self.section > 1 => {
                            self.section /= 2;
                            self.rules.set_section(self.section);
                        }
                        e => return Err(e),
                    }
                }
            }
        }
    }

    /// Learns what the kernel holds, unless that is known.
    async fn adopt(&mut self) -> Result<(), KernelError> {
        if self.adopted {
            return Ok(());
        }
        let saved = self.kernel.save().await?;
        if !self.probed {
            // Rules of ours that are there say what the last probe found.
            let bpf = saved.contains("--bytecode")
                || self.kernel.restore(iptables::probe(self.family)).await.is_ok();
            self.rules.set_hairpin(if bpf { Hairpin::Bpf } else { Hairpin::Trie });
            self.probed = true;
        }
        self.rules.adopt(&iptables::parse(&saved));
        self.adopted = true;
        Ok(())
    }

    /// Writes the rules again if they are gone. Gives the number of chains written then.
    ///
    /// # Errors
    /// When the kernel cannot be asked, or does not take them.
    pub async fn restore_if_lost(&mut self) -> Result<Option<usize>, KernelError> {
        if self.kernel.canaries().await? {
            return Ok(None);
        }
        self.adopted = false;
        let mut outcome = Outcome::default();
        self.write(&mut outcome).await?;
        Ok(Some(outcome.chains))
    }
}

/// The first of them, for the log.
fn names<'a>(chains: impl Iterator<Item = &'a (Table, Name)>) -> String {
    const SHOWN: usize = 8;
    let chains: Vec<String> = chains.map(|(table, name)| format!("{}/{name}", table.as_str())).collect();
    match chains.len().checked_sub(SHOWN) {
        Some(more @ 1..) => format!("{} and {more} more", chains[..SHOWN].join(" ")),
        _ => chains.join(" "),
    }
}
