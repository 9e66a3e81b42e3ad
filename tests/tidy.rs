//! What the compiler does not check: imports point down the floors, floors 0 to 2 are sans-IO, `unsafe` stays in its
//! rooms, nothing is unfinished or ignored, files stay short, and documents link to files that exist.
//!
//! The checker is a function from a file's text to violations, so each rule is also tried on text that breaks it.

use std::fmt;
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, Spacing, TokenStream, TokenTree};

/// Rooms of the crate and their floors.
const FLOORS: [(&str, u32); 8] =
    [("base", 0), ("format", 1), ("core", 2), ("reactor", 3), ("io", 4), ("sim", 4), ("node", 5), ("cli", 6)];

/// The highest floor without clock, thread, lock, await, randomness, environment and I/O.
const SANS_IO_FLOOR_MAX: u32 = 2;

/// Modules of `std` that floors 0 to 2 do without.
const STD_MODULES_BANNED: [&str; 8] = ["time", "thread", "fs", "net", "env", "process", "os", "io"];

/// Names that floors 0 to 2 do without, wherever they come from.
const NAMES_BANNED: [&str; 39] = [
    "Instant",
    "SystemTime",
    "quanta",
    "Mutex",
    "RwLock",
    "Condvar",
    "Barrier",
    "OnceLock",
    "LazyLock",
    "mpsc",
    "thread_local",
    "async",
    "await",
    "Future",
    "RandomState",
    "rand",
    "getrandom",
    "io_uring",
    "rustix",
    "libc",
    "nix",
    "socket2",
    "quinn",
    "quinn_udp",
    "rustls",
    "rcgen",
    "redb",
    "tokio",
    "mio",
    "tracing",
    "indicatif",
    "signal_hook",
    "core_affinity",
    "println",
    "eprintln",
    "print",
    "eprint",
    "dbg",
    "option_env",
];

/// The auditor judges the cores, so it shares no code with them: it reads their bytes by itself.
const AUDITOR: &str = "src/sim/audit/";
const AUDITORS_ROOMS: [&str; 2] = ["base", "sim"];

/// Files that may contain `unsafe`, by the start of their path.
const UNSAFE_ROOMS: [&str; 2] = ["src/io/ring", "src/io/arena"];

/// Lines of a Rust file; one that grows beyond is split by room.
const LINES_MAX: usize = 800;

const CODE_FOLDERS: [&str; 5] = ["src", "tests", "benches", "bench", "fuzz"];
/// Folders of the repository that a document may name.
const NAMED_FOLDERS: [&str; 8] =
    ["src/", "tests/", "docs/", "bench/", "benches/", "fuzz/", "tuning/", ".ci/"];
/// Folders that hold no sources of ours.
const SKIPPED_FOLDERS: [&str; 6] = ["target", ".git", "corpus", "artifacts", "coverage", "node_modules"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    Import,
    SansIo,
    Unsafe,
    Unfinished,
    Ignored,
    Unwrap,
    Length,
    Link,
    Syntax,
}

struct Violation {
    file: String,
    line: usize,
    rule: Rule,
    what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {:?}: {}", self.file, self.line, self.rule, self.what)
    }
}

/// A token with nesting made flat. Literals keep no text, so nothing inside a string is ever taken for code.
#[derive(Clone, Debug)]
struct Token {
    text: String,
    line: usize,
    ident: bool,
}

fn flatten(stream: TokenStream, out: &mut Vec<Token>) {
    let mut trees = stream.into_iter().peekable();
    while let Some(tree) = trees.next() {
        let line = tree.span().start().line;
        let mut push = |text: String, ident| out.push(Token { text, line, ident });
        match tree {
            TokenTree::Ident(ident) => push(ident.to_string().trim_start_matches("r#").to_owned(), true),
            TokenTree::Literal(_) => push("<literal>".to_owned(), false),
            TokenTree::Punct(punct) => {
                let double = punct.as_char() == ':'
                    && punct.spacing() == Spacing::Joint
                    && matches!(trees.peek(), Some(TokenTree::Punct(next)) if next.as_char() == ':');
                if double {
                    trees.next();
                    push("::".to_owned(), false);
                } else {
                    push(punct.as_char().to_string(), false);
                }
            }
            TokenTree::Group(group) => {
                let (open, close) = match group.delimiter() {
                    Delimiter::Parenthesis => ("(", ")"),
                    Delimiter::Brace => ("{", "}"),
                    Delimiter::Bracket => ("[", "]"),
                    Delimiter::None => ("", ""),
                };
                push(open.to_owned(), false);
                flatten(group.stream(), out);
                let line = group.span_close().start().line;
                out.push(Token { text: close.to_owned(), line, ident: false });
            }
        }
    }
}

