//! What one seed runs: every draw that is made before the first event. Each seed has its own configuration and its own
//! mix of faults (swarm testing), since the rare combinations hide what the average one never meets.

use crate::base::*;
use crate::core::config::*;
use crate::core::group::PAGES_MIN;
use crate::core::journal::journal_blocks_min;
use crate::format::superblock::RING_FIRST_BLOCK;
use crate::sim::adopt::AdoptPlan;
use crate::sim::aimed::AimedPlan;
use crate::sim::audit::{PRIMARY, SECONDARY};
use crate::sim::extend::ExtendPlan;
use crate::sim::far::FarPlan;
use crate::sim::heir::HeirPlan;
use crate::sim::resync::{ReplacePlan, ResyncPlan};
use crate::sim::rng::Rng;
use crate::sim::snapshots::SnapshotPlan;
use crate::sim::split::SplitPlan;
use crate::sim::takeover::TakeoverPlan;
use crate::sim::third::{ThirdFault, ThirdPlan};
use crate::sim::upkeep::UpkeepPlan;

/// Operations of hosts that every seed submits at least.
pub const HOST_OPERATIONS_MIN: u64 = 1000;
/// Crashes that every seed has at least.
pub const CRASHES_MIN: usize = 2;

/// Crashes after which none follows from another or from what a site does: those planned come besides.
pub const CRASHES_MAX: u64 = 12;

/// Tells the generator of crashes at a wrap from the others of its seed.
const WRAP_FORK: u64 = 0x7772_6170;

/// Staging files, at least: what a run changes fits some times.
const STAGING_BLOCKS: u64 = 6_000;

const MS: u64 = 1_000_000;
const US: u64 = 1_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    Process,
    Power,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Crash {
        site: usize,
        crash: Crash,
    },
    CrashBoth {
        crashes: [Crash; 2],
    },
    /// The connection breaks; what was under way is lost from some point on.
    Break,
    /// Flips a bit of what is under way to a site.
    Garble {
        site: usize,
    },
    /// No bytes arrive for this long (ns).
    Partition {
        ns: u64,
    },
    /// Bytes arrive, but each piece takes this much longer (ns), for as long as `ns`.
    Gray {
        delay_ns: u64,
        ns: u64,
    },
    /// A site's disks are a hundred times slower for this long (ns).
    SlowDisk {
        site: usize,
        ns: u64,
    },
    /// The next I/O of the kind on the site's journal, or on its volumes, fails.
    DiskError {
        site: usize,
        journal: bool,
        errno: i32,
    },
    /// An operator stops a site as it is meant to be stopped.
    Stop {
        site: usize,
    },
    Third(ThirdFault),
}

/// A fault happens `events` events after the hosts have submitted `after_ops` operations, so at any point of anything.
#[derive(Clone, Copy, Debug)]
pub struct Planned {
    pub after_ops: u64,
    pub events: u64,
    pub fault: Fault,
}

/// Shares of operations in a hundred; the rest are whole-block writes.
#[derive(Clone, Copy, Debug)]
pub struct Mix {
    pub read: u64,
    pub partial: u64,
    pub zero: u64,
    pub zero_partial: u64,
    pub flush: u64,
    /// Of the changing operations.
    pub fua: u64,
    /// Of the whole-block writes, those whose data is zeros.
    pub zeros: u64,
    /// Operations that no site may carry out: beyond the end, too large, or a write to the secondary.
    pub wrong: u64,
}

#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    /// One of each site; without a peer the second is never started.
    pub configs: Vec<GroupConfig>,
    pub operations: u64,
    /// Operations each front has outstanding at most.
    pub depth: usize,
    pub mix: Mix,
    /// Most blocks a host's operation has.
    pub op_blocks_max: u64,
    /// Blocks of each volume that get most of the operations.
    pub hot_blocks: u64,
    /// Pause of a host between reply and next request, typically (ns).
    pub think_ns: u64,
    /// Messages one turn takes from one ring, and whether rings from the link hold only one.
    pub turn_messages: u64,
    pub ring_ns: u64,
    pub write_ns: u64,
    pub read_ns: u64,
    pub flush_ns: u64,
    pub network_ns: u64,
    /// Time from a lost peer to noticing it, typically (ns).
    pub notice_ns: u64,
    pub down_ns: u64,
    /// A crash follows soon after a restart, in a hundred.
    pub crash_again_percent: u64,
    /// A primary that may go on alone loses power while its peer catches up, with a tail that only the peer has: it then
    /// opens a generation over it, and the tail has to be cut. So many times.
    pub crashes_at_catch_up: u32,
    /// A site loses power soon after its journal began anew at its ring's start: the batch there may be whole where one
    /// before it, at the ring's end, is not. So many times.
    pub crashes_at_wrap: u32,
    pub faults: Vec<Planned>,
    pub snapshots: Option<SnapshotPlan>,
    pub takeover: Option<TakeoverPlan>,
    pub resync: Option<ResyncPlan>,
    pub replace: Option<ReplacePlan>,
    pub split: Option<SplitPlan>,
    pub aimed: Option<AimedPlan>,
    pub third: Option<ThirdPlan>,
    pub heir: Option<HeirPlan>,
    pub adopt: Option<AdoptPlan>,
    pub far: Option<FarPlan>,
    pub extend: Option<ExtendPlan>,
    pub upkeep: Option<UpkeepPlan>,
}

