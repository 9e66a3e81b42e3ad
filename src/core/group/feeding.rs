//! A third site is fed: it pulls what is settled here, out of memory where that still has it, and else from the journal read back. Nobody waits
//! for it. Replies, destage and the journal's reuse go on without it, and once the journal lets go of something that it lacks it has lapsed.
//! Both sites of the synchronous set do this alike, so that either goes on with it when the other is gone (US 7,143,254).

use super::ages::Ages;
use super::allowance::Allowance;
use super::catch_up::{CatchUp, Found, ReadFor};
use super::extending::SHOWS_LESS;
use super::handshake::GREETING_MAX;
use super::inbound::Inbound;
use super::peering::{LINK_SPARE, refusal};
use super::readiness::Resumed;
use super::resync::Step;
use super::split::SplitBrain;
use super::targets::Target;
use super::{Group, Phase, THIRD_PAGES, Turn};
use crate::base::*;
use crate::core::config::{Role, ThirdConfig};
use crate::core::history::common_point;
use crate::core::messages::*;
use crate::core::outbox::{Event, LossReason};
use crate::core::window::Window;
use crate::format::update::Update;
use crate::format::wire::{
    CONTROL_FRAME_BYTES_MAX, FRAME_HEADER_BYTES, Hello, PLAIN_UPDATE_FRAME_BYTES, Refusal, RefusalCode,
    encode_control,
};

/// Pages that a third's link receives hellos into.
pub(super) const LINK_PAGES: usize = 4;

/// Pages of updates that the link has yet to read.
pub(super) const LENT_PAGES_MAX: usize = THIRD_PAGES - BATCH_BLOCKS_MAX - LINK_PAGES;

/// The link of the third.
pub(super) const LINK: usize = 0;

/// Where the conversation with the third stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Talk {
    Absent,
    Greeting {
        since: Nanos,
        hello_sent: bool,
    },
    /// Nothing flows: it pulls from another site, or waits for what this one has not settled yet.
    Standing,
    Feeding,
    /// It was told that the journal does not have what it lacks, which is what is before that.
    Lapsed {
        oldest: UpdateNumber,
    },
    /// It asked for a copy: see `copy_third`.
    Copying,
}

/// What the third said last.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pull {
    pub after: UpdateNumber,
    pub generation: Generation,
    pub upto: UpdateNumber,
}

const NO_PULL: Pull =
    Pull { after: UpdateNumber::NONE, generation: Generation::NONE, upto: UpdateNumber::NONE };

#[derive(Debug)]
pub(super) struct Feed {
    pub connection: Option<u32>,
    pub talk: Talk,
    hello: Option<Box<Hello>>,
    /// As of a peer.
    pub sizes: VolumeSizes,
    pub pull: Pull,
    /// Where it was when it said so last, on whichever connection.
    pub told: Pull,
    /// When it last said where it is, since this site started.
    pub heard: Option<Nanos>,
    /// It was made primary, as of when they met last: what each of both has that the other has not.
    pub promoted: Option<SplitBrain>,
    /// It has everything up to here durably, as far as is known.
    pub position: UpdateNumber,
    /// The journal has let go of what it lacks.
    pub let_go: bool,
    pub next: UpdateNumber,
    pub reader: CatchUp,
    /// Pages in rows that the link has yet to read.
    lent: usize,
    said_at: Nanos,
    heartbeats: u64,
    /// Since when it owes an answer.
    unanswered_since: Option<Nanos>,
    /// When what is settled here got there.
    pub ages: Ages,
    allowance: Option<Allowance>,
    pub resumed: Option<Resumed>,
    /// An operator has heard that it may lapse soon.
    pub warned: bool,
    /// What had been written to the journal when that was looked at last, in blocks.
    pub looked_at: u64,
}

impl Feed {
    /// Whether it was told what this site is.
    pub fn is_greeted(&self) -> bool {
        !matches!(self.talk, Talk::Absent | Talk::Greeting { hello_sent: false, .. })
    }

