//! The kernel's packet filter, by the tools that all programs of a node share.

pub mod nft;
mod process;
pub mod tools;

use std::io;
use std::process::ExitStatus;

/// Why the kernel did not take, or tell, something.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The tool is not there, or cannot be started.
    #[error(
        "{program} cannot be run: {source} (install the Debian package {}, or the like)",
        package(program)
    )]
    Exec {
        /// Which one.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// A lock, memory or a permission is missing: nothing is wrong with what was to be written.
    #[error("{program}: {message}")]
    Node {
        /// Which one.
        program: String,
        /// What it said.
        message: String,
    },
    /// What was to be written is too much for one section (a socket buffer in a user namespace).
    #[error("{program}: {message}")]
    TooLong {
        /// Which one.
        program: String,
        /// What it said.
        message: String,
    },
    /// Somebody else has written the rules again: nothing was written.
    #[error("another program has written the {family} rules in kube-proxy's form")]
    Rival {
        /// Which ones.
        family: &'static str,
    },
    /// The tool, or the kernel, refuses what was to be written.
    #[error("{program} refuses it ({status}): {message}")]
    Refused {
        /// Which one.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        message: String,
    },
}

/// What has a program.
fn package(program: &str) -> &'static str {
    if program == nft::PROGRAM { "nftables" } else { "iptables" }
}

/// What the reconciler needs of the kernel, for the nftables table of one family.
pub trait Table: Send {
    /// The table, as `nft -n list table` prints it; empty: there is none.
    fn list(&mut self) -> impl Future<Output = Result<String, KernelError>> + Send;
    /// Feeds text to `nft -f -`: all of it is in the kernel then, or nothing.
    fn apply(&mut self, text: &str) -> impl Future<Output = Result<(), KernelError>> + Send;
    /// Whether the table is there. Cheap, unlike `list`.
    fn is_there(&mut self) -> impl Future<Output = Result<bool, KernelError>> + Send;
}

/// What can be read of the kernel, for one family. Who is given no more cannot write.
pub trait Readable: Send {
    /// Everything that a table holds, as `iptables-save` prints it; of all of our tables.
    fn save(&mut self) -> impl Future<Output = Result<String, KernelError>> + Send;
}

/// What the reconciler needs of the kernel, for one family.
pub trait Kernel: Readable {
    /// Feeds text to `iptables-restore --noflush`. After an error some sections of it may be in place.
    fn restore(&mut self, text: &str) -> impl Future<Output = Result<(), KernelError>> + Send;
    /// Whether the tables look untouched: a chain or a jump of each is there. Cheap, unlike `save`.
    fn in_place(&mut self) -> impl Future<Output = Result<bool, KernelError>> + Send;
    /// Whether the chain is there that a running kube-proxy makes again when it is gone. Cheap.
    fn has_canary(&mut self) -> impl Future<Output = Result<bool, KernelError>> + Send;
}
