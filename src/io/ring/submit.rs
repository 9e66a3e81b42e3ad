//! What an actor can ask of a ring. Every operation completes with the actor's own token.
#![allow(unsafe_code)]

use io_uring::{opcode, types};

use crate::base::{BLOCK_BYTES, PageId};
use crate::io::arena::REGISTERED_PAGES_MAX;
use crate::io::ring::files::{FileId, Target, on_target};
use crate::io::ring::operations::Kind;
use crate::io::ring::{ArenaId, CANCELLATION, OwnedBuf, Registered, Ring};

/// A piece of a gathered send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment {
    /// `bytes` of the buffer's filled part, from `start`.
    Buffer { start: usize, bytes: usize },
    /// `bytes` of a page, from `start`.
    Page { page: PageId, start: usize, bytes: usize },
}

impl Ring {
    /// Reads consecutive blocks into open pages, which nobody may touch until the completion. The result is in bytes.
    pub fn readv_pages(
        &mut self,
        token: u64,
        file: FileId,
        arena: ArenaId,
        byte_offset: u64,
        pages: impl Iterator<Item = PageId>,
    ) {
        let target = self.claim_file(file);
        let (slot, user_data) = self.operations.begin(self.actor, token, Some(file), Kind::FillPages(arena));
        let fixed = self.gather_pages(slot, arena, pages);
        let vectors = self.operations.hold_vectors(slot);
        let (first, count) = (vectors[0], vectors.len() as u32);
        let list = vectors.as_ptr();
        let entry = match (fixed, count) {
            (Some(buffer), 1) => on_target!(target, |fd| {
                opcode::ReadFixed::new(fd, first.iov_base.cast(), first.iov_len as u32, buffer)
                    .offset(byte_offset)
                    .build()
            }),
            (None, 1) => on_target!(target, |fd| {
                opcode::Read::new(fd, first.iov_base.cast(), first.iov_len as u32).offset(byte_offset).build()
            }),
            (Some(buffer), _) if self.features.registered_vectors => on_target!(target, |fd| {
                opcode::ReadvFixed::new(fd, list, count, buffer).offset(byte_offset).build()
            }),
            _ => on_target!(target, |fd| opcode::Readv::new(fd, list, count).offset(byte_offset).build()),
        };
        self.push(entry.user_data(user_data));
    }

    /// Writes pages to consecutive blocks; nobody may change or reopen them until the completion. The result is in bytes.
    pub fn writev_pages(
        &mut self,
        token: u64,
        file: FileId,
        arena: ArenaId,
        byte_offset: u64,
        pages: impl Iterator<Item = PageId>,
    ) {
        let target = self.claim_file(file);
        let (slot, user_data) = self.operations.begin(self.actor, token, Some(file), Kind::ReadPages(arena));
        let fixed = self.gather_pages(slot, arena, pages);
        let vectors = self.operations.hold_vectors(slot);
        let (first, count) = (vectors[0], vectors.len() as u32);
        let list = vectors.as_ptr();
        let entry = match (fixed, count) {
            (Some(buffer), 1) => on_target!(target, |fd| {
                opcode::WriteFixed::new(fd, first.iov_base.cast(), first.iov_len as u32, buffer)
                    .offset(byte_offset)
                    .build()
            }),
            (None, 1) => on_target!(target, |fd| {
                opcode::Write::new(fd, first.iov_base.cast(), first.iov_len as u32)
                    .offset(byte_offset)
                    .build()
            }),
            (Some(buffer), _) if self.features.registered_vectors => on_target!(target, |fd| {
                opcode::WritevFixed::new(fd, list, count, buffer).offset(byte_offset).build()
            }),
            _ => on_target!(target, |fd| opcode::Writev::new(fd, list, count).offset(byte_offset).build()),
        };
        self.push(entry.user_data(user_data));
    }

    /// Makes the file's completed writes durable; `data_only` leaves out metadata that reading does not need.
    pub fn fsync(&mut self, token: u64, file: FileId, data_only: bool) {
        let flags = if data_only { types::FsyncFlags::DATASYNC } else { types::FsyncFlags::empty() };
        self.submit_plain(token, file, Kind::Plain, |target| {
            on_target!(target, |fd| opcode::Fsync::new(fd).flags(flags).build())
        });
    }

