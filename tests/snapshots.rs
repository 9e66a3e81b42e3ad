//! Snapshots of one site over perfect disks and its real management information: what the simulator's operations do not come to.

use std::collections::HashMap;

use lockstep::base::*;
use lockstep::core::config::*;
use lockstep::core::group::{Group, PAGES_MIN, Turn};
use lockstep::core::journal::journal_blocks_min;
use lockstep::core::messages::*;
use lockstep::core::outbox::{Event, Outbox, Tables};
use lockstep::format::metadata::Captured;
use lockstep::format::snapshot::SnapshotName;
use lockstep::format::superblock::{SUPERBLOCK_SLOTS, Superblock};
use lockstep::format::tables::{TablesKind, entry_at, header_of, record_at};
use lockstep::format::wire::{Hello, Refusal, RefusalCode};
use lockstep::io::metadata::{Metadata, RequestPages, SiteRecord, Store};

/// What snapshots keep, lent to a peer that has lost it.
#[path = "snapshots/lending.rs"]
mod lending;
/// What snapshots keep, scrubbed.
#[path = "snapshots/scrub.rs"]
mod scrub;

type Block = Box<[u8; BLOCK_BYTES]>;

struct Pages(Vec<Block>);

impl Memory for Pages {
    fn bytes(&self, page: PageId) -> &[u8; BLOCK_BYTES] {
        &self.0[page.0 as usize]
    }
    fn bytes_mut(&mut self, page: PageId) -> &mut [u8; BLOCK_BYTES] {
        assert!(page != PageId::ZERO, "the page of zeros is nobody's to write");
        &mut self.0[page.0 as usize]
    }
    fn seal(&mut self, _page: PageId) {}
    fn reopen(&mut self, _page: PageId) {}
}

struct Row<'a>(SlotId, &'a Tables, &'a mut Pages);

impl RequestPages for Row<'_> {
    fn answer(&mut self) -> &mut [u8; BLOCK_BYTES] {
        self.2.bytes_mut(self.1.metadata_io.page(self.0, 0))
    }
    fn page(&self, index: usize) -> &[u8; BLOCK_BYTES] {
        self.2.bytes(self.1.metadata_io.page(self.0, index))
    }
}

const VOLUME_BLOCKS: u64 = 1500;
const VOLUME: VolumeId = VolumeId(0);

/// What survives the process.
struct Durable {
    disks: HashMap<(IoTarget, u64), Block>,
    store: Store,
    folder: tempfile::TempDir,
}

struct Site {
    group: Group,
    config: GroupConfig,
    memory: Pages,
    tables: Tables,
    out: Outbox,
    durable: Durable,
    front_pages: Vec<PageId>,
    replies: Vec<HostReply>,
    answers: Vec<AdminReply>,
    events: Vec<Event>,
    /// What goes to the peer, and the pages that what comes from it may take.
    sent: Vec<ToLink>,
    link_pages: Vec<PageId>,
    now: Nanos,
    /// Blocks that have gone bad are no mistake.
    rots: bool,
}

fn config(differential_blocks: u64, on_differential_full: OnDifferentialFull) -> GroupConfig {
    GroupConfig {
        group: GroupId(7),
        site: SiteId(1),
        role: Role::Primary,
        peer: None,
        third: None,
        sources: Vec::new(),
        resync: ResyncConfig::NONE,
        volumes: vec![VolumeSpec { name: "a".into(), blocks: VOLUME_BLOCKS }],
        journal_blocks: journal_blocks_min() + 6000,
        differential_blocks,
        on_differential_full,
        differential: DifferentialBy::Reference,
        journal_volatile: true,
        pages: PAGES_MIN + 12_000,
        ack: AckLevel::Journaled,
        host_deadline: Nanos::from_millis(5000),
        flush_interval: Nanos::from_millis(2),
        flush_blocks: 1000,
        destage_depth_max: 16,
        warm_up: false,
        fronts: 1,
    }
}

fn record_of(config: &GroupConfig) -> SiteRecord {
    SiteRecord {
        group: "group".into(),
        site: "site".into(),
        id: config.site,
        journal_blocks: config.journal_blocks,
        differential_blocks: config.differential_blocks,
        volumes: config.volumes.clone(),
    }
}

