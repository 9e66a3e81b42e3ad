//! The journal as far as a start would read it. A batch that has gone bad cannot be had from anywhere else as it was; but its updates
//! are in memory or in the volumes, so a checkpoint past them makes it unneeded, and nobody reads it again.

use super::{BadPlace, Part};
use crate::base::*;
use crate::core::config::Role;
use crate::core::group::catch_up::updates_of_batch;
use crate::core::group::{Group, Turn};
use crate::core::journal::{Batch, Journal};
use crate::core::messages::*;
use crate::core::outbox::{BatchStays, Event};
use crate::format::update::Update;

/// Bad batches that are waited for at once: further ones are read when one of them is not needed any more.
const BAD_MAX: usize = 16;

/// A batch that is not what was written there.
#[derive(Clone, Copy, Debug)]
struct Bad {
    sequence: u64,
    block: u64,
    first: UpdateNumber,
    last: UpdateNumber,
    /// How many sweeps have ended once one was the end of it, if one was asked for.
    checkpoint: Option<u64>,
}

#[derive(Debug)]
pub(in crate::core::group) struct JournalPass {
    /// Sequences of batches: what is read next, and what the pass does not go to.
    next: u64,
    end: u64,
    reading: Option<(SlotId, Batch)>,
    bad: Vec<Bad>,
    descriptors: Box<[Update; BATCH_DESCRIPTORS_MAX]>,
}

impl JournalPass {
    pub fn new() -> JournalPass {
        JournalPass {
            next: 0,
            end: 0,
            reading: None,
            bad: Vec::with_capacity(BAD_MAX),
            descriptors: Box::new([Update::EMPTY; BATCH_DESCRIPTORS_MAX]),
        }
    }

    pub(super) fn begin(&mut self, journal: &Journal) {
        (self.next, self.end) = (0, journal.head().sequence);
        self.bad.clear();
    }

    pub(super) fn forget(&mut self) {
        self.bad.clear();
    }

    pub fn is_read(&self, slot: SlotId) -> bool {
        self.reading.is_some_and(|(reading, _)| reading == slot)
    }

    /// Whether the journal is better not held from after this number on.
    pub fn is_bad_after(&self, number: UpdateNumber) -> bool {
        self.bad.iter().any(|bad| bad.last > number)
    }

    /// The tail of the journal was cut: nobody waits until what it had is settled. Batches cut away whole are in the chain all the same, and
    /// are to be passed.
    pub fn bad_batches_cut_to(&mut self, keep: UpdateNumber) {
        let found = self.bad.iter_mut().map(|bad| (&mut bad.first, &mut bad.last));
        let read = self.reading.iter_mut().map(|(_, batch)| (&mut batch.first, &mut batch.last));
        for (first, last) in found.chain(read) {
            (*first, *last) = ((*first).min(keep.next()), (*last).min(keep));
        }
    }
}

impl Group {
    pub(super) fn scrub_journal(&mut self, turn: &mut Turn<impl Memory>) {
        self.pass_bad_batches(turn);
        let (next, end) = (self.scrub.journal.next, self.scrub.journal.end);
        let batch = self.journal.written_from(next).filter(|batch| batch.position.sequence < end);
        let waits = !self.scrub.journal.bad.is_empty();
        let Some(batch) = batch else {
            return match waits {
                true => self.scrub.looks_again(turn.now),
                false => self.next_part(Part::Journal),
            };
        };
        let blocks = batch.blocks as usize;
        let full = self.scrub.journal.bad.len() == BAD_MAX;
        if full || self.pages.free() < BATCH_BLOCKS_MAX + blocks || !self.journal.has_slot() {
            return self.scrub.looks_again(turn.now);
        }
        let slot = self.read_batch(turn, &batch).expect("checked above");
        self.scrub.begin_reading(turn.now);
        self.scrub.journal.reading = Some((slot, batch));
    }

    /// A batch was read back.
    pub(in crate::core::group) fn journal_scrubbed(
        &mut self,
        turn: &mut Turn<impl Memory>,
        slot: SlotId,
        result: Result<(), IoFault>,
    ) {
        let (_, batch) = self.scrub.journal.reading.take().expect("is_read matched");
        let (sequence, block) = (batch.position.sequence, batch.position.block);
        let began = self.scrub.end_reading();
        let descriptors = &mut self.scrub.journal.descriptors;
        let sound = result.is_ok() && updates_of_batch(turn, slot, &batch, descriptors).is_some();
        self.release_row(turn, slot, batch.blocks);
        let Some(began) = began else { return };
        self.scrub.journal.next = sequence + 1;
        self.scrub.of(Part::Journal).read += u64::from(batch.blocks);
        self.pace_scrub(turn.now, began, u64::from(batch.blocks));
        // Something else may be there, if a checkpoint let go of it meanwhile.
        if sound || !self.journal.holds(sequence) {
            return;
        }
        if let Err(fault) = result {
            turn.event(Event::ReadFailed { target: IoTarget::Journal, fault, block });
        }
        let Batch { first, last, .. } = batch;
        self.scrub.of(Part::Journal).bad += 1;
        turn.event(Event::BatchDamaged { block, first, last });
        self.scrub.journal.bad.push(Bad { sequence, block, first, last, checkpoint: None });
    }

    /// Has checkpoints written past what is bad, and says what came of it.
    fn pass_bad_batches(&mut self, turn: &mut Turn<impl Memory>) {
        let mut index = 0;
        while let Some(&bad) = self.scrub.journal.bad.get(index) {
            match self.pass_bad_batch(&bad) {
                Passing::Waits(checkpoint) => {
                    self.scrub.journal.bad[index].checkpoint = checkpoint;
                    index += 1;
                    continue;
                }
                Passing::Passed => {
                    turn.event(Event::BatchPassed { block: bad.block });
                    self.scrub.note(BadPlace::Journal(bad.block), true);
                }
                Passing::Stays(why) => {
                    let Bad { block, first, last, .. } = bad;
                    turn.event(Event::BatchStays { block, first, last, why });
                    self.scrub.note(BadPlace::Journal(bad.block), false);
                }
            }
            self.scrub.journal.bad.remove(index);
        }
    }

    fn pass_bad_batch(&mut self, bad: &Bad) -> Passing {
        if !self.journal.holds(bad.sequence) {
            return Passing::Passed;
        }
        let alone = self.role != Role::Secondary && !self.in_set();
        if bad.last > self.settled {
            return match alone || self.engaged() {
                true => Passing::Waits(None),
                false => Passing::Stays(BatchStays::Unsettled),
            };
        }
        let checkpoint = bad.checkpoint.unwrap_or_else(|| self.destage.next_sweep());
        if !self.checkpointed(checkpoint) {
            return Passing::Waits(Some(checkpoint));
        }
        // The checkpoint covers it, and yet it is held.
        match self.engaged() {
            true if self.destage.retention_moved() => Passing::Waits(None),
            true => Passing::Waits(Some(checkpoint)),
            false => Passing::Stays(BatchStays::ForPeer),
        }
    }
}

enum Passing {
    /// Until so many sweeps have ended, if one was asked for.
    Waits(Option<u64>),
    Passed,
    Stays(BatchStays),
}
