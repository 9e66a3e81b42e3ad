//! Real files, with rings that were written here; interrupted at each step.

use std::fs;
use std::path::Path;

use super::*;
use crate::base::*;
use crate::format::journal::{BatchHeader, Digest, encode_batch};
use crate::format::superblock::{JournalPosition, RING_FIRST_BLOCK};
use crate::format::update::{Update, UpdateKind};
use crate::node::format::{Existing, format};
use crate::node::run::open_files;

const MIB: u64 = 1 << 20;
const MIB_BLOCKS: u64 = MIB / BLOCK_BYTES as u64;

/// The configuration of a site of its own with volumes of so many MiB.
fn config(folder: &Path, journal_mib: u64, volumes: &[(&str, u64)]) -> Config {
    let mut text = format!(
        "[site]\nname = \"left\"\nid = 1\nrole = \"primary\"\ndirectory = \"{}\"\n[group]\nname = \"tested\"\n\
         [journal]\nsize = \"{journal_mib}MiB\"\n[differential]\nsize = \"1MiB\"\n[cache]\nsize = \"96MiB\"\n\
         [nbd]\nsocket = \"nbd\"\n",
        folder.display()
    );
    for (name, mib) in volumes {
        text += &format!("[[volume]]\nname = \"{name}\"\nsize = \"{mib}MiB\"\n");
    }
    let file = folder.join("site.toml");
    fs::write(&file, text).expect("a configuration");
    Config::load(&file).expect("a configuration")
}

fn formatted(folder: &Path, journal_mib: u64) -> Config {
    let config = config(folder, journal_mib, &[("data", 1)]);
    format(&config, Existing::default(), &mut |_| {}).expect("formatted");
    config
}

fn resize_to_the_end(config: &Config) -> Result<Resized, ChangeError> {
    resize(config, false, &mut |_| {}, &mut |_| Ok(()))
}

/// Ends a change when it has come that many steps.
fn interrupted(steps: usize) -> impl FnMut(Reached) -> Result<(), ChangeError> {
    let mut left = steps;
    move |_| match left.checked_sub(1) {
        None => Err(ChangeError::NothingToGrow),
        Some(fewer) => {
            left = fewer;
            Ok(())
        }
    }
}

/// What a ring holds: each batch's header, and its updates. Payloads were compared with the sums in these.
type Content = Vec<(BatchHeader, Vec<Update>)>;

fn content(config: &Config) -> Content {
    let journal = Disk::open(&config.journal.path).expect("a journal");
    let (superblock, _) = newest_superblock(&journal).expect("read").expect("a superblock");
    let mut content = Vec::new();
    let mut note = |header: &BatchHeader, updates: &[Update]| content.push((*header, updates.to_vec()));
    ring::chain(&journal, &superblock, &mut note).expect("read");
    content
}

/// Writes batches into a ring as a site would.
struct Writer {
    journal: Disk,
    superblock: Superblock,
    at: JournalPosition,
    next: u64,
    durable: u64,
}

impl Writer {
    /// In the ring of this site, from this block on.
    fn at(config: &Config, block: u64) -> Writer {
        let journal = Disk::open(&config.journal.path).expect("a journal");
        let (superblock, _) = newest_superblock(&journal).expect("read").expect("a superblock");
        let at = JournalPosition { block, sequence: 1000, previous: Digest(77) };
        Writer { journal, superblock, at, next: 10, durable: 9 }
    }

