//! Session affinity (§10.7, §3.13), with seconds in the place of minutes.

use std::net::SocketAddr;
use std::time::Duration;

use distributary_e2e::deployed::PATIENCE;
use distributary_e2e::topology::Pod;
use distributary_e2e::wait::{until, within};

use crate::cases;
use crate::service::{V, ready};
use crate::stage::{ALONE, PLAIN, Stage};

/// Lets time pass without a connection.
fn silence(time: Duration) {
    let nothing: Option<()> = within(time, || None);
    assert_eq!(nothing, None);
}

/// Whom every client is with at these targets.
fn partners(on: &Stage, clients: &[&Pod], targets: [SocketAddr; 2]) -> Vec<String> {
    clients.iter().flat_map(|client| targets.map(|target| on.who(client, target))).collect()
}

cases! {
    fn a089_a_client_that_keeps_coming_stays_with_its_endpoint(on: PLAIN) {
        let v = V::new(89).sticky(2);
        on.put(&v, &[ready(&on.l), ready(&on.l2), ready(&on.r)]);
        let first = partners(on, &[&on.p], v.cluster_ip());
        for _ in 0..6 {
            silence(Duration::from_secs(1));
            assert_eq!(partners(on, &[&on.p], v.cluster_ip()), first);
        }
    }

    fn a090_a_client_that_was_silent_may_change(on: PLAIN) {
        let v = V::new(90).sticky(1);
        on.put(&v, &[ready(&on.l), ready(&on.l2), ready(&on.r)]);
        for target in v.cluster_ip() {
            let first = on.who(&on.p, target);
            until("another endpoint", PATIENCE, || {
                silence(Duration::from_millis(1300));
                (on.who(&on.p, target) != first).then_some(())
            });
        }
    }

    fn a091_every_address_of_a_service_leads_to_the_same_endpoint(on: PLAIN) {
        let v = V::new(91).sticky(60);
        on.put(&v, &[ready(&on.l), ready(&on.l2), ready(&on.r), ready(&on.r2)]);
        let clients = [&on.p, &on.h, &on.c1, &on.c2];
        let first = partners(on, &clients, v.cluster_ip());
        for target in v.external(on) {
            assert_eq!(partners(on, &clients, target), first);
        }
    }

    fn a092_a_client_whose_endpoint_goes_gets_another(on: PLAIN) {
        let v = V::new(92).sticky(60);
        on.put(&v, &[ready(&on.l), ready(&on.r)]);
        let first = partners(on, &[&on.p], [v.cluster_ip()[0]; 2]);
        let (gone, left) = if first[0] == "L" { (&on.l, &on.r) } else { (&on.r, &on.l) };
        assert_eq!(first, [gone.name.as_str(); 2]);
        on.put(&v, &[ready(left)]);
        assert_eq!(partners(on, &[&on.p], v.cluster_ip()), [left.name.as_str(); 2]);
    }

    fn a093_neither_a_restart_nor_other_rules_end_an_affinity(on: ALONE) {
        let v = V::new(93).sticky(60);
        let endpoints = [ready(&on.l), ready(&on.l2), ready(&on.r)];
        on.put(&v, &endpoints);
        let clients = [&on.p, &on.h, &on.c1, &on.c2];
        let first = partners(on, &clients, v.cluster_ip());
        on.restart_subject();
        assert_eq!(partners(on, &clients, v.cluster_ip()), first);
        // Every chain of the service is written anew.
        on.put(&v, &[&endpoints[..], &[ready(&on.r2)]].concat());
        assert_eq!(partners(on, &clients, v.cluster_ip()), first);
        let other = v.clone().external_local();
        on.put(&other, &[&endpoints[..], &[ready(&on.r2)]].concat());
        assert_eq!(partners(on, &clients, v.cluster_ip()), first);
    }
}
