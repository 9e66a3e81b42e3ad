//! Faults at random, one round after another, on pairs under the checking client. A seed gives a plan; `tests/torture --random` has
//! more of them, and LOCKSTEP_TORTURE_SEED begins elsewhere, so that a plan that failed comes again alone.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::checker::{Checker, Frozen, Next, Random, Session};
use crate::crashes::seed;
use crate::pair::*;
use crate::relay::{Relay, Way};
use lockstep::format::nbd::flags::READ_ONLY;
use lockstep::io::nbd_client::NbdClient;

/// Rounds on one pair; another one has the next seed.
const ROUNDS_A_PAIR: u64 = 5;

const VOLUME_MIB: u64 = 24;

/// The smallest there is, so that an absence outlasts it soon; and one that it does not.
const SMALL_JOURNAL_MIB: u64 = 16;
const JOURNAL_MIB: u64 = 64;

/// Requests in flight.
const DEPTH: usize = 16;

/// While a site comes back, a host writes no faster than one request in this time: what it needs has to come, too.
const THINK: Duration = Duration::from_millis(4);

/// Snapshots kept at a time.
const SNAPSHOTS_MAX: usize = 3;

/// Longest that a site with a bad disk is watched: the fault may be far off.
const FAULT_MAX: Duration = Duration::from_millis(1500);

/// Longest until hosts have written more than a small journal takes.
const AWAY_MAX: Duration = Duration::from_secs(60);

fn rounds() -> u64 {
    std::env::var("LOCKSTEP_RANDOM_ROUNDS").map_or(10, |text| text.parse().expect("a number of rounds"))
}

/// What a pair is, and what happens to it.
#[derive(Debug)]
struct Plan {
    solo: bool,
    /// Disks that lose what was not flushed when their process dies.
    forgets: bool,
    snapshots: bool,
    rounds: Vec<Round>,
}

#[derive(Debug)]
struct Round {
    fault: Fault,
    /// When it strikes, and how long it lasts.
    after_ms: u64,
    for_ms: u64,
    /// What the network does besides, and whether it still does while the site comes back.
    link: Option<Link>,
    healed_late: bool,
    /// A snapshot is taken before.
    snapshot: bool,
}

#[derive(Clone, Copy, Debug)]
struct Link {
    lost_ppm: u32,
    delay_us: u64,
    jitter_us: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    Primary,
    Secondary,
    Both,
}

#[derive(Debug)]
enum Fault {
    /// kill -9.
    Kill(Who),
    /// SIGSTOP, and SIGCONT.
    Pause(Who),
    /// The network, from the dialer to the listener, and back.
    Cut([bool; 2]),
    /// One site's disk, as `lockstep run --faults` takes it.
    Disk(Who, String),
    /// The primary dies, the other site is promoted, and the old primary comes back after so many writes.
    Takeover(u64),
    /// Asked for at one of the sites.
    Switchover(Who),
    /// The secondary is away for longer than the journal lasts, and something happens while it is copied what it lacks.
    Absence(Meanwhile),
}

#[derive(Clone, Copy, Debug)]
enum Meanwhile {
    Nothing,
    Kill(Who),
    Cut,
    /// The secondary cannot write what it is copied, for a while.
    Staging,
}

impl Fault {
    fn name(&self) -> String {
        match self {
            Fault::Kill(who) => format!("kill {who:?}"),
            Fault::Pause(who) => format!("pause {who:?}"),
            Fault::Cut(_) => "cut".to_owned(),
            Fault::Disk(who, _) => format!("disk {who:?}"),
            Fault::Takeover(_) => "takeover".to_owned(),
            Fault::Switchover(_) => "switchover".to_owned(),
            Fault::Absence(_) => "absence".to_owned(),
        }
    }
}

impl Plan {
    fn new(seed: u64) -> Plan {
        let mut random = Random(seed);
        let solo = seed.is_multiple_of(2);
        let forgets = random.below(4) == 0;
        let snapshots = random.below(if solo { 3 } else { 2 }) == 0;
        let rounds = (0..ROUNDS_A_PAIR).map(|_| Plan::round(&mut random, solo, snapshots)).collect();
        Plan { solo, forgets, snapshots, rounds }
    }

