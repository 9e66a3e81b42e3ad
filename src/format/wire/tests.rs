use super::*;
use crate::base::{Generation, GroupId, HISTORY_MAX, Lba, Nanos, SiteId, Slot, VOLUMES_MAX, VolumeId};
use crate::format::history::History;
use crate::format::history::tests::any_history;
use crate::format::text::Text;
use crate::format::update::tests::any_update;
use proptest::prelude::*;

const FRAME_BYTES_MAX: usize = FRAME_HEADER_BYTES + FRAME_BODY_BYTES_MAX;

fn any_place() -> impl Strategy<Value = BlockPlace> {
    let volume = (0..VOLUMES_MAX as u16, any::<u64>());
    prop_oneof![
        any::<u64>().prop_map(|slot| BlockPlace::Slot(Slot(slot))),
        volume.prop_map(|(volume, lba)| BlockPlace::Volume(VolumeId(volume), Lba(lba))),
    ]
}

fn any_control() -> impl Strategy<Value = Control> {
    let number = || (0..=NUMBER_MAX).prop_map(UpdateNumber);
    prop_oneof![
        (number(), number(), number(), number(), any::<u32>(), any::<u32>(), any::<u64>()).prop_map(
            |(received, journaled, durable, applied, journal_ns, journal_free_blocks, heard)| Control::Ack {
                received,
                journaled,
                durable,
                applied,
                journal_ns,
                journal_free_blocks,
                heard,
            }
        ),
        (number(), any::<u64>()).prop_map(|(settled, sequence)| Control::Heartbeat { settled, sequence }),
        number().prop_map(|number| Control::FlushRequest { number }),
        Just(Control::SwitchoverWanted),
        Just(Control::CopyWanted),
        any::<u8>().prop_map(|code| Control::SwitchoverRefused { code }),
        (1..=NUMBER_MAX, 1..=NUMBER_MAX)
            .prop_map(|(a, b)| Control::Fetch { from: UpdateNumber(a.min(b)), to: UpdateNumber(a.max(b)) }),
        number().prop_map(|keep| Control::CutTo { keep }),
        (any_place(), any::<u32>())
            .prop_map(|(place, sum)| Control::BlockWanted { place, sum: BlockSum(sum) }),
        (any_place(), prop::sample::select(vec![Lacking::Other, Lacking::Damaged, Lacking::Busy]))
            .prop_map(|(place, why)| Control::BlockLacking { place, why }),
        (number(), any::<u32>()).prop_map(|(settled, page)| Control::TablesWanted { settled, page }),
        (0..=NUMBER_MAX, any::<([u64; 2], bool)>()).prop_map(|(generation, ([serial, blocks], whole))| {
            Control::CopyOffer { generation: Generation(generation), serial, blocks, whole }
        }),
        any::<u64>().prop_map(|updates| Control::Staged { updates }),
        (0..=NUMBER_MAX).prop_map(|upto| Control::Install { upto: UpdateNumber(upto) }),
        any::<u64>().prop_map(|pages| Control::MarksEnd { pages }),
        (number(), 0..=NUMBER_MAX, number(), number()).prop_map(|(after, generation, durable, upto)| {
            Control::Pull { after, generation: Generation(generation), durable, upto }
        }),
        (0..=NUMBER_MAX).prop_map(|oldest| Control::Lapsed { oldest: UpdateNumber(oldest) }),
        (number(), any::<(u64, u16, u32, bool)>()).prop_map(|(at, (first, volume, count, reads))| {
            let extent = Extent { volume: VolumeId(volume), first: Lba(first), count, reads };
            Control::Compare { at, extent }
        }),
        (0..=NUMBER_MAX, any::<Option<([u64; 2], u32)>>()).prop_map(|(at, answer)| Control::Compared {
            at: UpdateNumber(at),
            answer: answer.map(|(digest, damaged)| (Digest128(digest), damaged)),
        }),
        (any::<u64>(), any::<(u16, u32, bool)>()).prop_map(|(first, (volume, count, reads))| {
            let extent = Extent { volume: VolumeId(volume), first: Lba(first), count, reads };
            Control::DigestsWanted { extent }
        }),
        any::<(u16, u64)>().prop_map(|(volume, blocks)| Control::Extend { volume: VolumeId(volume), blocks }),
        (any::<(u16, u64)>(), 0..=i32::MAX).prop_map(|((volume, blocks), errno)| Control::Extended {
            volume: VolumeId(volume),
            blocks,
            errno
        }),
    ]
}

