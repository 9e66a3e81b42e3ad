//! What the auditor knows of one site: the batches it has submitted to its journal, which of them are there, and what its
//! superblocks promise.

use crate::sim::audit::journal::{BatchSeen, KIND_CUT, SuperblockSeen, superblock};
use crate::sim::audit::{Media, Place};
use crate::sim::content::Print;
use crate::sim::disk::{IoId, Stored};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    Submitted,
    Written,
    Durable,
    /// Not in the chain that the last recovery found.
    Dead,
}

#[derive(Debug)]
struct Batch {
    io: IoId,
    block: u64,
    /// Its blocks, header first: a block that was lost over equal content is there all the same.
    prints: Vec<Print>,
    sequence: u64,
    first: u64,
    /// Generations of its updates; empty for a cut.
    generations: Vec<u64>,
    /// The last number of the stream once this batch counts.
    last: u64,
    state: State,
}

#[derive(Debug)]
pub struct Site {
    /// The site's stream as submitted to its journal: generations of the updates 1, 2, and so on.
    log: Vec<u64>,
    batches: Vec<Batch>,
    /// Batches before these are written, and durable.
    written_batches: usize,
    durable_batches: usize,
    written: u64,
    durable: u64,
    /// What its memory holds beyond its journal: number and generation of the latest update that the peer sent.
    received: (u64, u64),
    superblocks: Vec<(IoId, SuperblockSeen, State)>,
    /// Sequence and position of the newest superblock that is durable.
    durable_position: (u64, u64),
    /// The batch that lies on each block.
    owners: Vec<Option<usize>>,
    volatile: bool,
}

impl Site {
    pub fn new(journal_blocks: u64, volatile: bool) -> Site {
        Site {
            log: Vec::new(),
            batches: Vec::new(),
            written_batches: 0,
            durable_batches: 0,
            written: 0,
            durable: 0,
            received: (0, 0),
            superblocks: Vec::new(),
            durable_position: (0, 0),
            owners: vec![None; journal_blocks as usize],
            volatile,
        }
    }

    /// The last number in its journal, completed.
    pub fn written(&self) -> u64 {
        self.written.min(self.log.len() as u64)
    }

    pub fn durable(&self) -> u64 {
        self.durable.min(self.log.len() as u64)
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
        self.batches.push(Batch {
            io,
            block,
            prints,
            sequence: seen.sequence,
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

    pub fn submits_superblock(&mut self, io: IoId, seen: SuperblockSeen) {
        assert!(
            self.superblocks.last().is_none_or(|(last, _, _)| *last < io),
            "superblocks are kept in order"
        );
        self.superblocks.push((io, seen, State::Submitted));
    }

    pub fn written_io(&mut self, io: IoId) {
        let state = if self.volatile { State::Written } else { State::Durable };
        self.advance(&[io], state);
    }

    pub fn flushed(&mut self, covers: &[IoId]) {
        self.advance(covers, State::Durable);
    }

    fn advance(&mut self, ios: &[IoId], state: State) {
        // I/Os are named in the order they are submitted in.
        for io in ios {
            if let Ok(index) = self.batches.binary_search_by_key(io, |batch| batch.io) {
                let batch = &mut self.batches[index];
                if batch.state != State::Dead {
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
        while let Some(batch) = self.batches.get(self.written_batches).filter(|b| b.state >= State::Written) {
            if batch.state != State::Dead {
                self.written = batch.last;
            }
            self.written_batches += 1;
        }
        while let Some(batch) = self.batches.get(self.durable_batches).filter(|b| b.state >= State::Durable) {
            if batch.state != State::Dead {
                self.durable = batch.last;
            }
            self.durable_batches += 1;
        }
    }

    /// The site died: its journal now is what replay will find from the newest superblock on. Returns the checkpoint.
    pub fn crashed(&mut self, media: &dyn Media) -> u64 {
        self.received = (0, 0);
        let start = (0..2)
            .filter_map(|slot| media.visible(Place::Journal, slot))
            .filter_map(|stored| superblock(&stored.data))
            .max_by_key(|seen| seen.sequence)
            .expect("a formatted journal keeps a superblock");
        let there = |batch: &Batch, look: &dyn Fn(u64) -> Print| {
            (batch.block..).zip(&batch.prints).all(|(at, print)| look(at) == *print)
        };
        let print = |stored: Option<&Stored>| stored.map_or(Print::ZERO, |stored| stored.print);
        let visible = |at| print(media.visible(Place::Journal, at));
        let durable = |at| print(media.durable(Place::Journal, at));
        let mut next = start.position_sequence;
        let mut whole = true;
        self.log.truncate(start.checkpoint as usize);
        for batch in self.batches.iter_mut().filter(|batch| batch.state != State::Dead) {
            if batch.sequence < start.position_sequence {
                continue;
            }
            whole = whole && batch.sequence >= next && there(batch, &visible);
            if !whole {
                batch.state = State::Dead;
                continue;
            }
            // A restarted site leaps ahead in its sequence.
            next = batch.sequence + 1;
            batch.state = if there(batch, &durable) { State::Durable } else { State::Written };
            // Batches that the checkpoint covers in part or whole add nothing below it.
            if batch.generations.is_empty() {
                self.log.truncate(batch.last as usize);
            } else {
                self.log.truncate(batch.first as usize - 1);
                assert_eq!(self.log.len() as u64, batch.first - 1, "a surviving chain of batches is dense");
                self.log.extend(&batch.generations);
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
                (false, false) => State::Submitted,
            };
            if *state == State::Durable {
                self.durable_position = self.durable_position.max((seen.sequence, seen.position_sequence));
            }
        }
        let base = start.checkpoint;
        self.written_batches = 0;
        self.durable_batches = 0;
        self.count();
        self.written = self.written.max(base);
        self.durable = self.durable.max(base);
        base
    }
}
