//! What the auditor knows of one site: the batches it has submitted to its journal, which of them are there, and what its
//! superblocks promise.

use std::collections::HashMap;
use std::ops::RangeInclusive;

use crate::sim::audit::journal::{BatchSeen, KIND_CUT, RING_FIRST, SuperblockSeen, superblock};
use crate::sim::audit::{Media, Place};
use crate::sim::content::Print;
use crate::sim::disk::{IoId, Stored};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    Submitted,
    Written,
    Durable,
    /// Not in the chain that the last recovery found. A crash may bring it back, by undoing what was written over it.
    Dead,
}

#[derive(Clone, Debug)]
struct Batch {
    io: IoId,
    /// After a crash: the writes, of whatever life, that put its blocks there and that a flush has to cover yet.
    unflushed: Vec<IoId>,
    block: u64,
    /// Its blocks, header first: a block that was lost over equal content is there all the same.
    prints: Vec<Print>,
    sequence: u64,
    previous: u64,
    digest: u64,
    first: u64,
    /// Generations of its updates; empty for a cut.
    generations: Vec<u64>,
    /// The last number of the stream once this batch counts.
    last: u64,
    state: State,
}

#[derive(Clone, Debug)]
pub struct Site {
    /// The site's stream as submitted to its journal: generations of the updates 1, 2, and so on.
    log: Vec<u64>,
    /// The updates of the batch that is being looked at.
    forming: Vec<(u64, u64)>,
    batches: Vec<Batch>,
    /// Batches before these are written, and durable.
    written_batches: usize,
    durable_batches: usize,
    /// The sequence that the replay of the last restart began with.
    replays_from: u64,
    written: u64,
    durable: u64,
    /// What its memory holds beyond its journal: number and generation of the latest update that the peer sent.
    received: (u64, u64),
    /// Dead are those that a crash lost.
    superblocks: Vec<(IoId, SuperblockSeen, State)>,
    /// Sequence and position of the newest superblock that is durable.
    durable_position: (u64, u64),
    /// The batch that lies on each block.
    owners: Vec<Option<usize>>,
    /// Batches that the last crash left whole, with blocks that no flush covers yet.
    unflushed: Vec<usize>,
    /// Batches by the place and the content of their headers, which differ by sequence or digest.
    headers: HashMap<(u64, Print), usize>,
    /// Where reads have failed in this life.
    unread: Vec<u64>,
    /// The ends of batches that it has given up reading.
    does_without: Vec<u64>,
    volatile: bool,
}

impl Site {
    pub fn new(journal_blocks: u64, volatile: bool) -> Site {
        Site {
            log: Vec::new(),
            forming: Vec::new(),
            batches: Vec::new(),
            written_batches: 0,
            durable_batches: 0,
            replays_from: 0,
            written: 0,
            durable: 0,
            received: (0, 0),
            superblocks: Vec::new(),
            durable_position: (0, 0),
            owners: vec![None; journal_blocks as usize],
            unflushed: Vec::new(),
            headers: HashMap::new(),
            unread: Vec::new(),
            does_without: Vec::new(),
            volatile,
        }
    }

    /// The last number in its journal, completed.
    pub fn written(&self) -> u64 {
        self.written.min(self.log.len() as u64)
    }

    /// The last number submitted to its journal.
    pub fn last(&self) -> u64 {
        self.log.len() as u64
    }

    pub fn durable(&self) -> u64 {
        self.durable.min(self.log.len() as u64)
    }

    /// The generations of what it has durably.
    pub fn durable_log(&self) -> &[u64] {
        &self.log[..self.durable() as usize]
    }

    pub fn received(&self) -> (u64, u64) {
        self.received
    }

    pub fn receives(&mut self, number: u64, generation: u64) {
        self.received = (number, generation);
    }

    /// Whether its journal or its memory has this update.
    pub fn has(&self, number: u64, generation: u64) -> bool {
        self.log.get(number as usize - 1) == Some(&generation)
            || (self.received.1 == generation && number <= self.received.0)
    }

    /// The generation of an update that its journal may have.
    pub fn submitted(&self, number: u64) -> Option<u64> {
        self.log.get(number as usize - 1).copied()
    }

    /// A batch with these updates, by number and generation, is about to be submitted.
    pub fn forms(&mut self, updates: impl Iterator<Item = (u64, u64)>) {
        self.forming.clear();
        self.forming.extend(updates);
    }

