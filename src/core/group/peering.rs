//! The peer: handshake, streaming, catching up, loss and solo on the primary; taking, cutting and acknowledging on the
//! secondary.

use std::fmt::Write;

use super::ages::Ages;
use super::catch_up::{Found, ReadFor};
use super::copier::ResyncName;
use super::inbound::Inbound;
use super::origins::Origin;
use super::targets::Target;
use super::{Alone, Group, Phase, Turn};
use crate::base::*;
use crate::core::config::{AckLevel, OnPeerLoss, PeerConfig, Role};
use crate::core::messages::*;
use crate::core::outbox::{Event, LossReason, WriteStamps};
use crate::core::window::Window;
use crate::format::update::{Update, UpdateKind};
use crate::format::wire::{Hello, PROTOCOL_MIN, Refusal, RefusalCode};

/// Where the conversation with the peer stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Talk {
    /// Not connected, or refused.
    Absent,
    /// Hellos are being exchanged since then.
    Greeting { since: Nanos, hello_sent: bool },
    /// Primary: the peer was told to drop what is after `keep`.
    Cutting { keep: UpdateNumber },
    /// Primary: the peer was asked for what we lack, through `to`.
    Fetching { to: UpdateNumber },
    /// Primary: updates flow.
    Streaming,
    /// Primary: a peer that gives way tells which blocks it has changed.
    Merging,
    /// Primary: what the peer lacks beyond the journal is copied to it.
    Copying,
    /// Secondary: taking what comes.
    Following,
    /// Secondary that gives way: tells which blocks it has changed, and awaits what it is copied.
    Yielding,
    /// Secondary: what comes is staged.
    Staging,
    /// Secondary: will drop what is after `keep` once the journal writes before it are done.
    CutPending { keep: UpdateNumber },
}

#[derive(Debug)]
pub(super) struct Peer {
    pub connection: Option<u32>,
    pub talk: Talk,
    pub hello: Option<Box<Hello>>,
    /// What this site said of itself: both decide by the same two hellos.
    pub said_hello: Option<Box<Hello>>,
    /// The version of the protocol that both speak, as of when they met.
    pub protocol: u16,
    /// What this site has told the peer, in this conversation, that its hosts see, and what the peer has told of its own.
    pub sizes: VolumeSizes,

    // Primary: the peer's position, from its acknowledgements.
    pub received: UpdateNumber,
    pub journaled: UpdateNumber,
    pub durable: UpdateNumber,
    pub applied: UpdateNumber,
    /// What its journal has room for after `received`.
    pub journal_free_blocks: u64,
    /// Payload blocks of unsettled updates that the peer can hold.
    pub window_blocks: u64,

    /// Secondary: what the primary had settled when they met.
    pub led_settled: UpdateNumber,
    /// Secondary: what the primary said is settled.
    pub told_settled: UpdateNumber,
    /// Secondary: a host of the primary waits for this number to be durable.
    pub flush_requested: UpdateNumber,

    // The window's updates given to the link, and those it has read.
    pub sent: UpdateNumber,
    pub consumed: UpdateNumber,
    pub next_to_send: UpdateNumber,
    /// Secondary answering a fetch: the last one to send.
    pub send_to: UpdateNumber,

    pub inbound: FixedQueue<Inbound>,

    /// Primary: the peer has heard what is settled since it was last met.
    pub introduced: bool,
    pub said_settled: UpdateNumber,
    pub flush_asked: UpdateNumber,
    pub said_at: Nanos,
    pub heartbeats: u64,
    pub heartbeat_unanswered: bool,
    /// Since when an answer is owed; moves with every sign of progress.
    pub waiting_since: Option<Nanos>,
    /// Since when it is sent the stream, on this connection.
    pub streams_since: Nanos,
    /// Solo primary: since when the peer has lacked little.
    pub near_since: Option<Nanos>,
    /// Solo primary: how long ago it numbered what the peer lacks, which has left the window.
    pub ages: Ages,
    pub last_ack: [UpdateNumber; 4],
    pub ack_owed: bool,
}

