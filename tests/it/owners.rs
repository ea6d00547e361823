//! Tests of the exclusive owner of a store. A second owner is rejected and changes nothing. After the first has ended
//! in any way, the next open succeeds at once.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use oncekey::{Engine, ErrorKind, Manager};

use crate::common::tree;
use crate::threads::{LATE, until, within};

const DIR: &str = "ONCEKEY_OWNED_DIR";

/// Returns the number of rounds of the reopening tests.
fn times() -> u64 {
    std::env::var("ONCEKEY_REOPENS").map_or(30, |n| n.parse().unwrap())
}

fn numbers(engine: &Engine) -> Manager<u64> {
    engine.manager("m").unwrap()
}

fn put(engine: &Engine, n: u64) {
    numbers(engine).execute(format!("{n}"), |_| Ok(n)).unwrap();
}

#[track_caller]
fn has(engine: &Engine, n: u64) {
    let record = numbers(engine).get(format!("{n}")).unwrap().unwrap_or_else(|| panic!("{n} is lost"));
    assert_eq!(record.outcome(), Some(Ok(&n)));
}

/// Returns every file with its bytes.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = tree(dir).into_iter().map(|(path, _)| path).filter(|path| path.is_file());
    files.map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

fn as_another_process(test: &str, dir: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--ignored", "--nocapture"]).env(DIR, dir);
    command
}

/// Not a test: the other process, which tries to open the store.
#[test]
#[ignore = "started by another test"]
fn second_owner() {
    let Ok(dir) = std::env::var(DIR) else { return };
    println!("\n{:?}", Engine::open(dir).map(drop).map_err(|error| error.kind()));
}

#[test]
fn a_second_owner_in_any_process_is_rejected_and_changes_nothing() {
    within(LATE, || {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("store"), dir.path().join("link"));
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let first = Engine::open(&path).unwrap();
        put(&first, 1);
        let claim = numbers(&first).begin("live").unwrap().into_claim().unwrap();
        // Wait until the background work is done: the next segment is ready.
        until("a spare segment lies ready", || std::fs::read_dir(path.join("store/journal")).unwrap().count() >= 3);
        until("it is idle", || {
            let before = contents(&path);
            (0..1_000).for_each(|_| std::thread::yield_now());
            before == contents(&path)
        });
        let before = contents(&path);
        for path in [&path, &link] {
            let error = Engine::open(path).unwrap_err();
            assert!(error.kind() == ErrorKind::StoreInUse && error.to_string().contains(path.to_str().unwrap()));
            let output = as_another_process("owners::second_owner", path).output().unwrap();
            let said = String::from_utf8(output.stdout).unwrap();
            assert!(said.lines().any(|line| line == "Err(StoreInUse)"), "{said}");
        }
        assert!(contents(&path) == before, "a second owner has changed something");
        claim.succeed(&2).unwrap();
        put(&first, 3);
        first.close().unwrap();
        let next = Engine::open(&link).unwrap();
        assert!(next.opened().clean);
        has(&next, 1);
        has(&next, 3);
    });
}

/// Set `ONCEKEY_REOPENS=1000` for more rounds.
#[test]
fn the_store_can_be_opened_right_after_a_close() {
    let times = times();
    within(LATE * (1 + u32::try_from(times).unwrap() / 30), move || {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..times {
            let engine = Engine::open(dir.path()).unwrap_or_else(|error| panic!("open {n}: {error}"));
            assert!(n == 0 || engine.opened().clean);
            if n > 0 {
                has(&engine, n - 1);
            }
            put(&engine, n);
            // Dropping the last handle closes the store too.
            if n % 2 == 0 { engine.close().unwrap() } else { drop(engine) }
        }
        println!("{times} times opened right after a close");
    });
}

/// Not a test: the process that is killed. It prints each number whose call was answered.
#[test]
#[ignore = "started by another test"]
fn owner_to_be_killed() {
    let Ok(dir) = std::env::var(DIR) else { return };
    println!();
    let engine = Engine::open(dir).unwrap();
    let first = numbers(&engine).get("next").unwrap().map_or(0, |record| *record.outcome().unwrap().unwrap());
    for n in first.. {
        put(&engine, n);
        std::io::stdout().write_all(format!("@{n}\n").as_bytes()).unwrap();
    }
}

/// Set `ONCEKEY_REOPENS=1000` for more rounds.
#[test]
fn the_store_can_be_opened_right_after_a_kill() {
    let times = times();
    within(LATE * (1 + u32::try_from(times).unwrap() / 10), move || {
        let dir = tempfile::tempdir().unwrap();
        let mut last = None;
        for round in 0..times {
            let mut child =
                as_another_process("owners::owner_to_be_killed", dir.path()).stdout(Stdio::piped()).spawn().unwrap();
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            let mut said = || lines.by_ref().find_map(|line| line.unwrap().strip_prefix('@')?.parse::<u64>().ok());
            last = (0..=round % 5).map(|_| said()).last().flatten();
            child.kill().unwrap();
            last = std::iter::from_fn(said).last().or(last);
            child.wait().unwrap();
            let engine = Engine::open(dir.path()).unwrap_or_else(|error| panic!("after kill {round}: {error}"));
            let last = last.unwrap();
            (last.saturating_sub(50)..=last).for_each(|n| has(&engine, n));
            let ops = numbers(&engine);
            ops.forget("next").unwrap();
            ops.execute("next", |_| Ok(last + 2)).unwrap();
            // The next number has no answer. Its record may be absent or in any state.
            ops.remove(format!("{}", last + 1)).unwrap();
            put(&engine, last + 1);
            engine.close().unwrap();
        }
        println!("{times} times opened right after a kill, {} records", last.unwrap());
    });
}
