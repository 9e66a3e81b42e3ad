//! Sectors that cannot be read: what lay there comes from another site, is written anew, and is never made up.

use lockstep::format::nbd::NbdError;
use lockstep::io::nbd_client::NbdClient;

use crate::damage::*;
use crate::pair::*;
use crate::snapshots::snapshot;

/// Rules for such sectors of a disk: a write heals them.
fn bad_sectors(disk: &str, blocks: &[usize]) -> String {
    let rule = |block: &usize| {
        format!("[[rule]]\ndisk = \"{disk}\"\nop = \"read\"\nblock = {block}\nerrno = {}\n", libc::EIO)
    };
    blocks.iter().map(rule).collect()
}

fn large(third: bool) -> Sites {
    let sites = Sites::start(&Options { volumes: vec![("data", LARGE_MIB)], third, ..Options::default() });
    let mut client = sites.left.connect("data");
    for block in 0..BLOCKS {
        client.write((block * BLOCK) as u64, &old(block), true).expect("written");
    }
    drop(client);
    sites.wait("--settled");
    sites
}

fn restart_with(site: &mut Site, faults: &str) {
    assert!(site.stop().success());
    site.set_faults(faults);
    site.start();
}

fn read_all(client: &mut NbdClient, whose: &str) {
    let bytes = client.read(0, (BLOCKS * BLOCK) as u32).unwrap_or_else(|error| panic!("{whose}: {error}"));
    assert!((0..).zip(bytes.chunks(BLOCK)).all(|(block, bytes)| bytes == old(block)), "{whose}");
}

fn until_repaired(site: &mut Site, blocks: &[usize]) {
    for block in blocks {
        let named = [
            format!("block {block} cannot be read: Input/output error"),
            format!("block {block} is repaired: the block of"),
        ];
        site.until("the log says so", |site| named.iter().all(|named| site.log_text().contains(named)));
    }
    site.until("it is counted", |site| site.status()["totals"]["repaired_blocks"] == blocks.len());
}

#[test]
fn unreadable_blocks_of_a_volume_are_named_and_come_from_the_peer() {
    let mut sites = large(false);
    // Of the last one nothing was ever written.
    let bad = [0, 5, 6, 40, 20_000];
    for right in [true, false] {
        let site = if right { &mut sites.right } else { &mut sites.left };
        restart_with(site, &bad_sectors("volume:0", &bad));
        sites.wait("--in-sync");
        let site = if right { &mut sites.right } else { &mut sites.left };
        let mut client = site.connect_when_served("data");
        read_all(&mut client, site.name);
        assert_eq!(read(&mut client, bad[4]).as_deref(), Ok(&due(bad[4])[..]));
        until_repaired(site, &bad);
        let (scrubbed, said) = scrub(site);
        assert_eq!(outcome(&scrubbed), [0, 0, 0], "{scrubbed} {said}");
    }

    // At both: refused alone, named, and whole when it is written anew.
    for site in [&mut sites.left, &mut sites.right] {
        assert!(site.stop().success());
        site.set_faults(&bad_sectors("volume:0", &[7]));
    }
    sites.start_both();
    for site in [&mut sites.left, &mut sites.right] {
        let mut reader = site.connect_when_served("data");
        assert_eq!(read(&mut reader, 7), Err(NbdError::Io), "{}", site.name);
        assert_eq!(reader.read(0, (7 * BLOCK) as u32).expect("a read").len(), 7 * BLOCK);
        assert_eq!(read(&mut reader, 8).as_deref(), Ok(&old(8)[..]));
        let lost = "block 7 cannot be repaired, reading it fails: the block of";
        site.until("the log says so", |site| site.log_text().contains(lost));
        let (scrubbed, said) = scrub(site);
        assert_eq!(outcome(&scrubbed["volumes"]), [1, 0, 1], "{scrubbed} {said}");
    }
    let mut client = sites.left.connect("data");
    client.write((7 * BLOCK) as u64, &old(7), true).expect("written");
    for site in [&mut sites.left, &mut sites.right] {
        site.until("it is on the disk", |site| outcome(&scrub(site).0) == [0, 0, 0]);
        read_all(&mut site.connect("data"), site.name);
    }
}

#[test]
fn a_scrub_repairs_what_cannot_be_read_of_volumes_and_checksums() {
    let mut sites = large(false);
    let unread = [9, 10, 11_111, (LARGE_MIB * MIB) as usize / BLOCK - 1];
    // Checksums are read at the start, so theirs goes bad after it.
    let checksums = bad_sectors("checksums:0", &[3]).replace("errno", "after = 1\nerrno");
    restart_with(&mut sites.left, &(bad_sectors("volume:0", &unread) + &checksums));
    sites.wait("--in-sync");
    let (scrubbed, said) = scrub(&sites.left);
    assert_eq!(outcome(&scrubbed["volumes"]), [4, 4, 0], "{scrubbed} {said}");
    assert_eq!(outcome(&scrubbed["checksums"]), [1, 1, 0], "{scrubbed} {said}");
    assert_eq!(outcome(&scrub(&sites.left).0), [0, 0, 0]);

    // One of checksums that cannot be read at a start is named, and the site stays out: nobody knows what these blocks should be.
    restart_with(&mut sites.right, &bad_sectors("checksums:0", &[3]));
    let named = "failed at block 3: Input/output error";
    sites.right.until("the log says so", |site| site.log_text().contains(named));
    read_all(&mut sites.left.connect("data"), "left");
}

