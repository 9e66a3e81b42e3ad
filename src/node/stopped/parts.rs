//! Files and devices of which more is to count.

use std::io;
use std::ops::Range;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use super::{ChangeError, Progress, system};
use crate::base::BLOCK_BYTES;
use crate::io::disk::{Disk, DiskError, Space};
use crate::node::config::FileSpace;

/// A file or device of which more is to count: bytes until now, and from now on.
#[derive(Clone, Debug)]
pub(super) struct Part<'a> {
    pub path: &'a Path,
    pub from: u64,
    pub to: u64,
    /// Of what is used from now on, and was not.
    pub space: FileSpace,
    pub used: Range<u64>,
}

impl Part<'_> {
    /// A volume's that is added.
    fn is_new(&self) -> bool {
        self.from == 0
    }

    fn too_small(&self, have: u64, need: u64) -> ChangeError {
        DiskError::TooSmall { path: self.path.to_owned(), have, need }.into()
    }
}

/// A file that is to become longer, or a device that is long enough: its bytes now, and those that are needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Longer {
    pub path: PathBuf,
    pub from: u64,
    pub to: u64,
    pub device: bool,
}

/// Which of these files are to become longer, and of which devices so much is to count; and whether they could, by their lengths and what is
/// free. It claims nothing, so the site may run meanwhile.
pub(super) fn check<'a>(parts: impl Iterator<Item = Part<'a>>) -> Result<Vec<Longer>, ChangeError> {
    let (mut longer, mut needs) = (Vec::new(), Needs::default());
    for part in parts {
        let length = match std::fs::metadata(part.path) {
            Ok(there) if there.is_file() => there.len(),
            Ok(there) if there.file_type().is_block_device() => {
                let have = Disk::bytes_of_device(part.path)?;
                if have < part.to {
                    return Err(part.too_small(have, part.to));
                }
                longer.push(Longer { path: part.path.to_owned(), from: have, to: part.to, device: true });
                continue;
            }
            Ok(_) => return Err(DiskError::NotADisk { path: part.path.to_owned() }.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound && part.is_new() => 0,
            Err(error) => return Err(system(part.path, "look at it")(error)),
        };
        if length < part.to {
            let used = part.used.start.max(length)..part.used.end;
            let part = Part { from: length, used, ..part };
            needs.note(&part)?;
            longer.push(Longer { path: part.path.to_owned(), from: part.from, to: part.to, device: false });
        }
    }
    needs.check()?;
    Ok(longer)
}

/// Opens what becomes larger, and looks whether it can, before anything is changed; then makes the files of volumes that are added and have none.
/// Made files are the caller's to remove if it comes to nothing.
pub(super) fn open(
    parts: &[Part<'_>],
    force: bool,
    made: &mut Vec<PathBuf>,
) -> Result<Vec<Disk>, ChangeError> {
    let (mut disks, mut needs) = (Vec::new(), Needs::default());
    for part in parts {
        let disk = match Disk::open(part.path) {
            Err(DiskError::Missing { .. }) if part.is_new() => {
                needs.note(part)?;
                disks.push(None);
                continue;
            }
            opened => opened?,
        };
        look(part, &disk, &mut needs)?;
        if !force {
            refuse_data(part, &disk)?;
        }
        disks.push(Some(disk));
    }
    needs.check()?;
    let opened = parts.iter().zip(disks).map(|(part, disk)| match disk {
        Some(disk) => Ok(disk),
        None => {
            let disk = Disk::create(part.path, 0, Space::Sparse, false)?;
            made.push(part.path.to_owned());
            Ok(disk)
        }
    });
    opened.collect()
}

/// Whether it is as long as it has to be, and what room it needs.
pub(super) fn look(part: &Part<'_>, disk: &Disk, needs: &mut Needs) -> Result<(), ChangeError> {
    let need = if disk.is_device() { part.to } else { part.from };
    if disk.bytes() < need {
        return Err(part.too_small(disk.bytes(), need));
    }
    if !disk.is_device() && disk.bytes() < part.to {
        // What an attempt before has reserved is there.
        let used = if disk.bytes() > part.from {
            disk.bytes().min(part.used.end)..part.used.end
        } else {
            part.used.clone()
        };
        needs.note(&Part { used, ..part.clone() })?;
    }
    Ok(())
}

/// How much of what is there already of the new part must read as zeros at either end before it is taken without `--force`.
const LABEL_BYTES: u64 = 1 << 20;

pub(super) fn refuse_data(part: &Part<'_>, disk: &Disk) -> Result<(), ChangeError> {
    let path = || part.path.to_owned();
    // An attempt before has left nothing, or all of it.
    if part.is_new() && !disk.is_device() && ![0, part.to].contains(&disk.bytes()) {
        return Err(ChangeError::Taken { path: path() });
    }
    let end = if disk.is_device() { part.to } else { disk.blocks() * BLOCK_BYTES as u64 };
    let length = LABEL_BYTES.min(end - part.from);
    for first in [part.from, end - length] {
        let mut data = vec![0; length as usize];
        disk.read_blocks(first / BLOCK_BYTES as u64, &mut data)?;
        if data.iter().any(|byte| *byte != 0) {
            return Err(match part.is_new() {
                true => ChangeError::Taken { path: path() },
                false => ChangeError::HoldsData { path: path(), have: part.from },
            });
        }
    }
    Ok(())
}

/// Durably, all of them or none. What is new reads as zeros, whatever an attempt before has left there.
pub(super) fn lengthen(
    parts: &[Part<'_>],
    disks: &mut [Disk],
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<(), ChangeError> {
    let mut lengthen = || {
        for (part, disk) in parts.iter().zip(&mut *disks) {
            lengthen_one(part, disk, progress)?;
        }
        Ok(())
    };
    let lengthened = lengthen();
    if lengthened.is_err() {
        // What was had of the room is given back.
        for (part, disk) in parts.iter().zip(disks).filter(|(_, disk)| !disk.is_device()) {
            disk.shorten(part.from)?;
        }
    }
    lengthened
}

fn lengthen_one(
    part: &Part<'_>,
    disk: &mut Disk,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<(), ChangeError> {
    let total = part.to - part.from;
    let mut progress = |done| progress(Progress { path: part.path, done, total });
    if disk.is_device() {
        disk.erase(part.from, part.to, &mut progress)?;
        return Ok(disk.sync()?);
    }
    if total > 0 {
        disk.lengthen(part.from, part.to)?;
    }
    if part.space != FileSpace::Sparse {
        disk.reserve(part.used.clone())?;
    }
    let new = part.used.start.max(part.from)..part.used.end;
    if part.space == FileSpace::Written && !new.is_empty() {
        disk.write_zeros(new.start, new.end, &mut progress)?;
    }
    Ok(disk.sync()?)
}

/// Bytes that are to be reserved in each filesystem, one of its paths, and what it has left.
#[derive(Debug, Default)]
pub(super) struct Needs(Vec<(u64, PathBuf, u64, u64)>);

impl Needs {
    fn note(&mut self, part: &Part<'_>) -> Result<(), ChangeError> {
        if part.space == FileSpace::Sparse {
            return Ok(());
        }
        let failed = |errno: rustix::io::Errno| system(part.path, "look at its filesystem")(errno.into());
        // Of a file that is yet to be made, where it will be.
        let there = part.path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("."));
        let filesystem = rustix::fs::stat(there).map_err(failed)?.st_dev;
        let need = part.used.end.saturating_sub(part.used.start);
        match self.0.iter_mut().find(|(known, ..)| *known == filesystem) {
            Some((_, _, sum, _)) => *sum += need,
            None => {
                let figures = rustix::fs::statvfs(there).map_err(failed)?;
                let free = figures.f_bavail.saturating_mul(figures.f_frsize);
                self.0.push((filesystem, part.path.to_owned(), need, free));
            }
        }
        Ok(())
    }

    /// Before anything is reserved: who tries takes what is left from everybody else meanwhile.
    pub fn check(self) -> Result<(), ChangeError> {
        match self.0.into_iter().find(|(_, _, need, free)| need > free) {
            Some((_, path, need, free)) => Err(ChangeError::NoSpace { path, need, free }),
            None => Ok(()),
        }
    }
}
