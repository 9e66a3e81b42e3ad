//! Planned changes of role, with either site dying at any moment of one.

use super::*;
use lockstep::format::wire::Control;

impl Site {
    fn ask(&mut self, id: u64, op: AdminOp) {
        self.with(|group, turn| group.on_admin(turn, AdminRequest { id, op }));
    }

    fn answers(&mut self) -> Vec<(u64, Result<UpdateNumber, AdminError>)> {
        std::iter::from_fn(|| self.out.to_admin.pop()).map(|reply| (reply.id, reply.result)).collect()
    }

    /// Whether an update of the kind was given to the link.
    fn has_sent(&self, kind: UpdateKind) -> bool {
        self.sent
            .iter()
            .any(|message| matches!(message, ToLink::Update { update, .. } if update.kind == kind))
    }

    fn has_greeted(&self) -> bool {
        self.sent.iter().any(|message| matches!(message, ToLink::Page { frame: PageFrame::Hello, .. }))
    }

    /// The peer says hello on the connection that there is.
    fn hear_hello(&mut self, hello: &Hello) {
        let page = self.link_pages.pop().expect("granted");
        let length = hello.encode(self.memory.bytes_mut(page)) as u16;
        self.deliver(FromLink::Page { frame: PageFrame::Hello, page, length });
        self.turn();
    }
}

/// A primary in lockstep, with a write that is settled at both.
fn in_lockstep() -> Site {
    in_lockstep_by(config(Role::Primary))
}

/// A configuration in which a peer can be copied what it lacks.
fn copying(role: Role) -> GroupConfig {
    let resync = ResyncConfig { staging_blocks: 4096, p99_budget: Nanos::from_millis(5) };
    GroupConfig { resync, ..config(role) }
}

fn in_lockstep_by(config: GroupConfig) -> Site {
    let mut site = Site::formatted(config);
    site.connect(&hello(Role::Primary, &[], 0, 0));
    site.turns(20);
    site.ack(1, 1, 1, 0);
    site.write(0, 5, 7);
    site.turns(20);
    site.ack(2, 2, 2, 0);
    site.turns(40);
    assert_eq!((site.reply(0), site.status().settled), (Some(Ok(())), UpdateNumber(2)));
    site
}

/// One that has handed over with update 3, and has sent that.
fn handed_over() -> Site {
    handed_over_by(config(Role::Primary))
}

fn handed_over_by(config: GroupConfig) -> Site {
    let mut site = in_lockstep_by(config);
    site.ask(1, AdminOp::Switchover);
    site.ask(2, AdminOp::HostsGone);
    site.turns(20);
    assert!(site.has_sent(UpdateKind::HandOver));
    assert_eq!((site.status().state, site.status().last), (GroupState::Leaving, UpdateNumber(3)));
    assert_eq!(site.answers(), [(2, Ok(UpdateNumber(2)))]);
    site
}

/// A primary that lost its peer with update 3 under way, and is to step down.
fn left_alone_and_demoted() -> Site {
    let mut site = in_lockstep();
    site.write(0, 5, 8);
    site.turns(10);
    site.disconnect();
    site.ask(1, AdminOp::Demote);
    site.ask(2, AdminOp::HostsGone);
    site
}

/// The hello of a peer that has succeeded after update 3.
fn successor() -> Hello {
    let history = [(generation(1, US), 1), (generation(1, US).opened_by(PEER), 4)];
    Hello { role: Role::Primary, ..hello(Role::Primary, &history, 4, 2) }
}

/// A secondary that was handed over to with update 3, whose journal keeps back what `held` names.
fn handed_over_to(held: fn(&IoRequest) -> bool) -> Site {
    let mut site = following(2, &[5]);
    site.held = held;
    site.sent.clear();
    let (number, generation) = (UpdateNumber(3), generation(1, PEER));
    site.update(2, Update { number, generation, kind: UpdateKind::HandOver, ..Update::EMPTY }, 0);
    site.turns(50);
    site
}

/// The hello of a primary that has handed over with update 3.
fn predecessor() -> Hello {
    hello(Role::Secondary, &[(generation(1, PEER), 1)], 3, 3)
}

