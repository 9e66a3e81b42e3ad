//! Two groups joined by a perfect link over perfect disks: the shortest whole way of a write, and the first place to look
//! when the simulator finds something it cannot explain.

use std::collections::{BTreeMap, HashMap, HashSet};

use lockstep::base::*;
use lockstep::core::config::*;
use lockstep::core::group::status::{GroupState, PeerState};
use lockstep::core::group::{Group, PAGES_MIN, Turn};
use lockstep::core::journal::journal_blocks_min;
use lockstep::core::messages::*;
use lockstep::core::outbox::{Event, LossReason, Outbox, Tables};
use lockstep::format::metadata::take_marks;
use lockstep::format::superblock::{SUPERBLOCK_SLOTS, Superblock};
use lockstep::format::update::{Update, UpdateKind};

/// What is in memory.
#[path = "group/caching.rs"]
mod caching;
/// Both sites compared.
#[path = "group/comparing.rs"]
mod comparing;
/// Blocks that have gone bad.
#[path = "group/mending.rs"]
mod mending;
/// Split brains, and how they end.
#[path = "group/resolve.rs"]
mod resolve;
/// A third site.
#[path = "group/third.rs"]
mod third;
/// Blocks that cannot be read.
#[path = "group/unreadable.rs"]
mod unreadable;

type Block = Box<[u8; BLOCK_BYTES]>;

struct Pages(Vec<Block>);

impl Memory for Pages {
    fn bytes(&self, page: PageId) -> &[u8; BLOCK_BYTES] {
        &self.0[page.0 as usize]
    }
    fn bytes_mut(&mut self, page: PageId) -> &mut [u8; BLOCK_BYTES] {
        &mut self.0[page.0 as usize]
    }
    fn seal(&mut self, _page: PageId) {}
    fn reopen(&mut self, _page: PageId) {}
}

/// Of the management information, the changed-block set: where it begins, and its pages.
#[derive(Default)]
struct Marked {
    base: Option<UpdateNumber>,
    pages: BTreeMap<(u16, u64), Block>,
}

struct Site {
    group: Group,
    config: GroupConfig,
    memory: Pages,
    tables: Tables,
    out: Outbox,
    disks: HashMap<(IoTarget, u64), Block>,
    /// What cannot be read until it is written.
    unreadable: HashSet<(IoTarget, u64)>,
    marks: Marked,
    /// In this life.
    requests: Vec<(IoTarget, IoOp)>,
    /// Sites that refuse each other are no mistake.
    may_refuse: bool,
    front_pages: Vec<PageId>,
    link_pages: Vec<PageId>,
    remote_pages: Vec<Vec<PageId>>,
    replies: Vec<HostReply>,
    inbound_row: u32,
}

const VOLUME_BLOCKS: u64 = 512;

fn config(role: Role, peer: bool) -> GroupConfig {
    let site = SiteId(role as u16);
    GroupConfig {
        group: GroupId(7),
        site,
        role,
        peer: peer.then_some(PeerConfig {
            site: SiteId(3 - site.0),
            on_peer_loss: OnPeerLoss::Suspend,
            latency_budget: Nanos::from_millis(50),
            heartbeat_interval: Nanos::from_millis(100),
        }),
        third: None,
        sources: Vec::new(),
        resync: ResyncConfig::NONE,
        volumes: vec![VolumeSpec { name: "a".into(), blocks: VOLUME_BLOCKS }],
        journal_blocks: journal_blocks_min() + 600,
        differential_blocks: 0,
        on_differential_full: OnDifferentialFull::DeleteOldest,
        differential: DifferentialBy::Reference,
        journal_volatile: true,
        pages: PAGES_MIN + 2000,
        ack: AckLevel::Journaled,
        host_deadline: Nanos::from_millis(1000),
        flush_interval: Nanos::from_millis(2),
        flush_blocks: 1000,
        destage_depth_max: 16,
        warm_up: false,
        fronts: 1,
    }
}

