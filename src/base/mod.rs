//! Floor 0: newtypes with units, named bounds, checksums, fixed containers. No I/O, clock, thread or randomness.

pub mod bounds;
pub mod checksum;
pub mod fixed;
pub mod page;
pub mod units;

pub use bounds::*;
pub use checksum::{BlockSum, Digest128, digest_of_block, digest_of_sums, sum_of_block, sum_of_sums};
pub use fixed::{Bitmap, FixedQueue, Marks};
pub use page::{Memory, PageId, PageTable, SlotId};
pub use units::*;
