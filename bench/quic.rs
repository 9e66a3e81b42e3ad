//! What the link costs, without the rest: two sites on loopback, each a spinning thread. First QUIC alone: 4 KiB out and
//! 16 bytes back, one at a time, and a stream one way. Then the link on its reactor: updates out, each answered by an
//! acknowledgement, at several depths.
//!
//! `cargo bench --bench quic -- [SECONDS]`

use std::collections::VecDeque;
use std::error::Error;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::*};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use core_affinity::CoreId;
use hdrhistogram::Histogram;
use lockstep::base::*;
use lockstep::core::messages::{Control, FromLink, ToLink, UpdateSource};
use lockstep::core::outbox::{LINK_CLOSES_MAX, Tables};
use lockstep::format::update::{Update, UpdateKind};
use lockstep::io::arena::Arena;
use lockstep::io::quic::connection::{Change, Connector, LinkConfig};
use lockstep::io::quic::identity::{Fingerprints, Identity};
use lockstep::io::quic::link::{Link, LinkActor, LinkEdges};
use lockstep::io::quic::transport::{Congestion, PayloadSize};
use lockstep::io::ring::{Ring, RingConfig};
use lockstep::reactor::{
    Actor, Clock, Completion, Driver, IdlePolicy, Loads, Port, Reactor, Receiver, Sender, edge, mesh,
};

type Failure = Box<dyn Error + Send + Sync>;

const REQUEST_BYTES: usize = 4096;
const REPLY_BYTES: usize = 16;
const WINDOW_BYTES: u32 = 4 << 20;
const WARM_UP: Duration = Duration::from_millis(200);

struct Site {
    connector: Connector,
    epoch: Instant,
    chunks: Vec<Bytes>,
}

impl Site {
    fn new(config: &LinkConfig) -> Result<Site, Failure> {
        Ok(Site { connector: Connector::new(config)?, epoch: Instant::now(), chunks: vec![Bytes::new(); 64] })
    }

    fn now(&self) -> Nanos {
        Nanos(self.epoch.elapsed().as_nanos() as u64)
    }

    /// One turn: `act` gets the connection and the bytes that arrived.
    fn turn(&mut self, act: impl FnOnce(&mut Connector, usize)) -> Result<(), Failure> {
        let now = self.now();
        self.connector.set_readable();
        self.connector.begin(now);
        if let Some(change @ (Change::Down(_) | Change::Failed(_))) = self.connector.change(now) {
            return Err(format!("{change:?}").into());
        }
        let mut arrived = 0;
        loop {
            let count = self.connector.read(now, &mut self.chunks)?;
            arrived += self.chunks[..count].iter().map(Bytes::len).sum::<usize>();
            if count == 0 {
                break;
            }
        }
        act(&mut self.connector, arrived);
        self.connector.end(self.now());
        Ok(())
    }

    fn connect(&mut self) -> Result<(), Failure> {
        let deadline = Instant::now() + Duration::from_secs(5);
        while !self.connector.is_up() {
            self.turn(|_, _| ())?;
            if Instant::now() > deadline {
                return Err("the sites did not connect".into());
            }
        }
        Ok(())
    }
}

fn configs(payload: PayloadSize) -> Result<(LinkConfig, LinkConfig), Failure> {
    let (a, b) = (Identity::generate("a")?, Identity::generate("b")?);
    let any: SocketAddr = "127.0.0.1:0".parse()?;
    let config = |identity: &Identity, peer: &Identity| LinkConfig {
        local: any,
        dial: None,
        identity: identity.clone(),
        peer: Fingerprints::one(peer.fingerprint()),
        payload,
        congestion: Congestion::Dedicated,
        window_bytes: WINDOW_BYTES,
    };
    Ok((config(&a, &b), config(&b, &a)))
}