fn tokens_of(source: &str) -> Result<Vec<Token>, String> {
    let stream: TokenStream = source.parse().map_err(|error: proc_macro2::LexError| error.to_string())?;
    let mut tokens = Vec::new();
    flatten(stream, &mut tokens);
    Ok(tokens)
}

fn text(tokens: &[Token], at: usize) -> &str {
    tokens.get(at).map_or("", |token| &token.text)
}

fn matches_at(tokens: &[Token], at: usize, pattern: &[&str]) -> bool {
    pattern.iter().enumerate().all(|(offset, want)| text(tokens, at + offset) == *want)
}

/// The index just past the group that opens at `at`.
fn past_group(tokens: &[Token], at: usize) -> usize {
    let mut depth = 0;
    for (offset, token) in tokens[at..].iter().enumerate() {
        match token.text.as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at + offset + 1;
        }
    }
    tokens.len()
}

fn is_test_attribute(tokens: &[Token], at: usize) -> bool {
    matches_at(tokens, at, &["#", "[", "cfg", "(", "test", ")", "]"])
        || matches_at(tokens, at, &["#", "[", "cfg", "(", "all", "(", "test", ","])
}

/// Takes out what is compiled for tests only, and names the files that test modules live in.
fn without_tests(file: &str, tokens: &[Token]) -> (Vec<Token>, Vec<PathBuf>) {
    let mut kept = Vec::new();
    let mut test_modules = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        if !is_test_attribute(tokens, at) {
            kept.push(tokens[at].clone());
            at += 1;
            continue;
        }
        while text(tokens, at) == "#" {
            at = past_group(tokens, at + 1);
        }
        if matches_at(tokens, at, &["mod"]) && text(tokens, at + 2) == ";" {
            test_modules.push(module_folder(file).join(text(tokens, at + 1)));
        }
        loop {
            match text(tokens, at) {
                "{" => {
                    at = past_group(tokens, at);
                    break;
                }
                ";" | "," | "" => {
                    at += 1;
                    break;
                }
                "(" | "[" => at = past_group(tokens, at),
                _ => at += 1,
            }
        }
    }
    (kept, test_modules)
}

/// The folder that holds a file's out-of-line modules.
fn module_folder(file: &str) -> PathBuf {
    let path = Path::new(file);
    match path.file_name().and_then(|name| name.to_str()) {
        Some("mod.rs" | "lib.rs" | "main.rs") => path.parent().unwrap_or(path).to_path_buf(),
        _ => path.with_extension(""),
    }
}

/// `src/format/wire/mod.rs` is `["format", "wire"]`.
fn module_path(file: &str) -> Vec<String> {
    let folder = module_folder(file);
    let inside = folder.strip_prefix("src").unwrap_or(&folder);
    inside.iter().map(|part| part.to_string_lossy().into_owned()).collect()
}

/// Every path that starts at `at`, `use` trees expanded.
fn paths_from(tokens: &[Token], at: usize) -> Vec<Vec<String>> {
    fn walk(tokens: &[Token], at: usize, prefix: &[String], out: &mut Vec<Vec<String>>) {
        let Some(token) = tokens.get(at) else { return };
        match token.text.as_str() {
            "{" => {
                let end = past_group(tokens, at) - 1;
                let mut start = at + 1;
                while start < end {
                    walk(tokens, start, prefix, out);
                    while start < end && text(tokens, start) != "," {
                        start =
                            if text(tokens, start) == "{" { past_group(tokens, start) } else { start + 1 };
                    }
                    start += 1;
                }
            }
            "*" => out.push([prefix, &["*".to_owned()]].concat()),
            _ if token.ident => {
                let path = [prefix, std::slice::from_ref(&token.text)].concat();
                let goes_on = text(tokens, at + 1) == "::"
                    && tokens
                        .get(at + 2)
                        .is_some_and(|next| next.ident || next.text == "{" || next.text == "*");
                if goes_on { walk(tokens, at + 2, &path, out) } else { out.push(path) }
            }
            _ => out.push(prefix.to_vec()),
        }
    }
    let mut out = Vec::new();
    walk(tokens, at, &[], &mut out);
    out
}

