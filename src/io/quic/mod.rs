//! The replication link: QUIC between two sites, polled by the reactor.

pub mod connection;
pub mod identity;
mod runtime;
mod tls;
pub mod transport;
mod udp;

pub use tls::WrongIdentity;
