//! What a site knows of its third: how far that is behind, whether it could go on from this site's journal, and for how long yet; and how it
//! last did (US 7,143,254).

use super::feeding::{Feed, Talk};
use super::resync::ResyncStatus;
use super::split::SplitBrain;
use super::status::Behind;
use super::{Group, Phase, Turn};
use crate::base::*;
use crate::core::journal::Journal;
use crate::core::outbox::Event;

/// The journal keeps what a third lacks up to this share of its ring, in percent: sweeps begin when half of it is in use for others, and then
/// there is nothing kept that they would need (US 7,143,254's third computer never delays the first).
const KEPT_PERCENT: u64 = 50;

/// An operator hears of a third for which the journal keeps this much of that, in percent, and again only after it was less.
pub const LAPSE_WARN_PERCENT: u64 = 80;
const LAPSE_WARN_AGAIN_PERCENT: u64 = 60;

/// That is looked at whenever the journal has been given so much of it again, in percent.
const LAPSE_LOOKS_EVERY_PERCENT: u64 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThirdState {
    Disconnected,
    Greeting,
    /// It pulls from another site.
    Standing,
    Feeding,
    /// The journal no longer has what it lacks.
    Lapsed,
    /// No journal has what it lacks: all blocks are compared, and it is copied what differs.
    Copying,
    /// It was made primary, and they have met since.
    Promoted,
}

/// Whether the third could go on from this site's journal now, reading nothing but what it lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delta {
    /// So many updates, and blocks of the journal at most.
    Yes {
        updates: u64,
        blocks: u64,
    },
    No(NoDelta),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoDelta {
    /// It has not said where it is since this site started.
    Unheard,
    /// The journal no longer has what it lacks.
    Lapsed,
    /// The journal has what it lacks, and the disk does not give that.
    Unread,
    /// It has what this site does not have, or does not know to be settled.
    Ahead,
    /// It has what never was in this site's stream.
    Parted,
    /// This site gives way to its peer, and feeds nobody until that is over.
    GivesWay,
    /// It was made primary.
    Promoted,
}

/// A third that goes on from here: what it lacked when it asked, or of what there was when this site took over, and what it was sent of that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resumed {
    /// It had everything up to here, and this site everything up to there.
    pub after: UpdateNumber,
    pub upto: UpdateNumber,
    /// Payload of the updates between, as the journal has it; a batch that was cut through counts whole.
    pub lacked_bytes: u64,
    /// Frames of these updates that were given to the link, headers and payload.
    pub sent_bytes: u64,
    pub begun_at: Nanos,
    /// Until it said that it has all of them durably.
    pub took: Option<Nanos>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThirdStatus {
    pub state: ThirdState,
    /// It has everything up to here durably, as far as is known.
    pub position: UpdateNumber,
    /// How long ago it last said so.
    pub said_ns_ago: Option<u64>,
    /// What is settled here and not there; of one that has lapsed, the bytes are those that the journal still has.
    pub behind: Behind,
    pub delta: Delta,
    /// What the journal keeps for it, in percent of what it keeps at most before it lets go of that.
    pub kept_percent: u64,
    pub resumed: Option<Resumed>,
    /// How far it is copied what it lacks, if it is, or was until that was interrupted.
    pub copy: ResyncStatus,
    /// Once it was made primary: what each of both has that the other has not.
    pub promoted: Option<SplitBrain>,
}

impl ThirdStatus {
    /// Whether it could go on from here, but may soon not be able to any more.
    pub fn lapses_soon(&self) -> bool {
        matches!(self.delta, Delta::Yes { .. }) && self.kept_percent >= LAPSE_WARN_PERCENT
    }
}

