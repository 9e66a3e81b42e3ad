//! One NBD session and its desk against a group that is only memory: every kind of request, cut anywhere, answered in
//! any order, with pages scarce and buffers small.

#[path = "support/nbd_client.rs"]
mod nbd_client;
#[path = "support/nbd_group.rs"]
mod nbd_group;
#[path = "support/nbd_rig.rs"]
mod nbd_rig;

use std::collections::BTreeMap;

use lockstep::base::*;
use lockstep::core::messages::*;
use lockstep::core::nbd::*;
use lockstep::format::nbd::*;
use lockstep::format::snapshot::{SnapshotName, SnapshotRecord};
use nbd_client::{Done, replies};
use nbd_rig::*;
use proptest::prelude::*;

fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..length).map(|_| next()).collect()
}

fn one(rig: &mut Rig, reads: &[(u64, u32)]) -> Done {
    let mut all = replies(&rig.received(), &reads.iter().copied().collect());
    assert_eq!(all.len(), 1, "{all:?}");
    all.pop_first().expect("there is one").1
}

#[test]
fn the_handshake_lists_describes_and_enters() {
    let mut rig = Rig::large();
    rig.flags();
    let listed = rig.option(option::LIST, &[]);
    let names: Vec<_> = listed[..2].iter().map(|(kind, data)| (*kind, &data[4..])).collect();
    assert_eq!(names, [(2, b"disk".as_slice()), (2, b"fixed".as_slice())]);
    assert_eq!(listed[2], (OptionReply::Ack as u32, vec![]));
    assert_eq!(rig.option(option::LIST, b"x")[0].0, OptionReply::Invalid as u32);

    let missing = rig.option(option::INFO, &info_request(b"nowhere", &[]));
    assert_eq!((missing.len(), missing[0].0), (1, OptionReply::Unknown as u32));
    let unnamed = rig.option(option::INFO, &info_request(b"", &[]));
    assert_eq!(unnamed[0].0, OptionReply::Unknown as u32, "no default among several");

    let infos = [info::BLOCK_SIZE, info::NAME, 77];
    let replies = rig.option(option::INFO, &info_request(b"fixed", &infos));
    use flags::*;
    let read_only = HAS_FLAGS | READ_ONLY | SEND_FLUSH | SEND_FUA | CAN_MULTI_CONN | SEND_CACHE;
    assert_eq!(Info::parse(&replies[0].1), Ok(Info::Export { size: BYTES, flags: read_only }));
    assert_eq!(replies[1].1, b"\0\x01fixed");
    let sizes = Info::BlockSize { min: 512, preferred: 4096, max: 32 << 20 };
    assert_eq!(Info::parse(&replies[2].1), Ok(sizes));
    assert_eq!(replies[3].0, OptionReply::Ack as u32);
    assert!(rig.session.is_haggling());

    rig.option(option::STRUCTURED_REPLY, &[]);
    let replies = rig.option(option::GO, &info_request(b"disk", &[]));
    let writable = HAS_FLAGS
        | SEND_FLUSH
        | SEND_FUA
        | SEND_TRIM
        | SEND_WRITE_ZEROES
        | SEND_DF
        | CAN_MULTI_CONN
        | SEND_CACHE
        | SEND_FAST_ZERO;
    assert_eq!(Info::parse(&replies[0].1), Ok(Info::Export { size: BYTES, flags: writable }));
    assert_eq!(replies.len(), 2, "what was not asked for is not sent");
    assert!(!rig.session.is_haggling());
}

fn record(number: u64, volumes: VolumeSet, name: &str) -> SnapshotRecord {
    let (number, name) = (UpdateNumber(number), SnapshotName::new(name));
    SnapshotRecord { number, taken_at_ns: 1, volumes, protected: false, name }
}

