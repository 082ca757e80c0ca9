//! `iptables-save`, `iptables-restore` and `iptables`, one process a time.

use super::process::run;
use super::{Kernel, KernelError, Readable};
use crate::iptables::{self, Family, Flavour, Table};

/// The tools of one family and flavour.
#[derive(Clone, Debug)]
pub struct Tools {
    /// `iptables`, `iptables-nft`, `ip6tables-legacy` and so on.
    name: String,
}

impl Tools {
    /// By name: the flavour that `iptables` is where none is wanted.
    pub fn new(family: Family, flavour: Option<Flavour>) -> Self {
        let base = match family {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        };
        let name = match flavour {
            None => base.to_owned(),
            Some(Flavour::Nft) => format!("{base}-nft"),
            Some(Flavour::Legacy) => format!("{base}-legacy"),
        };
        Self { name }
    }

    /// Which flavour the tool is.
    ///
    /// # Errors
    /// When it cannot be run.
    pub async fn flavour(&self) -> Result<Flavour, KernelError> {
        let version = run(&self.name, &["--version"], None).await?;
        Ok(if version.contains("legacy") { Flavour::Legacy } else { Flavour::Nft })
    }

    /// Whether the mangle table has such a chain.
    pub async fn has_mangle_chain(&self, chain: &str) -> bool {
        run(&self.name, &["-w", "5", "-t", "mangle", "-S", chain], None).await.is_ok()
    }

    async fn finds(&self, looked_for: &[&str]) -> Result<bool, KernelError> {
        match run(&self.name, &[&["-w", "5"], looked_for].concat(), None).await {
            Ok(_) => Ok(true),
            Err(KernelError::Refused { .. }) => Ok(false),
            Err(e) => Err(e),
        }
    }
}

impl Readable for Tools {
    async fn save(&mut self) -> Result<String, KernelError> {
        let program = format!("{}-save", self.name);
        let mut all = String::new();
        for table in Table::ALL {
            all.push_str(&run(&program, &["-t", table.as_str()], None).await?);
        }
        Ok(all)
    }
}

impl Kernel for Tools {
    async fn restore(&mut self, text: &str) -> Result<(), KernelError> {
        let program = format!("{}-restore", self.name);
        run(&program, &["-w", "5", "--noflush"], Some(text)).await.map(|_| ())
    }

    async fn in_place(&mut self) -> Result<bool, KernelError> {
        for looked_for in iptables::WATCHED {
            if !self.finds(looked_for).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn has_canary(&mut self) -> Result<bool, KernelError> {
        self.finds(iptables::CANARY).await
    }
}
