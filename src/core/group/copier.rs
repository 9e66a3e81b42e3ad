//! Who copies to this site: its primary, or at a third one of its sources.

use super::inbound::Inbound;
use super::origins::Origin;
use super::peering::{LINK_SPARE, Talk};
use super::pulling::{Source, Stand};
use super::{Group, Turn};
use crate::base::*;
use crate::core::config::Role;
use crate::core::messages::*;
use crate::core::outbox::LossReason;
use crate::format::journal::Digest;
use crate::format::wire::Refusal;

/// While a source is away that may have in its journal what the others let go of, a third waits so long before it asks for a copy.
const AWAITS_SOURCES: Nanos = Nanos::from_millis(5_000);

/// After a copy that this site refused, or could not write, it asks for another one this late.
const ASKS_AGAIN_AFTER: Nanos = Nanos::from_millis(10_000);

/// What a log is of: a site names none of its resyncs twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ResyncName {
    pub site: SiteId,
    pub generation: Generation,
    pub serial: u64,
}

impl ResyncName {
    /// What the first batch of a log names as the one before it: nothing of another resync's may follow.
    pub fn seed(self) -> Digest {
        let ResyncName { site, generation, serial } = self;
        let name = generation.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ serial.wrapping_add(1).rotate_left(32);
        Digest(name ^ u64::from(site.0))
    }
}

impl Source {
    /// Whether it can be asked for a copy: it may be of the release before the one that answers that.
    fn would_copy(&self) -> bool {
        matches!(self.stand, Stand::Lapsed { .. }) && self.serves()
    }
}

impl Group {
    /// Who copies to this site.
    pub(super) fn copier(&self) -> Option<Origin> {
        if self.peer.talk == Talk::Staging {
            return Some(Origin::Peer);
        }
        self.sources.iter().position(|source| source.stand == Stand::Staging).map(Origin::Source)
    }

    /// Whether what the links bring is for the log, and not for the stream.
    pub fn stages(&self) -> bool {
        self.copier().is_some()
    }

    /// Whether what the link of that number beside the peer's brings is for the log.
    pub fn stages_from(&self, remote: usize) -> bool {
        self.copier() == Some(Origin::Source(remote))
    }

    pub(super) fn listens_to(&self, from: Origin) -> bool {
        match from {
            Origin::Peer => self.peer.talk == Talk::Following || self.awaits_offer(),
            Origin::Source(index) => self.sources[index].stand == Stand::Asking,
        }
    }

    pub(super) fn begin_staging(&mut self, from: Origin) {
        match from {
            Origin::Peer => self.peer.talk = Talk::Staging,
            Origin::Source(index) => self.sources[index].stand = Stand::Staging,
        }
    }

    /// What has come for the log.
    pub(super) fn staged_inbound(&self) -> Option<&FixedQueue<Inbound>> {
        Some(match self.copier()? {
            Origin::Peer => &self.peer.inbound,
            Origin::Source(index) => &self.sources[index].inbound,
        })
    }

    pub(super) fn take_staged(&mut self, now: Nanos) -> Inbound {
        let inbound = match self.copier().expect("it was looked at") {
            Origin::Peer => self.peer.inbound.pop(),
            Origin::Source(index) => {
                self.sources[index].heard_at = now;
                self.sources[index].inbound.pop()
            }
        };
        inbound.expect("counted by the caller")
    }

    pub(super) fn lose_copying(&mut self, turn: &mut Turn<impl Memory>, from: Origin, reason: LossReason) {
        match from {
            Origin::Peer => self.lose_peer(turn, reason),
            Origin::Source(index) => self.lose_source(turn, index, reason),
        }
    }

    pub(super) fn lose_copier(&mut self, turn: &mut Turn<impl Memory>, reason: LossReason) {
        if let Some(from) = self.copier() {
            self.lose_copying(turn, from, reason);
        }
    }

    pub(super) fn refuse_copying(&mut self, turn: &mut Turn<impl Memory>, from: Origin, why: Refusal) {
        match from {
            Origin::Peer => self.refuse(turn, why),
            Origin::Source(index) => {
                self.staging.asks_from = turn.now.plus(ASKS_AGAIN_AFTER);
                self.refuse_source(turn, index, why);
            }
        }
    }

