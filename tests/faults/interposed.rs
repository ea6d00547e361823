//! Tests that calls are recorded and that rules have an effect.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;

use oncekey::{Engine, ErrorKind, Manager};

use crate::check::has_sync_flag;
use crate::inject::{Call, Effect, Rule};
use crate::record::{Event, Log, Recording};

fn rule(path: &Path, call: Call, nth: u64, times: u64, effect: Effect) -> Rule {
    Rule { path: path.to_str().unwrap().to_owned(), call, nth, times, effect }
}

/// Returns the names of the entries from this one on, without their content.
fn kinds(log: &Log, from: usize) -> Vec<&'static str> {
    log.events[from..].iter().map(kind).collect()
}

fn kind(event: &Event) -> &'static str {
    match event {
        Event::Write { .. } => "write",
        Event::Truncate { .. } => "truncate",
        Event::Synced { .. } => "sync",
        Event::WriteSynced { .. } => "write synced",
        Event::RangePushed { .. } => "push",
        Event::Created { .. } => "create",
        Event::Removed { .. } => "remove",
        Event::Renamed { .. } => "rename",
        Event::Mark(_) => "mark",
    }
}

#[test]
fn every_kind_of_call_is_recorded_in_order() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("old"), "before").unwrap();
    let recording = Recording::start(dir.path());
    let path = |name: &str| dir.path().canonicalize().unwrap().join(name);
    fs::create_dir(path("d")).unwrap();
    let mut file = File::create(path("d/a")).unwrap();
    file.write_all(b"one").unwrap();
    file.write_all(b"two").unwrap();
    file.write_all_at(b"three", 4096).unwrap();
    assert_eq!(recording.mark(7), 6);
    file.sync_data().unwrap();
    file.set_len(10).unwrap();
    fs::rename(path("d"), path("e")).unwrap();
    file.sync_all().unwrap();
    File::open(path("e")).unwrap().sync_all().unwrap();
    let clone = OpenOptions::new().append(true).open(path("old")).unwrap().try_clone().unwrap();
    (&clone).write_all(b" and after").unwrap();
    let direct = OpenOptions::new().write(true).custom_flags(libc::O_DSYNC).open(path("old")).unwrap();
    direct.write_all_at(b"B", 0).unwrap();
    fs::remove_dir_all(path("e")).unwrap();
    let log = recording.finish();
    let expected =
        "create create write write write mark sync truncate rename sync sync write write write synced remove remove";
    assert_eq!(kinds(&log, 0).join(" "), expected);
    let [dir_node, old, made] = [Path::new("d"), Path::new("old"), Path::new("d/a")]
        .map(|path| log.nodes.iter().position(|node| node.path == path).unwrap());
    assert_eq!(&*log.nodes[old].bytes, b"before");
    assert_eq!(log.events[3], Event::Write { node: made, offset: 3, bytes: (*b"two").into() });
    assert_eq!(
        log.events[5..8],
        [Event::Mark(7), Event::Synced { node: made, before: 6 }, Event::Truncate { node: made, len: 10 }]
    );
    assert_eq!(log.events[10], Event::Synced { node: dir_node, before: 10 });
    assert_eq!(log.events[11], Event::Write { node: old, offset: 6, bytes: (*b" and after").into() });
}

