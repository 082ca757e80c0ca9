//! The chains that every new connection goes through: which tries they are made of, and what stands in these.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use distributary_model::{Key, Name, Protocol};
use ipnet::IpNet;

use super::chain::Chain;
use super::fixed::LOOPBACK_V4;
use super::names::{self, Kind};
use super::parse::{Dump, Table, argument, target};
use super::rule::{Is, Match, Rule, Target};
use super::trie::{EntryKey, Item, Laid, Prefix, Trie};
use crate::plan::{Answer, Family, NodePorts, NodeState, port::svc};

const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

/// Names a trie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Root {
    /// nat KUBE-SERVICES, by destination address.
    Services,
    /// nat KUBE-NODEPORTS
    NodePorts(Protocol),
    /// Addresses that can meet themselves, in nat and in filter.
    Hairpins,
    /// filter KUBE-SERVICES: cluster IPs that nobody serves.
    Unserved,
    /// filter KUBE-EXTERNAL-SERVICES: external addresses that nobody serves.
    UnservedExternal,
    /// filter KUBE-EXTERNAL-SERVICES, the node ports that nobody serves.
    UnservedNodePorts(Protocol),
    /// filter KUBE-PROXY-FIREWALL: what source ranges did not let through.
    Firewall,
    /// filter KUBE-NODEPORTS: where load balancers ask for health.
    HealthChecks,
}

impl Root {
    /// What it answers hides what nat would do: added before nat takes something away, taken away after nat has added.
    pub(crate) fn is_answer(self) -> bool {
        use Root::{Firewall, Unserved, UnservedExternal, UnservedNodePorts};
        matches!(self, Unserved | UnservedExternal | UnservedNodePorts(_) | Firewall)
    }

    /// The chains that have this trie in them, with their tables.
    fn chains(self) -> &'static [(Table, &'static str)] {
        match self {
            Self::Services => &[(Table::Nat, names::SERVICES)],
            Self::NodePorts(_) => &[(Table::Nat, names::NODEPORTS)],
            Self::Hairpins => &[(Table::Nat, names::HAIRPINS), (Table::Filter, names::HAIRPINS)],
            Self::Unserved => &[(Table::Filter, names::SERVICES)],
            Self::UnservedExternal | Self::UnservedNodePorts(_) => {
                &[(Table::Filter, names::EXTERNAL_SERVICES)]
            }
            Self::Firewall => &[(Table::Filter, names::PROXY_FIREWALL)],
            Self::HealthChecks => &[(Table::Filter, names::NODEPORTS)],
        }
    }

    /// What the names of the chains below its head begin with.
    fn prefix(self) -> &'static str {
        match self {
            Self::Services | Self::Unserved => "KUBE-SVC-0-",
            Self::Hairpins => "KUBE-SVL-0-",
            Self::UnservedExternal => "KUBE-EXT-0-",
            Self::NodePorts(_) | Self::UnservedNodePorts(_) => "KUBE-EXT-1-",
            Self::Firewall => "KUBE-FW-0-",
            Self::HealthChecks => "KUBE-FW-1-",
        }
    }

    fn protocol(self) -> Option<Protocol> {
        match self {
            Self::NodePorts(protocol) | Self::UnservedNodePorts(protocol) => Some(protocol),
            Self::HealthChecks => Some(Protocol::Tcp),
            _ => None,
        }
    }

    fn bucket(self, width: u8, Prefix { prefix, len }: Prefix) -> String {
        match self.protocol() {
            Some(protocol) => names::port_bucket(self.prefix(), protocol, prefix as u16, len),
            None => names::bucket(self.prefix(), width, prefix, len),
        }
    }
}

/// What a service port is reached at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Destination {
    ClusterIp,
    ExternalIp,
    LoadBalancer,
    NodePort,
}

/// An entry of a trie: what is rendered as one rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Leaf {
    /// Traffic of a service port goes to a chain of its own.
    Serve { key: Arc<Key>, port: Name, kind: Kind, to: Destination },
    /// Nobody serves it.
    Refuse { key: Arc<Key>, port: Name, answer: Answer },
    /// Its source ranges did not let it through.
    Firewall { key: Arc<Key>, port: Name },
    /// A load balancer may ask for health.
    HealthCheck { key: Arc<Key>, port: Name },
    /// A rule that the kernel had when it was read, until it is known whether it is wanted.
    Found(Box<str>),
    /// An address that can meet itself.
    Hairpin,
}

/// Where the leaf of an address and port is.
pub(crate) fn at_address(address: IpAddr, protocol: Protocol, port: u16) -> EntryKey {
    (bits(address), (protocol as u32) << 16 | u32::from(port))
}

