//! Making a site: volumes that read as zeros on both sites, their checksums, the differential volume, the journal, and the
//! metadata that says what all of it belongs to.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;

use crate::base::BLOCK_BYTES;
use crate::core::config::VolumeSpec;
use crate::format::superblock::{SUPERBLOCK_SLOTS, Superblock};
use crate::io::disk::{Disk, DiskError, Space};
use crate::io::metadata::{Metadata, MetadataError, SiteRecord};
use crate::node::config::{Config, FileSpace};

/// How much of a device's beginning and end must read as zeros before it is taken without `--force`: where partition
/// tables, filesystems and RAID members have their labels.
const DEVICE_LABEL_BYTES: u64 = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    #[error(
        "{}: there already; nothing was changed. `lockstep format --force` destroys what they hold",
        shown(.paths)
    )]
    Exists { paths: Vec<PathBuf> },
    #[error(
        "{path}: the device holds data in its {place} MiB. A volume starts empty, since both sites must be equal; \
         `lockstep format --force` erases the device"
    )]
    DeviceHoldsData { path: PathBuf, place: &'static str },
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    #[error("{path}: cannot {action}: {source}")]
    System { path: PathBuf, action: &'static str, source: std::io::Error },
}

fn shown(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// What is being written, and how many bytes of it are.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    pub path: &'a Path,
    pub done: u64,
    pub total: u64,
}

/// One file or device to make.
struct Part<'a> {
    path: &'a Path,
    bytes: u64,
    space: FileSpace,
}

/// What a site of this configuration records of itself.
pub fn record(config: &Config) -> SiteRecord {
    let volumes = config.volumes.iter();
    SiteRecord {
        group: config.group.name.clone(),
        site: config.site.name.clone(),
        id: config.site.id,
        journal_blocks: config.journal.bytes / BLOCK_BYTES as u64,
        differential_blocks: config.differential.bytes / BLOCK_BYTES as u64,
        volumes: volumes.map(|v| VolumeSpec { name: v.name.clone(), blocks: v.blocks() }).collect(),
    }
}

/// Makes everything, or nothing if any of it exists and `force` is not given. The journal's superblock is the last thing
/// written and the first thing destroyed, so a site that was formatted halfway does not start.
pub fn format(
    config: &Config,
    force: bool,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<(), FormatError> {
    refuse_existing(config, force)?;
    make_folders(config)?;

    let journal = Part { path: &config.journal.path, bytes: config.journal.bytes, space: FileSpace::Written };
    let mut parts = Vec::new();
    for volume in &config.volumes {
        parts.push(Part { path: &volume.path, bytes: volume.bytes, space: volume.space });
        parts.push(Part {
            path: &volume.checksums,
            bytes: volume.checksum_bytes(),
            space: FileSpace::Written,
        });
    }
    let differential = &config.differential;
    parts.push(Part { path: &differential.path, bytes: differential.bytes, space: differential.space });

    if config.replication.is_some() {
        let bytes = config.staging_blocks() * BLOCK_BYTES as u64;
        parts.push(Part { path: &config.staging, bytes, space: FileSpace::Sparse });
    }

    // A running site holds these locks, so nothing of it is touched.
    let journal_disk = make(&journal, force)?;
    journal_disk.write_blocks(0, &[0; SUPERBLOCK_SLOTS as usize * BLOCK_BYTES])?;
    journal_disk.sync()?;
    if force && config.metadata.exists() {
        std::fs::remove_file(&config.metadata).map_err(system(&config.metadata, "remove it"))?;
    }
    let mut held = Vec::new();
    for part in &parts {
        let disk = make(part, force)?;
        if disk.is_device() {
            erase(&disk, part, progress)?;
        } else if part.space == FileSpace::Written {
            pre_write(&disk, part, progress)?;
        }
        disk.sync()?;
        held.push(disk);
    }
    pre_write(&journal_disk, &journal, progress)?;
    drop(Metadata::create(&config.metadata, &record(config))?);
    write_superblocks(config, &journal_disk)?;
    sync_folders(config)
}

/// Every path of the site, in the order in which they are made.
fn paths(config: &Config) -> Vec<&Path> {
    let volumes = config.volumes.iter().flat_map(|volume| [volume.path.as_path(), &volume.checksums]);
    let rest = [config.differential.path.as_path(), &config.journal.path, &config.metadata];
    let staging = config.replication.as_ref().map(|_| config.staging.as_path());
    volumes.chain(rest).chain(staging).collect()
}

fn is_device(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_block_device())
}