#[test]
fn a_snapshot_is_an_export_of_its_volumes() {
    let mut rig = Rig::large();
    rig.snapshots = vec![record(7, VolumeSet(1), "old"), record(9, VolumeSet::first(2), "new")];
    rig.flags();
    let listed = rig.option(option::LIST, &[]);
    let names: Vec<_> = listed.iter().filter(|(kind, _)| *kind == 2).map(|(_, data)| &data[4..]).collect();
    assert_eq!(names, [&b"disk"[..], b"fixed", b"disk@new", b"fixed@new", b"disk@old"]);
    for missing in [&b"fixed@old"[..], b"disk@", b"@new", b"disk@newer"] {
        let reply = rig.option(option::INFO, &info_request(missing, &[]));
        assert_eq!(reply[0].0, OptionReply::Unknown as u32, "{missing:?}");
    }
    rig.option(option::STRUCTURED_REPLY, &[]);
    let replies = rig.option(option::GO, &info_request(b"disk@old", &[info::NAME]));
    let Ok(Info::Export { size, flags }) = Info::parse(&replies[0].1) else { panic!("{replies:?}") };
    assert_eq!((size, flags & flags::READ_ONLY), (BYTES, flags::READ_ONLY));
    assert_eq!(replies[1].1, b"\0\x01disk@old");
    rig.request(command::READ, 0, 1, 4096, 8192);
    assert_eq!(rig.asked, [(VolumeId(0), UpdateNumber(7))]);
    rig.request(command::WRITE_ZEROES, 0, 2, 0, 4096);
    assert_eq!(rig.asked.len(), 1, "a snapshot is not written to");
}

#[test]
fn a_held_volume_is_opened_by_nobody_and_its_snapshots_are() {
    let record = SnapshotRecord {
        number: UpdateNumber(7),
        taken_at_ns: 1,
        volumes: VolumeSet(1),
        protected: false,
        name: SnapshotName::new("then"),
    };
    for (export, opened) in [(b"disk".as_slice(), false), (b"disk@then", true), (b"fixed", true)] {
        let mut rig = Rig::large();
        (rig.snapshots, rig.held) = (vec![record], VolumeSet(1));
        rig.flags();
        assert_eq!(rig.option(option::INFO, &info_request(b"disk", &[]))[0].0, OptionReply::Info as u32);
        let replies = rig.option(option::GO, &info_request(export, &[]));
        assert_eq!(replies[0].0 == OptionReply::Policy as u32, !opened, "{replies:?}");
        assert_eq!(rig.session.export().is_some(), opened);
        rig.assert_at_rest();
    }
    let mut rig = Rig::large();
    rig.held = VolumeSet(1);
    rig.flags();
    rig.feed(&OptionHeader { option: option::EXPORT_NAME, length: 4 }.encode());
    rig.feed(b"disk");
    assert_eq!(rig.session.farewell(), Some(Farewell::UnknownExport));
}

#[test]
fn refused_options_leave_the_handshake_going() {
    let mut rig = Rig::large();
    rig.flags();
    let tls = rig.option(option::STARTTLS, &[]);
    assert_eq!(tls[0].0, OptionReply::Unsupported as u32);
    assert!(String::from_utf8(tls[0].1.clone()).expect("text").contains("TLS"));
    assert_eq!(rig.option(99, b"anything")[0].0, OptionReply::Unsupported as u32);
    let early = rig.option(option::SET_META_CONTEXT, &meta_context_request(b"disk", &[BASE_ALLOCATION]));
    assert_eq!(early[0].0, OptionReply::Invalid as u32, "structured replies come first");
    let huge = vec![0; OPTION_BYTES_MAX + 1];
    assert_eq!(rig.option(option::GO, &huge)[0].0, OptionReply::TooBig as u32);
    assert_eq!(rig.option(option::INFO, b"\0\0\0\x09ab")[0].0, OptionReply::Invalid as u32);
    assert_eq!(rig.option(option::ABORT, &[]), [(OptionReply::Ack as u32, vec![])]);
    assert_eq!(rig.session.farewell(), Some(Farewell::Aborted));
}

#[test]
fn metadata_contexts_follow_the_last_selection() {
    let mut rig = Rig::large();
    rig.flags();
    rig.option(option::STRUCTURED_REPLY, &[]);
    let ask = |rig: &mut Rig, option, name: &[u8], queries: &[&[u8]]| {
        rig.option(option, &meta_context_request(name, queries))
    };
    for queries in [&[][..], &[b"base:".as_slice()], &[b"x:y".as_slice(), b"base:allocation"]] {
        let replies = ask(&mut rig, option::LIST_META_CONTEXT, b"disk", queries);
        assert_eq!(replies[0], (OptionReply::MetaContext as u32, b"\0\0\0\0base:allocation".to_vec()));
    }
    assert_eq!(ask(&mut rig, option::LIST_META_CONTEXT, b"disk", &[b"qemu:dirty"]).len(), 1);
    assert_eq!(ask(&mut rig, option::LIST_META_CONTEXT, b"?", &[])[0].0, OptionReply::Unknown as u32);
    assert_eq!(ask(&mut rig, option::SET_META_CONTEXT, b"disk", &[BASE_ALLOCATION]).len(), 2);
    assert_eq!(ask(&mut rig, option::SET_META_CONTEXT, b"disk", &[]).len(), 1, "selects nothing");
    rig.option(option::GO, &info_request(b"disk", &[]));
    rig.request(command::BLOCK_STATUS, 0, 1, 0, 4096);
    assert_eq!(one(&mut rig, &[]).error, Some(NbdError::Inval));
}

