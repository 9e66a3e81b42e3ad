//! A third site is fed: it pulls what is settled here, out of memory where that still has it, and else from the journal read back. Nobody waits
//! for it. Replies, destage and the journal's reuse go on without it, and once the journal lets go of something that it lacks it has lapsed.
//! Both sites of the synchronous set do this alike, so that either goes on with it when the other is gone (US 7,143,254).

use super::catch_up::{CatchUp, Found, ReadFor};
use super::handshake::GREETING_MAX;
use super::peering::{LINK_SPARE, refusal};
use super::split::SplitBrain;
use super::{Group, Phase, THIRD_PAGES, Turn};
use crate::base::*;
use crate::core::config::{Role, ThirdConfig};
use crate::core::history::common_point;
use crate::core::journal::Journal;
use crate::core::messages::*;
use crate::core::outbox::{Event, LossReason};
use crate::core::window::Window;
use crate::format::wire::{Hello, Refusal, RefusalCode};

/// Pages that a third's link receives hellos into.
pub(super) const LINK_PAGES: usize = 4;

/// Pages of updates that the link has yet to read.
const LENT_PAGES_MAX: usize = THIRD_PAGES - BATCH_BLOCKS_MAX - LINK_PAGES;

/// The journal keeps what a third lacks up to this share of its ring, in percent: sweeps begin when half of it is in use, and a third that
/// is behind is to hurry none (US 7,143,254's third computer never delays the first).
const KEPT_PERCENT: u64 = 50;

/// The link of the third.
pub(super) const LINK: usize = 0;

/// Where the conversation with the third stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Talk {
    Absent,
    Greeting {
        since: Nanos,
        hello_sent: bool,
    },
    /// Nothing flows: it pulls from another site, or waits for what this one has not settled yet.
    Standing,
    Feeding,
    /// It was told that the journal does not have what it lacks.
    Lapsed,
}

/// What the third said last.
#[derive(Clone, Copy, Debug)]
struct Pull {
    after: UpdateNumber,
    generation: Generation,
    upto: UpdateNumber,
}

const NO_PULL: Pull =
    Pull { after: UpdateNumber::NONE, generation: Generation::NONE, upto: UpdateNumber::NONE };

#[derive(Debug)]
pub(super) struct Feed {
    pub connection: Option<u32>,
    talk: Talk,
    hello: Option<Box<Hello>>,
    pull: Pull,
    /// When it last said where it is, since this site started.
    heard: Option<Nanos>,
    /// It was made primary, as of when they met last: what each of both has that the other has not.
    pub promoted: Option<SplitBrain>,
    /// It has everything up to here durably, as far as is known.
    position: UpdateNumber,
    /// The journal has let go of what it lacks.
    let_go: bool,
    next: UpdateNumber,
    pub reader: CatchUp,
    /// Pages in rows that the link has yet to read.
    lent: usize,
    said_at: Nanos,
    heartbeats: u64,
    /// Since when it owes an answer.
    unanswered_since: Option<Nanos>,
}

impl Feed {
    pub fn new() -> Feed {
        Feed {
            connection: None,
            talk: Talk::Absent,
            hello: None,
            pull: NO_PULL,
            heard: None,
            promoted: None,
            position: UpdateNumber::NONE,
            let_go: false,
            next: UpdateNumber(1),
            reader: CatchUp::new(),
            lent: 0,
            said_at: Nanos(0),
            heartbeats: 0,
            unanswered_since: None,
        }
    }
}