#[test]
fn an_unreadable_block_is_kept_for_a_snapshot_all_the_same() {
    let mut sites = large(false);
    restart_with(&mut sites.left, &bad_sectors("volume:0", &[11, 12]));
    sites.wait("--in-sync");
    succeeds(snapshot(&sites.left, &["create", "old"]));
    let mut client = sites.left.connect_when_served("data");
    for block in 10..14 {
        client.write((block * BLOCK) as u64, &[0xee; BLOCK], true).expect("written");
    }
    sites.wait("--settled");
    for site in [&mut sites.left, &mut sites.right] {
        let mut reader = site.connect_when_served("data@old");
        for block in 10..14 {
            assert_eq!(read(&mut reader, block).as_deref(), Ok(&old(block)[..]), "{} {block}", site.name);
        }
        assert_eq!(read(&mut site.connect("data"), 11).as_deref(), Ok(&[0xee; BLOCK][..]));
    }
    assert_eq!(outcome(&scrub(&sites.left).0), [0, 0, 0]);
}

#[test]
fn an_unreadable_slot_of_the_differential_volume_comes_from_the_peer() {
    let mut sites = with_old_blocks();
    let slots = [5, 33].map(|block| slot_of(&sites.right, block).expect("it was captured"));
    restart_with(&mut sites.right, &bad_sectors("differential", &slots));
    sites.wait("--in-sync");
    let mut reader = sites.right.connect_when_served("data@old");
    assert_eq!(read(&mut reader, 6).as_deref(), Ok(&old(6)[..]));
    assert_eq!(read(&mut reader, 5), Err(NbdError::Io), "it is asked for meanwhile");
    let repaired = "block 5 as of snapshot old is repaired";
    sites.right.until("the log says so", |site| site.log_text().contains(repaired));
    assert_eq!(read(&mut reader, 5).as_deref(), Ok(&old(5)[..]));
    let (scrubbed, said) = scrub(&sites.right);
    assert_eq!(outcome(&scrubbed["differential"]), [1, 1, 0], "{scrubbed} {said}");
    assert_eq!(read(&mut reader, 33).as_deref(), Ok(&old(33)[..]));
}

/// What cannot be read is left out: it is one old block that nobody has, and no reason to be without a second site.
#[test]
fn a_slot_that_cannot_be_read_keeps_no_peer_from_being_copied_the_rest() {
    let mut sites = Sites::start(&Options {
        volumes: vec![("data", 64)],
        journal_mib: 16,
        group: "on_peer_loss = \"solo\"\nlatency_budget = \"500ms\"\nheartbeat_interval = \"50ms\""
            .to_owned(),
        ..Options::default()
    });
    let mut client = sites.left.connect("data");
    for block in 0..8 {
        client.write((block * BLOCK) as u64, &old(block), true).expect("written");
    }
    sites.wait("--settled");
    sites.right.kill();
    sites.left.until("it is alone", |site| site.log_text().contains("solo from"));
    succeeds(snapshot(&sites.left, &["create", "old"]));
    // More than the journal holds, over and over the same.
    for written in (0..24 * MIB).step_by(256 * 1024) {
        client.write(written % (2 * MIB), &[0xee; 256 * 1024], false).expect("written");
    }
    drop(client);
    let slot = slot_of(&sites.left, 5).expect("it was captured");
    restart_with(&mut sites.left, &bad_sectors("differential", &[slot]));
    sites.right.start();
    sites.wait("--in-sync");
    let log = sites.left.log_text();
    assert!(log.contains(&format!("block {slot} cannot be read")), "{log}");
    for site in [&mut sites.left, &mut sites.right] {
        let mut reader = site.connect_when_served("data@old");
        assert_eq!(read(&mut reader, 5), Err(NbdError::Io), "{}", site.name);
        for block in [0, 4, 6, 7] {
            assert_eq!(read(&mut reader, block).as_deref(), Ok(&old(block)[..]), "{} {block}", site.name);
        }
        assert_eq!(read(&mut site.connect_when_served("data"), 5).as_deref(), Ok(&[0xee; BLOCK][..]));
    }
}

#[test]
fn what_a_third_cannot_read_comes_from_its_source() {
    let mut sites = large(true);
    let bad = [5, 6, 40, 20_000];
    let [_, _, far] = sites.three();
    restart_with(far, &bad_sectors("volume:0", &bad));
    far.wait("--in-sync");
    let mut client = far.connect_when_served("data");
    read_all(&mut client, "the third");
    assert_eq!(read(&mut client, bad[3]).as_deref(), Ok(&due(bad[3])[..]));
    until_repaired(far, &bad);
    assert!(far.log_text().contains("the block of left or right was written there"));

    // Nobody to ask: refused, and named.
    restart_with(far, &bad_sectors("volume:0", &[9]));
    let [left, right, far] = sites.three();
    left.stop();
    right.stop();
    let mut client = far.connect_when_served("data");
    far.until("its sources are gone", |far| {
        let sources = far.status()["sources"].as_array().expect("sources").clone();
        sources.iter().all(|source| source["state"] == "disconnected")
    });
    assert_eq!(read(&mut client, 9), Err(NbdError::Io));
    assert_eq!(read(&mut client, 8).as_deref(), Ok(&old(8)[..]));
    far.until("the log says so", |far| far.log_text().contains("block 9 cannot be repaired"));
}