#[test]
fn export_name_enters_with_and_without_zeroes() {
    for (no_zeroes, length) in [(false, 134), (true, 10)] {
        let mut rig = Rig::large();
        rig.settle();
        rig.received();
        rig.feed(&ClientFlags { fixed_newstyle: false, no_zeroes }.encode());
        rig.feed(&OptionHeader { option: option::EXPORT_NAME, length: 4 }.encode());
        rig.feed(b"disk");
        let answer = rig.received();
        assert_eq!((answer.len(), &answer[..8]), (length, BYTES.to_be_bytes().as_slice()));
        assert!(!rig.session.is_haggling());
    }
}

#[test]
fn what_cannot_be_answered_ends_the_session() {
    let option = |option, length| OptionHeader { option, length }.encode().to_vec();
    let flags = |fixed_newstyle| ClientFlags { fixed_newstyle, no_zeroes: true }.encode().to_vec();
    let cases: [(&str, Vec<u8>); 6] = [
        ("flags that were not offered", vec![0, 0, 0, 8]),
        ("an unknown export", [flags(true), option(option::EXPORT_NAME, 1), b"x".to_vec()].concat()),
        ("options of an old client", [flags(false), option(option::LIST, 0)].concat()),
        ("no option", [flags(true), b"GET / HTTP/1.1\r\n".to_vec()].concat()),
        ("an endless option", [flags(true), option(option::GO, u32::MAX)].concat()),
        ("a name that is too long", [flags(true), option(option::EXPORT_NAME, 10_000)].concat()),
    ];
    for (what, bytes) in cases {
        let mut rig = Rig::large();
        rig.feed(&bytes);
        assert!(matches!(rig.last, Stall::Leaving(_)), "{what}: {:?}", rig.last);
        rig.assert_at_rest();
    }
}

#[test]
fn endless_haggling_ends() {
    let mut rig = Rig::large();
    rig.flags();
    for _ in 0..2000 {
        rig.feed(&OptionHeader { option: option::LIST, length: 0 }.encode());
    }
    assert_eq!(rig.session.farewell(), Some(Farewell::TooManyOptions));
}

#[test]
fn each_bad_request_gets_its_error_and_the_connection_lives() {
    use command::*;
    use command_flag::*;
    let max = u32::MAX;
    let cases = [
        (99, 0, 0, 512, NbdError::Inval),
        (READ, 0, BYTES, 512, NbdError::Inval),
        (READ, 0, BYTES - 512, 1024, NbdError::Inval),
        (READ, 0, u64::MAX - 511, 512, NbdError::Inval),
        (READ, 0, u64::MAX, max, NbdError::Inval),
        (READ, 0, 0, 0, NbdError::Inval),
        (READ, 0, 0, REQUEST_BYTES_MAX + 512, NbdError::Inval),
        (READ, 0, 1, 512, NbdError::Inval),
        (READ, 0, 0, 513, NbdError::Inval),
        (READ, NO_HOLE, 0, 512, NbdError::Inval),
        (READ, 1 << 15, 0, 512, NbdError::Inval),
        (READ, DF, 0, 1 << 20, NbdError::Overflow),
        (TRIM, 0, BYTES, 512, NbdError::NoSpc),
        (TRIM, DF, 0, 512, NbdError::Inval),
        (WRITE_ZEROES, 0, u64::MAX - 4095, 4096, NbdError::NoSpc),
        (WRITE_ZEROES, 0, 0, max, NbdError::NoSpc),
        (WRITE_ZEROES, REQ_ONE, 0, 512, NbdError::Inval),
        (FLUSH, 0, 0, 1, NbdError::Inval),
        (FLUSH, 0, 512, 0, NbdError::Inval),
        (CACHE, 0, BYTES, 512, NbdError::Inval),
        (BLOCK_STATUS, 0, BYTES, 512, NbdError::Inval),
        (BLOCK_STATUS, 0, 0, 0, NbdError::Inval),
    ];
    for structured in [false, true] {
        let mut rig = Rig::large();
        rig.go("disk", structured, &[info::BLOCK_SIZE]);
        for (index, &(command, flags, offset, length, error)) in cases.iter().enumerate() {
            let error = if !structured && flags == DF { NbdError::Inval } else { error };
            rig.request(command, flags, index as u64, offset, length);
            let done = replies(&rig.received(), &BTreeMap::new());
            let reply = &done[&(index as u64)];
            assert_eq!(reply.error, Some(error), "case {index}, structured {structured}");
            assert_eq!(reply.chunks, usize::from(structured), "case {index}");
        }
        rig.request(READ, 0, 500, 0, 512);
        assert_eq!(one(&mut rig, &[(500, 512)]).bytes(), vec![0; 512]);
        rig.assert_at_rest();
    }
}

