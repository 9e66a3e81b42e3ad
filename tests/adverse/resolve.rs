//! Split brains that are resolved: a site that gives way with crashes in between, and one whose peer says so and breaks the protocol.

use super::*;
use lockstep::format::metadata::put_marks;

/// A primary that has acknowledged update 3 alone, where both have update 1, and can be copied onto its peer.
fn parted() -> Site {
    let mut config = solo(Role::Primary);
    config.resync = ResyncConfig { staging_blocks: 9000, p99_budget: Nanos::from_millis(10) };
    alone_as(config)
}

/// The hello of a peer that took over after update 1, is alone, and knows what it has changed.
fn other() -> Hello {
    let history = [(generation(1, US), 1), (generation(1, US).opened_by(PEER), 2)];
    Hello {
        role: Role::Primary,
        alone_upto: UpdateNumber(9),
        marks_after: UpdateNumber(1),
        solo: true,
        serving: true,
        ..hello(Role::Primary, &history, 9, 9)
    }
}

/// The same once it has given way.
fn given_way() -> Hello {
    Hello { role: Role::Secondary, solo: false, serving: false, gives_way_to: generation(1, US), ..other() }
}

impl Site {
    fn told_to_give_way(&mut self) -> Option<Result<UpdateNumber, AdminError>> {
        let replies: Vec<AdminReply> = std::iter::from_fn(|| self.out.to_admin.pop()).collect();
        replies.iter().find(|reply| reply.id == 7).map(|reply| reply.result)
    }

    fn give_way(&mut self) {
        for (id, op) in [(7, AdminOp::GiveWay), (8, AdminOp::HostsGone)] {
            self.with(|group, turn| group.on_admin(turn, AdminRequest { id, op }));
        }
        self.turns(50);
    }

    fn marks(&mut self, volume: u16, chunk: u64, words: &[u64]) {
        let page = self.link_pages.pop().expect("granted");
        put_marks(self.memory.bytes_mut(page), VolumeId(volume), chunk, words);
        self.deliver(FromLink::Page { frame: PageFrame::Marks, page, length: BLOCK_BYTES as u16 });
        self.turn();
    }

    fn offered(&self) -> Option<u64> {
        self.sent.iter().rev().find_map(|message| match message {
            ToLink::Control(Control::CopyOffer { blocks, .. }) => Some(*blocks),
            _ => None,
        })
    }

    fn closes(&self) -> bool {
        self.sent.iter().any(|message| matches!(message, ToLink::Close))
    }
}

#[test]
fn a_site_gives_way_when_that_is_durable_and_tells_what_it_has_changed() {
    let mut site = parted();
    site.connect(&other());
    assert_eq!(site.refused_with(), Some(RefusalCode::SplitBrain));
    site.disconnect();
    site.held = journal_flushes;
    site.give_way();
    site.write(0, 6, 8);
    site.turns(5);
    assert_eq!((site.told_to_give_way(), site.status().role), (None, Role::Primary));
    assert_eq!(site.reply(0), Some(Err(HostError::NotServing)));
    site.held = nothing;
    site.turns(50);
    assert_eq!(site.told_to_give_way(), Some(Ok(UpdateNumber(4))));
    // It keeps what it has, across a restart, and says so to whoever is to be kept.
    for restarts in [false, true] {
        if restarts {
            site = site.restarted_holding(nothing);
        }
        assert_eq!((site.status().role, site.status().gives_way), (Role::Secondary, true));
        site.give_way();
        assert_eq!(site.told_to_give_way(), Some(Ok(UpdateNumber(4))), "told again, it does nothing");
        assert_eq!((site.status().settled, site.read(1, 5)), (UpdateNumber(4), Ok(7)));
        site.sent.clear();
        site.connect(&other());
        site.turns(20);
        let marks = |message: &&ToLink| matches!(message, ToLink::Page { frame: PageFrame::Marks, .. });
        assert_eq!(site.sent.iter().filter(marks).count(), 1);
        assert!(site.sent.contains(&ToLink::Control(Control::MarksEnd { pages: 1 })));
        // Nothing that comes as part of a stream is taken.
        site.update(9, write(5, generation(1, US), 5, 1), 9);
        site.turns(20);
        assert_eq!((site.status().last, site.read(1, 5)), (UpdateNumber(4), Ok(7)));
        site.disconnect();
    }
    // A stranger is not who it gives way to.
    site.connect(&Hello { history: History::default(), last_generation: Generation::NONE, ..other() });
    site.turns(20);
    assert_eq!((site.status().last, site.read(1, 5)), (UpdateNumber(4), Ok(7)));
}

