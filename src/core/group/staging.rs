//! A site that is copied what it lacks, a secondary by its primary, or a third by one of its sources: everything that comes goes to a log in a file of its own, and its volumes stay what they
//! were, so that it can take over at any moment as if nothing had come (INV-10). When it has everything, a mark makes that durable,
//! and the site starts anew: `install` brings the log to the volumes before anything else.

use super::copier::ResyncName;
use super::digests::Digests;
use super::inbound::Inbound;
use super::log_scan::Scan;
use super::origins::Origin;
use super::peering::refusal;
use super::{Group, Phase, Turn};
use crate::base::*;
use crate::core::config::Role;
use crate::core::messages::*;
use crate::core::outbox::{Event, LossReason};
use crate::format::history::History;
use crate::format::journal::{BatchHeader, encode_batch};
use crate::format::staging::{put_empty_mark, take_empty_mark};
use crate::format::superblock::{JournalPosition, RING_FIRST_BLOCK, Superblock};
use crate::format::tables::{TablesHeader, header_of};
use crate::format::update::{Update, UpdateKind};
use crate::format::wire::{Hello, RefusalCode};

/// The mark's block in the staging file; the log begins behind two, as a journal's ring does.
pub(super) const MARK_BLOCK: u64 = 0;

/// Batches of the log that are written at once.
const WRITES_MAX: usize = 4;

/// Updates that are flushed together at most, so that the primary hears of them.
const FLUSH_UPDATES: u64 = 64;

/// A batch of the log on its way to the disk: it ends with the `upto`th update.
#[derive(Clone, Copy, Debug)]
struct Writing {
    slot: SlotId,
    blocks: u32,
    upto: u64,
    done: bool,
}

/// What was ordered when everything had come.
#[derive(Clone, Copy, Debug)]
enum Order {
    None,
    /// The mark waits until the volumes have all of this site's journal, and nothing else is being written.
    Due {
        upto: UpdateNumber,
    },
    Marking {
        slot: SlotId,
        page: PageId,
        upto: UpdateNumber,
    },
    Flushing {
        slot: SlotId,
        page: PageId,
        upto: UpdateNumber,
    },
}

/// Where the first block of an empty log's file stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opening {
    Due,
    Written,
    Flushed,
}

#[derive(Debug)]
pub(super) struct Staging {
    /// The resync that the log is of.
    pub resync: Option<ResyncName>,
    /// One that was offered, and not answered yet.
    pub offered: Option<ResyncName>,
    /// What is told of blocks that may be equal.
    pub digests: Digests,
    opening: Opening,
    /// This site held nothing when it was first offered everything.
    began_empty: bool,
    /// A third asks for no copy before this.
    pub asks_from: Nanos,
    /// What this life knows of the file.
    pub scan: Scan,
    /// Where the next batch goes.
    pub head: JournalPosition,
    /// Updates that were put into batches, that are written, and that are flushed; and what the primary knows of the last.
    pub appended: u64,
    pub written: u64,
    flushed: u64,
    reported: u64,
    writing: FixedQueue<Writing>,
    flushing: Option<(SlotId, u64)>,
    /// The history of the stream at the primary, which comes before the order.
    history: Option<Box<History>>,
    order: Order,
    pub descriptors: Box<[Update; BATCH_DESCRIPTORS_MAX]>,
    pub blocks: u64,
    /// Of the tables that began last in the log: the number that they are of, and the next page, unless all of them are there.
    tables: Option<(UpdateNumber, Option<u32>)>,
}

impl Staging {
    pub fn new() -> Staging {
        Staging {
            resync: None,
            offered: None,
            digests: Digests::new(std::iter::empty()),
            opening: Opening::Due,
            began_empty: false,
            asks_from: Nanos(0),
            scan: Scan::Owed,
            head: JournalPosition::default(),
            appended: 0,
            written: 0,
            flushed: 0,
            reported: 0,
            writing: FixedQueue::new(WRITES_MAX),
            flushing: None,
            history: None,
            order: Order::None,
            descriptors: Box::new([Update::EMPTY; BATCH_DESCRIPTORS_MAX]),
            blocks: 0,
            tables: None,
        }
    }

    pub fn note_tables(&mut self, header: &TablesHeader) {
        let follows = header.index == 0 || self.tables == Some((header.applied, Some(header.index)));
        let next = (!header.last).then_some(header.index + 1);
        self.tables = follows.then_some((header.applied, next));
    }