    /// A batch of one update, or of several of 32 blocks.
    fn write(&mut self, payload_blocks: u64) {
        let (mut updates, mut bytes) = (Vec::new(), Vec::new());
        let mut left = payload_blocks as usize;
        while left > 0 {
            let count = left.min(UPDATE_BLOCKS_MAX);
            let first = bytes.len();
            for block in 0..count {
                bytes.resize(bytes.len() + BLOCK_BYTES, (self.next as usize * 31 + block) as u8 | 1);
            }
            let blocks = bytes[first..].as_chunks::<BLOCK_BYTES>().0;
            updates.push(Update {
                kind: UpdateKind::Write,
                number: UpdateNumber(self.next),
                generation: Generation(1 << 16 | 1),
                count: count as u32,
                sum: sum_of_sums(blocks.iter().map(sum_of_block)),
                ..Update::EMPTY
            });
            (self.next, left) = (self.next + 1, left - count);
        }
        let header = BatchHeader {
            group: self.superblock.group,
            sequence: self.at.sequence,
            previous: self.at.previous,
            known_durable: UpdateNumber(self.durable),
            settled: UpdateNumber(9),
            count: updates.len() as u16,
            payload_blocks: payload_blocks as u16,
        };
        let mut block = [0; BLOCK_BYTES];
        let digest = encode_batch(&header, &updates, &mut block);
        let end = self.superblock.journal_blocks;
        if self.at.block + 1 + payload_blocks > end {
            self.at.block = RING_FIRST_BLOCK;
        }
        self.journal.write_blocks(self.at.block, &block).expect("written");
        self.journal.write_blocks(self.at.block + 1, &bytes).expect("written");
        let after = self.at.block + 1 + payload_blocks;
        let block = if after == end { RING_FIRST_BLOCK } else { after };
        self.at = JournalPosition { block, sequence: self.at.sequence + 1, previous: digest };
    }

    /// Writes a superblock that has a start begin at `position`.
    fn end(mut self, position: JournalPosition) {
        for _ in 0..SUPERBLOCK_SLOTS {
            self.superblock.sequence += 1;
            self.superblock.position = position;
            self.superblock.checkpoint = UpdateNumber(9);
            self.superblock.settled = UpdateNumber(9);
            self.superblock.known_durable = UpdateNumber(9);
            let mut block = [0; BLOCK_BYTES];
            self.superblock.encode(&mut block);
            self.journal.write_blocks(self.superblock.slot(), &block).expect("written");
        }
    }
}

/// Fills a ring from this block on with batches of so many blocks of payload.
fn fill(config: &Config, block: u64, payloads: &[u64]) -> Content {
    let mut writer = Writer::at(config, block);
    let position = writer.at;
    payloads.iter().for_each(|blocks| writer.write(*blocks));
    writer.end(position);
    let content = content(config);
    assert_eq!(content.len(), payloads.len());
    content
}

fn opens(config: &Config) -> bool {
    open_files(config).is_ok()
}

/// From, to, where the oldest batch is, and the batches' payloads.
fn rings() -> Vec<(u64, u64, u64, Vec<u64>)> {
    let full: Vec<u64> = (0..18).map(|index| 190 + index).collect();
    vec![
        (16, 24, 700, vec![]),
        (32, 16, 32 * MIB_BLOCKS - 1, vec![]),
        (16, 24, 40, vec![1, 256, 30]),
        // In two pieces: the one before the end is the smaller one, or the other is.
        (16, 24, 3800, full.clone()),
        (16, 24, 600, full.clone()),
        // And neither has room in what is new.
        (16, 17, 2000, full),
        (32, 16, 40, vec![1, 256, 30]),
        (32, 16, 4000, vec![250; 6]),
        (32, 16, 7900, vec![250; 5]),
        (32, 16, 7000, vec![100, 200, 3, 4]),
    ]
}

#[test]
fn what_a_journal_holds_is_in_it_at_its_new_size_wherever_the_change_was_interrupted() {
    for (from, to, block, payloads) in rings() {
        let mut steps = 0;
        loop {
            let folder = tempfile::tempdir().expect("a folder");
            let before = formatted(folder.path(), from);
            let held = fill(&before, block, &payloads);
            let after = config(folder.path(), to, &[("data", 1)]);
            let ended = resize(&after, false, &mut |_| {}, &mut interrupted(steps));
            let what =
                format!("{from} to {to} MiB with {} batches, {steps} steps: {ended:?}", payloads.len());
            assert_eq!(content(&after), held, "{what}");
            if let Err(error) = &ended {
                assert!(matches!(error, ChangeError::NothingToGrow), "{what}");
                assert!(!opens(&after), "{what}");
                // As it was, or refused.
                let journal = Disk::open(&before.journal.path).expect("a journal");
                let (superblock, agree) = newest_superblock(&journal).expect("read").expect("one");
                drop(journal);
                let untouched = agree && superblock.journal_blocks == from * MIB_BLOCKS;
                assert_eq!(opens(&before), untouched, "{what}");
                resize_to_the_end(&after).expect(&what);
            }
            assert!(opens(&after) && !opens(&before), "{what}");
            assert_eq!(content(&after), held, "{what}");
            let length = fs::metadata(&after.journal.path).expect("a journal").len();
            assert_eq!(length, to * MIB, "{what}");
            assert!(matches!(resize_to_the_end(&after), Err(ChangeError::NothingToResize)), "{what}");
            if ended.is_ok() {
                break;
            }
            steps += 1;
        }
        assert!(steps >= 4, "{steps} steps");
    }
}

