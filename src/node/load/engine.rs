//! What to do next, and what it took.

use super::ledger::SplitMix;
use super::{Ledger, Timeline, Verdict};
use crate::base::{BLOCK_BYTES, Bitmap, Nanos};
use crate::node::telemetry::{Distribution, Report, StageKind, StageReport};

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Pattern {
    Random,
    Sequential,
}

/// What clients of disks count in.
const SECTOR_BYTES: u64 = 512;

/// So long after its end a load at a fixed rate still begins what is overdue. Left out, the operations that a stall kept from beginning would
/// be those that had waited longest.
const OVERDUE_MAX: Nanos = Nanos::from_millis(10_000);

/// A load. Offsets and lengths in bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub pattern: Pattern,
    /// Each operation takes one of these lengths, at random.
    pub lengths: Vec<u32>,
    pub read_percent: u8,
    /// Operations in flight at most.
    pub depth: usize,
    /// Operations a second, sent whether or not earlier ones are answered (as far as `depth` goes); as many as go without.
    pub rate: Option<f64>,
    pub seconds: f64,
    /// Every write unlike any other, every read compared. Lengths are then whole blocks.
    pub verify: bool,
    /// Keep when each operation began and ended: 16 bytes each.
    pub timeline: bool,
    pub seed: u64,
    /// The range of the volume that is used.
    pub offset: u64,
    pub length: u64,
}

impl Plan {
    /// What keeps this plan from being run on a volume of `bytes`, if anything does.
    pub fn problem(&self, bytes: u64) -> Option<String> {
        let whole = BLOCK_BYTES as u64;
        let longest = u64::from(self.lengths.iter().copied().max().unwrap_or(0));
        if self.lengths.is_empty() || self.lengths.contains(&0) || self.depth == 0 {
            return Some("an operation needs a length, and one must be allowed in flight".to_owned());
        }
        if self.offset.checked_add(self.length).is_none_or(|end| end > bytes) || self.length < longest {
            return Some(format!(
                "a volume of {bytes} bytes has no range of {} at {}",
                self.length, self.offset
            ));
        }
        let odd = |bytes: u64| !bytes.is_multiple_of(whole);
        if !self.offset.is_multiple_of(SECTOR_BYTES) {
            return Some(format!("offsets are multiples of {SECTOR_BYTES} bytes"));
        }
        if self.verify && (self.lengths.iter().any(|length| odd(u64::from(*length))) || odd(self.offset)) {
            return Some("only whole 4 KiB blocks can be verified".to_owned());
        }
        self.lengths
            .iter()
            .any(|length| !u64::from(*length).is_multiple_of(SECTOR_BYTES))
            .then(|| format!("lengths are multiples of {SECTOR_BYTES} bytes"))
    }
}

/// An operation under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doing {
    pub write: bool,
    pub offset: u64,
    pub length: u32,
    /// When it should have begun, which for a fixed rate is not when it did: the wait is part of its latency.
    intended: Nanos,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Do this; the index names it until it is completed.
    Begin(usize, Doing),
    /// Nothing before this.
    Wait(Nanos),
    /// Nothing until something is completed.
    Full,
    /// All have begun, or time is over; what is in flight is still to be completed.
    Over,
}

/// What a load did.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// From the first operation's beginning to the last one's end.
    pub seconds: f64,
    pub reads: Distribution,
    pub writes: Distribution,
    pub read_bytes: u64,
    pub written_bytes: u64,
    pub errors: u64,
    pub first_error: Option<String>,
    /// Reads that returned something else than was promised.
    pub mismatches: u64,
    /// Operations that should have begun, of a rate that was not reached: they waited longer than any that are counted.
    pub never_begun: u64,
    pub ledger: Option<Ledger>,
    /// Empty unless it was asked for.
    pub timeline: Timeline,
}

impl Outcome {
    pub fn operations(&self) -> u64 {
        self.reads.count() + self.writes.count()
    }

    pub fn iops(&self) -> f64 {
        if self.seconds > 0.0 { self.operations() as f64 / self.seconds } else { 0.0 }
    }

    /// The client's view of latency, in the form of the target's.
    pub fn report(&self) -> Report {
        let kinds = [("client_read", &self.reads), ("client_write", &self.writes)];
        let stages = kinds.into_iter().filter(|(_, distribution)| distribution.count() > 0);
        let stages = stages.map(|(name, distribution)| StageReport {
            name: name.to_owned(),
            kind: StageKind::Total,
            distribution: distribution.clone(),
        });
        Report { stages: stages.collect(), seconds: self.seconds, ..Report::default() }
    }
}

