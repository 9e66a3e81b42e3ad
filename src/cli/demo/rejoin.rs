//! `lockstep demo rejoin`: the secondary is away for longer than the journal lasts, comes back under load, and is copied what has changed.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::hosts::Hosts;
use super::pair::{DATA, Pair, Setup};
use super::{Demo, READY_MAX, SETTLED_MAX, SiteSeen, judge, plant_loss, shown};
use crate::base::Nanos;
use crate::node::control::{Goal, Status};
use crate::reactor::Clock;

/// A small journal: the hosts write that much in a few seconds, and not while the secondary starts.
pub const SETUP: Setup =
    Setup { data_bytes: 64 << 20, journal_bytes: 64 << 20, on_peer_loss: "solo", ..Setup::STEADY };

/// How often the primary is asked how far it is.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Longest that this takes beyond a third of the whole: until the hosts have written what the journal does not hold, and until the secondary
/// has what it lacked.
const AWAY_MAX: Duration = Duration::from_secs(60);
const RETURN_MAX: Duration = Duration::from_secs(60);

struct Seen {
    rejoin: Duration,
    /// What the secondary lacked when the copy began, and what it was copied. What changes meanwhile comes with the updates that end
    /// the copy, or from the journal after it.
    changed_bytes: u64,
    resync_bytes: u64,
    /// When the hosts had written for a moment, when the secondary left, when the copy began, and when it was in lockstep again.
    steady_at: Nanos,
    left_at: Nanos,
    copied_at: Nanos,
    back_at: Nanos,
}

impl Demo {
    pub(super) fn run_rejoin(&self) -> anyhow::Result<()> {
        let mut pair = self.pair_in_lockstep(SETUP)?;
        let (places, clock) = ([pair.uri(0, DATA)], Clock::new());
        let acted = Hosts::write_while(&places, SETUP.data_bytes, &clock, || self.rejoin(&mut pair, &clock));
        let (mut hosts, seen) = acted.map_err(|error| pair.explain(error))?;
        for site in 0..2 {
            pair.client(site).wait(Goal::Settled, SETTLED_MAX).map_err(|error| pair.explain(error.into()))?;
        }
        self.say("settled; reading both sites back");
        if self.plant_loss {
            plant_loss(&mut hosts.0[0].ledger);
        }
        let sites = [hosts.look(&pair, 0, DATA)?, hosts.look(&pair, 1, DATA)?];
        pair.stop()?;
        self.conclude_rejoin(&hosts, &seen, &sites)?;
        self.finish(pair);
        Ok(())
    }

    fn rejoin(&self, pair: &mut Pair, clock: &Clock) -> anyhow::Result<Seen> {
        let third = self.seconds / 3;
        let steady_at = clock.now();
        std::thread::sleep(third);
        self.say("the secondary is stopped; the primary goes on alone");
        let left_at = clock.now();
        let written = |status: &Status| status.totals.written_bytes;
        let before = written(&pair.client(0).status()?);
        pair.stop_one(1)?;
        let gone = Instant::now();
        let away = loop {
            std::thread::sleep(LOOK_EVERY);
            let status = pair.client(0).status()?;
            // More than the ring takes: its tail has passed whatever the secondary has.
            if written(&status) - before > SETUP.journal_bytes && gone.elapsed() > third {
                break status;
            }
            ensure!(
                gone.elapsed() < third + AWAY_MAX,
                "hosts wrote too little in {} s",
                gone.elapsed().as_secs()
            );
        };
        self.say(&format!(
            "{} were written, {} have changed, the journal holds {}: the secondary starts again",
            mebibytes(written(&away) - before),
            mebibytes(changed(&away)),
            mebibytes(SETUP.journal_bytes)
        ));
        let begun = Instant::now();
        pair.start_again(1)?;
        let (copied_at, changed_bytes) = self.watch_copy(pair, clock)?;
        pair.client(0).wait(Goal::InSync, READY_MAX)?;
        let (rejoin, back_at) = (begun.elapsed(), clock.now());
        let resync_bytes = pair.client(0).status()?.totals.resync_bytes;
        self.say(&format!(
            "in lockstep {} after its start; it was copied {}",
            shown(rejoin),
            mebibytes(resync_bytes)
        ));
        std::thread::sleep(third);
        Ok(Seen { rejoin, changed_bytes, resync_bytes, steady_at, left_at, copied_at, back_at })
    }

    /// Shows how far the copy is until the secondary is back. Returns when it began, and how much had changed by then.
    fn watch_copy(&self, pair: &Pair, clock: &Clock) -> anyhow::Result<(Nanos, u64)> {
        let template = "copied {bytes} of {total_bytes} {bar:40} {elapsed}";
        let style = ProgressStyle::with_template(template).context("the progress bar's template")?;
        let bar = ProgressBar::new(0).with_style(style);
        let begun = Instant::now();
        let mut began = None;
        loop {
            let status = pair.client(0).status()?;
            let peer = status.peer.as_ref().context("the primary has a peer")?;
            if peer.state == "resyncing" {
                began.get_or_insert_with(|| (clock.now(), changed(&status)));
            }
            if let Some(resync) = peer.resync {
                bar.set_length(resync.left_bytes + resync.copied_bytes);
                bar.set_position(resync.copied_bytes);
            }
            if peer.state == "in_sync" {
                bar.finish_and_clear();
                return began.context("the secondary was back without a copy");
            }
            ensure!(
                begun.elapsed() < RETURN_MAX,
                "the secondary is not back after {} s: {}",
                RETURN_MAX.as_secs(),
                peer.state
            );
            std::thread::sleep(LOOK_EVERY);
        }
    }

    fn conclude_rejoin(&self, hosts: &Hosts, seen: &Seen, sites: &[SiteSeen]) -> anyhow::Result<()> {
        let before = hosts.p99(seen.steady_at, seen.left_at)?;
        let copying = hosts.p99(seen.copied_at, seen.back_at)?;
        if self.json {
            let ms = |time: Nanos| time.0 as f64 / 1e6;
            let figures = json!({
                "rejoin_ms": seen.rejoin.as_secs_f64() * 1000.0,
                "changed_bytes": seen.changed_bytes,
                "resync_bytes": seen.resync_bytes,
                "host_p99_before_ms": ms(before),
                "host_p99_during_copy_ms": ms(copying),
            });
            self.print_with_hosts(hosts, sites, &figures);
        } else {
            self.say_with_hosts(hosts, sites);
            say!(
                "{} had changed and {} were copied; p99 of the hosts' writes {} before, {} during the copy",
                mebibytes(seen.changed_bytes),
                mebibytes(seen.resync_bytes),
                shown(Duration::from_nanos(before.0)),
                shown(Duration::from_nanos(copying.0))
            );
        }
        judge(sites)
    }
}

fn changed(status: &Status) -> u64 {
    status.peer.as_ref().map_or(0, |peer| peer.changed_bytes)
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / (1 << 20) as f64)
}
