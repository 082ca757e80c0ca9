//! What endpoints say of themselves (§10.5).

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use distributary_e2e::traffic::Protocol;
use serde_json::{Value, json};

use crate::cases;
use crate::look::Verdict::{Dropped, Kept, Masqueraded, Rejected};
use crate::service::{V, ready};
use crate::stage::PLAIN;

cases! {
    fn a055_who_terminates_gets_nothing_beside_who_is_ready(on: PLAIN) {
        let v = V::new(55);
        on.put(&v, &[ready(&on.l), ready(&on.r).terminating()]);
        on.check(&on.p, v.cluster_ip(), Kept(&["L"]));
    }

    fn a056_where_all_terminate_all_who_serve_are_used(on: PLAIN) {
        let v = V::new(56);
        on.put(&v, &[ready(&on.l).terminating(), ready(&on.r).terminating()]);
        on.check(&on.p, v.cluster_ip(), Kept(&["L", "R"]));
        on.check(&on.c1, v.vip(), Masqueraded(&["L", "R"]));
    }

    fn a057_who_terminates_on_the_node_is_better_than_dropping(on: PLAIN) {
        let v = V::new(57).external_local();
        on.put(&v, &[ready(&on.l).terminating(), ready(&on.r)]);
        on.check(&on.c1, v.vip(), Kept(&["L"]));
        on.check(&on.p, v.cluster_ip(), Kept(&["R"]));
    }

    fn a058_who_terminates_elsewhere_is_not_local(on: PLAIN) {
        let v = V::new(58).external_local();
        on.put(&v, &[ready(&on.r).terminating()]);
        on.check(&on.c1, v.vip(), Dropped);
        on.check(&on.p, v.cluster_ip(), Kept(&["R"]));
    }

    fn a059_who_terminates_and_does_not_serve_is_nobody(on: PLAIN) {
        let v = V::new(59);
        on.put(&v, &[ready(&on.l).dead(), ready(&on.r).dead()]);
        on.check(&on.p, v.cluster_ip(), Rejected);
        on.check(&on.c1, v.vip(), Rejected);
    }

    fn a060_who_only_serves_is_nobody(on: PLAIN) {
        let v = V::new(60);
        on.put(&v, &[ready(&on.l).only_serving(), ready(&on.r).only_serving()]);
        on.check(&on.p, v.cluster_ip(), Rejected);
        on.check(&on.c1, v.vip(), Rejected);
    }

    fn a061_who_says_nothing_is_ready(on: PLAIN) {
        let v = V::new(61);
        on.put(&v, &[ready(&on.l).unconditional(), ready(&on.r).terminating()]);
        on.check(&on.p, v.cluster_ip(), Kept(&["L"]));
        on.put(&v, &[ready(&on.l).unconditional(), ready(&on.r)]);
        on.check(&on.p, v.cluster_ip(), Kept(&["L", "R"]));
    }

    fn a062_who_is_ready_and_does_not_serve_is_used(on: PLAIN) {
        let v = V::new(62);
        on.put(&v, &[ready(&on.l).only_ready()]);
        on.check(&on.p, v.cluster_ip(), Kept(&["L"]));
    }

    fn a063_of_two_of_one_address_the_one_that_does_not_terminate_wins(on: PLAIN) {
        for (v, [first, second]) in [(V::new(63), ["a", "b"]), (V::new(191), ["b", "a"])] {
            let going = v.named_slices(first, &[ready(&on.l).terminating(), ready(&on.r)]);
            let here = v.named_slices(second, &[ready(&on.l)]);
            on.put_objects(&v.name, &[vec![v.service()], going, here].concat());
            on.check(&on.p, v.cluster_ip(), Kept(&["L", "R"]));
        }
    }

    fn a064_an_endpoint_that_moves_to_another_slice_is_always_there(on: PLAIN) {
        let v = V::new(64);
        let in_slice = |name: &str| [vec![v.service()], v.named_slices(name, &[ready(&on.l)])].concat();
        on.put_objects(&v.name, &in_slice("a"));
        let moved = AtomicBool::new(false);
        thread::scope(|scope| {
            let asking = scope.spawn(|| {
                let mut asked = 0;
                while !moved.load(Ordering::Relaxed) {
                    for target in v.cluster_ip() {
                        assert_eq!(on.who(&on.p, target), "L");
                        asked += 1;
                    }
                }
                asked
            });
            for name in ["b", "a", "b", "a"] {
                on.put_objects(&v.name, &in_slice(name));
            }
            moved.store(true, Ordering::Relaxed);
            assert!(asking.join().expect("every answer is L's") > 10);
        });
    }

    fn a065_ports_without_a_name_or_number_are_passed_over(on: PLAIN) {
        let v = V::new(65).port("TCP", 443, 80).port("TCP", 444, 80);
        let mut slices = v.slices(&[ready(&on.l)]);
        for slice in &mut slices {
            let ports = slice["ports"].as_array_mut().expect("a list");
            ports[1]["port"] = json!(0);
            ports[2]["port"] = Value::Null;
            ports.push(json!({"name": null, "protocol": "TCP", "port": 81}));
        }
        on.put_objects(&v.name, &[vec![v.service()], slices].concat());
        on.check(&on.p, v.cluster_ip(), Kept(&["L"]));
        on.check(&on.p, v.cluster_ip_at(443), Rejected);
        on.check(&on.p, v.cluster_ip_at(444), Rejected);
    }

    fn a066_only_the_first_address_of_an_endpoint_counts(on: PLAIN) {
        let v = V::new(66);
        on.put(&v, &[ready(&on.l).and(&on.r)]);
        on.check(&on.p, v.cluster_ip(), Kept(&["L"]));
    }

    fn a067_an_endpoint_of_no_node_is_never_local(on: PLAIN) {
        let v = V::new(67).external_local();
        on.put(&v, &[ready(&on.l).nowhere()]);
        on.check(&on.c1, v.vip(), Dropped);
        on.check(&on.p, v.cluster_ip(), Kept(&["L"]));
        on.check_by(Protocol::Tcp, &on.p, v.vip(), Kept(&["L"]));
    }
}