/// A settled watermark that no update carries is told this long after the last frame.
const SETTLED_NEWS_AFTER: Nanos = Nanos::from_millis(1);

/// A solo primary ends solo when the peer lacks at most this many updates: hosts wait until it has them.
const REJOIN_WITHIN: u64 = 32;

/// Or when it has lacked at most so many for so long: on a long way, as many are always under way.
const REJOIN_LONG_WAY_WITHIN: u64 = 256;
const REJOIN_LONG_WAY_AFTER: Nanos = Nanos::from_millis(50);

/// A peer that makes progress, but whose oldest unanswered update is this many budgets old, is lost as well.
const SLOW_BUDGETS: u64 = 8;

/// Places of the link's ring that only handshakes and refusals use.
pub(super) const LINK_SPARE: usize = 32;

impl Peer {
    pub fn new() -> Peer {
        Peer {
            connection: None,
            talk: Talk::Absent,
            hello: None,
            said_hello: None,
            protocol: PROTOCOL_MIN,
            sizes: VolumeSizes::default(),
            received: UpdateNumber::NONE,
            journaled: UpdateNumber::NONE,
            durable: UpdateNumber::NONE,
            applied: UpdateNumber::NONE,
            journal_free_blocks: 0,
            window_blocks: 0,
            led_settled: UpdateNumber::NONE,
            told_settled: UpdateNumber::NONE,
            flush_requested: UpdateNumber::NONE,
            sent: UpdateNumber::NONE,
            consumed: UpdateNumber::NONE,
            next_to_send: UpdateNumber(1),
            send_to: UpdateNumber::NONE,
            inbound: FixedQueue::new(2 * LINK_INBOUND_SLOTS),
            introduced: false,
            said_settled: UpdateNumber::NONE,
            flush_asked: UpdateNumber::NONE,
            said_at: Nanos(0),
            heartbeats: 0,
            heartbeat_unanswered: false,
            waiting_since: None,
            streams_since: Nanos(0),
            near_since: None,
            ages: Ages::new(),
            last_ack: [UpdateNumber::NONE; 4],
            ack_owed: false,
        }
    }

    /// Whether it was told what this site is.
    pub fn is_greeted(&self) -> bool {
        !matches!(self.talk, Talk::Absent | Talk::Greeting { hello_sent: false, .. })
    }
}

impl Group {
    pub(super) fn peer_config(&self) -> &PeerConfig {
        self.config.peer.as_ref().expect("a link exists only for a configured peer")
    }

    pub fn on_link(&mut self, turn: &mut Turn<impl Memory>, message: FromLink) {
        match message {
            FromLink::Connected { connection } => {
                self.lose_peer(turn, LossReason::Disconnected);
                self.peer.connection = Some(connection);
                self.peer.talk = Talk::Greeting { since: turn.now, hello_sent: false };
                self.peer.hello = None;
                self.peer.sizes = VolumeSizes::default();
                // Replay goes by what the journal said was settled.
                if matches!(self.phase, Phase::Running) {
                    self.peer.told_settled = self.settled;
                }
                turn.out.to_link.push(ToLink::Begin { connection });
                if self.failed() {
                    turn.out.to_link.push(ToLink::Close);
                }
            }
            FromLink::Disconnected { connection } if self.peer.connection == Some(connection) => {
                self.peer.connection = None;
                self.lose_peer(turn, LossReason::Disconnected);
            }
            FromLink::Disconnected { .. } => {}
            FromLink::Update { update, settled, slot, with_old } => {
                self.on_update(turn, update, settled, slot, with_old);
            }
            FromLink::Control(control) => self.on_control(turn, control),
            FromLink::Page { frame, page, length } => {
                self.link_pages -= 1;
                self.on_page(turn, frame, page, length);
                self.pages.release(page, turn.memory);
            }
            FromLink::Consumed { number, source: UpdateSource::Window, popped_at, sent_at, .. } => {
                for covered in self.peer.consumed.0 + 1..=number.0 {
                    if self.window.contains(UpdateNumber(covered)) {
                        let stamps = &mut self.window.get_mut(UpdateNumber(covered)).stamps;
                        (stamps.link_popped_at, stamps.sent_at) = (popped_at, sent_at);
                    }
                }
                self.peer.consumed = self.peer.consumed.max(number);
                self.take_old_blocks_back(turn, number);
            }
            FromLink::Consumed { slot, source: UpdateSource::CatchUp | UpdateSource::Copy, .. } => {
                self.catch_up_consumed(turn, slot)
            }
            FromLink::PageReturned { page } => self.pages.release(page, turn.memory),
        }
    }