impl Site {
    fn new(differential_blocks: u64, on_differential_full: OnDifferentialFull) -> Site {
        let config = config(differential_blocks, on_differential_full);
        let mut disks = HashMap::new();
        for sequence in 0..SUPERBLOCK_SLOTS {
            let superblock = Superblock::formatted(
                config.group,
                config.site,
                config.role,
                sequence,
                config.journal_blocks,
                &[VOLUME_BLOCKS],
            );
            let mut block = Box::new([0; BLOCK_BYTES]);
            superblock.encode(&mut block);
            disks.insert((IoTarget::Journal, superblock.slot()), block);
        }
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("metadata.redb");
        let metadata = Metadata::create(&path, &record_of(&config)).expect("created");
        Site::start(config, Durable { disks, store: metadata.into_store(), folder })
    }

    fn start(config: GroupConfig, durable: Durable) -> Site {
        let mut site = Site {
            group: Group::new(config.clone()),
            memory: Pages((0..config.pages).map(|_| Box::new([0; BLOCK_BYTES])).collect()),
            tables: Tables::new(1),
            out: Outbox::new(1),
            durable,
            front_pages: Vec::new(),
            replies: Vec::new(),
            answers: Vec::new(),
            events: Vec::new(),
            sent: Vec::new(),
            link_pages: Vec::new(),
            now: Nanos(0),
            rots: false,
            config,
        };
        site.with(|group, turn| group.start(turn));
        if site.config.peer.is_none() {
            site.run_until("serving", |site| site.group.serving());
        }
        site
    }

    /// The process dies and starts again.
    fn crash(self) -> Site {
        Site::start(self.config, self.durable)
    }

    fn with<R>(&mut self, call: impl FnOnce(&mut Group, &mut Turn<Pages>) -> R) -> R {
        let Site { group, memory, tables, out, now, .. } = self;
        call(group, &mut Turn { now: *now, memory, tables, out })
    }

    fn step(&mut self) {
        self.now = self.now.plus(Nanos::from_micros(200));
        self.with(|group, turn| group.end_turn(turn));
        while let Some(event) = self.out.events.pop() {
            let bad = matches!(
                event,
                Event::Failed { .. }
                    | Event::MetadataFailed { .. }
                    | Event::ChecksumMismatch { .. }
                    | Event::SnapshotMismatch { .. }
            );
            assert!(!bad || self.rots, "{event:?}");
            self.events.push(event);
        }
        while self.out.stamps.pop().is_some() {}
        self.link_pages.extend(std::iter::from_fn(|| self.out.link_pages.pop()));
        self.sent.extend(std::iter::from_fn(|| self.out.to_link.pop()));
        self.front_pages.extend(std::iter::from_fn(|| self.out.front_pages[0].pop()));
        self.replies.extend(std::iter::from_fn(|| self.out.to_front[0].pop()));
        self.answers.extend(std::iter::from_fn(|| self.out.to_admin.pop()));
        while let Some(request) = self.out.to_journal.pop() {
            self.perform(Executor::Journal, request);
        }
        while let Some(request) = self.out.to_volumes.pop() {
            self.perform(Executor::Volumes, request);
        }
        while let Some(request) = self.out.to_metadata.pop() {
            let mut row = Row(request.slot, &self.tables, &mut self.memory);
            let result = self.durable.store.perform(&request.op, &mut row).map_err(|error| error.fault());
            self.with(|group, turn| {
                group.on_metadata(turn, MetadataDone { slot: request.slot, result });
            });
        }
    }

    fn perform(&mut self, executor: Executor, request: IoRequest) {
        let table = match executor {
            Executor::Journal => &self.tables.journal_io,
            Executor::Volumes => &self.tables.volume_io,
        };
        for index in 0..request.count as usize {
            let page = table.page(request.slot, index);
            let key = (request.target, request.block + index as u64);
            match request.op {
                IoOp::Write => drop(self.durable.disks.insert(key, Box::new(*self.memory.bytes(page)))),
                IoOp::Read => {
                    let bytes = self.durable.disks.get(&key).map_or([0; BLOCK_BYTES], |block| **block);
                    *self.memory.bytes_mut(page) = bytes;
                }
                IoOp::Flush | IoOp::Reserve => unreachable!("it has no pages"),
            }
        }
        self.with(|group, turn| group.on_io(turn, executor, IoDone { slot: request.slot, result: Ok(()) }));
    }

    fn run_until(&mut self, what: &str, mut done: impl FnMut(&Site) -> bool) {
        for _ in 0..100_000 {
            if done(self) {
                return;
            }
            self.step();
        }
        panic!("never: {what}: {:#?}", self.group.status(self.now));
    }

