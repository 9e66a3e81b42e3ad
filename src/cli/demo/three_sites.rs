//! `lockstep demo three-sites`: a third site pulls from the pair under load, the primary is killed, and the third goes on from the second by
//! the delta while hosts write there (US 7,143,254).

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::json;

use super::hosts::Hosts;
use super::pair::{LOG, LOG_BYTES, Pair, Setup, THIRD};
use super::{Demo, READY_MAX, SETTLED_MAX, SiteSeen, judge, plant_loss, shown};
use crate::node::control::Goal;
use crate::reactor::Clock;

pub const SETUP: Setup = Setup { data_bytes: 64 << 20, third: true, ..Setup::STEADY };

/// Pause between two looks at the sites' numbers.
const LOOKS_EVERY: Duration = Duration::from_millis(2);

/// Looks at how far the third is behind while hosts write.
const LAG_LOOKS: u32 = 20;

struct Seen {
    /// The furthest that the third was behind while both sites of the pair were there, in updates.
    lag_updates: u64,
    /// What the second said beforehand: whether the third could go on from there, and how much would move.
    delta: String,
    delta_updates: u64,
    /// From the promotion's command to the third having everything that the second had at that moment.
    caught_up: Duration,
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
        let mut lag_updates = 0;
        for _ in 0..LAG_LOOKS {
            std::thread::sleep(third / LAG_LOOKS);
            let status = pair.client(0).status()?;
            lag_updates = lag_updates.max(status.third.context("the pair has a third")?.behind);
        }
        let second = pair.client(1).status()?;
        // Where far found left to have more for a while, it has read from right before.
        let fed_before = second.totals.fed_updates;
        let said = second.third.context("the pair has a third")?;
        self.say(&format!(
            "far was at most {lag_updates} updates behind; right says of it: delta {}, {} updates",
            said.delta, said.delta_updates
        ));
        self.say("the primary is killed (SIGKILL); right is promoted, and far goes on from there");
        pair.kill(0)?;
        let begun = Instant::now();
        pair.client(1).promote(true, None)?;
        third_has(pair, pair.client(1).status()?.watermarks.last)?;
        let caught_up = begun.elapsed();
        self.say(&format!("far had everything {} after the command, while hosts wrote", shown(caught_up)));
        std::thread::sleep(third);
        pair.start_again(0)?;
        pair.client(1).wait(Goal::InSync, READY_MAX)?;
        self.say("the old primary follows");
        std::thread::sleep(third);
        let status = pair.client(1).status()?;
        let last = status.watermarks.last;
        let fed_updates = status.totals.fed_updates - fed_before;
        ensure!(fed_updates < last, "far was sent {fed_updates} updates of {last}, which is no delta");
        let (delta, delta_updates) = (said.delta, said.delta_updates);
        Ok(Seen { lag_updates, delta, delta_updates, caught_up, fed_updates, last })
    }

    fn conclude_three_sites(&self, hosts: &Hosts, seen: &Seen, sites: &[SiteSeen]) -> anyhow::Result<()> {
        if self.json {
            self.print_with_hosts(
                hosts,
                sites,
                &json!({
                    "third_lag_updates": seen.lag_updates,
                    "delta": seen.delta,
                    "delta_updates": seen.delta_updates,
                    "third_caught_up_ms": seen.caught_up.as_secs_f64() * 1000.0,
                    "third_read_from_second": seen.fed_updates,
                    "updates": seen.last,
                }),
            );
        } else {
            self.say_with_hosts(hosts, sites);
            let Seen { fed_updates, last, .. } = seen;
            println!(
                "far read {fed_updates} of {last} updates from the second site, and the others from the first"
            );
        }
        judge(sites)
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