    pub fn new(config: &ThirdConfig) -> Feed {
        Feed {
            connection: None,
            talk: Talk::Absent,
            hello: None,
            sizes: VolumeSizes::default(),
            pull: NO_PULL,
            told: NO_PULL,
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
            ages: Ages::new(),
            allowance: config.bandwidth_max.map(Allowance::new),
            resumed: None,
            warned: false,
            looked_at: 0,
        }
    }

    /// Until when nothing more may be sent, for all that was sent already.
    pub fn held_back(&self, now: Nanos) -> Option<Nanos> {
        self.allowance.as_ref().and_then(|allowance| allowance.wait_until(now))
    }

    /// Pages in rows that the link has yet to read.
    pub fn lent(&self) -> usize {
        self.lent
    }

    pub fn note_bytes(&mut self, now: Nanos, update: &Update) {
        if let Some(allowance) = &mut self.allowance {
            allowance.take(now, frame_bytes(update));
        }
    }

    fn sent(&mut self, now: Nanos, update: &Update) {
        let bytes = frame_bytes(update);
        self.next = update.number.next();
        self.note_bytes(now, update);
        if let Some(resumed) = self.resumed.as_mut().filter(|resumed| update.number <= resumed.upto) {
            resumed.sent_bytes += bytes as u64;
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

impl Group {
    fn third_config(&self) -> &ThirdConfig {
        self.config.third.as_ref().expect("there is a feed because a third is configured")
    }

    pub(super) fn feed(&self) -> &Feed {
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
                feed.sizes = VolumeSizes::default();
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
            FromLink::Update { update, slot, with_old, .. } => {
                let inbound = Inbound::of_row(&turn.tables.remotes[LINK].inbound, slot, update, with_old);
                self.remote_pages[LINK] -= inbound.granted();
                self.drop_inbound(turn, &inbound);
                self.lose_third(turn, LossReason::Protocol("an update from a third"));
            }
            FromLink::Control(control) => self.on_third(turn, control),
            FromLink::Page { frame, page, length } => {
                self.remote_pages[LINK] -= 1;
                self.on_third_page(turn, frame, page, length);
                self.pages.release(page, turn.memory);
            }
            FromLink::Consumed { slot, .. } => self.feed_row_consumed(turn, slot),
            FromLink::PageReturned { page } => self.pages.release(page, turn.memory),
        }
    }

    pub(super) fn feed_row_consumed(&mut self, turn: &mut Turn<impl Memory>, row: u32) {
        let Group { feed, pages, .. } = self;
        let feed = feed.as_mut().expect("a third is configured");
        let table = &turn.tables.remotes[LINK].catch_up;
        feed.lent -= feed.reader.give_row_back(table, row, pages, turn.memory);
    }

    pub(super) fn give_third(&mut self, turn: &mut Turn<impl Memory>, message: ToLink) {
        self.counters.fed_bytes += match message {
            ToLink::Update { update, .. } => frame_bytes(&update),
            ToLink::Control(control) => encode_control(&control, &mut [0; CONTROL_FRAME_BYTES_MAX]),
            ToLink::Page { length, .. } => FRAME_HEADER_BYTES + usize::from(length),
            ToLink::Begin { .. } | ToLink::Close => 0,
        } as u64;
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
                feed.told = feed.pull;
                (feed.position, feed.heard) = (durable, Some(turn.now));
                if let Talk::Lapsed { oldest } = feed.talk
                    && upto > UpdateNumber::NONE
                    && after.next() >= oldest
                {
                    // It has got on elsewhere since it was told, and is to be told again if that was not far enough. Short of that it
                    // pulled before it heard.
                    feed.talk = Talk::Standing;
                }
                feed.unanswered_since = None;
                if moved {
                    self.note_resumed(turn);
                    self.note_retention();
                }
                self.note_third_installed(turn, durable);
            }
            Control::CopyWanted if greeted => self.on_copy_wanted(turn),
            Control::Staged { updates } if greeted => {
                self.feed_mut().unanswered_since = None;
                self.on_staged(turn, Target::Third, updates);
            }
            Control::BlockWanted { place, sum } if greeted => {
                self.lend_block(turn, Target::Third, place, sum);
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
            PageFrame::Digests => {
                self.feed_mut().unanswered_since = None;
                self.on_digests(turn, Target::Third, page);
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
        self.interrupt_resync(Target::Third);
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
            let feed = self.feed_mut();
            feed.sizes = feed.sizes.joined(hello.sizes());
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
        // A third may show more than who feeds it.
        if !self.shows_as_much(hello) && hello.role == Role::Primary {
            return self.lose_third(turn, LossReason::Protocol(SHOWS_LESS));
        }
        let feed = self.feed_mut();
        feed.sizes = feed.sizes.joined(hello.sizes());
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
        self.forget_heir(hello.site);
        let feed = self.feed_mut();
        feed.talk = Talk::Standing;
        feed.promoted = None;
        // It is told at once what is settled here, and answers with its position.
        feed.said_at = Nanos(0);
    }

    fn refuse_parted(&mut self, turn: &mut Turn<impl Memory>, last: UpdateNumber, generation: Generation) {
        self.feed_mut().told = Pull { after: last, generation, upto: UpdateNumber::NONE };
        let (settled, ours) = (self.settled, self.generation);
        let text = format_args!(
            "the third has what is not in this site's stream: it is at {last} in {generation}, this site has settled {settled} and is in \
             {ours}; the third has to be formatted anew"
        );
        self.refuse_third(turn, refusal(RefusalCode::SplitBrain, text));
    }

    /// The generation of an update; `None` if the history does not reach back so far.
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
            Some(_) if self.is_parted_from(pull) => Verdict::Parted,
            Some(_) if pull.after == self.window.last() || pull.after.next() >= self.oldest_kept() => {
                Verdict::Serve
            }
            _ => Verdict::Gone,
        }
    }

    /// Whether it has what never was in this site's stream, where nothing of that is dropped any more.
    pub(super) fn is_parted_from(&self, pull: &Pull) -> bool {
        pull.after <= self.settled && self.has_otherwise(pull)
    }

    /// Whether this site has another update at its number: a tail that it has to drop yet, if it is not settled.
    pub(super) fn has_otherwise(&self, Pull { after, generation, .. }: &Pull) -> bool {
        *after <= self.window.last() && self.generation_of(*after).is_some_and(|ours| ours != *generation)
    }

    pub(super) fn feed_turn(&mut self, turn: &mut Turn<impl Memory>) {
        if self.feed.is_none() || !matches!(self.phase, Phase::Running) {
            return;
        }
        self.greet_third(turn);
        let settled = self.settled;
        let feed = self.feed_mut();
        feed.ages.note(turn.now, settled, feed.position);
        self.answer_pull(turn);
        self.perhaps_warn_of_lapse(turn);
        match self.feed().talk {
            Talk::Feeding => self.send_settled(turn),
            Talk::Copying => self.copy_turn(turn, Target::Third),
            _ => {}
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
                // A third that does not read what it is told, and goes on asking, waits.
                Verdict::Gone if turn.out.remotes[LINK].to_link.room() <= LINK_SPARE => {}
                Verdict::Gone => self.lapse(turn, self.oldest_kept()),
                Verdict::Serve => {
                    let feed = self.feed_mut();
                    (feed.talk, feed.next, feed.let_go) = (Talk::Feeding, pull.after.next(), false);
                    self.drop_copy_to_third();
                    turn.event(Event::ThirdFed { from: pull.after.next() });
                    self.begin_resumed(turn.now, pull.after);
                }
            },
            _ => {}
        }
    }

