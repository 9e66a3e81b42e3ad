//! Volumes that are extended while hosts are connected.

use super::*;
use lockstep::core::group::status::{Part, PartStatus};

/// What hosts see at first, of what is laid out.
const SMALL: u64 = 100;

/// A site whose hosts see so much.
fn showing(role: Role, peer: bool, blocks: u64) -> Site {
    let mut site = Site::formatted(config(role, peer));
    for sequence in 0..SUPERBLOCK_SLOTS {
        let GroupConfig { group, site: id, journal_blocks, .. } = site.config;
        let formatted = Superblock::formatted(group, id, role, sequence, journal_blocks, &[VOLUME_BLOCKS]);
        let superblock = Superblock { sizes: VolumeSizes::of([blocks].into_iter()), ..formatted };
        let mut block = Box::new([0; BLOCK_BYTES]);
        superblock.encode(&mut block);
        site.disks.insert((IoTarget::Journal, superblock.slot()), block);
    }
    // Sites that show different sizes part, and meet again.
    site.may_refuse = true;
    site
}

/// A pair whose link is made anew when one of them closes it.
struct Linked {
    pair: Pair,
    connection: u32,
    closed: u32,
}

impl Linked {
    fn showing(blocks: [u64; 2]) -> Linked {
        let sites = [showing(Role::Primary, true, blocks[0]), showing(Role::Secondary, true, blocks[1])];
        let mut pair = Pair { now: Nanos(1), sites };
        for site in &mut pair.sites {
            site.with(pair.now, |group, turn| group.start(turn));
        }
        pair.connect(1);
        let mut linked = Linked { pair, connection: 1, closed: 0 };
        linked.in_sync();
        linked
    }

    fn step(&mut self) {
        let Linked { pair, connection, closed } = self;
        pair.now = pair.now.plus(Nanos::from_micros(200));
        let now = pair.now;
        for site in 0..2 {
            let [a, b] = &mut pair.sites;
            let (from, to) = if site == 0 { (a, b) } else { (b, a) };
            from.with(now, |group, turn| group.end_turn(turn));
            let mut closes = false;
            for message in from.drain(now) {
                match message {
                    ToLink::Close => closes = true,
                    message => to.receive(now, from, message),
                }
            }
            if closes {
                *closed += 1;
                pair.disconnect(*connection);
                *connection += 1;
                pair.connect(*connection);
            }
        }
    }

    fn until(&mut self, what: &str, mut done: impl FnMut(&mut Pair) -> bool) {
        for _ in 0..50_000 {
            if done(&mut self.pair) {
                return;
            }
            self.step();
        }
        panic!("never: {what}");
    }

    fn in_sync(&mut self) {
        self.until("in sync", |pair| {
            let status = pair.sites.each_ref().map(|site| site.group.status(pair.now));
            status.iter().all(|status| status.peer == PeerState::InSync) && pair.sites[0].group.serving()
        });
    }

    fn asks(&mut self, site: usize, blocks: u64) {
        let request = AdminRequest { id: 1, op: AdminOp::Extend { volume: VolumeId(0), blocks } };
        self.pair.sites[site].with(self.pair.now, |group, turn| group.on_admin(turn, request));
    }

    fn extend(&mut self, site: usize, blocks: u64) -> Result<(), AdminError> {
        self.asks(site, blocks);
        let mut answer = None;
        self.until("an answer", |pair| {
            answer = pair.sites[site].out.to_admin.pop();
            answer.is_some()
        });
        answer.expect("there is one").result.map(|_| ())
    }

    fn read(&mut self, site: usize, lba: u64) -> Result<(), HostError> {
        let pages = self.pair.sites[site].begin_read(self.pair.now, 900, lba, 1);
        self.until("a reply", |pair| !pair.sites[site].replies.is_empty());
        self.pair.sites[site].front_pages.extend(pages);
        self.pair.sites[site].replies.pop().expect("there is one").result
    }
}

