//! The formats as bytes: encodings that may never change unnoticed, and every input the fuzzers found worth keeping.
//!
//! The fixed encodings lie in the fuzzers' corpora, as their first inputs. After a deliberate change of format (which
//! takes a new version number), `LOCKSTEP_BLESS=1 cargo test --test formats` writes them anew.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use lockstep::base::*;
use lockstep::format::digests::put_digests;
use lockstep::format::history::History;
use lockstep::format::journal::{BatchHeader, Digest, decode_batch, encode_batch};
use lockstep::format::metadata::{Captured, put_marks};
use lockstep::format::nbd::{self, ClientFlags, Cookie, OptionHeader, Request, Sink, command, option};
use lockstep::format::snapshot::{SnapshotName, SnapshotRecord, encode_snapshots};
use lockstep::format::superblock::{Heir, JournalPosition, Left, Superblock};
use lockstep::format::tables::{TablesHeader, TablesKind, put_entry, put_header, put_record};
use lockstep::format::text::Text;
use lockstep::format::update::{Update, UpdateKind};
use lockstep::format::wire::*;

#[path = "../fuzz/exercise.rs"]
mod exercise;

use exercise::behaviour::{BACKWARDS, LATE, UNREAD};

fn fuzz_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

fn generation(opening: u64) -> Generation {
    Generation(opening << 16 | 1)
}

fn history() -> History {
    let mut history = History::EMPTY;
    history.push(generation(1), UpdateNumber(1));
    history.push(generation(2), UpdateNumber(0x0102_0304));
    history
}

fn updates() -> [Update; 12] {
    let update = |number: u64, kind: UpdateKind| Update {
        number: UpdateNumber(0x0102_0304 + number),
        generation: generation(2),
        kind,
        ..Update::EMPTY
    };
    let write = Update { lba: Lba(0x1112_1314), count: 3, sum: 0x2122_2324, ..update(1, UpdateKind::Write) };
    [
        update(0, UpdateKind::GenerationOpen),
        Update { volume: VolumeId(1), slot: Slot(0x5152_5354), ..write },
        Update { lba: Lba(7), count: 1024, ..update(2, UpdateKind::Zero) },
        Update { count: 1, sum: 0x2526_2728, ..update(3, UpdateKind::SnapshotCreate) },
        Update { lba: Lba(0x0102_0307), ..update(4, UpdateKind::SnapshotDelete) },
        update(5, UpdateKind::SoloBegin),
        update(6, UpdateKind::SoloEnd),
        Update { lba: Lba(0x0102_0307), ..update(7, UpdateKind::SnapshotProtect) },
        Update { lba: Lba(0x0102_0307), ..update(8, UpdateKind::SnapshotUnprotect) },
        update(9, UpdateKind::StepDown),
        update(10, UpdateKind::HandOver),
        Update { lba: Lba(generation(3).0), ..update(11, UpdateKind::GiveWay) },
    ]
}

fn batch() -> Vec<u8> {
    let header = BatchHeader {
        group: GroupId(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10),
        sequence: 0x3132_3334,
        previous: Digest(0x4142_4344_4546_4748),
        known_durable: UpdateNumber(0x0102_0302),
        settled: UpdateNumber(0x0102_0301),
        count: 12,
        payload_blocks: 4,
    };
    let mut block = [0; BLOCK_BYTES];
    encode_batch(&header, &updates(), &mut block);
    block.to_vec()
}

fn heir(stood_down_in: Option<Generation>) -> Option<Heir> {
    Some(Heir { generation: generation(4), common: UpdateNumber(0x0102_0300), stood_down_in })
}

