//! Making a site: volumes that read as zeros on both sites, their checksums, the differential volume, the journal, and the
//! metadata that says what all of it belongs to.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::base::{BLOCK_BYTES, Generation, GroupId, SiteId, VolumeSizes, sum_of_block};
use crate::core::config::{Role, VolumeSpec};
use crate::core::sums::SUMS_PER_BLOCK;
use crate::format::staging::take_empty_mark;
use crate::format::superblock::{SUPERBLOCK_SLOTS, Superblock};
use crate::io::disk::{Disk, DiskError, Space};
use crate::io::metadata::{Metadata, MetadataError, SiteRecord};
use crate::node::config::{Config, FileSpace, Volume};

/// How much of a device's beginning and end must read as zeros before it is taken without `--force`: where partition
/// tables, filesystems and RAID members have their labels.
const DEVICE_LABEL_BYTES: u64 = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    #[error("{}: there already; nothing was changed. {}", shown(.paths), remedy(*.adopt))]
    Exists { paths: Vec<PathBuf>, adopt: bool },
    #[error("{path}: the device holds data in its {place} MiB; nothing was changed. {}", remedy_of_device(*.adopt))]
    DeviceHoldsData { path: PathBuf, place: &'static str, adopt: bool },
    #[error(
        "{path}: does not exist, so there is nothing to adopt; without `--adopt` an empty volume is made"
    )]
    NothingToAdopt { path: PathBuf },
    #[error("a third site is given what the others have; adopt at the one of them that is to be the primary")]
    ThirdAdopts,
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

/// Whoever adopts has data there, so no advice may cost that.
fn remedy(adopt: bool) -> &'static str {
    match adopt {
        true => "`lockstep format --adopt --force` makes these anew, and keeps what the volumes hold",
        false => "`lockstep format --force` destroys what they hold",
    }
}

fn remedy_of_device(adopt: bool) -> &'static str {
    match adopt {
        true => "`lockstep format --adopt --force` erases it, and keeps what the volumes hold",
        false => {
            "`lockstep format --force` erases it; if it is a volume's, `lockstep format --adopt` keeps what all volumes hold"
        }
    }
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
    /// Of these, up to here.
    space: FileSpace,
    used_bytes: u64,
}

impl Part<'_> {
    fn of<'a>(path: &'a Path, bytes: u64, space: FileSpace) -> Part<'a> {
        Part { path, bytes, space, used_bytes: bytes }
    }

    fn of_volume(volume: &Volume) -> Part<'_> {
        Part { used_bytes: volume.size_bytes, ..Part::of(&volume.path, volume.room_bytes, volume.space) }
    }

    fn space(&self) -> Space {
        match self.space {
            FileSpace::Sparse => Space::Sparse,
            FileSpace::Reserved | FileSpace::Written => Space::ReservedTo(self.used_bytes),
        }
    }
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

/// What becomes of what is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Existing {
    /// It is overwritten.
    pub force: bool,
    /// But volumes keep what they hold, and the site claims that nobody else has it.
    pub adopt: bool,
}

/// Makes everything, or nothing if any of it exists and is not to be overwritten or adopted. The journal's superblock is the last thing
/// written and the first thing destroyed, so a site that was formatted halfway does not start.
pub fn format(
    config: &Config,
    existing: Existing,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<(), FormatError> {
    let Existing { force, adopt } = existing;
    if adopt && config.site.role == Role::Third {
        return Err(FormatError::ThirdAdopts);
    }
    let to_make = if adopt { other_paths(config) } else { paths(config) };
    refuse_existing(&to_make, existing)?;
    let mut held = Vec::new();
    if adopt {
        // Before anything is changed.
        for volume in &config.volumes {
            held.push(adopted(volume)?);
        }
    }
    make_folders(config)?;

    let journal = Part::of(&config.journal.path, config.journal.bytes, FileSpace::Written);
    let mut parts = Vec::new();
    for volume in &config.volumes {
        if !adopt {
            parts.push(Part::of_volume(volume));
        }
        parts.push(Part::of(&volume.checksums, volume.checksum_bytes(), FileSpace::Written));
    }
    let differential = &config.differential;
    parts.push(Part::of(&differential.path, differential.bytes, differential.space));

    if config.is_copied_to() {
        let bytes = config.staging_blocks() * BLOCK_BYTES as u64;
        parts.push(Part::of(&config.staging, bytes, FileSpace::Sparse));
    }

    // A running site holds these locks, so nothing of it is touched.
    let journal_disk = make(&journal, force)?;
    journal_disk.write_blocks(0, &[0; SUPERBLOCK_SLOTS as usize * BLOCK_BYTES])?;
    journal_disk.sync()?;
    if force && config.metadata.exists() {
        std::fs::remove_file(&config.metadata).map_err(system(&config.metadata, "remove it"))?;
    }
    if force && !config.is_copied_to() {
        forget_staged(config)?;
    }
    let mut made = Vec::new();
    for part in &parts {
        let disk = make(part, force)?;
        if disk.is_device() {
            let (path, total) = (part.path, part.bytes);
            disk.erase(0, total, |done| progress(Progress { path, done, total }))?;
        } else if part.space == FileSpace::Written {
            pre_write(&disk, part, progress)?;
        }
        disk.sync()?;
        made.push(disk);
    }
    for ((volume, disk), checksums) in config.volumes.iter().zip(&held).zip(&made) {
        store_checksums(volume, disk, checksums, progress)?;
    }
    pre_write(&journal_disk, &journal, progress)?;
    drop(Metadata::create(&config.metadata, &record(config))?);
    write_superblocks(config, &journal_disk, adopt)?;
    sync_folders(config)
}

/// Every path of the site.
fn paths(config: &Config) -> Vec<&Path> {
    config.volumes.iter().map(|volume| volume.path.as_path()).chain(other_paths(config)).collect()
}

/// All but the volumes.
fn other_paths(config: &Config) -> Vec<&Path> {
    let checksums = config.volumes.iter().map(|volume| volume.checksums.as_path());
    let rest = [config.differential.path.as_path(), &config.journal.path, &config.metadata];
    let staging = config.is_copied_to().then_some(config.staging.as_path());
    checksums.chain(rest).chain(staging).collect()
}

fn is_device(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_block_device())
}