fn shows(site: &Site) -> u64 {
    site.group.sizes().get(VolumeId(0))
}

/// What the next start would show.
fn says(site: &Site) -> u64 {
    let slots = (0..SUPERBLOCK_SLOTS).filter_map(|slot| site.disks.get(&(IoTarget::Journal, slot)));
    let newest = slots.filter_map(|slot| Superblock::decode(slot).ok()).max_by_key(|found| found.sequence);
    newest.expect("a superblock").sizes.get(VolumeId(0))
}

/// The superblock that extends a volume is no checkpoint: it writes no checksums.
#[test]
fn a_checksum_file_that_a_scrub_finds_bad_is_written_anew_though_a_volume_is_extended_meanwhile() {
    // The extension's superblock goes before the sweep, or behind it.
    for asked_before in 0..12 {
        let mut linked = Linked::showing([SMALL; 2]);
        let now = linked.pair.now;
        linked.pair.sites[0].write(now, 1, 7, 0xa1, false);
        linked.until("a checkpoint of it", |pair| {
            let status = pair.sites[0].group.status(pair.now);
            status.checkpoint == status.last && status.last > UpdateNumber::NONE
        });
        let key = (IoTarget::Checksums(VolumeId(0)), 0);
        let was = linked.pair.sites[0].disks[&key].clone();
        linked.pair.sites[0].disks.get_mut(&key).expect("it is there")[77] ^= 1;
        let request = AdminRequest { id: 7, op: AdminOp::Scrub { blocks_per_second: 500 } };
        let now = linked.pair.now;
        linked.pair.sites[0].with(now, |group, turn| group.on_admin(turn, request));
        assert!(linked.pair.sites[0].out.to_admin.pop().expect("an answer").result.is_ok());
        let scrub = |pair: &Pair| pair.sites[0].group.status(pair.now).scrub;
        if asked_before > 0 {
            linked.until("the volume is read", |pair| scrub(pair).part(Part::Volumes).read == SMALL);
            (0..12 - asked_before).for_each(|_| linked.step());
        } else {
            linked.until("it is found", |pair| scrub(pair).part(Part::Checksums).bad == 1);
        }
        assert_eq!(linked.extend(0, 2 * SMALL), Ok(()));
        linked.until("the scrub is over", |pair| !scrub(pair).active);
        let PartStatus { bad, repaired, .. } = scrub(&linked.pair).part(Part::Checksums);
        assert_eq!((bad, repaired), (1, 1));
        assert!(linked.pair.sites[0].disks[&key] == was, "asked {asked_before} steps before");
    }
}

#[test]
fn both_sites_show_more_and_say_so_durably_before_the_administrator_hears() {
    let mut linked = Linked::showing([SMALL, SMALL]);
    assert_eq!(linked.read(0, SMALL - 1), Ok(()));
    assert_eq!(linked.read(0, SMALL), Err(HostError::OutOfRange));
    linked.pair.sites[0].requests.clear();
    assert_eq!(linked.extend(0, 2 * SMALL), Ok(()));
    let Linked { pair, closed, .. } = &linked;
    assert_eq!(pair.sites.each_ref().map(shows), [2 * SMALL; 2]);
    assert_eq!(pair.sites.each_ref().map(says), [2 * SMALL; 2]);
    let reserves = (IoTarget::Volume(VolumeId(0)), IoOp::Reserve);
    assert!(pair.sites.iter().all(|site| site.requests.contains(&reserves)), "space is reserved at both");
    assert_eq!(*closed, 0, "and the sites go on talking");
    let now = linked.pair.now;
    linked.pair.sites[0].write(now, 1, 2 * SMALL - 1, 7, true);
    assert_eq!(linked.pair.reply(0, 1), Ok(()));
    linked.pair.settled();
    assert_eq!(linked.pair.read(1, 2 * SMALL - 1), 7);
    assert_eq!(linked.read(1, 2 * SMALL), Err(HostError::OutOfRange));

    linked.pair.restart(0, linked.connection);
    linked.connection += 1;
    linked.pair.connect(linked.connection);
    linked.in_sync();
    assert_eq!(linked.pair.read(0, 2 * SMALL - 1), 7, "a restart shows what hosts saw");
}

