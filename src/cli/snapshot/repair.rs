//! `lockstep snapshot repair`: every block of a snapshot is read, and what has gone bad comes from the other site; or, without a
//! snapshot's name, the tables of a site that does not start because of them.

use std::time::Duration;

use anyhow::bail;
use serde_json::json;

use super::reading::Reading;
use crate::cli::ConfigArgument;
use crate::cli::load::size;
use crate::cli::observe::duration;
use crate::node::load::{Repaired, repair};
use crate::node::tables;

#[derive(clap::Args)]
pub struct Repair {
    #[command(flatten)]
    config: ConfigArgument,
    /// Of this volume only; can be given again. All that the snapshot has if not given
    #[arg(long = "volume", value_name = "VOLUME", requires = "name")]
    volumes: Vec<String>,
    /// Read at most so much a second, so that hosts are not disturbed
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "256MiB")]
    rate: u64,
    /// Without a name: give up if the other site cannot be reached for this long; the comparison may take longer
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "60s")]
    timeout: Duration,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// The snapshot to read at a running site. Without it: the site's damaged snapshot tables, while it does not run
    name: Option<String>,
}

impl Repair {
    pub fn run(&self) -> anyhow::Result<()> {
        match &self.name {
            Some(name) => self.blocks(name),
            None => self.tables(),
        }
    }

    fn blocks(&self, name: &str) -> anyhow::Result<()> {
        let reading = Reading::new(&self.config, &self.volumes, self.rate, name);
        let (snapshot, volumes) = reading.each(repair)?;
        if self.json {
            let volume = |(volume, Repaired { blocks, repaired, damaged }): &(String, Repaired)| json!({ "volume": volume, "blocks": blocks, "repaired": repaired, "damaged": damaged });
            let volumes: Vec<_> = volumes.iter().map(volume).collect();
            say!("{:#}", json!({ "name": snapshot.name, "number": snapshot.number, "volumes": volumes }));
        } else {
            for (volume, found) in &volumes {
                let Repaired { blocks, repaired, damaged } = found;
                let bad = damaged.len();
                say!("{volume}@{name}: {blocks} blocks, {repaired} repaired, {bad} damaged");
                damaged.iter().for_each(|block| say!("{volume}@{name} block {block} is damaged"));
            }
        }
        let damaged: usize = volumes.iter().map(|(_, found)| found.damaged.len()).sum();
        if damaged > 0 {
            bail!(
                "{damaged} blocks of {name} cannot be read, and the other site did not replace them: it is away, or its blocks are \
                 damaged as well (its log and this site's say which)"
            );
        }
        Ok(())
    }

    fn tables(&self) -> anyhow::Result<()> {
        let config = self.config.load()?;
        let Some(repaired) = tables::repair(&config, self.timeout)? else {
            if self.json {
                say!("{:#}", json!({ "damage": null }));
            } else {
                say!("the snapshot tables {} are sound; nothing was changed", config.metadata.display());
            }
            return Ok(());
        };
        let tables::Repaired { damage, kept, snapshots, entries, applied, fetched, lost, staged } = &repaired;
        if self.json {
            let of = |lost: &tables::Lost| json!({ "snapshot": lost.snapshot, "volume": lost.volume, "block": lost.block });
            let lost: Vec<_> = lost.iter().map(of).collect();
            say!(
                "{:#}",
                json!({
                    "damage": damage, "kept": kept, "snapshots": snapshots, "entries": entries, "applied": applied.0,
                    "fetched_blocks": fetched, "lost": lost, "staged": staged,
                })
            );
        } else {
            say!("damaged: {damage}");
            if *staged {
                say!(
                    "the other site's tables are among what it has copied to this one, which the next start installs; the damaged file is {}",
                    kept.display()
                );
                say!("`lockstep run --config {}` starts the site", config.file.display());
                return Ok(());
            }
            say!(
                "repaired: {} snapshots and {entries} entries as of {applied}, {fetched} old blocks fetched; the damaged file is {}",
                snapshots.len(),
                kept.display()
            );
            for tables::Lost { snapshot, volume, block } in lost {
                say!("{volume}@{snapshot} block {block} is damaged");
            }
            say!("`lockstep run --config {}` starts the site", config.file.display());
        }
        if !lost.is_empty() {
            bail!(
                "{} blocks of snapshots are lost: the other site has them no more either. They are never served; delete the \
                 snapshots named above, or restore what they are needed for from a backup",
                lost.len()
            );
        }
        Ok(())
    }
}
