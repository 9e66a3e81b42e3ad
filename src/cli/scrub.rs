//! `lockstep scrub`: everything that a site has on its disks is read and compared with its checksums; what has gone bad comes from the
//! other site.

use std::time::Duration;

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};

use super::ConfigArgument;
use super::load::size;
use super::observe::{bytes, client};
use crate::node::control::{Client, PartShown, ScrubShown, TablesShown};

/// Pause between two looks at how far it is.
const LOOKS_EVERY: Duration = Duration::from_millis(200);

#[derive(clap::Args)]
pub struct Scrub {
    #[command(flatten)]
    config: ConfigArgument,
    /// Read at most so much a second; while hosts are at work, a scrub takes a tenth of the disk's time besides
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "64MiB")]
    rate: u64,
    /// End the scrub that is under way
    #[arg(long, conflicts_with = "rate")]
    stop: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Scrub {
    pub fn run(&self) -> anyhow::Result<()> {
        let client = client(&self.config)?;
        if self.stop {
            return Ok(client.scrub(0)?);
        }
        if self.rate == 0 {
            bail!("at 0 bytes a second it would never end; write a --rate like 64MiB, or --stop");
        }
        client.scrub(self.rate)?;
        let scrub = follow(&client)?;
        let ScrubShown { complete, bad_blocks, repaired_blocks, unrepaired_blocks, .. } = scrub;
        if self.json {
            say!("{}", serde_json::to_string_pretty(&scrub).context("the result as JSON")?);
        } else {
            say!(
                "{} read in {:.1} s: {bad_blocks} bad blocks, {repaired_blocks} repaired",
                bytes(scrub.read_bytes as f64),
                scrub.seconds
            );
            parts(&scrub).for_each(|(name, part)| {
                let PartShown { bad_blocks, repaired_blocks, .. } = part;
                let read = bytes(part.read_bytes as f64);
                say!("  {name:<20} {read:>10}, {bad_blocks} bad, {repaired_blocks} repaired");
            });
            let TablesShown { entries, damaged } = scrub.tables;
            let state = if damaged { "DAMAGED" } else { "sound" };
            say!("  {:<20} {entries:>10} entries, {state}", "snapshot tables");
            scrub.unrepaired.iter().for_each(|at| say!("{at} is damaged"));
        }
        if unrepaired_blocks > 0 {
            bail!(
                "{unrepaired_blocks} blocks are damaged and could not be repaired: what is in them is not served; this site's log says \
                 why, and what to do"
            );
        }
        if !complete {
            bail!(
                "it was ended at {} of {}",
                bytes(scrub.read_bytes as f64),
                bytes(scrub.total_bytes as f64)
            );
        }
        Ok(())
    }
}

/// What was read by its blocks.
fn parts(scrub: &ScrubShown) -> impl Iterator<Item = (&'static str, &PartShown)> {
    let ScrubShown { volumes, checksums, differential, journal, .. } = scrub;
    [
        ("volumes", volumes),
        ("checksum files", checksums),
        ("differential volume", differential),
        ("journal", journal),
    ]
    .into_iter()
}

/// Shows how far it is until it is over.
fn follow(client: &Client) -> anyhow::Result<ScrubShown> {
    let template = "{bar:40} {bytes} of {total_bytes}, {msg}";
    let style = ProgressStyle::with_template(template).context("the progress bar's template")?;
    let bar = ProgressBar::new(0).with_style(style);
    loop {
        let scrub = client.status()?.scrub.context("the site knows of no scrub")?;
        if !scrub.active {
            bar.finish_and_clear();
            return Ok(scrub);
        }
        bar.set_length(scrub.total_bytes);
        bar.set_position(scrub.read_bytes);
        let left = scrub.left_seconds.map(|left| format!("{left:.0} s left, ")).unwrap_or_default();
        bar.set_message(format!("{left}{} bad blocks", scrub.bad_blocks));
        std::thread::sleep(LOOKS_EVERY);
    }
}