/// Where the leaf of an address or a node port is.
pub(crate) fn at(bits: u128) -> EntryKey {
    (bits, 0)
}

pub(crate) fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

#[derive(Debug)]
pub(crate) struct Roots {
    family: Family,
    cluster: Name,
    node_ports: NodePorts,
    tries: BTreeMap<Root, Trie<Leaf>>,
}

/// A chain of a trie.
#[derive(Debug)]
pub(crate) struct Bucket {
    root: Root,
    node: Prefix,
    pub(crate) name: String,
}

/// What laying a trie found.
#[derive(Debug, Default)]
pub(crate) struct RootLaid {
    /// That may have changed.
    pub(crate) chains: Vec<(Table, Chain)>,
    /// That are no more.
    pub(crate) gone: Vec<(Table, Bucket)>,
}

impl Roots {
    /// The heads of all tries.
    pub(crate) const HEADS: [(Table, &'static str); 8] = [
        (Table::Nat, names::SERVICES),
        (Table::Nat, names::NODEPORTS),
        (Table::Nat, names::HAIRPINS),
        (Table::Filter, names::SERVICES),
        (Table::Filter, names::EXTERNAL_SERVICES),
        (Table::Filter, names::NODEPORTS),
        (Table::Filter, names::PROXY_FIREWALL),
        (Table::Filter, names::HAIRPINS),
    ];

    pub(crate) fn new(family: Family, cluster: Name) -> Self {
        let ports = PROTOCOLS
            .into_iter()
            .flat_map(|protocol| [Root::NodePorts(protocol), Root::UnservedNodePorts(protocol)])
            .chain([Root::HealthChecks])
            .map(|root| (root, 16));
        let addresses =
            [Root::Services, Root::Unserved, Root::UnservedExternal, Root::Firewall, Root::Hairpins];
        let tries = addresses.into_iter().map(|root| (root, family.width())).chain(ports);
        let tries = tries.map(|(root, width)| (root, Trie::new(width))).collect();
        Self { family, cluster, node_ports: NodeState::default().node_ports, tries }
    }

    /// Where node ports are; a change is in the heads that are asked for after it.
    pub(crate) fn set_node_ports(&mut self, node_ports: NodePorts) {
        self.node_ports = node_ports;
    }

    pub(crate) fn set(&mut self, root: Root, key: EntryKey, leaf: Option<Leaf>) {
        if let Some(trie) = self.tries.get_mut(&root) {
            match leaf {
                Some(leaf) => trie.insert(key, leaf),
                None => trie.remove(key),
            }
        }
    }

    /// Lays the tries of which `which` says so. Heads come with the last of their tries.
    pub(crate) fn lay(&mut self, which: impl Fn(Root) -> bool) -> Vec<RootLaid> {
        let tries = self.tries.iter_mut().filter(|(root, _)| which(**root));
        let laid: Vec<(Root, Laid)> = tries.map(|(&root, trie)| (root, trie.lay())).collect();
        let mut heads = BTreeSet::new();
        let mut all = Vec::new();
        for (root, Laid { nodes, gone }) in laid {
            let Some(trie) = self.tries.get(&root) else { continue };
            let mut laid = RootLaid::default();
            for &(table, head) in root.chains() {
                let bucket =
                    |&node: &Prefix| (table, Bucket { root, node, name: root.bucket(trie.width(), node) });
                laid.gone.extend(gone.iter().map(bucket));
                if nodes.first().is_some_and(|node| node.len == 0) {
                    heads.insert((table, head));
                }
                for &node in nodes.iter().filter(|node| node.len > 0) {
                    let rules = self.rules(root, trie, table, node);
                    laid.chains.push((table, Chain::new(&root.bucket(trie.width(), node), rules)));
                }
            }
            all.push(laid);
        }
        let heads = heads.into_iter().map(|(table, head)| (table, self.head(table, head))).collect();
        all.push(RootLaid { chains: heads, gone: Vec::new() });
        all
    }

    /// Whether a bucket is one now.
    pub(crate) fn has(&self, bucket: &Bucket) -> bool {
        self.tries.get(&bucket.root).is_some_and(|trie| trie.has(bucket.node))
    }

    /// A chain that is not below another: all its tries, and what always stands in it.
    pub(crate) fn head(&self, table: Table, name: &str) -> Chain {
        let of_chain = |root: &Root| root.chains().contains(&(table, name));
        let tries = self.tries.iter().filter(|(root, _)| of_chain(root));
        let rules =
            tries.flat_map(|(&root, trie)| self.rules(root, trie, table, Prefix { prefix: 0, len: 0 }));
        let tail = ((table, name) == (Table::Nat, names::SERVICES)).then(|| self.tail());
        Chain::new(name, rules.chain(tail.into_iter().flatten()))
    }

    /// nat KUBE-SERVICES with only these entries.
    pub(crate) fn services_of(&self, entries: impl Iterator<Item = (EntryKey, Leaf)>) -> Chain {
        let rules = entries.map(|(key, leaf)| self.leaf(Root::Services, Table::Nat, key, &leaf));
        Chain::new(names::SERVICES, rules.chain(self.tail()))
    }

    /// Every chain below a head.
    pub(crate) fn buckets(&self) -> impl Iterator<Item = (Table, String)> {
        self.tries.iter().flat_map(|(root, trie)| {
            let names = trie.nodes().map(|node| root.bucket(trie.width(), node));
            names.flat_map(|name| root.chains().iter().map(move |&(table, _)| (table, name.clone())))
        })
    }

    /// Forgets everything, and takes from the kernel what shape it has, and what it refuses now. Answers where the
    /// latter stands.
    pub(crate) fn adopt(&mut self, kernel: &Dump<'_>) -> Vec<(Root, EntryKey)> {
        let mut seen: BTreeMap<Root, BTreeSet<Prefix>> = BTreeMap::new();
        let mut found = BTreeMap::new();
        for table in [Table::Nat, Table::Filter] {
            for (name, rule) in
                kernel.chains(table).flat_map(|(name, rules)| rules.iter().map(move |r| (name, *r)))
            {
                if let Some(bucket) = target(rule).filter(|target| names::is_bucket(target)) {
                    for (&root, trie) in self.tries.iter().filter(|(root, _)| root.chains()[0].0 == table) {
                        let prefix = self.jumped_to(root, trie.width(), rule, bucket);
                        seen.entry(root).or_default().extend(prefix);
                    }
                }
                if table == Table::Filter
                    && let Some((root, key)) = self.refused(name, rule)
                {
                    found.insert((root, key), rule);
                }
            }
        }
        for (root, trie) in &mut self.tries {
            trie.reset(seen.remove(root).unwrap_or_default());
        }
        for (&(root, key), &rule) in &found {
            self.set(root, key, Some(Leaf::Found(rule.into())));
        }
        found.into_keys().collect()
    }

    /// The node of a trie that a rule jumps to, if the bucket is one.
    fn jumped_to(&self, root: Root, width: u8, rule: &str, bucket: &str) -> Option<Prefix> {
        if !bucket.starts_with(root.prefix()) {
            return None;
        }
        let prefix = match root.protocol() {
            Some(_) => {
                let (first, last) = argument(rule, "--dport")?.1.split_once(':')?;
                let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
                let len = last.checked_sub(first)?.leading_zeros() as u8;
                Prefix { prefix: first.into(), len }
            }
            None => {
                let flag = if root == Root::Hairpins { "-s" } else { "-d" };
                let net: IpNet = argument(rule, flag)?.1.parse().ok()?;
                Prefix { prefix: bits(net.network()), len: net.prefix_len() }
            }
        };
        (root.bucket(width, prefix) == bucket).then_some(prefix)
    }

    /// What a rule refuses, if that is all it does.
    fn refused(&self, chain: &str, rule: &str) -> Option<(Root, EntryKey)> {
        let roots = [Root::Unserved, Root::UnservedExternal, Root::Firewall];
        let root = |root: &Root| chain == root.chains()[0].1 || chain.starts_with(root.prefix());
        let root = roots.into_iter().find(root);
        let of_node_ports = chain == names::EXTERNAL_SERVICES || chain.starts_with("KUBE-EXT-1-");
        let refuses = matches!(target(rule)?, "REJECT" | "DROP") && !rule.contains(" ! ");
        if !refuses || (root.is_none() && !of_node_ports) {
            return None;
        }
        let protocol = argument(rule, "-p")?.1;
        let protocol = PROTOCOLS.into_iter().find(|one| one.as_str() == protocol)?;
        let port: u16 = argument(rule, "--dport")?.1.parse().ok()?;
        if argument(rule, "--dst-type").is_some() {
            return Some((Root::UnservedNodePorts(protocol), at(port.into())));
        }
        let net: IpNet = argument(rule, "-d")?.1.parse().ok()?;
        let host = net.prefix_len() == net.max_prefix_len() && Family::of(&net.addr()) == self.family;
        host.then(|| (root, at_address(net.addr(), protocol, port))).and_then(|(root, at)| Some((root?, at)))
    }

    fn rules(
        &self,
        root: Root,
        trie: &Trie<Leaf>,
        table: Table,
        node: Prefix,
    ) -> Vec<Result<Rule, Box<str>>> {
        let rule = |item: &Item<'_, Leaf>| match item {
            Item::Entry(key, leaf) => self.leaf(root, table, *key, leaf),
            Item::Child(child) => Ok(self.child(root, trie.width(), *child)),
        };
        trie.items(node).iter().map(rule).collect()
    }

