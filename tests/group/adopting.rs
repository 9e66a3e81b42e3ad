//! A site that begins with what its volumes hold from before: nobody is its equal who was not copied that.

use super::*;

/// Disks with contents from before: what they hold of each block.
pub fn adopted(config: GroupConfig, at_ms: u64, holds: &HashMap<u64, u8>) -> Site {
    let mut site = Site::formatted(config);
    let GroupConfig { group, site: id, role, journal_blocks, .. } = site.config;
    let alone = site.config.peer.is_some();
    for sequence in 0..SUPERBLOCK_SLOTS {
        let empty = Superblock::formatted(group, id, role, sequence, journal_blocks, &[VOLUME_BLOCKS]);
        let mut block = Box::new([0; BLOCK_BYTES]);
        empty.adopting(Generation::of_adoption(id, at_ms), alone).encode(&mut block);
        site.disks.insert((IoTarget::Journal, empty.slot()), block);
    }
    let mut sums = Box::new([0; BLOCK_BYTES]);
    for (&lba, &fill) in holds {
        let block = Box::new([fill; BLOCK_BYTES]);
        let at = 4 * lba as usize;
        sums[at..at + 4].copy_from_slice(&sum_of_block(&block).0.to_le_bytes());
        site.disks.insert((IoTarget::Volume(VolumeId(0)), lba), block);
    }
    site.disks.insert((IoTarget::Checksums(VolumeId(0)), 0), sums);
    site
}

/// What the volumes of a site may hold from before.
fn contents(fill: u8, step: usize) -> HashMap<u64, u8> {
    (0..BLOCKS).step_by(step).map(|lba| (lba, fill)).collect()
}

impl Split {
    /// Two sites that have never met, some of them with contents; `gone` is to be copied to.
    pub(super) fn strangers(
        contents: [Option<HashMap<u64, u8>>; 2],
        gone: usize,
        policy: OnPeerLoss,
    ) -> Split {
        let roles = [Role::Primary, Role::Secondary];
        let sites = [0, 1].map(|index| {
            let mut config = solo_with_staging(roles[index]);
            config.peer.as_mut().expect("a pair").on_peer_loss = policy;
            match &contents[index] {
                Some(holds) => adopted(config, 1_000_000 + index as u64, holds),
                None => Site::formatted(config),
            }
        });
        let mut pair = Pair { now: Nanos(0), sites };
        for site in &mut pair.sites {
            site.may_refuse = true;
            site.with(Nanos(0), |group, turn| group.start(turn));
        }
        Split {
            pair,
            connection: 1,
            linked: false,
            gone,
            admin: Vec::new(),
            holds: contents.map(Option::unwrap_or_default),
            busy: false,
            written: 0,
            pending: None,
            unknown: Vec::new(),
            installed: false,
            steps: 0,
            turn_of_gone: 1,
            held: VecDeque::new(),
        }
    }

    /// Blocks that were copied, and those that were equal.
    fn moved(&self) -> [u64; 2] {
        let counters = self.status(1 - self.gone).counters;
        [counters.resync_blocks, counters.resync_equal_blocks]
    }

    /// Two that each adopted contents refuse each other, and say what there is.
    fn refuse_strangers(&mut self) {
        self.link();
        self.until("they refuse each other", |split| !split.linked);
        for site in 0..2 {
            let split = self.split(site).expect("each has what the other one never had");
            assert_eq!(split.common, UpdateNumber::NONE);
            assert!(split.ours.marks && split.theirs.marks, "{split:?}");
        }
    }
}

#[test]
fn an_empty_site_is_copied_what_the_other_one_adopted_whatever_it_was_to_be() {
    for (adopter, policy, busy) in [
        (0, OnPeerLoss::Solo, true),
        (0, OnPeerLoss::Suspend, false),
        (1, OnPeerLoss::Solo, false),
        (1, OnPeerLoss::Suspend, true),
    ] {
        let mut holds = [None, None];
        holds[adopter] = Some(contents(5, 3));
        let mut split = Split::strangers(holds, 1 - adopter, policy);
        split.until("it serves what it has", |split| split.pair.sites[adopter].group.serving());
        assert!(split.status(adopter).solo, "nobody else has it");
        assert_eq!(split.status(adopter).role, Role::Primary);
        split.check(adopter, "before they met");
        split.link();
        split.busy = busy;
        let mut met = false;
        split.until("what it is copied is whole", |split| {
            let status = split.status(split.gone);
            met |= status.peer == PeerState::Resyncing;
            assert!(split.installed || status.last == UpdateNumber::NONE, "{status:?}");
            assert!(split.installed || !split.over(), "they are not equal yet");
            split.installed
        });
        assert!(met && split.status(adopter).resync.whole);
        let [copied, equal] = split.moved();
        if !busy {
            assert_eq!(copied, BLOCKS.div_ceil(3), "what is not zeros, and nothing else");
            assert_eq!(equal, VOLUME_BLOCKS - copied);
        }
        split.finish();
        assert!(!busy || split.written > 0, "hosts went on");
    }
}

