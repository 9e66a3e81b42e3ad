//! The commands that change which site serves hosts: `promote`, `switchover`, `demote`, `resolve`.

use super::ConfigArgument;
use super::observe::{bytes, client};
use crate::node::control::Status;

#[derive(clap::Args)]
pub struct Promote {
    #[command(flatten)]
    config: ConfigArgument,
    /// The other site is dead, or cut off from its hosts until it follows this one: what it acknowledged without this site is lost. Without
    /// this the command waits until the other one can answer nobody any more, or is refused
    #[arg(long)]
    fenced: bool,
    /// At a third: give up so many updates, which the command says are lost at least
    #[arg(long, value_name = "UPDATES")]
    accept_loss: Option<u64>,
}

impl Promote {
    pub fn run(&self) -> anyhow::Result<()> {
        client(&self.config)?.promote(self.fenced, self.accept_loss)?;
        say!("this site is the primary, and alone; hosts can connect");
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
            "primary" => say!("this site is the primary; hosts can connect"),
            _ => say!("this site is a secondary; hosts can connect to the other one"),
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
        say!("nobody is primary; `lockstep promote` at the other site makes that one so");
        Ok(())
    }
}

#[derive(clap::Args)]
pub struct Resolve {
    #[command(flatten)]
    config: ConfigArgument,
    /// The site whose history since the two parted is to go: this one, by its name
    #[arg(long, value_name = "SITE")]
    discard: String,
    /// Do it; without, only say what would be lost
    #[arg(long)]
    yes: bool,
}

impl Resolve {
    pub fn run(&self) -> anyhow::Result<()> {
        let client = client(&self.config)?;
        let status = client.status()?;
        if status.site == self.discard {
            loss(&status).iter().for_each(|line| say!("{line}"));
            if status.split_brain.is_some() && !self.yes {
                anyhow::bail!(
                    "nothing is changed: save what is worth saving through NBD, then give the command again with --yes"
                );
            }
        }
        client.resolve(&self.discard)?;
        say!(
            "{} gives way and takes no writes; it keeps what it has until it has been copied what the other site has: `lockstep wait \
             --in-sync` there waits for that",
            self.discard
        );
        Ok(())
    }
}

/// What is lost with this site, and what stays.
fn loss(status: &Status) -> Vec<String> {
    let (Some(split), Some(peer)) = (&status.split_brain, &status.peer) else { return Vec::new() };
    vec![
        format!(
            "discarding {} loses what it has after update {}: {} updates, {} of which hosts may have been told of, in {} of blocks at most",
            status.site,
            split.common,
            split.ours.updates,
            split.ours.acknowledged,
            bytes(peer.changed_bytes as f64)
        ),
        format!(
            "{} is kept, with {} updates after that, {} of which hosts may have been told of",
            peer.name, split.theirs.updates, split.theirs.acknowledged
        ),
    ]
}
