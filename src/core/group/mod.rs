//! A consistency group: one owner of the cache index, numbering, write-pending indicators, journal positions, destage and
//! peer state. The rooms: `host` (operations), `stream` (numbering and watermarks), `storage` (completions), `destage`,
//! `handshake`, `peering` (streaming, loss, solo), `taking` (whether what comes is taken), `catch_up` (the journal read back), `cut` (a tail dropped), `recovery`, `warm_up`,
//! `scrub`, `comparing` (both sites), `equalising` (where they differ), `status`; and of snapshots: `capture` (what an update's blocks held before), `old_blocks` (sending that, by value), `differential`
//! (making that durable), `admin` (creating, deleting), `snapshot_reads`, `repair` and `tables` (what has gone bad, here or at the
//! peer; of volumes: `mending`). `takeover` changes what a site is to its peer, `handover` by agreement, and `lease` keeps a primary that was taken over from reading; `split` says what keeps two apart, and `resolve`
//! lets one of them give way; `resync` copies to one what the journal has no more, `copying` has its blocks, `digests` leaves out what is equal, `copy_kept` has what
//! snapshots keep, `targets` who gets it, `copier` who sends it, `staging` keeps that apart, `install` brings it to the volumes. `feeding` serves a third site, `pulling` is that site's own part,
//! `extending` shows hosts more of a volume, `copy_third` copies to one that no journal reaches, and `promoted` has what becomes of both when it is made primary.

mod admin;
mod ages;
mod allowance;
mod answering;
mod capture;
mod catch_up;
mod comparing;
mod copier;
mod copy_kept;
mod copy_third;
mod copying;
mod cut;
mod destage;
mod differential;
mod digests;
mod equalising;
mod extending;
mod feeding;
mod handover;
mod handshake;
mod host;
mod inbound;
mod install;
mod lease;
mod lending;
mod log_scan;
mod marking;
mod mending;
mod old_blocks;
mod origins;
mod pace;
mod peering;
mod promoted;
mod pulling;
mod readiness;
mod recovery;
mod repair;
mod resolve;
mod resync;
mod scrub;
mod snapshot_reads;
pub mod split;
mod staging;
pub mod status;
mod storage;
mod stream;
mod tables;
mod takeover;
mod taking;
mod targets;
mod unread;
mod warm_up;

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::base::*;
use crate::core::cache::Cache;
use crate::core::captures::Captures;
use crate::core::changed::Changed;
use crate::core::config::{AckLevel, GroupConfig, Role};
use crate::core::journal::Journal;
use crate::core::messages::*;
use crate::core::outbox::{Event, Outbox, Tables};
use crate::core::pages::Pages;
use crate::core::slots::Slots;
use crate::core::snapshots::Snapshots;
use crate::core::sums::Sums;
use crate::core::window::Window;
use crate::format::history::History;
use crate::format::superblock::{Heir, Left};

use peering::Talk;

/// Pages kept back from fronts and link, so that journal headers, read-backs, checksum writes and read misses never wait for
/// pages that only they could free.
pub const RESERVED_PAGES: usize = 2 * BATCH_BLOCKS_MAX + BATCHES_IN_FLIGHT_MAX + 64;

/// The smallest arena that works: the reserve twice over, so that staging and dirty blocks have as much again.
pub const PAGES_MIN: u32 = 2 * RESERVED_PAGES as u32;

/// Pages that feeding a third may hold: a batch of the journal read back, updates that its link has yet to read, and a few for what
/// that receives. They are kept from everybody else, so that no write waits for a third that takes nothing.
pub const THIRD_PAGES: usize = BATCH_BLOCKS_MAX + 255;

/// Index entries beyond one a page: blocks of a `Zero` need an entry but no page.
const ENTRIES_WITHOUT_PAGE: usize = 8 * ZERO_BLOCKS_MAX;

/// Eviction steps a turn: at most a few microseconds.
const EVICT_STEPS_A_TURN: usize = 512;

