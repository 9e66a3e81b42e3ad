//! Faults on order, for rehearsals and tests: what a disk may do to us, done when we choose.

use std::collections::BTreeMap;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::Errno;
use serde::Deserialize;

use super::open::reserve;
use crate::base::{BLOCK_BYTES, Memory, Nanos, PageId, VolumeId};
use crate::core::messages::{IoFault, IoOp, IoRequest, IoTarget};

/// What goes wrong on an executor's disks. The default is nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FaultPlan {
    pub rules: Vec<FaultRule>,
    /// The disks keep writes in a volatile cache until a flush, as power loss (here: the end of the process) would show.
    /// The seed picks blocks that reach the disk early all the same. I/O is then blocking and unbounded in memory.
    pub discard_unflushed: Option<u64>,
}

/// One fault, on the requests that match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultRule {
    /// Every target if none.
    pub target: Option<IoTarget>,
    pub op: IoOp,
    /// A bad sector: what reads this block fails, and only that, until it is written. Every request matches otherwise.
    pub block: Option<u64>,
    /// Matching requests that go well first.
    pub after: u64,
    /// Matching requests that are hit then; `u64::MAX` hits all that follow.
    pub times: u64,
    pub effect: FaultEffect,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultEffect {
    /// The request fails with this error number and does nothing.
    Errno(i32),
    /// The request takes this much longer.
    Delay(Nanos),
    /// The request moves half its blocks and has to be continued; one of a single block is left alone.
    Short,
}

/// A plan as written down:
///
/// ```toml
/// discard_unflushed = 42
/// [[rule]]
/// disk = "journal"        # or "volume:0", "checksums:0"; all if left out
/// op = "write"            # or "read", "flush"
/// after = 100             # that go well first; 0 if left out
/// times = 3               # that are hit then; all that follow if left out
/// errno = 5               # or delay_us = 20000, or short = true
///
/// [[rule]]                # a sector that cannot be read until it is written
/// disk = "volume:0"
/// op = "read"
/// block = 17
/// errno = 5
/// ```
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPlan {
    #[serde(default)]
    rule: Vec<RawRule>,
    discard_unflushed: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    disk: Option<String>,
    op: RawOp,
    block: Option<u64>,
    #[serde(default)]
    after: u64,
    times: Option<u64>,
    errno: Option<i32>,
    delay_us: Option<u64>,
    #[serde(default)]
    short: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawOp {
    Read,
    Write,
    Flush,
    Reserve,
}

/// Why a written plan is none.
#[derive(Debug, thiserror::Error)]
pub enum FaultPlanError {
    #[error("the fault plan is not what it should be: {0}")]
    Syntax(#[from] toml::de::Error),
    #[error("the fault plan names the disk {0:?}; write \"journal\", \"volume:N\" or \"checksums:N\"")]
    Disk(String),
    #[error("rule {0} of the fault plan needs exactly one of errno (above 0), delay_us and short = true")]
    Effect(usize),
    #[error(
        "rule {0} of the fault plan names a block: then it needs op = \"read\" and an errno, and no discard_unflushed"
    )]
    Block(usize),
}

impl FaultPlan {
    /// Reads a plan from TOML.
    pub fn parse(text: &str) -> Result<FaultPlan, FaultPlanError> {
        let raw: RawPlan = toml::from_str(text)?;
        let rules = raw.rule.into_iter().enumerate().map(|(index, raw)| raw.rule(index + 1));
        let rules: Vec<FaultRule> = rules.collect::<Result<_, _>>()?;
        let of_a_block = rules.iter().position(|rule| rule.block.is_some());
        match of_a_block.filter(|_| raw.discard_unflushed.is_some()) {
            Some(index) => Err(FaultPlanError::Block(index + 1)),
            None => Ok(FaultPlan { rules, discard_unflushed: raw.discard_unflushed }),
        }
    }
}

