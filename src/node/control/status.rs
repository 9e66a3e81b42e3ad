//! What `lockstep status` shows, put together from the group, the reactors and the link.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use serde::{Deserialize, Serialize};

use super::links::{LinkSeen, Links};
use super::third::{SourceShown, ThirdShown};
use super::{KeysShown, ScrubShown};
use crate::base::{BLOCK_BYTES, Nanos, UpdateNumber};
use crate::core::group::split::{Branch, SplitBrain};
use crate::core::group::status::{Counters, GroupState, GroupStatus, PeerState, PendingWork, ResyncStatus};
use crate::io::quic::LinkStats;
use crate::node::config::Config;
use crate::reactor::{Loads, LoadsSnapshot};

/// Rates are over at least this long, so that they mean something.
const RATES_OVER_MIN: Nanos = Nanos::from_millis(1_000);

/// A site, as JSON shows it. Times in milliseconds, sizes in bytes, busy in percent of a core.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    pub site: String,
    pub id: u16,
    pub group: String,
    pub role: String,
    /// `recovering`, `awaiting_peer`, `superseded`, `leaving`, `serving`, `failed` or `stopped`.
    pub state: String,
    /// Whether writes are acknowledged by this site alone, though it has a peer.
    pub solo: bool,
    /// Whether nobody is primary as far as this site knows, since the last one stepped down.
    pub vacant: bool,
    /// Whether what this site has that the other one has not is to go, by an operator's word.
    pub gives_way: bool,
    /// What each site has that the other has not, if both went on alone and have met since.
    pub split_brain: Option<SplitShown>,
    pub generation: String,
    /// In the group's order.
    pub volumes: Vec<VolumeShown>,
    pub watermarks: Watermarks,
    pub peer: Option<PeerStatus>,
    /// The third site that pulls from this one.
    pub third: Option<ThirdShown>,
    /// At a third: what it pulls from, in its order of preference.
    pub sources: Vec<SourceShown>,
    pub local_pending: Pending,
    pub remote_pending: Pending,
    pub journal_bytes: u64,
    pub journal_used_bytes: u64,
    /// Of the differential volume, and what snapshots keep in it.
    pub differential_bytes: u64,
    pub differential_used_bytes: u64,
    pub cache_bytes: u64,
    pub cache_free_bytes: u64,
    /// Whether the cache still reads the volumes that it holds.
    pub warming_up: bool,
    /// Blocks that are being repaired; and the last scrub, or the one under way.
    pub repairing_blocks: u64,
    pub scrub: Option<ScrubShown>,
    /// Operations of hosts inside the group, and those of them that wait for room.
    pub operations: u64,
    pub operations_waiting: u64,
    /// Since start.
    pub totals: Totals,
    pub rates: Rates,
    pub stages: Vec<StageLoad>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeShown {
    pub name: String,
    /// What hosts see; 0 until the site has found out.
    pub size_bytes: u64,
    /// What it may be extended to while the sites run.
    pub room_bytes: u64,
}

/// Two histories that part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitShown {
    /// The last update that both sites have.
    pub common: u64,
    pub ours: BranchShown,
    pub theirs: BranchShown,
}

/// What a site has after that, and would lose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BranchShown {
    pub generation: String,
    pub last: u64,
    pub updates: u64,
    /// Those of them that hosts may have been told of.
    pub acknowledged: u64,
    /// Whether the site knows every block that they changed, so that one site can be copied onto the other.
    pub covered: bool,
}