    /// Whether the sites of the pair are finding out who they are to each other.
    pub(super) fn greets(&self) -> bool {
        self.peer.connection.is_some() && matches!(self.peer.talk, Talk::Greeting { .. })
    }

    pub(super) fn engaged(&self) -> bool {
        self.peer.connection.is_some()
            && !matches!(self.peer.talk, Talk::Absent | Talk::Greeting { .. })
            && matches!(self.phase, Phase::Running)
    }

    // ---------------------------------------------------------------------------------------------------- receiving

    fn on_update(
        &mut self,
        turn: &mut Turn<impl Memory>,
        update: Update,
        settled: UpdateNumber,
        slot: SlotId,
        with_old: bool,
    ) {
        let inbound = Inbound::of_row(&turn.tables.inbound, slot, update, with_old);
        self.link_pages -= inbound.granted();
        let taking = matches!(self.peer.talk, Talk::Following | Talk::Fetching { .. } | Talk::Staging);
        let wanted = self.engaged() && taking;
        if !wanted {
            // What was on its way when the connection was given up.
            return self.drop_inbound(turn, &inbound);
        }
        if self.peer.talk == Talk::Following {
            self.peer.told_settled = self.peer.told_settled.max(settled);
        }
        self.peer.inbound.push(inbound);
    }

    /// Takes received updates into the stream while there is room.
    pub(super) fn ingest_inbound(&mut self, turn: &mut Turn<impl Memory>) {
        while let Some(inbound) = self.peer.inbound.front() {
            let update = inbound.update;
            let (page, with_old) = (inbound.pages[0].0, inbound.old.is_some());
            match self.may_take(turn, &update, page, with_old) {
                Ok(true) => {}
                Ok(false) => return,
                Err(why) => return self.lose_peer(turn, LossReason::Protocol(why)),
            }
            let inbound = self.peer.inbound.pop().expect("looked at it");
            if let Some(old) = &inbound.old
                && let Some(lba) = self.differing(turn.memory, &update, old)
            {
                self.drop_inbound(turn, &inbound);
                return self.leave_for_difference(turn, update.volume, lba);
            }
            self.follow_slots(&update);
            self.note_alone(&update);
            let stamps = WriteStamps { numbered_at: turn.now, ..WriteStamps::default() };
            self.append(turn, update, None, stamps, |index| inbound.pages[index], inbound.old.as_ref());
            // What is in the tables already captures nothing.
            if update.number <= self.applied {
                inbound.old_pages().for_each(|page| self.pages.release(page, turn.memory));
            }
            self.peer.ack_owed = true;
            if let Talk::Fetching { to } = self.peer.talk {
                self.note_fetched(&update);
                self.peer.waiting_since = Some(turn.now);
                if update.number == to {
                    self.begin_streaming(turn, to.next());
                }
            }
        }
    }

