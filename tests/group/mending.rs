//! Volume blocks that have gone bad, and the peer's that take their place.

use super::*;
use lockstep::core::group::status::{BadPlace, Part, PartStatus, ScrubStatus};

/// Blocks with data, each with a content of its own.
pub const BLOCKS: u64 = 64;

pub fn due(lba: u64) -> u8 {
    if lba < BLOCKS { lba as u8 + 1 } else { 0 }
}

/// Both volumes have everything, and `cold` has nothing in memory.
pub fn rested(cold: &[usize]) -> Pair {
    let mut pair = pair();
    for lba in 0..BLOCKS {
        let now = pair.now;
        pair.sites[0].write(now, lba as u32, lba, due(lba), false);
        assert_eq!(pair.reply(0, lba as u32), Ok(()));
    }
    pair.run_until("checkpoints of everything", |pair| {
        pair.sites.iter().all(|site| {
            let status = site.group.status(pair.now);
            status.checkpoint == status.last && status.last > UpdateNumber(BLOCKS)
        })
    });
    for (connection, &site) in cold.iter().enumerate() {
        pair.restart(site, connection as u32 + 1);
        pair.connect(connection as u32 + 2);
        pair.in_sync();
    }
    pair.sites.iter_mut().for_each(|site| site.may_refuse = true);
    pair
}

/// What a read of some blocks comes to, and the first byte of each.
pub fn try_read(pair: &mut Pair, site: usize, lba: u64, count: u32) -> (Result<(), HostError>, Vec<u8>) {
    let pages = pair.sites[site].begin_read(pair.now, 901, lba, count);
    let result = pair.reply(site, 901);
    (result, pair.sites[site].end_read(pages).into_iter().map(|(first, _)| first).collect())
}

#[test]
fn a_bad_block_is_read_from_the_peer_and_whole_on_the_disk_again() {
    for site in [0, 1] {
        let mut pair = rested(&[site]);
        // The last one reads as zeros.
        for lba in [3, 4, 40, 200] {
            pair.sites[site].flip(lba);
            assert_eq!(pair.read(site, lba), due(lba), "site {site} block {lba}");
            pair.run_until("it is on the disk", |pair| pair.sites[site].holds(lba, due(lba)));
        }
        pair.quiet();
        let counters = pair.sites[site].group.status(pair.now).counters;
        assert_eq!((counters.repaired_blocks, counters.unrepaired_blocks), (4, 0));
        assert_eq!(pair.sites[site].group.status(pair.now).repairing_blocks, 0);
    }
}

#[test]
fn more_bad_blocks_than_are_repaired_at_once_are_all_read() {
    let mut pair = rested(&[0]);
    let count = UPDATE_BLOCKS_MAX as u64;
    assert!(count > REPAIRS_MAX as u64);
    (0..count).for_each(|lba| pair.sites[0].flip(lba));
    let (result, bytes) = try_read(&mut pair, 0, 0, count as u32);
    assert_eq!(result, Ok(()));
    assert_eq!(bytes, (0..count).map(due).collect::<Vec<_>>());
    pair.run_until("all of them are on the disk", |pair| {
        (0..count).all(|lba| pair.sites[0].holds(lba, due(lba)))
    });
}

#[test]
fn a_block_that_is_bad_at_both_sites_is_refused_at_both_until_it_is_written_anew() {
    let mut pair = rested(&[0, 1]);
    [0, 1].iter().for_each(|&site| pair.sites[site].flip(9));
    for site in [0, 1] {
        assert_eq!(try_read(&mut pair, site, 9, 1).0, Err(HostError::Io), "site {site}");
        assert_eq!(pair.read(site, 10), due(10));
        assert!(pair.sites[site].group.status(pair.now).counters.unrepaired_blocks > 0);
    }
    let now = pair.now;
    pair.sites[0].write(now, 0, 9, 77, true);
    assert_eq!(pair.reply(0, 0), Ok(()));
    pair.quiet();
    assert_eq!([0, 1].map(|site| pair.read(site, 9)), [77; 2]);
}

