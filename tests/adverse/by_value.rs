//! Differential data by value: what a primary reads first and sends along, and what a secondary makes of it.

use super::*;
use lockstep::format::snapshot::{SnapshotName, SnapshotRecord};

/// Blocks that hold `OLD` when a site starts; those after them were never written.
const CONTENT_BLOCKS: u64 = 400;
const OLD: u8 = 7;
const SNAPSHOT: UpdateNumber = UpdateNumber(2);

fn by_value(role: Role) -> GroupConfig {
    GroupConfig {
        differential_blocks: 2000,
        differential: DifferentialBy::Value,
        pages: PAGES_MIN,
        ..config(role)
    }
}

fn hello_by_value(ours: Role, last: u64) -> Hello {
    let history = [(generation(1, PEER), 1)];
    let history = if ours == Role::Primary { &[] } else { &history[..] };
    Hello { differential_blocks: 2000, differential: DifferentialBy::Value, ..hello(ours, history, last, 0) }
}

/// A site that was there before: its content is in its volume, and nothing of it in its cache.
fn with_content(config: GroupConfig) -> Site {
    let mut site = Site::formatted(config);
    let old = Box::new([OLD; BLOCK_BYTES]);
    let mut sums = Box::new([0; BLOCK_BYTES]);
    for lba in 0..CONTENT_BLOCKS as usize {
        site.disks.insert((IoTarget::Volume(VolumeId(0)), lba as u64), old.clone());
        sums[4 * lba..4 * lba + 4].copy_from_slice(&sum_of_block(&old).0.to_le_bytes());
    }
    site.disks.insert((IoTarget::Checksums(VolumeId(0)), 0), sums);
    site.restarted_holding(nothing)
}

fn record() -> SnapshotRecord {
    let name = SnapshotName::new("monday");
    SnapshotRecord { number: SNAPSHOT, name, volumes: VolumeSet::first(1), ..SnapshotRecord::EMPTY }
}

/// A primary that streams, with a snapshot.
fn primary() -> Site {
    primary_of(by_value(Role::Primary))
}

fn primary_of(config: GroupConfig) -> Site {
    let mut site = with_content(config);
    site.connect(&hello_by_value(Role::Primary, 0));
    site.turns(20);
    site.ack(1, 1, 1, 1);
    let SnapshotRecord { name, volumes, .. } = record();
    let op = AdminOp::CreateSnapshot { name, volumes, protected: false, taken_at_ns: 0 };
    site.with(|group, turn| group.on_admin(turn, AdminRequest { id: 1, op }));
    site.turns(20);
    site.ack(2, 2, 2, 2);
    site.sent.clear();
    site
}

/// First block, blocks, and whether what they held goes with it, of each update that was sent.
fn sent(site: &Site) -> Vec<(u64, u32, bool)> {
    let update = |message: &ToLink| match *message {
        ToLink::Update { update, with_old, .. } => Some((update.lba.0, update.count, with_old)),
        _ => None,
    };
    site.sent.iter().filter_map(update).collect()
}

#[test]
fn a_write_waits_for_its_old_block_and_no_other_does() {
    let mut site = primary();
    site.held = volume_reads;
    site.write(0, 5, 9);
    site.write(1, 1000, 9);
    site.turns(20);
    assert_eq!(sent(&site), [(1000, 1, true)], "what was never written need not be read");
    assert_eq!(site.tables.old_blocks.page(SlotId(3), 0), PageId::ZERO);
    site.held = nothing;
    site.turns(3);
    assert_eq!(sent(&site)[1..], [(5, 1, true)]);
    let page = site.tables.old_blocks.page(SlotId(4), 0);
    assert_eq!(site.memory.bytes(page)[..], [OLD; BLOCK_BYTES]);
    // Captured already: nothing to read, nothing to send with it.
    site.held = volume_reads;
    site.write(2, 5, 10);
    site.turns(3);
    assert_eq!(sent(&site)[2..], [(5, 1, false)]);
    site.ack(5, 5, 5, 2);
    site.turns(3);
    assert_eq!([0, 1, 2].map(|ticket| site.reply(ticket)), [Some(Ok(())); 3]);
    assert_eq!(site.status().counters.old_block_reads, 1);
}

