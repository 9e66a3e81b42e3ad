use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;

use super::*;
use crate::base::{BLOCK_BYTES, Memory, PageId};
use crate::io::arena::ArenaView;
use crate::reactor::mesh;

struct Bench {
    ring: Ring,
    view: ArenaView,
    port: Port,
}

const ARENA: ArenaId = ArenaId(0);

fn bench(allowed: Features) -> Bench {
    let arena = Arena::new(600).unwrap();
    let port = mesh(1).unwrap().remove(0);
    let config =
        RingConfig { operations: 8, files: 4, long_vectors: 1, arenas: vec![arena.clone()], allowed };
    let ring = Ring::new(config, Clock::new(), port.clone()).unwrap();
    Bench { ring, view: arena.view(), port }
}

impl Bench {
    /// The next completion, or none after ten seconds.
    fn wait(&mut self) -> Option<Completion> {
        let deadline = self.ring.now().plus(Nanos::from_millis(10_000));
        while self.ring.now() < deadline {
            self.ring.poll();
            if let Some((_, completion)) = self.ring.next_completion() {
                return Some(completion);
            }
            self.ring.park(Some(deadline));
        }
        None
    }

    fn fill(&mut self, page: u32, byte: u8) -> PageId {
        let page = PageId(page);
        self.view.bytes_mut(page).fill(byte);
        self.view.seal(page);
        page
    }
}

fn direct_file() -> OwnedFd {
    let file = tempfile::NamedTempFile::new().unwrap();
    let opened =
        std::fs::OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(file.path());
    opened.unwrap().into()
}

/// With everything the kernel has, and with nothing: a fallback that no test takes does not work.
fn with_and_without(test: impl Fn(Bench)) {
    test(bench(Features::ALL));
    test(bench(Features::NONE));
    test(bench(Features { deferred_task_run: false, registered_vectors: false, ..Features::ALL }));
}

#[test]
fn nothing_is_in_use_that_was_not_allowed() {
    assert_eq!(bench(Features::NONE).ring.features(), Features::NONE);
}

#[test]
fn pages_go_to_a_file_and_come_back() {
    with_and_without(|mut bench| {
        let file = bench.ring.add_file(direct_file()).unwrap();
        // One run, two that cannot be merged with it, and the page of zeros.
        let pages = [bench.fill(1, 1), bench.fill(2, 2), PageId::ZERO, bench.fill(9, 9), bench.fill(8, 8)];
        bench.ring.writev_pages(77, file, ARENA, 4096, pages.into_iter());
        let done = bench.wait().unwrap();
        assert_eq!((done.token, done.result), (77, 5 * BLOCK_BYTES as i32));

        bench.ring.readv_pages(78, file, ARENA, 0, [100, 101, 103, 102, 104, 105].map(PageId).into_iter());
        let done = bench.wait().unwrap();
        assert_eq!((done.token, done.result), (78, 6 * BLOCK_BYTES as i32));
        let read = [100, 101, 103, 102, 104, 105].map(|page| bench.view.bytes(PageId(page))[4095]);
        assert_eq!(read, [0, 1, 2, 0, 9, 8]);

        bench.ring.readv_pages(79, file, ARENA, 2 * 4096, [PageId(200)].into_iter());
        assert_eq!(bench.wait().unwrap().result, 4096);
        assert_eq!(bench.view.bytes(PageId(200)), &[2; BLOCK_BYTES]);
        bench.ring.fsync(80, file, true);
        assert_eq!(bench.wait().unwrap().result, 0);
    });
}

