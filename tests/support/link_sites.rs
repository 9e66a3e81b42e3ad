//! Two links on loopback in one thread, each with a stand-in for its group that checks what comes and gives it back.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lockstep::base::*;
use lockstep::core::messages::{FromLink, ToLink, UpdateSource};
use lockstep::core::outbox::{LINK_CLOSES_MAX, LINK_CONTROL_MAX, Tables};
use lockstep::format::update::{Update, UpdateKind};
use lockstep::io::arena::{Arena, ArenaView};
use lockstep::io::quic::connection::LinkConfig;
use lockstep::io::quic::identity::{Fingerprint, Fingerprints, Identity};
use lockstep::io::quic::link::{Link, LinkEdges};
use lockstep::io::quic::transport::{Congestion, PayloadSize};
use lockstep::reactor::{Clock, Port, Receiver, Sender, edge, mesh};

/// Longest any test waits for what must come; a loaded machine takes a fraction.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub const PAGES: u32 = 4096;

/// The group's end of a link.
pub struct Group {
    pub to_link: Sender<ToLink>,
    pub closes: Sender<u32>,
    pub from_link: Receiver<FromLink>,
    pub pages: Sender<PageId>,
    pub view: ArenaView,
    pub tables: Arc<Tables>,
    pub free: Vec<PageId>,
    /// Numbers and pages of updates whose pages the link may still read.
    pub lent: VecDeque<(UpdateNumber, Vec<PageId>)>,
}

pub struct Site {
    pub port: Port,
    pub link: Link<ArenaView>,
    pub group: Group,
    pub clock: Clock,
    /// Whether the group takes what the link sends.
    pub takes: bool,
    /// What the link sent, but for updates.
    pub seen: Vec<FromLink>,
    /// Updates whose payload was checked, each with the settled number that came along.
    pub updates: Vec<(Update, UpdateNumber)>,
}

pub fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

pub fn config(identity: &Identity, peer: Fingerprint) -> LinkConfig {
    LinkConfig {
        local: loopback(),
        dial: None,
        identity: identity.clone(),
        peer: Fingerprints::one(peer),
        payload: PayloadSize::Discover,
        congestion: Congestion::Dedicated,
        window_bytes: 2 << 20,
    }
}

/// Configurations of a dialer and a listener that know each other; the dialer's address is to be set.
pub fn pair() -> (LinkConfig, LinkConfig) {
    let (a, b) = (Identity::generate("a").unwrap(), Identity::generate("b").unwrap());
    (config(&a, b.fingerprint()), config(&b, a.fingerprint()))
}

pub fn edges(to_group: usize, group: &Port, link: &Port) -> (LinkEdges, Group) {
    let arena = Arena::new(PAGES).unwrap();
    let (to_link, from_group) = edge(WINDOW_UPDATES_MAX + CATCH_UP_SLOTS + LINK_CONTROL_MAX, group, link);
    let (to_group, from_link) = edge(to_group, link, group);
    let (pages, open_pages) = edge(STAGING_PAGES, group, link);
    let (closes, closing) = edge(LINK_CLOSES_MAX, group, link);
    let group = Group {
        to_link,
        closes,
        from_link,
        pages,
        view: arena.view(),
        tables: Arc::new(Tables::new(1)),
        free: (1..PAGES).map(PageId).collect(),
        lent: VecDeque::new(),
    };
    (LinkEdges { from_group, closes: closing, to_group, pages: open_pages }, group)
}

/// The contents of an update's block: any two blocks of any two updates differ everywhere.
pub fn contents(number: UpdateNumber, index: usize) -> [u8; BLOCK_BYTES] {
    let mut state = (number.0 << 8 | index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut block = [0; BLOCK_BYTES];
    for word in block.as_chunks_mut::<8>().0 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *word = state.to_le_bytes();
    }
    block
}

pub fn update(number: u64, kind: UpdateKind, count: u32) -> Update {
    let number = UpdateNumber(number);
    let blocks = if kind == UpdateKind::Write { count as usize } else { 0 };
    let sum = match blocks {
        0 => 0,
        _ => sum_of_sums((0..blocks).map(|index| sum_of_block(&contents(number, index)))),
    };
    let (generation, lba, volume) = (Generation(1 << 16), Lba(number.0 * 64), VolumeId(0));
    Update { number, generation, lba, count, sum, volume, kind, ..Update::EMPTY }
}

impl Group {
    pub fn grant(&mut self, pages: usize) {
        for _ in 0..pages {
            self.pages.push(self.free.pop().expect("the test's arena is large enough"));
        }
    }

    /// Sends a write or, with a count of zero, something without payload. Returns the update.
    pub fn send(&mut self, number: u64, count: u32) -> Update {
        let update = match count {
            0 => update(number, UpdateKind::Zero, 64),
            _ => update(number, UpdateKind::Write, count),
        };
        let slot = SlotId((number % WINDOW_UPDATES_MAX as u64) as u32);
        let mut pages = Vec::new();
        for index in 0..update.payload_blocks() {
            let page = self.free.pop().expect("the test's arena is large enough");
            *self.view.bytes_mut(page) = contents(update.number, index);
            self.view.seal(page);
            self.tables.window.set(slot, index, page, sum_of_block(self.view.bytes(page)));
            pages.push(page);
        }
        self.lent.push_back((update.number, pages));
        let settled = UpdateNumber(number / 2);
        self.to_link.push(ToLink::Update {
            update,
            settled,
            slot: slot.0,
            source: UpdateSource::Window,
            with_old: false,
        });
        update
    }

