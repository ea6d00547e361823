//! Tests of backups. Each is a complete copy of the store at one commit, and a store of its own afterwards.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;

use oncekey::admin::BackupReport;
use oncekey::clock::ManualClock;
use oncekey::{
    Engine, ErrorKind, Failure, Interruption, Manager, ManagerOptions, Record, Status, Value, stage::PhaseError,
};

use crate::common::*;
use crate::threads::{LATE, Rng, within};

const ACCOUNTS: u64 = 20;
const EACH: u64 = 1_000;

fn balance(value: Option<&Value>) -> u64 {
    u64::from_le_bytes(value.expect("the account exists").as_ref().try_into().unwrap())
}

/// Moves money between two accounts, and counts the transfer in the same commit.
fn transfer(engine: &Engine, rng: &mut Rng) {
    let (from, to) = (rng.below(ACCOUNTS).to_string(), rng.below(ACCOUNTS).to_string());
    let moved = engine.atomic_phase(|tx| {
        let accounts = tx.table("accounts")?;
        let left = balance(accounts.get(&from)?.as_ref());
        if left == 0 || from == to {
            return Err(PhaseError::User(()));
        }
        let had = balance(accounts.get(&to)?.as_ref());
        accounts.insert(&from, (left - 1).to_le_bytes())?;
        accounts.insert(&to, (had + 1).to_le_bytes())?;
        Ok(())
    });
    assert!(matches!(moved, Ok(()) | Err(PhaseError::User(()))), "{moved:?}");
}

/// Opens a copy and checks it: the sum of money is right, the records are the first ones, and the content agrees with the
/// report.
fn check_copy(path: &Path, report: &BackupReport, at_least: u64) {
    let copy = Engine::open(path).unwrap();
    assert!(copy.opened().clean && !copy.opened().open_to_others, "{:?}", copy.opened());
    let rows: Vec<_> = copy.table("accounts").unwrap().iter().unwrap().map(|row| row.unwrap().1).collect();
    assert_eq!(rows.iter().map(|value| balance(Some(value))).sum::<u64>(), ACCOUNTS * EACH);
    let ops: Manager<Vec<u8>> = copy.manager("ops").unwrap();
    let done = (0..u64::MAX).find(|n: &u64| ops.get(format!("{n}")).unwrap().is_none()).unwrap();
    assert!(done >= at_least, "{done} of {at_least} operations that were answered before the backup");
    let records = copy.records(oncekey::admin::RecordFilter::new()).unwrap().count() as u64;
    // One more may be in progress.
    assert!(records == done || records == done + 1, "{records} records, the first {done} without a gap");
    assert_eq!((report.records(), report.rows), (records, rows.len() as u64));
    let verified = copy.verify().unwrap();
    assert_eq!((verified.records, verified.rows, verified.problems), (records, report.rows, Vec::new()));
}

#[test]
fn each_backup_taken_under_load_is_of_one_commit() {
    within(LATE, || {
        let dir = tempfile::tempdir().unwrap();
        // Use small segments, so that runs are flushed and merged while they are copied.
        let engine = &Engine::options().segment_bytes(64 << 10).open(dir.path().join("store")).unwrap();
        let accounts = engine.table("accounts").unwrap();
        for account in 0..ACCOUNTS {
            accounts.insert(account.to_string(), EACH.to_le_bytes()).unwrap();
        }
        let ops: &Manager<Vec<u8>> = &engine.manager("ops").unwrap();
        let (ended, done) = (&AtomicBool::new(false), &AtomicU64::new(0));
        let mut reports = Vec::new();
        thread::scope(|scope| {
            for seed in 0..3 {
                scope.spawn(move || {
                    let mut rng = Rng::new(seed);
                    while !ended.load(SeqCst) {
                        transfer(engine, &mut rng);
                    }
                });
            }
            scope.spawn(move || {
                for n in 0_u64.. {
                    if ended.load(SeqCst) {
                        return;
                    }
                    let len = if n % 10 == 0 { 20_000 } else { 100 };
                    ops.execute(format!("{n}"), |_| Ok(vec![7; len])).unwrap();
                    done.fetch_add(1, SeqCst);
                }
            });
            for nth in 0..5 {
                let before = done.load(SeqCst);
                // Wait for changes between two backups, in the memtable and in the runs.
                crate::threads::until("operations go on", || done.load(SeqCst) > before + 20);
                if nth == 2 {
                    engine.compact_now().unwrap();
                }
                let (path, before) = (dir.path().join(format!("copy {nth}")), done.load(SeqCst));
                reports.push((engine.backup(&path).unwrap(), path, before));
            }
            ended.store(true, SeqCst);
        });
        for (report, path, before) in &reports {
            check_copy(path, report, *before);
        }
        assert!(reports.is_sorted_by(|a, b| a.0.commit < b.0.commit));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 6, "only the store and its copies");
    });
}