    fn on_control(&mut self, turn: &mut Turn<impl Memory>, control: Control) {
        match control {
            Control::TablesWanted { settled, page } => return self.on_tables_wanted(turn, settled, page),
            Control::BlockWanted { place, sum } if self.converses() => {
                return self.lend_block(turn, Target::Peer, place, sum);
            }
            _ if !self.engaged() => return,
            _ => {}
        }
        let primary = self.role == Role::Primary;
        match control {
            Control::Ack {
                received,
                journaled,
                durable,
                applied,
                journal_ns,
                journal_free_blocks,
                heard,
            } if primary => {
                self.renew_lease(received, heard);
                self.peer.journal_free_blocks = u64::from(journal_free_blocks);
                self.on_ack(turn, [received, journaled, durable, applied], journal_ns);
            }
            Control::Heartbeat { settled, sequence } if !primary => {
                self.lease.heard = sequence;
                self.peer.told_settled = self.peer.told_settled.max(settled);
                self.peer.ack_owed = true;
            }
            Control::FlushRequest { number } if !primary => {
                self.peer.flush_requested = self.peer.flush_requested.max(number);
            }
            Control::Fetch { .. } if !primary && self.peer.send_to > UpdateNumber::NONE => {
                self.lose_peer(turn, LossReason::Protocol("a second fetch"));
            }
            Control::Fetch { from, to } if !primary => {
                let servable = from > UpdateNumber::NONE
                    && from <= to
                    && to <= self.window.last()
                    && self.journal.oldest().is_some_and(|oldest| oldest <= from);
                if !servable {
                    let why = refusal(
                        RefusalCode::ResyncRequired,
                        format_args!("{from} to {to} are no longer in this site's journal"),
                    );
                    return self.refuse(turn, why);
                }
                // What its hello said of being alone is older than what it takes back.
                for number in from.0..=to.0 {
                    if self.window.contains(UpdateNumber(number)) {
                        let update = self.window.get(UpdateNumber(number)).update;
                        self.note_alone(&update);
                    }
                }
                if self.peer.consumed < self.peer.sent {
                    return self
                        .lose_peer(turn, LossReason::Protocol("a fetch before the last one was answered"));
                }
                (self.peer.next_to_send, self.peer.send_to) = (from, to);
                // Numbers go back: what the link has read is counted from here, or the window would let go of it too early.
                (self.peer.sent, self.peer.consumed) = (from.previous(), from.previous());
            }
            Control::CutTo { keep } if !primary => self.on_cut_to(turn, keep),
            Control::CopyOffer { generation, serial, blocks, whole } if !primary => {
                let resync = ResyncName { site: self.peer_config().site, generation, serial };
                self.on_copy_offer(turn, Origin::Peer, resync, blocks, whole);
            }
            Control::Install { upto } if !primary => self.on_install(turn, Origin::Peer, upto),
            Control::DigestsWanted { extent } if !primary => self.on_digests_wanted(turn, extent),
            Control::Staged { updates } if primary => self.on_staged(turn, Target::Peer, updates),
            Control::MarksEnd { pages } if primary => self.on_marks_end(turn, pages),
            Control::BlockLacking { place, why } => {
                self.lender_lacks(turn, Origin::Peer, place, why);
                self.equalise_lacks(turn, place, why);
            }
            Control::Compare { at, extent } if !primary => self.on_compare_wanted(turn, at, extent),
            Control::Compared { at, answer } if primary => self.on_compared(turn, at, answer),
            Control::SwitchoverWanted if primary => self.on_switchover_wanted(turn),
            Control::SwitchoverRefused { code } if !primary => self.on_switchover_refused(turn, code),
            Control::Extend { volume, blocks } if !primary => self.on_extension_wanted(turn, volume, blocks),
            Control::Extended { volume, blocks, errno } => self.on_extended(turn, volume, blocks, errno),
            _ => self.lose_peer(turn, LossReason::Protocol("a frame that its role does not send")),
        }
    }

    fn on_page(&mut self, turn: &mut Turn<impl Memory>, frame: PageFrame, page: PageId, length: u16) {
        let body = &turn.memory.bytes(page)[..usize::from(length).min(BLOCK_BYTES)];
        match frame {
            PageFrame::Hello => match Hello::decode(body) {
                Ok(hello) if matches!(self.peer.talk, Talk::Greeting { .. }) => {
                    self.peer.hello = Some(Box::new(hello));
                    // At once: updates may be right behind it.
                    self.greet(turn);
                }
                Ok(hello) if self.awaits_successor() => {
                    self.greet_anew(turn);
                    self.peer.hello = Some(Box::new(hello));
                    self.greet(turn);
                }
                Ok(hello) if self.peer.talk == Talk::Staging => self.note_copied_history(&hello),
                Ok(_) => self.lose_peer(turn, LossReason::Protocol("a second hello")),
                Err(_) => self.lose_peer(turn, LossReason::Protocol("a hello that does not decode")),
            },
            PageFrame::Refusal => {
                let refusal = Refusal::decode(body).ok();
                let site = self.peer_config().site;
                turn.event(Event::Refused { site, by_us: false, refusal });
                self.lose_peer(turn, LossReason::Protocol("refused by the peer"));
            }
            PageFrame::Block => {
                self.block_lent(turn, page, length);
                self.equalise_with(turn, page, length);
            }
            PageFrame::Marks => self.on_marks(turn, page),
            PageFrame::Digests => self.on_digests(turn, Target::Peer, page),
            PageFrame::Tables => {
                self.lose_peer(turn, LossReason::Protocol("tables that nobody asked for"));
            }
        }
    }

