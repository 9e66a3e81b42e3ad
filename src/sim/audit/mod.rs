//! The auditor: watches raw disk writes, frames and host operations of both sites, and keeps its own account of what each
//! block holds after each update. It shares nothing with the cores but the meaning of their bytes (`docs/FORMATS.md`).
//!
//! A violation panics with the invariant's name: the run is over and its seed replays it.

mod adopt;
mod disks;
mod heir;
mod hosts;
pub mod journal;
mod matching;
mod resync;
mod site;
mod snapshots;
mod split;
mod stream;
mod sums;
mod takeover;
mod third;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;

use crate::sim::audit::journal::Seen;
use crate::sim::audit::site::Site;
use crate::sim::content::{Content, Print};
use crate::sim::disk::Stored;

/// The two sites that are in lockstep, by the roles they were formatted with.
pub const PRIMARY: usize = 0;
pub const SECONDARY: usize = 1;

/// The one that follows them, where there is one.
pub const THIRD: usize = 2;

/// Sites at most.
pub const SITES_MAX: usize = 3;

/// The other one of the two.
pub const fn peer_of(site: usize) -> usize {
    if site == PRIMARY { SECONDARY } else { PRIMARY }
}

/// A file of a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Journal,
    Differential,
    /// What a resync brings, until it is whole.
    Staging,
    Volume(u16),
    Checksums(u16),
}

/// What the auditor may look at on a site's disks.
pub trait Media {
    /// What a read would return; `None` where nothing was ever written.
    fn visible(&self, place: Place, block: u64) -> Option<&Stored>;
    /// What has been flushed.
    fn durable(&self, place: Place, block: u64) -> Option<&Stored>;
    /// The same of every block of a place.
    fn all_durable(&self, place: Place) -> &[Option<Stored>];
    /// The slot of the block's first durable entry for this snapshot or a later one.
    fn kept(&self, volume: u16, lba: u64, snapshot: u64) -> Option<u64>;
    /// Whether the snapshot's durable record says that it is protected; `None` without one.
    fn protected(&self, snapshot: u64) -> Option<bool>;
    /// Volume, block, slot and sum of each durable entry.
    fn all_kept(&self) -> Vec<(u16, u64, u64, u32)>;
    /// Whether any durable entry names the slot.
    fn slot_is_named(&self, slot: u64) -> bool;
    /// Up to which update the durable entries go.
    fn applied(&self) -> u64;
    /// Whether the durable changed-block set has the block.
    fn is_marked(&self, volume: u16, lba: u64) -> bool;
}

/// How far the peer must be before a write is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Received,
    Journaled,
    Durable,
    Applied,
}

/// What a site's journal is.
#[derive(Clone, Copy, Debug)]
pub struct JournalSeen {
    pub blocks: u64,
    pub volatile: bool,
}

#[derive(Clone, Debug)]
pub struct AuditConfig {
    /// Sizes in blocks.
    pub volumes: Vec<u64>,
    pub level: Level,
    pub peer: bool,
    /// One of each site.
    pub journals: Vec<JournalSeen>,
    /// The primary sends what its updates overwrite, if a snapshot needs it.
    pub by_value: bool,
    /// Longest a host may wait for a reply while its site runs: the deadline and what the simulator adds.
    pub wait_ns_max: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpKind {
    Read,
    /// What was changed since this snapshot.
    Changes {
        since: u64,
    },
    Write {
        fua: bool,
    },
    /// The bytes that its whole-block content has at `offset..offset + length`.
    WritePartial {
        offset: usize,
        length: usize,
        fua: bool,
    },
    Zero {
        fua: bool,
    },
    ZeroPartial {
        offset: usize,
        length: usize,
        fua: bool,
    },
    Flush,
}

impl OpKind {
    fn fua(self) -> bool {
        match self {
            OpKind::Write { fua }
            | OpKind::WritePartial { fua, .. }
            | OpKind::Zero { fua }
            | OpKind::ZeroPartial { fua, .. } => fua,
            OpKind::Read | OpKind::Changes { .. } | OpKind::Flush => false,
        }
    }

