//! The rules of one family: what is wanted against what the kernel holds.

use std::sync::Arc;
use std::time::{Duration, Instant};

use distributary_model::{Key, Service};

use super::Services;
use super::backend::{Backend, Failed};
use crate::iptables::Counts;
use crate::kernel::KernelError;
use crate::plan::{Family, NodeState};

/// One family's rules and its kernel.
#[derive(Debug)]
pub struct Ruleset<B> {
    rules: B,
    /// Of every service that changed since the kernel last had all that was wanted: what it was then.
    good: Services,
    /// Services that are wanted.
    services: usize,
    /// This process has brought the kernel to what it wanted at least once.
    settled: bool,
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

impl<B: Backend> Ruleset<B> {
    /// Of a family, whose kernel is not looked at yet.
    pub fn new(rules: B) -> Self {
        Self { rules, good: Services::new(), services: 0, settled: false }
    }

    /// Whose rules they are.
    pub fn family(&self) -> Family {
        self.rules.family()
    }

    /// What people call the family.
    pub fn name(&self) -> &'static str {
        self.family().as_str()
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
        self.rules.conflicts()
    }

    /// What is known of the node.
    pub fn node(&self) -> &NodeState {
        self.rules.node()
    }

    /// Takes note of what the node has become; the next [`program`](Self::program) brings it to the kernel.
    pub fn set_node(&mut self, state: NodeState) {
        self.rules.set_node(state);
    }

    /// The rules themselves.
    pub(super) fn rules_mut(&mut self) -> &mut B {
        &mut self.rules
    }

    /// Takes note of what services are to be, for the next [`program`](Self::program).
    pub fn note(&mut self, services: &Services) {
        for (key, service) in services {
            self.good.entry(key.clone()).or_insert_with(|| self.rules.get(key).cloned());
            self.set(key, service.clone());
        }
    }

    /// Brings services, and what the node has become, to the kernel, with whatever an earlier call could not bring there. A
    /// service that the kernel refuses, alone and twice, keeps its last good rules; the others are written.
    pub async fn program(&mut self, services: &Services) -> Outcome {
        self.note(services);
        let began = Instant::now();
        let mut outcome = Outcome { full: !self.rules.is_adopted(), ..Outcome::default() };
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
            let (message, text) = match self.rules.write(outcome).await {
                Ok(()) => break Ok(()),
                Err(Failed { error: KernelError::Refused { message, .. }, text })
                    if !self.good.is_empty() =>
                {
                    (message, text)
                }
                Err(failed) => break Err(failed.error),
            };
            let Some(key) = self.rules.suspect(&message, &text, &self.good) else {
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
            match self.rules.write(outcome).await {
                Err(Failed { error: KernelError::Refused { message, .. }, .. }) => said = message,
                written => return written,
            }
            self.set(key, good.cloned());
            self.rules.write(outcome).await?;
        }
        outcome.refused.push(Refused::new(key.clone(), wanted.cloned(), said));
        Ok(())
    }

    /// Finds the services that are refused by halves.
    async fn search(&mut self, message: String, outcome: &mut Outcome) -> Result<(), KernelError> {
        self.rules.adopt().await?;
        if !self.settled && self.rules.holds_services() {
            // To go back to what this process had would be to nothing, and the node has rules that work.
            let program = self.name().to_owned();
            let message = format!("the first write is refused and nobody is named: {message}");
            return Err(KernelError::Node { program, message });
        }
        let good = std::mem::take(&mut self.good);
        let wanted: Services = good.keys().map(|key| (key.clone(), self.rules.get(key).cloned())).collect();
        let mut parts: Vec<Vec<Arc<Key>>> = vec![good.keys().cloned().collect()];
        self.set_all(&parts[0], &good);
        // Without any of the new content: if that is refused as well, nobody in particular is to blame.
        let mut result = self.rules.write(outcome).await;
        while result.is_ok()
            && let Some(part) = parts.pop()
        {
            let of = |services: &Services, key| services.get(key).cloned().flatten();
            result = if let [key] = &part[..] {
                self.alone(key, of(&wanted, key).as_ref(), of(&good, key).as_ref(), outcome).await
            } else {
                self.set_all(&part, &wanted);
                match self.rules.write(outcome).await {
                    Err(Failed { error: KernelError::Refused { .. }, .. }) => {
                        let (left, right) = part.split_at(part.len() / 2);
                        parts.extend([right.to_vec(), left.to_vec()]);
                        self.set_all(&part, &good);
                        self.rules.write(outcome).await
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

    /// Writes the rules again if they are gone.
    pub async fn restore_if_lost(&mut self) -> Outcome {
        if self.rules.is_adopted() {
            match self.rules.in_place().await {
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
        self.rules.forget();
        let mut outcome = Outcome { full: true, ..Outcome::default() };
        outcome.failed = self.rules.write(&mut outcome).await.map_err(|failed| failed.error).err();
        outcome.took = began.elapsed();
        outcome
    }
}

impl Refused {
    fn new(key: Arc<Key>, wanted: Option<Arc<Service>>, message: String) -> Self {
        let lacks = ["No such file or directory", "Couldn't load", "missing kernel module"];
        let node = lacks.iter().any(|what| message.contains(what));
        Self { key, wanted, message, node }
    }
}
