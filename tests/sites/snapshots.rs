//! Snapshots of a running pair, as operators take them and backups read them.

use std::fs;

use lockstep::format::nbd::NbdError;
use lockstep::io::nbd_client::{ClientError, NbdClient};
use serde_json::Value;

use crate::checker::{Checker, Next};
use crate::pair::*;

const VOLUME_MIB: u64 = 32;

/// A file of content that no other seed gives.
fn image(sites: &Sites, name: &str, seed: u64) -> String {
    let mut state = seed;
    let mut bytes = Vec::with_capacity((VOLUME_MIB * MIB) as usize);
    while bytes.len() < bytes.capacity() {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(seed | 1);
        bytes.extend_from_slice(&state.rotate_left(17).to_le_bytes());
    }
    let file = sites.path(name);
    fs::write(&file, bytes).expect("an image");
    path(&file).to_owned()
}

pub fn snapshot(site: &Site, arguments: &[&str]) -> std::process::Output {
    let (command, rest) = arguments.split_first().expect("a command");
    lockstep(&[&["snapshot", command, "--config", path(&site.config)], rest].concat())
}

pub fn listed(site: &Site) -> Vec<(String, bool)> {
    let text = succeeds(snapshot(site, &["list", "--json"]));
    let list: Value = serde_json::from_str(&text).expect("a list");
    let list = list["snapshots"].as_array().expect("snapshots");
    let name = |snapshot: &Value| snapshot["name"].as_str().expect("a name").to_owned();
    list.iter().map(|snapshot| (name(snapshot), snapshot["protected"] == true)).collect()
}

fn identical(image: &str, site: &Site, export: &str) {
    let uri = site.uri(export);
    let compared = tool("qemu-img", &["compare", "-f", "raw", "-F", "raw", image, &uri]);
    assert!(succeeds(compared).contains("identical"), "{export} of {}", site.name);
}

#[test]
fn a_snapshot_is_read_from_either_site_while_the_volume_is_overwritten() {
    let sites = Sites::start(&Options {
        volumes: vec![("data", VOLUME_MIB)],
        differential_mib: 3 * VOLUME_MIB,
        ..Options::default()
    });
    let [first, second, third] =
        [(1, "first"), (2, "second"), (3, "third")].map(|(seed, name)| image(&sites, name, seed));
    let left = sites.left.uri("data");
    succeeds(tool("nbdcopy", &[&first, &left]));
    succeeds(snapshot(&sites.left, &["create", "one"]));
    std::thread::scope(|scope| {
        let overwriting = scope.spawn(|| succeeds(tool("nbdcopy", &[&second, &left])));
        identical(&first, &sites.left, "data@one");
        overwriting.join().expect("copied");
    });
    succeeds(snapshot(&sites.left, &["create", "--protect", "two"]));
    succeeds(tool("nbdcopy", &[&third, &left]));
    sites.wait("--settled");
    let names = [("one".to_owned(), false), ("two".to_owned(), true)];
    for site in [&sites.left, &sites.right] {
        assert_eq!(listed(site), names, "{}", site.name);
        identical(&third, site, "data");
    }
    for name in ["one", "two"] {
        let digests = [&sites.left, &sites.right].map(|site| succeeds(snapshot(site, &["digest", name])));
        assert!(digests[0].ends_with(&format!("  data@{name}\n")), "{}", digests[0]);
        assert_eq!(digests[0], digests[1]);
    }
    for site in [&sites.left, &sites.right] {
        identical(&first, site, "data@one");
        identical(&second, site, "data@two");
    }
    assert!(fails(snapshot(&sites.right, &["digest", "three"])).contains("no snapshot three"));
    assert!(fails(snapshot(&sites.left, &["digest", "one", "--volume", "log"])).contains("no volume log"));

    for (command, protected) in [("unprotect", false), ("protect", true)] {
        succeeds(snapshot(&sites.left, &[command, "two"]));
        sites.wait("--settled");
        for site in [&sites.left, &sites.right] {
            assert_eq!(listed(site)[1], ("two".to_owned(), protected), "{}", site.name);
        }
    }
    assert!(fails(snapshot(&sites.right, &["protect", "two"])).contains("ask the primary"));

    succeeds(snapshot(&sites.left, &["delete", "one"]));
    assert!(fails(snapshot(&sites.left, &["delete", "one"])).contains("no snapshot one"));
    assert!(fails(snapshot(&sites.right, &["delete", "two"])).contains("ask the primary"));
    assert!(fails(snapshot(&sites.left, &["create", "two"])).contains("exists"));
    assert!(fails(snapshot(&sites.left, &["create", "a@b"])).contains("cannot contain"));
    assert!(fails(snapshot(&sites.left, &["create", "--volume", "nil", "x"])).contains("no volume nil"));
    sites.wait("--settled");
    for site in [&sites.left, &sites.right] {
        assert_eq!(listed(site), names[1..], "{}", site.name);
        identical(&second, site, "data@two");
    }
}

