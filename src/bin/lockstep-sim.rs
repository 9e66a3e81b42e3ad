//! Runs the simulator over seeds; see `docs/SIMULATOR.md`.
//!
//! Exit code 0: no violation; 1: a violation, printed with its seed; 2: wrong arguments.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Parser;
use lockstep::sim::{
    CRASHES_MIN, Case, FarSeen, HOST_OPERATIONS_MIN, Outcome, TROUBLES, Tried, Violation, keep_panics,
    minimise, run_case, run_far,
};

const DAY_NS: f64 = 86_400e9;

#[derive(Parser)]
#[command(
    version,
    about = "Runs both sites of a pair in one thread, from a seed, with faults, under an auditor"
)]
struct Arguments {
    /// Seeds to run, the second excluded: A..B.
    #[arg(long, value_parser = parse_range, default_value = "0..1000")]
    seeds: (u64, u64),
    /// One seed.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Print what happens; with --seed.
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Leave out as much of a seed as it needs not to fail; with --seed.
    #[arg(long, requires = "seed", conflicts_with = "trace")]
    minimise: bool,
    /// Leave this out, as --minimise says; with --seed.
    #[arg(long, requires = "seed", default_value = "")]
    without: String,
    /// Hosts submit no more than these while faults strike, as --minimise says; with --seed.
    #[arg(long, requires = "seed")]
    operations: Option<u64>,
    /// A third far away that has trouble of its own, and no other faults: hosts are told the same as without a third.
    #[arg(long, conflicts_with_all = ["ledger", "coverage", "hashes"])]
    far: bool,
    /// Print each seed's trace hash, to compare two builds.
    #[arg(long)]
    hashes: bool,
    /// Threads; each runs its own seeds.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Begin no seed after this many minutes.
    #[arg(long)]
    minutes: Option<f64>,
    /// Go on after a violation, up to this many.
    #[arg(long, default_value_t = 1)]
    violations: usize,
    /// Print how often each fault met each state of a site.
    #[arg(long)]
    coverage: bool,
    /// Append what was run to this file, as a row of its table.
    #[arg(long)]
    ledger: Option<PathBuf>,
}

fn parse_range(text: &str) -> Result<(u64, u64), String> {
    let (from, to) = text.split_once("..").ok_or("expected A..B")?;
    let number = |text: &str| text.parse::<u64>().map_err(|error| format!("{text}: {error}"));
    Ok((number(from)?, number(to)?))
}

/// Sums over seeds.
#[derive(Clone, Copy, Default)]
struct Totals {
    seeds: u64,
    outcome: Outcome,
}

impl Totals {
    fn add(&mut self, one: &Outcome) {
        let all = &mut self.outcome;
        self.seeds += 1;
        all.coverage.add(&one.coverage);
        all.readiness.add(&one.readiness);
        all.hosts.submitted += one.hosts.submitted;
        all.hosts.succeeded += one.hosts.succeeded;
        all.hosts.failed += one.hosts.failed;
        for (sum, value) in [
            (&mut all.crashes, one.crashes),
            (&mut all.replayed, one.replayed),
            (&mut all.updates, one.updates),
            (&mut all.events, one.events),
            (&mut all.virtual_ns, one.virtual_ns),
            (&mut all.acknowledged_writes, one.acknowledged_writes),
            (&mut all.excused_writes, one.excused_writes),
            (&mut all.solo_ranges, one.solo_ranges),
            (&mut all.checkpoints, one.checkpoints),
            (&mut all.catch_ups, one.catch_ups),
            (&mut all.cuts, one.cuts),
            (&mut all.takeovers, one.takeovers),
            (&mut all.unasked, one.unasked),
            (&mut all.stepped_down, one.stepped_down),
            (&mut all.forced, one.forced),
            (&mut all.stops, one.stops),
            (&mut all.scrubs, one.scrubs),
            (&mut all.written_behind, one.written_behind),
            (&mut all.extensions, one.extensions),
            (&mut all.extensions_refused, one.extensions_refused),
            (&mut all.fed, one.fed),
            (&mut all.third_crashes, one.third_crashes),
            (&mut all.lapsed, one.lapsed),
            (&mut all.heirs, one.heirs),
            (&mut all.given_up, one.given_up),
            (&mut all.splits, one.splits),
            (&mut all.copied_blocks, one.copied_blocks),
            (&mut all.installs, one.installs),
            (&mut all.installed_snapshots, one.installed_snapshots),
            (&mut all.replaced, one.replaced),
            (&mut all.adopted, one.adopted),
            (&mut all.thirds_replaced, one.thirds_replaced),
            (&mut all.thirds_copied, one.thirds_copied),
            (&mut all.logs_found, one.logs_found),
            (&mut all.snapshots, one.snapshots),
            (&mut all.snapshot_reads, one.snapshot_reads),
            (&mut all.changes_told, one.changes_told),
            (&mut all.sent_by_value, one.sent_by_value),
            (&mut all.captured_blocks, one.captured_blocks),
            (&mut all.reclaimed_blocks, one.reclaimed_blocks),
            (&mut all.rotten_blocks, one.rotten_blocks),
            (&mut all.repaired_blocks, one.repaired_blocks),
            (&mut all.comparisons, one.comparisons),
        ] {
            *sum += value;
        }
    }