pub struct Engine {
    plan: Plan,
    random: SplitMix,
    begun_at: Nanos,
    ends_at: Nanos,
    last_at: Nanos,
    next_offset: u64,
    issued: u64,
    doing: Vec<Option<Doing>>,
    free: Vec<usize>,
    /// Blocks under way, which a verified load leaves alone until they are done: what they hold is then certain.
    locked: Bitmap,
    outcome: Outcome,
}

/// Places tried before a verified load waits for one of its own operations.
const PLACES_TRIED_MAX: usize = 32;

impl Engine {
    /// `now` is when the load begins.
    pub fn new(plan: Plan, now: Nanos) -> Engine {
        let block = BLOCK_BYTES as u64;
        let (first, blocks) = (plan.offset / block, plan.length.div_ceil(block));
        Engine {
            random: SplitMix(plan.seed),
            begun_at: now,
            ends_at: now.plus(Nanos((plan.seconds * 1e9) as u64)),
            last_at: now,
            next_offset: 0,
            issued: 0,
            doing: vec![None; plan.depth],
            free: (0..plan.depth).rev().collect(),
            locked: Bitmap::new(if plan.verify { blocks } else { 0 }),
            outcome: Outcome {
                seconds: 0.0,
                reads: Distribution::new(),
                writes: Distribution::new(),
                read_bytes: 0,
                written_bytes: 0,
                errors: 0,
                first_error: None,
                mismatches: 0,
                never_begun: 0,
                ledger: plan.verify.then(|| Ledger::new(plan.seed, first, blocks)),
                timeline: Timeline::default(),
            },
            plan,
        }
    }

    pub fn in_flight(&self) -> usize {
        self.plan.depth - self.free.len()
    }

    /// Operations completed so far.
    pub fn completed(&self) -> u64 {
        self.outcome.operations() + self.outcome.errors
    }

    /// When the next operation should begin.
    fn intended(&self, now: Nanos) -> Nanos {
        match self.plan.rate {
            Some(rate) => self.begun_at.plus(Nanos((self.issued as f64 / rate * 1e9) as u64)),
            None => now,
        }
    }

    /// Whether `next` would say that it is over.
    pub fn is_over(&self, now: Nanos) -> bool {
        let overdue_max = if self.plan.rate.is_some() { OVERDUE_MAX } else { Nanos(0) };
        self.intended(now) >= self.ends_at || now >= self.ends_at.plus(overdue_max)
    }

    pub fn next(&mut self, now: Nanos) -> Step {
        if self.is_over(now) {
            return Step::Over;
        }
        let intended = self.intended(now);
        if intended > now {
            return Step::Wait(intended);
        }
        let Some(&index) = self.free.last() else { return Step::Full };
        let Some((offset, length)) = self.place() else { return Step::Full };
        self.free.pop();
        self.issued += 1;
        let write = self.random.below(100) >= u64::from(self.plan.read_percent);
        let doing = Doing { write, offset: self.plan.offset + offset, length, intended };
        if self.plan.verify {
            blocks(offset, length).for_each(|block| {
                self.locked.insert(block);
            });
        }
        self.doing[index] = Some(doing);
        Step::Begin(index, doing)
    }

    /// Where the next operation goes, from the range's beginning. None if all places tried are under way.
    fn place(&mut self) -> Option<(u64, u32)> {
        for _ in 0..PLACES_TRIED_MAX {
            let length = self.plan.lengths[self.random.below(self.plan.lengths.len() as u64) as usize];
            let long = u64::from(length);
            let offset = match self.plan.pattern {
                Pattern::Random => self.random.below(self.plan.length / long) * long,
                Pattern::Sequential if self.next_offset + long > self.plan.length => 0,
                Pattern::Sequential => self.next_offset,
            };
            if self.plan.verify && blocks(offset, length).any(|block| self.locked.contains(block)) {
                if self.plan.pattern == Pattern::Sequential {
                    return None;
                }
                continue;
            }
            self.next_offset = offset + long;
            return Some((offset, length));
        }
        None
    }

