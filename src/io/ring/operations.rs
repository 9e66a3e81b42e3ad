//! The operations in flight: a slab whose slots hold whatever the kernel may touch until the last completion.
#![allow(unsafe_code)]

use crate::base::{BATCH_BLOCKS_MAX, BLOCK_BYTES, PageId, VOLUME_IO_BLOCKS_MAX};
use crate::io::arena::Arena;
use crate::io::ring::{ArenaId, FileId, OwnedBuf};

/// Segments of one operation: a journal batch's, each page its own. Below the kernel's 1024.
pub const VECTORS_MAX: usize = BATCH_BLOCKS_MAX;

/// Segments that every slot has room for by itself.
pub const ROW_VECTORS: usize = VOLUME_IO_BLOCKS_MAX;

/// What has to be done when the operation completes.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// The kernel fills the pages of the vectors.
    FillPages(ArenaId),
    /// The kernel reads the pages of the vectors, and perhaps a buffer, which is not consumed.
    ReadPages(ArenaId),
    /// The kernel fills the spare part of the buffer.
    Receive,
    /// The kernel reads the filled part of the buffer.
    Send,
    Accept,
    Plain,
}

struct Operation {
    live: bool,
    generation: u32,
    actor: u16,
    token: u64,
    file: Option<FileId>,
    kind: Kind,
    buffer: Option<OwnedBuf>,
    vectors: usize,
    /// Index of the long row, if the vectors did not fit the slot's own.
    long: Option<u32>,
}

const NO_VECTOR: libc::iovec = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };

/// The slab. `Default` is one of no slots, left in place of a slab whose memory must not be freed.
#[derive(Default)]
pub struct Operations {
    slots: Box<[Operation]>,
    free: Vec<u32>,
    /// `ROW_VECTORS` a slot.
    rows: Box<[libc::iovec]>,
    /// `VECTORS_MAX` a row.
    long_rows: Box<[libc::iovec]>,
    long_free: Vec<u32>,
    /// One a slot, for operations on sockets with vectors.
    headers: Box<[libc::msghdr]>,
    /// Vectors of the operation that is being put together.
    scratch: Vec<libc::iovec>,
}

impl Operations {
    pub fn new(slots: u32, long_rows: u32) -> Operations {
        // SAFETY: a msghdr is integers and pointers, for which zeros are valid values.
        let header = || unsafe { std::mem::zeroed::<libc::msghdr>() };
        let empty = |_| Operation {
            live: false,
            generation: 0,
            actor: 0,
            token: 0,
            file: None,
            kind: Kind::Plain,
            buffer: None,
            vectors: 0,
            long: None,
        };
        Operations {
            slots: (0..slots).map(empty).collect(),
            free: (0..slots).rev().collect(),
            rows: vec![NO_VECTOR; slots as usize * ROW_VECTORS].into_boxed_slice(),
            long_rows: vec![NO_VECTOR; long_rows as usize * VECTORS_MAX].into_boxed_slice(),
            long_free: (0..long_rows).rev().collect(),
            headers: (0..slots).map(|_| header()).collect(),
            scratch: Vec::with_capacity(VECTORS_MAX),
        }
    }

    pub fn room(&self) -> usize {
        self.free.len()
    }

    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A slot for an operation that is about to be queued, and its user data.
    #[track_caller]
    pub fn begin(&mut self, actor: u16, token: u64, file: Option<FileId>, kind: Kind) -> (usize, u64) {
        let Some(slot) = self.free.pop() else {
            panic!("more than {} operations in flight on one ring", self.slots.len());
        };
        let operation = &mut self.slots[slot as usize];
        assert!(!operation.live, "a free slot holds an operation");
        operation.live = true;
        operation.generation = operation.generation.wrapping_add(1) & GENERATION_MASK;
        operation.actor = actor;
        operation.token = token;
        operation.file = file;
        operation.kind = kind;
        operation.vectors = 0;
        (slot as usize, user_data(slot, operation.generation))
    }

    /// Frees the slot and names the operation's file.
    pub fn end(&mut self, slot: usize) -> Option<FileId> {
        let operation = &mut self.slots[slot];
        operation.live = false;
        operation.buffer = None;
        if let Some(long) = operation.long.take() {
            self.long_free.push(long);
        }
        self.free.push(slot as u32);
        self.slots[slot].file
    }

    pub fn slot_of(&self, user_data: u64) -> usize {
        let slot = user_data as u32 as usize;
        let live = self.slots.get(slot).filter(|operation| operation.live);
        let current = live.is_some_and(|operation| user_data >> 32 == u64::from(operation.generation));
        assert!(current, "the kernel completed {user_data:#x}, which is not in flight");
        slot
    }

    pub fn owner(&self, slot: usize) -> (usize, u64) {
        (self.slots[slot].actor as usize, self.slots[slot].token)
    }

    pub fn kind(&self, slot: usize) -> Kind {
        self.slots[slot].kind
    }

