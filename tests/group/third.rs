//! A third site that pulls from a pair: what it is given and when, what its absence costs nobody, and from whom it goes on.

mod copied;
mod promoted;
mod readiness;
mod repaired;
mod sources;

use super::*;
use lockstep::core::group::THIRD_PAGES;
use lockstep::core::group::status::{Delta, GroupStatus, NoDelta, SourceState, ThirdState};
use lockstep::format::wire::{PLAIN_UPDATE_FRAME_BYTES, Refusal, RefusalCode};

const FIRST: usize = 0;
const SECOND: usize = 1;
const THIRD: usize = 2;

/// Steps until a connection that was closed comes again.
const RECONNECTS_AFTER: u64 = 25;

/// An end of a link: the site, and the link's number beside the peer's if it is not that.
type End = (usize, Option<usize>);

struct Link {
    ends: [End; 2],
    /// Whether the network lets anything through.
    up: bool,
    connected: bool,
    connection: u32,
    again_at: u64,
    /// What a site that is stuck has not taken.
    held: Vec<(End, ToLink)>,
}

/// How long a disk takes, and what is under way there.
#[derive(Default)]
struct Disks {
    journal_steps: u64,
    volume_steps: u64,
    under_way: Vec<(u64, Executor, IoRequest)>,
}

/// Rounds of 16 writes by which a sweep may come sooner or later.
const SWEEP_MOVED_ROUNDS_MAX: usize = 2;

fn hours(hours: u64) -> Nanos {
    Nanos::from_millis(hours * 3_600_000)
}

struct Trio {
    now: Nanos,
    steps: u64,
    sites: Vec<Site>,
    alive: [bool; 3],
    links: Vec<Link>,
    /// Refusals, and other news of the third's, as each site told them.
    refused: Vec<(usize, Refusal)>,
    lapsed: Vec<usize>,
    /// Sites that warned of a third which may lapse soon, and how much they kept for it then.
    warned: Vec<(usize, u64)>,
    resumed: Vec<usize>,
    /// Sites that said that a disk does not give what it has.
    read_failed: Vec<usize>,
    /// Blocks go bad.
    rots: bool,
    /// Copies that began, or went on, and blocks that were copied and that were equal, of those that ended.
    copies: Vec<(usize, bool)>,
    copied: Vec<(usize, u64, u64)>,
    third_disks: Disks,
}

fn configs() -> [GroupConfig; 3] {
    let third = ThirdConfig {
        site: SiteId(3),
        heartbeat_interval: Nanos::from_millis(5),
        silence_max: Nanos::from_millis(100),
        bandwidth_max: None,
    };
    let source = |site| SourceConfig { site: SiteId(site), silence_max: Nanos::from_millis(100) };
    let served = |role| {
        let config = config(role, true);
        GroupConfig { third: Some(third.clone()), pages: config.pages + THIRD_PAGES as u32, ..config }
    };
    let puller = GroupConfig { sources: vec![source(1), source(2)], ..config(Role::Third, false) };
    [served(Role::Primary), served(Role::Secondary), puller]
}

