//! The auditor: watches raw disk writes, frames and host operations of both sites, and keeps its own account of what each
//! block holds after each update. It shares nothing with the cores but the meaning of their bytes (`docs/FORMATS.md`).
//!
//! A violation panics with the invariant's name: the run is over and its seed replays it.

pub mod journal;
pub mod site;

use std::collections::BTreeMap;
use std::rc::Rc;

use crate::base::BLOCK_BYTES;
use crate::sim::audit::journal::{
    KIND_GENERATION_OPEN, KIND_SOLO_BEGIN, KIND_SOLO_END, KIND_WRITE, KIND_ZERO, Seen, batch, superblock,
};
use crate::sim::audit::site::Site;
use crate::sim::content::{Block, Print};
use crate::sim::disk::{IoId, Stored};

pub const PRIMARY: usize = 0;
pub const SECONDARY: usize = 1;

/// A file of a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Journal,
    Volume(u16),
    Checksums(u16),
}

/// What the auditor may look at on a site's disks.
pub trait Media {
    /// What a read would return; `None` where nothing was ever written.
    fn visible(&self, place: Place, block: u64) -> Option<&Stored>;
    /// What has been flushed.
    fn durable(&self, place: Place, block: u64) -> Option<&Stored>;
}

/// How far the peer must be before a write is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Received,
    Journaled,
    Durable,
    Applied,
}

#[derive(Clone, Debug)]
pub struct AuditConfig {
    /// Sizes in blocks.
    pub volumes: Vec<u64>,
    pub level: Level,
    pub peer: bool,
    pub journal_blocks: [u64; 2],
    pub journal_volatile: [bool; 2],
    /// Longest a host may wait for a reply while its site runs: the deadline and what the simulator adds.
    pub wait_ns_max: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpKind {
    Read,
    Write {
        fua: bool,
    },
    /// The bytes that its whole-block content has at `offset..offset + length`.
    WritePartial {
        offset: usize,
        length: usize,
        fua: bool,
    },
    Zero {
        fua: bool,
    },
    ZeroPartial {
        offset: usize,
        length: usize,
        fua: bool,
    },
    Flush,
}

impl OpKind {
    fn fua(self) -> bool {
        match self {
            OpKind::Write { fua }
            | OpKind::WritePartial { fua, .. }
            | OpKind::Zero { fua }
            | OpKind::ZeroPartial { fua, .. } => fua,
            OpKind::Read | OpKind::Flush => false,
        }
    }

    fn changes(self) -> bool {
        !matches!(self, OpKind::Read | OpKind::Flush)
    }
}

#[derive(Clone, Copy, Debug)]
pub struct OpSpec {
    pub volume: u16,
    pub lba: u64,
    pub count: u64,
    pub kind: OpKind,
    /// A write whose data is all zeros.
    pub zeros: bool,
}

#[derive(Debug)]
struct Op {
    spec: OpSpec,
    site: usize,
    submitted_at: u64,
    outstanding: bool,
    succeeded: bool,
    /// The last number promised to a host before this was submitted.
    floor: u64,
    /// The update it became.
    number: Option<u64>,
    /// For reads, by block: the oldest version it may return.
    read_floors: Vec<u64>,
}

#[derive(Clone, Debug)]
struct Content {
    print: Print,
    /// The bytes of a mixture, since its print does not give them.
    bytes: Option<Rc<Block>>,
}

impl Content {
    const ZERO: Content = Content { print: Print::ZERO, bytes: None };

    fn of(data: &Rc<Block>, print: Print) -> Content {
        let named = print == Print::ZERO || print.op().is_some();
        Content { print, bytes: (!named).then(|| data.clone()) }
    }

