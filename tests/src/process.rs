//! Child processes that cannot outlive their test, with their output in a file.

use std::{
    env, fs,
    fs::{File, OpenOptions},
    io,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio},
    sync::{
        OnceLock,
        mpsc::{Sender, channel},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{sys::signal::kill, unistd::Pid};
use tempfile::TempDir;

use crate::{janitor, wait};

pub use nix::sys::signal::Signal;

/// A running child process. It is killed and reaped on drop; when that happens because a test panics, the end of its
/// log is printed.
#[derive(Debug)]
pub struct Running {
    name: String,
    child: Child,
    log: PathBuf,
    _scratch: TempDir,
}

impl Running {
    /// Starts `command` with stdin closed and both outputs in a log file of its own. `name` is for messages.
    ///
    /// The program, arguments, variables and working directory of `command` are kept; its stdio is not, nor would
    /// `env_clear` be.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn spawn(name: &str, command: &Command) -> Result<Self> {
        Self::spawn_with(name, command, |wrapped, file| {
            wrapped.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
            Ok(())
        })
    }

    /// The same with stdin and stdout for the caller. Only stderr goes to the log.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn spawn_piped(name: &str, command: &Command) -> Result<(Self, ChildStdin, ChildStdout)> {
        let mut running = Self::spawn_with(name, command, |wrapped, file| {
            wrapped.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(file);
            Ok(())
        })?;
        let pipes = (running.child.stdin.take(), running.child.stdout.take());
        let (Some(stdin), Some(stdout)) = pipes else { bail!("{name} has no pipes") };
        Ok((running, stdin, stdout))
    }

    fn spawn_with(
        name: &str,
        command: &Command,
        connect: impl FnOnce(&mut Command, File) -> Result<()>,
    ) -> Result<Self> {
        let scratch = scratch(name)?;
        let log = scratch.path().join(format!("{name}.log"));
        let file = OpenOptions::new().create(true).append(true).open(&log)?;
        let mut wrapped = dying_with_us(command);
        connect(&mut wrapped, file)?;
        let child =
            spawn_from_lasting_thread(wrapped).with_context(|| format!("start {name}: {command:?}"))?;
        Ok(Self { name: name.to_owned(), child, log, _scratch: scratch })
    }

    /// The process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Where the output goes. The file goes away with the process.
    #[must_use]
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// Everything the process has printed so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// The last 40 lines that the process has printed.
    #[must_use]
    pub fn tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// Waits until the process has printed a line that contains `text`, and returns that line.
    ///
    /// # Panics
    /// When it has not by the deadline, or when it ended without.
    #[track_caller]
    pub fn wait_for_line(&mut self, text: &str, timeout: Duration) -> String {
        let found = wait::within(timeout, || {
            let ended = !self.is_running();
            let line = self.log().lines().find(|line| line.contains(text)).map(str::to_owned);
            if line.is_some() || ended { Some(line) } else { None }
        });
        match found.flatten() {
            Some(line) => line,
            None => panic!("{} did not print {text:?}; its log ends with\n{}", self.name, self.tail()),
        }
    }

    /// Whether the process has not ended.
    pub fn is_running(&mut self) -> bool {
        self.status().is_none()
    }

    /// How the process ended, if it has.
    pub fn status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("the child is ours to wait for")
    }

    /// Waits for the process to end by itself.
    pub fn wait(&mut self, timeout: Duration) -> Option<ExitStatus> {
        wait::within(timeout, || self.status())
    }

    /// Sends a signal. Does nothing when the process has ended.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        // An id that has been waited for may be somebody else's by now.
        if self.is_running() {
            let id = i32::try_from(self.child.id()).expect("process ids are positive i32");
            kill(Pid::from_raw(id), signal).with_context(|| format!("{signal} to {}", self.name))?;
        }
        Ok(())
    }

    /// Kills at once and reaps.
    pub fn kill9(&mut self) {
        // Both only fail for a process that has ended, which is what is wanted.
        self.child.kill().ok();
        self.child.wait().ok();
    }

    /// Asks to end by SIGTERM and waits for it.
    ///
    /// # Errors
    /// When the process does not end in time; it is then killed.
    pub fn terminate(&mut self, timeout: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        if let Some(status) = self.wait(timeout) {
            return Ok(status);
        }
        self.kill9();
        bail!("{} did not end within {timeout:?} of SIGTERM; its log ends with\n{}", self.name, self.tail())
    }
}

