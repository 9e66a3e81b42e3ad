use super::mending::{due, rested};
use super::*;

fn ask(pair: &mut Pair, site: usize, first: u64, count: u32, reads: bool) {
    let extent = Extent { volume: VolumeId(0), first: Lba(first), count, reads };
    let (now, op) = (pair.now, AdminOp::Compare { extent });
    pair.sites[site].with(now, |group, turn| group.on_admin(turn, AdminRequest { id: 9, op }));
}

fn answer(pair: &mut Pair) -> Result<UpdateNumber, AdminError> {
    pair.run_until("an answer", |pair| !pair.sites[0].out.to_admin.is_empty());
    pair.sites[0].out.to_admin.pop().expect("there is one").result
}

fn compare(pair: &mut Pair, first: u64, count: u32) -> Result<UpdateNumber, AdminError> {
    ask(pair, 0, first, count, true);
    answer(pair)
}

#[test]
fn sites_that_are_the_same_are_found_to_be_while_hosts_write() {
    let mut pair = pair();
    for round in 0..60u64 {
        let (first, count) = (round * 37 % 256, 1 + round as u32 * 7 % COMPARE_BLOCKS_MAX);
        ask(&mut pair, 0, first, count, round % 2 == 0);
        for ticket in 0..24 {
            let now = pair.now;
            pair.sites[0].write(
                now,
                ticket as u32,
                (first + ticket * 5) % VOLUME_BLOCKS,
                (round + ticket) as u8,
                false,
            );
            if ticket % 5 == round % 5 {
                pair.sites[(round % 2) as usize].group.want_sweep();
                pair.step();
            }
        }
        let at = answer(&mut pair).expect("they are the same");
        assert!(at <= pair.sites[0].group.status(pair.now).settled);
        (0..24).for_each(|ticket| assert_eq!(pair.reply(0, ticket), Ok(())));
    }
}

/// The site holds another block there than it should, and believes it.
fn plant(pair: &mut Pair, site: usize, lba: u64, fill: u8) {
    let block = Box::new([fill; BLOCK_BYTES]);
    let sums = pair.sites[site].disks.get_mut(&(IoTarget::Checksums(VolumeId(0)), 0)).expect("written");
    let at = 4 * lba as usize;
    sums[at..at + 4].copy_from_slice(&sum_of_block(&block).0.to_le_bytes());
    pair.sites[site].disks.insert(key(lba), block);
}

/// Both have everything, but for these blocks of site 1; `cold` has nothing in memory.
fn apart(cold: &[usize], lbas: &[u64]) -> Pair {
    let mut pair = rested(cold);
    let connection = 1 + cold.len() as u32;
    lbas.iter().for_each(|&lba| plant(&mut pair, 1, lba, 0xd1));
    // It reads its checksums at a start.
    pair.restart(1, connection);
    pair.connect(connection + 1);
    pair.in_sync();
    pair
}

fn ask_to_equalise(pair: &mut Pair, lba: u64, theirs: bool) {
    let (now, op) = (pair.now, AdminOp::Equalise { volume: VolumeId(0), lba: Lba(lba), theirs });
    pair.sites[0].with(now, |group, turn| group.on_admin(turn, AdminRequest { id: 9, op }));
}

/// Both sites have it, to be read and on their disks.
fn both_have(pair: &mut Pair, lba: u64, fill: u8) {
    pair.settled();
    assert_eq!([0, 1].map(|site| pair.read(site, lba)), [fill; 2], "block {lba}");
    pair.run_until("it is on both disks", |pair| {
        [0, 1].iter().all(|&site| pair.sites[site].holds(lba, fill))
    });
    assert!(compare(pair, lba, 1).is_ok());
}

#[test]
fn a_block_that_differs_becomes_what_the_named_site_has_of_it_at_both() {
    for (cold, theirs) in [(&[][..], false), (&[], true), (&[0], false), (&[0], true)] {
        // The last one is zeros at the primary.
        let mut pair = apart(cold, &[5, 70]);
        for lba in [5, 70] {
            ask_to_equalise(&mut pair, lba, theirs);
            let at = answer(&mut pair).expect("it is done");
            assert!(at <= pair.sites[0].group.status(pair.now).settled, "it is durable at both");
            both_have(&mut pair, lba, if theirs { 0xd1 } else { due(lba) });
            let last = pair.sites[0].group.status(pair.now).last;
            ask_to_equalise(&mut pair, lba, theirs);
            assert!(answer(&mut pair).is_ok());
            assert_eq!(
                pair.sites[0].group.status(pair.now).last,
                last,
                "what is the same is not written again"
            );
        }
        assert!(compare(&mut pair, 0, 256).is_ok());
    }
}