#[test]
fn a_long_write_takes_a_long_row_and_gives_it_back() {
    with_and_without(|mut bench| {
        let file = bench.ring.add_file(direct_file()).unwrap();
        let pages: Vec<PageId> = (0..257).map(|index| PageId(1 + 2 * index)).collect();
        for (index, page) in pages.iter().enumerate() {
            bench.fill(page.0, index as u8);
        }
        for round in 0..3 {
            bench.ring.writev_pages(round, file, ARENA, 0, pages.iter().copied());
            assert_eq!(bench.wait().unwrap().result, 257 * BLOCK_BYTES as i32);
        }
        bench.ring.readv_pages(9, file, ARENA, 256 * 4096, [PageId(2)].into_iter());
        assert_eq!(bench.wait().unwrap().result, 4096);
        assert_eq!(bench.view.bytes(PageId(2))[0], 0, "page 256 was filled with 256 % 256");
        bench.ring.readv_pages(9, file, ARENA, 255 * 4096, [PageId(4)].into_iter());
        assert_eq!(bench.wait().unwrap().result, 4096);
        assert_eq!(bench.view.bytes(PageId(4))[0], 255);
    });
}

#[test]
fn buffers_travel_and_come_back() {
    with_and_without(|mut bench| {
        let (here, mut there) = UnixStream::pair().unwrap();
        let file = bench.ring.add_file(here.into()).unwrap();
        bench.ring.recv(1, file, OwnedBuf::new(100));
        there.write_all(b"hello").unwrap();
        let done = bench.wait().unwrap();
        assert_eq!((done.token, done.result), (1, 5));
        let buffer = bench.ring.take_buffer().unwrap();
        assert_eq!(buffer.filled(), b"hello");

        bench.ring.send(2, file, buffer);
        assert_eq!(bench.wait().unwrap().result, 5);
        let mut buffer = bench.ring.take_buffer().unwrap();
        assert_eq!(buffer.filled(), b"");
        let mut got = [0; 5];
        there.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"hello");

        bench.fill(3, b'p');
        buffer.append(b"abcdef");
        let page = Segment::Page { page: PageId(3), start: 4000, bytes: 96 };
        let pieces =
            [Segment::Buffer { start: 0, bytes: 2 }, page, Segment::Buffer { start: 4, bytes: 2 }, page];
        bench.ring.send_gathered(3, file, ARENA, buffer, pieces.into_iter());
        assert_eq!(bench.wait().unwrap().result, 196);
        assert_eq!(bench.ring.take_buffer().unwrap().filled(), b"abcdef");
        let mut got = [0; 196];
        there.read_exact(&mut got).unwrap();
        assert_eq!(got.as_slice(), [b"ab".as_slice(), &[b'p'; 96], b"ef", &[b'p'; 96]].concat());
        bench.view.reopen(PageId(3));

        let pieces = [(PageId(5), 0, BLOCK_BYTES), (PageId(6), 10, 20)];
        bench.ring.recv_pages(4, file, ARENA, pieces.into_iter());
        there.write_all(&[7; 1000]).unwrap();
        there.write_all(&[8; 3116]).unwrap();
        assert_eq!(bench.wait().unwrap().result, 4116);
        assert_eq!(bench.view.bytes(PageId(5))[999..1001], [7, 8]);
        assert_eq!(bench.view.bytes(PageId(6))[8..32], [[0; 2].as_slice(), &[8; 20], &[0; 2]].concat());

        drop(there);
        bench.ring.recv(5, file, OwnedBuf::new(1));
        assert_eq!(bench.wait().unwrap().result, 0);
    });
}

#[test]
fn connections_are_accepted_one_after_another() {
    with_and_without(|mut bench| {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let file = bench.ring.add_file(listener.into()).unwrap();
        bench.ring.accept_multishot(6, file);
        for _ in 0..3 {
            let mut client = std::net::TcpStream::connect(address).unwrap();
            let done = bench.wait().unwrap();
            assert_eq!(done.token, 6);
            let mut accepted = std::net::TcpStream::from(bench.ring.take_fd().unwrap());
            if !done.more() {
                bench.ring.accept_multishot(6, file);
            }
            client.write_all(b"x").unwrap();
            accepted.read_exact(&mut [0]).unwrap();
        }
        bench.ring.remove_file(file);
        assert_eq!(bench.wait().unwrap().result, -libc::ECANCELED);
        assert_eq!(bench.ring.room(), 8);
    });
}