const BLOCK: usize = 4096;

/// Blocks that one write covers.
const RUN: usize = 8;

/// What is in each block, as far as writes were acknowledged.
#[derive(Clone, PartialEq, Eq)]
struct Model(Vec<u8>);

impl Model {
    /// Writes these runs; those refused for want of space change nothing. Returns how many were.
    fn write(&mut self, client: &mut NbdClient, runs: std::ops::Range<usize>, fill: u8) -> usize {
        let mut refused = 0;
        for run in runs {
            match client.write((run * RUN * BLOCK) as u64, &[fill; RUN * BLOCK], false) {
                Ok(()) => self.0[run * RUN..(run + 1) * RUN].fill(fill),
                Err(ClientError::Failed { error: NbdError::NoSpc, .. }) => refused += 1,
                Err(error) => panic!("run {run}: {error}"),
            }
        }
        refused
    }

    fn is_at(&self, site: &Site, export: &str) {
        let mut client = site.connect(export);
        let bytes = client.read(0, (self.0.len() * BLOCK) as u32).expect("read");
        for (block, (found, fill)) in bytes.chunks(BLOCK).zip(&self.0).enumerate() {
            assert!(found.iter().all(|byte| byte == fill), "block {block} of {export} of {}", site.name);
        }
    }
}

/// Fills the differential volume, of 256 slots, with two snapshots' blocks and then some.
#[test]
fn a_full_differential_volume_is_dealt_with_as_configured_and_alike_at_both_sites() {
    for policy in ["error", "delete-oldest"] {
        let mut sites = Sites::start(&Options {
            volumes: vec![("data", 4)],
            differential_mib: 1,
            group: format!("{}\non_differential_full = \"{policy}\"", Options::default().group),
            ..Options::default()
        });
        let mut client = sites.left.connect("data");
        let mut live = Model(vec![0; 400]);
        assert_eq!(live.write(&mut client, 0..50, 1), 0);
        succeeds(snapshot(&sites.left, &["create", "old"]));
        let old = live.clone();
        assert_eq!(live.write(&mut client, 0..20, 2), 0);
        succeeds(snapshot(&sites.left, &["create", "new"]));
        let new = live.clone();
        // 160 slots are in use, and this takes 240.
        let refused = live.write(&mut client, 0..30, 3);
        let mut kept = vec![("new", &new)];
        if policy == "error" {
            assert_eq!(refused, 18);
            kept.insert(0, ("old", &old));
            // What has been captured takes no room.
            assert_eq!(live.write(&mut client, 0..12, 4), 0);
        } else {
            assert_eq!(refused, 0);
            sites.left.until("the log names it", |site| {
                site.log_text().contains("is deleted, the oldest that is not protected")
            });
        }
        sites.wait("--settled");
        let names: Vec<_> = kept.iter().map(|(name, _)| ((*name).to_owned(), false)).collect();
        for restarted in [false, true] {
            for site in [&sites.left, &sites.right] {
                assert_eq!(listed(site), names, "{policy}: {}", site.name);
                live.is_at(site, "data");
                kept.iter().for_each(|(name, model)| model.is_at(site, &format!("data@{name}")));
            }
            if !restarted {
                // What both sites know survives them.
                sites.left.kill();
                sites.right.kill();
                sites.start_both();
            }
        }
        if policy == "error" {
            let mut client = sites.left.connect("data");
            succeeds(snapshot(&sites.left, &["delete", "old"]));
            assert_eq!(live.write(&mut client, 0..30, 5), 0, "room came back");
            new.is_at(&sites.left, "data@new");
        }
    }
}

