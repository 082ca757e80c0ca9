//! One process of a tool: what it is fed, how long it may take, and what it says as a typed error.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::KernelError;

/// A tool that needs longer than this will not come back.
const PATIENCE: Duration = Duration::from_secs(300);
/// Exit status of the tools for a lock that is held, or another lack of resources.
const RESOURCE_PROBLEM: i32 = 4;

/// Runs a tool, and says what it printed.
///
/// # Errors
/// What it said, as whose fault that is.
pub(super) async fn run(program: &str, args: &[&str], input: Option<&str>) -> Result<String, KernelError> {
    let exec = |source| KernelError::Exec { program: program.to_owned(), source };
    let mut child = Command::new(program)
        .args(args)
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(exec)?;
    let stdin = child.stdin.take();
    let feed = async {
        if let (Some(mut stdin), Some(input)) = (stdin, input) {
            // A tool that refuses stops to read: what it says is the error then.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
    };
    let done = async { tokio::join!(feed, child.wait_with_output()).1 };
    let output = match tokio::time::timeout(PATIENCE, done).await {
        Ok(output) => output.map_err(exec)?,
        Err(_) => {
            let message = format!("not done after {} s", PATIENCE.as_secs());
            return Err(KernelError::Node { program: program.to_owned(), message });
        }
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(classify(program, output.status, &String::from_utf8_lossy(&output.stderr)))
}

fn classify(program: &str, status: ExitStatus, said: &str) -> KernelError {
    let program = program.to_owned();
    let lines = said.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("Try `"));
    let message = lines.take(3).collect::<Vec<_>>().join("; ");
    let has = |what: &str| said.contains(what);
    if has("Message too long") {
        return KernelError::TooLong { program, message };
    }
    let node = status.code() == Some(RESOURCE_PROBLEM) && !has("RULE_APPEND failed") && !has("CHAIN_")
        || has("Permission denied")
        || has("Operation not permitted")
        || has("you must be root")
        || has("xtables lock")
        || has("No buffer space")
        || has("Cannot allocate memory")
        || has("No space left");
    match node {
        true => KernelError::Node { program, message },
        false => KernelError::Refused { program, status, message },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn what_the_tool_says_tells_whose_fault_it_is() {
        let classify =
            |code: i32, said: &str| classify("iptables-restore", ExitStatus::from_raw(code << 8), said);
        let lock = "Another app is currently holding the xtables lock; still 1s to go\n";
        assert!(matches!(classify(4, lock), KernelError::Node { .. }));
        assert!(matches!(
            classify(
                4,
                "iptables-restore v1.8.9 (nf_tables): Could not fetch rule set generation id: Permission denied (you must be root)"
            ),
            KernelError::Node { .. }
        ));
        assert!(matches!(classify(1, "sendmsg() failed: Message too long"), KernelError::TooLong { .. }));
        let refused = classify(
            2,
            "iptables-restore v1.8.9 (nf_tables): Couldn't load target `X':No such file\n\nError occurred at line: 3\nTry `iptables-restore -h' or\n",
        );
        assert_eq!(
            refused.to_string(),
            "iptables-restore refuses it (exit status: 2): iptables-restore v1.8.9 (nf_tables): Couldn't load target \
             `X':No such file; Error occurred at line: 3"
        );
    }
}
