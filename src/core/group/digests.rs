//! What is equal at both sites is not copied. A site that may lack anything is asked, extent by extent, for digests of what its blocks hold;
//! it reads them for that, and compares them with their checksums. Who copies leaves out of the copy what is the same here, by 128 bits of
//! xxh3 and never by a checksum alone ([decision 0031](../../../docs/decisions/0031-equal-blocks-are-not-copied.md)).
//!
//! A repair asks for a block by its checksum, so both sites are to have the same one: zeros that were written as data are not equal to zeros
//! that were never written, and a target tells the digest of zeros for those alone.
//!
//! What a target's blocks hold does not change until it installs, so a digest stays true. A block that was left out and changes afterwards
//! is copied as all that change after `floor` are: being equal never takes back what another reason asks for.

use super::copying::Kind;
use super::host::DESTAGE_SLOTS;
use super::mending::holds;
use super::peering::LINK_SPARE;
use super::storage::VolumeIo;
use super::targets::{Target, room_to};
use super::{Group, Turn};
use crate::base::*;
use crate::core::messages::*;
use crate::core::outbox::LossReason;
use crate::format::digests::{put_digests, take_digests};

/// Blocks whose place is looked up in a turn: a few ten microseconds.
const LOOKS_A_TURN: u32 = 1024;

/// Blocks in memory that a turn computes digests of: another few ten.
const DIGESTS_A_TURN: u32 = 64;

/// When to look again if pages or slots are lacking.
const LOOKS_AGAIN_AFTER: Nanos = Nanos::from_millis(5);

/// An extent that a target is asked for, or tells.
#[derive(Clone, Copy, Debug)]
struct Part {
    extent: Extent,
    /// At the site that copies: the target has answered.
    answered: bool,
    /// Blocks that are judged, told or being read.
    next: u32,
    /// Reads under way.
    reads: u32,
}

impl Part {
    fn of(extent: Extent) -> Part {
        Part { extent, answered: false, next: 0, reads: 0 }
    }

    fn lba(&self, index: u32) -> Lba {
        self.extent.first.plus(u64::from(index))
    }

    fn is_over(&self) -> bool {
        self.next == self.extent.count && self.reads == 0
    }
}

/// A read for digests: of which part, before how many ends of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DigestRead {
    part: u8,
    serial: u32,
    /// The first block's place in the extent.
    first: u32,
}

/// At the site that copies what it asks for, and at the site that is copied to what it tells.
#[derive(Debug)]
pub(super) struct Digests {
    parts: [Option<Part>; DIGEST_EXTENTS_MAX],
    told: Box<[[Digest128; DIGEST_BLOCKS_MAX]; DIGEST_EXTENTS_MAX]>,
    serial: u32,
    reads: u32,
    /// Something is to be done though nothing arrives.
    goes_on: bool,
    of_zeros: Digest128,
    /// At the site that copies: blocks that are compared before they are copied, and where the next ones are; those before are asked for, or judged.
    to_compare: Vec<Bitmap>,
    cursor: (u16, u64),
    /// Blocks that this resync leaves out, so far.
    pub equal: u64,
}

impl Digests {
    pub fn new(sizes: impl Iterator<Item = u64>) -> Digests {
        Digests {
            parts: [None; DIGEST_EXTENTS_MAX],
            told: Box::new([[Digest128::NONE; DIGEST_BLOCKS_MAX]; DIGEST_EXTENTS_MAX]),
            serial: 0,
            reads: 0,
            goes_on: false,
            of_zeros: digest_of_block(&[0; BLOCK_BYTES]),
            to_compare: sizes.map(Bitmap::new).collect(),
            cursor: (0, 0),
            equal: 0,
        }
    }

    pub fn is_reading(&self) -> bool {
        self.reads > 0
    }

    /// Blocks that are not judged yet.
    pub fn left(&self) -> u64 {
        self.to_compare.iter().map(Bitmap::count).sum()
    }

    /// What was asked for, or is being told, is over.
    pub fn interrupt(&mut self) {
        self.parts = [None; DIGEST_EXTENTS_MAX];
        self.serial = self.serial.wrapping_add(1);
        self.cursor = (0, 0);
        self.goes_on = false;
    }