impl Group {
    /// The journal's tail may go up to `floor` for all others; it stays at the third's position as long as nobody has to wait for that.
    pub(super) fn held_for_third(
        &mut self,
        turn: &mut Turn<impl Memory>,
        floor: UpdateNumber,
    ) -> UpdateNumber {
        let Some(position) = self.feed.as_ref().map(|feed| feed.position) else { return floor };
        if matches!(self.phase, Phase::Recovering(_)) {
            // Where it is, it says after that; and nothing that comes meanwhile needs room.
            return floor.min(self.oldest_kept().previous());
        }
        let position = self.held_for_copy().unwrap_or(position);
        if position >= floor || position.next() < self.oldest_kept() {
            return floor;
        }
        if self.may_keep_after(position) {
            return position;
        }
        self.let_go_of_third(turn, floor.next());
        floor
    }

    /// Whether the journal has more than it keeps for a third, and not all of that after `floor`, which is what others need.
    pub(super) fn keeps_too_much(&self, floor: UpdateNumber) -> bool {
        let used = self.journal.used_blocks();
        self.feed.is_some() && used > self.kept_blocks_max() && self.journal.used_after(floor) < used
    }

    /// Whether what is after `position` is little enough to be kept for somebody whom nobody waits for.
    pub(super) fn may_keep_after(&self, position: UpdateNumber) -> bool {
        self.kept_percent(position) <= 100
    }

    /// What the journal keeps for a third that has everything up to there, in percent of what it keeps at most; rounded up.
    fn kept_percent(&self, position: UpdateNumber) -> u64 {
        (self.journal.used_after(position) * 100).div_ceil(self.kept_blocks_max().max(1))
    }

    fn kept_blocks_max(&self) -> u64 {
        Journal::usable_blocks(self.journal.ring_blocks()) * KEPT_PERCENT / 100
    }

    /// Warns before readiness turns to no.
    pub(super) fn perhaps_warn_of_lapse(&mut self, turn: &mut Turn<impl Memory>) {
        let Feed { position, heard, let_go, warned, looked_at, .. } = *self.feed();
        let written = self.counters.journal_blocks;
        if written < looked_at + self.kept_blocks_max() * LAPSE_LOOKS_EVERY_PERCENT / 100 {
            return;
        }
        self.feed_mut().looked_at = written;
        if heard.is_none() || let_go || position.next() < self.oldest_kept() {
            return;
        }
        let kept_percent = self.kept_percent(position);
        if kept_percent >= LAPSE_WARN_PERCENT && !warned {
            self.feed_mut().warned = true;
            turn.event(Event::ThirdLapsesSoon { position, kept_percent });
        } else if kept_percent < LAPSE_WARN_AGAIN_PERCENT {
            self.feed_mut().warned = false;
        }
    }

    /// The payload that follows `after`, in the journal or on its way there.
    fn payload_bytes_since(&self, after: UpdateNumber) -> u64 {
        let journal = self.journal.payload_since(after);
        let unwritten = self.journal.appended().max(after).next().max(self.window.retired().next());
        let rest = (unwritten.0..=self.window.last().0).map(UpdateNumber);
        let rest = rest.map(|number| self.window.get(number).update.payload_blocks() as u64).sum::<u64>();
        (journal + rest) * BLOCK_BYTES as u64
    }

    /// This site's generation begins with `first`: whatever the third lacks of this site's stream up to there, it is to be sent from here.
    pub(super) fn note_takeover_for_third(&mut self, now: Nanos, first: UpdateNumber) {
        let Some(feed) = &self.feed else { return };
        let after = if feed.talk == Talk::Feeding { feed.next.previous() } else { feed.position };
        if matches!(self.phase, Phase::Running) && after < first {
            self.note_lacking(now, after, first);
        }
    }

    /// The third is sent what follows `after`: what it lacks of this site's stream now, or lacked when this site took over.
    pub(super) fn begin_resumed(&mut self, now: Nanos, after: UpdateNumber) {
        let since_after = self.payload_bytes_since(after);
        match self.feed().resumed {
            Some(resumed) if resumed.took.is_none() && resumed.sent_bytes == 0 && after < resumed.upto => {
                let since_known = self.payload_bytes_since(resumed.after);
                let lacked_bytes = (resumed.lacked_bytes + since_after).saturating_sub(since_known);
                self.feed_mut().resumed = Some(Resumed { after, lacked_bytes, ..resumed });
            }
            _ => self.note_lacking(now, after, self.window.last()),
        }
    }