    fn changes(self) -> bool {
        !matches!(self, OpKind::Read | OpKind::Changes { .. } | OpKind::Flush)
    }
}

#[derive(Clone, Copy, Debug)]
pub struct OpSpec {
    pub volume: u16,
    pub lba: u64,
    pub count: u64,
    pub kind: OpKind,
    /// A write whose data is all zeros.
    pub zeros: bool,
    /// What a read sees: this snapshot, or with 0 the volume itself.
    pub snapshot: u64,
}

#[derive(Clone, Debug)]
struct Op {
    spec: OpSpec,
    site: usize,
    /// A host's of a primary, and no reader's at a secondary.
    host: bool,
    submitted_at: u64,
    outstanding: bool,
    succeeded: bool,
    /// The last number promised to a host before this was submitted.
    floor: u64,
    /// Replacements in the stream when it was submitted.
    replacements: u64,
    /// The update it became.
    number: Option<u64>,
    /// The last number it may have become, given when its host had its reply.
    limit: u64,
    /// For reads, by block: the oldest version it may return.
    read_floors: Vec<u64>,
}

#[derive(Clone, Debug)]
struct Entry {
    seen: Seen,
    contents: Vec<Content>,
    /// Of a snapshot's creation: the record's name, the volumes that are in it, and whether it is protected.
    record: Option<(Print, u32, bool)>,
    /// The operations that the primary's hosts had submitted to the incarnation that numbered it.
    known_ops: Range<u64>,
    op: Option<u64>,
    /// A host was told of it: acknowledged or returned by a read.
    promised: bool,
    /// It was promised without the peer.
    alone: bool,
    /// A crash took it from the site, which may not have told that it had it at a level that survives.
    lost: [bool; SITES_MAX],
    /// No site holds it any more, and the level it was acknowledged at allows that.
    excused: bool,
}

#[derive(Clone, Debug)]
struct Version {
    number: u64,
    content: Content,
}

#[derive(Clone, Debug)]
struct BlockHistory {
    /// Ascending by number; before the first, the block reads as zeros.
    versions: Vec<Version>,
    /// What the last of them holds: the one question that is asked of every block again and again.
    newest_print: Print,
    acknowledged: u64,
    read: u64,
    /// Highest version the secondary's reader has seen in the secondary's present incarnation.
    read_at_secondary: [u64; 2],
    /// The same of the third's.
    read_at_third: u64,
}

impl BlockHistory {
    const NONE: BlockHistory = BlockHistory {
        versions: Vec::new(),
        newest_print: Print::ZERO,
        acknowledged: 0,
        read: 0,
        read_at_secondary: [0; 2],
        read_at_third: 0,
    };

    fn newest(&self) -> &Content {
        self.versions.last().map_or(&Content::ZERO, |version| &version.content)
    }

    /// What update `number` found.
    fn before(&self, number: u64) -> &Content {
        let older = self.versions.iter().rev().find(|version| version.number < number);
        older.map_or(&Content::ZERO, |version| &version.content)
    }

    fn push(&mut self, version: Version) {
        self.newest_print = version.content.print;
        self.versions.push(version);
    }

    /// Versions from `first` on are no longer in the stream.
    fn cut(&mut self, first: u64) {
        self.versions.retain(|version| version.number < first);
        self.newest_print = self.newest().print;
        let latest = self.latest_at(first - 1);
        self.acknowledged = self.acknowledged.min(latest);
        self.read = self.read.min(latest);
    }

    /// The number of the newest version at or below `number`.
    fn latest_at(&self, number: u64) -> u64 {
        self.versions
            .iter()
            .rev()
            .find(|version| version.number <= number)
            .map_or(0, |version| version.number)
    }

    /// Numbers of the versions with this content, newest first.
    fn numbers_of(&self, print: Print) -> impl Iterator<Item = u64> + '_ {
        let initial = (print == Print::ZERO).then_some(0);
        let versions = self.versions.iter().rev().filter(move |version| version.content.print == print);
        versions.map(|version| version.number).chain(initial)
    }
}

