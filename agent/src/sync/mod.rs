//! The agent's side of the stream: [`session`] decides, [`client`] moves bytes, [`dial`] connects, [`ack`]
//! says what the kernel has.

pub mod ack;
pub mod client;
pub mod dial;
pub mod mailbox;
pub mod session;
pub mod underway;

pub use ack::Programmed;
pub use session::Batch;
