//! Damaged snapshot tables of a site that does not run, brought back from its peer, whose tables are the same (INV-8).

mod journal;
mod line;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::base::*;
use crate::core::history::common_point;
use crate::core::messages::{BlockPlace, Control, PageFrame};
use crate::format::metadata::Captured;
use crate::format::snapshot::SnapshotRecord;
use crate::format::tables::{TablesKind, entry_at, header_of, record_at};
use crate::format::wire::{Hello, PROTOCOL_MAX, PROTOCOL_MIN};
use crate::io::disk::{Disk, DiskError};
use crate::io::metadata::{Metadata, MetadataError};
use crate::io::quic::connection::LinkError;
use crate::io::quic::identity::IdentityError;
use crate::node::config::Config;
use crate::node::format::record;
use crate::node::run::{installs, link_config, names};

use journal::Position;
use line::{Heard, PeerLine};

/// Times that everything is asked for once more because the peer went on meanwhile.
const ATTEMPTS: usize = 3;

/// Slots compared between two looks at the link.
const RUN_BLOCKS: u64 = 256;

/// The peer hears from whoever it helps at least this often.
const WORD_EVERY: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum Wrong {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("site {site} runs: stop it with `lockstep stop --config {}`, then give this command again", file.display())]
    Runs { site: String, file: PathBuf },
    #[error("{0}")]
    Refused(String),
}

impl Wrong {
    /// Whether the site's own files are the reason.
    pub fn is_about_files(&self) -> bool {
        matches!(self, Wrong::Disk(_) | Wrong::Metadata(_) | Wrong::Identity(_) | Wrong::Runs { .. })
    }
}

/// A block that a snapshot keeps and neither site has any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    pub snapshot: String,
    pub volume: String,
    pub block: u64,
}

/// What came of a repair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repaired {
    /// What was wrong.
    pub damage: String,
    /// Where the damaged file is kept.
    pub kept: PathBuf,
    /// The snapshots that the tables have, oldest first.
    pub snapshots: Vec<String>,
    pub entries: u64,
    /// The tables have everything up to here.
    pub applied: UpdateNumber,
    /// Old blocks that came from the peer, because this site's differential volume had something else.
    pub fetched: u64,
    pub lost: Vec<Lost>,
    /// The tables come with what was copied from the peer, which the next start installs.
    pub staged: bool,
}

/// What the peer's tables hold.
#[derive(Default)]
struct PeerTables {
    applied: UpdateNumber,
    snapshots: Vec<SnapshotRecord>,
    entries: Vec<Captured>,
}

/// Looks at the tables and brings them back if they are damaged; `None` if they are sound. The site must not run.
pub fn repair(config: &Config, patience: Duration) -> Result<Option<Repaired>, Wrong> {
    let journal_disk = Disk::open(&config.journal.path).map_err(|error| match error {
        DiskError::Locked { .. } => Wrong::Runs { site: config.site.name.clone(), file: config.file.clone() },
        error => error.into(),
    })?;
    let damage = match Metadata::open_sound(&config.metadata, &names(config)) {
        Ok(_) => return Ok(None),
        Err(MetadataError::Damaged { what }) => what,
        Err(error) => return Err(error.into()),
    };
    let Some(pair) = &config.replication else {
        return Err(Wrong::Refused(format!("{damage}; this site has no peer to bring its tables back from")));
    };
    if installs(config, &journal_disk)? {
        let kept = replace(config, &PeerTables::default())?;
        let (snapshots, lost) = (Vec::new(), Vec::new());
        let applied = UpdateNumber::NONE;
        return Ok(Some(Repaired {
            damage,
            kept,
            snapshots,
            entries: 0,
            applied,
            fetched: 0,
            lost,
            staged: true,
        }));
    }
    let position = journal::position(config, &journal_disk)?;
    let differential = Disk::open(&config.differential.path)?;
    let peer = &pair.peer.name;
    let of_peer = |wrong: Wrong| match wrong {
        Wrong::Refused(why) => {
            Wrong::Refused(format!("the tables cannot be brought back from {peer}: {why}"))
        }
        wrong => wrong,
    };
    let (mut line, hello) = PeerLine::connect(&link_config(config, pair)?, patience).map_err(of_peer)?;
    let settled = settled_at_both(config, &position, &hello).map_err(of_peer)?;
    let mut attempt = 0;
    let (tables, fetched, lost) = loop {
        attempt += 1;
        let tables = fetch_tables(config, &mut line, settled).map_err(of_peer)?;
        let (fetched, lost) = restore_blocks(&mut line, &differential, &tables.entries).map_err(of_peer)?;
        // What the peer lacks may have been given up there since it was asked for its tables.
        if lost.is_empty() || attempt == ATTEMPTS {
            break (tables, fetched, lost);
        }
    };
    differential.sync()?;
    let kept = replace(config, &tables)?;
    let lost = lost.iter().map(|entry| name_lost(config, &tables.snapshots, entry)).collect();
    Ok(Some(Repaired {
        damage,
        kept,
        snapshots: tables.snapshots.iter().map(|record| record.name.as_str().to_owned()).collect(),
        entries: tables.entries.len() as u64,
        applied: tables.applied,
        fetched,
        lost,
        staged: false,
    }))
}

