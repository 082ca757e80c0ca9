//! Which endpoints of a service port get traffic: spec/kube-proxy.md §2.

use std::net::SocketAddr;

use distributary_model::Endpoint;

/// Where the node stands. Empty: unknown, and then nothing is local, or hinted for it.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// Its name.
    pub node: &'a str,
    /// Its zone.
    pub zone: &'a str,
}

/// An endpoint as a service port sees it.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Where packets would go.
    pub address: SocketAddr,
    /// Its conditions, node and hints.
    pub endpoint: &'a Endpoint,
    /// It is of the node's own cluster, so that its node and hints mean something here.
    pub own: bool,
}

impl Candidate<'_> {
    /// It runs on this node (§1.4 isLocal).
    pub fn is_local(&self, place: Place<'_>) -> bool {
        self.own && !place.node.is_empty() && *self.endpoint.node == *place.node
    }

    fn ready(&self) -> bool {
        self.endpoint.conditions.ready
    }

    /// The last resort (§2.3 step 2).
    fn leaving(&self) -> bool {
        self.endpoint.conditions.serving && self.endpoint.conditions.terminating
    }

    fn hinted_for_node(&self, place: Place<'_>) -> bool {
        self.endpoint.node_hints.iter().any(|hint| **hint == *place.node)
    }

    fn hinted_for_zone(&self, place: Place<'_>) -> bool {
        self.endpoint.zone_hints.iter().any(|hint| **hint == *place.zone)
    }
}

/// What narrows the cluster list (§2.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Topology {
    /// Nothing.
    #[default]
    Anywhere,
    /// Endpoints hinted for this node.
    SameNode,
    /// Endpoints hinted for this node's zone.
    SameZone,
}

/// Which lists a service port uses (§1.3).
#[derive(Clone, Copy, Debug)]
pub struct Uses {
    /// usesClusterEndpoints
    pub cluster: bool,
    /// usesLocalEndpoints
    pub local: bool,
}

/// Who gets the traffic of a service port. A list that is not used is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lists {
    /// For policy Cluster, and for local clients of policy Local.
    pub cluster: Vec<SocketAddr>,
    /// For policy Local.
    pub local: Vec<SocketAddr>,
    /// Somebody could serve, if not here: what is empty here is dropped, not rejected.
    pub has_any: bool,
    /// How the cluster list was narrowed.
    pub topology: Topology,
}

/// §2.2 to §2.4. The order of the candidates is kept.
pub fn lists(candidates: &[Candidate<'_>], place: Place<'_>, uses: Uses) -> Lists {
    let topology = topology(candidates, place);
    let mut lists = Lists { topology, ..Lists::default() };
    if uses.cluster {
        let fits = |one: &Candidate<'_>| match topology {
            Topology::Anywhere => true,
            Topology::SameNode => one.hinted_for_node(place),
            Topology::SameZone => one.hinted_for_zone(place),
        };
        lists.cluster = ready_or_leaving(candidates, fits, |_| true);
    }
    if uses.local {
        let here = |one: &Candidate<'_>| one.is_local(place);
        lists.local = ready_or_leaving(candidates, here, here);
    }
    lists.has_any = !lists.cluster.is_empty()
        || (uses.local && candidates.iter().any(|one| one.ready() || one.leaving()));
    lists
}

fn ready_or_leaving<'a>(
    candidates: &[Candidate<'a>],
    ready: impl Fn(&Candidate<'a>) -> bool,
    leaving: impl Fn(&Candidate<'a>) -> bool,
) -> Vec<SocketAddr> {
    let pick = |wanted: &dyn Fn(&Candidate<'a>) -> bool| -> Vec<SocketAddr> {
        candidates.iter().filter(|one| wanted(one)).map(|one| one.address).collect()
    };
    match pick(&|one| one.ready() && ready(one)) {
        none if none.is_empty() => pick(&|one| one.leaving() && leaving(one)),
        some => some,
    }
}

/// All or nothing: one ready endpoint without a hint switches a mode off for the whole service port.
fn topology(candidates: &[Candidate<'_>], place: Place<'_>) -> Topology {
    let ready = || candidates.iter().filter(|one| one.ready());
    let all = |hinted: fn(&Endpoint) -> bool| ready().all(|one| one.own && hinted(one.endpoint));
    let some_for_node = !place.node.is_empty() && ready().any(|one| one.hinted_for_node(place));
    let some_for_zone = !place.zone.is_empty() && ready().any(|one| one.hinted_for_zone(place));
    if some_for_node && all(|endpoint| !endpoint.node_hints.is_empty()) {
        Topology::SameNode
    } else if some_for_zone && all(|endpoint| !endpoint.zone_hints.is_empty()) {
        Topology::SameZone
    } else {
        Topology::Anywhere
    }
}
