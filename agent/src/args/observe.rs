//! Flags of shadow mode.

use std::time::Duration;

use clap::ArgAction::Set;

use crate::config::duration;
use crate::config::value::switch;

/// How it is compared instead of written.
#[derive(Clone, Debug, clap::Args)]
pub struct ObserveArgs {
    /// Write nothing: compare what would be written with what the kernel holds, beside a kube-proxy that runs, and log
    /// every difference in meaning. Metrics are at 127.0.0.1:7402 unless told otherwise, health is not served
    #[arg(long, env = "DISTRIBUTARY_OBSERVE", action = Set, value_parser = switch,
        default_value = "false", default_missing_value = "true", num_args = 0..=1, require_equals = true)]
    pub observe: bool,
    /// How often it is compared where nothing changes
    #[arg(long, env = "DISTRIBUTARY_OBSERVE_PERIOD", value_name = "DURATION", default_value = "1m",
        value_parser = duration::parse)]
    pub observe_period: Duration,
    /// End after so long: with status 0 if nothing differs, else with 1 [default: never]
    #[arg(long, env = "DISTRIBUTARY_OBSERVE_FOR", value_name = "DURATION", requires = "observe",
        value_parser = duration::parse)]
    pub observe_for: Option<Duration>,
}
