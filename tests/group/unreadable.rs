//! Sectors that cannot be read: the block is the peer's, or refused, and a write heals the sector.

use super::mending::{due, outcome, rested, scrub, try_read};
use super::*;
use lockstep::core::group::status::Part;

fn spoil(pair: &mut Pair, site: usize, lba: u64) {
    pair.sites[site].unreadable.insert(key(lba));
    // Nobody gets at what lies there.
    pair.sites[site].disks.insert(key(lba), Box::new([0xbd; BLOCK_BYTES]));
}

#[test]
fn an_unreadable_block_is_read_from_the_peer_and_written_anew() {
    for site in [0, 1] {
        let mut pair = rested(&[site]);
        let bad = [3, 4, 20, 40, 200];
        bad.iter().for_each(|&lba| spoil(&mut pair, site, lba));
        // Many around them are read with them, and are what they were.
        let (result, bytes) = try_read(&mut pair, site, 0, 32);
        assert_eq!((result, bytes), (Ok(()), (0..32).map(due).collect()), "site {site}");
        assert_eq!([40, 200].map(|lba| pair.read(site, lba)), [40, 200].map(due));
        pair.run_until("all can be read", |pair| {
            bad.iter().all(|&lba| pair.sites[site].holds(lba, due(lba)))
        });
        pair.quiet();
        let status = pair.sites[site].group.status(pair.now);
        assert_eq!((status.counters.repaired_blocks, status.counters.unrepaired_blocks), (5, 0));
        assert_eq!(status.repairing_blocks, 0);
    }
}

#[test]
fn what_nobody_can_read_is_refused_alone_until_it_is_written() {
    let mut pair = rested(&[0, 1]);
    [0, 1].iter().for_each(|&site| spoil(&mut pair, site, 9));
    for site in [0, 1] {
        assert_eq!(try_read(&mut pair, site, 0, 32).0, Err(HostError::Io), "site {site}");
        assert_eq!(try_read(&mut pair, site, 0, 9), (Ok(()), (0..9).map(due).collect()));
        assert_eq!(try_read(&mut pair, site, 10, 20), (Ok(()), (10..30).map(due).collect()));
        assert_eq!(pair.sites[site].group.status(pair.now).state, GroupState::Serving);
    }
    let now = pair.now;
    pair.sites[0].write(now, 0, 9, 77, true);
    assert_eq!(pair.reply(0, 0), Ok(()));
    pair.quiet();
    assert_eq!([0, 1].map(|site| pair.read(site, 9)), [77; 2]);
}

#[test]
fn without_a_peer_an_unreadable_block_is_refused_and_repaired_when_it_is_back() {
    let mut pair = rested(&[1]);
    spoil(&mut pair, 1, 13);
    pair.disconnect(2);
    assert_eq!(try_read(&mut pair, 1, 13, 1).0, Err(HostError::Io));
    assert_eq!(try_read(&mut pair, 1, 14, 8), (Ok(()), (14..22).map(due).collect()));
    pair.connect(3);
    pair.in_sync();
    assert_eq!(pair.read(1, 13), due(13));
    pair.run_until("it can be read", |pair| pair.sites[1].holds(13, due(13)));
}

#[test]
fn a_scrub_finds_single_blocks_that_cannot_be_read_and_repairs_them() {
    for site in [0, 1] {
        let mut pair = rested(&[]);
        let bad = [0, 1, 40, 63, 200, VOLUME_BLOCKS - 1];
        bad.iter().for_each(|&lba| spoil(&mut pair, site, lba));
        let sums = (IoTarget::Checksums(VolumeId(0)), 0);
        pair.sites[site].unreadable.insert(sums);
        let status = scrub(&mut pair, site);
        assert_eq!(outcome(&status, Part::Volumes), (6, 6, 0));
        assert_eq!(outcome(&status, Part::Checksums), (1, 1, 0));
        assert!(bad.iter().all(|&lba| pair.sites[site].holds(lba, due(lba))));
        assert!(!pair.sites[site].unreadable.contains(&sums));
        assert_eq!(scrub(&mut pair, site).sum().bad, 0);
    }
}

#[test]
fn checksums_that_cannot_be_read_at_a_start_are_named_and_the_site_stays_out() {
    let mut pair = rested(&[]);
    let (now, site) = (pair.now, &mut pair.sites[1]);
    site.die();
    site.may_refuse = true;
    site.unreadable.insert((IoTarget::Checksums(VolumeId(0)), 0));
    site.with(now, |group, turn| group.start(turn));
    for _ in 0..100 {
        site.with(now, |group, turn| group.end_turn(turn));
        site.drain(now);
    }
    assert_eq!(site.group.status(now).state, GroupState::Failed);
}
