//! `lockstep snapshot repair`: every block of a snapshot is read, and what has gone bad comes from the other site.

use anyhow::bail;
use serde_json::json;

use super::reading::Reading;
use crate::node::load::{Repaired, repair};

#[derive(clap::Args)]
pub struct Repair {
    #[command(flatten)]
    reading: Reading,
}

impl Repair {
    pub fn run(&self) -> anyhow::Result<()> {
        let Reading { json, name, .. } = &self.reading;
        let (snapshot, volumes) = self.reading.each(repair)?;
        if *json {
            let volume = |(volume, Repaired { blocks, repaired, damaged }): &(String, Repaired)| json!({ "volume": volume, "blocks": blocks, "repaired": repaired, "damaged": damaged });
            let volumes: Vec<_> = volumes.iter().map(volume).collect();
            println!("{:#}", json!({ "name": snapshot.name, "number": snapshot.number, "volumes": volumes }));
        } else {
            for (volume, found) in &volumes {
                let Repaired { blocks, repaired, damaged } = found;
                let bad = damaged.len();
                println!("{volume}@{name}: {blocks} blocks, {repaired} repaired, {bad} damaged");
                damaged.iter().for_each(|block| println!("{volume}@{name} block {block} is damaged"));
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
}
