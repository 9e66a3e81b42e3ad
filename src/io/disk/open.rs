//! Opening and making the files and block devices of a site: O_DIRECT, locked, of known size.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FallocateFlags, FileType, FlockOperation, Mode, OFlags, SeekFrom, StatxFlags};
use rustix::io::Errno;

use crate::base::BLOCK_BYTES;

/// Bytes of one write when a file is pre-written: large enough for a disk's sequential rate.
const PRE_WRITE_BYTES: usize = 1 << 20;

/// How long a lock is waited for whose holder has ended. The kernel takes an io_uring apart in the background, so a process
/// that was killed holds its files for some milliseconds after it is gone, or as long as a flush takes: beside somebody who writes
/// gigabytes to the same disk, more than ten seconds.
const LOCK_PATIENCE: Duration = Duration::from_secs(60);

/// How long a device is waited for that is in use: a process that has ended may have it, but rather it is mounted, and the kernel does
/// not say by whom.
const DEVICE_PATIENCE: Duration = Duration::from_secs(10);

const LOCK_RETRY: Duration = Duration::from_millis(5);

/// Why a file or device cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error("{path}: does not exist; `lockstep format` makes the files of a site")]
    Missing { path: PathBuf },
    #[error("{path}: exists already; it is left as it is (`--force` overwrites it)")]
    Exists { path: PathBuf },
    #[error(
        "{path}: its filesystem cannot do direct I/O ({reason}); put it on ext4, xfs, btrfs or a block device, not on \
         overlay or a network mount"
    )]
    NoDirectIo { path: PathBuf, reason: &'static str },
    #[error("{path}: locked by another process; is this site running already?")]
    Locked { path: PathBuf },
    #[error(
        "{path}: a process that has ended, or that cannot be seen from here, holds it for more than {} s; see whether the site runs in another \
         container, or what keeps the disk busy, and try again",
        LOCK_PATIENCE.as_secs()
    )]
    NotLetGo { path: PathBuf },
    #[error(
        "{path}: the device is in use: mounted, part of a RAID, LVM or swap, or by this site, which runs or was killed a moment ago; free it \
         first, or try again"
    )]
    DeviceBusy { path: PathBuf },
    #[error("{path}: neither a file nor a block device")]
    NotADisk { path: PathBuf },
    #[error("{path}: {have} bytes, {need} are needed")]
    TooSmall { path: PathBuf, have: u64, need: u64 },
    #[error(
        "{path}: {have} bytes, the configuration says {need}, and a file is adopted as a whole: configure that size, or cut the file"
    )]
    TooLarge { path: PathBuf, have: u64, need: u64 },
    #[error("{path}: cannot {action}: {source}")]
    System { path: PathBuf, action: &'static str, source: io::Error },
}

/// What `create` does about the space of a file; a device has all of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// Only the size is set; blocks are allocated as they are written.
    Sparse,
    /// Blocks are allocated up to this byte, so that no write fails for want of space; behind it only the size is set.
    ReservedTo(u64),
}

/// An opened file or device: direct, and locked against every other process until it is dropped.
#[derive(Debug)]
pub struct Disk {
    fd: OwnedFd,
    path: PathBuf,
    bytes: u64,
    device: bool,
    /// Space that is asked for is not reserved: it is allocated as blocks are written.
    sparse: bool,
}

impl Disk {
    /// Opens an existing file or device for reading and writing.
    pub fn open(path: &Path) -> Result<Disk, DiskError> {
        Disk::with_flags(path, OFlags::empty())
    }

    /// Makes a file of `bytes`, or takes the device of that name if it is large enough. An existing file is refused, or
    /// emptied if `overwrite`. A device is refused without `overwrite`: nobody can tell whether it holds anything.
    pub fn create(path: &Path, bytes: u64, space: Space, overwrite: bool) -> Result<Disk, DiskError> {
        assert!(bytes.is_multiple_of(BLOCK_BYTES as u64), "a disk of {bytes} bytes is not whole blocks");
        let existing = rustix::fs::stat(path).ok().map(|stat| FileType::from_raw_mode(stat.st_mode));
        if existing.is_some() && !overwrite {
            return Err(DiskError::Exists { path: path.into() });
        }
        if existing == Some(FileType::BlockDevice) {
            let disk = Disk::open(path)?;
            if disk.bytes < bytes {
                return Err(DiskError::TooSmall { path: path.into(), have: disk.bytes, need: bytes });
            }
            return Ok(disk);
        }
        let fresh = existing.is_none();
        // Emptied only under the lock: the file may be a running site's.
        let create = if fresh { OFlags::CREATE | OFlags::EXCL } else { OFlags::empty() };
        let made = Disk::with_flags(path, create).and_then(|disk| disk.size_to(bytes, space));
        // What turned out to be there, a link that leads nowhere perhaps, was not made here.
        if fresh && !matches!(made, Ok(_) | Err(DiskError::Exists { .. })) {
            let _ = std::fs::remove_file(path);
        }
        made
    }

