//! Keys of both sites replaced while hosts write, as docs/OPERATIONS.md says to.

use std::fs;
use std::process::Output;
use std::time::{Duration, Instant};

use crate::checker::{Checker, Next};
use crate::crashes::seed;
use crate::pair::*;

const DEPTH: usize = 24;

/// Writes before the first command and after the last.
const WRITES: u64 = 2000;

/// No host waits longer for an answer; it takes milliseconds, but other tests' builds may hold the CPUs.
const ANSWER_MAX: Duration = Duration::from_secs(10);

fn options() -> Options {
    // One that loses its peer waits for it: what the pair acknowledges, both have.
    let group = "latency_budget = \"5s\"\nheartbeat_interval = \"50ms\"\non_peer_loss = \"suspend\"";
    Options { volumes: vec![("data", 32)], journal_mib: 32, group: group.to_owned(), ..Options::default() }
}

fn reload(site: &Site, more: &[&str]) -> Output {
    lockstep(&[&["keys", "reload", "--config", path(&site.config)], more].concat())
}

/// Puts `new` where its configuration says `old` of the other sites.
fn know(site: &Site, old: &str, new: &str) {
    let text = fs::read_to_string(&site.config).expect("a configuration");
    let (old, new) = (format!("fingerprint = {old}\n"), format!("fingerprint = {new}\n"));
    assert!(text.contains(&old), "{old} is not in {text}");
    fs::write(&site.config, text.replace(&old, &new)).expect("a configuration");
}

fn one(fingerprint: &str) -> String {
    format!("\"{fingerprint}\"")
}

fn both(old: &str, new: &str) -> String {
    format!("[\"{old}\", \"{new}\"]")
}

/// Makes a new identity beside the one in use; its fingerprint.
fn keygen(site: &Site) -> String {
    let file = site.directory.join("identity.new.pem");
    succeeds(lockstep(&["keygen", "--identity", path(&file), "--site", site.name])).trim().to_owned()
}

/// The new one takes the place of the one in use, which is kept beside.
fn replace(site: &Site) {
    let file = |name: &str| site.directory.join(name);
    fs::copy(file("identity.pem"), file("identity.old.pem")).expect("a copy");
    fs::rename(file("identity.new.pem"), file("identity.pem")).expect("a new identity");
}