#[test]
fn what_cannot_be_is_refused_and_nothing_is_changed() {
    let mut linked = Linked::showing([SMALL, SMALL]);
    assert_eq!(linked.extend(0, SMALL), Err(AdminError::NotLarger));
    assert_eq!(linked.extend(0, SMALL - 1), Err(AdminError::NotLarger));
    assert_eq!(linked.extend(0, VOLUME_BLOCKS + 1), Err(AdminError::BeyondRoom));
    assert_eq!(linked.extend(1, 2 * SMALL), Err(AdminError::ReadOnly));
    for (full, error) in
        [(0, AdminError::CannotReserve { errno: 28 }), (1, AdminError::PeerCannotReserve { errno: 28 })]
    {
        linked.pair.sites[full].full = true;
        assert_eq!(linked.extend(0, 2 * SMALL), Err(error));
        linked.pair.sites[full].full = false;
        assert_eq!(linked.pair.sites.each_ref().map(says), [SMALL; 2]);
        assert_eq!(linked.read(0, SMALL), Err(HostError::OutOfRange));
    }
    let connection = linked.connection;
    linked.pair.disconnect(connection);
    assert_eq!(linked.extend(0, 2 * SMALL), Err(AdminError::NotInLockstep));
    linked.connection += 1;
    linked.pair.connect(linked.connection);
    linked.in_sync();
    assert_eq!(linked.extend(0, VOLUME_BLOCKS), Ok(()), "and what can be is done");
}

#[test]
fn of_sites_that_show_different_sizes_the_follower_takes_the_larger_before_it_hears_anything_else() {
    for blocks in [[SMALL, 2 * SMALL], [2 * SMALL, SMALL]] {
        let mut linked = Linked::showing(blocks);
        assert_eq!(says(&linked.pair.sites[1]), 2 * SMALL, "{blocks:?}");
        let follower_shows_less = blocks[1] == SMALL;
        assert_eq!(linked.closed > 0, follower_shows_less, "then it comes again, and a primary goes on");
        linked.until("both say it", |pair| pair.sites.each_ref().map(says) == [2 * SMALL; 2]);
        assert_eq!(linked.read(0, 2 * SMALL - 1), Ok(()));
        assert_eq!(linked.read(0, 2 * SMALL), Err(HostError::OutOfRange));
    }
}

/// The peer's superblock says it, and its answer is lost with the connection.
#[test]
fn an_extension_of_which_only_the_peer_heard_is_in_force_when_they_meet_again() {
    let mut linked = Linked::showing([SMALL, SMALL]);
    linked.asks(0, 2 * SMALL);
    linked.until("the peer says it", |pair| says(&pair.sites[1]) == 2 * SMALL);
    assert_eq!(says(&linked.pair.sites[0]), SMALL, "the peer first");
    let connection = linked.connection;
    linked.pair.disconnect(connection);
    linked.until("an answer", |pair| !pair.sites[0].out.to_admin.is_empty());
    let reply = linked.pair.sites[0].out.to_admin.pop().expect("it is there");
    assert_eq!(reply.result, Err(AdminError::Deadline), "it may still happen");
    assert_eq!(linked.read(0, SMALL), Err(HostError::OutOfRange));
    linked.connection += 1;
    linked.pair.connect(linked.connection);
    linked.in_sync();
    linked.until("both say it", |pair| pair.sites.each_ref().map(says) == [2 * SMALL; 2]);
    linked.until("it is in force", |pair| shows(&pair.sites[0]) == 2 * SMALL);
    assert_eq!(linked.read(0, 2 * SMALL - 1), Ok(()));
}

