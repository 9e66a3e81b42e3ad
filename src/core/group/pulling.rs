//! What a third does: it meets the sites of the synchronous set, pulls from one of them what is settled there, and tells the others how far
//! it is. What it takes goes the way of a secondary's updates, and is settled here once it is durable here: its sender had settled it.

use super::ages::Ages;
use super::copier::ResyncName;
use super::extending::SHOWS_LESS;
use super::handshake::GREETING_MAX;
use super::inbound::Inbound;
use super::origins::Origin;
use super::peering::{LINK_SPARE, refusal};
use super::split::SplitBrain;
use super::status::Behind;
use super::{Group, Phase, Turn};
use crate::base::*;
use crate::core::config::{Role, SourceConfig};
use crate::core::messages::*;
use crate::core::outbox::{Event, LossReason, WriteStamps};
use crate::format::update::Update;
use crate::format::wire::{Hello, PROTOCOL_MAX, PROTOCOL_MIN, PROTOCOL_SERVES_THIRDS, Refusal, RefusalCode};

/// A position that moved is told this long after the last one, if nothing else calls for it: the source's journal keeps what is after it.
const POSITION_NEWS_AFTER: Nanos = Nanos::from_millis(10);

/// A site that it pulls from, and that says nothing for this share of the longest silence, is left for one that has more: of ten seconds
/// that is four heartbeats. Waiting for the link to notice would cost the other journal's patience.
const QUIET_SHARE: u64 = 12;

/// A site that it pulls from, and that for this share of the longest silence sends nothing while another one says that it has more, is left for
/// that one, however lively it is: it may wait for its peer, which has taken over. Of ten seconds that is five: what a narrow path holds back is
/// on its way by then.
const OUTDONE_SHARE: u64 = 2;

/// A site that comes earlier in the order of preference is gone back to when it has stood this long and has all that the other one had: one
/// that comes and goes is not followed each time, since every change costs a connection.
const PREFERRED_AFTER: Nanos = Nanos::from_millis(1_000);

/// How this third stands to a site that it may pull from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stand {
    Absent,
    Greeting {
        since: Nanos,
        hello_sent: bool,
    },
    /// It is told where this site is, and sends nothing.
    Standing,
    Pulling,
    /// Its journal begins with `oldest`, and this site lacks what was before that.
    Lapsed {
        oldest: UpdateNumber,
    },
    /// It was asked for a copy, and has not offered one yet.
    Asking,
    /// What it sends is staged.
    Staging,
}