/// The engine crashes during the copy.
#[test]
fn a_crash_during_a_backup_leaves_a_whole_copy_or_none() {
    within(LATE, || {
        let dir = tempfile::tempdir().unwrap();
        let mut copies = 0;
        for round in 0..6_u32 {
            let engine = Engine::open(dir.path().join("store")).unwrap();
            let ops: Manager<Vec<u8>> = engine.manager("ops").unwrap();
            for n in 0..50 {
                ops.execute(format!("{round} {n}"), |_| Ok(vec![1; 10_000])).unwrap();
            }
            let (path, other) = (dir.path().join(format!("copy {round}")), engine.clone());
            let backup = thread::spawn({
                let path = path.clone();
                move || other.backup(path)
            });
            (0..round * 200).for_each(|_| thread::yield_now());
            drop(ops);
            engine.crash();
            match backup.join().unwrap() {
                Ok(report) => {
                    let copy = Engine::options().create(false).open(&path).unwrap();
                    assert_eq!(copy.verify().unwrap().records, report.records());
                    copies += 1;
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Closed, "{error}");
                    assert!(!path.exists());
                }
            }
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1 + copies);
    });
}

fn everything(
    raw: &oncekey::admin::RawManager,
    key: &str,
) -> (u64, String, String, Option<Status>, Record<Value, Value>) {
    let record = raw.get(key).unwrap().unwrap();
    let info = record.info();
    let about = format!(
        "{:?} {:?} {:?} {:?} {:?} {:?} {:?}",
        info.attempt(),
        info.fingerprint(),
        info.context(),
        info.recovery_point(),
        info.checkpoint(),
        info.created_at(),
        info.schema()
    );
    (info.generation(), info.effect_id("charge"), about, Some(info.status()), record)
}

