//! A group's events as sentences: what happened, to which volume or peer, and what to do.

mod faults;
mod patience;
mod third;

use std::time::Instant;

use crate::base::{BLOCK_BYTES, SiteId, VolumeId, VolumeSet};
use crate::core::config::{OnDifferentialFull, Role};
use crate::core::messages::{IoTarget, MetadataFault};
use crate::core::outbox::{BatchStays, Event, LossReason, NotRepaired, RepairedBy, RoleRefused};
use crate::core::sums::SUMS_PER_BLOCK;
use crate::format::snapshot::SnapshotRecord;
use crate::node::config::Config;
use crate::node::config::quantity::show_size;

use faults::fault_words;
pub use patience::Patience;
use patience::Say;

/// The names that sentences use.
#[derive(Clone, Debug)]
pub struct Names {
    pub site: SiteId,
    pub group: String,
    /// The peer; of a third, its sources.
    pub peer: String,
    pub journal: String,
    pub differential: String,
    pub staging: String,
    pub metadata: String,
    pub on_differential_full: OnDifferentialFull,
    /// The other sites, the peer among them.
    pub others: Vec<(SiteId, String)>,
    /// The one among them that pulls from this one, if there is one.
    pub third: Option<SiteId>,
    /// The configuration's own file, for commands to give next.
    pub file: String,
    /// Name and path of each volume, and the path of its checksums.
    pub volumes: Vec<(String, String, String)>,
}

/// How loud a sentence is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Debug,
    Info,
    Warn,
    Error,
}

impl Names {
    pub fn of(config: &Config) -> Names {
        let sources: Vec<&str> = config.remotes().map(|remote| remote.name.as_str()).collect();
        let peer = match &config.replication {
            Some(pair) => pair.peer.name.clone(),
            None if sources.is_empty() => "(none)".to_owned(),
            None => sources.join(" or "),
        };
        let pair = config.replication.iter().map(|pair| (pair.peer.id, pair.peer.name.clone()));
        let others = pair.chain(config.remotes().map(|remote| (remote.id, remote.name.clone())));
        let volumes = config.volumes.iter().map(|volume| {
            let (path, sums) = (volume.path.display().to_string(), volume.checksums.display().to_string());
            (volume.name.clone(), path, sums)
        });
        Names {
            site: config.site.id,
            group: config.group.name.clone(),
            peer,
            journal: config.journal.path.display().to_string(),
            differential: config.differential.path.display().to_string(),
            staging: config.staging.display().to_string(),
            metadata: config.metadata.display().to_string(),
            on_differential_full: config.group.on_differential_full,
            others: others.collect(),
            third: config.third.as_ref().map(|third| third.id),
            file: config.file.display().to_string(),
            volumes: volumes.collect(),
        }
    }

    /// Another site by its name.
    fn other(&self, site: SiteId) -> String {
        let named = self.others.iter().find(|(id, _)| *id == site);
        named.map_or_else(|| format!("site {}", site.0), |(_, name)| name.clone())
    }

    /// The third site, seen from those that feed it.
    fn third(&self) -> String {
        self.third.map_or_else(|| "the third site".to_owned(), |site| self.other(site))
    }

    fn target(&self, target: IoTarget) -> String {
        match target {
            IoTarget::Journal => format!("the journal {}", self.journal),
            IoTarget::Volume(volume) => {
                let (name, path, _) = &self.volumes[volume.0 as usize];
                format!("volume {name} ({path})")
            }
            IoTarget::Checksums(volume) => {
                let (name, _, sums) = &self.volumes[volume.0 as usize];
                format!("the checksums of volume {name} ({sums})")
            }
            IoTarget::Differential => format!("the differential volume {}", self.differential),
            IoTarget::Staging => format!("the staging file {}", self.staging),
        }
    }

    /// A snapshot by its name, number and volumes.
    fn snapshot(&self, record: &SnapshotRecord) -> String {
        let SnapshotRecord { name, number, volumes, .. } = record;
        format!("snapshot {} ({number}) of {}", name.as_str(), self.volumes(*volumes))
    }