/// Why an update is not where it should be. A check that fails is often followed by another that may hold, so the sentence
/// is only written when it is needed.
#[derive(Clone, Copy, Debug)]
struct Lack {
    site: usize,
    has: u64,
    what: &'static str,
    number: u64,
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Lack { site, has, what, number } = self;
        write!(f, "site {site} has only #{has} {what}, not #{number}")
    }
}

#[derive(Clone, Debug)]
pub struct Auditor {
    config: AuditConfig,
    sites: Vec<Site>,
    /// Whose the newest generation of the stream is.
    leader: usize,
    /// The stream in force; update n is at n - 1.
    stream: Vec<Entry>,
    /// Entries that a newer generation replaced, by generation and number.
    replaced: BTreeMap<(u64, u64), Entry>,
    newest_generation: u64,
    blocks: Vec<Vec<BlockHistory>>,
    ops: Vec<Op>,
    /// The first operation of each site's present incarnation.
    first_op: [u64; SITES_MAX],
    /// Changing operations of the sites' present incarnations that have no number yet.
    unnumbered: Vec<u64>,
    promised: u64,
    /// The last number that was held when the primary's present incarnation last lost a connection.
    acknowledged: u64,
    /// In the order of their numbers, those deleted included.
    snapshots: Vec<snapshots::SnapshotSeen>,
    /// Snapshots that some administrator wanted deleted.
    unwanted: BTreeSet<u64>,
    pub snapshot_reads: u64,
    pub changes_told: u64,
    /// How often updates were replaced in the stream.
    replacements: u64,
    /// Updates that went to the secondary with what they overwrote.
    pub sent_by_value: u64,
    /// Volume blocks of which a bit has flipped: site, volume, block, what it held and what it holds, until something is written there.
    rotten: Vec<(usize, u16, u64, Print, Print)>,
    /// And slots, of sites: what is there instead.
    rotten_slots: Vec<(usize, u64, Print)>,
    /// A read of a site's disks has failed in its present incarnation.
    unread: [bool; SITES_MAX],
    /// `SoloBegin` and `SoloEnd` in the stream: number, and whether it begins.
    solo: Vec<(u64, bool)>,
    alive: [bool; SITES_MAX],
    /// The site's present incarnation has gone on with a stream of its own.
    resumed: [bool; SITES_MAX],
    /// The other site took over from this one, which has not followed it since.
    deposed: [bool; SITES_MAX],
    /// What each site has truthfully claimed to have in its volumes.
    applied: [u64; SITES_MAX],
    /// What each site had before it died, received, written, durable and applied: the primary may still hear of it, until
    /// it knows that the connection is over.
    before_death: [[u64; 4]; SITES_MAX],
    /// What each site had durably when its disks were replaced.
    replaced_at: [u64; SITES_MAX],
    /// What each site is about to install, or installs.
    installing: [Option<u64>; SITES_MAX],
    third_told: u64,
    pub copied_blocks: u64,
    pub installs: u64,
    /// Snapshots that were there when they ended.
    pub installed_snapshots: u64,
    pub takeovers: u64,
    /// Updates that went to the third, and how often it was told that it has lapsed.
    pub fed: u64,
    pub lapsed: u64,
    /// What a third had when it was to take over, and what hosts had been told of beyond that.
    inherited: Option<u64>,
    pub given_up: u64,
    /// What each site has told the third that its journal begins with, and its next superblock is to let go of.
    lets_go: [Vec<u64>; SITES_MAX],
    pub acknowledged_writes: u64,
    pub excused_writes: u64,
    pub now: u64,
}