    fn round(random: &mut Random, solo: bool, snapshots: bool) -> Round {
        let one_of = |random: &mut Random| match random.below(2) {
            0 => Who::Primary,
            _ => Who::Secondary,
        };
        let any_of = |random: &mut Random| match random.below(3) {
            0 => Who::Primary,
            1 => Who::Secondary,
            _ => Who::Both,
        };
        let fault = match random.below(10) {
            0 | 1 => Fault::Kill(any_of(random)),
            2 => Fault::Pause(one_of(random)),
            3 => Fault::Cut([[true, true], [true, false], [false, true]][random.below(3) as usize]),
            4 | 5 => Fault::Disk(one_of(random), bad_disk(random)),
            6 => Fault::Switchover(one_of(random)),
            // A primary that may have gone on alone is not to be taken over from: that would be the operator's mistake.
            _ if !solo => Fault::Takeover(random.below(1500)),
            _ => Fault::Absence(match random.below(6) {
                0 | 1 => Meanwhile::Nothing,
                2 | 3 => Meanwhile::Kill(any_of(random)),
                4 => Meanwhile::Cut,
                _ => Meanwhile::Staging,
            }),
        };
        let link = (random.below(3) == 0).then(|| Link {
            lost_ppm: [1_000, 10_000, 30_000][random.below(3) as usize],
            delay_us: random.below(3_000),
            jitter_us: random.below(2_000),
        });
        Round {
            fault,
            after_ms: 20 + random.below(300),
            for_ms: 20 + random.below(1000),
            link,
            healed_late: random.below(2) == 0,
            snapshot: snapshots && random.below(3) > 0,
        }
    }
}

/// A rule for one kind of request of one file: errors, delays, or halves.
fn bad_disk(random: &mut Random) -> String {
    let disk = ["journal", "volume:0", "checksums:0"][random.below(3) as usize];
    let op = ["write", "write", "flush"][random.below(3) as usize];
    let effect = match random.below(6) {
        0 => format!("times = 30\ndelay_us = {}", 1000 + random.below(40_000)),
        1 => "times = 30\nshort = true".to_owned(),
        2 => "times = 1\nerrno = 5".to_owned(),
        3 => "errno = 5".to_owned(),
        _ => "errno = 28".to_owned(),
    };
    format!("[[rule]]\ndisk = \"{disk}\"\nop = \"{op}\"\nafter = {}\n{effect}\n", random.below(200))
}

/// A pair, and what it was told.
struct Torture {
    plan: Plan,
    sites: Sites,
    relay: Relay,
    checker: Checker,
    /// Names and what they hold.
    snapshots: Vec<(String, Frozen)>,
    snapshots_taken: usize,
    acknowledged: u64,
    unknown: u64,
}

/// Whoever is what now.
struct Roles<'a> {
    primary: &'a mut Site,
    secondary: &'a mut Site,
}

impl Roles<'_> {
    fn of(&mut self, who: Who) -> Vec<&mut Site> {
        match who {
            Who::Primary => vec![self.primary],
            Who::Secondary => vec![self.secondary],
            Who::Both => vec![self.primary, self.secondary],
        }
    }
}

fn leads(site: &Site) -> bool {
    site.try_status().is_some_and(|status| status["role"] == "primary" && status["state"] == "serving")
}

/// Both sites run, or will in a moment: waits until one of them is primary and serves.
fn roles(sites: &mut Sites) -> Roles<'_> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match [leads(&sites.left), leads(&sites.right)] {
            [true, true] => panic!("two primaries"),
            [true, false] => return Roles { primary: &mut sites.left, secondary: &mut sites.right },
            [false, true] => return Roles { primary: &mut sites.right, secondary: &mut sites.left },
            _ => assert!(Instant::now() < deadline, "nobody is primary"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn try_connect(primary: &Site) -> Option<NbdClient> {
    primary.try_connect("data").ok().filter(|client| client.flags() & READ_ONLY == 0)
}

fn connect(primary: &Site) -> NbdClient {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(client) = try_connect(primary) {
            return client;
        }
        assert!(Instant::now() < deadline, "{} takes no writes: {:?}", primary.name, primary.try_status());
        sleep_ms(10);
    }
}