#[test]
fn a_change_that_was_interrupted_can_be_taken_back() {
    for (from, to, block, payloads) in rings() {
        for steps in 0..6 {
            let folder = tempfile::tempdir().expect("a folder");
            let before = formatted(folder.path(), from);
            let held = fill(&before, block, &payloads);
            let after = config(folder.path(), to, &[("data", 1)]);
            let what = format!("{from} to {to} MiB with {} batches, {steps} steps", payloads.len());
            if resize(&after, false, &mut |_| {}, &mut interrupted(steps)).is_ok() {
                continue;
            }
            match resize_to_the_end(&before) {
                Ok(_) | Err(ChangeError::NothingToResize) => {
                    assert!(opens(&before), "{what}");
                    assert_eq!(content(&before), held, "{what}");
                }
                // What it holds has no room in the smaller one, and stays where it is.
                Err(ChangeError::Held { .. }) if from < to => {
                    resize_to_the_end(&after).expect(&what);
                    assert_eq!(content(&after), held, "{what}");
                }
                Err(error) => panic!("{what}: {error}"),
            }
        }
    }
}

#[test]
fn what_has_no_room_in_a_smaller_journal_keeps_it_as_it_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let before = formatted(folder.path(), 32);
    let held = fill(&before, 3000, &[250; 9]);
    let after = config(folder.path(), 16, &[("data", 1)]);
    let bytes = fs::read(&before.journal.path).expect("a journal");
    let refused = resize_to_the_end(&after).expect_err("refused");
    assert!(matches!(refused, ChangeError::Held { held, .. } if held == 9 * 251 * 4096), "{refused}");
    assert!(fs::read(&before.journal.path).expect("a journal") == bytes, "something was changed");
    assert!(opens(&before));
    assert_eq!(content(&before), held);
}

#[test]
fn what_a_crash_left_behind_a_torn_batch_does_not_come_back() {
    for (from, to) in [(16, 24), (32, 16)] {
        let folder = tempfile::tempdir().expect("a folder");
        let before = formatted(folder.path(), from);
        let mut writer = Writer::at(&before, 500);
        let position = writer.at;
        writer.write(40);
        let torn = writer.at.block;
        (0..3).for_each(|_| writer.write(7));
        writer.journal.write_blocks(torn + 1, &[0; BLOCK_BYTES]).expect("written");
        writer.end(position);
        let held = content(&before);
        assert_eq!(held.len(), 1);
        let after = config(folder.path(), to, &[("data", 1)]);
        resize_to_the_end(&after).expect("resized");
        assert_eq!(content(&after), held);
        let journal = Disk::open(&after.journal.path).expect("a journal");
        for newer in [torn + 8, torn + 16] {
            let mut block = [1; BLOCK_BYTES];
            journal.read_blocks(newer, &mut block).expect("read");
            assert_eq!(block, [0; BLOCK_BYTES], "block {newer}");
        }
    }
}

