//! The link to the peer without a group behind it: a plain thread that turns it and waits for what comes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Wrong;
use crate::base::*;
use crate::core::messages::*;
use crate::core::outbox::{LINK_CLOSES_MAX, LINK_CONTROL_MAX, Tables};
use crate::format::wire::{Hello, Refusal};
use crate::io::arena::{Arena, ArenaView};
use crate::io::quic::LinkStats;
use crate::io::quic::connection::LinkConfig;
use crate::io::quic::link::{Link, LinkEdges};
use crate::reactor::{Clock, Port, Receiver, Sender, edge, mesh};

/// Pages for frames on their way: one each way at a time, and as many again.
const PAGES: u32 = 64;

/// Longest wait for an answer of a peer that is connected: it may have to sweep first, and a full cache takes minutes on slow disks.
const ANSWER_MAX: Duration = Duration::from_secs(600);

/// Longest that ending the connection in an orderly way may take.
const CLOSE_MAX: Duration = Duration::from_secs(1);

/// Pause between looks at the link: a repair is not in a hurry by microseconds.
const LOOK_EVERY: Duration = Duration::from_micros(200);

pub(super) struct PeerLine {
    link: Link<ArenaView>,
    to_link: Sender<ToLink>,
    from_link: Receiver<FromLink>,
    pages: Sender<PageId>,
    view: ArenaView,
    clock: Clock,
    stats: Arc<LinkStats>,
    _port: Port,
}

/// The peer is not to find out by a timeout that nobody is there any more.
impl Drop for PeerLine {
    fn drop(&mut self) {
        let begun = Instant::now();
        self.to_link.push(ToLink::Close);
        while let Ok(Some(_)) = self.next(CLOSE_MAX.saturating_sub(begun.elapsed())) {}
    }
}

/// What comes from the peer.
pub(super) enum Heard {
    Page(PageFrame, Box<[u8; BLOCK_BYTES]>, usize),
    Lacking(BlockPlace),
}

impl PeerLine {
    /// Connects, and returns the peer's hello.
    pub fn connect(config: &LinkConfig, patience: Duration) -> Result<(PeerLine, Hello), Wrong> {
        let system = |error: std::io::Error| Wrong::Refused(format!("the link cannot be set up: {error}"));
        let port = mesh(1).map_err(system)?.remove(0);
        let arena = Arena::new(PAGES).map_err(system)?;
        let tables = Arc::new(Tables::new(1));
        let ring = WINDOW_UPDATES_MAX + CATCH_UP_SLOTS + LINK_CONTROL_MAX;
        let (to_link, from_group) = edge(ring, &port, &port);
        let (to_group, from_link) = edge(LINK_INBOUND_SLOTS, &port, &port);
        let (pages, granted) = edge(PAGES as usize, &port, &port);
        // Whoever asks for pages ends the connection with the process.
        let (_, closes) = edge(LINK_CLOSES_MAX, &port, &port);
        let edges = LinkEdges { from_group, closes, to_group, pages: granted };
        let clock = Clock::new();
        let link = Link::new(config, edges, arena.view(), tables, clock.clone())?;
        let (stats, view) = (link.stats(), arena.view());
        let mut line = PeerLine { link, to_link, from_link, pages, view, clock, stats, _port: port };
        (1..PAGES).for_each(|page| line.pages.push(PageId(page)));
        let begun = Instant::now();
        loop {
            let left = patience.saturating_sub(begun.elapsed());
            match line.next(left) {
                Ok(Some(FromLink::Connected { connection })) => {
                    line.to_link.push(ToLink::Begin { connection });
                }
                Ok(Some(message)) => {
                    if let Some(Heard::Page(PageFrame::Hello, body, length)) = line.heard(message)? {
                        let hello = Hello::decode(&body[..length]);
                        let hello =
                            hello.map_err(|error| Wrong::Refused(format!("the peer's hello: {error}")))?;
                        return Ok((line, hello));
                    }
                }
                Ok(None) => {
                    let problem = line.stats.take_problem().map_or(String::new(), |it| format!(" ({it})"));
                    return Err(Wrong::Refused(format!("it does not answer within {patience:?}{problem}")));
                }
                Err(wrong) => return Err(wrong),
            }
        }
    }

    pub fn say(&mut self, control: Control) {
        self.to_link.push(ToLink::Control(control));
    }

    /// Keeps the connection alive while something else is done.
    pub fn turn(&mut self) {
        self.link.set_readable();
        self.link.turn(self.clock.now());
    }

    /// The peer's next word that is meant for a repair.
    pub fn listen(&mut self) -> Result<Heard, Wrong> {
        let begun = Instant::now();
        loop {
            let left = ANSWER_MAX.saturating_sub(begun.elapsed());
            let Some(message) = self.next(left)? else {
                return Err(Wrong::Refused(format!("it left a request unanswered for {ANSWER_MAX:?}")));
            };
            if let Some(heard) = self.heard(message)? {
                return Ok(heard);
            }
        }
    }

    fn next(&mut self, patience: Duration) -> Result<Option<FromLink>, Wrong> {
        let begun = Instant::now();
        loop {
            self.link.set_readable();
            let worked = self.link.turn(self.clock.now());
            match self.from_link.pop() {
                Some(FromLink::Disconnected { .. }) => {
                    return Err(Wrong::Refused("it closed the connection; its log says why".to_owned()));
                }
                Some(message) => return Ok(Some(message)),
                None if begun.elapsed() >= patience => return Ok(None),
                None if worked => {}
                None => std::thread::sleep(LOOK_EVERY),
            }
        }
    }

    fn heard(&mut self, message: FromLink) -> Result<Option<Heard>, Wrong> {
        match message {
            FromLink::Page { frame, page, length } => {
                let body = Box::new(*self.view.bytes(page));
                self.pages.push(page);
                if frame == PageFrame::Refusal {
                    let why = Refusal::decode(&body[..usize::from(length)]);
                    let why = why.map_or("without a reason".to_owned(), |why| why.text.as_str().to_owned());
                    return Err(Wrong::Refused(format!("it refuses: {why}")));
                }
                Ok(Some(Heard::Page(frame, body, usize::from(length))))
            }
            FromLink::Control(Control::BlockLacking { place, .. }) => Ok(Some(Heard::Lacking(place))),
            // A primary may begin to say what is settled before it hears what this is.
            _ => Ok(None),
        }
    }
}
