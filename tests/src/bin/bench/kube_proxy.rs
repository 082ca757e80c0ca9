//! kube-proxy, and what it says about itself.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use distributary_e2e::controlplane::ControlPlane;
use distributary_e2e::netns::Namespace;
use distributary_e2e::process::Running;

use super::backend::Mode;
use super::load::{CLUSTER_CIDRS, node_name};
use super::node::{Node, kernel_memory, memory};

const FULL: &str = "kubeproxy_sync_full_proxy_rules_duration_seconds";
const PARTIAL: &str = "kubeproxy_sync_partial_proxy_rules_duration_seconds";
const METRICS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 10249);

/// A running one.
#[derive(Debug)]
pub(crate) struct KubeProxy {
    process: Running,
    /// What the kernel had before it was there.
    kernel_mib: f64,
    namespace: Arc<Namespace>,
}

/// How much a histogram holds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Histogram {
    sum: f64,
    count: f64,
}

impl KubeProxy {
    /// Starts it on a node.
    pub(crate) fn start(node: &Node, cluster: &ControlPlane, mode: Mode) -> Result<Self> {
        let (mode, pods) = (format!("--proxy-mode={mode}"), format!("--cluster-cidr={CLUSTER_CIDRS}"));
        // By default it waits for up to a second for more.
        let flags = [mode.as_str(), &pods, "--iptables-min-sync-period=0s"];
        let kernel_mib = kernel_memory()?;
        let process = cluster.kube_proxy(&node.namespace, &node_name(0), &flags)?;
        Ok(Self { process, namespace: Arc::clone(&node.namespace), kernel_mib })
    }

    /// Waits for its first full sync of IPv4, and gives its length in milliseconds.
    pub(crate) async fn first_sync(&mut self, patience: Duration) -> Result<f64> {
        let synced = self.grown(FULL, Histogram::default(), patience).await?;
        Ok(synced.sum / synced.count * 1000.0)
    }

    /// What it says to have done for single changes so far.
    fn partial(&self) -> Histogram {
        self.metrics().map(|text| histogram(&text, PARTIAL)).unwrap_or_default()
    }

    /// Makes a change and waits until it is programmed: the length of the sync in milliseconds.
    pub(crate) async fn change(&mut self, change: impl Future<Output = Result<()>>) -> Result<f64> {
        let before = self.partial();
        change.await?;
        let after = self.grown(PARTIAL, before, Duration::from_secs(60)).await?;
        Ok((after.sum - before.sum) / (after.count - before.count) * 1000.0)
    }

    /// Megabytes that it has in memory.
    pub(crate) fn memory(&self) -> Result<f64> {
        memory(self.process.id(), "VmRSS")
    }

    /// Megabytes that the kernel has more than before.
    pub(crate) fn kernel_memory(&self) -> Result<f64> {
        Ok(kernel_memory()? - self.kernel_mib)
    }

    async fn grown(&mut self, name: &str, before: Histogram, patience: Duration) -> Result<Histogram> {
        let polling = async {
            loop {
                let now = self.metrics().map(|text| histogram(&text, name)).unwrap_or_default();
                if now.count > before.count {
                    return Some(now);
                }
                if !self.process.is_running() {
                    return None;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        match tokio::time::timeout(patience, polling).await {
            Ok(Some(now)) => Ok(now),
            Ok(None) => bail!("kube-proxy has ended; its log ends\n{}", self.process.tail()),
            Err(_) => bail!("not done in {} s; its log ends\n{}", patience.as_secs(), self.process.tail()),
        }
    }

    /// HTTP 1.0 has no chunks in which a line could be cut.
    fn metrics(&self) -> Option<String> {
        self.namespace.within(|| {
            let mut stream = TcpStream::connect_timeout(&METRICS, Duration::from_secs(1)).ok()?;
            stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
            stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).ok()?;
            Some(answer)
        })
    }
}

/// The histogram of IPv4, or of both families where they are not told apart.
fn histogram(text: &str, name: &str) -> Histogram {
    let value = |suffix: &str| {
        let of_v4 = text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(suffix));
        of_v4.filter(|line| !line.contains("IPv6")).find_map(|line| line.rsplit(' ').next()?.parse().ok())
    };
    Histogram { sum: value("_sum").unwrap_or(0.0), count: value("_count").unwrap_or(0.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_is_that_of_ipv4() {
        let text = "x_bucket{le=\"1\"} 3\nx_sum{ip_family=\"IPv6\"} 9\nx_sum{ip_family=\"IPv4\"} 2.5\nx_count{ip_family=\"IPv4\"} 2\n";
        assert_eq!(histogram(text, "x"), Histogram { sum: 2.5, count: 2.0 });
        assert_eq!(histogram("y_sum 1.5\ny_count 1\n", "y"), Histogram { sum: 1.5, count: 1.0 });
        assert_eq!(histogram(text, "z"), Histogram::default());
    }
}