    fn print(&self, took: Duration) {
        let each = |sum: u64| sum as f64 / self.seeds.max(1) as f64;
        let Outcome { hosts, .. } = self.outcome;
        println!(
            "{} seeds in {:.1} s, {:.1} seeds/s",
            self.seeds,
            took.as_secs_f64(),
            self.seeds as f64 / took.as_secs_f64()
        );
        println!(
            "a seed on average: {:.0} operations ({:.0} failed), {:.1} crashes, {:.0} events, {:.0} ms of virtual time",
            each(hosts.submitted),
            each(hosts.failed),
            each(self.outcome.crashes),
            each(self.outcome.events),
            each(self.outcome.virtual_ns) / 1e6
        );
        println!(
            "in all: {} acknowledged writes, {} updates replayed, {} checkpoints, {} catch-ups, {} tail cuts, {} \
             takeovers ({} with nobody fenced), {} times the primary was to step down and {} times to go on after it had left, {} split brains, {} solo ranges, {} writes lost as their level allows",
            self.outcome.acknowledged_writes,
            self.outcome.replayed,
            self.outcome.checkpoints,
            self.outcome.catch_ups,
            self.outcome.cuts,
            self.outcome.takeovers,
            self.outcome.unasked,
            self.outcome.stepped_down,
            self.outcome.forced,
            self.outcome.splits,
            self.outcome.solo_ranges,
            self.outcome.excused_writes,
        );
        println!(
            "of upkeep: {} times a site was stopped, {} scrubs while hosts were at work, {} operations of hosts that were to write where another site had taken over",
            self.outcome.stops, self.outcome.scrubs, self.outcome.written_behind
        );
        println!(
            "of volumes: {} times one was extended, {} times it was refused",
            self.outcome.extensions, self.outcome.extensions_refused
        );
        println!(
            "of resyncs: {} blocks copied, {} times gone on after a restart, {} times installed, with {} snapshots; {} times a site was formatted \
             anew, {} pairs began with contents of one site",
            self.outcome.copied_blocks,
            self.outcome.logs_found,
            self.outcome.installs,
            self.outcome.installed_snapshots,
            self.outcome.replaced,
            self.outcome.adopted
        );
        println!(
            "of snapshots: {} taken, {} reads, {} blocks told whether they changed, {} updates sent with what they overwrote, \
             {} blocks captured and {} slots reclaimed since the sites' last starts",
            self.outcome.snapshots,
            self.outcome.snapshot_reads,
            self.outcome.changes_told,
            self.outcome.sent_by_value,
            self.outcome.captured_blocks,
            self.outcome.reclaimed_blocks
        );
        println!(
            "of third sites: {} updates sent to them, {} deaths, {} times with new disks, {} times told that they have lapsed, {} times copied what \
             they lacked; {} took over, and {} promised updates were given up",
            self.outcome.fed,
            self.outcome.third_crashes,
            self.outcome.thirds_replaced,
            self.outcome.lapsed,
            self.outcome.thirds_copied,
            self.outcome.heirs,
            self.outcome.given_up
        );
        let seen = self.outcome.readiness;
        println!(
            "of readiness: {} sites lost for good; {} times the delta was promised and the third went on, {} times refused, {} times promised, \
             and hosts overran the journal first, {} times nobody could tell",
            seen.disasters, seen.resumed, seen.refused, seen.overrun, seen.void
        );
        println!(
            "of promises: {} judged; {} yes and {} no, rightly; no, though the journal had it: {} had not heard the third since the start, {} knew \
             less of it, {} were letting go of it, {} could not read it; {} yes of what the third had told, and was no more",
            seen.judged,
            seen.yes,
            seen.no,
            seen.unheard,
            seen.unknown,
            seen.letting_go,
            seen.unread,
            seen.outdated
        );
        println!(
            "of rot: {} blocks went bad, {} repairs since the sites' last starts; {} extents compared on both sites",
            self.outcome.rotten_blocks, self.outcome.repaired_blocks, self.outcome.comparisons
        );
    }
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    keep_panics(arguments.trace);
    let begun = Instant::now();
    let mut case = Case { operations: arguments.operations, far: arguments.far, ..Case::default() };
    case.leave_out(&arguments.without).map_err(anyhow::Error::msg).context("--without")?;
    if let Some(seed) = arguments.seed.filter(|_| arguments.minimise) {
        return make_smaller(Case { seed, ..case });
    }
    let whole = case.is_whole();
    let compared = arguments.far && !arguments.trace;
    let (from, to) = arguments.seed.map_or(arguments.seeds, |seed| (seed, seed + 1));
    ensure!(from < to, "--seeds {from}..{to} is empty");
    let next = AtomicU64::new(from);
    let totals = Mutex::new(Totals::default());
    let far = Mutex::new((0, FarSeen::default()));
    let violations: Mutex<Vec<Violation>> = Mutex::default();
    let until = arguments.minutes.map(|minutes| Duration::from_secs_f64(minutes * 60.0));
    let work = || {
        loop {
            let over = until.is_some_and(|until| begun.elapsed() > until);
            let enough = violations.lock().expect("no holder panics").len() >= arguments.violations;
            let seed = next.fetch_add(1, Relaxed);
            if over || enough || seed >= to {
                break;
            }
            let ran = if compared {
                run_far(seed).map(|seen| {
                    let (seeds, all) = &mut *far.lock().expect("no holder panics");
                    *seeds += u64::from(seen.is_some());
                    seen.iter().for_each(|seen| all.add(seen));
                    None
                })
            } else {
                run_case(&Case { seed, ..case.clone() }, arguments.trace).map(Some)
            };
            match ran {
                Ok(None) => {}
                Ok(Some(outcome)) => {
                    assert!(
                        !whole
                            || outcome.hosts.submitted >= HOST_OPERATIONS_MIN
                                && outcome.crashes >= CRASHES_MIN as u64
                    );
                    if arguments.hashes || arguments.seed.is_some() {
                        println!("seed {seed}: trace hash {:016x}", outcome.trace_hash);
                    }
                    totals.lock().expect("no holder panics").add(&outcome);
                }
                Err(violation) => {
                    println!("seed {}: {}", violation.seed, violation.what);
                    violations.lock().expect("no holder panics").push(violation);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        (0..arguments.jobs.max(1)).for_each(|_| drop(scope.spawn(work)));
    });
    let took = begun.elapsed();
    let totals = totals.into_inner().expect("no holder panics");
    let violations = violations.into_inner().expect("no holder panics");
    if compared {
        let (seeds, seen) = far.into_inner().expect("no holder panics");
        print_far(seeds, &seen, took);
    }
    if totals.seeds > 0 {
        totals.print(took);
        if arguments.coverage {
            println!("{}", totals.outcome.coverage.table());
        }
    }
    if let Some(ledger) = &arguments.ledger {
        append(ledger, from, &totals, &violations, took)
            .with_context(|| format!("cannot append to {}", ledger.display()))?;
    }
    match violations.first() {
        None => Ok(()),
        Some(first) => {
            println!(
                "replay with: lockstep-sim {} --trace, or make it smaller with --minimise (commit {})",
                Case { seed: first.seed, ..case },
                commit()
            );
            std::process::exit(1)
        }
    }
}

fn print_far(seeds: u64, seen: &FarSeen, took: Duration) {
    println!(
        "{seeds} seeds with a third and without it in {:.1} s: {} operations of hosts, each answered with the same words; {} seeds in which each was at \
         the same instant; {} operations at another one, at most {:.3} ms later and {:.3} ms earlier",
        took.as_secs_f64(),
        seen.operations,
        seen.alike,
        seen.moved,
        seen.later_ns_max as f64 / 1e6,
        seen.earlier_ns_max as f64 / 1e6
    );
    let troubles: Vec<_> =
        TROUBLES.iter().zip(seen.troubles).map(|(name, seeds)| format!("{name} {seeds}")).collect();
    println!("seeds whose third is or has: {}", troubles.join(", "));
    println!(
        "{:.0} days went by; a third was {:.1} days behind at most; {} were lost, {} warnings, {} lapses, each after a warning; {} times what was \
         said of one was judged; the primaries' journals went round {} times",
        seen.virtual_ns as f64 / DAY_NS,
        seen.age_ns_max as f64 / DAY_NS,
        seen.lost,
        seen.warnings,
        seen.lapses,
        seen.judged,
        seen.rounds
    );
}

/// Prints the arguments that run the smallest case found of a seed that fails.
fn make_smaller(case: Case) -> anyhow::Result<()> {
    let Err(first) = run_case(&case, false) else { bail!("{case} does not fail") };
    println!("{case}: {}", first.what);
    let mut runs = 0;
    let least = minimise(case, first.strikes, |case| {
        runs += 1;
        match run_case(case, false) {
            Ok(_) => Tried { strikes: 0, fails: false },
            Err(violation) => Tried { strikes: violation.strikes, fails: violation.place() == first.place() },
        }
    });
    println!("after {runs} runs, replay with: lockstep-sim {least} --trace (commit {})", commit());
    std::process::exit(1)
}

fn commit() -> String {
    let said = std::process::Command::new("git").args(["describe", "--always", "--dirty"]).output();
    said.ok()
        .filter(|said| said.status.success())
        .map_or("unknown".into(), |said| String::from_utf8_lossy(&said.stdout).trim().to_owned())
}

/// One row: commit, first seed, seeds, operations, crashes, seconds, result.
fn append(
    path: &Path,
    from: u64,
    totals: &Totals,
    violations: &[Violation],
    took: Duration,
) -> anyhow::Result<()> {
    let mut file = OpenOptions::new().append(true).create(true).open(path)?;
    if file.metadata()?.len() == 0 {
        writeln!(file, "# Simulator seeds\n")?;
        writeln!(
            file,
            "| commit | seeds | operations | crashes | seconds | result |\n|---|---|---|---|---|---|"
        )?;
    }
    let failed: Vec<_> = violations.iter().map(|violation| violation.seed.to_string()).collect();
    let result = if failed.is_empty() { "pass".into() } else { format!("violations: {}", failed.join(", ")) };
    let to = from + totals.seeds + violations.len() as u64;
    writeln!(
        file,
        "| {} | {from}..{to} | {} | {} | {:.0} | {result} |",
        commit(),
        totals.outcome.hosts.submitted,
        totals.outcome.crashes,
        took.as_secs_f64()
    )?;
    Ok(())
}
