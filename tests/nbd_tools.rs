//! Other people's NBD clients against our front, and our client against other people's servers. They know the protocol
//! from its specification, not from our constants.

#[path = "support/nbd_group.rs"]
mod nbd_group;
#[path = "support/nbd_server.rs"]
mod nbd_server;

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use lockstep::core::messages::HostError;
use lockstep::io::nbd_client::*;
use nbd_server::{Server, Setup};

/// Runs a tool to its end, which must come within a minute.
fn run(program: &str, arguments: &[&str]) -> Output {
    let output = Command::new("timeout").arg("60").arg(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("timeout(1) does not start: {error}"));
    let missing = matches!(output.status.code(), Some(126 | 127));
    assert!(!missing, "{program} is needed: apt-get install fio nbdkit libnbd-bin qemu-utils");
    output
}

/// Runs a tool that must succeed and returns what it printed.
fn succeed(program: &str, arguments: &[&str]) -> String {
    let output = run(program, arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {}: {error}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Folder {
        Folder(tempfile::tempdir().expect("a folder"))
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().expect("its path is text").into()
    }

    fn uri(&self) -> String {
        NbdUri::unix(self.path("nbd.sock"), "disk").to_string()
    }

    fn setup(&self, mebibytes: u64) -> Setup {
        Setup::new(self.path("nbd.sock").into(), mebibytes << 8)
    }
}

fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..length).map(|_| next()).collect()
}

/// Another server, ended with the test.
struct Other(Child);

impl Other {
    fn start(socket: &str, program: &str, arguments: &[&str]) -> Other {
        let child = Command::new(program).args(arguments).stdout(Stdio::null()).spawn();
        let child = child.unwrap_or_else(|error| panic!("{program} is needed: {error}"));
        let deadline = Instant::now() + Duration::from_secs(20);
        while !Path::new(socket).exists() {
            assert!(Instant::now() < deadline, "{program} does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        Other(child)
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        // Both only fail if it has ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn nbdinfo_sees_what_we_can() {
    let folder = Folder::new();
    let exports = vec![("disk".into(), 256, false), ("copy".into(), 512, true)];
    let server = Server::start(&Setup { exports, tcp: true, ..folder.setup(1) });
    let tcp = format!("nbd://{}/disk", server.tcp.expect("it listens"));
    assert_eq!(succeed("nbdinfo", &["--size", &tcp]).trim(), "1048576");
    let info = succeed("nbdinfo", &[&folder.uri()]);
    for line in [
        "protocol: newstyle-fixed without TLS, using structured packets",
        "export-size: 1048576 (1M)",
        "is_read_only: false",
        "can_cache: true",
        "can_df: true",
        "can_fast_zero: true",
        "can_flush: true",
        "can_fua: true",
        "can_multi_conn: true",
        "can_trim: true",
        "can_zero: true",
        "block_size_minimum: 512",
        "block_size_preferred: 4096",
        "block_size_maximum: 33554432",
    ] {
        assert!(info.contains(line), "{line} is not in {info}");
    }
    let address = NbdUri::unix(folder.path("nbd.sock"), "").to_string();
    let list = succeed("nbdinfo", &["--list", &address]);
    assert!(list.contains("export=\"disk\"") && list.contains("export=\"copy\""), "{list}");
    let map = succeed("nbdinfo", &["--map", &folder.uri()]);
    assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", "1048576", "0", "data"]);
    let copy = NbdUri::unix(folder.path("nbd.sock"), "copy").to_string();
    assert!(succeed("nbdinfo", &[&copy]).contains("is_read_only: true"));
    let other = NbdUri::unix(folder.path("nbd.sock"), "other").to_string();
    let refused = run("nbdinfo", &[&other]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("other"), "{said}");
    server.stop();
}

#[test]
fn nbdcopy_and_qemu_img_bring_back_what_they_put() {
    let folder = Folder::new();
    let server = Server::start(&folder.setup(32));
    let (image, back) = (folder.path("image"), folder.path("back"));
    std::fs::write(&image, noise(32 << 20)).expect("it is written");
    succeed("nbdcopy", &["--flush", &image, &folder.uri()]);
    succeed("nbdcopy", &[&folder.uri(), &back]);
    assert!(std::fs::read(&image).expect("read") == std::fs::read(&back).expect("read"));

    let raw = ["-f", "raw", "-F", "raw"];
    succeed("qemu-img", &[&["compare"], raw.as_slice(), &[&image, &folder.uri()]].concat());
    std::fs::write(&image, [noise(5 << 20), vec![0; 27 << 20]].concat()).expect("it is written");
    succeed("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", &image, &folder.uri()]);
    succeed("qemu-img", &[&["compare"], raw.as_slice(), &[&image, &folder.uri()]].concat());
    let zeroed = folder.path("zeroed");
    std::fs::write(&zeroed, vec![0; 32 << 20]).expect("it is written");
    let differ = run("qemu-img", &[&["compare"], raw.as_slice(), &[&zeroed, &folder.uri()]].concat());
    assert_eq!(differ.status.code(), Some(1), "it does see a difference");
    server.stop();
}

#[test]
fn qemu_io_gets_its_patterns_back() {
    let folder = Folder::new();
    let server = Server::start(&folder.setup(32));
    let commands = [
        "write -P 5 0 64k",
        "read -P 5 0 64k",
        "write -f -P 9 512 512",
        "read -P 9 512 512",
        "read -P 5 1k 63k",
        "write -z 4k 8k",
        "read -P 0 4k 8k",
        "write -z -u 16k 4k",
        "discard 20k 4k",
        "read -P 0 16k 8k",
        "aio_write -P 7 100k 20M",
        "aio_write -P 8 24M 1M",
        "aio_flush",
        "flush",
        "read -P 7 100k 20M",
        "read -P 8 24M 1M",
    ];
    let mut arguments = vec!["-f", "raw"];
    commands.iter().for_each(|command| arguments.extend(["-c", command]));
    let uri = folder.uri();
    arguments.push(&uri);
    succeed("qemu-io", &arguments);
    let wrong = run("qemu-io", &["-f", "raw", "-c", "read -P 1 0 4k", &uri]);
    assert!(!wrong.status.success(), "it does see a wrong pattern");
    server.stop();
}

#[test]
fn qemu_io_is_told_of_errors() {
    let folder = Folder::new();
    let server = Server::start(&Setup { failure: Some(HostError::Io), ..folder.setup(1) });
    let failed = run("qemu-io", &["-f", "raw", "-c", "write 0 4k", &folder.uri()]);
    let said = String::from_utf8_lossy(&failed.stdout);
    assert!(!failed.status.success() && said.contains("Input/output error"), "{said}");
    assert!(server.taken.load(std::sync::atomic::Ordering::Relaxed) > 0, "the group was asked");
    server.stop();
}

fn fio(uri: &str) -> Output {
    let uri = format!("--uri={uri}");
    let job = [
        "--name=verify",
        "--ioengine=nbd",
        &uri,
        "--rw=randrw",
        "--bsrange=512-1m",
        "--blockalign=512",
        "--iodepth=32",
        "--size=32m",
        "--io_size=96m",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--serialize_overlap=1",
        // Without this, mixed jobs expect the headers of another round when they write a block again.
        "--allrandrepeat=1",
    ];
    run("fio", &job)
}

#[test]
fn fio_verifies_what_it_wrote() {
    let folder = Folder::new();
    for pages in [4096, 40] {
        let server = Server::start(&Setup { pages, ..folder.setup(32) });
        let output = fio(&folder.uri());
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "with {pages} pages: {said}");
        server.stop();
    }
}

#[test]
fn fio_does_notice_a_server_that_forgets() {
    let folder = Folder::new();
    let socket = folder.path("null.sock");
    let _null = Other::start(&socket, "nbdkit", &["-f", "-U", &socket, "null", "size=32M"]);
    let output = fio(&NbdUri::unix(&socket, "").to_string());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("verify: bad"), "{said}");
}

