//! The agent's side of the stream: [`session`] decides, [`client`] moves bytes, [`ack`] says what the kernel has.

pub mod ack;
pub mod client;
pub mod mailbox;
pub mod session;
pub mod underway;

pub use ack::Programmed;
pub use session::Batch;