    pub fn is_io(&self, slot: SlotId) -> bool {
        let ordered = matches!(self.order, Order::Marking { slot: s, .. } | Order::Flushing { slot: s, .. } if s == slot);
        ordered
            || matches!(self.scan, Scan::Reading { slot: s, .. } if s == slot)
            || self.flushing.is_some_and(|(flushing, _)| flushing == slot)
            || self.writing.iter().any(|writing| writing.slot == slot && !writing.done)
    }

    fn quiet(&self) -> bool {
        let scanning = matches!(self.scan, Scan::Due | Scan::Reading { .. });
        self.writing.is_empty() && self.flushing.is_none() && !scanning
    }

    /// An empty log of the resync.
    fn begin_log(&mut self, resync: ResyncName) {
        self.resync = Some(resync);
        self.opening = Opening::Due;
        self.head = JournalPosition { block: RING_FIRST_BLOCK, sequence: 1, previous: resync.seed() };
        (self.appended, self.written, self.flushed, self.blocks) = (0, 0, 0, 0);
        self.tables = None;
    }

    /// Whether this site is about to be what it was copied, and cannot become anything else before that.
    pub fn installing(&self) -> bool {
        matches!(self.order, Order::Marking { .. } | Order::Flushing { .. })
    }
}

impl Group {
    /// A site has more to send than a journal.
    pub(super) fn on_copy_offer(
        &mut self,
        turn: &mut Turn<impl Memory>,
        from: Origin,
        resync: ResyncName,
        blocks: u64,
        whole: bool,
    ) {
        // Behind an answer that it did not expect, it offers another one.
        let listens =
            self.listens_to(from) || (self.copier() == Some(from) && self.staging.offered.is_none());
        if !listens || self.staging.installing() {
            return self.lose_copying(turn, from, LossReason::Protocol("a resync that was not due"));
        }
        // Each block may come with a header of its own.
        let (need, have) =
            (blocks.saturating_mul(2).saturating_add(RING_FIRST_BLOCK), self.config.resync.staging_blocks);
        if need > have {
            let why = refusal(
                RefusalCode::ResyncRequired,
                format_args!("this site's staging file has {have} blocks, the resync may need {need}"),
            );
            return self.refuse_copying(turn, from, why);
        }
        self.begin_staging(from);
        self.staging.offered = Some(resync);
        self.staging.began_empty |= whole && self.window.last() == UpdateNumber::NONE;
        self.staging.history = None;
        turn.event(match from {
            Origin::Peer => Event::ResyncBegan { blocks, whole },
            Origin::Source(_) => Event::CopyBegan { site: resync.site, blocks },
        });
    }

    /// The conversation is over. What is in the log stays good for the same resync; an order counts once its mark is being written.
    pub(super) fn interrupt_staging(&mut self) {
        self.staging.offered = None;
        self.staging.digests.interrupt();
        if let Order::Due { .. } = self.staging.order {
            self.staging.order = Order::None;
        }
    }

    pub(super) fn staging_turn(&mut self, turn: &mut Turn<impl Memory>) {
        self.scan_log(turn);
        self.begin_log_if_offered(turn);
        self.flush_log_if_due(turn);
        self.tell_digests(turn);
        self.report_staged(turn);
        self.mark_if_due(turn);
    }

    /// Answers an offer: with what is there of the same resync, or an empty log.
    fn begin_log_if_offered(&mut self, turn: &mut Turn<impl Memory>) {
        let Some(resync) = self.staging.offered else { return };
        // Batches of an interrupted conversation count, and must not come after an answer.
        let quiet = self.staging.quiet() && self.staging.flushed == self.staging.written;
        let Some(from) = self.copier().filter(|from| quiet && from.has_room(turn)) else { return };
        let staging = &mut self.staging;
        if staging.scan == Scan::Owed {
            staging.begin_log(resync);
            staging.scan = Scan::Due;
            return self.scan_log(turn);
        }
        if staging.resync != Some(resync) {
            staging.begin_log(resync);
        }
        if staging.appended == 0 && staging.opening != Opening::Flushed {
            return self.open_log(turn);
        }
        let staging = &mut self.staging;
        staging.offered = None;
        staging.reported = staging.flushed;
        let updates = staging.flushed;
        from.link(turn).push(ToLink::Control(Control::Staged { updates }));
    }

