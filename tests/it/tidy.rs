//! The shape of the sources: who imports whom, how long things are, and that the documents say what is so.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A file imports only from rows above its own. `lib.rs` is a title page and may name all.
const ROWS: &[(&str, &[&str])] = &[
    ("L0 vocabulary", &["error", "clock", "sync"]),
    ("L0 vocabulary: counters", &["stats"]),
    ("L0 vocabulary: telemetry", &["telemetry"]),
    ("L1 nouns: bytes", &["value", "fingerprint", "failure"]),
    ("L1 nouns: keys and codecs", &["key", "codec"]),
    ("L1 nouns: context", &["context"]),
    ("L1 nouns: responses", &["response"]),
    ("L1 nouns: options", &["options"]),
    ("L2 rules: records", &["record"]),
    ("L2 rules", &["transition", "event"]),
    ("M mechanisms", MECHANISMS),
    ("L3 persistence", &["store"]),
    ("L4 protocol", &["protocol"]),
    ("L5 roles: outcomes, listings", &["outcome", "records"]),
    ("L5 roles: transactions", &["transaction", "table"]),
    ("L5 roles", &["claim", "compactor"]),
    ("L5 roles: stages", &["stage"]),
    ("L6 handles: engine", &["engine"]),
    ("L6 handles", &["manager"]),
    ("L7 conveniences", &["execute", "raw"]),
    ("L7 conveniences: stages", &["drive"]),
    ("L7 conveniences: problem details", &["problem"]),
    ("L7 conveniences: requests", &["requests"]),
    ("L8 command line", &["cli"]),
    ("L8 documentation", &["guides"]),
];

const MECHANISMS: &[&str] = &["slots", "group", "worker", "lanes"];
/// All that a mechanism may know.
const MECHANISMS_KNOW: &[&str] = &["error", "clock", "stats", "sync"];

/// What is run under the models gets its primitives from `sync`: one that is not swapped would be no step of the scheduler.
const MODELLED: &[&str] = &["slots", "group", "worker", "lanes", "store/overlay", "store/stripes", "store/read_sets"];
/// What only `sync` may name for them.
const PRIMITIVES: &[&str] =
    &["parking_lot", "std::thread", "std::sync::atomic", "std::sync::OnceLock", "std::sync::{", "RandomState;"];

/// The same inside the store; `open` and `threads` are parts of its root.
const STORE_ROWS: &[&[&str]] = &[
    &["format", "files"],
    &["digest", "barrier", "blobs", "snapshots", "aside"],
    &["tables", "overlay", "stripes", "read_sets", "room", "journal"],
    &["expiries", "checkpoint"],
    &["values"],
    &["verify"],
    &["apply"],
];

const MAX_FILE_LINES: usize = 500;
const MAX_FUNCTION_LINES: usize = 70;

/// Everywhere that there is code of ours.
const SOURCES: [&str; 6] = ["src", "tests", "benches", "examples", "fuzz/src", "fuzz/fuzz_targets"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|cause| panic!("{}: {cause}", path.display()))
}

