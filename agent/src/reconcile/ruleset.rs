//! The rules of one family: what is wanted against what the kernel holds.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use distributary_model::{Key, Name, Protocol, Service};

use super::Services;
use super::suspect::{Suspect, suspect};
use crate::iptables::{self, Counts, Family, Hairpin, Iptables, Options, Table};
use crate::kernel::{Kernel, KernelError};
use crate::plan::{Claim, NodeState};

/// One family's rules and its kernel.
#[derive(Debug)]
pub struct Ruleset<K> {
    name: &'static str,
    kernel: K,
    family: Family,
    rules: Iptables,
    /// Of every service that changed since the kernel last had all that was wanted: what it was then.
    good: Services,
    /// Chains in a section, where the kernel took no more.
    section: usize,
    /// Services that are wanted.
    services: usize,
    /// What `rules` takes the kernel to hold is what it holds.
    adopted: bool,
    /// It is known how hairpin traffic is to be matched, and whether rules can count.
    probed: bool,
    /// The UDP destinations of the rules that were there when this process came, until they are taken.
    found: Option<BTreeSet<Claim>>,
    /// The kernel has the objects that rules may count in.
    counts: bool,
    /// This process has brought the kernel to what it wanted at least once.
    settled: bool,
    /// This process was the last to write.
    owned: bool,
    /// Somebody else has written since.
    overwritten: bool,
    /// If somebody else has written, nothing is written over that.
    yields: bool,
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
    /// Services whose content the kernel refuses.
    pub refused: Vec<Refused>,
    /// Why not everything could be written, if so.
    pub failed: Option<KernelError>,
    /// The kernel was listed, and all rules compared with it.
    pub full: bool,
    /// What was found then that had to be put right, in words.
    pub found: String,
    /// How long it took.
    pub took: Duration,
}

/// A service whose content the kernel refuses.
#[derive(Debug)]
pub struct Refused {
    /// Which one.
    pub key: Arc<Key>,
    /// What is refused.
    pub wanted: Option<Arc<Service>>,
    /// What the tool said.
    pub message: String,
    /// The node lacks what the content needs.
    pub node: bool,
}

impl<K: Kernel> Ruleset<K> {
    /// Of a family, whose kernel is not looked at yet.
    pub fn new(family: Family, kernel: K, options: Options) -> Self {
        let (section, counts) = (options.section, options.counters);
        Self {
            name: family.as_str(),
            kernel,
            family,
            rules: Iptables::new(family, options),
            good: Services::new(),
            section,
            services: 0,
            adopted: false,
            probed: false,
            found: None,
            counts,
            settled: false,
            owned: false,
            overwritten: false,
            yields: false,
        }
    }

    /// Whose rules they are.
    pub fn family(&self) -> Family {
        self.family
    }

    /// What people call the family.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// What a service is to be, in the newest content that is not rejected.
    pub fn get(&self, key: &Key) -> Option<&Arc<Service>> {
        self.rules.get(key)
    }

    /// Services that are wanted.
    pub fn services(&self) -> usize {
        self.services
    }

    /// How many rules there are, and what they say of services.
    pub fn counts(&self) -> Counts {
        self.rules.counts()
    }

    /// Addresses and ports that more than one service claims.
    pub fn conflicts(&self) -> usize {
        self.rules.conflicts().count()
    }

    /// What is known of the node.
    pub fn node(&self) -> &NodeState {
        self.rules.node()
    }

    /// Takes note of what the node has become; the next [`program`](Self::program) brings it to the kernel.
    pub fn set_node(&mut self, state: NodeState) {
        self.rules.set_node(state);
    }

    /// From now on what somebody else writes is left as it is, or is not.
    pub fn set_yields(&mut self, yields: bool) {
        self.yields = yields;
    }