impl Drop for Running {
    #[expect(clippy::print_stderr, reason = "the test harness shows it with the failed test")]
    fn drop(&mut self) {
        self.kill9();
        if thread::panicking() {
            eprintln!("--- the log of {} ends with\n{}\n---", self.name, self.tail());
        }
    }
}

/// Runs a command to its end, without a log.
///
/// # Errors
/// When it cannot be started or exits with anything but 0; the error has its stderr.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("start {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The binary of this workspace with that name, built by the same cargo profile as the running test.
///
/// # Panics
/// When it has not been built.
#[must_use]
pub fn binary(name: &str) -> PathBuf {
    let test = env::current_exe().expect("a running program has a file");
    // target/PROFILE/{deps,examples}/test-HASH, or target/PROFILE/program
    match test.ancestors().skip(1).take(2).map(|folder| folder.join(name)).find(|file| file.is_file()) {
        Some(file) => file,
        None => panic!(
            "{name} is not beside {}: run `cargo build --workspace` (with --release if the test has it) first",
            test.display()
        ),
    }
}

/// A program of the control plane (`etcd`, `kube-apiserver`, `kube-proxy`). It is built if need be, which takes minutes.
///
/// # Errors
/// When it cannot be built.
pub fn control_plane_program(name: &str) -> Result<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/controlplane");
    let folder = run(Command::new(script).arg(name))?;
    let program = Path::new(folder.trim()).join(name);
    if !program.is_file() {
        bail!("{} is not there", program.display());
    }
    Ok(program)
}

/// A temporary directory, removed on drop or else by the janitor.
///
/// # Errors
/// When it cannot be made.
pub fn scratch(name: &str) -> Result<TempDir> {
    let folder = tempfile::Builder::new().prefix(&format!("distributary-{name}-")).tempdir()?;
    janitor::remove_directory(folder.path());
    Ok(folder)
}

/// The kernel kills what `setpriv` has started when the thread that spawned it ends.
fn dying_with_us(command: &Command) -> Command {
    prefixed(Command::new("setpriv").args(["--pdeathsig", "KILL"]), command)
}

/// `command` as the last arguments of `prefix`, with the variables of both and the working directory of `command`.
pub(crate) fn prefixed(prefix: &Command, command: &Command) -> Command {
    let mut whole = Command::new(prefix.get_program());
    whole.args(prefix.get_args()).arg(command.get_program()).args(command.get_args());
    for (key, value) in prefix.get_envs().chain(command.get_envs()) {
        match value {
            Some(value) => whole.env(key, value),
            None => whole.env_remove(key),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        whole.current_dir(folder);
    }
    whole
}

type Order = (Command, Sender<io::Result<Child>>);

/// Spawns from a thread that lasts as long as this process: a test's own thread would take with it what later tests
/// share.
fn spawn_from_lasting_thread(command: Command) -> Result<Child> {
    static SPAWNER: OnceLock<Sender<Order>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, orders) = channel::<Order>();
        thread::Builder::new()
            .name("spawner".to_owned())
            .spawn(move || {
                for (mut command, reply) in orders {
                    // Nobody is waiting any more only if the asking thread is gone.
                    reply.send(command.spawn()).ok();
                }
            })
            .expect("a thread can be had");
        sender
    });
    let (reply, answer) = channel();
    spawner.send((command, reply)).ok().context("the spawner ended")?;
    Ok(answer.recv().context("the spawner ended")??)
}
