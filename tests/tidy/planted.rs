//! Every rule on text that breaks it, and on the nearest text that does not.

use super::{Rule, check_document, check_mistakes, check_rust, without_tests};
use std::path::{Path, PathBuf};

fn rules(file: &str, source: &str) -> Vec<Rule> {
    check_rust(file, source, false).into_iter().map(|violation| violation.rule).collect()
}

#[track_caller]
fn breaks(rule: Rule, file: &str, source: &str) {
    assert_eq!(rules(file, source), [rule], "{file}: {source}");
}

#[track_caller]
fn passes(file: &str, source: &str) {
    let violations: Vec<String> = check_rust(file, source, false).iter().map(ToString::to_string).collect();
    assert!(violations.is_empty(), "{violations:?} in {file}: {source}");
}

#[test]
fn imports_point_down() {
    breaks(Rule::Import, "src/base/page.rs", "use crate::format::wire::Frame;");
    breaks(Rule::Import, "src/format/wire/mod.rs", "use crate::core::messages::Control;");
    breaks(Rule::Import, "src/core/group.rs", "use crate::reactor::Actor;");
    breaks(Rule::Import, "src/io/disk.rs", "use crate::node::config::Config;");
    breaks(Rule::Import, "src/node/mod.rs", "fn f() { crate::cli::run(); }");
    breaks(Rule::Import, "src/core/group.rs", "use crate::{base::Lba, io::disk::Disk};");
    breaks(
        Rule::Import,
        "src/core/group.rs",
        "use crate::{base::{Lba, VolumeId}, core::{peer, window}, sim};",
    );
    breaks(Rule::Import, "src/core/group.rs", "fn f(x: Option<crate::io::Disk>) {}");
    breaks(Rule::Import, "src/core/group.rs", "macro_rules! m { () => { $crate::io::disk() } }");
    breaks(Rule::Import, "src/core/group.rs", "fn f() { assert!(crate::io::ready()); }");
    breaks(Rule::Import, "src/core/group.rs", "use lockstep::io::disk;");
    breaks(Rule::Import, "src/core/group.rs", "use super::super::io::disk;");
    breaks(Rule::Import, "src/format/nbd/mod.rs", "use super::super::core::group;");
    breaks(Rule::Import, "src/core/group.rs", "mod inner { use super::super::super::io::disk; }");
    breaks(Rule::Import, "src/core/mod.rs", "pub use super::node::config;");
    breaks(Rule::Import, "src/core/group.rs", "#[cfg(test)] mod tests { use crate::sim::Disk; }");
    breaks(Rule::Import, "src/core/group.rs", "use crate::*;");
    breaks(Rule::Import, "src/core/group.rs", "use crate as all;");
    breaks(Rule::Import, "src/core/group.rs", "use super::super::*;");
    breaks(Rule::Import, "src/attic/mod.rs", "fn f() {}");
    breaks(Rule::Import, "src/core/group.rs", "use crate::attic::f;");
    breaks(Rule::Import, "src/sim/audit/mod.rs", "use crate::format::journal::decode_batch;");
    breaks(Rule::Import, "src/sim/audit/site.rs", "use super::super::super::core::group::Group;");

    passes("src/core/group.rs", "use crate::{base::*, core::peer, format::update::Update};");
    passes("src/core/group/mod.rs", "mod inner { use super::super::peer; pub(crate) fn f() {} }");
    passes("src/sim/disk.rs", "use crate::{core::group, reactor::Actor};");
    passes("src/core/group.rs", "/// See `crate::io::disk`.\nconst NOTE: &str = \"crate::io\"; // crate::io");
    passes("src/sim/audit/mod.rs", "use crate::{base::BLOCK_BYTES, sim::{content::Print, disk::IoId}};");
    passes("src/sim/run.rs", "use crate::core::group::Group;");
    passes("src/lib.rs", "pub mod base; pub mod cli; pub use crate::cli::run;");
    passes("src/main.rs", "fn main() { lockstep::cli::run(); }");
}

#[test]
fn low_floors_are_sans_io() {
    let file = "src/core/group.rs";
    for source in [
        "use std::time::Duration;",
        "fn f() { let now = std::time::Duration::ZERO; }",
        "use std::{collections::VecDeque, thread};",
        "use ::std::fs;",
        "use std::{io::{Read, self as input}};",
        "fn f() { std::env::var(\"HOME\").ok(); }",
        "use std::net::*;",
        "fn f(at: Instant) {}",
        "fn f(lock: &Mutex<u32>) {}",
        "fn f(lock: &std::sync::RwLock<u32>) {}",
        "async fn f() {}",
        "fn f() { future.await; }",
        "fn f() { rand::random::<u64>(); }",
        "use io_uring::IoUring;",
        "fn f() { println!(); }",
        "fn f() { let map = HashMap::new(); }",
        "fn f() { let map = HashMap::<u32, u32>::with_capacity(3); }",
        "macro_rules! now { () => { SystemTime::now() } }",
        "#[cfg(not(test))] fn f(at: Instant) {}",
        "#[cfg(any(test, loom))] fn f(at: Instant) {}",
        "#[cfg(test)] const A: u32 = 1; fn f(at: Instant) {}",
        "#[cfg(test)] mod tests { fn g() {} } fn f(at: Instant) {}",
        "struct S { #[cfg(test)] a: u32, at: Instant }",
    ] {
        let found = rules(file, source);
        assert!(!found.is_empty() && found.iter().all(|rule| *rule == Rule::SansIo), "{found:?}: {source}");
        assert!(rules("src/io/disk.rs", source).is_empty(), "floor 4 may: {source}");
    }
    passes(file, "#[cfg(test)] mod tests { use std::time::Instant; fn f() { println!(); } }");
    passes(file, "#[cfg(test)] #[derive(Debug)] struct T { at: Instant }");
    passes(file, "#[cfg(all(test, not(loom)))] mod tests { use std::thread; }");
    passes(file, "use std::sync::atomic::AtomicU32; use std::collections::{BTreeMap, VecDeque};");
    passes(file, "// Instant, Mutex, std::fs\nconst NOTE: &str = \"std::fs and .await\";");
    passes(file, "fn f(map: HashMap<u32, u32, Fixed>) { let g = Group::new(); }");
    assert!(check_rust("src/core/group/tests.rs", "use std::time::Instant;", true).is_empty());
}