impl Plan {
    pub fn new(seed: u64, rng: &mut Rng, snapshots: Option<SnapshotPlan>) -> Plan {
        let peer = !rng.once_in(24);
        let volumes: Vec<VolumeSpec> = (0..rng.between(1, 3))
            .map(|index| VolumeSpec { name: format!("volume-{index}"), blocks: rng.between(64, 256) })
            .collect();
        let ack = rng.pick(&[AckLevel::Received, AckLevel::Journaled, AckLevel::Durable, AckLevel::Applied]);
        let on_peer_loss = rng.pick(&[OnPeerLoss::Suspend, OnPeerLoss::Suspend, OnPeerLoss::Solo]);
        let write_ns = rng.pick(&[20, 60, 200]) * US;
        let flush_ns = write_ns * rng.pick(&[1, 4, 10]);
        let network_ns = rng.pick(&[20, 50, 200]) * US;
        // Above what undisturbed disks and network take at their slowest, so that only faults exceed them; `applied` waits
        // for the flushes of a whole round of destage.
        let rounds = if ack == AckLevel::Applied { 8 } else { 2 };
        let answer_ns_max = rounds * 10 * (write_ns + flush_ns + network_ns);
        let latency_budget = Nanos((rng.pick(&[5, 20, 50]) * MS).max(answer_ns_max));
        let host_deadline = Nanos((rng.pick(&[40, 100, 400]) * MS).max(2 * latency_budget.0));
        let flush_interval = Nanos(rng.pick(&[200 * US, 2 * MS, 5 * MS]));
        let flush_blocks = rng.pick(&[16, 256, 1024]);
        let fronts = rng.between(1, 2) as usize;
        let differential_blocks = snapshots.map_or(0, |plan| plan.differential_blocks);
        // Everything may have to be copied, each block with a header of its own.
        let whole = volumes.iter().map(|volume| volume.blocks).sum::<u64>() + differential_blocks;
        let staging_blocks = STAGING_BLOCKS.max(2 * whole + RING_FIRST_BLOCK);
        let mut config = |site: usize| GroupConfig {
            group: GroupId(0x5eed),
            site: SiteId(site as u16 + 1),
            role: if site == 0 { Role::Primary } else { Role::Secondary },
            peer: peer.then(|| PeerConfig {
                site: SiteId(2 - site as u16),
                on_peer_loss,
                latency_budget,
                heartbeat_interval: Nanos(latency_budget.0 / 8),
            }),
            resync: ResyncConfig {
                staging_blocks: if peer { staging_blocks } else { 0 },
                p99_budget: latency_budget,
            },
            third: None,
            sources: Vec::new(),
            volumes: volumes.clone(),
            journal_blocks: journal_blocks_min() + rng.pick(&[0, 40, 300, 1500]),
            differential_blocks,
            on_differential_full: snapshots
                .map_or(OnDifferentialFull::DeleteOldest, |plan| plan.on_differential_full),
            differential: snapshots.map_or(DifferentialBy::Reference, |plan| plan.differential),
            journal_volatile: !rng.once_in(4),
            pages: PAGES_MIN + rng.pick(&[0, 100, 800]) as u32,
            ack,
            host_deadline,
            flush_interval,
            flush_blocks,
            destage_depth_max: rng.pick(&[1, 4, 32]) as usize,
            warm_up: seed % 4 == 3,
            fronts: if site == 0 { fronts } else { 1 },
        };
        let configs = vec![config(PRIMARY), config(SECONDARY)];
        let operations = HOST_OPERATIONS_MIN + rng.below(200);
        Plan {
            seed,
            operations,
            depth: rng.pick(&[1, 4, 16, 32]) as usize,
            mix: Mix {
                read: rng.pick(&[10, 30, 50]),
                partial: rng.pick(&[0, 10, 25]),
                zero: rng.pick(&[0, 5, 10]),
                zero_partial: rng.pick(&[0, 3]),
                flush: rng.pick(&[0, 2, 8]),
                fua: rng.pick(&[0, 5, 30]),
                zeros: rng.pick(&[0, 0, 5]),
                wrong: rng.pick(&[0, 1]),
            },
            op_blocks_max: rng.pick(&[1, 2, 4, 8]),
            hot_blocks: rng.pick(&[2, 8, 64]),
            think_ns: rng.pick(&[1, 1, 50, 1000]) * US,
            turn_messages: rng.pick(&[1, 8, TURN_MESSAGES_MAX as u64]),
            ring_ns: rng.pick(&[200, 1_000, 20_000]),
            write_ns,
            read_ns: write_ns,
            flush_ns,
            network_ns,
            notice_ns: rng.pick(&[1, 10, 50]) * MS,
            down_ns: rng.pick(&[1, 20, 100]) * MS,
            crash_again_percent: rng.pick(&[0, 20, 50]),
            // Not drawn from the plan's own numbers, so that no other draw of a seed depends on it.
            crashes_at_catch_up: if peer && on_peer_loss == OnPeerLoss::Solo {
                Rng::new(!seed).pick(&[0, 1, 2, CRASHES_MAX]) as u32
            } else {
                0
            },
            crashes_at_wrap: Rng::new(seed ^ WRAP_FORK).pick(&[0, 1, 3]) as u32,
            faults: faults(rng, operations, peer),
            configs,
            snapshots,
            takeover: None,
            resync: None,
            replace: None,
            split: None,
            aimed: None,
            third: None,
            heir: None,
            adopt: None,
            far: None,
            extend: None,
            upkeep: None,
        }
    }

