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
    let extent = |volume: &str, block: usize, count: usize| json!({ "volume": volume, "offset": block * BLOCK, "length": count * BLOCK });
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
