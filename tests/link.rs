//! The link between two sites on loopback: what goes in comes out, once, in order, and to nobody else.

#[path = "common/relay.rs"]
mod relay;
#[path = "support/link_sites.rs"]
mod sites;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use bytes::Bytes;
use lockstep::base::*;
use lockstep::core::messages::{BlockPlace, Control, FromLink, Lacking, PageFrame, ToLink, UpdateSource};
use lockstep::format::update::{Update, UpdateKind};
use lockstep::format::wire;
use lockstep::io::quic::connection::{Connector, LinkConfig, Problem};
use lockstep::io::quic::identity::{Fingerprints, Identity};
use lockstep::io::quic::keys::{KeysError, NewKeys};
use lockstep::io::quic::link::{Link, LinkActor};
use lockstep::io::quic::transport::{
    Congestion, PAYLOAD_BYTES_JUMBO, PAYLOAD_BYTES_MAX, PAYLOAD_BYTES_MIN, PayloadSize,
};
use lockstep::io::ring::{Ring, RingConfig};
use lockstep::reactor::{Clock, IdlePolicy, Loads, Port, Reactor, edge, mesh};
use relay::Relay;
use sites::*;

#[test]
fn updates_arrive_intact_and_in_order() {
    let (mut dialer, mut listener) = connected();
    stream(&mut dialer, &mut listener, 1..800);
    stream(&mut listener, &mut dialer, 1..200);
    stream(&mut dialer, &mut listener, 800..900);
    assert_eq!((dialer.connected(), listener.connected()), (Some(1), Some(1)));
}

#[test]
fn datagrams_of_any_size_are_sent_whole() {
    for bytes in [PAYLOAD_BYTES_MIN, PAYLOAD_BYTES_JUMBO, PAYLOAD_BYTES_MAX] {
        let (mut dials, mut listens) = pair();
        (dials.payload, listens.payload) = (PayloadSize::Known(bytes), PayloadSize::Known(bytes));
        let listener = Site::new(&listens);
        dials.dial = Some(listener.link.local_address().unwrap());
        let (mut dialer, mut listener) = connect(Site::new(&dials), listener);
        stream(&mut dialer, &mut listener, 1..400);
        run(&mut dialer, &mut listener, "figures are published", |a, _| {
            a.link.stats().bytes_sent.load(Relaxed) > 10 << 20
        });
        // What the kernel refuses for its size is lost without a word.
        let stats = dialer.link.stats();
        let (sent, lost) = (stats.datagrams_sent.load(Relaxed), stats.datagrams_lost.load(Relaxed));
        assert!(lost < sent / 20, "{lost} of {sent} datagrams of {bytes} bytes were lost");
        assert_eq!(stats.payload_bytes.load(Relaxed), u64::from(bytes));
    }
}

