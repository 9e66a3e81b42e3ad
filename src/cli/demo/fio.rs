//! fio as the load, where it is installed with its NBD engine.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::{Map, Value, json};

use super::Seen;
use crate::io::nbd_client::NbdUri;
use crate::node::telemetry::PERCENTILES;

/// What fio calls itself, if it is there and can do NBD.
pub fn version() -> Option<String> {
    let quiet = |arguments: &[&str]| {
        let output = Command::new("fio").args(arguments).stdin(Stdio::null()).output().ok()?;
        output.status.success().then_some(output.stdout)
    };
    quiet(&["--enghelp=nbd"])?;
    Some(String::from_utf8_lossy(&quiet(&["--version"])?).trim().to_owned())
}

/// Runs fio for this long. It counts latency from submission to completion.
pub fn run(uri: &NbdUri, bytes: u64, depth: usize, time: Duration) -> anyhow::Result<Seen> {
    let percentiles: Vec<String> = PERCENTILES.iter().map(|(_, percentile)| percentile.to_string()).collect();
    let output = Command::new("fio")
        .args([
            "--name=demo",
            "--ioengine=nbd",
            "--rw=randwrite",
            "--bs=4k",
            "--time_based",
            "--output-format=json",
        ])
        .args(["--randrepeat=0", "--lat_percentiles=1", "--clat_percentiles=0", "--eta=never"])
        .arg(format!("--percentile_list={}", percentiles.join(":")))
        .arg(format!("--uri={uri}"))
        .arg(format!("--iodepth={depth}"))
        .arg(format!("--size={bytes}"))
        .arg(format!("--runtime={}ms", time.as_millis()))
        .stdin(Stdio::null())
        .output()
        .context("fio cannot be started")?;
    if !output.status.success() {
        bail!("fio failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    // fio may print notes before its JSON.
    let text = String::from_utf8_lossy(&output.stdout);
    let begin = text.find('{').context("fio printed no JSON")?;
    let result: Value = serde_json::from_str(&text[begin..]).context("fio's JSON")?;
    let write = &result["jobs"][0]["write"];
    let number =
        |value: &Value, what: &str| value.as_f64().with_context(|| format!("fio's JSON has no {what}"));
    let mut latency_us = Map::new();
    for (name, percentile) in PERCENTILES {
        let key = format!("{percentile:.6}");
        let nanos = number(&write["lat_ns"]["percentile"][&key], "latency percentiles")?;
        latency_us.insert(name.to_owned(), json!(nanos / 1000.0));
    }
    latency_us.insert("max".to_owned(), json!(number(&write["lat_ns"]["max"], "latency maximum")? / 1000.0));
    Ok(Seen {
        load: "fio",
        seconds: number(&write["runtime"], "runtime")? / 1000.0,
        iops: number(&write["iops"], "iops")?,
        latency_us,
    })
}
