//! What `lockstep status` shows of a third site: at those that feed it, and at itself.

use serde::{Deserialize, Serialize};

use super::KeysShown;
use super::links::LinkSeen;
use super::status::{Resync, SplitShown, resync};
use crate::base::{BLOCK_BYTES, Nanos};
use crate::core::group::status::{
    Delta, GroupStatus, NoDelta, SourceState, SourceStatus, ThirdState, ThirdStatus,
};
use crate::node::config::{Config, Remote};

/// A third site, as one of the pair sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ThirdShown {
    pub name: String,
    /// `disconnected`, `greeting`, `standing`, `feeding`, `lapsed`, `copying` or `promoted`.
    pub state: String,
    /// It has everything up to here durably, as far as is known.
    pub position: u64,
    /// How long ago it last said so; none if it has not since this site started.
    pub heard_seconds_ago: Option<f64>,
    /// Updates that are settled here and that it does not have, their payload at most, and how long the first of them has been settled.
    pub behind: u64,
    pub behind_bytes: u64,
    pub behind_ms: f64,
    /// Whether it could go on from this site's journal now, reading nothing but what it lacks (`yes` or `no`).
    pub delta: String,
    /// If so: so many updates, and bytes at most.
    pub delta_updates: u64,
    pub delta_bytes: u64,
    /// If not: why.
    pub reason: Option<String>,
    /// Once it was made primary: what each of both has that the other has not, as of when they met last.
    pub promoted: Option<SplitShown>,
    /// What the journal keeps for it, in percent of what it keeps at most: beyond that it lapses.
    pub kept_percent: u64,
    /// Whether that is so much that `delta` may soon be `no`.
    pub lapses_soon: bool,
    /// How it last began to be sent what it lacked, or since this site took over.
    pub resumed: Option<ResumedShown>,
    /// What it is being copied, since no journal has what it lacks; stays while that is interrupted.
    pub copy: Option<Resync>,
    pub round_trip_us: f64,
    pub problem: Option<String>,
    pub keys: Option<KeysShown>,
}

/// A third that went on from this site, by nothing but what it lacked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResumedShown {
    /// It had everything up to here when it asked, and this site everything up to there, or did when it took over.
    pub after: u64,
    pub upto: u64,
    /// Payload of the updates between.
    pub lacked_bytes: u64,
    /// Frames of these updates that it was sent, headers and payload.
    pub sent_bytes: u64,
    /// Until it had all of them durably; none before that.
    pub took_ms: Option<f64>,
}

/// A site that this third may pull from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SourceShown {
    pub name: String,
    pub address: String,
    /// `disconnected`, `greeting`, `standing`, `pulling`, `lapsed`, `copying` or `superseded`.
    pub state: String,
    /// The most that it has said is settled.
    pub settled: u64,
    /// How long ago it last said what is settled; none if it has not since this site started.
    pub heard_seconds_ago: Option<f64>,
    /// Updates of these that this site does not have durably, about so many bytes (at the mean of what it has pulled), and for how long it
    /// has known of the first of them.
    pub behind: u64,
    pub behind_bytes: u64,
    pub behind_ms: f64,
    /// While it copies to this site: so much of that is in the staging file.
    pub staged_bytes: u64,
    /// Once this site was made primary in its place: what each of both has that the other has not, as of when they met last.
    pub parted: Option<SplitShown>,
    pub round_trip_us: f64,
    pub problem: Option<String>,
    pub keys: Option<KeysShown>,
}

fn seconds(ns: Option<u64>) -> Option<f64> {
    ns.map(|ns| ns as f64 / 1e9)
}

fn ms(time: Nanos) -> f64 {
    time.0 as f64 / 1e6
}

fn reason(why: NoDelta) -> &'static str {
    match why {
        NoDelta::Unheard => "it has not said where it is since this site started",
        NoDelta::Lapsed => "the journal no longer has what it lacks",
        NoDelta::Unread => "the disk does not give what it lacks of the journal",
        NoDelta::Ahead => "it has what this site does not have",
        NoDelta::Parted => "it has what never was in this site's stream",
        NoDelta::Promoted => "it was made primary",
        NoDelta::GivesWay => "this site gives way to its peer, and feeds nobody until that is over",
    }
}

