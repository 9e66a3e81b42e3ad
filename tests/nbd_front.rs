//! The NBD front on real sockets, over a group that is only memory: its own client, many of them, bad ones, dying ones.

#[path = "support/nbd_group.rs"]
mod nbd_group;
#[path = "support/nbd_server.rs"]
mod nbd_server;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use lockstep::base::*;
use lockstep::core::messages::HostError;
use lockstep::format::nbd::*;
use lockstep::io::nbd_client::*;
use nbd_server::{Server, Setup};

struct Folder {
    folder: tempfile::TempDir,
}

impl Folder {
    fn new() -> Folder {
        Folder { folder: tempfile::tempdir().expect("a folder") }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("nbd.sock")
    }

    fn setup(&self) -> Setup {
        Setup::new(self.socket(), 4096)
    }
}

fn client(socket: &Path) -> NbdClient {
    NbdClient::connect(&NbdUri::unix(socket, "disk"), ClientOptions::default()).expect("the front serves")
}

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

/// Waits until `done` says so, as long as anything reasonable could take.
fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn what_is_written_is_read_over_both_kinds_of_socket() {
    let folder = Folder::new();
    let server = Server::start(&Setup { tcp: true, ..folder.setup() });
    let tcp: NbdUri = format!("nbd://{}/disk", server.tcp.expect("it listens")).parse().expect("a URI");
    let mut clients = Vec::new();
    for structured_replies in [true, false] {
        let options = ClientOptions { structured_replies, ..ClientOptions::default() };
        for uri in [&NbdUri::unix(folder.socket(), "disk"), &tcp] {
            clients.push(NbdClient::connect(uri, options).expect("the front serves"));
        }
    }
    for (index, length) in [512, 4096, 8192, 131_072, 300_032, 5 << 20].into_iter().enumerate() {
        for writer in 0..clients.len() {
            let (offset, data) = (512 * (index as u64 + writer as u64), pattern(writer as u64, length));
            clients[writer].write(offset, &data, writer % 2 == 0).expect("it is written");
            for reader in &mut clients {
                let read = reader.read(offset, length as u32).expect("it is read");
                assert!(read == data, "{length} bytes by client {writer}");
            }
        }
    }
    clients[0].trim(4096, 1 << 20).expect("it is trimmed");
    clients[1].write_zeroes(512, 1024).expect("it is zeroed");
    clients[2].flush().expect("it is flushed");
    assert!(clients[3].read(512, 1024).expect("it is read") == [0; 1024]);
    assert!(clients[3].read(4096, 1 << 20).expect("it is read") == vec![0; 1 << 20]);
    for client in clients {
        client.disconnect().expect("it says goodbye");
    }
    server.stop();
    assert!(!folder.socket().exists(), "the socket is taken along");
}

/// Random requests, many at once, checked against a model; ranges in flight never overlap.
fn soak(client: &mut NbdClient, base: u64, bytes: u64, requests: usize, depth: usize, seed: u64) {
    let mut model = vec![0u8; bytes as usize];
    client.write_zeroes(base, bytes as u32).expect("it is zeroed");
    let mut state = seed | 1;
    let mut random = |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    let mut in_flight: Vec<(Cookie, u64, u64, Option<Vec<u8>>)> = Vec::new();
    let mut left = requests;
    while left > 0 || !in_flight.is_empty() {
        if left > 0 && in_flight.len() < depth {
            let sectors = if random(10) == 0 { 600 } else { 20 };
            let length = 512 * (1 + random(sectors));
            let at = random((bytes - length) / 512 + 1) * 512;
            let overlaps = |&(_, start, end, _): &(Cookie, u64, u64, _)| at < end && start < at + length;
            if !in_flight.iter().any(overlaps) {
                left -= 1;
                let range = at as usize..(at + length) as usize;
                let (offset, length32) = (base + at, length as u32);
                let (cookie, expected) = match random(8) {
                    0..3 => (
                        client.submit(Operation::Read { offset, length: length32 }),
                        Some(model[range].to_vec()),
                    ),
                    3..7 => {
                        let data = pattern(random(u64::MAX), length as usize);
                        model[range].copy_from_slice(&data);
                        (
                            client.submit(Operation::Write { offset, data: &data, fua: length % 2048 == 0 }),
                            None,
                        )
                    }
                    _ => {
                        model[range].fill(0);
                        (client.submit(Operation::Trim { offset, length: length32, fua: false }), None)
                    }
                };
                in_flight.push((cookie.expect("it is sent"), at, at + length, expected));
                continue;
            }
        }
        let completed = client.poll(Some(Duration::from_secs(30))).expect("the connection lives");
        let completed = completed.expect("something completes");
        assert_eq!(completed.result, Ok(()));
        let place = in_flight.iter().position(|(cookie, ..)| *cookie == completed.cookie);
        let (_, at, _, expected) = in_flight.swap_remove(place.expect("it was in flight"));
        if let Some(expected) = expected {
            assert!(completed.data == expected, "a read at {at} returned something else");
        }
    }
    for at in (0..bytes).step_by(1 << 20) {
        let length = (bytes - at).min(1 << 20);
        let read = client.read(base + at, length as u32).expect("it is read");
        assert!(read == model[at as usize..(at + length) as usize]);
    }
}

