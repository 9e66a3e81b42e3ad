//! From the stream to messages: frames are taken apart, payload is copied once, into open pages, and checked on the way.

use bytes::{Buf, Bytes};

use crate::base::{BLOCK_BYTES, BlockSum, FixedQueue, Memory, PageId, PageTable, SlotId, UPDATE_BLOCKS_MAX};
use crate::base::{UpdateNumber, sum_of_block, sum_of_sums};
use crate::core::messages::{FromLink, PageFrame};
use crate::format::update::Update;
use crate::format::wire::{Frame, FrameReader, OldBlocks, UPDATE_FRAME_BLOCKS_MAX, WireError};
use crate::reactor::Receiver;

/// Pieces of the stream taken from quinn at once; a piece is what one datagram carried.
const CHUNKS: usize = 32;

/// Why the peer's stream cannot be followed any further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    #[error("{0}")]
    Wire(#[from] WireError),
    #[error("the old blocks of {number} have the checksum {found:#010x}, their frame says {expected:#010x}")]
    OldBlocks { number: UpdateNumber, expected: u32, found: u32 },
    #[error("the payload of {number} has the checksum {found:#010x}, its descriptor says {expected:#010x}")]
    Payload { number: UpdateNumber, expected: u32, found: u32 },
}

/// What came of looking for the next message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    Message(FromLink),
    /// More of the stream is needed.
    Bytes,
    /// An open page is needed.
    Page,
}

/// An update whose payload is arriving. Its pages are in its row of the inbound table.
struct Assembly {
    update: Update,
    settled: UpdateNumber,
    old: Option<OldBlocks>,
    slot: SlotId,
    /// Blocks that have their page, the last of which may not be full.
    pages: usize,
    bytes: usize,
}

impl Assembly {
    /// Where in its row the `index`th block goes that arrives.
    fn place(&self, index: usize) -> usize {
        let Some(of_old) = index.checked_sub(self.update.payload_blocks()) else { return index };
        let old = self.old.and_then(|old| old.sent(self.update.count).nth(of_old));
        UPDATE_BLOCKS_MAX + old.expect("a frame has no more blocks than it says")
    }
}

pub(super) struct Incoming {
    reader: FrameReader,
    chunks: [Bytes; CHUNKS],
    /// The chunk being read, and the end of those that were filled.
    at: usize,
    filled: usize,
    /// Pages that a lost connection's unfinished update had taken.
    spare: FixedQueue<PageId>,
    row: u32,
    assembly: Option<Assembly>,
    /// A handshake frame that waits for a page, and its body.
    page_frame: Option<(PageFrame, usize)>,
    body: Box<[u8; BLOCK_BYTES]>,
}

impl Incoming {
    pub(super) fn new() -> Incoming {
        Incoming {
            reader: FrameReader::new(),
            chunks: Default::default(),
            at: 0,
            filled: 0,
            spare: FixedQueue::new(UPDATE_FRAME_BLOCKS_MAX),
            row: 0,
            assembly: None,
            page_frame: None,
            body: Box::new([0; BLOCK_BYTES]),
        }
    }

    /// Forgets the stream of a connection that is gone; the pages of an unfinished update are kept for the next.
    pub(super) fn reset(&mut self, inbound: &PageTable) {
        if let Some(assembly) = self.assembly.take() {
            let page = |index| inbound.page(assembly.slot, assembly.place(index));
            (0..assembly.pages).for_each(|index| self.spare.push(page(index)));
        }
        self.reader = FrameReader::new();
        self.chunks.fill(Bytes::new());
        self.at = 0;
        self.filled = 0;
        self.page_frame = None;
    }

    /// Where the next of the stream goes, once [`Next::Bytes`] was said.
    pub(super) fn room(&mut self) -> &mut [Bytes] {
        assert!(self.at == self.filled, "chunks that were not read would be lost");
        &mut self.chunks
    }

    /// The stream went on in that many chunks of `room`. Returns their bytes.
    pub(super) fn received(&mut self, chunks: usize) -> usize {
        self.at = 0;
        self.filled = chunks;
        self.chunks[..chunks].iter().map(Bytes::len).sum()
    }

    /// Whether only a page is missing to go on.
    pub(super) fn wants_page(&self) -> bool {
        let block_begins = |assembly: &Assembly| assembly.bytes == assembly.pages * BLOCK_BYTES;
        // A block of which nothing has come wants none yet.
        let has_bytes = self.at < self.filled;
        self.spare.is_empty()
            && (self.page_frame.is_some() || has_bytes && self.assembly.as_ref().is_some_and(block_begins))
    }

