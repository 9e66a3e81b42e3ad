//! Meeting the peer: hellos, what is refused, where the two streams part, and what each side must do before updates flow.

use super::old_blocks::update_pages;
use super::peering::{Talk, refusal};
use super::{Alone, Group, Phase, RESERVED_PAGES, Turn, third_pages};
use crate::base::*;
use crate::core::config::Role;
use crate::core::history::common_point;
use crate::core::messages::*;
use crate::core::outbox::{Event, LossReason};
use crate::format::update::{Update, UpdateKind};
use crate::format::wire::{Hello, HelloVolume, PROTOCOL_MAX, PROTOCOL_MIN, Refusal, RefusalCode, VolumeName};

/// A peer that connects but does not greet is dropped after this.
pub(super) const GREETING_MAX: Nanos = Nanos::from_millis(3_000);

impl Group {
    pub(super) fn send_page(
        &mut self,
        turn: &mut Turn<impl Memory>,
        frame: PageFrame,
        encode: impl FnOnce(&mut [u8; BLOCK_BYTES]) -> usize,
    ) -> bool {
        let message = self.page_with(turn, frame, encode);
        message.map(|message| turn.out.to_link.push(message)).is_some()
    }

    /// A message with a page of its own; none without a free page.
    pub(super) fn page_with(
        &mut self,
        turn: &mut Turn<impl Memory>,
        frame: PageFrame,
        encode: impl FnOnce(&mut [u8; BLOCK_BYTES]) -> usize,
    ) -> Option<ToLink> {
        let page = self.pages.take()?;
        let length = encode(turn.memory.bytes_mut(page)) as u16;
        turn.memory.seal(page);
        Some(ToLink::Page { frame, page, length })
    }

    /// Payload blocks of unsettled updates that leave pages for every receiver's pool and the update being received.
    fn window_blocks(&self) -> u64 {
        let receivers = self.config.receivers();
        let taken = RESERVED_PAGES
            + third_pages(&self.config)
            + receivers * self.staging_target
            + update_pages(&self.config);
        self.pages.total().saturating_sub(taken) as u64
    }

    /// Whether a secondary may hold `update` beside what is not settled. A restart brings all of that back at once, before any
    /// peer can say that it is settled, and beside it replay and the peer's hello need pages (INV-12). A primary that knows
    /// nothing newer to be settled sends no more; one whose peer catches up does, and then a flush here settles it.
    pub(super) fn may_hold(&mut self, update: &Update) -> bool {
        let held = self.window.blocks_between(self.settled, self.window.last());
        let fits = held == 0 || held + update.held_blocks() as u64 <= self.window_blocks();
        if self.role == Role::Primary || fits {
            return true;
        }
        self.peer.flush_requested = self.peer.flush_requested.max(self.window.last());
        false
    }

    pub(super) fn our_hello(&self) -> Hello {
        let mut volumes = [HelloVolume::default(); VOLUMES_MAX];
        for (place, volume) in volumes.iter_mut().zip(&self.config.volumes) {
            *place = HelloVolume { name: VolumeName::new(&volume.name), blocks: volume.blocks, room: 0 };
        }
        for (place, size) in volumes.iter_mut().zip(self.extending.in_force().iter()) {
            place.room = place.blocks - size;
        }
        let (alone, suspends, read_lease) = self.lease_terms();
        Hello {
            protocol_min: PROTOCOL_MIN,
            protocol_max: PROTOCOL_MAX,
            group: self.config.group,
            site: self.config.site,
            role: self.role,
            ack: self.config.ack,
            block_bytes: BLOCK_BYTES as u32,
            volumes,
            volume_count: self.config.volumes.len(),
            history: self.history,
            last: self.window.last(),
            last_generation: self.generation,
            durable: self.journal.durable(),
            settled: self.settled,
            checkpoint: self.checkpoint,
            journal_free_blocks: self.journal_room(),
            window_blocks: self.window_blocks(),
            differential_blocks: self.config.differential_blocks,
            alone_upto: self.alone_upto(),
            marks_after: self.marks_after(),
            gives_way_to: self.gives_way_to(),
            differential: self.config.differential,
            solo: self.alone == Alone::Yes,
            serving: self.serving,
            alone,
            suspends,
            read_lease,
        }
    }

    pub(super) fn refuse(&mut self, turn: &mut Turn<impl Memory>, refusal: Refusal) {
        self.send_page(turn, PageFrame::Refusal, |out| refusal.encode(out));
        let site = self.peer_config().site;
        turn.event(Event::Refused { site, by_us: true, refusal: Some(refusal) });
        self.lose_peer(turn, LossReason::Protocol("refused by us"));
    }