/// Waits until its status has this fingerprint there: the other site may know of a new connection first.
fn sees(site: &Site, there: &str, fingerprint: &str) {
    let deadline = Instant::now() + PATIENCE;
    while site.status().pointer(there) != Some(&fingerprint.into()) {
        assert!(Instant::now() < deadline, "{}: {there} is not {fingerprint}: {}", site.name, site.status());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The procedure, and what goes wrong when a step is left out or comes too early.
fn rotate(site: &Site, peer: &Site) -> (String, String) {
    let old = site.fingerprint();
    let new = keygen(site);

    // The peer may not forget the key that is in use.
    know(peer, &one(&old), &one(&new));
    let why = fails(reload(peer, &[]));
    assert!(why.contains(&old) && why.contains("nothing is changed"), "{why}");
    know(peer, &one(&new), &both(&old, &new));
    let said = succeeds(reload(peer, &[]));
    assert!(said.contains(&format!("{} is {old}, and may be {new}", site.name)), "{said}");

    replace(site);
    let said = succeeds(reload(site, &[]));
    assert!(said.contains(&format!("this site is {new};")), "{said}");
    sees(peer, "/peer/keys/presented", &new);

    know(peer, &both(&old, &new), &one(&new));
    succeeds(reload(peer, &[]));
    let shown = succeeds(lockstep(&["status", "--config", path(&peer.config)]));
    assert!(shown.contains(&new) && !shown.contains(&old), "{shown}");
    (old, new)
}

#[test]
fn both_sites_keys_are_replaced_under_load_and_the_old_ones_are_refused() {
    let mut sites = Sites::start(&options());
    let mut checker = Checker::new(0..32 * MIB / 4096, seed());
    let mut client = sites.left.connect("data");
    let mut ended_at = None;
    let (left, right) = (&sites.left, &sites.right);
    let session = std::thread::scope(|scope| {
        let mut rotation = None;
        checker.drive(&mut client, DEPTH, |progress| {
            if rotation.is_none() && progress.acknowledged >= WRITES {
                rotation = Some(scope.spawn(move || (rotate(left, right), rotate(right, left))));
            }
            if ended_at.is_none() && rotation.as_ref().is_some_and(|rotation| rotation.is_finished()) {
                ended_at = Some(progress.acknowledged);
            }
            match ended_at {
                Some(ended_at) if progress.acknowledged >= ended_at + WRITES => Next::Drain,
                _ => Next::GoOn,
            }
        })
    });
    assert_eq!((session.refused, session.disconnected), (0, false), "{session:?}");
    let slowest = Duration::from_nanos(session.latency_ns.0.max());
    println!("{} writes, the slowest took {slowest:?}", session.acknowledged);
    assert!(slowest < ANSWER_MAX, "{slowest:?}");
    sites.wait("--in-sync");
    sites.wait("--settled");
    let status = sites.left.status();
    assert_eq!(status["totals"]["resync_bytes"], 0, "{status}");
    assert_eq!((&status["solo"], &status["totals"]["expired"]), (&false.into(), &0.into()), "{status}");
    checker.verify(&mut sites.right.connect("data"), "the secondary");

    // The old key, shown once more: refused at both sites, and the one before is gone on with.
    for (site, peer) in [(&sites.left, &sites.right), (&sites.right, &sites.left)] {
        let new = site.fingerprint();
        let identity = site.directory.join("identity.pem");
        let kept = fs::read(&identity).expect("an identity");
        fs::rename(site.directory.join("identity.old.pem"), &identity).expect("the old identity");
        let old = site.fingerprint();
        let why = fails(reload(site, &[]));
        assert!(why.contains(&format!("refuses this site's new identity {old}")), "{why}");
        let keys = &site.status()["peer"]["keys"];
        assert_eq!((&keys["identity"], &keys["refused"]), (&new.as_str().into(), &old.as_str().into()));
        fs::write(&identity, kept).expect("the new identity");
        succeeds(reload(site, &[]));
        // A listener had to close its connection to show it.
        sites.wait("--in-sync");
        sees(peer, "/peer/keys/presented", &new);
    }

    // What was taken while they ran is what they start with.
    assert!(sites.left.stop().success() && sites.right.stop().success());
    sites.start_both();
    checker.verify(&mut sites.left.connect("data"), "the primary");
}

#[test]
fn keys_that_are_not_valid_are_refused_and_change_nothing() {
    let sites = Sites::start(&options());
    let (left, right) = (&sites.left, &sites.right);
    let before = left.status()["peer"]["keys"].clone();
    let written = fs::read_to_string(&left.config).expect("a configuration");
    let theirs = right.fingerprint();
    let refused = |config: String, what: &str| {
        fs::write(&left.config, config).expect("a configuration");
        let why = fails(reload(left, &[]));
        assert!(why.contains(what), "{what:?} is not in {why}");
        fs::write(&left.config, &written).expect("a configuration");
        assert_eq!(left.status()["peer"]["keys"], before);
    };
    refused(written.replace("\nid = 2\n", "\nid = 7\n"), "does not name right (id 2) any more");
    refused(written.replace("tested", "another"), "another site or group");
    let own = left.fingerprint();
    refused(written.replace(&one(&theirs), &both(&theirs, &own)), "this site's own identity");
    refused(written.replace("[link]", "[link]\nidentity = \"nothing.pem\""), "nothing.pem");

    let identity = left.directory.join("identity.pem");
    let kept = fs::read_to_string(&identity).expect("an identity");
    let other = fs::read_to_string(right.directory.join("identity.pem")).expect("an identity");
    let key = |text: &str| text.find("-----BEGIN PRIVATE KEY").expect("a key");
    // A certificate with somebody else's key.
    fs::write(&identity, kept[..key(&kept)].to_owned() + &other[key(&other)..]).expect("written");
    let why = fails(reload(left, &[]));
    assert!(why.contains("unusable"), "{why}");
    fs::write(&identity, &kept).expect("written");
    assert_eq!(left.status()["peer"]["keys"], before);

    // What the client reads itself is refused there; the site would say the same.
    fs::write(&left.config, written.replace(&theirs, "sha256:0")).expect("a configuration");
    assert!(fails(reload(left, &[])).contains("64 hexadecimal digits"));
    fs::write(&left.config, written.replace("on_peer_loss = \"suspend\"", "on_peer_loss = \"solo\""))
        .expect("a configuration");
    let said = succeeds(reload(left, &[]));
    assert!(said.contains("other changes"), "{said}");

    // Meant: the peer is cut off, and comes back once it is known again.
    let stranger = keygen(left);
    fs::write(&left.config, written.replace(&theirs, &stranger)).expect("a configuration");
    assert!(fails(reload(left, &[])).contains("--disconnect"));
    let said = succeeds(reload(left, &["--disconnect"]));
    assert!(said.contains("right is not connected"), "{said}");
    fs::write(&left.config, &written).expect("a configuration");
    succeeds(reload(left, &[]));
    sites.wait("--in-sync");
}

#[test]
fn a_third_that_was_forgotten_goes_on_with_the_old_key_until_it_is_told() {
    let mut sites = Sites::start(&Options { third: true, ..options() });
    let [left, right, far] = sites.three();
    let (old, new) = (left.fingerprint(), keygen(left));
    know(right, &one(&old), &both(&old, &new));
    succeeds(reload(right, &[]));
    replace(left);
    let why = fails(reload(left, &[]));
    assert!(why.contains("the keys are loaded; far refuses this site's new identity"), "{why}");
    let used = |site: &Site, with: &str, what: &str| site.status()[with]["keys"][what].clone();
    assert_eq!(
        (used(left, "peer", "identity"), used(left, "peer", "refused")),
        (new.clone().into(), ().into())
    );
    assert_eq!(
        (used(left, "third", "identity"), used(left, "third", "refused")),
        (old.clone().into(), new.clone().into())
    );
    // It may pull from the other one meanwhile; a listener that goes back is dialed again by and by.
    far.wait("--in-sync");
    sees(far, "/sources/0/keys/presented", &old);
    sees(left, "/third/keys/presented", &far.fingerprint());

    know(far, &one(&old), &both(&old, &new));
    succeeds(reload(far, &[]));
    let said = succeeds(reload(left, &[]));
    assert!(!said.contains(&old) && said.matches(&format!("this site is {new};")).count() == 2, "{said}");
    sees(far, "/sources/0/keys/presented", &new);
    know(far, &both(&old, &new), &one(&new));
    succeeds(reload(far, &[]));
    sees(far, "/sources/0/keys/presented", &new);
    far.wait("--in-sync");
    left.wait("--in-sync");
}