impl Site {
    fn formatted(config: GroupConfig) -> Site {
        let volumes = [VOLUME_BLOCKS];
        let mut disks = HashMap::new();
        for sequence in 0..SUPERBLOCK_SLOTS {
            let superblock = Superblock::formatted(
                config.group,
                config.site,
                config.role,
                sequence,
                config.journal_blocks,
                &volumes,
            );
            let mut block = Box::new([0; BLOCK_BYTES]);
            superblock.encode(&mut block);
            disks.insert((IoTarget::Journal, superblock.slot()), block);
        }
        Site::started(config, disks)
    }

    fn started(config: GroupConfig, disks: HashMap<(IoTarget, u64), Block>) -> Site {
        Site {
            group: Group::new(config.clone()),
            memory: Pages((0..config.pages).map(|_| Box::new([0; BLOCK_BYTES])).collect()),
            tables: Tables::of(&config),
            out: Outbox::of(&config),
            disks,
            unreadable: HashSet::new(),
            requests: Vec::new(),
            marks: Marked::default(),
            may_refuse: false,
            front_pages: Vec::new(),
            link_pages: Vec::new(),
            remote_pages: vec![Vec::new(); config.remotes()],
            replies: Vec::new(),
            inbound_row: 0,
            config,
        }
    }

    fn with<R>(&mut self, now: Nanos, call: impl FnOnce(&mut Group, &mut Turn<Pages>) -> R) -> R {
        let Site { group, memory, tables, out, .. } = self;
        call(group, &mut Turn { now, memory, tables, out })
    }

    /// Drains the outbox: disks complete at once, replies and pages are kept, link messages returned.
    fn drain(&mut self, now: Nanos) -> Vec<ToLink> {
        while let Some(event) = self.out.events.pop() {
            let bad = matches!(
                event,
                Event::Failed { .. }
                    | Event::ChecksumMismatch { .. }
                    | Event::BlockUnreadable { .. }
                    | Event::Refused { .. }
            ) || matches!(event, Event::PeerLost { reason } if reason != LossReason::Disconnected);
            assert!(!bad || self.may_refuse, "{:?}: {event:?}", self.config.role);
        }
        while self.out.stamps.pop().is_some() {}
        while let Some(page) = self.out.front_pages[0].pop() {
            self.front_pages.push(page);
        }
        while let Some(page) = self.out.link_pages.pop() {
            self.link_pages.push(page);
        }
        for (granted, remote) in self.remote_pages.iter_mut().zip(&mut self.out.remotes) {
            granted.extend(std::iter::from_fn(|| remote.pages.pop()));
        }
        while let Some(reply) = self.out.to_front[0].pop() {
            self.replies.push(reply);
        }
        for executor in [Executor::Journal, Executor::Volumes] {
            loop {
                let queue = match executor {
                    Executor::Journal => &mut self.out.to_journal,
                    Executor::Volumes => &mut self.out.to_volumes,
                };
                let Some(request) = queue.pop() else { break };
                self.requests.push((request.target, request.op));
                let table = match executor {
                    Executor::Journal => &self.tables.journal_io,
                    Executor::Volumes => &self.tables.volume_io,
                };
                let mut unread = 0;
                for index in 0..request.count as usize {
                    let page = table.page(request.slot, index);
                    let key = (request.target, request.block + index as u64);
                    match request.op {
                        IoOp::Write => {
                            self.unreadable.remove(&key);
                            self.disks.insert(key, Box::new(*self.memory.bytes(page)));
                        }
                        IoOp::Read if self.unreadable.contains(&key) => unread |= 1 << index,
                        IoOp::Read => {
                            let bytes = self.disks.get(&key).map_or([0; BLOCK_BYTES], |block| **block);
                            *self.memory.bytes_mut(page) = bytes;
                        }
                        IoOp::Flush => unreachable!("a flush has no blocks"),
                    }
                }
                let result = match unread {
                    0 => Ok(()),
                    blocks => Err(IoFault::Unreadable { blocks, errno: 5 }),
                };
                let done = IoDone { slot: request.slot, result };
                self.with(now, |group, turn| group.on_io(turn, executor, done));
            }
        }
        self.drain_metadata(now);
        std::iter::from_fn(|| self.out.to_link.pop()).collect()
    }