    pub(super) fn greet(&mut self, turn: &mut Turn<impl Memory>) {
        let Talk::Greeting { since, hello_sent } = self.peer.talk else { return };
        if !matches!(self.phase, Phase::Running) || (self.stopping && self.role == Role::Secondary) {
            return;
        }
        // What the link still reads belongs to the last connection's stream; numbers begin anew only after it.
        // And nobody is to step down for what a crash may still undo.
        let opened = self.history.last().map_or(UpdateNumber::NONE, |(_, first)| first);
        let quiet = self.peer.consumed >= self.peer.sent
            && self.catch_up.idle()
            && self.peer.inbound.is_empty()
            && self.role_at <= self.journal.durable()
            && (self.role != Role::Primary || opened <= self.journal.durable())
            && (self.role == Role::Primary || !self.extending.is_superblock_due());
        if !hello_sent && quiet {
            let hello = self.our_hello();
            self.peer.sizes = self.peer.sizes.joined(hello.sizes());
            let sent = self.send_page(turn, PageFrame::Hello, |out| hello.encode(out));
            self.peer.talk = Talk::Greeting { since, hello_sent: sent };
            self.peer.said_hello = sent.then(|| Box::new(hello));
            // Whoever hears it may be served by that, as the primary that this site knew or as another.
            self.lease.forget_terms();
        }
        if let Talk::Greeting { hello_sent: true, .. } = self.peer.talk
            && let Some(hello) = self.peer.hello.take()
        {
            return self.on_hello(turn, &hello);
        }
        if turn.now.since(since) >= self.greeting_max() {
            self.lose_peer(turn, LossReason::Protocol("no hello in time"));
        }
    }

    fn on_hello(&mut self, turn: &mut Turn<impl Memory>, hello: &Hello) {
        if let Some(objection) = self.objection_to_peer(hello) {
            return self.refuse(turn, objection);
        }
        self.peer.protocol = hello.protocol_max.min(PROTOCOL_MAX);
        self.peer.sizes = self.peer.sizes.joined(hello.sizes());
        self.meet(turn, hello);
    }

    /// Finds out what the peer lacks, or has and must not.
    pub(super) fn lead(&mut self, turn: &mut Turn<impl Memory>, hello: &Hello) {
        let last = self.window.last();
        let common = common_point(&self.history, last, &hello.history, hello.last);
        self.peer.received = hello.last.min(common);
        // `last` may be in its memory alone; the acknowledgement that follows the hello says what is journaled.
        self.peer.journaled = hello.durable.min(common);
        self.peer.durable = hello.durable.min(common);
        self.peer.applied = hello.checkpoint.min(common);
        self.peer.journal_free_blocks = hello.journal_free_blocks;
        self.peer.window_blocks = hello.window_blocks;
        self.lease.begin(hello.read_lease);
        self.peer.waiting_since = None;
        self.peer.heartbeat_unanswered = false;
        self.peer.flush_asked = UpdateNumber::NONE;
        self.note_retention();
        let gives_way = self.peer_gives_way(hello, common);
        if !gives_way {
            self.note_installed(turn, hello, common);
        }
        if gives_way {
            self.begin_merging(turn, hello, common);
        } else if hello.last > common && !self.serving && common == last && !hello.solo {
            // Ahead in the same history: it has what our disk lost.
            self.peer.talk = Talk::Fetching { to: hello.last };
            self.peer.waiting_since = Some(turn.now);
            turn.out.to_link.push(ToLink::Control(Control::Fetch { from: last.next(), to: hello.last }));
        } else if hello.last > common && (common < hello.settled || hello.solo) {
            let refusal = refusal(
                RefusalCode::SplitBrain,
                format_args!(
                    "the histories part after {common}: this site has {last} in {}, yours has {} in {} of which {} was settled",
                    self.generation, hello.last, hello.last_generation, hello.settled
                ),
            );
            self.refuse(turn, refusal);
        } else if hello.last > common {
            self.peer.talk = Talk::Cutting { keep: common };
            self.peer.waiting_since = Some(turn.now);
            turn.out.to_link.push(ToLink::Control(Control::CutTo { keep: common }));
        } else {
            self.go_on_from(turn, common);
        }
    }

    /// The peer has the stream up to `common`, and nothing else: what follows it gets from the journal, or as a copy.
    pub(super) fn go_on_from(&mut self, turn: &mut Turn<impl Memory>, common: UpdateNumber) {
        let let_go = common.next() < self.oldest_kept() && common < self.window.last();
        if let_go || self.catch_up.is_unread_after(common) {
            self.offer_resync(turn, common, false);
        } else {
            self.begin_streaming(turn, common.next());
        }
    }

    /// What both sites of the synchronous set must have alike beside the stream.
    fn objection_to_peer(&self, hello: &Hello) -> Option<Refusal> {
        let object = |code, text: std::fmt::Arguments| Some(refusal(code, text));
        self.objection(hello, self.peer_config().site).or_else(|| {
            if hello.role == Role::Third {
                let theirs = hello.site.0;
                return object(
                    RefusalCode::Role,
                    format_args!("site {theirs} is this site's peer, and a third there"),
                );
            }
            if hello.ack != self.config.ack {
                let (ours, theirs) = (self.config.ack, hello.ack);
                return object(RefusalCode::AckLevel, format_args!("ack is {ours} here and {theirs} there"));
            }
            if hello.differential != self.config.differential {
                let (ours, theirs) = (self.config.differential, hello.differential);
                return object(
                    RefusalCode::Differential,
                    format_args!("differential data is by {ours} here and by {theirs} there"),
                );
            }
            None
        })
    }