    /// `fallocate(2)` of a range; `mode` as there, 0 allocates.
    pub fn fallocate(&mut self, token: u64, file: FileId, mode: i32, byte_offset: u64, bytes: u64) {
        self.submit_plain(token, file, Kind::Plain, |target| {
            on_target!(target, |fd| opcode::Fallocate::new(fd, bytes).offset(byte_offset).mode(mode).build())
        });
    }

    /// Accepts connections. Each completion brings one, to be had by `take_fd`; when one says that there is no more to
    /// come, accept again.
    pub fn accept_multishot(&mut self, token: u64, file: FileId) {
        let multishot = self.features.multishot_accept;
        self.submit_plain(token, file, Kind::Accept, |target| {
            let flags = libc::SOCK_CLOEXEC;
            on_target!(target, |fd| if multishot {
                opcode::AcceptMulti::new(fd).flags(flags).build()
            } else {
                opcode::Accept::new(fd, std::ptr::null_mut(), std::ptr::null_mut()).flags(flags).build()
            })
        });
    }

    /// Completes whenever the file becomes readable; the caller then reads until it would block. When a completion says
    /// that there is no more to come, poll again.
    pub fn poll_multishot(&mut self, token: u64, file: FileId) {
        let multishot = self.features.multishot_poll;
        self.submit_plain(token, file, Kind::Plain, |target| {
            on_target!(target, |fd| opcode::PollAdd::new(fd, libc::POLLIN as u32).multi(multishot).build())
        });
    }

    /// Receives into the buffer's spare part, which must not be empty. A result of 0 is the end of the stream.
    pub fn recv(&mut self, token: u64, file: FileId, buffer: OwnedBuf) {
        let target = self.claim_file(file);
        let (slot, user_data) = self.operations.begin(self.actor, token, Some(file), Kind::Receive);
        let spare = self.operations.hold_buffer(slot, buffer).spare_mut();
        assert!(!spare.is_empty(), "receiving into a full buffer");
        let (address, bytes) = (spare.as_mut_ptr(), clamp(spare.len()));
        let entry = on_target!(target, |fd| opcode::Recv::new(fd, address, bytes).build());
        self.push(entry.user_data(user_data));
    }

    /// Sends the buffer's filled part, which must not be empty, waiting in the kernel for room. Less than all is sent only
    /// when the connection fails.
    pub fn send(&mut self, token: u64, file: FileId, buffer: OwnedBuf) {
        let target = self.claim_file(file);
        let (slot, user_data) = self.operations.begin(self.actor, token, Some(file), Kind::Send);
        let filled = self.operations.hold_buffer(slot, buffer).filled();
        assert!(!filled.is_empty(), "sending an empty buffer");
        let (address, bytes) = (filled.as_ptr(), clamp(filled.len()));
        let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
        let entry = on_target!(target, |fd| opcode::Send::new(fd, address, bytes).flags(flags).build());
        self.push(entry.user_data(user_data));
    }

    /// Sends pieces of a buffer and of pages as one stretch of the stream. The buffer comes back as it was: compare the
    /// result with the sum of the pieces; it is less only when the connection fails.
    pub fn send_gathered(
        &mut self,
        token: u64,
        file: FileId,
        arena: ArenaId,
        buffer: OwnedBuf,
        segments: impl Iterator<Item = Segment>,
    ) {
        let target = self.claim_file(file);
        let (slot, user_data) = self.operations.begin(self.actor, token, Some(file), Kind::ReadPages(arena));
        let filled: *const [u8] = self.operations.hold_buffer(slot, buffer).filled();
        // Pieces stay apart: two of one page count as two readers, and a buffer's are no pages at all.
        self.operations.clear_vectors();
        let pages = &self.arenas[arena.0 as usize].arena;
        for segment in segments {
            match segment {
                Segment::Buffer { start, bytes } => {
                    assert!(
                        start <= filled.len() && bytes <= filled.len() - start && bytes > 0,
                        "{start} and {bytes} bytes more of a buffer with {}",
                        filled.len()
                    );
                    let address = filled.cast::<u8>().wrapping_add(start).cast_mut();
                    self.operations.add_vector(address, bytes, false);
                }
                Segment::Page { page, start, bytes } => {
                    check_within_page(start, bytes);
                    pages.begin_reading(page);
                    self.operations.add_vector(pages.address(page).wrapping_add(start), bytes, false);
                }
            }
        }
        self.operations.hold_vectors(slot);
        let header = self.operations.hold_header(slot);
        let flags = (libc::MSG_NOSIGNAL | libc::MSG_WAITALL) as u32;
        let entry = on_target!(target, |fd| opcode::SendMsg::new(fd, header).flags(flags).build());
        self.push(entry.user_data(user_data));
    }

