//! A site's configuration: what is accepted, what is refused, and that a refusal says where and what to do.

use std::path::Path;

use lockstep::base::Nanos;
use lockstep::core::config::{AckLevel, DifferentialBy, OnDifferentialFull, OnPeerLoss, Role};
use lockstep::io::quic::transport::Congestion;
use lockstep::node::config::{Config, Idle, SAMPLE};
use proptest::prelude::*;

const MINIMAL: &str = r#"
[site]
name = "left"
id = 1
role = "primary"
directory = "here"
[group]
name = "orders"
[[volume]]
name = "data"
size = "1GiB"
[journal]
size = "1GiB"
[differential]
size = "256MiB"
"#;

const PAIR: &str = r#"
[peer]
name = "right"
id = 2
address = "127.0.0.1:7400"
fingerprint = "sha256:00112233445566778899aabbccddeeff00112233445566778899AABBCCDDEEFF"
[link]
listen = "127.0.0.1:7401"
"#;

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(text, Path::new("/etc/lockstep/left.toml")).map_err(|error| error.to_string())
}

#[track_caller]
fn refused(text: &str, expected: &[&str]) {
    let shown = parse(text).expect_err("was accepted");
    for part in expected {
        assert!(shown.contains(part), "{part:?} is not in:\n{shown}");
    }
}

