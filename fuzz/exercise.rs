//! What the fuzzers do with bytes, and `tests/formats.rs` with every file of their corpora: nothing may panic, and what
//! decodes must encode to the same bytes, since every format has one encoding.
//!
//! Damaged bytes stop at a checksum, so each input is tried as it is and again with its checksums made right: what lies
//! behind them has to stand on its own.
#![allow(dead_code, reason = "each fuzzer uses one of these")]

use std::path::Path;

use lockstep::base::*;
use lockstep::core::changed::Changed;
use lockstep::core::messages::HostError;
use lockstep::core::nbd::{AllAllocated, Catalog, Desk, Export, Farewell, Limits, Session, Stall, Station};
use lockstep::format::digests::{put_digests, take_digests};
use lockstep::format::journal::{decode_batch, digest_of, encode_batch};
use lockstep::format::metadata::{put_marks, take_marks};
use lockstep::format::nbd;
use lockstep::format::snapshot::{
    SNAPSHOT_RECORD_BYTES, SNAPSHOTS_PAGE_MAX, SnapshotRecord, decode_payload, decode_snapshots,
    encode_snapshots,
};
use lockstep::format::superblock::{Superblock, newest_of};
use lockstep::format::tables::{
    TablesKind, entry_at, header_of, put_entry, put_header, put_record, record_at,
};
use lockstep::format::update::Update;
use lockstep::format::wire::*;
use lockstep::node::config::Config;

#[path = "../tests/support/nbd_group.rs"]
mod nbd_group;

/// Where the formats keep their checksums, restated so that a moved field is noticed.
const FRAME_CRC: usize = 12;
const BLOCK_CRC: usize = 252;

