//! Snapshot tables for a peer whose own are damaged: instead of a hello it asks for this site's, page by page, and then for the old
//! blocks that its differential volume lacks. Until it is a site again, the conversation does not get beyond greeting.

use std::fmt::Arguments;

use super::differential::MetadataIo;
use super::handshake::GREETING_MAX;
use super::peering::{LINK_SPARE, Talk, refusal};
use super::{Group, Turn};
use crate::base::*;
use crate::core::config::Role;
use crate::core::messages::*;
use crate::core::outbox::{Event, LossReason};
use crate::format::wire::RefusalCode;

/// Slots of the metadata's table that are left to commits and reclaims.
const OTHERS_SLOTS: usize = 4;

/// A peer that repairs its tables and asks for nothing for this long is gone; it reads its differential volume between two questions.
const SILENCE_MAX: Nanos = Nanos::from_millis(60_000);

/// What the peer last asked for, and where that stands.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Lending {
    /// The peer repairs its tables.
    active: bool,
    /// The page that it wants, of tables that have everything up to the number.
    wanted: Option<(UpdateNumber, u32)>,
    /// A page is being read; whether whoever wanted it is still there.
    reading: Option<bool>,
}

impl Group {
    /// Whether the peer may be sent what repairs it.
    pub(super) fn converses(&self) -> bool {
        self.engaged() || self.lending.active
    }

    /// How long a peer may be silent before it is a site of the pair.
    pub(super) fn greeting_max(&self) -> Nanos {
        if self.lending.active { SILENCE_MAX } else { GREETING_MAX }
    }

    /// The conversation is over.
    pub(super) fn forget_lending(&mut self) {
        let reading = self.lending.reading.map(|_| false);
        self.lending = Lending { reading, ..Lending::default() };
    }

    /// The peer has every update up to `settled`, durably, and needs tables that cover them: so these are settled.
    pub(super) fn on_tables_wanted(
        &mut self,
        turn: &mut Turn<impl Memory>,
        settled: UpdateNumber,
        page: u32,
    ) {
        let greeting = matches!(self.peer.talk, Talk::Greeting { hello_sent: true, .. });
        if !greeting || settled > self.window.last() {
            return self.lose_peer(turn, LossReason::Protocol("tables wanted of what this site has not"));
        }
        match self.role {
            Role::Primary => {
                let peer = &mut self.peer;
                for level in [&mut peer.received, &mut peer.journaled, &mut peer.durable] {
                    *level = settled.max(*level);
                }
                self.note_retention();
            }
            Role::Third => unreachable!("a third has no peer"),
            Role::Secondary => {
                self.peer.told_settled = self.peer.told_settled.max(settled);
                self.peer.flush_requested = self.peer.flush_requested.max(settled);
            }
        }
        self.lending.active = true;
        self.lending.wanted = Some((settled, page));
        self.keep_greeting(turn.now);
    }

    /// Whoever is being helped is not expected to greet meanwhile.
    pub(super) fn keep_greeting(&mut self, now: Nanos) {
        if let Talk::Greeting { since, .. } = &mut self.peer.talk {
            *since = now;
        }
    }

    /// Reads what the peer wants, once the tables cover what it has.
    pub(super) fn lend_tables(&mut self, turn: &mut Turn<impl Memory>) {
        let Some((settled, page)) = self.lending.wanted else { return };
        self.keep_greeting(turn.now);
        if self.checkpoint < settled {
            self.sweep_wanted = true;
            return;
        }
        let short = self.metadata_slots.len() <= OTHERS_SLOTS || self.pages.free() <= BATCH_BLOCKS_MAX;
        if self.lending.reading.is_some() || short || turn.out.to_link.room() <= LINK_SPARE {
            return;
        }
        self.lending.wanted = None;
        self.lending.reading = Some(true);
        let slot = self.metadata_slots.pop().expect("checked above");
        let answer = self.pages.take().expect("checked above");
        turn.tables.metadata_io.set(slot, 0, answer, BlockSum::ZEROS);
        let applied = self.applied.max(self.checkpoint);
        self.submit_metadata(turn, slot, MetadataIo::Lend, MetadataOp::Lend { page, applied });
    }

    /// A page of tables was read: it goes to the link, and comes back from there.
    pub(super) fn lent(&mut self, turn: &mut Turn<impl Memory>, slot: SlotId) {
        let page = turn.tables.metadata_io.page(slot, 0);
        if self.lending.reading.take() == Some(true) && turn.out.to_link.room() > LINK_SPARE {
            turn.memory.seal(page);
            let (frame, length) = (PageFrame::Tables, BLOCK_BYTES as u16);
            turn.out.to_link.push(ToLink::Page { frame, page, length });
        } else {
            self.pages.release(page, turn.memory);
        }
    }

    /// This site's own are damaged as well.
    pub(super) fn cannot_lend(&mut self, turn: &mut Turn<impl Memory>, slot: SlotId) {
        self.pages.release(turn.tables.metadata_io.page(slot, 0), turn.memory);
        turn.event(Event::TablesDamaged);
        if self.lending.reading.take() == Some(true) {
            self.refuse_tables(
                turn,
                format_args!("this site's snapshot tables are damaged as well; its log says where"),
            );
        }
    }

    fn refuse_tables(&mut self, turn: &mut Turn<impl Memory>, why: Arguments) {
        self.refuse(turn, refusal(RefusalCode::Tables, why));
    }
}
