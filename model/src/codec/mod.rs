//! Model to wire and back.
//!
//! [`encode`] makes frames of changes, already in gRPC's framing, to be shared by all streams. [`decode`] takes what a
//! peer sent, checks every limit, and never panics. [`messages`] has the smaller messages, both ways.

pub mod decode;
pub mod encode;
pub mod messages;

pub use decode::{Decoder, Malformed, Told};
pub use encode::{Frames, message, millis, sent};
