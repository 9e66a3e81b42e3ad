//! Who is primary, and how that changes: takeovers and switchovers.

use super::*;

#[test]
fn the_other_site_takes_over_with_every_acknowledged_write_and_the_old_one_follows() {
    let mut pair = pair();
    let mut expected = HashMap::new();
    exercise(&mut pair, &mut expected, 20, 1);
    for (connection, primary) in [(1, 0), (2, 1), (3, 0)] {
        let (now, other) = (pair.now, 1 - primary);
        // One write is acknowledged and not settled, one is in the primary's journal alone.
        pair.sites[primary].write(now, 0, 3, 77 + connection as u8, false);
        assert_eq!(pair.reply(primary, 0), Ok(()));
        pair.sites[primary].write(now, 1, 4, 99, false);
        pair.sites[primary].with(now, |group, turn| group.end_turn(turn));
        pair.sites[primary].drain(now);
        pair.sites[primary].die();
        let promote = AdminRequest { id: 1, op: AdminOp::Promote { fenced: true } };
        pair.sites[other].with(now, |group, turn| {
            group.on_link(turn, FromLink::Disconnected { connection });
            group.on_admin(turn, promote);
        });
        pair.run_until("taken over", |pair| {
            let status = pair.sites[other].group.status(pair.now);
            (status.role, status.state) == (Role::Primary, GroupState::Serving)
        });
        assert_eq!(pair.read(other, 3), 77 + connection as u8);
        let now = pair.now;
        pair.sites[other].write(now, 2, 6, 55 + connection as u8, true);
        assert_eq!(pair.reply(other, 2), Ok(()));
        pair.sites[primary].with(now, |group, turn| group.start(turn));
        pair.run_until("recovered", |pair| {
            pair.sites[primary].group.status(pair.now).state != GroupState::Recovering
        });
        pair.connect(connection + 1);
        pair.run_until("in sync again", |pair| {
            pair.sites.iter().all(|site| site.group.status(pair.now).peer == PeerState::InSync)
        });
        pair.settled();
        assert_eq!(pair.sites[primary].group.status(pair.now).role, Role::Secondary);
        for (lba, fill) in [(3, 77 + connection as u8), (4, expected.get(&4).copied().unwrap_or(0))] {
            assert_eq!([pair.read(0, lba), pair.read(1, lba)], [fill, fill], "block {lba}");
        }
        assert_eq!([pair.read(0, 6), pair.read(1, 6)], [55 + connection as u8; 2]);
    }
}

/// Simulator seed 13003: its successor took the old primary's newest update for its own, and had it settled.
#[test]
fn a_primary_that_goes_on_between_two_hellos_greets_again_before_it_follows() {
    let mut pair = pair();
    exercise(&mut pair, &mut HashMap::new(), 20, 1);
    pair.sites.iter_mut().for_each(|site| site.may_refuse = true);
    pair.disconnect(1);
    let now = pair.now;
    let promote = AdminRequest { id: 1, op: AdminOp::Promote { fenced: true } };
    pair.sites[1].with(now, |group, turn| group.on_admin(turn, promote));
    pair.run_until("taken over, durably", |pair| {
        let status = pair.sites[1].group.status(pair.now);
        status.role == Role::Primary && status.durable == status.last
    });
    pair.connect(2);
    let (now, [old, new]) = (pair.now, &mut pair.sites);
    let greets = |message: &ToLink| matches!(message, ToLink::Page { frame: PageFrame::Hello, .. });
    old.with(now, |group, turn| group.end_turn(turn));
    let said = old.drain(now);
    assert!(said.iter().any(greets));
    // It still serves its hosts, and numbers what they write.
    old.write(now, 0, 7, 0xee, false);
    old.with(now, |group, turn| group.end_turn(turn));
    assert!(old.drain(now).is_empty());
    said.into_iter().for_each(|message| new.receive(now, old, message));
    new.with(now, |group, turn| group.end_turn(turn));
    let answers = new.drain(now);
    let (hello, stream): (Vec<_>, Vec<_>) = answers.into_iter().partition(greets);
    hello.into_iter().for_each(|message| old.receive(now, new, message));
    old.with(now, |group, turn| group.end_turn(turn));
    assert_eq!(old.drain(now), [ToLink::Close]);
    stream.into_iter().for_each(|message| old.receive(now, new, message));
    for site in &mut pair.sites {
        site.with(now, |group, turn| group.on_link(turn, FromLink::Disconnected { connection: 2 }));
        site.drain(now);
    }
    pair.connect(3);
    pair.run_until("in sync again", |pair| {
        pair.sites.iter().all(|site| site.group.status(pair.now).peer == PeerState::InSync)
    });
    pair.settled();
    let due = pair.read(1, 7);
    assert!(due != 0xee && pair.read(0, 7) == due);
}

#[test]
fn a_switchover_moves_the_primary_there_and_back_on_one_connection() {
    let mut pair = pair();
    let mut expected = HashMap::new();
    exercise(&mut pair, &mut expected, 20, 1);
    // Asked at the primary, at the secondary, and so on.
    for (round, asked) in [(1u8, 0), (2, 0), (3, 1), (4, 1)] {
        let (primary, now) = (usize::from(round + 1) % 2, pair.now);
        let other = 1 - primary;
        for ticket in 0..8u32 {
            pair.sites[primary].write(now, ticket, 10 + u64::from(ticket), round + ticket as u8, false);
        }
        for op in [AdminOp::Switchover, AdminOp::HostsGone] {
            let site = if op == AdminOp::Switchover { asked } else { primary };
            pair.step();
            let request = AdminRequest { id: u64::from(round), op };
            pair.sites[site].with(now, |group, turn| group.on_admin(turn, request));
        }
        for ticket in 0..8u32 {
            assert_eq!(pair.reply(primary, ticket), Ok(()), "what was asked before it");
        }
        pair.run_until("switched over", |pair| {
            let status = pair.sites.each_ref().map(|site| site.group.status(pair.now));
            (status[other].role, status[other].state) == (Role::Primary, GroupState::Serving)
                && status[primary].role == Role::Secondary
        });
        assert!(!pair.sites[other].group.status(pair.now).solo);
        pair.run_until("told", |pair| pair.sites[asked].out.to_admin.front().is_some());
        while let Some(reply) = pair.sites[asked].out.to_admin.pop() {
            assert!(reply.result.is_ok(), "{reply:?}");
        }
        while pair.sites[primary].out.to_admin.pop().is_some() {}
        for ticket in 0..8u32 {
            let lba = 10 + u64::from(ticket);
            assert_eq!(pair.read(other, lba), round + ticket as u8);
            expected.insert(lba, round + ticket as u8);
        }
    }
    // Updates of the two generations beside those of the rounds: nothing was copied again.
    exercise(&mut pair, &mut expected, 20, 5);
}