#[test]
fn hosts_are_served_until_they_are_gone_and_held_while_everything_comes_to_rest() {
    let mut site = in_lockstep();
    site.ask(1, AdminOp::Switchover);
    site.turn();
    assert!(site.events.iter().any(|event| matches!(event, Event::HostsToGo)));
    site.write(0, 6, 8);
    site.turns(20);
    site.ack(3, 3, 2, 0);
    assert_eq!(site.reply(0), Some(Ok(())), "the front has not been told yet");
    site.ask(2, AdminOp::HostsGone);
    site.write(1, 7, 9);
    site.turns(100);
    assert_eq!((site.reply(1), site.status().last), (None, UpdateNumber(3)), "update 3 is not settled");
    assert!(site.sent.iter().any(|message| {
        matches!(message, ToLink::Control(Control::FlushRequest { number: UpdateNumber(3) }))
    }));
    site.ack(3, 3, 3, 0);
    site.turns(20);
    assert!(site.has_sent(UpdateKind::HandOver));
    site.write(2, 7, 9);
    site.turn();
    assert_eq!(site.reply(2), Some(Err(HostError::NotServing)));
    site.hear_hello(&Hello {
        history: {
            let mut history = History::default();
            history.push(generation(1, US), UpdateNumber(1));
            history.push(generation(1, US).opened_by(PEER), UpdateNumber(5));
            history
        },
        last: UpdateNumber(5),
        ..successor()
    });
    site.turns(20);
    assert_eq!((site.status().role, site.status().last), (Role::Secondary, UpdateNumber(4)));
    assert_eq!(site.reply(1), Some(Err(HostError::NotServing)));
    assert!(site.answers().contains(&(1, Ok(UpdateNumber(4)))));
}

#[test]
fn the_end_of_a_generation_is_sent_when_it_is_durable() {
    let mut site = in_lockstep();
    site.held = journal_flushes;
    site.ask(1, AdminOp::Switchover);
    site.ask(2, AdminOp::HostsGone);
    site.turns(50);
    assert_eq!((site.status().last, site.has_sent(UpdateKind::HandOver)), (UpdateNumber(3), false));
    site.held = nothing;
    site.turns(50);
    assert!(site.has_sent(UpdateKind::HandOver));
}

#[test]
fn a_primary_that_dies_before_it_has_handed_over_is_primary_again() {
    let mut site = in_lockstep();
    site.held = journal_batches;
    site.ask(1, AdminOp::Switchover);
    site.ask(2, AdminOp::HostsGone);
    site.turns(50);
    let mut site = site.crashed();
    assert_eq!((site.status().role, site.status().state), (Role::Primary, GroupState::AwaitingPeer));
    site.connect(&hello(Role::Primary, &[(generation(1, US), 1)], 2, 2));
    site.turns(20);
    assert_eq!(site.status().state, GroupState::Serving);
}

#[test]
fn a_primary_that_dies_after_it_has_handed_over_serves_nobody_and_leads_until_it_is_succeeded() {
    for checkpointed in [false, true] {
        let mut site = handed_over();
        if checkpointed {
            site.ack(3, 3, 3, 3);
            site.turns(12_000);
            assert_eq!(site.status().checkpoint, UpdateNumber(3));
        }
        let mut site = site.crashed();
        assert_eq!((site.status().role, site.status().state), (Role::Primary, GroupState::Leaving));
        site.write(0, 5, 9);
        site.turn();
        assert_eq!(site.reply(0), Some(Err(HostError::NotServing)));
        // The peer has not heard of it.
        site.connect(&hello(Role::Primary, &[(generation(1, US), 1)], 2, 2));
        site.turns(20);
        assert_eq!(site.status().state, GroupState::Leaving);
        assert_eq!(site.status().last, UpdateNumber(3), "no generation is opened");
        if !checkpointed {
            assert!(site.has_sent(UpdateKind::HandOver));
        }
        site.disconnect();
        site.connect(&successor());
        site.turns(20);
        assert_eq!(site.status().role, Role::Secondary);
    }
}

