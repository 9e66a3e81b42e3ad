//! A site that nobody knows what it lacks: its disks are new, or its journal is. All blocks are compared, and what differs is copied.

use super::*;

impl Split {
    /// Nothing of what both had is in the journal of the kept site, which goes on alone.
    fn left_alone(gone: usize) -> Split {
        let mut split = Split::joined(gone);
        split.until("all is in the volumes", |split| {
            [0, 1].into_iter().all(|site| split.status(site).checkpoint == split.status(0).last)
        });
        split.unlink();
        split.until("the primary is alone", |split| split.status(0).solo);
        for lba in (0..BLOCKS).step_by(8) {
            split.write(0, lba, 4);
        }
        split
    }

    /// The site is formatted anew, and keeps of its disks what is wanted.
    fn replace(&mut self, keeps: impl Fn(IoTarget) -> bool) {
        let site = &mut self.pair.sites[self.gone];
        let mut again = Site::formatted(site.config.clone());
        let disks = std::mem::take(&mut site.disks);
        again.disks.extend(disks.into_iter().filter(|((target, _), _)| keeps(*target)));
        self.start(self.gone, again);
        assert_eq!(self.status(self.gone).last, UpdateNumber::NONE);
    }

    fn counted(&self) -> [u64; 2] {
        let counters = self.status(0).counters;
        [counters.resync_blocks, counters.resync_equal_blocks]
    }
}

fn kept(target: IoTarget) -> bool {
    matches!(target, IoTarget::Volume(_) | IoTarget::Checksums(_))
}

#[test]
fn a_site_with_new_disks_is_copied_everything() {
    let mut split = Split::left_alone(1);
    split.replace(|_| false);
    split.link();
    split.until("it is being copied to", |split| split.status(1).peer == PeerState::Resyncing);
    assert!(split.status(0).resync.whole);
    let held = split.holds[0].len() as u64;
    split.busy = true;
    split.until("what it is copied is whole", |split| split.installed);
    let [copied, equal] = split.counted();
    assert!(copied >= held, "{copied} of {held} blocks copied");
    assert!(copied + equal >= VOLUME_BLOCKS, "{copied} copied, {equal} equal");
    split.finish();
    assert!(split.written > 0, "hosts went on");
}

#[test]
fn a_site_that_holds_nothing_yet_is_not_promoted() {
    let mut split = Split::left_alone(1);
    split.replace(|_| false);
    split.link();
    split.until("something was left out", |split| split.counted()[1] > 0);
    let mut refused = 0;
    for id in 10..13 {
        split.ask(1, id, AdminOp::Promote { fenced: true });
        assert_eq!(split.answer(id), Err(AdminError::HoldsNothing));
        refused += 1;
        // Nobody else is there to tell it.
        split.crash(1);
    }
    assert_eq!((refused, split.installed), (3, false));
    split.link();
    split.until("what it is copied is whole", |split| split.installed);
    split.unlink();
    split.ask(1, 20, AdminOp::Promote { fenced: true });
    assert!(split.answer(20).is_ok());
    // Formatted again it is nobody's but its operator's.
    let mut split = Split::left_alone(1);
    split.replace(|_| false);
    split.ask(1, 30, AdminOp::Promote { fenced: true });
    assert!(split.answer(30).is_ok());
}

#[test]
fn what_is_equal_at_both_is_not_copied() {
    let mut split = Split::left_alone(1);
    // A block of zeros that was written has a checksum, by which a repair asks for it; one that never was has none.
    split.write(0, BLOCKS + 7, 0);
    split.replace(kept);
    split.link();
    split.until("what it is copied is whole", |split| split.installed);
    let [copied, equal] = split.counted();
    assert_eq!(copied, BLOCKS.div_ceil(8) + 1, "those that were written meanwhile");
    assert_eq!(equal, VOLUME_BLOCKS - copied);
    split.finish();
}

