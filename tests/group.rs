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
/// Volumes that become larger.
#[path = "group/extending.rs"]
mod extending;
/// Blocks that have gone bad.
#[path = "group/mending.rs"]
mod mending;
/// Split brains, and how they end.
#[path = "group/resolve.rs"]
mod resolve;
/// Who is primary.
#[path = "group/roles.rs"]
mod roles;
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
    /// Blocks of which the next read fails.
    unread_once: HashSet<(IoTarget, u64)>,
    /// Nothing that is asked of the journal is answered.
    journal_hangs: bool,
    /// Reads of the journal that are under way, if they are to take their time: they bring what is there at their end.
    slow_reads: Option<Vec<IoRequest>>,
    /// No space is left where it is to be reserved.
    full: bool,
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
            unread_once: HashSet::new(),
            journal_hangs: false,
            slow_reads: None,
            full: false,
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

    /// It dies: there is another one with the same disks, which is not started yet.
    /// The blocks of its journal's ring.
    fn ring(&self) -> impl Iterator<Item = (IoTarget, u64)> + use<> {
        (SUPERBLOCK_SLOTS..self.config.journal_blocks).map(|block| (IoTarget::Journal, block))
    }

    fn die(&mut self) {
        let (disks, marks) = (std::mem::take(&mut self.disks), std::mem::take(&mut self.marks));
        let may_refuse = self.may_refuse;
        *self = Site { marks, may_refuse, ..Site::started(self.config.clone(), disks) };
    }

    /// Reads of the journal that took their time come to an end.
    fn end_slow_reads(&mut self) {
        for request in self.slow_reads.take().into_iter().flatten() {
            self.out.to_journal.push(request);
        }
    }

    /// A bit of a block of its volume flips.
    fn flip(&mut self, lba: u64) {
        let block = self.disks.entry(key(lba)).or_insert_with(|| Box::new([0; BLOCK_BYTES]));
        block[lba as usize % BLOCK_BYTES] ^= 0x10;
    }

    /// Whether its volume has a block that can be read, full of this.
    fn holds(&self, lba: u64, fill: u8) -> bool {
        let block = self.disks.get(&key(lba));
        !self.unreadable.contains(&key(lba))
            && block.map_or(fill == 0, |block| block.iter().all(|byte| *byte == fill))
    }

    fn with<R>(&mut self, now: Nanos, call: impl FnOnce(&mut Group, &mut Turn<Pages>) -> R) -> R {
        let Site { group, memory, tables, out, .. } = self;
        call(group, &mut Turn { now, memory, tables, out })
    }

    /// So many turns of a site alone.
    fn turns(&mut self, now: &mut Nanos, count: usize) {
        for _ in 0..count {
            *now = now.plus(Nanos::from_micros(100));
            self.with(*now, |group, turn| group.end_turn(turn));
            self.drain(*now);
        }
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
            while !(executor == Executor::Journal && self.journal_hangs) {
                let queue = match executor {
                    Executor::Journal => &mut self.out.to_journal,
                    Executor::Volumes => &mut self.out.to_volumes,
                };
                let Some(request) = queue.pop() else { break };
                self.requests.push((request.target, request.op));
                if let Some(under_way) = &mut self.slow_reads
                    && (request.target, request.op) == (IoTarget::Journal, IoOp::Read)
                {
                    under_way.push(request);
                    continue;
                }
                let table = match executor {
                    Executor::Journal => &self.tables.journal_io,
                    Executor::Volumes => &self.tables.volume_io,
                };
                let mut unread = 0;
                let paged = if request.op.has_pages() { request.count as usize } else { 0 };
                for index in 0..paged {
                    let page = table.page(request.slot, index);
                    let key = (request.target, request.block + index as u64);
                    match request.op {
                        IoOp::Write => {
                            self.unreadable.remove(&key);
                            self.disks.insert(key, Box::new(*self.memory.bytes(page)));
                        }
                        IoOp::Read if self.unreadable.contains(&key) || self.unread_once.remove(&key) => {
                            unread |= 1 << index;
                        }
                        IoOp::Read => {
                            let bytes = self.disks.get(&key).map_or([0; BLOCK_BYTES], |block| **block);
                            *self.memory.bytes_mut(page) = bytes;
                        }
                        IoOp::Flush | IoOp::Reserve => unreachable!("it has no pages"),
                    }
                }
                let result = match unread {
                    0 if request.op == IoOp::Reserve && self.full => Err(IoFault::Errno(28)),
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

    /// Asks for blocks, and returns the pages that they are to come into.
    fn begin_read(&mut self, now: Nanos, ticket: u32, lba: u64, count: u32) -> Vec<PageId> {
        let pages: Vec<PageId> = (0..count).map(|_| self.front_pages.pop().expect("granted")).collect();
        for (index, page) in pages.iter().enumerate() {
            self.tables.fronts[0].set(SlotId(ticket), index, *page, BlockSum::ZEROS);
        }
        self.request(now, ticket, HostOp::Read { lba: Lba(lba), count });
        pages
    }

    /// The first byte of each block that was read, and whether all are like that.
    fn end_read(&mut self, pages: Vec<PageId>) -> Vec<(u8, bool)> {
        let seen = |page: &PageId| {
            let bytes = self.memory.bytes(*page);
            (bytes[0], bytes.iter().all(|byte| *byte == bytes[0]))
        };
        let seen = pages.iter().map(seen).collect();
        self.front_pages.extend(pages);
        seen
    }

    fn write(&mut self, now: Nanos, ticket: u32, lba: u64, fill: u8, fua: bool) {
        let page = self.front_pages.pop().expect("granted");
        self.memory.bytes_mut(page).fill(fill);
        let sum = sum_of_block(self.memory.bytes(page));
        self.tables.fronts[0].set(SlotId(ticket), 0, page, sum);
        self.request(now, ticket, HostOp::Write { lba: Lba(lba), count: 1, fua });
    }
}

/// A block of the volume, on a site's disks.
fn key(lba: u64) -> (IoTarget, u64) {
    (IoTarget::Volume(VolumeId(0)), lba)
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

    fn disconnect(&mut self, connection: u32) {
        for site in &mut self.sites {
            site.with(self.now, |group, turn| group.on_link(turn, FromLink::Disconnected { connection }));
        }
    }

    /// A site dies, and starts again. What is connected next is up to the caller.
    fn restart(&mut self, site: usize, connection: u32) {
        self.sites[site].die();
        let now = self.now;
        let lost = FromLink::Disconnected { connection };
        self.sites[1 - site].with(now, |group, turn| group.on_link(turn, lost));
        self.sites[site].with(now, |group, turn| group.start(turn));
        // A link without pages to receive into would wait for them; this one has none to wait with.
        self.sites[site].with(now, |group, turn| group.end_turn(turn));
        assert!(self.sites[site].drain(now).is_empty());
    }

    fn in_sync(&mut self) {
        self.run_until("in sync again", |pair| {
            pair.sites.iter().all(|site| {
                let status = site.group.status(pair.now);
                status.peer == PeerState::InSync && status.state == GroupState::Serving
            })
        });
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
        let pages = self.sites[site].begin_read(self.now, 900, lba, 1);
        assert_eq!(self.reply(site, 900), Ok(()), "reading {lba} on site {site}");
        let (fill, whole) = self.sites[site].end_read(pages)[0];
        assert!(whole, "block {lba} is torn");
        fill
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
        pair.restart(crashed, salt as u32);
        pair.connect(salt as u32 + 1);
        pair.in_sync();
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
    let mut pair = pair_of([config(Role::Primary, true), secondary]);
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
    site.die();
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
    site.turns(&mut now, 100);
    for lba in 0..100 {
        site.write(now, lba as u32, lba, 3, false);
    }
    site.with(now, |group, turn| group.end_turn(turn));
    site.drain(now);
    site.with(now, |group, turn| group.stop(turn));
    site.turns(&mut now, 1000);
    assert!(site.group.stopped() && !site.group.failed());
    assert_eq!(site.replies.len(), 100);
    for lba in 0..100 {
        assert_eq!(site.disks[&(IoTarget::Volume(VolumeId(0)), lba)][0], 3);
    }
}

/// A set of a time when the site had a peer lacks what it changes without one, so a peer that comes later must not be copied by it.
#[test]
fn a_site_that_starts_without_its_peer_forgets_what_that_lacked() {
    let mut site = Site::formatted(config(Role::Primary, false));
    site.marks.base = Some(UpdateNumber(1));
    site.die();
    let mut now = Nanos(0);
    site.with(now, |group, turn| group.start(turn));
    site.turns(&mut now, 100);
    site.write(now, 0, 5, 3, false);
    site.group.want_sweep();
    site.turns(&mut now, 300);
    let status = site.group.status(now);
    assert!(status.checkpoint >= UpdateNumber(2) && status.checkpoint == status.last, "{status:#?}");
    assert_eq!(site.marks.base, None);
}