    fn rest(&mut self) {
        self.run_until("at rest", |site| {
            let status = site.group.status(site.now);
            status.checkpoint == status.last && status.captures == 0
        });
        (0..50).for_each(|_| self.step());
    }

    fn ask(&mut self, op: HostOp, snapshot: UpdateNumber) -> Result<(), HostError> {
        let (ticket, received_at) = (SlotId(0), self.now);
        let request = HostRequest { ticket, volume: VOLUME, snapshot, of_primary: false, op, received_at };
        self.with(|group, turn| group.on_host(turn, 0, request));
        self.run_until("a reply", |site| !site.replies.is_empty());
        self.replies.pop().expect("there is one").result
    }

    fn write(&mut self, lba: u64, fills: &[u8]) -> Result<(), HostError> {
        for (index, fill) in fills.iter().enumerate() {
            let page = self.front_pages.pop().expect("granted");
            self.memory.bytes_mut(page).fill(*fill);
            let sum = sum_of_block(self.memory.bytes(page));
            self.tables.fronts[0].set(SlotId(0), index, page, sum);
        }
        self.ask(HostOp::Write { lba: Lba(lba), count: fills.len() as u32, fua: false }, UpdateNumber::NONE)
    }

    fn zero(&mut self, lba: u64, count: u32) -> Result<(), HostError> {
        self.ask(HostOp::Zero { lba: Lba(lba), count, fua: false }, UpdateNumber::NONE)
    }

    /// The first byte of each block, and that each is of one piece.
    fn read(&mut self, snapshot: UpdateNumber, lba: u64, count: usize) -> Vec<u8> {
        let mut fills = Vec::new();
        for first in (0..count).step_by(UPDATE_BLOCKS_MAX) {
            let part = UPDATE_BLOCKS_MAX.min(count - first);
            let pages: Vec<PageId> = (0..part).map(|_| self.front_pages.pop().expect("granted")).collect();
            for (index, page) in pages.iter().enumerate() {
                self.tables.fronts[0].set(SlotId(0), index, *page, BlockSum::ZEROS);
            }
            let op = HostOp::Read { lba: Lba(lba + first as u64), count: part as u32 };
            assert_eq!(self.ask(op, snapshot), Ok(()), "reading {lba} of {snapshot}");
            for page in &pages {
                let bytes = self.memory.bytes(*page);
                assert!(bytes.iter().all(|byte| *byte == bytes[0]), "a torn block");
                fills.push(bytes[0]);
            }
            self.front_pages.extend(pages);
        }
        fills
    }

    fn administer(&mut self, op: AdminOp) -> Result<UpdateNumber, AdminError> {
        self.with(|group, turn| group.on_admin(turn, AdminRequest { id: 5, op }));
        self.run_until("an answer", |site| !site.answers.is_empty());
        self.answers.pop().expect("there is one").result
    }

    fn create(&mut self, name: &str, protected: bool) -> Result<UpdateNumber, AdminError> {
        let (name, volumes) = (SnapshotName::new(name), VolumeSet(1));
        self.administer(AdminOp::CreateSnapshot { name, volumes, protected, taken_at_ns: 0 })
    }

    fn delete(&mut self, snapshot: UpdateNumber) -> Result<UpdateNumber, AdminError> {
        self.administer(AdminOp::DeleteSnapshot { snapshot })
    }

    fn used(&self) -> u64 {
        self.group.status(self.now).differential_used_blocks
    }
}

const LIVE: UpdateNumber = UpdateNumber::NONE;

#[test]
fn an_operation_is_cut_where_capturing_begins_and_ends() {
    let mut site = Site::new(4000, OnDifferentialFull::Error);
    let before: Vec<u8> = (0..1200u32).map(|index| (index % 250 + 1) as u8).collect();
    for (index, fills) in before.chunks(UPDATE_BLOCKS_MAX).enumerate() {
        site.write((index * UPDATE_BLOCKS_MAX) as u64, fills).expect("written");
    }
    site.rest();
    let snapshot = site.create("first", false).expect("taken");
    // Every third block is overwritten, so what is left to capture comes in pieces.
    for lba in (0..1000).step_by(3) {
        site.write(lba, &[255]).expect("written");
    }
    let last = site.group.status(site.now).last.0;
    site.zero(0, 1024).expect("zeroed");
    let updates = site.group.status(site.now).last.0 - last;
    assert!(updates > 600, "{updates} updates");
    site.write(1020, &[9; 32]).expect("written");
    assert_eq!(site.read(snapshot, 0, 1200), before, "from pending captures");
    site.rest();
    assert_eq!(site.used(), 1052);
    assert_eq!(site.read(snapshot, 0, 1200), before, "from the differential volume");
    assert_eq!(site.read(LIVE, 0, 1020), [0; 1020]);
    let mut site = site.crash();
    assert_eq!(site.read(snapshot, 0, 1200), before, "after a crash");
    assert_eq!(site.used(), 1052);
}

