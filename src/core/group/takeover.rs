//! What a site is to its peer, and how that changes: a secondary that takes over, a primary that finds itself superseded. The
//! stream says who is primary: whoever opened its newest generation. A superblock says it for what replay does not read.

use super::extending::SHOWS_LESS;
use super::peering::refusal;
use super::{Alone, Group, Turn};
use crate::base::*;
use crate::core::config::Role;
use crate::core::history::common_point;
use crate::core::lead::{Lead, leader};
use crate::core::messages::*;
use crate::core::outbox::{Event, LossReason};
use crate::format::superblock::Left;
use crate::format::update::UpdateKind;
use crate::format::wire::{Hello, RefusalCode};

/// Updates that a promotion numbers: the generation and that this site is alone in it.
const PROMOTION_UPDATES: usize = 2;

impl Group {
    /// What a superblock may say this site is: a crash undoes what is not durable.
    pub(super) fn durable_role(&self) -> Role {
        // Replay comes by the ends of generations that others have followed.
        let newest = |at| self.history.last().is_none_or(|(_, first)| first <= at);
        let stepped_down =
            |(at, left)| left != Left::HandedOver && at <= self.journal.durable() && newest(at);
        match self.role {
            Role::Primary if self.left.is_some_and(stepped_down) => Role::Secondary,
            role if self.role_at <= self.journal.durable() => role,
            Role::Primary => self.follower(),
            Role::Secondary => Role::Primary,
            Role::Third => Role::Third,
        }
    }

    /// What this site is while it is not primary.
    pub(super) fn follower(&self) -> Role {
        if self.config.role == Role::Third { Role::Third } else { Role::Secondary }
    }

    /// Up to where this site may have acknowledged alone: `SoloEnd` is numbered before the peer has everything.
    pub(super) fn alone_upto(&self) -> UpdateNumber {
        match self.alone {
            Alone::Yes => self.window.last(),
            _ => UpdateNumber(self.solo_ended.0.saturating_sub(1)),
        }
    }

    // ----------------------------------------------------------------------------------------------------- taking over

    pub(super) fn judge_promotion(&self, now: Nanos, fenced: bool) -> Result<(), AdminError> {
        if self.role == Role::Third {
            return self.judge_third(now, fenced, None);
        }
        self.judge_phase()?;
        if self.role == Role::Primary && self.serving {
            return Err(AdminError::PrimaryAlready);
        }
        if self.window.last() < self.applied {
            return Err(AdminError::Behind);
        }
        if self.staging.installing() {
            return Err(AdminError::Recovering);
        }
        if self.holds_nothing() {
            return Err(AdminError::HoldsNothing);
        }
        // A connection may outlive its peer by a second or two, so the operator's word counts for more, and so does a promise that has
        // run out: nothing has come that was to be acknowledged.
        let binds = self.promised_until(now).is_some();
        match fenced {
            true => Ok(()),
            false if self.has_heir() => Err(AdminError::ThirdTookOver),
            false if self.is_being_handed_over() => Err(AdminError::LeavesAlready),
            false if self.is_released() => Ok(()),
            false if self.engaged() && (binds || self.judge_unfenced().is_err()) => {
                Err(AdminError::PrimaryAlive)
            }
            false => self.judge_unfenced(),
        }
    }

    /// Opens a generation over everything this site holds, and is alone in it: the journaled tail may have been acknowledged
    /// though it is not known to be settled. Hosts are served once that is durable (INV-1). Returns the number at which it is.
    pub(super) fn promote(&mut self, turn: &mut Turn<impl Memory>) -> UpdateNumber {
        // Both are in one batch, which a crash leaves whole or not at all: a third that has opened a generation is known to be alone in it.
        let one_batch = self.journal.appended() == self.window.last();
        // A crash is to leave the end that this takes back, or that and what takes it back.
        let ended = self.left.is_none_or(|(at, _)| at <= self.journal.durable());
        if self.window.room() < PROMOTION_UPDATES || !ended || (self.role == Role::Third && !one_batch) {
            return UpdateNumber::NONE;
        }
        // Who is alone and has not given that up stays so by its disk until that says it again.
        let again = self.alone == Alone::Yes && self.left.is_none();
        self.leave_peer(turn);
        self.leave_sources(turn);
        self.open_as_primary(turn);
        if again {
            self.solo_ended = self.window.last().next();
        }
        let at = self.append_control(turn, UpdateKind::SoloBegin, self.generation);
        self.alone = Alone::Beginning(at);
        at
    }

    /// Opens a generation over everything this site holds, as its primary.
    pub(super) fn open_as_primary(&mut self, turn: &mut Turn<impl Memory>) {
        let takes_over = self.role != Role::Primary;
        if takes_over {
            self.role = Role::Primary;
            self.acknowledged = self.settled;
            (self.joint_from, self.solo_ended) = (UpdateNumber(1), UpdateNumber::NONE);
            // What the old primary said is settled it has, and the journal keeps what follows for its return. Nobody else has what
            // a site that gave way was to lose.
            let marked = if self.changed.tracking() { self.changed.base() } else { self.settled };
            let has = self.settled.min(marked);
            self.peer.received = has;
            self.peer.journaled = has;
            self.peer.durable = has;
            self.peer.applied = self.checkpoint.min(has);
        }
        // A peer that came with new disks has less than this site can mark, and is then compared with as a whole.
        self.track_changes(self.peer.durable.max(self.window.retired()));
        let stood_down = self.is_superseded();
        let generation = self.generation.opened_by(self.config.site);
        let opening = self.append_control(turn, UpdateKind::GenerationOpen, generation);
        let stays = self.stay(turn);
        // Who handed over is primary by its disk all the while.
        if takes_over || stays.is_some_and(|left| left != Left::HandedOver) {
            self.role_at = opening;
        }
        self.opened = true;
        if stood_down || stays == Some(Left::HandedOver) {
            // Its hosts were sent away.
            turn.event(Event::RoleChanged { role: Role::Primary });
        }
    }