    /// Receives into pieces of open pages until all are full. Fewer bytes come only when the stream ends or fails.
    pub fn recv_pages(
        &mut self,
        token: u64,
        file: FileId,
        arena: ArenaId,
        pieces: impl Iterator<Item = (PageId, usize, usize)>,
    ) {
        let target = self.claim_file(file);
        let (slot, user_data) = self.operations.begin(self.actor, token, Some(file), Kind::FillPages(arena));
        self.operations.clear_vectors();
        let pages = &self.arenas[arena.0 as usize].arena;
        for (page, start, bytes) in pieces {
            check_within_page(start, bytes);
            pages.begin_filling(page);
            self.operations.add_vector(pages.address(page).wrapping_add(start), bytes, false);
        }
        self.operations.hold_vectors(slot);
        let header = self.operations.hold_header(slot);
        let flags = libc::MSG_WAITALL as u32;
        let entry = on_target!(target, |fd| opcode::RecvMsg::new(fd, header).flags(flags).build());
        self.push(entry.user_data(user_data));
    }

    /// Cancels the calling actor's operations with this token. They still complete: with `-ECANCELED`, or with their result
    /// if they were done.
    pub fn cancel(&mut self, token: u64) {
        let cancelled: Vec<u64> = self.operations.with_token(self.actor, token).collect();
        self.cancel_all(&cancelled);
    }

    /// Cancels all operations on the file.
    pub fn cancel_file(&mut self, file: FileId) {
        let cancelled: Vec<u64> = self.operations.on_file(file).collect();
        self.cancel_all(&cancelled);
    }

    fn cancel_all(&mut self, operations: &[u64]) {
        for &user_data in operations {
            self.push(opcode::AsyncCancel::new(user_data).build().user_data(CANCELLATION));
        }
    }

    fn submit_plain(
        &mut self,
        token: u64,
        file: FileId,
        kind: Kind,
        build: impl FnOnce(Target) -> io_uring::squeue::Entry,
    ) {
        let target = self.claim_file(file);
        let (_, user_data) = self.operations.begin(self.actor, token, Some(file), kind);
        self.push(build(target).user_data(user_data));
    }

    /// Collects the pages of a disk I/O as vectors and marks them as under I/O. Returns the registered buffer that holds
    /// them all, if there is one.
    fn gather_pages(
        &mut self,
        slot: usize,
        arena: ArenaId,
        pages: impl Iterator<Item = PageId>,
    ) -> Option<u16> {
        let filling = matches!(self.operations.kind(slot), Kind::FillPages(_));
        let Registered { arena, first_buffer } = &self.arenas[arena.0 as usize];
        self.operations.clear_vectors();
        let mut piece = None;
        let mut one_piece = true;
        for page in pages {
            if filling {
                arena.begin_filling(page);
            } else {
                arena.begin_reading(page);
            }
            let of_page = page.0 / REGISTERED_PAGES_MAX;
            let same = piece.is_none_or(|piece| piece == of_page);
            one_piece &= same;
            piece = Some(of_page);
            self.operations.add_vector(arena.address(page), BLOCK_BYTES, same);
        }
        let piece = piece.expect("an I/O has at least one page") as u16;
        (self.features.registered_buffers && one_piece).then_some(first_buffer + piece)
    }
}

/// Lengths in entries are 32 bits; more is continued by the caller.
fn clamp(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

#[track_caller]
fn check_within_page(start: usize, bytes: usize) {
    assert!(
        start < BLOCK_BYTES && bytes > 0 && bytes <= BLOCK_BYTES - start,
        "{bytes} bytes from byte {start} of a page"
    );
}