/// While the cache is short of free room and may find more, it looks again this soon though nothing happens.
const EVICT_AGAIN_AFTER: Nanos = Nanos::from_micros(50);

/// How long operations in flight may go on after `stop` before they are answered `NotServing`: half of the ten seconds in
/// which a site promises to end.
const STOP_GRACE: Nanos = Nanos::from_millis(5_000);

/// One call's surroundings.
pub struct Turn<'a, M: Memory> {
    pub now: Nanos,
    pub memory: &'a mut M,
    pub tables: &'a Tables,
    pub out: &'a mut Outbox,
}

impl<M: Memory> Turn<'_, M> {
    fn event(&mut self, event: Event) {
        // A burst of events beyond the queue is a burst of the same news.
        if self.out.events.room() > 0 {
            self.out.events.push(event);
        }
    }
}

/// What the group is doing as a whole.
#[derive(Debug)]
enum Phase {
    Recovering(recovery::Recovery),
    Running,
    /// A disk failed, or what was found on it cannot be trusted; nothing is served until an operator acts.
    Failed,
    Stopped,
}

/// Whether the primary acknowledges without its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Alone {
    No,
    /// `SoloBegin` has this number and is not durable yet: acknowledgements still need the peer.
    Beginning(UpdateNumber),
    Yes,
}

/// A heap entry: wake this operation when a watermark reaches the number.
type Wakeup = Reverse<(UpdateNumber, u8, u32, u32)>;

#[derive(Debug)]
pub struct Group {
    config: GroupConfig,
    phase: Phase,
    stopping: bool,
    /// What this site is; its disk says so too once `role_at` is durable.
    role: Role,
    /// The update that made it so, if it was one.
    role_at: UpdateNumber,
    /// A primary that has opened its generation, and one that lets its hosts in.
    opened: bool,
    serving: bool,
    /// This site's third, if it took over and what it opened has not become this site's history since.
    heir: Option<Heir>,
    /// How the newest generation's primary ended it, if the stream says so, and where.
    left: Option<(UpdateNumber, Left)>,
    /// The last such end that is settled, whatever came after it: superblocks say it until what opened the next generation is durable.
    ended: Option<(UpdateNumber, Left)>,
    leaving: handover::Leaving,
    /// What the peer and this site have that the other has not, if it keeps them apart.
    split: Option<split::SplitBrain>,

    history: History,
    generation: Generation,
    pages: Pages,
    cache: Cache,
    sums: Vec<Sums>,
    window: Window,
    journal: Journal,

    acknowledged: UpdateNumber,
    settled: UpdateNumber,
    checkpoint: UpdateNumber,
    /// The last update that made a block the same at both sites again.
    rewritten: UpdateNumber,
    /// The last update that replay found, and no cut has dropped since.
    replayed: UpdateNumber,

    alone: Alone,
    /// Updates before this one need no peer: they were made solo, or there is no peer.
    joint_from: UpdateNumber,
    /// The last `SoloEnd` of this site's: what is before it may have been acknowledged alone.
    solo_ended: UpdateNumber,
    peer: peering::Peer,
    lease: lease::Lease,
    /// Old blocks that the link reads.
    lent: old_blocks::Lent,
    catch_up: catch_up::CatchUp,
    /// A third site that this one feeds, if one is configured.
    feed: Option<Box<feeding::Feed>>,
    /// At a third: the sites that it pulls from, in its order of preference.
    sources: Vec<pulling::Source>,

    ops: Vec<Box<[host::Op]>>,
    ops_live: usize,
    /// Writes waiting for room, oldest first.
    queued: FixedQueue<(u8, Ticket)>,
    /// Reads waiting for pages or I/O slots, oldest first.
    stalled: FixedQueue<(u8, Ticket)>,
    on_acknowledged: BinaryHeap<Wakeup>,
    on_settled: BinaryHeap<Wakeup>,
    /// The highest number a host waits to see settled.
    flush_wanted: UpdateNumber,
    deadline_scan_at: Nanos,

