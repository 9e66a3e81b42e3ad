//! The commands that change which site serves hosts: `promote`.

use super::ConfigArgument;
use super::observe::client;

#[derive(clap::Args)]
pub struct Promote {
    #[command(flatten)]
    config: ConfigArgument,
    /// The other site is dead, or cut off from its hosts until it follows this one: what it acknowledged without this site is lost
    #[arg(long)]
    fenced: bool,
}

impl Promote {
    pub fn run(&self) -> anyhow::Result<()> {
        client(&self.config)?.promote(self.fenced)?;
        println!("this site is the primary, and alone; hosts can connect");
        Ok(())
    }
}
