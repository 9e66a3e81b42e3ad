//! What has gone bad on a disk is found, named and never served; and replaced where the other site still has it.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use lockstep::base::{Lba, Slot, UpdateNumber, VolumeId, sum_of_block};
use lockstep::format::metadata::{Captured, ENTRY_BYTES};
use lockstep::format::nbd::NbdError;
use lockstep::io::nbd_client::{ClientError, NbdClient};
use serde_json::Value;

use crate::pair::*;

pub const BLOCK: usize = 4096;

/// Blocks that the snapshot keeps, each with a content of its own.
pub const BLOCKS: usize = 64;

pub fn old(block: usize) -> [u8; BLOCK] {
    [block as u8 + 1; BLOCK]
}

fn differential(site: &Site) -> PathBuf {
    site.directory.join("differential")
}

/// The slot that keeps a block.
pub fn slot_of(site: &Site, block: usize) -> Option<usize> {
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

pub fn read(client: &mut NbdClient, block: usize) -> Result<Vec<u8>, NbdError> {
    match client.read((block * BLOCK) as u64, BLOCK as u32) {
        Ok(bytes) => Ok(bytes),
        Err(ClientError::Failed { error, .. }) => Err(error),
        Err(error) => panic!("block {block}: {error}"),
    }
}

/// A pair that keeps blocks for the snapshot `old`, in the slots of both sites.
pub fn with_old_blocks() -> Sites {
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
    sites
}

pub fn repair(site: &Site) -> std::process::Output {
    lockstep(&["snapshot", "repair", "--config", path(&site.config), "old"])
}

#[test]
fn a_flipped_bit_in_the_differential_volume_is_named_and_repaired_from_the_peer() {
    let mut sites = with_old_blocks();

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

fn metadata(site: &Site) -> PathBuf {
    site.directory.join("metadata.redb")
}

/// Flips a bit wherever the file has these bytes: the database may keep older copies of a page beside the one in force.
fn flip_a_bit_of(file: &Path, bytes: &[u8]) {
    let mut content = fs::read(file).expect("the file");
    let places: Vec<usize> =
        (0..content.len() - bytes.len()).filter(|&at| content[at..].starts_with(bytes)).collect();
    assert!(!places.is_empty(), "{} does not have them", file.display());
    places.iter().for_each(|&at| content[at + bytes.len() / 2] ^= 0x04);
    fs::write(file, content).expect("written");
}

/// What the tables have of a block that the snapshot keeps.
fn entry_of(site: &Site, block: usize, snapshot: UpdateNumber) -> [u8; ENTRY_BYTES] {
    let slot = Slot(slot_of(site, block).expect("it was captured") as u64);
    let (volume, lba, sum) = (VolumeId(0), Lba(block as u64), sum_of_block(&old(block)));
    Captured { volume, lba, snapshot, slot, sum }.value()
}

fn number_of(site: &Site, name: &str) -> UpdateNumber {
    let text = succeeds(lockstep(&["snapshot", "list", "--config", path(&site.config), "--json"]));
    let list: Value = serde_json::from_str(&text).expect("a list");
    let listed = list["snapshots"].as_array().expect("snapshots");
    let found = listed.iter().find(|snapshot| snapshot["name"] == name).expect("it is listed");
    UpdateNumber(found["number"].as_u64().expect("a number"))
}

fn repair_tables(site: &Site) -> std::process::Output {
    lockstep(&["snapshot", "repair", "--config", path(&site.config), "--timeout", "20s"])
}

fn refuses_to_start(site: &Site, named: &[&str]) {
    let run = ["60", env!("CARGO_BIN_EXE_lockstep"), "run", "--config", path(&site.config)];
    let output = tool("timeout", &run);
    assert_ne!(output.status.code(), Some(124), "{} runs", site.name);
    let said = fails(output);
    let command = format!("`lockstep snapshot repair --config {}`", path(&site.config));
    for name in named.iter().chain(&[path(&metadata(site)), command.as_str(), "the volumes are not touched"])
    {
        assert!(said.contains(name), "{name} is not named: {said}");
    }
}

/// Both sites hold the same of a snapshot.
fn equal(sites: &mut Sites, name: &str) {
    sites.wait("--settled");
    let digests = [&mut sites.left, &mut sites.right].map(|site| {
        site.until("it shows the snapshot", |site| site.try_connect(&format!("data@{name}")).is_ok());
        succeeds(lockstep(&["snapshot", "digest", "--config", path(&site.config), name]))
    });
    assert_eq!(digests[0], digests[1], "{name}");
}

#[test]
fn damaged_snapshot_tables_are_named_and_repaired_from_the_peer() {
    let mut sites = Sites::start(&Options {
        volumes: vec![("data", 4)],
        differential_mib: 2,
        group: format!("{}\non_peer_loss = \"solo\"", Options::default().group),
        ..Options::default()
    });
    let mut client = sites.left.connect("data");
    let mut write = |fill: &dyn Fn(usize) -> [u8; BLOCK]| {
        for block in 0..BLOCKS {
            client.write((block * BLOCK) as u64, &fill(block), false).expect("written");
        }
    };
    write(&old);
    succeeds(lockstep(&["snapshot", "create", "--config", path(&sites.left.config), "old"]));
    write(&|_| [0xee; BLOCK]);
    sites.wait("--settled");
    let number = number_of(&sites.left, "old");
    for site in [&mut sites.left, &mut sites.right] {
        site.until("old blocks are in their slots", |site| {
            (0..BLOCKS).all(|block| slot_of(site, block).is_some())
        });
    }
    let said = fails(repair_tables(&sites.left));
    assert!(said.contains("runs: stop it with `lockstep stop"), "{said}");

    // A bit of an entry, while the site is away; the other one goes on meanwhile, so that its tables are ahead.
    assert!(sites.right.stop().success());
    let entry = entry_of(&sites.right, 5, number);
    flip_a_bit_of(&metadata(&sites.right), &entry);
    refuses_to_start(
        &sites.right,
        &["table captured", "volume data block 5", &format!("snapshot old ({number})")],
    );
    write(&|block| [block as u8 ^ 0xff; BLOCK]);
    succeeds(lockstep(&["snapshot", "create", "--config", path(&sites.left.config), "later"]));
    write(&|block| [block as u8 ^ 0x55; BLOCK]);
    sites.left.until("the other site counts as lost", |site| site.status()["solo"] == true);
    // A list brings the tables up to what is settled.
    sites.wait("--settled");
    assert!(number_of(&sites.left, "later") > number);
    // What a repair that was interrupted leaves.
    fs::write(sites.right.directory.join("metadata.redb.repaired"), [7; 5000]).expect("written");
    let said = succeeds(repair_tables(&sites.right));
    assert!(said.contains("volume data block 5"), "{said}");
    assert!(said.contains("repaired: 2 snapshots and 128 entries"), "{said}");
    assert!(said.contains(&format!("{BLOCKS} old blocks fetched")), "{said}");
    assert!(sites.right.directory.join("metadata.redb.damaged").exists(), "{said}");
    let said = succeeds(repair_tables(&sites.right));
    assert!(said.contains("are sound; nothing was changed"), "{said}");
    sites.right.start();
    sites.wait("--in-sync");
    ["old", "later"].iter().for_each(|name| equal(&mut sites, name));
    let mut reader = sites.right.connect("data@old");
    assert!((0..BLOCKS).all(|block| read(&mut reader, block).as_deref() == Ok(&old(block)[..])));

    // A snapshot's record, at the primary.
    drop(reader);
    assert!(sites.left.stop().success());
    flip_a_bit_of(&metadata(&sites.left), b"later");
    refuses_to_start(&sites.left, &["table snapshots"]);
    succeeds(repair_tables(&sites.left));
    sites.left.start();
    sites.wait("--in-sync");
    ["old", "later"].iter().for_each(|name| equal(&mut sites, name));
    let mut client = sites.left.connect("data");
    for block in 0..BLOCKS {
        let due = [block as u8 ^ 0x55; BLOCK];
        assert_eq!(read(&mut client, block).as_deref(), Ok(&due[..]), "block {block}");
        client.write((block * BLOCK) as u64, &[1; BLOCK], false).expect("written");
    }

    // The database's own pages, as a site leaves them that was killed: and slots with something else in them.
    sites.wait("--settled");
    sites.right.until("it has applied all", |site| number_of(site, "later") > number);
    sites.right.kill();
    let entry = entry_of(&sites.right, 9, number);
    flip_a_bit_of(&metadata(&sites.right), &entry);
    flip_a_bit(&sites.right, 11);
    refuses_to_start(&sites.right, &[]);
    let said = succeeds(repair_tables(&sites.right));
    assert!(said.contains("1 old blocks fetched"), "{said}");
    sites.right.start();
    sites.wait("--in-sync");
    ["old", "later"].iter().for_each(|name| equal(&mut sites, name));

    // Both at once: there is nothing to bring them back from.
    for site in [&mut sites.left, &mut sites.right] {
        assert!(site.stop().success());
        let entry = entry_of(site, 3, number);
        flip_a_bit_of(&metadata(site), &entry);
    }
    let config = path(&sites.right.config);
    let said = fails(lockstep(&["snapshot", "repair", "--config", config, "--timeout", "1s"]));
    assert!(said.contains("cannot be brought back from left: it does not answer"), "{said}");
    refuses_to_start(&sites.right, &["table captured", "volume data block 3"]);
}

/// Flips a bit behind each place where a file that is in use has these bytes.
fn flip_in_place(file: &Path, bytes: &[u8]) {
    let content = fs::read(file).expect("the file");
    let file = File::options().write(true).open(file).expect("the file");
    let places = (0..content.len() - bytes.len()).filter(|&at| content[at..].starts_with(bytes));
    let flipped = places.map(|at| at + bytes.len() / 2).inspect(|&at| {
        file.write_all_at(&[content[at] ^ 0x04], at as u64).expect("written");
    });
    assert!(flipped.count() > 0, "it has them");
    file.sync_all().expect("synced");
}

pub fn scrub(site: &Site) -> (Value, String) {
    let output = lockstep(&["scrub", "--config", path(&site.config), "--rate", "1GiB", "--json"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("no object: {said}")), said)
}

/// Bad, repaired and unrepaired.
pub fn outcome(part: &Value) -> [u64; 3] {
    ["bad_blocks", "repaired_blocks", "unrepaired_blocks"].map(|key| part[key].as_u64().expect("a number"))
}

/// Says so when it goes, also where a check fails.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// An idle group is checkpointed within a second, and its journal is empty then.
fn while_a_host_writes<T>(mut host: NbdClient, act: impl FnOnce() -> T) -> T {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let _ends = Ends(&over);
        scope.spawn(|| {
            while !over.load(Relaxed) {
                host.write(901 * BLOCK as u64, &[1; BLOCK], false).expect("written");
                thread::sleep(Duration::from_millis(50));
            }
        });
        act()
    })
}