    fn write_to(&self, block: &mut Block) {
        match &self.bytes {
            Some(bytes) => block.copy_from_slice(&bytes[..]),
            None => self.print.fill(block),
        }
    }
}

#[derive(Clone, Debug)]
struct Entry {
    seen: Seen,
    contents: Vec<Content>,
    op: Option<u64>,
    /// A host was told of it: acknowledged or returned by a read.
    promised: bool,
    /// No site holds it any more, and the level it was acknowledged at allows that.
    excused: bool,
}

#[derive(Clone, Debug)]
struct Version {
    number: u64,
    content: Content,
}

#[derive(Debug, Default)]
struct BlockHistory {
    /// Ascending by number; before the first, the block reads as zeros.
    versions: Vec<Version>,
    acknowledged: u64,
    read: u64,
    /// Highest version the secondary's reader has seen in the secondary's present incarnation.
    read_at_secondary: u64,
}

impl BlockHistory {
    fn newest(&self) -> &Content {
        self.versions.last().map_or(&Content::ZERO, |version| &version.content)
    }

    /// The number of the newest version at or below `number`.
    fn latest_at(&self, number: u64) -> u64 {
        self.versions
            .iter()
            .rev()
            .find(|version| version.number <= number)
            .map_or(0, |version| version.number)
    }

    /// Numbers of the versions with this content, newest first.
    fn numbers_of(&self, print: Print) -> impl Iterator<Item = u64> + '_ {
        let initial = (print == Print::ZERO).then_some(0);
        let versions = self.versions.iter().rev().filter(move |version| version.content.print == print);
        versions.map(|version| version.number).chain(initial)
    }
}

#[derive(Debug)]
pub struct Auditor {
    config: AuditConfig,
    sites: [Site; 2],
    /// The stream in force; update n is at n - 1.
    stream: Vec<Entry>,
    /// Entries that a newer generation replaced, by generation and number.
    replaced: BTreeMap<(u64, u64), Entry>,
    newest_generation: u64,
    blocks: Vec<Vec<BlockHistory>>,
    ops: Vec<Op>,
    /// Changing operations of the primary's present incarnation that have no number yet.
    unnumbered: Vec<u64>,
    promised: u64,
    /// `SoloBegin` and `SoloEnd` in the stream: number, and whether it begins.
    solo: Vec<(u64, bool)>,
    alive: [bool; 2],
    /// What each site has truthfully claimed to have in its volumes.
    applied: [u64; 2],
    /// What the secondary had before it died, received, written, durable and applied: the primary may still hear of it, until
    /// it knows that the connection is over.
    before_death: [u64; 4],
    pub acknowledged_writes: u64,
    pub excused_writes: u64,
    pub now: u64,
}

impl Auditor {
    pub fn new(config: AuditConfig) -> Auditor {
        let site = |site: usize| Site::new(config.journal_blocks[site], config.journal_volatile[site]);
        let histories = |blocks: &u64| (0..*blocks).map(|_| BlockHistory::default()).collect();
        Auditor {
            sites: [site(PRIMARY), site(SECONDARY)],
            stream: Vec::new(),
            replaced: BTreeMap::new(),
            newest_generation: 0,
            blocks: config.volumes.iter().map(histories).collect(),
            ops: Vec::new(),
            unnumbered: Vec::new(),
            promised: 0,
            solo: Vec::new(),
            alive: [true; 2],
            applied: [0; 2],
            before_death: [0; 4],
            acknowledged_writes: 0,
            excused_writes: 0,
            now: 0,
            config,
        }
    }

    // ------------------------------------------------------------------------------------------------- hosts

    /// A host sends an operation to `site`; returns its id, which its data must carry.
    pub fn submitted(&mut self, site: usize, spec: OpSpec) -> u64 {
        let id = self.ops.len() as u64;
        let read_floors = if spec.kind == OpKind::Read {
            let range = spec.lba as usize..(spec.lba + spec.count) as usize;
            let floor = |block: &BlockHistory| match site {
                PRIMARY => block.acknowledged.max(block.read),
                _ => block.read_at_secondary,
            };
            self.blocks[usize::from(spec.volume)][range].iter().map(floor).collect()
        } else {
            Vec::new()
        };
        self.ops.push(Op {
            spec,
            site,
            submitted_at: self.now,
            outstanding: true,
            succeeded: false,
            floor: self.promised,
            number: None,
            read_floors,
        });
        if spec.kind.changes() && site == PRIMARY {
            self.unnumbered.push(id);
        }
        id
    }

