//! A session, its desk and a group that is only memory, with a client's bytes going in and out by hand.

use std::collections::VecDeque;

use lockstep::base::*;
use lockstep::core::messages::*;
use lockstep::core::nbd::*;
use lockstep::format::nbd::*;
use lockstep::format::snapshot::SnapshotRecord;

use crate::nbd_client::option_replies;
use crate::nbd_group::MemoryGroup;

pub const BLOCKS: u64 = 1024;
pub const BYTES: u64 = BLOCKS * BLOCK_BYTES as u64;

/// Pages that are open or not, without an arena.
pub struct Pages(pub Vec<[u8; BLOCK_BYTES]>);

impl Memory for Pages {
    fn bytes(&self, page: PageId) -> &[u8; BLOCK_BYTES] {
        &self.0[page.0 as usize]
    }
    fn bytes_mut(&mut self, page: PageId) -> &mut [u8; BLOCK_BYTES] {
        assert_ne!(page, PageId::ZERO);
        &mut self.0[page.0 as usize]
    }
    fn seal(&mut self, _page: PageId) {}
    fn reopen(&mut self, _page: PageId) {}
}

/// Every odd run of 16 blocks is zeros.
pub struct Stripes;

impl AllocationMap for Stripes {
    fn run(&self, _volume: VolumeId, lba: Lba, blocks_max: u64) -> Run {
        Run { blocks: (16 - lba.0 % 16).min(blocks_max), zeros: lba.0 / 16 % 2 == 1 }
    }
}

pub struct Rig {
    pub session: Session,
    pub desk: Desk,
    pub table: PageTable,
    pub memory: Pages,
    pub group: MemoryGroup,
    pub exports: Vec<Export>,
    pub snapshots: Vec<SnapshotRecord>,
    pub held: VolumeSet,
    /// What the group was asked of.
    pub asked: Vec<(VolumeId, UpdateNumber)>,
    /// Input the session has not taken.
    pub input: Vec<u8>,
    pub out: Vec<u8>,
    pub capacity: usize,
    /// What the client received.
    pub sent: Vec<u8>,
    /// Replies the group has not let go.
    pub replies: VecDeque<HostReply>,
    pub last: Stall,
}

impl Rig {
    pub fn new(limits: Limits, pages: u32) -> Rig {
        let export = |name: &str, volume, read_only| Export {
            name: name.into(),
            volume: VolumeId(volume),
            blocks: BLOCKS,
            read_only,
        };
        let session = Session::new(3, limits);
        let mut out = Vec::with_capacity(limits.send_bytes);
        session.greet(&mut out);
        Rig {
            session,
            desk: Desk::new(),
            table: PageTable::new(FRONT_TICKETS_MAX, UPDATE_BLOCKS_MAX),
            memory: Pages(vec![[0xee; BLOCK_BYTES]; pages as usize + 1]),
            group: MemoryGroup::new(&[BLOCKS, BLOCKS], pages),
            exports: vec![export("disk", 0, false), export("fixed", 1, true)],
            snapshots: Vec::new(),
            held: VolumeSet(0),
            asked: Vec::new(),
            input: Vec::new(),
            capacity: out.capacity(),
            out,
            sent: Vec::new(),
            replies: VecDeque::new(),
            last: Stall::Input,
        }
    }

    pub fn large() -> Rig {
        Rig::new(Limits { receive_bytes: 256 << 10, send_bytes: 256 << 10 }, 512)
    }

    pub fn small() -> Rig {
        Rig::new(Limits::MIN, 20)
    }

    pub fn grant(&mut self) {
        while self.desk.page_room() > 0
            && let Some(page) = self.group.free.pop()
        {
            self.desk.grant(page);
        }
    }

    pub fn with<T>(
        &mut self,
        call: impl FnOnce(&mut Session, &mut Station<'_, Pages>, &[u8], &mut Vec<u8>) -> T,
    ) -> T {
        let mut station = Station {
            now: Nanos(1),
            catalog: Catalog { volumes: &self.exports, snapshots: &self.snapshots, held: self.held },
            allocation: &Stripes,
            memory: &mut self.memory,
            table: &self.table,
            desk: &mut self.desk,
        };
        call(&mut self.session, &mut station, &self.input, &mut self.out)
    }

    pub fn send(&mut self) {
        assert_eq!(self.out.capacity(), self.capacity, "the send buffer grew");
        self.sent.append(&mut self.out);
    }

    /// The session reads what it can; the group takes what that issued, but holds its replies.
    pub fn advance(&mut self) {
        self.grant();
        let (taken, stall) = self.with(|session, station, input, out| session.advance(station, input, out));
        self.input.drain(..taken);
        self.last = stall;
        while let Some(request) = self.desk.outgoing() {
            self.asked.push((request.volume, request.snapshot));
            self.replies.push_back(self.group.handle(&mut self.memory, &self.table, request));
        }
    }

    /// The group lets one of the replies it holds go.
    pub fn reply(&mut self, which: usize) {
        let reply = self.replies.remove(which % self.replies.len()).expect("it is one of them");
        assert_eq!(self.desk.connection_of(reply.ticket), 3);
        self.with(|session, station, _, out| session.complete(station, reply, out));
    }

    /// Until nothing moves any more: the whole input taken or the session stuck for good.
    pub fn settle(&mut self) {
        loop {
            let before = (self.input.len(), self.sent.len(), self.replies.len());
            self.advance();
            while !self.replies.is_empty() {
                self.reply(0);
            }
            self.send();
            if before == (self.input.len(), self.sent.len(), 0) {
                break;
            }
        }
    }

    pub fn feed(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
        self.settle();
    }

    pub fn request(&mut self, command: u16, flags: u16, cookie: u64, offset: u64, length: u32) {
        self.feed(&Request { flags, command, cookie: Cookie(cookie), offset, length }.encode());
    }

    pub fn received(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.sent)
    }

    pub fn option(&mut self, option: u32, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
        self.feed(&OptionHeader { option, length: data.len() as u32 }.encode());
        self.feed(data);
        option_replies(&self.received(), option)
    }

    pub fn flags(&mut self) {
        self.settle();
        assert_eq!(self.received(), greeting());
        self.feed(&ClientFlags { fixed_newstyle: true, no_zeroes: true }.encode());
    }

    /// Into the transmission phase of `name`.
    pub fn go(&mut self, name: &str, structured: bool, infos: &[u16]) {
        self.flags();
        if structured {
            assert_eq!(self.option(option::STRUCTURED_REPLY, &[]), [(OptionReply::Ack as u32, vec![])]);
            let context = meta_context_request(name.as_bytes(), &[BASE_ALLOCATION]);
            assert_eq!(self.option(option::SET_META_CONTEXT, &context).len(), 2);
        }
        let replies = self.option(option::GO, &info_request(name.as_bytes(), infos));
        assert_eq!(replies.last(), Some(&(OptionReply::Ack as u32, vec![])));
    }

    pub fn assert_at_rest(&self) {
        assert_eq!(self.session.pieces(), 0);
        assert_eq!(self.session.requests(), 0);
        self.desk.assert_at_rest();
        let pages = self.memory.0.len() - 1;
        assert_eq!(self.desk.free_pages() + self.group.free.len(), pages, "pages leaked");
    }
}