#[test]
fn a_primary_whose_successor_is_dead_may_be_forced_to_go_on() {
    let mut site = handed_over();
    site.disconnect();
    site.ask(3, AdminOp::Promote { fenced: false });
    site.turn();
    assert_eq!(site.answers(), [(3, Err(AdminError::NotFenced))]);
    site.events.clear();
    site.ask(4, AdminOp::Promote { fenced: true });
    site.turns(20);
    assert_eq!((site.status().role, site.status().state), (Role::Primary, GroupState::Serving));
    // Who asked it to leave hears that it did not, and its hosts may come again.
    assert!(matches!(site.answers()[..], [(1, Err(AdminError::PrimaryAlready)), (4, Ok(_))]));
    assert!(site.events.iter().any(|event| matches!(event, Event::RoleChanged { role: Role::Primary })));
    assert_eq!(site.read(1, 5), Ok(7));
    site.write(2, 6, 8);
    site.turns(20);
    assert_eq!(site.reply(2), Some(Ok(())));
    let mut site = site.crashed();
    assert_eq!((site.status().role, site.status().state), (Role::Primary, GroupState::Serving));
    assert_eq!(site.read(1, 5), Ok(7));
}

/// Without a mark of what changed there is nothing that could be copied to it but everything.
#[test]
fn a_primary_whose_successor_comes_back_with_new_disks_may_be_forced_to_go_on() {
    let mut site = handed_over_by(copying(Role::Primary));
    site.ack(3, 3, 3, 3);
    site.turns(12_000);
    assert_eq!(
        site.status().checkpoint,
        UpdateNumber(3),
        "it is in the volumes, and the window has let go of it"
    );
    site.disconnect();
    site.connect(&hello(Role::Primary, &[], 0, 0));
    site.turns(20);
    site.answers();
    site.ask(4, AdminOp::Promote { fenced: true });
    site.turns(50);
    assert_eq!((site.status().role, site.status().state), (Role::Primary, GroupState::Serving));
    assert_eq!(site.read(1, 5), Ok(7));
    // Its journal is not kept for one that is copied everything: the ring goes round though nobody comes.
    site.disconnect();
    for round in 0..3_000 {
        site.write(2, round % 100, 9);
        site.turns(40);
        assert_eq!(site.reply(2), Some(Ok(())), "write {round}");
    }
    assert!(site.status().counters.journal_blocks > 2 * site.status().journal_blocks);
}

#[test]
fn a_switchover_is_given_up_when_the_peer_is_lost_before_it() {
    let mut site = in_lockstep();
    site.write(0, 5, 8);
    site.ask(1, AdminOp::Switchover);
    site.ask(2, AdminOp::HostsGone);
    site.write(1, 6, 9);
    site.turns(10);
    site.disconnect();
    site.turns(10);
    assert_eq!(site.answers(), [(2, Ok(UpdateNumber(3))), (1, Err(AdminError::NotInLockstep))]);
    assert!(site.events.iter().any(|event| matches!(event, Event::LeavingAbandoned { .. })));
    assert_eq!((site.status().state, site.status().role), (GroupState::Serving, Role::Primary));
    // What was held is numbered now, and waits for the peer like everything.
    assert_eq!((site.status().last, site.reply(1)), (UpdateNumber(4), None));
}

#[test]
fn a_primary_whose_hosts_do_not_come_to_rest_stays_primary() {
    let mut site = in_lockstep();
    site.write(0, 5, 8);
    site.turns(10);
    site.deliver(FromLink::Control(Control::SwitchoverWanted));
    for beat in 0..60 {
        // The peer is there, and does not flush.
        site.ack(3, 3, 2, 0);
        site.turns(100 + beat % 2);
    }
    let refused = Control::SwitchoverRefused { code: AdminError::NotDrained.code() };
    assert!(site.sent.contains(&ToLink::Control(refused)));
    assert_eq!(site.status().state, GroupState::Serving);
    assert_eq!((site.status().last, site.has_sent(UpdateKind::HandOver)), (UpdateNumber(3), false));
}

