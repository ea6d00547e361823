//! Opens and closes, and the results of an open.

use super::*;

#[test]
fn a_new_store_is_empty_and_a_closed_one_keeps_its_content() {
    let dir = temp();
    let path = dir.path().join("a/b");
    let (store, report) = open(&path);
    assert!(report.created && report.clean && report.torn_bytes == 0);
    assert!(stored(&store, &key("k")).is_none());
    let revision = put(&store, &key("k"), done(b"answer"));
    store.close().unwrap();
    store.close().unwrap();
    assert_eq!(store.read(&key("k"), Load::All).unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(store.commit(Vec::new(), &[], Priority::GivingUp).unwrap_err().kind(), ErrorKind::Closed);
    let (store, report) = open(&path);
    assert!(!report.created && report.clean);
    assert_eq!((report.frames_replayed, report.torn_bytes, report.interrupted), (0, 0, 0));
    let found = stored(&store, &key("k")).unwrap();
    assert_eq!((found.revision, found.generation, found.token), (revision, revision, revision));
    assert_eq!(found.outcome.as_deref(), Some(b"answer".as_slice()));
}

#[test]
fn a_store_that_was_not_closed_keeps_its_content() {
    let dir = temp();
    let (store, _) = open(dir.path());
    put(&store, &key("done"), done(b"answer"));
    put(&store, &key("live"), at_work());
    put(&store, &key("gone"), done(b"x"));
    remove(&store, &key("gone"));
    let copy = copy(&store);
    crash(store);
    for dir in [dir.path(), copy.path()] {
        let (store, report) = open(dir);
        assert!(!report.created && !report.clean);
        assert_eq!((report.frames_replayed, report.torn_bytes, report.interrupted), (4, 0, 1));
        assert_eq!(outcome(&store, &key("done")).as_deref(), Some(b"answer".as_slice()));
        assert_eq!(stored(&store, &key("live")).unwrap().state, Status::InProgress);
        assert!(stored(&store, &key("live")).unwrap().token < store.now().first);
        assert!(stored(&store, &key("gone")).is_none());
        store.close().unwrap();
        let (_store, report) = open(dir);
        assert!(report.clean && report.frames_replayed == 0 && report.interrupted == 1);
    }
}

#[test]
fn a_short_operation_takes_one_entry_and_one_more_if_it_is_in_progress_at_a_flush() {
    let dir = temp();
    let (store, _) = open(dir.path());
    put(&store, &key("live"), at_work());
    put(&store, &key("short"), at_work());
    put(&store, &key("short"), done(b"x"));
    assert_eq!((entries(&store), store.inner.shared.memtable.len()), (0, 2));
    checkpoint(&store);
    assert_eq!((entries(&store), store.inner.shared.memtable.len()), (2, 0));
    assert_eq!(stored(&store, &key("live")).unwrap().state, Status::InProgress);
    crash(store);
    let (store, report) = open(dir.path());
    assert_eq!((report.frames_replayed, report.interrupted), (0, 1));
    assert_eq!((entries(&store), store.inner.shared.memtable.len()), (2, 0));
    put(&store, &key("live"), done(b"x"));
    store.close().unwrap();
    assert_eq!(open(dir.path()).1.interrupted, 0);
}

#[test]
fn nothing_is_answered_after_close() {
    let dir = temp();
    let (store, _) = open(dir.path());
    put(&store, &key("live"), at_work());
    store.close().unwrap();
    // A closed store returns no contents, not even those of the memtable: the directory may belong to another process
    // by now.
    assert_eq!(store.read(&key("live"), Load::WithoutOutcome).unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(store.compact(&mut Pass::default(), 10).unwrap_err().kind(), ErrorKind::Closed);
}

#[test]
fn every_open_has_its_own_range_of_numbers() {
    let dir = temp();
    let mut last = 0;
    for round in 1..=6_u64 {
        let (store, _) = open(dir.path());
        // The numbers start at a random place, so that a copy of the store has others.
        assert_eq!(store.now().first >> 32, round);
        for _ in 0..3 {
            let revision = put(&store, &key("k"), done(b"x"));
            assert!(revision > last && revision >> 32 == round, "{revision:x} after {last:x}");
            last = revision;
        }
        if round % 2 == 0 { crash(store) } else { store.close().unwrap() }
    }
}

#[test]
fn numbers_are_not_reused_after_a_torn_write() {
    let dir = temp();
    let (store, _) = open(dir.path());
    put(&store, &key("k"), done(b"kept"));
    let cut = put(&store, &key("k"), done(b"cut"));
    crash(store);
    let newest = segments(dir.path()).pop().unwrap();
    flip(&newest.path, newest.groups.last().unwrap().0 + 100);
    let (store, report) = open(dir.path());
    assert!(report.torn_bytes > 0);
    assert_eq!(outcome(&store, &key("k")).as_deref(), Some(b"kept".as_slice()));
    assert!(put(&store, &key("k"), done(b"new")) > cut);
}

#[test]
fn repeated_opens_and_closes_take_no_space() {
    let dir = temp();
    let clock = ManualClock::new();
    let options = options().clock(clock.clone());
    for round in 0..100_u64 {
        clock.advance(Duration::from_secs(60));
        let (store, report) = open_with(dir.path(), &options);
        assert!(report.clean);
        if round % 3 == 0 {
            put(&store, &key("k"), done(&round.to_le_bytes()));
        }
        store.close().unwrap();
        assert_eq!(store.inner.pool.files(), journal_files(dir.path()) as u64);
        assert!(journal_files(dir.path()) <= 5, "round {round}: {}", journal_files(dir.path()));
    }
    let (store, _) = open(dir.path());
    assert_eq!(outcome(&store, &key("k")).unwrap(), 99_u64.to_le_bytes());
}

#[test]
fn repeated_crashes_take_no_space() {
    let dir = temp();
    for round in 0..30 {
        let (store, _) = open(dir.path());
        if round % 10 == 0 {
            put(&store, &key("k"), done(b"x"));
        }
        crash(store);
        assert!(journal_files(dir.path()) <= 6, "round {round}: {}", journal_files(dir.path()));
    }
    assert_eq!(outcome(&open(dir.path()).0, &key("k")).unwrap(), b"x");
}

#[test]
fn a_store_has_one_owner() {
    let dir = temp();
    let (store, _) = open(dir.path());
    put(&store, &key("k"), done(b"x"));
    refused(dir.path(), ErrorKind::StoreInUse, &dir.path().display().to_string());
    put(&store, &key("k"), done(b"y"));
    drop(store);
    assert_eq!(outcome(&open(dir.path()).0, &key("k")).unwrap(), b"y");
}

#[test]
fn a_released_lock_is_free_although_another_process_has_its_file_open() {
    let dir = temp();
    let path = dir.path().join("LOCK");
    let lock = files::Lock::take(&path, dir.path()).unwrap();
    // A child between its fork and its exec has the file open too.
    let inherited = lock.file().try_clone().unwrap();
    assert_eq!(files::Lock::take(&path, dir.path()).unwrap_err().kind(), ErrorKind::StoreInUse);
    drop(lock);
    files::Lock::take(&path, dir.path()).unwrap();
    drop(inherited);
}

#[test]
fn a_lock_file_that_is_deleted_under_its_owner_lets_no_second_owner_in() {
    let dir = temp();
    let (store, _) = open(dir.path());
    put(&store, &key("k"), done(b"x"));
    std::fs::remove_file(dir.path().join("LOCK")).unwrap();
    for replaced in [false, true] {
        if replaced {
            std::fs::write(dir.path().join("LOCK"), b"").unwrap();
        }
        refused(dir.path(), ErrorKind::StoreInUse, "is open already");
        assert_eq!(dir.path().join("LOCK").exists(), replaced, "an open that is refused leaves none behind");
        put(&store, &key("k"), done(b"y"));
    }
    store.close().unwrap();
    assert_eq!(outcome(&open(dir.path()).0, &key("k")).unwrap(), b"y");
}

#[test]
fn a_lock_on_a_file_that_was_moved_from_its_path_does_not_count() {
    let dir = temp();
    let path = dir.path().join("LOCK");
    let lock = files::Lock::take(&path, dir.path()).unwrap();
    std::fs::rename(&path, dir.path().join("moved")).unwrap();
    assert!(!lock.is_at(&path).unwrap());
    std::fs::write(&path, b"").unwrap();
    assert!(!lock.is_at(&path).unwrap());
    std::fs::rename(dir.path().join("moved"), &path).unwrap();
    assert!(lock.is_at(&path).unwrap());
}

/// Returns every file and directory below, and the directory itself, that give other users any permission.
fn open_to_others(dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<_> = files::entries(dir).unwrap();
    let below = found.iter().filter(|(_, kind)| kind.is_dir()).flat_map(|(path, _)| open_to_others(path));
    let below: Vec<_> = below.collect();
    found.retain(|(path, _)| files::is_open_to_others(path));
    found.into_iter().map(|(path, _)| path).chain(below).collect()
}

#[test]
fn every_file_and_directory_of_a_store_is_for_its_owner_only() {
    for sync_flag in [true, false] {
        let dir = temp();
        let path = dir.path().join("above/store");
        // While it is open, and after a crash and another open, when sled makes another snapshot.
        for _ in 0..3 {
            let (store, report) = open_with(&path, &options().sync_flag(sync_flag));
            assert!(!report.open_to_others);
            for n in 0..20 {
                put(&store, &key(format!("{n}")), done(&bytes(2000)));
            }
            assert_eq!(open_to_others(dir.path()), Vec::<PathBuf>::new());
            store.close().unwrap();
            assert_eq!(open_to_others(dir.path()), Vec::<PathBuf>::new());
        }
    }
}

#[test]
fn a_store_that_is_open_to_others_is_reported_and_left_as_it_is() {
    use std::os::unix::fs::PermissionsExt;
    let set = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    let dir = temp();
    let path = dir.path().join("store");
    open(&path).0.close().unwrap();
    let modes = [
        (0o700, 0o755, 0o644, false),
        (0o755, 0o700, 0o600, false),
        (0o750, 0o700, 0o640, true),
        (0o711, 0o705, 0o600, true),
    ];
    for (outer, inner, lock, is_open) in modes {
        set(&path.join("LOCK"), lock);
        set(&path.join("store"), inner);
        set(&path, outer);
        let (store, report) = open(&path);
        assert_eq!(report.open_to_others, is_open, "{outer:o} {inner:o} {lock:o}");
        store.close().unwrap();
        assert_eq!(path.join("store").metadata().unwrap().permissions().mode() & 0o777, inner);
    }
}

#[test]
fn a_store_whose_directory_is_moved_goes_on_beside_a_new_one_in_its_place() {
    let dir = temp();
    let (path, moved) = (dir.path().join("store"), dir.path().join("moved"));
    let (old, _) = open(&path);
    put(&old, &key("old"), done(b"1"));
    std::fs::rename(&path, &moved).unwrap();
    let (new, report) = open(&path);
    assert!(report.created);
    // Segments are created, filled and freed in both stores.
    for n in 0..200 {
        put(&old, &key(format!("old {n}")), done(&bytes(500)));
        put(&new, &key(format!("new {n}")), done(&bytes(500)));
    }
    for store in [&old, &new] {
        store.drain().unwrap();
        assert_eq!(store.verify().unwrap().problems, Vec::<String>::new());
        assert!(store.stats().store_checkpoints > 1);
        store.close().unwrap();
    }
    for (path, name) in [(&path, "new"), (&moved, "old")] {
        let (store, report) = open(path);
        assert!(report.clean);
        for n in 0..200 {
            assert_eq!(outcome(&store, &key(format!("{name} {n}"))).unwrap(), bytes(500));
        }
    }
}

#[test]
fn a_directory_with_other_files_is_not_touched() {
    let dir = temp();
    std::fs::write(dir.path().join("photo.jpg"), b"x").unwrap();
    refused(dir.path(), ErrorKind::UnsupportedFormat, "photo.jpg");
    assert_eq!(files::entries(dir.path()).unwrap().len(), 1);
    let error = refused(&dir.path().join("photo.jpg"), ErrorKind::Io, "photo.jpg");
    assert_eq!(error.io_kind(), Some(std::io::ErrorKind::NotADirectory));
    std::fs::remove_file(dir.path().join("photo.jpg")).unwrap();
    std::fs::create_dir(dir.path().join("lost+found")).unwrap();
    assert!(open(dir.path()).1.created);
}

#[test]
fn an_incomplete_new_store_is_removed() {
    let dir = temp();
    std::fs::create_dir_all(dir.path().join("store.new/sled")).unwrap();
    std::fs::write(dir.path().join("store.new/sled/conf"), b"x").unwrap();
    std::fs::write(dir.path().join("LOCK"), b"").unwrap();
    let (store, report) = open(dir.path());
    assert!(report.created);
    put(&store, &key("k"), done(b"x"));
    store.close().unwrap();
    std::fs::create_dir(dir.path().join("store.new")).unwrap();
    let (store, report) = open(dir.path());
    assert!(!report.created && !dir.path().join("store.new").exists());
    assert_eq!(outcome(&store, &key("k")).unwrap(), b"x");
}

#[test]
fn a_relative_path_may_be_created() {
    assert!(files::create_dirs(Path::new("target/../target")).is_ok());
    let dir = temp();
    files::create_dirs(&dir.path().join("a/b/c")).unwrap();
    assert!(files::is_dir(&dir.path().join("a/b/c")).unwrap());
}

#[test]
fn torn_snapshots_of_sled_are_removed() {
    let dir = temp();
    let (store, _) = open(dir.path());
    put(&store, &key("k"), done(b"x"));
    store.close().unwrap();
    let torn = dir.path().join("store/sled/snap.ffffffffffffffff.generating");
    std::fs::write(&torn, b"torn").unwrap();
    let (store, _) = open(dir.path());
    assert_eq!(outcome(&store, &key("k")).unwrap(), b"x");
    assert!(!torn.exists());
}
