//! `tuning/apply` on a machine that is only files: what a dry run leaves alone, what applying writes, what undoing puts back.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

const OPTIONS: [&str; 6] = ["--cores", "2-3", "--interface", "eth7", "--mtu", "9000"];

/// Files of a machine with four CPUs, as `tuning/apply` finds them, and one that an administrator wrote before.
const MACHINE: [(&str, &str); 13] = [
    ("sys/devices/system/cpu/online", "0-3"),
    ("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "schedutil"),
    ("sys/devices/system/cpu/cpu2/cpufreq/scaling_governor", "schedutil"),
    ("sys/devices/system/cpu/cpu3/cpufreq/scaling_governor", "powersave"),
    ("sys/devices/virtual/workqueue/cpumask", "f"),
    ("sys/class/net/eth7/mtu", "1500"),
    ("proc/irq/default_smp_affinity", "f"),
    ("proc/irq/24/smp_affinity_list", "0-3"),
    ("proc/irq/25/smp_affinity_list", "3"),
    ("proc/sys/net/core/rmem_max", "212992"),
    ("proc/sys/net/core/wmem_max", "67108864"),
    ("proc/sys/kernel/io_uring_disabled", "0"),
    ("etc/sysctl.d/50-lockstep.conf", "net.core.rmem_max = 1000000"),
];

fn machine() -> TempDir {
    let root = tempfile::tempdir().expect("a folder");
    for (name, text) in MACHINE {
        let path = root.path().join(name);
        fs::create_dir_all(path.parent().expect("below the root")).expect("a folder");
        fs::write(path, format!("{text}\n")).expect("written");
    }
    root
}

fn files(folder: &Path, all: &mut BTreeMap<PathBuf, String>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files(&path, all);
        } else {
            let text = fs::read_to_string(&path).expect("text");
            all.insert(path, text);
        }
    }
}

fn state_of(root: &TempDir) -> BTreeMap<PathBuf, String> {
    let mut all = BTreeMap::new();
    files(root.path(), &mut all);
    all
}

fn run(root: &TempDir, arguments: &[&str]) -> Output {
    Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tuning/apply"))
        .args(["--root", root.path().to_str().expect("UTF-8")])
        .args(arguments)
        .output()
        .expect("bash runs")
}

#[track_caller]
fn tune(root: &TempDir, arguments: &[&str]) -> String {
    let output = run(root, arguments);
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    text
}

fn with_options<'a>(first: &[&'a str]) -> Vec<&'a str> {
    first.iter().chain(&OPTIONS).copied().collect()
}

#[test]
fn a_dry_run_says_everything_and_changes_nothing() {
    let root = machine();
    let before = state_of(&root);
    for arguments in [with_options(&[]), with_options(&["--dry-run"])] {
        let said = tune(&root, &arguments);
        for expected in [
            "/sys/devices/system/cpu/cpu3/cpufreq/scaling_governor: powersave -> performance",
            "/sys/devices/virtual/workqueue/cpumask: f -> 3",
            "/proc/irq/25/smp_affinity_list: 3 -> 0,1",
            "/sys/class/net/eth7/mtu: 1500 -> 9000",
            "/proc/sys/net/core/rmem_max: 212992 -> 33554432",
            "/proc/sys/net/core/wmem_max is 67108864 already",
            "write /etc/systemd/system/lockstep@.service",
            "AllowedCPUs=0,1,2-3",
            "Nothing was changed",
        ] {
            assert!(said.contains(expected), "{expected:?} is not in:\n{said}");
        }
        assert_eq!(state_of(&root), before);
    }
}

