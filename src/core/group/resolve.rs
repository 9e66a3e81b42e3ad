//! A split brain is resolved: by an operator's word, one of the two sites gives way, and is copied what the other one has in place of
//! what it has itself (decision 0023). It says so with the last update of its generation, which is durable before anybody hears of it;
//! its volumes stay what they are until what it is copied is whole.

use super::peering::{LINK_SPARE, Talk, refusal};
use super::resync::{LEAVES_PAGES, SILENCE_MAX};
use super::{Alone, Group, Turn};
use crate::base::*;
use crate::core::config::Role;
use crate::core::history::common_point;
use crate::core::messages::*;
use crate::core::outbox::{Event, LossReason};
use crate::format::history::History;
use crate::format::superblock::Left;
use crate::format::wire::{Hello, RefusalCode};

/// The place of a page of marks: volume, and its number there.
type Place = (VolumeId, u64);

/// What a site that gives way tells, and how far the other one has heard it.
#[derive(Debug, Default)]
pub(super) struct Merging {
    /// Secondary: where the next page of marks is looked for, and how many were sent.
    sending: Option<(Place, u64)>,
    /// Primary: what was met, and what has come of its marks.
    taking: Option<Taking>,
}

#[derive(Clone, Copy, Debug)]
struct Taking {
    /// The last update that both sites have.
    common: UpdateNumber,
    /// The newest generation of what is to go.
    theirs: Generation,
    /// One of the two does not know every block that it has changed since: all of them are compared.
    compares: bool,
    pages: u64,
    last: Option<Place>,
    whole: bool,
    heard_at: Nanos,
}

fn has(history: &History, generation: Generation) -> bool {
    generation != Generation::NONE && history.iter().any(|(known, _)| known == generation)
}

impl Group {
    // -------------------------------------------------------------------------------------------- the site that gives way

    pub(super) fn gives_way_to(&self) -> Generation {
        match self.left {
            Some((_, Left::GaveWay(generation))) if self.has_given_way() => generation,
            _ => Generation::NONE,
        }
    }

    /// Whether what this site has, and the other one has not, is to go. A promotion takes that back. Of a primary that it follows, this
    /// site may have the same update, and then what took it back.
    pub(super) fn has_given_way(&self) -> bool {
        let gave_way = matches!(self.left, Some((_, Left::GaveWay(_))));
        gave_way && self.role == Role::Secondary && self.generation.opener() == self.config.site
    }

    /// From where on this site knows every block that it has changed.
    pub(super) fn marks_after(&self) -> UpdateNumber {
        let base = self.changed.base();
        if self.changed.covers(base) { base } else { UpdateNumber(u64::MAX) }
    }

    /// Whether this site may give way to the other one: the newest generation of that.
    pub(super) fn judge_giving_way(&self) -> Result<Generation, AdminError> {
        let Some(split) = self.split else { return Err(AdminError::NoSplitBrain) };
        if !self.changed.tracking() {
            return Err(AdminError::DifferenceUnknownHere);
        }
        if !split.theirs.marks {
            return Err(AdminError::DifferenceUnknownThere);
        }
        Ok(split.theirs.generation)
    }

    /// The other site leads: what this one does, by the same two hellos.
    pub(super) fn talk_that_follows(&mut self, turn: &mut Turn<impl Memory>, hello: &Hello) -> Talk {
        let last = self.window.last();
        let common = common_point(&self.history, last, &hello.history, hello.last);
        if !has(&hello.history, self.gives_way_to()) || last <= common {
            return Talk::Following;
        }
        self.merging.sending = Some(((VolumeId(0), 0), 0));
        turn.event(Event::SplitResolved { common, here: false });
        Talk::Yielding
    }

    /// Tells the primary which blocks this site has changed, as the link has room.
    pub(super) fn send_marks(&mut self, turn: &mut Turn<impl Memory>) {
        while self.peer.talk == Talk::Yielding
            && let Some((place, pages)) = self.merging.sending
        {
            if turn.out.to_link.room() <= LINK_SPARE || self.pages.free() <= LEAVES_PAGES {
                return;
            }
            let page = self.pages.take().expect("counted above");
            match self.changed.page_from(place, turn.memory.bytes_mut(page)) {
                Some((volume, chunk)) => {
                    turn.memory.seal(page);
                    let (frame, length) = (PageFrame::Marks, BLOCK_BYTES as u16);
                    turn.out.to_link.push(ToLink::Page { frame, page, length });
                    self.merging.sending = Some(((volume, chunk + 1), pages + 1));
                }
                None => {
                    self.pages.release(page, turn.memory);
                    turn.out.to_link.push(ToLink::Control(Control::MarksEnd { pages }));
                    self.merging.sending = None;
                }
            }
        }
    }