fn sources(dir: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![root().join(dir)];
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            // The benchmarks' own package has its build below it.
            if path.is_dir() && !path.ends_with("target") {
                left.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// The path below `src`, as the names of its modules.
fn modules(path: &Path) -> Vec<String> {
    let below = path.strip_prefix(root().join("src")).unwrap().with_extension("");
    below.iter().map(|part| part.to_str().unwrap().to_owned()).collect()
}

/// What is compiled into the library: without tests and comments.
fn product(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let code = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap();
    code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

fn is_test(path: &Path) -> bool {
    modules(path).iter().any(|module| module == "tests" || module == "models")
}

/// The first name behind each `prefix`, e.g. `crate::`.
fn names_behind(code: &str, prefix: &str) -> BTreeSet<String> {
    let is_name = |character: &char| character.is_ascii_alphanumeric() || *character == '_';
    code.match_indices(prefix)
        .map(|(at, _)| code[at + prefix.len()..].chars().take_while(is_name).collect())
        .filter(|name: &String| name.starts_with(|first: char| first.is_ascii_lowercase()))
        .collect()
}

#[test]
fn imports_only_go_down() {
    let row_of: BTreeMap<&str, usize> =
        ROWS.iter().enumerate().flat_map(|(row, (_, names))| names.iter().map(move |name| (*name, row))).collect();
    let mut seen = BTreeSet::new();
    for path in sources("src").into_iter().filter(|path| !is_test(path)) {
        let module = modules(&path).remove(0);
        if module == "lib" || module == "bin" {
            continue;
        }
        let row = *row_of.get(module.as_str()).unwrap_or_else(|| panic!("{module} is in no row"));
        for imported in names_behind(&product(&path), "crate::").into_iter().filter(|imported| *imported != module) {
            let from = *row_of.get(imported.as_str()).unwrap_or_else(|| panic!("{imported} is in no row"));
            assert!(from < row, "{} imports {imported}, which is not below it", path.display());
            // What a tool needs, every user has: only what the crate's root shows.
            assert_ne!(module, "cli", "{} imports {imported}", path.display());
            let forbidden = MECHANISMS.contains(&module.as_str()) && !MECHANISMS_KNOW.contains(&imported.as_str());
            assert!(!forbidden, "the mechanism {module} knows {imported}");
        }
        seen.insert(module);
    }
    let rows: BTreeSet<String> = row_of.keys().map(|name| (*name).to_owned()).collect();
    assert_eq!(seen, rows, "a row names a module that is not there");
}

#[test]
fn imports_inside_the_store_only_go_down() {
    let row_of: BTreeMap<&str, usize> =
        STORE_ROWS.iter().enumerate().flat_map(|(row, names)| names.iter().map(move |name| (*name, row))).collect();
    for path in sources("src/store").into_iter().filter(|path| !is_test(path)) {
        let modules = modules(&path);
        let Some(row) = row_of.get(modules[1].as_str()) else { continue };
        let code = product(&path);
        let mut imported = names_behind(&code, "crate::store::");
        if modules.len() == 2 {
            imported.extend(names_behind(&code, "super::"));
        }
        for name in imported.into_iter().filter(|name| *name != modules[1]) {
            let from = row_of.get(name.as_str()).unwrap_or_else(|| panic!("{} imports {name}", path.display()));
            assert!(from < row, "{} imports {name}, which is not below it", path.display());
        }
    }
}

#[test]
fn nothing_above_the_store_names_sled_or_the_journal() {
    for path in sources("src").into_iter().filter(|path| !is_test(path)) {
        if modules(&path)[0] == "store" || modules(&path)[0] == "lib" {
            continue;
        }
        let code = product(&path);
        for word in ["sled::", "journal::"] {
            assert!(!code.contains(word), "{} names {word}", path.display());
        }
    }
}

#[test]
fn what_is_modelled_gets_its_primitives_from_sync() {
    for path in sources("src").into_iter().filter(|path| !is_test(path)) {
        let place = modules(&path).join("/");
        if !MODELLED.iter().any(|module| place == *module || place.starts_with(&format!("{module}/"))) {
            continue;
        }
        for line in product(&path).lines().filter(|line| !line.starts_with("use crate::sync::")) {
            for word in PRIMITIVES {
                assert!(!line.contains(word), "{} names {word}: {line}", path.display());
            }
        }
    }
}

#[test]
fn files_and_functions_are_short() {
    let mut faults = Vec::new();
    for path in SOURCES.into_iter().flat_map(sources) {
        let text = fs::read_to_string(&path).unwrap();
        // The unit tests below a module are counted apart: they are its other half.
        for half in text.split("\n#[cfg(test)]\n") {
            let lines = half.lines().count();
            if lines > MAX_FILE_LINES {
                faults.push(format!("{} has {lines} lines", path.display()));
            }
        }
        for (start, length) in functions(&text) {
            if length > MAX_FUNCTION_LINES {
                faults.push(format!("{}:{start} is a function of {length} lines", path.display()));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Where each function begins, and how long it is. Formatted code closes a body at the indentation of its `fn`.
fn functions(text: &str) -> Vec<(usize, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let body = line.trim_start();
        let is_function = body.starts_with("fn ") || (body.starts_with("pub") && body.contains(" fn "));
        if !is_function || body.ends_with(['}', ';']) {
            continue;
        }
        let closing = format!("{}}}", &line[..line.len() - body.len()]);
        if let Some(length) = lines[at..].iter().position(|line| *line == closing) {
            found.push((at + 1, length + 1));
        }
    }
    found
}

#[test]
fn sources_are_ascii_and_leave_nothing_behind() {
    for path in SOURCES.into_iter().flat_map(sources) {
        let text = fs::read_to_string(&path).unwrap();
        for (number, line) in text.lines().enumerate() {
            assert!(line.is_ascii(), "{}:{} is not ASCII", path.display(), number + 1);
        }
        // This file names the words, and the programs are as their users wrote them.
        if !path.ends_with("tidy.rs") && !path.parent().is_some_and(|dir| dir.ends_with("programs")) {
            for word in ["todo!(", "unimplemented!(", "dbg!(", "XXX", "FIXME"] {
                assert!(!text.contains(word), "{} has {word}", path.display());
            }
        }
    }
}

#[test]
fn every_fuzz_target_is_built_has_a_small_corpus_and_is_replayed() {
    let (manifest, test, ci) = (read("fuzz/Cargo.toml"), read("tests/corpus.rs"), read(".ci/run"));
    let targets: BTreeSet<String> = sources("fuzz/fuzz_targets").iter().map(|path| stem(path)).collect();
    let corpora = fs::read_dir(root().join("fuzz/corpus")).unwrap();
    assert_eq!(targets, corpora.map(|entry| stem(&entry.unwrap().path())).collect(), "a corpus without a target");
    let mut bytes = 0;
    for target in &targets {
        assert!(manifest.contains(&format!("name = \"{target}\"")), "fuzz/Cargo.toml does not build {target}");
        assert!(test.contains(&format!("replay(\"{target}\"")), "tests/corpus.rs does not replay {target}");
        let files = fs::read_dir(root().join("fuzz/corpus").join(target)).unwrap();
        bytes += files.map(|file| file.unwrap().metadata().unwrap().len()).sum::<u64>();
    }
    assert!(bytes < 300 << 10, "the corpus has {bytes} bytes");
    assert!(ci.contains("fuzz_targets/*.rs"), ".ci/run does not go through the targets");
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap().to_str().unwrap().to_owned()
}

#[test]
fn every_guide_is_shown_compiled_and_short() {
    let (module, front) = (read("src/guides.rs"), read("src/lib.rs"));
    let mut guides = 0;
    for path in fs::read_dir(root().join("src/guides")).unwrap().map(|entry| entry.unwrap().path()) {
        if path.extension().is_none_or(|extension| extension != "md") {
            continue;
        }
        let (name, text) = (stem(&path), fs::read_to_string(&path).unwrap());
        assert!(module.contains(&format!("include_str!(\"guides/{name}.md\")")), "{name} is not shown");
        assert!(front.contains(&format!("](guides::{name})")), "the crate's page does not lead to {name}");
        assert!(text.lines().count() <= 130, "{name} has {} lines", text.lines().count());
        let opens = text.lines().filter(|line| line.starts_with("```")).step_by(2);
        assert!(opens.clone().all(|line| line == "```"), "{name} has code that is not run: {opens:?}");
        guides += 1;
    }
    assert!(guides > 0);
}

#[test]
fn the_changelog_has_this_version() {
    let heading = format!("## {}", env!("CARGO_PKG_VERSION"));
    assert!(read("CHANGELOG.md").lines().any(|line| line.starts_with(&heading)), "no heading {heading}");
}

#[test]
fn ci_runs_the_commands_of_the_readme() {
    let (readme, ci) = (read("README.md"), read(".ci/run"));
    let commands: Vec<&str> =
        code_blocks(&readme, "sh").flat_map(str::lines).filter(|line| line.starts_with("cargo ")).collect();
    assert!(commands.len() >= 2, "README gives {commands:?}");
    for command in commands {
        let command = command.split(" #").next().unwrap().trim();
        assert!(ci.lines().any(|line| line.trim() == command), ".ci/run does not run `{command}`");
    }
    assert!(read("src/lib.rs").contains("include_str!(\"../README.md\")"), "README is not doctested");
}

fn code_blocks<'a>(text: &'a str, language: &str) -> impl Iterator<Item = &'a str> {
    let fence = format!("```{language}\n");
    let starts: Vec<usize> = text.match_indices(&fence).map(|(at, _)| at + fence.len()).collect();
    starts.into_iter().map(move |start| text[start..].split("```").next().unwrap())
}

#[test]
fn the_architecture_page_shows_every_row() {
    let page = read("ARCHITECTURE.md");
    for (row, modules) in ROWS {
        let layer = row.split_whitespace().next().unwrap();
        for module in *modules {
            let shown = page
                .lines()
                .any(|line| line.starts_with(&format!("| {layer} ")) && line.contains(&format!("`{module}`")));
            assert!(shown, "ARCHITECTURE.md does not show `{module}` in {layer}");
        }
    }
}

#[test]
fn the_guide_lists_every_limit() {
    let guide = read("src/guides/limits.md");
    for path in sources("src") {
        for line in fs::read_to_string(&path).unwrap().lines() {
            if let Some(name) = line.strip_prefix("pub const MAX_").and_then(|rest| rest.split(':').next()) {
                assert!(guide.contains(&format!("[`MAX_{name}`]")), "the guide does not list MAX_{name}");
            }
        }
    }
}