    volume_io: Box<[storage::VolumeIo]>,
    volume_slots: FixedQueue<SlotId>,
    destage: destage::Destage,
    extending: extending::Extending,
    warm_up: warm_up::WarmUp,

    snapshots: Snapshots,
    /// By volume: blocks that are captured for its newest snapshot. Some may lack a mark, none has one too many.
    captured: Vec<Marks>,
    slots: Slots,
    captures: Captures,
    /// Scratch of the operation being numbered.
    pieces: Vec<capture::Piece>,
    /// The management information has everything up to here.
    applied: UpdateNumber,
    committing: bool,
    reclaim: differential::Reclaim,
    repair: repair::Repair,
    mending: mending::Mending,
    loans: lending::Loans,
    scrub: scrub::Scrub,
    comparing: comparing::Comparing,
    lending: tables::Lending,
    changed: Changed,
    resyncs: targets::Resyncs,
    staging: staging::Staging,
    merging: resolve::Merging,
    /// Something waits for slots, captures or pages that a sweep sets free.
    sweep_wanted: bool,
    differential_warned: bool,
    /// An operator is to hear of it.
    differential_warning: bool,
    metadata_io: Box<[differential::MetadataIo]>,
    metadata_slots: FixedQueue<SlotId>,
    admin: FixedQueue<admin::Waiting>,

    front_pages: Vec<usize>,
    link_pages: usize,
    /// By the number of the link.
    remote_pages: Vec<usize>,
    staging_target: usize,
    /// Pages that updates may hold from their number to their volume: neither reserved nor for staging.
    holdable_pages: usize,
    counters: status::Counters,
    /// Payload blocks numbered but not in a journal batch yet.
    unappended_blocks: u64,
    /// The latest journal batch, submission to completion.
    journal_latency_ns: u32,
    /// When a journal batch was last submitted.
    batched_at: Nanos,
    /// When `end_turn` last ran.
    turned_at: Nanos,
    /// When `stop` was first called.
    stop_begun_at: Option<Nanos>,
}

/// Captures that a group of so many pages may have waiting.
fn captures_max(pages: u32) -> usize {
    CAPTURES_MIN.max(pages as usize)
}

/// Pages kept for a third.
fn third_pages(config: &GroupConfig) -> usize {
    (pages_min(config.third.is_some()) - PAGES_MIN) as usize
}

/// The smallest arena of a group that has a third to feed, or not.
pub const fn pages_min(feeds: bool) -> u32 {
    PAGES_MIN + if feeds { THIRD_PAGES as u32 } else { 0 }
}