/// What both sites have durably, and so all that this site's tables can have had: nothing was ever committed here that was not
/// settled. Unless it was settled by this site alone.
fn settled_at_both(config: &Config, here: &Position, hello: &Hello) -> Result<UpdateNumber, Wrong> {
    let refuse = |why: String| Err(Wrong::Refused(why));
    let peer = config.replication.as_ref().map(|pair| pair.peer.id);
    if hello.protocol_min > PROTOCOL_MAX || hello.protocol_max < PROTOCOL_MIN {
        return refuse(format!(
            "it speaks protocol {} to {}, this lockstep {PROTOCOL_MIN} to {PROTOCOL_MAX}",
            hello.protocol_min, hello.protocol_max
        ));
    }
    if hello.group != config.group_id() || Some(hello.site) != peer {
        return refuse(format!("it is site {} of group {}", hello.site.0, hello.group));
    }
    let blocks: Vec<u64> = config.volumes.iter().map(|volume| volume.blocks()).collect();
    let theirs: Vec<u64> = hello.volumes().iter().map(|volume| volume.blocks).collect();
    let differential_blocks = config.differential.bytes / BLOCK_BYTES as u64;
    if blocks != theirs || hello.differential_blocks != differential_blocks {
        return refuse("its volumes or its differential volume have other sizes".to_owned());
    }
    let common = common_point(&here.history, here.last, &hello.history, hello.last);
    // A follower's journal may say so too, of the site that it follows; but all that it holds came from there.
    if here.solo && common < here.last {
        return refuse(format!(
            "it has the updates up to {common}, and this site went on alone to {}: what snapshots kept since then is in no other \
             tables",
            here.last
        ));
    }
    // The peer has taken over since. Replay would find in this journal what those tables have no slots for.
    if common < here.last && common < hello.last {
        return refuse(format!(
            "it took over after {common}, and this site's journal goes on to {} without it: that has to be dropped first, which only a \
             site that runs does. Format this site anew; it catches up as long as the peer's journal reaches back far enough",
            here.last
        ));
    }
    Ok(common)
}

fn fetch_tables(config: &Config, line: &mut PeerLine, settled: UpdateNumber) -> Result<PeerTables, Wrong> {
    let wrong = |why: String| Wrong::Refused(format!("it sent tables that make no sense: {why}"));
    let mut tables = PeerTables::default();
    let mut page = 0;
    loop {
        line.say(Control::TablesWanted { settled, page });
        let body = loop {
            if let Heard::Page(PageFrame::Tables, body, BLOCK_BYTES) = line.listen()? {
                break body;
            }
        };
        let header = header_of(&body).map_err(|error| wrong(error.to_string()))?;
        if header.index != page {
            // It had to begin anew.
            if header.index != 0 {
                return Err(wrong(format!("page {} in place of page {page}", header.index)));
            }
            tables = PeerTables::default();
        }
        if header.index > 0 && header.applied != tables.applied {
            return Err(wrong("pages of different moments".to_owned()));
        }
        tables.applied = header.applied;
        for index in 0..header.count {
            match header.kind {
                TablesKind::Snapshots => {
                    let record = record_at(&body, index).map_err(|error| wrong(error.to_string()))?;
                    tables.snapshots.push(record);
                }
                TablesKind::Entries => {
                    let entry = entry_at(&body, index).map_err(|error| wrong(error.to_string()))?;
                    tables.entries.push(entry);
                }
            }
        }
        if header.last {
            break;
        }
        page = header.index + 1;
    }
    if tables.applied < settled {
        return Err(wrong(format!("they are of {}, and {settled} was asked for", tables.applied)));
    }
    judge(config, &tables).map_err(wrong)?;
    Ok(tables)
}

/// Whether they can be this group's.
fn judge(config: &Config, tables: &PeerTables) -> Result<(), String> {
    let volumes = VolumeSet::first(config.volumes.len());
    let ordered = tables.snapshots.windows(2).all(|two| two[0].number < two[1].number);
    let known = tables
        .snapshots
        .iter()
        .all(|record| record.volumes.is_within(volumes) && record.number <= tables.applied);
    if !ordered || !known || tables.snapshots.len() > SNAPSHOTS_MAX {
        return Err("snapshots that this group cannot have".to_owned());
    }
    let key = |entry: &Captured| (entry.volume.0, entry.lba.0, entry.snapshot.0);
    let slots = config.differential.bytes / BLOCK_BYTES as u64;
    let within = |entry: &Captured| {
        let volume = config.volumes.get(usize::from(entry.volume.0));
        volume.is_some_and(|volume| entry.lba.0 < volume.blocks())
            && entry.slot.0 < slots
            && entry.snapshot <= tables.applied
    };
    let mut used = BTreeSet::new();
    if !tables.entries.windows(2).all(|two| key(&two[0]) < key(&two[1]))
        || !tables.entries.iter().all(|entry| within(entry) && used.insert(entry.slot.0))
    {
        return Err("entries out of order, beyond their volume, or of one slot".to_owned());
    }
    Ok(())
}

