//! A site's files and devices: what a write, a flush, a process crash and a power loss leave behind.
//!
//! A completed write is visible at once and survives the process; only a flush submitted after its completion was
//! delivered makes it survive power loss, unless the device has no volatile cache. Blocks of 4 KiB are atomic and nothing
//! larger is: at a crash each block of a write in flight, and at power loss each unflushed block, fares for itself.

use std::collections::BTreeSet;

use crate::base::{BLOCK_BYTES, VolumeId};
use crate::core::messages::IoTarget;
use crate::sim::audit::journal::{room_in_superblock, superblock};
use crate::sim::audit::{Media, Place};
use crate::sim::content::{Block, Content, Print, recycle};
use crate::sim::metadata::Metadata;
use crate::sim::rng::Rng;

/// Names one I/O of a site, over all its incarnations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct IoId(pub u64);

/// One block as it lies on a disk.
#[derive(Clone, Debug)]
pub struct Stored {
    pub content: Content,
    /// The write that put it there.
    pub io: IoId,
}

#[derive(Debug)]
struct Written {
    io: IoId,
    block: u64,
    blocks: Vec<Stored>,
    delivered: bool,
}

#[derive(Debug)]
enum Doing {
    Read {
        block: u64,
        count: u64,
    },
    Write(Written),
    /// In order.
    Flush {
        covers: Vec<IoId>,
    },
    Reserve,
}

#[derive(Debug)]
struct InFlight {
    io: IoId,
    target: usize,
    doing: Doing,
}

#[derive(Debug)]
struct Target {
    volatile: bool,
    visible: Vec<Option<Stored>>,
    durable: Vec<Option<Stored>>,
    /// Completed and not flushed, in order of completion. Empty on a device without a volatile cache.
    unflushed: Vec<Written>,
    /// Blocks that cannot be read until they are written.
    unreadable: BTreeSet<u64>,
}

impl Target {
    fn make_durable(&mut self, written: &Written) {
        for (index, stored) in written.blocks.iter().enumerate() {
            replace(&mut self.durable[written.block as usize + index], stored.clone());
        }
    }

    fn make_visible(&mut self, written: &Written) {
        for (index, stored) in written.blocks.iter().enumerate() {
            self.unreadable.remove(&(written.block + index as u64));
            replace(&mut self.visible[written.block as usize + index], stored.clone());
        }
    }
}

#[derive(Debug)]
pub struct Disk {
    targets: Vec<Target>,
    in_flight: Vec<InFlight>,
    next_io: u64,
    pub metadata: Metadata,
}

fn replace(place: &mut Option<Stored>, by: Stored) {
    place.replace(by).and_then(|old| old.content.bytes).into_iter().for_each(recycle);
}

fn index_of(target: IoTarget) -> usize {
    match target {
        IoTarget::Journal => 0,
        IoTarget::Differential => 1,
        IoTarget::Staging => 2,
        IoTarget::Volume(VolumeId(volume)) => 3 + 2 * usize::from(volume),
        IoTarget::Checksums(VolumeId(volume)) => 4 + 2 * usize::from(volume),
    }
}

impl Disk {
    /// `volumes` are sizes in blocks; each has a checksum file of a block for 1024 of its own.
    pub fn new(
        journal_blocks: u64,
        journal_volatile: bool,
        differential_blocks: u64,
        staging_blocks: u64,
        volumes: &[u64],
    ) -> Disk {
        let target = |blocks: u64, volatile: bool| Target {
            volatile,
            visible: vec![None; blocks as usize],
            durable: vec![None; blocks as usize],
            unflushed: Vec::new(),
            unreadable: BTreeSet::new(),
        };
        let mut targets = vec![
            target(journal_blocks, journal_volatile),
            target(differential_blocks, true),
            target(staging_blocks, true),
        ];
        for &blocks in volumes {
            targets.push(target(blocks, true));
            targets.push(target(blocks.div_ceil(1024), true));
        }
        Disk { targets, in_flight: Vec::new(), next_io: 1, metadata: Metadata::default() }
    }