#[test]
fn a_partial_write_over_a_bad_block_keeps_what_the_peer_has_of_it() {
    let mut pair = rested(&[0]);
    pair.sites[0].flip(7);
    let now = pair.now;
    let page = pair.sites[0].front_pages.pop().expect("granted");
    pair.sites[0].memory.bytes_mut(page)[512..1024].fill(0xaa);
    pair.sites[0].tables.fronts[0].set(SlotId(5), 0, page, BlockSum::ZEROS);
    pair.sites[0].request(now, 5, HostOp::WritePartial { lba: Lba(7), offset: 512, length: 512, fua: true });
    assert_eq!(pair.reply(0, 5), Ok(()));
    let mut expected = [due(7); BLOCK_BYTES];
    expected[512..1024].fill(0xaa);
    for site in [0, 1] {
        pair.run_until("both have it", |pair| {
            pair.sites[site].disks.get(&key(7)).is_some_and(|block| **block == expected)
        });
    }
}

#[test]
fn a_newer_block_is_never_written_over_by_an_older_one_that_is_repaired() {
    for steps in 0..12 {
        let mut pair = rested(&[0]);
        pair.sites[0].flip(11);
        let pages = pair.sites[0].begin_read(pair.now, 902, 11, 1);
        (0..steps).for_each(|_| pair.step());
        let now = pair.now;
        pair.sites[0].write(now, 1, 11, 99, true);
        pair.sites[0].group.want_sweep();
        assert_eq!(pair.reply(0, 1), Ok(()));
        assert_eq!(pair.reply(0, 902), Ok(()));
        let (read, _) = pair.sites[0].end_read(pages)[0];
        assert!(read == due(11) || read == 99, "{read}");
        pair.run_until("it is on both disks", |pair| {
            [0, 1].iter().all(|&site| pair.sites[site].holds(11, 99))
        });
        pair.quiet();
        assert!([0, 1].iter().all(|&site| pair.sites[site].holds(11, 99)), "after {steps} steps");
    }
}

#[test]
fn without_a_peer_a_bad_block_is_refused_at_once_and_repaired_when_it_is_back() {
    let mut pair = rested(&[1]);
    pair.sites[1].flip(13);
    pair.disconnect(2);
    assert_eq!(try_read(&mut pair, 1, 13, 1).0, Err(HostError::Io));
    pair.connect(3);
    pair.in_sync();
    assert_eq!(pair.read(1, 13), due(13));
    pair.run_until("it is on the disk", |pair| pair.sites[1].holds(13, due(13)));
}

/// What a read of a bad block comes to if the peer answers so many questions with that it is busy, how many it was asked, and for how long.
fn read_from_busy_peer(busy: u32) -> (Result<(), HostError>, u32, Nanos) {
    let mut pair = rested(&[0]);
    pair.sites[0].flip(5);
    let (began, mut asked) = (pair.now, 0);
    let pages = pair.sites[0].begin_read(began, 903, 5, 1);
    let is = |reply: &HostReply| reply.ticket == SlotId(903);
    while !pair.sites[0].replies.iter().any(is) {
        pair.now = pair.now.plus(Nanos::from_micros(200));
        let (now, [site, peer]) = (pair.now, &mut pair.sites);
        site.with(now, |group, turn| group.end_turn(turn));
        for message in site.drain(now) {
            if let ToLink::Control(Control::BlockWanted { place, .. }) = message {
                asked += 1;
                if asked <= busy {
                    let lacking = Control::BlockLacking { place, why: Lacking::Busy };
                    site.with(now, |group, turn| group.on_link(turn, FromLink::Control(lacking)));
                    continue;
                }
            }
            peer.receive(now, site, message);
        }
        peer.with(now, |group, turn| group.end_turn(turn));
        for message in peer.drain(now) {
            site.receive(now, peer, message);
        }
    }
    let at = pair.sites[0].replies.iter().position(is).expect("awaited");
    let result = pair.sites[0].replies[at].result;
    assert!(result.is_err() || pair.sites[0].end_read(pages) == [(due(5), true)]);
    (result, asked, pair.now.since(began))
}

