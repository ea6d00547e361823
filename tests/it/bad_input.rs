//! Tests of bad input through the public API: a typed error that names the object, and no change.

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use oncekey::{
    CallOptions, Context, Durability, Engine, Error, ErrorKind, ExecuteError, FOREVER, Interruption, Key, Manager,
    ManagerOptions, Status, Value,
    admin::{RecordFilter, Resolution},
    clock::ManualClock,
};

use crate::common::*;

#[track_caller]
fn is(error: &Error, kind: ErrorKind, named: &str) {
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(named), "{error} does not name {named}");
}

/// Every call that takes a key.
fn refusals(manager: &Texts, key: &[u8]) -> Vec<Error> {
    let (v, raw) = ("v".to_owned(), manager.engine().raw("m").unwrap());
    let executed = match manager.execute(key, |_| panic!("it has run")) {
        Err(ExecuteError::Engine(error)) => error,
        other => panic!("{other:?}"),
    };
    vec![
        manager.begin(key).unwrap_err(),
        manager.begin_with(key, CallOptions::new()).unwrap_err(),
        manager.begin_with(key, CallOptions::new().wait(FOREVER)).unwrap_err(),
        executed,
        manager.initiate(key).unwrap_err(),
        manager.success(key, token(1), &v).unwrap_err(),
        manager.fail(key, token(1), &v).unwrap_err(),
        manager.release(key, token(1)).unwrap_err(),
        manager.get(key).unwrap_err(),
        manager.wait(key, FOREVER).unwrap_err(),
        manager.resolve(key, Resolution::Retry).unwrap_err(),
        manager.forget(key).unwrap_err(),
        manager.remove(key).unwrap_err(),
        manager.extend(key, DAY).unwrap_err(),
        raw.get(key).unwrap_err(),
        raw.resolve(key, Resolution::Retry).unwrap_err(),
        raw.forget(key).unwrap_err(),
        raw.remove(key).unwrap_err(),
        raw.extend(key, DAY).unwrap_err(),
        manager.scoped(key).unwrap_err(),
        Key::new(key).unwrap_err(),
    ]
}

#[test]
fn empty_and_oversized_keys() {
    let (manager, _) = fresh();
    let commits = manager.engine().stats().commits;
    for error in refusals(&manager, b"") {
        is(&error, ErrorKind::InvalidKey, "key is empty");
    }
    for error in refusals(&manager, &[b'k'; Key::MAX_BYTES + 1]) {
        is(&error, ErrorKind::InvalidKey, "513");
    }
    assert_eq!(manager.engine().stats().commits, commits);
    // The longest key, of bytes that are not text.
    let longest = [0xff_u8; Key::MAX_BYTES];
    manager.execute(longest, |_| Ok("v".to_owned())).unwrap();
    assert_eq!(manager.engine().records(RecordFilter::new().key_prefix(longest)).unwrap().count(), 1);
}

#[test]
fn empty_oversized_and_malformed_names() {
    let (engine, _) = engine();
    let long = "n".repeat(65);
    for (name, named) in [("", "empty"), (&*long, "65"), ("Pay", "\"Pay\""), ("a/b", "a/b"), ("a\0b", "\\u{0}")] {
        is(&engine.manager::<u64, u64>(name).unwrap_err(), ErrorKind::InvalidName, named);
        is(&engine.raw(name).unwrap_err(), ErrorKind::InvalidName, named);
        is(&engine.records(RecordFilter::new().manager(name)).unwrap_err(), ErrorKind::InvalidName, named);
    }
    let manager: Manager<u64, u64> = engine.manager(&"n".repeat(64)).unwrap();
    claim(&manager, "k").succeed(&1).unwrap();
    assert_eq!(engine.managers().unwrap(), ["n".repeat(64)]);
}

#[test]
fn oversized_contexts() {
    let (manager, _) = fresh();
    let many: Context = (0..=Context::MAX_ENTRIES).map(|n| (format!("n{n}"), "")).collect();
    let bad = [
        (many, ErrorKind::TooLarge, "65 entries"),
        (Context::new().with("", "x"), ErrorKind::InvalidName, "empty name"),
        (Context::new().with("n".repeat(Context::MAX_NAME_BYTES + 1), "x"), ErrorKind::InvalidName, "65 bytes"),
        (Context::new().with("n", vec![0; Context::MAX_BYTES]), ErrorKind::TooLarge, "16385 bytes"),
    ];
    for (context, kind, named) in bad {
        let options = CallOptions::new().context(context);
        is(&manager.initiate_with("k", options.clone()).unwrap_err(), kind, named);
        is(&manager.begin_with("k", options.clone()).unwrap_err(), kind, named);
        is(&manager.begin_with("k", options.clone().wait(FOREVER)).unwrap_err(), kind, named);
        let executed = manager.execute_with("k", options, |_| panic!("it has run"));
        assert!(matches!(executed, Err(ExecuteError::Engine(error)) if error.kind() == kind));
        assert_eq!(status(&manager, "k"), None);
    }
    let fullest = Context::new().with("n", vec![7; Context::MAX_BYTES - 1]);
    claimed(manager.begin_with("k", CallOptions::new().context(fullest.clone())).unwrap()).release().unwrap();
    assert_eq!(*manager.get("k").unwrap().unwrap().info().context(), fullest);
}

