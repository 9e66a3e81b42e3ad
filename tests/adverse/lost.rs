//! What is lost with a peer or with an earlier life of a site, and must not be counted, repeated or guessed.

use super::*;

#[test]
fn nothing_of_a_lost_life_follows_what_a_later_one_writes() {
    let first_batch = |request: &IoRequest| {
        request.target == IoTarget::Journal && request.op == IoOp::Write && request.block <= SUPERBLOCK_SLOTS
    };
    let later_batches = |request: &IoRequest| journal_batches(request) && request.block > SUPERBLOCK_SLOTS;
    let nothing_yet = hello(Role::Primary, &[], 0, 0);
    // The generation is lost with the batch that opens it, and no superblock is written; a write that follows it is on the disk.
    let mut site = Site::formatted(config(Role::Primary)).restarted_holding(first_batch);
    site.connect(&nothing_yet);
    site.write(0, 5, 1);
    site.turns(20);
    // The next life opens the same one, and now that is durable, so the peer is sent another write of the same number.
    let mut site = site.restarted_holding(later_batches);
    assert_eq!(site.status().last, UpdateNumber(0));
    site.connect(&nothing_yet);
    site.write(0, 5, 2);
    site.turns(20);
    let sent = |message: &ToLink| matches!(message, ToLink::Update { update, .. } if update.number.0 == 2);
    assert!(site.sent.iter().any(sent), "{:?}", site.sent);
    let site = site.crashed();
    assert_eq!(site.status().last, UpdateNumber(1), "the write of the first life is another than the peer's");
}

#[test]
fn readers_wait_where_a_restarted_secondary_may_have_more_in_its_volume_than_it_knows_to_be_settled() {
    let mut site = following(1, &[5]);
    // The block goes to the volume, and nothing that says so to a disk.
    site.held = |request| request.op == IoOp::Write && !volume_writes(request);
    site.control(Control::Heartbeat { settled: UpdateNumber(2), sequence: 1 });
    site.turns(11_000);
    assert_eq!(site.disks[&(IoTarget::Volume(VolumeId(0)), 5)][0], 1);
    let mut site = site.crashed();
    assert_eq!((site.status().last, site.status().settled), (UpdateNumber(2), UpdateNumber(1)));
    assert_eq!(site.read(0, 6), Ok(0), "no update in question touches this one");
    let page = site.begin_read(0, 5);
    site.turns(20);
    assert_eq!(site.reply(0), None);
    site.connect(&hello(Role::Secondary, &[(generation(1, PEER), 1)], 2, 2));
    site.control(Control::Heartbeat { settled: UpdateNumber(2), sequence: 1 });
    site.turns(20);
    assert_eq!((site.reply(0), site.memory.bytes(page)[0]), (Some(Ok(())), 1));
}

#[test]
fn nothing_is_acknowledged_with_a_peer_behind_a_solo_begin_that_is_not_durable() {
    let mut site = Site::formatted(solo(Role::Primary));
    site.connect(&hello(Role::Primary, &[], 0, 0));
    site.turns(20);
    site.ack(1, 1, 1, 0);
    site.held = journal_flushes;
    // The peer is lost and back before the flush: were the write lost with this site's power and the begin not, this site
    // would go on alone, without the write.
    site.disconnect();
    site.connect(&hello(Role::Primary, &[(generation(1, US), 1)], 1, 0));
    site.write(0, 5, 1);
    site.turns(5);
    site.ack(3, 3, 1, 0);
    assert_eq!((site.status().journaled, site.reply(0)), (UpdateNumber(3), None));
    site.held = nothing;
    site.turns(20);
    assert_eq!(site.reply(0), Some(Ok(())));
}

#[test]
fn a_peer_hears_what_is_settled_before_any_update() {
    let mut site = Site::formatted(config(Role::Primary));
    site.connect(&hello(Role::Primary, &[], 0, 0));
    (0..3).for_each(|ticket| site.write(ticket, 5, 1));
    site.turns(100);
    site.disconnect();
    // It had three of the four, and was told nothing of it.
    site.sent.clear();
    site.connect(&hello(Role::Primary, &[(generation(1, US), 1)], 3, 0));
    site.turns(100);
    let words: Vec<_> = site.sent.iter().filter(|message| !matches!(message, ToLink::Page { .. })).collect();
    assert!(
        matches!(
            words[..],
            [
                ToLink::Begin { .. },
                ToLink::Control(Control::Heartbeat { settled: UpdateNumber(3), .. }),
                ToLink::Update { .. },
                ..
            ]
        ),
        "{words:?}"
    );
}

#[test]
fn a_peer_that_is_lost_acknowledges_nothing_any_more() {
    for (journaled, durable, acknowledged) in [(2, 1, false), (2, 2, true)] {
        let mut site = Site::formatted(config(Role::Primary));
        site.connect(&hello(Role::Primary, &[], 0, 0));
        site.turns(20);
        site.ack(1, 1, 1, 0);
        site.held = journal_batches;
        site.write(0, 5, 1);
        site.turns(5);
        // While the write is on its way to this journal, the peer, which had it in its own, is gone, maybe for want of power.
        site.ack(2, journaled, durable, 0);
        site.disconnect();
        site.held = nothing;
        site.turns(20);
        assert_eq!(site.status().journaled, UpdateNumber(2));
        assert_eq!(site.reply(0).is_some(), acknowledged, "durable at the peer through {durable}");
    }
}

#[test]
fn hosts_wait_for_a_peer_only_once_it_has_almost_caught_up_or_gets_no_nearer() {
    // What it lacks, and whether a primary that is alone waits for it at once and some time later.
    for (lacking, at_once, later) in
        [(32, true, true), (33, false, true), (256, false, true), (257, false, false)]
    {
        let mut config = solo(Role::Primary);
        config.peer.as_mut().expect("a pair's").latency_budget = Nanos::from_millis(1_000);
        let mut site = Site::formatted(config);
        site.connect(&hello(Role::Primary, &[], 0, 0));
        site.turns(20);
        site.ack(1, 1, 1, 1);
        site.disconnect();
        site.turns(100);
        assert!(site.status().solo);
        for index in 0..300 {
            site.write(0, index, 1);
            site.turns(5);
            assert_eq!(site.reply(0), Some(Ok(())), "it is alone");
        }
        let last = site.status().last.0;
        site.connect(&hello(Role::Primary, &[(generation(1, US), 1)], 1, 1));
        site.turns(600);
        site.ack(last - lacking, last - lacking, 1, 1);
        site.turns(5);
        assert_eq!(!site.status().solo, at_once, "{lacking} are lacking");
        // It answers, but gets no nearer.
        for _ in 0..60 {
            site.turns(10);
            site.ack(last - lacking, last - lacking, 1, 1);
        }
        assert_eq!(!site.status().solo, later, "{lacking} are lacking");
    }
}