#[test]
fn a_refused_write_is_skipped_and_the_next_request_understood() {
    let mut rig = Rig::small();
    rig.go("disk", true, &[info::BLOCK_SIZE]);
    for (offset, length, error) in [
        (BYTES - 512, 1024, NbdError::NoSpc),
        (u64::MAX, 512, NbdError::NoSpc),
        (3, 512, NbdError::Inval),
        (0, REQUEST_BYTES_MAX + 4096, NbdError::Inval),
        (0, 0, NbdError::Inval),
    ] {
        rig.request(command::WRITE, 0, 1, offset, length);
        let payload = vec![0x55; length as usize];
        payload.chunks(70_000).for_each(|part| rig.feed(part));
        assert_eq!(one(&mut rig, &[]).error, Some(error), "{length} bytes at {offset}");
    }
    assert_eq!(rig.group.requests, 0);
    rig.request(command::WRITE, 0, 1, 0, u32::MAX);
    assert!(matches!(rig.session.farewell(), Some(Farewell::Malformed(Malformed::Oversize { .. }))));
}

#[test]
fn a_read_only_export_takes_no_change() {
    let mut rig = Rig::large();
    rig.go("fixed", false, &[]);
    for command in [command::TRIM, command::WRITE_ZEROES, command::WRITE] {
        rig.request(command, 0, 1, 0, 512);
        if command == command::WRITE {
            rig.feed(&[0; 512]);
        }
        assert_eq!(one(&mut rig, &[]), Done::failed(NbdError::Perm));
    }
    rig.request(command::FLUSH, 0, 1, 0, 0);
    assert_eq!(one(&mut rig, &[]), Done::ok());
}

#[test]
fn the_groups_errors_become_the_protocols() {
    let cases = [
        (HostError::OutOfRange, NbdError::Inval, NbdError::NoSpc),
        (HostError::ReadOnly, NbdError::Perm, NbdError::Perm),
        (HostError::Deadline, NbdError::Io, NbdError::Io),
        (HostError::NotServing, NbdError::Shutdown, NbdError::Shutdown),
        (HostError::Io, NbdError::Io, NbdError::Io),
    ];
    for (host, reading, writing) in cases {
        for structured in [false, true] {
            let mut rig = Rig::large();
            rig.go("disk", structured, &[]);
            rig.group.failure = Some(host);
            rig.request(command::READ, 0, 1, 512, 512);
            assert_eq!(one(&mut rig, &[]).error, Some(reading));
            rig.request(command::WRITE, 0, 2, 512, 1 << 20);
            pattern(1, 1 << 20).chunks(1000).for_each(|part| rig.feed(part));
            assert_eq!(one(&mut rig, &[]).error, Some(writing));
            rig.request(command::TRIM, 0, 3, 0, 4096);
            assert_eq!(one(&mut rig, &[]).error, Some(writing));
            rig.assert_at_rest();
        }
    }
}

