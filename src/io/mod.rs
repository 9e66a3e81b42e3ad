//! Floor 4: the drivers of production. An io_uring per reactor, the arena of pages, the disks, the sockets.

pub mod arena;
pub mod disk;
pub mod metadata;
pub mod nbd;
pub mod nbd_client;
pub mod quic;
pub mod ring;