    fn drain_metadata(&mut self, now: Nanos) {
        while let Some(MetadataRequest { slot, op }) = self.out.to_metadata.pop() {
            let page = |index| self.tables.metadata_io.page(slot, index);
            let Marked { base, pages } = &mut self.marks;
            let answer = match op {
                MetadataOp::LoadMarks { volume, chunk } => {
                    let found = pages.range((volume.0, chunk)..).next();
                    let found = found.map(|(_, found)| *self.memory.bytes_mut(page(0)) = **found).is_some();
                    MetadataAnswer::Marks { base: *base, found }
                }
                MetadataOp::SaveMarks { base: begins, pages: count } => {
                    *base = Some(begins);
                    for index in 1..=count as usize {
                        let saved = Box::new(*self.memory.bytes(page(index)));
                        let (volume, chunk, _) = take_marks(&saved).expect("a page of marks");
                        pages.insert((volume.0, chunk), saved);
                    }
                    MetadataAnswer::Saved
                }
                MetadataOp::DropMarks => {
                    self.marks = Marked::default();
                    MetadataAnswer::Saved
                }
                MetadataOp::Check => MetadataAnswer::Checked { entries: 0 },
                op => panic!("nobody asks for {op:?} here"),
            };
            self.with(now, |group, turn| group.on_metadata(turn, MetadataDone { slot, result: Ok(answer) }));
        }
    }

    /// What the link would deliver to `self` for what the peer sent.
    fn receive(&mut self, now: Nanos, peer: &mut Site, message: ToLink) {
        let delivered = match message {
            ToLink::Begin { .. } => return,
            ToLink::Close => panic!("{:?} closed the link", peer.config.role),
            ToLink::Control(control) => FromLink::Control(control),
            ToLink::Page { frame, page, length } => {
                let to = self.link_pages.pop().expect("granted");
                *self.memory.bytes_mut(to) = *peer.memory.bytes(page);
                peer.with(now, |group, turn| group.on_link(turn, FromLink::PageReturned { page }));
                FromLink::Page { frame, page: to, length }
            }
            ToLink::Update { update, settled, slot, source, .. } => {
                self.inbound_row = (self.inbound_row + 1) % (2 * LINK_INBOUND_SLOTS as u32);
                let table = match source {
                    UpdateSource::Window => &peer.tables.window,
                    UpdateSource::CatchUp | UpdateSource::Copy => &peer.tables.catch_up,
                };
                for index in 0..update.payload_blocks() {
                    let page = self.link_pages.pop().expect("granted");
                    *self.memory.bytes_mut(page) = *peer.memory.bytes(table.page(SlotId(slot), index));
                    let sum = sum_of_block(self.memory.bytes(page));
                    self.tables.inbound.set(SlotId(self.inbound_row), index, page, sum);
                }
                let consumed =
                    FromLink::Consumed { number: update.number, slot, source, popped_at: now, sent_at: now };
                peer.with(now, |group, turn| group.on_link(turn, consumed));
                FromLink::Update { update, settled, slot: SlotId(self.inbound_row), with_old: false }
            }
        };
        self.with(now, |group, turn| group.on_link(turn, delivered));
    }

    /// An update of as many blocks as there may be, as the peer might send it, with nothing settled.
    fn receive_write(&mut self, now: Nanos, number: UpdateNumber, generation: Generation) {
        let row = SlotId(number.0 as u32 % LINK_INBOUND_SLOTS as u32);
        let sums: Vec<BlockSum> = (0..UPDATE_BLOCKS_MAX)
            .map(|index| {
                let page = self.link_pages.pop().expect("granted");
                self.memory.bytes_mut(page).fill(number.0 as u8);
                let sum = sum_of_block(self.memory.bytes(page));
                self.tables.inbound.set(row, index, page, sum);
                sum
            })
            .collect();
        let update = Update {
            number,
            generation,
            lba: Lba(number.0 * UPDATE_BLOCKS_MAX as u64 % VOLUME_BLOCKS),
            count: UPDATE_BLOCKS_MAX as u32,
            sum: sum_of_sums(sums.into_iter()),
            kind: UpdateKind::Write,
            ..Update::EMPTY
        };
        let message = FromLink::Update { update, settled: UpdateNumber::NONE, slot: row, with_old: false };
        self.with(now, |group, turn| group.on_link(turn, message));
    }

