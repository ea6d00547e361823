//! `verify` reports all damage and nothing else, also while the store is in use.

use std::sync::atomic::AtomicBool;
use std::thread;

use super::*;
use crate::store::format::list::{Contents, RunInfo};
use crate::store::runs::Run;

#[track_caller]
fn problems(store: &Store) -> Vec<String> {
    store.verify().unwrap().problems
}

/// Checks that there is exactly one problem, and that it contains `names`.
#[track_caller]
fn one_problem(store: &Store, names: &str) {
    let found = problems(store);
    assert!(found.len() == 1 && found[0].contains(names), "{found:?} is not one that names {names}");
}

fn row(store: &Store, key: &[u8], value: Option<&[u8]>) {
    let content = value.map(|value| Content::Row(Value::from(value)));
    let change = Change { key: StoreKey::row("stock", key), content };
    put_all(store, vec![change]);
}

/// Records of several kinds, and a row. All of them but one record in progress are in sled.
fn varied() -> (TempDir, Store) {
    let dir = temp();
    // After one drain they are one run.
    let (store, _) = open_with(dir.path(), &options().segment_bytes(4 << 20));
    put(&store, &key("short"), done(b"x"));
    put(&store, &key("long"), done(&bytes(20_000)));
    put(&store, &key("free"), unfinished(Status::Released));
    put(&store, &key("expires"), StoredRecord { expires: 1 << 50, ..done(b"x") });
    row(&store, b"bolt", Some(&bytes(9_000)));
    put(&store, &key("at work"), at_work());
    store.drain().unwrap();
    (dir, store)
}

#[test]
fn a_sound_store_has_no_problems_and_its_records_and_rows_are_counted() {
    let (dir, store) = varied();
    let sound = |store: &Store| {
        assert_eq!(store.verify().unwrap(), VerifyReport { records: 5, rows: 1, problems: Vec::new() });
    };
    sound(&store);
    checkpoint(&store);
    sound(&store);
    crash(store);
    let (store, _) = open(dir.path());
    sound(&store);
    store.close().unwrap();
    let (store, _) = open(dir.path());
    sound(&store);
    store.inner.commit_queue.poison(Error::new(ErrorKind::Io, "a failure"));
    assert_eq!(store.verify().unwrap_err().kind(), ErrorKind::Poisoned);
}

#[test]
fn load_gives_no_false_alarm() {
    let dir = temp();
    let (store, _) = open(dir.path());
    for index in 0..300_u32 {
        put(&store, &key(index.to_string()), done(&bytes(index as usize * 20)));
    }
    let (store, stop) = (&store, &AtomicBool::new(false));
    thread::scope(|scope| {
        for me in 0..3_u32 {
            scope.spawn(move || {
                let mut round = 0_u32;
                while !stop.load(Ordering::Relaxed) {
                    round += 1;
                    let index = (round * 7 + me * 100) % 400;
                    let key = key(index.to_string());
                    match round % 6 {
                        0 => remove(store, &key),
                        1 => drop(put(store, &key, at_work())),
                        2 => drop(put(store, &key, StoredRecord { expires: 1 << 50, ..done(&bytes(8_000)) })),
                        4 => drop(put(store, &key, StoredRecord { expires: store.now().store + 3, ..done(b"short") })),
                        3 => row(store, &[u8::try_from(index % 250).unwrap()], (round % 2 == 0).then_some(b"row")),
                        _ => drop(put(store, &key, done(b"short"))),
                    }
                }
            });
        }
        let mut groups = store.stats().groups;
        let verified = || {
            let mut pass = Pass::exact();
            while store.compact(&mut pass, 16).unwrap().is_some() {}
            store.verify()
        };
        let found: Vec<_> = (0..30).map(|_| verified()).collect();
        stop.store(true, Ordering::Relaxed);
        for report in found {
            assert_eq!(report.unwrap().problems, Vec::<String>::new());
        }
        groups = store.stats().groups - groups;
        assert!(groups > 30, "commits went on meanwhile: {groups}");
    });
    assert_eq!(problems(store), Vec::<String>::new());
}

#[test]
fn every_block_that_sled_has_lost_is_noticed() {
    for nth in 0.. {
        let (dir, store) = varied();
        let run = store.inner.shared.runs.current()[0].info;
        let Some(number) = (0..run.blocks).chain(run.index_at..run.index_end()).nth(nth) else {
            assert!(nth > 6, "{nth}");
            return;
        };
        lose(&store, run.id, number);
        let found = problems(&store);
        assert!(!found.is_empty() && found[0].contains(&format!("block {number} of run {} is missing", run.id)));
        // The file still has the block, and the next open finds it there.
        store.close().unwrap();
        let (store, _) = open(dir.path());
        assert_eq!(store.verify().unwrap(), VerifyReport { records: 5, rows: 1, problems: Vec::new() });
    }
}