#[derive(Debug)]
pub(super) struct Source {
    pub config: SourceConfig,
    pub connection: Option<u32>,
    pub stand: Stand,
    hello: Option<Box<Hello>>,
    /// As of a peer.
    pub sizes: VolumeSizes,
    /// The version of the protocol that both speak, as of when they met.
    protocol: u16,
    /// Since when it is met, and since when it is known to have let go of what this site lacks.
    pub met_at: Nanos,
    pub lapsed_at: Nanos,
    /// When it was asked for a copy.
    pub asked_at: Nanos,
    /// When something was taken of what it sent.
    pub took_at: Nanos,
    /// What it said is settled, when, and whether that was all that this site had when it said so; and the most that it ever did.
    pub settled: UpdateNumber,
    said_at: Option<Nanos>,
    keeps_up: bool,
    /// Since when another one has had more while nothing came from this one, which is pulled from.
    outdone_since: Option<Nanos>,
    pub newest: UpdateNumber,
    /// What each of both has that the other has not, as of when they met last: this site was made primary in its place.
    parted: Option<SplitBrain>,
    pub inbound: FixedQueue<Inbound>,
    /// What it was told last: how far this site is durable, and what it may send.
    told_durable: UpdateNumber,
    told_upto: UpdateNumber,
    told_at: Nanos,
    /// It asked, or is to begin.
    owed: bool,
    pub heard_at: Nanos,
    /// When it was heard that what is settled there got there.
    ages: Ages,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceState {
    Disconnected,
    Greeting,
    /// It knows where this site is, which pulls from another one.
    Standing,
    Pulling,
    /// Its journal no longer has what this site lacks.
    Lapsed,
    /// It copies to this site what differs, since no journal has what this site lacks.
    Copying,
    /// This site took over from it, and they have met since.
    Superseded,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceStatus {
    pub site: SiteId,
    pub state: SourceState,
    /// The most that it has said is settled, and how long ago it last said anything of that.
    pub settled: UpdateNumber,
    pub said_ns_ago: Option<u64>,
    /// Once this site has taken over from it: what each has that the other has not.
    pub parted: Option<SplitBrain>,
    /// While it copies: blocks of that which are in this site's log.
    pub staged_blocks: u64,
    /// What of that this site does not have durably: as bytes at the mean of what it has pulled since it started, and since when it knows.
    pub behind: Behind,
}

impl Source {
    pub fn new(config: &SourceConfig) -> Source {
        Source {
            config: config.clone(),
            connection: None,
            stand: Stand::Absent,
            hello: None,
            sizes: VolumeSizes::default(),
            protocol: PROTOCOL_MIN,
            met_at: Nanos(0),
            lapsed_at: Nanos(0),
            asked_at: Nanos(0),
            took_at: Nanos(0),
            settled: UpdateNumber::NONE,
            said_at: None,
            keeps_up: false,
            outdone_since: None,
            newest: UpdateNumber::NONE,
            parted: None,
            inbound: FixedQueue::new(2 * LINK_INBOUND_SLOTS),
            told_durable: UpdateNumber::NONE,
            told_upto: UpdateNumber::NONE,
            told_at: Nanos(0),
            owed: false,
            heard_at: Nanos(0),
            ages: Ages::new(),
        }
    }

    /// Whether it can be asked for more than updates.
    pub fn serves(&self) -> bool {
        self.protocol >= PROTOCOL_SERVES_THIRDS
    }

    pub fn room(&self) -> usize {
        self.inbound.room()
    }

    fn says_settled(&mut self, now: Nanos, settled: UpdateNumber) {
        self.settled = self.settled.max(settled);
        self.newest = self.newest.max(settled);
        self.said_at = Some(now);
    }

    /// Whether it was told what this site is.
    pub fn is_greeted(&self) -> bool {
        !matches!(self.stand, Stand::Absent | Stand::Greeting { hello_sent: false, .. })
    }

    fn is_met(&self) -> bool {
        !matches!(self.stand, Stand::Absent | Stand::Greeting { .. })
    }
}

fn outdone_max(config: &SourceConfig) -> Nanos {
    Nanos(config.silence_max.0 / OUTDONE_SHARE)
}

impl Group {
    pub(super) fn on_source(&mut self, turn: &mut Turn<impl Memory>, index: usize, message: FromLink) {
        if let FromLink::Update { .. } | FromLink::Control(_) | FromLink::Page { .. } = message {
            self.sources[index].heard_at = turn.now;
        }
        match message {
            FromLink::Connected { connection } => {
                self.lose_source(turn, index, LossReason::Disconnected);
                let source = &mut self.sources[index];
                source.connection = Some(connection);
                source.stand = Stand::Greeting { since: turn.now, hello_sent: false };
                source.sizes = VolumeSizes::default();
                source.heard_at = turn.now;
                turn.out.remotes[index].to_link.push(ToLink::Begin { connection });
                if self.failed() {
                    turn.out.remotes[index].to_link.push(ToLink::Close);
                }
            }
            FromLink::Disconnected { connection } if self.sources[index].connection == Some(connection) => {
                self.sources[index].connection = None;
                self.lose_source(turn, index, LossReason::Disconnected);
            }
            FromLink::Disconnected { .. } => {}
            FromLink::Update { update, settled, slot, with_old } => {
                self.on_pulled(turn, index, update, settled, slot, with_old);
            }
            FromLink::Control(control) if self.sources[index].is_met() => {
                self.on_source_control(turn, index, control);
            }
            // What was on its way when the connection was given up.
            FromLink::Control(_) => {}
            FromLink::Page { frame, page, length } => {
                self.remote_pages[index] -= 1;
                self.on_source_page(turn, index, frame, page, length);
                self.pages.release(page, turn.memory);
            }
            FromLink::Consumed { .. } => unreachable!("a third sends no updates"),
            FromLink::PageReturned { page } => self.pages.release(page, turn.memory),
        }
    }

    fn on_pulled(
        &mut self,
        turn: &mut Turn<impl Memory>,
        index: usize,
        update: Update,
        settled: UpdateNumber,
        slot: SlotId,
        with_old: bool,
    ) {
        let inbound = Inbound::of_row(&turn.tables.remotes[index].inbound, slot, update, with_old);
        self.remote_pages[index] -= inbound.granted();
        let stand = self.sources[index].stand;
        if !matches!(stand, Stand::Pulling | Stand::Staging) || !matches!(self.phase, Phase::Running) {
            return self.drop_inbound(turn, &inbound);
        }
        if settled < update.number {
            self.drop_inbound(turn, &inbound);
            return self.lose_source(turn, index, LossReason::Protocol("an update that is not settled"));
        }
        let source = &mut self.sources[index];
        source.says_settled(turn.now, settled);
        source.inbound.push(inbound);
    }

    fn on_source_control(&mut self, turn: &mut Turn<impl Memory>, index: usize, control: Control) {
        let position = self.window.last();
        let source = &mut self.sources[index];
        let site = source.config.site;
        match control {
            Control::Heartbeat { settled, .. } => {
                source.says_settled(turn.now, settled);
                source.keeps_up = settled >= position;
                source.owed = true;
            }
            // It answers what was asked before it was asked for a copy.
            Control::Lapsed { .. } if matches!(source.stand, Stand::Asking | Stand::Staging) => {}
            Control::CopyOffer { generation, serial, blocks, whole } => {
                let resync = ResyncName { site, generation, serial };
                self.on_copy_offer(turn, Origin::Source(index), resync, blocks, whole);
            }
            Control::DigestsWanted { extent } if source.stand == Stand::Staging => {
                self.on_digests_wanted(turn, extent);
            }
            Control::Install { upto } => self.on_install(turn, Origin::Source(index), upto),
            Control::Lapsed { oldest } => {
                source.stand = Stand::Lapsed { oldest };
                source.lapsed_at = turn.now;
                self.drop_pulled(turn, index);
                turn.event(Event::SourceLapsed { site, position, oldest });
            }
            Control::BlockLacking { place, why } => {
                self.lender_lacks(turn, Origin::Source(index), place, why);
            }
            _ => self.lose_source(turn, index, LossReason::Protocol("a frame that a source does not send")),
        }
    }

    fn on_source_page(
        &mut self,
        turn: &mut Turn<impl Memory>,
        index: usize,
        frame: PageFrame,
        page: PageId,
        length: u16,
    ) {
        if self.sources[index].stand == Stand::Absent {
            return;
        }
        let body = &turn.memory.bytes(page)[..usize::from(length).min(BLOCK_BYTES)];
        let lost = match frame {
            PageFrame::Hello => match Hello::decode(body) {
                Ok(hello) if matches!(self.sources[index].stand, Stand::Greeting { .. }) => {
                    self.sources[index].hello = Some(Box::new(hello));
                    return self.greet_source(turn, index);
                }
                Ok(hello) if self.sources[index].stand == Stand::Staging => {
                    return self.note_copied_history(&hello);
                }
                Ok(_) => "a second hello",
                Err(_) => "a hello that does not decode",
            },
            PageFrame::Refusal => {
                let refusal = Refusal::decode(body).ok();
                let site = self.sources[index].config.site;
                turn.event(Event::Refused { site, by_us: false, refusal });
                "refused by the source"
            }
            PageFrame::Block => return self.block_lent(turn, page, length),
            _ => "a page that a source does not send",
        };
        self.lose_source(turn, index, LossReason::Protocol(lost));
    }

    fn drop_pulled(&mut self, turn: &mut Turn<impl Memory>, index: usize) {
        while let Some(inbound) = self.sources[index].inbound.pop() {
            self.drop_inbound(turn, &inbound);
        }
    }

    pub(super) fn lose_source(&mut self, turn: &mut Turn<impl Memory>, index: usize, reason: LossReason) {
        let source = &mut self.sources[index];
        let was = std::mem::replace(&mut source.stand, Stand::Absent);
        if was == Stand::Absent {
            return;
        }
        source.hello = None;
        let site = source.config.site;
        if reason != LossReason::Disconnected && source.connection.is_some() {
            turn.out.remotes[index].to_link.push(ToLink::Close);
        }
        self.drop_pulled(turn, index);
        self.forget_lender(turn.now, Origin::Source(index));
        if was == Stand::Staging {
            self.interrupt_staging();
        }
        turn.event(Event::SourceLost { site, reason });
    }

    pub(super) fn refuse_source(&mut self, turn: &mut Turn<impl Memory>, index: usize, objection: Refusal) {
        if let Some(message) = self.page_with(turn, PageFrame::Refusal, |out| objection.encode(out)) {
            turn.out.remotes[index].to_link.push(message);
        }
        let site = self.sources[index].config.site;
        turn.event(Event::Refused { site, by_us: true, refusal: Some(objection) });
        self.lose_source(turn, index, LossReason::Protocol("refused by us"));
    }

    /// Ends all conversations from this side, for good.
    pub(super) fn leave_sources(&mut self, turn: &mut Turn<impl Memory>) {
        for index in 0..self.sources.len() {
            if self.sources[index].stand != Stand::Absent {
                turn.out.remotes[index].to_link.push(ToLink::Close);
                self.lose_source(turn, index, LossReason::Disconnected);
            }
        }
    }

    fn greet_source(&mut self, turn: &mut Turn<impl Memory>, index: usize) {
        let Stand::Greeting { since, hello_sent } = self.sources[index].stand else { return };
        if !matches!(self.phase, Phase::Running) || self.stopping {
            return;
        }
        // Nobody is to hear of a generation that a crash may still undo.
        if !hello_sent && self.role_at <= self.journal.durable() && !self.extending.is_superblock_due() {
            let hello = self.our_hello();
            let source = &mut self.sources[index];
            source.sizes = source.sizes.joined(hello.sizes());
            let message = self.page_with(turn, PageFrame::Hello, |out| hello.encode(out));
            self.sources[index].stand = Stand::Greeting { since, hello_sent: message.is_some() };
            if let Some(message) = message {
                turn.out.remotes[index].to_link.push(message);
            }
        }
        if let Stand::Greeting { hello_sent: true, .. } = self.sources[index].stand
            && let Some(hello) = self.sources[index].hello.take()
        {
            return self.meet_source(turn, index, &hello);
        }
        if turn.now.since(since) >= GREETING_MAX {
            self.lose_source(turn, index, LossReason::Protocol("no hello in time"));
        }
    }

    fn meet_source(&mut self, turn: &mut Turn<impl Memory>, index: usize, hello: &Hello) {
        let site = self.sources[index].config.site;
        let a_third = (hello.role == Role::Third).then(|| {
            let text = format_args!("site {} is a source of this third, and a third itself", site.0);
            refusal(RefusalCode::Role, text)
        });
        let mut objection = self.objection(hello, site).or(a_third);
        if objection.is_none() && !self.shows_as_much(hello) {
            return self.lose_source(turn, index, LossReason::Protocol(SHOWS_LESS));
        }
        if self.role == Role::Primary && objection.is_none() {
            self.sources[index].parted = Some(SplitBrain::of(&self.our_hello(), hello));
            objection = Some(self.meet_former_source(hello));
        }
        if let Some(objection) = objection {
            return self.refuse_source(turn, index, objection);
        }
        let source = &mut self.sources[index];
        source.stand = Stand::Standing;
        source.protocol = hello.protocol_max.min(PROTOCOL_MAX);
        source.sizes = source.sizes.joined(hello.sizes());
        source.met_at = turn.now;
        source.settled = hello.settled;
        source.says_settled(turn.now, hello.settled);
        source.keeps_up = false;
        (source.told_durable, source.told_upto) = (UpdateNumber::NONE, UpdateNumber::NONE);
        source.owed = true;
    }

    pub(super) fn pull_turn(&mut self, turn: &mut Turn<impl Memory>) {
        for index in 0..self.sources.len() {
            self.greet_source(turn, index);
            let source = &self.sources[index];
            // What it says waits behind what this site has no room for yet.
            let silent =
                source.inbound.is_empty() && turn.now.since(source.heard_at) >= source.config.silence_max;
            if source.is_met() && silent {
                self.lose_source(turn, index, LossReason::Protocol("silent for too long"));
            }
        }
        if self.role != Role::Third || self.stopping {
            return;
        }
        let durable = self.journal.durable();
        for source in &mut self.sources {
            source.ages.note(turn.now, source.newest, durable);
        }
        // What is staged comes on top of what this site has now.
        if !self.staging.installing() {
            self.choose_source(turn);
            self.take_pulled(turn);
            self.ask_for_copy(turn);
        }
        for index in 0..self.sources.len() {
            self.tell_source(turn, index);
        }
    }

    /// What each source has settled that is connected, and has told this third so.
    pub(super) fn sources_connected(&self) -> impl Iterator<Item = UpdateNumber> + '_ {
        self.sources.iter().filter(|source| source.is_met()).map(|source| source.settled)
    }

    /// A source that can be asked for a block: rather the one that this site pulls from.
    pub(super) fn source_to_ask(&self, may: impl Fn(usize) -> bool) -> Option<usize> {
        let able = |source: &Source| source.is_met() && source.serves();
        let asks = |index: &usize| able(&self.sources[*index]) && may(*index);
        self.pulled_from().filter(asks).or_else(|| (0..self.sources.len()).find(asks))
    }

    fn pulled_from(&self) -> Option<usize> {
        self.sources.iter().position(|source| source.stand == Stand::Pulling)
    }

    /// Stays with the site that it pulls from, unless that has nothing for it, or is quiet, or sends nothing for long, and another one has
    /// more, or it prefers another one that has as much.
    fn choose_source(&mut self, turn: &mut Turn<impl Memory>) {
        let last = self.window.last();
        for source in &mut self.sources {
            if let Stand::Lapsed { oldest } = source.stand
                && last.next() >= oldest
            {
                source.stand = Stand::Standing;
            }
        }
        let standing = |source: &Source| source.stand == Stand::Standing;
        if let Some(index) = self.pulled_from() {
            let better = self.sources.iter().any(|source| standing(source) && source.settled > last);
            let Source { settled, heard_at, inbound, config, outdone_since, .. } = &mut self.sources[index];
            *outdone_since = outdone_since.or(Some(turn.now)).filter(|_| better && inbound.is_empty());
            let outdone = outdone_since.is_some_and(|since| turn.now.since(since) >= outdone_max(config));
            let quiet_max = Nanos(config.silence_max.0 / QUIET_SHARE);
            let quiet = inbound.is_empty() && turn.now.since(*heard_at) >= quiet_max;
            let idle = *settled < last || quiet || outdone;
            let preferred = self.sources[..index].iter().any(|source| {
                standing(source) && source.keeps_up && turn.now.since(source.met_at) >= PREFERRED_AFTER
            });
            let why = match better && idle {
                true => "another source has more",
                false if preferred => "another source is preferred",
                false => return,
            };
            // It may have sent something already; what it sends after its next hello is sure to be of the next pull.
            self.lose_source(turn, index, LossReason::Protocol(why));
        }
        let able = |source: &Source| standing(source) && source.settled >= last;
        let next = self.sources.iter().position(able).or_else(|| self.sources.iter().position(standing));
        if let Some(index) = next {
            let source = &mut self.sources[index];
            source.stand = Stand::Pulling;
            source.outdone_since = None;
            source.owed = true;
            let site = source.config.site;
            turn.event(Event::SourceFollowed { site, from: last.next() });
        }
    }

    /// Takes what was pulled into the stream while there is room.
    fn take_pulled(&mut self, turn: &mut Turn<impl Memory>) {
        let Some(index) = self.pulled_from() else { return };
        while let Some(inbound) = self.sources[index].inbound.front() {
            let update = inbound.update;
            let (page, with_old) = (inbound.pages[0].0, inbound.old.is_some());
            match self.may_take(turn, &update, page, with_old) {
                Ok(true) => {}
                Ok(false) => return,
                Err(why) => return self.lose_source(turn, index, LossReason::Protocol(why)),
            }
            self.give_up_staging(turn);
            let source = &mut self.sources[index];
            (source.heard_at, source.took_at, source.outdone_since) = (turn.now, turn.now, None);
            let inbound = source.inbound.pop().expect("looked at it");
            self.follow_slots(&update);
            let stamps = WriteStamps { numbered_at: turn.now, ..WriteStamps::default() };
            self.append(turn, update, None, stamps, |index| inbound.pages[index], None);
            self.counters.pulled_updates += 1;
            self.counters.pulled_blocks += update.payload_blocks() as u64;
        }
    }

    /// Tells where this site is, and asks for more once half of what it asked for is here.
    fn tell_source(&mut self, turn: &mut Turn<impl Memory>, index: usize) {
        let (after, durable) = (self.window.last(), self.journal.durable());
        let generation = self.generation;
        let source = &mut self.sources[index];
        if !source.is_met() || turn.out.remotes[index].to_link.room() <= LINK_SPARE {
            return;
        }
        let pulls = source.stand == Stand::Pulling;
        let short = pulls && after.0 + PULL_AHEAD / 2 >= source.told_upto.0;
        let news = durable > source.told_durable && turn.now.since(source.told_at) >= POSITION_NEWS_AFTER;
        if !(source.owed || short || news) {
            return;
        }
        let upto = if pulls { UpdateNumber(after.0 + PULL_AHEAD) } else { UpdateNumber::NONE };
        (source.told_durable, source.told_upto, source.told_at) = (durable, upto, turn.now);
        source.owed = false;
        let pull = Control::Pull { after, generation, durable, upto };
        turn.out.remotes[index].to_link.push(ToLink::Control(pull));
    }

    pub(super) fn pull_deadline(&self) -> Option<Nanos> {
        let durable = self.journal.durable();
        let deadline = |source: &Source| match source.stand {
            Stand::Absent => None,
            Stand::Greeting { since, .. } => Some(since.plus(GREETING_MAX)),
            Stand::Standing | Stand::Pulling | Stand::Lapsed { .. } | Stand::Asking | Stand::Staging => {
                let heard = if source.inbound.is_empty() { source.heard_at } else { Nanos(u64::MAX / 2) };
                let silence = heard.plus(source.config.silence_max);
                let outdone = source.outdone_since.map(|since| since.plus(outdone_max(&source.config)));
                // Once that is over it was acted upon, unless this site installs a copy.
                let outdone = outdone.filter(|outdone| *outdone > self.turned_at);
                let silence = outdone.map_or(silence, |outdone| outdone.min(silence));
                let news = source.told_at.plus(POSITION_NEWS_AFTER);
                Some(if durable > source.told_durable { silence.min(news) } else { silence })
            }
        };
        self.sources.iter().filter_map(deadline).chain(self.ask_deadline()).min()
    }

    pub(super) fn source_status(&self, now: Nanos) -> [Option<SourceStatus>; SOURCES_MAX] {
        let durable = self.journal.durable();
        let pulled = self.counters.pulled_updates.max(1);
        let mut status = [None; SOURCES_MAX];
        for (place, source) in status.iter_mut().zip(&self.sources) {
            let state = match source.stand {
                Stand::Absent | Stand::Greeting { .. } if source.parted.is_some() => SourceState::Superseded,
                Stand::Absent => SourceState::Disconnected,
                Stand::Greeting { .. } => SourceState::Greeting,
                Stand::Standing => SourceState::Standing,
                Stand::Pulling => SourceState::Pulling,
                Stand::Lapsed { .. } => SourceState::Lapsed,
                Stand::Asking | Stand::Staging => SourceState::Copying,
            };
            let staged_blocks = if source.stand == Stand::Staging { self.staging.blocks } else { 0 };
            let Source { newest, ages, config, said_at, parted, .. } = source;
            let updates = newest.0.saturating_sub(durable.0);
            let blocks = u128::from(updates) * u128::from(self.counters.pulled_blocks) / u128::from(pulled);
            let bytes = blocks as u64 * BLOCK_BYTES as u64;
            *place = Some(SourceStatus {
                site: config.site,
                state,
                settled: *newest,
                staged_blocks,
                said_ns_ago: said_at.map(|at| now.since(at).0),
                behind: Behind { updates, bytes, age: ages.beyond(now, durable) },
                parted: *parted,
            });
        }
        status
    }
}
