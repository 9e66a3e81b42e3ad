//! Floor 4, feature `sim`: both sites of a pair in one thread, in virtual nanoseconds, from one seed; see
//! `docs/SIMULATOR.md`.

pub mod audit;
pub mod content;
pub mod disk;
pub mod memory;
pub mod rng;