#[test]
fn readiness_is_told_each_time() {
    with_and_without(|mut bench| {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        let file = bench.ring.add_file(socket.try_clone().unwrap().into()).unwrap();
        bench.ring.poll_multishot(1, file);
        let sender = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for _ in 0..3 {
            sender.send_to(b"x", socket.local_addr().unwrap()).unwrap();
            let done = bench.wait().unwrap();
            assert_eq!((done.token, done.result), (1, libc::POLLIN.into()));
            while socket.recv(&mut [0; 10]).is_ok() {}
            if !done.more() {
                bench.ring.poll_multishot(1, file);
            }
        }
        bench.ring.cancel(1);
        assert_eq!(bench.wait().unwrap().result, -libc::ECANCELED);
    });
}

#[test]
fn a_removed_file_is_closed_with_its_last_operation() {
    with_and_without(|mut bench| {
        let (here, mut there) = UnixStream::pair().unwrap();
        let file = bench.ring.add_file(here.into()).unwrap();
        bench.ring.recv(1, file, OwnedBuf::new(10));
        bench.ring.poll();
        bench.ring.remove_file(file);
        let done = bench.wait().unwrap();
        assert_eq!(done.result, -libc::ECANCELED);
        assert!(bench.ring.take_buffer().is_some());
        assert_eq!(there.read(&mut [0]).unwrap(), 0, "the socket was closed");
        // The place in the table is free again, under another name.
        let files: Vec<_> = (0..4).map(|_| bench.ring.add_file(direct_file()).unwrap()).collect();
        assert!(!files.contains(&file));
        assert!(bench.ring.add_file(direct_file()).is_none());
    });
}

#[test]
fn a_ring_with_operations_in_flight_ends() {
    with_and_without(|mut bench| {
        let (here, _there) = UnixStream::pair().unwrap();
        let file = bench.ring.add_file(here.into()).unwrap();
        bench.ring.recv(1, file, OwnedBuf::new(10));
        bench.ring.recv_pages(2, file, ARENA, [(PageId(1), 0, 10)].into_iter());
        bench.ring.poll();
        drop(bench.ring);
        // The page came home.
        bench.view.bytes_mut(PageId(1));
    });
}

#[test]
fn a_parked_ring_hears_the_doorbell() {
    with_and_without(|mut bench| {
        let port = bench.port.clone();
        let far = bench.ring.now().plus(Nanos::from_millis(60_000));
        for _ in 0..3 {
            port.doorbell().announce();
            let woken = std::thread::scope(|scope| {
                scope.spawn(|| port.doorbell().wake());
                bench.ring.park(Some(far));
                bench.ring.now()
            });
            assert!(woken < far);
            assert!(bench.ring.next_completion().is_none(), "the doorbell is nobody's completion");
        }
        let soon = bench.ring.now().plus(Nanos::from_millis(1));
        bench.ring.park(Some(soon));
        assert!(bench.ring.now() >= soon, "nothing rang");
    });
}

#[test]
#[should_panic(expected = "more than 8 operations")]
fn operations_are_bounded() {
    let mut bench = bench(Features::ALL);
    let file = bench.ring.add_file(direct_file()).unwrap();
    (0..9).for_each(|token| bench.ring.fsync(token, file, true));
}

#[test]
#[should_panic(expected = "was removed")]
fn a_removed_file_takes_no_operations() {
    let mut bench = bench(Features::ALL);
    let file = bench.ring.add_file(direct_file()).unwrap();
    bench.ring.remove_file(file);
    bench.ring.fsync(1, file, true);
}

#[test]
#[should_panic(expected = "looked at while a read fills it")]
fn a_page_being_filled_is_not_looked_at() {
    let mut bench = bench(Features::ALL);
    let file = bench.ring.add_file(direct_file()).unwrap();
    bench.ring.readv_pages(1, file, ARENA, 0, [PageId(1)].into_iter());
    bench.view.bytes(PageId(1));
}

#[test]
#[should_panic(expected = "is reopened under I/O")]
fn a_page_being_written_is_not_reopened() {
    let mut bench = bench(Features::ALL);
    let file = bench.ring.add_file(direct_file()).unwrap();
    let page = bench.fill(1, 1);
    bench.ring.writev_pages(1, file, ARENA, 0, [page].into_iter());
    bench.view.reopen(page);
}