#[test]
fn a_block_of_another_run_or_place_is_noticed() {
    let (_dir, store) = varied();
    let tables = &store.inner.shared.tables;
    let run = store.inner.shared.runs.current()[0].info.id;
    let first = block::Place { run, number: 0 };
    let good = [0, 1].map(|number| tables.block(block::Place { run, number }).unwrap().unwrap());
    tables.insert(&block::key(first), &good[1]).unwrap();
    one_problem(&store, "is in its place");
    tables.insert(&block::key(first), &good[0]).unwrap();
    assert_eq!(problems(&store), Vec::<String>::new());
    // The block is valid, but has other entries.
    let mut content = Vec::new();
    assert!(block::push_entry(&mut content, key("at work").bytes(), None).unwrap().is_empty());
    let sealed = |content: &[u8]| block::seal(tables.store_id(), first, block::Kind::Entries, content).unwrap();
    tables.insert(&block::key(first), &sealed(&content)).unwrap();
    one_problem(&store, "entries");
    content.clear();
    assert!(block::push_entry(&mut content, key("zzz").bytes(), None).unwrap().is_empty());
    tables.insert(&block::key(first), &sealed(&content)).unwrap();
    one_problem(&store, "not in");
}

#[test]
fn wrong_contents_of_a_run_in_the_list_are_noticed() {
    let (_dir, store) = varied();
    let runs = store.inner.shared.runs.current();
    let [run] = &runs[..] else { panic!("{runs:?}") };
    let Contents { all_expired, finished, outcome_bytes } = run.info.contents;
    for contents in [
        Contents { all_expired: all_expired - 1, ..run.info.contents },
        Contents { finished: finished + 1, ..run.info.contents },
        Contents { outcome_bytes: outcome_bytes + 1, ..run.info.contents },
    ] {
        let other = Run::new(RunInfo { contents, ..run.info }, block::Index::clone(&run.index));
        store.inner.shared.runs.publish(vec![other.into()]);
        one_problem(&store, &format!("run {} has", run.info.id));
    }
}

#[test]
fn very_many_problems_are_counted() {
    let dir = temp();
    let (store, _) = open_with(dir.path(), &options().segment_bytes(4 << 20));
    for index in 0..130_u8 {
        put(&store, &key([index]), done(&bytes(3_500)));
    }
    store.drain().unwrap();
    let run = store.inner.shared.runs.current()[0].info;
    assert_eq!(run.blocks, 130);
    for number in 0..run.blocks {
        store.inner.shared.tables.insert(&block::key(block::Place { run: run.id, number }), b"junk").unwrap();
    }
    let found = problems(&store);
    assert_eq!((found.len(), found.last().unwrap().as_str()), (101, "and 30 more"));
}

#[test]
fn damage_to_the_journal_is_named_while_it_is_in_use() {
    let dir = temp();
    let (store, _) = open_with(dir.path(), &options().segment_bytes(64 << 10));
    let gate = store.inner.shared.tables.flush_gate.lock();
    for index in 0..120 {
        put(&store, &key(index.to_string()), done(&[7; 700]));
    }
    let found = segments(dir.path());
    assert!(found.len() >= 3);
    for segment in &found[1..] {
        let shown = segment.path.display().to_string();
        // Also in the last segment and its last group, because that was answered.
        for (at, _) in [segment.groups[0], segment.groups[segment.groups.len() - 1]] {
            for offset in [at + 9, at + 90] {
                flip(&segment.path, offset);
                one_problem(&store, &shown);
                flip(&segment.path, offset);
            }
        }
        flip(&segment.path, 20);
        one_problem(&store, &format!("the header of {shown}"));
        flip(&segment.path, 20);
    }
    assert_eq!(problems(&store), Vec::<String>::new());
    drop(gate);
}

#[test]
fn damage_to_the_last_segment_is_named_next_to_other_damage_and_load() {
    let dir = temp();
    let (store, _) = open_with(dir.path(), &options().segment_bytes(1 << 20));
    let gate = store.inner.shared.tables.flush_gate.lock();
    for index in 0..40 {
        put(&store, &key(index.to_string()), done(&[7; 700]));
    }
    let found = segments(dir.path());
    let [.., before, last] = &found[..] else { panic!("not two segments") };
    let harmed = last.groups[5].0 + 100;
    flip(&last.path, harmed);
    flip(&before.path, 20);
    assert_eq!(problems(&store).len(), 2);
    flip(&before.path, 20);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for index in (0..300).cycle().take_while(|_| !stop.load(Ordering::Relaxed)).take(600) {
                put(&store, &key(index.to_string()), done(b"x"));
            }
        });
        for _ in 0..10 {
            one_problem(&store, &format!("{}: group {} is damaged", last.path.display(), last.groups[5].1.group));
        }
        stop.store(true, Ordering::Relaxed);
    });
    drop(gate);
}

