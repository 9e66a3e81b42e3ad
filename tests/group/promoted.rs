//! A third that is made primary when both sites of the pair are gone: what it is asked before, what it is afterwards, and what the three
//! say to each other when those return.

use super::*;
use lockstep::core::group::split::SplitBrain;
use lockstep::core::messages::AdminError;
use lockstep::core::outbox::RoleRefused;

impl Trio {
    fn cut_off_third(&mut self) {
        self.set_link(1, false);
        self.set_link(2, false);
    }

    /// All three have the same, and the third hears nothing of what follows.
    fn with_third_cut_off() -> (Trio, HashMap<u64, u8>) {
        let mut trio = Trio::new();
        let mut expected = HashMap::new();
        trio.exercise(FIRST, &mut expected, 5, 1);
        trio.third_is_equal(FIRST, &expected);
        trio.cut_off_third();
        (trio, expected)
    }

    fn answer(&mut self, site: usize, op: AdminOp) -> Result<UpdateNumber, AdminError> {
        self.ask(site, op);
        self.until("an answer", |trio| trio.sites[site].out.to_admin.front().is_some());
        self.sites[site].out.to_admin.pop().expect("it is there").result
    }

    /// The third has everything, both others die, and it is promoted.
    fn inherited() -> (Trio, HashMap<u64, u8>) {
        let (mut trio, mut expected) = (Trio::new(), HashMap::new());
        trio.exercise(FIRST, &mut expected, 5, 1);
        trio.third_is_equal(FIRST, &expected);
        trio.kill(FIRST);
        trio.kill(SECOND);
        let order = AdminOp::PromoteThird { fenced: true, accepted: Some(0) };
        assert!(trio.answer(THIRD, order).is_ok());
        (trio, expected)
    }

    fn parted_at(&self, source: usize) -> Option<SplitBrain> {
        self.status(THIRD).sources[source].expect("a source").parted
    }

    /// The same disks under other configurations, with links between these ends.
    fn reconfigured(self, configs: [GroupConfig; 3], ends: [[End; 2]; 3]) -> Trio {
        let disks: Vec<_> = self.sites.into_iter().map(|site| site.disks).collect();
        let mut trio = Trio::formatted(configs);
        trio.now = self.now;
        for (index, disks) in disks.into_iter().enumerate() {
            let config = trio.sites[index].config.clone();
            trio.sites[index] = Site::started(config, disks);
            trio.sites[index].may_refuse = true;
            let now = trio.now;
            trio.sites[index].with(now, |group, turn| group.start(turn));
        }
        for (link, ends) in trio.links.iter_mut().zip(ends) {
            link.ends = ends;
        }
        trio
    }
}

const ORDER: AdminOp = AdminOp::PromoteThird { fenced: true, accepted: Some(0) };

#[test]
fn a_third_is_promoted_when_nobody_else_is_there_and_the_loss_is_accepted() {
    let mut trio = Trio::new();
    let mut expected = HashMap::new();
    trio.exercise(FIRST, &mut expected, 5, 1);
    trio.third_is_equal(FIRST, &expected);
    assert_eq!(trio.answer(THIRD, ORDER), Err(AdminError::SourceConnected));
    trio.kill(FIRST);
    assert_eq!(trio.answer(THIRD, ORDER), Err(AdminError::SourceConnected), "the second is there");
    trio.restart(FIRST);
    trio.until("in lockstep again", |trio| trio.status(FIRST).peer == PeerState::InSync);
    // It hears of more than it is sent before they are gone.
    trio.cut_off_third();
    trio.exercise(FIRST, &mut HashMap::new(), 8, 7);
    trio.steps(100);
    trio.set_link(1, true);
    trio.until("it heard", |trio| {
        let third = trio.status(THIRD);
        third.sources.iter().flatten().any(|source| source.settled > third.last)
    });
    trio.kill(FIRST);
    trio.kill(SECOND);
    let third = trio.status(THIRD);
    let newest = third.sources.iter().flatten().map(|source| source.settled.0).max().expect("two of them");
    let least = newest - third.last.0;
    assert!(least > 0);
    for order in
        [AdminOp::Promote { fenced: false }, AdminOp::PromoteThird { fenced: false, accepted: Some(99) }]
    {
        assert_eq!(trio.answer(THIRD, order), Err(AdminError::ThirdNotFenced));
    }
    let too_little = AdminOp::PromoteThird { fenced: true, accepted: least.checked_sub(1) };
    for order in [AdminOp::Promote { fenced: true }, too_little] {
        assert_eq!(trio.answer(THIRD, order), Err(AdminError::LossNotAccepted { least }));
    }
    assert_eq!(trio.status(THIRD).role, Role::Third);
    assert!(trio.answer(THIRD, AdminOp::PromoteThird { fenced: true, accepted: Some(least) }).is_ok());
    let promoted = trio.status(THIRD);
    assert_eq!((promoted.role, promoted.state), (Role::Primary, GroupState::Serving));
    assert!(promoted.solo && promoted.generation.opener() == SiteId(3), "{promoted:#?}");
    assert!(promoted.durable >= third.last.next().next());
}

