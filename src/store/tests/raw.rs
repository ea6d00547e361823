//! Tests of the scan of sled's files before an open.

use std::fs;

use super::*;
use crate::store::journal;
use crate::store::sled::log::tests::set_unreadable;
use crate::store::sled::raw::Found;

fn sled(dir: &Path) -> PathBuf {
    dir.join("store/sled")
}

/// Returns true if an open would open sled on its files as they are.
fn is_proven(dir: &Path) -> bool {
    let journal = journal::recover(&journal_dir(dir), SMALL_SEGMENT).unwrap().summary();
    let found = Found::scan(&sled(dir), &journal.store_id).unwrap();
    let chosen = found.choose(&journal).unwrap();
    found.is_proven(&chosen).unwrap()
}

fn snapshots(dir: &Path) -> Vec<PathBuf> {
    let is_snapshot = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with("snap.");
    files::entries(&sled(dir)).unwrap().into_iter().map(|(path, _)| path).filter(is_snapshot).collect()
}

fn contents(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let inside = |(path, kind): (PathBuf, fs::FileType)| {
        if kind.is_dir() { contents(&path) } else { vec![(path.clone(), fs::read(&path).unwrap())] }
    };
    files::entries(dir).unwrap().into_iter().flat_map(inside).collect()
}

/// Damages sled's log, or its snapshot.
type Damage = fn(&Path, &Path);

/// Writes, replaces and removes enough for sled to use segments again.
fn churn(store: &Store, round: usize) {
    for part in 0..6 {
        for index in 0..40 {
            put(store, &key(format!("{index}")), done(&bytes(3_000 + round + part)));
        }
        store.drain().unwrap();
    }
}

#[test]
fn sled_is_opened_on_its_own_files_after_a_close_and_after_a_kill() {
    let dir = temp();
    let report = open(dir.path()).1;
    assert!(report.created && !report.rebuilt);
    for round in 0..6 {
        assert!(is_proven(dir.path()), "round {round}");
        let (store, _) = open(dir.path());
        churn(&store, round);
        let copied = copy(&store);
        assert!(is_proven(copied.path()), "killed in round {round}");
        if round % 2 == 0 { crash(store) } else { store.close().unwrap() }
    }
}

#[test]
fn a_store_with_damage_outside_its_blocks_is_rebuilt() {
    let dir = temp();
    let (store, _) = open(dir.path());
    churn(&store, 0);
    store.close().unwrap();
    let damages: [(&str, Damage); 4] = [
        ("a snapshot with another page table", |_, snapshot| flip(snapshot, 40)),
        ("a segment's header", |db, _| flip(db, (512 << 10) + 6)),
        ("no settings", |db, _| fs::remove_file(db.with_file_name("conf")).unwrap()),
        ("a message of the log", |db, _| flip(db, 24)),
    ];
    for (damage, inflict) in damages {
        let work = temp();
        copy_tree(&dir.path().join("store"), &work.path().join("store")).unwrap();
        inflict(&sled(work.path()).join("db"), &snapshots(work.path())[0]);
        assert!(!is_proven(work.path()), "{damage}");
        let (store, report) = open(work.path());
        assert!(report.rebuilt, "{damage}");
        for index in 0..40 {
            assert_eq!(outcome(&store, &key(format!("{index}"))).unwrap(), bytes(3_005), "{damage}");
        }
        assert_eq!(store.verify().unwrap().problems, Vec::<String>::new(), "{damage}");
        store.close().unwrap();
        assert!(is_proven(work.path()), "{damage}");
    }
}

#[test]
fn an_open_without_a_listed_block_returns_corrupt_and_changes_nothing() {
    let dir = temp();
    let (store, _) = open(dir.path());
    put(&store, &key("k"), done(&bytes(30_000)));
    store.close().unwrap();
    let db = sled(dir.path()).join("db");
    let mut bytes = fs::read(&db).unwrap();
    let finder = memchr::memmem::Finder::new(block::MAGIC);
    let blocks: Vec<usize> = finder.find_iter(&bytes).collect();
    // Every copy of every block, because sled may have written a block twice.
    for at in blocks {
        bytes[at + block::PREFIX] ^= 1;
    }
    fs::write(&db, bytes).unwrap();
    fs::remove_file(dir.path().join("LOCK")).unwrap();
    let before = contents(dir.path());
    refused(dir.path(), ErrorKind::Corrupt, db.to_str().unwrap());
    assert!(contents(dir.path()) == before);
}

