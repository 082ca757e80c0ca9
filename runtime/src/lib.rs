//! Plumbing that server and agent share: logs, admin HTTP, readiness, shutdown, supervised tasks, backoff, files.
//!
//! No domain word stands here.

pub mod admin;
pub mod alarm;
pub mod backoff;
pub mod exposition;
pub mod files;
pub mod http;
pub mod log;
pub mod ready;
pub mod shutdown;
pub mod tasks;
