//! Three sites, of which one or two are lost under load and return, in every order: all hold the same in the end, and what that moved is
//! told (docs/OPERATIONS.md has the table).

use serde_json::Value;

use crate::checker::{Checker, Next};
use crate::crashes::seed;
use crate::pair::*;
use crate::third::{has_everything, identical, number, options};

const DEPTH: usize = 24;
const FIRST: usize = 0;
const SECOND: usize = 1;
const THIRD: usize = 2;

const NAMES: [&str; 3] = ["first", "second", "third"];

struct Trio {
    sites: Sites,
    checker: Checker,
    /// The left, right and far sites by what they are: first, second and third.
    places: [usize; 3],
}

impl Trio {
    fn new() -> Trio {
        let sites = Sites::start(&Options {
            volumes: vec![("data", 16)],
            group: "on_peer_loss = \"solo\"\nlatency_budget = \"1s\"\nheartbeat_interval = \"50ms\""
                .to_owned(),
            ..options()
        });
        Trio { sites, checker: Checker::new(0..16 * MIB / 4096, seed()), places: [0, 1, 2] }
    }

    fn site(&mut self, role: usize) -> &mut Site {
        let place = self.places[role];
        let [left, right, far] = self.sites.three();
        [left, right, far].into_iter().nth(place).expect("one of three")
    }

    fn runs(&mut self, role: usize) -> bool {
        self.site(role).runs()
    }

    /// Hosts write at the first; in the middle of it `victim` is killed.
    fn load(&mut self, count: u64, victim: Option<usize>) {
        let place = self.places[FIRST];
        let victim_place = victim.map(|role| self.places[role]);
        let [left, right, far] = self.sites.three();
        let mut all = [left, right, far];
        let mut client = all[place].connect("data");
        let mut killed = false;
        let session = self.checker.drive(&mut client, DEPTH, |progress| {
            if let Some(victim) = victim_place
                && !killed
                && progress.acknowledged >= count / 2
            {
                all[victim].kill();
                killed = true;
            }
            // Until the connection's end is seen: all that was under way may have been answered before.
            let over = progress.acknowledged >= count && victim != Some(FIRST);
            if over { Next::Drain } else { Next::GoOn }
        });
        assert_eq!(session.disconnected, victim == Some(FIRST), "{session:?}");
        assert_eq!(session.refused, 0, "{session:?}");
    }

    /// That one dies under load; whoever is left serves.
    fn lose(&mut self, role: usize) {
        let last_of_pair = role != THIRD && !(self.runs(FIRST) && self.runs(SECOND));
        if last_of_pair && self.runs(THIRD) {
            return self.lose_the_pair(role);
        }
        self.load(200, Some(role));
        if role == FIRST && self.runs(SECOND) {
            let config = self.site(SECOND).config.clone();
            succeeds(lockstep(&["promote", "--config", path(&config), "--fenced"]));
            self.places.swap(FIRST, SECOND);
        }
        if self.runs(FIRST) {
            self.load(100, None);
        }
    }

    /// The last one of the pair dies while the third has everything, which is promoted.
    fn lose_the_pair(&mut self, role: usize) {
        assert_eq!(role, FIRST, "it is the one that serves");
        self.load(100, None);
        let (first, third) = (self.places[FIRST], self.places[THIRD]);
        let [left, right, far] = self.sites.three();
        let mut all = [left, right, far];
        all[first].wait("--settled");
        let [first, third] = all.get_disjoint_mut([first, third]).expect("two sites");
        has_everything(third, first);
        first.kill();
        third.until("it can be promoted", |third| {
            let arguments = ["promote", "--config", path(&third.config), "--fenced", "--accept-loss", "0"];
            lockstep(&arguments).status.success()
        });
        self.places.swap(FIRST, THIRD);
        self.load(100, None);
    }

    fn total(&mut self, role: usize, what: &str) -> u64 {
        if !self.runs(role) {
            return 0;
        }
        number(&self.site(role).status(), ["totals", what])
    }

    /// What the first and the second have sent so far, since they started.
    fn moved(&mut self) -> [u64; 3] {
        [
            self.total(FIRST, "catch_up_updates") + self.total(SECOND, "catch_up_updates"),
            self.total(FIRST, "fed_updates") + self.total(SECOND, "fed_updates"),
            self.total(FIRST, "resync_bytes") + self.total(SECOND, "resync_bytes"),
        ]
    }

