//! Tests of the choice between the journal and the runs in a salvage.

use std::collections::BTreeMap;
use std::fs;

use super::*;
use crate::store::salvage::{LostRange, SalvageReport};

/// Salvages the store, and opens the new one.
fn rescue(dir: &Path) -> (Store, SalvageReport, TempDir) {
    let into = temp();
    let report = Store::salvage(dir, into.path(), &options(), &mut |_, _| ()).unwrap();
    let (store, opened) = open(into.path());
    assert!(opened.clean);
    (store, report, into)
}

fn row(name: &str) -> StoreKey {
    StoreKey::row("t", name.as_bytes())
}

fn row_of(store: &Store, name: &str) -> Option<Vec<u8>> {
    match store.read(&row(name), Load::All).unwrap().content {
        Some(Content::Row(value)) => Some(value.to_vec()),
        Some(other) => panic!("not a row: {other:?}"),
        None => None,
    }
}

/// Commits a row, and a record in the same frame. Returns its number.
fn put_both(store: &Store, name: &str, value: &[u8]) -> u64 {
    let content = Some(Content::Row(Value::from(value)));
    let changes = vec![set(&key(name), done(value)), Change { key: row(name), content }];
    put_all(store, changes)[0].record().unwrap().revision
}

/// Damages the payload of the group with this frame. A second call restores it.
fn damage_frame(dir: &Path, number: u64) {
    let is_it =
        |header: &GroupHeader| (header.first_frame..header.first_frame + u64::from(header.frames)).contains(&number);
    let mut hit = 0;
    for segment in segments(dir) {
        for (at, _) in segment.groups.iter().filter(|(_, header)| is_it(header)) {
            flip(&segment.path, at + 88 + 20);
            hit += 1;
        }
    }
    assert_eq!(hit, 1, "the group of frame {number}");
}

/// Zeroes the journal from the group with this frame on, as if none of it had reached the disk.
fn cut_off(dir: &Path, number: u64) {
    for segment in segments(dir) {
        let first = segment.groups.iter().find(|(_, header)| header.first_frame + u64::from(header.frames) > number);
        if let Some((at, _)) = first {
            let mut bytes = fs::read(&segment.path).unwrap();
            bytes[*at..].fill(0);
            fs::write(&segment.path, bytes).unwrap();
        }
    }
}

/// Damages each copy of every block with entries.
fn damage_blocks(dir: &Path) {
    let db = dir.join("store/sled/db");
    let mut bytes = fs::read(&db).unwrap();
    let blocks: Vec<usize> = memchr::memmem::find_iter(&bytes, block::MAGIC).collect();
    for at in blocks {
        if bytes[at + 9] == 1 {
            bytes[at + block::PREFIX] ^= 1;
        }
    }
    fs::write(db, bytes).unwrap();
}

#[test]
fn runs_take_precedence_over_older_frames_of_a_damaged_journal() {
    let dir = temp();
    let (store, _) = open(dir.path());
    put_both(&store, "k", b"old");
    remove(&store, &key("k"));
    let newest = put_both(&store, "k", b"new");
    store.drain().unwrap();
    let lost = put(&store, &key("lost"), done(b"lost"));
    put(&store, &key("later"), done(b"later"));
    let copied = copy(&store);
    drop(store);
    damage_frame(copied.path(), newest);
    damage_frame(copied.path(), lost);
    let (store, report, _into) = rescue(copied.path());
    assert_eq!(report.problems.len(), 1, "{report:?}");
    assert_eq!(row_of(&store, "k").unwrap(), b"new");
    assert_eq!(outcome(&store, &key("k")).unwrap(), b"new");
    assert_eq!(outcome(&store, &key("later")).unwrap(), b"later");
    assert_eq!((report.records, report.rows, report.in_doubt), (2, 1, 3));
    assert_eq!(report.in_doubt_keys, ["key k of m", "key later of m", "row k of t"]);
}

