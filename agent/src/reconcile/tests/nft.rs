//! The rules of one family in an nftables table that a fake kernel holds.

use super::*;
use crate::kernel::Table;
use crate::nftables::fake::Fake as FakeTable;
use crate::nftables::{self, parse};

#[derive(Clone, Debug)]
struct TestTable(Arc<Mutex<Held>>);

#[derive(Debug)]
struct Held {
    fake: FakeTable,
    lists: usize,
    applied: Vec<String>,
    /// A text longer than this is too long.
    most: usize,
    /// A text that contains this is refused.
    refuses: Option<&'static str>,
    /// So many texts fail for want of memory.
    busy: usize,
}

impl TestTable {
    fn new() -> Self {
        let fake = FakeTable::default();
        let held = Held { fake, lists: 0, applied: Vec::new(), most: usize::MAX, refuses: None, busy: 0 };
        Self(Arc::new(Mutex::new(held)))
    }

    fn with<T>(&self, look: impl FnOnce(&mut Held) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn holds(&self, what: &str) -> bool {
        self.with(|held| held.fake.list().contains(what))
    }

    fn ruleset(&self) -> Ruleset<Nft<Self>> {
        Ruleset::new(Nft::new(Family::V4, self.clone(), nftables::Options::new(t::CLUSTER, "n1")))
    }
}

impl Table for TestTable {
    async fn list(&mut self) -> Result<String, KernelError> {
        Ok(self.with(|held| {
            held.lists += 1;
            held.fake.list()
        }))
    }

    async fn apply(&mut self, text: &str) -> Result<(), KernelError> {
        let program = "fake".to_owned();
        self.with(|held| {
            held.applied.push(text.to_owned());
            if held.busy > 0 {
                held.busy -= 1;
                return Err(KernelError::Node { program, message: "Cannot allocate memory".into() });
            }
            if text.len() > held.most {
                return Err(KernelError::TooLong { program, message: "Message too long".into() });
            }
            let refused = held.refuses.filter(|what| text.contains(what)).map(str::to_owned);
            match refused.or_else(|| held.fake.apply(text).err()) {
                Some(message) => {
                    Err(KernelError::Refused { program, status: ExitStatus::from_raw(256), message })
                }
                None => Ok(()),
            }
        })
    }