#[test]
fn every_kind_of_message_crosses() {
    let (mut dialer, mut listener) = connected();
    let number = UpdateNumber(7);
    let controls = [
        Control::Ack {
            received: number,
            journaled: number,
            durable: number,
            applied: number,
            journal_ns: 9,
            journal_free_blocks: 1,
            heard: 3,
        },
        Control::Heartbeat { settled: number, sequence: 3 },
        Control::FlushRequest { number },
        Control::Fetch { from: number, to: number },
        Control::CutTo { keep: number },
        Control::BlockWanted { place: BlockPlace::Volume(VolumeId(1), Lba(9)), sum: BlockSum(8) },
        Control::BlockLacking { place: BlockPlace::Slot(Slot(9)), why: Lacking::Other },
        Control::TablesWanted { settled: UpdateNumber(8), page: 9 },
        Control::CopyOffer { generation: Generation(7), serial: 8, blocks: 9, whole: true },
        Control::Staged { updates: 8 },
        Control::MarksEnd { pages: 7 },
        Control::Install { upto: UpdateNumber(8) },
    ];
    let page = dialer.group.free.pop().unwrap();
    dialer.group.view.bytes_mut(page).fill(0x5a);
    dialer.group.view.seal(page);
    for control in controls {
        dialer.group.to_link.push(ToLink::Control(control));
    }
    let frames = [
        (PageFrame::Hello, 4096),
        (PageFrame::Refusal, 0),
        (PageFrame::Block, 4096),
        (PageFrame::Tables, 4096),
        (PageFrame::Marks, 4096),
        (PageFrame::Digests, 4096),
        (PageFrame::Refusal, 17),
    ];
    for (frame, length) in frames {
        dialer.group.to_link.push(ToLink::Page { frame, page, length });
    }
    let catch_up = update(40, UpdateKind::Write, 2);
    for index in 0..2 {
        let page = dialer.group.free.pop().unwrap();
        *dialer.group.view.bytes_mut(page) = contents(catch_up.number, index);
        dialer.group.tables.catch_up.set(SlotId(5), index, page, BlockSum::ZEROS);
    }
    let source = UpdateSource::CatchUp;
    dialer.group.to_link.push(ToLink::Update {
        update: catch_up,
        settled: number,
        slot: 5,
        source,
        with_old: false,
    });

    run(&mut dialer, &mut listener, "the update came", |_, b| !b.updates.is_empty());
    let crossed: Vec<_> = listener.seen.iter().filter(|m| matches!(m, FromLink::Control(_))).collect();
    assert_eq!(crossed, controls.map(FromLink::Control).iter().collect::<Vec<_>>());
    let pages = listener.seen.iter().filter_map(|message| match message {
        FromLink::Page { frame, page, length } => {
            assert!(
                listener.group.view.bytes(*page)[..usize::from(*length)].iter().all(|byte| *byte == 0x5a)
            );
            Some((*frame, *length))
        }
        _ => None,
    });
    assert_eq!(pages.collect::<Vec<_>>(), frames);
    assert_eq!(listener.updates, [(catch_up, number)]);
    run(&mut dialer, &mut listener, "all came back", |a, _| {
        a.count(|m| {
            matches!(
                m,
                FromLink::Consumed { slot: 5, source: UpdateSource::CatchUp, number: UpdateNumber(40), .. }
            )
        }) == 1
            && a.count(|m| *m == FromLink::PageReturned { page }) == frames.len()
    });
}

#[test]
fn before_begin_all_is_discarded_and_given_back() {
    let (mut dials, listens) = pair();
    let mut listener = Site::new(&listens);
    dials.dial = Some(listener.link.local_address().unwrap());
    let mut dialer = Site::new(&dials);
    listener.group.grant(256);

    // Nobody is connected yet.
    dialer.group.send(1, 3);
    dialer.turn();
    assert_eq!(dialer.consumed(), UpdateNumber(1));
    run(&mut dialer, &mut listener, "connected", both_up);
    listener.begin();

    // Connected, but the group has not seen it; then it begins with a connection that is not.
    dialer.group.send(2, 3);
    let page = dialer.group.free.pop().unwrap();
    dialer.group.to_link.push(ToLink::Page { frame: PageFrame::Hello, page, length: 9 });
    dialer.group.to_link.push(ToLink::Control(Control::Heartbeat { settled: UpdateNumber(0), sequence: 1 }));
    dialer.group.to_link.push(ToLink::Begin { connection: 0 });
    dialer.group.send(3, 1);
    dialer.group.to_link.push(ToLink::Close);
    dialer.begin();
    let sent = dialer.group.send(4, 2);
    run(&mut dialer, &mut listener, "the update came", |_, b| !b.updates.is_empty());
    assert_eq!(listener.updates, [(sent, UpdateNumber(2))]);
    assert!(
        !listener.seen.iter().any(|message| matches!(message, FromLink::Control(_) | FromLink::Page { .. }))
    );
    assert_eq!(dialer.consumed(), UpdateNumber(4));
    assert_eq!(dialer.count(|message| *message == FromLink::PageReturned { page }), 1);
    assert_eq!((dialer.connected(), listener.connected()), (Some(1), Some(1)), "a stale Close closed it");
}

/// Waits until a problem of this kind is reported.
#[track_caller]
fn problem(a: &mut Site, b: &mut Site, at_a: bool, wanted: impl Fn(&Problem) -> bool) -> Problem {
    let mut found = None;
    run(a, b, "the problem was reported", |a, b| {
        let site = if at_a { a } else { b };
        found = site.link.stats().take_problem().filter(|problem| wanted(problem));
        found.is_some()
    });
    found.expect("just found")
}