#[test]
fn a_promoted_third_stays_one_after_a_restart() {
    let (mut trio, mut expected) = Trio::inherited();
    trio.exercise(THIRD, &mut expected, 40, 3);
    for _ in 0..2 {
        let before = trio.status(THIRD);
        trio.kill(THIRD);
        trio.restart(THIRD);
        trio.until("it serves", |trio| trio.sites[THIRD].group.serving());
        let after = trio.status(THIRD);
        assert_eq!(after.role, Role::Primary);
        assert!(after.last >= before.last && after.generation > before.generation);
        for (lba, fill) in expected.clone() {
            assert_eq!(trio.read(THIRD, lba), fill, "block {lba}");
        }
        trio.exercise(THIRD, &mut expected, 3, 9);
    }
}

#[test]
fn sites_that_promised_more_are_shown_both_histories_and_nobody_takes_anything() {
    let (mut trio, mut expected) = Trio::with_third_cut_off();
    let parted_at = trio.status(THIRD).last;
    let mut old = expected.clone();
    trio.exercise(FIRST, &mut old, 3, 40);
    trio.steps(100);
    assert!(trio.answer(THIRD, ORDER).is_ok());
    trio.exercise(THIRD, &mut expected, 4, 80);
    trio.set_link(1, true);
    trio.set_link(2, true);
    trio.until("all have met", |trio| {
        [FIRST, SECOND]
            .into_iter()
            .all(|site| trio.third_at(site).promoted.is_some() && trio.parted_at(site).is_some())
    });
    trio.exercise(FIRST, &mut old, 4, 120);
    trio.exercise(THIRD, &mut expected, 4, 160);
    trio.steps(500);
    for site in [FIRST, SECOND] {
        let (here, there) = (trio.third_at(site).promoted.expect("met"), trio.parted_at(site).expect("met"));
        assert_eq!((here.common, there.common), (parted_at, parted_at), "site {site}");
        assert_eq!(here.theirs.generation, trio.status(THIRD).generation);
        assert_eq!(there.theirs.generation, trio.status(site).generation);
        assert!(there.theirs.promised > parted_at && here.theirs.promised > parted_at);
        assert_eq!(trio.third_at(site).delta, Delta::No(NoDelta::Promoted));
        assert_eq!(trio.third_at(site).state, ThirdState::Promoted);
        assert_eq!(trio.status(THIRD).sources[site].expect("a source").state, SourceState::Superseded);
    }
    assert!(trio.refused.iter().all(|(_, refusal)| refusal.code == RefusalCode::SplitBrain));
    assert_eq!(trio.status(FIRST).state, GroupState::Serving);
    for (lba, fill) in expected {
        assert_eq!(trio.read(THIRD, lba), fill, "block {lba} of the third");
    }
    for (&lba, &fill) in &old {
        assert_eq!(trio.read(FIRST, lba), fill, "block {lba} of the first");
    }
    // The pair serves, so its roles may change; and nobody takes over unasked beside the third.
    trio.ask(FIRST, AdminOp::Switchover);
    trio.until("it waits for its hosts", |trio| trio.status(FIRST).state == GroupState::Leaving);
    trio.ask(FIRST, AdminOp::HostsGone);
    trio.until("the second serves", |trio| {
        let second = trio.status(SECOND);
        (second.role, second.state) == (Role::Primary, GroupState::Serving)
    });
    trio.until("it is told", |trio| trio.sites[FIRST].out.to_admin.front().is_some());
    while trio.sites[FIRST].out.to_admin.pop().is_some() {}
    trio.exercise(SECOND, &mut old, 2, 200);
    trio.kill(SECOND);
    assert_eq!(trio.answer(FIRST, AdminOp::Promote { fenced: false }), Err(AdminError::ThirdTookOver));
}

