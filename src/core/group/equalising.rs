//! A block in which the sites differ becomes the same at both: what the named one of them has is written anew, by an update of the stream,
//! unless a host writes the block meanwhile. From the moment at which it is compared, what is numbered is watched for that; so no host's
//! write is ever overwritten by what was there before it.
//!
//! The update is a `Rewrite`, which captures nothing: the block has been this all along, and snapshots that have not kept it yet show it.

use super::comparing::LOOKS_AGAIN_AFTER;
use super::mending::{ASK_AGAIN_AFTER, holds};
use super::peering::LINK_SPARE;
use super::storage::VolumeIo;
use super::{Group, Turn};
use crate::base::*;
use crate::core::messages::*;
use crate::core::outbox::{Event, WriteStamps};
use crate::format::update::{Update, UpdateKind};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Whether the sites differ is being found out.
    Compared,
    /// This site's content is wanted, and read if it is not in memory.
    Own,
    Reading,
    /// The peer is to be asked for the block with this checksum, not before this.
    Wanted {
        sum: BlockSum,
        from: Nanos,
    },
    Asked {
        sum: BlockSum,
    },
    /// This page holds what the peer has.
    Known {
        page: PageId,
    },
    Numbered {
        number: UpdateNumber,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Equalising {
    volume: VolumeId,
    lba: Lba,
    /// The peer's content is the right one.
    theirs: bool,
    /// A host's write that makes the block the same at both; `NONE` without one.
    overwritten: UpdateNumber,
    step: Step,
}

impl Group {
    /// What is numbered and not settled counts as written meanwhile: the comparison is of what is settled.
    pub(super) fn watched(&self, volume: VolumeId, lba: Lba, theirs: bool) -> Equalising {
        let newest = self.cache.peek(volume, lba).map(|newest| newest.number);
        let overwritten = newest.filter(|newest| *newest > self.settled).unwrap_or(UpdateNumber::NONE);
        Equalising { volume, lba, theirs, overwritten, step: Step::Compared }
    }

    /// An update has its number.
    pub(super) fn note_written(&mut self, update: &Update) {
        let Some(equal) = &mut self.comparing.equalising else { return };
        let blocks = update.lba.0..update.lba.0 + u64::from(update.count);
        let touches =
            update.touches_blocks() && update.volume == equal.volume && blocks.contains(&equal.lba.0);
        if touches {
            equal.overwritten = update.number;
        }
    }

    /// The block differs. `damaged` and what the peer says count what had gone bad on the disks.
    pub(super) fn begin_equalising(
        &mut self,
        turn: &mut Turn<impl Memory>,
        damaged: u32,
        (theirs, damaged_there): (Digest128, u32),
    ) {
        let equal = self.comparing.equalising.as_mut().expect("it was asked for");
        if (if equal.theirs { damaged_there } else { damaged }) > 0 {
            return self.end_compare(turn, Err(AdminError::SourceDamaged));
        }
        // Of one block it is the checksum.
        let sum = BlockSum(theirs.0[0] as u32);
        equal.step = if equal.theirs { Step::Wanted { sum, from: turn.now } } else { Step::Own };
    }

    pub(super) fn forget_equalising(&mut self, turn: &mut Turn<impl Memory>) {
        if let Some(Equalising { step: Step::Known { page }, .. }) = self.comparing.equalising.take() {
            self.pages.release(page, turn.memory);
        }
    }

    fn equalise_by(&mut self, step: Step) {
        self.comparing.equalising.as_mut().expect("it is under way").step = step;
    }

    pub(super) fn equalise_turn(&mut self, turn: &mut Turn<impl Memory>) {
        let Some(Equalising { volume, lba, overwritten, step, .. }) = self.comparing.equalising else {
            return;
        };
        let both = self.settled.min(self.acknowledged);
        match step {
            Step::Compared => {}
            Step::Numbered { number } if number <= both => self.end_compare(turn, Ok(number)),
            Step::Numbered { .. } => {}
            _ if overwritten != UpdateNumber::NONE => {
                self.flush_wanted = self.flush_wanted.max(overwritten);
                if overwritten <= both {
                    self.end_compare(turn, Ok(overwritten));
                }
            }
            Step::Own => match self.cache.peek(volume, lba) {
                Some(value) if self.may_rewrite(turn) => {
                    let page = self.pages.take().expect("there is room");
                    turn.memory.copy(value.page, page, 0..BLOCK_BYTES);
                    self.rewrite(turn, volume, lba, page);
                }
                Some(_) => {}
                None if self.room_to_fetch(turn, 1) => {
                    self.comparing.begin_read();
                    self.equalise_by(Step::Reading);
                    self.fetch_blocks(turn, volume, lba, 1, VolumeIo::Equalise { volume, lba });
                }
                None => {}
            },
            Step::Wanted { sum: BlockSum::ZEROS, .. } if self.pages.free() > BATCH_BLOCKS_MAX => {
                let page = self.pages.take().expect("checked");
                turn.memory.copy(PageId::ZERO, page, 0..BLOCK_BYTES);
                self.equalise_by(Step::Known { page });
            }
            Step::Wanted { sum, from } if turn.now >= from && turn.out.to_link.room() > LINK_SPARE => {
                let place = BlockPlace::Volume(volume, lba);
                turn.out.to_link.push(ToLink::Control(Control::BlockWanted { place, sum }));
                self.equalise_by(Step::Asked { sum });
            }
            Step::Known { page } if self.may_rewrite(turn) => self.rewrite(turn, volume, lba, page),
            Step::Reading | Step::Wanted { .. } | Step::Asked { .. } | Step::Known { .. } => {}
        }
    }

    /// Whether a block is about to be given other contents.
    pub(super) fn equalises(&self) -> bool {
        self.comparing.equalising.is_some()
    }

    fn may_rewrite(&mut self, turn: &mut Turn<impl Memory>) -> bool {
        self.serving() && !self.stopping && self.room_to_number(turn, 1, 1)
    }

    fn rewrite(&mut self, turn: &mut Turn<impl Memory>, volume: VolumeId, lba: Lba, page: PageId) {
        let sum = turn.memory.sum(page);
        let update = Update {
            number: self.window.last().next(),
            generation: self.generation,
            lba,
            count: 1,
            sum: sum_of_sums([sum].into_iter()),
            volume,
            kind: UpdateKind::Rewrite,
            ..Update::EMPTY
        };
        let stamps = WriteStamps { numbered_at: turn.now, ..WriteStamps::default() };
        self.append(turn, update, None, stamps, |_| (page, sum), None);
        self.flush_wanted = self.flush_wanted.max(update.number);
        self.equalise_by(Step::Numbered { number: update.number });
    }

    /// The block was read, and is in memory if it is sound.
    pub(super) fn read_to_equalise(
        &mut self,
        turn: &mut Turn<impl Memory>,
        slot: SlotId,
        (volume, lba): (VolumeId, Lba),
        result: Result<(), IoFault>,
    ) {
        self.comparing.end_read();
        if let Err(fault) = result {
            turn.event(Event::ReadFailed { target: IoTarget::Volume(volume), fault, block: lba.0 });
        }
        self.enter_fetched(turn, slot, volume, lba, 0, result.is_ok());
        let wanted = self
            .comparing
            .equalising
            .is_some_and(|equal| equal.step == Step::Reading && (equal.volume, equal.lba) == (volume, lba));
        if wanted && self.cache.peek(volume, lba).is_some() {
            self.equalise_by(Step::Own);
        } else if wanted {
            self.end_compare(turn, Err(AdminError::SourceDamaged));
        }
    }

    /// The peer sent a block. It may be the answer to what is not asked any more.
    pub(super) fn equalise_with(&mut self, turn: &mut Turn<impl Memory>, received: PageId, length: u16) {
        let Some(Equalising { step: Step::Asked { sum }, .. }) = self.comparing.equalising else { return };
        if usize::from(length) != BLOCK_BYTES || !holds(turn.memory, received, sum) {
            return;
        }
        if self.pages.free() <= BATCH_BLOCKS_MAX {
            return self.equalise_by(Step::Wanted { sum, from: turn.now.plus(LOOKS_AGAIN_AFTER) });
        }
        let page = self.pages.take().expect("checked");
        turn.memory.copy(received, page, 0..BLOCK_BYTES);
        self.equalise_by(Step::Known { page });
    }

    /// The peer has no such block, or cannot look for it now.
    pub(super) fn equalise_lacks(&mut self, turn: &mut Turn<impl Memory>, place: BlockPlace, why: Lacking) {
        let Some(Equalising { volume, lba, step: Step::Asked { sum }, .. }) = self.comparing.equalising
        else {
            return;
        };
        match why {
            _ if place != BlockPlace::Volume(volume, lba) => {}
            Lacking::Busy => self.equalise_by(Step::Wanted { sum, from: turn.now.plus(ASK_AGAIN_AFTER) }),
            Lacking::Damaged => self.end_compare(turn, Err(AdminError::SourceDamaged)),
            // It was written meanwhile; whoever asked compares again.
            Lacking::Other => self.end_compare(turn, Err(AdminError::Busy)),
        }
    }

    pub(super) fn equalise_deadline(&self) -> Option<Nanos> {
        match self.comparing.equalising?.step {
            Step::Own | Step::Known { .. } => Some(self.turned_at.plus(LOOKS_AGAIN_AFTER)),
            Step::Wanted { from, .. } => Some(from.max(self.turned_at.plus(ASK_AGAIN_AFTER))),
            Step::Compared | Step::Reading | Step::Asked { .. } | Step::Numbered { .. } => None,
        }
    }
}
