//! A process that is killed at any moment, again and again on one directory, loses nothing that it reported as durable.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;

use super::*;

const DIR: &str = "ONCEKEY_KILL_DIR";
const THREADS: u8 = 4;
/// Few keys, so that each is written often.
const KEYS: u64 = 12;

/// The outcome of a thread's record after this many rounds. Some are long, so that they take several blocks in sled.
fn value(round: u64) -> Vec<u8> {
    let len = if round % 9 == 0 { 9_000 } else { 40 + usize::try_from(round % 500).unwrap() };
    [round.to_le_bytes().as_slice(), vec![u8::try_from(round % 251).unwrap(); len].as_slice()].concat()
}

fn random(end: u64) -> u64 {
    let [a, b, c, d, ..] = crate::types::key::random();
    u64::from(u32::from_le_bytes([a, b, c, d])) % end
}

/// Not a test: the process to kill. Prints each record and its revision once they are durable.
#[test]
fn child() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    println!("\nopening");
    let options = EngineOptions::default().segment_bytes(SMALL_SEGMENT);
    let (store, _) = open_with(Path::new(&dir), &options);
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let store = &store;
            scope.spawn(move || {
                for round in 0.. {
                    let name = format!("{thread}.{}", round % KEYS);
                    let read = store.read(&key(&name), Load::WithoutOutcome).unwrap();
                    let change = if round % 5 == 1 { at_work() } else { done(&value(round)) };
                    let Some(committed) =
                        store.commit(vec![set(&key(&name), change)], &[read.seen], Priority::User).unwrap()
                    else {
                        continue;
                    };
                    store.wait(committed.ticket).unwrap();
                    let Some(Content::Record(stored)) = &committed.changes[0].content else { unreachable!() };
                    println!("ack {name} {}", stored.revision);
                }
            });
        }
    });
}

fn start(dir: &Path) -> (Child, BufReader<ChildStdout>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["store::tests::kill::child", "--exact", "--nocapture"])
        .env(DIR, dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap());
    (child, lines)
}

/// Kills the process after a random number of lines, or while it opens. Returns what it had printed.
fn killed(dir: &Path, while_opening: bool) -> Vec<(String, u64)> {
    let (mut child, lines) = start(dir);
    let mut left = random(600);
    let mut said = Vec::new();
    let mut kill = || child.kill().unwrap();
    for line in lines.lines() {
        // The last line may be incomplete, so it does not count.
        let Ok(line) = line else { break };
        if line == "opening" && while_opening {
            for _ in 0..random(30_000) {
                std::hint::spin_loop();
                thread::yield_now();
            }
            kill();
        }
        let mut words = line.split(' ');
        if words.next() != Some("ack") {
            continue;
        }
        if let (Some(name), Some(Ok(revision))) = (words.next(), words.next().map(str::parse)) {
            said.push((name.to_owned(), revision));
        }
        left = left.saturating_sub(1);
        if left == 0 {
            kill();
        }
    }
    assert!(!child.wait().unwrap().success(), "it ended by itself");
    said
}

#[test]
fn a_killed_process_loses_nothing_that_it_reported() {
    let kills = std::env::var("ONCEKEY_KILLS").ok().and_then(|count| count.parse().ok()).unwrap_or(15);
    let dir = temp();
    let mut said: BTreeMap<String, u64> = BTreeMap::new();
    let (mut last, mut lines) = (0, 0);
    for round in 0..kills {
        for (name, revision) in killed(dir.path(), round % 3 == 2) {
            let known = said.entry(name).or_default();
            *known = revision.max(*known);
            lines += 1;
        }
        if round % 4 == 1 {
            // The next process opens what this one has left.
            continue;
        }
        let (store, report) = open(dir.path());
        assert!(store.now().first > last, "{report:?}");
        last = store.now().first;
        for (name, revision) in &said {
            let found = stored(&store, &key(name)).unwrap_or_else(|| panic!("{name} is lost in round {round}"));
            assert!(found.revision >= *revision, "{name} is older than reported in round {round}");
            if let Some(outcome) = found.outcome {
                assert!(*outcome == value(u64::from_le_bytes(outcome[..8].try_into().unwrap())), "{name}");
            }
        }
        store.inner.shared.tables.check_blobs().unwrap();
        assert!(journal_files(dir.path()) < 20);
        if round % 2 == 0 { crash(store) } else { store.close().unwrap() }
    }
    println!("{kills} kills, {lines} records reported, {} keys", said.len());
    assert!(lines > 0);
}