/// What the link between two ends delivers to one of them for what the other one sent.
fn deliver(
    now: Nanos,
    [(from, from_leg), (to, to_leg)]: [(&mut Site, Option<usize>); 2],
    connected: bool,
    message: ToLink,
) {
    let give = |site: &mut Site, leg: Option<usize>, message: FromLink| {
        site.with(now, |group, turn| match leg {
            None => group.on_link(turn, message),
            Some(index) => group.on_remote(turn, index, message),
        });
    };
    let page_at = |to: &mut Site| {
        let pool = match to_leg {
            None => &mut to.link_pages,
            Some(index) => &mut to.remote_pages[index],
        };
        pool.pop().expect("granted")
    };
    let delivered = match message {
        ToLink::Begin { .. } | ToLink::Close => return,
        ToLink::Control(control) => FromLink::Control(control),
        ToLink::Page { frame, page, length } => {
            let sent = *from.memory.bytes(page);
            give(from, from_leg, FromLink::PageReturned { page });
            if !connected {
                return;
            }
            let page = page_at(to);
            *to.memory.bytes_mut(page) = sent;
            FromLink::Page { frame, page, length }
        }
        ToLink::Update { update, settled, slot, source, with_old } => {
            assert!(!with_old);
            to.inbound_row = (to.inbound_row + 1) % (2 * LINK_INBOUND_SLOTS as u32);
            let row = SlotId(to.inbound_row);
            for index in 0..update.payload_blocks() {
                let table = match (from_leg, source) {
                    (None, UpdateSource::Window) => &from.tables.window,
                    (None, _) => &from.tables.catch_up,
                    (Some(leg), source) => {
                        assert_ne!(source, UpdateSource::Window);
                        &from.tables.remotes[leg].catch_up
                    }
                };
                let bytes = *from.memory.bytes(table.page(SlotId(slot), index));
                if connected {
                    let page = page_at(to);
                    *to.memory.bytes_mut(page) = bytes;
                    let inbound = to_leg.map_or(&to.tables.inbound, |leg| &to.tables.remotes[leg].inbound);
                    inbound.set(row, index, page, sum_of_block(&bytes));
                }
            }
            let number = update.number;
            give(from, from_leg, FromLink::Consumed { number, slot, source, popped_at: now, sent_at: now });
            FromLink::Update { update, settled, slot: row, with_old: false }
        }
    };
    if connected {
        give(to, to_leg, delivered);
    }
}

impl Trio {
    fn formatted(configs: [GroupConfig; 3]) -> Trio {
        let link =
            |ends| Link { ends, up: true, connected: false, connection: 0, again_at: 0, held: Vec::new() };
        let mut trio = Trio {
            now: Nanos(0),
            steps: 0,
            sites: configs.into_iter().map(Site::formatted).collect(),
            alive: [true; 3],
            links: vec![
                link([(FIRST, None), (SECOND, None)]),
                link([(FIRST, Some(0)), (THIRD, Some(0))]),
                link([(SECOND, Some(0)), (THIRD, Some(1))]),
            ],
            refused: Vec::new(),
            lapsed: Vec::new(),
            warned: Vec::new(),
            resumed: Vec::new(),
            read_failed: Vec::new(),
            rots: false,
            copies: Vec::new(),
            copied: Vec::new(),
            third_disks: Disks::default(),
        };
        for site in &mut trio.sites {
            site.may_refuse = true;
            site.with(Nanos(0), |group, turn| group.start(turn));
        }
        trio
    }

    /// In lockstep, and pulled from.
    fn new() -> Trio {
        Trio::with(configs())
    }

    fn with(configs: [GroupConfig; 3]) -> Trio {
        let mut trio = Trio::formatted(configs);
        trio.until("the third pulls", |trio| {
            trio.status(FIRST).peer == PeerState::InSync && trio.pulls_from() == Some(FIRST)
        });
        trio
    }

    fn status(&self, site: usize) -> GroupStatus {
        self.sites[site].group.status(self.now)
    }

    fn pulls_from(&self) -> Option<usize> {
        let sources = self.status(THIRD).sources;
        sources.iter().position(|it| it.is_some_and(|it| it.state == SourceState::Pulling))
    }

    fn third_at(&self, site: usize) -> lockstep::core::group::status::ThirdStatus {
        self.status(site).third.expect("it has a third")
    }

    fn disconnect(&mut self, link: usize) {
        let held = std::mem::take(&mut self.links[link].held);
        let Link { ends, connection, connected, again_at, .. } = &mut self.links[link];
        if !std::mem::take(connected) {
            return;
        }
        *again_at = self.steps + RECONNECTS_AFTER;
        let message = FromLink::Disconnected { connection: *connection };
        let ends = *ends;
        for (site, leg) in ends {
            if self.alive[site] {
                self.sites[site].with(self.now, |group, turn| match leg {
                    None => group.on_link(turn, message),
                    Some(index) => group.on_remote(turn, index, message),
                });
            }
        }
        for (from, message) in held {
            self.send(from, message);
        }
    }