fn refuse_existing(paths: &[&Path], existing: Existing) -> Result<(), FormatError> {
    let Existing { force, adopt } = existing;
    if force {
        return Ok(());
    }
    // `symlink_metadata`, so that a dangling link counts as there.
    let existing = paths.iter().filter(|path| path.symlink_metadata().is_ok() && !is_device(path));
    let existing: Vec<PathBuf> = existing.map(|path| path.to_path_buf()).collect();
    if !existing.is_empty() {
        return Err(FormatError::Exists { paths: existing, adopt });
    }
    for path in paths.iter().filter(|path| is_device(path)) {
        if let Some(place) = holds_data(&Disk::open(path)?)? {
            return Err(FormatError::DeviceHoldsData { path: path.to_path_buf(), place, adopt });
        }
    }
    Ok(())
}

/// Where a device seems to hold data: in its first or last so many bytes.
pub(super) fn holds_data(disk: &Disk) -> Result<Option<&'static str>, DiskError> {
    let label_blocks = DEVICE_LABEL_BYTES / BLOCK_BYTES as u64;
    let last = disk.blocks().saturating_sub(label_blocks);
    for (place, block) in [("first", 0), ("last", last)] {
        let length = label_blocks.min(disk.blocks()) as usize * BLOCK_BYTES;
        let mut data = vec![0; length];
        disk.read_blocks(block, &mut data)?;
        if data.iter().any(|byte| *byte != 0) {
            return Ok(Some(place));
        }
    }
    Ok(None)
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

pub(super) fn make_folders(config: &Config) -> Result<(), FormatError> {
    for folder in folders(config) {
        std::fs::create_dir_all(&folder).map_err(system(&folder, "make the folder"))?;
    }
    Ok(())
}

/// The names of the files are durable too.
pub(super) fn sync_folders(config: &Config) -> Result<(), FormatError> {
    for folder in folders(config) {
        let synced = std::fs::File::open(&folder).and_then(|folder| folder.sync_all());
        synced.map_err(system(&folder, "flush the folder"))?;
    }
    Ok(())
}

/// Devices were looked at by [`refuse_existing`], or are to be overwritten.
fn make(part: &Part<'_>, force: bool) -> Result<Disk, FormatError> {
    Ok(Disk::create(part.path, part.bytes, part.space(), force || is_device(part.path))?)
}

/// A volume that is there, as it is, under a lock.
fn adopted(volume: &Volume) -> Result<Disk, FormatError> {
    if !volume.path.exists() {
        return Err(FormatError::NothingToAdopt { path: volume.path.clone() });
    }
    Ok(Disk::adopt(&volume.path, volume.room_bytes, Part::of_volume(volume).space())?)
}

