//! Who programs a node, and by what: everything that a row says in its name.

use std::fmt;

/// How the agent programs the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Backend {
    /// iptables on nf_tables
    IptablesNft,
    /// iptables on x_tables
    IptablesLegacy,
    /// nftables
    Nftables,
}

/// How kube-proxy does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// iptables, on nf_tables.
    Iptables,
    /// nftables.
    Nftables,
}

/// The tools that read and write lists of rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tools {
    pub(crate) save: &'static str,
    pub(crate) restore: &'static str,
}

const NFT: Tools = Tools { save: "iptables-nft-save", restore: "iptables-nft-restore" };
const LEGACY: Tools = Tools { save: "iptables-legacy-save", restore: "iptables-legacy-restore" };

impl Backend {
    /// All that there are.
    pub(crate) const ALL: [Self; 3] = [Self::IptablesNft, Self::IptablesLegacy, Self::Nftables];

    /// The agent's arguments for it.
    pub(crate) fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::IptablesNft => &["--iptables-flavour", "nft"],
            Self::IptablesLegacy => &["--iptables-flavour", "legacy"],
            Self::Nftables => &["--backend", "nftables"],
        }
    }

    /// The tools for its rules; `None` where they are maps, which have no order.
    pub(crate) fn tools(self) -> Option<Tools> {
        match self {
            Self::IptablesNft => Some(NFT),
            Self::IptablesLegacy => Some(LEGACY),
            Self::Nftables => None,
        }
    }

    /// What a first sync may take by design §8.
    pub(crate) fn first_sync(self, services: usize) -> &'static str {
        match (self, services) {
            (Self::IptablesNft, 1000) => "≤ 0.6 s",
            (Self::IptablesNft, 5000) => "≤ 3 s",
            (Self::Nftables, 1000) => "≤ 0.25 s",
            (Self::Nftables, 5000) => "≤ 1 s",
            _ => "–",
        }
    }

    /// What one changed endpoint may take by design §8.
    pub(crate) fn change(self) -> &'static str {
        match self {
            Self::IptablesNft => "p50 ≤ floor + 10 ms",
            Self::IptablesLegacy => "–",
            Self::Nftables => "p50 ≤ 15 ms",
        }
    }

    /// The modes of kube-proxy that stand beside it.
    pub(crate) fn beside(self) -> &'static [Mode] {
        match self {
            Self::IptablesNft => &[Mode::Iptables, Mode::Nftables],
            Self::IptablesLegacy => &[],
            Self::Nftables => &[Mode::Nftables],
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::IptablesNft => "iptables-nft",
            Self::IptablesLegacy => "iptables-legacy",
            Self::Nftables => "nftables",
        })
    }
}

impl Mode {
    /// Both.
    pub(crate) const ALL: [Self; 2] = [Self::Iptables, Self::Nftables];

    /// The tools for its rules; `None` where they are maps, which have no order.
    pub(crate) fn tools(self) -> Option<Tools> {
        match self {
            Self::Iptables => Some(NFT),
            Self::Nftables => None,
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
        })
    }
}
