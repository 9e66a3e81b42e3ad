//! A group that is only memory: it answers host requests from byte vectors, with no cache, journal or peer. It checks
//! what a group may expect of a front: whole blocks, bounds, right sums, and pages that are open and its own to lend.

use lockstep::base::*;
use lockstep::core::messages::*;

/// The volumes, and which pages this group owns.
pub struct MemoryGroup {
    pub volumes: Vec<Vec<u8>>,
    /// Pages that came with writes and can be granted again.
    pub free: Vec<PageId>,
    /// What every request is answered with, when set.
    pub failure: Option<HostError>,
    pub requests: u64,
}

impl MemoryGroup {
    /// Volumes of these sizes in blocks, and `pages` pages to grant, numbered from 1.
    pub fn new(volumes: &[u64], pages: u32) -> MemoryGroup {
        MemoryGroup {
            volumes: volumes.iter().map(|&blocks| vec![0; blocks as usize * BLOCK_BYTES]).collect(),
            free: (1..=pages).map(PageId).collect(),
            failure: None,
            requests: 0,
        }
    }

    fn range(&self, volume: VolumeId, lba: Lba, count: u32, count_max: usize) -> std::ops::Range<usize> {
        assert!((1..=count_max as u32).contains(&count), "a piece of {count} blocks");
        let range = lba.0 as usize * BLOCK_BYTES..(lba.0 as usize + count as usize) * BLOCK_BYTES;
        assert!(range.end <= self.volumes[volume.0 as usize].len(), "{range:?} is beyond the volume");
        range
    }

    /// Carries the request out.
    pub fn handle<M: Memory>(
        &mut self,
        memory: &mut M,
        table: &PageTable,
        request: HostRequest,
    ) -> HostReply {
        self.requests += 1;
        let HostRequest { ticket, volume, op, .. } = request;
        let inside = |offset: u16, length: u16| {
            assert!(length > 0 && usize::from(offset) + usize::from(length) <= BLOCK_BYTES && length < 4096);
            usize::from(offset)..usize::from(offset) + usize::from(length)
        };
        let fails = self.failure.is_some();
        match op {
            HostOp::Read { lba, count } => {
                let range = self.range(volume, lba, count, UPDATE_BLOCKS_MAX);
                let blocks = self.volumes[volume.0 as usize][range].chunks_exact(BLOCK_BYTES);
                for (index, block) in blocks.enumerate().filter(|_| !fails) {
                    memory.bytes_mut(table.page(ticket, index)).copy_from_slice(block);
                }
            }
            HostOp::Changes { since, lba, count } => {
                self.range(volume, lba, count, CHANGES_BLOCKS_MAX);
                // Every so many blocks, the snapshot's number says.
                let bits = memory.bytes_mut(table.page(ticket, 0));
                bits.fill(0);
                for index in (0..u64::from(count)).filter(|index| (lba.0 + index).is_multiple_of(since.0)) {
                    bits[(index / 8) as usize] |= 1 << (index % 8);
                }
            }
            HostOp::Write { lba, count, .. } => {
                let range = self.range(volume, lba, count, UPDATE_BLOCKS_MAX);
                let blocks = self.volumes[volume.0 as usize][range].chunks_exact_mut(BLOCK_BYTES);
                for (index, block) in blocks.enumerate() {
                    let page = table.page(ticket, index);
                    let bytes = memory.bytes(page);
                    assert_eq!(table.sum(ticket, index), sum_of_block(bytes), "the sum of {page:?}");
                    if !fails {
                        block.copy_from_slice(bytes);
                    }
                    self.free.push(page);
                }
            }
            HostOp::WritePartial { lba, offset, length, .. } => {
                let start = self.range(volume, lba, 1, 1).start;
                let inside = inside(offset, length);
                let page = table.page(ticket, 0);
                if !fails {
                    let bytes = &memory.bytes(page)[inside.clone()];
                    self.volumes[volume.0 as usize][start + inside.start..start + inside.end]
                        .copy_from_slice(bytes);
                }
                self.free.push(page);
            }
            HostOp::Zero { lba, count, .. } => {
                let range = self.range(volume, lba, count, ZERO_BLOCKS_MAX);
                if !fails {
                    self.volumes[volume.0 as usize][range].fill(0);
                }
            }
            HostOp::ZeroPartial { lba, offset, length, .. } => {
                let start = self.range(volume, lba, 1, 1).start;
                let inside = inside(offset, length);
                if !fails {
                    self.volumes[volume.0 as usize][start + inside.start..start + inside.end].fill(0);
                }
            }
            HostOp::Flush => {}
        }
        HostReply { ticket, result: self.failure.map_or(Ok(()), Err), replied_at: request.received_at }
    }
}
