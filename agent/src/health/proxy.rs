//! Whether the rules follow what was received, and what is said of it: spec/kube-proxy.md §5.2.
//!
//! Pure. A family is unhealthy when something was received and is not in the kernel after the timeout. That nothing is
//! received makes nobody unhealthy, unless the operator wants it to.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use distributary_model::NodeView;
use jiff::Timestamp;
use serde::Serialize;

use crate::plan::Family;

/// A node with this taint is about to be removed (spec/kube-proxy.md §5.2).
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

/// How the node does.
#[derive(Debug)]
pub struct ProxyHealth {
    timeout: Duration,
    unhealthy_after_stale: Option<Duration>,
    families: BTreeMap<Family, Progress>,
    /// Its Node was seen last without a reason not to send it traffic.
    eligible: bool,
}

/// How far a family is.
#[derive(Debug)]
struct Progress {
    updated: Timestamp,
    /// Receipt of the oldest change that was taken up and is not in the kernel.
    queued: Option<Instant>,
}

/// What is known at the moment of a question.
#[derive(Clone, Debug)]
pub struct Moment {
    /// Now.
    pub now: Instant,
    /// Now, as it is told.
    pub wall: Timestamp,
    /// Receipt of the oldest change that nobody has taken up.
    pub waiting: Option<Instant>,
    /// Since a server was heard.
    pub silence: Duration,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Of HTTP.
    pub status: u16,
    /// JSON.
    pub body: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    last_updated: String,
    current_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    status: BTreeMap<&'static str, Status>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    last_updated: String,
    healthy: bool,
}

impl ProxyHealth {
    /// Before anything is known. Writes are late after two sync periods.
    pub fn new(sync_period: Duration, unhealthy_after_stale: Option<Duration>) -> Self {
        let timeout = sync_period.saturating_mul(2);
        Self { timeout, unhealthy_after_stale, families: BTreeMap::new(), eligible: false }
    }

    /// A family will be programmed from now on.
    pub fn started(&mut self, family: Family, now: Timestamp) {
        self.families.insert(family, Progress { updated: now, queued: None });
    }

    /// What was received then is being programmed, in every family.
    pub fn taken(&mut self, received: Instant) {
        for progress in self.families.values_mut() {
            progress.queued.get_or_insert(received);
        }
    }

    /// The kernel has all that was taken up.
    pub fn programmed(&mut self, family: Family, now: Timestamp) {
        self.started(family, now);
    }

    /// The Node was seen. One that is gone is kept as it was seen last (spec/kube-proxy.md §1.6).
    pub fn node(&mut self, node: &NodeView) {
        self.eligible = eligible(node);
    }

    /// No family is late.
    pub fn is_healthy(&self, moment: &Moment) -> bool {
        self.families.values().all(|progress| self.in_time(progress, moment))
    }

    /// What load balancers should believe: no family is late, and servers have not been silent for longer than the
    /// operator allows.
    pub fn is_to_be_trusted(&self, moment: &Moment) -> bool {
        self.is_healthy(moment) && self.unhealthy_after_stale.is_none_or(|most| moment.silence < most)
    }

    /// What /healthz answers. `waiting` is a Node that nobody has taken up yet.
    pub fn healthz(&self, moment: &Moment, waiting: Option<&NodeView>) -> Answer {
        let (healthy, eligible) = (self.is_to_be_trusted(moment), waiting.map_or(self.eligible, eligible));
        self.answer(moment, healthy, Some(eligible))
    }

    /// What /livez answers: a node that is to be removed, or that no server talks to, is no reason to kill the agent.
    pub fn livez(&self, moment: &Moment) -> Answer {
        self.answer(moment, self.is_healthy(moment), None)
    }