#[test]
fn runs_take_precedence_over_a_journal_that_ends_before_them() {
    let dir = temp();
    let (store, _) = open(dir.path());
    put_both(&store, "k", b"old");
    let newest = put_both(&store, "k", b"new");
    store.drain().unwrap();
    let copied = copy(&store);
    drop(store);
    // The checkpoint after it may be durable or not.
    cut_off(copied.path(), newest);
    let (store, report, _into) = rescue(copied.path());
    assert!(report.problems.iter().any(|problem| problem.contains("the journal ends at frame")), "{report:?}");
    assert_eq!(row_of(&store, "k").unwrap(), b"new");
    assert_eq!(outcome(&store, &key("k")).unwrap(), b"new");
}

#[test]
fn a_group_that_an_open_has_cut_off_is_not_rescued() {
    let dir = temp();
    let (store, _) = open(dir.path());
    put(&store, &key("k"), done(b"first"));
    let torn = put(&store, &key("k"), done(b"cut off"));
    let copied = copy(&store);
    drop(store);
    let old: Vec<_> =
        segments(copied.path()).into_iter().map(|old| (old.header.number, fs::read(old.path).unwrap())).collect();
    damage_frame(copied.path(), torn);
    let (store, report) = open(copied.path());
    assert!(report.torn_bytes > 0);
    let lost = put(&store, &key("other"), done(b"lost"));
    put(&store, &key("last"), done(b"last"));
    crash(store);
    damage_frame(copied.path(), lost);
    // Segments that nothing has written over yet.
    let left: Vec<_> = segments(copied.path()).into_iter().map(|left| (left.header.number, left.path)).collect();
    for (number, bytes) in old {
        let aside = journal_dir(copied.path()).join(format!("{}.journal", 900 + number));
        let path = left.iter().find(|(left, _)| *left == number).map_or(aside, |(_, path)| path.clone());
        fs::write(path, bytes).unwrap();
    }
    damage_blocks(copied.path());
    let (store, report, _into) = rescue(copied.path());
    assert!(!report.problems.is_empty());
    assert_eq!(outcome(&store, &key("k")).unwrap(), b"first");
    assert_eq!(outcome(&store, &key("last")).unwrap(), b"last");
}

#[test]
fn lost_blocks_are_replaced_from_the_journal_without_removed_records() {
    let dir = temp();
    let (store, _) = open(dir.path());
    put_both(&store, "a", b"first");
    put_both(&store, "a", b"second");
    put_both(&store, "b", b"removed");
    remove(&store, &key("b"));
    store.close().unwrap();
    damage_blocks(dir.path());
    let (store, report, _into) = rescue(dir.path());
    assert_eq!(outcome(&store, &key("a")).unwrap(), b"second");
    assert_eq!(row_of(&store, "a").unwrap(), b"second");
    assert!(stored(&store, &key("b")).is_none());
    assert_eq!((report.records, report.rows, report.in_doubt), (1, 2, 3), "{report:?}");
}

/// Only the keys around the damage are in doubt, and a report stays short.
#[test]
fn keys_in_doubt_are_named_up_to_a_limit() {
    for (keys, named) in [(7, 7), (150, 100)] {
        let dir = temp();
        let (store, _) = open(dir.path());
        for index in 0..keys {
            put(&store, &key(format!("{index:03}")), done(b"x"));
        }
        let last = put(&store, &key("last"), done(b"lost"));
        put(&store, &key("later"), done(b"x"));
        let copied = copy(&store);
        drop(store);
        damage_frame(copied.path(), last);
        let (_, report, _into) = rescue(copied.path());
        // With them, the one that came later.
        assert_eq!((report.in_doubt, report.in_doubt_keys.len()), (keys + 1, named.min(100) + usize::from(keys == 7)));
        assert_eq!(report.in_doubt_keys.first().map(String::as_str), Some("key 000 of m"));
    }
}

#[test]
fn a_damaged_version_is_a_problem_in_one_segment_and_an_error_in_all() {
    let dir = temp();
    let (store, _) = open(dir.path());
    for index in 0..6 {
        put(&store, &key(format!("{index}")), done(&bytes(3_000)));
    }
    let copied = copy(&store);
    drop(store);
    let all = segments(copied.path());
    assert!(all.len() > 1);
    flip(&all[0].path, 8);
    let (_, report, _into) = rescue(copied.path());
    assert!(report.problems.iter().any(|problem| problem.contains("the header of")), "{report:?}");
    for segment in &all[1..] {
        flip(&segment.path, 8);
    }
    let into = temp();
    let error = Store::salvage(copied.path(), into.path(), &options(), &mut |_, _| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnsupportedFormat, "{error}");
    assert!(files::entries(into.path()).unwrap().is_empty());
}

