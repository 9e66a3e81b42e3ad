//! The load generator: what to do next and what it took, apart from how it reaches a volume (over NBD, or from inside the
//! process, below the front).

mod engine;
mod inside;
mod ledger;
mod nbd;
mod read_back;
mod timeline;

pub use engine::{Engine, Outcome, Pattern, Plan, Step};
pub use inside::{InsideError, inside};
pub use ledger::{Ledger, Verdict};
pub use nbd::{
    LoadError, Repaired, changes, changes_seen_by, check, connect_since, digest, over_nbd, repair,
};
pub use read_back::Check;
pub use timeline::Timeline;
