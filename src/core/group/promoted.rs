//! A third that is made primary because both sites of the pair are gone: what is lost with them, and what it and they say to each other when
//! they return; and what a site starts as whose configuration says something else than its disk. Neither ever pulls from the other again; how each becomes the other's peer is the operator's matter (decision 0030).

use super::peering::refusal;
use super::split::SplitBrain;
use super::{Alone, Group, Turn};
use crate::base::*;
use crate::core::config::Role;
use crate::core::lead::{Lead, leader};
use crate::core::messages::*;
use crate::core::outbox::{Event, LossReason, RoleRefused};
use crate::format::history::History;
use crate::format::superblock::{Heir, Left};
use crate::format::wire::{Hello, Refusal, RefusalCode};

/// What recovery has found of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Recovered {
    /// A primary that was durably alone.
    pub solo: bool,
    pub gave_way: bool,
    pub last: UpdateNumber,
    /// Known to be settled.
    pub settled: UpdateNumber,
}

impl Group {
    // -------------------------------------------------------------------------------------------------- what it starts as

    /// What this site is from here on. The disk says what it was; the configuration, by the sections that it has, what it can be. They may
    /// differ where nothing that was promised depends on what it was.
    pub(super) fn role_as_configured(&self, found: Recovered) -> Result<Role, RoleRefused> {
        let Recovered { solo, gave_way, last, settled } = found;
        let opened_any =
            || self.history.iter().any(|(generation, _)| generation.opener() == self.config.site);
        match (self.role, self.config.role) {
            (Role::Third, Role::Third) => Ok(Role::Third),
            // A third that was promoted, until its configuration says who is its peer.
            (Role::Primary, Role::Third) if solo => Ok(Role::Primary),
            (Role::Primary, Role::Third) => Err(RoleRefused::WasPrimary),
            (Role::Secondary, Role::Third) if gave_way => Err(RoleRefused::GaveWay),
            // What a third has is settled there at once, and destaged.
            (Role::Secondary, Role::Third) if settled < last => {
                Err(RoleRefused::Unsettled { after: settled, last })
            }
            (Role::Secondary, Role::Third) => Ok(Role::Third),
            // Of two that are in lockstep, what a site was formatted as is of no consequence later; of a third it would be.
            (Role::Third, Role::Primary) if !opened_any() => Err(RoleRefused::NotPromoted),
            // It is behind its primary, as a secondary may be.
            (Role::Third, _) => Ok(Role::Secondary),
            (role, _) => Ok(role),
        }
    }

    // ------------------------------------------------------------------------------------------- the third that takes over

    pub(super) fn judge_third(
        &self,
        now: Nanos,
        fenced: bool,
        accepted: Option<u64>,
    ) -> Result<(), AdminError> {
        if self.role != Role::Third {
            return self.judge_promotion(now, fenced);
        }
        self.judge_phase()?;
        if self.window.last() < self.applied {
            return Err(AdminError::Behind);
        }
        if self.staging.installing() {
            return Err(AdminError::Recovering);
        }
        if self.holds_nothing() {
            return Err(AdminError::HoldsNothing);
        }
        if self.sources_connected().any(|settled| !self.ends_with_nobody(settled)) {
            return Err(AdminError::SourceConnected);
        }
        if !fenced {
            return Err(AdminError::ThirdNotFenced);
        }
        let least = self.lost_with_sources();
        let all_here = self.sources_connected().count() == self.sources.len();
        match accepted.is_some_and(|accepted| accepted >= least) || all_here {
            true => Ok(()),
            false => Err(AdminError::LossNotAccepted { least }),
        }
    }

    /// Whether the last update that this site has is a primary's that stepped down, and a source with so much settled has nothing after it.
    fn ends_with_nobody(&self, settled: UpdateNumber) -> bool {
        let last = self.window.last();
        self.left == Some((last, Left::SteppedDown)) && self.journal.durable() >= last && settled <= last
    }

    /// Updates that this site lacks of what was known to be settled: they are lost with the sources, and what came after their last word.
    fn lost_with_sources(&self) -> u64 {
        let newest = self.sources.iter().map(|source| source.newest).max().unwrap_or(UpdateNumber::NONE);
        newest.0.saturating_sub(self.window.last().0)
    }

    /// The journal keeps what it has numbered since it was promoted, as long as it would for a third: a site that has all before that comes
    /// back by reading it.
    pub(super) fn held_for_former_sources(&self, floor: UpdateNumber) -> UpdateNumber {
        let own = |(generation, _): &(Generation, UpdateNumber)| generation.opener() == self.config.site;
        let opened = self.history.iter().rev().take_while(own).last();
        let before = match opened {
            Some((_, first)) if self.role == Role::Primary && !self.sources.is_empty() => first.previous(),
            _ => return floor,
        };
        let has = before < floor && before.next() >= self.oldest_kept();
        if has && self.may_keep_after(before) { before } else { floor }
    }