#[test]
fn a_wrong_identity_is_refused_and_named() {
    let stranger = Identity::generate("stranger").unwrap();
    for dialer_is_strange in [true, false] {
        let (mut dials, mut listens) = pair();
        let expected =
            if dialer_is_strange { dials.identity.fingerprint() } else { listens.identity.fingerprint() };
        if dialer_is_strange {
            dials.identity = stranger.clone();
        } else {
            listens.identity = stranger.clone();
        }
        let mut listener = Site::new(&listens);
        dials.dial = Some(listener.link.local_address().unwrap());
        let mut dialer = Site::new(&dials);

        let wrong = |problem: &Problem| matches!(problem, Problem::WrongPeer { .. });
        let refusal = problem(&mut dialer, &mut listener, !dialer_is_strange, wrong);
        let Problem::WrongPeer { wrong, .. } = &refusal else { panic!("{refusal}") };
        assert_eq!((wrong.expected, wrong.presented), (Fingerprints::one(expected), stranger.fingerprint()));
        let text = refusal.to_string();
        assert!(
            text.contains(&expected.to_string()) && text.contains(&stranger.fingerprint().to_string()),
            "{text}"
        );

        let refused = |problem: &Problem| matches!(problem, Problem::RefusedByPeer { .. });
        let told = problem(&mut dialer, &mut listener, dialer_is_strange, refused);
        assert!(told.to_string().contains(&stranger.fingerprint().to_string()), "{told}");
        assert_eq!((&dialer.seen, &listener.seen), (&vec![], &vec![]), "neither group hears of strangers");
    }
}

/// A connected pair, one of which is to have another identity.
struct Rotation {
    dialer: Site,
    listener: Site,
    /// Of the one that keeps its identity, and of the other: as it was, and as it is to be.
    constant: Identity,
    old: Identity,
    new: Identity,
    dialer_renews: bool,
}

impl Rotation {
    /// `both_known`: the one that keeps its identity accepts both of the other's.
    fn begin(dialer_renews: bool, both_known: bool) -> Rotation {
        let (mut dials, mut listens) = pair();
        let new = Identity::generate("new").unwrap();
        let (renews, other) = if dialer_renews { (&dials, &mut listens) } else { (&listens, &mut dials) };
        let old = renews.identity.clone();
        if both_known {
            other.peer = Fingerprints::of(&[old.fingerprint(), new.fingerprint()]).unwrap();
        }
        let constant = other.identity.clone();
        let listener = Site::new(&listens);
        dials.dial = Some(listener.link.local_address().unwrap());
        let (mut dialer, mut listener) = connect(Site::new(&dials), listener);
        stream(&mut dialer, &mut listener, 1..50);
        Rotation { dialer, listener, constant, old, new, dialer_renews }
    }

    /// The one whose identity changes, and the other.
    fn sites(&mut self) -> (&mut Site, &mut Site) {
        let Rotation { dialer, listener, dialer_renews, .. } = self;
        if *dialer_renews { (dialer, listener) } else { (listener, dialer) }
    }

    fn renew(&mut self) {
        let keys = NewKeys {
            identity: self.new.clone(),
            accepted: Fingerprints::one(self.constant.fingerprint()),
            disconnect: false,
        };
        let (site, _) = self.sites();
        let now = site.clock.now();
        site.link.take_keys(now, keys).unwrap();
        assert!(site.link.keys().unproven);
    }

    /// The one that keeps its identity accepts these of the other from here on.
    fn accept(&mut self, accepted: &[&Identity], disconnect: bool) -> Result<(), KeysError> {
        let accepted: Vec<_> = accepted.iter().map(|identity| identity.fingerprint()).collect();
        let accepted = Fingerprints::of(&accepted).unwrap();
        let keys = NewKeys { identity: self.constant.clone(), accepted, disconnect };
        let (_, other) = self.sites();
        let now = other.clock.now();
        other.link.take_keys(now, keys)
    }

    #[track_caller]
    fn until_connected(&mut self, dialer: u32, listener: u32) {
        run(&mut self.dialer, &mut self.listener, "connected anew", |a, b| {
            (a.connected(), b.connected()) == (Some(dialer), Some(listener))
        });
    }

    #[track_caller]
    fn expect(&mut self, shown: &Identity, refused: Option<&Identity>) {
        let (site, other) = self.sites();
        let keys = site.link.keys();
        assert_eq!((keys.identity, keys.unproven), (shown.fingerprint(), false), "{keys:?}");
        assert_eq!(keys.refused, refused.map(Identity::fingerprint));
        assert_eq!(other.link.keys().presented, Some(shown.fingerprint()));
    }