    /// Another resync: of everything, or without any comparison. Sets of blocks are volumes', and last the slots that are in use.
    pub fn begin(&mut self, whole: bool, put_slots: impl FnOnce(&mut Bitmap)) {
        self.interrupt();
        self.equal = 0;
        let (slots, volumes) = self.to_compare.split_last_mut().expect("slots come last");
        match whole {
            true => {
                volumes.iter_mut().for_each(Bitmap::fill);
                put_slots(slots);
            }
            false => self.to_compare.iter_mut().for_each(Bitmap::clear),
        }
    }

    fn free_part(&self) -> Option<usize> {
        self.parts.iter().position(Option::is_none)
    }

    fn end_if_over(&mut self, index: usize) {
        if self.parts[index].is_some_and(|part| part.is_over()) {
            self.parts[index] = None;
        }
    }

    /// The part that a read was for, unless the conversation has ended since.
    fn part_of(&mut self, read: DigestRead) -> Option<&mut Part> {
        self.reads -= 1;
        if read.serial != self.serial {
            return None;
        }
        let part = self.parts[usize::from(read.part)].as_mut()?;
        part.reads -= 1;
        Some(part)
    }
}

impl Group {
    // ------------------------------------------------------------------------------------------------------ the site that copies

    /// Asks for digests and judges by them, as the pace allows; true if nothing is left to compare.
    pub(super) fn leave_out_equal(&mut self, turn: &mut Turn<impl Memory>, to: Target) -> bool {
        self.resyncs[to].digests.goes_on = false;
        self.ask_for_digests(turn, to);
        for index in 0..DIGEST_EXTENTS_MAX {
            if self.resyncs[to].digests.parts[index].is_some_and(|part| part.answered) {
                self.judge_part(turn, to, index);
                self.resyncs[to].digests.end_if_over(index);
            }
        }
        let digests = &self.resyncs[to].digests;
        digests.left() == 0 && digests.parts.iter().all(Option::is_none)
    }

    pub(super) fn leaves_out_at_once(&self, to: Target) -> bool {
        self.resyncs[to].digests.goes_on
    }

    fn ask_for_digests(&mut self, turn: &mut Turn<impl Memory>, to: Target) {
        let mut looks = 0;
        while let Some(index) = self.resyncs[to].digests.free_part() {
            let Some((volume, first)) = self.next_to_compare(to) else { return };
            if looks >= LOOKS_A_TURN {
                self.resyncs[to].digests.goes_on = true;
                return;
            }
            let blocks = self.resyncs[to].digests.to_compare[usize::from(volume.0)].bits();
            if volume != self.slots_id() && self.kind_of(volume, first) == Kind::Zeros {
                // They cost as much as a question.
                self.resyncs[to].digests.to_compare[usize::from(volume.0)].remove(first.0);
                self.resyncs[to].copy_again(volume, first, 1);
                self.resyncs[to].digests.cursor = (volume.0, first.0 + 1);
                looks += 1;
                continue;
            }
            if !self.has_pace(turn.now, to) || room_to(turn, to) <= LINK_SPARE {
                return;
            }
            let count = (blocks - first.0).min(DIGEST_BLOCKS_MAX as u64) as u32;
            let extent = Extent { volume, first, count, reads: true };
            self.resyncs[to].digests.parts[index] = Some(Part::of(extent));
            self.resyncs[to].digests.cursor = (volume.0, first.0 + u64::from(count));
            self.give_target(turn, to, ToLink::Control(Control::DigestsWanted { extent }));
        }
    }

    fn next_to_compare(&self, to: Target) -> Option<(VolumeId, Lba)> {
        let (at, from) = self.resyncs[to].digests.cursor;
        let sets = (0u16..).zip(&self.resyncs[to].digests.to_compare).skip(usize::from(at));
        let from = |volume| if volume == at { from } else { 0 };
        sets.filter_map(|(volume, set)| Some((VolumeId(volume), Lba(set.next_from(from(volume))?)))).next()
    }

