//! The limits of the contract. A service beyond them is not sent; a receiver of such a thing ends the stream.

use std::time::Duration;

/// Largest frame, in bytes, also after decompression.
pub const FRAME_BYTES: usize = 1 << 20;
/// What senders aim for, in bytes.
pub const FRAME_AIM_BYTES: usize = 64 << 10;
/// Endpoints of one service.
pub const ENDPOINTS_PER_SERVICE: usize = 65_536;
/// Ports of one service, and of one endpoint.
pub const PORTS: usize = 100;
/// Bytes of one string.
pub const STRING_BYTES: usize = 256;
/// Endpoints that a stream may carry at a time.
pub const ENDPOINTS_PER_STREAM: usize = 1_000_000;
/// Bytes of one message from an agent.
pub const AGENT_MESSAGE_BYTES: usize = 256 << 10;
/// Ages of a family that one change carries.
pub const AGES: usize = 1_000;
/// Oldest change of a slice of which an age is told.
pub const OLDEST_AGE: Duration = Duration::from_secs(600);
/// The bits of the sender's clock that a message has.
pub const SENT_MASK: u32 = (1 << 14) - 1;
/// What these bits count.
pub const SENT_TICK: Duration = Duration::from_millis(10);
/// Entries of any other list in a record (addresses, source ranges, hints).
pub const LIST: usize = 1_000;