    /// One with a superblock, as its formatting leaves it.
    #[cfg(test)]
    pub fn formatted(journal_blocks: u64, volumes: &[u64]) -> Disk {
        use crate::base::{GroupId, SiteId};
        use crate::core::config::Role;
        use crate::format::superblock::Superblock;
        let mut disk = Disk::new(journal_blocks, false, 0, 1, volumes);
        let (group, site, role) = (GroupId(1), SiteId(1), Role::Primary);
        let formatted = Superblock::formatted(group, site, role, 0, journal_blocks, volumes);
        let mut block = [0; BLOCK_BYTES];
        formatted.encode(&mut block);
        disk.put(IoTarget::Journal, formatted.slot(), &block);
        disk
    }

    /// New disks in place of others: their I/Os go on being counted.
    pub fn after(mut self, old: &Disk) -> Disk {
        assert!(old.in_flight.is_empty(), "nobody uses them");
        self.next_io = old.next_io;
        self
    }

    fn begin(&mut self, target: IoTarget, doing: impl FnOnce(IoId) -> Doing) -> IoId {
        let io = IoId(self.next_io);
        self.next_io += 1;
        self.in_flight.push(InFlight { io, target: index_of(target), doing: doing(io) });
        io
    }

    fn end(&mut self, io: IoId) -> InFlight {
        let index = self.in_flight.iter().position(|doing| doing.io == io).expect("an I/O ends once");
        self.in_flight.swap_remove(index)
    }

    /// Whether `count` blocks at `block` lie inside the target; nothing outside may be asked for (INV-13).
    pub fn has(&self, target: IoTarget, block: u64, count: u64) -> bool {
        block.checked_add(count).is_some_and(|end| end <= self.targets[index_of(target)].visible.len() as u64)
    }

    pub fn write(&mut self, target: IoTarget, block: u64, blocks: impl Iterator<Item = Content>) -> IoId {
        self.begin(target, |io| {
            let blocks: Vec<Stored> = blocks.map(|content| Stored { content, io }).collect();
            Doing::Write(Written { io, block, blocks, delivered: false })
        })
    }

    pub fn read(&mut self, target: IoTarget, block: u64, count: u64) -> IoId {
        self.begin(target, |_| Doing::Read { block, count })
    }

    pub fn flush(&mut self, target: IoTarget) -> IoId {
        let unflushed = &self.targets[index_of(target)].unflushed;
        let mut covers: Vec<_> =
            unflushed.iter().filter(|written| written.delivered).map(|written| written.io).collect();
        covers.sort_unstable();
        self.begin(target, |_| Doing::Flush { covers })
    }

    pub fn complete_write(&mut self, io: IoId) {
        let InFlight { target, doing: Doing::Write(written), .. } = self.end(io) else {
            panic!("{io:?} is not a write")
        };
        let target = &mut self.targets[target];
        target.make_visible(&written);
        if target.volatile {
            target.unflushed.push(written);
        } else {
            target.make_durable(&written);
        }
    }

    /// The write failed: each of its blocks may nevertheless be there.
    pub fn fail_write(&mut self, io: IoId, rng: &mut Rng) {
        let InFlight { target, doing: Doing::Write(written), .. } = self.end(io) else {
            panic!("{io:?} is not a write")
        };
        self.keep_some(target, written, rng);
    }

    fn keep_some(&mut self, target: usize, written: Written, rng: &mut Rng) {
        let target = &mut self.targets[target];
        let share = rng.below(101);
        for (index, stored) in written.blocks.into_iter().enumerate() {
            if rng.percent(share) {
                let part = Written {
                    io: written.io,
                    block: written.block + index as u64,
                    blocks: vec![stored],
                    delivered: false,
                };
                target.make_visible(&part);
                if target.volatile {
                    target.unflushed.push(part);
                } else {
                    target.make_durable(&part);
                }
            }
        }
    }