fn any_hello() -> impl Strategy<Value = Hello> {
    let volume = ("[a-z0-9é-]{1,32}", 1..=u64::MAX, 0..1u64 << 56).prop_map(|(name, blocks, room)| {
        HelloVolume { name: Text::new(&name), blocks, room: room.min(blocks - 1) }
    });
    let role = prop_oneof![Just(Role::Primary), Just(Role::Secondary), Just(Role::Third)];
    let ack = prop_oneof![
        Just(AckLevel::Received),
        Just(AckLevel::Journaled),
        Just(AckLevel::Durable),
        Just(AckLevel::Applied)
    ];
    let number = || 0..=NUMBER_MAX;
    let ordered = [number(), number(), number(), number()];
    let numbers = (ordered, number(), any::<[u16; 2]>(), any::<u128>(), any::<u16>(), any::<u32>());
    let volumes = prop::collection::vec(volume, 0..=VOLUMES_MAX);
    (numbers, volumes, role, ack, any_history(), any::<([bool; 5], u32)>()).prop_map(
        |(
            (mut numbers, generation, mut versions, group, site, block_bytes),
            list,
            role,
            ack,
            history,
            (flags, lease_us),
        )| {
            numbers.sort_unstable();
            versions.sort_unstable();
            let mut volumes = [HelloVolume::default(); VOLUMES_MAX];
            volumes[..list.len()].copy_from_slice(&list);
            Hello {
                protocol_min: versions[0],
                protocol_max: versions[1],
                group: GroupId(group),
                site: SiteId(site),
                role,
                ack,
                block_bytes,
                volumes,
                volume_count: list.len(),
                history,
                checkpoint: UpdateNumber(numbers[0]),
                journal_free_blocks: numbers[1],
                window_blocks: numbers[2],
                differential_blocks: numbers[3],
                alone_upto: UpdateNumber(numbers[1]),
                marks_after: UpdateNumber(numbers[0]),
                gives_way_to: Generation(generation),
                differential: [DifferentialBy::Reference, DifferentialBy::Value][usize::from(flags[2])],
                settled: UpdateNumber(numbers[1]),
                durable: UpdateNumber(numbers[2]),
                last: UpdateNumber(numbers[3]),
                last_generation: Generation(generation),
                solo: flags[0],
                alone: flags[3],
                suspends: flags[4],
                read_lease: Nanos::from_micros(u64::from(lease_us)),
                serving: flags[1],
            }
        },
    )
}

fn full_hello() -> Hello {
    let mut history = History::EMPTY;
    for opening in 1..=HISTORY_MAX as u64 {
        history.push(Generation(opening << 16), UpdateNumber(opening));
    }
    Hello {
        protocol_min: 1,
        protocol_max: 1,
        group: GroupId(3),
        site: SiteId(1),
        role: Role::Primary,
        ack: AckLevel::Journaled,
        block_bytes: BLOCK_BYTES as u32,
        volumes: [HelloVolume { name: Text::new(&"n".repeat(64)), blocks: 5, room: 4 }; VOLUMES_MAX],
        volume_count: VOLUMES_MAX,
        history,
        last: UpdateNumber(100),
        last_generation: Generation(64 << 16),
        durable: UpdateNumber(99),
        settled: UpdateNumber(98),
        checkpoint: UpdateNumber(90),
        journal_free_blocks: 16_382,
        window_blocks: 8_192,
        differential_blocks: 256,
        alone_upto: UpdateNumber::NONE,
        marks_after: UpdateNumber(80),
        gives_way_to: Generation(63 << 16),
        differential: DifferentialBy::Value,
        solo: false,
        serving: true,
        alone: true,
        suspends: true,
        read_lease: Nanos::from_micros(600_000),
    }
}

