//! Plumbing that server and agent share: logs, bounded and admin HTTP, metrics of the process, readiness, shutdown,
//! supervised tasks, backoff, durations, files, TLS.
//!
//! No domain word stands here.

pub mod admin;
pub mod alarm;
pub mod backoff;
pub mod duration;
pub mod exposition;
pub mod files;
pub mod http;
pub mod log;
pub mod process;
pub mod ready;
pub mod secret;
pub mod shutdown;
pub mod tasks;
pub mod tls;
