//! The replication link: QUIC between two sites, polled by the reactor.

pub mod connection;
pub mod identity;
pub mod keys;
pub mod link;
mod runtime;
mod stats;
mod tls;
pub mod transport;
mod udp;

pub use stats::LinkStats;
pub use tls::WrongIdentity;