    fn request(&mut self, now: Nanos, ticket: u32, op: HostOp) {
        let request = HostRequest {
            ticket: SlotId(ticket),
            volume: VolumeId(0),
            snapshot: UpdateNumber::NONE,
            of_primary: false,
            op,
            received_at: now,
        };
        self.with(now, |group, turn| group.on_host(turn, 0, request));
    }

    fn write(&mut self, now: Nanos, ticket: u32, lba: u64, fill: u8, fua: bool) {
        let page = self.front_pages.pop().expect("granted");
        self.memory.bytes_mut(page).fill(fill);
        let sum = sum_of_block(self.memory.bytes(page));
        self.tables.fronts[0].set(SlotId(ticket), 0, page, sum);
        self.request(now, ticket, HostOp::Write { lba: Lba(lba), count: 1, fua });
    }
}

struct Pair {
    now: Nanos,
    sites: [Site; 2],
}

impl Pair {
    fn connect(&mut self, connection: u32) {
        for site in &mut self.sites {
            site.with(self.now, |group, turn| group.on_link(turn, FromLink::Connected { connection }));
        }
    }

    fn step(&mut self) {
        self.now = self.now.plus(Nanos::from_micros(200));
        let now = self.now;
        let [a, b] = &mut self.sites;
        for (site, peer) in [(0, 1), (1, 0)] {
            let (from, to) = if site < peer { (&mut *a, &mut *b) } else { (&mut *b, &mut *a) };
            from.with(now, |group, turn| group.end_turn(turn));
            for message in from.drain(now) {
                to.receive(now, from, message);
            }
        }
    }

    fn run_until(&mut self, what: &str, mut done: impl FnMut(&Pair) -> bool) {
        for _ in 0..200_000 {
            if done(self) {
                return;
            }
            self.step();
        }
        let status = self.sites.each_ref().map(|site| site.group.status(self.now));
        panic!("never: {what}: {status:#?}");
    }

    fn reply(&mut self, site: usize, ticket: u32) -> Result<(), HostError> {
        let is = move |reply: &HostReply| reply.ticket == SlotId(ticket);
        self.run_until("a reply", |pair| pair.sites[site].replies.iter().any(is));
        let at = self.sites[site].replies.iter().position(is).expect("it is there");
        self.sites[site].replies.swap_remove(at).result
    }

    fn read(&mut self, site: usize, lba: u64) -> u8 {
        let now = self.now;
        let page = self.sites[site].front_pages.pop().expect("granted");
        self.sites[site].tables.fronts[0].set(SlotId(900), 0, page, BlockSum::ZEROS);
        self.sites[site].request(now, 900, HostOp::Read { lba: Lba(lba), count: 1 });
        assert_eq!(self.reply(site, 900), Ok(()), "reading {lba} on site {site}");
        let bytes = *self.sites[site].memory.bytes(page);
        self.sites[site].front_pages.push(page);
        assert!(bytes.iter().all(|byte| *byte == bytes[0]), "block {lba} is torn");
        bytes[0]
    }

    /// Lets everything under way come to its end.
    fn quiet(&mut self) {
        (0..100).for_each(|_| self.step());
        self.settled();
    }

    fn settled(&mut self) {
        self.run_until("all settled on both sites", |pair| {
            let [a, b] = pair.sites.each_ref().map(|site| site.group.status(pair.now));
            a.settled == a.last && b.settled == a.last && b.last == a.last
        });
    }
}

fn pair() -> Pair {
    pair_of([config(Role::Primary, true), config(Role::Secondary, true)])
}

fn pair_of(configs: [GroupConfig; 2]) -> Pair {
    let mut pair = Pair { now: Nanos(0), sites: configs.map(Site::formatted) };
    for site in &mut pair.sites {
        site.with(Nanos(0), |group, turn| group.start(turn));
    }
    pair.connect(1);
    pair.run_until("in sync", |pair| {
        pair.sites.iter().all(|site| site.group.status(pair.now).peer == PeerState::InSync)
    });
    pair.run_until("serving", |pair| pair.sites[0].group.serving());
    pair
}

