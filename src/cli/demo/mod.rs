//! `lockstep demo`: a pair on this machine, hosts writing to it, and the proof that both sites hold what was acknowledged.

mod fio;
mod hosts;
mod pair;
mod rejoin;
mod snapshots;
mod takeover;
mod three_sites;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::ValueEnum;
use serde_json::json;

use super::histogram::{latency_us, plot, stages_json, table};
use super::load::{Broken, bar, fresh_seed, seconds};
use crate::base::BLOCK_BYTES;
use crate::node::control::Goal;
use crate::node::load::{Ledger, Outcome, Pattern, Plan, Timeline, check, digest, over_nbd};
use crate::node::telemetry::{PERCENTILES, Report};
use crate::reactor::Clock;

use hosts::Hosts;
use pair::{DATA, LOG, LOG_BYTES, Pair, Setup, VOLUMES};
use snapshots::{Compared, Taken};

/// The client that keeps a log writes this often and keeps this many in flight: enough to lose something, too little to be
/// felt by the load beside it.
const LOGGED_WRITES_A_SECOND: f64 = 1000.0;
const LOGGED_DEPTH: usize = 8;

/// A pair on one busy machine may take its time.
const READY_MAX: Duration = Duration::from_secs(30);
const SETTLED_MAX: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Scenario {
    /// Both sites are there all the time
    Steady,
    /// Snapshots are taken while the load runs, and read back at both sites
    Snapshot,
    /// The primary is killed, the other site takes over, and the old one comes back
    Takeover,
    /// The secondary is away for longer than the journal lasts, and is copied what has changed
    Rejoin,
    /// A third site pulls from the pair; the primary is killed, and the third goes on from the second
    ThreeSites,
}

impl Scenario {
    fn name(self) -> &'static str {
        match self {
            Scenario::Steady => "steady",
            Scenario::Snapshot => "snapshot",
            Scenario::Takeover => "takeover",
            Scenario::Rejoin => "rejoin",
            Scenario::ThreeSites => "three-sites",
        }
    }

    /// Every snapshot may have to keep a whole group: all of it is overwritten before the next one.
    fn setup(self, snapshots: usize) -> Setup {
        match self {
            Scenario::Steady => Setup::STEADY,
            Scenario::Takeover => takeover::SETUP,
            Scenario::Rejoin => rejoin::SETUP,
            Scenario::ThreeSites => three_sites::SETUP,
            Scenario::Snapshot => {
                let data_bytes = 32 << 20;
                let differential_bytes = snapshots as u64 * (data_bytes + LOG_BYTES);
                Setup { data_bytes, differential_bytes, ..Setup::STEADY }
            }
        }
    }
}

#[derive(clap::Args)]
pub struct Demo {
    #[arg(value_enum, default_value = "steady")]
    scenario: Scenario,
    /// How long the load runs, or hosts write, at least
    #[arg(long, value_parser = seconds, default_value = "10")]
    seconds: Duration,
    /// Writes that the load keeps in flight; hosts of takeover, rejoin and three-sites write one after the other
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1024))]
    depth: u16,
    /// How many snapshots `demo snapshot` takes
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=256))]
    snapshots: u16,
    /// Print one JSON object instead of tables
    #[arg(long)]
    json: bool,
    /// Leave the sites' folder behind
    #[arg(long)]
    keep: bool,
    /// Where to make the sites' folder; needs direct I/O
    #[arg(long, value_name = "FOLDER")]
    directory: Option<PathBuf>,
    /// Use `lockstep load` even where fio is installed; only the demo without a scenario uses that
    #[arg(long)]
    no_fio: bool,
    /// Claim an acknowledged write that never was, to see that it is missed
    #[arg(long, hide = true)]
    plant_loss: bool,
}

/// What the load's client saw.
struct Seen {
    load: &'static str,
    seconds: f64,
    iops: f64,
    /// In the order of [`PERCENTILES`], then the maximum; microseconds.
    latency_us: serde_json::Map<String, serde_json::Value>,
}