fn update() -> Update {
    Update {
        number: UpdateNumber(5),
        generation: Generation(1 << 16),
        lba: Lba(8),
        count: 1,
        slot: Slot::NONE,
        sum: 77,
        volume: VolumeId(0),
        kind: UpdateKind::Write,
    }
}

fn update_frame(update: &Update, settled: UpdateNumber) -> Vec<u8> {
    frame_with(update, settled, None)
}

fn frame_with(update: &Update, settled: UpdateNumber, old: Option<OldBlocks>) -> Vec<u8> {
    let mut out = [0xaa; UPDATE_FRAME_BYTES];
    let length = encode_update(update, settled, old, &mut out);
    assert_eq!(length, if old.is_some() { UPDATE_FRAME_BYTES } else { PLAIN_UPDATE_FRAME_BYTES });
    out[..length].to_vec()
}

/// An update that captures three blocks, whose second was zeros.
fn capturing() -> (Update, OldBlocks) {
    (Update { count: 3, slot: Slot(6), ..update() }, OldBlocks { sum: 9, zeros: 0b010 })
}

fn control_frame(control: &Control) -> Vec<u8> {
    let mut out = [0xaa; CONTROL_FRAME_BYTES_MAX];
    let length = encode_control(control, &mut out);
    out[..length].to_vec()
}

fn hello_body(hello: &Hello) -> Vec<u8> {
    let mut body = [0xaa; BLOCK_BYTES];
    let length = hello.encode(&mut body);
    body[..length].to_vec()
}

fn page_frame(frame: PageFrame, body: &[u8]) -> Vec<u8> {
    let mut out = [0xaa; FRAME_BYTES_MAX];
    let length = encode_page_frame(frame, body, &mut out);
    out[..length].to_vec()
}

/// Decodes a whole frame, its handshake body too.
fn decode(bytes: &[u8]) -> Result<(), WireError> {
    let header = decode_header(bytes.first_chunk().expect("tests give whole headers"))?;
    let end = FRAME_HEADER_BYTES + usize::from(header.body_bytes);
    let Some(body) = bytes.get(FRAME_HEADER_BYTES..end) else {
        // Lengthened: the reader would wait for bytes that belong to the next frame, whose crc then cannot match.
        return Err(WireError::Length { frame: "frame", expected: end, found: bytes.len() });
    };
    match decode_body(&header, body)? {
        Frame::Page(PageFrame::Hello, body) => Hello::decode(body).map(|_| ()),
        Frame::Page(PageFrame::Refusal, body) => Refusal::decode(body).map(|_| ()),
        Frame::Update { .. }
        | Frame::Control(_)
        | Frame::Page(PageFrame::Block | PageFrame::Tables | PageFrame::Marks | PageFrame::Digests, _) => {
            Ok(())
        }
    }
}

/// The frame with its checksum made right again after a change.
fn with_crc(mut bytes: Vec<u8>) -> Vec<u8> {
    let crc = crate::format::bytes::crc_around(&bytes, CRC);
    put(&mut bytes, CRC, &crc.to_le_bytes());
    bytes
}

fn refused(frame: &[u8], at: usize, field: &[u8]) -> WireError {
    let mut bytes = frame.to_vec();
    put(&mut bytes, at, field);
    decode(&with_crc(bytes)).expect_err("the field is out of bounds")
}

#[derive(Clone, Debug, PartialEq)]
enum Seen {
    Update(Update, UpdateNumber, Option<OldBlocks>, Vec<u8>),
    Control(Control),
    Page(PageFrame, Vec<u8>),
}

