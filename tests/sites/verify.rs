//! Both sites are compared while hosts write, and a difference is found to the block.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use lockstep::base::sum_of_block;
use serde_json::{Value, json};

use crate::pair::*;

const BLOCK: usize = 4096;

fn verify(site: &Site, arguments: &[&str]) -> (Option<i32>, Value, String) {
    let command = ["verify", "--config", path(&site.config), "--rate", "1GiB", "--json"];
    let output = lockstep(&[&command, arguments].concat());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), serde_json::from_slice(&output.stdout).unwrap_or_default(), said)
}

/// The site holds another block there, and its checksum is of that.
fn plant(site: &Site, volume: &str, block: usize) {
    let content = [0xd1; BLOCK];
    let file = |end: &str| {
        let path = site.directory.join(format!("{volume}.{end}"));
        File::options().write(true).open(path).expect("the file")
    };
    file("volume").write_all_at(&content, (block * BLOCK) as u64).expect("written");
    let sum = sum_of_block(&content).0.to_le_bytes();
    file("checksums").write_all_at(&sum, 4 * block as u64).expect("written");
}

#[test]
fn sites_are_compared_while_hosts_write_and_a_difference_is_found_to_the_block() {
    let volumes = vec![("data", 8), ("log", 4)];
    let mut sites = Sites::start(&Options { volumes, ..Options::default() });
    let mut client = sites.left.connect("data");
    for block in 0..512 {
        client.write((block * BLOCK) as u64, &[block as u8; BLOCK], false).expect("written");
    }
    client.flush().expect("flushed");
    sites.wait("--settled");
    let ends = AtomicBool::new(false);
    let whole = 12 * MIB;
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut written = 0u64;
            while !ends.load(Relaxed) {
                let block = written * 7919 % 500 + 12;
                client.write(block * BLOCK as u64, &[written as u8; BLOCK], false).expect("written");
                written += 1;
            }
            written
        });
        let compared: Vec<_> = (0..3).map(|_| verify(&sites.left, &[])).collect();
        ends.store(true, Relaxed);
        assert!(writer.join().expect("it ends") > 100, "hosts wrote meanwhile");
        for (code, said, why) in compared {
            assert_eq!((code, &said["differing_bytes"]), (Some(0), &json!(0)), "{said} {why}");
            assert_eq!(said["compared_bytes"], whole, "{said}");
            assert!(said["last_as_of"].as_u64() >= said["first_as_of"].as_u64(), "{said}");
        }
    });
    drop(client);
    let (code, said, _) = verify(&sites.left, &["--volume", "log"]);
    assert_eq!((code, &said["compared_bytes"]), (Some(0), &json!(4 * MIB)));
    for (site, arguments, why) in [
        (&sites.right, &[][..], "this site is not the primary"),
        (&sites.left, &["--volume", "other"], "has no volume other"),
    ] {
        let (code, _, said) = verify(site, arguments);
        assert!(code == Some(1) && said.contains(why), "{said}");
    }

    // Blocks that a site believes in.
    sites.wait("--settled");
    assert!(sites.right.stop().success());
    [(3, "data"), (4, "data"), (1500, "data"), (77, "log")]
        .iter()
        .for_each(|&(block, volume)| plant(&sites.right, volume, block));
    sites.right.start();
    sites.wait("--in-sync");
    let (code, said, why) = verify(&sites.left, &[]);
    let extent = |volume: &str, block: usize, count: usize| json!({ "volume": volume, "offset": block * BLOCK, "length": count * BLOCK, "repaired": false });
    assert_eq!(code, Some(7), "{said} {why}");
    let differing = json!([extent("data", 3, 2), extent("data", 1500, 1), extent("log", 77, 1)]);
    assert_eq!((&said["differing"], &said["differing_bytes"]), (&differing, &json!(4 * BLOCK)), "{said}");
    assert_eq!(said["damaged_blocks_there"], 0, "{said}");
    let text = lockstep(&["verify", "--config", path(&sites.left.config), "--rate", "1GiB"]);
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.contains("data: 8192 bytes at 12288") && text.contains("16384 bytes differ"), "{text}");
    // What is written at the primary is the same at both.
    for (volume, block) in [("data", 3), ("data", 4), ("data", 1500), ("log", 77)] {
        let mut client = sites.left.connect(volume);
        let bytes = client.read((block * BLOCK) as u64, BLOCK as u32).expect("read");
        client.write((block * BLOCK) as u64, &bytes, true).expect("written");
    }
    let (code, said, why) = verify(&sites.left, &[]);
    assert_eq!(code, Some(0), "{said} {why}");

    // What has gone bad on a disk is no difference: it is found and repaired on the way.
    sites.wait("--settled");
    let right = &mut sites.right;
    right.until("it is on the disk", |site| {
        let mut block = [1; BLOCK];
        let file = File::open(site.directory.join("data.volume")).expect("the volume");
        file.read_exact_at(&mut block, 4 * BLOCK as u64).expect("read");
        block == [4; BLOCK]
    });
    let file = File::options().write(true).open(right.directory.join("data.volume")).expect("the volume");
    file.write_all_at(&[5], 4 * BLOCK as u64 + 9).expect("written");
    let (code, said, why) = verify(&sites.left, &[]);
    assert_eq!((code, &said["damaged_blocks_there"]), (Some(0), &json!(1)), "{said} {why}");
    sites.right.until("the log says so", |site| site.log_text().contains("block 4 is repaired"));
}