#[test]
fn a_scrub_finds_flipped_bits_in_all_that_a_site_has_on_its_disks() {
    let mut sites = with_old_blocks();
    let mut client = sites.left.connect("data");
    let number = number_of(&sites.left, "old");
    for site in [&mut sites.left, &mut sites.right] {
        // Of what the list shows, the number says that the tables have it.
        site.until("and in the tables", |site| number_of(site, "old") == number);
        let (scrubbed, said) = scrub(site);
        assert_eq!(scrubbed["complete"], true, "{said}");
        assert_eq!(scrubbed["tables"]["entries"], BLOCKS, "{scrubbed}");
        assert_eq!(scrubbed["differential"]["read_bytes"], BLOCKS * BLOCK, "{scrubbed}");
        assert_eq!(scrubbed["checksums"]["read_bytes"], BLOCK, "{scrubbed}");
        assert_eq!(scrubbed["bad_blocks"], 0, "{scrubbed}");
    }

    for site in [&mut sites.left, &mut sites.right] {
        // Slots come from the other site, checksums from memory.
        [4, 5, 33].iter().for_each(|&block| flip_a_bit(site, block));
        flip_in_place(&site.directory.join("data.checksums"), &sum_of_block(&[0xee; BLOCK]).0.to_le_bytes());
        let (scrubbed, said) = scrub(site);
        assert_eq!(outcome(&scrubbed["differential"]), [3, 3, 0], "{scrubbed} {said}");
        assert_eq!(outcome(&scrubbed["checksums"]), [1, 1, 0], "{scrubbed} {said}");
        assert_eq!(outcome(&scrubbed), [4, 4, 0], "{scrubbed} {said}");
        assert!((0..BLOCKS).all(|block| slot_of(site, block).is_some()), "{} has all", site.name);
        let named = ["block 33 as of snapshot old is repaired", "checksum files are written anew"];
        site.until("the log says so", |site| named.iter().all(|named| site.log_text().contains(named)));
    }

    // The journal, as long as a start would read it: hosts that never rest keep the checkpoint behind.
    for right in [true, false] {
        let fill = if right { 0x5a } else { 0x5b };
        client.write(900 * BLOCK as u64, &[fill; BLOCK], true).expect("written");
        let host = sites.left.connect("data");
        let site = if right { &mut sites.right } else { &mut sites.left };
        let (scrubbed, said) = while_a_host_writes(host, || {
            flip_in_place(&site.directory.join("journal"), &[fill; BLOCK]);
            scrub(site)
        });
        assert_eq!(outcome(&scrubbed["journal"]), [1, 1, 0], "{scrubbed} {said}");
        let named = ["is not what was written there at block", "is not needed any more at block"];
        site.until("the log says so", |site| named.iter().all(|named| site.log_text().contains(named)));
        site.kill();
        site.start();
        sites.wait("--in-sync");
        client = sites.left.connect_when_served("data");
        assert_eq!(read(&mut client, 900).as_deref(), Ok(&[fill; BLOCK][..]));
    }

    // What is bad at both, with nobody else to ask.
    [&sites.left, &sites.right].iter().for_each(|site| flip_a_bit(site, 7));
    let (scrubbed, said) = scrub(&sites.right);
    assert_eq!(outcome(&scrubbed["differential"]), [1, 0, 1], "{scrubbed}");
    assert_eq!(scrubbed["unrepaired"][0]["in"], "differential", "{scrubbed}");
    assert_eq!(scrubbed["unrepaired"][0]["block"], 7, "{scrubbed}");
    assert!(said.contains("1 blocks are damaged"), "{said}");

    // The tables: the site goes on with what it knows, and does not start again before they are repaired.
    let slot = Slot(slot_of(&sites.right, 12).expect("it is kept") as u64);
    let (volume, lba, sum) = (VolumeId(0), Lba(12), sum_of_block(&old(12)));
    let entry = Captured { volume, lba, snapshot: number, slot, sum }.value();
    flip_in_place(&metadata(&sites.right), &entry);
    let (scrubbed, said) = scrub(&sites.right);
    assert_eq!(scrubbed["tables"]["damaged"], true, "{scrubbed}");
    assert!(said.contains("are damaged"), "{said}");
    let command = format!("`lockstep snapshot repair --config {}`", path(&sites.right.config));
    sites.right.until("the log says what to do", |site| site.log_text().contains(&command));
    let mut reader = sites.right.connect("data@old");
    assert_eq!(read(&mut reader, 11).as_deref(), Ok(&old(11)[..]));
    drop(reader);
    // The snapshot has this block already: another one's entry would have the database write the page anew, whole, from memory.
    client.write(11 * BLOCK as u64, &[1; BLOCK], true).expect("the pair goes on");
    assert!(sites.right.stop().success());
    refuses_to_start(&sites.right, &[]);
    let said = fails(repair_tables(&sites.right));
    assert!(said.contains("block 7"), "{said}");
}

