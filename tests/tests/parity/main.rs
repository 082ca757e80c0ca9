//! The numbered assertions of kube-proxy's behaviour (docs/parity.md has them all), each a test of its own with real
//! packets: what is expected of the agent is expected of the real kube-proxy by the same code.
#![allow(missing_docs)]

mod look;
mod service;
mod stage;
mod sync;
mod topology;

mod affinity;
mod cluster_ip;
mod conditions;
mod detector;
mod external;
mod fuzz;
mod local;
mod ranges;

use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{iter, thread};

use stage::{Setup, Stage, Subject};

/// A case, as both subjects are put to it.
pub(crate) struct Case {
    pub name: &'static str,
    pub setup: &'static Setup,
    pub run: fn(&Stage),
}

/// So many cases at once.
const WORKERS: usize = 4;

/// Puts kube-proxy to all cases of a module.
pub(crate) fn kube_proxy_agrees(cases: &[Case]) {
    let disagrees = |case: &&Case| {
        let run = || (case.run)(&Stage::of(Subject::KubeProxy, case.setup));
        panic::catch_unwind(AssertUnwindSafe(run)).is_err()
    };
    let next = AtomicUsize::new(0);
    let work = || {
        let mine = iter::from_fn(|| cases.get(next.fetch_add(1, Ordering::Relaxed)));
        mine.filter(disagrees).map(|case| case.name).collect::<Vec<_>>()
    };
    let wrong: Vec<&str> = thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("panics are caught")).collect()
    });
    assert!(wrong.is_empty(), "kube-proxy disagrees with {wrong:?}");
}

/// Makes two tests of every function, with the agent and either packet filter as their subject, and one for all of them
/// with kube-proxy. Those in `only iptables` and `only nftables` are where the two differ on purpose (spec/kube-proxy.md
/// §8.7), or where rules are looked at.
#[macro_export]
macro_rules! cases {
    (
        $(fn $name:ident($stage:ident: $setup:expr) $body:block)*
        $(only iptables { $(fn $chains:ident($of_chains:ident: $chains_setup:expr) $chains_body:block)* })?
        $(only nftables { $(fn $maps:ident($of_maps:ident: $maps_setup:expr) $maps_body:block)* })?
    ) => {
        $(
            #[test]
            fn $name() {
                static SETUP: $crate::stage::Setup = $setup;
                run::$name(&$crate::stage::Stage::of($crate::stage::Subject::Agent, &SETUP));
            }
        )*
        $($(
            #[test]
            fn $chains() {
                static SETUP: $crate::stage::Setup = $chains_setup;
                run::$chains(&$crate::stage::Stage::of($crate::stage::Subject::Agent, &SETUP));
            }
        )*)?

        mod nftables {
            #[allow(unused_imports)]
            use super::*;
            $(
                #[test]
                fn $name() {
                    static SETUP: $crate::stage::Setup = $setup;
                    run::$name(&$crate::stage::Stage::of($crate::stage::Subject::Nftables, &SETUP));
                }
            )*
            $($(
                #[test]
                fn $maps() {
                    static SETUP: $crate::stage::Setup = $maps_setup;
                    run::$maps(&$crate::stage::Stage::of($crate::stage::Subject::Nftables, &SETUP));
                }
            )*)?
        }

        /// The same functions, for either subject.
        mod run {
            #[allow(unused_imports)]
            use super::*;
            $(pub(super) fn $name($stage: &$crate::stage::Stage) $body)*
            $($(pub(super) fn $chains($of_chains: &$crate::stage::Stage) $chains_body)*)?
            $($(pub(super) fn $maps($of_maps: &$crate::stage::Stage) $maps_body)*)?
        }

        #[test]
        fn kube_proxy_agrees() {
            $crate::kube_proxy_agrees(&[
                $({
                    static SETUP: $crate::stage::Setup = $setup;
                    $crate::Case { name: stringify!($name), setup: &SETUP, run: run::$name }
                },)*
                $($({
                    static SETUP: $crate::stage::Setup = $chains_setup;
                    $crate::Case { name: stringify!($chains), setup: &SETUP, run: run::$chains }
                },)*)?
            ]);
        }
    };
}
