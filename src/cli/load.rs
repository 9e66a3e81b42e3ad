//! `lockstep load`: how fast a volume is, and whether it keeps what it is given.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::histogram::{Format, latency_us, plot, stages_json};
use super::log;
use crate::io::nbd_client::NbdUri;
use crate::node::config::Config;
use crate::node::config::quantity::parse_size;
use crate::node::load::{Check, Outcome, Pattern, Plan, check, inside, over_nbd};
use crate::node::telemetry::Report;
use crate::reactor::Clock;

pub fn size(text: &str) -> Result<u64, String> {
    parse_size(text)
}

fn length(text: &str) -> Result<u32, String> {
    let bytes = parse_size(text)?;
    let most = crate::format::nbd::REQUEST_BYTES_MAX;
    u32::try_from(bytes)
        .ok()
        .filter(|bytes| *bytes <= most)
        .ok_or_else(|| format!("{text} is more than 32MiB"))
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate > 0.0 => Ok(rate),
        _ => Err("write operations a second, like 20000".to_owned()),
    }
}

/// A number of seconds, at most a day.
pub fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= 86_400.0 => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("write a number of seconds, at most 86400".to_owned()),
    }
}

#[derive(clap::Args)]
pub struct Load {
    /// The volume, over NBD: nbd+unix:///VOLUME?socket=PATH or nbd://HOST:PORT/VOLUME
    #[arg(required_unless_present = "config", conflicts_with = "config")]
    uri: Option<NbdUri>,
    /// Run this site with the load inside, below the front, and stop it afterwards
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The volume, with --config; the first if not given
    #[arg(long, requires = "config")]
    volume: Option<String>,
    #[arg(long, value_enum, default_value = "random")]
    pattern: Pattern,
    /// Length of an operation, like 4KiB; several, separated by commas, are mixed
    #[arg(long, value_parser = length, value_delimiter = ',', default_value = "4KiB")]
    block: Vec<u32>,
    /// Percent of the operations that are reads
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=100))]
    read: u8,
    /// Operations in flight
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    depth: u16,
    /// Operations a second, begun on time or late: latency counts from when each should have begun
    #[arg(long, value_parser = rate)]
    rate: Option<f64>,
    /// How long to begin operations
    #[arg(long, value_parser = seconds, default_value = "10")]
    seconds: Duration,
    /// Write contents unlike any other, compare every read, and read everything back at the end
    #[arg(long)]
    verify: bool,
    /// What places and contents follow from; the time of day if not given
    #[arg(long)]
    seed: Option<u64>,
    /// Where in the volume the range that is used begins
    #[arg(long, value_parser = size, default_value = "0B")]
    offset: u64,
    /// Length of that range; the rest of the volume if not given
    #[arg(long, value_parser = size)]
    length: Option<u64>,
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    /// Add a percentile plot of characters
    #[arg(long)]
    plot: bool,
}

/// What was asked for by `--verify` did not hold.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Broken(pub String);

impl Load {
    pub fn run(&self) -> anyhow::Result<()> {
        let progress = bar(self.seconds)?;
        let mut show = |operations: u64| progress.set_message(format!("{operations} operations"));
        let (outcome, target, read_back) = match (&self.uri, &self.config) {
            (Some(uri), _) => {
                let whole = export_bytes(uri)?;
                let outcome = over_nbd(uri, &self.plan(whole), &Clock::new(), &mut show)?;
                (outcome, None, None)
            }
            (None, Some(file)) => {
                let config = Config::load(file)?;
                let _guard = log::start(&config.log);
                let volume = self.volume_of(&config)?;
                let plan = self.plan(config.volumes[volume].size_bytes);
                let (outcome, target, read_back) = inside(&config, volume, &plan, &mut show)?;
                (outcome, Some(target), read_back)
            }
            (None, None) => bail!("name a volume's NBD address, or a site with --config"),
        };
        progress.finish_and_clear();
        let report = merged(&outcome, target);
        match self.format {
            Format::Json => say!("{:#}", as_json(&outcome, &report)),
            Format::Table => say_as_is!("{}\n{}", summary(&outcome), self.format.render(&report)),
            format => say_as_is!("{}", format.render(&report)),
        }
        if self.plot {
            say_as_is!("{}", plot(&report));
        }
        self.judge(&outcome, read_back)
    }

    fn plan(&self, volume_bytes: u64) -> Plan {
        Plan {
            pattern: self.pattern,
            lengths: self.block.clone(),
            read_percent: self.read,
            depth: usize::from(self.depth),
            rate: self.rate,
            seconds: self.seconds.as_secs_f64(),
            verify: self.verify,
            timeline: false,
            seed: self.seed.unwrap_or_else(fresh_seed),
            offset: self.offset,
            length: self.length.unwrap_or(volume_bytes.saturating_sub(self.offset)),
        }
    }

