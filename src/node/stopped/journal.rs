//! Making the journal of a site as large as its configuration says. What the ring holds stays, if only because another site lacks it: it stays
//! where it is as far as that can be, and is copied to blocks that hold nothing otherwise. Until the superblock says the new size, the old
//! ring is whole; from then on the new one is.

use super::layout::{Extent, Layout, Move, layout};
use super::parts::{self, Longer, Needs, Part};
use super::ring::{self, LeftBehind};
use super::{ChangeError, OnReached, Progress, Reached, Stopped, record};
use crate::base::{BLOCK_BYTES, UpdateNumber};
use crate::core::journal::Journal;
use crate::format::superblock::{RING_FIRST_BLOCK, Superblock};
use crate::format::update::{Update, UpdateKind};
use crate::node::config::{Config, FileSpace};

/// How much of a smaller ring may be in use, in percent of what updates may take of it: as much as a start keeps for a third site, and then some
/// room to be written to before anything has to be let go of.
const KEPT_PERCENT_MAX: u64 = 50;

fn part(config: &Config, from: u64) -> Part<'_> {
    Part {
        path: &config.journal.path,
        from,
        to: config.journal.bytes,
        space: FileSpace::Written,
        used: from..config.journal.bytes,
    }
}

/// Whether the journal's file could become as large as the configuration says, and what it is now; the site may run meanwhile. Whether what it
/// holds has room in a smaller one shows when the site has stopped.
pub fn check_resize(config: &Config) -> Result<Option<Longer>, ChangeError> {
    Ok(parts::check([part(config, 0)].into_iter())?.pop())
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resized {
    /// Bytes of the journal before, and now.
    pub from: u64,
    pub to: u64,
    /// Bytes that it holds, of what is not in the volumes yet or is kept for another site.
    pub held: u64,
}

/// Gives the journal the size that the configuration says. The site must not run.
pub fn resize(
    config: &Config,
    force: bool,
    progress: &mut dyn FnMut(Progress<'_>),
    reached: OnReached<'_>,
) -> Result<Resized, ChangeError> {
    let mut site = Stopped::open(config)?;
    let want = config.journal.bytes / BLOCK_BYTES as u64;
    let (have, recorded) = (site.superblock.journal_blocks, site.formatted.journal_blocks);
    let mut otherwise = record(config);
    otherwise.journal_blocks = recorded;
    site.refuse_differences(&otherwise, "the size of the journal")?;
    site.refuse_unfinished_volumes()?;
    if (have, recorded, site.agree) == (want, want, true) {
        return Err(ChangeError::NothingToResize);
    }
    let held = Held::of(&site, &mut |_| {})?;
    // If not, an attempt before has come as far as the superblock.
    if have != want {
        site.refuse_staging()?;
        let layout = held.layout(&site, want)?;
        if want > have {
            lengthen(&mut site, have, force, progress)?;
            reached(Reached::Files)?;
        }
        held.forget_left_behind(&site)?;
        held.lay(&mut site, &layout, want)?;
        reached(Reached::Records)?;
    }
    site.put_superblock(reached)?;
    if !site.journal.is_device() && site.journal.bytes() > config.journal.bytes {
        site.journal.shorten(config.journal.bytes)?;
        site.journal.sync()?;
    }
    reached(Reached::Cut)?;
    site.put_record(&site.same_places())?;
    let bytes = |blocks| blocks * BLOCK_BYTES as u64;
    Ok(Resized { from: bytes(have), to: bytes(want), held: bytes(held.blocks()) })
}

fn lengthen(
    site: &mut Stopped<'_>,
    have: u64,
    force: bool,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<(), ChangeError> {
    let part = part(site.config, have * BLOCK_BYTES as u64);
    let mut needs = Needs::default();
    parts::look(&part, &site.journal, &mut needs)?;
    // Behind the journal's end in its own file is nothing but what an attempt before has copied there; a device may have other uses.
    if site.journal.is_device() && !force {
        parts::refuse_data(&part, &site.journal)?;
    }
    needs.check()?;
    parts::lengthen(&[part], std::slice::from_mut(&mut site.journal), progress)
}

/// What the ring holds.
pub(super) struct Held {
    journal: Journal,
    batches: Vec<Extent>,
    left_behind: LeftBehind,
}

impl Held {
    /// Reads it as a start does, and makes durable what it reads. `each` is given all of its updates.
    pub fn of(site: &Stopped<'_>, each: &mut dyn FnMut(&Update)) -> Result<Held, ChangeError> {
        let Superblock { group, known_durable, .. } = site.superblock;
        let mut durable = known_durable;
        let journal = ring::chain(&site.journal, &site.superblock, &mut |header, updates| {
            updates.iter().for_each(&mut *each);
            for cut in updates.iter().filter(|update| update.kind == UpdateKind::Cut) {
                durable = durable.min(cut.number);
            }
            durable = durable.max(header.known_durable);
        })?;
        site.journal.sync()?;
        let left_behind = ring::left_behind(&site.journal, group, &journal, site.config.journal.volatile)?;
        if durable.max(left_behind.known_durable) > journal.appended() {
            return Err(ChangeError::Rotten { path: site.config.journal.path.clone() });
        }
        let batches = journal.batches();
        let batches =
            batches.map(|batch| Extent { block: batch.position.block, blocks: batch.blocks.into() });
        Ok(Held { batches: batches.collect(), journal, left_behind })
    }

    fn blocks(&self) -> u64 {
        self.batches.iter().map(|batch| batch.blocks).sum()
    }

    /// Where it goes in a ring of another size.
    fn layout(&self, site: &Stopped<'_>, want: u64) -> Result<Layout, ChangeError> {
        let laid = layout(&self.batches, self.journal.head().block, want);
        let most = Journal::usable_blocks(want - RING_FIRST_BLOCK) * KEPT_PERCENT_MAX / 100;
        let fits = want > self.journal.ring_end() || laid.as_ref().is_some_and(|laid| laid.used <= most);
        laid.filter(|_| fits).ok_or_else(|| {
            let bytes = |blocks| blocks * BLOCK_BYTES as u64;
            let path = site.config.journal.path.clone();
            ChangeError::Held { path, held: bytes(self.blocks()), want: bytes(want), most: bytes(most) }
        })
    }

    /// What was under way behind a torn batch when the site died never was; in a ring of another size a start might look for it elsewhere.
    fn forget_left_behind(&self, site: &Stopped<'_>) -> Result<(), ChangeError> {
        for block in &self.left_behind.blocks {
            site.journal.write_blocks(*block, &[0; BLOCK_BYTES])?;
        }
        Ok(site.journal.sync()?)
    }

    /// Copies what has to be elsewhere, and sees to it that a start will find all of it.
    fn lay(&self, site: &mut Stopped<'_>, layout: &Layout, want: u64) -> Result<(), ChangeError> {
        for Move { from, to, blocks } in &layout.moves {
            let mut batch = vec![0; *blocks as usize * BLOCK_BYTES];
            site.journal.read_blocks(*from, &mut batch)?;
            site.journal.write_blocks(*to, &batch)?;
        }
        site.journal.sync()?;
        let mut resized = Superblock { journal_blocks: want, ..site.superblock };
        resized.position.block = layout.first;
        let found = ring::chain(&site.journal, &resized, &mut |_, _| {})?;
        let told = |journal: &Journal| -> (usize, UpdateNumber, _, _) {
            let head = journal.head();
            (journal.batches().count(), journal.appended(), head.sequence, head.previous)
        };
        if told(&found) != told(&self.journal) || found.used_blocks() != layout.used {
            return Err(ChangeError::NotReadBack { path: site.config.journal.path.clone() });
        }
        site.superblock = resized;
        Ok(())
    }
}