    /// Both sites must mean the same thing by the same numbers.
    pub(super) fn objection(&self, hello: &Hello, expected: SiteId) -> Option<Refusal> {
        let object = |code, text: std::fmt::Arguments| Some(refusal(code, text));
        if hello.protocol_min > PROTOCOL_MAX || hello.protocol_max < PROTOCOL_MIN {
            return object(
                RefusalCode::Version,
                format_args!(
                    "this site speaks protocol {PROTOCOL_MIN} to {PROTOCOL_MAX}, yours {} to {}",
                    hello.protocol_min, hello.protocol_max
                ),
            );
        }
        if hello.group != self.config.group {
            let (ours, theirs) = (self.config.group, hello.group);
            return object(
                RefusalCode::Group,
                format_args!("this site is of group {ours}, yours of {theirs}"),
            );
        }
        if hello.site != expected {
            return object(
                RefusalCode::Group,
                format_args!("this site expects site {}, yours is site {}", expected.0, hello.site.0),
            );
        }
        if hello.block_bytes != BLOCK_BYTES as u32 {
            let theirs = hello.block_bytes;
            return object(
                RefusalCode::Volumes,
                format_args!("blocks are {BLOCK_BYTES} bytes here and {theirs} there"),
            );
        }
        if hello.volumes().len() != self.config.volumes.len() {
            let (ours, theirs) = (self.config.volumes.len(), hello.volumes().len());
            return object(RefusalCode::Volumes, format_args!("{ours} volumes here and {theirs} there"));
        }
        if hello.differential_blocks != self.config.differential_blocks {
            let (ours, theirs) = (self.config.differential_blocks, hello.differential_blocks);
            return object(
                RefusalCode::Volumes,
                format_args!("the differential volume has {ours} blocks here and {theirs} there"),
            );
        }
        for (ours, theirs) in self.config.volumes.iter().zip(hello.volumes()) {
            if ours.name != theirs.name.as_str() || ours.blocks != theirs.blocks {
                return object(
                    RefusalCode::Volumes,
                    format_args!(
                        "volume {} of {} blocks here is {} of {} blocks there",
                        ours.name,
                        ours.blocks,
                        theirs.name.as_str(),
                        theirs.blocks
                    ),
                );
            }
        }
        None
    }

    pub(super) fn begin_streaming(&mut self, turn: &mut Turn<impl Memory>, from: UpdateNumber) {
        self.peer.talk = Talk::Streaming;
        self.peer.next_to_send = from;
        self.peer.send_to = UpdateNumber(u64::MAX);
        self.peer.sent = from.previous();
        self.peer.consumed = from.previous();
        self.peer.said_settled = UpdateNumber::NONE;
        self.peer.received = self.peer.received.max(from.previous());
        self.peer.waiting_since = None;
        self.leaving.met_successor();
        // A heartbeat goes out before all else, and its answer tells where the peer is now.
        self.peer.introduced = false;
        (self.peer.streams_since, self.peer.said_at) = (turn.now, turn.now);
        if from <= self.window.last() {
            turn.event(Event::PeerCatchingUp { from, to: self.window.last() });
        }
        self.serve_if_allowed(turn);
    }

    /// The restart rule: a primary opens its generation, and serves, once its secondary has answered, or alone.
    pub(super) fn serve_if_allowed(&mut self, turn: &mut Turn<impl Memory>) {
        // A third that takes over has no peer, and is alone once that is durable like anybody else.
        let peerless = self.config.peer.is_none() && self.alone == Alone::No;
        let answered = peerless || self.alone == Alone::Yes || self.peer.talk == Talk::Streaming;
        let fetching = matches!(self.peer.talk, Talk::Fetching { .. });
        // Tables that were repaired may be ahead of this site: numbers that they cover are not given to other updates.
        let whole = self.window.last() >= self.applied;
        let stays = self.left.is_none() && !self.is_superseded();
        let may = !self.serving && !self.stopping && !fetching && whole && stays && self.window.room() > 0;
        if self.role == Role::Primary && may && answered {
            if !self.opened {
                let generation = self.generation.opened_by(self.config.site);
                self.append_control(turn, UpdateKind::GenerationOpen, generation);
                self.opened = true;
            }
            self.serving = true;
            if self.role_at > UpdateNumber::NONE {
                turn.event(Event::RoleChanged { role: Role::Primary });
            }
        }
    }

    /// A primary that is given back a `SoloBegin` which its disk lost is alone by it, until it ends that: another restart
    /// would find it in the journal, and not wait for the peer, whatever was acknowledged jointly since (INV-1).
    pub(super) fn note_fetched(&mut self, update: &Update) {
        match update.kind {
            UpdateKind::SoloBegin => self.alone = Alone::Beginning(update.number),
            UpdateKind::SoloEnd => {
                self.alone = Alone::No;
                (self.joint_from, self.solo_ended) = (update.number, update.number);
            }
            _ => {}
        }
    }
}