#[test]
fn nobody_switches_over_without_lockstep() {
    let mut site = in_lockstep();
    site.disconnect();
    site.ask(1, AdminOp::Switchover);
    let mut alone = Site::formatted(solo(Role::Primary));
    alone.connect(&hello(Role::Primary, &[], 0, 0));
    alone.turns(20);
    alone.ack(1, 1, 1, 0);
    alone.disconnect();
    alone.turns(20);
    alone.ask(1, AdminOp::Switchover);
    alone.ask(2, AdminOp::Demote);
    let mut without = Site::formatted(without_peer());
    without.ask(1, AdminOp::Switchover);
    let mut cut_off = following(2, &[5]);
    cut_off.disconnect();
    cut_off.ask(1, AdminOp::Switchover);
    cut_off.ask(2, AdminOp::Demote);
    assert_eq!(site.answers(), [(1, Err(AdminError::NotInLockstep))]);
    assert_eq!(alone.answers(), [(1, Err(AdminError::NotInLockstep)), (2, Err(AdminError::Alone))]);
    assert_eq!(without.answers(), [(1, Err(AdminError::NoPeer))]);
    assert_eq!(cut_off.answers(), [(1, Err(AdminError::NotInLockstep)), (2, Err(AdminError::NotPrimary))]);
}

#[test]
fn a_secondary_asks_its_primary_and_hears_why_not() {
    let mut site = following(2, &[5]);
    site.ask(1, AdminOp::Switchover);
    site.turn();
    assert!(site.sent.contains(&ToLink::Control(Control::SwitchoverWanted)));
    site.ask(2, AdminOp::Switchover);
    site.control(Control::SwitchoverRefused { code: AdminError::Alone.code() });
    site.control(Control::SwitchoverRefused { code: 200 });
    site.ask(3, AdminOp::Switchover);
    site.turn();
    site.disconnect();
    site.turn();
    site.connect(&hello(Role::Secondary, &[(generation(1, PEER), 1)], 2, 2));
    site.ask(4, AdminOp::Switchover);
    site.control(Control::SwitchoverRefused { code: 200 });
    let expected = [
        (2, AdminError::LeavesAlready),
        (1, AdminError::Alone),
        (3, AdminError::LinkLost),
        (4, AdminError::Unknown),
    ];
    assert_eq!(site.answers(), expected.map(|(id, error)| (id, Err(error))));
}

#[test]
fn a_successor_opens_its_generation_without_being_alone_and_serves_once_it_is_followed() {
    let mut site = handed_over_to(journal_flushes);
    assert_eq!((site.status().role, site.status().last), (Role::Secondary, UpdateNumber(3)));
    site.held = nothing;
    site.turns(50);
    assert!(site.has_greeted());
    assert_eq!((site.status().role, site.status().state), (Role::Primary, GroupState::AwaitingPeer));
    assert_eq!((site.status().last, site.status().solo), (UpdateNumber(4), false));
    // What the predecessor has said before it heard is of the old conversation.
    site.control(Control::Heartbeat { settled: UpdateNumber(3), sequence: 9 });
    site.hear_hello(&predecessor());
    site.turns(5);
    assert_eq!(site.status().state, GroupState::Serving);
    site.write(0, 6, 9);
    site.turns(50);
    assert_eq!(site.reply(0), None, "the other site does not hold it");
    site.ack(5, 5, 5, 0);
    assert_eq!(site.reply(0), Some(Ok(())));
    let solo = |message: &ToLink| matches!(message, ToLink::Update { update, .. } if update.kind == UpdateKind::SoloBegin);
    assert!(!site.sent.iter().any(solo));
}

