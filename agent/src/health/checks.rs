//! The health checks of Services as load balancers may see them: spec/kube-proxy.md §5.1.
//!
//! Pure. What is new is staged, and shown when the kernel of the family has it.

use std::collections::BTreeMap;
use std::sync::Arc;

use distributary_model::{Key, Name, Service};
use serde::Serialize;

use super::proxy::Answer;
use crate::plan::Family;
use crate::plan::health::{Check, check};

/// The check of a Service, in a family.
pub type Id = (Family, Arc<Key>);

/// The checks of every Service that has one.
#[derive(Debug)]
pub struct Checks {
    cluster: Name,
    node: Name,
    families: BTreeMap<Family, OfFamily>,
}

#[derive(Debug, Default)]
struct OfFamily {
    shown: BTreeMap<Arc<Key>, Check>,
    /// `None`: to be gone.
    staged: BTreeMap<Arc<Key>, Option<Check>>,
}

impl Checks {
    /// Of a node without Services.
    pub fn new(cluster: Name, node: Name) -> Self {
        Self { cluster, node, families: BTreeMap::new() }
    }

    /// A family will be programmed.
    pub fn started(&mut self, family: Family) {
        self.families.entry(family).or_default();
    }

    /// A Service is being programmed; `None`: it goes.
    pub fn stage(&mut self, key: &Arc<Key>, service: Option<&Service>) {
        for (family, of) in &mut self.families {
            let now = service.and_then(|service| check(*family, &self.cluster, &self.node, key, service));
            if now.is_some() || of.shown.contains_key(key) || of.staged.contains_key(key) {
                of.staged.insert(key.clone(), now);
            }
        }
    }

    /// The kernel keeps what it had of a Service, and so does its check.
    pub fn forget(&mut self, family: Family, key: &Key) {
        if let Some(of) = self.families.get_mut(&family) {
            of.staged.remove(key);
        }
    }

    /// The kernel has what was staged. Whether other ports are to be listened on now.
    pub fn programmed(&mut self, family: Family) -> bool {
        let Some(of) = self.families.get_mut(&family) else { return false };
        let mut other = false;
        for (key, now) in std::mem::take(&mut of.staged) {
            let was = match now {
                Some(now) => of.shown.insert(key, now),
                None => of.shown.remove(&key),
            };
            other |= was.map(|was| was.port) != now.map(|now| now.port);
        }
        other
    }

    /// The check of a Service.
    pub fn get(&self, (family, key): &Id) -> Option<Check> {
        self.families.get(family)?.shown.get(key).copied()
    }

    /// Every check with its port.
    pub fn ports(&self) -> BTreeMap<Id, u16> {
        let of_family = |(family, of): (&Family, &OfFamily)| {
            let family = *family;
            of.shown.iter().map(move |(key, check)| ((family, key.clone()), check.port)).collect::<Vec<_>>()
        };
        self.families.iter().flat_map(of_family).collect()
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    service: Named<'a>,
    local_endpoints: usize,
    service_proxy_healthy: bool,
}

#[derive(Serialize)]
struct Named<'a> {
    namespace: &'a str,
    name: &'a str,
}

/// What a health check port answers, whatever is asked.
pub fn answer(key: &Key, local: usize, healthy: bool) -> Answer {
    let body = Body {
        service: Named { namespace: &key.namespace, name: &key.name },
        local_endpoints: local,
        service_proxy_healthy: healthy,
    };
    let mut text = Vec::new();
    let form = serde_json::ser::PrettyFormatter::with_indent(b"\t");
    // Writing to memory does not fail, and the body has only strings for keys.
    let _ = body.serialize(&mut serde_json::Serializer::with_formatter(&mut text, form));
    let status = if local > 0 && healthy { 200 } else { 503 };
    Answer { status, body: String::from_utf8_lossy(&text).into_owned() }
}

#[cfg(test)]
mod tests {
    use distributary_model::Protocol;
    use distributary_model::testing as t;

    use super::*;

    fn service(port: u16, endpoints: u8) -> Service {
        let service = t::service(&["10.96.0.1", "fd96::1"])
            .port("http", Protocol::Tcp, 80, 0)
            .header(|header| header.health_check_node_port = port);
        (1..=endpoints).fold(service, |service, last| {
            service.endpoint(t::endpoint(&format!("10.0.0.{last}"), "http", 8080).on("n1"))
        })
    }

    fn checks() -> Checks {
        let mut checks = Checks::new(t::CLUSTER.into(), "n1".into());
        checks.started(Family::V4);
        checks.started(Family::V6);
        checks
    }

    #[test]
    fn a120_an_unhealthy_proxy_answers_503_with_its_count() {
        let wanted = |local: usize, healthy: bool| {
            format!(
                "{{\n\t\"service\": {{\n\t\t\"namespace\": \"a\",\n\t\t\"name\": \"b\"\n\t}},\n\
                 \t\"localEndpoints\": {local},\n\t\"serviceProxyHealthy\": {healthy}\n}}"
            )
        };
        for (local, healthy, status) in [(2, true, 200), (7, false, 503), (0, true, 503)] {
            assert_eq!(
                answer(&t::key("a/b"), local, healthy),
                Answer { status, body: wanted(local, healthy) }
            );
        }
    }

    #[test]
    fn a_family_shows_what_its_own_kernel_has() {
        let (mut checks, key) = (checks(), t::key("a/b"));
        let [v4, v6] = [Family::V4, Family::V6].map(|family| (family, key.clone()));
        checks.stage(&key, Some(&service(32_000, 2)));
        assert_eq!((checks.get(&v4), checks.ports().len()), (None, 0));
        assert!(checks.programmed(Family::V4));
        assert_eq!(checks.get(&v4), Some(Check { port: 32_000, local: 2 }));
        assert_eq!(checks.ports(), [(v4.clone(), 32_000)].into());
        // The other family failed, and has more to write by now.
        checks.stage(&key, Some(&service(32_000, 3)));
        assert!(checks.programmed(Family::V6));
        assert_eq!(checks.get(&v6), Some(Check { port: 32_000, local: 0 }));
        assert!(!checks.programmed(Family::V4), "the port is the same");
        assert_eq!(checks.get(&v4).map(|check| check.local), Some(3));
    }

    #[test]
    fn what_the_kernel_refuses_changes_no_check() {
        let (mut checks, key) = (checks(), t::key("a/b"));
        let v4 = (Family::V4, key.clone());
        checks.stage(&key, Some(&service(32_000, 2)));
        checks.programmed(Family::V4);
        checks.stage(&key, Some(&service(32_001, 0)));
        checks.forget(Family::V4, &key);
        assert!(!checks.programmed(Family::V4));
        assert_eq!(checks.get(&v4), Some(Check { port: 32_000, local: 2 }));
    }

    #[test]
    fn a_service_that_goes_or_loses_its_port_has_no_check() {
        for gone in [None, Some(service(0, 2))] {
            let (mut checks, key) = (checks(), t::key("a/b"));
            checks.stage(&key, Some(&service(32_000, 2)));
            checks.programmed(Family::V4);
            checks.stage(&key, gone.as_ref());
            assert!(checks.programmed(Family::V4));
            assert_eq!((checks.get(&(Family::V4, key)), checks.ports().len()), (None, 0));
        }
    }

    #[test]
    fn services_without_a_check_cost_nothing() {
        let mut checks = checks();
        for last in 0..100 {
            checks.stage(&t::key(&format!("a/s{last}")), Some(&service(0, 2)));
            checks.stage(&t::key(&format!("a/g{last}")), None);
        }
        assert!(checks.families.values().all(|of| of.staged.is_empty()));
    }
}
