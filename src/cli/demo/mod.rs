//! `lockstep demo`: a pair on this machine, hosts writing to it, and the proof that both sites hold what was acknowledged.

mod fio;
mod pair;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::ValueEnum;
use serde_json::json;

use super::histogram::{latency_us, plot, stages_json, table};
use super::load::{Broken, bar, fresh_seed, seconds};
use crate::base::BLOCK_BYTES;
use crate::node::control::Goal;
use crate::node::load::{Ledger, Outcome, Pattern, Plan, check, digest, over_nbd};
use crate::node::telemetry::{PERCENTILES, Report};

use pair::{DATA, LOG, LOG_BYTES, Pair};

/// Requests that the load keeps in flight.
const DEPTH: usize = 32;

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
}

impl Scenario {
    fn name(self) -> &'static str {
        match self {
            Scenario::Steady => "steady",
        }
    }
}

#[derive(clap::Args)]
pub struct Demo {
    #[arg(value_enum, default_value = "steady")]
    scenario: Scenario,
    /// How long the load runs
    #[arg(long, value_parser = seconds, default_value = "10")]
    seconds: Duration,
    /// Print one JSON object instead of tables
    #[arg(long)]
    json: bool,
    /// Leave the sites' folder behind
    #[arg(long)]
    keep: bool,
    /// Where to make the sites' folder; needs direct I/O
    #[arg(long, value_name = "FOLDER")]
    directory: Option<PathBuf>,
    /// Use `lockstep load` even where fio is installed
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

struct SiteSeen {
    name: &'static str,
    role: String,
    digest: String,
    last_number: u64,
    broken: u64,
}

impl Demo {
    pub fn run(&self) -> anyhow::Result<()> {
        let mut pair = Pair::make(self.directory.as_deref(), self.keep)?;
        pair.start()?;
        pair.client(0).wait(Goal::InSync, READY_MAX).map_err(|error| pair.explain(error.into()))?;
        self.say(&format!("two sites are in lockstep: {}", pair.describe()));

        let (seen, logged) = self.load(&pair).map_err(|error| pair.explain(error))?;
        let report = pair.client(0).histogram(false)?;
        if !self.json {
            println!("{}", self.sentence(&seen));
            print!("\n{}\n{}\n", table(&report), plot(&report));
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
        pair.stop()?;
        self.conclude(&seen, &report, logged.writes.count(), &sites)?;
        if let Some(folder) = pair.finish() {
            self.say(&format!("the sites are in {}", folder.display()));
        }
        Ok(())
    }

    /// For people; JSON has standard output to itself.
    fn say(&self, line: &str) {
        if self.json { eprintln!("{line}") } else { println!("{line}") }
    }

    /// Runs the load, and beside it the client that keeps a log.
    fn load(&self, pair: &Pair) -> anyhow::Result<(Seen, Outcome)> {
        let uri = pair.uri(0, DATA);
        let fio = if self.no_fio { None } else { fio::version() };
        match &fio {
            Some(version) => {
                self.say(&format!("load: {version}, 4 KiB random writes over NBD, queue depth {DEPTH}"))
            }
            None => {
                self.say(&format!("load: lockstep load, 4 KiB random writes over NBD, queue depth {DEPTH}"))
            }
        }
        let bar = bar(self.seconds)?;
        let (log_uri, log_plan) = (pair.uri(0, LOG), self.logged_plan());
        let (load, logged) = std::thread::scope(|scope| {
            let logging = scope.spawn(move || over_nbd(&log_uri, &log_plan, &mut |_| {}));
            let load = match fio {
                Some(_) => fio::run(&uri, DEPTH, self.seconds),
                None => {
                    self.own_load(&uri, &mut |operations| bar.set_message(format!("{operations} writes")))
                }
            };
            (load, logging.join())
        });
        bar.finish_and_clear();
        let logged = logged.map_err(|_| anyhow::anyhow!("the logging client panicked"))??;
        if let Some(error) = &logged.first_error {
            anyhow::bail!("a write of the logging client failed: {error}");
        }
        Ok((load?, logged))
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
            seed: fresh_seed(),
            offset: 0,
            length: LOG_BYTES,
        }
    }

    fn own_load(
        &self,
        uri: &crate::io::nbd_client::NbdUri,
        progress: &mut dyn FnMut(u64),
    ) -> anyhow::Result<Seen> {
        let plan =
            Plan { depth: DEPTH, rate: None, verify: false, length: pair::DATA_BYTES, ..self.logged_plan() };
        let outcome = over_nbd(uri, &plan, progress)?;
        if let Some(error) = &outcome.first_error {
            anyhow::bail!("{} writes failed; the first: {error}", outcome.errors);
        }
        let report = outcome.report();
        let stage = report.stages.first().context("the load ended without a write")?;
        Ok(Seen {
            load: "lockstep load",
            seconds: outcome.seconds,
            iops: outcome.iops(),
            latency_us: latency_us(stage),
        })
    }

    fn look(&self, pair: &Pair, site: usize, ledger: &Ledger) -> anyhow::Result<SiteSeen> {
        let status = pair.client(site).status()?;
        let found = check(&pair.uri(site, LOG), ledger)?;
        let digests = [digest(&pair.uri(site, DATA))?, digest(&pair.uri(site, LOG))?];
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
        sites: &[SiteSeen; 2],
    ) -> anyhow::Result<()> {
        let lost: u64 = sites.iter().map(|site| site.broken).sum();
        let equal = sites[0].digest == sites[1].digest;
        if self.json {
            let sites: Vec<_> = sites
                .iter()
                .map(|site| {
                    json!({
                        "name": site.name,
                        "role": site.role,
                        "digest": site.digest,
                        "last_number": site.last_number,
                    })
                })
                .collect();
            let result = json!({
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
            println!("{result:#}");
        } else {
            for site in sites {
                println!(
                    "{:<6} {:<10} digest {}  last update #{}",
                    site.name, site.role, site.digest, site.last_number
                );
            }
            println!("{acknowledged} logged writes were acknowledged; {lost} of them are missing on a site");
        }
        match (lost, equal) {
            (0, true) => Ok(()),
            (0, false) => Err(Broken("the sites' contents differ".to_owned()).into()),
            (lost, _) => Err(Broken(format!("{lost} acknowledged writes are missing on a site")).into()),
        }
    }
}

/// The ledger now claims one write that nobody sent.
fn plant_loss(ledger: &mut Ledger) {
    let block = ledger.written().next().unwrap_or(0);
    ledger.begin(block);
    ledger.acknowledge(block);
}
