//! A site that is changed while it does not run. All such changes go the same way: everything is looked at before anything is changed; files
//! come first, then both slots of the journal's superblock, then the metadata, each durable before the next. A start compares the
//! configuration with the metadata and the superblock with both, so a site that was interrupted in between does not start before the same is
//! done again, which is the same from whatever step it got to.

mod journal;
mod layout;
mod parts;
mod remove;
pub(super) mod ring;
#[cfg(test)]
mod tests;
mod volumes;

use std::io;
use std::path::{Path, PathBuf};

use super::config::{Config, Volume};
use super::format::{FormatError, Progress, record};
use super::run::{names, newest_superblock, staged};
use crate::base::{BLOCK_BYTES, VOLUMES_MAX, VolumeSizes};
use crate::format::superblock::{SUPERBLOCK_SLOTS, Superblock};
use crate::io::disk::{Disk, DiskError};
use crate::io::metadata::{Difference, Metadata, MetadataError, Places, SiteRecord};

pub use journal::{Resized, check_resize, resize};
pub use parts::Longer;
pub use remove::{check_removal, remove};
pub use volumes::{add, check_addition, check_growth, grow};

#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    #[error("every volume is as large as the configuration says; there is nothing to grow")]
    NothingToGrow,
    #[error("the configuration has no volume behind those that the site has; there is nothing to add")]
    NothingToAdd,
    #[error("the site has no volume \"{name}\"; nothing was changed")]
    NoSuchVolume { name: String },
    #[error(
        "the configuration still has the volume \"{name}\": take it out of there first; nothing was changed"
    )]
    StillConfigured { name: String },
    #[error(
        "the site had a volume \"{name}\" once, which was removed: another site could take the new one for that. Give it another name"
    )]
    NameOfRemoved { name: String },
    #[error(
        "snapshot {snapshot} has the volume \"{volume}\": delete it first, while both sites run; nothing was changed"
    )]
    InSnapshot { snapshot: String, volume: String },
    #[error(
        "{path}: has {updates} updates of the volume, of those behind it or of snapshots, which are not in the volumes yet or which another site \
         lacks; nothing was changed. Put the configuration back, let the sites run until all are in lockstep, stop them in order and begin again"
    )]
    InJournal { path: PathBuf, updates: u64 },
    #[error("the journal is as large as the configuration says; there is nothing to resize")]
    NothingToResize,
    #[error(
        "volume {name} has {have} bytes, and the configuration says {want}; a volume does not become smaller"
    )]
    Shrinks { name: String, have: u64, want: u64 },
    #[error(
        "{}; nothing but {may} is changed by this command",
        .differences.iter().map(Difference::to_string).collect::<Vec<_>>().join("; ")
    )]
    Differs { differences: Vec<Difference>, may: &'static str },
    #[error("{path}: {need} bytes more are needed, and its filesystem has {free} left; nothing was changed")]
    NoSpace { path: PathBuf, need: u64, free: u64 },
    #[error(
        "{path}: holds data behind the {have} bytes that count; nothing was changed. `--force` erases it"
    )]
    HoldsData { path: PathBuf, have: u64 },
    #[error("{path}: is there already, and holds something; nothing was changed. `--force` erases it")]
    Taken { path: PathBuf },
    #[error(
        "{path}: this site is being copied what it lacks; nothing was changed. Put the configuration back, let the site run until it is in \
         lockstep, and begin again"
    )]
    Staged { path: PathBuf },
    #[error("{path}: has no valid superblock; nothing was changed")]
    NoSuperblock { path: PathBuf },
    #[error("{path}: is the journal of another site; nothing was changed")]
    Foreign { path: PathBuf },
    #[error(
        "{path}: another change of this site was interrupted; nothing was changed. Give its command again, with the configuration that it had"
    )]
    Unfinished { path: PathBuf },
    #[error(
        "{path}: keeps {held} bytes that are not in the volumes yet or that another site lacks, and of a journal of {want} that may be {most} at \
         most; nothing was changed. Put the configuration back, let the site run until the others have caught up, stop it and begin again"
    )]
    Held { path: PathBuf, held: u64, want: u64, most: u64 },
    #[error(
        "{path}: has gone bad below what was durable; nothing was changed. See what to do about a damaged journal first"
    )]
    Rotten { path: PathBuf },
    #[error("{path}: what was moved in it does not read back; the journal is what it was before")]
    NotReadBack { path: PathBuf },
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    #[error(transparent)]
    Folders(#[from] FormatError),
    #[error("{path}: cannot {action}: {source}")]
    System { path: PathBuf, action: &'static str, source: io::Error },
}

/// How far a change has come. Whoever is told may end it there, with an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reached {
    /// The files are as long as they are to be, where they become longer.
    Files,
    /// What the journal keeps is where it is to be.
    Records,
    /// One more slot of the superblock says what is to be.
    Slot,
    /// Both do.
    Superblock,
    /// The files are no longer than they are to be.
    Cut,
}

/// Told how far a change has come.
pub type OnReached<'a> = &'a mut dyn FnMut(Reached) -> Result<(), ChangeError>;

/// The site, and everything that says what it is: opened, and locked against a start.
struct Stopped<'a> {
    config: &'a Config,
    journal: Disk,
    metadata: Metadata,
    formatted: SiteRecord,
    superblock: Superblock,
    /// Whether both slots have a journal of the same size.
    agree: bool,
}