fn any_seen() -> impl Strategy<Value = Seen> {
    let update = any_update().prop_filter("cuts are not sent", |update| update.kind != UpdateKind::Cut);
    prop_oneof![
        (update, 0..=NUMBER_MAX, any::<u8>(), any::<Option<(u32, u32)>>()).prop_map(
            |(update, settled, fill, old)| {
                let count = update.count;
                let old = old.filter(|_| update.captures()).map(|(sum, bits)| {
                    let zeros = if count < u32::BITS { bits & ((1 << count) - 1) } else { bits };
                    let old = OldBlocks { sum, zeros };
                    OldBlocks { sum: if old.sent(count).count() > 0 { sum } else { 0 }, ..old }
                });
                let olds = old.map_or(0, |old| old.sent(count).count());
                let payload = vec![fill; (update.payload_blocks() + olds) * BLOCK_BYTES];
                Seen::Update(update, UpdateNumber(settled), old, payload)
            }
        ),
        any_control().prop_map(Seen::Control),
        any_hello().prop_map(|hello| Seen::Page(PageFrame::Hello, hello_body(&hello))),
        prop::collection::vec(any::<u8>(), 0..=600).prop_map(|body| Seen::Page(PageFrame::Refusal, body)),
        any::<u8>().prop_map(|fill| Seen::Page(PageFrame::Block, vec![fill; BLOCK_BYTES])),
        any::<u8>().prop_map(|fill| Seen::Page(PageFrame::Tables, vec![fill; BLOCK_BYTES])),
        any::<u8>().prop_map(|fill| Seen::Page(PageFrame::Marks, vec![fill; BLOCK_BYTES])),
        any::<u8>().prop_map(|fill| Seen::Page(PageFrame::Digests, vec![fill; BLOCK_BYTES])),
    ]
}

fn stream_of(frames: &[Seen]) -> Vec<u8> {
    let mut stream = Vec::new();
    for frame in frames {
        match frame {
            Seen::Update(update, settled, old, payload) => {
                stream.extend(frame_with(update, *settled, *old));
                stream.extend(payload);
            }
            Seen::Control(control) => stream.extend(control_frame(control)),
            Seen::Page(frame, body) => stream.extend(page_frame(*frame, body)),
        }
    }
    stream
}

/// Feeds a stream in pieces and collects what comes out.
fn read_in_pieces(stream: &[u8], mut piece: impl FnMut() -> usize) -> Result<Vec<Seen>, WireError> {
    let mut reader = FrameReader::new();
    let mut seen = Vec::new();
    let mut rest = stream;
    while !rest.is_empty() {
        let (mut input, later) = rest.split_at(piece().clamp(1, rest.len()));
        rest = later;
        loop {
            if reader.payload_left() > 0 {
                let taken = reader.payload_left().min(input.len());
                let Some(Seen::Update(_, _, _, payload)) = seen.last_mut() else {
                    panic!("payload follows an update");
                };
                payload.extend_from_slice(&input[..taken]);
                input = &input[taken..];
                reader.take_payload(taken);
                if reader.payload_left() > 0 {
                    break;
                }
            }
            match reader.feed(&mut input)? {
                Some(Frame::Update { update, settled, old }) => {
                    seen.push(Seen::Update(update, settled, old, Vec::new()))
                }
                Some(Frame::Control(control)) => seen.push(Seen::Control(control)),
                Some(Frame::Page(frame, body)) => seen.push(Seen::Page(frame, body.to_vec())),
                None => break,
            }
        }
        assert!(input.is_empty(), "a reader that waits has taken all there was");
    }
    assert!(reader.at_boundary(), "the stream ended inside a frame");
    Ok(seen)
}