/// Whether a path can begin at `at`: not in the middle of another, not a field or method.
fn begins_path(tokens: &[Token], at: usize) -> bool {
    if !tokens[at].ident || at == 0 {
        return tokens[at].ident;
    }
    match text(tokens, at - 1) {
        "." => false,
        // A leading `::` begins an absolute path; after a name or generics it continues one.
        "::" => {
            let before = at.checked_sub(2).map_or("", |before| text(tokens, before));
            let keyword = ["use", "in", "return", "as", "mut", "dyn", "impl", "else", "match", "if"];
            let continues = before == ">"
                || before == "}"
                || (tokens.get(at.wrapping_sub(2)).is_some_and(|token| token.ident)
                    && !keyword.contains(&before));
            !continues
        }
        _ => true,
    }
}

fn floor_of(room: &str) -> Option<u32> {
    FLOORS.iter().find(|(name, _)| *name == room).map(|(_, floor)| *floor)
}

fn is_sans_io(file: &str) -> bool {
    module_path(file).first().and_then(|room| floor_of(room)).is_some_and(|floor| floor <= SANS_IO_FLOOR_MAX)
}

/// Imports, and every other path, may only name the file's own floor and those below.
fn check_imports(file: &str, tokens: &[Token], report: &mut impl FnMut(usize, Rule, String)) {
    let module = module_path(file);
    let Some(room) = module.first() else { return };
    if file == "src/lib.rs" || file == "src/main.rs" || room == "bin" {
        return;
    }
    let Some(floor) = floor_of(room) else {
        return report(1, Rule::Import, format!("`{room}` has no floor"));
    };
    let mut braces = Vec::new();
    for at in 0..tokens.len() {
        match text(tokens, at) {
            "{" => {
                let names_module = at >= 2 && text(tokens, at - 2) == "mod";
                braces.push(names_module.then(|| text(tokens, at - 1).to_owned()));
            }
            "}" => {
                braces.pop();
            }
            _ => {}
        }
        if !begins_path(tokens, at) {
            continue;
        }
        let line = tokens[at].line;
        for path in paths_from(tokens, at) {
            let supers = path.iter().take_while(|part| *part == "super").count();
            let from_root: Vec<String> = match path[0].as_str() {
                "crate" | "lockstep" => path[1..].to_vec(),
                "super" => {
                    let inline = braces.iter().flatten().cloned();
                    let mut here: Vec<String> = module.iter().cloned().chain(inline).collect();
                    here.truncate(here.len().saturating_sub(supers));
                    here.extend_from_slice(&path[supers..]);
                    here
                }
                _ => continue,
            };
            let named = path.join("::");
            match from_root.first().map(String::as_str) {
                // `pub(crate)`, or `crate` alone.
                None if text(tokens, at + 1) != "as" => {}
                None | Some("*" | "self") => {
                    report(line, Rule::Import, format!("`{named}` names the whole crate"));
                }
                Some(target) => match floor_of(target) {
                    Some(above) if above > floor => report(
                        line,
                        Rule::Import,
                        format!("`{named}` is on floor {above}, above `{room}` on floor {floor}"),
                    ),
                    Some(_) if file.starts_with(AUDITOR) && !AUDITORS_ROOMS.contains(&target) => {
                        report(line, Rule::Import, format!("`{named}` in the auditor, which it is to judge"));
                    }
                    Some(_) => {}
                    None => report(line, Rule::Import, format!("`{named}` is on no floor")),
                },
            }
        }
    }
}