    /// Returns the places of blocks that cannot be read, as bits; the others are given.
    pub fn complete_read(&mut self, io: IoId, mut into: impl FnMut(usize, Content)) -> u32 {
        let InFlight { target, doing: Doing::Read { block, count }, .. } = self.end(io) else {
            panic!("{io:?} is not a read")
        };
        let Target { visible, unreadable, .. } = &self.targets[target];
        let mut unread = 0;
        for (index, stored) in visible[block as usize..(block + count) as usize].iter().enumerate() {
            match unreadable.contains(&(block + index as u64)) {
                true => unread |= 1 << index,
                false => into(index, stored.as_ref().map_or(Content::ZERO, |stored| stored.content.clone())),
            }
        }
        unread
    }

    /// The writes that are now on stable media.
    pub fn complete_flush(&mut self, io: IoId) -> Vec<IoId> {
        let InFlight { target, doing: Doing::Flush { covers }, .. } = self.end(io) else {
            panic!("{io:?} is not a flush")
        };
        let target = &mut self.targets[target];
        for written in std::mem::take(&mut target.unflushed) {
            if covers.binary_search(&written.io).is_ok() {
                target.make_durable(&written);
            } else {
                target.unflushed.push(written);
            }
        }
        covers
    }

    /// Nothing that is there changes by it.
    pub fn reserve(&mut self, target: IoTarget) -> IoId {
        self.begin(target, |_| Doing::Reserve)
    }

    /// What the newest superblock that survives a power loss says of this volume: so many blocks of it are not shown to hosts.
    pub fn durable_room(&self, volume: VolumeId) -> u64 {
        let slots = &self.targets[index_of(IoTarget::Journal)].durable[..2];
        let blocks = slots.iter().flatten().filter_map(|stored| stored.content.bytes.as_deref());
        let seen = blocks.filter_map(|block| Some((superblock(block)?.sequence, block)));
        let (_, newest) = seen.max_by_key(|(sequence, _)| *sequence).expect("a formatted journal keeps one");
        room_in_superblock(newest, volume.0)
    }

    /// A reservation is done; a read or flush failed.
    pub fn end_other(&mut self, io: IoId) {
        self.end(io);
    }

    /// The group has heard of the completion, so the next flush covers the write.
    pub fn delivered(&mut self, target: IoTarget, io: IoId) {
        let unflushed = &mut self.targets[index_of(target)].unflushed;
        // A write that was delivered is one piece, and among the last to have completed.
        if let Some(written) = unflushed.iter_mut().rev().find(|written| written.io == io) {
            written.delivered = true;
        }
    }

    /// The process dies; what it had completed stays where it is.
    pub fn crash_process(&mut self, rng: &mut Rng) {
        for InFlight { target, doing, .. } in std::mem::take(&mut self.in_flight) {
            if let Doing::Write(written) = doing {
                self.keep_some(target, written, rng);
            }
        }
        // Whoever starts next has no completions of its own, so its first flush covers everything.
        for target in &mut self.targets {
            target.unflushed.iter_mut().for_each(|written| written.delivered = true);
        }
    }

    /// The site loses power.
    pub fn crash_power(&mut self, rng: &mut Rng) {
        self.crash_process(rng);
        for (index, target) in self.targets.iter_mut().enumerate() {
            // Seeds without a resync draw nothing for it.
            if index == index_of(IoTarget::Staging) && target.unflushed.is_empty() {
                continue;
            }
            let share = rng.pick(&[0, 0, 10, 50, 90, 100]);
            for written in std::mem::take(&mut target.unflushed) {
                for (index, stored) in written.blocks.into_iter().enumerate() {
                    let durable = &mut target.durable[written.block as usize + index];
                    // What was left of a write that failed is gone once a later one to that block is durable.
                    let newer = durable.as_ref().is_some_and(|durable| durable.io > stored.io);
                    if rng.percent(share) && !newer {
                        *durable = Some(stored);
                    }
                }
            }
            target.visible.clone_from(&target.durable);
        }
    }