    /// Takeovers come besides: either site may have the hosts, and there are more partitions.
    pub fn take_over(&mut self, rng: &mut Rng) {
        self.takeover = TakeoverPlan::new(rng, self);
        let Some(takeover) = self.takeover else { return };
        self.configs[1].fronts = self.configs[0].fronts;
        for _ in 0..takeover.partitions {
            let fault = Fault::Partition { ns: rng.pick(&[20, 60, 300]) * MS };
            let after_ops = rng.between(20, self.operations - 20);
            self.faults.push(Planned { after_ops, events: rng.below(400), fault });
        }
        self.faults.sort_by_key(|planned| planned.after_ops);
    }

    /// Hosts submit no more than these while faults strike.
    pub fn end_after(&mut self, operations: Option<u64>) {
        self.operations = operations.map_or(self.operations, |most| most.min(self.operations));
        self.faults.retain(|planned| planned.after_ops <= self.operations);
    }

    pub fn has_peer(&self) -> bool {
        self.configs[0].peer.is_some()
    }
}

fn faults(rng: &mut Rng, operations: u64, peer: bool) -> Vec<Planned> {
    let power_percent = rng.pick(&[0, 50, 100]);
    let both_percent = rng.pick(&[0, 20, 60]);
    let crash = |rng: &mut Rng| if rng.percent(power_percent) { Crash::Power } else { Crash::Process };
    let site = |rng: &mut Rng| if peer { rng.below(2) as usize } else { 0 };
    let mut faults = Vec::new();
    for _ in 0..rng.between(CRASHES_MIN as u64, CRASHES_MIN as u64 + 3) {
        faults.push(if peer && rng.percent(both_percent) {
            Fault::CrashBoth { crashes: [crash(rng), crash(rng)] }
        } else {
            Fault::Crash { site: site(rng), crash: crash(rng) }
        });
    }
    // Each seed has some kinds of other faults and not the rest.
    let kinds = rng.draw();
    let has = |kind: u64| kinds >> (2 * kind) & 3 == 0;
    for _ in 0..rng.below(5) {
        if peer && has(0) {
            faults.push(Fault::Break);
        }
        if peer && has(1) {
            faults.push(Fault::Partition { ns: rng.pick(&[2, 30, 300]) * MS });
        }
        if peer && has(2) {
            faults
                .push(Fault::Gray { delay_ns: rng.pick(&[3, 30, 300]) * MS, ns: rng.pick(&[10, 200]) * MS });
        }
        if has(3) {
            faults.push(Fault::SlowDisk { site: site(rng), ns: rng.pick(&[5, 50]) * MS });
        }
        if peer && has(4) {
            faults.push(Fault::Garble { site: site(rng) });
        }
        if has(5) && rng.once_in(2) {
            let errno = rng.pick(&[5, 28]);
            faults.push(Fault::DiskError { site: site(rng), journal: rng.once_in(2), errno });
        }
    }
    let mut planned: Vec<Planned> = faults
        .into_iter()
        .map(|fault| Planned { after_ops: rng.between(20, operations - 20), events: rng.below(400), fault })
        .collect();
    planned.sort_by_key(|planned| planned.after_ops);
    planned
}
