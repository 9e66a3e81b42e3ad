//! What groups and their links say to each other: rings of messages and pages, one pair for each other site.

use crate::base::*;
use crate::core::group::{Group, Turn};
use crate::core::messages::*;
use crate::sim::content::Content;
use crate::sim::memory::SimMemory;
use crate::sim::site::{Leg, Site, seen};
use crate::sim::world::{TURN_GAP_NS, World};

impl Leg {
    /// When the group has something to take from the link, if it has room for that.
    pub(super) fn due(&self, group: &Group) -> Option<u64> {
        self.link.ring.front().filter(|_| group.link_room() > 0).map(|(ready, _)| *ready)
    }

    /// The next message for the group.
    pub(super) fn take_for(&mut self, group: &Group, now: u64) -> Option<FromLink> {
        self.due(group).filter(|ready| *ready <= now)?;
        self.link.ring.pop_front().map(|(_, message)| message)
    }

    pub(super) fn hand_over(&self, group: &mut Group, turn: &mut Turn<SimMemory>, message: FromLink) {
        group.on_link(turn, message);
    }
}

impl World {
    /// Takes what the group gives to one of its links.
    pub(super) fn drain_to_link(&mut self, index: usize, leg: usize) {
        let now = self.now;
        let ring_ns = self.plan.ring_ns;
        let Site { out, memory, tables, legs, disk, .. } = &mut self.sites[index];
        let link = &mut legs[leg].link;
        while let Some(page) = out.link_pages.pop() {
            memory.lend(page);
            link.grant(page);
        }
        let mut after = now;
        while let Some(message) = out.to_link.pop() {
            after = after.max(now + self.rng.below(ring_ns + 1));
            self.trace.note(now, || format!("site {index} says {message:?}"));
            let mut pages = Vec::new();
            match message {
                ToLink::Update { update, slot, source, with_old, .. } => {
                    let table = match source {
                        UpdateSource::Window => &tables.window,
                        UpdateSource::CatchUp | UpdateSource::Copy => &tables.catch_up,
                    };
                    let mut blocks = Vec::with_capacity(update.payload_blocks());
                    for block in 0..update.payload_blocks() {
                        let page = table.page(SlotId(slot), block);
                        memory.pin_for_reading(page);
                        pages.push(page);
                        blocks.push(memory.content(page));
                    }
                    if source == UpdateSource::Copy {
                        if update.payload_blocks() == 0 {
                            blocks.resize(update.count as usize, Content::ZERO);
                        }
                        if update.touches_blocks() {
                            self.audit.of(index).copies(update.volume.0, update.lba.0, &blocks);
                        }
                        link.push(after, message, pages);
                        continue;
                    }
                    let seen = seen(&update);
                    self.audit.of(index).sends(index, seen, &blocks);
                    let row = SlotId((update.number.0 % OLD_BLOCK_SLOTS as u64) as u32);
                    let olds = if with_old { update.count as usize } else { 0 };
                    let mut old = Vec::with_capacity(olds);
                    for page in (0..olds).map(|block| tables.old_blocks.page(row, block)) {
                        memory.pin_for_reading(page);
                        pages.push(page);
                        old.push(memory.print(page));
                    }
                    let live = source == UpdateSource::Window;
                    self.audit.of(index).sends_old(index, &seen, with_old.then_some(&old), live, disk);
                }
                ToLink::Page { page, .. } => {
                    memory.pin_for_reading(page);
                    pages.push(page);
                }
                ToLink::Control(Control::Ack { journaled, durable, applied, .. }) => {
                    self.audit.of(index).acknowledges(index, journaled.0, durable.0, applied.0, disk);
                }
                ToLink::Begin { .. } | ToLink::Control(_) | ToLink::Close => (),
            }
            link.push(after, message, pages);
        }
    }

    pub(super) fn link_turn(&mut self, index: usize, leg: usize) {
        let messages = self.rng.between(1, self.plan.turn_messages.max(8));
        let Site { group, legs, memory, tables, .. } = &mut self.sites[index];
        let leg_at = &mut legs[leg];
        let (now, ring_ns) = (self.now, self.plan.ring_ns);
        let (said, next) = leg_at.link.turn(now, messages, ring_ns, &mut self.rng, memory, tables);
        // A group that cannot take what there is looks again when its own work has made room.
        let due = group.as_ref().and_then(|group| leg_at.due(group));
        let end = leg_at.end;
        if let Some(at) = due {
            self.wake_group(index, at);
        }
        if let Some(said) = said {
            self.transmit(end, said);
        }
        if let Some(at) = next {
            self.wake_link(index, leg, at.max(self.now + TURN_GAP_NS));
        }
    }
}
