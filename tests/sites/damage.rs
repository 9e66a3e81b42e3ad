//! What has gone bad on a disk is found, named and never served; and replaced where the other site still has it.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use lockstep::format::nbd::NbdError;
use lockstep::io::nbd_client::{ClientError, NbdClient};

use crate::pair::*;

const BLOCK: usize = 4096;

/// Blocks that the snapshot keeps, each with a content of its own.
const BLOCKS: usize = 64;

fn old(block: usize) -> [u8; BLOCK] {
    [block as u8 + 1; BLOCK]
}

fn differential(site: &Site) -> PathBuf {
    site.directory.join("differential")
}

/// The slot that keeps a block.
fn slot_of(site: &Site, block: usize) -> Option<usize> {
    let bytes = fs::read(differential(site)).expect("the differential volume");
    bytes.chunks(BLOCK).position(|slot| slot == old(block))
}

fn flip_a_bit(site: &Site, block: usize) {
    let at = (slot_of(site, block).expect("it was captured") * BLOCK) as u64 + 1234;
    let file = File::options().read(true).write(true).open(differential(site)).expect("the file");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("read");
    file.write_all_at(&[byte[0] ^ 0x10], at).expect("written");
    file.sync_all().expect("synced");
}

fn read(client: &mut NbdClient, block: usize) -> Result<Vec<u8>, NbdError> {
    match client.read((block * BLOCK) as u64, BLOCK as u32) {
        Ok(bytes) => Ok(bytes),
        Err(ClientError::Failed { error, .. }) => Err(error),
        Err(error) => panic!("block {block}: {error}"),
    }
}

fn repair(site: &Site) -> std::process::Output {
    lockstep(&["snapshot", "repair", "--config", path(&site.config), "old"])
}

#[test]
fn a_flipped_bit_in_the_differential_volume_is_named_and_repaired_from_the_peer() {
    let mut sites =
        Sites::start(&Options { volumes: vec![("data", 4)], differential_mib: 1, ..Options::default() });
    let mut client = sites.left.connect("data");
    for block in 0..BLOCKS {
        client.write((block * BLOCK) as u64, &old(block), false).expect("written");
    }
    succeeds(lockstep(&["snapshot", "create", "--config", path(&sites.left.config), "old"]));
    client.write(0, &[0xee; BLOCKS * BLOCK], false).expect("written");
    sites.wait("--settled");
    for site in [&mut sites.left, &mut sites.right] {
        site.until("old blocks are in their slots", |site| {
            (0..BLOCKS).all(|block| slot_of(site, block).is_some())
        });
    }

    flip_a_bit(&sites.right, 5);
    sites.left.kill();
    let mut reader = sites.right.connect_when_served("data@old");
    assert_eq!(read(&mut reader, 5), Err(NbdError::Io));
    assert_eq!(read(&mut reader, 6).as_deref(), Ok(&old(6)[..]));
    let named = "block 5 as of snapshot old is not what was kept";
    sites.right.until("the log names it", |site| site.log_text().contains(named));
    let said = fails(repair(&sites.right));
    assert!(said.contains("data@old block 5 is damaged"), "{said}");
    assert_eq!(read(&mut reader, 5), Err(NbdError::Io));

    sites.left.start();
    sites.wait("--in-sync");
    let said = succeeds(repair(&sites.right));
    assert!(said.contains("1024 blocks, 1 repaired, 0 damaged"), "{said}");
    assert_eq!(read(&mut reader, 5).as_deref(), Ok(&old(5)[..]));
    assert!(slot_of(&sites.right, 5).is_some(), "the block is on the disk again");
    sites
        .right
        .until("the log says so", |site| site.log_text().contains("block 5 as of snapshot old is repaired"));

    // The other way round; a read by a host is as good as the command.
    flip_a_bit(&sites.left, 9);
    let mut reader = sites.left.connect_when_served("data@old");
    assert_eq!(read(&mut reader, 9), Err(NbdError::Io));
    sites.left.until("it is repaired", |site| slot_of(site, 9).is_some());
    assert_eq!(read(&mut reader, 9).as_deref(), Ok(&old(9)[..]));

    flip_a_bit(&sites.left, 7);
    flip_a_bit(&sites.right, 7);
    let said = fails(repair(&sites.left));
    assert!(said.contains("data@old block 7 is damaged"), "{said}");
    let lost = "block 7 as of snapshot old cannot be repaired";
    sites.left.until("the log says so", |site| site.log_text().contains(lost));
    for site in [&sites.left, &sites.right] {
        assert_eq!(read(&mut site.connect("data@old"), 7), Err(NbdError::Io), "{}", site.name);
        assert_eq!(read(&mut site.connect("data"), 7).as_deref(), Ok(&[0xee; BLOCK][..]), "{}", site.name);
    }
}