    // --------------------------------------------------------------------------------------------------------- losing

    /// The conversation is over; a primary whose policy is solo goes on alone.
    pub(super) fn lose_peer(&mut self, turn: &mut Turn<impl Memory>, reason: LossReason) {
        let was = std::mem::replace(&mut self.peer.talk, Talk::Absent);
        if was == Talk::Absent {
            return;
        }
        if reason != LossReason::Disconnected && self.peer.connection.is_some() {
            turn.out.to_link.push(ToLink::Close);
        }
        self.peer.hello = None;
        self.forget_lender(turn.now, Origin::Peer);
        self.forget_comparing(turn);
        self.forget_lending();
        self.interrupt_resync(Target::Peer);
        if was == Talk::Staging {
            self.interrupt_staging();
        }
        self.interrupt_merging();
        self.peer.waiting_since = None;
        self.peer.send_to = UpdateNumber::NONE;
        // The peer may be losing what it has not flushed, and nobody would hear of it: from here on only what survives that
        // counts for what is not acknowledged yet (INV-1).
        self.peer.journaled = self.peer.durable;
        self.peer.received = self.peer.durable;
        while let Some(inbound) = self.peer.inbound.pop() {
            self.drop_inbound(turn, &inbound);
        }
        self.read_back_end(turn, ReadFor::Peer);
        if !matches!(self.phase, Phase::Running) {
            return;
        }
        turn.event(Event::PeerLost { reason });
    }

    /// Ends the conversation from this side, for good: a stopping site greets nobody.
    pub(super) fn leave_peer(&mut self, turn: &mut Turn<impl Memory>) {
        if self.peer.talk != Talk::Absent {
            turn.out.to_link.push(ToLink::Close);
            self.lose_peer(turn, LossReason::Disconnected);
        }
    }

    fn begin_solo_if_allowed(&mut self, turn: &mut Turn<impl Memory>) {
        let lost = matches!(self.peer.talk, Talk::Absent | Talk::Greeting { .. });
        let solo = self.config.peer.as_ref().is_some_and(|peer| peer.on_peer_loss == OnPeerLoss::Solo);
        let may = self.serving && self.alone == Alone::No && !self.stopping && self.window.room() > 0;
        if lost && solo && may {
            let at = self.append_control(turn, UpdateKind::SoloBegin, self.generation);
            self.alone = Alone::Beginning(at);
            self.track_changes(self.peer.durable);
        }
    }

    fn end_solo_if_caught_up(&mut self, turn: &mut Turn<impl Memory>) {
        let may = self.alone == Alone::Yes && !self.stopping && self.window.room() > 0;
        let lacks = self.window.last().0 - self.peer_level().0.min(self.window.last().0);
        let near = may && self.peer.talk == Talk::Streaming && lacks <= REJOIN_LONG_WAY_WITHIN;
        self.peer.near_since = near.then(|| self.peer.near_since.unwrap_or(turn.now));
        let long = self.peer.near_since.is_some_and(|since| turn.now.since(since) >= REJOIN_LONG_WAY_AFTER);
        if near && (lacks <= REJOIN_WITHIN || long) {
            self.peer.near_since = None;
            let at = self.append_control(turn, UpdateKind::SoloEnd, self.generation);
            self.alone = Alone::No;
            (self.joint_from, self.solo_ended) = (at, at);
            turn.event(Event::SoloEnded { at });
            turn.event(Event::PeerInSync);
        }
    }

