//! What groups and their links say to each other: rings of messages and pages, one pair for each other site.

use crate::base::*;
use crate::core::group::{Group, Turn};
use crate::core::messages::*;
use crate::core::outbox::{RemoteOutbox, Tables};
use crate::sim::content::Content;
use crate::sim::memory::SimMemory;
use crate::sim::site::{Leg, Site, seen};
use crate::sim::world::World;

/// The tables that a link reads and fills.
pub(super) struct LinkTables<'a> {
    pub inbound: &'a PageTable,
    pub window: &'a PageTable,
    pub catch_up: &'a PageTable,
    pub old_blocks: &'a PageTable,
}

impl LinkTables<'_> {
    fn of(tables: &Tables, remote: Option<usize>) -> LinkTables<'_> {
        let Tables { window, old_blocks, .. } = tables;
        let (inbound, catch_up) = match remote {
            None => (&tables.inbound, &tables.catch_up),
            Some(remote) => (&tables.remotes[remote].inbound, &tables.remotes[remote].catch_up),
        };
        LinkTables { inbound, window, catch_up, old_blocks }
    }
}

impl Leg {
    fn room(&self, group: &Group) -> usize {
        self.remote.map_or_else(|| group.link_room(), |remote| group.remote_room(remote))
    }

    /// When the group has something to take from the link, if it has room for that.
    pub(super) fn due(&self, group: &Group) -> Option<u64> {
        self.link.ring.front().filter(|_| self.room(group) > 0).map(|(ready, _)| *ready)
    }

    /// The next message for the group.
    pub(super) fn take_for(&mut self, group: &Group, now: u64) -> Option<FromLink> {
        self.due(group).filter(|ready| *ready <= now)?;
        self.link.ring.pop_front().map(|(_, message)| message)
    }

    pub(super) fn hand_over(&self, group: &mut Group, turn: &mut Turn<SimMemory>, message: FromLink) {
        match self.remote {
            None => group.on_link(turn, message),
            Some(remote) => group.on_remote(turn, remote, message),
        }
    }
}

impl World {
    /// Takes what the group gives to one of its links.
    pub(super) fn drain_to_link(&mut self, index: usize, leg: usize) {
        let now = self.now;
        let ring_ns = self.plan.ring_ns;
        let Site { out, memory, tables, legs, disk, .. } = &mut self.sites[index];
        let Leg { link, remote, .. } = &mut legs[leg];
        let remote = *remote;
        let at = LinkTables::of(tables, remote);
        let (pages_granted, to_link) = match remote {
            None => (&mut out.link_pages, &mut out.to_link),
            Some(remote) => {
                let RemoteOutbox { to_link, pages } = &mut out.remotes[remote];
                (pages, to_link)
            }
        };
        while let Some(page) = pages_granted.pop() {
            memory.lend(page);
            link.grant(page);
        }
        let mut after = now;
        while let Some(message) = to_link.pop() {
            after = after.max(now + self.rng.below(ring_ns + 1));
            self.trace.note(now, || format!("site {index} says {message:?}"));
            let mut pages = Vec::new();
            match message {
                ToLink::Update { update, settled, slot, source, with_old } => {
                    let table = match source {
                        UpdateSource::Window => at.window,
                        UpdateSource::CatchUp | UpdateSource::Copy => at.catch_up,
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
                    if remote.is_some() {
                        assert!(!with_old && source == UpdateSource::CatchUp, "{message:?} to the third");
                        self.audit.feeds(index, seen, &blocks, settled.0);
                        link.push(after, message, pages);
                        continue;
                    }
                    self.audit.of(index).sends(index, seen, &blocks);
                    self.audit.of(index).check_claim(index, "settled", settled.0);
                    let row = SlotId((update.number.0 % OLD_BLOCK_SLOTS as u64) as u32);
                    let olds = if with_old { update.count as usize } else { 0 };
                    let mut old = Vec::with_capacity(olds);
                    for page in (0..olds).map(|block| at.old_blocks.page(row, block)) {
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
                ToLink::Control(control) if remote.is_some() => self.audit.says(index, &control),
                ToLink::Control(Control::Heartbeat { settled, .. } | Control::Install { upto: settled }) => {
                    self.audit.of(index).check_claim(index, "settled", settled.0);
                }
                ToLink::Begin { .. } | ToLink::Control(_) | ToLink::Close => (),
            }
            link.push(after, message, pages);
        }
    }

    pub(super) fn link_turn(&mut self, index: usize, leg: usize) {
        let most = self.plan.turn_messages.max(8);
        let messages = if self.far.is_some() { most } else { self.rng.between(1, most) };
        let Site { group, legs, memory, tables, .. } = &mut self.sites[index];
        let leg_at = &mut legs[leg];
        let (now, ring_ns) = (self.now, self.plan.ring_ns);
        let at = LinkTables::of(tables, leg_at.remote);
        let (said, next) = leg_at.link.turn(now, messages, ring_ns, &mut self.rng, memory, &at);
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
            self.wake_link(index, leg, at.max(self.now + self.turn_gap_ns()));
        }
    }
}
