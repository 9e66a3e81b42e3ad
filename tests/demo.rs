//! The demo, as a person runs it: two processes, a load, and both sites read back.

use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// Longest the sites may take to notice; a stop takes at most ten seconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// A folder where the build is, which takes O_DIRECT.
fn folder() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary folder")
}

fn demo(folder: &TempDir, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lockstep"));
    command.arg("demo").args(arguments).arg("--directory").arg(folder.path());
    if !arguments.contains(&"--seconds") {
        command.args(["--seconds", "1"]);
    }
    command.output().expect("lockstep runs")
}

fn json(output: &Output) -> Value {
    let shown = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {shown}"))
}

fn assert_finds_a_loss(output: &Output) {
    let shown = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(6), "a planted loss is missed: {shown}");
}

fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = value.as_object().expect("an object").keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

#[test]
fn both_sites_hold_what_was_acknowledged_and_nothing_stays_behind() {
    let folder = folder();
    let output = demo(&folder, &["--json", "--no-fio"]);
    let result = json(&output);
    assert!(output.status.success(), "{result:#}");
    let expected = [
        "acknowledged_writes",
        "iops",
        "latency_us",
        "load",
        "lost_writes",
        "scenario",
        "seconds",
        "sites",
        "stages",
    ];
    assert_eq!(keys(&result), expected);
    assert_eq!(keys(&result["latency_us"]), ["max", "p50", "p90", "p99", "p99.9", "p99.99"]);
    assert_eq!(
        (&result["scenario"], &result["load"]),
        (&Value::from("steady"), &Value::from("lockstep load"))
    );
    assert_eq!(result["lost_writes"], 0);
    assert!(result["acknowledged_writes"].as_u64() > Some(100), "{result:#}");
    let sites = result["sites"].as_array().expect("sites");
    assert_eq!(keys(&sites[0]), ["digest", "last_number", "name", "role"]);
    assert_eq!(sites[0]["digest"], sites[1]["digest"]);
    assert_eq!(sites[0]["last_number"], sites[1]["last_number"]);
    assert_eq!((&sites[0]["role"], &sites[1]["role"]), (&Value::from("primary"), &Value::from("secondary")));
    // The stages of a write add up to the whole.
    let stages = result["stages"].as_array().expect("stages");
    let time =
        |stage: &Value| stage["mean_us"].as_f64().unwrap_or(0.0) * stage["count"].as_f64().unwrap_or(0.0);
    let of = |name: &str| stages.iter().find(|stage| stage["name"] == name).map_or(0.0, time);
    let whole = of("write");
    let parts: f64 = stages.iter().map(time).sum::<f64>() - whole - of("reply_ring");
    assert!(whole > 0.0 && (parts - whole).abs() < 0.001 * whole, "parts {parts}, whole {whole}");
    let left: Vec<_> = std::fs::read_dir(folder.path()).expect("listed").collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_lost_write_is_found() {
    let output = demo(&folder(), &["--json", "--no-fio", "--plant-loss"]);
    let result = json(&output);
    assert_eq!(output.status.code(), Some(6), "{result:#}");
    assert!(result["lost_writes"].as_u64() >= Some(1), "{result:#}");
}

#[test]
fn fio_is_the_load_where_it_can_be() {
    let nbd = Command::new("fio").arg("--enghelp=nbd").output().is_ok_and(|output| output.status.success());
    let output = demo(&folder(), &["--json"]);
    let result = json(&output);
    assert!(output.status.success(), "{result:#}");
    assert_eq!(result["load"], if nbd { "fio" } else { "lockstep load" });
    assert!(
        result["iops"].as_f64() > Some(0.0) && result["latency_us"]["p99"].as_f64() > Some(0.0),
        "{result:#}"
    );
}

#[test]
fn a_person_gets_a_table_and_a_plot() {
    let output = demo(&folder(), &["--no-fio"]);
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{shown}");
    for part in ["waiting", "p99.99", "99.9%", "0 of them are missing", "left", "right"] {
        assert!(shown.contains(part), "{part:?} is not in:\n{shown}");
    }
}

/// Interrupted in the middle, it leaves no folder and no process.
#[test]
fn an_interrupted_demo_cleans_up() {
    use rustix::process::{Pid, Signal, kill_process};
    let folder = folder();
    let mut child = Command::new(env!("CARGO_BIN_EXE_lockstep"))
        .args(["demo", "--seconds", "60", "--no-fio", "--directory"])
        .arg(folder.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("lockstep runs");
    let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
    let started = lines.find(|line| line.as_ref().is_ok_and(|line| line.starts_with("load:")));
    assert!(started.is_some(), "no load began");
    let sites = || {
        let processes = std::fs::read_dir("/proc").expect("Linux").filter_map(Result::ok);
        let commands =
            processes.filter_map(|entry| std::fs::read_to_string(entry.path().join("cmdline")).ok());
        let name = folder.path().to_string_lossy().into_owned();
        commands.filter(|command| command.contains("--with-parent") && command.contains(&name)).count()
    };
    assert_eq!(sites(), 2);
    kill_process(Pid::from_child(&child), Signal::TERM).expect("a signal to a child");
    assert_eq!(child.wait().expect("its end").code(), Some(128 + 15));
    let begun = Instant::now();
    while sites() > 0 {
        assert!(begun.elapsed() < PATIENCE, "{} sites still run", sites());
        std::thread::sleep(Duration::from_millis(20));
    }
    let left: Vec<_> = std::fs::read_dir(folder.path()).expect("listed").collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn snapshots_taken_under_load_are_equal_at_both_sites() {
    let folder = folder();
    let output = demo(&folder, &["snapshot", "--json", "--seconds", "2"]);
    let result = json(&output);
    assert!(output.status.success(), "{result:#}");
    assert_eq!((&result["scenario"], &result["lost_writes"]), (&Value::from("snapshot"), &Value::from(0)));
    let snapshots = result["snapshots"].as_array().expect("snapshots");
    assert_eq!(snapshots.len(), 10);
    let mut digests: Vec<&Value> = Vec::new();
    for snapshot in snapshots {
        assert_eq!(keys(snapshot), ["digest_primary", "digest_secondary", "name", "number"]);
        assert_eq!(snapshot["digest_primary"], snapshot["digest_secondary"], "{snapshot:#}");
        digests.push(&snapshot["digest_primary"]);
    }
    // The load went on between them, so no two hold the same.
    digests.sort_by_key(|digest| digest.as_str());
    digests.dedup();
    assert_eq!(digests.len(), 10, "{result:#}");
    let numbers: Vec<u64> = snapshots.iter().filter_map(|snapshot| snapshot["number"].as_u64()).collect();
    assert!(numbers.is_sorted() && numbers.len() == 10, "{numbers:?}");
    assert!(result["pause_ratio"].as_f64() > Some(0.0), "{result:#}");
}

#[test]
fn the_other_site_takes_over_and_nothing_acknowledged_is_lost() {
    let folder = folder();
    let output = demo(&folder, &["takeover", "--json", "--seconds", "3"]);
    let result = json(&output);
    assert!(output.status.success(), "{result:#}");
    let expected = [
        "acknowledged_writes",
        "lost_writes",
        "max_host_latency_ms",
        "rejoin_ms",
        "scenario",
        "seconds",
        "sites",
        "takeover_ms",
    ];
    assert_eq!(keys(&result), expected);
    assert_eq!(result["lost_writes"], 0);
    assert!(result["acknowledged_writes"].as_u64() > Some(100), "{result:#}");
    let sites = result["sites"].as_array().expect("sites");
    assert_eq!(sites[0]["digest"], sites[1]["digest"]);
    assert_eq!((&sites[0]["role"], &sites[1]["role"]), (&Value::from("secondary"), &Value::from("primary")));
    let output = demo(&folder, &["takeover", "--json", "--seconds", "1", "--plant-loss"]);
    assert_finds_a_loss(&output);
}

#[test]
fn a_third_goes_on_from_the_second_and_all_three_hold_the_same() {
    let folder = folder();
    let output = demo(&folder, &["three-sites", "--json", "--seconds", "3"]);
    let result = json(&output);
    assert!(output.status.success(), "{result:#}");
    let expected = [
        "acknowledged_writes",
        "delta",
        "delta_bytes",
        "delta_updates",
        "full_bytes",
        "lacked_bytes",
        "lost_writes",
        "max_host_latency_ms",
        "resume_ms",
        "scenario",
        "seconds",
        "sites",
        "third_lag_ms",
        "third_lag_updates",
        "third_read_from_second",
        "updates",
    ];
    assert_eq!(keys(&result), expected);
    assert_eq!((&result["delta"], &result["lost_writes"]), (&Value::from("yes"), &Value::from(0)));
    // What it lacked moved, and nothing but that: a fraction of what it holds.
    let of = |name: &str| result[name].as_f64().unwrap_or(f64::NAN);
    assert!(of("delta_updates") > 20.0 && of("lacked_bytes") > 20.0 * 4096.0, "{result:#}");
    assert!(of("delta_bytes") > 4096.0 * (of("delta_updates") - 10.0), "{result:#}");
    assert!(of("delta_bytes") <= 1.1 * of("lacked_bytes"), "{result:#}");
    assert!(of("delta_bytes") < 0.05 * of("full_bytes"), "{result:#}");
    assert!(of("third_lag_ms") > 0.0 && of("resume_ms") > 0.0, "{result:#}");
    let sites = result["sites"].as_array().expect("sites");
    let roles: Vec<_> = sites.iter().map(|site| site["role"].as_str().expect("a role")).collect();
    assert_eq!(roles, ["secondary", "primary", "third"]);
    assert!(sites.iter().all(|site| site["digest"] == sites[1]["digest"]), "{result:#}");
    assert!(sites.iter().all(|site| site["last_number"] == sites[1]["last_number"]), "{result:#}");
    let output = demo(&folder, &["three-sites", "--json", "--seconds", "1", "--plant-loss"]);
    assert_finds_a_loss(&output);
}

#[test]
fn a_secondary_that_was_away_too_long_is_copied_what_has_changed() {
    let folder = folder();
    let output = demo(&folder, &["rejoin", "--json", "--seconds", "3"]);
    let result = json(&output);
    assert!(output.status.success(), "{result:#}");
    let expected = [
        "acknowledged_writes",
        "changed_bytes",
        "host_p99_before_ms",
        "host_p99_during_copy_ms",
        "lost_writes",
        "max_host_latency_ms",
        "rejoin_ms",
        "resync_bytes",
        "scenario",
        "seconds",
        "sites",
    ];
    assert_eq!(keys(&result), expected);
    assert_eq!((&result["scenario"], &result["lost_writes"]), (&Value::from("rejoin"), &Value::from(0)));
    // More than the journal of 64 MiB was written; what was written twice counts once.
    let of = |name: &str| result[name].as_f64().unwrap_or(0.0);
    assert!(of("acknowledged_writes") * 4096.0 > f64::from(64 << 20), "{result:#}");
    assert!(of("changed_bytes") > f64::from(32 << 20), "{result:#}");
    assert!(of("resync_bytes") > 0.9 * of("changed_bytes"), "{result:#}");
    assert!(of("host_p99_before_ms") > 0.0 && of("host_p99_during_copy_ms") > 0.0, "{result:#}");
    assert!(of("max_host_latency_ms") >= of("host_p99_during_copy_ms"), "{result:#}");
    let sites = result["sites"].as_array().expect("sites");
    assert_eq!(sites[0]["digest"], sites[1]["digest"]);
    assert_eq!((&sites[0]["role"], &sites[1]["role"]), (&Value::from("primary"), &Value::from("secondary")));
    let output = demo(&folder, &["rejoin", "--json", "--seconds", "1", "--plant-loss"]);
    assert_finds_a_loss(&output);
}
