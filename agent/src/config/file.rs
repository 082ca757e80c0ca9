//! A KubeProxyConfiguration, as kube-proxy reads one: strict about types, lenient about fields.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;

use super::tree::Tree;
use super::value::{self, List, Network};
use super::{Backend, DetectLocalMode, Draft, duration};

/// What it has to be.
pub(super) const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
/// What it has to be.
pub(super) const KIND: &str = "KubeProxyConfiguration";

/// Fields with fields below them.
const SECTIONS: [&str; 7] =
    ["iptables", "ipvs", "nftables", "winkernel", "detectLocal", "conntrack", "clientConnection"];

/// Fields that kube-proxy has and that mean nothing here, and the sections of which that is true of all.
const INAPPLICABLE: [&str; 12] = [
    "clientConnection",
    "configSyncPeriod",
    "enableProfiling",
    "featureGates",
    "iptables",
    "ipvs",
    "logging",
    "nftables",
    "portRange",
    "showHiddenMetricsForVersion",
    "windowsRunAsService",
    "winkernel",
];

/// A file that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unusable(String);

/// What of a file does nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unused {
    /// What kube-proxy knows and that means nothing here.
    pub inapplicable: BTreeSet<String>,
    /// What kube-proxy does not know either.
    pub unknown: BTreeSet<String>,
    /// What stands there more than once; the last one counts.
    pub repeated: BTreeSet<String>,
}

impl Unused {
    /// Nothing of it.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for Unused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let groups = [
            ("do not apply", &self.inapplicable),
            ("are unknown", &self.unknown),
            ("stand there twice, the last one counts", &self.repeated),
        ];
        let said = groups.into_iter().filter(|(_, fields)| !fields.is_empty()).map(|(what, fields)| {
            let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
            format!("{} {what}", fields.join(", "))
        });
        f.write_str(&said.collect::<Vec<_>>().join("; "))
    }
}

/// Reads YAML or JSON. What is not there, or null, is the default.
///
/// # Errors
/// When it is no KubeProxyConfiguration, a value cannot be read, or it wants another backend.
pub fn read(text: &str) -> Result<(Draft, Unused), Unusable> {
    let Tree::Fields(fields) = Tree::read(text).map_err(Unusable)? else {
        return Err(Unusable(format!("it is no {KIND}: fields are wanted")));
    };
    let (mut draft, mut unused, mut seen) = (Draft::default(), Unused::default(), BTreeSet::new());
    let mut is = Is::default();
    let fields = flat(fields)?;
    for (path, value) in fields.iter().filter(|(path, _)| path == "mode") {
        draft.backend = self::backend(Value(path, value).text()?)?;
    }
    let backend = draft.backend;
    for (path, value) in fields {
        if !seen.insert(path.clone()) {
            unused.repeated.insert(path.clone());
        }
        match path.as_str() {
            "apiVersion" => is.version = Value(&path, &value).text()?.to_owned(),
            "kind" => is.kind = Value(&path, &value).text()?.to_owned(),
            "mode" => {}
            _ if set(&mut draft, &of_backend(&path, backend), Value(&path, &value))? => {}
            _ if value.is_blank() => {}
            _ => {
                let section = path.split('.').next().unwrap_or_default();
                let applies = section == if backend == Backend::Nftables { "nftables" } else { "iptables" };
                let known = INAPPLICABLE.contains(&section) && !applies;
                let set = if known { &mut unused.inapplicable } else { &mut unused.unknown };
                set.insert(path);
            }
        }
    }
    if is.version != API_VERSION || is.kind != KIND {
        let Is { version, kind } = is;
        return Err(Unusable(format!("it is {version:?} {kind:?}, {API_VERSION} {KIND} is wanted")));
    }
    Ok((draft, unused))
}

#[derive(Default)]
struct Is {
    version: String,
    kind: String,
}

/// Every field, those of sections under the name of their section.
fn flat(fields: Vec<(String, Tree)>) -> Result<Vec<(String, Tree)>, Unusable> {
    let mut all = Vec::new();
    for (name, value) in fields {
        match value {
            _ if !SECTIONS.contains(&name.as_str()) => all.push((name, value)),
            Tree::Null => {}
            Tree::Fields(below) => {
                all.extend(below.into_iter().map(|(field, value)| (format!("{name}.{field}"), value)));
            }
            other => return Err(Unusable(format!("{name} is {}, fields are wanted", other.kind()))),
        }
    }
    Ok(all)
}

/// Refuses what is not programmed.
fn backend(mode: &str) -> Result<Backend, Unusable> {
    match mode {
        "" => Ok(Backend::default()),
        "ipvs" => Err(Unusable("mode ipvs is not there, only iptables and nftables are".to_owned())),
        _ => Backend::from_str(mode, false)
            .map_err(|_| Unusable(format!("mode {mode:?} is unknown, iptables or nftables is wanted"))),
    }
}

/// Both packet filters have a section with the same fields; only that of the one that is programmed applies.
fn of_backend(path: &str, backend: Backend) -> String {
    match (backend, path.split_once('.')) {
        (Backend::Nftables, Some(("nftables", field))) => format!("iptables.{field}"),
        (Backend::Nftables, Some(("iptables", field))) => format!("nftables.{field}"),
        _ => path.to_owned(),
    }
}