    fn end(&mut self, id: u64) {
        let now = self.now;
        let op = &mut self.ops[id as usize];
        assert!(op.outstanding, "INV-11: op {id} {:?} was answered twice", op.spec);
        op.outstanding = false;
        let waited = now - op.submitted_at;
        assert!(waited <= self.config.wait_ns_max, "INV-11: op {id} {:?} waited {waited} ns", op.spec);
    }

    /// The host got an error: the operation may have happened, or may yet.
    pub fn failed(&mut self, id: u64) {
        self.end(id);
    }

    /// The host got its reply; `prints` are the blocks that a read returned.
    pub fn succeeded(&mut self, id: u64, prints: &[Print]) {
        self.end(id);
        let spec = self.ops[id as usize].spec;
        self.ops[id as usize].succeeded = true;
        match spec.kind {
            OpKind::Read => self.check_read(id, prints),
            OpKind::Flush => {
                let floor = self.ops[id as usize].floor;
                if let Err(why) = self.settled(floor) {
                    panic!("INV-2: flush {id} completed, but {why}");
                }
            }
            _ => {
                assert!(self.ops[id as usize].site == PRIMARY, "a secondary acknowledged {spec:?}");
                let Some(number) = self.ops[id as usize].number.or_else(|| self.number_of_twin(id)) else {
                    panic!("INV-1: op {id} {spec:?} acknowledged, but no journal or frame has it");
                };
                if let Err(why) = self.held(number) {
                    panic!("INV-1: op {id} {spec:?} acknowledged as #{number}, but {why}");
                }
                if spec.kind.fua()
                    && let Err(why) = self.settled(number)
                {
                    panic!("INV-2: op {id} {spec:?} with FUA acknowledged as #{number}, but {why}");
                }
                self.acknowledged_writes += 1;
                self.promise(number);
                for lba in spec.lba..spec.lba + spec.count {
                    let block = &mut self.blocks[usize::from(spec.volume)][lba as usize];
                    block.acknowledged = block.acknowledged.max(number);
                }
            }
        }
    }

    /// Zeroing the same range twice gives two updates that nothing tells apart, so the twins may have each other's number.
    fn number_of_twin(&mut self, id: u64) -> Option<u64> {
        let leaves_zeros = |spec: &OpSpec| {
            spec.zeros || matches!(spec.kind, OpKind::Zero { .. } | OpKind::ZeroPartial { .. })
        };
        let spec = self.ops[id as usize].spec;
        let twin = self.ops.iter().rposition(|op| {
            !op.succeeded
                && op.number.is_some()
                && leaves_zeros(&op.spec)
                && leaves_zeros(&spec)
                && (op.spec.volume, op.spec.lba, op.spec.count) == (spec.volume, spec.lba, spec.count)
        })?;
        let number = self.ops[twin].number.take();
        self.ops[id as usize].number = number;
        self.unnumbered.retain(|&unnumbered| unnumbered != id);
        self.unnumbered.push(twin as u64);
        number
    }

    fn promise(&mut self, number: u64) {
        if number > 0 {
            self.stream[number as usize - 1].promised = true;
            self.promised = self.promised.max(number);
        }
    }

