//! `lockstep snapshot diff`: what was changed between two snapshots, or since one.

use std::ops::Range;

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::reading::progress_bar;
use super::{find, uri_of, volumes_of};
use crate::cli::ConfigArgument;
use crate::node::control::SnapshotShown;
use crate::node::load::changes;

#[derive(clap::Args)]
pub struct Diff {
    #[command(flatten)]
    config: ConfigArgument,
    /// Of this volume only; can be given again. All that both have if not given
    #[arg(long = "volume", value_name = "VOLUME")]
    volumes: Vec<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// The older snapshot
    older: String,
    /// The newer one; the volumes as they are now if not given
    newer: Option<String>,
}

impl Diff {
    pub fn run(&self) -> anyhow::Result<()> {
        let config = self.config.load()?;
        let older = find(&config, &self.older)?;
        let newer = self.newer.as_ref().map(|name| find(&config, name)).transpose()?;
        if let Some(newer) = newer.as_ref().filter(|newer| newer.number <= older.number) {
            bail!("{} is not newer than {}; name the older one first", newer.name, older.name);
        }
        let bar = progress_bar()?;
        let mut volumes = Vec::new();
        for volume in volumes_of(&older, &self.volumes)? {
            let of_both = newer.as_ref().is_none_or(|newer| newer.volumes.contains(&volume));
            if !of_both && self.volumes.is_empty() {
                continue;
            }
            bar.set_message(volume.clone());
            let uri = uri_of(&config, &volume, self.newer.as_deref());
            let extents = changes(&uri, &self.older, &mut |done, total| {
                bar.set_length(total);
                bar.set_position(done);
            })
            .with_context(|| format!("the changes of {volume}"))?;
            volumes.push((volume, extents));
        }
        bar.finish_and_clear();
        if self.json {
            say!("{:#}", as_json(&older, newer.as_ref(), &volumes));
        } else {
            for (volume, extents) in &volumes {
                extents
                    .iter()
                    .for_each(|extent| say!("{:>16} {:>16}  {volume}", extent.start, length(extent)));
            }
        }
        Ok(())
    }
}

fn length(extent: &Range<u64>) -> u64 {
    extent.end - extent.start
}

fn as_json(
    older: &SnapshotShown,
    newer: Option<&SnapshotShown>,
    volumes: &[(String, Vec<Range<u64>>)],
) -> Value {
    let named = |snapshot: &SnapshotShown| json!({ "name": snapshot.name, "number": snapshot.number });
    let extent = |extent: &Range<u64>| json!({ "offset": extent.start, "length": length(extent) });
    let volume = |(volume, extents): &(String, Vec<Range<u64>>)| {
        json!({
            "volume": volume,
            "changed_bytes": extents.iter().map(length).sum::<u64>(),
            "extents": extents.iter().map(extent).collect::<Vec<_>>(),
        })
    };
    json!({
        "older": named(older),
        "newer": newer.map(named),
        "volumes": volumes.iter().map(volume).collect::<Vec<_>>(),
    })
}
