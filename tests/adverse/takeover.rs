//! A secondary that takes over, and a primary that was taken over from.

use super::*;

impl Site {
    fn promote(&mut self, id: u64, fenced: bool) {
        self.with(|group, turn| group.on_admin(turn, AdminRequest { id, op: AdminOp::Promote { fenced } }));
    }

    fn told(&mut self, id: u64) -> Option<Result<UpdateNumber, AdminError>> {
        let replies: Vec<AdminReply> = std::iter::from_fn(|| self.out.to_admin.pop()).collect();
        replies.iter().find(|reply| reply.id == id).map(|reply| reply.result)
    }

    fn promoted(&mut self) {
        self.promote(1, true);
        self.turns(20);
        assert!(matches!(self.told(1), Some(Ok(_))));
        assert_eq!((self.status().role, self.status().state), (Role::Primary, GroupState::Serving));
    }
}

/// A primary whose peer was sent its generation and a write, and acknowledged only the first.
fn leading() -> Site {
    let mut site = Site::formatted(config(Role::Primary));
    site.connect(&hello(Role::Primary, &[], 0, 0));
    site.turns(20);
    site.ack(1, 1, 1, 0);
    site.write(0, 5, 7);
    site.turns(20);
    assert_eq!((site.reply(0), site.status().last), (None, UpdateNumber(2)));
    site
}

/// The hello of a peer that took over after `common`, and is alone.
fn taken_over(common: u64, last: u64) -> Hello {
    let history = [(generation(1, US), 1), (generation(1, US).opened_by(PEER), common + 1)];
    let alone_upto = UpdateNumber(last);
    Hello {
        role: Role::Primary,
        alone_upto,
        solo: true,
        serving: true,
        ..hello(Role::Primary, &history, last, last)
    }
}

#[test]
fn who_takes_over_keeps_all_it_holds_and_serves_once_it_is_durably_alone() {
    let mut site = following(2, &[5, 9]);
    site.disconnect();
    site.held = journal_flushes;
    site.promote(1, true);
    site.turns(50);
    site.write(0, 5, 40);
    site.turns(50);
    assert_eq!((site.told(1), site.reply(0)), (None, None), "nothing says that this site is alone");
    assert_eq!(site.status().state, GroupState::AwaitingPeer);
    site.held = nothing;
    site.turns(50);
    assert_eq!(site.told(1), Some(Ok(UpdateNumber(5))));
    assert_eq!(site.reply(0), Some(Ok(())));
    let told = |event: &Event| matches!(event, Event::RoleChanged { role: Role::Primary });
    assert_eq!(site.events.iter().filter(|event| told(event)).count(), 1);
    // The write to 9 had not been settled.
    assert_eq!((site.read(1, 9), site.read(2, 5)), (Ok(1), Ok(40)));
    let mut site = site.crashed();
    assert_eq!((site.status().role, site.status().state), (Role::Primary, GroupState::Serving));
    assert_eq!((site.read(1, 9), site.read(2, 5)), (Ok(1), Ok(40)));
}

#[test]
fn a_takeover_that_a_crash_undoes_was_none() {
    let mut site = following(2, &[5, 9]);
    site.disconnect();
    site.held = journal_batches;
    site.promote(1, true);
    site.turns(50);
    // A superblock meanwhile claims no role that is not in the journal.
    site.turns(12_000);
    assert!(site.status().checkpoint >= UpdateNumber(2));
    let mut site = site.crashed();
    assert_eq!((site.status().role, site.status().last), (Role::Secondary, UpdateNumber(3)));
    site.promoted();
    assert_eq!(site.read(1, 9), Ok(1));
}

#[test]
fn nobody_is_told_of_a_takeover_that_a_crash_may_undo() {
    let mut site = following(2, &[5, 9]);
    site.disconnect();
    site.held = journal_flushes;
    site.promote(1, true);
    site.turns(5);
    site.sent.clear();
    // The old primary would step down for it.
    site.connection += 1;
    site.deliver(FromLink::Connected { connection: site.connection });
    site.turns(50);
    let greets = |message: &ToLink| matches!(message, ToLink::Page { frame: PageFrame::Hello, .. });
    assert!(!site.sent.iter().any(greets));
    site.held = nothing;
    site.turns(50);
    assert!(site.sent.iter().any(greets));
}

#[test]
fn nobody_takes_over_without_a_reason() {
    let mut site = following(2, &[5]);
    site.promote(1, false);
    site.turns(5);
    assert_eq!(site.told(1), Some(Err(AdminError::PrimaryAlive)));
    site.disconnect();
    site.promote(2, false);
    site.turns(5);
    assert_eq!(site.told(2), Some(Err(AdminError::NotFenced)));
    assert_eq!(site.status().role, Role::Secondary);
    site.promoted();
    site.promote(3, true);
    site.turns(5);
    assert_eq!(site.told(3), Some(Err(AdminError::PrimaryAlready)));
    let mut site = Site::starting(config(Role::Secondary), std::mem::take(&mut site.disks), nothing);
    site.promote(4, true);
    site.turns(1);
    assert_eq!(site.told(4), Some(Err(AdminError::Recovering)));
}

#[test]
fn a_primary_that_awaits_its_peer_may_be_forced_to_begin() {
    let mut site = leading().crashed();
    assert_eq!(site.status().state, GroupState::AwaitingPeer);
    site.promoted();
    assert_eq!(site.read(1, 5), Ok(7));
    assert_eq!(site.crashed().status().role, Role::Primary);
}