/// `room` is the second volume's.
fn superblock(sequence: u64, room: u64, heir: Option<Heir>) -> Vec<u8> {
    let mut volumes = [0; VOLUMES_MAX];
    volumes[..2].copy_from_slice(&[0x0004_0000, 0x0101]);
    let superblock = Superblock {
        role: Role::Secondary,
        group: GroupId(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10),
        site: SiteId(2),
        sequence,
        journal_blocks: 0x0004_0000,
        volumes,
        volume_count: 2,
        sizes: VolumeSizes::of([0x0004_0000, 0x0101 - room].into_iter()),
        checkpoint: UpdateNumber(0x0102_0300),
        checkpoint_generation: generation(1),
        position: JournalPosition {
            block: 0x5152,
            sequence: 0x3132_3334,
            previous: Digest(0x4142_4344_4546_4748),
        },
        known_durable: UpdateNumber(0x0102_0302),
        settled: UpdateNumber(0x0102_0301),
        solo: true,
        left: Some(if sequence.is_multiple_of(2) { Left::HandedOver } else { Left::GaveWay(generation(3)) }),
        heir,
        history: history(),
    };
    let mut block = [0; BLOCK_BYTES];
    superblock.encode(&mut block);
    block.to_vec()
}

/// `room` is the second volume's.
fn hello(room: u64) -> Vec<u8> {
    let mut volumes = [HelloVolume::default(); VOLUMES_MAX];
    volumes[0] = HelloVolume { name: Text::new("data"), blocks: 0x0004_0000, room: 0 };
    volumes[1] = HelloVolume { name: Text::new("naïve"), blocks: 0x0101, room };
    let hello = Hello {
        protocol_min: 1,
        protocol_max: 2,
        group: GroupId(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10),
        site: SiteId(2),
        role: Role::Secondary,
        ack: AckLevel::Durable,
        block_bytes: BLOCK_BYTES as u32,
        volumes,
        volume_count: 2,
        history: history(),
        last: UpdateNumber(0x0102_0308),
        last_generation: generation(2),
        durable: UpdateNumber(0x0102_0302),
        settled: UpdateNumber(0x0102_0301),
        checkpoint: UpdateNumber(0x0102_0300),
        solo: false,
        journal_free_blocks: 0x8182_8384,
        window_blocks: 0x9192_9394,
        differential_blocks: 0xa1a2_a3a4,
        alone_upto: UpdateNumber(0x0102_0304),
        marks_after: UpdateNumber(0x0102_02ff),
        gives_way_to: generation(3),
        differential: DifferentialBy::Value,
        serving: true,
        alone: true,
        suspends: false,
        read_lease: Nanos::from_micros(0xb1b2_b3b4),
    };
    let mut body = [0; BLOCK_BYTES];
    let length = hello.encode(&mut body);
    body[..length].to_vec()
}

fn snapshots(count: u64) -> Vec<u8> {
    let records: Vec<SnapshotRecord> = (0..count)
        .map(|index| SnapshotRecord {
            number: UpdateNumber(0x0102_0307 + index),
            taken_at_ns: 0xb1b2_b3b4_b5b6_b7b8,
            volumes: VolumeSet(0b11 << index),
            protected: index % 2 == 0,
            name: SnapshotName::new(["before the naïve upgrade", "b", "c"][index as usize]),
        })
        .collect();
    let mut page = [0; BLOCK_BYTES];
    encode_snapshots(records.iter(), &mut page);
    page.to_vec()
}

fn refusal() -> Vec<u8> {
    let text = Text::new("volume data has 262144 blocks here and 131072 there; format one of them anew");
    let mut body = [0; BLOCK_BYTES];
    let length = Refusal { code: RefusalCode::Volumes, text }.encode(&mut body);
    body[..length].to_vec()
}

/// A page of snapshots' records, and one of entries.
fn tables() -> [Vec<u8>; 2] {
    let header = TablesHeader {
        applied: UpdateNumber(0x0102_0306),
        index: 0,
        kind: TablesKind::Snapshots,
        count: 1,
        last: false,
    };
    let record = SnapshotRecord {
        number: UpdateNumber(0x0102_0302),
        taken_at_ns: 0x1a1b_1c1d_1e1f_2021,
        volumes: VolumeSet(3),
        protected: false,
        name: SnapshotName::new("a"),
    };
    let entry = Captured {
        volume: VolumeId(1),
        lba: Lba(0x3132_3334),
        snapshot: record.number,
        slot: Slot(0x4142_4344),
        sum: BlockSum(0x5152_5354),
    };
    let (mut snapshots, mut entries) = ([0; BLOCK_BYTES], [0; BLOCK_BYTES]);
    put_header(&mut snapshots, &header);
    put_record(&mut snapshots, 0, &record);
    put_header(&mut entries, &TablesHeader { index: 1, kind: TablesKind::Entries, last: true, ..header });
    put_entry(&mut entries, 0, &entry);
    [snapshots.to_vec(), entries.to_vec()]
}

