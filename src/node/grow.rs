//! Making the volumes of a site that is stopped as large as its configuration says. Nothing is moved: files become longer, what is new in
//! them reads as zeros, and then the journal's superblock and the metadata say so, in that order. A site that is interrupted in between
//! does not start before the same is done again.

use std::io;
use std::path::{Path, PathBuf};

use super::config::{Config, FileSpace, Volume};
use super::format::{Progress, record};
use super::run::{names, staged, superblock};
use crate::base::BLOCK_BYTES;
use crate::format::superblock::SUPERBLOCK_SLOTS;
use crate::io::disk::{Disk, DiskError, Space};
use crate::io::metadata::{Difference, Metadata, MetadataError};

#[derive(Debug, thiserror::Error)]
pub enum GrowError {
    #[error("every volume is as large as the configuration says; there is nothing to grow")]
    Nothing,
    #[error(
        "volume {name} has {have} bytes, and the configuration says {want}; a volume does not become smaller"
    )]
    Shrinks { name: String, have: u64, want: u64 },
    #[error(
        "{}; nothing but the size of volumes is changed by this command",
        .0.iter().map(Difference::to_string).collect::<Vec<_>>().join("; ")
    )]
    Differs(Vec<Difference>),
    #[error("{path}: {need} bytes more are needed, and its filesystem has {free} left; nothing was changed")]
    NoSpace { path: PathBuf, need: u64, free: u64 },
    #[error(
        "{path}: holds data behind the {have} bytes that count; nothing was changed. `--force` erases it"
    )]
    HoldsData { path: PathBuf, have: u64 },
    #[error(
        "{path}: this site is being copied what it lacks; nothing was changed. Put the configuration back, let the site run until it is in \
         lockstep, and begin again"
    )]
    Staged { path: PathBuf },
    #[error("{path}: has no valid superblock; nothing was changed")]
    NoSuperblock { path: PathBuf },
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    #[error("{path}: cannot {action}: {source}")]
    System { path: PathBuf, action: &'static str, source: io::Error },
}

/// How far it has come. Whoever is told may end it there, with an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reached {
    /// The files are as long as they are to be.
    Files,
    /// The journal's superblock says so.
    Superblock,
}

/// A file or device of which more is to count: bytes until now, and from now on.
#[derive(Clone, Copy, Debug)]
struct Part<'a> {
    path: &'a Path,
    from: u64,
    to: u64,
    space: FileSpace,
}

impl Part<'_> {
    fn too_small(&self, have: u64, need: u64) -> GrowError {
        DiskError::TooSmall { path: self.path.to_owned(), have, need }.into()
    }
}

/// A volume and its checksums, of which so many bytes of the volume count until now.
fn parts(volume: &Volume, from: u64) -> [Part<'_>; 2] {
    let before = Volume { bytes: from, ..volume.clone() };
    [
        Part { path: &volume.path, from, to: volume.bytes, space: volume.space },
        Part {
            path: &volume.checksums,
            from: before.checksum_bytes(),
            to: volume.checksum_bytes(),
            space: FileSpace::Written,
        },
    ]
}

/// What [`check`] found of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Longer {
    pub path: PathBuf,
    pub from: u64,
    pub to: u64,
}

/// Whether files and devices could become as large as the configuration says, by their lengths and what is free. It opens nothing, so the site
/// may run meanwhile.
pub fn check(config: &Config) -> Result<Vec<Longer>, GrowError> {
    let (mut longer, mut needs) = (Vec::new(), Needs::default());
    for volume in &config.volumes {
        for part in parts(volume, 0) {
            let there = std::fs::metadata(part.path).map_err(system(part.path, "look at it"))?;
            if !there.is_file() {
                // A device's size shows when it is opened.
                continue;
            }
            if there.len() < part.to {
                let part = Part { from: there.len(), ..part };
                needs.note(&part)?;
                longer.push(Longer { path: part.path.to_owned(), from: part.from, to: part.to });
            }
        }
    }
    needs.check()?;
    if longer.is_empty() { Err(GrowError::Nothing) } else { Ok(longer) }
}

/// Grows every volume that the configuration has larger than it is: all of them, or none. The site must not run.
pub fn grow(
    config: &Config,
    force: bool,
    progress: &mut dyn FnMut(Progress<'_>),
    reached: &mut dyn FnMut(Reached) -> Result<(), GrowError>,
) -> Result<(), GrowError> {
    // A running site has locked it.
    let journal = Disk::open(&config.journal.path)?;
    let metadata = Metadata::open_sound(&config.metadata, &names(config))?;
    let parts = judge(config, &metadata)?;
    let path = config.journal.path.clone();
    let mut grown = superblock(&journal)?.ok_or(GrowError::NoSuperblock { path })?;
    if staged(config, &journal)? {
        return Err(GrowError::Staged { path: config.staging.clone() });
    }
    refuse_short_staging(config)?;
    let mut disks = open(&parts, force)?;
    if let Err(error) = lengthen(&parts, &mut disks, progress) {
        // What was had of the room is given back.
        for (part, disk) in parts.iter().zip(&mut disks).filter(|(_, disk)| !disk.is_device()) {
            disk.shorten(part.from)?;
        }
        return Err(error);
    }
    reached(Reached::Files)?;
    for (blocks, volume) in grown.volumes.iter_mut().zip(&config.volumes) {
        *blocks = volume.blocks();
    }
    // Both slots, one after the other: should one of them go bad, the other is of the same size.
    for _ in 0..SUPERBLOCK_SLOTS {
        grown.sequence += 1;
        let mut block = [0; BLOCK_BYTES];
        grown.encode(&mut block);
        journal.write_blocks(grown.slot(), &block)?;
        journal.sync()?;
    }
    reached(Reached::Superblock)?;
    Ok(metadata.set_volumes(&record(config).volumes)?)
}

/// What becomes larger, if the site was formatted as the configuration says but for that.
fn judge<'a>(config: &'a Config, metadata: &Metadata) -> Result<Vec<Part<'a>>, GrowError> {
    let formatted = metadata.record()?;
    let mut otherwise = record(config);
    let mut growing = Vec::new();
    for ((is, wanted), volume) in formatted.volumes.iter().zip(&mut otherwise.volumes).zip(&config.volumes) {
        let have = is.blocks * BLOCK_BYTES as u64;
        if volume.bytes < have {
            return Err(GrowError::Shrinks { name: volume.name.clone(), have, want: volume.bytes });
        }
        if volume.bytes > have {
            growing.extend(parts(volume, have));
        }
        wanted.blocks = is.blocks;
    }
    let differences = formatted.differences(&otherwise);
    match (differences.is_empty(), growing.is_empty()) {
        (false, _) => Err(GrowError::Differs(differences)),
        (true, true) => Err(GrowError::Nothing),
        (true, false) => Ok(growing),
    }
}