impl Group {
    /// Panics if the configuration is not one that `node::config` would pass.
    pub fn new(config: GroupConfig) -> Group {
        let fewest = pages_min(config.third.is_some());
        assert!(config.pages >= fewest, "{} pages are fewer than {fewest}", config.pages);
        assert!(!config.volumes.is_empty() && config.volumes.len() <= VOLUMES_MAX);
        assert!(config.fronts <= FRONTS_MAX);
        assert!(config.role != Role::Secondary || config.peer.is_some(), "a secondary has a peer");
        let third = config.role == Role::Third;
        assert!(third != config.sources.is_empty(), "a third has sources, and nobody else has");
        assert!(
            !third || (config.peer.is_none() && config.third.is_none()),
            "a third has nothing but sources"
        );
        assert!(config.sources.len() <= SOURCES_MAX);
        let entries = config.pages as usize + ENTRIES_WITHOUT_PAGE;
        let tickets = config.fronts * FRONT_TICKETS_MAX;
        let mut volume_slots = FixedQueue::new(VOLUME_IO_SLOTS);
        (0..VOLUME_IO_SLOTS as u32).for_each(|slot| volume_slots.push(SlotId(slot)));
        let mut metadata_slots = FixedQueue::new(METADATA_IO_SLOTS);
        (0..METADATA_IO_SLOTS as u32).for_each(|slot| metadata_slots.push(SlotId(slot)));
        let keeps = config.differential_blocks > 0;
        let consumers = config.fronts + usize::from(config.peer.is_some()) + config.sources.len();
        let spare = config.pages as usize - RESERVED_PAGES - third_pages(&config);
        let sizes = config.volumes.iter().map(|v| v.blocks).chain([config.differential_blocks]);
        let sized = |wanted: bool| sizes.clone().map(move |blocks| if wanted { blocks } else { 0 });
        let blocks = sized(config.peer.is_some() && config.resync.staging_blocks > 0);
        let thirds = sized(config.third.is_some());
        // Half of what is not reserved may be staged; the rest holds blocks on their way to the volume.
        let staging_target =
            (spare / 2 / consumers.max(1)).clamp(old_blocks::update_pages(&config), STAGING_PAGES);
        Group {
            phase: Phase::Recovering(recovery::Recovery::new()),
            stopping: false,
            role: config.role,
            role_at: UpdateNumber::NONE,
            opened: false,
            serving: false,
            heir: None,
            left: None,
            ended: None,
            leaving: handover::Leaving::default(),
            split: None,
            history: History::default(),
            generation: Generation::NONE,
            pages: Pages::new(config.pages),
            cache: Cache::new(entries, config.volumes.iter().map(|v| v.blocks)),
            sums: config.volumes.iter().map(|v| Sums::new(v.blocks)).collect(),
            window: Window::new(UpdateNumber::NONE),
            journal: Journal::new(config.journal_blocks, config.journal_volatile),
            acknowledged: UpdateNumber::NONE,
            settled: UpdateNumber::NONE,
            checkpoint: UpdateNumber::NONE,
            rewritten: UpdateNumber::NONE,
            replayed: UpdateNumber::NONE,
            alone: Alone::No,
            joint_from: UpdateNumber(1),
            solo_ended: UpdateNumber::NONE,
            peer: peering::Peer::new(),
            lease: lease::Lease::NONE,
            lent: old_blocks::Lent::new(),
            catch_up: catch_up::CatchUp::new(),
            feed: config.third.as_ref().map(|third| Box::new(feeding::Feed::new(third))),
            sources: config.sources.iter().map(pulling::Source::new).collect(),
            ops: (0..config.fronts)
                .map(|_| vec![host::Op::FREE; FRONT_TICKETS_MAX].into_boxed_slice())
                .collect(),
            ops_live: 0,
            queued: FixedQueue::new(tickets.max(1)),
            stalled: FixedQueue::new(tickets.max(1)),
            // An operation that was answered by its deadline leaves its entry behind until the watermark passes it.
            on_acknowledged: BinaryHeap::with_capacity(4 * tickets),
            on_settled: BinaryHeap::with_capacity(4 * tickets),
            flush_wanted: UpdateNumber::NONE,
            deadline_scan_at: Nanos(0),
            volume_io: vec![storage::VolumeIo::Free; VOLUME_IO_SLOTS].into_boxed_slice(),
            volume_slots,
            destage: destage::Destage::new(),
            extending: extending::Extending::default(),
            warm_up: warm_up::WarmUp::new(config.warm_up),
            snapshots: Snapshots::new(),
            captured: config.volumes.iter().map(|v| Marks::new(if keeps { v.blocks } else { 0 })).collect(),
            slots: Slots::new(config.differential_blocks),
            captures: Captures::new(if keeps { captures_max(config.pages) } else { 1 }),
            pieces: Vec::with_capacity(ZERO_BLOCKS_MAX),
            applied: UpdateNumber::NONE,
            committing: false,
            reclaim: differential::Reclaim::default(),
            repair: repair::Repair::default(),
            mending: mending::Mending::new(),
            loans: lending::Loans::default(),
            scrub: scrub::Scrub::new(),
            comparing: comparing::Comparing::new(),
            lending: tables::Lending::default(),
            changed: Changed::new(blocks.clone()),
            resyncs: targets::Resyncs::new(
                resync::Resync::new(blocks, pace::Pace::new(pace::BLOCKS_MAX)),
                resync::Resync::new(thirds, pace::Pace::new(pace::THIRD_BLOCKS_MAX)),
            ),
            staging: staging::Staging::new(),
            merging: resolve::Merging::default(),
            sweep_wanted: false,
            differential_warned: false,
            differential_warning: false,
            metadata_io: vec![differential::MetadataIo::Free; METADATA_IO_SLOTS].into_boxed_slice(),
            metadata_slots,
            admin: FixedQueue::new(ADMIN_REQUESTS_MAX),
            front_pages: vec![0; config.fronts],
            link_pages: 0,
            remote_pages: vec![0; config.remotes()],
            staging_target,
            holdable_pages: spare - consumers * staging_target,
            counters: status::Counters::default(),
            unappended_blocks: 0,
            journal_latency_ns: 0,
            batched_at: Nanos(0),
            turned_at: Nanos(0),
            stop_begun_at: None,
            config,
        }
    }