/// What a scenario's load left.
struct Loaded {
    seen: Seen,
    logged: Outcome,
    /// When the load's writes began and ended, and the snapshots taken meanwhile; of `demo snapshot`. The logged writes have a timeline, too.
    timeline: Timeline,
    taken: Vec<Taken>,
}

/// What `demo snapshot` shows beside the rest.
struct Snapshots {
    compared: Vec<Compared>,
    /// Of the load, as fast as it goes, which begins nothing while a pause lasts; and of the writes at a fixed rate, which do not care.
    pause_ratios: [f64; 2],
}

struct SiteSeen {
    name: &'static str,
    role: String,
    digest: String,
    last_number: u64,
    broken: u64,
}

impl SiteSeen {
    fn as_json(&self) -> serde_json::Value {
        json!({
            "name": self.name,
            "role": self.role,
            "digest": self.digest,
            "last_number": self.last_number,
        })
    }

    fn sentence(&self) -> String {
        format!(
            "{:<6} {:<10} digest {}  last update #{}",
            self.name, self.role, self.digest, self.last_number
        )
    }
}

impl Demo {
    pub fn run(&self) -> anyhow::Result<()> {
        match self.scenario {
            Scenario::Takeover => return self.run_takeover(),
            Scenario::Rejoin => return self.run_rejoin(),
            Scenario::ThreeSites => return self.run_three_sites(),
            Scenario::Steady | Scenario::Snapshot => {}
        }
        let mut pair = self.pair_in_lockstep(self.scenario.setup(usize::from(self.snapshots)))?;
        let Loaded { seen, logged, timeline, taken } =
            self.load(&pair).map_err(|error| pair.explain(error))?;
        let report = pair.client(0).histogram(false)?;
        if !self.json {
            say!("{}", self.sentence(&seen));
            say_as_is!("\n{}\n{}\n", table(&report), plot(&report));
        }
        for site in 0..2 {
            pair.client(site).wait(Goal::Settled, SETTLED_MAX).map_err(|error| pair.explain(error.into()))?;
        }
        self.say("settled; reading both sites back");
        let mut ledger = logged.ledger.context("the logging client keeps a ledger")?;
        if self.plant_loss {
            plant_loss(&mut ledger);
        }
        let sites = [self.look(&pair, 0, &ledger)?, self.look(&pair, 1, &ledger)?];
        let snapshots = match self.scenario {
            Scenario::Steady | Scenario::Takeover | Scenario::Rejoin | Scenario::ThreeSites => None,
            Scenario::Snapshot => {
                let compared = snapshots::compare(&pair, taken).map_err(|error| pair.explain(error))?;
                let ratio = |of: &Timeline| snapshots::pause_ratio(&compared, of);
                let pause_ratios = [ratio(&timeline)?, ratio(&logged.timeline)?];
                Some(Snapshots { compared, pause_ratios })
            }
        };
        pair.stop()?;
        if !self.json
            && let Some(Snapshots { compared, pause_ratios: [of_load, at_rate] }) = &snapshots
        {
            say_as_is!("\n{}", snapshots::table(compared, &logged.timeline));
            say!(
                "p99 in the 50 ms after a snapshot over that of random 50 ms: {of_load:.2} of the load, {at_rate:.2} at a fixed rate\n"
            );
        }
        self.conclude(&seen, &report, logged.writes.count(), &sites, snapshots.as_ref())?;
        self.finish(pair);
        Ok(())
    }

    fn pair_in_lockstep(&self, setup: Setup) -> anyhow::Result<Pair> {
        let mut pair = Pair::make(self.directory.as_deref(), self.keep, setup)?;
        pair.start()?;
        pair.client(0).wait(Goal::InSync, READY_MAX).map_err(|error| pair.explain(error.into()))?;
        let count = if setup.third { "three sites are up, two of them" } else { "two sites are" };
        self.say(&format!("{count} in lockstep: {}", pair.describe()));
        Ok(pair)
    }

    fn finish(&self, pair: Pair) {
        if let Some(folder) = pair.finish() {
            self.say(&format!("the sites are in {}", folder.display()));
        }
    }