#[test]
fn what_is_pending_at_a_crash_is_captured_again() {
    let mut site = Site::new(4000, OnDifferentialFull::Error);
    site.write(0, &[1; 32]).expect("written");
    site.rest();
    let first = site.create("first", false).expect("taken");
    site.write(0, &[2; 8]).expect("written");
    let second = site.create("second", false).expect("taken");
    site.write(4, &[3; 8]).expect("written");
    assert_eq!(site.group.status(site.now).captures, 16);
    let mut site = site.crash();
    let (ones, mut both) = (vec![1; 32], vec![1; 32]);
    both[..8].fill(2);
    for _ in 0..2 {
        assert_eq!(site.read(first, 0, 32), ones);
        assert_eq!(site.read(second, 0, 32), both);
        site.rest();
    }
    let listed: Vec<_> = site.group.snapshots().map(|(record, readable)| (record.number, readable)).collect();
    assert_eq!(listed, [(first, true), (second, true)]);
}

#[test]
fn space_comes_back_when_nobody_needs_it() {
    let mut site = Site::new(100, OnDifferentialFull::Error);
    site.write(0, &[1; 32]).expect("written");
    let first = site.create("first", false).expect("taken");
    site.write(0, &[2; 16]).expect("written");
    let second = site.create("second", false).expect("taken");
    site.write(8, &[3; 16]).expect("written");
    site.rest();
    assert_eq!(site.used(), 32);
    site.delete(second).expect("deleted");
    site.rest();
    // Blocks 8 to 16 were kept for both; 16 to 24 for the second, and the first needs them.
    site.run_until("reclaimed", |site| site.used() == 24);
    assert_eq!(site.read(first, 0, 32), [1; 32]);
    // After a restart marks are exact, before it some captures are redundant.
    site.write(0, &[4; 24]).expect("written");
    site.rest();
    assert_eq!(site.used(), 24);
    assert_eq!(site.read(first, 0, 32), [1; 32]);
    site.delete(first).expect("deleted");
    site.rest();
    site.run_until("reclaimed", |site| site.used() == 0);
    let refused = site.ask(HostOp::Read { lba: Lba(0), count: 1 }, first);
    assert_eq!(refused, Err(HostError::NoSuchSnapshot));
}

#[test]
fn a_full_differential_volume_refuses_or_gives_up_the_oldest() {
    for (policy, protected) in [
        (OnDifferentialFull::Error, false),
        (OnDifferentialFull::DeleteOldest, true),
        (OnDifferentialFull::DeleteOldest, false),
    ] {
        let mut site = Site::new(40, policy);
        site.write(0, &[1; 32]).expect("written");
        let oldest = site.create("oldest", protected).expect("taken");
        site.write(0, &[2; 32]).expect("written");
        let newest = site.create("newest", true).expect("taken");
        let filling =
            |site: &Site| site.events.iter().any(|e| matches!(e, Event::DifferentialFilling { .. }));
        assert!(filling(&site), "at 80 %");
        let written = site.write(0, &[3; 32]);
        if policy == OnDifferentialFull::Error || protected {
            assert_eq!(written, Err(HostError::NoSpace));
            assert_eq!(site.read(oldest, 0, 32), [1; 32]);
            // What is captured already needs no space.
            site.write(32, &[7; 8]).expect("there are 8 slots");
            assert_eq!(site.write(40, &[7]), Err(HostError::NoSpace));
            site.write(32, &[8; 8]).expect("written");
        } else {
            written.expect("the oldest made room");
            let given_up = |event: &Event| matches!(event, Event::SnapshotGivenUp { snapshot } if snapshot.number == oldest);
            assert!(site.events.iter().any(given_up));
            assert_eq!(
                site.ask(HostOp::Read { lba: Lba(0), count: 1 }, oldest),
                Err(HostError::NoSuchSnapshot)
            );
            site.write(0, &[4; 32]).expect("captured already");
        }
        assert_eq!(site.read(newest, 0, 32), [2; 32]);
    }
}