#[test]
fn a_long_read_that_fails_midway_never_looks_whole() {
    for structured in [false, true] {
        let mut rig = Rig::small();
        rig.go("disk", structured, &[]);
        let request =
            Request { flags: 0, command: command::READ, cookie: Cookie(1), offset: 0, length: 2 << 20 };
        rig.input.extend_from_slice(&request.encode());
        rig.advance();
        rig.reply(0);
        rig.send();
        rig.group.failure = Some(HostError::Io);
        rig.settle();
        if structured {
            let done = one(&mut rig, &[]);
            assert_eq!(done.error, Some(NbdError::Io));
            assert!(!done.data.is_empty());
            assert_eq!(rig.session.farewell(), None);
        } else {
            assert_eq!(rig.session.farewell(), Some(Farewell::ReadFailed));
            assert!(rig.received().len() < 2 << 20);
        }
        rig.assert_at_rest();
    }
}

#[test]
fn a_long_simple_read_that_fails_at_once_gets_an_error() {
    let mut rig = Rig::large();
    rig.go("disk", false, &[]);
    rig.group.failure = Some(HostError::Io);
    rig.request(command::READ, 0, 1, 0, 1 << 20);
    assert_eq!(one(&mut rig, &[]), Done::failed(NbdError::Io));
    rig.group.failure = None;
    rig.request(command::READ, 0, 2, 0, 1 << 20);
    assert_eq!(one(&mut rig, &[(2, 1 << 20)]).bytes().len(), 1 << 20);
    rig.assert_at_rest();
}

#[test]
fn block_status_reports_merged_extents() {
    let mut rig = Rig::large();
    rig.go("disk", true, &[]);
    let stripe = 16 * BLOCK_BYTES as u32;
    rig.request(command::BLOCK_STATUS, 0, 1, 512, 3 * stripe);
    let expected = [(stripe - 512, 0), (stripe, 3), (stripe, 0), (512, 3)];
    assert_eq!(one(&mut rig, &[]).extents, expected);
    rig.request(command::BLOCK_STATUS, command_flag::REQ_ONE, 1, 512, 3 * stripe);
    assert_eq!(one(&mut rig, &[]).extents, [(stripe - 512, 0)]);
    rig.request(command::BLOCK_STATUS, 0, 1, 0, BYTES as u32);
    assert_eq!(one(&mut rig, &[]).extents.len(), 64);
}

#[test]
fn changes_since_a_snapshot_are_a_metadata_context() {
    let snapshots =
        [record(3, VolumeSet(1), "old"), record(4, VolumeSet(2), "other"), record(5, VolumeSet(1), "new")];
    let names = |replies: Vec<(u32, Vec<u8>)>| -> Vec<String> {
        let contexts = replies.iter().filter(|(kind, _)| *kind == OptionReply::MetaContext as u32);
        contexts.map(|(_, data)| String::from_utf8(data[4..].to_vec()).expect("a name")).collect()
    };
    let both = &[BASE_ALLOCATION, b"lockstep:diff:old"][..];
    let block = BLOCK_BYTES as u32;
    for (queries, export, chunks) in [
        (&both[1..], "disk@new", 1),
        (both, "disk", 2),
        (&[b"lockstep:diff:new".as_slice()][..], "disk@new", 0),
    ] {
        let mut rig = Rig::large();
        rig.snapshots = snapshots.to_vec();
        rig.flags();
        rig.option(option::STRUCTURED_REPLY, &[]);
        let mut listed = |name: &[u8], query: &[u8]| {
            names(rig.option(option::LIST_META_CONTEXT, &meta_context_request(name, &[query])))
        };
        assert_eq!(listed(b"disk@new", b"lockstep:"), ["lockstep:diff:old"]);
        assert_eq!(listed(b"disk", b"lockstep:diff:"), ["lockstep:diff:new", "lockstep:diff:old"]);
        assert_eq!(listed(b"fixed", b"lockstep:diff:other"), ["lockstep:diff:other"]);
        assert!(listed(b"disk@old", b"lockstep:diff:new").is_empty(), "a newer one");
        let request = meta_context_request(export.as_bytes(), queries);
        assert_eq!(names(rig.option(option::SET_META_CONTEXT, &request)).len(), chunks);
        rig.option(option::GO, &info_request(export.as_bytes(), &[]));
        // Every third block was changed, says the group.
        rig.request(command::BLOCK_STATUS, 0, 1, u64::from(2 * block + 512), 5 * block);
        let done = one(&mut rig, &[]);
        match chunks {
            0 => assert_eq!(done.error, Some(NbdError::Inval)),
            chunks => {
                let changed = [(block - 512, 0), (block, 1), (2 * block, 0), (block, 1), (512, 0)];
                assert_eq!((done.chunks, &done.extents[done.extents.len() - 5..]), (chunks, &changed[..]));
                let of = if export == "disk" { 0 } else { 5 };
                assert_eq!(rig.asked, [(VolumeId(0), UpdateNumber(of))]);
            }
        }
        if chunks == 1 {
            rig.request(command::BLOCK_STATUS, command_flag::REQ_ONE, 1, u64::from(3 * block), 5 * block);
            assert_eq!(one(&mut rig, &[]).extents, [(block, 1)]);
            // As much as one reply can tell.
            rig.request(command::BLOCK_STATUS, 0, 1, 0, BYTES as u32);
            assert_eq!(one(&mut rig, &[]).extents.len(), 128);
            rig.group.failure = Some(HostError::NoSuchSnapshot);
            rig.request(command::BLOCK_STATUS, 0, 1, 0, block);
            assert_eq!(one(&mut rig, &[]).error, Some(NbdError::Shutdown));
        }
        rig.assert_at_rest();
    }
}