    /// Opens a file of exactly `bytes`, or a device that has as many, for what it holds; space that it lacks is allocated like a new
    /// file's.
    pub fn adopt(path: &Path, bytes: u64, space: Space) -> Result<Disk, DiskError> {
        let disk = Disk::open(path)?;
        if disk.bytes < bytes {
            return Err(DiskError::TooSmall { path: path.into(), have: disk.bytes, need: bytes });
        }
        if !disk.device && disk.bytes != bytes {
            return Err(DiskError::TooLarge { path: path.into(), have: disk.bytes, need: bytes });
        }
        match disk.device {
            true => Ok(disk),
            false => disk.allocate(bytes, space),
        }
    }

    /// How long a device is, without claiming it: whoever has it may go on.
    pub fn bytes_of_device(path: &Path) -> Result<u64, DiskError> {
        let error =
            |action, errno: Errno| DiskError::System { path: path.into(), action, source: errno.into() };
        let device = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| error("open it", errno))?;
        rustix::fs::seek(&device, SeekFrom::End(0)).map_err(|errno| error("find its size", errno))
    }

    fn allocate(self, bytes: u64, space: Space) -> Result<Disk, DiskError> {
        match space {
            Space::Sparse => {}
            Space::ReservedTo(end) => self.reserve(0..end.min(bytes))?,
        }
        Ok(self)
    }

    /// Allocates the blocks of a file there, so that no write fails for want of space.
    pub fn reserve(&self, bytes: Range<u64>) -> Result<(), DiskError> {
        reserve(&self.fd, bytes).map_err(|errno| self.failed("reserve its space", errno))
    }

    /// Makes a file `to` bytes long, of which those from `from` on read as zeros, and take no space.
    pub fn lengthen(&mut self, from: u64, to: u64) -> Result<(), DiskError> {
        self.shorten(from)?;
        rustix::fs::ftruncate(&self.fd, to).map_err(|errno| self.failed("set its size", errno))?;
        self.bytes = to;
        Ok(())
    }

    /// Makes a file `to` bytes long, and gives back the space of what was behind.
    pub fn shorten(&mut self, to: u64) -> Result<(), DiskError> {
        assert!(
            !self.device && to.is_multiple_of(BLOCK_BYTES as u64),
            "{to} bytes of {}",
            self.path.display()
        );
        rustix::fs::ftruncate(&self.fd, to).map_err(|errno| self.failed("set its size", errno))?;
        self.bytes = to;
        Ok(())
    }

    fn size_to(mut self, bytes: u64, space: Space) -> Result<Disk, DiskError> {
        let sized = rustix::fs::ftruncate(&self.fd, 0).and_then(|()| rustix::fs::ftruncate(&self.fd, bytes));
        sized.map_err(|errno| self.failed("set its size", errno))?;
        self.bytes = bytes;
        self.allocate(bytes, space)
    }

    fn with_flags(path: &Path, flags: OFlags) -> Result<Disk, DiskError> {
        let error =
            |action, errno: Errno| DiskError::System { path: path.into(), action, source: errno.into() };
        let device = match rustix::fs::stat(path).map(|stat| FileType::from_raw_mode(stat.st_mode)) {
            Ok(FileType::BlockDevice) => true,
            Ok(FileType::RegularFile) => false,
            Ok(_) => return Err(DiskError::NotADisk { path: path.into() }),
            Err(Errno::NOENT) if flags.contains(OFlags::CREATE) => false,
            Err(Errno::NOENT) => return Err(DiskError::Missing { path: path.into() }),
            Err(errno) => return Err(error("look at it", errno)),
        };
        // On a device O_EXCL (without O_CREAT) claims it against mounts and other users of the block layer.
        let exclusive = if device { OFlags::EXCL } else { OFlags::empty() };
        let all = OFlags::RDWR | OFlags::CLOEXEC | OFlags::DIRECT | flags | exclusive;
        let opened =
            patiently(DEVICE_PATIENCE, Errno::BUSY, || rustix::fs::open(path, all, Mode::RUSR | Mode::WUSR));
        let fd = opened.map_err(|errno| match errno {
            Errno::INVAL => {
                DiskError::NoDirectIo { path: path.into(), reason: "the kernel refuses O_DIRECT" }
            }
            Errno::BUSY => DiskError::DeviceBusy { path: path.into() },
            Errno::EXIST => DiskError::Exists { path: path.into() },
            errno => error("open it", errno),
        })?;
        let lock = || match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) if holder_lives(&fd) => Ok(false),
            result => result.map(|()| true),
        };
        match patiently(LOCK_PATIENCE, Errno::WOULDBLOCK, lock) {
            Ok(true) => {}
            Ok(false) => return Err(DiskError::Locked { path: path.into() }),
            Err(Errno::WOULDBLOCK) => return Err(DiskError::NotLetGo { path: path.into() }),
            Err(errno) => return Err(error("lock it", errno)),
        }
        check_alignment(&fd, path)?;
        // The size of a device is where it ends; fstat says 0.
        let bytes = rustix::fs::seek(&fd, SeekFrom::End(0)).map_err(|errno| error("find its size", errno))?;
        Ok(Disk { fd, path: path.into(), bytes, device, sparse: false })
    }

    fn failed(&self, action: &'static str, errno: Errno) -> DiskError {
        DiskError::System { path: self.path.clone(), action, source: errno.into() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whole blocks.
    pub fn blocks(&self) -> u64 {
        self.bytes / BLOCK_BYTES as u64
    }

    pub fn is_device(&self) -> bool {
        self.device
    }

    /// Blocks of it are allocated as they are written, whatever is asked for.
    pub fn sparse(self, sparse: bool) -> Disk {
        Disk { sparse, ..self }
    }

    /// Whether space of it can be reserved, and is to be.
    pub fn reserves(&self) -> bool {
        !self.device && !self.sparse
    }

    /// The descriptor; the lock goes with it.
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// Writes zeros over the first `bytes`, then makes them and the file's size durable, so that later writes in place
    /// change no metadata and a flush is only a flush. `progress` is told the bytes written so far.
    pub fn pre_write(&self, bytes: u64, progress: impl FnMut(u64)) -> Result<(), DiskError> {
        self.write_zeros(0, bytes, progress)
    }

    /// The same from `from` to `to`, whole blocks.
    pub fn write_zeros(&self, from: u64, to: u64, mut progress: impl FnMut(u64)) -> Result<(), DiskError> {
        let whole = |bytes: u64| bytes.is_multiple_of(BLOCK_BYTES as u64);
        assert!(
            whole(from) && whole(to) && from <= to && to <= self.bytes,
            "{from} to {to} of {}",
            self.bytes
        );
        let bytes = to - from;
        let spacious = vec![0; PRE_WRITE_BYTES + BLOCK_BYTES];
        let zeros = &spacious[spacious.as_ptr().align_offset(BLOCK_BYTES)..][..PRE_WRITE_BYTES];
        let mut written = 0;
        while written < bytes {
            let length = (bytes - written).min(PRE_WRITE_BYTES as u64) as usize;
            match rustix::io::pwrite(&self.fd, &zeros[..length], from + written) {
                Ok(0) => return Err(self.failed("write to it", Errno::NOSPC)),
                // Direct writes go by the device's sectors; the next one starts on a whole block again.
                Ok(count) => written += (count / BLOCK_BYTES * BLOCK_BYTES) as u64,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(self.failed("write to it", errno)),
            }
            progress(written);
        }
        self.sync()
    }

    /// What is from `from` to `to` reads as zeros from here on: by the drive's own means if it has them, else by writing.
    pub fn erase(&self, from: u64, to: u64, progress: impl FnMut(u64)) -> Result<(), DiskError> {
        let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.fd, flags, from, to - from) {
            Ok(()) => Ok(()),
            Err(_) => self.write_zeros(from, to, progress),
        }
    }

    /// Writes whole blocks from `block` on, outside any reactor: superblocks and headers at format.
    pub fn write_blocks(&self, block: u64, data: &[u8]) -> Result<(), DiskError> {
        assert!(data.len().is_multiple_of(BLOCK_BYTES), "{} bytes are not whole blocks", data.len());
        let mut spacious = vec![0; data.len() + BLOCK_BYTES];
        let start = spacious.as_ptr().align_offset(BLOCK_BYTES);
        let aligned = &mut spacious[start..][..data.len()];
        aligned.copy_from_slice(data);
        let mut written = 0;
        while written < data.len() {
            let offset = block * BLOCK_BYTES as u64 + written as u64;
            match rustix::io::pwrite(&self.fd, &aligned[written..], offset) {
                Ok(count) if count >= BLOCK_BYTES => written += count / BLOCK_BYTES * BLOCK_BYTES,
                Ok(_) => return Err(self.failed("write to it", Errno::NOSPC)),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(self.failed("write to it", errno)),
            }
        }
        Ok(())
    }

    /// Reads whole blocks from `block` on, outside any reactor.
    pub fn read_blocks(&self, block: u64, data: &mut [u8]) -> Result<(), DiskError> {
        assert!(data.len().is_multiple_of(BLOCK_BYTES), "{} bytes are not whole blocks", data.len());
        let mut spacious = vec![0; data.len() + BLOCK_BYTES];
        let start = spacious.as_ptr().align_offset(BLOCK_BYTES);
        let aligned = &mut spacious[start..][..data.len()];
        let mut read = 0;
        while read < aligned.len() {
            let offset = block * BLOCK_BYTES as u64 + read as u64;
            match rustix::io::pread(&self.fd, &mut aligned[read..], offset) {
                Ok(count) if count >= BLOCK_BYTES => read += count / BLOCK_BYTES * BLOCK_BYTES,
                Ok(_) => {
                    let need = (block * BLOCK_BYTES as u64) + data.len() as u64;
                    return Err(DiskError::TooSmall { path: self.path.clone(), have: self.bytes, need });
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(self.failed("read from it", errno)),
            }
        }
        data.copy_from_slice(aligned);
        Ok(())
    }

    /// Data and metadata, durably.
    pub fn sync(&self) -> Result<(), DiskError> {
        rustix::fs::fsync(&self.fd).map_err(|errno| self.failed("flush it", errno))
    }

    /// Whether the drive beneath says that it may lose completed writes at power loss; `None` if nothing says either.
    pub fn volatile_cache(&self) -> Option<bool> {
        let stat = rustix::fs::fstat(&self.fd).ok()?;
        let device = if self.device { stat.st_rdev } else { stat.st_dev };
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let directory = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
        // A partition has no queue; its disk, one level up, has.
        let said = ["queue/write_cache", "../queue/write_cache"]
            .iter()
            .find_map(|file| std::fs::read_to_string(directory.join(file)).ok())?;
        match said.trim() {
            "write back" => Some(true),
            "write through" => Some(false),
            _ => None,
        }
    }
}

/// A filesystem that cannot reserve allocates as blocks are written.
pub(super) fn reserve(file: impl AsFd, bytes: Range<u64>) -> Result<(), Errno> {
    if bytes.is_empty() {
        return Ok(());
    }
    match rustix::fs::fallocate(file, FallocateFlags::empty(), bytes.start, bytes.end - bytes.start) {
        Err(Errno::OPNOTSUPP) => Ok(()),
        reserved => reserved,
    }
}

/// Tries again while the answer is `busy` and there is time.
fn patiently<T>(
    patience: Duration,
    busy: Errno,
    mut attempt: impl FnMut() -> Result<T, Errno>,
) -> Result<T, Errno> {
    let until = Instant::now() + patience;
    loop {
        match attempt() {
            Err(errno) if errno == busy && Instant::now() < until => std::thread::sleep(LOCK_RETRY),
            result => return result,
        }
    }
}

/// Whether the process that holds the lock is known to run: there is no point in waiting for it. False where /proc/locks
/// does not tell.
fn holder_lives(fd: &OwnedFd) -> bool {
    let (Ok(stat), Ok(locks)) = (rustix::fs::fstat(fd), std::fs::read_to_string("/proc/locks")) else {
        return false;
    };
    let (major, minor) = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
    let file = format!("{major:02x}:{minor:02x}:{}", stat.st_ino);
    locks.lines().any(|line| {
        // "1: FLOCK  ADVISORY  WRITE 4186 fe:00:6742097 0 EOF", proc_locks(5)
        let mut fields = line.split_whitespace().skip(1);
        let (kind, holder, locked) = (fields.next(), fields.nth(2), fields.next());
        let state = holder.map(|holder| std::fs::read_to_string(format!("/proc/{holder}/stat")));
        let runs = matches!(state, Some(Ok(stat)) if !stat.contains(") Z "));
        kind == Some("FLOCK") && locked == Some(file.as_str()) && runs
    })
}

/// Some filesystems take O_DIRECT and then want more than our blocks' alignment; the kernel says so since 6.1.
fn check_alignment(fd: &OwnedFd, path: &Path) -> Result<(), DiskError> {
    let Ok(stat) = rustix::fs::statx(fd.as_fd(), "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN) else {
        return Ok(());
    };
    if !StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::DIOALIGN) {
        return Ok(());
    }
    let (memory, offset) = (stat.stx_dio_mem_align as usize, stat.stx_dio_offset_align as usize);
    let reason = if memory == 0 || offset == 0 {
        "the kernel says that it would fall back to buffered I/O"
    } else if !BLOCK_BYTES.is_multiple_of(memory) || !BLOCK_BYTES.is_multiple_of(offset) {
        "it wants I/O in units larger than 4096 bytes"
    } else {
        return Ok(());
    };
    Err(DiskError::NoDirectIo { path: path.into(), reason })
}