    /// The journal begins with `oldest`, and the third lacks what was before that.
    pub(super) fn lapse(&mut self, turn: &mut Turn<impl Memory>, oldest: UpdateNumber) {
        self.read_back_end(turn, ReadFor::Third);
        if self.copies_to(Target::Third) {
            // It is to get these updates behind its copy: it is copied again what they changed.
            return self.move_floor(Target::Third);
        }
        if matches!(self.feed().talk, Talk::Standing | Talk::Feeding) {
            self.feed_mut().talk = Talk::Lapsed { oldest };
            self.give_third(turn, ToLink::Control(Control::Lapsed { oldest }));
        }
        self.let_go_of_third(turn, oldest);
    }

    pub(super) fn let_go_of_third(&mut self, turn: &mut Turn<impl Memory>, oldest: UpdateNumber) {
        let feed = self.feed_mut();
        let (position, known) = (feed.position, feed.heard.is_some());
        // If it goes on after all, it is warned of again.
        feed.warned = false;
        if !std::mem::replace(&mut feed.let_go, true) && known {
            turn.event(Event::ThirdLapsed { position, oldest });
        }
    }

    /// Up to where it may be sent the stream: as far as it asked for, or what is to follow its copy.
    fn feeds_upto(&self) -> UpdateNumber {
        let upto = match (self.feed().talk, self.resyncs[Target::Third].step) {
            (Talk::Feeding, _) => self.feed().pull.upto,
            (Talk::Copying, Step::Tail { upto, .. }) => upto,
            _ => UpdateNumber::NONE,
        };
        self.settled.min(upto)
    }

