//! The commands that ask a running site: `status`, `histogram`, `wait`, `stop`.

use std::io::Write;
use std::time::Duration;

use anyhow::Context;

use super::ConfigArgument;
use super::histogram::{Format, plot};
use crate::node::config::quantity::parse_duration;
use crate::node::control::{
    BranchShown, Client, Goal, KeysShown, PeerStatus, Pending, SourceShown, SplitShown, Status, ThirdShown,
};

/// A duration as in the configuration, like `500ms` or `30s`.
pub fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).map(Duration::from_nanos)
}

pub fn client(config: &ConfigArgument) -> anyhow::Result<Client> {
    Ok(Client::new(&config.load()?.site.control))
}

#[derive(clap::Args)]
pub struct StatusCommand {
    #[command(flatten)]
    config: ConfigArgument,
    /// Print everything as JSON
    #[arg(long)]
    json: bool,
}

impl StatusCommand {
    pub fn run(&self) -> anyhow::Result<()> {
        let status = client(&self.config)?.status()?;
        if self.json {
            say!("{}", serde_json::to_string_pretty(&status).context("the status as JSON")?);
        } else {
            say_as_is!("{}", shown(&status));
        }
        Ok(())
    }
}

fn shown(status: &Status) -> String {
    let marks = &status.watermarks;
    let mut lines = vec![
        format!(
            "{} (id {}), {} of group {}: {}{}",
            status.site,
            status.id,
            status.role,
            status.group,
            status.state.replace('_', " "),
            match status {
                Status { solo: true, .. } => ", SOLO: writes are acknowledged by this site alone",
                Status { gives_way: true, .. } => {
                    ", GIVES WAY: what it has that the other site has not goes once it has been copied what is there instead"
                }
                Status { vacant: true, .. } => ", NOBODY IS PRIMARY: the last one has stepped down",
                _ => "",
            }
        ),
        format!(
            "generation {}  last {}  journaled {}  durable {}  acknowledged {}  settled {}  checkpoint {}",
            status.generation,
            marks.last,
            marks.journaled,
            marks.durable,
            marks.acknowledged,
            marks.settled,
            marks.checkpoint
        ),
    ];
    let volumes = status.volumes.iter();
    let volumes = volumes.map(|volume| format!("{} {}", volume.name, bytes(volume.size_bytes as f64)));
    lines.push(format!("volumes: {}", volumes.collect::<Vec<_>>().join(", ")));
    lines.extend(status.split_brain.iter().flat_map(split_brain));
    lines.extend(status.peer.iter().flat_map(peer));
    lines.extend(status.third.iter().flat_map(third));
    lines.extend(status.sources.iter().flat_map(source));
    lines.push(format!("local write pending   {}", pending(&status.local_pending, "blocks and updates")));
    if status.role == "primary" && status.peer.is_some() {
        lines.push(format!("remote write pending  {}", pending(&status.remote_pending, "updates")));
    }
    lines.push(format!(
        "journal {} of {} used  snapshots keep {} of {}  cache {} of {} free  operations {} ({} waiting)",
        bytes(status.journal_used_bytes as f64),
        bytes(status.journal_bytes as f64),
        bytes(status.differential_used_bytes as f64),
        bytes(status.differential_bytes as f64),
        bytes(status.cache_free_bytes as f64),
        bytes(status.cache_bytes as f64),
        status.operations,
        status.operations_waiting
    ));
    if let Some(scrub) = status.scrub.as_ref().filter(|scrub| scrub.active || scrub.unrepaired_blocks > 0) {
        lines.push(format!(
            "scrub {}: {} of {} read, {} bad blocks, {} repaired, {} not",
            if scrub.active { "under way" } else { "ended" },
            bytes(scrub.read_bytes as f64),
            bytes(scrub.total_bytes as f64),
            scrub.bad_blocks,
            scrub.repaired_blocks,
            scrub.unrepaired_blocks
        ));
    }
    let rates = &status.rates;
    lines.push(format!(
        "per second: {:.0} reads, {:.0} writes, {} written, {} journaled, {} destaged",
        rates.reads,
        rates.writes,
        bytes(rates.written_bytes),
        bytes(rates.journal_bytes),
        bytes(rates.destaged_bytes)
    ));
    let mut cpus: Vec<usize> = status.stages.iter().map(|stage| stage.cpu).collect();
    cpus.dedup();
    for cpu in cpus {
        let stages = status.stages.iter().filter(|stage| stage.cpu == cpu);
        let stages = stages.map(|stage| format!("{} {:.1}%", stage.name, stage.busy_percent));
        lines.push(format!("CPU {cpu}: {}", stages.collect::<Vec<_>>().join("  ")));
    }
    lines.join("\n") + "\n"
}