    /// Brings a message to the other end of its link, if that is connected.
    fn send(&mut self, from: End, message: ToLink) {
        let place = |link: &Link| link.ends.iter().position(|end| *end == from);
        let (index, place) = self
            .links
            .iter()
            .enumerate()
            .find_map(|(index, link)| place(link).map(|place| (index, place)))
            .expect("each leg has a link");
        let Link { ends, connected, .. } = self.links[index];
        let to = ends[1 - place];
        if message == ToLink::Close {
            return self.disconnect(index);
        }
        if connected && (!self.links[index].held.is_empty() || !self.may_deliver(to)) {
            return self.links[index].held.push((from, message));
        }
        self.hand_over(index, from, to, message);
    }

    /// Whether a site takes what comes to it.
    fn may_deliver(&self, (site, leg): End) -> bool {
        self.alive[site] && leg.is_none_or(|index| self.sites[site].group.remote_room(index) > 0)
    }

    fn deliver_held(&mut self) {
        for index in 0..self.links.len() {
            let ends = self.links[index].ends;
            let to_other = |from: End| ends[usize::from(ends[0] == from)];
            while let Some(&(from, message)) = self.links[index].held.first()
                && self.may_deliver(to_other(from))
            {
                self.links[index].held.remove(0);
                self.hand_over(index, from, to_other(from), message);
            }
        }
    }

    fn hand_over(&mut self, index: usize, from: End, to: End, message: ToLink) {
        let connected = self.links[index].connected;
        let [sender, receiver] = self.sites.get_disjoint_mut([from.0, to.0]).expect("two sites");
        deliver(self.now, [(sender, from.1), (receiver, to.1)], connected, message);
    }

    fn connect(&mut self) {
        for index in 0..self.links.len() {
            let Link { ends, up, connected, connection, again_at, .. } = &mut self.links[index];
            let due = *up && !*connected && self.steps >= *again_at;
            let ready = |&(site, leg): &End| {
                let site = &self.sites[site];
                !leg.map_or(&site.link_pages, |index| &site.remote_pages[index]).is_empty()
            };
            if !due || !ends.iter().all(ready) || ends.iter().any(|(site, _)| !self.alive[*site]) {
                continue;
            }
            *connected = true;
            *connection += 1;
            let message = FromLink::Connected { connection: *connection };
            for (site, leg) in *ends {
                self.sites[site].with(self.now, |group, turn| match leg {
                    None => group.on_link(turn, message),
                    Some(index) => group.on_remote(turn, index, message),
                });
            }
        }
    }

    fn set_link(&mut self, link: usize, up: bool) {
        self.links[link].up = up;
        if !up {
            self.disconnect(link);
        }
    }

    /// The third's I/O takes its time.
    fn delay_io_of_third(&mut self) {
        let Disks { journal_steps, volume_steps, under_way } = &mut self.third_disks;
        let Outbox { to_journal, to_volumes, .. } = &mut self.sites[THIRD].out;
        let steps = self.steps;
        for (executor, queue, takes) in
            [(Executor::Journal, to_journal, *journal_steps), (Executor::Volumes, to_volumes, *volume_steps)]
        {
            let given = std::iter::from_fn(|| queue.pop());
            under_way.extend(given.map(|request| (steps.saturating_add(takes), executor, request)));
            under_way.retain(|(due, of, request)| {
                let ready = *of == executor && *due <= steps;
                if ready {
                    queue.push(*request);
                }
                !ready
            });
        }
    }

    fn step(&mut self) {
        self.pass(Nanos::from_micros(200));
    }

    fn pass(&mut self, time: Nanos) {
        self.now = self.now.plus(time);
        self.steps += 1;
        self.connect();
        self.deliver_held();
        for site in (0..3).filter(|site| self.alive[*site]).collect::<Vec<_>>() {
            self.turn(site);
        }
        // INV-4 and INV-6, at every step.
        let settled = [FIRST, SECOND].map(|site| self.status(site).settled).into_iter().max();
        if self.alive[FIRST] && self.alive[SECOND] && self.status(THIRD).role == Role::Third {
            assert!(self.status(THIRD).last <= settled.expect("two of them"));
        }
    }

