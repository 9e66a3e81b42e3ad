//! A disk with contents becomes a site's volume: they are kept, served at once, and copied to the other site, which is nobody's equal
//! before it has them.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use crate::pair::*;

const BLOCK: usize = 4096;
const VOLUME_MIB: u64 = 64;
const BLOCKS: u64 = VOLUME_MIB * MIB / BLOCK as u64;

/// One block in so many has data.
const STEP: u64 = 5;

fn options() -> Options {
    Options {
        volumes: vec![("data", VOLUME_MIB)],
        journal_mib: 16,
        differential_mib: 16,
        ..Options::default()
    }
}

/// Content that no other block, and no other seed, has; never zeros.
fn content(block: u64, seed: u64) -> [u8; BLOCK] {
    let mut bytes = [0; BLOCK];
    let mut state = (block << 8 | seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for eight in bytes.as_chunks_mut::<8>().0 {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        *eight = state.to_le_bytes();
    }
    bytes
}

fn volume(site: &Site) -> PathBuf {
    site.directory.join("data.volume")
}

fn write_content(site: &Site, blocks: impl Iterator<Item = u64>, seed: u64) {
    let file = File::options().write(true).open(volume(site)).expect("the volume");
    blocks.for_each(|block| {
        file.write_all_at(&content(block, seed), block * BLOCK as u64).expect("written");
    });
}

/// The site's volume holds these from before, and the site begins with them.
fn adopt(site: &Site) {
    succeeds(lockstep(&["format", "--config", path(&site.config), "--adopt", "--force"]));
}

fn totals(site: &Site) -> [u64; 2] {
    let totals = &site.status()["totals"];
    ["resync_bytes", "resync_equal_bytes"].map(|what| totals[what].as_u64().expect("a number"))
}

/// So much was copied, and the pages of the tables of snapshots; all else was found to be equal.
fn copied(site: &Site, due: u64) {
    let [copied, equal] = totals(site);
    let tables = copied.checked_sub(due).expect("what differs is copied");
    assert!(tables <= 4 * BLOCK as u64, "{copied} bytes copied, {due} due");
    assert!(equal >= VOLUME_MIB * MIB - due, "{equal} bytes equal, {due} copied");
}

/// Both have the same in their files, once neither runs, and it is what is expected.
fn identical(sites: &mut Sites, due: impl Fn(u64) -> Option<u64>) {
    assert!(sites.left.stop().success() && sites.right.stop().success());
    let [left, right] = [&sites.left, &sites.right].map(|site| fs::read(volume(site)).expect("the volume"));
    for block in 0..BLOCKS {
        let at = block as usize * BLOCK..(block as usize + 1) * BLOCK;
        let expected = due(block).map_or([0; BLOCK], |seed| content(block, seed));
        assert!(left[at.clone()] == expected, "block {block} at the left site");
        assert!(right[at] == expected, "block {block} at the right site");
    }
}

#[test]
fn what_a_site_adopts_is_served_at_once_and_copied_to_the_empty_one() {
    for adopter in ["left", "right"] {
        let mut sites = Sites::format(&options());
        let own = if adopter == "left" { &sites.left } else { &sites.right };
        write_content(own, (0..BLOCKS).step_by(STEP as usize), 1);
        adopt(own);
        let [first, second] = if adopter == "left" {
            [&mut sites.left, &mut sites.right]
        } else {
            [&mut sites.right, &mut sites.left]
        };
        first.start();
        first.until("it serves", |site| site.status()["state"] == "serving");
        let status = first.status();
        assert_eq!((&status["role"], &status["solo"]), (&"primary".into(), &true.into()), "{status}");
        let mut client = first.connect("data");
        assert!(client.read(0, BLOCK as u32).expect("read") == content(0, 1));
        // It knows nothing of the other one's contents, and is nobody's successor once it has heard of them.
        second.start();
        second
            .until("it is being copied to", |site| site.log_text().contains("a resync of all blocks begins"));
        first.wait("--in-sync");
        let data = BLOCKS.div_ceil(STEP) * BLOCK as u64;
        // What has data, and nothing else.
        copied(first, data);
        succeeds(lockstep(&["verify", "--config", path(&first.config), "--rate", "1GiB"]));
        let mut other = second.connect_when_served("data");
        assert!(other.read(0, BLOCK as u32).expect("read") == content(0, 1));
        identical(&mut sites, |block| block.is_multiple_of(STEP).then_some(1));
        // And it stays so.
        sites.left.start();
        sites.right.start();
        let first = if adopter == "left" { &sites.left } else { &sites.right };
        first.wait("--in-sync");
        assert_eq!(totals(first), [0, 0], "nothing is copied twice");
    }
}

#[test]
fn hosts_write_while_what_was_adopted_is_copied() {
    let mut sites = Sites::format(&options());
    let image = sites.path("image");
    let files = sites.path("files");
    fs::create_dir(&files).expect("a folder");
    for index in 0..40u64 {
        fs::write(files.join(index.to_string()), content(index, 3).repeat(100)).expect("a file");
    }
    succeeds(tool(
        "mkfs.ext4",
        &[
            "-q",
            "-b",
            "4096",
            "-E",
            "lazy_itable_init=0",
            "-d",
            path(&files),
            path(&image),
            &format!("{VOLUME_MIB}M"),
        ],
    ));
    succeeds(tool("cp", &["--sparse=always", path(&image), path(&volume(&sites.left))]));
    adopt(&sites.left);
    sites.left.start();
    let mut client = sites.left.connect_when_served("data");
    // What ext4 does not use of the last eight MiB is the hosts'.
    let from = BLOCKS - 512;
    let ends = AtomicBool::new(false);
    let (left, right) = (&sites.left, &mut sites.right);
    let written = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut written = 0;
            while !ends.load(Relaxed) {
                let block = from + written % 64;
                client.write(block * BLOCK as u64, &content(block, 4), false).expect("written");
                written += 1;
                std::thread::sleep(Duration::from_millis(2));
            }
            client.flush().expect("flushed");
            written
        });
        right.start();
        left.wait("--in-sync");
        ends.store(true, Relaxed);
        writer.join().expect("it ends")
    });
    assert!(written > 64, "hosts wrote meanwhile");
    let data = data_bytes(&image);
    let [copied, equal] = totals(&sites.left);
    println!(
        "{data} bytes with data in the image, {copied} copied, {equal} equal, {written} writes meanwhile"
    );
    // What hosts write may be copied as often as they write it.
    let most = data + (written + 4) * BLOCK as u64;
    assert!(copied >= data && copied <= most, "{copied} copied, {data} in the image, {written} writes");
    sites.wait("--settled");
    assert!(sites.left.stop().success() && sites.right.stop().success());
    succeeds(tool("cmp", &[path(&volume(&sites.left)), path(&volume(&sites.right))]));
    let out = File::open(volume(&sites.right)).expect("the volume");
    for block in from..from + 64 {
        let mut found = [0; BLOCK];
        out.read_exact_at(&mut found, block * BLOCK as u64).expect("read");
        assert!(found == content(block, 4), "block {block}");
    }
    succeeds(tool("e2fsck", &["-fn", path(&volume(&sites.right))]));
    for index in [0, 39] {
        let dumped = sites.path("dumped");
        let dump = format!("dump {index} {}", dumped.display());
        succeeds(tool("debugfs", &["-R", &dump, path(&volume(&sites.right))]));
        assert!(fs::read(&dumped).expect("the file") == content(index, 3).repeat(100));
    }
}