fn split_brain(split: &SplitShown) -> Vec<String> {
    let parted = match split.common {
        0 => "each site has contents that the other one never had".to_owned(),
        common => format!("both sites went on alone after update {common}"),
    };
    vec![
        format!("SPLIT BRAIN: {parted}, and neither is changed"),
        branch("this site", &split.ours),
        branch("the other site", &split.theirs),
    ]
}

fn branch(whose: &str, branch: &BranchShown) -> String {
    let BranchShown { generation, last, updates, acknowledged, covered } = branch;
    let unknown =
        if *covered { "" } else { "; it does not know all that it has changed, so all blocks are compared" };
    format!(
        "  {whose} went on to {last} in generation {generation}: discarding it loses {updates} updates, {acknowledged} of which hosts may \
         have been told of{unknown}"
    )
}

/// A third that was made primary, and a site that it pulled from, as either shows it.
fn parted(split: &SplitShown, what: &str, other: &str) -> Vec<String> {
    let mut lines = vec![format!("TWO HISTORIES: {what}; both have what is up to update {}", split.common)];
    for (whose, of) in [("this site", &split.ours), (other, &split.theirs)] {
        lines.push(match of.updates {
            0 => format!(
                "  {whose} has nothing more: it can follow the other one once both are configured as a pair"
            ),
            _ => branch(whose, of),
        });
    }
    lines
}

/// How long ago something was heard.
fn ago(seconds: Option<f64>) -> String {
    seconds.map_or_else(|| "never".to_owned(), |seconds| format!("{seconds:.1} s ago"))
}

fn peer(peer: &PeerStatus) -> Vec<String> {
    let PeerStatus { name, address, state, received, journaled, durable, applied, .. } = peer;
    let mut lines = vec![format!(
        "peer {name} at {address}: {}  received {received}  journaled {journaled}  durable {durable}  applied {applied}  \
         round trip {:.0} µs  lost {} of {} datagrams",
        state.replace('_', " "),
        peer.round_trip_us,
        peer.datagrams_lost,
        peer.datagrams_sent
    )];
    lines.extend(peer.problem.iter().map(|problem| format!("no connection: {problem}")));
    lines.extend(peer.keys.iter().flat_map(|shown| keys(name, shown)));
    lines
}

/// Who is known to whom by what.
pub(super) fn keys(name: &str, shown: &KeysShown) -> Vec<String> {
    let KeysShown { identity, unproven, refused, accepted, presented } = shown;
    let other = match presented {
        Some(presented) => format!("{name} is {presented}"),
        None => format!("{name} is not connected"),
    };
    let others: Vec<&str> =
        accepted.iter().filter(|one| Some(*one) != presented.as_ref()).map(String::as_str).collect();
    let also = match (others.is_empty(), presented) {
        (true, _) => String::new(),
        (false, Some(_)) => format!(", and may be {}", others.join(" or ")),
        (false, None) => format!(", and is accepted as {}", others.join(" or ")),
    };
    let untaken = if *unproven { ", which it has not taken yet" } else { "" };
    let mut lines = vec![format!("keys: this site is {identity}{untaken}; {other}{also}")];
    lines.extend(refused.iter().map(|refused| {
        format!("WARNING: {name} refuses this site's new identity {refused}; configure it there, then `lockstep keys reload` here again")
    }));
    lines
}

fn third(third: &ThirdShown) -> Vec<String> {
    let ThirdShown { name, state, position, behind, delta, .. } = third;
    let what = match &third.reason {
        Some(reason) => format!("{delta}, {reason}"),
        None => {
            format!("{delta}, {} updates, {} at most", third.delta_updates, bytes(third.delta_bytes as f64))
        }
    };
    let mut lines = vec![format!(
        "third {name}: {state}  has {position}, {}, heard {}  delta: {what}  round trip {:.0} µs",
        lag(*behind, third.behind_bytes, third.behind_ms),
        ago(third.heard_seconds_ago),
        third.round_trip_us
    )];
    if third.lapses_soon {
        lines.push(format!(
            "WARNING: what {name} lacks is {}% of what the journal keeps for it; beyond that the delta is gone",
            third.kept_percent
        ));
    }
    lines.extend(third.copy.iter().map(|copy| {
        format!(
            "a copy to {name}, not a delta: {} left to compare or copy, {} copied, {} not, being equal or zeros{}",
            bytes(copy.left_bytes as f64),
            bytes(copy.copied_bytes as f64),
            bytes(copy.equal_bytes as f64),
            if state == "copying" { "" } else { "; interrupted, and goes on when it asks" }
        )
    }));
    lines.extend(third.promoted.iter().flat_map(|split| {
        parted(split, &format!("{name} was made primary in place of this site and its peer"), name)
    }));
    lines.extend(third.problem.iter().map(|problem| format!("no connection to {name}: {problem}")));
    lines.extend(third.keys.iter().flat_map(|shown| keys(name, shown)));
    lines
}

