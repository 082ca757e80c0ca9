//! etcd on a loopback, and the few requests that a test makes of it behind the apiserver's back.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::{
    forward::{Side, free_address},
    process::{Running, control_plane_program},
    wait,
};

/// base64 of a key that no apiserver looks at.
const PLAIN_KEY: &str = "ZGlzdHJpYnV0YXJ5";

#[derive(Debug)]
pub(crate) struct Etcd {
    side: Side,
    address: SocketAddr,
    command: Command,
    running: Running,
}

impl Etcd {
    /// Starts one on free ports; its data goes into `folder`.
    pub(crate) fn start(side: &Side, folder: &Path) -> Result<Self> {
        let [address, peer] = [free_address(side)?, free_address(side)?];
        let (url, peer_url) = (format!("http://{address}"), format!("http://{peer}"));
        let mut command = Command::new(control_plane_program("etcd")?);
        command.arg("--data-dir").arg(folder).args([
            "--name=test",
            "--log-level=warn",
            // The data need not outlive the machine.
            "--unsafe-no-fsync",
            &format!("--listen-client-urls={url}"),
            &format!("--advertise-client-urls={url}"),
            &format!("--listen-peer-urls={peer_url}"),
            &format!("--initial-advertise-peer-urls={peer_url}"),
            &format!("--initial-cluster=test={peer_url}"),
        ]);
        let running = spawn_in(side, "etcd", &command)?;
        let mut etcd = Self { side: side.clone(), address, command, running };
        etcd.await_health()?;
        Ok(etcd)
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn stop(&mut self) {
        self.running.kill9();
    }

    /// Starts it on the same ports and data again.
    pub(crate) fn restart(&mut self) -> Result<()> {
        self.running.kill9();
        self.running = spawn_in(&self.side, "etcd", &self.command)?;
        self.await_health()
    }

    /// Writes something that is nobody's, so that the revision grows, and returns it.
    pub(crate) fn touch(&self) -> Result<u64> {
        let answer = self.post("/v3/kv/put", &json!({ "key": PLAIN_KEY, "value": PLAIN_KEY }))?;
        // 64-bit numbers are strings in protobuf's JSON.
        let revision = answer["header"]["revision"].as_str().context("an answer of etcd has a revision")?;
        Ok(revision.parse()?)
    }

    /// Forgets all history before `revision`.
    pub(crate) fn compact(&self, revision: u64) -> Result<()> {
        self.post("/v3/kv/compaction", &json!({ "revision": revision.to_string(), "physical": true }))?;
        Ok(())
    }

    fn await_health(&mut self) -> Result<()> {
        let healthy = wait::within(Duration::from_secs(20), || {
            let answered = self.request("GET", "/health", "").is_ok_and(|answer| answer["health"] == "true");
            if answered { Some(true) } else { (!self.running.is_running()).then_some(false) }
        });
        if healthy != Some(true) {
            bail!("etcd does not get healthy; its log ends with\n{}", self.running.tail());
        }
        Ok(())
    }

    fn post(&self, path: &str, body: &Value) -> Result<Value> {
        self.request("POST", path, &body.to_string())
    }

    /// HTTP 1.0 needs no client library: the answer ends where the connection does.
    fn request(&self, method: &str, path: &str, body: &str) -> Result<Value> {
        let mut stream = match &self.side {
            Some(namespace) => namespace.within(|| TcpStream::connect(self.address)),
            None => TcpStream::connect(self.address),
        }?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(stream, "{method} {path} HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}", body.len())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("etcd's answer is cut short")?;
        let status = head.lines().next().unwrap_or_default();
        ensure!(status.contains(" 200 "), "etcd answers {path} with {status}: {body}");
        Ok(serde_json::from_str(body)?)
    }
}

pub(crate) fn spawn_in(side: &Side, name: &str, command: &Command) -> Result<Running> {
    match side {
        Some(namespace) => namespace.spawn(name, command),
        None => Running::spawn(name, command),
    }
}