#[test]
fn a_successor_that_dies_succeeds_when_it_meets_its_predecessor_again() {
    for checkpointed in [false, true] {
        let mut site = following(2, &[5]);
        // Its connection is gone when it has it all.
        let (number, generation) = (UpdateNumber(3), generation(1, PEER));
        site.held = journal_flushes;
        site.update(2, Update { number, generation, kind: UpdateKind::HandOver, ..Update::EMPTY }, 0);
        site.control(Control::Heartbeat { settled: UpdateNumber(3), sequence: 9 });
        site.turns(5);
        site.disconnect();
        site.held = nothing;
        site.turns(if checkpointed { 12_000 } else { 50 });
        assert_eq!(site.status().checkpoint == UpdateNumber(3), checkpointed);
        let mut site = site.crashed();
        assert_eq!((site.status().role, site.status().last), (Role::Secondary, UpdateNumber(3)));
        site.connect(&predecessor());
        site.turns(50);
        assert_eq!((site.status().role, site.status().last), (Role::Primary, UpdateNumber(4)));
        // Dead again, and nobody has followed yet.
        let mut site = site.crashed();
        assert_eq!((site.status().role, site.status().state), (Role::Primary, GroupState::AwaitingPeer));
        site.connect(&predecessor());
        site.turns(50);
        assert_eq!((site.status().state, site.status().solo), (GroupState::Serving, false));
    }
}

#[test]
fn a_primary_that_was_forced_to_go_on_is_followed_and_not_succeeded() {
    let mut site = following(2, &[5]);
    let (number, generation) = (UpdateNumber(3), generation(1, PEER));
    site.held = journal_flushes;
    site.update(2, Update { number, generation, kind: UpdateKind::HandOver, ..Update::EMPTY }, 0);
    site.turns(5);
    site.disconnect();
    site.held = nothing;
    site.turns(50);
    let history = [(generation, 1), (generation.opened_by(PEER), 4)];
    site.connect(&hello(Role::Secondary, &history, 9, 9));
    site.turns(50);
    assert_eq!((site.status().role, site.status().last), (Role::Secondary, UpdateNumber(3)));
}

#[test]
fn who_knows_that_the_primary_has_left_may_be_promoted_on_nobodys_word() {
    // Handed over to, and cut off before the predecessor followed.
    let mut site = handed_over_to(nothing);
    site.disconnect();
    site.ask(1, AdminOp::Promote { fenced: false });
    site.turns(50);
    assert!(matches!(site.answers()[..], [(1, Ok(_))]));
    assert_eq!((site.status().state, site.status().solo), (GroupState::Serving, true));
    // One that was followed does not know what its predecessor has done since.
    let mut site = handed_over_to(nothing);
    site.hear_hello(&predecessor());
    site.turns(50);
    let mut site = site.crashed();
    site.ask(1, AdminOp::Promote { fenced: false });
    site.turn();
    assert_eq!(site.answers(), [(1, Err(AdminError::NotFenced))]);
}

#[test]
fn nothing_follows_the_end_of_a_generation() {
    let mut site = following(2, &[5]);
    let (number, generation) = (UpdateNumber(3), generation(1, PEER));
    site.update(2, Update { number, generation, kind: UpdateKind::StepDown, ..Update::EMPTY }, 0);
    site.update(2, write(4, generation, 5, 1), 9);
    site.turns(20);
    assert!(site.sent.contains(&ToLink::Close));
    assert_eq!(site.status().last, UpdateNumber(3));
}

#[test]
fn who_steps_down_is_secondary_once_its_peer_knows() {
    let mut site = in_lockstep();
    site.ask(1, AdminOp::Demote);
    site.ask(2, AdminOp::HostsGone);
    site.turns(50);
    assert_eq!((site.status().role, site.status().state), (Role::Primary, GroupState::Leaving));
    assert!(site.has_sent(UpdateKind::StepDown));
    site.ack(3, 3, 3, 0);
    site.turns(50);
    assert_eq!((site.status().role, site.status().vacant), (Role::Secondary, true));
    assert_eq!(site.answers(), [(2, Ok(UpdateNumber(2))), (1, Ok(UpdateNumber(3)))]);
    // Both are secondaries: neither leads, and this one is promoted on the operator's word only.
    site.disconnect();
    site.connect(&hello(Role::Primary, &[(generation(1, US), 1)], 3, 3));
    assert_eq!(site.refused_with(), Some(RefusalCode::Role));
    let mut site = site.crashed();
    assert_eq!((site.status().role, site.status().vacant), (Role::Secondary, true));
    site.ask(3, AdminOp::Promote { fenced: false });
    site.ask(4, AdminOp::Promote { fenced: true });
    site.turns(50);
    assert!(matches!(site.answers()[..], [(3, Err(AdminError::NotFenced)), (4, Ok(_))]));
}

