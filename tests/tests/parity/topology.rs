//! Hints of zones and nodes (§10.6).

use distributary_e2e::deployed::PATIENCE;
use distributary_e2e::wait::until;
use serde_json::json;

use crate::cases;
use crate::look::Verdict::{Kept, Masqueraded};
use crate::service::{Endpoint, V, ready};
use crate::stage::{ALONE, PLAIN, Setup, Stage};

const ZONELESS: Setup = Setup { name: "no zone", labels: || json!({}), shared: false, ..PLAIN };
const EMPTY_ZONE: Setup = Setup {
    name: "an empty zone",
    labels: || json!({"topology.kubernetes.io/zone": ""}),
    shared: false,
    ..PLAIN
};
const ZONE_D: Setup =
    Setup { name: "zone d", labels: || json!({"topology.kubernetes.io/zone": "d"}), shared: false, ..PLAIN };

/// L and R2 for zone a, L2 for b, R for c.
fn hinted(on: &Stage) -> [Endpoint; 4] {
    [
        ready(&on.l).zones(&["a"]),
        ready(&on.l2).zones(&["b"]),
        ready(&on.r).zones(&["c"]),
        ready(&on.r2).zones(&["a"]),
    ]
}

fn all_are_used(on: &Stage, number: u8) {
    let v = V::new(number);
    on.put(&v, &hinted(on));
    on.check(&on.p, v.cluster_ip(), Kept(&["L", "L2", "R", "R2"]));
}

cases! {
    fn a068_endpoints_hinted_for_the_zone_are_used(on: PLAIN) {
        let v = V::new(68);
        on.put(&v, &hinted(on));
        on.check(&on.p, v.cluster_ip(), Kept(&["L", "R2"]));
    }

    fn a069_one_endpoint_without_a_hint_makes_all_used(on: PLAIN) {
        let v = V::new(69);
        let [a, b, c, d] = hinted(on);
        on.put(&v, &[a, b, c.zones(&[]), d]);
        on.check(&on.p, v.cluster_ip(), Kept(&["L", "L2", "R", "R2"]));
    }

    fn a070_unless_it_is_not_ready(on: PLAIN) {
        let v = V::new(70);
        let [a, b, c, d] = hinted(on);
        on.put(&v, &[a, b, c.zones(&[]).unready(), d]);
        on.check(&on.p, v.cluster_ip(), Kept(&["L", "R2"]));
    }

    fn a071_a_zone_whose_endpoints_are_not_ready_has_none(on: PLAIN) {
        let v = V::new(71);
        let [a, b, c, d] = hinted(on);
        on.put(&v, &[a.unready(), b, c, d.unready()]);
        on.check(&on.p, v.cluster_ip(), Kept(&["L2", "R"]));
    }

    fn a072_a_node_without_a_zone_uses_all(on: ZONELESS) {
        all_are_used(on, 72);
    }

    fn a072_so_does_a_node_of_an_empty_zone(on: EMPTY_ZONE) {
        all_are_used(on, 72);
    }

    fn a072_and_a_node_of_a_zone_without_endpoints(on: ZONE_D) {
        all_are_used(on, 72);
    }

    fn a073_an_endpoint_can_be_hinted_for_several_zones(on: PLAIN) {
        let v = V::new(73);
        let [a, b, c, d] = hinted(on);
        on.put(&v, &[a, b.zones(&["b", "a"]), c.zones(&["c", "d"]), d]);
        on.check(&on.p, v.cluster_ip(), Kept(&["L", "L2", "R2"]));
    }

    fn a074_an_endpoint_hinted_for_the_node_comes_first(on: PLAIN) {
        let v = V::new(74);
        let [a, b, c, d] = hinted(on);
        on.put(&v, &[a.nodes(&["other"]), b.nodes(&["self"]), c.nodes(&["third"]), d.nodes(&["other"])]);
        on.check(&on.p, v.cluster_ip(), Kept(&["L2"]));
    }

    fn a075_without_one_the_zone_counts(on: PLAIN) {
        let v = V::new(75);
        on.put(&v, &hinted(on).map(|endpoint| endpoint.nodes(&["other"])));
        on.check(&on.p, v.cluster_ip(), Kept(&["L", "R2"]));
    }

    fn a076_without_either_on_one_endpoint_all_are_used(on: PLAIN) {
        let v = V::new(76);
        let [a, b, c, d] = hinted(on).map(|endpoint| endpoint.nodes(&["self"]));
        on.put(&v, &[a, b, c.nodes(&[]).zones(&[]), d]);
        on.check(&on.p, v.cluster_ip(), Kept(&["L", "L2", "R", "R2"]));
    }

    fn a077_hints_are_nothing_to_policy_local(on: PLAIN) {
        let v = V::new(77).external_local();
        on.put(&v, &[ready(&on.l).zones(&["b"]), ready(&on.r).zones(&["a"])]);
        on.check(&on.p, v.cluster_ip(), Kept(&["R"]));
        on.check(&on.p, v.vip(), Kept(&["R"]));
        on.check(&on.h, v.vip(), Masqueraded(&["R"]));
        on.check(&on.c1, v.vip(), Kept(&["L"]));
    }

    fn a078_another_zone_of_the_node_is_followed(on: ALONE) {
        let v = V::new(78);
        on.put(&v, &hinted(on));
        on.check(&on.p, v.cluster_ip(), Kept(&["L", "R2"]));
        on.put_node(&json!({"topology.kubernetes.io/zone": "b"}));
        until("the other zone to show", PATIENCE, || {
            v.cluster_ip().iter().all(|target| on.who(&on.p, *target) == "L2").then_some(())
        });
        on.check(&on.p, v.cluster_ip(), Kept(&["L2"]));
    }

    fn a079_hints_are_nothing_where_all_terminate(on: PLAIN) {
        let v = V::new(79);
        on.put(&v, &hinted(on).map(Endpoint::terminating));
        on.check(&on.p, v.cluster_ip(), Kept(&["L", "L2", "R", "R2"]));
    }
}