proptest! {
    #[test]
    fn controls_come_back(control in any_control()) {
        let bytes = control_frame(&control);
        let header = decode_header(bytes.first_chunk().expect("a whole header")).expect("encoded just now");
        prop_assert_eq!(decode_body(&header, &bytes[FRAME_HEADER_BYTES..]), Ok(Frame::Control(control)));
    }

    #[test]
    fn hellos_come_back(hello in any_hello()) {
        prop_assert_eq!(Hello::decode(&hello_body(&hello)), Ok(hello));
    }

    #[test]
    fn refusals_come_back(text in any::<String>(), code in 1u8..=10) {
        let mut bytes = [0xaa; BLOCK_BYTES];
        let codes = [
            RefusalCode::Version, RefusalCode::Group, RefusalCode::Role, RefusalCode::Volumes,
            RefusalCode::AckLevel, RefusalCode::SplitBrain, RefusalCode::ResyncRequired, RefusalCode::Protocol,
            RefusalCode::Tables, RefusalCode::Differential,
        ];
        let refusal = Refusal { code: codes[usize::from(code) - 1], text: Text::new(&text) };
        let length = refusal.encode(&mut bytes);
        prop_assert_eq!(bytes[0], code);
        prop_assert_eq!(Refusal::decode(&bytes[..length]), Ok(refusal));
    }

    #[test]
    fn what_decodes_as_hello_encodes_to_the_same_bytes(
        hello in any_hello(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = hello_body(&hello);
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(decoded) = Hello::decode(&bytes) {
            prop_assert_eq!(hello_body(&decoded), bytes);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), FRAME_HEADER_BYTES..300), frame in 0u8..16) {
        let _ = decode(&bytes);
        let _ = Hello::decode(&bytes);
        let _ = Refusal::decode(&bytes);
        let mut bytes = bytes;
        put(&mut bytes, 0, &FRAME_MAGIC);
        bytes[VERSION] = FRAME_VERSION;
        bytes[TYPE] = frame;
        let body_bytes = (bytes.len() - FRAME_HEADER_BYTES) as u16;
        put(&mut bytes, BODY_BYTES, &body_bytes.to_le_bytes());
        put(&mut bytes, RESERVED, &[0; 8]);
        let _ = decode(&with_crc(bytes));
    }

    #[test]
    fn pieces_of_any_size_give_the_same_frames(
        frames in prop::collection::vec(any_seen(), 1..8),
        pieces in prop::collection::vec(1usize..9000, 1..32),
    ) {
        let stream = stream_of(&frames);
        let mut sizes = pieces.iter().copied().cycle();
        prop_assert_eq!(read_in_pieces(&stream, || sizes.next().expect("a cycle")), Ok(frames));
    }

    #[test]
    fn a_damaged_stream_never_gives_other_frames(
        frames in prop::collection::vec(any_seen(), 1..6),
        at in any::<prop::sample::Index>(),
        bit in 0..8,
    ) {
        let mut stream = stream_of(&frames);
        let at = at.index(stream.len());
        stream[at] ^= 1u8 << bit;
        let mut reader = FrameReader::new();
        let mut input = &stream[..];
        let mut seen = 0;
        loop {
            if reader.payload_left() > 0 {
                let taken = reader.payload_left().min(input.len());
                input = &input[taken..];
                reader.take_payload(taken);
            }
            match (reader.feed(&mut input), frames.get(seen)) {
                (Ok(Some(Frame::Update { update, settled, old })), Some(Seen::Update(sent, with, kept, _))) => {
                    prop_assert_eq!((&update, &settled, &old), (sent, with, kept));
                }
                (Ok(Some(Frame::Control(control))), Some(Seen::Control(sent))) => prop_assert_eq!(&control, sent),
                (Ok(Some(Frame::Page(frame, body))), Some(Seen::Page(kind, sent))) => {
                    prop_assert_eq!((&frame, body), (kind, &sent[..]));
                }
                (Ok(None), _) => break,
                (Err(error), _) => {
                    prop_assert_eq!(reader.feed(&mut input), Err(error), "an error is final");
                    break;
                }
                (Ok(Some(frame)), sent) => prop_assert!(false, "{:?} for {:?}", frame, sent),
            }
            seen += 1;
        }
    }
}

#[test]
fn byte_by_byte_gives_the_same_frames() {
    let frames = [
        Seen::Update(update(), UpdateNumber(4), None, vec![7; BLOCK_BYTES]),
        Seen::Update(capturing().0, UpdateNumber(4), Some(capturing().1), vec![8; 5 * BLOCK_BYTES]),
        Seen::Control(Control::CutTo { keep: UpdateNumber(3) }),
        Seen::Page(PageFrame::Hello, hello_body(&full_hello())),
        Seen::Update(
            Update { kind: UpdateKind::Zero, sum: 0, ..update() },
            UpdateNumber(5),
            None,
            Vec::new(),
        ),
        Seen::Page(PageFrame::Refusal, Vec::new()),
    ];
    let stream = stream_of(&frames);
    assert_eq!(read_in_pieces(&stream, || 1).as_deref(), Ok(&frames[..]));
    assert_eq!(read_in_pieces(&stream, || usize::MAX).as_deref(), Ok(&frames[..]));
}

