//! The commands that change which site serves hosts: `promote`, `switchover`, `demote`.

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

#[derive(clap::Args)]
pub struct Switchover {
    #[command(flatten)]
    config: ConfigArgument,
}

impl Switchover {
    pub fn run(&self) -> anyhow::Result<()> {
        let client = client(&self.config)?;
        client.switch_over()?;
        match client.status()?.role.as_str() {
            "primary" => println!("this site is the primary; hosts can connect"),
            _ => println!("this site is a secondary; hosts can connect to the other one"),
        }
        Ok(())
    }
}

#[derive(clap::Args)]
pub struct Demote {
    #[command(flatten)]
    config: ConfigArgument,
}

impl Demote {
    pub fn run(&self) -> anyhow::Result<()> {
        client(&self.config)?.demote()?;
        println!("nobody is primary; `lockstep promote` at the other site makes that one so");
        Ok(())
    }
}
