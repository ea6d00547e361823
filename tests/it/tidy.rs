//! Tests of the sources and documents: imports between modules, lengths of files and functions, and lists in the
//! documents.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The folders of `src`. A file imports only from its own folder and from those before it. `lib.rs` may import from
/// all.
const LAYERS: [&str; 9] = ["types", "sync", "store", "postgres", "protocol", "live", "api", "http", "cli"];

/// The only modules that `sync` may import: it knows no keys, no records and no store.
const SYNC_KNOWS: [&str; 4] = ["sync", "types::error", "types::clock", "types::stats"];

/// Modules that run under the models. They get their primitives from `sync`: the scheduler does not see others.
const MODELLED: &[&str] = &[
    "sync/wait_queue",
    "sync/group_commit",
    "sync/worker",
    "sync/key_locks",
    "store/memtable",
    "store/versions",
    "store/read_sets",
];
/// The primitives that these modules may import only through `sync`.
const PRIMITIVES: &[&str] =
    &["parking_lot", "std::thread", "std::sync::atomic", "std::sync::OnceLock", "std::sync::{", "RandomState;"];

const MAX_FILE_LINES: usize = 500;
const MAX_FUNCTION_LINES: usize = 70;

/// All directories with code of this project.
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
            // The package of the benchmarks has its build directory inside.
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

/// Returns the path below `src` as names of modules.
fn modules(path: &Path) -> Vec<String> {
    let below = path.strip_prefix(root().join("src")).unwrap().with_extension("");
    below.iter().map(|part| part.to_str().unwrap().to_owned()).collect()
}

/// Returns the code that is compiled into the library: without tests and comments.
fn product(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let code = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap();
    code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

fn is_test(path: &Path) -> bool {
    modules(path).iter().any(|module| module == "tests" || module == "models")
}

/// Returns the modules below `crate::` that a file of the library names, such as `types::key`.
fn imports(path: &Path) -> BTreeSet<String> {
    let code = product(path);
    let name = |text: &str| -> String {
        text.chars().take_while(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '_').collect()
    };
    let imported = |from: usize| {
        let folder = name(&code[from..]);
        let module = code[from + folder.len()..].strip_prefix("::").map(name).unwrap_or_default();
        if module.is_empty() { folder } else { format!("{folder}::{module}") }
    };
    code.match_indices("crate::").map(|(at, word)| imported(at + word.len())).filter(|name| !name.is_empty()).collect()
}

#[test]
fn imports_only_go_down() {
    for path in sources("src").into_iter().filter(|path| !is_test(path)) {
        let folder = modules(&path).remove(0);
        if ["lib", "bin", "guides"].contains(&folder.as_str()) {
            continue;
        }
        let layer = LAYERS.iter().position(|layer| *layer == folder).unwrap_or_else(|| panic!("{folder} is no layer"));
        for imported in imports(&path) {
            let (from, _) = imported.split_once("::").unwrap_or((&imported, ""));
            let known = LAYERS.iter().position(|layer| *layer == from);
            assert!(known.is_some_and(|known| known <= layer), "{} imports {imported}, not below it", path.display());
            // The command line may import only the public names of the crate root, which every user has.
            assert!(folder != "cli" || from == "cli" || imported == "http", "{} imports {imported}", path.display());
            let may_know = SYNC_KNOWS.iter().any(|known| imported.starts_with(known));
            assert!(folder != "sync" || may_know, "{} imports {imported}", path.display());
        }
    }
}

#[test]
fn inside_a_folder_imports_form_no_circle() {
    let mut edges: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for path in sources("src").into_iter().filter(|path| !is_test(path)) {
        let modules = modules(&path);
        // A parent and those of its submodules that see its private items count as one module.
        if let [folder, module, ..] = modules.as_slice() {
            let module = format!("{folder}::{module}");
            let siblings =
                imports(&path).into_iter().filter(|name| name.starts_with(folder.as_str()) && *name != module);
            edges.entry(module.clone()).or_default().extend(siblings);
        }
    }
    // Remove modules that import none of the remaining ones, until none are left.
    while !edges.is_empty() {
        let left: BTreeSet<String> = edges.keys().cloned().collect();
        edges.retain(|_, imported| !imported.is_disjoint(&left));
        assert!(edges.len() < left.len(), "a circle: {edges:#?}");
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
fn modelled_code_gets_its_primitives_from_sync() {
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
        // Count the unit tests of a module separately.
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

/// Returns the first line and the length of each function. In formatted code, a body ends at the indentation of its
/// `fn`.
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
fn sources_are_ascii_and_have_no_leftovers() {
    for path in SOURCES.into_iter().flat_map(sources) {
        let text = fs::read_to_string(&path).unwrap();
        for (number, line) in text.lines().enumerate() {
            assert!(line.is_ascii(), "{}:{} is not ASCII", path.display(), number + 1);
        }
        // Skip this file, which contains the words, and the programs, which users wrote.
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
fn every_guide_is_included_compiled_and_short() {
    let (module, front) = (read("src/guides.rs"), read("src/lib.rs"));
    let mut guides = 0;
    for path in fs::read_dir(root().join("src/guides")).unwrap().map(|entry| entry.unwrap().path()) {
        if path.extension().is_none_or(|extension| extension != "md") {
            continue;
        }
        let (name, text) = (stem(&path), fs::read_to_string(&path).unwrap());
        assert!(module.contains(&format!("include_str!(\"guides/{name}.md\")")), "{name} is not shown");
        assert!(front.contains(&format!("](guides::{name})")), "the crate's page does not link to {name}");
        assert!(!text.contains("](crate::"), "{name} has a link that is dead on a forge");
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
fn the_architecture_page_shows_every_folder() {
    let page = read("ARCHITECTURE.md");
    for layer in LAYERS {
        assert!(page.lines().any(|line| line.starts_with(&format!("| `{layer}/`"))), "ARCHITECTURE.md lacks {layer}");
    }
}

#[test]
fn the_guide_lists_every_limit() {
    let guide = read("src/guides/limits.md");
    for path in sources("src") {
        for line in product(&path).lines() {
            if let Some(name) = line.trim_start().strip_prefix("pub const MAX_").and_then(|rest| rest.split(':').next())
            {
                assert!(guide.contains(&format!("::MAX_{name}`]")), "the guide does not list MAX_{name}");
            }
        }
    }
}
