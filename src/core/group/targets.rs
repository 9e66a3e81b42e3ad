//! Whom a site copies to: the other of the pair, or a third. The copy is one machinery, and each of them has its own of it: what is to be
//! copied, from where on the journal is held, and the link, rows and pages that it goes by.

use std::ops::{Index, IndexMut};

use super::feeding::{self, LENT_PAGES_MAX, LINK};
use super::peering;
use super::resync::Resync;
use super::{Group, Turn};
use crate::base::*;
use crate::core::messages::*;
use crate::core::outbox::{LossReason, Tables};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Peer,
    Third,
}

pub(super) const TARGETS: [Target; 2] = [Target::Peer, Target::Third];

impl Target {
    pub fn other(self) -> Target {
        match self {
            Target::Peer => Target::Third,
            Target::Third => Target::Peer,
        }
    }
}

#[derive(Debug)]
pub(super) struct Resyncs {
    peer: Resync,
    third: Resync,
}

impl Resyncs {
    pub fn new(peer: Resync, third: Resync) -> Resyncs {
        Resyncs { peer, third }
    }

    /// Whether blocks are being read for digests.
    pub fn are_reading(&self) -> bool {
        self.peer.digests.is_reading() || self.third.digests.is_reading()
    }
}

impl Index<Target> for Resyncs {
    type Output = Resync;

    fn index(&self, to: Target) -> &Resync {
        match to {
            Target::Peer => &self.peer,
            Target::Third => &self.third,
        }
    }
}

impl IndexMut<Target> for Resyncs {
    fn index_mut(&mut self, to: Target) -> &mut Resync {
        match to {
            Target::Peer => &mut self.peer,
            Target::Third => &mut self.third,
        }
    }
}

/// Messages that the target's link has room for.
pub(super) fn room_to(turn: &Turn<impl Memory>, to: Target) -> usize {
    match to {
        Target::Peer => turn.out.to_link.room(),
        Target::Third => turn.out.remotes[LINK].to_link.room(),
    }
}

/// The rows of what is copied, which the target's link reads.
pub(super) fn rows_to(tables: &Tables, to: Target) -> &PageTable {
    tables.of_link((to == Target::Third).then_some(LINK)).1
}

impl Group {
    /// Whether the target is being copied to, as far as the conversation with it goes.
    pub(super) fn copies_to(&self, to: Target) -> bool {
        match to {
            Target::Peer => self.peer.talk == peering::Talk::Copying,
            Target::Third => self.feed.as_ref().is_some_and(|feed| feed.talk == feeding::Talk::Copying),
        }
    }

    pub(super) fn give_target(&mut self, turn: &mut Turn<impl Memory>, to: Target, message: ToLink) {
        match to {
            Target::Peer => turn.out.to_link.push(message),
            Target::Third => self.give_third(turn, message),
        }
    }

    pub(super) fn lose_target(&mut self, turn: &mut Turn<impl Memory>, to: Target, reason: LossReason) {
        match to {
            Target::Peer => self.lose_peer(turn, reason),
            Target::Third => self.lose_third(turn, reason),
        }
    }

    pub(super) fn has_copy_row(&self, to: Target) -> bool {
        match to {
            Target::Peer => self.catch_up.has_row(),
            Target::Third => self.feed().reader.has_row(),
        }
    }

    pub(super) fn take_copy_row(&mut self, to: Target, blocks: usize) -> Option<u32> {
        match to {
            Target::Peer => self.catch_up.take_row(blocks),
            Target::Third => self.has_copy_row(to).then(|| self.take_feed_row(blocks)),
        }
    }

    /// The row's pages are not needed any more.
    pub(super) fn copy_row_consumed(&mut self, turn: &mut Turn<impl Memory>, to: Target, row: u32) {
        match to {
            Target::Peer => self.catch_up_consumed(turn, row),
            Target::Third => self.feed_row_consumed(turn, row),
        }
    }

    /// Whether one more piece may be on its way.
    pub(super) fn has_pace(&self, now: Nanos, to: Target) -> bool {
        self.resyncs[to].has_pace() && (to == Target::Peer || self.third_has_pace(now))
    }

    /// A third is copied to out of the pages that are kept for it, and by what it may be sent.
    fn third_has_pace(&self, now: Nanos) -> bool {
        let feed = self.feed();
        let held = feed.lent() + self.resyncs[Target::Third].blocks_being_read();
        held + UPDATE_BLOCKS_MAX <= LENT_PAGES_MAX && feed.held_back(now).is_none()
    }
}