fn frames() -> Vec<u8> {
    let mut stream = Vec::new();
    let mut out = [0; FRAME_HEADER_BYTES + FRAME_BODY_BYTES_MAX];
    let block = vec![0x66; BLOCK_BYTES];
    for (frame, body) in
        [(PageFrame::Hello, hello(0)), (PageFrame::Refusal, refusal()), (PageFrame::Block, block)]
    {
        let length = encode_page_frame(frame, &body, &mut out);
        stream.extend_from_slice(&out[..length]);
    }
    for body in tables() {
        let length = encode_page_frame(PageFrame::Tables, &body, &mut out);
        stream.extend_from_slice(&out[..length]);
    }
    let mut marks = [0; BLOCK_BYTES];
    put_marks(&mut marks, VolumeId(1), 0, &[0x8000_0000_0000_0001]);
    let length = encode_page_frame(PageFrame::Marks, &marks, &mut out);
    stream.extend_from_slice(&out[..length]);
    let mut digests = [0; BLOCK_BYTES];
    put_digests(&mut digests, VolumeId(3), Lba(0x0102_0317), &[Digest128([0xc1, 0xc2]), Digest128::NONE]);
    let length = encode_page_frame(PageFrame::Digests, &digests, &mut out);
    stream.extend_from_slice(&out[..length]);
    for update in updates() {
        let length = encode_update(&update, UpdateNumber(0x0102_0301), None, &mut out);
        stream.extend_from_slice(&out[..length]);
        stream.resize(stream.len() + update.payload_blocks() * BLOCK_BYTES, 0x77);
    }
    for update in updates().into_iter().filter(Update::captures) {
        let old = OldBlocks { sum: 0xc1c2_c3c4, zeros: 1 };
        let old = if update.count > 1 { old } else { OldBlocks { sum: 0, ..old } };
        let length = encode_update(&update, UpdateNumber(0x0102_0301), Some(old), &mut out);
        stream.extend_from_slice(&out[..length]);
        let blocks = update.payload_blocks() + old.sent(update.count).count();
        stream.resize(stream.len() + blocks * BLOCK_BYTES, 0x99);
    }
    stream.extend(controls());
    stream
}

fn controls() -> Vec<u8> {
    let mut stream = Vec::new();
    let mut out = [0; CONTROL_FRAME_BYTES_MAX];
    let number = UpdateNumber;
    let in_volume = BlockPlace::Volume(VolumeId(1), Lba(0x0102_0311));
    for control in [
        Control::Ack {
            received: number(0x0102_0307),
            journaled: number(0x0102_0306),
            durable: number(0x0102_0305),
            applied: number(0x0102_0304),
            journal_ns: 0x6162_6364,
            journal_free_blocks: 0x6566_6768,
            heard: 0x7172_7374,
        },
        Control::Heartbeat { settled: number(0x0102_0301), sequence: 0x7172_7374 },
        Control::FlushRequest { number: number(0x0102_0307) },
        Control::Fetch { from: number(0x0102_0305), to: number(0x0102_0307) },
        Control::CutTo { keep: number(0x0102_0304) },
        Control::BlockWanted { place: BlockPlace::Slot(Slot(0x0102_0308)), sum: BlockSum(0x8182_8384) },
        Control::BlockWanted { place: in_volume, sum: BlockSum(0x8182_8384) },
        Control::BlockLacking { place: in_volume, why: Lacking::Damaged },
        Control::TablesWanted { settled: UpdateNumber(0x0102_0309), page: 0x8182_8385 },
        Control::SwitchoverWanted,
        Control::SwitchoverRefused { code: 0x81 },
        Control::CopyOffer {
            generation: Generation(0x0102_0001),
            serial: 0x9192_9394,
            blocks: 0x9596_9798,
            whole: true,
        },
        Control::Staged { updates: 0x9192_9394 },
        Control::Install { upto: UpdateNumber(0x0102_0310) },
        Control::MarksEnd { pages: 0x9192_9395 },
        Control::Pull {
            after: UpdateNumber(0x0102_0312),
            generation: Generation(0x0102_0002),
            durable: UpdateNumber(0x0102_0311),
            upto: UpdateNumber(0x0102_1312),
        },
        Control::Lapsed { oldest: UpdateNumber(0x0102_0300) },
        Control::Compare {
            at: UpdateNumber(0x0102_0313),
            extent: Extent { volume: VolumeId(2), first: Lba(0x0102_0315), count: 0x51, reads: true },
        },
        Control::Compared {
            at: UpdateNumber(0x0102_0313),
            answer: Some((Digest128([0xa1a2_a3a4_a5a6_a7a8, 0xb1b2_b3b4_b5b6_b7b8]), 0x52)),
        },
        Control::Compared { at: UpdateNumber(0x0102_0313), answer: None },
        Control::DigestsWanted {
            extent: Extent { volume: VolumeId(3), first: Lba(0x0102_0317), count: 0x53, reads: true },
        },
        Control::CopyWanted,
        Control::Extend { volume: VolumeId(3), blocks: 0x0102_0318 },
        Control::Extended { volume: VolumeId(3), blocks: 0x0102_0319, errno: 28 },
    ] {
        let length = encode_control(&control, &mut out);
        stream.extend_from_slice(&out[..length]);
    }
    stream
}