    fn answer(&self, moment: &Moment, healthy: bool, node_eligible: Option<bool>) -> Answer {
        let good = healthy && node_eligible.unwrap_or(true);
        // Those who compare the two times take a good node for one that was just updated.
        let last_updated = match good {
            true => moment.wall.to_string(),
            false => self
                .families
                .values()
                .map(|one| one.updated)
                .max()
                .map_or_else(never, |last| last.to_string()),
        };
        let status = self.families.iter().map(|(family, progress)| {
            let healthy = self.in_time(progress, moment);
            (family.as_str(), Status { last_updated: progress.updated.to_string(), healthy })
        });
        let status = status.collect();
        let body =
            Body { last_updated, current_time: moment.wall.to_string(), node_eligible, healthy, status };
        Answer {
            status: if good { 200 } else { 503 },
            body: serde_json::to_string(&body).unwrap_or_default(),
        }
    }

    fn in_time(&self, progress: &Progress, moment: &Moment) -> bool {
        let oldest = progress.queued.into_iter().chain(moment.waiting).min();
        oldest.is_none_or(|oldest| moment.now.saturating_duration_since(oldest) < self.timeout)
    }
}

fn eligible(node: &NodeView) -> bool {
    !node.deleting && node.taints.iter().all(|taint| *taint.key != *TO_BE_DELETED)
}

/// Go's zero time.
fn never() -> String {
    "0001-01-01T00:00:00Z".to_owned()
}

#[cfg(test)]
mod tests {
    use distributary_model::Taint;

    use super::*;

    struct World {
        health: ProxyHealth,
        start: Instant,
    }

    impl World {
        fn new() -> Self {
            let mut health = ProxyHealth::new(Duration::from_secs(30), None);
            for family in [Family::V4, Family::V6] {
                health.started(family, Timestamp::UNIX_EPOCH);
            }
            health.node(&NodeView::default());
            Self { health, start: Instant::now() }
        }

        fn at(&self, seconds: f64) -> Moment {
            let after = Duration::from_secs_f64(seconds);
            let wall = Timestamp::UNIX_EPOCH + after;
            Moment { now: self.start + after, wall, waiting: None, silence: Duration::ZERO }
        }

        fn taken(&mut self, seconds: f64) {
            self.health.taken(self.at(seconds).now);
        }

        fn programmed(&mut self, family: Family, seconds: f64) {
            self.health.programmed(family, self.at(seconds).wall);
        }

        fn statuses(&self, moment: &Moment) -> (u16, u16) {
            (self.health.healthz(moment, None).status, self.health.livez(moment).status)
        }
    }

    #[test]
    fn a123_no_update_for_hours_is_healthy() {
        let mut world = World::new();
        assert_eq!(world.statuses(&world.at(100_000.0)), (200, 200));
        world.taken(0.0);
        world.programmed(Family::V4, 1.0);
        world.programmed(Family::V6, 1.0);
        let answer = world.health.healthz(&world.at(86_400.25), None);
        let wanted = "{\"lastUpdated\":\"1970-01-02T00:00:00.25Z\",\"currentTime\":\"1970-01-02T00:00:00.25Z\",\
                      \"nodeEligible\":true,\"healthy\":true,\"status\":{\
                      \"IPv4\":{\"lastUpdated\":\"1970-01-01T00:00:01Z\",\"healthy\":true},\
                      \"IPv6\":{\"lastUpdated\":\"1970-01-01T00:00:01Z\",\"healthy\":true}}}";
        assert_eq!(answer, Answer { status: 200, body: wanted.into() });
    }

    #[test]
    fn a124_an_update_that_waits_for_a_minute_is_unhealthy_until_the_same_family_has_it() {
        let mut world = World::new();
        world.programmed(Family::V6, 5.0);
        world.taken(10.0);
        assert_eq!(world.statuses(&world.at(69.9)), (200, 200));
        assert_eq!(world.statuses(&world.at(70.0)), (503, 503));
        world.programmed(Family::V4, 70.0);
        let moment = world.at(71.0);
        assert_eq!(world.statuses(&moment), (503, 503), "one family does not make up for the other");
        let wanted = "{\"lastUpdated\":\"1970-01-01T00:01:10Z\",\"currentTime\":\"1970-01-01T00:01:11Z\",\
                      \"healthy\":false,\"status\":{\
                      \"IPv4\":{\"lastUpdated\":\"1970-01-01T00:01:10Z\",\"healthy\":true},\
                      \"IPv6\":{\"lastUpdated\":\"1970-01-01T00:00:05Z\",\"healthy\":false}}}";
        assert_eq!(world.health.livez(&moment), Answer { status: 503, body: wanted.into() });
        world.programmed(Family::V6, 72.0);
        assert_eq!(world.statuses(&world.at(72.0)), (200, 200));
    }