    /// Before the first start: what `format` wrote.
    pub fn put(&mut self, target: IoTarget, block: u64, data: &Block) {
        let stored = Stored { content: Content::of(data), io: IoId(0) };
        let target = &mut self.targets[index_of(target)];
        target.visible[block as usize] = Some(stored.clone());
        target.durable[block as usize] = Some(stored);
    }

    /// A block that something else than the site wrote and flushed, while the site did not run.
    pub fn restore(&mut self, target: IoTarget, block: u64, content: &Content) {
        let stored = Stored { content: content.clone(), io: IoId(0) };
        let target = &mut self.targets[index_of(target)];
        // What was written there before and not flushed is overwritten too.
        for written in &mut target.unflushed {
            let index = block.checked_sub(written.block).map(|index| index as usize);
            if let Some(before) = index.and_then(|index| written.blocks.get_mut(index)) {
                *before = stored.clone();
            }
        }
        replace(&mut target.visible[block as usize], stored.clone());
        replace(&mut target.durable[block as usize], stored);
    }

    /// Flips a bit of a block that lies there, flushed, and is not being written. What it was and what it is.
    pub fn rot(&mut self, target: IoTarget, block: u64, rng: &mut Rng) -> Option<(Print, Print)> {
        let index = index_of(target);
        let covers =
            |written: &Written| (written.block..written.block + written.blocks.len() as u64).contains(&block);
        let being_written = self
            .in_flight
            .iter()
            .any(|io| matches!(&io.doing, Doing::Write(written) if io.target == index && covers(written)));
        let target = &mut self.targets[index];
        if being_written || target.unflushed.iter().any(covers) {
            return None;
        }
        let was =
            target.durable[block as usize].as_ref().map_or(Content::ZERO, |stored| stored.content.clone());
        let mut bytes = [0; BLOCK_BYTES];
        was.write_to(&mut bytes);
        let bit = rng.below(8 * BLOCK_BYTES as u64);
        bytes[(bit / 8) as usize] ^= 1 << (bit % 8);
        let stored = Stored { content: Content::of(&bytes), io: IoId(0) };
        let now = stored.content.print;
        replace(&mut target.visible[block as usize], stored.clone());
        replace(&mut target.durable[block as usize], stored);
        Some((was.print, now))
    }

    /// The sector of a block goes bad.
    pub fn spoil(&mut self, target: IoTarget, block: u64) {
        self.targets[index_of(target)].unreadable.insert(block);
    }

    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }
}

pub fn place_of(target: IoTarget) -> Place {
    match target {
        IoTarget::Journal => Place::Journal,
        IoTarget::Differential => Place::Differential,
        IoTarget::Staging => Place::Staging,
        IoTarget::Volume(VolumeId(volume)) => Place::Volume(volume),
        IoTarget::Checksums(VolumeId(volume)) => Place::Checksums(volume),
    }
}

fn target_of(place: Place) -> IoTarget {
    match place {
        Place::Journal => IoTarget::Journal,
        Place::Differential => IoTarget::Differential,
        Place::Staging => IoTarget::Staging,
        Place::Volume(volume) => IoTarget::Volume(VolumeId(volume)),
        Place::Checksums(volume) => IoTarget::Checksums(VolumeId(volume)),
    }
}

impl Media for Disk {
    fn visible(&self, place: Place, block: u64) -> Option<&Stored> {
        self.targets[index_of(target_of(place))].visible[block as usize].as_ref()
    }

    fn is_marked(&self, volume: u16, lba: u64) -> bool {
        // The page's layout: docs/FORMATS.md.
        let (chunk, bit) = (lba / (8 * 4080), lba % (8 * 4080));
        let page = self.metadata.marks.get(&(volume, chunk));
        page.is_some_and(|page| page[16 + (bit / 8) as usize] >> (bit % 8) & 1 == 1)
    }