    /// Updates flow on the connection that is up.
    fn stream(&mut self, numbers: std::ops::Range<u64>) {
        self.dialer.begin();
        self.listener.begin();
        stream(&mut self.dialer, &mut self.listener, numbers);
    }
}

#[test]
fn a_new_identity_is_taken_by_a_peer_that_knows_it_and_the_old_one_is_refused_once_it_is_dropped() {
    for dialer_renews in [true, false] {
        let mut pair = Rotation::begin(dialer_renews, true);
        let (old, new) = (pair.old.clone(), pair.new.clone());
        assert_eq!(pair.accept(&[&new], false), Err(KeysError::PeerUses(old.fingerprint())));
        pair.renew();
        pair.until_connected(2, 2);
        pair.expect(&new, None);
        pair.stream(50..100);
        pair.accept(&[&new], false).unwrap();
        pair.stream(100..120);
        assert_eq!((pair.dialer.connected(), pair.listener.connected()), (Some(2), Some(2)));

        let (_, other) = pair.sites();
        let accepted = other.link.keys().accepted;
        assert!(!accepted.contain(&old.fingerprint()), "{accepted}");
        if dialer_renews {
            let mut dials = config(&old, pair.constant.fingerprint());
            dials.dial = Some(pair.listener.link.local_address().unwrap());
            let mut stranger = Site::new(&dials);
            let refused = |problem: &Problem| matches!(problem, Problem::RefusedByPeer { .. });
            problem(&mut stranger, &mut pair.listener, true, refused);
            assert_eq!(pair.listener.connected(), Some(2), "the old identity takes nobody's place");
        }
    }
}

#[test]
fn a_new_identity_that_the_peer_does_not_know_leaves_the_old_one_in_use() {
    for dialer_renews in [true, false] {
        let mut pair = Rotation::begin(dialer_renews, false);
        let (old, new) = (pair.old.clone(), pair.new.clone());
        pair.renew();
        let refused = new.fingerprint();
        run(&mut pair.dialer, &mut pair.listener, "it was refused", |a, b| {
            (if dialer_renews { a } else { b }).link.keys().refused == Some(refused)
        });
        // A dialer tries beside the connection it has; a listener is dialed anew.
        let connection = if dialer_renews { 1 } else { 2 };
        pair.until_connected(connection, connection);
        pair.expect(&old, Some(&new));
        pair.stream(50..100);

        pair.accept(&[&old, &new], false).unwrap();
        pair.renew();
        pair.until_connected(connection + 1, connection + 1);
        pair.expect(&new, None);
        pair.stream(100..120);
    }
}

#[test]
fn a_peer_whose_identity_is_dropped_from_the_list_is_cut_off_only_if_that_is_meant() {
    for dialer_renews in [true, false] {
        let mut pair = Rotation::begin(dialer_renews, true);
        let (old, new) = (pair.old.clone(), pair.new.clone());
        assert_eq!(pair.accept(&[&new], false), Err(KeysError::PeerUses(old.fingerprint())));
        pair.stream(50..60);
        pair.accept(&[&new], true).unwrap();
        let wrong = |problem: &Problem| matches!(problem, Problem::WrongPeer { .. });
        let Problem::WrongPeer { wrong, .. } =
            problem(&mut pair.dialer, &mut pair.listener, !dialer_renews, wrong)
        else {
            unreachable!("that was waited for")
        };
        assert_eq!(wrong.presented, old.fingerprint());
        assert_eq!((pair.dialer.connected(), pair.listener.connected()), (None, None));
        pair.renew();
        pair.until_connected(2, 2);
        pair.expect(&new, None);
    }
}

/// A peer that has the right identity and says what it likes.
struct Rogue {
    connector: Connector,
    clock: Clock,
}

impl Rogue {
    fn connect(config: &LinkConfig, site: &mut Site) -> Rogue {
        let mut rogue = Rogue { connector: Connector::new(config).unwrap(), clock: Clock::new() };
        let (began, before) = (Instant::now(), site.connected());
        while !rogue.connector.is_up() || site.connected() == before {
            rogue.turn(&mut []);
            site.turn();
            assert!(began.elapsed() < PATIENCE, "the rogue did not connect");
        }
        rogue
    }