    fn turn(&mut self, site: usize) {
        let now = self.now;
        self.sites[site].with(now, |group, turn| group.end_turn(turn));
        if site == THIRD {
            self.delay_io_of_third();
        }
        for event in std::iter::from_fn(|| self.sites[site].out.events.pop()) {
            match event {
                Event::Refused { by_us: true, refusal: Some(refusal), .. } => {
                    self.refused.push((site, refusal));
                }
                Event::ThirdLapsesSoon { kept_percent, .. } => self.warned.push((site, kept_percent)),
                Event::ThirdResumed { .. } => self.resumed.push(site),
                Event::CopyToThirdBegan { goes_on, .. } => self.copies.push((site, goes_on)),
                Event::CopyToThirdEnded { blocks, equal, .. } => self.copied.push((site, blocks, equal)),
                Event::ThirdLapsed { .. } | Event::SourceLapsed { .. } => self.lapsed.push(site),
                Event::ChecksumMismatch { .. } if self.rots => {}
                Event::ReadFailed { .. } => self.read_failed.push(site),
                Event::Failed { .. } | Event::ChecksumMismatch { .. } => panic!("site {site}: {event:?}"),
                _ => {}
            }
        }
        let mut sent: Vec<(Option<usize>, ToLink)> =
            self.sites[site].drain(now).into_iter().map(|message| (None, message)).collect();
        for (index, remote) in self.sites[site].out.remotes.iter_mut().enumerate() {
            sent.extend(std::iter::from_fn(|| remote.to_link.pop()).map(|message| (Some(index), message)));
        }
        for (leg, message) in sent {
            self.send((site, leg), message);
        }
        if self.sites[site].group.starts_anew() {
            self.kill(site);
            self.restart(site);
        }
    }

    fn until(&mut self, what: &str, mut done: impl FnMut(&Trio) -> bool) {
        for _ in 0..100_000 {
            if done(self) {
                return;
            }
            self.step();
        }
        let status: Vec<_> = (0..3).map(|site| self.status(site)).collect();
        panic!("never: {what}: {status:#?} {:?}", self.refused);
    }

    fn steps(&mut self, steps: usize) {
        (0..steps).for_each(|_| self.step());
    }

    fn kill(&mut self, site: usize) {
        for link in 0..self.links.len() {
            if self.links[link].ends.iter().any(|(end, _)| *end == site) {
                self.disconnect(link);
            }
        }
        self.alive[site] = false;
        if site == THIRD {
            self.third_disks.under_way.clear();
        }
    }

    fn restart(&mut self, site: usize) {
        self.sites[site].die();
        self.alive[site] = true;
        let now = self.now;
        self.sites[site].with(now, |group, turn| group.start(turn));
    }

    fn begin_write(&mut self, site: usize, ticket: u32, lba: u64, fill: u8) {
        let now = self.now;
        self.sites[site].write(now, ticket, lba, fill, false);
    }

    fn reply(&mut self, site: usize, ticket: u32) -> Result<(), HostError> {
        let is = move |reply: &HostReply| reply.ticket == SlotId(ticket);
        self.until("a reply", |trio| trio.sites[site].replies.iter().any(is));
        let at = self.sites[site].replies.iter().position(is).expect("it is there");
        self.sites[site].replies.swap_remove(at).result
    }

    /// So many rounds of 16 writes at this site; what each block is to hold goes into `expected`. Returns the steps it took.
    fn exercise(&mut self, site: usize, expected: &mut HashMap<u64, u8>, rounds: u64, salt: u64) -> u64 {
        let before = self.steps;
        for round in 0..rounds {
            for ticket in 0..16 {
                let lba = (round * 31 + ticket * 17 + salt) % VOLUME_BLOCKS;
                let fill = ((round * 16 + ticket + salt) % 250 + 1) as u8;
                self.begin_write(site, ticket as u32, lba, fill);
                expected.insert(lba, fill);
            }
            for ticket in 0..16 {
                assert_eq!(self.reply(site, ticket), Ok(()));
            }
        }
        self.steps - before
    }

    fn read(&mut self, site: usize, lba: u64) -> u8 {
        let pages = self.sites[site].begin_read(self.now, 900, lba, 1);
        assert_eq!(self.reply(site, 900), Ok(()), "reading {lba} on site {site}");
        let (fill, whole) = self.sites[site].end_read(pages)[0];
        assert!(whole, "block {lba} is torn");
        fill
    }