    /// It has everything up to `after`, and this site up to `upto`, which is all.
    fn note_lacking(&mut self, now: Nanos, after: UpdateNumber, upto: UpdateNumber) {
        let lacked_bytes = self.payload_bytes_since(after);
        let took = (after == upto).then_some(Nanos(0));
        self.feed_mut().resumed =
            Some(Resumed { after, upto, lacked_bytes, sent_bytes: 0, begun_at: now, took });
    }

    pub(super) fn note_resumed(&mut self, turn: &mut Turn<impl Memory>) {
        let feed = self.feed_mut();
        let position = feed.position;
        if let Some(resumed) = &mut feed.resumed
            && resumed.took.is_none()
            && position >= resumed.upto
        {
            let Resumed { after, upto, sent_bytes, .. } = *resumed;
            if sent_bytes == 0 {
                // It was sent them by the other site.
                feed.resumed = None;
                return;
            }
            let took = turn.now.since(resumed.begun_at);
            resumed.took = Some(took);
            turn.event(Event::ThirdResumed { after, upto, sent_bytes, took });
        }
    }

    fn third_delta(&self, feed: &Feed) -> Delta {
        // What it has taken but not made durable it may lose, and that counts only while it is connected.
        let after = feed.pull.after.max(feed.position);
        if feed.promoted.is_some() {
            return Delta::No(NoDelta::Promoted);
        }
        if feed.heard.is_none() {
            return Delta::No(NoDelta::Unheard);
        }
        if self.has_given_way() {
            return Delta::No(NoDelta::GivesWay);
        }
        // Of a generation that this site does not know: where that begins nobody has told it.
        let elsewhere = feed.told.after > self.window.last() && feed.told.generation != self.generation;
        match after {
            _ if self.is_parted_from(&feed.told) => Delta::No(NoDelta::Parted),
            after if after > self.window.last() || self.has_otherwise(&feed.told) || elsewhere => {
                Delta::No(NoDelta::Ahead)
            }
            after if after < self.window.last() && after.next() < self.oldest_kept() => {
                Delta::No(NoDelta::Lapsed)
            }
            after if feed.reader.is_unread_after(after) => Delta::No(NoDelta::Unread),
            after => {
                Delta::Yes { updates: self.window.last().0 - after.0, blocks: self.journal.cost_since(after) }
            }
        }
    }

    pub(super) fn third_status(&self, now: Nanos) -> Option<ThirdStatus> {
        let feed = self.feed.as_ref()?;
        let state = match feed.talk {
            Talk::Absent | Talk::Greeting { .. } if feed.promoted.is_some() => ThirdState::Promoted,
            Talk::Absent => ThirdState::Disconnected,
            Talk::Greeting { .. } => ThirdState::Greeting,
            Talk::Standing => ThirdState::Standing,
            Talk::Feeding => ThirdState::Feeding,
            Talk::Lapsed { .. } => ThirdState::Lapsed,
            Talk::Copying => ThirdState::Copying,
        };
        let position = feed.position;
        let behind = Behind {
            updates: self.settled.0.saturating_sub(position.0),
            bytes: if position < self.settled { self.payload_bytes_since(position) } else { 0 },
            age: feed.ages.beyond(now, position),
        };
        Some(ThirdStatus {
            state,
            position,
            said_ns_ago: feed.heard.map(|at| now.since(at).0),
            behind,
            delta: self.third_delta(feed),
            kept_percent: if position < self.oldest_kept().previous() {
                100
            } else {
                self.kept_percent(position)
            },
            resumed: feed.resumed,
            copy: self.copy_status(now),
            promoted: feed.promoted,
        })
    }
}