    pub(super) fn refuse_copier(&mut self, turn: &mut Turn<impl Memory>, why: Refusal) {
        if let Some(from) = self.copier() {
            self.refuse_copying(turn, from, why);
        }
    }

    // ------------------------------------------------------------------------------------------------------ a third that asks

    /// A copy is the dearest way: a third asks for one when no source that it could ask has in its journal what it lacks, and those
    /// that are away, or have no more than this site, have been awaited.
    fn asks_for_copy_at(&self) -> Option<Nanos> {
        let last = self.window.last();
        let lapsed = |source: &Source| matches!(source.stand, Stand::Lapsed { .. });
        let has_nothing = |source: &Source| {
            matches!(source.stand, Stand::Standing | Stand::Pulling) && source.settled <= last
        };
        let away = |source: &Source| source.stand == Stand::Absent || has_nothing(source);
        let hopeless = self.role == Role::Third
            && self.config.resync.staging_blocks > 0
            && self.sources.iter().any(Source::would_copy)
            && self.sources.iter().all(|source| lapsed(source) || away(source));
        let since = self.sources.iter().filter(|source| lapsed(source)).map(|source| source.lapsed_at).max();
        // It may yet say that it has more, having been met, or having sent something, only now.
        let lately = self.sources.iter().filter(|source| has_nothing(source));
        let lately = lately.map(|source| source.met_at.max(source.took_at)).max();
        let since = since.max(lately.filter(|_| since.is_some()));
        let patience = if self.sources.iter().any(away) { AWAITS_SOURCES } else { Nanos(0) };
        since.filter(|_| hopeless).map(|since| since.plus(patience).max(self.staging.asks_from))
    }

    /// One that was asked for a copy and does not offer it, for it awaits its peer perhaps, while another one could be asked.
    fn in_vain(&self) -> Option<(usize, Nanos)> {
        let index = self.sources.iter().position(|source| source.stand == Stand::Asking)?;
        let other = self.sources.iter().any(Source::would_copy);
        other.then(|| (index, self.sources[index].asked_at.plus(ASKS_AGAIN_AFTER)))
    }

    /// Asks the source that it was copied to by before, or the one that it prefers of those that have what it has.
    pub(super) fn ask_for_copy(&mut self, turn: &mut Turn<impl Memory>) {
        if let Some((index, until)) = self.in_vain()
            && turn.now >= until
        {
            let why = "it does not offer the copy that it was asked for";
            return self.lose_source(turn, index, LossReason::Protocol(why));
        }
        if self.asks_for_copy_at().is_none_or(|at| turn.now < at) {
            return;
        }
        let before = self.staging.resync.map(|resync| resync.site);
        let may = |index: &usize| {
            self.sources[*index].would_copy() && turn.out.remotes[*index].to_link.room() > LINK_SPARE
        };
        let mut able = (0..self.sources.len()).filter(may);
        let again = able.clone().find(|index| Some(self.sources[*index].config.site) == before);
        let last = self.window.last();
        let whole = able.clone().find(|&index| self.sources[index].settled >= last);
        if let Some(index) = again.or(whole).or_else(|| able.next()) {
            (self.sources[index].stand, self.sources[index].asked_at) = (Stand::Asking, turn.now);
            turn.out.remotes[index].to_link.push(ToLink::Control(Control::CopyWanted));
        }
    }

    pub(super) fn ask_deadline(&self) -> Option<Nanos> {
        // A site that stops asks nobody any more.
        let in_vain = self.in_vain().map(|(_, until)| until).filter(|until| *until > self.turned_at);
        [self.asks_for_copy_at(), in_vain].into_iter().flatten().min()
    }

    /// A source has what this third lacks after all: what was staged is of a site that had not yet got that, and is void.
    pub(super) fn give_up_staging(&mut self, turn: &mut Turn<impl Memory>) {
        let copies = |source: &Source| matches!(source.stand, Stand::Asking | Stand::Staging);
        if let Some(index) = self.sources.iter().position(copies) {
            self.staging.resync = None;
            let why = "another source has what this third lacks";
            self.lose_source(turn, index, LossReason::Protocol(why));
        }
    }
}