#[test]
fn a_copy_keeps_generations_effect_ids_and_rows_and_draws_new_ones() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let original = open(&dir.path().join("store"), &clock);
    let texts = texts_with(&original, ManagerOptions::new().success_ttl(DAY).failure_ttl(MINUTE));
    let begin = same("request").context(about("user", "ada"));
    claimed(texts.begin_with("won", begin).unwrap()).succeed(&"receipt".to_owned()).unwrap();
    claim(&texts, "lost").fail(&"declined".to_owned()).unwrap();
    claim(&texts, "released").release().unwrap();
    drop(claim(&texts, "dropped"));
    let mut staged = claim(&resuming(&original), "staged");
    staged.work_stage(|_| Ok::<_, oncekey::Error>(oncekey::stage::Next::advance_with("half", vec![1, 2]))).unwrap();
    original.table("t").unwrap().insert("row", vec![9; 10_000]).unwrap();
    original.table("t").unwrap().insert("gone", "x").unwrap();
    original.table("t").unwrap().remove("gone").unwrap();
    clock.advance(59 * SECOND);

    let report = original.backup(dir.path().join("copy")).unwrap();
    let counts = [report.succeeded, report.failed, report.released, report.interrupted, report.in_progress];
    assert_eq!((counts, report.records(), report.rows), ([1; 5], 5, 1));
    assert!(report.bytes > 10_000, "{report:?}");
    let copy = open(&dir.path().join("copy"), &clock);
    assert_eq!(copy.opened().interrupted, 2, "the dropped one, and the one whose owner has another store");
    let (old, new) = (original.raw("m").unwrap(), copy.raw("m").unwrap());
    for key in ["won", "lost", "released", "dropped", "staged"] {
        let ((generation, effect, about, status, old), copied) = (everything(&old, key), everything(&new, key));
        assert_eq!((generation, effect, about), (copied.0, copied.1, copied.2), "{key}");
        if key != "staged" {
            assert_eq!((status, old.into_outcome()), (copied.3, copied.4.into_outcome()), "{key}");
        }
    }
    assert_eq!(new.get("staged").unwrap().unwrap().info().interruption(), Some(Interruption::ProcessEnded));
    assert_eq!(copy.table("t").unwrap().get("row").unwrap().unwrap().as_ref(), [9; 10_000]);
    assert_eq!(copy.table("t").unwrap().len().unwrap(), 1);

    // The failure had one second left.
    clock.advance(just_before(SECOND));
    assert!(new.get("lost").unwrap().is_some());
    clock.advance(MS);
    assert!(new.get("lost").unwrap().is_none() && old.get("lost").unwrap().is_none());
    let copied_texts = self::texts(&copy);
    for key in ["lost", "released", "new"] {
        let (here, there) = (claim(&texts, key), claim(&copied_texts, key));
        assert_ne!(here.token(), there.token(), "{key}");
        // A released record continues in its generation.
        assert_eq!(here.effect_id("charge") == there.effect_id("charge"), key == "released", "{key}");
    }
}

#[test]
fn expired_records_are_left_out_and_remembered_keys_are_kept() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let engine = open(&dir.path().join("store"), &clock);
    let brief = ManagerOptions::new().success_ttl(MINUTE);
    let plain: Manager<String> = engine.manager_with("plain", brief.clone()).unwrap();
    let remembering: Manager<String> = engine.manager_with("remembering", brief.remember_expired(DAY)).unwrap();
    for manager in [&plain, &remembering] {
        claim(manager, "k").succeed(&MARKER.to_owned()).unwrap();
    }
    clock.advance(MINUTE);
    let report = engine.backup(dir.path().join("copy")).unwrap();
    assert_eq!((report.records(), report.rows), (0, 0));
    let copy = open(&dir.path().join("copy"), &clock);
    assert_eq!(copy.verify().unwrap().records, 1, "the key that is remembered");
    let again: Manager<String> = copy.manager_with("remembering", ManagerOptions::new().remember_expired(DAY)).unwrap();
    assert_eq!(again.begin("k").unwrap_err().kind(), ErrorKind::Expired);
    drop(claim(&copy.manager::<String, Failure>("plain").unwrap(), "k"));
}

#[test]
fn a_copy_of_many_blocks_is_whole() {
    within(LATE, || {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::open(dir.path().join("store")).unwrap();
        let table = engine.table("t").unwrap();
        let value = |n: u64| vec![n.to_le_bytes()[0]; usize::try_from(n * 7_919 % 9_000).unwrap()];
        for n in 0..600_u64 {
            table.insert(n.to_be_bytes(), value(n)).unwrap();
        }
        engine.compact_now().unwrap();
        // Contents that were replaced or removed in a later run or in memory are not copied.
        for n in (0..600_u64).step_by(3) {
            table.remove(n.to_be_bytes()).unwrap();
        }
        let first = engine.backup(dir.path().join("copy")).unwrap();
        let copy = Engine::open(dir.path().join("copy")).unwrap();
        // A backup of a backup.
        let second = copy.backup(dir.path().join("second")).unwrap();
        assert_eq!((first.rows, second.rows), (400, 400));
        for path in ["copy", "second"] {
            let copy = if path == "copy" { copy.clone() } else { Engine::open(dir.path().join(path)).unwrap() };
            let table = copy.table("t").unwrap();
            for n in 0..600_u64 {
                let expected = (n % 3 > 0).then(|| value(n));
                assert_eq!(table.get(n.to_be_bytes()).unwrap().as_deref(), expected.as_deref(), "{path}: {n}");
            }
            assert_eq!(copy.verify().unwrap().problems, Vec::<String>::new());
        }
    });
}

