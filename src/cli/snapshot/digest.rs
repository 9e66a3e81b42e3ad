//! `lockstep snapshot digest`: what a snapshot holds, in few enough characters to compare two sites.

use std::time::Duration;

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::{find, uri_of, volumes_of};
use crate::cli::ConfigArgument;
use crate::cli::load::size;
use crate::node::load::digest;

#[derive(clap::Args)]
pub struct Digest {
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

impl Digest {
    pub fn run(&self) -> anyhow::Result<()> {
        let config = self.config.load()?;
        let snapshot = find(&config, &self.name)?;
        if self.rate == 0 {
            bail!("at 0 bytes a second it would never end; write a --rate like 256MiB");
        }
        let bar = progress_bar()?;
        let mut digests = Vec::new();
        for volume in volumes_of(&snapshot, &self.volumes)? {
            bar.set_message(volume.clone());
            let uri = uri_of(&config, &volume, Some(&self.name));
            let digest = digest(&uri, Some(self.rate), &mut |done, total| {
                bar.set_length(total);
                bar.set_position(done);
            })?;
            digests.push((volume, digest));
        }
        bar.finish_and_clear();
        if self.json {
            let volumes: Vec<_> = digests
                .iter()
                .map(|(volume, digest)| json!({ "volume": volume, "digest": digest }))
                .collect();
            println!("{:#}", json!({ "name": snapshot.name, "number": snapshot.number, "volumes": volumes }));
        } else {
            digests.iter().for_each(|(volume, digest)| println!("{digest}  {volume}@{}", self.name));
        }
        Ok(())
    }
}

/// Shown on a terminal only.
pub(super) fn progress_bar() -> anyhow::Result<ProgressBar> {
    let template = "{msg} {bar:40} {bytes} of {total_bytes}, {eta} left";
    let style = ProgressStyle::with_template(template).context("the progress bar's template")?;
    let bar = ProgressBar::new(0).with_style(style);
    bar.enable_steady_tick(Duration::from_millis(200));
    Ok(bar)
}
