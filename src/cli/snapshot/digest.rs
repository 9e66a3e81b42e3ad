//! `lockstep snapshot digest`: what a snapshot holds, in few enough characters to compare two sites.

use serde_json::json;

use super::reading::Reading;
use crate::node::load::digest;

#[derive(clap::Args)]
pub struct Digest {
    #[command(flatten)]
    reading: Reading,
}

impl Digest {
    pub fn run(&self) -> anyhow::Result<()> {
        let Reading { json, name, .. } = &self.reading;
        let (snapshot, digests) =
            self.reading.each(|uri, rate, progress| digest(uri, Some(rate), progress))?;
        if *json {
            let volumes: Vec<_> = digests
                .iter()
                .map(|(volume, digest)| json!({ "volume": volume, "digest": digest }))
                .collect();
            say!("{:#}", json!({ "name": snapshot.name, "number": snapshot.number, "volumes": volumes }));
        } else {
            digests.iter().for_each(|(volume, digest)| say!("{digest}  {volume}@{name}"));
        }
        Ok(())
    }
}
