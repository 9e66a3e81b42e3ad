//! What came of a run.

use crate::sim::coverage::Coverage;
use crate::sim::hosts::HostCounts;
use crate::sim::readiness::Readiness;

/// What a run did, for statistics and the ledger.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    pub hosts: HostCounts,
    pub crashes: u64,
    pub replayed: u64,
    pub updates: u64,
    pub events: u64,
    pub virtual_ns: u64,
    pub acknowledged_writes: u64,
    /// Acknowledged below `durable`, and lost with both sites' power as that level allows.
    pub excused_writes: u64,
    pub solo_ranges: u64,
    pub snapshots: u64,
    pub snapshot_reads: u64,
    /// Blocks of which a host was told whether they were changed.
    pub changes_told: u64,
    /// Updates that went to the secondary with what they overwrote.
    pub sent_by_value: u64,
    pub captured_blocks: u64,
    pub reclaimed_blocks: u64,
    /// Volume blocks of which a bit flipped, and repairs since the sites' last starts.
    pub rotten_blocks: u64,
    /// Extents of which both sites said the same.
    pub comparisons: u64,
    pub repaired_blocks: u64,
    pub checkpoints: u64,
    pub catch_ups: u64,
    pub cuts: u64,
    pub coverage: Coverage,
    pub takeovers: u64,
    /// Volumes that became larger, and those that were to.
    pub extensions: u64,
    pub extensions_refused: u64,
    /// Takeovers, of a primary that may have been alive, for which nobody was fenced.
    pub unasked: u64,
    /// Times that the primary was to step down, and that one was told to go on whose successor had died.
    pub stepped_down: u64,
    pub forced: u64,
    /// Sites that an operator stopped, and scrubs that ended, while hosts were at work.
    pub stops: u64,
    pub scrubs: u64,
    /// Operations of hosts that would write where another site had taken over.
    pub written_behind: u64,
    /// Updates that went to a third site, its deaths, and how often it was told that it has lapsed.
    pub fed: u64,
    pub third_crashes: u64,
    pub lapsed: u64,
    pub readiness: Readiness,
    /// Thirds that took over, and what hosts had been told of that was given up with that.
    pub heirs: u64,
    pub given_up: u64,
    /// Split brains that were resolved.
    pub splits: u64,
    /// Blocks copied to a peer that lacked more than the journal held, and resyncs that were installed.
    pub copied_blocks: u64,
    pub installs: u64,
    /// Sites that were formatted anew.
    pub replaced: u64,
    /// Pairs that began with contents of one site.
    pub adopted: u64,
    /// Thirds whose disks were replaced, and that have been copied what they lacked.
    pub thirds_replaced: u64,
    pub thirds_copied: u64,
    /// Snapshots that came with them.
    pub installed_snapshots: u64,
    /// Resyncs that went on after a restart of the site that was copied to.
    pub logs_found: u64,
    pub trace_hash: u64,
}