/// Simulator seed 9244: a sweep kept a bad block for a snapshot because the peer was sending it another.
#[test]
fn a_busy_peer_is_asked_again_but_not_for_ever() {
    let (result, asked, _) = read_from_busy_peer(3);
    assert_eq!((result, asked), (Ok(()), 4));
    let (result, asked, took) = read_from_busy_peer(u32::MAX);
    assert_eq!(result, Err(HostError::Io));
    assert!(asked > 100 && took < Nanos::from_millis(1_100), "{asked} questions in {took:?}");
}

fn ask_to_scrub(pair: &mut Pair, site: usize, blocks_per_second: u64) {
    let op = AdminOp::Scrub { blocks_per_second };
    let now = pair.now;
    pair.sites[site].with(now, |group, turn| group.on_admin(turn, AdminRequest { id: 7, op }));
    let reply = pair.sites[site].out.to_admin.pop();
    assert_eq!(reply, Some(AdminReply { id: 7, result: Ok(UpdateNumber::NONE) }));
}

pub fn scrub(pair: &mut Pair, site: usize) -> ScrubStatus {
    ask_to_scrub(pair, site, 1_000_000);
    pair.run_until("the scrub is over", |pair| !pair.sites[site].group.status(pair.now).scrub.active);
    let status = pair.sites[site].group.status(pair.now).scrub;
    assert!(status.complete);
    let volumes = status.part(Part::Volumes);
    assert_eq!((volumes.read, volumes.total), (VOLUME_BLOCKS, VOLUME_BLOCKS));
    let sums = status.part(Part::Checksums);
    assert_eq!((sums.read, sums.total), (1, 1));
    status
}

/// Bad, repaired and unrepaired.
pub fn outcome(status: &ScrubStatus, part: Part) -> (u64, u64, u64) {
    let PartStatus { bad, repaired, unrepaired, .. } = status.part(part);
    (bad, repaired, unrepaired)
}

#[test]
fn a_scrub_finds_what_nobody_reads_and_repairs_it() {
    for site in [0, 1] {
        // Everything is in memory, so that no read would find it.
        let mut pair = rested(&[]);
        let bad = [0, 1, 40, 63, 200, VOLUME_BLOCKS - 1];
        bad.iter().for_each(|&lba| pair.sites[site].flip(lba));
        let status = scrub(&mut pair, site);
        assert_eq!(outcome(&status, Part::Volumes), (6, 6, 0));
        assert!(bad.iter().all(|&lba| pair.sites[site].holds(lba, due(lba))));
        let status = scrub(&mut pair, site);
        assert_eq!(status.sum().bad, 0);
    }
}

#[test]
fn a_scrub_names_what_is_bad_at_both_sites_and_goes_on() {
    let mut pair = rested(&[0, 1]);
    for site in [0, 1] {
        (100..140).chain([9, 300]).for_each(|lba| pair.sites[site].flip(lba));
    }
    pair.sites[0].flip(400);
    let status = scrub(&mut pair, 0);
    assert_eq!(outcome(&status, Part::Volumes), (43, 1, 42));
    let known = |place: &&BadPlace| matches!(place, BadPlace::Volume(_, lba) if *lba == Lba(9) || (100..140).contains(&lba.0));
    assert_eq!(status.named().iter().filter(known).count(), SCRUB_NAMED_MAX);
    assert!(pair.sites[0].holds(400, 0));
}

#[test]
fn a_scrub_ends_where_it_is_told_to_and_hosts_are_served_meanwhile() {
    let mut pair = rested(&[0]);
    ask_to_scrub(&mut pair, 0, 100);
    for round in 0..20 {
        let now = pair.now;
        pair.sites[0].write(now, 1, round, 0xb0, true);
        assert_eq!(pair.reply(0, 1), Ok(()));
    }
    let status = pair.sites[0].group.status(pair.now).scrub;
    assert!(status.active && status.part(Part::Volumes).read < VOLUME_BLOCKS, "{status:?}");
    ask_to_scrub(&mut pair, 0, 0);
    pair.quiet();
    let status = pair.sites[0].group.status(pair.now).scrub;
    assert!(!status.active && !status.complete, "{status:?}");
}

