//! The kernel's floor: what the tool itself takes for the same text, in the same namespace, with the hooks in place.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use distributary_e2e::figures::Samples;
use distributary_e2e::netns::Namespace;

use super::backend::Tools;
use super::node::Node;

/// What stands in the place of an endpoint in the other text.
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 247, 255, 254);

/// The chains that a change has written, as the kernel has them.
#[derive(Debug)]
pub(crate) struct Written {
    text: String,
    rules: usize,
}

/// The same, and the same with one endpoint replaced.
#[derive(Debug)]
pub(crate) struct Floor {
    namespace: Arc<Namespace>,
    tool: &'static str,
    other: String,
    held: String,
    /// Milliseconds.
    pub(crate) samples: Samples,
}

impl Written {
    /// Of these chains, each behind its table.
    pub(crate) fn of(node: &Node, tools: Tools, chains: &[String]) -> Result<Self> {
        let (text, rules) = text(&node.tool(tools.save, &[])?, chains)?;
        Ok(Self { text, rules })
    }
}

impl fmt::Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rules, {:.1} KB", self.rules, self.text.len() as f64 / 1000.0)
    }
}

impl Floor {
    /// Of what a change has written.
    pub(crate) fn of(node: &Node, tools: Tools, written: &Written) -> Result<Self> {
        let held = written.text.clone();
        let other = with_other(&held).context("the change has written no endpoint")?;
        ensure!(other != held, "the two contents are the same");
        let namespace = Arc::clone(&node.namespace);
        Ok(Self { namespace, tool: tools.restore, other, held, samples: Samples::default() })
    }

    /// What it is, and how far above it the median of a change is.
    pub(crate) fn told(&self, changes: &Samples) -> String {
        let floor = self.samples.median();
        let over = changes.median() - floor;
        let (p90, runs) = (self.samples.percentile(90), self.samples.len());
        format!("the kernel's floor {floor:.1} ms (p90 {p90:.1}, {runs} runs), so p50 is **{over:+.1} ms**")
    }

    /// One there and one back: the kernel is left as it was.
    pub(crate) fn sample(&mut self) -> Result<()> {
        for text in [&self.other, &self.held] {
            let millis = self.namespace.within(|| restore(self.tool, text))?;
            self.samples.push(millis);
        }
        Ok(())
    }
}

/// What writes these chains, and how many rules it has.
fn text(saved: &str, chains: &[String]) -> Result<(String, usize)> {
    let mut tables: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for chain in chains {
        let (table, name) = chain.split_once('/').context("a chain behind its table")?;
        tables.entry(table).or_default().push(name);
    }
    let (mut text, mut count) = (String::new(), 0);
    for (table, names) in tables {
        let head = format!("*{table}\n");
        let (_, rest) =
            saved.split_once(&head).with_context(|| format!("the kernel has no table {table}"))?;
        let (lines, _) = rest.split_once("\nCOMMIT").context("a table ends in COMMIT")?;
        text += &head;
        for name in &names {
            text += &format!(":{name} - [0:0]\n");
        }
        // A chain that was deleted is not there any more.
        for name in names {
            let head = format!("-A {name} ");
            for rule in lines.lines().filter(|line| line.starts_with(&head)) {
                text += &format!("{rule}\n");
                count += 1;
            }
        }
        text += "COMMIT\n";
    }
    ensure!(count > 0, "the kernel has no rules in {chains:?}");
    Ok((text, count))
}

/// The text with its last endpoint replaced.
fn with_other(text: &str) -> Option<String> {
    const TO: &str = "--to-destination ";
    let at = text.rfind(TO)? + TO.len();
    let port = at + text[at..].find(':')?;
    Some(format!("{}{OTHER}{}", &text[..at], &text[port..]))
}

fn restore(tool: &str, text: &str) -> Result<f64> {
    let began = Instant::now();
    let mut child = Command::new(tool)
        .args(["-w", "5", "--noflush"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    child.stdin.take().context("stdin was asked for")?.write_all(text.as_bytes())?;
    let output = child.wait_with_output()?;
    let millis = began.elapsed().as_secs_f64() * 1000.0;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{tool} does not take what its -save printed: {said}{text}");
    Ok(millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_that_of_the_chains_alone() {
        let saved = "*filter\n:X - [0:0]\n-A X -j DROP\nCOMMIT\n*nat\n:A - [3:4]\n:B - [0:0]\n-A A -j B\n\
                     -A B -p tcp -j DNAT --to-destination 10.128.0.1:8080\n-A C -j B\nCOMMIT\n";
        let (text, rules) = text(saved, &["nat/A".to_owned(), "nat/B".to_owned()]).unwrap();
        assert_eq!(rules, 2);
        let held = "*nat\n:A - [0:0]\n:B - [0:0]\n-A A -j B\n-A B -p tcp -j DNAT --to-destination 10.128.0.1:8080\nCOMMIT\n";
        assert_eq!(text, held);
        assert_eq!(with_other(held), Some(held.replace("10.128.0.1", "10.247.255.254")));
        assert!(super::text(saved, &["nat/D".to_owned()]).is_err());
    }
}