    /// The contents of a block of a write under way, and for a load that is not verified, something of the kind.
    pub fn fill(&mut self, block: u64, out: &mut [u8]) {
        match &mut self.outcome.ledger {
            Some(ledger) => {
                let sequence = ledger.begin(block);
                ledger.fill(block, sequence, out);
            }
            // Unlike any other, though most of it stays what it was.
            None => out[..8].copy_from_slice(&(self.issued ^ block << 32).to_le_bytes()),
        }
    }

    /// A block of a read under way.
    pub fn check(&mut self, block: u64, bytes: &[u8]) {
        let Some(ledger) = &self.outcome.ledger else { return };
        if ledger.judge(block, bytes) != Verdict::Kept {
            self.outcome.mismatches += 1;
            self.outcome
                .first_error
                .get_or_insert_with(|| format!("block {block} holds something else than was written"));
        }
    }

    pub fn complete(&mut self, now: Nanos, index: usize, result: Result<(), String>) {
        let doing = self.doing[index].take().expect("an operation is completed once");
        self.free.push(index);
        self.last_at = self.last_at.max(now);
        let from_start = doing.offset - self.plan.offset;
        if self.plan.verify {
            blocks(from_start, doing.length).for_each(|block| {
                self.locked.remove(block);
            });
        }
        if let Err(error) = result {
            self.outcome.errors += 1;
            self.outcome.first_error.get_or_insert(error);
            return;
        }
        let latency = now.since(doing.intended);
        if self.plan.timeline {
            self.outcome.timeline.push(doing.intended, now);
        }
        if doing.write {
            self.outcome.writes.record(latency);
            self.outcome.written_bytes += u64::from(doing.length);
            if let Some(ledger) = &mut self.outcome.ledger {
                blocks(doing.offset, doing.length).for_each(|block| ledger.acknowledge(block));
            }
        } else {
            self.outcome.reads.record(latency);
            self.outcome.read_bytes += u64::from(doing.length);
        }
    }

    /// The blocks of an operation, from the volume's beginning.
    pub fn blocks_of(doing: &Doing) -> impl Iterator<Item = u64> + use<> {
        blocks(doing.offset, doing.length)
    }

    pub fn finish(mut self) -> Outcome {
        assert_eq!(self.in_flight(), 0, "operations are still under way");
        let due =
            self.plan.rate.map_or(0, |rate| (self.ends_at.since(self.begun_at).0 as f64 / 1e9 * rate) as u64);
        self.outcome.never_begun = due.saturating_sub(self.issued);
        self.outcome.seconds = self.last_at.since(self.begun_at).0 as f64 / 1e9;
        self.outcome
    }
}