    fn turn(&mut self, bytes: &mut [Bytes]) {
        let now = self.clock.now();
        self.connector.set_readable();
        self.connector.begin(now);
        self.connector.change(now);
        self.connector.write(bytes);
        self.connector.end(now);
    }
}

fn frame_of(update: &Update) -> Vec<u8> {
    let mut frame = vec![0; wire::UPDATE_FRAME_BYTES];
    let length = wire::encode_update(update, UpdateNumber(0), None, &mut frame);
    frame.truncate(length);
    (0..update.payload_blocks()).for_each(|index| frame.extend(contents(update.number, index)));
    frame
}

#[test]
fn a_corrupt_stream_closes_the_connection_and_costs_no_page() {
    let (mut dials, listens) = pair();
    let mut site = Site::new(&listens);
    dials.dial = Some(site.link.local_address().unwrap());
    // As many pages as the largest update needs: one that leaked would be missed.
    site.group.grant(UPDATE_BLOCKS_MAX);
    let whole = frame_of(&update(1, UpdateKind::Write, 32));
    let flips = [0, 4, 7, 12, 20, 40, 95, 96, 4096, whole.len() - 1];
    for (round, at) in flips.into_iter().enumerate() {
        let mut rogue = Rogue::connect(&dials, &mut site);
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        // What follows the damage makes up for a length that it changed.
        bytes.extend(&whole);
        let mut bytes = [Bytes::from(bytes)];
        let began = Instant::now();
        while site.connected().is_some() {
            rogue.turn(&mut bytes);
            site.turn();
            assert!(began.elapsed() < PATIENCE, "byte {at} was taken: {:?}", site.updates);
        }
        assert!(site.updates.is_empty(), "byte {at} got through: {:?}", site.updates);
        assert_eq!(site.seen.last(), Some(&FromLink::Disconnected { connection: round as u32 + 1 }));
        let problem = site.link.stats().take_problem();
        assert!(matches!(problem, Some(Problem::Protocol { .. })), "{problem:?}");
    }

    // A connection that ends inside an update.
    let mut rogue = Rogue::connect(&dials, &mut site);
    let mut part = [Bytes::copy_from_slice(&whole[..whole.len() - 1])];
    let began = Instant::now();
    while !part[0].is_empty() || site.link.stats().bytes_received.load(Relaxed) < whole.len() as u64 {
        rogue.turn(&mut part);
        site.turn();
        assert!(began.elapsed() < PATIENCE, "the part did not arrive");
    }
    drop(rogue);

    let mut rogue = Rogue::connect(&dials, &mut site);
    let mut bytes = [Bytes::from(whole)];
    let began = Instant::now();
    while site.updates.is_empty() {
        rogue.turn(&mut bytes);
        site.turn();
        assert!(began.elapsed() < PATIENCE, "pages were lost on the way: {:?}", site.seen);
    }
}

#[test]
fn a_newer_connection_of_the_peer_replaces_the_old() {
    let (mut dials, listens) = pair();
    let mut site = Site::new(&listens);
    dials.dial = Some(site.link.local_address().unwrap());
    let first = Rogue::connect(&dials, &mut site);
    let _second = Rogue::connect(&dials, &mut site);
    let up = |connection| FromLink::Connected { connection };
    assert_eq!(site.seen, [up(1), FromLink::Disconnected { connection: 1 }, up(2)]);
    drop(first);
}

fn connected_without_pages() -> (Site, Site) {
    let (mut dials, listens) = pair();
    let mut listener = Site::new(&listens);
    dials.dial = Some(listener.link.local_address().unwrap());
    let mut dialer = Site::new(&dials);
    run(&mut dialer, &mut listener, "connected", both_up);
    dialer.begin();
    listener.begin();
    (dialer, listener)
}

/// Until nothing more goes out. Returns what was consumed last.
fn until_stopped(dialer: &mut Site, listener: &mut Site) -> UpdateNumber {
    let (mut stable, mut last) = (0, UpdateNumber(0));
    run(dialer, listener, "the sender stopped", |a, _| {
        std::thread::sleep(Duration::from_millis(1));
        stable = if a.consumed() == last { stable + 1 } else { 0 };
        last = a.consumed();
        stable > 200
    });
    last
}

