//! `lockstep extend`: more of a volume, while hosts are connected.

use super::ConfigArgument;
use super::observe::client;
use crate::node::config::quantity::{parse_size, show_size};

#[derive(clap::Args)]
pub struct Extend {
    #[command(flatten)]
    config: ConfigArgument,
    /// The volume, by its name
    volume: String,
    /// What it is to come to: at most its room
    #[arg(value_parser = parse_size)]
    size: u64,
}

impl Extend {
    pub fn run(&self) -> anyhow::Result<()> {
        client(&self.config)?.extend(&self.volume, self.size)?;
        say!(
            "volume {} has {} at all sites; hosts see that when they connect again",
            self.volume,
            show_size(self.size)
        );
        Ok(())
    }
}
