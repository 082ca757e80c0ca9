//! A network namespace in which tools of the packet filter are run.

use std::io::Write as _;
use std::process::{Child, Command, Stdio};

/// Lives as long as its `sleep`.
pub(crate) struct Namespace {
    holder: Child,
}

impl Namespace {
    /// An empty one, in which this command works. Without root or user namespaces it fails, unless
    /// `DISTRIBUTARY_TEST_ALLOW_SKIP=1` makes it `None`.
    pub(crate) fn new(works: &str, args: &[&str]) -> Option<Self> {
        let mut holder = Command::new("unshare")
            .args(["-Urnm", "sh", "-c", "echo ready; exec sleep 300"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0; 6];
        let made = std::io::Read::read_exact(holder.stdout.as_mut().unwrap(), &mut ready).is_ok();
        let namespace = Self { holder };
        let does = made && namespace.run(works, args, "").0;
        if !does && std::env::var_os("DISTRIBUTARY_TEST_ALLOW_SKIP").is_some_and(|allow| allow == "1") {
            return None;
        }
        assert!(does, "{works} does not work in a namespace of its own");
        Some(namespace)
    }

    /// Runs a program: whether it succeeded, and what it printed then, or complained of.
    pub(crate) fn run(&self, program: &str, args: &[&str], input: &str) -> (bool, String) {
        let mut child = Command::new("nsenter")
            .args(["-t", &self.holder.id().to_string(), "-U", "-n", "-m", "--preserve-credentials"])
            // Where no lock file can be made, none is needed: nobody else is in here.
            .args(["env", "XTABLES_LOCKFILE=/dev/null", program])
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || stdin.write_all(input.as_bytes()));
            let output = child.wait_with_output().unwrap();
            let text = if output.status.success() { output.stdout } else { output.stderr };
            (output.status.success(), String::from_utf8(text).unwrap())
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