#[test]
fn empty_and_oversized_values() {
    let clock = ManualClock::new();
    let engine = options(&clock).max_value_bytes(9).temporary_store().unwrap();
    // A unit is encoded as the header only, and is a valid value.
    let unit: Manager<(), u8> = engine.manager("unit").unwrap();
    let info = claim(&unit, "k").succeed(&()).unwrap().info().clone();
    assert_eq!((info.status(), info.outcome_bytes(), outcome(&unit, "k")), (Status::Succeeded, 9, Some(Ok(()))));
    is(&claim(&unit, "l").fail(&1).unwrap_err().error, ErrorKind::TooLarge, "the failure of key l of unit");
    assert_eq!(status(&unit, "l"), Some(Status::Interrupted));

    let error = options(&clock).max_value_bytes(Value::MAX_BYTES + 1).temporary_store().unwrap_err();
    is(&error, ErrorKind::InvalidOptions, "max_value_bytes is 16777217");
    let engine = options(&clock).max_value_bytes(Value::MAX_BYTES).temporary_store().unwrap();
    let (manager, largest) = (texts(&engine), "x".repeat(Value::MAX_BYTES - 11));
    claim(&manager, "k").succeed(&largest).unwrap();
    assert!(outcome(&manager, "k") == Some(Ok(largest.clone())), "it is not what was stored");
    let error = claim(&manager, "l").succeed(&(largest + "x")).unwrap_err().error;
    is(&error, ErrorKind::TooLarge, "16777217 bytes long");
}

#[test]
fn an_import_over_the_limit_is_rejected() {
    let ((here, _), clock) = (engine(), ManualClock::new());
    let there = options(&clock).max_value_bytes(16).temporary_store().unwrap();
    claim(&texts(&here), "k").succeed(&"x".repeat(9)).unwrap();
    let record = here.raw("m").unwrap().get("k").unwrap().unwrap();
    is(&there.raw("m").unwrap().import(&record).unwrap_err(), ErrorKind::TooLarge, "26");
    assert_eq!(there.records(RecordFilter::new()).unwrap().count(), 0);
}

#[test]
fn a_record_of_another_schema() {
    let (engine, _) = engine();
    let old: Texts = texts(&engine);
    let new: Manager<(u8, u8), String> = engine.manager_with("m", ManagerOptions::new().schema(2)).unwrap();
    claim(&old, "k").succeed(&"v".to_owned()).unwrap();
    let commits = engine.stats().commits;
    let named = "key k of m was stored with schema 0 and is read with 2";
    is(&new.get("k").unwrap_err(), ErrorKind::TypeMismatch, named);
    is(&new.begin("k").unwrap_err(), ErrorKind::TypeMismatch, named);
    is(&new.begin_with("k", CallOptions::new().wait(FOREVER)).unwrap_err(), ErrorKind::TypeMismatch, named);
    is(&new.wait("k", FOREVER).unwrap_err(), ErrorKind::TypeMismatch, named);
    assert!(matches!(new.execute("k", |_| panic!("it has run")), Err(ExecuteError::Engine(_))));
    assert_eq!(engine.stats().commits, commits);
    assert_eq!(outcome(&old, "k"), Some(Ok("v".to_owned())));
    // A record without an outcome is taken over by the current program.
    claim(&old, "l").release().unwrap();
    claim(&new, "l").succeed(&(1, 2)).unwrap();
    assert_eq!(outcome(&new, "l"), Some(Ok((1, 2))));
    assert_eq!(old.get("l").unwrap_err().kind(), ErrorKind::TypeMismatch);
}

#[test]
fn the_address_of_a_database_is_no_directory() {
    for address in ["postgres://localhost/payments", "postgresql://app@db/payments"] {
        is(&Engine::open(address).unwrap_err(), ErrorKind::InvalidOptions, "use `connect`");
        assert!(!std::path::Path::new(address.split('/').next().unwrap()).exists());
    }
}