#[test]
fn a_journal_that_has_gone_bad_is_left_to_its_repair() {
    for in_superblock in [false, true] {
        let folder = tempfile::tempdir().expect("a folder");
        let before = formatted(folder.path(), 16);
        let mut writer = Writer::at(&before, 500);
        let position = writer.at;
        writer.write(40);
        let bad = writer.at.block;
        writer.write(7);
        if !in_superblock {
            // It knows that the one before it was durable.
            writer.durable = writer.next - 1;
            writer.write(7);
        }
        writer.journal.write_blocks(bad + 1, &[0; BLOCK_BYTES]).expect("written");
        if in_superblock {
            writer.superblock.known_durable = UpdateNumber(writer.next - 1);
        }
        let known_durable = writer.superblock.known_durable;
        writer.end(position);
        if in_superblock {
            let journal = Disk::open(&before.journal.path).expect("a journal");
            let (mut superblock, _) = newest_superblock(&journal).expect("read").expect("one");
            superblock.sequence += 1;
            superblock.known_durable = known_durable;
            let mut block = [0; BLOCK_BYTES];
            superblock.encode(&mut block);
            journal.write_blocks(superblock.slot(), &block).expect("written");
        }
        let bytes = fs::read(&before.journal.path).expect("a journal");
        let after = config(folder.path(), 24, &[("data", 1)]);
        let refused = resize_to_the_end(&after).expect_err("refused");
        assert!(matches!(refused, ChangeError::Rotten { .. }), "{refused}");
        assert!(fs::read(&before.journal.path).expect("a journal") == bytes, "something was changed");
    }
}

#[test]
fn one_change_waits_for_the_end_of_another() {
    let folder = tempfile::tempdir().expect("a folder");
    let before = formatted(folder.path(), 16);
    let grown = config(folder.path(), 16, &[("data", 2)]);
    // Files, and one slot.
    let ended = grow(&grown, false, &mut |_| {}, &mut interrupted(1)).expect_err("interrupted");
    assert!(matches!(ended, ChangeError::NothingToGrow), "{ended}");
    assert!(!opens(&before) && !opens(&grown));
    let resized = config(folder.path(), 24, &[("data", 1)]);
    let refused = resize_to_the_end(&resized).expect_err("refused");
    assert!(matches!(refused, ChangeError::Unfinished { .. }), "{refused}");
    grow(&grown, false, &mut |_| {}, &mut |_| Ok(())).expect("grown");
    assert!(opens(&grown));

    let resized = config(folder.path(), 24, &[("data", 2)]);
    // Files, records and one slot.
    let ended = resize(&resized, false, &mut |_| {}, &mut interrupted(2)).expect_err("interrupted");
    assert!(matches!(ended, ChangeError::NothingToGrow), "{ended}");
    let larger = config(folder.path(), 16, &[("data", 3)]);
    let refused = grow(&larger, false, &mut |_| {}, &mut |_| Ok(())).expect_err("refused");
    assert!(matches!(refused, ChangeError::Unfinished { .. }), "{refused}");
    let both = config(folder.path(), 24, &[("data", 3)]);
    let refused = resize_to_the_end(&both).expect_err("refused");
    assert!(matches!(refused, ChangeError::Differs { .. }), "{refused}");
    resize_to_the_end(&resized).expect("resized");
    assert!(opens(&resized));
}

fn add_to_the_end(config: &Config, force: bool) -> Result<(), ChangeError> {
    add(config, force, &mut |_| {}, &mut |_| Ok(()))
}

#[test]
fn volumes_are_added_behind_the_others_wherever_that_was_interrupted() {
    for steps in 0..5 {
        let folder = tempfile::tempdir().expect("a folder");
        let before = formatted(folder.path(), 16);
        let held = fill(&before, 40, &[1, 256, 30]);
        let after = config(folder.path(), 16, &[("data", 1), ("log", 2), ("more", 1)]);
        let ended = add(&after, false, &mut |_| {}, &mut interrupted(steps));
        // Files, two slots, the superblock.
        assert_eq!(ended.is_ok(), steps == 4, "{ended:?}");
        if ended.is_err() {
            assert!(!opens(&after), "{steps} steps");
            assert_eq!(opens(&before), steps == 0, "{steps} steps");
            add_to_the_end(&after, false).expect("added");
        }
        assert!(opens(&after) && !opens(&before), "{steps} steps");
        assert_eq!(content(&after), held);
        for (name, bytes) in [("log.volume", 2 * MIB), ("log.checksums", 4096), ("more.volume", MIB)] {
            let file = fs::read(folder.path().join(name)).expect("a file");
            assert!(file.len() as u64 == bytes && file.iter().all(|byte| *byte == 0), "{name}");
        }
        assert!(matches!(add_to_the_end(&after, false), Err(ChangeError::NothingToAdd)));
    }
}