    fn child(&self, root: Root, width: u8, child: Prefix) -> Rule {
        let rule = Rule::jump(root.bucket(width, child));
        match root.protocol() {
            Some(protocol) => {
                let first = child.prefix as u16;
                let last = first | u16::MAX.checked_shr(child.len.into()).unwrap_or(0);
                Rule { protocol: Some(protocol), ..rule }.with(Match::Ports(first, last))
            }
            None => {
                let net = Some(Is::Yes(self.net(child.prefix, child.len)));
                match root {
                    Root::Hairpins => Rule { source: net, ..rule },
                    _ => Rule { destination: net, ..rule },
                }
            }
        }
    }

    /// `Err`: the text of a rule as it was found.
    fn leaf(&self, root: Root, table: Table, key: EntryKey, leaf: &Leaf) -> Result<Rule, Box<str>> {
        let (protocol, port) = match root.protocol() {
            Some(protocol) => (protocol, key.0 as u16),
            None => (PROTOCOLS[(key.1 >> 16) as usize % 3], key.1 as u16),
        };
        let address = || Some(Is::Yes(self.net(key.0, self.family.width())));
        let at_port = |rule: Rule| match root.protocol() {
            Some(_) => rule.port(protocol, port),
            None => Rule { destination: address(), ..rule }.port(protocol, port),
        };
        let svc = |key: &Key, port: &Name| svc(&self.cluster, key, port);
        Ok(match leaf {
            Leaf::Serve { key, port, kind, to } => {
                let svc = svc(key, port);
                let chain = kind.chain(&names::service_hash(&svc, protocol));
                at_port(Rule::jump(chain).comment(match to {
                    Destination::ClusterIp => format!("{svc} cluster IP"),
                    Destination::ExternalIp => format!("{svc} external IP"),
                    Destination::LoadBalancer => format!("{svc} loadbalancer IP"),
                    Destination::NodePort => svc,
                }))
            }
            Leaf::Refuse { key, port, answer } => {
                let (what, target) = match answer {
                    Answer::Reject => ("has no endpoints", Target::Reject(self.family)),
                    Answer::Drop => ("has no local endpoints", Target::Drop),
                };
                let rule = Rule::to(target).comment(format!("{} {what}", svc(key, port)));
                at_port(if root.protocol().is_none() { rule } else { rule.with(Match::ToHost) })
            }
            Leaf::Firewall { key, port } => {
                let svc = svc(key, port);
                let chain = Kind::Fw.chain(&names::service_hash(&svc, protocol));
                at_port(Rule::to(Target::Drop).comment(format!("{svc} traffic not accepted by {chain}")))
            }
            Leaf::HealthCheck { key, port } => {
                let comment = format!("{} health check node port", svc(key, port));
                at_port(Rule::to(Target::Accept).comment(comment))
            }
            Leaf::Hairpin => {
                let rule = match table {
                    Table::Nat => Rule::jump(names::HAIRPIN),
                    _ => Rule::to(Target::Accept),
                };
                Rule { source: address(), destination: address(), ..rule }
            }
            Leaf::Found(rule) => return Err(rule.clone()),
        })
    }

