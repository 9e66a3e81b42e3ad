//! Making the volumes of a site as large as its configuration says, and adding some. Nothing is moved: files become longer, or are made, what is
//! new in them reads as zeros, and then the superblock and the metadata say so.

use std::path::PathBuf;

use super::parts::{self, Longer, Part};
use super::{ChangeError, OnReached, Progress, Reached, Stopped, record, system};
use crate::base::{BLOCK_BYTES, VolumeId, VolumeSizes};
use crate::node::config::{Config, FileSpace, Volume};
use crate::node::format::{make_folders, sync_folders};

/// A volume and its checksums, of which so many bytes of the volume count until now, and hosts see so many of these.
fn parts_of(volume: &Volume, from: u64, shown: u64) -> [Part<'_>; 2] {
    let before = Volume { room_bytes: from, ..volume.clone() };
    [
        Part {
            path: &volume.path,
            from,
            to: volume.room_bytes,
            space: volume.space,
            used: shown..volume.size_bytes.max(shown),
        },
        Part {
            path: &volume.checksums,
            from: before.checksum_bytes(),
            to: volume.checksum_bytes(),
            space: FileSpace::Written,
            used: before.checksum_bytes()..volume.checksum_bytes(),
        },
    ]
}

/// Whether files and devices could become as large as the configuration says; the site may run meanwhile.
pub fn check_growth(config: &Config) -> Result<Vec<Longer>, ChangeError> {
    let longer = parts::check(config.volumes.iter().flat_map(|volume| parts_of(volume, 0, 0)))?;
    if longer.is_empty() { Err(ChangeError::NothingToGrow) } else { Ok(longer) }
}

/// Grows every volume that the configuration has larger than it is: all of them, or none. The site must not run.
pub fn grow(
    config: &Config,
    force: bool,
    progress: &mut dyn FnMut(Progress<'_>),
    reached: OnReached<'_>,
) -> Result<(), ChangeError> {
    let mut site = Stopped::open(config)?;
    let places = site.same_places();
    let shown = site.shown(&places)?;
    let parts = growing(&site, &shown)?;
    site.refuse_unfinished_journal()?;
    site.refuse_staging()?;
    let mut disks = parts::open(&parts, force, &mut Vec::new())?;
    parts::lengthen(&parts, &mut disks, progress)?;
    reached(Reached::Files)?;
    // What was shown stays shown.
    let configured = VolumeSizes::of(config.volumes.iter().map(Volume::size_blocks));
    site.put_volumes(&places, shown.joined(configured), reached)
}

/// What becomes larger, if the site was formatted as the configuration says but for that.
fn growing<'a>(site: &Stopped<'a>, shown: &VolumeSizes) -> Result<Vec<Part<'a>>, ChangeError> {
    let mut otherwise = record(site.config);
    let mut growing = Vec::new();
    let volumes = site.formatted.volumes.iter().zip(&mut otherwise.volumes).zip(&site.config.volumes);
    for (((is, wanted), volume), shown) in volumes.zip(shown.iter()) {
        let have = is.blocks * BLOCK_BYTES as u64;
        if volume.room_bytes < have {
            return Err(ChangeError::Shrinks { name: volume.name.clone(), have, want: volume.room_bytes });
        }
        if volume.room_bytes > have || volume.size_blocks() > shown {
            growing.extend(parts_of(volume, have, shown * BLOCK_BYTES as u64));
        }
        wanted.blocks = is.blocks;
    }
    site.refuse_differences(&otherwise, "the size of volumes")?;
    if growing.is_empty() { Err(ChangeError::NothingToGrow) } else { Ok(growing) }
}

/// Whether there is room for volumes that the configuration has and no files are there of; the site may run meanwhile.
pub fn check_addition(config: &Config) -> Result<Vec<Longer>, ChangeError> {
    let new = config.volumes.iter().filter(|volume| !volume.path.exists() || !volume.checksums.exists());
    let longer = parts::check(new.flat_map(|volume| parts_of(volume, 0, 0)))?;
    if longer.is_empty() { Err(ChangeError::NothingToAdd) } else { Ok(longer) }
}

/// Adds the volumes that the configuration has behind those that the site has; the others keep their places in the group's list, by which
/// everything knows them. They read as zeros. The site must not run.
pub fn add(
    config: &Config,
    force: bool,
    progress: &mut dyn FnMut(Progress<'_>),
    reached: OnReached<'_>,
) -> Result<(), ChangeError> {
    let mut site = Stopped::open(config)?;
    let there = site.formatted.volumes.len();
    let mut otherwise = record(config);
    otherwise.volumes.truncate(there);
    site.refuse_differences(&otherwise, "the number of volumes")?;
    let Some(new) = config.volumes.get(there..).filter(|new| !new.is_empty()) else {
        return Err(ChangeError::NothingToAdd);
    };
    for Volume { name, .. } in new {
        if site.metadata.has_removed(name)? {
            return Err(ChangeError::NameOfRemoved { name: name.clone() });
        }
    }
    site.refuse_unfinished_journal()?;
    site.refuse_staging()?;
    let places = site.same_places();
    let mut sizes = site.shown(&places)?;
    for (place, volume) in (there as u16..).zip(new) {
        sizes = sizes.extended(VolumeId(place), volume.size_blocks());
    }
    let parts: Vec<Part<'_>> = new.iter().flat_map(|volume| parts_of(volume, 0, 0)).collect();
    let mut made = Vec::new();
    if let Err(error) = make(config, &parts, force, progress, &mut made) {
        for path in made {
            std::fs::remove_file(&path).map_err(system(&path, "remove it"))?;
        }
        return Err(error);
    }
    reached(Reached::Files)?;
    site.put_volumes(&places, sizes, reached)
}

/// Durably, with their names.
fn make(
    config: &Config,
    parts: &[Part<'_>],
    force: bool,
    progress: &mut dyn FnMut(Progress<'_>),
    made: &mut Vec<PathBuf>,
) -> Result<(), ChangeError> {
    make_folders(config)?;
    let mut disks = parts::open(parts, force, made)?;
    parts::lengthen(parts, &mut disks, progress)?;
    Ok(sync_folders(config)?)
}