#[test]
fn zero_durations() {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let eventual = Durability::Eventual { interval: Duration::ZERO };
    for (options, named) in [
        (options(&clock).sync_timeout(Duration::ZERO), "sync_timeout"),
        (options(&clock).durability(eventual), "interval"),
    ] {
        is(&options.open(dir.path()).unwrap_err(), ErrorKind::InvalidOptions, named);
        is(&options.temporary_store().unwrap_err(), ErrorKind::InvalidOptions, named);
    }
    assert_eq!(tree(dir.path()), []);
    // A wait of zero reads once.
    let (manager, _) = fresh();
    let _owner = claim(&manager, "k");
    assert_eq!(waited(&manager.wait("k", Duration::ZERO).unwrap()), "timed out");
    assert_eq!(arm(&manager.begin_with("k", CallOptions::new().wait(Duration::ZERO)).unwrap()), "in progress");
    assert_eq!(arm(&manager.begin_with("l", CallOptions::new().wait(Duration::ZERO)).unwrap()), "claimed");
}

#[test]
fn endless_durations() {
    let clock = ManualClock::new();
    let endless = options(&clock).sync_timeout(Duration::MAX).max_offline(Duration::MAX);
    for durability in [Durability::Immediate, Durability::Eventual { interval: Duration::MAX }] {
        let engine = endless.clone().durability(durability).temporary_store().unwrap();
        // Longer than the clock can count, but not `FOREVER`: it saturates.
        for ttl in [FOREVER, Duration::from_secs(u64::MAX), Duration::from_millis(u64::MAX - 1)] {
            let options =
                ManagerOptions::new().success_ttl(ttl).failure_ttl(ttl).released_ttl(ttl).interrupted_ttl(ttl);
            let manager = texts_with(&engine, options);
            let done = manager.execute_with("k", CallOptions::new().wait(Duration::MAX), |_| Ok("v".to_owned()));
            assert!(!done.unwrap().replayed());
            drop(claim(&manager, "dropped"));
            assert!(manager.extend("k", Duration::from_secs(u64::MAX)).unwrap());
            clock.advance(1000 * YEAR);
            assert_eq!(engine.compact_now().unwrap().removed, 0);
            assert_eq!(manager.get("k").unwrap().unwrap().info().expires_at(), None);
            assert_eq!(status(&manager, "dropped"), Some(Status::Interrupted));
            assert!(manager.remove("k").unwrap() && manager.remove("dropped").unwrap());
        }
        engine.sync().unwrap();
        engine.close().unwrap();
    }
}

#[test]
fn a_leaked_claim() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let first = open_local(dir.path(), &clock);
    let manager = texts(&first);
    std::mem::forget(claim(&manager, "k"));
    clock.advance(YEAR);
    // The record is in progress for this process, and can be found by its age.
    assert_eq!(answer(&manager, "k"), "in progress");
    let old = RecordFilter::new().status(Status::InProgress).updated_before(oncekey::clock::Clock::wall(&clock) - DAY);
    assert_eq!(keys(first.records(old).unwrap()), ["k"]);
    // The claim keeps the directory locked until it is revoked or the process ends.
    drop(manager);
    assert_eq!(first.clone().close().unwrap_err().kind(), ErrorKind::ClaimsAlive);
    assert_eq!(Engine::open(dir.path()).unwrap_err().kind(), ErrorKind::StoreInUse);
    first.crash();
    let second = open_local(dir.path(), &clock);
    let info = texts(&second).get("k").unwrap().unwrap().info().clone();
    assert_eq!((info.status(), info.interruption()), (Status::Interrupted, Some(Interruption::ProcessEnded)));
}

#[test]
fn waiting_for_an_own_claim() {
    let (manager, _) = fresh();
    let owner = claim(&manager, "k");
    assert_eq!(arm(&manager.begin_with("k", CallOptions::new().wait(20 * MS)).unwrap()), "in progress");
    assert_eq!(waited(&manager.wait("k", 20 * MS).unwrap()), "timed out");
    assert_eq!(manager.engine().stats().waiting, 0);
    owner.succeed(&"v".to_owned()).unwrap();
}

#[test]
fn every_call_after_close() {
    let (engine, _) = engine();
    let manager = texts(&engine);
    claim(&manager, "k").succeed(&"v".to_owned()).unwrap();
    let records = engine.records(RecordFilter::new()).unwrap();
    engine.clone().close().unwrap();
    let mut refused =
        vec![engine.managers().unwrap_err(), engine.compact_now().unwrap_err(), engine.sync().unwrap_err()];
    refused.extend(records.filter_map(Result::err));
    refused.extend([
        manager.begin("k").unwrap_err(),
        manager.get("k").unwrap_err(),
        manager.initiate("l").unwrap_err(),
    ]);
    refused.extend([manager.wait("k", FOREVER).unwrap_err(), manager.remove("k").unwrap_err()]);
    refused.extend([manager.extend("k", DAY).unwrap_err(), manager.resolve("k", Resolution::Retry).unwrap_err()]);
    assert_eq!(refused.len(), 11);
    for error in refused {
        is(&error, ErrorKind::Closed, "closed");
    }
    engine.close().unwrap();
}

// Paths.