    /// Bytes that a group of this configuration takes beside its pages: index, window, tables and checksums. `cache` in
    /// the configuration counts them.
    pub fn overhead_bytes(
        pages: u32,
        fronts: usize,
        journal_blocks: u64,
        volume_blocks: u64,
        differential_blocks: u64,
        feeds: bool,
    ) -> u64 {
        let entries = pages as usize + ENTRIES_WITHOUT_PAGE;
        let tables = fronts * PageTable::bytes(FRONT_TICKETS_MAX, UPDATE_BLOCKS_MAX)
            + PageTable::bytes(WINDOW_UPDATES_MAX, UPDATE_BLOCKS_MAX)
            + PageTable::bytes(2 * LINK_INBOUND_SLOTS, 2 * UPDATE_BLOCKS_MAX)
            + PageTable::bytes(CATCH_UP_SLOTS + OLD_BLOCK_SLOTS, UPDATE_BLOCKS_MAX)
            + PageTable::bytes(JOURNAL_IO_SLOTS, BATCH_BLOCKS_MAX)
            + PageTable::bytes(VOLUME_IO_SLOTS, VOLUME_IO_BLOCKS_MAX)
            + PageTable::bytes(METADATA_IO_SLOTS, 1 + METADATA_PAGES_MAX);
        // What snapshots take, whether there are any or not: captures, slots (which are free, and as blocks are below), and marks of
        // what is captured.
        let snapshots =
            Captures::bytes(captures_max(pages)) as u64 + 5 * (differential_blocks / 8) + volume_blocks / 8;
        let window = WINDOW_UPDATES_MAX * 192;
        (Cache::bytes(entries) + tables + window) as u64
            + journal_blocks * 64
            + volume_blocks * 4
            // Dirty blocks; and of a peer that is away, what it lacks, what is to be compared, to be copied, and what was changed since.
            + 5 * (volume_blocks / 8)
            // The last three of a third as well.
            + if feeds { 3 * (volume_blocks + differential_blocks) / 8 } else { 0 }
            + snapshots
    }

    /// Reads the superblock and replays the journal; `end_turn` carries it on.
    pub fn start(&mut self, turn: &mut Turn<impl Memory>) {
        self.recovery_start(turn);
    }

    /// Messages the driver may pop from the link's ring: updates wait in the group when the journal or cache is full.
    pub fn link_room(&self) -> usize {
        self.peer.inbound.room()
    }

    /// The same for the link of that number beside the peer's.
    pub fn remote_room(&self, index: usize) -> usize {
        self.sources.get(index).map_or(usize::MAX, pulling::Source::room)
    }