#[test]
fn a_primary_that_promised_nothing_more_serves_nobody_until_its_operator_says_so() {
    let (mut trio, mut expected) = Trio::with_third_cut_off();
    assert!(trio.answer(THIRD, ORDER).is_ok());
    trio.exercise(THIRD, &mut expected.clone(), 2, 80);
    let before = trio.status(FIRST).last;
    trio.set_link(1, true);
    trio.until("it stands down", |trio| trio.status(FIRST).state == GroupState::Superseded);
    trio.begin_write(FIRST, 1, 0, 7);
    assert_eq!(trio.reply(FIRST, 1), Err(HostError::NotServing));
    let there = trio.third_at(FIRST).promoted.expect("met");
    assert_eq!((there.common, there.ours.last), (before, before));
    assert_eq!(trio.status(FIRST).last, before, "nothing is numbered there any more");
    // It stays a primary, which its secondary follows: nobody is promoted there on nobody's word.
    assert!(trio.answer(SECOND, AdminOp::Promote { fenced: false }).is_err());
    assert_eq!(trio.answer(FIRST, AdminOp::Promote { fenced: false }), Err(AdminError::ThirdTookOver));
    // Nor after a restart, in which its secondary answers and the third does not.
    trio.steps(500);
    trio.set_link(1, false);
    trio.kill(FIRST);
    trio.restart(FIRST);
    trio.until("its secondary follows", |trio| trio.status(SECOND).peer == PeerState::InSync);
    trio.steps(500);
    assert_eq!(trio.status(FIRST).state, GroupState::Superseded);
    assert_eq!((trio.status(FIRST).last, trio.status(FIRST).role), (before, Role::Primary));
    trio.set_link(1, true);
    trio.promote(FIRST);
    trio.exercise(FIRST, &mut expected, 2, 50);
    trio.until("both histories are seen", |trio| {
        trio.parted_at(FIRST).is_some_and(|parted| parted.theirs.promised > parted.common)
    });
    trio.steps(500);
    assert_eq!(trio.status(FIRST).state, GroupState::Serving);
}

#[test]
fn a_third_that_has_all_of_a_primary_that_stepped_down_takes_over_with_nothing_lost() {
    let mut trio = Trio::new();
    let mut expected = HashMap::new();
    trio.exercise(FIRST, &mut expected, 5, 1);
    assert!(trio.answer(FIRST, AdminOp::Demote).is_ok());
    trio.third_is_equal(FIRST, &expected);
    trio.steps(100);
    assert_eq!(trio.answer(THIRD, AdminOp::Promote { fenced: false }), Err(AdminError::ThirdNotFenced));
    assert!(trio.answer(THIRD, AdminOp::Promote { fenced: true }).is_ok());
    trio.exercise(THIRD, &mut expected, 5, 9);
    trio.until("all have met", |trio| [FIRST, SECOND].into_iter().all(|site| trio.parted_at(site).is_some()));
    for source in [FIRST, SECOND] {
        let parted = trio.parted_at(source).expect("met");
        assert_eq!(parted.theirs.last, parted.common, "site {source} lacks, and has nothing of its own");
    }
    // Its primary has stepped down, and all the same: beside the third it would be a second one.
    assert_eq!(trio.answer(SECOND, AdminOp::Promote { fenced: false }), Err(AdminError::ThirdTookOver));
    // Planned rotation: all are stopped, the third's peer is the first, and the second is the third of both.
    for site in 0..3 {
        let now = trio.now;
        trio.sites[site].with(now, |group, turn| group.stop(turn));
    }
    trio.until("all have stopped", |trio| trio.sites.iter().all(|site| site.group.stopped()));
    let third = ThirdConfig {
        site: SiteId(2),
        heartbeat_interval: Nanos::from_millis(5),
        silence_max: Nanos::from_millis(100),
        bandwidth_max: None,
    };
    let [first, second, far] = configs();
    let peer = |site| {
        let peer = first.peer.clone().expect("a peer");
        Some(PeerConfig { site: SiteId(site), ..peer })
    };
    let source = |site| SourceConfig { site: SiteId(site), silence_max: Nanos::from_millis(100) };
    let pages = first.pages;
    let rotated = [
        GroupConfig { role: Role::Secondary, peer: peer(3), third: Some(third.clone()), ..first.clone() },
        GroupConfig {
            role: Role::Third,
            peer: None,
            third: None,
            sources: vec![source(3), source(1)],
            ..second
        },
        GroupConfig { role: Role::Primary, peer: peer(1), third: Some(third), sources: vec![], pages, ..far },
    ];
    let ends = [
        [(FIRST, None), (THIRD, None)],
        [(THIRD, Some(0)), (SECOND, Some(0))],
        [(FIRST, Some(0)), (SECOND, Some(1))],
    ];
    let mut trio = trio.reconfigured(rotated, ends);
    trio.until("the new pair is in lockstep, and pulled from", |trio| {
        let second = trio.status(SECOND);
        trio.status(THIRD).peer == PeerState::InSync
            && trio.status(FIRST).role == Role::Secondary
            && second.role == Role::Third
            && second.sources.iter().flatten().any(|source| source.state == SourceState::Pulling)
    });
    trio.exercise(THIRD, &mut expected, 5, 60);
    trio.until("all have everything", |trio| {
        let last = trio.status(THIRD).last;
        [FIRST, SECOND].into_iter().all(|site| trio.status(site).settled == last)
    });
    for (lba, fill) in expected {
        for site in [FIRST, SECOND, THIRD] {
            assert_eq!(trio.read(site, lba), fill, "block {lba} of site {site}");
        }
    }
}

