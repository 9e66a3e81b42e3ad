//! The database's file as it lies on the disk, looked at by the thread that writes it, between two commits: what redb reads anew it reads
//! from there, and what it would write stays in memory.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::{Bound, Range};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use redb::{BackendError, Database, StorageBackend};
use rustix::fs::{Advice, fadvise};

use super::backend::give_way;
use super::store::StoreError;

/// Pages that are looked at again are few; the kernel is asked for the others once.
const CACHE_BYTES: usize = 16 << 20;

const CHUNK_BYTES: u64 = 4096;

type Chunk = Box<[u8; CHUNK_BYTES as usize]>;

/// The file, under what was written over it.
#[derive(Debug)]
struct Looked {
    file: File,
    over: Mutex<Over>,
}

#[derive(Debug)]
struct Over {
    length: u64,
    /// As far as what is not in a chunk is the file's; behind that are zeros.
    of_file: u64,
    chunks: BTreeMap<u64, Chunk>,
}

/// Opens it without changing it, or minding that it is open already. The locks of the handle that writes it are untouched: they belong to
/// that handle's open file.
pub(super) fn of_file(path: &Path) -> Result<Database, StoreError> {
    let file = File::open(path)?;
    // What is on the disk is asked for, not what the kernel remembers of it. It may remember all the same.
    fadvise(&file, 0, None, Advice::DontNeed).map_err(io::Error::from)?;
    let length = file.metadata()?.len();
    let over = Over { length, of_file: length, chunks: BTreeMap::new() };
    let looked = Looked { file, over: Mutex::new(over) };
    Ok(redb::Builder::new().set_cache_size(CACHE_BYTES).create_with_backend(looked)?)
}

impl Looked {
    fn over(&self) -> MutexGuard<'_, Over> {
        self.over.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The part of the file in this chunk.
    fn chunk_of_file(&self, over: &Over, index: u64) -> io::Result<Chunk> {
        let mut chunk = Box::new([0; CHUNK_BYTES as usize]);
        let length = over.of_file.saturating_sub(index * CHUNK_BYTES).min(CHUNK_BYTES);
        self.file.read_exact_at(&mut chunk[..length as usize], index * CHUNK_BYTES)?;
        Ok(chunk)
    }
}

/// Where a range touches chunks: the chunk, the place in it, and the place in the range.
fn parts(offset: u64, length: usize) -> impl Iterator<Item = (u64, usize, Range<usize>)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let position = offset + at as u64;
        let within = (position % CHUNK_BYTES) as usize;
        let range = at..length.min(at + CHUNK_BYTES as usize - within);
        at = range.end;
        (!range.is_empty()).then_some((position / CHUNK_BYTES, within, range))
    })
}

type Position = Bound<u64>;

impl StorageBackend for Looked {
    fn len(&self) -> io::Result<u64> {
        Ok(self.over().length)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let over = self.over();
        let end = offset + out.len() as u64;
        if end > over.length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut parts_of = parts(offset, out.len());
        if end <= over.of_file && parts_of.all(|(index, ..)| !over.chunks.contains_key(&index)) {
            self.file.read_exact_at(out, offset)?;
        } else {
            for (index, within, range) in parts(offset, out.len()) {
                let taken = within..within + range.len();
                match over.chunks.get(&index) {
                    Some(chunk) => out[range].copy_from_slice(&chunk[taken]),
                    None => out[range].copy_from_slice(&self.chunk_of_file(&over, index)?[taken]),
                }
            }
        }
        give_way();
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut over = self.over();
        if length < over.length {
            over.chunks.split_off(&length.div_ceil(CHUNK_BYTES));
            if let Some(chunk) = over.chunks.get_mut(&(length / CHUNK_BYTES)) {
                chunk[(length % CHUNK_BYTES) as usize..].fill(0);
            }
            over.of_file = over.of_file.min(length);
        }
        over.length = length;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut over = self.over();
        for (index, within, range) in parts(offset, data.len()) {
            let mut chunk = match over.chunks.remove(&index) {
                Some(chunk) => chunk,
                None => self.chunk_of_file(&over, index)?,
            };
            chunk[within..within + range.len()].copy_from_slice(&data[range]);
            over.chunks.insert(index, chunk);
        }
        Ok(())
    }

    // Nobody else sees what is written here.
    fn try_lock_range(&self, _: Position, _: Position) -> Result<bool, BackendError> {
        Ok(true)
    }

    fn try_lock_shared_range(&self, _: Position, _: Position) -> Result<bool, BackendError> {
        Ok(true)
    }

    fn lock_range(&self, _: Position, _: Position) -> Result<(), BackendError> {
        Ok(())
    }

    fn lock_shared_range(&self, _: Position, _: Position) -> Result<(), BackendError> {
        Ok(())
    }

    fn unlock_range(&self, _: Position, _: Position) -> Result<(), BackendError> {
        Ok(())
    }

