//! The kernel's floor: what the tool itself takes for the same text, in the same namespace, with the hooks in place.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use distributary_e2e::netns::Namespace;

use super::load::ENDPOINTS;
use super::node::Node;
use distributary_e2e::figures::Samples;

/// One service's chain as the kernel has it, and the same with one endpoint replaced.
#[derive(Debug)]
pub(crate) struct Floor {
    namespace: Arc<Namespace>,
    other: String,
    held: String,
    /// Milliseconds.
    pub(crate) samples: Samples,
}

impl Floor {
    /// Of the first service's chain that the kernel has.
    pub(crate) fn of(node: &Node) -> Result<Self> {
        let saved = node.tool("iptables-nft-save", &["-t", "nat"])?;
        let chain = saved.lines().find_map(|line| {
            let name = line.strip_prefix(":KUBE-SVC-")?.split(' ').next()?;
            let rules = rules(&saved, name);
            // Not one that dispatches.
            let endpoints = rules.iter().filter(|rule| rule.contains(" -j DNAT "));
            (endpoints.count() == ENDPOINTS && rules.len() == ENDPOINTS + 1).then(|| name.to_owned())
        });
        let chain = chain.context("the kernel has no chain of a service")?;
        let rules = rules(&saved, &chain);
        let text =
            |rules: &[String]| format!("*nat\n:KUBE-SVC-{chain} - [0:0]\n{}\nCOMMIT\n", rules.join("\n"));
        let held = text(&rules);
        let mut others = rules;
        let last = others.last_mut().context("a chain has rules")?;
        let (head, _) = last.rsplit_once(' ').context("the last rule ends in an address")?;
        *last = format!("{head} 10.244.255.254:8080");
        let other = text(&others);
        ensure!(other != held, "the two contents are the same");
        Ok(Self { namespace: Arc::clone(&node.namespace), other, held, samples: Samples::default() })
    }

    /// One there and one back: the kernel is left as it was.
    pub(crate) fn sample(&mut self) -> Result<()> {
        for text in [&self.other, &self.held] {
            let millis = self.namespace.within(|| restore(text))?;
            self.samples.push(millis);
        }
        Ok(())
    }
}

fn rules(saved: &str, chain: &str) -> Vec<String> {
    let head = format!("-A KUBE-SVC-{chain} ");
    saved.lines().filter(|line| line.starts_with(&head)).map(str::to_owned).collect()
}

fn restore(text: &str) -> Result<f64> {
    let began = Instant::now();
    let mut child = Command::new("iptables-nft-restore")
        .args(["-w", "5", "--noflush"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    child.stdin.take().context("stdin was asked for")?.write_all(text.as_bytes())?;
    let output = child.wait_with_output()?;
    let millis = began.elapsed().as_secs_f64() * 1000.0;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "iptables-nft-restore does not take what iptables-nft-save printed: {said}{text}"
    );
    Ok(millis)
}
