//! Lockstep: block storage whose every acknowledged write is held by two sites.
//!
//! The floors, lowest first; a module imports only from its own floor and those below (`tests/tidy.rs` proves it):
//! [`base`] 0, [`format`] 1, [`core`] 2, [`reactor`] 3, `io` and `sim` 4, `node` 5, `cli` 6.

pub mod base;
pub mod cli;
pub mod core;
pub mod format;
pub mod io;
pub mod node;
pub mod reactor;
#[cfg(feature = "sim")]
pub mod sim;