/// Compares each slot with its entry, and gets from the peer what is something else. Returns how many came, and those that did not.
fn restore_blocks(
    line: &mut PeerLine,
    differential: &Disk,
    entries: &[Captured],
) -> Result<(u64, Vec<Captured>), Wrong> {
    let mut by_slot: Vec<&Captured> = entries.iter().collect();
    by_slot.sort_by_key(|entry| entry.slot.0);
    let (mut fetched, mut lost) = (0, Vec::new());
    let mut said = Instant::now();
    let mut rest = &by_slot[..];
    while let Some(first) = rest.first() {
        let end = (first.slot.0 + RUN_BLOCKS).min(differential.blocks());
        let count = rest.partition_point(|entry| entry.slot.0 < end);
        let (run, after) = rest.split_at(count);
        rest = after;
        let mut bytes = vec![0; (end - first.slot.0) as usize * BLOCK_BYTES];
        differential.read_blocks(first.slot.0, &mut bytes)?;
        let (blocks, _) = bytes.as_chunks::<BLOCK_BYTES>();
        line.turn();
        for entry in run {
            let found = &blocks[(entry.slot.0 - first.slot.0) as usize];
            if entry.sum == BlockSum::ZEROS {
                // Nobody has to be asked what these are.
                if found.iter().any(|byte| *byte != 0) {
                    differential.write_blocks(entry.slot.0, &[0; BLOCK_BYTES])?;
                }
                continue;
            }
            let good = sum_of_block(found) == entry.sum;
            if good && said.elapsed() < WORD_EVERY {
                continue;
            }
            said = Instant::now();
            match fetch_block(line, entry)? {
                Some(_) if good => {}
                Some(block) => {
                    differential.write_blocks(entry.slot.0, &block[..])?;
                    fetched += 1;
                }
                None if good => {}
                None => lost.push(**entry),
            }
        }
    }
    Ok((fetched, lost))
}

fn fetch_block(line: &mut PeerLine, entry: &Captured) -> Result<Option<Box<[u8; BLOCK_BYTES]>>, Wrong> {
    let place = BlockPlace::Slot(entry.slot);
    line.say(Control::BlockWanted { place, sum: entry.sum });
    loop {
        match line.listen()? {
            Heard::Lacking(lacking) if lacking == place => return Ok(None),
            Heard::Page(PageFrame::Block, block, BLOCK_BYTES) if sum_of_block(&block) == entry.sum => {
                return Ok(Some(block));
            }
            _ => {}
        }
    }
}

/// A new file takes the place of the damaged one, which is kept beside it. Before that moment nothing has changed, and a repair that was
/// interrupted is begun anew. The changed-block set is of no snapshot and in no other file: it is taken over, if it is whole.
fn replace(config: &Config, tables: &PeerTables) -> Result<PathBuf, Wrong> {
    let path = &config.metadata;
    let (fresh, kept) = (beside(path, "repaired"), beside(path, "damaged"));
    let system = |action: &'static str| {
        let path = path.clone();
        move |source| Wrong::Disk(DiskError::System { path, action, source })
    };
    let absent = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    };
    std::fs::remove_file(&fresh).or_else(absent).map_err(system("remove what an earlier repair left"))?;
    let metadata = Metadata::create(&fresh, &record(config))?;
    metadata.fill(tables.applied, &tables.snapshots, &tables.entries)?;
    if let Some(set) = Metadata::changed_set(path) {
        metadata.take_changed_set(&set)?;
    }
    drop(metadata);
    std::fs::remove_file(&kept).or_else(absent).map_err(system("remove the last damaged one"))?;
    std::fs::hard_link(path, &kept).or_else(absent).map_err(system("keep the damaged one"))?;
    std::fs::rename(&fresh, path).map_err(system("put the repaired one in its place"))?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let synced = std::fs::File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(system("flush its folder"))?;
    Ok(kept)
}

fn beside(path: &Path, what: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(what);
    PathBuf::from(name)
}

fn name_lost(config: &Config, snapshots: &[SnapshotRecord], entry: &Captured) -> Lost {
    // Whoever lives and needs it first; a deleted snapshot's number if nobody does.
    let needs =
        |record: &&SnapshotRecord| record.number <= entry.snapshot && record.volumes.contains(entry.volume);
    let snapshot = snapshots.iter().rev().find(needs);
    Lost {
        snapshot: snapshot.map_or_else(|| entry.snapshot.to_string(), |it| it.name.as_str().to_owned()),
        volume: config.volumes[usize::from(entry.volume.0)].name.clone(),
        block: entry.lba.0,
    }
}