/// Writes round the journal several times over, then compares both sites block for block.
fn exercise(pair: &mut Pair, expected: &mut HashMap<u64, u8>, rounds: u64, salt: u64) {
    for round in 0..rounds {
        let tickets = 16;
        for ticket in 0..tickets {
            let lba = (round * 31 + ticket * 17 + salt) % VOLUME_BLOCKS;
            let fill = ((round * tickets + ticket + salt) % 250 + 1) as u8;
            let now = pair.now;
            pair.sites[0].write(now, ticket as u32, lba, fill, ticket == 3);
            expected.insert(lba, fill);
        }
        for ticket in 0..tickets {
            assert_eq!(pair.reply(0, ticket as u32), Ok(()));
        }
    }
    pair.settled();
    for lba in 0..VOLUME_BLOCKS {
        let want = expected.get(&lba).copied().unwrap_or(0);
        assert_eq!(pair.read(0, lba), want, "primary block {lba}");
        assert_eq!(pair.read(1, lba), want, "secondary block {lba}");
    }
}

#[test]
fn both_sites_hold_every_write_while_the_ring_wraps() {
    let mut pair = pair();
    let mut expected = HashMap::new();
    exercise(&mut pair, &mut expected, 600, 0);
    let status = pair.sites[0].group.status(pair.now);
    assert!(status.counters.journal_blocks > 2 * status.journal_blocks, "the ring did not wrap: {status:#?}");
    assert!(status.checkpoint > UpdateNumber(5000));
}

#[test]
fn either_site_restarts_from_its_journal() {
    let mut pair = pair();
    let mut expected = HashMap::new();
    for (salt, crashed) in [(1, 0), (2, 1), (3, 0)] {
        exercise(&mut pair, &mut expected, 20, salt);
        let config = pair.sites[crashed].config.clone();
        let disks = std::mem::take(&mut pair.sites[crashed].disks);
        pair.sites[crashed] = Site::started(config, disks);
        let now = pair.now;
        pair.sites[1 - crashed]
            .with(now, |group, turn| group.on_link(turn, FromLink::Disconnected { connection: salt as u32 }));
        pair.sites[crashed].with(now, |group, turn| group.start(turn));
        // A link without pages to receive into would wait for them; this one has none to wait with.
        pair.sites[crashed].with(now, |group, turn| group.end_turn(turn));
        assert!(pair.sites[crashed].drain(now).is_empty());
        pair.connect(salt as u32 + 1);
        pair.run_until("in sync again", |pair| {
            pair.sites.iter().all(|site| {
                let status = site.group.status(pair.now);
                status.peer == PeerState::InSync && status.state == GroupState::Serving
            })
        });
    }
    exercise(&mut pair, &mut expected, 20, 4);
}

/// Only its primary can tell a secondary that what it holds is settled, and its hello comes first.
/// Nothing else may come for seconds, while the peer waits.
#[test]
fn a_peer_that_came_during_recovery_is_greeted_in_the_turn_that_ends_it() {
    let mut pair = pair();
    exercise(&mut pair, &mut HashMap::new(), 4, 3);
    let Pair { now, sites: [_, site] } = pair;
    let mut site = Site::started(site.config, site.disks);
    site.with(now, |group, turn| group.start(turn));
    site.with(now, |group, turn| group.on_link(turn, FromLink::Connected { connection: 2 }));
    for _ in 0..10_000 {
        site.with(now, |group, turn| group.end_turn(turn));
        let recovered = site.group.status(now).state != GroupState::Recovering;
        let sent = site.drain(now);
        if recovered {
            let greets = |message: &ToLink| matches!(message, ToLink::Page { frame: PageFrame::Hello, .. });
            assert!(sent.iter().any(greets), "{sent:?}");
            return;
        }
    }
    panic!("it never recovers: {:#?}", site.group.status(now));
}