    /// A site whose third this one was has come: it is shown what each has, and sent away.
    pub(super) fn meet_former_source(&mut self, hello: &Hello) -> Refusal {
        let split = SplitBrain::of(&self.our_hello(), hello);
        let SplitBrain { common, ours, theirs } = split;
        if theirs.last <= common {
            return refusal(
                RefusalCode::Role,
                format_args!(
                    "this site was a third and is primary now; yours has nothing after {common} that this one lacks: configure each as the \
                     other's peer"
                ),
            );
        }
        refusal(
            RefusalCode::SplitBrain,
            format_args!(
                "this site was a third, became primary after {common}, and is at {} in {}; yours went on to {} in {}: one of them has to be \
                 formatted anew",
                ours.last, ours.generation, theirs.last, theirs.generation
            ),
        )
    }

    // ------------------------------------------------------------------------------------------ the sites that it pulled from

    /// Whether the third took over from both, as far as this site knows: no site of the pair becomes primary unless an operator says that the
    /// third serves nobody.
    pub(super) fn has_heir(&self) -> bool {
        self.feed.is_some() && self.heir_of(&self.history).is_some()
    }

    /// Whether the third took over with this update: what it hands on, the third has.
    pub(super) fn is_inherited(&self, number: UpdateNumber) -> bool {
        self.has_heir() && self.heir.is_some_and(|heir| number <= heir.common)
    }

    /// The heir, unless this history is its.
    pub(super) fn heir_of(&self, history: &History) -> Option<Heir> {
        self.heir.filter(|heir| history.iter().all(|(generation, _)| generation != heir.generation))
    }

    /// The third follows again, formatted anew: it has nothing any more that the pair has not. A primary that stood down for it still awaits
    /// an operator's word.
    pub(super) fn forget_heir(&mut self, third: SiteId) {
        let its = self.heir.is_some_and(|heir| heir.generation.opener() == third);
        if its && !self.is_superseded() {
            self.heir = None;
            self.destage.owe_checkpoint();
        }
    }

    /// A primary that had nothing which its third lacked when it learned that this had taken over: it serves nobody without an operator's
    /// word, after a restart either.
    pub(super) fn is_superseded(&self) -> bool {
        let stood_down_in = self.heir.and_then(|heir| heir.stood_down_in);
        self.role == Role::Primary && stood_down_in.is_some_and(|left| self.generation <= left)
    }

    /// The third has come back as a primary. Who of the two leads is decided as between any two sites.
    pub(super) fn meet_promoted(&mut self, turn: &mut Turn<impl Memory>, hello: &Hello) {
        if let Alone::Beginning(_) = self.alone {
            return self.lose_third(turn, LossReason::Protocol("this site begins alone at this moment"));
        }
        let ours = self.our_hello();
        let split = SplitBrain::of(&ours, hello);
        let follows = leader(&ours, hello) == Lead::Theirs;
        let stands_down = follows && self.role == Role::Primary && !self.is_superseded();
        let SplitBrain { common, ours, theirs } = split;
        let before = self.feed_mut().promoted.replace(split);
        if before
            .is_none_or(|before| (before.common, before.theirs.generation) != (common, theirs.generation))
            || stands_down
        {
            turn.event(Event::ThirdPromoted { common, stays: !follows });
        }
        let stood_down_in = match stands_down {
            true => Some(self.generation),
            false => self.heir.and_then(|heir| heir.stood_down_in),
        };
        let heir = Heir { generation: theirs.generation, common, stood_down_in };
        if self.heir.replace(heir) != Some(heir) {
            // It is to be on the disk soon.
            self.destage.owe_checkpoint();
        }
        if stands_down {
            // The operator promoted the third on the word that nobody writes here; whoever does makes two histories of one.
            self.serving = false;
            self.answer_all(turn, HostError::NotServing);
            self.forget_answered();
            self.answer_administrators(turn);
        }
        let refusal = match follows {
            true => refusal(
                RefusalCode::Role,
                format_args!(
                    "your site took over from this one, which was its source, and which promised nothing after {common}"
                ),
            ),
            false => refusal(
                RefusalCode::SplitBrain,
                format_args!(
                    "your site took over after {common} and is at {} in {}; this one, which was its source, is at {} in {}, of which {} may \
                     have been promised to hosts",
                    theirs.last, theirs.generation, ours.last, ours.generation, ours.promised
                ),
            ),
        };
        self.refuse_third(turn, refusal);
    }
}
