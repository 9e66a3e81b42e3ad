//! A running site as its operator sees it: status, histograms, waiting, stopping, placement, load.

#[path = "common/pair.rs"]
#[allow(dead_code, reason = "other tests use the rest of it")]
mod pair;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use lockstep::io::nbd_client::{ClientOptions, NbdClient, Operation};
use pair::*;
use serde_json::Value;

fn ask(site: &Site, command: &str, more: &[&str]) -> Output {
    lockstep(&[&[command, "--config", path(&site.config)], more].concat())
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("an exit code")
}

fn alone() -> Options {
    Options { pair: false, ..Options::default() }
}

/// Writes some blocks and leaves.
fn write(site: &Site, blocks: u64) {
    let mut client = site.connect("data");
    for block in 0..blocks {
        client.write(block * 4096, &[(block % 255) as u8 + 1; 4096], false).expect("written");
    }
    client.disconnect().expect("disconnected");
}

fn stage<'a>(report: &'a Value, name: &str) -> &'a Value {
    let stages = report["stages"].as_array().expect("stages");
    stages.iter().find(|stage| stage["name"] == name).unwrap_or_else(|| panic!("{name} is not in {report:#}"))
}

#[test]
fn a_site_alone_is_seen_measured_waited_for_and_stopped() {
    let mut sites = Sites::format(&alone());
    let left = &mut sites.left;
    left.start();
    write(left, 50);
    succeeds(ask(left, "wait", &["--settled", "--timeout", "30s"]));
    let status = left.status();
    assert_eq!((&status["state"], &status["role"]), (&"serving".into(), &"primary".into()));
    assert_eq!(status["peer"], Value::Null);
    assert!(status["watermarks"]["settled"].as_u64() >= Some(50), "{status:#}");
    assert_eq!(status["totals"]["writes"], 50);
    let shown = succeeds(ask(left, "status", &[]));
    assert!(shown.contains("left (id 1), primary of group tested: serving"), "{shown}");

    let report: Value =
        serde_json::from_str(&succeeds(ask(left, "histogram", &["--format", "json"]))).expect("JSON");
    for name in ["write", "journal", "front_ring", "reply_ring"] {
        assert!(stage(&report, name)["count"].as_u64() >= Some(50), "{name}: {report:#}");
    }
    assert_eq!(stage(&report, "wire")["count"], 0);
    assert_eq!(report["counters"]["writes"], 50);
    assert!(succeeds(ask(left, "histogram", &["--plot"])).contains("waiting"));
    assert!(succeeds(ask(left, "histogram", &["--format", "csv"])).starts_with("stage,kind,count"));
    assert!(succeeds(ask(left, "histogram", &["--format", "hgrm"])).contains("1/(1-Percentile)"));
    let svg = succeeds(ask(left, "histogram", &["--format", "svg", "--reset"]));
    assert!(svg.starts_with("<svg") && svg.contains("journal"), "{svg}");
    let report: Value =
        serde_json::from_str(&succeeds(ask(left, "histogram", &["--format", "json"]))).expect("JSON");
    assert_eq!(stage(&report, "write")["count"], 0, "it was reset");

    let output = ask(left, "wait", &["--in-sync", "--timeout", "100ms"]);
    assert_eq!(code(&output), 5);
    assert!(fails(output).contains("no peer"));
    let control = left.nbd.with_extension("control");
    assert_eq!(std::fs::metadata(&control).expect("the socket").permissions().mode() & 0o777, 0o600);

    write(left, 2_000);
    succeeds(ask(left, "stop", &[]));
    // Whoever works on its files next finds them free, though there was something to write.
    let looked = succeeds(left.lockstep(&["snapshot", "repair"]));
    assert!(looked.contains("are sound"), "{looked}");
    assert!(left.exited().success());
    assert!(!control.exists(), "the control socket stays behind");
    assert!(!left.nbd.exists(), "the NBD socket stays behind");
    let text = fails(ask(left, "status", &[]));
    assert!(text.contains("no site answers") && text.contains("lockstep run"), "{text}");
    left.start();
    let status = left.status();
    assert!(status["watermarks"]["last"].as_u64() >= Some(2_050), "{status:#}");
    assert_eq!(
        status["watermarks"]["checkpoint"], status["watermarks"]["last"],
        "a stop writes a checkpoint"
    );
    assert!(left.stop().success(), "SIGTERM");
}