    /// Waits until the third has all that this site has, and compares it block for block.
    fn third_is_equal(&mut self, site: usize, expected: &HashMap<u64, u8>) {
        self.until("the third has everything", |trio| {
            let (status, third) = (trio.status(site), trio.status(THIRD));
            status.settled == status.last && third.settled == status.last && third.last == status.last
        });
        for lba in 0..VOLUME_BLOCKS {
            let want = expected.get(&lba).copied().unwrap_or(0);
            assert_eq!(self.read(THIRD, lba), want, "block {lba} of the third");
        }
    }

    fn ask(&mut self, site: usize, op: AdminOp) {
        let now = self.now;
        let request = AdminRequest { id: 1, op };
        self.sites[site].with(now, |group, turn| group.on_admin(turn, request));
    }

    fn promote(&mut self, site: usize) {
        self.ask(site, AdminOp::Promote { fenced: true });
        self.until("it serves", |trio| {
            trio.status(site).role == Role::Primary && trio.sites[site].group.serving()
        });
    }
}

#[test]
fn a_third_follows_while_everybodys_ring_wraps() {
    let mut trio = Trio::new();
    let mut expected = HashMap::new();
    trio.exercise(FIRST, &mut expected, 300, 0);
    trio.third_is_equal(FIRST, &expected);
    let (first, third) = (trio.status(FIRST), trio.status(THIRD));
    assert!(third.counters.journal_blocks > 2 * third.journal_blocks, "the ring did not wrap: {third:#?}");
    assert_eq!(first.counters.fed_updates, third.last.0);
    assert_eq!(third.counters.pulled_updates, third.last.0);
    assert_eq!(trio.status(SECOND).counters.fed_updates, 0);
    assert!(third.checkpoint > UpdateNumber(2000) && trio.lapsed.is_empty());
}

#[test]
fn a_third_is_not_written_to_and_not_promoted_while_its_sources_are_there() {
    let mut trio = Trio::new();
    trio.begin_write(THIRD, 1, 0, 7);
    assert_eq!(trio.reply(THIRD, 1), Err(HostError::ReadOnly));
    for op in [AdminOp::Promote { fenced: true }, AdminOp::Demote, AdminOp::Switchover, AdminOp::GiveWay] {
        trio.ask(THIRD, op);
        let reply = trio.sites[THIRD].out.to_admin.pop().expect("it is refused at once");
        assert!(reply.result.is_err(), "{op:?}");
    }
    assert_eq!(trio.status(THIRD).role, Role::Third);
}

/// INV-4: what one site of the set may still lose is not given away.
#[test]
fn what_is_not_settled_is_not_pulled() {
    let mut trio = Trio::new();
    let mut expected = HashMap::new();
    trio.exercise(FIRST, &mut expected, 3, 5);
    trio.third_is_equal(FIRST, &expected);
    let settled = trio.status(FIRST).settled;
    trio.set_link(0, false);
    for ticket in 0..8 {
        trio.begin_write(FIRST, ticket, u64::from(ticket), 99);
    }
    trio.steps(500);
    let first = trio.status(FIRST);
    assert!(first.durable > settled && first.settled == settled, "{first:#?}");
    assert_eq!(trio.status(THIRD).last, settled);
    trio.set_link(0, true);
    for ticket in 0..8 {
        assert_eq!(trio.reply(FIRST, ticket), Ok(()));
        expected.insert(u64::from(ticket), 99);
    }
    trio.third_is_equal(FIRST, &expected);
}

#[test]
fn a_third_that_restarts_goes_on_from_its_position() {
    let mut trio = Trio::new();
    let mut expected = HashMap::new();
    trio.exercise(FIRST, &mut expected, 4, 1);
    trio.third_is_equal(FIRST, &expected);
    trio.steps(100);
    let (fed, kept) = (trio.status(FIRST).counters.fed_updates, trio.status(THIRD).last);
    trio.kill(THIRD);
    let missed = 16 * 10;
    trio.exercise(FIRST, &mut expected, 10, 2);
    trio.restart(THIRD);
    trio.third_is_equal(FIRST, &expected);
    // The delta, and nothing but the delta; most of it was in the journal alone.
    assert_eq!(trio.status(THIRD).last.0, kept.0 + missed);
    let counters = trio.status(FIRST).counters;
    assert_eq!(counters.fed_updates, fed + missed);
    assert!(counters.fed_from_journal >= missed - 32, "{counters:?}");
    assert!(trio.lapsed.is_empty());
}