    /// Writes the first block of a file, and flushes it, before anybody hears of the log. A mark that was installed under says nothing of
    /// this one; and that a site holds nothing yet has to outlive it.
    fn open_log(&mut self, turn: &mut Turn<impl Memory>) {
        if !self.journal.has_slot() || self.pages.free() == 0 {
            return;
        }
        let slot = self.journal.take_slot().expect("checked above");
        if self.staging.opening == Opening::Written {
            self.staging.opening = Opening::Flushed;
            self.staging.flushing = Some((slot, self.staging.written));
            return self.flush_staging(turn, slot);
        }
        let page = match self.holds_nothing() {
            true => {
                let page = self.pages.take().expect("checked above");
                put_empty_mark(turn.memory.bytes_mut(page), self.config.group, self.config.site);
                turn.memory.seal(page);
                page
            }
            false => PageId::ZERO,
        };
        turn.tables.journal_io.set(slot, 0, page, BlockSum::ZEROS);
        self.staging.opening = Opening::Written;
        self.staging.writing.push(Writing { slot, blocks: 1, upto: 0, done: false });
        let (target, op) = (IoTarget::Staging, IoOp::Write);
        turn.out.to_journal.push(IoRequest { slot, target, op, block: MARK_BLOCK, count: 1 });
    }

    /// The first block of the file was read at a start.
    pub(super) fn note_empty_mark(&mut self, page: &[u8; BLOCK_BYTES]) {
        self.staging.began_empty = take_empty_mark(page) == Some((self.config.group, self.config.site));
    }

    /// Whether this site was formatted anew into a group that has a history, and has none of that yet.
    pub(super) fn holds_nothing(&self) -> bool {
        self.staging.began_empty && self.window.last() == UpdateNumber::NONE
    }

    /// Takes received updates into the log.
    pub(super) fn stage_inbound(&mut self, turn: &mut Turn<impl Memory>) {
        while self.staging.offered.is_none() && self.staged_inbound().is_some_and(|queue| !queue.is_empty()) {
            let room = self.staging.writing.room() > 0 && self.journal.has_slot() && self.pages.free() > 0;
            if !room || !matches!(self.staging.order, Order::None) {
                return;
            }
            if !self.stage_batch(turn) {
                return;
            }
        }
    }

    fn stage_batch(&mut self, turn: &mut Turn<impl Memory>) -> bool {
        let (mut count, mut payload) = (0, 0);
        while count < BATCH_DESCRIPTORS_MAX
            && let Some(inbound) = self.staged_inbound().and_then(|queue| queue.get(count))
        {
            let update = inbound.update;
            let (page, with_old) = (inbound.pages[0].0, inbound.old.is_some());
            if let Err(why) = self.judge_staged(turn.memory, &update, page, with_old) {
                self.lose_copier(turn, LossReason::Protocol(why));
                return false;
            }
            if payload + update.payload_blocks() > BATCH_PAYLOAD_BLOCKS_MAX {
                break;
            }
            self.staging.descriptors[count] = update;
            payload += update.payload_blocks();
            count += 1;
        }
        let blocks = 1 + payload as u64;
        if self.staging.head.block + blocks >= self.config.resync.staging_blocks {
            let have = self.config.resync.staging_blocks;
            let why = refusal(
                RefusalCode::ResyncRequired,
                format_args!(
                    "this site's staging file of {have} blocks is full: hosts write faster than is copied"
                ),
            );
            // The next attempt begins with an empty log.
            self.staging.resync = None;
            self.refuse_copier(turn, why);
            return false;
        }
        let slot = self.journal.take_slot().expect("the caller looked");
        let header = self.pages.take().expect("the caller looked");
        turn.tables.journal_io.set(slot, 0, header, BlockSum::ZEROS);
        let mut row = 1;
        for _ in 0..count {
            let inbound: Inbound = self.take_staged(turn.now);
            if inbound.update.kind == UpdateKind::Tables {
                let header = header_of(turn.memory.bytes(inbound.pages[0].0)).expect("it was judged");
                self.staging.note_tables(&header);
            }
            for &(page, sum) in &inbound.pages[..inbound.update.payload_blocks()] {
                turn.memory.seal(page);
                turn.tables.journal_io.set(slot, row, page, sum);
                row += 1;
            }
        }
        let position = self.staging.head;
        let fields = BatchHeader {
            group: self.config.group,
            sequence: position.sequence,
            previous: position.previous,
            known_durable: UpdateNumber::NONE,
            settled: UpdateNumber::NONE,
            count: count as u16,
            payload_blocks: payload as u16,
        };
        let staging = &mut self.staging;
        let digest = encode_batch(&fields, &staging.descriptors[..count], turn.memory.bytes_mut(header));
        turn.memory.seal(header);
        staging.head = JournalPosition {
            block: position.block + blocks,
            sequence: position.sequence + 1,
            previous: digest,
        };
        staging.appended += count as u64;
        staging.blocks += blocks;
        let (upto, blocks) = (staging.appended, blocks as u32);
        staging.writing.push(Writing { slot, blocks, upto, done: false });
        turn.out.to_journal.push(IoRequest {
            slot,
            target: IoTarget::Staging,
            op: IoOp::Write,
            block: position.block,
            count: blocks,
        });
        true
    }