    /// The generation of an update that its journal may have, or is about to.
    pub fn submits(&self, number: u64) -> Option<u64> {
        let forming = self.forming.iter().find(|(forming, _)| *forming == number);
        forming.map(|(_, generation)| *generation).or_else(|| self.submitted(number))
    }

    pub fn generation_of(&self, number: u64) -> u64 {
        self.log[number as usize - 1]
    }

    pub fn submits_batch(
        &mut self,
        io: IoId,
        block: u64,
        prints: Vec<Print>,
        seen: &BatchSeen,
    ) -> Result<(), String> {
        let cut = seen.updates.iter().any(|update| update.kind == KIND_CUT);
        if cut && seen.updates.len() != 1 {
            return Err(format!("a cut shares batch {} with other updates", seen.sequence));
        }
        let expected = 1 + seen.updates.iter().map(|update| update.payload() as u64).sum::<u64>();
        let blocks = prints.len() as u64;
        if blocks != expected {
            return Err(format!("batch {} of {blocks} blocks should have {expected}", seen.sequence));
        }
        let first = seen.updates.first().map_or(self.log.len() as u64 + 1, |update| update.number);
        if cut {
            if first > self.log.len() as u64 {
                return Err(format!("a cut keeps {first} of {} updates", self.log.len()));
            }
            self.log.truncate(first as usize);
            // What comes after it is other updates, wherever the old ones are.
            (self.written, self.durable) = (self.written.min(first), self.durable.min(first));
        } else {
            for update in &seen.updates {
                if update.number != self.log.len() as u64 + 1 {
                    let last = self.log.len();
                    return Err(format!("journal of {last} updates goes on with {}", update.number));
                }
                self.log.push(update.generation);
            }
        }
        // What lies where the batch goes must not be needed by a replay any more.
        let (_, needed_from) = self.durable_position;
        for at in block..block + blocks {
            if let Some(owner) = self.owners[at as usize] {
                let owner = &self.batches[owner];
                if owner.state != State::Dead && owner.sequence >= needed_from {
                    return Err(format!(
                        "journal block {at} of batch {} is reused while replay starts at batch {needed_from} (INV-4)",
                        owner.sequence
                    ));
                }
            }
            self.owners[at as usize] = Some(self.batches.len());
        }
        assert!(self.batches.last().is_none_or(|batch| batch.io < io), "batches are kept in order");
        self.headers.insert((block, prints[0]), self.batches.len());
        self.batches.push(Batch {
            io,
            unflushed: Vec::new(),
            block,
            prints,
            sequence: seen.sequence,
            previous: seen.previous,
            digest: seen.digest,
            first,
            generations: if cut {
                Vec::new()
            } else {
                seen.updates.iter().map(|update| update.generation).collect()
            },
            last: self.log.len() as u64,
            state: State::Submitted,
        });
        Ok(())
    }

    /// The first update of the batches from this one on.
    pub fn first_from(&self, sequence: u64) -> Option<u64> {
        let kept =
            self.batches.iter().filter(|batch| batch.state != State::Dead && batch.sequence >= sequence);
        kept.filter(|batch| !batch.generations.is_empty()).map(|batch| batch.first).min()
    }

    /// The first update that its journal keeps, by the superblock that it wrote last.
    pub fn kept_from(&self) -> u64 {
        let newest = self.superblocks.iter().rev().find(|(_, _, state)| *state != State::Dead);
        let newest = newest.map(|(_, seen, _)| *seen);
        let from =
            newest.and_then(|seen| self.first_from(seen.position_sequence).or(Some(seen.checkpoint + 1)));
        from.unwrap_or(1)
    }

    /// Whether it went on without a batch that has what follows this number, its disk not having given that when it was asked twice.
    pub fn does_without_after(&self, number: u64) -> bool {
        self.does_without.iter().any(|last| *last > number)
    }

    /// It goes on without what begins there.
    pub fn gives_up_reading(&mut self, block: u64) {
        let failed = self.unread.iter().filter(|unread| **unread == block).count();
        if let Some(unread) = self.unread_at(block).filter(|_| failed >= 2) {
            self.does_without.push(*unread.end());
        }
    }

    /// Its disk has failed to read what begins there.
    pub fn read_fails(&mut self, block: u64) {
        self.unread.push(block);
    }

