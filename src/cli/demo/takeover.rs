//! `lockstep demo takeover`: the primary is killed under load, the other site takes over, the old one comes back and follows.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::json;

use super::pair::{DATA, LOG, LOG_BYTES, Pair, Sizes, VOLUMES};
use super::{Broken, Demo, READY_MAX, SETTLED_MAX, SiteSeen, plant_loss};
use crate::base::BLOCK_BYTES;
use crate::cli::load::fresh_seed;
use crate::io::nbd_client::{ClientOptions, NbdClient, NbdUri};
use crate::node::control::Goal;
use crate::node::load::{Ledger, check, digest};

/// Hosts that write to blocks of their own, one write at a time each.
const HOSTS: u64 = 8;

/// Pause of a host between two writes. A site that catches up gets what hosts leave it, and to a site that is alone they may write faster
/// than another one, perhaps of a debug build, can follow.
const THINK: Duration = Duration::from_millis(2);

/// A host that lost its site looks for the other one this often.
const RECONNECT_EVERY: Duration = Duration::from_millis(1);

/// Longest a host looks for a site that takes its writes.
const RECONNECT_MAX: Duration = Duration::from_secs(30);

pub const SIZES: Sizes = Sizes { data_bytes: 64 << 20, differential_bytes: 16 << 20 };

/// What one host was promised, and the longest it waited.
struct Host {
    ledger: Ledger,
    acknowledged: u64,
    longest: Duration,
}

struct Seen {
    hosts: Vec<Host>,
    takeover: Duration,
    rejoin: Duration,
}

impl Demo {
    pub(super) fn run_takeover(&self) -> anyhow::Result<()> {
        let mut pair = Pair::make(self.directory.as_deref(), self.keep, SIZES)?;
        pair.start()?;
        pair.client(0).wait(Goal::InSync, READY_MAX).map_err(|error| pair.explain(error.into()))?;
        self.say(&format!("two sites are in lockstep: {}", pair.describe()));
        let pair = Mutex::new(pair);
        let seen = self.take_over(&pair);
        let mut pair = pair.into_inner().map_err(|_| anyhow::anyhow!("a host panicked"))?;
        let mut seen = seen.map_err(|error| pair.explain(error))?;
        for site in [1, 0] {
            pair.client(site).wait(Goal::Settled, SETTLED_MAX).map_err(|error| pair.explain(error.into()))?;
        }
        self.say("settled; reading both sites back");
        if self.plant_loss {
            plant_loss(&mut seen.hosts[0].ledger);
        }
        let sites = [0, 1].map(|site| look(&pair, site, &seen.hosts));
        let [left, right] = sites;
        let sites = [left?, right?];
        pair.stop()?;
        self.conclude_takeover(&seen, &sites)?;
        if let Some(folder) = pair.finish() {
            self.say(&format!("the sites are in {}", folder.display()));
        }
        Ok(())
    }

    fn take_over(&self, pair: &Mutex<Pair>) -> anyhow::Result<Seen> {
        let ended = AtomicBool::new(false);
        let lock = || pair.lock().map_err(|_| anyhow::anyhow!("a host panicked"));
        let uris = {
            let pair = lock()?;
            [pair.uri(0, LOG), pair.uri(1, LOG)]
        };
        std::thread::scope(|scope| {
            let hosts: Vec<_> = (0..HOSTS)
                .map(|host| {
                    let (uris, ended) = (&uris, &ended);
                    scope.spawn(move || write_until(host, uris, ended))
                })
                .collect();
            let third = self.seconds / 3;
            let acted = (|| -> anyhow::Result<_> {
                std::thread::sleep(third);
                self.say("the primary is killed (SIGKILL); the other site is promoted");
                let (client, data) = {
                    let mut pair = lock()?;
                    pair.kill(0)?;
                    (pair.client(1), pair.uri(1, DATA))
                };
                let begun = Instant::now();
                client.promote(true)?;
                let mut host = NbdClient::connect(&data, ClientOptions::default())?;
                host.write(0, &[0x5a; BLOCK_BYTES], false)?;
                let takeover = begun.elapsed();
                self.say(&format!("it took its first write {} after the command", shown(takeover)));
                std::thread::sleep(third);
                let begun = Instant::now();
                lock()?.start_again(0)?;
                client.wait(Goal::InSync, READY_MAX)?;
                let rejoin = begun.elapsed();
                self.say(&format!("the old primary was in lockstep {} after its start", shown(rejoin)));
                std::thread::sleep(third);
                Ok((takeover, rejoin))
            })();
            ended.store(true, Relaxed);
            let mut seen = Vec::new();
            for host in hosts {
                seen.push(host.join().map_err(|_| anyhow::anyhow!("a host panicked"))??);
            }
            let (takeover, rejoin) = acted?;
            Ok(Seen { hosts: seen, takeover, rejoin })
        })
    }