impl SplitShown {
    pub(super) fn new(split: &SplitBrain) -> SplitShown {
        let after = |number: UpdateNumber| number.0.saturating_sub(split.common.0);
        let branch = |branch: &Branch| BranchShown {
            generation: branch.generation.to_string(),
            last: branch.last.0,
            updates: after(branch.last),
            acknowledged: after(branch.promised),
            covered: branch.covered,
        };
        SplitShown { common: split.common.0, ours: branch(&split.ours), theirs: branch(&split.theirs) }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watermarks {
    pub last: u64,
    pub journaled: u64,
    pub durable: u64,
    pub acknowledged: u64,
    pub settled: u64,
    pub checkpoint: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PeerStatus {
    pub name: String,
    pub address: String,
    /// `disconnected`, `greeting`, `reconciling`, `catching_up`, `resyncing` or `in_sync`.
    pub state: String,
    pub received: u64,
    pub journaled: u64,
    pub durable: u64,
    pub applied: u64,
    pub round_trip_us: f64,
    pub datagrams_sent: u64,
    pub datagrams_lost: u64,
    /// Why the last connection ended or did not come about; kept until there is one.
    pub problem: Option<String>,
    pub keys: Option<KeysShown>,
    /// At a primary that is alone: how much has changed since the peer had everything. If it is away for longer than the journal lasts, it
    /// is copied so much.
    pub changed_bytes: u64,
    /// At a primary: what the peer is being copied, if it is.
    pub resync: Option<Resync>,
}

/// A resync under way, or interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Resync {
    /// All blocks are compared: nobody knows what the peer lacks, since it was formatted anew or is older than what is known to have changed.
    pub whole: bool,
    pub left_bytes: u64,
    pub copied_bytes: u64,
    /// Not copied, since both sites have the same there, or zeros.
    pub equal_bytes: u64,
    pub copied_bytes_per_second: f64,
    /// At the rate so far; none before there is one. What hosts change meanwhile may come on top.
    pub left_seconds: Option<f64>,
}

pub(super) fn resync(status: &ResyncStatus) -> Option<Resync> {
    let block = BLOCK_BYTES as u64;
    let (left_bytes, copied_bytes) = (status.blocks_left * block, status.blocks_copied * block);
    let equal_bytes = status.blocks_equal * block;
    let per_second = |bytes: u64| bytes as f64 / (status.for_ns.max(1) as f64 / 1e9);
    let done_bytes = copied_bytes + equal_bytes;
    status.active.then_some(Resync {
        whole: status.whole,
        left_bytes,
        copied_bytes,
        equal_bytes,
        copied_bytes_per_second: per_second(copied_bytes),
        left_seconds: (done_bytes > 0).then(|| left_bytes as f64 / per_second(done_bytes)),
    })
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Pending {
    pub count: u64,
    pub bytes: u64,
    pub oldest_ms: f64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    pub reads: u64,
    pub writes: u64,
    pub written_bytes: u64,
    /// Operations answered with an error by their deadline or the site's failure.
    pub expired: u64,
    pub volume_reads: u64,
    pub journal_batches: u64,
    pub journal_bytes: u64,
    pub journal_flushes: u64,
    pub destage_writes: u64,
    pub destaged_bytes: u64,
    /// Clean bytes written again because they lay between destaged ones.
    pub bridged_bytes: u64,
    pub warmed_bytes: u64,
    /// Updates sent to a third, of these from the journal instead of memory, and pulled by a third.
    pub fed_updates: u64,
    pub fed_from_journal: u64,
    pub pulled_updates: u64,
    /// Bytes of all frames that a third was sent, headers and payload; payload that was pulled by a third.
    pub fed_bytes: u64,
    pub pulled_bytes: u64,
    /// Updates sent to the peer from the journal instead of memory.
    pub catch_up_updates: u64,
    /// Bytes that the peer was copied because its position was no longer in the journal.
    pub resync_bytes: u64,
    /// Bytes that were compared for that and not copied.
    pub resync_equal_bytes: u64,
    /// Blocks found bad that are whole again, and those that could not be repaired when they were read.
    pub repaired_blocks: u64,
    pub unrepaired_blocks: u64,
    /// Updates found in the journal after the checkpoint when the site started.
    pub replayed_updates: u64,
}

/// Per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    pub reads: f64,
    pub writes: f64,
    pub written_bytes: f64,
    pub journal_bytes: f64,
    pub destaged_bytes: f64,
}

/// One actor's share of its CPU.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageLoad {
    pub cpu: usize,
    pub name: String,
    pub busy_percent: f64,
}

/// A group's status with what was computed beside it.
#[derive(Clone, Debug)]
pub struct Sample {
    pub status: GroupStatus,
    pub rates: Rates,
    pub stages: Vec<StageLoad>,
}

#[derive(Clone, Debug)]
struct Point {
    at: Nanos,
    counters: Counters,
    loads: Vec<LoadsSnapshot>,
}

/// Remembers a moment about a second ago, for rates.
#[derive(Debug)]
pub struct Sampler {
    /// CPU number and accounts of each reactor.
    loads: Vec<(usize, Arc<Loads>)>,
    /// The moment that rates are counted from, and the one that will be next.
    earlier: Option<Point>,
    later: Option<Point>,
}

impl Sampler {
    pub fn new(loads: Vec<(usize, Arc<Loads>)>) -> Sampler {
        Sampler { loads, earlier: None, later: None }
    }