    fn check_read(&mut self, id: u64, prints: &[Print]) {
        let Op { spec, site, .. } = self.ops[id as usize];
        assert_eq!(prints.len() as u64, spec.count);
        for (index, &print) in prints.iter().enumerate() {
            let floor = self.ops[id as usize].read_floors[index];
            let lba = spec.lba + index as u64;
            let block = &self.blocks[usize::from(spec.volume)][lba as usize];
            let mut reason = None;
            let found = block.numbers_of(print).filter(|&number| number >= floor).find(|&number| {
                let check = if site == PRIMARY { self.held(number) } else { self.settled(number) };
                reason = check.as_ref().err().cloned();
                check.is_ok()
            });
            let Some(newest) = found else {
                let versions: Vec<_> =
                    block.versions.iter().map(|v| (v.number, v.content.print.describe())).collect();
                panic!(
                    "INV-5: read {id} at site {site} of volume {} block {lba} returned {}, where #{floor} or later was due: \
                     {}; versions {versions:?}",
                    spec.volume,
                    print.describe(),
                    reason.unwrap_or("no such version".into()),
                );
            };
            // Zeros may be any of several updates; the oldest that explains them promises least.
            let number = block
                .numbers_of(print)
                .filter(|&number| number >= floor)
                .last()
                .expect("one was found above")
                .min(newest);
            let block = &mut self.blocks[usize::from(spec.volume)][lba as usize];
            if site == PRIMARY {
                block.read = block.read.max(number);
                self.promise(number);
            } else {
                block.read_at_secondary = block.read_at_secondary.max(number);
            }
        }
    }

    /// At any time: nobody has waited too long.
    pub fn check_waits(&self, site: usize) {
        for (id, op) in self.ops.iter().enumerate().filter(|(_, op)| op.outstanding && op.site == site) {
            let waited = self.now - op.submitted_at;
            assert!(
                waited <= self.config.wait_ns_max,
                "INV-11: op {id} {:?} still waits after {waited} ns",
                op.spec
            );
        }
    }

    // ------------------------------------------------------------------------------------- what the sites hold

    /// The last number that the site and the stream in force have in common, of the site's first `upto`.
    fn common(&self, site: usize, upto: u64) -> u64 {
        let mut number = upto.min(self.stream.len() as u64);
        while number > 0
            && self.sites[site].generation_of(number) != self.stream[number as usize - 1].seen.generation
        {
            number -= 1;
        }
        number
    }

    fn written(&self, site: usize) -> u64 {
        self.common(site, self.sites[site].written())
    }

    fn durable(&self, site: usize) -> u64 {
        self.common(site, self.sites[site].durable())
    }

    /// Everything the site has, memory included.
    fn received(&self, site: usize) -> u64 {
        let (number, generation) = self.sites[site].received();
        let known = self.stream.get((number as usize).wrapping_sub(1));
        let in_memory =
            if known.is_some_and(|entry| entry.seen.generation == generation) { number } else { 0 };
        in_memory.max(self.written(site))
    }

    /// Whether the primary may acknowledge `number` alone.
    fn alone(&self, number: u64) -> bool {
        if !self.config.peer {
            return true;
        }
        let durable = self.durable(PRIMARY);
        let mut alone = false;
        for &(at, begins) in &self.solo {
            if begins {
                alone = at <= durable;
            } else if number > at {
                alone = false;
            } else {
                break;
            }
        }
        alone
    }

    /// Whether `number` is where its acknowledgement level wants it.
    fn held(&self, number: u64) -> Result<(), String> {
        let at = |what: &str, site: usize, has: u64| {
            let name = ["primary", "secondary"][site];
            if has >= number { Ok(()) } else { Err(format!("the {name} has only #{has} {what}")) }
        };
        let level = self.config.level;
        if level >= Level::Durable {
            at("durable", PRIMARY, self.durable(PRIMARY))?;
        } else {
            at("journaled", PRIMARY, self.written(PRIMARY))?;
        }
        let [received, written, durable, applied] = self.secondary_has();
        let [received_before, written_before, durable_before, applied_before] = self.before_death;
        let peer = match level {
            Level::Received => at("received", SECONDARY, received.max(received_before)),
            Level::Journaled => at("journaled", SECONDARY, written.max(written_before)),
            Level::Durable => at("durable", SECONDARY, durable.max(durable_before)),
            Level::Applied => at("applied", SECONDARY, applied.max(applied_before)),
        };
        peer.or_else(|why| if self.alone(number) { Ok(()) } else { Err(why) })
    }

    fn secondary_has(&self) -> [u64; 4] {
        let applied = self.applied[SECONDARY];
        [self.received(SECONDARY), self.written(SECONDARY), self.durable(SECONDARY), applied]
    }