#[test]
fn a_secondary_whose_pages_all_hold_unsettled_updates_greets_again_after_a_restart() {
    let secondary = GroupConfig {
        journal_blocks: journal_blocks_min() + 6000,
        flush_interval: Nanos::from_millis(100_000),
        flush_blocks: u64::MAX,
        ..config(Role::Secondary, true)
    };
    let mut pair = pair_of([config(Role::Primary, true), secondary.clone()]);
    pair.quiet();
    let now = pair.now;
    let site = &mut pair.sites[1];
    let mut last = site.group.status(now).last;
    while site.link_pages.len() >= UPDATE_BLOCKS_MAX {
        last = last.next();
        let generation = site.group.status(now).generation;
        site.receive_write(now, last, generation);
        for _ in 0..2 {
            site.with(now, |group, turn| group.end_turn(turn));
            site.drain(now);
        }
    }
    let status = site.group.status(now);
    let kept = status.last;
    assert!(status.journaled == kept && status.settled.0 + 20 < kept.0, "nothing was settled: {status:#?}");
    let disks = std::mem::take(&mut site.disks);
    *site = Site::started(secondary, disks);
    site.with(now, |group, turn| group.start(turn));
    for _ in 0..10_000 {
        site.with(now, |group, turn| group.end_turn(turn));
        site.drain(now);
    }
    let status = site.group.status(now);
    assert!(status.state == GroupState::Serving && status.last == kept, "replay found it: {status:#?}");
    assert!(status.settled < kept);
    pair.sites[0].with(now, |group, turn| group.on_link(turn, FromLink::Disconnected { connection: 1 }));
    pair.connect(2);
    // The primary never had these updates, so what follows the greeting is a cut.
    pair.run_until("in sync again", |pair| {
        pair.sites.iter().all(|site| {
            let status = site.group.status(pair.now);
            status.peer == PeerState::InSync && status.last < kept
        })
    });
    exercise(&mut pair, &mut HashMap::new(), 20, 5);
}

#[test]
fn partial_writes_keep_the_rest_of_their_block_and_zeros_read_as_zeros() {
    let mut pair = pair();
    let now = pair.now;
    pair.sites[0].write(now, 0, 5, 9, true);
    assert_eq!(pair.reply(0, 0), Ok(()));
    let page = pair.sites[0].front_pages.pop().expect("granted");
    pair.sites[0].memory.bytes_mut(page)[512..1024].fill(7);
    pair.sites[0].tables.fronts[0].set(SlotId(1), 0, page, BlockSum::ZEROS);
    let now = pair.now;
    pair.sites[0].request(now, 1, HostOp::WritePartial { lba: Lba(5), offset: 512, length: 512, fua: false });
    assert_eq!(pair.reply(0, 1), Ok(()));
    let now = pair.now;
    pair.sites[0].request(now, 2, HostOp::ZeroPartial { lba: Lba(6), offset: 0, length: 100, fua: false });
    assert_eq!(pair.reply(0, 2), Ok(()));
    let page = pair.sites[0].front_pages.pop().expect("granted");
    pair.sites[0].tables.fronts[0].set(SlotId(3), 0, page, BlockSum::ZEROS);
    let now = pair.now;
    pair.sites[0].request(now, 3, HostOp::Read { lba: Lba(5), count: 1 });
    assert_eq!(pair.reply(0, 3), Ok(()));
    let bytes = pair.sites[0].memory.bytes(page);
    assert!(bytes[..512].iter().all(|b| *b == 9) && bytes[512..1024].iter().all(|b| *b == 7));
    assert!(bytes[1024..].iter().all(|b| *b == 9));
    assert_eq!(pair.read(0, 6), 0);
    let now = pair.now;
    pair.sites[0].request(now, 4, HostOp::Zero { lba: Lba(0), count: 100, fua: true });
    assert_eq!(pair.reply(0, 4), Ok(()));
    pair.settled();
    assert_eq!((pair.read(0, 5), pair.read(1, 5)), (0, 0));
}

#[test]
fn a_request_out_of_range_or_to_a_secondary_is_refused_and_its_pages_come_back() {
    let mut pair = pair();
    pair.quiet();
    let now = pair.now;
    let before = pair.sites[0].group.pages();
    pair.sites[0].write(now, 0, VOLUME_BLOCKS, 1, false);
    assert_eq!(pair.reply(0, 0), Err(HostError::OutOfRange));
    pair.sites[1].write(now, 0, 1, 1, false);
    assert_eq!(pair.reply(1, 0), Err(HostError::ReadOnly));
    pair.sites[0].request(now, 1, HostOp::Read { lba: Lba(u64::MAX), count: 2 });
    assert_eq!(pair.reply(0, 1), Err(HostError::OutOfRange));
    pair.quiet();
    assert_eq!(pair.sites[0].group.pages(), before);
}

