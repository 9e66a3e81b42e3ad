//! The commands, as a person runs them.

use std::fs;
use std::io::PipeWriter;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use lockstep::base::{BLOCK_BYTES, SiteId, UpdateNumber, sum_of_block};
use lockstep::format::superblock::{Superblock, newest_of};
use lockstep::io::metadata::Metadata;

fn lockstep(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lockstep")).args(arguments).output().expect("lockstep runs")
}

#[track_caller]
fn succeeds(arguments: &[&str]) -> String {
    let output = lockstep(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

#[track_caller]
fn fails(arguments: &[&str], code: i32, expected: &[&str]) {
    let output = lockstep(arguments);
    let shown = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {shown}");
    for part in expected {
        assert!(shown.contains(part), "{part:?} is not in:\n{shown}");
    }
}

/// A folder on a filesystem that takes O_DIRECT, where the build is.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary folder")
}

fn site(folder: &Path) -> PathBuf {
    let file = folder.join("left.toml");
    let text = "[site]\nname = \"left\"\nid = 7\nrole = \"primary\"\ndirectory = \"left\"\ncontrol = \"/tmp/c\"\n\
                [group]\nname = \"orders\"\n[[volume]]\nname = \"data\"\nsize = \"8MiB\"\nspace = \"sparse\"\n[[volume]]\nname = \"log\"\n\
                size = \"4MiB\"\n[journal]\nsize = \"16MiB\"\n[differential]\nsize = \"4MiB\"\nspace = \"sparse\"\n\
                [nbd]\nsocket = \"/tmp/n\"\n";
    fs::write(&file, text).expect("written");
    file
}

fn superblock(journal: &Path) -> Result<Superblock, String> {
    let bytes = fs::read(journal).expect("read");
    let slot = |index: usize| {
        let block = bytes[index * BLOCK_BYTES..][..BLOCK_BYTES].try_into().expect("a block");
        Superblock::decode(block)
    };
    newest_of(slot(0), slot(1)).map_err(|error| error.to_string())
}

#[test]
fn the_example_is_accepted_by_check() {
    let folder = folder();
    let file = folder.path().join("site.toml");
    fs::write(&file, succeeds(&["config", "example"])).expect("written");
    let shown = succeeds(&["check", "--config", file.to_str().expect("a path")]);
    assert!(shown.contains("correct") && shown.contains("volume data: 100GiB"), "{shown}");
}

#[test]
fn a_refused_configuration_has_its_own_exit_code() {
    let folder = folder();
    let file = folder.path().join("site.toml");
    fs::write(&file, "[site]\nname = 5\n").expect("written");
    fails(&["check", "--config", file.to_str().expect("a path")], 3, &["site.toml:2", "name"]);
    fails(&["check", "--config", "/nonexistent.toml"], 3, &["/nonexistent.toml", "cannot be read"]);
    fails(&["check"], 2, &["--config"]);
}

#[test]
fn an_identity_is_made_once_and_its_fingerprint_can_be_shown_again() {
    let folder = folder();
    let file = folder.path().join("identity.pem");
    let file = file.to_str().expect("a path");
    let made = succeeds(&["keygen", "--identity", file, "--site", "left"]);
    assert!(made.starts_with("sha256:"), "{made}");
    assert_eq!(succeeds(&["keygen", "--identity", file, "--show"]), made);
    fails(&["keygen", "--identity", file, "--site", "left"], 4, &["exists", "fingerprint"]);
    assert_eq!(succeeds(&["keygen", "--identity", file, "--show"]), made);
}

#[test]
fn formatting_makes_every_file_and_touches_none_that_exists() {
    let folder = folder();
    let file = site(folder.path());
    let file = file.to_str().expect("a path");
    succeeds(&["format", "--config", file]);

    let left = folder.path().join("left");
    let size = |name: &str| fs::metadata(left.join(name)).expect("made").len();
    assert_eq!([size("data.volume"), size("log.volume")], [8 << 20, 4 << 20]);
    assert_eq!([size("data.checksums"), size("log.checksums")], [8 << 10, 4 << 10]);
    assert_eq!([size("differential"), size("journal")], [4 << 20, 16 << 20]);
    let allocated = |name: &str| fs::metadata(left.join(name)).expect("made").blocks() * 512;
    assert_eq!(allocated("data.volume"), 0, "the volume was to be sparse");
    assert_eq!(allocated("differential"), 0, "the differential volume was to be sparse");
    assert!(allocated("log.volume") >= 4 << 20, "a volume has its space reserved");
    assert!(allocated("journal") >= 16 << 20, "a journal has all its blocks");

    let found = superblock(&left.join("journal")).expect("a superblock");
    assert_eq!((found.site, found.journal_blocks, found.checkpoint), (SiteId(7), 4096, UpdateNumber::NONE));
    assert_eq!(found.volume_blocks(), [2048, 1024]);
    let journal = fs::read(left.join("journal")).expect("read");
    assert!(journal[2 * BLOCK_BYTES..].iter().all(|byte| *byte == 0), "the ring is empty");
    let record = Metadata::open(&left.join("metadata.redb")).expect("opened").record().expect("whole");
    assert_eq!((record.group.as_str(), record.volumes.len(), record.id), ("orders", 2, SiteId(7)));

    fs::write(left.join("data.volume"), "precious").expect("written");
    fs::remove_file(left.join("log.volume")).expect("removed");
    let expected = ["data.volume", "journal", "metadata.redb", "nothing was changed", "--force"];
    fails(&["format", "--config", file], 4, &expected);
    assert_eq!(fs::read(left.join("data.volume")).expect("read"), b"precious");
    assert!(!left.join("log.volume").exists(), "a refused format made a file");

    succeeds(&["format", "--config", file, "--force"]);
    assert!(fs::read(left.join("data.volume")).expect("read").iter().all(|byte| *byte == 0));
    superblock(&left.join("journal")).expect("a superblock");
}

#[test]
fn a_site_in_use_is_not_formatted_even_by_force() {
    let folder = folder();
    let file = site(folder.path());
    let file = file.to_str().expect("a path");
    succeeds(&["format", "--config", file]);
    let journal = folder.path().join("left/journal");
    let held = fs::File::open(&journal).expect("opened");
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).expect("locked");
    fails(&["format", "--config", file, "--force"], 4, &["journal", "locked"]);
    superblock(&journal).expect("the journal is as it was");
    assert!(folder.path().join("left/metadata.redb").exists());
}