fn refuse_existing(config: &Config, force: bool) -> Result<(), FormatError> {
    if force {
        return Ok(());
    }
    // `symlink_metadata`, so that a dangling link counts as there.
    let existing =
        paths(config).into_iter().filter(|path| path.symlink_metadata().is_ok() && !is_device(path));
    let existing: Vec<PathBuf> = existing.map(Path::to_owned).collect();
    if !existing.is_empty() {
        return Err(FormatError::Exists { paths: existing });
    }
    for path in paths(config).into_iter().filter(|path| is_device(path)) {
        refuse_data(path)?;
    }
    Ok(())
}

fn refuse_data(path: &Path) -> Result<(), FormatError> {
    let disk = Disk::open(path)?;
    let label_blocks = DEVICE_LABEL_BYTES / BLOCK_BYTES as u64;
    let last = disk.blocks().saturating_sub(label_blocks);
    for (place, block) in [("first", 0), ("last", last)] {
        let length = label_blocks.min(disk.blocks()) as usize * BLOCK_BYTES;
        let mut data = vec![0; length];
        disk.read_blocks(block, &mut data)?;
        if data.iter().any(|byte| *byte != 0) {
            return Err(FormatError::DeviceHoldsData { path: path.to_owned(), place });
        }
    }
    Ok(())
}

fn system(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> FormatError {
    let path = path.to_owned();
    move |source| FormatError::System { path, action, source }
}

fn folders(config: &Config) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = paths(config)
        .into_iter()
        .filter(|path| !is_device(path))
        .filter_map(|path| path.parent().map(Path::to_owned))
        .chain([config.site.directory.clone()])
        .map(|folder| if folder.as_os_str().is_empty() { PathBuf::from(".") } else { folder })
        .collect();
    folders.sort();
    folders.dedup();
    folders
}

fn make_folders(config: &Config) -> Result<(), FormatError> {
    for folder in folders(config) {
        std::fs::create_dir_all(&folder).map_err(system(&folder, "make the folder"))?;
    }
    Ok(())
}

/// The names of the files are durable too.
fn sync_folders(config: &Config) -> Result<(), FormatError> {
    for folder in folders(config) {
        let synced = std::fs::File::open(&folder).and_then(|folder| folder.sync_all());
        synced.map_err(system(&folder, "flush the folder"))?;
    }
    Ok(())
}

/// Devices were looked at by [`refuse_existing`], or are to be overwritten.
fn make(part: &Part<'_>, force: bool) -> Result<Disk, FormatError> {
    let space = match part.space {
        FileSpace::Sparse => Space::Sparse,
        FileSpace::Reserved | FileSpace::Written => Space::Reserved,
    };
    Ok(Disk::create(part.path, part.bytes, space, force || is_device(part.path))?)
}

/// A device's old contents read as zeros from here on: by the drive's own means if it has them, else by writing.
fn erase(disk: &Disk, part: &Part<'_>, progress: &mut dyn FnMut(Progress<'_>)) -> Result<(), FormatError> {
    let file = std::fs::OpenOptions::new().write(true).open(part.path);
    let file = file.map_err(system(part.path, "open it"))?;
    let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
    match rustix::fs::fallocate(&file, flags, 0, part.bytes) {
        Ok(()) => Ok(()),
        Err(_) => pre_write(disk, part, progress),
    }
}

fn pre_write(
    disk: &Disk,
    part: &Part<'_>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<(), FormatError> {
    let (path, total) = (part.path, part.bytes);
    Ok(disk.pre_write(total, |done| progress(Progress { path, done, total }))?)
}

fn write_superblocks(config: &Config, journal: &Disk) -> Result<(), FormatError> {
    let volumes: Vec<u64> = config.volumes.iter().map(|volume| volume.blocks()).collect();
    let journal_blocks = config.journal.bytes / BLOCK_BYTES as u64;
    for sequence in 0..SUPERBLOCK_SLOTS {
        let superblock = Superblock::formatted(
            config.group_id(),
            config.site.id,
            config.site.role,
            sequence,
            journal_blocks,
            &volumes,
        );
        let mut block = [0; BLOCK_BYTES];
        superblock.encode(&mut block);
        journal.write_blocks(superblock.slot(), &block)?;
    }
    Ok(journal.sync()?)
}