/// What can be said of a third that wants what follows its position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Serve,
    /// This site does not know yet that all the third has is settled.
    Wait,
    Gone,
    Parted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThirdState {
    Disconnected,
    Greeting,
    /// It pulls from another site.
    Standing,
    Feeding,
    /// The journal no longer has what it lacks.
    Lapsed,
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
    /// It has what this site does not have, or does not know to be settled.
    Ahead,
    /// It has what never was in this site's stream.
    Parted,
    /// This site gives way to its peer, and feeds nobody until that is over.
    GivesWay,
    /// It was made primary.
    Promoted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThirdStatus {
    pub state: ThirdState,
    /// It has everything up to here durably, as far as is known.
    pub position: UpdateNumber,
    /// How long ago it last said so.
    pub said_ns_ago: Option<u64>,
    pub delta: Delta,
    /// Once it was made primary: what each of both has that the other has not.
    pub promoted: Option<SplitBrain>,
}

impl Group {
    fn third_config(&self) -> &ThirdConfig {
        self.config.third.as_ref().expect("there is a feed because a third is configured")
    }

    fn feed(&self) -> &Feed {
        self.feed.as_ref().expect("a third is configured")
    }

    pub(super) fn feed_mut(&mut self) -> &mut Feed {
        self.feed.as_mut().expect("a third is configured")
    }

    /// Until the third says where it is, the journal keeps what it still has.
    pub(super) fn begin_feeding(&mut self, last: UpdateNumber) {
        let oldest = self.journal.oldest();
        if let Some(feed) = &mut self.feed {
            feed.position = oldest.map_or(last, UpdateNumber::previous);
        }
    }

    pub(super) fn on_feed(&mut self, turn: &mut Turn<impl Memory>, message: FromLink) {
        match message {
            FromLink::Connected { connection } => {
                self.lose_third(turn, LossReason::Disconnected);
                let feed = self.feed_mut();
                feed.connection = Some(connection);
                feed.talk = Talk::Greeting { since: turn.now, hello_sent: false };
                self.give_third(turn, ToLink::Begin { connection });
                if self.failed() {
                    self.give_third(turn, ToLink::Close);
                }
            }
            FromLink::Disconnected { connection } if self.feed().connection == Some(connection) => {
                self.feed_mut().connection = None;
                self.lose_third(turn, LossReason::Disconnected);
            }
            FromLink::Disconnected { .. } => {}
            FromLink::Update { update, slot, .. } => {
                let table = &turn.tables.remotes[LINK].inbound;
                for index in 0..update.payload_blocks() {
                    self.pages.release(table.page(slot, index), turn.memory);
                }
                self.remote_pages[LINK] -= update.payload_blocks();
                self.lose_third(turn, LossReason::Protocol("an update from a third"));
            }
            FromLink::Control(control) => self.on_third(turn, control),
            FromLink::Page { frame, page, length } => {
                self.remote_pages[LINK] -= 1;
                self.on_third_page(turn, frame, page, length);
                self.pages.release(page, turn.memory);
            }
            FromLink::Consumed { slot, .. } => {
                let Group { feed, pages, .. } = self;
                let feed = feed.as_mut().expect("a third is configured");
                let table = &turn.tables.remotes[LINK].catch_up;
                feed.lent -= feed.reader.give_row_back(table, slot, pages, turn.memory);
            }
            FromLink::PageReturned { page } => self.pages.release(page, turn.memory),
        }
    }

    fn give_third(&mut self, turn: &mut Turn<impl Memory>, message: ToLink) {
        turn.out.remotes[LINK].to_link.push(message);
    }

    fn on_third(&mut self, turn: &mut Turn<impl Memory>, control: Control) {
        if matches!(self.feed().talk, Talk::Absent) || !matches!(self.phase, Phase::Running) {
            return;
        }
        let greeted = !matches!(self.feed().talk, Talk::Greeting { .. });
        match control {
            Control::Pull { after, generation, durable, upto } if greeted && durable <= after => {
                let feed = self.feed_mut();
                let moved = durable > feed.position;
                feed.pull = Pull { after, generation, upto };
                (feed.position, feed.heard) = (durable, Some(turn.now));
                if feed.talk == Talk::Lapsed && upto > UpdateNumber::NONE {
                    // It has got on elsewhere since it was told, and is to be told again if that was not far enough.
                    feed.talk = Talk::Standing;
                }
                feed.unanswered_since = None;
                if moved {
                    self.note_retention();
                }
            }
            _ => self.lose_third(turn, LossReason::Protocol("a frame that a third does not send")),
        }
    }

    fn on_third_page(&mut self, turn: &mut Turn<impl Memory>, frame: PageFrame, page: PageId, length: u16) {
        if self.feed().talk == Talk::Absent {
            return;
        }
        let body = &turn.memory.bytes(page)[..usize::from(length).min(BLOCK_BYTES)];
        match frame {
            PageFrame::Hello => match Hello::decode(body) {
                Ok(hello) if matches!(self.feed().talk, Talk::Greeting { .. }) => {
                    self.feed_mut().hello = Some(Box::new(hello));
                    // At once: what it pulls may be right behind it.
                    self.greet_third(turn);
                }
                Ok(_) => self.lose_third(turn, LossReason::Protocol("a second hello")),
                Err(_) => self.lose_third(turn, LossReason::Protocol("a hello that does not decode")),
            },
            PageFrame::Refusal => {
                let refusal = Refusal::decode(body).ok();
                let site = self.third_config().site;
                turn.event(Event::Refused { site, by_us: false, refusal });
                self.lose_third(turn, LossReason::Protocol("refused by the third"));
            }
            _ => self.lose_third(turn, LossReason::Protocol("a page that a third does not send")),
        }
    }

    pub(super) fn lose_third(&mut self, turn: &mut Turn<impl Memory>, reason: LossReason) {
        let feed = self.feed_mut();
        if std::mem::replace(&mut feed.talk, Talk::Absent) == Talk::Absent {
            return;
        }
        feed.hello = None;
        feed.pull = NO_PULL;
        feed.unanswered_since = None;
        if reason != LossReason::Disconnected && feed.connection.is_some() {
            self.give_third(turn, ToLink::Close);
        }
        self.read_back_end(turn, ReadFor::Third);
        turn.event(Event::ThirdLost { reason });
    }

    pub(super) fn refuse_third(&mut self, turn: &mut Turn<impl Memory>, refusal: Refusal) {
        if let Some(message) = self.page_with(turn, PageFrame::Refusal, |out| refusal.encode(out)) {
            self.give_third(turn, message);
        }
        let site = self.third_config().site;
        turn.event(Event::Refused { site, by_us: true, refusal: Some(refusal) });
        self.lose_third(turn, LossReason::Protocol("refused by us"));
    }

    fn greet_third(&mut self, turn: &mut Turn<impl Memory>) {
        let Talk::Greeting { since, hello_sent } = self.feed().talk else { return };
        if !matches!(self.phase, Phase::Running) {
            return;
        }
        if !hello_sent {
            let hello = self.our_hello();
            let message = self.page_with(turn, PageFrame::Hello, |out| hello.encode(out));
            self.feed_mut().talk = Talk::Greeting { since, hello_sent: message.is_some() };
            if let Some(message) = message {
                self.give_third(turn, message);
            }
        }
        if let Talk::Greeting { hello_sent: true, .. } = self.feed().talk
            && let Some(hello) = self.feed_mut().hello.take()
        {
            return self.meet_third(turn, &hello);
        }
        if turn.now.since(since) >= GREETING_MAX {
            self.lose_third(turn, LossReason::Protocol("no hello in time"));
        }
    }

    fn meet_third(&mut self, turn: &mut Turn<impl Memory>, hello: &Hello) {
        if let Some(objection) = self.objection(hello, self.third_config().site) {
            return self.refuse_third(turn, objection);
        }
        if hello.role == Role::Primary {
            return self.meet_promoted(turn, hello);
        }
        if hello.role != Role::Third {
            let text = format_args!("site {} is this site's third, and not a third there", hello.site.0);
            return self.refuse_third(turn, refusal(RefusalCode::Role, text));
        }
        // Nothing that is settled is ever dropped, here or there, so this never mends itself.
        let common = common_point(&self.history, self.window.last(), &hello.history, hello.last);
        if hello.last > common && common < self.settled {
            return self.refuse_parted(turn, hello.last, hello.last_generation);
        }
        let feed = self.feed_mut();
        feed.talk = Talk::Standing;
        feed.promoted = None;
        // It is told at once what is settled here, and answers with its position.
        feed.said_at = Nanos(0);
    }

    fn refuse_parted(&mut self, turn: &mut Turn<impl Memory>, last: UpdateNumber, generation: Generation) {
        let (settled, ours) = (self.settled, self.generation);
        let text = format_args!(
            "the third has what is not in this site's stream: it is at {last} in {generation}, this site has settled {settled} and is in \
             {ours}; the third has to be formatted anew"
        );
        self.refuse_third(turn, refusal(RefusalCode::SplitBrain, text));
    }

    /// The generation of a settled update; `None` if the history does not reach back so far.
    fn generation_of(&self, number: UpdateNumber) -> Option<Generation> {
        let newest = self.history.iter().rev().find(|(_, first)| *first <= number);
        match newest {
            Some((generation, _)) => Some(generation),
            None => (number == UpdateNumber::NONE).then_some(Generation::NONE),
        }
    }

    /// Positions are compared by generation and number (INV-7), and only where nothing is dropped any more.
    fn judge_pull(&self, pull: &Pull) -> Verdict {
        if pull.after > self.settled || self.has_given_way() {
            return Verdict::Wait;
        }
        match self.generation_of(pull.after) {
            Some(generation) if generation != pull.generation => Verdict::Parted,
            Some(_) if pull.after == self.window.last() || pull.after.next() >= self.oldest_kept() => {
                Verdict::Serve
            }
            _ => Verdict::Gone,
        }
    }

    pub(super) fn feed_turn(&mut self, turn: &mut Turn<impl Memory>) {
        if self.feed.is_none() || !matches!(self.phase, Phase::Running) {
            return;
        }
        self.greet_third(turn);
        self.answer_pull(turn);
        if self.feed().talk == Talk::Feeding {
            self.send_settled(turn);
        }
        self.tell_third(turn);
    }

    fn answer_pull(&mut self, turn: &mut Turn<impl Memory>) {
        let Feed { talk, pull, .. } = *self.feed();
        let wants = pull.upto > UpdateNumber::NONE;
        match talk {
            Talk::Feeding if !wants => {
                self.read_back_end(turn, ReadFor::Third);
                self.feed_mut().talk = Talk::Standing;
            }
            Talk::Standing if wants => match self.judge_pull(&pull) {
                Verdict::Wait => {}
                Verdict::Parted => self.refuse_parted(turn, pull.after, pull.generation),
                Verdict::Gone => self.lapse(turn, self.oldest_kept()),
                Verdict::Serve => {
                    let feed = self.feed_mut();
                    (feed.talk, feed.next, feed.let_go) = (Talk::Feeding, pull.after.next(), false);
                    turn.event(Event::ThirdFed { from: pull.after.next() });
                }
            },
            _ => {}
        }
    }

    /// The journal begins with `oldest`, and the third lacks what was before that.
    pub(super) fn lapse(&mut self, turn: &mut Turn<impl Memory>, oldest: UpdateNumber) {
        self.read_back_end(turn, ReadFor::Third);
        if matches!(self.feed().talk, Talk::Standing | Talk::Feeding) {
            self.feed_mut().talk = Talk::Lapsed;
            self.give_third(turn, ToLink::Control(Control::Lapsed { oldest }));
        }
        self.let_go_of_third(turn, oldest);
    }

    fn let_go_of_third(&mut self, turn: &mut Turn<impl Memory>, oldest: UpdateNumber) {
        let feed = self.feed_mut();
        let (position, known) = (feed.position, feed.heard.is_some());
        if !std::mem::replace(&mut feed.let_go, true) && known {
            turn.event(Event::ThirdLapsed { position, oldest });
        }
    }

    /// Gives the link what is settled and asked for, in order.
    fn send_settled(&mut self, turn: &mut Turn<impl Memory>) {
        let limit = self.settled.min(self.feed().pull.upto);
        while self.feed().next <= limit {
            let number = self.feed().next;
            let feed = self.feed();
            let room = turn.out.remotes[LINK].to_link.room() > LINK_SPARE && feed.reader.has_row();
            if !room || feed.lent + UPDATE_BLOCKS_MAX > LENT_PAGES_MAX {
                return;
            }
            let (update, row) = if self.window.contains(number) {
                let update = self.window.get(number).update;
                let row = self.take_feed_row(update.payload_blocks());
                for index in 0..update.payload_blocks() {
                    let (page, sum) = Window::block(&turn.tables.window, &update, index);
                    self.pages.share(page);
                    turn.tables.remotes[LINK].catch_up.set(SlotId(row), index, page, sum);
                }
                (update, row)
            } else {
                let (update, slot, page) = match self.read_back(turn, ReadFor::Third, number) {
                    Found::Update { update, slot, page } => (update, slot, page),
                    Found::Later => return,
                    Found::Gone => return self.lapse(turn, self.oldest_kept()),
                };
                let row = self.take_feed_row(update.payload_blocks());
                self.give_read_back(turn, ReadFor::Third, (&update, slot, page), row);
                self.counters.fed_from_journal += 1;
                (update, row)
            };
            assert!(update.number <= self.settled, "INV-4: {} is not settled", update.number);
            let (settled, source) = (self.settled, UpdateSource::CatchUp);
            self.give_third(turn, ToLink::Update { update, settled, slot: row, source, with_old: false });
            self.counters.fed_updates += 1;
            self.feed_mut().next = number.next();
        }
        if self.window.contains(self.feed().next) || self.feed().next > self.settled {
            self.read_back_end(turn, ReadFor::Third);
        }
    }

    fn take_feed_row(&mut self, blocks: usize) -> u32 {
        let feed = self.feed_mut();
        feed.lent += blocks;
        feed.reader.take_row(blocks).expect("a free row was seen")
    }

    /// Heartbeats, and a third that does not answer them.
    fn tell_third(&mut self, turn: &mut Turn<impl Memory>) {
        let Feed { talk, said_at, unanswered_since, .. } = *self.feed();
        if !matches!(talk, Talk::Standing | Talk::Feeding | Talk::Lapsed) {
            return;
        }
        let ThirdConfig { heartbeat_interval, silence_max, .. } = *self.third_config();
        if unanswered_since.is_some_and(|since| turn.now.since(since) >= silence_max) {
            return self.lose_third(turn, LossReason::Protocol("no answer in time"));
        }
        let due = said_at == Nanos(0) || turn.now.since(said_at) >= heartbeat_interval;
        if !due || turn.out.remotes[LINK].to_link.room() <= LINK_SPARE {
            return;
        }
        let settled = self.settled;
        let feed = self.feed_mut();
        feed.heartbeats += 1;
        feed.said_at = turn.now;
        feed.unanswered_since.get_or_insert(turn.now);
        let sequence = feed.heartbeats;
        self.give_third(turn, ToLink::Control(Control::Heartbeat { settled, sequence }));
    }

    pub(super) fn feed_deadline(&self) -> Option<Nanos> {
        let feed = self.feed.as_ref()?;
        let config = self.third_config();
        match feed.talk {
            Talk::Absent => None,
            Talk::Greeting { since, .. } => Some(since.plus(GREETING_MAX)),
            Talk::Standing | Talk::Feeding | Talk::Lapsed => {
                let silence = feed.unanswered_since.map(|since| since.plus(config.silence_max));
                let beat = feed.said_at.plus(config.heartbeat_interval);
                Some(silence.map_or(beat, |silence| silence.min(beat)))
            }
        }
    }

    /// The tail of a journal was cut: a batch that was read before may have held some of it.
    pub(super) fn note_cut_for_third(&mut self, turn: &mut Turn<impl Memory>) {
        if self.feed.is_some() {
            self.read_back_end(turn, ReadFor::Third);
        }
    }

    /// The journal's tail may go up to `floor` for all others; it stays at the third's position as long as nobody has to wait for that.
    pub(super) fn held_for_third(
        &mut self,
        turn: &mut Turn<impl Memory>,
        floor: UpdateNumber,
    ) -> UpdateNumber {
        let Some(feed) = &self.feed else { return floor };
        let position = feed.position;
        if position >= floor || position.next() < self.oldest_kept() {
            return floor;
        }
        if self.may_keep_after(position) {
            return position;
        }
        self.let_go_of_third(turn, floor.next());
        floor
    }

    /// Whether what is after `position` is little enough to be kept for somebody whom nobody waits for.
    pub(super) fn may_keep_after(&self, position: UpdateNumber) -> bool {
        let usable = Journal::usable_blocks(self.journal.ring_blocks());
        self.journal.used_after(position) * 100 <= usable * KEPT_PERCENT
    }

    fn third_delta(&self, feed: &Feed) -> Delta {
        // What it has taken but not made durable it may lose, and is told by it only while it is connected.
        let known = Pull { after: feed.pull.after.max(feed.position), ..feed.pull };
        if feed.promoted.is_some() {
            return Delta::No(NoDelta::Promoted);
        }
        if feed.heard.is_none() {
            return Delta::No(NoDelta::Unheard);
        }
        if self.has_given_way() {
            return Delta::No(NoDelta::GivesWay);
        }
        let parted = feed.connection.is_some() && self.judge_pull(&known) == Verdict::Parted;
        match known.after {
            _ if parted => Delta::No(NoDelta::Parted),
            after if after > self.window.last() => Delta::No(NoDelta::Ahead),
            after if after < self.window.last() && after.next() < self.oldest_kept() => {
                Delta::No(NoDelta::Lapsed)
            }
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
            Talk::Lapsed => ThirdState::Lapsed,
        };
        Some(ThirdStatus {
            state,
            position: feed.position,
            said_ns_ago: feed.heard.map(|at| now.since(at).0),
            delta: self.third_delta(feed),
            promoted: feed.promoted,
        })
    }
}