#[test]
fn who_steps_down_without_its_peer_is_secondary_once_that_is_durable() {
    let mut site = left_alone_and_demoted();
    site.held = journal_flushes;
    site.turns(50);
    assert_eq!((site.status().role, site.reply(0)), (Role::Primary, None));
    site.held = nothing;
    site.turns(50);
    assert_eq!((site.status().role, site.reply(0)), (Role::Secondary, Some(Err(HostError::NotServing))));
    let mut site = site.crashed();
    assert_eq!((site.status().role, site.status().vacant), (Role::Secondary, true));
    // The other site has been promoted without its tail.
    let history = [(generation(1, US), 1), (generation(1, US).opened_by(PEER), 3)];
    site.connect(&Hello { role: Role::Primary, solo: true, ..hello(Role::Secondary, &history, 4, 4) });
    site.control(cut_to(2));
    site.turns(20);
    assert_eq!((site.status().last, site.status().vacant), (UpdateNumber(2), false));
}

/// Its primary stepped down, and was told to go on before this site had heard of either.
#[test]
fn who_knows_that_its_primary_has_gone_on_does_not_take_over_because_it_had_stepped_down() {
    let mut site = following(2, &[5]);
    site.disconnect();
    let history = [(generation(1, PEER), 1), (generation(1, PEER).opened_by(PEER), 4)];
    site.connect(&hello(Role::Secondary, &history, 6, 2));
    site.turns(20);
    let (number, generation) = (UpdateNumber(3), generation(1, PEER));
    site.update(2, Update { number, generation, kind: UpdateKind::StepDown, ..Update::EMPTY }, 0);
    site.turns(50);
    assert_eq!((site.status().last, site.status().vacant), (number, false));
    site.disconnect();
    site.ask(7, AdminOp::Promote { fenced: false });
    site.turns(5);
    assert_eq!(site.answers(), [(7, Err(AdminError::NotFenced))]);
}

/// Found by seed 2711 of the simulator, when that began to let primaries step down.
#[test]
fn who_drops_the_update_that_made_it_secondary_says_hello_again() {
    let mut site = left_alone_and_demoted();
    site.turns(50);
    assert_eq!((site.status().role, site.status().last), (Role::Secondary, UpdateNumber(4)));
    let history = [(generation(1, US), 1), (generation(1, US).opened_by(PEER), 3)];
    let promoted = Hello { role: Role::Primary, solo: true, ..hello(Role::Secondary, &history, 4, 4) };
    site.connect(&promoted);
    site.control(cut_to(2));
    site.turns(20);
    assert_eq!(site.status().last, UpdateNumber(2));
    site.disconnect();
    site.sent.clear();
    site.connect(&promoted);
    site.turns(20);
    assert!(site.has_greeted());
}

#[test]
fn a_secondary_takes_over_when_the_primary_says_that_it_has_stepped_down() {
    // In the stream.
    let mut site = following(2, &[5]);
    let (number, generation) = (UpdateNumber(3), generation(1, PEER));
    site.update(2, Update { number, generation, kind: UpdateKind::StepDown, ..Update::EMPTY }, 0);
    site.turns(50);
    assert_eq!(
        (site.status().role, site.status().vacant),
        (Role::Secondary, true),
        "nobody succeeds by itself"
    );
    site.disconnect();
    let mut site = site.crashed();
    site.ask(1, AdminOp::Promote { fenced: false });
    site.turns(50);
    assert!(matches!(site.answers()[..], [(1, Ok(_))]));
    // By its hello.
    let mut site = following(2, &[5]);
    site.disconnect();
    site.ask(1, AdminOp::Promote { fenced: false });
    let hello = |last| hello(Role::Secondary, &[(generation, 1)], last, 2);
    for (id, last) in [(2, 3), (3, 2)] {
        site.connect(&Hello { role: Role::Secondary, ..hello(last) });
        assert_eq!((site.refused_with(), site.status().vacant), (Some(RefusalCode::Role), true));
        site.disconnect();
        site.ask(id, AdminOp::Promote { fenced: false });
        site.turns(50);
    }
    // What the other one has more may be promised.
    let refused = Err(AdminError::NotFenced);
    assert!(
        matches!(site.answers()[..], [(1, first), (2, second), (3, Ok(_))] if first == refused && second == refused)
    );
}