    /// For people; JSON has standard output to itself.
    fn say(&self, line: &str) {
        if self.json { eprintln!("{line}") } else { say!("{line}") }
    }

    /// Runs the load, and beside it the client that keeps a log, and whoever takes snapshots.
    fn load(&self, pair: &Pair) -> anyhow::Result<Loaded> {
        let uri = pair.uri(0, DATA);
        let (depth, snapshots) = (self.depth, self.scenario == Scenario::Snapshot);
        // fio does not say when each write was under way.
        let fio = if self.no_fio || snapshots { None } else { fio::version() };
        let name = fio.as_deref().unwrap_or("lockstep load");
        self.say(&format!("load: {name}, 4 KiB random writes over NBD, queue depth {depth}"));
        let bar = bar(self.seconds)?;
        let count = usize::from(self.snapshots);
        let (log_uri, log_plan, clock) = (pair.uri(0, LOG), self.logged_plan(), Clock::new());
        let (load, logged, taken) = std::thread::scope(|scope| {
            let logging = scope.spawn(|| over_nbd(&log_uri, &log_plan, &clock, &mut |_| {}));
            let take = || snapshots::take(pair, &clock, count, self.seconds);
            let taking = snapshots.then(|| scope.spawn(take));
            let bytes = pair.setup.data_bytes;
            let load = match fio {
                Some(_) => fio::run(&uri, bytes, usize::from(depth), self.seconds)
                    .map(|seen| (seen, Timeline::default())),
                None => self.own_load(&uri, bytes, &clock, &mut |operations| {
                    bar.set_message(format!("{operations} writes"));
                }),
            };
            (load, logging.join(), taking.map(|taking| taking.join()))
        });
        bar.finish_and_clear();
        let logged = logged.map_err(|_| anyhow::anyhow!("the logging client panicked"))??;
        if let Some(error) = &logged.first_error {
            anyhow::bail!("a write of the logging client failed: {error}");
        }
        let taken = match taken {
            None => Vec::new(),
            Some(taken) => taken.map_err(|_| anyhow::anyhow!("taking snapshots panicked"))??,
        };
        let (seen, timeline) = load?;
        Ok(Loaded { seen, logged, timeline, taken })
    }

    fn logged_plan(&self) -> Plan {
        Plan {
            pattern: Pattern::Random,
            lengths: vec![BLOCK_BYTES as u32],
            read_percent: 0,
            depth: LOGGED_DEPTH,
            rate: Some(LOGGED_WRITES_A_SECOND),
            seconds: self.seconds.as_secs_f64(),
            verify: true,
            timeline: self.scenario == Scenario::Snapshot,
            seed: fresh_seed(),
            offset: 0,
            length: LOG_BYTES,
        }
    }

    fn own_load(
        &self,
        uri: &crate::io::nbd_client::NbdUri,
        length: u64,
        clock: &Clock,
        progress: &mut dyn FnMut(u64),
    ) -> anyhow::Result<(Seen, Timeline)> {
        let depth = usize::from(self.depth);
        let plan = Plan { depth, rate: None, verify: false, length, ..self.logged_plan() };
        let outcome = over_nbd(uri, &plan, clock, progress)?;
        if let Some(error) = &outcome.first_error {
            anyhow::bail!("{} writes failed; the first: {error}", outcome.errors);
        }
        let report = outcome.report();
        let stage = report.stages.first().context("the load ended without a write")?;
        let seen = Seen {
            load: "lockstep load",
            seconds: outcome.seconds,
            iops: outcome.iops(),
            latency_us: latency_us(stage),
        };
        Ok((seen, outcome.timeline))
    }

    fn look(&self, pair: &Pair, site: usize, ledger: &Ledger) -> anyhow::Result<SiteSeen> {
        let status = pair.client(site).status()?;
        let found = check(&pair.uri(site, LOG), ledger)?;
        let digests = VOLUMES.map(|volume| digest(&pair.uri(site, volume), None, &mut |_, _| {}));
        let digests = digests.into_iter().collect::<Result<Vec<_>, _>>()?;
        Ok(SiteSeen {
            name: pair::NAMES[site],
            role: status.role,
            digest: digests.join(""),
            last_number: status.watermarks.last,
            broken: found.broken(),
        })
    }