    fn volumes(&self, set: VolumeSet) -> String {
        let of_set = |(index, _): &(usize, _)| set.contains(VolumeId(*index as u16));
        let names: Vec<&str> =
            self.volumes.iter().enumerate().filter(of_set).map(|(_, (name, ..))| name.as_str()).collect();
        format!("volume{} {}", if names.len() == 1 { "" } else { "s" }, names.join(", "))
    }

    /// What an operator is to do about a differential volume that fills.
    fn make_room(&self, role: Role) -> String {
        let otherwise = match (role, self.on_differential_full) {
            (Role::Secondary | Role::Third, _) => {
                "at the primary; what happens when it is full is decided there"
            }
            (_, OnDifferentialFull::DeleteOldest) => {
                "or the oldest one that is not protected is deleted when it is full"
            }
            (_, OnDifferentialFull::Error) => "or writes fail when it is full",
        };
        format!(
            "delete snapshots that nobody needs (`lockstep snapshot list --config {}` shows what each keeps), {otherwise}",
            self.file
        )
    }

    fn repair_tables(&self) -> String {
        format!(
            "stop it (`lockstep stop --config {0}`), then `lockstep snapshot repair --config {0}` brings them back from {1}",
            self.file, self.peer
        )
    }

    pub fn sentence(&self, event: &Event) -> (Level, String) {
        let peer = &self.peer;
        match *event {
            Event::Recovered { checkpoint, last, replayed, role } => (
                Level::Info,
                format!(
                    "recovered as {}: checkpoint {checkpoint}, {replayed} updates replayed from the journal, last {last}",
                    role.name()
                ),
            ),
            Event::GenerationOpened { generation, first } => {
                let ours = generation.opener() == self.site;
                let then = if ours { "hosts are served" } else { "this site follows it" };
                (Level::Info, format!("generation {generation} is open from {first}; {then}"))
            }
            Event::HostsToGo => (
                Level::Info,
                "this site leaves its role as primary: hosts are disconnected, and everything comes to rest"
                    .to_owned(),
            ),
            Event::LeavingAbandoned { why } => {
                (Level::Warn, format!("this site stays the primary, and hosts may connect again: {why}"))
            }
            Event::RoleChanged { role: Role::Primary } => {
                (Level::Warn, "this site is the primary now; hosts can write here".to_owned())
            }
            Event::RoleChanged { role: Role::Secondary | Role::Third } => (
                Level::Warn,
                format!(
                    "this site is a secondary now, and takes no writes; where {peer} is primary, hosts write there"
                ),
            ),
            Event::PeerInSync => (Level::Info, format!("in lockstep with {peer}")),
            Event::PeerCatchingUp { from, to } => {
                (Level::Info, format!("{peer} catches up from the journal, {from} to {to}"))
            }
            Event::PeerLost { reason } => (Level::Warn, self.loss(peer, reason)),
            Event::SoloBegan { at } => (
                Level::Warn,
                format!("solo from {at}: writes are acknowledged by this site alone until {peer} is back"),
            ),
            Event::SoloEnded { at } => {
                (Level::Info, format!("solo ended at {at}: {peer} holds every update again"))
            }
            Event::TailCut { keep, dropped } => (
                Level::Warn,
                format!(
                    "{dropped} updates after {keep} were dropped: {peer} never had them, nor any host an answer"
                ),
            ),
            Event::Refused { site, by_us, refusal } => {
                let other = self.other(site);
                let who =
                    if by_us { format!("{other} was refused") } else { format!("{other} refuses this site") };
                match refusal {
                    Some(refusal) => (Level::Error, format!("{who}: {} ({:?})", refusal.text, refusal.code)),
                    None => (Level::Error, format!("{who} without a reason that this version understands")),
                }
            }
            Event::Failed { target, fault, block } => {
                let target = self.target(target);
                let (what, remedy) = fault_words(fault);
                (
                    Level::Error,
                    format!(
                        "{target} failed at block {block}: {what}. This site has left the group; {remedy}"
                    ),
                )
            }
            Event::ReadAgain { target, fault, block } => (
                Level::Warn,
                format!(
                    "{} could not be read at block {block}: {}. It is read once more; see to the disk",
                    self.target(target),
                    fault_words(fault).0
                ),
            ),
            Event::ReadFailed { target, fault, block } => (
                Level::Error,
                format!(
                    "{} cannot be read at block {block}: {}. Whoever needed it got an error, and the site goes on; see to the disk",
                    self.target(target),
                    fault_words(fault).0
                ),
            ),
            Event::BlockUnreadable { target, block, errno } => (
                Level::Error,
                format!(
                    "{} block {block} cannot be read: {}. It is taken for one that holds something else, and is not served",
                    self.target(target),
                    std::io::Error::from_raw_os_error(errno)
                ),
            ),
            Event::ChecksumMismatch { volume, lba } => (
                Level::Error,
                format!(
                    "{} block {} is not what was written there (checksum mismatch), and is not served. Check the drive",
                    self.target(IoTarget::Volume(volume)),
                    lba.0
                ),
            ),
            Event::BlockRepaired { volume, lba, by } => {
                let how = match by {
                    RepairedBy::Peer => format!("the block of {peer} was written there"),
                    RepairedBy::Memory => "it was written again from the cache".to_owned(),
                    RepairedBy::NewerData => "newer data was written over it".to_owned(),
                };
                let target = self.target(IoTarget::Volume(volume));
                (Level::Warn, format!("{target} block {} is repaired: {how}. Check that drive", lba.0))
            }
            Event::Scrubbed { complete, blocks, bad, unrepaired } => {
                let ended = if complete { "everything was scrubbed" } else { "a scrub was ended" };
                let level = if unrepaired > 0 { Level::Error } else { Level::Info };
                (
                    level,
                    format!("{ended}: {blocks} blocks read, {bad} bad, {unrepaired} of them not repaired"),
                )
            }
            Event::ChecksumsDamaged { volume, block } => {
                let blocks = block * SUMS_PER_BLOCK;
                (
                    Level::Error,
                    format!(
                        "{}, block {block} (of the volume's blocks {blocks} to {}) are not what was written there; memory has what they are to \
                         be, and they are written anew with the next checkpoint. Check that drive",
                        self.target(IoTarget::Checksums(volume)),
                        blocks + SUMS_PER_BLOCK - 1
                    ),
                )
            }
            Event::ChecksumsRewritten { blocks } => {
                (Level::Warn, format!("{blocks} damaged blocks of checksum files are written anew"))
            }
            Event::BatchDamaged { block, first, last } => (
                Level::Error,
                format!(
                    "{} is not what was written there at block {block} ({first} to {last}). Nothing of it is lost: this site has these updates \
                     in memory or in its volumes, and a checkpoint past them is asked for, after which nobody needs that part. Until the \
                     log says so, do not restart this site. Check that drive",
                    self.target(IoTarget::Journal)
                ),
            ),
            Event::BatchPassed { block } => (
                Level::Warn,
                format!(
                    "{} is not needed any more at block {block}, where it was damaged: a checkpoint is past it",
                    self.target(IoTarget::Journal)
                ),
            ),
            Event::BatchStays { block, first, last, why } => {
                let why = match why {
                    BatchStays::Unsettled => format!(
                        "{peer} is not connected, and these updates are not settled without it. Bring it back"
                    ),
                    BatchStays::ForPeer => format!(
                        "{peer} is not connected, and the journal is held for it. Bring it back; it cannot have these updates from there, so if \
                         it lacks them this site leaves the group when it comes to them: then format {peer} anew"
                    ),
                };
                (
                    Level::Error,
                    format!(
                        "{} is damaged at block {block} ({first} to {last}) and still needed, and a restart of this site would be refused: \
                         {why}. Then `lockstep scrub --config {}`",
                        self.target(IoTarget::Journal),
                        self.file
                    ),
                )
            }
            Event::BlockNotRepaired { volume, lba, why } => {
                let again =
                    format!("then `lockstep scrub --config {}`, or any read of it, repairs it", self.file);
                let why = match why {
                    NotRepaired::NoPeer => {
                        "there is no other site. Write it anew, or restore it from a backup".to_owned()
                    }
                    NotRepaired::Away => format!("{peer} is not connected. Bring it back: {again}"),
                    NotRepaired::NoAnswer => {
                        format!("{peer} did not answer in time. Look at its log: {again}")
                    }
                    NotRepaired::Busy => format!("{peer} cannot look now. Wait a moment: {again}"),
                    NotRepaired::OtherContent => format!(
                        "{peer} holds other content there. If it is behind or ahead, wait until the sites are in sync: {again}. \
                         If they are, the checksums of this site may be damaged; write the block anew"
                    ),
                    NotRepaired::DamagedToo => {
                        format!(
                            "the block of {peer} is damaged as well. Write it anew, or restore it from a backup"
                        )
                    }
                };
                let target = self.target(IoTarget::Volume(volume));
                (
                    Level::Error,
                    format!("{target} block {} cannot be repaired, reading it fails: {why}", lba.0),
                )
            }
            Event::ImagesDiffer { volume, lba, snapshot } => (
                Level::Error,
                format!(
                    "{} block {} is not what the primary overwrote, which is to be kept for snapshot {}: the sites' images \
                     differ. This site leaves the group and serves nothing; copy the volumes from the site that is right \
                     before it comes back",
                    self.target(IoTarget::Volume(volume)),
                    lba.0,
                    snapshot.as_str()
                ),
            ),
            Event::VolumeExtended { volume, from, to } => {
                let [from, to] = [from, to].map(|blocks| show_size(blocks * BLOCK_BYTES as u64));
                let target = self.target(IoTarget::Volume(volume));
                (Level::Info, format!("{target} has {to} now, and had {from}: hosts that connect see it"))
            }
            Event::Checkpointed { number } => (Level::Debug, format!("checkpoint {number}")),
            Event::SnapshotCreated { snapshot } => {
                (Level::Info, format!("{} is taken", self.snapshot(&snapshot)))
            }
            Event::SnapshotDeleted { snapshot } => {
                (Level::Info, format!("{} is deleted", self.snapshot(&snapshot)))
            }
            Event::SnapshotProtected { snapshot } => {
                let state = match snapshot.protected {
                    true => "protected: it is not deleted to make room",
                    false => "not protected any more: it may be deleted to make room",
                };
                (Level::Info, format!("{} is {state}", self.snapshot(&snapshot)))
            }
            Event::SnapshotGivenUp { snapshot } => (
                Level::Warn,
                format!(
                    "the differential volume {} is full, so {} is deleted, the oldest that is not protected. Protect what must \
                     stay (`lockstep snapshot protect --config {} NAME`), or give differential.size more",
                    self.differential,
                    self.snapshot(&snapshot),
                    self.file
                ),
            ),
            Event::DifferentialFilling { role, used, total } => (
                Level::Warn,
                format!(
                    "the differential volume {} is {} % full ({used} of {total} blocks): {}",
                    self.differential,
                    used * 100 / total,
                    self.make_room(role)
                ),
            ),
            Event::SnapshotMismatch { snapshot, volume, lba } => (
                Level::Error,
                format!(
                    "{} block {} as of snapshot {snapshot} is not what was kept (checksum mismatch), and is not served; {peer} is asked \
                     for the block. Check the drive of the differential volume {}",
                    self.target(IoTarget::Volume(volume)),
                    lba.0,
                    self.differential
                ),
            ),
            Event::SnapshotRepaired { snapshot, volume, lba } => (
                Level::Warn,
                format!(
                    "{} block {} as of snapshot {snapshot} is repaired in {}: {peer} had it. Check that drive",
                    self.target(IoTarget::Volume(volume)),
                    lba.0,
                    self.differential
                ),
            ),
            Event::SnapshotNotRepaired { snapshot, volume, lba, why } => {
                let again =
                    format!("then `lockstep scrub --config {}`, or any read of it, repairs it", self.file);
                let why = match why {
                    NotRepaired::NoPeer => "there is no other site".to_owned(),
                    NotRepaired::Away => format!("{peer} is not connected. Bring it back: {again}"),
                    NotRepaired::NoAnswer => {
                        format!("{peer} did not answer in time. Look at its log: {again}")
                    }
                    NotRepaired::Busy => format!("{peer} cannot look now. Wait a moment: {again}"),
                    NotRepaired::OtherContent => format!(
                        "{peer} does not keep that block there. If it is behind or ahead, wait until the sites are in sync: {again}. \
                         If they are, delete the snapshot, or restore what it is needed for from a backup"
                    ),
                    NotRepaired::DamagedToo => format!(
                        "{peer} has no such block either. Delete the snapshot, or restore what it is needed for from a backup"
                    ),
                };
                (
                    Level::Error,
                    format!(
                        "{} block {} as of snapshot {snapshot} cannot be repaired: {why}",
                        self.target(IoTarget::Volume(volume)),
                        lba.0
                    ),
                )
            }
            Event::MetadataFailed { fault } => (
                Level::Error,
                match fault {
                    MetadataFault::Storage => format!(
                        "the snapshot tables {} cannot be read or written; the log says why. This site has left the group; see to \
                         its disk, then restart the site",
                        self.metadata
                    ),
                    MetadataFault::Corrupt => format!(
                        "the snapshot tables {} are damaged; the log says where. This site has left the group; {}",
                        self.metadata,
                        self.repair_tables()
                    ),
                },
            ),
            Event::TablesDamaged => (
                Level::Error,
                format!(
                    "the snapshot tables {} are damaged; the log says where. Reads of snapshots that need the damaged entry are \
                     answered with an error, the volumes are as they were; {}",
                    self.metadata,
                    self.repair_tables()
                ),
            ),
            Event::RoleRefused { why } => (Level::Error, self.role_refused(why)),
            Event::ThirdFed { .. }
            | Event::ThirdPromoted { .. }
            | Event::ThirdResumed { .. }
            | Event::ThirdLapsesSoon { .. }
            | Event::ThirdLost { .. }
            | Event::ThirdLapsed { .. }
            | Event::SourceFollowed { .. }
            | Event::SourceLost { .. }
            | Event::SourceLapsed { .. }
            | Event::CopyToThirdBegan { .. }
            | Event::CopyToThirdEnded { .. }
            | Event::CopyBegan { .. } => self.sentence_of_third(event),
            Event::TablesUnreadable => (
                Level::Error,
                format!(
                    "the snapshot tables {} could not be looked at; the log says why. The site goes on; see to their disk",
                    self.metadata
                ),
            ),
            Event::HostDeadline { oldest_ns } => (
                Level::Warn,
                format!(
                    "operations that waited up to {} ms were answered with an error: group.host_deadline passed before \
                     the sites agreed; look at `lockstep status`",
                    oldest_ns / 1_000_000
                ),
            ),
            Event::ResyncBegan { blocks, whole: false } => (
                Level::Info,
                format!(
                    "a resync begins: the secondary lacks more than the primary's journal holds, and is copied {} MiB that have changed; \
                     until it has all of them its volumes stay what they were",
                    mib_of(blocks)
                ),
            ),
            Event::ResyncBegan { blocks, whole: true } => (
                Level::Warn,
                format!(
                    "a resync of all blocks begins: the secondary was formatted anew, or lacks more than the primary's journal and its set \
                     of changed blocks reach back to, so all {} MiB are compared, and what differs is copied; until it has all of it its volumes stay what they were",
                    mib_of(blocks)
                ),
            ),
            Event::HostsAwaitCopy { at_most } => (
                Level::Warn,
                format!(
                    "hosts write faster than {peer} is copied what it lacks: they may have to wait for the copy to end, {} ms at most",
                    at_most.0 / 1_000_000
                ),
            ),
            Event::ResyncEnded { at, blocks, equal, took_ns } => (
                Level::Info,
                format!(
                    "{peer} has been copied what it lacked, {} MiB{} in {} s, and follows from {at}",
                    mib_of(blocks),
                    match equal {
                        0 => String::new(),
                        _ => format!(" (and not {} MiB that are equal, or zeros)", mib_of(equal)),
                    },
                    took_ns / 1_000_000_000
                ),
            ),
            Event::SplitResolved { common, here: true } => (
                Level::Warn,
                format!(
                    "{peer} gives way: what it has after {common} goes once it has been copied what this site has instead"
                ),
            ),
            Event::SplitResolved { common, here: false } => (
                Level::Warn,
                format!(
                    "this site gives way to {peer}: what it has after {common} goes once it has been copied what is there instead, and stays \
                     what it is until then"
                ),
            ),
            Event::LogFound { blocks } => (
                Level::Info,
                format!(
                    "{} MiB of that were staged before this site started; the copy goes on behind them",
                    mib_of(blocks)
                ),
            ),
            Event::StagedWhole { upto } => (
                Level::Info,
                format!(
                    "everything that this site lacked up to {upto} is staged; it starts anew to bring that to its volumes"
                ),
            ),
            Event::Installed { upto, blocks } => (
                Level::Info,
                format!("{} MiB are installed: the volumes hold everything up to {upto}", mib_of(blocks)),
            ),
            Event::StagingFailed { fault, blocks } => (
                Level::Error,
                format!(
                    "{} cannot be written behind its first {} MiB ({}): this site cannot be copied what it lacks, and stays what it was; see to its disk or make room on its filesystem",
                    self.target(IoTarget::Staging),
                    mib_of(blocks),
                    fault_words(fault).0
                ),
            ),
            Event::Stopped => {
                (Level::Info, format!("group {} is drained, and its checkpoint is written", self.group))
            }
        }
    }

