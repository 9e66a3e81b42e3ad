//! One site against disks that stop where the test says and a peer whose every frame the test writes: crash points,
//! misbehaving peers, and room that runs out.

use std::collections::HashMap;

use lockstep::base::*;
use lockstep::core::config::*;
use lockstep::core::group::status::GroupState;
use lockstep::core::group::{Group, PAGES_MIN, Turn};
use lockstep::core::journal::journal_blocks_min;
use lockstep::core::messages::*;
use lockstep::core::outbox::{Event, Outbox, Tables};
use lockstep::format::history::History;
use lockstep::format::snapshot::encode_snapshots;
use lockstep::format::superblock::{SUPERBLOCK_SLOTS, Superblock};
use lockstep::format::update::{Update, UpdateKind};
use lockstep::format::wire::{Hello, HelloVolume, PROTOCOL_MAX, PROTOCOL_MIN, RefusalCode, VolumeName};

/// Differential data by value.
#[path = "adverse/by_value.rs"]
mod by_value;
/// Roles that change as planned.
#[path = "adverse/handover.rs"]
mod handover;
/// Who may read, and who may take over unasked.
#[path = "adverse/lease.rs"]
mod lease;
/// What is lost with a peer or with an earlier life of a site.
#[path = "adverse/lost.rs"]
mod lost;
/// Split brains that are resolved.
#[path = "adverse/resolve.rs"]
mod resolve;
/// Roles that change.
#[path = "adverse/takeover.rs"]
mod takeover;

type Block = Box<[u8; BLOCK_BYTES]>;
type Disks = HashMap<(IoTarget, u64), Block>;

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

/// A request given to a disk, with the data of a write as it was then.
struct Pending {
    executor: Executor,
    request: IoRequest,
    data: Vec<Block>,
}

struct Site {
    now: Nanos,
    group: Group,
    config: GroupConfig,
    memory: Pages,
    tables: Tables,
    out: Outbox,
    disks: Disks,
    pending: Vec<Pending>,
    /// Requests that stay pending, and requests that fail.
    held: fn(&IoRequest) -> bool,
    failing: fn(&IoRequest) -> bool,
    front_pages: Vec<PageId>,
    link_pages: Vec<PageId>,
    replies: Vec<HostReply>,
    events: Vec<Event>,
    sent: Vec<ToLink>,
    connection: u32,
    /// The management information answers nothing.
    metadata_held: bool,
}

const VOLUME_BLOCKS: u64 = 2048;
const US: SiteId = SiteId(1);
const PEER: SiteId = SiteId(2);
/// What the peer's journal has room for while nothing is in it.
const PEER_FREE_BLOCKS: u64 = 700;

fn nothing(_: &IoRequest) -> bool {
    false
}

fn journal_batches(request: &IoRequest) -> bool {
    request.target == IoTarget::Journal && request.op == IoOp::Write && request.block >= SUPERBLOCK_SLOTS
}