#[test]
fn zeros_of_the_peer_are_taken_without_asking_for_them() {
    let mut pair = rested(&[]);
    plant(&mut pair, 0, 200, 0xd1);
    pair.restart(0, 1);
    pair.connect(2);
    pair.in_sync();
    assert_eq!((pair.read(0, 200), pair.read(1, 200)), (0xd1, 0));
    ask_to_equalise(&mut pair, 200, true);
    assert!(answer(&mut pair).is_ok());
    both_have(&mut pair, 200, 0);
}

#[test]
fn what_a_host_writes_meanwhile_stays_whenever_it_comes() {
    for (theirs, steps, again) in (0..32).flat_map(|steps| {
        [(false, steps, false), (true, steps, false), (false, steps, true), (true, steps, true)]
    }) {
        let mut pair = apart(&[0], &[5]);
        ask_to_equalise(&mut pair, 5, theirs);
        (0..steps).for_each(|_| pair.step());
        let now = pair.now;
        // And if it writes what was there before, that is as good as anything else.
        let fills = if again { [7, due(5)] } else { [due(5), 7] };
        (0..2).for_each(|ticket| pair.sites[0].write(now, 1 + ticket, 5, fills[ticket as usize], false));
        (0..2).for_each(|ticket| assert_eq!(pair.reply(0, 1 + ticket), Ok(())));
        assert!(answer(&mut pair).is_ok(), "{theirs} after {steps}");
        both_have(&mut pair, 5, fills[1]);
    }
}

#[test]
fn a_block_that_has_gone_bad_at_the_named_site_is_not_taken_from_there() {
    for theirs in [false, true] {
        let mut pair = apart(&[0], &[5]);
        pair.sites[usize::from(theirs)].flip(5);
        ask_to_equalise(&mut pair, 5, theirs);
        assert_eq!(answer(&mut pair), Err(AdminError::SourceDamaged));
        ask_to_equalise(&mut pair, 5, !theirs);
        assert!(answer(&mut pair).is_ok());
        both_have(&mut pair, 5, if theirs { due(5) } else { 0xd1 });
    }
}

#[test]
fn a_block_is_not_taken_from_a_site_that_is_not_in_lockstep() {
    let mut pair = apart(&[], &[5]);
    let now = pair.now;
    let op = AdminOp::Equalise { volume: VolumeId(0), lba: Lba(5), theirs: false };
    pair.sites[1].with(now, |group, turn| group.on_admin(turn, AdminRequest { id: 9, op }));
    assert_eq!(pair.sites[1].out.to_admin.pop().expect("at once").result, Err(AdminError::ReadOnly));
    for steps in 0..12 {
        ask_to_equalise(&mut pair, 5, true);
        (0..steps).for_each(|_| pair.step());
        let connection = 2 + steps;
        pair.disconnect(connection);
        if let Ok(done) = answer(&mut pair) {
            assert!(done <= pair.sites[0].group.status(pair.now).settled);
        }
        ask_to_equalise(&mut pair, 5, true);
        assert_eq!(answer(&mut pair), Err(AdminError::NotInLockstep));
        pair.connect(connection + 1);
        pair.in_sync();
    }
    ask_to_equalise(&mut pair, 5, true);
    assert!(answer(&mut pair).is_ok());
    both_have(&mut pair, 5, 0xd1);
}

#[test]
fn what_differs_is_found_to_the_block_and_is_equal_once_it_is_written() {
    let mut pair = apart(&[], &[5, 70, 300]);
    for (first, count, differs) in
        [(0, 256, true), (256, 256, true), (0, 5, false), (5, 1, true), (6, 64, false), (301, 211, false)]
    {
        let found = compare(&mut pair, first, count);
        assert_eq!(found.err(), differs.then_some(AdminError::Differ), "{count} blocks from {first}");
    }
    // While the others are written, too.
    for round in 0..10 {
        let now = pair.now;
        pair.sites[0].write(now, 1, 6 + round, 7, false);
        assert_eq!(compare(&mut pair, 0, 16), Err(AdminError::Differ));
        assert_eq!(pair.reply(0, 1), Ok(()));
    }
    for lba in [5, 70, 300] {
        let now = pair.now;
        pair.sites[0].write(now, 1, lba, due(lba), true);
        assert_eq!(pair.reply(0, 1), Ok(()));
    }
    assert!(compare(&mut pair, 0, 256).is_ok() && compare(&mut pair, 256, 256).is_ok());
}