    /// The UDP destinations of the rules that were in the kernel when this process came; once.
    pub fn take_found(&mut self) -> BTreeSet<Claim> {
        self.found.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Whether somebody else has written rules in kube-proxy's form over ours since this was asked last.
    pub fn was_overwritten(&mut self) -> bool {
        std::mem::take(&mut self.overwritten)
    }

    /// Whatever the kernel holds, and whoever wrote it, is written over by the next [`program`](Self::program).
    pub fn take_over(&mut self) {
        (self.owned, self.adopted) = (false, false);
    }

    /// Takes note of what services are to be, for the next [`program`](Self::program).
    pub fn note(&mut self, services: &Services) {
        for (key, service) in services {
            self.good.entry(key.clone()).or_insert_with(|| self.rules.get(key).cloned());
            self.set(key, service.clone());
        }
    }

    /// Removes the chain that a running kube-proxy makes again.
    ///
    /// # Errors
    /// When the kernel does not take that.
    pub async fn remove_canary(&mut self) -> Result<(), KernelError> {
        self.kernel.restore(&iptables::without_canary()).await
    }

    /// Whether that chain is there.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn has_canary(&mut self) -> Result<bool, KernelError> {
        self.kernel.has_canary().await
    }

    /// Brings services, and what the node has become, to the kernel, with whatever an earlier call could not bring there. A
    /// service that the kernel refuses, alone and twice, keeps its last good rules; the others are written.
    pub async fn program(&mut self, services: &Services) -> Outcome {
        self.note(services);
        let began = Instant::now();
        let mut outcome = Outcome { full: !self.adopted, ..Outcome::default() };
        outcome.failed = self.settle(&mut outcome).await.err();
        outcome.took = began.elapsed();
        if outcome.failed.is_none() {
            self.good.clear();
            self.settled = true;
        }
        outcome
    }

    /// Writes all that can be written. After an error everything that is not in the kernel is still wanted.
    async fn settle(&mut self, outcome: &mut Outcome) -> Result<(), KernelError> {
        // The tool names a line more often than not, and to put its service aside is quicker than to search.
        let mut aside = Vec::new();
        let mut result = loop {
            let (message, text) = match self.write(outcome).await {
                Ok(()) => break Ok(()),
                Err(Failed { error: KernelError::Refused { message, .. }, text })
                    if !self.good.is_empty() =>
                {
                    (message, text)
                }
                Err(failed) => break Err(failed.error),
            };
            let Some(key) = suspect(&message, &text).and_then(|suspect| self.changed(&suspect)) else {
                break self.search(message, outcome).await;
            };
            let wanted = self.rules.get(&key).cloned();
            let good = self.good.remove(&key).flatten();
            self.set(&key, good.clone());
            aside.push((key, wanted, good));
        };
        for (key, wanted, good) in aside {
            if result.is_ok() {
                let tried = self.alone(&key, wanted.as_ref(), good.as_ref(), outcome).await;
                result = tried.map_err(|failed| failed.error);
            }
            if result.is_err() {
                self.set(&key, wanted);
                self.good.insert(key, good);
            }
        }
        result
    }

    /// Tries a service by itself. Who is refused twice is rejected, and keeps what was good (stream rule 4.2).
    async fn alone(
        &mut self,
        key: &Arc<Key>,
        wanted: Option<&Arc<Service>>,
        good: Option<&Arc<Service>>,
        outcome: &mut Outcome,
    ) -> Result<(), Failed> {
        let mut said = String::new();
        for _ in 0..2 {
            self.set(key, wanted.cloned());
            match self.write(outcome).await {
                Err(Failed { error: KernelError::Refused { message, .. }, .. }) => said = message,
                written => return written,
            }
            self.set(key, good.cloned());
            self.write(outcome).await?;
        }
        outcome.refused.push(Refused::new(key.clone(), wanted.cloned(), said));
        Ok(())
    }