    /// The primary learns that its connection is over: acknowledgements under way on it are void.
    pub fn primary_disconnected(&mut self) {
        self.before_death = [0; 4];
    }

    /// Whether `number` is durable on every site of the synchronous set.
    fn settled(&self, number: u64) -> Result<(), String> {
        let at = |site: usize| {
            let (name, has) = (["primary", "secondary"][site], self.durable(site));
            if has >= number {
                Ok(())
            } else {
                Err(format!("the {name} has only #{has} durable, not #{number}"))
            }
        };
        at(PRIMARY)?;
        at(SECONDARY).or_else(|why| if self.alone(number) { Ok(()) } else { Err(why) })
    }

    // ------------------------------------------------------------------------------------------- the stream

    /// An update leaves the primary in a frame; `blocks` are its payload.
    pub fn sends(&mut self, site: usize, seen: Seen, blocks: &[(Rc<Block>, Print)]) {
        self.sees(site, seen, blocks);
    }

    fn sees(&mut self, site: usize, seen: Seen, blocks: &[(Rc<Block>, Print)]) {
        assert_eq!(blocks.len(), seen.payload(), "payload of {seen:?}");
        let known = self.stream.get(seen.number as usize - 1);
        if let Some(entry) = known
            && entry.seen.generation == seen.generation
        {
            return self.check_same(site, entry, &seen, blocks);
        }
        if let Some(entry) = self.replaced.get(&(seen.generation, seen.number)) {
            if site != PRIMARY {
                return self.check_same(site, entry, &seen, blocks);
            }
            assert!(
                !(0..2).any(|site| self.sites[site].has(seen.number, seen.generation)),
                "INV-7: {seen:?} has a number and generation that are taken by another update on some site"
            );
            // Nobody has the old one any more, so its number and generation are free.
            self.replaced.remove(&(seen.generation, seen.number));
        }
        assert!(site == PRIMARY, "the secondary has {seen:?}, which its primary never had");
        if seen.number <= self.stream.len() as u64 {
            assert!(
                seen.kind == KIND_GENERATION_OPEN && seen.generation > self.newest_generation,
                "INV-7: the primary replaces an update by {seen:?} without opening a generation"
            );
            self.replace_from(seen.number);
        }
        assert_eq!(seen.number, self.stream.len() as u64 + 1, "update numbers are dense");
        assert!(seen.generation >= self.newest_generation, "{seen:?} in an old generation");
        let before = self.stream.last().map_or(0, |entry| entry.seen.generation);
        assert!(
            (seen.kind == KIND_GENERATION_OPEN) == (seen.generation != before),
            "INV-7: {seen:?} follows an update of generation {before:x}"
        );
        self.newest_generation = seen.generation;
        let contents: Vec<Content> = match seen.kind {
            KIND_ZERO => vec![Content::ZERO; seen.count as usize],
            _ => blocks.iter().map(|(data, print)| Content::of(data, *print)).collect(),
        };
        let op = if seen.touches() > 0 { Some(self.claim(&seen, &contents)) } else { None };
        if let Some(op) = op {
            let floor = self.ops[op as usize].floor;
            assert!(
                seen.number > floor,
                "INV-5: op {op} came after #{floor} was acknowledged, but is #{}",
                seen.number
            );
            self.ops[op as usize].number = Some(seen.number);
        }
        self.append(Entry { seen, contents, op, promised: false, excused: false });
    }

    fn check_same(&self, site: usize, entry: &Entry, seen: &Seen, blocks: &[(Rc<Block>, Print)]) {
        assert_eq!(entry.seen, *seen, "site {site} has another update of the same number and generation");
        for (index, (known, (_, print))) in entry.contents.iter().zip(blocks).enumerate() {
            assert!(
                known.print == *print,
                "site {site} has {} as block {index} of {seen:?}, not {}",
                print.describe(),
                known.print.describe()
            );
        }
    }

