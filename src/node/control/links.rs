//! What the links of a site tell of themselves.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};

use super::{KeysShown, Line, LineError};
use crate::io::quic::LinkStats;
use crate::io::quic::keys::{KeysError, KeysInUse, LinkAnswer, LinkQuestion, NewKeys};
use crate::reactor::Port;

/// What a link is asked over.
pub type LinkLine = Line<LinkQuestion, LinkAnswer>;

/// The figures of one link, and the latest reason why it has no connection.
#[derive(Debug)]
pub struct LinkSeen {
    pub stats: Arc<LinkStats>,
    problem: Mutex<Option<String>>,
    port: Port,
    line: Mutex<LinkLine>,
}

impl LinkSeen {
    fn new(port: &Port, (stats, line): (Arc<LinkStats>, LinkLine)) -> LinkSeen {
        LinkSeen { stats, problem: Mutex::new(None), port: port.clone(), line: Mutex::new(line) }
    }

    fn ask(&self, question: LinkQuestion) -> Result<LinkAnswer, LineError> {
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        line.ask(&self.port, question, drop)
    }

    pub fn keys(&self) -> Result<KeysInUse, LineError> {
        match self.ask(LinkQuestion::Keys)? {
            LinkAnswer::Keys(keys) => Ok(keys),
            other => unreachable!("a question about keys was answered with {other:?}"),
        }
    }

    /// Nothing if the link has ended.
    pub fn keys_shown(&self) -> Option<KeysShown> {
        self.keys().ok().map(KeysShown::from)
    }

    /// It says by [`LinkSeen::keys`] what has become of them.
    pub fn take_keys(&self, keys: NewKeys) -> Result<Result<(), KeysError>, LineError> {
        match self.ask(LinkQuestion::Take(Box::new(keys)))? {
            LinkAnswer::Taken(taken) => Ok(taken),
            other => unreachable!("new keys were answered with {other:?}"),
        }
    }

    /// Why there is no connection, if there is none.
    pub fn problem(&self) -> Option<String> {
        let mut problem = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(newer) = self.stats.take_problem() {
            *problem = Some(newer.to_string());
        }
        if self.stats.connected.load(Relaxed) {
            *problem = None;
        }
        problem.clone()
    }

    pub fn round_trip_us(&self) -> f64 {
        self.stats.round_trip_ns.load(Relaxed) as f64 / 1000.0
    }
}

/// The peer's, and those beside it by their number.
#[derive(Debug)]
pub struct Links {
    pub peer: Option<LinkSeen>,
    pub remotes: Vec<LinkSeen>,
}

impl Links {
    /// The figures of each, and the line to it, which leaves from `port`.
    pub fn new(
        port: &Port,
        peer: Option<(Arc<LinkStats>, LinkLine)>,
        remotes: Vec<(Arc<LinkStats>, LinkLine)>,
    ) -> Links {
        let seen = |link| LinkSeen::new(port, link);
        Links { peer: peer.map(seen), remotes: remotes.into_iter().map(seen).collect() }
    }

    /// To be called about once a second: a link keeps its latest problem only.
    pub fn note_problems(&self) {
        self.peer.iter().chain(&self.remotes).for_each(|link| drop(link.problem()));
    }
}