#[test]
fn a_pass_that_begins_while_the_last_ones_read_is_under_way_reads_everything() {
    let mut pair = rested(&[]);
    ask_to_scrub(&mut pair, 0, 1_000_000);
    (0..7).for_each(|_| pair.step());
    // A read is submitted in the turn that ends here, and completes behind the next two requests.
    let now = pair.now.plus(Nanos::from_micros(200));
    pair.sites[0].with(now, |group, turn| group.end_turn(turn));
    assert!(!pair.sites[0].out.to_volumes.is_empty());
    ask_to_scrub(&mut pair, 0, 0);
    scrub(&mut pair, 0);
}

/// Simulator seed 25: what a sweep wrote before its checkpoint is newer than the checksums that a start finds.
#[test]
fn a_block_that_a_sweep_had_written_before_a_crash_is_not_bad() {
    let mut pair = rested(&[]);
    let now = pair.now;
    pair.sites[0].write(now, 1, 0, 0xa1, true);
    assert_eq!(pair.reply(0, 1), Ok(()));
    pair.settled();
    assert!(pair.sites[1].holds(0, due(0)));
    pair.sites[1].disks.insert(key(0), Box::new([0xa1; BLOCK_BYTES]));
    pair.restart(1, 1);
    // Without its primary it does not know that what it replays is settled, and sweeps none of it.
    pair.run_until("recovered", |pair| pair.sites[1].group.status(pair.now).state != GroupState::Recovering);
    let status = pair.sites[1].group.status(pair.now);
    assert!(status.checkpoint < status.last, "{status:?}");
    assert_eq!(scrub(&mut pair, 1).sum().bad, 0);
}

#[test]
fn a_checksum_file_that_has_gone_bad_is_written_anew_from_memory() {
    for site in [0, 1] {
        let mut pair = rested(&[]);
        let key = (IoTarget::Checksums(VolumeId(0)), 0);
        let was = pair.sites[site].disks[&key].clone();
        pair.sites[site].disks.get_mut(&key).expect("it is there")[77] ^= 1;
        let status = scrub(&mut pair, site);
        assert_eq!(outcome(&status, Part::Checksums), (1, 1, 0));
        assert_eq!(status.sum().bad, 1);
        assert_eq!(pair.sites[site].disks[&key], was);
        assert_eq!(scrub(&mut pair, site).sum().bad, 0);
    }
}

/// The only good copy is in memory, so it is written whatever becomes of the pass.
#[test]
fn a_checksum_file_that_has_gone_bad_is_written_anew_though_the_pass_ends_before() {
    for end in ["stop", "scrub --stop", "scrub --stop amid the read"] {
        let mut pair = rested(&[]);
        let key = (IoTarget::Checksums(VolumeId(0)), 0);
        let was = pair.sites[1].disks[&key].clone();
        pair.sites[1].disks.get_mut(&key).expect("it is there")[77] ^= 1;
        ask_to_scrub(&mut pair, 1, 1_000);
        let of = |pair: &Pair, part| pair.sites[1].group.status(pair.now).scrub.part(part);
        if end == "scrub --stop amid the read" {
            pair.run_until("all of the volume is read", |pair| of(pair, Part::Volumes).read == VOLUME_BLOCKS);
            while pair.sites[1].out.to_volumes.is_empty() {
                pair.now = pair.now.plus(Nanos::from_millis(1));
                let now = pair.now;
                pair.sites[1].with(now, |group, turn| group.end_turn(turn));
            }
        } else {
            pair.run_until("it is found", |pair| of(pair, Part::Checksums).bad == 1);
        }
        let mut now = pair.now;
        if end == "stop" {
            pair.sites[1].with(now, |group, turn| group.stop(turn));
        } else {
            ask_to_scrub(&mut pair, 1, 0);
        }
        pair.sites[1].turns(&mut now, 50);
        assert!(pair.sites[1].group.stopped() == (end == "stop"), "{end}");
        assert!(pair.sites[1].disks[&key] == was, "{end}");
    }
}