/// More than the cache holds, so that nothing is read before somebody asks.
pub const LARGE_MIB: u64 = 96;

/// Blocks of the volume with data; all others read as zeros.
pub fn due(block: usize) -> [u8; BLOCK] {
    if block < BLOCKS { old(block) } else { [0; BLOCK] }
}

fn volume(site: &Site) -> PathBuf {
    site.directory.join("data.volume")
}

fn on_disk(site: &Site, block: usize) -> [u8; BLOCK] {
    let mut bytes = [0; BLOCK];
    let file = File::open(volume(site)).expect("the volume");
    file.read_exact_at(&mut bytes, (block * BLOCK) as u64).expect("read");
    bytes
}

fn flip_in_volume(site: &Site, block: usize) {
    let mut bytes = on_disk(site, block);
    assert_eq!(bytes, due(block), "{} has it", site.name);
    bytes[block % BLOCK] ^= 0x20;
    let file = File::options().write(true).open(volume(site)).expect("the file");
    file.write_all_at(&bytes, (block * BLOCK) as u64).expect("written");
    file.sync_all().expect("synced");
}

#[test]
fn flipped_bits_in_a_volume_are_named_and_repaired_from_the_peer() {
    let mut sites = Sites::start(&Options { volumes: vec![("data", LARGE_MIB)], ..Options::default() });
    let mut client = sites.left.connect("data");
    for block in 0..BLOCKS {
        client.write((block * BLOCK) as u64, &old(block), true).expect("written");
    }
    drop(client);
    sites.wait("--settled");
    let out = sites.path("out");
    // The last one was never written.
    let bad = [5, 6, 40, 20_000];
    for right in [true, false] {
        let site = if right { &mut sites.right } else { &mut sites.left };
        assert!(site.stop().success());
        bad.iter().for_each(|&block| flip_in_volume(site, block));
        site.start();
        sites.wait("--in-sync");
        let site = if right { &mut sites.right } else { &mut sites.left };
        // A copy skips what reads as zeros.
        let mut client = site.connect_when_served("data");
        assert_eq!(read(&mut client, bad[3]).as_deref(), Ok(&due(bad[3])[..]));
        succeeds(tool("nbdcopy", &[&site.uri("data"), path(&out)]));
        let read = fs::read(&out).expect("a copy");
        assert_eq!(read.len() as u64, LARGE_MIB * MIB);
        for (block, bytes) in read.chunks(BLOCK).enumerate() {
            assert!(bytes == due(block), "{} served something else for block {block}", site.name);
        }
        for block in bad {
            site.until("it is whole again", |site| on_disk(site, block) == due(block));
            let named = [
                format!("block {block} is not what was written there"),
                format!("block {block} is repaired: the block of"),
            ];
            site.until("the log says so", |site| named.iter().all(|named| site.log_text().contains(named)));
        }
        site.until("it is counted", |site| site.status()["totals"]["repaired_blocks"] == bad.len());
    }

    // What nobody reads is found by a scrub, also where memory has the block.
    for site in [&mut sites.left, &mut sites.right] {
        assert_eq!(read(&mut site.connect("data"), 9).as_deref(), Ok(&old(9)[..]));
        let unread = [9, 10, 11_111, (LARGE_MIB * MIB) as usize / BLOCK - 1];
        unread.iter().for_each(|&block| flip_in_volume(site, block));
        let scrub = ["scrub", "--config", path(&site.config), "--rate", "1GiB", "--json"];
        let said: Value = serde_json::from_str(&succeeds(lockstep(&scrub))).expect("an object");
        assert_eq!(said["volumes"]["read_bytes"], LARGE_MIB * MIB, "{said}");
        assert_eq!(said["total_bytes"], said["read_bytes"], "{said}");
        assert_eq!((&said["bad_blocks"], &said["repaired_blocks"]), (&4.into(), &4.into()), "{said}");
        assert!(unread.iter().all(|&block| on_disk(site, block) == due(block)), "{} is whole", site.name);
    }

    // The same block at both: there is nothing to repair it from, and it is not served.
    for site in [&mut sites.left, &mut sites.right] {
        assert!(site.stop().success());
        flip_in_volume(site, 7);
    }
    sites.start_both();
    sites.wait("--in-sync");
    for site in [&mut sites.left, &mut sites.right] {
        let mut reader = site.connect_when_served("data");
        assert_eq!(read(&mut reader, 7), Err(NbdError::Io), "{}", site.name);
        assert_eq!(read(&mut reader, 8).as_deref(), Ok(&old(8)[..]));
        let lost = "block 7 cannot be repaired, reading it fails: the block of";
        site.until("the log says so", |site| site.log_text().contains(lost));
    }
    let said = fails(lockstep(&["scrub", "--config", path(&sites.right.config), "--rate", "1GiB"]));
    assert!(said.contains("1 blocks are damaged"), "{said}");
    let mut client = sites.left.connect("data");
    client.write((7 * BLOCK) as u64, &[0x77; BLOCK], true).expect("written");
    sites.wait("--settled");
    for site in [&mut sites.left, &mut sites.right] {
        assert_eq!(read(&mut site.connect("data"), 7).as_deref(), Ok(&[0x77; BLOCK][..]), "{}", site.name);
        site.until("it is on the disk", |site| on_disk(site, 7) == [0x77; BLOCK]);
    }
}