/// Extents of the one volume, in bytes.
fn diff(site: &Site, names: &[&str]) -> Vec<(u64, u64)> {
    let text = succeeds(snapshot(site, &[&["diff", "--json"], names].concat()));
    let shown: Value = serde_json::from_str(&text).expect("JSON");
    let extents = shown["volumes"][0]["extents"].as_array().expect("extents");
    let number = |value: &Value| value.as_u64().expect("a number");
    let extents: Vec<_> =
        extents.iter().map(|extent| (number(&extent["offset"]), number(&extent["length"]))).collect();
    assert_eq!(
        number(&shown["volumes"][0]["changed_bytes"]),
        extents.iter().map(|(_, length)| length).sum::<u64>()
    );
    extents
}

/// Copies parts of an export into an image, as a client without any knowledge of Lockstep does it.
fn copy_extents(uri: &str, image: &str, extents: &[(u64, u64)]) {
    for (offset, length) in extents {
        let part = format!("driver=raw,offset={offset},size={length}");
        let socket = uri.rsplit_once("socket=").expect("a socket").1;
        let export = uri.trim_start_matches("nbd+unix:///").split('?').next().expect("an export");
        let from = format!(
            "{part},file.driver=nbd,file.export={export},file.server.type=unix,file.server.path={socket}"
        );
        let to = format!("{part},file.driver=file,file.filename={image}");
        let options = ["convert", "-n", "--image-opts", "--target-image-opts", &from, &to];
        succeeds(tool("qemu-img", &options));
    }
}

#[test]
fn backups_from_the_secondary_under_load_are_exact_in_full_and_by_what_changed() {
    let sites = Sites::start(&Options {
        volumes: vec![("data", VOLUME_MIB)],
        differential_mib: 3 * VOLUME_MIB,
        ..Options::default()
    });
    let first = image(&sites, "first", 7);
    succeeds(tool("nbdcopy", &[&first, &sites.left.uri("data")]));
    // The load knows its blocks as zeros.
    let half = VOLUME_MIB * MIB / 2;
    sites.left.connect("data").write_zeroes(half, 256 * 4096).expect("zeroed");
    let (loaded, over) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| {
        // Dropped at the end, and by a failure as well.
        let loaded = loaded;
        // The changes that are looked for are in the half that is not under load.
        let (left, blocks) = (&sites.left, half / 4096..half / 4096 + 256);
        let loading = scope.spawn(move || {
            let (mut checker, mut load) = (Checker::new(blocks, 5), left.connect("data"));
            checker.drive(&mut load, 16, |_| match over.try_recv() {
                Err(std::sync::mpsc::TryRecvError::Disconnected) => Next::Drain,
                _ => Next::GoOn,
            })
        });
        let mut client = sites.left.connect("data");
        succeeds(snapshot(&sites.left, &["create", "full"]));
        for block in [1, 2, 3, 40, 1000] {
            client.write(block * 4096, &[block as u8; 4096], false).expect("written");
        }
        client.write(4096 * 50 + 512, &[9; 1024], false).expect("a part of a block");
        client.trim(4096 * 60, 3 * 4096).expect("trimmed");
        succeeds(snapshot(&sites.left, &["create", "next"]));
        client.write(4096 * 70, &[1; 4096], false).expect("written");
        sites.wait("--settled");

        // What a list shows can be asked for at once.
        assert_eq!(listed(&sites.right).len(), 2);
        let full = path(&sites.path("full")).to_owned();
        succeeds(tool("nbdcopy", &[&sites.right.uri("data@full"), &full]));
        identical(&full, &sites.left, "data@full");
        let extents = diff(&sites.right, &["full", "next"]);
        assert_eq!(extents, diff(&sites.left, &["full", "next"]));
        let quiet: Vec<_> = extents.iter().filter(|(offset, _)| *offset < half).collect();
        let block = |first: u64, count: u64| (first * 4096, count * 4096);
        let due = [block(1, 3), block(40, 1), block(50, 1), block(60, 3), block(1000, 1)];
        assert_eq!(quiet, due.iter().collect::<Vec<_>>());
        copy_extents(&sites.right.uri("data@next"), &full, &extents);
        identical(&full, &sites.left, "data@next");

        // The same for clients that ask NBD.
        let map = ["--json", "--map=lockstep:diff:full", &sites.right.uri("data@next")];
        let map: Value = serde_json::from_str(&succeeds(tool("nbdinfo", &map))).expect("JSON");
        let changed = map.as_array().expect("a list").iter().filter(|extent| extent["type"] == 1);
        let changed: Vec<_> =
            changed.map(|extent| (extent["offset"].as_u64(), extent["length"].as_u64())).collect();
        let told: Vec<_> = extents.iter().map(|(offset, length)| (Some(*offset), Some(*length))).collect();
        assert_eq!(merged(&changed), told);
        // Up to now there is more.
        assert!(diff(&sites.left, &["next"]).iter().any(|extent| *extent == block(70, 1)));
        assert!(fails(snapshot(&sites.left, &["diff", "next", "full"])).contains("not newer"));
        drop(loaded);
        let session = loading.join().expect("the load");
        assert!(session.acknowledged > 100 && session.refused == 0, "{session:?}");
    });
}

