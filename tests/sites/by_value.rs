//! Differential data by value, between real sites.

use std::fs::File;
use std::os::unix::fs::FileExt;

use lockstep::base::sum_of_block;
use serde_json::Value;

use crate::pair::*;

const BLOCK: usize = 4096;

/// Blocks that one write covers.
const RUN: usize = 16;
const RUNS: usize = 32;

fn options(group: &str) -> Options {
    Options {
        // More than the cache holds: it would read all of it at start.
        volumes: vec![("data", 128)],
        differential_mib: 8,
        group: format!("{}\ndifferential = \"value\"\n{group}", Options::default().group),
        ..Options::default()
    }
}

fn write(sites: &Sites, fill: u8) {
    let mut client = sites.left.connect("data");
    for run in 0..RUNS {
        let bytes = [fill + run as u8; RUN * BLOCK];
        client.write((run * RUN * BLOCK) as u64, &bytes, false).expect("written");
    }
}

fn snapshot(site: &Site, verb: &str) -> String {
    succeeds(lockstep(&["snapshot", verb, "--config", path(&site.config), "old"]))
}

/// Both sites anew, so that nothing is in a cache: what is not settled when a site stops is replayed into it.
fn start_again(sites: &mut Sites) {
    sites.wait("--settled");
    assert!(sites.left.stop().success() && sites.right.stop().success());
    sites.start_both();
}

#[test]
fn what_a_write_overwrites_is_read_first_and_kept_by_both_sites() {
    let mut sites = Sites::start(&options(""));
    write(&sites, 1);
    start_again(&mut sites);
    // What is written before that goes by reference.
    sites.wait("--in-sync");
    snapshot(&sites.left, "create");
    write(&sites, 101);
    let shown = lockstep(&["histogram", "--config", path(&sites.left.config), "--format", "json"]);
    let report: Value = serde_json::from_str(&succeeds(shown)).expect("JSON");
    let stages = report["stages"].as_array().expect("stages");
    let old_read = stages.iter().find(|stage| stage["name"] == "old_read").expect("it is listed");
    assert_eq!(old_read["count"], RUNS, "{report:#}");
    sites.wait("--settled");
    assert_eq!(snapshot(&sites.left, "digest"), snapshot(&sites.right, "digest"));
    for site in [&mut sites.left, &mut sites.right] {
        let mut client = site.connect_when_served("data@old");
        for run in 0..RUNS {
            let bytes = client.read((run * RUN * BLOCK) as u64, (RUN * BLOCK) as u32).expect("read");
            assert!(bytes.iter().all(|byte| *byte == 1 + run as u8), "run {run} of {}", site.name);
        }
    }
}

#[test]
fn a_secondary_with_another_image_names_the_block_and_leaves() {
    let mut sites = Sites::start(&options("host_deadline = \"2s\""));
    write(&sites, 1);
    assert!(sites.left.stop().success() && sites.right.stop().success());
    // Other content, and the checksum of that: nothing on this site is wrong by itself.
    let other = [200; BLOCK];
    let changed = |file: &str, bytes: &[u8], at: usize| {
        let file = File::options().write(true).open(sites.right.directory.join(file)).expect("a file");
        file.write_all_at(bytes, at as u64).expect("written");
        file.sync_all().expect("synced");
    };
    changed("data.volume", &other, 5 * BLOCK);
    changed("data.checksums", &sum_of_block(&other).0.to_le_bytes(), 5 * 4);
    sites.start_both();
    snapshot(&sites.left, "create");
    let mut client = sites.left.connect("data");
    client.write((4 * BLOCK) as u64, &[9; BLOCK], false).expect("this one is the same at both sites");
    client.write((5 * BLOCK) as u64, &[9; BLOCK], false).expect_err("no site but one has it");
    sites.right.until("its log names the block", |right| {
        let text = right.log_text();
        ["data", "block 5", "snapshot old", "leaves the group"].iter().all(|part| text.contains(part))
    });
    assert_eq!(sites.right.status()["state"], "failed");
}
