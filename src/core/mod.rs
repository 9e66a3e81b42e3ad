//! Floor 2: the sans-IO cores. `now` and an input go in, effects come out; no clock, lock, await or randomness, and no
//! allocation after start.

pub mod config;
pub mod messages;
pub mod nbd;
pub mod outbox;