#[test]
fn administrators_hear_what_is_wrong() {
    let mut site = Site::new(40, OnDifferentialFull::Error);
    let first = site.create("first", false).expect("taken");
    assert_eq!(site.create("first", false), Err(AdminError::NameTaken));
    assert_eq!(site.create("", false), Err(AdminError::NoName));
    let create = |volumes| AdminOp::CreateSnapshot {
        name: SnapshotName::new("other"),
        volumes: VolumeSet(volumes),
        protected: false,
        taken_at_ns: 0,
    };
    assert_eq!(site.administer(create(0)), Err(AdminError::NoSuchVolume));
    assert_eq!(site.administer(create(2)), Err(AdminError::NoSuchVolume));
    assert_eq!(site.delete(UpdateNumber(first.0 + 1)), Err(AdminError::NoSuchSnapshot));
    let deleted = site.delete(first).expect("deleted");
    assert!(deleted > first);
    assert_eq!(site.delete(first), Err(AdminError::NoSuchSnapshot));
    site.create("first", false).expect("the name is free again");
    for index in 1..SNAPSHOTS_MAX {
        site.create(&format!("number {index}"), false).expect("taken");
    }
    assert_eq!(site.create("one more", false), Err(AdminError::TooMany));
    let mut site = site.crash();
    assert_eq!(site.group.snapshots().count(), SNAPSHOTS_MAX);
    assert_eq!(site.create("one more", false), Err(AdminError::TooMany));
}

/// The blocks that changed after `since` and before `snapshot`, as the site says.
fn changes(site: &mut Site, since: UpdateNumber, snapshot: UpdateNumber, count: u64) -> Vec<u64> {
    let page = site.front_pages.pop().expect("granted");
    site.tables.fronts[0].set(SlotId(0), 0, page, BlockSum::ZEROS);
    let op = HostOp::Changes { since, lba: Lba(0), count: count as u32 };
    assert_eq!(site.ask(op, snapshot), Ok(()), "changes from {since} to {snapshot}");
    let bits = *site.memory.bytes(page);
    site.front_pages.push(page);
    (0..count).filter(|bit| bits[(bit / 8) as usize] >> (bit % 8) & 1 == 1).collect()
}

#[test]
fn what_changed_between_two_snapshots_is_told_exactly() {
    const BLOCKS: u64 = 48;
    for seed in 1..=8u64 {
        let mut site = Site::new(4000, OnDifferentialFull::Error);
        let mut state = seed;
        let mut random = |below: u64| {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            (state >> 33) % below
        };
        let mut changed_at: Vec<Vec<u64>> = vec![Vec::new(); BLOCKS as usize];
        let mut living: Vec<UpdateNumber> = Vec::new();
        for step in 0..120u64 {
            match random(10) {
                0 | 1 => living.push(site.create(&format!("{step}"), false).expect("taken")),
                2 if living.len() > 2 => {
                    let gone = living.remove(random(living.len() as u64) as usize);
                    site.delete(gone).expect("deleted");
                }
                3 if random(4) == 0 => site = site.crash(),
                4 if random(2) == 0 => site.rest(),
                kind => {
                    let count = 1 + random(6);
                    let lba = random(BLOCKS - count);
                    match kind {
                        5 => site.zero(lba, count as u32).expect("zeroed"),
                        _ => site.write(lba, &vec![step as u8; count as usize]).expect("written"),
                    }
                    let number = site.group.status(site.now).last.0;
                    (lba..lba + count).for_each(|block| changed_at[block as usize].push(number));
                }
            }
            if step % 10 != 9 {
                continue;
            }
            for (index, &since) in living.iter().enumerate() {
                let later = living[index..].iter().copied();
                for snapshot in later.chain([LIVE]) {
                    let end = if snapshot == LIVE { u64::MAX } else { snapshot.0 };
                    let between = |number: &u64| *number > since.0 && *number < end;
                    let due = (0..BLOCKS).filter(|block| changed_at[*block as usize].iter().any(between));
                    let due: Vec<u64> = due.collect();
                    let told = changes(&mut site, since, snapshot, BLOCKS);
                    assert_eq!(told, due, "seed {seed}, step {step}: from {since} to {snapshot}");
                }
            }
        }
        let (first, last) = (living[0], living[living.len() - 1]);
        let ask = |since| HostOp::Changes { since, lba: Lba(0), count: 1 };
        assert_eq!(site.ask(ask(last), first), Err(HostError::NoSuchSnapshot), "backwards");
        assert_eq!(site.ask(ask(UpdateNumber(last.0 + 1)), LIVE), Err(HostError::NoSuchSnapshot));
        let beyond = HostOp::Changes { since: first, lba: Lba(VOLUME_BLOCKS), count: 1 };
        assert_eq!(site.ask(beyond, LIVE), Err(HostError::OutOfRange));
    }
}