    /// All of them are in lockstep, and hold the same.
    fn is_whole(&mut self) {
        self.site(FIRST).wait("--in-sync");
        self.load(50, None);
        self.site(FIRST).wait("--settled");
        let places = self.places;
        let [left, right, far] = self.sites.three();
        let mut all = [left, right, far];
        let [first, second, third] = all.get_disjoint_mut(places).expect("three sites");
        has_everything(third, first);
        second.until("it shows all", |second| {
            let shown = |status: &Value| number(status, ["watermarks", "settled"]);
            shown(&second.status()) == number(&first.status(), ["watermarks", "last"])
        });
        identical(first, second, "data");
        identical(first, third, "data");
        self.checker.all_is_flushed();
        let mut client = third.connect("data");
        self.checker.verify(&mut client, "the third");
    }

    /// These are lost in this order, and return in that one; each by its role when all were there.
    fn row(&mut self, lost: &[usize], returned: &[usize]) {
        let (before, from) = (self.places, self.last());
        for role in lost {
            let now = self.places.iter().position(|place| *place == before[*role]).expect("it has a role");
            self.lose(now);
        }
        let moved = self.moved();
        for role in returned {
            let now = self.places.iter().position(|place| *place == before[*role]).expect("it has a role");
            self.site(now).start();
        }
        self.is_whole();
        self.tell(lost, returned, from, moved);
    }

    fn last(&mut self) -> u64 {
        number(&self.site(FIRST).status(), ["watermarks", "last"])
    }

    fn tell(&mut self, lost: &[usize], returned: &[usize], from: u64, before: [u64; 3]) {
        let written = self.last() - from;
        let after = self.moved();
        let names = |roles: &[usize]| roles.iter().map(|role| NAMES[*role]).collect::<Vec<_>>().join(", ");
        let [caught_up, fed, copied] = [0, 1, 2].map(|index| after[index].saturating_sub(before[index]));
        eprintln!(
            "| {} | {} | {written} written | {caught_up} updates | {fed} updates | {} KiB |",
            names(lost),
            names(returned),
            copied / 1024
        );
    }
}

#[test]
fn one_of_three_is_lost_and_returns() {
    let mut trio = Trio::new();
    trio.load(100, None);
    for role in [FIRST, SECOND, THIRD] {
        trio.row(&[role], &[role]);
    }
}

#[test]
fn two_of_three_are_lost_and_return_one_of_the_pair_goes_on() {
    let mut trio = Trio::new();
    trio.load(100, None);
    for lost in [[FIRST, THIRD], [SECOND, THIRD], [THIRD, FIRST], [THIRD, SECOND]] {
        trio.row(&lost, &lost);
        trio.row(&lost, &[lost[1], lost[0]]);
    }
}

/// The third goes on, and what the others have is given up: each is formatted anew, and copied everything as the secondary, one after the
/// other; the one that came first becomes the third.
#[test]
fn both_of_the_pair_are_lost_and_return_to_the_third() {
    let mut trio = Trio::new();
    trio.load(100, None);
    for lost in [[FIRST, SECOND], [SECOND, FIRST]] {
        for returned in [lost, [lost[1], lost[0]]] {
            let (before, from) = (trio.places, trio.last());
            for role in lost {
                let now = trio.places.iter().position(|place| *place == before[role]).expect("it has a role");
                trio.lose(now);
            }
            let [earlier, later] = returned.map(|role| before[role]);
            let third = before[THIRD];
            trio.assign([third, earlier, later]);
            trio.site(FIRST).stop();
            for role in [FIRST, SECOND] {
                if role == SECOND {
                    trio.format(role);
                }
                trio.site(role).start();
            }
            trio.site(FIRST).wait("--in-sync");
            let copied = trio.total(FIRST, "resync_bytes");
            trio.site(FIRST).wait("--settled");
            for role in [SECOND, FIRST] {
                assert!(trio.site(role).stop().success());
            }
            trio.assign([third, later, earlier]);
            trio.format(SECOND);
            for role in [FIRST, SECOND, THIRD] {
                trio.site(role).start();
            }
            trio.is_whole();
            trio.tell(&lost, &returned, from, [0, 0, 0]);
            eprintln!("  (and {} KiB copied to the one that returned first)", copied / 1024);
        }
    }
}

impl Trio {
    fn assign(&mut self, places: [usize; 3]) {
        self.places = places;
        let names = places.map(|place| ["left", "right", "far"][place]);
        self.sites.assign(names[FIRST], names[SECOND], names[THIRD]);
    }

    fn format(&mut self, role: usize) {
        let config = self.site(role).config.clone();
        succeeds(lockstep(&["format", "--force", "--config", path(&config)]));
    }
}