    fn sentence(&self, seen: &Seen) -> String {
        let of =
            |name: &str| seen.latency_us.get(name).and_then(serde_json::Value::as_f64).unwrap_or(f64::NAN);
        let percentiles: Vec<String> =
            PERCENTILES.iter().map(|(name, _)| format!("{name} {:.0} µs", of(name))).collect();
        format!("{:.0} writes a second as {} saw them: {}", seen.iops, seen.load, percentiles.join(", "))
    }

    fn conclude(
        &self,
        seen: &Seen,
        report: &Report,
        acknowledged: u64,
        sites: &[SiteSeen],
        snapshots: Option<&Snapshots>,
    ) -> anyhow::Result<()> {
        let lost = lost(sites);
        if self.json {
            let sites: Vec<_> = sites.iter().map(SiteSeen::as_json).collect();
            let mut result = json!({
                "scenario": self.scenario.name(),
                "load": seen.load,
                "seconds": seen.seconds,
                "iops": seen.iops,
                "latency_us": seen.latency_us,
                "stages": stages_json(report),
                "acknowledged_writes": acknowledged,
                "lost_writes": lost,
                "sites": sites,
            });
            if let Some(Snapshots { compared, pause_ratios: [of_load, at_rate] }) = snapshots {
                result["snapshots"] = snapshots::as_json(compared).into();
                result["pause_ratio"] = json!(of_load);
                result["pause_ratio_at_fixed_rate"] = json!(at_rate);
            }
            say!("{result:#}");
        } else {
            sites.iter().for_each(|site| say!("{}", site.sentence()));
            say!("{acknowledged} logged writes were acknowledged; {lost} of them are missing on a site");
        }
        let differs = |it: &&Compared| it.digests[0] != it.digests[1];
        if let Some(different) = snapshots.and_then(|all| all.compared.iter().find(differs)) {
            let number = different.number;
            return Err(Broken(format!("the sites' contents of snapshot #{number} differ")).into());
        }
        judge(sites)
    }

    /// The JSON of a scenario with hosts; `figures` are its own.
    fn print_with_hosts(&self, hosts: &Hosts, sites: &[SiteSeen], figures: &serde_json::Value) {
        let mut result = json!({
            "scenario": self.scenario.name(),
            "seconds": self.seconds.as_secs_f64(),
            "max_host_latency_ms": hosts.longest().0 as f64 / 1e6,
            "acknowledged_writes": hosts.acknowledged(),
            "lost_writes": lost(sites),
            "sites": sites.iter().map(SiteSeen::as_json).collect::<Vec<_>>(),
        });
        for (name, figure) in figures.as_object().into_iter().flatten() {
            result[name] = figure.clone();
        }
        say!("{result:#}");
    }

    fn say_with_hosts(&self, hosts: &Hosts, sites: &[SiteSeen]) {
        sites.iter().for_each(|site| say!("{}", site.sentence()));
        say!("no host waited longer than {} for a write", shown(Duration::from_nanos(hosts.longest().0)));
        let (acknowledged, lost) = (hosts.acknowledged(), lost(sites));
        say!("{acknowledged} writes were acknowledged; {lost} of them are missing on a site");
    }
}

fn lost(sites: &[SiteSeen]) -> u64 {
    sites.iter().map(|site| site.broken).sum()
}

fn judge(sites: &[SiteSeen]) -> anyhow::Result<()> {
    let equal = sites.iter().all(|site| site.digest == sites[0].digest);
    match (lost(sites), equal) {
        (0, true) => Ok(()),
        (0, false) => Err(Broken("the sites' contents differ".to_owned()).into()),
        (lost, _) => Err(Broken(format!("{lost} acknowledged writes are missing on a site")).into()),
    }
}

fn shown(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}

/// The ledger now claims one write that nobody sent.
fn plant_loss(ledger: &mut Ledger) {
    let block = ledger.written().next().unwrap_or(0);
    ledger.begin(block);
    ledger.acknowledge(block);
}
