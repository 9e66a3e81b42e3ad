//! Wire frames between two sites.

/// Why a peer was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RefusalCode {
    Version = 1,
    Group = 2,
    Role = 3,
    Volumes = 4,
    AckLevel = 5,
    SplitBrain = 6,
    ResyncRequired = 7,
    Protocol = 8,
}
