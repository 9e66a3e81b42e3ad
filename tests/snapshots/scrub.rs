use super::*;
use lockstep::core::group::status::{BadPlace, Part, PartStatus, ScrubStatus};
use lockstep::core::outbox::NotRepaired;

fn scrub(site: &mut Site) -> ScrubStatus {
    site.administer(AdminOp::Scrub { blocks_per_second: 1_000_000 }).expect("it begins");
    site.run_until("the scrub is over", |site| !site.group.status(site.now).scrub.active);
    let status = site.group.status(site.now).scrub;
    assert!(status.complete);
    status
}

#[test]
fn a_slot_that_has_gone_bad_is_named_and_the_others_are_read() {
    let (mut site, old, entry) = three_kept();
    let status = scrub(&mut site);
    assert_eq!(status.part(Part::Tables).read, 3);
    assert_eq!((status.part(Part::Differential).read, status.sum().bad), (3, 0));
    site.durable.disks.get_mut(&(IoTarget::Differential, entry.slot.0)).expect("kept")[9] ^= 1;
    site.rots = true;
    let status = scrub(&mut site);
    let PartStatus { read, bad, repaired, unrepaired, .. } = status.part(Part::Differential);
    assert_eq!((read, bad, repaired, unrepaired), (3, 1, 0, 1));
    assert_eq!(status.named(), [BadPlace::Kept(old, VOLUME, Lba(1))]);
    let why = NotRepaired::NoPeer;
    let named = |event: &Event| {
        matches!(event, Event::SnapshotNotRepaired { snapshot, lba: Lba(1), why: said, .. }
            if *snapshot == SnapshotName::new("old") && *said == why)
    };
    assert!(site.events.iter().any(named), "{:?}", site.events);
}

#[test]
fn damaged_tables_are_found_and_the_journal_is_read_all_the_same() {
    let (mut site, old, entry) = three_kept();
    damage(&mut site, &entry);
    site.rots = true;
    site.write(700, &[1]).expect("written");
    let status = scrub(&mut site);
    assert_eq!(status.named(), [BadPlace::Tables]);
    assert_eq!(status.part(Part::Differential).read, 0);
    assert!(status.part(Part::Journal).read > 0, "{status:?}");
    assert!(site.events.contains(&Event::TablesDamaged));
    assert_eq!(site.read(old, 0, 1), [1]);
    site.write(701, &[1]).expect("it goes on");
}

/// Slots are freed and given to others between an entry's reading and its slot's.
#[test]
fn slots_that_change_hands_while_they_are_read_are_not_bad() {
    let mut site = Site::new(300, OnDifferentialFull::Error);
    let mut taken: Vec<UpdateNumber> = Vec::new();
    let mut read = 0;
    for round in 0..60u8 {
        taken.push(site.create("it", false).expect("taken"));
        site.write(u64::from(round % 7) * 9, &[round + 1; 30]).expect("written");
        site.administer(AdminOp::Scrub { blocks_per_second: 1_000_000 }).expect("begins, or goes on");
        if round % 3 == 2 {
            site.rest();
        }
        for snapshot in taken.drain(..) {
            site.delete(snapshot).expect("deleted");
        }
        (0..round % 5).for_each(|_| site.step());
        let status = site.group.status(site.now).scrub;
        read += status.part(Part::Differential).read;
        assert_eq!(status.sum().bad, 0, "round {round}");
    }
    assert!(read > 0);
    assert_eq!(scrub(&mut site).sum().bad, 0);
}