#[test]
fn a_value_that_looks_like_a_newer_list_of_another_store_does_not_hide_the_store() {
    let dir = temp();
    let (store, _) = open(dir.path());
    let list = format::list::RunList {
        store_id: [7; 16],
        serial: u64::MAX,
        frame: u64::MAX,
        complete: 0,
        next_id: 1,
        runs: vec![],
    };
    put(&store, &key("k"), done(&list.encode().unwrap()));
    store.close().unwrap();
    fs::remove_dir_all(dir.path().join("store/journal")).unwrap();
    let (store, report, _into) = rescue(dir.path());
    assert_eq!(report.records, 1, "{report:?}");
    assert_eq!(outcome(&store, &key("k")).unwrap(), list.encode().unwrap());
}

/// Returns the keys in `expected` that the new store does not have, and fails if one of them is neither lost by name
/// nor in a range of the report.
fn check_lost(store: &Store, report: &SalvageReport, expected: &[StoreKey], note: &str) -> Vec<StoreKey> {
    let is_there = |key: &&StoreKey| store.read(key, Load::All).unwrap().content.is_some();
    let missing: Vec<_> = expected.iter().filter(|key| !is_there(key)).cloned().collect();
    for missing in &missing {
        let (of, own) = missing.split().unwrap();
        let own = crate::Key::from_bytes(own).unwrap();
        let (what, has): (_, &dyn Fn(&LostRange) -> bool) = if missing.is_record() {
            ("key", &|range| range.has_record(of, &own))
        } else {
            ("row", &|range| range.has_row(of, &own))
        };
        let is_told = report.lost.contains(&format!("{what} {own} of {of}")) || report.lost_ranges.iter().any(has);
        assert!(is_told, "{note}: {own} of {of} is missing, and {report:?}");
    }
    missing
}

/// One damaged byte at a time, in blocks all over the record store of a cleanly closed store, and in its journal.
#[test]
fn every_record_that_a_damaged_byte_loses_is_named_or_in_a_range() {
    let dir = temp();
    let (store, _) = open(dir.path());
    let mut expected = Vec::new();
    for number in 0..900 {
        let (manager, key) = (["bulk", "payments"][number % 2], format!("{number:04}"));
        let key = StoreKey::record(manager, key.as_bytes());
        // Some values continue in further blocks.
        let value = bytes(if number % 150 == 0 { 9_000 } else { 40 + number % 90 });
        let changes = vec![set(&key, done(&value))];
        let row = row(&format!("{number:04}"));
        let with_row =
            [changes, vec![Change { key: row.clone(), content: Some(Content::Row(Value::from(&b"row"[..]))) }]]
                .concat();
        store.commit(with_row, &[], Priority::User).unwrap();
        expected.extend([key, row]);
    }
    store.close().unwrap();
    // A store that a salvage has written has one run, and a journal that cannot replace any of it.
    let (store, report, dir) = rescue(dir.path());
    assert!(report.is_complete(), "{report:?}");
    store.close().unwrap();
    let db = dir.path().join("store/sled/db");
    let (content, id) = (fs::read(&db).unwrap(), segments(dir.path())[0].header.store_id);
    let mut blocks: BTreeMap<_, Vec<usize>> = BTreeMap::new();
    for at in memchr::memmem::find_iter(&content, block::MAGIC) {
        if let Some(block) = block::find(&id, &content[at..]).filter(|block| block.place != block::Place::LIST) {
            blocks.entry(block.place).or_default().push(at + block::PREFIX + 9);
        }
    }
    // One byte in each copy of a block.
    let spread = blocks.values().step_by(blocks.len().div_ceil(20));
    let mut places: Vec<_> = spread.map(|copies| (db.clone(), copies.clone())).collect();
    for segment in segments(dir.path()) {
        places.extend(segment.groups.first().map(|(at, _)| (segment.path.clone(), vec![at + 100])));
    }
    let (mut with_losses, mut narrow, mut by_name) = (0, 0, 0);
    for (path, copies) in places {
        let flip_all = || copies.iter().for_each(|at| flip(&path, *at));
        flip_all();
        let note = format!("{} at {copies:?}", path.display());
        let (store, report, _into) = rescue(dir.path());
        flip_all();
        let missing = check_lost(&store, &report, &expected, &note);
        assert!(missing.is_empty() || !report.is_complete(), "{note}: {report:?}");
        with_losses += usize::from(!missing.is_empty());
        by_name += usize::from(!report.lost.is_empty());
        let is_narrow = |range: &LostRange| range.after.is_some() && range.before.is_some();
        narrow += usize::from(missing.len() > 1 && report.lost_ranges.iter().all(is_narrow));
    }
    assert!(with_losses > 15 && narrow > 10 && by_name > 0, "{with_losses}, {narrow}, {by_name}");
}