    fn append(&mut self, entry: Entry) {
        let Seen { number, volume, lba, .. } = entry.seen;
        for (index, content) in entry.contents.iter().enumerate() {
            let volume = &mut self.blocks[usize::from(volume)];
            let Some(block) = volume.get_mut(lba as usize + index) else {
                panic!("INV-13: {:?} reaches beyond its volume", entry.seen);
            };
            block.versions.push(Version { number, content: content.clone() });
        }
        if entry.seen.kind == KIND_SOLO_BEGIN || entry.seen.kind == KIND_SOLO_END {
            self.solo.push((number, entry.seen.kind == KIND_SOLO_BEGIN));
        }
        self.stream.push(entry);
    }

    /// Updates from `first` on are no longer in the stream.
    fn replace_from(&mut self, first: u64) {
        for entry in self.stream.split_off(first as usize - 1) {
            let Seen { number, generation, volume, lba, .. } = entry.seen;
            assert!(
                !entry.promised || entry.excused,
                "INV-1: {:?} (op {:?}) was promised to a host and a site still held it, but the primary goes on without it",
                entry.seen,
                entry.op
            );
            for index in 0..entry.contents.len() {
                let block = &mut self.blocks[usize::from(volume)][lba as usize + index];
                block.versions.retain(|version| version.number < first);
                let latest = block.latest_at(first - 1);
                block.acknowledged = block.acknowledged.min(latest);
                block.read = block.read.min(latest);
            }
            self.replaced.insert((generation, number), entry);
        }
        self.solo.retain(|(number, _)| *number < first);
        self.promised = self.promised.min(first - 1);
    }

    /// The host operation that this update carries out: exactly one, with exactly its content.
    fn claim(&mut self, seen: &Seen, contents: &[Content]) -> u64 {
        let fits = |id: u64| {
            let spec = self.ops[id as usize].spec;
            spec.volume == seen.volume
                && spec.lba == seen.lba
                && spec.count == u64::from(seen.count)
                && self.is_result_of(id, &spec, contents)
        };
        // Operations that were given up may still happen, but are the less likely ones.
        let waiting = |&id: &u64| self.ops[id as usize].outstanding && fits(id);
        let position = self
            .unnumbered
            .iter()
            .position(waiting)
            .or_else(|| self.unnumbered.iter().position(|&id| fits(id)));
        let Some(position) = position else {
            let found: Vec<_> = contents.iter().map(|content| content.print.describe()).collect();
            panic!("INV-5: {seen:?} with {found:?} is no host's operation");
        };
        self.unnumbered.remove(position)
    }

    fn is_result_of(&self, id: u64, spec: &OpSpec, contents: &[Content]) -> bool {
        let whole = |lba: u64| if spec.zeros { Print::ZERO } else { Print::of_write(spec.volume, lba, id) };
        let merged = |offset: usize, length: usize, with: Print| {
            let mut block = [0; BLOCK_BYTES];
            let mut patch = [0; BLOCK_BYTES];
            self.blocks[usize::from(spec.volume)][spec.lba as usize].newest().write_to(&mut block);
            with.fill(&mut patch);
            block[offset..offset + length].copy_from_slice(&patch[offset..offset + length]);
            Print::of(&block) == contents[0].print
        };
        match spec.kind {
            OpKind::Read | OpKind::Flush => false,
            OpKind::Write { .. } => {
                (0..).zip(contents).all(|(index, content)| content.print == whole(spec.lba + index))
            }
            OpKind::Zero { .. } => contents.iter().all(|content| content.print == Print::ZERO),
            OpKind::WritePartial { offset, length, .. } => merged(offset, length, whole(spec.lba)),
            OpKind::ZeroPartial { offset, length, .. } => merged(offset, length, Print::ZERO),
        }
    }

    // ------------------------------------------------------------------------------------------- disks

    /// A site submits a write.
    pub fn writes(
        &mut self,
        site: usize,
        io: IoId,
        place: Place,
        block: u64,
        blocks: &[(Rc<Block>, Print)],
        media: &dyn Media,
    ) {
        match place {
            Place::Journal => self.writes_journal(site, io, block, blocks, media),
            Place::Volume(volume) => {
                for (lba, (_, print)) in (block..).zip(blocks) {
                    self.check_destage(site, volume, lba, *print);
                }
            }
            Place::Checksums(_) => (),
        }
    }

