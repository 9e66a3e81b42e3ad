//! How the link fares, for whoever wants to show it.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};

use crossbeam_queue::ArrayQueue;

use super::connection::Problem;

/// Written by the link a few times a second, read by anyone. Each value is right by itself; together they may be of
/// different moments. Counts are the current connection's, or the last one's.
#[derive(Debug)]
pub struct LinkStats {
    pub connected: AtomicBool,
    /// Connections so far.
    pub connections: AtomicU32,
    /// Smoothed round trip of datagrams, in nanoseconds, without the peer's work.
    pub round_trip_ns: AtomicU64,
    pub datagrams_sent: AtomicU64,
    pub datagrams_received: AtomicU64,
    pub datagrams_lost: AtomicU64,
    pub bytes_sent: AtomicU64,
    pub bytes_received: AtomicU64,
    pub congestion_window_bytes: AtomicU64,
    /// UDP payload of the largest datagram sent.
    pub payload_bytes: AtomicU64,
    problem: ArrayQueue<Problem>,
}

impl LinkStats {
    pub(super) fn new() -> LinkStats {
        LinkStats {
            connected: AtomicBool::new(false),
            connections: AtomicU32::new(0),
            round_trip_ns: AtomicU64::new(0),
            datagrams_sent: AtomicU64::new(0),
            datagrams_received: AtomicU64::new(0),
            datagrams_lost: AtomicU64::new(0),
            bytes_sent: AtomicU64::new(0),
            bytes_received: AtomicU64::new(0),
            congestion_window_bytes: AtomicU64::new(0),
            payload_bytes: AtomicU64::new(0),
            problem: ArrayQueue::new(1),
        }
    }

    /// The latest reason why there is no connection, if one came up since the last call.
    pub fn take_problem(&self) -> Option<Problem> {
        self.problem.pop()
    }

    pub(super) fn set_problem(&self, problem: Problem) {
        self.problem.force_push(problem);
    }

    pub(super) fn update(&self, statistics: &quinn::ConnectionStats) {
        let path = &statistics.path;
        self.round_trip_ns.store(u64::try_from(path.rtt.as_nanos()).unwrap_or(u64::MAX), Relaxed);
        self.datagrams_sent.store(statistics.udp_tx.datagrams, Relaxed);
        self.datagrams_received.store(statistics.udp_rx.datagrams, Relaxed);
        self.datagrams_lost.store(path.lost_packets, Relaxed);
        self.bytes_sent.store(statistics.udp_tx.bytes, Relaxed);
        self.bytes_received.store(statistics.udp_rx.bytes, Relaxed);
        self.congestion_window_bytes.store(path.cwnd, Relaxed);
        self.payload_bytes.store(path.current_mtu.into(), Relaxed);
    }
}