#[test]
fn an_empty_store_can_be_backed_up() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(dir.path().join("store")).unwrap();
    let report = engine.backup(dir.path().join("copy")).unwrap();
    assert_eq!((report.records(), report.rows), (0, 0));
    let copy = Engine::options().create(false).open(dir.path().join("copy")).unwrap();
    assert_eq!(copy.managers().unwrap(), Vec::<String>::new());
    copy.table("t").unwrap().insert("k", "v").unwrap();
}

#[test]
fn a_backup_to_an_existing_path_is_rejected_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let engine = Engine::open(&store).unwrap();
    engine.table("t").unwrap().insert("k", "v").unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("empty")).unwrap();
    fs::write(at("file"), "mine").unwrap();
    std::os::unix::fs::symlink("nowhere", at("link")).unwrap();
    let names = || {
        let mut names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = names();
    for name in ["empty", "file", "link", "store", "store/copy", "store/store/copy"] {
        let error = engine.backup(at(name)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidOptions, "{name}: {error}");
        assert!(error.to_string().contains(name), "{error}");
    }
    for name in ["missing/copy", "file/copy"] {
        assert_eq!(engine.backup(at(name)).unwrap_err().kind(), ErrorKind::Io, "{name}");
    }
    assert_eq!(names(), before);
    assert_eq!(fs::read(at("file")).unwrap(), b"mine");
    assert_eq!(fs::read_dir(at("empty")).unwrap().count(), 0);
    engine.close().unwrap();
    assert!(Engine::open(&store).unwrap().opened().clean);
}

#[test]
fn a_closed_engine_makes_no_backup() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(dir.path().join("store")).unwrap();
    engine.clone().close().unwrap();
    assert_eq!(engine.backup(dir.path().join("copy")).unwrap_err().kind(), ErrorKind::Closed);
    assert!(!dir.path().join("copy").exists());
}

#[test]
fn the_command_line_backs_up_a_closed_store() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let engine = Engine::open(at("store")).unwrap();
    drop(claim(&texts(&engine), "k"));
    engine.table("t").unwrap().insert("k", "v").unwrap();
    engine.close().unwrap();
    let run = |args: &[&str]| {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let status = oncekey::cli::run(&oncekey::cli::Describers::new(), args, &mut out, &mut err);
        (status, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
    };
    let (status, out, err) = run(&["backup", &at("store"), &at("copy")]);
    assert_eq!((status, err.as_str()), (0, ""));
    assert!(
        out.contains("1 records: 0 succeeded, 0 failed, 0 released, 1 interrupted") && out.contains("1 rows"),
        "{out}"
    );
    let (status, out, _) = run(&["backup", &at("store"), &at("second"), "--json"]);
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((status, json["records"]["Interrupted"].as_u64(), json["rows"].as_u64()), (0, Some(1), Some(1)));
    // The target exists.
    let (status, out, err) = run(&["backup", &at("store"), &at("copy")]);
    assert_eq!((status, out.as_str()), (2, ""));
    assert!(err.contains(&at("copy")), "{err}");
    for copy in ["copy", "second"] {
        let copy = Engine::options().create(false).open(at(copy)).unwrap();
        assert_eq!(status_of(&copy), Some(Status::Interrupted));
    }
}

fn status_of(copy: &Engine) -> Option<Status> {
    status(&texts(copy), "k")
}