impl Auditor {
    pub fn new(config: AuditConfig) -> Auditor {
        let histories = |blocks: &u64| (0..*blocks).map(|_| BlockHistory::NONE).collect();
        Auditor {
            sites: config
                .journals
                .iter()
                .map(|journal| Site::new(journal.blocks, journal.volatile))
                .collect(),
            leader: PRIMARY,
            stream: Vec::new(),
            replaced: BTreeMap::new(),
            newest_generation: 0,
            blocks: config.volumes.iter().map(histories).collect(),
            ops: Vec::new(),
            first_op: [0; SITES_MAX],
            unnumbered: Vec::new(),
            promised: 0,
            acknowledged: 0,
            snapshots: Vec::new(),
            unwanted: BTreeSet::new(),
            snapshot_reads: 0,
            changes_told: 0,
            replacements: 0,
            sent_by_value: 0,
            rotten: Vec::new(),
            rotten_slots: Vec::new(),
            unread: [false; SITES_MAX],
            solo: Vec::new(),
            alive: [true; SITES_MAX],
            resumed: [false; SITES_MAX],
            deposed: [false; SITES_MAX],
            applied: [0; SITES_MAX],
            before_death: [[0; 4]; SITES_MAX],
            replaced_at: [0; SITES_MAX],
            installing: [None; SITES_MAX],
            third_told: 0,
            copied_blocks: 0,
            installs: 0,
            installed_snapshots: 0,
            takeovers: 0,
            fed: 0,
            lapsed: 0,
            inherited: None,
            given_up: 0,
            lets_go: Default::default(),
            acknowledged_writes: 0,
            excused_writes: 0,
            now: 0,
            config,
        }
    }

    /// A bit flips on a site's disk: from here on this is not what was written there, and nobody may see it.
    pub fn rots(&mut self, site: usize, volume: u16, lba: u64, was: Print, now: Print) {
        assert!(
            self.blocks[usize::from(volume)][lba as usize].numbers_of(now).next().is_none(),
            "one bit differs"
        );
        self.rotten.push((site, volume, lba, was, now));
        self.reads_fail(site);
    }

    /// A bit of a slot that an entry names flips: it may be written again, with what it held.
    pub fn slot_rots(&mut self, site: usize, slot: u64, now: Print) {
        self.rotten_slots.push((site, slot, now));
    }

    /// What the site had written where its disk now holds `print`.
    fn as_written(&self, site: usize, volume: u16, lba: u64, print: Print) -> Print {
        let same = |rot: &&(usize, u16, u64, Print, Print)| {
            (rot.0, rot.1, rot.2, rot.4) == (site, volume, lba, print)
        };
        self.rotten.iter().find(same).map_or(print, |rot| rot.3)
    }

    /// Whether the block is still, or again after a loss of power, what the bit made of it.
    pub fn is_rotten(&self, site: usize, volume: u16, lba: u64, media: &dyn Media) -> bool {
        let durable = media.durable(Place::Volume(volume), lba);
        durable.is_some_and(|stored| {
            self.as_written(site, volume, lba, stored.content.print) != stored.content.print
        })
    }

    pub fn is_installing(&self, site: usize) -> bool {
        self.installing[site].is_some()
    }

    pub fn wait_ns_max(&self) -> u64 {
        self.config.wait_ns_max
    }

    /// The last number that the site and the stream in force have in common, of the site's first `upto`.
    fn common(&self, site: usize, upto: u64) -> u64 {
        let mut number = upto.min(self.stream.len() as u64);
        while number > 0
            && self.sites[site].generation_of(number) != self.stream[number as usize - 1].seen.generation
        {
            number -= 1;
        }
        number
    }

    fn written(&self, site: usize) -> u64 {
        self.common(site, self.sites[site].written())
    }

    fn durable(&self, site: usize) -> u64 {
        self.common(site, self.sites[site].durable())
    }

    /// Everything the site has, memory included.
    fn received(&self, site: usize) -> u64 {
        let (number, generation) = self.sites[site].received();
        let known = self.stream.get((number as usize).wrapping_sub(1));
        let in_memory =
            if known.is_some_and(|entry| entry.seen.generation == generation) { number } else { 0 };
        in_memory.max(self.written(site))
    }

