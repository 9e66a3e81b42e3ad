//! Every client that people use, against a running pair.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::checker::{Checker, Next};
use crate::pair::*;

/// Seconds that fio's verifying job runs; `tests/torture` runs it for a minute.
fn fio_seconds() -> u64 {
    std::env::var("LOCKSTEP_FIO_SECONDS").map_or(4, |text| text.parse().expect("a number of seconds"))
}

/// fio reads back what it wrote, at every size from a sector to a mebibyte, in two jobs side by side.
fn fio_verifies(uri: &str, job_mib: u64) -> std::process::Output {
    let mut arguments = vec![
        "--ioengine=nbd".to_owned(),
        format!("--uri={uri}"),
        "--rw=randrw".to_owned(),
        "--bsrange=512-1M".to_owned(),
        "--iodepth=32".to_owned(),
        "--serialize_overlap=1".to_owned(),
        "--verify=crc32c".to_owned(),
        "--verify_fatal=1".to_owned(),
        "--verify_state_save=0".to_owned(),
        "--time_based".to_owned(),
        format!("--runtime={}", fio_seconds()),
        format!("--size={job_mib}M"),
        "--output-format=terse".to_owned(),
    ];
    for job in 0..2 {
        arguments.push(format!("--name=job{job}"));
        arguments.push(format!("--offset={}M", job * job_mib));
    }
    let seconds_max = (fio_seconds() + PATIENCE.as_secs()).to_string();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    tool("timeout", &[&[seconds_max.as_str(), "fio"], &arguments[..]].concat())
}

fn identical(sites: &Sites, export: &str) {
    sites.wait("--settled");
    let (left, right) = (sites.left.uri(export), sites.right.uri(export));
    let compared = tool("qemu-img", &["compare", "-f", "raw", "-F", "raw", &left, &right]);
    assert!(succeeds(compared).contains("identical"));
}

#[test]
fn fio_and_the_checker_find_what_they_wrote_and_both_sites_are_identical() {
    let job_mib = 24;
    let sites = Sites::start(&Options { volumes: vec![("data", 64)], ..Options::default() });
    let blocks = 2 * job_mib * MIB / 4096..64 * MIB / 4096;
    let uri = sites.left.uri("data");
    std::thread::scope(|scope| {
        let fio = scope.spawn(|| fio_verifies(&uri, job_mib));
        // Trims and zeroes on a range of its own, for as long as fio runs.
        let mut checker = Checker::new(blocks, 3);
        let mut client = sites.left.connect("data");
        let session =
            checker.drive(&mut client, 16, |_| if fio.is_finished() { Next::Drain } else { Next::GoOn });
        assert!(session.acknowledged > 0 && session.refused == 0 && !session.disconnected, "{session:?}");
        succeeds(fio.join().expect("fio's thread"));
        checker.verify(&mut client, "the primary");
        sites.wait("--settled");
        checker.verify(&mut sites.right.connect("data"), "the secondary");
    });
    identical(&sites, "data");
}

/// The job above has to be able to fail.
#[test]
fn fio_finds_out_a_server_that_forgets() {
    let forgets = Nbdkit::start(&["null", "size=64M"]);
    let shown = fails(fio_verifies(&forgets.uri(), 24));
    assert!(shown.contains("verify"), "{shown}");
    let remembers = Nbdkit::start(&["memory", "64M"]);
    succeeds(fio_verifies(&remembers.uri(), 24));
}

/// So has the checker.
#[test]
fn the_checker_finds_out_a_planted_loss_and_a_torn_block() {
    let server = Nbdkit::start(&["memory", "4M"]);
    let connect = || {
        let uri = server.uri().parse().expect("a URI");
        lockstep::io::nbd_client::NbdClient::connect(&uri, Default::default()).expect("a connection")
    };
    let damages: [fn(&mut Vec<u8>); 3] =
        [|block| block.fill(0), |block| block[512..1024].fill(0), |block| block[4095] ^= 1];
    for damage in damages {
        let mut checker = Checker::new(0..1024, 5);
        let mut client = connect();
        // The server may hold what the checker before this one left.
        client.write_zeroes(0, 4 << 20).expect("zeroes");
        let session = checker.drive(&mut client, 8, |progress| {
            if progress.acknowledged < 2000 { Next::GoOn } else { Next::Drain }
        });
        assert!(session.acknowledged >= 2000);
        checker.verify(&mut client, "the server");
        let written = (0..1024)
            .find(|block| client.read(block * 4096, 4096).expect("a block").iter().any(|byte| *byte != 0))
            .expect("a written block");
        let mut block = client.read(written * 4096, 4096).expect("a block");
        damage(&mut block);
        client.write(written * 4096, &block, false).expect("written");
        let verified = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            checker.verify(&mut client, "the damaged server");
        }));
        assert!(verified.is_err(), "the damage went unnoticed");
    }
}