#[test]
fn the_sample_is_correct_and_its_comments_show_the_defaults() {
    let written = parse(SAMPLE).expect("the sample is correct");
    let with_defaults: String = SAMPLE
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(rest) if is_assignment(rest) && !without_default(rest) => format!("{rest}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    assert_ne!(with_defaults, SAMPLE);
    let spelled = parse(&with_defaults).expect("every default can be written");
    assert_eq!(written, spelled, "a comment of the sample shows something else than the default");
}

fn is_assignment(line: &str) -> bool {
    line.split_once(" = ")
        .is_some_and(|(key, _)| key.bytes().all(|byte| byte == b'_' || byte.is_ascii_lowercase()))
}

fn without_default(line: &str) -> bool {
    line.starts_with("mtu =") || line.starts_with("tcp =")
}

#[test]
fn a_minimal_file_gets_the_defaults() {
    let config = parse(MINIMAL).expect("correct");
    assert_eq!(config.site.role, Role::Primary);
    assert_eq!(config.site.control, Path::new("/etc/lockstep/here/control.sock"));
    assert_eq!(config.volumes[0].path, Path::new("/etc/lockstep/here/data.volume"));
    assert_eq!(config.volumes[0].checksum_bytes(), 1 << 20);
    assert_eq!(config.group.ack, AckLevel::Journaled);
    assert_eq!(config.reactors.idle, Idle::Adaptive);
    assert!(config.replication.is_none() && config.journal.volatile && config.nbd.tcp.is_none());
    let group = config.group_config(5000, 2);
    assert_eq!((group.volumes[0].blocks, group.journal_blocks, group.flush_blocks), (262_144, 262_144, 1024));
    assert!(group.peer.is_none());
    assert_eq!(group.differential, DifferentialBy::Reference);
}

#[test]
fn a_pair_reaches_the_group() {
    let text = format!("{MINIMAL}{PAIR}").replace(
        "[group]",
        "[group]\non_peer_loss = \"solo\"\nack = \"applied\"\non_differential_full = \"error\"\ndifferential = \"value\"",
    );
    let config = parse(&text).expect("correct");
    let replication = config.replication.as_ref().expect("a pair");
    assert_eq!(replication.link.congestion, Congestion::Dedicated);
    assert!(replication.peer.fingerprints.to_string().ends_with("8899aabbccddeeff"));
    let two = "fingerprint = [\"sha256:1111111111111111111111111111111111111111111111111111111111111111\", ";
    let text_of_two = text.replace("fingerprint = ", two).replace("EEFF\"", "EEFF\"]");
    let both = parse(&text_of_two).expect("correct").replication.expect("a pair").peer.fingerprints;
    assert!(both.contain(replication.peer.fingerprints.iter().next().expect("one")));
    assert_eq!(both.iter().count(), 2);
    let group = config.group_config(5000, 1);
    assert_eq!((group.ack, group.on_differential_full), (AckLevel::Applied, OnDifferentialFull::Error));
    assert_eq!(group.differential, DifferentialBy::Value);
    let peer = group.peer.expect("a peer");
    assert_eq!((peer.on_peer_loss, peer.latency_budget), (OnPeerLoss::Solo, Nanos::from_millis(50)));
}

#[test]
fn every_mistake_is_reported_at_once_with_its_line() {
    let text = MINIMAL
        .replace("role = \"primary\"", "role = \"boss\"")
        .replace("id = 1", "id = 70000")
        .replace("size = \"256MiB\"", "size = \"256MB\"");
    let shown = parse(&text).expect_err("was accepted");
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(lines.len(), 3, "{shown}");
    assert!(lines[0].starts_with("/etc/lockstep/left.toml:4: site.id: 70000 "), "{shown}");
    assert!(
        lines[1].starts_with("/etc/lockstep/left.toml:5: site.role: \"boss\" is not known; write "),
        "{shown}"
    );
    assert!(
        lines[2].starts_with("/etc/lockstep/left.toml:15: differential.size: \"256MB\" is not a size"),
        "{shown}"
    );
}

#[test]
fn what_cannot_work_is_refused() {
    let with = |section: &str, line: &str| MINIMAL.replacen(section, &format!("{section}\n{line}"), 1);
    let pair = format!("{MINIMAL}{PAIR}");
    refused(
        "",
        &["site.name: is missing", "group.name", "volume: is missing", "journal.size", "differential.size"],
    );
    refused("[site", &["left.toml:1"]);
    refused(&with("[site]", "rolle = \"primary\""), &["left.toml:3", "rolle", "unknown field", "role"]);
    refused(&with("[site]", "control = 5"), &["left.toml:3", "control", "string"]);
    refused(&with("[group]", "latency_budget = \"5ms\""), &["left.toml:8", "group.latency_budget", "10ms"]);
    refused(&with("[group]", "latency_budget = \"50\""), &["group.latency_budget", "is not a duration"]);
    refused(
        &with("[group]", "on_differential_full = \"grow\""),
        &["left.toml:8", "group.on_differential_full", "delete-oldest", "error"],
    );
    refused(
        &with("[group]", "differential = \"pointer\""),
        &["left.toml:8", "group.differential", "reference", "value"],
    );
    refused(&with("[group]", "flush_bytes = \"5000B\""), &["group.flush_bytes", "4 KiB blocks"]);
    refused(&with("[group]", "destage_depth = 0"), &["group.destage_depth", "1 to 256"]);
    refused(
        &with("[journal]", "path = \"data.volume\""),
        &["journal.path", "already the file of volume.path"],
    );
    refused(
        &MINIMAL.replace("\"1GiB\"\n[diff", "\"1MiB\"\n[diff"),
        &["journal.size", "out of range", "\"16MiB\""],
    );
    refused(&MINIMAL.replace("\"data\"", "\"../data\""), &["volume.name", "is not a name"]);
    refused(
        &format!("{MINIMAL}[[volume]]\nname = \"data\"\nsize = \"1GiB\""),
        &["volume.name", "another volume"],
    );
    refused(&MINIMAL.replace("primary", "secondary"), &["peer", "a secondary needs a [peer]"]);
    refused(
        &format!("{MINIMAL}[[volume]]\nname = \"b\"\nsize = \"4KiB\"\nspace = \"thin\""),
        &["volume.space", "sparse"],
    );
    refused(&with("[differential]", "space = \"thin\""), &["differential.space", "written"]);
    refused(&format!("{MINIMAL}[link]\nlisten = \"127.0.0.1:1\""), &["link", "no [peer]"]);
    refused(&pair.replace("id = 2", "id = 1"), &["peer.id", "own id"]);
    refused(
        &pair.replace("\"right\"", "\"left\""),
        &["left.toml:18: peer.name: \"left\" is this site's own name"],
    );
    refused(
        &pair.replace("\"127.0.0.1:7400\"", "\"127.0.0.1:7401\""),
        &["left.toml:20: peer.address: 127.0.0.1:7401 is this site's own link.listen; write the other"],
    );
    let solo = |deadline: &str, budget: &str| {
        let keys =
            format!("on_peer_loss = \"solo\"\nhost_deadline = \"{deadline}\"\nlatency_budget = \"{budget}\"");
        pair.replace("[group]", &format!("[group]\n{keys}"))
    };
    refused(
        &solo("1s", "1s"),
        &["left.toml:9: group.host_deadline: \"1s\" is not more than group.latency_budget, \"1s\""],
    );
    refused(
        &pair.replace("[group]", "[group]\non_peer_loss = \"solo\"\nlatency_budget = \"30s\""),
        &["left.toml:9: group.host_deadline"],
    );
    parse(&solo("1s", "999ms")).expect("correct");
    parse(&solo("1s", "1s").replace("solo", "suspend")).expect("correct");
    // Who has no peer loses none.
    parse(&with("[group]", "on_peer_loss = \"solo\"\nlatency_budget = \"30s\"")).expect("correct");
    refused(&pair.replace("aabb", "aab"), &["peer.fingerprint", "64 hexadecimal digits", "keygen"]);
    let line = pair.lines().find(|line| line.starts_with("fingerprint = ")).expect("a peer's fingerprint");
    let one = line.trim_start_matches("fingerprint = ");
    for (list, what) in [
        (format!("[{one}, {one}]"), "a list of 2"),
        ("[]".to_owned(), "a list of 0"),
        (format!("[{one}, \"sha256:1\"]"), "64 hexadecimal digits"),
        ("7".to_owned(), "a string or a list of strings"),
    ] {
        refused(&pair.replace(line, &format!("fingerprint = {list}")), &["fingerprint", what]);
    }
    refused(&pair.replace("\"127.0.0.1:7400\"", "\"right:7400\""), &["peer.address", "not an IP address"]);
    refused(&pair.replace("[link]", "[link]\nmtu = 100"), &["link.mtu", "1280 to 16048"]);
    refused(
        &format!("{MINIMAL}[nbd]\ntcp = \"0.0.0.0:10809\""),
        &["nbd.tcp", "allow_unauthenticated_tcp = true"],
    );
    refused(&format!("{MINIMAL}[cache]\nsize = \"1MiB\""), &["cache.size", "\"64MiB\""]);
    refused(&format!("{MINIMAL}[reactors]\ncores = [0, 0]"), &["reactors.cores", "different CPU numbers"]);
    refused(&format!("{MINIMAL}[reactors]\ncores = []"), &["reactors.cores"]);
    refused(&format!("{MINIMAL}[reactors]\ncores = [0, 1]\nlink = 2"), &["reactors.link", "[0, 1]"]);
    refused(&format!("{MINIMAL}[log]\nlevel = \"a=b=c\""), &["log.level"]);
    let long = "d".repeat(120);
    refused(&MINIMAL.replace("here", &long), &["site.control", "Unix socket", "nbd.socket"]);
    let many: String =
        (0..40).map(|index| format!("[[volume]]\nname = \"v{index}\"\nsize = \"4KiB\"\n")).collect();
    refused(&format!("{MINIMAL}{many}"), &["41 volumes", "at most 32"]);
}

#[test]
fn schedules_are_read_and_their_mistakes_named() {
    let with = |lines: &str| format!("{MINIMAL}[[schedule]]\n{lines}");
    let hourly = "name = \"hourly\"\nevery = \"1h\"\nkeep = 24\nvolumes = [\"data\"]";
    let config = parse(&with(hourly)).expect("correct");
    let schedule = &config.schedules[0];
    assert_eq!((schedule.every, schedule.keep), (Nanos::from_millis(3_600_000), 24));
    assert_eq!((schedule.name.as_str(), &schedule.volumes[..]), ("hourly", &["data".to_owned()][..]));
    refused(
        &with(""),
        &["schedule.name: is missing", "schedule.every: is missing", "schedule.keep: is missing"],
    );
    refused(&with(&hourly.replace("1h", "5ms")), &["schedule.every", "out of range", "\"1s\""]);
    refused(&with(&hourly.replace("24", "0")), &["schedule.keep", "1 to 256"]);
    refused(&with(&hourly.replace("24", "256")), &["schedule.keep", "257 snapshots", "at most 256"]);
    refused(&with(&hourly.replace("data", "nil")), &["schedule.volumes", "no volume of this group"]);
    refused(&with(&hourly.replace("hourly", &"h".repeat(50))), &["schedule.name", "at most 47 bytes"]);
    refused(&format!("{}\n[[schedule]]\n{hourly}", with(hourly)), &["schedule.name", "another schedule"]);
}

#[test]
fn tcp_beyond_loopback_needs_its_key() {
    let text = format!("{MINIMAL}[nbd]\ntcp = \"0.0.0.0:10809\"\nallow_unauthenticated_tcp = true");
    assert!(parse(&text).expect("correct").nbd.tcp.is_some());
}

#[test]
fn cores_place_the_link_first_then_capture_then_the_front() {
    let places = |cores: &str| {
        let reactors = parse(&format!("{MINIMAL}[reactors]\ncores = {cores}")).expect("correct").reactors;
        [reactors.group, reactors.link, reactors.capture, reactors.front]
    };
    assert_eq!(places("[3]"), [3, 3, 3, 3]);
    assert_eq!(places("[3, 5]"), [3, 5, 3, 3]);
    assert_eq!(places("[3, 5, 7]"), [3, 5, 7, 3]);
    assert_eq!(places("[3, 5, 7, 9]"), [3, 5, 7, 9]);
    assert_eq!(places("[3, 5]\ncapture = 5\nlink = 3"), [3, 3, 5, 3]);
}

const THIRD: &str = r#"
[third]
name = "far"
id = 3
listen = "127.0.0.1:7402"
fingerprint = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
"#;

const SOURCE: &str = r#"
[[source]]
name = "left"
id = 2
address = "127.0.0.1:7402"
fingerprint = "sha256:00112233445566778899aabbccddeeff00112233445566778899AABBCCDDEEFF"
"#;

/// What a third's file begins with.
fn puller() -> String {
    MINIMAL.replace("role = \"primary\"", "role = \"third\"").replace("name = \"left\"", "name = \"far\"")
}

#[test]
fn a_third_reaches_the_group_of_each_of_the_three() {
    let config = parse(&format!("{MINIMAL}{PAIR}{THIRD}")).expect("correct");
    let third = config.third.as_ref().expect("a third");
    assert_eq!(
        (third.name.as_str(), third.address, third.link.congestion),
        ("far", None, Congestion::Shared)
    );
    assert_eq!(third.bandwidth_max, None);
    assert_eq!(third.link.identity, config.replication.as_ref().expect("a pair").link.identity);
    let group = config.group_config(5000, 1);
    assert_eq!(group.third.as_ref().expect("a third").site.0, 3);
    assert_eq!((group.remotes(), group.sources.len(), group.receivers()), (1, 0, 2));

    let puller = puller();
    let second = SOURCE.replace("left", "right").replace("id = 2", "id = 4").replace("7402", "7403");
    let config = parse(&format!("{puller}{SOURCE}{second}")).expect("correct");
    let addresses: Vec<String> =
        config.sources.iter().map(|source| source.address.expect("it dials").to_string()).collect();
    assert_eq!(addresses, ["127.0.0.1:7402", "127.0.0.1:7403"]);
    let group = config.group_config(5000, 1);
    assert!(group.role == Role::Third && group.peer.is_none() && group.third.is_none());
    assert_eq!((group.remotes(), group.receivers()), (2, 3));
}

#[test]
fn what_a_third_must_not_have_is_named() {
    let puller = puller();
    refused(&puller, &["source: a third has one or two [[source]] sections", "there are 0"]);
    refused(
        &format!("{puller}{SOURCE}{PAIR}"),
        &["peer: a third has no such section", "link.listen: a third dials"],
    );
    refused(&format!("{puller}{SOURCE}{THIRD}"), &["third: a third has no such section"]);
    refused(&format!("{puller}{SOURCE}{SOURCE}"), &["source.id: is the id of another source"]);
    refused(&format!("{puller}{SOURCE}").replace("id = 2", "id = 1"), &["source.id", "this site's own id"]);
    refused(
        &format!("{puller}{SOURCE}").replace("\"far\"", "\"left\""),
        &["left.toml:18: source.name: \"left\" is this site's own name; write that site's name"],
    );
    refused(&format!("{MINIMAL}{SOURCE}"), &["source: only a site with the role \"third\""]);
    refused(&format!("{MINIMAL}{THIRD}"), &["third: a third needs a pair"]);
    let pair = format!("{MINIMAL}{PAIR}{THIRD}");
    refused(&pair.replace("\"far\"", "\"left\""), &["third.name: \"left\" is this site's own name"]);
    refused(&pair.replace("id = 3", "id = 2"), &["third.id: 2 is the peer's id"]);
    refused(&pair.replace("7402", "7401"), &["third.listen: 127.0.0.1:7401 is link.listen"]);
    let limited = |limit: &str| format!("{pair}bandwidth_max = \"{limit}\"\n");
    let config = parse(&limited("20MiB")).expect("correct");
    assert_eq!(config.third.as_ref().expect("a third").bandwidth_max, Some(20 << 20));
    assert_eq!(config.group_config(5000, 1).third.expect("a third").bandwidth_max, Some(20 << 20));
    refused(&limited("32KiB"), &["third.bandwidth_max: \"32KiB\" is out of range; write \"64KiB\" to"]);
    refused(&limited("fast"), &["third.bandwidth_max: "]);
}

/// The pages kept for feeding a third are the operator's memory, too.
#[test]
fn a_third_is_counted_in_the_smallest_cache() {
    let pair = parse(&format!("{MINIMAL}{PAIR}")).expect("correct");
    let fed = parse(&format!("{MINIMAL}{PAIR}{THIRD}")).expect("correct");
    assert!(fed.pages_min() > pair.pages_min());
    assert!(fed.pages(2).expect("it fits") < pair.pages(2).expect("it fits"));
}

proptest! {
    #[test]
    fn no_text_panics(text in "(\\[{0,2}(site|group|volume|peer|nbd|x)\\]{0,2}\n|[a-z_]{1,8} = (\"[^\n]{0,12}\"|-?[0-9]{1,20}|\\[[0-9, ]*\\]|true)\n|.){0,20}") {
        let _ = parse(&text);
    }
}

#[test]
fn the_manual_lists_every_key_and_exit_code() {
    let manual = include_str!("../docs/OPERATIONS.md");
    let mut section = String::new();
    for line in SAMPLE.lines() {
        let line = line.strip_prefix("# ").unwrap_or(line);
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_matches(['[', ']']).to_owned();
        } else if is_assignment(line) {
            let key = line.split(" = ").next().unwrap_or_default();
            let (full, short) = (format!("`{section}.{key}`"), format!("`.{key}`"));
            assert!(manual.contains(&full) || manual.contains(&short), "{full} is not in docs/OPERATIONS.md");
        }
    }
    use lockstep::cli::exit;
    for code in [exit::FAILED, exit::USAGE, exit::CONFIG, exit::FILES, exit::TIMED_OUT, exit::BROKEN] {
        assert!(manual.contains(&format!("\n| {code} | ")), "exit code {code} is not in docs/OPERATIONS.md");
    }
}