#[test]
fn a_receiver_without_pages_stops_the_sender_and_goes_on_with_them() {
    let (mut dialer, mut listener) = connected_without_pages();
    listener.group.grant(40);
    // Three windows' worth, so that it must stop.
    for number in 1..=100 {
        dialer.group.send(number, 32);
    }
    run(&mut dialer, &mut listener, "the pages were used up", |_, b| b.updates.len() == 1);
    let last = until_stopped(&mut dialer, &mut listener);
    assert!(last > UpdateNumber(0) && last < UpdateNumber(100), "the sender was not stopped: {last}");
    assert_eq!(listener.updates.len(), 1, "40 pages hold one update and a part");

    // Messages without payload that come later wait their turn.
    dialer.group.to_link.push(ToLink::Control(Control::FlushRequest { number: UpdateNumber(100) }));
    run(&mut dialer, &mut listener, "all arrived", |_, b| {
        let grant = b.group.pages.room().min(b.group.free.len()).min(33);
        b.group.grant(grant);
        b.updates.len() == 100 && b.count(|message| matches!(message, FromLink::Control(_))) == 1
    });
    assert_eq!(dialer.connected(), Some(1));
}

#[test]
fn a_group_that_does_not_pop_stops_the_peer_and_loses_nothing() {
    let (mut dialer, mut listener) = connected();
    dialer.group.grant(200);
    listener.takes = false;
    let mut sent = 0;
    run(&mut dialer, &mut listener, "the ring was full and more was sent", |a, b| {
        while sent < 2 * LINK_INBOUND_SLOTS as u64 {
            sent += 1;
            a.group.send(sent, 1);
        }
        b.group.from_link.len() == LINK_INBOUND_SLOTS && a.consumed() == UpdateNumber(sent)
    });
    // What the listener's own group asks of it meanwhile waits too, rather than overflow.
    for number in 1..=200 {
        listener.group.send(number, 1);
    }
    for _ in 0..1000 {
        listener.turn();
    }
    assert_eq!(listener.group.from_link.len(), LINK_INBOUND_SLOTS);
    assert!(listener.link.deadline().is_some(), "a full ring is tried again");
    listener.takes = true;
    run(&mut dialer, &mut listener, "all arrived", |_, b| b.updates.len() as u64 == sent);
    assert!(listener.updates.iter().map(|(update, _)| update.number.0).eq(1..=sent));
    run(&mut dialer, &mut listener, "the other way too", |a, b| {
        a.updates.len() == 200 && b.consumed() == UpdateNumber(200)
    });
}

#[test]
fn a_close_lets_everything_before_it_through_and_the_dialer_comes_again() {
    let (mut dialer, mut listener) = connected();
    let sent: Vec<_> =
        (1..=60).map(|number| (dialer.group.send(number, 16), UpdateNumber(number / 2))).collect();
    dialer.group.to_link.push(ToLink::Close);
    let late = dialer.group.send(61, 1);
    run(&mut dialer, &mut listener, "both are down", |a, b| {
        let down = |m: &FromLink| *m == FromLink::Disconnected { connection: 1 };
        a.count(down) == 1 && b.count(down) == 1
    });
    assert_eq!(listener.updates, sent);
    assert_eq!(dialer.consumed(), late.number, "what came after is discarded and given back");
    run(&mut dialer, &mut listener, "connected again", both_up);
    assert_eq!((dialer.connected(), listener.connected()), (Some(2), Some(2)));
    dialer.begin();
    stream(&mut dialer, &mut listener, 61..100);
}

/// The peer reads nothing, so what was to be sent before the end never is.
#[test]
fn a_connection_that_is_blocked_ends_when_the_group_has_had_enough() {
    let (mut dialer, mut listener) = connected_without_pages();
    for number in 1..=100 {
        dialer.group.send(number, 32);
    }
    dialer.group.to_link.push(ToLink::Close);
    let last = until_stopped(&mut dialer, &mut listener);
    assert!(last < UpdateNumber(100));
    let asked = std::time::Instant::now();
    dialer.group.closes.push(1);
    let down = |m: &FromLink| *m == FromLink::Disconnected { connection: 1 };
    run(&mut dialer, &mut listener, "all is given back", |a, _| {
        a.consumed() == UpdateNumber(100) && a.count(down) == 1
    });
    // Before QUIC's patience ends.
    assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
}

