//! placeholder
/// An event.
#[derive(Debug)]
pub enum Event {}