#[test]
fn a_recording_contains_only_its_directory_and_time() {
    let (mine, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let recording = Recording::start(mine.path());
    fs::write(other.path().join("x"), "x").unwrap();
    let second = Recording::start(other.path());
    fs::write(other.path().join("y"), "y").unwrap();
    assert_eq!(kinds(&recording.finish(), 0), [""; 0]);
    assert_eq!(kinds(&second.finish(), 0), ["create", "write"]);
    fs::write(mine.path().join("x"), "x").unwrap();
}

#[test]
fn rules_fail_shorten_and_delay_calls() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    let full = rule(&path, Call::Write, 2, 1, Effect::Errno(libc::ENOSPC)).inject();
    file.write_all_at(b"1", 0).unwrap();
    assert_eq!(file.write_all_at(b"2", 1).unwrap_err().raw_os_error(), Some(libc::ENOSPC));
    file.write_all_at(b"3", 1).unwrap();
    assert_eq!(full.hits(), 1);
    drop(full);
    let short = rule(&path, Call::Write, 1, u64::MAX, Effect::Short(2)).inject();
    assert_eq!(file.write_at(b"abcdef", 0).unwrap(), 2);
    drop(short);
    let _blind = rule(&path, Call::Read, 1, u64::MAX, Effect::Errno(libc::EIO)).inject();
    assert_eq!((&file).read(&mut [0; 8]).unwrap_err().raw_os_error(), Some(libc::EIO));
    let hung = rule(&path, Call::Sync, 1, 1, Effect::Hang).inject();
    std::thread::scope(|scope| {
        let syncing = scope.spawn(|| file.sync_data());
        hung.wait_for_hits(1);
        assert!(!syncing.is_finished());
        hung.release();
        syncing.join().unwrap().unwrap();
    });
    let _denied = rule(&path, Call::Open, 1, u64::MAX, Effect::Errno(libc::EMFILE)).inject();
    assert_eq!(File::open(&path).unwrap_err().raw_os_error(), Some(libc::EMFILE));
}

#[test]
fn a_rule_affects_the_engine() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(dir.path()).unwrap();
    let ops: Manager<u64> = engine.manager("ops").unwrap();
    let journal = dir.path().join("store/journal");
    // Use an endless rule, because the next segment is prepared and synced meanwhile.
    let broken = rule(&journal, Call::Sync, 1, u64::MAX, Effect::Errno(libc::EIO)).inject();
    let error = ops.execute("k", |_| Ok(1)).unwrap_err();
    assert!(error.to_string().contains("sync journal segment"), "{error}");
    assert!(broken.hits() > 0);
    assert_eq!(ops.get("k").unwrap_err().kind(), ErrorKind::Poisoned);
}

/// Runs an engine, and returns its log.
fn live(dir: &Path, sync_flag: bool) -> Log {
    let recording = Recording::start(dir);
    let path = dir.canonicalize().unwrap().join("store");
    for round in 0..2 {
        let engine = Engine::options().segment_bytes(32 << 10).sync_flag(sync_flag).open(&path).unwrap();
        assert!(!sync_flag || engine.stats().sled_sync_flag, "this file system has no sync flag");
        let ops: Manager<Vec<u8>> = engine.manager("ops").unwrap();
        for n in 0..100 {
            ops.execute(format!("{round}-{n}"), |_| Ok(vec![n; usize::from(n) * 100])).unwrap();
        }
        engine.close().unwrap();
    }
    recording.finish()
}

#[test]
fn writes_of_sled_with_the_sync_flag_are_durable_when_they_return() {
    if !has_sync_flag() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let log = live(dir.path(), true);
    let sled: Vec<_> = (0..log.nodes.len()).filter(|node| log.nodes[*node].path.ends_with("sled/db")).collect();
    assert_eq!(sled.len(), 1);
    let writes = |event: &&Event| matches!(event, Event::Write { node, .. } if sled.contains(node));
    let synced = |event: &&Event| matches!(event, Event::WriteSynced { node } if sled.contains(node));
    let (writes, synced) = (log.events.iter().filter(writes).count(), log.events.iter().filter(synced).count());
    // The first writes, when sled creates the file, have the flag only if the file system inherits it.
    assert!(synced > 10 && writes - synced <= 3, "{synced} of {writes}");
    let dir = tempfile::tempdir().unwrap();
    let log = live(dir.path(), false);
    assert!(log.events.iter().all(|event| !matches!(event, Event::WriteSynced { .. })));
}