#[test]
fn every_flipped_bit_is_refused() {
    let mut refusal = [0; BLOCK_BYTES];
    let length = Refusal { code: RefusalCode::Volumes, text: Text::new("sizes differ") }.encode(&mut refusal);
    let ack = Control::Ack {
        received: UpdateNumber(4),
        journaled: UpdateNumber(3),
        durable: UpdateNumber(2),
        applied: UpdateNumber(1),
        journal_ns: 50_000,
        journal_free_blocks: 1_000,
        heard: 7,
    };
    for frame in [
        update_frame(&update(), UpdateNumber(4)),
        frame_with(&capturing().0, UpdateNumber(4), Some(capturing().1)),
        control_frame(&ack),
        control_frame(&Control::Heartbeat { settled: UpdateNumber(9), sequence: 2 }),
        control_frame(&Control::FlushRequest { number: UpdateNumber(9) }),
        control_frame(&Control::Fetch { from: UpdateNumber(1), to: UpdateNumber(9) }),
        control_frame(&Control::CutTo { keep: UpdateNumber(9) }),
        control_frame(&Control::BlockWanted {
            place: BlockPlace::Volume(VolumeId(1), Lba(9)),
            sum: BlockSum(8),
        }),
        control_frame(&Control::BlockLacking { place: BlockPlace::Slot(Slot(9)), why: Lacking::Other }),
        control_frame(&Control::TablesWanted { settled: UpdateNumber(9), page: 1 }),
        control_frame(&Control::CopyOffer {
            generation: Generation(1 << 16 | 1),
            serial: 2,
            blocks: 3,
            whole: true,
        }),
        control_frame(&Control::Staged { updates: 9 }),
        control_frame(&Control::Install { upto: UpdateNumber(9) }),
        control_frame(&Control::MarksEnd { pages: 9 }),
        control_frame(&Control::Compare {
            at: UpdateNumber(9),
            extent: Extent { volume: VolumeId(1), first: Lba(3), count: 5, reads: true },
        }),
        control_frame(&Control::Compared { at: UpdateNumber(9), answer: Some((Digest128([1, 2]), 3)) }),
        control_frame(&Control::Compared { at: UpdateNumber(9), answer: None }),
        control_frame(&Control::DigestsWanted {
            extent: Extent { volume: VolumeId(1), first: Lba(3), count: 5, reads: true },
        }),
        page_frame(PageFrame::Hello, &hello_body(&full_hello())),
        page_frame(PageFrame::Refusal, &refusal[..length]),
    ] {
        assert_eq!(decode(&frame), Ok(()));
        for bit in 0..frame.len() * 8 {
            let mut flipped = frame.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&flipped).is_err(), "bit {bit} of a frame of type {}", frame[TYPE]);
        }
    }
}