/// Reads a volume and writes the checksums of what it holds. What was read may be in a volatile cache, so it is flushed.
fn store_checksums(
    volume: &Volume,
    disk: &Disk,
    checksums: &Disk,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<(), FormatError> {
    disk.sync()?;
    let mut blocks = vec![0; SUMS_PER_BLOCK as usize * BLOCK_BYTES];
    for first in (0..volume.blocks()).step_by(SUMS_PER_BLOCK as usize) {
        let count = SUMS_PER_BLOCK.min(volume.blocks() - first) as usize;
        let blocks = &mut blocks[..count * BLOCK_BYTES];
        disk.read_blocks(first, blocks)?;
        let mut stored = [0; BLOCK_BYTES];
        for (block, sum) in blocks.as_chunks::<BLOCK_BYTES>().0.iter().zip(stored.as_chunks_mut::<4>().0) {
            // Zeros that were never written have none.
            if block.iter().any(|byte| *byte != 0) {
                *sum = sum_of_block(block).0.to_le_bytes();
            }
        }
        checksums.write_blocks(first / SUMS_PER_BLOCK, &stored)?;
        let done = (first + count as u64) * BLOCK_BYTES as u64;
        progress(Progress { path: &volume.path, done, total: volume.room_bytes });
    }
    Ok(checksums.sync()?)
}

/// What the site was copied before belongs to what it was. It has no peer any more, or it would be made anew; marked as it is, it would keep
/// the site from starting for good.
fn forget_staged(config: &Config) -> Result<(), FormatError> {
    if !config.staging.exists() {
        return Ok(());
    }
    let disk = Disk::open(&config.staging)?;
    if whose_staging(&disk)? == Some((config.group_id(), config.site.id)) {
        disk.write_blocks(0, &[0; BLOCK_BYTES])?;
        disk.sync()?;
    }
    Ok(())
}

/// The group and site that a staging file's mark names, if there is one.
pub(super) fn whose_staging(disk: &Disk) -> Result<Option<(GroupId, SiteId)>, DiskError> {
    if disk.blocks() == 0 {
        return Ok(None);
    }
    let mut mark = [0; BLOCK_BYTES];
    disk.read_blocks(0, &mut mark)?;
    Ok(Superblock::decode(&mark).ok().map(|mark| (mark.group, mark.site)).or(take_empty_mark(&mark)))
}

fn pre_write(
    disk: &Disk,
    part: &Part<'_>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<(), FormatError> {
    let (path, total) = (part.path, part.used_bytes);
    Ok(disk.pre_write(total, |done| progress(Progress { path, done, total }))?)
}

fn write_superblocks(config: &Config, journal: &Disk, adopt: bool) -> Result<(), FormatError> {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let generation = Generation::of_adoption(config.site.id, since_1970.as_millis() as u64);
    let volumes: Vec<u64> = config.volumes.iter().map(|volume| volume.blocks()).collect();
    let sizes = VolumeSizes::of(config.volumes.iter().map(Volume::size_blocks));
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
        let superblock = Superblock { sizes, ..superblock };
        let superblock = match adopt {
            true => superblock.adopting(generation, config.replication.is_some()),
            false => superblock,
        };
        let mut block = [0; BLOCK_BYTES];
        superblock.encode(&mut block);
        journal.write_blocks(superblock.slot(), &block)?;
    }
    Ok(journal.sync()?)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::node::run::{RunError, open_files};

    const FORCE: Existing = Existing { force: true, adopt: false };

    fn alone(folder: &Path) -> Config {
        let text = format!(
            "[site]\nname = \"left\"\nid = 1\nrole = \"primary\"\ndirectory = \"{}\"\n[group]\nname = \"tested\"\n\
             [[volume]]\nname = \"data\"\nsize = \"1MiB\"\n[journal]\nsize = \"16MiB\"\n[differential]\nsize = \"1MiB\"\n\
             [cache]\nsize = \"96MiB\"\n",
            folder.display()
        );
        Config::parse(&text, &folder.join("left.toml")).expect("a configuration")
    }

    /// What a site leaves that was copied something, and has not brought it to its volumes.
    fn stage(config: &Config, group: GroupId) -> [u8; BLOCK_BYTES] {
        let (role, journal_blocks) = (config.site.role, config.journal.bytes / BLOCK_BYTES as u64);
        let mark = Superblock::formatted(group, config.site.id, role, 9, journal_blocks, &[256]);
        let mut block = [0; BLOCK_BYTES];
        mark.encode(&mut block);
        let mut file = block.to_vec();
        file.resize(16 * BLOCK_BYTES, 7);
        fs::write(&config.staging, file).expect("staged");
        block
    }

    #[test]
    fn what_was_staged_before_keeps_no_site_out_that_is_formatted_anew() {
        let folder = tempfile::tempdir().expect("a folder");
        let config = alone(folder.path());
        format(&config, Existing::default(), &mut |_| {}).expect("formatted");
        stage(&config, config.group_id());
        let refused = open_files(&config).expect_err("refused");
        assert!(matches!(refused, RunError::Uninstalled { .. }), "{refused}");
        assert!(format(&config, Existing::default(), &mut |_| {}).is_err());
        assert!(open_files(&config).is_err(), "a format that was refused changed something");
        format(&config, FORCE, &mut |_| {}).expect("formatted");
        open_files(&config).expect("it starts");

        // Another group's is nothing to this site, and not its to erase.
        let mark = stage(&config, GroupId(1));
        open_files(&config).expect("it starts");
        format(&config, FORCE, &mut |_| {}).expect("formatted");
        assert_eq!(fs::read(&config.staging).expect("staged")[..BLOCK_BYTES], mark);
    }
}
