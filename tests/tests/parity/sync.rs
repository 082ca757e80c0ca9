//! What shows of a node's state and history in its rules (§10.8; the rest of that section is tested where the parts
//! are: docs/parity.md).

use crate::cases;
use crate::look::Verdict::Kept;
use crate::service::{V, ready};
use crate::stage::{PLAIN, Setup};

const LIBERAL: Setup = Setup {
    name: "liberal about TCP windows",
    sysctls: &[("netfilter/nf_conntrack_tcp_be_liberal", "1")],
    shared: false,
    ..PLAIN
};

cases! {


    only iptables {
        fn a103_any_other_kernel_drops_them(on: PLAIN) {
            on.put(&V::new(231), &[ready(&on.l)]);
            let rules = on.rules("INVALID");
            let is_right = |rule: &str| rule.starts_with("-A KUBE-FORWARD ") && rule.ends_with("-j DROP");
            assert!(rules.lines().count() == 2 && rules.lines().all(is_right), "{rules}");
        }

        fn a103_a_liberal_kernel_has_no_rule_against_invalid_packets(on: LIBERAL) {
            let v = V::new(103);
            on.put(&v, &[ready(&on.l)]);
            on.check(&on.p, v.cluster_ip(), Kept(&["L"]));
            assert_eq!(on.rules("INVALID"), "");
        }
    }
}