/// Runs `client` against a listener that calls `serve` each turn with the bytes that arrived.
fn pair(
    cores: &[CoreId],
    payload: PayloadSize,
    mut serve: impl FnMut(&mut Connector, usize) + Send,
    client: impl FnOnce(&mut Site) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let (mut dials, listens) = configs(payload)?;
    let mut listener = Site::new(&listens)?;
    dials.dial = Some(listener.connector.local_address()?);
    let mut dialer = Site::new(&dials)?;
    let done = AtomicBool::new(false);
    let done = &done;
    thread::scope(|scope| {
        let server = scope.spawn(move || {
            if let [_, second, ..] = cores {
                core_affinity::set_for_current(*second);
            }
            while !done.load(Relaxed) {
                listener.turn(&mut serve)?;
            }
            Ok(())
        });
        let result = dialer.connect().and_then(|()| client(&mut dialer));
        done.store(true, Relaxed);
        server.join().map_err(|_| "the listener panicked")?.and(result)
    })
}

fn round_trips(cores: &[CoreId], payload: PayloadSize, seconds: Duration) -> Result<Histogram<u64>, Failure> {
    let mut owed = 0;
    let mut histogram = Histogram::new(3)?;
    let serve = move |connector: &mut Connector, arrived: usize| {
        owed += arrived;
        while owed >= REQUEST_BYTES {
            owed -= REQUEST_BYTES;
            connector.write(&mut [Bytes::from_static(&[1; REPLY_BYTES])]);
        }
    };
    pair(cores, payload, serve, |site| {
        let began = Instant::now();
        while began.elapsed() < WARM_UP + seconds {
            let sent = Instant::now();
            site.turn(|connector, _| {
                connector.write(&mut [Bytes::copy_from_slice(&[2; REQUEST_BYTES])]);
            })?;
            let mut missing = REPLY_BYTES;
            while missing > 0 {
                site.turn(|_, arrived| missing -= arrived)?;
            }
            if began.elapsed() > WARM_UP {
                histogram.record(sent.elapsed().as_nanos() as u64)?;
            }
        }
        Ok(())
    })?;
    Ok(histogram)
}

/// Bytes a second, one way, and datagrams lost.
fn stream(cores: &[CoreId], payload: PayloadSize, seconds: Duration) -> Result<(f64, u64), Failure> {
    let mut rate = 0.0;
    let mut lost = 0;
    pair(
        cores,
        payload,
        |_, _| (),
        |site| {
            let block = Bytes::from(vec![3; 64 << 10]);
            let (began, mut bytes) = (Instant::now(), 0);
            while began.elapsed() < seconds {
                site.turn(|connector, _| {
                    let mut rest = [block.clone()];
                    connector.write(&mut rest);
                    bytes += block.len() - rest[0].len();
                })?;
            }
            rate = bytes as f64 / began.elapsed().as_secs_f64();
            lost = site.connector.statistics().map_or(0, |statistics| statistics.path.lost_packets);
            Ok(())
        },
    )?;
    Ok((rate, lost))
}

/// A group that does nothing but send updates and acknowledge those it gets.
struct Group {
    to_link: Sender<ToLink>,
    from_link: Receiver<FromLink>,
    pages: Sender<PageId>,
    tables: Arc<Tables>,
    /// Updates in flight, at the sending site.
    depth: usize,
    /// Blocks of each, all of them these pages.
    payload: Vec<PageId>,
    sum: u32,
    next: UpdateNumber,
    sent: VecDeque<(UpdateNumber, Nanos)>,
    began: Option<Nanos>,
    seconds: Duration,
    port: Port,
    report: Option<mpsc::Sender<Histogram<u64>>>,
    histogram: Histogram<u64>,
    stopping: bool,
}

impl Group {
    fn send(&mut self, now: Nanos) {
        let number = self.next;
        self.next = number.next();
        let slot = SlotId((number.0 % WINDOW_UPDATES_MAX as u64) as u32);
        for (index, page) in self.payload.iter().enumerate() {
            self.tables.window.set(slot, index, *page, BlockSum::ZEROS);
        }
        let update = Update {
            number,
            generation: Generation(1 << 16),
            lba: Lba(0),
            count: self.payload.len() as u32,
            sum: self.sum,
            volume: VolumeId(0),
            kind: UpdateKind::Write,
            ..Update::EMPTY
        };
        let source = UpdateSource::Window;
        self.to_link.push(ToLink::Update {
            update,
            settled: UpdateNumber::NONE,
            slot: slot.0,
            source,
            with_old: false,
        });
        self.sent.push_back((number, now));
    }

