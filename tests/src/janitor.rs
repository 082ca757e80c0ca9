//! Cleaning up after a test process that could not do it itself: killed, aborted, or ended with statics alive.
//!
//! The janitor is a shell that reads commands from a pipe and runs them once the pipe is closed, which the kernel does
//! for us however we end. Processes are not its business: those carry a parent-death signal (see [`crate::process`]),
//! which, unlike a process id noted earlier, cannot hit a stranger.

use std::{
    io::Write,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Mutex, OnceLock, PoisonError},
};

/// Collects lines until the pipe closes, then runs them, last one first. The pause lets processes that die together
/// with us let go of their files; a directory that was in use a moment ago is tried again.
const SCRIPT: &str = r#"
trap '' INT TERM HUP QUIT
tasks=
while IFS= read -r line; do tasks="$line
$tasks"; done
for attempt in 1 2 3; do
    printf '%s' "$tasks" | while IFS= read -r line; do eval "$line"; done
    sleep 0.3
done
"#;

/// Removes a directory with all that is in it when this process has ended.
pub fn remove_directory(path: &Path) {
    later(&format!("rm -rf -- {}", quoted(&path.to_string_lossy())));
}

/// Deletes a network namespace when this process has ended.
pub fn remove_namespace(name: &str) {
    later(&format!("ip netns delete {}", quoted(name)));
}

fn later(task: &str) {
    // Never waited for: it ends after us.
    static JANITOR: OnceLock<Mutex<Child>> = OnceLock::new();
    let mut janitor =
        JANITOR.get_or_init(|| Mutex::new(hire())).lock().unwrap_or_else(PoisonError::into_inner);
    let pipe = janitor.stdin.as_mut().expect("stdin was asked for");
    writeln!(pipe, "{task}").expect("the janitor outlives us");
}

fn hire() -> Child {
    // A group of its own, so that Ctrl-C on the tests does not stop it; its output would keep a pipe of cargo's open.
    Command::new("sh")
        .args(["-c", SCRIPT])
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("a POSIX shell is there")
}

fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}
