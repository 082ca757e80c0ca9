//! `nft`, one process a time.

use super::process::run;
use super::{KernelError, Table};
use crate::nftables::{CANARY, Family, TABLE, ip};

/// The tool.
pub const PROGRAM: &str = "nft";

/// The table of one family.
#[derive(Clone, Copy, Debug)]
pub struct Nft(pub Family);

/// What the tool calls itself.
///
/// # Errors
/// When it cannot be run.
pub async fn version() -> Result<String, KernelError> {
    run(PROGRAM, &["--version"], None).await
}

/// Whether the kernel would take this text. Nothing is written.
///
/// # Errors
/// Why it would not.
pub async fn check(text: &str) -> Result<(), KernelError> {
    run(PROGRAM, &["-c", "-f", "-"], Some(text)).await.map(|_| ())
}

/// Every chain of the host without its rules, as `nft list chains` prints them.
///
/// # Errors
/// When the kernel does not tell.
pub async fn chains() -> Result<String, KernelError> {
    run(PROGRAM, &["list", "chains"], None).await
}

/// Removes a table, of whoever; `false`: there was none.
///
/// # Errors
/// When the kernel does not do that.
pub async fn remove(family: Family, table: &str) -> Result<bool, KernelError> {
    found(run(PROGRAM, &["delete", "table", ip(family), table], None).await.map(|_| true), false)
}

/// What there is not is not an error.
fn found<T>(result: Result<T, KernelError>, without: T) -> Result<T, KernelError> {
    match result {
        Err(KernelError::Refused { message, .. }) if message.contains("No such file or directory") => {
            Ok(without)
        }
        result => result,
    }
}

impl Table for Nft {
    async fn list(&mut self) -> Result<String, KernelError> {
        found(run(PROGRAM, &["-n", "list", "table", ip(self.0), TABLE], None).await, String::new())
    }

    async fn apply(&mut self, text: &str) -> Result<(), KernelError> {
        run(PROGRAM, &["-f", "-"], Some(text)).await.map(|_| ())
    }

    async fn is_there(&mut self) -> Result<bool, KernelError> {
        found(run(PROGRAM, &["list", "set", ip(self.0), TABLE, CANARY], None).await.map(|_| true), false)
    }
}