/// Adjacent extents as one: a client that asks in parts sees borders that mean nothing.
fn merged(extents: &[(Option<u64>, Option<u64>)]) -> Vec<(Option<u64>, Option<u64>)> {
    let mut all: Vec<(Option<u64>, Option<u64>)> = Vec::new();
    for &(offset, length) in extents {
        match all.last_mut() {
            Some(last) if last.0.zip(last.1).map(|(at, long)| at + long) == offset => {
                last.1 = last.1.zip(length).map(|(before, more)| before + more);
            }
            _ => all.push((offset, length)),
        }
    }
    all
}

#[test]
fn a_schedule_takes_snapshots_and_keeps_the_newest() {
    let mut sites = Sites::start(&Options {
        volumes: vec![("data", 4), ("log", 4)],
        // The next section's place in the file is as good as any.
        reactors: format!(
            "{}\n[[schedule]]\nname = \"each\"\nevery = \"1s\"\nkeep = 2\nvolumes = [\"data\"]",
            Options::default().reactors
        ),
        ..Options::default()
    });
    let of_schedule = |site: &Site| -> Vec<String> {
        let names = listed(site).into_iter().map(|(name, _)| name);
        names.filter(|name| name.starts_with("each-2")).collect()
    };
    succeeds(snapshot(&sites.left, &["create", "each-by-hand"]));
    sites.left.until("it has taken some", |left| of_schedule(left).len() >= 2);
    let first = of_schedule(&sites.left)[0].clone();
    sites.left.until("it has taken others instead", |left| {
        let names = of_schedule(left);
        assert!(names.len() <= 4, "{names:?}");
        names.len() == 2 && !names.contains(&first)
    });
    assert!(listed(&sites.left).contains(&("each-by-hand".to_owned(), false)), "not the schedule's");
    let text = succeeds(snapshot(&sites.right, &["list", "--json"]));
    assert!(text.contains("each-2") && !sites.right.log_text().contains("scheduled"), "{text}");
}

#[test]
fn a_volume_is_rolled_back_on_both_sites_and_older_snapshots_stay_what_they_were() {
    let sites = Sites::start(&Options {
        volumes: vec![("data", 4), ("log", 4)],
        differential_mib: 8,
        // What is restored must not make room for its own restoration.
        group: format!("{}\non_differential_full = \"delete-oldest\"", Options::default().group),
        ..Options::default()
    });
    let mut client = sites.left.connect("data");
    let mut live = Model(vec![0; 400]);
    assert_eq!(live.write(&mut client, 0..30, 1), 0);
    succeeds(snapshot(&sites.left, &["create", "old"]));
    let old = live.clone();
    assert_eq!(live.write(&mut client, 5..25, 2), 0);
    succeeds(snapshot(&sites.left, &["create", "good"]));
    let good = live.clone();
    assert_eq!(live.write(&mut client, 10..50, 3), 0);
    client.trim(0, 7 * BLOCK as u32).expect("trimmed");
    live.0[..7].fill(0);

    let refused = fails(snapshot(&sites.left, &["rollback", "good"]));
    assert!(refused.contains("1 connections of hosts") && refused.contains("disconnect"), "{refused}");
    live.is_at(&sites.left, "data");
    client.disconnect().expect("gone");
    assert!(fails(snapshot(&sites.right, &["rollback", "good"])).contains("ask the primary"));
    assert!(fails(snapshot(&sites.left, &["rollback", "bad"])).contains("no snapshot bad"));
    assert!(fails(snapshot(&sites.left, &["rollback", "good", "--volume", "x"])).contains("no volume x"));

    let names = [("old".to_owned(), false), ("good".to_owned(), false)];
    for (name, model, arguments) in [("good", &good, &[][..]), ("old", &old, &["--volume", "data"])] {
        succeeds(snapshot(&sites.left, &[&["rollback", name], arguments].concat()));
        sites.wait("--settled");
        for site in [&sites.left, &sites.right] {
            assert_eq!(listed(site), names, "{}", site.name);
            model.is_at(site, "data");
            old.is_at(site, "data@old");
            good.is_at(site, "data@good");
        }
    }
    // Hosts are let in again.
    assert_eq!(live.write(&mut sites.left.connect("data"), 0..50, 4), 0);
}

