//! Network namespaces by name and by file descriptor.
//!
//! The kernel lets root make them, and everybody who is root in a user namespace of his own. For the latter the tests
//! are run below `scripts/rootless`, and programs of this crate call [`enter_rootless`] first.

use std::{
    env,
    ffi::OsStr,
    fs::{self, File},
    io::{self, Write},
    os::unix::process::CommandExt,
    panic,
    path::Path,
    process::{self, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use anyhow::{Context, Result, ensure};
use nix::{
    sched::{CloneFlags, setns},
    unistd::Uid,
};
use tempfile::TempDir;

use crate::{
    janitor,
    process::{Running, prefixed, run, scratch},
};

/// What the shell does inside the new user, network and mount namespaces before our program starts again: `ip netns`
/// and the xtables lock want a writable `/run`, and a new namespace's loopback is down.
const FURNISH: &str = r#"mount -t tmpfs tmpfs /run && ip link set lo up && exec "$0" "$@""#;

/// A network namespace that is deleted on drop.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    file: File,
    scratch: TempDir,
}

impl Namespace {
    /// Makes one. Its loopback is up.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn new() -> Result<Self> {
        Ok(Self::several(1)?.remove(0))
    }

    /// Makes several for the price of one or two processes.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn several(count: usize) -> Result<Vec<Self>> {
        world()?;
        let names: Vec<String> = (0..count).map(|_| unique_name()).collect();
        names.iter().for_each(|name| janitor::remove_namespace(name));
        let lines: Vec<String> = names.iter().map(|name| format!("netns add {name}")).collect();
        ip_batch(&mut Command::new("ip"), &lines)?;
        let made: Vec<Self> = names.into_iter().map(Self::open).collect::<Result<_>>()?;
        for namespace in &made {
            namespace.ip(&["link set lo up".to_owned()])?;
        }
        Ok(made)
    }

    fn open(name: String) -> Result<Self> {
        let path = Path::new("/run/netns").join(&name);
        let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        let scratch = scratch(&name)?;
        Ok(Self { name, file, scratch })
    }

    /// The name that `ip netns` knows it by.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A command that will run inside, for those who want to set more than its arguments.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        prefixed(&self.entering(), &Command::new(program))
    }

    /// iptables-legacy takes its lock in a file of this namespace alone, so that tests do not wait for each other.
    fn entering(&self) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]);
        command.env("XTABLES_LOCKFILE", self.scratch.path().join("xtables.lock"));
        command
    }

    /// Runs a program inside, to its end, and gives back what it printed.
    ///
    /// # Errors
    /// When it cannot be started or exits with anything but 0; the error has its stderr.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        run(self.command(program).args(arguments))
    }

    /// Runs a whole command line inside, split at blanks: `shell("iptables -t nat -S")`. There is no quoting.
    ///
    /// # Errors
    /// As for [`Namespace::run`].
    pub fn shell(&self, line: &str) -> Result<String> {
        let mut words = line.split_whitespace();
        let program = words.next().context("an empty command line")?;
        self.run(program, &words.collect::<Vec<_>>())
    }

    /// Runs a script of `sh` inside, to its end, and gives back what it printed.
    ///
    /// # Errors
    /// As for [`Namespace::run`].
    pub fn script(&self, script: &str) -> Result<String> {
        self.run("sh", &["-c", script])
    }

    /// Runs a program inside with `input` on its stdin and gives back everything about how it went.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn feed(&self, program: &str, arguments: &[&str], input: &str) -> Result<Output> {
        feed(self.command(program).args(arguments), input)
    }

    /// Starts a program inside that goes on running. `command` is as it would be outside; [`Running::spawn`] says what
    /// of it is kept.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, name: &str, command: &Command) -> Result<Running> {
        Running::spawn(name, &prefixed(&self.entering(), command))
    }

    /// Runs a closure on a thread inside, and returns its result. Sockets that it makes stay of this namespace
    /// wherever they are used later.
    ///
    /// # Panics
    /// When the closure does.
    pub fn within<R: Send>(&self, closure: impl FnOnce() -> R + Send) -> R {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.file, CloneFlags::CLONE_NEWNET)
                    .expect("world() has checked that we may enter it");
                closure()
            });
            inside.join().unwrap_or_else(|cause| panic::resume_unwind(cause))
        })
    }

    /// Writes `/proc/sys/net/<key>` of this namespace, e.g. `ipv4/ip_forward`.
    ///
    /// # Errors
    /// When the kernel does not have or not take it.
    pub fn set_sysctl(&self, key: &str, value: &str) -> Result<()> {
        // The kernel resolves this path by the namespace of the thread.
        self.within(|| fs::write(Path::new("/proc/sys/net").join(key), value))
            .with_context(|| format!("sysctl net/{key}={value}"))
    }

    /// Reads `/proc/sys/net/<key>` of this namespace.
    ///
    /// # Errors
    /// When the kernel does not have it.
    pub fn sysctl(&self, key: &str) -> Result<String> {
        let value = self
            .within(|| fs::read_to_string(Path::new("/proc/sys/net").join(key)))
            .with_context(|| format!("sysctl net/{key}"))?;
        Ok(value.trim().to_owned())
    }

    /// Runs lines of `ip` arguments (`addr add …`) inside, all in one process.
    ///
    /// # Errors
    /// When `ip` refuses one of them.
    pub fn ip(&self, lines: &[String]) -> Result<()> {
        ip_batch(Command::new("ip").args(["-n", &self.name]), lines)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Best effort: the janitor tries again.
        run(Command::new("ip").args(["netns", "delete", &self.name])).ok();
    }
}

/// Checks that this process may make namespaces.
///
/// # Errors
/// When it is neither root nor root in a user namespace of its own; the text says what to do.
pub fn world() -> Result<()> {
    ensure!(
        Uid::effective().is_root(),
        "network namespaces need root: run as root, or below scripts/rootless (`scripts/rootless cargo test -p distributary-e2e`)"
    );
    Ok(())
}

/// Makes this process root of a world of its own, unless it is root: starts the same program with the same arguments
/// again below `unshare`. To be called first in `main`, before there are threads.
///
/// # Errors
/// When the kernel does not allow it. On success it returns only as root.
pub fn enter_rootless() -> Result<()> {
    if Uid::effective().is_root() {
        return Ok(());
    }
    let program = env::current_exe()?;
    let error = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "--mount", "--", "sh", "-c", FURNISH])
        .arg(program)
        .args(env::args_os().skip(1))
        .exec();
    Err(error).context("start again below unshare")
}

fn unique_name() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("dy-{}-{}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

fn ip_batch(ip: &mut Command, lines: &[String]) -> Result<()> {
    let output = feed(ip.args(["-batch", "-"]), &lines.join("\n"))?;
    ensure!(
        output.status.success(),
        "ip refused: {}\nof the batch\n{}",
        String::from_utf8_lossy(&output.stderr).trim(),
        lines.join("\n")
    );
    Ok(())
}

fn feed(command: &mut Command, input: &str) -> Result<Output> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {command:?}"))?;
    let mut pipe = child.stdin.take().expect("stdin was asked for");
    // Written beside the reading of its output: a program that prints as it reads must not block us.
    thread::scope(|scope| {
        scope.spawn(move || match pipe.write_all(input.as_bytes()) {
            // A program that ends early says why on stderr.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => other,
        });
        child.wait_with_output().context("wait for its end")
    })
}
