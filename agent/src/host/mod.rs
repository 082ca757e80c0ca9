//! The machine that the agent runs on, beside its packet filter.

pub mod addresses;
pub mod families;
pub mod nftables;
pub mod sysctl;

/// What the machine is called; empty where that cannot be read.
pub fn name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}