    /// Call at least every few seconds; rates are since the call that was about a second ago.
    pub fn sample(&mut self, at: Nanos, status: GroupStatus) -> Sample {
        let loads = self.loads.iter().map(|(_, loads)| loads.snapshot()).collect();
        let now = Point { at, counters: status.counters, loads };
        let (rates, stages) = match &self.earlier {
            Some(earlier) => (rates(earlier, &now), self.stages(earlier, &now)),
            None => (Rates::default(), Vec::new()),
        };
        if self.later.as_ref().is_none_or(|later| at.since(later.at) >= RATES_OVER_MIN) {
            self.earlier = self.later.take().or_else(|| Some(now.clone()));
            self.later = Some(now);
        }
        Sample { status, rates, stages }
    }

    fn stages(&self, earlier: &Point, now: &Point) -> Vec<StageLoad> {
        let span = now.at.since(earlier.at).0.max(1) as f64;
        let share = |busy: Nanos| 100.0 * busy.0 as f64 / span;
        let mut stages = Vec::new();
        for ((cpu, _), (before, after)) in self.loads.iter().zip(earlier.loads.iter().zip(&now.loads)) {
            for actor in &after.actors {
                let before = before.actors.iter().find(|other| other.name == actor.name);
                let busy = actor.busy.since(before.map_or(Nanos(0), |before| before.busy));
                stages.push(StageLoad { cpu: *cpu, name: actor.name.to_owned(), busy_percent: share(busy) });
            }
            let rest = [
                ("driver", after.driver.since(before.driver)),
                ("spinning", after.spinning.since(before.spinning)),
                ("parked", after.parked.since(before.parked)),
            ];
            let rest = rest.map(|(name, time)| StageLoad {
                cpu: *cpu,
                name: name.to_owned(),
                busy_percent: share(time),
            });
            stages.extend(rest);
        }
        stages
    }
}

fn rates(earlier: &Point, now: &Point) -> Rates {
    let seconds = now.at.since(earlier.at).0 as f64 / 1e9;
    if seconds <= 0.0 {
        return Rates::default();
    }
    let rate =
        |of: fn(&Counters) -> u64| of(&now.counters).saturating_sub(of(&earlier.counters)) as f64 / seconds;
    let block = BLOCK_BYTES as f64;
    Rates {
        reads: rate(|counters| counters.reads),
        writes: rate(|counters| counters.writes),
        written_bytes: rate(|counters| counters.write_bytes),
        journal_bytes: rate(|counters| counters.journal_blocks) * block,
        destaged_bytes: rate(|counters| counters.destage_blocks) * block,
    }
}

fn pending(work: PendingWork) -> Pending {
    Pending { count: work.count, bytes: work.bytes, oldest_ms: work.oldest_ns as f64 / 1e6 }
}

impl Status {
    pub fn new(config: &Config, sample: Sample, links: &Links) -> Status {
        let GroupStatus { counters, .. } = sample.status;
        let status = sample.status;
        let number = |number: UpdateNumber| number.0;
        let block = BLOCK_BYTES as u64;
        let link = links.peer.as_ref();
        let load = |of: fn(&LinkStats) -> u64| link.map_or(0, |link| of(&link.stats));
        let remotes: Vec<_> = config.remotes().zip(&links.remotes).collect();
        let third = status.third.zip(remotes.first());
        let sources = status.sources.iter().flatten().zip(&remotes);
        let peer = config.replication.as_ref().map(|pair| PeerStatus {
            name: pair.peer.name.clone(),
            address: pair.peer.address.to_string(),
            state: peer_state(status.peer).to_owned(),
            received: number(status.peer_received),
            journaled: number(status.peer_journaled),
            durable: number(status.peer_durable),
            applied: number(status.peer_applied),
            round_trip_us: load(|link| link.round_trip_ns.load(Relaxed)) as f64 / 1000.0,
            datagrams_sent: load(|link| link.datagrams_sent.load(Relaxed)),
            datagrams_lost: load(|link| link.datagrams_lost.load(Relaxed)),
            problem: link.and_then(LinkSeen::problem),
            keys: link.and_then(LinkSeen::keys_shown),
            changed_bytes: status.resync.changed_blocks * block,
            resync: resync(&status.resync),
        });
        Status {
            site: config.site.name.clone(),
            id: config.site.id.0,
            group: config.group.name.clone(),
            role: status.role.name().to_owned(),
            state: state(status.state).to_owned(),
            solo: status.solo && config.replication.is_some(),
            vacant: status.vacant,
            gives_way: status.gives_way,
            split_brain: status.split.map(|split| SplitShown::new(&split)),
            generation: status.generation.to_string(),
            volumes: config
                .volumes
                .iter()
                .zip(status.sizes.iter())
                .map(|(volume, blocks)| VolumeShown {
                    name: volume.name.clone(),
                    size_bytes: blocks * BLOCK_BYTES as u64,
                    room_bytes: volume.room_bytes,
                })
                .collect(),
            watermarks: Watermarks {
                last: number(status.last),
                journaled: number(status.journaled),
                durable: number(status.durable),
                acknowledged: number(status.acknowledged),
                settled: number(status.settled),
                checkpoint: number(status.checkpoint),
            },
            peer,
            third: third.map(|(third, (remote, link))| ThirdShown::new(remote, &third, link)),
            sources: sources.map(|(source, (remote, link))| SourceShown::new(remote, source, link)).collect(),
            local_pending: pending(status.local_pending),
            remote_pending: pending(status.remote_pending),
            journal_bytes: status.journal_blocks * block,
            journal_used_bytes: status.journal_used_blocks * block,
            differential_bytes: config.differential.bytes,
            differential_used_bytes: status.differential_used_blocks * block,
            cache_bytes: status.pages_total * block,
            cache_free_bytes: status.pages_free * block,
            warming_up: status.warming_up,
            repairing_blocks: status.repairing_blocks,
            scrub: ScrubShown::new(config, &status.scrub),
            operations: status.operations,
            operations_waiting: status.operations_waiting,
            totals: Totals {
                reads: counters.reads,
                writes: counters.writes,
                written_bytes: counters.write_bytes,
                expired: counters.expired,
                volume_reads: counters.volume_reads,
                journal_batches: counters.journal_batches,
                journal_bytes: counters.journal_blocks * block,
                journal_flushes: counters.journal_flushes,
                destage_writes: counters.destage_writes,
                destaged_bytes: counters.destage_blocks * block,
                bridged_bytes: counters.bridged_blocks * block,
                warmed_bytes: counters.warmed_blocks * block,
                fed_updates: counters.fed_updates,
                fed_from_journal: counters.fed_from_journal,
                pulled_updates: counters.pulled_updates,
                fed_bytes: counters.fed_bytes,
                pulled_bytes: counters.pulled_blocks * block,
                catch_up_updates: counters.catch_up_updates,
                resync_bytes: counters.resync_blocks * block,
                resync_equal_bytes: counters.resync_equal_blocks * block,
                repaired_blocks: counters.repaired_blocks,
                unrepaired_blocks: counters.unrepaired_blocks,
                replayed_updates: counters.replayed_updates,
            },
            rates: sample.rates,
            stages: sample.stages,
        }
    }
}

fn state(state: GroupState) -> &'static str {
    match state {
        GroupState::Recovering => "recovering",
        GroupState::AwaitingPeer => "awaiting_peer",
        GroupState::Superseded => "superseded",
        GroupState::Leaving => "leaving",
        GroupState::Serving => "serving",
        GroupState::Failed => "failed",
        GroupState::Stopped => "stopped",
    }
}

fn peer_state(state: PeerState) -> &'static str {
    match state {
        PeerState::NotConfigured => "not_configured",
        PeerState::Disconnected => "disconnected",
        PeerState::Greeting => "greeting",
        PeerState::Reconciling => "reconciling",
        PeerState::CatchingUp => "catching_up",
        PeerState::Resyncing => "resyncing",
        PeerState::InSync => "in_sync",
    }
}