    /// Finds the services that are refused by halves.
    async fn search(&mut self, message: String, outcome: &mut Outcome) -> Result<(), KernelError> {
        self.adopt().await?;
        if !self.settled && self.rules.holds_services() {
            // To go back to what this process had would be to nothing, and the node has rules that work.
            let program = self.name.to_owned();
            let message = format!("the first write is refused and nobody is named: {message}");
            return Err(KernelError::Node { program, message });
        }
        let good = std::mem::take(&mut self.good);
        let wanted: Services = good.keys().map(|key| (key.clone(), self.rules.get(key).cloned())).collect();
        let mut parts: Vec<Vec<Arc<Key>>> = vec![good.keys().cloned().collect()];
        self.set_all(&parts[0], &good);
        // Without any of the new content: if that is refused as well, nobody in particular is to blame.
        let mut result = self.write(outcome).await;
        while result.is_ok()
            && let Some(part) = parts.pop()
        {
            let of = |services: &Services, key| services.get(key).cloned().flatten();
            result = if let [key] = &part[..] {
                self.alone(key, of(&wanted, key).as_ref(), of(&good, key).as_ref(), outcome).await
            } else {
                self.set_all(&part, &wanted);
                match self.write(outcome).await {
                    Err(Failed { error: KernelError::Refused { .. }, .. }) => {
                        let (left, right) = part.split_at(part.len() / 2);
                        parts.extend([right.to_vec(), left.to_vec()]);
                        self.set_all(&part, &good);
                        self.write(outcome).await
                    }
                    written => written,
                }
            };
            if result.is_err() {
                parts.push(part);
            }
        }
        // What is left is wanted all the same.
        for part in &parts {
            self.set_all(part, &wanted);
            self.good.extend(
                part.iter().filter_map(|key| good.get_key_value(key)).map(|(k, s)| (k.clone(), s.clone())),
            );
        }
        result.map_err(|failed| failed.error)
    }

    fn set(&mut self, key: &Arc<Key>, service: Option<Arc<Service>>) {
        self.services -= usize::from(self.rules.get(key).is_some());
        self.services += usize::from(service.is_some());
        self.rules.set(key, service);
    }

    fn set_all(&mut self, keys: &[Arc<Key>], to: &Services) {
        for key in keys {
            self.set(key, to.get(key).cloned().flatten());
        }
    }

    /// The service that it is, if it is one that changed.
    fn changed(&self, suspect: &Suspect) -> Option<Arc<Key>> {
        let key = match suspect {
            Suspect::Chain(chain) => self.rules.owner(chain),
            Suspect::Service(name) => self.good.keys().find(|key| key.to_string() == *name),
        };
        key.filter(|key| self.good.contains_key(*key)).cloned()
    }

    /// Writes what differs, cut smaller where the kernel wants it smaller.
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
                    let chains = names(write.chains.iter().chain(&write.deleted));
                    tracing::debug!(family = self.name, chains, sections = write.sections, "wrote");
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

    /// Learns what the kernel holds, unless that is known.
    async fn adopt(&mut self) -> Result<(), KernelError> {
        if self.adopted {
            return Ok(());
        }
        let saved = self.kernel.save().await?;
        if self.owned && iptables::is_kube_proxys(&iptables::parse(&saved)) {
            (self.owned, self.overwritten) = (self.yields, true);
            if self.yields {
                return Err(KernelError::Rival { family: self.name });
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

    /// Writes the rules again if they are gone.
    pub async fn restore_if_lost(&mut self) -> Outcome {
        if self.adopted {
            match self.kernel.in_place().await {
                Ok(true) => return Outcome::default(),
                Ok(false) => {}
                Err(e) => return Outcome { failed: Some(e), ..Outcome::default() },
            }
        }
        self.audit().await
    }

    /// Compares with the kernel, and writes what differs.
    pub async fn audit(&mut self) -> Outcome {
        let began = Instant::now();
        self.adopted = false;
        let mut outcome = Outcome { full: true, ..Outcome::default() };
        outcome.failed = self.write(&mut outcome).await.map_err(|failed| failed.error).err();
        outcome.took = began.elapsed();
        outcome
    }
}

/// A write that failed.
struct Failed {
    error: KernelError,
    /// What was to be written, if it came to that.
    text: String,
}

impl From<KernelError> for Failed {
    fn from(error: KernelError) -> Self {
        Self { error, text: String::new() }
    }
}

impl Refused {
    fn new(key: Arc<Key>, wanted: Option<Arc<Service>>, message: String) -> Self {
        let lacks = ["No such file or directory", "Couldn't load", "missing kernel module"];
        let node = lacks.iter().any(|what| message.contains(what));
        Self { key, wanted, message, node }
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
