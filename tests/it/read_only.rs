//! Engines that only read: nothing is written, and nothing can be changed.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use oncekey::{
    Begin, CallOptions, Engine, Error, ErrorKind, ExecuteError, Result, Status, Waited, admin::RecordFilter,
    admin::Resolution, clock::ManualClock,
};

use crate::common::{self, Texts, claim, resuming, texts};

/// A path, its owner, group and mode, when it was last written, and its bytes.
pub(crate) type Entry = (PathBuf, [i64; 5], Vec<u8>);

/// Returns every file and directory, the given one too.
pub(crate) fn everything(dir: &Path) -> Vec<Entry> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(path) = open.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        let facts = [
            metadata.uid().into(),
            metadata.gid().into(),
            metadata.mode().into(),
            metadata.mtime(),
            metadata.mtime_nsec(),
        ];
        let bytes = if metadata.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
        if metadata.is_dir() {
            open.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        found.push((path, facts, bytes));
    }
    found.sort();
    found
}

fn reader(path: &Path) -> Result<Engine> {
    Engine::options().read_only(true).clock(ManualClock::new()).open(path)
}

fn engine_error<T: std::fmt::Debug, E: std::fmt::Debug>(error: ExecuteError<T, E>) -> Error {
    match error {
        ExecuteError::Engine(error) => error,
        other => panic!("{other:?}"),
    }
}

/// Fills a store: some of it in runs, and some only in the journal.
fn fill(engine: &Engine) {
    let manager = texts(engine);
    manager.execute("flushed", |_| Ok("1".to_owned())).unwrap();
    engine.compact_now().unwrap();
    manager.execute("late", |_| Ok("2".to_owned())).unwrap();
    manager.execute("gone", |_| Ok("3".to_owned())).unwrap();
    manager.remove("gone").unwrap();
    std::mem::forget(claim(&manager, "dead"));
    std::mem::forget(claim(&resuming(engine), "resumable"));
    manager.scoped("user-7").unwrap().execute("scoped", |_| Ok("4".to_owned())).unwrap();
    engine.table("rows").unwrap().insert("row", "value").unwrap();
}

/// A store whose process died, and one that was closed.
fn stores(dir: &Path) -> [PathBuf; 2] {
    ["died", "closed"].map(|how| {
        let path = dir.join(how);
        let engine = common::open_local(&path, &ManualClock::new());
        fill(&engine);
        if how == "died" {
            engine.crash();
        } else {
            engine.abort().unwrap();
        }
        path
    })
}

fn check_all_is_there(engine: &Engine) {
    let manager = texts(engine);
    for (key, outcome) in [("flushed", "1"), ("late", "2")] {
        let record = manager.get(key).unwrap().unwrap();
        assert_eq!(record.outcome().unwrap().unwrap(), outcome);
        let Begin::Replay(replayed) = manager.begin(key).unwrap() else { panic!("{key} has no outcome") };
        assert_eq!(replayed.outcome().unwrap(), outcome);
    }
    assert!(manager.get("gone").unwrap().is_none());
    let count = |filter| engine.records(filter).unwrap().map(Result::unwrap).count();
    assert_eq!(count(RecordFilter::new()), 5);
    assert_eq!(count(RecordFilter::new().status(Status::Interrupted)), 2);
    assert_eq!((engine.opened().interrupted, engine.stats().interrupted), (2, 2));
    let row = engine.atomic_phase(|tx| tx.table("rows")?.get("row")).unwrap().unwrap();
    assert_eq!((&*row, &*engine.table("rows").unwrap().get("row").unwrap().unwrap()), (&b"value"[..], &b"value"[..]));
    let report = engine.verify().unwrap();
    assert_eq!((report.records, report.rows, report.problems), (5, 1, Vec::new()));
    engine.sync().unwrap();
}

#[test]
fn everything_can_be_read_and_not_one_byte_changes() {
    let dir = tempfile::tempdir().unwrap();
    for path in stores(dir.path()) {
        let before = everything(&path);
        let mut replayed = Vec::new();
        for _ in 0..2 {
            let engine = reader(&path).unwrap();
            check_all_is_there(&engine);
            let other = reader(&path).unwrap();
            check_all_is_there(&other);
            let report = engine.opened();
            replayed.push((report.clean, report.frames_replayed));
            engine.close().unwrap();
            drop(other);
        }
        assert_eq!(replayed[0], replayed[1]);
        assert_eq!(replayed[0].1 > 0, path.ends_with("died"));
        assert!(everything(&path) == before, "{}", path.display());
        // An open for writing finds the same.
        check_all_is_there(&common::open_local(&path, &ManualClock::new()));
    }
}

