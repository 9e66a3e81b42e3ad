//! The floor "NBD to memory": the NBD front alone, over a group that answers from memory at once. What fio measures here
//! is what sockets and protocol cost; no target behind this front can be faster.
//!
//! `cargo run --release --example nbd_memory -- SOCKET MIB [spin|adaptive|park] [apart] [tcp]`, until SIGINT or SIGTERM.
//! `apart` gives the group a thread of its own; `tcp` listens on a port of loopback, too.

#[path = "../tests/support/nbd_group.rs"]
mod nbd_group;
#[path = "../tests/support/nbd_server.rs"]
mod nbd_server;

use anyhow::{Context, bail};
use lockstep::base::BLOCK_BYTES;
use lockstep::reactor::IdlePolicy;
use nbd_server::{Server, Setup};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

fn main() -> anyhow::Result<()> {
    const USAGE: &str = "usage: nbd_memory SOCKET MIB [spin|adaptive|park] [apart] [tcp]";
    let mut arguments = std::env::args().skip(1);
    let socket = arguments.next().context(USAGE)?;
    let mebibytes: u64 = arguments.next().context(USAGE)?.parse().context(USAGE)?;
    let blocks = (mebibytes << 20) / BLOCK_BYTES as u64;
    let mut setup = Setup { pages: 16_384, idle: IdlePolicy::default(), ..Setup::new(socket.into(), blocks) };
    for argument in arguments {
        match argument.as_str() {
            "spin" => setup.idle = IdlePolicy::Spin,
            "adaptive" => setup.idle = IdlePolicy::default(),
            "park" => setup.idle = IdlePolicy::Park,
            "apart" => setup.apart = true,
            "tcp" => setup.tcp = true,
            _ => bail!(USAGE),
        }
    }
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let server = Server::start(&setup);
    if let Some(address) = server.tcp {
        println!("nbd://{address}/disk");
    }
    signals.forever().next();
    println!("{} requests", server.taken.load(std::sync::atomic::Ordering::Relaxed));
    server.stop();
    Ok(())
}