#[test]
fn a_primary_alone_stops_with_everything_in_its_volume() {
    let mut site = Site::formatted(config(Role::Primary, false));
    let mut now = Nanos(0);
    site.with(now, |group, turn| group.start(turn));
    for _ in 0..100 {
        now = now.plus(Nanos::from_micros(100));
        site.with(now, |group, turn| group.end_turn(turn));
        site.drain(now);
    }
    for lba in 0..100 {
        site.write(now, lba as u32, lba, 3, false);
    }
    site.with(now, |group, turn| group.end_turn(turn));
    site.drain(now);
    site.with(now, |group, turn| group.stop(turn));
    for _ in 0..1000 {
        now = now.plus(Nanos::from_micros(100));
        site.with(now, |group, turn| group.end_turn(turn));
        site.drain(now);
    }
    assert!(site.group.stopped() && !site.group.failed());
    assert_eq!(site.replies.len(), 100);
    for lba in 0..100 {
        assert_eq!(site.disks[&(IoTarget::Volume(VolumeId(0)), lba)][0], 3);
    }
}

#[test]
fn the_other_site_takes_over_with_every_acknowledged_write_and_the_old_one_follows() {
    let mut pair = pair();
    let mut expected = HashMap::new();
    exercise(&mut pair, &mut expected, 20, 1);
    for (connection, primary) in [(1, 0), (2, 1), (3, 0)] {
        let (now, other) = (pair.now, 1 - primary);
        // One write is acknowledged and not settled, one is in the primary's journal alone.
        pair.sites[primary].write(now, 0, 3, 77 + connection as u8, false);
        assert_eq!(pair.reply(primary, 0), Ok(()));
        pair.sites[primary].write(now, 1, 4, 99, false);
        pair.sites[primary].with(now, |group, turn| group.end_turn(turn));
        pair.sites[primary].drain(now);
        let config = pair.sites[primary].config.clone();
        let disks = std::mem::take(&mut pair.sites[primary].disks);
        pair.sites[primary] = Site::started(config, disks);
        let promote = AdminRequest { id: 1, op: AdminOp::Promote { fenced: true } };
        pair.sites[other].with(now, |group, turn| {
            group.on_link(turn, FromLink::Disconnected { connection });
            group.on_admin(turn, promote);
        });
        pair.run_until("taken over", |pair| {
            let status = pair.sites[other].group.status(pair.now);
            (status.role, status.state) == (Role::Primary, GroupState::Serving)
        });
        assert_eq!(pair.read(other, 3), 77 + connection as u8);
        let now = pair.now;
        pair.sites[other].write(now, 2, 6, 55 + connection as u8, true);
        assert_eq!(pair.reply(other, 2), Ok(()));
        pair.sites[primary].with(now, |group, turn| group.start(turn));
        pair.run_until("recovered", |pair| {
            pair.sites[primary].group.status(pair.now).state != GroupState::Recovering
        });
        pair.connect(connection + 1);
        pair.run_until("in sync again", |pair| {
            pair.sites.iter().all(|site| site.group.status(pair.now).peer == PeerState::InSync)
        });
        pair.settled();
        assert_eq!(pair.sites[primary].group.status(pair.now).role, Role::Secondary);
        for (lba, fill) in [(3, 77 + connection as u8), (4, expected.get(&4).copied().unwrap_or(0))] {
            assert_eq!([pair.read(0, lba), pair.read(1, lba)], [fill, fill], "block {lba}");
        }
        assert_eq!([pair.read(0, 6), pair.read(1, 6)], [55 + connection as u8; 2]);
    }
}

