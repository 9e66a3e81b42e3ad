//! What telemetry costs a write: its clock reads, and cutting and recording its stamps.
//!
//! `cargo bench --bench telemetry`; fails if that is not small.

use std::hint::black_box;

use lockstep::base::Nanos;
use lockstep::core::config::AckLevel;
use lockstep::core::outbox::WriteStamps;
use lockstep::node::telemetry::Recorder;
use lockstep::reactor::Clock;
use rustix::time::{ClockId, clock_gettime};

const WRITES: u64 = 500_000;
const ROUNDS: usize = 15;

/// CPU time of one write at the rate that the design's prototype reached, 148,000 a second: what the share is of.
const WRITE_NS: f64 = 1e9 / 148_000.0;

/// What telemetry may cost: below what its absence would show in any comparison.
const PERCENT_MAX: f64 = 2.0;

/// Clock reads that exist only for stamps, a write: socket in, reply out, link popped and sent. The others are the turn's own,
/// shared by every message in it.
const CLOCK_READS: f64 = 4.0;

fn main() {
    let clock = Clock::new();
    let read = least(|| {
        for _ in 0..WRITES {
            black_box(clock.now());
        }
    });
    let mut recorder = Recorder::new();
    let record = least(|| {
        for index in 0..WRITES {
            recorder.write(black_box(&stamps(index)), AckLevel::Journaled);
        }
    });
    let total = CLOCK_READS * read + record;
    let percent = 100.0 * total / WRITE_NS;
    println!("clock read            {read:6.1} ns");
    println!("cut and record        {record:6.1} ns");
    println!("a write's telemetry   {total:6.1} ns, {percent:.2}% of {WRITE_NS:.0} ns");
    assert!(percent < PERCENT_MAX, "telemetry may cost {PERCENT_MAX}% of a write at most");
}

/// Stamps that scatter over a few hundred buckets, as a load's do.
fn stamps(index: u64) -> WriteStamps {
    let jitter = index.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48;
    let at = |nanos: u64| Nanos(1_000_000_000 + index * 7_000 + nanos + nanos * jitter / 65_536);
    WriteStamps {
        received_at: at(0),
        taken_at: at(800),
        numbered_at: at(900),
        old_read_ns: 0,
        journal_submitted_at: at(2_000),
        journaled_at: at(40_000),
        link_popped_at: at(2_500),
        sent_at: at(6_000),
        peer_acknowledged_at: at(if index.is_multiple_of(3) { 30_000 } else { 60_000 }),
        peer_journal_ns: 25_000,
        replied_at: at(61_000),
    }
}

/// Nanoseconds of CPU time a write, of the least disturbed round.
fn least(mut round: impl FnMut()) -> f64 {
    let cpu = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
    };
    let mut least = f64::INFINITY;
    for _ in 0..ROUNDS {
        let begun = cpu();
        round();
        least = least.min((cpu() - begun) / WRITES as f64);
    }
    least
}