fn check_sans_io(tokens: &[Token], report: &mut impl FnMut(usize, Rule, String)) {
    for at in 0..tokens.len() {
        let Token { text: name, line, ident } = &tokens[at];
        if *ident && NAMES_BANNED.contains(&name.as_str()) && text(tokens, at.wrapping_sub(1)) != "." {
            report(*line, Rule::SansIo, format!("`{name}` on a floor without I/O, clock, lock or thread"));
        }
        if *ident && name == "await" && text(tokens, at.wrapping_sub(1)) == "." {
            report(*line, Rule::SansIo, "`.await` on a floor that awaits nothing".to_owned());
        }
        let map = matches!(name.as_str(), "HashMap" | "HashSet");
        if map && (1..8).any(|ahead| is_random_constructor(tokens, at + ahead)) {
            report(*line, Rule::SansIo, format!("`{name}` with its random hasher: its order differs by run"));
        }
        if !begins_path(tokens, at) || !matches!(name.as_str(), "std" | "core" | "alloc") {
            continue;
        }
        for path in paths_from(tokens, at) {
            let banned = |part: &String| STD_MODULES_BANNED.contains(&part.as_str());
            if path.get(1).is_some_and(banned) {
                report(*line, Rule::SansIo, format!("`{}` on a sans-IO floor", path.join("::")));
            }
        }
    }
}

/// `HashMap::new`, `HashMap::<K, V>::with_capacity`: the constructors that only exist for the random hasher.
fn is_random_constructor(tokens: &[Token], at: usize) -> bool {
    text(tokens, at) == "::"
        && matches!(text(tokens, at + 1), "new" | "with_capacity" | "from")
        && text(tokens, at + 2) == "("
}

fn check_anywhere(file: &str, tokens: &[Token], report: &mut impl FnMut(usize, Rule, String)) {
    let unsafe_allowed = UNSAFE_ROOMS.iter().any(|room| file.starts_with(room));
    for at in 0..tokens.len() {
        let Token { text: name, line, ident } = &tokens[at];
        if !ident {
            if name == "#" {
                let open = if text(tokens, at + 1) == "!" { at + 2 } else { at + 1 };
                if text(tokens, open) == "[" {
                    check_attribute(&tokens[open..past_group(tokens, open)], report);
                }
            }
            continue;
        }
        if (name == "unsafe" || name == "unsafe_code") && !unsafe_allowed {
            report(*line, Rule::Unsafe, format!("`{name}` outside {}", UNSAFE_ROOMS.join(", ")));
        }
        if matches!(name.as_str(), "todo" | "unimplemented") && text(tokens, at + 1) == "!" {
            report(*line, Rule::Unfinished, format!("`{name}!`"));
        }
    }
}

fn check_attribute(attribute: &[Token], report: &mut impl FnMut(usize, Rule, String)) {
    let conditional = text(attribute, 1) == "cfg_attr";
    let ignored = attribute
        .iter()
        .enumerate()
        .any(|(at, token)| token.ident && token.text == "ignore" && (at == 1 || conditional));
    if ignored {
        report(attribute[0].line, Rule::Ignored, "a test that is not run".to_owned());
    }
}

fn check_unwrap(tokens: &[Token], report: &mut impl FnMut(usize, Rule, String)) {
    for at in 0..tokens.len() {
        if matches_at(tokens, at, &[".", "unwrap", "(", ")"]) {
            report(
                tokens[at].line,
                Rule::Unwrap,
                "`.unwrap()`: handle it, or `expect` with the reason".into(),
            );
        }
    }
}

/// Checks one Rust file. `test_only` says that another file declares it under `#[cfg(test)]`.
fn check_rust(file: &str, source: &str, test_only: bool) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut report = |line, rule, what| found.push(Violation { file: file.to_owned(), line, rule, what });
    let lines = source.lines().count();
    if lines > LINES_MAX {
        report(lines, Rule::Length, format!("{lines} lines, expected at most {LINES_MAX}: split it by room"));
    }
    for (index, line) in source.lines().enumerate() {
        for mark in [concat!("TO", "DO"), concat!("FIX", "ME")] {
            if line.contains(mark) {
                report(index + 1, Rule::Unfinished, format!("`{mark}` in the text"));
            }
        }
    }
    let tokens = match tokens_of(source) {
        Ok(tokens) => tokens,
        Err(error) => {
            report(1, Rule::Syntax, error);
            return found;
        }
    };
    check_anywhere(file, &tokens, &mut report);
    if !file.starts_with("src/") {
        return found;
    }
    check_imports(file, &tokens, &mut report);
    let (shipped, _) = without_tests(file, &tokens);
    if test_only || matches_at(&tokens, 0, &["#", "!", "[", "cfg", "(", "test", ")", "]"]) {
        return found;
    }
    check_unwrap(&shipped, &mut report);
    if is_sans_io(file) {
        check_sans_io(&shipped, &mut report);
    }
    found
}

