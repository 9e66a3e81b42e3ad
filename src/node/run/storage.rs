//! Opening a site's files: what they were formatted as is what the configuration says, and nobody else has them.

use super::RunError;
use crate::base::{BATCH_DESCRIPTORS_MAX, BLOCK_BYTES, VolumeId, VolumeSizes};
use crate::core::config::Role;
use crate::core::messages::IoTarget;
use crate::format::journal::decode_batch;
use crate::format::staging::take_empty_mark;
use crate::format::superblock::{RING_FIRST_BLOCK, SlotError, Superblock, newest_of, newest_of_any_size};
use crate::format::update::Update;
use crate::io::disk::{Disk, DiskError, Space};
use crate::io::metadata::{Metadata, MetadataError, TableNames};
use crate::node::config::quantity::show_size;
use crate::node::config::{Config, FileSpace, Volume};
use crate::node::format::{holds_data, record, whose_staging};

/// Everything open, and locked for as long as it is.
#[derive(Debug)]
pub struct Storage {
    pub journal: Disk,
    /// Of a site that may be copied to.
    pub staging: Option<Disk>,
    /// With their checksums, and the differential volume.
    pub volumes: Vec<(IoTarget, Disk)>,
    pub metadata: Metadata,
    /// What the site was when its journal's superblock was last written; replay may find that it has changed.
    pub role: Role,
    /// What hosts see of the volumes.
    pub sizes: VolumeSizes,
}

pub fn open(config: &Config) -> Result<Storage, RunError> {
    let journal = Disk::open(&config.journal.path)?;
    let metadata = Metadata::open_sound(&config.metadata, &names(config)).map_err(|error| match error {
        MetadataError::Damaged { what } => RunError::Tables {
            what,
            file: config.file.clone(),
            peer: config.replication.as_ref().map_or("a peer", |pair| &pair.peer.name).to_owned(),
        },
        error => error.into(),
    })?;
    let differences = metadata.record()?.differences(&record(config));
    if !differences.is_empty() {
        return Err(RunError::Differs(differences));
    }
    // One that was to become smaller may be so already.
    refuse_half_changed(config, &journal)?;
    let journal = sized(journal, config.journal.bytes)?;
    if !config.journal.volatile && journal.volatile_cache() == Some(true) {
        tracing::warn!(
            "journal.volatile is false, but the drive of {} says that it has a volatile write cache; unless power loss \
             cannot empty it, write true",
            config.journal.path.display()
        );
    }
    let mut volumes = Vec::new();
    for (index, volume) in (0u16..).zip(&config.volumes) {
        let disk =
            sized(Disk::open(&volume.path)?, volume.room_bytes)?.sparse(volume.space == FileSpace::Sparse);
        let sums = sized(Disk::open(&volume.checksums)?, volume.checksum_bytes())?;
        volumes.push((IoTarget::Volume(VolumeId(index)), disk));
        volumes.push((IoTarget::Checksums(VolumeId(index)), sums));
    }
    let differential = sized(Disk::open(&config.differential.path)?, config.differential.bytes)?;
    volumes.push((IoTarget::Differential, differential));
    let superblock = superblock(&journal)?;
    let role = superblock.map_or(config.site.role, |superblock| superblock.role);
    let configured = VolumeSizes::of(config.volumes.iter().map(Volume::size_blocks));
    let sizes = superblock.map_or(configured, |superblock| superblock.sizes);
    for (volume, size) in config.volumes.iter().zip(sizes.iter()) {
        if volume.size_blocks() > size {
            tracing::warn!(
                "volume {} is configured with {}, and has {}: `lockstep extend` makes it larger while the sites run",
                volume.name,
                show_size(volume.size_bytes),
                show_size(size * BLOCK_BYTES as u64)
            );
        }
    }
    let staging = match config.is_copied_to() {
        true => Some(staging(config, superblock.as_ref())?),
        // It had a peer once, and died before what it was copied was in its volumes.
        false
            if config.staging.symlink_metadata().is_ok()
                && is_marked(&Disk::open(&config.staging)?, superblock.as_ref())? =>
        {
            return Err(RunError::Uninstalled { path: config.staging.clone() });
        }
        false => None,
    };
    Ok(Storage { journal, staging, volumes, metadata, role, sizes })
}

/// The staging file, empty unless what it holds is to be installed, or is a log that was interrupted: of one that was installed, the mark
/// is still there, and takes no room till the next one.
fn staging(config: &Config, superblock: Option<&Superblock>) -> Result<Disk, RunError> {
    let (path, bytes) = (&config.staging, config.staging_blocks() * BLOCK_BYTES as u64);
    let refused = || RunError::NotStaging { path: path.clone() };
    if path.symlink_metadata().is_ok() {
        let disk = Disk::open(path)?;
        let serves = disk.is_device() && disk.bytes() >= bytes;
        if serves || is_marked(&disk, superblock)? || (disk.bytes() == bytes && holds_log(&disk)?) {
            return may_be_staging(config, &disk, bytes)?.then_some(disk).ok_or_else(refused);
        }
        if !may_be_staging(config, &disk, bytes)? {
            return Err(refused());
        }
    }
    Ok(Disk::create(path, bytes, Space::Sparse, true)?)
}