    pub(super) fn on_digests(&mut self, turn: &mut Turn<impl Memory>, to: Target, page: PageId) {
        if !self.copies_to(to) {
            return;
        }
        self.resyncs[to].heard_at = turn.now;
        let digests = &mut self.resyncs[to].digests;
        let known = take_digests(turn.memory.bytes(page)).and_then(|(volume, first, told)| {
            let asked = |part: &Option<Part>| {
                part.is_some_and(|part| {
                    let Extent { volume: of, first: from, count, .. } = part.extent;
                    !part.answered && (of, from, count as usize) == (volume, first, told.len())
                })
            };
            let index = digests.parts.iter().position(asked)?;
            digests.told[index].iter_mut().zip(told).for_each(|(place, digest)| *place = digest);
            digests.parts[index].as_mut().map(|part| part.answered = true)
        });
        if known.is_none() {
            self.lose_target(turn, to, LossReason::Protocol("digests that nobody asked for"));
        }
    }

    /// Compares what is in memory, and reads what is not.
    fn judge_part(&mut self, turn: &mut Turn<impl Memory>, to: Target, index: usize) {
        let mut computed = 0;
        while let Some(part) =
            self.resyncs[to].digests.parts[index].filter(|part| part.next < part.extent.count)
        {
            let (volume, lba) = (part.extent.volume, part.lba(part.next));
            let theirs = self.resyncs[to].digests.told[index][part.next as usize];
            let mut run = 1;
            if self.resyncs[to].digests.to_compare[usize::from(volume.0)].contains(lba.0) {
                let kind = if volume == self.slots_id() { Kind::OnDisk } else { self.kind_of(volume, lba) };
                match kind {
                    Kind::Zeros => {
                        self.judge_block(to, volume, lba, theirs == self.resyncs[to].digests.of_zeros)
                    }
                    // What has data here, and none there, or cannot be read there, need not be read for that.
                    Kind::OnDisk
                        if theirs == self.resyncs[to].digests.of_zeros || theirs == Digest128::NONE =>
                    {
                        self.judge_block(to, volume, lba, false);
                    }
                    Kind::InMemory if computed == DIGESTS_A_TURN => {
                        self.resyncs[to].digests.goes_on = true;
                        return;
                    }
                    Kind::InMemory => {
                        computed += 1;
                        let value = self.cache.peek_settled(volume, lba).expect("it is in memory");
                        let ours = digest_of_block(turn.memory.bytes(value.page));
                        let equal = ours == theirs && ours != self.resyncs[to].digests.of_zeros;
                        self.judge_block(to, volume, lba, equal);
                    }
                    Kind::OnDisk => {
                        run = self.read_to_compare_part(turn, to, index, part);
                        if run == 0 {
                            return;
                        }
                    }
                }
            }
            self.resyncs[to].digests.parts[index].as_mut().expect("it is being judged").next += run;
        }
    }

    /// Reads the blocks that come next in the part, as many as there is sense in; 0 if there is no room for it now.
    fn read_to_compare_part(
        &mut self,
        turn: &mut Turn<impl Memory>,
        to: Target,
        index: usize,
        part: Part,
    ) -> u32 {
        let (volume, lba) = (part.extent.volume, part.lba(part.next));
        let awaited = volume != self.slots_id() && self.mending.awaits(volume, lba);
        if awaited || !self.has_pace(turn.now, to) || !self.room_to_read(turn, to) {
            return 0;
        }
        let most = (part.extent.count - part.next).min(UPDATE_BLOCKS_MAX as u32);
        let wanted = |group: &Group, ahead: u32| {
            let (lba, digests) = (lba.plus(u64::from(ahead)), &group.resyncs[to].digests);
            let theirs = digests.told[index][(part.next + ahead) as usize];
            let reads = volume == group.slots_id()
                || (group.kind_of(volume, lba) == Kind::OnDisk && !group.mending.awaits(volume, lba));
            reads
                && theirs != digests.of_zeros
                && theirs != Digest128::NONE
                && digests.to_compare[usize::from(volume.0)].contains(lba.0)
        };
        let count = (0..most).take_while(|&ahead| wanted(self, ahead)).count() as u32;
        let digests = &mut self.resyncs[to].digests;
        let read = DigestRead { part: index as u8, serial: digests.serial, first: part.next };
        digests.reads += 1;
        digests.parts[index].as_mut().expect("it is being judged").reads += 1;
        self.resyncs[to].begin_read(count);
        match volume == self.slots_id() {
            true => {
                let io = VolumeIo::CompareSlots { to, first: Slot(lba.0), count, read };
                self.read_blocks(turn, IoTarget::Differential, lba.0, count, io);
            }
            false => self.fetch_blocks(
                turn,
                volume,
                lba,
                count,
                VolumeIo::CompareCopy { to, volume, lba, count, read },
            ),
        }
        count
    }