    fn overdue(&self, now: Nanos) -> Option<u64> {
        let budget = self.peer_config().latency_budget;
        let waited = self.peer.waiting_since.map_or(Nanos(0), |since| now.since(since));
        if waited >= budget {
            return Some(waited.0);
        }
        let oldest = self.peer_level().next();
        let joint = self.in_set()
            && oldest >= self.joint_from
            && self.window.contains(oldest)
            && oldest <= self.peer.sent;
        if self.peer.talk == Talk::Streaming && joint {
            // What it was sent on another connection, and has in memory, it owes since this one.
            let age = now.since(self.window.get(oldest).given_to_link_at.max(self.peer.streams_since));
            if age.0 >= budget.0 * SLOW_BUDGETS {
                return Some(age.0);
            }
        }
        None
    }

    // ------------------------------------------------------------------------------------------------------ each turn

    pub(super) fn peer_turn(&mut self, turn: &mut Turn<impl Memory>) {
        if self.config.peer.is_none() {
            return self.serve_if_allowed(turn);
        }
        self.greet(turn);
        match self.role {
            Role::Primary => {
                self.serve_if_allowed(turn);
                self.begin_solo_if_allowed(turn);
                self.end_solo_if_caught_up(turn);
                if self.alone != Alone::No {
                    let (newest, had) = (self.window.last(), self.peer_level());
                    self.peer.ages.note(turn.now, newest, had);
                }
                self.forget_changes_if_caught_up();
                // What it begins goes on in this turn: nothing else may come to call for another one.
                self.merge_turn(turn);
                if self.peer.talk == Talk::Copying {
                    self.copy_turn(turn, Target::Peer);
                } else if self.peer.talk != Talk::Merging && self.engaged() {
                    // What is settled comes first: a peer that holds much unsettled may have no page to receive an update
                    // with before it hears (INV-12).
                    if !self.peer.introduced {
                        self.send_news(turn);
                    }
                    self.send_updates(turn);
                    self.send_news(turn);
                    if let Some(unanswered_ns) = self.overdue(turn.now) {
                        self.lose_peer(turn, LossReason::LatencyBudget { unanswered_ns });
                    }
                }
            }
            Role::Third => unreachable!("a third has no peer"),
            Role::Secondary => {
                self.cut_if_pending(turn);
                if self.engaged() {
                    self.send_updates(turn);
                    self.send_ack(turn);
                    self.send_marks(turn);
                    self.succeed_if_handed_over(turn);
                }
            }
        }
    }

    /// Gives the link what comes next, from the window or read back from the journal.
    pub(super) fn send_updates(&mut self, turn: &mut Turn<impl Memory>) {
        let introduced = self.peer.talk == Talk::Streaming && self.peer.introduced;
        if !introduced && self.peer.talk != Talk::Following && !self.sends_tail() {
            return;
        }
        while self.peer.next_to_send <= self.window.last().min(self.peer.send_to) {
            let number = self.peer.next_to_send;
            if turn.out.to_link.room() <= LINK_SPARE || self.opening(number) || !self.peer_has_pages(number) {
                return;
            }
            if self.window.contains(number) {
                if !self.may_lend(number) {
                    return;
                }
                let pending = self.window.get_mut(number);
                pending.given_to_link_at = turn.now;
                let update = pending.update;
                let with_old = self.lend_old_blocks(turn, &update);
                let slot = Window::slot_of(number).0;
                turn.out.to_link.push(ToLink::Update {
                    update,
                    settled: self.settled,
                    slot,
                    source: UpdateSource::Window,
                    with_old,
                });
                // Everything read back was consumed in order before it, so the window's run begins here.
                if self.peer.sent < number.previous() {
                    self.peer.consumed = self.peer.consumed.max(number.previous());
                }
                self.peer.sent = number;
            } else if !self.send_from_journal(turn, number) {
                return;
            }
            self.said(turn.now, self.settled);
            self.note_tail_sent();
            self.peer.next_to_send = number.next();
        }
        if self.window.contains(self.peer.next_to_send) || self.peer.next_to_send > self.window.last() {
            self.read_back_end(turn, ReadFor::Peer);
        }
    }