/// A peer that starts anew each time it has been sent something is not one that refuses.
#[test]
fn a_connection_that_carried_much_is_dialed_again_at_once() {
    let (mut dialer, mut listener) = connected();
    let mut paused = Duration::ZERO;
    for round in 0..6 {
        stream(&mut dialer, &mut listener, 1 + 64 * round..1 + 64 * (round + 1));
        dialer.group.to_link.push(ToLink::Close);
        run(&mut dialer, &mut listener, "it is down", |a, _| a.connected().is_none());
        let closed = Instant::now();
        run(&mut dialer, &mut listener, "connected again", both_up);
        paused = closed.elapsed();
        dialer.begin();
    }
    // Pauses that double each time are 2 s by now.
    assert!(paused < Duration::from_secs(1), "{paused:?}");
}

#[test]
fn a_site_that_restarts_is_found_again() {
    let (mut dials, mut listens) = pair();
    let listener = Site::new(&listens);
    let address = listener.link.local_address().unwrap();
    (listens.local, dials.dial) = (address, Some(address));
    let (mut dialer, mut listener) = connect(Site::new(&dials), listener);
    stream(&mut dialer, &mut listener, 1..50);
    // A crash: the peer is told nothing.
    drop(listener);
    let mut listener = Site::new(&listens);
    listener.group.grant(STAGING_PAGES);
    dialer.group.to_link.push(ToLink::Control(Control::Heartbeat { settled: UpdateNumber(0), sequence: 1 }));
    run(&mut dialer, &mut listener, "the dialer noticed", |a, _| a.connected().is_none());
    let lost = dialer.link.stats().take_problem().unwrap();
    assert!(lost.to_string().contains("reset by peer"), "not by the reset: {lost}");
    run(&mut dialer, &mut listener, "connected again", both_up);
    assert_eq!((dialer.connected(), listener.connected()), (Some(2), Some(1)));
    dialer.begin();
    stream(&mut dialer, &mut listener, 50..100);
}

#[test]
fn stopping_waits_for_the_group_and_for_what_it_sent() {
    let (mut dialer, mut listener) = connected();
    let sent: Vec<_> =
        (1..=20).map(|number| (dialer.group.send(number, 32), UpdateNumber(number / 2))).collect();
    dialer.link.stop();
    for _ in 0..100 {
        dialer.turn();
        assert!(!dialer.link.stopped(), "its group may still send");
    }
    let (unused, _) = edge(1, &dialer.port, &dialer.port);
    drop(std::mem::replace(&mut dialer.group.to_link, unused));
    run(&mut dialer, &mut listener, "stopped", |a, _| a.link.stopped());
    run(&mut dialer, &mut listener, "the peer saw it", |_, b| b.connected().is_none());
    assert_eq!(listener.updates, sent);
    assert!(!listener.link.stopped());
}

#[test]
fn stopping_does_not_wait_for_a_group_that_is_gone() {
    let (mut dialer, mut listener) = connected();
    listener.takes = false;
    for number in 1..=600 {
        dialer.group.send(number, 1);
    }
    run(&mut dialer, &mut listener, "the ring was full", |_, b| {
        b.group.from_link.len() == LINK_INBOUND_SLOTS
    });
    // What the group asks of the link is answered into the full ring too.
    for number in 1..=200 {
        listener.group.send(number, 1);
    }
    let Site { mut link, group, clock, .. } = listener;
    for _ in 0..100 {
        link.turn(clock.now());
    }
    drop(group);
    link.stop();
    let began = Instant::now();
    while !link.stopped() {
        link.set_readable();
        link.turn(clock.now());
        dialer.turn();
        assert!(began.elapsed() < PATIENCE, "the link did not stop");
    }
}

#[test]
fn a_bad_network_delays_but_loses_and_reorders_nothing() {
    for (seed, congestion) in [(1, Congestion::Dedicated), (2, Congestion::Shared)] {
        let (mut dials, mut listens) = pair();
        (dials.congestion, listens.congestion) = (congestion, congestion);
        let listener = Site::new(&listens);
        let relay = Relay::start(listener.link.local_address().unwrap(), seed).unwrap();
        for way in relay.both() {
            way.lost_ppm.store(10_000, Relaxed);
            way.delay_us.store(300, Relaxed);
            way.jitter_us.store(400, Relaxed);
        }
        dials.dial = Some(relay.address());
        let (mut dialer, mut listener) = connect(Site::new(&dials), listener);
        stream(&mut dialer, &mut listener, 1..400);
        stream(&mut listener, &mut dialer, 1..50);
        assert_eq!((dialer.connected(), listener.connected()), (Some(1), Some(1)));
        assert!(relay.to_listener().dropped.load(Relaxed) > 0, "the relay was to lose something");
        run(&mut dialer, &mut listener, "figures are published", |a, _| {
            a.link.stats().datagrams_sent.load(Relaxed) > 1000
        });
    }
}