    fn take(&mut self, now: Nanos, message: FromLink) {
        match message {
            FromLink::Connected { connection } => {
                self.to_link.push(ToLink::Begin { connection });
                if self.depth > 0 {
                    self.began = Some(now);
                    (0..self.depth).for_each(|_| self.send(now));
                }
            }
            FromLink::Update { update, slot, .. } => {
                for index in 0..update.payload_blocks() {
                    self.pages.push(self.tables.inbound.page(slot, index));
                }
                let received = update.number;
                let ack = Control::Ack {
                    received,
                    journaled: received,
                    durable: received,
                    applied: received,
                    journal_ns: 0,
                    journal_free_blocks: u32::MAX,
                    heard: 0,
                };
                self.to_link.push(ToLink::Control(ack));
            }
            FromLink::Control(Control::Ack { received, .. }) => self.acknowledged(now, received),
            _ => (),
        }
    }

    fn acknowledged(&mut self, now: Nanos, received: UpdateNumber) {
        let Some(began) = self.began else { return };
        let elapsed = Duration::from_nanos(now.since(began).0);
        while let Some((number, at)) = self.sent.front()
            && *number <= received
        {
            if elapsed > WARM_UP {
                self.histogram.saturating_record(now.since(*at).0);
            }
            self.sent.pop_front();
            self.send(now);
        }
        if elapsed > WARM_UP + self.seconds
            && let Some(report) = self.report.take()
        {
            // The receiver waits for exactly this.
            let _ = report.send(self.histogram.clone());
            self.port.request_stop();
        }
    }
}

impl Actor<Ring> for Group {
    fn name(&self) -> &'static str {
        "group"
    }

    fn turn(&mut self, _: Nanos, ring: &mut Ring) -> bool {
        let mut worked = false;
        for _ in 0..TURN_MESSAGES_MAX {
            let Some(message) = self.from_link.pop() else { break };
            let now = ring.now();
            self.take(now, message);
            worked = true;
        }
        worked
    }

    fn complete(&mut self, _: Nanos, _: &mut Ring, _: Completion) {}

    fn ready(&self) -> bool {
        !self.from_link.is_empty()
    }

    fn deadline(&self) -> Option<Nanos> {
        None
    }

    fn stop(&mut self, _: Nanos) {
        self.stopping = true;
    }

    fn stopped(&self) -> bool {
        self.stopping
    }
}

type Reported = (SocketAddr, mpsc::Receiver<Histogram<u64>>, thread::JoinHandle<()>, Port);

/// A site on its own thread: a reactor with a group that keeps `depth` updates of `blocks` in flight (none if zero) and
/// a link.
fn site(
    config: LinkConfig,
    core: Option<CoreId>,
    depth: usize,
    blocks: usize,
    seconds: Duration,
) -> Result<Reported, Failure> {
    let port = mesh(1)?.remove(0);
    let (to_link, from_group) = edge(WINDOW_UPDATES_MAX, &port, &port);
    let (to_group, from_link) = edge(LINK_INBOUND_SLOTS, &port, &port);
    let (mut pages, open_pages) = edge(STAGING_PAGES, &port, &port);
    let arena = Arena::new(STAGING_PAGES as u32 + UPDATE_BLOCKS_MAX as u32 + 1)?;
    let mut view = arena.view();
    let mut all = (1..arena.pages()).map(PageId);
    let payload: Vec<PageId> = all.by_ref().take(blocks).collect();
    payload.iter().for_each(|page| view.bytes_mut(*page).fill(7));
    let sum = sum_of_sums(payload.iter().map(|page| sum_of_block(view.bytes(*page))));
    all.take(STAGING_PAGES).for_each(|page| pages.push(page));
    let tables = Arc::new(Tables::new(1));
    let clock = Clock::new();
    let (_, closes) = edge(LINK_CLOSES_MAX, &port, &port);
    let edges = LinkEdges { from_group, closes, to_group, pages: open_pages };
    let link = Link::new(&config, edges, arena.view(), tables.clone(), clock.clone())?;
    let address = link.local_address()?;
    let (report, reported) = mpsc::channel();
    let group = Group {
        to_link,
        from_link,
        pages,
        tables,
        depth,
        payload,
        sum,
        next: UpdateNumber(1),
        sent: VecDeque::new(),
        began: None,
        seconds,
        port: port.clone(),
        report: Some(report),
        histogram: Histogram::new_with_bounds(1, 10_000_000_000, 3)?,
        stopping: false,
    };
    let of_reactor = port.clone();
    let thread = thread::spawn(move || {
        core.map(core_affinity::set_for_current);
        let ring = Ring::new(RingConfig::new(vec![]), clock, of_reactor.clone());
        let mut ring = ring.expect("the bench needs io_uring");
        let actor = LinkActor::new(link, &mut ring).expect("one file fits");
        let mut reactor = Reactor::new(of_reactor, ring, IdlePolicy::Spin, Arc::new(Loads::default()));
        reactor.add(actor);
        reactor.add(group);
        reactor.run();
    });
    Ok((address, reported, thread, port))
}

