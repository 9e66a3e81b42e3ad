//! Hosts of the scenarios in which a site goes away: they know what they were promised, and how long each write took.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::Context;

use super::SiteSeen;
use super::pair::{NAMES, Pair, VOLUMES};
use crate::base::{BLOCK_BYTES, Nanos};
use crate::cli::load::fresh_seed;
use crate::io::nbd_client::{ClientOptions, NbdClient, NbdUri};
use crate::node::load::{Ledger, Timeline, check, digest};
use crate::node::telemetry::Distribution;
use crate::reactor::Clock;

/// Hosts that write to blocks of their own, one write at a time each.
const HOSTS: u64 = 8;

/// Pause of a host between two writes. A site that catches up gets what hosts leave it, and to a site that is alone they may write faster
/// than another one, perhaps of a debug build, can follow.
const THINK: Duration = Duration::from_millis(2);

/// A host that lost its site looks for the other one this often.
const RECONNECT_EVERY: Duration = Duration::from_millis(1);

/// Longest a host looks for a site that takes its writes.
const RECONNECT_MAX: Duration = Duration::from_secs(30);

/// What one host was promised, and how long it waited.
pub struct Host {
    pub ledger: Ledger,
    acknowledged: u64,
    timeline: Timeline,
    longest: Nanos,
}

/// What all of them saw.
pub struct Hosts(pub Vec<Host>);

impl Hosts {
    /// Lets hosts write to so many bytes of a volume, at whichever of these places takes their writes, while `act` does what the
    /// scenario is about.
    pub fn write_while<T>(
        places: &[NbdUri],
        bytes: u64,
        clock: &Clock,
        act: impl FnOnce() -> anyhow::Result<T>,
    ) -> anyhow::Result<(Hosts, T)> {
        let until = Until::default();
        std::thread::scope(|scope| {
            let blocks = bytes / BLOCK_BYTES as u64 / HOSTS;
            let hosts: Vec<_> = (0..HOSTS)
                .map(|host| {
                    let until = &until;
                    scope.spawn(move || write_until(host * blocks, blocks, places, clock, until))
                })
                .collect();
            let acted = act();
            until.failed.store(acted.is_err(), Relaxed);
            until.over.store(true, Relaxed);
            let mut seen = Vec::new();
            for host in hosts {
                seen.push(host.join().map_err(|_| anyhow::anyhow!("a host panicked"))?);
            }
            // If that failed, what hosts say follows from it.
            let acted = acted?;
            Ok((Hosts(seen.into_iter().collect::<anyhow::Result<_>>()?), acted))
        })
    }

    pub fn acknowledged(&self) -> u64 {
        self.0.iter().map(|host| host.acknowledged).sum()
    }

    pub fn longest(&self) -> Nanos {
        self.0.iter().map(|host| host.longest).max().unwrap_or_default()
    }

    /// The p99 of the writes that were under way at any time between the two.
    pub fn p99(&self, from: Nanos, until: Nanos) -> anyhow::Result<Nanos> {
        let mut all = Distribution::new();
        self.0.iter().for_each(|host| all.add(&host.timeline.around(from, until.since(from))));
        anyhow::ensure!(all.count() > 0, "no write was under way where latencies are looked for");
        Ok(Nanos(all.at_percentile_ns(99.0)))
    }

    /// Reads a site back.
    pub fn look(&self, pair: &Pair, site: usize, volume: &str) -> anyhow::Result<SiteSeen> {
        let status = pair.client(site).status()?;
        let mut broken = 0;
        for host in &self.0 {
            broken += check(&pair.uri(site, volume), &host.ledger)?.broken();
        }
        let digests = VOLUMES.map(|volume| digest(&pair.uri(site, volume), None, &mut |_, _| {}));
        let digests = digests.into_iter().collect::<Result<Vec<_>, _>>().context("a site's contents")?;
        Ok(SiteSeen {
            name: NAMES[site],
            role: status.role,
            digest: digests.join(""),
            last_number: status.watermarks.last,
            broken,
        })
    }
}

/// How long hosts write.
#[derive(Default)]
struct Until {
    over: AtomicBool,
    /// There may be no site any more that takes a write.
    failed: AtomicBool,
}

/// One host: writes to random blocks of its own, and when its site is gone goes on at whichever takes its writes.
fn write_until(
    first: u64,
    blocks: u64,
    places: &[NbdUri],
    clock: &Clock,
    until: &Until,
) -> anyhow::Result<Host> {
    let seed = fresh_seed();
    let mut host = Host {
        ledger: Ledger::new(seed, first, blocks),
        acknowledged: 0,
        timeline: Timeline::default(),
        longest: Nanos(0),
    };
    let mut at = 0;
    let mut client = Some(NbdClient::connect(&places[at], ClientOptions::default())?);
    let mut data = vec![0; BLOCK_BYTES];
    let mut random = seed;
    while !until.over.load(Relaxed) {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let block = first + (random >> 33) % blocks;
        let sequence = host.ledger.begin(block);
        host.ledger.fill(block, sequence, &mut data);
        let (begun, begun_at) = (Instant::now(), clock.now());
        loop {
            let offset = block * BLOCK_BYTES as u64;
            if client.as_mut().is_some_and(|open| open.write(offset, &data, false).is_ok()) {
                break;
            }
            // The same write again, at any site: whether the first try took effect does not matter.
            if begun.elapsed() > RECONNECT_MAX || until.failed.load(Relaxed) {
                anyhow::bail!("no site took a host's write for {} s", RECONNECT_MAX.as_secs());
            }
            at = (at + 1) % places.len();
            client = NbdClient::connect(&places[at], ClientOptions::default()).ok();
            if client.is_none() {
                std::thread::sleep(RECONNECT_EVERY);
            }
        }
        let ended_at = clock.now();
        host.ledger.acknowledge(block);
        host.acknowledged += 1;
        host.longest = host.longest.max(ended_at.since(begun_at));
        host.timeline.push(begun_at, ended_at);
        std::thread::sleep(THINK);
    }
    Ok(host)
}
