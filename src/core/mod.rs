//! Floor 2: the sans-IO cores. `now` and an input go in, effects come out; no clock, lock, await or randomness, and no
//! allocation after start.

pub mod cache;
pub mod captures;
pub mod changed;
pub mod config;
pub mod group;
pub mod history;
pub mod journal;
pub mod lead;
pub mod messages;
pub mod nbd;
pub mod outbox;
pub mod pages;
pub mod slots;
pub mod snapshots;
pub mod sums;
pub mod window;