    /// Gives the link what is settled and asked for, in order.
    pub(super) fn send_settled(&mut self, turn: &mut Turn<impl Memory>) {
        let limit = self.feeds_upto();
        while self.feed().next <= limit {
            let number = self.feed().next;
            let feed = self.feed();
            let room = turn.out.remotes[LINK].to_link.room() > LINK_SPARE && feed.reader.has_row();
            if !room || feed.lent + UPDATE_BLOCKS_MAX > LENT_PAGES_MAX || feed.held_back(turn.now).is_some() {
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
            self.feed_mut().sent(turn.now, &update);
            if self.copies_to(Target::Third) {
                self.resyncs[Target::Third].sent += 1;
            }
        }
        if self.window.contains(self.feed().next) || self.feed().next > self.settled {
            self.read_back_end(turn, ReadFor::Third);
        }
    }

    pub(super) fn take_feed_row(&mut self, blocks: usize) -> u32 {
        let feed = self.feed_mut();
        feed.lent += blocks;
        feed.reader.take_row(blocks).expect("a free row was seen")
    }

    /// Heartbeats, and a third that does not answer them.
    fn tell_third(&mut self, turn: &mut Turn<impl Memory>) {
        let Feed { talk, said_at, unanswered_since, .. } = *self.feed();
        if matches!(talk, Talk::Absent | Talk::Greeting { .. }) {
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
            Talk::Standing | Talk::Feeding | Talk::Lapsed { .. } | Talk::Copying => {
                let silence = feed.unanswered_since.map(|since| since.plus(config.silence_max));
                let beat = feed.said_at.plus(config.heartbeat_interval);
                let copies = feed.talk == Talk::Copying;
                let lacks = copies || feed.next <= self.feeds_upto();
                let allowed = feed.held_back(self.turned_at).filter(|_| lacks);
                let copy = copies.then(|| self.copy_deadline(Target::Third));
                [silence, allowed, copy, Some(beat)].into_iter().flatten().min()
            }
        }
    }

    /// The tail of a journal was cut: a batch that was read before may have held some of it.
    pub(super) fn note_cut_for_third(&mut self, turn: &mut Turn<impl Memory>) {
        if self.feed.is_some() {
            self.read_back_end(turn, ReadFor::Third);
        }
    }
}

/// Bytes of the frame in which a third is sent an update.
fn frame_bytes(update: &Update) -> usize {
    PLAIN_UPDATE_FRAME_BYTES + update.payload_blocks() * BLOCK_BYTES
}