/// A third costs no host anything: with it, without it, or with one that is lost, stuck, full, slow, or away for days, each operation takes
/// the same time.
#[test]
fn nobody_waits_for_a_third() {
    let mut took = Vec::new();
    for what in ["there", "slow", "full", "gone", "stuck", "away"] {
        let mut configs = configs();
        // So that days can go by in some steps.
        for peer in configs.iter_mut().flat_map(|config| &mut config.peer) {
            (peer.latency_budget, peer.heartbeat_interval) = (hours(10), hours(1));
        }
        let mut trio = Trio::with(configs);
        let mut expected = HashMap::new();
        match what {
            "gone" | "away" => trio.kill(THIRD),
            // It is connected and takes nothing any more.
            "stuck" => trio.alive[THIRD] = false,
            "slow" => trio.third_disks = Disks { journal_steps: 40, volume_steps: 400, ..Disks::default() },
            // No block ever reaches its volumes, so its journal fills up.
            "full" => trio.third_disks = Disks { volume_steps: u64::MAX, ..Disks::default() },
            _ => {}
        }
        let mut rounds = Vec::new();
        for round in 0..250 {
            let steps = trio.exercise(FIRST, &mut expected, 1, 3 + 31 * round);
            // Nor is more destaged: what is kept for a third is no reason for a sweep. In days without a write there is one.
            let destaged = Some(trio.status(FIRST).counters.destage_blocks).filter(|_| what != "away");
            rounds.push((steps, destaged));
            if what == "away" && round % 50 == 20 {
                (0..48).for_each(|_| trio.pass(hours(1)));
            }
        }
        took.push(rounds);
        assert_eq!(trio.status(FIRST).counters.expired, 0);
        let lapsed = trio.lapsed.contains(&FIRST);
        assert_eq!(lapsed, what != "there", "{what}");
        let third = trio.status(THIRD);
        if what == "full" {
            assert!(third.journal_used_blocks * 4 > third.journal_blocks * 3, "{third:#?}");
            assert!(third.last < trio.status(FIRST).last);
        }
        if what == "gone" {
            let third = trio.third_at(FIRST);
            assert_eq!((third.state, third.delta), (ThirdState::Disconnected, Delta::No(NoDelta::Lapsed)));
            // It comes back to hear that it is too late, and holds a consistent image all the same.
            let kept = trio.status(THIRD).last;
            trio.restart(THIRD);
            trio.until("it is told", |trio| trio.third_at(FIRST).state == ThirdState::Lapsed);
            trio.steps(2000);
            assert_eq!(trio.status(THIRD).last, kept);
        }
    }
    for other in &took[1..] {
        for (round, ((steps, destaged), (first_steps, _))) in other.iter().zip(&took[0]).enumerate() {
            assert_eq!(steps, first_steps, "round {round}");
            // A sweep waits for the superblock that lets go of a third, or moves with it.
            let least = took[0][round.saturating_sub(SWEEP_MOVED_ROUNDS_MAX)].1;
            let later = took[0].get(round + SWEEP_MOVED_ROUNDS_MAX);
            let most = later.map_or(Some(u64::MAX), |(_, destaged)| *destaged);
            assert!(destaged.is_none() || (least..=most).contains(destaged), "round {round}: {destaged:?}");
        }
    }
}