#[test]
fn a_path_cut_one_way_is_lost_to_both_and_comes_back() {
    for to_listener in [true, false] {
        let (mut dials, listens) = pair();
        let listener = Site::new(&listens);
        let relay = Relay::start(listener.link.local_address().unwrap(), 3).unwrap();
        dials.dial = Some(relay.address());
        let (mut dialer, mut listener) = connect(Site::new(&dials), listener);
        let way = if to_listener { relay.to_listener() } else { relay.to_dialer() };
        way.cut.store(true, Relaxed);
        run(&mut dialer, &mut listener, "both noticed", |a, b| {
            a.connected().is_none() && b.connected().is_none()
        });
        way.cut.store(false, Relaxed);
        run(&mut dialer, &mut listener, "connected again", both_up);
        dialer.begin();
        stream(&mut dialer, &mut listener, 1..50);
    }
}

/// A reactor on its own thread with a link on it, and the group's end of that link.
struct Machine {
    group: Group,
    port: Port,
    thread: std::thread::JoinHandle<()>,
}

fn machine(config: &LinkConfig, idle: IdlePolicy) -> (Machine, SocketAddr) {
    let [reactor, here] = mesh(2).unwrap().try_into().unwrap();
    let (edges, group) = edges(LINK_INBOUND_SLOTS, &here, &reactor);
    let (clock, view, tables) = (Clock::new(), group.view.arena().view(), group.tables.clone());
    let link = Link::new(config, edges, view, tables, clock.clone()).unwrap();
    let address = link.local_address().unwrap();
    let thread = std::thread::spawn(move || {
        let mut ring = Ring::new(RingConfig::new(vec![]), clock, reactor.clone()).unwrap();
        let actor = LinkActor::new(link, &mut ring).unwrap();
        let mut reactor = Reactor::new(reactor, ring, idle, Arc::new(Loads::default()));
        reactor.add(actor);
        reactor.run();
    });
    (Machine { group, port: here, thread }, address)
}

impl Machine {
    /// Takes messages, asleep in between, until one is what is looked for.
    #[track_caller]
    fn until(&mut self, what: &str, mut wanted: impl FnMut(&FromLink) -> bool) {
        let began = Instant::now();
        loop {
            match self.group.take() {
                Some(message) if wanted(&message) => return,
                Some(_) => continue,
                None => (),
            }
            let waiting = &self.group.from_link;
            self.port.park(|| !waiting.is_empty(), Some(Nanos::from_millis(100))).unwrap();
            assert!(began.elapsed() < PATIENCE, "waited in vain for {what}");
        }
    }

    fn end(self) {
        let Machine { group, port, thread } = self;
        port.request_stop();
        drop(group);
        thread.join().unwrap();
    }
}

#[test]
fn links_run_on_reactors_spinning_and_parked() {
    for idle in [IdlePolicy::default(), IdlePolicy::Park] {
        let (mut dials, listens) = pair();
        let (mut listener, address) = machine(&listens, idle);
        dials.dial = Some(address);
        let (mut dialer, _) = machine(&dials, idle);
        listener.group.grant(STAGING_PAGES);
        listener.port.flush_wakes();
        let up = |message: &FromLink| *message == FromLink::Connected { connection: 1 };
        dialer.until("the connection", up);
        listener.until("the connection", up);
        dialer.group.to_link.push(ToLink::Begin { connection: 1 });
        for number in 1..=300 {
            let sent = dialer.group.send(number, 1 + number as u32 % 4);
            dialer.port.flush_wakes();
            let arrived =
                |message: &FromLink| matches!(message, FromLink::Update { update, .. } if *update == sent);
            listener.until("the update", arrived);
            while dialer.group.take().is_some() {}
            listener.group.grant(sent.payload_blocks());
            listener.port.flush_wakes();
        }
        assert!(dialer.group.lent.len() <= 1, "pages were kept: {:?}", dialer.group.lent);
        dialer.end();
        listener.until("the end", |message| matches!(message, FromLink::Disconnected { .. }));
        listener.end();
    }
}