    /// A run of blocks was read to be compared with what the peer says of them.
    pub(super) fn read_to_leave_out(
        &mut self,
        turn: &mut Turn<impl Memory>,
        to: Target,
        slot: SlotId,
        (volume, lba, count): (VolumeId, Lba, u32),
        read: DigestRead,
        succeeded: bool,
    ) {
        self.resyncs[to].end_read(count);
        let mut found = [None; VOLUME_IO_BLOCKS_MAX];
        for (index, found) in found.iter_mut().enumerate().take(count as usize) {
            let page = turn.tables.volume_io.page(slot, index);
            let block = lba.plus(index as u64);
            *found = self.found_to_copy(turn, volume, block, page, succeeded).map(|(page, _)| page);
        }
        let found = found.into_iter().take(count as usize);
        self.judge_read(to, turn.memory, read, (volume, lba), found.clone());
        found.flatten().for_each(|page| self.pages.release(page, turn.memory));
    }

    /// Blocks were read; the page of each holds what it does, if that is known.
    fn judge_read(
        &mut self,
        to: Target,
        memory: &impl Memory,
        read: DigestRead,
        (volume, lba): (VolumeId, Lba),
        pages: impl Iterator<Item = Option<PageId>>,
    ) {
        if self.resyncs[to].digests.part_of(read).is_none() {
            return;
        }
        for (index, page) in (0u32..).zip(pages) {
            let theirs = self.resyncs[to].digests.told[usize::from(read.part)][(read.first + index) as usize];
            let equal = page.is_some_and(|page| digest_of_block(memory.bytes(page)) == theirs);
            self.judge_block(to, volume, lba.plus(u64::from(index)), equal);
        }
        self.resyncs[to].digests.end_if_over(usize::from(read.part));
    }

    /// A block is left out, or copied.
    fn judge_block(&mut self, to: Target, volume: VolumeId, lba: Lba, equal: bool) {
        let digests = &mut self.resyncs[to].digests;
        if !digests.to_compare[usize::from(volume.0)].remove(lba.0) {
            return;
        }
        digests.equal += u64::from(equal);
        self.counters.resync_equal_blocks += u64::from(equal);
        // A slot whose capture may be pending is copied later, once it holds that.
        let pending = volume == self.slots_id() && self.resyncs[to].is_recent(volume, lba);
        if !equal && !pending {
            self.resyncs[to].copy_again(volume, lba, 1);
        }
    }

    pub(super) fn slots_compared(
        &mut self,
        turn: &mut Turn<impl Memory>,
        to: Target,
        slot: SlotId,
        (first, count): (Slot, u32),
        read: DigestRead,
        succeeded: bool,
    ) {
        self.resyncs[to].end_read(count);
        let tables = turn.tables;
        let page = |index| tables.volume_io.page(slot, index);
        let pages = (0..count as usize).map(|index| succeeded.then(|| page(index)));
        self.judge_read(to, turn.memory, read, (self.slots_id(), Lba(first.0)), pages);
        (0..count as usize).for_each(|index| self.pages.release(page(index), turn.memory));
    }

    // ------------------------------------------------------------------------------------------ the site that is copied to

    pub(super) fn on_digests_wanted(&mut self, turn: &mut Turn<impl Memory>, extent: Extent) {
        if !self.stages() {
            return;
        }
        let Extent { volume, first, count, .. } = extent;
        let blocks = match self.config.volumes.get(usize::from(volume.0)) {
            Some(volume) => volume.blocks,
            None if volume == self.slots_id() => self.config.differential_blocks,
            None => 0,
        };
        let within = first.0.checked_add(u64::from(count)).is_some_and(|end| end <= blocks);
        let sized = (1..=DIGEST_BLOCKS_MAX as u32).contains(&count);
        let Some(index) = self.staging.digests.free_part().filter(|_| within && sized) else {
            return self.lose_copier(turn, LossReason::Protocol("digests wanted of what there is not"));
        };
        self.staging.digests.parts[index] = Some(Part::of(extent));
        self.settle_own();
    }