#[test]
fn a_fragment_of_64_kib_is_always_served_whole() {
    let mut rig = Rig::small();
    rig.go("disk", true, &[]);
    rig.group.volumes[0][..200_000].copy_from_slice(&pattern(9, 200_000));
    rig.request(command::READ, command_flag::DF, 1, 4095, 65536);
    let done = one(&mut rig, &[]);
    assert_eq!((done.chunks, done.bytes()), (1, pattern(9, 200_000)[4095..4095 + 65536].to_vec()));
}

#[test]
fn fua_reaches_every_piece() {
    let mut rig = Rig::large();
    rig.go("disk", true, &[]);
    let length = 300_000;
    let request =
        Request { flags: command_flag::FUA, command: command::WRITE, cookie: Cookie(1), offset: 100, length };
    rig.input.extend_from_slice(&request.encode());
    rig.input.extend_from_slice(&pattern(1, 260_000));
    rig.grant();
    let mut pieces = Vec::new();
    rig.with(|session, station, input, out| {
        session.advance(station, input, out);
        while let Some(request) = station.desk.outgoing() {
            pieces.push(request.op);
        }
    });
    let partial = HostOp::WritePartial { lba: Lba(0), offset: 100, length: 3996, fua: true };
    assert_eq!(pieces[0], partial);
    assert_eq!(pieces[1], HostOp::Write { lba: Lba(1), count: 32, fua: true });
}

#[test]
fn a_client_that_reads_nothing_holds_nothing_of_the_others() {
    let mut rig = Rig::new(Limits { receive_bytes: 256 << 10, send_bytes: 256 << 10 }, 2000);
    rig.go("disk", true, &[]);
    for cookie in 0..200 {
        let request =
            Request { flags: 0, command: command::READ, cookie: Cookie(cookie), offset: 0, length: 65536 };
        rig.input.extend_from_slice(&request.encode());
    }
    // Its send buffer is never taken away, as by a socket that is full.
    for _ in 0..50 {
        rig.advance();
        while !rig.replies.is_empty() {
            rig.reply(0);
        }
    }
    assert_eq!(rig.last, Stall::Room);
    assert_eq!(rig.session.pieces(), 0, "nothing of it stays in the group");
    assert_eq!((rig.desk.free_tickets(), rig.desk.free_pages()), (FRONT_TICKETS_MAX, 2000));
}

#[test]
fn a_client_that_stops_inside_a_payload_holds_nothing() {
    let mut rig = Rig::large();
    rig.go("disk", true, &[]);
    rig.request(command::WRITE, 0, 1, 0, 128 << 10);
    rig.feed(&vec![1; (128 << 10) - 1]);
    assert_eq!(rig.last, Stall::Input);
    assert_eq!(rig.desk.free_tickets(), FRONT_TICKETS_MAX);
    assert_eq!(rig.desk.free_pages(), 512);
    rig.session.leave(Farewell::HungUp);
    rig.settle();
    rig.assert_at_rest();
    assert!(rig.received().is_empty(), "half a write has no reply");
}