#[test]
fn many_clients_with_many_requests_read_what_they_wrote() {
    let folder = Folder::new();
    for (pages, apart, structured_replies) in [(4096, false, true), (40, true, false), (36, false, true)] {
        let server = Server::start(&Setup { pages, apart, ..folder.setup() });
        let options = ClientOptions { structured_replies, ..ClientOptions::default() };
        std::thread::scope(|scope| {
            for index in 0..4u64 {
                let uri = NbdUri::unix(folder.socket(), "disk");
                scope.spawn(move || {
                    let mut client = NbdClient::connect(&uri, options).expect("the front serves");
                    soak(&mut client, index << 22, 4 << 20, 400, 1 << (2 * index), index + 1);
                    client.disconnect().expect("it says goodbye");
                });
            }
        });
        server.stop();
    }
}

#[test]
fn a_request_may_come_byte_by_byte() {
    let folder = Folder::new();
    let server = Server::start(&folder.setup());
    let mut stream = UnixStream::connect(folder.socket()).expect("the front listens");
    let mut bytes = ClientFlags { fixed_newstyle: true, no_zeroes: true }.encode().to_vec();
    let go = info_request(b"disk", &[info::BLOCK_SIZE]);
    bytes.extend(OptionHeader { option: option::GO, length: go.len() as u32 }.encode());
    bytes.extend(go);
    let put = |bytes: &mut Vec<u8>, command, cookie, length| {
        bytes.extend(Request { flags: 0, command, cookie: Cookie(cookie), offset: 512, length }.encode());
    };
    put(&mut bytes, command::WRITE, 1, 1024);
    bytes.extend(pattern(1, 1024));
    put(&mut bytes, command::READ, 2, 1024);
    for byte in bytes {
        stream.write_all(&[byte]).expect("the front reads");
    }
    let mut answer = vec![0; GREETING_BYTES + 32 + 34 + 20 + 16 + 16 + 1024];
    stream.read_exact(&mut answer).expect("the front answers");
    let tail = &answer[answer.len() - 1056..];
    let written = ReplyHeader::Simple { cookie: Cookie(1), error: None };
    assert_eq!(ReplyHeader::parse(tail), Ok(Some((written, 16))));
    assert_eq!(&tail[32..], pattern(1, 1024));
    drop(stream);
    server.stop();
}