    /// From the link of that number beside the peer's ([`GroupConfig::remotes`]).
    pub fn on_remote(&mut self, turn: &mut Turn<impl Memory>, index: usize, message: FromLink) {
        match self.feed {
            Some(_) => self.on_feed(turn, message),
            None => self.on_source(turn, index, message),
        }
    }

    /// Submits, acknowledges, destages, grants pages; once after each slice of messages.
    pub fn end_turn(&mut self, turn: &mut Turn<impl Memory>) {
        match self.phase {
            // Fronts must be able to receive what is to be refused.
            Phase::Failed | Phase::Stopped => return self.grant_pages(turn),
            Phase::Recovering(_) => self.recovery_turn(turn),
            Phase::Running => {}
        }
        // What came during recovery, a peer above all, is looked at as soon as that is over: nothing else may call for a turn.
        if matches!(self.phase, Phase::Running) {
            if self.peer.talk != Talk::Staging {
                self.ingest_inbound(turn);
            }
            self.stage_inbound(turn);
            self.advance(turn);
            self.admin_turn(turn);
            self.extend_turn(turn);
            self.leave_turn(turn);
            self.mend_turn(turn);
            self.retry_waiting(turn);
            self.equalise_turn(turn);
            self.peer_turn(turn);
            self.pull_turn(turn);
            self.lend_tables(turn);
            self.staging_turn(turn);
        }
        if matches!(self.phase, Phase::Failed | Phase::Stopped) {
            return;
        }
        self.append_batches(turn);
        self.advance(turn);
        self.feed_turn(turn);
        self.flush_if_due(turn);
        self.destage_turn(turn);
        self.reclaim_turn(turn);
        self.warm_up_turn(turn);
        self.scrub_turn(turn);
        self.compare_turn(turn);
        self.tell_of_filling(turn);
        self.retire(turn);
        let (pages, entries) = self.eviction_goal();
        self.cache.evict(pages, entries, EVICT_STEPS_A_TURN, &mut self.pages, turn.memory);
        self.turned_at = turn.now;
        self.grant_pages(turn);
        self.expire_operations(turn);
        self.stop_if_drained(turn);
        self.assert_invariants();
    }

    /// When `end_turn` has work although nothing arrives.
    pub fn next_deadline(&self) -> Option<Nanos> {
        if matches!(self.phase, Phase::Failed | Phase::Stopped) {
            return None;
        }
        if let Phase::Recovering(recovery) = &self.phase
            && recovery.is_replaying()
            && !self.catch_up.is_reading()
        {
            // Replay goes on turn by turn, most of them without a completion in between.
            return Some(self.turned_at);
        }
        let flush = self.journal.flushable_since().map(|since| since.plus(self.config.flush_interval));
        let scan = (self.ops_live > 0).then_some(self.deadline_scan_at);
        let stop = self.stop_begun_at.filter(|_| self.ops_live > 0).map(|begun| begun.plus(STOP_GRACE));
        let evict = self.wants_eviction().then(|| self.turned_at.plus(EVICT_AGAIN_AFTER));
        let others = [
            self.peer_deadline(),
            self.destage_deadline(),
            self.admin_deadline(),
            self.extend_deadline(),
            self.leave_deadline(),
            self.warm_up_deadline(),
            self.mend_deadline(),
            self.scrub_deadline(),
            self.compare_deadline(),
            self.tell_deadline(),
            self.feed_deadline(),
            self.pull_deadline(),
        ];
        [flush, scan, stop, evict].into_iter().chain(others).flatten().min()
    }

    /// Free pages and index entries that eviction keeps ready.
    fn eviction_goal(&self) -> (usize, usize) {
        (RESERVED_PAGES + self.pages.total() / 16, ZERO_BLOCKS_MAX + UPDATE_BLOCKS_MAX)
    }