fn nbd_options(bytes: &mut Vec<u8>, options: &[(u32, &[u8])]) {
    for (option, data) in options {
        bytes.put(&OptionHeader { option: *option, length: data.len() as u32 }.encode());
        bytes.put(data);
    }
}

/// Command, flags, offset and length of each; a WRITE is followed by its payload.
fn nbd_requests(bytes: &mut Vec<u8>, requests: &[(u16, u16, u64, u32)]) {
    for (index, &(command, flags, offset, length)) in requests.iter().enumerate() {
        bytes.put(&Request { flags, command, cookie: Cookie(index as u64), offset, length }.encode());
        if command == command::WRITE {
            bytes.resize(bytes.len() + length as usize, 0x88);
        }
    }
}

/// A client that lists, goes, and asks for one of each. The first two bytes are the fuzzer's: buffers and pace, behaviour.
fn nbd_client(choice: u8, acts: u8) -> Vec<u8> {
    let mut bytes = vec![choice, acts];
    bytes.put(&ClientFlags { fixed_newstyle: true, no_zeroes: true }.encode());
    let disk = nbd::info_request(b"disk", &[nbd::info::BLOCK_SIZE]);
    let contexts = nbd::meta_context_request(b"disk", &[nbd::BASE_ALLOCATION]);
    nbd_options(
        &mut bytes,
        &[
            (option::LIST, &[]),
            (option::STRUCTURED_REPLY, &[]),
            (option::SET_META_CONTEXT, &contexts),
            (option::INFO, &disk),
            (option::GO, &disk),
        ],
    );
    nbd_requests(
        &mut bytes,
        &[
            (command::WRITE, nbd::command_flag::FUA, 512, 1024),
            (command::READ, 0, 0, 8192),
            (command::FLUSH, 0, 0, 0),
            (command::WRITE_ZEROES, 0, 4096, 65_536),
            (command::TRIM, 0, 0, 512),
            (command::CACHE, 0, 0, 4096),
            (command::BLOCK_STATUS, 0, 0, 131_072),
            (command::READ, nbd::command_flag::DF, 0, 393_216),
            (command::READ, 0, 392_704, 512),
            (99, 0, 0, 0),
            (command::DISC, 0, 0, 0),
        ],
    );
    bytes
}

/// A client of the oldest kind that is served: EXPORT_NAME, zeroes after it, simple replies, whole blocks.
fn nbd_plain_client(acts: u8) -> Vec<u8> {
    let mut bytes = vec![0xff, acts];
    bytes.put(&ClientFlags { fixed_newstyle: true, no_zeroes: false }.encode());
    nbd_options(&mut bytes, &[(option::EXPORT_NAME, b"disk")]);
    nbd_requests(
        &mut bytes,
        &[
            (command::WRITE, 0, 4096, 8192),
            (command::READ, 0, 0, 12_288),
            (command::READ, 0, 0, 393_216),
            (command::WRITE, 0, 393_216, 512),
            (command::READ, 0, 512, 512),
            (command::DISC, 0, 0, 0),
        ],
    );
    bytes
}