    fn durable(&self, place: Place, block: u64) -> Option<&Stored> {
        self.all_durable(place)[block as usize].as_ref()
    }

    fn all_durable(&self, place: Place) -> &[Option<Stored>] {
        &self.targets[index_of(target_of(place))].durable
    }

    fn kept(&self, volume: u16, lba: u64, snapshot: u64) -> Option<u64> {
        self.metadata.first_from(volume, lba, snapshot).map(|(_, slot, _)| slot)
    }

    fn protected(&self, snapshot: u64) -> Option<bool> {
        self.metadata.snapshots.get(&snapshot).map(|record| record.protected)
    }

    fn all_kept(&self) -> Vec<(u16, u64, u64, u32)> {
        let entries = self.metadata.captured.iter();
        entries.map(|(&(volume, lba, _), &(slot, sum))| (volume, lba, slot, sum)).collect()
    }

    fn slot_is_named(&self, slot: u64) -> bool {
        self.metadata.captured.values().any(|(named, _)| *named == slot)
    }

    fn applied(&self) -> u64 {
        self.metadata.applied
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let stored =
            self.targets.iter_mut().flat_map(|target| target.visible.iter_mut().chain(&mut target.durable));
        stored.filter_map(|place| place.take()?.content.bytes).for_each(recycle);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOLUME: IoTarget = IoTarget::Volume(VolumeId(0));

    fn blocks(op: u64, count: u64) -> Vec<Content> {
        (0..count).map(|lba| Content { print: Print::of_write(0, lba, op), bytes: None }).collect()
    }

    fn op_at(disk: &Disk, block: u64) -> Option<u64> {
        disk.visible(Place::Volume(0), block).and_then(|stored| stored.content.print.op())
    }

    #[test]
    fn flushed_writes_survive_power_loss_and_others_may_not() {
        let mut lost = 0;
        let mut torn = 0;
        for seed in 0..200 {
            let mut rng = Rng::new(seed);
            let mut disk = Disk::new(16, true, 0, 0, &[8]);
            let flushed = disk.write(VOLUME, 0, blocks(1, 4).into_iter());
            disk.complete_write(flushed);
            disk.delivered(VOLUME, flushed);
            let flush = disk.flush(VOLUME);
            let after = disk.write(VOLUME, 4, blocks(2, 4).into_iter());
            disk.complete_write(after);
            disk.delivered(VOLUME, after);
            assert_eq!(disk.complete_flush(flush), [flushed]);
            disk.crash_process(&mut rng);
            assert_eq!((op_at(&disk, 0), op_at(&disk, 4)), (Some(1), Some(2)));
            disk.crash_power(&mut rng);
            assert!((0..4).all(|block| op_at(&disk, block) == Some(1)));
            let kept = (4..8).filter(|&block| op_at(&disk, block).is_some()).count();
            lost += usize::from(kept == 0);
            torn += usize::from((1..4).contains(&kept));
        }
        assert!(lost > 20 && torn > 20, "{lost} {torn}");
    }

    #[test]
    fn a_flush_covers_what_was_delivered_before_it() {
        let mut disk = Disk::new(16, true, 0, 0, &[8]);
        let write = disk.write(VOLUME, 0, blocks(1, 1).into_iter());
        disk.complete_write(write);
        let flush = disk.flush(VOLUME);
        assert_eq!(disk.complete_flush(flush), []);
        assert!(disk.durable(Place::Volume(0), 0).is_none());
    }

    #[test]
    fn a_device_without_a_cache_keeps_what_completed() {
        let mut disk = Disk::new(16, false, 0, 0, &[8]);
        let write = disk.write(IoTarget::Journal, 3, blocks(1, 2).into_iter());
        disk.complete_write(write);
        disk.crash_power(&mut Rng::new(1));
        assert!(disk.visible(Place::Journal, 4).is_some());
    }
}
