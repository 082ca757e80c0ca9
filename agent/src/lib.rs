//! distributary-agent: holds the table that the servers stream, and programs the node's packet filter with it.

pub mod plan;