/// The same where it may never serve.
fn connect_if_served(primary: &Site) -> Option<NbdClient> {
    let deadline = Instant::now() + FAULT_MAX;
    while Instant::now() < deadline {
        if let Some(client) = try_connect(primary) {
            return Some(client);
        }
        sleep_ms(10);
    }
    None
}

/// Starts a site whose disk is bad; `act` is for one that runs all the same. Then it is dead, and its disk is well.
fn with_bad_disk(site: &mut Site, forgets: bool, rule: &str, act: impl FnOnce(&Site)) {
    site.set_faults(&faults(forgets, rule));
    if site.try_start() {
        act(site);
        site.kill();
    }
    site.set_faults(&faults(forgets, ""));
}

/// Until its disk has failed, if it does soon.
fn await_failure(site: &Site) {
    let deadline = Instant::now() + FAULT_MAX;
    while Instant::now() < deadline && site.try_status().is_some_and(|status| status["state"] != "failed") {
        sleep_ms(20);
    }
}

/// The checker goes on while `act` does something to the sites, and until it has, or the connection has ended.
fn under_load(checker: &mut Checker, mut client: NbdClient, think: Duration, act: impl FnOnce()) -> Session {
    struct Ends<'a>(&'a AtomicBool);
    impl Drop for Ends<'_> {
        fn drop(&mut self) {
            self.0.store(true, Relaxed);
        }
    }
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let driver = scope.spawn(|| {
            checker.drive(&mut client, DEPTH, |_| {
                std::thread::sleep(think);
                if over.load(Relaxed) { Next::Drain } else { Next::GoOn }
            })
        });
        {
            // If it panics, the driver ends all the same.
            let _ends = Ends(&over);
            act();
        }
        driver.join().expect("the checker's thread")
    })
}

fn sleep_ms(milliseconds: u64) {
    std::thread::sleep(Duration::from_millis(milliseconds));
}

fn written(site: &Site) -> u64 {
    site.status()["totals"]["written_bytes"].as_u64().expect("a number")
}

fn cut(ways: &[Way; 2], which: [bool; 2]) {
    for (way, cut) in ways.iter().zip(which) {
        way.cut.store(cut, Relaxed);
    }
}

fn shape(ways: &[Way; 2], link: Option<Link>) {
    let link = link.unwrap_or(Link { lost_ppm: 0, delay_us: 0, jitter_us: 0 });
    for way in ways {
        way.lost_ppm.store(link.lost_ppm, Relaxed);
        way.delay_us.store(link.delay_us, Relaxed);
        way.jitter_us.store(link.jitter_us, Relaxed);
    }
}

impl Torture {
    fn new(seed: u64) -> Torture {
        let plan = Plan::new(seed);
        let policy = if plan.solo { "solo" } else { "suspend" };
        let absences = plan.rounds.iter().any(|round| matches!(round.fault, Fault::Absence(_)));
        let mut group = format!(
            "on_peer_loss = \"{policy}\"\nhost_deadline = \"5min\"\nlatency_budget = \"500ms\"\nheartbeat_interval = \"50ms\"\n\
             resync_p99_budget = \"50ms\"\non_differential_full = \"error\""
        );
        if plan.forgets {
            // Flushes come when a host asks, and hardly of themselves, so that there is something to forget.
            group += "\nflush_interval = \"1s\"\nflush_bytes = \"16MiB\"";
        }
        let options = Options {
            volumes: vec![("data", VOLUME_MIB)],
            journal_mib: if absences { SMALL_JOURNAL_MIB } else { JOURNAL_MIB },
            differential_mib: (SNAPSHOTS_MAX as u64 + 2) * VOLUME_MIB,
            group,
            faults: if plan.forgets { FORGETS } else { "" },
            ..Options::default()
        };
        let mut relay = None;
        let mut sites = Sites::format_behind(&options, |right| {
            let started = Relay::start(right, seed).expect("a relay");
            relay.insert(started).address()
        });
        sites.start_both();
        Torture {
            plan,
            sites,
            relay: relay.expect("it was started"),
            checker: Checker::new(0..VOLUME_MIB * MIB / 4096, seed),
            snapshots: Vec::new(),
            snapshots_taken: 0,
            acknowledged: 0,
            unknown: 0,
        }
    }