    fn writes_journal(
        &mut self,
        site: usize,
        io: IoId,
        block: u64,
        blocks: &[(Rc<Block>, Print)],
        media: &dyn Media,
    ) {
        if let Some(seen) = superblock(&blocks[0].0) {
            assert!(blocks.len() == 1 && block == seen.sequence % 2, "superblock {seen:?} at block {block}");
            self.check_claim(site, "settled", seen.settled);
            self.check_checkpoint(site, seen.checkpoint, media);
            self.applied[site] = self.applied[site].max(seen.checkpoint);
            self.sites[site].submits_superblock(io, seen);
            return;
        }
        let Some(seen) = batch(&blocks[0].0) else {
            panic!("site {site} writes {} blocks at journal block {block} that are no batch", blocks.len());
        };
        assert!(block >= 2, "a batch over the superblocks");
        if seen.known_durable > self.sites[site].durable() {
            panic!(
                "site {site} claims #{} durable in {seen:?}, has {}",
                seen.known_durable,
                self.sites[site].durable()
            );
        }
        self.check_claim(site, "settled", seen.settled);
        let mut payload = &blocks[1..];
        for update in seen.updates.iter().filter(|update| update.kind != journal::KIND_CUT) {
            let (mine, rest) = payload.split_at(update.payload());
            payload = rest;
            self.sees(site, *update, mine);
        }
        if let Err(why) = self.sites[site].submits_batch(io, block, blocks.len() as u64, &seen) {
            panic!("site {site}: {why}");
        }
    }

    fn check_claim(&self, site: usize, what: &str, number: u64) {
        if let Err(why) = self.settled(number) {
            panic!("INV-4: site {site} takes #{number} for {what}, but {why}");
        }
    }

    /// Only what is settled reaches a volume (INV-4).
    fn check_destage(&self, site: usize, volume: u16, lba: u64, print: Print) {
        let Some(block) = self.blocks[usize::from(volume)].get(lba as usize) else {
            panic!("INV-13: site {site} writes block {lba} beyond volume {volume}");
        };
        let mut reason = "it is no version of the block".to_string();
        let allowed = block.numbers_of(print).any(|number| {
            let own = self.durable(site);
            let check = if own < number {
                Err(format!("site {site} has only #{own} durable"))
            } else {
                self.settled(number)
            };
            check.map_err(|why| reason = format!("of #{number}: {why}")).is_ok()
        });
        assert!(
            allowed,
            "INV-4: site {site} writes {} to volume {volume} block {lba}: {reason}",
            print.describe()
        );
    }

    /// A checkpoint needs, in each durable volume block, a version at or above the block's latest update up to it.
    fn check_checkpoint(&self, site: usize, checkpoint: u64, media: &dyn Media) {
        assert!(
            checkpoint <= self.durable(site),
            "INV-4: site {site} checkpoints #{checkpoint} beyond what is durable"
        );
        for (volume, blocks) in (0u16..).zip(&self.blocks) {
            for (lba, block) in (0u64..).zip(blocks) {
                let due = block.latest_at(checkpoint);
                let print =
                    media.durable(Place::Volume(volume), lba).map_or(Print::ZERO, |stored| stored.print);
                assert!(
                    due == 0 || block.numbers_of(print).any(|number| number >= due),
                    "site {site} checkpoints #{checkpoint} while volume {volume} block {lba} durably has {}, where #{due} \
                     is due",
                    print.describe()
                );
            }
        }
    }

    pub fn written_io(&mut self, site: usize, io: IoId) {
        self.sites[site].written_io(io);
    }

    pub fn flushed(&mut self, site: usize, covers: &[IoId]) {
        self.sites[site].flushed(covers);
    }

    // ------------------------------------------------------------------------------------------- peers and crashes

