//! A network between two sites that delays and loses datagrams, each way alike, for `bench/relay` and for rehearsals by hand.
//!
//! `cargo run --release --example udp_relay -- LISTENER DELAY_US LOST_PPM` prints the address at which the dialing site is to find its
//! peer, and runs until SIGINT or SIGTERM; then it prints how many datagrams it forwarded and dropped.

#[allow(dead_code)]
#[path = "../tests/common/relay.rs"]
mod relay;

use std::sync::atomic::Ordering::Relaxed;

use anyhow::Context;
use relay::Relay;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// Which datagrams are lost is the same in every run.
const SEED: u64 = 1;

fn main() -> anyhow::Result<()> {
    const USAGE: &str = "usage: udp_relay LISTENER DELAY_US LOST_PPM";
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [listener, delay_us, lost_ppm] = arguments.as_slice() else { anyhow::bail!(USAGE) };
    let relay = Relay::start(listener.parse().context(USAGE)?, SEED).context("cannot relay")?;
    for way in relay.both() {
        way.delay_us.store(delay_us.parse().context(USAGE)?, Relaxed);
        way.lost_ppm.store(lost_ppm.parse().context(USAGE)?, Relaxed);
    }
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    println!("{}", relay.address());
    signals.forever().next();
    let total = |of: fn(&relay::Way) -> u64| relay.both().iter().map(of).sum::<u64>();
    println!(
        "forwarded {} dropped {}",
        total(|way| way.forwarded.load(Relaxed)),
        total(|way| way.dropped.load(Relaxed))
    );
    Ok(())
}