fn blocks(offset: u64, length: u32) -> impl Iterator<Item = u64> + use<> {
    let block = BLOCK_BYTES as u64;
    offset / block..(offset + u64::from(length)).div_ceil(block)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        Plan {
            pattern: Pattern::Random,
            lengths: vec![4096],
            read_percent: 0,
            depth: 4,
            rate: None,
            seconds: 1.0,
            verify: false,
            timeline: false,
            seed: 1,
            offset: 8192,
            length: 1 << 20,
        }
    }

    fn begin(engine: &mut Engine, now: u64) -> (usize, Doing) {
        match engine.next(Nanos(now)) {
            Step::Begin(index, doing) => (index, doing),
            step => panic!("{step:?}"),
        }
    }

    #[test]
    fn at_a_fixed_rate_waiting_for_ones_turn_is_latency() {
        let plan = Plan { rate: Some(1000.0), depth: 1, ..plan() };
        let mut engine = Engine::new(plan, Nanos(0));
        let (first, _) = begin(&mut engine, 0);
        assert_eq!(engine.next(Nanos(500_000)), Step::Wait(Nanos(1_000_000)));
        assert_eq!(engine.next(Nanos(3_000_000)), Step::Full);
        engine.complete(Nanos(5_000_000), first, Ok(()));
        // Meant for 1 ms, begun at 5 ms, done at 6 ms.
        let (second, _) = begin(&mut engine, 5_000_000);
        engine.complete(Nanos(6_000_000), second, Ok(()));
        let outcome = engine.finish();
        assert_eq!(outcome.writes.sum_ns(), 10_000_000);
        assert_eq!((outcome.operations(), outcome.seconds), (2, 0.006));
    }

    #[test]
    fn what_a_stall_kept_from_beginning_begins_late_and_counts() {
        let plan = Plan { rate: Some(1000.0), depth: 1, ..plan() };
        let mut engine = Engine::new(plan.clone(), Nanos(0));
        let (first, _) = begin(&mut engine, 0);
        engine.complete(Nanos(2_000_000_000), first, Ok(()));
        for _ in 1..1000 {
            let (index, _) = begin(&mut engine, 2_000_000_000);
            engine.complete(Nanos(2_000_000_000), index, Ok(()));
        }
        assert_eq!(engine.next(Nanos(2_000_000_000)), Step::Over);
        let outcome = engine.finish();
        assert_eq!((outcome.operations(), outcome.never_begun), (1000, 0));
        assert!(outcome.writes.at_percentile_ns(50.0) > 1_400_000_000);

        let mut engine = Engine::new(plan, Nanos(0));
        let (first, _) = begin(&mut engine, 0);
        engine.complete(Nanos(12_000_000_000), first, Ok(()));
        assert_eq!(engine.next(Nanos(12_000_000_000)), Step::Over);
        assert_eq!(engine.finish().never_begun, 999);
    }

    #[test]
    fn operations_stay_in_their_range_and_end_in_time() {
        let plan = Plan { lengths: vec![512, 4096, 65_536], read_percent: 50, ..plan() };
        let mut engine = Engine::new(plan.clone(), Nanos(0));
        let (mut reads, mut writes) = (0, 0);
        for now in 0..2000u64 {
            let (index, doing) = begin(&mut engine, now);
            assert!(
                doing.offset >= 8192 && doing.offset + u64::from(doing.length) <= 8192 + (1 << 20),
                "{doing:?}"
            );
            assert!(plan.lengths.contains(&doing.length));
            *(if doing.write { &mut writes } else { &mut reads }) += 1;
            engine.complete(Nanos(now + 1), index, Ok(()));
        }
        assert!(reads > 800 && writes > 800, "{reads} reads, {writes} writes");
        assert_eq!(engine.next(Nanos(1_000_000_000)), Step::Over);
    }

    #[test]
    fn a_sequential_load_goes_round() {
        let plan = Plan { pattern: Pattern::Sequential, length: 16_384, ..plan() };
        let mut engine = Engine::new(plan, Nanos(0));
        let offsets: Vec<u64> = (0..5)
            .map(|now| {
                let (index, doing) = begin(&mut engine, now);
                engine.complete(Nanos(now + 1), index, Ok(()));
                doing.offset
            })
            .collect();
        assert_eq!(offsets, [8192, 12_288, 16_384, 20_480, 8192]);
    }

    #[test]
    fn a_verified_load_never_has_a_block_under_way_twice_and_sees_what_is_wrong() {
        let plan = Plan { verify: true, length: 3 * 4096, read_percent: 50, ..plan() };
        let mut engine = Engine::new(plan, Nanos(0));
        let mut under_way = Vec::new();
        let mut busy = std::collections::HashSet::new();
        loop {
            match engine.next(Nanos(1)) {
                Step::Begin(index, doing) => {
                    assert!(busy.insert(doing.offset), "twice at {}", doing.offset);
                    under_way.push((index, doing));
                }
                Step::Full => break,
                step => panic!("{step:?}"),
            }
        }
        assert_eq!(under_way.len(), 3, "three blocks, four places");
        for (index, doing) in under_way {
            let block = doing.offset / 4096;
            let mut bytes = [0; 4096];
            if doing.write {
                engine.fill(block, &mut bytes);
            } else {
                engine.check(block, &bytes);
            }
            engine.complete(Nanos(2), index, Ok(()));
        }
        assert_eq!(engine.outcome.mismatches, 0);
        let written =
            engine.outcome.ledger.as_ref().expect("verified").written().next().expect("one was written");
        engine.check(written, &[0; 4096]);
        assert_eq!(engine.outcome.mismatches, 1);
    }

    #[test]
    fn plans_that_cannot_be_run_are_refused() {
        let volume = 2 << 20;
        assert_eq!(plan().problem(volume), None);
        for wrong in [
            Plan { length: volume, ..plan() },
            Plan { offset: u64::MAX, ..plan() },
            Plan { offset: 100, ..plan() },
            Plan { lengths: vec![], ..plan() },
            Plan { lengths: vec![0], ..plan() },
            Plan { lengths: vec![1000], ..plan() },
            Plan { lengths: vec![512], verify: true, ..plan() },
            Plan { lengths: vec![2 << 20], ..plan() },
            Plan { depth: 0, ..plan() },
        ] {
            assert!(wrong.problem(volume).is_some(), "{wrong:?}");
        }
    }
}
