//! What the links of a site tell of themselves.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};

use crate::io::quic::LinkStats;

/// The figures of one link, and the latest reason why it has no connection.
#[derive(Debug)]
pub struct LinkSeen {
    pub stats: Arc<LinkStats>,
    problem: Mutex<Option<String>>,
}

impl LinkSeen {
    fn new(stats: Arc<LinkStats>) -> LinkSeen {
        LinkSeen { stats, problem: Mutex::new(None) }
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
    pub fn new(peer: Option<Arc<LinkStats>>, remotes: Vec<Arc<LinkStats>>) -> Links {
        Links { peer: peer.map(LinkSeen::new), remotes: remotes.into_iter().map(LinkSeen::new).collect() }
    }

    /// To be called about once a second: a link keeps its latest problem only.
    pub fn note_problems(&self) {
        self.peer.iter().chain(&self.remotes).for_each(|link| drop(link.problem()));
    }
}