    /// The updates of the batch that begins there, if its disk has failed to read that.
    pub fn unread_at(&self, block: u64) -> Option<RangeInclusive<u64>> {
        let batch = &self.batches[self.owners[block as usize]?];
        self.unread.contains(&block).then_some(batch.first..=batch.last)
    }

    /// Its volumes were brought to the end of these, by other means than its journal.
    pub fn installs(&mut self, generations: Vec<u64>) {
        self.written = generations.len() as u64;
        self.durable = self.written;
        self.log = generations;
    }

    /// Whether a start that goes by this superblock finds all that its checkpoint leaves to replay: it names a batch that is there,
    /// with what the reader expects before it, or the place of the next one.
    fn check_position(&self, seen: &SuperblockSeen) -> Result<(), String> {
        let (last, place) = (self.log.len() as u64, (seen.position_block, seen.position_previous));
        let living = || self.batches.iter().rev().filter(|batch| batch.state != State::Dead);
        if let Some(batch) = living().find(|batch| batch.sequence == seen.position_sequence) {
            let Batch { block, previous, first, .. } = *batch;
            // A reader who finds no batch where the one before it ends looks at the ring's start.
            let found =
                [seen.position_block, RING_FIRST].contains(&block) && previous == seen.position_previous;
            if !found {
                return Err(format!("its batch is at block {block} and follows {previous:x}"));
            }
            // A cut names the last update that it keeps, which has to be there before it.
            let lacks = if batch.generations.is_empty() { first } else { first - 1 };
            if lacks > seen.checkpoint {
                return Err(format!("what follows its checkpoint and is before #{first} is left out"));
            }
            return Ok(());
        }
        let next = match living().next() {
            Some(batch) => {
                let end = batch.block + batch.prints.len() as u64;
                let end = if end == self.owners.len() as u64 { RING_FIRST } else { end };
                (end, batch.digest)
            }
            // A journal that has just been formatted, or whose site has installed what it was copied.
            None => (RING_FIRST, 0),
        };
        if place != next || living().next().is_some_and(|batch| batch.sequence >= seen.position_sequence) {
            return Err(format!("the next batch is to be at block {} and to follow {:x}", next.0, next.1));
        }
        if last > seen.checkpoint {
            return Err(format!("the journal has updates up to #{last}"));
        }
        Ok(())
    }

    pub fn submits_superblock(&mut self, io: IoId, seen: SuperblockSeen) {
        assert!(
            self.superblocks.last().is_none_or(|(last, _, _)| *last < io),
            "superblocks are kept in order"
        );
        if let Err(why) = self.check_position(&seen) {
            panic!("INV-1: {seen:?}, and {why}");
        }
        self.superblocks.push((io, seen, State::Submitted));
    }

    pub fn written_io(&mut self, io: IoId) {
        let state = if self.volatile { State::Written } else { State::Durable };
        self.advance(&[io], state);
    }

    pub fn flushed(&mut self, covers: &[IoId]) {
        let batches = &mut self.batches;
        self.unflushed.retain(|&index| {
            batches[index].unflushed.retain(|io| !covers.contains(io));
            let waits = !batches[index].unflushed.is_empty();
            if !waits {
                batches[index].state = State::Durable;
            }
            waits
        });
        self.advance(covers, State::Durable);
    }

    fn advance(&mut self, ios: &[IoId], state: State) {
        // I/Os are named in the order they are submitted in.
        for io in ios {
            if let Ok(index) = self.batches.binary_search_by_key(io, |batch| batch.io) {
                let batch = &mut self.batches[index];
                if batch.state != State::Dead && batch.unflushed.is_empty() {
                    batch.state = batch.state.max(state);
                }
            }
            if let Ok(index) = self.superblocks.binary_search_by_key(io, |(io, _, _)| *io) {
                let (_, seen, held) = &mut self.superblocks[index];
                *held = (*held).max(state);
                if *held == State::Durable {
                    let position = (seen.sequence, seen.position_sequence);
                    self.durable_position = self.durable_position.max(position);
                }
            }
        }
        self.count();
    }

    fn count(&mut self) {
        // A batch that the last restart's superblock lies behind is none that a replay reads: it may be lost for ever.
        let counts = |batch: &Batch| batch.state != State::Dead && batch.sequence >= self.replays_from;
        let reached = |batch: &Batch, state| batch.state >= state || batch.sequence < self.replays_from;
        while let Some(batch) = self.batches.get(self.written_batches).filter(|b| reached(b, State::Written))
        {
            if counts(batch) {
                self.written = batch.last;
            }
            self.written_batches += 1;
        }
        while let Some(batch) = self.batches.get(self.durable_batches).filter(|b| reached(b, State::Durable))
        {
            if counts(batch) {
                self.durable = batch.last;
            }
            self.durable_batches += 1;
        }
    }