    fn role_refused(&self, why: RoleRefused) -> String {
        let anew = format!(
            "or give up what it holds: `lockstep format --force --config {}` makes it empty",
            self.file
        );
        match why {
            RoleRefused::WasPrimary => format!(
                "site.role is \"third\", and this site is the primary of a pair: hosts may have been told of writes that no other site has. \
                 Start it as a site of its pair, or as the secondary of the site that took over, {anew}"
            ),
            RoleRefused::Unsettled { after, last } => format!(
                "site.role is \"third\", and this site was a secondary that does not know whether what it has after {after}, up to {last}, is \
                 settled. A third holds nothing else: start it as a secondary, let it catch up, and stop it while no host writes, {anew}"
            ),
            RoleRefused::GaveWay => format!(
                "site.role is \"third\", and this site has given way to its peer: start it as that one's secondary until it is in lockstep, \
                 {anew}"
            ),
            RoleRefused::NotPromoted => format!(
                "site.role is \"primary\", and this site is a third: start it as what it is (with its [[source]] sections) and make it primary \
                 by `lockstep promote --config {}`; or write \"secondary\" to make it the peer of a primary",
                self.file
            ),
        }
    }

    fn loss(&self, peer: &str, reason: LossReason) -> String {
        match reason {
            LossReason::Disconnected => format!("{peer} is lost: the connection is gone"),
            LossReason::LatencyBudget { unanswered_ns } => format!(
                "{peer} is lost: it left {} ms unanswered, which is beyond group.latency_budget",
                unanswered_ns / 1_000_000
            ),
            LossReason::Protocol(what) => format!("{peer} is lost: {what}"),
        }
    }