    fn judge_staged(
        &self,
        memory: &impl Memory,
        update: &Update,
        page: PageId,
        with_old: bool,
    ) -> Result<(), &'static str> {
        if with_old {
            return Err("old blocks in a resync");
        }
        if update.kind == UpdateKind::Slots && !self.slots.has(Slot(update.lba.0), update.count as usize) {
            return Err("a copied slot beyond the differential volume's end");
        }
        if update.kind == UpdateKind::Tables {
            self.judge_tables(memory.bytes(page), update.lba.0)?;
        }
        if update.touches_blocks() {
            let volume = self.config.volumes.get(update.volume.0 as usize);
            let end = update.lba.0.checked_add(u64::from(update.count));
            if volume.is_none_or(|volume| end.is_none_or(|end| end > volume.blocks)) {
                return Err("a copied block beyond its volume's end");
            }
        }
        Ok(())
    }

    /// An I/O of the staging file has ended.
    pub(super) fn staging_io_done(
        &mut self,
        turn: &mut Turn<impl Memory>,
        slot: SlotId,
        result: Result<(), IoFault>,
    ) {
        if let Scan::Reading { slot: reading, count } = self.staging.scan
            && reading == slot
        {
            self.log_part_read(turn, slot, count, result.is_ok());
        } else if let Some(writing) = (0..self.staging.writing.len()).find(|&index| {
            self.staging.writing.get(index).is_some_and(|writing| writing.slot == slot && !writing.done)
        }) {
            let writing = self.staging.writing.get_mut(writing).expect("found above");
            writing.done = true;
            let blocks = writing.blocks;
            for index in 0..blocks as usize {
                self.pages.release(turn.tables.journal_io.page(slot, index), turn.memory);
            }
            while self.staging.writing.front().is_some_and(|writing| writing.done) {
                let writing = self.staging.writing.pop().expect("looked at it");
                self.staging.written = writing.upto;
            }
            self.journal.return_slot(slot);
        } else if let Some((_, upto)) = self.staging.flushing.take_if(|(flushing, _)| *flushing == slot) {
            self.staging.flushed = upto;
            self.journal.return_slot(slot);
        } else {
            match self.staging.order {
                Order::Marking { page, upto, .. } if result.is_ok() => {
                    self.staging.order = Order::Flushing { slot, page, upto };
                    return self.flush_staging(turn, slot);
                }
                Order::Marking { page, upto, .. } | Order::Flushing { page, upto, .. } => {
                    self.pages.release(page, turn.memory);
                    self.journal.return_slot(slot);
                    if result.is_ok() {
                        return self.start_anew(turn, upto);
                    }
                }
                Order::None | Order::Due { .. } => unreachable!("is_io matched"),
            }
        }
        if let Err(fault) = result {
            self.staging_failed(turn, fault);
        }
    }

    /// Without its file there is no resync; the volumes are what they were. Unless the mark is in doubt.
    fn staging_failed(&mut self, turn: &mut Turn<impl Memory>, fault: IoFault) {
        if self.staging.installing() {
            return self.fail_on_disk(turn, IoTarget::Staging, fault, MARK_BLOCK);
        }
        self.staging.resync = None;
        turn.event(Event::StagingFailed { fault, blocks: self.staging.blocks });
        if self.stages() {
            let why = refusal(
                RefusalCode::ResyncRequired,
                format_args!("this site's staging file cannot be written; its log says why"),
            );
            self.refuse_copier(turn, why);
        }
    }

    pub(super) fn flush_staging(&mut self, turn: &mut Turn<impl Memory>, slot: SlotId) {
        turn.out.to_journal.push(IoRequest {
            slot,
            target: IoTarget::Staging,
            op: IoOp::Flush,
            block: 0,
            count: 0,
        });
    }

    fn flush_log_if_due(&mut self, turn: &mut Turn<impl Memory>) {
        let staging = &self.staging;
        let due = staging.written > staging.flushed
            && (staging.written - staging.flushed >= FLUSH_UPDATES || staging.writing.is_empty());
        if !due || staging.flushing.is_some() {
            return;
        }
        if let Some(slot) = self.journal.take_slot() {
            self.staging.flushing = Some((slot, self.staging.written));
            self.flush_staging(turn, slot);
        }
    }

    fn report_staged(&mut self, turn: &mut Turn<impl Memory>) {
        let from = self.copier().filter(|from| from.has_room(turn));
        let staging = &mut self.staging;
        let news = staging.offered.is_none() && staging.flushed > staging.reported;
        if let Some(from) = from.filter(|_| news) {
            staging.reported = staging.flushed;
            from.link(turn).push(ToLink::Control(Control::Staged { updates: staging.flushed }));
        }
    }

    // ---------------------------------------------------------------------------------------------------------- the mark

    /// The primary's hello: its history, which the order that follows needs.
    pub(super) fn note_copied_history(&mut self, hello: &Hello) {
        self.staging.history = Some(Box::new(hello.history));
    }

    pub(super) fn on_install(&mut self, turn: &mut Turn<impl Memory>, from: Origin, upto: UpdateNumber) {
        let tables = match self.config.differential_blocks {
            0 => true,
            _ => matches!(self.staging.tables, Some((applied, None)) if applied >= upto),
        };
        let whole = tables
            && self.staging.flushed == self.staging.appended
            && self.staged_inbound().is_some_and(|queue| queue.is_empty())
            && self.staging.offered.is_none()
            && self.staging.resync.is_some()
            && self.staging.history.is_some();
        // What a site that gives way has beyond it is to go.
        let follows = upto >= self.window.last() || self.has_given_way();
        if self.copier() != Some(from) || !whole || !follows {
            return self.lose_copying(turn, from, LossReason::Protocol("an install of what did not come"));
        }
        if !self.stopping {
            self.staging.order = Order::Due { upto };
            self.settle_own();
        }
    }

    /// What is staged comes on top of all that this site has, which is a part of what the primary has settled.
    pub(super) fn settle_own(&mut self) {
        self.peer.told_settled = self.peer.told_settled.max(self.window.last());
        self.peer.flush_requested = self.peer.flush_requested.max(self.window.last());
    }

    /// Writes the mark once no sweep and no write to the journal is under way: whatever it finds, the next start installs.
    fn mark_if_due(&mut self, turn: &mut Turn<impl Memory>) {
        let Order::Due { upto } = self.staging.order else { return };
        if self.checkpoint < self.window.last() {
            self.sweep_wanted = true;
            return;
        }
        let quiet = self.staging.quiet()
            && self.destage_idle()
            && self.journal.appended() == self.window.last()
            && self.journal.writes_in_flight() == 0
            && !self.journal.flush_in_flight();
        if !quiet || !self.journal.has_slot() || self.pages.free() == 0 {
            return;
        }
        let mut history = **self.staging.history.as_ref().expect("it came before the order");
        history.truncate_after(upto);
        let mark = Superblock {
            checkpoint: upto,
            checkpoint_generation: history.last().map_or(Generation::NONE, |(generation, _)| generation),
            known_durable: upto,
            settled: upto,
            solo: false,
            role: if self.role == Role::Third { Role::Third } else { Role::Secondary },
            left: None,
            history,
            // A superblock whose ring is the log, and whose position is the log's end.
            journal_blocks: self.config.resync.staging_blocks,
            sequence: self.destage.sequence() + 1,
            ..self.superblock(self.staging.head)
        };
        let slot = self.journal.take_slot().expect("checked above");
        let page = self.pages.take().expect("checked above");
        mark.encode(turn.memory.bytes_mut(page));
        turn.memory.seal(page);
        turn.tables.journal_io.set(slot, 0, page, BlockSum::ZEROS);
        self.staging.order = Order::Marking { slot, page, upto };
        turn.out.to_journal.push(IoRequest {
            slot,
            target: IoTarget::Staging,
            op: IoOp::Write,
            block: MARK_BLOCK,
            count: 1,
        });
    }

    /// The mark is durable: this group is over, and the next one begins with installing.
    fn start_anew(&mut self, turn: &mut Turn<impl Memory>, upto: UpdateNumber) {
        self.leave_peer(turn);
        self.leave_sources(turn);
        self.answer_all(turn, HostError::NotServing);
        self.answer_administrators(turn);
        self.phase = Phase::Stopped;
        turn.event(Event::StagedWhole { upto });
        if self.stopping {
            turn.event(Event::Stopped);
        }
    }

    /// Whether this group has ended so that another one installs what was staged.
    pub fn starts_anew(&self) -> bool {
        matches!(self.phase, Phase::Stopped) && self.staging.installing()
    }
}