    fn note(&mut self, session: &Session) {
        self.acknowledged += session.acknowledged;
        self.unknown += session.unanswered + session.refused;
    }

    fn run(&mut self, number: usize) {
        let round = &self.plan.rounds[number];
        let (link, healed_late) = (round.link, round.healed_late);
        if round.snapshot {
            self.take_snapshot();
        }
        shape(self.relay.both(), link);
        self.strike(number);
        if !healed_late {
            shape(self.relay.both(), None);
        }
        self.come_back();
        shape(self.relay.both(), None);
        self.check();
    }

    /// What the round is about. Afterwards a primary serves, or will when whoever is dead has started.
    fn strike(&mut self, number: usize) {
        let Torture { sites, relay, checker, .. } = self;
        let plan = &self.plan;
        let Round { fault, after_ms, for_ms, .. } = &plan.rounds[number];
        let (after_ms, for_ms) = (*after_ms, *for_ms);
        let mut roles = roles(sites);
        let client = connect(roles.primary);
        let mut sessions = Vec::new();
        let mut may_refuse = false;
        match fault {
            Fault::Kill(who) => {
                let died = *who != Who::Secondary;
                let session = under_load(checker, client, Duration::ZERO, || {
                    sleep_ms(after_ms);
                    roles.of(*who).into_iter().for_each(Site::kill);
                    sleep_ms(for_ms);
                    if !died {
                        roles.secondary.start();
                    }
                });
                assert_eq!(session.disconnected, died, "{session:?}");
                sessions.push(session);
            }
            Fault::Pause(who) => sessions.push(under_load(checker, client, Duration::ZERO, || {
                sleep_ms(after_ms);
                roles.of(*who).into_iter().for_each(|site| site.pause());
                sleep_ms(for_ms);
                roles.of(*who).into_iter().for_each(|site| site.resume());
            })),
            Fault::Cut(which) => sessions.push(under_load(checker, client, Duration::ZERO, || {
                sleep_ms(after_ms);
                cut(relay.both(), *which);
                sleep_ms(for_ms);
                cut(relay.both(), [false; 2]);
            })),
            Fault::Disk(Who::Secondary, rule) => {
                sessions.push(under_load(checker, client, Duration::ZERO, || {
                    sleep_ms(after_ms);
                    roles.secondary.kill();
                    with_bad_disk(roles.secondary, plan.forgets, rule, await_failure);
                    roles.secondary.start();
                }));
            }
            Fault::Disk(_, rule) => {
                let session = under_load(checker, client, Duration::ZERO, || {
                    sleep_ms(after_ms);
                    roles.primary.kill();
                });
                sessions.push(session);
                if plan.forgets && plan.solo {
                    // What it holds now has to be known before anybody reads it under load.
                    roles.primary.start();
                    checker.verify_flushed(&mut connect(roles.primary), "the primary");
                    roles.primary.kill();
                }
                may_refuse = true;
                with_bad_disk(roles.primary, plan.forgets, rule, |site| {
                    if let Some(client) = connect_if_served(site) {
                        sessions.push(under_load(checker, client, Duration::ZERO, || await_failure(site)));
                    }
                });
            }
            Fault::Takeover(writes) => {
                let session = under_load(checker, client, Duration::ZERO, || {
                    sleep_ms(after_ms);
                    roles.primary.kill();
                });
                sessions.push(session);
                succeeds(lockstep(&["promote", "--config", path(&roles.secondary.config), "--fenced"]));
                let mut client = connect(roles.secondary);
                checker.verify(&mut client, "the site that took over");
                let session = checker.drive(&mut client, DEPTH, |progress| {
                    if progress.acknowledged < *writes { Next::GoOn } else { Next::Drain }
                });
                assert!(!session.disconnected, "{session:?}");
                sessions.push(session);
            }
            Fault::Switchover(who) => {
                let mut done = false;
                let session = under_load(checker, client, Duration::ZERO, || {
                    sleep_ms(after_ms);
                    let config = roles.of(*who)[0].config.clone();
                    // Refused where the network has cost them their lockstep.
                    done = lockstep(&["switchover", "--config", path(&config)]).status.success();
                });
                assert!(session.disconnected || !done, "{session:?}");
                sessions.push(session);
            }
            Fault::Absence(_) => sessions.push(under_load(checker, client, Duration::ZERO, || {
                sleep_ms(after_ms);
                roles.secondary.kill();
                let before = written(roles.primary);
                let deadline = Instant::now() + AWAY_MAX;
                while written(roles.primary) - before < SMALL_JOURNAL_MIB * MIB * 5 / 4 {
                    assert!(Instant::now() < deadline, "hosts are slow: {}", roles.primary.status());
                    sleep_ms(20);
                }
            })),
        }
        for session in &sessions {
            assert!(may_refuse || session.refused == 0, "{session:?}");
            self.acknowledged += session.acknowledged;
            self.unknown += session.unanswered + session.refused;
        }
        let forgot = match fault {
            Fault::Kill(Who::Both) => true,
            Fault::Kill(Who::Primary) | Fault::Disk(Who::Primary, _) => plan.solo,
            _ => false,
        };
        if forgot && plan.forgets {
            self.verify_flushed();
        }
        if let Fault::Absence(meanwhile) = self.plan.rounds[number].fault {
            self.return_disturbed(meanwhile, for_ms);
        }
    }