/// Not a test: the process that is traced.
#[test]
#[ignore = "started by another test"]
fn child() {
    let Ok(dir) = std::env::var("ONCEKEY_TRACED_DIR") else { return };
    let log = live(dir.as_ref(), false);
    let mut counts = BTreeMap::new();
    for event in &log.events {
        *counts.entry(kind(event)).or_insert(0_u64) += 1;
    }
    // This is not below the directory, so it is not in the trace.
    println!("\ncounts {}", serde_json::to_string(&counts).unwrap());
}

/// Returns the successful calls in a trace that name a path below the directory, with their counts.
fn traced(trace: &str, dir: &str) -> BTreeMap<String, u64> {
    let (mut counts, mut begun) = (BTreeMap::new(), BTreeMap::<&str, String>::new());
    for line in trace.lines() {
        let (tid, call) = line.split_once(' ').unwrap();
        let call = call.trim_start();
        let whole = match call.split_once("<unfinished ...>") {
            Some((head, _)) => {
                begun.insert(tid, head.to_owned());
                continue;
            }
            None if call.starts_with("<... ") => begun.remove(tid).unwrap_or_default() + call,
            None => call.to_owned(),
        };
        let failed = whole.contains(") = -1 ") || whole.contains("resumed>) = -1 ");
        if let Some((name, _)) = whole.split_once('(').filter(|_| whole.contains(dir) && !failed) {
            let creates = name == "openat" && whole.contains("O_CREAT");
            *counts.entry(if creates { "creating open".to_owned() } else { name.to_owned() }).or_insert(0) += 1;
        }
    }
    counts
}

/// `cargo test --test faults every_call_that_strace_sees_is_recorded -- --ignored --nocapture`
#[test]
#[ignore = "needs strace"]
fn every_call_that_strace_sees_is_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let traced_dir = dir.path().join("traced");
    fs::create_dir(&traced_dir).unwrap();
    let trace = dir.path().join("trace");
    let output = Command::new("strace")
        .args(["-f", "-y", "-s", "0", "-o", trace.to_str().unwrap()])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "interposed::child", "--ignored", "--nocapture"])
        .env("ONCEKEY_TRACED_DIR", &traced_dir)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let counts = said.lines().find_map(|line| line.strip_prefix("counts ")).unwrap();
    let recorded: BTreeMap<String, u64> = serde_json::from_str(counts).unwrap();
    let mut seen = traced(&fs::read_to_string(&trace).unwrap(), traced_dir.to_str().unwrap());
    println!("recorded {recorded:?}\ntraced {seen:?}");
    let mut take = |names: &[&str]| names.iter().map(|name| seen.remove(*name).unwrap_or_default()).sum::<u64>();
    let of = |kind: &str| recorded.get(kind).copied().unwrap_or_default();
    assert_eq!(take(&["write", "pwrite64", "writev", "pwritev", "pwritev2"]), of("write"));
    assert_eq!(take(&["fsync", "fdatasync"]), of("sync"));
    assert_eq!(take(&["sync_file_range"]), of("push"));
    assert_eq!(take(&["rename", "renameat", "renameat2"]), of("rename"));
    assert_eq!(take(&["unlink", "unlinkat", "rmdir"]), of("remove"));
    // Most opens with the create flag do not create, and a truncation to the same length is not logged.
    assert!(take(&["creating open", "mkdir", "mkdirat"]) >= of("create"));
    assert!(take(&["ftruncate", "fallocate"]) >= of("truncate"));
    // The rest changes no file. rustix makes the calls of the last line by itself.
    for harmless in [
        "openat",
        "close",
        "read",
        "pread64",
        "lseek",
        "fcntl",
        "fstat",
        "newfstatat",
        "statx",
        "stat",
        "lstat",
        "readlink",
        "getdents64",
        "fadvise64",
        "dup",
        "access",
        "execve",
        "flock",
        "ioctl",
        "statfs",
    ] {
        seen.remove(harmless);
    }
    assert!(seen.is_empty(), "calls that the recorder does not know: {seen:?}");
}
