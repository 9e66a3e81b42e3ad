//! `lockstep verify`: both sites' volumes are compared while hosts write.

use std::fmt;

use anyhow::{Context, bail};

use super::ConfigArgument;
use super::load::size;
use super::observe::{bytes, client};
use super::snapshot::progress_bar;
use crate::node::control::Verified;

#[derive(clap::Args)]
pub struct Verify {
    #[command(flatten)]
    config: ConfigArgument,
    /// Only this volume; may be given more than once
    #[arg(long = "volume", value_name = "NAME")]
    volumes: Vec<String>,
    /// Compare at most so much a second; while hosts are at work, it takes a tenth of the disks' time besides
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "64MiB")]
    rate: u64,
    /// Where the sites differ, let both hold what this one has, unless a host writes there meanwhile
    #[arg(long, value_name = "SITE")]
    repair: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// The sites are not the same.
#[derive(Debug, thiserror::Error)]
pub struct Differ {
    bytes: u64,
    /// Those that were to be repaired, and by the content of which site.
    unrepaired: Option<(u64, String)>,
}

impl fmt::Display for Differ {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.unrepaired {
            None => write!(
                f,
                "the sites hold different content in {}; find out which one is right, then give its name by --repair (docs/OPERATIONS.md on \
                 comparing the sites)",
                bytes(self.bytes as f64)
            ),
            Some((blocks, site)) => write!(
                f,
                "the sites still hold different content in {}: {blocks} blocks have gone bad at {site}, so they cannot be taken from there; its log \
                 has them. Repair by the other site's content, or write them anew",
                bytes(self.bytes as f64)
            ),
        }
    }
}

impl Verify {
    pub fn run(&self) -> anyhow::Result<()> {
        if self.rate == 0 {
            bail!("at 0 bytes a second it would never end; write a --rate like 64MiB");
        }
        let bar = progress_bar()?;
        let verified = client(&self.config)?.verify(
            &self.volumes,
            self.rate,
            self.repair.as_deref(),
            &mut |done, total| {
                bar.set_length(total);
                bar.set_position(done);
            },
        )?;
        bar.finish_and_clear();
        if self.json {
            say!("{}", serde_json::to_string_pretty(&verified).context("the result as JSON")?);
        } else {
            print(&verified);
        }
        match verified.differing_bytes - verified.repaired_bytes {
            0 => Ok(()),
            bytes => {
                let unrepaired = self.repair.clone().map(|site| (verified.unrepaired_blocks, site));
                Err(Differ { bytes, unrepaired }.into())
            }
        }
    }
}

fn print(verified: &Verified) {
    let Verified {
        compared_bytes, differing_bytes, repaired_bytes, first_as_of, last_as_of, seconds, ..
    } = *verified;
    say!(
        "{} compared in {seconds:.1} s, as of #{first_as_of} to #{last_as_of}: {differing_bytes} bytes differ{}",
        bytes(compared_bytes as f64),
        if repaired_bytes > 0 { format!("ed, {repaired_bytes} are the same now") } else { String::new() }
    );
    for extent in &verified.differing {
        let repaired = if extent.repaired { ", repaired" } else { "" };
        say!("  {}: {} bytes at {}{repaired}", extent.volume, extent.length, extent.offset);
    }
    if verified.more {
        say!("  and more");
    }
    for (damaged, whose) in
        [(verified.damaged_blocks_here, "this site"), (verified.damaged_blocks_there, "the other site")]
    {
        if damaged > 0 {
            say!("  {damaged} blocks had gone bad on the disks of {whose}; its log says what became of them");
        }
    }
}