impl RawRule {
    fn rule(self, place: usize) -> Result<FaultRule, FaultPlanError> {
        let effect = match (self.errno, self.delay_us, self.short) {
            (Some(errno), None, false) if errno > 0 => FaultEffect::Errno(errno),
            (None, Some(delay), false) => FaultEffect::Delay(Nanos(delay.saturating_mul(1_000))),
            (None, None, true) => FaultEffect::Short,
            _ => return Err(FaultPlanError::Effect(place)),
        };
        let op = match self.op {
            RawOp::Read => IoOp::Read,
            RawOp::Write => IoOp::Write,
            RawOp::Flush => IoOp::Flush,
            RawOp::Reserve => IoOp::Reserve,
        };
        if self.block.is_some() && !matches!((op, effect), (IoOp::Read, FaultEffect::Errno(_))) {
            return Err(FaultPlanError::Block(place));
        }
        let target =
            self.disk.map(|name| target_named(&name).ok_or(FaultPlanError::Disk(name))).transpose()?;
        let times = self.times.unwrap_or(u64::MAX);
        Ok(FaultRule { target, op, block: self.block, after: self.after, times, effect })
    }
}

fn target_named(name: &str) -> Option<IoTarget> {
    match name {
        "journal" => return Some(IoTarget::Journal),
        "differential" => return Some(IoTarget::Differential),
        "staging" => return Some(IoTarget::Staging),
        _ => {}
    }
    let (kind, volume) = name.split_once(':')?;
    let volume = VolumeId(volume.parse().ok()?);
    match kind {
        "volume" => Some(IoTarget::Volume(volume)),
        "checksums" => Some(IoTarget::Checksums(volume)),
        _ => None,
    }
}

/// The plan's rules with the requests they have seen.
#[derive(Debug)]
pub struct Faults(Vec<(FaultRule, u64)>);

impl Faults {
    pub fn new(rules: Vec<FaultRule>) -> Faults {
        Faults(rules.into_iter().map(|rule| (rule, 0)).collect())
    }

    /// The first matching rule's effect on this request; each rule counts it.
    pub fn on(&mut self, request: &IoRequest) -> Option<FaultEffect> {
        if request.op == IoOp::Write {
            let written = request.block..request.block + u64::from(request.count);
            self.0.retain(|(rule, _)| {
                !(rule.is_on(request.target) && rule.block.is_some_and(|block| written.contains(&block)))
            });
        }
        let mut effect = None;
        for (rule, seen) in &mut self.0 {
            if rule.op == request.op && rule.is_on(request.target) && rule.block.is_none() {
                effect = effect.or(rule.hits(seen).then_some(rule.effect));
            }
        }
        effect
    }

    /// Why a submission of `count` of a read's blocks, behind the first `done`, fails: one of them is bad.
    pub fn on_blocks(&mut self, request: &IoRequest, done: u32, count: u32) -> Option<i32> {
        if request.op != IoOp::Read {
            return None;
        }
        let first = request.block + u64::from(done);
        let blocks = first..first + u64::from(count);
        let mut fails = None;
        for (rule, seen) in &mut self.0 {
            let bad = rule.block.is_some_and(|block| blocks.contains(&block)) && rule.is_on(request.target);
            if let FaultEffect::Errno(errno) = rule.effect
                && bad
                && rule.hits(seen)
            {
                fails = Some(errno);
            }
        }
        fails
    }
}

impl FaultRule {
    fn is_on(&self, target: IoTarget) -> bool {
        self.target.is_none_or(|named| named == target)
    }

    /// Whether the next request that matches is hit; it is counted.
    fn hits(&self, seen: &mut u64) -> bool {
        *seen += 1;
        *seen > self.after && *seen - self.after <= self.times
    }
}

/// A block that O_DIRECT takes as it lies.
#[derive(Clone)]
#[repr(align(4096))]
struct Block([u8; BLOCK_BYTES]);