    /// Reads and tells, once the volumes have all of this site's journal.
    pub(super) fn tell_digests(&mut self, turn: &mut Turn<impl Memory>) {
        self.staging.digests.goes_on = false;
        let waits = self.stages() && self.staging.digests.parts.iter().any(Option::is_some);
        if !waits || self.staging.installing() {
            return;
        }
        if self.checkpoint < self.window.last() || !self.destage_idle() {
            self.sweep_wanted |= self.checkpoint < self.window.last();
            return;
        }
        for index in 0..DIGEST_EXTENTS_MAX {
            if let Some(part) = self.staging.digests.parts[index].filter(|part| part.reads == 0) {
                self.read_to_tell(turn, index, part);
            }
            if self.staging.digests.parts[index].is_some_and(|part| part.is_over()) {
                self.send_digests(turn, index);
            }
        }
        self.staging.digests.goes_on =
            self.staging.digests.parts.iter().flatten().any(|part| part.reads == 0);
    }

    fn read_to_tell(&mut self, turn: &mut Turn<impl Memory>, index: usize, mut part: Part) {
        let Extent { volume, count, .. } = part.extent;
        let slots = volume == self.slots_id();
        let sums = self.sums.get(usize::from(volume.0));
        let reads = |lba: Lba| sums.is_none_or(|sums| sums.get(lba) != BlockSum::ZEROS);
        while part.next < count && !reads(part.lba(part.next)) {
            self.staging.digests.told[index][part.next as usize] = self.staging.digests.of_zeros;
            part.next += 1;
        }
        let (lba, most) = (part.lba(part.next), (count - part.next).min(VOLUME_IO_BLOCKS_MAX as u32));
        let run = (0..most).take_while(|&ahead| reads(lba.plus(u64::from(ahead)))).count() as u32;
        let room =
            self.pages.free() >= BATCH_BLOCKS_MAX + run as usize && self.volume_slots.len() > DESTAGE_SLOTS;
        if run > 0 && room {
            let digests = &mut self.staging.digests;
            let read = DigestRead { part: index as u8, serial: digests.serial, first: part.next };
            digests.reads += 1;
            (part.next, part.reads) = (part.next + run, 1);
            let io = VolumeIo::Digest { volume, count: run, read };
            match slots {
                true => self.read_blocks(turn, IoTarget::Differential, lba.0, run, io),
                false => self.read_to_judge(turn, (volume, lba, run), io),
            }
        }
        self.staging.digests.parts[index] = Some(part);
    }

    /// Blocks were read to be told; of one that has gone bad nothing is, so that it is copied.
    pub(super) fn digested(
        &mut self,
        turn: &mut Turn<impl Memory>,
        slot: SlotId,
        (volume, count): (VolumeId, u32),
        read: DigestRead,
        succeeded: bool,
    ) {
        let wanted = self.staging.digests.part_of(read).is_some();
        let slots = volume == self.slots_id();
        for index in 0..count as usize {
            let (page, sum) =
                (turn.tables.volume_io.page(slot, index), turn.tables.volume_io.sum(slot, index));
            if wanted {
                let sound = succeeded && (slots || holds(turn.memory, page, sum));
                let digest = if sound { digest_of_block(turn.memory.bytes(page)) } else { Digest128::NONE };
                let written = digest != self.staging.digests.of_zeros;
                let digest = if written { digest } else { Digest128::NONE };
                self.staging.digests.told[usize::from(read.part)][read.first as usize + index] = digest;
            }
            self.pages.release(page, turn.memory);
        }
    }

    fn send_digests(&mut self, turn: &mut Turn<impl Memory>, index: usize) {
        let part = self.staging.digests.parts[index].expect("the caller looked");
        let Extent { volume, first, count, .. } = part.extent;
        let Some(from) = self.copier().filter(|from| from.has_room(turn)) else { return };
        let Some(page) = self.pages.take() else { return };
        let told = &self.staging.digests.told[index][..count as usize];
        put_digests(turn.memory.bytes_mut(page), volume, first, told);
        turn.memory.seal(page);
        let (frame, length) = (PageFrame::Digests, BLOCK_BYTES as u16);
        from.link(turn).push(ToLink::Page { frame, page, length });
        self.staging.digests.parts[index] = None;
    }

    pub(super) fn tell_deadline(&self) -> Option<Nanos> {
        let tells = self.stages() && self.staging.digests.goes_on;
        tells.then(|| self.turned_at.plus(LOOKS_AGAIN_AFTER))
    }
}