fn config(role: Role) -> GroupConfig {
    GroupConfig {
        group: GroupId(7),
        site: US,
        role,
        peer: Some(PeerConfig {
            site: PEER,
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

fn journal_flushes(request: &IoRequest) -> bool {
    request.target == IoTarget::Journal && request.op == IoOp::Flush
}

fn volume_writes(request: &IoRequest) -> bool {
    matches!(request.target, IoTarget::Volume(_)) && request.op == IoOp::Write
}

fn volume_reads(request: &IoRequest) -> bool {
    matches!(request.target, IoTarget::Volume(_)) && request.op == IoOp::Read
}

fn without_peer() -> GroupConfig {
    GroupConfig { peer: None, ..config(Role::Primary) }
}

fn solo(role: Role) -> GroupConfig {
    let mut config = config(role);
    config.peer.as_mut().expect("set above").on_peer_loss = OnPeerLoss::Solo;
    config
}

/// A primary that has acknowledged a write of block 5 alone.
fn alone() -> Site {
    alone_as(solo(Role::Primary))
}

fn alone_as(config: GroupConfig) -> Site {
    let mut site = Site::formatted(config);
    site.connect(&hello(Role::Primary, &[], 0, 0));
    site.turns(20);
    site.ack(1, 1, 1, 0);
    site.disconnect();
    site.turns(20);
    site.write(0, 5, 7);
    site.turns(20);
    assert_eq!(site.reply(0), Some(Ok(())));
    site
}

impl Site {
    fn formatted(config: GroupConfig) -> Site {
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
        Site::started(config, disks, nothing)
    }

    fn started(config: GroupConfig, disks: Disks, held: fn(&IoRequest) -> bool) -> Site {
        let mut site = Site::starting(config, disks, held);
        site.turns(300);
        site
    }

    fn starting(config: GroupConfig, disks: Disks, held: fn(&IoRequest) -> bool) -> Site {
        let mut site = Site {
            now: Nanos(0),
            group: Group::new(config.clone()),
            memory: Pages((0..config.pages).map(|_| Box::new([0; BLOCK_BYTES])).collect()),
            tables: Tables::new(1),
            out: Outbox::new(1),
            disks,
            pending: Vec::new(),
            held,
            failing: nothing,
            front_pages: Vec::new(),
            link_pages: Vec::new(),
            replies: Vec::new(),
            events: Vec::new(),
            sent: Vec::new(),
            connection: 0,
            metadata_held: false,
            config,
        };
        site.with(|group, turn| group.start(turn));
        site
    }

    /// What is on the disks survives; what was pending does not.
    fn crashed(mut self) -> Site {
        self.restarted_holding(nothing)
    }

    /// Crashes and starts again, with disks that keep back what `held` names.
    fn restarted_holding(&mut self, held: fn(&IoRequest) -> bool) -> Site {
        Site::started(self.config.clone(), std::mem::take(&mut self.disks), held)
    }

    fn with<R>(&mut self, call: impl FnOnce(&mut Group, &mut Turn<Pages>) -> R) -> R {
        let Site { now, group, memory, tables, out, .. } = self;
        call(group, &mut Turn { now: *now, memory, tables, out })
    }

    fn turn(&mut self) {
        self.now = self.now.plus(Nanos::from_micros(100));
        self.with(|group, turn| group.end_turn(turn));
        self.drain();
        let held = self.held;
        while let Some(at) = self.pending.iter().position(|pending| !held(&pending.request)) {
            let done = self.pending.remove(at);
            self.complete(done);
            self.drain();
        }
    }

    fn turns(&mut self, count: usize) {
        (0..count).for_each(|_| self.turn());
    }

    fn complete(&mut self, Pending { executor, request, data }: Pending) {
        if (self.failing)(&request) {
            let done = IoDone { slot: request.slot, result: Err(IoFault::Errno(5)) };
            return self.with(|group, turn| group.on_io(turn, executor, done));
        }
        let table = match executor {
            Executor::Journal => &self.tables.journal_io,
            Executor::Volumes => &self.tables.volume_io,
        };
        for index in 0..u64::from(request.count) {
            let key = (request.target, request.block + index);
            match request.op {
                IoOp::Write => drop(self.disks.insert(key, data[index as usize].clone())),
                IoOp::Read => {
                    let bytes = self.disks.get(&key).map_or([0; BLOCK_BYTES], |block| **block);
                    *self.memory.bytes_mut(table.page(request.slot, index as usize)) = bytes;
                }
                IoOp::Flush | IoOp::Reserve => unreachable!("it has no pages"),
            }
        }
        self.with(|group, turn| group.on_io(turn, executor, IoDone { slot: request.slot, result: Ok(()) }));
    }

    fn drain(&mut self) {
        while let Some(event) = self.out.events.pop() {
            self.events.push(event);
        }
        while self.out.stamps.pop().is_some() {}
        while let Some(page) = self.out.front_pages[0].pop() {
            self.front_pages.push(page);
        }
        while let Some(page) = self.out.link_pages.pop() {
            self.link_pages.push(page);
        }
        while let Some(reply) = self.out.to_front[0].pop() {
            self.replies.push(reply);
        }
        for executor in [Executor::Journal, Executor::Volumes] {
            loop {
                let (queue, table) = match executor {
                    Executor::Journal => (&mut self.out.to_journal, &self.tables.journal_io),
                    Executor::Volumes => (&mut self.out.to_volumes, &self.tables.volume_io),
                };
                let Some(request) = queue.pop() else { break };
                let blocks = if request.op == IoOp::Write { request.count as usize } else { 0 };
                let data = (0..blocks)
                    .map(|index| Box::new(*self.memory.bytes(table.page(request.slot, index))))
                    .collect();
                self.pending.push(Pending { executor, request, data });
            }
        }
        // Management information of a site that had no snapshot before, and is not started again with one.
        while !self.metadata_held
            && let Some(MetadataRequest { slot, op }) = self.out.to_metadata.pop()
        {
            let page = self.tables.metadata_io.page(slot, 0);
            let applied = UpdateNumber(0);
            let answer = match op {
                MetadataOp::LoadSnapshots { .. } => {
                    encode_snapshots([].iter(), self.memory.bytes_mut(page));
                    MetadataAnswer::Snapshots { count: 0, total: 0, applied, entries: 0 }
                }
                MetadataOp::Commit { .. } => {
                    self.memory.bytes_mut(page).fill(0);
                    MetadataAnswer::Committed
                }
                MetadataOp::LoadMarks { .. } => MetadataAnswer::Marks { base: None, found: false },
                MetadataOp::SaveMarks { .. } | MetadataOp::DropMarks => MetadataAnswer::Saved,
                op => panic!("nobody asks for {op:?} here"),
            };
            self.with(|group, turn| group.on_metadata(turn, MetadataDone { slot, result: Ok(answer) }));
        }
        while let Some(message) = self.out.to_link.pop() {
            self.sent.push(message);
            match message {
                ToLink::Page { page, .. } => {
                    self.with(|group, turn| group.on_link(turn, FromLink::PageReturned { page }));
                }
                ToLink::Update { update, slot, source, .. } => {
                    let (number, now) = (update.number, self.now);
                    let consumed = FromLink::Consumed { number, slot, source, popped_at: now, sent_at: now };
                    self.with(|group, turn| group.on_link(turn, consumed));
                }
                _ => {}
            }
        }
    }

    // -------------------------------------------------------------------------------------------------- the peer

    fn deliver(&mut self, message: FromLink) {
        self.with(|group, turn| group.on_link(turn, message));
    }

    fn connect(&mut self, hello: &Hello) {
        self.connection += 1;
        self.deliver(FromLink::Connected { connection: self.connection });
        self.turn();
        let page = self.link_pages.pop().expect("granted");
        let length = hello.encode(self.memory.bytes_mut(page)) as u16;
        self.deliver(FromLink::Page { frame: PageFrame::Hello, page, length });
        self.turn();
    }

    fn disconnect(&mut self) {
        self.deliver(FromLink::Disconnected { connection: self.connection });
        self.turn();
    }

    fn control(&mut self, control: Control) {
        self.deliver(FromLink::Control(control));
        self.turn();
    }

    fn ack(&mut self, received: u64, journaled: u64, durable: u64, applied: u64) {
        self.ack_hearing([received, journaled, durable, applied], 0);
    }

    fn ack_hearing(&mut self, levels: [u64; 4], heard: u64) {
        let [received, journaled, durable, applied] = levels.map(UpdateNumber);
        // Each update that it has not applied may lie behind a header of its own.
        let journal_free_blocks =
            PEER_FREE_BLOCKS.saturating_sub(2 * received.0.saturating_sub(applied.0)) as u32;
        self.control(Control::Ack {
            received,
            journaled,
            durable,
            applied,
            journal_ns: 1,
            journal_free_blocks,
            heard,
        });
    }

    fn update(&mut self, settled: u64, update: Update, fill: u8) {
        let slot = SlotId((update.number.0 % (2 * LINK_INBOUND_SLOTS) as u64) as u32);
        for index in 0..update.payload_blocks() {
            let page = self.link_pages.pop().expect("granted");
            self.memory.bytes_mut(page).fill(fill);
            let sum = sum_of_block(self.memory.bytes(page));
            self.tables.inbound.set(slot, index, page, sum);
        }
        let sums = (0..update.payload_blocks()).map(|index| self.tables.inbound.sum(slot, index));
        let update =
            Update { sum: if update.kind == UpdateKind::Write { sum_of_sums(sums) } else { 0 }, ..update };
        self.deliver(FromLink::Update { update, settled: UpdateNumber(settled), slot, with_old: false });
        self.turn();
    }

    /// A generation and then writes of one block each, as the peer would send them; returns the last number.
    fn stream(&mut self, settled: u64, first: u64, generation: Generation, lbas: &[u64]) -> u64 {
        let number = UpdateNumber(first);
        let open = Update { number, generation, kind: UpdateKind::GenerationOpen, ..Update::EMPTY };
        self.update(settled, open, 0);
        for (index, &lba) in lbas.iter().enumerate() {
            self.update(settled, write(first + 1 + index as u64, generation, lba, 1), number.0 as u8);
        }
        first + lbas.len() as u64
    }

    fn status(&self) -> lockstep::core::group::status::GroupStatus {
        self.group.status(self.now)
    }

    fn refused_with(&self) -> Option<RefusalCode> {
        self.events.iter().rev().find_map(|event| match event {
            Event::Refused { by_us: true, refusal, .. } => refusal.map(|refusal| refusal.code),
            _ => None,
        })
    }

    // -------------------------------------------------------------------------------------------------- the host

    fn write(&mut self, ticket: u32, lba: u64, fill: u8) {
        let page = self.front_pages.pop().expect("granted");
        self.memory.bytes_mut(page).fill(fill);
        let sum = sum_of_block(self.memory.bytes(page));
        self.tables.fronts[0].set(SlotId(ticket), 0, page, sum);
        self.request(ticket, HostOp::Write { lba: Lba(lba), count: 1, fua: false });
    }

    fn request(&mut self, ticket: u32, op: HostOp) {
        let request = HostRequest {
            ticket: SlotId(ticket),
            volume: VolumeId(0),
            snapshot: UpdateNumber::NONE,
            of_primary: false,
            op,
            received_at: self.now,
        };
        self.with(|group, turn| group.on_host(turn, 0, request));
    }

    /// Asks for a block, which comes into the page.
    fn begin_read(&mut self, ticket: u32, lba: u64) -> PageId {
        let page = self.front_pages.pop().expect("granted");
        self.tables.fronts[0].set(SlotId(ticket), 0, page, BlockSum::ZEROS);
        self.request(ticket, HostOp::Read { lba: Lba(lba), count: 1 });
        page
    }

    fn read(&mut self, ticket: u32, lba: u64) -> Result<u8, HostError> {
        let page = self.begin_read(ticket, lba);
        self.turns(20);
        let byte = self.memory.bytes(page)[0];
        self.front_pages.push(page);
        self.reply(ticket).expect("a read is answered").map(|()| byte)
    }

    fn reply(&mut self, ticket: u32) -> Option<Result<(), HostError>> {
        let at = self.replies.iter().position(|reply| reply.ticket == SlotId(ticket))?;
        Some(self.replies.remove(at).result)
    }
}

fn write(number: u64, generation: Generation, lba: u64, count: u32) -> Update {
    let (number, lba) = (UpdateNumber(number), Lba(lba));
    Update { number, generation, lba, count, kind: UpdateKind::Write, ..Update::EMPTY }
}

/// The hello of a peer in the other role whose stream is `history` up to `last`, all of it durable.
fn hello(ours: Role, history: &[(Generation, u64)], last: u64, settled: u64) -> Hello {
    let mut volumes = [HelloVolume::default(); VOLUMES_MAX];
    volumes[0] = HelloVolume { name: VolumeName::new("a"), blocks: VOLUME_BLOCKS, room: 0 };
    let mut entries = History::default();
    history.iter().for_each(|&(generation, first)| entries.push(generation, UpdateNumber(first)));
    Hello {
        protocol_min: PROTOCOL_MIN,
        protocol_max: PROTOCOL_MAX,
        group: GroupId(7),
        site: PEER,
        role: if ours == Role::Primary { Role::Secondary } else { Role::Primary },
        ack: AckLevel::Journaled,
        block_bytes: BLOCK_BYTES as u32,
        volumes,
        volume_count: 1,
        history: entries,
        last: UpdateNumber(last),
        last_generation: entries.last().map_or(Generation::NONE, |(generation, _)| generation),
        durable: UpdateNumber(last),
        settled: UpdateNumber(settled),
        checkpoint: UpdateNumber(settled),
        journal_free_blocks: PEER_FREE_BLOCKS,
        window_blocks: 8_192,
        differential_blocks: 0,
        alone_upto: UpdateNumber::NONE,
        marks_after: UpdateNumber(u64::MAX),
        gives_way_to: Generation::NONE,
        differential: DifferentialBy::Reference,
        solo: false,
        serving: false,
        alone: false,
        suspends: false,
        // What this peer acknowledges once is enough for a whole test; `lease` has others.
        read_lease: Nanos::from_millis(3_600_000),
    }
}

fn generation(count: u64, site: SiteId) -> Generation {
    (0..count).fold(Generation::NONE, |generation, _| generation.opened_by(site))
}

/// A secondary that follows and has taken generation 1 and `lbas`, of which `settled` is settled.
fn following(settled: u64, lbas: &[u64]) -> Site {
    let mut site = Site::formatted(config(Role::Secondary));
    site.connect(&hello(Role::Secondary, &[], 0, 0));
    let last = site.stream(settled, 1, generation(1, PEER), lbas);
    site.turns(100);
    assert_eq!((site.status().last.0, site.status().settled.0), (last, settled));
    site
}

fn cut_to(keep: u64) -> Control {
    Control::CutTo { keep: UpdateNumber(keep) }
}

#[test]
fn a_cut_drops_every_version_of_a_block() {
    let mut site = following(2, &[5, 9, 9, 5]);
    site.control(cut_to(2));
    site.turns(20);
    assert_eq!(site.status().last, UpdateNumber(2));
    let last = site.stream(2, 3, generation(2, PEER), &[9]);
    site.turns(20);
    site.control(Control::Heartbeat { settled: UpdateNumber(last), sequence: 1 });
    site.turns(100);
    assert_eq!((site.read(0, 5), site.read(1, 9)), (Ok(1), Ok(3)));
}

#[test]
fn a_cut_below_what_settled_while_it_waited_is_refused() {
    let mut site = following(1, &[1, 2]);
    // The cut waits for this write's batch, and meanwhile all before it settles.
    site.held = journal_batches;
    site.update(1, write(4, generation(1, PEER), 3, 1), 7);
    site.control(cut_to(1));
    site.control(Control::Heartbeat { settled: UpdateNumber(3), sequence: 1 });
    assert_eq!(site.status().settled, UpdateNumber(3));
    site.held = nothing;
    site.turns(20);
    assert_eq!(site.refused_with(), Some(RefusalCode::SplitBrain));
    assert_eq!(site.status().last, UpdateNumber(4), "nothing was dropped");
}

#[test]
fn a_full_ring_can_be_cut_and_filled_again() {
    let generation_one = generation(1, PEER);
    let mut site = following(1, &[]);
    let mut last = 1;
    for blocks in [30, 1] {
        let mut before = u64::MAX;
        // Until one waits for room, and then one in whose place a smaller one may still go.
        while before != site.status().journal_used_blocks && site.link_pages.len() > 100 {
            before = site.status().journal_used_blocks;
            site.disconnect();
            site.connect(&hello(Role::Secondary, &[(generation_one, 1)], last, 1));
            last = site.status().last.0;
            site.update(1, write(last + 1, generation_one, last * 32 % 2000, blocks), last as u8);
            site.turns(30);
        }
    }
    let full = site.status();
    assert!(full.journal_used_blocks + 257 + 16 + 1 >= full.journal_blocks, "not full: {full:?}");
    site.disconnect();
    site.connect(&hello(Role::Secondary, &[(generation_one, 1), (generation(2, PEER), 2)], 500, 1));
    site.control(cut_to(1));
    site.turns(100);
    assert_eq!(site.status().last, UpdateNumber(1), "was {full:?}");
    site.turns(500);
    let last = site.stream(1, 2, generation(2, PEER), &[1, 2, 3]);
    site.turns(500);
    assert_eq!(site.status().journaled, UpdateNumber(last), "{:?}", site.status());
}

#[test]
fn an_acknowledgement_after_a_cut_counts_for_no_more_than_what_was_kept() {
    let mut site = Site::formatted(solo(Role::Primary));
    let ours = generation(1, US);
    site.connect(&hello(Role::Primary, &[], 0, 0));
    site.ack(0, 0, 0, 0);
    site.turns(10);
    site.ack(1, 1, 1, 1);
    site.disconnect();
    site.turns(100);
    assert!(site.status().solo);
    // The peer kept a tail of the same generation that this site, alone since 2, does not have.
    let theirs = [(ours, 1), (generation(2, PEER), 2)];
    site.connect(&hello(Role::Primary, &theirs, 9, 1));
    assert!(site.sent.contains(&ToLink::Control(cut_to(1))), "{:?}", site.sent);
    site.write(0, 1, 1);
    site.turns(5);
    site.ack(1, u64::MAX, u64::MAX, u64::MAX);
    site.turns(20);
    let status = site.status();
    assert!(status.peer_durable <= UpdateNumber(1) && status.peer_journaled <= UpdateNumber(1));
}

#[test]
fn a_superblock_names_no_generation_that_a_crash_may_undo() {
    let mut site = Site::formatted(without_peer());
    site.held = volume_writes;
    site.write(0, 1, 5);
    site.turns(50);
    assert_eq!(site.reply(0), Some(Ok(())));
    // The next generation's record stays on its way while a sweep ends with a superblock.
    let mut site = site.restarted_holding(journal_batches);
    let opened = site.status().generation;
    site.turns(11_000);
    assert!(site.events.iter().any(|event| matches!(event, Event::Checkpointed { .. })), "no superblock");
    let mut site = site.crashed();
    assert_eq!(site.status().generation, opened, "the one that was never durable is opened again");
    assert_eq!(site.read(0, 1), Ok(5));
}

#[test]
fn a_generation_is_sent_only_when_no_crash_can_undo_it() {
    let mut site = Site::formatted(config(Role::Primary));
    site.held = journal_flushes;
    site.connect(&hello(Role::Primary, &[], 0, 0));
    site.turns(200);
    let sent = |site: &Site| site.sent.iter().any(|message| matches!(message, ToLink::Update { .. }));
    assert_eq!(site.status().journaled, UpdateNumber(1));
    assert!(!sent(&site), "the peer was sent a generation that this site may yet open again otherwise");
    site.held = nothing;
    site.turns(10);
    assert!(sent(&site));
}

#[test]
fn replay_ends_though_the_peer_connects_meanwhile() {
    let generation = generation(1, PEER);
    let mut site = following(1, &[]);
    site.held = volume_writes;
    let last = WINDOW_UPDATES_MAX as u64 + 5000;
    for first in (2..=last).step_by(200) {
        for number in first..first + 200 {
            let zero = Update { kind: UpdateKind::Zero, ..write(number, generation, number % 64, 1) };
            let settled = UpdateNumber(first - 1);
            site.deliver(FromLink::Update { update: zero, settled, slot: SlotId(0), with_old: false });
        }
        site.turns(30);
    }
    let last = site.status().last.0;
    site.control(Control::Heartbeat { settled: UpdateNumber(last), sequence: 1 });
    site.update(last, Update { kind: UpdateKind::Zero, ..write(last + 1, generation, 1, 1) }, 0);
    site.turns(100);
    let mut site = Site::starting(site.config.clone(), std::mem::take(&mut site.disks), volume_writes);
    site.turns(30);
    assert_eq!(site.status().state, GroupState::Recovering);
    site.deliver(FromLink::Connected { connection: 9 });
    site.turns(600);
    assert_eq!((site.status().state, site.status().last.0), (GroupState::Serving, last + 1));
}

#[test]
fn a_failed_site_refuses_any_number_of_writes() {
    let mut site = Site::formatted(without_peer());
    site.failing = journal_batches;
    for ticket in 0..4000 {
        site.write(ticket % 1000, 1, 1);
        site.turn();
        assert_eq!(site.reply(ticket % 1000), Some(Err(HostError::NotServing)));
    }
}

#[test]
fn hosts_get_their_errors_however_long_the_peer_is_away() {
    let mut site = Site::formatted(GroupConfig { journal_blocks: 50_000, ..config(Role::Primary) });
    site.connect(&hello(Role::Primary, &[], 0, 0));
    site.turns(100);
    site.disconnect();
    for round in 0..20 {
        for ticket in 0..500 {
            assert!(!site.front_pages.is_empty(), "round {round}: no page to receive write {ticket} into");
            site.write(ticket, u64::from(ticket), 1);
            site.turn();
        }
        site.now = site.now.plus(site.config.host_deadline);
        site.turns(2);
        for ticket in 0..500 {
            assert_eq!(site.reply(ticket), Some(Err(HostError::Deadline)));
        }
    }
}

#[test]
fn readers_leave_destage_its_place_on_the_disk() {
    let mut site = Site::formatted(without_peer());
    site.held = volume_writes;
    site.write(0, 1, 1);
    site.turns(50);
    let mut site = site.restarted_holding(volume_reads);
    for ticket in 0..700 {
        let page = site.front_pages.pop().expect("granted");
        site.tables.fronts[0].set(SlotId(ticket), 0, page, BlockSum::ZEROS);
        site.request(ticket, HostOp::Read { lba: Lba(100 + u64::from(ticket)), count: 1 });
    }
    site.write(900, 2, 1);
    site.turns(10_500);
    assert!(site.status().counters.destage_writes > 0);
    assert!(site.status().checkpoint == site.status().settled);
}

#[test]
fn rot_far_below_what_was_durable_is_no_torn_tail() {
    let mut site = Site::formatted(without_peer());
    // The flush takes as long as 40 batches, so those say nothing of each other's durability.
    site.held = |request| journal_flushes(request) || volume_writes(request);
    for number in 0..40 {
        site.write(number, u64::from(number), 1);
        site.turn();
    }
    site.held = volume_writes;
    site.turns(100);
    for number in 40..50 {
        site.write(number, u64::from(number), 1);
        site.turn();
    }
    let checkpoint = site.status().checkpoint;
    let rotten = SUPERBLOCK_SLOTS + 1 + 2 * 10;
    site.disks.get_mut(&(IoTarget::Journal, rotten)).expect("a batch was written there")[300] ^= 1;
    let site = site.crashed();
    assert_eq!(site.status().state, GroupState::Failed, "recovered {} to {}", checkpoint, site.status().last);
    let corrupt = |event: &Event| {
        matches!(event, Event::Failed { target: IoTarget::Journal, fault: IoFault::Corrupt, block }
            if *block == rotten)
    };
    assert!(site.events.iter().any(corrupt), "{:?}", site.events);
}

#[test]
fn what_lies_behind_a_torn_batch_is_no_rot_after_a_cut() {
    let mut site = following(1, &[1, 2, 3, 4, 5]);
    site.held = journal_flushes;
    let ours = generation(1, PEER);
    (7..=12).for_each(|number| site.update(1, write(number, ours, number, 1), 9));
    assert_eq!(site.status().durable, UpdateNumber(6));
    // The disk lost the first of these, and not the others.
    let torn = SUPERBLOCK_SLOTS + 1 + 2 * 5;
    site.disks.insert((IoTarget::Journal, torn), Box::new([0; BLOCK_BYTES]));
    let mut site = site.crashed();
    assert_eq!(site.status().last, UpdateNumber(6));
    site.connect(&hello(Role::Secondary, &[(ours, 1)], 3, 1));
    site.control(cut_to(3));
    site.turns(20);
    let site = site.crashed();
    assert_eq!((site.status().state, site.status().last), (GroupState::Serving, UpdateNumber(3)));
}

#[test]
fn a_peer_that_applies_slowly_is_not_sent_more_than_its_ring_holds() {
    let ours = GroupConfig { journal_blocks: journal_blocks_min(), ..config(Role::Primary) };
    let mut site = Site::formatted(ours);
    let hello = hello(Role::Primary, &[], 0, 0);
    site.connect(&hello);
    // This site destages and checkpoints as it goes; the peer has all of it durable and has applied nothing.
    let mut blocks_sent = 0;
    for round in 0..100 {
        for ticket in 0..20 {
            site.write(ticket, u64::from(ticket) + 20 * round % 1000, 1);
        }
        site.turns(10);
        let last = site.status().last.0;
        site.ack(last, last, last, 0);
        site.turns(200);
        let taken = (0..20).filter(|ticket| site.reply(*ticket).is_some()).count();
        blocks_sent += taken as u64;
        if taken < 20 {
            break;
        }
    }
    let status = site.status();
    assert!(
        status.checkpoint > UpdateNumber(100) && status.journal_used_blocks < PEER_FREE_BLOCKS / 2,
        "{status:?}"
    );
    assert!(2 * blocks_sent <= PEER_FREE_BLOCKS, "{blocks_sent} blocks for room of {PEER_FREE_BLOCKS}");
    for _ in 0..2 {
        let last = site.status().last.0;
        site.ack(last, last, last, last);
        site.turns(50);
    }
    assert_eq!(site.status().operations, 0, "what the peer has applied makes room");
}