/// Takes a field in; `false` where it is none that applies.
fn set(draft: &mut Draft, field: &str, value: Value<'_>) -> Result<bool, Unusable> {
    let conntrack = &mut draft.conntrack;
    match field {
        "hostnameOverride" => {
            draft.hostname_override = Some(value.text()?.to_owned()).filter(|name| !name.is_empty());
        }
        "bindAddress" => value.parsed(&mut draft.bind_address, value::address)?,
        "bindAddressHardFail" => value.switch(&mut draft.bind_address_hard_fail)?,
        "healthzBindAddress" => value.parsed(&mut draft.healthz, FromStr::from_str)?,
        "metricsBindAddress" => value.parsed(&mut draft.metrics, FromStr::from_str)?,
        "detectLocalMode" => {
            let mode = |name: &str| DetectLocalMode::from_str(name, false);
            value.parsed(&mut draft.detect_local_mode, |name| {
                mode(name).map_err(|_| format!("{name:?} is none of {}", modes().join(", ")))
            })?;
        }
        "detectLocal.bridgeInterface" => draft.bridge = value.text()?.to_owned(),
        "detectLocal.interfaceNamePrefix" => draft.prefix = value.text()?.to_owned(),
        "clusterCIDR" => {
            let mut list = List::<Network>(Vec::new());
            value.parsed(&mut list, FromStr::from_str)?;
            draft.cluster_cidr = list.0.into_iter().map(|net| net.0).collect();
        }
        "nodePortAddresses" => draft.node_ports = value.list()?,
        "iptables.masqueradeBit" => value.number(&mut draft.masquerade_bit)?,
        "iptables.masqueradeAll" => value.switch(&mut draft.masquerade_all)?,
        "iptables.localhostNodePorts" => value.switch(&mut draft.localhost_node_ports)?,
        // To kube-proxy no time at all is the default here, and in conntrack's section it is: leave alone.
        "iptables.syncPeriod" if value.1.is_blank() => {}
        "iptables.syncPeriod" => value.duration(&mut draft.sync_period)?,
        "iptables.minSyncPeriod" => value.duration(&mut draft.min_sync_period)?,
        "conntrack.maxPerCore" => value.number(&mut conntrack.max_per_core)?,
        "conntrack.min" => value.number(&mut conntrack.min)?,
        "conntrack.tcpEstablishedTimeout" => value.duration(&mut conntrack.tcp_established)?,
        "conntrack.tcpCloseWaitTimeout" => value.duration(&mut conntrack.tcp_close_wait)?,
        "conntrack.tcpBeLiberal" => value.switch(&mut conntrack.tcp_be_liberal)?,
        "conntrack.udpTimeout" => value.duration(&mut conntrack.udp)?,
        "conntrack.udpStreamTimeout" => value.duration(&mut conntrack.udp_stream)?,
        "oomScoreAdj" => value.number(&mut draft.oom_score_adj)?,
        _ => return Ok(false),
    }
    Ok(true)
}

fn modes() -> Vec<String> {
    let values = DetectLocalMode::value_variants().iter().filter_map(ValueEnum::to_possible_value);
    values.map(|value| value.get_name().to_owned()).collect()
}

/// A field, by its path.
#[derive(Clone, Copy)]
struct Value<'a>(&'a str, &'a Tree);

impl<'a> Value<'a> {
    fn wrong(self, wanted: &str) -> Unusable {
        Unusable(format!("{} is {}, {wanted} is wanted", self.0, self.1.kind()))
    }

    fn text(self) -> Result<&'a str, Unusable> {
        match self.1 {
            Tree::Null => Ok(""),
            Tree::Text(text) => Ok(text),
            _ => Err(self.wrong("a text")),
        }
    }

    /// From a text; an empty one leaves it as it is.
    fn parsed<T, E: fmt::Display>(
        self,
        to: &mut T,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Result<(), Unusable> {
        let text = self.text()?;
        if !text.is_empty() {
            *to = parse(text).map_err(|e| Unusable(format!("{}: {e}", self.0)))?;
        }
        Ok(())
    }

    fn duration(self, to: &mut Duration) -> Result<(), Unusable> {
        self.parsed(to, duration::parse)
    }

    fn switch(self, to: &mut bool) -> Result<(), Unusable> {
        match self.1 {
            Tree::Null => {}
            Tree::Switch(value) => *to = *value,
            _ => return Err(self.wrong("true or false")),
        }
        Ok(())
    }

    fn number<T: TryFrom<i64>>(self, to: &mut T) -> Result<(), Unusable> {
        match self.1 {
            Tree::Null => {}
            Tree::Number(value) => {
                let error = || Unusable(format!("{} {value} is out of bounds", self.0));
                *to = T::try_from(*value).map_err(|_| error())?;
            }
            _ => return Err(self.wrong("a whole number")),
        }
        Ok(())
    }

    fn list<T: FromStr<Err: fmt::Display>>(self) -> Result<Vec<T>, Unusable> {
        let items = match self.1 {
            Tree::Null => return Ok(Vec::new()),
            Tree::List(items) => items,
            _ => return Err(self.wrong("a list")),
        };
        let read = |item: &Tree| match item {
            Tree::Text(text) => text.parse().map_err(|e| Unusable(format!("{}: {e}", self.0))),
            other => Err(Unusable(format!("{} has {}, a text is wanted", self.0, other.kind()))),
        };
        items.iter().map(read).collect()
    }
}

#[cfg(test)]
mod tests;