#[test]
fn a_primary_that_was_taken_over_from_follows_and_drops_what_only_it_had() {
    let mut site = leading();
    site.disconnect();
    // Its host still waits when the peer is back, as another's primary.
    site.connect(&taken_over(1, 4));
    assert_eq!(site.reply(0), Some(Err(HostError::NotServing)));
    assert_eq!(site.status().role, Role::Secondary);
    site.write(1, 6, 7);
    site.turn();
    assert_eq!(site.reply(1), Some(Err(HostError::ReadOnly)));
    site.control(cut_to(1));
    site.turns(20);
    assert_eq!(site.status().last, UpdateNumber(1));
    let mut site = site.crashed();
    assert_eq!(site.status().role, Role::Secondary, "only who follows cuts");
    site.connect(&taken_over(1, 4));
    let last = site.stream(4, 2, generation(1, US).opened_by(PEER), &[8, 8]);
    site.control(Control::Heartbeat { settled: UpdateNumber(last), sequence: 1 });
    site.turns(12_000);
    assert_eq!(site.status().checkpoint, UpdateNumber(last));
    assert_eq!((site.read(1, 5), site.read(2, 8)), (Ok(0), Ok(2)));
    assert_eq!(site.crashed().status().role, Role::Secondary);
}

#[test]
fn two_sites_that_both_went_on_alone_refuse_each_other() {
    let mut site = alone();
    for _ in 0..2 {
        site.connect(&taken_over(1, 4));
        assert_eq!(site.refused_with(), Some(RefusalCode::SplitBrain));
        site.disconnect();
        let split = site.status().split.expect("they have met");
        assert_eq!(split.common, UpdateNumber(1));
        let (ours, theirs) = (split.ours, split.theirs);
        assert_eq!((ours.generation, ours.last, ours.promised.0), (generation(1, US), UpdateNumber(3), 3));
        assert_eq!((theirs.last, theirs.promised.0), (UpdateNumber(4), 4));
    }
    assert_eq!((site.status().role, site.status().last), (Role::Primary, UpdateNumber(3)));
    assert_eq!(site.read(1, 5), Ok(7));
    // The other one has been formatted anew.
    site.connect(&hello(Role::Primary, &[], 0, 0));
    assert_eq!(site.status().split, None);
}

#[test]
fn a_primary_that_goes_on_alone_between_two_hellos_follows_nobody() {
    let mut site = Site::formatted(solo(Role::Primary));
    site.connect(&hello(Role::Primary, &[], 0, 0));
    site.turns(20);
    site.ack(1, 1, 1, 0);
    site.held = journal_flushes;
    site.disconnect();
    site.connection += 1;
    site.deliver(FromLink::Connected { connection: site.connection });
    site.turns(2);
    // Its hello is said, and tells of nothing that it did alone.
    site.held = nothing;
    site.write(0, 5, 7);
    site.turns(20);
    assert_eq!(site.reply(0), Some(Ok(())));
    let page = site.link_pages.pop().expect("granted");
    let length = taken_over(1, 4).encode(site.memory.bytes_mut(page)) as u16;
    site.deliver(FromLink::Page { frame: PageFrame::Hello, page, length });
    site.turns(5);
    assert_eq!((site.status().role, site.status().last), (Role::Primary, UpdateNumber(3)));
    assert!(site.sent.iter().any(|message| matches!(message, ToLink::Close)));
}

#[test]
fn what_hosts_asked_before_replay_found_a_secondary_is_refused() {
    let mut site = leading();
    site.disconnect();
    site.connect(&taken_over(1, 4));
    site.control(cut_to(1));
    site.turns(20);
    // The configuration still says primary, and so does the site until it has read its journal.
    let mut site = Site::starting(config(Role::Primary), std::mem::take(&mut site.disks), nothing);
    site.turn();
    site.write(0, 5, 9);
    site.request(1, HostOp::Flush);
    site.turns(300);
    assert_eq!(site.status().role, Role::Secondary);
    assert_eq!(site.reply(0), Some(Err(HostError::ReadOnly)));
    assert_eq!((site.reply(1), site.status().last), (Some(Ok(())), UpdateNumber(1)));
}

#[test]
fn that_another_site_once_gave_way_is_nothing_of_this_one() {
    let mut site = following(2, &[5, 9]);
    let (number, generation) = (UpdateNumber(4), generation(1, PEER));
    let lba = Lba(generation.opened_by(US).0);
    site.update(2, Update { number, generation, lba, kind: UpdateKind::GiveWay, ..Update::EMPTY }, 0);
    site.turns(50);
    assert!(!site.status().gives_way);
    let site = site.crashed();
    assert_eq!(
        (site.status().last, site.status().settled),
        (number, UpdateNumber(2)),
        "nothing more is settled"
    );
    assert!(!site.status().gives_way);
}

#[test]
fn a_secondary_answers_nothing_that_a_primary_was_asked() {
    let mut site = following(2, &[5]);
    let page = site.front_pages.pop().expect("granted");
    site.tables.fronts[0].set(SlotId(0), 0, page, BlockSum::ZEROS);
    let request = HostRequest {
        ticket: SlotId(0),
        volume: VolumeId(0),
        snapshot: UpdateNumber::NONE,
        of_primary: true,
        op: HostOp::Read { lba: Lba(5), count: 1 },
        received_at: site.now,
    };
    site.with(|group, turn| group.on_host(turn, 0, request));
    site.turn();
    assert_eq!(site.reply(0), Some(Err(HostError::NotServing)));
    assert_eq!(site.read(1, 5), Ok(1));
}