    /// Whether the peer has pages for `number` beside what it holds unsettled. News of what settled comes behind the updates
    /// in the stream, so a peer without a page left would never hear what lets it free some (INV-12).
    fn peer_has_pages(&self, number: UpdateNumber) -> bool {
        if self.role == Role::Secondary || !self.window.contains(number) {
            return true;
        }
        let unsettled = |upto| self.window.blocks_between(self.peer.said_settled, upto);
        let held = if self.window.contains(number.previous()) { unsettled(number.previous()) } else { 0 };
        held == 0 || unsettled(number) <= self.peer.window_blocks
    }

    fn send_from_journal(&mut self, turn: &mut Turn<impl Memory>, number: UpdateNumber) -> bool {
        if !self.catch_up.has_row() {
            return false;
        }
        let (update, slot, page) = match self.read_back(turn, ReadFor::Peer, number) {
            Found::Update { update, slot, page } => (update, slot, page),
            Found::Later => return false,
            Found::Gone => {
                let refusal = refusal(
                    RefusalCode::ResyncRequired,
                    format_args!("{number} is no longer in this site's journal"),
                );
                self.refuse(turn, refusal);
                return false;
            }
        };
        let row = self.catch_up.take_row(update.payload_blocks()).expect("checked above");
        self.give_read_back(turn, ReadFor::Peer, (&update, slot, page), row);
        turn.out.to_link.push(ToLink::Update {
            update,
            settled: self.settled,
            slot: row,
            source: UpdateSource::CatchUp,
            with_old: false,
        });
        self.counters.catch_up_updates += 1;
        true
    }

    fn said(&mut self, now: Nanos, settled: UpdateNumber) {
        self.peer.said_at = now;
        self.peer.said_settled = settled;
        self.peer.waiting_since.get_or_insert(now);
    }

    /// Heartbeats and flush requests.
    fn send_news(&mut self, turn: &mut Turn<impl Memory>) {
        if self.peer.talk != Talk::Streaming || turn.out.to_link.room() <= LINK_SPARE {
            return;
        }
        if self.flush_wanted > self.peer.durable
            && self.peer.flush_asked < self.flush_wanted
            && self.peer.next_to_send > self.flush_wanted
            && self.config.ack < AckLevel::Durable
        {
            let number = self.flush_wanted;
            turn.out.to_link.push(ToLink::Control(Control::FlushRequest { number }));
            self.peer.flush_asked = number;
            self.said(turn.now, self.peer.said_settled);
        }
        let silence = turn.now.since(self.peer.said_at);
        let news = self.settled > self.peer.said_settled
            && (silence >= SETTLED_NEWS_AFTER
                || self.config.ack == AckLevel::Applied
                || !self.peer_has_pages(self.peer.next_to_send));
        let beat = silence >= self.peer_config().heartbeat_interval && !self.peer.heartbeat_unanswered;
        if !self.peer.introduced || news || beat || self.lease.is_due(turn.now) {
            self.peer.heartbeats += 1;
            let heartbeat = Control::Heartbeat { settled: self.settled, sequence: self.peer.heartbeats };
            turn.out.to_link.push(ToLink::Control(heartbeat));
            self.lease.note_heartbeat(self.peer.heartbeats, turn.now);
            self.peer.heartbeat_unanswered = true;
            self.peer.introduced = true;
            self.said(turn.now, self.settled);
        }
    }