/// A third sends no updates; one that does costs itself its connection, and nobody any pages.
#[test]
fn what_a_third_may_not_send_costs_nothing() {
    let mut trio = Trio::new();
    let mut expected = HashMap::new();
    trio.exercise(FIRST, &mut expected, 2, 1);
    trio.third_is_equal(FIRST, &expected);
    // Once more than there are pages for.
    for _ in 0..8 {
        trio.until("it is met", |trio| trio.third_at(FIRST).state == ThirdState::Feeding);
        let now = trio.now;
        let first = &mut trio.sites[FIRST];
        let granted = first.remote_pages[0].len();
        let pages: Vec<PageId> = (0..2).map(|_| first.remote_pages[0].pop().expect("granted")).collect();
        let inbound = &first.tables.remotes[0].inbound;
        inbound.set(SlotId(0), 0, pages[0], sum_of_block(first.memory.bytes(pages[0])));
        inbound.set(SlotId(0), UPDATE_BLOCKS_MAX, pages[1], sum_of_block(first.memory.bytes(pages[1])));
        let update = Update {
            number: UpdateNumber(1),
            generation: Generation(1 << 16),
            kind: UpdateKind::Write,
            count: 1,
            slot: Slot(0),
            ..Update::EMPTY
        };
        let settled = UpdateNumber::NONE;
        let message = FromLink::Update { update, settled, slot: SlotId(0), with_old: true };
        first.with(now, |group, turn| group.on_remote(turn, 0, message));
        trio.until("it is lost", |trio| trio.third_at(FIRST).state != ThirdState::Feeding);
        trio.until("pages are there again", |trio| trio.sites[FIRST].remote_pages[0].len() >= granted);
    }
    trio.exercise(FIRST, &mut expected, 2, 2);
    trio.third_is_equal(FIRST, &expected);
}

/// The readiness of both survivors of a loss, before any is lost (US 7,143,254).
#[test]
fn both_sources_say_whether_the_delta_is_there() {
    let mut trio = Trio::new();
    let mut expected = HashMap::new();
    trio.exercise(FIRST, &mut expected, 5, 1);
    trio.third_is_equal(FIRST, &expected);
    trio.steps(100);
    for site in [FIRST, SECOND] {
        assert_eq!(trio.third_at(site).delta, Delta::Yes { updates: 0, blocks: 0 }, "site {site}");
    }
    trio.kill(THIRD);
    trio.exercise(FIRST, &mut expected, 1, 2);
    trio.steps(100);
    for site in [FIRST, SECOND] {
        let Delta::Yes { updates, blocks } = trio.third_at(site).delta else { panic!("site {site}") };
        assert!(updates == 16 && blocks >= 32, "{updates} updates of {blocks} blocks at site {site}");
    }
    trio.kill(SECOND);
    trio.restart(SECOND);
    trio.until("in lockstep again", |trio| trio.status(FIRST).peer == PeerState::InSync);
    assert_eq!(trio.third_at(SECOND).delta, Delta::No(NoDelta::Unheard));
    trio.exercise(FIRST, &mut expected, 250, 3);
    assert_eq!(trio.third_at(FIRST).delta, Delta::No(NoDelta::Lapsed));
}

/// A journal keeps what a third lacks up to half of its ring, at the second as at the first.
#[test]
fn both_journals_keep_what_a_third_lacks_for_a_while() {
    let mut trio = Trio::new();
    let mut expected = HashMap::new();
    trio.exercise(FIRST, &mut expected, 100, 1);
    trio.third_is_equal(FIRST, &expected);
    trio.kill(THIRD);
    // About a third of the ring, and a checkpoint of all of it.
    trio.exercise(FIRST, &mut expected, 10, 2);
    for site in [FIRST, SECOND] {
        trio.sites[site].group.want_sweep();
    }
    trio.until("checkpoints", |trio| {
        [FIRST, SECOND].iter().all(|site| trio.status(*site).checkpoint == trio.status(*site).last)
    });
    for site in [FIRST, SECOND] {
        assert!(matches!(trio.third_at(site).delta, Delta::Yes { updates: 160, .. }), "site {site}");
        assert!(trio.status(site).journal_used_blocks >= 160);
    }
    trio.kill(FIRST);
    trio.promote(SECOND);
    trio.restart(THIRD);
    trio.third_is_equal(SECOND, &expected);
    trio.steps(100);
    trio.sites[SECOND].group.want_sweep();
    trio.exercise(SECOND, &mut expected, 1, 2);
    trio.until("the second lets go of it", |trio| trio.status(SECOND).journal_used_blocks < 160 * 2);
}

