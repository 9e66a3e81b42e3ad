//! Whether an update that came from another site is taken into the stream, and whether now.

use super::capture::Room;
use super::{Group, Turn};
use crate::base::*;
use crate::core::config::Role;
use crate::format::update::{Update, UpdateKind};

impl Group {
    /// Whether a received update, whose payload begins with `page`, is the next one, and whether there is room for it now.
    pub(super) fn may_take(
        &mut self,
        turn: &mut Turn<impl Memory>,
        update: &Update,
        page: PageId,
        with_old: bool,
    ) -> Result<bool, &'static str> {
        self.judge_update(update)?;
        self.judge_snapshots(turn.memory, update, page)?;
        self.judge_old_blocks(with_old)?;
        match self.room_to_follow(update) {
            Room::Enough => Ok(self.room_to_take(turn, update)),
            Room::Later => {
                // The primary has given slots again that this site still copies to a third, for which nobody waits.
                let lacks = update.captures() && !self.slots.are_free(update.slot, update.count as usize);
                if lacks && self.reclaiming() {
                    self.let_reclaim_pass(turn);
                }
                Ok(false)
            }
            Room::Never => Err("slots that are not free"),
        }
    }

    fn judge_update(&self, update: &Update) -> Result<(), &'static str> {
        if update.number != self.window.last().next() {
            return Err("an update out of order");
        }
        let known = match update.kind {
            UpdateKind::GenerationOpen => update.generation > self.generation,
            UpdateKind::Cut => return Err("a cut record in the stream"),
            kind if kind.staged_only() => return Err("a copied piece in the stream"),
            _ => update.generation == self.generation,
        };
        if !known {
            return Err("an update of a generation that was not opened");
        }
        if self.left.is_some() && update.kind != UpdateKind::GenerationOpen {
            return Err("an update of a generation that its primary has left");
        }
        if update.touches_blocks() {
            if usize::from(update.volume.0) >= self.config.volumes.len() {
                return Err("an update of a volume that does not exist");
            }
            // No site shows its hosts more than those do that it tells of what they wrote.
            let (end, size) = (
                update.lba.0.checked_add(u64::from(update.count)),
                self.extending.in_force().get(update.volume),
            );
            if end.is_none_or(|end| end > size) {
                return Err("an update beyond its volume's end");
            }
        }
        Ok(())
    }

    fn room_to_take(&mut self, turn: &mut Turn<impl Memory>, update: &Update) -> bool {
        let blocks = if update.touches_blocks() { update.count as usize } else { 0 };
        if self.cache.free_entries() < blocks {
            self.cache.evict(0, blocks, 4 * ZERO_BLOCKS_MAX, &mut self.pages, turn.memory);
        }
        // Whoever takes over must be able to number what makes it primary.
        let spare = if self.role == Role::Primary { 0 } else { super::stream::CONTROL_UPDATES };
        self.window.room() > spare
            && self.cache.free_entries() >= blocks
            && self.journal_room() > update.payload_blocks() as u64
            && self.may_hold(update)
    }
}