    fn wants_eviction(&self) -> bool {
        let (pages, entries) = self.eviction_goal();
        let occupied = (self.cache.capacity() - self.cache.free_entries()) as u64;
        (self.pages.free() < pages || self.cache.free_entries() < entries)
            && occupied > self.cache.dirty_blocks()
    }

    /// Takes no more operations, destages what is settled, writes a checkpoint. Idempotent.
    pub fn stop(&mut self, turn: &mut Turn<impl Memory>) {
        self.stopping = true;
        self.stop_begun_at.get_or_insert(turn.now);
        if matches!(self.phase, Phase::Recovering(_)) {
            self.phase = Phase::Stopped;
            self.answer_all(turn, HostError::NotServing);
            self.answer_administrators(turn);
            turn.event(Event::Stopped);
        } else if self.role != Role::Primary {
            // A stream that goes on would never be drained.
            self.leave_peer(turn);
            self.leave_sources(turn);
        }
    }

    pub fn stopped(&self) -> bool {
        matches!(self.phase, Phase::Failed | Phase::Stopped)
    }

    pub fn failed(&self) -> bool {
        matches!(self.phase, Phase::Failed)
    }

    /// Whether a primary answers its hosts, or a secondary its readers.
    pub fn serving(&self) -> bool {
        let hosts = self.serving && !self.leaving.holds_hosts();
        matches!(self.phase, Phase::Running) && (hosts || self.role != Role::Primary)
    }

    /// No operation is inside, or about to be, and everything numbered is settled: what a block holds is certain.
    pub fn at_rest(&self) -> bool {
        let awaited = self.sources.iter().any(|source| !source.inbound.is_empty());
        let inside = self.ops_live > 0 || !self.peer.inbound.is_empty() || awaited || self.equalises();
        self.serving() && !inside && self.settled == self.window.last()
    }

    /// Whether a read of the block needs no disk, or has begun.
    pub fn has_in_memory(&self, volume: VolumeId, lba: Lba) -> bool {
        self.cache.peek(volume, lba).is_some() || self.cache.is_being_read(volume, lba)
    }

    /// Whether a block is known to read as zeros; certain when `at_rest`.
    pub fn reads_as_zeros(&self, volume: VolumeId, lba: Lba) -> bool {
        match self.cache.peek(volume, lba) {
            Some(value) => value.page == PageId::ZERO,
            None => self.sums[volume.0 as usize].get(lba) == BlockSum::ZEROS,
        }
    }

    fn stop_if_drained(&mut self, turn: &mut Turn<impl Memory>) {
        if self.stop_begun_at.is_some_and(|begun| turn.now.since(begun) >= STOP_GRACE) && self.ops_live > 0 {
            self.answer_all(turn, HostError::NotServing);
        }
        let drained = self.stopping
            && matches!(self.phase, Phase::Running)
            && self.ops_live == 0
            && self.journal.appended() == self.window.last()
            && self.journal.writes_in_flight() == 0
            && self.journal.durable() == self.window.last()
            && self.checkpoint == self.settled
            && self.destage_idle()
            && self.metadata_slots.room() == 0
            && self.mending.is_empty()
            && self.extending.is_idle()
            && !self.scrub.is_reading()
            && !self.comparing.is_reading()
            && !self.resyncs.are_reading()
            && !self.staging.digests.is_reading()
            && !self.repairing(turn.now);
        if drained {
            self.answer_administrators(turn);
            self.phase = Phase::Stopped;
            turn.event(Event::Stopped);
        }
    }

    /// The site leaves the group: no reply from here on claims anything (INV-1), no disk is written.
    fn fail(&mut self, turn: &mut Turn<impl Memory>) {
        self.phase = Phase::Failed;
        self.serving = false;
        self.answer_all(turn, HostError::NotServing);
        self.answer_administrators(turn);
        if self.peer.connection.is_some() {
            turn.out.to_link.push(ToLink::Close);
        }
        self.close_remotes(turn);
    }