#[test]
fn a_segment_of_the_journal_that_is_too_short_is_named() {
    let dir = temp();
    let (store, _) = open(dir.path());
    put(&store, &key("k"), done(b"x"));
    let last = segments(dir.path()).pop().unwrap();
    let bytes = std::fs::read(&last.path).unwrap();
    std::fs::write(&last.path, &bytes[..bytes.len() - SECTOR]).unwrap();
    one_problem(&store, &last.path.display().to_string());
    std::fs::write(&last.path, &bytes).unwrap();
    assert_eq!(problems(&store), Vec::<String>::new());
}

#[test]
fn a_segment_of_the_journal_that_is_missing_is_named_if_it_is_needed() {
    let dir = temp();
    let (store, _) = open(dir.path());
    // A free segment may be deleted when a new file is created, and is kept or reused when there is one.
    let rest = || {
        while !store.inner.commit_queue.has_next_segment() {
            thread::yield_now();
        }
    };
    let aside = dir.path().join("aside");
    let missing = |needed: bool| {
        let found = segments(dir.path());
        let newest = found.last().unwrap().header.number;
        for segment in found {
            std::fs::rename(&segment.path, &aside).unwrap();
            let found = problems(&store);
            assert_eq!(found.len(), usize::from(needed || segment.header.number == newest), "{found:?}");
            assert!(found.iter().all(|problem| problem.contains(&format!("segment {}", segment.header.number))));
            std::fs::rename(&aside, &segment.path).unwrap();
        }
        newest
    };
    rest();
    checkpoint(&store);
    let first = missing(false);
    let gate = store.inner.shared.tables.flush_gate.lock();
    for index in 0..40 {
        put(&store, &key(index.to_string()), done(&bytes(400)));
    }
    rest();
    // The changes of the first segments are in runs now.
    let old: Vec<_> = segments(dir.path()).into_iter().filter(|segment| segment.header.number < first).collect();
    for segment in &old {
        std::fs::remove_file(&segment.path).unwrap();
    }
    assert!(missing(true) > first + 2);
    for segment in segments(dir.path()) {
        std::fs::rename(&segment.path, dir.path().join(segment.header.number.to_string())).unwrap();
    }
    one_problem(&store, "has no segment");
    drop(gate);
}

#[test]
fn segments_become_free_after_a_verify() {
    let dir = temp();
    let (store, _) = open(dir.path());
    let (pin, other) = (store.inner.pool.pin(), store.inner.pool.pin());
    for index in 0..100 {
        put(&store, &key(index.to_string()), done(&bytes(400)));
    }
    checkpoint(&store);
    let kept = store.stats().segments;
    assert!(kept > 5, "{kept}");
    drop(pin);
    assert_eq!(store.stats().segments, kept);
    drop(other);
    assert!(store.stats().segments < kept);
    store.close().unwrap();
    assert!(open(dir.path()).1.clean);
}

#[test]
fn a_close_ends_a_verify() {
    let (_dir, store) = varied();
    thread::scope(|scope| {
        let verifying = scope.spawn(|| {
            loop {
                match store.verify() {
                    Ok(report) => assert_eq!(report.problems, Vec::<String>::new()),
                    Err(error) => return error.kind(),
                }
            }
        });
        store.close().unwrap();
        assert_eq!(verifying.join().unwrap(), ErrorKind::Closed);
    });
}

#[test]
fn a_verify_does_not_wait_for_space() {
    let (_dir, store) = varied();
    store.inner.disk_space.pretended.store(0, Ordering::SeqCst);
    row(&store, b"nut", Some(b"in the journal only"));
    ask_for_flush(&store);
    while !store.inner.commit_queue.is_stalled() {
        thread::yield_now();
    }
    for _ in 0..2 {
        assert_eq!(store.verify().unwrap(), VerifyReport { records: 5, rows: 2, problems: Vec::new() });
    }
    assert_eq!(store.close().unwrap_err().kind(), ErrorKind::Full);
    assert_eq!(store.verify().unwrap_err().kind(), ErrorKind::Closed);
}