#[test]
fn what_cannot_be_added_changes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let before = formatted(folder.path(), 16);
    let refused = |volumes: &[(&str, u64)], what: &str| {
        let why =
            add_to_the_end(&config(folder.path(), 16, volumes), false).expect_err("refused").to_string();
        assert!(why.contains(what), "{what:?} is not in {why}");
        assert!(!folder.path().join("log.volume").exists() && opens(&before));
    };
    refused(&[("data", 1)], "nothing to add");
    refused(&[("log", 1), ("data", 1)], "nothing but the number of volumes");
    refused(&[("data", 2), ("log", 1)], "nothing but the number of volumes");
    fs::write(folder.path().join("log.checksums"), [1; 4096]).expect("a file");
    refused(&[("data", 1), ("log", 1)], "log.checksums: is there already");
    let after = config(folder.path(), 16, &[("data", 1), ("log", 1)]);
    add_to_the_end(&after, true).expect("added");
    assert_eq!(fs::read(folder.path().join("log.checksums")).expect("a file"), [0; 4096]);
    assert!(opens(&after));
}

fn remove_to_the_end(config: &Config, names: &[&str]) -> Result<(), ChangeError> {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    remove(config, &names, &mut |_| Ok(()))
}

#[test]
fn volumes_are_removed_wherever_that_was_interrupted() {
    for steps in 0..4 {
        let folder = tempfile::tempdir().expect("a folder");
        let before = config(folder.path(), 16, &[("data", 1), ("log", 2), ("more", 3), ("most", 4)]);
        format(&before, Existing::default(), &mut |_| {}).expect("formatted");
        // Of the first volume.
        let held = fill(&before, 40, &[1, 256, 30]);
        let after = config(folder.path(), 16, &[("data", 1), ("more", 3)]);
        let names = ["most".to_owned(), "log".to_owned()];
        let ended = remove(&after, &names, &mut interrupted(steps));
        // Two slots, the superblock.
        assert_eq!(ended.is_ok(), steps == 3, "{ended:?}");
        if ended.is_err() {
            assert!(!opens(&after) && !opens(&before), "{steps} steps");
            remove_to_the_end(&after, &["log", "most"]).expect("removed");
        }
        assert!(opens(&after) && !opens(&before), "{steps} steps");
        assert_eq!(content(&after), held);
        let again = config(folder.path(), 16, &[("data", 1), ("more", 3), ("log", 2)]);
        let refused = add_to_the_end(&again, true).expect_err("refused");
        assert!(matches!(refused, ChangeError::NameOfRemoved { .. }), "{refused}");
    }
}

#[test]
fn a_volume_whose_updates_the_journal_has_is_not_removed() {
    let folder = tempfile::tempdir().expect("a folder");
    let before = config(folder.path(), 16, &[("data", 1), ("log", 2)]);
    format(&before, Existing::default(), &mut |_| {}).expect("formatted");
    fill(&before, 40, &[1, 256, 30]);
    let after = config(folder.path(), 16, &[("log", 2)]);
    let refused = remove_to_the_end(&after, &["data"]).expect_err("refused");
    // 32 blocks an update at most.
    assert!(matches!(refused, ChangeError::InJournal { updates: 10, .. }), "{refused}");
    let refused = remove_to_the_end(&after, &["log"]).expect_err("refused");
    assert!(matches!(refused, ChangeError::StillConfigured { .. }), "{refused}");
    let shorter = config(folder.path(), 16, &[("log", 1)]);
    let refused = remove_to_the_end(&shorter, &["data"]).expect_err("refused");
    assert!(matches!(refused, ChangeError::Differs { .. }), "{refused}");
    assert!(opens(&before));
}

/// The same as [`config`], of volumes with room: name, size and room in MiB.
fn roomy(folder: &Path, volumes: &[(&str, u64, u64)]) -> Config {
    let sizes: Vec<(&str, u64)> = volumes.iter().map(|(name, size, _)| (*name, *size)).collect();
    let file = config(folder, 16, &sizes).file;
    let mut text = fs::read_to_string(&file).expect("a configuration");
    for (name, size, room) in volumes {
        let size = format!("name = \"{name}\"\nsize = \"{size}MiB\"\n");
        text = text.replace(&size, &format!("{size}room = \"{room}MiB\"\n"));
    }
    fs::write(&file, text).expect("a configuration");
    Config::load(&file).expect("a configuration")
}