#[test]
fn undoing_puts_back_what_applying_changed() {
    let root = machine();
    let before = state_of(&root);
    tune(&root, &with_options(&["--write"]));
    let read = |name: &str| fs::read_to_string(root.path().join(name)).expect("a file");
    for (name, text) in [
        ("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "schedutil\n"),
        ("sys/devices/system/cpu/cpu2/cpufreq/scaling_governor", "performance\n"),
        ("sys/devices/system/cpu/cpu3/cpufreq/scaling_governor", "performance\n"),
        ("sys/devices/virtual/workqueue/cpumask", "3\n"),
        ("proc/irq/default_smp_affinity", "3\n"),
        ("proc/irq/24/smp_affinity_list", "0,1\n"),
        ("sys/class/net/eth7/mtu", "9000\n"),
        ("proc/sys/net/core/rmem_max", "33554432\n"),
        ("proc/sys/net/core/wmem_max", "67108864\n"),
        ("etc/systemd/system/system.slice.d/50-lockstep.conf", "[Slice]\nAllowedCPUs=0,1\n"),
        ("etc/systemd/system/init.scope.d/50-lockstep.conf", "[Scope]\nAllowedCPUs=0,1\n"),
        // Only its reactors pin themselves; its other threads are not to run where those poll.
        (
            "etc/systemd/system/lockstep@.service.d/50-cores.conf",
            "[Service]\nSlice=lockstep.slice\nAllowedCPUs=0,1,2-3\n",
        ),
    ] {
        assert_eq!(read(name), text, "{name}");
    }
    let unit = read("etc/systemd/system/lockstep@.service");
    for line in [
        "User=lockstep",
        "LimitMEMLOCK=infinity",
        "StartLimitIntervalSec=0",
        "RuntimeDirectory=lockstep",
        "ExecStart=/usr/local/bin/lockstep run --config",
    ] {
        assert!(unit.contains(line), "{line:?} is not in:\n{unit}");
    }
    // A second time finds nothing to do, and does not take its own values for what was there before.
    let again = tune(&root, &with_options(&["--write"]));
    assert!(!again.contains("->") && !again.contains("write /"), "{again}");
    tune(&root, &["--write", "--mtu", "4000", "--interface", "eth7", "mtu"]);

    let applied = state_of(&root);
    let said = tune(&root, &["--undo"]);
    assert!(said.contains("would: /sys/class/net/eth7/mtu -> 1500"), "{said}");
    assert_eq!(state_of(&root), applied);

    tune(&root, &["--undo", "--write", "mtu"]);
    assert_eq!(read("sys/class/net/eth7/mtu"), "1500\n");
    assert_eq!(read("sys/devices/virtual/workqueue/cpumask"), "3\n");
    tune(&root, &["--undo", "--write"]);
    assert_eq!(state_of(&root), before);
    assert!(tune(&root, &["--undo", "--write"]).contains("nothing was changed"));
}

/// Releases before kept the record beside the site's files.
#[test]
fn a_record_of_before_counts_only_where_nobody_else_can_have_written_it() {
    let root = machine();
    let before = state_of(&root);
    tune(&root, &with_options(&["--write", "mtu"]));
    let record = root.path().join("var/lib/lockstep-tuning");
    let earlier = root.path().join("var/lib/lockstep/tuning");
    let mode = |folder: &Path, mode: u32| {
        fs::set_permissions(folder, fs::Permissions::from_mode(mode)).expect("its mode is set");
    };
    let folder = earlier.parent().expect("below the root");
    fs::create_dir(folder).expect("a folder");
    fs::rename(&record, &earlier).expect("moved");
    for (writable, sound) in [(folder, &earlier), (&earlier, &folder.to_path_buf())] {
        mode(writable, 0o775);
        mode(sound, 0o755);
        let output = run(&root, &["--undo", "--write", "mtu"]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains("others than root can have written"), "{said}");
        assert!(earlier.join("mtu").exists() && !record.exists());
    }
    mode(&earlier, 0o755);
    let said = tune(&root, &["--undo", "mtu"]);
    assert!(said.contains("would: /sys/class/net/eth7/mtu -> 1500") && earlier.exists(), "{said}");
    tune(&root, &["--undo", "--write", "mtu"]);
    assert!(!earlier.exists());
    assert_eq!(state_of(&root), before);
}

#[test]
fn parts_without_what_they_need_do_nothing() {
    let root = machine();
    let before = state_of(&root);
    let said = tune(&root, &["--write", "cores", "irqs", "mtu"]);
    assert!(said.contains("no --cores") && said.contains("no --interface"), "{said}");
    let said = tune(&root, &["--write", "--cores", "0-3", "cores", "irqs"]);
    assert!(said.contains("every CPU"), "{said}");
    assert_eq!(state_of(&root), before);
    for wrong in [
        &["--cores", "all"] as &[&str],
        &["--mtu", "12"],
        &["--interface", "../x"],
        &["--user", "a b"],
        &["no-such-part"],
        &["--undo", "--cores"],
    ] {
        assert!(!run(&root, wrong).status.success(), "{wrong:?}");
    }
    assert_eq!(state_of(&root), before);
}