/// No site takes what comes after the end of its generation.
#[test]
fn nothing_is_numbered_in_a_generation_that_was_ended_while_it_was_read_for() {
    let mut site = primary();
    site.held = |request| volume_reads(request) || journal_flushes(request);
    site.write(0, 5, 9);
    site.turns(5);
    site.disconnect();
    for (id, op) in [(2, AdminOp::Demote), (3, AdminOp::HostsGone)] {
        site.with(|group, turn| group.on_admin(turn, AdminRequest { id, op }));
    }
    site.turns(50);
    assert_eq!((site.status().role, site.status().last), (Role::Primary, UpdateNumber(3)), "it steps down");
    site.held = journal_flushes;
    site.turns(20);
    assert_eq!(site.status().last, UpdateNumber(3));
    assert_eq!(site.reply(0), Some(Err(HostError::NotServing)));
    site.held = nothing;
    site.turns(50);
    assert_eq!(site.status().role, Role::Secondary);
}

#[test]
fn a_write_whose_old_block_cannot_be_read_goes_without_it() {
    let mut site = primary();
    site.failing = volume_reads;
    site.write(0, 5, 9);
    site.turns(20);
    site.failing = nothing;
    assert_eq!(sent(&site), [(5, 1, false)]);
    site.ack(3, 3, 3, 2);
    site.turns(3);
    assert_eq!(site.reply(0), Some(Ok(())));
}

#[test]
fn what_overwrites_more_than_fits_in_memory_is_sent_in_steps() {
    let mut site = primary();
    site.request(0, HostOp::Zero { lba: Lba(0), count: 1024, fua: false });
    let mut last = 2;
    while site.reply(0).is_none() {
        assert!(last < 300, "no end of it");
        site.turns(10);
        last = site.status().last.0;
        site.ack(last, last, last, last);
    }
    let sent = sent(&site);
    let mut next = 0;
    for (lba, count, with_old) in sent {
        assert!(lba == next && count as usize <= UPDATE_BLOCKS_MAX && with_old, "{count} blocks at {lba}");
        next += u64::from(count);
    }
    assert_eq!(next, 1024);
    assert_eq!(site.status().counters.old_block_reads, CONTENT_BLOCKS);
}

#[test]
fn nothing_is_read_first_while_the_primary_is_alone() {
    let mut config = by_value(Role::Primary);
    config.peer.as_mut().expect("set above").on_peer_loss = OnPeerLoss::Solo;
    let mut site = primary_of(config);
    site.disconnect();
    site.turns(50);
    site.held = volume_reads;
    site.write(0, 5, 9);
    site.turns(50);
    assert_eq!(site.reply(0), Some(Ok(())));
    assert_eq!(site.status().counters.old_block_reads, 0);
}

/// A secondary that follows a stream with a snapshot.
fn secondary() -> Site {
    let mut site = with_content(by_value(Role::Secondary));
    site.connect(&hello_by_value(Role::Secondary, 3));
    site.stream(0, 1, generation(1, PEER), &[]);
    let page = site.link_pages.pop().expect("granted");
    encode_snapshots([record()].iter(), site.memory.bytes_mut(page));
    let sum = sum_of_block(site.memory.bytes(page));
    site.tables.inbound.set(SlotId(2), 0, page, sum);
    let create = Update {
        number: SNAPSHOT,
        generation: generation(1, PEER),
        count: 1,
        sum: sum_of_sums([sum].into_iter()),
        kind: UpdateKind::SnapshotCreate,
        ..Update::EMPTY
    };
    let settled = UpdateNumber(0);
    site.deliver(FromLink::Update { update: create, settled, slot: SlotId(2), with_old: false });
    site.turns(20);
    site
}

