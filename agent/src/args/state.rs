//! Flags of what is kept: over restarts, and although a server does not have it any more.

use std::path::PathBuf;
use std::time::Duration;

use crate::config::duration;

/// What is kept.
#[derive(Clone, Debug, clap::Args)]
pub struct StateArgs {
    /// Where to save what is held, so that a restart resumes from it and a node that reboots without a server has rules
    /// [default: nowhere]
    #[arg(long, env = "DISTRIBUTARY_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// How long to go on with what has vanished from a server without having been deleted, where it is more than half of all
    /// endpoints, or every Service; 0s: not at all
    #[arg(long, env = "DISTRIBUTARY_HOLD_REMOVALS", value_name = "DURATION", default_value = "1m",
        value_parser = duration::parse)]
    pub hold_removals: Duration,
}