#[test]
fn a_deleted_snapshot_gives_back_what_it_was_said_to_hold() {
    const BLOCKS: u64 = 64;
    for seed in 1..=6u64 {
        let mut site = Site::new(4000, OnDifferentialFull::Error);
        let mut state = seed;
        let mut random = |below: u64| {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            (state >> 33) % below
        };
        let mut living: Vec<UpdateNumber> = Vec::new();
        let mut gave_back = 0;
        for step in 0..160u64 {
            match random(8) {
                0 => living.push(site.create(&format!("{step}"), false).expect("taken")),
                1 if living.len() > 3 => {
                    site.rest();
                    let used = site.group.status(site.now).differential_used_blocks;
                    let gone = living.remove(random(living.len() as u64) as usize);
                    let held = site.durable.store.space().get().of(gone);
                    site.delete(gone).expect("deleted");
                    site.rest();
                    let left = site.group.status(site.now).differential_used_blocks;
                    assert_eq!(used - left, held, "seed {seed}, step {step}: {gone}");
                    gave_back += held;
                }
                2 if random(4) == 0 => {
                    site.rest();
                    let space = site.durable.store.space().get();
                    site = site.crash();
                    assert_eq!(site.durable.store.space().get().alone, space.alone, "counted anew");
                }
                _ => {
                    let count = 1 + random(8);
                    let lba = random(BLOCKS - count);
                    site.write(lba, &vec![step as u8; count as usize]).expect("written");
                }
            }
        }
        assert!(gave_back > 0, "seed {seed}: no snapshot held anything alone");
    }
}

#[test]
fn protection_comes_and_goes_and_survives_a_crash() {
    let mut site = Site::new(40, OnDifferentialFull::DeleteOldest);
    site.write(0, &[1; 32]).expect("written");
    let oldest = site.create("oldest", false).expect("taken");
    site.write(0, &[2; 32]).expect("written");
    site.create("newest", true).expect("taken");
    let protect = |site: &mut Site, snapshot, protected| {
        site.administer(AdminOp::ProtectSnapshot { snapshot, protected })
    };
    let protected =
        |site: &Site| site.group.snapshots().map(|(record, _)| record.protected).collect::<Vec<_>>();
    for settled in [false, true] {
        protect(&mut site, oldest, true).expect("protected");
        if settled {
            site.rest();
        }
        site = site.crash();
        assert_eq!(protected(&site), [true, true], "{settled}");
        assert_eq!(site.write(0, &[3; 32]), Err(HostError::NoSpace));
        protect(&mut site, oldest, false).expect("not any more");
        if settled {
            site.rest();
        }
        site = site.crash();
        assert_eq!(protected(&site), [false, true], "{settled}");
    }
    assert_eq!(protect(&mut site, UpdateNumber(oldest.0 + 1), true), Err(AdminError::NoSuchSnapshot));
    site.write(0, &[3; 32]).expect("the oldest made room");
    assert_eq!(protect(&mut site, oldest, true), Err(AdminError::NoSuchSnapshot), "it is gone");
    // However often somebody changes their mind.
    let newest = site.group.snapshots().next().expect("one is left").0.number;
    for round in 0..3 * SNAPSHOTS_MAX {
        protect(&mut site, newest, round % 2 == 0).expect("changed");
    }
    assert_eq!(protected(&site.crash()), [false]);
}

