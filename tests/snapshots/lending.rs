use super::*;

#[test]
fn damaged_tables_are_not_lent() {
    let (site, _, entry) = three_kept();
    let settled = site.group.status(site.now).last;
    let Site { mut config, durable, .. } = site;
    config.peer = Some(peer());
    let mut site = Site::start(config, durable);
    site.with(|group, turn| group.on_link(turn, FromLink::Connected { connection: 1 }));
    page_sent(&mut site, PageFrame::Hello);
    damage(&mut site, &entry);
    for page in 0..2 {
        let wanted = Control::TablesWanted { settled, page };
        site.with(|group, turn| group.on_link(turn, FromLink::Control(wanted)));
        if page == 0 {
            page_sent(&mut site, PageFrame::Tables);
        }
    }
    let (body, length) = page_sent(&mut site, PageFrame::Refusal);
    assert_eq!(Refusal::decode(&body[..length]).map(|refusal| refusal.code), Ok(RefusalCode::Tables));
    assert!(!site.group.failed() && site.events.contains(&Event::TablesDamaged), "{:?}", site.events);
}

#[test]
fn tables_and_old_blocks_are_lent_to_a_peer_that_repairs_its_own() {
    const BLOCKS: u64 = 150;
    let mut site = Site::new(400, OnDifferentialFull::Error);
    let fill = |block: u64| block as u8 + 1;
    for block in 0..BLOCKS {
        site.write(block, &[fill(block)]).expect("written");
    }
    let old = site.create("old", false).expect("taken");
    site.zero(0, BLOCKS as u32).expect("zeroed");
    let last = site.group.status(site.now).last;
    // Nothing of it is in the tables when it starts again, now with a peer.
    let Site { mut config, durable, .. } = site;
    config.peer = Some(peer());
    let mut site = Site::start(config, durable);
    let control = |site: &mut Site, control| {
        site.with(|group, turn| group.on_link(turn, FromLink::Control(control)));
    };
    let connect = |site: &mut Site, connection| {
        site.with(|group, turn| group.on_link(turn, FromLink::Connected { connection }));
        page_sent(site, PageFrame::Hello);
    };
    connect(&mut site, 1);
    let (mut page, mut entries) = (0, Vec::new());
    loop {
        control(&mut site, Control::TablesWanted { settled: last, page });
        let (body, _) = page_sent(&mut site, PageFrame::Tables);
        let header = header_of(&body).expect("a page of tables");
        assert!(header.index == page && header.applied >= last, "{header:?}");
        match header.kind {
            TablesKind::Snapshots => {
                assert_eq!(record_at(&body, 0).expect("a record").number, old);
            }
            TablesKind::Entries => {
                entries.extend((0..header.count).map(|index| entry_at(&body, index).expect("an entry")));
            }
        }
        if header.last {
            break;
        }
        page += 1;
    }
    assert_eq!(entries.iter().map(|entry| entry.lba.0).collect::<Vec<_>>(), (0..BLOCKS).collect::<Vec<_>>());
    for entry in &entries {
        control(&mut site, Control::BlockWanted { place: BlockPlace::Slot(entry.slot), sum: entry.sum });
        let (block, _) = page_sent(&mut site, PageFrame::Block);
        assert!(block.iter().all(|byte| *byte == fill(entry.lba.0)), "{entry:?}");
    }
    let place = BlockPlace::Slot(entries[0].slot);
    control(&mut site, Control::BlockWanted { place, sum: entries[1].sum });
    let lacking = ToLink::Control(Control::BlockLacking { place, why: Lacking::Damaged });
    site.run_until("it says that it has no such block", |site| site.sent.contains(&lacking));
    assert!(!site.group.serving(), "nobody is in the set yet");

    // Whoever is helped may be silent for long, though not for ever.
    let closed = |site: &Site| site.sent.contains(&ToLink::Close);
    site.now = site.now.plus(Nanos::from_millis(50_000));
    (0..20).for_each(|_| site.step());
    assert!(!closed(&site));
    site.now = site.now.plus(Nanos::from_millis(11_000));
    site.run_until("it gives up", closed);
    site.sent.clear();
    // Nobody can have what this site has not.
    connect(&mut site, 2);
    control(&mut site, Control::TablesWanted { settled: last.next(), page: 0 });
    site.run_until("it refuses", closed);
}

/// Whoever asks takes damage for the end of the snapshot: it is none where the block has yet to get into its slot, or where nothing is kept.
#[test]
fn a_slot_that_is_not_filled_yet_and_one_that_is_free_are_not_lent_as_damaged() {
    let mut site = Site::new(400, OnDifferentialFull::Error);
    site.write(0, &[7]).expect("written");
    site.create("old", false).expect("taken");
    site.zero(0, 1).expect("zeroed");
    let Site { mut config, durable, .. } = site;
    config.peer = Some(peer());
    let mut site = Site::start(config, durable);
    site.with(|group, turn| group.on_link(turn, FromLink::Connected { connection: 1 }));
    page_sent(&mut site, PageFrame::Hello);
    let answer = |site: &mut Site, slot| {
        let place = BlockPlace::Slot(Slot(slot));
        let wanted = Control::BlockWanted { place, sum: sum_of_block(&[7; BLOCK_BYTES]) };
        site.sent.clear();
        site.with(|group, turn| group.on_link(turn, FromLink::Control(wanted)));
        let mut answer = None;
        site.run_until("an answer", |site| {
            answer = site.sent.iter().find_map(|message| match message {
                ToLink::Control(Control::BlockLacking { why, .. }) => Some(Some(*why)),
                ToLink::Page { frame: PageFrame::Block, .. } => Some(None),
                _ => None,
            });
            answer.is_some()
        });
        answer.expect("there is one")
    };
    // It is to repair its tables, and gets none of what has yet to happen.
    let wants = |site: &mut Site, settled| {
        let wanted = Control::TablesWanted { settled, page: 0 };
        site.with(|group, turn| group.on_link(turn, FromLink::Control(wanted)));
    };
    wants(&mut site, UpdateNumber(1));
    page_sent(&mut site, PageFrame::Tables);
    // Replay has the block kept again, and no sweep has begun.
    assert_eq!(answer(&mut site, 0), Some(Lacking::Busy));
    assert_eq!(answer(&mut site, 399), Some(Lacking::Other));
    let last = site.group.status(site.now).last;
    wants(&mut site, last);
    page_sent(&mut site, PageFrame::Tables);
    assert_eq!(answer(&mut site, 0), None);
}