/// A write of blocks from `lba` on with what they held before, where that was not zeros; the second of `fills` if it was.
fn overwrite(site: &mut Site, number: u64, lba: u64, olds: &[Option<u8>]) {
    let row = SlotId(number as u32);
    let mut block = |fill: u8, place: usize| {
        let page = site.link_pages.pop().expect("granted");
        site.memory.bytes_mut(page).fill(fill);
        let sum = sum_of_block(site.memory.bytes(page));
        site.tables.inbound.set(row, place, page, sum);
        sum
    };
    let sums: Vec<BlockSum> = (0..olds.len()).map(|index| block(9, index)).collect();
    for (place, old) in (UPDATE_BLOCKS_MAX..).zip(olds) {
        match old {
            Some(fill) => drop(block(*fill, place)),
            None => site.tables.inbound.set(row, place, PageId::ZERO, BlockSum::ZEROS),
        }
    }
    let update = write(number, generation(1, PEER), lba, olds.len() as u32);
    let update = Update { slot: Slot(100), sum: sum_of_sums(sums.into_iter()), ..update };
    site.deliver(FromLink::Update { update, settled: UpdateNumber(0), slot: row, with_old: true });
    site.turns(20);
}

#[test]
fn a_secondary_keeps_what_it_is_sent_and_reads_nothing() {
    let mut site = secondary();
    site.held = volume_reads;
    overwrite(&mut site, 3, 398, &[Some(OLD), Some(OLD), None, Some(0)]);
    assert_eq!(site.status().last, UpdateNumber(3));
    site.control(Control::Heartbeat { settled: UpdateNumber(3), sequence: 1 });
    site.turns(11_000);
    assert_eq!(site.status().checkpoint, UpdateNumber(3));
    let kept = |slot: u64| site.disks[&(IoTarget::Differential, slot)][4095];
    assert_eq!([100, 101, 102, 103].map(kept), [OLD, OLD, 0, 0]);
}

#[test]
fn a_secondary_that_had_something_else_leaves_the_group() {
    for olds in [[Some(OLD), Some(8)], [Some(OLD), None]] {
        let mut site = secondary();
        overwrite(&mut site, 3, 5, &olds);
        let told = site.events.iter().find_map(|event| match *event {
            Event::ImagesDiffer { volume, lba, snapshot } => Some((volume, lba, snapshot)),
            _ => None,
        });
        assert_eq!(told, Some((VolumeId(0), Lba(6), record().name)));
        assert_eq!(site.status().state, GroupState::Failed);
        assert_eq!(site.status().last, SNAPSHOT, "nothing of it was taken");
    }
    let mut site = secondary();
    overwrite(&mut site, 3, 1000, &[Some(1)]);
    assert_eq!(site.status().state, GroupState::Failed, "this one was never written here");
}

#[test]
fn sites_that_do_not_mean_the_same_refuse_each_other() {
    let mut site = with_content(by_value(Role::Primary));
    let theirs = Hello { differential: DifferentialBy::Reference, ..hello_by_value(Role::Primary, 0) };
    site.connect(&theirs);
    assert_eq!(site.refused_with(), Some(RefusalCode::Differential));
    let refusal = site.events.iter().find_map(|event| match event {
        Event::Refused { refusal, .. } => *refusal,
        _ => None,
    });
    let text = refusal.expect("found above").text;
    assert!(text.as_str().contains("by value here and by reference there"), "{}", text.as_str());
}

#[test]
fn old_blocks_that_were_not_agreed_on_are_not_taken() {
    let mut site = Site::formatted(config(Role::Secondary));
    site.connect(&hello(Role::Secondary, &[(generation(1, PEER), 1)], 3, 0));
    let last = site.stream(0, 1, generation(1, PEER), &[]);
    overwrite(&mut site, last + 1, 5, &[None]);
    assert_eq!(site.status().last, UpdateNumber(last));
    assert_ne!(site.status().state, GroupState::Failed);
    assert!(site.sent.contains(&ToLink::Close), "{:?}", site.sent);
}