/// How far a third is behind.
fn lag(updates: u64, lacked_bytes: u64, ms: f64) -> String {
    format!("{updates} behind ({}, {:.1} s)", bytes(lacked_bytes as f64), ms / 1000.0)
}

fn source(source: &SourceShown) -> Vec<String> {
    let SourceShown { name, address, state, settled, behind, .. } = source;
    let mut lines = vec![format!(
        "source {name} at {address}: {state}  settled {settled}, this site is {}, heard {}  round trip {:.0} µs",
        lag(*behind, source.behind_bytes, source.behind_ms),
        ago(source.heard_seconds_ago),
        source.round_trip_us
    )];
    if state == "copying" {
        let staged = bytes(source.staged_bytes as f64);
        lines.push(format!(
            "{name} copies to this site what no journal has: {staged} are staged, and the volumes stay what they were until all is"
        ));
    }
    lines.extend(
        source
            .parted
            .iter()
            .flat_map(|split| parted(split, &format!("this site was made primary in place of {name}"), name)),
    );
    lines.extend(source.problem.iter().map(|problem| format!("no connection to {name}: {problem}")));
    lines.extend(source.keys.iter().flat_map(|shown| keys(name, shown)));
    lines
}

fn pending(pending: &Pending, what: &str) -> String {
    format!("{} {what}, {}, oldest {:.1} ms", pending.count, bytes(pending.bytes as f64), pending.oldest_ms)
}

/// A size for reading, to three digits.
pub(super) fn bytes(bytes: f64) -> String {
    let units = [("GiB", (1u64 << 30) as f64), ("MiB", (1u64 << 20) as f64), ("KiB", 1024.0)];
    match units.iter().find(|(_, factor)| bytes >= *factor) {
        Some((unit, factor)) => format!("{:.1} {unit}", bytes / factor),
        None => format!("{bytes:.0} B"),
    }
}

#[derive(clap::Args)]
pub struct HistogramCommand {
    #[command(flatten)]
    config: ConfigArgument,
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    /// Begin the histograms anew after showing them
    #[arg(long)]
    reset: bool,
    /// Show what was recorded in each span of this length, until interrupted
    #[arg(long, value_name = "DURATION", value_parser = duration, conflicts_with = "reset")]
    interval: Option<Duration>,
    /// Add a percentile plot of characters
    #[arg(long)]
    plot: bool,
}

impl HistogramCommand {
    pub fn run(&self) -> anyhow::Result<()> {
        let client = client(&self.config)?;
        let mut before = client.histogram(self.reset)?;
        let Some(interval) = self.interval else {
            return self.show(&before);
        };
        loop {
            std::thread::sleep(interval);
            let now = client.histogram(false)?;
            self.show(&now.since(&before))?;
            before = now;
        }
    }

    fn show(&self, report: &crate::node::telemetry::Report) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        out.write_all(self.format.render(report).as_bytes())?;
        if self.plot {
            out.write_all(plot(report).as_bytes())?;
        }
        Ok(out.flush()?)
    }
}

#[derive(clap::Args)]
pub struct WaitCommand {
    #[command(flatten)]
    config: ConfigArgument,
    #[command(flatten)]
    goal: GoalArgument,
    /// Give up after this long, with exit code 5
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "60s")]
    timeout: Duration,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct GoalArgument {
    /// Until everything written so far is durable on both sites, and visible in the secondary's exports
    #[arg(long)]
    settled: bool,
    /// Until the peer holds every acknowledged update and takes part in acknowledging
    #[arg(long)]
    in_sync: bool,
    /// Until a cache that holds all volumes has read them
    #[arg(long)]
    warm: bool,
}

impl WaitCommand {
    pub fn run(&self) -> anyhow::Result<()> {
        let goal = match self.goal {
            GoalArgument { settled: true, .. } => Goal::Settled,
            GoalArgument { warm: true, .. } => Goal::Warm,
            _ => Goal::InSync,
        };
        Ok(client(&self.config)?.wait(goal, self.timeout)?)
    }
}

/// Asks a site to drain, checkpoint and end, as SIGTERM does.
pub fn stop(config: &ConfigArgument) -> anyhow::Result<()> {
    Ok(client(config)?.stop()?)
}