#[test]
fn a_site_without_a_peer_extends_alone() {
    let mut site = showing(Role::Primary, false, SMALL);
    let now = Nanos(1);
    site.with(now, |group, turn| group.start(turn));
    for at in 0..200u64 {
        let now = Nanos::from_millis(at);
        site.with(now, |group, turn| group.end_turn(turn));
        site.drain(now);
        if at == 100 {
            let request = AdminRequest { id: 1, op: AdminOp::Extend { volume: VolumeId(0), blocks: 400 } };
            site.with(now, |group, turn| group.on_admin(turn, request));
        }
    }
    assert!(site.out.to_admin.pop().is_some_and(|reply| reply.result.is_ok()));
    assert_eq!((shows(&site), says(&site)), (400, 400));
}

/// A filesystem takes its time, and the primary steps down meanwhile.
#[test]
fn a_primary_that_steps_down_while_space_is_reserved_hears_of_it_in_peace() {
    let mut linked = Linked::showing([SMALL, SMALL]);
    linked.asks(0, 2 * SMALL);
    let now = linked.pair.now;
    linked.pair.sites[0].with(now, |group, turn| group.end_turn(turn));
    let held = std::iter::from_fn(|| linked.pair.sites[0].out.to_volumes.pop()).collect::<Vec<_>>();
    assert!(matches!(held[..], [IoRequest { op: IoOp::Reserve, .. }]), "{held:?}");
    for op in [AdminOp::Demote, AdminOp::HostsGone] {
        let request = AdminRequest { id: 2, op };
        linked.pair.sites[0].with(linked.pair.now, |group, turn| group.on_admin(turn, request));
    }
    linked.until("it has stepped down", |pair| pair.sites[0].group.status(pair.now).role == Role::Secondary);
    let replies = std::iter::from_fn(|| linked.pair.sites[0].out.to_admin.pop()).collect::<Vec<_>>();
    assert!(replies.iter().any(|reply| (reply.id, reply.result) == (1, Err(AdminError::NotServing))));
    let done = IoDone { slot: held[0].slot, result: Ok(()) };
    let now = linked.pair.now;
    linked.pair.sites[0].with(now, |group, turn| group.on_io(turn, Executor::Volumes, done));
    (0..100).for_each(|_| linked.step());
    assert_eq!(linked.pair.sites.each_ref().map(says), [SMALL; 2]);
}

#[test]
fn whatever_a_primary_asks_to_be_extended_the_secondary_lives() {
    for (volume, blocks) in [(40, 0), (40, u64::MAX), (1, 1)] {
        let mut linked = Linked::showing([SMALL, SMALL]);
        let wanted = FromLink::Control(Control::Extend { volume: VolumeId(volume), blocks });
        let now = linked.pair.now;
        linked.pair.sites[1].with(now, |group, turn| group.on_link(turn, wanted));
        linked.step();
        assert!(linked.closed > 0, "{volume}, {blocks}");
    }
    let mut linked = Linked::showing([SMALL, SMALL]);
    let now = linked.pair.now;
    for blocks in (0..20_000).map(|at| u64::MAX - at) {
        let wanted = FromLink::Control(Control::Extend { volume: VolumeId(0), blocks });
        linked.pair.sites[1].with(now, |group, turn| group.on_link(turn, wanted));
    }
    let answer = FromLink::Control(Control::Extended { volume: VolumeId(0), blocks: 2 * SMALL, errno: 0 });
    for site in &mut linked.pair.sites {
        site.with(now, |group, turn| group.on_link(turn, answer));
    }
    (0..100).for_each(|_| linked.step());
    assert_eq!(linked.pair.sites.each_ref().map(says), [SMALL; 2]);
    assert_eq!(linked.extend(0, 2 * SMALL), Ok(()));
}