    async fn is_there(&mut self) -> Result<bool, KernelError> {
        Ok(self.with(|held| parse(&held.fake.list()).holds_table()))
    }
}

fn services(all: &[(&str, Option<Service>)]) -> Services {
    all.iter().map(|(name, service)| (t::key(name), service.clone().map(Arc::new))).collect()
}

#[tokio::test]
async fn a_change_is_one_transaction_and_no_listing() {
    let table = TestTable::new();
    let mut rules = table.ruleset();
    let outcome = rules.program(&services(&[("ns/a", Some(web(1, "10.0.0.1")))])).await;
    assert!(outcome.failed.is_none() && outcome.full && table.holds("10.0.0.1 . 8080"));
    let applied = table.with(|held| held.applied.len());
    rules.program(&services(&[("ns/a", Some(web(1, "10.0.0.2")))])).await;
    assert!(table.holds("10.0.0.2 . 8080") && !table.holds("10.0.0.1 . 8080"));
    assert_eq!(table.with(|held| (held.applied.len(), held.lists)), (applied + 1, 1));
    rules.program(&services(&[("ns/a", Some(web(1, "10.0.0.2")))])).await;
    assert_eq!(table.with(|held| held.applied.len()), applied + 1, "equal content is no write");
}

#[tokio::test]
async fn a_table_that_is_gone_is_written_again() {
    let table = TestTable::new();
    let mut rules = table.ruleset();
    rules.program(&services(&[("ns/a", Some(web(1, "10.0.0.1")))])).await;
    let right = table.with(|held| held.fake.clone());
    assert_eq!(rules.restore_if_lost().await.restores, 0);
    table.with(|held| held.fake = FakeTable::default());
    assert!(rules.restore_if_lost().await.restores > 0);
    table.with(|held| assert_eq!(held.fake, right));
    // What the probe does not see, the audit does.
    let meddling = "delete element ip distributary services {\n10.96.0.1 . 6 . 80,\n}\n";
    table.with(|held| held.fake.apply(meddling).unwrap());
    assert_eq!(rules.restore_if_lost().await.restores, 0);
    assert_eq!(rules.audit().await.restores, 1);
    assert_eq!(rules.audit().await.restores, 0);
    table.with(|held| assert_eq!(held.fake, right));
}

#[tokio::test]
async fn a_change_to_a_table_that_somebody_changed_is_made_all_the_same() {
    let table = TestTable::new();
    let mut rules = table.ruleset();
    rules.program(&services(&[("ns/a", Some(web(1, "10.0.0.1")))])).await;
    table.with(|held| held.fake.apply("delete table ip distributary\n").unwrap());
    let outcome = rules.program(&services(&[("ns/b", Some(web(2, "10.0.0.2")))])).await;
    assert!(outcome.failed.is_none() && outcome.refused.is_empty());
    assert!(table.holds("10.0.0.1 . 8080") && table.holds("10.0.0.2 . 8080"));
}

#[tokio::test]
async fn who_is_refused_is_found_and_the_others_are_written() {
    let table = TestTable::new();
    let mut rules = table.ruleset();
    rules.program(&services(&[("ns/bad", Some(web(7, "10.0.0.7")))])).await;
    table.with(|held| held.refuses = Some("10.6.6.6"));
    let names: Vec<String> = (10..20).map(|last| format!("ns/s{last}")).collect();
    let mut all: Vec<(&str, Option<Service>)> = names
        .iter()
        .zip(10..)
        .map(|(name, last)| (name.as_str(), Some(web(last, &format!("10.0.1.{last}")))))
        .collect();
    all.push(("ns/bad", Some(web(7, "10.6.6.6"))));
    let outcome = rules.program(&services(&all)).await;
    let [refused] = &outcome.refused[..] else { panic!("{outcome:?}") };
    assert_eq!((refused.key.to_string().as_str(), outcome.failed.is_none()), ("ns/bad", true));
    assert!((10..20).all(|last| table.holds(&format!("10.0.1.{last} . 8080"))));
    assert!(table.holds("10.0.0.7 . 8080"), "its last good rules stay");
}

#[tokio::test]
async fn want_of_memory_rejects_nobody_and_what_is_too_long_is_cut() {
    let table = TestTable::new();
    let mut rules = table.ruleset();
    table.with(|held| (held.busy, held.most) = (1, 9_000));
    let names: Vec<String> = (1..200).map(|last| format!("ns/s{last}")).collect();
    let all: Vec<(&str, Option<Service>)> = names
        .iter()
        .zip(1..)
        .map(|(name, last)| (name.as_str(), Some(web(last, &format!("10.0.1.{last}")))))
        .collect();
    let outcome = rules.program(&services(&all)).await;
    assert!(matches!(outcome.failed, Some(KernelError::Node { .. })), "{outcome:?}");
    let outcome = rules.program(&Services::new()).await;
    assert!(outcome.failed.is_none() && outcome.refused.is_empty(), "{outcome:?}");
    assert!((1..200).all(|last| table.holds(&format!("10.0.1.{last} . 8080"))));
}

#[tokio::test]
async fn what_the_kernel_holds_on_to_fails_nothing() {
    let table = TestTable::new();
    let mut rules = table.ruleset();
    let sticky = web(1, "10.0.0.1").header(|header| header.affinity_seconds = 60);
    rules.program(&services(&[("ns/a", Some(sticky))])).await;
    table.with(|held| held.fake.busy = true);
    let outcome = rules.program(&services(&[("ns/a", None)])).await;
    assert!(outcome.failed.is_none() && table.holds("sticky-") && !table.holds("10.96.0.1"));
    table.with(|held| held.fake.busy = false);
    rules.program(&services(&[("ns/b", Some(web(2, "10.0.0.2")))])).await;
    assert!(!table.holds("sticky-"));
}
