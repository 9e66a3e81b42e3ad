//! Real sites, as an operator runs them: two processes on loopback, their clients, and what can happen to them.

#[path = "../common/checker.rs"]
mod checker;
#[path = "../common/pair.rs"]
mod pair;
#[path = "../common/relay.rs"]
mod relay;

mod adopt;
mod by_value;
mod clients;
mod crashes;
mod damage;
mod extend;
mod grow;
mod images;
mod keys;
mod loss;
mod random;
mod refusals;
mod replace;
mod resize;
mod resync;
mod snapshot_torture;
mod snapshots;
mod soak;
mod split_brain;
mod stopped;
mod switchover;
mod takeover;
mod third;
mod third_copied;
mod third_losses;
mod third_roles;
mod unreadable;
mod upgrade;
mod verify;
mod volumes;