#[test]
fn a_value_that_looks_like_a_block_is_not_taken_for_one() {
    let dir = temp();
    let (store, _) = open(dir.path());
    let (id, newest) = (store.id(), u64::MAX);
    let forged = |id: [u8; 16]| {
        let list =
            format::list::RunList { store_id: id, serial: newest, frame: 0, complete: 0, next_id: 1, runs: vec![] };
        list.encode().unwrap()
    };
    // Clients do not know the id of the store. Even with the id, the inside of a block is not searched.
    for (name, value) in [("guessed", forged([7; 16])), ("known", forged(id))] {
        put(&store, &key(name), done(&value));
    }
    store.close().unwrap();
    let (store, _) = open(dir.path());
    assert_eq!(outcome(&store, &key("known")).unwrap(), forged(id));
}

#[test]
fn a_store_without_a_snapshot_is_not_rebuilt_if_its_log_has_every_page() {
    let dir = temp();
    let (store, _) = open(dir.path());
    churn(&store, 0);
    store.close().unwrap();
    fs::remove_file(&snapshots(dir.path())[0]).unwrap();
    let (store, report) = open(dir.path());
    assert!(!report.rebuilt);
    for index in 0..40 {
        assert_eq!(outcome(&store, &key(format!("{index}"))).unwrap(), bytes(3_005));
    }
    assert_eq!(store.verify().unwrap().problems, Vec::<String>::new());
}

#[test]
fn a_backup_without_a_snapshot_is_not_rebuilt() {
    let dir = temp();
    let (store, _) = open(dir.path());
    for index in 0..200 {
        put(&store, &key(format!("{index}")), done(&bytes(40_000)));
    }
    let parent = temp();
    let copied = parent.path().join("copy");
    store.back_up(&copied, &|| Ok(())).unwrap();
    // sled makes a snapshot when it is opened again.
    assert!(snapshots(&copied).is_empty());
    assert!(is_proven(&copied));
    let (copied, report) = open(&copied);
    assert!(!report.rebuilt);
    assert_eq!(copied.verify().unwrap(), VerifyReport { records: 200, rows: 0, problems: Vec::new() });
}

#[test]
fn files_that_sled_does_not_know_are_left_alone() {
    let dir = temp();
    open(dir.path()).0.close().unwrap();
    let foreign = sled(dir.path()).join("lost+found");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("something"), b"x").unwrap();
    fs::write(sled(dir.path()).join("something"), b"x").unwrap();
    let (store, report) = open(dir.path());
    assert!(!report.rebuilt && report.clean);
    drop(store);
    assert!(foreign.join("something").exists());
}

#[test]
fn a_newest_list_without_its_blocks_makes_the_open_rebuild_from_the_list_before() {
    let dir = temp();
    let (store, _) = open(dir.path());
    put(&store, &key("k"), done(b"x"));
    store.drain().unwrap();
    let tables = &store.inner.shared.tables;
    let mut list = tables.list().unwrap().unwrap();
    list.serial += 1;
    list.runs.push(format::list::RunInfo { id: 999, ..list.runs[0] });
    tables.set_list(&list).unwrap();
    crash(store);
    assert!(!is_proven(dir.path()));
    let (store, report) = open(dir.path());
    assert!(report.rebuilt);
    assert_eq!(outcome(&store, &key("k")).unwrap(), b"x");
}

// Bytes that are damaged and not needed never prevented an open, but bytes that cannot be read did.
#[test]
fn an_unreadable_page_prevents_an_open_only_if_something_in_it_is_needed() {
    const PAGE: u64 = 4096;
    let dir = temp();
    let (store, _) = open(dir.path());
    churn(&store, 0);
    store.close().unwrap();
    let journal = journal::recover(&journal_dir(dir.path()), SMALL_SEGMENT).unwrap().summary();
    let page = |nth: u64| nth * PAGE..(nth + 1) * PAGE;
    let (mut needed, mut spare) = (None, None);
    for nth in (0..fs::metadata(sled(dir.path()).join("db")).unwrap().len() / PAGE).step_by(3) {
        set_unreadable(&page(nth));
        let found = Found::scan(&sled(dir.path()), &journal.store_id).unwrap();
        match found.choose(&journal) {
            Ok(chosen) => {
                assert!(!found.is_proven(&chosen).unwrap());
                spare = Some(nth);
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Io, "{error}");
                needed = Some(nth);
            }
        }
    }
    let before = contents(dir.path());
    set_unreadable(&page(needed.unwrap()));
    let error = Store::open(dir.path(), &options()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
    assert!(before == contents(dir.path()), "a refused open has changed the store");
    set_unreadable(&page(spare.unwrap()));
    for is_rebuilt in [true, false] {
        let (store, report) = open(dir.path());
        assert_eq!(report.rebuilt, is_rebuilt);
        for index in 0..40 {
            assert_eq!(outcome(&store, &key(format!("{index}"))), Some(bytes(3_005)), "{index}");
        }
        store.close().unwrap();
        set_unreadable(&(0..0));
    }
}