    /// A site's group takes an update that its peer sent.
    pub fn receives(&mut self, site: usize, number: u64, generation: u64) {
        self.sites[site].receives(number, generation);
        // The primary takes up again what it had lost and its peer kept.
        let known = self.stream.get(number as usize - 1);
        if site == PRIMARY
            && known.is_none_or(|entry| entry.seen.generation != generation)
            && let Some(entry) = self.replaced.get(&(generation, number)).cloned()
        {
            self.replace_from(number);
            self.append(entry);
        }
    }

    /// The secondary tells its primary what it has.
    pub fn acknowledges(
        &mut self,
        site: usize,
        journaled: u64,
        durable: u64,
        applied: u64,
        media: &dyn Media,
    ) {
        let (written, flushed) = (self.sites[site].written(), self.sites[site].durable());
        assert!(journaled <= written, "INV-1: site {site} reports #{journaled} journaled, has #{written}");
        assert!(durable <= flushed, "INV-1: site {site} reports #{durable} durable, has #{flushed}");
        if applied > self.applied[site] {
            self.check_claim(site, "applied", applied);
            for entry in &self.stream[self.applied[site] as usize..applied as usize] {
                let Seen { number, volume, lba, .. } = entry.seen;
                for lba in lba..lba + entry.contents.len() as u64 {
                    let block = &self.blocks[usize::from(volume)][lba as usize];
                    let print =
                        media.visible(Place::Volume(volume), lba).map_or(Print::ZERO, |stored| stored.print);
                    assert!(
                        block.numbers_of(print).any(|has| has >= number),
                        "site {site} reports #{applied} applied, but volume {volume} block {lba} has {}, not #{number}",
                        print.describe()
                    );
                }
            }
            self.applied[site] = applied;
        }
    }

    /// A site died; `media` is what its disks hold now.
    pub fn crashed(&mut self, site: usize, media: &dyn Media) {
        self.check_waits(site);
        let had = self.secondary_has();
        for (before, had) in self.before_death.iter_mut().zip(had) {
            *before = if site == PRIMARY { 0 } else { (*before).max(had) };
        }
        self.applied[site] = self.sites[site].crashed(media);
        for op in self.ops.iter_mut().filter(|op| op.site == site) {
            op.outstanding = false;
        }
        if site == PRIMARY {
            self.unnumbered.clear();
        } else {
            self.blocks.iter_mut().flatten().for_each(|block| block.read_at_secondary = 0);
        }
        self.alive[site] = false;
        if self.alive[PRIMARY] {
            return;
        }
        // What neither site has is gone; the level allowed it, or acknowledging it would have been the violation.
        let held = self.received(PRIMARY).max(self.received(SECONDARY));
        for entry in &mut self.stream[held as usize..] {
            if entry.promised && !entry.excused {
                entry.excused = true;
                self.excused_writes += 1;
            }
        }
        self.replace_from(held + 1);
    }

    pub fn restarted(&mut self, site: usize) {
        self.alive[site] = true;
    }

    /// Everything is drained: both volumes must hold the last version of every block.
    pub fn check_volumes(&self, site: usize, media: &dyn Media) {
        for (volume, blocks) in (0u16..).zip(&self.blocks) {
            for (lba, block) in (0u64..).zip(blocks) {
                let print =
                    media.durable(Place::Volume(volume), lba).map_or(Print::ZERO, |stored| stored.print);
                let due = block.newest().print;
                assert!(
                    print == due,
                    "site {site} ends with {} in volume {volume} block {lba}, not {} (#{})",
                    print.describe(),
                    due.describe(),
                    block.latest_at(u64::MAX)
                );
            }
        }
    }

    /// The last update of the stream.
    pub fn last(&self) -> u64 {
        self.stream.len() as u64
    }

    /// Whether the write kinds and levels of this run were all on the peer: for the runner's statistics.
    pub fn solo_ranges(&self) -> usize {
        self.stream.iter().filter(|entry| entry.seen.kind == KIND_SOLO_BEGIN).count()
    }

    pub fn updates_with_payload(&self) -> usize {
        self.stream.iter().filter(|entry| entry.seen.kind == KIND_WRITE).count()
    }
}