impl ThirdShown {
    pub fn new(remote: &Remote, third: &ThirdStatus, link: &LinkSeen) -> ThirdShown {
        let state = match third.state {
            ThirdState::Disconnected => "disconnected",
            ThirdState::Greeting => "greeting",
            ThirdState::Standing => "standing",
            ThirdState::Feeding => "feeding",
            ThirdState::Lapsed => "lapsed",
            ThirdState::Copying => "copying",
            ThirdState::Promoted => "promoted",
        };
        let (delta, updates, blocks, why) = match third.delta {
            Delta::Yes { updates, blocks } => ("yes", updates, blocks, None),
            Delta::No(why) => ("no", 0, 0, Some(reason(why).to_owned())),
        };
        ThirdShown {
            name: remote.name.clone(),
            state: state.to_owned(),
            position: third.position.0,
            heard_seconds_ago: seconds(third.said_ns_ago),
            behind: third.behind.updates,
            behind_bytes: third.behind.bytes,
            behind_ms: ms(third.behind.age),
            delta: delta.to_owned(),
            delta_updates: updates,
            delta_bytes: blocks * BLOCK_BYTES as u64,
            reason: why,
            kept_percent: third.kept_percent,
            lapses_soon: third.lapses_soon(),
            resumed: third.resumed.map(|resumed| ResumedShown {
                after: resumed.after.0,
                upto: resumed.upto.0,
                lacked_bytes: resumed.lacked_bytes,
                sent_bytes: resumed.sent_bytes,
                took_ms: resumed.took.map(ms),
            }),
            copy: resync(&third.copy),
            promoted: third.promoted.as_ref().map(SplitShown::new),
            round_trip_us: link.round_trip_us(),
            problem: link.problem(),
            keys: link.keys_shown(),
        }
    }
}

impl SourceShown {
    pub fn new(remote: &Remote, source: &SourceStatus, link: &LinkSeen) -> SourceShown {
        let state = match source.state {
            SourceState::Disconnected => "disconnected",
            SourceState::Greeting => "greeting",
            SourceState::Standing => "standing",
            SourceState::Pulling => "pulling",
            SourceState::Lapsed => "lapsed",
            SourceState::Copying => "copying",
            SourceState::Superseded => "superseded",
        };
        SourceShown {
            name: remote.name.clone(),
            address: remote.address.map_or_else(String::new, |address| address.to_string()),
            state: state.to_owned(),
            settled: source.settled.0,
            heard_seconds_ago: seconds(source.said_ns_ago),
            // What it said before this site went on without it is in no relation to what this one has now.
            behind: match source.parted {
                None => source.behind.updates,
                Some(parted) => parted.theirs.last.0 - parted.common.0,
            },
            behind_bytes: source.behind.bytes,
            behind_ms: ms(source.behind.age),
            staged_bytes: source.staged_blocks * BLOCK_BYTES as u64,
            parted: source.parted.as_ref().map(SplitShown::new),
            round_trip_us: link.round_trip_us(),
            problem: link.problem(),
            keys: link.keys_shown(),
        }
    }
}

/// What is lost if this third goes on without the sites that it pulls from, as far as anybody here can know.
pub fn loss(config: &Config, group: &GroupStatus) -> String {
    let named = config.sources.iter().zip(group.sources.iter().flatten());
    let heard: Vec<String> = named
        .map(|(remote, source)| match seconds(source.said_ns_ago) {
            Some(ago) => {
                format!(
                    "{} was last heard {ago:.1} s ago, and had settled {} then",
                    remote.name, source.settled
                )
            }
            None => format!("{} has not been heard since this site started", remote.name),
        })
        .collect();
    let newest = group.sources.iter().flatten().map(|source| source.settled.0).max().unwrap_or(0);
    let least = newest.saturating_sub(group.last.0);
    format!(
        "This third has everything up to {}. {}. At least {least} updates are lost if it is promoted, and what hosts were told of after the \
         last word of those sites: how much that is, nobody here knows.",
        group.last,
        heard.join("; ")
    )
}