    /// Node ports stand behind all that is more exact (spec/kube-proxy.md §3.6).
    fn tail(&self) -> Vec<Result<Rule, Box<str>>> {
        let text = "kubernetes service nodeports; NOTE: this must be the last rule in this chain";
        let rule = || Rule::jump(names::NODEPORTS).comment(text);
        match &self.node_ports {
            NodePorts::At(addresses) => {
                let at = |address: &IpAddr| Rule { destination: Some(Is::Yes((*address).into())), ..rule() };
                addresses.iter().map(|address| Ok(at(address))).collect()
            }
            NodePorts::Everywhere { loopback } => {
                let not_loopback = match self.family {
                    Family::V4 if *loopback => None,
                    Family::V4 => Some(Is::Not(LOOPBACK_V4)),
                    Family::V6 => Some(Is::Not(self.net(1, 128))),
                };
                vec![Ok(Rule { destination: not_loopback, ..rule().with(Match::ToHost) })]
            }
        }
    }

    fn net(&self, bits: u128, len: u8) -> IpNet {
        let address = match self.family {
            Family::V4 => IpAddr::from((bits as u32).to_be_bytes()),
            Family::V6 => IpAddr::from(bits.to_be_bytes()),
        };
        IpNet::new(address, len).unwrap_or_else(|_| address.into())
    }
}