#[test]
fn test_modules_in_their_own_files_are_found() {
    let tokens = super::tokens_of("#[cfg(test)]\nmod tests;\nmod reader;").expect("it lexes");
    let modules = |file| without_tests(file, &tokens).1;
    assert_eq!(modules("src/format/wire/mod.rs"), [PathBuf::from("src/format/wire/tests")]);
    assert_eq!(modules("src/format/update.rs"), [PathBuf::from("src/format/update/tests")]);
}

#[test]
fn unsafe_has_its_rooms() {
    let source = "fn f() { unsafe { g() } }";
    for file in ["src/core/group.rs", "src/io/disk.rs", "src/cli/mod.rs", "tests/a.rs", "src/ring.rs"] {
        assert!(rules(file, source).contains(&Rule::Unsafe), "{file}");
    }
    breaks(Rule::Unsafe, "src/io/disk.rs", "#![allow(unsafe_code)]");
    breaks(Rule::Unsafe, "src/io/disk.rs", "unsafe impl Send for A {}");
    passes("src/io/ring/mod.rs", "#![allow(unsafe_code)] fn f() { unsafe { g() } }");
    passes("src/io/arena.rs", source);
    passes("src/io/disk.rs", "// unsafe\nconst NOTE: &str = \"unsafe\";");
}

#[test]
fn nothing_is_unfinished_or_skipped() {
    for file in ["src/io/disk.rs", "tests/a.rs"] {
        breaks(Rule::Unfinished, file, "fn f() { todo!() }");
        breaks(Rule::Unfinished, file, "fn f() { std::unimplemented!(\"later\") }");
        breaks(Rule::Unfinished, file, concat!("// TO", "DO: later"));
        breaks(Rule::Ignored, file, "#[test] #[ignore] fn f() {}");
        breaks(Rule::Ignored, file, "#[test] #[ignore = \"slow\"] fn f() {}");
        breaks(Rule::Ignored, file, "#[test] #[cfg_attr(miri, ignore)] fn f() {}");
        passes(file, "fn ignore() {} // todo!()");
    }
    breaks(Rule::Unwrap, "src/node/mod.rs", "fn f() { g().unwrap(); }");
    passes("src/node/mod.rs", "#[cfg(test)] mod tests { fn f() { g().unwrap(); } }");
    passes("src/node/mod.rs", "fn f() { g().unwrap_or(3); }");
    breaks(Rule::Syntax, "src/node/mod.rs", "fn f() {");
}

#[test]
fn files_stay_short() {
    breaks(Rule::Length, "tests/a.rs", &"\n".repeat(super::LINES_MAX + 1));
    passes("tests/a.rs", &"\n".repeat(super::LINES_MAX));
}

#[test]
fn links_resolve() {
    let read = |path: &Path| match path.to_str()? {
        "docs/MEDIA.md" | "docs/../docs/MEDIA.md" => Some("# Media\n\n## Torn writes, and rot\n".to_owned()),
        "docs/A.md" => Some("# Here\n".to_owned()),
        "src/io" => Some(String::new()),
        _ => None,
    };
    let count = |markdown: &str| check_document("docs/A.md", markdown, read).len();
    for broken in [
        "[media](MEDIUM.md)",
        "[media](../MEDIA.md)",
        "fine [media](MEDIA.md), not [media](MEDIA.md#rot)",
        "[here](#there)",
        "see `src/io/nothing.rs`",
        "![plot](plot.svg \"a plot\")",
    ] {
        assert_eq!(count(broken), 1, "{broken}");
    }
    for fine in [
        "[media](MEDIA.md)",
        "[media](../docs/MEDIA.md)",
        "[media](MEDIA.md#torn-writes-and-rot)",
        "[here](#here)",
        "[elsewhere](https://example.org/a.md)",
        "see `src/io`, `src/io/ring*`, `INVARIANTS.md`",
        "```\n[media](MEDIUM.md)\n```",
    ] {
        assert_eq!(count(fine), 0, "{fine}");
    }
}

#[test]
fn mistakes_are_where_they_belong() {
    let mistake = |name: &str, breaks: &str| (name.to_owned(), breaks.to_owned());
    let mistakes = [mistake("a-flush", "INV-2"), mistake("chain", "recovery")];
    let table = "| breaks | mistakes |\n|---|---|\n| INV-2 | `a-flush` |\n| recovery | `chain` |\n";
    let wrong = |table: &str, due: &[u32]| check_mistakes(&mistakes, table, due);
    assert!(wrong(table, &[2]).is_empty());
    assert_eq!(wrong(table, &[2, 3]), ["nothing breaks INV-3"]);
    let elsewhere = table.replace("| INV-2 |", "| INV-4 |");
    assert_eq!(
        wrong(&elsewhere, &[2]),
        ["a-flush is not in the row of INV-2", "no mistake of INV-4 is a-flush"]
    );
    assert_eq!(
        wrong(&table.replace("`chain`", "`chain`, `other`"), &[2]),
        ["no mistake of recovery is other"]
    );
}
