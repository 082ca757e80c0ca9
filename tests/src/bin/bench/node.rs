//! A node that a proxy is measured on: an empty namespace with doors to the server and the apiserver.

use std::fs::{self, File};
use std::io::Read;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use distributary_e2e::controlplane::ControlPlane;
use distributary_e2e::deployed::{self, SERVER};
use distributary_e2e::forward::Forward;
use distributary_e2e::netns::Namespace;
use distributary_e2e::process::{Running, run};
use serde_json::Value;

use super::load::node_name;

/// How long a first sync may take before the bench gives up.
const PATIENCE: Duration = Duration::from_secs(180);
const GLANCE: Duration = Duration::from_millis(3);

/// The namespace.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) namespace: Arc<Namespace>,
    /// Where the packets go that leave it.
    _sink: Namespace,
    _doors: [Forward; 2],
}

impl Node {
    /// An empty one. The server listens in `hub`, where the control plane is.
    pub(crate) fn new(hub: &Arc<Namespace>, cluster: &ControlPlane) -> Result<Self> {
        let (namespace, sink) = (Arc::new(Namespace::new()?), Namespace::new()?);
        namespace.ip(&[
            format!("link add eth0 type veth peer name eth0 netns {}", sink.name()),
            // Nobody answers there: what is sent is lost behind the link.
            "link set eth0 arp off".to_owned(),
            "addr add 192.0.2.1/24 dev eth0".to_owned(),
            "link set eth0 up".to_owned(),
            "route add default dev eth0".to_owned(),
        ])?;
        sink.ip(&["link set eth0 up".to_owned()])?;
        let server: SocketAddr = SERVER.parse()?;
        let door = Forward::open(&Some(Arc::clone(&namespace)), server, &Some(Arc::clone(hub)), server)?;
        let doors = [door, cluster.reach_from(&namespace)?];
        Ok(Self { namespace, _sink: sink, _doors: doors })
    }

    /// Runs a tool inside without anything around it, and gives what it prints.
    pub(crate) fn tool(&self, program: &str, arguments: &[&str]) -> Result<String> {
        self.namespace.within(|| run(Command::new(program).args(arguments)))
    }
}

/// An agent, and the news in its log.
#[derive(Debug)]
pub(crate) struct Agent {
    process: Running,
    log: File,
    /// The beginning of a line.
    rest: Vec<u8>,
}

/// What a first sync took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FirstSync {
    /// From End to the kernel.
    pub(crate) millis: f64,
    pub(crate) services: u64,
    /// The agent's VmRSS after it.
    pub(crate) agent_mib: f64,
    /// The most that a tool had.
    pub(crate) tool_mib: f64,
    /// CPU of the agent since its start, and of all tools that it ran.
    pub(crate) agent_cpu: f64,
    pub(crate) tools_cpu: f64,
}

impl Agent {
    /// Starts one with a flavour of iptables.
    pub(crate) fn start(node: &Node, flavour: &str) -> Result<Self> {
        let process = deployed::agent(&node.namespace, &node_name(0), &["--iptables-flavour", flavour])?;
        let log = File::open(process.log_path())?;
        Ok(Self { process, log, rest: Vec::new() })
    }

    /// Waits for the first sync.
    pub(crate) async fn first_sync(&mut self) -> Result<FirstSync> {
        let id = self.process.id();
        let mut tool_mib = 0.0_f64;
        let line = self.programmed(|| {
            let peaks = children(id).into_iter().filter_map(|child| memory(child, "VmHWM").ok());
            tool_mib = peaks.fold(tool_mib, f64::max);
        });
        let line = line.await?;
        let (agent_cpu, tools_cpu) = cpu(id)?;
        Ok(FirstSync {
            millis: took(&line)?,
            services: line["services"].as_u64().context("the agent says how many services")?,
            agent_mib: memory(id, "VmRSS")?,
            tool_mib,
            agent_cpu,
            tools_cpu,
        })
    }

