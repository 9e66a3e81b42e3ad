//! `lockstep demo three-sites`: a third site pulls from the pair under load, the primary is killed, and the third goes on from the second by
//! the delta while hosts write there (US 7,143,254).

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::json;

use super::hosts::Hosts;
use super::pair::{LOG, LOG_BYTES, Pair, Setup, THIRD};
use super::{Demo, READY_MAX, SETTLED_MAX, SiteSeen, judge, plant_loss, shown};
use crate::node::control::{Goal, ResumedShown};
use crate::reactor::Clock;

/// A copy of everything would move all of this.
pub const SETUP: Setup = Setup { data_bytes: 128 << 20, data_space: "sparse", third: true, ..Setup::STEADY };

/// Pause between two looks at the sites' numbers.
const LOOKS_EVERY: Duration = Duration::from_millis(2);

/// Looks at how far the third is behind while hosts write.
const LAG_LOOKS: u32 = 20;

/// The third's path is held up for so long before the first is lost: on one machine it would lack next to nothing.
const HELD_UP: Duration = Duration::from_millis(200);

struct Seen {
    /// The furthest that the third was behind while both sites of the pair were there, in updates.
    lag_updates: u64,
    /// And in time.
    lag_ms: f64,
    /// What the second said beforehand: whether the third could go on from there.
    delta: String,
    /// What the third lacked of all that the second had when it took over, and what it was sent of that.
    resumed: ResumedShown,
    /// From the promotion's command to the third having everything that the second had at that moment.
    resume: Duration,
    /// Updates that the second gave the third from then on, and those of its stream in all.
    fed_updates: u64,
    last: u64,
}

impl Demo {
    pub(super) fn run_three_sites(&self) -> anyhow::Result<()> {
        let mut pair = self.pair_in_lockstep(SETUP)?;
        pair.client(THIRD).wait(Goal::InSync, READY_MAX).map_err(|error| pair.explain(error.into()))?;
        let places = [pair.uri(0, LOG), pair.uri(1, LOG)];
        let acted = Hosts::write_while(&places, LOG_BYTES, &Clock::new(), || self.lose_the_first(&mut pair));
        let (mut hosts, seen) = acted.map_err(|error| pair.explain(error))?;
        for site in [1, 0] {
            pair.client(site).wait(Goal::Settled, SETTLED_MAX).map_err(|error| pair.explain(error.into()))?;
        }
        let last = pair.client(1).status()?.watermarks.last;
        third_has(&pair, last).map_err(|error| pair.explain(error))?;
        self.say("settled; reading all three sites back");
        if self.plant_loss {
            plant_loss(&mut hosts.0[0].ledger);
        }
        let mut sites = Vec::new();
        for site in 0..=THIRD {
            sites.push(hosts.look(&pair, site, LOG)?);
        }
        pair.stop()?;
        self.conclude_three_sites(&hosts, &seen, &sites)?;
        self.finish(pair);
        Ok(())
    }

    fn lose_the_first(&self, pair: &mut Pair) -> anyhow::Result<Seen> {
        let third = self.seconds / 3;
        let (mut lag_updates, mut lag_ms) = (0, 0.0f64);
        for _ in 0..LAG_LOOKS {
            std::thread::sleep(third / LAG_LOOKS);
            let seen = pair.client(0).status()?.third.context("the pair has a third")?;
            (lag_updates, lag_ms) = (lag_updates.max(seen.behind), lag_ms.max(seen.behind_ms));
        }
        self.say(&format!("far was at most {lag_updates} updates behind, and {lag_ms:.1} ms"));
        pair.hold_up(THIRD, true)?;
        std::thread::sleep(HELD_UP);
        let second = pair.client(1).status()?;
        // Where far found left to have more for a while, it has read from right before.
        let fed_before = second.totals.fed_updates;
        let said = second.third.context("the pair has a third")?;
        self.say(&format!(
            "far's path is held up for {}; right says of it: delta {}, {} updates",
            shown(HELD_UP),
            said.delta,
            said.delta_updates
        ));
        self.say("the primary is killed (SIGKILL); right is promoted, and far goes on from there");
        pair.kill(0)?;
        let begun = Instant::now();
        pair.client(1).promote(true, None)?;
        pair.hold_up(THIRD, false)?;
        third_has(pair, pair.client(1).status()?.watermarks.last)?;
        let resume = begun.elapsed();
        let resumed = third_resumed(pair)?;
        self.say(&format!("far had everything {} after the command, while hosts wrote", shown(resume)));
        std::thread::sleep(third);
        pair.start_again(0)?;
        pair.client(1).wait(Goal::InSync, READY_MAX)?;
        self.say("the old primary follows");
        std::thread::sleep(third);
        let status = pair.client(1).status()?;
        let last = status.watermarks.last;
        let fed_updates = status.totals.fed_updates - fed_before;
        ensure!(fed_updates < last, "far was sent {fed_updates} updates of {last}, which is no delta");
        Ok(Seen { lag_updates, lag_ms, delta: said.delta, resumed, resume, fed_updates, last })
    }

    fn conclude_three_sites(&self, hosts: &Hosts, seen: &Seen, sites: &[SiteSeen]) -> anyhow::Result<()> {
        let full_bytes = SETUP.data_bytes + LOG_BYTES;
        let ResumedShown { after, upto, lacked_bytes, sent_bytes, .. } = seen.resumed;
        if self.json {
            self.print_with_hosts(
                hosts,
                sites,
                &json!({
                    "third_lag_updates": seen.lag_updates,
                    "third_lag_ms": seen.lag_ms,
                    "delta": seen.delta,
                    "delta_updates": upto - after,
                    "delta_bytes": sent_bytes,
                    "lacked_bytes": lacked_bytes,
                    "full_bytes": full_bytes,
                    "resume_ms": seen.resume.as_secs_f64() * 1000.0,
                    "third_read_from_second": seen.fed_updates,
                    "updates": seen.last,
                }),
            );
        } else {
            self.say_with_hosts(hosts, sites);
            let Seen { fed_updates, last, .. } = seen;
            say!(
                "far read {fed_updates} of {last} updates from the second site, and the others from the first"
            );
            say!(
                "of the {} updates that it lacked there, {lacked_bytes} bytes, {sent_bytes} bytes moved; a copy of all would be {full_bytes}",
                upto - after
            );
        }
        judge(sites)
    }
}

/// Waits until the second knows that the third has all that it had when it took over.
fn third_resumed(pair: &Pair) -> anyhow::Result<ResumedShown> {
    let begun = Instant::now();
    loop {
        let third = pair.client(1).status()?.third.context("the pair has a third")?;
        if let Some(resumed) = third.resumed.filter(|resumed| resumed.took_ms.is_some()) {
            return Ok(resumed);
        }
        ensure!(begun.elapsed() < READY_MAX, "the third site has not gone on from the second");
        std::thread::sleep(LOOKS_EVERY);
    }
}

/// Waits until the third has everything up to `number`, durably.
fn third_has(pair: &Pair, number: u64) -> anyhow::Result<()> {
    let begun = Instant::now();
    while pair.client(THIRD).status()?.watermarks.durable < number {
        ensure!(begun.elapsed() < READY_MAX, "the third site lacks updates up to #{number}");
        std::thread::sleep(LOOKS_EVERY);
    }
    Ok(())
}