/// Hosts see so many MiB of each volume.
fn show(config: &Config, mib: &[u64]) {
    let journal = Disk::open(&config.journal.path).expect("a journal");
    let (mut superblock, _) = newest_superblock(&journal).expect("read").expect("a superblock");
    superblock.sizes = VolumeSizes::of(mib.iter().map(|mib| mib * MIB_BLOCKS));
    for _ in 0..SUPERBLOCK_SLOTS {
        superblock.sequence += 1;
        let mut block = [0; BLOCK_BYTES];
        superblock.encode(&mut block);
        journal.write_blocks(superblock.slot(), &block).expect("written");
    }
}

fn shown(config: &Config) -> Vec<u64> {
    let journal = Disk::open(&config.journal.path).expect("a journal");
    let (superblock, _) = newest_superblock(&journal).expect("read").expect("a superblock");
    superblock.sizes.iter().take(config.volumes.len()).map(|blocks| blocks / MIB_BLOCKS).collect()
}

#[test]
fn what_hosts_see_of_a_volume_goes_with_it_wherever_a_change_was_interrupted() {
    let taken = |path: &Path| {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(path).expect("a file").blocks() * 512
    };
    for steps in 0..5 {
        let folder = tempfile::tempdir().expect("a folder");
        let before = roomy(folder.path(), &[("data", 1, 4), ("log", 2, 4), ("more", 1, 3)]);
        format(&before, Existing::default(), &mut |_| {}).expect("formatted");
        assert_eq!(shown(&before), [1, 2, 1]);
        show(&before, &[3, 4, 2]);

        let fewer = roomy(folder.path(), &[("log", 2, 4), ("more", 1, 3)]);
        if remove(&fewer, &["data".to_owned()], &mut interrupted(steps)).is_err() {
            remove_to_the_end(&fewer, &["data"]).expect("removed");
        }
        assert_eq!(shown(&fewer), [4, 2], "{steps} steps");

        let more = roomy(folder.path(), &[("log", 2, 4), ("more", 1, 3), ("new", 1, 2)]);
        if add(&more, false, &mut |_| {}, &mut interrupted(steps)).is_err() {
            add_to_the_end(&more, false).expect("added");
        }
        assert_eq!(shown(&more), [4, 2, 1], "{steps} steps");

        // One gets more room, of another more is shown of what it has.
        let larger = roomy(folder.path(), &[("log", 2, 8), ("more", 3, 3), ("new", 1, 2)]);
        if grow(&larger, false, &mut |_| {}, &mut interrupted(steps)).is_err() {
            // What came behind the superblock is the metadata alone.
            let again = grow(&larger, false, &mut |_| {}, &mut |_| Ok(()));
            assert!(again.is_ok(), "{steps} steps: {again:?}");
        }
        assert_eq!(shown(&larger), [4, 3, 1], "{steps} steps");
        assert!(opens(&larger), "{steps} steps");
        let (log, seen) = (&larger.volumes[0].path, &larger.volumes[1].path);
        assert_eq!(fs::metadata(log).expect("a file").len(), 8 * MIB);
        // What it was formatted with, and what is shown from now on.
        assert!(taken(seen) >= 2 * MIB, "what is shown is reserved: {}", taken(seen));
        assert!(taken(log) < 5 * MIB, "and what is not takes no space: {}", taken(log));
    }
}

#[test]
fn another_change_than_the_one_that_was_interrupted_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let before = roomy(folder.path(), &[("data", 1, 4), ("log", 2, 3)]);
    format(&before, Existing::default(), &mut |_| {}).expect("formatted");
    show(&before, &[2, 3]);
    let fewer = roomy(folder.path(), &[("log", 2, 3)]);
    remove(&fewer, &["data".to_owned()], &mut interrupted(1)).expect_err("interrupted");
    let more = roomy(folder.path(), &[("data", 1, 4), ("log", 2, 3), ("new", 1, 1)]);
    let refused = add_to_the_end(&more, false).expect_err("refused");
    assert!(matches!(refused, ChangeError::Unfinished { .. }), "{refused}");
    remove_to_the_end(&fewer, &["data"]).expect("removed");
    assert_eq!(shown(&fewer), [3]);
}