/// A drive's volatile write cache, in front of files that are written only by flushes and by chance.
#[derive(Debug)]
pub struct VolatileCache {
    dirty: BTreeMap<(IoTarget, u64), Box<Block>>,
    files: BTreeMap<IoTarget, OwnedFd>,
    random: u64,
}

impl std::fmt::Debug for Block {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Block")
    }
}

/// One block in so many reaches the disk before it is flushed.
const EARLY_ONE_IN: u64 = 4;

impl VolatileCache {
    pub fn new(seed: u64) -> VolatileCache {
        // Xorshift stays at zero once it is there.
        VolatileCache { dirty: BTreeMap::new(), files: BTreeMap::new(), random: seed | 1 }
    }

    pub fn add(&mut self, target: IoTarget, file: OwnedFd) {
        self.files.insert(target, file);
    }

    /// Does the request, blocking.
    pub fn perform(
        &mut self,
        request: &IoRequest,
        pages: impl Iterator<Item = PageId>,
        memory: &mut impl Memory,
    ) -> Result<(), IoFault> {
        let done = match request.op {
            IoOp::Write => self.write(request, pages, memory),
            IoOp::Read => self.read(request, pages, memory),
            IoOp::Flush => self.flush(request.target),
            IoOp::Reserve => self.reserve(request),
        };
        done.map_err(|errno| match errno {
            // A read beyond the end of the file.
            Errno::NODATA => IoFault::Short,
            errno => IoFault::Errno(errno.raw_os_error()),
        })
    }

    fn file(&self, target: IoTarget) -> BorrowedFd<'_> {
        use std::os::fd::AsFd;
        self.files[&target].as_fd()
    }

    fn write(
        &mut self,
        request: &IoRequest,
        pages: impl Iterator<Item = PageId>,
        memory: &mut impl Memory,
    ) -> Result<(), Errno> {
        for (block, page) in (request.block..).zip(pages) {
            let data = Box::new(Block(*memory.bytes(page)));
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            if self.random.is_multiple_of(EARLY_ONE_IN) {
                self.dirty.remove(&(request.target, block));
                write_block(self.file(request.target), block, &data)?;
            } else {
                self.dirty.insert((request.target, block), data);
            }
        }
        Ok(())
    }

    fn read(
        &mut self,
        request: &IoRequest,
        pages: impl Iterator<Item = PageId>,
        memory: &mut impl Memory,
    ) -> Result<(), Errno> {
        for (block, page) in (request.block..).zip(pages) {
            let into = memory.bytes_mut(page);
            match self.dirty.get(&(request.target, block)) {
                Some(data) => *into = data.0,
                None => {
                    let offset = block * BLOCK_BYTES as u64;
                    let count = rustix::io::pread(self.file(request.target), into.as_mut_slice(), offset)?;
                    if count < BLOCK_BYTES {
                        return Err(Errno::NODATA);
                    }
                }
            }
        }
        Ok(())
    }

    fn reserve(&self, request: &IoRequest) -> Result<(), Errno> {
        let bytes = |blocks: u64| blocks * BLOCK_BYTES as u64;
        let end = request.block + u64::from(request.count);
        reserve(self.file(request.target), bytes(request.block)..bytes(end))
    }

    fn flush(&mut self, target: IoTarget) -> Result<(), Errno> {
        let theirs = (target, 0)..=(target, u64::MAX);
        let blocks: Vec<u64> = self.dirty.range(theirs).map(|((_, block), _)| *block).collect();
        for block in blocks {
            let data = self.dirty.remove(&(target, block)).expect("just listed");
            write_block(self.file(target), block, &data)?;
        }
        rustix::fs::fdatasync(self.file(target))
    }
}

fn write_block(file: BorrowedFd<'_>, block: u64, data: &Block) -> Result<(), Errno> {
    let count = rustix::io::pwrite(file, &data.0, block * BLOCK_BYTES as u64)?;
    if count == BLOCK_BYTES { Ok(()) } else { Err(Errno::IO) }
}
