//! What a reactor thread records into: it owns one recorder, and swaps it for an empty one when asked, so nothing is shared.

use crate::base::Nanos;
use crate::core::config::AckLevel;
use crate::core::messages::{HostError, HostOp};
use crate::core::outbox::WriteStamps;

use super::{Distribution, STAGES, Stage, Tally, segments};

/// Operations that hosts asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Counters {
    pub reads: u64,
    pub read_blocks: u64,
    pub writes: u64,
    pub written_blocks: u64,
    pub zeros: u64,
    pub zeroed_blocks: u64,
    pub flushes: u64,
    /// Replies that were errors.
    pub errors: u64,
}

impl Counters {
    pub fn add(&mut self, other: &Counters) {
        self.reads += other.reads;
        self.read_blocks += other.read_blocks;
        self.writes += other.writes;
        self.written_blocks += other.written_blocks;
        self.zeros += other.zeros;
        self.zeroed_blocks += other.zeroed_blocks;
        self.flushes += other.flushes;
        self.errors += other.errors;
    }

    /// What was counted since `earlier`, an earlier state of this one.
    pub fn since(&self, earlier: &Counters) -> Counters {
        Counters {
            reads: self.reads.saturating_sub(earlier.reads),
            read_blocks: self.read_blocks.saturating_sub(earlier.read_blocks),
            writes: self.writes.saturating_sub(earlier.writes),
            written_blocks: self.written_blocks.saturating_sub(earlier.written_blocks),
            zeros: self.zeros.saturating_sub(earlier.zeros),
            zeroed_blocks: self.zeroed_blocks.saturating_sub(earlier.zeroed_blocks),
            flushes: self.flushes.saturating_sub(earlier.flushes),
            errors: self.errors.saturating_sub(earlier.errors),
        }
    }

    pub fn operation(&mut self, op: &HostOp) {
        match op {
            HostOp::Read { count, .. } => {
                self.reads += 1;
                self.read_blocks += u64::from(*count);
            }
            HostOp::Write { count, .. } => {
                self.writes += 1;
                self.written_blocks += u64::from(*count);
            }
            HostOp::WritePartial { .. } => {
                self.writes += 1;
                self.written_blocks += 1;
            }
            HostOp::Zero { count, .. } => {
                self.zeros += 1;
                self.zeroed_blocks += u64::from(*count);
            }
            HostOp::ZeroPartial { .. } => {
                self.zeros += 1;
                self.zeroed_blocks += 1;
            }
            HostOp::Flush => self.flushes += 1,
            HostOp::Changes { .. } => {}
        }
    }

    pub fn reply(&mut self, result: &Result<(), HostError>) {
        self.errors += u64::from(result.is_err());
    }
}

/// Tallies by stage, and counters. Allocated whole at start; recording allocates nothing.
#[derive(Debug)]
pub struct Recorder {
    stages: [Tally; STAGES.len()],
    pub counters: Counters,
}

impl Default for Recorder {
    fn default() -> Recorder {
        Recorder::new()
    }
}

impl Recorder {
    pub fn new() -> Recorder {
        Recorder { stages: STAGES.map(|_| Tally::default()), counters: Counters::default() }
    }

    pub fn write(&mut self, stamps: &WriteStamps, ack: AckLevel) {
        for (stage, span) in segments(stamps, ack).iter() {
            self.stages[stage as usize].record(span);
        }
    }

    pub fn record(&mut self, stage: Stage, span: Nanos) {
        self.stages[stage as usize].record(span);
    }
}

/// What recorders held that were taken from reactors, together.
#[derive(Clone, Debug)]
pub struct Totals {
    stages: [Distribution; STAGES.len()],
    pub counters: Counters,
}

impl Default for Totals {
    fn default() -> Totals {
        Totals { stages: STAGES.map(|_| Distribution::new()), counters: Counters::default() }
    }
}

impl Totals {
    pub fn add(&mut self, recorder: &Recorder) {
        for (mine, theirs) in self.stages.iter_mut().zip(&recorder.stages) {
            mine.add_tally(theirs);
        }
        self.counters.add(&recorder.counters);
    }

    pub fn stage(&self, stage: Stage) -> &Distribution {
        &self.stages[stage as usize]
    }

    pub fn clear(&mut self) {
        *self = Totals::default();
    }
}