    /// Whether the primary has been told everything, and is to offer its copy.
    pub(super) fn awaits_offer(&self) -> bool {
        self.peer.talk == Talk::Yielding && self.merging.sending.is_none()
    }

    // ----------------------------------------------------------------------------------------------- the site that is kept

    /// Whether a peer that follows is to lose what it has after `common`.
    pub(super) fn peer_gives_way(&self, hello: &Hello, common: UpdateNumber) -> bool {
        hello.last > common && has(&self.history, hello.gives_way_to)
    }

    /// The peer has the stream up to `common`, and then a stream of its own that is to go: the blocks that it has changed are to be
    /// copied as well.
    pub(super) fn begin_merging(
        &mut self,
        turn: &mut Turn<impl Memory>,
        hello: &Hello,
        common: UpdateNumber,
    ) {
        if !self.changed.tracking() || self.alone != Alone::Yes {
            let refusal = refusal(
                RefusalCode::ResyncRequired,
                format_args!(
                    "your site gives way from {common} on, and this site, which is not alone or has no staging file, cannot copy to it: promote \
                     yours to keep what it has, or format both anew"
                ),
            );
            return self.refuse(turn, refusal);
        }
        self.peer.talk = Talk::Merging;
        self.peer.waiting_since = None;
        self.merging.taking = Some(Taking {
            common,
            theirs: hello.last_generation,
            compares: !self.changed.covers(common) || hello.marks_after > common,
            pages: 0,
            last: None,
            whole: false,
            heard_at: turn.now,
        });
        turn.event(Event::SplitResolved { common, here: true });
    }

    /// A page of the peer's marks, in ascending order, so that there is an end to them.
    pub(super) fn on_marks(&mut self, turn: &mut Turn<impl Memory>, page: PageId) {
        let awaited = self.merging.taking.filter(|taking| self.peer.talk == Talk::Merging && !taking.whole);
        let Some(taking) = awaited else {
            return self.lose_peer(turn, LossReason::Protocol("marks that nobody asked for"));
        };
        let place = self.changed.merge_page(turn.memory.bytes(page));
        if place.is_none() || place <= taking.last {
            return self.lose_peer(turn, LossReason::Protocol("marks that are none, or out of order"));
        }
        self.merging.taking =
            Some(Taking { pages: taking.pages + 1, last: place, heard_at: turn.now, ..taking });
    }

    pub(super) fn on_marks_end(&mut self, turn: &mut Turn<impl Memory>, pages: u64) {
        match &mut self.merging.taking {
            Some(taking) if self.peer.talk == Talk::Merging && !taking.whole && taking.pages == pages => {
                (taking.whole, taking.heard_at) = (true, turn.now);
                self.changed.want_saved();
            }
            _ => self.lose_peer(turn, LossReason::Protocol("an end of marks that was not due")),
        }
    }

    /// When all marks are there, and durably, they are this site's, and all that differs is copied (INV-9).
    pub(super) fn merge_turn(&mut self, turn: &mut Turn<impl Memory>) {
        let Some(taking) = self.merging.taking else { return };
        if taking.whole {
            if self.save_changes(turn) {
                self.merging.taking = None;
                self.offer_merged(turn, taking.common, taking.theirs, taking.compares);
            }
        } else {
            self.lose_if_silent(turn, taking.heard_at);
        }
    }

    pub(super) fn merge_deadline(&self) -> Nanos {
        let awaited = self.merging.taking.filter(|taking| !taking.whole);
        awaited.map_or(Nanos(u64::MAX), |taking| taking.heard_at.plus(SILENCE_MAX))
    }

    /// The conversation is over: the peer will tell everything again.
    pub(super) fn interrupt_merging(&mut self) {
        self.merging = Merging::default();
    }
}
