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
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// The sites are not the same.
#[derive(Debug, thiserror::Error)]
pub struct Differ {
    bytes: u64,
}

impl fmt::Display for Differ {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the sites hold different content in {}; docs/OPERATIONS.md on comparing the sites says how they become equal",
            bytes(self.bytes as f64)
        )
    }
}

impl Verify {
    pub fn run(&self) -> anyhow::Result<()> {
        if self.rate == 0 {
            bail!("at 0 bytes a second it would never end; write a --rate like 64MiB");
        }
        let bar = progress_bar()?;
        let verified = client(&self.config)?.verify(&self.volumes, self.rate, &mut |done, total| {
            bar.set_length(total);
            bar.set_position(done);
        })?;
        bar.finish_and_clear();
        if self.json {
            println!("{}", serde_json::to_string_pretty(&verified).context("the result as JSON")?);
        } else {
            print(&verified);
        }
        match verified.differing_bytes {
            0 => Ok(()),
            bytes => Err(Differ { bytes }.into()),
        }
    }
}

fn print(verified: &Verified) {
    let Verified { compared_bytes, differing_bytes, first_as_of, last_as_of, seconds, .. } = *verified;
    println!(
        "{} compared in {seconds:.1} s, as of #{first_as_of} to #{last_as_of}: {differing_bytes} bytes differ",
        bytes(compared_bytes as f64)
    );
    for extent in &verified.differing {
        println!("  {}: {} bytes at {}", extent.volume, extent.length, extent.offset);
    }
    if verified.more {
        println!("  and more");
    }
    for (damaged, whose) in
        [(verified.damaged_blocks_here, "this site"), (verified.damaged_blocks_there, "the other site")]
    {
        if damaged > 0 {
            println!(
                "  {damaged} blocks had gone bad on the disks of {whose}; its log says what became of them"
            );
        }
    }
}