#[test]
fn a_request_that_was_cut_short_has_no_last_reply() {
    let request =
        |command, length| Request { flags: 0, command, cookie: Cookie(1), offset: 0, length }.encode();
    let mut rig = Rig::large();
    rig.go("disk", true, &[]);
    rig.input.extend_from_slice(&request(command::WRITE, 1 << 20));
    rig.input.extend_from_slice(&pattern(1, 200_000));
    rig.settle();
    assert_eq!(rig.group.requests, 1);
    rig.session.leave(Farewell::HungUp);
    rig.settle();
    assert!(rig.received().is_empty(), "part of a write is not a write");
    rig.assert_at_rest();

    let mut rig = Rig::small();
    rig.go("disk", true, &[]);
    rig.input.extend_from_slice(&request(command::READ, 1 << 20));
    rig.advance();
    rig.session.leave(Farewell::Stopping);
    rig.settle();
    let received = rig.received();
    let (header, _) = ReplyHeader::parse(&received).expect("a reply").expect("a whole header");
    assert!(matches!(header, ReplyHeader::Chunk { done: false, .. }), "{header:?}");
    rig.assert_at_rest();

    let mut rig = Rig::large();
    rig.go("disk", true, &[]);
    rig.input.extend_from_slice(&request(command::WRITE, 1 << 20));
    rig.input.extend_from_slice(&pattern(1, 200_000));
    rig.advance();
    rig.session.leave(Farewell::HungUp);
    rig.settle();
    assert!(rig.received().is_empty(), "nor if its pieces complete later");
    rig.assert_at_rest();
}

#[test]
fn a_huge_trim_leaves_tickets_for_others() {
    let mut rig = Rig::large();
    rig.exports[0].blocks = 1 << 30;
    rig.go("disk", true, &[]);
    let length = u32::MAX - 511;
    let request = Request { flags: 0, command: command::TRIM, cookie: Cookie(1), offset: 0, length };
    rig.input.extend_from_slice(&request.encode());
    rig.grant();
    let mut issued = 0;
    for _ in 0..20 {
        rig.with(|session, station, _, out| session.advance(station, &request.encode(), out));
        while rig.desk.outgoing().is_some() {
            issued += 1;
        }
    }
    assert_eq!(issued, FRONT_TICKETS_MAX / 4);
    assert_eq!(rig.desk.free_tickets(), FRONT_TICKETS_MAX * 3 / 4);
}

#[derive(Clone, Debug)]
enum Ask {
    Read { offset: u64, length: u32, df: bool },
    Write { offset: u64, length: u32, fua: bool },
    Zero { offset: u64, length: u32, trim: bool },
    Flush,
    Cache,
    Status,
}