/// A client of the read-only export that asks for what it cannot have first.
fn nbd_refused_client() -> Vec<u8> {
    let mut bytes = vec![0xff, 0];
    bytes.put(&ClientFlags { fixed_newstyle: true, no_zeroes: true }.encode());
    let contexts = nbd::meta_context_request(b"small", &[b"base:"]);
    let (nowhere, small) = (nbd::info_request(b"nowhere", &[]), nbd::info_request(b"small", &[]));
    nbd_options(
        &mut bytes,
        &[
            (option::LIST_META_CONTEXT, &contexts),
            (option::STARTTLS, &[]),
            (77, b"?"),
            (option::LIST, &[0; 9000]),
            (option::STRUCTURED_REPLY, &[]),
            (option::LIST_META_CONTEXT, &contexts),
            (option::GO, &nowhere),
            (option::GO, &small),
        ],
    );
    nbd_requests(
        &mut bytes,
        &[
            (command::WRITE, 0, 0, 512),
            (command::TRIM, 0, 0, 512),
            (command::BLOCK_STATUS, 0, 0, 512),
            (command::READ, 0, u64::MAX, 512),
            (command::READ, 0, 0, 12_288),
            (command::FLUSH, 0, 0, 0),
        ],
    );
    bytes
}

/// What each format looks like, by corpus and file.
fn fixed() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    vec![
        ("batch", "fixed-batch", batch()),
        (
            "superblock",
            "fixed-superblocks-with-room",
            [superblock(8, 1, None), superblock(9, 0x0100, None)].concat(),
        ),
        ("superblock", "fixed-superblocks", [superblock(8, 0, None), superblock(9, 0, None)].concat()),
        (
            "superblock",
            "fixed-superblocks-with-heir",
            [superblock(8, 0, heir(None)), superblock(9, 0, heir(Some(generation(2))))].concat(),
        ),
        ("hello", "fixed-hello", hello(0)),
        ("hello", "fixed-hello-with-room", hello(0x0100)),
        ("hello", "fixed-refusal", refusal()),
        ("snapshot", "fixed-create", snapshots(1)),
        ("snapshot", "fixed-list", snapshots(3)),
        ("frames", "fixed-frames", frames()),
        ("frames", "fixed-controls", controls()),
        ("nbd", "fixed-client", nbd_client(0xff, 0)),
        ("nbd", "fixed-client-slow", nbd_client(0, 0)),
        ("nbd", "fixed-client-late", nbd_client(0xff, LATE | BACKWARDS)),
        ("nbd", "fixed-client-unread", nbd_client(0xfe, LATE | UNREAD)),
        ("nbd", "fixed-client-failed", nbd_client(0xff, 3 << 4)),
        ("nbd", "fixed-plain-client", nbd_plain_client(0)),
        ("nbd", "fixed-plain-client-failed", nbd_plain_client(LATE | BACKWARDS | 4 << 4)),
        ("nbd", "fixed-refused-client", nbd_refused_client()),
    ]
}

#[test]
fn encodings_have_not_changed() {
    for (corpus, name, bytes) in fixed() {
        let file = fuzz_folder().join("corpus").join(corpus).join(name);
        if std::env::var_os("LOCKSTEP_BLESS").is_some() {
            std::fs::create_dir_all(file.parent().expect("a corpus has a folder")).expect("it can be made");
            std::fs::write(&file, &bytes).expect("the corpus can be written");
        }
        let kept = std::fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let differs = kept.iter().zip(&bytes).position(|(kept, now)| kept != now);
        assert!(
            kept == bytes,
            "{corpus}/{name} differs from byte {differs:?}; a new format of ours needs a new version"
        );
    }
}

