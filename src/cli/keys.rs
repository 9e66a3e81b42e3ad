//! `lockstep keys reload`: a running site takes keys that were replaced.

use clap::Subcommand;

use super::ConfigArgument;
use super::observe::{client, keys};

#[derive(Subcommand)]
pub enum KeysCommand {
    /// Let a running site read its identity, and what the other sites are known by, from its files anew
    Reload(Reload),
}

#[derive(clap::Args)]
pub struct Reload {
    #[command(flatten)]
    config: ConfigArgument,
    /// End the connection to a site that has shown what its list does not have any more; without, such a list is refused
    #[arg(long)]
    disconnect: bool,
}

impl KeysCommand {
    pub fn run(&self) -> anyhow::Result<()> {
        let KeysCommand::Reload(Reload { config, disconnect }) = self;
        let reloaded = client(config)?.reload_keys(*disconnect)?;
        for (name, shown) in &reloaded.links {
            keys(name, shown).iter().for_each(|line| say!("{line}"));
        }
        if reloaded.other_changes {
            say!("{} has other changes, too: they count from the next start on", config.config.display());
        }
        Ok(())
    }
}