    /// Logs an event at its level, unless there are too many of its kind.
    pub fn log(&self, event: &Event, patience: &mut Patience) {
        let say = patience.judge(event, Instant::now);
        if say == Say::Nothing {
            return;
        }
        let (level, sentence) = self.sentence(event);
        match level {
            Level::Debug => tracing::debug!("{sentence}"),
            Level::Info => tracing::info!("{sentence}"),
            Level::Warn => tracing::warn!("{sentence}"),
            Level::Error => tracing::error!("{sentence}"),
        }
        if say == Say::TheLast {
            tracing::warn!(
                "there are too many bad blocks to name each: more of this second are only counted, by `lockstep status --json --config {}`",
                self.file
            );
        }
    }
}

/// Rounded up: a few blocks are something.
fn mib_of(blocks: u64) -> u64 {
    blocks.div_ceil((1 << 20) / BLOCK_BYTES as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Lba, UpdateNumber};
    use crate::core::messages::IoFault;
    use crate::format::snapshot::SnapshotName;

    fn names() -> Names {
        Names {
            site: SiteId(1),
            group: "orders".to_owned(),
            peer: "right".to_owned(),
            journal: "/j".to_owned(),
            differential: "/d".to_owned(),
            staging: "/staging".to_owned(),
            metadata: "/m".to_owned(),
            on_differential_full: OnDifferentialFull::DeleteOldest,
            others: vec![(SiteId(2), "right".to_owned()), (SiteId(3), "far".to_owned())],
            third: Some(SiteId(3)),
            file: "/etc/left.toml".to_owned(),
            volumes: ["data", "log", "undo"]
                .map(|name| (name.to_owned(), format!("/v/{name}"), format!("/s/{name}")))
                .to_vec(),
        }
    }

    #[test]
    fn snapshots_are_named_with_their_volumes_and_what_to_do() {
        let of = |volumes| SnapshotRecord {
            number: UpdateNumber(7),
            volumes: VolumeSet(volumes),
            name: SnapshotName::new("nightly"),
            ..SnapshotRecord::EMPTY
        };
        let say = |event| names().sentence(&event).1;
        assert_eq!(
            say(Event::SnapshotCreated { snapshot: of(0b101) }),
            "snapshot nightly (#7) of volumes data, undo is taken"
        );
        let deleted = say(Event::SnapshotDeleted { snapshot: of(0b010) });
        assert_eq!(deleted, "snapshot nightly (#7) of volume log is deleted");
        for (protected, words) in [(true, "is protected"), (false, "not protected any more")] {
            let said = say(Event::SnapshotProtected { snapshot: SnapshotRecord { protected, ..of(1) } });
            assert!(said.contains("snapshot nightly (#7) of volume data") && said.contains(words), "{said}");
        }
        let given_up = say(Event::SnapshotGivenUp { snapshot: of(1) });
        let filling = say(Event::DifferentialFilling { role: Role::Primary, used: 9, total: 10 });
        assert!(given_up.contains("nightly (#7) of volume data"), "{given_up}");
        assert!(filling.contains("90 % full (9 of 10 blocks)") && filling.contains("oldest"), "{filling}");
        for said in [given_up, filling] {
            assert!(said.contains("/d") && said.contains("--config /etc/left.toml"), "{said}");
        }
        let (volume, lba, snapshot) = (VolumeId(1), Lba(5), SnapshotName::new("nightly"));
        for event in [
            Event::SnapshotMismatch { snapshot, volume, lba },
            Event::SnapshotRepaired { snapshot, volume, lba },
            Event::SnapshotNotRepaired { snapshot, volume, lba, why: NotRepaired::DamagedToo },
            Event::SnapshotNotRepaired { snapshot, volume, lba, why: NotRepaired::OtherContent },
            Event::SnapshotNotRepaired { snapshot, volume, lba, why: NotRepaired::Away },
        ] {
            let said = say(event);
            let named = ["volume log", "block 5", "nightly", "right"];
            assert!(named.iter().all(|name| said.contains(name)), "{said}");
        }
    }

    #[test]
    fn failures_name_the_disk_and_what_to_do() {
        let failed = |target, fault| names().sentence(&Event::Failed { target, fault, block: 7 });
        let (level, full) = failed(IoTarget::Journal, IoFault::Errno(libc::ENOSPC));
        assert_eq!(level, Level::Error);
        assert!(full.contains("/j") && full.contains("block 7") && full.contains("make room"), "{full}");
        let (_, foreign) = failed(IoTarget::Checksums(VolumeId(0)), IoFault::Foreign);
        assert!(foreign.contains("/s") && foreign.contains("another group"), "{foreign}");
        let rot = Event::ChecksumMismatch { volume: VolumeId(0), lba: Lba(5) };
        let (_, rot) = names().sentence(&rot);
        assert!(rot.contains("volume data (/v/data) block 5"), "{rot}");
        let (volume, lba) = (VolumeId(0), Lba(5));
        for (by, how) in [
            (RepairedBy::Peer, "block of right"),
            (RepairedBy::Memory, "from the cache"),
            (RepairedBy::NewerData, "newer data"),
        ] {
            let (_, said) = names().sentence(&Event::BlockRepaired { volume, lba, by });
            assert!(
                said.contains("volume data (/v/data) block 5 is repaired") && said.contains(how),
                "{said}"
            );
        }
        for (why, names_it) in [
            (NotRepaired::NoPeer, "no other site"),
            (NotRepaired::Away, "right is not connected"),
            (NotRepaired::NoAnswer, "right did not answer"),
            (NotRepaired::Busy, "right cannot look"),
            (NotRepaired::OtherContent, "right holds other content"),
            (NotRepaired::DamagedToo, "block of right is damaged as well"),
        ] {
            let (level, said) = names().sentence(&Event::BlockNotRepaired { volume, lba, why });
            assert!(level == Level::Error && said.contains(names_it), "{said}");
            assert!(said.contains("volume data (/v/data) block 5 cannot be repaired"), "{said}");
        }
        let snapshot = SnapshotName::new("monday");
        let differ = Event::ImagesDiffer { volume: VolumeId(0), lba: Lba(5), snapshot };
        let (level, differ) = names().sentence(&differ);
        assert!(level == Level::Error && differ.contains("volume data (/v/data) block 5"), "{differ}");
        assert!(differ.contains("snapshot monday") && differ.contains("leaves the group"), "{differ}");
    }

    #[test]
    fn what_a_scrub_finds_beside_the_volumes_is_named_and_what_becomes_of_it() {
        let say = |event| names().sentence(&event).1;
        let (block, first, last) = (70, UpdateNumber(5), UpdateNumber(9));
        let damaged = say(Event::BatchDamaged { block, first, last });
        assert!(damaged.contains("/j") && damaged.contains("block 70 (#5 to #9)"), "{damaged}");
        assert!(damaged.contains("do not restart this site"), "{damaged}");
        let passed = say(Event::BatchPassed { block });
        assert!(passed.contains("/j is not needed any more at block 70"), "{passed}");
        for why in [BatchStays::Unsettled, BatchStays::ForPeer] {
            let (level, said) = names().sentence(&Event::BatchStays { block, first, last, why });
            let named =
                ["/j", "block 70", "right is not connected", "lockstep scrub --config /etc/left.toml"];
            assert!(level == Level::Error && named.iter().all(|name| said.contains(name)), "{said}");
        }
        let sums = say(Event::ChecksumsDamaged { volume: VolumeId(1), block: 2 });
        assert!(sums.contains("/s/log") && sums.contains("blocks 2048 to 3071"), "{sums}");
        let fault = IoFault::Errno(libc::EIO);
        let unread = say(Event::ReadFailed { target: IoTarget::Volume(VolumeId(0)), fault, block: 3 });
        assert!(unread.contains("/v/data") && unread.contains("the site goes on"), "{unread}");
        assert!(say(Event::TablesUnreadable).contains("/m"));
    }

    #[test]
    fn damaged_tables_are_named_with_the_command_that_repairs_them() {
        for event in [Event::TablesDamaged, Event::MetadataFailed { fault: MetadataFault::Corrupt }] {
            let (level, said) = names().sentence(&event);
            let named = ["/m", "lockstep snapshot repair --config /etc/left.toml", "from right"];
            assert!(level == Level::Error && named.iter().all(|name| said.contains(name)), "{said}");
        }
    }

    #[test]
    fn the_peer_is_named() {
        for event in [
            Event::PeerInSync,
            Event::PeerLost { reason: LossReason::LatencyBudget { unanswered_ns: 60_000_000 } },
            Event::SoloBegan { at: UpdateNumber(1) },
            Event::Refused { site: SiteId(2), by_us: true, refusal: None },
        ] {
            let (_, sentence) = names().sentence(&event);
            assert!(sentence.contains("right"), "{sentence}");
        }
    }
}