/// Link targets, and repository paths in code spans, of a Markdown text, with their lines.
fn links_of(markdown: &str) -> Vec<(usize, String)> {
    let mut links = Vec::new();
    let mut fenced = false;
    for (index, line) in markdown.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        if fenced {
            continue;
        }
        for (at, _) in line.match_indices("](") {
            let target = line[at + 2..].split([')', ' ']).next().unwrap_or_default();
            if !target.contains("://") && !target.starts_with("mailto:") {
                links.push((index + 1, target.to_owned()));
            }
        }
        for span in line.split('`').skip(1).step_by(2) {
            let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
            if span.chars().all(plain) && NAMED_FOLDERS.iter().any(|folder| span.starts_with(folder)) {
                links.push((index + 1, format!("/{span}")));
            }
        }
    }
    links
}

/// The fragment that a heading is reached by, as the usual renderers make it.
fn fragment_of(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    text.chars()
        .filter(|c| c.is_alphanumeric() || *c == '-' || *c == '_' || *c == ' ')
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

/// Checks one document: `read` gives the text of a file of the repository, empty for a folder.
fn check_document(file: &str, markdown: &str, read: impl Fn(&Path) -> Option<String>) -> Vec<Violation> {
    let folder = Path::new(file).parent().unwrap_or(Path::new(""));
    let mut found = Vec::new();
    for (line, link) in links_of(markdown) {
        let (target, fragment) = link.split_once('#').unwrap_or((&link, ""));
        let path = match target.strip_prefix('/') {
            Some(from_root) => PathBuf::from(from_root),
            None if target.is_empty() => PathBuf::from(file),
            None => folder.join(target),
        };
        let what = match read(&path) {
            None => format!("`{link}`: there is no {}", path.display()),
            Some(text) => {
                let headings = || text.lines().filter(|line| line.starts_with('#'));
                if fragment.is_empty() || headings().any(|heading| fragment_of(heading) == fragment) {
                    continue;
                }
                format!("`{link}`: {} has no heading for #{fragment}", path.display())
            }
        };
        found.push(Violation { file: file.to_owned(), line, rule: Rule::Link, what });
    }
    found
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Files below `folder`, relative to the root, with one of the extensions.
fn files_below(folder: &Path, extension: &str, out: &mut Vec<String>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries {
        let path = entry.expect("an entry of a folder that was just opened").path();
        let name = path.file_name().expect("an entry has a name").to_string_lossy().into_owned();
        if path.is_dir() {
            if !SKIPPED_FOLDERS.contains(&name.as_str()) {
                files_below(&path, extension, out);
            }
        } else if path.extension().is_some_and(|found| found == extension) {
            let inside = path.strip_prefix(root()).expect("the walk began at the root");
            out.push(inside.to_string_lossy().into_owned());
        }
    }
}

fn read_in_root(path: &Path) -> Option<String> {
    let path = root().join(path);
    if path.is_dir() { Some(String::new()) } else { std::fs::read_to_string(path).ok() }
}

fn fail_on(violations: &[Violation]) {
    let list: Vec<String> = violations.iter().map(Violation::to_string).collect();
    assert!(violations.is_empty(), "{} violations:\n{}", list.len(), list.join("\n"));
}

#[test]
fn the_sources_are_tidy() {
    let mut files = Vec::new();
    for folder in CODE_FOLDERS {
        files_below(&root().join(folder), "rs", &mut files);
    }
    for room in ["base", "format", "core", "reactor"] {
        let prefix = format!("src/{room}/");
        assert!(files.iter().any(|file| file.starts_with(&prefix)), "the walk found nothing in {prefix}");
    }
    let sources: Vec<(String, String)> = files
        .into_iter()
        .map(|file| {
            let source = read_in_root(Path::new(&file)).expect("a file that was just listed");
            (file, source)
        })
        .collect();
    let test_modules: Vec<PathBuf> = sources
        .iter()
        .filter_map(|(file, source)| Some(without_tests(file, &tokens_of(source).ok()?).1))
        .flatten()
        .collect();
    let mut violations = Vec::new();
    for (file, source) in &sources {
        let folder = module_folder(file);
        let test_only = test_modules.iter().any(|module| folder.starts_with(module));
        violations.extend(check_rust(file, source, test_only));
    }
    fail_on(&violations);
}

#[test]
fn the_documents_link_to_files_that_exist() {
    let mut files = Vec::new();
    files_below(root(), "md", &mut files);
    assert!(files.contains(&"docs/ARCHITECTURE.md".to_owned()), "the walk found {files:?}");
    let mut violations = Vec::new();
    for file in &files {
        let markdown = read_in_root(Path::new(file)).expect("a file that was just listed");
        violations.extend(check_document(file, &markdown, read_in_root));
    }
    fail_on(&violations);
}

/// What of the planted mistakes, by name and by what they break, a document's table does not say as it is: each is in the row of what
/// it breaks, and nothing else is; and each invariant of `due` has one.
fn check_mistakes(mistakes: &[(String, String)], document: &str, due: &[u32]) -> Vec<String> {
    let rows = document.lines().filter_map(|line| line.strip_prefix("| ")?.split_once(" | `"));
    let listed: Vec<(&str, &str)> = rows
        .flat_map(|(breaks, names)| {
            names
                .split('`')
                .filter(|name| name.starts_with(char::is_alphabetic))
                .map(move |name| (name, breaks))
        })
        .collect();
    let known = |name: &str, breaks: &str| mistakes.iter().any(|(of, what)| of == name && what == breaks);
    let missing = mistakes
        .iter()
        .filter(|(name, breaks)| !listed.contains(&(name.as_str(), breaks.as_str())))
        .map(|(name, breaks)| format!("{name} is not in the row of {breaks}"));
    let unknown = listed.iter().filter(|(name, breaks)| !known(name, breaks));
    let unknown = unknown.map(|(name, breaks)| format!("no mistake of {breaks} is {name}"));
    let bare =
        due.iter().filter(|number| !mistakes.iter().any(|(_, breaks)| *breaks == format!("INV-{number}")));
    missing.chain(unknown).chain(bare.map(|number| format!("nothing breaks INV-{number}"))).collect()
}

#[test]
fn every_invariant_has_its_planted_mistakes() {
    let mut files = Vec::new();
    files_below(&root().join("tests/mutations.d"), "patch", &mut files);
    let mistakes: Vec<(String, String)> = files
        .iter()
        .map(|file| {
            let patch = read_in_root(Path::new(file)).expect("a file that was just listed");
            let breaks = patch.lines().find_map(|line| line.strip_prefix("Breaks: "));
            let name = Path::new(file).file_stem().expect("it ends in .patch").to_string_lossy();
            (name.into_owned(), breaks.unwrap_or_else(|| panic!("{file} breaks nothing")).to_owned())
        })
        .collect();
    let document = read_in_root(Path::new("docs/INVARIANTS.md")).expect("there is one");
    let table = document.split_once("## Planted mistakes").expect("it has the section").1;
    let wrong = check_mistakes(&mistakes, table, &[1, 2, 3, 4, 5, 7, 8, 9, 10]);
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn one_command_runs_every_check() {
    let read = |file: &str| read_in_root(Path::new(file)).unwrap_or_else(|| panic!("there is no {file}"));
    assert!(read(".ci/run").contains("bash tests/run"));
    let run = read("tests/run");
    for part in [
        "cargo fmt --check",
        "cargo clippy --locked --quiet --all-targets --all-features -- -D warnings",
        "cargo test --locked --all-features --no-fail-fast",
        "--manifest-path tests/loom/Cargo.toml",
        "--bin lockstep-sim",
    ] {
        assert!(run.contains(part), "tests/run does without `{part}`");
    }
}

#[path = "tidy/planted.rs"]
mod planted;