    /// Whoever held what was acknowledged may have died without having flushed it.
    fn verify_flushed(&mut self) {
        self.sites.left.start();
        self.sites.right.start();
        let Roles { primary, .. } = roles(&mut self.sites);
        self.checker.verify_flushed(&mut connect(primary), "the primary");
    }

    /// The secondary starts after an absence, and something happens while it is copied what it lacks.
    fn return_disturbed(&mut self, meanwhile: Meanwhile, after_ms: u64) {
        let forgets = self.plan.forgets;
        let Torture { sites, relay, checker, .. } = self;
        // The secondary is the one that does not run.
        let mut roles = match sites.left.runs() {
            true => Roles { primary: &mut sites.left, secondary: &mut sites.right },
            false => Roles { primary: &mut sites.right, secondary: &mut sites.left },
        };
        let client = connect(roles.primary);
        let session = under_load(checker, client, THINK, || {
            if let Meanwhile::Staging = meanwhile {
                let rule = "[[rule]]\ndisk = \"staging\"\nop = \"write\"\nafter = 5\ntimes = 1\nerrno = 28\n";
                roles.secondary.set_faults(&faults(forgets, rule));
            }
            roles.secondary.start();
            sleep_ms(after_ms);
            match meanwhile {
                Meanwhile::Nothing | Meanwhile::Staging => {}
                Meanwhile::Cut => {
                    cut(relay.both(), [true; 2]);
                    sleep_ms(700);
                    cut(relay.both(), [false; 2]);
                }
                Meanwhile::Kill(who) => roles.of(who).into_iter().for_each(|site| site.kill()),
            }
            roles.secondary.set_faults(&faults(forgets, ""));
            roles.secondary.start();
        });
        let primary_died = matches!(meanwhile, Meanwhile::Kill(Who::Primary | Who::Both));
        assert!(session.refused == 0 && (primary_died || !session.disconnected), "{session:?}");
        self.note(&session);
        if primary_died && forgets {
            self.verify_flushed();
        }
    }

