//! A UDP relay between two sites, on a thread of its own, that behaves like a bad network: seeded loss, delay, jitter
//! (which reorders) and cuts, each way apart.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Datagrams under way; what comes on top is dropped, as a router would.
const QUEUE_MAX: usize = 65_536;

/// How long the relay sleeps at most, and so how soon it sees that it is to end.
const SLEEP_MAX: Duration = Duration::from_millis(20);

/// What happens to datagrams that go one way. May be changed at any time.
#[derive(Debug, Default)]
pub struct Way {
    /// Of a million datagrams, how many are dropped.
    pub lost_ppm: AtomicU32,
    pub delay_us: AtomicU64,
    /// Added to the delay, uniformly from zero: more than the spacing of datagrams reorders them.
    pub jitter_us: AtomicU64,
    pub cut: AtomicBool,
    pub forwarded: AtomicU64,
    pub dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct Shared {
    /// From the dialer to the listener, and back.
    ways: [Way; 2],
    ended: AtomicBool,
}

/// Ends with its drop.
pub struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    /// A relay to `listener`, which the dialer finds at [`Relay::address`].
    pub fn start(listener: SocketAddr, seed: u64) -> io::Result<Relay> {
        let any = SocketAddr::new(listener.ip(), 0);
        let (front, back) = (UdpSocket::bind(any)?, UdpSocket::bind(any)?);
        back.connect(listener)?;
        front.set_nonblocking(true)?;
        back.set_nonblocking(true)?;
        let address = front.local_addr()?;
        let shared = Arc::new(Shared::default());
        let mut worker = Worker {
            sockets: [front, back],
            dialer: None,
            random: Random(seed),
            queue: BinaryHeap::new(),
            sequence: 0,
            shared: shared.clone(),
        };
        let thread = std::thread::spawn(move || worker.run());
        Ok(Relay { address, shared, thread: Some(thread) })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn to_listener(&self) -> &Way {
        &self.shared.ways[0]
    }

    pub fn to_dialer(&self) -> &Way {
        &self.shared.ways[1]
    }

    pub fn both(&self) -> &[Way; 2] {
        &self.shared.ways
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.ended.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A datagram under way: when it is due, its place among equals, which way it goes, and what it holds.
type Queued = Reverse<(Instant, u64, usize, Vec<u8>)>;

struct Worker {
    /// The dialer's side and the listener's. What is received on one is sent by the other.
    sockets: [UdpSocket; 2],
    dialer: Option<SocketAddr>,
    random: Random,
    queue: BinaryHeap<Queued>,
    sequence: u64,
    shared: Arc<Shared>,
}

impl Worker {
    fn run(&mut self) {
        while !self.shared.ended.load(Relaxed) {
            self.receive(0);
            self.receive(1);
            self.send();
            self.sleep();
        }
    }

    fn receive(&mut self, way: usize) {
        let mut datagram = [0; 65_536];
        // Errors are unreachable ports, which a network would not report either.
        while let Ok((bytes, from)) = self.sockets[way].recv_from(&mut datagram) {
            if way == 0 {
                self.dialer = Some(from);
            }
            let conditions = &self.shared.ways[way];
            let lost = self.random.below(1_000_000) < u64::from(conditions.lost_ppm.load(Relaxed));
            if lost || conditions.cut.load(Relaxed) || self.queue.len() == QUEUE_MAX {
                conditions.dropped.fetch_add(1, Relaxed);
                continue;
            }
            let jitter = self.random.below(conditions.jitter_us.load(Relaxed) + 1);
            let due = Instant::now() + Duration::from_micros(conditions.delay_us.load(Relaxed) + jitter);
            self.sequence += 1;
            self.queue.push(Reverse((due, self.sequence, way, datagram[..bytes].to_vec())));
        }
    }

    fn send(&mut self) {
        while let Some(Reverse((due, ..))) = self.queue.peek()
            && *due <= Instant::now()
            && let Some(Reverse((_, _, way, datagram))) = self.queue.pop()
        {
            let sent = match (way, self.dialer) {
                (0, _) => self.sockets[1].send(&datagram),
                (_, Some(dialer)) => self.sockets[0].send_to(&datagram, dialer),
                (_, None) => continue,
            };
            let conditions = &self.shared.ways[way];
            let count = if sent.is_ok() { &conditions.forwarded } else { &conditions.dropped };
            count.fetch_add(1, Relaxed);
        }
    }

    fn sleep(&self) {
        let due = self.queue.peek().map(|Reverse((due, ..))| due.saturating_duration_since(Instant::now()));
        let wait = due.unwrap_or(SLEEP_MAX).min(SLEEP_MAX);
        let wait = Timespec { tv_sec: 0, tv_nsec: wait.as_nanos() as _ };
        let [front, back] = &self.sockets;
        let _ = poll(&mut [PollFd::new(front, PollFlags::IN), PollFd::new(back, PollFlags::IN)], Some(&wait));
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }
}
