//! A node that a proxy is measured on: an empty namespace with doors to the server and the apiserver.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use distributary_e2e::controlplane::ControlPlane;
use distributary_e2e::deployed::{self, SERVER};
use distributary_e2e::forward::Forward;
use distributary_e2e::netns::Namespace;
use distributary_e2e::node::SERVER_ADMIN;
use distributary_e2e::process::{Running, run};

/// Its only address.
pub(crate) const NODE_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// How long a server may take to read everything.
const READY: Duration = Duration::from_secs(120);

/// The namespace.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) namespace: Arc<Namespace>,
    /// Where the packets go that leave it.
    _sink: Namespace,
    _doors: Vec<Forward>,
}

impl Node {
    /// An empty one. The server listens in `hub`, where the control plane is, if there is one.
    pub(crate) fn new(hub: &Arc<Namespace>, cluster: Option<&ControlPlane>) -> Result<Self> {
        let (namespace, sink) = (Arc::new(Namespace::new()?), Namespace::new()?);
        namespace.ip(&[
            format!("link add eth0 type veth peer name eth0 netns {}", sink.name()),
            // Nobody answers there: what is sent is lost behind the link.
            "link set eth0 arp off".to_owned(),
            format!("addr add {NODE_ADDRESS}/24 dev eth0"),
            "link set eth0 up".to_owned(),
            "route add default dev eth0".to_owned(),
        ])?;
        sink.ip(&["link set eth0 up".to_owned()])?;
        let server: SocketAddr = SERVER.parse()?;
        let mut doors =
            vec![Forward::open(&Some(Arc::clone(&namespace)), server, &Some(Arc::clone(hub)), server)?];
        if let Some(cluster) = cluster {
            doors.push(cluster.reach_from(&namespace)?);
        }
        Ok(Self { namespace, _sink: sink, _doors: doors })
    }

    /// Runs a tool inside without anything around it, and gives what it prints.
    pub(crate) fn tool(&self, program: &str, arguments: &[&str]) -> Result<String> {
        self.namespace.within(|| run(Command::new(program).args(arguments)))
    }
}

/// A server in a namespace that has read what there is.
pub(crate) async fn server(hub: &Namespace, arguments: &[&str]) -> Result<Running> {
    let mut server = deployed::server(hub, arguments)?;
    let asking = async {
        while deployed::get(hub, SERVER_ADMIN, "/readyz").is_none_or(|(status, _)| status != 200) {
            if !server.is_running() {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        true
    };
    let ready = tokio::time::timeout(READY, asking).await;
    match ready {
        Ok(true) => Ok(server),
        _ => bail!("the server is not ready within {READY:?}; its log ends\n{}", server.tail()),
    }
}

/// A line of `/proc/PID/status` in MiB.
pub(crate) fn memory(process: u32, line: &str) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let found = status.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(':'));
    let kib = found.and_then(|text| text.trim().split(' ').next()).context("the line is not there")?;
    Ok(kib.parse::<f64>()? / 1024.0)
}

/// What the kernel has for itself, in MiB: rules of all sorts are in it, with their counters, and a lot else.
pub(crate) fn kernel_memory() -> Result<f64> {
    let info = fs::read_to_string("/proc/meminfo")?;
    let of = |name: &str| {
        let found = info.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB"));
        anyhow::Ok(found.with_context(|| format!("/proc/meminfo has no {name}"))?.trim().parse::<f64>()?)
    };
    Ok((of("SUnreclaim:")? + of("VmallocUsed:")? + of("Percpu:")?) / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_and_the_kernel_have_memory() {
        assert!(memory(std::process::id(), "VmRSS").unwrap() > 0.1);
        assert!(kernel_memory().unwrap() > 1.0);
    }
}