#[test]
fn a_checksum_file_that_is_written_while_a_scrub_reads_it_is_not_bad() {
    let mut pair = rested(&[]);
    for round in 1..40u8 {
        ask_to_scrub(&mut pair, 0, 1_000_000);
        for lba in 0..8 {
            let now = pair.now;
            pair.sites[0].write(now, 1, lba, round ^ lba as u8, true);
            pair.sites[0].group.want_sweep();
            assert_eq!(pair.reply(0, 1), Ok(()));
        }
        pair.run_until("the scrub is over", |pair| !pair.sites[0].group.status(pair.now).scrub.active);
        assert_eq!(pair.sites[0].group.status(pair.now).scrub.sum().bad, 0, "round {round}");
    }
}

/// Flips a bit of a block in the journal that holds nothing but this.
fn flip_in_journal(pair: &mut Pair, site: usize, fill: u8) {
    let is = |((target, _), block): &(&(IoTarget, u64), &mut Block)| {
        *target == IoTarget::Journal && block.iter().all(|byte| *byte == fill)
    };
    let (_, block) = pair.sites[site].disks.iter_mut().find(is).expect("it is in the journal");
    block[123] ^= 8;
}

#[test]
fn a_journal_that_has_gone_bad_is_not_needed_behind_a_checkpoint() {
    for site in [0, 1] {
        let mut pair = rested(&[]);
        for fill in [0xa1, 0xa2, 0xa3] {
            let now = pair.now;
            pair.sites[0].write(now, 1, 500, fill, true);
            assert_eq!(pair.reply(0, 1), Ok(()));
        }
        pair.settled();
        flip_in_journal(&mut pair, site, 0xa2);
        let before = pair.sites[site].group.status(pair.now);
        assert!(before.checkpoint < before.settled, "{before:?}");
        let status = scrub(&mut pair, site);
        assert_eq!(outcome(&status, Part::Journal), (1, 1, 0));
        assert_eq!(status.sum().bad, 1);
        let after = pair.sites[site].group.status(pair.now);
        assert!(after.checkpoint >= before.settled && after.journal_used_blocks == 0, "{after:?}");
        // A start finds nothing wrong.
        pair.sites[site].die();
        let now = pair.now;
        pair.sites[site].with(now, |group, turn| group.start(turn));
        pair.run_until("recovered", |pair| {
            let state = pair.sites[site].group.status(pair.now).state;
            assert_ne!(state, GroupState::Failed);
            state != GroupState::Recovering
        });
    }
}

#[test]
fn a_bad_part_of_the_journal_that_is_not_settled_is_named_and_passed_when_the_peer_is_back() {
    let mut pair = rested(&[]);
    pair.disconnect(1);
    let now = pair.now;
    pair.sites[0].write(now, 1, 500, 0xa1, false);
    (0..50).for_each(|_| pair.step());
    flip_in_journal(&mut pair, 0, 0xa1);
    let status = scrub(&mut pair, 0);
    assert_eq!(outcome(&status, Part::Journal), (1, 0, 1));
    assert!(matches!(status.named(), [BadPlace::Journal(_)]), "{:?}", status.named());
    pair.connect(2);
    pair.in_sync();
    pair.settled();
    let status = scrub(&mut pair, 0);
    let PartStatus { repaired, unrepaired, .. } = status.part(Part::Journal);
    assert_eq!(unrepaired, 0, "{status:?}");
    assert!(repaired <= 1);
    pair.run_until("a checkpoint of it", |pair| {
        pair.sites[0].group.status(pair.now).journal_used_blocks == 0
    });
}
