//! Snapshots of a running pair, as operators take them and backups read them.

use std::fs;

use serde_json::Value;

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

fn snapshot(site: &Site, arguments: &[&str]) -> std::process::Output {
    let (command, rest) = arguments.split_first().expect("a command");
    lockstep(&[&["snapshot", command, "--config", path(&site.config)], rest].concat())
}

fn listed(site: &Site) -> Vec<(String, bool)> {
    let text = succeeds(snapshot(site, &["list", "--json"]));
    let list: Vec<Value> = serde_json::from_str(&text).expect("a list");
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
    // The secondary's front looks for snapshots once a second.
    std::thread::sleep(std::time::Duration::from_millis(1500));
    for site in [&sites.left, &sites.right] {
        identical(&first, site, "data@one");
        identical(&second, site, "data@two");
    }

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
