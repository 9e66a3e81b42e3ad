//! The scenario `snapshot`: taken while the load runs, compared between the sites, and what the hosts felt of each.

use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::{Value, json};

use super::pair::{NAMES, Pair, VOLUMES};
use crate::base::Nanos;
use crate::cli::load::fresh_seed;
use crate::node::load::{Timeline, digest};
use crate::reactor::Clock;

/// What hosts feel of a snapshot is looked for in this long from its creation on.
const WINDOW: Nanos = Nanos::from_millis(50);

pub(super) struct Taken {
    name: String,
    /// When it was asked for, and how long that took.
    asked_at: Nanos,
    took: Nanos,
}

/// Takes snapshots of the whole group, evenly over the time that the load runs.
pub(super) fn take(pair: &Pair, clock: &Clock, count: usize, time: Duration) -> anyhow::Result<Vec<Taken>> {
    let begun = Instant::now();
    let client = pair.client(0);
    let mut taken = Vec::new();
    for index in 1..=count {
        let due = time.mul_f64(index as f64 / (count + 1) as f64);
        std::thread::sleep(due.saturating_sub(begun.elapsed()));
        let name = format!("demo-{index}");
        let asked_at = clock.now();
        client.create_snapshot(&name, &[], false)?;
        taken.push(Taken { name, asked_at, took: clock.now().since(asked_at) });
    }
    Ok(taken)
}

/// A snapshot as both sites hold it.
pub(super) struct Compared {
    pub taken: Taken,
    pub number: u64,
    /// The primary's, the secondary's: of all volumes, one after the other.
    pub digests: [String; 2],
}

/// Reads every snapshot back at both sites.
pub(super) fn compare(pair: &Pair, taken: Vec<Taken>) -> anyhow::Result<Vec<Compared>> {
    let of_site = |site: usize| {
        let listed = pair.client(site).snapshots()?.snapshots;
        let number = |name: &str| listed.iter().find(|snapshot| snapshot.name == name).map(|it| it.number);
        let digests = taken.iter().map(|Taken { name, .. }| {
            let number = number(name).with_context(|| format!("{} has no snapshot {name}", NAMES[site]))?;
            let mut whole = String::new();
            for volume in VOLUMES {
                whole += &digest(&pair.uri(site, &format!("{volume}@{name}")), None, &mut |_, _| {})?;
            }
            Ok((number, whole))
        });
        digests.collect::<anyhow::Result<Vec<_>>>()
    };
    let (primary, secondary) = std::thread::scope(|scope| {
        let secondary = scope.spawn(|| of_site(1));
        (of_site(0), secondary.join())
    });
    let secondary = secondary.map_err(|_| anyhow::anyhow!("reading the secondary panicked"))??;
    let compared = taken.into_iter().zip(primary?.into_iter().zip(secondary)).map(
        |(taken, ((number, primary), (number_there, secondary)))| {
            anyhow::ensure!(
                number == number_there,
                "snapshot {} is #{number} at {} and #{number_there} at {}",
                taken.name,
                NAMES[0],
                NAMES[1]
            );
            Ok(Compared { taken, number, digests: [primary, secondary] })
        },
    );
    compared.collect()
}

pub(super) fn pause_ratio(compared: &[Compared], timeline: &Timeline) -> anyhow::Result<f64> {
    let moments: Vec<Nanos> = compared.iter().map(|snapshot| snapshot.taken.asked_at).collect();
    timeline
        .pause_ratio(&moments, WINDOW, fresh_seed())
        .context("no write was under way near any snapshot; let the load run longer")
}

pub(super) fn as_json(compared: &[Compared]) -> Vec<Value> {
    let one = |snapshot: &Compared| {
        json!({
            "name": snapshot.taken.name,
            "number": snapshot.number,
            "digest_primary": snapshot.digests[0],
            "digest_secondary": snapshot.digests[1],
        })
    };
    compared.iter().map(one).collect()
}

/// For people: each snapshot, and the latency of writes at a fixed rate before it and after.
pub(super) fn table(compared: &[Compared], timeline: &Timeline) -> String {
    let mut text = format!(
        "{:<10} {:>9} {:>10}   {:>35}   {:>35}   digests\n",
        "snapshot", "number", "taken in", "50 ms before: p50, p99, max", "50 ms after: p50, p99, max"
    );
    for Compared { taken, number, digests } in compared {
        let shown = |at: Nanos| {
            let latencies = timeline.around(at, WINDOW);
            let micros = |percentile| latencies.at_percentile_ns(percentile) / 1000;
            format!("{:>8} µs {:>8} µs {:>8} µs", micros(50.0), micros(99.0), micros(100.0))
        };
        let before = shown(Nanos(taken.asked_at.0.saturating_sub(WINDOW.0)));
        let equal = if digests[0] == digests[1] { "equal" } else { "DIFFERENT" };
        text += &format!(
            "{:<10} {number:>9} {:>7} µs   {before}   {}   {equal} {}\n",
            taken.name,
            taken.took.0 / 1000,
            shown(taken.asked_at),
            &digests[0][..16],
        );
    }
    text
}