    fn volume_of(&self, config: &Config) -> anyhow::Result<usize> {
        let Some(name) = &self.volume else { return Ok(0) };
        let found = config.volumes.iter().position(|volume| volume.name == *name);
        found.with_context(|| format!("{} has no volume \"{name}\"", config.file.display()))
    }

    /// An error for operations that failed, and for anything that is not as it was promised.
    fn judge(&self, outcome: &Outcome, read_back: Option<Check>) -> anyhow::Result<()> {
        let first = outcome.first_error.as_deref().unwrap_or("no more is known");
        if outcome.mismatches > 0 {
            let message = format!("{} blocks were read wrong; the first: {first}", outcome.mismatches);
            return Err(Broken(message).into());
        }
        let over_nbd = outcome.ledger.as_ref().zip(self.uri.as_ref());
        if let Some(check) =
            read_back.map(Ok).or(over_nbd.map(|(ledger, uri)| check(uri, ledger))).transpose()?
        {
            if check.broken() > 0 {
                let (lost, torn, unreadable) = (check.lost, check.torn, check.unreadable);
                let message = format!(
                    "of {} blocks read back, {lost} lack an acknowledged write, {torn} are torn, {unreadable} unreadable",
                    check.blocks
                );
                return Err(Broken(message).into());
            }
            eprintln!("{} blocks read back, every acknowledged write is there", check.blocks);
        }
        if outcome.errors > 0 {
            bail!("{} operations failed; the first: {first}", outcome.errors);
        }
        Ok(())
    }
}

/// No two runs have the same, so that none takes what another left for its own.
pub fn fresh_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(1, |since| since.as_nanos() as u64)
}

fn export_bytes(uri: &NbdUri) -> anyhow::Result<u64> {
    use crate::io::nbd_client::{ClientOptions, NbdClient};
    let client = NbdClient::connect(uri, ClientOptions::default())?;
    let bytes = client.size();
    client.disconnect()?;
    Ok(bytes)
}

/// A bar that fills with time.
pub fn bar(time: Duration) -> anyhow::Result<ProgressBar> {
    let template = "load {bar:40} {elapsed} {msg}";
    let style = ProgressStyle::with_template(template).context("the progress bar's template")?;
    let bar = ProgressBar::new(time.as_millis() as u64).with_style(style);
    let (ticking, begun) = (bar.downgrade(), std::time::Instant::now());
    std::thread::spawn(move || {
        while let Some(bar) = ticking.upgrade() {
            if bar.is_finished() {
                break;
            }
            bar.set_position(begun.elapsed().as_millis() as u64);
            std::thread::sleep(Duration::from_millis(200));
        }
    });
    Ok(bar)
}

/// The client's distributions, then the target's.
fn merged(outcome: &Outcome, target: Option<Report>) -> Report {
    let mut report = outcome.report();
    if let Some(target) = target {
        report.stages.extend(target.stages);
        report.counters = target.counters;
    }
    report
}

fn summary(outcome: &Outcome) -> String {
    let mib = |bytes: u64| bytes as f64 / outcome.seconds.max(1e-9) / f64::from(1 << 20);
    format!(
        "{:.0} operations a second over {:.1} s: {} reads ({:.1} MiB/s), {} writes ({:.1} MiB/s), {} errors",
        outcome.iops(),
        outcome.seconds,
        outcome.reads.count(),
        mib(outcome.read_bytes),
        outcome.writes.count(),
        mib(outcome.written_bytes),
        outcome.errors
    ) + &match outcome.never_begun {
        0 => String::new(),
        never => format!(
            "\n{never} operations were never begun: the rate was not reached, and latencies lack those that waited longest"
        ),
    }
}

fn as_json(outcome: &Outcome, report: &Report) -> serde_json::Value {
    let client = outcome.report();
    let latency: serde_json::Map<_, _> =
        client.stages.iter().map(|stage| (stage.name.clone(), json!(latency_us(stage)))).collect();
    json!({
        "seconds": outcome.seconds,
        "iops": outcome.iops(),
        "reads": outcome.reads.count(),
        "writes": outcome.writes.count(),
        "read_bytes": outcome.read_bytes,
        "written_bytes": outcome.written_bytes,
        "errors": outcome.errors,
        "mismatches": outcome.mismatches,
        "never_begun": outcome.never_begun,
        "latency_us": latency,
        "stages": stages_json(report),
    })
}