#[test]
fn every_change_is_refused_before_anything_happens() {
    let dir = tempfile::tempdir().unwrap();
    let [path, _] = stores(dir.path());
    let before = everything(&path);
    let engine = reader(&path).unwrap();
    let manager: Texts = texts(&engine);
    let rows = engine.table("rows").unwrap();
    let ran = std::cell::Cell::new(false);
    let elsewhere = {
        let engine = Engine::temporary().unwrap();
        claim(&texts(&engine), "imported").succeed(&String::new()).unwrap();
        engine.raw("m").unwrap().get("imported").unwrap().unwrap()
    };
    let (raw, of_user) = (engine.raw("m").unwrap(), manager.scoped("user-7").unwrap());
    let operation = |_: &mut oncekey::Claim<String, String>| {
        ran.set(true);
        Ok(String::new())
    };
    let changes: [(&str, Result<()>); 19] = [
        ("begin", manager.begin("new").map(drop)),
        ("begin, waiting", manager.begin_with("new", CallOptions::new().wait(common::YEAR)).map(drop)),
        ("begin again", resuming(&engine).begin("resumable").map(drop)),
        ("initiate", manager.initiate("new").map(drop)),
        ("execute", manager.execute("new", operation).map(drop).map_err(engine_error)),
        (
            "execute many",
            manager.execute_many([("new", ())], |claim, ()| operation(claim)).remove(0).map(drop).map_err(engine_error),
        ),
        ("resolve", manager.resolve("dead", Resolution::Retry)),
        ("resolve without types", raw.resolve("dead", Resolution::Retry)),
        ("import", raw.import(&elsewhere).map(drop)),
        ("remove", manager.remove("late").map(drop)),
        ("remove a dead one", manager.remove("dead").map(drop)),
        ("forget", manager.forget("late").map(drop)),
        ("extend", manager.extend("late", common::YEAR).map(drop)),
        ("erase", of_user.erase().map(drop)),
        ("insert", rows.insert("row", "other")),
        ("remove a row", rows.remove("row").map(drop)),
        ("remove rows", rows.remove_prefix("").map(drop)),
        ("compact", engine.compact_now().map(drop)),
        (
            "a transaction",
            engine.atomic_phase(|tx| -> Result<(), Error> {
                tx.table("rows")?.insert("row", "other")?;
                ran.set(true);
                Ok(())
            }),
        ),
    ];
    for (change, refused) in changes {
        let refused = refused.expect_err(change);
        assert_eq!(refused.kind(), ErrorKind::ReadOnly, "{change}");
        assert!(refused.to_string().contains(path.to_str().unwrap()), "{change}: {refused}");
        assert_eq!(oncekey::http::Problem::from(refused).code(), "unavailable", "{change}");
    }
    assert!(!ran.get(), "no operation was run");
    // These have nothing to change.
    assert!(!manager.remove("missing").unwrap() && !manager.forget("missing").unwrap());
    assert_eq!(manager.revoke("dead").unwrap_err().kind(), ErrorKind::NotInProgress);
    assert_eq!(raw.undo("late").unwrap_err().kind(), ErrorKind::NotResolved);
    check_all_is_there(&engine);
    drop((manager, rows, raw, of_user, engine));
    assert!(everything(&path) == before);
}

#[test]
fn waits_events_backups_and_closes_work() {
    let dir = tempfile::tempdir().unwrap();
    for path in stores(dir.path()) {
        let before = everything(&path);
        let engine = reader(&path).unwrap();
        let (manager, events) = (texts(&engine), engine.events());
        assert!(matches!(manager.wait("late", common::YEAR).unwrap(), Waited::Finished(_)));
        assert!(matches!(manager.wait("dead", common::YEAR).unwrap(), Waited::Interrupted));
        assert!(matches!(manager.wait("missing", common::YEAR).unwrap(), Waited::Absent));
        assert_eq!(manager.execute("late", |_| panic!("it has an outcome")).unwrap().value(), "2");
        assert_eq!(engine.socket().unwrap(), None);
        let copy = path.with_extension("copy");
        let report = engine.backup(&copy).unwrap();
        assert_eq!((report.records(), report.succeeded, report.rows), (5, 3, 1));
        check_all_is_there(&common::open_local(&copy, &ManualClock::new()));
        engine.close_when_idle(common::YEAR).unwrap();
        assert_eq!(manager.get("late").unwrap_err().kind(), ErrorKind::Closed);
        assert!(events.count() <= 4, "a closed engine ends its events");
        drop(manager);
        // The lock is gone, and so it is after a drop.
        for _ in 0..2 {
            drop(reader(&path).unwrap());
            assert!(everything(&path) == before);
        }
        common::open_local(&path, &ManualClock::new()).close().unwrap();
    }
}