#[test]
fn hundreds_of_connections_are_served_and_one_more_is_not() {
    let folder = Folder::new();
    let server = Server::start(&Setup { connections_max: 300, ..folder.setup() });
    let mut clients: Vec<_> = (0..300).map(|_| client(&folder.socket())).collect();
    let refused = NbdClient::connect(&NbdUri::unix(folder.socket(), "disk"), ClientOptions::default());
    assert!(matches!(refused, Err(ClientError::Closed(0))), "{refused:?}");
    for round in 0..3 {
        for (index, client) in clients.iter_mut().enumerate() {
            let data = pattern(index as u64 + round, 4096);
            client
                .submit(Operation::Write { offset: index as u64 * 4096, data: &data, fua: false })
                .expect("sent");
        }
        for client in &mut clients {
            let completed = client.poll(None).expect("the connection lives").expect("it completes");
            assert_eq!(completed.result, Ok(()));
        }
        for (index, client) in clients.iter_mut().enumerate() {
            let read = client.read(index as u64 * 4096, 4096).expect("it is read");
            assert!(read == pattern(index as u64 + round, 4096));
        }
    }
    drop(clients.split_off(150));
    eventually("a place becoming free", || {
        NbdClient::connect(&NbdUri::unix(folder.socket(), "disk"), ClientOptions::default()).is_ok()
    });
    drop(clients);
    server.stop();
}

#[test]
fn a_client_that_dies_with_requests_in_flight_leaves_nothing() {
    let folder = Folder::new();
    let server = Server::start(&Setup { hold: Nanos::from_millis(20), ..folder.setup() });
    let mut living = client(&folder.socket());
    for round in 0..20u64 {
        let mut dying = client(&folder.socket());
        for index in 0..100 {
            let offset = index * 8192;
            match (index + round) % 4 {
                0 => dying.submit(Operation::Read { offset, length: 65536 }),
                1 => dying.submit(Operation::Write { offset, data: &[7; 4096], fua: true }),
                2 => dying.submit(Operation::Trim { offset, length: 1 << 20, fua: false }),
                _ => dying.submit(Operation::Flush),
            }
            .expect("it is sent");
        }
        if round % 2 == 0 {
            // In the middle of a payload, too.
            let request =
                Request { flags: 0, command: command::WRITE, cookie: Cookie(9), offset: 0, length: 1 << 20 };
            let mut half = UnixStream::connect(folder.socket()).expect("the front listens");
            let mut hello = ClientFlags { fixed_newstyle: true, no_zeroes: true }.encode().to_vec();
            hello.extend(OptionHeader { option: option::EXPORT_NAME, length: 4 }.encode());
            hello.extend(b"disk");
            hello.extend(request.encode());
            hello.extend([1; 200_000]);
            half.write_all(&hello).expect("the front reads");
        }
        drop(dying);
        living.write(0, &[1; 4096], false).expect("others are served");
    }
    living.disconnect().expect("it says goodbye");
    // The front itself asserts that every ticket and page came back when its last connection is over.
    server.stop();
}

#[test]
fn a_client_that_reads_no_replies_harms_nobody() {
    let folder = Folder::new();
    let server = Server::start(&Setup { pages: 64, ..folder.setup() });
    let mut deaf: Vec<_> = (0..8).map(|_| client(&folder.socket())).collect();
    for client in &mut deaf {
        for _ in 0..200 {
            client.submit(Operation::Read { offset: 0, length: 65536 }).expect("it is sent");
        }
    }
    let mut hearing = client(&folder.socket());
    soak(&mut hearing, 0, 4 << 20, 300, 8, 5);
    for _ in 0..200 {
        let completed = deaf[0].poll(Some(Duration::from_secs(30))).expect("it lives").expect("it completes");
        assert_eq!((completed.result, completed.data.len()), (Ok(()), 65536));
    }
    drop(deaf);
    hearing.disconnect().expect("it says goodbye");
    server.stop();
}

#[test]
fn garbage_ends_its_own_connection_only() {
    let folder = Folder::new();
    let server = Server::start(&folder.setup());
    let mut living = client(&folder.socket());
    let hello = {
        let mut bytes = ClientFlags { fixed_newstyle: true, no_zeroes: true }.encode().to_vec();
        bytes.extend(OptionHeader { option: option::EXPORT_NAME, length: 4 }.encode());
        bytes.extend(b"disk");
        bytes
    };
    for garbage in [
        b"GET / HTTP/1.1\r\nHost: nowhere\r\n\r\n".to_vec(),
        vec![0xff; 4],
        vec![0; 100_000],
        [hello.clone(), vec![0xab; 100_000]].concat(),
        [
            hello,
            Request { flags: 0, command: 1, cookie: Cookie(1), offset: 0, length: u32::MAX }
                .encode()
                .to_vec(),
        ]
        .concat(),
    ] {
        let mut stream = UnixStream::connect(folder.socket()).expect("the front listens");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
        // It may hang up while we still write.
        let _ = stream.write_all(&garbage);
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}"),
        }
        living.write(0, &pattern(1, 4096), false).expect("others are served");
    }
    living.disconnect().expect("it says goodbye");
    server.stop();
}