    /// Whoever is away comes back while hosts write, and in the end both are in lockstep.
    fn come_back(&mut self) {
        let Sites { left, right, .. } = &mut self.sites;
        let took_over = match [left.runs(), right.runs()] {
            [true, false] => leads(left),
            [false, true] => leads(right),
            _ => false,
        };
        if !took_over {
            left.start();
            right.start();
        }
        let Roles { primary, secondary } = match (took_over, left.runs()) {
            (false, _) => roles(&mut self.sites),
            (true, true) => Roles { primary: left, secondary: right },
            (true, false) => Roles { primary: right, secondary: left },
        };
        // What was acknowledged is there before anything else happens.
        let mut client = connect(primary);
        self.checker.verify(&mut client, "the primary");
        let session = under_load(&mut self.checker, client, THINK, || {
            secondary.start();
            primary.wait("--in-sync");
        });
        assert_eq!((session.refused, session.disconnected), (0, false), "{session:?}");
        self.note(&session);
    }

    /// Nothing acknowledged is lost, and both sites hold the same.
    fn check(&mut self) {
        let Roles { primary, secondary } = roles(&mut self.sites);
        primary.wait("--in-sync");
        primary.wait("--settled");
        self.checker.all_is_flushed();
        self.checker.verify(&mut connect(primary), "the primary");
        secondary.until_it_shows(primary);
        self.checker.verify(&mut secondary.connect_when_served("data"), "the secondary");
        assert_eq!(primary.status()["solo"], false, "{}", primary.status());
        for (name, frozen) in &mut self.snapshots {
            for site in [&mut *primary, &mut *secondary] {
                let export = format!("data@{name}");
                let whose = format!("{export} of {}", site.name);
                self.checker.verify_frozen(frozen, &mut site.connect_when_served(&export), &whose);
            }
        }
        for site in [primary, secondary] {
            let log = site.log_text();
            for bad in ["panicked", "INV-", "images differ", "SplitBrain"] {
                assert!(!log.contains(bad), "{}'s log says {bad:?}", site.name);
            }
        }
    }

    /// Nothing is under way, so that what it holds is known; the oldest goes if there are many.
    fn take_snapshot(&mut self) {
        let Roles { primary, .. } = roles(&mut self.sites);
        if self.snapshots.len() == SNAPSHOTS_MAX {
            let (name, _) = self.snapshots.remove(0);
            succeeds(lockstep(&["snapshot", "delete", "--config", path(&primary.config), &name]));
        }
        let name = format!("s{}", self.snapshots_taken);
        self.snapshots_taken += 1;
        self.checker.freeze();
        succeeds(lockstep(&["snapshot", "create", "--config", path(&primary.config), &name]));
        self.checker.end_freeze();
        primary.wait("--settled");
        self.snapshots.push((name, self.checker.take_frozen().expect("it was frozen")));
    }
}

/// The faults of a disk that forgets what is not flushed.
const FORGETS: &str = "discard_unflushed = 42\n";

fn faults(forgets: bool, rule: &str) -> String {
    format!("{}{rule}", if forgets { FORGETS } else { "" })
}

#[test]
fn random_faults_lose_nothing_and_end_in_lockstep() {
    let mut faults: BTreeMap<String, u64> = BTreeMap::new();
    let (mut acknowledged, mut unknown, mut done) = (0, 0, 0);
    for seed in seed().. {
        if done >= rounds() {
            break;
        }
        let mut torture = Torture::new(seed);
        let Plan { solo, forgets, snapshots, .. } = torture.plan;
        println!("seed {seed}: solo {solo}, forgets {forgets}, snapshots {snapshots}");
        for number in 0..torture.plan.rounds.len() {
            let begun = Instant::now();
            println!("  round {number}: {:?}", torture.plan.rounds[number]);
            torture.run(number);
            println!("  round {number}: in lockstep after {:.1} s", begun.elapsed().as_secs_f64());
            *faults.entry(torture.plan.rounds[number].fault.name()).or_default() += 1;
            done += 1;
        }
        acknowledged += torture.acknowledged;
        unknown += torture.unknown;
    }
    println!("random: {done} rounds, {acknowledged} changes acknowledged, {unknown} unknown; {faults:?}");
}