    fn conclude_takeover(&self, seen: &Seen, sites: &[SiteSeen; 2]) -> anyhow::Result<()> {
        let lost: u64 = sites.iter().map(|site| site.broken).sum();
        let acknowledged: u64 = seen.hosts.iter().map(|host| host.acknowledged).sum();
        let longest = seen.hosts.iter().map(|host| host.longest).max().unwrap_or_default();
        if self.json {
            let ms = |time: Duration| time.as_secs_f64() * 1000.0;
            let sites: Vec<_> = sites.iter().map(SiteSeen::as_json).collect();
            let result = json!({
                "scenario": "takeover",
                "seconds": self.seconds.as_secs_f64(),
                "takeover_ms": ms(seen.takeover),
                "rejoin_ms": ms(seen.rejoin),
                "max_host_latency_ms": ms(longest),
                "acknowledged_writes": acknowledged,
                "lost_writes": lost,
                "sites": sites,
            });
            println!("{result:#}");
        } else {
            sites.iter().for_each(|site| println!("{}", site.sentence()));
            println!("no host waited longer than {} for a write", shown(longest));
            println!("{acknowledged} writes were acknowledged; {lost} of them are missing on a site");
        }
        match (lost, sites[0].digest == sites[1].digest) {
            (0, true) => Ok(()),
            (0, false) => Err(Broken("the sites' contents differ".to_owned()).into()),
            (lost, _) => Err(Broken(format!("{lost} acknowledged writes are missing on a site")).into()),
        }
    }
}

fn shown(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}

/// One host: writes to random blocks of its own, and when its site is gone goes on at whichever takes its writes.
fn write_until(host: u64, uris: &[NbdUri; 2], ended: &AtomicBool) -> anyhow::Result<Host> {
    let blocks = LOG_BYTES / BLOCK_BYTES as u64 / HOSTS;
    let first = host * blocks;
    let seed = fresh_seed();
    let mut host =
        Host { ledger: Ledger::new(seed, first, blocks), acknowledged: 0, longest: Duration::ZERO };
    let mut at = 0;
    let mut client = Some(NbdClient::connect(&uris[at], ClientOptions::default())?);
    let mut data = vec![0; BLOCK_BYTES];
    let mut random = seed;
    while !ended.load(Relaxed) {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let block = first + (random >> 33) % blocks;
        let sequence = host.ledger.begin(block);
        host.ledger.fill(block, sequence, &mut data);
        let begun = Instant::now();
        loop {
            let offset = block * BLOCK_BYTES as u64;
            if client.as_mut().is_some_and(|open| open.write(offset, &data, false).is_ok()) {
                break;
            }
            // The same write again, at either site: whether the first try took effect does not matter.
            if begun.elapsed() > RECONNECT_MAX {
                anyhow::bail!("no site took a host's write for {} s", RECONNECT_MAX.as_secs());
            }
            at = 1 - at;
            client = NbdClient::connect(&uris[at], ClientOptions::default()).ok();
            if client.is_none() {
                std::thread::sleep(RECONNECT_EVERY);
            }
        }
        host.ledger.acknowledge(block);
        host.acknowledged += 1;
        host.longest = host.longest.max(begun.elapsed());
        std::thread::sleep(THINK);
    }
    Ok(host)
}

fn look(pair: &Pair, site: usize, hosts: &[Host]) -> anyhow::Result<SiteSeen> {
    let status = pair.client(site).status()?;
    let mut broken = 0;
    for host in hosts {
        broken += check(&pair.uri(site, LOG), &host.ledger)?.broken();
    }
    let digests = VOLUMES.map(|volume| digest(&pair.uri(site, volume), None, &mut |_, _| {}));
    let digests = digests.into_iter().collect::<Result<Vec<_>, _>>().context("a site's contents")?;
    Ok(SiteSeen {
        name: super::pair::NAMES[site],
        role: status.role,
        digest: digests.join(""),
        last_number: status.watermarks.last,
        broken,
    })
}
