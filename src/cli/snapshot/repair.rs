//! `lockstep snapshot repair`: every block of a snapshot is read, and what has gone bad comes from the other site.

use anyhow::bail;
use serde_json::json;

use super::digest::progress_bar;
use super::{find, uri_of, volumes_of};
use crate::cli::ConfigArgument;
use crate::cli::load::size;
use crate::node::load::{Repaired, repair};

#[derive(clap::Args)]
pub struct Repair {
    #[command(flatten)]
    config: ConfigArgument,
    /// Of this volume only; can be given again. All that the snapshot has if not given
    #[arg(long = "volume", value_name = "VOLUME")]
    volumes: Vec<String>,
    /// Read at most so much a second, so that hosts are not disturbed
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "256MiB")]
    rate: u64,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    name: String,
}

impl Repair {
    pub fn run(&self) -> anyhow::Result<()> {
        let config = self.config.load()?;
        let snapshot = find(&config, &self.name)?;
        if self.rate == 0 {
            bail!("at 0 bytes a second it would never end; write a --rate like 256MiB");
        }
        let bar = progress_bar()?;
        let mut volumes = Vec::new();
        for volume in volumes_of(&snapshot, &self.volumes)? {
            bar.set_message(volume.clone());
            let uri = uri_of(&config, &volume, Some(&self.name));
            let repaired = repair(&uri, self.rate, &mut |done, total| {
                bar.set_length(total);
                bar.set_position(done);
            })?;
            volumes.push((volume, repaired));
        }
        bar.finish_and_clear();
        if self.json {
            let volume = |(volume, found): &(String, Repaired)| json!({ "volume": volume, "blocks": found.blocks, "repaired": found.repaired, "damaged": found.damaged });
            let volumes: Vec<_> = volumes.iter().map(volume).collect();
            println!("{:#}", json!({ "name": snapshot.name, "number": snapshot.number, "volumes": volumes }));
        } else {
            for (volume, found) in &volumes {
                let Repaired { blocks, repaired, damaged } = found;
                println!(
                    "{volume}@{}: {blocks} blocks, {repaired} repaired, {} damaged",
                    self.name,
                    damaged.len()
                );
                damaged.iter().for_each(|block| println!("{volume}@{} block {block} is damaged", self.name));
            }
        }
        let damaged: usize = volumes.iter().map(|(_, found)| found.damaged.len()).sum();
        if damaged > 0 {
            bail!(
                "{damaged} blocks of {} cannot be read, and the other site did not replace them: it is away, or its blocks are \
                 damaged as well (its log and this site's say which)",
                self.name
            );
        }
        Ok(())
    }
}