/// A staging file is made anew as large as it has to be, which a device cannot be.
fn refuse_short_staging(config: &Config) -> Result<(), GrowError> {
    if !config.is_copied_to() || config.staging.symlink_metadata().is_err() {
        return Ok(());
    }
    let (disk, need) = (Disk::open(&config.staging)?, config.staging_blocks() * BLOCK_BYTES as u64);
    if disk.is_device() && disk.bytes() < need {
        return Err(DiskError::TooSmall { path: config.staging.clone(), have: disk.bytes(), need }.into());
    }
    Ok(())
}

/// Opens what becomes larger, and looks whether it can, before anything is changed.
fn open(parts: &[Part<'_>], force: bool) -> Result<Vec<Disk>, GrowError> {
    let (mut disks, mut needs) = (Vec::new(), Needs::default());
    for part in parts {
        let disk = Disk::open(part.path)?;
        let need = if disk.is_device() { part.to } else { part.from };
        if disk.bytes() < need {
            return Err(part.too_small(disk.bytes(), need));
        }
        if !force {
            refuse_data(&disk, part)?;
        }
        if !disk.is_device() && disk.bytes() < part.to {
            // What an attempt before has reserved is there.
            needs.note(&Part { from: disk.bytes(), ..*part })?;
        }
        disks.push(disk);
    }
    needs.check()?;
    Ok(disks)
}

/// How much of what is there already of the new part must read as zeros at either end before it is taken without `--force`.
const LABEL_BYTES: u64 = 1 << 20;

fn refuse_data(disk: &Disk, part: &Part<'_>) -> Result<(), GrowError> {
    let end = if disk.is_device() { part.to } else { disk.blocks() * BLOCK_BYTES as u64 };
    let length = LABEL_BYTES.min(end - part.from);
    for first in [part.from, end - length] {
        let mut data = vec![0; length as usize];
        disk.read_blocks(first / BLOCK_BYTES as u64, &mut data)?;
        if data.iter().any(|byte| *byte != 0) {
            return Err(GrowError::HoldsData { path: part.path.to_owned(), have: part.from });
        }
    }
    Ok(())
}

/// Durably. What is new reads as zeros, whatever an attempt before has left there.
fn lengthen(
    parts: &[Part<'_>],
    disks: &mut [Disk],
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<(), GrowError> {
    for (part, disk) in parts.iter().zip(disks) {
        let total = part.to - part.from;
        let mut progress = |done| progress(Progress { path: part.path, done, total });
        if disk.is_device() {
            disk.erase(part.from, part.to, &mut progress)?;
        } else {
            let space = if part.space == FileSpace::Sparse { Space::Sparse } else { Space::Reserved };
            disk.lengthen(part.from, part.to, space)?;
            if part.space == FileSpace::Written {
                disk.write_zeros(part.from, part.to, &mut progress)?;
            }
        }
        disk.sync()?;
    }
    Ok(())
}

/// Bytes that are to be reserved in each filesystem, one of its paths, and what it has left.
#[derive(Debug, Default)]
struct Needs(Vec<(u64, PathBuf, u64, u64)>);

impl Needs {
    fn note(&mut self, part: &Part<'_>) -> Result<(), GrowError> {
        if part.space == FileSpace::Sparse {
            return Ok(());
        }
        let failed = |errno: rustix::io::Errno| system(part.path, "look at its filesystem")(errno.into());
        let filesystem = rustix::fs::stat(part.path).map_err(failed)?.st_dev;
        let need = part.to - part.from;
        match self.0.iter_mut().find(|(known, ..)| *known == filesystem) {
            Some((_, _, sum, _)) => *sum += need,
            None => {
                let figures = rustix::fs::statvfs(part.path).map_err(failed)?;
                let free = figures.f_bavail.saturating_mul(figures.f_frsize);
                self.0.push((filesystem, part.path.to_owned(), need, free));
            }
        }
        Ok(())
    }

    /// Before anything is reserved: who tries takes what is left from everybody else meanwhile.
    fn check(self) -> Result<(), GrowError> {
        match self.0.into_iter().find(|(_, _, need, free)| need > free) {
            Some((_, path, need, free)) => Err(GrowError::NoSpace { path, need, free }),
            None => Ok(()),
        }
    }
}

fn system(path: &Path, action: &'static str) -> impl Fn(io::Error) -> GrowError {
    let path = path.to_owned();
    move |source| GrowError::System { path: path.clone(), action, source }
}