/// Whether all that is there is what this site may have left, or nothing: a slip in the configuration is not to cost anybody's data.
fn may_be_staging(config: &Config, disk: &Disk, bytes: u64) -> Result<bool, DiskError> {
    if disk.blocks() <= RING_FIRST_BLOCK {
        return Ok(disk.bytes() == 0);
    }
    if let Some(whose) = whose_staging(disk)? {
        return Ok(whose == (config.group_id(), config.site.id));
    }
    let mut mark = [0; BLOCK_BYTES];
    disk.read_blocks(0, &mut mark)?;
    // A mark is torn at worst where a log is behind it, and a log's beginning where there is no mark yet.
    let (mut header, mut updates) = ([0; BLOCK_BYTES], [Update::EMPTY; BATCH_DESCRIPTORS_MAX]);
    disk.read_blocks(RING_FIRST_BLOCK, &mut header)?;
    let begins = mark.iter().all(|byte| *byte == 0) && !disk.is_device() && disk.bytes() == bytes;
    Ok(decode_batch(&header, &mut updates).is_ok() || begins || holds_data(disk)?.is_none())
}

/// Whether its mark is this site's, and newer than the superblock.
fn is_marked(disk: &Disk, superblock: Option<&Superblock>) -> Result<bool, DiskError> {
    if disk.blocks() == 0 {
        return Ok(false);
    }
    let mut block = [0; BLOCK_BYTES];
    disk.read_blocks(0, &mut block)?;
    let mark = Superblock::decode(&block).ok();
    Ok(mark.zip(superblock).is_some_and(|(mark, superblock)| {
        (mark.group, mark.site) == (superblock.group, superblock.site) && mark.sequence > superblock.sequence
    }))
}

/// Whether it holds a log behind no mark, or is to.
fn holds_log(disk: &Disk) -> Result<bool, DiskError> {
    let (mut mark, mut header) = ([0; BLOCK_BYTES], [0; BLOCK_BYTES]);
    disk.read_blocks(0, &mut mark)?;
    disk.read_blocks(RING_FIRST_BLOCK, &mut header)?;
    let mut updates = [Update::EMPTY; BATCH_DESCRIPTORS_MAX];
    let log = Superblock::decode(&mark).is_err() && decode_batch(&header, &mut updates).is_ok();
    Ok(log || take_empty_mark(&mark).is_some())
}

/// Whether the site's next start installs what is staged.
pub fn installs(config: &Config, journal: &Disk) -> Result<bool, DiskError> {
    if !config.is_copied_to() || config.staging.symlink_metadata().is_err() {
        return Ok(false);
    }
    is_marked(&Disk::open(&config.staging)?, superblock(journal)?.as_ref())
}

/// Whether the site's next start installs what is staged, or the site holds nothing until it has been copied everything: a log that was
/// merely begun is begun anew, these are not.
pub fn staged(config: &Config, journal: &Disk) -> Result<bool, DiskError> {
    if installs(config, journal)? {
        return Ok(true);
    }
    if !config.is_copied_to() || config.staging.symlink_metadata().is_err() {
        return Ok(false);
    }
    let disk = Disk::open(&config.staging)?;
    let mut mark = [0; BLOCK_BYTES];
    if disk.blocks() > 0 {
        disk.read_blocks(0, &mut mark)?;
    }
    Ok(take_empty_mark(&mark).is_some())
}

/// The journal's superblock; a site without a valid one does not start, which is the group's to say.
pub fn superblock(journal: &Disk) -> Result<Option<Superblock>, DiskError> {
    let [first, second] = slots(journal)?;
    Ok(newest_of(first, second).ok())
}

/// The same of a journal whose size may have been changed in one of the slots only; and whether both have the same.
pub fn newest_superblock(journal: &Disk) -> Result<Option<(Superblock, bool)>, DiskError> {
    let [first, second] = slots(journal)?;
    let agree = newest_of(first, second).is_ok();
    Ok(newest_of_any_size(first, second).ok().map(|superblock| (superblock, agree)))
}

fn slots(journal: &Disk) -> Result<[Result<Superblock, SlotError>; 2], DiskError> {
    let slot = |slot| {
        let mut block = [0; BLOCK_BYTES];
        journal.read_blocks(slot, &mut block).map(|()| Superblock::decode(&block))
    };
    Ok([slot(0)?, slot(1)?])
}

/// A site whose superblock says other sizes than the configuration and the metadata do is half changed.
fn refuse_half_changed(config: &Config, journal: &Disk) -> Result<(), RunError> {
    let Some((superblock, agree)) = newest_superblock(journal)? else { return Ok(()) };
    // What is another site's is the group's to say.
    let ours = superblock.group == config.group_id() && superblock.site == config.site.id;
    let sizes = config.volumes.iter().map(Volume::blocks);
    let as_configured = agree
        && superblock.journal_blocks == config.journal.bytes / BLOCK_BYTES as u64
        && sizes.eq(superblock.volume_blocks().iter().copied());
    if ours && !as_configured {
        return Err(RunError::HalfChanged { path: config.journal.path.clone() });
    }
    Ok(())
}

/// What the tables' messages call volumes.
pub fn names(config: &Config) -> TableNames {
    TableNames { volumes: config.volumes.iter().map(|volume| volume.name.clone()).collect() }
}

fn sized(disk: Disk, need: u64) -> Result<Disk, DiskError> {
    if disk.bytes() < need {
        return Err(DiskError::TooSmall { path: disk.path().to_owned(), have: disk.bytes(), need });
    }
    Ok(disk)
}