fn ask() -> impl Strategy<Value = Ask> {
    let range = || {
        let length =
            prop_oneof![4 => 1u32..9000, 2 => 1u32..300_000, 1 => Just(4096u32), 1 => Just(131_072u32)];
        (length, any::<u64>(), any::<bool>()).prop_map(|(length, at, whole)| {
            let at = at % (BYTES - u64::from(length) + 1);
            (if whole { at / 4096 * 4096 } else { at }, length)
        })
    };
    prop_oneof![
        4 => (range(), any::<bool>()).prop_map(|((offset, length), df)| Ask::Read { offset, length, df }),
        4 => (range(), any::<bool>()).prop_map(|((offset, length), fua)| Ask::Write { offset, length, fua }),
        2 => (range(), any::<bool>()).prop_map(|((offset, length), trim)| Ask::Zero { offset, length, trim }),
        1 => Just(Ask::Flush),
        1 => Just(Ask::Cache),
        1 => Just(Ask::Status),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// What a client reads is what it wrote before, however its bytes are cut and however the group's replies are
    /// ordered; every request has exactly one reply, and everything comes back to the desk.
    #[test]
    fn the_volume_is_what_was_written(
        asks in prop::collection::vec(ask(), 1..40),
        structured: bool,
        small: bool,
        cuts in prop::collection::vec(1usize..200_000, 1..20),
        order in prop::collection::vec(any::<u8>(), 1..50),
    ) {
        let mut rig = if small { Rig::small() } else { Rig::large() };
        rig.go("disk", structured, &[]);
        let mut model = vec![0u8; BYTES as usize];
        let mut stream = Vec::new();
        let mut reads = BTreeMap::new();
        let mut expected = BTreeMap::new();
        let df_max = if small { 16 } else { 31 } * 4096;
        for (cookie, ask) in asks.iter().enumerate() {
            let cookie = cookie as u64;
            let mut put = |flags, command, offset, length| {
                stream.extend_from_slice(&Request { flags, command, cookie: Cookie(cookie), offset, length }.encode());
            };
            let mut want = Some(None);
            match *ask {
                Ask::Read { offset, length, df } => {
                    let df = df && structured && length <= df_max;
                    put(if df { command_flag::DF } else { 0 }, command::READ, offset, length);
                    reads.insert(cookie, length);
                    want = Some(Some(model[offset as usize..offset as usize + length as usize].to_vec()));
                }
                Ask::Write { offset, length, fua } => {
                    put(u16::from(fua), command::WRITE, offset, length);
                    let data = pattern(cookie + 1, length as usize);
                    model[offset as usize..offset as usize + length as usize].copy_from_slice(&data);
                    stream.extend_from_slice(&data);
                }
                Ask::Zero { offset, length, trim } => {
                    put(0, if trim { command::TRIM } else { command::WRITE_ZEROES }, offset, length);
                    model[offset as usize..offset as usize + length as usize].fill(0);
                }
                Ask::Flush => put(0, command::FLUSH, 0, 0),
                Ask::Cache => put(0, command::CACHE, 0, 4096),
                Ask::Status => {
                    put(0, command::BLOCK_STATUS, 0, 4096);
                    want = if structured { Some(None) } else { None };
                }
            }
            expected.insert(cookie, want);
        }
        let receive_bytes = if small { Limits::MIN.receive_bytes } else { 256 << 10 };
        let (mut at, mut turn) = (0, 0);
        while at < stream.len() || !rig.input.is_empty() || rig.session.pieces() > 0 {
            let room = receive_bytes - rig.input.len();
            let cut = cuts[turn % cuts.len()].min(stream.len() - at).min(room);
            rig.input.extend_from_slice(&stream[at..at + cut]);
            at += cut;
            rig.advance();
            if !rig.replies.is_empty() {
                rig.reply(usize::from(order[turn % order.len()]));
            }
            if turn % 3 == 0 {
                rig.send();
            }
            turn += 1;
            prop_assert!(turn < 1_000_000, "stuck: {:?}", rig.last);
        }
        rig.settle();
        rig.assert_at_rest();
        prop_assert!(rig.group.volumes[0] == model, "the volume differs");
        let done = replies(&rig.received(), &reads);
        prop_assert_eq!(done.len(), expected.len());
        for (cookie, want) in expected {
            let reply = &done[&cookie];
            match want {
                Some(want) => {
                    prop_assert_eq!(reply.error, None);
                    prop_assert!(reply.bytes() == want.unwrap_or_default(), "request {} read something else", cookie);
                }
                None => prop_assert_eq!(reply.error, Some(NbdError::Inval)),
            }
        }
    }

    /// Nothing a client can send panics, is answered with anything but replies, or keeps a ticket or page.
    #[test]
    fn arbitrary_bytes_never_panic(
        entered: bool,
        pieces in prop::collection::vec(
            prop_oneof![
                prop::collection::vec(any::<u8>(), 0..300),
                (any::<u16>(), 0u16..10, any::<u64>(), any::<u32>()).prop_map(|(flags, command, offset, length)| {
                    let flags = flags & 0x1f;
                    let (offset, length) = (offset % (2 * BYTES), length % 100_000);
                    Request { flags, command, cookie: Cookie(offset), offset, length }.encode().to_vec()
                }),
                (0u32..14, 0u32..64).prop_map(|(option, length)| {
                    let mut bytes = OptionHeader { option, length }.encode().to_vec();
                    bytes.resize(bytes.len() + length as usize, 0);
                    bytes
                }),
            ],
            1..30,
        ),
        hang_up in any::<bool>(),
    ) {
        let mut rig = Rig::small();
        if entered {
            rig.go("disk", true, &[]);
        }
        for piece in &pieces {
            if rig.input.len() + piece.len() <= Limits::MIN.receive_bytes {
                rig.input.extend_from_slice(piece);
            }
            rig.advance();
            if piece.len() % 2 == 0 {
                rig.settle();
            }
        }
        if hang_up {
            rig.session.abandon(Farewell::Failed);
            let before = rig.out.len();
            while !rig.replies.is_empty() {
                rig.reply(0);
            }
            prop_assert_eq!(rig.out.len(), before, "a peer that is gone is sent nothing");
        }
        rig.session.leave(Farewell::HungUp);
        rig.settle();
        rig.assert_at_rest();
    }
}
