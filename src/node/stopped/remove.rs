//! Removing volumes of a site. Those behind one that goes move up in the group's list, by whose places snapshots, tables and updates know them:
//! tables are rewritten with them, and what the journal still has must not name any of them.

use super::journal::Held;
use super::{ChangeError, OnReached, Stopped, record};
use crate::base::{VolumeId, VolumeSizes};
use crate::format::update::{Update, UpdateKind};
use crate::io::metadata::Places;
use crate::node::config::Config;

/// Whether the volumes of these names can be removed from this site. That they can from one says nothing of another, and what stands in the
/// way of that goes away only while all run with the old configuration. The site must not run.
pub fn check_removal(config: &Config, names: &[String]) -> Result<(), ChangeError> {
    removing(config, names).map(drop)
}

/// Removes the volumes of these names, which the configuration has no longer. Their files stay. The site must not run.
pub fn remove(config: &Config, names: &[String], reached: OnReached<'_>) -> Result<(), ChangeError> {
    let (mut site, places, sizes) = removing(config, names)?;
    site.put_volumes(&places, sizes, reached)
}

/// The site, if nothing stands in the way, with the places and sizes of those that stay.
fn removing<'a>(
    config: &'a Config,
    names: &[String],
) -> Result<(Stopped<'a>, Places, VolumeSizes), ChangeError> {
    let site = Stopped::open(config)?;
    let goes = |name: &String| names.contains(name);
    let there = site.formatted.volumes.iter();
    if let Some(name) = names.iter().find(|name| !there.clone().any(|volume| volume.name == **name)) {
        return Err(ChangeError::NoSuchVolume { name: name.clone() });
    }
    let mut otherwise = record(config);
    if let Some(volume) = otherwise.volumes.iter().find(|volume| goes(&volume.name)) {
        return Err(ChangeError::StillConfigured { name: volume.name.clone() });
    }
    // With those that go put where they were, the configuration is what the site was formatted as.
    for (place, volume) in there.enumerate().filter(|(_, volume)| goes(&volume.name)) {
        otherwise.volumes.insert(place.min(otherwise.volumes.len()), volume.clone());
    }
    site.refuse_differences(&otherwise, "the number of volumes")?;
    site.refuse_unfinished_journal()?;
    site.refuse_staging()?;
    refuse_snapshots(&site, names)?;
    let places = Places::kept_if(site.formatted.volumes.iter().map(|volume| !goes(&volume.name)));
    refuse_updates(&site, names)?;
    let sizes = site.shown(&places)?;
    Ok((site, places, sizes))
}

fn refuse_snapshots(site: &Stopped<'_>, names: &[String]) -> Result<(), ChangeError> {
    for snapshot in site.metadata.snapshots()? {
        for (place, volume) in (0..).zip(&site.formatted.volumes) {
            if names.contains(&volume.name) && snapshot.volumes.contains(VolumeId(place)) {
                let snapshot = snapshot.name.as_str().to_owned();
                return Err(ChangeError::InSnapshot { snapshot, volume: volume.name.clone() });
            }
        }
    }
    Ok(())
}

/// Updates of volumes that keep their places may stay.
fn refuse_updates(site: &Stopped<'_>, names: &[String]) -> Result<(), ChangeError> {
    let first = site.formatted.volumes.iter().position(|volume| names.contains(&volume.name));
    let first = first.unwrap_or(site.formatted.volumes.len()) as u16;
    let mut named = 0;
    let moves = |update: &Update| match update.kind {
        UpdateKind::Write | UpdateKind::Zero | UpdateKind::Rewrite => update.volume.0 >= first,
        // It may be of any volume.
        UpdateKind::SnapshotCreate => true,
        _ => false,
    };
    Held::of(site, &mut |update| named += u64::from(moves(update)))?;
    match named {
        0 => Ok(()),
        updates => Err(ChangeError::InJournal { path: site.config.journal.path.clone(), updates }),
    }
}