    /// Takes one message; checks and gives back what came with it.
    pub fn take(&mut self) -> Option<FromLink> {
        let message = self.from_link.pop()?;
        match message {
            FromLink::Update { update, slot, .. } => {
                for index in 0..update.payload_blocks() {
                    let page = self.tables.inbound.page(slot, index);
                    assert_eq!(self.view.bytes(page), &contents(update.number, index), "{update:?}");
                    assert_eq!(self.tables.inbound.sum(slot, index), sum_of_block(self.view.bytes(page)));
                    self.free.push(page);
                }
            }
            FromLink::Consumed { number, source: UpdateSource::Window, popped_at, sent_at, .. } => {
                assert!(popped_at <= sent_at);
                while self.lent.front().is_some_and(|(lent, _)| *lent <= number) {
                    let (_, pages) = self.lent.pop_front().expect("just seen");
                    for page in pages {
                        self.view.reopen(page);
                        self.view.bytes_mut(page).fill(0xee);
                        self.free.push(page);
                    }
                }
            }
            FromLink::Page { page, .. } => self.free.push(page),
            _ => (),
        }
        Some(message)
    }
}

impl Site {
    pub fn new(config: &LinkConfig) -> Site {
        let port = mesh(1).unwrap().remove(0);
        let (edges, group) = edges(LINK_INBOUND_SLOTS, &port, &port);
        let clock = Clock::new();
        let view = group.view.arena().view();
        let link = Link::new(config, edges, view, group.tables.clone(), clock.clone()).unwrap();
        Site { port, link, group, clock, takes: true, seen: Vec::new(), updates: Vec::new() }
    }

    pub fn turn(&mut self) {
        self.link.set_readable();
        self.link.turn(self.clock.now());
        while self.takes
            && let Some(message) = self.group.take()
        {
            match message {
                FromLink::Update { update, settled, .. } => self.updates.push((update, settled)),
                other => self.seen.push(other),
            }
        }
    }

    /// The number of the connection that is up.
    pub fn connected(&self) -> Option<u32> {
        self.seen.iter().fold(None, |up, message| match message {
            FromLink::Connected { connection } => Some(*connection),
            FromLink::Disconnected { .. } => None,
            _ => up,
        })
    }

    pub fn begin(&mut self) {
        let connection = self.connected().expect("begun when connected");
        self.group.to_link.push(ToLink::Begin { connection });
    }

    pub fn consumed(&self) -> UpdateNumber {
        let mut numbers = self.seen.iter().filter_map(|message| match message {
            FromLink::Consumed { number, source: UpdateSource::Window, .. } => Some(*number),
            _ => None,
        });
        numbers.next_back().unwrap_or(UpdateNumber::NONE)
    }

    pub fn count(&self, wanted: impl Fn(&FromLink) -> bool) -> usize {
        self.seen.iter().filter(|message| wanted(message)).count()
    }
}

/// Turns both until `done`.
#[track_caller]
pub fn run(a: &mut Site, b: &mut Site, what: &str, mut done: impl FnMut(&mut Site, &mut Site) -> bool) {
    let began = Instant::now();
    while !done(a, b) {
        a.turn();
        b.turn();
        if began.elapsed() > PATIENCE {
            panic!("waited in vain until {what}; a saw {:?}, b saw {:?}", a.seen, b.seen);
        }
    }
}

pub fn both_up(a: &mut Site, b: &mut Site) -> bool {
    a.connected().is_some() && b.connected().is_some()
}

/// A dialer and a listener that are connected and have begun, with pages to receive into.
pub fn connected() -> (Site, Site) {
    let (mut dials, listens) = pair();
    let listener = Site::new(&listens);
    dials.dial = Some(listener.link.local_address().unwrap());
    connect(Site::new(&dials), listener)
}

#[track_caller]
pub fn connect(mut dialer: Site, mut listener: Site) -> (Site, Site) {
    dialer.group.grant(64);
    listener.group.grant(STAGING_PAGES);
    run(&mut dialer, &mut listener, "connected", both_up);
    dialer.begin();
    listener.begin();
    (dialer, listener)
}

pub const COUNTS: [u32; 8] = [1, 32, 0, 2, 7, 0, 16, 1];

/// Sends that many updates of mixed sizes while turning both, granting back what arrives, until all are there.
#[track_caller]
pub fn stream(a: &mut Site, b: &mut Site, numbers: std::ops::Range<u64>) {
    let mut expected: Vec<(Update, UpdateNumber)> = Vec::new();
    let (mut next, first) = (numbers.start, b.updates.len());
    run(a, b, "all updates arrived", |a, b| {
        while next < numbers.end && a.group.free.len() > 64 {
            let update = a.group.send(next, COUNTS[next as usize % COUNTS.len()]);
            expected.push((update, UpdateNumber(next / 2)));
            next += 1;
        }
        let grant = b.group.pages.room().min(b.group.free.len());
        b.group.grant(grant);
        next == numbers.end && b.updates.len() - first >= expected.len()
    });
    assert_eq!(b.updates[first..], expected);
    run(a, b, "all pages came back", |a, _| a.consumed() == UpdateNumber(numbers.end - 1));
    assert!(a.group.lent.is_empty());
}