#[test]
fn a_third_that_has_what_its_source_never_had_is_refused_with_both_values() {
    let mut trio = Trio::new();
    let mut expected = HashMap::new();
    trio.exercise(FIRST, &mut expected, 5, 1);
    trio.third_is_equal(FIRST, &expected);
    trio.steps(100);
    // Both go on alone: the third with the first, as long as that is reachable.
    trio.set_link(0, false);
    trio.set_link(2, false);
    trio.promote(SECOND);
    trio.exercise(SECOND, &mut HashMap::new(), 2, 9);
    trio.kill(FIRST);
    trio.restart(FIRST);
    trio.until("the first is back", |trio| trio.status(FIRST).state != GroupState::Recovering);
    trio.ask(FIRST, AdminOp::Promote { fenced: true });
    trio.until("the first serves", |trio| trio.sites[FIRST].group.serving());
    trio.exercise(FIRST, &mut expected, 2, 3);
    trio.third_is_equal(FIRST, &expected);
    trio.set_link(2, true);
    trio.until("the second refuses", |trio| !trio.refused.is_empty());
    let (site, refusal) = trio.refused[0];
    assert_eq!((site, refusal.code), (SECOND, RefusalCode::SplitBrain));
    let text = refusal.text.to_string();
    for value in [trio.status(THIRD).last.to_string(), trio.status(SECOND).settled.to_string()] {
        assert!(text.contains(&value), "{value} in {text}");
    }
    assert_eq!(trio.pulls_from(), Some(FIRST));
}

/// A third that was away, and was told that what it lacks cannot be read at its source.
fn lapsed_by_rot() -> (Trio, HashMap<u64, u8>) {
    let mut trio = Trio::new();
    let mut expected = HashMap::new();
    trio.exercise(FIRST, &mut expected, 4, 1);
    trio.third_is_equal(FIRST, &expected);
    trio.kill(THIRD);
    let before: Vec<_> = trio.sites[FIRST].disks.keys().copied().collect();
    trio.exercise(FIRST, &mut expected, 8, 2);
    trio.steps(100);
    for (key, block) in &mut trio.sites[FIRST].disks {
        if key.0 == IoTarget::Journal && key.1 >= SUPERBLOCK_SLOTS && !before.contains(key) {
            block[100] ^= 1;
        }
    }
    trio.set_link(2, false);
    trio.restart(THIRD);
    trio.until("it is told", |trio| trio.third_at(FIRST).state == ThirdState::Lapsed);
    (trio, expected)
}

/// The journal is read back for the third alone, so what has gone bad there is no reason to leave hosts alone.
#[test]
fn a_batch_that_went_bad_costs_the_third_and_not_the_site() {
    let (mut trio, mut expected) = lapsed_by_rot();
    trio.exercise(FIRST, &mut expected, 4, 3);
    assert!(trio.lapsed.contains(&FIRST) && trio.status(FIRST).state == GroupState::Serving);
    // The second's journal is sound.
    trio.set_link(2, true);
    trio.third_is_equal(FIRST, &expected);
    assert_eq!(trio.pulls_from(), Some(SECOND));
}

/// What a third has pulled before it hears that it has lapsed comes in behind that: it is read no more, nor told again.
#[test]
fn a_pull_that_crosses_what_a_third_is_told_changes_nothing() {
    let (mut trio, mut expected) = lapsed_by_rot();
    trio.steps(10);
    let (lapsed, read_failed) = (trio.lapsed.clone(), trio.read_failed.clone());
    let GroupStatus { last: after, durable, generation, .. } = trio.status(THIRD);
    let pull = Control::Pull { after, generation, durable, upto: UpdateNumber(after.0 + 64) };
    let now = trio.now;
    let message = FromLink::Control(pull);
    trio.sites[FIRST].with(now, |group, turn| group.on_remote(turn, 0, message));
    trio.steps(100);
    assert_eq!((trio.lapsed.clone(), trio.read_failed.clone()), (lapsed, read_failed));
    assert_eq!(trio.third_at(FIRST).state, ThirdState::Lapsed);
    assert!(trio.links[1].connected);
    // It is heard again once it has got on elsewhere.
    trio.set_link(2, true);
    trio.third_is_equal(FIRST, &expected);
    trio.exercise(FIRST, &mut expected, 2, 3);
    trio.third_is_equal(FIRST, &expected);
}
