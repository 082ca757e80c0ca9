//! Both binaries as an operator starts them, with logs that tests can read.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use serde_json::Value;

use crate::netns::Namespace;
use crate::process::{Running, binary};
use crate::wait::until;

/// Where the server listens for agents, in its namespace.
pub const SERVER: &str = "127.0.0.1:7400";
/// How long a step may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Starts the server in a namespace.
///
/// # Errors
/// When it cannot be started.
pub fn server(namespace: &Namespace, arguments: &[&str]) -> Result<Running> {
    server_at(namespace, SERVER, arguments)
}

/// Starts a server in a namespace that listens there for agents. Its admin port is the caller's to say.
///
/// # Errors
/// When it cannot be started.
pub fn server_at(namespace: &Namespace, listen: &str, arguments: &[&str]) -> Result<Running> {
    let mut command = Command::new(binary("distributary-server"));
    command.args(["--listen", listen, "--log", "info,distributary_server=debug", "--log-format", "json"]);
    namespace.spawn("distributary-server", command.args(arguments))
}

/// Starts an agent in a namespace, with pods' addresses as in [`crate::topology`].
///
/// # Errors
/// When it cannot be started.
pub fn agent(namespace: &Namespace, node: &str, arguments: &[&str]) -> Result<Running> {
    let cidrs = crate::topology::CLUSTER_CIDRS.join(",");
    plain_agent(namespace, node, &[&["--cluster-cidr", &cidrs], arguments].concat())
}

/// Starts an agent in a namespace that knows of no pods' addresses, unless the arguments say them.
///
/// # Errors
/// When it cannot be started.
pub fn plain_agent(namespace: &Namespace, node: &str, arguments: &[&str]) -> Result<Running> {
    let mut command = Command::new(binary("distributary-agent"));
    command.args(["run", "--server", SERVER, "--node-name", node]);
    command.args(["--log", "info,distributary_agent=debug", "--log-format", "json"]);
    // The number of connections is the whole machine's, not the namespace's.
    command.args(["--conntrack-max-per-core", "0"]);
    namespace.spawn("distributary-agent", command.args(arguments))
}

/// The lines of a log with a message, oldest first.
#[must_use]
pub fn logged(process: &Running, message: &str) -> Vec<Value> {
    let lines = process.log();
    let parsed = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    parsed.filter(|line| line["message"] == message).collect()
}

/// Waits until a line with the message has been logged more than `before` times, and gives the newest.
///
/// # Panics
/// When it does not come, with the end of the log.
#[must_use]
pub fn wait_for(process: &Running, message: &str, before: usize) -> Value {
    let what = || format!("{message:?} for the {}th time in the log", before + 1);
    let found = crate::wait::within(PATIENCE, || {
        let lines = logged(process, message);
        (lines.len() > before).then(|| lines.last().cloned()).flatten()
    });
    found.unwrap_or_else(|| panic!("{} did not come; the log ends\n{}", what(), process.tail()))
}

/// Waits until an address answers by HTTP in the namespace with 200, and gives the body.
///
/// # Panics
/// When it does not.
#[must_use]
pub fn wait_ok(namespace: &Namespace, address: SocketAddr, path: &str) -> String {
    until(&format!("http://{address}{path} to answer 200"), PATIENCE, || {
        let (status, body) = get(namespace, address, path)?;
        (status == 200).then_some(body)
    })
}

/// One HTTP request in the namespace: the status and the body. HTTP 1.0 has no chunks in which a line could be cut.
#[must_use]
pub fn get(namespace: &Namespace, address: SocketAddr, path: &str) -> Option<(u16, String)> {
    request(namespace, address, "GET", path)
}

/// The same, with POST and nothing more.
#[must_use]
pub fn post(namespace: &Namespace, address: SocketAddr, path: &str) -> Option<(u16, String)> {
    request(namespace, address, "POST", path)
}

fn request(namespace: &Namespace, address: SocketAddr, method: &str, path: &str) -> Option<(u16, String)> {
    use std::io::{Read, Write};
    namespace.within(|| {
        let mut stream = std::net::TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        write!(stream, "{method} {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
    })
}

/// The value of a metric without labels.
#[must_use]
pub fn metric(namespace: &Namespace, address: SocketAddr, name: &str) -> Option<f64> {
    let (_, body) = get(namespace, address, "/metrics")?;
    body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}