    fn fail_on_disk(&mut self, turn: &mut Turn<impl Memory>, target: IoTarget, fault: IoFault, block: u64) {
        turn.event(Event::Failed { target, fault, block });
        self.fail(turn);
    }

    /// Tops up the receivers' pools while enough remains for what must not wait.
    fn grant_pages(&mut self, turn: &mut Turn<impl Memory>) {
        let reserved = if self.stopped() { 0 } else { RESERVED_PAGES };
        for front in 0..self.front_pages.len() {
            while self.front_pages[front] < self.staging_target
                && self.pages.free() > reserved
                && turn.out.front_pages[front].room() > 0
            {
                let page = self.pages.take().expect("counted above");
                turn.out.front_pages[front].push(page);
                self.front_pages[front] += 1;
            }
        }
        while self.config.peer.is_some()
            && self.link_pages < self.staging_target
            && self.pages.free() > reserved
            && turn.out.link_pages.room() > 0
        {
            let page = self.pages.take().expect("counted above");
            turn.out.link_pages.push(page);
            self.link_pages += 1;
        }
        // What a third sends has no blocks.
        let target = if self.feed.is_some() { feeding::LINK_PAGES } else { self.staging_target };
        for (held, remote) in self.remote_pages.iter_mut().zip(&mut turn.out.remotes) {
            while *held < target && self.pages.free() > reserved && remote.pages.room() > 0 {
                let page = self.pages.take().expect("counted above");
                remote.pages.push(page);
                *held += 1;
            }
        }
    }

    /// Pages that fronts and links hold to receive into.
    fn staged_pages(&self) -> u64 {
        let pools = self.front_pages.iter().chain(&self.remote_pages);
        (pools.sum::<usize>() + self.link_pages) as u64
    }

    /// Ends what there is on the links beside the peer's: this site leaves the group.
    fn close_remotes(&mut self, turn: &mut Turn<impl Memory>) {
        let fed = self.feed.iter().map(|feed| feed.connection);
        let connections = fed.chain(self.sources.iter().map(|source| source.connection));
        for (connection, remote) in connections.zip(&mut turn.out.remotes) {
            if connection.is_some() {
                remote.to_link.push(ToLink::Close);
            }
        }
    }

    /// The peer's position at the configured level, as far as acknowledgements are concerned.
    fn peer_level(&self) -> UpdateNumber {
        match self.config.ack {
            AckLevel::Received => self.peer.received,
            AckLevel::Journaled => self.peer.journaled,
            AckLevel::Durable => self.peer.durable,
            AckLevel::Applied => self.peer.applied,
        }
    }

    fn in_set(&self) -> bool {
        self.config.peer.is_some() && self.alone != Alone::Yes
    }

    fn assert_invariants(&self) {
        let at = || format!("group {} {} last {}", self.config.group, self.generation, self.window.last());
        assert!(
            self.checkpoint <= self.settled,
            "checkpoint {} > settled {}: {}",
            self.checkpoint,
            self.settled,
            at()
        );
        assert!(
            self.settled <= self.journal.durable(),
            "settled {} > durable {}: {}",
            self.settled,
            self.journal.durable(),
            at()
        );
        assert!(
            self.journal.durable() <= self.journal.journaled(),
            "durable {} > journaled {}: {}",
            self.journal.durable(),
            self.journal.journaled(),
            at()
        );
        assert!(self.journal.journaled() <= self.journal.appended(), "journaled beyond appended: {}", at());
        let replaying = matches!(self.phase, Phase::Recovering(_));
        assert!(
            replaying || self.journal.appended() <= self.window.last(),
            "appended beyond the last number: {}",
            at()
        );
        assert!(
            self.window.retired() <= self.settled,
            "retired {} > settled: {}",
            self.window.retired(),
            at()
        );
        if self.role == Role::Primary {
            assert!(self.acknowledged <= self.window.last(), "acknowledged beyond the last number: {}", at());
        }
    }
}