    /// Waits for the next change to be in the kernel: receive to kernel in milliseconds, and when that was, in
    /// microseconds since midnight.
    pub(crate) async fn change(&mut self) -> Result<(f64, i64)> {
        let line = self.programmed(|| ()).await?;
        ensure!(line["services"] == 1, "one change was expected, the agent says {line}");
        let at = line["timestamp"].as_str().and_then(micros_of_day).context("a log line has a time")?;
        Ok((took(&line)?, at))
    }

    /// Megabytes that it has in memory.
    pub(crate) fn memory(&self) -> Result<f64> {
        memory(self.process.id(), "VmRSS")
    }

    async fn programmed(&mut self, mut meanwhile: impl FnMut()) -> Result<Value> {
        let polling = async {
            loop {
                if let Some(line) = self.next_programmed()? {
                    return Ok(line);
                }
                meanwhile();
                tokio::time::sleep(GLANCE).await;
            }
        };
        let found = tokio::time::timeout(PATIENCE, polling).await;
        found.unwrap_or_else(|_| {
            anyhow::bail!(
                "the agent has programmed nothing for {PATIENCE:?}; its log ends\n{}",
                self.process.tail()
            )
        })
    }

    /// Reads what is new, up to the next line of interest.
    fn next_programmed(&mut self) -> Result<Option<Value>> {
        self.log.read_to_end(&mut self.rest)?;
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            let Ok(line) = serde_json::from_slice::<Value>(&line) else { continue };
            ensure!(line["level"] != "ERROR" && line["level"] != "WARN", "the agent says {line}");
            if line["message"] == "programmed" {
                return Ok(Some(line));
            }
        }
        Ok(None)
    }
}

fn took(line: &Value) -> Result<f64> {
    line["took_ms"].as_f64().context("the agent says how long it took")
}

/// Of `2026-01-02T03:04:05.678901Z`.
pub(crate) fn micros_of_day(timestamp: &str) -> Option<i64> {
    let clock = timestamp.split_once('T')?.1.trim_end_matches('Z');
    let mut parts = clock.splitn(3, ':');
    let (hours, minutes): (i64, i64) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let (seconds, fraction) = parts.next()?.split_once('.')?;
    let micros: i64 = format!("{fraction:0<6}").get(..6)?.parse().ok()?;
    Some(((hours * 60 + minutes) * 60 + seconds.parse::<i64>().ok()?) * 1_000_000 + micros)
}

/// A line of `/proc/PID/status` in MiB.
pub(crate) fn memory(process: u32, line: &str) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let found = status.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(':'));
    let kib = found.and_then(|text| text.trim().split(' ').next()).context("the line is not there")?;
    Ok(kib.parse::<f64>()? / 1024.0)
}

/// Seconds of CPU of a process and of its children that have ended; the kernel counts in hundredths.
fn cpu(process: u32) -> Result<(f64, f64)> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').context("a stat has a name")?;
    let ticks: Vec<f64> = fields.split_whitespace().filter_map(|field| field.parse().ok()).collect();
    // Without the state, which is a letter, the fields 14 to 17 of proc(5) are these.
    let [user, system, children_user, children_system] = ticks.get(10..14).context("a stat has more")? else {
        anyhow::bail!("four fields are four");
    };
    Ok(((user + system) / 100.0, (children_user + children_system) / 100.0))
}

fn children(process: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().filter_map(|id| id.parse().ok()).collect::<Vec<u32>>())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_read() {
        assert_eq!(micros_of_day("2026-01-02T00:01:02.5Z"), Some(62_500_000));
        assert_eq!(micros_of_day("nonsense"), None);
    }

    #[test]
    fn this_process_has_memory_and_cpu() {
        let id = std::process::id();
        assert!(memory(id, "VmRSS").unwrap() > 0.1);
        cpu(id).unwrap();
    }
}
