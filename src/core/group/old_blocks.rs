//! Differential data by value: a primary reads what an update overwrites before it numbers it, and sends it along; its
//! secondary compares it with what it has, and keeps it.

use super::host::OpState;
use super::peering::Talk;
use super::{Group, Turn};
use crate::base::*;
use crate::core::captures::Source;
use crate::core::config::{DifferentialBy, GroupConfig, Role};
use crate::core::messages::*;
use crate::core::outbox::Event;
use crate::format::update::Update;

/// Pages of an update's blocks, with their sums.
pub(super) type Blocks = [(PageId, BlockSum); UPDATE_BLOCKS_MAX];

/// Pages that receiving one update may take.
pub(super) fn update_pages(config: &GroupConfig) -> usize {
    match config.differential {
        DifferentialBy::Reference => UPDATE_BLOCKS_MAX,
        DifferentialBy::Value => 2 * UPDATE_BLOCKS_MAX,
    }
}

/// Old blocks that the link was given to read, by the updates they go with, in order. Each page has a reference for it: the
/// capture that holds it, too, may be done with before the link is, while the primary is alone.
#[derive(Debug)]
pub(super) struct Lent {
    updates: FixedQueue<(UpdateNumber, u32)>,
    pages: usize,
}

impl Lent {
    pub fn new() -> Lent {
        Lent { updates: FixedQueue::new(OLD_BLOCK_SLOTS), pages: 0 }
    }

    /// Pages other than the zero page.
    pub fn pages(&self) -> usize {
        self.pages
    }
}

fn row_of(number: UpdateNumber) -> SlotId {
    SlotId((number.0 % OLD_BLOCK_SLOTS as u64) as u32)
}

impl Group {
    // ---------------------------------------------------------------------------------------------- the primary

    /// Whether what hosts overwrite is read before it gets its number, to be sent. Not while this site is alone: nobody is sent
    /// anything then, and a peer that comes back captures from its own blocks what it catches up with.
    pub(super) fn sends_old_blocks(&self) -> bool {
        self.config.differential == DifferentialBy::Value
            && self.role == Role::Primary
            && self.serving
            && self.in_set()
    }

    /// Blocks of an operation on a volume with a snapshot that become updates at once: of what is to be sent by value, what one
    /// update has, since so many old blocks are in memory together (INV-12).
    pub(super) fn step_of(&self, volume: VolumeId, left: u32) -> u32 {
        match self.sends_old_blocks() && self.snapshots.newest(volume) != UpdateNumber::NONE {
            true => left.min(UPDATE_BLOCKS_MAX as u32),
            false => left,
        }
    }

    /// Whether an old block that is to be sent has to be read first.
    fn lacks_old_block(&self, volume: VolumeId, lba: Lba) -> bool {
        !self.captured[volume.0 as usize].contains(lba.0)
            && self.cache.peek(volume, lba).is_none()
            && self.sums[volume.0 as usize].get(lba) != BlockSum::ZEROS
    }

    /// Old blocks of `count` blocks that have to be read first.
    pub(super) fn old_blocks_lacking(&self, volume: VolumeId, lba: Lba, count: u32) -> usize {
        if !self.sends_old_blocks() || self.snapshots.newest(volume) == UpdateNumber::NONE {
            return 0;
        }
        (0..u64::from(count)).filter(|index| self.lacks_old_block(volume, lba.plus(*index))).count()
    }

    /// Reads them for a write, which tries again when they are there. Returns whether it left the queue: without room it stays.
    pub(super) fn fetch_old_blocks(
        &mut self,
        turn: &mut Turn<impl Memory>,
        at: (u8, Ticket),
        lba: Lba,
        count: u32,
        lacking: usize,
    ) -> bool {
        if !self.room_to_fetch(turn, lacking) {
            return false;
        }
        let volume = self.op(at).request.volume;
        let mut remaining = 0;
        let mut first = 0;
        while first < count {
            let from = lba.plus(u64::from(first));
            let run = (first..count)
                .take_while(|&index| self.lacks_old_block(volume, lba.plus(u64::from(index))))
                .count() as u32;
            if run > 0 {
                self.fetch(turn, at, volume, from, run, first);
                remaining += 1;
            }
            first += run.max(1);
        }
        self.counters.old_block_reads += lacking as u64;
        let op = self.op_mut(at);
        let visible_at = UpdateNumber::NONE;
        op.state = OpState::Fetching { remaining, visible_at, failed: false, mends: false };
        op.old_since = Some(turn.now);
        true
    }