fn updates(
    cores: &[CoreId],
    payload: PayloadSize,
    depth: usize,
    blocks: usize,
    seconds: Duration,
) -> Result<Histogram<u64>, Failure> {
    let (mut dials, listens) = configs(payload)?;
    let (address, _, listener, listener_port) = site(listens, cores.get(1).copied(), 0, 0, seconds)?;
    dials.dial = Some(address);
    let (_, reported, dialer, _) = site(dials, cores.first().copied(), depth, blocks, seconds)?;
    let histogram = reported.recv_timeout(seconds * 2 + Duration::from_secs(10))?;
    listener_port.request_stop();
    dialer.join().map_err(|_| "the dialer panicked")?;
    listener.join().map_err(|_| "the listener panicked")?;
    Ok(histogram)
}

fn main() -> Result<(), Failure> {
    let seconds = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(2.0);
    let seconds = Duration::from_secs_f64(seconds);
    // The dialer's core; asked for before, because a pinned thread sees only its own.
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    if let Some(first) = cores.first() {
        core_affinity::set_for_current(*first);
    }
    println!("payload       p50 µs   p90 µs   p99 µs  p99.9 µs   max µs       n/s   stream MB/s   lost");
    for mtu in [1500, 9000, 16_048] {
        let payload = PayloadSize::of_mtu(mtu);
        let trips = round_trips(&cores, payload, seconds)?;
        let at = |quantile| trips.value_at_quantile(quantile) as f64 / 1e3;
        let (rate, lost) = stream(&cores, payload, seconds)?;
        println!(
            "mtu {mtu:<8} {:>7.1}  {:>7.1}  {:>7.1}  {:>8.1}  {:>7.0}  {:>8.0}  {:>12.0}  {lost:>5}",
            at(0.5),
            at(0.9),
            at(0.99),
            at(0.999),
            trips.max() as f64 / 1e3,
            trips.len() as f64 / seconds.as_secs_f64(),
            rate / 1e6,
        );
    }

    println!(
        "\nlink          depth   blocks   p50 µs   p90 µs   p99 µs  p99.9 µs   max µs       n/s     MB/s"
    );
    for mtu in [1500, 9000] {
        for (depth, blocks) in [(1, 1), (8, 1), (32, 1), (128, 1), (32, 32)] {
            let trips = updates(&cores, PayloadSize::of_mtu(mtu), depth, blocks, seconds)?;
            let at = |quantile| trips.value_at_quantile(quantile) as f64 / 1e3;
            let rate = trips.len() as f64 / seconds.as_secs_f64();
            println!(
                "mtu {mtu:<8} {depth:>6}  {blocks:>7}  {:>7.1}  {:>7.1}  {:>7.1}  {:>8.1}  {:>7.0}  {rate:>8.0}  {:>7.0}",
                at(0.5),
                at(0.9),
                at(0.99),
                at(0.999),
                trips.max() as f64 / 1e3,
                rate * (blocks * BLOCK_BYTES) as f64 / 1e6,
            );
        }
    }
    Ok(())
}