#[test]
fn what_a_crash_undoes_gave_nothing_away() {
    let mut site = parted();
    site.connect(&other());
    site.disconnect();
    site.held = journal_batches;
    site.give_way();
    let mut site = site.crashed();
    assert_eq!((site.status().role, site.status().gives_way), (Role::Primary, false));
    site.write(0, 5, 9);
    site.turns(50);
    assert_eq!(site.reply(0), Some(Ok(())));
}

#[test]
fn all_that_either_has_changed_is_marked_durably_before_it_is_copied() {
    let mut site = parted();
    site.connect(&given_way());
    site.turns(20);
    assert_eq!((site.refused_with(), site.offered()), (None, None), "it has not been told yet");
    site.metadata_held = true;
    site.marks(0, 0, &[0b10_0001, 0, 1]);
    site.control(Control::MarksEnd { pages: 1 });
    site.turns(50);
    assert_eq!(site.offered(), None, "its marks are not durable");
    site.metadata_held = false;
    // Nothing but that answer calls for a turn.
    site.turns(2);
    assert_eq!(site.offered(), Some(3), "block 5 was changed here too");
    // Interrupted, it is told again, and goes on with the same resync.
    site.control(Control::Staged { updates: 0 });
    site.turns(20);
    site.disconnect();
    site.sent.clear();
    site.connect(&given_way());
    site.marks(0, 0, &[0b10_0001, 0, 1]);
    site.control(Control::MarksEnd { pages: 1 });
    site.turns(50);
    assert_eq!(site.offered(), Some(3));
    assert_eq!((site.status().role, site.read(1, 5)), (Role::Primary, Ok(7)));
}

#[test]
fn marks_that_make_no_sense_end_the_conversation() {
    type Wrong = fn(&mut Site);
    let wrongs: [Wrong; 8] = [
        |site| site.marks(1, 0, &[1]),
        |site| site.marks(0, 1, &[1]),
        |site| site.marks(0, u64::MAX, &[1]),
        |site| site.marks(0, 0, &[1; 33]),
        |site| site.control(Control::MarksEnd { pages: 1 }),
        |site| {
            site.marks(0, 0, &[1]);
            site.marks(0, 0, &[2]);
        },
        |site| {
            site.metadata_held = true;
            site.marks(0, 0, &[1]);
            site.control(Control::MarksEnd { pages: 1 });
            site.marks(0, 0, &[0, 1]);
        },
        |site| {
            site.metadata_held = true;
            site.marks(0, 0, &[1]);
            site.control(Control::MarksEnd { pages: 1 });
            site.control(Control::MarksEnd { pages: 1 });
        },
    ];
    for (index, wrong) in wrongs.into_iter().enumerate() {
        let mut site = parted();
        site.connect(&given_way());
        site.turns(5);
        site.sent.clear();
        wrong(&mut site);
        site.turns(5);
        assert!(site.closes(), "wrong {index}");
        assert_eq!(site.offered(), None, "wrong {index}");
        site.metadata_held = false;
        site.turns(50);
        assert_eq!((site.status().role, site.read(1, 5)), (Role::Primary, Ok(7)), "wrong {index}");
    }
    // Nobody asked for any.
    let mut site = parted();
    site.connect(&hello(Role::Primary, &[(generation(1, US), 1)], 1, 1));
    site.turns(5);
    site.sent.clear();
    site.marks(0, 0, &[1]);
    site.turns(5);
    assert!(site.closes());
}

#[test]
fn a_peer_that_never_says_what_it_has_changed_is_lost() {
    let mut site = parted();
    site.connect(&given_way());
    site.turns(20);
    assert!(!site.closes());
    site.now = site.now.plus(Nanos::from_millis(30_000));
    site.turns(2);
    assert!(site.closes());
}

#[test]
fn a_promotion_that_a_crash_undoes_takes_nothing_back() {
    let both: fn(&IoRequest) -> bool = |request| volume_writes(request) || journal_batches(request);
    let promote = AdminRequest { id: 9, op: AdminOp::Promote { fenced: true } };
    for durable in [true, false] {
        let mut site = parted();
        site.connect(&other());
        site.disconnect();
        if durable {
            site.give_way();
        }
        site.held = volume_writes;
        site.turns(11_000);
        site.held = both;
        if !durable {
            site.give_way();
        }
        site.with(|group, turn| group.on_admin(turn, promote));
        site.turns(20);
        site.held = journal_batches;
        site.turns(50);
        assert_eq!(site.status().checkpoint.0, if durable { 4 } else { 3 });
        let site = site.crashed();
        let expected = if durable { (Role::Secondary, true, false) } else { (Role::Primary, false, true) };
        let status = site.status();
        assert_eq!((status.role, status.gives_way, status.solo), expected);
    }
}
