//! A child process that is told what to do: a line of JSON to its stdin, a line of JSON back.

use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, ChildStdout, Command};
use std::thread;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use crate::process::Running;

/// The process. Killed on drop.
#[derive(Debug)]
pub struct Talk {
    name: String,
    process: Running,
    tell: ChildStdin,
    told: BufReader<ChildStdout>,
}

impl Talk {
    /// Starts it on these processors (as taskset lists them), or on all.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(name: &str, processors: Option<&str>, command: &Command) -> Result<Self> {
        let (process, tell, told) = match processors {
            Some(processors) => {
                let pinned =
                    crate::process::prefixed(Command::new("taskset").args(["-c", processors]), command);
                Running::spawn_piped(name, &pinned)?
            }
            None => Running::spawn_piped(name, command)?,
        };
        Ok(Self { name: name.to_owned(), process, tell, told: BufReader::new(told) })
    }

    /// Says something.
    ///
    /// # Errors
    /// When the process has ended.
    pub fn tell(&mut self, order: &impl Serialize) -> Result<()> {
        let line = serde_json::to_string(order)?;
        let told = writeln!(self.tell, "{line}").and_then(|()| self.tell.flush());
        told.with_context(|| format!("{} has ended; its log ends\n{}", self.name, self.process.tail()))
    }

    /// The answer to the oldest order that has none yet.
    ///
    /// # Errors
    /// When the process has ended.
    pub fn answer<T: DeserializeOwned>(&mut self) -> Result<T> {
        let mut line = String::new();
        if self.told.read_line(&mut line)? == 0 {
            bail!("{} has ended; its log ends\n{}", self.name, self.process.tail());
        }
        serde_json::from_str(&line).with_context(|| format!("{} answers {line:?}", self.name))
    }

    /// Says something, and waits for the answer.
    ///
    /// # Errors
    /// When the process has ended.
    pub fn ask<T: DeserializeOwned>(&mut self, order: &impl Serialize) -> Result<T> {
        self.tell(order)?;
        self.answer()
    }

    /// To signal it, or read its log.
    pub fn process(&mut self) -> &mut Running {
        &mut self.process
    }
}

/// The other end, in the process that is told: the lines of its stdin.
///
/// # Errors
/// When no thread can be started.
pub fn lines() -> Result<mpsc::UnboundedReceiver<String>> {
    let (tell, lines) = mpsc::unbounded_channel();
    let read = move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if tell.send(line).is_err() {
                break;
            }
        }
    };
    thread::Builder::new().name("stdin".into()).spawn(read)?;
    Ok(lines)
}

/// Answers.
///
/// # Errors
/// When nobody listens.
pub fn answer(answer: &impl Serialize) -> Result<()> {
    let line = serde_json::to_string(answer)?;
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{line}")?;
    Ok(stdout.flush()?)
}