#[test]
fn a_store_without_its_record_store_may_have_lost_any_key() {
    let dir = temp();
    let (store, _) = open(dir.path());
    put(&store, &key("k"), done(b"x"));
    store.close().unwrap();
    fs::remove_dir_all(dir.path().join("store/sled")).unwrap();
    let (_, report, _into) = rescue(dir.path());
    let texts: Vec<_> = report.lost_ranges.iter().map(ToString::to_string).collect();
    assert_eq!(texts, ["records of any manager, and rows of any table,"]);
    assert!(!report.is_complete());
}

/// The remains of a salvage that was killed are no store, and the next salvage replaces them.
#[test]
fn a_killed_salvage_can_run_again() {
    let dir = temp();
    let (store, _) = open(dir.path());
    put(&store, &key("a"), done(b"x"));
    put(&store, &key("b"), done(b"x"));
    store.close().unwrap();
    let (into, copies) = (temp(), temp());
    let killed = &copies.path().join("killed");
    let mut calls = 0;
    let report = Store::salvage(dir.path(), into.path(), &options(), &mut |_, _| {
        calls += 1;
        if calls == 1 {
            copy_tree(into.path(), killed).unwrap();
            let names: Vec<_> = files::entries(killed).unwrap().into_iter().map(|(path, _)| path).collect();
            assert_eq!(names, ["LOCK", "store.partial"].map(|name| killed.join(name)));
            let error = Store::salvage(dir.path(), into.path(), &options(), &mut |_, _| ()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::StoreInUse, "{error}");
        }
    });
    assert_eq!((report.unwrap().records, calls), (2, 2));
    let error = Store::open(killed, &options()).unwrap_err();
    assert!(error.to_string().contains("an unfinished salvage or migration"), "{error}");
    assert_eq!(error.kind(), ErrorKind::UnsupportedFormat);
    let report = Store::salvage(dir.path(), killed, &options(), &mut |_, _| ()).unwrap();
    assert_eq!((report.records, report.is_complete()), (2, true));
    assert_eq!(outcome(&open(killed).0, &key("a")).unwrap(), b"x");
    assert!(!killed.join("store.partial").exists());
    // A whole store, and files of others, are never replaced.
    let foreign = temp();
    fs::create_dir_all(foreign.path().join("store.partial/precious")).unwrap();
    for into in [killed, foreign.path()] {
        let error = Store::salvage(dir.path(), into, &options(), &mut |_, _| ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidOptions, "{error}");
    }
    assert!(foreign.path().join("store.partial/precious").exists());
}

#[test]
fn a_salvage_and_a_backup_name_a_missing_parent() {
    let (dir, other) = (temp(), temp());
    let (store, _) = open(dir.path());
    put(&store, &key("k"), done(b"x"));
    let into = other.path().join("missing/x/y");
    let backup = store.back_up(&into, &|| Ok(())).unwrap_err();
    store.close().unwrap();
    let salvage = Store::salvage(dir.path(), &into, &options(), &mut |_, _| ()).unwrap_err();
    assert_eq!(salvage.to_string(), backup.to_string());
    assert_eq!((salvage.kind(), backup.kind()), (ErrorKind::Io, ErrorKind::Io));
    assert!(salvage.to_string().contains(into.parent().unwrap().to_str().unwrap()), "{salvage}");
    assert!(files::entries(other.path()).unwrap().is_empty());
}