/// A fuzzer, by the name of its corpus.
pub type Exercise = (&'static str, fn(&[u8]));

pub const ALL: [Exercise; 7] = [
    ("frames", frames),
    ("batch", batch),
    ("superblock", superblock),
    ("hello", hello),
    ("snapshot", snapshot),
    ("nbd", nbd),
    ("config", config),
];

fn make_crc_right(bytes: &mut [u8], at: usize) {
    bytes[at..at + 4].fill(0);
    let crc = crc32c::crc32c(bytes);
    bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
}

/// A block that begins with `data`.
fn block_of(data: &[u8]) -> [u8; BLOCK_BYTES] {
    let mut block = [0; BLOCK_BYTES];
    let length = data.len().min(BLOCK_BYTES);
    block[..length].copy_from_slice(&data[..length]);
    block
}

/// The stream with each frame's checksum made right, as far as its lengths can be followed.
fn with_right_crcs(stream: &[u8]) -> Vec<u8> {
    let mut stream = stream.to_vec();
    let mut at = 0;
    while let Some(header) = stream.get(at..).and_then(|rest| rest.first_chunk::<FRAME_HEADER_BYTES>()) {
        let body = usize::from(u16::from_le_bytes([header[6], header[7]]));
        let payload = u32::from_le_bytes([header[8], header[9], header[10], header[11]]) as usize;
        let end = at + FRAME_HEADER_BYTES + body;
        if end > stream.len() {
            break;
        }
        make_crc_right(&mut stream[at..end], FRAME_CRC);
        at = end.saturating_add(payload);
    }
    stream
}

/// What a stream gave: each frame encoded again, without payload, and the error that ended it.
fn read_frames(stream: &[u8], mut piece: impl FnMut() -> usize) -> (Vec<Vec<u8>>, Option<WireError>) {
    let mut reader = FrameReader::new();
    let mut frames = Vec::new();
    let mut rest = stream;
    while !rest.is_empty() {
        let (mut input, later) = rest.split_at(piece().clamp(1, rest.len()));
        rest = later;
        loop {
            let taken = reader.payload_left().min(input.len());
            reader.take_payload(taken);
            input = &input[taken..];
            if reader.payload_left() > 0 {
                break;
            }
            match reader.feed(&mut input) {
                Ok(Some(frame)) => frames.push(encode_again(frame)),
                Ok(None) => break,
                Err(error) => {
                    assert!(!error.to_string().is_empty());
                    assert_eq!(reader.feed(&mut input), Err(error), "an error is final");
                    return (frames, Some(error));
                }
            }
        }
    }
    (frames, None)
}

fn encode_again(frame: Frame<'_>) -> Vec<u8> {
    let mut out = [0; FRAME_HEADER_BYTES + FRAME_BODY_BYTES_MAX];
    let length = match frame {
        Frame::Update { update, settled, old } => encode_update(&update, settled, old, &mut out),
        Frame::Control(control) => encode_control(&control, &mut out),
        Frame::Page(frame, body) => {
            match frame {
                PageFrame::Hello => hello_body(body),
                PageFrame::Refusal => refusal_body(body),
                PageFrame::Block => {}
                PageFrame::Tables => tables(body),
                PageFrame::Marks => marks(body),
                PageFrame::Digests => digests(body),
            }
            encode_page_frame(frame, body, &mut out)
        }
    };
    out[..length].to_vec()
}

/// A stream of frames from a peer.
pub fn frames(data: &[u8]) {
    for stream in [data.to_vec(), with_right_crcs(data)] {
        let (whole, error) = read_frames(&stream, || usize::MAX);
        let mut at = 0;
        for frame in &whole {
            assert_eq!(frame[..], stream[at..at + frame.len()], "the frame at byte {at} encodes differently");
            let payload = u32::from_le_bytes([frame[8], frame[9], frame[10], frame[11]]);
            at += frame.len() + payload as usize;
        }
        let mut sizes = data.iter().map(|&byte| usize::from(byte)).chain([7]).cycle();
        let pieces = read_frames(&stream, || sizes.next().expect("a cycle"));
        assert_eq!(pieces, (whole, error), "pieces give other frames than the whole");
    }
}

fn hello_body(body: &[u8]) {
    if let Ok(hello) = Hello::decode(body) {
        let mut again = [0xaa; BLOCK_BYTES];
        let length = hello.encode(&mut again);
        assert_eq!(&again[..length], body, "{hello:?}");
    }
}

fn refusal_body(body: &[u8]) {
    if let Ok(refusal) = Refusal::decode(body) {
        let mut again = [0xaa; BLOCK_BYTES];
        let length = refusal.encode(&mut again);
        assert_eq!(&again[..length], body, "{refusal:?}");
    }
}

/// The bodies of handshake frames.
pub fn hello(data: &[u8]) {
    hello_body(data);
    refusal_body(data);
}

/// A journal batch's header block.
pub fn batch(data: &[u8]) {
    let as_is = block_of(data);
    let mut repaired = as_is;
    make_crc_right(&mut repaired, BLOCK_CRC);
    for block in [as_is, repaired] {
        let mut updates = [Update::EMPTY; BATCH_DESCRIPTORS_MAX];
        match decode_batch(&block, &mut updates) {
            Ok(header) => {
                let mut again = [0xaa; BLOCK_BYTES];
                let digest = encode_batch(&header, &updates[..usize::from(header.count)], &mut again);
                assert_eq!(again, block, "{header:?}");
                assert_eq!(digest, digest_of(&block));
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}

/// Both superblock slots.
pub fn superblock(data: &[u8]) {
    let as_is = block_of(data);
    let mut repaired = as_is;
    make_crc_right(&mut repaired, BLOCK_CRC);
    let mut other = block_of(data.get(BLOCK_BYTES..).unwrap_or_default());
    make_crc_right(&mut other, BLOCK_CRC);
    for block in [as_is, repaired, other] {
        match Superblock::decode(&block) {
            Ok(superblock) => {
                let mut again = [0xaa; BLOCK_BYTES];
                superblock.encode(&mut again);
                assert_eq!(again, block, "{superblock:?}");
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
    let slots = [Superblock::decode(&repaired), Superblock::decode(&other)];
    if let Ok(newest) = newest_of(slots[0], slots[1]) {
        assert!(slots.iter().flatten().all(|slot| slot.sequence <= newest.sequence));
    }
}

/// A page of snapshots' records, as the payload of an update brings it.
pub fn snapshot(data: &[u8]) {
    let as_is = block_of(data);
    let mut repaired = as_is;
    for record in repaired[SNAPSHOT_RECORD_BYTES..].as_chunks_mut::<SNAPSHOT_RECORD_BYTES>().0 {
        if record.iter().any(|&byte| byte != 0) {
            make_crc_right(record, SNAPSHOT_RECORD_BYTES - 4);
        }
    }
    for block in [as_is, repaired] {
        let mut records = [SnapshotRecord::EMPTY; SNAPSHOTS_PAGE_MAX];
        match decode_snapshots(&block, &mut records) {
            Ok(count) => {
                let mut again = [0xaa; BLOCK_BYTES];
                encode_snapshots(records[..count].iter(), &mut again);
                assert_eq!(again, block, "{:?}", &records[..count]);
                assert_eq!(decode_payload(&block).is_ok(), count == 1);
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}

/// A page of digests of what blocks hold.
fn digests(body: &[u8]) {
    let page = block_of(body);
    let Some((volume, first, told)) = take_digests(&page) else { return };
    let told: Vec<Digest128> = told.collect();
    let mut again = [0xaa; BLOCK_BYTES];
    put_digests(&mut again, volume, first, &told);
    assert_eq!(again, page, "digests of {volume:?} from {first:?} on");
}

/// A page of a changed-block set.
fn marks(body: &[u8]) {
    let page = block_of(body);
    let Some((volume, chunk, words)) = take_marks(&page) else { return };
    let words: Vec<u64> = words.collect();
    let mut again = [0xaa; BLOCK_BYTES];
    put_marks(&mut again, volume, chunk, &words);
    assert_eq!(again, page, "page {chunk} of {volume:?}");
    let mut changed = Changed::new([100_000, 50].into_iter());
    changed.begin(UpdateNumber(7));
    let marks = words.iter().map(|word| u64::from(word.count_ones())).sum();
    let blocks = if changed.merge_page(&page).is_some() { marks } else { 0 };
    assert_eq!(changed.count(), blocks, "page {chunk} of {volume:?}");
}

/// A page of snapshot tables.
fn tables(body: &[u8]) {
    let page = block_of(body);
    let Ok(header) = header_of(&page) else { return };
    let mut again = page;
    put_header(&mut again, &header);
    for index in 0..header.count {
        let row = match header.kind {
            TablesKind::Snapshots => {
                record_at(&page, index).map(|record| put_record(&mut again, index, &record))
            }
            TablesKind::Entries => entry_at(&page, index).map(|entry| put_entry(&mut again, index, &entry)),
        };
        if let Err(error) = row {
            assert!(!error.to_string().is_empty());
        }
    }
    assert_eq!(again, page, "{header:?}");
}

/// A site's configuration.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Config::parse(text, Path::new("site.toml")) {
        Ok(config) => {
            config.group_config(1024, 1);
        }
        Err(error) => {
            assert!(!error.problems.is_empty());
            // What is missing at the end of a text that ends a line is on the line after it.
            let lines = 1 + text.matches('\n').count();
            for problem in &error.problems {
                assert!(problem.line.is_none_or(|line| (1..=lines).contains(&line)), "{problem:?}");
                assert!(!problem.message.is_empty(), "{problem:?}");
            }
        }
    }
}

/// Pages that are only vectors.
struct Pages(Vec<[u8; BLOCK_BYTES]>);

impl Memory for Pages {
    fn bytes(&self, page: PageId) -> &[u8; BLOCK_BYTES] {
        &self.0[page.0 as usize]
    }
    fn bytes_mut(&mut self, page: PageId) -> &mut [u8; BLOCK_BYTES] {
        assert!(page != PageId::ZERO, "the page of zeros is nobody's to write");
        &mut self.0[page.0 as usize]
    }
    fn seal(&mut self, _: PageId) {}
    fn reopen(&mut self, _: PageId) {}
}

/// Small enough that a few requests use it up, large enough for the largest piece.
const NBD_PAGES: u32 = 2 * UPDATE_BLOCKS_MAX as u32;
const NBD_BLOCKS: [u64; 2] = [96, 3];

pub fn nbd(data: &[u8]) {
    nbd_replies(data);
    nbd_session(data);
}

/// Bits of an NBD input's second byte; its high half is the request from which on the group fails, 0 for never.
pub mod behaviour {
    /// The group answers only when nothing else can go on.
    pub const LATE: u8 = 1;
    /// The newest request is answered first.
    pub const BACKWARDS: u8 = 2;
    /// The client reads replies only when nothing else can go on.
    pub const UNREAD: u8 = 4;
}

/// An NBD client's bytes, to a session before a group of memory. The first byte chooses the buffers' sizes and how input
/// is cut, the second the [`behaviour`] of group and client. Whatever happens, every ticket and page comes back. Returns
/// how many requests reached the group.
pub fn nbd_session(data: &[u8]) -> u64 {
    let &[choice, acts, ref client @ ..] = data else { return 0 };
    let limits = match choice & 1 {
        0 => Limits::MIN,
        _ => Limits { receive_bytes: 256 << 10, send_bytes: 256 << 10 },
    };
    let export = |(index, &blocks): (usize, &u64)| Export {
        name: ["disk", "small"][index].to_owned(),
        volume: VolumeId(index as u16),
        blocks,
        read_only: index == 1,
    };
    let exports: Vec<Export> = NBD_BLOCKS.iter().enumerate().map(export).collect();
    let mut group = nbd_group::MemoryGroup::new(&NBD_BLOCKS, NBD_PAGES);
    let mut memory = Pages(vec![[0; BLOCK_BYTES]; NBD_PAGES as usize + 1]);
    let table = PageTable::new(FRONT_TICKETS_MAX, UPDATE_BLOCKS_MAX);
    let mut desk = Desk::new();
    let mut session = Session::new(0, limits);
    let mut out: Vec<u8> = Vec::with_capacity(limits.send_bytes);
    let mut replies = std::collections::VecDeque::new();
    session.greet(&mut out);

    let mut received = Vec::new();
    let mut waiting = client;
    let piece = 1 + usize::from(choice >> 1) * usize::from(choice >> 1);
    let mut stuck = 0;
    loop {
        group.free.drain(..).for_each(|page| desk.grant(page));
        let room = (limits.receive_bytes - received.len()).min(piece).min(waiting.len());
        received.extend_from_slice(&waiting[..room]);
        waiting = &waiting[room..];
        let mut station = Station {
            now: Nanos(1),
            catalog: Catalog { volumes: &exports, snapshots: &[], held: VolumeSet(0) },
            allocation: &AllAllocated,
            memory: &mut memory,
            table: &table,
            desk: &mut desk,
        };
        let (taken, stall) = session.advance(&mut station, &received, &mut out);
        received.drain(..taken);
        assert!(out.len() <= limits.send_bytes, "{} bytes of replies", out.len());
        while let Some(request) = station.desk.outgoing() {
            let fails = acts >> 4 != 0 && group.requests >= u64::from(acts >> 4);
            group.failure = fails.then_some(HostError::Io);
            replies.push_back(group.handle(station.memory, &table, request));
        }
        let goes_on = taken > 0 || room > 0;
        let reply = match acts & (behaviour::LATE | behaviour::BACKWARDS) {
            late if late & behaviour::LATE != 0 && goes_on => None,
            order if order & behaviour::BACKWARDS != 0 => replies.pop_back(),
            _ => replies.pop_front(),
        };
        let mut answered = reply.is_some();
        if let Some(reply) = reply {
            session.complete(&mut station, reply, &mut out);
            assert!(out.len() <= limits.send_bytes, "{} bytes of replies", out.len());
        }
        if acts & behaviour::UNREAD == 0 || !(goes_on || answered) {
            answered |= !out.is_empty();
            out.clear();
        }
        stuck = if answered || goes_on { 0 } else { stuck + 1 };
        assert!(stuck < 3, "{stall:?} for good");
        match stall {
            Stall::Leaving(_) if !answered && replies.is_empty() => break,
            Stall::Input if waiting.is_empty() && !answered && replies.is_empty() => break,
            Stall::Input => assert!(received.len() < limits.receive_bytes, "a full buffer is not enough"),
            _ => {}
        }
    }
    session.abandon(Farewell::Failed);
    assert_eq!((session.pieces(), session.requests()), (0, 0), "a request is left over");
    desk.assert_at_rest();
    let pages = desk.free_pages() + group.free.len();
    assert_eq!(pages, NBD_PAGES as usize, "pages leaked");
    group.requests
}

/// The same bytes as a server's, to the client side of the codec.
fn nbd_replies(data: &[u8]) {
    if let Some(bytes) = data.first_chunk() {
        let _ = nbd::parse_greeting(bytes);
    }
    if let Some(bytes) = data.first_chunk() {
        let _ = nbd::OptionReplyHeader::parse(bytes);
    }
    let _ = nbd::Info::parse(data);
    if let Ok(Some((header, bytes))) = nbd::ReplyHeader::parse(data)
        && let nbd::ReplyHeader::Chunk { kind, length, .. } = header
        && kind != nbd::chunk::OFFSET_DATA
    {
        let payload = &data[bytes..];
        let _ = nbd::ChunkBody::parse(kind, &payload[..payload.len().min(length as usize)]);
    }
}
