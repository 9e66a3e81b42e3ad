//! Planned changes of role, there and back under load, and with either site killed meanwhile.

use std::time::{Duration, Instant};

use lockstep::format::nbd::flags::READ_ONLY;

use crate::checker::{Checker, Next};
use crate::crashes::seed;
use crate::pair::*;

const DEPTH: usize = 24;
const WRITES_BEFORE: u64 = 2000;

/// Switchovers, there and back, asked for at either site.
const SWITCHOVERS: usize = 4;

/// From the command to the first write's reply at the other site. Other tests' builds may hold the CPUs.
const SWITCHOVER_MAX: Duration = Duration::from_secs(5);

/// Rounds in which a site is killed.
const KILLS: u64 = 8;

fn role(site: &Site) -> String {
    site.status()["role"].as_str().expect("a role").to_owned()
}

fn wait(site: &Site, what: &str) {
    let seconds = format!("{}s", PATIENCE.as_secs());
    succeeds(lockstep(&["wait", "--config", path(&site.config), what, "--timeout", &seconds]));
}

fn writes(checker: &mut Checker, site: &mut Site, count: u64) {
    let mut client = site.connect_when_served("data");
    let session = checker.drive(&mut client, DEPTH, |progress| {
        if progress.acknowledged < count { Next::GoOn } else { Next::Drain }
    });
    assert_eq!((session.refused, session.disconnected), (0, false), "{session:?}");
}

fn options() -> Options {
    Options { volumes: vec![("data", 32)], journal_mib: 32, ..Options::default() }
}

#[test]
fn roles_change_under_load_and_no_host_sees_an_error() {
    let mut sites = Sites::format(&options());
    let told = sites.note_roles();
    sites.start_both();
    let mut checker = Checker::new(0..32 * MIB / 4096, seed());
    let (mut primary, mut other) = (&mut sites.left, &mut sites.right);
    for round in 0..SWITCHOVERS {
        let mut client = primary.connect("data");
        let asked = if round % 2 == 0 { &*primary } else { &*other };
        let mut begun = None;
        let mut command = None;
        let session = checker.drive(&mut client, DEPTH, |progress| {
            if begun.is_none() && progress.acknowledged >= WRITES_BEFORE {
                begun = Some(Instant::now());
                let config = asked.config.clone();
                command = Some(std::thread::spawn(move || {
                    succeeds(lockstep(&["switchover", "--config", path(&config)]))
                }));
            }
            Next::GoOn
        });
        // The connection is closed; what was answered on it before was no error.
        assert!(session.disconnected && session.refused == 0, "round {round}: {session:?}");
        drop(client);
        let first = loop {
            match other.try_connect("data") {
                Ok(client) if client.flags() & READ_ONLY == 0 => break client,
                _ => std::thread::sleep(Duration::from_millis(1)),
            }
        };
        drop(first);
        writes(&mut checker, other, 1);
        let took = begun.expect("it was begun").elapsed();
        let said = command.expect("it was begun").join().expect("a switchover");
        println!(
            "switchover {round}: switchover_ms {} to the first write's reply; {}",
            took.as_millis(),
            said.trim()
        );
        assert!(took < SWITCHOVER_MAX, "round {round}: the switchover took {took:?}");
        assert_eq!((role(primary).as_str(), role(other).as_str()), ("secondary", "primary"));
        let status = other.status();
        assert_eq!(status["solo"], false, "{status}");
        checker.verify(&mut other.connect("data"), "the new primary");
        wait(other, "--in-sync");
        let behind = other.status()["totals"]["catch_up_updates"].as_u64().expect("a count");
        assert_eq!(behind, 0, "only what was written since moves, and nothing was");
        std::mem::swap(&mut primary, &mut other);
    }
    wait(primary, "--settled");
    checker.all_is_flushed();
    checker.verify(&mut other.connect("data"), "the secondary");
    assert!(!primary.log_text().contains("solo from"), "{}", primary.log_text());
    let told = std::fs::read_to_string(told).expect("both sites told of their roles");
    for line in ["left secondary", "right primary", "right secondary", "left primary"] {
        assert_eq!(told.lines().filter(|told| *told == line).count(), SWITCHOVERS / 2, "{told}");
    }
}