/// If power was lost between, a start would take a block for zeros, and leave it as it is (simulator seed 16882).
#[test]
fn checksums_of_what_is_installed_come_behind_its_blocks() {
    let mut split = Split::left_alone(1);
    split.replace(kept);
    split.link();
    split.until("what it is copied is whole", |split| split.installed);
    let requests = &split.pair.sites[1].requests;
    let sums = requests.iter().position(|at| matches!(at, (IoTarget::Checksums(_), IoOp::Write)));
    let before = &requests[..sums.expect("checksums are written")];
    let blocks = before.iter().rposition(|at| matches!(at, (IoTarget::Volume(_), IoOp::Write)));
    let flush = before.iter().rposition(|at| matches!(at, (IoTarget::Volume(_), IoOp::Flush)));
    assert!(blocks.expect("blocks are written") < flush.expect("and flushed"));
}

#[test]
fn a_block_that_has_gone_bad_is_equal_to_none() {
    let mut split = Split::left_alone(1);
    split.replace(kept);
    // As large a difference as any: nobody notices but by reading.
    let block =
        split.pair.sites[1].disks.get_mut(&(IoTarget::Volume(VolumeId(0)), 3)).expect("it was written");
    block[100] ^= 1;
    split.link();
    split.until("what it is copied is whole", |split| split.installed);
    assert_eq!(split.counted()[0], BLOCKS.div_ceil(8) + 1);
    split.finish();
}

#[test]
fn a_block_that_changes_after_it_was_found_equal_is_copied_as_it_is_in_the_end() {
    // To something else, and back to what both had: what is staged is not what its digest was of any more.
    for back in [false, true] {
        let mut split = Split::left_alone(1);
        split.replace(kept);
        split.link();
        split.until("something is equal", |split| split.counted()[1] > 0);
        for lba in (0..BLOCKS).filter(|lba| lba % 8 != 0 && lba % 3 == 0) {
            split.write(0, lba, 9);
        }
        for lba in (0..BLOCKS).filter(|lba| back && lba % 8 != 0 && lba % 3 == 0) {
            split.write(0, lba, 1);
        }
        split.until("what it is copied is whole", |split| split.installed);
        split.finish();
    }
}

#[test]
fn either_site_may_die_while_all_is_compared() {
    for (run, steps) in (0..60).map(|run| (run, run * run / 16)) {
        let mut split = Split::left_alone(1);
        split.replace(if run % 2 == 0 { kept } else { |_: IoTarget| false });
        split.link();
        split.busy = run % 3 > 0;
        for _ in 0..steps {
            split.step();
        }
        if !split.installed {
            split.crash(if run % 4 < 2 { 0 } else { 1 });
        }
        split.finish();
    }
}

#[test]
fn digests_of_other_disks_count_for_nothing() {
    let mut split = Split::left_alone(1);
    split.replace(kept);
    split.link();
    split.until("something is equal", |split| split.counted()[1] > 0);
    // Nothing was staged yet that would tell these disks from the next ones.
    split.replace(|_| false);
    split.link();
    split.until("what it is copied is whole", |split| split.installed);
    split.finish();
}

/// Then nothing at all is staged, and that is what is installed.
#[test]
fn a_site_whose_blocks_are_all_equal_is_whole_with_an_empty_log() {
    let mut split = Split::joined(1);
    // Zeros would be staged as such.
    for lba in 0..VOLUME_BLOCKS {
        split.write(0, lba, 1);
    }
    split.until("all is in the volumes", |split| {
        [0, 1].into_iter().all(|site| split.status(site).checkpoint == split.status(0).last)
    });
    split.unlink();
    split.until("the primary is alone", |split| split.status(0).solo);
    let settled = |split: &Split| split.status(0).settled == split.status(0).last;
    split.until("all that it has is settled", settled);
    split.replace(kept);
    split.link();
    split.until("what it is copied is whole", |split| split.installed);
    assert_eq!(split.counted(), [0, VOLUME_BLOCKS]);
    split.finish();
}
