//! The agent's side of the stream. [`session`] knows what is held and what a server's messages do to it, [`driver`] which
//! server to go to and when; neither has a socket or a clock. [`client`] does what the driver orders, [`dial`] connects.

pub mod ack;
pub mod audit;
pub mod choice;
pub mod client;
pub mod credential;
pub mod dial;
pub mod driver;
mod link;
pub mod mailbox;
pub mod resolve;
#[cfg(test)]
mod scripted;
pub mod session;
pub mod underway;

pub use ack::Programmed;
pub use driver::Settings;
pub use session::Batch;