#[test]
fn a_site_that_is_killed_meanwhile_leaves_a_pair_that_finds_its_primary() {
    let mut sites = Sites::start(&options());
    let mut checker = Checker::new(0..32 * MIB / 4096, seed());
    for round in 0..KILLS {
        let (primary, other) = match role(&sites.left).as_str() {
            "primary" => (&mut sites.left, &mut sites.right),
            _ => (&mut sites.right, &mut sites.left),
        };
        writes(&mut checker, primary, 200);
        let config = primary.config.clone();
        let command =
            std::thread::spawn(move || lockstep(&["switchover", "--config", path(&config)]).status.success());
        std::thread::sleep(Duration::from_micros(checker.random(25_000)));
        let victim = if round % 2 == 0 { &mut *primary } else { &mut *other };
        victim.kill();
        let done = command.join().expect("the command's end");
        victim.start();
        let deadline = Instant::now() + PATIENCE;
        let serves = loop {
            let serving = |site: &Site| {
                let status = site.status();
                status["role"] == "primary" && status["state"] == "serving"
            };
            match [serving(&sites.left), serving(&sites.right)] {
                [true, true] => panic!("round {round}: two primaries"),
                [true, false] => break &mut sites.left,
                [false, true] => break &mut sites.right,
                _ => assert!(Instant::now() < deadline, "round {round}: nobody is primary (done: {done})"),
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        println!("round {round}: done {done}, {} is primary", serves.name);
        wait(serves, "--in-sync");
        checker.verify(&mut serves.connect_when_served("data"), "whoever is primary");
    }
}

#[test]
fn a_switchover_without_lockstep_is_refused_and_a_primary_may_step_down() {
    let group = "on_peer_loss = \"suspend\"\nlatency_budget = \"500ms\"\nheartbeat_interval = \"50ms\"";
    let mut sites = Sites::start(&Options { group: group.to_owned(), ..options() });
    let mut checker = Checker::new(0..32 * MIB / 4096, seed());
    writes(&mut checker, &mut sites.left, 200);
    sites.right.kill();
    sites.left.until("it has lost its peer", |site| site.status()["peer"]["state"] == "disconnected");
    let why = fails(lockstep(&["switchover", "--config", path(&sites.left.config)]));
    assert!(why.contains("not in lockstep") && why.contains("--in-sync"), "{why}");
    assert_eq!(
        (role(&sites.left).as_str(), sites.left.status()["state"].as_str()),
        ("primary", Some("serving"))
    );
    sites.right.start();
    sites.wait("--in-sync");
    let why = fails(lockstep(&["promote", "--config", path(&sites.right.config)]));
    assert!(why.contains("the primary is alive"), "{why}");
    succeeds(lockstep(&["demote", "--config", path(&sites.left.config)]));
    assert_eq!((role(&sites.left).as_str(), role(&sites.right).as_str()), ("secondary", "secondary"));
    assert_eq!(
        (&sites.left.status()["vacant"], &sites.right.status()["vacant"]),
        (&true.into(), &true.into())
    );
    let text = succeeds(lockstep(&["status", "--config", path(&sites.right.config)]));
    assert!(text.contains("NOBODY IS PRIMARY"), "{text}");
    let why = fails(lockstep(&["promote", "--config", path(&sites.left.config)]));
    assert!(why.contains("--fenced"), "{why}");
    // Nobody's word is needed: the stream says that the primary has stepped down.
    succeeds(lockstep(&["promote", "--config", path(&sites.right.config)]));
    writes(&mut checker, &mut sites.right, 200);
    wait(&sites.right, "--in-sync");
    checker.verify(&mut sites.right.connect("data"), "the new primary");
    assert_eq!((role(&sites.left).as_str(), role(&sites.right).as_str()), ("secondary", "primary"));
}