#[test]
fn a_journal_formatted_halfway_has_no_superblock() {
    let folder = folder();
    let file = site(folder.path());
    let path = file.to_str().expect("a path");
    succeeds(&["format", "--config", path]);
    // The volume cannot be made, after the journal was begun.
    let left = folder.path().join("left");
    fs::remove_file(left.join("data.volume")).expect("removed");
    fs::create_dir(left.join("data.volume")).expect("a folder in the way");
    fails(&["format", "--config", path, "--force"], 4, &["data.volume", "neither a file nor a block device"]);
    let error = superblock(&left.join("journal")).expect_err("no superblock may be left");
    assert!(error.contains("neither superblock slot is valid"), "{error}");
}

#[test]
fn a_site_adopts_what_its_volumes_hold_and_nothing_else() {
    let folder = folder();
    let file = site(folder.path());
    let path = file.to_str().expect("a path");
    let adopt = ["format", "--config", path, "--adopt"];
    fails(&adopt, 4, &["data.volume", "nothing to adopt"]);
    let left = folder.path().join("left");
    fs::create_dir_all(&left).expect("a folder");
    let mut data = vec![0; 8 << 20];
    data[5 * BLOCK_BYTES..6 * BLOCK_BYTES].fill(0x5a);
    data[1500 * BLOCK_BYTES] = 1;
    fs::write(left.join("data.volume"), &data).expect("written");
    fs::write(left.join("log.volume"), vec![7; 5 << 20]).expect("written");
    fails(&adopt, 4, &["log.volume", "5242880 bytes", "4194304", "adopted as a whole"]);
    assert!(!left.join("journal").exists() && !left.join("data.checksums").exists(), "nothing was made");
    fs::write(left.join("log.volume"), vec![7; 4 << 20]).expect("written");
    let said = succeeds(&adopt);
    assert!(said.contains("with what its volumes hold, and begins as primary"), "{said}");
    assert!(fs::read(left.join("data.volume")).expect("read") == data, "a volume is as it was");

    let found = superblock(&left.join("journal")).expect("a superblock");
    let first = UpdateNumber(1);
    assert_eq!([found.checkpoint, found.settled, found.known_durable], [first; 3]);
    let generations: Vec<_> = found.history.iter().collect();
    assert_eq!(generations, [(found.checkpoint_generation, first)]);
    assert_eq!(found.checkpoint_generation.opener(), SiteId(7));
    assert!(!found.solo, "without a peer nobody is alone");
    let sums = fs::read(left.join("data.checksums")).expect("read");
    let sum = |block: usize| u32::from_le_bytes(sums[4 * block..4 * block + 4].try_into().expect("four"));
    let due = |block: usize| {
        let bytes = data[block * BLOCK_BYTES..][..BLOCK_BYTES].try_into().expect("a block");
        sum_of_block(bytes).0
    };
    assert_eq!([sum(0), sum(5), sum(6), sum(1500)], [0, due(5), 0, due(1500)]);
    assert_eq!(sums.len(), 8 << 10);

    // What it was before is overwritten by force only, and then it is another one.
    let advice = "`lockstep format --adopt --force` makes these anew, and keeps what the volumes hold";
    fails(&adopt, 4, &["journal", "data.checksums", "nothing was changed", advice]);
    succeeds(&["format", "--config", path, "--adopt", "--force"]);
    assert!(fs::read(left.join("data.volume")).expect("read") == data, "by force neither");
    let again = superblock(&left.join("journal")).expect("a superblock");
    assert!(again.checkpoint_generation > found.checkpoint_generation);
}

/// `| head` has seen enough: that is no error, and no panic.
#[test]
fn a_reader_that_goes_ends_the_command() {
    let command = |stdout: PipeWriter| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lockstep"));
        command.args(["config", "example"]).stdout(stdout).output().expect("lockstep runs")
    };
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let output = command(writer);
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(0), ""));
}

#[test]
fn cargo_run_means_the_product() {
    let manifest: toml::Table = include_str!("../Cargo.toml").parse().expect("a manifest");
    assert_eq!(manifest["package"]["default-run"].as_str(), Some("lockstep"));
}
