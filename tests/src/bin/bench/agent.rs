//! The agent on a node, and the news in its log.

use std::fmt;
use std::fs::{self, File};
use std::io::Read;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use distributary_e2e::deployed;
use distributary_e2e::figures::seconds;
use distributary_e2e::process::Running;
use serde_json::Value;

use super::backend::Backend;
use super::load::CLUSTER_CIDRS;
use super::node::{Node, kernel_memory, memory};

/// How long a first sync may take before the bench gives up.
const PATIENCE: Duration = Duration::from_secs(180);
const GLANCE: Duration = Duration::from_millis(3);

/// A running one.
#[derive(Debug)]
pub(crate) struct Agent {
    process: Running,
    log: File,
    /// The beginning of a line.
    rest: Vec<u8>,
    /// What the last write was of.
    wrote: Wrote,
    /// What it warned of.
    warnings: Vec<String>,
    /// What the kernel had before it was there.
    kernel_mib: f64,
}

/// What a first sync took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FirstSync {
    /// From End to the kernel.
    pub(crate) millis: f64,
    pub(crate) services: u64,
    /// The agent's VmRSS after it.
    pub(crate) agent_mib: f64,
    /// What the kernel has more than before.
    pub(crate) kernel_mib: f64,
    /// The most that a tool had.
    pub(crate) tool_mib: f64,
    /// CPU of the agent since its start, and of all tools that it ran.
    pub(crate) agent_cpu: f64,
    pub(crate) tools_cpu: f64,
}

/// What a write is of.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Wrote {
    /// Chains of rules, each behind its table, at most eight.
    pub(crate) chains: Vec<String>,
    /// Elements of maps and sets, and chains beside them.
    pub(crate) elements: Option<[u64; 2]>,
}

/// A change that is in the kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Programmed {
    /// From its receipt to the kernel.
    pub(crate) millis: f64,
    /// When that was, in microseconds since midnight.
    pub(crate) at: i64,
}

impl fmt::Display for FirstSync {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { millis, agent_cpu, tools_cpu, agent_mib, tool_mib, kernel_mib, .. } = self;
        write!(f, "{} (CPU: agent {agent_cpu:.2} s, tools {tools_cpu:.2} s; ", seconds(*millis))?;
        write!(f, "agent {agent_mib:.1} MiB, tool {tool_mib:.0} MiB, kernel {kernel_mib:+.0} MiB)")
    }
}

impl Agent {
    /// Starts one for the Node of that name.
    pub(crate) fn start(node: &Node, name: &str, backend: Backend) -> Result<Self> {
        let kernel_mib = kernel_memory()?;
        let arguments = [&["--cluster-cidr", CLUSTER_CIDRS], backend.arguments()].concat();
        let process = deployed::plain_agent(&node.namespace, name, &arguments)?;
        let log = File::open(process.log_path())?;
        Ok(Self { process, log, rest: Vec::new(), wrote: Wrote::default(), warnings: Vec::new(), kernel_mib })
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
            kernel_mib: kernel_memory()? - self.kernel_mib,
            tool_mib,
            agent_cpu,
            tools_cpu,
        })
    }

    /// Waits for the next change to be in the kernel. What it programs without one (the node's addresses) does not count.
    pub(crate) async fn change(&mut self) -> Result<Programmed> {
        loop {
            let line = self.programmed(|| ()).await?;
            let services = line["services"].as_u64();
            if services == Some(0) {
                continue;
            }
            ensure!(services == Some(1), "one service was to change, the agent says {line}");
            let at = line["timestamp"].as_str().and_then(micros_of_day).context("a log line has a time")?;
            return Ok(Programmed { millis: took(&line)?, at });
        }
    }

    /// What its last write was of.
    pub(crate) fn wrote(&self) -> &Wrote {
        &self.wrote
    }

    /// What it has warned of since it was asked last.
    pub(crate) fn warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
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
                ensure!(
                    self.process.is_running(),
                    "the agent has ended; its log ends\n{}",
                    self.process.tail()
                );
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
            ensure!(line["level"] != "ERROR", "the agent says {line}");
            if line["level"] == "WARN" {
                self.warnings.push(line.to_string());
            }
            match line["message"].as_str() {
                Some("wrote") => self.wrote = Wrote::of(&line),
                Some("programmed") => return Ok(Some(line)),
                _ => {}
            }
        }
        Ok(None)
    }
}

impl Wrote {
    fn of(line: &Value) -> Self {
        let chains = line["chains"].as_str().unwrap_or_default().split(' ');
        let elements = line["elements"].as_u64().zip(line["chains"].as_u64());
        Self {
            chains: chains.filter(|word| word.contains('/')).map(str::to_owned).collect(),
            elements: elements.map(|(elements, chains)| [elements, chains]),
        }
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
    use serde_json::json;

    use super::*;

    #[test]
    fn a_time_is_read() {
        assert_eq!(micros_of_day("2026-01-02T00:01:02.5Z"), Some(62_500_000));
        assert_eq!(micros_of_day("nonsense"), None);
    }

    #[test]
    fn this_process_has_had_cpu() {
        cpu(std::process::id()).unwrap();
    }

    #[test]
    fn chains_are_read_from_the_log() {
        assert_eq!(Wrote::of(&json!({"chains": "nat/A nat/B"})).chains, ["nat/A", "nat/B"]);
        assert_eq!(Wrote::of(&json!({"chains": "nat/A and 3 more"})).chains, ["nat/A"]);
        assert_eq!(Wrote::of(&json!({"chains": 1, "elements": 3})).elements, Some([3, 1]));
    }
}
