//! Who may answer, and whom they see: spec/kube-proxy.md §2 and §3.8 in so many words. Nothing of it is the agent's.

use std::collections::BTreeMap;

/// Who asks. Pods are known by their addresses, all of which are the cluster's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Client {
    /// A pod; of the name of an endpoint where it is one.
    Pod(&'static str),
    Host,
    /// Outside of the cluster; the name is that of a source range where there is one of it.
    Outside(&'static str),
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Destination {
    ClusterIp,
    NodePort,
    ExternalIp,
    /// A load balancer's.
    Vip,
}

/// A Service with its endpoints.
#[derive(Clone, Debug)]
pub(super) struct Service {
    pub internal_local: bool,
    pub external_local: bool,
    /// Where it has only cluster IPs, and where also node ports.
    pub reach: Reach,
    /// Its load balancer takes packets where they are (`ipMode: Proxy`).
    pub proxied: bool,
    /// Who may ask the VIP; `None`: everybody.
    pub ranges: Option<Vec<&'static str>>,
    pub sticky: bool,
    pub members: Vec<Member>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    Inside,
    NodePorts,
    Everywhere,
}

/// An endpoint.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub name: &'static str,
    /// Its node is this one. Who has no node is nowhere.
    pub local: bool,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    pub zones: &'static [&'static str],
    pub nodes: &'static [&'static str],
}

/// What becomes of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// One of these answers, and sees an address of the node (`true`) or the client's.
    Reaches(BTreeMap<&'static str, bool>),
    Refused,
    Silent,
    /// No rule is for it.
    Untouched,
}

/// The node, as hints know it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Here {
    pub name: &'static str,
    pub zone: &'static str,
    /// The two packet filters differ in what refuses whom (§8.7).
    pub nftables: bool,
}

impl Service {
    pub(super) fn fate(&self, here: Here, client: Client, destination: Destination) -> Fate {
        let captured = match destination {
            Destination::ClusterIp => true,
            Destination::NodePort => self.reach != Reach::Inside,
            Destination::ExternalIp => self.reach == Reach::Everywhere,
            Destination::Vip => self.reach == Reach::Everywhere && !self.proxied,
        };
        if !captured {
            return Fate::Untouched;
        }
        let external = destination != Destination::ClusterIp;
        let (cluster, local) = (self.cluster(here), self.local());
        let kept_out = destination == Destination::Vip && !self.lets_in(client);
        if cluster.is_empty() && !(here.nftables && kept_out) {
            // What the node sends to an address that is not its own passes neither INPUT nor FORWARD of iptables.
            let leaves = external && client == Client::Host && destination != Destination::NodePort;
            return if leaves && !here.nftables { Fate::Untouched } else { Fate::Refused };
        }
        if kept_out {
            return Fate::Silent;
        }
        let outside = matches!(client, Client::Outside(_));
        let binds = match external {
            true => self.external_local && outside,
            false => self.internal_local,
        };
        let masquerades = match external {
            true if self.external_local => client == Client::Host,
            true => true,
            false => !matches!(client, Client::Pod(_)),
        };
        let list = if binds { local } else { cluster };
        if list.is_empty() {
            return Fate::Silent;
        }
        let itself = |name| client == Client::Pod(name);
        Fate::Reaches(list.into_iter().map(|name| (name, masquerades || itself(name))).collect())
    }

    fn lets_in(&self, client: Client) -> bool {
        let Some(ranges) = &self.ranges else { return true };
        ranges.contains(&match client {
            Client::Pod(_) => "pods",
            Client::Host => "host",
            Client::Outside(name) => name,
        })
    }

    fn cluster(&self, here: Here) -> Vec<&'static str> {
        let ready: Vec<&Member> = self.members.iter().filter(|it| it.ready).collect();
        let of = |all: Vec<&Member>| all.into_iter().map(|it| it.name).collect();
        if ready.is_empty() {
            return of(self.members.iter().filter(|it| it.lingers()).collect());
        }
        // Those that a node, or zone, of this name is hinted for: where every ready one has such hints, and this is among them.
        let hinted = |own: &str, hints: fn(&Member) -> &'static [&'static str]| {
            let some: Vec<&Member> =
                ready.iter().copied().filter(|it| !own.is_empty() && hints(it).contains(&own)).collect();
            (ready.iter().all(|it| !hints(it).is_empty()) && !some.is_empty()).then_some(some)
        };
        let topology = hinted(here.name, |it| it.nodes).or_else(|| hinted(here.zone, |it| it.zones));
        of(topology.unwrap_or(ready))
    }

    fn local(&self) -> Vec<&'static str> {
        let here = || self.members.iter().filter(|it| it.local);
        let names = |which: &dyn Fn(&Member) -> bool| -> Vec<_> {
            here().filter(|it| which(it)).map(|it| it.name).collect()
        };
        let ready = names(&|it| it.ready);
        if ready.is_empty() { names(&Member::lingers) } else { ready }
    }
}

impl Member {
    /// Terminating, and serving still.
    fn lingers(&self) -> bool {
        self.serving && self.terminating && !self.ready
    }
}
