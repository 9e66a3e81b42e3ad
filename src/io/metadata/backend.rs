//! The database's file, read and written by a thread that gives way: it shares its core with reactors that offer theirs while
//! they wait, and the kernel takes a core back from it only every few milliseconds.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::ops::Bound;
use std::time::{Duration, Instant};

use redb::backends::FileBackend;
use redb::{BackendError, DatabaseError, StorageBackend};

/// Longest that a table's thread works before it offers its core: what a reactor that offered its own then waits for it. Some
/// insertions' worth, so that asking costs little.
const WORK_MAX: Duration = Duration::from_micros(50);

thread_local! {
    static OFFERED_AT: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Offers the core to whoever waits for it, if that is long ago.
pub(super) fn give_way() {
    OFFERED_AT.with(|offered_at| {
        if offered_at.get().is_none_or(|at| at.elapsed() >= WORK_MAX) {
            std::thread::yield_now();
            offered_at.set(Some(Instant::now()));
        }
    });
}

#[derive(Debug)]
pub(super) struct Backend(FileBackend);

impl Backend {
    pub fn new(file: File) -> Result<Backend, DatabaseError> {
        FileBackend::new(file).map(Backend)
    }
}

type Position = Bound<u64>;

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)?;
        give_way();
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)?;
        give_way();
        Ok(())
    }

    fn close(&self) -> io::Result<()> {
        self.0.close()
    }

    fn try_lock_range(&self, start: Position, end: Position) -> Result<bool, BackendError> {
        self.0.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Position, end: Position) -> Result<bool, BackendError> {
        self.0.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Position, end: Position) -> Result<(), BackendError> {
        self.0.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Position, end: Position) -> Result<(), BackendError> {
        self.0.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Position, end: Position) -> Result<(), BackendError> {
        self.0.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Position, end: Position) -> Result<bool, BackendError> {
        self.0.query_lock_range(start, end)
    }
}