/// Restarts the secondary with blocks that it believes in and the primary has not.
fn set_apart(sites: &mut Sites, blocks: &[usize]) {
    sites.wait("--settled");
    assert!(sites.right.stop().success());
    blocks.iter().for_each(|&block| plant(&sites.right, "data", block));
    sites.right.start();
    sites.wait("--in-sync");
}

#[test]
fn what_differs_becomes_what_the_named_site_has_while_hosts_write_and_in_snapshots_too() {
    for differential in ["reference", "value"] {
        let mut options = Options { volumes: vec![("data", 8)], ..Options::default() };
        options.group += &format!("\ndifferential = \"{differential}\"");
        let mut sites = Sites::start(&options);
        let mut client = sites.left.connect("data");
        for block in 0..1024 {
            client.write((block * BLOCK) as u64, &[block as u8; BLOCK], false).expect("written");
        }
        client.flush().expect("flushed");
        drop(client);
        succeeds(lockstep(&["snapshot", "create", "--config", path(&sites.left.config), "before"]));
        for (named, fill) in [("left", None), ("right", Some(0xd1))] {
            // Those up to 900 are not overwritten, so the snapshot shows what the volume has.
            let blocks = [3, 4, 700, 900, 1500];
            set_apart(&mut sites, &blocks);
            let ends = AtomicBool::new(false);
            let mut client = sites.left.connect("data");
            let (code, said, why) = std::thread::scope(|scope| {
                let writer = scope.spawn(|| {
                    let mut written = 0u64;
                    while !ends.load(Relaxed) {
                        let block = 950 + written * 7919 % 500;
                        client.write(block * BLOCK as u64, &[written as u8; BLOCK], false).expect("written");
                        written += 1;
                    }
                    written
                });
                let repaired = verify(&sites.left, &["--repair", named]);
                ends.store(true, Relaxed);
                assert!(writer.join().expect("it ends") > 20, "hosts wrote meanwhile");
                repaired
            });
            assert_eq!(code, Some(0), "{said} {why}");
            assert_eq!(
                (&said["differing_bytes"], &said["repaired_bytes"]),
                (&json!(5 * BLOCK), &json!(5 * BLOCK))
            );
            assert_eq!(
                said["differing"][0],
                json!({ "volume": "data", "offset": 3 * BLOCK, "length": 2 * BLOCK, "repaired": true })
            );
            let (code, said, why) = verify(&sites.left, &[]);
            assert_eq!(code, Some(0), "{said} {why}");
            sites.wait("--settled");
            for site in [&sites.left, &sites.right] {
                // Clients copy only what the map says is there: no host wrote this block at the site that was given it.
                if fill.is_some() {
                    let file = site.directory.join("copy");
                    succeeds(tool("qemu-img", &["convert", "-O", "raw", &site.uri("data"), path(&file)]));
                    let mut block = [0; BLOCK];
                    let copy = File::open(&file).expect("the copy");
                    copy.read_exact_at(&mut block, 1500 * BLOCK as u64).expect("read");
                    assert!(block == [0xd1; BLOCK], "{}: a hole, says the map", site.name);
                }
                let mut client = site.connect("data");
                let mut then = site.connect("data@before");
                for block in blocks {
                    let due = fill.unwrap_or(if block < 1024 { block as u8 } else { 0 });
                    let at = (block * BLOCK) as u64;
                    for client in [&mut client, &mut then] {
                        let read = client.read(at, BLOCK as u32).expect("read");
                        assert!(read.iter().all(|byte| *byte == due), "{named} {} {block}", site.name);
                    }
                }
            }
            let digest = |site: &Site| {
                succeeds(lockstep(&["snapshot", "digest", "--config", path(&site.config), "before"]))
            };
            assert_eq!(digest(&sites.left), digest(&sites.right), "{differential} {named}");
        }
        // What is overwritten now was the same at both.
        let mut client = sites.left.connect("data");
        [3, 4, 700, 900, 1500].iter().for_each(|block| {
            client.write(block * BLOCK as u64, &[1; BLOCK], false).expect("written");
        });
        client.flush().expect("flushed");
        sites.wait("--settled");
        let digest = |site: &Site| {
            succeeds(lockstep(&["snapshot", "digest", "--config", path(&site.config), "before"]))
        };
        assert_eq!(digest(&sites.left), digest(&sites.right), "{differential}");
        assert!(sites.right.runs());

        // It is refused where it would be wrong.
        let refused = |arguments: &[&str], why: &str| {
            let (code, _, said) = verify(&sites.left, arguments);
            assert!(code == Some(1) && said.contains(why), "{said}");
        };
        refused(
            &["--repair", "middle"],
            "there is no site middle that could be repaired by: this one is left, the other one right",
        );
        sites.right.kill();
        sites.left.until("it is lost", |site| site.status()["peer"]["state"] != "in_sync");
        let (code, _, said) = verify(&sites.left, &["--repair", "left"]);
        assert!(code == Some(1) && said.contains("not in lockstep"), "{said}");
    }
}