/// Opens a path that cannot be opened. The error names the path, and no file changes.
#[track_caller]
fn refused(path: &Path, watched: &Path, kind: ErrorKind, io_kind: Option<io::ErrorKind>) {
    let before = tree(watched);
    let error = Engine::open(path).unwrap_err();
    is(&error, kind, path.to_str().unwrap());
    assert_eq!(error.io_kind(), io_kind, "{error}");
    assert_eq!(tree(watched), before);
}

#[test]
fn a_path_that_is_a_file_or_below_one() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "mine").unwrap();
    refused(&file, dir.path(), ErrorKind::Io, Some(io::ErrorKind::NotADirectory));
    refused(&file.join("below"), dir.path(), ErrorKind::Io, Some(io::ErrorKind::NotADirectory));
    assert_eq!(fs::read(&file).unwrap(), b"mine");
}

#[test]
fn a_directory_with_other_files() {
    for (name, is_dir) in
        [("notes.txt", false), ("sled", true), ("journal", true), ("store", false), (".hidden", false)]
    {
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join(name);
        if is_dir { fs::create_dir(&inside) } else { fs::write(&inside, "mine") }.unwrap();
        refused(dir.path(), dir.path(), ErrorKind::UnsupportedFormat, None);
    }
}

#[test]
fn a_store_with_missing_files() {
    for part in ["journal", "sled"] {
        let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
        open_local(dir.path(), &clock).close().unwrap();
        fs::remove_dir_all(dir.path().join("store").join(part)).unwrap();
        let error = Engine::open(dir.path()).unwrap_err();
        is(&error, ErrorKind::Corrupt, dir.path().join("store").join(part).to_str().unwrap());
        assert!(!dir.path().join("store").join(part).exists(), "nothing is made in its place");
    }
}

#[test]
fn a_store_that_is_open_already() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let first = open_local(dir.path(), &clock);
    let owner = claim(&texts(&first), "k");
    // Do not compare its files: the engine that has the store open prepares segments in the background.
    let in_use = || is(&Engine::open(dir.path()).unwrap_err(), ErrorKind::StoreInUse, dir.path().to_str().unwrap());
    in_use();
    drop(first);
    // The claim keeps it open.
    in_use();
    owner.succeed(&"v".to_owned()).unwrap();
    let second = open_local(dir.path(), &clock);
    assert_eq!(outcome(&texts(&second), "k"), Some(Ok("v".to_owned())));
}

#[test]
fn missing_parents_an_empty_directory_and_a_fresh_mount_point_become_a_store() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    for path in ["a/b/c", "empty", "mount"].map(|path| dir.path().join(path)) {
        if !path.ends_with("c") {
            fs::create_dir(&path).unwrap();
        }
        if path.ends_with("mount") {
            fs::create_dir(path.join("lost+found")).unwrap();
        }
        assert!(open(&path, &clock).opened().created);
        assert!(!open(&path, &clock).opened().created);
    }
}

const DIRECTORY: &str = "ONCEKEY_READ_ONLY";

/// Not a test: the process that `a_directory_that_is_read_only` starts as a user without the right to write there.
#[test]
#[ignore = "started by another test"]
fn read_only_child() {
    let Ok(dir) = std::env::var(DIRECTORY) else { return };
    for path in ["empty", "store", "empty/below"].map(|name| Path::new(&dir).join(name)) {
        refused(&path, Path::new(&dir), ErrorKind::Io, Some(io::ErrorKind::PermissionDenied));
    }
    println!("refused");
}

#[test]
fn a_directory_that_is_read_only() {
    use std::os::unix::fs::PermissionsExt as _;
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    fs::create_dir(dir.path().join("empty")).unwrap();
    open(&dir.path().join("store"), &clock).close().unwrap();
    // Copy the program: other users may not be able to read the build directory.
    let program = dir.path().join("it");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let paths: Vec<_> = tree(dir.path()).into_iter().map(|(path, _)| path).chain([dir.path().to_owned()]).collect();
    let allow = |directories, files| {
        for path in &paths {
            let mode = if path.is_dir() || *path == program { directories } else { files };
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }
    };
    allow(0o555, 0o444);
    // Root may write everywhere, so another user has to try.
    let may_write = fs::write(dir.path().join("probe"), "").is_ok();
    let mut child = Command::new(if may_write { Path::new("setpriv") } else { &program });
    if may_write {
        fs::remove_file(dir.path().join("probe")).unwrap();
        child.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program);
    }
    child.args(["bad_input::read_only_child", "--exact", "--ignored", "--nocapture"]).env(DIRECTORY, dir.path());
    let output = child.current_dir("/").output();
    allow(0o755, 0o644);
    match output {
        Err(cause) => println!("skipped: root, and no setpriv to be somebody else with: {cause}"),
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && text.contains("refused"), "{text}");
        }
    }
}