#[test]
fn zeros_that_were_written_are_as_good_as_none() {
    let mut pair = rested(&[]);
    let now = pair.now;
    pair.sites[0].write(now, 1, 200, 0, true);
    assert_eq!(pair.reply(0, 1), Ok(()));
    pair.quiet();
    let sums = pair.sites[1].disks.get_mut(&(IoTarget::Checksums(VolumeId(0)), 0)).expect("written");
    sums[800..804].fill(0);
    assert!(compare(&mut pair, 128, 128).is_ok());
}

#[test]
fn what_has_gone_bad_on_a_disk_is_counted_and_repaired_on_the_way() {
    for site in [0, 1] {
        let mut pair = rested(&[]);
        [3, 60, 200].iter().for_each(|&lba| pair.sites[site].flip(lba));
        assert!(compare(&mut pair, 0, 256).is_ok());
        let counters = pair.sites[0].group.status(pair.now).counters;
        let expected = if site == 0 { (3, 0) } else { (0, 3) };
        assert_eq!((counters.damaged_here, counters.damaged_there), expected);
        pair.run_until("they are whole", |pair| {
            [3, 60, 200].iter().all(|&lba| pair.sites[site].holds(lba, due(lba)))
        });
        // What is only looked at in memory says nothing of disks.
        pair.sites[site].flip(9);
        ask(&mut pair, 0, 0, 256, false);
        assert!(answer(&mut pair).is_ok());
        let after = pair.sites[0].group.status(pair.now).counters;
        assert_eq!((after.damaged_here, after.damaged_there), expected);
    }
}

#[test]
fn a_comparison_is_refused_where_it_would_say_nothing() {
    let mut pair = rested(&[]);
    ask(&mut pair, 1, 0, 8, true);
    let refused = pair.sites[1].out.to_admin.pop().expect("at once").result;
    assert_eq!(refused, Err(AdminError::ReadOnly));
    assert_eq!(compare(&mut pair, VOLUME_BLOCKS - 3, 4), Err(AdminError::NoSuchVolume));
    assert_eq!(compare(&mut pair, 0, COMPARE_BLOCKS_MAX + 1), Err(AdminError::NoSuchVolume));
    assert_eq!(compare(&mut pair, u64::MAX, 4), Err(AdminError::NoSuchVolume));
    ask(&mut pair, 0, 0, 8, true);
    ask(&mut pair, 0, 8, 8, true);
    assert_eq!(pair.sites[0].out.to_admin.pop().expect("at once").result, Err(AdminError::Busy));
    pair.disconnect(1);
    assert_eq!(answer(&mut pair), Err(AdminError::LinkLost));
    assert_eq!(compare(&mut pair, 0, 8), Err(AdminError::NotInLockstep));
    pair.connect(2);
    pair.in_sync();
    assert!(compare(&mut pair, 0, 8).is_ok());
}

#[test]
fn a_secondary_that_has_settled_more_says_so_and_is_asked_again() {
    let mut pair = rested(&[]);
    let (now, at) = (pair.now, pair.sites[0].group.status(pair.now).settled.previous());
    let extent = Extent { volume: VolumeId(0), first: Lba(0), count: 8, reads: false };
    let asked = FromLink::Control(Control::Compare { at, extent });
    pair.sites[1].with(now, |group, turn| group.on_link(turn, asked));
    let said: Vec<ToLink> = pair.sites[1].drain(now);
    assert!(said.contains(&ToLink::Control(Control::Compared { at, answer: None })), "{said:?}");
    // And a primary that hears it asks as of what it has settled by then.
    ask(&mut pair, 0, 0, 8, false);
    let questions = |site: &mut Site| {
        let said = site.drain(now);
        said.into_iter().filter(|said| matches!(said, ToLink::Control(Control::Compare { .. }))).count()
    };
    assert_eq!(questions(&mut pair.sites[0]), 1);
    let at = at.next();
    let late = FromLink::Control(Control::Compared { at, answer: None });
    pair.sites[0].with(now, |group, turn| group.on_link(turn, late));
    assert_eq!(answer(&mut pair), Ok(at));
}