    /// Puts the buffer into the slot and returns where it lies from now on.
    pub fn hold_buffer(&mut self, slot: usize, buffer: OwnedBuf) -> &mut OwnedBuf {
        self.slots[slot].buffer.insert(buffer)
    }

    pub fn take_buffer(&mut self, slot: usize) -> Option<OwnedBuf> {
        self.slots[slot].buffer.take()
    }

    /// Starts the vectors of one operation.
    pub fn clear_vectors(&mut self) {
        self.scratch.clear();
    }

    /// Adds a segment; one that continues the last lengthens it where it may.
    #[track_caller]
    pub fn add_vector(&mut self, address: *mut u8, bytes: usize, may_merge: bool) {
        if let Some(last) = self.scratch.last_mut().filter(|_| may_merge)
            && last.iov_base.cast::<u8>().wrapping_add(last.iov_len) == address
        {
            last.iov_len += bytes;
            return;
        }
        assert!(self.scratch.len() < VECTORS_MAX, "an operation has at most {VECTORS_MAX} segments");
        self.scratch.push(libc::iovec { iov_base: address.cast(), iov_len: bytes });
    }

    /// The vectors' place until the operation ends.
    #[track_caller]
    pub fn hold_vectors(&mut self, slot: usize) -> &mut [libc::iovec] {
        let count = self.scratch.len();
        self.slots[slot].vectors = count;
        if count > ROW_VECTORS {
            let Some(long) = self.long_free.pop() else {
                panic!("more long vectors in flight than the ring was made for");
            };
            self.slots[slot].long = Some(long);
        }
        let scratch = std::mem::take(&mut self.scratch);
        self.vectors_mut(slot).copy_from_slice(&scratch);
        self.scratch = scratch;
        self.vectors_mut(slot)
    }

    fn vectors_mut(&mut self, slot: usize) -> &mut [libc::iovec] {
        let operation = &self.slots[slot];
        match operation.long {
            Some(long) => &mut self.long_rows[long as usize * VECTORS_MAX..][..operation.vectors],
            None => &mut self.rows[slot * ROW_VECTORS..][..operation.vectors],
        }
    }

    fn vectors(&self, slot: usize) -> &[libc::iovec] {
        let operation = &self.slots[slot];
        match operation.long {
            Some(long) => &self.long_rows[long as usize * VECTORS_MAX..][..operation.vectors],
            None => &self.rows[slot * ROW_VECTORS..][..operation.vectors],
        }
    }

    /// A message header over the slot's vectors, in its place until the operation ends.
    pub fn hold_header(&mut self, slot: usize) -> *mut libc::msghdr {
        let vectors = self.vectors_mut(slot);
        let (first, count) = (vectors.as_mut_ptr(), vectors.len());
        let header = &mut self.headers[slot];
        header.msg_iov = first;
        header.msg_iovlen = count as _;
        header
    }

    /// The arena's pages that the operation's vectors touch.
    pub fn pages<'a>(&'a self, slot: usize, arena: &'a Arena) -> impl Iterator<Item = PageId> + 'a {
        self.vectors(slot).iter().flat_map(|vector| pages_of(vector, arena))
    }

    /// The slots of the live operations on a file.
    pub fn on_file(&self, file: FileId) -> impl Iterator<Item = u64> {
        self.live().filter(move |(_, operation)| operation.file == Some(file)).map(|(data, _)| data)
    }

    /// User data of the actor's live operations with this token.
    pub fn with_token(&self, actor: u16, token: u64) -> impl Iterator<Item = u64> {
        let theirs = move |operation: &Operation| operation.actor == actor && operation.token == token;
        self.live().filter(move |(_, operation)| theirs(operation)).map(|(data, _)| data)
    }

    /// User data of all live operations.
    pub fn in_flight(&self) -> Vec<u64> {
        self.live().map(|(data, _)| data).collect()
    }

    fn live(&self) -> impl Iterator<Item = (u64, &Operation)> {
        let live = self.slots.iter().enumerate().filter(|(_, operation)| operation.live);
        live.map(|(slot, operation)| (user_data(slot as u32, operation.generation), operation))
    }
}

/// Keeps user data of operations apart from the ring's own, which have all high bits set.
const GENERATION_MASK: u32 = 0x7fff_ffff;

fn user_data(slot: u32, generation: u32) -> u64 {
    u64::from(generation) << 32 | u64::from(slot)
}

fn pages_of(vector: &libc::iovec, arena: &Arena) -> impl Iterator<Item = PageId> {
    let first = arena.page_at(vector.iov_base.cast());
    let last = first.map(|first| {
        let into = vector.iov_base.addr() % BLOCK_BYTES;
        first.0 + ((into + vector.iov_len - 1) / BLOCK_BYTES) as u32
    });
    first.zip(last).into_iter().flat_map(|(first, last)| (first.0..=last).map(PageId))
}