/// A page that was sent, and how much of it; it comes back.
fn page_sent(site: &mut Site, wanted: PageFrame) -> (Box<[u8; BLOCK_BYTES]>, usize) {
    let found = |message: &ToLink| matches!(message, ToLink::Page { frame, .. } if *frame == wanted);
    site.run_until("a page is sent", |site| site.sent.iter().any(found));
    let at = site.sent.iter().position(found).expect("just seen");
    let ToLink::Page { page, length, .. } = site.sent.remove(at) else { unreachable!("it is a page") };
    let body = Box::new(*site.memory.bytes(page));
    site.with(|group, turn| group.on_link(turn, FromLink::PageReturned { page }));
    (body, usize::from(length))
}

fn peer() -> PeerConfig {
    PeerConfig {
        site: SiteId(2),
        on_peer_loss: OnPeerLoss::Suspend,
        latency_budget: Nanos::from_millis(50),
        heartbeat_interval: Nanos::from_millis(100),
    }
}

/// The tables are closed, one entry's bit flips, and they are open again.
fn damage(site: &mut Site, entry: &Captured) {
    let path = |name: &str| site.durable.folder.path().join(name);
    let placeholder = Metadata::create(&path("placeholder.redb"), &record_of(&site.config)).expect("created");
    drop(std::mem::replace(&mut site.durable.store, placeholder.into_store()));
    let mut bytes = std::fs::read(path("metadata.redb")).expect("read");
    let value = entry.value();
    for at in 0..bytes.len() - value.len() {
        if bytes[at..].starts_with(&value) {
            bytes[at + 3] ^= 2;
        }
    }
    std::fs::write(path("metadata.redb"), bytes).expect("written");
    site.durable.store = Metadata::open(&path("metadata.redb")).expect("opened").into_store();
}

/// A site at rest with a snapshot of three blocks, and the entry of the second.
fn three_kept() -> (Site, UpdateNumber, Captured) {
    let mut site = Site::new(400, OnDifferentialFull::Error);
    site.write(0, &[1, 2, 3]).expect("written");
    let old = site.create("old", false).expect("taken");
    site.write(0, &[7, 8, 9]).expect("written");
    site.rest();
    let of = |((target, _), block): &(&(IoTarget, u64), &Block)| {
        *target == IoTarget::Differential && block[0] == 2
    };
    let (&(_, slot), block) = site.durable.disks.iter().find(of).expect("it is kept");
    let (lba, slot, sum) = (Lba(1), Slot(slot), sum_of_block(block));
    (site, old, Captured { volume: VOLUME, lba, snapshot: old, slot, sum })
}

#[test]
fn a_damaged_entry_fails_the_reads_that_need_it_and_nothing_else() {
    let (mut site, old, entry) = three_kept();
    damage(&mut site, &entry);
    assert_eq!([site.read(old, 0, 1), site.read(old, 2, 1)], [vec![1], vec![3]]);
    let page = site.front_pages.pop().expect("granted");
    site.tables.fronts[0].set(SlotId(0), 0, page, BlockSum::ZEROS);
    let read = HostOp::Read { lba: Lba(1), count: 1 };
    assert_eq!(site.ask(read, old), Err(HostError::Io));
    assert!(site.events.contains(&Event::TablesDamaged), "{:?}", site.events);
    assert_eq!(site.read(LIVE, 0, 3), [7, 8, 9]);
    site.write(1, &[10]).expect("the volume is as it was");
}

#[test]
fn a_site_behind_its_tables_opens_no_generation() {
    for (applied, serves) in [(0, true), (50, false)] {
        let Site { mut config, mut durable, .. } = Site::new(40, OnDifferentialFull::Error);
        let tables = Metadata::create(&durable.folder.path().join("other.redb"), &record_of(&config))
            .expect("created");
        tables.fill(UpdateNumber(applied), &[], &[]).expect("filled");
        durable.store = tables.into_store();
        config.peer = Some(peer());
        let mut site = Site::start(config, durable);
        site.with(|group, turn| group.on_link(turn, FromLink::Connected { connection: 1 }));
        let (body, length) = page_sent(&mut site, PageFrame::Hello);
        let ours = Hello::decode(&body[..length]).expect("a hello");
        let theirs = Hello { site: SiteId(2), role: Role::Secondary, ..ours };
        let page = site.link_pages.pop().expect("granted");
        let length = theirs.encode(site.memory.bytes_mut(page)) as u16;
        let message = FromLink::Page { frame: PageFrame::Hello, page, length };
        site.with(|group, turn| group.on_link(turn, message));
        (0..100).for_each(|_| site.step());
        assert_eq!(site.group.serving(), serves, "tables of #{applied}");
    }
}
