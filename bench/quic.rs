//! What the link's QUIC costs, without the rest: two sites on loopback, each a spinning thread. Measures 4 KiB out and 16
//! bytes back, one at a time, and a stream one way.
//!
//! `cargo bench --bench quic -- [SECONDS]`

use std::error::Error;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::*};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use core_affinity::CoreId;
use hdrhistogram::Histogram;
use lockstep::base::Nanos;
use lockstep::io::quic::connection::{Change, Connector, LinkConfig};
use lockstep::io::quic::identity::Identity;
use lockstep::io::quic::transport::{Congestion, PayloadSize};

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
    fn new(config: &LinkConfig) -> Result<Site, Box<dyn Error + Send + Sync>> {
        Ok(Site { connector: Connector::new(config)?, epoch: Instant::now(), chunks: vec![Bytes::new(); 64] })
    }

    fn now(&self) -> Nanos {
        Nanos(self.epoch.elapsed().as_nanos() as u64)
    }

    /// One turn: `act` gets the connection and the bytes that arrived.
    fn turn(&mut self, act: impl FnOnce(&mut Connector, usize)) -> Result<(), Box<dyn Error + Send + Sync>> {
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

    fn connect(&mut self) -> Result<(), Box<dyn Error + Send + Sync>> {
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

fn configs(payload: PayloadSize) -> Result<(LinkConfig, LinkConfig), Box<dyn Error + Send + Sync>> {
    let (a, b) = (Identity::generate("a")?, Identity::generate("b")?);
    let any: SocketAddr = "127.0.0.1:0".parse()?;
    let config = |identity: &Identity, peer: &Identity| LinkConfig {
        local: any,
        dial: None,
        identity: identity.clone(),
        peer: peer.fingerprint(),
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
    client: impl FnOnce(&mut Site) -> Result<(), Box<dyn Error + Send + Sync>>,
) -> Result<(), Box<dyn Error + Send + Sync>> {
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

fn round_trips(
    cores: &[CoreId],
    payload: PayloadSize,
    seconds: Duration,
) -> Result<Histogram<u64>, Box<dyn Error + Send + Sync>> {
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
fn stream(
    cores: &[CoreId],
    payload: PayloadSize,
    seconds: Duration,
) -> Result<(f64, u64), Box<dyn Error + Send + Sync>> {
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

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
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
    Ok(())
}
