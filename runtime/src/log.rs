//! Logs on standard error.

use std::io::IsTerminal;

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

/// How much is logged, and in which form.
#[derive(Clone, Debug, clap::Args)]
pub struct LogArgs {
    /// What to log: a level, or directives such as info,distributary_agent=debug
    #[arg(long, env = "DISTRIBUTARY_LOG", default_value = "info", global = true)]
    pub log: String,
    /// Form of the log
    #[arg(long, env = "DISTRIBUTARY_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text, global = true)]
    pub log_format: LogFormat,
}

/// Form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// A line for people.
    Text,
    /// A JSON object a line.
    Json,
}

impl LogArgs {
    /// Begins to log. Call it once.
    ///
    /// # Errors
    /// When the directives are not understood, or logs go elsewhere already.
    pub fn start(&self) -> anyhow::Result<()> {
        let filter = EnvFilter::try_new(&self.log).map_err(|e| {
            anyhow::anyhow!("--log {:?} is neither a level nor a list of directives: {e}", self.log)
        })?;
        let builder = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal());
        let started = match self.log_format {
            LogFormat::Text => builder.with_target(false).try_init(),
            LogFormat::Json => builder.json().flatten_event(true).try_init(),
        };
        started.map_err(|e| anyhow::anyhow!("logs cannot be started: {e}"))
    }
}
