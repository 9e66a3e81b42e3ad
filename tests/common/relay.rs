//! A UDP relay between two sites, on a thread of its own, that behaves like a bad network: seeded loss, delay, jitter
//! (which reorders) and cuts, each way apart.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use quinn::udp::{RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Datagrams under way; what comes on top is dropped, as a router would.
const QUEUE_MAX: usize = 65_536;

/// Most bytes that the kernel receives as one batch of datagrams.
const BATCH_BYTES_MAX: usize = 65_536;

/// How late a delay may end, in nanoseconds: by default the kernel wakes a thread up to 50 µs late, each way.
const TIMER_SLACK_NS: u64 = 1_000;

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
        let address = front.local_addr()?;
        let shared = Arc::new(Shared::default());
        let mut worker = Worker {
            sides: [Side::new(front)?, Side::new(back)?],
            listener,
            dialer: None,
            random: Random(seed),
            queue: BinaryHeap::new(),
            datagrams: 0,
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

/// Datagrams under way that came together: when they are due, their place among equals, which way they go.
type Due = (Instant, u64, usize);

/// What they hold, and how long each is but the last.
struct Batch {
    due: Reverse<Due>,
    bytes: Vec<u8>,
    stride: usize,
}

impl PartialEq for Batch {
    fn eq(&self, other: &Batch) -> bool {
        self.due == other.due
    }
}

impl Eq for Batch {}

impl PartialOrd for Batch {
    fn partial_cmp(&self, other: &Batch) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Batch {
    fn cmp(&self, other: &Batch) -> std::cmp::Ordering {
        self.due.cmp(&other.due)
    }
}

/// A socket, and what the kernel does with batches on it.
struct Side {
    socket: UdpSocket,
    state: UdpSocketState,
}

impl Side {
    fn new(socket: UdpSocket) -> io::Result<Side> {
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        Ok(Side { socket, state })
    }
}

struct Worker {
    /// The dialer's side and the listener's. What is received on one is sent by the other.
    sides: [Side; 2],
    listener: SocketAddr,
    dialer: Option<SocketAddr>,
    random: Random,
    queue: BinaryHeap<Batch>,
    datagrams: usize,
    sequence: u64,
    shared: Arc<Shared>,
}

impl Worker {
    fn run(&mut self) {
        // Without it delays are a little longer than they are said to be.
        let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(TIMER_SLACK_NS));
        while !self.shared.ended.load(Relaxed) {
            self.receive(0);
            self.receive(1);
            self.send();
            self.sleep();
        }
    }

    fn receive(&mut self, way: usize) {
        let mut bytes = [0; BATCH_BYTES_MAX];
        let mut meta = [RecvMeta::default()];
        loop {
            let side = &self.sides[way];
            let received = side.state.recv(
                UdpSockRef::from(&side.socket),
                &mut [IoSliceMut::new(&mut bytes)],
                &mut meta,
            );
            // Errors are unreachable ports, which a network would not report either.
            if received.is_err() {
                return;
            }
            let RecvMeta { addr, len, stride, .. } = meta[0];
            if way == 0 {
                self.dialer = Some(addr);
            }
            self.take(way, &bytes[..len], stride);
        }
    }

    /// What came together goes on together, but for those that are lost; with jitter each for itself.
    fn take(&mut self, way: usize, bytes: &[u8], stride: usize) {
        let shared = self.shared.clone();
        let conditions = &shared.ways[way];
        let jitter_us = conditions.jitter_us.load(Relaxed);
        let mut batch = Vec::new();
        for datagram in bytes.chunks(stride.max(1)) {
            let lost = self.random.below(1_000_000) < u64::from(conditions.lost_ppm.load(Relaxed));
            if lost || conditions.cut.load(Relaxed) || self.datagrams >= QUEUE_MAX {
                conditions.dropped.fetch_add(1, Relaxed);
                self.queue(way, std::mem::take(&mut batch), stride, 0);
                continue;
            }
            batch.extend_from_slice(datagram);
            if jitter_us > 0 {
                let jitter = self.random.below(jitter_us + 1);
                self.queue(way, std::mem::take(&mut batch), stride, jitter);
            }
        }
        self.queue(way, batch, stride, 0);
    }

    fn queue(&mut self, way: usize, bytes: Vec<u8>, stride: usize, jitter_us: u64) {
        if bytes.is_empty() {
            return;
        }
        let delay = Duration::from_micros(self.shared.ways[way].delay_us.load(Relaxed) + jitter_us);
        self.sequence += 1;
        self.datagrams += bytes.len().div_ceil(stride);
        self.queue.push(Batch { due: Reverse((Instant::now() + delay, self.sequence, way)), bytes, stride });
    }

    fn send(&mut self) {
        while self.queue.peek().is_some_and(|batch| batch.due.0.0 <= Instant::now())
            && let Some(Batch { due: Reverse((_, _, way)), bytes, stride }) = self.queue.pop()
        {
            let datagrams = bytes.len().div_ceil(stride);
            self.datagrams -= datagrams;
            let to = if way == 0 { Some(self.listener) } else { self.dialer };
            let Some(destination) = to else { continue };
            let segment_size = (datagrams > 1).then_some(stride);
            let transmit = Transmit { destination, ecn: None, contents: &bytes, segment_size, src_ip: None };
            let side = &self.sides[1 - way];
            let sent = side.state.try_send(UdpSockRef::from(&side.socket), &transmit);
            let conditions = &self.shared.ways[way];
            let count = if sent.is_ok() { &conditions.forwarded } else { &conditions.dropped };
            count.fetch_add(datagrams as u64, Relaxed);
        }
    }

    fn sleep(&self) {
        let due = self.queue.peek().map(|batch| batch.due.0.0.saturating_duration_since(Instant::now()));
        let wait = due.unwrap_or(SLEEP_MAX).min(SLEEP_MAX);
        let wait = Timespec { tv_sec: 0, tv_nsec: wait.as_nanos() as _ };
        let [front, back] = &self.sides;
        let _ = poll(
            &mut [PollFd::new(&front.socket, PollFlags::IN), PollFd::new(&back.socket, PollFlags::IN)],
            Some(&wait),
        );
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