    #[test]
    fn a124_the_oldest_update_counts_and_one_that_nobody_takes_up_does_too() {
        let mut world = World::new();
        world.taken(10.0);
        world.taken(60.0);
        assert_eq!(world.statuses(&world.at(70.0)), (503, 503));
        let world = World::new();
        let stuck = |seconds| Moment { waiting: Some(world.at(1.0).now), ..world.at(seconds) };
        assert_eq!((world.statuses(&stuck(60.9)), world.statuses(&stuck(61.0))), ((200, 200), (503, 503)));
    }

    #[test]
    fn the_timeout_is_two_sync_periods_and_a_family_that_never_started_does_not_matter() {
        let mut world = World::new();
        world.health = ProxyHealth::new(Duration::from_secs(5), None);
        world.taken(0.0);
        let livez = world.health.livez(&world.at(1_000.0));
        let now = "1970-01-01T00:16:40Z";
        let body = format!("{{\"lastUpdated\":\"{now}\",\"currentTime\":\"{now}\",\"healthy\":true}}");
        assert_eq!(livez, Answer { status: 200, body });
        world.health.started(Family::V4, Timestamp::UNIX_EPOCH);
        world.taken(0.0);
        assert_eq!(world.health.livez(&world.at(9.9)).status, 200);
        assert_eq!(world.health.livez(&world.at(10.0)).status, 503);
    }

    #[test]
    fn a125_a_node_that_is_about_to_go_is_not_eligible_and_stays_alive() {
        let taint = Taint { key: TO_BE_DELETED.into(), ..Taint::default() };
        let leaving = [
            NodeView { taints: vec![taint], ..NodeView::default() },
            NodeView { deleting: true, ..NodeView::default() },
        ];
        for node in leaving {
            let mut world = World::new();
            let waiting = world.health.healthz(&world.at(1.0), Some(&node));
            world.health.node(&node);
            let answer = world.health.healthz(&world.at(1.0), None);
            assert_eq!((answer.status, &answer), (503, &waiting));
            assert!(answer.body.contains("\"nodeEligible\":false,\"healthy\":true,"), "{}", answer.body);
            assert_eq!(world.health.livez(&world.at(1.0)).status, 200);
        }
    }

    #[test]
    fn a126_another_taint_does_not_matter() {
        let mut world = World::new();
        let taint = Taint { key: "node.kubernetes.io/not-ready".into(), ..Taint::default() };
        world.health.node(&NodeView { taints: vec![taint], ..NodeView::default() });
        assert_eq!(world.statuses(&world.at(1.0)), (200, 200));
    }

    #[test]
    fn a127_a_node_that_was_never_seen_is_not_eligible() {
        let world = World::new();
        let health = ProxyHealth::new(Duration::from_secs(30), None);
        let answer = health.healthz(&world.at(1.0), None);
        let wanted = "{\"lastUpdated\":\"0001-01-01T00:00:00Z\",\"currentTime\":\"1970-01-01T00:00:01Z\",\
                      \"nodeEligible\":false,\"healthy\":true}";
        assert_eq!(answer, Answer { status: 503, body: wanted.into() });
        assert_eq!(health.livez(&world.at(1.0)).status, 200);
    }

    #[test]
    fn silence_matters_only_to_who_wants_it_and_never_to_livez() {
        let mut world = World::new();
        let cut_off = |seconds| Moment { silence: Duration::from_secs(seconds), ..world.at(1.0) };
        let (short, long) = (cut_off(299), cut_off(300));
        assert_eq!(world.statuses(&cut_off(1_000_000)), (200, 200));
        world.health.unhealthy_after_stale = Some(Duration::from_secs(300));
        assert_eq!((world.statuses(&short), world.statuses(&long)), ((200, 200), (503, 200)));
        assert!(world.health.is_to_be_trusted(&short) && !world.health.is_to_be_trusted(&long));
    }
}