/// Probes that are ended by whoever began them must not keep the places of those who could end what they wait for.
#[test]
fn waits_that_were_interrupted_leave_their_places() {
    let mut sites = Sites::format(&Options::default());
    sites.left.start();
    let arguments = ["wait", "--in-sync", "--timeout", "1h", "--config", path(&sites.left.config)];
    for _ in 0..20 {
        let mut wait = Command::new(env!("CARGO_BIN_EXE_lockstep"));
        let mut wait = wait.args(arguments).stderr(Stdio::null()).spawn().expect("it waits");
        std::thread::sleep(Duration::from_millis(50));
        assert!(wait.try_wait().expect("its state").is_none(), "it waits for a peer that is away");
        wait.kill().expect("a signal");
        wait.wait().expect("it ends");
    }
    sites.left.until("it answers", |left| ask(left, "status", &[]).status.success());
    assert!(sites.left.stop().success());
}

#[test]
fn a_wait_for_a_site_that_does_not_come_is_not_in_time() {
    let sites = Sites::format(&alone());
    let output = ask(&sites.left, "wait", &["--settled", "--timeout", "100ms"]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(code(&output), 5, "{text}");
    assert!(text.contains("no site answers"), "{text}");
}

/// A slip in the configuration costs nobody's data.
#[test]
fn a_file_that_is_not_the_sites_own_is_not_taken_for_staging() {
    let mut sites = Sites::format(&Options::default());
    let (image, others) = (sites.path("image"), sites.left.directory.join("journal"));
    // As btrfs and ISO 9660 begin.
    let blank = sites.path("blank");
    std::fs::write(&image, vec![7; 1 << 20]).expect("written");
    std::fs::write(&blank, [vec![0; 64 << 10], vec![7; 1 << 20]].concat()).expect("written");
    let right = &mut sites.right;
    let config = std::fs::read_to_string(&right.config).expect("a configuration");
    let mut begin = |staging: &Path| {
        let text = format!("{config}\n[staging]\npath = \"{}\"\n", path(staging));
        std::fs::write(&right.config, text).expect("written");
        let started = right.try_start();
        if started {
            assert!(right.stop().success());
        }
        (started, right.log_text())
    };
    for foreign in [&image, &blank, &others] {
        let before = std::fs::read(foreign).expect("a file");
        let (started, text) = begin(foreign);
        assert!(!started && text.contains("staging.path") && text.contains(path(foreign)), "{text}");
        assert!(std::fs::read(foreign).expect("a file") == before, "it is as it was");
    }
    std::fs::write(&image, []).expect("emptied");
    assert!(begin(&image).0, "nobody needs an empty file");
    assert!(begin(&image).0, "it is its own now");
}

#[test]
fn nonsense_on_the_control_socket_is_answered_and_harms_nobody() {
    let mut sites = Sites::format(&alone());
    sites.left.start();
    let control = sites.left.nbd.with_extension("control");
    let lines: [&[u8]; 6] = [
        b"\n",
        b"status\n",
        b"{\"request\":\"reboot\"}\n",
        b"{\"request\":\"histogram\",\"reset\":3}\n",
        b"\xff\xfe\0\n",
        b"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\n",
    ];
    let mut stream = UnixStream::connect(&control).expect("connected");
    let mut replies = BufReader::new(stream.try_clone().expect("a second handle"));
    for line in lines {
        stream.write_all(line).expect("sent");
        let mut reply = String::new();
        replies.read_line(&mut reply).expect("answered");
        assert!(reply.contains("\"failed\""), "{line:?}: {reply}");
    }
    stream.write_all(&[b'x'; 5000]).expect("sent");
    let mut reply = String::new();
    replies.read_line(&mut reply).expect("answered");
    assert!(reply.contains("too long"), "{reply}");
    drop((stream, replies));

    // More connections than there are places: those beyond are told so, the rest works on.
    let mut held: Vec<UnixStream> =
        (0..20).map(|_| UnixStream::connect(&control).expect("connected")).collect();
    let mut refused = String::new();
    let last = held.pop().expect("twenty");
    BufReader::new(last).read_line(&mut refused).expect("answered");
    assert!(refused.contains("limit"), "{refused}");
    drop(held);
    sites.left.until("it answers again", |left| ask(left, "status", &[]).status.success());
    write(&sites.left, 1);
    assert!(sites.left.stop().success());
}

#[test]
fn files_that_do_not_fit_are_refused_with_their_own_exit_code() {
    let sites = Sites::format(&alone());
    let left = &sites.left;
    let original = std::fs::read_to_string(&left.config).expect("read");
    let with = |from: &str, to: &str| {
        assert!(original.contains(from), "{original}");
        std::fs::write(&left.config, original.replacen(from, to, 1)).expect("written");
        ask(left, "run", &[])
    };
    let output = with("name = \"tested\"", "name = \"another\"");
    assert_eq!(code(&output), 4);
    let text = fails(output);
    assert!(text.contains("formatted as tested") && text.contains("says another"), "{text}");
    let output = with("size = \"64MiB\"", "size = \"32MiB\"");
    assert_eq!(code(&output), 4);
    assert!(fails(output).contains("16384 blocks"), "the volume's size in both");
    let output = with("cores = [", "cores = [1023]\n# [");
    assert_eq!(code(&output), 1);
    assert!(fails(output).contains("CPU 1023"));
    std::fs::write(&left.config, &original).expect("written");
    let journal = left.directory.join("journal");
    let file = std::fs::OpenOptions::new().write(true).open(&journal).expect("opened");
    (&file).write_all(&[0; 8192]).expect("both superblocks are gone");
    let output = ask(left, "run", &[]);
    assert_eq!(code(&output), 4);
    assert!(fails(output).contains("journal"));
    std::fs::remove_file(&journal).expect("removed");
    let output = ask(left, "run", &[]);
    assert_eq!(code(&output), 4);
    assert!(fails(output).contains("lockstep format"));
}

/// The link and the volumes run where the configuration puts them, and work there.
#[test]
fn helpers_run_on_the_cores_they_are_given() {
    let cpus: Vec<usize> =
        core_affinity::get_core_ids().expect("CPUs").into_iter().map(|core| core.id).collect();
    let [first, second] = [cpus[0], *cpus.last().expect("a CPU")];
    if first == second {
        eprintln!("one CPU: there is nothing to place");
        return;
    }
    let reactors = format!(
        "cores = [{first}, {second}]\ngroup = {first}\nlink = {second}\ncapture = {second}\nfront = {first}\nidle = \"park\""
    );
    let mut sites = Sites::start(&Options { reactors, ..Options::default() });
    let wanted =
        [("nbd", first), ("group", first), ("journal", first), ("link", second), ("volumes", second)];
    write(&sites.left, 300);
    sites.wait("--settled");
    sites.left.until("each helper has worked on its core", |left| {
        let status = left.status();
        let stages = status["stages"].as_array().expect("stages").clone();
        wanted.iter().all(|(name, cpu)| stages.iter().any(|s| s["name"] == *name && s["cpu"] == *cpu))
    });
    for site in [&mut sites.left, &mut sites.right] {
        assert!(site.log_text().contains(&format!("CPU {second}: link, volumes")), "{}", site.log_text());
        assert!(site.stop().success());
    }
}

#[test]
fn a_load_from_inside_verifies_what_it_reads() {
    let sites = Sites::format(&alone());
    let shown = succeeds(ask(
        &sites.left,
        "load",
        &["--seconds", "1", "--depth", "16", "--read", "50", "--verify", "--format", "json"],
    ));
    let result: Value = serde_json::from_str(&shown).expect("JSON");
    assert!(result["reads"].as_u64() > Some(10) && result["writes"].as_u64() > Some(10), "{result:#}");
    assert_eq!((&result["mismatches"], &result["errors"]), (&0.into(), &0.into()));
    assert_eq!(stage(&result, "write")["count"], result["writes"]);
    let text = fails(ask(&sites.left, "load", &["--volume", "nothing"]));
    assert!(text.contains("no volume \"nothing\""), "{text}");
    let text = fails(ask(&sites.left, "load", &["--block", "1MiB"]));
    assert!(text.contains("128 KiB"), "{text}");
}

#[test]
fn a_load_over_nbd_at_a_fixed_rate_keeps_it() {
    let mut sites = Sites::format(&alone());
    sites.left.start();
    let uri = sites.left.uri("data");
    let arguments =
        ["load", &uri, "--seconds", "2", "--depth", "64", "--rate", "500", "--verify", "--format", "json"];
    let result: Value = serde_json::from_str(&succeeds(lockstep(&arguments))).expect("JSON");
    let writes = result["writes"].as_u64().expect("a number");
    assert!((990..=1000).contains(&writes), "{writes} writes in 2 s at 500 a second");
    let text = fails(lockstep(&["load", &uri, "--offset", "64MiB", "--length", "4KiB"]));
    assert!(text.contains("no range"), "{text}");
    assert!(sites.left.stop().success());
}

/// Faults on order reach the disks: a journal that fails makes the site leave, and hosts get errors, not silence.
#[test]
fn a_failed_journal_is_an_error_to_hosts_and_to_the_operator() {
    let mut sites = Sites::format(&alone());
    let plan = sites.path("plan.toml");
    std::fs::write(&plan, "[[rule]]\ndisk = \"journal\"\nop = \"write\"\nafter = 20\nerrno = 5\n")
        .expect("written");
    sites.left.start_with(&["--faults", path(&plan)]);
    let mut client = sites.left.connect_when_served("data");
    let failed = (0..1000u64).find(|block| client.write(block % 100 * 4096, &[7; 4096], false).is_err());
    assert!(failed.is_some(), "no write failed");
    sites.left.until("its status says so", |left| left.status()["state"] == "failed");
    let text = sites.left.log_text();
    assert!(text.contains("the journal") && text.contains("has left the group"), "{text}");
    drop(client);
    assert_eq!(sites.left.stop().code(), Some(1));
}

/// The first megabyte as `base:allocation` has it: runs of blocks and whether they are known to be zeros.
fn map(site: &Site) -> Vec<(u32, bool)> {
    let uri = site.uri("data").parse().expect("a URI");
    let options = ClientOptions { allocation: true, ..ClientOptions::default() };
    let mut client = NbdClient::connect(&uri, options).expect("connected");
    let status = Operation::BlockStatus { offset: 0, length: 1 << 20, one: false };
    let extents = client.call(status).expect("answered").extents;
    client.disconnect().expect("disconnected");
    let mut runs: Vec<(u32, bool)> = Vec::new();
    for (length, flags) in extents {
        let (blocks, zeros) = (length / 4096, flags & 2 != 0);
        match runs.last_mut() {
            Some(last) if last.1 == zeros => last.0 += blocks,
            _ => runs.push((blocks, zeros)),
        }
    }
    runs
}

#[test]
fn block_status_tells_zeros_from_data_on_both_sites_and_after_a_restart() {
    let mut sites = Sites::start(&Options::default());
    sites.left.until("all is zeros", |left| map(left) == [(256, true)]);
    let mut client = sites.left.connect("data");
    client.write(10 * 4096, &[1; 20 * 4096], false).expect("written");
    assert_eq!(map(&sites.left), [(10, true), (20, false), (226, true)], "a completed write is data at once");
    client.write_zeroes(15 * 4096, 5 * 4096).expect("zeroed");
    client.trim(25 * 4096, 4 * 4096).expect("trimmed");
    client.write(26 * 4096 + 512, &[2; 512], false).expect("written");
    client.disconnect().expect("disconnected");
    let expected = [
        (10, true),
        (5, false),
        (5, true),
        (5, false),
        (1, true),
        (1, false),
        (2, true),
        (1, false),
        (226, true),
    ];
    sites.left.until("zeroed blocks are zeros", |left| map(left) == expected);
    sites.wait("--settled");
    sites.right.until("the other site agrees", |right| map(right) == expected);
    sites.left.kill();
    sites.left.start();
    sites.wait("--in-sync");
    sites.left.until("a restarted site finds out", |left| map(left) == expected);
}