#[test]
fn a_read_only_engine_creates_nothing() {
    let error = Engine::options().read_only(true).temporary().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[test]
fn a_store_that_is_written_to_is_in_use_and_so_is_one_that_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let [path, _] = stores(dir.path());
    let owner = common::open_local(&path, &ManualClock::new());
    assert_eq!(reader(&path).unwrap_err().kind(), ErrorKind::StoreInUse);
    owner.close().unwrap();
    let engine = reader(&path).unwrap();
    assert_eq!(Engine::open(&path).unwrap_err().kind(), ErrorKind::StoreInUse);
    // A deleted lock file makes no difference.
    fs::remove_file(path.join("LOCK")).unwrap();
    assert_eq!(Engine::open(&path).unwrap_err().kind(), ErrorKind::StoreInUse);
    check_all_is_there(&reader(&path).unwrap());
    assert!(!path.join("LOCK").exists());
    drop(engine);
    Engine::open(&path).unwrap().close().unwrap();
    let missing = dir.path().join("missing");
    assert_eq!(reader(&missing).unwrap_err().kind(), ErrorKind::NotFound);
    assert!(!missing.exists());
    fs::create_dir(&missing).unwrap();
    assert_eq!(reader(&missing).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(fs::read_dir(&missing).unwrap().count(), 0);
}

const STORE: &str = "ONCEKEY_READ_ONLY_STORE";

/// Not a test: the process that may only read.
#[test]
#[ignore = "started by another test"]
fn child() {
    let Ok(path) = std::env::var(STORE) else { return };
    check_all_is_there(&reader(path.as_ref()).unwrap());
}

pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

/// Runs [`child`], as another user or on another view of the files.
fn run_child(path: &Path, change: impl FnOnce(&mut Command)) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["read_only::child", "--exact", "--ignored"]).env(STORE, path);
    change(&mut command);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn another_user_with_the_right_to_read_can_read() {
    use std::os::unix::process::CommandExt as _;
    let dir = tempfile::tempdir().unwrap();
    for path in stores(dir.path()) {
        for (entry, ..) in everything(&path).into_iter().chain(everything(dir.path())) {
            let mode = if entry.is_dir() { 0o755 } else { 0o644 };
            fs::set_permissions(entry, fs::Permissions::from_mode(mode)).unwrap();
        }
        if !is_root() {
            println!("skipped: only root can be another user");
            return;
        }
        // This user may not enter the directory of the test program.
        let program = dir.path().join("program");
        fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let before = everything(&path);
        let mut command = Command::new(&program);
        command
            .args(["read_only::child", "--exact", "--ignored"])
            .env(STORE, &path)
            .current_dir("/")
            .uid(65_534)
            .gid(65_534);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        assert!(everything(&path) == before);
    }
}

#[test]
fn a_file_system_that_is_mounted_read_only_can_be_read() {
    let dir = tempfile::tempdir().unwrap();
    for path in stores(dir.path()) {
        let mounted = Command::new("mount").args(["--bind", "-o", "ro"]).args([&path, &path]).status();
        if !mounted.is_ok_and(|status| status.success()) {
            println!("skipped: nothing can be mounted here");
            return;
        }
        let refused = Engine::open(&path).map(drop);
        let read = std::panic::catch_unwind(|| run_child(&path, |_| ()));
        assert!(Command::new("umount").arg(&path).status().unwrap().success());
        assert_eq!(refused.unwrap_err().io_kind(), Some(std::io::ErrorKind::ReadOnlyFilesystem));
        read.unwrap();
    }
}

#[test]
fn files_that_root_writes_belong_to_the_owner_of_the_directory() {
    const OWNER: u32 = 65_534;
    if !is_root() {
        println!("skipped: only root can be another user");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for path in stores(dir.path()) {
        for (entry, ..) in everything(&path) {
            std::os::unix::fs::chown(entry, Some(OWNER), Some(OWNER)).unwrap();
        }
        fs::remove_file(path.join("LOCK")).unwrap();
        let engine = Engine::options().clock(ManualClock::new()).segment_bytes(4096).open(&path).unwrap();
        let manager = engine.manager::<Vec<u8>, String>("large").unwrap();
        for index in 0..20 {
            manager.execute(index.to_string(), |_| Ok(vec![7; 5_000])).unwrap();
        }
        engine.close().unwrap();
        let of_others: Vec<_> =
            everything(&path).into_iter().filter(|(_, facts, _)| facts[0] != i64::from(OWNER)).collect();
        assert!(of_others.is_empty(), "{:?}", of_others.iter().map(|(path, ..)| path).collect::<Vec<_>>());
    }
}