fn data_bytes(image: &Path) -> u64 {
    let bytes = fs::read(image).expect("the image");
    let blocks = bytes.chunks(BLOCK).filter(|block| block.iter().any(|byte| *byte != 0));
    (blocks.count() * BLOCK) as u64
}

#[test]
fn two_that_adopted_are_kept_apart_until_an_operator_names_one() {
    let mut sites = Sites::format(&options());
    // An older copy: what differs is the blocks of every hundredth place.
    for site in [&sites.left, &sites.right] {
        write_content(site, (0..BLOCKS).step_by(STEP as usize), 1);
    }
    write_content(&sites.left, (0..BLOCKS).step_by(100), 2);
    adopt(&sites.left);
    adopt(&sites.right);
    sites.right.start();
    sites.left.start();
    for site in [&mut sites.left, &mut sites.right] {
        site.until("it says what each has", |site| !site.status()["split_brain"].is_null());
        let status = site.status();
        assert_eq!(status["split_brain"]["common"], 0, "{status}");
        assert_eq!((&status["role"], &status["solo"]), (&"primary".into(), &true.into()), "{status}");
        assert_ne!(status["peer"]["state"], "in_sync");
        site.until("its log says so", |site| {
            site.log_text().contains("each site has contents that the other one never had")
        });
        let text = succeeds(lockstep(&["status", "--config", path(&site.config)]));
        assert!(text.contains("SPLIT BRAIN: each site has contents that the other one never had"), "{text}");
    }
    // Each serves its own.
    assert!(sites.left.connect("data").read(0, BLOCK as u32).expect("read") == content(0, 2));
    assert!(sites.right.connect("data").read(0, BLOCK as u32).expect("read") == content(0, 1));
    succeeds(lockstep(&["resolve", "--config", path(&sites.right.config), "--discard", "right", "--yes"]));
    sites.wait("--in-sync");
    let differs = BLOCKS.div_ceil(100) * BLOCK as u64;
    copied(&sites.left, differs);
    sites.wait("--settled");
    identical(&mut sites, |block| match block {
        block if block.is_multiple_of(100) => Some(2),
        block => block.is_multiple_of(STEP).then_some(1),
    });
}

#[test]
fn a_third_adopts_nothing() {
    let mut sites = Sites::format(&Options { third: true, ..options() });
    let [_, _, third] = sites.three();
    let before = fs::read(third.directory.join("journal")).expect("a journal");
    let said = fails(lockstep(&["format", "--config", path(&third.config), "--adopt", "--force"]));
    assert!(said.contains("a third site is given what the others have"), "{said}");
    assert!(fs::read(third.directory.join("journal")).expect("a journal") == before, "nothing was changed");
}
