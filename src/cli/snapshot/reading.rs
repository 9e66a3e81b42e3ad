//! Commands that read all of a snapshot: which of its volumes, how fast, and progress.

use std::time::Duration;

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};

use super::{find, uri_of, volumes_of};
use crate::cli::ConfigArgument;
use crate::cli::load::size;
use crate::io::nbd_client::NbdUri;
use crate::node::control::SnapshotShown;
use crate::node::load::LoadError;

#[derive(clap::Args)]
pub(super) struct Reading {
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
    pub json: bool,
    pub name: String,
}

impl Reading {
    pub fn new(config: &ConfigArgument, volumes: &[String], rate: u64, name: &str) -> Reading {
        let (config, volumes, name) = (config.clone(), volumes.to_vec(), name.to_owned());
        Reading { config, volumes, rate, json: false, name }
    }

    /// What `read` makes of each volume: it is given the export, the bytes a second, and whom to tell of bytes done and in all.
    pub fn each<T>(
        &self,
        read: impl Fn(&NbdUri, u64, &mut dyn FnMut(u64, u64)) -> Result<T, LoadError>,
    ) -> anyhow::Result<(SnapshotShown, Vec<(String, T)>)> {
        let config = self.config.load()?;
        let snapshot = find(&config, &self.name)?;
        if self.rate == 0 {
            bail!("at 0 bytes a second it would never end; write a --rate like 256MiB");
        }
        let bar = progress_bar()?;
        let mut made = Vec::new();
        for volume in volumes_of(&snapshot, &self.volumes)? {
            bar.set_message(volume.clone());
            let uri = uri_of(&config, &volume, Some(&self.name));
            let of_volume = read(&uri, self.rate, &mut |done, total| {
                bar.set_length(total);
                bar.set_position(done);
            })?;
            made.push((volume, of_volume));
        }
        bar.finish_and_clear();
        Ok((snapshot, made))
    }
}

/// Shown on a terminal only.
pub(in crate::cli) fn progress_bar() -> anyhow::Result<ProgressBar> {
    let template = "{msg} {bar:40} {bytes} of {total_bytes}, {eta} left";
    let style = ProgressStyle::with_template(template).context("the progress bar's template")?;
    let bar = ProgressBar::new(0).with_style(style);
    bar.enable_steady_tick(Duration::from_millis(200));
    Ok(bar)
}