#[test]
fn header_fields_are_checked_before_any_body_is_awaited() {
    let frame = update_frame(&update(), UpdateNumber(4));
    assert_eq!(refused(&frame, 0, b"HTTP"), WireError::Magic { found: *b"HTTP" });
    assert_eq!(refused(&frame, VERSION, &[2]), WireError::Version { found: 2 });
    for found in [0, 31, 255] {
        assert_eq!(refused(&frame, TYPE, &[found]), WireError::Type { found });
    }
    for body in [0u16, 63, 65, u16::MAX] {
        assert!(matches!(refused(&frame, BODY_BYTES, &body.to_le_bytes()), WireError::BodyBytes { .. }));
    }
    for payload in [1u32, 4095, 33 * 4096, u32::MAX] {
        assert!(matches!(
            refused(&frame, PAYLOAD_BYTES, &payload.to_le_bytes()),
            WireError::PayloadBytes { max: 131_072, .. }
        ));
    }
    assert_eq!(
        refused(&frame, PAYLOAD_BYTES, &8192u32.to_le_bytes()),
        WireError::PayloadOfUpdate { update: UpdateNumber(5), expected: 4096, found: 8192 }
    );
    assert!(matches!(refused(&frame, RESERVED, &[1]), WireError::Reserved { offset: 24, .. }));
    let cut_to = control_frame(&Control::CutTo { keep: UpdateNumber(3) });
    assert!(matches!(refused(&cut_to, SETTLED, &[1]), WireError::Settled { .. }));
    assert!(matches!(
        refused(&cut_to, PAYLOAD_BYTES, &4096u32.to_le_bytes()),
        WireError::PayloadBytes { .. }
    ));
    let fetch = control_frame(&Control::Fetch { from: UpdateNumber(2), to: UpdateNumber(3) });
    for from in [0u64, 4] {
        assert!(matches!(
            refused(&fetch, FRAME_HEADER_BYTES, &from.to_le_bytes()),
            WireError::FetchRange { .. }
        ));
    }
    let place = BlockPlace::Slot(Slot(1));
    let wanted = control_frame(&Control::BlockWanted { place, sum: BlockSum(2) });
    assert!(matches!(
        refused(&wanted, FRAME_HEADER_BYTES + 13, &[1]),
        WireError::Reserved { offset: 13, .. }
    ));
    let beyond = VOLUMES_MAX as u16 + 1;
    assert!(matches!(
        refused(&wanted, FRAME_HEADER_BYTES + PLACE_OF, &beyond.to_le_bytes()),
        WireError::Field { found: 33, .. }
    ));
    let lacking = control_frame(&Control::BlockLacking { place, why: Lacking::Busy });
    for why in [0, 4] {
        let refused = refused(&lacking, FRAME_HEADER_BYTES + 8, &[why]);
        assert!(matches!(refused, WireError::Field { found, .. } if found == u64::from(why)), "{refused}");
    }
    let zero = Update { kind: UpdateKind::GenerationOpen, sum: 0, count: 0, lba: Lba(0), ..update() };
    let opening = update_frame(&zero, UpdateNumber(4));
    assert_eq!(
        refused(&opening, FRAME_HEADER_BYTES + 34, &[UpdateKind::Cut as u8]),
        WireError::CutOnWire { keep: UpdateNumber(5) }
    );
}

/// Whoever counts on from what a peer says must not get beyond what there is.
#[test]
fn numbers_beyond_the_highest_are_refused() {
    let number = UpdateNumber(3);
    let pull =
        Control::Pull { after: number, generation: Generation(1 << 16), durable: number, upto: number };
    let too_high = (NUMBER_MAX + 1).to_le_bytes();
    let found = NUMBER_MAX + 1;
    for at in [0, 8, 16, 24] {
        let error = refused(&control_frame(&pull), FRAME_HEADER_BYTES + at, &too_high);
        assert_eq!(error, WireError::Number { frame: FrameType::Pull, found });
    }
    let install = control_frame(&Control::Install { upto: number });
    let error = refused(&install, FRAME_HEADER_BYTES, &u64::MAX.to_le_bytes());
    assert_eq!(error, WireError::Number { frame: FrameType::Install, found: u64::MAX });
    let heartbeat = control_frame(&Control::Heartbeat { settled: number, sequence: u64::MAX });
    let error = refused(&heartbeat, SETTLED, &too_high);
    assert_eq!(error, WireError::Number { frame: FrameType::Heartbeat, found });
    let update = update_frame(&update(), UpdateNumber::NONE);
    for at in [0, 8] {
        let error = refused(&update, FRAME_HEADER_BYTES + at, &too_high);
        assert_eq!(error, WireError::Descriptor(DescriptorError::TooHigh { found }));
    }
    let hello = Hello { last: UpdateNumber(found), ..full_hello() };
    assert!(matches!(Hello::decode(&hello_body(&hello)), Err(WireError::Order { upper: NUMBER_MAX, .. })));
}

#[test]
fn the_longest_hello_fits_a_frame() {
    let body = hello_body(&full_hello());
    assert_eq!(body.len(), HELLO_BYTES_MAX);
    assert_eq!(Hello::decode(&body), Ok(full_hello()));
}