#[test]
fn errors_reach_the_client_with_words() {
    let folder = Folder::new();
    let server = Server::start(&Setup { failure: Some(HostError::Deadline), ..folder.setup() });
    let mut client = client(&folder.socket());
    let error = client.write(0, &[1; 4096], false).expect_err("the group fails").to_string();
    assert_eq!(
        error,
        "write failed: input/output error: the sites did not agree before the deadline; see lockstep status"
    );
    let error = client.read(1 << 40, 512).expect_err("beyond the end").to_string();
    assert_eq!(error, "read failed: invalid argument: beyond the end of the volume");
    client.disconnect().expect("it says goodbye");
    let missing = NbdClient::connect(&NbdUri::unix(folder.socket(), "other"), ClientOptions::default());
    let message = missing.expect_err("no such export").to_string();
    assert!(message.contains("no volume of that name"), "{message}");
    server.stop();
}

#[test]
fn a_stop_answers_what_is_in_flight() {
    let folder = Folder::new();
    let server = Server::start(&Setup { hold: Nanos::from_millis(200), ..folder.setup() });
    let mut client = client(&folder.socket());
    let mut silent = UnixStream::connect(folder.socket()).expect("the front listens");
    client.submit(Operation::Write { offset: 0, data: &[1; 8192], fua: false }).expect("it is sent");
    client.submit(Operation::Flush).expect("it is sent");
    eventually("both reaching the group", || server.taken.load(Ordering::Relaxed) == 2);
    let stopping = std::thread::spawn(move || server.stop());
    for _ in 0..2 {
        let completed = client.poll(Some(Duration::from_secs(30))).expect("it lives").expect("it completes");
        assert_eq!(completed.result, Ok(()));
    }
    client.submit(Operation::Flush).ok();
    assert!(client.poll(Some(Duration::from_secs(30))).is_err(), "the connection is closed");
    let mut rest = Vec::new();
    silent.read_to_end(&mut rest).expect("it is closed");
    stopping.join().expect("it stops");
}

#[test]
fn exports_are_listed_and_kept_apart() {
    let folder = Folder::new();
    let exports = vec![("a".into(), 16, false), ("b".into(), 32, false), ("c".into(), 64, true)];
    let server = Server::start(&Setup { exports, ..folder.setup() });
    let address = NbdAddress::Unix(folder.socket());
    assert_eq!(NbdClient::list(&address).expect("it lists"), ["a", "b", "c"]);
    let connect = |name: &str| {
        let uri = NbdUri::unix(folder.socket(), name);
        NbdClient::connect(&uri, ClientOptions { allocation: true, ..ClientOptions::default() })
    };
    let (mut a, mut b, mut c) =
        (connect("a").expect("a"), connect("b").expect("b"), connect("c").expect("c"));
    assert_eq!((a.size(), b.size(), c.size()), (16 * 4096, 32 * 4096, 64 * 4096));
    a.write(0, &[0xaa; 4096], false).expect("it is written");
    b.write(0, &[0xbb; 4096], false).expect("it is written");
    assert!(a.read(0, 4096).expect("it is read") == [0xaa; 4096]);
    assert!(b.read(0, 4096).expect("it is read") == [0xbb; 4096]);
    assert!(c.flags() & flags::READ_ONLY != 0);
    let refused = c.write(0, &[1; 512], false);
    assert!(matches!(refused, Err(ClientError::Failed { error: NbdError::Perm, .. })), "{refused:?}");
    let status =
        c.call(Operation::BlockStatus { offset: 0, length: 64 * 4096, one: false }).expect("a status");
    assert_eq!(status.extents, [(64 * 4096, 0)], "nothing is known, so all may be data");
    drop((a, b, c));
    server.stop();
}
