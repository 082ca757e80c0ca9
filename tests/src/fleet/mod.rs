//! A fleet without nodes: clusters of any size that no apiserver holds, and agents in thousands that write to no kernel.
//! Benches, faults and soak are made of it.

pub mod clock;
pub mod lab;
pub mod meter;
pub mod replica;
pub mod swarm;
pub mod talk;
pub mod usage;
pub mod world;