    /// The site died: its journal now is what replay will find from the newest superblock on. Returns the checkpoint.
    pub fn crashed(&mut self, media: &dyn Media) -> u64 {
        self.received = (0, 0);
        self.unread.clear();
        self.does_without.clear();
        let start = (0..2)
            .filter_map(|slot| media.visible(Place::Journal, slot))
            .filter_map(|stored| superblock(stored.content.bytes.as_deref()?))
            .max_by_key(|seen| seen.sequence)
            .expect("a formatted journal keeps a superblock");
        let there = |batch: &Batch, look: &dyn Fn(u64) -> Print| {
            (batch.block..).zip(&batch.prints).all(|(at, print)| look(at) == *print)
        };
        let print = |stored: Option<&Stored>| stored.map_or(Print::ZERO, |stored| stored.content.print);
        let visible = |at| print(media.visible(Place::Journal, at));
        let durable = |at| print(media.durable(Place::Journal, at));
        // The chain as docs/FORMATS.md tells a reader to follow it, and not as batches were submitted: where a write was lost,
        // what lay there before counts again if it is whole.
        let ring_end = self.owners.len() as u64;
        let (mut at, mut sequence, mut previous) =
            (start.position_block, start.position_sequence, start.position_previous);
        let mut chain: Vec<usize> = Vec::new();
        while let Some(index) = [at, RING_FIRST].into_iter().find_map(|block| {
            let index = *self.headers.get(&(block, visible(block)))?;
            let batch = &self.batches[index];
            let follows = batch.previous == previous && batch.sequence >= sequence;
            (follows && there(batch, &visible)).then_some(index)
        }) {
            assert!(
                chain.last().is_none_or(|last| *last < index),
                "batch {} of an earlier life follows one of a later life",
                self.batches[index].sequence
            );
            let batch = &self.batches[index];
            let end = batch.block + batch.prints.len() as u64;
            (at, sequence, previous) =
                (if end == ring_end { RING_FIRST } else { end }, batch.sequence + 1, batch.digest);
            chain.push(index);
        }
        for batch in self.batches.iter_mut().filter(|batch| batch.sequence >= start.position_sequence) {
            batch.state = State::Dead;
            batch.unflushed.clear();
        }
        self.unflushed.clear();
        self.log.truncate(start.checkpoint as usize);
        for index in chain {
            let batch = &mut self.batches[index];
            batch.unflushed = (batch.block..)
                .zip(&batch.prints)
                .filter(|(at, print)| durable(*at) != **print)
                .map(|(at, _)| media.visible(Place::Journal, at).expect("looked at above").io)
                .collect();
            batch.state = if batch.unflushed.is_empty() {
                State::Durable
            } else {
                self.unflushed.push(index);
                State::Written
            };
            // Batches that the checkpoint covers in part or whole add nothing below it.
            if batch.generations.is_empty() {
                self.log.truncate(batch.last as usize);
            } else {
                self.log.truncate(batch.first as usize - 1);
                assert_eq!(self.log.len() as u64, batch.first - 1, "a surviving chain of batches is dense");
                self.log.extend(&batch.generations);
            }
            for at in batch.block..batch.block + batch.prints.len() as u64 {
                self.owners[at as usize] = Some(index);
            }
        }
        for (io, seen, state) in &mut self.superblocks {
            let slot = seen.sequence % 2;
            let visible = media.visible(Place::Journal, slot).is_some_and(|stored| stored.io == *io);
            let durable = media.durable(Place::Journal, slot).is_some_and(|stored| stored.io == *io);
            *state = match (visible, durable) {
                (_, true) => State::Durable,
                (true, false) => State::Written,
                (false, false) if *state == State::Durable => State::Durable,
                (false, false) => State::Dead,
            };
            if *state == State::Durable {
                self.durable_position = self.durable_position.max((seen.sequence, seen.position_sequence));
            }
        }
        let base = start.checkpoint;
        self.written_batches = 0;
        self.durable_batches = 0;
        self.replays_from = start.position_sequence;
        self.count();
        self.written = self.written.max(base);
        self.durable = self.durable.max(base);
        base
    }
}