    /// The next message, from what has been received.
    pub(super) fn next(
        &mut self,
        memory: &mut impl Memory,
        inbound: &PageTable,
        pages: &mut Receiver<PageId>,
    ) -> Result<Next, Fault> {
        loop {
            if let Some((frame, length)) = self.page_frame {
                let Some(page) = self.spare.pop().or_else(|| pages.pop()) else { return Ok(Next::Page) };
                memory.bytes_mut(page)[..length].copy_from_slice(&self.body[..length]);
                self.page_frame = None;
                return Ok(Next::Message(FromLink::Page { frame, page, length: length as u16 }));
            }
            if self.assembly.is_some() {
                return self.assemble(memory, inbound, pages);
            }
            let Some(chunk) = self.chunks[..self.filled].get_mut(self.at) else { return Ok(Next::Bytes) };
            let mut input = &chunk[..];
            let frame = self.reader.feed(&mut input)?;
            let taken = chunk.len() - input.len();
            let message = match frame {
                None => None,
                Some(Frame::Control(control)) => Some(FromLink::Control(control)),
                Some(Frame::Page(frame, body)) => {
                    self.body[..body.len()].copy_from_slice(body);
                    self.page_frame = Some((frame, body.len()));
                    None
                }
                Some(Frame::Update { update, settled, old }) => {
                    let slot = SlotId(self.row);
                    self.row = (self.row + 1) % inbound.slots() as u32;
                    if old.is_some() {
                        for index in UPDATE_BLOCKS_MAX..UPDATE_BLOCKS_MAX + update.count as usize {
                            inbound.set(slot, index, PageId::ZERO, BlockSum::ZEROS);
                        }
                    }
                    let sent = old.map_or(0, |old| old.sent(update.count).count());
                    let with_old = old.is_some();
                    let message = FromLink::Update { update, settled, slot, with_old };
                    let whole = update.payload_blocks() + sent == 0;
                    if !whole {
                        self.assembly = Some(Assembly { update, settled, old, slot, pages: 0, bytes: 0 });
                    }
                    whole.then_some(message)
                }
            };
            self.advance(taken);
            if let Some(message) = message {
                return Ok(Next::Message(message));
            }
        }
    }

    /// Copies payload until the update is whole.
    fn assemble(
        &mut self,
        memory: &mut impl Memory,
        inbound: &PageTable,
        pages: &mut Receiver<PageId>,
    ) -> Result<Next, Fault> {
        let Some(assembly) = &mut self.assembly else { return Ok(Next::Bytes) };
        while self.reader.payload_left() > 0 {
            let Some(chunk) = self.chunks[..self.filled].get_mut(self.at) else { return Ok(Next::Bytes) };
            let offset = assembly.bytes % BLOCK_BYTES;
            if assembly.bytes == assembly.pages * BLOCK_BYTES {
                let Some(page) = self.spare.pop().or_else(|| pages.pop()) else { return Ok(Next::Page) };
                inbound.set(assembly.slot, assembly.place(assembly.pages), page, BlockSum::ZEROS);
                assembly.pages += 1;
            }
            let index = assembly.place(assembly.pages - 1);
            let page = inbound.page(assembly.slot, index);
            let block = memory.bytes_mut(page);
            let taken = chunk.len().min(BLOCK_BYTES - offset);
            block[offset..offset + taken].copy_from_slice(&chunk[..taken]);
            if offset + taken == BLOCK_BYTES {
                inbound.set(assembly.slot, index, page, sum_of_block(block));
            }
            assembly.bytes += taken;
            self.reader.take_payload(taken);
            chunk.advance(taken);
            if chunk.is_empty() {
                self.at += 1;
            }
        }
        let Assembly { update, settled, old, slot, .. } = *assembly;
        let found = sum_of_sums((0..update.payload_blocks()).map(|index| inbound.sum(slot, index)));
        if found != update.sum {
            return Err(Fault::Payload { number: update.number, expected: update.sum, found });
        }
        if let Some(old) = old {
            let places = old.sent(update.count).map(|index| inbound.sum(slot, UPDATE_BLOCKS_MAX + index));
            let found = sum_of_sums(places);
            if found != old.sum {
                return Err(Fault::OldBlocks { number: update.number, expected: old.sum, found });
            }
        }
        self.assembly = None;
        let with_old = old.is_some();
        Ok(Next::Message(FromLink::Update { update, settled, slot, with_old }))
    }

    fn advance(&mut self, taken: usize) {
        let chunk = &mut self.chunks[self.at];
        chunk.advance(taken);
        if chunk.is_empty() {
            self.at += 1;
        }
    }
}