#[test]
fn who_was_alone_steps_down_once_its_peer_has_everything() {
    let mut site = alone();
    site.connect(&hello(Role::Primary, &[(generation(1, US), 1)], 1, 1));
    site.turns(20);
    assert!(!site.status().solo, "solo has ended, though the peer lacks what was acknowledged in it");
    site.ask(1, AdminOp::Demote);
    site.turn();
    assert_eq!(site.answers(), [(1, Err(AdminError::Alone))]);
    let last = site.status().last.0;
    site.ack(last, last, last, 0);
    site.ask(2, AdminOp::Demote);
    site.ask(3, AdminOp::HostsGone);
    site.turns(20);
    site.ack(last + 1, last + 1, last + 1, 0);
    site.turns(50);
    assert_eq!(site.status().role, Role::Secondary);
}

/// The sweep that covers the end of a generation ends while the next one is on its way.
#[test]
fn an_opening_that_a_crash_undoes_leaves_what_came_before_it_known() {
    let both: fn(&IoRequest) -> bool = |request| volume_writes(request) || journal_batches(request);
    // The successor.
    let mut site = following(2, &[5]);
    let (number, generation) = (UpdateNumber(3), generation(1, PEER));
    site.held = journal_flushes;
    site.update(2, Update { number, generation, kind: UpdateKind::HandOver, ..Update::EMPTY }, 0);
    site.control(Control::Heartbeat { settled: number, sequence: 9 });
    site.turns(5);
    site.disconnect();
    site.held = volume_writes;
    site.turns(11_000);
    site.held = both;
    site.connect(&predecessor());
    site.turns(5);
    assert_eq!((site.status().role, site.status().last), (Role::Primary, UpdateNumber(4)));
    site.held = journal_batches;
    site.turns(50);
    assert_eq!(site.status().checkpoint, number);
    let mut site = site.crashed();
    assert_eq!((site.status().role, site.status().last), (Role::Secondary, number));
    site.connect(&predecessor());
    site.turns(50);
    assert_eq!((site.status().role, site.status().last), (Role::Primary, UpdateNumber(4)));
    // The predecessor, forced to go on.
    let mut site = handed_over();
    site.ack(3, 3, 3, 3);
    site.held = volume_writes;
    site.turns(11_000);
    site.disconnect();
    site.held = both;
    site.ask(4, AdminOp::Promote { fenced: true });
    site.turns(20);
    site.held = journal_batches;
    site.turns(50);
    assert_eq!(site.status().checkpoint, number);
    let site = site.crashed();
    assert_eq!((site.status().role, site.status().state), (Role::Primary, GroupState::Leaving));
}

/// Simulator seed 718116: what it has said to its peer that it would be, it is to know after any crash.
#[test]
fn a_primary_forced_to_go_on_says_nothing_of_an_end_that_a_crash_may_undo() {
    let mut site = in_lockstep();
    site.held = journal_flushes;
    site.ask(1, AdminOp::Switchover);
    site.ask(2, AdminOp::HostsGone);
    site.turns(20);
    assert_eq!((site.status().last, site.status().durable), (UpdateNumber(3), UpdateNumber(2)));
    site.disconnect();
    site.ask(4, AdminOp::Promote { fenced: true });
    site.turns(50);
    assert_eq!(site.status().last, UpdateNumber(3), "it took back an end that is not durable");
    site.held = nothing;
    site.turns(50);
    assert_eq!((site.status().last, site.status().state), (UpdateNumber(5), GroupState::Serving));
}