/// Options of every kind a server may meet.
const OPTIONS: [ClientOptions; 3] = [
    ClientOptions { structured_replies: true, allocation: true, block_sizes: true },
    ClientOptions { structured_replies: true, allocation: false, block_sizes: false },
    ClientOptions { structured_replies: false, allocation: false, block_sizes: true },
];

#[test]
fn our_client_speaks_with_nbdkit_and_qemu() {
    let folder = Folder::new();
    let (kit, qemu, image) = (folder.path("kit.sock"), folder.path("qemu.sock"), folder.path("image"));
    // Holes, which QEMU sends as such.
    let file = std::fs::File::create(&image).expect("it is made");
    file.set_len(8 << 20).expect("it is sparse");
    let _kit = Other::start(&kit, "nbdkit", &["-f", "-U", &kit, "memory", "8M"]);
    let _qemu =
        Other::start(&qemu, "qemu-nbd", &["-t", "-e", "8", "-f", "raw", "-x", "d", "-k", &qemu, &image]);
    for (socket, export) in [(&kit, ""), (&qemu, "d")] {
        for options in OPTIONS {
            let uri = NbdUri::unix(socket, export);
            let mut client = NbdClient::connect(&uri, options).expect("it serves");
            assert_eq!(client.size(), 8 << 20);
            assert!(client.read(0, 4 << 20).expect("read") == vec![0; 4 << 20]);
            let data = noise(1 << 20);
            client.write(2 << 20, &data, true).expect("written");
            let read = client.read(1 << 20, 3 << 20).expect("read");
            let expected = [vec![0; 1 << 20], data, vec![0; 1 << 20]].concat();
            assert!(read == expected, "over a hole, data and a hole");
            if options.allocation {
                let status = Operation::BlockStatus { offset: 0, length: 8 << 20, one: false };
                let extents = client.call(status).expect("a status").extents;
                assert_eq!(extents[0], (2 << 20, 3), "a hole that reads as zeros: {extents:?}");
            }
            client.write_zeroes(2 << 20, 1 << 20).expect("zeroed");
            assert!(client.read(0, 4 << 20).expect("read") == vec![0; 4 << 20]);
            client.flush().expect("flushed");
            let error = client.read(8 << 20, 512).expect_err("beyond the end").to_string();
            assert!(error.contains("invalid argument"), "{error}");
            client.disconnect().expect("it says goodbye");
            // Back to a hole for the next round.
            if export == "d" {
                file.set_len(0).expect("it is emptied");
                file.set_len(8 << 20).expect("it is sparse");
            }
        }
    }
    let names = NbdClient::list(&NbdAddress::Unix(qemu.into())).expect("it lists");
    assert_eq!(names, ["d"]);
}