#[test]
fn an_empty_site_is_not_promoted_once_it_has_heard_of_contents() {
    let mut split = Split::strangers([Some(contents(5, 3)), None], 1, OnPeerLoss::Suspend);
    split.link();
    split.until("something was left out", |split| split.moved()[1] > 0);
    for id in 10..12 {
        split.ask(1, id, AdminOp::Promote { fenced: true });
        assert_eq!(split.answer(id), Err(AdminError::HoldsNothing));
        split.crash(1);
    }
    split.link();
    split.finish();
    split.unlink();
    split.ask(1, 20, AdminOp::Promote { fenced: true });
    assert!(split.answer(20).is_ok());
    split.check(1, "promoted with all of it");
}

#[test]
fn two_that_adopted_are_kept_apart_until_one_of_them_is_named() {
    for gone in 0..2 {
        let mut older = contents(5, 3);
        older.extend((0..BLOCKS).step_by(12).map(|lba| (lba, 6)));
        let mut both = [Some(contents(5, 3)), Some(older)];
        if gone == 0 {
            both.swap(0, 1);
        }
        let mut split = Split::strangers(both, gone, OnPeerLoss::Suspend);
        split.refuse_strangers();
        (0..2).for_each(|site| split.check(site, "after they met"));
        split.crash(gone);
        split.refuse_strangers();
        split.give_way();
        split.check(gone, "having given way");
        split.crash(gone);
        split.check(gone, "and after a restart");
        split.link();
        split.until("what it is copied is whole", |split| split.installed);
        assert_eq!(
            split.moved(),
            [BLOCKS.div_ceil(12), VOLUME_BLOCKS - BLOCKS.div_ceil(12)],
            "what differed"
        );
        split.finish();
    }
}

#[test]
fn either_may_die_at_any_moment_of_adopting() {
    for (run, steps) in (0..60).map(|run| (run, run * run / 16)) {
        let gone = run % 2;
        let mut both = [Some(contents(5, 3)), Some(contents(6, 2))];
        if run % 4 < 2 {
            both[gone] = None;
        }
        let mut split = Split::strangers(both.clone(), gone, OnPeerLoss::Suspend);
        if both[gone].is_some() {
            split.refuse_strangers();
            split.give_way();
        }
        split.link();
        split.busy = run % 3 > 0;
        for _ in 0..steps {
            split.step();
        }
        if !split.installed {
            split.crash(if run % 8 < 4 { 0 } else { 1 });
        }
        if run % 5 == 0 {
            split.crash(1 - gone);
        }
        split.finish();
    }
}

#[test]
fn a_site_that_adopts_contents_anew_is_not_taken_for_what_it_was() {
    for index in 0..2 {
        let mut split = Split::strangers([Some(contents(5, 3)), None], 1, OnPeerLoss::Solo);
        split.link();
        split.until("what it is copied is whole", |split| split.installed);
        split.finish();
        // Formatted again, with something else or with the same; and nobody wrote meanwhile.
        let holds = contents(7, 2);
        let again = adopted(split.pair.sites[index].config.clone(), 2_000_000, &holds);
        split.holds[index] = holds;
        split.gone = index;
        split.start(index, again);
        if index == 0 {
            split.ask(1, 9, AdminOp::Promote { fenced: true });
            assert!(split.answer(9).is_ok());
        }
        split.until("the other one is alone", |split| split.status(1 - index).solo);
        split.refuse_strangers();
        (0..2).for_each(|site| assert_ne!(split.status(site).peer, PeerState::InSync));
        split.give_way();
        split.link();
        split.installed = false;
        split.until("what it is copied is whole", |split| split.installed);
        split.finish();
    }
}

#[test]
fn a_site_without_a_peer_serves_what_it_adopted() {
    let holds = contents(5, 3);
    let mut config = config(Role::Primary, false);
    config.peer = None;
    let mut site = adopted(config, 1_000_000, &holds);
    let mut now = Nanos(0);
    site.with(now, |group, turn| group.start(turn));
    for _ in 0..1000 {
        now = now.plus(Nanos::from_micros(200));
        site.with(now, |group, turn| group.end_turn(turn));
        assert!(site.drain(now).is_empty());
    }
    let status = site.group.status(now);
    assert!(site.group.serving() && !status.solo, "{status:?}");
    assert_eq!(status.last, UpdateNumber(2), "its contents, and the generation that it serves in");
}