    fn on_ack(&mut self, turn: &mut Turn<impl Memory>, levels: [UpdateNumber; 4], journal_ns: u32) {
        let [received, journaled, durable, applied] = levels;
        if let Talk::Cutting { keep } = self.peer.talk {
            if received == keep {
                self.peer.journaled = journaled.min(keep);
                self.peer.durable = durable.min(keep);
                self.go_on_from(turn, keep);
            }
            return;
        }
        if self.peer.talk != Talk::Streaming {
            return;
        }
        let before = [self.peer.received, self.peer.journaled, self.peer.durable, self.peer.applied];
        let ordered = applied <= durable && durable <= journaled && journaled <= received;
        if !ordered || received > self.peer.next_to_send.previous() {
            return self.lose_peer(turn, LossReason::Protocol("an acknowledgement of what was not sent"));
        }
        let level = self.peer_level();
        self.peer.received = before[0].max(received);
        self.peer.journaled = before[1].max(journaled);
        self.peer.durable = before[2].max(durable);
        self.peer.applied = before[3].max(applied);
        for number in level.0 + 1..=self.peer_level().0 {
            if self.window.contains(UpdateNumber(number)) {
                let stamps = &mut self.window.get_mut(UpdateNumber(number)).stamps;
                (stamps.peer_acknowledged_at, stamps.peer_journal_ns) = (turn.now, journal_ns);
            }
        }
        if durable > before[2] {
            self.note_retention();
            self.forget_changes_if_caught_up();
        }
        self.peer.heartbeat_unanswered = false;
        let answered = self.peer_level() >= self.peer.next_to_send.previous();
        self.peer.waiting_since = match self.peer.waiting_since {
            _ if answered => None,
            Some(_) if levels != before => Some(turn.now),
            unchanged => unchanged,
        };
        self.advance(turn);
    }

    pub(super) fn peer_deadline(&self) -> Option<Nanos> {
        let peer = self.config.peer.as_ref()?;
        match self.peer.talk {
            Talk::Greeting { since, .. } => Some(since.plus(self.greeting_max())),
            Talk::Absent | Talk::Following | Talk::CutPending { .. } | Talk::Yielding | Talk::Staging => None,
            Talk::Merging => Some(self.merge_deadline()),
            Talk::Copying => Some(self.copy_deadline(Target::Peer)),
            Talk::Cutting { .. } | Talk::Fetching { .. } => {
                self.peer.waiting_since.map(|since| since.plus(peer.latency_budget))
            }
            Talk::Streaming => {
                let silence = if self.settled > self.peer.said_settled {
                    SETTLED_NEWS_AFTER
                } else if self.peer.heartbeat_unanswered {
                    peer.latency_budget
                } else {
                    peer.heartbeat_interval
                };
                let answer = self.peer.waiting_since.map(|since| since.plus(peer.latency_budget));
                let rejoin = self.peer.near_since.map(|since| since.plus(REJOIN_LONG_WAY_AFTER));
                [answer, rejoin].into_iter().flatten().chain([self.peer.said_at.plus(silence)]).min()
            }
        }
    }

    // ------------------------------------------------------------------------------------------------- the secondary

    fn send_ack(&mut self, turn: &mut Turn<impl Memory>) {
        if self.peer.talk != Talk::Following || turn.out.to_link.room() <= LINK_SPARE {
            return;
        }
        let levels = [self.window.last(), self.journal.journaled(), self.journal.durable(), self.checkpoint];
        if levels == self.peer.last_ack && !self.peer.ack_owed {
            return;
        }
        let [received, journaled, durable, applied] = levels;
        // A number is only ever journaled after it was received; `received` alone is news at its own level only.
        let news = self.config.ack == AckLevel::Received || levels[1..] != self.peer.last_ack[1..];
        if !news && !self.peer.ack_owed {
            return;
        }
        turn.out.to_link.push(ToLink::Control(Control::Ack {
            received,
            journaled,
            durable,
            applied,
            journal_ns: self.journal_latency_ns,
            journal_free_blocks: u32::try_from(self.journal_room()).unwrap_or(u32::MAX),
            heard: self.lease.heard,
        }));
        self.promise(turn.now);
        self.peer.last_ack = levels;
        self.peer.ack_owed = false;
    }
}

pub(super) fn refusal(code: RefusalCode, text: std::fmt::Arguments) -> Refusal {
    let mut refusal = Refusal { code, text: Default::default() };
    refusal.text.write_fmt(text).expect("a text takes what fits and drops the rest");
    refusal
}