/// After power loss at both sites a block may be what it was since the last flush, and no older.
#[test]
fn the_checker_finds_out_a_flushed_block_that_goes_back() {
    let server = Nbdkit::start(&["memory", "4M"]);
    let uri = server.uri().parse().expect("a URI");
    let mut client =
        lockstep::io::nbd_client::NbdClient::connect(&uri, Default::default()).expect("connected");
    let mut checker = Checker::new(0..1024, 7);
    let drive = |checker: &mut Checker, client: &mut _| {
        let session = checker
            .drive(client, 8, |progress| if progress.acknowledged < 1000 { Next::GoOn } else { Next::Drain });
        assert!(session.acknowledged >= 1000);
    };
    drive(&mut checker, &mut client);
    let before = client.read(0, 4 << 20).expect("the volume");
    checker.all_is_flushed();
    drive(&mut checker, &mut client);
    checker.verify_flushed(&mut client, "the server");
    assert_eq!(checker.gone_back, 0);
    // Everything as it was at the flush is not what the flushes of the second drive promise.
    client.write(0, &before, false).expect("written");
    let verified = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        checker.verify_flushed(&mut client, "the server that forgot what was flushed");
    }));
    assert!(verified.is_err(), "the loss went unnoticed");
}

#[test]
fn nbdinfo_says_what_the_sites_offer() {
    let sites = Sites::start(&Options { volumes: vec![("data", 16), ("log", 8)], ..Options::default() });
    for (site, read_only) in [(&sites.left, false), (&sites.right, true)] {
        let listed = succeeds(tool("nbdinfo", &["--json", "--list", &site.uri("")]));
        let listed: Value = serde_json::from_str(&listed).expect("JSON");
        let exports = listed["exports"].as_array().expect("exports");
        let names: Vec<&str> = exports.iter().filter_map(|export| export["export-name"].as_str()).collect();
        assert_eq!(names, ["data", "log"], "{listed}");
        assert_eq!(exports[0]["export-size"], 16 * MIB, "{listed}");
        assert_eq!(exports[0]["is_read_only"], read_only, "{listed}");
        for can in ["can_flush", "can_multi_conn", "can_df"] {
            assert_eq!(exports[0][can], true, "{can}: {listed}");
        }
    }
    let listed = succeeds(tool("nbdinfo", &["--json", &sites.left.uri("data")]));
    let listed: Value = serde_json::from_str(&listed).expect("JSON");
    for can in ["can_fua", "can_trim", "can_zero", "can_fast_zero", "can_cache"] {
        assert_eq!(listed["exports"][0][can], true, "{can}: {listed}");
    }
    let contexts = &listed["exports"][0]["contexts"];
    assert_eq!(*contexts, serde_json::json!(["base:allocation"]), "{listed}");
    let shown = fails(tool("nbdinfo", &[&sites.left.uri("nosuch")]));
    assert!(shown.contains("nosuch"), "{shown}");
}

#[test]
fn qemu_io_writes_zeroes_discards_and_reads_patterns() {
    let sites = Sites::start(&Options { volumes: vec![("data", 16)], ..Options::default() });
    let uri = sites.left.uri("data");
    let commands = [
        "write -P 0xa5 0 1M",
        "write -f -P 0x5a 1M 512",
        "write -P 0x77 4097024 70k",
        "write -z 64k 64k",
        "discard 256k 128k",
        "flush",
        "read -P 0xa5 0 64k",
        "read -P 0 64k 64k",
        "read -P 0 256k 128k",
        "read -P 0xa5 128k 128k",
        "read -P 0x5a 1M 512",
        "read -P 0 1049088 3584",
        "read -P 0x77 4097024 70k",
    ];
    let arguments: Vec<&str> = commands.iter().flat_map(|command| ["-c", command]).collect();
    let shown = succeeds(tool("qemu-io", &[&["-f", "raw", &uri], &arguments[..]].concat()));
    assert!(!shown.contains("error") && !shown.contains("mismatch"), "{shown}");
    let past = tool("qemu-io", &["-f", "raw", "-c", "write 16M 4k", &uri]);
    assert!(!past.status.success(), "a write past the end was taken");
    identical(&sites, "data");
    // A secondary is for reading.
    let shown = fails(tool("qemu-io", &["-f", "raw", "-c", "write 0 4k", &sites.right.uri("data")]));
    assert!(shown.contains("Permission denied"), "{shown}");
    let read = tool("qemu-io", &["-r", "-f", "raw", "-c", "read -P 0x5a 1M 512", &sites.right.uri("data")]);
    succeeds(read);
}