    /// The site that opened a generation: sites are numbered from 1 in its lowest 16 bits.
    fn opener(generation: u64) -> usize {
        (generation & 0xffff) as usize - 1
    }

    /// Whether the site may acknowledge `number` alone, as a primary.
    fn alone(&self, site: usize, number: u64) -> bool {
        !self.config.peer || self.solo_over(number).is_some_and(|at| at <= self.durable(site))
    }

    /// Where the range begins in which a primary holds `number` alone, if there is one: a site that takes over alone does so with all it has.
    fn solo_over(&self, number: u64) -> Option<u64> {
        let mut over = None;
        for &(at, begins) in &self.solo {
            if begins {
                over = Some(at);
            } else if number > at {
                over = None;
            } else {
                break;
            }
        }
        over
    }

    /// Whether `number` is where its acknowledgement level wants it before `local` may acknowledge it.
    fn held(&self, local: usize, number: u64) -> Result<(), Lack> {
        let at = |what: &'static str, site: usize, has: u64| {
            if has >= number { Ok(()) } else { Err(Lack { site, has, what, number }) }
        };
        let level = self.config.level;
        if level >= Level::Durable {
            at("durable", local, self.durable(local))?;
        } else {
            at("journaled", local, self.written(local))?;
        }
        if self.inherited.is_some() {
            let lack = Lack { site: local, has: 0, what: "alone", number };
            return if self.alone(local, number) { Ok(()) } else { Err(lack) };
        }
        let other = peer_of(local);
        let [received, written, durable, applied] = self.has(other);
        let [received_before, written_before, durable_before, applied_before] = self.before_death[other];
        let peer = match level {
            Level::Received => at("received", other, received.max(received_before)),
            Level::Journaled => at("journaled", other, written.max(written_before)),
            Level::Durable => at("durable", other, durable.max(durable_before)),
            Level::Applied => at("applied", other, applied.max(applied_before)),
        };
        peer.or_else(|why| if self.alone(local, number) { Ok(()) } else { Err(why) })
    }

    fn has(&self, site: usize) -> [u64; 4] {
        [self.received(site), self.written(site), self.durable(site), self.applied[site]]
    }

    /// A site learns that its connection is over, on which it took updates up to this number and generation: of a primary,
    /// acknowledgements under way on it are void. Those that had come stay good: a read may go by one that no reply shows, since a
    /// write with FUA is answered only when it is settled.
    pub fn disconnected(&mut self, site: usize, number: u64, generation: u64) {
        self.took_no_more_than(site, number, generation);
        if site != self.leader {
            return;
        }
        let last = self.stream.len() as u64;
        let held = (self.acknowledged + 1..=last).rev().find(|&number| self.held(site, number).is_ok());
        self.acknowledged = held.unwrap_or(self.acknowledged);
        self.before_death[peer_of(site)] = [0; 4];
    }

    /// Whether `number` is durable on every site of the synchronous set.
    fn settled(&self, number: u64) -> Result<(), Lack> {
        let at = |site: usize| {
            let has = self.durable(site);
            if has >= number { Ok(()) } else { Err(Lack { site, has, what: "durable", number }) }
        };
        if self.inherited.is_some() {
            let lack = Lack { site: self.leader, has: 0, what: "alone", number };
            let alone = self.was_inherited(number) || self.alone(self.leader, number);
            return at(self.leader).and(if alone { Ok(()) } else { Err(lack) });
        }
        let both = at(self.leader).and_then(|()| at(peer_of(self.leader)));
        both.or_else(|why| {
            // Whoever numbered it, or went on alone with it, may have been alone, though another site has taken over since.
            let by = |number: u64| {
                let entry = self.stream.get((number as usize).wrapping_sub(1));
                entry.map_or(self.leader, |entry| Auditor::opener(entry.seen.generation))
            };
            let alone = |site: usize| at(site).is_ok() && self.alone(site, number);
            let went_on = self.solo_over(number).is_some_and(|at| alone(by(at)));
            if alone(self.leader) || alone(by(number)) || went_on { Ok(()) } else { Err(why) }
        })
    }
}