    /// Whether the row of an update's old blocks is free, should it need it.
    pub(super) fn may_lend(&self, number: UpdateNumber) -> bool {
        self.lent.updates.front().is_none_or(|(oldest, _)| number.0 - oldest.0 < OLD_BLOCK_SLOTS as u64)
    }

    /// Gives the link what the update's blocks held before, if this site is to send that and has it in memory. Otherwise the
    /// peer captures from its own blocks, which are identical: it has the stream up to this update and nothing beyond.
    pub(super) fn lend_old_blocks(&mut self, turn: &mut Turn<impl Memory>, update: &Update) -> bool {
        let by_value = self.config.differential == DifferentialBy::Value
            && self.role == Role::Primary
            && self.peer.talk == Talk::Streaming;
        if !by_value || !update.captures() {
            return false;
        }
        let first = self.captures.count_through(update.number.previous());
        let blocks = first..first + update.count as usize;
        let in_memory = |index: usize| {
            let capture = self.captures.get(index);
            capture.is_some_and(|it| matches!(it.source, Source::Page(_)) && it.number == update.number)
        };
        if !blocks.clone().all(in_memory) {
            return false;
        }
        let mut pages = 0;
        for (place, index) in blocks.enumerate() {
            let capture = self.captures.get(index).expect("looked at it");
            let Source::Page(page) = capture.source else { unreachable!("looked at it") };
            self.pages.share(page);
            pages += usize::from(page != PageId::ZERO);
            turn.tables.old_blocks.set(row_of(update.number), place, page, capture.sum);
        }
        self.lent.updates.push((update.number, update.count));
        self.lent.pages += pages;
        self.counters.old_blocks_sent += u64::from(update.count);
        true
    }

    /// The link has read everything up to `number`.
    pub(super) fn take_old_blocks_back(&mut self, turn: &mut Turn<impl Memory>, number: UpdateNumber) {
        while let Some(&(oldest, count)) = self.lent.updates.front().filter(|(oldest, _)| *oldest <= number) {
            self.lent.updates.pop();
            for place in 0..count as usize {
                let page = turn.tables.old_blocks.page(row_of(oldest), place);
                self.lent.pages -= usize::from(page != PageId::ZERO);
                self.pages.release(page, turn.memory);
            }
        }
    }

    // -------------------------------------------------------------------------------------------- the secondary

    /// Whether an update may come with old blocks, if it does.
    pub(super) fn judge_old_blocks(&self, with_old: bool) -> Result<(), &'static str> {
        let agreed = self.config.differential == DifferentialBy::Value && self.role == Role::Secondary;
        if with_old && !agreed { Err("old blocks that were not asked for") } else { Ok(()) }
    }

    /// The first block whose old content is not what this site has. Its own need not be read for that: the checksum of every
    /// block is at hand.
    pub(super) fn differing(&self, memory: &impl Memory, update: &Update, old: &Blocks) -> Option<Lba> {
        let same = |lba: Lba, (page, sum): (PageId, BlockSum)| {
            let cached = self.cache.peek(update.volume, lba).map(|value| value.sum);
            match cached.unwrap_or_else(|| self.sums[update.volume.0 as usize].get(lba)) {
                BlockSum::ZEROS => page == PageId::ZERO || memory.is_zeros(page),
                expected if page == PageId::ZERO => memory.sum(page) == expected,
                expected => sum == expected,
            }
        };
        let blocks = (0..u64::from(update.count)).map(|index| update.lba.plus(index));
        blocks.zip(old).find(|(lba, cell)| !same(*lba, **cell)).map(|(lba, _)| lba)
    }

    /// The sites' images differ: no update can be trusted to mean the same at both any more.
    pub(super) fn leave_for_difference(&mut self, turn: &mut Turn<impl Memory>, volume: VolumeId, lba: Lba) {
        let newest = self.snapshots.find(self.snapshots.newest(volume));
        let snapshot = newest.map(|found| found.record.name).unwrap_or_default();
        turn.event(Event::ImagesDiffer { volume, lba, snapshot });
        self.fail(turn);
    }

    /// The page that a capture keeps of an old block that came with its update.
    pub(super) fn keep_old_block(
        &mut self,
        turn: &mut Turn<impl Memory>,
        page: PageId,
        sum: BlockSum,
    ) -> PageId {
        if sum == BlockSum::ZEROS {
            self.pages.release(page, turn.memory);
            return PageId::ZERO;
        }
        if page != PageId::ZERO {
            turn.memory.seal(page);
        }
        page
    }
}