#[test]
fn hello_fields_are_checked() {
    let frame = page_frame(PageFrame::Hello, &hello_body(&full_hello()));
    let refused = |at: usize, field: &[u8]| refused(&frame, FRAME_HEADER_BYTES + at, field);
    let field_name = |error: WireError| match error {
        WireError::Field { field, .. } => field,
        WireError::Order { lower_name, .. } => lower_name,
        other => panic!("{other}"),
    };
    assert_eq!(field_name(refused(6, &[4])), "Hello's role");
    assert_eq!(field_name(refused(7, &[0])), "Hello's acknowledgement level");
    assert_eq!(field_name(refused(12, &[2])), "Hello's solo flag");
    assert_eq!(field_name(refused(13, &[2])), "Hello's serving flag");
    assert_eq!(field_name(refused(14, &[33])), "Hello's volume count");
    assert_eq!(field_name(refused(0, &[2])), "lowest protocol version");
    assert_eq!(field_name(refused(64, &[99])), "checkpoint");
    assert_eq!(field_name(refused(56, &[100])), "settled number");
    assert_eq!(field_name(refused(48, &[101])), "durable number");
    assert_eq!(field_name(refused(96, &[102])), "number up to which it was alone");
    assert_eq!(field_name(refused(104, &[0])), "Hello's differential data");
    assert_eq!(field_name(refused(105, &[2])), "Hello's flag of being alone");
    assert_eq!(field_name(refused(106, &[2])), "Hello's policy flag");
    assert!(matches!(refused(107, &[1]), WireError::Reserved { offset: 107, .. }));
    assert_eq!(field_name(refused(128, &[0; 8])), "a volume's blocks in Hello");
    for length in [0, 65, 255] {
        assert_eq!(field_name(refused(136, &[length])), "the length of a volume's name in Hello");
    }
    assert!(matches!(refused(136, &[63]), WireError::Reserved { offset: 207, .. }));
    assert!(matches!(
        refused(137, &[5]),
        WireError::Field { field: "a volume's room in Hello", found: 5, .. }
    ));
    assert!(matches!(refused(144, &[0x1b]), WireError::Text { .. }));
    assert!(matches!(refused(14, &[31]), WireError::Length { frame: "Hello", .. }));
    assert!(matches!(refused(15, &[255]), WireError::Length { frame: "Hello", .. }));
    for length in 0..HELLO_BYTES_MAX {
        assert!(Hello::decode(&hello_body(&full_hello())[..length]).is_err(), "a hello of {length} bytes");
    }
}

#[test]
fn what_is_said_of_old_blocks_is_checked() {
    let (update, old) = capturing();
    let number = update.number;
    let frame = frame_with(&update, UpdateNumber(4), Some(old));
    let zeros_at = FRAME_HEADER_BYTES + DESCRIPTOR_BYTES + 4;
    assert_eq!(
        refused(&frame, zeros_at, &0b1010u32.to_le_bytes()),
        WireError::OldZeros { update: number, zeros: 0b1010, count: 3 }
    );
    // One block less is sent than the header says.
    assert_eq!(
        refused(&frame, zeros_at, &0b011u32.to_le_bytes()),
        WireError::PayloadOfUpdate {
            update: number,
            expected: 4 * BLOCK_BYTES,
            found: 5 * BLOCK_BYTES as u32
        }
    );
    assert_eq!(
        refused(&frame, zeros_at, &0b111u32.to_le_bytes()),
        WireError::OldSum { update: number, found: old.sum }
    );
    let slot_at = FRAME_HEADER_BYTES + 40;
    assert_eq!(refused(&frame, slot_at, &[0; 8]), WireError::OldBlocksOfNone { update: number });
    for payload in [65u32 * 4096, 4095] {
        assert!(matches!(
            refused(&frame, PAYLOAD_BYTES, &payload.to_le_bytes()),
            WireError::PayloadBytes { max: 262_144, .. }
        ));
    }
    let full = Update { count: 32, slot: Slot(6), ..update };
    let all_zeros = OldBlocks { sum: 0, zeros: u32::MAX };
    assert_eq!(decode(&frame_with(&full, UpdateNumber(4), Some(all_zeros))), Ok(()));
}

#[test]
#[should_panic(expected = "captures none")]
fn old_blocks_of_an_update_that_captures_none_are_not_sent() {
    frame_with(&update(), UpdateNumber(4), Some(capturing().1));
}

#[test]
#[should_panic(expected = "stays in its own journal")]
fn a_cut_is_not_sent() {
    update_frame(&Update { kind: UpdateKind::Cut, ..Update::EMPTY }, UpdateNumber(1));
}