/// nbdfuse shows the export as a file, and a loop device makes a disk of it.
#[test]
fn filesystems_are_made_filled_and_found_again_through_nbdfuse() {
    if let Err(reason) = can_mount() {
        eprintln!("not tried: {reason}");
        return;
    }
    for (kind, mib) in [("ext4", 64), ("xfs", 320)] {
        let sites = Sites::start(&Options { volumes: vec![("data", mib)], ..Options::default() });
        let (file, mount) = (sites.path("fuse"), sites.path("mount"));
        fs::write(&file, "").expect("a file to mount on");
        fs::create_dir(&mount).expect("a folder to mount on");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        {
            let disk = Loop::attach(&sites.left.uri("data"), &file);
            succeeds(tool(&format!("mkfs.{kind}"), &["-q", &disk.device]));
            let _mounted = Mount::new(&disk.device, &mount);
            succeeds(tool("cp", &["-a", path(&source), path(&mount.join("src"))]));
            succeeds(tool("sync", &["-f", path(&mount)]));
        }
        let disk = Loop::attach(&sites.left.uri("data"), &file);
        match kind {
            "ext4" => succeeds(tool("e2fsck", &["-fn", &disk.device])),
            _ => succeeds(tool("xfs_repair", &["-n", &disk.device])),
        };
        let _mounted = Mount::new(&disk.device, &mount);
        succeeds(tool("diff", &["-r", path(&source), path(&mount.join("src"))]));
        identical(&sites, "data");
    }
}

fn can_mount() -> Result<(), &'static str> {
    if !rustix::process::geteuid().is_root() {
        return Err("mounting takes root");
    }
    if File::options().read(true).write(true).open("/dev/fuse").is_err() {
        return Err("/dev/fuse cannot be opened");
    }
    if !tool("losetup", &["--find"]).status.success() {
        return Err("there is no loop device");
    }
    Ok(())
}

/// A loop device over nbdfuse; both end with the drop.
struct Loop {
    device: String,
    file: std::path::PathBuf,
    nbdfuse: Child,
}

impl Loop {
    fn attach(uri: &str, file: &Path) -> Loop {
        let nbdfuse = Command::new("nbdfuse")
            .args([path(file), uri])
            .stdin(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("nbdfuse does not run ({error}); tests/run installs it"));
        let mut attached = Loop { device: String::new(), file: file.to_owned(), nbdfuse };
        wait_until("nbdfuse shows the export", || fs::metadata(file).is_ok_and(|file| file.len() > 0));
        attached.device = succeeds(tool("losetup", &["--find", "--show", path(file)])).trim().to_owned();
        attached
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        if !self.device.is_empty() {
            tool("losetup", &["--detach", &self.device]);
            // The detach is carried out when the last user, often a udev probe, closes the device.
            let name = self.device.trim_start_matches("/dev/");
            let backing = Path::new("/sys/block").join(name).join("loop/backing_file");
            wait_until("the loop device lets go", || !backing.exists());
        }
        tool("umount", &[path(&self.file)]);
        let deadline = Instant::now() + PATIENCE;
        while matches!(self.nbdfuse.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                let _ = self.nbdfuse.kill();
                let _ = self.nbdfuse.wait();
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

struct Mount<'a>(&'a Path);

impl<'a> Mount<'a> {
    fn new(device: &str, at: &'a Path) -> Mount<'a> {
        succeeds(tool("mount", &[device, path(at)]));
        Mount(at)
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        let unmounted = tool("umount", &[path(self.0)]);
        if !unmounted.status.success() {
            tool("umount", &["--lazy", path(self.0)]);
        }
    }
}

/// A server to compare with; ends with its drop.
struct Nbdkit {
    child: Child,
    folder: tempfile::TempDir,
}

impl Nbdkit {
    fn start(plugin: &[&str]) -> Nbdkit {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("nbd");
        let child = Command::new("nbdkit")
            .args(["--foreground", "--unix", path(&socket)])
            .args(plugin)
            .stdin(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("nbdkit does not run ({error}); tests/run installs it"));
        let server = Nbdkit { child, folder };
        wait_until("nbdkit listens", || std::os::unix::net::UnixStream::connect(&socket).is_ok());
        server
    }

    fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.folder.path().join("nbd").display())
    }
}

impl Drop for Nbdkit {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn wait_until(what: &str, reached: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !reached() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
