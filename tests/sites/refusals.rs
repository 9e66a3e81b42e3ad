//! What a site refuses, and that it says why and what to do.

use std::fs;

use crate::pair::*;

fn edit(site: &Site, from: &str, to: &str) {
    let text = fs::read_to_string(&site.config).expect("a configuration");
    assert!(text.contains(from), "{from} is not in\n{text}");
    fs::write(&site.config, text.replace(from, to)).expect("a configuration");
}

fn says(site: &mut Site, expected: &[&str]) {
    let what = format!("its log says {expected:?}");
    site.until(&what, |site| {
        let text = site.log_text();
        expected.iter().all(|part| text.contains(part))
    });
}

#[test]
fn a_peer_with_another_ack_level_is_refused_with_both_values() {
    let mut sites =
        Sites::format(&Options { group: "host_deadline = \"1s\"".to_owned(), ..Options::default() });
    edit(&sites.right, "name = \"tested\"", "name = \"tested\"\nack = \"durable\"");
    sites.right.start();
    sites.left.start();
    for site in [&mut sites.left, &mut sites.right] {
        says(site, &["journaled", "durable"]);
        assert_ne!(site.status()["peer"]["state"], "in_sync");
    }
    if let Ok(mut client) = sites.left.try_connect("data") {
        client.write(0, &[1; 4096], false).expect_err("a write was acknowledged by one site");
    }
    assert_eq!(sites.right.status()["watermarks"]["last"], 0);
}

#[test]
fn a_peer_with_other_differential_data_is_refused_with_both_values() {
    let mut sites = Sites::format(&Options::default());
    edit(&sites.right, "name = \"tested\"", "name = \"tested\"\ndifferential = \"value\"");
    sites.right.start();
    sites.left.start();
    for site in [&mut sites.left, &mut sites.right] {
        says(site, &["differential data", "by reference", "by value"]);
        assert_ne!(site.status()["peer"]["state"], "in_sync");
    }
}

#[test]
fn a_peer_with_other_volumes_is_refused_with_both_values() {
    let mut sites = Sites::format(&Options::default());
    edit(&sites.right, "size = \"64MiB\"\n[journal]", "size = \"48MiB\"\n[journal]");
    succeeds(lockstep(&["format", "--config", path(&sites.right.config), "--force"]));
    sites.right.start();
    sites.left.start();
    says(&mut sites.left, &["64", "48", "data"]);
}

#[test]
fn a_peer_with_another_identity_is_refused_and_named() {
    let mut sites = Sites::format(&Options::default());
    let identity = sites.right.directory.join("identity.pem");
    fs::remove_file(&identity).expect("removed");
    let stranger = succeeds(lockstep(&["keygen", "--identity", path(&identity), "--site", "stranger"]))
        .trim()
        .to_owned();
    sites.right.start();
    sites.left.start();
    sites.left.until("its status names the stranger", |left| left.status().to_string().contains(&stranger));
    assert_ne!(sites.left.status()["peer"]["state"], "in_sync");
}

#[test]
fn a_second_process_on_the_same_volumes_is_refused() {
    let mut sites = Sites::start(&Options::default());
    // Other sockets and ports, so that the files are what it stumbles over.
    let text = fs::read_to_string(&sites.left.config).expect("a configuration");
    let text = text
        .replace(path(&sites.left.nbd), path(&sites.path("other.nbd")))
        .replace(path(&sites.left.nbd.with_extension("control")), path(&sites.path("other.control")));
    let other = sites.path("other.toml");
    fs::write(&other, &text).expect("a configuration");
    let output = tool("timeout", &["30", env!("CARGO_BIN_EXE_lockstep"), "run", "--config", path(&other)]);
    assert_eq!(output.status.code(), Some(4), "{}", String::from_utf8_lossy(&output.stderr));
    let shown = fails(output);
    assert!(shown.contains("locked by another process"), "{shown}");
    // Nor does it hurt the first one.
    let mut client = sites.left.connect("data");
    client.write(0, &[7; 4096], true).expect("a write");
    assert_eq!(client.read(0, 4096).expect("a read"), [7; 4096]);
    assert!(sites.left.stop().success());
}

#[test]
fn files_of_another_site_are_refused() {
    let mut sites = Sites::format(&Options::default());
    let (left, right) = (sites.left.directory.join("journal"), sites.right.directory.join("journal"));
    fs::copy(&right, &left).expect("a copy");
    let output =
        tool("timeout", &["30", env!("CARGO_BIN_EXE_lockstep"), "run", "--config", path(&sites.left.config)]);
    let shown = fails(output);
    assert!(shown.contains("journal"), "{shown}");
    sites.right.start();
    assert!(sites.right.stop().success());
}