/// A corpus of inputs that are all refused at the first field would test nothing.
#[test]
fn fixed_inputs_reach_what_they_are_for() {
    let mut updates = [Update::EMPTY; BATCH_DESCRIPTORS_MAX];
    let header = decode_batch(batch().first_chunk().expect("a block"), &mut updates).expect("a batch");
    assert_eq!((header.count, &updates[..12]), (12, &self::updates()[..]));
    let mut reader = FrameReader::new();
    let stream = frames();
    let mut input = &stream[..];
    let mut count = 0;
    while let Some(_frame) = reader.feed(&mut input).expect("each frame is valid") {
        count += 1;
        input = &input[reader.payload_left()..];
        reader.take_payload(reader.payload_left());
    }
    assert_eq!((count, reader.at_boundary()), (44, true));
    // All but CACHE, BLOCK_STATUS, DISC, the unknown one, and where buffers are small the unfragmented read.
    for (choice, acts) in [(0, 0), (0xff, 0), (0xff, LATE | BACKWARDS), (0xfe, LATE | UNREAD)] {
        assert!(exercise::nbd_session(&nbd_client(choice, acts)) >= 6, "choice {choice}, {acts}");
    }
    assert!(exercise::nbd_session(&nbd_plain_client(0)) >= 4);
    assert_eq!(exercise::nbd_session(&nbd_refused_client()), 2, "one read and the flush");
}

#[test]
fn every_corpus_is_replayed() {
    let names = |folder: PathBuf| -> BTreeSet<String> {
        let entries =
            std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        entries
            .map(|entry| entry.expect("an entry of an open folder").path())
            .map(|path| path.file_stem().expect("an entry has a name").to_string_lossy().into_owned())
            .collect()
    };
    let known: BTreeSet<String> = exercise::ALL.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names(fuzz_folder().join("corpus")), known, "corpora and exercises differ");
    assert_eq!(names(fuzz_folder().join("fuzz_targets")), known, "fuzzers and exercises differ");
    for (name, exercise) in exercise::ALL {
        let mut replayed = 0;
        for entry in std::fs::read_dir(fuzz_folder().join("corpus").join(name)).expect("listed above") {
            let file = entry.expect("an entry of an open folder").path();
            let bytes = std::fs::read(&file).expect("a corpus is readable");
            // The harness prints the file's name only if this panics.
            println!("{}", file.display());
            exercise(&bytes);
            replayed += 1;
        }
        assert!(replayed > 0, "the corpus of {name} is empty");
    }
}

/// Every prefix of a valid input: what a cut connection or a torn write leaves.
#[test]
fn cut_inputs_are_taken_too() {
    for (corpus, name, bytes) in fixed() {
        let (_, exercise) =
            exercise::ALL.into_iter().find(|(exercise, _)| *exercise == corpus).expect("a known corpus");
        let step = if bytes.len() > 2000 { 97 } else { 13 };
        for length in (0..bytes.len()).step_by(step) {
            println!("{name} cut to {length}");
            exercise(&bytes[..length]);
        }
    }
}

/// Each table of offsets: the line before it, and its rows.
fn tables_of_offsets(markdown: &str) -> Vec<(String, Vec<(usize, usize)>)> {
    let mut tables: Vec<(String, Vec<(usize, usize)>)> = Vec::new();
    let mut title = "";
    let mut inside = false;
    for line in markdown.lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        match cells[..] {
            ["", "Offset", "Bytes", ..] => {
                tables.push((title.to_owned(), Vec::new()));
                inside = true;
            }
            ["", offset, bytes, ..] if inside => {
                if let (Ok(offset), Ok(bytes)) = (offset.parse(), bytes.parse()) {
                    tables.last_mut().expect("inside a table").1.push((offset, bytes));
                }
            }
            _ => inside = false,
        }
        if !line.is_empty() && !inside {
            title = line;
        }
    }
    tables
}

#[test]
fn tables_of_offsets_have_no_gaps() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/FORMATS.md");
    let tables = tables_of_offsets(&std::fs::read_to_string(file).expect("the document is there"));
    assert_eq!(tables.len(), 37);
    for (title, rows) in tables {
        let mut end = 0;
        for (offset, bytes) in rows {
            assert_eq!(offset, end, "a gap or overlap in: {title}");
            end = offset + bytes;
        }
        assert!(end > 0 && title.ends_with(&format!(", {end} bytes:")), "{end} bytes in all of: {title}");
    }
}
