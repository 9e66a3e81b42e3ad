//! The control plane: a Unix socket of mode 0600, one JSON request a line, answered by plain threads that ask the group
//! through rings of one place, so that nothing on a reactor waits for it.

mod client;
mod extend;
mod keys;
mod line;
mod links;
mod protocol;
mod role;
mod rollback;
mod schedule;
mod scrub;
mod server;
mod snapshots;
mod status;
mod third;
mod verify;

pub use client::{Client, ClientError};
pub use keys::{KeysReloaded, KeysShown};
pub use line::{AdminLine, GroupLine, Line, LineError, Lines};
pub use links::{LinkLine, LinkSeen, Links};
pub use protocol::{DifferentialShown, Goal, Request, Response, SnapshotList, SnapshotShown};
pub use role::RoleSeen;
pub use scrub::{BadShown, PartShown, ScrubShown, TablesShown};
pub use server::{Control, ControlError};
pub use status::{
    BranchShown, PeerStatus, Pending, Rates, Sample, Sampler, SplitShown, StageLoad, Status, VolumeShown,
    Watermarks,
};
pub use third::{ResumedShown, SourceShown, ThirdShown};
pub use verify::{DifferingShown, Verified};