    // -------------------------------------------------------------------------------------------------- who leads whom

    /// Both hellos are here: whoever has the newer history leads, unless that would lose what the other promised alone.
    pub(super) fn meet(&mut self, turn: &mut Turn<impl Memory>, hello: &Hello) {
        let Some(said) = self.peer.said_hello.take() else {
            return self.lose_peer(turn, LossReason::Protocol("a hello that was not asked for"));
        };
        let refuse = |group: &mut Group, turn: &mut Turn<_>, code, text: std::fmt::Arguments| {
            group.refuse(turn, refusal(code, text));
        };
        let lead = leader(&said, hello);
        // Who leads goes by what was said: what this site has numbered since would be neither cut nor told from the leader's own.
        if lead == Lead::Theirs && self.window.last() > said.last {
            return self.lose_peer(turn, LossReason::Protocol("this site went on meanwhile"));
        }
        // Who leads may show less than who follows.
        if !self.shows_as_much(hello) && lead == Lead::Theirs {
            return self.lose_peer(turn, LossReason::Protocol(SHOWS_LESS));
        }
        self.note_split(&said, hello, lead == Lead::SplitBrain);
        match lead {
            Lead::Ours if self.role == Role::Primary => self.lead(turn, hello),
            Lead::Ours => self.lose_peer(turn, LossReason::Protocol("this site stepped down meanwhile")),
            Lead::Theirs => self.follow(turn, hello),
            Lead::Nobody => {
                let last = self.window.last();
                self.leaving
                    .peer_is_secondary(hello, common_point(&self.history, last, &hello.history, hello.last));
                if self.role == Role::Primary && !self.step_down(turn, hello) {
                    return;
                }
                refuse(
                    self,
                    turn,
                    RefusalCode::Role,
                    format_args!("neither site is primary; `lockstep promote` makes one of them so"),
                );
            }
            Lead::BothConfigured => {
                refuse(self, turn, RefusalCode::Role, format_args!("both sites are configured as Primary"))
            }
            Lead::SplitBrain => {
                let (ours, last, settled) = (self.generation, self.window.last(), self.settled);
                let common = common_point(&self.history, last, &hello.history, hello.last);
                let parted = match common {
                    UpdateNumber::NONE => "each site has contents that the other one never had",
                    _ => "both sites went on alone",
                };
                refuse(
                    self,
                    turn,
                    RefusalCode::SplitBrain,
                    format_args!(
                        "{parted} after {common}: this site to {last} in {ours}, of which {settled} is settled, yours \
                         to {} in {} of which {} is settled",
                        hello.last, hello.last_generation, hello.settled
                    ),
                )
            }
        }
    }

    fn follow(&mut self, turn: &mut Turn<impl Memory>, hello: &Hello) {
        if self.role == Role::Primary && !self.step_down(turn, hello) {
            return;
        }
        self.peer.talk = self.talk_that_follows(turn, hello);
        // What the journal kept for a peer that it led is of no use any more, and may be all it has room for.
        if self.journal.used_after(self.checkpoint) < self.journal.used_blocks() {
            self.note_retention();
        }
        self.peer.led_settled = hello.settled;
        self.leaving.follows(hello);
        // That the primary whose generation ended here has gone on is to be on the disk soon.
        let left = self.left.is_some_and(|(_, left)| !matches!(left, Left::GaveWay(_)));
        if left && self.leaving.led_by() > self.generation {
            self.destage.owe_checkpoint();
        }
        self.note_terms(hello, turn.now);
        self.peer.send_to = UpdateNumber::NONE;
        self.peer.ack_owed = true;
    }

    /// A primary finds that its peer has gone on without it, and is one no more. Returns false, and ends the conversation, if
    /// it has promised something alone since it said its hello.
    fn step_down(&mut self, turn: &mut Turn<impl Memory>, hello: &Hello) -> bool {
        let last = self.window.last();
        let common = common_point(&self.history, last, &hello.history, hello.last);
        if last > common && self.settled.max(self.alone_upto()) > common {
            self.lose_peer(turn, LossReason::Protocol("this site went on alone meanwhile"));
            return false;
        }
        self.become_secondary(turn);
        true
    }

    /// Whoever waits gets an error: what is numbered may be kept or dropped by the new primary.
    pub(super) fn become_secondary(&mut self, turn: &mut Turn<impl Memory>) {
        self.role = Role::Secondary;
        self.lease.forget_terms();
        self.peer.ages.forget();
        self.role_at = UpdateNumber::NONE;
        self.opened = false;
        self.serving = false;
        self.alone = Alone::No;
        self.drop_resync();
        (self.joint_from, self.solo_ended) = (UpdateNumber(1), UpdateNumber::NONE);
        self.flush_wanted = UpdateNumber::NONE;
        self.answer_all(turn, HostError::NotServing);
        self.forget_answered();
        self.have_left(turn);
        self.answer_administrators(turn);
        self.peer.flush_requested = UpdateNumber::NONE;
        turn.event(Event::RoleChanged { role: Role::Secondary });
    }

    /// Whether everything after `keep` may be dropped for the primary's sake.
    pub(super) fn may_cut_to(&self, keep: UpdateNumber) -> bool {
        // What a repair brought to the tables was settled, whether this site has it yet or not; but by the primary, if that has
        // taken over since.
        let covered = self.applied <= keep.max(self.peer.led_settled);
        keep >= self.settled && covered && keep <= self.window.last()
    }
}