/// What `snapshot list` says of each snapshot, and of the differential volume.
fn held(site: &Site) -> (Vec<(String, u64)>, Value, Value) {
    let text = succeeds(snapshot(site, &["list", "--json"]));
    let list: Value = serde_json::from_str(&text).expect("a list");
    let held = |snapshot: &Value| {
        let name = snapshot["name"].as_str().expect("a name").to_owned();
        (name, snapshot["held_bytes"].as_u64().expect("bytes") / BLOCK as u64)
    };
    let each = list["snapshots"].as_array().expect("snapshots").iter().map(held).collect();
    (each, list["differential"].clone(), list["as_of"].clone())
}

#[test]
fn both_sites_say_what_each_snapshot_holds() {
    let mut sites = Sites::start(&Options {
        volumes: vec![("data", 4), ("log", 1)],
        differential_mib: 1,
        ..Options::default()
    });
    let mut client = sites.left.connect("data");
    let mut write = |from: usize, to: usize, fill: u8| {
        client.write((from * BLOCK) as u64, &vec![fill; (to - from) * BLOCK], false).expect("written");
    };
    // Overwritten after the first: 0 to 60; after the second: 40 to 100; after the third: 90 to 110.
    for (name, from, to) in [("first", 0, 60), ("second", 40, 100), ("third", 90, 110)] {
        succeeds(snapshot(&sites.left, &["create", name]));
        write(from, to, to as u8);
    }
    let say = |sites: &mut Sites, due: &[(&str, u64)], used: u64, filling: bool| {
        sites.wait("--settled");
        let due: Vec<_> = due.iter().map(|(name, blocks)| (name.to_string(), *blocks)).collect();
        let mut said = Vec::new();
        for site in [&mut sites.left, &mut sites.right] {
            site.until("it has counted, and reclaimed", |site| {
                let (_, differential, _) = held(site);
                differential["used_bytes"] == used * BLOCK as u64
            });
            let (each, differential, as_of) = held(site);
            assert_eq!(each, due, "{}", site.name);
            assert_eq!(differential["filling"], filling, "{differential}");
            assert_eq!(differential["free_bytes"], (256 - used) * BLOCK as u64, "{differential}");
            said.push((differential, as_of));
        }
        assert_eq!(said[0], said[1]);
        assert!(said[0].1.as_u64() > Some(0), "{said:?}");
    };
    // Of what the second keeps, the first needs 60 to 100 as well; of the third's, everybody needs 100 to 110.
    say(&mut sites, &[("first", 60), ("second", 20), ("third", 10)], 140, false);
    // Its neighbour is then the only one that needs 60 to 100.
    succeeds(snapshot(&sites.left, &["delete", "second"]));
    say(&mut sites, &[("first", 100), ("third", 10)], 120, false);
    write(110, 200, 1);
    say(&mut sites, &[("first", 100), ("third", 10)], 210, true);
    let table = succeeds(snapshot(&sites.right, &["list"]));
    assert!(table.contains("840.0 KiB of 1.0 MiB in use (82 %)"), "{table}");
    let taken = "snapshot first (#";
    for site in [&sites.left, &sites.right] {
        let log = site.log_text();
        assert!(log.contains(taken) && log.contains(") of volumes data, log is taken"), "{}", site.name);
        assert!(log.contains("snapshot second (#"), "{}", site.name);
    }
}