impl<'a> Stopped<'a> {
    fn open(config: &'a Config) -> Result<Stopped<'a>, ChangeError> {
        // A running site has locked it.
        let journal = Disk::open(&config.journal.path)?;
        let metadata = Metadata::open_sound(&config.metadata, &names(config))?;
        let formatted = metadata.record()?;
        let path = || config.journal.path.clone();
        let (superblock, agree) =
            newest_superblock(&journal)?.ok_or(ChangeError::NoSuperblock { path: path() })?;
        if superblock.group != config.group_id() || superblock.site != config.site.id {
            return Err(ChangeError::Foreign { path: path() });
        }
        Ok(Stopped { config, journal, metadata, formatted, superblock, agree })
    }

    /// `may` says what this change may change, of which `otherwise` has what there is.
    fn refuse_differences(&self, otherwise: &SiteRecord, may: &'static str) -> Result<(), ChangeError> {
        let differences = self.formatted.differences(otherwise);
        if differences.is_empty() { Ok(()) } else { Err(ChangeError::Differs { differences, may }) }
    }

    /// A change of volumes begins with the journal that the metadata knows.
    fn refuse_unfinished_journal(&self) -> Result<(), ChangeError> {
        self.refuse_unfinished(!self.agree || self.superblock.journal_blocks != self.formatted.journal_blocks)
    }

    /// A change of the journal begins with the volumes that the metadata knows.
    fn refuse_unfinished_volumes(&self) -> Result<(), ChangeError> {
        self.refuse_unfinished(!self.is_as_formatted())
    }

    /// Whether the superblock has the volumes that the metadata knows.
    fn is_as_formatted(&self) -> bool {
        let known = self.formatted.volumes.iter().map(|volume| volume.blocks);
        known.eq(self.superblock.volume_blocks().iter().copied())
    }

    fn refuse_unfinished(&self, is: bool) -> Result<(), ChangeError> {
        let path = self.config.journal.path.clone();
        if is { Err(ChangeError::Unfinished { path }) } else { Ok(()) }
    }

    /// What is staged is to be installed in the site as it was; and a staging file is made anew as large as it has to be, which a device
    /// cannot be.
    fn refuse_staging(&self) -> Result<(), ChangeError> {
        let config = self.config;
        if staged(config, &self.journal)? {
            return Err(ChangeError::Staged { path: config.staging.clone() });
        }
        if !config.is_copied_to() || config.staging.symlink_metadata().is_err() {
            return Ok(());
        }
        let (disk, need) = (Disk::open(&config.staging)?, config.staging_blocks() * BLOCK_BYTES as u64);
        if disk.is_device() && disk.bytes() < need {
            return Err(DiskError::TooSmall { path: config.staging.clone(), have: disk.bytes(), need }.into());
        }
        Ok(())
    }

    /// Writes the superblock to both slots, one after the other: should one of them go bad, the other says the same.
    fn put_superblock(&mut self, reached: OnReached<'_>) -> Result<(), ChangeError> {
        for _ in 0..SUPERBLOCK_SLOTS {
            self.superblock.sequence += 1;
            let mut block = [0; BLOCK_BYTES];
            self.superblock.encode(&mut block);
            self.journal.write_blocks(self.superblock.slot(), &block)?;
            self.journal.sync()?;
            reached(Reached::Slot)?;
        }
        reached(Reached::Superblock)
    }

    /// What hosts see of the volumes, in the places that they are to have, but for what this change makes of it.
    fn shown(&self, places: &Places) -> Result<VolumeSizes, ChangeError> {
        if self.is_as_formatted() {
            return Ok(VolumeSizes::of(places.only_kept(self.superblock.sizes.iter())));
        }
        // An attempt before has come to the superblock; or one at something else has.
        let configured = self.config.volumes.iter().map(Volume::blocks);
        self.refuse_unfinished(!configured.eq(self.superblock.volume_blocks().iter().copied()))?;
        Ok(self.superblock.sizes)
    }

    /// The last steps of a change of volumes: everything says that they are those of the configuration, and hosts see so much.
    fn put_volumes(
        &mut self,
        places: &Places,
        sizes: VolumeSizes,
        reached: OnReached<'_>,
    ) -> Result<(), ChangeError> {
        self.superblock.sizes = sizes;
        self.superblock.volumes = [0; VOLUMES_MAX];
        for (blocks, volume) in self.superblock.volumes.iter_mut().zip(&self.config.volumes) {
            *blocks = volume.blocks();
        }
        self.superblock.volume_count = self.config.volumes.len();
        self.put_superblock(reached)?;
        self.put_record(places)
    }

    /// The last step: the site is what the configuration says.
    fn put_record(&self, places: &Places) -> Result<(), ChangeError> {
        Ok(self.metadata.reshape(&record(self.config), places)?)
    }

    /// Those of volumes that keep theirs.
    fn same_places(&self) -> Places {
        Places::kept(self.formatted.volumes.len())
    }
}

fn system(path: &Path, action: &'static str) -> impl Fn(io::Error) -> ChangeError {
    let path = path.to_owned();
    move |source| ChangeError::System { path: path.clone(), action, source }
}
