//! What `lockstep status` shows of a third site: at those that feed it, and at itself.

use serde::{Deserialize, Serialize};

use super::links::LinkSeen;
use crate::base::BLOCK_BYTES;
use crate::core::group::status::{
    Delta, GroupStatus, NoDelta, SourceState, SourceStatus, ThirdState, ThirdStatus,
};
use crate::node::config::Remote;

/// A third site, as one of the pair sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ThirdShown {
    pub name: String,
    /// `disconnected`, `greeting`, `standing`, `feeding` or `lapsed`.
    pub state: String,
    /// It has everything up to here durably, as far as is known.
    pub position: u64,
    /// Updates that are settled here and that it does not have.
    pub behind: u64,
    /// Whether it could go on from this site's journal now, reading nothing but what it lacks (`yes` or `no`).
    pub delta: String,
    /// If so: so many updates, and bytes at most.
    pub delta_updates: u64,
    pub delta_bytes: u64,
    /// If not: why.
    pub reason: Option<String>,
    pub round_trip_us: f64,
    pub problem: Option<String>,
}

/// A site that this third may pull from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SourceShown {
    pub name: String,
    pub address: String,
    /// `disconnected`, `greeting`, `standing`, `pulling` or `lapsed`.
    pub state: String,
    /// What it said is settled, when it was last heard.
    pub settled: u64,
    /// Updates of these that this site does not have durably.
    pub behind: u64,
    pub round_trip_us: f64,
    pub problem: Option<String>,
}

fn reason(why: NoDelta) -> &'static str {
    match why {
        NoDelta::Unheard => "it has not said where it is since this site started",
        NoDelta::Lapsed => "the journal no longer has what it lacks",
        NoDelta::Ahead => "it has what this site does not have",
        NoDelta::Parted => "it has what never was in this site's stream",
        NoDelta::GivesWay => "this site gives way to its peer, and feeds nobody until that is over",
    }
}

impl ThirdShown {
    pub fn new(remote: &Remote, third: &ThirdStatus, group: &GroupStatus, link: &LinkSeen) -> ThirdShown {
        let state = match third.state {
            ThirdState::Disconnected => "disconnected",
            ThirdState::Greeting => "greeting",
            ThirdState::Standing => "standing",
            ThirdState::Feeding => "feeding",
            ThirdState::Lapsed => "lapsed",
        };
        let (delta, updates, blocks, why) = match third.delta {
            Delta::Yes { updates, blocks } => ("yes", updates, blocks, None),
            Delta::No(why) => ("no", 0, 0, Some(reason(why).to_owned())),
        };
        ThirdShown {
            name: remote.name.clone(),
            state: state.to_owned(),
            position: third.position.0,
            behind: group.settled.0.saturating_sub(third.position.0),
            delta: delta.to_owned(),
            delta_updates: updates,
            delta_bytes: blocks * BLOCK_BYTES as u64,
            reason: why,
            round_trip_us: link.round_trip_us(),
            problem: link.problem(),
        }
    }
}

impl SourceShown {
    pub fn new(remote: &Remote, source: &SourceStatus, group: &GroupStatus, link: &LinkSeen) -> SourceShown {
        let state = match source.state {
            SourceState::Disconnected => "disconnected",
            SourceState::Greeting => "greeting",
            SourceState::Standing => "standing",
            SourceState::Pulling => "pulling",
            SourceState::Lapsed => "lapsed",
        };
        SourceShown {
            name: remote.name.clone(),
            address: remote.address.map_or_else(String::new, |address| address.to_string()),
            state: state.to_owned(),
            settled: source.settled.0,
            behind: source.settled.0.saturating_sub(group.durable.0),
            round_trip_us: link.round_trip_us(),
            problem: link.problem(),
        }
    }
}