    fn query_lock_range(&self, _: Position, _: Position) -> Result<bool, BackendError> {
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::*;
    use crate::core::messages::{EntriesFrom, MetadataAnswer, MetadataFault, MetadataOp};
    use crate::format::metadata::{Captured, Change, kept_at};
    use crate::format::tables::entry_at;
    use crate::io::metadata::store::tests::Site;

    fn entry(lba: u64) -> Captured {
        let (volume, snapshot) = (VolumeId(0), UpdateNumber(4));
        Captured { volume, lba: Lba(lba), snapshot, slot: Slot(lba), sum: BlockSum(lba as u32 + 1) }
    }

    fn look_up(site: &mut Site, lba: u64) -> Option<Slot> {
        let (snapshot, volume) = (UpdateNumber(4), VolumeId(0));
        site.ask(MetadataOp::LookUp { snapshot, volume, lba: Lba(lba), count: 1 });
        kept_at(&site.row.0[0], 0).map(|kept| kept.slot)
    }

    #[test]
    fn what_lies_on_the_disk_is_looked_at_and_the_open_tables_stay_what_they_are() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut site = Site::with_a_snapshot(&folder);
        site.commit(9, &(2..80).map(|lba| Change::Captured(entry(lba))).collect::<Vec<_>>());
        assert_eq!(site.ask(MetadataOp::Check), MetadataAnswer::Checked { entries: 79 });
        let file = File::options().read(true).write(true).open(folder.path().join("metadata.redb"));
        let file = file.expect("the file");
        let mut content = vec![0; file.metadata().expect("its length").len() as usize];
        file.read_exact_at(&mut content, 0).expect("read");
        let value = entry(77).value();
        let places: Vec<usize> = (0..content.len()).filter(|&at| content[at..].starts_with(&value)).collect();
        let flip = |at: usize, bit: u8| file.write_all_at(&[content[at] ^ bit], at as u64).expect("written");
        places.iter().for_each(|&at| flip(at, 1));
        let checked = site.store.perform(&MetadataOp::Check, &mut site.row);
        let error = checked.expect_err("it is damaged");
        assert_eq!(error.fault(), MetadataFault::Corrupt);
        assert!(site.store.describe(&error).contains("metadata.redb"), "{error}");
        // Commits go on, and so do looks.
        site.commit(10, &[Change::Captured(entry(200))]);
        assert_eq!([look_up(&mut site, 77), look_up(&mut site, 200)], [77, 200].map(|slot| Some(Slot(slot))));
        // Whatever else flips, nothing else is believed.
        for at in (0..content.len()).step_by(16_381) {
            let folder = tempfile::tempdir().expect("a folder");
            let mut site = Site::with_a_snapshot(&folder);
            let path = folder.path().join("metadata.redb");
            let file = File::options().read(true).write(true).open(path).expect("the file");
            let mut byte = [0];
            if file.read_exact_at(&mut byte, at as u64).is_err() {
                break;
            }
            file.write_all_at(&[byte[0] ^ 4], at as u64).expect("written");
            match site.store.perform(&MetadataOp::Check, &mut site.row) {
                Ok(answer) => assert_eq!(answer, MetadataAnswer::Checked { entries: 1 }, "at {at}"),
                Err(error) => assert_eq!(error.fault(), MetadataFault::Corrupt, "at {at}: {error}"),
            }
        }
    }

    #[test]
    fn entries_come_row_by_row_each_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut site = Site::with_a_snapshot(&folder);
        for first in (2..1000).step_by(100) {
            let lbas = first..1000.min(first + 100);
            site.commit(9, &lbas.map(|lba| Change::Captured(entry(lba))).collect::<Vec<_>>());
        }
        let (mut from, mut found) = (Some(EntriesFrom::default()), Vec::new());
        while let Some(row) = from {
            let MetadataAnswer::Entries { count, next } = site.ask(MetadataOp::Entries { from: row }) else {
                panic!("it was asked for entries")
            };
            assert!(count > 0 && next.is_none_or(|next| next > row));
            let entries = (0..count as usize).map(|index| entry_at(&site.row.0[0], index).expect("sound"));
            found.extend(entries.map(|entry| entry.lba.0));
            from = next;
        }
        assert_eq!(found, (1..1000).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_written_over_the_file_is_read_and_the_file_is_not_written() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        std::fs::write(&path, vec![7; 10_000]).expect("written");
        let over = Over { length: 10_000, of_file: 10_000, chunks: BTreeMap::new() };
        let looked = Looked { file: File::open(&path).expect("opened"), over: Mutex::new(over) };
        let read = |offset: u64, length: usize| {
            let mut bytes = vec![0; length];
            looked.read(offset, &mut bytes).map(|()| bytes)
        };
        looked.write(4000, &[1; 200]).expect("written");
        assert_eq!(read(3999, 202).expect("read"), [&[7][..], &[1; 200], &[7]].concat());
        assert!(read(9_999, 2).is_err());
        looked.set_len(12_000).expect("longer");
        assert_eq!(read(9_999, 2).expect("read"), [7, 0]);
        looked.set_len(4100).expect("shorter");
        looked.set_len(8192).expect("longer");
        assert_eq!(read(4099, 4093).expect("read"), [&[1][..], &[0; 4092]].concat());
        assert_eq!(std::fs::read(&path).expect("read"), vec![7; 10_000]);
    }
}