/// What each configuration makes of each disk.
#[test]
fn a_site_starts_as_what_its_configuration_says_where_nothing_promised_depends_on_what_it_was() {
    let [first, second, far] = configs();
    let as_third = |config: &GroupConfig| GroupConfig { site: config.site, ..far.clone() };
    let as_one_of_two = |config: &GroupConfig, role| GroupConfig { site: config.site, role, ..first.clone() };
    let start = |site: &Site, config: GroupConfig| {
        let mut site = Site::started(config, site.disks.clone());
        let now = Nanos::from_millis(60_000);
        site.with(now, |group, turn| group.start(turn));
        for _ in 0..1000 {
            site.with(now, |group, turn| group.end_turn(turn));
            for event in std::iter::from_fn(|| site.out.events.pop()) {
                match event {
                    Event::RoleRefused { why } => return Err(why),
                    Event::Recovered { role, .. } => return Ok(role),
                    _ => {}
                }
            }
            site.drain(now);
        }
        panic!("it does not recover");
    };
    let mut trio = Trio::new();
    let mut expected = HashMap::new();
    trio.exercise(FIRST, &mut expected, 5, 1);
    trio.third_is_equal(FIRST, &expected);
    trio.steps(100);
    // The second has what it does not know to be settled.
    trio.set_link(2, false);
    trio.begin_write(FIRST, 1, 0, 99);
    trio.until("the second has it", |trio| trio.status(SECOND).durable > trio.status(SECOND).settled);
    let torn = trio.status(SECOND);
    let refused = start(&trio.sites[SECOND], as_third(&second));
    assert_eq!(refused, Err(RoleRefused::Unsettled { after: torn.settled, last: torn.last }));
    assert_eq!(trio.reply(FIRST, 1), Ok(()));
    assert_eq!(start(&trio.sites[FIRST], as_third(&first)), Err(RoleRefused::WasPrimary));
    assert_eq!(start(&trio.sites[THIRD], as_one_of_two(&far, Role::Primary)), Err(RoleRefused::NotPromoted));
    assert_eq!(start(&trio.sites[THIRD], as_one_of_two(&far, Role::Secondary)), Ok(Role::Secondary));
    assert_eq!(start(&trio.sites[THIRD], far.clone()), Ok(Role::Third));
    let (trio, _) = Trio::inherited();
    for config in [far.clone(), as_one_of_two(&far, Role::Primary), as_one_of_two(&far, Role::Secondary)] {
        assert_eq!(start(&trio.sites[THIRD], config), Ok(Role::Primary));
    }
}