/// Simulator seed 13003: its successor took the old primary's newest update for its own, and had it settled.
#[test]
fn a_primary_that_goes_on_between_two_hellos_greets_again_before_it_follows() {
    let mut pair = pair();
    exercise(&mut pair, &mut HashMap::new(), 20, 1);
    pair.sites.iter_mut().for_each(|site| site.may_refuse = true);
    let now = pair.now;
    for site in &mut pair.sites {
        site.with(now, |group, turn| group.on_link(turn, FromLink::Disconnected { connection: 1 }));
    }
    let promote = AdminRequest { id: 1, op: AdminOp::Promote { fenced: true } };
    pair.sites[1].with(now, |group, turn| group.on_admin(turn, promote));
    pair.run_until("taken over, durably", |pair| {
        let status = pair.sites[1].group.status(pair.now);
        status.role == Role::Primary && status.durable == status.last
    });
    pair.connect(2);
    let (now, [old, new]) = (pair.now, &mut pair.sites);
    let greets = |message: &ToLink| matches!(message, ToLink::Page { frame: PageFrame::Hello, .. });
    old.with(now, |group, turn| group.end_turn(turn));
    let said = old.drain(now);
    assert!(said.iter().any(greets));
    // It still serves its hosts, and numbers what they write.
    old.write(now, 0, 7, 0xee, false);
    old.with(now, |group, turn| group.end_turn(turn));
    assert!(old.drain(now).is_empty());
    said.into_iter().for_each(|message| new.receive(now, old, message));
    new.with(now, |group, turn| group.end_turn(turn));
    let answers = new.drain(now);
    let (hello, stream): (Vec<_>, Vec<_>) = answers.into_iter().partition(greets);
    hello.into_iter().for_each(|message| old.receive(now, new, message));
    old.with(now, |group, turn| group.end_turn(turn));
    assert_eq!(old.drain(now), [ToLink::Close]);
    stream.into_iter().for_each(|message| old.receive(now, new, message));
    for site in &mut pair.sites {
        site.with(now, |group, turn| group.on_link(turn, FromLink::Disconnected { connection: 2 }));
        site.drain(now);
    }
    pair.connect(3);
    pair.run_until("in sync again", |pair| {
        pair.sites.iter().all(|site| site.group.status(pair.now).peer == PeerState::InSync)
    });
    pair.settled();
    let due = pair.read(1, 7);
    assert!(due != 0xee && pair.read(0, 7) == due);
}

#[test]
fn a_switchover_moves_the_primary_there_and_back_on_one_connection() {
    let mut pair = pair();
    let mut expected = HashMap::new();
    exercise(&mut pair, &mut expected, 20, 1);
    // Asked at the primary, at the secondary, and so on.
    for (round, asked) in [(1u8, 0), (2, 0), (3, 1), (4, 1)] {
        let (primary, now) = (usize::from(round + 1) % 2, pair.now);
        let other = 1 - primary;
        for ticket in 0..8u32 {
            pair.sites[primary].write(now, ticket, 10 + u64::from(ticket), round + ticket as u8, false);
        }
        for op in [AdminOp::Switchover, AdminOp::HostsGone] {
            let site = if op == AdminOp::Switchover { asked } else { primary };
            pair.step();
            let request = AdminRequest { id: u64::from(round), op };
            pair.sites[site].with(now, |group, turn| group.on_admin(turn, request));
        }
        for ticket in 0..8u32 {
            assert_eq!(pair.reply(primary, ticket), Ok(()), "what was asked before it");
        }
        pair.run_until("switched over", |pair| {
            let status = pair.sites.each_ref().map(|site| site.group.status(pair.now));
            (status[other].role, status[other].state) == (Role::Primary, GroupState::Serving)
                && status[primary].role == Role::Secondary
        });
        assert!(!pair.sites[other].group.status(pair.now).solo);
        pair.run_until("told", |pair| pair.sites[asked].out.to_admin.front().is_some());
        while let Some(reply) = pair.sites[asked].out.to_admin.pop() {
            assert!(reply.result.is_ok(), "{reply:?}");
        }
        while pair.sites[primary].out.to_admin.pop().is_some() {}
        for ticket in 0..8u32 {
            let lba = 10 + u64::from(ticket);
            assert_eq!(pair.read(other, lba), round + ticket as u8);
            expected.insert(lba, round + ticket as u8);
        }
    }
    // Updates of the two generations beside those of the rounds: nothing was copied again.
    exercise(&mut pair, &mut expected, 20, 5);
}
